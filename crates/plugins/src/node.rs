//! What the agent says of the node, as a plugin uses it.

use std::net::IpAddr;

use causeway_cni_spec::{CniError, Command};
use causeway_desired::pod;
use causeway_ipam::RangeSet;
use causeway_types::state::{LeaseRecord, NodeFile};
use causeway_types::{Cidr, IfName, Mac};
use ipnet::IpNet;

use crate::call::Call;
use crate::fixed;
use crate::ipam::Ipam;
use crate::notify::{self, Answer, Question, Reply};
use crate::record;

/// A node whose agent has written its file.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// The file.
    pub file: NodeFile,
    /// The kernel's boot ID.
    pub boot_id: String,
}

impl Served {
    /// The node, for type `causeway`, which cannot do without.
    ///
    /// # Errors
    /// Code 11 while there is no node file; codes 5 and 6 when it cannot be read.
    pub(crate) fn require(call: &Call) -> Result<Self, CniError> {
        Self::read(call)?.ok_or_else(|| absent(call))
    }

    /// Peers send to this node what is for its pod subnets, and nothing else: an address outside
    /// would be reached by nobody, and one in a wider network would take peers' pods for
    /// neighbours.
    ///
    /// # Errors
    /// Code 7 naming the network that is none of the node's.
    pub(crate) fn refuse_others_networks(
        &self,
        call: &Call,
        networks: impl IntoIterator<Item = IpNet>,
    ) -> Result<(), CniError> {
        let inside = |net: &IpNet| self.file.ranges().any(|c| c.covers(Cidr::of(*net)));
        let Some(other) = networks.into_iter().find(|net| !inside(net)) else { return Ok(()) };
        let own: Vec<String> = self.file.ranges().map(|c| c.to_string()).collect();
        Err(CniError::invalid_config(format!(
            "addresses of {} are not of this node's pod subnets ({}), which is all that other \
             nodes send here: change \"ipam.subnet\" of network {:?} on this node to its own",
            Cidr::of(other),
            own.join(", "),
            call.conf.name
        )))
    }

    /// Whether the addresses of a record that was just written are the node's still. Its agent lets go of
    /// an extra range where no record speaks of it, and reads the records after it has written the file
    /// without the range: either it sees this one, or the file is seen here.
    ///
    /// # Errors
    /// Code 11 where a range is gone; codes 5 and 6 when the file cannot be read.
    pub(crate) fn still_has(&self, call: &Call, addresses: &[IpAddr]) -> Result<(), CniError> {
        let inside = |ranges: &[Cidr], ip: &IpAddr| ranges.iter().any(|c| c.contains(*ip));
        let mut extra = addresses.iter().filter(|ip| inside(&self.file.extra_cidrs, ip)).peekable();
        if extra.peek().is_none() {
            return Ok(());
        }
        let now =
            record::node_file(&call.paths)?.map_or(Vec::new(), |file| file.ranges().collect());
        match extra.find(|ip| !inside(&now, ip)) {
            None => Ok(()),
            Some(ip) => Err(CniError::try_again(format!(
                "the range of address {ip} was taken from this node at this moment: the next attempt gets \
                 another address"
            ))),
        }
    }

    /// Address management of a call as the node's agent wants it: what is reserved, what cools down,
    /// ranges in their order and, for ADD, the address that the pod is to have.
    ///
    /// # Errors
    /// As [`fixed::addresses`].
    pub(crate) fn shape(&self, call: &Call, mut ipam: Ipam) -> Result<Ipam, CniError> {
        let Ipam::HostLocal { conf, .. } = &mut ipam else { return Ok(ipam) };
        conf.sets = std::mem::take(&mut conf.sets).into_iter().map(|s| self.shaped(s)).collect();
        if call.env.command == Command::Add {
            for ip in fixed::addresses(call, &conf.sets)? {
                if !conf.requested.contains(&ip) {
                    conf.requested.push(ip);
                }
            }
        }
        Ok(ipam)
    }

    fn shaped(&self, set: RangeSet) -> RangeSet {
        shaped(&self.file, set)
    }

    /// The node, if it serves the call's network of type `bridge`.
    ///
    /// # Errors
    /// Codes 5 and 6 when the node file cannot be read. Code 11 when a pod is about to start in a
    /// network that was served before a boot and whose agent has not come up yet: it would start
    /// without a guard, and for good.
    pub(crate) fn if_served(call: &Call) -> Result<Option<Self>, CniError> {
        let starts = matches!(call.env.command, Command::Add | Command::Status);
        match Self::read(call)? {
            None if starts && was_served(call) => Err(absent(call)),
            None => Ok(None),
            Some(served) => Ok(Some(served).filter(|s| s.file.served.contains(&call.conf.name))),
        }
    }

    fn read(call: &Call) -> Result<Option<Self>, CniError> {
        let Some(file) = record::node_file(&call.paths)? else { return Ok(None) };
        Ok(Some(Self { file, boot_id: record::boot_id(&call.paths)? }))
    }

    /// What goes beside each lease of the attachment.
    pub(crate) fn lease_record(&self, call: &Call) -> LeaseRecord {
        LeaseRecord {
            container_id: call.env.container_id.clone(),
            ifname: call.env.ifname.clone(),
            pod: call.pod(),
            boot_id: self.boot_id.clone(),
            seen: false,
        }
    }

    /// The MAC that the node's bridge has, or is to get.
    pub(crate) fn bridge_mac(&self, bridge: &IfName) -> Mac {
        let gateways: Vec<IpAddr> = self.file.pod_cidrs.iter().map(|c| c.gateway()).collect();
        pod::bridge_mac(bridge, &gateways)
    }

    /// Asks the agent to put the policies of a pod into the kernel, where its namespace has any. Its record
    /// is written; the agent works while the interface is made.
    pub(crate) fn ask(&self, call: &Call) -> Option<Question> {
        guarded(&self.file, call).then(|| question(call))
    }

    /// A pod in a namespace with policies may start only when the agent has put them into the kernel.
    /// Any other pod does not need the agent, which finds its record by itself.
    ///
    /// # Errors
    /// Code 11 where the agent's word is needed and did not come.
    pub(crate) fn confirm(&self, call: &Call, asked: Option<Question>) -> Result<(), CniError> {
        // A namespace may have got its first policy meanwhile: an agent reads the records once more after
        // it has written that.
        let now = record::node_file(&call.paths)?;
        if !guarded(now.as_ref().unwrap_or(&self.file), call) {
            return Ok(());
        }
        let reply = match asked.map(Question::reply) {
            // An agent that came or went meanwhile.
            None | Some(Reply::Nobody | Reply::Broken(_)) => question(call).reply(),
            Some(reply) => reply,
        };
        let why = match Answer::from(reply) {
            Answer::Done => return Ok(()),
            Answer::Nobody => "no agent listens there".to_owned(),
            Answer::Failed(why) => why,
        };
        Err(CniError::try_again(format!(
            "namespace {} has network policies, and the agent at {} did not confirm that they are \
             in place: {why}; see that `causeway agent` runs on this node",
            call.args.pod_namespace().unwrap_or_default(),
            call.paths.agent_socket.display()
        )))
    }
}

/// Whether the pod of a call has to wait for policies.
fn guarded(file: &NodeFile, call: &Call) -> bool {
    let Some(pod) = call.pod() else { return false };
    file.policy_namespaces.iter().any(|name| *name == pod.namespace || name == "*")
}

fn question(call: &Call) -> Question {
    notify::attachment(&call.paths.agent_socket, &call.env.container_id, &call.env.ifname)
}

/// A set of ranges with what the node file says of all of them.
pub(crate) fn shaped(file: &NodeFile, set: RangeSet) -> RangeSet {
    let reserved = file.reserved.iter().map(|c| c.net());
    set.in_order().without(reserved).cooling(file.cool_down.into())
}

/// Lease records are kept of served networks alone, and over a boot.
fn was_served(call: &Call) -> bool {
    call.paths.lease_records.join(&call.conf.name).is_dir()
}

/// There is no node file: why, in the agent's words if it has any.
fn absent(call: &Call) -> CniError {
    let why = match notify::readiness(&call.paths.agent_socket) {
        Answer::Failed(why) => format!("the agent is not ready to write it: {why}"),
        Answer::Done => "the agent is about to write it".to_owned(),
        Answer::Nobody => "the agent writes it when the node is ready for pods, and does not run; \
                           see that `causeway agent` runs on this node"
            .to_owned(),
    };
    let file = call.paths.node_file.display();
    CniError::try_again(format!("{file} is not there: {why}"))
}
