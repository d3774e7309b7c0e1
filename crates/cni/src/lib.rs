//! The Container Network Interface specification, versions 0.1.0 to 1.1.0, from both sides.
//!
//! A plugin reads [`env::Env`] and [`conf::NetConf`] and answers with a [`result::CniResult`] or a
//! [`error::CniError`]; [`hostlocal`] reads the configuration of that IPAM plugin and [`delegate`]
//! calls a foreign one. [`runtime`] is the other side: lists of plugins, run for a container.

pub mod args;
pub mod conf;
pub mod convert;
pub mod delegate;
pub mod env;
pub mod error;
pub mod exec;
pub mod hostlocal;
pub mod json;
pub mod result;
pub mod runtime;
pub mod runtime_config;
pub mod static_ipam;
pub mod version;

pub use args::CniArgs;
pub use conf::{AttachmentId, Ipam, NetConf};
pub use env::{Command, Env};
pub use error::{CniError, code};
pub use hostlocal::HostLocal;
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use runtime_config::{PortMapping, RuntimeConfig};
pub use static_ipam::Static;
pub use version::Version;
