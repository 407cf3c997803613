//! Bytes that were written but are not on the chains yet, of one file. Pure.
//!
//! The file is cut into slabs of at most one I/O; a slab never crosses a chunk border, so a slab becomes requests to one
//! chain. Invariants: extents of a slab neither overlap nor touch (neighbours merge, which is how small sequential
//! writes become large ones); at most one copy of a slab is in flight, and what is written to it meanwhile waits in a
//! second one, so writes that overlap reach the chain in order. Reads see both, the newer on top.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::sync::Arc;

use dfs_common::units::MAX_IO_SIZE_BYTES;

/// Counts writes of one file, so that a drain knows when everything before it is out.
pub(crate) type WriteNumber = u64;

/// Position of a slab in its file.
pub(crate) type SlabIndex = u64;

/// Dirty bytes of one slab.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slab {
    /// By offset in the file.
    pub(crate) extents: BTreeMap<u64, Vec<u8>>,
    /// The oldest write in it.
    pub(crate) first_write: WriteNumber,
    pub(crate) since_ms: u64,
    pub(crate) size_bytes: usize,
}

impl Slab {
    /// Of its first byte.
    pub(crate) fn offset(&self) -> u64 {
        self.extents.first_key_value().map_or(0, |(at, _)| *at)
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        let left = self
            .extents
            .range(..=offset)
            .next_back()
            .filter(|(start, bytes)| *start + bytes.len() as u64 >= offset)
            .map(|(start, _)| *start);
        let left = left.and_then(|start| self.extents.remove(&start).map(|bytes| (start, bytes)));
        let (start, mut bytes) = left.unwrap_or_else(|| (offset, Vec::with_capacity(data.len())));
        let at = (offset - start) as usize;
        let overlap = (bytes.len() - at).min(data.len());
        bytes[at..at + overlap].copy_from_slice(&data[..overlap]);
        bytes.extend_from_slice(&data[overlap..]);
        self.size_bytes += data.len() - overlap;
        while let Some((next, next_bytes)) = self
            .extents
            .range(start..=end)
            .next()
            .map(|(next, bytes)| (*next, bytes.len() as u64))
        {
            let Some(taken) = self.extents.remove(&next) else { break };
            let have = start + bytes.len() as u64;
            let overlap = have.saturating_sub(next).min(next_bytes);
            bytes.extend_from_slice(&taken[overlap as usize..]);
            self.size_bytes -= overlap as usize;
        }
        self.extents.insert(start, bytes);
    }

    /// It has nothing within this range any more.
    pub(super) fn erase(&mut self, from: u64, to: u64) {
        let hit = self.extents.range(..to);
        let hit = hit.filter(|&(&at, bytes)| at + bytes.len() as u64 > from);
        for at in hit.map(|(&at, _)| at).collect::<Vec<_>>() {
            let Some(mut bytes) = self.extents.remove(&at) else {
                continue;
            };
            if at + (bytes.len() as u64) > to {
                self.extents.insert(to, bytes.split_off((to - at) as usize));
            }
            if at < from {
                bytes.truncate((from - at) as usize);
                self.extents.insert(at, bytes);
            }
        }
        self.size_bytes = self.extents.values().map(Vec::len).sum();
    }

    pub(super) fn end(&self) -> u64 {
        self.extents
            .last_key_value()
            .map_or(0, |(start, bytes)| start + bytes.len() as u64)
    }

    pub(super) fn pieces(&self, offset: u64, length: u64, out: &mut Vec<(u64, Vec<u8>)>) {
        let end = offset + length;
        let from = self
            .extents
            .range(..offset)
            .next_back()
            .map_or(offset, |(start, _)| *start);
        for (&start, bytes) in self.extents.range(from..end) {
            let have = start + bytes.len() as u64;
            if have <= offset {
                continue;
            }
            let low = start.max(offset);
            let high = have.min(end);
            out.push((low, bytes[(low - start) as usize..(high - start) as usize].to_vec()));
        }
    }
}

/// All dirty bytes of one file.
#[derive(Debug)]
pub(crate) struct DirtyBuffer {
    pub(super) slab_size_bytes: u64,
    waiting: BTreeMap<SlabIndex, Slab>,
    flying: BTreeMap<SlabIndex, Arc<Slab>>,
    last_write: WriteNumber,
}

impl DirtyBuffer {
    /// `chunk_size_bytes` is a power of two, as layouts have it.
    pub(crate) fn new(chunk_size_bytes: u32) -> Self {
        Self {
            slab_size_bytes: u64::from(chunk_size_bytes).min(MAX_IO_SIZE_BYTES as u64),
            waiting: BTreeMap::new(),
            flying: BTreeMap::new(),
            last_write: 0,
        }
    }

    /// Puts a write in and returns by how much the buffer grew.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], now_ms: u64) -> usize {
        self.last_write += 1;
        let number = self.last_write;
        let mut grown = 0;
        let mut at = 0_usize;
        while at < data.len() {
            let position = offset + at as u64;
            let slab_index = position / self.slab_size_bytes;
            let room = ((slab_index + 1) * self.slab_size_bytes - position) as usize;
            let take = room.min(data.len() - at);
            let slab = self.waiting.entry(slab_index).or_insert_with(|| Slab {
                first_write: number,
                since_ms: now_ms,
                ..Slab::default()
            });
            let before = slab.size_bytes;
            slab.write(position, &data[at..at + take]);
            grown += slab.size_bytes - before;
            at += take;
        }
        grown
    }

    pub(crate) fn last_write(&self) -> WriteNumber {
        self.last_write
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty()
    }

    /// Bytes that are not on the chains yet.
    pub(crate) fn size_bytes(&self) -> usize {
        let waiting: usize = self.waiting.values().map(|slab| slab.size_bytes).sum();
        waiting + self.flying.values().map(|slab| slab.size_bytes).sum::<usize>()
    }

    /// End of the last dirty byte; 0 when there is none.
    pub(crate) fn end(&self) -> u64 {
        let waiting = self.waiting.last_key_value().map_or(0, |(_, slab)| slab.end());
        let flying = self.flying.last_key_value().map_or(0, |(_, slab)| slab.end());
        waiting.max(flying)
    }

    /// The oldest write that is not on the chains.
    pub(crate) fn oldest_write(&self) -> Option<WriteNumber> {
        let waiting = self.waiting.values().map(|slab| slab.first_write);
        waiting.chain(self.flying.values().map(|slab| slab.first_write)).min()
    }

    /// Slabs that may start now, of those that are complete, older than `age_ms`, or have a write up to `up_to`.
    pub(crate) fn ready(&self, now_ms: u64, age_ms: u64, up_to: WriteNumber) -> Vec<SlabIndex> {
        self.waiting
            .iter()
            .filter(|(index, _)| !self.flying.contains_key(index))
            .filter(|(_, slab)| {
                slab.size_bytes as u64 == self.slab_size_bytes
                    || slab.first_write <= up_to
                    || now_ms.saturating_sub(slab.since_ms) >= age_ms
            })
            .map(|(&index, _)| index)
            .collect()
    }

    /// Takes a slab for its way to the chain; `None` while an older copy of it is under way.
    pub(crate) fn take(&mut self, index: SlabIndex) -> Option<Arc<Slab>> {
        if self.flying.contains_key(&index) {
            return None;
        }
        let slab = Arc::new(self.waiting.remove(&index)?);
        self.flying.insert(index, Arc::clone(&slab));
        Some(slab)
    }

    /// A taken slab arrived, or was given up.
    pub(crate) fn done(&mut self, index: SlabIndex) {
        self.flying.remove(&index);
    }

    /// Dirty pieces of a range, to be laid over what the chain has, in this order.
    pub(crate) fn pieces(&self, offset: u64, length: u64) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        if length == 0 || self.is_empty() {
            return out;
        }
        let slabs = offset / self.slab_size_bytes..=(offset + length - 1) / self.slab_size_bytes;
        for (_, slab) in self.flying.range(slabs.clone()) {
            slab.pieces(offset, length, &mut out);
        }
        for (_, slab) in self.waiting.range(slabs) {
            slab.pieces(offset, length, &mut out);
        }
        out
    }
}

/// Whether pieces leave no gap in a range.
pub(crate) fn covers(pieces: &[(u64, Vec<u8>)], offset: u64, length: u64) -> bool {
    let mut ranges: Vec<_> = pieces
        .iter()
        .map(|(start, bytes)| (*start, start + bytes.len() as u64))
        .collect();
    ranges.sort_unstable();
    let mut reached = offset;
    for (start, end) in ranges {
        if start > reached {
            return false;
        }
        reached = reached.max(end);
    }
    reached >= offset + length
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write { offset: u64, length: usize, fill: u8 },
        Take(usize),
        Done(usize),
        Read { offset: u64, length: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u64..40_000, 1_usize..9_000, any::<u8>())
                .prop_map(|(offset, length, fill)| Step::Write { offset, length, fill }),
            2 => (0_usize..16).prop_map(Step::Take),
            2 => (0_usize..16).prop_map(Step::Done),
            2 => (0_u64..50_000, 0_u64..20_000).prop_map(|(offset, length)| Step::Read { offset, length }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn behaves_like_an_array(steps in proptest::collection::vec(step(), 1..60)) {
            let mut buffer = DirtyBuffer::new(8192);
            let mut chain = vec![0_u8; 80_000];
            let mut oracle = vec![0_u8; 80_000];
            let mut charged = 0_usize;
            for step in steps {
                match step {
                    Step::Write { offset, length, fill } => {
                        let data: Vec<u8> = (0..length).map(|i| fill.wrapping_add(i as u8)).collect();
                        charged += buffer.write(offset, &data, 0);
                        oracle[offset as usize..offset as usize + length].copy_from_slice(&data);
                    }
                    Step::Take(n) => {
                        let ready = buffer.ready(0, 0, 0);
                        if let Some(&index) = ready.get(n % ready.len().max(1)) {
                            prop_assert!(buffer.take(index).is_some());
                            prop_assert!(buffer.take(index).is_none());
                        }
                    }
                    Step::Done(n) => {
                        let flying: Vec<_> = buffer.flying.keys().copied().collect();
                        if let Some(&index) = flying.get(n % flying.len().max(1)) {
                            let slab = buffer.flying.get(&index).cloned().unwrap();
                            for (start, bytes) in &slab.extents {
                                chain[*start as usize..*start as usize + bytes.len()].copy_from_slice(bytes);
                            }
                            charged -= slab.size_bytes;
                            buffer.done(index);
                        }
                    }
                    Step::Read { offset, length } => {
                        let range = offset as usize..(offset + length) as usize;
                        let mut seen = chain[range.clone()].to_vec();
                        for (start, bytes) in buffer.pieces(offset, length) {
                            let at = (start - offset) as usize;
                            seen[at..at + bytes.len()].copy_from_slice(&bytes);
                        }
                        prop_assert_eq!(&seen[..], &oracle[range]);
                    }
                }
                for slab in buffer.waiting.values() {
                    let mut last_end = None;
                    for (start, bytes) in &slab.extents {
                        prop_assert!(last_end.is_none_or(|end| end < *start), "extents touch");
                        last_end = Some(start + bytes.len() as u64);
                    }
                    prop_assert_eq!(slab.size_bytes, slab.extents.values().map(Vec::len).sum::<usize>());
                }
                let held: usize = buffer.waiting.values().map(|slab| slab.size_bytes).sum::<usize>()
                    + buffer.flying.values().map(|slab| slab.size_bytes).sum::<usize>();
                prop_assert_eq!(held, charged);
            }
        }
    }

    #[test]
    fn small_sequential_writes_become_one_extent_and_a_full_slab_is_ready() {
        let mut buffer = DirtyBuffer::new(4 << 20);
        for i in 0..1024_u64 {
            assert!(buffer.ready(0, 500, 0).is_empty());
            assert_eq!(buffer.write(i * 1024, &[7; 1024], 0), 1024);
        }
        assert_eq!(buffer.ready(0, 500, 0), vec![0]);
        let slab = buffer.take(0).unwrap();
        assert_eq!(slab.extents.len(), 1);
        assert_eq!(buffer.end(), 1 << 20);
        assert_eq!(buffer.oldest_write(), Some(1));
        buffer.done(0);
        assert!(buffer.is_empty());
    }

    #[test]
    fn covering_needs_every_byte() {
        let pieces = vec![(10, vec![0; 10]), (0, vec![0; 10])];
        assert!(covers(&pieces, 0, 20));
        assert!(covers(&pieces, 5, 10));
        assert!(!covers(&pieces, 0, 21));
        assert!(!covers(&pieces[..1], 9, 2));
    }
}
