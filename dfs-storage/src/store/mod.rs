//! The block log: everything a storage node keeps, appended to large segments, with an index in memory.
//!
//! Invariant: what is answered is a prefix of the log, what is synced a prefix of that, and the index a function of the
//! log alone. So a kill loses nothing that was answered, a power cut nothing that was synced, and neither leaves a torn or
//! half-applied mutation. Why a log: one write stream and one fdatasync for all who wait, overwrites never tear, and a
//! small file costs one append. `format` has the bytes, `log` the order of writes, `recovery` the way back,
//! `maintain` checkpoints and compaction.

mod checkpoint;
mod error;
mod format;
mod index;
mod install;
mod log;
mod maintain;
mod mend;
mod quiet;
mod read;
mod recovery;
mod scan;
#[cfg(test)]
mod tests;
mod trouble;
mod types;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::planted::{self, Bug};
use dfs_common::units::BLOCK_SIZE_BYTES;
use dfs_common::wire::storage::{
    BlockRun, ChunkMemory, ChunkState, ChunkSummary, FileRun, FileRuns, Mutation, Origin, RunsWanted,
};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVector, ChunkVersion, CutEpoch, HybridClock, InodeId, RequestId,
    Scarce, StoreId,
};

use self::checkpoint::CHECKPOINT_FILE;
use self::format::{DATA_START, FORMAT_VERSION, Kind, Superblock, SuperblockFault, checksums, payload_bytes};
use self::index::{Effect, Entry, Extent, Health, Index};
use self::install::check_blocks;
use self::log::{Draft, Geometry, Log, POISON_FILE, RESERVE_SEGMENTS, Urgency, segment_slot};
use crate::disk::Disk;

pub use error::StoreError;
pub use types::{
    ChunkRead, MaintainReport, REMEMBERED_REQUESTS, RecoveryReport, Rot, SEGMENT_SIZE_BYTES, StoreOptions, Usage,
};

/// Chunks of an inode at or after `from`, tombstones included.
fn of_inode(
    index: &Index,
    chain: ChainId,
    inode: InodeId,
    from: ChunkIndex,
) -> impl Iterator<Item = (ChunkId, &Entry)> {
    let after = from.0.checked_sub(1).map_or_else(
        || ChunkId::new(InodeId(inode.0.saturating_sub(1)), ChunkIndex(u32::MAX)),
        |before| ChunkId::new(inode, ChunkIndex(before)),
    );
    index
        .chain_after(chain, Some(after))
        .take_while(move |(chunk, _)| chunk.inode == inode)
}

const SUPERBLOCK_FILE: &str = "superblock";

/// The same bytes: without a superblock a whole disk would be lost to one flipped bit.
const SUPERBLOCK_COPY_FILE: &str = "superblock.copy";

/// Smallest segment that a real capacity leads to: it holds the largest message.
const MIN_SEGMENT_SIZE_BYTES: u64 = 8 << 20;

/// Segments without which a store can not work.
const MIN_SLOTS: u32 = RESERVE_SEGMENTS + 2;

/// A capacity is cut into at least this many segments, so that compaction has room to work in.
const MIN_SEGMENTS: u64 = 16;

/// Steps of compaction that a write may wait for when the store is full of dead bytes.
const COMPACT_STEPS_WHEN_FULL: usize = 8;

/// The chunks of one storage node. Cheap to clone; every call blocks shortly and may come from any thread.
#[derive(Clone)]
pub struct ChunkStore {
    log: Arc<Log>,
}

impl std::fmt::Debug for ChunkStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkStore")
            .field("node", &self.log.geometry.node)
            .finish_non_exhaustive()
    }
}

/// Makes the one of the two superblocks that is missing or damaged from the other. Returns what was damaged.
fn heal_superblock(disk: &dyn Disk) -> Result<Vec<String>, StoreError> {
    let read = |name: &str| match disk.read_file(name) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("reading the store's superblock", error)),
    };
    let files = [SUPERBLOCK_FILE, SUPERBLOCK_COPY_FILE];
    let found = [read(files[0])?, read(files[1])?];
    let is_sound = |bytes: &&Vec<u8>| Superblock::decode(bytes).is_ok();
    // The first one decides while it is sound: a start that makes both may have been cut short.
    let Some(sound) = found.iter().flatten().find(is_sound) else {
        return Ok(Vec::new());
    };
    let mut healed = Vec::new();
    for (name, bytes) in files.iter().zip(&found) {
        if bytes.as_ref() == Some(sound) {
            continue;
        }
        disk.replace(name, &[sound])
            .map_err(|error| StoreError::io("writing the store's superblock", error))?;
        if bytes.is_some() {
            healed.push(format!("{name} was damaged: made anew from its copy"));
        }
    }
    Ok(healed)
}

/// Reads the superblock, or makes one in an empty directory.
fn superblock(disk: &dyn Disk, options: &StoreOptions) -> Result<Superblock, StoreError> {
    let reading = |error| StoreError::io("reading the store's superblock", error);
    let bytes = match disk.read_file(SUPERBLOCK_FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let names = disk.list().map_err(reading)?;
            if names.iter().any(|name| segment_slot(name).is_some()) {
                return Err(StoreError::Incompatible(
                    "the store has segments but no superblock: restore it, or empty the directory to rebuild from the peers"
                        .into(),
                ));
            }
            let size = (options.capacity_bytes / MIN_SEGMENTS)
                .max(MIN_SEGMENT_SIZE_BYTES)
                .min(u64::from(options.segment_size_bytes));
            let made = Superblock {
                cluster: options.cluster,
                node: options.node,
                segment_size_bytes: (size as u32).next_multiple_of(DATA_START),
                store: options.new_store,
            };
            disk.replace(SUPERBLOCK_FILE, &[&made.encode()])
                .map_err(|error| StoreError::io("writing the store's superblock", error))?;
            return Ok(made);
        }
        Err(error) => return Err(reading(error)),
    };
    let found = Superblock::decode(&bytes).map_err(|fault| {
        StoreError::Incompatible(match fault {
            SuperblockFault::NotOurs => {
                "the directory's superblock is not one of a dfs store: name another directory".into()
            }
            SuperblockFault::Version(version) => {
                let remedy = if version > FORMAT_VERSION {
                    "use the newer program"
                } else {
                    "empty the directory to rebuild from the peers, one node at a time"
                };
                format!("the store has format {version}, this program knows {FORMAT_VERSION}: {remedy}")
            }
            SuperblockFault::Checksum => {
                "the store's superblock is damaged: empty the directory to rebuild from the peers".into()
            }
        })
    })?;
    if found.cluster != options.cluster || found.node != options.node {
        return Err(StoreError::Incompatible(format!(
            "the store belongs to node {} of cluster {}, not to node {} of cluster {}: name the right directory",
            found.node, found.cluster, options.node, options.cluster
        )));
    }
    Ok(found)
}

impl ChunkStore {
    /// Which store stands in a directory, without opening it; a name that nobody has if that can not be read.
    pub fn id_of(disk: &dyn Disk) -> StoreId {
        [SUPERBLOCK_FILE, SUPERBLOCK_COPY_FILE]
            .iter()
            .filter_map(|name| disk.read_file(name).ok())
            .find_map(|bytes| Superblock::decode(&bytes).ok())
            .map_or_else(StoreId::default, |superblock| superblock.store)
    }

    /// The file that says so; see [`Self::poisoned`].
    pub const FAULT_MARK: &'static str = POISON_FILE;

    /// Why a store that is not open can not be trusted, if an earlier run found so.
    ///
    /// # Errors
    /// When nobody can tell: a store that may be poisoned is not to be opened.
    pub fn poisoned(disk: &dyn Disk) -> Result<Option<String>, StoreError> {
        match disk.read_file(POISON_FILE) {
            Ok(reason) => Ok(Some(String::from_utf8_lossy(&reason).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("reading whether the store is poisoned", error)),
        }
    }

    /// Removes everything from a store that is not open, so that the next [`Self::open`] makes a new one. The marker of its fault goes
    /// last: a store that is half emptied is never opened.
    pub fn wipe(disk: &dyn Disk) -> Result<(), StoreError> {
        let io = |error| StoreError::io("emptying the store", error);
        let names = disk.list().map_err(io)?;
        let ours = |name: &&String| {
            segment_slot(name).is_some()
                || [SUPERBLOCK_FILE, SUPERBLOCK_COPY_FILE, CHECKPOINT_FILE].contains(&name.as_str())
        };
        for name in names.iter().filter(ours) {
            disk.remove(name).map_err(io)?;
        }
        disk.sync_directory().map_err(io)?;
        if names.iter().any(|name| name == POISON_FILE) {
            disk.remove(POISON_FILE).map_err(io)?;
            disk.sync_directory().map_err(io)?;
        }
        Ok(())
    }

    #[allow(clippy::needless_pass_by_value)] // options are the caller's to give away, as everywhere
    /// Opens (or makes) the store in `disk`'s directory and rebuilds its index.
    pub fn open(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<(Self, RecoveryReport), StoreError> {
        Self::recover(&disk, &options).map_err(|error| trouble::opening_failed(&*disk, error))
    }

    fn recover(disk: &Arc<dyn Disk>, options: &StoreOptions) -> Result<(Self, RecoveryReport), StoreError> {
        let disk = Arc::clone(disk);
        if let Some(reason) = Self::poisoned(&*disk)? {
            return Err(StoreError::Poisoned { reason });
        }
        let mut rebuilt = heal_superblock(&*disk)?;
        let superblock = superblock(&*disk, options)?;
        rebuilt.extend(heal_superblock(&*disk)?);
        let mut geometry = Geometry {
            cluster: superblock.cluster,
            node: superblock.node,
            store: superblock.store,
            segment_size_bytes: superblock.segment_size_bytes,
        };
        let max_slots = slots(options.capacity_bytes, &geometry);
        if max_slots < MIN_SLOTS {
            return Err(StoreError::Incompatible(format!(
                "a capacity of {} bytes is too small: a store needs at least {}",
                options.capacity_bytes,
                u64::from(MIN_SLOTS) * u64::from(superblock.segment_size_bytes)
            )));
        }
        // A store that lost something is not the one that the metadata group knows: were it to bring a chain back alone, what it lost
        // would be lost everywhere. Under a new name it only ever catches up with the others.
        let mut renamed = false;
        let mut give_up = || {
            let block = Superblock {
                store: options.new_store,
                ..superblock
            };
            renamed = true;
            [SUPERBLOCK_FILE, SUPERBLOCK_COPY_FILE]
                .iter()
                .try_for_each(|name| disk.replace(name, &[&block.encode()]))
                .map_err(|error| StoreError::io("writing the store's superblock", error))
        };
        let mut recovered = recovery::recover(&*disk, &geometry, &mut give_up)?;
        if renamed {
            geometry.store = options.new_store;
            tracing::error!(store = %geometry.store, "something in the store is lost: it takes a new name and catches up with its peers");
        }
        recovered.report.rebuilt.splice(0..0, rebuilt);
        let log = Log::new(disk, geometry, max_slots, recovered.index, recovered.start, options)?;
        if recovered.checkpoint {
            log.checkpoint()?;
        }
        Ok((Self { log: Arc::new(log) }, recovered.report))
    }

    /// Carries out `mutation` under `version`, which the caller chose; the store judges neither order nor conditions.
    /// When it returns, the mutation is visible and survives the process; [`Self::sync`] makes it survive the machine.
    pub fn apply(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        version: ChunkVersion,
        origin: Origin,
        mutation: &Mutation,
        payload: &Bytes,
    ) -> Result<(), StoreError> {
        self.check_chain(chain, chunk)?;
        let mut draft = Draft {
            kind: Kind::Remove,
            origin,
            ..Draft::state(chain, chunk, version)
        };
        match *mutation {
            Mutation::Remove => self.log.append(&draft, &[], &[], |_, _| Effect::Remove),
            Mutation::Truncate { blocks } => {
                draft.kind = Kind::Truncate;
                draft.first = BlockIndex(blocks);
                self.log.append(&draft, &[], &[], |_, _| Effect::Truncate { blocks })
            }
            Mutation::Write {
                first,
                blocks,
                last_length_bytes,
                ..
            } => {
                check_blocks(chunk, first, blocks, last_length_bytes)?;
                let expected = payload_bytes(blocks, last_length_bytes);
                if payload.len() != expected {
                    return Err(StoreError::Invalid {
                        chunk,
                        reason: format!("a payload of {} bytes where {expected} are announced", payload.len()),
                    });
                }
                draft.kind = Kind::Write;
                draft.first = first;
                draft.blocks = blocks;
                draft.last_length_bytes = last_length_bytes;
                draft.urgency = Urgency::Data;
                let sums = checksums(chunk, version, first, blocks, payload);
                self.with_room(|| {
                    self.log.append(&draft, &sums, payload, |file, offset| {
                        Effect::Write(Extent {
                            sequence: file.sequence,
                            version,
                            offset,
                            first,
                            record_blocks: blocks as u16,
                            skip: 0,
                            blocks: blocks as u16,
                            last_length_bytes: last_length_bytes as u16,
                        })
                    })
                })
            }
        }
    }

    fn check_chain(&self, chain: ChainId, chunk: ChunkId) -> Result<(), StoreError> {
        match self.log.index.read().chain_of(chunk) {
            Some(holds) if holds != chain => Err(StoreError::WrongChain {
                chunk,
                holds,
                asked: chain,
            }),
            _ => Ok(()),
        }
    }

    /// Does `append`; if there is no room, makes some and tries again.
    fn with_room(&self, append: impl Fn() -> Result<(), StoreError>) -> Result<(), StoreError> {
        for _ in 0..COMPACT_STEPS_WHEN_FULL {
            match append() {
                Err(StoreError::NoSpace { .. }) => {}
                done => return done,
            }
            let step = self.log.maintain(&|_| Some(Duration::ZERO))?;
            if !(step.more || step.checkpointed || step.reclaimed_bytes > 0) {
                break;
            }
        }
        append()
    }

    /// Makes all that was applied before the call durable. Callers at the same time share one fdatasync.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.log.sync().map(drop)
    }

    /// About how much was appended since the last sync began.
    pub fn unsynced_bytes(&self) -> u64 {
        self.log.lock().unsynced_bytes
    }

    /// Blocks of `first .. first + blocks`, checked against their checksums. An unknown chunk is one hole of version `NONE`.
    pub fn read(&self, chunk: ChunkId, first: BlockIndex, blocks: u32) -> Result<ChunkRead, StoreError> {
        read::read(&self.log.index, chunk, first, blocks)
    }

    /// `NONE` for a chunk never heard of; a removed one keeps its last version.
    pub fn version(&self, chunk: ChunkId) -> ChunkVersion {
        self.log
            .index
            .read()
            .get(chunk)
            .map_or(ChunkVersion::NONE, |entry| entry.version)
    }

    /// Version of the mutation that wrote a block; `NONE` for a hole.
    pub fn block_version(&self, chunk: ChunkId, block: BlockIndex) -> ChunkVersion {
        let index = self.log.index.read();
        let end = block.0.saturating_add(1);
        let extent = index.get(chunk).and_then(|entry| entry.within(block.0, end).next());
        extent.map_or(ChunkVersion::NONE, |extent| extent.version)
    }

    /// Version that request `id` produced, if the chunk still remembers it.
    pub fn remembered(&self, chunk: ChunkId, id: RequestId) -> Option<ChunkVersion> {
        if planted::is(Bug::ChunkDedupeForgets) {
            return None;
        }
        let index = self.log.index.read();
        let mut all = index.get(chunk)?.remembered.iter().rev();
        all.find(|entry| entry.id == id).map(|entry| entry.version)
    }

    /// What a copy of the chunk takes along.
    pub fn memory(&self, chunk: ChunkId) -> ChunkMemory {
        if planted::is(Bug::CopyWithoutMemory) {
            return ChunkMemory::default();
        }
        let index = self.log.index.read();
        let mut memory = index.get(chunk).map_or_else(ChunkMemory::default, Entry::memory);
        if planted::is(Bug::CopyWithoutCut) {
            memory.cut = CutEpoch::NONE;
        }
        memory
    }

    /// When the chunk's newest version was given out.
    pub fn stamp(&self, chunk: ChunkId) -> HybridClock {
        let index = self.log.index.read();
        index.get(chunk).map_or_else(HybridClock::default, |entry| entry.stamp)
    }

    /// The last mutation that cut blocks off the chunk.
    pub fn trimmed(&self, chunk: ChunkId) -> ChunkVersion {
        let index = self.log.index.read();
        index.get(chunk).map_or(ChunkVersion::NONE, |entry| entry.trimmed)
    }

    /// The newest truncation epoch that a mutation of the chunk came with.
    pub fn cut(&self, chunk: ChunkId) -> CutEpoch {
        let index = self.log.index.read();
        index.get(chunk).map_or(CutEpoch::NONE, |entry| entry.cut)
    }

    /// Whether all that is left of the chunk is what it remembers.
    pub fn is_removed(&self, chunk: ChunkId) -> bool {
        self.log.index.read().get(chunk).is_some_and(|entry| entry.removed)
    }

    /// All about a chunk but its data, of which some may be damaged. `None`: a mutation of it is lost, so nobody knows.
    pub fn state(&self, chunk: ChunkId) -> Option<ChunkState> {
        let index = self.log.index.read();
        let entry = index.get(chunk);
        if entry.is_some_and(|entry| entry.health == Health::Incomplete) {
            return None;
        }
        Some(ChunkState {
            chunk,
            version: entry.map_or(ChunkVersion::NONE, |entry| entry.version),
            memory: entry.map_or_else(ChunkMemory::default, Entry::memory),
            runs: entry.map_or_else(Vec::new, Entry::runs),
        })
    }

    /// Whether a version is part of the chunk's history.
    pub fn has_version(&self, chunk: ChunkId, version: ChunkVersion) -> bool {
        let index = self.log.index.read();
        let entry = index.get(chunk);
        let earlier = entry.map_or(&[][..], |entry| &entry.earlier);
        let last = entry.map_or(ChunkVersion::NONE, |entry| entry.version);
        version == last || ChunkVector::new(earlier, last).has(version)
    }

    /// Chunks of a chain after `after` in order, tombstones included. One that recovery found damaged is listed with
    /// version `NONE`, so that a comparison with a peer has it copied.
    pub fn list(&self, chain: ChainId, after: Option<ChunkId>, limit: usize) -> Vec<(ChunkId, ChunkVersion)> {
        let index = self.log.index.read();
        let all = index.chain_after(chain, after).take(limit);
        all.map(|(chunk, entry)| match entry.health {
            Health::Sound => (chunk, entry.version),
            Health::Rotten | Health::Incomplete => (chunk, ChunkVersion::NONE),
        })
        .collect()
    }

    /// The same without tombstones of removed files: those say no more than nothing does, and are
    /// forgotten at one member sooner than at another.
    pub fn list_kept(&self, chain: ChainId, after: Option<ChunkId>, limit: usize) -> Vec<ChunkId> {
        let index = self.log.index.read();
        let kept = index.chain_after(chain, after).filter(|(_, entry)| !entry.is_gone());
        kept.map(|(chunk, _)| chunk).take(limit).collect()
    }

    /// Chunks of an inode at or after `from`, tombstones included.
    pub fn chunks_of(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Vec<ChunkId> {
        let index = self.log.index.read();
        of_inode(&index, chain, inode, from).map(|(chunk, _)| chunk).collect()
    }

    /// The last of those that have data, and the bytes from its start to their end; `u32::MAX` when a mutation of it was lost,
    /// so that nobody knows.
    pub fn file_end(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Option<(ChunkIndex, u32)> {
        let index = self.log.index.read();
        let ends = of_inode(&index, chain, inode, from).filter_map(|(chunk, entry)| {
            if entry.removed {
                return None;
            }
            if entry.health == Health::Incomplete {
                return Some((chunk.index, u32::MAX));
            }
            let last = entry.extents.last()?;
            let before = (last.end() - 1) * BLOCK_SIZE_BYTES as u32;
            Some((chunk.index, before + u32::from(last.last_length_bytes)))
        });
        ends.last()
    }

    /// Blocks of an inode from that one on.
    pub fn file_runs(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: (ChunkIndex, BlockIndex),
        wanted: RunsWanted,
    ) -> FileRuns {
        let index = self.log.index.read();
        let mut found = FileRuns::default();
        for (chunk, entry) in of_inode(&index, chain, inode, from.0).filter(|(_, entry)| !entry.removed) {
            let least = if chunk.index == from.0 { from.1.0 } else { 0 };
            for extent in entry.extents.iter().filter(|extent| extent.end() > least) {
                let first = extent.first.0.max(least);
                let run = FileRun {
                    chunk: chunk.index,
                    first: BlockIndex(first),
                    blocks: extent.end() - first,
                };
                if !found.add(wanted, run) {
                    return found;
                }
            }
        }
        found
    }

    /// Version, size and digest; `deep` reads and hashes the data too.
    pub fn summarize(&self, chunk: ChunkId, deep: bool) -> Result<ChunkSummary, StoreError> {
        read::summarize(&self.log.index, chunk, deep)
    }

    /// Blocks of a chunk that do not match their checksums, with the version that each should have. `Corrupt`: a mutation of
    /// the chunk was lost, and only a whole copy helps.
    pub fn bad_blocks(&self, chunk: ChunkId) -> Result<Vec<BlockRun>, StoreError> {
        self.log.bad_blocks(chunk)
    }

    /// Puts a neighbour's copy in the place of blocks of the same version; payload as in [`ChunkRead`]. Returns how many took it:
    /// what was changed meanwhile stays as it is.
    pub fn mend(&self, chunk: ChunkId, runs: &[BlockRun], payload: &Bytes) -> Result<u64, StoreError> {
        self.log.mend(chunk, runs, payload)
    }

    /// Checks the store's own files and makes anew what is damaged. Returns what that was.
    pub fn check_files(&self) -> Result<Vec<String>, StoreError> {
        let mut rebuilt = heal_superblock(self.log.disk())?;
        if !self.log.checkpoint_is_sound()? {
            self.log.checkpoint()?;
            rebuilt.push("the checkpoint was unreadable: written anew".into());
        }
        Ok(rebuilt)
    }

    /// Chunks of all chains after `after`, tombstones left out.
    pub fn chunks_after(&self, after: Option<(ChainId, ChunkId)>, limit: usize) -> Vec<(ChainId, ChunkId)> {
        let index = self.log.index.read();
        let all = index.after(after).filter(|(_, _, entry)| !entry.removed);
        all.take(limit).map(|(chain, chunk, _)| (chain, chunk)).collect()
    }

    /// About what a chunk takes on the disk.
    pub fn size_bytes(&self, chunk: ChunkId) -> u64 {
        self.log.index.read().get(chunk).map_or(0, Entry::size_bytes)
    }

    /// Chain of a chunk that is here.
    pub fn chain_of(&self, chunk: ChunkId) -> Option<ChainId> {
        self.log.index.read().chain_of(chunk)
    }

    /// Starts a staged copy of a chunk; one that was begun and not finished is dropped. The chunk itself stays as it is.
    pub fn install_begin(&self, chain: ChainId, chunk: ChunkId) -> Result<(), StoreError> {
        self.check_chain(chain, chunk)?;
        self.log.install_begin(chain, chunk)
    }

    /// Adds runs to the staged copy; payload as in [`ChunkRead`].
    pub fn install_part(&self, chunk: ChunkId, runs: &[BlockRun], payload: &Bytes) -> Result<(), StoreError> {
        self.log.install_part(chunk, runs, payload)
    }

    /// The staged copy takes the chunk's place, all or nothing.
    pub fn install_finish(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        version: ChunkVersion,
        memory: &ChunkMemory,
    ) -> Result<(), StoreError> {
        self.log.install_finish(chain, chunk, version, memory)
    }

    /// Forgets a chunk with its version: the predecessor does not know it.
    pub fn drop_chunk(&self, chain: ChainId, chunk: ChunkId) -> Result<(), StoreError> {
        self.check_chain(chain, chunk)?;
        let draft = Draft {
            kind: Kind::Drop,
            ..Draft::state(chain, chunk, ChunkVersion::NONE)
        };
        self.log
            .append_state(draft, |_, _, index| {
                index.get(chunk).map(|_| (Vec::new(), Effect::Drop))
            })
            .map(drop)
    }

    /// Tombstones of removed files in this chain, at most `limit`.
    pub fn gone(&self, chain: ChainId, limit: usize) -> Vec<(ChunkId, ChunkVersion)> {
        self.log.index.read().gone(chain).take(limit).collect()
    }

    /// Forgets these if they still are tombstones of removed files in this version.
    pub fn forget_gone(&self, chain: ChainId, chunks: &[(ChunkId, ChunkVersion)]) -> Result<(), StoreError> {
        for &(chunk, version) in chunks {
            let draft = Draft {
                kind: Kind::Drop,
                ..Draft::state(chain, chunk, ChunkVersion::NONE)
            };
            self.log.append_state(draft, |_, _, index| {
                let entry = index.get(chunk)?;
                (entry.is_gone() && entry.version == version).then(|| (Vec::new(), Effect::Drop))
            })?;
        }
        Ok(())
    }

    /// Which store this is, since it was made.
    pub fn id(&self) -> StoreId {
        self.log.geometry.store
    }

    pub fn usage(&self) -> Usage {
        let total_bytes = self.log.lock().total_bytes(&self.log.geometry);
        let index = self.log.index.read();
        Usage {
            total_bytes,
            used_bytes: index.live_bytes(),
            chunks: index.live_chunks(),
        }
    }

    /// Bytes of the files of its log.
    pub fn file_bytes(&self) -> u64 {
        u64::from(self.log.lock().slots) * u64::from(self.log.geometry.segment_size_bytes)
    }

    /// It may take so much of its disk from now on. What it has already stays, also if that is
    /// more.
    pub fn set_capacity(&self, bytes: u64) {
        self.log.lock().max_slots = slots(bytes, &self.log.geometry).max(MIN_SLOTS);
    }

    /// Why the store takes nothing more, if so.
    pub fn fault(&self) -> Option<String> {
        self.log.fault().map(|fault| fault.reason)
    }

    /// Why it can not be trusted any more, if so. With any other fault it is as good as before, once it is opened anew.
    pub fn condemned(&self) -> Option<String> {
        self.log
            .fault()
            .filter(|fault| fault.condemned)
            .map(|fault| fault.reason)
    }

    /// What has just run out, and has to come back for the store to go on.
    pub fn shortage(&self) -> Option<Scarce> {
        self.log.shortage.lock().now()
    }

    /// One bounded step of checkpointing and compaction, for a background task. `pace` is told how long a part of it took and
    /// says how long to pause; `None` ends the step. While space is short there are no pauses.
    pub fn maintain(&self, pace: &dyn Fn(Duration) -> Option<Duration>) -> Result<MaintainReport, StoreError> {
        self.log.maintain(pace)
    }

    /// Checkpoint and sync, so that the next start is quick. The store stays usable.
    pub fn close(&self) -> Result<(), StoreError> {
        self.log.checkpoint()
    }
}

/// Segments that fit into a capacity.
fn slots(capacity_bytes: u64, geometry: &Geometry) -> u32 {
    u32::try_from(capacity_bytes / u64::from(geometry.segment_size_bytes)).unwrap_or(u32::MAX)
}
