//! Work on the workspace that cargo does not know: what is deployed, and checks.

pub mod chart;
pub mod image;
pub mod oci;
pub mod testing;
