//! Bytes of the log: superblock, segment header, record header, block checksum. All little-endian.
//!
//! ```text
//! segment   header (512 B, one sector) .. 4096 | record | record | ...
//! record    header (136 B) | meta | payload | zeros to a multiple of 64
//!           meta: one crc32c a block (Write, Data), or the chunk's whole state (State)
//!           payload: seals (28 B each), then ciphertexts, exactly as they travel
//! ```
//! A record's header checksum covers header and meta and starts from the segment's sequence and the record's offset:
//! bytes left over from a segment's earlier life, or misplaced ones, do not verify. A block's checksum starts from
//! chunk, block and version, not from a place, so that compaction moves it unchanged and a misdirected read is noticed.

use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, ClusterId, CutEpoch, Epoch, HybridClock, InodeId, Level,
    RequestId, SequenceNumber, SessionId, StorageId, StoreId, Timestamp,
};

/// Version of everything in the store's directory. A newer one is refused.
pub(super) const FORMAT_VERSION: u32 = 4;

/// First record of a segment: a page, so that rewriting the header never shares a sector with data.
pub(super) const DATA_START: u32 = 4096;

/// The header is one sector: it is written whole or not at all.
pub(super) const SEGMENT_HEADER_BYTES: usize = 512;

pub(super) const RECORD_HEADER_BYTES: usize = 136;

/// Records start at multiples of this, so that a scan past damage has few places to look at.
pub(super) const RECORD_ALIGN_BYTES: usize = 64;

pub(super) const CHECKSUM_BYTES: usize = 4;

const SUPERBLOCK_MAGIC: [u8; 8] = *b"DFSSTORE";
const SEGMENT_MAGIC: [u8; 8] = *b"DFSSEGMT";
const RECORD_MAGIC: [u8; 4] = *b"dfsR";

/// Position of a record in the order of all records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Lsn(pub(super) u64);

/// One life of one segment: raised every time a segment is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Sequence(pub(super) u64);

/// Appends fixed-width integers.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }
    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }
    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
    pub(super) fn version(&mut self, version: ChunkVersion) {
        self.u64(version.epoch.0);
        self.u64(version.counter);
    }
    pub(super) fn chunk(&mut self, chunk: ChunkId) {
        self.u64(chunk.inode.0);
        self.u32(chunk.index.0);
    }
    pub(super) fn stamp(&mut self, stamp: HybridClock) {
        self.bytes(&stamp.wall.nanos.to_le_bytes());
        self.u32(stamp.logical);
    }
    pub(super) fn cut(&mut self, cut: CutEpoch) {
        self.u64(cut.0);
    }
    pub(super) fn request(&mut self, id: RequestId) {
        self.u64(id.session.0);
        self.u32(id.channel);
        self.u64(id.sequence.0);
    }
}

/// Takes fixed-width integers; `None` once the bytes run out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    pub(super) fn version(&mut self) -> Option<ChunkVersion> {
        Some(ChunkVersion {
            epoch: Epoch(self.u64()?),
            counter: self.u64()?,
        })
    }
    pub(super) fn chunk(&mut self) -> Option<ChunkId> {
        Some(ChunkId::new(InodeId(self.u64()?), ChunkIndex(self.u32()?)))
    }
    pub(super) fn stamp(&mut self) -> Option<HybridClock> {
        Some(HybridClock {
            wall: Timestamp::from_nanos(self.array().map(i64::from_le_bytes)?),
            logical: self.u32()?,
        })
    }
    pub(super) fn cut(&mut self) -> Option<CutEpoch> {
        self.u64().map(CutEpoch)
    }
    pub(super) fn request(&mut self) -> Option<RequestId> {
        Some(RequestId {
            session: SessionId(self.u64()?),
            channel: self.u32()?,
            sequence: SequenceNumber(self.u64()?),
        })
    }
}

/// Whose store this is; written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) cluster: ClusterId,
    pub(super) node: StorageId,
    pub(super) segment_size_bytes: u32,
    /// Drawn when it was made. An emptied disk has another one, which is how the metadata group knows that nothing is on it.
    pub(super) store: StoreId,
}

/// Why a superblock is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SuperblockFault {
    NotOurs,
    Version(u32),
    Checksum,
}

impl Superblock {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Writer::default();
        body.bytes(&self.cluster.0);
        body.u32(self.node.0);
        body.u32(self.segment_size_bytes);
        body.bytes(&self.store.0);
        let mut out = Writer::default();
        out.bytes(&SUPERBLOCK_MAGIC);
        out.u32(FORMAT_VERSION);
        out.u32(crc32c::crc32c(&body.0));
        out.bytes(&body.0);
        out.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, SuperblockFault> {
        let mut reader = Reader(bytes);
        if reader.array() != Some(SUPERBLOCK_MAGIC) {
            return Err(SuperblockFault::NotOurs);
        }
        match reader.u32() {
            Some(FORMAT_VERSION) => {}
            Some(version) => return Err(SuperblockFault::Version(version)),
            None => return Err(SuperblockFault::NotOurs),
        }
        let sum = reader.u32().ok_or(SuperblockFault::Checksum)?;
        if crc32c::crc32c(reader.0) != sum {
            return Err(SuperblockFault::Checksum);
        }
        let parse = || {
            let mut reader = reader;
            Some(Self {
                cluster: ClusterId(reader.array()?),
                node: StorageId(reader.u32()?),
                segment_size_bytes: reader.u32()?,
                store: StoreId(reader.array()?),
            })
        };
        parse().ok_or(SuperblockFault::Checksum)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentState {
    /// Holds records.
    Used,
    /// Nothing in it counts; may be begun anew.
    Free,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) cluster: ClusterId,
    pub(super) node: StorageId,
    pub(super) slot: u32,
    pub(super) state: SegmentState,
    pub(super) sequence: Sequence,
    /// Of the first record in it.
    pub(super) first: Lsn,
    /// Last record that counts in all segments before this one: a recovery that cut the log says so here.
    pub(super) previous: Lsn,
    /// Everything up to here was durable when this header was written.
    pub(super) durable: Lsn,
}

/// What stands in a segment's first sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentHeaderRead {
    Header(SegmentHeader),
    /// All zeros: made, and never begun.
    Blank,
    Damaged,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut body = Writer::default();
        body.bytes(&self.cluster.0);
        body.u32(self.node.0);
        body.u32(self.slot);
        body.u32(match self.state {
            SegmentState::Used => 1,
            SegmentState::Free => 2,
        });
        body.u32(0);
        body.u64(self.sequence.0);
        body.u64(self.first.0);
        body.u64(self.previous.0);
        body.u64(self.durable.0);
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[16..16 + body.0.len()].copy_from_slice(&body.0);
        let sum = crc32c::crc32c(&out[16..]);
        out[12..16].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> SegmentHeaderRead {
        if bytes.iter().all(|&byte| byte == 0) {
            return SegmentHeaderRead::Blank;
        }
        Self::parse(bytes).map_or(SegmentHeaderRead::Damaged, SegmentHeaderRead::Header)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes.get(..SEGMENT_HEADER_BYTES)?);
        if reader.array()? != SEGMENT_MAGIC || reader.u32()? != FORMAT_VERSION {
            return None;
        }
        if reader.u32()? != crc32c::crc32c(reader.0) {
            return None;
        }
        let cluster = ClusterId(reader.array()?);
        let node = StorageId(reader.u32()?);
        let slot = reader.u32()?;
        let state = match reader.u32()? {
            1 => SegmentState::Used,
            2 => SegmentState::Free,
            _ => return None,
        };
        reader.u32()?;
        Some(Self {
            cluster,
            node,
            slot,
            state,
            sequence: Sequence(reader.u64()?),
            first: Lsn(reader.u64()?),
            previous: Lsn(reader.u64()?),
            durable: Lsn(reader.u64()?),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    Truncate,
    Remove,
    /// Blocks that only a later `State` makes part of the chunk: a staged copy, or a move by compaction.
    Data,
    /// The chunk is exactly what this record says, whatever came before.
    State,
    /// The chunk is forgotten.
    Drop,
}

impl Kind {
    const fn code(self) -> u16 {
        match self {
            Self::Write => 1,
            Self::Truncate => 2,
            Self::Remove => 3,
            Self::Data => 4,
            Self::State => 5,
            Self::Drop => 6,
        }
    }

    const fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Write,
            2 => Self::Truncate,
            3 => Self::Remove,
            4 => Self::Data,
            5 => Self::State,
            6 => Self::Drop,
            _ => return None,
        })
    }

    pub(super) const fn has_blocks(self) -> bool {
        matches!(self, Self::Write | Self::Data)
    }
}

pub(super) const fn level_code(level: Level) -> u16 {
    match level {
        Level::One => 0,
        Level::Quorum => 1,
        Level::All => 2,
    }
}

pub(super) const fn level_from(code: u16) -> Option<Level> {
    Some(match code {
        0 => Level::One,
        1 => Level::Quorum,
        2 => Level::All,
        _ => return None,
    })
}

/// A record without its meta and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: Kind,
    pub(super) chain: ChainId,
    pub(super) chunk: ChunkId,
    pub(super) lsn: Lsn,
    /// Everything up to here was durable when this record was written: damage below it is rot, not a torn tail.
    pub(super) durable: Lsn,
    pub(super) version: ChunkVersion,
    /// Version of the chunk before this record: a replay that misses a record notices. `None`: there was no such chunk,
    /// so whatever an older record may say of it does not count.
    pub(super) before: Option<ChunkVersion>,
    pub(super) id: RequestId,
    /// At which it was to be acknowledged.
    pub(super) level: Level,
    /// Write, Truncate, Remove: the truncation epoch that the mutation came with.
    pub(super) cut: CutEpoch,
    pub(super) stamp: HybridClock,
    /// Write, Data: first block. Truncate: blocks that stay.
    pub(super) first: BlockIndex,
    pub(super) blocks: u32,
    pub(super) last_length_bytes: u32,
    pub(super) meta_length_bytes: u32,
    pub(super) payload_length_bytes: u32,
}

impl RecordHeader {
    /// Bytes it takes in its segment.
    pub(super) const fn length_bytes(&self) -> usize {
        record_length_bytes(self.meta_length_bytes as usize, self.payload_length_bytes as usize)
    }

    /// Header bytes, ready to be followed by `meta`.
    pub(super) fn encode(&self, sequence: Sequence, offset: u32, meta: &[u8]) -> [u8; RECORD_HEADER_BYTES] {
        let mut body = Writer::with_capacity(RECORD_HEADER_BYTES);
        body.bytes(&RECORD_MAGIC);
        body.u32(0);
        body.u16(self.kind.code());
        body.u16(u16::from(self.before.is_some()) | level_code(self.level) << 1);
        body.u32(self.chain.0);
        body.u64(self.lsn.0);
        body.u64(self.durable.0);
        body.chunk(self.chunk);
        body.version(self.version);
        body.version(self.before.unwrap_or_default());
        body.request(self.id);
        body.u32(self.first.0);
        body.u32(self.blocks);
        body.u32(self.last_length_bytes);
        body.u32(self.meta_length_bytes);
        body.u32(self.payload_length_bytes);
        body.stamp(self.stamp);
        body.cut(self.cut);
        let mut out = [0; RECORD_HEADER_BYTES];
        out[..body.0.len()].copy_from_slice(&body.0);
        let sum = header_checksum(sequence, offset, &out[8..], meta);
        out[4..8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The record that starts `bytes`, with its meta, if there is a whole and unharmed one. The payload is not looked at
    /// but for its length.
    pub(super) fn decode(bytes: &[u8], sequence: Sequence, offset: u32) -> Option<(Self, &[u8])> {
        let mut reader = Reader(bytes.get(..RECORD_HEADER_BYTES)?);
        if reader.array()? != RECORD_MAGIC {
            return None;
        }
        let sum = reader.u32()?;
        let kind = Kind::from_code(reader.u16()?)?;
        let flags = reader.u16()?;
        let (existed, level) = (flags & 1 != 0, level_from(flags >> 1)?);
        let chain = ChainId(reader.u32()?);
        let (lsn, durable) = (Lsn(reader.u64()?), Lsn(reader.u64()?));
        let header = Self {
            kind,
            chain,
            lsn,
            durable,
            chunk: reader.chunk()?,
            version: reader.version()?,
            before: reader.version().map(|before| existed.then_some(before))?,
            id: reader.request()?,
            level,
            first: BlockIndex(reader.u32()?),
            blocks: reader.u32()?,
            last_length_bytes: reader.u32()?,
            meta_length_bytes: reader.u32()?,
            payload_length_bytes: reader.u32()?,
            stamp: reader.stamp()?,
            cut: reader.cut()?,
        };
        if header.length_bytes() > bytes.len() {
            return None;
        }
        let meta = bytes.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + header.meta_length_bytes as usize)?;
        if sum != header_checksum(sequence, offset, &bytes[8..RECORD_HEADER_BYTES], meta) {
            return None;
        }
        let framed = !kind.has_blocks()
            || (header.blocks > 0
                && (1..=BLOCK_SIZE_BYTES as u32).contains(&header.last_length_bytes)
                && meta.len() == header.blocks as usize * CHECKSUM_BYTES
                && header.payload_length_bytes as usize == payload_bytes(header.blocks, header.last_length_bytes));
        framed.then_some((header, meta))
    }
}

pub(super) const fn record_length_bytes(meta: usize, payload: usize) -> usize {
    (RECORD_HEADER_BYTES + meta + payload).next_multiple_of(RECORD_ALIGN_BYTES)
}

/// Seals and ciphertexts of `blocks` blocks, all full but the last.
pub(super) const fn payload_bytes(blocks: u32, last_length_bytes: u32) -> usize {
    blocks as usize * SEAL_SIZE_BYTES + data_bytes(blocks, last_length_bytes)
}

pub(super) const fn data_bytes(blocks: u32, last_length_bytes: u32) -> usize {
    (blocks as usize).saturating_sub(1) * BLOCK_SIZE_BYTES + last_length_bytes as usize
}

fn header_checksum(sequence: Sequence, offset: u32, header: &[u8], meta: &[u8]) -> u32 {
    let mut place = [0; 12];
    place[..8].copy_from_slice(&sequence.0.to_le_bytes());
    place[8..].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&place), header), meta)
}

/// Checksum of one block: over what it is, its seal and its ciphertext.
pub(super) fn block_checksum(
    chunk: ChunkId,
    version: ChunkVersion,
    block: BlockIndex,
    seal: &[u8],
    ciphertext: &[u8],
) -> u32 {
    let mut name = [0; 32];
    name[..8].copy_from_slice(&chunk.inode.0.to_le_bytes());
    name[8..12].copy_from_slice(&chunk.index.0.to_le_bytes());
    name[12..16].copy_from_slice(&block.0.to_le_bytes());
    name[16..24].copy_from_slice(&version.epoch.0.to_le_bytes());
    name[24..].copy_from_slice(&version.counter.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&name), seal), ciphertext)
}

/// Seal and ciphertext of each block of a payload, in order. The payload's length must fit (see [`payload_bytes`]).
pub(super) fn blocks_of(payload: &[u8], blocks: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
    let (seals, data) = payload.split_at(payload.len().min(blocks as usize * SEAL_SIZE_BYTES));
    seals.chunks_exact(SEAL_SIZE_BYTES).zip(data.chunks(BLOCK_SIZE_BYTES))
}

/// Checksums of all blocks of a payload, as a record's meta holds them.
pub(super) fn checksums(
    chunk: ChunkId,
    version: ChunkVersion,
    first: BlockIndex,
    blocks: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks as usize * CHECKSUM_BYTES);
    for (index, (seal, ciphertext)) in (first.0..).zip(blocks_of(payload, blocks)) {
        let sum = block_checksum(chunk, version, BlockIndex(index), seal, ciphertext);
        out.extend_from_slice(&sum.to_le_bytes());
    }
    out
}

/// First block of a payload that does not match its checksum.
pub(super) fn first_rotten(
    chunk: ChunkId,
    version: ChunkVersion,
    first: BlockIndex,
    blocks: u32,
    payload: &[u8],
    sums: &[u8],
) -> Option<BlockIndex> {
    let mut sums = sums.chunks_exact(CHECKSUM_BYTES);
    for (index, (seal, ciphertext)) in (first.0..).zip(blocks_of(payload, blocks)) {
        let sum = block_checksum(chunk, version, BlockIndex(index), seal, ciphertext);
        if sums.next() != Some(&sum.to_le_bytes()[..]) {
            return Some(BlockIndex(index));
        }
    }
    None
}
