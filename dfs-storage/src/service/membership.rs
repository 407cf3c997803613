//! Staying in touch with the metadata group: heartbeats for the lease, and the routing table as soon as it changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dfs_common::wire::Lane;
use dfs_common::wire::meta::{DamageCount, HEARD_WITHIN_MS, HEARTBEAT_MS, Heartbeat, MetaRequest, MetaResponse, Signs};
use dfs_common::wire::storage::StorageRequest;
use dfs_common::{Incarnation, StorageId};

use super::node::Node;

/// A heartbeat that is not answered by then has missed its lease's purpose; the next one tries elsewhere.
const HEARTBEAT_DEADLINE: Duration = Duration::from_millis(500);

/// Heartbeats under way at a time: a lost one must not hold up the next.
const MAX_HEARTBEATS: usize = 4;

/// How late an answer of a neighbour may be on a busy machine and still count, and how many are under way meanwhile.
const QUESTION_DEADLINE: Duration = Duration::from_secs(1);
const MAX_QUESTIONS: usize = 10;

/// How long the metadata group may hold a request for a newer table.
const POLL_MS: u32 = 5_000;

const RETRY: Duration = Duration::from_millis(50);

/// Sends heartbeats until the server stops.
pub(crate) async fn heartbeats(node: Arc<Node>) {
    let under_way = Arc::new(AtomicUsize::new(0));
    let answered = Arc::new(AtomicU64::new(node.lease.now_ms()));
    let mut ticks = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            _ = ticks.tick() => {}
            () = node.beat_now.notified() => {}
        }
        if under_way.load(Ordering::Acquire) >= MAX_HEARTBEATS {
            continue;
        }
        under_way.fetch_add(1, Ordering::AcqRel);
        let (node, under_way, answered) = (Arc::clone(&node), Arc::clone(&under_way), Arc::clone(&answered));
        tokio::spawn(async move {
            beat(&node, &answered).await;
            under_way.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// `answered`: when the last heartbeat was sent that a leader answered, else when the first was to be sent.
async fn beat(node: &Arc<Node>, answered: &AtomicU64) {
    let usage = node.store.usage();
    let table = node.routing();
    let settled = table
        .chains
        .values()
        .filter(|config| !config.settled)
        .filter(|config| {
            node.chain(config.id)
                .is_some_and(|chain| chain.settled_in() == config.epoch)
        })
        .map(|config| (config.id, config.epoch))
        .collect();
    let rests = table
        .chains
        .values()
        .filter_map(|config| {
            let rest = node.chain(config.id)?.rest_in(config.epoch);
            (rest > config.rest).then_some((config.id, config.epoch, rest))
        })
        .collect();
    let sent_ms = node.lease.now_ms();
    let chains: Vec<_> = node.chains.read().values().cloned().collect();
    let resyncs = chains.iter().filter_map(|chain| chain.progress()).collect();
    let retired = chains
        .iter()
        .filter_map(|chain| chain.retired(sent_ms).map(|epoch| (chain.id(), epoch)))
        .collect();
    let unanswered_ms = sent_ms.saturating_sub(answered.load(Ordering::Acquire));
    let damage = node.damage.counts();
    let signs = Signs {
        unanswered_ms: u32::try_from(unanswered_ms).unwrap_or(u32::MAX),
        stands_aside: node.lease.is_aside(),
        unheard: node.neighbours.lock().unheard(sent_ms),
        syncs: node.syncs.pace(),
        writes: node.writes.pace(),
        damage: DamageCount {
            open: damage.open + node.aside.count(),
            lost: damage.lost,
        },
        short: node.store.shortage(),
    };
    let request = MetaRequest::Heartbeat(Heartbeat {
        sessions: node.sessions.mark(),
        configured: node.network.configured(),
        node: node.id,
        incarnation: node.incarnation,
        store: node.store.id(),
        address: node.advertised,
        routing: table.version,
        total_bytes: usage.total_bytes,
        used_bytes: usage.used_bytes,
        fault: node.current_fault(),
        resyncs,
        settled,
        rests,
        retired,
        signs,
    });
    match node.network.meta(&request, HEARTBEAT_DEADLINE).await {
        Ok(MetaResponse::Heartbeat(answer)) => {
            answered.fetch_max(sent_ms, Ordering::AcqRel);
            // The table first: who was cut off for a lease has been replaced meanwhile, and must know that before it
            // serves again. The answer carries the table whenever the heartbeat's is out of date.
            if let Some(table) = answer.routing {
                node.learn(table);
            }
            *node.full.write() = answer.full;
            // Before the lease: with it this node serves, and must know whom.
            if let Some(list) = answer.sessions
                && node.sessions.learn(list)
            {
                // Others may wait for this node to have heard of an eviction.
                node.beat_now.notify_one();
            }
            for (chain, epoch) in answer.retire {
                if let Some(chain) = node.chain(chain).filter(|chain| chain.epoch() == epoch) {
                    chain.retire(epoch, node.lease.now_ms());
                }
            }
            if answer.lease {
                node.lease.renew(sent_ms);
            } else if answer.stand_aside {
                if node.lease.stand_aside(node.lease.now_ms()) {
                    tracing::warn!("asked to stand aside for a while; `dfs health` says why");
                    node.beat_now.notify_one();
                }
            } else if unanswered_ms > HEARD_WITHIN_MS {
                // The leader did not know yet that it is heard.
                node.beat_now.notify_one();
            }
        }
        Ok(MetaResponse::Failed(error)) | Err(error) => {
            tracing::debug!(%error, "a heartbeat was not acknowledged");
        }
        Ok(MetaResponse::ReopenStore { store }) if store == node.store.id() && node.current_fault().is_some() => {
            tracing::warn!("an administrator trusts the store: it is opened again");
            node.trusted.cancel();
        }
        Ok(response) => tracing::warn!(?response, "a heartbeat was answered with something else"),
    }
}

/// Asks whoever is in a chain with this node, whether it is heard there. A cut cable between two nodes shows nowhere else, since both
/// may well hear the metadata group.
pub(crate) async fn neighbours(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut under_way: BTreeMap<(StorageId, Incarnation), Arc<AtomicUsize>> = BTreeMap::new();
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let table = node.routing();
        let neighbours: BTreeMap<StorageId, Incarnation> = table
            .chains
            .values()
            .filter(|chain| chain.state_of(node.id).is_some())
            .flat_map(|chain| chain.members.iter().map(|member| member.node))
            .filter(|&other| other != node.id)
            .filter_map(|other| Some((other, table.nodes.get(&other)?.incarnation)))
            .collect();
        node.neighbours
            .lock()
            .ask(node.lease.now_ms(), &neighbours, HEARTBEAT_MS);
        under_way.retain(|asked, _| neighbours.get(&asked.0) == Some(&asked.1));
        for (other, process) in neighbours {
            let asking = Arc::clone(under_way.entry((other, process)).or_default());
            if asking.load(Ordering::Acquire) >= MAX_QUESTIONS {
                continue;
            }
            asking.fetch_add(1, Ordering::AcqRel);
            let (node, table) = (Arc::clone(&node), Arc::clone(&table));
            tokio::spawn(async move {
                let question = StorageRequest::NodeStatus;
                let answer = node
                    .network
                    .storage(&table, other, Lane::Control, &question, &[], QUESTION_DEADLINE)
                    .await;
                if answer.is_ok() {
                    node.neighbours.lock().answered(other, node.lease.now_ms());
                }
                asking.fetch_sub(1, Ordering::AcqRel);
            });
        }
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
