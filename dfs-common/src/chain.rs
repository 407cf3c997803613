//! Chains, nodes and the routing table: replicated state that everybody reads and only the metadata group changes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{
    CertificateIssue, ChainId, ChainTableId, Epoch, Incarnation, MetaId, RoutingVersion, StorageId, StoreId,
};
use crate::level::{Level, QUORUM};
use crate::planted::{self, Bug};

/// State of one member in its chain. `next_chain` in dfs-meta holds the transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// In sync: has every acknowledged write, serves reads, counts for levels.
    Serving,
    /// Back, taking new writes at the end of the chain while its predecessor sends what differs. Does not serve.
    Syncing,
    /// There, but not in sync, or not complete: waits for its turn to sync, or for a last server.
    Waiting,
    /// Away, and no complete member outlived it: it may bring the chain back.
    LastServer,
    /// Away; others went on without it, so its copy is stale.
    Offline,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serving => "serving",
            Self::Syncing => "syncing",
            Self::Waiting => "waiting",
            Self::LastServer => "last-server",
            Self::Offline => "offline",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChainMember {
    pub node: StorageId,
    pub state: MemberState,
    /// The last epoch, before the present one, in which it had all that was acknowledged at QUORUM; 0: never, or its disk was replaced since.
    pub complete_until: Epoch,
}

impl ChainMember {
    /// One that has nothing yet.
    #[must_use]
    pub const fn new(node: StorageId, state: MemberState) -> Self {
        Self {
            node,
            state,
            complete_until: Epoch(0),
        }
    }
}

/// How often the head of a chain has said, within an epoch, that the chain rests or rests no more: odd while it rests.
///
/// Numbered, so that of what a head says in this order the later counts, in whatever order it is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rest(pub u64);

impl Rest {
    #[must_use]
    pub const fn is_resting(self) -> bool {
        self.0 % 2 == 1
    }

    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One configuration of one chain. Order of `members`: serving ones first (head .. tail), then syncing ones, then the rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChainInfo {
    pub id: ChainId,
    pub epoch: Epoch,
    /// Whether the second serving member has, durably, all that was acknowledged at QUORUM before this epoch. It changes
    /// from `false` to `true` within an epoch; with one serving member it is `true`.
    pub settled: bool,
    /// While the chain rests, every serving member has, durably, all that was acknowledged at QUORUM. Rises within an epoch.
    pub rest: Rest,
    /// The epoch in which the present head took over. What others acknowledged at ONE before it may be gone.
    pub headed: Epoch,
    /// The last epoch in which the chain was brought back after every complete member had gone. What was acknowledged before it,
    /// and not synced, may be gone.
    pub revived: Epoch,
    pub members: Vec<ChainMember>,
}

/// Members, from the head on, that a write at QUORUM is on.
pub const COMPLETE_MEMBERS: usize = QUORUM;

impl ChainInfo {
    /// In-sync members, head first.
    pub fn serving(&self) -> impl DoubleEndedIterator<Item = StorageId> + '_ {
        self.members
            .iter()
            .filter(|member| member.state == MemberState::Serving)
            .map(|member| member.node)
    }

    /// Members that take part in writes, in chain order: serving, then syncing.
    pub fn writers(&self) -> impl DoubleEndedIterator<Item = StorageId> + '_ {
        self.serving().chain(
            self.members
                .iter()
                .filter(|member| member.state == MemberState::Syncing)
                .map(|member| member.node),
        )
    }

    /// Serving members that are known to have every write that was acknowledged at QUORUM or ALL, head first. Each of them may
    /// carry the chain on alone. The others may lack the last ones.
    pub fn complete(&self) -> impl Iterator<Item = StorageId> + '_ {
        self.serving().take(if self.rest.is_resting() {
            usize::MAX
        } else {
            self.answering()
        })
    }

    /// Members that may answer for writes at QUORUM. Fewer than are complete while the chain rests: that ends within the epoch, and
    /// whoever has not heard of it yet must not answer.
    pub fn quorum_readers(&self) -> impl Iterator<Item = StorageId> + '_ {
        self.serving().take(self.answering())
    }

    fn answering(&self) -> usize {
        if self.settled || planted::is(Bug::UnsettledServes) {
            COMPLETE_MEMBERS
        } else {
            1
        }
    }

    /// The first epoch whose acknowledgements at this level the chain still answers for, were they synced or not.
    #[must_use]
    pub const fn answers_since(&self, level: Level) -> Epoch {
        match level {
            Level::One => self.headed,
            Level::Quorum | Level::All => self.revived,
        }
    }

    #[must_use]
    pub fn head(&self) -> Option<StorageId> {
        self.serving().next()
    }

    /// Last in-sync member: what it has, all have.
    #[must_use]
    pub fn tail(&self) -> Option<StorageId> {
        self.serving().next_back()
    }

    #[must_use]
    pub fn state_of(&self, node: StorageId) -> Option<MemberState> {
        self.members
            .iter()
            .find(|member| member.node == node)
            .map(|member| member.state)
    }

    /// Who comes after `node` among the writers.
    #[must_use]
    pub fn successor(&self, node: StorageId) -> Option<StorageId> {
        self.writers().skip_while(|&writer| writer != node).nth(1)
    }

    /// Who comes before `node` among the writers.
    #[must_use]
    pub fn predecessor(&self, node: StorageId) -> Option<StorageId> {
        self.writers()
            .take_while(|&writer| writer != node)
            .last()
            .filter(|_| self.writers().any(|writer| writer == node))
    }
}

/// An immutable list of chains. A layout names one and stripes its chunks over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainTable {
    pub id: ChainTableId,
    pub chains: Vec<ChainId>,
}

/// What an administrator wants of a storage node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Duty {
    #[default]
    Active,
    /// Its chains go to others.
    Draining,
    /// It may be away for a while without anybody taking its place.
    Maintenance,
}

/// A storage node as the metadata group knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub id: StorageId,
    pub address: SocketAddr,
    pub incarnation: Incarnation,
    /// What is on its disk.
    pub store: StoreId,
    /// Whether it holds a lease, as of this routing version.
    pub alive: bool,
    pub duty: Duty,
}

/// Everything a client or storage node needs to find data. One authority: the metadata group.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RoutingTable {
    pub version: RoutingVersion,
    pub nodes: BTreeMap<StorageId, NodeInfo>,
    pub chains: BTreeMap<ChainId, ChainInfo>,
    pub tables: BTreeMap<ChainTableId, ChainTable>,
    /// Table that new files use; `None` until enough storage nodes have joined.
    pub default_table: Option<ChainTableId>,
    /// Where the metadata servers are, filled in by the server that hands the table out: what its
    /// configuration says, but for those in `moved`.
    pub meta: BTreeMap<MetaId, SocketAddr>,
    /// Metadata servers that an administrator moved or replaced.
    pub moved: BTreeMap<MetaId, MetaPlace>,
    /// An administrator wants nothing copied for the time being.
    pub resyncs_paused: bool,
}

/// Where a metadata server is, and which machine may be it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaPlace {
    pub address: SocketAddr,
    /// Certificates of a lower issue are refused: they are a replaced machine's.
    pub issue: CertificateIssue,
}

impl RoutingTable {
    #[must_use]
    pub fn chain(&self, id: ChainId) -> Option<&ChainInfo> {
        self.chains.get(&id)
    }

    #[must_use]
    pub fn address(&self, node: StorageId) -> Option<SocketAddr> {
        self.nodes.get(&node).map(|info| info.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_skip_members_that_take_no_writes() {
        let member = |node, state| ChainMember::new(StorageId(node), state);
        let chain = ChainInfo {
            id: ChainId(1),
            epoch: Epoch(7),
            settled: true,
            rest: Rest::default(),
            headed: Epoch(1),
            revived: Epoch(1),
            members: vec![
                member(2, MemberState::Serving),
                member(3, MemberState::Serving),
                member(1, MemberState::Syncing),
                member(4, MemberState::Offline),
            ],
        };
        assert_eq!(chain.head(), Some(StorageId(2)));
        assert_eq!(chain.tail(), Some(StorageId(3)));
        assert_eq!(chain.successor(StorageId(3)), Some(StorageId(1)));
        assert_eq!(chain.successor(StorageId(1)), None);
        assert_eq!(chain.successor(StorageId(4)), None);
        assert_eq!(chain.predecessor(StorageId(2)), None);
        assert_eq!(chain.predecessor(StorageId(1)), Some(StorageId(3)));
        assert_eq!(chain.predecessor(StorageId(4)), None);
    }
}
