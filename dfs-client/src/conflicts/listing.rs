//! What conflicts there are, and the word that settles one.

use std::time::Duration;

use dfs_common::conflict::ConflictEntry;
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::{Conflict, ConflictId, ConflictState, ErrorCode, InodeId, Result, Settlement};
use tokio::time::Instant;

use super::or_gone;
use crate::client::{Client, mismatch};
use crate::meta::Leader;

/// Asked for at a time: an entry may hold a path of 4 KiB and some thousand runs of blocks.
pub(super) const PAGE: u32 = 64;

/// Where a page ended.
pub(super) type Cursor = Option<(InodeId, ConflictId)>;

fn is_settled(state: &ConflictState, as_what: Settlement) -> bool {
    matches!(state, ConflictState::Settled { how, .. } if *how == as_what)
}

fn cursor(conflict: &Conflict) -> (InodeId, ConflictId) {
    (conflict.divergence.chunk.inode, conflict.id)
}

/// Conflicts after `after`, and where to go on; `None` there: that was the end. Without `paths` the group need not look for names.
pub(super) async fn page(
    leader: &Leader,
    after: Cursor,
    (limit, paths): (u32, bool),
    deadline: Instant,
) -> Result<(Vec<ConflictEntry>, Cursor)> {
    let what = || "list of conflicts".to_owned();
    let request = MetaRequest::Conflicts { after, limit, paths };
    match leader.ask(&request, deadline, Duration::ZERO, &what).await? {
        MetaResponse::Conflicts { conflicts, end } => {
            let last = conflicts.last().map(|entry| cursor(&entry.conflict));
            // A server that does not go on would be asked for ever.
            let next = last.filter(|_| !end).filter(|&last| Some(last) > after);
            Ok((conflicts, next))
        }
        _ => Err(mismatch()),
    }
}

/// All of them, open or settled, by file.
pub(crate) async fn every(leader: &Leader, paths: bool, page_deadline: Duration) -> Result<Vec<ConflictEntry>> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let (mut conflicts, next) = page(leader, after, (PAGE, paths), Instant::now() + page_deadline).await?;
        all.append(&mut conflicts);
        match next {
            Some(last) => after = Some(last),
            None => return Ok(all),
        }
    }
}

impl Client {
    /// Every conflict that is remembered, open or settled, by file, without the files' paths.
    ///
    /// # Errors
    /// No metadata server answers in time.
    pub async fn conflicts(&self) -> Result<Vec<ConflictEntry>> {
        every(self.leader(), false, self.mount().bounds.deadline).await
    }

    /// The conflict as it is now, with its file's path.
    ///
    /// # Errors
    /// `NotFound`: it is not remembered any more, as happens when its file is removed.
    pub async fn conflict(&self, inode: InodeId, id: ConflictId) -> Result<ConflictEntry> {
        self.one(inode, id, true).await
    }

    /// The same; the path only if it is wanted.
    pub(super) async fn one(&self, inode: InodeId, id: ConflictId, path: bool) -> Result<ConflictEntry> {
        let before = ConflictId(id.0.saturating_sub(1));
        let deadline = self.mount().deadline();
        let (found, _) = page(self.leader(), Some((inode, before)), (1, path), deadline).await?;
        let entry = found.into_iter().find(|entry| entry.conflict.id == id);
        entry.ok_or_else(|| or_gone(id)(ErrorCode::NotFound.into()))
    }

    /// Says what became of a conflict. The other version's blocks go, so the choice must be durable before.
    ///
    /// # Errors
    /// `NotFound`: the file is gone. Otherwise the group's reason: it is settled already, say.
    pub async fn settle(&self, inode: InodeId, id: ConflictId, how: Settlement, by: &str) -> Result<()> {
        let request = MetaRequest::SettleConflict {
            inode,
            conflict: id,
            how,
            by: by.to_owned(),
        };
        let what = || format!("settlement of conflict {id}");
        let deadline = self.mount().deadline();
        let answer = self.leader().ask(&request, deadline, Duration::ZERO, &what).await;
        match answer.map_err(or_gone(id)) {
            Ok(MetaResponse::Administered) => Ok(()),
            Ok(_) => Err(mismatch()),
            // Another may have come to the same, or this very word was heard and its answer lost.
            Err(error) => match self.one(inode, id, false).await {
                Ok(entry) if is_settled(&entry.conflict.state, how) => Ok(()),
                _ => Err(error),
            },
        }
    }
}
