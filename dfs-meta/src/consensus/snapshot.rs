//! Snapshots on disk: the whole state in one sealed, hashed file.
//!
//! ```text
//! 0 magic "DFSMSNP1" | 8 version u32 | 12 zero u32 | 16 cluster [16] | 32 salt [16]
//! frames: length u32 | kind u32 (1 rows, 2 end) | sealed bytes       rows: (key length u32 | value length u32 | key | value)*
//! the end frame holds the meta data; behind it 32 bytes of blake3 over everything before
//! ```
//! A frame is sealed to cluster, salt, its number and its kind, so frames can not be reordered or mixed. A file gets its
//! final name only after it was synced, read back and found sound; the log is cut only behind such a file. The same bytes
//! travel to a server that is too far behind, which checks them the same way.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_common::{ClusterId, DiskCall};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::error::LogError;
use super::log::sync_directory;
use super::patience::very_patiently;
use super::types::{Position, SnapshotMeta};
use super::{MachineError, Seal, StateMachine};
use crate::room::{Room, RoomLeft, lacks_space};

const MAGIC: [u8; 8] = *b"DFSMSNP1";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 48;
const HASH_BYTES: u64 = 32;
const ROWS: u32 = 1;
const END: u32 = 2;

/// Rows are gathered up to this size before they are sealed.
const FRAME_BYTES: usize = 256 << 10;

/// A frame holds at least one row, however large; bounds what a reader allocates.
const MAX_FRAME_BYTES: usize = 16 << 20;

/// The newest, and the one before it for an operator to look at should the newest rot.
const KEPT: usize = 2;

/// Why a snapshot could not be made or used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the state machine: {0}")]
    Machine(#[source] MachineError),
}

impl SnapshotError {
    /// Whether there was no room for it on the disk.
    fn lacks_space(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<std::io::Error>() {
                return lacks_space(DiskCall::Write, error);
            }
            cause = error.source();
        }
        false
    }
}

/// Between two looks whether there is room.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// After so many it is tried all the same.
const LOOKS: u32 = 10;

/// The snapshots of one server.
pub(super) struct Snapshots {
    directory: PathBuf,
    cluster: ClusterId,
    sealer: Arc<dyn Seal>,
    room: Arc<Room>,
    current: Mutex<Option<(SnapshotMeta, PathBuf)>>,
    /// Shared with the log: entries below stand in a verified snapshot.
    covered: watch::Sender<u64>,
    temporary: AtomicU64,
}

struct Head {
    cluster: ClusterId,
    salt: [u8; 16],
}

fn aad(head: &Head, number: u64, kind: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(56);
    out.extend_from_slice(b"dfs-snp1");
    out.extend_from_slice(&head.cluster.0);
    out.extend_from_slice(&head.salt);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out
}

/// Writes frames and hashes on the way.
struct FrameWriter<'a> {
    path: &'a Path,
    room: &'a Room,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    head: Head,
    sealer: &'a dyn Seal,
    number: u64,
    offset: u64,
    rows: Vec<u8>,
}

impl<'a> FrameWriter<'a> {
    fn new(path: &'a Path, room: &'a Room, head: Head, sealer: &'a dyn Seal) -> Result<Self, LogError> {
        let file = very_patiently(DiskCall::Name, || File::create(path)).map_err(LogError::io("creating", path))?;
        let mut this = Self {
            path,
            room,
            file: BufWriter::with_capacity(1 << 20, file),
            hasher: blake3::Hasher::new(),
            head,
            sealer,
            number: 0,
            offset: 0,
            rows: Vec::with_capacity(FRAME_BYTES + 4096),
        };
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..32].copy_from_slice(&this.head.cluster.0);
        header[32..48].copy_from_slice(&this.head.salt);
        this.put(&header)?;
        Ok(this)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        self.file.write_all(bytes).map_err(LogError::io("writing", self.path))
    }

    fn frame(&mut self, kind: u32, plain: &[u8]) -> Result<(), LogError> {
        let sealed = self
            .sealer
            .seal(&aad(&self.head, self.number, kind), plain)
            .map_err(|source| LogError::Seal {
                path: self.path.to_path_buf(),
                offset: self.offset,
                source,
            })?;
        if sealed.len() > MAX_FRAME_BYTES {
            return Err(LogError::TooBig(sealed.len()));
        }
        self.number += 1;
        self.room
            .check(sealed.len() as u64)
            .map_err(LogError::io("writing", self.path))?;
        self.put(&(sealed.len() as u32).to_le_bytes())?;
        self.put(&kind.to_le_bytes())?;
        self.put(&sealed)
    }

    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), LogError> {
        if !self.rows.is_empty() && self.rows.len() + key.len() + value.len() + 8 > FRAME_BYTES {
            self.flush_rows()?;
        }
        self.rows.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.rows.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.rows.extend_from_slice(key);
        self.rows.extend_from_slice(value);
        Ok(())
    }

    fn flush_rows(&mut self) -> Result<(), LogError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.frame(ROWS, &rows)?;
        self.rows = rows;
        self.rows.clear();
        Ok(())
    }

    fn finish(mut self, meta: &SnapshotMeta) -> Result<(), LogError> {
        self.flush_rows()?;
        let meta = dfs_common::codec::encode(meta).map_err(|_| LogError::TooBig(usize::MAX))?;
        self.frame(END, &meta)?;
        let hash = *self.hasher.finalize().as_bytes();
        self.file.write_all(&hash).map_err(LogError::io("writing", self.path))?;
        let file = self
            .file
            .into_inner()
            .map_err(|error| LogError::io("writing", self.path)(error.into_error()))?;
        file.sync_all().map_err(LogError::io("syncing", self.path))
    }
}

/// Key and value.
type Row = (Vec<u8>, Vec<u8>);

/// Reads frames in order.
struct FrameReader {
    path: PathBuf,
    file: BufReader<File>,
    head: Head,
    sealer: Arc<dyn Seal>,
    number: u64,
    offset: u64,
    rows: Vec<u8>,
    at: usize,
    meta: Option<SnapshotMeta>,
}

impl FrameReader {
    fn open(path: &Path, cluster: ClusterId, sealer: Arc<dyn Seal>) -> Result<Self, LogError> {
        let file = very_patiently(DiskCall::Name, || File::open(path)).map_err(LogError::io("opening", path))?;
        let mut this = Self {
            path: path.to_path_buf(),
            file: BufReader::with_capacity(1 << 20, file),
            head: Head { cluster, salt: [0; 16] },
            sealer,
            number: 0,
            offset: 0,
            rows: Vec::new(),
            at: 0,
            meta: None,
        };
        let header = this.bytes(HEADER_BYTES)?;
        if header[..8] != MAGIC {
            return Err(this.rot("no snapshot magic"));
        }
        let mut word = [0; 4];
        word.copy_from_slice(&header[8..12]);
        let found = u32::from_le_bytes(word);
        if found != VERSION {
            return Err(LogError::Version {
                path: this.path,
                found,
                known: VERSION,
            });
        }
        let mut id = [0; 16];
        id.copy_from_slice(&header[16..32]);
        if ClusterId(id) != cluster {
            return Err(LogError::ForeignCluster {
                path: this.path,
                found: ClusterId(id),
                expected: cluster,
            });
        }
        this.head.salt.copy_from_slice(&header[32..48]);
        Ok(this)
    }

    fn rot(&self, detail: impl Into<String>) -> LogError {
        LogError::Rot {
            path: self.path.clone(),
            offset: self.offset,
            detail: detail.into(),
        }
    }

    fn bytes(&mut self, count: usize) -> Result<Vec<u8>, LogError> {
        let mut out = vec![0; count];
        match self.file.read_exact(&mut out) {
            Ok(()) => {
                self.offset += count as u64;
                Ok(out)
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(self.rot("the file is cut off")),
            Err(error) => Err(LogError::io("reading", &self.path)(error)),
        }
    }

    fn word(&mut self) -> Result<u32, LogError> {
        let bytes = self.bytes(4)?;
        let mut word = [0; 4];
        word.copy_from_slice(&bytes);
        Ok(u32::from_le_bytes(word))
    }

    /// Loads the next frame: rows, or the meta data, after which there is nothing.
    fn advance(&mut self) -> Result<(), LogError> {
        let length = self.word()? as usize;
        let kind = self.word()?;
        if length > MAX_FRAME_BYTES || !matches!(kind, ROWS | END) {
            return Err(self.rot("no frame of a snapshot"));
        }
        let sealed = self.bytes(length)?;
        let aad = aad(&self.head, self.number, kind);
        let plain = self.sealer.open(&aad, &sealed).map_err(|source| LogError::Seal {
            path: self.path.clone(),
            offset: self.offset,
            source,
        })?;
        self.number += 1;
        if kind == ROWS {
            self.rows = plain;
            self.at = 0;
        } else {
            self.meta = Some(dfs_common::codec::decode(&plain).map_err(|error| self.rot(error.to_string()))?);
        }
        Ok(())
    }

    fn row(&mut self) -> Result<Option<Row>, LogError> {
        while self.at == self.rows.len() {
            if self.meta.is_some() {
                return Ok(None);
            }
            self.advance()?;
        }
        let length = |at: usize| {
            let bytes = self.rows.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
        };
        let parts = length(self.at).zip(length(self.at + 4)).and_then(|(key, value)| {
            let start = self.at + 8;
            let rest = self.rows.get(start..start.checked_add(key)?.checked_add(value)?)?;
            Some((rest[..key].to_vec(), rest[key..].to_vec()))
        });
        let Some((key, value)) = parts else {
            return Err(self.rot("a row that is cut off"));
        };
        self.at += 8 + key.len() + value.len();
        Ok(Some((key, value)))
    }
}

impl Iterator for FrameReader {
    type Item = Result<Row, MachineError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.row().map_err(MachineError::from).transpose()
    }
}

/// Unique for each snapshot; secrecy is not needed.
fn salt(path: &Path) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(path.as_os_str().as_encoded_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    hasher.update(&time.as_nanos().to_le_bytes());
    let mut salt = [0; 16];
    salt.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    salt
}

/// A damaged snapshot is kept for people to look at; any other error is the caller's.
fn put_aside(path: &Path, error: LogError) -> Result<(), LogError> {
    if !matches!(error, LogError::Rot { .. } | LogError::Seal { .. }) {
        return Err(error);
    }
    tracing::error!(%error, "a snapshot is damaged and is put aside");
    let aside = path.with_extension("damaged");
    std::fs::rename(path, &aside).map_err(LogError::io("renaming", path))
}

impl Snapshots {
    /// Finds the newest sound snapshot; removes what a crash left half made.
    pub(super) fn open(
        directory: PathBuf,
        cluster: ClusterId,
        sealer: Arc<dyn Seal>,
        room: Arc<Room>,
    ) -> Result<Self, LogError> {
        std::fs::create_dir_all(&directory).map_err(LogError::io("creating", &directory))?;
        let this = Self {
            directory,
            cluster,
            sealer,
            room,
            current: Mutex::new(None),
            covered: watch::Sender::new(0),
            temporary: AtomicU64::new(0),
        };
        for path in this.list("tmp")? {
            std::fs::remove_file(&path).map_err(LogError::io("removing", &path))?;
        }
        for path in this.list("snap")?.into_iter().rev() {
            match this.verify(&path) {
                Ok(meta) => {
                    this.set_current(meta, path);
                    break;
                }
                Err(error) => put_aside(&path, error)?,
            }
        }
        Ok(this)
    }

    /// Files with this extension, oldest first (names sort by index).
    fn list(&self, extension: &str) -> Result<Vec<PathBuf>, LogError> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(LogError::io("listing", &self.directory))? {
            let path = entry.map_err(LogError::io("listing", &self.directory))?.path();
            if path.extension().is_some_and(|ext| ext == extension) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    fn set_current(&self, meta: SnapshotMeta, path: PathBuf) {
        let next = meta.last_log_id.map_or(0, |id| id.index + 1);
        self.room
            .note_snapshot(std::fs::metadata(&path).map_or(0, |found| found.len()));
        let mut current = self.current.lock();
        if current
            .as_ref()
            .is_none_or(|(old, _)| old.last_log_id <= meta.last_log_id)
        {
            *current = Some((meta, path));
        }
        drop(current);
        self.covered.send_if_modified(|covered| {
            let more = next > *covered;
            *covered = next.max(*covered);
            more
        });
    }

    pub(super) fn covered(&self) -> watch::Receiver<u64> {
        self.covered.subscribe()
    }

    pub(super) fn current(&self) -> Option<(SnapshotMeta, PathBuf)> {
        self.current.lock().clone()
    }

    /// The newest snapshot, read and found sound; another one if it is not. For somebody who was away for long.
    pub(super) fn sound(&self, machine: &dyn StateMachine) -> Result<Option<(SnapshotMeta, PathBuf)>, SnapshotError> {
        let Some((meta, path)) = self.current() else {
            return Ok(None);
        };
        let Err(error) = self.verify(&path) else {
            return Ok(Some((meta, path)));
        };
        put_aside(&path, error)?;
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|(_, at)| *at == path) {
            *current = None;
        }
        drop(current);
        self.build(machine).map(Some)
    }

    pub(super) fn temporary_path(&self, what: &str) -> PathBuf {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        self.directory.join(format!("{what}-{number}.tmp"))
    }

    /// Reads the whole file: hash, frames, meta data.
    pub(super) fn verify(&self, path: &Path) -> Result<SnapshotMeta, LogError> {
        let file = very_patiently(DiskCall::Name, || File::open(path)).map_err(LogError::io("opening", path))?;
        let length = file.metadata().map_err(LogError::io("examining", path))?.len();
        let rot = |detail: &str| LogError::Rot {
            path: path.to_path_buf(),
            offset: length.saturating_sub(HASH_BYTES),
            detail: detail.into(),
        };
        let Some(hashed) = length
            .checked_sub(HASH_BYTES)
            .filter(|&hashed| hashed >= HEADER_BYTES as u64)
        else {
            return Err(rot("the file is cut off"));
        };
        let mut hasher = blake3::Hasher::new();
        let mut limited = BufReader::with_capacity(1 << 20, file).take(hashed);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match limited.read(&mut buffer).map_err(LogError::io("reading", path))? {
                0 => break,
                some => {
                    hasher.update(&buffer[..some]);
                }
            }
        }
        let mut stored = [0; HASH_BYTES as usize];
        limited
            .into_inner()
            .read_exact(&mut stored)
            .map_err(LogError::io("reading", path))?;
        if hasher.finalize() != blake3::Hash::from(stored) {
            return Err(rot("the hash does not match"));
        }
        let mut reader = FrameReader::open(path, self.cluster, self.sealer.clone())?;
        while reader.meta.is_none() {
            reader.advance()?;
        }
        if reader.offset != hashed {
            return Err(rot("something stands behind the end"));
        }
        reader.meta.ok_or_else(|| rot("no meta data"))
    }

    /// Exports the state into a new snapshot. Blocks for as long as that takes; applies go on as the machine allows.
    /// Without room for it, what was written is removed, and it begins again when there is some.
    pub(super) fn build(&self, machine: &dyn StateMachine) -> Result<(SnapshotMeta, PathBuf), SnapshotError> {
        loop {
            let path = self.temporary_path("build");
            let built = self.build_in(&path, machine);
            if built.is_err() {
                let _ = std::fs::remove_file(&path);
            }
            match &built {
                Err(error) if error.lacks_space() && !self.room.is_closing() => {}
                _ => return built,
            }
            tracing::warn!("no room for a snapshot: it is made when there is some, or when there is less to put in");
            for _ in 0..LOOKS {
                if self.room.look() == RoomLeft::Ample || self.room.is_closing() {
                    break;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }

    fn build_in(&self, path: &Path, machine: &dyn StateMachine) -> Result<(SnapshotMeta, PathBuf), SnapshotError> {
        let started = std::time::Instant::now();
        let head = Head {
            cluster: self.cluster,
            salt: salt(path),
        };
        let id = head
            .salt
            .iter()
            .fold(String::new(), |id, byte| id + &format!("{byte:02x}"));
        let mut writer = FrameWriter::new(path, &self.room, head, &*self.sealer)?;
        let mut sink = |key: &[u8], value: &[u8]| writer.row(key, value).map_err(MachineError::from);
        let position = machine.export(&mut sink).map_err(SnapshotError::Machine)?;
        let position: Position =
            dfs_common::codec::decode(&position).map_err(|error| SnapshotError::Machine(error.into()))?;
        let meta = SnapshotMeta {
            last_log_id: position.applied,
            last_membership: position.membership,
            snapshot_id: id,
        };
        writer.finish(&meta)?;
        let made = self.adopt(path, &meta)?;
        tracing::info!(path = %made.display(), ms = started.elapsed().as_millis() as u64, "snapshot made");
        Ok((meta, made))
    }

    /// Verifies a synced temporary file and gives it its place; then removes what is no longer kept.
    pub(super) fn adopt(&self, temporary: &Path, meta: &SnapshotMeta) -> Result<PathBuf, LogError> {
        let found = self.verify(temporary)?;
        if found != *meta {
            return Err(LogError::Rot {
                path: temporary.to_path_buf(),
                offset: 0,
                detail: format!("it holds {found}, not {meta}"),
            });
        }
        let (index, term) = meta.last_log_id.map_or((0, 0), |id| (id.index, id.leader_id.term));
        let path = self.directory.join(format!("snapshot-{index:016x}-{term:016x}.snap"));
        std::fs::rename(temporary, &path).map_err(LogError::io("renaming", temporary))?;
        sync_directory(&self.directory)?;
        self.set_current(meta.clone(), path.clone());
        let all = self.list("snap")?;
        let kept = match self.room.left() {
            RoomLeft::Ample => KEPT,
            RoomLeft::Short | RoomLeft::Out => 1,
        };
        for old in all.iter().rev().skip(kept) {
            std::fs::remove_file(old).map_err(LogError::io("removing", old))?;
        }
        Ok(path)
    }

    /// Replaces the state by the snapshot in `path`.
    pub(super) fn import(
        &self,
        path: &Path,
        meta: &SnapshotMeta,
        machine: &dyn StateMachine,
    ) -> Result<(), SnapshotError> {
        let mut reader = FrameReader::open(path, self.cluster, self.sealer.clone())?;
        let position = Position {
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        let position = dfs_common::codec::encode(&position).map_err(|error| SnapshotError::Machine(error.into()))?;
        machine.import(&mut reader, &position).map_err(SnapshotError::Machine)
    }
}
