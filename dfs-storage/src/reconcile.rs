//! Bringing in what only a member that came back has, before it is given the chain's copy.
//!
//! Its predecessor does this while it takes the inventory, chunk by chunk: it compares the two histories, lets the metadata group
//! decide and remember, writes what is merely ahead through the head on the condition that nobody wrote there meanwhile, and keeps
//! blocks that both wrote in a chunk of their own. Every step can be repeated, so whoever is cut off in the middle does it all again; the
//! member's own copy stays as it is until then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::conflict::{ConflictId, Divergence, Verdict};
use dfs_common::units::{BLOCK_SIZE_BYTES, MAX_CHUNK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::wire::storage::{
    BlockCondition, BlockRun, ChunkState, MutateRequest, Mutation, StorageRequest, StorageResponse,
};
use dfs_common::{
    ChainId, ChunkId, ChunkVersion, Epoch, Error, ErrorCode, Level, MAX_EARLIER_EPOCHS, RequestId, Result, StorageId,
};

use crate::divergence::{Findings, compare};
use crate::replica::{Answer, Input};
use crate::service::chain::{blocking, expect};
use crate::service::node::Node;
use crate::store::REMEMBERED_REQUESTS;

const DEADLINE: Duration = Duration::from_secs(3);

const MAX_BLOCKS: u32 = MAX_CHUNK_SIZE_BYTES / BLOCK_SIZE_BYTES as u32;

/// After a failure, on top of the resync's own pause.
const PAUSE: Duration = Duration::from_millis(400);

/// From which member of which chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) chain: ChainId,
    pub(crate) epoch: Epoch,
    pub(crate) member: StorageId,
}

impl Pass<'_> {
    /// Looks through what the member has. `Ok`: it has nothing any more that may not be replaced. What its disk has damaged is listed
    /// without a version, and may have sound writes beside it.
    pub(crate) async fn over(self, theirs: &[(ChunkId, ChunkVersion)]) -> Result<()> {
        for &(chunk, version) in theirs {
            if !version.is_none() && self.node.store.has_version(chunk, version) {
                continue;
            }
            if let Err(error) = self.chunk(chunk).await {
                tracing::warn!(chain = %self.chain, %chunk, member = %self.member, %error,
                    "what only this member has of a chunk is not brought in yet; it is tried again before its copy is replaced");
                // Who lags catches up in less; what does not go away is not said a hundred times.
                tokio::time::sleep(PAUSE).await;
                return Err(error);
            }
        }
        Ok(())
    }

    async fn chunk(self, chunk: ChunkId) -> Result<()> {
        let Some(theirs) = self.their_state(chunk).await? else {
            tracing::error!(chain = %self.chain, %chunk, member = %self.member,
                "a mutation of this chunk is lost on the member's disk: nobody knows what it had that its chain has not");
            return Ok(());
        };
        let Some(ours) = self.node.store.state(chunk) else {
            return Err(Error::new(
                ErrorCode::Corrupt,
                format!("chunk {chunk} is damaged here, so there is nothing to compare with"),
            ));
        };
        let Findings { ahead, both } = compare(&theirs, &ours);
        if ahead.is_empty() && both.is_empty() {
            return Ok(());
        }
        let mut conflicting = Vec::new();
        for run in &both {
            for (run, payload) in self.fetch(chunk, run).await? {
                conflicting.extend(self.that_differ(chunk, &run, &payload)?);
            }
        }
        let mut end_bytes = 0;
        if ahead.is_empty() && conflicting.is_empty() {
            // Brought in before, by somebody who did not come to say so.
            return self.tell(chunk, None, end_bytes).await;
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
        let (vector, chains) = (divergence.theirs.to_string(), divergence.chains.to_string());
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
            for (run, payload) in self.fetch(chunk, &piece.run).await? {
                let within =
                    |condition: &&BlockCondition| (run.first.0..run.first.0 + run.blocks).contains(&condition.block.0);
                let conditions = piece.conditions.iter().filter(within).copied().collect();
                self.write(chunk, run, conditions, Some(ours.memory.trimmed), payload)
                    .await?;
                adopted += run.blocks;
                end_bytes = end_bytes.max(run.end_bytes());
            }
        }
        if let Some(conflict) = keeper {
            let kept = ChunkId {
                inode: conflict.keeper(),
                ..chunk
            };
            for run in conflicting {
                for (run, payload) in self.fetch(chunk, &run).await? {
                    self.write(kept, run, Vec::new(), None, payload).await?;
                }
            }
        }
        self.tell(chunk, keeper, end_bytes).await?;
        tracing::warn!(%chunk, member = %self.member, vector, chains, adopted, conflict = ?keeper,
            "a member came back with acknowledged writes that its chain did not have");
        Ok(())
    }

    /// The file has changed, and the other version, if there is one, is safe.
    async fn tell(self, chunk: ChunkId, conflict: Option<ConflictId>, end_bytes: u32) -> Result<()> {
        let done = MetaRequest::Reconciled {
            chain: self.chain,
            node: self.member,
            chunk,
            conflict,
            end_bytes,
        };
        match self.meta(done).await? {
            MetaResponse::Reconciled => Ok(()),
            response => Err(unexpected(&response)),
        }
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

    async fn their_state(self, chunk: ChunkId) -> Result<Option<ChunkState>> {
        let chain = self.chain;
        match self.ask_member(&StorageRequest::ChunkState { chain, chunk }).await? {
            (StorageResponse::ChunkState(None), _) => Ok(None),
            (StorageResponse::ChunkState(Some(state)), _) if state.chunk == chunk => {
                check_state(&state)?;
                Ok(Some(*state))
            }
            (response, _) => Err(unexpected(&response)),
        }
    }

    /// The member's blocks of this run, which must be as they were: all of them at once, or what is not damaged on its disk. What is can not
    /// be saved.
    async fn fetch(self, chunk: ChunkId, run: &BlockRun) -> Result<Vec<(BlockRun, Bytes)>> {
        match self.fetch_run(chunk, run).await {
            Ok(payload) => Ok(vec![(*run, payload)]),
            Err(error) if error.code == ErrorCode::Corrupt => {
                let mut sound = Vec::new();
                for one in run.each_block() {
                    match self.fetch_run(chunk, &one).await {
                        Ok(payload) => sound.push((one, payload)),
                        Err(error) if error.code == ErrorCode::Corrupt => {
                            tracing::error!(%chunk, member = %self.member, block = one.first.0, %error,
                                "a write that only this member has is damaged on its disk: it is lost");
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(sound)
            }
            Err(error) => Err(error),
        }
    }

    async fn fetch_run(self, chunk: ChunkId, run: &BlockRun) -> Result<Bytes> {
        let request = StorageRequest::CopyBlocks {
            chain: self.chain,
            chunk,
            first: run.first,
            blocks: run.blocks,
        };
        match self.ask_member(&request).await? {
            (StorageResponse::Read { runs, .. }, payload) if runs == [*run] => {
                if payload.len() == run.payload_size_bytes() {
                    return Ok(payload);
                }
                Err(Error::new(
                    ErrorCode::BadMessage,
                    format!("{} blocks of chunk {chunk} came in {} bytes", run.blocks, payload.len()),
                ))
            }
            (StorageResponse::Read { .. }, _) => Err(Error::new(
                ErrorCode::Overloaded,
                format!(
                    "storage-{}'s chunk {chunk} has changed since it was compared",
                    self.member
                ),
            )),
            (response, _) => Err(unexpected(&response)),
        }
    }

    /// Of the blocks that both wrote those that are not the same after all: this may have been begun before, and then the chain has
    /// what was brought in. Nobody seals two blocks alike.
    fn that_differ(self, chunk: ChunkId, run: &BlockRun, theirs: &Bytes) -> Result<Vec<BlockRun>> {
        let (runs, payload) = match blocking(usize::MAX, || self.node.store.read(chunk, run.first, run.blocks)) {
            Ok(ours) => (ours.runs, ours.payload),
            // What is damaged here counts as different.
            Err(error) if error.code == ErrorCode::Corrupt => (Vec::new(), Bytes::new()),
            Err(error) => return Err(error),
        };
        let mut known = BTreeMap::new();
        let mut at = 0;
        for run in &runs {
            for (block, seal) in (run.first.0..).zip(seals(&payload, at, run)) {
                known.insert(block, seal);
            }
            at += run.payload_size_bytes();
        }
        let mut differ: Vec<BlockRun> = Vec::new();
        for (one, seal) in run.each_block().zip(seals(theirs, 0, run)) {
            if known.get(&one.first.0).is_some_and(|ours| *ours == seal) {
                continue;
            }
            match differ.last_mut() {
                Some(last) if last.joins(&one) => last.extend(&one),
                _ => differ.push(one),
            }
        }
        Ok(differ)
    }

    /// Through the head, durably; on two members where there are two.
    async fn write(
        self,
        chunk: ChunkId,
        run: BlockRun,
        conditions: Vec<BlockCondition>,
        uncut_since: Option<ChunkVersion>,
        payload: Bytes,
    ) -> Result<()> {
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
            uncut_since,
            cut: dfs_common::CutEpoch::NONE,
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

/// What comes from outside is looked at before anything is made of it.
fn check_state(state: &ChunkState) -> Result<()> {
    let mut next = 0;
    let is_sound = |run: &BlockRun| {
        let starts = run.first.0 >= next;
        next = run.first.0.saturating_add(run.blocks);
        starts
            && (1..=MAX_BLOCKS).contains(&run.blocks)
            && next <= MAX_BLOCKS
            && (1..=BLOCK_SIZE_BYTES as u32).contains(&run.last_length_bytes)
    };
    let memory = &state.memory;
    if state.runs.iter().all(is_sound)
        && memory.earlier.len() <= MAX_EARLIER_EPOCHS
        && memory.requests.len() <= REMEMBERED_REQUESTS
    {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::BadMessage,
        format!("the state of chunk {} does not add up", state.chunk),
    ))
}

fn unexpected(answer: &dyn std::fmt::Debug) -> Error {
    Error::new(
        ErrorCode::BadMessage,
        format!("answered with something else: {answer:?}"),
    )
}
