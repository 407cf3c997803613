//! The I/O of a resync: what a replica core decides to copy, moved in parts with a deadline each.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::units::{BLOCK_SIZE_BYTES, MAX_CHUNK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::wire::storage::{BlockRun, ChunkMemory, FoundBy, InstallPart, StorageRequest, StorageResponse};
use dfs_common::{BlockIndex, ChainId, ChunkId, ChunkVersion, Epoch, Error, ErrorCode, Result, StorageId};

use crate::reconcile::Pass;
use crate::replica::CopyReport;
use crate::service::chain::{Chain, blocking, expect};
use crate::service::node::Node;
use crate::store::{ChunkRead, StoreError};

/// For one part. Mutations of the chunk wait for it, so it is short.
const PART_DEADLINE: Duration = Duration::from_secs(3);

/// Blocks in one part: with their seals within half a MiB. Larger ones are felt by clients, smaller ones cost memory: each becomes an
/// extent of the copy's index.
const PART_BLOCKS: u32 = ((1 << 19) / (BLOCK_SIZE_BYTES + SEAL_SIZE_BYTES)) as u32;

/// Between two looks whether a mutation of the chunk has come meanwhile.
const YIELD: Duration = Duration::from_millis(5);

const MAX_BLOCKS: u32 = MAX_CHUNK_SIZE_BYTES / BLOCK_SIZE_BYTES as u32;

/// Chunks in one inventory message: 40 bytes each, well within a header.
const INVENTORY_CHUNKS: u32 = 8_192;

const REPORT_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) async fn fetch_inventory(
    node: &Arc<Node>,
    chain: ChainId,
    epoch: Epoch,
    to: StorageId,
    after: Option<ChunkId>,
) -> Result<(Vec<(ChunkId, ChunkVersion)>, bool)> {
    let request = StorageRequest::Inventory {
        chain,
        epoch,
        after,
        limit: INVENTORY_CHUNKS,
    };
    let answer = node
        .network
        .storage(&node.routing(), to, Lane::Bulk, &request, &[], PART_DEADLINE)
        .await?;
    match answer.0 {
        StorageResponse::Inventory { chunks, end } => {
            // Nothing is copied over or dropped before what only they have is safe.
            Pass {
                node,
                chain,
                epoch,
                member: to,
            }
            .over(&chunks)
            .await?;
            Ok((chunks, end))
        }
        StorageResponse::Failed(error) => Err(error),
        response => Err(Error::new(
            ErrorCode::BadMessage,
            format!("an inventory answered with {response:?}"),
        )),
    }
}

/// The syncing side's inventory. What its disk has damaged is listed without its version, so that it is copied. Nothing of it
/// is given up before: what is left here may be all that is left of another block.
pub(crate) fn list(node: &Node, chain: ChainId, after: Option<ChunkId>, limit: u32) -> StorageResponse {
    let mut chunks = node.store.list(chain, after, limit as usize);
    for (chunk, version) in &mut chunks {
        if node.damage.is_damaged(*chunk) {
            *version = ChunkVersion::NONE;
        }
    }
    StorageResponse::Inventory {
        end: chunks.len() < limit as usize,
        chunks,
    }
}

pub(crate) async fn drop_chunks(
    node: &Arc<Node>,
    chain: ChainId,
    epoch: Epoch,
    to: StorageId,
    chunks: Vec<ChunkId>,
) -> Result<()> {
    let request = StorageRequest::DropChunks { chain, epoch, chunks };
    let answer = node
        .network
        .storage(&node.routing(), to, Lane::Bulk, &request, &[], PART_DEADLINE)
        .await;
    expect(answer, |response| matches!(response, StorageResponse::Dropped))
}

/// A copy that is being sent, as the node's budget counts it.
struct UnderWay<'a>(&'a Node);

impl<'a> UnderWay<'a> {
    fn new(node: &'a Node) -> Self {
        node.budget.lock().begin();
        Self(node)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.budget.lock().end();
    }
}

/// Copies one chunk, which the core keeps as it is meanwhile.
pub(crate) async fn copy_chunk(
    node: &Arc<Node>,
    state: &Chain,
    chain: ChainId,
    epoch: Epoch,
    to: StorageId,
    chunk: ChunkId,
) -> Result<CopyReport> {
    let _under_way = UnderWay::new(node);
    let copy = Copy {
        node,
        chain,
        epoch,
        to,
        chunk,
        version: node.store.version(chunk),
    };
    let mut size_bytes = 0;
    let mut begin = true;
    // One part behind, so that the last one that has blocks is also the one that finishes.
    let mut ready: Option<(Vec<BlockRun>, Bytes)> = None;
    let mut first = 0;
    loop {
        let found = blocking(usize::MAX, || next_part(node, chunk, &mut first))
            .inspect_err(|error| node.note_damage(chunk, FoundBy::Read, error))?;
        let Some(read) = found else {
            break;
        };
        if read.version != copy.version {
            return Err(Error::new(
                ErrorCode::Internal,
                format!(
                    "chunk {chunk} went from {} to {} while it was copied",
                    copy.version, read.version
                ),
            ));
        }
        if let Some((runs, payload)) = ready.replace((read.runs, read.payload)) {
            size_bytes += payload.len() as u64;
            node.budget.lock().copied(node.lease.now_ms(), payload.len() as u64);
            copy.send(begin, false, runs, payload).await?;
            begin = false;
            give_way(node, state, epoch, chunk).await;
        }
    }
    let (runs, payload) = ready.unwrap_or_default();
    size_bytes += payload.len() as u64;
    node.budget.lock().copied(node.lease.now_ms(), payload.len() as u64);
    copy.send(begin, true, runs, payload).await?;
    Ok(CopyReport {
        version: copy.version,
        size_bytes,
    })
}

/// Lets clients pass between two parts, unless one of them wants to change this chunk: then the sooner it ends the better.
async fn give_way(node: &Node, state: &Chain, epoch: Epoch, chunk: ChunkId) {
    while !state.is_waited_for(chunk) && state.epoch() == epoch && !node.stopping.is_cancelled() {
        let Some(pause) = node.budget.lock().wait(node.lease.now_ms()) else {
            return;
        };
        tokio::time::sleep(pause.min(YIELD)).await;
    }
}

/// The next part that is not all holes; `first` moves behind it.
fn next_part(node: &Node, chunk: ChunkId, first: &mut u32) -> std::result::Result<Option<ChunkRead>, StoreError> {
    while *first < MAX_BLOCKS {
        let blocks = PART_BLOCKS.min(MAX_BLOCKS - *first);
        let read = node.store.read(chunk, BlockIndex(*first), blocks)?;
        *first += blocks;
        if !read.runs.is_empty() {
            return Ok(Some(read));
        }
    }
    Ok(None)
}

struct Copy<'a> {
    node: &'a Arc<Node>,
    chain: ChainId,
    epoch: Epoch,
    to: StorageId,
    chunk: ChunkId,
    version: ChunkVersion,
}

impl Copy<'_> {
    async fn send(&self, begin: bool, done: bool, runs: Vec<BlockRun>, payload: Bytes) -> Result<()> {
        let memory = if done {
            self.node.store.memory(self.chunk)
        } else {
            ChunkMemory::default()
        };
        let request = StorageRequest::InstallChunk {
            chain: self.chain,
            epoch: self.epoch,
            chunk: self.chunk,
            version: self.version,
            part: InstallPart {
                begin,
                done,
                runs,
                memory,
            },
        };
        let answer = self
            .node
            .network
            .storage(
                &self.node.routing(),
                self.to,
                Lane::Bulk,
                &request,
                &[payload],
                PART_DEADLINE,
            )
            .await;
        expect(answer, |response| matches!(response, StorageResponse::Installed))
    }
}

/// Tells the metadata group until the chain has moved on.
pub(crate) async fn report_done(node: &Arc<Node>, state: &Chain, chain: ChainId, to: StorageId, epoch: Epoch) {
    let request = MetaRequest::ResyncDone { chain, epoch, node: to };
    while state.epoch() == epoch && !node.stopping.is_cancelled() {
        match node.network.meta(&request, Duration::from_secs(1)).await {
            Ok(MetaResponse::ResyncDone) => node.refresh.notify_one(),
            Ok(MetaResponse::Failed(error)) | Err(error) => {
                tracing::info!(%chain, %epoch, %error, "the end of a resync is not recorded yet");
            }
            Ok(response) => tracing::warn!(%chain, ?response, "the end of a resync was answered with something else"),
        }
        tokio::time::sleep(REPORT_INTERVAL).await;
    }
}
