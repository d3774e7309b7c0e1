//! The lab: a whole multi-node pod network on one machine.
//!
//! Nodes are network namespaces with directories of their own below the fixed paths, joined by an
//! underlay of switches and a router; in each runs a real agent, and pods are made by executing the
//! real plugins. A process of the lab's own serves a Kubernetes API and acts as the kubelets.
//! Nothing of a lab is linked to the machine's own network.

mod agents;
pub mod api;
mod blueprint;
mod client;
mod clock;
mod control;
mod copy;
mod daemon;
mod enter;
mod fault;
mod interrupt;
mod isolate;
mod kubelet;
mod lifecycle;
mod manifests;
mod matrix;
mod pods;
mod podserver;
mod probe;
mod procs;
mod reach;
mod reboot;
mod record;
mod sctp;
mod spec;
mod status;
mod topology;

pub use agents::{Action, AgentState};
pub use blueprint::{Blueprint, MOST_PODS, MOST_WORKERS};
pub use client::{Client, Refusal};
pub use copy::{define_cluster_policies, policy_versions, wait_for_pods, wait_until_enforced};
pub use daemon::run as run_daemon;
pub use enter::exec;
pub use fault::{Fault, How, clear, inflict};
pub use interrupt::Interrupt;
pub use isolate::isolate;
pub use lifecycle::{Binaries, down, residue, up, up_while, wait_until_whole};
pub use manifests::{Kind, apply, delete, documents, get_table, kinds};
pub use matrix::{Cell, Matrix, Target, matrix};
pub use pods::{Pod, create_pod, delete_pod, exec_in_pod, find_pod, pods};
pub use podserver::serve as serve_pod;
pub use probe::{Loss, fetch, inside, ping, watch_loss, watch_loss_while};
pub use reach::{Answers, Ask, Place, reaches, source};
pub use record::{Record, names};
pub use spec::{Dirs, Families, KubernetesVersion, OUTSIDE_PORT, Plugin, Road, Spec, Topology};
pub use status::{NodeStatus, nodes};
pub use topology::give_outside;
