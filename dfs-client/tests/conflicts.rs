//! Conflicts through the client, end to end against a cluster in memory: both versions are read, and each choice does what it says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod fake;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dfs_client::conflicts::{Choice, Version};
use dfs_client::{Client, OpenMode};
use dfs_common::conflict::ConflictEntry;
use dfs_common::wire::namespace::{Caller, SetAttributes};
use dfs_common::*;
use fake::{CHUNK_SIZE, Cluster, Gate};
use tokio::io::AsyncWriteExt;

const ROOT: Caller = Caller { uid: 0, gid: 0 };
const BLOCK: usize = 4096;
const ID: ConflictId = ConflictId(900);

/// In chunk 1: two blocks, and the short one at the end of the file.
const BLOCKS: [(BlockIndex, u32); 2] = [(BlockIndex(4), 2), (BlockIndex(9), 1)];
const END: usize = CHUNK_SIZE as usize + 9 * BLOCK;

struct Setup {
    cluster: Cluster,
    root: Arc<PathBuf>,
    client: Client,
    inode: InodeId,
    current: Vec<u8>,
    other: Vec<u8>,
    _directory: tempfile::TempDir,
}

fn name(text: &str) -> ValidName {
    ValidName::new(text).unwrap()
}

fn now() -> Timestamp {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    Timestamp::from_nanos(nanos as i64)
}

async fn whole(client: &Client, inode: InodeId) -> Vec<u8> {
    let mode = OpenMode {
        read: true,
        ..OpenMode::default()
    };
    let (attributes, handle, _) = client.open(inode, mode).await.unwrap();
    let mut out = Vec::new();
    while out.len() < attributes.length_bytes as usize {
        out.extend_from_slice(&client.read(handle, out.len() as u64, 1 << 20).await.unwrap());
    }
    client.release(handle).unwrap();
    out
}

/// A file with 100 bytes in its last block, of which the other version had 7.
async fn setup(policy: ConflictPolicy) -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let root = Arc::new(directory.path().join("root.key"));
    let mut cluster = Cluster::start().await;
    let client = cluster.client(&root).await;
    let (attributes, handle) = client
        .create(ROOT, InodeId::ROOT, &name("report"), 0o4640, true)
        .await
        .unwrap();
    let inode = attributes.inode;
    let owner = SetAttributes {
        uid: Some(1000),
        gid: Some(100),
        ..SetAttributes::default()
    };
    client.set_attributes(ROOT, inode, owner, None, None).await.unwrap();
    let mut other = vec![b'b'; END + 7];
    let at = CHUNK_SIZE as usize + 4 * BLOCK;
    other[at..at + 2 * BLOCK].fill(b'o');
    other[END..].fill(b'o');
    let mut current = other.clone();
    current[at..at + 2 * BLOCK].fill(b'c');
    current.truncate(END);
    current.resize(END + 100, b'c');
    client.write(handle, 0, Bytes::from(other.clone())).await.unwrap();
    client.fsync(handle, false).await.unwrap();
    let chunk = ChunkId::new(inode, ChunkIndex(1));
    let chain = ChainId((inode.0 as u32 + 1) % 3 + 1);
    let conflict = Conflict {
        id: ID,
        found_at: now(),
        policy,
        divergence: Divergence {
            node: StorageId(1),
            chain,
            chunk,
            theirs: ChunkVector::default(),
            chains: ChunkVector::default(),
            theirs_at: HybridClock::default(),
            chains_at: HybridClock::default(),
            blocks: BLOCKS.to_vec(),
        },
        state: ConflictState::Open,
    };
    {
        let mut world = cluster.world.lock();
        world.keep_aside(&conflict);
        let path = Some(b"/report".to_vec());
        world.conflicts.insert((inode, ID), ConflictEntry { conflict, path });
    }
    client.write(handle, 0, Bytes::from(current.clone())).await.unwrap();
    client.fsync(handle, false).await.unwrap();
    client.release(handle).unwrap();
    Setup {
        cluster,
        root,
        client,
        inode,
        current,
        other,
        _directory: directory,
    }
}

impl Setup {
    fn entry(&self) -> ConflictEntry {
        self.cluster.world.lock().conflicts[&(self.inode, ID)].clone()
    }

    fn how(&self) -> Option<Settlement> {
        match self.entry().conflict.state {
            ConflictState::Settled { how, .. } => Some(how),
            _ => None,
        }
    }

    async fn resolve(&self, choice: Choice) -> Result<Option<Vec<u8>>> {
        self.client.resolve(&self.entry(), choice, "a test").await
    }

    async fn sibling(&self) -> InodeId {
        let found = self.client.lookup(InodeId::ROOT, &name("report.conflict-900")).await;
        let found = found.unwrap();
        assert_eq!((found.mode, found.uid, found.gid), (0o640, 1000, 100));
        found.inode
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_current_version_stays() {
    let setup = setup(ConflictPolicy::Application).await;
    let listed = setup.client.conflicts().await.unwrap();
    let nameless = ConflictEntry {
        path: None,
        ..setup.entry()
    };
    assert_eq!(listed, [nameless]);
    assert_eq!(setup.client.conflict(setup.inode, ID).await, Ok(setup.entry()));
    assert_eq!(setup.resolve(Choice::Current).await, Ok(None));
    assert_eq!(setup.how(), Some(Settlement::Current));
    assert!(whole(&setup.client, setup.inode).await == setup.current);
    let again = setup.resolve(Choice::Other).await.unwrap_err();
    assert!(
        again
            .detail
            .contains("settled already: current version kept, by a test"),
        "{again}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_version_takes_its_place() {
    let mut setup = setup(ConflictPolicy::Application).await;
    let attributes = setup.client.attributes(setup.inode).await.unwrap();
    let pieces = setup
        .client
        .other_version(&setup.entry().conflict, &attributes)
        .await
        .unwrap();
    let bytes: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
    assert_eq!(bytes, 2 * BLOCK + 7, "as they were written");
    setup.resolve(Choice::Other).await.unwrap();
    assert_eq!(setup.how(), Some(Settlement::Other));
    let elsewhere = setup.cluster.client(&setup.root).await;
    assert!(whole(&elsewhere, setup.inode).await == setup.other);
}

/// Another mount appends, and closes the file.
async fn append(setup: &mut Setup, bytes: &[u8]) {
    let elsewhere = setup.cluster.client(&setup.root).await;
    let mode = OpenMode {
        write: true,
        append: true,
        ..OpenMode::default()
    };
    let (_, handle, _) = elsewhere.open(setup.inode, mode).await.unwrap();
    elsewhere.write(handle, 0, Bytes::copy_from_slice(bytes)).await.unwrap();
    elsewhere.flush(handle).await.unwrap();
    elsewhere.release(handle).unwrap();
    elsewhere.close().await.unwrap();
}

/// Takes the other version, while another mount appends between what was read of it and what is done with it.
async fn resolve_with_an_append(setup: &mut Setup, bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    let gate = Arc::new(Gate::default());
    setup.cluster.world.lock().next_conflicts = Some(Arc::clone(&gate));
    let resolving = tokio::spawn({
        let (client, entry) = (setup.client.clone(), setup.entry());
        async move { client.resolve(&entry, Choice::Other, "a test").await }
    });
    gate.reached.notified().await;
    append(setup, bytes).await;
    gate.open.notify_one();
    resolving.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_meanwhile_is_not_cut_where_the_other_version_decides_the_end() {
    for size in [50, 20_000] {
        let mut setup = setup(ConflictPolicy::Application).await;
        let resolved = resolve_with_an_append(&mut setup, &vec![b'a'; size]).await;
        let elsewhere = setup.cluster.client(&setup.root).await;
        let found = whole(&elsewhere, setup.inode).await;
        let expected = [&setup.current[..], &vec![b'a'; size]].concat();
        assert!(
            found == expected,
            "{} bytes appended: {} bytes found",
            size,
            found.len()
        );
        let error = resolved.unwrap_err();
        assert_eq!(error.code, ErrorCode::Busy, "{error}");
        assert!(error.detail.contains("resolve it again"), "{error}");
        assert_eq!(setup.how(), None);
        // Whoever asks again has seen it.
        setup.resolve(Choice::Other).await.unwrap();
        assert_eq!(setup.how(), Some(Settlement::Other));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_meanwhile_stays_where_the_other_version_ends_nothing() {
    let mut setup = setup(ConflictPolicy::Application).await;
    let mut entry = setup.entry();
    entry.conflict.divergence.blocks = vec![BLOCKS[0]];
    setup.cluster.world.lock().conflicts.insert((setup.inode, ID), entry);
    resolve_with_an_append(&mut setup, &[b'a'; 5_000]).await.unwrap();
    assert_eq!(setup.how(), Some(Settlement::Other));
    let elsewhere = setup.cluster.client(&setup.root).await;
    let found = whole(&elsewhere, setup.inode).await;
    let expected = [&setup.other[..END], &setup.current[END..], &[b'a'; 5_000]].concat();
    assert!(found == expected, "{} bytes found", found.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_while_a_programs_result_is_put_in_place_is_not_cut() {
    let mut setup = setup(ConflictPolicy::Application).await;
    let versions = setup.client.versions(&setup.entry()).await.unwrap();
    let (mut program, mut result) = tokio::io::duplex(1 << 16);
    let merging = tokio::spawn({
        let client = setup.client.clone();
        async move { client.resolve_merged(&versions, &mut result, "a test").await }
    });
    program.write_all(&setup.current[..40_000]).await.unwrap();
    // The file is open and compared by now: nothing but the end is left to be put in place.
    tokio::time::sleep(Duration::from_millis(200)).await;
    append(&mut setup, &[b'a'; 5_000]).await;
    program.shutdown().await.unwrap();
    drop(program);
    let merged = merging.await.unwrap();
    let elsewhere = setup.cluster.client(&setup.root).await;
    let found = whole(&elsewhere, setup.inode).await;
    let expected = [&setup.current[..], &[b'a'; 5_000]].concat();
    assert!(found == expected, "{} bytes found", found.len());
    let error = merged.unwrap_err();
    assert_eq!(error.code, ErrorCode::Busy, "{error}");
    assert_eq!(setup.how(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_are_kept() {
    let setup = setup(ConflictPolicy::KeepBoth).await;
    let path = setup.resolve(Choice::Both).await.unwrap();
    assert_eq!(path.as_deref(), Some(&b"/report.conflict-900"[..]));
    assert_eq!(setup.how(), Some(Settlement::Both));
    assert!(whole(&setup.client, setup.sibling().await).await == setup.other);
    assert!(whole(&setup.client, setup.inode).await == setup.current);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_maker_made_before_it_died_stays() {
    let setup = setup(ConflictPolicy::KeepBoth).await;
    let keeper = ChunkId::new(ID.keeper(), ChunkIndex(1));
    let kept = setup.cluster.world.lock().chunks[&keeper].clone();
    setup.resolve(Choice::Both).await.unwrap();
    let made = setup.sibling().await;

    // Just before it settled the conflict.
    let mut entry = setup.entry();
    entry.conflict.state = ConflictState::Open;
    {
        let mut world = setup.cluster.world.lock();
        world.conflicts.insert((setup.inode, ID), entry.clone());
        world.chunks.insert(keeper, kept);
    }
    setup.resolve(Choice::Both).await.unwrap();
    assert_eq!(setup.how(), Some(Settlement::Both));
    assert_eq!(setup.sibling().await, made);
    assert!(whole(&setup.client, made).await == setup.other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_that_name_that_is_something_else_is_not_touched() {
    let setup = setup(ConflictPolicy::KeepBoth).await;
    let sibling = name("report.conflict-900");
    let (_, handle) = setup
        .client
        .create(ROOT, InodeId::ROOT, &sibling, 0o600, true)
        .await
        .unwrap();
    setup.client.release(handle).unwrap();
    let error = setup.resolve(Choice::Both).await.unwrap_err();
    assert!(
        error.detail.contains("report.conflict-900") && error.detail.contains("rename it"),
        "{error}"
    );
    assert_eq!(setup.how(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_merges_them() {
    let setup = setup(ConflictPolicy::Application).await;
    let versions = setup.client.versions(&setup.entry()).await.unwrap();
    for (which, expected) in [(Version::Current, &setup.current), (Version::Other, &setup.other)] {
        let mut copy = Vec::new();
        setup.client.copy_version(&versions, which, &mut copy).await.unwrap();
        assert!(copy == *expected, "{which:?}");
    }
    let merged = [&setup.current[..70_000], b"and more"].concat();
    setup
        .client
        .resolve_merged(&versions, &mut &merged[..], "a test")
        .await
        .unwrap();
    assert_eq!(setup.how(), Some(Settlement::Application));
    assert!(whole(&setup.client, setup.inode).await == merged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_is_void_when_the_file_was_written_meanwhile() {
    let setup = setup(ConflictPolicy::Application).await;
    let versions = setup.client.versions(&setup.entry()).await.unwrap();
    let set = SetAttributes::default();
    setup
        .client
        .set_attributes(ROOT, setup.inode, set, Some(10), None)
        .await
        .unwrap();
    let error = setup
        .client
        .resolve_merged(&versions, &mut &b"merged"[..], "a test")
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::Busy, "{error}");
    assert_eq!(setup.how(), None);
    assert_eq!(whole(&setup.client, setup.inode).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_file_a_conflict_is_over() {
    let setup = setup(ConflictPolicy::Application).await;
    let mut entry = setup.entry();
    setup.cluster.world.lock().inodes.remove(&setup.inode);
    let unlinked = setup.client.resolve(&entry, Choice::Both, "a test").await.unwrap_err();
    entry.path = None;
    let nameless = setup
        .client
        .resolve(&entry, Choice::Current, "a test")
        .await
        .unwrap_err();
    for error in [unlinked, nameless] {
        assert_eq!(error.detail, "the file of conflict 900 is gone: nothing is left to do");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_other_version_of_which_nothing_is_left_is_not_kept_without_a_word() {
    let setup = setup(ConflictPolicy::KeepBoth).await;
    setup
        .cluster
        .world
        .lock()
        .chunks
        .retain(|chunk, _| chunk.inode != ID.keeper());
    let error = setup.resolve(Choice::Both).await.unwrap_err();
    assert!(error.detail.contains("--keep current"), "{error}");
    assert_eq!(setup.how(), None);
    assert_eq!(setup.resolve(Choice::Current).await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_keeps_both_by_itself() {
    let mut setup = setup(ConflictPolicy::KeepBoth).await;
    let mut options = setup.cluster.options(&setup.root);
    options.keeps_both = true;
    let mount = Client::connect(options).await.unwrap();
    let found = async {
        while setup.how().is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.unwrap();
    let ConflictState::Settled { how, by, .. } = setup.entry().conflict.state else {
        panic!("it was settled a moment ago");
    };
    assert_eq!((how, &by[..10]), (Settlement::Both, "mount test"));
    assert!(whole(&setup.client, setup.sibling().await).await == setup.other);
    mount.close().await.unwrap();
}
