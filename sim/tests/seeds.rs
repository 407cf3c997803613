//! A seed is a bug report: the same one does the same, event by event, and different ones differ.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use dfs_sim::{Schedule, run};

#[test]
fn the_same_seed_has_the_same_trace_twice() {
    for seed in 1..=40 {
        let (first, second) = (run(&Schedule::draw(seed), false), run(&Schedule::draw(seed), false));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.events, second.events, "seed {seed}");
        assert_ne!(first.hash, run(&Schedule::draw(seed + 1_000), false).hash);
        // Words are for people and change nothing.
        assert_eq!(first.hash, run(&Schedule::draw(seed), true).hash, "seed {seed}");
    }
}

#[test]
fn seeds_do_something_and_nothing_is_violated() {
    let mut answers = 0;
    for seed in 1..=100 {
        let outcome = run(&Schedule::draw(seed), false);
        assert_eq!(outcome.violation, None, "cargo xtask sim --seed {seed}");
        answers += outcome.answers;
    }
    assert!(answers > 30_000, "{answers} answers in 100 seeds");
}
