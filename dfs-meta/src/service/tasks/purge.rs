//! Removes the chunks of unlinked files that nobody holds open, then their rows: the drain of the outbox that an unlink
//! fills. Every step can be repeated, so a leader that dies in the middle leaves nothing behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{ChainId, ChunkIndex, CutEpoch, Error, ErrorCode, InodeId, Result, RetryClass, SessionId};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Task;
use crate::command::CommandKind;
use crate::service::owner::Ask;
use crate::service::shared::Shared;

/// Space comes back within about two keep-alives and this.
const EVERY: Duration = Duration::from_millis(250);

/// After a failure: chains that can not take a removal now are given time.
const PAUSE: Duration = Duration::from_secs(2);

/// Unlinked inodes looked at in one round.
const SCAN_MAX: usize = 8192;

/// Inodes in one request: its time at a storage node stays well under the deadline.
const BATCH_MAX: usize = 512;

/// Chains asked at a time.
const CHAINS_AT_A_TIME: usize = 16;

/// Attempts at one chain before the whole round is put off.
const ATTEMPTS: usize = 5;

/// Pause between them unless the routing table changes first.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

const CALL_DEADLINE: Duration = Duration::from_secs(10);

const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(in crate::service) struct Purge;

impl Task for Purge {
    const NAME: &'static str = "purge";

    async fn run(self, shared: Arc<Shared>, shutdown: CancellationToken) {
        let work = async {
            loop {
                tokio::time::sleep(EVERY).await;
                if let Err(e) = once(&shared).await {
                    if e.code != ErrorCode::NotLeader {
                        warn!(error = %e, "chunks of unlinked files could not be removed; tried again");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        shutdown.run_until_cancelled(work).await;
    }
}

async fn once(shared: &Arc<Shared>) -> Result<()> {
    if !shared.leads() {
        return Ok(());
    }
    let orphans = shared.blocking(|state| state.orphans(SCAN_MAX)).await?;
    // Also with an empty list: the owner forgets what it remembered.
    let ready = shared.ask(|reply| Ask::Purgeable(orphans, reply)).await?;
    for inodes in ready.chunks(BATCH_MAX) {
        remove_everywhere(shared, inodes).await?;
        debug!(inodes = inodes.len(), "unlinked files are purged");
        let command = CommandKind::Purged {
            inodes: inodes.to_vec(),
        };
        shared.propose(command, PROPOSE_DEADLINE).await?;
    }
    Ok(())
}

/// On every chain of every table: a file's chunks may lie on any of its table's.
async fn remove_everywhere(shared: &Arc<Shared>, inodes: &[InodeId]) -> Result<()> {
    let chains: BTreeSet<ChainId> = {
        let routing = shared.routing.borrow();
        routing
            .tables
            .values()
            .flat_map(|table| table.chains.iter().copied())
            .collect()
    };
    let mut calls = JoinSet::new();
    let mut chains = chains.into_iter();
    loop {
        while calls.len() < CHAINS_AT_A_TIME
            && let Some(chain) = chains.next()
        {
            let (shared, inodes) = (Arc::clone(shared), inodes.to_vec());
            calls.spawn(async move { remove_on(&shared, chain, inodes).await });
        }
        match calls.join_next().await {
            None => return Ok(()),
            Some(Ok(result)) => result?,
            Some(Err(e)) => {
                return Err(Error::new(ErrorCode::Internal, format!("a removal was cut off: {e}")));
            }
        }
    }
}

async fn remove_on(shared: &Shared, chain: ChainId, inodes: Vec<InodeId>) -> Result<()> {
    let mut routing = shared.routing.clone();
    let mut last = Error::new(
        ErrorCode::TooFewReplicas,
        format!("chain {chain} has no serving member"),
    );
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            let _ = tokio::time::timeout(RETRY_PAUSE, routing.changed()).await;
        }
        let table = Arc::clone(&routing.borrow_and_update());
        let Some(info) = table.chain(chain) else {
            return Ok(());
        };
        let Some((head, address)) = info.head().and_then(|head| Some((head, table.address(head)?))) else {
            continue;
        };
        let request = StorageRequest::RemoveRange {
            chain,
            epoch: info.epoch,
            inodes: inodes.clone(),
            from: ChunkIndex(0),
            cut: CutEpoch::GONE,
            session: SessionId::SYSTEM,
        };
        last = match shared.storage.call(head, address, &request, CALL_DEADLINE).await {
            Ok(StorageResponse::RangeRemoved { .. }) => return Ok(()),
            Ok(StorageResponse::Failed(e)) | Err(e) => e,
            Ok(other) => Error::new(
                ErrorCode::BadMessage,
                format!("storage-{head} answered a removal by {other:?}"),
            ),
        };
        if last.retry_class() == RetryClass::Fatal {
            break;
        }
    }
    Err(last.context(format_args!("removing unlinked files from chain {chain}")))
}
