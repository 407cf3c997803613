//! Cluster events folded into the routing table.

use std::collections::BTreeMap;

use dfs_common::level::REPLICATION_TARGET;
use dfs_common::{
    ChainId, ChainInfo, ChainMember, ChainTable, ChainTableId, Epoch, MemberState, NodeInfo, RoutingTable, StorageId,
};

use super::next::{ChainEvent, next_chain};
use super::plan::plan_chains;
use crate::command::ClusterEvent;

/// Folds a batch into the table and returns whether anything changed; then the table's version has risen by one.
pub fn apply(routing: &mut RoutingTable, events: &[ClusterEvent]) -> bool {
    let mut changed = false;
    let mut moves = Vec::new();
    let mut resyncs: BTreeMap<ChainId, Vec<ChainEvent>> = BTreeMap::new();
    for event in events {
        match event {
            ClusterEvent::Resynced { chain, epoch, node } => {
                resyncs.entry(*chain).or_default().push(ChainEvent::Resynced {
                    node: *node,
                    epoch: *epoch,
                });
            }
            ClusterEvent::NodeUp { .. } | ClusterEvent::NodeDown { .. } => {
                let (touched, event) = register(routing, event);
                changed |= touched;
                moves.extend(event);
            }
        }
    }
    if !moves.is_empty() || !resyncs.is_empty() {
        for chain in routing.chains.values_mut() {
            let mut events = resyncs.remove(&chain.id).unwrap_or_default();
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

/// The node's own row. Returns whether it changed, and what that means for its chains.
fn register(routing: &mut RoutingTable, event: &ClusterEvent) -> (bool, Option<ChainEvent>) {
    match *event {
        ClusterEvent::NodeUp {
            node,
            incarnation,
            address,
        } => {
            let now = NodeInfo {
                id: node,
                address,
                incarnation,
                alive: true,
            };
            let before = routing.nodes.insert(node, now.clone());
            match before {
                None => (true, Some(ChainEvent::Up(node))),
                Some(before) if before == now => (false, None),
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
        ClusterEvent::Resynced { .. } => (false, None),
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
        let mut members: Vec<ChainMember> = members
            .into_iter()
            .map(|node| ChainMember {
                node,
                state: if routing.nodes.get(&node).is_some_and(|info| info.alive) {
                    MemberState::Serving
                } else {
                    MemberState::Offline
                },
            })
            .collect();
        members.sort_by_key(|member| member.state != MemberState::Serving);
        routing.chains.insert(
            id,
            ChainInfo {
                id,
                epoch: Epoch(1),
                members,
            },
        );
        chains.push(id);
    }
    routing.tables.insert(table, ChainTable { id: table, chains });
    routing.default_table = Some(table);
    true
}
