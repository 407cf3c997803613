//! Conflicts of a file's versions: recorded once, decided once, and gone with the file.
//!
//! See [`dfs_common::conflict`]. A storage node asks before it lets go of anything; the answer to the same question is the same, so it may
//! ask again after whatever stopped it.

use dfs_common::conflict::{Conflict, ConflictId, ConflictState, Divergence, MAX_SETTLED, Settlement, Verdict};
use dfs_common::policy::ConflictPolicy;
use dfs_common::{ActorId, ChunkId, Error, ErrorCode, InodeId, SessionId, StorageId, Timestamp};

use super::rows::{Body, Counters, InodeRow, OrphanRow};
use super::transaction::get_listed;
use super::{OpError, OpResult};
use crate::store::{self, Overlay, Rows, StoreError, keys};

/// Whose word it is when the policy decides alone.
const BY_POLICY: &str = "policy lww";

/// While a member is brought up to date it may be asked about the same again: an hour is more than that takes or is tried.
const ASKED_AGAIN_NS: u64 = 3_600_000_000_000;

/// Storage nodes count as writers of what they bring in; their numbers must not be taken for a session's.
fn actor(node: StorageId) -> ActorId {
    ActorId((1 << 63) | u64::from(node.0))
}

/// What is to be done about what a member of a chain brought back.
pub(crate) fn diverged<S: Rows + ?Sized>(
    rows: &mut Overlay<'_, S>,
    counters: &mut Counters,
    divergence: &Divergence,
    now: Timestamp,
) -> Result<Verdict, StoreError> {
    let inode = divergence.chunk.inode;
    let row = store::get::<InodeRow, _>(rows, &keys::inode(inode))?;
    let Some(row) = row.filter(|row| matches!(row.body, Body::Regular { .. })) else {
        return Ok(Verdict::Gone);
    };
    let same = |known: &Divergence| {
        (known.chunk, known.node, known.theirs.last()) == (divergence.chunk, divergence.node, divergence.theirs.last())
    };
    let known = of_inode(rows, inode)?.into_iter().find(|known| same(&known.divergence));
    // Who has unlinked it wants neither version, and nobody can be shown two.
    if known.is_none() && (divergence.blocks.is_empty() || row.nlink == 0) {
        return Ok(Verdict::Adopt);
    }
    let mut conflict = known.unwrap_or_else(|| begin(counters, row.policy.conflict, divergence, now));
    let verdict = if conflict.state.is_settled() {
        Verdict::Adopt
    } else {
        Verdict::Keep(conflict.id)
    };
    if conflict.state == ConflictState::Found {
        // Begun before: the chain may have written more of the same blocks since.
        conflict.divergence = divergence.clone();
    }
    put(rows, &conflict)?;
    prune(rows, inode, now)?;
    Ok(verdict)
}

/// A conflict that nobody knew of.
fn begin(counters: &mut Counters, policy: ConflictPolicy, divergence: &Divergence, now: Timestamp) -> Conflict {
    let id = counters.next_inode;
    counters.next_inode = id.next();
    let state = match policy {
        // An epoch begins when the lease of the last one's head is over, so what the chain has is the later write.
        ConflictPolicy::LastWriteWins => ConflictState::Settled {
            at: now,
            how: Settlement::Current,
            by: BY_POLICY.into(),
        },
        ConflictPolicy::KeepBoth | ConflictPolicy::Application => ConflictState::Found,
    };
    Conflict {
        id: ConflictId(id.0),
        found_at: now,
        policy,
        divergence: divergence.clone(),
        state,
    }
}

/// What a verdict asked for is done. The file has other content than before, for whoever has it cached; and it is as long as what was
/// brought into the chunk says, since its writer may have gone without a word.
pub(crate) fn reconciled<S: Rows + ?Sized>(
    rows: &mut Overlay<'_, S>,
    (chunk, end_bytes): (ChunkId, u32),
    conflict: Option<ConflictId>,
    node: StorageId,
    now: Timestamp,
) -> OpResult<()> {
    let inode = chunk.inode;
    // One that was left growing need not have its length found for this: other chains may not be there to say it.
    let Some((mut row, _)) = get_listed(rows, SessionId::SYSTEM, inode)? else {
        return Ok(());
    };
    if let Some(id) = conflict
        && let Some(mut conflict) = store::get::<Conflict, _>(rows, &keys::conflict(inode, id))?
        && conflict.state == ConflictState::Found
    {
        conflict.state = ConflictState::Open;
        put(rows, &conflict)?;
    }
    if let Body::Regular {
        versions,
        length_bytes,
        layout,
        ..
    } = &mut row.body
    {
        versions.bump(actor(node));
        if end_bytes > 0 {
            let end = layout.chunk_start(chunk.index) + u64::from(end_bytes.min(layout.chunk_size_bytes));
            *length_bytes = end.max(*length_bytes);
        }
        row.touch_mtime(now);
        rows.put(keys::inode(inode), store::encode(&row)?);
    }
    Ok(())
}

/// Records what became of a conflict. The other version's blocks are removed like those of an unlinked file.
pub(crate) fn settle<S: Rows + ?Sized>(
    rows: &mut Overlay<'_, S>,
    counters: &mut Counters,
    (inode, id): (InodeId, ConflictId),
    how: Settlement,
    by: &str,
    now: Timestamp,
) -> OpResult<()> {
    let key = keys::conflict(inode, id);
    let Some(mut conflict) = store::get::<Conflict, _>(rows, &key)? else {
        return Err(refused(
            ErrorCode::NotFound,
            format!("there is no conflict {id}; see: dfs conflicts list"),
        ));
    };
    match &conflict.state {
        ConflictState::Open => {}
        // Whoever brings it in may never come back. What is there is all there is to keep.
        ConflictState::Found if how == Settlement::Current => {}
        ConflictState::Found => {
            return Err(refused(
                ErrorCode::Overloaded,
                format!("the other version of conflict {id} is still being brought in"),
            ));
        }
        ConflictState::Settled { how, by, .. } => {
            return Err(refused(
                ErrorCode::Exists,
                format!("conflict {id} is settled already: {how}, by {by}"),
            ));
        }
    }
    conflict.state = ConflictState::Settled {
        at: now,
        how,
        by: by.to_owned(),
    };
    put(rows, &conflict)?;
    let row = store::get::<InodeRow, _>(rows, &keys::inode(inode))?;
    if let Some(row) = row {
        orphan_keeper(rows, counters, &row, id, now)?;
    }
    prune(rows, inode, now)?;
    Ok(())
}

/// The file goes, and with it what is known of its conflicts.
pub(crate) fn forget<S: Rows + ?Sized>(
    rows: &mut Overlay<'_, S>,
    counters: &mut Counters,
    inode: InodeId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let conflicts = of_inode(rows, inode)?;
    if conflicts.is_empty() {
        return Ok(());
    }
    let row = store::get::<InodeRow, _>(rows, &keys::inode(inode))?;
    for conflict in conflicts {
        rows.delete(keys::conflict(inode, conflict.id));
        if let Some(row) = row.as_ref().filter(|_| !conflict.state.is_settled()) {
            orphan_keeper(rows, counters, row, conflict.id, now)?;
        }
    }
    Ok(())
}

/// The other version's blocks have an inode number of their own: to be rid of them it becomes an unlinked file.
fn orphan_keeper<S: Rows + ?Sized>(
    rows: &mut Overlay<'_, S>,
    counters: &mut Counters,
    file: &InodeRow,
    id: ConflictId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let keeper = InodeRow {
        nlink: 0,
        xattr_bytes: 0,
        hold: None,
        growing: false,
        ..file.clone()
    };
    rows.put(keys::inode(id.keeper()), store::encode(&keeper)?);
    let orphan = OrphanRow { unlinked_at: now };
    rows.put(keys::orphan(id.keeper()), store::encode(&orphan)?);
    counters.orphans += 1;
    Ok(())
}

fn of_inode<S: Rows + ?Sized>(rows: &Overlay<'_, S>, inode: InodeId) -> Result<Vec<Conflict>, StoreError> {
    let (from, to) = keys::conflicts(inode);
    let found = rows.scan(&from, &to, usize::MAX)?;
    found.iter().map(|(key, value)| store::decode(key, value)).collect()
}

fn put<S: Rows + ?Sized>(rows: &mut Overlay<'_, S>, conflict: &Conflict) -> Result<(), StoreError> {
    let key = keys::conflict(conflict.divergence.chunk.inode, conflict.id);
    rows.put(key, store::encode(conflict)?);
    Ok(())
}

/// Forgets the oldest of what is settled, but nothing that may be asked for again. What was found
/// at a time that has not come is from a clock that was wrong.
fn prune<S: Rows + ?Sized>(rows: &mut Overlay<'_, S>, inode: InodeId, now: Timestamp) -> Result<(), StoreError> {
    let settled: Vec<ConflictId> = of_inode(rows, inode)?
        .iter()
        .filter(|conflict| conflict.state.is_settled())
        .filter(|conflict| now.nanos.abs_diff(conflict.found_at.nanos) > ASKED_AGAIN_NS)
        .map(|conflict| conflict.id)
        .collect();
    for &id in settled.iter().take(settled.len().saturating_sub(MAX_SETTLED)) {
        rows.delete(keys::conflict(inode, id));
    }
    Ok(())
}

fn refused(code: ErrorCode, detail: String) -> OpError {
    Error::new(code, detail).into()
}
