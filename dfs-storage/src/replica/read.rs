//! Reads at any serving member.
//!
//! A mutation is forwarded while it is applied here, so the tail may have committed, and shown to a reader, what is only
//! staged at this member. A read therefore waits first for what is staged when it arrives. Then the shell reads the store and
//! asks again: what it read is the chunk at some version, and may be answered as soon as every mutation of those blocks up
//! to that version is committed. Mutations that come later hold up neither step.

use dfs_common::{BlockIndex, ChunkId, ChunkVersion, Epoch, Error, ErrorCode};

use super::ReplicaCore;
use super::types::{Answer, Now, WaiterId};

/// Reads that wait on one chain.
const MAX_WAITING_READS: usize = 4096;

/// How long one waits; a commit takes milliseconds, a new configuration at most a lease.
const READ_WAIT_MS: u64 = 5_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct WaitingRead {
    waiter: WaiterId,
    /// The mutation that must commit first.
    version: ChunkVersion,
    until_ms: u64,
}

impl ReplicaCore {
    pub(super) fn admit_read(
        &mut self,
        now: Now,
        epoch: Epoch,
        waiter: WaiterId,
        chunk: ChunkId,
        (first, blocks): (BlockIndex, u32),
    ) {
        let staged = self.queues.get(&chunk).and_then(|queue| queue.unapplied(first, blocks));
        self.proceed_after(now, epoch, waiter, chunk, staged);
    }

    pub(super) fn read_done(
        &mut self,
        now: Now,
        epoch: Epoch,
        waiter: WaiterId,
        chunk: ChunkId,
        (first, blocks): (BlockIndex, u32),
        version: ChunkVersion,
    ) {
        let uncommitted = self
            .queues
            .get(&chunk)
            .and_then(|queue| queue.uncommitted(first, blocks, version));
        self.proceed_after(now, epoch, waiter, chunk, uncommitted);
    }

    /// Lets a read go on once `version` is committed.
    fn proceed_after(
        &mut self,
        now: Now,
        epoch: Epoch,
        waiter: WaiterId,
        chunk: ChunkId,
        version: Option<ChunkVersion>,
    ) {
        if let Err(error) = self.admit_client(now, epoch) {
            return self.refuse(waiter, error);
        }
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
            until_ms: now.ms + READ_WAIT_MS,
        });
    }

    pub(super) fn release_reads(&mut self, now: Now, chunk: ChunkId, committed: ChunkVersion) {
        let Some(reads) = self.reads.get_mut(&chunk) else {
            return;
        };
        let mut released = Vec::new();
        reads.retain(|read| {
            let wait = read.version > committed;
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
}
