//! What to do after a request failed. Pure: code and counts in, next step out.
//!
//! Invariant: a step never leads to an answer that the request's exactly-once name does not cover, so every retry may
//! carry the same name; and every path ends, since the shell gives up at its deadline whatever stands here.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use dfs_common::{ErrorCode, RetryClass};

/// First pause; the metadata group needs about a hundred of these to elect a leader.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Longest pause: what a failover may be noticed late by.
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Trying again can not help.
    Fail,
    /// Ask another replica at once.
    NextMember,
    /// Ask for newer routing and go on when it comes, or after this long.
    Refresh(Duration),
    /// Send the same again after this long.
    Again(Duration),
}

pub fn pause(attempt: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << attempt.min(5)).min(MAX_PAUSE)
}

/// After a request to a replica failed. `untried`: serving members that have not been asked in this round, for reads.
pub fn after_replica(code: ErrorCode, attempt: u32, untried: usize) -> Step {
    let other_may_help = matches!(
        code,
        ErrorCode::Corrupt
            // Its disk does not give it back, perhaps; the others' may.
            | ErrorCode::Internal
            | ErrorCode::LeaseLost
            | ErrorCode::Unreachable
            | ErrorCode::Timeout
            | ErrorCode::Poisoned
            | ErrorCode::Overloaded
            | ErrorCode::NotInChain
            | ErrorCode::Behind
    );
    if untried > 0 && other_may_help {
        return Step::NextMember;
    }
    match code.retry_class() {
        RetryClass::Refresh => Step::Refresh(pause(attempt)),
        // A silent replica is most likely gone: the next configuration is the way on.
        RetryClass::Retry if matches!(code, ErrorCode::Unreachable | ErrorCode::Timeout) => {
            Step::Refresh(pause(attempt))
        }
        RetryClass::Retry => Step::Again(pause(attempt)),
        RetryClass::Fatal => Step::Fail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_step() {
        for &code in ErrorCode::EVERY {
            for attempt in [0, 1, 40] {
                let step = after_replica(code, attempt, 0);
                assert_eq!(step == Step::Fail, code.retry_class() == RetryClass::Fatal, "{code}");
                assert_ne!(step, Step::NextMember);
                if let Step::Refresh(pause) | Step::Again(pause) = step {
                    assert!(pause <= MAX_PAUSE && pause >= FIRST_PAUSE);
                }
            }
        }
        assert_eq!(after_replica(ErrorCode::Corrupt, 0, 1), Step::NextMember);
        assert_eq!(after_replica(ErrorCode::Corrupt, 0, 0), Step::Fail);
        assert_eq!(after_replica(ErrorCode::NoSpace, 0, 2), Step::Fail);
        assert_eq!(after_replica(ErrorCode::ConditionFailed, 0, 0), Step::Fail);
        assert!(matches!(after_replica(ErrorCode::StaleEpoch, 0, 2), Step::Refresh(_)));
    }

    #[test]
    fn a_replica_whose_disk_fails_is_passed_over_and_no_other_is_asked_twice() {
        assert_eq!(after_replica(ErrorCode::Internal, 1, 2), Step::NextMember);
        assert_eq!(after_replica(ErrorCode::Internal, 1, 1), Step::NextMember);
        assert_eq!(after_replica(ErrorCode::Internal, 1, 0), Step::Fail);
    }
}
