//! A cluster in memory that keeps a server's promises and no more, random programs over it, and a model that judges what the
//! mounts answered.
//!
//! Time is the runtime's paused clock; one thread, delays from a seed: the same program with the same seed does the same.
//!
//! - `storage`: chunks of one chain, with what is synced and what only memory has;
//! - `cluster`: nodes, chains and the metadata group (its real state machine), faults;
//! - `wire`: the way from one mount to the servers: delay, loss, cut cables, a killed mount;
//! - `program`: steps and their generator; `run`: a program against mounts; `shrink`: the smallest that still fails;
//! - `model`: what POSIX and docs/SEMANTICS.md allow.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a module of tests: not every one uses all of it"
)]

pub mod cluster;
pub mod dice;
pub mod group;
pub mod model;
pub mod program;
pub mod run;
pub mod shrink;
pub mod storage;
pub mod wire;
