//! Which storage nodes are there: leases, pure.
//!
//! Safety rests on two clocks that only measure durations: a node stops serving SELF_FENCE_MS after it *sent* the last
//! heartbeat that was acknowledged, the leader removes it NODE_LEASE_MS after it *received* the last one. A new leader
//! does not know what its predecessor acknowledged, so it waits a whole lease before it removes anybody; a leader that
//! was itself held up cannot tell a silent node from its own deafness, so it adds that time to every lease.
//!
//! What should change in the routing table is computed from what is known now (`events`), never remembered: a proposal
//! that got lost is simply made again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use dfs_common::units::is_full;
use dfs_common::wire::meta::{Heartbeat, NODE_LEASE_MS, ResyncProgress};
use dfs_common::{Incarnation, RoutingTable, RoutingVersion, StorageId};

use super::super::clock::Moment;
use crate::command::ClusterEvent;

/// A pause of the leader's own ticker beyond this counts as deafness.
const STARVED_MS: u64 = 300;

/// Earlier processes of one node that are remembered, so that a late heartbeat of one is not taken for a restart.
const REPLACED_MAX: usize = 16;

/// Dead processes that are remembered.
const DEAD_MAX: usize = 1_024;

/// What a node said about itself last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::service) struct NodeReport {
    pub(in crate::service) total_bytes: u64,
    pub(in crate::service) used_bytes: u64,
    pub(in crate::service) fault: Option<String>,
    pub(in crate::service) resyncs: Vec<ResyncProgress>,
}

#[derive(Debug)]
struct Node {
    incarnation: Incarnation,
    address: SocketAddr,
    /// The node is taken for gone from here on.
    until: Moment,
    report: NodeReport,
    replaced: VecDeque<Incarnation>,
}

/// How the routing table showed a node last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    incarnation: Incarnation,
    alive: bool,
    /// The table's version when that became so.
    since: RoutingVersion,
}

#[derive(Debug)]
pub(in crate::service) struct Leases {
    /// When this leadership began, moved on by deafness.
    since: Moment,
    ticked: Moment,
    settled: bool,
    nodes: BTreeMap<StorageId, Node>,
    /// Processes whose kernel said that they are dead, and until when their late heartbeats are not believed.
    dead: BTreeMap<(StorageId, Incarnation), Moment>,
    shown: BTreeMap<StorageId, Shown>,
    /// Version of the table that `shown` is of.
    version: Option<RoutingVersion>,
}

impl Leases {
    pub(in crate::service) fn new(now: Moment, routing: &RoutingTable) -> Self {
        let mut leases = Self {
            since: now,
            ticked: now,
            settled: false,
            nodes: BTreeMap::new(),
            dead: BTreeMap::new(),
            shown: BTreeMap::new(),
            version: None,
        };
        leases.routing_changed(routing);
        leases
    }

    /// Notes since when a node stands in the table as it does. Before every judgement, since the table may be newer than
    /// the last time.
    fn routing_changed(&mut self, routing: &RoutingTable) {
        if self.version == Some(routing.version) {
            return;
        }
        self.version = Some(routing.version);
        for info in routing.nodes.values() {
            let same = self
                .shown
                .get(&info.id)
                .is_some_and(|shown| shown.incarnation == info.incarnation && shown.alive == info.alive);
            if !same {
                self.shown.insert(
                    info.id,
                    Shown {
                        incarnation: info.incarnation,
                        alive: info.alive,
                        since: routing.version,
                    },
                );
            }
        }
    }

    /// Takes a heartbeat in and says whether it is answered with a lease.
    ///
    /// No lease for a process that the table does not show as alive, nor for one that has not seen the table in which it
    /// (re)appeared: it would serve by a configuration in which it still was in sync.
    pub(in crate::service) fn heartbeat(
        &mut self,
        now: Moment,
        heartbeat: &Heartbeat,
        confirmed: bool,
        routing: &RoutingTable,
    ) -> bool {
        self.routing_changed(routing);
        let process = (heartbeat.node, heartbeat.incarnation);
        match self.dead.get(&process) {
            Some(&until) if now < until => return false,
            Some(_) => {
                self.dead.remove(&process);
            }
            None => {}
        }
        let report = NodeReport {
            total_bytes: heartbeat.total_bytes,
            used_bytes: heartbeat.used_bytes,
            fault: heartbeat.fault.clone(),
            resyncs: heartbeat.resyncs.clone(),
        };
        let until = now.after_ms(NODE_LEASE_MS);
        let node = self.nodes.entry(heartbeat.node).or_insert_with(|| Node {
            incarnation: heartbeat.incarnation,
            address: heartbeat.address,
            until,
            report: report.clone(),
            replaced: VecDeque::new(),
        });
        if node.replaced.contains(&heartbeat.incarnation) {
            return false;
        }
        if node.incarnation != heartbeat.incarnation {
            node.replaced.push_back(node.incarnation);
            if node.replaced.len() > REPLACED_MAX {
                node.replaced.pop_front();
            }
            node.incarnation = heartbeat.incarnation;
        }
        node.address = heartbeat.address;
        node.report = report;
        node.until = until;
        let registered = routing.nodes.get(&heartbeat.node).is_some_and(|info| {
            info.alive && info.incarnation == heartbeat.incarnation && info.address == heartbeat.address
        });
        let informed = self
            .shown
            .get(&heartbeat.node)
            .is_some_and(|shown| heartbeat.routing >= shown.since);
        registered && informed && confirmed && node.report.fault.is_none()
    }

    /// The kernel says that this process is dead: there is no lease to wait for.
    pub(in crate::service) fn died(&mut self, now: Moment, node: StorageId, incarnation: Incarnation) {
        while self.dead.len() >= DEAD_MAX {
            self.dead.pop_first();
        }
        self.dead.insert((node, incarnation), now.after_ms(NODE_LEASE_MS));
        if let Some(known) = self.nodes.get_mut(&node)
            && known.incarnation == incarnation
        {
            known.until = now;
        }
    }

    /// Nodes that should get no more data.
    pub(in crate::service) fn full(&self) -> BTreeSet<StorageId> {
        self.reports()
            .filter(|(_, report)| is_full(report.total_bytes, report.used_bytes))
            .map(|(node, _)| node)
            .collect()
    }

    /// Called regularly, after whatever waits has been taken in.
    pub(in crate::service) fn tick(&mut self, now: Moment) {
        let deaf_ms = now.since(self.ticked);
        if deaf_ms > STARVED_MS {
            self.since = self.since.after_ms(deaf_ms);
            for node in self.nodes.values_mut() {
                node.until = node.until.after_ms(deaf_ms);
            }
        }
        self.ticked = now;
    }

    /// What the routing table should learn, all in one batch.
    pub(in crate::service) fn events(&mut self, now: Moment, routing: &RoutingTable) -> Vec<ClusterEvent> {
        self.routing_changed(routing);
        // After a stop of everything, nodes come back one after the other. Were each judged alone, the first ones would
        // count as stale beside others that are not there any more; so a new leader first hears everybody out.
        self.settled |= now >= self.since.after_ms(NODE_LEASE_MS)
            || routing
                .nodes
                .values()
                .all(|info| !info.alive || self.nodes.contains_key(&info.id));
        let mut events = Vec::new();
        for info in routing.nodes.values().filter(|info| info.alive) {
            // Deaths too: a new leader may be the last to hear of a stop of everything.
            let dead = self.settled && self.dead.contains_key(&(info.id, info.incarnation));
            let gone = dead
                || match self.nodes.get(&info.id) {
                    None => now >= self.since.after_ms(NODE_LEASE_MS),
                    Some(node) => node.until <= now || node.report.fault.is_some(),
                };
            if gone {
                events.push(ClusterEvent::NodeDown {
                    node: info.id,
                    incarnation: info.incarnation,
                });
            }
        }
        for (&id, node) in &self.nodes {
            if node.until <= now || node.report.fault.is_some() {
                continue;
            }
            let (same, restarted) = routing.nodes.get(&id).map_or((false, false), |info| {
                (
                    info.alive && info.incarnation == node.incarnation && info.address == node.address,
                    info.alive && info.incarnation != node.incarnation,
                )
            });
            if !same && (self.settled || !restarted) {
                events.push(ClusterEvent::NodeUp {
                    node: id,
                    incarnation: node.incarnation,
                    address: node.address,
                });
            }
        }
        events
    }

    pub(in crate::service) fn reports(&self) -> impl Iterator<Item = (StorageId, &NodeReport)> {
        self.nodes.iter().map(|(&id, node)| (id, &node.report))
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::wire::meta::HEARTBEAT_MS;

    use super::*;
    use crate::chains;

    struct World {
        now: Moment,
        routing: RoutingTable,
        leases: Leases,
    }

    impl World {
        /// Three nodes in the table, their first heartbeats taken in.
        fn running() -> Self {
            let mut world = Self {
                now: Moment::from_ms(0),
                routing: RoutingTable::default(),
                leases: Leases::new(Moment::from_ms(0), &RoutingTable::default()),
            };
            for node in 1..=3 {
                assert!(!world.beat(node, 1), "not in the table yet");
            }
            world.fold();
            assert_eq!(world.routing.chains.len(), 6);
            world
        }

        fn beat(&mut self, node: u32, incarnation: u64) -> bool {
            let heartbeat = heartbeat(node, incarnation, self.routing.version);
            self.leases.heartbeat(self.now, &heartbeat, true, &self.routing)
        }

        fn fold(&mut self) -> Vec<ClusterEvent> {
            let events = self.leases.events(self.now, &self.routing);
            chains::apply(&mut self.routing, &events);
            events
        }

        fn pass(&mut self, ms: u64) {
            for _ in 0..ms / 25 {
                self.now = self.now.after_ms(25);
                self.leases.tick(self.now);
            }
        }
    }

    fn heartbeat(node: u32, incarnation: u64, routing: RoutingVersion) -> Heartbeat {
        Heartbeat {
            node: StorageId(node),
            incarnation: Incarnation(incarnation),
            address: SocketAddr::from(([127, 0, 0, 1], 7000 + node as u16)),
            routing,
            total_bytes: 100,
            used_bytes: 10,
            fault: None,
            resyncs: Vec::new(),
        }
    }

    fn down(node: u32, incarnation: u64) -> ClusterEvent {
        ClusterEvent::NodeDown {
            node: StorageId(node),
            incarnation: Incarnation(incarnation),
        }
    }

    #[test]
    fn a_silent_node_goes_when_its_lease_ends_and_not_before() {
        let mut world = World::running();
        for _ in 0..20 {
            world.pass(HEARTBEAT_MS);
            assert!(world.beat(1, 1) && world.beat(2, 1));
            if world.now < Moment::from_ms(NODE_LEASE_MS) {
                assert_eq!(world.fold(), []);
            }
        }
        assert_eq!(world.fold(), [down(3, 1)]);
        assert_eq!(world.fold(), [], "said once");
        assert!(!world.beat(3, 1), "no lease before the table shows it again");
        assert_eq!(world.fold().len(), 1);
        assert!(world.beat(3, 1));
    }

    #[test]
    fn a_dead_process_goes_at_once_and_its_late_heartbeats_bring_nothing_back() {
        let mut world = World::running();
        world.pass(HEARTBEAT_MS);
        world.leases.died(world.now, StorageId(2), Incarnation(7));
        assert_eq!(world.fold(), [], "that was another process");
        world.leases.died(world.now, StorageId(2), Incarnation(1));
        assert_eq!(world.fold(), [down(2, 1)]);
        assert!(!world.beat(2, 1), "sent before");
        assert_eq!(world.fold(), []);
        // The next process of the node.
        assert!(!world.beat(2, 2));
        assert_eq!(world.fold().len(), 1);
        assert!(world.beat(2, 2));
        // A kernel was misunderstood: who goes on saying that it lives is taken up again.
        world.leases.died(world.now, StorageId(3), Incarnation(1));
        assert_eq!(world.fold(), [down(3, 1)]);
        for _ in 0..=NODE_LEASE_MS / HEARTBEAT_MS {
            world.pass(HEARTBEAT_MS);
            world.beat(1, 1);
            world.beat(2, 2);
            world.beat(3, 1);
        }
        assert_eq!(world.fold().len(), 1);
        assert!(world.beat(3, 1));
    }

    #[test]
    fn a_new_leader_hears_everybody_out_before_it_believes_in_deaths() {
        let old = World::running();
        let mut world = World {
            leases: Leases::new(old.now, &old.routing),
            ..old
        };
        world.leases.died(world.now, StorageId(3), Incarnation(1));
        world.beat(1, 1);
        assert_eq!(world.fold(), [], "2 may be dead as well, and all will be back");
        world.beat(2, 2);
        world.beat(3, 2);
        let events = world.fold();
        assert_eq!(events.len(), 3, "{events:?}");
    }

    #[test]
    fn no_lease_without_quorum_nor_by_an_old_table() {
        let mut world = World::running();
        let late = heartbeat(1, 1, world.routing.version);
        assert!(!world.leases.heartbeat(world.now, &late, false, &world.routing));
        let blind = heartbeat(1, 1, RoutingVersion(0));
        assert!(!world.leases.heartbeat(world.now, &blind, true, &world.routing));
        assert!(world.leases.heartbeat(world.now, &late, true, &world.routing));
    }

    #[test]
    fn a_faulty_node_goes_at_once_and_stays_away_until_restarted() {
        let mut world = World::running();
        let mut faulty = heartbeat(2, 1, world.routing.version);
        faulty.fault = Some("write failed".into());
        assert!(!world.leases.heartbeat(world.now, &faulty, true, &world.routing));
        assert_eq!(world.fold(), [down(2, 1)]);
        assert!(!world.leases.heartbeat(world.now, &faulty, true, &world.routing));
        assert_eq!(world.fold(), []);
        assert!(!world.beat(2, 2));
        assert_eq!(world.fold().len(), 1);
        assert!(world.beat(2, 2));
        assert!(!world.beat(2, 1), "the old process");
        assert_eq!(world.fold(), [], "and it is not taken for a restart");
    }

    #[test]
    fn a_deaf_leader_blames_nobody() {
        let mut world = World::running();
        world.now = world.now.after_ms(10 * NODE_LEASE_MS);
        world.leases.tick(world.now);
        assert_eq!(world.fold(), []);
        world.pass(NODE_LEASE_MS);
        assert_eq!(world.fold().len(), 3, "but does not wait for ever");
    }

    #[test]
    fn a_new_leader_waits_a_lease_and_judges_restarts_together() {
        let mut world = World::running();
        let start = world.now;
        world.leases = Leases::new(start, &world.routing);
        world.pass(100);
        world.beat(1, 7);
        assert_eq!(world.fold(), [], "others may have restarted too");
        world.beat(2, 8);
        assert_eq!(world.fold(), []);
        world.pass(NODE_LEASE_MS - 125);
        world.beat(1, 7);
        world.beat(2, 8);
        assert_eq!(world.fold(), []);
        world.pass(25);
        let events = world.fold();
        assert_eq!(events.len(), 3, "two restarts and one away: {events:?}");
        for chain in world.routing.chains.values() {
            assert_eq!(chain.serving().count(), 1, "all were in sync, so one may serve");
        }
    }
}
