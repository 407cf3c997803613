//! Truncation epochs and sessions, at a head over a real store.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use dfs_common::units::SEAL_SIZE_BYTES;
use dfs_common::wire::storage::{BlockCondition, FileRuns, MutateRequest, Mutation, RunsWanted, StorageResponse};
use dfs_common::{
    BlockIndex, ChainId, ChainInfo, ChainMember, ChunkId, ChunkIndex, ChunkVersion, ClusterId, CutEpoch, Epoch, Error,
    ErrorCode, HybridClock, InodeId, Level, MemberState, RequestId, Rest, SequenceNumber, SessionId, StorageId,
    Timestamp,
};

use super::{Answer, Effect, Input, Now, ReadAsk, ReplicaCore, StoreView, Ticket, WaiterId};
use crate::disk::SimDisk;
use crate::store::{ChunkStore, StoreOptions};

const CHAIN: ChainId = ChainId(1);
const INODE: InodeId = InodeId(7);

struct View<'a> {
    store: &'a ChunkStore,
    evicted: &'a BTreeSet<SessionId>,
}

impl StoreView for View<'_> {
    fn version(&self, chunk: ChunkId) -> ChunkVersion {
        self.store.version(chunk)
    }
    fn trimmed(&self, chunk: ChunkId) -> ChunkVersion {
        self.store.trimmed(chunk)
    }
    fn cut(&self, chunk: ChunkId) -> CutEpoch {
        self.store.cut(chunk)
    }
    fn is_removed(&self, chunk: ChunkId) -> bool {
        self.store.is_removed(chunk)
    }
    fn stamp(&self, chunk: ChunkId) -> HybridClock {
        self.store.stamp(chunk)
    }
    fn block_version(&self, chunk: ChunkId, block: BlockIndex) -> ChunkVersion {
        self.store.block_version(chunk, block)
    }
    fn remembered(&self, chunk: ChunkId, id: RequestId) -> Option<ChunkVersion> {
        self.store.remembered(chunk, id)
    }
    fn file_end(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Option<(ChunkIndex, u32)> {
        self.store.file_end(chain, inode, from)
    }

    fn file_runs(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: (ChunkIndex, BlockIndex),
        wanted: RunsWanted,
    ) -> FileRuns {
        self.store.file_runs(chain, inode, from, wanted)
    }
    fn chunks_of(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Vec<ChunkId> {
        self.store.chunks_of(chain, inode, from)
    }
    fn list(&self, chain: ChainId) -> Vec<(ChunkId, ChunkVersion)> {
        self.store.list(chain, None, usize::MAX)
    }
    fn gone(&self, chain: ChainId, limit: usize) -> Vec<(ChunkId, ChunkVersion)> {
        self.store.gone(chain, limit)
    }
    fn has_room(&self, _: u64) -> bool {
        true
    }
    fn admits(&self, session: SessionId) -> bool {
        !self.evicted.contains(&session)
    }
    fn is_full(&self, _: StorageId) -> bool {
        false
    }
}

/// A chain of one.
struct Head {
    core: ReplicaCore,
    store: ChunkStore,
    evicted: BTreeSet<SessionId>,
    /// What the store has yet to carry out.
    held: VecDeque<Effect>,
    answers: Vec<(WaiterId, Result<Answer, Error>)>,
    next: u64,
    ms: u64,
}

type Told = Result<StorageResponse, ErrorCode>;

fn chunk(index: u32) -> ChunkId {
    ChunkId::new(INODE, ChunkIndex(index))
}

fn id(number: u64) -> RequestId {
    RequestId {
        session: SessionId(3),
        channel: 0,
        sequence: SequenceNumber(number),
    }
}

fn write(block: u32) -> Mutation {
    Mutation::Write {
        first: BlockIndex(block),
        blocks: 1,
        last_length_bytes: 100,
        conditions: Vec::new(),
    }
}

impl Head {
    fn new() -> Self {
        let options = StoreOptions::new(ClusterId([7; 16]), StorageId(1), 1 << 30);
        let (store, _) = ChunkStore::open(Arc::new(SimDisk::new()), options).unwrap();
        let mut head = Self {
            core: ReplicaCore::new(CHAIN, StorageId(1)),
            store,
            evicted: BTreeSet::new(),
            held: VecDeque::new(),
            answers: Vec::new(),
            next: 0,
            ms: 1,
        };
        head.configure(1);
        head
    }

    fn configure(&mut self, epoch: u64) {
        self.step(Input::Configure(ChainInfo {
            id: CHAIN,
            epoch: Epoch(epoch),
            settled: true,
            rest: Rest::default(),
            headed: Epoch(1),
            revived: Epoch(1),
            members: vec![ChainMember {
                node: StorageId(1),
                state: MemberState::Serving,
                complete_until: Epoch(0),
            }],
        }));
    }

    fn step(&mut self, input: Input) {
        let now = Now {
            ms: self.ms,
            wall: Timestamp::from_nanos(1),
            lease: true,
            faulty: false,
        };
        let view = View {
            store: &self.store,
            evicted: &self.evicted,
        };
        for effect in self.core.step(now, input, &view) {
            match effect {
                Effect::Answer { waiter, answer } => self.answers.push((waiter, answer)),
                effect => self.held.push_back(effect),
            }
        }
    }

    /// Lets the store work.
    fn run(&mut self) {
        while let Some(effect) = self.held.pop_front() {
            let done =
                |ticket: Ticket, result: Result<(), crate::store::StoreError>| (ticket, result.map_err(Error::from));
            match effect {
                Effect::Apply {
                    ticket,
                    chunk,
                    version,
                    origin,
                    mutation,
                    payload,
                    ..
                } => {
                    let applied = self.store.apply(CHAIN, chunk, version, origin, &mutation, &payload);
                    let (ticket, result) = done(ticket, applied);
                    self.step(Input::Applied { ticket, result });
                }
                Effect::Sync { ticket } => {
                    let (ticket, result) = done(ticket, self.store.sync());
                    self.step(Input::Synced { ticket, result });
                }
                Effect::Forget { ticket, chunks } => {
                    let (ticket, result) = done(ticket, self.store.forget_gone(CHAIN, &chunks));
                    self.step(Input::Forgotten { ticket, result });
                }
                _ => {}
            }
        }
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.ms += 1_000;
            self.step(Input::Tick);
            self.run();
        }
    }

    fn waiter(&mut self) -> WaiterId {
        self.next += 1;
        WaiterId(self.next)
    }

    fn answer(&mut self, to: WaiterId) -> Option<Told> {
        let at = self.answers.iter().position(|(waiter, _)| *waiter == to)?;
        Some(match self.answers.remove(at).1 {
            Ok(Answer::Response(response)) => Ok(response),
            Ok(Answer::Proceed) => Ok(StorageResponse::Synced),
            Err(error) => Err(error.code),
        })
    }

    fn begin(&mut self, chunk: ChunkId, id: RequestId, cut: u64, mutation: Mutation) -> WaiterId {
        let waiter = self.waiter();
        let payload = match mutation {
            Mutation::Write { .. } => Bytes::from(vec![1; SEAL_SIZE_BYTES + 100]),
            _ => Bytes::new(),
        };
        let request = MutateRequest {
            chain: CHAIN,
            epoch: Epoch(1),
            chunk,
            id,
            level: Level::One,
            sync: false,
            uncut_since: None,
            cut: CutEpoch(cut),
            mutation,
        };
        self.step(Input::Mutate {
            waiter,
            request,
            payload,
        });
        waiter
    }

    fn mutate(&mut self, chunk: ChunkId, id: RequestId, cut: u64, mutation: Mutation) -> Result<u64, ErrorCode> {
        let waiter = self.begin(chunk, id, cut, mutation);
        self.run();
        match self.answer(waiter).unwrap() {
            Ok(StorageResponse::Mutated { version }) => Ok(version.counter),
            Ok(other) => panic!("{other:?}"),
            Err(code) => Err(code),
        }
    }

    fn remove_range(&mut self, from: u32, cut: u64) -> Result<u64, ErrorCode> {
        let waiter = self.waiter();
        self.step(Input::RemoveRange {
            epoch: Epoch(1),
            waiter,
            inodes: vec![INODE],
            from: ChunkIndex(from),
            cut: CutEpoch(cut),
            session: SessionId(3),
        });
        self.run();
        match self.answer(waiter).unwrap() {
            Ok(StorageResponse::RangeRemoved { chunks }) => Ok(chunks),
            Ok(other) => panic!("{other:?}"),
            Err(code) => Err(code),
        }
    }

    fn read(&mut self, chunk: ChunkId, level: Level) -> Result<usize, ErrorCode> {
        let read = ReadAsk {
            chunk,
            first: BlockIndex(0),
            blocks: 4,
            level,
            not_before: ChunkVersion::NONE,
            session: SessionId(4),
        };
        let epoch = Epoch(1);
        let waiter = self.waiter();
        self.step(Input::AdmitRead { epoch, waiter, read });
        self.answer(waiter).unwrap()?;
        let data = self.store.read(chunk, BlockIndex(0), 4).unwrap();
        let waiter = self.waiter();
        self.step(Input::ReadDone {
            epoch,
            waiter,
            read,
            version: data.version,
        });
        self.answer(waiter).unwrap().map(|_| data.runs.len())
    }
}

#[test]
fn a_chunk_refuses_what_comes_from_before_its_newest_cut() {
    let mut head = Head::new();
    assert_eq!(head.mutate(chunk(0), id(1), 2, write(0)), Ok(1));
    assert_eq!(head.mutate(chunk(0), id(2), 1, write(1)), Err(ErrorCode::StaleCut));
    assert_eq!(head.mutate(chunk(0), id(3), 2, write(1)), Ok(2));
    assert_eq!(head.mutate(chunk(0), id(4), 3, Mutation::Truncate { blocks: 1 }), Ok(3));
    for mutation in [write(0), Mutation::Truncate { blocks: 0 }, Mutation::Remove] {
        assert_eq!(head.mutate(chunk(0), id(5), 2, mutation), Err(ErrorCode::StaleCut));
    }
    assert_eq!(head.store.cut(chunk(0)), CutEpoch(3));
    // A tombstone remembers as well, and so does a chunk that was cut before it was written.
    assert_eq!(head.mutate(chunk(0), id(6), 5, Mutation::Remove), Ok(4));
    assert_eq!(head.mutate(chunk(0), id(7), 4, write(0)), Err(ErrorCode::StaleCut));
    assert_eq!(head.mutate(chunk(1), id(8), 5, Mutation::Truncate { blocks: 0 }), Ok(1));
    assert_eq!(head.mutate(chunk(1), id(9), 4, write(0)), Err(ErrorCode::StaleCut));
    assert_eq!(head.mutate(chunk(1), id(9), 6, write(0)), Ok(2));
}

#[test]
fn staged_mutations_count() {
    let mut head = Head::new();
    let cut = head.begin(chunk(0), id(1), 3, Mutation::Truncate { blocks: 0 });
    let late = head.begin(chunk(0), id(2), 2, write(0));
    assert_eq!(head.answer(late), Some(Err(ErrorCode::StaleCut)));
    assert_eq!(head.answer(cut), None);
    head.run();
    assert!(matches!(head.answer(cut), Some(Ok(_))));
}

#[test]
fn a_retry_of_what_was_applied_is_answered_whatever_was_cut_since() {
    let mut head = Head::new();
    assert_eq!(head.mutate(chunk(0), id(1), 0, write(0)), Ok(1));
    assert_eq!(head.mutate(chunk(0), id(2), 3, Mutation::Remove), Ok(2));
    assert_eq!(head.mutate(chunk(0), id(1), 0, write(0)), Ok(1));
    assert_eq!(head.remove_range(0, u64::MAX), Ok(1));
    assert_eq!(head.mutate(chunk(0), id(1), 0, write(0)), Ok(1));
}

#[test]
fn the_cut_is_looked_at_before_the_conditions() {
    let mut head = Head::new();
    assert_eq!(head.mutate(chunk(0), id(1), 3, Mutation::Truncate { blocks: 0 }), Ok(1));
    let conditional = |cut, head: &mut Head| {
        let mutation = Mutation::Write {
            first: BlockIndex(0),
            blocks: 1,
            last_length_bytes: 100,
            conditions: vec![BlockCondition {
                block: BlockIndex(0),
                version: ChunkVersion {
                    epoch: Epoch(1),
                    counter: 9,
                },
            }],
        };
        head.mutate(chunk(0), id(2), cut, mutation)
    };
    assert_eq!(conditional(2, &mut head), Err(ErrorCode::StaleCut));
    assert_eq!(conditional(3, &mut head), Err(ErrorCode::ConditionFailed));
}

#[test]
fn what_the_system_brings_back_knows_no_epoch_and_raises_none() {
    let mut head = Head::new();
    assert_eq!(head.mutate(chunk(0), id(1), 3, Mutation::Truncate { blocks: 0 }), Ok(1));
    assert_eq!(head.mutate(chunk(0), RequestId::SYSTEM, 0, write(0)), Ok(2));
    assert_eq!(head.mutate(chunk(0), RequestId::SYSTEM, 9, write(1)), Ok(3));
    assert_eq!(head.store.cut(chunk(0)), CutEpoch(3));
    assert_eq!(head.remove_range(0, u64::MAX), Ok(1));
    assert_eq!(
        head.mutate(chunk(0), RequestId::SYSTEM, 0, write(0)),
        Err(ErrorCode::StaleInode)
    );
}

#[test]
fn only_a_removal_of_the_metadata_group_says_that_a_file_is_gone() {
    let mut head = Head::new();
    assert_eq!(
        head.mutate(chunk(0), id(1), u64::MAX, write(0)),
        Err(ErrorCode::BadMessage)
    );
    assert_eq!(head.mutate(chunk(0), id(1), 0, write(0)), Ok(1));
}

#[test]
fn a_late_copy_of_a_range_removes_nothing_that_is_newer() {
    let mut head = Head::new();
    for index in 0..4 {
        assert_eq!(head.mutate(chunk(index), id(1), 0, write(0)), Ok(1));
    }
    assert_eq!(head.remove_range(1, 1), Ok(3));
    // Written again after the cut ended, in the same epoch of the chain.
    assert_eq!(head.mutate(chunk(1), id(2), 2, write(0)), Ok(3));
    assert_eq!(head.mutate(chunk(2), id(2), 1, write(0)), Ok(3), "within the cut");
    assert_eq!(
        head.remove_range(1, 1),
        Ok(1),
        "the one that was written within the cut"
    );
    assert_eq!(head.read(chunk(0), Level::One), Ok(1), "before the range");
    assert_eq!(head.read(chunk(1), Level::One), Ok(1), "newer");
    assert_eq!(head.read(chunk(2), Level::One), Ok(0));
    assert_eq!(head.read(chunk(3), Level::One), Ok(0));
}

#[test]
fn a_write_that_is_staged_after_a_later_cut_stays_too() {
    let mut head = Head::new();
    assert_eq!(head.mutate(chunk(0), id(1), 0, write(0)), Ok(1));
    let waiter = head.begin(chunk(0), id(2), 4, write(1));
    assert_eq!(head.remove_range(0, 1), Ok(0));
    assert!(matches!(head.answer(waiter), Some(Ok(_))));
    assert_eq!(head.read(chunk(0), Level::One), Ok(2));
}

#[test]
fn a_range_raises_the_epoch_of_tombstones() {
    let mut head = Head::new();
    assert_eq!(head.mutate(chunk(0), id(1), 0, write(0)), Ok(1));
    assert_eq!(head.remove_range(0, 1), Ok(1));
    assert_eq!(head.remove_range(0, 1), Ok(0), "nothing to do");
    assert_eq!(head.remove_range(0, 3), Ok(1));
    assert_eq!(head.mutate(chunk(0), id(2), 2, write(0)), Err(ErrorCode::StaleCut));
    assert_eq!(head.remove_range(0, u64::MAX), Ok(1));
    assert_eq!(head.remove_range(0, u64::MAX), Ok(0));
    assert_eq!(head.mutate(chunk(0), id(3), 4, write(0)), Err(ErrorCode::StaleInode));
}

#[test]
fn a_tombstone_of_a_removed_file_is_no_hole() {
    let mut head = Head::new();
    for index in 0..2 {
        assert_eq!(head.mutate(chunk(index), id(1), 0, write(0)), Ok(1));
    }
    assert_eq!(head.remove_range(1, 1), Ok(1));
    for level in [Level::One, Level::Quorum] {
        assert_eq!(head.read(chunk(1), level), Ok(0), "the file lives: a hole");
    }
    assert_eq!(head.remove_range(0, u64::MAX), Ok(2));
    for level in [Level::One, Level::Quorum] {
        for index in 0..2 {
            assert_eq!(head.read(chunk(index), level), Err(ErrorCode::StaleInode));
        }
    }
}

#[test]
fn tombstones_of_removed_files_are_forgotten_when_they_are_on_every_disk() {
    let mut head = Head::new();
    for index in 0..3 {
        assert_eq!(head.mutate(chunk(index), id(1), 0, write(0)), Ok(1));
    }
    assert_eq!(head.remove_range(2, 1), Ok(1));
    head.pass(60);
    assert_eq!(head.store.list(CHAIN, None, 9).len(), 3, "the file lives");
    assert_eq!(head.remove_range(1, u64::MAX), Ok(2));
    head.pass(15);
    assert_eq!(head.store.gone(CHAIN, 9).len(), 2, "one round has made sure of them");
    head.configure(2);
    head.pass(15);
    assert_eq!(head.store.gone(CHAIN, 9).len(), 2, "and begins anew");
    head.pass(10);
    assert_eq!(head.store.gone(CHAIN, 9).len(), 0);
    assert_eq!(head.store.list(CHAIN, None, 9).len(), 1);
}

#[test]
fn an_evicted_session_is_refused_everywhere() {
    let mut head = Head::new();
    assert_eq!(head.mutate(chunk(0), id(1), 0, write(0)), Ok(1));
    assert_eq!(head.read(chunk(0), Level::One), Ok(1));
    head.evicted = [SessionId(3), SessionId(4)].into();
    let expired = ErrorCode::SessionExpired;
    assert_eq!(head.mutate(chunk(0), id(2), 0, write(0)), Err(expired));
    assert_eq!(head.mutate(chunk(0), id(1), 0, write(0)), Err(expired), "a retry");
    assert_eq!(head.remove_range(0, 9), Err(expired));
    assert_eq!(head.read(chunk(0), Level::One), Err(expired));
    let waiter = head.waiter();
    head.step(Input::Sync {
        epoch: Epoch(1),
        waiter,
        level: Level::One,
        since: (Epoch(1), Level::One),
        session: SessionId(3),
    });
    assert_eq!(head.answer(waiter), Some(Err(expired)));
}
