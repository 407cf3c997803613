//! Sessions of clients: their leases and what they hold open; pure.
//!
//! Opens are soft state: clients report them, a new leader starts without any and asks for whole lists. An unlinked inode
//! may go when no session can still hold it open. One report after the unlink is not enough: it may have been composed
//! before an open that came before the unlink, and travelled slowly. A client composes a report after the answer to the
//! one before, so the *second* report after the unlink was composed after it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dfs_common::wire::meta::{KeepAlive, SESSION_LEASE_MS};
use dfs_common::{Error, ErrorCode, InodeId, MetaId, SessionId, Timestamp};

use super::super::clock::Moment;
use crate::consensus::clocks::is_near;

/// Opens that one session may report. A mount is bounded by its kernel's file table; this bounds a hostile one.
const OPEN_MAX: usize = 1 << 20;

/// Metadata servers that a configuration may name; more than a group has.
pub(in crate::service) const CONFIGURED_MAX: usize = 16;

/// Own pause beyond which leases are extended, as for storage nodes.
const STARVED_MS: u64 = 2_000;

/// Order of what this leader saw: finer than any clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn(u64);

#[derive(Debug)]
struct Session {
    until: Moment,
    /// Set when it was opened under this leader.
    opened: Option<Turn>,
    /// Number of the last report taken in; `None` until a whole list came.
    report: Option<u64>,
    last: Option<Turn>,
    before_last: Option<Turn>,
    open: BTreeSet<InodeId>,
    /// By how many nanoseconds its clock was ahead in its last report.
    clock_ahead_ns: i64,
    /// Where its client's configuration has the metadata servers.
    configured: BTreeMap<MetaId, SocketAddr>,
}

impl Session {
    fn new(now: Moment, opened: Option<Turn>) -> Self {
        Self {
            until: now.after_ms(SESSION_LEASE_MS),
            opened,
            report: None,
            last: None,
            before_last: None,
            open: BTreeSet::new(),
            clock_ahead_ns: 0,
            configured: BTreeMap::new(),
        }
    }

    /// Whether what is known of its opens includes all that were made before `unlinked`.
    fn speaks_for(&self, unlinked: Turn) -> bool {
        self.opened.is_some_and(|opened| opened > unlinked) || self.before_last.is_some_and(|turn| turn > unlinked)
    }
}

#[derive(Debug)]
pub(in crate::service) struct Sessions {
    turn: Turn,
    ticked: Moment,
    live: BTreeMap<SessionId, Session>,
    /// Unlinked inodes of the purge worker's last scan, with the turn at which they were first seen.
    orphans: BTreeMap<InodeId, Turn>,
}

impl Sessions {
    /// Every session gets a fresh lease: its client may have renewed it with the leader before.
    pub(in crate::service) fn new(now: Moment, sessions: impl IntoIterator<Item = SessionId>) -> Self {
        Self {
            turn: Turn(0),
            ticked: now,
            live: sessions
                .into_iter()
                .map(|session| (session, Session::new(now, None)))
                .collect(),
            orphans: BTreeMap::new(),
        }
    }

    fn next_turn(&mut self) -> Turn {
        self.turn = Turn(self.turn.0 + 1);
        self.turn
    }

    pub(in crate::service) fn opened(&mut self, now: Moment, session: SessionId) {
        let turn = self.next_turn();
        self.live
            .entry(session)
            .or_insert_with(|| Session::new(now, Some(turn)));
    }

    pub(in crate::service) fn ended(&mut self, sessions: &[SessionId]) {
        for session in sessions {
            self.live.remove(session);
        }
    }

    /// The session's client said what its clock reads.
    pub(in crate::service) fn read_clock(&mut self, session: SessionId, clock: Timestamp, time: Timestamp) {
        if let Some(session) = self.live.get_mut(&session) {
            session.clock_ahead_ns = clock.nanos.saturating_sub(time.nanos);
        }
    }

    /// By how many nanoseconds clients' clocks are ahead, of those that are off.
    pub(in crate::service) fn wrong_clocks(&self) -> BTreeMap<SessionId, i64> {
        let ahead = self.live.iter().map(|(&id, session)| (id, session.clock_ahead_ns));
        ahead.filter(|&(_, ahead_ns)| !is_near(ahead_ns, 0)).collect()
    }

    /// Where clients' configurations have the metadata servers.
    pub(in crate::service) fn configured(&self) -> BTreeMap<SessionId, BTreeMap<MetaId, SocketAddr>> {
        let live = self.live.iter();
        live.map(|(&id, session)| (id, session.configured.clone())).collect()
    }

    pub(in crate::service) fn len(&self) -> usize {
        self.live.len()
    }

    /// Renews the lease and takes the report in. Returns whether the whole list is needed next.
    ///
    /// # Errors
    /// `SessionExpired` for a session that is not there.
    pub(in crate::service) fn keep_alive(&mut self, now: Moment, message: &KeepAlive) -> Result<bool, Error> {
        let turn = self.next_turn();
        let Some(session) = self.live.get_mut(&message.session) else {
            return Err(Error::new(
                ErrorCode::SessionExpired,
                format!(
                    "session {} has ended or was not renewed for {SESSION_LEASE_MS} ms; mount again",
                    message.session
                ),
            ));
        };
        session.until = now.after_ms(SESSION_LEASE_MS);
        let configured = message.configured.iter().take(CONFIGURED_MAX);
        session.configured = configured.map(|(&id, &at)| (id, at)).collect();
        if session.report == Some(message.report) && !message.all {
            // A retry of a report whose answer got lost.
            return Ok(false);
        }
        if message.all {
            session.open.clear();
        } else if session.report.is_none() || session.report != message.report.checked_sub(1) {
            session.report = None;
            session.before_last = None;
            session.last = None;
            return Ok(true);
        }
        for inode in &message.closed {
            session.open.remove(inode);
        }
        session.open.extend(&message.opened);
        if session.open.len() > OPEN_MAX {
            session.open.clear();
            session.report = None;
            session.before_last = None;
            session.last = None;
            return Err(Error::new(
                ErrorCode::Overloaded,
                format!("session {} reports over {OPEN_MAX} open files", message.session),
            ));
        }
        session.report = Some(message.report);
        session.before_last = session.last;
        session.last = Some(turn);
        Ok(false)
    }

    /// Sessions whose lease is over. They stay here until a command ended them.
    pub(in crate::service) fn expired(&self, now: Moment) -> Vec<SessionId> {
        self.live
            .iter()
            .filter(|(_, session)| session.until <= now)
            .map(|(&id, _)| id)
            .collect()
    }

    pub(in crate::service) fn tick(&mut self, now: Moment) {
        let deaf_ms = now.since(self.ticked);
        if deaf_ms > STARVED_MS {
            let longest = now.after_ms(SESSION_LEASE_MS);
            for session in self.live.values_mut() {
                session.until = session.until.after_ms(deaf_ms).min(longest.max(session.until));
            }
        }
        self.ticked = now;
    }

    /// Of these unlinked inodes, those that nobody can hold open any more. The rest is remembered for the next call,
    /// which must bring the same ones and may bring more.
    pub(in crate::service) fn purgeable(&mut self, orphans: &[InodeId]) -> Vec<InodeId> {
        let turn = self.turn;
        self.orphans = orphans
            .iter()
            .map(|inode| (*inode, self.orphans.get(inode).copied().unwrap_or(turn)))
            .collect();
        self.orphans
            .iter()
            .filter(|&(inode, &unlinked)| {
                self.live
                    .values()
                    .all(|session| session.speaks_for(unlinked) && !session.open.contains(inode))
            })
            .map(|(&inode, _)| inode)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::RoutingVersion;
    use proptest::prelude::*;

    use super::*;

    fn report(session: u64, number: u64, all: bool, opened: &[u64], closed: &[u64]) -> KeepAlive {
        let inodes = |numbers: &[u64]| numbers.iter().copied().map(InodeId).collect();
        KeepAlive {
            configured: BTreeMap::new(),
            session: SessionId(session),
            routing: RoutingVersion(0),
            all,
            opened: inodes(opened),
            closed: inodes(closed),
            report: number,
            clock: Timestamp::default(),
        }
    }

    const NOW: Moment = Moment::from_ms(0);

    #[test]
    fn an_unlinked_file_lives_until_its_last_close() {
        let mut sessions = Sessions::new(NOW, [SessionId(1), SessionId(2)]);
        let file = [InodeId(9)];
        let say = |sessions: &mut Sessions, message| sessions.keep_alive(NOW, &message).unwrap();
        assert!(!say(&mut sessions, report(1, 1, true, &[9], &[])));
        assert!(!say(&mut sessions, report(2, 1, true, &[], &[])));
        assert_eq!(sessions.purgeable(&file), []);
        for number in 2..5 {
            assert!(!say(&mut sessions, report(1, number, false, &[], &[])));
            assert!(!say(&mut sessions, report(2, number, false, &[], &[])));
            assert_eq!(sessions.purgeable(&file), [], "session 1 holds it");
        }
        assert!(!say(&mut sessions, report(1, 5, false, &[], &[9])));
        assert_eq!(sessions.purgeable(&file), file);
    }

    #[test]
    fn one_report_after_the_unlink_is_not_enough() {
        let mut sessions = Sessions::new(NOW, [SessionId(1)]);
        let file = [InodeId(9)];
        assert_eq!(sessions.purgeable(&file), []);
        sessions.keep_alive(NOW, &report(1, 1, true, &[], &[])).unwrap();
        assert_eq!(
            sessions.purgeable(&file),
            [],
            "it may have been on its way since before the unlink"
        );
        sessions.keep_alive(NOW, &report(1, 2, false, &[], &[])).unwrap();
        assert_eq!(sessions.purgeable(&file), file);
    }

    #[test]
    fn a_lost_difference_asks_for_the_whole_list() {
        let mut sessions = Sessions::new(NOW, [SessionId(1)]);
        assert!(
            sessions.keep_alive(NOW, &report(1, 7, false, &[], &[])).unwrap(),
            "a new leader"
        );
        assert!(!sessions.keep_alive(NOW, &report(1, 8, true, &[4], &[])).unwrap());
        assert!(!sessions.keep_alive(NOW, &report(1, 9, false, &[5], &[])).unwrap());
        assert!(
            !sessions.keep_alive(NOW, &report(1, 9, false, &[5], &[])).unwrap(),
            "a retry"
        );
        assert!(sessions.keep_alive(NOW, &report(1, 11, false, &[], &[4])).unwrap());
        assert_eq!(sessions.purgeable(&[InodeId(4)]), []);
    }

    #[test]
    fn sessions_expire_and_get_a_fresh_lease_from_a_new_leader() {
        let mut sessions = Sessions::new(NOW, [SessionId(1)]);
        let late = NOW.after_ms(SESSION_LEASE_MS);
        sessions.opened(NOW.after_ms(1), SessionId(2));
        assert_eq!(sessions.expired(NOW.after_ms(SESSION_LEASE_MS - 1)), []);
        assert_eq!(sessions.expired(late), [SessionId(1)]);
        let error = sessions.keep_alive(NOW, &report(3, 1, true, &[], &[])).unwrap_err();
        assert_eq!(error.code, ErrorCode::SessionExpired);
        sessions.ended(&[SessionId(1)]);
        assert_eq!(sessions.expired(late), []);
        let again = Sessions::new(late, [SessionId(2)]);
        assert_eq!(again.expired(late.after_ms(SESSION_LEASE_MS - 1)), []);
    }

    #[test]
    fn sessions_that_came_after_the_unlink_do_not_matter() {
        let mut sessions = Sessions::new(NOW, []);
        assert_eq!(sessions.purgeable(&[InodeId(3)]), [InodeId(3)], "nobody is there");
        sessions.opened(NOW, SessionId(1));
        assert_eq!(sessions.purgeable(&[InodeId(3), InodeId(4)]), [InodeId(3)]);
    }

    proptest! {
        /// Against the truth: a client opens and closes at will, and reports what is open when it composes a report.
        #[test]
        fn nothing_open_is_ever_purged(steps in proptest::collection::vec((0_u8..4, 0_u64..4, 0_u64..3), 1..120)) {
            let mut sessions = Sessions::new(NOW, (0..3).map(SessionId));
            let mut open = vec![BTreeSet::<InodeId>::new(); 3];
            let mut on_the_way: Vec<Option<KeepAlive>> = vec![None; 3];
            let mut number = [0_u64; 3];
            let mut unlinked = BTreeSet::<InodeId>::new();
            for (step, inode, client) in steps {
                let (inode, at) = (InodeId(inode), client as usize);
                match step {
                    0 if !unlinked.contains(&inode) => { open[at].insert(inode); }
                    0 => { open[at].remove(&inode); }
                    1 => { unlinked.insert(inode); }
                    2 => {
                        if let Some(message) = on_the_way[at].take() {
                            prop_assert!(!sessions.keep_alive(NOW, &message).unwrap());
                        }
                        number[at] += 1;
                        let list: Vec<u64> = open[at].iter().map(|inode| inode.0).collect();
                        on_the_way[at] = Some(report(client, number[at], true, &list, &[]));
                    }
                    _ => {
                        let orphans: Vec<InodeId> = unlinked.iter().copied().collect();
                        for inode in sessions.purgeable(&orphans) {
                            prop_assert!(open.iter().all(|open| !open.contains(&inode)), "{inode} is open");
                        }
                    }
                }
            }
        }
    }
}
