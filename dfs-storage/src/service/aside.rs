//! A store that was condemned is set aside, and deleted only when it cannot be needed any more.
//!
//! It may be the last copy after all: what the others have is only known to be complete, not to be readable, and the verdict
//! itself may have been wrong (a hiccup of a SAN condemns all stores behind it). So its directory is renamed, with all that is in
//! it, and an empty store takes its place. It is deleted when this node has everything again and each of its chains has two other
//! members in sync, by a table that a leader has just granted a lease on. One is kept at most: while there is one, a store that is condemned
//! in its turn is emptied in place, and only beside two other complete copies.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dfs_common::level::REPLICATION_TARGET;
use dfs_common::wire::storage::{Damage, DamageOutcome, FoundBy};
use dfs_common::{ChainInfo, MemberState, Result, RoutingTable, StorageId, StoreId, Timestamp};
use parking_lot::Mutex;

use super::damage::wall_clock;
use super::directory::trouble;
use super::node::Node;
use crate::disk::usable_bytes;

const PREFIX: &str = "aside-";

/// What is being deleted: nothing of it is ever taken for a whole store.
const REMOVED_PREFIX: &str = "removed-";

/// How often it is looked whether it may go.
const LOOK: Duration = Duration::from_millis(500);

/// A store that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Aside {
    pub(crate) path: PathBuf,
    pub(crate) size_bytes: u64,
    found: Timestamp,
}

/// What a node has set aside, if anything.
#[derive(Debug, Default)]
pub(crate) struct AsideSlot(Mutex<Option<Aside>>);

impl AsideSlot {
    pub(crate) fn new(aside: Option<Aside>) -> Self {
        Self(Mutex::new(aside))
    }

    /// How many; `dfs health` counts it among what is not well yet.
    pub(crate) fn count(&self) -> u64 {
        u64::from(self.0.lock().is_some())
    }

    /// As an administrator reads of it.
    pub(crate) fn describe(&self) -> Option<Damage> {
        let aside = self.0.lock().clone()?;
        let data = aside.path.parent().unwrap_or(&aside.path);
        let left = usable_bytes(data).map_or_else(|_| "unknown".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        Some(Damage {
            at: aside.found,
            chain: None,
            chunk: None,
            found_by: FoundBy::Start,
            what: format!(
                "the condemned store is kept in {} ({} MiB, with {left} left beside it) until this node serves all its chains again and each has \
                 two other members in sync; then it is deleted. If it leaves no room for the new copy and the others are well, delete it by hand",
                aside.path.display(),
                aside.size_bytes >> 20
            ),
            outcome: DamageOutcome::Open,
        })
    }
}

fn with_prefix(data: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

pub(super) fn size_bytes(directory: &Path) -> u64 {
    std::fs::read_dir(directory).map_or(0, |entries| {
        entries
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|metadata| metadata.len())
            .sum()
    })
}

/// Bytes of everything in `data` that is set aside.
pub(super) fn bytes_set_aside(data: &Path) -> u64 {
    let set_aside = with_prefix(data, PREFIX).unwrap_or_default();
    set_aside.iter().map(|path| size_bytes(path)).sum()
}

/// Deletes what was being deleted when an earlier process ended.
fn sweep(data: &Path) -> io::Result<()> {
    with_prefix(data, REMOVED_PREFIX)?
        .iter()
        .try_for_each(std::fs::remove_dir_all)
}

/// What is set aside in a data directory.
pub(super) fn find(data: &Path) -> Result<Option<Aside>> {
    let set_aside = with_prefix(data, PREFIX).map_err(|e| trouble(data, "can not be read", &e))?;
    let first = set_aside.into_iter().next();
    Ok(first.map(|path| Aside {
        size_bytes: size_bytes(&path),
        path,
        found: wall_clock(),
    }))
}

/// Renames the store; the next opening makes a new one in its place. The caller has seen that there is none aside.
pub(super) fn set_aside(data: &Path, chunks: &Path, store: StoreId) -> Result<()> {
    let to = data.join(format!("{PREFIX}{store}"));
    std::fs::rename(chunks, &to)
        .and_then(|()| std::fs::File::open(data)?.sync_all())
        .map_err(|e| trouble(chunks, "can not be set aside", &e))?;
    tracing::warn!(aside = %to.display(), "the store is set aside, not deleted");
    Ok(())
}

fn delete(aside: &Aside) -> io::Result<()> {
    let (Some(data), Some(name)) = (aside.path.parent(), aside.path.file_name()) else {
        return Ok(());
    };
    let name = name.to_string_lossy();
    let removed = data.join(name.replacen(PREFIX, REMOVED_PREFIX, 1));
    match std::fs::rename(&aside.path, &removed) {
        // Somebody deleted it by hand.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    std::fs::File::open(data)?.sync_all()?;
    std::fs::remove_dir_all(&removed)
}

/// Whether a chain has as many members in sync, besides this node, as one that nothing is missing from.
fn is_whole_without(chain: &ChainInfo, node: StorageId) -> bool {
    let others = chain.serving().filter(|&other| other != node).count();
    chain.settled && others + 1 >= REPLICATION_TARGET
}

/// Whether nothing that this node ever had can be needed: it serves in each of its chains, and every chain there is has two others that
/// do. (Every chain: it may have left some since.)
fn is_replaced(table: &RoutingTable, node: StorageId) -> bool {
    !table.chains.is_empty()
        && table.chains.values().all(|chain| {
            let here = chain.state_of(node);
            here.is_none_or(|state| state == MemberState::Serving) && is_whole_without(chain, node)
        })
}

/// Deletes what is set aside in `data` as soon as it may go.
pub(crate) async fn run(node: Arc<Node>, data: PathBuf) {
    match tokio::task::spawn_blocking(move || sweep(&data)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the rest of a deleted store can not be deleted yet"),
        Err(_) => return,
    }
    loop {
        let Some(aside) = node.aside.0.lock().clone() else {
            return;
        };
        tokio::select! {
            () = node.stopping.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        // The lease says that a leader whom a quorum follows knows this process, and that the table is no older than its return.
        let leased = node.has_lease(node.lease.now_ms()) && node.serves_everywhere();
        if !leased || node.damage.counts().open > 0 || !is_replaced(&node.routing(), node.id) {
            continue;
        }
        let path = aside.path.clone();
        match tokio::task::spawn_blocking(move || delete(&aside)).await {
            Ok(Ok(())) => {
                tracing::info!(aside = %path.display(), "the new copy is complete beside two others: the old one is deleted");
                *node.aside.0.lock() = None;
            }
            Ok(Err(error)) => {
                tracing::warn!(aside = %path.display(), %error, "what was set aside can not be deleted yet");
                tokio::time::sleep(LOOK * 20).await;
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::{ChainId, ChainMember, Epoch, Rest};

    use super::*;

    fn table(chains: &[&[(u32, MemberState)]], settled: bool) -> RoutingTable {
        let chain = |(number, members): (u32, &&[(u32, MemberState)])| {
            let info = ChainInfo {
                id: ChainId(number),
                epoch: Epoch(3),
                settled,
                rest: Rest::default(),
                headed: Epoch(1),
                revived: Epoch(1),
                members: members
                    .iter()
                    .map(|&(node, state)| ChainMember::new(StorageId(node), state))
                    .collect(),
            };
            (ChainId(number), info)
        };
        RoutingTable {
            chains: (1..).zip(chains).map(chain).collect(),
            ..RoutingTable::default()
        }
    }

    #[test]
    fn it_goes_only_beside_two_others_in_every_chain() {
        use MemberState::{Offline, Serving, Syncing};
        let replaced = |chains: &[&[(u32, MemberState)]]| is_replaced(&table(chains, true), StorageId(1));
        let whole: &[_] = &[(2, Serving), (3, Serving), (1, Serving)];
        assert!(replaced(&[whole, whole]));
        assert!(!replaced(&[whole, &[(2, Serving), (3, Serving), (1, Syncing)]]));
        assert!(!replaced(&[whole, &[(2, Serving), (1, Serving), (3, Offline)]]));
        assert!(!replaced(&[&[(1, Serving), (2, Offline), (3, Offline)]]));
        // One that it has left, or was never in.
        assert!(replaced(&[whole, &[(2, Serving), (3, Serving), (4, Offline)]]));
        assert!(!replaced(&[whole, &[(2, Serving), (3, Offline), (4, Offline)]]));
        assert!(
            !is_replaced(&table(&[whole], false), StorageId(1)),
            "the second may lack something"
        );
        assert!(
            !is_replaced(&RoutingTable::default(), StorageId(1)),
            "it knows of nothing yet"
        );
    }

    #[test]
    fn a_store_is_renamed_whole_and_what_is_half_deleted_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path();
        let chunks = data.join("chunks");
        std::fs::create_dir(&chunks).unwrap();
        std::fs::write(chunks.join("superblock"), "abc").unwrap();
        std::fs::write(chunks.join("poisoned"), "EIO").unwrap();
        assert_eq!(find(data).unwrap(), None);
        set_aside(data, &chunks, StoreId([7; 16])).unwrap();
        let aside = find(data).unwrap().unwrap();
        assert_eq!(aside.path, data.join(format!("aside-{}", StoreId([7; 16]))));
        assert_eq!(aside.size_bytes, 6);
        assert!(aside.path.join("poisoned").exists() && !chunks.exists());
        assert_eq!(bytes_set_aside(data) + size_bytes(&chunks), 6);
        // Interrupted in the middle.
        let half = data.join(format!("removed-{}", StoreId([7; 16])));
        std::fs::rename(&aside.path, &half).unwrap();
        assert_eq!(find(data).unwrap(), None);
        sweep(data).unwrap();
        assert!(!half.exists());
        std::fs::create_dir(&aside.path).unwrap();
        delete(&aside).unwrap();
        delete(&aside).unwrap();
        assert_eq!(std::fs::read_dir(data).unwrap().count(), 0);
    }
}
