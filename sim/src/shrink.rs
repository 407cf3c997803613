//! Makes a failing schedule small: drops what it fails without, halves first, then one by one.

use crate::{Outcome, Schedule, run};

/// Runs that a search may take.
const RUNS: usize = 400;

/// Places of the steps that are needed, with what the smallest schedule does. Any violation of the same invariant counts.
#[must_use]
pub fn shrink(schedule: &Schedule, invariant: &str) -> (Vec<usize>, Outcome) {
    let mut keep: Vec<usize> = (0..schedule.steps.len()).collect();
    let mut runs = 0;
    let mut size = keep.len() / 2;
    while size > 0 && runs < RUNS {
        let mut at = 0;
        while at < keep.len() && runs < RUNS {
            let end = (at + size).min(keep.len());
            let fewer: Vec<usize> = keep[..at].iter().chain(&keep[end..]).copied().collect();
            runs += 1;
            let still = run(&schedule.only(&fewer), false);
            if still
                .violation
                .is_some_and(|violation| violation.invariant == invariant)
            {
                keep = fewer;
            } else {
                at = end;
            }
        }
        size /= 2;
    }
    let outcome = run(&schedule.only(&keep), true);
    (keep, outcome)
}
