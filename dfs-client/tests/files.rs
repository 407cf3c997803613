//! Files through the client, end to end over the real network, against a cluster in memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod fake;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_client::{Client, OpenMode};
use dfs_common::wire::namespace::{Caller, SetAttributes, SetTime};
use dfs_common::{Error, ErrorCode, FileHandleId, InodeId, StorageId, Timestamp, ValidName};
use fake::{CHUNK_SIZE, Cluster};

const ROOT: Caller = Caller { uid: 0, gid: 0 };
const READ: OpenMode = OpenMode {
    read: true,
    write: false,
    append: false,
    truncate: false,
    direct: false,
};

struct Setup {
    cluster: Cluster,
    root: Arc<PathBuf>,
    _directory: tempfile::TempDir,
}

async fn setup() -> Setup {
    let directory = tempfile::tempdir().unwrap();
    Setup {
        cluster: Cluster::start().await,
        root: Arc::new(directory.path().join("root.key")),
        _directory: directory,
    }
}

impl Setup {
    async fn client(&mut self) -> Client {
        self.cluster.client(&self.root).await
    }
}

fn name(text: &str) -> ValidName {
    ValidName::new(text).unwrap()
}

async fn create(client: &Client, text: &str) -> (InodeId, FileHandleId) {
    let (attributes, handle) = client
        .create(ROOT, InodeId::ROOT, &name(text), 0o644, true)
        .await
        .unwrap();
    (attributes.inode, handle)
}

async fn whole(client: &Client, inode: InodeId) -> Vec<u8> {
    let (attributes, handle, _) = client.open(inode, READ).await.unwrap();
    let mut out = Vec::new();
    while out.len() < attributes.length_bytes as usize {
        let bytes = client.read(handle, out.len() as u64, 50_000).await.unwrap();
        assert!(!bytes.is_empty(), "short read at {}", out.len());
        out.extend_from_slice(&bytes);
    }
    assert!(client.read(handle, out.len() as u64, 10).await.unwrap().is_empty());
    client.release(handle).unwrap();
    out
}

/// A small generator: tests must be the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below.max(1)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_match_an_array() {
    for seed in 0..3_u64 {
        let mut setup = setup().await;
        let client = setup.client().await;
        let other = setup.client().await;
        let (inode, handle) = create(&client, "file").await;
        let mut dice = Dice(seed * 7919 + 1);
        let mut oracle: Vec<u8> = Vec::new();
        for step in 0..150 {
            match dice.roll(12) {
                0..=4 => {
                    let offset = dice.roll(300_000) as usize;
                    let length = [1, 100, 4096, 5000, 70_000, 200_000][dice.roll(6) as usize];
                    let data: Vec<u8> = (0..length).map(|i| (i as u64 + dice.0) as u8 | 1).collect();
                    if oracle.len() < offset + length {
                        oracle.resize(offset + length, 0);
                    }
                    oracle[offset..offset + length].copy_from_slice(&data);
                    let written = client.write(handle, offset as u64, Bytes::from(data)).await.unwrap();
                    assert_eq!(written as usize, length);
                }
                5..=7 => {
                    let offset = dice.roll(350_000) as usize;
                    let size = dice.roll(150_000) as usize;
                    let bytes = client.read(handle, offset as u64, size as u32).await.unwrap();
                    let expected = oracle.get(offset..(offset + size).min(oracle.len())).unwrap_or(&[]);
                    assert!(
                        bytes[..] == *expected,
                        "seed {seed} step {step}: read {offset}+{size} differs"
                    );
                }
                8 => {
                    let length = dice.roll(300_000);
                    let attributes = client
                        .set_attributes(ROOT, inode, SetAttributes::default(), Some(length), Some(handle))
                        .await
                        .unwrap();
                    oracle.resize(length as usize, 0);
                    assert_eq!(attributes.length_bytes, length);
                }
                9 => client.fsync(handle, dice.roll(2) == 0).await.unwrap(),
                10 => {
                    client.flush(handle).await.unwrap();
                    assert!(
                        whole(&other, inode).await == oracle,
                        "seed {seed} step {step}: another mount differs"
                    );
                }
                _ if dice.roll(3) == 0 => setup.cluster.bump_epochs(),
                _ => {
                    let attributes = client.attributes(inode).await.unwrap();
                    assert_eq!(attributes.length_bytes, oracle.len() as u64);
                }
            }
        }
        client.flush(handle).await.unwrap();
        client.release(handle).unwrap();
        assert!(whole(&other, inode).await == oracle);
        assert!(whole(&client, inode).await == oracle);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_mounts_write_different_bytes_of_one_block() {
    let mut setup = setup().await;
    let (a, b) = (setup.client().await, setup.client().await);
    let (inode, ha) = create(&a, "shared").await;
    a.write(ha, 0, Bytes::from(vec![0; 4096])).await.unwrap();
    a.flush(ha).await.unwrap();
    let mode = OpenMode {
        read: true,
        write: true,
        ..OpenMode::default()
    };
    let (_, hb, _) = b.open(inode, mode).await.unwrap();
    let one = async {
        for i in 0..100_u64 {
            a.write(ha, i * 2, Bytes::from_static(&[1])).await.unwrap();
            a.fsync(ha, false).await.unwrap();
        }
    };
    let two = async {
        for i in 0..100_u64 {
            b.write(hb, i * 2 + 1, Bytes::from_static(&[2])).await.unwrap();
            b.fsync(hb, false).await.unwrap();
        }
    };
    tokio::join!(one, two);
    let data = whole(&a, inode).await;
    for i in 0..100 {
        assert_eq!(&data[i * 2..i * 2 + 2], &[1, 2], "pair {i}");
    }
    assert!(
        setup.cluster.counts().condition_failures > 0,
        "the test met no conflict"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_write_error_is_reported_at_fsync_and_close_of_every_handle() {
    let mut setup = setup().await;
    let client = setup.client().await;
    let (inode, first) = create(&client, "doomed").await;
    let (_, second, _) = client.open(inode, OpenMode { write: true, ..READ }).await.unwrap();
    setup.cluster.world.lock().refuse = Some(Error::new(ErrorCode::NoSpace, "the disk is full"));
    client.write(first, 0, Bytes::from(vec![1; 100])).await.unwrap();
    let error = client.fsync(first, false).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSpace, "{error}");
    client.fsync(first, false).await.unwrap();
    let error = client.flush(second).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSpace, "{error}");
    client.flush(second).await.unwrap();
    setup.cluster.world.lock().refuse = None;
    assert_eq!(client.attributes(inode).await.unwrap().length_bytes, 0);
    client.write(first, 0, Bytes::from_static(b"again")).await.unwrap();
    client.flush(first).await.unwrap();
    assert_eq!(whole(&client, inode).await, b"again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_asked_for_again_under_the_same_name() {
    let mut setup = setup().await;
    let client = setup.client().await;
    let (inode, handle) = create(&client, "once").await;
    setup.cluster.world.lock().lose_answers = 3;
    client.write(handle, 0, Bytes::from(vec![7; 10_000])).await.unwrap();
    client.fsync(handle, false).await.unwrap();
    assert_eq!(setup.cluster.counts().repeats, 3);
    assert_eq!(whole(&client, inode).await, vec![7; 10_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_fsync_tells_metadata_while_the_disks_work_or_takes_the_sync_along() {
    let mut setup = setup().await;
    let client = setup.client().await;
    let (_, handle) = create(&client, "log").await;
    for i in 0..20_u64 {
        let before = setup.cluster.counts();
        client
            .write(handle, i * 1000, Bytes::from(vec![i as u8; 1000]))
            .await
            .unwrap();
        client.fsync(handle, false).await.unwrap();
        let after = setup.cluster.counts();
        assert_eq!(after.synced_mutations, before.synced_mutations);
        assert_eq!(after.mutations - before.mutations, 1);
        assert_eq!(after.syncs - before.syncs, 1);
        assert_eq!(after.commits - before.commits, 1);
        assert_eq!(after.reads, 0, "the end is known");
    }
    // Nothing to tell: one trip to the chain.
    for i in 0..5_u64 {
        let before = setup.cluster.counts();
        let data = Bytes::from(vec![i as u8; 1000]);
        client.write(handle, 19_000, data).await.unwrap();
        client.fsync(handle, true).await.unwrap();
        let after = setup.cluster.counts();
        assert_eq!(after.synced_mutations - before.synced_mutations, 1);
        assert_eq!(after.mutations - before.mutations, 1);
        assert_eq!((after.syncs, after.commits), (before.syncs, before.commits));
    }
    let before = setup.cluster.counts();
    // A write that went out unsynced needs a sync of its chain.
    client.write(handle, 20_000, Bytes::from(vec![1; 10])).await.unwrap();
    client.flush(handle).await.unwrap();
    client.fsync(handle, false).await.unwrap();
    assert_eq!(setup.cluster.counts().syncs, before.syncs + 1);
    let idle = setup.cluster.counts();
    client.flush(handle).await.unwrap();
    client.fsync(handle, false).await.unwrap();
    assert_eq!(setup.cluster.counts(), idle, "nothing dirty costs nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_head_costs_no_timeout_once_routing_says_so() {
    let mut setup = setup().await;
    let client = setup.client().await;
    let (inode, handle) = create(&client, "failover").await;
    client.write(handle, 0, Bytes::from(vec![3; 200_000])).await.unwrap();
    client.flush(handle).await.unwrap();
    let dead = dfs_common::StorageId(1);
    setup.cluster.world.lock().dead.insert(dead);
    client.write(handle, 0, Bytes::from(vec![4; 200_000])).await.unwrap();
    let flush = {
        let client = client.clone();
        tokio::spawn(async move { client.flush(handle).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    setup.cluster.routing.send_modify(|table| {
        table.version = table.version.next();
        for chain in table.chains.values_mut() {
            chain.epoch = chain.epoch.next();
            for member in &mut chain.members {
                if member.node == dead {
                    member.state = dfs_common::MemberState::Offline;
                }
            }
        }
    });
    flush.await.unwrap().unwrap();
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(whole(&client, inode).await, vec![4; 200_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_quorum_writes_wait_and_then_fail_with_a_reason() {
    let mut setup = setup().await;
    let mut options = setup.cluster.options(&setup.root);
    options.deadline = Duration::from_millis(1500);
    let client = Client::connect(options).await.unwrap();
    let (inode, handle) = create(&client, "waiting").await;
    client.write(handle, 0, Bytes::from_static(b"old")).await.unwrap();
    client.flush(handle).await.unwrap();
    setup.cluster.keep_serving(1);
    client.write(handle, 0, Bytes::from_static(b"new")).await.unwrap();
    let started = Instant::now();
    let error = client.fsync(handle, false).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(
        error.detail.contains("1 of 3 replicas in sync, QUORUM needs 2"),
        "{error}"
    );
    assert_eq!(whole(&client, inode).await, b"old", "reads that are safe are answered");
    client.write(handle, 0, Bytes::from_static(b"new")).await.unwrap();
    let flush = {
        let client = client.clone();
        tokio::spawn(async move { client.flush(handle).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    setup.cluster.keep_serving(3);
    let _ = flush.await.unwrap();
    assert_eq!(whole(&client, inode).await, b"new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_set_after_writes_stay_and_the_commit_rides_along() {
    let mut setup = setup().await;
    let client = setup.client().await;
    let (inode, handle) = create(&client, "copied").await;
    client.write(handle, 0, Bytes::from(vec![1; 5000])).await.unwrap();
    let then = Timestamp::from_nanos(1_000_000_000);
    let set = SetAttributes {
        mtime: Some(SetTime::To(then)),
        mode: Some(0o600),
        ..SetAttributes::default()
    };
    let attributes = client.set_attributes(ROOT, inode, set, None, None).await.unwrap();
    assert_eq!((attributes.mtime, attributes.length_bytes), (then, 5000));
    client.flush(handle).await.unwrap();
    client.release(handle).unwrap();
    let attributes = client.attributes(inode).await.unwrap();
    assert_eq!(
        (attributes.mtime, attributes.length_bytes, attributes.mode),
        (then, 5000, 0o600)
    );
    assert_eq!(setup.cluster.counts().commits, 0, "the commit rode along");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_session_ends_its_handles_and_a_new_one_goes_on() {
    let mut setup = setup().await;
    let client = setup.client().await;
    let (inode, handle) = create(&client, "outlived").await;
    client.write(handle, 0, Bytes::from_static(b"kept")).await.unwrap();
    client.flush(handle).await.unwrap();
    setup.cluster.world.lock().sessions.clear();
    assert_eq!(client.attributes(inode).await.unwrap().length_bytes, 4);
    let error = client.read(handle, 0, 4).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::SessionExpired, "{error}");
    assert!(error.detail.contains("open it again"), "{error}");
    client.release(handle).unwrap();
    assert_eq!(whole(&client, inode).await, b"kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_go_to_the_end_and_open_truncates() {
    let mut setup = setup().await;
    let (a, b) = (setup.client().await, setup.client().await);
    let (inode, first) = create(&a, "list").await;
    a.write(first, 0, Bytes::from_static(b"one ")).await.unwrap();
    a.flush(first).await.unwrap();
    let append = OpenMode {
        write: true,
        append: true,
        ..OpenMode::default()
    };
    let (_, handle, _) = b.open(inode, append).await.unwrap();
    b.write(handle, 0, Bytes::from_static(b"two ")).await.unwrap();
    b.write(handle, 0, Bytes::from_static(b"three")).await.unwrap();
    b.flush(handle).await.unwrap();
    assert_eq!(whole(&a, inode).await, b"one two three");
    let truncate = OpenMode {
        write: true,
        truncate: true,
        ..OpenMode::default()
    };
    let (attributes, handle, _) = a.open(inode, truncate).await.unwrap();
    assert_eq!(attributes.length_bytes, 0);
    a.write(handle, 5000, Bytes::from_static(b"x")).await.unwrap();
    a.flush(handle).await.unwrap();
    let data = whole(&b, inode).await;
    assert_eq!(data.len(), 5001);
    assert!(data[..5000].iter().all(|&byte| byte == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opens_are_reported_and_the_kernel_keeps_only_what_nobody_else_changed() {
    let mut setup = setup().await;
    let (a, b) = (setup.client().await, setup.client().await);
    let (inode, handle) = create(&a, "cached").await;
    a.write(handle, 0, Bytes::from_static(b"abc")).await.unwrap();
    a.flush(handle).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let reported = |cluster: &Cluster| cluster.world.lock().opened.values().any(|set| set.contains(&inode));
    assert!(reported(&setup.cluster));
    a.release(handle).unwrap();
    let (_, handle, keep) = a.open(inode, READ).await.unwrap();
    assert!(keep, "only this mount changed it");
    a.release(handle).unwrap();
    let (_, other, _) = b.open(inode, OpenMode { write: true, ..READ }).await.unwrap();
    b.write(other, 0, Bytes::from_static(b"xyz")).await.unwrap();
    b.flush(other).await.unwrap();
    b.release(other).unwrap();
    let (_, handle, keep) = a.open(inode, READ).await.unwrap();
    assert!(!keep, "another mount wrote");
    assert_eq!(&a.read(handle, 0, 10).await.unwrap()[..], b"xyz");
    a.release(handle).unwrap();
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert!(!reported(&setup.cluster));
}

/// What a direct reader sees must not be a promise that this mount alone knows of: another mount that looks later sees it too.
#[tokio::test(flavor = "multi_thread")]
async fn a_direct_read_sees_nothing_that_others_can_not() {
    let mut setup = setup().await;
    let (a, b) = (setup.client().await, setup.client().await);
    let (inode, writer) = create(&a, "register").await;
    a.write(writer, 0, Bytes::from(vec![0; 4096])).await.unwrap();
    a.flush(writer).await.unwrap();
    let direct = OpenMode { direct: true, ..READ };
    let (_, elsewhere, _) = b.open(inode, direct).await.unwrap();
    let (_, here, _) = a.open(inode, direct).await.unwrap();
    for round in 1..=20 {
        a.write(writer, 0, Bytes::from(vec![round; 4096])).await.unwrap();
        assert!(a.read(here, 0, 4096).await.unwrap() == vec![round; 4096]);
        assert!(
            b.read(elsewhere, 0, 4096).await.unwrap() == vec![round; 4096],
            "round {round}"
        );
    }
}

const MIB: usize = 1 << 20;

/// A file of one mount that another one reads in order, up to its middle: what comes next was read ahead.
async fn read_ahead_to_the_middle(setup: &mut Setup) -> (Client, FileHandleId, Client, FileHandleId, InodeId) {
    let (a, b) = (setup.client().await, setup.client().await);
    let (inode, writer) = create(&a, "shared").await;
    a.write(writer, 0, Bytes::from(vec![1; 8 * MIB])).await.unwrap();
    a.flush(writer).await.unwrap();
    let (_, reader, _) = b.open(inode, READ).await.unwrap();
    for part in 0..4 * MIB / 65_536 {
        let bytes = b.read(reader, (part * 65_536) as u64, 65_536).await.unwrap();
        assert!(bytes == vec![1; 65_536]);
    }
    // Long enough for what is under way to arrive, and well below the age at which it is dropped anyway.
    tokio::time::sleep(Duration::from_millis(100)).await;
    (a, writer, b, reader, inode)
}

/// What comes next for the reader, and closes. It has to be done before what was read ahead is dropped for its age.
async fn overwrite(client: &Client, writer: FileHandleId, byte: u8) {
    let data = Bytes::from(vec![byte; 65_536]);
    client.write(writer, 4 * MIB as u64, data).await.unwrap();
    client.flush(writer).await.unwrap();
}

/// The kernel's page cache is one for all handles: what the first handle reads after the second was opened must be as new as
/// what the second is promised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_ahead_before_another_mounts_close_is_not_served_after_the_next_open() {
    let mut setup = setup().await;
    let (a, writer, b, reader, inode) = read_ahead_to_the_middle(&mut setup).await;
    overwrite(&a, writer, 2).await;
    let (_, second, keep) = b.open(inode, READ).await.unwrap();
    assert!(!keep, "another mount wrote");
    let bytes = b.read(reader, 4 * MIB as u64, 65_536).await.unwrap();
    let old = bytes.iter().filter(|&&byte| byte != 2).count();
    assert_eq!(old, 0, "old bytes after the open");
    b.release(second).unwrap();
}

/// The same where no open tells, but attributes: the kernel gives its pages up when they say that the file was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_ahead_before_another_mounts_close_is_not_served_after_attributes_that_tell() {
    let mut setup = setup().await;
    let (a, writer, b, reader, inode) = read_ahead_to_the_middle(&mut setup).await;
    overwrite(&a, writer, 2).await;
    b.attributes(inode).await.unwrap();
    let bytes = b.read(reader, 4 * MIB as u64, 65_536).await.unwrap();
    assert!(bytes == vec![2; 65_536], "{} at {}", bytes[0], 4 * MIB);
}

/// Nor what was on its way when the file turned out to have been written, and a read waited for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_does_not_take_what_was_fetched_before_the_file_was_opened_anew() {
    let mut setup = setup().await;
    let (a, writer, b, reader, inode) = read_ahead_to_the_middle(&mut setup).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let before = setup.cluster.counts().reads;
    setup.cluster.world.lock().hold_reads = true;
    let waiting = tokio::spawn({
        let b = b.clone();
        async move { b.read(reader, 4 * MIB as u64, 65_536).await.unwrap() }
    });
    // All of what comes next has been asked for.
    while setup.cluster.counts().reads < before + (4 * MIB / CHUNK_SIZE as usize) as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    overwrite(&a, writer, 2).await;
    let (_, second, keep) = b.open(inode, READ).await.unwrap();
    assert!(!keep && !waiting.is_finished());
    setup.cluster.world.lock().hold_reads = false;
    let bytes = waiting.await.unwrap();
    assert!(bytes == vec![2; 65_536], "{} at {}", bytes[0], 4 * MIB);
    b.release(second).unwrap();
}

/// An open whose process was killed, or a truncation that opens the file for a moment, voids nothing in the kernel's cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_keeps_nothing_because_of_an_open_that_it_may_not_have_seen() {
    let mut setup = setup().await;
    let (a, b) = (setup.client().await, setup.client().await);
    let (inode, writer) = create(&a, "cached").await;
    a.write(writer, 0, Bytes::from_static(b"old")).await.unwrap();
    a.flush(writer).await.unwrap();
    let (_, first, _) = b.open(inode, READ).await.unwrap();
    assert_eq!(&b.read(first, 0, 10).await.unwrap()[..], b"old");
    b.release(first).unwrap();
    let (_, again, keep) = b.open(inode, READ).await.unwrap();
    assert!(keep, "nobody changed it");
    b.release(again).unwrap();
    a.write(writer, 0, Bytes::from_static(b"new")).await.unwrap();
    a.flush(writer).await.unwrap();
    // Its process is killed before the kernel acts on the answer.
    let (_, killed, keep) = b.open(inode, READ).await.unwrap();
    assert!(!keep);
    b.release(killed).unwrap();
    let (_, next, keep) = b.open(inode, READ).await.unwrap();
    assert!(!keep, "the kernel may still have what it read before");
    assert_eq!(&b.read(next, 0, 10).await.unwrap()[..], b"new");
    b.release(next).unwrap();
    a.write(writer, 0, Bytes::from_static(b"NEW")).await.unwrap();
    a.flush(writer).await.unwrap();
    // By its path, to the length that it has.
    let set = SetAttributes::default();
    b.set_attributes(ROOT, inode, set, Some(3), None).await.unwrap();
    let (_, last, keep) = b.open(inode, READ).await.unwrap();
    assert!(!keep, "a truncation opened it, not the kernel");
    b.release(last).unwrap();
}

/// A process that is killed while its write waits for room in the buffer: the last handle is gone
/// before the write is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_outlives_its_handle_is_told_and_takes_no_room_with_it() {
    const ROOM: usize = 128 << 10;
    let mut setup = setup().await;
    let mut options = setup.cluster.options(&setup.root);
    (options.file_dirty_bytes, options.dirty_bytes) = (ROOM, ROOM);
    options.deadline = Duration::from_secs(20);
    let client = Arc::new(Client::connect(options).await.unwrap());
    for round in 0..2_u64 {
        let (inode, handle) = create(&client, &format!("file-{round}")).await;
        setup.cluster.world.lock().dead.extend((1..=3).map(StorageId));
        client.write(handle, 0, vec![1; ROOM].into()).await.unwrap();
        let writer = Arc::clone(&client);
        let waits = tokio::spawn(async move { writer.write(handle, ROOM as u64, vec![2; 40_000].into()).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waits.is_finished());
        client.release(handle).unwrap();
        tokio::time::sleep(Duration::from_millis(60 * round)).await;
        setup.cluster.world.lock().dead.clear();
        assert_eq!(waits.await.unwrap().unwrap(), 40_000);
        let other = setup.client().await;
        let expected = [vec![1; ROOM], vec![2; 40_000]].concat();
        let start = Instant::now();
        while other.attributes(inode).await.unwrap().length_bytes < expected.len() as u64 {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "round {round}: its length is untold"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(
            whole(&other, inode).await == expected,
            "round {round}: the write is lost"
        );
    }
}
