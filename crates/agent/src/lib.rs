//! The node agent.

#![allow(dead_code)]
pub mod cli;
pub mod client;
pub mod config;
mod files;
mod inbox;
mod lock;
mod metrics;
mod options;
mod outputs;
mod owned;
mod records;
mod retry;
pub mod status;

pub use options::{Options, Paths};
