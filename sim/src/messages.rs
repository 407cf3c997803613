//! What storage nodes and clients ask each other, and what the network makes of it. Mirrors `dfs_storage::service` (handler, network).

use std::rc::Rc;

use bytes::Bytes;
use dfs_common::wire::storage::{ForwardRequest, InstallPart, MutateRequest};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, CutEpoch, Epoch, Error, ErrorCode, InodeId, Level,
    SessionId, StorageId,
};
use dfs_storage::replica::{Input, ReadAsk, Ticket, WaiterId};
use dfs_storage::store::ChunkRead;

use crate::clients::REMEMBERED;
use crate::event::Event;
use crate::network::Network;
use crate::schedule::{BLOCKS, Kind};
use crate::world::World;

/// Deadlines as the real shells have them.
const FORWARD_MS: u64 = 3_000;
const SYNC_MS: u64 = 15_000;
const PART_MS: u64 = 3_000;
const CLIENT_MS: u64 = 2_000;
const EPOCH_WAIT_MS: u64 = 500;

/// Chunks in one inventory message, for the same reason.
const INVENTORY_CHUNKS: u32 = 2;

#[derive(Debug)]
pub(crate) enum Request {
    Forward(ForwardRequest, Bytes),
    ForwardSync {
        chain: ChainId,
        epoch: Epoch,
        level: Level,
        forget: Vec<(ChunkId, ChunkVersion)>,
    },
    Stable {
        chain: ChainId,
        epoch: Epoch,
        chunks: Vec<(ChunkId, ChunkVersion)>,
    },
    Inventory {
        chain: ChainId,
        epoch: Epoch,
        after: Option<ChunkId>,
    },
    Install {
        chain: ChainId,
        epoch: Epoch,
        chunk: ChunkId,
        version: ChunkVersion,
        part: InstallPart,
        payload: Bytes,
    },
    Drop {
        chain: ChainId,
        epoch: Epoch,
        chunks: Vec<ChunkId>,
    },
    /// With the chunk's newest counter anywhere when it was sent.
    Mutate(MutateRequest, Bytes, u64),
    Read {
        chain: ChainId,
        epoch: Epoch,
        chunk: ChunkId,
        level: Level,
        not_before: ChunkVersion,
    },
    Sync {
        chain: ChainId,
        epoch: Epoch,
        level: Level,
        since: (Epoch, Level),
    },
    RemoveRange {
        chain: ChainId,
        epoch: Epoch,
        inode: InodeId,
        cut: CutEpoch,
    },
    FileEnd {
        chain: ChainId,
        epoch: Epoch,
        inode: InodeId,
    },
}

impl Request {
    pub(crate) const fn target(&self) -> (ChainId, Epoch) {
        match self {
            Self::Forward(forward, _) => (forward.request.chain, forward.request.epoch),
            Self::Mutate(request, ..) => (request.chain, request.epoch),
            Self::ForwardSync { chain, epoch, .. }
            | Self::Stable { chain, epoch, .. }
            | Self::Inventory { chain, epoch, .. }
            | Self::Install { chain, epoch, .. }
            | Self::Drop { chain, epoch, .. }
            | Self::Read { chain, epoch, .. }
            | Self::Sync { chain, epoch, .. }
            | Self::RemoveRange { chain, epoch, .. }
            | Self::FileEnd { chain, epoch, .. } => (*chain, *epoch),
        }
    }

    /// What a client wants to read or write.
    const fn chunk_of_client(&self) -> Option<ChunkId> {
        match self {
            Self::Mutate(request, ..) if request.id.session.0 != SessionId::SYSTEM.0 => Some(request.chunk),
            Self::Read { chunk, .. } => Some(*chunk),
            _ => None,
        }
    }

    pub(crate) const fn is_clients(&self) -> bool {
        matches!(
            self,
            Self::Mutate(..) | Self::Read { .. } | Self::Sync { .. } | Self::RemoveRange { .. } | Self::FileEnd { .. }
        )
    }

    const fn deadline_ms(&self) -> u64 {
        match self {
            Self::Forward(..) | Self::Stable { .. } => FORWARD_MS,
            Self::ForwardSync { .. } => SYNC_MS,
            Self::Inventory { .. } | Self::Install { .. } | Self::Drop { .. } => PART_MS,
            _ => CLIENT_MS,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Done,
    /// Whether every member after the one that answers has it too.
    Forwarded(bool),
    Version(ChunkVersion),
    Inventory(Vec<(ChunkId, ChunkVersion)>, bool),
    Data(ChunkRead),
    FileEnd(Option<(ChunkIndex, u32)>),
    /// How many chunks a range had removed.
    Removed(u64),
}

/// What a call's answer is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum For {
    Forward(Ticket),
    /// A sync of the successor, or word to the predecessor.
    Told(Ticket),
    Inventory(Ticket),
    Dropped(Ticket),
    Copy(u64),
}

#[derive(Debug)]
pub(crate) enum Call {
    Node {
        node: usize,
        incarnation: u64,
        chain: ChainId,
        what: For,
    },
    Client {
        client: usize,
        attempt: u64,
    },
}

impl Call {
    pub(crate) const fn node(&self) -> Option<usize> {
        match *self {
            Self::Node { node, .. } => Some(node),
            Self::Client { .. } => None,
        }
    }
}

/// What a core's answer is for.
#[derive(Debug)]
pub(crate) enum Waiting {
    Answer {
        call: u64,
        from: usize,
        request: Rc<Request>,
    },
    Admitted {
        call: u64,
        from: usize,
        request: Rc<Request>,
    },
    Read {
        call: u64,
        from: usize,
        request: Rc<Request>,
        data: ChunkRead,
    },
}

pub(crate) const fn at_of(node: StorageId) -> usize {
    node.0 as usize - 1
}

impl World {
    /// Sends a request, with what the network makes of it.
    pub(crate) fn call(&mut self, from: usize, to: StorageId, request: Request, call: Call, after_ms: u64) {
        let id = self.id();
        let deadline = request.deadline_ms();
        self.calls.insert(id, call);
        let character = self.schedule.character;
        let copies_part = matches!(request, Request::Install { .. } | Request::Drop { .. });
        let after_ms = after_ms
            + if copies_part && !self.calm {
                self.random.below(character.copy_ms + 1)
            } else {
                0
            };
        let request = Rc::new(request);
        let to = at_of(to);
        let copies = [
            (!self.lost(from, to)).then_some(0),
            (!self.calm && self.random.chance(character.duplicate_percent)).then(|| {
                self.fired(Kind::Duplication);
                self.random.between(1, 200)
            }),
            (!self.calm
                && self
                    .random
                    .chance(character.late_percent * if copies_part { 10 } else { 1 }))
            .then(|| {
                self.fired(Kind::LateDuplicate);
                self.random.between(500, 6_000)
            }),
        ];
        for late_ms in copies.into_iter().flatten() {
            let delay = self.delay_ms() + late_ms;
            let event = Event::Deliver {
                to,
                from,
                call: id,
                request: Rc::clone(&request),
                tries: 0,
            };
            self.after(after_ms + delay, event);
        }
        let error = Error::new(ErrorCode::Timeout, "simulated: no answer");
        self.after(
            after_ms + deadline,
            Event::Answer {
                call: id,
                result: Box::new(Err(error)),
            },
        );
    }

    pub(crate) fn delay_ms(&mut self) -> u64 {
        let character = self.schedule.character;
        let reorder = if self.calm { 0 } else { character.reorder_ms };
        let delay = Network::delay_ms(&mut self.random, reorder);
        if delay > 4 {
            self.fired(Kind::Reordering);
        }
        if !self.calm && reorder > 0 && self.random.below(400) == 0 {
            self.fired(Kind::LongDelay);
            return delay + self.random.between(200, 2_500);
        }
        delay
    }

    /// Whether this message does not arrive.
    pub(crate) fn lost(&mut self, from: usize, to: usize) -> bool {
        if !self.hears(from, to) {
            return true;
        }
        let lost = !self.calm && self.random.chance(self.schedule.character.loss_percent);
        if lost {
            self.fired(Kind::Loss);
        }
        lost
    }

    pub(crate) fn reply(&mut self, node: usize, call: u64, from: usize, result: Result<Reply, Error>) {
        if !self.lost(node, from) {
            let delay = self.delay_ms();
            self.after(
                delay,
                Event::Answer {
                    call,
                    result: Box::new(result),
                },
            );
        }
    }

    pub(crate) fn deliver(&mut self, to: usize, from: usize, call: u64, request: Rc<Request>, tries: u32) {
        if let Request::Mutate(mutate, _, sent_at) = &*request
            && self.newest(mutate.chunk) > sent_at + REMEMBERED
        {
            // A copy this late would find itself forgotten: see docs/RELIABILITY.md, "What is assumed".
            return;
        }
        if !self.nodes[to].is_up() {
            let error = Error::new(ErrorCode::Unreachable, "simulated: nobody listens");
            if tries == 0 {
                self.reply(to, call, from, Err(error));
            }
            return;
        }
        if request
            .chunk_of_client()
            .is_some_and(|chunk| self.forgotten.contains(&chunk))
        {
            // Whoever had the file open when it was purged is evicted, and storage nodes know that
            // before: sessions are not simulated.
            return self.reply(to, call, from, Err(Error::from(ErrorCode::StaleInode)));
        }
        if let Request::Forward(forward, _) = &*request
            && self.forgotten.contains(&forward.request.chunk)
        {
            // Messages are late by up to six seconds here, and the time between the rounds of
            // forgetting, which is ten seconds in production, is far shorter.
            return;
        }
        let (chain, epoch) = request.target();
        let ready = self.nodes[to]
            .chains
            .get(&chain)
            .is_some_and(|member| member.core.epoch() >= epoch);
        if !ready && u64::from(tries) * 25 < EPOCH_WAIT_MS {
            self.fetch_table(to);
            self.after(
                25,
                Event::Deliver {
                    to,
                    from,
                    call,
                    request,
                    tries: tries + 1,
                },
            );
            return;
        }
        if !self.nodes[to].chains.contains_key(&chain) {
            let error = Error::new(ErrorCode::NotInChain, "simulated: no such chain here");
            return self.reply(to, call, from, Err(error));
        }
        let kept = Rc::clone(&request);
        let waiting = if matches!(*kept, Request::Read { .. }) {
            Waiting::Admitted { call, from, request }
        } else {
            Waiting::Answer { call, from, request }
        };
        let Some(waiter) = self.waiter(to, chain, waiting) else {
            return;
        };
        let sender = StorageId(from as u32 + 1);
        let input = match &*kept {
            Request::Forward(request, payload) => Input::Forward {
                from: sender,
                waiter,
                request: request.clone(),
                payload: payload.clone(),
            },
            Request::ForwardSync {
                epoch, level, forget, ..
            } => Input::ForwardSync {
                from: sender,
                epoch: *epoch,
                waiter,
                level: *level,
                forget: forget.clone(),
            },
            Request::Stable { epoch, chunks, .. } => Input::Stable {
                from: sender,
                epoch: *epoch,
                waiter,
                chunks: chunks.clone(),
            },
            Request::Inventory { epoch, after, .. } => Input::Inventory {
                from: sender,
                epoch: *epoch,
                waiter,
                after: *after,
                limit: INVENTORY_CHUNKS,
            },
            Request::Install {
                epoch,
                chunk,
                version,
                part,
                payload,
                ..
            } => Input::Install {
                from: sender,
                epoch: *epoch,
                waiter,
                chunk: *chunk,
                version: *version,
                part: part.clone(),
                payload: payload.clone(),
            },
            Request::Drop { epoch, chunks, .. } => Input::Drop {
                from: sender,
                epoch: *epoch,
                waiter,
                chunks: chunks.clone(),
            },
            Request::Mutate(request, payload, _) => Input::Mutate {
                waiter,
                request: request.clone(),
                payload: payload.clone(),
            },
            Request::Read {
                epoch,
                chunk,
                level,
                not_before,
                ..
            } => Input::AdmitRead {
                epoch: *epoch,
                waiter,
                read: read_of(*chunk, *level, *not_before),
            },
            Request::Sync {
                epoch, level, since, ..
            } => Input::Sync {
                epoch: *epoch,
                waiter,
                level: *level,
                since: *since,
                session: SessionId::SYSTEM,
            },
            Request::RemoveRange { epoch, inode, cut, .. } => Input::RemoveRange {
                epoch: *epoch,
                waiter,
                inodes: vec![*inode],
                from: ChunkIndex(0),
                cut: *cut,
                session: SessionId::SYSTEM,
            },
            Request::FileEnd { epoch, inode, .. } => Input::FileEnd {
                epoch: *epoch,
                waiter,
                inode: *inode,
                from: ChunkIndex(0),
            },
        };
        self.feed(to, chain, input);
    }

    pub(crate) fn waiter(&mut self, node: usize, chain: ChainId, waiting: Waiting) -> Option<WaiterId> {
        let member = self.nodes[node].chains.get_mut(&chain)?;
        let waiter = WaiterId(member.next_waiter);
        member.next_waiter += 1;
        member.waiting.insert(waiter, waiting);
        Some(waiter)
    }

    pub(crate) fn answered(&mut self, call: u64, result: Result<Reply, Error>) {
        let Some(known) = self.calls.remove(&call) else { return };
        match known {
            Call::Client { client, attempt } => self.client_answered(client, attempt, result),
            Call::Node {
                node,
                incarnation,
                chain,
                what,
            } => {
                if !self.lives(node, incarnation) {
                    return;
                }
                let input = match what {
                    For::Forward(ticket) => Input::Forwarded {
                        ticket,
                        result: result.map(|reply| matches!(reply, Reply::Forwarded(true))),
                    },
                    For::Told(ticket) => Input::ForwardDone {
                        ticket,
                        result: result.map(drop),
                    },
                    For::Dropped(ticket) => Input::ChunksDropped {
                        ticket,
                        result: result.map(drop),
                    },
                    For::Inventory(ticket) => Input::InventoryFetched {
                        ticket,
                        result: result.map(|reply| match reply {
                            Reply::Inventory(chunks, end) => (chunks, end),
                            _ => (Vec::new(), true),
                        }),
                    },
                    For::Copy(copy) => match result {
                        Ok(_) => return self.copy_on(copy),
                        Err(error) => return self.copy_ended(copy, Err(error)),
                    },
                };
                self.feed(node, chain, input);
            }
        }
    }
}

pub(crate) fn read_of(chunk: ChunkId, level: Level, not_before: ChunkVersion) -> ReadAsk {
    ReadAsk {
        chunk,
        first: BlockIndex(0),
        blocks: BLOCKS,
        level,
        not_before,
        session: SessionId::SYSTEM,
    }
}
