//! `dfs status`, as the leader knows it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use dfs_common::wire::meta::{
    ClusterStatus, MetaResponse, MetaStatus, OLD_ADDRESSES_MAX, OldAddress, WRONG_CLOCKS_MAX, WrongClock,
};
use dfs_common::{MetaId, NodeName, Result, RoutingTable, SessionId};

use super::leader::Configured;
use super::owner::Ask;
use super::shared::Shared;
use crate::consensus::SelfReport;

/// A metadata server that answered within this is alive.
pub(super) const ALIVE_WITHIN_MS: u64 = 2_000;

/// The metadata servers' first, then the clients'.
fn wrong_clocks(shared: &Shared, of_sessions: &BTreeMap<SessionId, i64>) -> Result<Vec<WrongClock>> {
    const MS: i64 = 1_000_000;
    let servers = shared.clock.wrong(shared.me).into_iter();
    let mut wrong: Vec<_> = servers
        .map(|(id, ahead_ns)| WrongClock {
            whose: NodeName::from(id).to_string(),
            ahead_ms: ahead_ns / MS,
        })
        .collect();
    if !of_sessions.is_empty() {
        let sessions = shared.state.sessions()?.into_iter();
        wrong.extend(sessions.filter_map(|info| {
            Some(WrongClock {
                ahead_ms: of_sessions.get(&info.session)? / MS,
                whose: info.label,
            })
        }));
    }
    wrong.truncate(WRONG_CLOCKS_MAX);
    Ok(wrong)
}

/// Metadata servers, storage nodes and clients whose configuration names an address that a metadata
/// server has left.
fn old_addresses(
    shared: &Shared,
    configured: &Configured,
    told: &BTreeMap<MetaId, SelfReport>,
    routing: &RoutingTable,
) -> Result<Vec<OldAddress>> {
    let servers = told
        .iter()
        .map(|(&id, told)| (NodeName::from(id).to_string(), stale(&told.service.configured, routing)));
    let nodes = configured
        .nodes
        .iter()
        .map(|(&id, configured)| (NodeName::from(id).to_string(), stale(configured, routing)));
    let mut found: Vec<_> = servers.chain(nodes).filter(|(_, stale)| !stale.is_empty()).collect();
    let old: BTreeMap<_, _> = configured
        .sessions
        .iter()
        .map(|(&session, configured)| (session, stale(configured, routing)))
        .filter(|(_, stale)| !stale.is_empty())
        .collect();
    if !old.is_empty() {
        let sessions = shared.state.sessions()?.into_iter();
        found.extend(sessions.filter_map(|info| Some((info.label, old.get(&info.session)?.clone()))));
    }
    let each = found.into_iter().flat_map(|(whose, stale)| {
        stale.into_iter().map(move |server| OldAddress {
            whose: whose.clone(),
            server,
        })
    });
    Ok(each.take(OLD_ADDRESSES_MAX).collect())
}

/// Servers that are not where this configuration has them, of those that were moved. (Of others a
/// configuration may have another address by intent, in another network.)
fn stale(configured: &BTreeMap<MetaId, SocketAddr>, routing: &RoutingTable) -> Vec<MetaId> {
    let moved = routing.moved.iter();
    moved
        .filter(|(id, place)| configured.get(id).is_some_and(|&at| at != place.address))
        .map(|(&id, _)| id)
        .collect()
}

pub(super) async fn status(shared: &Arc<Shared>) -> Result<MetaResponse> {
    let soft = shared.ask(Ask::Status).await?;
    let counts = shared.state.counts();
    let engine = shared.consensus.status();
    let routing = Arc::clone(&shared.routing.borrow());
    let meta: BTreeMap<_, _> = routing
        .meta
        .iter()
        .map(|(&id, &address)| {
            let status = MetaStatus {
                address,
                matched_log_index: engine.matched.get(&id).copied().flatten(),
                room: engine.told.get(&id).map(|told| told.room),
                alive: id == shared.me || engine.answered_ms_ago.get(&id).is_some_and(|&ms| ms < ALIVE_WITHIN_MS),
            };
            (id, status)
        })
        .collect();
    // What a server that is gone said of itself counts no more.
    let mut told = engine.told;
    told.retain(|id, _| meta.get(id).is_some_and(|status| status.alive));
    let old_addresses = old_addresses(shared, &soft.configured, &told, &routing)?;
    Ok(MetaResponse::Status(Box::new(ClusterStatus {
        cluster: shared.cluster,
        leader: engine.leadership.leader,
        term: engine.leadership.term,
        log_index: engine.last_log_index.unwrap_or(0),
        meta,
        storage: soft.storage,
        routing: routing.as_ref().clone(),
        resyncs: soft.resyncs,
        sessions: soft.sessions,
        inodes: counts.inodes,
        orphans: counts.orphans,
        clocks: wrong_clocks(shared, &soft.wrong_clocks)?,
        old_addresses,
    })))
}
