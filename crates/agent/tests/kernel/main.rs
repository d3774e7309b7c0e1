//! The reconcile loop on a real kernel, without Kubernetes: the view of the cluster comes from the
//! test. Each test has a thread with network and mount namespaces of its own. Needs root.

mod adopt;
mod appear;
mod cluster_away;
mod conflict;
mod field;
mod field2;
mod foreign;
mod formats;
mod node;
mod others;
mod pods;
mod process;
mod repair;
mod self_test;
mod sweep;
mod tunnel;
mod world;
