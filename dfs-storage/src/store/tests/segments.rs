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
