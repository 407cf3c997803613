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
    ChainId, ChainInfo, ChainMember, Epoch, Incarnation, MemberState, MetaId, RoutingTable, RoutingVersion, Scarce,
    StorageId, StoreId,
};

use super::super::clock::Moment;
use super::sessions::CONFIGURED_MAX;
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
    pub short: Option<Scarce>,
    /// Where its configuration has the metadata servers.
    pub configured: BTreeMap<MetaId, SocketAddr>,
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
            short: heartbeat.signs.short,
            configured: {
                let configured = heartbeat.configured.iter().take(CONFIGURED_MAX);
                configured.map(|(&id, &at)| (id, at)).collect()
            },
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

    /// The store of a node that is heard and reports a fault.
    pub(in crate::service) fn faulty(&self, now: Moment, id: StorageId) -> Option<StoreId> {
        let node = self.nodes.get(&id)?;
        (now < node.until && node.report.fault.is_some()).then_some(node.store)
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

    /// Whether this leader, or its whole machine, stood still and has not ticked since: nobody's silence means anything yet.
    pub(in crate::service) fn stood_still(&self, now: Moment) -> bool {
        now.since(self.ticked) > STARVED_MS
    }

    /// Called regularly, after whatever waits has been taken in.
    pub fn tick(&mut self, now: Moment, routing: &RoutingTable) {
        let deaf_ms = now.since(self.ticked);
        if deaf_ms > STARVED_MS {
            // Not beyond a lease from now: what was heard since it woke needs nothing added.
            self.since = self.since.after_ms(deaf_ms).min(now);
            let longest = now.after_ms(NODE_LEASE_MS);
            for node in self.nodes.values_mut() {
                node.until = node.until.after_ms(deaf_ms).min(longest.max(node.until));
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

    /// Nodes that may still serve somebody by a lease that they were granted, whatever became of them since.
    pub(in crate::service) fn may_serve(&self, now: Moment, routing: &RoutingTable) -> Vec<StorageId> {
        let nodes = routing.nodes.keys().chain(self.nodes.keys());
        let nodes: BTreeSet<_> = nodes.copied().collect();
        let over = |node: &StorageId| self.lease_is_over(now, self.nodes.get(node));
        nodes.into_iter().filter(|node| !over(node)).collect()
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
mod tests;
