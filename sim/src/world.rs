//! The world of one seed: virtual time, one queue of events, and everybody in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_common::{
    ChainId, ChunkId, ChunkIndex, ClusterId, CutEpoch, Error, ErrorCode, Incarnation, InodeId, MemberState, StorageId,
    StoreId,
};
use dfs_storage::Lease;
use dfs_storage::condemned::chains_that_need;
use dfs_storage::disk::sim::Image;
use dfs_storage::disk::{Disk as _, SimDisk};
use dfs_storage::replica::Input;
use dfs_storage::store::{ChunkStore, StoreError, StoreOptions};

use crate::Violation;
use crate::clients::Client;
use crate::copying::Copy;
use crate::event::Event;
use crate::group::Group;
use crate::invariants::Watch;
use crate::messages::Call;
use crate::names::Namer;
use crate::network::Network;
use crate::node::Node;
use crate::random::Random;
use crate::schedule::{CHUNKS, CLIENTS, DOOMED, Kind, NAMERS, NODES, STORM_MS, Schedule};
use crate::trace::Trace;

pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);

/// After the last fault everything must be well again within this.
const CALM_MS: u64 = 90_000;

/// Small, so that logs roll over, checkpoint and compact within seconds.
const SEGMENT_SIZE_BYTES: u32 = 64 << 10;
const CAPACITY_BYTES: u64 = 4 << 20;
/// As the real shell has it.
const TICK_MS: u64 = 20;

const CHECKPOINT_BYTES: u64 = 192 << 10;

pub struct World {
    pub(crate) schedule: Schedule,
    pub(crate) random: Random,
    pub(crate) now: u64,
    /// Rises with every event: the clock of histories.
    pub(crate) tick: u64,
    order: u64,
    events: BTreeMap<(u64, u64), Event>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) group: Group,
    pub(crate) clients: Vec<Client>,
    pub(crate) namers: Vec<Namer>,
    pub(crate) network: Network,
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) copies: BTreeMap<u64, Copy>,
    next_id: u64,
    pub(crate) calm: bool,
    pub(crate) fired: BTreeMap<Kind, u64>,
    pub(crate) stood_still_ms: u64,
    pub(crate) watch: Watch,
    /// The truncation epoch of each chunk's file, as its row in the metadata group has it.
    pub(crate) rows: Vec<CutEpoch>,
    /// Chunks whose tombstone some member has forgotten.
    pub(crate) forgotten: BTreeSet<ChunkId>,
    pub(crate) undecided: u64,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<Violation>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("now", &self.now).finish_non_exhaustive()
    }
}

/// The chunk of that number; each chain has every second one.
pub(crate) const fn chunk_id(chunk: u64) -> ChunkId {
    ChunkId::new(InodeId(100 + chunk), ChunkIndex(0))
}

pub(crate) const fn chain_of(chunk: u64) -> ChainId {
    ChainId(1 + (chunk % 2) as u32)
}

/// A node that lacks something at its start tries again.
const OPEN_AGAIN_MS: u64 = 100;

/// A node with a condemned store asks this often whether others have what is in it.
const ASK_MS: u64 = 200;

/// An administrator trusts a store that waited so often.
const TRUSTED_AFTER: u32 = 15;

/// As in the service: the first store is not emptied but set aside.
const COPIES_TO_SET_ASIDE: usize = 1;

pub(crate) fn open_store(
    disk: &SimDisk,
    id: StorageId,
    incarnation: u64,
) -> Result<(ChunkStore, BTreeSet<ChunkId>), dfs_storage::store::StoreError> {
    let options = StoreOptions {
        // Nothing else makes one in this very process.
        new_store: StoreId(u128::from(incarnation).to_le_bytes()),
        segment_size_bytes: SEGMENT_SIZE_BYTES,
        checkpoint_interval_bytes: CHECKPOINT_BYTES,
        // In the machine's own time, not the simulated one.
        patience: std::time::Duration::ZERO,
        ..StoreOptions::new(CLUSTER, id, CAPACITY_BYTES)
    };
    let (store, report) = ChunkStore::open(Arc::new(disk.clone()), options)?;
    Ok((store, report.rot.iter().filter_map(|rot| rot.chunk).collect()))
}

impl World {
    pub fn new(schedule: &Schedule, words: bool) -> Self {
        let mut world = Self {
            random: Random::new(schedule.seed),
            now: 1_000,
            tick: 0,
            order: 0,
            events: BTreeMap::new(),
            nodes: (0..NODES)
                .map(|at| Node {
                    id: StorageId(at as u32 + 1),
                    disk: SimDisk::new(),
                    store: None,
                    incarnation: 0,
                    paused_until_ms: 0,
                    slow: (0, 0),
                    clock: (0, 77 * (at as u64 + 1), 1_000),
                    lease: Lease::new(),
                    fault: None,
                    chains: BTreeMap::new(),
                    table: Arc::default(),
                    full: BTreeSet::new(),
                    rotten: BTreeSet::new(),
                    fetching: false,
                    lossy: BTreeMap::new(),
                    sync_fails: false,
                    waits: 0,
                    due: Vec::new(),
                })
                .collect(),
            group: Group::new(1_000),
            clients: (0..CLIENTS).map(|at| Client::new(at as u64 + 1)).collect(),
            namers: (0..NAMERS).map(Namer::new).collect(),
            network: Network::default(),
            calls: BTreeMap::new(),
            copies: BTreeMap::new(),
            next_id: 1,
            calm: false,
            fired: BTreeMap::new(),
            stood_still_ms: 0,
            watch: Watch::default(),
            rows: vec![CutEpoch::NONE; (CHUNKS + DOOMED) as usize],
            forgotten: BTreeSet::new(),
            undecided: 0,
            trace: Trace::new(words),
            violation: None,
            schedule: schedule.clone(),
        };
        for node in 0..NODES {
            world.start(node);
        }
        for at in 0..world.schedule.steps.len() {
            let time = 1_000 + world.schedule.steps[at].at_ms;
            world.at(time, Event::Step(at));
        }
        world.after(25, Event::Ticks);
        world.after(700, Event::Upkeep);
        world.after(25, Event::GroupTick);
        world
    }

    pub(crate) fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.insert((time.max(self.now), self.order), event);
    }

    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now + ms, event);
    }

    pub(crate) const fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn fired(&mut self, kind: Kind) {
        *self.fired.entry(kind).or_default() += 1;
    }

    pub(crate) fn fail(&mut self, invariant: &'static str, detail: impl Into<String>) {
        if self.violation.is_none() {
            let detail = detail.into();
            self.trace
                .say(format!("{:>8} ms  VIOLATION of {invariant}: {detail}", self.now));
            self.violation = Some(Violation { invariant, detail });
        }
    }

    pub(crate) fn note(&mut self, place: usize, kind: &'static str, a: u64, b: u64) {
        self.trace.note(self.now, place as u64, kind, a, b);
    }

    /// Starts a process of the node over its disk.
    pub(crate) fn start(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        node.incarnation += 1;
        let (store, rotten) = match open_store(&node.disk, node.id, node.incarnation) {
            Ok(opened) => opened,
            Err(StoreError::NotNow { .. }) => {
                let incarnation = node.incarnation;
                return self.after(OPEN_AGAIN_MS, Event::Restart { node: at, incarnation });
            }
            Err(_) => {
                let Some(opened) = self.open_condemned(at) else {
                    let incarnation = self.nodes[at].incarnation;
                    return self.after(ASK_MS, Event::Restart { node: at, incarnation });
                };
                opened
            }
        };
        let node = &mut self.nodes[at];
        node.store = Some(store);
        node.rotten = rotten;
        node.lease = Lease::new();
        node.fault = None;
        node.chains.clear();
        node.table = Arc::default();
        node.full.clear();
        node.fetching = false;
        node.paused_until_ms = now;
        let incarnation = node.incarnation;
        self.note(at, "start", incarnation, 0);
        self.after(1, Event::Beat { node: at, incarnation });
    }

    /// Emptied, if others have what is in it; else, after a while, as an administrator has it
    /// opened who trusts it.
    fn open_condemned(&mut self, at: usize) -> Option<(ChunkStore, BTreeSet<ChunkId>)> {
        let table = self.group.decided();
        let node = &mut self.nodes[at];
        let may_be_emptied = chains_that_need(&table, node.id, COPIES_TO_SET_ASIDE).is_empty();
        if may_be_emptied {
            node.disk = SimDisk::new();
        } else {
            node.waits += 1;
            let marked = ChunkStore::poisoned(&node.disk).is_ok_and(|reason| reason.is_some());
            if node.waits < TRUSTED_AFTER || !marked {
                return None;
            }
            // What is read shall come from the medium.
            node.disk = node.disk.image(Image::Power);
            let _ = node.disk.remove(ChunkStore::FAULT_MARK);
        }
        (node.waits, node.sync_fails) = (0, false);
        let incarnation = node.incarnation - 1;
        let chains = table.chains.keys();
        node.lossy.extend(chains.map(|&chain| (chain, incarnation)));
        match open_store(&node.disk, node.id, node.incarnation) {
            Ok(opened) => Some(opened),
            Err(error) => {
                self.fail("start", format!("storage-{} does not open: {error}", at + 1));
                None
            }
        }
    }

    /// Its store gave up, in this process or in one before.
    pub(crate) fn is_condemned(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        node.fault.is_some() || node.waits > 0
    }

    /// The process is gone, with all that it had in memory.
    pub(crate) fn stop(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.store = None;
        node.chains.clear();
        node.lease.revoke();
        let incarnation = node.incarnation;
        self.copies.retain(|_, copy| copy.node != at);
        self.note(at, "stop", incarnation, 0);
    }

    pub(crate) fn lives(&self, node: usize, incarnation: u64) -> bool {
        let state = &self.nodes[node];
        state.is_up() && state.incarnation == incarnation
    }

    /// Whose event this is, if somebody's who may stand still.
    const fn stands_still(event: &Event) -> Option<usize> {
        match *event {
            Event::Deliver { to, .. } => Some(to),
            Event::Carry { node, .. }
            | Event::CopyOn { node, .. }
            | Event::ReadNow { node, .. }
            | Event::Beat { node, .. }
            | Event::BeatAnswered { node, .. }
            | Event::Table { node, .. } => Some(node),
            _ => None,
        }
    }

    /// One event; `false` when there is nothing more before `until`.
    fn step(&mut self, until: u64) -> bool {
        let Some((&(time, order), _)) = self.events.first_key_value() else {
            return false;
        };
        if time > until || self.violation.is_some() {
            return false;
        }
        let Some(event) = self.events.remove(&(time, order)) else {
            return false;
        };
        self.now = time;
        self.tick += 1;
        let still = match &event {
            Event::Answer { call, .. } => self.calls.get(call).and_then(Call::node),
            event => Self::stands_still(event),
        };
        if let Some(node) = still
            && self.nodes[node].paused_until_ms > time
        {
            let until = self.nodes[node].paused_until_ms;
            self.at(until, event);
            return true;
        }
        self.event(event);
        true
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Deliver {
                to,
                from,
                call,
                request,
                tries,
            } => self.deliver(to, from, call, request, tries),
            Event::Answer { call, result } => self.answered(call, *result),
            Event::Carry {
                node,
                incarnation,
                chain,
                effect,
            } => {
                if self.lives(node, incarnation) {
                    self.carry(node, chain, *effect);
                }
            }
            Event::CopyOn {
                node,
                incarnation,
                copy,
            } => {
                if self.lives(node, incarnation) {
                    self.copy_on(copy);
                }
            }
            Event::ReadNow {
                node,
                incarnation,
                chain,
                call,
                request,
            } => {
                if self.lives(node, incarnation) {
                    self.read_now(node, chain, call, request);
                }
            }
            Event::Beat { node, incarnation } => {
                if self.lives(node, incarnation) {
                    self.beat(node);
                }
            }
            Event::BeatHeard {
                node,
                incarnation,
                heartbeat,
                sent_ms,
            } => self.beat_heard(node, incarnation, &heartbeat, sent_ms),
            Event::BeatAnswered {
                node,
                incarnation,
                lease,
                full,
                table,
                sent_ms,
            } => {
                if self.lives(node, incarnation) {
                    if let Some(table) = table {
                        self.learn(node, &table);
                    }
                    self.nodes[node].full = full;
                    if lease {
                        self.nodes[node].lease.renew(sent_ms);
                    }
                }
            }
            Event::Table {
                node,
                incarnation,
                table,
            } => {
                if self.lives(node, incarnation) {
                    self.nodes[node].fetching = false;
                    self.learn(node, &table);
                }
            }
            Event::Resynced {
                node,
                incarnation,
                chain,
                to,
                epoch,
            } => {
                if self.lives(node, incarnation) {
                    self.report_resynced(node, chain, to, epoch);
                }
            }
            Event::Died { node, incarnation } => self.died(node, incarnation),
            Event::Ticks => {
                for node in 0..NODES {
                    if !self.nodes[node].is_up() || self.nodes[node].paused_until_ms > self.now {
                        continue;
                    }
                    let chains: Vec<_> = self.nodes[node]
                        .chains
                        .iter()
                        .filter(|(_, member)| member.core.wants_tick())
                        .map(|(&id, _)| id)
                        .collect();
                    for chain in chains {
                        self.feed(node, chain, Input::Tick);
                    }
                }
                self.after(TICK_MS, Event::Ticks);
            }
            Event::Upkeep => {
                for node in 0..NODES {
                    if let Some(store) = &self.nodes[node].store
                        && self.nodes[node].paused_until_ms <= self.now
                    {
                        // Its trouble shows in `fault`, which heartbeats report.
                        let _ = store.maintain(&|_| Some(std::time::Duration::ZERO));
                    }
                }
                self.after(700, Event::Upkeep);
            }
            Event::GroupTick => self.group_tick(),
            Event::Commit { term, proposal } => self.commit(term, proposal),
            Event::Apply { server, generation } => self.group.apply(server, generation),
            Event::Elected { term } => self.elected(term),
            Event::MetaUp { server } => self.meta_up(server),
            Event::Restart { node, incarnation } => {
                if self.nodes[node].incarnation == incarnation && !self.nodes[node].is_up() {
                    self.start(node);
                }
            }
            Event::Client { client } => self.client(client),
            Event::ClientDeadline { client, attempt } => {
                let error = Error::new(ErrorCode::Timeout, "simulated");
                self.client_answered(client, attempt, Err(error));
            }
            Event::Resend { client, attempt } => self.resend(client, attempt),
            Event::Namer { namer, attempt } => self.namer(namer, attempt),
            Event::NameAnswer {
                namer,
                attempt,
                outcome,
            } => self.name_answered(namer, attempt, *outcome),
            Event::Step(at) => self.do_step(at),
            Event::Undo(undo) => self.undo(undo),
        }
    }

    /// Hours pass and no machine runs: every clock is that much later, and what was on its way arrives then.
    pub(crate) fn stand_still(&mut self, ms: u64) {
        let events = std::mem::take(&mut self.events);
        for ((time, order), event) in events {
            self.events.insert((time + ms, order), event);
        }
        self.group.stood_still(ms);
        self.now += ms;
    }

    pub(crate) fn run(&mut self, until: u64) {
        while self.step(until) {}
    }

    fn do_step(&mut self, at: usize) {
        use crate::schedule::What;
        match self.schedule.steps[at].what {
            What::Fault(fault) => self.strike(fault),
            What::Client { client, op } => {
                self.clients[client].queue.push_back(op);
                self.client(client);
            }
            What::Name { namer } => {
                self.namers[namer].wanted += 1;
                self.namer(namer, u64::MAX);
            }
        }
    }

    pub(crate) fn hears(&self, from: usize, to: usize) -> bool {
        self.network.hears(from, to, self.now)
    }

    /// Whether everything is as it should be when nothing is wrong any more.
    fn is_well(&self) -> Option<String> {
        let Some(table) = self.group.routing() else {
            return Some("the metadata group has no leader".into());
        };
        if table.chains.is_empty() {
            return Some("there are no chains".into());
        }
        for chain in table.chains.values() {
            if !chain.members.iter().all(|member| member.state == MemberState::Serving) {
                return Some(format!("a chain is not whole: {chain:?}"));
            }
            for node in &self.nodes {
                // A process that the group has not heard of yet knows no chain.
                if node
                    .chains
                    .get(&chain.id)
                    .is_none_or(|member| member.core.epoch() != chain.epoch || !member.core.is_idle())
                {
                    return Some(format!(
                        "storage-{} has something pending in chain {}",
                        node.id, chain.id
                    ));
                }
            }
        }
        if let Some(client) = self.clients.iter().find(|client| !client.is_idle()) {
            return Some(format!("a client waits: {client:?}"));
        }
        if let Some(namer) = self.namers.iter().find(|namer| !namer.is_idle()) {
            return Some(format!("a mount waits: {namer:?}"));
        }
        None
    }

    /// The whole of a seed.
    pub fn simulate(&mut self) {
        while self.now < 1_000 + STORM_MS + 1_000 + self.stood_still_ms
            && self.step(1_000 + STORM_MS + 1_000 + self.stood_still_ms)
        {}
        self.heal();
        let begin = self.now;
        let deadline = begin + CALM_MS;
        let mut what = None;
        while self.violation.is_none() && self.now < deadline {
            let until = self.now + 250;
            self.run(until);
            self.now = until;
            self.look_after();
            what = self.is_well();
            if what.is_none() {
                break;
            }
        }
        if let Some(what) = what {
            return self.fail(
                "liveness",
                format!("{} s after the last fault: {what}", CALM_MS / 1_000),
            );
        }
        // Everybody looks once more.
        self.final_reads();
        let until = self.now + 3_000;
        self.run(until);
        self.now = self.now.max(until);
        // A late copy of an old request may just have arrived: it is judged when it has been everywhere.
        for _ in 0..20 {
            if self.is_well().is_none() {
                break;
            }
            let until = self.now + 50;
            self.run(until);
            self.now = self.now.max(until);
        }
        self.nothing_came_back();
        if self.violation.is_none() {
            self.judge();
        }
    }

    /// What everybody had on disk as removed, and has forgotten, nobody has any more.
    fn nothing_came_back(&mut self) {
        let back = self.nodes.iter().enumerate().find_map(|(at, node)| {
            let store = node.store.as_ref()?;
            let is_back = |chunk: &&ChunkId| !store.version(**chunk).is_none() && !store.is_removed(**chunk);
            Some((at, *self.forgotten.iter().find(is_back)?))
        });
        if let Some((at, chunk)) = back {
            self.fail(
                "I3",
                format!("storage-{} has chunk {chunk} of a removed file again", at + 1),
            );
        }
    }

    pub(crate) const fn incarnation_of(at: usize, incarnation: u64) -> Incarnation {
        Incarnation(at as u64 * 1_000_000 + incarnation)
    }
}

impl World {
    pub fn outcome(&mut self) -> crate::Outcome {
        crate::Outcome {
            violation: self.violation.clone(),
            hash: self.trace.hash(),
            events: self.trace.count(),
            answers: self.watch.answers,
            simulated_ms: self.now,
            undecided: self.undecided,
            amnesties: self.watch.amnesty.len() as u64,
            fired: self.fired.clone(),
            log: self.trace.lines().map(str::to_owned).collect(),
        }
    }
}
