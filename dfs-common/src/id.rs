//! Identifiers. Each is a newtype, so that a chain can not be passed where an inode is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The bare number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The id that follows this one (saturating: ids never wrap).
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id! {
    /// An inode. Never reused, so a late message about a deleted file can not touch a new one.
    InodeId(u64)
}
id! {
    /// Position of a chunk in its file: byte offset / chunk size.
    ChunkIndex(u32)
}
id! {
    /// Position of a 4 KiB block in its chunk.
    BlockIndex(u32)
}
id! {
    /// A replication chain.
    ChainId(u32)
}
id! {
    /// An immutable list of chains that layouts stripe over.
    ChainTableId(u32)
}
id! {
    /// One configuration of one chain. Raised by every change of membership or state.
    Epoch(u64)
}
id! {
    /// Counts how often a session gave up all that it held, or had it taken; see [`Hold`].
    HoldEpoch(u64)
}
id! {
    /// A storage node.
    StorageId(u32)
}
id! {
    /// A metadata server; also its Raft node id.
    MetaId(u64)
}
id! {
    /// Counts the machines that had one name. A machine that takes another's place gets a
    /// certificate with a higher one, and the group refuses the lower from then on.
    CertificateIssue(u32)
}
id! {
    /// One mount's (or admin tool's) session with the metadata group. 0 is the system itself.
    SessionId(u64)
}

/// Whose an inode is for the time being: only this session reads or changes it, until its epoch is over. (A delegation of
/// NFSv4, or a capability of CephFS, in its simplest form.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hold {
    pub session: SessionId,
    pub epoch: HoldEpoch,
}
id! {
    /// Order of a request within its session and channel.
    SequenceNumber(u64)
}
id! {
    /// Version of the whole routing table; raised by every change of any chain or node.
    RoutingVersion(u64)
}
id! {
    /// One start of one process, so that a restart is told from a hiccup. Those of one storage node rise from start to start.
    Incarnation(u64)
}
id! {
    /// Who wrote, in a version vector: a client or a storage node.
    ActorId(u64)
}
id! {
    /// An open file or directory of one mount.
    FileHandleId(u64)
}

impl InodeId {
    /// The root directory, FUSE's number for it too.
    pub const ROOT: Self = Self(1);
}

impl SessionId {
    /// Requests of the metadata group itself (deleting the chunks of unlinked files).
    pub const SYSTEM: Self = Self(0);
}

/// One chunk of one file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ChunkId {
    pub inode: InodeId,
    pub index: ChunkIndex,
}

impl ChunkId {
    #[must_use]
    pub const fn new(inode: InodeId, index: ChunkIndex) -> Self {
        Self { inode, index }
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.inode, self.index)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

/// Name of a request for exactly-once: a retry carries the same one.
///
/// `channel` keeps independent streams of one session apart (one a chain, say), so that each can be pruned alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct RequestId {
    pub session: SessionId,
    pub channel: u32,
    pub sequence: SequenceNumber,
}

impl RequestId {
    /// A request of the system itself; idempotent by nature, never remembered.
    pub const SYSTEM: Self = Self {
        session: SessionId::SYSTEM,
        channel: 0,
        sequence: SequenceNumber(0),
    };

    #[must_use]
    pub const fn is_system(&self) -> bool {
        self.session.0 == 0
    }
}

/// A cluster, drawn at random by `dfs init`; 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || {
            Error::new(
                ErrorCode::InvalidArgument,
                format!("cluster id {text:?} is not 32 hex digits"),
            )
        };
        if text.len() != 32 || !text.is_ascii() {
            return Err(bad());
        }
        let mut id = [0_u8; 16];
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(id))
    }
}

/// What one storage node keeps on its disk, drawn at random when the store is made. Another one under the same name is
/// another disk, on which nothing is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct StoreId(pub [u8; 16]);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreId({self})")
    }
}

/// What a certificate lets its bearer be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Meta,
    Storage,
    Client,
    Admin,
}

impl Role {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Storage => "storage",
            Self::Client => "client",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Meta, Self::Storage, Self::Client, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| {
                Error::new(
                    ErrorCode::InvalidArgument,
                    format!("role {text:?} is none of meta, storage, client, admin"),
                )
            })
    }
}

/// A member of the cluster by role and number: `meta-1`, `storage-3`, `client-7`. Stands in its certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeName {
    pub role: Role,
    pub number: u64,
}

impl NodeName {
    #[must_use]
    pub const fn new(role: Role, number: u64) -> Self {
        Self { role, number }
    }
}

impl From<StorageId> for NodeName {
    fn from(id: StorageId) -> Self {
        Self::new(Role::Storage, u64::from(id.0))
    }
}

impl From<MetaId> for NodeName {
    fn from(id: MetaId) -> Self {
        Self::new(Role::Meta, id.0)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role, self.number)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for NodeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || {
            Error::new(
                ErrorCode::InvalidArgument,
                format!("node name {text:?} is not like meta-1 or storage-2"),
            )
        };
        let (role, number) = text.split_once('-').ok_or_else(bad)?;
        Ok(Self {
            role: role.parse()?,
            number: number.parse().map_err(|_| bad())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_round_trip_through_text() {
        for text in ["meta-1", "storage-42", "client-7", "admin-1"] {
            assert_eq!(
                text.parse::<NodeName>().map(|name| name.to_string()).ok().as_deref(),
                Some(text)
            );
        }
        for text in ["", "meta", "meta-", "meta-x", "tape-1", "-1"] {
            assert!(text.parse::<NodeName>().is_err(), "{text:?}");
        }
        let id = ClusterId([0xab; 16]);
        assert_eq!(id.to_string().parse::<ClusterId>().ok(), Some(id));
        assert!("ab".parse::<ClusterId>().is_err());
        assert!("é".repeat(16).parse::<ClusterId>().is_err());
    }
}
