//! A mutation's way: stage, apply, forward, commit.

use bytes::Bytes;
use dfs_common::planted::{self, Bug};
use dfs_common::wire::storage::{ForwardRequest, MutateRequest, Mutation, Origin, StorageResponse};
use dfs_common::{ChunkId, ChunkVersion, CutEpoch, Error, ErrorCode, HybridClock, Level, StorageId};

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

/// Where a mutation stands in its chunk's history.
#[derive(Clone, Copy, Debug)]
struct Place {
    before: ChunkVersion,
    version: ChunkVersion,
    stamp: HybridClock,
    everywhere: bool,
}

impl Place {
    const fn of(forward: &ForwardRequest) -> Self {
        Self {
            before: forward.before,
            version: forward.version,
            stamp: forward.stamp,
            everywhere: forward.everywhere,
        }
    }
}

impl ReplicaCore {
    /// A client's mutation, at the head.
    pub(super) fn mutate(
        &mut self,
        now: Now,
        waiter: WaiterId,
        mut request: MutateRequest,
        payload: Bytes,
        store: &dyn StoreView,
    ) {
        let admitted = self
            .admit_at_head(now, request.epoch)
            .and_then(|()| Self::check_session(request.id.session, store))
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
            join(entry, Waiter::Client(waiter));
            return self.answer_ready(now, request.chunk);
        }
        if !request.id.is_system()
            && let Some(version) = store.remembered(request.chunk, request.id)
        {
            let response = StorageResponse::Mutated { version };
            if request.sync {
                // It may have been applied by a process that died before its sync.
                self.start_sync(waiter, response, request.level);
            } else {
                self.answer(waiter, Ok(Answer::Response(response)));
            }
            return;
        }
        if request.id.is_system() {
            request.cut = CutEpoch::NONE;
        }
        let takes = self
            .check_cut(&request, store)
            .and_then(|()| self.check_staging(&request, &payload, store));
        if let Err(error) = takes {
            return self.refuse(waiter, error);
        }
        self.stage_at_head(now, request, payload, Waiter::Client(waiter), store);
    }

    pub(super) fn stage_at_head(
        &mut self,
        now: Now,
        request: MutateRequest,
        payload: Bytes,
        waiter: Waiter,
        store: &dyn StoreView,
    ) {
        let epoch = self.epoch();
        let everywhere = self.wake(now);
        let queue = self.queues.entry(request.chunk).or_default();
        let before = queue.latest(request.chunk, store);
        let place = Place {
            before,
            version: before.successor(epoch),
            stamp: queue.stamp(request.chunk, store).tick(now.wall),
            everywhere,
        };
        self.stage(request, payload, place, waiter);
    }

    fn stage(&mut self, mut request: MutateRequest, payload: Bytes, place: Place, waiter: Waiter) {
        let Place {
            before,
            version,
            stamp,
            everywhere,
        } = place;
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
            stamp,
            everywhere,
            local: Local::Staged,
            downstream: if standing == Standing::Held {
                Downstream::Held
            } else {
                Downstream::NotNeeded
            },
            waiters: vec![waiter],
            answered_early: false,
            blocked: None,
        });
        if standing == Standing::Counts {
            self.send(chunk, version, 0);
            self.planted(chunk, version);
        }
        if let Some(error) = self.queues.get(&chunk).and_then(ChunkQueue::blocked) {
            self.block(chunk, version, &error);
        }
        self.pump(chunk);
    }

    /// Bugs for the simulator to find: what is sent need not arrive.
    fn planted(&mut self, chunk: ChunkId, version: ChunkVersion) {
        let resync = self.session.is_some();
        if let Some(entry) = self.queues.get_mut(&chunk).and_then(|queue| queue.by_version(version)) {
            let missed = match entry.request.mutation {
                Mutation::Truncate { .. } => resync && planted::is(Bug::ResyncMissesTruncate),
                Mutation::Remove => resync && planted::is(Bug::ResyncMissesRemove),
                Mutation::Write { .. } => false,
            };
            if missed {
                self.effects.retain(|effect| !matches!(effect, Effect::Forward { .. }));
            }
            if missed {
                entry.downstream = Downstream::NotNeeded;
            }
        }
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

    /// Sends an entry to the successor, or has it sent once it is in the own store: so each store has what those after it have, and
    /// what somebody reads at one of them is not gone with it.
    pub(super) fn send(&mut self, chunk: ChunkId, version: ChunkVersion, attempt: u32) {
        let (Some(to), epoch) = (self.successor(), self.epoch()) else {
            return;
        };
        let Some(entry) = self.queues.get_mut(&chunk).and_then(|queue| queue.by_version(version)) else {
            return;
        };
        if !entry.is_applied() {
            entry.downstream = Downstream::Due;
            return;
        }
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
                stamp: entry.stamp,
                everywhere: entry.everywhere,
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
            origin: Origin {
                id: entry.request.id,
                level: entry.request.level,
                cut: entry.request.cut,
                stamp: entry.stamp,
            },
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
                let due = entry.downstream == Downstream::Due;
                if entry.request.sync {
                    let ticket = self.ticket(Purpose::SyncMutation(chunk, version));
                    if let Some(entry) = self.queues.get_mut(&chunk).and_then(|queue| queue.by_version(version)) {
                        entry.local = Local::Syncing(ticket);
                    }
                    self.effects.push(Effect::Sync { ticket });
                }
                if due {
                    self.send(chunk, version, 0);
                }
                self.intake.settle(chunk, version);
                self.copy_if_ready(chunk);
                self.pump(chunk);
                self.commit(now, chunk, store);
            }
            // The store is as it was. The mutation stands in the chain, so it is tried until there is room, or whatever else has run
            // out; who waits is told why, and subsequent retries too.
            Err(error) if matches!(error.code, ErrorCode::NoSpace | ErrorCode::Overloaded) => {
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
        result: Result<bool, Error>,
        store: &dyn StoreView,
    ) {
        let Some(entry) = self.queues.get_mut(&chunk).and_then(|queue| queue.by_version(version)) else {
            return;
        };
        let Downstream::Sent { attempt, .. } = entry.downstream else {
            return;
        };
        match result {
            Ok(stable) => {
                entry.downstream = if stable {
                    Downstream::Acknowledged
                } else {
                    Downstream::Near
                };
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

    /// A mutation of the chunk got on: answers whoever waited for that, and lets go what is stable, oldest first.
    pub(super) fn commit(&mut self, now: Now, chunk: ChunkId, store: &dyn StoreView) {
        self.answer_ready(now, chunk);
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
            ranges.extend(entry.waiters.iter().filter_map(|waiter| match *waiter {
                Waiter::Range(job) => Some(job),
                Waiter::Client(_) | Waiter::Predecessor(_) => None,
            }));
            if entry.answered_early {
                self.became_stable(chunk, entry.version);
            }
        }
        self.release_reads(now, chunk);
        self.advance_syncs(chunk);
        self.advance_settling();
        for job in ranges {
            self.range_committed(now, job, store);
        }
    }

    /// Answers for mutations that are where their level wants them: clients at the head, the predecessor elsewhere.
    pub(super) fn answer_ready(&mut self, now: Now, chunk: ChunkId) {
        let Some(queue) = self.queues.get_mut(&chunk) else {
            return;
        };
        let mut ready = Vec::new();
        for entry in &mut queue.entries {
            let (level, version, stable) = (entry.request.level, entry.version, entry.is_done());
            let client = entry.has(level);
            // The predecessor counts this member, so ONE and QUORUM have what they want of it.
            let near = level != Level::All && !entry.everywhere;
            let predecessor = stable || (near && entry.has(Level::One));
            let mut early = false;
            entry.waiters.retain(|waiter| match waiter {
                Waiter::Client(_) if client => {
                    ready.push((*waiter, level, version, stable));
                    false
                }
                Waiter::Predecessor(_) if predecessor => {
                    early |= !stable;
                    ready.push((*waiter, level, version, stable));
                    false
                }
                _ => true,
            });
            entry.answered_early |= early;
        }
        for (waiter, level, version, stable) in ready {
            match waiter {
                Waiter::Client(waiter) => {
                    // Checked again: both may have changed since it was admitted.
                    let leased = if planted::is(Bug::AnswerWithoutLease) {
                        Ok(())
                    } else {
                        self.check_lease(now)
                    };
                    let answer = leased
                        .and_then(|()| self.check_level(level))
                        .map(|()| Answer::Response(StorageResponse::Mutated { version }));
                    self.answer(waiter, answer);
                }
                Waiter::Predecessor(waiter) => {
                    let stable = stable || planted::is(Bug::StableEarly);
                    let response = StorageResponse::Forwarded { stable };
                    self.answer(waiter, Ok(Answer::Response(response)));
                }
                Waiter::Range(_) => {}
            }
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
            join(entry, Waiter::Predecessor(waiter));
            return self.answer_ready(now, chunk);
        }
        let latest = self
            .queues
            .get(&chunk)
            .map_or_else(|| store.version(chunk), |queue| queue.latest(chunk, store));
        if forward.before == latest {
            let mut at = forward.version;
            let place = Place::of(&forward);
            self.stage(forward.request, payload, place, Waiter::Predecessor(waiter));
            while let Some(next) = self
                .early
                .iter()
                .position(|early| early.forward.request.chunk == chunk && early.forward.before == at)
            {
                let early = self.early.swap_remove(next);
                at = early.forward.version;
                let place = Place::of(&early.forward);
                self.stage(
                    early.forward.request,
                    early.payload,
                    place,
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
            // Only what is stable has left the queue.
            let response = StorageResponse::Forwarded { stable: true };
            return self.answer(waiter, Ok(Answer::Response(response)));
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
