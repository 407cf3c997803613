//! What metadata hears of written data: length and times, and whether more comes without a word.

use std::sync::Arc;

use dfs_common::wire::namespace::{Attributes, Caller, NamespaceChange, NamespaceOp, SetAttributes, SetTime};
use dfs_common::{ErrorCode, Result};
use tokio::time::Instant;

use super::state::{FileState, Word, cut_of};
use super::writer::{FLUSH_AGE_MS, timeout};
use crate::meta::Untold;
use crate::mount::Mount;

/// Who commits: the mount itself; permission was checked when the file was opened.
pub(super) const SYSTEM: Caller = Caller { uid: 0, gid: 0 };

impl Mount {
    /// Close: everything on the chains, then in metadata. Costs nothing when nothing is owed.
    pub(crate) async fn flush(self: &Arc<Self>, file: &Arc<FileState>, deadline: Instant) -> Result<()> {
        if file.inner.lock().is_quiet() {
            return Ok(());
        }
        self.drain(file, deadline).await?;
        self.commit(file, Word::Last, None, deadline).await?;
        // A change of it may have failed after it was shown; each handle is told (`Session::refused`).
        self.forget_foreseen();
        Ok(())
    }

    /// Tells metadata what is owed; with `set`, both in one command. `None`: there was nothing to tell.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        word: Word,
        set: Option<(Caller, SetAttributes)>,
        deadline: Instant,
    ) -> Result<Option<Attributes>> {
        let _turn = self.turn(file, "commit", deadline).await?;
        self.commit_in_turn(file, word, set, deadline).await
    }

    /// To change a file's length, or to tell one.
    pub(super) async fn turn<'a>(
        &self,
        file: &'a FileState,
        what: &str,
        deadline: Instant,
    ) -> Result<tokio::sync::MutexGuard<'a, ()>> {
        timeout(deadline, file.commit_turn.lock(), || {
            format!("{what} of inode {}: a commit before it does not end", file.inode)
        })
        .await
    }

    /// The same, by who has the commit's turn.
    pub(super) async fn commit_in_turn(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        mut word: Word,
        set: Option<(Caller, SetAttributes)>,
        deadline: Instant,
    ) -> Result<Option<Attributes>> {
        loop {
            self.confirm_kept(file, deadline).await?;
            match self.commit_once(file, word, set, deadline).await {
                // What the hold was good for is settled now: the rest is told like anything else.
                Err(error) if error.code == ErrorCode::HoldLost => {
                    self.lose_growth(file, deadline).await?;
                    word = Word::Last;
                }
                // Somebody cut the file since the data was written: some of it may be gone.
                Err(error) if error.code == ErrorCode::StaleCut && Instant::now() < deadline => {
                    self.outwait_cut(file, deadline).await?;
                }
                outcome => return outcome,
            }
        }
    }

    async fn lose_growth(&self, file: &FileState, deadline: Instant) -> Result<()> {
        if file.inner.lock().growth.is_none() {
            return Ok(());
        }
        let fresh = self.fetch_attributes(file.inode, deadline).await;
        let mut inner = file.inner.lock();
        match fresh {
            Ok(fresh) => inner.growth_lost(&fresh),
            // Removed by somebody: nothing is left to be told.
            Err(error) if matches!(error.code, ErrorCode::NotFound | ErrorCode::StaleInode) => inner.growth = None,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn commit_once(
        &self,
        file: &FileState,
        word: Word,
        set: Option<(Caller, SetAttributes)>,
        deadline: Instant,
    ) -> Result<Option<Attributes>> {
        let holds = self.session.may_grow(file.inode);
        let (owed, last_write_at, deferred, was, next, (newest, cut, acknowledged)) = {
            let mut inner = file.inner.lock();
            let next = inner.growth_after(word, holds);
            let owed = inner.commit(next.is_some()).or_else(|| inner.last_word(word));
            let was = inner.growth;
            if owed.is_some() && next.is_none() {
                // From here on no fsync relies on what this word ends.
                inner.growth = None;
            }
            // Only with the debt: apart from it there is none.
            let cut = inner.cut();
            let covers = (inner.kept.newest(), cut, inner.kept.may_follow_cuts(cut));
            (
                owed,
                inner.last_write_at,
                inner.deferred_atime.take(),
                was,
                next,
                covers,
            )
        };
        let sets_mtime = set.as_ref().is_some_and(|(_, set)| set.mtime.is_some());
        let set = match (set, deferred) {
            (set, None) => set,
            (set, Some(atime)) => {
                let (caller, mut set) = set.unwrap_or((SYSTEM, SetAttributes::default()));
                set.atime = set.atime.or(Some(SetTime::To(atime)));
                Some((caller, set))
            }
        };
        let (commit, number) = owed.map_or((None, 0), |(commit, number)| (Some(commit), number));
        let inode = file.inode;
        let (caller, op) = match (set, commit) {
            (Some((caller, set)), commit) => (caller, NamespaceOp::SetAttributes { inode, set, commit }),
            (None, Some(commit)) => (SYSTEM, NamespaceOp::CommitWrite { inode, commit }),
            (None, None) => return Ok(None),
        };
        let began_ms = self.now_ms();
        // What was promised must not be told over what others did after the hold was lost.
        let within = was.or(next).map(|growth| growth.hold);
        let outcome = self.session.change_within(within, caller, op, deadline).await;
        let mut inner = file.inner.lock();
        match outcome {
            Ok(change) => {
                let end = commit.and_then(|commit| commit.extend_to_bytes).unwrap_or(0);
                inner.kept.committed((newest, end), cut);
                inner.paid(number, began_ms);
                if commit.is_some() && inner.growth.is_none() {
                    inner.growth = next;
                }
                if let NamespaceChange::Entry { attributes, .. } = change {
                    if cut_of(&attributes) == cut {
                        inner.kept.preceded_cuts(&acknowledged);
                    }
                    inner.learn_own(&attributes);
                    if sets_mtime && inner.last_write_at == last_write_at {
                        inner.set_mtime(attributes.mtime);
                    }
                    return Ok(Some(inner.view(&attributes)));
                }
                inner.own_change = None;
                Ok(None)
            }
            Err(error) => {
                // Unless a newer one has taken its place.
                inner.deferred_atime = inner.deferred_atime.or(deferred);
                if let Some(was) = was {
                    inner.growth_uncertain(was);
                }
                // What can never be told must not be owed for ever.
                if matches!(error.code, ErrorCode::NotFound | ErrorCode::StaleInode) {
                    inner.paid(number, began_ms);
                    inner.kept.forget_lengths(u64::MAX);
                    inner.deferred_atime = None;
                    inner.growth = None;
                }
                Err(error)
            }
        }
    }

    /// After the last close, in a task of its own: settle, then forget.
    pub(crate) async fn finish(self: &Arc<Self>, file: &Arc<FileState>) {
        if let Err(error) = self.flush(file, self.deadline()).await {
            tracing::warn!(inode = file.inode.0, "after its last close: {error}");
            // Dirty bytes were dropped with their own line; a length that could not be committed is lost here, unless an fsync
            // promised it: then `tend` goes on until the group has heard of it, or found it out.
            let expired = self.check_session(file).is_err();
            let mut inner = file.inner.lock();
            if inner.opens == 0 && inner.dirty.is_empty() && (expired || inner.growth.is_none()) {
                inner.owed = None;
                inner.kept.forget_lengths(u64::MAX);
                inner.deferred_atime = None;
                inner.growth = None;
            }
        }
        self.forget_if_idle(file);
    }

    /// Tells metadata of what is on the chains, in a task of its own.
    pub(super) fn commit_soon(self: &Arc<Self>, file: &Arc<FileState>) {
        let (mount, file) = (Arc::clone(self), Arc::clone(file));
        tokio::spawn(async move {
            let outcome = mount.commit(&file, Word::Passing, None, mount.deadline()).await;
            if let Err(error) = outcome {
                tracing::debug!(inode = file.inode.0, "a background commit failed: {error}");
            }
        });
    }

    /// One round of the clock: old slabs go out, old debts are paid, files that nobody has open any more are forgotten.
    pub(crate) fn tend(self: &Arc<Self>) {
        let now_ms = self.now_ms();
        self.sync_old();
        for file in self.unsettled() {
            self.kick(&file, FLUSH_AGE_MS);
            let (due, closed, expired) = {
                let inner = file.inner.lock();
                let closed = inner.opens == 0;
                let due = if closed {
                    inner.growth.is_some()
                } else {
                    inner.is_commit_due(now_ms)
                };
                (due, closed, self.check_session(&file).is_err())
            };
            if due && (closed || !expired) && file.commit_turn.try_lock().is_ok() {
                if closed {
                    let (mount, file) = (Arc::clone(self), Arc::clone(&file));
                    tokio::spawn(async move { mount.finish(&file).await });
                } else {
                    self.commit_soon(&file);
                }
            }
        }
    }
}

impl Untold for Mount {
    async fn tell_all(self: &Arc<Self>, deadline: Instant) {
        for file in self.unsettled() {
            if file.inner.lock().growth.is_none() {
                continue;
            }
            if let Err(error) = self.commit(&file, Word::Last, None, deadline).await {
                tracing::debug!(inode = file.inode.0, "its length is left to be found: {error}");
            }
        }
    }
}
