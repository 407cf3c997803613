//! Whole chains from one seed: nodes, a store model, a network that delays, reorders, repeats and loses, an authority that
//! changes configurations, clients that retry. A failure prints its seed; the seed is the bug report.
//!
//! Checked all the way: equal version means equal content; the store is changed in version order; an acknowledged
//! mutation is on every serving member and stays there; each request takes effect at most once; reads are neither
//! uncommitted nor stale. At the end, once everything is repaired: all replicas are identical.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::storage::{
    BlockCondition, ForwardRequest, InstallPart, MutateRequest, Mutation, StorageResponse,
};
use dfs_common::{
    BlockIndex, ChainId, ChainInfo, ChainMember, ChunkId, ChunkIndex, ChunkVersion, Epoch, Error, ErrorCode, InodeId,
    Level, MemberState, RequestId, SequenceNumber, SessionId, StorageId,
};

use super::{Answer, CopyReport, Effect, Input, Now, ReplicaCore, StoreView, Ticket, WaiterId};

const CHAIN: ChainId = ChainId(7);
const BLOCKS: u32 = 4;
const CHUNKS: u64 = 3;
const CALL_TIMEOUT_MS: u64 = 120;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Chunk {
    version: ChunkVersion,
    blocks: BTreeMap<u32, (ChunkVersion, u64)>,
    /// Every request that ever took effect, in order.
    requests: Vec<(RequestId, ChunkVersion)>,
}

#[derive(Clone, Default)]
struct Store(BTreeMap<ChunkId, Chunk>);

impl StoreView for Store {
    fn version(&self, chunk: ChunkId) -> ChunkVersion {
        self.0.get(&chunk).map_or(ChunkVersion::NONE, |chunk| chunk.version)
    }
    fn block_version(&self, chunk: ChunkId, block: BlockIndex) -> ChunkVersion {
        self.0
            .get(&chunk)
            .and_then(|chunk| chunk.blocks.get(&block.0))
            .map_or(ChunkVersion::NONE, |block| block.0)
    }
    fn remembered(&self, chunk: ChunkId, id: RequestId) -> Option<ChunkVersion> {
        let requests = &self.0.get(&chunk)?.requests;
        requests.iter().find(|(known, _)| *known == id).map(|entry| entry.1)
    }
    fn file_end(&self, _: ChainId, inode: InodeId, from: ChunkIndex) -> Option<(ChunkIndex, u32)> {
        let live = self.0.iter().rev().filter(|(_, state)| !state.blocks.is_empty());
        let mut of_inode = live.filter(|(chunk, _)| chunk.inode == inode && chunk.index >= from);
        let (chunk, state) = of_inode.next()?;
        let last = state.blocks.keys().next_back()?;
        Some((chunk.index, (last + 1) * BLOCK_SIZE_BYTES as u32))
    }
    fn chunks_of(&self, _: ChainId, inode: InodeId, from: ChunkIndex) -> Vec<ChunkId> {
        let live = self.0.iter().filter(|(_, state)| !state.blocks.is_empty());
        live.map(|(&chunk, _)| chunk)
            .filter(|chunk| chunk.inode == inode && chunk.index >= from)
            .collect()
    }
    fn list(&self, _: ChainId) -> Vec<(ChunkId, ChunkVersion)> {
        self.0.iter().map(|(&chunk, state)| (chunk, state.version)).collect()
    }
    fn is_full(&self, _: StorageId) -> bool {
        false
    }

    fn has_room(&self, _: u64) -> bool {
        true
    }
}

struct Node {
    id: StorageId,
    core: ReplicaCore,
    store: Store,
    alive: bool,
    lease: bool,
    incarnation: u64,
    next_waiter: u64,
    /// Whose call each waiter is.
    calls: BTreeMap<WaiterId, Call>,
    staged: BTreeMap<ChunkId, (ChunkVersion, Chunk)>,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Neighbour(u64),
    Mutation { client: usize, attempt: u64 },
    Sync,
    Range,
    ReadAdmitted { read: u64 },
    ReadDone { read: u64 },
}

#[derive(Clone, Debug)]
enum Message {
    Forward(ForwardRequest, Bytes),
    ForwardSync(Epoch),
    Inventory(Epoch, Option<ChunkId>),
    Install(Epoch, ChunkId, ChunkVersion, bool, bool, Box<Chunk>),
    Drop(Epoch, Vec<ChunkId>),
}

/// A call between nodes.
#[derive(Clone, Debug)]
struct Remote {
    from: usize,
    from_incarnation: u64,
    ticket: Ticket,
    message: Message,
}

#[derive(Clone, Debug)]
enum Event {
    Deliver {
        to: usize,
        call: u64,
    },
    Answer {
        call: u64,
        result: Result<Option<Vec<(ChunkId, ChunkVersion)>>, Error>,
    },
    Feed {
        node: usize,
        incarnation: u64,
        input: Box<Input>,
    },
    Apply {
        node: usize,
        incarnation: u64,
        effect: Box<Effect>,
    },
    Send {
        node: usize,
        incarnation: u64,
        ticket: Ticket,
        to: StorageId,
        message: Message,
    },
    Configure {
        node: usize,
        incarnation: u64,
        config: ChainInfo,
    },
    ResyncDone {
        node: StorageId,
        epoch: Epoch,
    },
    Client(usize),
    ClientTimeout {
        client: usize,
        attempt: u64,
    },
    ReadNow {
        read: u64,
    },
    Chaos,
    Authority,
    Tick,
    Restart(usize),
}

struct Client {
    sequence: u64,
    attempt: u64,
    config: ChainInfo,
    request: Option<(MutateRequest, Bytes)>,
    acknowledged: u64,
}

struct Read {
    node: usize,
    incarnation: u64,
    epoch: Epoch,
    chunk: ChunkId,
    /// Nothing older may be returned.
    at_least: ChunkVersion,
    seen: Option<ChunkVersion>,
}

struct World {
    random: Random,
    now: u64,
    order: u64,
    events: BinaryHeap<(std::cmp::Reverse<(u64, u64)>, u64)>,
    bodies: BTreeMap<u64, Event>,
    nodes: Vec<Node>,
    config: ChainInfo,
    clients: Vec<Client>,
    remotes: BTreeMap<u64, Remote>,
    reads: BTreeMap<u64, Read>,
    next_id: u64,
    /// What each version of each chunk is.
    contents: BTreeMap<(ChunkId, ChunkVersion), Chunk>,
    /// The newest version of each chunk that somebody was told of.
    told: BTreeMap<ChunkId, ChunkVersion>,
    acknowledged: BTreeSet<(ChunkId, RequestId)>,
    calm: bool,
    loss_percent: u64,
    completed_reads: u64,
    resyncs: u64,
}

fn payload(value: u64, blocks: u32) -> Bytes {
    let size = blocks as usize * (SEAL_SIZE_BYTES + BLOCK_SIZE_BYTES);
    let mut bytes = vec![0; size];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    Bytes::from(bytes)
}

fn mutate(state: &mut Chunk, version: ChunkVersion, id: RequestId, mutation: &Mutation, payload: &Bytes) {
    assert_eq!(
        version.counter,
        state.version.counter + 1,
        "applied out of order: {} after {}",
        version,
        state.version
    );
    assert!(version > state.version);
    state.version = version;
    match mutation {
        Mutation::Write { first, blocks, .. } => {
            let value = u64::from_le_bytes(payload[..8].try_into().unwrap());
            for block in first.0..first.0 + blocks {
                state.blocks.insert(block, (version, value));
            }
        }
        Mutation::Truncate { blocks } => state.blocks.retain(|block, _| block < blocks),
        Mutation::Remove => state.blocks.clear(),
    }
    if !id.is_system() {
        state.requests.push((id, version));
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let config = ChainInfo {
            id: CHAIN,
            epoch: Epoch(1),
            members: (1..=3)
                .map(|node| ChainMember {
                    node: StorageId(node),
                    state: MemberState::Serving,
                })
                .collect(),
        };
        let mut world = Self {
            random: Random(seed),
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            nodes: (1..=3)
                .map(|id| Node {
                    id: StorageId(id),
                    core: ReplicaCore::new(CHAIN, StorageId(id)),
                    store: Store::default(),
                    alive: true,
                    lease: true,
                    incarnation: 1,
                    next_waiter: 1,
                    calls: BTreeMap::new(),
                    staged: BTreeMap::new(),
                })
                .collect(),
            clients: (0..4)
                .map(|_| Client {
                    sequence: 0,
                    attempt: 0,
                    config: config.clone(),
                    request: None,
                    acknowledged: 0,
                })
                .collect(),
            config,
            remotes: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_id: 1,
            contents: BTreeMap::new(),
            told: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            calm: false,
            loss_percent: seed % 8,
            completed_reads: 0,
            resyncs: 0,
        };
        world.publish();
        for client in 0..world.clients.len() {
            world.after(1, 10, Event::Client(client));
        }
        world.after(50, 300, Event::Chaos);
        world.after(20, 1, Event::Authority);
        world.after(10, 1, Event::Tick);
        world
    }

    fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.push((std::cmp::Reverse((time, self.order)), self.order));
        self.bodies.insert(self.order, event);
    }

    fn after(&mut self, least: u64, spread: u64, event: Event) {
        let time = self.now + least + self.random.below(spread.max(1));
        self.at(time, event);
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Tells everybody alive of the present configuration, each at its own time.
    fn publish(&mut self) {
        for node in 0..self.nodes.len() {
            let event = Event::Configure {
                node,
                incarnation: self.nodes[node].incarnation,
                config: self.config.clone(),
            };
            self.after(1, 30, event);
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Vec<ChainMember>)) {
        change(&mut self.config.members);
        let rank = |state| match state {
            MemberState::Serving => 0,
            MemberState::Syncing => 1,
            _ => 2,
        };
        self.config.members.sort_by_key(|member| rank(member.state));
        self.config.epoch = self.config.epoch.next();
        self.publish();
    }

    fn set_state(&mut self, node: StorageId, state: MemberState) {
        self.change(|members| {
            members.retain(|member| member.node != node);
            let at = members
                .iter()
                .position(|member| member.state != MemberState::Serving)
                .unwrap_or(members.len());
            members.insert(at, ChainMember { node, state });
        });
    }

    fn suspect(&mut self, node: StorageId) {
        let serving: Vec<_> = self.config.serving().collect();
        match self.config.state_of(node) {
            Some(MemberState::Serving) if serving.len() > 1 => self.set_state(node, MemberState::Offline),
            Some(MemberState::Serving) => self.set_state(node, MemberState::LastServer),
            Some(MemberState::Syncing) => self.set_state(node, MemberState::Offline),
            _ => {}
        }
    }

    fn authority(&mut self) {
        for at in 0..self.nodes.len() {
            let (id, alive) = (self.nodes[at].id, self.nodes[at].alive);
            let state = self.config.state_of(id);
            if !alive {
                self.suspect(id);
                continue;
            }
            match state {
                Some(MemberState::LastServer) => {
                    self.set_state(id, MemberState::Serving);
                }
                Some(MemberState::Offline)
                    if self.config.head().is_some()
                        && !self.config.members.iter().any(|m| m.state == MemberState::Syncing) =>
                {
                    self.set_state(id, MemberState::Syncing);
                }
                _ => {}
            }
        }
    }

    fn chaos(&mut self) {
        if self.calm {
            return;
        }
        let at = self.random.below(3) as usize;
        if self.nodes[at].alive {
            if self.random.chance(60) {
                // Killed. What was in the page cache is still there.
                let node = &mut self.nodes[at];
                node.alive = false;
                node.calls.clear();
                node.staged.clear();
                self.after(5, 600, Event::Restart(at));
            } else {
                // Cut off from the authority: it fences itself before it is removed.
                self.nodes[at].lease = false;
                let id = self.nodes[at].id;
                self.suspect(id);
            }
        }
        self.after(100, 900, Event::Chaos);
    }

    fn restart(&mut self, at: usize) {
        let id = self.nodes[at].id;
        // A new incarnation: whatever role it had is gone before it hears of any.
        self.suspect(id);
        let node = &mut self.nodes[at];
        node.alive = true;
        node.incarnation += 1;
        node.core = ReplicaCore::new(CHAIN, id);
        node.lease = false;
        self.publish();
    }

    fn feed(&mut self, at: usize, input: Input) {
        let node = &mut self.nodes[at];
        let now = Now {
            ms: self.now,
            lease: node.lease,
        };
        let effects = node.core.step(now, input, &node.store);
        let incarnation = node.incarnation;
        for effect in effects {
            self.effect(at, incarnation, effect);
        }
    }

    fn effect(&mut self, node: usize, incarnation: u64, effect: Effect) {
        let send = |world: &mut Self, ticket, to, message, after_ms: u64| {
            let event = Event::Send {
                node,
                incarnation,
                ticket,
                to,
                message,
            };
            world.after(after_ms, 2, event);
        };
        match effect {
            Effect::Apply { after_ms, .. } => {
                let event = Event::Apply {
                    node,
                    incarnation,
                    effect: Box::new(effect),
                };
                self.after(after_ms, 4, event);
            }
            Effect::Sync { ticket } => {
                let input = Box::new(Input::Synced { ticket, result: Ok(()) });
                self.after(
                    1,
                    8,
                    Event::Feed {
                        node,
                        incarnation,
                        input,
                    },
                );
            }
            Effect::Forward {
                ticket,
                to,
                request,
                payload,
                after_ms,
            } => send(self, ticket, to, Message::Forward(request, payload), after_ms),
            Effect::ForwardSync {
                ticket,
                to,
                epoch,
                after_ms,
            } => send(self, ticket, to, Message::ForwardSync(epoch), after_ms),
            Effect::FetchInventory {
                ticket,
                to,
                epoch,
                after,
                after_ms,
            } => send(self, ticket, to, Message::Inventory(epoch, after), after_ms),
            Effect::DropChunks {
                ticket,
                to,
                epoch,
                chunks,
                after_ms,
            } => send(self, ticket, to, Message::Drop(epoch, chunks), after_ms),
            Effect::CopyChunk {
                ticket,
                to,
                epoch,
                chunk,
                after_ms,
            } => {
                let copy = self.nodes[node].store.0.get(&chunk).cloned().unwrap_or_default();
                let single = self.random.chance(50);
                let message = Message::Install(epoch, chunk, copy.version, true, single, Box::new(copy));
                send(self, ticket, to, message, after_ms);
            }
            Effect::ReportResyncDone { to, epoch } => {
                self.after(1, 40, Event::ResyncDone { node: to, epoch });
            }
            Effect::Answer { waiter, answer } => self.answered(node, waiter, answer),
            Effect::Fault(reason) => panic!("storage-{} gave up: {reason}", node + 1),
            Effect::List { waiter, after, limit } => {
                let listed = self.nodes[node].store.list(CHAIN);
                // Small pages, so that several are needed.
                let chunks: Vec<_> = listed
                    .into_iter()
                    .filter(|&(chunk, _)| Some(chunk) > after)
                    .take((limit as usize).min(2))
                    .collect();
                if let Some(Call::Neighbour(call)) = self.nodes[node].calls.remove(&waiter) {
                    self.reply(call, Ok(Some(chunks)));
                }
            }
            Effect::Install {
                ticket,
                chunk,
                version,
                part,
                payload,
            } => {
                // The call's own content travels beside the message: see `deliver`.
                let copy = u64::from_le_bytes(payload[..8].try_into().unwrap());
                let Some(Message::Install(_, _, _, _, _, content)) =
                    self.remotes.get(&copy).map(|remote| remote.message.clone())
                else {
                    return;
                };
                let node_state = &mut self.nodes[node];
                if part.begin {
                    node_state.staged.insert(chunk, (version, (*content).clone()));
                }
                let mut result = Ok(());
                if part.done {
                    match node_state.staged.remove(&chunk) {
                        Some((staged, content)) if staged == version => {
                            check_content(&mut self.contents, chunk, &content);
                            self.nodes[node].store.0.insert(chunk, content);
                        }
                        _ => result = Err(Error::new(ErrorCode::OutOfOrder, "nothing staged")),
                    }
                }
                self.feed(node, Input::InstallDone { ticket, result });
            }
            Effect::Drop { ticket, chunks } => {
                for chunk in chunks {
                    self.nodes[node].store.0.remove(&chunk);
                }
                self.feed(node, Input::InstallDone { ticket, result: Ok(()) });
            }
        }
    }

    fn apply(&mut self, at: usize, effect: Effect) {
        let Effect::Apply {
            ticket,
            chunk,
            version,
            id,
            mutation,
            payload,
            ..
        } = effect
        else {
            return;
        };
        let state = self.nodes[at].store.0.entry(chunk).or_default();
        mutate(state, version, id, &mutation, &payload);
        let state = state.clone();
        check_content(&mut self.contents, chunk, &state);
        self.feed(at, Input::Applied { ticket, result: Ok(()) });
    }

    fn send(&mut self, from: usize, ticket: Ticket, to: StorageId, message: Message) {
        let call = self.id();
        let remote = Remote {
            from,
            from_incarnation: self.nodes[from].incarnation,
            ticket,
            message,
        };
        self.remotes.insert(call, remote);
        let to = to.0 as usize - 1;
        let losses = if self.calm { 0 } else { self.loss_percent };
        if !self.random.chance(losses) {
            self.after(1, 12, Event::Deliver { to, call });
        }
        if self.random.chance(losses) {
            // Once more, and late.
            self.after(1, 200, Event::Deliver { to, call });
        }
        let error = Error::new(ErrorCode::Timeout, "simulated");
        let event = Event::Answer {
            call,
            result: Err(error),
        };
        self.at(self.now + CALL_TIMEOUT_MS, event);
    }

    fn deliver(&mut self, to: usize, call: u64) {
        let Some(remote) = self.remotes.get(&call).cloned() else {
            return;
        };
        if !self.nodes[to].alive {
            return;
        }
        let waiter = self.waiter(to, Call::Neighbour(call));
        let from = self.nodes[remote.from].id;
        let input = match remote.message {
            Message::Forward(request, payload) => Input::Forward {
                from,
                waiter,
                request,
                payload,
            },
            Message::ForwardSync(epoch) => Input::ForwardSync { from, epoch, waiter },
            Message::Inventory(epoch, after) => Input::Inventory {
                from,
                epoch,
                waiter,
                after,
                limit: 100,
            },
            Message::Install(epoch, chunk, version, begin, done, _) => Input::Install {
                from,
                epoch,
                waiter,
                chunk,
                version,
                part: InstallPart {
                    begin,
                    done,
                    runs: Vec::new(),
                    remembered: Vec::new(),
                },
                payload: Bytes::copy_from_slice(&call.to_le_bytes()),
            },
            Message::Drop(epoch, chunks) => Input::Drop {
                from,
                epoch,
                waiter,
                chunks,
            },
        };
        self.feed(to, input);
    }

    fn waiter(&mut self, at: usize, call: Call) -> WaiterId {
        let node = &mut self.nodes[at];
        let waiter = WaiterId(node.next_waiter);
        node.next_waiter += 1;
        node.calls.insert(waiter, call);
        waiter
    }

    fn reply(&mut self, call: u64, result: Result<Option<Vec<(ChunkId, ChunkVersion)>>, Error>) {
        let losses = if self.calm { 0 } else { self.loss_percent };
        if !self.random.chance(losses) {
            self.after(1, 12, Event::Answer { call, result });
        }
    }

    fn answered(&mut self, at: usize, waiter: WaiterId, answer: Result<Answer, Error>) {
        let Some(call) = self.nodes[at].calls.remove(&waiter) else {
            return;
        };
        match call {
            Call::Neighbour(call) => self.reply(call, answer.map(|_| None)),
            Call::Mutation { client, attempt } => match answer {
                Ok(Answer::Response(StorageResponse::Mutated { version })) => {
                    self.acknowledged(client, attempt, version);
                }
                Ok(other) => panic!("a mutation answered with {other:?}"),
                Err(error) => self.client_failed(client, attempt, &error),
            },
            Call::Sync | Call::Range => {}
            Call::ReadAdmitted { read } => {
                if answer.is_ok() {
                    self.after(0, 5, Event::ReadNow { read });
                } else {
                    self.reads.remove(&read);
                }
            }
            Call::ReadDone { read } => {
                let Some(read) = self.reads.remove(&read) else {
                    return;
                };
                if answer.is_ok() {
                    let seen = read.seen.expect("read before it was done");
                    assert!(
                        seen >= read.at_least,
                        "stale read of {}: {seen}, but {} was told before",
                        read.chunk,
                        read.at_least
                    );
                    self.tell(read.chunk, seen);
                    self.completed_reads += 1;
                }
            }
        }
    }

    /// Somebody now knows of this version, so every serving member must have it from now on, if only staged: a member
    /// forwards while it applies.
    fn tell(&mut self, chunk: ChunkId, version: ChunkVersion) {
        let told = self.told.entry(chunk).or_default();
        *told = (*told).max(version);
        let serving: Vec<_> = self.config.serving().collect();
        for member in serving {
            let node = &self.nodes[member.0 as usize - 1];
            let has = match node.core.queues.get(&chunk) {
                Some(queue) => queue.latest(chunk, &node.store),
                _ => node.store.version(chunk),
            };
            if !node.alive {
                continue;
            }
            assert!(
                has >= version,
                "storage-{member} serves {chunk} at {has}, {version} was told"
            );
        }
    }

    fn acknowledged(&mut self, client: usize, attempt: u64, version: ChunkVersion) {
        if self.clients[client].attempt != attempt {
            return;
        }
        let Some((request, _)) = self.clients[client].request.take() else {
            return;
        };
        self.clients[client].acknowledged += 1;
        self.acknowledged.insert((request.chunk, request.id));
        self.tell(request.chunk, version);
        self.after(1, 6, Event::Client(client));
    }

    fn client_failed(&mut self, client: usize, attempt: u64, error: &Error) {
        if self.clients[client].attempt != attempt || self.clients[client].request.is_none() {
            return;
        }
        self.clients[client].attempt += 1;
        if error.code == ErrorCode::ConditionFailed {
            self.clients[client].request = None;
        }
        assert_ne!(error.code, ErrorCode::BadMessage, "{error}");
        self.clients[client].config = self.config.clone();
        self.after(2, 20, Event::Client(client));
    }

    fn client(&mut self, at: usize) {
        if self.clients[at].request.is_none() {
            if self.calm {
                return;
            }
            let request = self.make_request(at);
            self.clients[at].request = Some(request);
            self.clients[at].sequence += 1;
        }
        let epoch = self.clients[at].config.epoch;
        let attempt = self.clients[at].attempt;
        let Some((request, payload)) = &mut self.clients[at].request else {
            return;
        };
        request.epoch = epoch;
        let (request, payload) = (request.clone(), payload.clone());
        self.at(self.now + 200, Event::ClientTimeout { client: at, attempt });
        let Some(head) = self.clients[at].config.head() else {
            return;
        };
        let head = head.0 as usize - 1;
        if !self.nodes[head].alive {
            return;
        }
        let waiter = self.waiter(head, Call::Mutation { client: at, attempt });
        self.feed(
            head,
            Input::Mutate {
                waiter,
                request,
                payload,
            },
        );
        if self.random.chance(10) {
            let waiter = self.waiter(head, Call::Sync);
            self.feed(head, Input::Sync { epoch, waiter });
        }
        if self.random.chance(2) {
            let waiter = self.waiter(head, Call::Range);
            let inodes = vec![InodeId(1 + self.random.below(CHUNKS))];
            let from = ChunkIndex(0);
            self.feed(
                head,
                Input::RemoveRange {
                    epoch,
                    waiter,
                    inodes,
                    from,
                },
            );
        }
        self.start_read(at);
    }

    fn make_request(&mut self, at: usize) -> (MutateRequest, Bytes) {
        // New chunks keep coming, so that resyncs have something to drop and create.
        let inode = 1 + self.random.below(CHUNKS + self.now / 1_000);
        let chunk = ChunkId::new(InodeId(inode), ChunkIndex(0));
        let value = self.random.next();
        let (mutation, payload) = match self.random.below(10) {
            0 => (Mutation::Remove, Bytes::new()),
            1 => (
                Mutation::Truncate {
                    blocks: self.random.below(u64::from(BLOCKS)) as u32,
                },
                Bytes::new(),
            ),
            kind => {
                let first = self.random.below(u64::from(BLOCKS)) as u32;
                let blocks = 1 + self.random.below(u64::from(BLOCKS - first)) as u32;
                let conditions = if kind < 4 {
                    let any = self.random.below(3) as usize;
                    let version = self.nodes[any].store.block_version(chunk, BlockIndex(first));
                    vec![BlockCondition {
                        block: BlockIndex(first),
                        version,
                    }]
                } else {
                    Vec::new()
                };
                let mutation = Mutation::Write {
                    first: BlockIndex(first),
                    blocks,
                    last_length_bytes: BLOCK_SIZE_BYTES as u32,
                    conditions,
                };
                (mutation, payload(value, blocks))
            }
        };
        let request = MutateRequest {
            chain: CHAIN,
            epoch: Epoch(0),
            chunk,
            id: RequestId {
                session: SessionId(at as u64 + 1),
                channel: 0,
                sequence: SequenceNumber(self.clients[at].sequence),
            },
            level: if self.random.chance(20) {
                Level::One
            } else {
                Level::Quorum
            },
            sync: self.random.chance(30),
            mutation,
        };
        (request, payload)
    }

    fn start_read(&mut self, client: usize) {
        let config = self.clients[client].config.clone();
        let serving: Vec<_> = config.serving().collect();
        if serving.is_empty() {
            return;
        }
        let node = serving[self.random.below(serving.len() as u64) as usize].0 as usize - 1;
        if !self.nodes[node].alive {
            return;
        }
        let chunk = ChunkId::new(InodeId(1 + self.random.below(CHUNKS)), ChunkIndex(0));
        let read = self.id();
        self.reads.insert(
            read,
            Read {
                node,
                incarnation: self.nodes[node].incarnation,
                epoch: config.epoch,
                chunk,
                at_least: self.told.get(&chunk).copied().unwrap_or_default(),
                seen: None,
            },
        );
        let waiter = self.waiter(node, Call::ReadAdmitted { read });
        self.feed(
            node,
            Input::AdmitRead {
                epoch: config.epoch,
                waiter,
                chunk,
                first: BlockIndex(0),
                blocks: BLOCKS,
            },
        );
    }

    fn read_now(&mut self, id: u64) {
        let Some(read) = self.reads.get_mut(&id) else {
            return;
        };
        let (node, epoch, chunk) = (read.node, read.epoch, read.chunk);
        if self.nodes[node].incarnation != read.incarnation || !self.nodes[node].alive {
            self.reads.remove(&id);
            return;
        }
        let version = self.nodes[node].store.version(chunk);
        read.seen = Some(version);
        let waiter = self.waiter(node, Call::ReadDone { read: id });
        self.feed(
            node,
            Input::ReadDone {
                epoch,
                waiter,
                chunk,
                first: BlockIndex(0),
                blocks: BLOCKS,
                version,
            },
        );
    }

    /// The end of a call, at the caller: an answer, or its deadline.
    fn call_ended(&mut self, call: u64, result: Result<Option<Vec<(ChunkId, ChunkVersion)>>, Error>) {
        let Some(remote) = self.remotes.remove(&call) else {
            return;
        };
        // A late copy of the request may still be on its way.
        if matches!(remote.message, Message::Install(..)) {
            let mut late = remote.clone();
            late.from_incarnation = u64::MAX;
            self.remotes.insert(call, late);
        }
        let at = remote.from;
        if !self.nodes[at].alive || self.nodes[at].incarnation != remote.from_incarnation {
            return;
        }
        let ticket = remote.ticket;
        let input = match remote.message {
            Message::Forward(..) | Message::ForwardSync(_) => Input::ForwardDone {
                ticket,
                result: result.map(|_| ()),
            },
            Message::Inventory(..) => Input::InventoryFetched {
                ticket,
                result: result.map(|chunks| {
                    let chunks = chunks.unwrap_or_default();
                    let end = chunks.len() < 2;
                    (chunks, end)
                }),
            },
            Message::Drop(..) => Input::ChunksDropped {
                ticket,
                result: result.map(|_| ()),
            },
            Message::Install(epoch, chunk, version, _, done, content) => {
                if self.nodes[at].core.epoch() == epoch {
                    assert_eq!(
                        self.nodes[at].store.version(chunk),
                        version,
                        "changed while it was copied"
                    );
                }
                if result.is_ok() && !done {
                    let to = self.config.members.iter().find(|m| m.state == MemberState::Syncing);
                    if let Some(to) = to.map(|member| member.node) {
                        let message = Message::Install(epoch, chunk, version, false, true, content);
                        return self.send(at, ticket, to, message);
                    }
                }
                self.resyncs += u64::from(result.is_ok());
                Input::Copied {
                    ticket,
                    result: result.and_then(|_| {
                        if done {
                            Ok(CopyReport { version, size_bytes: 1 })
                        } else {
                            Err(Error::new(ErrorCode::Unreachable, "the member is gone"))
                        }
                    }),
                }
            }
        };
        self.feed(at, input);
    }

    fn run(&mut self, until: u64) {
        while let Some((std::cmp::Reverse((time, _)), order)) = self.events.pop() {
            let Some(event) = self.bodies.remove(&order) else {
                continue;
            };
            if time > until {
                self.at(time, event);
                self.now = until;
                return;
            }
            self.now = time;
            self.event(event);
        }
    }

    fn lives(&self, node: usize, incarnation: u64) -> bool {
        self.nodes[node].alive && self.nodes[node].incarnation == incarnation
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Deliver { to, call } => self.deliver(to, call),
            Event::Answer { call, result } => self.call_ended(call, result),
            Event::Feed {
                node,
                incarnation,
                input,
            } if self.lives(node, incarnation) => self.feed(node, *input),
            Event::Apply {
                node,
                incarnation,
                effect,
            } if self.lives(node, incarnation) => self.apply(node, *effect),
            Event::Send {
                node,
                incarnation,
                ticket,
                to,
                message,
            } if self.lives(node, incarnation) => self.send(node, ticket, to, message),
            Event::Configure {
                node,
                incarnation,
                config,
            } if self.lives(node, incarnation) => {
                // A lease comes with the newest configuration, never before it.
                let state = config.state_of(self.nodes[node].id);
                let takes_part = matches!(state, Some(MemberState::Serving | MemberState::Syncing));
                if takes_part && config.epoch == self.config.epoch {
                    self.feed(node, Input::Configure(config));
                    self.nodes[node].lease = true;
                } else {
                    self.feed(node, Input::Configure(config));
                }
            }
            Event::ResyncDone { node, epoch } => {
                if self.config.epoch == epoch && self.config.state_of(node) == Some(MemberState::Syncing) {
                    self.set_state(node, MemberState::Serving);
                }
            }
            Event::Client(client) => self.client(client),
            Event::ClientTimeout { client, attempt } => {
                let error = Error::new(ErrorCode::Timeout, "simulated");
                self.client_failed(client, attempt, &error);
            }
            Event::ReadNow { read } => self.read_now(read),
            Event::Chaos => self.chaos(),
            Event::Authority => {
                self.authority();
                self.after(20, 60, Event::Authority);
            }
            Event::Tick => {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].alive {
                        self.feed(node, Input::Tick);
                    }
                }
                self.after(25, 1, Event::Tick);
            }
            Event::Restart(node) => self.restart(node),
            // Of a process that is gone.
            Event::Feed { .. } | Event::Apply { .. } | Event::Send { .. } | Event::Configure { .. } => {}
        }
    }
}

fn check_content(contents: &mut BTreeMap<(ChunkId, ChunkVersion), Chunk>, chunk: ChunkId, state: &Chunk) {
    let known = contents.entry((chunk, state.version)).or_insert_with(|| state.clone());
    assert_eq!(known, state, "two contents of {chunk} at {}", state.version);
    let ids: BTreeSet<_> = state.requests.iter().map(|entry| entry.0).collect();
    assert_eq!(
        ids.len(),
        state.requests.len(),
        "a request took effect twice in {chunk}"
    );
}

fn simulate(seed: u64) -> (u64, u64, u64) {
    let mut world = World::new(seed);
    world.run(6_000);
    // Everything is repaired, and nobody starts anything new.
    world.calm = true;
    world.run(12_000);
    assert!(
        world
            .config
            .members
            .iter()
            .all(|member| member.state == MemberState::Serving),
        "not repaired: {:?}",
        world.config
    );
    for client in &world.clients {
        assert!(
            client.request.is_none(),
            "a request was never answered: {:?}",
            client.request
        );
    }
    for node in &world.nodes {
        assert!(node.core.is_idle(), "storage-{} has something pending", node.id);
        assert_eq!(node.store.0, world.nodes[0].store.0, "storage-{} differs", node.id);
    }
    for (chunk, id) in &world.acknowledged {
        let kept = world.nodes[0].store.remembered(*chunk, *id).is_some();
        assert!(kept, "acknowledged {id:?} of {chunk} is gone");
    }
    let acknowledged = world.clients.iter().map(|client| client.acknowledged).sum();
    (acknowledged, world.completed_reads, world.resyncs)
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a seed to run again is given from outside")]
fn chains_keep_their_promises_whatever_happens() {
    let seeds = std::env::var("DFS_SEED").map_or(1..301, |seed| {
        let seed: u64 = seed.parse().unwrap();
        seed..seed + 1
    });
    let (mut acknowledged, mut reads, mut resyncs) = (0, 0, 0);
    for seed in seeds.clone() {
        let run = std::panic::catch_unwind(|| simulate(seed));
        let (a, r, s) = run.unwrap_or_else(|_| panic!("seed {seed}: rerun with DFS_SEED={seed}"));
        acknowledged += a;
        reads += r;
        resyncs += s;
    }
    let runs = seeds.end - seeds.start;
    println!("{runs} runs: {acknowledged} mutations acknowledged, {reads} reads, {resyncs} chunks copied");
    // The runs do something.
    assert!(acknowledged > 100 * runs && reads > 50 * runs && (runs == 1 || resyncs > runs));
}
