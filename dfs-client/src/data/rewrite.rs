//! Writing again what a chain lost.
//!
//! A write is acknowledged when enough replicas have it in memory; only fsync waits for their disks. If they all lose their power in
//! between, the chain comes back without it and refuses the sync that vouches for it. The mount still has the bytes of what it
//! has not synced, up to a bound, so it writes them again, and fsync says what is true: they are durable. NFS clients keep unstable
//! writes for the same reason (RFC 1813, section 3.3.21).
//!
//! Invariant: what somebody wrote after the chain came back is never written over. Such a block has a version of an epoch
//! from then on, and every block is written on the condition of the older version that was found.

use std::collections::BTreeSet;

use dfs_common::wire::storage::BlockCondition;
use dfs_common::{BlockIndex, ChainId, ChunkId, Epoch, Error, ErrorCode, Result};
use tokio::time::Instant;

use super::blocks::{PlannedRun, plan};
use super::dirty::Slab;
use super::state::FileState;
use super::unsynced::Owing;
use crate::mount::Mount;

impl Mount {
    /// After `refusal`: writes again what this file has unsynced on the chain, durably; or the refusal, if not all of it
    /// is still here.
    pub(super) async fn write_again(
        &self,
        file: &FileState,
        chain: ChainId,
        owing: &Owing,
        refusal: Error,
        deadline: Instant,
    ) -> Result<()> {
        let Some(slabs) = file.inner.lock().unsynced.kept(chain) else {
            return Err(refusal);
        };
        let (_, written) = owing.since();
        let table = self.chunks.routing().current();
        let Some(lost_before) = table.chain(chain).map(|info| info.answers_since(written)) else {
            return Err(refusal);
        };
        tracing::warn!(
            inode = file.inode.0,
            "{refusal}: {} bytes are written again",
            slabs.iter().map(|slab| slab.size_bytes).sum::<usize>()
        );
        for slab in slabs {
            self.write_slab_again(file, chain, &slab, lost_before, deadline).await?;
        }
        Ok(())
    }

    async fn write_slab_again(
        &self,
        file: &FileState,
        chain: ChainId,
        slab: &Slab,
        lost_before: Epoch,
        deadline: Instant,
    ) -> Result<()> {
        for mut run in plan(&file.layout, &slab.extents) {
            let mut done = BTreeSet::new();
            while !self
                .write_run_again(file, chain, &mut run, lost_before, &mut done, deadline)
                .await?
            {
                if Instant::now() >= deadline {
                    return Err(Error::new(
                        ErrorCode::Timeout,
                        format!(
                            "inode {}: others write to the blocks that are written again",
                            file.inode
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// `false`: somebody else wrote one of the blocks meanwhile.
    async fn write_run_again(
        &self,
        file: &FileState,
        chain: ChainId,
        run: &mut PlannedRun,
        lost_before: Epoch,
        done: &mut BTreeSet<BlockIndex>,
        deadline: Instant,
    ) -> Result<bool> {
        let chunk = ChunkId::new(file.inode, run.chunk);
        let mut missing = Vec::new();
        for block in (run.first.0..run.first.0 + run.blocks()).map(BlockIndex) {
            if done.contains(&block) {
                continue;
            }
            let (version, base) = self.read_block(file, chain, chunk, block, deadline).await?;
            if version.epoch < lost_before {
                run.merge(block, &base);
                missing.push(BlockCondition { block, version });
            } else if run.partial.contains_key(&block) {
                // Whoever wrote there since did not see our part of it, and nobody knows which bytes are theirs.
                return Err(Error::new(
                    ErrorCode::UnsyncedLost,
                    format!(
                        "inode {} chunk {} block {block}: unsynced bytes were lost and others have written to the block since",
                        file.inode, run.chunk
                    ),
                ));
            }
        }
        for conditions in missing.chunk_by(|a, b| b.block.0 == a.block.0 + 1) {
            let part = run.part(conditions.iter().map(|condition| condition.block));
            let sent = self.send_run(file, chain, &part, conditions.to_vec(), true, deadline);
            match sent.await {
                Ok(_) => done.extend(conditions.iter().map(|condition| condition.block)),
                Err(error) if error.code == ErrorCode::ConditionFailed => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
