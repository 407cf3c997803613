//! A mount's part in keeping both versions: it looks for open conflicts of files whose policy says so, and resolves them.
//!
//! Every mount looks; whose sibling is whole first gives it its name. What can not be done is tried more and more seldom.

use std::collections::BTreeMap;
use std::time::Duration;

use dfs_common::conflict::ConflictEntry;
use dfs_common::{ConflictId, ConflictPolicy, ConflictState};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::listing::{Cursor, PAGE, page};
use super::resolve::Choice;
use crate::client::{Client, WeakClient};

/// Between two looks, and what is added to it so that mounts do not look all at once.
const EVERY: Duration = Duration::from_secs(5);
const JITTER_MS: u16 = 2_000;

/// Pages of one look; the next look goes on where it ended.
const MAX_PAGES: u32 = 16;

/// Pause after a first failure at one conflict; each further one doubles it.
const PAUSE: Duration = Duration::from_secs(15);
const MAX_PAUSE: Duration = Duration::from_mins(30);

/// Failed ones that are remembered.
const MAX_FAILED: usize = 1_024;

/// Runs until told to stop, or until nobody has the client any more.
pub(crate) async fn keep_both(client: WeakClient, label: String, stop: CancellationToken) {
    let mut watch = Watch {
        by: format!("mount {label}"),
        after: None,
        failed: BTreeMap::new(),
    };
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY + jitter()) => {}
        }
        let Some(client) = client.upgrade() else { return };
        tokio::select! {
            biased;
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
    /// When to try again, and how long after the next failure.
    failed: BTreeMap<ConflictId, (Instant, Duration)>,
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
        let last = self.failed.get(&id).copied();
        if last.is_some_and(|(again, _)| Instant::now() < again) {
            return;
        }
        let inode = entry.conflict.divergence.chunk.inode;
        let resolved = async {
            // Only now is its path worth the group's looking for it.
            let entry = client.conflict(inode, id).await?;
            client.resolve(&entry, Choice::Both, &self.by).await
        };
        let error = match resolved.await {
            Ok(sibling) => {
                self.failed.remove(&id);
                let what = sibling.map_or_else(
                    || "both versions are the same".to_owned(),
                    |path| {
                        format!(
                            "both versions kept: {}",
                            String::from_utf8_lossy(&path).escape_default()
                        )
                    },
                );
                tracing::info!(conflict = id.0, "{what}");
                return;
            }
            Err(error) => error,
        };
        if self.failed.len() >= MAX_FAILED {
            self.failed.pop_first();
        }
        let pause = last.map_or(PAUSE, |(_, pause)| (pause * 2).min(MAX_PAUSE));
        self.failed.insert(id, (Instant::now() + pause, pause));
        // Another was quicker, or the file is gone; that is no failure.
        let now = client.one(inode, id, false).await;
        if now.is_ok_and(|now| now.conflict.state == ConflictState::Open) {
            tracing::warn!(conflict = id.0, %error, again_s = pause.as_secs(), "the other version is not a file yet");
        } else {
            tracing::debug!(conflict = id.0, %error, "settled by another, or its file is gone");
        }
    }
}

fn is_wanted(entry: &ConflictEntry) -> bool {
    let conflict = &entry.conflict;
    conflict.state == ConflictState::Open && conflict.policy == ConflictPolicy::KeepBoth
}
