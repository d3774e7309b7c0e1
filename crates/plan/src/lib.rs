//! From what should be and what is to an ordered list of operations.
//!
//! Pure: planning reads neither disk nor kernel, and an operation is a value. [`Op`] says what to
//! do; crate `kernel` does it.

mod op;

pub use op::{NftOp, Op, TableId};
