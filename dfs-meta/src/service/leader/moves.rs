//! Carries out what `chains::plan_moves` wants: soft state of the leader, pure.
//!
//! Who is to leave a chain while it serves there holds a lease, and could answer a read that is older than what the others
//! acknowledge without it. So it is told first to serve no more in this configuration (`retire`); it obeys for good, lets what is under
//! way end, and says so (`retired`); only then it leaves. Should the plan be another one by then, the chain gets a new epoch, in which it
//! serves again.

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::wire::meta::Heartbeat;
use dfs_common::{ChainId, ChainInfo, Epoch, MemberState, RoutingTable, StorageId};

use super::super::clock::Moment;
use crate::chains::{Move, plan_moves, plan_rotation};
use crate::command::ClusterEvent;

/// How long a member may be away before another node takes its place. Copying everything it has costs more than a restart.
const SPARE_AFTER_MS: u64 = 10 * 60 * 1_000;

/// How long nothing else must have happened before heads are spread.
const CALM_MS: u64 = 5_000;

/// How often it is looked what to move.
const PLAN_EVERY_MS: u64 = 100;

#[derive(Debug)]
pub(in crate::service) struct Moves {
    next: Moment,
    /// Since when all nodes are there, nothing moves, and nothing is copied.
    calm: Option<Moment>,
    /// Since when this leader misses a node.
    away: BTreeMap<StorageId, Moment>,
    retire: BTreeMap<StorageId, Vec<(ChainId, Epoch)>>,
    retired: BTreeMap<StorageId, Vec<(ChainId, Epoch)>>,
}

impl Moves {
    pub(in crate::service) const fn new(now: Moment) -> Self {
        Self {
            next: now,
            calm: None,
            away: BTreeMap::new(),
            retire: BTreeMap::new(),
            retired: BTreeMap::new(),
        }
    }

    pub(in crate::service) fn heard(&mut self, heartbeat: &Heartbeat) {
        if heartbeat.retired.is_empty() {
            self.retired.remove(&heartbeat.node);
        } else {
            self.retired.insert(heartbeat.node, heartbeat.retired.clone());
        }
    }

    /// Where the node is to serve no more.
    pub(in crate::service) fn retire(&self, node: StorageId) -> Vec<(ChainId, Epoch)> {
        self.retire.get(&node).cloned().unwrap_or_default()
    }

    pub(in crate::service) fn events(
        &mut self,
        now: Moment,
        routing: &RoutingTable,
        full: &BTreeSet<StorageId>,
    ) -> Vec<ClusterEvent> {
        if now < self.next {
            return Vec::new();
        }
        self.next = now.after_ms(PLAN_EVERY_MS);
        self.away
            .retain(|node, _| routing.nodes.get(node).is_some_and(|info| !info.alive));
        for info in routing.nodes.values().filter(|info| !info.alive) {
            self.away.entry(info.id).or_insert(now);
        }
        let missed = self
            .away
            .iter()
            .filter(|&(_, &since)| now.since(since) >= SPARE_AFTER_MS);
        let missed = missed.map(|(&node, _)| node).collect();
        self.retire.clear();
        let mut events = Vec::new();
        let moves = plan_moves(routing, &missed, full);
        for planned in self.or_rotation(now, moves, routing) {
            match planned {
                Move::Join { chain, epoch, node } => events.push(ClusterEvent::Join { chain, epoch, node }),
                Move::Leave { chain, epoch, node } => {
                    let serves =
                        routing.chain(chain).and_then(|info| info.state_of(node)) == Some(MemberState::Serving);
                    if !serves || self.has_retired(node, chain, epoch) {
                        events.push(ClusterEvent::Leave { chain, epoch, node });
                    } else {
                        self.retire.entry(node).or_default().push((chain, epoch));
                    }
                }
                Move::Rotate { chain, epoch } => {
                    let Some(head) = routing.chain(chain).and_then(ChainInfo::head) else {
                        continue;
                    };
                    if self.has_retired(head, chain, epoch) {
                        events.push(ClusterEvent::Rotate { chain, epoch });
                    } else {
                        self.retire.entry(head).or_default().push((chain, epoch));
                    }
                }
            }
        }
        self.renew(routing, &mut events);
        events
    }

    /// When there has been nothing else to do for a while, heads are spread.
    fn or_rotation(&mut self, now: Moment, moves: Vec<Move>, routing: &RoutingTable) -> Vec<Move> {
        let serves = |chain: &ChainInfo| chain.members.iter().all(|member| member.state == MemberState::Serving);
        let calm = moves.is_empty() && self.away.is_empty() && routing.chains.values().all(serves);
        if !calm {
            self.calm = None;
            return moves;
        }
        let since = *self.calm.get_or_insert(now);
        if now.since(since) < CALM_MS {
            return moves;
        }
        plan_rotation(routing).into_iter().collect()
    }

    fn has_retired(&self, node: StorageId, chain: ChainId, epoch: Epoch) -> bool {
        self.retired
            .get(&node)
            .is_some_and(|retired| retired.contains(&(chain, epoch)))
    }

    /// Members that gave up serving for nothing.
    fn renew(&self, routing: &RoutingTable, events: &mut Vec<ClusterEvent>) {
        for (&node, retired) in &self.retired {
            for &(chain, epoch) in retired {
                let present = routing
                    .chain(chain)
                    .is_some_and(|info| info.epoch == epoch && info.state_of(node) == Some(MemberState::Serving));
                let leaves = ClusterEvent::Leave { chain, epoch, node };
                let rotates = ClusterEvent::Rotate { chain, epoch };
                if present && !events.contains(&leaves) && !events.contains(&rotates) {
                    events.push(ClusterEvent::Renew { chain, epoch });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use dfs_common::wire::meta::{NodeAction, Signs};
    use dfs_common::{Incarnation, RoutingVersion, StoreId};

    use super::*;
    use crate::chains;

    fn up(node: u32) -> ClusterEvent {
        ClusterEvent::NodeUp {
            node: StorageId(node),
            incarnation: Incarnation(1),
            store: StoreId([node as u8; 16]),
            address: SocketAddr::from(([127, 0, 0, 1], 1000 + node as u16)),
        }
    }

    fn says(node: StorageId, retired: Vec<(ChainId, Epoch)>) -> Heartbeat {
        Heartbeat {
            configured: std::collections::BTreeMap::new(),
            sessions: 0,
            node,
            incarnation: Incarnation(1),
            store: StoreId([node.0 as u8; 16]),
            address: SocketAddr::from(([127, 0, 0, 1], 1000)),
            routing: RoutingVersion(1),
            total_bytes: 1,
            used_bytes: 0,
            fault: None,
            resyncs: Vec::new(),
            settled: Vec::new(),
            rests: Vec::new(),
            retired,
            signs: Signs::default(),
        }
    }

    struct World {
        now: Moment,
        routing: RoutingTable,
        moves: Moves,
    }

    impl World {
        fn fold(&mut self) -> Vec<ClusterEvent> {
            self.now = self.now.after_ms(PLAN_EVERY_MS);
            let events = self.moves.events(self.now, &self.routing, &BTreeSet::new());
            chains::apply(&mut self.routing, &events);
            events
        }

        /// Every node is restarted, one after the other, and brought up to date.
        fn restart_all(&mut self) {
            let syncing = |info: &ChainInfo| {
                let (chain, epoch) = (info.id, info.epoch);
                let node = info
                    .members
                    .iter()
                    .find(|member| member.state == MemberState::Syncing)?
                    .node;
                Some(ClusterEvent::Resynced { chain, epoch, node })
            };
            for node in 1..=3 {
                let incarnation = Incarnation(2);
                let ClusterEvent::NodeUp { store, address, .. } = up(node) else {
                    continue;
                };
                let node = StorageId(node);
                chains::apply(
                    &mut self.routing,
                    &[ClusterEvent::NodeUp {
                        node,
                        incarnation,
                        store,
                        address,
                    }],
                );
                while let Some(resynced) = self.routing.chains.values().find_map(syncing) {
                    chains::apply(&mut self.routing, &[resynced]);
                }
            }
        }

        fn all_rest(&mut self) {
            let rest = |chain: &ChainInfo| ClusterEvent::Rest {
                chain: chain.id,
                epoch: chain.epoch,
                rest: dfs_common::Rest(1),
            };
            let settled = |chain: &ChainInfo| ClusterEvent::Settled {
                chain: chain.id,
                epoch: chain.epoch,
            };
            let both = self
                .routing
                .chains
                .values()
                .flat_map(|chain| [settled(chain), rest(chain)]);
            let events: Vec<_> = both.collect();
            chains::apply(&mut self.routing, &events);
        }

        /// Chains that each of the three nodes heads.
        fn heads(&self) -> [usize; 3] {
            [1, 2, 3].map(|node| {
                let heads = self
                    .routing
                    .chains
                    .values()
                    .filter(|chain| chain.head() == Some(StorageId(node)));
                heads.count()
            })
        }

        /// A fourth node drains with one chain to give away: it has joined, and the others serve.
        fn with_four() -> (Self, ChainId, Epoch) {
            let mut routing = RoutingTable::default();
            chains::apply(&mut routing, &[up(1), up(2), up(3)]);
            chains::apply(&mut routing, &[up(4)]);
            let now = Moment::from_ms(0);
            let mut world = Self {
                now,
                routing,
                moves: Moves::new(now),
            };
            let joins = world.fold();
            let [ClusterEvent::Join { chain, node, .. }, ..] = joins[..] else {
                panic!("{joins:?}")
            };
            let epoch = world.routing.chains[&chain].epoch;
            chains::apply(&mut world.routing, &[ClusterEvent::Resynced { chain, epoch, node }]);
            let epoch = world.routing.chains[&chain].epoch;
            assert_eq!(world.routing.chains[&chain].serving().count(), 4);
            (world, chain, epoch)
        }

        fn asked(&self) -> Vec<(StorageId, ChainId, Epoch)> {
            let ask = |node| {
                let retire = self.moves.retire(StorageId(node)).into_iter();
                retire.map(move |(chain, epoch)| (StorageId(node), chain, epoch))
            };
            (1..=4).flat_map(ask).collect()
        }
    }

    #[test]
    fn who_serves_leaves_only_when_it_has_given_that_up() {
        let (mut world, chain, epoch) = World::with_four();
        for _ in 0..3 {
            let events = world.fold();
            assert!(
                events.iter().all(|event| !matches!(event, ClusterEvent::Leave { .. })),
                "{events:?}"
            );
        }
        let asked = world.asked();
        let [(node, of, at)] = asked[..] else {
            panic!("{asked:?}")
        };
        assert_eq!((of, at), (chain, epoch));
        world.moves.heard(&says(node, vec![(chain, Epoch(epoch.0 - 1))]));
        world.fold();
        assert_eq!(
            world.routing.chains[&chain].members.len(),
            4,
            "that was another configuration"
        );
        world.moves.heard(&says(node, vec![(chain, epoch)]));
        let leave = ClusterEvent::Leave { chain, epoch, node };
        assert!(world.fold().contains(&leave));
        assert_eq!(world.routing.chains[&chain].state_of(node), None);
        assert_eq!(world.asked(), []);
    }

    #[test]
    fn who_gave_up_for_nothing_serves_in_a_new_configuration() {
        let (mut world, chain, epoch) = World::with_four();
        world.fold();
        let (node, ..) = world.asked()[0];
        let another = (1..=4)
            .map(StorageId)
            .find(|&other| other != node && world.routing.chains[&chain].state_of(other).is_some())
            .unwrap();
        chains::administer(&mut world.routing, another, NodeAction::Drain).unwrap();
        world.moves.heard(&says(node, vec![(chain, epoch)]));
        assert!(world.fold().contains(&ClusterEvent::Renew { chain, epoch }));
        assert_eq!(world.routing.chains[&chain].state_of(node), Some(MemberState::Serving));
        assert!(world.routing.chains[&chain].epoch > epoch);
    }

    #[test]
    fn heads_are_spread_again_when_all_is_calm_and_no_faster() {
        let mut routing = RoutingTable::default();
        chains::apply(&mut routing, &[up(1), up(2), up(3)]);
        let now = Moment::from_ms(0);
        let mut world = World {
            now,
            routing,
            moves: Moves::new(now),
        };
        assert_eq!(world.heads(), [2, 2, 2]);
        world.restart_all();
        let uneven = world.heads();
        assert_ne!(uneven, [2, 2, 2]);
        for _ in 0..100 {
            assert_eq!(world.fold(), [], "no chain rests");
        }
        let mut rotations = 0;
        for _ in 0..40 {
            world.all_rest();
            assert!(world.fold().len() <= 1);
            for (node, chain, epoch) in world.asked() {
                assert_eq!(world.routing.chains[&chain].head(), Some(node));
                world.moves.heard(&says(node, vec![(chain, epoch)]));
                let before = world.routing.chains[&chain].clone();
                assert_eq!(world.fold(), [ClusterEvent::Rotate { chain, epoch }]);
                world.moves.heard(&says(node, Vec::new()));
                let after = &world.routing.chains[&chain];
                assert_eq!(
                    (after.head(), after.serving().count(), after.settled),
                    (before.serving().nth(1), 3, true)
                );
                assert!(after.epoch > before.epoch);
                assert!(after.members.iter().all(|member| member.complete_until == before.epoch));
                rotations += 1;
            }
        }
        assert_eq!(world.heads(), [2, 2, 2], "after {rotations}");
        assert!(rotations <= 9, "{rotations}");
    }

    #[test]
    fn a_spare_is_taken_in_when_somebody_is_missed_for_long() {
        let mut routing = RoutingTable::default();
        chains::apply(&mut routing, &[up(1), up(2), up(3)]);
        let now = Moment::from_ms(0);
        let mut world = World {
            now,
            routing,
            moves: Moves::new(now),
        };
        let down = ClusterEvent::NodeDown {
            node: StorageId(2),
            incarnation: Incarnation(1),
        };
        chains::apply(&mut world.routing, &[down]);
        chains::apply(&mut world.routing, &[up(4)]);
        assert_eq!(world.fold(), []);
        world.now = world.now.after_ms(SPARE_AFTER_MS - 200);
        assert_eq!(world.fold(), []);
        world.now = world.now.after_ms(200);
        let joins = world.fold();
        assert_eq!(joins.len(), 2, "few at a time: {joins:?}");
        assert!(
            joins
                .iter()
                .all(|event| matches!(event, ClusterEvent::Join { node, .. } if *node == StorageId(4)))
        );
    }
}
