//! What all files of one mount share: session, chains, keys, budgets, and the table of what is open.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use dfs_common::planted::{self, Bug};
use dfs_common::wire::namespace::{Attributes, FileKind, NamespaceAnswer, NamespaceRead};
use dfs_common::{ChainId, Error, ErrorCode, FileHandleId, InodeId, Level, Result};
use dfs_crypto::nonce::NonceSource;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{RwLock, Semaphore, watch};
use tokio::time::Instant;

use crate::chunks::Chunks;
use crate::data::background::Background;
use crate::data::errseq::Seen;
use crate::data::reader::Ahead;
use crate::data::state::{FileState, Inner};
use crate::data::unsynced::{Durable, Owing, Unsynced};
use crate::keys::Keys;
use crate::meta::Session;
use crate::meta::refusals::Told;
use crate::options::OpenMode;

/// Files remembered after their last close: what the kernel may keep, and which chains lack a Sync.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// A machine that was suspended hears from the group within this, or its calls fail until it does.
const LEASE_PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct Bounds {
    pub(crate) deadline: Duration,
    pub(crate) file_in_flight_bytes: usize,
    pub(crate) file_dirty_bytes: usize,
    pub(crate) read_level: Option<Level>,
    pub(crate) write_level: Option<Level>,
}

pub(crate) struct Mount {
    pub(crate) session: Arc<Session>,
    pub(crate) chunks: Chunks,
    pub(crate) keys: Keys,
    pub(crate) nonces: NonceSource,
    pub(crate) bounds: Bounds,
    pub(crate) in_flight: Semaphore,
    pub(crate) dirty_room: Semaphore,
    /// Of what is acknowledged and not synced.
    pub(crate) kept_room: Arc<Semaphore>,
    pub(crate) ahead_room: Arc<Semaphore>,
    pub(crate) files: Mutex<Files>,
    pub(crate) background: Mutex<Background>,
    pub(crate) numbers: AtomicU64,
    started: Instant,
}

pub(crate) struct Files {
    pub(crate) open: BTreeMap<InodeId, Arc<FileState>>,
    pub(crate) handles: BTreeMap<FileHandleId, Arc<Handle>>,
    closed: LruCache<InodeId, Closed>,
    next_handle: u64,
    /// Of what was shown and did not come to pass, as far as it was forgotten here.
    untrue: u64,
}

/// What is remembered of a file that nobody has open.
struct Closed {
    own_change: Option<u64>,
    /// At which it was written.
    level: Level,
    unsynced: Unsynced,
    /// What others wrote to it was durable.
    foreign_durable: bool,
}

/// One open file of the mount.
pub(crate) struct Handle {
    pub(crate) file: Arc<FileState>,
    pub(crate) mode: OpenMode,
    pub(crate) seen: Mutex<Seen>,
    /// What its writes were refused for.
    pub(crate) seen_by_writes: Mutex<Seen>,
    pub(crate) ahead: Mutex<Ahead>,
    /// Which refused changes of the file it has been told of.
    pub(crate) told: Mutex<Told>,
    /// The file's `change` as of which the kernel's cache is right once the kernel has acted on this handle's open: its first
    /// request says so, and none comes if the process was killed before.
    voids: Mutex<Option<u64>>,
}

impl Handle {
    fn note_use(&self) {
        if let Some(change) = self.voids.lock().take() {
            let mut inner = self.file.inner.lock();
            inner.own_change = inner.own_change.max(Some(change));
        }
    }
}

/// An operation that uses a file's state: while it is under way the file is open, whatever becomes of the handles.
pub(crate) struct User {
    mount: Arc<Mount>,
    file: Arc<FileState>,
}

impl Drop for User {
    fn drop(&mut self) {
        self.mount.close(&self.file);
    }
}

impl Files {
    /// What files that nobody has open have on a chain, unsynced.
    pub(crate) fn closed_on(&self, chain: ChainId) -> Vec<Owing> {
        let closed = self.closed.iter();
        closed.filter_map(|(_, closed)| closed.unsynced.on(chain)).collect()
    }

    /// Everything up to these numbers is durable, also what such files have there.
    pub(crate) fn settle_closed(&mut self, durable: impl Fn(Level, ChainId) -> Durable) {
        for (_, closed) in &mut self.closed {
            let level = closed.level;
            closed.unsynced.settle(|chain| durable(level, chain));
        }
    }
}

impl Mount {
    pub(crate) fn new(
        session: Arc<Session>,
        chunks: Chunks,
        keys: Keys,
        nonces: NonceSource,
        bounds: Bounds,
        (in_flight_bytes, dirty_bytes, ahead_bytes, kept_bytes): (usize, usize, usize, usize),
    ) -> Self {
        Self {
            session,
            chunks,
            keys,
            nonces,
            bounds,
            in_flight: Semaphore::new(in_flight_bytes),
            dirty_room: Semaphore::new(dirty_bytes),
            kept_room: Arc::new(Semaphore::new(kept_bytes)),
            ahead_room: Arc::new(Semaphore::new(ahead_bytes)),
            files: Mutex::new(Files {
                open: BTreeMap::new(),
                handles: BTreeMap::new(),
                closed: LruCache::new(REMEMBERED),
                next_handle: 1,
                untrue: 0,
            }),
            background: Mutex::default(),
            numbers: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.bounds.deadline
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub(crate) async fn fetch_attributes(&self, inode: InodeId, deadline: Instant) -> Result<Attributes> {
        match self
            .session
            .ask(NamespaceRead::GetAttributes { inode }, deadline)
            .await?
        {
            NamespaceAnswer::Attributes(attributes) => Ok(attributes),
            _ => Err(Error::new(
                ErrorCode::BadMessage,
                "attributes were asked for, something else came",
            )),
        }
    }

    /// The state of an inode that is open here.
    pub(crate) fn open_file(&self, inode: InodeId) -> Option<Arc<FileState>> {
        self.files.lock().open.get(&inode).cloned()
    }

    /// Lays over metadata's answer what only this mount knows, and remembers the answer.
    pub(crate) fn view(&self, attributes: Attributes) -> Attributes {
        if attributes.kind != FileKind::Regular {
            return attributes;
        }
        match self.open_file(attributes.inode) {
            Some(file) => {
                let mut inner = file.inner.lock();
                inner.learn(&attributes);
                inner.view(&attributes)
            }
            None => attributes,
        }
    }

    /// Opens an inode whose attributes are fresh; `session.hold` was called before they were fetched. The `bool`: the
    /// kernel may keep what it has of it.
    pub(crate) fn attach(&self, attributes: &Attributes) -> Result<(Arc<FileState>, bool)> {
        let inode = attributes.inode;
        let data = attributes.file.as_ref().ok_or_else(|| {
            let code = match attributes.kind {
                FileKind::Directory => ErrorCode::IsDirectory,
                _ => ErrorCode::InvalidArgument,
            };
            Error::new(code, format!("inode {inode} is not a regular file"))
        })?;
        data.layout.check()?;
        let cipher = self.keys.cipher(inode, &data.key)?;
        let session = self.session.id();
        self.forget_foreseen();
        let mut files = self.files.lock();
        let known = files.open.get(&inode).cloned();
        let (known, earlier) = match known {
            Some(file) if file.session == session => (Some(file), None),
            earlier => (None, earlier),
        };
        let is_new = known.is_none();
        let file = if let Some(file) = known {
            file
        } else {
            let closed = files.closed.pop(&inode);
            let own_change = closed.as_ref().and_then(|closed| closed.own_change);
            let mut inner = Inner::new(attributes.clone(), &data.layout, own_change);
            if let Some(closed) = closed {
                inner.unsynced = closed.unsynced;
                inner.unvouched = u64::from(!closed.foreign_durable);
            }
            if let Some(earlier) = earlier {
                inner.inherit(&mut earlier.inner.lock(), earlier.session);
            }
            let file = Arc::new(FileState {
                inode,
                layout: data.layout,
                read_level: self.bounds.read_level.unwrap_or(attributes.policy.read),
                write_level: self.bounds.write_level.unwrap_or(attributes.policy.write),
                cipher,
                session,
                inner: Mutex::new(inner),
                progress: watch::Sender::new(0),
                gate: RwLock::new(()),
                commit_turn: tokio::sync::Mutex::new(()),
                in_flight: Semaphore::new(self.bounds.file_in_flight_bytes),
                dirty_room: Semaphore::new(self.bounds.file_dirty_bytes),
            });
            files.open.insert(inode, Arc::clone(&file));
            file
        };
        let mut inner = file.inner.lock();
        inner.opens += 1;
        inner.learn(attributes);
        let keep = inner.own_change == Some(attributes.change) || planted::is(Bug::PagesKept);
        if is_new && !keep {
            inner.note_foreign();
        }
        drop(inner);
        Ok((file, keep))
    }

    /// Counts as an opener of the file until it is dropped.
    pub(crate) fn using(self: &Arc<Self>, file: &Arc<FileState>) -> User {
        self.session.hold_new(file.inode);
        file.inner.lock().opens += 1;
        User {
            mount: Arc::clone(self),
            file: Arc::clone(file),
        }
    }

    /// Gives an opener up, and has what is left done in the background if it was the last.
    pub(crate) fn close(self: &Arc<Self>, file: &Arc<FileState>) {
        if !self.detach(file) && file.inner.lock().opens == 0 {
            let (mount, file) = (Arc::clone(self), Arc::clone(file));
            tokio::spawn(async move { mount.finish(&file).await });
        }
    }

    /// One opener less. `true`: it was the last, and nothing is left to do, so the state is gone.
    pub(crate) fn detach(&self, file: &Arc<FileState>) -> bool {
        let last = {
            let mut inner = file.inner.lock();
            inner.opens = inner.opens.saturating_sub(1);
            inner.opens == 0
        };
        self.session.let_go(file.inode);
        last && self.forget_if_idle(file)
    }

    /// Drops the state of a file that nobody has open and that owes nothing.
    pub(crate) fn forget_if_idle(&self, file: &Arc<FileState>) -> bool {
        let mut files = self.files.lock();
        let mut inner = file.inner.lock();
        if inner.opens > 0 || !inner.is_quiet() {
            return false;
        }
        if files
            .open
            .get(&file.inode)
            .is_some_and(|known| Arc::ptr_eq(known, file))
        {
            files.open.remove(&file.inode);
            for (chain, number) in inner.kept.drop_unsynced() {
                inner.unsynced.gap(chain, number);
            }
            let closed = Closed {
                own_change: inner.own_change,
                level: file.write_level,
                foreign_durable: inner.foreign_unsynced().is_none(),
                unsynced: std::mem::take(&mut inner.unsynced),
            };
            files.closed.put(file.inode, closed);
        }
        true
    }

    /// What this mount knows of files from changes that did not come to pass as it had shown them is not so.
    pub(crate) fn forget_foreseen(&self) {
        let untrue = self.session.untrue();
        let mut files = self.files.lock();
        if std::mem::replace(&mut files.untrue, untrue) == untrue {
            return;
        }
        for (_, closed) in &mut files.closed {
            closed.own_change = None;
        }
        for handle in files.handles.values() {
            *handle.voids.lock() = None;
        }
        for file in files.open.values() {
            let mut inner = file.inner.lock();
            // Whatever the group says next is right.
            inner.attributes.change = 0;
            inner.own_change = None;
            inner.note_foreign();
        }
    }

    /// `voids`: the file's `change`, where the kernel is told to give up what it has of the file.
    pub(crate) fn add_handle(&self, file: Arc<FileState>, mode: OpenMode, voids: Option<u64>) -> FileHandleId {
        let seen = file.inner.lock().errors.sample();
        let told = self.session.open_handle(file.inode);
        let handle = Arc::new(Handle {
            file,
            mode,
            seen: Mutex::new(seen),
            seen_by_writes: Mutex::new(seen),
            ahead: Mutex::new(Ahead::default()),
            told: Mutex::new(told),
            voids: Mutex::new(voids),
        });
        let mut files = self.files.lock();
        let id = FileHandleId(files.next_handle);
        files.next_handle += 1;
        files.handles.insert(id, handle);
        id
    }

    pub(crate) fn handle(&self, id: FileHandleId) -> Result<Arc<Handle>> {
        let handle = self
            .files
            .lock()
            .handles
            .get(&id)
            .cloned()
            .ok_or_else(|| Error::new(ErrorCode::BadHandle, format!("file handle {id} is not open")))?;
        self.check_session(&handle.file)?;
        handle.note_use();
        Ok(handle)
    }

    /// The handle, once the group is known to keep the session that has it open: beyond that what is read may be a hole where the
    /// file's data was, because the file was removed.
    pub(crate) async fn leased_handle(&self, id: FileHandleId) -> Result<Arc<Handle>> {
        let handle = self.handle(id)?;
        if !self.session.is_leased() {
            self.session
                .leased(self.deadline().min(Instant::now() + LEASE_PATIENCE))
                .await?;
            self.check_session(&handle.file)?;
        }
        Ok(handle)
    }

    pub(crate) fn check_session(&self, file: &FileState) -> Result<()> {
        if file.session == self.session.id() {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::SessionExpired,
            format!(
                "inode {} was opened in session {}, which expired: close it and open it again",
                file.inode, file.session
            ),
        ))
    }

    /// Files with something on its way.
    pub(crate) fn unsettled(&self) -> Vec<Arc<FileState>> {
        let files = self.files.lock();
        let busy = files.open.values().filter(|file| !file.inner.lock().is_quiet());
        busy.cloned().collect()
    }
}
