//! Short fault runs: every kind of fault, three seeds. Longer ones: `cargo xtask faults`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::path::PathBuf;

use dfs_tests::faults::{Kind, Options, power, run};

/// Faults fall for this long; healing and checks come on top.
const SECONDS: u64 = 25;

fn kept() -> PathBuf {
    std::env::temp_dir().join("dfs-faults")
}

/// All but the power cut of everything: an fsync that is under way then may lie (tests/tests/lost_power.rs).
fn survivable() -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| *kind != Kind::PowerAll).collect()
}

#[test]
fn nothing_is_lost_and_registers_are_linearizable_whatever_falls() {
    for seed in 1..=3 {
        let report = run::run(&Options {
            seed,
            seconds: SECONDS,
            kinds: survivable(),
            keep: kept(),
            loud: false,
        });
        println!("{}\n{report}", report.schedule.join("\n"));
        assert!(report.passed(), "seed {seed} failed");
    }
}

#[test]
fn power_cuts_in_a_row_lose_nothing_that_was_synced() {
    let report = power::run(&power::Options {
        seed: 1,
        cuts: 12,
        events: u64::MAX,
        seconds: 120,
        keep: kept(),
        victims: power::Victims::OneOrTwo,
        after_loss: power::AfterLoss::Stop,
    });
    println!("{report}");
    assert!(report.failures.is_empty());
    assert!(report.cuts >= 2, "{} cuts only", report.cuts);
}
