//! Consensus: one ordered stream of commands, the same on every metadata server.
//!
//! [`Consensus`] is all that the service sees: command bytes in, outcome bytes out, and a barrier for reads. What is behind
//! it (Raft today) never looks into a command. Invariant: a command is answered only after a quorum has it on disk and it
//! was applied here; what is applied is a prefix of one history that no server disagrees about.
//!
//! Durability is the log's job ([`log`]); the state machine may lose what it applied and gets it again from the log or a
//! snapshot ([`snapshot`]). That is why a [`StateMachine`] only has to keep its position together with its data.

pub(crate) mod clocks;
mod confirm;
mod elections;
mod error;
mod hearing;
mod joining;
mod listening;
pub mod log;
mod machine;
mod network;
mod patience;
mod queues;
mod raft;
mod relief;
mod small;
mod snapshot;
mod standing;
#[cfg(test)]
mod tests;
mod types;

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use dfs_common::wire::meta::DiskRoom;
use dfs_common::{CertificateIssue, MetaId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use error::{ConsensusError, LogError};
pub use network::{Transport, is_bulk};
pub use raft::{RaftConsensus, RaftOptions, reset_for_rebuild};

/// Largest command. A log record, an append message and a snapshot part each stay under a message header's limit with it.
pub const MAX_COMMAND_SIZE_BYTES: usize = 512 << 10;

/// Whatever went wrong inside a state machine; consensus only passes it on and stops.
pub type MachineError = Box<dyn std::error::Error + Send + Sync>;

/// Who leads, as far as this server knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub leader: Option<MetaId>,
    pub term: u64,
    /// This server leads and has applied an entry of its own term: it knows everything that was ever acknowledged.
    pub is_self: bool,
}

/// Figures for `dfs status` and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsensusStatus {
    pub leadership: Leadership,
    pub last_log_index: Option<u64>,
    pub last_applied_index: Option<u64>,
    pub snapshot_index: Option<u64>,
    pub purged_index: Option<u64>,
    /// At the leader: the last log index known to be on each server's disk.
    pub matched: std::collections::BTreeMap<MetaId, Option<u64>>,
    /// At the leader: milliseconds since each other server last answered.
    pub answered_ms_ago: std::collections::BTreeMap<MetaId, u64>,
    /// This server started without its history and neither votes nor stands until it has caught up.
    pub joining: bool,
    /// At the leader: what each server last said of itself.
    pub told: std::collections::BTreeMap<MetaId, SelfReport>,
    /// Why consensus stopped here, if it did.
    pub stopped: Option<String>,
}

/// What a server says of itself to a leader that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfReport {
    pub room: DiskRoom,
    pub service: ServiceReport,
}

/// The part of it that is not about consensus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Where its own configuration says that the servers are.
    pub configured: std::collections::BTreeMap<MetaId, SocketAddr>,
    /// The lowest issues of certificates that it accepts of other servers, also after a restart.
    pub requires: std::collections::BTreeMap<MetaId, CertificateIssue>,
}

/// An engine that orders commands.
#[async_trait]
pub trait Consensus: Send + Sync + 'static {
    /// Orders `command` and returns its outcome after it is applied here. After `Timeout` or `Unavailable` it may or may not
    /// take effect: retry with the same request id.
    async fn propose(&self, command: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, ConsensusError>;
    /// Returns when the applied state holds everything acknowledged by anybody before the call.
    async fn read_barrier(&self) -> Result<(), ConsensusError>;
    fn leadership(&self) -> watch::Receiver<Leadership>;
    /// A quorum answered this leader's messages sent within the last `within`.
    fn confirmed_within(&self, within: Duration) -> bool;
    /// A message from another server (`MetaRequest::Consensus`); the caller has checked that `from` is who it says.
    async fn handle(&self, from: MetaId, kind: u8, body: &[u8]) -> Result<Vec<u8>, dfs_common::Error>;
    fn status(&self) -> ConsensusStatus;
    /// Why nothing that takes room is to be proposed here, if so.
    fn lacks_room(&self) -> bool {
        false
    }
    async fn shutdown(&self);
}

/// What commands are applied to. Calls may block; they come from a thread where that is fine.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies in order, all or nothing, together with `position`. One outcome a command. `commands` may be empty.
    fn apply(&self, commands: &[&[u8]], position: &[u8]) -> Result<Vec<Vec<u8>>, MachineError>;
    /// What the last `apply` or `import` stored.
    fn position(&self) -> Result<Option<Vec<u8>>, MachineError>;
    /// Hands every row to `sink` and returns the position that they belong to. May run while `apply` is called, must be
    /// consistent all the same, and should hold `apply` up as shortly as it can.
    fn export(&self, sink: &mut RowSink<'_>) -> Result<Vec<u8>, MachineError>;
    /// Replaces everything, `position` included. A crash in the middle must not look like a complete state.
    fn import(&self, rows: &mut RowSource<'_>, position: &[u8]) -> Result<(), MachineError>;
}

/// Takes key and value of one row.
pub type RowSink<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), MachineError> + 'a;

/// Gives key and value of one row after the other.
pub type RowSource<'a> = dyn Iterator<Item = Result<(Vec<u8>, Vec<u8>), MachineError>> + 'a;

/// Seals what goes to disk.
pub trait Seal: Send + Sync + 'static {
    fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, MachineError>;
    fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, MachineError>;
}
