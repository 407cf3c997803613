//! A mount's part in keeping both versions: it looks for open conflicts of files whose policy says so, and resolves them.
//!
//! Every mount looks; who creates the sibling first makes it, and the others come in only when that has taken too long.

use std::collections::BTreeMap;
use std::time::Duration;

use dfs_common::conflict::ConflictEntry;
use dfs_common::{ConflictId, ConflictPolicy, ConflictState, ErrorCode, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::listing::{Cursor, PAGE, page};
use super::resolve::{Choice, Existing};
use crate::client::{Client, WeakClient};
use crate::mount::wall_clock;

/// Between two looks, and what is added to it so that mounts do not look all at once.
const EVERY: Duration = Duration::from_secs(5);
const JITTER_MS: u16 = 2_000;

/// Pages of one look; the next look goes on where it ended.
const MAX_PAGES: u32 = 16;

/// Who began a sibling is done by then, or dead.
const BEGUN: Duration = Duration::from_mins(1);

/// Least time between two warnings about one conflict.
const WARN_EVERY: Duration = Duration::from_mins(1);

/// Runs until told to stop, or until nobody has the client any more.
pub(crate) async fn keep_both(client: WeakClient, label: String, stop: CancellationToken) {
    let mut watch = Watch {
        by: format!("mount {label}"),
        after: None,
        warned: BTreeMap::new(),
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY + jitter()) => {}
        }
        let Some(client) = client.upgrade() else { return };
        tokio::select! {
            () = stop.cancelled() => return,
            () = watch.look(&client) => {}
        }
    }
}

fn jitter() -> Duration {
    let mut random = [0; 2];
    // Without randomness all look at once, which is merely not nice.
    let _ = getrandom::fill(&mut random);
    Duration::from_millis(u64::from(u16::from_le_bytes(random) % JITTER_MS))
}

struct Watch {
    by: String,
    after: Cursor,
    warned: BTreeMap<ConflictId, Instant>,
}

impl Watch {
    async fn look(&mut self, client: &Client) {
        for _ in 0..MAX_PAGES {
            let found = page(client.leader(), self.after, (PAGE, false), client.mount().deadline()).await;
            let (entries, next) = match found {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(%error, "conflicts can not be listed");
                    return;
                }
            };
            for entry in entries.iter().filter(|entry| is_wanted(entry)) {
                self.resolve(client, entry).await;
            }
            self.after = next;
            if next.is_none() {
                return;
            }
        }
    }

    async fn resolve(&mut self, client: &Client, entry: &ConflictEntry) {
        let id = entry.conflict.id;
        let existing = if is_overdue(entry.conflict.found_at, wall_clock()) {
            Existing::Finish
        } else {
            Existing::Leave
        };
        let inode = entry.conflict.divergence.chunk.inode;
        let resolved = async {
            // Only now is its path worth the group's looking for it.
            let entry = client.conflict(inode, id).await?;
            client.resolve(&entry, Choice::Both, existing, &self.by).await
        };
        let error = match resolved.await {
            Ok(sibling) => {
                let sibling = sibling.unwrap_or_default();
                tracing::info!(
                    conflict = id.0,
                    "both versions kept: {}",
                    String::from_utf8_lossy(&sibling)
                );
                return;
            }
            Err(error) => error,
        };
        let is_begun = error.code == ErrorCode::Exists && existing == Existing::Leave;
        if is_begun || error.code == ErrorCode::NotFound {
            return;
        }
        // Another was quicker, or the file is gone; that is no failure.
        let now = client.one(inode, id, false).await;
        if now.is_ok_and(|now| now.conflict.state == ConflictState::Open) && self.may_warn(id, Instant::now()) {
            tracing::warn!(conflict = id.0, %error, "the other version is not a file yet");
        } else {
            tracing::debug!(conflict = id.0, %error, "the other version is not a file yet");
        }
    }

    fn may_warn(&mut self, id: ConflictId, now: Instant) -> bool {
        self.warned.retain(|_, at| now.duration_since(*at) < WARN_EVERY);
        let is_new = !self.warned.contains_key(&id);
        if is_new {
            self.warned.insert(id, now);
        }
        is_new
    }
}

fn is_wanted(entry: &ConflictEntry) -> bool {
    let conflict = &entry.conflict;
    conflict.state == ConflictState::Open && conflict.policy == ConflictPolicy::KeepBoth
}

fn is_overdue(found_at: Timestamp, now: Timestamp) -> bool {
    let age_ns = i128::from(now.nanos) - i128::from(found_at.nanos);
    u128::try_from(age_ns).is_ok_and(|age_ns| age_ns > BEGUN.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sibling_is_left_to_its_maker_for_a_minute() {
        let at = |seconds| Timestamp::from_parts(seconds, 0);
        assert!(!is_overdue(at(100), at(160)));
        assert!(is_overdue(at(100), at(161)));
        assert!(!is_overdue(at(100), at(0)), "a clock that is behind");
        assert!(!is_overdue(
            Timestamp::from_nanos(i64::MAX),
            Timestamp::from_nanos(i64::MIN)
        ));
    }
}
