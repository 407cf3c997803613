//! Mending what is damaged: the blocks that fail their checksums are asked of the other members of the chain, one after the other.
//!
//! Any member will do, in whatever state: the answer says which mutation wrote each block, and only a block of the very version that
//! should be here is taken. So it does not matter which member is damaged, and a member that is itself damaged elsewhere
//! still helps.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::wire::Lane;
use dfs_common::wire::storage::{BlockRun, DamageOutcome, StorageRequest, StorageResponse};
use dfs_common::{BlockIndex, ChainId, ChunkId, Error, ErrorCode, Result, StorageId};

use super::node::Node;
use crate::store::StoreError;

/// How long a neighbour has to read some blocks.
const ASK_DEADLINE: Duration = Duration::from_secs(3);

/// How often what could not be mended at once is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What came of one attempt at one chunk.
enum Attempt {
    Sound(DamageOutcome),
    /// Somebody who may have it did not answer, or the chunk is copied whole soon.
    Later,
    /// All were asked: nobody has it.
    Lost(Vec<StorageId>),
}

/// Mends until the server stops.
pub(crate) async fn run(node: Arc<Node>) {
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            () = node.damage.noted.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        if node.damage.has_open_structures() && node.serves_everywhere() {
            node.damage.structures_rebuilt();
            tracing::info!("what was damaged in the store is made good by its peers");
        }
        for chunk in node.damage.due() {
            if node.stopping.is_cancelled() || node.current_fault().is_some() {
                break;
            }
            match attempt(&node, chunk).await {
                Ok(Attempt::Sound(outcome)) => {
                    if node.damage.settled(chunk, outcome) {
                        tracing::info!(%chunk, ?outcome, "sound again");
                    }
                }
                Ok(Attempt::Later) => node.damage.postpone(chunk),
                Ok(Attempt::Lost(asked)) => {
                    if node.damage.lost(chunk) {
                        let chain = node.store.chain_of(chunk);
                        tracing::error!(
                            %chunk, ?chain, ?asked,
                            "damaged here, and no member of its chain has a sound copy: reads of it fail"
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(%chunk, %error, "not mended yet");
                    node.damage.postpone(chunk);
                }
            }
        }
    }
}

async fn bad_blocks(node: &Arc<Node>, chunk: ChunkId) -> std::result::Result<Vec<BlockRun>, StoreError> {
    let store = node.store.clone();
    match tokio::task::spawn_blocking(move || store.bad_blocks(chunk)).await {
        Ok(bad) => bad,
        Err(_) => Ok(Vec::new()),
    }
}

async fn attempt(node: &Arc<Node>, chunk: ChunkId) -> Result<Attempt> {
    let mut bad = match bad_blocks(node, chunk).await {
        Ok(bad) => bad,
        // A mutation of it is lost: the resync that every start begins with brings it whole.
        Err(StoreError::Corrupt { .. }) => return Ok(Attempt::Later),
        Err(error) => return Err(error.into()),
    };
    let Some(chain) = node.store.chain_of(chunk).filter(|_| !bad.is_empty()) else {
        return Ok(Attempt::Sound(DamageOutcome::Replaced));
    };
    let table = node.routing();
    let members: Vec<StorageId> = table.chain(chain).map_or_else(Vec::new, |chain| {
        let others = chain.members.iter().map(|member| member.node);
        others.filter(|&other| other != node.id).collect()
    });
    let (mut asked, mut silent) = (Vec::new(), false);
    for &from in &members {
        for &run in &bad {
            match take(node, from, chain, chunk, run).await {
                Ok(mended) => {
                    if mended > 0 {
                        tracing::info!(%chunk, blocks = mended, from = %from, "rotten blocks are replaced");
                    }
                }
                Err(error) => {
                    tracing::info!(%chunk, from = %from, %error, "no copy from there");
                    silent = true;
                }
            }
        }
        asked.push(from);
        bad = bad_blocks(node, chunk).await.map_err(Error::from)?;
        if bad.is_empty() {
            return Ok(Attempt::Sound(DamageOutcome::Mended { from }));
        }
    }
    Ok(if silent || members.is_empty() {
        Attempt::Later
    } else {
        Attempt::Lost(asked)
    })
}

/// Takes what a neighbour has of these blocks. An error: it may have them, but did not say.
async fn take(node: &Arc<Node>, from: StorageId, chain: ChainId, chunk: ChunkId, run: BlockRun) -> Result<u64> {
    match ask(node, from, chain, chunk, (run.first, run.blocks)).await {
        Ok((runs, payload)) => put(node, chunk, &runs, &payload),
        // One of them is bad there too; perhaps not the others.
        Err(error) if error.code == ErrorCode::Corrupt => {
            let mut mended = 0;
            for block in (run.first.0..run.first.0 + run.blocks).filter(|_| run.blocks > 1) {
                match ask(node, from, chain, chunk, (BlockIndex(block), 1)).await {
                    Ok((runs, payload)) => mended += put(node, chunk, &runs, &payload)?,
                    Err(error) if error.code == ErrorCode::Corrupt => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(mended)
        }
        Err(error) => Err(error),
    }
}

fn put(node: &Node, chunk: ChunkId, runs: &[BlockRun], payload: &Bytes) -> Result<u64> {
    super::chain::blocking(usize::MAX, || node.store.mend(chunk, runs, payload))
}

async fn ask(
    node: &Arc<Node>,
    from: StorageId,
    chain: ChainId,
    chunk: ChunkId,
    (first, blocks): (BlockIndex, u32),
) -> Result<(Vec<BlockRun>, Bytes)> {
    let request = StorageRequest::CopyBlocks {
        chain,
        chunk,
        first,
        blocks,
    };
    let answer = node
        .network
        .storage(&node.routing(), from, Lane::Bulk, &request, &[], ASK_DEADLINE)
        .await?;
    match answer {
        (StorageResponse::Read { runs, .. }, payload) => Ok((runs, payload)),
        (StorageResponse::Failed(error), _) => Err(error),
        (response, _) => Err(Error::new(
            ErrorCode::BadMessage,
            format!("a neighbour answered with {response:?}"),
        )),
    }
}
