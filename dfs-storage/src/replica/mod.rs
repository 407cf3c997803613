//! One member's part in one replication chain, as a pure state machine.
//!
//! A mutation enters at the head, gets its version there, is staged, and goes to the local store, then to the successor
//! (while the store makes it durable, if asked); each member does the same. It is acknowledged when as many members, from the head on, have it (durably,
//! if asked) as its level wants: the head, the first two, or all. It is *stable* at a member when every member after it
//! that counts has it, and only then that member forgets it: until then it is the one that brings it on when others go.
//!
//! What was acknowledged at QUORUM is on the first two members. They are *complete*; the configuration says whether the second
//! one is yet (`settle`), and whether all are because nothing is being written (`rest`).
//!
//! Everything that decides is here: epochs, roles, leases, conditions, order, dedupe, when to answer, and what a
//! returning member still lacks. Store, network and clock are the shell's: it calls [`ReplicaCore::step`] with what
//! happened and carries out the effects, in any order, reporting each end.
//!
//! Why one state machine a chain: every rule above compares the epoch with something, so all of it changes together.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod admission;
mod forget;
mod intake;
mod pending;
mod range;
mod read;
mod reconfigure;
mod rest;
mod session;
mod settle;
mod stable;
mod sync;
mod types;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::wire::meta::ResyncProgress;
use dfs_common::{ChainId, ChainInfo, ChunkId, ChunkVersion, Epoch, Error, ErrorCode, StorageId};

pub(crate) use admission::session_expired;
pub use types::{Answer, CopyReport, Effect, Input, Now, ReadAsk, StoreView, Ticket, WaiterId};

use forget::{Forgetting, HeadsSync};
use intake::Intake;
use pending::ChunkQueue;
use range::RangeJob;
use read::WaitingRead;
use rest::Resting;
use session::Session;
use settle::Settling;
use stable::Untold;
use sync::SyncJob;
use write::Early;

/// Uncommitted mutations of one chunk. Below what a chunk remembers of requests, so that every retry finds itself.
pub const MAX_PENDING_PER_CHUNK: usize = 48;

/// Uncommitted mutations of one chain: bounds the work that a new configuration sends again.
pub const MAX_PENDING: usize = 4096;

/// Their payload: what one chain may hold in memory.
pub const MAX_PENDING_BYTES: usize = 64 << 20;

/// How long a forward that came before its predecessor waits for it. Messages of one sender overtake each other by
/// milliseconds; what takes longer was lost and is sent again.
pub const EARLY_WAIT_MS: u64 = 300;

/// Forwards that came too early, per chain.
pub const MAX_EARLY: usize = 512;

/// Where this node stands in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Outside,
    Serving {
        predecessor: Option<StorageId>,
        successor: Successor,
    },
    Syncing {
        predecessor: Option<StorageId>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Successor {
    Nobody,
    Serving(StorageId),
    Syncing(StorageId),
}

/// What an effect under way is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Purpose {
    Apply(ChunkId, ChunkVersion),
    SyncMutation(ChunkId, ChunkVersion),
    Forward(ChunkId, ChunkVersion),
    SyncJob(u64),
    ForwardSyncJob(u64),
    Install(WaiterId, ChunkId, ChunkVersion, bool),
    DropForPredecessor(WaiterId, Vec<ChunkId>),
    FetchInventory,
    Copy(ChunkId),
    DropAtSuccessor,
    FlushSuccessor,
    FlushSecond,
    TellStable,
    /// The sync that is to follow, at a member that its predecessor asks.
    Forget(Option<HeadsSync>),
}

/// See the module.
#[derive(Debug)]
pub struct ReplicaCore {
    chain: ChainId,
    node: StorageId,
    config: Option<ChainInfo>,
    role: Role,
    queues: BTreeMap<ChunkId, ChunkQueue>,
    pending_count: usize,
    pending_bytes: usize,
    under_way: BTreeMap<Ticket, Purpose>,
    /// Store work of an earlier role that has not ended; until it has, nothing new is admitted.
    orphans: BTreeSet<Ticket>,
    next_id: u64,
    early: Vec<Early>,
    reads: BTreeMap<ChunkId, Vec<WaitingRead>>,
    syncs: BTreeMap<u64, SyncJob>,
    ranges: BTreeMap<u64, RangeJob>,
    session: Option<Session>,
    intake: Intake,
    settling: Option<Settling>,
    resting: Resting,
    forgetting: Forgetting,
    untold: Untold,
    fault: Option<String>,
    effects: Vec<Effect>,
}

impl ReplicaCore {
    #[must_use]
    pub fn new(chain: ChainId, node: StorageId) -> Self {
        Self {
            chain,
            node,
            config: None,
            role: Role::Outside,
            queues: BTreeMap::new(),
            pending_count: 0,
            pending_bytes: 0,
            under_way: BTreeMap::new(),
            orphans: BTreeSet::new(),
            next_id: 1,
            early: Vec::new(),
            reads: BTreeMap::new(),
            syncs: BTreeMap::new(),
            ranges: BTreeMap::new(),
            session: None,
            intake: Intake::default(),
            settling: None,
            resting: Resting::default(),
            forgetting: Forgetting::new(forget::EVERY_MS),
            untold: Untold::default(),
            fault: None,
            effects: Vec::new(),
        }
    }

    /// With another time between two rounds in which tombstones are forgotten.
    #[must_use]
    pub fn forgetting_every(mut self, ms: u64) -> Self {
        self.forgetting = Forgetting::new(ms);
        self
    }

    /// Epoch of the newest configuration heard.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.config.as_ref().map_or(Epoch(0), |config| config.epoch)
    }

    /// How far the copy to a syncing successor has come, if one is under way.
    #[must_use]
    pub fn progress(&self) -> Option<ResyncProgress> {
        self.session
            .as_ref()
            .map(|session| session.progress(self.chain, self.epoch()))
    }

    /// Whether a `Tick` could do anything.
    #[must_use]
    pub fn wants_tick(&self) -> bool {
        !self.early.is_empty()
            || !self.reads.is_empty()
            || !self.untold.is_empty()
            || self.session.is_some()
            || self.gets_tired()
            || self.forgets()
    }

    /// Whether nothing waits to be committed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queues.is_empty() && self.syncs.is_empty()
    }

    /// Takes one event and returns what is to be done about it.
    pub fn step(&mut self, now: Now, input: Input, store: &dyn StoreView) -> Vec<Effect> {
        if now.faulty {
            self.fail("this node's disk failed".to_owned());
        }
        match input {
            Input::Configure(config) => self.configure(now, config, store),
            Input::Tick => {
                self.expire_early(now);
                self.expire_reads(now);
                self.tell_stable();
                self.schedule_session(now, store);
                self.tire(now);
                self.forget_tombstones(now, store);
            }
            Input::Mutate {
                waiter,
                request,
                payload,
            } => self.mutate(now, waiter, request, payload, store),
            Input::AdmitRead { epoch, waiter, read } => self.admit_read(now, epoch, waiter, read, store),
            Input::ReadDone {
                epoch,
                waiter,
                read,
                version,
            } => self.read_done(now, epoch, waiter, read, version, store),
            Input::Sync {
                epoch,
                waiter,
                level,
                since,
                session,
            } => self.client_sync(now, epoch, waiter, (level, since), session, store),
            Input::RemoveRange {
                epoch,
                waiter,
                inodes,
                from,
                cut,
                session,
            } => self.remove_range(now, epoch, waiter, (&inodes, from, cut), session, store),
            Input::FileEnd {
                epoch,
                waiter,
                inode,
                from,
            } => self.file_end(now, epoch, waiter, inode, from, store),
            Input::FileRuns {
                epoch,
                waiter,
                inode,
                from,
                wanted,
            } => self.file_runs(now, epoch, waiter, (inode, from, wanted), store),
            Input::Forward {
                from,
                waiter,
                request,
                payload,
            } => self.forwarded(now, from, waiter, request, payload, store),
            Input::ForwardSync {
                from,
                epoch,
                waiter,
                level,
                forget,
            } => self.forwarded_sync(from, epoch, waiter, level, forget),
            Input::Stable {
                from,
                epoch,
                waiter,
                chunks,
            } => self.stable_below(now, from, epoch, waiter, chunks, store),
            Input::Inventory {
                from,
                epoch,
                waiter,
                after,
                limit,
            } => self.inventory(from, epoch, waiter, after, limit),
            Input::Install {
                from,
                epoch,
                waiter,
                chunk,
                version,
                part,
                payload,
            } => self.install(from, epoch, waiter, chunk, version, part, payload),
            Input::Drop {
                from,
                epoch,
                waiter,
                chunks,
            } => self.drop_chunks(from, epoch, waiter, chunks),
            Input::Applied { ticket, result }
            | Input::Synced { ticket, result }
            | Input::ForwardDone { ticket, result }
            | Input::InstallDone { ticket, result }
            | Input::Forgotten { ticket, result }
            | Input::ChunksDropped { ticket, result } => self.ended(now, ticket, result, store),
            Input::Forwarded { ticket, result } => {
                if let Some(Purpose::Forward(chunk, version)) = self.under_way.remove(&ticket) {
                    self.forward_done(now, chunk, version, result, store);
                }
            }
            Input::InventoryFetched { ticket, result } => {
                if self.under_way.remove(&ticket) == Some(Purpose::FetchInventory) {
                    self.inventory_fetched(now, result, store);
                }
            }
            Input::Copied { ticket, result } => {
                if let Some(Purpose::Copy(chunk)) = self.under_way.remove(&ticket) {
                    self.copied(now, chunk, &result, store);
                }
            }
        }
        std::mem::take(&mut self.effects)
    }

    /// The end of an effect that has no value. A ticket nobody knows belongs to an earlier configuration.
    fn ended(&mut self, now: Now, ticket: Ticket, result: Result<(), Error>, store: &dyn StoreView) {
        if self.orphans.remove(&ticket) {
            if let Err(error) = result
                && error.code == ErrorCode::Poisoned
            {
                self.fail(error.detail);
            }
            return;
        }
        match self.under_way.remove(&ticket) {
            None | Some(Purpose::FetchInventory | Purpose::Copy(_) | Purpose::Forward(..)) => {}
            Some(Purpose::Apply(chunk, version)) => self.applied(now, chunk, version, result, store),
            Some(Purpose::SyncMutation(chunk, version)) => self.mutation_synced(now, chunk, version, result, store),
            Some(Purpose::SyncJob(job)) => self.job_synced(now, job, result),
            Some(Purpose::ForwardSyncJob(job)) => self.job_forwarded(now, job, &result),
            Some(Purpose::Install(waiter, chunk, version, done)) => {
                self.install_done(waiter, chunk, version, done, result);
            }
            Some(Purpose::DropForPredecessor(waiter, chunks)) => self.chunks_dropped(waiter, &chunks, result),
            Some(Purpose::DropAtSuccessor) => self.dropped(now, ticket, &result, store),
            Some(Purpose::FlushSuccessor) => self.flushed(now, &result, store),
            Some(Purpose::FlushSecond) => self.second_flushed(&result),
            Some(Purpose::Forget(sync)) => self.forgotten(sync, &result),
            Some(Purpose::TellStable) => self.told_stable(ticket, &result),
        }
    }

    fn id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn ticket(&mut self, purpose: Purpose) -> Ticket {
        let ticket = Ticket(self.id());
        self.under_way.insert(ticket, purpose);
        ticket
    }

    fn answer(&mut self, waiter: WaiterId, answer: Result<Answer, Error>) {
        self.effects.push(Effect::Answer { waiter, answer });
    }

    fn refuse(&mut self, waiter: WaiterId, error: Error) {
        self.answer(waiter, Err(error));
    }

    /// Stops believing in this replica: nothing is acknowledged any more, by anybody's request.
    fn fail(&mut self, reason: String) {
        if self.fault.is_some() {
            return;
        }
        let error = Error::new(ErrorCode::Poisoned, reason.clone());
        self.fault = Some(reason.clone());
        self.effects.push(Effect::Fault(reason));
        self.forget_all(&error);
    }
}

#[cfg(test)]
mod cut_tests;
#[cfg(test)]
mod tests {
    use dfs_common::wire::storage::{FileRuns, RunsWanted, StorageResponse};
    use dfs_common::{
        BlockIndex, ChainId, ChainInfo, ChainMember, ChunkId, ChunkIndex, ChunkVersion, CutEpoch, Epoch, ErrorCode,
        HybridClock, InodeId, MemberState, RequestId, Rest, SessionId, StorageId, Timestamp,
    };

    use super::*;

    /// A store that nothing was written to.
    struct Empty;

    impl StoreView for Empty {
        fn version(&self, _: ChunkId) -> ChunkVersion {
            ChunkVersion::NONE
        }

        fn trimmed(&self, _: ChunkId) -> ChunkVersion {
            ChunkVersion::NONE
        }

        fn cut(&self, _: ChunkId) -> CutEpoch {
            CutEpoch::NONE
        }

        fn is_removed(&self, _: ChunkId) -> bool {
            false
        }

        fn stamp(&self, _: ChunkId) -> HybridClock {
            HybridClock::default()
        }

        fn block_version(&self, _: ChunkId, _: BlockIndex) -> ChunkVersion {
            ChunkVersion::NONE
        }

        fn remembered(&self, _: ChunkId, _: RequestId) -> Option<ChunkVersion> {
            None
        }

        fn file_end(&self, _: ChainId, _: InodeId, _: ChunkIndex) -> Option<(ChunkIndex, u32)> {
            None
        }

        fn file_runs(&self, _: ChainId, _: InodeId, _: (ChunkIndex, BlockIndex), _: RunsWanted) -> FileRuns {
            FileRuns::default()
        }

        fn chunks_of(&self, _: ChainId, _: InodeId, _: ChunkIndex) -> Vec<ChunkId> {
            Vec::new()
        }

        fn list(&self, _: ChainId) -> Vec<(ChunkId, ChunkVersion)> {
            Vec::new()
        }

        fn gone(&self, _: ChainId, _: usize) -> Vec<(ChunkId, ChunkVersion)> {
            Vec::new()
        }

        fn has_room(&self, _: u64) -> bool {
            true
        }

        fn admits(&self, _: SessionId) -> bool {
            true
        }

        fn is_full(&self, _: StorageId) -> bool {
            false
        }
    }

    fn now(faulty: bool) -> Now {
        Now {
            ms: 1,
            wall: Timestamp::from_nanos(1),
            lease: true,
            faulty,
        }
    }

    fn file_end(waiter: u64) -> Input {
        Input::FileEnd {
            epoch: Epoch(1),
            waiter: WaiterId(waiter),
            inode: InodeId(7),
            from: ChunkIndex(0),
        }
    }

    fn answers(effects: &[Effect]) -> Vec<Result<Answer, ErrorCode>> {
        let answer = |effect: &Effect| match effect {
            Effect::Answer { answer, .. } => Some(answer.clone().map_err(|error| error.code)),
            _ => None,
        };
        effects.iter().filter_map(answer).collect()
    }

    /// Another chain met the failed sync. This one needs its disk for nothing that it is asked, and must not answer either (I7).
    #[test]
    fn a_chain_whose_disk_failed_elsewhere_says_nothing_more() {
        let mut core = ReplicaCore::new(ChainId(1), StorageId(1));
        let config = ChainInfo {
            id: ChainId(1),
            epoch: Epoch(1),
            settled: true,
            rest: Rest::default(),
            headed: Epoch(1),
            revived: Epoch(1),
            members: vec![ChainMember {
                node: StorageId(1),
                state: MemberState::Serving,
                complete_until: Epoch(0),
            }],
        };
        core.step(now(false), Input::Configure(config), &Empty);
        let served = answers(&core.step(now(false), file_end(1), &Empty));
        assert!(
            matches!(served[..], [Ok(Answer::Response(StorageResponse::FileEnd { .. }))]),
            "{served:?}"
        );

        let effects = core.step(now(true), file_end(2), &Empty);
        assert!(matches!(effects.first(), Some(Effect::Fault(_))), "{effects:?}");
        assert_eq!(answers(&effects), [Err(ErrorCode::Poisoned)]);
    }
}
