//! A network namespace during a call: what is there, and operations with errors that speak.

mod marks;
mod wait;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;

use causeway_cni_spec::CniError;
use causeway_kernel::vlan::PortVlan;
use causeway_kernel::{Handle, NetNs, OpError, Pair, Refusal, Routes, Scope, sysctl};
use causeway_model::nft::{NftFamily, NftTable};
use causeway_model::{Desired, Key, Link, Object, Observed, Route, Sysctl};
use causeway_plan::{NftOp, Op, Ownership, TableId, plan, withdraw};
use causeway_types::{IfName, names};
use ipnet::IpNet;

use crate::call::Call;

/// `RTPROT_RA` (`linux/rtnetlink.h`): made from a router advertisement.
const PROTO_RA: u8 = 9;

/// What nfnetlink answers to a request for a subsystem that is not there.
const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();

fn unreachable(error: causeway_kernel::Error) -> CniError {
    CniError::environment(format!("CNI_NETNS: {error}"))
}

/// Says something that is no error of the call, on standard error.
pub(crate) fn warn(text: &str) {
    // Nobody has to read it.
    let _ = writeln!(std::io::stderr(), "warning: {text}");
}

/// Says what was not brought back after somebody flushed it: it is not the matter of the attachment
/// that is being made.
pub(crate) fn warn_not_back(failed: &[String]) {
    failed.iter().for_each(|what| warn(&format!("not brought back: {what}")));
}

/// The node's namespace, or a pod's.
pub(crate) struct Space {
    handle: Handle,
    /// For messages: `on the node`, `in the pod's namespace /run/netns/x`.
    place: String,
    /// A chain was missing that attachments share.
    lacked: bool,
    /// Interfaces that were looked for in vain, and not made here since.
    absent: Vec<IfName>,
    /// The link of an attachment is removed first.
    link_first: bool,
    /// Addresses that turned out to be another attachment's by now.
    passed_on: BTreeSet<IpAddr>,
}

impl Space {
    /// The namespace in which the plugin was started.
    ///
    /// # Errors
    /// Code 999 when there is no way to talk to the kernel.
    pub(crate) fn node() -> Result<Self, CniError> {
        let handle = Handle::open().map_err(|e| CniError::internal(e.to_string()))?;
        Ok(Self::at(handle, "on the node".to_owned()))
    }

    /// A pod's namespace.
    ///
    /// # Errors
    /// Code 4 when the path is no namespace.
    pub(crate) fn pod(path: &str) -> Result<Self, CniError> {
        Self::inside(NetNs::open(Path::new(path)).map_err(unreachable)?, path)
    }

    /// The namespace at `CNI_NETNS`, for DEL: `None` when it is gone, and all its interfaces with it.
    ///
    /// # Errors
    /// Code 4 when it cannot be opened though it may be there, code 999 when no socket can be had.
    pub(crate) fn what_is_left(call: &Call) -> Result<Option<Self>, CniError> {
        let Some(path) = call.env.netns.as_deref() else { return Ok(None) };
        Self::find(&path.display().to_string())
    }

    /// A pod's namespace; `None` when it is gone.
    ///
    /// # Errors
    /// As [`Space::what_is_left`].
    pub(crate) fn find(path: &str) -> Result<Option<Self>, CniError> {
        let found = NetNs::find(path).map_err(unreachable)?;
        found.map(|netns| Self::inside(netns, path)).transpose()
    }

    fn inside(netns: NetNs, path: &str) -> Result<Self, CniError> {
        let handle = Handle::open_in(&netns).map_err(|e| CniError::internal(e.to_string()))?;
        Ok(Self::at(handle, format!("in the pod's namespace {path}")))
    }

    fn at(handle: Handle, place: String) -> Self {
        Self {
            handle,
            place,
            lacked: false,
            absent: Vec::new(),
            link_first: false,
            passed_on: BTreeSet::new(),
        }
    }

    /// Asks the kernel for something, or to do something, in this namespace.
    ///
    /// # Errors
    /// Code 999 when it does not.
    pub(crate) fn kernel<T>(
        &mut self,
        call: impl FnOnce(&mut Handle) -> Result<T, causeway_kernel::Error>,
    ) -> Result<T, CniError> {
        call(&mut self.handle).map_err(|e| self.unreadable(&e))
    }

    /// Does operations in order; they have an effect also after one that failed.
    ///
    /// # Errors
    /// The first that failed.
    pub(crate) fn apply(&mut self, ops: &[Op]) -> Result<(), OpError> {
        if ops.is_empty() {
            return Ok(());
        }
        self.absent.clear();
        self.handle.apply(ops).into_iter().collect()
    }

    /// Makes what is desired and not observed. Tables are looked at here: what attachments share is
    /// mostly there, and to write it again would make the kernel wait for what it takes out (an RCU
    /// grace period when the socket is closed).
    ///
    /// # Errors
    /// What failed first.
    pub(crate) fn make(&mut self, desired: &Desired, observed: &Observed) -> Result<(), Failed> {
        self.displace(desired)?;
        let observed = &self.with_tables(desired, observed).map_err(Failed::Unread)?;
        let plan = plan(desired, observed, &Ownership::plugin(names::ROUTE_PROTOCOL));
        if let Some(conflict) = plan.conflicts.into_iter().next() {
            return Err(Failed::Conflict(conflict.key, conflict.why));
        }
        self.apply(&repeatable(plan.ops)).map_err(Failed::Op)
    }

    fn with_tables(
        &mut self,
        desired: &Desired,
        observed: &Observed,
    ) -> Result<Observed, causeway_kernel::Error> {
        let mut all = observed.clone();
        for (key, entry) in desired.iter() {
            let (Object::Table(table), None) = (&entry.object, observed.get(key)) else { continue };
            let found = self.handle.nft()?.read_frame(table)?;
            // Those of family netdev are of one interface each.
            if table.family == NftFamily::Inet {
                let there = found.as_ref().map_or(0, |found| found.chains.len());
                self.lacked |= there < table.chains.len();
            }
            if let Some(found) = found {
                all.insert(Object::Table(found));
            }
        }
        Ok(all)
    }

    /// Whether [`Space::make`] found a chain missing that attachments share: this is the first of its
    /// kind, or somebody flushed all rules.
    pub(crate) fn lacked_chains(&self) -> bool {
        self.lacked
    }

    /// From now on the link of an attachment is removed before all else of it, which takes longer in
    /// all. For where somebody waits for the link alone.
    pub(crate) fn link_first(mut self) -> Self {
        self.link_first = true;
        self
    }

    /// Removes what is desired of an attachment. Its link is set down first, so that nothing that its
    /// pod sends meets a half of the rest. Tables go before the link does: the kernel frees what was
    /// taken out of them while it waits for the end of the link. What is gone, or still used by
    /// others, is fine. See also [`Space::link_first`].
    ///
    /// # Errors
    /// Code 999 with the first that stays; the others are removed all the same.
    pub(crate) fn unmake(&mut self, desired: &Desired) -> Result<(), CniError> {
        let (mut quiet, mut early, mut links, mut rest, mut shared) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for op in withdraw(desired) {
            match &op {
                Op::Nft { ops, .. } if marks::is_of_elements(ops) => {}
                Op::Remove(Object::Link(link)) => {
                    quiet.push(Op::Change {
                        from: Object::Link(Link { up: true, ..link.clone() }),
                        to: Object::Link(Link { up: false, ..link.clone() }),
                    });
                    links.push(op);
                }
                Op::Nft { .. } if shared_chain(desired, &op).is_some() => shared.push(op),
                Op::Nft { .. } => early.push(op),
                _ => rest.push(op),
            }
        }
        if early.is_empty() && !marks::has_elements(desired) {
            quiet.clear();
        }
        if self.link_first {
            quiet = std::mem::take(&mut links);
        }
        let mut outcomes = self.handle.apply(&quiet);
        outcomes.push(self.give_up(desired));
        let first: Vec<Op> = [early, links, rest].into_iter().flatten().collect();
        outcomes.extend(self.handle.apply(&first));
        for op in shared {
            if !self.is_used(desired, &op)? {
                outcomes.extend(self.handle.apply(&[op]));
            }
        }
        let stays = |e: &OpError| !(e.is_gone() || is_busy_chain(e));
        match outcomes.into_iter().filter_map(Result::err).find(stays) {
            None => Ok(()),
            Some(error) => Err(self.error(&Failed::Op(error))),
        }
    }

    /// Whether other attachments' addresses lead to a chain: to try to remove it would cost them,
    /// and us, an RCU grace period.
    fn is_used(&mut self, desired: &Desired, op: &Op) -> Result<bool, CniError> {
        let Some((table, chain)) = shared_chain(desired, op) else { return Ok(false) };
        let nft = self.handle.nft().map_err(|e| CniError::internal(e.to_string()))?;
        nft.is_chain_used(table, chain).map_err(|e| self.unreadable(&e))
    }

    /// An interface.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn link(&mut self, name: &IfName) -> Result<Option<Link>, CniError> {
        let found = self.handle.link(name).map_err(|e| self.unreadable(&e))?;
        match found {
            Some(_) => self.handle.expect(name),
            None => self.absent.push(name.clone()),
        }
        Ok(found.map(|(_, link)| link))
    }

    /// Whether an interface is there, without asking again where it was not a moment ago.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn has_link(&mut self, name: &IfName) -> Result<bool, CniError> {
        Ok(!self.absent.contains(name) && self.link(name)?.is_some())
    }

    /// Notes that an interface is there, which saves waiting for the kernel's lock when it is looked
    /// up.
    pub(crate) fn expect(&mut self, name: &IfName) {
        self.handle.expect(name);
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn index(&mut self, name: &IfName) -> Result<Option<u32>, CniError> {
        let found = self.handle.link(name).map_err(|e| self.unreadable(&e))?;
        Ok(found.map(|(index, _)| index))
    }

    /// The veth pair of which an interface is one end; `None` when it is no veth, or not there.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn pair(&mut self, name: &IfName) -> Result<Option<Pair>, CniError> {
        self.handle.pair(name).map_err(|e| self.unreadable(&e))
    }

    /// The first of the addresses that an interface of this namespace has itself.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn first_local(&mut self, addresses: &[IpAddr]) -> Result<Option<IpAddr>, CniError> {
        for ip in addresses {
            if self.handle.has_address(*ip).map_err(|e| self.unreadable(&e))? {
                return Ok(Some(*ip));
            }
        }
        Ok(None)
    }

    /// Tells neighbours whose the addresses of an interface are now: they may remember the MAC of
    /// the pod that had them before. The kernel does (`arp_notify`, `ndisc_notify`) when the MAC is
    /// set, be it to the same; when the interface came up nothing was there to carry it.
    ///
    /// # Errors
    /// Code 999 when the kernel refuses.
    pub(crate) fn announce(&mut self, name: &IfName) -> Result<(), CniError> {
        let Some(link) = self.link(name)? else { return Ok(()) };
        let from = Object::Link(Link { mac: None, ..link.clone() });
        let op = Op::Change { from, to: Object::Link(link) };
        self.apply(&[op]).map_err(|e| self.error(&Failed::Op(e)))
    }

    /// The interface of the default route with the lowest metric, of IPv4 before that of IPv6.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn default_device(&mut self) -> Result<Option<IfName>, CniError> {
        let scope = Scope { routes: Routes::Table(Route::MAIN), ..Scope::LINKS };
        let observed = self.handle.observe(&scope).map_err(|e| self.unreadable(&e))?;
        let defaults = observed.iter().filter_map(|(_, object)| match object {
            Object::Route(route) if route.dst.prefix_len() == 0 => {
                Some((route.family(), route.metric, route.dev.clone()?))
            }
            _ => None,
        });
        Ok(defaults.min().map(|(_, _, dev)| dev))
    }

    /// The names of all interfaces.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn links(&mut self) -> Result<BTreeSet<IfName>, CniError> {
        let observed = self.handle.observe(&Scope::LINKS).map_err(|e| self.unreadable(&e))?;
        let names = observed.iter().filter_map(|(key, _)| match key {
            Key::Link(name) => Some(name.clone()),
            _ => None,
        });
        Ok(names.collect())
    }

    /// The addresses of an interface.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn addrs(&mut self, dev: &IfName) -> Result<Vec<IpNet>, CniError> {
        self.handle.addresses(dev).map_err(|e| self.unreadable(&e))
    }

    /// Those of the objects that are there, and maybe others.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn observe(&mut self, keys: &[Key]) -> Result<Observed, CniError> {
        let mut scope = Scope::LINKS;
        for key in keys {
            match key {
                Key::Link(_) => {}
                Key::Sysctl(path) => scope.sysctls.push(path.clone()),
                Key::Addr { .. } => scope.addrs = true,
                Key::Neigh { .. } => scope.neighbours = true,
                Key::Fdb { .. } => scope.fdb = true,
                Key::Table { family, name } => {
                    scope.tables.push(TableId { family: *family, name: name.clone() });
                }
                Key::Route { table, .. } => {
                    let main = *table == Route::MAIN && scope.routes != Routes::All;
                    scope.routes = if main { Routes::Table(*table) } else { Routes::All };
                }
            }
        }
        self.handle.observe(&scope).map_err(|e| self.unreadable(&e))
    }

    /// Kernel parameters of the node as they are; those that are not there are left out.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn sysctls(&mut self, keys: &[Key]) -> Result<Observed, CniError> {
        let mut found = Observed::default();
        for key in keys {
            let Key::Sysctl(path) = key else { continue };
            if let Some(value) = sysctl::read(path).map_err(|e| self.unreadable(&e))? {
                found.insert(Object::Sysctl(Sysctl { path: path.clone(), value }));
            }
        }
        Ok(found)
    }

    /// Lets interfaces that live by router advertisements go on listening to them once the node
    /// forwards IPv6 (`accept_ra` 2, Documentation/networking/ip-sysctl.rst).
    ///
    /// # Errors
    /// Code 999 when the kernel does not say, or refuses.
    pub(crate) fn keep_router_advertisements(&mut self) -> Result<(), CniError> {
        let scope = Scope { routes: Routes::Table(Route::MAIN), ..Scope::LINKS };
        let observed = self.handle.observe(&scope).map_err(|e| self.unreadable(&e))?;
        let devices: BTreeSet<IfName> = observed
            .iter()
            .filter_map(|(_, object)| match object {
                Object::Route(route) if route.protocol == PROTO_RA => route.dev.clone(),
                _ => None,
            })
            .collect();
        for dev in devices {
            let path = format!("net/ipv6/conf/{dev}/accept_ra");
            if sysctl::read(&path).map_err(|e| self.unreadable(&e))?.as_deref() == Some("1") {
                let object = Object::Sysctl(Sysctl { path, value: "2".to_owned() });
                self.apply(&[Op::Create(object)]).map_err(|e| self.error(&Failed::Op(e)))?;
            }
        }
        Ok(())
    }

    /// Removes the entries of connection tracking of addresses, so that their next holders do not
    /// inherit them; those of addresses that have their next holder already are its own.
    ///
    /// # Errors
    /// Code 999 when the kernel refuses.
    pub(crate) fn forget_connections(&mut self, addresses: &[IpAddr]) -> Result<(), CniError> {
        let addresses: Vec<IpAddr> =
            addresses.iter().filter(|ip| !self.passed_on.contains(ip)).copied().collect();
        if addresses.is_empty() {
            return Ok(());
        }
        match self.handle.forget_connections(&addresses) {
            // A kernel without connection tracking has nothing to forget.
            Err(causeway_kernel::Error::Refused { refusal, .. }) if refusal.errno == EINVAL => {
                Ok(())
            }
            other => other.map_err(|e| self.unreadable(&e)),
        }
    }

    /// Makes a bridge keep its VLANs apart.
    ///
    /// # Errors
    /// Code 999 when the kernel refuses.
    pub(crate) fn separate_vlans(&mut self, bridge: &IfName) -> Result<(), CniError> {
        self.handle.set_vlan_filtering(bridge).map_err(|e| self.unreadable(&e))
    }

    /// Gives a port of a bridge these VLANs and no others.
    ///
    /// # Errors
    /// Code 999 when the kernel refuses.
    pub(crate) fn set_vlans(
        &mut self,
        port: &IfName,
        vlans: &BTreeSet<PortVlan>,
    ) -> Result<(), CniError> {
        self.handle.set_port_vlans(port, vlans).map_err(|e| self.unreadable(&e))
    }

    /// Does a port have these VLANs and no others?
    ///
    /// # Errors
    /// Code 999 when not, or the kernel does not say.
    pub(crate) fn check_vlans(
        &mut self,
        port: &IfName,
        vlans: &BTreeSet<PortVlan>,
    ) -> Result<(), CniError> {
        let have = self.handle.port_vlans(port).map_err(|e| self.unreadable(&e))?;
        if have == *vlans {
            return Ok(());
        }
        let list = |all: &BTreeSet<PortVlan>| -> String {
            let ids: Vec<String> = all.iter().map(|v| v.id.to_string()).collect();
            if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
        };
        Err(CniError::internal(format!(
            "port {port} has the VLANs {} and not {} {}, or has them tagged otherwise",
            list(&have),
            list(vlans),
            self.place
        )))
    }

    /// Makes an interface take in every frame (`IFF_PROMISC`).
    ///
    /// # Errors
    /// Code 999 when the kernel refuses.
    pub(crate) fn set_promisc(&mut self, dev: &IfName) -> Result<(), CniError> {
        self.handle.set_promiscuous(dev).map_err(|e| self.unreadable(&e))
    }

    /// The namespace as crate `kernel` knows it.
    pub(crate) fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }

    /// The error for what the kernel does not say.
    pub(crate) fn unreadable(&self, error: &causeway_kernel::Error) -> CniError {
        CniError::internal(format!("{error}, {}", self.place))
    }

    /// The error for what the kernel refused: `what` is what was tried, `how` what may help.
    pub(crate) fn refused(&self, what: &str, refusal: &Refusal, how: &str) -> CniError {
        let sep = if how.is_empty() { "" } else { "; " };
        CniError::internal(format!("cannot {what} {}: {refusal}{sep}{how}", self.place))
    }

    /// An object that is not as it should be.
    pub(crate) fn broken(&self, key: &Key, why: &str, how: &str) -> CniError {
        CniError::internal(format!("{key} {how} {} ({why})", self.place))
    }

    /// What failed, where, in the words of the kernel.
    pub(crate) fn error(&self, failed: &Failed) -> CniError {
        match failed {
            Failed::Conflict(key, why) => {
                CniError::internal(format!("{key} {}: {why}", self.place))
            }
            Failed::Unread(error) => self.unreadable(error),
            Failed::Op(error) => CniError::internal(format!("{error}, {}", self.place)),
        }
    }
}

/// Why something could not be made.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Something else is in its place.
    Conflict(Key, String),
    /// What is there could not be read.
    Unread(causeway_kernel::Error),
    /// The kernel refused.
    Op(OpError),
}

/// The chain that an operation removes, when other attachments may use it as well.
fn shared_chain<'a>(desired: &'a Desired, op: &Op) -> Option<(&'a NftTable, &'a str)> {
    let (key, Op::Nft { ops, .. }) = (op.key(), op) else { return None };
    let Object::Table(table) = &desired.get(&key)?.object else { return None };
    let removed = ops.iter().find_map(|step| match step {
        NftOp::DelChain { name } => Some(name),
        _ => None,
    })?;
    let (name, chain) = table.chains.get_key_value(removed)?;
    chain.base.is_none().then_some((table, name.as_str()))
}

/// Another attachment's addresses lead to the chain: it stays for them.
fn is_busy_chain(error: &OpError) -> bool {
    matches!(error.key, Key::Table { .. })
        && error.errno == Some(rustix::io::Errno::BUSY.raw_os_error())
}

/// Transactions that have the same effect when their chains are there already: shared chains are
/// emptied before they are filled, which no packet sees.
fn repeatable(mut ops: Vec<Op>) -> Vec<Op> {
    for op in &mut ops {
        let Op::Nft { ops: steps, .. } = op else { continue };
        *steps = std::mem::take(steps)
            .into_iter()
            .flat_map(|step| {
                let flush = match &step {
                    NftOp::AddChain { name, .. } => Some(NftOp::FlushChain { name: name.clone() }),
                    _ => None,
                };
                std::iter::once(step).chain(flush)
            })
            .collect();
    }
    ops
}
