//! Which storage nodes are there: leases, pure.
//!
//! Safety rests on two clocks that only measure durations: a node stops serving SELF_FENCE_MS after it *sent* the last
//! heartbeat that was acknowledged, the leader removes it NODE_LEASE_MS after it *received* the last one. A new leader
//! does not know what its predecessor acknowledged, so it waits a whole lease before it removes anybody; a leader that
//! was itself held up cannot tell a silent node from its own deafness, so it adds that time to every lease.
//!
//! A node that is heard but does not hear (a cable cut in one direction) is no use either, so its lease counts from the last
//! heartbeat of which it has an answer. A node that is to stand aside (see `suspects`) is only taken out of its chains when
//! it has given its lease up, or that is over.
//!
//! Processes of one node are numbered in order (`Incarnation`). Whoever comes with a lower number than one that is known, is
//! replaced: its words come late, and this leader may never have heard of it.
//!
//! A member that is well, but not complete, serves no more when the last complete one goes. It has its lease, and answers reads at ONE until
//! it hears of that. That is harmless while the chain stands still, so nobody brings the chain back before it has heard, or its lease is over.
//!
//! What should change in the routing table is computed from what is known now (`events`), never remembered: a proposal
//! that got lost is simply made again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dfs_common::units::is_full;
use dfs_common::wire::meta::{DamageCount, HEARD_WITHIN_MS, Heartbeat, NODE_LEASE_MS, ResyncProgress};
use dfs_common::{
    ChainId, ChainInfo, ChainMember, Epoch, Incarnation, MemberState, RoutingTable, RoutingVersion, StorageId, StoreId,
};

use super::super::clock::Moment;
use super::suspects::Suspects;
use crate::chains;
use crate::command::ClusterEvent;

/// A pause of the leader's own ticker beyond this counts as deafness.
const STARVED_MS: u64 = 300;

/// Dead processes that are remembered.
const DEAD_MAX: usize = 1_024;

/// What a node said about itself last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub fault: Option<String>,
    pub resyncs: Vec<ResyncProgress>,
    pub damage: DamageCount,
}

#[derive(Debug)]
struct Node {
    incarnation: Incarnation,
    store: StoreId,
    address: SocketAddr,
    /// The node is taken for gone from here on.
    until: Moment,
    /// When it was last granted a lease by this leader.
    granted: Option<Moment>,
    /// It says that it has given its lease up.
    stands_aside: bool,
    /// The table that it has.
    routing: RoutingVersion,
    report: NodeReport,
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
pub struct Leases {
    /// When this leadership began, moved on by deafness.
    since: Moment,
    ticked: Moment,
    settled: bool,
    nodes: BTreeMap<StorageId, Node>,
    /// Processes whose kernel said that they are dead, and until when their late heartbeats are not believed.
    dead: BTreeMap<(StorageId, Incarnation), Moment>,
    suspects: Suspects,
    shown: BTreeMap<StorageId, Shown>,
    /// Processes whose end is on its way through consensus. They get no lease, whatever they say meanwhile: the chains go on
    /// without them as soon as it is decided, which they hear of later.
    leaving: BTreeSet<(StorageId, Incarnation)>,
    /// Chains in which nobody serves, each with its `revived`, and the table's version when that became so.
    stopped: BTreeMap<(ChainId, Epoch), RoutingVersion>,
    /// Version of the table that `shown` is of.
    version: Option<RoutingVersion>,
}

impl Leases {
    pub fn new(now: Moment, routing: &RoutingTable) -> Self {
        let mut leases = Self {
            since: now,
            ticked: now,
            settled: false,
            nodes: BTreeMap::new(),
            dead: BTreeMap::new(),
            suspects: Suspects::default(),
            shown: BTreeMap::new(),
            leaving: BTreeSet::new(),
            stopped: BTreeMap::new(),
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
        self.leaving.retain(|&(id, incarnation)| {
            let info = routing.nodes.get(&id);
            info.is_some_and(|info| info.alive && info.incarnation == incarnation)
        });
        let stopped = routing.chains.values().filter(|chain| chain.head().is_none());
        self.stopped = stopped
            .map(|chain| (chain.id, chain.revived))
            .map(|stop| (stop, self.stopped.get(&stop).copied().unwrap_or(routing.version)))
            .collect();
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
    /// (re)appeared: it would serve by a configuration in which it still was in sync. Nor for one that has not seen a table in
    /// which it stopped to serve, though it is well: the chain waits for it or for its lease's end.
    pub fn heartbeat(&mut self, now: Moment, heartbeat: &Heartbeat, confirmed: bool, routing: &RoutingTable) -> bool {
        self.routing_changed(routing);
        let process = (heartbeat.node, heartbeat.incarnation);
        let in_table = routing.nodes.get(&heartbeat.node).map(|info| info.incarnation);
        let heard = self.nodes.get(&heartbeat.node).map(|node| node.incarnation);
        if in_table.max(heard) > Some(heartbeat.incarnation) {
            return false;
        }
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
            damage: heartbeat.signs.damage,
        };
        let unanswered_ms = u64::from(heartbeat.signs.unanswered_ms);
        // Before this leader led it was for another to answer.
        let until = now.before_ms(unanswered_ms).max(self.since).after_ms(NODE_LEASE_MS);
        let node = self.nodes.entry(heartbeat.node).or_insert_with(|| Node {
            incarnation: heartbeat.incarnation,
            store: heartbeat.store,
            address: heartbeat.address,
            until,
            granted: None,
            stands_aside: false,
            routing: heartbeat.routing,
            report: report.clone(),
        });
        if node.incarnation != heartbeat.incarnation {
            node.incarnation = heartbeat.incarnation;
            node.until = until;
            node.granted = None;
            node.routing = heartbeat.routing;
        }
        node.store = heartbeat.store;
        node.address = heartbeat.address;
        node.report = report;
        node.routing = heartbeat.routing.max(node.routing);
        // Never less than before: heartbeats overtake each other, and may have waited at a deaf leader.
        node.until = until.max(node.until);
        node.stands_aside = heartbeat.signs.stands_aside;
        self.suspects.heartbeat(now, heartbeat);
        let hears = unanswered_ms <= HEARD_WITHIN_MS;
        let registered = routing.nodes.get(&heartbeat.node).is_some_and(|info| {
            info.alive && info.incarnation == heartbeat.incarnation && info.address == heartbeat.address
        });
        let informed = self
            .shown
            .get(&heartbeat.node)
            .is_some_and(|shown| heartbeat.routing >= shown.since)
            && self.stopped.iter().all(|(&(chain, _), &stopped)| {
                let waits = |chain: &ChainInfo| chain.state_of(heartbeat.node) == Some(MemberState::Waiting);
                heartbeat.routing >= stopped || !routing.chain(chain).is_some_and(waits)
            });
        let wanted = self.suspects.reason(heartbeat.node).is_none();
        let stays = !self.leaving.contains(&process);
        let lease = stays && registered && informed && confirmed && hears && wanted && node.report.fault.is_none();
        if lease {
            node.granted = Some(now);
        }
        lease
    }

    /// Chains because of which a node that came with another disk is not taken in.
    pub(in crate::service) fn refused(&self, now: Moment, routing: &RoutingTable, id: StorageId) -> Vec<ChainId> {
        match self.nodes.get(&id) {
            Some(node) if now < node.until => chains::refused(routing, id, node.store),
            _ => Vec::new(),
        }
    }

    /// Why a node is to stand aside, if it is.
    pub fn aside(&self, node: StorageId) -> Option<&str> {
        self.suspects.reason(node)
    }

    /// The kernel says that this process is dead: there is no lease to wait for.
    pub fn died(&mut self, now: Moment, node: StorageId, incarnation: Incarnation) {
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
    pub fn full(&self) -> BTreeSet<StorageId> {
        self.reports()
            .filter(|(_, report)| is_full(report.total_bytes, report.used_bytes))
            .map(|(node, _)| node)
            .collect()
    }

    /// Called regularly, after whatever waits has been taken in.
    pub fn tick(&mut self, now: Moment, routing: &RoutingTable) {
        let deaf_ms = now.since(self.ticked);
        if deaf_ms > STARVED_MS {
            self.since = self.since.after_ms(deaf_ms);
            for node in self.nodes.values_mut() {
                node.until = node.until.after_ms(deaf_ms);
            }
        }
        self.ticked = now;
        self.suspects.tick(now, routing);
    }

    /// Whether whatever lease it was granted is over for certain.
    fn lease_is_over(&self, now: Moment, node: Option<&Node>) -> bool {
        let granted = node.and_then(|node| node.granted);
        now >= granted.unwrap_or(self.since).max(self.since).after_ms(NODE_LEASE_MS)
    }

    /// Whether a node that is to stand aside serves no more for certain.
    fn stands_aside(&self, now: Moment, id: StorageId, node: &Node) -> bool {
        let Some(since) = self.suspects.aside_since(id) else {
            return false;
        };
        (node.stands_aside && now > since) || self.lease_is_over(now, Some(node))
    }

    /// Whether these events bring a chain back beside a member that served in it and may not have heard that it serves no more.
    fn too_early(&self, now: Moment, routing: &RoutingTable, events: &[ClusterEvent]) -> bool {
        let mut after = routing.clone();
        chains::apply(&mut after, events);
        // Another process of it has no lease, or one for the table in which it appeared.
        let stays = |id: StorageId| {
            let process = |table: &RoutingTable| {
                let info = table.nodes.get(&id).filter(|info| info.alive);
                info.map(|info| info.incarnation)
            };
            process(routing).is_some() && process(routing) == process(&after)
        };
        let unaware = |chain: &ChainInfo, member: &ChainMember| match member.state {
            MemberState::Serving => true,
            MemberState::Waiting => {
                let node = self.nodes.get(&member.node);
                let stopped = self.stopped.get(&(chain.id, chain.revived));
                stopped.is_some_and(|&stopped| node.is_none_or(|node| node.routing < stopped))
                    && !self.lease_is_over(now, node)
            }
            MemberState::Syncing | MemberState::LastServer | MemberState::Offline => false,
        };
        routing.chains.values().any(|chain| {
            after.chain(chain.id).is_some_and(|next| next.revived > chain.revived)
                && chain
                    .members
                    .iter()
                    .any(|member| stays(member.node) && unaware(chain, member))
        })
    }

    /// What the routing table should learn, all in one batch.
    pub fn events(&mut self, now: Moment, routing: &RoutingTable) -> Vec<ClusterEvent> {
        self.routing_changed(routing);
        // After a stop of everything, nodes come back one after the other. Were each judged alone, the first ones would
        // count as stale beside others that are not there any more; so a new leader first hears everybody out.
        self.settled |= now >= self.since.after_ms(NODE_LEASE_MS)
            || routing
                .nodes
                .values()
                .all(|info| !info.alive || self.nodes.contains_key(&info.id));
        let mut events = Vec::new();
        let mut returns = Vec::new();
        for info in routing.nodes.values().filter(|info| info.alive) {
            // Deaths too: a new leader may be the last to hear of a stop of everything.
            let dead = self.settled && self.dead.contains_key(&(info.id, info.incarnation));
            // Once said, it may be decided at any time, so it is said until it is.
            let gone = dead
                || self.leaving.contains(&(info.id, info.incarnation))
                || match self.nodes.get(&info.id) {
                    None => now >= self.since.after_ms(NODE_LEASE_MS),
                    Some(node) => {
                        node.until <= now || node.report.fault.is_some() || self.stands_aside(now, info.id, node)
                    }
                };
            if gone {
                self.leaving.insert((info.id, info.incarnation));
                events.push(ClusterEvent::NodeDown {
                    node: info.id,
                    incarnation: info.incarnation,
                });
            }
        }
        for (&id, node) in &self.nodes {
            if node.until <= now || node.report.fault.is_some() || self.suspects.reason(id).is_some() {
                continue;
            }
            let (same, restarted) = routing.nodes.get(&id).map_or((false, false), |info| {
                (
                    info.alive && info.incarnation == node.incarnation && info.address == node.address,
                    info.alive && info.incarnation != node.incarnation,
                )
            });
            if !same && (self.settled || !restarted) {
                if !chains::refused(routing, id, node.store).is_empty() {
                    // It stays away, but so does the process that the table knows.
                    events.extend(Self::replaced(&mut self.leaving, routing, id));
                    continue;
                }
                returns.push(ClusterEvent::NodeUp {
                    node: id,
                    incarnation: node.incarnation,
                    store: node.store,
                    address: node.address,
                });
            }
        }
        let gone = events.len();
        events.append(&mut returns);
        if events.len() > gone && self.too_early(now, routing, &events) {
            // All of them, since together they may do what none does alone. A heartbeat later they are let in.
            for event in events.split_off(gone) {
                if let ClusterEvent::NodeUp { node, incarnation, .. } = event
                    && routing
                        .nodes
                        .get(&node)
                        .is_some_and(|info| info.incarnation != incarnation)
                {
                    events.extend(Self::replaced(&mut self.leaving, routing, node));
                }
            }
        }
        events
    }

    /// The end of the process that the table knows, if that is not on its way yet.
    fn replaced(
        leaving: &mut BTreeSet<(StorageId, Incarnation)>,
        routing: &RoutingTable,
        id: StorageId,
    ) -> Option<ClusterEvent> {
        let info = routing.nodes.get(&id).filter(|info| info.alive)?;
        let (node, incarnation) = (id, info.incarnation);
        leaving
            .insert((node, incarnation))
            .then_some(ClusterEvent::NodeDown { node, incarnation })
    }

    pub fn reports(&self) -> impl Iterator<Item = (StorageId, &NodeReport)> {
        self.nodes.iter().map(|(&id, node)| (id, &node.report))
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::wire::meta::{HEARTBEAT_MS, Signs, Unheard};

    use super::*;

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
                self.leases.tick(self.now, &self.routing);
            }
        }
    }

    fn heartbeat(node: u32, incarnation: u64, routing: RoutingVersion) -> Heartbeat {
        Heartbeat {
            node: StorageId(node),
            incarnation: Incarnation(incarnation),
            store: StoreId([node as u8; 16]),
            address: SocketAddr::from(([127, 0, 0, 1], 7000 + node as u16)),
            routing,
            total_bytes: 100,
            used_bytes: 10,
            fault: None,
            resyncs: Vec::new(),
            retired: Vec::new(),
            signs: Signs::default(),
            settled: Vec::new(),
            rests: Vec::new(),
        }
    }

    fn down(node: u32, incarnation: u64) -> ClusterEvent {
        ClusterEvent::NodeDown {
            node: StorageId(node),
            incarnation: Incarnation(incarnation),
        }
    }

    #[test]
    fn a_node_whose_end_is_being_decided_gets_no_lease_by_a_heartbeat_that_comes_meanwhile() {
        let mut world = World::running();
        assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 1));
        for _ in 0..NODE_LEASE_MS / HEARTBEAT_MS {
            world.pass(HEARTBEAT_MS);
            assert!(world.beat(1, 1) && world.beat(2, 1));
        }
        let proposed = world.leases.events(world.now, &world.routing);
        assert_eq!(proposed, [down(3, 1)]);
        assert!(!world.beat(3, 1), "its chains may be going on without it by now");
        // A proposal that got lost is made again, though the node is back.
        assert_eq!(world.leases.events(world.now, &world.routing), [down(3, 1)]);
        chains::apply(&mut world.routing, &proposed);
        assert!(!world.beat(3, 1));
        assert_eq!(world.fold().len(), 1, "it is there again");
        assert!(world.beat(3, 1));
    }

    fn returns(events: &[ClusterEvent], id: u32) -> bool {
        let mut events = events.iter();
        events.any(|event| matches!(event, ClusterEvent::NodeUp { node, .. } if *node == StorageId(id)))
    }

    #[test]
    fn no_chain_is_brought_back_before_who_served_in_it_has_heard_that_it_stopped() {
        // It gets the new table; it says nothing more; it says that it is well, but never gets the table.
        for (told, silent) in [(true, false), (false, true), (false, false)] {
            let mut world = World::running();
            assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 1));
            let old = world.routing.version;
            world.leases.died(world.now, StorageId(1), Incarnation(1));
            world.leases.died(world.now, StorageId(2), Incarnation(1));
            assert_eq!(world.fold(), [down(1, 1), down(2, 1)]);
            let waits = |chain: &ChainInfo| chain.state_of(StorageId(3)) == Some(MemberState::Waiting);
            assert!(world.routing.chains.values().any(waits));
            world.beat(1, 2);
            assert_eq!(world.fold(), [], "storage-3 answers reads at ONE");
            let late = heartbeat(3, 1, old);
            assert!(!world.leases.heartbeat(world.now, &late, true, &world.routing));
            assert_eq!(world.fold(), []);
            if told {
                assert!(world.beat(3, 1));
                assert!(returns(&world.fold(), 1));
                continue;
            }
            while world.now < Moment::from_ms(NODE_LEASE_MS) {
                assert_eq!(world.fold(), []);
                world.beat(1, 2);
                if !silent {
                    assert!(!world.leases.heartbeat(world.now, &late, true, &world.routing));
                }
                world.pass(HEARTBEAT_MS);
            }
            let events = world.fold();
            assert!(returns(&events, 1), "{events:?}");
            assert_eq!(events.contains(&down(3, 1)), silent, "{events:?}");
        }
    }

    #[test]
    fn a_restart_does_not_bring_a_chain_back_beside_who_served_in_it() {
        let mut world = World::running();
        assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 1));
        world.leases.died(world.now, StorageId(2), Incarnation(1));
        assert_eq!(world.fold(), [down(2, 1)]);
        assert!(world.beat(1, 1) && world.beat(3, 1));
        // Where it was the head, the other one is not settled.
        world.beat(1, 2);
        assert_eq!(world.fold(), [down(1, 1)]);
        assert_eq!(world.fold(), []);
        world.beat(3, 1);
        assert!(returns(&world.fold(), 1));
    }

    #[test]
    fn a_late_heartbeat_of_an_earlier_process_is_no_restart_to_a_new_leader() {
        let mut world = World::running();
        world.pass(100);
        world.beat(3, 2);
        assert_eq!(world.fold().len(), 1, "storage-3 was restarted");
        assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 2));
        world.leases = Leases::new(world.now, &world.routing);
        assert!(!world.beat(3, 1));
        assert_eq!(world.fold(), [], "the living process keeps its place");
        assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 2));
        assert!(!world.beat(3, 1));
        assert_eq!(world.fold(), []);
        // What an earlier leader had said of it changes nothing either.
        let up = ClusterEvent::NodeUp {
            node: StorageId(3),
            incarnation: Incarnation(1),
            store: StoreId([3; 16]),
            address: SocketAddr::from(([127, 0, 0, 1], 7003)),
        };
        assert!(!chains::apply(&mut world.routing, &[up]));
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
    fn a_node_that_hears_nothing_goes_like_a_silent_one() {
        let mut world = World::running();
        let start = world.now;
        // Up to here it heard every answer.
        assert!(world.beat(3, 1));
        let mut gone_after = None;
        for _ in 0..12 {
            world.pass(HEARTBEAT_MS);
            assert!(world.beat(1, 1) && world.beat(2, 1));
            let mut deaf = heartbeat(3, 1, world.routing.version);
            deaf.signs.unanswered_ms = world.now.since(start) as u32;
            let lease = world.leases.heartbeat(world.now, &deaf, true, &world.routing);
            assert_eq!(lease, gone_after.is_none() && world.now.since(start) <= HEARD_WITHIN_MS);
            if world.fold() == [down(3, 1)] {
                gone_after = Some(world.now.since(start));
            }
        }
        assert_eq!(
            gone_after,
            Some(NODE_LEASE_MS),
            "and it does not come back while it is deaf"
        );
        assert!(!world.beat(3, 1));
        assert_eq!(world.fold().len(), 1, "now it hears again");
        assert!(world.beat(3, 1));
    }

    #[test]
    fn silence_under_another_leader_is_not_held_against_a_node() {
        let mut world = World::running();
        world.pass(600);
        world.leases = Leases::new(world.now, &world.routing);
        for node in 1..=3 {
            let mut searching = heartbeat(node, 1, world.routing.version);
            searching.signs.unanswered_ms = 2_000;
            let lease = world.leases.heartbeat(world.now, &searching, true, &world.routing);
            assert!(!lease, "not before it is known that it hears this one");
        }
        assert_eq!(world.fold(), []);
        world.pass(HEARTBEAT_MS);
        assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 1));
        assert_eq!(world.fold(), []);
    }

    #[test]
    fn who_stands_aside_leaves_when_it_serves_no_more() {
        for obeys in [true, false] {
            let mut world = World::running();
            let mut left = None;
            let mut asked = None;
            for _ in 0..20 {
                world.pass(HEARTBEAT_MS);
                let mut lonely = heartbeat(3, 1, world.routing.version);
                lonely.signs.unheard = [1, 2]
                    .map(|node| Unheard {
                        node: StorageId(node),
                        ms: 900,
                    })
                    .into();
                lonely.signs.stands_aside = obeys && asked.is_some();
                let lease = world.leases.heartbeat(world.now, &lonely, true, &world.routing);
                assert!(world.beat(1, 1) && world.beat(2, 1));
                if world.leases.aside(StorageId(3)).is_some() {
                    assert!(!lease);
                    asked.get_or_insert(world.now);
                }
                match world.fold()[..] {
                    [] => {}
                    [ref event] => {
                        assert_eq!(*event, down(3, 1));
                        assert!(left.is_none(), "once");
                        left = Some(world.now.since(asked.unwrap()));
                    }
                    ref more => panic!("{more:?}"),
                }
            }
            let left = left.unwrap();
            if obeys {
                assert!(left <= HEARTBEAT_MS, "{left}");
            } else {
                assert!(
                    (NODE_LEASE_MS - 2 * HEARTBEAT_MS..=NODE_LEASE_MS).contains(&left),
                    "{left}"
                );
            }
        }
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
        assert_eq!(
            world.fold(),
            [down(3, 1), down(2, 1)],
            "together; and 1 served beside them"
        );
        world.beat(1, 1);
        let events = world.fold();
        assert!(
            events.len() == 2 && returns(&events, 2) && returns(&events, 3),
            "{events:?}"
        );
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
    fn an_empty_disk_is_not_taken_for_the_last_copy() {
        let mut world = World::running();
        for node in [1, 2] {
            world.leases.died(world.now, StorageId(node), Incarnation(1));
            assert_eq!(world.fold(), [down(node, 1)]);
            chains::settle_all(&mut world.routing);
        }
        let mut empty = heartbeat(3, 2, world.routing.version);
        empty.store = StoreId([93; 16]);
        assert!(!world.leases.heartbeat(world.now, &empty, true, &world.routing));
        assert_eq!(world.fold(), [down(3, 1)], "the process with the old disk is gone");
        assert!(!world.leases.heartbeat(world.now, &empty, true, &world.routing));
        assert_eq!(world.fold(), [], "and this one does not count");
        assert_eq!(world.leases.refused(world.now, &world.routing, StorageId(3)).len(), 6);
        world.beat(1, 2);
        assert_eq!(world.fold().len(), 1, "others are taken in");
        // The old disk.
        assert!(!world.beat(3, 3));
        assert_eq!(world.leases.refused(world.now, &world.routing, StorageId(3)), []);
        assert_eq!(world.fold().len(), 1);
        assert!(world.beat(3, 3));
        for chain in world.routing.chains.values() {
            assert_eq!(chain.head(), Some(StorageId(3)));
        }
    }

    #[test]
    fn a_deaf_leader_blames_nobody() {
        let mut world = World::running();
        world.now = world.now.after_ms(10 * NODE_LEASE_MS);
        world.leases.tick(world.now, &world.routing);
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
