//! Who stands aside although it speaks: a node that a neighbour does not hear, and a node whose disk is far slower than its
//! peers'. Pure.
//!
//! Both are judged from what the nodes say of themselves and of each other in their heartbeats, so each rule must bear a
//! node that is wrong about itself, and none may take out what is needed:
//!
//! - of two that do not hear each other one goes: who has lost most others, else who was named by the other only, else the
//!   higher number. Never half of the nodes or more, and only after every report had the time to arrive;
//! - slow is who takes ten times as long as its peers and noticeably so, in several heartbeats in a row. One at a time, and
//!   only while every chain of it keeps two others that serve.
//!
//! Who stands aside comes back by itself: after its neighbours hear it again, or (slow: an idle disk tells nothing) after a
//! while that doubles each time.

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::wire::meta::{Heartbeat, Pace, Signs, Unheard};
use dfs_common::{RoutingTable, StorageId};

use super::super::clock::Moment;

/// A neighbour that was not heard for this long is reported against: five questions went unanswered. A busy machine makes
/// all answers late by 300 ms now and then; that is no reason to do without a node.
const UNHEARD_MS: u32 = 500;

/// Between the first such report and a judgement, so that all who have one are heard: a heartbeat and a half.
const HEARING_MS: u64 = 150;

/// A node's last word is not used for longer.
const FRESH_MS: u64 = 300;

/// Neighbours must hear a node again for this long before it comes back.
const RECONCILED_MS: u64 = 1_000;

/// Slow is at least this, whatever the peers do: nobody minds less.
const SLOW_US: u32 = 20_000;

/// And this many times the peers' figure.
const SLOW_RATIO: u32 = 10;

/// Heartbeats in a row.
const SLOW_BEATS: u32 = 3;

/// One piece of work that takes this long, while peers are done in a tenth, is as bad.
const HUNG_US: u32 = 500_000;

/// The first time aside, and the longest.
const ASIDE_MS: u64 = 10_000;
const ASIDE_MAX_MS: u64 = 640_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Unheard,
    Slow,
}

#[derive(Debug)]
struct Aside {
    cause: Cause,
    reason: String,
    since: Moment,
    /// Not before this.
    until: Moment,
}

/// What a node said last.
#[derive(Debug)]
struct Said {
    at: Moment,
    signs: Signs,
    /// Heartbeats in a row in which it was slow, but for those without news.
    slow_beats: u32,
}

#[derive(Debug, Default)]
pub(super) struct Suspects {
    said: BTreeMap<StorageId, Said>,
    aside: BTreeMap<StorageId, Aside>,
    /// How often a node stood aside for being slow, and when that ends to count.
    times: BTreeMap<StorageId, (u32, Moment)>,
    /// Since when somebody is reported.
    disputed: Option<Moment>,
    /// When a dispute about this node was last seen.
    quarrels: BTreeMap<StorageId, Moment>,
}

impl Suspects {
    pub(super) fn reason(&self, node: StorageId) -> Option<&str> {
        self.aside.get(&node).map(|aside| aside.reason.as_str())
    }

    /// Since when it stands aside.
    pub(super) fn aside_since(&self, node: StorageId) -> Option<Moment> {
        self.aside.get(&node).map(|aside| aside.since)
    }

    pub(super) fn heartbeat(&mut self, now: Moment, heartbeat: &Heartbeat) {
        let node = heartbeat.node;
        let (syncs, writes) = (heartbeat.signs.syncs, heartbeat.signs.writes);
        let slow = slowness(syncs, &self.paces(now, node, |signs| signs.syncs))
            .or_else(|| slowness(writes, &self.paces(now, node, |signs| signs.writes)));
        let before = self.said.get(&node);
        // What was slow a moment ago is no more proof for being said twice.
        let running = syncs.running_us.max(writes.running_us) >= SLOW_US;
        let is_news = before.is_none_or(|before| {
            running || (before.signs.syncs.done, before.signs.writes.done) != (syncs.done, writes.done)
        });
        let said = Said {
            at: now,
            signs: heartbeat.signs.clone(),
            slow_beats: if slow.is_some() && !self.aside.contains_key(&node) {
                before.map_or(0, |said| said.slow_beats) + u32::from(is_news)
            } else {
                0
            },
        };
        self.said.insert(node, said);
    }

    fn is_fresh(&self, now: Moment, node: StorageId) -> bool {
        self.said.get(&node).is_some_and(|said| now.since(said.at) <= FRESH_MS)
    }

    /// Of all others that speak and take part.
    fn paces(&self, now: Moment, but: StorageId, kind: impl Fn(&Signs) -> Pace) -> Vec<Pace> {
        let others = self
            .said
            .iter()
            .filter(|&(&node, said)| node != but && now.since(said.at) <= FRESH_MS && !self.aside.contains_key(&node));
        others.map(|(_, said)| kind(&said.signs)).collect()
    }

    /// Called regularly and before anybody asks who stands aside.
    pub(super) fn tick(&mut self, now: Moment, routing: &RoutingTable) {
        self.said.retain(|node, _| routing.nodes.contains_key(node));
        self.judge_disputes(now, routing);
        self.judge_slowness(now, routing);
        let quarrels = &self.quarrels;
        self.aside.retain(|node, aside| {
            let quarrels = quarrels.get(node).is_some_and(|&last| now.since(last) < RECONCILED_MS);
            now < aside.until || (aside.cause == Cause::Unheard && quarrels)
        });
        self.times.retain(|_, (_, until)| now < *until);
    }

    fn judge_disputes(&mut self, now: Moment, routing: &RoutingTable) {
        let there = |node: StorageId| {
            let takes_part = routing.nodes.get(&node).is_some_and(|info| info.alive);
            (takes_part || self.aside.contains_key(&node)) && self.is_fresh(now, node)
        };
        // Who has just come back was dead, not silent: its neighbours learn of it later than this one.
        let is_present = |unheard: Unheard| {
            let info = routing.nodes.get(&unheard.node);
            info.is_some_and(|info| info.incarnation == unheard.process)
        };
        let reports: Vec<(StorageId, Unheard)> = self
            .said
            .iter()
            .filter(|&(&node, _)| there(node))
            .flat_map(|(&node, said)| said.signs.unheard.iter().map(move |&unheard| (node, unheard)))
            .filter(|&(node, unheard)| {
                unheard.ms >= UNHEARD_MS && unheard.node != node && there(unheard.node) && is_present(unheard)
            })
            .collect();
        for &(reporter, unheard) in &reports {
            for node in [reporter, unheard.node] {
                self.quarrels.insert(node, now);
            }
        }
        self.quarrels.retain(|_, last| now.since(*last) < RECONCILED_MS);
        let open: Vec<(StorageId, StorageId)> = reports
            .into_iter()
            .map(|(reporter, unheard)| (reporter, unheard.node))
            .filter(|(a, b)| !self.aside.contains_key(a) && !self.aside.contains_key(b))
            .collect();
        let Some(leaves) = who_leaves(&open) else {
            self.disputed = None;
            return;
        };
        let since = *self.disputed.get_or_insert(now);
        let absent = self
            .aside
            .values()
            .filter(|aside| aside.cause == Cause::Unheard)
            .count();
        if now.since(since) < HEARING_MS || 2 * (absent + 1) >= routing.nodes.len() {
            return;
        }
        let others: Vec<String> = open
            .iter()
            .filter(|(a, b)| *a == leaves || *b == leaves)
            .map(|(a, b)| if *a == leaves { b } else { a })
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|other| format!("storage-{other}"))
            .collect();
        let reason = format!(
            "it and {} do not hear each other; look at the network between them",
            others.join(", ")
        );
        self.stand_aside(now, leaves, Cause::Unheard, reason, RECONCILED_MS);
    }

    fn judge_slowness(&mut self, now: Moment, routing: &RoutingTable) {
        if !self.aside.is_empty() {
            return;
        }
        let slow: Vec<StorageId> = self
            .said
            .iter()
            .filter(|&(&node, said)| said.slow_beats >= SLOW_BEATS && self.is_fresh(now, node))
            .map(|(&node, _)| node)
            .collect();
        // Two at a time are rather a busy cluster.
        let [node] = slow[..] else {
            return;
        };
        let takes_part = routing.nodes.get(&node).is_some_and(|info| info.alive);
        let can_be_missed = routing
            .chains
            .values()
            .filter(|chain| chain.members.iter().any(|member| member.node == node))
            .all(|chain| chain.serving().filter(|&other| other != node).count() >= 2);
        if !takes_part || !can_be_missed {
            return;
        }
        let signs = self.said.get(&node).map(|said| said.signs.clone()).unwrap_or_default();
        let times = self.times.get(&node).map_or(0, |&(times, _)| times);
        let pause_ms = (ASIDE_MS << times.min(6)).min(ASIDE_MAX_MS);
        let reason = format!(
            "its disk is far slower than its peers' (a sync takes {} ms, a write {} ms); look at the disk. It is tried again after {} s",
            figure(signs.syncs) / 1_000,
            figure(signs.writes) / 1_000,
            pause_ms / 1_000
        );
        self.times
            .insert(node, (times + 1, now.after_ms(pause_ms + ASIDE_MAX_MS)));
        self.stand_aside(now, node, Cause::Slow, reason, pause_ms);
    }

    fn stand_aside(&mut self, now: Moment, node: StorageId, cause: Cause, reason: String, pause_ms: u64) {
        if let Some(said) = self.said.get_mut(&node) {
            said.slow_beats = 0;
        }
        self.disputed = None;
        let until = now.after_ms(pause_ms);
        self.aside.insert(
            node,
            Aside {
                cause,
                reason,
                since: now,
                until,
            },
        );
    }
}

fn figure(pace: Pace) -> u32 {
    pace.median_us.unwrap_or(0).max(pace.running_us)
}

/// Whether work takes this node so much longer than its peers that they are better off without it, and how long it takes.
fn slowness(own: Pace, peers: &[Pace]) -> Option<u32> {
    // In the middle, of two the slower.
    let typical = |mut figures: Vec<u32>| {
        figures.sort_unstable();
        (figures.len() >= 2).then(|| figures[figures.len() / 2])
    };
    let steady = own.median_us.filter(|&own| {
        let peers = typical(peers.iter().filter_map(|peer| peer.median_us).collect());
        own >= SLOW_US && peers.is_some_and(|peers| own / SLOW_RATIO >= peers)
    });
    let hung = (own.running_us >= HUNG_US
        && typical(peers.iter().map(|&peer| figure(peer)).collect())
            .is_some_and(|peers| peers <= HUNG_US / SLOW_RATIO))
    .then_some(own.running_us);
    steady.or(hung)
}

/// Of pairs (who reports, whom) the one whose absence settles most.
fn who_leaves(reports: &[(StorageId, StorageId)]) -> Option<StorageId> {
    let mut lost: BTreeMap<StorageId, BTreeSet<StorageId>> = BTreeMap::new();
    let mut named: BTreeMap<StorageId, BTreeSet<StorageId>> = BTreeMap::new();
    for &(reporter, suspect) in reports {
        lost.entry(reporter).or_default().insert(suspect);
        lost.entry(suspect).or_default().insert(reporter);
        named.entry(suspect).or_default().insert(reporter);
    }
    lost.into_iter()
        .max_by_key(|(node, others)| (others.len(), named.get(node).map_or(0, BTreeSet::len), *node))
        .map(|(node, _)| node)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use dfs_common::{Incarnation, RoutingVersion};

    use dfs_common::StoreId;

    use super::*;
    use crate::chains;
    use crate::command::ClusterEvent;

    struct World {
        now: Moment,
        routing: RoutingTable,
        suspects: Suspects,
        signs: BTreeMap<u32, Signs>,
    }

    impl World {
        fn of(count: u32) -> Self {
            let mut routing = RoutingTable::default();
            let up: Vec<ClusterEvent> = (1..=count)
                .map(|node| ClusterEvent::NodeUp {
                    node: StorageId(node),
                    incarnation: Incarnation(1),
                    store: StoreId::default(),
                    address: address(node),
                })
                .collect();
            chains::apply(&mut routing, &up);
            Self {
                now: Moment::from_ms(0),
                routing,
                suspects: Suspects::default(),
                signs: (1..=count).map(|node| (node, Signs::default())).collect(),
            }
        }

        /// A heartbeat of each, then ticks.
        /// After a piece of work everywhere.
        fn beat(&mut self) {
            for signs in self.signs.values_mut() {
                signs.syncs.done += 1;
            }
            self.idle_beat();
        }

        fn idle_beat(&mut self) {
            for (&node, signs) in &self.signs {
                let heartbeat = Heartbeat {
                    configured: std::collections::BTreeMap::new(),
                    sessions: 0,
                    node: StorageId(node),
                    incarnation: Incarnation(1),
                    store: StoreId::default(),
                    address: address(node),
                    routing: RoutingVersion(1),
                    total_bytes: 1,
                    used_bytes: 0,
                    fault: None,
                    resyncs: Vec::new(),
                    settled: Vec::new(),
                    rests: Vec::new(),
                    retired: Vec::new(),
                    signs: signs.clone(),
                };
                self.suspects.heartbeat(self.now, &heartbeat);
            }
            for _ in 0..4 {
                self.suspects.tick(self.now, &self.routing);
                self.now = self.now.after_ms(25);
            }
            self.suspects.tick(self.now, &self.routing);
        }

        fn beats(&mut self, count: u32) {
            for _ in 0..count {
                self.beat();
            }
        }

        fn aside(&self) -> Vec<u32> {
            self.suspects.aside.keys().map(|node| node.0).collect()
        }

        fn unheard(&mut self, reporter: u32, suspects: &[u32]) {
            self.unheard_for(reporter, suspects, UNHEARD_MS);
        }

        fn unheard_for(&mut self, reporter: u32, suspects: &[u32], ms: u32) {
            let signs = self.signs.get_mut(&reporter).unwrap();
            signs.unheard = suspects
                .iter()
                .map(|&node| Unheard {
                    node: StorageId(node),
                    process: Incarnation(1),
                    ms,
                })
                .collect();
        }

        fn sync_takes(&mut self, node: u32, us: u32) {
            let syncs = &mut self.signs.get_mut(&node).unwrap().syncs;
            syncs.median_us = Some(us);
        }
    }

    fn address(node: u32) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7000 + node as u16))
    }

    fn pairs(of: &[(u32, u32)]) -> Vec<(StorageId, StorageId)> {
        of.iter().map(|&(a, b)| (StorageId(a), StorageId(b))).collect()
    }

    #[test]
    fn who_comes_back_is_not_judged_by_what_was_said_of_its_dead_process() {
        let mut world = World::of(3);
        world.beats(2);
        // It was dead for long, and one neighbour has not heard yet that it is back.
        chains::apply(
            &mut world.routing,
            &[ClusterEvent::NodeUp {
                node: StorageId(2),
                incarnation: Incarnation(2),
                store: StoreId::default(),
                address: address(2),
            }],
        );
        world.unheard_for(3, &[2], 5_000);
        world.beats(5);
        assert!(world.aside().is_empty());
        // The present one may be.
        let signs = world.signs.get_mut(&3).unwrap();
        signs.unheard[0].process = Incarnation(2);
        world.beats(5);
        assert_eq!(world.aside().len(), 1);
    }

    #[test]
    fn who_lost_most_leaves_else_who_was_named() {
        for (reports, leaves) in [
            (&[][..], None),
            (&[(1, 2)][..], Some(2)),
            (&[(2, 1)][..], Some(1)),
            (&[(1, 2), (2, 1)][..], Some(2)),
            (&[(1, 2), (1, 3), (2, 1), (3, 1)][..], Some(1)),
            (&[(1, 2), (1, 3)][..], Some(1)),
            (&[(2, 1), (3, 1)][..], Some(1)),
            (&[(1, 2), (2, 1), (3, 4), (4, 3), (3, 2)][..], Some(2)),
        ] {
            assert_eq!(who_leaves(&pairs(reports)), leaves.map(StorageId), "{reports:?}");
        }
    }

    #[test]
    fn of_two_that_do_not_hear_each_other_one_leaves_and_comes_back_when_they_do() {
        let mut world = World::of(3);
        world.beats(5);
        world.unheard(1, &[2]);
        world.unheard(2, &[1]);
        world.beat();
        assert!(world.aside().is_empty(), "others may have something to say");
        world.beat();
        assert_eq!(world.aside(), [2]);
        let reason = world.suspects.reason(StorageId(2)).unwrap();
        assert!(reason.contains("storage-1"), "{reason}");
        // Never the other one too, however long it lasts, and not by another quarrel either.
        world.unheard(3, &[1]);
        world.beats(50);
        assert_eq!(world.aside(), [2]);
        for node in 1..=3 {
            world.unheard(node, &[]);
        }
        world.beats(9);
        assert_eq!(world.aside(), [2], "not at the first word");
        world.beats(3);
        assert!(world.aside().is_empty());
    }

    #[test]
    fn a_busy_machine_answers_late_and_nobody_leaves_for_it() {
        let mut world = World::of(3);
        world.beats(5);
        // Silence that stays under the limit, by both sides, with an answer between.
        for ms in [300, 400, 475, 150, 300, 400, 499] {
            world.unheard_for(1, &[3], ms);
            world.unheard_for(3, &[1, 2], ms);
            world.beat();
            assert!(world.aside().is_empty(), "{ms}");
        }
    }

    #[test]
    fn who_hears_nobody_takes_nobody_along() {
        let mut world = World::of(5);
        world.unheard(1, &[2, 3, 4, 5]);
        world.beats(20);
        assert_eq!(world.aside(), [1]);
    }

    #[test]
    fn half_of_the_nodes_never_leave() {
        for count in 2..=7 {
            let mut world = World::of(count);
            for node in 1..=count {
                let others: Vec<u32> = (1..=count).filter(|&other| other != node).collect();
                world.unheard(node, &others);
            }
            world.beats(40);
            assert!(2 * world.aside().len() < count as usize, "{count}: {:?}", world.aside());
        }
    }

    #[test]
    fn what_a_silent_node_said_counts_no_more() {
        let mut world = World::of(3);
        world.unheard(1, &[2]);
        world.beat();
        world.signs.remove(&1);
        world.beats(20);
        assert!(world.aside().is_empty(), "{:?}", world.aside());
    }

    #[test]
    fn slow_is_a_ratio_and_a_floor() {
        let pace = |median_us, running_us| Pace {
            median_us,
            running_us,
            done: 0,
        };
        let at = |us| pace(Some(us), 0);
        assert_eq!(slowness(at(100_000), &[at(1_000), at(2_000)]), Some(100_000));
        assert_eq!(slowness(at(SLOW_US), &[at(2_000), at(2_000)]), Some(SLOW_US));
        assert_eq!(slowness(at(SLOW_US - 1), &[at(10), at(10)]), None, "nobody minds");
        assert_eq!(
            slowness(at(100_000), &[at(1_000), at(11_000)]),
            None,
            "one peer is slow too"
        );
        assert_eq!(
            slowness(at(100_000), &[at(1_000), at(2_000), at(90_000)]),
            Some(100_000)
        );
        assert_eq!(slowness(at(100_000), &[at(1_000)]), None, "one peer is no measure");
        assert_eq!(
            slowness(at(100_000), &[pace(None, 0), pace(None, 0)]),
            None,
            "idle peers are none"
        );
        assert_eq!(slowness(pace(None, HUNG_US), &[pace(None, 0), at(900)]), Some(HUNG_US));
        assert_eq!(slowness(pace(None, HUNG_US), &[pace(None, 400_000), at(900)]), None);
        assert_eq!(slowness(pace(None, HUNG_US - 1), &[at(900), at(900)]), None);
    }

    #[test]
    fn a_slow_node_stands_aside_after_some_heartbeats_and_longer_each_time() {
        let mut world = World::of(3);
        for node in 1..=3 {
            world.sync_takes(node, 1_000);
        }
        world.beat();
        world.sync_takes(3, 150_000);
        world.beats(2);
        world.sync_takes(3, 1_000);
        world.beat();
        world.sync_takes(3, 150_000);
        world.beats(2);
        assert!(world.aside().is_empty(), "a hiccup");
        world.beat();
        assert_eq!(world.aside(), [3]);
        assert!(world.suspects.reason(StorageId(3)).unwrap().contains("150 ms"));
        // It goes on being slow, as a node that is resynced may be: the first pause, then twice as long.
        world.beats(98);
        assert_eq!(world.aside(), [3]);
        world.beats(2);
        assert!(world.aside().is_empty());
        world.beats(3);
        assert_eq!(world.aside(), [3]);
        world.beats(190);
        assert_eq!(world.aside(), [3]);
        world.sync_takes(3, 1_000);
        world.beats(20);
        assert!(world.aside().is_empty());
    }

    #[test]
    fn what_was_slow_once_does_not_become_slower_by_being_said_again() {
        let mut world = World::of(3);
        for node in 1..=3 {
            world.sync_takes(node, 1_000);
        }
        world.sync_takes(3, 150_000);
        world.beats(2);
        for _ in 0..20 {
            world.idle_beat();
        }
        assert!(world.aside().is_empty());
        world.signs.get_mut(&3).unwrap().syncs.running_us = SLOW_US;
        world.idle_beat();
        assert_eq!(world.aside(), [3], "something is under way again, and takes long");
    }

    #[test]
    fn a_slow_node_that_is_needed_stays() {
        let mut world = World::of(3);
        for node in 1..=3 {
            world.sync_takes(node, 1_000);
        }
        world.sync_takes(3, 150_000);
        let down = ClusterEvent::NodeDown {
            node: StorageId(1),
            incarnation: Incarnation(1),
        };
        chains::apply(&mut world.routing, &[down]);
        world.beats(20);
        assert!(world.aside().is_empty());
        // Nor two at a time.
        let mut world = World::of(6);
        for node in 1..=6 {
            world.sync_takes(node, 1_000);
        }
        world.sync_takes(3, 150_000);
        world.sync_takes(5, 150_000);
        world.beats(20);
        assert!(world.aside().is_empty());
        world.sync_takes(5, 1_000);
        world.beats(20);
        assert_eq!(world.aside(), [3]);
        world.sync_takes(5, 150_000);
        world.beats(20);
        assert_eq!(world.aside(), [3]);
    }
}
