//! Cluster events folded into the routing table.

use std::collections::BTreeMap;

use dfs_common::level::REPLICATION_TARGET;
use dfs_common::{
    ChainId, ChainInfo, ChainMember, ChainTable, ChainTableId, Duty, Epoch, MemberState, NodeInfo, Rest, RoutingTable,
    StorageId, StoreId,
};

use super::next::{ChainEvent, next_chain};
use super::plan::plan_chains;
use crate::command::ClusterEvent;

/// Folds a batch into the table and returns whether anything changed; then the table's version has risen by one.
pub fn apply(routing: &mut RoutingTable, events: &[ClusterEvent]) -> bool {
    let mut changed = false;
    let mut moves = Vec::new();
    let mut reports: BTreeMap<ChainId, Vec<ChainEvent>> = BTreeMap::new();
    for event in events {
        let (chain, report) = match *event {
            ClusterEvent::Resynced { chain, epoch, node } => (chain, ChainEvent::Resynced { node, epoch }),
            ClusterEvent::Settled { chain, epoch } => (chain, ChainEvent::Settled { epoch }),
            ClusterEvent::Rest { chain, epoch, rest } => (chain, ChainEvent::Rest { epoch, rest }),
            ClusterEvent::Join { chain, epoch, node } => {
                let there = |info: &NodeInfo| info.alive && info.duty == Duty::Active;
                if !routing.nodes.get(&node).is_some_and(there) {
                    continue;
                }
                (chain, ChainEvent::Join { node, epoch })
            }
            ClusterEvent::Leave { chain, epoch, node } => (chain, ChainEvent::Leave { node, epoch }),
            ClusterEvent::Renew { chain, epoch } => (chain, ChainEvent::Renew { epoch }),
            ClusterEvent::Rotate { chain, epoch } => (chain, ChainEvent::Rotate { epoch }),
            ClusterEvent::NodeUp { .. } | ClusterEvent::NodeDown { .. } => {
                let (touched, event) = register(routing, event, &moves);
                changed |= touched;
                moves.extend(event);
                continue;
            }
        };
        reports.entry(chain).or_default().push(report);
    }
    if !moves.is_empty() || !reports.is_empty() {
        for chain in routing.chains.values_mut() {
            let mut events = reports.remove(&chain.id).unwrap_or_default();
            events.extend(&moves);
            if let Some(next) = next_chain(chain, &events) {
                *chain = next;
                changed = true;
            }
        }
    }
    changed |= create_first_table(routing);
    if changed {
        routing.version = routing.version.next();
    }
    changed
}

/// Chains of which the node's disk holds the only complete copy, `moves` considered. While there are any, another disk is not
/// taken for it.
fn last_copies(routing: &RoutingTable, node: StorageId, moves: &[ChainEvent]) -> Vec<ChainId> {
    let mut events = moves.to_vec();
    events.push(ChainEvent::Lost(node));
    let waits_for_it = |chain: &&ChainInfo| {
        let after = next_chain(chain, &events);
        after.as_ref().unwrap_or(chain).state_of(node) == Some(MemberState::LastServer)
    };
    routing
        .chains
        .values()
        .filter(waits_for_it)
        .map(|chain| chain.id)
        .collect()
}

/// Why a node that comes with this store is not taken in: the chains of which the store that the table knows has the only complete
/// copy.
#[must_use]
pub fn refused(routing: &RoutingTable, node: StorageId, store: StoreId) -> Vec<ChainId> {
    match routing.nodes.get(&node) {
        Some(known) if known.store != store => last_copies(routing, node, &[]),
        _ => Vec::new(),
    }
}

/// The node's own row. Returns whether it changed, and what that means for its chains. `moves`: what the batch says before.
fn register(routing: &mut RoutingTable, event: &ClusterEvent, moves: &[ChainEvent]) -> (bool, Option<ChainEvent>) {
    match *event {
        ClusterEvent::NodeUp {
            node,
            incarnation,
            store,
            address,
        } => {
            let known = routing.nodes.get(&node);
            if known.map(|info| info.incarnation) > Some(incarnation) {
                // An earlier process, heard late.
                return (false, None);
            }
            if let Some(known) = known
                && known.store != store
                && !last_copies(routing, node, moves).is_empty()
            {
                // Its old process is gone all the same.
                let known = ClusterEvent::NodeDown {
                    node,
                    incarnation: known.incarnation,
                };
                return register(routing, &known, moves);
            }
            let now = NodeInfo {
                id: node,
                address,
                incarnation,
                store,
                alive: true,
                duty: known.map_or(Duty::Active, |info| info.duty),
            };
            let before = routing.nodes.insert(node, now.clone());
            match before {
                None => (true, Some(ChainEvent::Up(node))),
                Some(before) if before == now => (false, None),
                Some(before) if before.store != store => (true, Some(ChainEvent::Lost(node))),
                Some(before) if before.incarnation != incarnation => (true, Some(ChainEvent::Restarted(node))),
                Some(before) if !before.alive => (true, Some(ChainEvent::Up(node))),
                Some(_) => (true, None),
            }
        }
        ClusterEvent::NodeDown { node, incarnation } => match routing.nodes.get_mut(&node) {
            // A late report about a process that is already replaced says nothing about the present one.
            Some(info) if info.incarnation == incarnation && info.alive => {
                info.alive = false;
                (true, Some(ChainEvent::Down(node)))
            }
            _ => (false, None),
        },
        ClusterEvent::Resynced { .. }
        | ClusterEvent::Join { .. }
        | ClusterEvent::Leave { .. }
        | ClusterEvent::Renew { .. }
        | ClusterEvent::Rotate { .. }
        | ClusterEvent::Settled { .. }
        | ClusterEvent::Rest { .. } => (false, None),
    }
}

/// The first table, as soon as there are enough nodes for whole chains. Later nodes do not change it: layouts of
/// existing files point into it.
fn create_first_table(routing: &mut RoutingTable) -> bool {
    if routing.default_table.is_some() {
        return false;
    }
    let nodes: Vec<StorageId> = routing.nodes.keys().copied().collect();
    let plan = plan_chains(&nodes, REPLICATION_TARGET);
    if plan.is_empty() {
        return false;
    }
    let table = ChainTableId(1);
    let first = routing.chains.keys().next_back().map_or(1, |id| id.0 + 1);
    let mut chains = Vec::with_capacity(plan.len());
    for (number, members) in (first..).zip(plan) {
        let id = ChainId(number);
        let is_alive = |node: &StorageId| routing.nodes.get(node).is_some_and(|info| info.alive);
        // There is nothing to lose yet: if they all went in the same breath, any of them may begin.
        let away = if members.iter().any(is_alive) {
            MemberState::Offline
        } else {
            MemberState::LastServer
        };
        let state = |node: &StorageId| if is_alive(node) { MemberState::Serving } else { away };
        let mut members: Vec<ChainMember> = members
            .into_iter()
            .map(|node| ChainMember::new(node, state(&node)))
            .collect();
        members.sort_by_key(|member| member.state != MemberState::Serving);
        routing.chains.insert(
            id,
            ChainInfo {
                id,
                epoch: Epoch(1),
                settled: true,
                rest: Rest::default(),
                headed: Epoch(1),
                revived: Epoch(1),
                members,
            },
        );
        chains.push(id);
    }
    routing.tables.insert(table, ChainTable { id: table, chains });
    routing.default_table = Some(table);
    true
}
