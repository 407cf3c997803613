//! Requests from outside: who may ask, then to the chain they name.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::units::{BLOCK_SIZE_BYTES, MAX_IO_SIZE_BYTES};
use dfs_common::wire::storage::{FoundBy, Mutation, NodeStatus, StorageRequest, StorageResponse};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, CutEpoch, Epoch, Error, ErrorCode, MemberState, NodeName, Result, Role, SessionId,
    StorageId,
};

use super::chain::{Chain, blocking};
use super::node::Node;
use super::syncer::let_disk_catch_up;
use crate::replica::{Answer, Input, ReadAsk, session_expired};

/// How long a request of an epoch that this node has not heard of waits for it.
const EPOCH_WAIT: Duration = Duration::from_millis(500);

/// No request is kept longer than this, whatever its sender allows.
const MAX_DEADLINE: Duration = Duration::from_secs(30);

/// Chunks in one listing: with their digests well within a header.
const MAX_LISTED_CHUNKS: u32 = 4_096;

/// Inodes in one removal.
const MAX_REMOVED_INODES: usize = 4_096;

const MAX_READ_BLOCKS: u32 = (MAX_IO_SIZE_BYTES / BLOCK_SIZE_BYTES) as u32 + 1;

/// In whose name a request comes, if it comes from a client.
const fn session_of(request: &StorageRequest) -> Option<SessionId> {
    match request {
        StorageRequest::Mutate(request) => Some(request.id.session),
        StorageRequest::Read { session, .. }
        | StorageRequest::Sync { session, .. }
        | StorageRequest::RemoveRange { session, .. } => Some(*session),
        _ => None,
    }
}

/// Which of a peer's roles a request needs.
fn authorize(peer: NodeName, request: &StorageRequest) -> Result<()> {
    let in_nobodys_name = session_of(request) == Some(SessionId::SYSTEM);
    let allowed = match request {
        // What a member brought back is written by its predecessor, in nobody's name; see `check_predecessor`.
        StorageRequest::Mutate(request) if peer.role == Role::Storage => {
            request.id.is_system() && matches!(request.mutation, Mutation::Write { .. })
        }
        StorageRequest::Mutate(_) | StorageRequest::Sync { .. } => {
            matches!(peer.role, Role::Client | Role::Admin) && !in_nobodys_name
        }
        // Also in nobody's name, as `dfs verify` does: that keeps nothing open which an eviction could give to others.
        StorageRequest::Read { .. } => matches!(peer.role, Role::Client | Role::Admin),
        // Only the metadata group says that a file is gone.
        StorageRequest::RemoveRange { cut, .. } => match peer.role {
            Role::Meta => true,
            Role::Client | Role::Admin => !in_nobodys_name && *cut != CutEpoch::GONE,
            Role::Storage => false,
        },
        StorageRequest::Forward(_)
        | StorageRequest::ForwardSync { .. }
        | StorageRequest::Stable { .. }
        | StorageRequest::Inventory { .. }
        | StorageRequest::InstallChunk { .. }
        | StorageRequest::DropChunks { .. }
        | StorageRequest::CopyBlocks { .. }
        | StorageRequest::ChunkState { .. } => peer.role == Role::Storage,
        StorageRequest::Scrub { .. } => peer.role == Role::Admin,
        StorageRequest::FileRuns { .. } => matches!(peer.role, Role::Client | Role::Admin),
        StorageRequest::FileEnd { .. } => {
            matches!(peer.role, Role::Client | Role::Meta | Role::Admin)
        }
        StorageRequest::ListChunks { .. } => matches!(peer.role, Role::Client | Role::Admin | Role::Meta),
        // Neighbours ask it to hear whether they are heard.
        StorageRequest::NodeStatus => true,
    };
    if allowed {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::Unauthorized,
        format!("{peer} may not ask this of a storage node: its certificate is for another role"),
    ))
}

/// The chain, once it has heard of `epoch` or the wait for that is over.
async fn chain_at(node: &Arc<Node>, id: ChainId, epoch: Epoch) -> Result<Arc<Chain>> {
    let ready = |node: &Node| node.chain(id).filter(|chain| chain.epoch() >= epoch);
    if let Some(chain) = ready(node) {
        return Ok(chain);
    }
    let mut table = node.table.subscribe();
    node.refresh.notify_one();
    let _ = tokio::time::timeout(EPOCH_WAIT, async {
        while ready(node).is_none() {
            if table.changed().await.is_err() {
                return;
            }
        }
    })
    .await;
    node.chain(id).ok_or_else(|| {
        Error::new(
            ErrorCode::NotInChain,
            format!("storage-{} is in no chain {id}: refresh the routing table", node.id),
        )
    })
}

/// Whether it is bringing a member of the chain up to date: only then a storage node writes by itself.
fn check_predecessor(node: &Node, from: StorageId, chain: ChainId) -> Result<()> {
    let table = node.routing();
    let copies = table.chain(chain).is_some_and(|info| {
        let syncs = info.members.iter().any(|member| member.state == MemberState::Syncing);
        syncs && info.serving().last() == Some(from)
    });
    if copies {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::StaleEpoch,
        format!("storage-{from} does not bring a member of chain {chain} up to date now"),
    ))
}

fn neighbour(peer: NodeName) -> StorageId {
    StorageId(u32::try_from(peer.number).unwrap_or(u32::MAX))
}

/// Answers one request.
pub(crate) async fn handle(
    node: &Arc<Node>,
    peer: NodeName,
    request: StorageRequest,
    payload: Bytes,
    deadline: Duration,
) -> Result<(StorageResponse, Bytes)> {
    authorize(peer, &request)?;
    let session = session_of(&request);
    let answer = answer(node, peer, request, payload, deadline).await;
    // The core has looked when it took the request in. Checked again, as the lease is: what was acknowledged to an evicted session
    // while others already rely on its end would be an answer from the past.
    match session {
        Some(session) if answer.is_ok() && !node.sessions.admits(session) => Err(session_expired(session)),
        _ => answer,
    }
}

async fn answer(
    node: &Arc<Node>,
    peer: NodeName,
    request: StorageRequest,
    payload: Bytes,
    deadline: Duration,
) -> Result<(StorageResponse, Bytes)> {
    if node.stopping.is_cancelled() {
        return Err(Error::new(
            ErrorCode::Unreachable,
            format!("storage-{} is shutting down", node.id),
        ));
    }
    let deadline = deadline.min(MAX_DEADLINE);
    let from = neighbour(peer);
    if let StorageRequest::Mutate(request) = &request
        && peer.role == Role::Storage
    {
        check_predecessor(node, from, request.chain)?;
    }
    let (chain, epoch) = match &request {
        StorageRequest::Mutate(request) => (request.chain, request.epoch),
        StorageRequest::Forward(forward) => (forward.request.chain, forward.request.epoch),
        StorageRequest::Read { chain, epoch, .. }
        | StorageRequest::Sync { chain, epoch, .. }
        | StorageRequest::RemoveRange { chain, epoch, .. }
        | StorageRequest::FileEnd { chain, epoch, .. }
        | StorageRequest::FileRuns { chain, epoch, .. }
        | StorageRequest::ForwardSync { chain, epoch, .. }
        | StorageRequest::Stable { chain, epoch, .. }
        | StorageRequest::Inventory { chain, epoch, .. }
        | StorageRequest::InstallChunk { chain, epoch, .. }
        | StorageRequest::DropChunks { chain, epoch, .. } => (*chain, *epoch),
        StorageRequest::ListChunks {
            chain,
            after,
            limit,
            deep,
        } => return list_chunks(node, *chain, *after, *limit, *deep),
        StorageRequest::CopyBlocks {
            chunk, first, blocks, ..
        } => return copy_blocks(node, *chunk, *first, *blocks),
        StorageRequest::ChunkState { chunk, .. } => {
            let state = node.store.state(*chunk).map(Box::new);
            return Ok((StorageResponse::ChunkState(state), Bytes::new()));
        }
        StorageRequest::Scrub { start } => {
            return Ok((StorageResponse::Scrub(node.scrub.asked(node, *start)), Bytes::new()));
        }
        StorageRequest::NodeStatus => return Ok((status(node), Bytes::new())),
    };
    let at = chain_at(node, chain, epoch).await?;
    let answer = match request {
        StorageRequest::Read {
            chunk,
            first,
            blocks,
            level,
            not_before,
            session,
            ..
        } => {
            let ask = ReadAsk {
                chunk,
                first,
                blocks,
                level,
                not_before,
                session,
            };
            return read(node, &at, epoch, ask, deadline).await;
        }
        StorageRequest::Mutate(request) => {
            at.ask(node, deadline, |waiter| Input::Mutate {
                waiter,
                request,
                payload,
            })
            .await?
        }
        StorageRequest::Sync {
            level,
            since,
            written,
            session,
            ..
        } => {
            at.ask(node, deadline, |waiter| Input::Sync {
                epoch,
                waiter,
                level,
                since: (since, written),
                session,
            })
            .await?
        }
        StorageRequest::RemoveRange {
            inodes,
            from,
            cut,
            session,
            ..
        } => {
            if inodes.len() > MAX_REMOVED_INODES {
                return Err(Error::new(
                    ErrorCode::BadMessage,
                    format!(
                        "{} inodes in one removal; the limit is {MAX_REMOVED_INODES}",
                        inodes.len()
                    ),
                ));
            }
            at.ask(node, deadline, |waiter| Input::RemoveRange {
                epoch,
                waiter,
                inodes,
                from,
                cut,
                session,
            })
            .await?
        }
        StorageRequest::FileEnd { inode, from, .. } => {
            at.ask(node, deadline, |waiter| Input::FileEnd {
                epoch,
                waiter,
                inode,
                from,
            })
            .await?
        }
        StorageRequest::FileRuns {
            inode, from, wanted, ..
        } => {
            at.ask(node, deadline, |waiter| Input::FileRuns {
                epoch,
                waiter,
                inode,
                from,
                wanted,
            })
            .await?
        }
        StorageRequest::Forward(request) => {
            at.ask(node, deadline, |waiter| Input::Forward {
                from,
                waiter,
                request,
                payload,
            })
            .await?
        }
        StorageRequest::ForwardSync { level, forget, .. } => {
            at.ask(node, deadline, |waiter| Input::ForwardSync {
                from,
                epoch,
                waiter,
                level,
                forget,
            })
            .await?
        }
        StorageRequest::Stable { chunks, .. } => {
            at.ask(node, deadline, |waiter| Input::Stable {
                from,
                epoch,
                waiter,
                chunks,
            })
            .await?
        }
        StorageRequest::Inventory { after, limit, .. } => {
            at.ask(node, deadline, |waiter| Input::Inventory {
                from,
                epoch,
                waiter,
                after,
                limit,
            })
            .await?
        }
        StorageRequest::InstallChunk {
            chunk, version, part, ..
        } => {
            let_disk_catch_up(&node.store, deadline).await;
            at.ask(node, deadline, |waiter| Input::Install {
                from,
                epoch,
                waiter,
                chunk,
                version,
                part,
                payload,
            })
            .await?
        }
        StorageRequest::DropChunks { chunks, .. } => {
            at.ask(node, deadline, |waiter| Input::Drop {
                from,
                epoch,
                waiter,
                chunks,
            })
            .await?
        }
        StorageRequest::ListChunks { .. }
        | StorageRequest::CopyBlocks { .. }
        | StorageRequest::ChunkState { .. }
        | StorageRequest::Scrub { .. }
        | StorageRequest::NodeStatus => return Ok((status(node), Bytes::new())),
    };
    match answer {
        Answer::Response(response) => Ok((response, Bytes::new())),
        Answer::Proceed => Err(Error::new(ErrorCode::Internal, "an answer without a response")),
    }
}

async fn read(
    node: &Arc<Node>,
    chain: &Arc<Chain>,
    epoch: Epoch,
    read: ReadAsk,
    deadline: Duration,
) -> Result<(StorageResponse, Bytes)> {
    let ReadAsk {
        chunk, first, blocks, ..
    } = read;
    check_read(blocks)?;
    chain
        .ask(node, deadline, |waiter| Input::AdmitRead { epoch, waiter, read })
        .await?;
    // It may have to wait for the disk.
    let data = blocking(usize::MAX, || node.store.read(chunk, first, blocks))
        .inspect_err(|error| node.note_damage(chunk, FoundBy::Read, error))?;
    let version = data.version;
    chain
        .ask(node, deadline, |waiter| Input::ReadDone {
            epoch,
            waiter,
            read,
            version,
        })
        .await?;
    Ok((
        StorageResponse::Read {
            version,
            runs: data.runs,
        },
        data.payload,
    ))
}

/// For a neighbour whose copy of these blocks is damaged.
fn copy_blocks(node: &Node, chunk: ChunkId, first: BlockIndex, blocks: u32) -> Result<(StorageResponse, Bytes)> {
    check_read(blocks)?;
    let data = blocking(usize::MAX, || node.store.read(chunk, first, blocks))
        .inspect_err(|error| node.note_damage(chunk, FoundBy::Read, error))?;
    let (version, runs) = (data.version, data.runs);
    Ok((StorageResponse::Read { version, runs }, data.payload))
}

fn check_read(blocks: u32) -> Result<()> {
    if blocks <= MAX_READ_BLOCKS {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::BadMessage,
        format!("a read of {blocks} blocks; the limit is {MAX_READ_BLOCKS}"),
    ))
}

fn list_chunks(
    node: &Node,
    chain: ChainId,
    after: Option<ChunkId>,
    limit: u32,
    deep: bool,
) -> Result<(StorageResponse, Bytes)> {
    let limit = limit.clamp(1, MAX_LISTED_CHUNKS) as usize;
    let listed = node.store.list_kept(chain, after, limit);
    let end = listed.len() < limit;
    let chunks = blocking(usize::MAX, || {
        listed.iter().map(|&chunk| node.store.summarize(chunk, deep)).collect()
    })?;
    Ok((StorageResponse::Chunks { chunks, end }, Bytes::new()))
}

fn status(node: &Node) -> StorageResponse {
    let usage = node.store.usage();
    StorageResponse::NodeStatus(NodeStatus {
        node: node.id,
        lease: node.has_lease(node.lease.now_ms()),
        chunks: usage.chunks,
        total_bytes: usage.total_bytes,
        used_bytes: usage.used_bytes,
        fault: node.current_fault(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_neighbours_forward_and_only_clients_write() {
        let forward = StorageRequest::ForwardSync {
            chain: ChainId(1),
            epoch: Epoch(1),
            level: dfs_common::Level::Quorum,
            forget: Vec::new(),
        };
        let read = StorageRequest::Read {
            chain: ChainId(1),
            epoch: Epoch(1),
            chunk: ChunkId::default(),
            first: BlockIndex(0),
            blocks: 1,
            level: dfs_common::Level::Quorum,
            not_before: dfs_common::ChunkVersion::NONE,
            session: dfs_common::SessionId::SYSTEM,
        };
        for (role, forwards, reads) in [
            (Role::Storage, true, false),
            (Role::Client, false, true),
            (Role::Meta, false, false),
            (Role::Admin, false, true),
        ] {
            let peer = NodeName::new(role, 1);
            assert_eq!(authorize(peer, &forward).is_ok(), forwards, "{role}");
            assert_eq!(authorize(peer, &read).is_ok(), reads, "{role}");
        }
    }
}
