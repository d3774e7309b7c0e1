//! The node agent: composition, the reconcile loop, status, sockets and metrics.
//!
//! What the node should hold is decided in crate `desired`, how to get there in `plan`, and done
//! in `kernel`. Here those are brought together: one thread ([`Engine`]) owns the kernel sockets
//! and runs rounds of looking, planning and applying; around it are the watches of the cluster,
//! the unix socket for plugins and the command line, and the addresses for health and metrics.
//!
//! The network never depends on the agent being alive: it adopts what it finds when it starts,
//! and leaves everything as it is when it ends.

pub mod cli;
pub mod client;
pub mod config;
mod dirs;
mod engine;
mod facts;
mod files;
mod inbox;
mod leavers;
mod lock;
mod log;
mod marks;
mod metrics;
pub mod migrate;
mod netns_port;
mod options;
mod outputs;
mod owned;
pub mod policy;
mod port;
mod reconcile;
mod records;
mod redirect;
mod report;
pub mod reset;
mod retry;
mod run;
mod self_test;
mod server;
pub mod status;
pub mod taken_over;
mod voice;
mod wanted;
mod wishes;

pub use engine::Engine;
pub use options::{Options, Paths};
pub use run::{Diagnose, run};
