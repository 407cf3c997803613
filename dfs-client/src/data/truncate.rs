//! Cutting a file: dirty data out first, then the chunks, then the length.
//!
//! Order matters: with the chunks cut first, a crash in between leaves a file that is as long as before and reads zeros,
//! never one that shows old bytes after it grows again. Up to [`MAX_REMOVALS`] chunks are removed one by one, exactly
//! once each; beyond that one range request per chain does it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use dfs_common::units::BLOCK_SIZE_BYTES;
use dfs_common::wire::namespace::{Attributes, Caller, NamespaceChange, NamespaceOp};
use dfs_common::wire::storage::{BlockCondition, Mutation};
use dfs_common::{BlockIndex, ChunkId, ChunkIndex, Error, ErrorCode, Result};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::state::FileState;
use super::writer::{join_all, timeout, too_big, unexpected_change};
use crate::mount::{Mount, wall_clock};

/// Chunks removed by requests of their own.
const MAX_REMOVALS: u32 = 64;

impl Mount {
    /// Makes the file exactly this long.
    pub(crate) async fn set_length(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        caller: Caller,
        length: u64,
        deadline: Instant,
    ) -> Result<Attributes> {
        if length > file.layout.max_length_bytes() {
            return Err(too_big(file, length));
        }
        let _alone = timeout(deadline, file.gate.write(), || {
            format!("truncate of inode {}: writes to it do not end", file.inode)
        })
        .await?;
        self.drain(file, deadline).await?;
        let begin = NamespaceOp::BeginCut {
            inode: file.inode,
            length_bytes: length,
            mtime: Some(wall_clock()),
        };
        let begun = self.session.change(caller, begin, deadline).await?;
        let NamespaceChange::CutBegun {
            attributes,
            before_bytes,
        } = begun
        else {
            return Err(unexpected_change(file.inode));
        };
        let (cut, old) = {
            let mut inner = file.inner.lock();
            let own = inner.stable_length();
            inner.learn_own(&attributes);
            inner.tail = None;
            inner.generation += 1;
            (inner.cut(), own.max(before_bytes))
        };
        if length < old {
            self.cut(file, length, old, deadline).await?;
        }
        let _turn = timeout(deadline, file.commit_turn.lock(), || {
            format!("truncate of inode {}: a commit before it does not end", file.inode)
        })
        .await?;
        let op = NamespaceOp::SetLength {
            inode: file.inode,
            length_bytes: length,
            mtime: Some(wall_clock()),
            cut: Some(cut),
        };
        let change = self.session.change(caller, op, deadline).await?;
        let NamespaceChange::Entry { attributes, .. } = change else {
            return Err(unexpected_change(file.inode));
        };
        let mut inner = file.inner.lock();
        inner.generation += 1;
        // Everything owed was below the old end, and the command said length and time.
        inner.learn_own(&attributes);
        inner.length_told();
        inner.growth = None;
        Ok(inner.view(&attributes))
    }

    async fn cut(self: &Arc<Self>, file: &Arc<FileState>, length: u64, old: u64, deadline: Instant) -> Result<()> {
        let table = self.chunks.routing().current();
        let cut = file.inner.lock().cut();
        let layout = file.layout;
        let boundary = layout.chunk_of(length);
        let within = (length - layout.chunk_start(boundary)) as usize;
        let last = layout.chunk_of(old.saturating_sub(1));
        let first_whole = if within == 0 { boundary } else { boundary.next() };
        let mut tasks = JoinSet::new();
        if within > 0 {
            let (mount, file) = (Arc::clone(self), Arc::clone(file));
            tasks.spawn(async move { mount.cut_chunk(&file, boundary, within, deadline).await });
        }
        let whole = (last.0 + 1).saturating_sub(first_whole.0);
        if whole <= MAX_REMOVALS {
            for index in first_whole.0..first_whole.0 + whole {
                let (mount, file) = (Arc::clone(self), Arc::clone(file));
                let index = ChunkIndex(index);
                tasks.spawn(async move {
                    mount
                        .mutate_chunk(&file, index, &Mutation::Remove, Bytes::new(), deadline)
                        .await
                });
            }
        } else {
            let chains = table
                .tables
                .get(&layout.table)
                .map(|table| table.chains.clone())
                .unwrap_or_default();
            for chain in chains.into_iter().collect::<BTreeSet<_>>() {
                let (mount, file) = (Arc::clone(self), Arc::clone(file));
                file.inner.lock().unsynced.starts(chain);
                tasks.spawn(async move {
                    let (level, inode) = (file.write_level, file.inode);
                    let epoch = mount
                        .chunks
                        .remove_range(chain, level, inode, first_whole, (file.session, cut), deadline)
                        .await?;
                    let mut inner = file.inner.lock();
                    inner.unsynced.acknowledged(chain, epoch, level);
                    inner.unsynced.gap(chain);
                    Ok(())
                });
            }
        }
        join_all(tasks).await
    }

    /// The chunk in which the new end lies: its last block loses its rest, the blocks behind it become holes.
    async fn cut_chunk(&self, file: &FileState, index: ChunkIndex, within: usize, deadline: Instant) -> Result<()> {
        let blocks = within.div_ceil(BLOCK_SIZE_BYTES);
        let keep = within % BLOCK_SIZE_BYTES;
        if keep > 0 {
            let block = BlockIndex((blocks - 1) as u32);
            self.cut_block(file, index, block, keep, deadline).await?;
        }
        if blocks < file.layout.blocks_per_chunk() as usize {
            let mutation = Mutation::Truncate { blocks: blocks as u32 };
            self.mutate_chunk(file, index, &mutation, Bytes::new(), deadline)
                .await?;
        }
        Ok(())
    }

    async fn cut_block(
        &self,
        file: &FileState,
        index: ChunkIndex,
        block: BlockIndex,
        keep: usize,
        deadline: Instant,
    ) -> Result<()> {
        let chunk = ChunkId::new(file.inode, index);
        loop {
            let table = self.chunks.routing().current();
            let chain = file.chain_of(&table, index)?;
            let (version, mut base) = self.read_block(file, chain, chunk, block, deadline).await?;
            if base.len() <= keep {
                return Ok(());
            }
            base.truncate(keep);
            let mut sealed = Vec::new();
            file.cipher
                .seal(index, block, &base, &self.nonces, &mut sealed)
                .map_err(Error::from)?;
            let mutation = Mutation::Write {
                first: block,
                blocks: 1,
                last_length_bytes: keep as u32,
                conditions: vec![BlockCondition { block, version }],
            };
            match self
                .mutate_chunk(file, index, &mutation, Bytes::from(sealed), deadline)
                .await
            {
                Err(error) if error.code == ErrorCode::ConditionFailed && Instant::now() < deadline => {}
                other => return other,
            }
        }
    }

    async fn mutate_chunk(
        &self,
        file: &FileState,
        index: ChunkIndex,
        mutation: &Mutation,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<()> {
        let table = self.chunks.routing().current();
        let chain = file.chain_of(&table, index)?;
        file.inner.lock().unsynced.starts(chain);
        let chunk = ChunkId::new(file.inode, index);
        let how = (file.write_level, false);
        let whose = (file.session, file.inner.lock().cut());
        let written = self
            .chunks
            .mutate(chain, chunk, whose, how, mutation, payload, deadline)
            .await?;
        let mut inner = file.inner.lock();
        inner.unsynced.acknowledged(chain, written.epoch, file.write_level);
        inner.unsynced.gap(chain);
        Ok(())
    }
}
