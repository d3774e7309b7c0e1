//! Nodes with a real container runtime: containerd and runc on machines of a lab, the agent as the
//! container that the plain manifest describes, and pods by the container runtime interface. What a
//! kubelet asks is asked here.

mod cluster;
mod crowd;
mod life;
#[path = "../lab/world.rs"]
#[allow(dead_code)]
mod world;
