//! The simulator: whole clusters in virtual time from one seed.
//!
//! What decides is real: replica cores, the block log over a simulated disk, chain transitions, leases on both sides, the
//! metadata state machine, clients' retry decisions. Time, network, disks and the order of everything are drawn from the seed; so
//! a seed is a whole bug report, and the same seed gives the same trace, event by event.
//!
//! `schedule` draws what will happen before it does, `world` lets it happen, `shell`/`group`/`clients`/`names` are the parts,
//! `invariants` watch, `shrink` makes a failing schedule small. See docs/RELIABILITY.md.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
#![allow(
    clippy::pedantic,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    unreachable_pub,
    missing_debug_implementations,
    reason = "a tool for tests, which fails by panicking"
)]

mod beats;
mod clients;
mod copying;
mod event;
mod faults;
mod group;
mod invariants;
mod messages;
mod names;
mod network;
mod node;
pub mod random;
pub mod schedule;
mod shell;
pub mod shrink;
mod stories;
pub mod trace;
mod world;

use std::collections::BTreeMap;

pub use schedule::{Kind, Schedule};
pub use world::World;

/// What must not be, and was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub detail: String,
}

/// What came of one seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub violation: Option<Violation>,
    pub hash: u64,
    pub events: u64,
    pub answers: u64,
    pub simulated_ms: u64,
    pub undecided: u64,
    pub amnesties: u64,
    pub fired: BTreeMap<Kind, u64>,
    /// The last events, if asked for.
    pub log: Vec<String>,
}

/// Runs a schedule from beginning to end.
#[must_use]
pub fn run(schedule: &Schedule, words: bool) -> Outcome {
    let caught = std::panic::catch_unwind(|| {
        let mut world = World::new(schedule, words);
        world.simulate();
        world.outcome()
    });
    caught.unwrap_or_else(|panic| {
        let detail = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_default();
        Outcome {
            violation: Some(Violation {
                invariant: "panic",
                detail,
            }),
            ..Outcome::default()
        }
    })
}
