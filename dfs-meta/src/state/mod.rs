//! The replicated state: commands in, outcomes out, the same on every server.
//!
//! One thread applies, many read. A batch of commands becomes one batch of the store, with the position of the log that
//! it stands for, so after a crash the state is exactly that of some position. Readers take a lock that the applier holds
//! only while it commits: they see whole batches and never wait for a command to be worked out.
//!
//! Nothing here decides by itself: time stands in the command, and a command that can not be done has an outcome that
//! says so. Only trouble with the store is an error of [`State::apply`]; then the state must not be used any further.

mod apply;
mod conflicts;
mod export;
mod rows;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use dfs_common::wire::meta::LiveSessions;
use dfs_common::wire::namespace::{NamespaceAnswer, NamespaceRead, StatFs};
use dfs_common::{ClusterId, ErrorCode, Hold, InodeId, RoutingTable, SequenceNumber, SessionId, Timestamp};
use parking_lot::{Mutex, RwLock};

use crate::namespace::{self, Body, Counters, InodeRow, NameHash, Obstacle, OpError, OrphanRow};
use crate::store::{self, Batch, Store, StoreError, for_each_row, keys};

pub use export::{Export, PAGE_ROWS, Sink};
pub use rows::{FORMAT_VERSION, Orphan};

use export::Shadow;
use rows::{FormatRow, SessionRow};

/// What the group counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// Inodes with a name.
    pub inodes: u64,
    /// Unlinked files whose chunks are not removed yet.
    pub orphans: u64,
    pub sessions: u64,
}

/// A session as the group remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    pub session: SessionId,
    pub label: String,
    pub opened_at: Timestamp,
}

/// Copies of rows that every batch and many reads need; as of the last committed batch.
#[derive(Debug)]
struct Cache {
    routing: Arc<RoutingTable>,
    counters: Counters,
    /// What a running export must still see as it was.
    shadow: Option<Shadow>,
}

/// See the module.
pub struct State<S: Store> {
    store: S,
    hasher: Box<dyn NameHash>,
    cluster: ClusterId,
    /// One applier (or import) at a time.
    applying: Mutex<()>,
    /// One export at a time.
    exporting: Mutex<()>,
    /// Readers hold it shared for as long as they look at rows; the applier alone, while it commits.
    cache: RwLock<Cache>,
}

impl<S: Store> fmt::Debug for State<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl<S: Store> State<S> {
    /// Takes over the rows of `store`, or makes the first ones (an empty root directory) in an empty store.
    ///
    /// # Errors
    /// When the store is of another cluster or format, half filled, or damaged: delete it and rebuild.
    pub fn open(store: S, hasher: impl NameHash, cluster: ClusterId) -> Result<Self, StoreError> {
        if store.scan(&[], &keys::END, 1)?.is_empty() {
            store.commit(first_rows(cluster)?)?;
        }
        let cache = load(&store, cluster)?;
        Ok(Self {
            store,
            hasher: Box::new(hasher),
            cluster,
            applying: Mutex::new(()),
            exporting: Mutex::new(()),
            cache: RwLock::new(cache),
        })
    }

    /// Bytes that the consensus engine gave with the last batch; `None` before the first.
    pub fn position(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let _cache = self.cache.read();
        self.store.get(&keys::POSITION)
    }

    /// Answers several questions of one session from one state. `usage` is what the storage nodes report, for `statfs`.
    ///
    /// # Errors
    /// Only what must happen before one of them can be answered.
    pub fn read(
        &self,
        asker: SessionId,
        reads: &[NamespaceRead],
        usage: StatFs,
    ) -> Result<Vec<dfs_common::Result<NamespaceAnswer>>, Obstacle> {
        let cache = self.cache.read();
        reads
            .iter()
            .map(|read| {
                if matches!(read, NamespaceRead::StatFs) {
                    return Ok(Ok(NamespaceAnswer::StatFs(StatFs {
                        inodes: cache.counters.inodes,
                        ..usage
                    })));
                }
                match namespace::read(&self.store, self.hasher.as_ref(), asker, read) {
                    Ok(answer) => Ok(Ok(answer)),
                    Err(OpError::Answer(error)) => Ok(Err(error)),
                    Err(OpError::Store(error)) => Ok(Err(error.into())),
                    Err(OpError::Obstructed(obstacle)) => Err(obstacle),
                }
            })
            .collect()
    }

    /// Whether this change was answered, and the answer is remembered.
    pub fn is_answered(&self, session: SessionId, sequence: SequenceNumber) -> Result<bool, StoreError> {
        let _cache = self.cache.read();
        Ok(self.store.get(&keys::answer(session, sequence))?.is_some())
    }

    /// Whether the session still holds what it got in that epoch.
    pub fn is_held(&self, hold: Hold) -> Result<bool, StoreError> {
        let _cache = self.cache.read();
        namespace::is_valid(&self.store, hold)
    }

    pub fn routing(&self) -> Arc<RoutingTable> {
        Arc::clone(&self.cache.read().routing)
    }

    pub fn counts(&self) -> Counts {
        let counters = self.cache.read().counters;
        Counts {
            inodes: counters.inodes,
            orphans: counters.orphans,
            sessions: counters.sessions,
        }
    }

    /// Every session, in order of ids.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>, StoreError> {
        let _cache = self.cache.read();
        let mut sessions = Vec::new();
        let all = (keys::session(SessionId(0)), keys::session(SessionId(u64::MAX)));
        for_each_row(&self.store, all, PAGE_ROWS, |(key, value)| {
            let row: SessionRow = store::decode(&key, &value)?;
            let id = keys::first_id(&key).ok_or_else(|| StoreError::Broken("a session's key is short".into()))?;
            sessions.push(SessionInfo {
                session: SessionId(id),
                label: row.label,
                opened_at: row.opened_at,
            });
            Ok(())
        })?;
        Ok(sessions)
    }

    /// Which list of live sessions this is: numbers are never used again, so the next one and how many live tell it from all
    /// that were before.
    pub fn sessions_version(&self) -> (SessionId, u64) {
        let counters = self.cache.read().counters;
        (counters.next_session, counters.sessions)
    }

    /// The sessions that live, with its [`Self::sessions_version`].
    pub fn live_sessions(&self) -> Result<((SessionId, u64), LiveSessions), StoreError> {
        let cache = self.cache.read();
        let mut live = BTreeSet::new();
        let all = (keys::session(SessionId(0)), keys::session(SessionId(u64::MAX)));
        for_each_row(&self.store, all, PAGE_ROWS, |(key, _)| {
            let id = keys::first_id(&key).ok_or_else(|| StoreError::Broken("a session's key is short".into()))?;
            live.insert(SessionId(id));
            Ok(())
        })?;
        let next = cache.counters.next_session;
        Ok(((next, cache.counters.sessions), LiveSessions { next, live }))
    }

    pub fn has_session(&self, session: SessionId) -> Result<bool, StoreError> {
        let _cache = self.cache.read();
        Ok(self.store.get(&keys::session(session))?.is_some())
    }

    /// Unlinked files after `after`, in order of inodes, at most `limit`.
    pub fn orphans(&self, after: Option<InodeId>, limit: usize) -> Result<Vec<Orphan>, StoreError> {
        let _cache = self.cache.read();
        let from = keys::orphan(after.map_or(InodeId(0), InodeId::next));
        let rows = self.store.scan(&from, &keys::orphan(InodeId(u64::MAX)), limit)?;
        rows.into_iter()
            .map(|(key, value)| {
                let row: OrphanRow = store::decode(&key, &value)?;
                let broken = || StoreError::Broken("an orphan's row has no file".into());
                let inode = InodeId(keys::first_id(&key).ok_or_else(broken)?);
                let file: InodeRow = store::get(&self.store, &keys::inode(inode))?.ok_or_else(broken)?;
                let Body::Regular {
                    layout, length_bytes, ..
                } = file.body
                else {
                    return Err(broken());
                };
                Ok(Orphan {
                    inode,
                    unlinked_at: row.unlinked_at,
                    layout,
                    length_bytes,
                })
            })
            .collect()
    }

    /// The rows themselves, for tools and tests.
    pub fn store(&self) -> &S {
        &self.store
    }
}

/// An empty namespace: the root directory, root's to write until somebody says otherwise. It has no time of its
/// own, since every server makes it by itself and all must make the same.
fn first_rows(cluster: ClusterId) -> Result<Batch, StoreError> {
    let epoch = Timestamp::default();
    let root = InodeRow {
        mode: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        change: 1,
        policy: dfs_common::Policy::default(),
        xattr_bytes: 0,
        hold: None,
        growing: false,
        body: Body::Directory {
            parent: InodeId::ROOT,
            entries: 0,
        },
    };
    let counters = Counters {
        next_inode: InodeId::ROOT.next(),
        next_session: SessionId::SYSTEM.next(),
        inodes: 1,
        orphans: 0,
        sessions: 0,
    };
    let format = FormatRow {
        version: FORMAT_VERSION,
        cluster,
    };
    let mut batch = Batch::default();
    batch.put(keys::inode(InodeId::ROOT), store::encode(&root)?);
    batch.put(keys::COUNTERS.to_vec(), store::encode(&counters)?);
    batch.put(keys::ROUTING.to_vec(), store::encode(&RoutingTable::default())?);
    batch.put(keys::FORMAT.to_vec(), store::encode(&format)?);
    Ok(batch)
}

/// Checks that these rows are ours and whole, and reads what is cached of them.
fn load<S: Store>(rows: &S, cluster: ClusterId) -> Result<Cache, StoreError> {
    let missing = |what: &str| StoreError::Broken(format!("it has no {what}; it was filled half-way"));
    let format: FormatRow = store::get(rows, &keys::FORMAT)?.ok_or_else(|| missing("format row"))?;
    if format.version != FORMAT_VERSION {
        return Err(StoreError::OtherFormat {
            found: format.version,
            wanted: FORMAT_VERSION,
        });
    }
    if format.cluster != cluster {
        return Err(StoreError::OtherCluster {
            found: format.cluster,
            wanted: cluster,
        });
    }
    Ok(Cache {
        routing: Arc::new(store::get(rows, &keys::ROUTING)?.ok_or_else(|| missing("routing table"))?),
        counters: store::get(rows, &keys::COUNTERS)?.ok_or_else(|| missing("counters"))?,
        shadow: None,
    })
}

/// A change of a session that is not (or no longer) known.
fn session_expired(session: SessionId) -> dfs_common::Error {
    dfs_common::Error::new(
        ErrorCode::SessionExpired,
        format!("session {session} is not open (it was closed, or not renewed in time); mount again"),
    )
}
