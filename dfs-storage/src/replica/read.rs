//! Reads, by level.
//!
//! A mutation is forwarded while it is applied here, so a member after this one may have shown to a reader what is only
//! staged at this one. A read therefore waits first for what is staged when it arrives. Then the shell reads the store and
//! asks again: what it read is the chunk at some version, and may be answered as soon as every mutation of those blocks up
//! to that version is where the level wants it. Mutations that come later hold up neither step.
//!
//! - ONE: any serving member, what it has; but a mutation at ALL must be everywhere before any of it is shown (the rule of CRAQ,
//!   Terrace and Freedman 2009, with waiting in place of asking), so that ALL/ONE is linearizable. Never less than the
//!   client has seen.
//! - QUORUM: a complete member. At the head what it shows must be on the second member too; the second shows what it has,
//!   since it came from the head.
//! - ALL: the head of a whole chain, and what it shows must be everywhere.

use dfs_common::planted::{self, Bug};
use dfs_common::{ChunkId, ChunkVersion, CutEpoch, Epoch, Error, ErrorCode, Level};

use super::admission::gone;
use super::pending::Entry;
use super::types::{Answer, Now, ReadAsk, StoreView, WaiterId};
use super::{ReplicaCore, Role};

/// Reads that wait on one chain.
const MAX_WAITING_READS: usize = 4096;

/// How long one waits; a commit takes milliseconds, a new configuration at most a lease.
const READ_WAIT_MS: u64 = 5_000;

/// What must be so of a mutation before a read may show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing, unless the mutation is at ALL; then it must be stable.
    StableIfAll,
    /// It is in this member's store, and everywhere if it has to be.
    Applied,
    /// The successor has it.
    Near,
    /// Every member after this one has it.
    Stable,
}

impl Need {
    pub(super) fn is_met(self, entry: &Entry) -> bool {
        match self {
            Self::StableIfAll if planted::is(Bug::PendingAllShown) => true,
            Self::StableIfAll => entry.request.level != Level::All || entry.is_done(),
            Self::Applied => entry.is_applied() && (!entry.everywhere || entry.is_done()),
            Self::Near => entry.has(Level::Quorum),
            Self::Stable => entry.is_done(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct WaitingRead {
    waiter: WaiterId,
    /// The mutation that must meet the need first.
    version: ChunkVersion,
    need: Need,
    until_ms: u64,
}

impl ReplicaCore {
    pub(super) fn admit_read(
        &mut self,
        now: Now,
        epoch: Epoch,
        waiter: WaiterId,
        read: ReadAsk,
        store: &dyn StoreView,
    ) {
        match self.may_read(now, epoch, read, store) {
            Ok(need) => {
                let staged = self
                    .queues
                    .get(&read.chunk)
                    .and_then(|queue| queue.unapplied(&read, need));
                self.proceed_after(now, waiter, read.chunk, need, staged);
            }
            Err(error) => self.refuse(waiter, error),
        }
    }

    pub(super) fn read_done(
        &mut self,
        now: Now,
        epoch: Epoch,
        waiter: WaiterId,
        read: ReadAsk,
        version: ChunkVersion,
        store: &dyn StoreView,
    ) {
        match self.may_read(now, epoch, read, store) {
            Ok(_) if read.level == Level::One && version < read.not_before && !planted::is(Bug::BehindServed) => {
                let error = Error::new(
                    ErrorCode::Behind,
                    format!(
                        "chunk {} is at {version} at storage-{}, and this client has seen {}: another replica has it",
                        read.chunk, self.node, read.not_before
                    ),
                );
                self.refuse(waiter, error);
            }
            Ok(need) => {
                let unmet = self
                    .queues
                    .get(&read.chunk)
                    .and_then(|queue| queue.unmet(&read, need, version))
                    .filter(|_| !planted::is(Bug::ReadUncommitted));
                self.proceed_after(now, waiter, read.chunk, need, unmet);
            }
            Err(error) => self.refuse(waiter, error),
        }
    }

    /// Whether this member may answer this read now, and what it has to wait for. A tombstone of a removed file is not answered
    /// as a hole: who still has the file open was evicted, or reads of a file that is not there.
    fn may_read(&self, now: Now, epoch: Epoch, read: ReadAsk, store: &dyn StoreView) -> Result<Need, Error> {
        let now = Now {
            lease: now.lease || planted::is(Bug::StaleTailServes),
            ..now
        };
        self.admit_client(now, epoch)?;
        Self::check_session(read.session, store)?;
        if store.cut(read.chunk) == CutEpoch::GONE {
            return Err(gone(read.chunk));
        }
        let level = read.level;
        match level {
            Level::One => Ok(Need::StableIfAll),
            Level::Quorum => {
                let complete = self
                    .config
                    .as_ref()
                    .is_some_and(|config| config.quorum_readers().any(|node| node == self.node));
                match (self.is_head(), complete) {
                    (true, _) => Ok(Need::Near),
                    (false, true) => Ok(Need::Applied),
                    (false, false) => Err(self.outside("a member that is sure to have every acknowledged write")),
                }
            }
            Level::All => {
                if !self.is_head() {
                    return Err(self.outside("the head"));
                }
                let serving = self.config.as_ref().map_or(0, |config| config.serving().count());
                if serving < level.min_for_read() {
                    return Err(Error::new(
                        ErrorCode::TooFewReplicas,
                        format!(
                            "chain {} has {serving} replica(s) in sync and a read at ALL needs {}: one that is away may have \
                             writes that were acknowledged at ONE",
                            self.chain,
                            level.min_for_read()
                        ),
                    ));
                }
                Ok(Need::Stable)
            }
        }
    }

    /// Lets a read go on once `version` meets the need.
    fn proceed_after(&mut self, now: Now, waiter: WaiterId, chunk: ChunkId, need: Need, version: Option<ChunkVersion>) {
        let Some(version) = version else {
            return self.answer(waiter, Ok(Answer::Proceed));
        };
        if self.reads.values().map(Vec::len).sum::<usize>() >= MAX_WAITING_READS {
            let error = Error::new(
                ErrorCode::Overloaded,
                format!("chain {} has {MAX_WAITING_READS} reads waiting", self.chain),
            );
            return self.refuse(waiter, error);
        }
        self.reads.entry(chunk).or_default().push(WaitingRead {
            waiter,
            version,
            need,
            until_ms: now.ms + READ_WAIT_MS,
        });
    }

    /// A mutation of the chunk got on: lets go whoever waited for that.
    pub(super) fn release_reads(&mut self, now: Now, chunk: ChunkId) {
        let Some(reads) = self.reads.get_mut(&chunk) else {
            return;
        };
        let queue = self.queues.get(&chunk);
        let mut released = Vec::new();
        reads.retain(|read| {
            // What is no longer in the queue is stable.
            let wait = queue
                .and_then(|queue| queue.entries.iter().find(|entry| entry.version == read.version))
                .is_some_and(|entry| !read.need.is_met(entry));
            if !wait {
                released.push(read.waiter);
            }
            wait
        });
        if reads.is_empty() {
            self.reads.remove(&chunk);
        }
        for waiter in released {
            // The epoch is the one it was admitted in: a new one would have refused it.
            let answer = self.check_lease(now).map(|()| Answer::Proceed);
            self.answer(waiter, answer);
        }
    }

    pub(super) fn expire_reads(&mut self, now: Now) {
        let mut expired = Vec::new();
        self.reads.retain(|_, reads| {
            reads.retain(|read| {
                let wait = read.until_ms > now.ms;
                if !wait {
                    expired.push(read.waiter);
                }
                wait
            });
            !reads.is_empty()
        });
        for waiter in expired {
            let error = Error::new(
                ErrorCode::Timeout,
                format!(
                    "chain {}: a write to these blocks was not committed for {READ_WAIT_MS} ms",
                    self.chain
                ),
            );
            self.refuse(waiter, error);
        }
    }

    pub(super) fn refuse_reads(&mut self, error: &Error) {
        for read in std::mem::take(&mut self.reads).into_values().flatten() {
            self.refuse(read.waiter, error.clone());
        }
    }

    pub(super) const fn is_head(&self) -> bool {
        matches!(self.role, Role::Serving { predecessor: None, .. })
    }
}
