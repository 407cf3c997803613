//! From a directory to an index: checkpoint, then the log after it; or the whole log.
//!
//! What counts is a prefix of the log. Up to the *durable mark* (the highest LSN that any surviving header, record or
//! checkpoint says was synced) every record must be there: one that is not is rot, it is reported, and the replay goes on
//! behind it. After the mark the first missing or unsound record ends the log: it and all that follows were never
//! acknowledged as durable, and because answers are given in log order, after a mere kill nothing answered is among
//! them. A record names the version it follows, so a chunk that lost a record in the middle is known by name.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use dfs_common::planted::{self, Bug};
use dfs_common::wire::storage::Origin;
use dfs_common::{ChunkId, CutEpoch, DiskCall};

use super::checkpoint::{self, CHECKPOINT_FILE, SegmentTable};
use super::error::StoreError;
use super::format::{
    Kind, Lsn, RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderRead, SegmentState, Sequence,
};
use super::index::{Effect, Extent, Health, Index, Publication, Sealed, Segment, SegmentFile};
use super::log::{FreeSegment, Geometry, Start, segment_name, segment_slot};
use super::scan::{Scan, ScannedRecord, scan};
use super::types::{RecoveryReport, Rot};
use crate::disk::{Disk, DiskFile};

/// Lives of segments that a damaged header is looked for among, newest first: weeks of writing.
const MAX_SEQUENCES_TRIED: u64 = 100_000;

pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) start: Start,
    pub(super) report: RecoveryReport,
    /// Worth a checkpoint at once: the log was cut, or much was replayed.
    pub(super) checkpoint: bool,
}

/// A segment whose header says that it holds records.
struct Found {
    header: SegmentHeader,
    file: Arc<SegmentFile>,
}

struct Inventory {
    used: BTreeMap<Sequence, Found>,
    free: VecDeque<FreeSegment>,
    damaged: Vec<(u32, Arc<dyn DiskFile>)>,
    slots: u32,
    next_slot: u32,
    durable: Lsn,
    next_sequence: Sequence,
}

fn inventory(disk: &dyn Disk, geometry: &Geometry) -> Result<Inventory, StoreError> {
    let names = disk
        .list()
        .map_err(|error| StoreError::io("listing the store's directory", error))?;
    let mut slots: Vec<u32> = names.iter().filter_map(|name| segment_slot(name)).collect();
    slots.sort_unstable();
    let mut out = Inventory {
        used: BTreeMap::new(),
        free: VecDeque::new(),
        damaged: Vec::new(),
        slots: slots.len() as u32,
        next_slot: slots.last().map_or(0, |slot| slot + 1),
        durable: Lsn::default(),
        next_sequence: Sequence(1),
    };
    for slot in slots {
        let name = segment_name(slot);
        let io = |error| StoreError::io(format!("opening {name}"), error);
        let file = disk.open(&name).map_err(io)?;
        if file.size_bytes().map_err(io)? < u64::from(geometry.segment_size_bytes) {
            // A creation that a crash cut short: nothing can be in it. Made anew when a segment is needed.
            disk.remove(&name).and_then(|()| disk.sync_directory()).map_err(io)?;
            out.slots -= 1;
            continue;
        }
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        file.read_at(0, &mut bytes).map_err(io)?;
        match SegmentHeader::decode(&bytes) {
            SegmentHeaderRead::Blank => out.free.push_back(FreeSegment { slot, file }),
            SegmentHeaderRead::Damaged => out.damaged.push((slot, file)),
            SegmentHeaderRead::Header(header) => {
                if header.cluster != geometry.cluster || header.node != geometry.node || header.slot != slot {
                    return Err(StoreError::Incompatible(format!(
                        "{name} belongs to node {} of cluster {} (place {}): the directory was mixed with another one",
                        header.node, header.cluster, header.slot
                    )));
                }
                out.durable = out.durable.max(header.durable);
                out.next_sequence = out.next_sequence.max(Sequence(header.sequence.0 + 1));
                match header.state {
                    SegmentState::Free => out.free.push_front(FreeSegment { slot, file }),
                    SegmentState::Used => {
                        let sequence = header.sequence;
                        let file = Arc::new(SegmentFile { slot, sequence, file });
                        out.used.insert(sequence, Found { header, file });
                    }
                }
            }
        }
    }
    Ok(out)
}

fn scan_segment(found: &Found, geometry: &Geometry) -> Result<Scan, StoreError> {
    let mut bytes = vec![0; geometry.segment_size_bytes as usize];
    found
        .file
        .file
        .read_at(0, &mut bytes)
        .map_err(|error| StoreError::io(format!("reading {}", segment_name(found.file.slot)), error))?;
    Ok(scan(&bytes, found.header.sequence, found.header.first))
}

/// The header of a segment whose own is unreadable. The checksum of its first record says to which sequence it belongs, and the rest
/// follows from that record.
fn header_from_record(bytes: &[u8], geometry: &Geometry, slot: u32, unused: &[u64]) -> Option<SegmentHeader> {
    let start = super::format::DATA_START;
    unused.iter().rev().find_map(|&sequence| {
        let sequence = Sequence(sequence);
        let (record, _) = RecordHeader::decode(&bytes[start as usize..], sequence, start)?;
        Some(SegmentHeader {
            cluster: geometry.cluster,
            node: geometry.node,
            slot,
            state: SegmentState::Used,
            sequence,
            first: record.lsn,
            previous: Lsn(record.lsn.0.checked_sub(1)?),
            durable: record.durable,
        })
    })
}

/// Damaged segment headers are made anew from what the segments hold. What is left of `damaged` could not be.
fn heal_headers(inventory: &mut Inventory, geometry: &Geometry, report: &mut RecoveryReport) -> Result<(), StoreError> {
    let mut left = Vec::new();
    for (slot, file) in std::mem::take(&mut inventory.damaged) {
        let name = segment_name(slot);
        let mut bytes = vec![0; geometry.segment_size_bytes as usize];
        file.read_at(0, &mut bytes)
            .map_err(|error| StoreError::io(format!("reading {name}"), error))?;
        let first = &bytes[super::format::DATA_START as usize..][..super::format::RECORD_HEADER_BYTES];
        if first.iter().all(|&byte| byte == 0) {
            // Nothing was ever written here: a used segment begins with a record.
            write_synced(
                &*file,
                &[0; SEGMENT_HEADER_BYTES],
                &format!("writing the header of {name}"),
            )?;
            report
                .rebuilt
                .push(format!("the header of {name}, which is empty, was damaged: cleared"));
            inventory.free.push_back(FreeSegment { slot, file });
            continue;
        }
        let newest = inventory.next_sequence.0.saturating_add(1);
        let oldest = newest.saturating_sub(MAX_SEQUENCES_TRIED);
        let unused: Vec<u64> = (oldest..=newest)
            .filter(|&sequence| !inventory.used.contains_key(&Sequence(sequence)))
            .collect();
        let Some(header) = header_from_record(&bytes, geometry, slot, &unused) else {
            left.push((slot, file));
            continue;
        };
        write_synced(&*file, &header.encode(), &format!("writing the header of {name}"))?;
        report.rebuilt.push(format!(
            "the header of {name} was unreadable: made anew from its first record"
        ));
        inventory.durable = inventory.durable.max(header.durable);
        inventory.next_sequence = inventory.next_sequence.max(Sequence(header.sequence.0 + 1));
        let sequence = header.sequence;
        let file = Arc::new(SegmentFile { slot, sequence, file });
        inventory.used.insert(sequence, Found { header, file });
    }
    inventory.damaged = left;
    Ok(())
}

/// `give_up` is called before anything is changed if something was lost that only others can bring back.
pub(super) fn recover(
    disk: &dyn Disk,
    geometry: &Geometry,
    give_up: &mut dyn FnMut() -> Result<(), StoreError>,
) -> Result<Recovered, StoreError> {
    let mut inventory = inventory(disk, geometry)?;
    let mut report = RecoveryReport::default();
    let mut index = Index::default();
    let (known, mut replay) = load_checkpoint(disk, geometry, &mut index, &mut report)?;
    // What an earlier start found and said already.
    let known_lost: HashSet<ChunkId> = index
        .after(None)
        .filter(|(_, _, entry)| entry.health == Health::Incomplete)
        .map(|(_, chunk, _)| chunk)
        .collect();
    inventory.durable = inventory.durable.max(replay.durable);
    inventory.next_sequence = inventory.next_sequence.max(replay.next_sequence);
    heal_headers(&mut inventory, geometry, &mut report)?;
    for &(slot, _) in &inventory.damaged {
        report.rot.push(Rot {
            file: segment_name(slot),
            offset: 0,
            length_bytes: SEGMENT_HEADER_BYTES as u64,
            chunk: None,
            detail: "the segment's header is unreadable".into(),
        });
    }

    // The durable mark: scan from the newest segment back until an older one can not raise it.
    let mut scans: BTreeMap<Sequence, Scan> = BTreeMap::new();
    for (&sequence, found) in inventory.used.range(replay.from..).rev() {
        let scanned = scan_segment(found, geometry)?;
        inventory.durable = inventory.durable.max(scanned.durable());
        scans.insert(sequence, scanned);
        if found.header.first <= inventory.durable {
            break;
        }
    }
    replay.durable = inventory.durable;

    let mut tail: Option<(Arc<SegmentFile>, u32)> = None;
    // Segments in which nothing counts, whatever their headers say.
    let mut dropped = Vec::new();
    let sequences: Vec<Sequence> = inventory.used.keys().copied().collect();
    for (at, &sequence) in sequences.iter().enumerate() {
        let found = &inventory.used[&sequence];
        let mut segment = Segment::new(Arc::clone(&found.file));
        if sequence < replay.from {
            // The checkpoint knows it, or it was emptied and a crash came before its header said so.
            if let Some(entry) = known.get(&sequence) {
                segment.sealed = Some(entry.sealed);
                segment.rotten = entry.rotten;
                index.segments.insert(sequence, segment);
            } else {
                dropped.push(Arc::clone(&found.file));
            }
            continue;
        }
        let scanned = match scans.remove(&sequence) {
            Some(scanned) => scanned,
            None => scan_segment(found, geometry)?,
        };
        let before = at.checked_sub(1).map(|at| sequences[at]);
        let is_last = at + 1 == sequences.len();
        let Some(end) = replay.segment(&mut index, &mut report, found, &scanned, before, is_last) else {
            dropped.push(Arc::clone(&found.file));
            continue;
        };
        segment.sealed = Some(Sealed { end, last: replay.last });
        segment.rotten = report.rot.iter().any(|rot| rot.file == segment_name(found.file.slot));
        index.segments.insert(sequence, segment);
        tail = Some((Arc::clone(&found.file), end));
    }
    check_extents(&mut index, &mut report);
    // A block that is rotten is known for what it is; everything else may have taken a mutation with it.
    let lost = report.rot.iter().any(|rot| match rot.chunk {
        None => true,
        Some(chunk) => {
            let entry = index.get(chunk);
            entry.is_some_and(|entry| entry.health == Health::Incomplete) && !known_lost.contains(&chunk)
        }
    });
    if lost {
        // What a removal followed may be what is gone, with the memory of its requests: the others' copies have it.
        for &chunk in &replay.unanchored {
            set_health(&mut index, chunk, Health::Rotten);
        }
        give_up()?;
        // Nothing in them can be told any more, and the others bring it.
        for (slot, file) in std::mem::take(&mut inventory.damaged) {
            let header = free_header(geometry, slot, inventory.next_sequence, replay.last.min(replay.durable));
            inventory.next_sequence.0 += 1;
            let doing = format!("writing the header of {}", segment_name(slot));
            write_synced(&*file, &header.encode(), &doing)?;
            inventory.free.push_back(FreeSegment { slot, file });
        }
    }
    erase(geometry, &replay, tail.as_ref(), &dropped)?;
    for file in dropped {
        inventory.free.push_front(FreeSegment {
            slot: file.slot,
            file: Arc::clone(&file.file),
        });
    }
    // A damaged segment is left alone from here on.
    tail = tail.filter(|(file, _)| {
        index
            .segments
            .get(&file.sequence)
            .is_some_and(|segment| !segment.rotten)
    });
    if let Some((file, _)) = &tail
        && let Some(segment) = index.segments.get_mut(&file.sequence)
    {
        segment.sealed = None;
    }
    // Nothing that was read back may be taken for durable before it is.
    let doing = "syncing the recovered log";
    for segment in index.segments.range(replay.from..).map(|(_, segment)| segment) {
        let file = &segment.file.file;
        // Opening it may fail for want of a descriptor, which says nothing of the medium. The sync
        // itself needs none then.
        let opened = file.keep_open(true);
        opened.map_err(StoreError::unwritten(doing, DiskCall::Name))?;
        file.sync_data().map_err(StoreError::unwritten(doing, DiskCall::Sync))?;
        let _ = file.keep_open(false);
    }
    index.recount();
    report.segments = index.segments.len() as u64;
    report.chunks = index.len() as u64;
    report.records = replay.records;
    Ok(Recovered {
        index,
        start: Start {
            active: tail,
            next: Lsn(replay.last.0 + 1),
            last: replay.last,
            checkpointed: replay.checkpoint,
            free: inventory.free,
            slots: inventory.slots,
            next_slot: inventory.next_slot,
            next_sequence: inventory.next_sequence,
        },
        checkpoint: replay.cut || !report.from_checkpoint || report.needs_resync() || replay.records > 10_000,
        report,
    })
}

fn load_checkpoint(
    disk: &dyn Disk,
    geometry: &Geometry,
    index: &mut Index,
    report: &mut RecoveryReport,
) -> Result<(SegmentTable, Replay), StoreError> {
    let none = Replay::default();
    let bytes = match disk.read_file(CHECKPOINT_FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((SegmentTable::new(), none)),
        Err(error) => return Err(StoreError::io("reading the checkpoint", error)),
    };
    let decoded = checkpoint::decode(&bytes)
        .filter(|found| found.header.cluster == geometry.cluster && found.header.node == geometry.node);
    let Some(found) = decoded else {
        tracing::warn!("the checkpoint is unreadable: the index is rebuilt from the whole log");
        report
            .rebuilt
            .push("the checkpoint was unreadable: the index is rebuilt from the whole log".into());
        return Ok((SegmentTable::new(), none));
    };
    report.from_checkpoint = true;
    for (chain, chunk, entry) in found.chunks {
        index.restore(chain, chunk, entry);
    }
    let header = found.header;
    let replay = Replay {
        from: header.replay_from,
        last: header.published,
        checkpoint: header.published,
        durable: header.durable,
        next_sequence: header.next_sequence,
        ..none
    };
    Ok((found.segments, replay))
}

/// Makes what was cut off unreadable for good, so that no later recovery takes it for part of the log again.
///
/// A crash in the middle of it leaves the hole at which the log was cut, and so the same cut.
fn erase(
    geometry: &Geometry,
    replay: &Replay,
    tail: Option<&(Arc<SegmentFile>, u32)>,
    dropped: &[Arc<SegmentFile>],
) -> Result<(), StoreError> {
    let doing = "cutting off the log's torn end";
    for file in dropped.iter().rev() {
        let header = free_header(geometry, file.slot, file.sequence, replay.last.min(replay.durable));
        write_synced(&*file.file, &header.encode(), doing)?;
    }
    if let Some((file, end)) = tail.filter(|_| replay.cut) {
        let zeros = vec![0; 1 << 20];
        let mut at = *end as usize;
        let size = geometry.segment_size_bytes as usize;
        while at < size {
            let length = (size - at).min(zeros.len());
            let piece = file.file.write_at(at as u64, &[&zeros[..length]]);
            piece.map_err(StoreError::unwritten(doing, DiskCall::Write))?;
            at += length;
        }
        let synced = file.file.sync_data();
        synced.map_err(StoreError::unwritten(doing, DiskCall::Sync))?;
    }
    Ok(())
}

/// Writes to a file's beginning, durably, while the store is being opened.
pub(super) fn write_synced(file: &dyn DiskFile, bytes: &[u8], doing: &str) -> Result<(), StoreError> {
    file.write_at(0, &[bytes])
        .map_err(StoreError::unwritten(doing, DiskCall::Write))?;
    file.sync_data().map_err(StoreError::unwritten(doing, DiskCall::Sync))
}

/// Carries records into the index, in order.
#[derive(Default)]
struct Replay {
    from: Sequence,
    /// Last record that counts so far.
    last: Lsn,
    /// Records up to here are in the index already.
    checkpoint: Lsn,
    durable: Lsn,
    next_sequence: Sequence,
    cut: bool,
    records: u64,
    /// Chunks whose story begins with a removal of something that is not there.
    unanchored: HashSet<ChunkId>,
}

impl Replay {
    /// One segment; gives back where what counts of it ends, `None` if nothing does.
    fn segment(
        &mut self,
        index: &mut Index,
        report: &mut RecoveryReport,
        found: &Found,
        scanned: &Scan,
        before: Option<Sequence>,
        is_last: bool,
    ) -> Option<u32> {
        let header = &found.header;
        let file = segment_name(found.file.slot);
        let mut end = super::format::DATA_START;
        if self.cut {
            report.torn_tail_bytes += u64::from(scanned.end - end);
            return None;
        }
        // Records between the last one and this segment.
        if header.previous > self.last {
            let adjacent = before.is_some_and(|before| before.0 + 1 == header.sequence.0);
            let emptied = !adjacent && self.last < self.durable;
            if emptied || header.previous <= self.durable {
                if adjacent {
                    report.rot.push(Rot {
                        file: file.clone(),
                        offset: 0,
                        length_bytes: 0,
                        chunk: None,
                        detail: format!(
                            "records {} to {} before this segment are gone",
                            self.last.0 + 1,
                            header.previous.0
                        ),
                    });
                }
                self.last = header.previous;
            } else {
                self.cut = true;
                report.torn_tail_bytes += u64::from(scanned.end - end);
                return None;
            }
        }
        let mut expected = header.first;
        let mut damage = scanned.damage.iter().peekable();
        for (at, record) in scanned.records.iter().enumerate() {
            let lsn = record.header.lsn;
            while let Some(&&(_, offset, length)) = damage.peek().filter(|hole| hole.0 == at) {
                damage.next();
                if lsn.0 - 1 > self.durable.0 {
                    self.cut_at(report, &file, expected, offset, length, scanned.end);
                    return Some(end);
                }
                if lsn.0 > self.checkpoint.0 + 1 {
                    report.rot.push(Rot {
                        file: file.clone(),
                        offset: u64::from(offset),
                        length_bytes: u64::from(length),
                        chunk: None,
                        detail: format!("records {} to {} are unreadable", expected.0, lsn.0 - 1),
                    });
                }
            }
            if !record.sound && lsn > self.durable && !planted::is(Bug::TornTailAccepted) {
                self.cut = true;
                report.torn_tail_bytes += u64::from(scanned.end - end);
                return Some(end);
            }
            expected = Lsn(lsn.0 + 1);
            end = record.offset + record.header.length_bytes() as u32;
            self.record(index, report, found, record);
        }
        // The log must reach to what was durable.
        if is_last && self.last < self.durable {
            report.rot.push(Rot {
                file,
                offset: u64::from(end),
                length_bytes: 0,
                chunk: None,
                detail: format!("records {} to {} are unreadable", self.last.0 + 1, self.durable.0),
            });
            self.cut = true;
        }
        Some(end)
    }

    /// The log ends before a hole; the part of the hole that had been durable is rot.
    fn cut_at(&mut self, report: &mut RecoveryReport, file: &str, expected: Lsn, offset: u32, length: u32, end: u32) {
        if expected <= self.durable {
            report.rot.push(Rot {
                file: file.to_owned(),
                offset: u64::from(offset),
                length_bytes: u64::from(length),
                chunk: None,
                detail: format!("records {} to {} are unreadable", expected.0, self.durable.0),
            });
        }
        self.cut = true;
        report.torn_tail_bytes += u64::from(end - offset);
    }

    fn record(&mut self, index: &mut Index, report: &mut RecoveryReport, found: &Found, record: &ScannedRecord) {
        let header = &record.header;
        self.last = self.last.max(header.lsn);
        if header.lsn <= self.checkpoint {
            return;
        }
        self.records += 1;
        let follows = matches!(header.kind, Kind::Write | Kind::Truncate | Kind::Remove);
        if index.get(header.chunk).is_some_and(|entry| entry.lsn >= header.lsn) {
            return;
        }
        if follows && header.before.is_none() {
            index.forget(header.chunk);
        }
        let version = index.get(header.chunk).map(|entry| entry.version);
        let lacks = index
            .get(header.chunk)
            .is_some_and(|entry| entry.health == Health::Incomplete);
        let effect = match header.kind {
            Kind::Write => Effect::Write(Extent {
                sequence: found.header.sequence,
                version: header.version,
                offset: record.offset,
                first: header.first,
                record_blocks: header.blocks as u16,
                skip: 0,
                blocks: header.blocks as u16,
                last_length_bytes: header.last_length_bytes as u16,
            }),
            Kind::Truncate => Effect::Truncate { blocks: header.first.0 },
            Kind::Remove => Effect::Remove,
            Kind::Data => Effect::Data,
            Kind::State => Effect::State(record.state.clone().unwrap_or_default()),
            Kind::Drop => Effect::Drop,
        };
        index.publish(Publication {
            chain: header.chain,
            chunk: header.chunk,
            lsn: header.lsn,
            sequence: found.header.sequence,
            version: header.version,
            origin: Origin {
                id: header.id,
                level: header.level,
                cut: if planted::is(Bug::RecoveryForgetsCut) {
                    CutEpoch::NONE
                } else {
                    header.cut
                },
                stamp: header.stamp,
            },
            effect,
        });
        // What a removal follows no longer matters, but for the requests that are remembered; and it may have been compacted away.
        let unanchored = header.kind == Kind::Remove && version.is_none() && header.before.is_some();
        if unanchored {
            self.unanchored.insert(header.chunk);
        } else if matches!(header.kind, Kind::State | Kind::Drop) || (follows && header.before.is_none()) {
            self.unanchored.remove(&header.chunk);
        }
        let gap = version != header.before && !unanchored;
        if follows && (gap || lacks) {
            set_health(index, header.chunk, Health::Incomplete);
        }
        if !record.sound && !planted::is(Bug::TornTailAccepted) {
            set_health(index, header.chunk, Health::Rotten);
            report.rot.push(Rot {
                file: segment_name(found.file.slot),
                offset: u64::from(record.offset),
                length_bytes: header.length_bytes() as u64,
                chunk: Some(header.chunk),
                detail: format!("data of version {} does not match its checksum", header.version),
            });
        }
    }
}

fn set_health(index: &mut Index, chunk: ChunkId, to: Health) {
    if let Some(health) = index.get_mut_health(chunk)
        && *health != Health::Incomplete
    {
        *health = to;
    }
}

/// Chunks whose records were lost, in the middle or with a whole segment, are reported by name.
fn check_extents(index: &mut Index, report: &mut RecoveryReport) {
    let mut lost = Vec::new();
    let mut incomplete = Vec::new();
    for (_, chunk, entry) in index.after(None) {
        if entry
            .extents
            .iter()
            .any(|extent| !index.segments.contains_key(&extent.sequence))
        {
            lost.push(chunk);
        }
        if entry.health == Health::Incomplete {
            incomplete.push(chunk);
        }
    }
    let reported: HashSet<ChunkId> = report.rot.iter().filter_map(|rot| rot.chunk).collect();
    for chunk in &lost {
        set_health(index, *chunk, Health::Incomplete);
    }
    for chunk in lost
        .into_iter()
        .chain(incomplete)
        .filter(|chunk| !reported.contains(chunk))
    {
        report.rot.push(Rot {
            file: String::new(),
            offset: 0,
            length_bytes: 0,
            chunk: Some(chunk),
            detail: "a record of this chunk is lost".into(),
        });
    }
}

/// Header that says a segment holds nothing that counts.
pub(super) fn free_header(geometry: &Geometry, slot: u32, sequence: Sequence, durable: Lsn) -> SegmentHeader {
    SegmentHeader {
        cluster: geometry.cluster,
        node: geometry.node,
        slot,
        state: SegmentState::Free,
        sequence,
        first: Lsn::default(),
        previous: Lsn::default(),
        durable,
    }
}
