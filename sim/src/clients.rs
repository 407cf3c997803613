//! Clients of the chains: one request at a time, retried as dfs-client decides, and a history of all that they were told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use dfs_client::retry::{Step, after_replica, pause};
use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::storage::{BlockCondition, MutateRequest, Mutation};
use dfs_common::{
    BlockIndex, ChainId, ChunkVersion, CutEpoch, Epoch, Error, ErrorCode, Level, RequestId, RoutingTable,
    SequenceNumber, SessionId, StorageId,
};
use dfs_storage::store::ChunkRead;

use crate::event::Event;
use crate::invariants::Told;
use crate::messages::{Call, Reply, Request};
use crate::network::GROUP;
use crate::schedule::{BLOCKS, CHUNKS, End, Kind, Op};
use crate::world::{World, chain_of, chunk_id};

/// Requests still to come that a client may hold; more are left out.
const QUEUE: usize = 40;

/// Tries before a client gives a request up (its deadline).
const TRIES: u64 = 60;

/// Mutations of a chunk after which its memory of a request may be gone; nobody retries later than that.
pub(crate) const REMEMBERED: u64 = 40;

#[derive(Clone, Debug)]
pub(crate) struct Pending {
    op: Op,
    chunk: u64,
    /// For a mutation: its name and what it puts into which blocks.
    id: RequestId,
    mutation: Option<(Mutation, Bytes)>,
    sync: bool,
    /// The truncation epoch that it comes with.
    cut: CutEpoch,
    told: Vec<usize>,
    called: u64,
    asked: Vec<StorageId>,
    tries: u64,
    epoch: Epoch,
    again: bool,
}

#[derive(Debug)]
pub(crate) struct Client {
    session: u64,
    sequence: u64,
    attempt: u64,
    pub(crate) queue: VecDeque<Op>,
    pending: Option<Pending>,
    table: Arc<RoutingTable>,
    /// Versions of blocks as last read, for conditions.
    seen: BTreeMap<(u64, u32), (ChunkVersion, u64)>,
    /// Of each chunk the newest version seen, for reads at ONE.
    newest: BTreeMap<u64, ChunkVersion>,
    /// Truncation epochs of files as last looked at.
    cuts: BTreeMap<u64, CutEpoch>,
    last: Option<(Pending, ChunkVersion, u64)>,
}

impl Client {
    pub(crate) fn new(session: u64) -> Self {
        Self {
            session,
            sequence: 0,
            attempt: 0,
            queue: VecDeque::new(),
            pending: None,
            table: Arc::default(),
            seen: BTreeMap::new(),
            newest: BTreeMap::new(),
            cuts: BTreeMap::new(),
            last: None,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_none() && self.queue.is_empty()
    }
}

/// Every block says whose it is, in its seal and in its data.
pub(crate) fn payload(chunk: u64, first: u32, blocks: u32, last: usize, value: u64) -> Bytes {
    let seals = blocks as usize * SEAL_SIZE_BYTES;
    let mut bytes = vec![0; seals + (blocks as usize - 1) * BLOCK_SIZE_BYTES + last];
    for at in 0..blocks {
        let mark = mark(chunk, first + at, value);
        let seal = at as usize * SEAL_SIZE_BYTES;
        bytes[seal..seal + 8].copy_from_slice(&value.to_le_bytes());
        bytes[seal + 8..seal + 16].copy_from_slice(&mark.to_le_bytes());
        let data = seals + at as usize * BLOCK_SIZE_BYTES;
        bytes[data..data + 8].copy_from_slice(&mark.to_le_bytes());
        bytes[data + 8..data + 16].copy_from_slice(&value.to_le_bytes());
    }
    Bytes::from(bytes)
}

const fn mark(chunk: u64, block: u32, value: u64) -> u64 {
    (chunk << 32 | block as u64 | 1 << 60) ^ value.rotate_left(17)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The value of every block (0: a hole) with its version, or what is wrong with the bytes.
pub(crate) fn values(chunk: u64, read: &ChunkRead) -> Result<Vec<(u64, ChunkVersion)>, String> {
    let mut found = vec![(0, ChunkVersion::NONE); BLOCKS as usize];
    let mut rest = &read.payload[..];
    for run in &read.runs {
        let bytes = rest.get(..run.payload_size_bytes()).ok_or("a payload is short")?;
        rest = &rest[run.payload_size_bytes()..];
        let seals = run.blocks as usize * SEAL_SIZE_BYTES;
        for at in 0..run.blocks {
            let block = run.first.0 + at;
            let seal = at as usize * SEAL_SIZE_BYTES;
            let data = seals + at as usize * BLOCK_SIZE_BYTES;
            let value = word(bytes, seal).ok_or("a seal is short")?;
            let marks = [word(bytes, seal + 8), word(bytes, data)];
            if marks != [Some(mark(chunk, block, value)); 2] || word(bytes, data + 8) != Some(value) {
                return Err(format!(
                    "block {block} of chunk {chunk} holds bytes that nobody wrote there"
                ));
            }
            if let Some(place) = found.get_mut(block as usize) {
                *place = (value, run.version);
            }
        }
    }
    Ok(found)
}

impl World {
    pub(crate) fn client(&mut self, at: usize) {
        if self.clients[at].pending.is_some() {
            return;
        }
        while self.clients[at].queue.len() > QUEUE {
            self.clients[at].queue.pop_back();
        }
        let Some(op) = self.clients[at].queue.pop_front() else {
            return;
        };
        let Some(pending) = self.begin(at, op) else {
            return self.after(1, Event::Client { client: at });
        };
        self.clients[at].pending = Some(pending);
        self.send(at);
    }

    fn begin(&mut self, at: usize, op: Op) -> Option<Pending> {
        if op == Op::OldRetry {
            return self.old_retry(at);
        }
        let chunk = match op {
            Op::Write { chunk, .. }
            | Op::Truncate { chunk, .. }
            | Op::Remove { chunk, .. }
            | Op::Read { chunk, .. }
            | Op::Sync { chunk, .. }
            | Op::RemoveRange { chunk, .. }
            | Op::FileEnd { chunk } => chunk,
            Op::OldRetry => return None,
        };
        self.clients[at].sequence += 1;
        let client = &self.clients[at];
        let id = RequestId {
            session: SessionId(client.session),
            channel: 0,
            sequence: SequenceNumber(client.sequence),
        };
        let value = client.session << 32 | client.sequence;
        let cut = self.cut_for(at, chunk, op);
        let client = &self.clients[at];
        let mut sync = false;
        let mut puts = Vec::new();
        let mut expected = None;
        let mutation = match op {
            Op::Write {
                first,
                blocks,
                conditional,
                sync: durable,
                small,
                ..
            } => {
                sync = durable;
                let last = if small { 64 } else { BLOCK_SIZE_BYTES };
                let seen = client.seen.get(&(chunk, first)).copied();
                let conditions = match seen {
                    Some((version, value)) if conditional => {
                        expected = Some(value);
                        vec![BlockCondition {
                            block: BlockIndex(first),
                            version,
                        }]
                    }
                    _ => Vec::new(),
                };
                if !conditions.is_empty() {
                    self.fired(Kind::ConcurrentConditions);
                }
                puts.extend((first..first + blocks).map(|block| (block, value)));
                let mutation = Mutation::Write {
                    first: BlockIndex(first),
                    blocks,
                    last_length_bytes: last as u32,
                    conditions,
                };
                Some((mutation, payload(chunk, first, blocks, last, value)))
            }
            Op::Truncate { blocks, .. } => {
                puts.extend((blocks..BLOCKS).map(|block| (block, 0)));
                Some((Mutation::Truncate { blocks }, Bytes::new()))
            }
            Op::Remove { .. } => {
                puts.extend((0..BLOCKS).map(|block| (block, 0)));
                Some((Mutation::Remove, Bytes::new()))
            }
            Op::RemoveRange { .. } | Op::FileEnd { .. } | Op::Read { .. } | Op::Sync { .. } | Op::OldRetry => None,
        };
        let called = self.tick;
        let level = op.level();
        let who = self.clients[at].session;
        // The condition is on the first block.
        let told = puts
            .iter()
            .enumerate()
            .map(|(at, &(block, value))| {
                self.watch.begin(
                    who,
                    (chunk, block, value),
                    called,
                    (level, sync),
                    expected.filter(|_| at == 0),
                )
            })
            .collect();
        Some(Pending {
            op,
            chunk,
            id,
            mutation,
            sync,
            cut,
            told,
            called,
            asked: Vec::new(),
            tries: 0,
            epoch: Epoch(0),
            again: false,
        })
    }

    /// The epoch that an operation comes with. What cuts begins a new one in the file's row, as a mount does before it touches a chunk;
    /// what writes goes by what it knows of the row, which may be old.
    fn cut_for(&mut self, at: usize, chunk: u64, op: Op) -> CutEpoch {
        let known = self.clients[at].cuts.get(&chunk).copied().unwrap_or_default();
        let Some(row) = self.rows.get_mut(chunk as usize) else {
            return CutEpoch::NONE;
        };
        match op {
            Op::RemoveRange { end: End::Gone, .. } => *row = CutEpoch::GONE,
            Op::Truncate { .. } | Op::Remove { .. } | Op::RemoveRange { .. } if *row != CutEpoch::GONE => {
                *row = row.begin();
            }
            Op::Write { .. } if self.random.chance(30) => return known,
            _ => {}
        }
        match (*row, op) {
            (CutEpoch::GONE, Op::RemoveRange { .. }) => CutEpoch::GONE,
            // Who has it open goes on with what it knew.
            (CutEpoch::GONE, _) => known,
            (row, _) => {
                self.clients[at].cuts.insert(chunk, row);
                row
            }
        }
    }

    /// A cut was carried out: its file's row says so, unless somebody else has begun another.
    fn end_cut(&mut self, at: usize, pending: &Pending) {
        let cuts = matches!(
            pending.op,
            Op::Truncate { .. } | Op::Remove { .. } | Op::RemoveRange { .. }
        );
        let Some(row) = self.rows.get_mut(pending.chunk as usize) else {
            return;
        };
        if cuts && *row == pending.cut && *row != CutEpoch::GONE {
            *row = row.end();
            let row = *row;
            self.clients[at].cuts.insert(pending.chunk, row);
        }
    }

    /// The last acknowledged mutation once more, as a copy of it that was long on its way.
    fn old_retry(&mut self, at: usize) -> Option<Pending> {
        let (last, version, _) = self.clients[at].last.clone()?;
        let newest = self.newest(chunk_id(last.chunk));
        // What a power cut of all took, it took with the memory of it; nobody asks again what was answered so long ago.
        if self.may_have_lost(chain_of(last.chunk)) || newest.saturating_sub(version.counter) > REMEMBERED {
            return None;
        }
        self.fired(Kind::OldRetry);
        Some(Pending {
            told: Vec::new(),
            tries: 0,
            again: true,
            asked: Vec::new(),
            ..last
        })
    }

    /// Whether a power cut of all took what the chain had not synced, or may yet turn out to have.
    fn may_have_lost(&self, chain: ChainId) -> bool {
        self.watch.amnesty.contains(&chain) || self.nodes.iter().any(|node| node.lossy.contains_key(&chain))
    }

    fn send(&mut self, at: usize) {
        if !self.lost(Self::client_place(), GROUP)
            && let Some(table) = self.group.routing()
            && table.version > self.clients[at].table.version
            && (self.clients[at].table.chains.is_empty()
                || self.clients[at]
                    .pending
                    .as_ref()
                    .is_some_and(|pending| pending.tries > 0))
        {
            self.clients[at].table = table;
        }
        self.clients[at].attempt += 1;
        let attempt = self.clients[at].attempt;
        let Some(mut pending) = self.clients[at].pending.clone() else {
            return;
        };
        pending.tries += 1;
        let chain_id = chain_of(pending.chunk);
        let (to, epoch) = {
            let chain = self.clients[at].table.chain(chain_id);
            let serving: Vec<_> = chain.map(|chain| chain.serving().collect()).unwrap_or_default();
            let to = match pending.op {
                Op::Read { pick, .. } => {
                    // As dfs-client: by the level of the read.
                    let able = match pending.op.level() {
                        Level::One => serving.len(),
                        Level::Quorum => chain.map_or(0, |chain| chain.quorum_readers().count()),
                        Level::All => serving.len().min(1),
                    };
                    let serving = &serving[..able.min(serving.len())];
                    let fresh: Vec<_> = serving
                        .iter()
                        .filter(|node| !pending.asked.contains(node))
                        .copied()
                        .collect();
                    let from = if fresh.is_empty() { serving.to_vec() } else { fresh };
                    (!from.is_empty()).then(|| from[(pick % from.len() as u64) as usize])
                }
                _ => serving.first().copied(),
            };
            (to, chain.map_or(Epoch(0), |chain| chain.epoch))
        };
        pending.epoch = epoch;
        pending.asked.extend(to);
        let chunk = chunk_id(pending.chunk);
        let request = match (&pending.op, &pending.mutation) {
            (_, Some((mutation, payload))) => Request::Mutate(
                MutateRequest {
                    chain: chain_id,
                    epoch,
                    chunk,
                    id: pending.id,
                    level: pending.op.level(),
                    sync: pending.sync,
                    uncut_since: None,
                    cut: pending.cut,
                    mutation: mutation.clone(),
                },
                payload.clone(),
                self.newest(chunk),
            ),
            (Op::Read { .. }, _) => Request::Read {
                chain: chain_id,
                epoch,
                chunk,
                level: pending.op.level(),
                not_before: self.clients[at].newest.get(&pending.chunk).copied().unwrap_or_default(),
            },
            (Op::FileEnd { .. }, _) => Request::FileEnd {
                chain: chain_id,
                epoch,
                inode: chunk.inode,
            },
            (Op::Sync { .. }, _) => Request::Sync {
                chain: chain_id,
                epoch,
                level: pending.op.level(),
                since: self.watch.vouches(pending.id.session.0, chain_id, pending.called),
            },
            _ => Request::RemoveRange {
                chain: chain_id,
                epoch,
                inode: chunk.inode,
                cut: pending.cut,
            },
        };
        self.clients[at].pending = Some(pending);
        match to {
            Some(to) => self.call(
                Self::client_place(),
                to,
                request,
                Call::Client { client: at, attempt },
                0,
            ),
            None => self.after(50, Event::ClientDeadline { client: at, attempt }),
        }
    }

    pub(crate) fn client_answered(&mut self, at: usize, attempt: u64, result: Result<Reply, Error>) {
        if self.clients[at].attempt != attempt {
            return;
        }
        let Some(pending) = self.clients[at].pending.take() else {
            return;
        };
        // From here on nothing that comes for this attempt is listened to.
        self.clients[at].attempt += 1;
        match result {
            Ok(reply) => self.client_done(at, pending, reply),
            Err(error) => self.client_failed(at, pending, &error),
        }
    }

    fn client_done(&mut self, at: usize, pending: Pending, reply: Reply) {
        let tick = self.tick;
        self.note(8, "done", pending.id.session.0, pending.id.sequence.0);
        self.end_cut(at, &pending);
        // A chunk that was not there remembers nothing.
        if pending.cut == CutEpoch::GONE && matches!(reply, Reply::Removed(1..)) {
            self.watch.removed(pending.chunk, tick);
        }
        match (pending.op, reply) {
            (Op::Read { chunk, level, .. }, Reply::Data(data)) => match values(chunk, &data) {
                Ok(found) => {
                    if let Err(detail) = self.watch.read_of_removed(chunk, pending.called)
                        && !self.may_have_lost(chain_of(chunk))
                    {
                        return self.fail("I3", detail);
                    }
                    if let Err(detail) = self.watch.content(chunk_id(chunk), data.version, &found) {
                        self.fail("I3", detail);
                    }
                    let newest = self.clients[at].newest.entry(chunk).or_default();
                    if data.version < *newest && level == Level::One {
                        let (saw, sees) = (*newest, data.version);
                        return self.fail(
                            "I2",
                            format!("client {at} saw chunk {chunk} at {saw} and then at {sees}"),
                        );
                    }
                    *newest = data.version.max(*newest);
                    for (block, (value, version)) in (0..).zip(found) {
                        self.clients[at].seen.insert((chunk, block), (version, value));
                        let who = self.clients[at].session;
                        if let Err(detail) = self
                            .watch
                            .read(who, (chunk, block, value), level, (pending.called, tick))
                        {
                            self.fail("I3", detail);
                        }
                    }
                }
                Err(detail) => self.fail("I3", detail),
            },
            (Op::FileEnd { chunk }, Reply::FileEnd(end)) => {
                let blocks = end.map_or(0, |(_, bytes)| bytes.div_ceil(BLOCK_SIZE_BYTES as u32));
                if blocks > 0 && !self.watch.wrote_last_block(chunk, blocks) && self.schedule.character.victim.is_none()
                {
                    self.fail(
                        "I3",
                        format!("chunk {chunk} is said to end at block {blocks}, which nobody wrote"),
                    );
                }
            }
            (Op::Sync { chunk, level }, _) => {
                self.watch
                    .synced(pending.id.session.0, chain_of(chunk), pending.called, level);
            }
            (_, reply) => {
                if pending.again {
                    let first = self.clients[at].last.as_ref().map(|last| last.1);
                    if let Reply::Version(version) = reply
                        && first != Some(version)
                        && !self.watch.amnesty.contains(&chain_of(pending.chunk))
                        // What the head had alone may have gone with it: then it takes effect now.
                        && (pending.op.level() != Level::One || !self.watch.head_left.contains(&chain_of(pending.chunk)))
                    {
                        self.fail(
                            "I13",
                            format!(
                                "request {:?} took effect twice: as {first:?} and as {version}",
                                pending.id
                            ),
                        );
                    }
                } else {
                    for &told in &pending.told {
                        self.watch.end(told, Told::Done(tick), pending.epoch);
                    }
                    if let Reply::Version(version) = reply {
                        let newest = self.clients[at].newest.entry(pending.chunk).or_default();
                        *newest = version.max(*newest);
                        self.clients[at].last = Some((pending, version, tick));
                    }
                }
            }
        }
        let gap = 1 + self.random.below(20);
        self.after(gap, Event::Client { client: at });
    }

    fn client_failed(&mut self, at: usize, mut pending: Pending, error: &Error) {
        self.note(8, "failed", pending.id.sequence.0, u64::from(u16::from(error.code)));
        if error.code == ErrorCode::BadMessage {
            return self.fail("wire", format!("a client's request was taken for garbage: {error}"));
        }
        let serving = self.clients[at]
            .table
            .chain(chain_of(pending.chunk))
            .map_or(0, |chain| chain.serving().count());
        match (error.code, pending.op) {
            // Even the head has less: it went with another head, and the client forgets it, as dfs-client does.
            (ErrorCode::Behind, Op::Read { chunk, .. }) if pending.asked.len() >= serving => {
                self.clients[at].newest.remove(&chunk);
            }
            (ErrorCode::UnsyncedLost, Op::Sync { chunk, .. }) => {
                let chain = chain_of(chunk);
                if !self.watch.head_left.contains(&chain) && !self.watch.revived.contains(&chain) {
                    self.fail(
                        "I1",
                        format!("chain {chain} says that it lost something, and nobody left it: {error}"),
                    );
                }
                self.fired(Kind::UnsyncedLost);
                self.watch.sync_refused(pending.id.session.0, chain, pending.called);
            }
            (ErrorCode::StaleCut, op) => {
                self.fired(Kind::StaleCut);
                // It looks at the file again, and does it anew.
                let row = self.rows.get(pending.chunk as usize).copied().unwrap_or_default();
                if row != CutEpoch::GONE {
                    self.clients[at].cuts.insert(pending.chunk, row);
                    if !pending.again {
                        self.clients[at].queue.push_front(op);
                    }
                }
            }
            (ErrorCode::StaleInode, _) => {
                self.fired(Kind::RemovedFile);
                if self.rows.get(pending.chunk as usize) != Some(&CutEpoch::GONE) {
                    self.fail(
                        "I3",
                        format!("chunk {} is said to be of a removed file: {error}", pending.chunk),
                    );
                }
            }
            _ => {}
        }
        let untried = if matches!(pending.op, Op::Read { .. }) {
            serving.saturating_sub(pending.asked.len())
        } else {
            0
        };
        let tries = u32::try_from(pending.tries).unwrap_or(u32::MAX);
        let wait = match after_replica(error.code, tries, untried) {
            Step::NextMember => 0,
            Step::Refresh(pause) | Step::Again(pause) => pause.as_millis() as u64,
            // An application tries again what failed on a bad or a full disk, under a new name if it is told so.
            Step::Fail
                if matches!(
                    error.code,
                    ErrorCode::Corrupt | ErrorCode::NoSpace | ErrorCode::Internal | ErrorCode::Overloaded
                ) && pending.tries < 8 =>
            {
                pause(tries).as_millis() as u64 + 20
            }
            Step::Fail => {
                // A refusal is not remembered: a copy that the network repeats may find a hole again where it found data.
                let character = self.schedule.character;
                let sole = pending.tries == 1 && character.duplicate_percent == 0 && character.late_percent == 0;
                let refused = matches!(
                    error.code,
                    ErrorCode::ConditionFailed | ErrorCode::StaleCut | ErrorCode::StaleInode
                );
                return self.give_up(at, &pending, refused && sole);
            }
        };
        if pending.tries >= TRIES && !self.calm {
            return self.give_up(at, &pending, false);
        }
        if pending.asked.len() >= serving {
            pending.asked.clear();
        }
        self.clients[at].pending = Some(pending);
        self.resend_later(at, wait + 1);
    }

    fn give_up(&mut self, at: usize, pending: &Pending, nothing_done: bool) {
        for &told in &pending.told {
            self.watch
                .end(told, if nothing_done { Told::Refused } else { Told::Unknown }, Epoch(0));
        }
        self.after(1, Event::Client { client: at });
    }

    fn resend_later(&mut self, at: usize, ms: u64) {
        let attempt = self.clients[at].attempt;
        self.after(ms, Event::Resend { client: at, attempt });
    }

    pub(crate) fn resend(&mut self, at: usize, attempt: u64) {
        if self.clients[at].attempt == attempt && self.clients[at].pending.is_some() {
            self.send(at);
        }
    }

    /// The mount is gone with what it had in flight; another one takes its place.
    pub(crate) fn client_crash(&mut self, at: usize) {
        let Some(pending) = self.clients[at].pending.take() else {
            return;
        };
        self.fired(Kind::ClientCrash);
        self.clients[at].attempt += 1;
        self.clients[at].session += 100;
        self.clients[at].last = None;
        self.clients[at].seen.clear();
        self.clients[at].newest.clear();
        self.clients[at].cuts.clear();
        self.give_up(at, &pending, false);
    }

    /// At the end every chunk is read once more, at every level's best.
    pub(crate) fn final_reads(&mut self) {
        let clients = self.clients.len() as u64;
        for chunk in 0..CHUNKS {
            for (pick, level) in [(0, Level::One), (1, Level::Quorum), (2, Level::All), (2, Level::One)] {
                let client = (chunk % clients) as usize;
                self.clients[client].queue.push_back(Op::Read { chunk, pick, level });
            }
        }
        for client in 0..self.clients.len() {
            self.client(client);
        }
    }
}
