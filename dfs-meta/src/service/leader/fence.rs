//! Whether every storage node has heard which sessions have ended; pure.
//!
//! An evicted mount may still reach storage nodes. What it left open is only purged, and what it left growing only measured, once
//! each of them refuses it: when it has said that it has a list without that session, or its lease is over and it serves nobody.
//! (It gets the newest list with the answer that brings its next lease.)
//!
//! Lists are numbered within a term. A heartbeat names the list that its node has by a mark; of the last lists the leader
//! knows which number that is.

use std::collections::{BTreeMap, VecDeque};

use dfs_common::wire::meta::{Heartbeat, LiveSessions};
use dfs_common::{Incarnation, InodeId, StorageId};

/// Lists that a node may still speak of. It is sent the newest with every answer, so one from before these is two heartbeats
/// and this many openings and ends of sessions old; the next one will do.
const LISTS_MAX: usize = 256;

/// Number of a list in this term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::service) struct Revision(u64);

#[derive(Debug, Default)]
pub(in crate::service) struct Fence {
    newest: LiveSessions,
    revision: Revision,
    /// The last list in which somebody is missing who was in the one before. Who only knows an older one may still serve somebody who
    /// has ended; openings since then do not matter.
    ended: Revision,
    /// Marks of the last lists, oldest first.
    marks: VecDeque<(u64, Revision)>,
    known: BTreeMap<StorageId, (Incarnation, Revision)>,
    /// Unlinked inodes that no live session holds open, and the list that said so first.
    ready: BTreeMap<InodeId, Revision>,
}

impl Fence {
    /// The sessions as they stand in the replicated state now.
    pub(in crate::service) fn learn(&mut self, list: LiveSessions) {
        if !self.marks.is_empty() && self.newest == list {
            return;
        }
        self.revision = Revision(self.revision.0 + 1);
        if self.marks.is_empty() || ends_somebody(&self.newest, &list) {
            self.ended = self.revision;
        }
        if self.marks.len() >= LISTS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back((list.mark(), self.revision));
        self.newest = list;
    }

    /// Takes in what a node knows, and returns the list if that is another one.
    pub(in crate::service) fn heartbeat(&mut self, heartbeat: &Heartbeat) -> Option<LiveSessions> {
        let Heartbeat {
            node,
            incarnation,
            sessions,
            ..
        } = *heartbeat;
        let known = self.known.entry(node).or_insert((incarnation, Revision::default()));
        if known.0 < incarnation {
            *known = (incarnation, Revision::default());
        }
        let spoken_of = self.marks.iter().rev().find(|(mark, _)| *mark == sessions);
        if let Some(&(_, revision)) = spoken_of
            && known.0 == incarnation
        {
            // What a process has heard it does not forget.
            known.1 = known.1.max(revision);
        }
        let is_newest = spoken_of.is_some_and(|&(_, revision)| revision == self.revision);
        (!is_newest).then(|| self.newest.clone())
    }

    /// What [`Self::is_known`] has to be asked about the sessions that have ended by now.
    pub(in crate::service) const fn ended(&self) -> Revision {
        self.ended
    }

    /// Whether every node that may serve somebody has a list as new as this one.
    pub(in crate::service) fn is_known(&self, revision: Revision, serving: &[StorageId]) -> bool {
        let has = |node| self.known.get(node).is_some_and(|&(_, known)| known >= revision);
        serving.iter().all(has)
    }

    /// Of the inodes that no live session holds open, those of which no ended session gets anything any more. To be asked with
    /// all of them each time.
    pub(in crate::service) fn purgeable(&mut self, unused: &[InodeId], serving: &[StorageId]) -> Vec<InodeId> {
        let ended = self.ended;
        self.ready = unused
            .iter()
            .map(|inode| (*inode, self.ready.get(inode).copied().unwrap_or(ended)))
            .collect();
        let known = self.ready.iter().filter(|&(_, &since)| self.is_known(since, serving));
        known.map(|(&inode, _)| inode).collect()
    }
}

/// Whether a session that the one list admits has ended in the other, later one.
fn ends_somebody(before: &LiveSessions, after: &LiveSessions) -> bool {
    let opened = after.next.0.saturating_sub(before.next.0);
    let opened_and_live = after.live.range(before.next..).count() as u64;
    opened != opened_and_live || !before.live.is_subset(&after.live)
}

#[cfg(test)]
mod tests {
    use dfs_common::{RoutingVersion, SessionId, StoreId};

    use super::*;

    const NODES: [StorageId; 2] = [StorageId(1), StorageId(2)];

    fn list(next: u64, live: &[u64]) -> LiveSessions {
        LiveSessions {
            next: SessionId(next),
            live: live.iter().copied().map(SessionId).collect(),
        }
    }

    fn beat(node: u32, incarnation: u64, sessions: u64) -> Heartbeat {
        Heartbeat {
            configured: std::collections::BTreeMap::new(),
            sessions,
            node: StorageId(node),
            incarnation: Incarnation(incarnation),
            store: StoreId::default(),
            address: std::net::SocketAddr::from(([127, 0, 0, 1], 1)),
            routing: RoutingVersion(0),
            total_bytes: 0,
            used_bytes: 0,
            fault: None,
            resyncs: Vec::new(),
            settled: Vec::new(),
            rests: Vec::new(),
            retired: Vec::new(),
            signs: dfs_common::wire::meta::Signs::default(),
        }
    }

    #[test]
    fn a_node_is_sent_the_list_until_it_says_that_it_has_it() {
        let mut fence = Fence::default();
        let first = list(3, &[1, 2]);
        fence.learn(first.clone());
        assert_eq!(fence.heartbeat(&beat(1, 1, 0)), Some(first.clone()));
        assert_eq!(fence.heartbeat(&beat(1, 1, 0)), Some(first.clone()), "it may be lost");
        assert_eq!(fence.heartbeat(&beat(1, 1, first.mark())), None);
        let second = list(3, &[2]);
        fence.learn(second.clone());
        fence.learn(second.clone());
        assert_eq!(fence.heartbeat(&beat(1, 1, first.mark())), Some(second.clone()));
        assert_eq!(fence.heartbeat(&beat(1, 1, second.mark())), None);
    }

    #[test]
    fn purges_wait_for_every_node_that_may_serve() {
        let mut fence = Fence::default();
        let lists = [list(3, &[1, 2]), list(3, &[2]), list(4, &[3])];
        let file = [InodeId(9)];
        fence.learn(lists[0].clone());
        for node in [1, 2] {
            fence.heartbeat(&beat(node, 1, lists[0].mark()));
        }
        fence.learn(lists[1].clone());
        assert_eq!(fence.purgeable(&file, &NODES), [], "nobody has heard");
        fence.heartbeat(&beat(1, 1, lists[1].mark()));
        assert_eq!(fence.purgeable(&file, &NODES), [], "one has not");
        assert_eq!(fence.purgeable(&file, &NODES[..1]), file, "the other's lease is over");
        // Sessions come and go meanwhile: what is waited for is the list of when it was first asked.
        fence.learn(lists[2].clone());
        fence.heartbeat(&beat(2, 1, lists[1].mark()));
        assert_eq!(fence.purgeable(&file, &NODES), file);
        assert_eq!(fence.purgeable(&[InodeId(10)], &NODES), []);
        assert_eq!(fence.purgeable(&file, &NODES), [], "asked anew");
    }

    #[test]
    fn openings_are_not_waited_for_and_ends_are() {
        let mut fence = Fence::default();
        let first = list(3, &[1, 2]);
        fence.learn(first.clone());
        fence.heartbeat(&beat(1, 1, first.mark()));
        let known = |fence: &Fence| fence.is_known(fence.ended(), &NODES[..1]);
        fence.learn(list(5, &[1, 2, 3, 4]));
        assert!(known(&fence));
        for later in [list(7, &[1, 2, 3, 4, 6]), list(7, &[1, 3, 4, 6])] {
            fence.learn(later.clone());
            assert!(!known(&fence), "one that was opened and ended since, or was known");
            fence.heartbeat(&beat(1, 1, later.mark()));
            assert!(known(&fence));
        }
    }

    #[test]
    fn a_new_process_has_heard_nothing_and_an_old_one_is_not_believed() {
        let mut fence = Fence::default();
        let one = list(3, &[1]);
        fence.learn(one.clone());
        let revision = fence.ended();
        fence.heartbeat(&beat(1, 5, one.mark()));
        assert!(fence.is_known(revision, &NODES[..1]));
        fence.heartbeat(&beat(1, 6, 0));
        assert!(!fence.is_known(revision, &NODES[..1]));
        fence.heartbeat(&beat(1, 5, one.mark()));
        assert!(!fence.is_known(revision, &NODES[..1]));
        fence.heartbeat(&beat(1, 6, one.mark()));
        assert!(fence.is_known(revision, &NODES[..1]));
    }
}
