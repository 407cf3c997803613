//! Staying in touch with the metadata group: heartbeats for the lease, and the routing table as soon as it changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dfs_common::wire::meta::{HEARTBEAT_MS, Heartbeat, MetaRequest, MetaResponse};

use super::node::Node;

/// A heartbeat that is not answered by then has missed its lease's purpose; the next one tries elsewhere.
const HEARTBEAT_DEADLINE: Duration = Duration::from_millis(500);

/// Heartbeats under way at a time: a lost one must not hold up the next.
const MAX_HEARTBEATS: usize = 4;

/// How long the metadata group may hold a request for a newer table.
const POLL_MS: u32 = 5_000;

const RETRY: Duration = Duration::from_millis(50);

/// Sends heartbeats until the server stops.
pub(crate) async fn heartbeats(node: Arc<Node>) {
    let under_way = Arc::new(AtomicUsize::new(0));
    let mut ticks = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if under_way.load(Ordering::Acquire) >= MAX_HEARTBEATS {
            continue;
        }
        under_way.fetch_add(1, Ordering::AcqRel);
        let (node, under_way) = (Arc::clone(&node), Arc::clone(&under_way));
        tokio::spawn(async move {
            beat(&node).await;
            under_way.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

async fn beat(node: &Arc<Node>) {
    let usage = node.store.usage();
    let resyncs = {
        let chains: Vec<_> = node.chains.read().values().cloned().collect();
        chains.iter().filter_map(|chain| chain.progress()).collect()
    };
    let request = MetaRequest::Heartbeat(Heartbeat {
        node: node.id,
        incarnation: node.incarnation,
        address: node.advertised,
        routing: node.routing().version,
        total_bytes: usage.total_bytes,
        used_bytes: usage.used_bytes,
        fault: node.current_fault(),
        resyncs,
    });
    let sent_ms = node.lease.now_ms();
    match node.network.meta(&request, HEARTBEAT_DEADLINE).await {
        Ok(MetaResponse::Heartbeat(answer)) => {
            // The table first: who was cut off for a lease has been replaced meanwhile, and must know that before it
            // serves again. The answer carries the table whenever the heartbeat's is out of date.
            if let Some(table) = answer.routing {
                node.learn(table);
            }
            *node.full.write() = answer.full;
            if answer.lease {
                node.lease.renew(sent_ms);
            }
        }
        Ok(MetaResponse::Failed(error)) | Err(error) => {
            tracing::debug!(%error, "a heartbeat was not acknowledged");
        }
        Ok(response) => tracing::warn!(?response, "a heartbeat was answered with something else"),
    }
}

/// Asks for newer tables, one request always waiting at the leader.
pub(crate) async fn routing(node: Arc<Node>) {
    while !node.stopping.is_cancelled() {
        let request = MetaRequest::Routing {
            known: node.routing().version,
            wait_ms: POLL_MS,
        };
        let deadline = Duration::from_millis(u64::from(POLL_MS) + 1_000);
        let answer = tokio::select! {
            () = node.stopping.cancelled() => return,
            // Asked anew: whoever answers may have been cut off from the others.
            () = node.refresh.notified() => fetch_now(&node).await,
            answer = node.network.meta(&request, deadline) => answer,
        };
        match answer {
            Ok(MetaResponse::Routing(Some(table))) => node.learn(table),
            Ok(MetaResponse::Routing(None)) => {}
            Ok(_) | Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn fetch_now(node: &Arc<Node>) -> dfs_common::Result<MetaResponse> {
    let request = MetaRequest::Routing {
        known: node.routing().version,
        wait_ms: 0,
    };
    node.network.meta(&request, HEARTBEAT_DEADLINE).await
}
