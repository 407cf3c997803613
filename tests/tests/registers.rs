//! Registers on eight files, written and read through two mounts while servers are killed: linearizable.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use dfs_tests::faults::{Kind, Options, run};

const SECONDS: u64 = 20;

#[test]
fn two_mounts_see_one_register_while_servers_die() {
    for seed in 11..=13 {
        let report = run::run(&Options {
            seed,
            seconds: SECONDS,
            kinds: vec![Kind::Kill, Kind::KillAll],
            keep: std::env::temp_dir().join("dfs-registers"),
            loud: false,
        });
        println!("{}\n{report}", report.schedule.join("\n"));
        assert!(report.passed(), "seed {seed} failed");
    }
}
