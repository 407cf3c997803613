//! What an administrator says of a node: checked against the table, so that nothing is lost by a word.

use dfs_common::level::REPLICATION_TARGET;
use dfs_common::wire::meta::NodeAction;
use dfs_common::{ChainId, Duty, Error, ErrorCode, MemberState, NodeName, Result, RoutingTable, StorageId};

use super::next::{ChainEvent, next_chain};
use super::way_out::way_out;

/// Carries out `action`; whether the table changed (then its version has risen).
///
/// # Errors
/// Why it is refused, and what to do instead.
pub fn administer(routing: &mut RoutingTable, node: StorageId, action: NodeAction) -> Result<bool> {
    let name = NodeName::from(node);
    let Some(info) = routing.nodes.get(&node) else {
        return Err(Error::new(
            ErrorCode::NotFound,
            format!("{name} is not in the cluster; see: dfs status"),
        ));
    };
    let before = info.duty;
    let changed = match action {
        NodeAction::Drain => {
            check_drain(routing, node)?;
            before != Duty::Draining
        }
        NodeAction::Undrain => before == Duty::Draining,
        NodeAction::BeginMaintenance if before == Duty::Draining => {
            return Err(refused(format!(
                "{name} is draining: it will be in no chain then; or first: dfs node undrain {name}"
            )));
        }
        NodeAction::BeginMaintenance => before != Duty::Maintenance,
        NodeAction::EndMaintenance => before == Duty::Maintenance,
        NodeAction::Remove => {
            check_remove(routing, node)?;
            routing.nodes.remove(&node);
            routing.version = routing.version.next();
            return Ok(true);
        }
        // The leader tells it the node; nothing of it stands in the table.
        NodeAction::Trust => return Ok(false),
        NodeAction::AcceptDataLoss => {
            accept_data_loss(routing, node)?;
            routing.version = routing.version.next();
            return Ok(true);
        }
    };
    if changed && let Some(info) = routing.nodes.get_mut(&node) {
        info.duty = match action {
            NodeAction::Drain => Duty::Draining,
            NodeAction::BeginMaintenance => Duty::Maintenance,
            _ => Duty::Active,
        };
        routing.version = routing.version.next();
    }
    Ok(changed)
}

fn refused(why: String) -> Error {
    Error::new(ErrorCode::Busy, why)
}

/// `chain 4`, `chains 1, 2, 5`.
fn listed(chains: &[ChainId]) -> String {
    let numbers: Vec<_> = chains.iter().map(ToString::to_string).collect();
    let s = if chains.len() == 1 { "" } else { "s" };
    format!("chain{s} {}", numbers.join(", "))
}

/// Chains of which this node has the only complete copy.
fn alone_in(routing: &RoutingTable, node: StorageId) -> Vec<ChainId> {
    let alone = routing.chains.values().filter(|chain| {
        let mut holders = chain
            .members
            .iter()
            .filter(|member| matches!(member.state, MemberState::Serving | MemberState::LastServer));
        holders.next().is_some_and(|member| member.node == node) && holders.next().is_none()
    });
    alone.map(|chain| chain.id).collect()
}

/// Chains that this node may bring back, and that nobody serves until then.
fn waiting_for(routing: &RoutingTable, node: StorageId) -> Vec<ChainId> {
    let chains = routing.chains.values();
    chains
        .filter(|chain| chain.state_of(node) == Some(MemberState::LastServer))
        .map(|chain| chain.id)
        .collect()
}

fn member_of(routing: &RoutingTable, node: StorageId) -> Vec<ChainId> {
    let chains = routing.chains.values();
    chains
        .filter(|chain| chain.state_of(node).is_some())
        .map(|chain| chain.id)
        .collect()
}

fn check_drain(routing: &RoutingTable, node: StorageId) -> Result<()> {
    let name = NodeName::from(node);
    let alone = alone_in(routing, node);
    if !alone.is_empty() {
        return Err(refused(format!(
            "{name} has the only complete copy of {}: bring the other members back and wait until they are in sync (dfs health detail), then drain it",
            listed(&alone)
        )));
    }
    let others = routing
        .nodes
        .values()
        .filter(|info| info.id != node && info.duty != Duty::Draining)
        .count();
    if !routing.chains.is_empty() && others < REPLICATION_TARGET {
        return Err(refused(format!(
            "without {name} there are {others} storage nodes, and every chain needs {REPLICATION_TARGET}: add one first (dfs node add)"
        )));
    }
    Ok(())
}

fn check_remove(routing: &RoutingTable, node: StorageId) -> Result<()> {
    let name = NodeName::from(node);
    let alone = alone_in(routing, node);
    if !alone.is_empty() {
        return Err(refused(format!(
            "{name} has the only complete copy of {}: bring it back, or if it is gone for good give up what only it has: dfs node accept-data-loss {name}",
            listed(&alone)
        )));
    }
    let waiting = waiting_for(routing, node);
    if !waiting.is_empty() {
        return Err(refused(format!(
            "{} may be brought back by {name}: bring it back, or if it is gone for good: dfs node accept-data-loss {name}",
            listed(&waiting)
        )));
    }
    let chains = member_of(routing, node);
    if !chains.is_empty() {
        return Err(refused(format!(
            "{name} is still in {}: dfs node drain {name}, wait until it is in none (dfs node show {name}), then remove it",
            listed(&chains)
        )));
    }
    if routing.nodes.get(&node).is_some_and(|info| info.alive) {
        return Err(refused(format!(
            "{name} is in no chain any more, but runs: stop it first, or it would join again at once"
        )));
    }
    Ok(())
}

fn accept_data_loss(routing: &mut RoutingTable, node: StorageId) -> Result<()> {
    let name = NodeName::from(node);
    let waiting = waiting_for(routing, node);
    if waiting.is_empty() {
        let stopped = member_of(routing, node)
            .into_iter()
            .find_map(|chain| routing.chain(chain).and_then(way_out).map(|out| (chain, out)));
        return Err(refused(match stopped {
            Some((chain, out)) => format!("no chain waits for {name}: chain {chain} comes back when {out}"),
            None => format!("no chain waits for {name}: there is nothing to give up"),
        }));
    }
    let mut events = vec![ChainEvent::Abandon(node)];
    // Whoever is there brings the chain back at once.
    let there = routing.nodes.values().filter(|info| info.alive && info.id != node);
    events.extend(there.map(|info| ChainEvent::Up(info.id)));
    for chain in waiting {
        if let Some(chain) = routing.chains.get_mut(&chain)
            && let Some(next) = next_chain(chain, &events)
        {
            *chain = next;
        }
    }
    Ok(())
}
