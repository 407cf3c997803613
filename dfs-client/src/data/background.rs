//! Syncs that nobody asks for.
//!
//! The kernel tells a FUSE file system nothing of sync(2) and syncfs(2). So what lies on the chains for [`SYNC_AGE_MS`] is made
//! durable by the mount itself, one sync a chain for all its files, and whoever runs sync(1) and waits that long has what it asked
//! for. [`Mount::sync_all`] does it at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dfs_common::{ChainId, Epoch, Error, ErrorCode, Level, Result};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::state::{FileState, Inner, Word};
use super::unsynced::{Durable, Owing, Unsynced};
use super::writer::join_all;
use crate::mount::Mount;

/// What was acknowledged is synced after this long, whether or not anybody asks.
pub(crate) const SYNC_AGE_MS: u64 = 1_500;

/// What all files of a mount have on the chains, unsynced, by level; and what is durable.
#[derive(Debug, Default)]
pub(crate) struct Background {
    unsynced: BTreeMap<Level, Unsynced>,
    since_ms: BTreeMap<(Level, ChainId), u64>,
    durable: BTreeMap<(Level, ChainId), Durable>,
    /// What files that nobody had open lost, as far as no sync of the mount has told of it.
    lost: Option<Error>,
    busy: bool,
}

impl Background {
    fn touch(&mut self, level: Level, chain: ChainId, now_ms: u64) -> &mut Unsynced {
        self.since_ms.entry((level, chain)).or_insert(now_ms);
        self.unsynced.entry(level).or_default()
    }

    /// Everything that is unsynced for at least so long.
    fn due(&self, now_ms: u64, age_ms: u64) -> Vec<(Level, ChainId, Owing)> {
        let all = self.unsynced.iter().flat_map(|(&level, unsynced)| {
            unsynced
                .all()
                .into_iter()
                .map(move |(chain, owing)| (level, chain, owing))
        });
        all.filter(|(level, chain, _)| {
            let since = self.since_ms.get(&(*level, *chain)).copied().unwrap_or(0);
            now_ms.saturating_sub(since) >= age_ms
        })
        .collect()
    }

    fn durable(&self, level: Level, chain: ChainId) -> Durable {
        self.durable.get(&(level, chain)).cloned().unwrap_or_default()
    }

    fn synced(&mut self, level: Level, chain: ChainId, owing: &Owing, now_ms: u64) {
        let Some(unsynced) = self.unsynced.get_mut(&level) else {
            return;
        };
        unsynced.synced(chain, owing);
        if unsynced.contains(chain) {
            self.since_ms.insert((level, chain), now_ms);
        } else {
            self.since_ms.remove(&(level, chain));
        }
    }
}

impl Mount {
    /// Numbers rise with every request to a chain that a sync may have to cover, and with every answer.
    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A write without the sync flag is about to be sent.
    pub(super) fn note_start(&self, file: &FileState, chain: ChainId) {
        let (level, now_ms) = (file.write_level, self.now_ms());
        let number = self.next_number();
        file.inner.lock().unsynced.starts(chain, number);
        self.background.lock().touch(level, chain, now_ms).starts(chain, number);
    }

    /// It was acknowledged in this epoch.
    pub(super) fn note_acknowledged(&self, file: &FileState, chain: ChainId, epoch: Epoch) -> u64 {
        let (level, now_ms) = (file.write_level, self.now_ms());
        let number = self.next_number();
        file.inner.lock().unsynced.acknowledged(chain, number, (epoch, level));
        let mut background = self.background.lock();
        background
            .touch(level, chain, now_ms)
            .acknowledged(chain, number, (epoch, level));
        number
    }

    /// Takes in what syncs of the whole mount have made durable of this file.
    pub(super) fn settle_synced(&self, file: &FileState, inner: &mut Inner) {
        let background = self.background.lock();
        let level = file.write_level;
        for (chain, number) in inner.unsynced.settle(|chain| background.durable(level, chain)) {
            inner.kept.synced(chain, number);
        }
    }

    /// Syncs in the background what is old enough, unless that is being done.
    pub(super) fn sync_old(self: &Arc<Self>) {
        let due = {
            let mut background = self.background.lock();
            let due = background.due(self.now_ms(), SYNC_AGE_MS);
            if background.busy || due.is_empty() {
                return;
            }
            background.busy = true;
            due
        };
        let mount = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = mount.sync_due(due, mount.deadline()).await {
                tracing::debug!("a sync in the background failed, and is tried again: {error}");
            }
            mount.background.lock().busy = false;
        });
    }

    async fn sync_due(self: &Arc<Self>, due: Vec<(Level, ChainId, Owing)>, deadline: Instant) -> Result<()> {
        let mut tasks = JoinSet::new();
        for (level, chain, owing) in due {
            let mount = Arc::clone(self);
            tasks.spawn(async move { mount.sync_for_all(level, chain, &owing, deadline).await });
        }
        join_all(tasks).await?;
        let files: Vec<_> = {
            let mut files = self.files.lock();
            let background = self.background.lock();
            files.settle_closed(|level, chain| background.durable(level, chain));
            files.open.values().cloned().collect()
        };
        for file in files {
            self.settle_synced(&file, &mut file.inner.lock());
        }
        Ok(())
    }

    async fn sync_for_all(
        self: &Arc<Self>,
        level: Level,
        chain: ChainId,
        owing: &Owing,
        deadline: Instant,
    ) -> Result<()> {
        let whose = (self.session.id(), dfs_common::InodeId(0));
        let synced = self.chunks.sync(chain, level, owing.since(), whose, deadline).await;
        let lost = match synced {
            Ok(()) => {
                let mut background = self.background.lock();
                background.durable.entry((level, chain)).or_default().add(owing);
                None
            }
            Err(error) if error.code == ErrorCode::UnsyncedLost => Some(error),
            Err(error) => return Err(error),
        };
        let outcome = match lost {
            Some(error) => self.recover(level, chain, &error, deadline).await,
            None => Ok(()),
        };
        // What could not be written again for now is due again.
        if outcome
            .as_ref()
            .err()
            .is_none_or(|error| error.code == ErrorCode::UnsyncedLost)
        {
            self.background.lock().synced(level, chain, owing, self.now_ms());
        }
        outcome
    }

    /// A chain has lost unsynced writes of this mount: files that are open have theirs written again, or an error recorded.
    async fn recover(self: &Arc<Self>, level: Level, chain: ChainId, lost: &Error, deadline: Instant) -> Result<()> {
        let (files, closed) = {
            let files = self.files.lock();
            let concerned =
                |file: &&Arc<FileState>| file.write_level == level && file.inner.lock().unsynced.contains(chain);
            let open: Vec<_> = files.open.values().filter(concerned).cloned().collect();
            (open, files.closed_on(chain))
        };
        tracing::warn!(
            "{lost}; {} open and {} closed files have written there",
            files.len(),
            closed.len()
        );
        // Nobody keeps the bytes of a file that is closed: who opens and syncs it is told, too.
        let mut outcome = Ok(());
        for file in files {
            let (owing, errors, rewrites) = {
                let inner = file.inner.lock();
                (inner.unsynced.all(), inner.errors.total(), inner.rewrites)
            };
            let owing = owing.into_iter().filter(|(on, _)| *on == chain).collect();
            outcome = outcome.and(self.sync_chains(&file, owing, deadline).await);
            if file.inner.lock().rewrites != rewrites {
                // Who read the file while it lacked what was lost hears that it has changed.
                let told = self.commit(&file, Word::Passing, None, deadline).await;
                outcome = outcome.and(told.map(|_| ()));
            }
            if file.inner.lock().errors.total() != errors {
                outcome = outcome.and(Err(lost.clone()));
            }
        }
        for owing in closed {
            // It may have written after the loss.
            let whose = (self.session.id(), dfs_common::InodeId(0));
            match self.chunks.sync(chain, level, owing.since(), whose, deadline).await {
                Err(error) if error.code == ErrorCode::UnsyncedLost => self.background.lock().lost = Some(error),
                synced => outcome = outcome.and(synced),
            }
        }
        outcome
    }

    /// Everything that was written through this mount before is durable afterwards, and so is every change of names and attributes.
    /// An error that fsync of a file would report stays there to be reported, and is returned here
    /// as well; a change that was refused after it was shown, once.
    pub(crate) async fn sync_all(self: &Arc<Self>, deadline: Instant) -> Result<()> {
        let mut outcome = Ok(());
        for file in self.unsettled() {
            let sent = async {
                self.drain(&file, deadline).await?;
                self.commit(&file, Word::Passing, None, deadline).await
            };
            outcome = outcome.and(sent.await.map(|_| ()));
        }
        outcome = outcome.and(self.session.settled(deadline).await);
        let due = self.background.lock().due(self.now_ms(), 0);
        outcome.and(self.sync_due(due, deadline).await)?;
        // One at a time, so that the next sync tells of what this one does not.
        if let Some(refused) = self.session.untold_since_sync() {
            return Err(refused);
        }
        let files: Vec<_> = self.files.lock().open.values().cloned().collect();
        let untold = files.iter().find_map(|file| file.inner.lock().errors.untold());
        match untold {
            Some(error) => Err(error),
            None => self.background.lock().lost.take().map_or(Ok(()), Err),
        }
    }
}
