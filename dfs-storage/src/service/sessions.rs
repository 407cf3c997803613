//! Which sessions may read and write here, as the metadata group last said.
//!
//! A mount that was cut off from the metadata group is evicted, and what it left open or held goes to others. It may still
//! reach this node, so this node refuses it. The list comes with the answer to a heartbeat whenever this node's is another one,
//! so it is here before the first lease is; the next heartbeat says that it has come.

use dfs_common::SessionId;
use dfs_common::wire::meta::LiveSessions;
use parking_lot::RwLock;

/// See the module. Nothing yet: nobody is admitted.
#[derive(Debug, Default)]
pub(crate) struct Sessions(RwLock<Option<LiveSessions>>);

impl Sessions {
    /// Whether the session lives. What the system asks has none; who may ask that is `handler::authorize`'s business.
    pub(crate) fn admits(&self, session: SessionId) -> bool {
        session == SessionId::SYSTEM || self.0.read().as_ref().is_some_and(|list| list.admits(session))
    }

    /// Takes a list in. Answers to heartbeats overtake each other, and numbers are never used again: whoever is missing in one
    /// list has ended for good. Returns whether it says anything new.
    pub(crate) fn learn(&self, list: LiveSessions) -> bool {
        let mut known = self.0.write();
        let before = known.take();
        let merged = match before.clone() {
            None => list,
            Some(old) => {
                let (newer, older) = if list.next >= old.next {
                    (list, old)
                } else {
                    (old, list)
                };
                LiveSessions {
                    next: newer.next,
                    live: newer.live.into_iter().filter(|&live| older.admits(live)).collect(),
                }
            }
        };
        *known = Some(merged);
        *known != before
    }

    /// Of the list, for the heartbeat; 0 without one.
    pub(crate) fn mark(&self) -> u64 {
        self.0.read().as_ref().map_or(0, LiveSessions::mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(next: u64, live: &[u64]) -> LiveSessions {
        LiveSessions {
            next: SessionId(next),
            live: live.iter().copied().map(SessionId).collect(),
        }
    }

    fn admitted(sessions: &Sessions) -> Vec<u64> {
        (0..10).filter(|&number| sessions.admits(SessionId(number))).collect()
    }

    #[test]
    fn nobody_is_admitted_before_the_first_list_but_the_system() {
        let sessions = Sessions::default();
        assert_eq!((admitted(&sessions), sessions.mark()), (vec![0], 0));
        sessions.learn(list(5, &[2, 4]));
        assert_eq!(admitted(&sessions), [0, 2, 4, 5, 6, 7, 8, 9]);
        assert_eq!(sessions.mark(), list(5, &[2, 4]).mark());
    }

    #[test]
    fn a_list_that_was_overtaken_readmits_nobody() {
        for lists in [
            [list(5, &[2, 4]), list(7, &[4, 5]), list(7, &[4])],
            [list(7, &[4]), list(5, &[2, 4]), list(7, &[4, 5])],
            [list(7, &[4, 5]), list(7, &[4]), list(5, &[2, 4])],
        ] {
            let sessions = Sessions::default();
            for list in lists {
                sessions.learn(list);
            }
            assert!(!sessions.learn(list(5, &[2, 4])), "nothing new");
            assert_eq!(admitted(&sessions), [0, 4, 7, 8, 9]);
            assert_eq!(sessions.mark(), list(7, &[4]).mark(), "the leader is told so");
        }
    }
}
