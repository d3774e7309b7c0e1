//! `causeway migrate`: a node with its running pods passes from another network to this one.
//!
//! Here it is looked whether that can be done, and written down what the agent then goes by: the devices
//! that it takes over, what the other network made on them, and the pods that run. The agent does the
//! rest when it starts, and may be cut off at any moment: a run that was cut off is carried on by the
//! next, of this command as of the agent.

mod checks;
mod former;
mod pods;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use causeway_desired::input::{Config, Former, NodeInfo, TakenBridge, TakenOver, TakenTunnel};
use causeway_kernel::{Handle, Routes, Scope};
use causeway_model::{Key, Link, LinkKind, Object, Observed};
use causeway_plan::Op;
use causeway_plugins::record::Attachments;
use causeway_types::state::AttachmentRecord;
use causeway_types::{Family, IfName};

use crate::options::Paths;
use crate::owned::Owned;
use crate::{lock, taken_over};
use former::Lists;
use pods::Pods;

/// `RTPROT_KERNEL` (`linux/rtnetlink.h`): routes that come and go with addresses.
const RTPROT_KERNEL: u8 = 2;

/// What to do, and where the former network keeps its files.
#[derive(Clone, Debug)]
pub struct Options {
    /// The former network.
    pub from: Former,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Leases whose pod is not found are no obstacle; they stay.
    pub keep_leases: bool,
    /// flanneld does not run, though that cannot be seen from here.
    pub flannel_is_off: bool,
    /// What flanneld tells its plugin (`/run/flannel/subnet.env`).
    pub subnet_file: PathBuf,
    /// Results that the container runtime keeps (`/var/lib/cni/results`).
    pub results: PathBuf,
}

/// What came of it, a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Done, or to be done.
    pub done: Vec<String>,
    /// For people to know.
    pub notes: Vec<String>,
}

/// Takes the node over in whose network namespace the calling thread is. `own` is its Node object.
///
/// # Errors
/// Before anything is changed: with all that is in the way. What fails later is tried again by the next
/// call.
pub fn migrate(
    paths: &Paths,
    config: &Config,
    own: Result<NodeInfo, String>,
    options: &Options,
) -> anyhow::Result<Report> {
    let boot_id = paths.read_boot_id()?;
    let before = taken_over::load(&paths.taken_over).map_err(|e| anyhow!("{e}"))?;
    let mut report = Report::default();
    if let Some(before) = &before
        && before.boot_id != boot_id
    {
        report.notes.push("this node was taken over before its last boot".to_owned());
        return Ok(report);
    }
    let _lock = match lock::take(&paths.lock) {
        Ok(lock) => lock,
        Err(_) if before.is_some() => {
            report
                .notes
                .push("this node is taken over, and its agent looks after the rest".to_owned());
            return Ok(report);
        }
        Err(error) => {
            return Err(error.context("an agent that knows nothing of it must not run yet"));
        }
    };
    let lists = Lists::find(&paths.conf_dir, options.from)?;
    let mut node = Node::open(paths, config, options)?;
    if before.is_none() && lists.files.is_empty() && !node.has_traces() {
        report
            .notes
            .push(format!("there is nothing of {} on this node", former::name(options.from)));
        return Ok(report);
    }
    let ground = checks::Ground {
        config,
        options,
        lists: &lists,
        own: own.as_ref(),
        seen: &node.seen,
        again: before.is_some(),
    };
    let mut reasons = checks::reasons(&ground);
    let pods = node.pods(&boot_id)?;
    reasons.extend(pods.reasons(options.keep_leases));
    if !reasons.is_empty() {
        bail!("this node cannot be taken over:\n  {}", reasons.join("\n  "));
    }
    let taken = match before {
        Some(before) => before,
        None => node.taken(boot_id, &lists)?,
    };
    node.take(&taken, &pods, &mut report)?;
    report.notes.extend(pods.notes());
    Ok(report)
}

struct Node<'a> {
    paths: &'a Paths,
    config: &'a Config,
    options: &'a Options,
    kernel: Handle,
    seen: Observed,
}

impl<'a> Node<'a> {
    fn open(paths: &'a Paths, config: &'a Config, options: &'a Options) -> anyhow::Result<Self> {
        let mut kernel = Handle::open().context("the kernel's interfaces")?;
        let scope = Scope { routes: Routes::All, ..Scope::default() };
        let seen = kernel.observe(&scope).context("cannot look at the kernel")?;
        Ok(Self { paths, config, options, kernel, seen })
    }

    /// Devices or files that only the former network makes, or that pods of it need.
    fn has_traces(&self) -> bool {
        let bridge = former::link(&self.seen, &self.config.bridge);
        let pods = bridge.is_some_and(|b| former::ports(&self.seen, &b.name).next().is_some());
        let flannel = self.options.from == Former::Flannel;
        pods || flannel && (self.options.subnet_file.exists() || self.tunnels().next().is_some())
    }

    /// flannel's devices.
    fn tunnels(&self) -> impl Iterator<Item = (Family, &Link)> {
        let flannel = self.options.from == Former::Flannel;
        former::tunnels(&self.seen, self.config).filter(move |_| flannel)
    }

    /// The pods, looked at again while some are being made or removed.
    fn pods(&mut self, boot_id: &str) -> anyhow::Result<Pods> {
        pods::settled(|| {
            let (config, results) = (self.config, &self.options.results);
            pods::look(&mut self.kernel, self.paths, config, results, boot_id)
        })
    }

    fn taken(&self, boot_id: String, lists: &Lists) -> anyhow::Result<TakenOver> {
        let bridge = former::link(&self.seen, &self.config.bridge).context("there is no bridge")?;
        let tunnel = |(family, link): (Family, &Link)| {
            let LinkKind::Vxlan(vxlan) = &link.kind else { return None };
            let (vni, port) = (vxlan.vni, vxlan.port);
            Some(TakenTunnel { family, name: link.name.clone(), mac: link.mac?, vni, port })
        };
        Ok(TakenOver {
            from: self.options.from,
            boot_id,
            bridge: TakenBridge {
                name: bridge.name.clone(),
                mac: bridge.mac.context("the bridge has no MAC")?,
            },
            tunnels: self.tunnels().filter_map(tunnel).collect(),
            configurations: lists.files.clone(),
        })
    }

    /// What is written and set, in an order in which an agent that starts in between does no harm: it
    /// leaves the node alone until it knows what was taken over, and then takes pods without a record
    /// for those of another network.
    fn take(&mut self, taken: &TakenOver, pods: &Pods, report: &mut Report) -> anyhow::Result<()> {
        let keys = self.left_by(taken);
        let dry = self.options.dry_run;
        report.done.push(format!(
            "bridge {} keeps its MAC {} as long as the pods of now live",
            taken.bridge.name, taken.bridge.mac
        ));
        for t in &taken.tunnels {
            report.done.push(format!(
                "tunnel device {} (VNI {}, UDP {}) and its MAC {} are ours, over boots",
                t.name,
                t.vni.get(),
                t.port,
                t.mac
            ));
        }
        if !dry {
            self.pin(&taken.bridge)?;
            taken_over::save(&self.paths.taken_over, taken)?;
            Owned::load(self.paths.owned.clone())
                .record(keys)
                .context("the record of what is ours")?;
        }
        for record in &pods.found {
            report.done.push(format!(
                "pod {} ({}) keeps {}",
                record.owner_name(),
                record.host_ifname,
                record.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            ));
            if !dry {
                write(self.paths, record)?;
            }
        }
        Ok(())
    }

    /// What is set stays: a bridge whose MAC nobody has set takes that of one of its ports.
    fn pin(&mut self, bridge: &TakenBridge) -> anyhow::Result<()> {
        let link = former::link(&self.seen, &bridge.name).context("there is no bridge")?.clone();
        let from = Link { mac: None, ..link.clone() };
        let to = Link { mac: Some(bridge.mac), mtu: None, ..link };
        let op = Op::Change { from: Object::Link(from), to: Object::Link(to) };
        for outcome in self.kernel.apply(&[op]) {
            outcome.map_err(|e| anyhow!("the MAC of {}: {}", bridge.name, e.message))?;
        }
        Ok(())
    }

    /// Keys of the devices and of what stands on them. What the agent does not want of it goes when it
    /// knows all nodes.
    fn left_by(&self, taken: &TakenOver) -> BTreeSet<Key> {
        let on = |dev: &IfName| taken.tunnels.iter().any(|t| t.name == *dev);
        let is = |object: &Object| match object {
            Object::Link(link) => taken.has(&link.name),
            Object::Neigh(neigh) => on(&neigh.dev),
            Object::Fdb(fdb) => on(&fdb.dev),
            Object::Route(r) => r.protocol != RTPROT_KERNEL && r.dev.as_ref().is_some_and(on),
            Object::Addr(_) | Object::Sysctl(_) | Object::Table(_) => false,
        };
        self.seen.iter().filter(|(_, object)| is(object)).map(|(key, _)| key.clone()).collect()
    }
}

fn write(paths: &Paths, record: &AttachmentRecord) -> anyhow::Result<()> {
    Attachments::at(&paths.of_plugins())
        .write(record)
        .map_err(|e| anyhow!("the record of {}: {e}", record.owner_name()))
}

/// Pods that the former network made after the node was taken over, as long as runtimes called its
/// plugins, get their records. Answers whose did.
///
/// # Errors
/// When the kernel or the disk cannot be read, or a record not be written.
pub(crate) fn adopt_late(
    paths: &Paths,
    config: &Config,
    boot_id: &str,
) -> anyhow::Result<Vec<String>> {
    let mut kernel = Handle::open().context("the kernel's interfaces")?;
    let results = PathBuf::from(former::RESULTS);
    let pods = pods::look(&mut kernel, paths, config, &results, boot_id)?;
    pods.found.iter().try_for_each(|record| write(paths, record))?;
    Ok(pods.found.iter().map(AttachmentRecord::owner_name).collect())
}
