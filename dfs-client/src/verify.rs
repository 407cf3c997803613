//! Whether a file is whole on every replica: each of its blocks is read from each and opened with the file's key.
//!
//! `chain verify` compares replicas without a key; this finds what checksums can not, too: a block that was sealed for another place or
//! with another key.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::units::{BLOCK_SIZE_BYTES, MAX_IO_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::namespace::Attributes;
use dfs_common::wire::storage::{BlockRun, StorageRequest, StorageResponse};
use dfs_common::{
    BlockIndex, ChainInfo, ChunkId, ChunkIndex, ChunkVersion, Error, ErrorCode, Level, Result, RoutingTable, SessionId,
    StorageId,
};
use dfs_crypto::block::BlockCipher;
use dfs_crypto::key::RootKey;
use tokio::time::Instant;

use crate::admin::AdminClient;
use crate::data::reader::open;
use crate::keys::Keys;

/// Blocks of one read.
const PART_BLOCKS: u32 = (MAX_IO_SIZE_BYTES / BLOCK_SIZE_BYTES) as u32;

/// Replicas of a chunk may differ for so long while somebody writes to it.
const SETTLE: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(100);

/// What one replica has of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaReport {
    pub chunks: u64,
    /// Blocks that were read and opened.
    pub blocks: u64,
    /// What is wrong, one line each.
    pub bad: Vec<String>,
}

/// A file as its replicas have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileReport {
    pub replicas: BTreeMap<StorageId, ReplicaReport>,
    /// Chunks of which fewer replicas were looked at than the chain has members, and why.
    pub missing: Vec<String>,
}

impl FileReport {
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.replicas.values().all(|replica| replica.bad.is_empty())
    }
}

/// One chunk on one replica.
struct Found {
    version: ChunkVersion,
    blocks: u64,
    /// Over everything that was read.
    digest: blake3::Hash,
    bad: Vec<String>,
}

impl AdminClient {
    /// Reads and opens every block of a regular file on every replica that is in sync.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no regular file, and trouble with the routing table or the key. What is wrong with a replica is in the report.
    pub async fn verify_file(&self, attributes: &Attributes, root: &RootKey) -> Result<FileReport> {
        let places = self.locate(attributes).await?;
        let table = self.table().await?;
        let mut report = FileReport::default();
        let Some(file) = &attributes.file else {
            return Ok(report);
        };
        let keys = Keys::new(self.cluster(), root.clone());
        let cipher = keys.cipher(attributes.inode, &file.key)?;
        let blocks = file.layout.chunk_size_bytes / BLOCK_SIZE_BYTES as u32;
        for place in places {
            let chunk = ChunkId::new(attributes.inode, place.index);
            let mut serving = 0;
            let look = Look {
                admin: self,
                table: &table,
                chain: &place.chain,
                chunk,
                blocks,
                cipher: &cipher,
            };
            for (node, found) in look.settled().await {
                let replica = report.replicas.entry(node).or_default();
                serving += 1;
                match found {
                    Ok(found) => {
                        replica.chunks += 1;
                        replica.blocks += found.blocks;
                        replica.bad.extend(found.bad);
                    }
                    Err(error) => replica.bad.push(format!("chunk {}: {error}", place.index)),
                }
            }
            let members = place.chain.members.len();
            if serving < members {
                report.missing.push(missing(&place.chain, place.index, serving));
            }
        }
        Ok(report)
    }
}

/// One chunk and what is needed to look at it.
struct Look<'a> {
    admin: &'a AdminClient,
    table: &'a RoutingTable,
    chain: &'a ChainInfo,
    chunk: ChunkId,
    blocks: u32,
    cipher: &'a BlockCipher,
}

impl Look<'_> {
    /// What every serving member has of it, looked at again while they differ: writes are under way, or damage is being mended.
    async fn settled(&self) -> Vec<(StorageId, Result<Found>)> {
        let until = Instant::now() + SETTLE;
        loop {
            let mut all = Vec::new();
            for node in self.chain.serving() {
                all.push((node, self.on_replica(node).await));
            }
            let mut found = all.iter().filter_map(|(_, found)| found.as_ref().ok());
            let first = found.next().map(|found| (found.version, found.digest));
            let differ = found.any(|found| first != Some((found.version, found.digest)));
            if !differ {
                return all;
            }
            if Instant::now() >= until {
                self.name_differences(&mut all);
                return all;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn name_differences(&self, all: &mut [(StorageId, Result<Found>)]) {
        let mut first: Option<(StorageId, ChunkVersion, blake3::Hash)> = None;
        for (node, found) in all {
            let Ok(found) = found else { continue };
            match first {
                None => first = Some((*node, found.version, found.digest)),
                // What is damaged is named already.
                Some((of, version, digest))
                    if (found.version, found.digest) != (version, digest) && found.bad.is_empty() =>
                {
                    found.bad.push(format!(
                        "chunk {}: version {} with other bytes than storage-{of} has (version {version})",
                        self.chunk.index, found.version
                    ));
                }
                Some(_) => {}
            }
        }
    }

    async fn on_replica(&self, node: StorageId) -> Result<Found> {
        let mut digest = blake3::Hasher::new();
        let mut found = Found {
            version: ChunkVersion::NONE,
            blocks: 0,
            digest: digest.finalize(),
            bad: Vec::new(),
        };
        for first in (0..self.blocks).step_by(PART_BLOCKS as usize) {
            let part = (BlockIndex(first), PART_BLOCKS.min(self.blocks - first));
            match self.part(node, part).await {
                Ok((version, runs, payload)) => {
                    found.version = version;
                    found.blocks += runs.iter().map(|run| u64::from(run.blocks)).sum::<u64>();
                    add(&mut digest, &runs, &payload);
                }
                Err(error) if error.code == ErrorCode::Corrupt => self.each_block(node, part, &mut found).await?,
                Err(error) => return Err(error),
            }
        }
        found.digest = digest.finalize();
        Ok(found)
    }

    /// Names the blocks of a part that are bad.
    async fn each_block(&self, node: StorageId, part: (BlockIndex, u32), found: &mut Found) -> Result<()> {
        let (first, blocks) = part;
        for block in first.0..first.0 + blocks {
            match self.part(node, (BlockIndex(block), 1)).await {
                Ok((version, runs, _)) => {
                    found.version = version;
                    found.blocks += runs.len() as u64;
                }
                Err(error) if error.code == ErrorCode::Corrupt => {
                    let index = self.chunk.index;
                    found.bad.push(format!("chunk {index} block {block}: {}", error.detail));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Some blocks from one replica, which open.
    async fn part(
        &self,
        node: StorageId,
        (first, blocks): (BlockIndex, u32),
    ) -> Result<(ChunkVersion, Vec<BlockRun>, Bytes)> {
        let request = StorageRequest::Read {
            chain: self.chain.id,
            epoch: self.chain.epoch,
            chunk: self.chunk,
            first,
            blocks,
            level: Level::One,
            not_before: ChunkVersion::NONE,
            session: SessionId::SYSTEM,
        };
        let (response, payload) = self.admin.storage_data(self.table, node, &request).await?;
        let StorageResponse::Read { version, runs } = response else {
            return Err(Error::new(
                ErrorCode::BadMessage,
                format!("storage-{node} answered a read with something else"),
            ));
        };
        open(self.cipher, self.chunk, (first, blocks), &runs, &payload)?;
        Ok((version, runs, payload))
    }
}

/// Block by block, since replicas may hold the same blocks in runs of other lengths.
fn add(digest: &mut blake3::Hasher, runs: &[BlockRun], payload: &[u8]) {
    let mut at = 0;
    for run in runs {
        let mut seal = at;
        let mut data = at + run.blocks as usize * SEAL_SIZE_BYTES;
        for block in run.each_block() {
            let length = block.last_length_bytes as usize;
            let version = block.version;
            digest.update(format!("{} {version} {length} ", block.first).as_bytes());
            for (from, size) in [(seal, SEAL_SIZE_BYTES), (data, length)] {
                digest.update(payload.get(from..from + size).unwrap_or_default());
            }
            seal += SEAL_SIZE_BYTES;
            data += length;
        }
        at += run.payload_size_bytes();
    }
}

fn missing(chain: &ChainInfo, chunk: ChunkIndex, serving: usize) -> String {
    let members = chain.members.len();
    format!(
        "chunk {chunk}: chain {} has {serving} of {members} replicas in sync; the others were not looked at",
        chain.id
    )
}
