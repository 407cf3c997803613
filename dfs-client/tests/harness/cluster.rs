//! Storage nodes and their chains, and what can happen to them.
//!
//! The routing table is the metadata group's own (`dfs_meta::chains`, through its state machine): nodes go down and come up as
//! events, epochs, heads and `revived` follow. A chain that is brought back by a node that had lost its power has lost what no
//! sync covered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::chain::{ChainInfo, RoutingTable};
use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{
    ChainId, ClusterId, Epoch, Error, ErrorCode, Incarnation, InodeId, Level, MemberState, Result, SessionId,
    StorageId, StoreId, Timestamp,
};
use dfs_meta::command::{ClusterEvent, Command, CommandKind, Outcome};
use dfs_meta::namespace::NameHash;
use dfs_meta::state::State;
use dfs_meta::store::MemoryStore;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::dice::Dice;
use super::group::{Sessions, Wants};
use super::storage::{ChainData, Tombstones};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);

/// One more than a chain has members, so that some chains outlive the death of three.
pub const NODES: u32 = 4;

/// As `REST_AFTER_MS` of the storage node.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Between two looks at whether an unlinked file can go.
const PURGE_EVERY: Duration = Duration::from_millis(250);

/// What storage nodes know.
#[derive(Clone, Copy, Debug)]
pub struct Servers {
    pub tombstones: Tombstones,
    /// Requests of sessions that have ended are refused.
    pub refuse_evicted: bool,
}

impl Servers {
    pub const NEW: Self = Self {
        tombstones: Tombstones::Fail,
        refuse_evicted: true,
    };

    /// Whatever a mount wants is done, and a removed chunk reads as zeros: as long as mounts fence themselves, nobody is to notice.
    pub const OLD: Self = Self {
        tombstones: Tombstones::ReadAsHoles,
        refuse_evicted: false,
    };

    /// Mostly new ones.
    pub const fn of(seed: u64) -> Self {
        if seed.is_multiple_of(4) { Self::OLD } else { Self::NEW }
    }
}

struct Hash;

impl NameHash for Hash {
    fn hash(&self, parent: InodeId, name: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&parent.0.to_le_bytes()).update(name);
        let mut short = [0; 16];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        short
    }
}

pub struct Inner {
    pub chains: BTreeMap<ChainId, ChainData>,
    /// Nodes that are not there, and what they died of.
    pub down: BTreeMap<StorageId, Death>,
    /// When a chain that may not rest yet was last written.
    pub awake: BTreeMap<ChainId, Instant>,
    pub sessions: Sessions,
    pub dice: Dice,
    pub log: Option<Vec<String>>,
    /// Power cuts that took unsynced data, by chain.
    pub lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The process: its disk has whatever it was told.
    Process,
    /// Its disk has what it was told to sync, and some more.
    Power,
}

pub struct Cluster {
    pub state: State<MemoryStore>,
    pub servers: Servers,
    pub routing: watch::Sender<Arc<RoutingTable>>,
    pub wants: Wants,
    inner: Mutex<Inner>,
    poked: Notify,
    started: Instant,
    wall: i64,
}

impl Cluster {
    /// Must be called in a runtime with paused time.
    pub fn start(seed: u64, servers: Servers, keeps_log: bool) -> Arc<Self> {
        let state = State::open(MemoryStore::default(), Hash, CLUSTER).unwrap();
        let wall = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_nanos() as i64;
        let cluster = Arc::new(Self {
            state,
            servers,
            routing: watch::Sender::new(Arc::default()),
            wants: Wants::default(),
            inner: Mutex::new(Inner {
                chains: BTreeMap::new(),
                down: BTreeMap::new(),
                awake: BTreeMap::new(),
                sessions: Sessions::default(),
                dice: Dice::new(seed),
                log: keeps_log.then(Vec::new),
                lost: 0,
            }),
            poked: Notify::new(),
            started: Instant::now(),
            wall,
        });
        let nodes = (1..=NODES).map(|node| up(StorageId(node), Incarnation(1))).collect();
        cluster.submit(CommandKind::Cluster(nodes));
        tokio::spawn(Arc::clone(&cluster).coordinate());
        cluster
    }

    pub fn inner(&self) -> parking_lot::MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub fn log(&self, line: impl FnOnce() -> String) {
        let now_ms = self.now_ms();
        if let Some(log) = &mut self.inner().log {
            log.push(format!("{now_ms:>7} ms  {}", line()));
        }
    }

    pub fn poke(&self) {
        self.poked.notify_one();
    }

    /// One command, as if a quorum had it.
    pub fn submit(&self, kind: CommandKind) -> Outcome {
        let command = Command {
            time: Timestamp::from_nanos(self.wall + self.started.elapsed().as_nanos() as i64),
            kind,
        };
        let before = self.state.routing();
        let outcome = self.state.apply(&[command], &[1]).unwrap().remove(0);
        let after = self.state.routing();
        if after.version > before.version {
            self.reconfigured(&before, &after);
            self.routing.send_replace(after);
            self.poke();
        }
        outcome
    }

    /// A chain that was brought back has what the node that did it has.
    fn reconfigured(&self, before: &RoutingTable, after: &RoutingTable) {
        let mut lines = Vec::new();
        {
            let mut inner = self.inner();
            let inner = &mut *inner;
            for (id, info) in &after.chains {
                let data = inner.chains.entry(*id).or_default();
                let Some(old) = before.chain(*id) else { continue };
                if info.epoch != old.epoch && inner.log.is_some() {
                    lines.push(format!("chain {id}: {}", describe(info)));
                }
                let Some(head) = info.head().filter(|_| info.revived > old.revived) else {
                    continue;
                };
                if inner.down.get(&head) == Some(&Death::Power) {
                    let kept = match data.unsynced() {
                        0 => 0,
                        unsynced if inner.dice.one_in(3) => inner.dice.below(unsynced),
                        _ => 0,
                    };
                    let lost = data.lose(kept);
                    inner.lost += lost;
                    lines.push(format!("chain {id} comes back without its last {lost} mutations"));
                }
            }
        }
        for line in lines {
            self.log(|| line);
        }
    }

    /// Nodes die together, and come back one by one after about this long.
    pub fn kill_nodes(self: &Arc<Self>, nodes: &[StorageId], death: Death, back_ms: u64) {
        let notice_ms = {
            let mut inner = self.inner();
            for &node in nodes {
                let known = inner.down.entry(node).or_insert(death);
                if death == Death::Power {
                    *known = death;
                }
            }
            inner.dice.between(1, 150)
        };
        self.log(|| format!("{nodes:?} die: {death:?}"));
        let (cluster, nodes) = (Arc::clone(self), nodes.to_vec());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(notice_ms)).await;
            let incarnation = |node| cluster.state.routing().nodes[&node].incarnation;
            let down = nodes.iter().map(|&node| ClusterEvent::NodeDown {
                node,
                incarnation: incarnation(node),
            });
            cluster.submit(CommandKind::Cluster(down.collect()));
            tokio::time::sleep(Duration::from_millis(back_ms)).await;
            let mut order = nodes;
            while !order.is_empty() {
                let (at, pause_ms) = {
                    let dice = &mut cluster.inner().dice;
                    (dice.below(order.len() as u64) as usize, dice.between(1, 80))
                };
                let node = order.swap_remove(at);
                let next = incarnation(node).next();
                cluster.submit(CommandKind::Cluster(vec![up(node, next)]));
                cluster.inner().down.remove(&node);
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            }
        });
    }

    /// Whether every chain has its members back.
    pub fn is_whole(&self) -> bool {
        let table = self.state.routing();
        self.inner().down.is_empty()
            && table
                .chains
                .values()
                .all(|chain| chain.settled && chain.serving().count() >= 3)
    }

    /// What the servers do by themselves: copying ends, chains settle and rest, sessions expire, unlinked files go.
    async fn coordinate(self: Arc<Self>) {
        loop {
            match self.next_due() {
                Some(due) => {
                    tokio::select! {
                        biased;
                        () = self.poked.notified() => {}
                        () = tokio::time::sleep_until(due) => self.act(),
                    }
                }
                None => self.poked.notified().await,
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let table = self.state.routing();
        let orphans = self.state.counts().orphans > 0;
        let mut inner = self.inner();
        let now = Instant::now();
        let mends = table.chains.values().any(|chain| needs_mending(chain).is_some());
        let mend = mends.then(|| now + Duration::from_millis(inner.dice.between(3, 40)));
        let rest = inner.awake.values().min().map(|&last| last + REST_AFTER);
        let expiry = inner.sessions.next_expiry();
        let purge = orphans.then(|| now + PURGE_EVERY);
        [mend, rest, expiry, purge].into_iter().flatten().min()
    }

    fn act(&self) {
        let table = self.state.routing();
        let now = Instant::now();
        let mut events = Vec::new();
        let (expired, purgeable) = {
            let mut inner = self.inner();
            let inner = &mut *inner;
            for chain in table.chains.values() {
                if let Some(event) = needs_mending(chain)
                    && !inner.dice.one_in(3)
                {
                    events.push(event);
                }
                let quiet = inner.awake.get(&chain.id).is_some_and(|&last| now >= last + REST_AFTER);
                let well = chain.serving().count() >= 2 && !chain.serving().any(|node| inner.down.contains_key(&node));
                if quiet && chain.settled && well && !chain.rest.is_resting() {
                    inner.awake.remove(&chain.id);
                    let data = inner.chains.entry(chain.id).or_default();
                    data.synced_to(data.position());
                    events.push(rest(chain));
                } else if quiet {
                    inner.awake.insert(chain.id, now);
                }
            }
            let orphans: Vec<InodeId> = match self.state.counts().orphans {
                0 => Vec::new(),
                _ => self
                    .state
                    .orphans(None, 1_000)
                    .unwrap()
                    .iter()
                    .map(|orphan| orphan.inode)
                    .collect(),
            };
            (inner.sessions.expire(now), inner.sessions.purgeable(&orphans))
        };
        if !events.is_empty() {
            self.submit(CommandKind::Cluster(events));
        }
        if !expired.is_empty() {
            self.log(|| format!("sessions expire: {expired:?}"));
            self.submit(CommandKind::EndSessions { sessions: expired });
        }
        if !purgeable.is_empty() && self.is_whole() {
            self.log(|| format!("purged: {purgeable:?}"));
            {
                let mut inner = self.inner();
                for (id, data) in &mut inner.chains {
                    let epoch = table.chains[id].epoch;
                    data.remove_range(epoch, &purgeable, dfs_common::ChunkIndex(0), dfs_common::CutEpoch::GONE);
                }
            }
            self.submit(CommandKind::Purged { inodes: purgeable });
        }
    }

    pub async fn storage(
        self: &Arc<Self>,
        node: StorageId,
        request: StorageRequest,
        payload: Vec<Bytes>,
    ) -> Result<(StorageResponse, Bytes)> {
        let (response, payload) = match request {
            StorageRequest::Mutate(mutate) => {
                let (chain, epoch, sync) = (mutate.chain, mutate.epoch, mutate.sync);
                let info = self.admit(node, chain, epoch, mutate.id.session, Some(mutate.level))?;
                self.wake(&info);
                let answer = self.data(chain, |data| data.mutate(epoch, &mutate, &payload));
                self.log(|| {
                    let what = &mutate.mutation;
                    format!(
                        "   {} cut {} {} {what:?}: {answer:?}",
                        mutate.id.session, mutate.cut, mutate.chunk
                    )
                });
                let version = answer?;
                if sync {
                    self.sync(chain, epoch).await?;
                }
                (StorageResponse::Mutated { version }, Bytes::new())
            }
            StorageRequest::Read {
                chain,
                epoch,
                chunk,
                first,
                blocks,
                level,
                session,
                ..
            } => {
                let info = self.admit(node, chain, epoch, session, None)?;
                let able = match level {
                    Level::Quorum => info.quorum_readers().any(|member| member == node),
                    Level::One | Level::All => info.serving().any(|member| member == node),
                };
                if !able {
                    return Err(ErrorCode::NotInChain.into());
                }
                let tombstones = self.servers.tombstones;
                let (version, runs, payload) = self.data(chain, |data| data.read(chunk, first, blocks, tombstones))?;
                (StorageResponse::Read { version, runs }, payload)
            }
            StorageRequest::Sync {
                chain,
                epoch,
                level,
                since,
                written,
                session,
            } => {
                let info = self.admit(node, chain, epoch, session, Some(level))?;
                let answers_since = info.answers_since(written);
                if since < answers_since {
                    return Err(Error::new(
                        ErrorCode::UnsyncedLost,
                        format!("chain {chain} answers since epoch {answers_since}, not {since}"),
                    ));
                }
                self.sync(chain, epoch).await?;
                (StorageResponse::Synced, Bytes::new())
            }
            StorageRequest::RemoveRange {
                chain,
                epoch,
                inodes,
                from,
                cut,
                session,
            } => {
                let info = self.admit(node, chain, epoch, session, Some(Level::One))?;
                self.wake(&info);
                let chunks = self.data(chain, |data| Ok(data.remove_range(epoch, &inodes, from, cut)))?;
                self.log(|| {
                    format!("   {session} cut {cut} chain {chain} {inodes:?} from {from}: {chunks} chunks removed")
                });
                (StorageResponse::RangeRemoved { chunks }, Bytes::new())
            }
            StorageRequest::FileEnd {
                chain,
                epoch,
                inode,
                from,
            } => {
                self.admit(node, chain, epoch, SessionId::SYSTEM, Some(Level::One))?;
                let end = self.data(chain, |data| Ok(data.file_end(inode, from)))?;
                (StorageResponse::FileEnd(end), Bytes::new())
            }
            StorageRequest::FileRuns {
                chain,
                epoch,
                inode,
                from,
                wanted,
            } => {
                self.admit(node, chain, epoch, SessionId::SYSTEM, Some(Level::One))?;
                let runs = self.data(chain, |data| Ok(data.file_runs(inode, from, wanted)))?;
                (StorageResponse::FileRuns(runs), Bytes::new())
            }
            other => panic!("no mount asks for {other:?}"),
        };
        Ok((response, payload))
    }

    fn data<T>(&self, chain: ChainId, with: impl FnOnce(&mut ChainData) -> Result<T>) -> Result<T> {
        with(self.inner().chains.entry(chain).or_default())
    }

    /// Who serves in this epoch; `level` for what only the head does.
    fn admit(
        &self,
        node: StorageId,
        chain: ChainId,
        epoch: Epoch,
        session: SessionId,
        level: Option<Level>,
    ) -> Result<ChainInfo> {
        let table = self.state.routing();
        let refused = |code, what: &str| Err(Error::new(code, format!("storage-{node}, chain {chain}: {what}")));
        if self.inner().down.contains_key(&node) {
            return refused(ErrorCode::Unreachable, "it is down");
        }
        let Some(info) = table.chain(chain) else {
            return refused(ErrorCode::NotInChain, "there is no such chain");
        };
        if info.epoch != epoch {
            return refused(ErrorCode::StaleEpoch, "another epoch");
        }
        if self.servers.refuse_evicted && session != SessionId::SYSTEM && !self.state.has_session(session).unwrap() {
            return refused(ErrorCode::SessionExpired, "that session has ended");
        }
        match level {
            Some(_) if info.head() != Some(node) => return refused(ErrorCode::NotInChain, "not the head"),
            Some(level) if info.serving().count() < level.min_in_sync() => {
                return refused(ErrorCode::TooFewReplicas, "too few in sync");
            }
            _ => {}
        }
        // A chain cannot be answered for while those who would acknowledge with it are dead, noticed or not.
        let mut needed = info.serving().take(level.map_or(1, Level::min_in_sync));
        let inner = self.inner();
        if level.is_some() && needed.any(|member| inner.down.contains_key(&member)) {
            drop(inner);
            return refused(ErrorCode::Timeout, "its successor does not answer");
        }
        Ok(info.clone())
    }

    fn wake(&self, info: &ChainInfo) {
        let newly = {
            let mut inner = self.inner();
            inner.awake.insert(info.id, Instant::now()).is_none()
        };
        if info.rest.is_resting() {
            self.submit(CommandKind::Cluster(vec![rest(info)]));
        } else if newly {
            self.poke();
        }
    }

    /// What the chain has now goes to its disks.
    async fn sync(&self, chain: ChainId, epoch: Epoch) -> Result<()> {
        let (position, losses, disk_ms) = {
            let mut inner = self.inner();
            let data = inner.chains.entry(chain).or_default();
            let found = (data.position(), data.losses);
            (found.0, found.1, inner.dice.between(1, 6))
        };
        tokio::time::sleep(Duration::from_millis(disk_ms)).await;
        let table = self.state.routing();
        let mut inner = self.inner();
        let dead = |node| inner.down.contains_key(&node);
        let info = table.chain(chain);
        if info.is_none_or(|info| info.epoch != epoch || info.serving().take(2).any(dead)) {
            return Err(ErrorCode::StaleEpoch.into());
        }
        let data = inner.chains.entry(chain).or_default();
        if data.losses != losses {
            return Err(ErrorCode::StaleEpoch.into());
        }
        data.synced_to(position);
        Ok(())
    }

    /// The length of an inode as the group has it, if it is there and no mount grows it without a word.
    pub fn told_length(&self, inode: InodeId) -> Option<u64> {
        use dfs_meta::namespace::{Body, InodeRow};
        let row: InodeRow = dfs_meta::store::get(self.state.store(), &dfs_meta::store::keys::inode(inode)).unwrap()?;
        match row.body {
            Body::Regular { length_bytes, .. } if !row.growing => Some(length_bytes),
            _ => None,
        }
    }

    pub fn nodes_of(&self, chain: ChainId) -> Vec<StorageId> {
        let table = self.state.routing();
        table
            .chain(chain)
            .map_or_else(Vec::new, |info| info.members.iter().map(|member| member.node).collect())
    }
}

fn describe(info: &ChainInfo) -> String {
    let members: Vec<_> = info
        .members
        .iter()
        .map(|member| format!("{} {}", member.node, member.state))
        .collect();
    format!(
        "epoch {} revived {} headed {} [{}]",
        info.epoch,
        info.revived,
        info.headed,
        members.join(", ")
    )
}

fn up(node: StorageId, incarnation: Incarnation) -> ClusterEvent {
    ClusterEvent::NodeUp {
        node,
        incarnation,
        store: StoreId::default(),
        address: ([127, 0, 0, 1], 7_000 + node.0 as u16).into(),
    }
}

fn rest(chain: &ChainInfo) -> ClusterEvent {
    ClusterEvent::Rest {
        chain: chain.id,
        epoch: chain.epoch,
        rest: chain.rest.next(),
    }
}

fn needs_mending(chain: &ChainInfo) -> Option<ClusterEvent> {
    let (id, epoch) = (chain.id, chain.epoch);
    let syncing = chain.members.iter().find(|member| member.state == MemberState::Syncing);
    if let Some(member) = syncing {
        let node = member.node;
        return Some(ClusterEvent::Resynced { chain: id, epoch, node });
    }
    (!chain.settled).then_some(ClusterEvent::Settled { chain: id, epoch })
}
