//! The thread that makes the store durable: everybody who asked while one sync ran shares the next.

use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dfs_common::{Error, ErrorCode, Result};

use super::signs::Meter;
use crate::store::ChunkStore;

/// A sync that takes this long is worth a line in the log.
const SLOW: Duration = Duration::from_millis(200);

/// Nobody asks for a sync, but so much is written: whoever asks next would wait for all of it.
const BACKLOG_BYTES: u64 = 4 << 20;

/// How often to look for that.
const LOOK: Duration = Duration::from_millis(20);

/// A copy's next part waits while more than this is not synced, whoever wrote it.
const COPIES_UNSYNCED_BYTES: u64 = 16 << 20;

/// Called on the sync thread with the outcome.
type Done = Box<dyn FnOnce(Result<()>) + Send>;

#[derive(Debug)]
pub(crate) struct Syncer {
    /// Unbounded in itself; callers are bounded by the mutations and requests that a chain admits.
    asked: mpsc::Sender<Done>,
}

impl Syncer {
    pub(crate) fn start(store: ChunkStore, meter: Arc<Meter>) -> Result<(Self, JoinHandle<()>)> {
        let (asked, requests) = mpsc::channel::<Done>();
        let thread = std::thread::Builder::new()
            .name("dfs-sync".into())
            .spawn(move || {
                loop {
                    let first = match requests.recv_timeout(LOOK) {
                        Ok(first) => Some(first),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => break,
                    };
                    let begun = Instant::now();
                    let backlog = store.unsynced_bytes() >= BACKLOG_BYTES && store.fault().is_none();
                    if first.is_none() && backlog {
                        // A failure is the store's fault from then on; whoever asks is told.
                        let _ = meter.watch(|| store.sync());
                    }
                    // Those who ask during a sync wait for its end and for the next.
                    let waiting: Vec<Done> = first.into_iter().chain(requests.try_iter()).collect();
                    if waiting.is_empty() {
                        continue;
                    }
                    let outcome = meter.measure(|| store.sync()).map_err(Error::from);
                    let took = begun.elapsed();
                    if took >= SLOW {
                        tracing::warn!(
                            took_ms = took.as_millis() as u64,
                            "the disk was slow to sync the store: writes waited for it"
                        );
                    }
                    for done in waiting {
                        done(outcome.clone());
                    }
                }
            })
            .map_err(|e| Error::new(ErrorCode::Internal, format!("no thread for syncing: {e}")))?;
        Ok((Self { asked }, thread))
    }

    pub(crate) fn sync(&self, done: impl FnOnce(Result<()>) + Send + 'static) {
        if let Err(mpsc::SendError(done)) = self.asked.send(Box::new(done)) {
            done(Err(Error::new(ErrorCode::Poisoned, "the sync thread is gone")));
        }
    }
}

/// A neighbour's copies come as fast as the network: the sender waits for this disk, not the next client that asks for a sync.
pub(crate) async fn let_disk_catch_up(store: &ChunkStore, deadline: Duration) {
    let end = tokio::time::Instant::now() + deadline / 2;
    while store.unsynced_bytes() > COPIES_UNSYNCED_BYTES && store.fault().is_none() && tokio::time::Instant::now() < end
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
    use dfs_common::wire::storage::{Mutation, Origin};
    use dfs_common::{
        BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, ClusterId, Epoch, HybridClock, InodeId, Level,
        RequestId, StorageId,
    };

    use super::*;
    use crate::disk::SimDisk;
    use crate::disk::sim::{Image, Operation};
    use crate::store::{StoreError, StoreOptions};

    const CHUNK: ChunkId = ChunkId::new(InodeId(7), ChunkIndex(0));
    const WRITE_BYTES: u64 = 64 * (BLOCK_SIZE_BYTES + SEAL_SIZE_BYTES) as u64;

    fn open(disk: &SimDisk) -> ChunkStore {
        let options = StoreOptions::new(ClusterId([7; 16]), StorageId(3), 1 << 30);
        ChunkStore::open(Arc::new(disk.clone()), options).unwrap().0
    }

    fn write(store: &ChunkStore, counter: u64) {
        try_write(store, counter).unwrap();
    }

    fn try_write(store: &ChunkStore, counter: u64) -> std::result::Result<(), StoreError> {
        let origin = Origin {
            id: RequestId::SYSTEM,
            level: Level::Quorum,
            cut: dfs_common::CutEpoch::NONE,
            stamp: HybridClock::default(),
        };
        let mutation = Mutation::Write {
            first: BlockIndex(0),
            blocks: 64,
            last_length_bytes: BLOCK_SIZE_BYTES as u32,
            conditions: Vec::new(),
        };
        let version = ChunkVersion {
            epoch: Epoch(1),
            counter,
        };
        let payload = Bytes::from(vec![1; WRITE_BYTES as usize]);
        store.apply(ChainId(1), CHUNK, version, origin, &mutation, &payload)
    }

    #[test]
    fn what_nobody_asks_to_sync_does_not_pile_up() {
        let disk = SimDisk::new();
        let store = open(&disk);
        let meter = Arc::<Meter>::default();
        let (syncer, thread) = Syncer::start(store.clone(), Arc::clone(&meter)).unwrap();
        write(&store, 1);
        std::thread::sleep(LOOK * 10);
        assert!(store.unsynced_bytes() > 0, "a little may wait for who asks");
        for counter in 2..=20 {
            write(&store, counter);
        }
        let end = Instant::now() + Duration::from_secs(20);
        while store.unsynced_bytes() >= BACKLOG_BYTES {
            assert!(Instant::now() < end, "{}", store.unsynced_bytes());
            std::thread::sleep(LOOK);
        }
        drop(syncer);
        thread.join().unwrap();
        assert_eq!(meter.pace().done, 0, "peers sync less at a time: that is no measure");
        // Of those of the last 4 MiB nobody said anything.
        let newest = 20 - BACKLOG_BYTES / WRITE_BYTES;
        let found = open(&disk.image(Image::Power)).version(CHUNK);
        assert!(found.counter >= newest, "{found}");
    }

    #[tokio::test]
    async fn copies_wait_for_the_disk_but_not_for_ever() {
        let disk = SimDisk::new();
        let store = open(&disk);
        let deadline = Duration::from_millis(400);
        let waits = async || {
            let start = Instant::now();
            let_disk_catch_up(&store, deadline).await;
            start.elapsed()
        };
        write(&store, 1);
        assert!(waits().await < deadline / 2, "little is unsynced");
        for counter in 2..=COPIES_UNSYNCED_BYTES / WRITE_BYTES + 2 {
            write(&store, counter);
        }
        assert!(waits().await >= deadline / 2, "the sender gives up otherwise");
        store.sync().unwrap();
        assert!(waits().await < deadline / 2, "the disk has caught up");
        for counter in 101..=COPIES_UNSYNCED_BYTES / WRITE_BYTES + 102 {
            write(&store, counter);
        }
        disk.fail(Operation::Write, 0, dfs_common::errno::EIO);
        assert!(try_write(&store, 1_000).is_err());
        assert!(store.unsynced_bytes() > COPIES_UNSYNCED_BYTES);
        assert!(waits().await < deadline / 2, "a store that fails says so at once");
    }
}
