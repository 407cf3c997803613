//! fsync: everything on the chains, then their disks and the metadata group at the same time.
//!
//! What this mount wrote and no sync covers is known (`unsynced`), and a sync vouches for it. What other mounts wrote to the file
//! is in nobody's memory here, so an fsync that finds the file changed by another syncs all its chains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_common::planted::{self, Bug};
use dfs_common::{ChainId, ChunkId, ChunkIndex, Epoch, Error, ErrorCode, Level, Result};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::dirty::{Slab, SlabIndex};
use super::state::{FileState, Word};
use super::unsynced::Owing;
use super::writer::{FLUSH_AGE_MS, join_all};
use crate::mount::Mount;

/// Slabs that an fsync sends with the sync flag; with more, one Sync per chain is cheaper.
const MAX_SYNCED_SLABS: usize = 4;

/// Of a sync that makes durable what is there, whatever was lost.
pub(super) const VOUCHES_FOR_NOTHING: (Epoch, Level) = (Epoch(u64::MAX), Level::All);

impl Mount {
    /// Data to every replica, then the chains' disks and the metadata group at the same time. Writes that
    /// need no word to metadata carry the sync flag where that saves a round trip.
    pub(crate) async fn fsync(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        data_only: bool,
        deadline: Instant,
    ) -> Result<()> {
        // Where metadata has to be told as well, that goes on while the disks work; else the write takes the sync along.
        let grows = self.session.may_grow(file.inode);
        let sync = {
            let mut inner = file.inner.lock();
            self.settle_synced(file, &mut inner);
            let within = inner.length() <= inner.attributes.length_bytes;
            (data_only && within) || inner.may_promise(grows)
        };
        let (target, last) = self.send_all(file, sync);
        match last {
            // The usual small append: carried here, without a task's detour.
            Some((index, slab)) => self.carry(file, index, slab, sync).await,
            None => self.kick(file, FLUSH_AGE_MS),
        }
        if !planted::is(Bug::ArrivalUnwaited) {
            self.arrived(file, target, deadline).await?;
        }
        // Only now, since what arrives after a hold was taken is not found.
        let grows = self.session.may_grow(file.inode);
        let (unsynced, promised, longer, others, (rewrites, errors)) = {
            let mut inner = file.inner.lock();
            let promised = inner.promise(grows);
            let longer = inner.kept.uncommitted_end() > 0;
            let others = inner.foreign_unsynced();
            let before = (inner.rewrites, inner.errors.total());
            (inner.unsynced.all(), promised, longer, others, before)
        };
        let told = async {
            let mut growth = None;
            let mut told = promised;
            if !promised && (!data_only || longer) {
                told = self.commit(file, Word::Synced, None, deadline).await?.is_some();
                growth = file.inner.lock().growth.filter(|_| told);
            }
            if !told && grows.is_none() {
                // Others may have closed the file since: what they wrote is to be durable as well.
                self.refresh(file, deadline).await?;
            }
            self.session.settled(deadline).await?;
            file.inner.lock().growth_settled(growth);
            Ok(())
        };
        let known: BTreeSet<ChainId> = unsynced.iter().map(|(chain, _)| *chain).collect();
        let of_others = async {
            match others {
                Some(_) => self.sync_others(file, &known, deadline).await,
                None => Ok(()),
            }
        };
        // The data is on every replica, so metadata may hear of it while their disks work.
        let (synced, of_others, told) = tokio::join!(self.sync_chains(file, unsynced, deadline), of_others, told);
        self.forget_foreseen();
        synced.and(of_others).and(told)?;
        let (missed, rewrites_now) = {
            let mut inner = file.inner.lock();
            if let Some(changes) = others
                && inner.errors.total() == errors
            {
                inner.foreign_durable = inner.foreign_durable.max(changes);
            }
            (inner.foreign_unsynced(), inner.rewrites)
        };
        if !data_only && rewrites_now != rewrites {
            // Who read the file while it lacked what was lost hears that it has changed.
            self.commit(file, Word::Passing, None, deadline).await?;
        }
        if let Some(changes) = missed {
            self.sync_others(file, &BTreeSet::new(), deadline).await?;
            let mut inner = file.inner.lock();
            inner.foreign_durable = inner.foreign_durable.max(changes);
        }
        Ok(())
    }

    /// Starts what is dirty. With `sync`, slabs that are alone on a chain without unsynced writes go with the sync flag. If
    /// there is one such slab and nothing else, it is returned to be carried by the caller.
    fn send_all(self: &Arc<Self>, file: &Arc<FileState>, sync: bool) -> (u64, Option<(SlabIndex, Arc<Slab>)>) {
        let table = self.chunks.routing().current();
        let mut inner = file.inner.lock();
        let target = inner.dirty.last_write();
        inner.drain_to = inner.drain_to.max(target);
        let ready = inner.dirty.ready(self.now_ms(), FLUSH_AGE_MS, target);
        if ready.len() > MAX_SYNCED_SLABS {
            return (target, None);
        }
        let taken: Vec<_> = ready
            .into_iter()
            .filter_map(|index| inner.dirty.take(index).map(|slab| (index, slab)))
            .map(|(index, slab)| {
                let offset = slab.offset();
                let chain = file.chain_of(&table, file.layout.chunk_of(offset)).ok();
                (index, slab, chain)
            })
            .collect();
        let mut slabs_of: BTreeMap<Option<ChainId>, usize> = BTreeMap::new();
        for (_, _, chain) in &taken {
            *slabs_of.entry(*chain).or_default() += 1;
        }
        let mut jobs: Vec<_> = taken
            .into_iter()
            .map(|(index, slab, chain)| {
                let alone = slabs_of.get(&chain) == Some(&1) && slab.extents.len() == 1;
                let clean = chain.is_some_and(|chain| !inner.unsynced.contains(chain));
                (index, slab, alone && clean)
            })
            .collect();
        drop(inner);
        if let [(_, _, true)] = jobs.as_slice() {
            return (target, jobs.pop().map(|(index, slab, _)| (index, slab)));
        }
        for (index, slab, fit) in jobs {
            self.start(file, index, slab, fit && sync);
        }
        (target, None)
    }

    pub(super) async fn sync_chains(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        chains: Vec<(ChainId, Owing)>,
        deadline: Instant,
    ) -> Result<()> {
        if let [(chain, owing)] = chains.as_slice() {
            return self.sync_chain(file, *chain, owing, deadline).await;
        }
        let mut tasks = JoinSet::new();
        for (chain, owing) in chains {
            let (mount, file) = (Arc::clone(self), Arc::clone(file));
            tasks.spawn(async move { mount.sync_chain(&file, chain, &owing, deadline).await });
        }
        join_all(tasks).await.map(|_| ())
    }

    async fn sync_chain(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        chain: ChainId,
        owing: &Owing,
        deadline: Instant,
    ) -> Result<()> {
        let (level, whose) = (file.write_level, (file.session, file.inode));
        let synced = if planted::is(Bug::SyncSkipped) {
            Ok(())
        } else {
            self.chunks.sync(chain, level, owing.since(), whose, deadline).await
        };
        let synced = match synced {
            Err(error) if error.code == ErrorCode::UnsyncedLost => self.write_again(file, chain, error, deadline).await,
            synced => synced,
        };
        if let Err(error) = synced {
            if error.code != ErrorCode::UnsyncedLost {
                return Err(error);
            }
            tracing::warn!(inode = file.inode.0, "{error}");
            {
                // Told once by every handle, like a write that failed late.
                let mut inner = file.inner.lock();
                inner.unsynced.told_lost(chain);
                inner.tail = None;
                inner.generation += 1;
                inner.errors.record(error);
            }
            // A refused sync makes nothing durable, and some of what is owed may have been written
            // after the loss.
            self.chunks
                .sync(chain, level, VOUCHES_FOR_NOTHING, whose, deadline)
                .await?;
        }
        file.inner.lock().chain_synced(chain, owing);
        Ok(())
    }

    /// Makes durable what others wrote to the file, on the chains whose sync is not due anyway.
    async fn sync_others(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        known: &BTreeSet<ChainId>,
        deadline: Instant,
    ) -> Result<()> {
        if planted::is(Bug::ForeignSyncSkipped) {
            return Ok(());
        }
        let table = self.chunks.routing().current();
        let chunks = file.layout.chunk_of(file.inner.lock().attributes.length_bytes).0;
        let every = table
            .tables
            .get(&file.layout.table)
            .map_or(0, |table| table.chains.len());
        // A file with more chunks than chains is on all of them.
        let chunks = chunks.min(u32::try_from(every).unwrap_or(u32::MAX));
        let chains = (0..=chunks).map(|index| file.chain_of(&table, ChunkIndex(index)));
        let chains: BTreeSet<ChainId> = chains.collect::<Result<_>>()?;
        let mut tasks = JoinSet::new();
        for &chain in chains.difference(known) {
            let (mount, file) = (Arc::clone(self), Arc::clone(file));
            tasks.spawn(async move { mount.sync_seen(&file, chain, deadline).await });
        }
        join_all(tasks).await.map(|_| ())
    }

    /// Makes durable what a chain has of the file, and finds out if it has lost what this mount has read of it.
    async fn sync_seen(&self, file: &FileState, chain: ChainId, deadline: Instant) -> Result<()> {
        let (level, whose) = (file.write_level, (file.session, file.inode));
        self.chunks
            .sync(chain, level, VOUCHES_FOR_NOTHING, whose, deadline)
            .await?;
        let table = self.chunks.routing().current();
        for (index, version) in self.chunks.seen_of(file.inode) {
            let revived = table.chain(chain).map_or(Epoch(0), |info| info.revived);
            if version.epoch >= revived || file.chain_of(&table, index)? != chain {
                continue;
            }
            let chunk = ChunkId::new(file.inode, index);
            if self
                .chunks
                .lost_since(chain, chunk, version, file.session, deadline)
                .await?
            {
                return Err(Error::new(
                    ErrorCode::UnsyncedLost,
                    format!(
                        "inode {} chunk {index}: what another mount wrote there was read by this one, and chain {chain} lost it \
                         before anybody synced it",
                        file.inode
                    ),
                ));
            }
        }
        Ok(())
    }
}
