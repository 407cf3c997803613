//! The end of a file: truncation, extension, and garbage that lies beyond it.
//!
//! What the chunks have beyond the end of a file is garbage: what a writer that died had sent and not committed, or what a
//! truncation has yet to remove. A file must not grow over it. So whoever makes a file longer over bytes that it has not written
//! itself first looks whether anything lies there. A writer that lives commits it within [`LIVE_WRITER`]; after that it is cut.
//!
//! A cut is ordered by the truncation epoch (see [`CutEpoch`]): `BeginCut` shortens the file and raises the epoch, the chunks are cut,
//! durably, in that epoch, and `SetLength` ends it. A client that dies in the middle leaves a file that is short already, and whoever
//! wants to grow it begins another cut.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::planted::{self, Bug};
use dfs_common::units::BLOCK_SIZE_BYTES;
use dfs_common::wire::namespace::{Attributes, Caller, NamespaceChange, NamespaceOp, WriteCommit};
use dfs_common::wire::storage::{BlockCondition, Mutation};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, CutEpoch, Error, ErrorCode, Result, Timestamp,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::acknowledged::{Base, WrittenRun};
use super::commit::SYSTEM;
use super::state::{FileState, Word};
use super::writer::{join_all, timeout, too_big, unexpected_change};
use crate::mount::Mount;

/// Chunks removed by requests of their own.
const MAX_REMOVALS: u32 = 64;

/// Data that a living mount has sent is committed within this, or it is taken for a dead one's.
/// Some four times what that takes.
pub(super) const LIVE_WRITER: Duration = Duration::from_secs(2);

/// Between two looks at a file that another mount is about to commit or to cut.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a cut does to the length of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The file is this long at most.
    Shorten(u64),
    /// It keeps its length, and what lies beyond goes, if this is still the truncation epoch.
    /// Otherwise somebody else was quicker, and what lies there now may be what a living mount has
    /// written since.
    Garbage(CutEpoch),
}

impl Mount {
    /// Makes the file exactly this long.
    pub(crate) async fn set_length(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        caller: Caller,
        length: u64,
        deadline: Instant,
    ) -> Result<Attributes> {
        if length > file.layout.max_length_bytes() {
            return Err(too_big(file, length));
        }
        let _alone = timeout(deadline, file.gate.write(), || {
            format!("truncate of inode {}: writes to it do not end", file.inode)
        })
        .await?;
        self.drain(file, deadline).await?;
        let _turn = self.turn(file, "truncate", deadline).await?;
        self.commit_lengths(file, deadline).await?;
        let mut attempt = 0;
        loop {
            match self.set_length_once(file, caller, length, deadline).await {
                // It is not what this mount took it for.
                Err(error) if error.code == ErrorCode::StaleCut && Instant::now() < deadline => {
                    attempt += 1;
                    tokio::time::sleep(crate::retry::pause(attempt) / 8).await;
                    self.refresh(file, deadline).await?;
                }
                outcome => return outcome,
            }
        }
    }

    async fn set_length_once(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        caller: Caller,
        length: u64,
        deadline: Instant,
    ) -> Result<Attributes> {
        let known = || file.inner.lock().attributes.length_bytes;
        if length < known() {
            return self.cut_once(file, caller, Cut::Shorten(length), deadline).await;
        }
        if let Some(attributes) = self.extend_held(file, caller, length, deadline).await? {
            return Ok(attributes);
        }
        if length == known() {
            // What somebody has sent and not committed came before this, so it goes, and its writer sends it again if it lives.
            self.refresh(file, deadline).await?;
            let is_cutting = file.inner.lock().cut().is_cutting();
            if length == known() && (is_cutting || self.data_end(file, length, deadline).await? > length) {
                return self.cut_once(file, caller, Cut::Shorten(length), deadline).await;
            }
        } else {
            self.clear_end(file, deadline).await?;
        }
        if length < known() {
            return self.cut_once(file, caller, Cut::Shorten(length), deadline).await;
        }
        self.extend(file, caller, length, deadline).await
    }

    /// Before a write beyond the end: nothing that others left may lie between. A file that this mount holds has nothing there.
    pub(super) async fn clear_gap(self: &Arc<Self>, file: &Arc<FileState>, to: u64, deadline: Instant) -> Result<()> {
        let _alone = timeout(deadline, file.gate.write(), || {
            format!("write beyond the end of inode {}: writes to it do not end", file.inode)
        })
        .await?;
        if file.inner.lock().length() >= to {
            return Ok(());
        }
        self.drain(file, deadline).await?;
        let _turn = self.turn(file, "write beyond the end", deadline).await?;
        self.clear_end(file, deadline).await?;
        let mut inner = file.inner.lock();
        inner.cleared_gap = Some((inner.length(), to));
        Ok(())
    }

    /// Whether nobody but this mount can have written beyond the end.
    pub(crate) fn knows_end(&self, file: &FileState) -> bool {
        !file.inner.lock().unclean_end && self.session.may_grow(file.inode).is_some()
    }

    /// Extends a file that this mount holds. `None`: it does not.
    pub(super) async fn extend_held(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        caller: Caller,
        length: u64,
        deadline: Instant,
    ) -> Result<Option<Attributes>> {
        if !self.knows_end(file) {
            return Ok(None);
        }
        let op = NamespaceOp::SetLength {
            inode: file.inode,
            length_bytes: length,
            mtime: Some(self.session.file_clock.now()),
            cut: None,
        };
        match self.session.change(caller, op, deadline).await {
            Ok(NamespaceChange::Entry { attributes, .. }) => Ok(Some(Self::length_set(file, &attributes))),
            Ok(_) => Err(unexpected_change(file.inode)),
            // The hold was lost meanwhile.
            Err(error) if error.code == ErrorCode::StaleCut => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Extends a file that has nothing beyond its end.
    pub(super) async fn extend(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        caller: Caller,
        length: u64,
        deadline: Instant,
    ) -> Result<Attributes> {
        let commit = WriteCommit {
            extend_to_bytes: Some(length),
            mtime: Some(self.session.file_clock.now()),
            clear_suid: false,
            growing: false,
            cut: file.inner.lock().cut(),
            sparse: true,
        };
        let inode = file.inode;
        let op = NamespaceOp::CommitWrite { inode, commit };
        let NamespaceChange::Entry { attributes, .. } = self.session.change(caller, op, deadline).await? else {
            return Err(unexpected_change(inode));
        };
        Ok(Self::length_set(file, &attributes))
    }

    /// A command has set length and time, and everything owed was part of it.
    fn length_set(file: &FileState, attributes: &Attributes) -> Attributes {
        let mut inner = file.inner.lock();
        inner.generation += 1;
        inner.made_sparse &= attributes.length_bytes > 0;
        inner.learn_own(attributes);
        inner.length_told();
        inner.growth = None;
        inner.view(attributes)
    }

    /// Nothing lies beyond the end afterwards, but what others write from now on. To be called with the commit's turn.
    pub(super) async fn clear_end(self: &Arc<Self>, file: &Arc<FileState>, deadline: Instant) -> Result<()> {
        if planted::is(Bug::GapNotCleared) {
            return Ok(());
        }
        let began = Instant::now();
        let mut since = (began, file.inner.lock().attributes.length_bytes);
        loop {
            self.commit_lengths(file, deadline).await?;
            self.refresh(file, deadline).await?;
            let (length, cut) = {
                let inner = file.inner.lock();
                (inner.attributes.length_bytes, inner.cut())
            };
            let end = self.data_end(file, length, deadline).await?;
            if end <= length && !cut.is_cutting() {
                return Ok(());
            }
            // Somebody has told a length: what lies beyond that now came later. Who never stops to
            // append must not keep others waiting.
            if length > since.1 && began.elapsed() < 2 * LIVE_WRITER {
                since = (Instant::now(), length);
            }
            if since.0.elapsed() >= LIVE_WRITER {
                tracing::info!(
                    inode = file.inode.0,
                    length,
                    end,
                    "what a mount left beyond the end of the file is cut before the file grows over it"
                );
                if self.cut_garbage(file, cut, deadline).await? {
                    return Ok(());
                }
                since = (Instant::now(), length);
            }
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorCode::Timeout,
                    format!("inode {}: another mount is about to change its length", file.inode),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until no cut of the file is under way, and ends one that its mount does not end. To be
    /// called with the commit's turn.
    pub(super) async fn outwait_cut(self: &Arc<Self>, file: &Arc<FileState>, deadline: Instant) -> Result<()> {
        let mut seen = (file.inner.lock().cut(), Instant::now());
        loop {
            self.refresh(file, deadline).await?;
            let cut = file.inner.lock().cut();
            if !cut.is_cutting() {
                return Ok(());
            }
            if cut != seen.0 {
                seen = (cut, Instant::now());
            }
            if seen.1.elapsed() >= LIVE_WRITER && self.cut_garbage(file, cut, deadline).await? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorCode::Timeout,
                    format!("inode {}: another mount truncates it and does not end", file.inode),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Takes in what metadata says of the file now.
    pub(crate) async fn refresh(&self, file: &FileState, deadline: Instant) -> Result<()> {
        let fresh = self.fetch_attributes(file.inode, deadline).await?;
        let mut inner = file.inner.lock();
        if fresh.change > inner.attributes.change {
            inner.tail = None;
        }
        inner.learn(&fresh);
        Ok(())
    }

    fn chains(&self, file: &FileState) -> BTreeSet<ChainId> {
        let table = self.chunks.routing().current();
        let table = table.tables.get(&file.layout.table);
        table
            .map(|table| table.chains.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Where the data of the file ends on its chains, as far as it lies beyond `length`.
    async fn data_end(self: &Arc<Self>, file: &Arc<FileState>, length: u64, deadline: Instant) -> Result<u64> {
        let from = file.layout.chunk_of(length);
        let mut questions = JoinSet::new();
        for chain in self.chains(file) {
            let (mount, file) = (Arc::clone(self), Arc::clone(file));
            questions.spawn(async move { mount.chunks.file_end(chain, file.inode, from, deadline).await });
        }
        let mut end = 0;
        while let Some(answer) = questions.join_next().await {
            let answer = answer
                .map_err(|error| Error::new(ErrorCode::Internal, format!("a question's task died: {error}")))??;
            if let Some((chunk, bytes)) = answer {
                let bytes = bytes.min(file.layout.chunk_size_bytes);
                end = end.max(file.layout.chunk_start(chunk) + u64::from(bytes));
            }
        }
        Ok(end.min(file.layout.max_length_bytes()))
    }

    /// Removes what lies beyond the end, or ends a cut that somebody began and does not end.
    /// `false`: others have cut the file since that was seen in epoch `seen`, so it has to be
    /// looked at again.
    async fn cut_garbage(self: &Arc<Self>, file: &Arc<FileState>, seen: CutEpoch, deadline: Instant) -> Result<bool> {
        match self.cut_once(file, SYSTEM, Cut::Garbage(seen), deadline).await {
            Err(error) if error.code == ErrorCode::StaleCut && Instant::now() < deadline => Ok(false),
            outcome => outcome.map(|_| true),
        }
    }

    /// One cut, from its beginning to its end; `StaleCut` if somebody else begins one meanwhile, or has made the file shorter than
    /// that. To be called with the commit's turn, and with no length of this mount's uncommitted.
    async fn cut_once(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        caller: Caller,
        how: Cut,
        deadline: Instant,
    ) -> Result<Attributes> {
        let (at_most, mtime, only_in) = match how {
            Cut::Shorten(length) => (length, self.session.file_clock.now(), None),
            Cut::Garbage(seen) => (u64::MAX, file.inner.lock().attributes.mtime, Some(seen)),
        };
        let begin = NamespaceOp::BeginCut {
            inode: file.inode,
            length_bytes: at_most,
            mtime: Some(mtime),
            only_in,
        };
        let known = file.inner.lock().cut();
        let begun = async {
            let begun = self.session.change(caller, begin, deadline).await?;
            let NamespaceChange::CutBegun {
                attributes,
                before_bytes,
            } = begun
            else {
                return Err(unexpected_change(file.inode));
            };
            let length = attributes.length_bytes;
            let mut inner = file.inner.lock();
            inner.learn_own(&attributes);
            inner.tail = None;
            inner.generation += 1;
            inner.growth = None;
            let cut = inner.cut();
            // If others have cut the file since this mount last looked, nothing here is known to have outlived that.
            let from = if cut == known.begin() { known } else { cut };
            if matches!(how, Cut::Shorten(_)) {
                inner.kept.cut_to(length, (from, cut));
            }
            Ok((length, before_bytes, cut))
        };
        // What was sent before and not committed yet goes as well.
        let (begun, data_end) = match how {
            Cut::Shorten(length) if !self.knows_end(file) => {
                let (begun, end) = tokio::join!(begun, self.data_end(file, length, deadline));
                (begun?, end?)
            }
            _ => (begun.await?, 0),
        };
        let (length, before_bytes, cut) = begun;
        let before = match how {
            Cut::Shorten(_) => Some(before_bytes.max(data_end)),
            Cut::Garbage(_) => None,
        };
        self.cut_chunks(file, length, before, cut, deadline).await?;
        let attributes = self
            .set_cut_length(file, caller, (length, mtime), cut, deadline)
            .await?;
        let mut inner = file.inner.lock();
        let ended = inner.cut();
        match how {
            // What is here was acknowledged before the cut and has outlived it.
            Cut::Shorten(_) => inner.kept.cut_to(length, (cut, ended)),
            // This mount's own writes may have been among it: the next commit looks for them.
            Cut::Garbage(_) => inner.unclean_end = false,
        }
        Ok(attributes)
    }

    async fn set_cut_length(
        &self,
        file: &FileState,
        caller: Caller,
        (length, mtime): (u64, Timestamp),
        cut: CutEpoch,
        deadline: Instant,
    ) -> Result<Attributes> {
        let op = NamespaceOp::SetLength {
            inode: file.inode,
            length_bytes: length,
            mtime: Some(mtime),
            cut: Some(cut),
        };
        let NamespaceChange::Entry { attributes, .. } = self.session.change(caller, op, deadline).await? else {
            return Err(unexpected_change(file.inode));
        };
        Ok(Self::length_set(file, &attributes))
    }

    /// Removes what the chunks have from `length` on: up to `before`, or wherever it ends. Durably: the file may grow over it.
    async fn cut_chunks(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        length: u64,
        before: Option<u64>,
        cut: CutEpoch,
        deadline: Instant,
    ) -> Result<()> {
        let layout = file.layout;
        let boundary = layout.chunk_of(length);
        let within = (length - layout.chunk_start(boundary)) as usize;
        let first_whole = if within == 0 { boundary } else { boundary.next() };
        let mut tasks = JoinSet::new();
        if within > 0 {
            let (mount, file) = (Arc::clone(self), Arc::clone(file));
            tasks.spawn(async move { mount.cut_chunk(&file, boundary, within, cut, deadline).await });
        }
        let whole =
            before.map(|before| (layout.chunk_of(before.saturating_sub(1)).0 + 1).saturating_sub(first_whole.0));
        match whole.filter(|&whole| whole <= MAX_REMOVALS) {
            Some(whole) => {
                for index in first_whole.0..first_whole.0 + whole {
                    let (mount, file) = (Arc::clone(self), Arc::clone(file));
                    tasks.spawn(async move {
                        let chunk = (ChunkIndex(index), cut);
                        mount
                            .cut_mutation(&file, chunk, &Mutation::Remove, Bytes::new(), deadline)
                            .await
                            .map(|_| ())
                    });
                }
            }
            None => {
                for chain in self.chains(file) {
                    let (mount, file) = (Arc::clone(self), Arc::clone(file));
                    tasks.spawn(async move { mount.remove_range(&file, chain, (first_whole, cut), deadline).await });
                }
            }
        }
        join_all(tasks).await.map(|_| ())
    }

    async fn remove_range(
        &self,
        file: &FileState,
        chain: ChainId,
        (from, cut): (ChunkIndex, CutEpoch),
        deadline: Instant,
    ) -> Result<()> {
        loop {
            let (level, whose) = (file.write_level, (file.session, cut));
            let removed = self
                .chunks
                .remove_range(chain, level, file.inode, from, whose, deadline);
            let epoch = removed.await?;
            let whose = (file.session, file.inode);
            match self.chunks.sync(chain, level, (epoch, level), whose, deadline).await {
                // The chain lost its power in between: once more.
                Err(error) if error.code == ErrorCode::UnsyncedLost && Instant::now() < deadline => {}
                outcome => return outcome,
            }
        }
    }

    /// The chunk in which the new end lies: the blocks behind it become holes, its last block loses its rest.
    async fn cut_chunk(
        &self,
        file: &FileState,
        index: ChunkIndex,
        within: usize,
        cut: CutEpoch,
        deadline: Instant,
    ) -> Result<()> {
        let blocks = within.div_ceil(BLOCK_SIZE_BYTES);
        let keep = within % BLOCK_SIZE_BYTES;
        // Also if nothing lies behind them: who has not heard of the cut hears of it from the chunk.
        let mutation = Mutation::Truncate { blocks: blocks as u32 };
        self.cut_mutation(file, (index, cut), &mutation, Bytes::new(), deadline)
            .await?;
        if keep > 0 {
            let block = BlockIndex((blocks - 1) as u32);
            self.cut_block(file, (index, cut), block, keep, deadline).await?;
        }
        Ok(())
    }

    async fn cut_block(
        &self,
        file: &FileState,
        (index, cut): (ChunkIndex, CutEpoch),
        block: BlockIndex,
        keep: usize,
        deadline: Instant,
    ) -> Result<()> {
        let chunk = ChunkId::new(file.inode, index);
        loop {
            let table = self.chunks.routing().current();
            let chain = file.chain_of(&table, index)?;
            let (version, mut base) = self.read_block(file, chain, chunk, block, deadline).await?;
            if base.len() <= keep {
                return Ok(());
            }
            base.truncate(keep);
            let mut sealed = Vec::new();
            file.cipher
                .seal(index, block, &base, &self.nonces, &mut sealed)
                .map_err(Error::from)?;
            let mutation = Mutation::Write {
                first: block,
                blocks: 1,
                last_length_bytes: keep as u32,
                conditions: vec![BlockCondition { block, version }],
            };
            let cut = self
                .cut_mutation(file, (index, cut), &mutation, Bytes::from(sealed), deadline)
                .await;
            match cut {
                Err(error) if error.code == ErrorCode::ConditionFailed && Instant::now() < deadline => {}
                Err(error) => return Err(error),
                Ok(after) => {
                    // It may have lost what this mount had written before: that is found by what it
                    // was rewritten from.
                    let spans = self.chunks.routing().kept_spans(chain, file.write_level);
                    let mut inner = file.inner.lock();
                    inner.found(&file.layout, (chain, index, block), version, &base, &spans);
                    inner.kept.rewritten(&WrittenRun {
                        chunk: index,
                        first: block,
                        blocks: 1,
                        version: after,
                        bases: vec![Base {
                            block,
                            version,
                            length_bytes: base.len(),
                        }],
                    });
                    return Ok(());
                }
            }
        }
    }

    async fn cut_mutation(
        &self,
        file: &FileState,
        (index, cut): (ChunkIndex, CutEpoch),
        mutation: &Mutation,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<ChunkVersion> {
        let table = self.chunks.routing().current();
        let chain = file.chain_of(&table, index)?;
        let chunk = ChunkId::new(file.inode, index);
        let how = (file.write_level, true);
        self.chunks
            .mutate(chain, chunk, (file.session, cut), how, mutation, payload, deadline)
            .await
            .map(|written| written.version)
    }

    /// Tells the group every length that it does not know yet. To be called with the commit's turn.
    pub(super) async fn commit_lengths(self: &Arc<Self>, file: &Arc<FileState>, deadline: Instant) -> Result<()> {
        while file.inner.lock().kept.uncommitted_end() > 0 {
            self.commit_in_turn(file, Word::Passing, None, deadline).await?;
        }
        Ok(())
    }
}
