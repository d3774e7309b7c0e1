//! nftables as values: tables, chains, rules and sets, said in terms of packet fields.
//!
//! A rule here is what a person would write ([`Rule`], rendered to `nft` text for
//! `causeway node script`); [`lower`] turns it into the register-machine expressions that the
//! kernel holds, and what the kernel returns is compared with those.
//!
//! Kept small on purpose: matches compare one field with one value, one prefix or one named set.
//! There are no anonymous sets.

mod chain;
pub mod expr;
mod field;
pub mod foreign;
mod key;
mod lower;
mod raise;
mod set;
mod table;
pub mod text;

pub use chain::{Base, Chain, ChainType, Hook, Policy, Rule, Stmt, Verdict};
pub use field::{Field, KeyPart, KeyType, MatchOp, Rhs};
pub use key::ElementKey;
pub use lower::{bytes, lower};
pub use raise::{key_part, raise};
pub use set::{Content, Element, Set};
pub use table::{NftFamily, NftTable};
