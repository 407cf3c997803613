//! Overwrites, small appends and fsync by whoever did not write, through power cuts of all servers: what fsync answered is kept.
//! Longer: `cargo xtask long power-cuts`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use dfs_tests::faults::power::{self, AfterLoss, Victims};

/// A stage under full load, and one in which nobody else syncs.
const EVENTS: u64 = 10;

#[test]
fn what_an_fsync_answered_is_kept_whoever_asked_and_whatever_was_overwritten() {
    let report = power::run(&power::Options {
        seed: 2,
        cuts: u64::MAX,
        events: EVENTS,
        seconds: 180,
        keep: std::env::temp_dir().join("dfs-overwrites"),
        victims: Victims::All,
        after_loss: AfterLoss::GoOn,
    });
    println!("{report}");
    assert!(report.failures.is_empty());
    assert!(report.events >= 2, "{} events only", report.events);
}
