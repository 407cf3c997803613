//! Which members should join and leave, as things are now. Nothing is remembered: what was begun is found again in the table, so a new
//! leader goes on where the last one was, and a plan that changed its mind undoes itself.
//!
//! Rules, in this order: a member that is draining, or stays away, is replaced; a chain with more members than it needs loses one;
//! a node with few chains takes over from a node with many. Somebody joins first and is brought up to date; only when three others serve
//! does anybody leave. A node takes in few chains at a time.

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::level::REPLICATION_TARGET;
use dfs_common::{ChainId, ChainInfo, Duty, Epoch, MemberState, NodeInfo, RoutingTable, StorageId};

use super::members::{MAX_MEMBERS, may_leave};

/// Chains that a node takes in at a time, and gives away by balance: more would only share its disk.
const MAX_ARRIVING: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Join {
        chain: ChainId,
        epoch: Epoch,
        node: StorageId,
    },
    Leave {
        chain: ChainId,
        epoch: Epoch,
        node: StorageId,
    },
    /// The head becomes the tail.
    Rotate { chain: ChainId, epoch: Epoch },
}

struct Planner<'a> {
    routing: &'a RoutingTable,
    /// Members that stay away so long that others are to take their place.
    away: &'a BTreeSet<StorageId>,
    full: &'a BTreeSet<StorageId>,
    /// Chains of each node, when all that is under way has ended.
    load: BTreeMap<StorageId, usize>,
    arriving: BTreeMap<StorageId, usize>,
}

/// What to do next. `away`: nodes that are missed for long; `full`: nodes that should get no more data.
#[must_use]
pub fn plan_moves(routing: &RoutingTable, away: &BTreeSet<StorageId>, full: &BTreeSet<StorageId>) -> Vec<Move> {
    let mut planner = Planner {
        routing,
        away,
        full,
        load: routing.nodes.keys().map(|&node| (node, 0)).collect(),
        arriving: BTreeMap::new(),
    };
    for chain in routing.chains.values() {
        for member in &chain.members {
            *planner.load.entry(member.node).or_default() += 1;
            if member.state != MemberState::Serving && planner.is_alive(member.node) {
                *planner.arriving.entry(member.node).or_default() += 1;
            }
        }
    }
    let mut moves = Vec::new();
    for chain in routing.chains.values() {
        if let Some(node) = planner.leaver(chain) {
            if let Some(load) = planner.load.get_mut(&node) {
                *load = load.saturating_sub(1);
            }
            if may_leave(&chain.members, node, &chain.complete().collect()) {
                let (chain, epoch) = (chain.id, chain.epoch);
                moves.push(Move::Leave { chain, epoch, node });
            }
        }
    }
    for chain in routing.chains.values() {
        let kept = chain.members.iter().filter(|member| !planner.goes(member.node)).count();
        let short = kept < REPLICATION_TARGET && chain.members.len() < MAX_MEMBERS && chain.head().is_some();
        if short && let Some(node) = planner.candidate(chain) {
            moves.push(planner.join(chain, node));
        }
    }
    while let Some((chain, from, to)) = planner.imbalance(&moves) {
        moves.push(planner.join(chain, to));
        *planner.load.entry(from).or_default() -= 1;
        // It gives away no more at a time than it would take in.
        *planner.arriving.entry(from).or_default() += 1;
    }
    moves
}

impl<'a> Planner<'a> {
    fn is_alive(&self, node: StorageId) -> bool {
        self.routing.nodes.get(&node).is_some_and(|info| info.alive)
    }

    /// Whether its place in every chain is to be taken by others.
    fn goes(&self, node: StorageId) -> bool {
        match self.routing.nodes.get(&node).map(|info| info.duty) {
            None | Some(Duty::Draining) => true,
            Some(Duty::Maintenance) => false,
            Some(Duty::Active) => self.away.contains(&node),
        }
    }

    fn may_take(&self, node: StorageId) -> bool {
        let active = self
            .routing
            .nodes
            .get(&node)
            .is_some_and(|info| info.alive && info.duty == Duty::Active);
        active && !self.full.contains(&node) && self.arriving.get(&node).copied().unwrap_or(0) < MAX_ARRIVING
    }

    /// The next member to leave, now or when enough others serve.
    fn leaver(&self, chain: &ChainInfo) -> Option<StorageId> {
        let mut going = chain.members.iter().rev().filter(|member| self.goes(member.node));
        if let Some(member) = going.next() {
            return Some(member.node);
        }
        // Of too many that serve, the one that has most to do; of equals the tail, which costs the chain least.
        if chain.serving().count() <= REPLICATION_TARGET {
            return None;
        }
        chain
            .serving()
            .max_by_key(|node| self.load.get(node).copied().unwrap_or(0))
    }

    fn candidate(&self, chain: &ChainInfo) -> Option<StorageId> {
        let others = self.routing.nodes.keys().copied();
        others
            .filter(|&node| chain.state_of(node).is_none() && self.may_take(node))
            .min_by_key(|node| (self.load.get(node).copied().unwrap_or(0), *node))
    }

    fn join(&mut self, chain: &ChainInfo, node: StorageId) -> Move {
        *self.load.entry(node).or_default() += 1;
        *self.arriving.entry(node).or_default() += 1;
        Move::Join {
            chain: chain.id,
            epoch: chain.epoch,
            node,
        }
    }

    /// A chain that should go from a node with many to one with few: two more, or nothing would be gained. Only chains in which nothing
    /// else goes on.
    fn imbalance(&self, moves: &[Move]) -> Option<(&'a ChainInfo, StorageId, StorageId)> {
        let load = |node: StorageId| self.load.get(&node).copied().unwrap_or(0);
        let to = self
            .routing
            .nodes
            .keys()
            .copied()
            .filter(|&node| self.may_take(node))
            .min_by_key(|&node| (load(node), node))?;
        let mut from: Vec<StorageId> = self
            .load
            .keys()
            .copied()
            .filter(|&node| load(node) >= load(to) + 2 && self.arriving.get(&node).copied().unwrap_or(0) < MAX_ARRIVING)
            .collect();
        from.sort_by_key(|&node| (std::cmp::Reverse(load(node)), node));
        from.into_iter().find_map(|from| {
            let calm = |chain: &&ChainInfo| {
                chain.members.len() == REPLICATION_TARGET
                    && chain.serving().count() == REPLICATION_TARGET
                    && chain.state_of(from).is_some()
                    && chain.state_of(to).is_none()
                    && chain.members.iter().all(|member| !self.goes(member.node))
                    && moves.iter().all(|planned| planned.chain() != chain.id)
            };
            let chain = self.routing.chains.values().find(calm)?;
            Some((chain, from, to))
        })
    }
}

/// A resting chain whose head has more chains to head than another member, so that one rotation, or
/// two, even that out. Nothing else may be going on. A node that was away comes back as a tail, so
/// after all have been restarted one by one they would all have the same head.
#[must_use]
pub fn plan_rotation(routing: &RoutingTable) -> Option<Move> {
    let ready = |info: &NodeInfo| info.alive && info.duty == Duty::Active;
    if !routing.nodes.values().all(ready) {
        return None;
    }
    let mut heads: BTreeMap<StorageId, usize> = BTreeMap::new();
    for chain in routing.chains.values() {
        if chain.members.iter().any(|member| member.state != MemberState::Serving) {
            return None;
        }
        *heads.entry(chain.head()?).or_default() += 1;
    }
    let count = |node: StorageId| heads.get(&node).copied().unwrap_or(0);
    let resting = || routing.chains.values().filter(|chain| chain.rest.is_resting());
    let next_has_fewer = |chain: &&ChainInfo| {
        let mut serving = chain.serving();
        matches!((serving.next(), serving.next()), (Some(head), Some(next)) if count(head) >= count(next) + 2)
    };
    let another_has_fewer = |chain: &&ChainInfo| {
        let head = chain.head().map_or(0, count);
        chain.serving().any(|member| head >= count(member) + 2)
    };
    let chain = resting()
        .find(next_has_fewer)
        .or_else(|| resting().find(another_has_fewer))?;
    Some(Move::Rotate {
        chain: chain.id,
        epoch: chain.epoch,
    })
}

impl Move {
    #[must_use]
    pub const fn chain(&self) -> ChainId {
        match *self {
            Self::Join { chain, .. } | Self::Leave { chain, .. } | Self::Rotate { chain, .. } => chain,
        }
    }
}
