//! Segments that are made ahead of need.

use std::cell::Cell;
use std::time::Duration;

use dfs_common::errno::{EIO, ENOSPC};

use super::*;
use crate::disk::sim::Operation;

const SEGMENT: u32 = 4 << 20;

fn open(disk: &SimDisk) -> ChunkStore {
    let options = StoreOptions {
        segment_size_bytes: SEGMENT,
        checkpoint_interval_bytes: 1 << 30,
        at_rest_after: Duration::MAX,
        ..options(1_024)
    };
    ChunkStore::open(Arc::new(disk.clone()), options).unwrap().0
}

fn write(store: &ChunkStore, model: &mut Model, n: u64, blocks: u32) {
    let op = Op::Write {
        chunk: 0,
        first: 0,
        blocks,
        last: 4096,
    };
    step(store, model, &op, n).unwrap();
}

/// Writes until another segment begins; how many were made meanwhile.
fn made_by_writers(disk: &SimDisk, store: &ChunkStore, model: &mut Model) -> usize {
    let before = disk.files().len();
    for n in 1..=u64::from(SEGMENT) / (64 * 4096) {
        write(store, model, n, 64);
    }
    disk.files().len() - before
}

#[test]
fn the_next_segment_is_made_by_upkeep_and_zeroed_in_pieces() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let mut model = Model::new();
    let pieces = Cell::new(0);
    let count = |_: Duration| {
        pieces.set(pieces.get() + 1);
        Some(Duration::ZERO)
    };
    let before = disk.files().len();
    store.maintain(&count).unwrap();
    assert_eq!((disk.files().len(), pieces.get()), (before, 0), "nothing is written");
    write(&store, &mut model, 0, 1);
    store.maintain(&count).unwrap();
    assert_eq!((disk.files().len(), pieces.get()), (before + 1, 4));
    assert_eq!(made_by_writers(&disk, &store, &mut model), 0, "it was there");
    store.sync().unwrap();
    drop(store);
    assert_eq!(contents(&open(&disk)), model);
}

#[test]
fn under_a_stream_the_next_segment_is_made_but_not_zeroed() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let mut model = Model::new();
    write(&store, &mut model, 0, 64);
    let before = disk.files().len();
    store.maintain(&|_| panic!("a piece was zeroed")).unwrap();
    assert_eq!(disk.files().len(), before + 1);
    assert_eq!(made_by_writers(&disk, &store, &mut model), 0);
    assert_eq!(contents(&store), model);
}

#[test]
fn zeroing_ends_when_a_stream_begins() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let model = std::cell::RefCell::new(Model::new());
    write(&store, &mut model.borrow_mut(), 0, 1);
    let pieces = Cell::new(0);
    let stream = |_: Duration| {
        pieces.set(pieces.get() + 1);
        write(&store, &mut model.borrow_mut(), pieces.get(), 64);
        Some(Duration::ZERO)
    };
    let before = disk.files().len();
    store.maintain(&stream).unwrap();
    assert_eq!((disk.files().len(), pieces.get()), (before + 1, 1));
    assert_eq!(contents(&store), model.into_inner());
}

#[test]
fn a_segment_that_can_not_be_zeroed_is_used_as_it_is() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let mut model = Model::new();
    write(&store, &mut model, 0, 1);
    let before = disk.files().len();
    disk.fail(Operation::Write, 0, ENOSPC);
    store.maintain(&|_| Some(Duration::ZERO)).unwrap();
    disk.heal();
    assert!(store.fault().is_none());
    assert_eq!(disk.files().len(), before + 1);
    assert_eq!(made_by_writers(&disk, &store, &mut model), 0);
    disk.fail(Operation::Sync, 0, EIO);
    assert!(store.maintain(&|_| Some(Duration::ZERO)).is_err());
    assert!(store.fault().is_some(), "nobody knows what such a disk has");
}

#[test]
fn a_step_that_ends_between_two_pieces_leaves_a_good_segment() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let mut model = Model::new();
    write(&store, &mut model, 0, 1);
    let before = disk.files().len();
    let pieces = Cell::new(0);
    let end = |_: Duration| {
        pieces.set(pieces.get() + 1);
        None
    };
    store.maintain(&end).unwrap();
    assert_eq!((disk.files().len(), pieces.get()), (before + 1, 1));
    assert_eq!(made_by_writers(&disk, &store, &mut model), 0);
    store.sync().unwrap();
    drop(store);
    let after_power_cut = disk.image(crate::disk::sim::Image::Power);
    assert_eq!(contents(&open(&after_power_cut)), model);
}

/// What was removed comes back to the disk once nobody writes, also on a disk that is large.
#[test]
fn a_store_at_rest_gives_its_room_back() {
    let disk = SimDisk::new();
    let resting = StoreOptions {
        segment_size_bytes: SEGMENT,
        checkpoint_interval_bytes: 1 << 30,
        ..options(4_096)
    };
    let open = || ChunkStore::open(Arc::new(disk.clone()), resting.clone()).unwrap().0;
    let store = open();
    let mut model = Model::new();
    // 40 segments, of which a few blocks stay.
    for n in 0..40 * u64::from(SEGMENT) / (64 * 4096) {
        let op = Op::Write {
            chunk: (n % 12) as u8,
            first: 0,
            blocks: 64,
            last: 4096,
        };
        step(&store, &mut model, &op, n).unwrap();
    }
    for chunk in 0..8 {
        step(&store, &mut model, &Op::Remove { chunk }, 10_000 + u64::from(chunk)).unwrap();
    }
    store.sync().unwrap();
    let before = disk.files().len();
    let (mut steps, mut idle, mut last) = (0, 0, before);
    while idle < 3 {
        steps += 1;
        let more = store.maintain(&|_| Some(Duration::ZERO)).unwrap().more;
        let now = disk.files().len();
        // A crash at any moment leaves what was there.
        let cut = Arc::new(disk.image(crate::disk::sim::Image::Power));
        let found = contents(&ChunkStore::open(cut, resting.clone()).unwrap().0);
        assert!(found == model, "step {steps}");
        idle = if more || now != last { 0 } else { idle + 1 };
        last = now;
        assert!(steps < 500, "it does not end");
    }
    println!("{before} files became {last} in {steps} steps");
    assert!(before > 40 && last < 16, "{before} files became {last}");
    // It can be written again.
    write(&store, &mut model, 20_000, 64);
    store.sync().unwrap();
    drop(store);
    assert!(contents(&open()) == model);
}
