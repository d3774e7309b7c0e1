//! The runtime's side of the specification: configuration lists, running their chains of plugins
//! for a container, and remembering the results. For the lab, for tests and for the command line;
//! it behaves as libcni does, cached files included, so that both can look after each other's
//! attachments.

mod attachment;
mod build;
mod cache;
mod list;
mod run;

pub use attachment::Attachment;
pub use cache::{Cache, CachedAttachment, DEFAULT_CACHE_DIR};
pub use list::{NetworkList, PluginConf, load_dir};
pub use run::Runtime;
