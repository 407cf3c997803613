//! What has to happen before a request can be answered: holds of others end, and the length of what was left growing is
//! found.
//!
//! A mount that holds a file may write and sync it without a word to the metadata group (see `WriteCommit::growing`). When it
//! dies, or has its hold taken, the chunks know how long the file became: their chains' heads, which have everything that was
//! ever acknowledged, are asked by whoever needs the file next. (CephFS probes objects beyond a client's last word, 3FS asks
//! its storage nodes for the last chunk.) Nobody writes to it meanwhile: who held it is not believed any more, and everybody
//! else waits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{ChainId, ChunkIndex, Error, ErrorCode, Result, RetryClass, RoutingTable, SessionId};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::info;

use super::owner::Ask;
use super::shared::Shared;
use crate::command::{CommandKind, Outcome};
use crate::namespace::{Growing, Obstacle};

/// Between two attempts at one chain, unless the routing table changes first.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Between two looks at whether every storage node has heard of a session's end: a heartbeat apart at most.
const FENCE_LOOK: Duration = Duration::from_millis(5);

/// For one answer of a head.
const CALL_DEADLINE: Duration = Duration::from_secs(1);

/// Kept free for putting the answer through consensus, or for the line that says why not.
const RESERVE: Duration = Duration::from_millis(100);

impl Shared {
    /// Proposes, and clears out of the way what is in it.
    pub(super) async fn propose_past_obstacles(&self, kind: CommandKind, time: Duration) -> Result<Outcome> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.propose(kind.clone(), left).await? {
                Outcome::Obstructed(obstacle) => self.clear(obstacle, until).await?,
                outcome => return Ok(outcome),
            }
        }
    }

    /// Waits until what obstructed a request does so no more.
    pub(super) async fn clear(&self, obstacle: Obstacle, until: Instant) -> Result<()> {
        match obstacle {
            Obstacle::Held(hold) => self.end_hold(hold, until).await,
            Obstacle::Growing(growing) => {
                self.fence_off(growing.hold.session, until).await?;
                self.find_length(growing, until).await
            }
        }
    }

    /// Waits until no storage node takes anything of this session any more, if it has ended: what it wrote after the length was
    /// found would be acknowledged, and cut off.
    async fn fence_off(&self, session: SessionId, until: Instant) -> Result<()> {
        let (_, list) = self.state.live_sessions()?;
        if list.admits(session) {
            return Ok(());
        }
        let mut since = None;
        loop {
            let (asked, known) = self.ask(|reply| Ask::Fenced(since, reply)).await?;
            if known {
                return Ok(());
            }
            since = Some(asked);
            if Instant::now() + FENCE_LOOK >= until {
                return Err(Error::new(
                    ErrorCode::Overloaded,
                    format!("session {session} has ended, and not every storage node has heard of it yet: try again"),
                ));
            }
            tokio::time::sleep(FENCE_LOOK).await;
        }
    }

    async fn find_length(&self, growing: Growing, until: Instant) -> Result<()> {
        let from = growing.layout.chunk_of(growing.length_bytes);
        let chains: Option<BTreeSet<ChainId>> = {
            let routing = self.routing.borrow();
            let table = routing.tables.get(&growing.layout.table);
            table.map(|table| table.chains.iter().copied().collect())
        };
        let Some(chains) = chains else {
            return Err(Error::new(
                ErrorCode::TooFewReplicas,
                format!(
                    "inode {}: there is no chain table {}",
                    growing.inode, growing.layout.table
                ),
            ));
        };
        let mut calls = JoinSet::new();
        for chain in chains {
            let asker = Asker {
                routing: self.routing.clone(),
                storage: Arc::clone(&self.storage),
            };
            calls.spawn(async move { asker.end_on(chain, growing, from, until).await });
        }
        let mut length_bytes = growing.length_bytes;
        while let Some(end) = calls.join_next().await {
            let end = end.map_err(|e| Error::new(ErrorCode::Internal, format!("a question was cut off: {e}")))??;
            if let Some((chunk, bytes)) = end {
                // What is damaged counts as a whole chunk: reads of it fail, none of its bytes is taken for absent.
                let bytes = bytes.min(growing.layout.chunk_size_bytes);
                length_bytes = length_bytes.max(growing.layout.chunk_start(chunk) + u64::from(bytes));
            }
        }
        info!(
            inode = growing.inode.0,
            session = growing.hold.session.0,
            told_bytes = growing.length_bytes,
            length_bytes,
            "the length of a file whose writer went without a word is found"
        );
        let found = Growing {
            length_bytes,
            ..growing
        };
        let left = until.saturating_duration_since(Instant::now());
        self.propose(CommandKind::FoundLength(found), left).await.map(|_| ())
    }
}

/// What a question to one chain needs.
struct Asker {
    routing: tokio::sync::watch::Receiver<Arc<RoutingTable>>,
    storage: Arc<dyn super::shared::StorageCaller>,
}

impl Asker {
    async fn end_on(
        mut self,
        chain: ChainId,
        growing: Growing,
        from: ChunkIndex,
        until: Instant,
    ) -> Result<Option<(ChunkIndex, u32)>> {
        loop {
            let table = Arc::clone(&self.routing.borrow_and_update());
            let time = (until - RESERVE)
                .saturating_duration_since(Instant::now())
                .min(CALL_DEADLINE);
            let error = match self.ask(&table, chain, growing, from, time).await {
                Ok(end) => return Ok(end),
                Err(error) => error,
            };
            let wait = tokio::time::timeout(RETRY_PAUSE, self.routing.changed());
            if error.retry_class() == RetryClass::Fatal || tokio::time::timeout_at(until - RESERVE, wait).await.is_err()
            {
                // Not a timeout of this server's: its leader is well.
                return Err(Error::new(
                    ErrorCode::Overloaded,
                    format!(
                        "inode {}: its writer went without saying how long it is, and chain {chain} does not say it: {error}",
                        growing.inode
                    ),
                ));
            }
        }
    }

    async fn ask(
        &self,
        table: &RoutingTable,
        chain: ChainId,
        growing: Growing,
        from: ChunkIndex,
        time: Duration,
    ) -> Result<Option<(ChunkIndex, u32)>> {
        let info = table.chain(chain);
        let Some((info, head, address)) = info.and_then(|info| {
            let head = info.head()?;
            Some((info, head, table.address(head)?))
        }) else {
            return Err(Error::new(
                ErrorCode::TooFewReplicas,
                format!("chain {chain} has no serving member"),
            ));
        };
        let request = StorageRequest::FileEnd {
            chain,
            epoch: info.epoch,
            inode: growing.inode,
            from,
        };
        match self.storage.call(head, address, &request, time).await {
            Ok(StorageResponse::FileEnd(end)) if end.is_none_or(|(chunk, _)| chunk >= from) => Ok(end),
            Ok(StorageResponse::Failed(e)) | Err(e) => Err(e),
            Ok(other) => Err(Error::new(
                ErrorCode::BadMessage,
                format!("storage-{head} answered a question for a file's end by {other:?}"),
            )),
        }
    }
}
