//! Conflicts: blocks that were written twice, by heads that did not know of each other.
//!
//! A head that acknowledges at ONE and dies before anybody else has the write takes it along. When it comes back and the chain has written
//! the same block meanwhile, neither of the two versions may go without a word. The one that the chain has stays in place; the other
//! is kept in a chunk of its own until the file's policy, or a person, has said what becomes of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};
use crate::id::{BlockIndex, ChainId, ChunkId, InodeId, StorageId};
use crate::policy::ConflictPolicy;
use crate::time::Timestamp;
use crate::version::{ChunkVector, HybridClock};

/// A conflict. The number is also that of the inode under which the other version's blocks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConflictId(pub u64);

impl ConflictId {
    /// Where the other version's blocks are: the file's chunk index under this inode, on the same chain, sealed for the file.
    #[must_use]
    pub const fn keeper(self) -> InodeId {
        InodeId(self.0)
    }
}

impl fmt::Display for ConflictId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for ConflictId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().map(Self).map_err(|_| {
            Error::new(
                ErrorCode::InvalidArgument,
                format!("{text:?} is not the number of a conflict; see: dfs conflicts list"),
            )
        })
    }
}

/// What a returning member has of a chunk that its chain does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Who came back with it.
    pub node: StorageId,
    pub chain: ChainId,
    pub chunk: ChunkId,
    /// Its history, and the chain's.
    pub theirs: ChunkVector,
    pub chains: ChunkVector,
    /// When the newest version of each was given out.
    pub theirs_at: HybridClock,
    pub chains_at: HybridClock,
    /// Runs of blocks (first, count) that both wrote. Empty: it is merely ahead.
    pub blocks: Vec<(BlockIndex, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    pub id: ConflictId,
    pub found_at: Timestamp,
    pub policy: ConflictPolicy,
    pub divergence: Divergence,
    pub state: ConflictState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConflictState {
    /// The other version's blocks are being brought in.
    Found,
    /// They are safe, and it is to be decided.
    Open,
    /// Over; the other version's blocks go.
    Settled {
        at: Timestamp,
        how: Settlement,
        /// Whose word it was.
        by: String,
    },
}

impl ConflictState {
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        matches!(self, Self::Settled { .. })
    }
}

/// What became of a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settlement {
    /// The file stays as it is.
    Current,
    /// The other version took its place.
    Other,
    /// The other version is a file of its own.
    Both,
    /// A program made one of the two.
    Application,
}

impl fmt::Display for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Current => "current version kept",
            Self::Other => "other version put in its place",
            Self::Both => "both kept",
            Self::Application => "merged by a program",
        })
    }
}

/// What is done about a divergence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The file is gone: what the member has is of no use.
    Gone,
    /// What is merely ahead goes into the chunk.
    Adopt,
    /// And the blocks that both wrote go to the keeper.
    Keep(ConflictId),
}

/// Settled conflicts that are remembered of a file, beside those of the last hour.
pub const MAX_SETTLED: usize = 16;

/// A conflict with the path of its file, when it has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictEntry {
    pub conflict: Conflict,
    pub path: Option<Vec<u8>>,
}
