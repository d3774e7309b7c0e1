//! The end of an attachment that two may work on: a plugin that answers as soon as the interface is
//! gone, and the agent, which waits for the kernel and does the rest.
//!
//! The sender of RTM_DELLINK is kept waiting until nobody can hold the interface any more (an RCU
//! barrier). Where an agent runs, it sends it, and DEL hears from the kernel that the interface is
//! gone. The record says that the attachment is leaving, and where its leases are; whoever finds it,
//! an agent that starts, an ADD that needs an address, another DEL, brings it to its end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use causeway_cni_spec::CniError;
use causeway_ipam::Owner;
use causeway_types::state::{AttachmentRecord, Leaving};

use crate::attachment::{self, Kept};
use crate::leases::Leases;
use crate::notify::{self, Answer};
use crate::paths::Paths;
use crate::record::{Attachments, LeaseRecords};
use crate::space::Space;

/// How long the agent has until it is at work, or the interface is gone. It needs a few milliseconds;
/// after this the plugin does all by itself.
const PATIENCE: Duration = Duration::from_secs(1);
/// So often that is waited while the agent is at work.
const LOOKS: usize = 10;

/// Leaves the removal to the agent, and waits until the interface is gone. `leases`: the directory
/// that the attachment's addresses go back to, in host-local's layout, if there is one. False: there
/// is no agent, or it did not do it in time; the caller removes all.
///
/// Runtimes call DEL again and again, also while the agent is at the rest of the removal, which a busy
/// kernel may hold up for long. Such a DEL answers as the one before it did: the interface is gone.
pub(crate) fn hand_over(
    paths: &Paths,
    node: &mut Space,
    record: &AttachmentRecord,
    leases: Option<&Path>,
) -> bool {
    let records = Attachments::at(paths);
    let is_at_it = || records.is_locked(&record.container_id, record.ifname.as_str());
    let Ok(Some(index)) = node.index(&record.host_ifname) else {
        return record.leaving.is_some() && is_at_it();
    };
    if !notify::is_there(&paths.agent_socket) {
        return false;
    }
    let leaving = Some(Leaving { lease_dir: leases.map(Path::to_owned) });
    let record = AttachmentRecord { pending: true, leaving, ..record.clone() };
    if records.amend(&record).is_err() {
        return false;
    }
    match notify::leave(&paths.agent_socket, &record.container_id, record.ifname.as_str()) {
        Answer::Done => {}
        Answer::Nobody | Answer::Failed(_) => return false,
    }
    for _ in 0..LOOKS {
        match node.kernel(|handle| handle.wait_link_gone(index, PATIENCE)) {
            Ok(true) => return true,
            // It has begun, and waits for the kernel as anybody would.
            Ok(false) if is_at_it() => {}
            _ => return false,
        }
    }
    false
}

/// The record files of attachments that are leaving.
///
/// # Errors
/// Code 5.
pub fn unfinished(paths: &Paths) -> Result<Vec<String>, CniError> {
    let leaving = Attachments::at(paths).list()?.into_iter().filter(|r| r.leaving.is_some());
    let file =
        |r: AttachmentRecord| AttachmentRecord::file_name(&r.container_id, r.ifname.as_str());
    Ok(leaving.map(file).collect())
}

/// Brings the removal of an attachment to its end, in the namespace of the calling thread. One that
/// is not leaving, or gone, is left alone.
///
/// # Errors
/// What stays; the record is kept then.
pub fn finish(paths: &Paths, file: &str) -> Result<(), CniError> {
    let records = Attachments::at(paths);
    let Some(record) = records.named(file)? else { return Ok(()) };
    let Some(leaving) = &record.leaving else { return Ok(()) };
    let owner = Owner::new(&record.container_id, record.ifname.as_str());
    let leases = leaving.lease_dir.as_ref().map(|dir| leases(paths, &record, dir.clone()));
    let named = attachment::addresses_of(&record);
    let release = || leases.map_or(Ok(()), |leases| leases.release(&owner, &named));
    // DEL waits until the interface is gone.
    let (mut node, kept) = (Space::node()?.link_first(), Kept { leaving: true, ..Kept::SERVED });
    attachment::detach(paths, &mut node, &record, kept, release)
}

/// The same for all that are leaving. True when there were some: their addresses are free now.
pub(crate) fn finish_all(paths: &Paths) -> bool {
    let files = unfinished(paths).unwrap_or_default();
    let ended = files.iter().filter(|file| finish(paths, file).is_ok());
    ended.count() > 0
}

fn leases(paths: &Paths, record: &AttachmentRecord, dir: PathBuf) -> Leases {
    Leases { dir, records: LeaseRecords::at(paths, &record.network), record: None }
}

#[cfg(test)]
mod tests {
    use causeway_kernel::netns::NetNs;
    use serde_json::json;

    use super::*;

    fn record(leaving: bool) -> AttachmentRecord {
        let mut record = json!({"containerId": "c", "ifname": "eth0", "netns": "/run/netns/x",
            "network": "pods", "attach": "routed", "pending": true,
            "hostIfname": causeway_types::names::host_veth("c", "eth0"),
            "mac": "02:00:00:00:00:01", "hostMac": "02:00:00:00:00:02", "mtu": 1450,
            "addresses": ["10.244.1.2/32"], "gateways": ["169.254.1.1"], "bootId": "b"});
        if leaving {
            record["leaving"] = json!({});
        }
        serde_json::from_value(record).unwrap()
    }

    /// One that has waited for another to end it finds that it has come anew.
    #[test]
    fn what_has_come_anew_is_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let paths =
            Paths { attachments: at("attachments"), locks: at("locks"), ..Paths::default() };
        std::fs::create_dir(&paths.attachments).unwrap();
        let records = Attachments::at(&paths);
        let kept = Kept { leaving: true, ..Kept::SERVED };
        let end = || {
            let mut released = false;
            let mut node = Space::node().unwrap();
            let release = || {
                released = true;
                Ok(())
            };
            attachment::detach(&paths, &mut node, &record(true), kept, release).unwrap();
            released
        };
        let ns = NetNs::unnamed().unwrap();
        for leaving in [false, true] {
            records.write(&record(leaving)).unwrap();
            assert_eq!(ns.run(end).unwrap(), leaving);
            assert_eq!(records.read("c", "eth0").unwrap().is_some(), !leaving);
        }
    }
}
