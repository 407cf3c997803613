//! The state machine as openraft wants it.

#![expect(clippy::result_large_err, reason = "openraft's traits fix the error type")]

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{AnyError, EntryPayload, OptionalSend, StorageIOError};

use super::StateMachine;
use super::error::{ConsensusError, LogError};
use super::log::Log;
use super::snapshot::{SnapshotError, Snapshots};
use super::types::{Entry, LogId, OutcomeBatch, Position, SnapshotMeta, StorageError, StoredMembership, TypeConfig};

#[derive(Clone)]
pub(super) struct MachineStore {
    machine: Arc<dyn StateMachine>,
    snapshots: Arc<Snapshots>,
    position: Position,
    log: Log,
    /// Files being received, by inode number: openraft gives back a handle, we need the path.
    receiving: BTreeMap<u64, PathBuf>,
}

/// So many commands are applied where they arrive: they end in memory within microseconds, and a change of threads costs
/// more. With more of them other work should not wait.
const INLINE_COMMANDS: usize = 32;

/// Runs blocking work where it may block.
fn blocking<R>(work: impl FnOnce() -> R) -> R {
    match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn read_position(machine: &dyn StateMachine) -> Result<Position, ConsensusError> {
    match machine.position().map_err(ConsensusError::Machine)? {
        None => Ok(Position::default()),
        Some(bytes) => {
            dfs_common::codec::decode(&bytes).map_err(|error| ConsensusError::StateUnreadable(error.to_string()))
        }
    }
}

impl MachineStore {
    /// Compares the applied state with log and snapshots, and brings in a snapshot where the log alone can not carry on.
    pub(super) fn open(
        machine: Arc<dyn StateMachine>,
        snapshots: Arc<Snapshots>,
        log: &Log,
    ) -> Result<Self, ConsensusError> {
        let mut position = read_position(&*machine)?;
        let (purged, last) = log.state();
        let newest = snapshots.current();
        let newest_id = newest.as_ref().and_then(|(meta, _)| meta.last_log_id);
        let ahead = |applied: &LogId| ConsensusError::StateAhead {
            position: applied.to_string(),
            log: format!(
                "log up to {}, snapshot up to {}",
                last.map_or("nothing".into(), |id| id.to_string()),
                newest_id.map_or("nothing".into(), |id| id.to_string())
            ),
        };
        if let Some(applied) = position.applied {
            if Some(applied) > last.max(newest_id) {
                return Err(ahead(&applied));
            }
            let here = log
                .log_id(applied.index)
                .or(purged.filter(|id| id.index == applied.index));
            if here.is_some_and(|id| id != applied) {
                return Err(ahead(&applied));
            }
        }
        let next = position.applied.map_or(0, |id| id.index + 1);
        let first = purged.map_or(0, |id| id.index + 1);
        if next < first || (newest_id > last && position.applied < newest_id) {
            let Some((meta, path)) = newest.filter(|(meta, _)| meta.last_log_id >= purged) else {
                return Err(ConsensusError::Gap { from: next, to: first });
            };
            tracing::info!(snapshot = %meta, "the applied state is rebuilt from a snapshot");
            snapshots.import(&path, &meta, &*machine).map_err(|error| match error {
                SnapshotError::Log(error) => ConsensusError::Log(error),
                SnapshotError::Machine(error) => ConsensusError::Machine(error),
            })?;
            position = read_position(&*machine)?;
        }
        Ok(Self {
            machine,
            snapshots,
            position,
            log: log.clone(),
            receiving: BTreeMap::new(),
        })
    }

    fn apply_entries(&mut self, entries: &[Entry]) -> Result<Vec<OutcomeBatch>, StorageError> {
        let mut position = self.position.clone();
        let mut commands: Vec<&[u8]> = Vec::new();
        let mut counts = Vec::with_capacity(entries.len());
        for entry in entries {
            position.applied = Some(entry.log_id);
            match &entry.payload {
                EntryPayload::Normal(batch) => {
                    commands.extend(batch.0.iter().map(|command| &**command));
                    counts.push(batch.0.len());
                }
                EntryPayload::Membership(membership) => {
                    position.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    counts.push(0);
                }
                EntryPayload::Blank => counts.push(0),
            }
        }
        let Some(applied) = position.applied else {
            return Ok(Vec::new());
        };
        let failed = |source: AnyError| StorageError::from(StorageIOError::apply(applied, source));
        let bytes = dfs_common::codec::encode(&position).map_err(|error| failed(AnyError::new(&error)))?;
        let outcomes = self
            .machine
            .apply(&commands, &bytes)
            .map_err(|error| failed(AnyError::error(format!("applying: {error}"))))?;
        if outcomes.len() != commands.len() {
            return Err(failed(AnyError::error(format!(
                "{} outcomes of {} commands",
                outcomes.len(),
                commands.len()
            ))));
        }
        self.position = position;
        let mut outcomes = outcomes.into_iter();
        Ok(counts
            .into_iter()
            .map(|count| OutcomeBatch(outcomes.by_ref().take(count).collect()))
            .collect())
    }
}

fn snapshot_failed(write: bool, error: &dyn std::fmt::Display) -> StorageError {
    let source = AnyError::error(error);
    if write {
        StorageIOError::write_snapshot(None, source).into()
    } else {
        StorageIOError::read_snapshot(None, source).into()
    }
}

impl RaftStateMachine<TypeConfig> for MachineStore {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.position.applied, self.position.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<OutcomeBatch>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        // Nothing is applied, and so nothing acknowledged, that is not on this server's disk: the engine counts this
        // server's own copy before it is.
        if let Some(last) = entries.last().map(|entry| entry.log_id) {
            self.log
                .durable(last)
                .await
                .map_err(|error| StorageError::from(StorageIOError::apply(last, AnyError::new(&error))))?;
        }
        let commands = |entry: &Entry| match &entry.payload {
            EntryPayload::Normal(batch) => batch.0.len(),
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        };
        if entries.iter().map(commands).sum::<usize>() <= INLINE_COMMANDS {
            self.apply_entries(&entries)
        } else {
            blocking(|| self.apply_entries(&entries))
        }
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<tokio::fs::File>, StorageError> {
        // Only the newest stream is alive.
        for path in std::mem::take(&mut self.receiving).into_values() {
            let _ = std::fs::remove_file(path);
        }
        let path = self.snapshots.temporary_path("receive");
        let file = blocking(|| {
            std::fs::File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
        })
        .map_err(|error| snapshot_failed(true, &LogError::io("creating", &path)(error)))?;
        let inode = file.metadata().map_err(|error| snapshot_failed(true, &error))?.ino();
        self.receiving.insert(inode, path);
        Ok(Box::new(tokio::fs::File::from_std(file)))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<tokio::fs::File>,
    ) -> Result<(), StorageError> {
        let file = snapshot.into_std().await;
        let inode = file.metadata().map_err(|error| snapshot_failed(true, &error))?.ino();
        let Some(path) = self.receiving.remove(&inode) else {
            return Err(snapshot_failed(true, &"a snapshot that was not being received"));
        };
        blocking(|| {
            file.sync_all()
                .map_err(|error| snapshot_failed(true, &LogError::io("syncing", &path)(error)))?;
            let path = self
                .snapshots
                .adopt(&path, meta)
                .map_err(|error| snapshot_failed(true, &error))?;
            self.snapshots
                .import(&path, meta, &*self.machine)
                .map_err(|error| snapshot_failed(true, &error))
        })?;
        self.position = Position {
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let (snapshots, machine) = (self.snapshots.clone(), self.machine.clone());
        let sound = tokio::task::spawn_blocking(move || snapshots.sound(&*machine))
            .await
            .map_err(|error| snapshot_failed(false, &error))?;
        match sound.map_err(|error| snapshot_failed(false, &error))? {
            Some((meta, path)) => open_snapshot(meta, path).await.map(Some),
            None => Ok(None),
        }
    }
}

async fn open_snapshot(meta: SnapshotMeta, path: PathBuf) -> Result<Snapshot<TypeConfig>, StorageError> {
    let file = tokio::fs::File::open(&path)
        .await
        .map_err(|error| snapshot_failed(false, &LogError::io("opening", &path)(error)))?;
    Ok(Snapshot {
        meta,
        snapshot: Box::new(file),
    })
}

impl RaftSnapshotBuilder<TypeConfig> for MachineStore {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (snapshots, machine) = (self.snapshots.clone(), self.machine.clone());
        let built = tokio::task::spawn_blocking(move || snapshots.build(&*machine))
            .await
            .map_err(|error| snapshot_failed(true, &error))?;
        let (meta, path) = built.map_err(|error| snapshot_failed(true, &error))?;
        open_snapshot(meta, path).await
    }
}
