//! The index: which bytes of which segment are each block of each chunk. Pure data; whoever holds it does the I/O.
//!
//! It is a function of the log: records are published to it strictly in log order, at run time and in recovery alike,
//! so that a checkpoint and a replay agree. Neighbouring blocks of one record are one extent (40 bytes).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use dfs_common::version::MAX_EARLIER_EPOCHS;
use dfs_common::wire::storage::{BlockRun, ChunkMemory, Origin, Remembered};
use dfs_common::{BlockIndex, ChainId, ChunkId, ChunkVector, ChunkVersion, CutEpoch, HybridClock};

use super::format::{
    Lsn, RECORD_HEADER_BYTES, Reader, Sequence, Writer, data_bytes, level_code, level_from, record_length_bytes,
};
use super::types::REMEMBERED_REQUESTS;
use crate::disk::DiskFile;

/// Blocks that stand together in one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) sequence: Sequence,
    pub(super) version: ChunkVersion,
    /// Of the record in its segment.
    pub(super) offset: u32,
    pub(super) first: BlockIndex,
    /// Blocks in the whole record: says where seals and ciphertexts begin.
    pub(super) record_blocks: u16,
    /// Blocks of the record before the first one of this extent.
    pub(super) skip: u16,
    pub(super) blocks: u16,
    pub(super) last_length_bytes: u16,
}

impl Extent {
    pub(super) fn run(&self) -> BlockRun {
        BlockRun {
            first: self.first,
            blocks: u32::from(self.blocks),
            last_length_bytes: u32::from(self.last_length_bytes),
            version: self.version,
        }
    }

    pub(super) const fn end(&self) -> u32 {
        self.first.0 + self.blocks as u32
    }

    /// Log bytes that it keeps alive: its blocks with seals and checksums, and a header's worth.
    const fn cost_bytes(&self) -> u64 {
        (RECORD_HEADER_BYTES
            + 32 * self.blocks as usize
            + data_bytes(self.blocks as u32, self.last_length_bytes as u32)) as u64
    }

    /// The part of it within `from .. to`, if there is one.
    pub(super) fn cut(&self, from: u32, to: u32) -> Option<Self> {
        let (start, end) = (self.first.0.max(from), self.end().min(to));
        (start < end).then(|| Self {
            first: BlockIndex(start),
            skip: self.skip + (start - self.first.0) as u16,
            blocks: (end - start) as u16,
            last_length_bytes: if end == self.end() {
                self.last_length_bytes
            } else {
                dfs_common::units::BLOCK_SIZE_BYTES as u16
            },
            ..*self
        })
    }

    fn encode(&self, out: &mut Writer) {
        out.u64(self.sequence.0);
        out.version(self.version);
        out.u32(self.offset);
        out.u32(self.first.0);
        out.u16(self.record_blocks);
        out.u16(self.skip);
        out.u16(self.blocks);
        out.u16(self.last_length_bytes);
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            sequence: Sequence(reader.u64()?),
            version: reader.version()?,
            offset: reader.u32()?,
            first: BlockIndex(reader.u32()?),
            record_blocks: reader.u16()?,
            skip: reader.u16()?,
            blocks: reader.u16()?,
            last_length_bytes: reader.u16()?,
        })
    }
}

/// What recovery knows of a chunk's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Health {
    #[default]
    Sound,
    /// A block did not match its checksum: reads of it fail, a resync must copy the chunk.
    Rotten,
    /// A mutation of it was lost: nothing of it may be read.
    Incomplete,
}

/// One chunk.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Entry {
    pub(super) version: ChunkVersion,
    /// Last record that touched it.
    pub(super) lsn: Lsn,
    /// Segment of the record before which nothing counts for this chunk: its first one, or its last `State`.
    pub(super) base: Sequence,
    /// Log bytes of that record, kept alive in its segment.
    pub(super) base_bytes: u32,
    /// Sorted, disjoint.
    pub(super) extents: Vec<Extent>,
    /// Oldest first, at most [`REMEMBERED_REQUESTS`].
    pub(super) remembered: VecDeque<Remembered>,
    /// See [`ChunkVector::advance`].
    pub(super) earlier: Vec<ChunkVersion>,
    /// The last truncation or removal.
    pub(super) trimmed: ChunkVersion,
    /// The newest of all its mutations.
    pub(super) cut: CutEpoch,
    /// Of the newest version.
    pub(super) stamp: HybridClock,
    pub(super) removed: bool,
    pub(super) health: Health,
}

impl Entry {
    /// Whether it is the tombstone of a removed file.
    pub(super) fn is_gone(&self) -> bool {
        self.removed && self.cut == CutEpoch::GONE
    }

    /// A mutation begins to take effect.
    fn advance(&mut self, origin: Origin, version: ChunkVersion) {
        ChunkVector::advance(&mut self.earlier, self.version, version);
        self.version = version;
        self.cut = self.cut.max(origin.cut);
        self.stamp = origin.stamp;
        if origin.id.is_system() {
            return;
        }
        if self.remembered.len() >= REMEMBERED_REQUESTS {
            self.remembered.pop_front();
        }
        self.remembered.push_back(Remembered {
            id: origin.id,
            version,
            level: origin.level,
        });
    }

    pub(super) fn memory(&self) -> ChunkMemory {
        ChunkMemory {
            earlier: self.earlier.clone(),
            trimmed: self.trimmed,
            cut: self.cut,
            stamp: self.stamp,
            requests: self.remembered.iter().copied().collect(),
        }
    }

    /// As a copy of the chunk brings it.
    pub(super) fn set_memory(&mut self, memory: &ChunkMemory) {
        let newest = |count: usize, most: usize| count.saturating_sub(most);
        let earlier = newest(memory.earlier.len(), MAX_EARLIER_EPOCHS);
        let requests = newest(memory.requests.len(), REMEMBERED_REQUESTS);
        self.earlier = memory.earlier[earlier..].to_vec();
        self.trimmed = memory.trimmed;
        self.cut = memory.cut;
        self.stamp = memory.stamp;
        self.remembered = memory.requests[requests..].iter().copied().collect();
    }

    pub(super) fn runs(&self) -> Vec<BlockRun> {
        self.extents.iter().map(Extent::run).collect()
    }

    /// Log bytes that its blocks take.
    pub(super) fn size_bytes(&self) -> u64 {
        self.extents.iter().map(Extent::cost_bytes).sum()
    }

    /// Index of the first extent that ends after `block`.
    fn position(&self, block: u32) -> usize {
        self.extents.partition_point(|extent| extent.end() <= block)
    }

    /// The extents' parts within `from .. to`, in order.
    pub(super) fn within(&self, from: u32, to: u32) -> impl Iterator<Item = Extent> + '_ {
        self.extents[self.position(from)..]
            .iter()
            .map_while(move |extent| extent.cut(from, to))
    }

    /// Makes `from .. to` a hole, or `new`; gives back what was taken out and what was put in.
    pub(super) fn replace(&mut self, from: u32, to: u32, new: Option<Extent>) -> (Vec<Extent>, Vec<Extent>) {
        let start = self.position(from);
        let end = start + self.extents[start..].partition_point(|extent| extent.first.0 < to);
        let mut put = Vec::with_capacity(3);
        if let Some(left) = self.extents[start..end].first().and_then(|extent| extent.cut(0, from)) {
            put.push(left);
        }
        put.extend(new);
        if let Some(right) = self.extents[start..end]
            .last()
            .and_then(|extent| extent.cut(to, u32::MAX))
        {
            put.push(right);
        }
        let taken = self.extents.splice(start..end, put.iter().copied()).collect();
        (taken, put)
    }

    /// Meta of the `State` record that makes a chunk this.
    pub(super) fn seal_state(&mut self) -> Vec<u8> {
        let mut meta = Writer::default();
        self.encode(&mut meta);
        self.base_bytes = record_length_bytes(meta.0.len(), 0) as u32;
        meta.0
    }

    /// Body of a `State` record, and of a chunk in a checkpoint.
    pub(super) fn encode(&self, out: &mut Writer) {
        out.u16(u16::from(self.removed));
        out.u16(match self.health {
            Health::Sound => 0,
            Health::Rotten => 1,
            Health::Incomplete => 2,
        });
        out.version(self.trimmed);
        out.cut(self.cut);
        out.stamp(self.stamp);
        out.u32(self.earlier.len() as u32);
        for &version in &self.earlier {
            out.version(version);
        }
        out.u32(self.remembered.len() as u32);
        for remembered in &self.remembered {
            out.request(remembered.id);
            out.version(remembered.version);
            out.u16(level_code(remembered.level));
        }
        out.u32(self.extents.len() as u32);
        for extent in &self.extents {
            extent.encode(out);
        }
    }

    /// Version, LSN and base are left for the caller to fill in; `base_bytes` is that of a `State` record of it.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let length = reader.0.len();
        let removed = reader.u16()? != 0;
        let health = match reader.u16()? {
            0 => Health::Sound,
            1 => Health::Rotten,
            _ => Health::Incomplete,
        };
        let (trimmed, cut, stamp) = (reader.version()?, reader.cut()?, reader.stamp()?);
        let earlier = reader.u32()?;
        if earlier as usize > MAX_EARLIER_EPOCHS {
            return None;
        }
        let earlier = (0..earlier).map(|_| reader.version()).collect::<Option<_>>()?;
        let remembered = reader.u32()?;
        if remembered as usize > REMEMBERED_REQUESTS {
            return None;
        }
        let remembered = (0..remembered)
            .map(|_| {
                Some(Remembered {
                    id: reader.request()?,
                    version: reader.version()?,
                    level: level_from(reader.u16()?)?,
                })
            })
            .collect::<Option<VecDeque<_>>>()?;
        let extents = reader.u32()?;
        let extents = (0..extents)
            .map(|_| Extent::decode(reader))
            .collect::<Option<Vec<_>>>()?;
        Some(Self {
            base_bytes: record_length_bytes(length - reader.0.len(), 0) as u32,
            extents,
            remembered,
            earlier,
            trimmed,
            cut,
            stamp,
            removed,
            health,
            ..Self::default()
        })
    }
}

/// A segment in use.
pub(super) struct SegmentFile {
    pub(super) slot: u32,
    pub(super) sequence: Sequence,
    pub(super) file: Arc<dyn DiskFile>,
}

pub(super) struct Segment {
    pub(super) file: Arc<SegmentFile>,
    pub(super) live_bytes: u64,
    /// `Some` once nothing is appended to it any more.
    pub(super) sealed: Option<Sealed>,
    /// Staged copies that have blocks in it.
    pub(super) staged: u32,
    /// Damage was found in it: it is never compacted, so that what is left stays where it is.
    pub(super) rotten: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sealed {
    /// Where its records end.
    pub(super) end: u32,
    pub(super) last: Lsn,
}

/// What a record means.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Write(Extent),
    Truncate {
        blocks: u32,
    },
    Remove,
    State(Entry),
    Drop,
    /// Bytes for a later `State`.
    Data,
}

/// A record as the index sees it.
#[derive(Clone, Debug)]
pub(super) struct Publication {
    pub(super) chain: ChainId,
    pub(super) chunk: ChunkId,
    pub(super) lsn: Lsn,
    pub(super) sequence: Sequence,
    pub(super) version: ChunkVersion,
    pub(super) origin: Origin,
    pub(super) effect: Effect,
}

#[derive(Default)]
pub(super) struct Index {
    chunks: BTreeMap<(ChainId, ChunkId), Entry>,
    chain_of: HashMap<ChunkId, ChainId>,
    pub(super) segments: BTreeMap<Sequence, Segment>,
    live_bytes: u64,
    live_chunks: u64,
    /// Chunks of `chunks` that are tombstones of removed files.
    gone: BTreeSet<(ChainId, ChunkId)>,
}

impl Index {
    pub(super) fn chain_of(&self, chunk: ChunkId) -> Option<ChainId> {
        self.chain_of.get(&chunk).copied()
    }

    pub(super) fn get(&self, chunk: ChunkId) -> Option<&Entry> {
        self.chunks.get(&(self.chain_of(chunk)?, chunk))
    }

    pub(super) fn get_mut_health(&mut self, chunk: ChunkId) -> Option<&mut Health> {
        let chain = self.chain_of(chunk)?;
        self.chunks.get_mut(&(chain, chunk)).map(|entry| &mut entry.health)
    }

    pub(super) fn gone(&self, chain: ChainId) -> impl Iterator<Item = (ChunkId, ChunkVersion)> {
        let of_chain = self.gone.range((chain, ChunkId::default())..);
        of_chain
            .take_while(move |(of, _)| *of == chain)
            .filter_map(|key| Some((key.1, self.chunks.get(key)?.version)))
    }

    pub(super) const fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(super) const fn live_chunks(&self) -> u64 {
        self.live_chunks
    }

    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Chunks in order of chain and id after `after`.
    pub(super) fn after(&self, after: Option<(ChainId, ChunkId)>) -> impl Iterator<Item = (ChainId, ChunkId, &Entry)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.chunks
            .range((from, Bound::Unbounded))
            .map(|(&(chain, chunk), entry)| (chain, chunk, entry))
    }

    /// Chunks of one chain after `after`.
    pub(super) fn chain_after(
        &self,
        chain: ChainId,
        after: Option<ChunkId>,
    ) -> impl Iterator<Item = (ChunkId, &Entry)> {
        let from = after.map_or(Bound::Included((chain, ChunkId::default())), |chunk| {
            Bound::Excluded((chain, chunk))
        });
        self.chunks
            .range((from, Bound::Unbounded))
            .take_while(move |((of, _), _)| *of == chain)
            .map(|(&(_, chunk), entry)| (chunk, entry))
    }

    fn account(&mut self, taken: &[Extent], put: &[Extent]) {
        for extent in put {
            self.live_bytes += extent.cost_bytes();
            if let Some(segment) = self.segments.get_mut(&extent.sequence) {
                segment.live_bytes += extent.cost_bytes();
            }
        }
        for extent in taken {
            self.live_bytes = self.live_bytes.saturating_sub(extent.cost_bytes());
            if let Some(segment) = self.segments.get_mut(&extent.sequence) {
                segment.live_bytes = segment.live_bytes.saturating_sub(extent.cost_bytes());
            }
        }
    }

    /// Counts (or no longer counts) the record that a chunk's history begins with.
    fn account_base(&mut self, base: Sequence, bytes: u32, add: bool) {
        let bytes = u64::from(bytes);
        let apply = |count: &mut u64| {
            *count = if add {
                *count + bytes
            } else {
                count.saturating_sub(bytes)
            }
        };
        apply(&mut self.live_bytes);
        if let Some(segment) = self.segments.get_mut(&base) {
            apply(&mut segment.live_bytes);
        }
    }

    /// Sets each segment's live bytes from scratch (after a recovery, when all segments are known).
    pub(super) fn recount(&mut self) {
        for segment in self.segments.values_mut() {
            segment.live_bytes = 0;
        }
        self.live_bytes = 0;
        self.live_chunks = 0;
        for entry in self.chunks.values() {
            self.live_chunks += u64::from(!entry.removed);
            self.live_bytes += u64::from(entry.base_bytes);
            if let Some(segment) = self.segments.get_mut(&entry.base) {
                segment.live_bytes += u64::from(entry.base_bytes);
            }
            for extent in &entry.extents {
                self.live_bytes += extent.cost_bytes();
                if let Some(segment) = self.segments.get_mut(&extent.sequence) {
                    segment.live_bytes += extent.cost_bytes();
                }
            }
        }
    }

    /// Puts a chunk in as a checkpoint has it.
    pub(super) fn restore(&mut self, chain: ChainId, chunk: ChunkId, entry: Entry) {
        self.live_chunks += u64::from(!entry.removed);
        if entry.is_gone() {
            self.gone.insert((chain, chunk));
        }
        self.chain_of.insert(chunk, chain);
        self.chunks.insert((chain, chunk), entry);
    }

    /// Carries out one record. Records come in log order.
    pub(super) fn publish(&mut self, publication: Publication) {
        let Publication {
            chain,
            chunk,
            lsn,
            sequence,
            version,
            origin,
            effect,
        } = publication;
        match effect {
            Effect::Data => {}
            Effect::Drop => self.forget(chunk),
            Effect::State(mut entry) => {
                self.forget(chunk);
                entry.version = version;
                entry.lsn = lsn;
                entry.base = sequence;
                self.account(&[], &entry.extents);
                self.account_base(sequence, entry.base_bytes, true);
                self.restore(chain, chunk, entry);
            }
            Effect::Write(_) | Effect::Truncate { .. } | Effect::Remove => {
                // A chunk lives in one chain; the caller has checked.
                let chain = *self.chain_of.entry(chunk).or_insert(chain);
                let mut is_new = false;
                let entry = self.chunks.entry((chain, chunk)).or_insert_with(|| {
                    is_new = true;
                    Entry {
                        base: sequence,
                        base_bytes: RECORD_HEADER_BYTES as u32,
                        ..Entry::default()
                    }
                });
                let was_live = !is_new && !entry.removed;
                entry.lsn = lsn;
                entry.advance(origin, version);
                if !matches!(effect, Effect::Write(_)) {
                    entry.trimmed = version;
                }
                let (taken, put) = match effect {
                    Effect::Write(extent) => {
                        entry.removed = false;
                        entry.replace(extent.first.0, extent.end(), Some(extent))
                    }
                    Effect::Truncate { blocks } => entry.replace(blocks, u32::MAX, None),
                    _ => {
                        entry.removed = true;
                        entry.health = Health::Sound;
                        entry.replace(0, u32::MAX, None)
                    }
                };
                if entry.is_gone() {
                    self.gone.insert((chain, chunk));
                } else {
                    self.gone.remove(&(chain, chunk));
                }
                let is_live = !entry.removed;
                self.live_chunks = self.live_chunks + u64::from(is_live) - u64::from(was_live);
                self.account(&taken, &put);
                if is_new {
                    self.account_base(sequence, RECORD_HEADER_BYTES as u32, true);
                }
            }
        }
    }

    pub(super) fn forget(&mut self, chunk: ChunkId) {
        let Some(chain) = self.chain_of.remove(&chunk) else {
            return;
        };
        self.gone.remove(&(chain, chunk));
        if let Some(entry) = self.chunks.remove(&(chain, chunk)) {
            self.live_chunks -= u64::from(!entry.removed);
            self.account(&entry.extents, &[]);
            self.account_base(entry.base, entry.base_bytes, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(first: u32, blocks: u16, version: u64) -> Extent {
        Extent {
            sequence: Sequence(1),
            version: ChunkVersion {
                epoch: dfs_common::Epoch(1),
                counter: version,
            },
            offset: 4096,
            first: BlockIndex(first),
            record_blocks: blocks,
            skip: 0,
            blocks,
            last_length_bytes: 100,
        }
    }

    #[test]
    fn a_chunk_of_the_checkpoint_is_counted_until_it_is_dropped() {
        let mut index = Index::default();
        let (chain, chunk) = (
            ChainId(1),
            ChunkId::new(dfs_common::InodeId(7), dfs_common::ChunkIndex(0)),
        );
        index.restore(chain, chunk, Entry::default());
        assert_eq!(index.live_chunks(), 1);
        index.forget(chunk);
        assert_eq!(index.live_chunks(), 0);
    }

    proptest! {
        #[test]
        fn extents_agree_with_an_array_of_blocks(
            steps in proptest::collection::vec((0_u32..60, 0_u16..20), 1..60)
        ) {
            let mut entry = Entry::default();
            // For each block: version, position in its record, length.
            let mut naive: Vec<Option<(u64, u16, u16)>> = vec![None; 100];
            for (version, (first, blocks)) in (1_u64..).zip(steps) {
                if blocks == 0 {
                    entry.replace(first, u32::MAX, None);
                    naive[first as usize..].fill(None);
                } else {
                    let new = extent(first, blocks, version);
                    entry.replace(first, new.end(), Some(new));
                    for position in 0..blocks {
                        let length = if position + 1 == blocks { 100 } else { 4096 };
                        naive[first as usize + position as usize] = Some((version, position, length));
                    }
                }
                let mut seen = vec![None; 100];
                let mut end = 0;
                for extent in &entry.extents {
                    prop_assert!(extent.first.0 >= end && extent.blocks > 0);
                    end = extent.end();
                    for position in 0..extent.blocks {
                        let length = if position + 1 == extent.blocks { extent.last_length_bytes } else { 4096 };
                        seen[extent.first.0 as usize + position as usize] =
                            Some((extent.version.counter, extent.skip + position, length));
                    }
                }
                prop_assert_eq!(&seen, &naive);
            }
        }
    }
}
