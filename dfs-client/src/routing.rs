//! Who is in which chain, as far as this mount knows.
//!
//! One task keeps a question for newer routing parked at the leader, so news arrive when they are made. Whoever meets a
//! stale epoch pokes that task (which asks anew, at most every [`POKE_MS`], however many poke; who answers the parked question may be cut
//! off) and waits for a newer table. The table only ever moves forward.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::{ChainId, Epoch, Level, RoutingTable, RoutingVersion};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::meta::Leader;

/// How long a question stays parked before it is asked anew.
const PARK_MS: u32 = 5_000;

/// Least time between two questions that somebody wants asked at once.
const POKE_MS: u64 = 50;

/// Least time between two parked ones. A node that returns makes several tables within milliseconds, and each is waited for.
const NEXT_MS: u64 = 3;

/// Between two when nobody answers.
const FAILED_MS: u64 = 50;

/// Spans of a chain's epochs that are remembered, of one level.
const MAX_SPANS: usize = 8;

/// Within which epochs a chain is known to have kept all that it had acknowledged at a level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeptSpans(Vec<(Epoch, Epoch)>);

impl KeptSpans {
    /// A routing table says: in `epoch` the chain still had all that it had acknowledged since
    /// `from`.
    pub(crate) fn learn(&mut self, from: Epoch, epoch: Epoch) {
        match self.0.last_mut() {
            Some(last) if last.0 == from => last.1 = epoch.max(last.1),
            _ => self.0.push((from, epoch)),
        }
        if self.0.len() > MAX_SPANS {
            self.0.remove(0);
        }
    }

    /// Whether the chain is known to have lost nothing between these epochs. Within one epoch a
    /// chain loses nothing.
    pub(crate) fn cover(&self, from: Epoch, to: Epoch) -> bool {
        from == to || self.0.iter().any(|span| span.0 <= from && from <= to && to <= span.1)
    }
}

pub(crate) struct RoutingCache {
    table: watch::Sender<Arc<RoutingTable>>,
    kept: Mutex<BTreeMap<(ChainId, Level), KeptSpans>>,
    poked: Notify,
}

impl RoutingCache {
    pub(crate) fn new() -> Self {
        Self {
            table: watch::Sender::new(Arc::new(RoutingTable::default())),
            kept: Mutex::default(),
            poked: Notify::new(),
        }
    }

    pub(crate) fn current(&self) -> Arc<RoutingTable> {
        Arc::clone(&self.table.borrow())
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.table.subscribe()
    }

    pub(crate) fn learn(&self, table: RoutingTable) {
        self.table.send_if_modified(|known| {
            let newer = table.version > known.version;
            if newer {
                self.learn_kept(&table);
                *known = Arc::new(table);
            }
            newer
        });
    }

    fn learn_kept(&self, table: &RoutingTable) {
        let mut kept = self.kept.lock();
        for info in table.chains.values() {
            for level in [Level::One, Level::Quorum, Level::All] {
                let spans = kept.entry((info.id, level)).or_default();
                spans.learn(info.answers_since(level), info.epoch);
            }
        }
    }

    /// What is known of a chain's losses at this level; the list is short.
    pub(crate) fn kept_spans(&self, chain: ChainId, level: Level) -> KeptSpans {
        self.kept.lock().get(&(chain, level)).cloned().unwrap_or_default()
    }

    /// Waits up to `at_most` for a table newer than `known`.
    pub(crate) async fn newer_than(&self, known: RoutingVersion, at_most: Duration) {
        let mut updates = self.subscribe();
        if updates.borrow().version > known {
            return;
        }
        self.poked.notify_one();
        let _ = tokio::time::timeout(at_most, updates.wait_for(|table| table.version > known)).await;
    }

    /// Asks the leader for a newer table; `wait_ms` lets it wait for one.
    pub(crate) async fn fetch(&self, leader: &Leader, wait_ms: u32, deadline: Instant) -> dfs_common::Result<()> {
        let request = MetaRequest::Routing {
            known: self.current().version,
            wait_ms,
        };
        let what = || "routing".to_owned();
        let patience = Duration::from_millis(u64::from(wait_ms));
        if let MetaResponse::Routing(Some(table)) = leader.ask(&request, deadline, patience, &what).await? {
            self.learn(table);
        }
        Ok(())
    }

    /// Keeps a question parked until told to stop.
    pub(crate) async fn watch(self: Arc<Self>, leader: Arc<Leader>, stop: CancellationToken) {
        self.keep_asking(|wait_ms, deadline| self.fetch(&leader, wait_ms, deadline), stop)
            .await;
    }

    async fn keep_asking<F>(&self, ask: impl Fn(u32, Instant) -> F, stop: CancellationToken)
    where
        F: Future<Output = dfs_common::Result<()>>,
    {
        let mut may_poke = Instant::now();
        let mut poked = false;
        loop {
            let asked = Instant::now();
            let deadline = asked + Duration::from_millis(2 * u64::from(PARK_MS));
            let poke = async {
                tokio::time::sleep_until(may_poke).await;
                self.poked.notified().await;
            };
            let wait_ms = if poked { 0 } else { PARK_MS };
            let pause_ms = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                answer = ask(wait_ms, deadline) => {
                    poked = false;
                    match answer {
                        Ok(()) => NEXT_MS,
                        Err(error) => {
                            tracing::debug!(%error, "no routing");
                            FAILED_MS
                        }
                    }
                }
                // A question that is not parked is answered at once: nothing is gained by asking it again.
                () = poke, if !poked => {
                    poked = true;
                    may_poke = Instant::now() + Duration::from_millis(POKE_MS);
                    continue;
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(asked + Duration::from_millis(pause_ms)) => {}
            }
        }
    }
}

/// Ends when the chain has another epoch than this one.
pub(crate) async fn epoch_changed(mut updates: watch::Receiver<Arc<RoutingTable>>, chain: ChainId, epoch: Epoch) {
    let changed = updates
        .wait_for(|table| table.chain(chain).is_none_or(|info| info.epoch != epoch))
        .await
        .is_ok();
    if !changed {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_chain_kept_is_known_from_the_tables_of_that_time() {
        let mut spans = KeptSpans::default();
        let covers = |spans: &KeptSpans, from, to| spans.cover(Epoch(from), Epoch(to));
        assert!(covers(&spans, 4, 4), "within an epoch nothing is lost");
        assert!(!covers(&spans, 4, 5));
        spans.learn(Epoch(3), Epoch(5));
        spans.learn(Epoch(3), Epoch(7));
        // It was brought back; in epoch 8 it may have kept all or not.
        spans.learn(Epoch(9), Epoch(9));
        spans.learn(Epoch(9), Epoch(12));
        assert!(covers(&spans, 3, 7) && covers(&spans, 6, 7) && covers(&spans, 9, 12));
        for (from, to) in [(2, 7), (7, 8), (6, 9), (8, 9), (8, 12), (9, 13), (7, 6)] {
            assert!(!covers(&spans, from, to), "{from} to {to}");
        }
        for lost in 20..40 {
            spans.learn(Epoch(lost), Epoch(lost));
        }
        assert_eq!(spans.0.len(), MAX_SPANS);
    }

    /// Whoever is poked again and again asks again and again, but hears what it asked for.
    #[tokio::test]
    async fn pokes_do_not_cancel_a_question_that_will_be_answered() {
        let cache = Arc::new(RoutingCache::new());
        let newer = RoutingTable {
            version: RoutingVersion(1),
            ..RoutingTable::default()
        };
        let (known, stop) = (Arc::clone(&cache), CancellationToken::new());
        let stopped = stop.clone();
        let watching = tokio::spawn(async move {
            let ask = |wait_ms: u32, _| {
                let (known, newer) = (Arc::clone(&known), newer.clone());
                async move {
                    // A parked question is lost on its way; another one is answered, but not soon.
                    let takes_ms = if wait_ms > 0 { u64::from(wait_ms) } else { 3 * POKE_MS };
                    tokio::time::sleep(Duration::from_millis(takes_ms)).await;
                    known.learn(newer);
                    Ok(())
                }
            };
            known.keep_asking(ask, stopped).await;
        });
        let poking = async {
            while cache.current().version < RoutingVersion(1) {
                cache.newer_than(RoutingVersion(0), Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3), poking)
            .await
            .expect("a table");
        stop.cancel();
        watching.await.expect("it ends");
    }
}
