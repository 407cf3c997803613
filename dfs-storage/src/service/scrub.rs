//! The scrub: everything stored is read and checked, round after round, so that rot is found while there are copies to mend it from.
//!
//! In the background a round is spread over [`ROUND`], so that it costs next to nothing; one that somebody asked for goes as quickly as
//! leaves the disk to clients.

use std::sync::Arc;
use std::time::Duration;

use dfs_common::wire::storage::{DamageOutcome, FoundBy, ScrubReport};
use dfs_common::{ChainId, ChunkId, Error, ErrorCode};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::damage::wall_clock;
use super::node::Node;
use crate::store::StoreError;

/// A background round takes about this long.
const ROUND: Duration = Duration::from_hours(14 * 24);

/// The least a background round reads in a second: a small store is through in hours.
const MIN_RATE_BYTES: u64 = 1 << 20;

/// What a round that was asked for reads in a second at most.
const ASKED_RATE_BYTES: u64 = 128 << 20;

/// While clients use the disk, a round that was asked for takes one part in this many of its time.
const YIELD_SHARE: u32 = 4;

/// Chunks listed at a time.
const LIST_CHUNKS: usize = 256;

/// From the start to the first background round: a node that has just come back has better things to do.
const FIRST_ROUND: Duration = Duration::from_mins(10);

/// Between two rounds that found little to read.
const BETWEEN_ROUNDS: Duration = Duration::from_hours(1);

#[derive(Debug, Default)]
pub(crate) struct Scrub {
    state: Mutex<State>,
    start: Notify,
    /// Upper bound of every round in bytes a second, if the configuration sets one.
    limit_bytes: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    report: ScrubReport,
    /// Somebody waits for this round.
    asked: bool,
}

impl Scrub {
    pub(crate) fn new(limit_bytes: Option<u64>) -> Self {
        Self {
            limit_bytes,
            ..Self::default()
        }
    }

    /// Begins a round if asked to, and says how it stands.
    pub(crate) fn asked(&self, node: &Node, start: bool) -> ScrubReport {
        let mut report = {
            let mut state = self.state.lock();
            if start {
                state.asked = true;
                // It is under way before it is answered, so that who waits for its end does not take the last one's for it.
                if !state.report.running {
                    Self::begin(&mut state, node);
                }
                self.start.notify_one();
                node.damage.hurry();
            }
            state.report.clone()
        };
        let counts = node.damage.counts();
        report.found = counts.found;
        report.mended = counts.mended;
        report.open = counts.open;
        report.lost = counts.lost;
        report.damage = node.damage.remembered();
        report.damage.extend(node.aside.describe());
        report
    }

    fn begin(state: &mut State, node: &Node) {
        state.report.running = true;
        state.report.began = Some(wall_clock());
        state.report.checked_bytes = 0;
        state.report.total_bytes = node.store.usage().used_bytes;
    }

    fn rate_bytes(&self, total_bytes: u64) -> u64 {
        let mut state = self.state.lock();
        let rate = if state.asked {
            ASKED_RATE_BYTES
        } else {
            (total_bytes / ROUND.as_secs()).max(MIN_RATE_BYTES)
        };
        let rate = self.limit_bytes.map_or(rate, |limit| rate.min(limit)).max(1);
        state.report.rate_bytes = rate;
        rate
    }

    /// Counts what was read, and pauses so that the rate is kept and clients come first.
    async fn pace(&self, node: &Node, bytes: u64, took: Duration, busy: bool) {
        let rate = {
            let total = {
                let mut state = self.state.lock();
                state.report.checked_bytes += bytes;
                state.report.total_bytes = state.report.total_bytes.max(state.report.checked_bytes);
                state.report.total_bytes
            };
            self.rate_bytes(total)
        };
        let mut pause = Duration::from_secs_f64(bytes as f64 / rate as f64).saturating_sub(took);
        if busy {
            pause = pause.max(took * (YIELD_SHARE - 1));
        }
        tokio::select! {
            () = node.stopping.cancelled() => {}
            // A round that somebody begins to wait for goes quicker from here on.
            () = self.start.notified(), if pause > Duration::from_secs(1) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Scrubs until the server stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut wait = FIRST_ROUND;
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            () = node.scrub.start.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        wait = BETWEEN_ROUNDS;
        {
            let mut state = node.scrub.state.lock();
            if !state.report.running {
                Scrub::begin(&mut state, &node);
            }
        }
        round(&node).await;
        let mut state = node.scrub.state.lock();
        state.report.running = false;
        if !node.stopping.is_cancelled() {
            state.report.rounds += 1;
            state.report.ended = Some(wall_clock());
        }
        state.asked = false;
    }
}

async fn round(node: &Arc<Node>) {
    check_files(node).await;
    let mut after: Option<(ChainId, ChunkId)> = None;
    while !node.stopping.is_cancelled() && node.current_fault().is_none() {
        let listed = node.store.chunks_after(after, LIST_CHUNKS);
        let Some(&last) = listed.last() else { break };
        for (_, chunk) in listed {
            if node.stopping.is_cancelled() {
                return;
            }
            check_chunk(node, chunk).await;
        }
        after = Some(last);
    }
}

async fn check_chunk(node: &Arc<Node>, chunk: ChunkId) {
    let writes = node.writes.begun();
    let start = Instant::now();
    let store = node.store.clone();
    let checked = tokio::task::spawn_blocking(move || {
        let bytes = store.size_bytes(chunk);
        store.bad_blocks(chunk).map(|bad| (bytes, bad))
    });
    let bytes = match checked.await {
        Ok(Ok((bytes, bad))) => {
            if let Some(first) = bad.first() {
                let blocks: u32 = bad.iter().map(|run| run.blocks).sum();
                let what = format!(
                    "block {} and {} more do not match their checksums",
                    first.first,
                    blocks - 1
                );
                node.note_damage(chunk, FoundBy::Scrub, &Error::new(ErrorCode::Corrupt, what));
            }
            bytes
        }
        Ok(Err(error @ StoreError::Corrupt { .. })) => {
            node.note_damage(chunk, FoundBy::Scrub, &error.into());
            0
        }
        Ok(Err(error)) => {
            tracing::warn!(%chunk, %error, "not scrubbed");
            0
        }
        Err(_) => 0,
    };
    let busy = node.writes.begun() != writes;
    node.scrub.pace(node, bytes, start.elapsed(), busy).await;
}

/// The store's own files: what is wrong with them is made anew from what is in memory.
async fn check_files(node: &Arc<Node>) {
    let store = node.store.clone();
    match tokio::task::spawn_blocking(move || store.check_files()).await {
        Ok(Ok(rebuilt)) => {
            for what in rebuilt {
                tracing::error!(what, "damaged on this disk; made anew");
                node.damage.note_structure(FoundBy::Scrub, what, DamageOutcome::Rebuilt);
            }
        }
        Ok(Err(error)) => tracing::warn!(%error, "the store's own files were not checked"),
        Err(_) => {}
    }
}
