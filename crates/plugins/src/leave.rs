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
    attachment::detach(paths, &mut Space::node()?.link_first(), &record, Kept::SERVED, release)
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
