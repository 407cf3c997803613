//! Room that the log can give back on a disk that is nearly full.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::types::Raft;
use crate::room::Room;

/// Between two looks; a snapshot takes a while.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A snapshot is made at once for so many entries, and for fewer after a while.
const WORTH_ENTRIES: u64 = 100;
const AFTER_A_WHILE: Duration = Duration::from_secs(10);

/// While the disk is low, makes snapshots early and keeps nothing of the log behind them. Who
/// falls behind meanwhile is sent the snapshot.
pub(super) async fn relieve(raft: Raft, room: Arc<Room>) {
    let mut made = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !room.told().is_low() {
            continue;
        }
        let (applied, snapshot, purged) = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            let next = |id: Option<super::types::LogId>| id.map_or(0, |id| id.index + 1);
            (next(metrics.last_applied), next(metrics.snapshot), next(metrics.purged))
        };
        let worth = if made.elapsed() < AFTER_A_WHILE {
            WORTH_ENTRIES
        } else {
            1
        };
        let asked = if applied >= snapshot + worth {
            made = Instant::now();
            raft.trigger().snapshot().await
        } else if snapshot > purged {
            raft.trigger().purge_log(snapshot - 1).await
        } else {
            Ok(())
        };
        if asked.is_err() {
            return;
        }
    }
}
