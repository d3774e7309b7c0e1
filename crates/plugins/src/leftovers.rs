//! Notes beside the attachment records (host ports, `firewall`, links inside pods) that outlived their
//! pods: found by a fresh process from the disk, and removed with what they speak of after two looks.
//!
//! A node that reboots gets no DEL for the pods that it had, and one that loses a pod without DEL may
//! never get one.

use std::collections::BTreeSet;
use std::path::Path;

use causeway_cni_spec::CniError;
use causeway_ipam::Owner;
use causeway_kernel::NetNs;

use crate::inside::{LinkRecord, LinkRecords};
use crate::leases::Leases;
use crate::paths::Paths;
use crate::record::{self, LeaseRecords};
use crate::space::Space;
use crate::{firewall, host_device, portmap};

/// Takes looks, and removes what two in a row found over.
#[derive(Debug)]
pub struct Leftovers {
    paths: Paths,
    before: BTreeSet<String>,
}

/// What a look did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Whose notes went, and of what.
    pub removed: Vec<String>,
    /// What could not be removed; it is tried again at the next look.
    pub failed: Vec<String>,
}

/// Which attachments are over for good.
pub(crate) struct Ends {
    boot_id: String,
}

impl Ends {
    pub(crate) fn of(paths: &Paths) -> Result<Self, CniError> {
        Ok(Self { boot_id: record::boot_id(paths)? })
    }

    /// It is from before the last boot, or both its namespace and the interface that we would have made
    /// are gone. A path below `/proc` says nothing: processes of another PID namespace are not seen.
    ///
    /// # Errors
    /// Code 999 when it cannot be told.
    pub(crate) fn is_over(
        &self,
        node: &mut Space,
        whose: (&str, &str),
        netns: &str,
        boot_id: &str,
    ) -> Result<bool, CniError> {
        if boot_id != self.boot_id {
            return Ok(true);
        }
        let path = Path::new(netns);
        // Where runtimes keep their namespaces must be seen from here.
        let visible = !path.starts_with("/proc") && path.parent().is_some_and(Path::is_dir);
        if !visible || node.link(&causeway_types::names::host_veth(whose.0, whose.1))?.is_some() {
            return Ok(false);
        }
        let found = NetNs::find(path).map_err(|e| CniError::internal(e.to_string()))?;
        Ok(found.is_none())
    }
}

impl Leftovers {
    /// One that has seen nothing yet.
    pub fn new(paths: Paths) -> Self {
        Self { paths, before: BTreeSet::new() }
    }

    /// Looks once. What was over at the look before, too, and has not changed since, is removed.
    ///
    /// # Errors
    /// When too little can be read to judge; nothing is removed then, and the next look begins anew.
    pub fn observe(&mut self) -> Result<Swept, CniError> {
        let before = std::mem::take(&mut self.before);
        let ends = Ends::of(&self.paths)?;
        let mut node = Space::node()?;
        let mut look =
            Look { node: &mut node, ends, before, over: BTreeSet::new(), swept: Swept::default() };
        portmap::sweep(&self.paths, &mut look)?;
        firewall::sweep(&self.paths, &mut look)?;
        links(&self.paths, &mut look)?;
        let Look { over, swept, .. } = look;
        self.before = over;
        Ok(swept)
    }
}

/// One look at all notes.
pub(crate) struct Look<'a> {
    /// The node.
    pub node: &'a mut Space,
    /// Which attachments are over.
    pub ends: Ends,
    before: BTreeSet<String>,
    over: BTreeSet<String>,
    swept: Swept,
}

impl Look<'_> {
    /// Notes what is over; true when it was so at the look before.
    pub(crate) fn is_due(&mut self, content: String) -> bool {
        let due = self.before.contains(&content);
        self.over.insert(content);
        due
    }

    /// Notes what became of a removal.
    pub(crate) fn done(&mut self, what: String, outcome: Result<(), CniError>) {
        match outcome {
            Ok(()) => self.swept.removed.push(what),
            Err(e) => self.swept.failed.push(format!("{what}: {e}")),
        }
    }
}

/// Records of links inside pods. Links went with their namespaces; a device of the node that came home
/// by itself may need its name back, which DEL and GC do.
fn links(paths: &Paths, look: &mut Look<'_>) -> Result<(), CniError> {
    let records = LinkRecords::at(paths);
    for record in records.list()? {
        let (id, ifname) = (&record.container_id, record.ifname.as_str());
        let same_boot = record.boot_id == look.ends.boot_id;
        let needs_name = record.kind == host_device::KIND && same_boot;
        let over = look.ends.is_over(look.node, (id, ifname), &record.netns, &record.boot_id)?;
        let content = format!("{record:?}");
        if needs_name || !over || !look.is_due(content) {
            continue;
        }
        let outcome = release(paths, &record).and_then(|()| records.remove(id, ifname));
        look.done(format!("record of the link {ifname} of container {id}"), outcome);
    }
    Ok(())
}

fn release(paths: &Paths, record: &LinkRecord) -> Result<(), CniError> {
    let leases = Leases {
        dir: paths.leases.join(&record.network),
        records: LeaseRecords::at(paths, &record.network),
        record: None,
    };
    if !leases.dir.is_dir() {
        return Ok(());
    }
    leases.release(&Owner::new(&record.container_id, record.ifname.as_str()), &[])
}
