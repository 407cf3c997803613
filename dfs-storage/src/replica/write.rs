//! A mutation's way: stage, apply, forward, commit.

use bytes::Bytes;
use dfs_common::wire::storage::{ForwardRequest, MutateRequest, StorageResponse};
use dfs_common::{ChunkId, ChunkVersion, Error, ErrorCode, StorageId};

use super::admission::{check_shape, check_versions};
use super::pending::{ChunkQueue, Downstream, Entry, Local, Waiter};
use super::session::Standing;
use super::types::{Answer, Effect, Now, StoreView, WaiterId};
use super::{EARLY_WAIT_MS, MAX_EARLY, MAX_PENDING_BYTES, Purpose, ReplicaCore, Role, Successor};

/// Retries of one request that may wait at a time; the oldest has surely been given up by its sender.
const MAX_WAITERS: usize = 8;

/// Between two attempts to apply to a full store.
const NO_SPACE_RETRY_MS: u64 = 200;

/// First and longest pause before a forward is sent again.
const FORWARD_RETRY_MS: u64 = 10;
const MAX_FORWARD_RETRY_MS: u64 = 200;

/// A forward whose `before` this member has not reached.
#[derive(Clone, Debug)]
pub(super) struct Early {
    until_ms: u64,
    waiter: WaiterId,
    forward: ForwardRequest,
    payload: Bytes,
}

impl ReplicaCore {
    /// A client's mutation, at the head.
    pub(super) fn mutate(
        &mut self,
        now: Now,
        waiter: WaiterId,
        request: MutateRequest,
        payload: Bytes,
        store: &dyn StoreView,
    ) {
        let admitted = self
            .admit_at_head(now, request.epoch)
            .and_then(|()| check_shape(&request.mutation, &payload))
            .and_then(|()| self.check_level(request.level));
        if let Err(error) = admitted {
            return self.refuse(waiter, error);
        }
        if let Some(entry) = self
            .queues
            .get_mut(&request.chunk)
            .and_then(|queue| queue.by_request(request.id))
        {
            if let Some(error) = entry.blocked.clone() {
                return self.refuse(waiter, error);
            }
            return join(entry, Waiter::Client(waiter));
        }
        if !request.id.is_system()
            && let Some(version) = store.remembered(request.chunk, request.id)
        {
            let response = StorageResponse::Mutated { version };
            if request.sync {
                // It may have been applied by a process that died before its sync.
                self.start_sync(vec![waiter], response, true);
            } else {
                self.answer(waiter, Ok(Answer::Response(response)));
            }
            return;
        }
        if let Err(error) = self.check_staging(&request, &payload, store) {
            return self.refuse(waiter, error);
        }
        self.stage_at_head(request, payload, Waiter::Client(waiter), store);
    }

    pub(super) fn stage_at_head(
        &mut self,
        request: MutateRequest,
        payload: Bytes,
        waiter: Waiter,
        store: &dyn StoreView,
    ) {
        let before = self
            .queues
            .entry(request.chunk)
            .or_default()
            .latest(request.chunk, store);
        let version = before.successor(self.epoch());
        self.stage(request, payload, (before, version), waiter);
    }

    fn stage(
        &mut self,
        mut request: MutateRequest,
        payload: Bytes,
        (before, version): (ChunkVersion, ChunkVersion),
        waiter: Waiter,
    ) {
        let chunk = request.chunk;
        request.epoch = self.epoch();
        self.pending_count += 1;
        self.pending_bytes += payload.len();
        let standing = self.standing(chunk);
        self.queues.entry(chunk).or_default().entries.push_back(Entry {
            request,
            payload,
            before,
            version,
            local: Local::Staged,
            downstream: if standing == Standing::Held {
                Downstream::Held
            } else {
                Downstream::NotNeeded
            },
            waiters: vec![waiter],
            blocked: None,
        });
        if standing == Standing::Counts {
            self.send(chunk, version, 0);
        }
        if let Some(error) = self.queues.get(&chunk).and_then(ChunkQueue::blocked) {
            self.block(chunk, version, &error);
        }
        self.pump(chunk);
    }

    /// Whether and how a successor takes part in mutations of this chunk.
    pub(super) fn standing(&mut self, chunk: ChunkId) -> Standing {
        match self.role {
            Role::Serving {
                successor: Successor::Serving(_),
                ..
            } => Standing::Counts,
            Role::Serving {
                successor: Successor::Syncing(_),
                ..
            } => self
                .session
                .as_mut()
                .map_or(Standing::Absent, |session| session.touch(chunk)),
            _ => Standing::Absent,
        }
    }

    pub(super) const fn successor(&self) -> Option<StorageId> {
        match self.role {
            Role::Serving {
                successor: Successor::Serving(node) | Successor::Syncing(node),
                ..
            } => Some(node),
            _ => None,
        }
    }

    /// Sends an entry to the successor.
    pub(super) fn send(&mut self, chunk: ChunkId, version: ChunkVersion, attempt: u32) {
        let (Some(to), epoch) = (self.successor(), self.epoch()) else {
            return;
        };
        let ticket = self.ticket(Purpose::Forward(chunk, version));
        let Some(entry) = self.queues.get_mut(&chunk).and_then(|queue| queue.by_version(version)) else {
            return;
        };
        entry.downstream = Downstream::Sent { ticket, attempt };
        let mut request = entry.request.clone();
        request.epoch = epoch;
        let after_ms = match attempt {
            0 => 0,
            _ => (FORWARD_RETRY_MS << attempt.min(5)).min(MAX_FORWARD_RETRY_MS),
        };
        self.effects.push(Effect::Forward {
            ticket,
            to,
            request: ForwardRequest {
                request,
                before: entry.before,
                version,
            },
            payload: entry.payload.clone(),
            after_ms,
        });
    }

    /// Applies the next staged entry of a chunk, if nothing is in its way.
    pub(super) fn pump(&mut self, chunk: ChunkId) {
        if self.session.as_ref().is_some_and(|session| session.holds(chunk)) {
            return;
        }
        let Some(queue) = self.queues.get(&chunk) else {
            return;
        };
        if queue.is_applying() {
            return;
        }
        let Some(version) = queue
            .entries
            .iter()
            .find(|entry| entry.local == Local::Staged)
            .map(|entry| entry.version)
        else {
            return;
        };
        self.apply(chunk, version, 0);
    }

    fn apply(&mut self, chunk: ChunkId, version: ChunkVersion, after_ms: u64) {
        let ticket = self.ticket(Purpose::Apply(chunk, version));
        let Some(entry) = self.queues.get_mut(&chunk).and_then(|queue| queue.by_version(version)) else {
            return;
        };
        entry.local = Local::Applying(ticket);
        self.effects.push(Effect::Apply {
            ticket,
            chunk,
            version,
            id: entry.request.id,
            mutation: entry.request.mutation.clone(),
            payload: entry.payload.clone(),
            after_ms,
        });
    }

    pub(super) fn applied(
        &mut self,
        now: Now,
        chunk: ChunkId,
        version: ChunkVersion,
        result: Result<(), Error>,
        store: &dyn StoreView,
    ) {
        let Some(entry) = self.queues.get_mut(&chunk).and_then(|queue| queue.by_version(version)) else {
            return;
        };
        match result {
            Ok(()) => {
                entry.blocked = None;
                entry.local = Local::Done;
                if entry.request.sync {
                    let ticket = self.ticket(Purpose::SyncMutation(chunk, version));
                    if let Some(entry) = self.queues.get_mut(&chunk).and_then(|queue| queue.by_version(version)) {
                        entry.local = Local::Syncing(ticket);
                    }
                    self.effects.push(Effect::Sync { ticket });
                }
                self.intake.settle(chunk, version);
                self.copy_if_ready(chunk);
                self.pump(chunk);
                self.commit(now, chunk, store);
            }
            // The store is as it was. The mutation stands in the chain, so it is tried until there is room; who waits
            // is told why, and subsequent retries too.
            Err(error) if error.code == ErrorCode::NoSpace => {
                self.block(chunk, version, &error);
                self.apply(chunk, version, NO_SPACE_RETRY_MS);
            }
            Err(error) => self.fail(format!("chunk {chunk} version {version}: {}", error.detail)),
        }
    }

    /// Tells everybody who waits for this entry or, since order is kept, for one behind it.
    fn block(&mut self, chunk: ChunkId, version: ChunkVersion, error: &Error) {
        let Some(queue) = self.queues.get_mut(&chunk) else {
            return;
        };
        for entry in queue.entries.iter_mut().filter(|entry| entry.version >= version) {
            entry.blocked = Some(error.clone());
            let mut kept = Vec::new();
            for waiter in std::mem::take(&mut entry.waiters) {
                match waiter {
                    Waiter::Client(waiter) | Waiter::Predecessor(waiter) => self.effects.push(Effect::Answer {
                        waiter,
                        answer: Err(error.clone()),
                    }),
                    Waiter::Range(_) => kept.push(waiter),
                }
            }
            entry.waiters = kept;
        }
    }

    pub(super) fn mutation_synced(
        &mut self,
        now: Now,
        chunk: ChunkId,
        version: ChunkVersion,
        result: Result<(), Error>,
        store: &dyn StoreView,
    ) {
        if let Err(error) = result {
            return self.fail(error.detail);
        }
        if let Some(entry) = self.queues.get_mut(&chunk).and_then(|queue| queue.by_version(version)) {
            entry.local = Local::Done;
        }
        self.commit(now, chunk, store);
    }

    pub(super) fn forward_done(
        &mut self,
        now: Now,
        chunk: ChunkId,
        version: ChunkVersion,
        result: Result<(), Error>,
        store: &dyn StoreView,
    ) {
        let Some(entry) = self.queues.get_mut(&chunk).and_then(|queue| queue.by_version(version)) else {
            return;
        };
        let Downstream::Sent { attempt, .. } = entry.downstream else {
            return;
        };
        match result {
            Ok(()) => {
                entry.downstream = Downstream::Acknowledged;
                if entry.is_applied() {
                    entry.blocked = None;
                }
                self.commit(now, chunk, store);
            }
            // Until it is complete a syncing member does not count: the chain goes on, and the chunk is copied again.
            Err(_) if self.session.as_ref().is_some_and(|session| !session.is_done()) => {
                self.demote(now, chunk, store);
            }
            Err(error) => {
                if error.code == ErrorCode::NoSpace {
                    self.block(chunk, version, &error);
                }
                self.send(chunk, version, attempt.saturating_add(1));
            }
        }
    }

    /// Commits what is complete, oldest first, and answers whoever waited for it.
    pub(super) fn commit(&mut self, now: Now, chunk: ChunkId, store: &dyn StoreView) {
        let mut ranges = Vec::new();
        while let Some(queue) = self.queues.get_mut(&chunk) {
            if !queue.entries.front().is_some_and(Entry::is_done) {
                if queue.entries.is_empty() {
                    self.queues.remove(&chunk);
                }
                break;
            }
            let Some(entry) = queue.entries.pop_front() else {
                break;
            };
            self.pending_count -= 1;
            self.pending_bytes -= entry.payload.len();
            for waiter in &entry.waiters {
                match *waiter {
                    Waiter::Client(waiter) => {
                        // Checked again: both may have changed since it was admitted.
                        let answer = self
                            .check_lease(now)
                            .and_then(|()| self.check_level(entry.request.level))
                            .map(|()| Answer::Response(StorageResponse::Mutated { version: entry.version }));
                        self.answer(waiter, answer);
                    }
                    Waiter::Predecessor(waiter) => {
                        self.answer(waiter, Ok(Answer::Response(StorageResponse::Forwarded)));
                    }
                    Waiter::Range(job) => ranges.push(job),
                }
            }
            self.release_reads(now, chunk, entry.version);
        }
        for job in ranges {
            self.range_committed(job, store);
        }
    }

    /// A predecessor's mutation.
    pub(super) fn forwarded(
        &mut self,
        now: Now,
        from: StorageId,
        waiter: WaiterId,
        forward: ForwardRequest,
        payload: Bytes,
        store: &dyn StoreView,
    ) {
        let admitted = self
            .admit_predecessor(from, forward.request.epoch)
            .and_then(|()| check_shape(&forward.request.mutation, &payload))
            .and_then(|()| check_versions(forward.before, forward.version));
        if let Err(error) = admitted {
            return self.refuse(waiter, error);
        }
        self.take_forward(now, waiter, forward, payload, store);
    }

    fn take_forward(
        &mut self,
        now: Now,
        waiter: WaiterId,
        forward: ForwardRequest,
        payload: Bytes,
        store: &dyn StoreView,
    ) {
        let chunk = forward.request.chunk;
        let syncing = matches!(self.role, Role::Syncing { .. });
        if syncing && self.intake.is_installing(chunk) {
            return self.refuse(waiter, needs_resync(chunk));
        }
        if let Some(entry) = self
            .queues
            .get_mut(&chunk)
            .and_then(|queue| queue.by_version(forward.version))
        {
            if let Some(error) = entry.blocked.clone() {
                return self.refuse(waiter, error);
            }
            return join(entry, Waiter::Predecessor(waiter));
        }
        let latest = self
            .queues
            .get(&chunk)
            .map_or_else(|| store.version(chunk), |queue| queue.latest(chunk, store));
        if forward.before == latest {
            let mut at = forward.version;
            self.stage(
                forward.request,
                payload,
                (forward.before, forward.version),
                Waiter::Predecessor(waiter),
            );
            while let Some(next) = self
                .early
                .iter()
                .position(|early| early.forward.request.chunk == chunk && early.forward.before == at)
            {
                let early = self.early.swap_remove(next);
                at = early.forward.version;
                let versions = (early.forward.before, early.forward.version);
                self.stage(
                    early.forward.request,
                    early.payload,
                    versions,
                    Waiter::Predecessor(early.waiter),
                );
            }
            return;
        }
        let has_it = if syncing {
            latest == forward.version || (self.intake.is_settled(chunk) && latest > forward.version)
        } else {
            latest >= forward.version
        };
        if has_it {
            return self.answer(waiter, Ok(Answer::Response(StorageResponse::Forwarded)));
        }
        if forward.before > latest {
            return self.keep_early(now, waiter, forward, payload);
        }
        if syncing {
            return self.refuse(waiter, needs_resync(chunk));
        }
        // Serving members share one history. If not, something is broken that no retry mends.
        self.fail(format!(
            "chunk {chunk} is at version {latest} here, and the predecessor sends {} after {}",
            forward.version, forward.before
        ));
        let error = Error::new(ErrorCode::Poisoned, format!("chunk {chunk} has two histories"));
        self.refuse(waiter, error);
    }

    fn keep_early(&mut self, now: Now, waiter: WaiterId, forward: ForwardRequest, payload: Bytes) {
        let held: usize = self.early.iter().map(|early| early.payload.len()).sum();
        if self.early.len() >= MAX_EARLY || held + payload.len() > MAX_PENDING_BYTES {
            let error = out_of_order(&forward);
            return self.refuse(waiter, error);
        }
        // A repeated one takes its elder's place.
        if let Some(at) = self.early.iter().position(|early| {
            early.forward.request.chunk == forward.request.chunk && early.forward.version == forward.version
        }) {
            let elder = self.early.swap_remove(at);
            let error = out_of_order(&elder.forward);
            self.refuse(elder.waiter, error);
        }
        self.early.push(Early {
            until_ms: now.ms + EARLY_WAIT_MS,
            waiter,
            forward,
            payload,
        });
    }

    pub(super) fn expire_early(&mut self, now: Now) {
        let syncing = matches!(self.role, Role::Syncing { .. });
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.early)
            .into_iter()
            .partition(|early| early.until_ms > now.ms);
        self.early = kept;
        for early in gone {
            let error = if syncing {
                needs_resync(early.forward.request.chunk)
            } else {
                out_of_order(&early.forward)
            };
            self.refuse(early.waiter, error);
        }
    }

    pub(super) fn refuse_early(&mut self, error: &Error) {
        for early in std::mem::take(&mut self.early) {
            self.refuse(early.waiter, error.clone());
        }
    }
}

fn join(entry: &mut Entry, waiter: Waiter) {
    if entry.waiters.len() >= MAX_WAITERS {
        entry.waiters.remove(0);
    }
    entry.waiters.push(waiter);
}

fn needs_resync(chunk: ChunkId) -> Error {
    Error::new(
        ErrorCode::NeedsResync,
        format!("chunk {chunk} is not in sync here: copy it first"),
    )
}

fn out_of_order(forward: &ForwardRequest) -> Error {
    Error::new(
        ErrorCode::OutOfOrder,
        format!(
            "chunk {}: version {} was waited for and did not come",
            forward.request.chunk, forward.before
        ),
    )
}
