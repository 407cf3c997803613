//! The storage node: a block log on disk and replicas of chains over it.
//!
//! `replica` is pure: what a member of a chain decides, on messages and configurations. `store` is the block log.
//! `service` moves messages in and effects out; `resync` copies to a returning neighbour.

pub mod condemned;
pub mod disk;
pub mod divergence;
mod reconcile;
pub mod replica;
pub mod resync;
pub mod service;
pub mod store;

pub use service::{Ended, Lease, StorageOptions, StorageServer};
