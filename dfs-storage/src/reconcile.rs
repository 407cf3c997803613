//! Bringing in what only a member that came back has, before it is given the chain's copy.
//!
//! Its predecessor does this while it takes the inventory, chunk by chunk: it compares the two histories, lets the metadata group
//! decide and remember, writes what is merely ahead through the head on the condition that nobody wrote there meanwhile, and keeps
//! blocks that both wrote in a chunk of their own. Every step can be repeated, so whoever is cut off in the middle does it all again; the
//! member's own copy stays as it is until then.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::conflict::{Divergence, Verdict};
use dfs_common::units::SEAL_SIZE_BYTES;
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::wire::storage::{
    BlockCondition, BlockRun, ChunkState, MutateRequest, Mutation, StorageRequest, StorageResponse,
};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkVersion, Epoch, Error, ErrorCode, Level, RequestId, Result, StorageId,
};

use crate::divergence::{Findings, compare};
use crate::replica::{Answer, Input};
use crate::service::chain::{blocking, expect};
use crate::service::node::Node;

const DEADLINE: Duration = Duration::from_secs(3);

/// From which member of which chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) chain: ChainId,
    pub(crate) epoch: Epoch,
    pub(crate) member: StorageId,
}

impl Pass<'_> {
    /// Looks through what the member has. `Ok`: it has nothing any more that may not be replaced.
    pub(crate) async fn over(self, theirs: &[(ChunkId, ChunkVersion)]) -> Result<()> {
        for &(chunk, version) in theirs {
            if !self.node.store.has_version(chunk, version) {
                self.chunk(chunk).await.inspect_err(|error| {
                    tracing::warn!(chain = %self.chain, %chunk, member = %self.member, %error,
                        "what only this member has of a chunk is not brought in yet; it is tried again before its copy is replaced");
                })?;
            }
        }
        Ok(())
    }

    async fn chunk(self, chunk: ChunkId) -> Result<()> {
        let theirs = self.their_state(chunk).await?;
        let ours = self.node.store.state(chunk);
        let Findings { ahead, both } = compare(&theirs, &ours);
        if ahead.is_empty() && both.is_empty() {
            return Ok(());
        }
        let mut conflicting = Vec::new();
        for run in &both {
            conflicting.extend(self.that_differ(chunk, run).await?);
        }
        if ahead.is_empty() && conflicting.is_empty() {
            return Ok(());
        }
        let divergence = Divergence {
            node: self.member,
            chain: self.chain,
            chunk,
            theirs: theirs.vector(),
            chains: ours.vector(),
            theirs_at: theirs.memory.stamp,
            chains_at: ours.memory.stamp,
            blocks: conflicting.iter().map(|run| (run.first, run.blocks)).collect(),
        };
        let (theirs, chains) = (divergence.theirs.to_string(), divergence.chains.to_string());
        let verdict = match self.meta(MetaRequest::Diverged(divergence)).await? {
            MetaResponse::Verdict(verdict) => verdict,
            response => return Err(unexpected(&response)),
        };
        let keeper = match verdict {
            Verdict::Gone => {
                tracing::info!(%chunk, member = %self.member, "has writes of a file that was deleted meanwhile; they go");
                return Ok(());
            }
            Verdict::Adopt => None,
            Verdict::Keep(conflict) => Some(conflict),
        };
        let mut adopted = 0;
        for piece in ahead {
            if let Some(payload) = self.fetch(chunk, &piece.run).await? {
                self.write(chunk, piece.run, piece.conditions, payload).await?;
                adopted += piece.run.blocks;
            }
        }
        if let Some(conflict) = keeper {
            let kept = ChunkId {
                inode: conflict.keeper(),
                ..chunk
            };
            for run in conflicting {
                if let Some(payload) = self.fetch(chunk, &run).await? {
                    self.write(kept, run, Vec::new(), payload).await?;
                }
            }
        }
        let done = MetaRequest::Reconciled {
            inode: chunk.inode,
            conflict: keeper,
        };
        match self.meta(done).await? {
            MetaResponse::Reconciled => {}
            response => return Err(unexpected(&response)),
        }
        tracing::warn!(%chunk, member = %self.member, theirs, chains, adopted, conflict = ?keeper,
            "a member came back with acknowledged writes that its chain did not have");
        Ok(())
    }

    async fn meta(self, request: MetaRequest) -> Result<MetaResponse> {
        match self.node.network.meta(&request, DEADLINE).await? {
            MetaResponse::Failed(error) => Err(error),
            response => Ok(response),
        }
    }

    async fn ask_member(self, request: &StorageRequest) -> Result<(StorageResponse, Bytes)> {
        let (node, table) = (self.node, self.node.routing());
        match node
            .network
            .storage(&table, self.member, Lane::Bulk, request, &[], DEADLINE)
            .await?
        {
            (StorageResponse::Failed(error), _) => Err(error),
            answer => Ok(answer),
        }
    }

    async fn their_state(self, chunk: ChunkId) -> Result<ChunkState> {
        let chain = self.chain;
        match self.ask_member(&StorageRequest::ChunkState { chain, chunk }).await? {
            (StorageResponse::ChunkState(state), _) if state.chunk == chunk => Ok(*state),
            (response, _) => Err(unexpected(&response)),
        }
    }

    /// The member's blocks of this run, which must be as they were. `None`: its disk has them damaged, so there is nothing to save.
    async fn fetch(self, chunk: ChunkId, run: &BlockRun) -> Result<Option<Bytes>> {
        let request = StorageRequest::CopyBlocks {
            chain: self.chain,
            chunk,
            first: run.first,
            blocks: run.blocks,
        };
        match self.ask_member(&request).await {
            Ok((StorageResponse::Read { runs, .. }, payload)) if runs == [*run] => {
                if payload.len() == run.payload_size_bytes() {
                    return Ok(Some(payload));
                }
                Err(Error::new(
                    ErrorCode::BadMessage,
                    format!("{} blocks of chunk {chunk} came in {} bytes", run.blocks, payload.len()),
                ))
            }
            Ok((StorageResponse::Read { .. }, _)) => Err(Error::new(
                ErrorCode::Overloaded,
                format!(
                    "storage-{}'s chunk {chunk} has changed since it was compared",
                    self.member
                ),
            )),
            Ok((response, _)) => Err(unexpected(&response)),
            Err(error) if error.code == ErrorCode::Corrupt => {
                tracing::error!(%chunk, member = %self.member, first = run.first.0, blocks = run.blocks, %error,
                    "writes that only this member has are damaged on its disk: they are lost");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Of the blocks that both wrote those that are not the same after all: this may have been begun before, and then the chain has
    /// what was brought in. Nobody seals two blocks alike.
    async fn that_differ(self, chunk: ChunkId, run: &BlockRun) -> Result<Vec<BlockRun>> {
        let Some(theirs) = self.fetch(chunk, run).await? else {
            return Ok(Vec::new());
        };
        let ours = blocking(usize::MAX, || self.node.store.read(chunk, run.first, run.blocks))?;
        let mut known = std::collections::BTreeMap::new();
        let mut at = 0;
        for run in &ours.runs {
            for (block, seal) in (run.first.0..).zip(seals(&ours.payload, at, run)) {
                known.insert(block, seal);
            }
            at += run.payload_size_bytes();
        }
        let same = |block: u32, seal: &[u8]| known.get(&block).is_some_and(|ours| *ours == seal);
        let mut differ: Vec<BlockRun> = Vec::new();
        for (number, seal) in (0..).zip(seals(&theirs, 0, run)) {
            let block = run.first.0 + number;
            if same(block, seal) {
                continue;
            }
            let last_length_bytes = if number + 1 == run.blocks {
                run.last_length_bytes
            } else {
                dfs_common::units::BLOCK_SIZE_BYTES as u32
            };
            match differ.last_mut() {
                Some(last) if last.first.0 + last.blocks == block => {
                    last.blocks += 1;
                    last.last_length_bytes = last_length_bytes;
                }
                _ => differ.push(BlockRun {
                    first: BlockIndex(block),
                    blocks: 1,
                    last_length_bytes,
                    version: run.version,
                }),
            }
        }
        Ok(differ)
    }

    /// Through the head, durably; on two members where there are two.
    async fn write(self, chunk: ChunkId, run: BlockRun, conditions: Vec<BlockCondition>, payload: Bytes) -> Result<()> {
        let table = self.node.routing();
        let current = table.chain(self.chain).filter(|chain| chain.epoch == self.epoch);
        let Some((head, serving)) = current.and_then(|chain| Some((chain.head()?, chain.serving().count()))) else {
            return Err(Error::new(
                ErrorCode::StaleEpoch,
                format!("chain {} is not in epoch {} any more", self.chain, self.epoch),
            ));
        };
        let request = MutateRequest {
            chain: self.chain,
            epoch: self.epoch,
            chunk,
            id: RequestId::SYSTEM,
            level: if serving > 1 { Level::Quorum } else { Level::One },
            sync: true,
            mutation: Mutation::Write {
                first: run.first,
                blocks: run.blocks,
                last_length_bytes: run.last_length_bytes,
                conditions,
            },
        };
        if head == self.node.id {
            let chain = self.node.chain(self.chain).ok_or(ErrorCode::NotInChain)?;
            let input = |waiter| Input::Mutate {
                waiter,
                request,
                payload,
            };
            return match chain.ask(self.node, DEADLINE, input).await? {
                Answer::Response(StorageResponse::Mutated { .. }) => Ok(()),
                Answer::Response(StorageResponse::Failed(error)) => Err(error),
                answer => Err(unexpected(&answer)),
            };
        }
        let request = StorageRequest::Mutate(request);
        let network = &self.node.network;
        let answer = network
            .storage(&table, head, Lane::Bulk, &request, &[payload], DEADLINE)
            .await;
        expect(answer, |response| matches!(response, StorageResponse::Mutated { .. }))
    }
}

/// The seals of a run whose part of the payload begins at `at`.
fn seals<'a>(payload: &'a [u8], at: usize, run: &BlockRun) -> impl Iterator<Item = &'a [u8]> {
    let end = at + run.blocks as usize * SEAL_SIZE_BYTES;
    payload.get(at..end).unwrap_or_default().chunks_exact(SEAL_SIZE_BYTES)
}

fn unexpected(answer: &dyn std::fmt::Debug) -> Error {
    Error::new(
        ErrorCode::BadMessage,
        format!("answered with something else: {answer:?}"),
    )
}
