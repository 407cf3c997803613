//! The chunks of one chain: what its complete members have in memory, and how much of it their disks have.
//!
//! Members are one copy here; how they agree is the storage node's own tests' and the simulator's matter. What is modelled is what
//! a mount can tell: versions, conditions, remembered requests, truncation epochs, and that a power cut of all who had it leaves
//! what was synced and some prefix of what came after, as a log does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use dfs_common::wire::storage::{BlockRun, FileRun, FileRuns, MutateRequest, Mutation, RunsWanted};
use dfs_common::{
    BlockIndex, ChunkId, ChunkIndex, ChunkVersion, CutEpoch, Epoch, Error, ErrorCode, InodeId, RequestId, Result,
};

const SEAL: usize = dfs_common::units::SEAL_SIZE_BYTES;
const BLOCK: usize = dfs_common::units::BLOCK_SIZE_BYTES;

#[derive(Debug)]
struct Block {
    version: ChunkVersion,
    seal: Bytes,
    data: Bytes,
}

#[derive(Debug, Default)]
struct Chunk {
    version: ChunkVersion,
    cut: CutEpoch,
    /// The last mutation that cut blocks off.
    trimmed: ChunkVersion,
    blocks: BTreeMap<u32, Arc<Block>>,
    remembered: BTreeMap<RequestId, ChunkVersion>,
}

/// One mutation, backwards.
#[derive(Debug)]
struct Undo {
    chunk: ChunkId,
    version: ChunkVersion,
    cut: CutEpoch,
    trimmed: ChunkVersion,
    blocks: Vec<(u32, Option<Arc<Block>>)>,
    request: RequestId,
}

/// See the module.
#[derive(Debug, Default)]
pub struct ChainData {
    chunks: BTreeMap<ChunkId, Chunk>,
    unsynced: VecDeque<Undo>,
    /// Mutations that are on disk for good.
    synced: u64,
    /// Power cuts that took something: an answer about what was before one does not count.
    pub losses: u64,
}

/// Whether reads of removed inodes fail, or find holes as they did before tombstones knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tombstones {
    Fail,
    ReadAsHoles,
}

fn stale(chunk: ChunkId, cut: CutEpoch) -> Error {
    let code = if cut == CutEpoch::GONE {
        ErrorCode::StaleInode
    } else {
        ErrorCode::StaleCut
    };
    Error::new(code, format!("chunk {chunk} has seen truncation epoch {cut}"))
}

impl ChainData {
    /// Mutations so far: what a sync that begins now covers.
    pub fn position(&self) -> u64 {
        self.synced + self.unsynced.len() as u64
    }

    pub fn synced_to(&mut self, position: u64) {
        while self.synced < position && self.unsynced.pop_front().is_some() {
            self.synced += 1;
        }
    }

    /// All who had it lost their power: of what was not synced, only the first `kept` mutations were on a disk by chance.
    pub fn lose(&mut self, kept: u64) -> u64 {
        let mut lost = 0;
        while self.unsynced.len() as u64 > kept {
            let Some(undo) = self.unsynced.pop_back() else { break };
            let chunk = self.chunks.entry(undo.chunk).or_default();
            chunk.version = undo.version;
            chunk.cut = undo.cut;
            chunk.trimmed = undo.trimmed;
            chunk.remembered.remove(&undo.request);
            for (index, block) in undo.blocks.into_iter().rev() {
                match block {
                    Some(block) => chunk.blocks.insert(index, block),
                    None => chunk.blocks.remove(&index),
                };
            }
            lost += 1;
        }
        // What is left was on the disk.
        self.synced += self.unsynced.len() as u64;
        self.unsynced.clear();
        self.losses += u64::from(lost > 0);
        lost
    }

    pub fn unsynced(&self) -> u64 {
        self.unsynced.len() as u64
    }

    pub fn mutate(&mut self, epoch: Epoch, request: &MutateRequest, payload: &[Bytes]) -> Result<ChunkVersion> {
        let chunk = self.chunks.entry(request.chunk).or_default();
        if let Some(&version) = chunk.remembered.get(&request.id) {
            return Ok(version);
        }
        if request.cut < chunk.cut {
            return Err(stale(request.chunk, chunk.cut));
        }
        if let Mutation::Write { conditions, .. } = &request.mutation {
            for condition in conditions {
                let found = chunk
                    .blocks
                    .get(&condition.block.0)
                    .map_or(ChunkVersion::NONE, |block| block.version);
                if found != condition.version {
                    return Err(Error::new(
                        ErrorCode::ConditionFailed,
                        format!("block {} is at {found}, not {}", condition.block, condition.version),
                    ));
                }
            }
            if request.uncut_since.is_some_and(|expected| expected != chunk.trimmed) {
                return Err(ErrorCode::ConditionFailed.into());
            }
        }
        let version = chunk.version.successor(epoch);
        let mut undo = Undo {
            chunk: request.chunk,
            version: chunk.version,
            cut: chunk.cut,
            trimmed: chunk.trimmed,
            blocks: Vec::new(),
            request: request.id,
        };
        match &request.mutation {
            Mutation::Write {
                first,
                blocks,
                last_length_bytes,
                ..
            } => chunk.write(version, (*first, *blocks, *last_length_bytes), payload, &mut undo),
            Mutation::Truncate { blocks } => chunk.cut_from(*blocks, version, &mut undo),
            Mutation::Remove => chunk.cut_from(0, version, &mut undo),
        }
        chunk.version = version;
        chunk.cut = chunk.cut.max(request.cut);
        chunk.remembered.insert(request.id, version);
        self.unsynced.push_back(undo);
        Ok(version)
    }

    /// Chunks at or after `from` that have not seen a later truncation become empty.
    pub fn remove_range(&mut self, epoch: Epoch, inodes: &[InodeId], from: ChunkIndex, cut: CutEpoch) -> u64 {
        let mut removed = 0;
        for &inode in inodes {
            let all = ChunkId::new(inode, from)..=ChunkId::new(inode, ChunkIndex(u32::MAX));
            for (&id, chunk) in self.chunks.range_mut(all) {
                if chunk.cut > cut || chunk.version.is_none() {
                    continue;
                }
                let version = chunk.version.successor(epoch);
                let mut undo = Undo {
                    chunk: id,
                    version: chunk.version,
                    cut: chunk.cut,
                    trimmed: chunk.trimmed,
                    blocks: Vec::new(),
                    request: RequestId::SYSTEM,
                };
                chunk.cut_from(0, version, &mut undo);
                chunk.version = version;
                chunk.cut = cut;
                self.unsynced.push_back(undo);
                removed += 1;
            }
        }
        removed
    }

    /// Runs of one block each and their payload.
    pub fn read(
        &self,
        id: ChunkId,
        first: BlockIndex,
        blocks: u32,
        tombstones: Tombstones,
    ) -> Result<(ChunkVersion, Vec<BlockRun>, Bytes)> {
        let Some(chunk) = self.chunks.get(&id) else {
            return Ok((ChunkVersion::NONE, Vec::new(), Bytes::new()));
        };
        if chunk.cut == CutEpoch::GONE && tombstones == Tombstones::Fail {
            return Err(stale(id, chunk.cut));
        }
        let mut runs = Vec::new();
        let mut payload = Vec::new();
        for (&index, block) in chunk.blocks.range(first.0..first.0 + blocks) {
            runs.push(BlockRun {
                first: BlockIndex(index),
                blocks: 1,
                last_length_bytes: block.data.len() as u32,
                version: block.version,
            });
            payload.extend_from_slice(&block.seal);
            payload.extend_from_slice(&block.data);
        }
        Ok((chunk.version, runs, Bytes::from(payload)))
    }

    /// Its blocks from that place on.
    pub fn file_runs(&self, inode: InodeId, from: (ChunkIndex, BlockIndex), wanted: RunsWanted) -> FileRuns {
        let mut found = FileRuns::default();
        let all = ChunkId::new(inode, from.0)..=ChunkId::new(inode, ChunkIndex(u32::MAX));
        for (id, chunk) in self.chunks.range(all) {
            let least = if id.index == from.0 { from.1.0 } else { 0 };
            for &block in chunk.blocks.range(least..).map(|(block, _)| block) {
                let run = FileRun {
                    chunk: id.index,
                    first: BlockIndex(block),
                    blocks: 1,
                };
                if !found.add(wanted, run) {
                    return found;
                }
            }
        }
        found
    }

    /// The last chunk of the inode with data, and where that ends.
    pub fn file_end(&self, inode: InodeId, from: ChunkIndex) -> Option<(ChunkIndex, u32)> {
        let all = ChunkId::new(inode, from)..=ChunkId::new(inode, ChunkIndex(u32::MAX));
        self.chunks.range(all).rev().find_map(|(id, chunk)| {
            let (&last, block) = chunk.blocks.last_key_value()?;
            Some((id.index, last * BLOCK as u32 + block.data.len() as u32))
        })
    }
}

impl Chunk {
    fn write(
        &mut self,
        version: ChunkVersion,
        (first, blocks, last): (BlockIndex, u32, u32),
        payload: &[Bytes],
        undo: &mut Undo,
    ) {
        let payload = match payload {
            [one] => one.clone(),
            parts => Bytes::from(parts.concat()),
        };
        let count = blocks as usize;
        let size = (count - 1) * BLOCK + last as usize;
        assert_eq!(payload.len(), count * SEAL + size, "payload and header disagree");
        for i in 0..count {
            let data = count * SEAL + i * BLOCK..count * SEAL + ((i + 1) * BLOCK).min(size);
            let block = Block {
                version,
                seal: payload.slice(i * SEAL..(i + 1) * SEAL),
                data: payload.slice(data),
            };
            let index = first.0 + i as u32;
            undo.blocks.push((index, self.blocks.insert(index, Arc::new(block))));
        }
    }

    fn cut_from(&mut self, blocks: u32, version: ChunkVersion, undo: &mut Undo) {
        self.trimmed = version;
        for (index, block) in self.blocks.split_off(&blocks) {
            undo.blocks.push((index, Some(block)));
        }
    }
}
