//! Requests to answers: who asks, whether this server may answer, and who does the work.

use std::sync::Arc;
use std::time::Duration;

use dfs_common::conflict::{ConflictId, Divergence};
use dfs_common::units::{BLOCK_SIZE_BYTES, MAX_CHUNK_SIZE_BYTES};
use dfs_common::wire::meta::{
    ChangeAnswer, ChangeRequest, MAX_CHANGES_TOGETHER, MetaRequest, MetaResponse, NodeAction, RESERVED_INODES,
    SESSION_LEASE_MS,
};
use dfs_common::wire::namespace::{NamespaceAnswer, NamespaceRead, StatFs};
use dfs_common::{
    ChainId, Error, ErrorCode, InodeId, MAX_EARLIER_EPOCHS, MemberState, MetaId, NodeName, Result, RoutingVersion,
    SessionId, StorageId,
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::authorize::authorize;
use super::owner::Ask;
use super::shared::{Shared, not_leader};
use super::{servers, status};
use crate::command::{CommandKind, Outcome};

/// Reads in one request: one user action needs a handful.
const READS_MAX: usize = 64;

/// Entries in one directory page, so that a page of the longest names fits a message.
const DIRECTORY_PAGE_MAX: u32 = 1000;

/// Runs of blocks that a chunk can have.
const MAX_RUNS: usize = MAX_CHUNK_SIZE_BYTES as usize / BLOCK_SIZE_BYTES;

/// Conflicts in one page.
const CONFLICT_PAGE_MAX: u32 = 256;

/// Longest session label.
const LABEL_MAX_BYTES: usize = 1024;

/// Longest wait for a newer routing table; askers ask again.
const ROUTING_WAIT_MAX: Duration = Duration::from_secs(30);

/// Kept free at the end of a request's time, so that the answer still arrives.
const ANSWER_RESERVE: Duration = Duration::from_millis(50);

/// How long a request waits for a leader that is elected but has not applied everything yet.
const LEADER_WAIT: Duration = Duration::from_millis(500);

/// Answers one request; never fails, since every failure has an answer.
pub(super) async fn answer(shared: &Arc<Shared>, peer: NodeName, request: MetaRequest, time: Duration) -> MetaResponse {
    if let Err(refusal) = authorize(peer, &request) {
        warn!(%peer, "{}", refusal.detail);
        return MetaResponse::Failed(refusal);
    }
    let answer = match request {
        MetaRequest::Damage => Ok(MetaResponse::Damage(shared.damage.clone())),
        MetaRequest::Consensus { kind, body } => shared
            .consensus
            .handle(MetaId(peer.number), kind, &body)
            .await
            .map(|body| MetaResponse::Consensus { body }),
        request => {
            if !is_leader(shared, time).await {
                return redirect(shared);
            }
            lead(shared, peer, request, time.saturating_sub(ANSWER_RESERVE)).await
        }
    };
    match answer {
        Ok(answer) => answer,
        Err(e) if e.code == ErrorCode::NotLeader => redirect(shared),
        Err(e) => {
            if e.code == ErrorCode::Unauthorized {
                warn!(%peer, "{}", e.detail);
            }
            MetaResponse::Failed(e)
        }
    }
}

/// Whether this server leads; waits a moment when it is about to.
async fn is_leader(shared: &Shared, time: Duration) -> bool {
    let mut leadership = shared.consensus.leadership();
    let decided = leadership.wait_for(|now| now.is_self || now.leader != Some(shared.me));
    match tokio::time::timeout(time.min(LEADER_WAIT), decided).await {
        Ok(Ok(now)) => now.is_self,
        Ok(Err(_)) | Err(_) => false,
    }
}

fn redirect(shared: &Shared) -> MetaResponse {
    let leader = shared.consensus.leadership().borrow().leader;
    MetaResponse::NotLeader {
        leader: leader
            .filter(|&id| id != shared.me)
            .and_then(|id| Some((id, *shared.routing.borrow().meta.get(&id)?))),
    }
}

async fn lead(shared: &Arc<Shared>, peer: NodeName, request: MetaRequest, time: Duration) -> Result<MetaResponse> {
    match request {
        MetaRequest::OpenSession { label } => open_session(shared, peer, label, time).await,
        MetaRequest::CloseSession { session } => close_session(shared, session, time).await,
        MetaRequest::KeepAlive(message) => {
            let answer = shared.ask(|reply| Ask::KeepAlive(message, reply)).await??;
            Ok(MetaResponse::KeepAlive(answer))
        }
        MetaRequest::Change(change) => change_namespace(shared, change, time).await,
        MetaRequest::Changes(changes) => change_several(shared, changes, time).await,
        MetaRequest::Reserve { session, known } => reserve(shared, session, known, time).await,
        MetaRequest::Release(hold) => match shared.propose(CommandKind::Release(hold), time).await? {
            Outcome::Released(epoch) => Ok(MetaResponse::Released(epoch)),
            other => Err(unexpected(&other)),
        },
        MetaRequest::Wanted { hold, wait_ms } => {
            let wait = Duration::from_millis(u64::from(wait_ms)).min(time);
            shared.wanted(hold, wait).await.map(MetaResponse::Wanted)
        }
        MetaRequest::Read { session, reads } => read(shared, session, reads, time).await,
        MetaRequest::Routing { known, wait_ms } => {
            let wait = Duration::from_millis(u64::from(wait_ms))
                .min(ROUTING_WAIT_MAX)
                .min(time);
            routing(shared, known, wait).await
        }
        MetaRequest::Status => status::status(shared).await,
        MetaRequest::Damage => Ok(MetaResponse::Damage(shared.damage.clone())),
        MetaRequest::Heartbeat(heartbeat) => shared.ask(|reply| Ask::Heartbeat(Box::new(heartbeat), reply)).await,
        MetaRequest::ResyncDone { chain, epoch, node } => {
            let from = StorageId(u32::try_from(peer.number).unwrap_or(u32::MAX));
            shared
                .ask(|reply| Ask::ResyncDone {
                    from,
                    chain,
                    epoch,
                    node,
                    reply,
                })
                .await??;
            Ok(MetaResponse::ResyncDone)
        }
        MetaRequest::Diverged(divergence) => {
            let (chunk, node) = (divergence.chunk, divergence.node);
            let blocks = divergence.blocks.len();
            check_predecessor(shared, peer, divergence.chain, node)?;
            check_divergence(&divergence)?;
            match shared.propose(CommandKind::Diverged(divergence), time).await? {
                Outcome::Verdict(verdict) => {
                    warn!(%chunk, %node, runs_in_conflict = blocks, ?verdict,
                        "a storage node came back with acknowledged writes that its chain does not have");
                    Ok(MetaResponse::Verdict(verdict))
                }
                other => Err(unexpected(&other)),
            }
        }
        MetaRequest::Reconciled {
            chain,
            node,
            chunk,
            conflict,
            end_bytes,
        } => {
            check_predecessor(shared, peer, chain, node)?;
            let command = CommandKind::Reconciled {
                chunk,
                node,
                conflict,
                end_bytes,
            };
            match shared.propose_past_obstacles(command, time).await? {
                Outcome::Administered(done) => done.map(|()| MetaResponse::Reconciled),
                other => Err(unexpected(&other)),
            }
        }
        MetaRequest::Conflicts { after, limit, paths } => conflicts(shared, after, limit, paths).await,
        MetaRequest::SettleConflict {
            inode,
            conflict,
            how,
            by,
        } => {
            if by.len() > LABEL_MAX_BYTES {
                return Err(Error::new(
                    ErrorCode::InvalidArgument,
                    format!("a name of {} bytes is over {LABEL_MAX_BYTES}", by.len()),
                ));
            }
            info!(%peer, %conflict, %inode, %how, by, "a conflict is settled");
            let command = CommandKind::SettleConflict {
                inode,
                conflict,
                how,
                by,
            };
            match shared.propose(command, time).await? {
                Outcome::Administered(done) => done.map(|()| MetaResponse::Administered),
                other => Err(unexpected(&other)),
            }
        }
        MetaRequest::Administer {
            node,
            action: NodeAction::Trust,
        } => {
            info!(%peer, %node, "an administrator trusts the condemned store of a storage node");
            shared.ask(|reply| Ask::Trust(node, reply)).await??;
            Ok(MetaResponse::Administered)
        }
        MetaRequest::Administer { node, action } => {
            info!(%peer, %node, ?action, "an administrator's word about a storage node");
            match shared.propose(CommandKind::Administer { node, action }, time).await? {
                Outcome::Administered(done) => done.map(|()| MetaResponse::Administered),
                other => Err(unexpected(&other)),
            }
        }
        MetaRequest::PauseResyncs(paused) => {
            info!(%peer, paused, "an administrator's word about resyncs");
            match shared.propose(CommandKind::PauseResyncs(paused), time).await? {
                Outcome::Administered(done) => done.map(|()| MetaResponse::Administered),
                other => Err(unexpected(&other)),
            }
        }
        MetaRequest::MoveMeta { server, place } => {
            info!(%peer, %server, ?place, "an administrator moves a metadata server");
            servers::move_meta(shared, server, place, time).await?;
            Ok(MetaResponse::Administered)
        }
        MetaRequest::Consensus { .. } => Err(Error::from(ErrorCode::BadMessage)),
    }
}

async fn open_session(shared: &Shared, peer: NodeName, label: String, time: Duration) -> Result<MetaResponse> {
    if label.len() > LABEL_MAX_BYTES {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("a session label of {} bytes is over {LABEL_MAX_BYTES}", label.len()),
        ));
    }
    info!(%peer, label, "a session opens");
    match shared.propose(CommandKind::OpenSession { label }, time).await? {
        Outcome::SessionOpened(session) => {
            shared.ask(|reply| Ask::SessionOpened(session, reply)).await?;
            Ok(MetaResponse::SessionOpened {
                session,
                lease_ms: SESSION_LEASE_MS as u32,
                time: shared.clock.command_time(),
            })
        }
        other => Err(unexpected(&other)),
    }
}

async fn close_session(shared: &Shared, session: SessionId, time: Duration) -> Result<MetaResponse> {
    let sessions = vec![session];
    let command = CommandKind::EndSessions {
        sessions: sessions.clone(),
    };
    shared.propose(command, time).await?;
    shared.ask(|reply| Ask::SessionsEnded(sessions, reply)).await?;
    Ok(MetaResponse::SessionClosed)
}

/// What takes room is refused in time: what is committed can not be.
fn check_room(shared: &Shared) -> Result<()> {
    if !shared.consensus.lacks_room() {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::NoSpace,
        format!(
            "the disk of meta-{} is nearly full, so nothing new is made; make room there, or remove files",
            shared.me
        ),
    ))
}

async fn change_namespace(shared: &Shared, change: ChangeRequest, time: Duration) -> Result<MetaResponse> {
    // A change that was made is answered as it was.
    if change.op.takes_room()
        && let Err(refused) = check_room(shared)
        && !shared.state.is_answered(change.session, change.sequence)?
    {
        return Err(refused);
    }
    let directories: Vec<_> = change
        .op
        .parents()
        .map(|inode| NamespaceRead::GetAttributes { inode })
        .collect();
    let session = change.session;
    match shared.propose_past_obstacles(CommandKind::Change(change), time).await? {
        Outcome::Change(outcome) => {
            // What was just applied lies in memory. A directory that is gone meanwhile has nothing to tell.
            let answers = shared.state.read(session, &directories, StatFs::default());
            let parents = answers
                .unwrap_or_default()
                .into_iter()
                .filter_map(|answer| match answer {
                    Ok(NamespaceAnswer::Attributes(attributes)) => Some(attributes),
                    Ok(_) | Err(_) => None,
                })
                .collect();
            Ok(MetaResponse::Change(ChangeAnswer { outcome, parents }))
        }
        other => Err(unexpected(&other)),
    }
}

async fn change_several(shared: &Shared, changes: Vec<ChangeRequest>, time: Duration) -> Result<MetaResponse> {
    let session = changes.first().map(|change| change.session);
    if changes.len() > MAX_CHANGES_TOGETHER || changes.iter().any(|change| Some(change.session) != session) {
        return Err(Error::new(
            ErrorCode::BadMessage,
            format!(
                "{} changes in one request; up to {MAX_CHANGES_TOGETHER} of one session are allowed",
                changes.len()
            ),
        ));
    }
    match shared
        .propose_past_obstacles(CommandKind::Changes(changes), time)
        .await?
    {
        Outcome::Changes(answers) => Ok(MetaResponse::Changes(answers)),
        other => Err(unexpected(&other)),
    }
}

async fn reserve(shared: &Shared, session: SessionId, known: InodeId, time: Duration) -> Result<MetaResponse> {
    // What was shown by numbers that were reserved before is let in: they are few.
    check_room(shared)?;
    let command = CommandKind::Reserve {
        session,
        known,
        count: RESERVED_INODES,
    };
    match shared.propose(command, time).await? {
        Outcome::Reserved(reserved) => reserved.map(MetaResponse::Reserved),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(outcome: &Outcome) -> Error {
    Error::new(
        ErrorCode::Internal,
        format!("a command gave the outcome of another kind: {outcome:?}"),
    )
}

async fn read(
    shared: &Shared,
    session: SessionId,
    mut reads: Vec<NamespaceRead>,
    time: Duration,
) -> Result<MetaResponse> {
    if reads.len() > READS_MAX {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("{} reads in one request; {READS_MAX} are allowed", reads.len()),
        ));
    }
    let mut long = false;
    for read in &mut reads {
        if let NamespaceRead::ReadDirectory { limit, .. } = read {
            *limit = (*limit).clamp(1, DIRECTORY_PAGE_MAX);
            long = true;
        }
    }
    let until = Instant::now() + time;
    let reads = Arc::new(reads);
    loop {
        shared.consensus.read_barrier().await?;
        let usage = *shared.usage.borrow();
        // Point reads come from sled's cache in microseconds: cheaper than a change of threads.
        let answers = if long {
            let reads = Arc::clone(&reads);
            shared
                .blocking(move |state| Ok(state.read(session, &reads, usage)))
                .await?
        } else {
            shared.state.read(session, &reads, usage)
        };
        match answers {
            Ok(answers) => return Ok(MetaResponse::Read(answers)),
            Err(obstacle) => shared.clear(obstacle, until).await?,
        }
    }
}

/// Whether this peer brings that member of the chain up to date, by the table as it is now.
fn check_predecessor(shared: &Shared, peer: NodeName, chain: ChainId, member: StorageId) -> Result<()> {
    let routing = shared.routing.borrow();
    let brings = routing.chain(chain).is_some_and(|info| {
        let syncs = info.state_of(member) == Some(MemberState::Syncing);
        syncs && info.serving().last().is_some_and(|last| NodeName::from(last) == peer)
    });
    if brings {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::StaleEpoch,
        format!("{peer} does not bring storage-{member} up to date in chain {chain} now"),
    ))
}

fn check_divergence(divergence: &Divergence) -> Result<()> {
    let vectors = [&divergence.theirs, &divergence.chains];
    if vectors.iter().all(|vector| vector.len() <= MAX_EARLIER_EPOCHS + 1) && divergence.blocks.len() <= MAX_RUNS {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::BadMessage,
        format!(
            "what is said of chunk {} has more parts than a chunk can have",
            divergence.chunk
        ),
    ))
}

async fn conflicts(
    shared: &Arc<Shared>,
    after: Option<(InodeId, ConflictId)>,
    limit: u32,
    paths: bool,
) -> Result<MetaResponse> {
    shared.consensus.read_barrier().await?;
    let limit = limit.clamp(1, CONFLICT_PAGE_MAX) as usize;
    let (conflicts, end) = shared
        .blocking(move |state| state.conflicts(after, limit, paths))
        .await?;
    Ok(MetaResponse::Conflicts { conflicts, end })
}

/// Answers when the table is newer than `known`, when the time is over, or when this server no longer leads.
async fn routing(shared: &Shared, known: RoutingVersion, wait: Duration) -> Result<MetaResponse> {
    let mut table = shared.routing.clone();
    let mut leadership = shared.consensus.leadership();
    let newer = table.wait_for(|table| table.version > known);
    tokio::select! {
        biased;
        found = newer => match found {
            Ok(found) => Ok(MetaResponse::Routing(Some(found.as_ref().clone()))),
            Err(_) => Err(not_leader()),
        },
        _ = leadership.wait_for(|now| !now.is_self) => Err(not_leader()),
        () = tokio::time::sleep(wait) => Ok(MetaResponse::Routing(None)),
    }
}
