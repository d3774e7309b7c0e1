//! Where the plugins find and leave their files.

use std::path::PathBuf;

use causeway_types::names;

/// The files and directories that the plugins use. The binary always uses [`Paths::default`]
/// (`causeway_types::names`); tests of the library may point elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// What the agent says of the node.
    pub node_file: PathBuf,
    /// The agent's unix socket.
    pub agent_socket: PathBuf,
    /// Attachment records.
    pub attachments: PathBuf,
    /// Lease records, one directory per network.
    pub lease_records: PathBuf,
    /// Leases of type `causeway`, one directory per network.
    pub leases: PathBuf,
    /// The kernel's boot ID.
    pub boot_id: PathBuf,
    /// Locks of attachments that are being removed.
    pub locks: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            node_file: names::NODE_FILE.into(),
            agent_socket: names::AGENT_SOCKET.into(),
            attachments: names::ATTACHMENTS_DIR.into(),
            lease_records: names::LEASES_DIR.into(),
            leases: names::HOST_LOCAL_DIR.into(),
            boot_id: names::BOOT_ID.into(),
            locks: names::LOCKS_DIR.into(),
        }
    }
}
