//! The lab's Kubernetes API: a cluster kept in memory, and the HTTPS server in front of it.
//!
//! Clients meet what a real API server shows them: discovery, lists in pages of one version,
//! watches with bookmarks, streaming lists and `410 Gone`, optimistic conflicts, the four kinds of
//! patch, tables for `kubectl get`. Objects are untyped JSON. What is left out: field ownership and
//! its conflicts, schemas and validation of whole objects, garbage collection by owner references,
//! roles (who has the token may do everything).
//!
//! [`Store`] is the cluster; it can be used in process. [`serve`] answers the network.
//! [`controllers`] does what kube-controller-manager and kube-scheduler do for a lab. [`Faults`]
//! makes the server misbehave on demand.

pub mod controllers;
mod discovery;
mod error;
mod faults;
mod http;
mod kinds;
mod meta;
mod patch;
mod registry;
mod rows;
mod selector;
mod store;
mod table;
mod tls;
mod tokens;
mod validate;
mod version;

pub use error::{ApiError, Cause, Subject};
pub use faults::{FaultSettings, Faults};
pub use http::{Config, Requests, ServeError, serve, serve_local};
pub(crate) use meta::random_bytes;
pub use meta::{random_token, random_uid, timestamp};
pub use patch::Patch;
pub use registry::{Registry, Resource, Version};
pub use selector::{FieldSelector, LabelSelector};
pub use store::{
    At, DeleteOptions, Deleted, Event, Key, List, ListOptions, Part, Store, StoreConfig, Watch,
    WatchOptions, since_start,
};
pub use tls::{Identity, TlsError, kubeconfig};
pub use tokens::Tokens;
pub use version::{BadVersion, KubernetesVersion};
