//! Proposals and readers on their way into Raft: what waits together goes together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::MetaId;
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::types::{CommandBatch, Raft};
use super::{ConsensusError, MAX_COMMAND_SIZE_BYTES};

/// Commands that may wait for a place in an entry; beyond that the caller is told to come back.
pub(super) const MAX_WAITING_COMMANDS: usize = 8192;

/// Commands in one entry. sled grows slow and fat with larger batches.
const MAX_ENTRY_COMMANDS: usize = 512;

/// Entries under way: one being flushed, one being replicated, and the next ones ready.
const MAX_ENTRIES_UNDER_WAY: usize = 4;

/// Readers that may wait for the next round of confirmation.
pub(super) const MAX_WAITING_READERS: usize = 8192;

/// A read barrier gives up after this; the reader asks again, maybe elsewhere.
const BARRIER_DEADLINE: Duration = Duration::from_secs(2);

pub(super) struct Proposal {
    pub(super) command: Bytes,
    pub(super) reply: oneshot::Sender<Result<Vec<u8>, ConsensusError>>,
}

pub(super) type BarrierReply = oneshot::Sender<Result<(), ConsensusError>>;

pub(super) fn stopped(error: impl std::fmt::Display) -> ConsensusError {
    ConsensusError::Stopped(error.to_string())
}

pub(super) fn not_leader(leader: Option<u64>) -> ConsensusError {
    ConsensusError::NotLeader {
        leader: leader.map(MetaId),
    }
}

/// Gathers what waits into entries.
pub(super) async fn propose_batches(raft: Raft, mut proposed: mpsc::Receiver<Proposal>) {
    let under_way = Arc::new(Semaphore::new(MAX_ENTRIES_UNDER_WAY));
    let mut left_over: Option<Proposal> = None;
    loop {
        let Ok(permit) = under_way.clone().acquire_owned().await else {
            return;
        };
        let first = match left_over.take() {
            Some(proposal) => proposal,
            None => match proposed.recv().await {
                Some(proposal) => proposal,
                None => return,
            },
        };
        let mut size = first.command.len();
        let mut batch = vec![first];
        while batch.len() < MAX_ENTRY_COMMANDS
            && let Ok(next) = proposed.try_recv()
        {
            if size + next.command.len() > MAX_COMMAND_SIZE_BYTES {
                left_over = Some(next);
                break;
            }
            size += next.command.len();
            batch.push(next);
        }
        // Nobody waits for these any more, and they were never sent: leave them out.
        batch.retain(|proposal| !proposal.reply.is_closed());
        if batch.is_empty() {
            continue;
        }
        let entry = CommandBatch(batch.iter().map(|proposal| proposal.command.clone()).collect());
        let sent = raft.client_write_ff(entry).await;
        tokio::spawn(async move {
            let _permit = permit;
            let result = match sent {
                Err(fatal) => Err(stopped(fatal)),
                Ok(receiver) => match receiver.await {
                    Err(_) => Err(stopped("it was shut down")),
                    Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(forward.leader_id)),
                    Ok(Err(error)) => Err(stopped(error)),
                    Ok(Ok(response)) => Ok(response.data.0),
                },
            };
            answer(batch, result);
        });
    }
}

fn answer(batch: Vec<Proposal>, result: Result<Vec<Vec<u8>>, ConsensusError>) {
    match result {
        Ok(outcomes) => {
            for (proposal, outcome) in batch.into_iter().zip(outcomes) {
                let _ = proposal.reply.send(Ok(outcome));
            }
        }
        Err(error) => {
            for proposal in batch {
                let _ = proposal.reply.send(Err(same(&error)));
            }
        }
    }
}

/// Errors have sources that can not be cloned; these two kinds are all that a batch can fail with.
fn same(error: &ConsensusError) -> ConsensusError {
    match error {
        ConsensusError::NotLeader { leader } => ConsensusError::NotLeader { leader: *leader },
        other => stopped(other),
    }
}

/// One round of confirmation for all who wait when it begins.
pub(super) async fn confirm_reads(raft: Raft, mut asked: mpsc::Receiver<BarrierReply>) {
    let mut waiting = Vec::new();
    while asked.recv_many(&mut waiting, MAX_WAITING_READERS).await > 0 {
        let result = match tokio::time::timeout(BARRIER_DEADLINE, raft.ensure_linearizable()).await {
            Err(_) => Err(ConsensusError::Timeout(BARRIER_DEADLINE.as_millis() as u64)),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Err(not_leader(forward.leader_id))
            }
            // It may lead or not; whoever asks again will find out.
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) => Err(not_leader(None)),
            Ok(Err(RaftError::Fatal(fatal))) => Err(stopped(fatal)),
        };
        for reply in waiting.drain(..) {
            let _ = reply.send(match &result {
                Ok(()) => Ok(()),
                Err(ConsensusError::Timeout(ms)) => Err(ConsensusError::Timeout(*ms)),
                Err(error) => Err(same(error)),
            });
        }
    }
}
