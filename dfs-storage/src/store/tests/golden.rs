//! Bytes that older stores were written with. A change here is a new format version.

use super::*;
use crate::store::checkpoint::{self, Chunks};
use crate::store::format::{
    Kind, Lsn, Reader, RecordHeader, SegmentHeader, SegmentHeaderRead, SegmentState, Sequence, Superblock, Writer,
    block_checksum,
};
use crate::store::index::{Entry, Extent};

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[test]
fn superblock() {
    let superblock = Superblock {
        cluster: ClusterId([0xab; 16]),
        node: StorageId(3),
        segment_size_bytes: 64 << 20,
        store: StoreId([0xcd; 16]),
    };
    let bytes = superblock.encode();
    assert_eq!(
        hex(&bytes),
        "44465353544f524504000000e423888eabababababababababababababababab0300000000000004cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
    );
    assert_eq!(Superblock::decode(&bytes), Ok(superblock));
}

#[test]
fn segment_header() {
    let header = SegmentHeader {
        cluster: ClusterId([0xab; 16]),
        node: StorageId(3),
        slot: 7,
        state: SegmentState::Used,
        sequence: Sequence(9),
        first: Lsn(1001),
        previous: Lsn(1000),
        durable: Lsn(990),
    };
    let bytes = header.encode();
    assert_eq!(
        hex(&bytes[..80]),
        concat!(
            "4446535345474d5404000000df159166abababababababababababababababab03000000070000000100000000000000",
            "0900000000000000e903000000000000e803000000000000de03000000000000"
        )
    );
    assert!(bytes[80..].iter().all(|&byte| byte == 0));
    assert_eq!(SegmentHeader::decode(&bytes), SegmentHeaderRead::Header(header));
}

#[test]
fn record_header() {
    let meta = [1, 2, 3, 4];
    let header = RecordHeader {
        kind: Kind::Write,
        chain: ChainId(5),
        chunk: chunk(4),
        lsn: Lsn(77),
        durable: Lsn(70),
        version: version(60),
        before: Some(version(59)),
        id: request(8),
        level: Level::All,
        cut: CutEpoch(0x0102),
        stamp: origin(8).stamp,
        first: BlockIndex(6),
        blocks: 1,
        last_length_bytes: 100,
        meta_length_bytes: 4,
        payload_length_bytes: 128,
    };
    let mut bytes = header.encode(Sequence(9), 4096, &meta).to_vec();
    assert_eq!(
        hex(&bytes),
        concat!(
            "64667352dbeb27d501000500050000004d00000000000000460000000000000065000000000000000100000002000000",
            "000000003c0000000000000002000000000000003b000000000000000900000000000000010000000800000000000000",
            "0600000001000000640000000400000080000000f003000000000000010000000201000000000000"
        )
    );
    bytes.extend(meta);
    bytes.resize(header.length_bytes(), 0);
    assert_eq!(
        RecordHeader::decode(&bytes, Sequence(9), 4096),
        Some((header, &meta[..]))
    );
    // Another life of the segment, another place: no record.
    assert_eq!(RecordHeader::decode(&bytes, Sequence(10), 4096), None);
    assert_eq!(RecordHeader::decode(&bytes, Sequence(9), 4160), None);
    assert_eq!(
        block_checksum(chunk(4), version(60), BlockIndex(6), &[1; 28], &[2; 100]),
        2_853_700_270
    );
}

#[test]
fn state_of_a_chunk() {
    let entry = Entry {
        extents: vec![Extent {
            sequence: Sequence(9),
            version: version(60),
            offset: 4096,
            first: BlockIndex(6),
            record_blocks: 2,
            skip: 1,
            blocks: 1,
            last_length_bytes: 100,
        }],
        remembered: [remembered(8, version(60))].into(),
        earlier: vec![version(49)],
        trimmed: version(3),
        cut: CutEpoch(0x0102),
        stamp: origin(8).stamp,
        ..Entry::default()
    };
    let mut bytes = Writer::default();
    entry.encode(&mut bytes);
    assert_eq!(
        hex(&bytes.0),
        concat!(
            "00000000010000000000000003000000000000000201000000000000f003000000000000010000000100000001000000",
            "00000000310000000000000001000000090000000000000001000000080000000000000002000000000000003c000000",
            "00000000020001000000090000000000000002000000000000003c000000000000000010000006000000020001000100",
            "6400"
        )
    );
    let decoded = Entry::decode(&mut Reader(&bytes.0)).unwrap();
    assert_eq!(
        Entry {
            base_bytes: 0,
            ..decoded
        },
        entry
    );
}

#[test]
fn checkpoint_header() {
    let header = checkpoint::Header {
        cluster: ClusterId([0xab; 16]),
        node: StorageId(3),
        published: Lsn(77),
        durable: Lsn(78),
        replay_from: Sequence(9),
        next_sequence: Sequence(10),
    };
    let bytes = checkpoint::encode(&header, &checkpoint::SegmentTable::new(), Chunks::default()).concat();
    assert_eq!(
        hex(&bytes),
        concat!(
            "444653434b504e5404000000000000004000000000000000f62859fa0e0fc814b4695a29af3a70356c3298a6596d1290",
            "21a9dc5158762711abababababababababababababababab030000004d000000000000004e0000000000000009000000",
            "000000000a00000000000000000000000000000000000000"
        )
    );
    assert_eq!(checkpoint::decode(&bytes).map(|found| found.header), Some(header));
}
