//! The words of dfs: ids, units, levels, errors, layouts, wire messages and their codec.
//!
//! Everything here is data and pure functions. No I/O, no clock, no randomness: whatever needs those takes them as
//! arguments, so that every crate above can be run by a simulator.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod chain;
pub mod codec;
pub mod config;
pub mod conflict;
pub mod cut;
pub mod errno;
pub mod error;
pub mod id;
pub mod layout;
pub mod level;
pub mod name;
pub mod planted;
pub mod policy;
pub mod time;
pub mod units;
pub mod version;
pub mod whereabouts;
pub mod wire;

pub use chain::{ChainInfo, ChainMember, ChainTable, Duty, MemberState, MetaPlace, NodeInfo, Rest, RoutingTable};
pub use conflict::{Conflict, ConflictId, ConflictState, Divergence, Settlement, Verdict};
pub use cut::{CutEpoch, CutsSince, LastCuts};
pub use errno::{DiskCall, Meaning, Scarce};
pub use error::{Error, ErrorCode, Result, RetryClass};
pub use id::{
    ActorId, BlockIndex, CertificateIssue, ChainId, ChainTableId, ChunkId, ChunkIndex, ClusterId, Epoch, FileHandleId,
    Hold, HoldEpoch, Incarnation, InodeId, MetaId, NodeName, RequestId, Role, RoutingVersion, SequenceNumber,
    SessionId, StorageId, StoreId,
};
pub use layout::Layout;
pub use level::Level;
pub use name::ValidName;
pub use policy::{ConflictPolicy, Policy, PolicyChange, Profile};
pub use time::Timestamp;
pub use version::{Causality, ChunkVector, ChunkVersion, HybridClock, MAX_EARLIER_EPOCHS, VersionVector};
pub use whereabouts::Whereabouts;
