//! Where a file has data and where holes, and how much room it takes up.
//!
//! A file that never grew over blocks that were not written has no holes. Metadata knows which
//! files may have some ([`FileAttributes::sparse`]), and only of those the chains are asked.
//!
//! [`FileAttributes::sparse`]: dfs_common::wire::namespace::FileAttributes::sparse

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_common::units::BLOCK_SIZE_BYTES;
use dfs_common::wire::namespace::Attributes;
use dfs_common::wire::storage::{FileRun, FileRuns, RunsWanted};
use dfs_common::{BlockIndex, ChainId, ChunkIndex, Error, ErrorCode, InodeId, Layout, Result};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::state::FileState;
use crate::mount::Mount;

/// What is looked for from an offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

/// Whether it may have holes.
pub(crate) fn is_sparse(attributes: &Attributes) -> bool {
    attributes.file.as_ref().is_some_and(|file| file.sparse)
}

/// The run that has this block.
fn covering(found: &FileRuns, chunk: ChunkIndex, block: BlockIndex) -> Option<FileRun> {
    let after = found
        .runs
        .partition_point(|run| (run.chunk, run.first) <= (chunk, block));
    let run = *found.runs.get(after.checked_sub(1)?)?;
    (run.chunk == chunk && block.0 < run.first.0 + run.blocks).then_some(run)
}

impl Mount {
    /// How many bytes of storage the file takes up in each replica, holes left out.
    pub(crate) async fn allocated_bytes(self: &Arc<Self>, attributes: &Attributes, deadline: Instant) -> Result<u64> {
        let Some(file) = attributes.file.as_ref().filter(|file| file.sparse) else {
            return Ok(attributes.length_bytes);
        };
        let start = (ChunkIndex(0), BlockIndex(0));
        let every = self
            .runs(attributes.inode, &file.layout, start, RunsWanted::Count, deadline)
            .await?;
        let blocks: u64 = every.iter().map(|runs| runs.blocks).sum();
        Ok(blocks * BLOCK_SIZE_BYTES as u64)
    }

    /// The first offset at or after `offset` with data, or in a hole; the end of the file is a
    /// hole. What this mount has written is on the chains before. `None`: at or beyond the end, or
    /// no data follows.
    pub(crate) async fn seek(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        offset: u64,
        what: Seek,
        deadline: Instant,
    ) -> Result<Option<u64>> {
        if !self.knows_end(file) {
            self.refresh(file, deadline).await?;
        }
        let (length, sparse) = {
            let inner = file.inner.lock();
            let view = inner.view(&inner.attributes);
            (view.length_bytes, is_sparse(&view))
        };
        if offset >= length {
            return Ok(None);
        }
        if !sparse {
            return Ok(Some(if what == Seek::Data { offset } else { length }));
        }
        self.drain(file, deadline).await?;
        match what {
            Seek::Data => Ok(self.next_data(file, offset, deadline).await?.filter(|&at| at < length)),
            Seek::Hole => self.next_hole(file, offset, length, deadline).await.map(Some),
        }
    }

    async fn next_data(self: &Arc<Self>, file: &FileState, offset: u64, deadline: Instant) -> Result<Option<u64>> {
        let layout = &file.layout;
        let from = (layout.chunk_of(offset), layout.block_of(offset));
        let every = self.runs(file.inode, layout, from, RunsWanted::First, deadline).await?;
        let firsts = every.iter().filter_map(|runs| runs.runs.first());
        let starts = firsts.map(|run| layout.block_start(run.chunk, run.first).max(offset));
        Ok(starts.min())
    }

    /// Chunk by chunk, as each lies on a chain of its own; a chain is asked for many at once.
    async fn next_hole(self: &Arc<Self>, file: &FileState, offset: u64, length: u64, deadline: Instant) -> Result<u64> {
        let layout = &file.layout;
        let mut known: BTreeMap<ChainId, FileRuns> = BTreeMap::new();
        let mut at = offset;
        while at < length {
            let (chunk, block) = (layout.chunk_of(at), layout.block_of(at));
            let chain = file.chain_of(&self.chunks.routing().current(), chunk)?;
            let run = known.get(&chain).and_then(|found| covering(found, chunk, block));
            let run = match (run, known.get(&chain)) {
                (Some(run), _) => Some(run),
                // All that it has was told.
                (None, Some(found)) if !found.more => None,
                _ => {
                    let (from, wanted) = ((chunk, block), RunsWanted::First);
                    let found = self.chunks.file_runs(chain, file.inode, from, wanted, deadline).await?;
                    let run = covering(&found, chunk, block);
                    known.insert(chain, found);
                    run
                }
            };
            let Some(run) = run else { return Ok(at) };
            let end = layout.block_start(chunk, BlockIndex(run.first.0 + run.blocks));
            if layout.chunk_of(end) == chunk {
                return Ok(end.min(length));
            }
            at = end;
        }
        Ok(length)
    }

    /// Of every chain that may have some of the file.
    async fn runs(
        self: &Arc<Self>,
        inode: InodeId,
        layout: &Layout,
        from: (ChunkIndex, BlockIndex),
        wanted: RunsWanted,
        deadline: Instant,
    ) -> Result<Vec<FileRuns>> {
        let table = self.chunks.routing().current();
        let chains = table.tables.get(&layout.table).map(|table| table.chains.clone());
        let chains: BTreeSet<ChainId> = chains.into_iter().flatten().collect();
        let mut questions = JoinSet::new();
        for chain in chains {
            let mount = Arc::clone(self);
            questions.spawn(async move { mount.chunks.file_runs(chain, inode, from, wanted, deadline).await });
        }
        let mut every = Vec::new();
        while let Some(answer) = questions.join_next().await {
            let answer =
                answer.map_err(|error| Error::new(ErrorCode::Internal, format!("a question's task died: {error}")))?;
            every.push(answer?);
        }
        Ok(every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_in_a_run_or_in_a_hole() {
        let mut found = FileRuns::default();
        for (chunk, first, blocks) in [(1, 0, 3), (1, 3, 2), (1, 8, 1), (4, 2, 5)] {
            let (chunk, first) = (ChunkIndex(chunk), BlockIndex(first));
            assert!(found.add(RunsWanted::First, FileRun { chunk, first, blocks }));
        }
        let at =
            |chunk, block| covering(&found, ChunkIndex(chunk), BlockIndex(block)).map(|run| (run.first.0, run.blocks));
        let run = Some((0, 5));
        assert_eq!([at(1, 0), at(1, 4), at(1, 5), at(1, 8)], [run, run, None, Some((8, 1))]);
        assert_eq!(
            [at(0, 0), at(1, 9), at(3, 2), at(4, 1), at(4, 6)],
            [None, None, None, None, Some((2, 5))]
        );
    }
}
