//! Who is in a chain, in which state and order: pure functions from (old configuration, events) to the new one.
//!
//! Invariants, tested over every chain of three members and every event:
//! - a member serves only because it was in sync: it finished a resync, or it is one of the last servers;
//! - at most one member syncs at a time, and only while another one serves;
//! - when the last serving member goes, it stays recorded as a last server, and nobody else may bring the chain back;
//! - the epoch rises with every change, so no two configurations share one.
//!
//! All that happens in one batch is judged together: who goes down together was in sync together.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod apply;
mod next;
mod plan;
mod table;

pub use apply::apply;
pub use next::{ChainEvent, next_chain};
pub use plan::plan_chains;
pub use table::table_markdown;

#[cfg(test)]
mod tests;
