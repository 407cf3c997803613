//! One mount: the calls that an adapter (FUSE, a test, a tool) makes.
//!
//! Every call ends by the mount's deadline. What must not be left half done when a caller goes away (a killed process)
//! runs in a task of its own and ends by the same deadline; the caller merely stops waiting for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use dfs_common::wire::meta::{ClusterStatus, MetaRequest, MetaResponse};
use dfs_common::wire::namespace::{
    Attributes, Caller, DirectoryEntry, FileKind, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead,
    RenameMode, SetAttributes, StatFs, XattrMode,
};
use dfs_common::{ClusterId, Error, ErrorCode, FileHandleId, InodeId, PolicyChange, Result, ValidName};
use dfs_crypto::nonce::NonceSource;
use dfs_net::Endpoint;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::chunks::Chunks;
use crate::conflicts;
use crate::data::allocate::{Allocation, check_room};
use crate::data::holes::Seek;
use crate::data::state::{FileState, Word};
use crate::data::writer::too_big;
use crate::keys::Keys;
use crate::meta::refusals::Told;
use crate::meta::{Leader, LeaderSearch, Session};
use crate::mount::{Bounds, Handle, Mount};
use crate::network::{Network, Transport};
use crate::options::{ClientOptions, OpenMode};
use crate::routing::RoutingCache;

/// How often late writes and debts are looked after.
const TEND_MS: u64 = 100;

/// Dirty bytes that a change of attributes takes along: one request to a chain.
const DRAINED_BYTES: usize = 1 << 20;

/// A question for the room that a file takes up waits this long for its chains.
const HOLES_WAIT: Duration = Duration::from_secs(1);

/// An open waits this long for the length of what this mount has not told to be settled.
const SETTLE_PATIENCE: Duration = Duration::from_secs(3);

/// Who truncates at open: the mount; permission was checked by the one who opens.
const SYSTEM: Caller = Caller { uid: 0, gid: 0 };

/// One mount. Clones share it; the background tasks end with the last clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// One open directory: what was refused in it is told to each once.
#[derive(Debug)]
pub struct OpenDirectory {
    inode: InodeId,
    told: Mutex<Told>,
}

struct Shared {
    mount: Arc<Mount>,
    leader: Arc<Leader>,
    network: Network,
    stop: DropGuard,
    stopped: CancellationToken,
}

/// For a task that makes the same calls and must not keep the client alive between them.
pub(crate) struct WeakClient(Weak<Shared>);

impl WeakClient {
    pub(crate) fn upgrade(&self) -> Option<Client> {
        self.0.upgrade().map(|shared| Client { shared })
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("session", &self.shared.mount.session.id())
            .finish_non_exhaustive()
    }
}

/// An opener that may still go away: counted in, and counted out unless it ends as a handle.
struct Opening {
    mount: Arc<Mount>,
    inode: InodeId,
    file: Option<Arc<FileState>>,
    armed: bool,
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        match self.file.take() {
            Some(file) => self.mount.close(&file),
            None => self.mount.session.let_go(self.inode),
        }
    }
}

/// Runs to its end even if the caller goes away.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|error| Err(Error::new(ErrorCode::Internal, format!("a task died: {error}"))))
}

/// Any free port; on loopback when all servers are there, so that nothing listens to the outside needlessly.
pub(crate) fn local_address(servers: impl IntoIterator<Item = SocketAddr>) -> SocketAddr {
    let servers: Vec<_> = servers.into_iter().collect();
    let ip = if servers.iter().all(|server| server.ip().is_loopback()) {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else if servers.iter().any(SocketAddr::is_ipv6) {
        IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    SocketAddr::new(ip, 0)
}

impl Client {
    /// Opens a session and learns who stores what.
    pub async fn connect(options: ClientOptions) -> Result<Self> {
        let deadline = Instant::now() + options.deadline;
        let cluster = options.config.cluster_id()?;
        let listen = options
            .listen
            .unwrap_or_else(|| local_address(options.config.meta_addresses().map(|(_, address)| address)));
        let endpoint = Endpoint::bind(&options.credentials, listen)
            .await
            .map_err(Error::from)?;
        Self::connect_by(options, cluster, Network::new(endpoint), deadline).await
    }

    /// The same over a cluster in memory, for tests: neither `listen` nor the credentials are used.
    #[doc(hidden)]
    pub async fn connect_over(options: ClientOptions, transport: Arc<dyn Transport>) -> Result<Self> {
        let deadline = Instant::now() + options.deadline;
        let cluster = options.config.cluster_id()?;
        Self::connect_by(options, cluster, Network::over(transport), deadline).await
    }

    async fn connect_by(
        options: ClientOptions,
        cluster: ClusterId,
        network: Network,
        deadline: Instant,
    ) -> Result<Self> {
        let search = LeaderSearch::new(options.config.meta_addresses());
        let leader = Arc::new(Leader::new(network.clone(), search));
        let routing = Arc::new(RoutingCache::new());
        let label = options.label.clone();
        let session = Session::open(Arc::clone(&leader), Arc::clone(&routing), label, deadline).await?;
        routing.fetch(&leader, 0, deadline).await?;
        let mount = Arc::new(Mount::new(
            Arc::clone(&session),
            Chunks::new(network.clone(), Arc::clone(&routing)),
            Keys::new(cluster, options.root_key),
            NonceSource::new().map_err(Error::from)?,
            Bounds {
                deadline: options.deadline,
                file_in_flight_bytes: options.file_in_flight_bytes,
                file_dirty_bytes: options.file_dirty_bytes,
                read_level: options.read_level,
                write_level: options.write_level,
            },
            (
                options.in_flight_bytes,
                options.dirty_bytes,
                options.read_ahead_bytes,
                options.kept_bytes,
            ),
        ));
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&session).run_ahead(Arc::clone(&mount), stop.clone()));
        tokio::spawn(session.keep_alive(stop.clone()));
        tokio::spawn(routing.watch(Arc::clone(&leader), stop.clone()));
        tokio::spawn(tend(Arc::clone(&mount), stop.clone()));
        let client = Self {
            shared: Arc::new(Shared {
                mount,
                leader,
                network,
                stopped: stop.clone(),
                stop: stop.clone().drop_guard(),
            }),
        };
        if options.keeps_both {
            let weak = WeakClient(Arc::downgrade(&client.shared));
            tokio::spawn(conflicts::watch::keep_both(weak, options.label, stop));
        }
        Ok(client)
    }

    pub(crate) fn mount(&self) -> &Arc<Mount> {
        &self.shared.mount
    }

    pub(crate) fn leader(&self) -> &Leader {
        &self.shared.leader
    }

    async fn ask(&self, read: NamespaceRead) -> Result<NamespaceAnswer> {
        self.mount().session.ask(read, self.mount().deadline()).await
    }

    async fn change(&self, caller: Caller, op: NamespaceOp) -> Result<NamespaceChange> {
        self.mount().session.change(caller, op, self.mount().deadline()).await
    }

    async fn entry(&self, caller: Caller, op: NamespaceOp) -> Result<Attributes> {
        match self.change(caller, op).await? {
            NamespaceChange::Entry { attributes, .. } => Ok(self.mount().view(attributes)),
            _ => Err(mismatch()),
        }
    }

    pub async fn lookup(&self, parent: InodeId, name: &ValidName) -> Result<Attributes> {
        let name = name.clone();
        match self.ask(NamespaceRead::Lookup { parent, name }).await? {
            NamespaceAnswer::Attributes(attributes) => Ok(self.mount().view(attributes)),
            _ => Err(mismatch()),
        }
    }

    pub async fn attributes(&self, inode: InodeId) -> Result<Attributes> {
        let attributes = self.mount().fetch_attributes(inode, self.mount().deadline()).await?;
        Ok(self.mount().view(attributes))
    }

    /// How many bytes of storage a file takes up in each replica: its length, but for one with
    /// holes.
    pub async fn allocated_bytes(&self, attributes: &Attributes) -> Result<u64> {
        let deadline = Instant::now() + HOLES_WAIT;
        self.mount().allocated_bytes(attributes, deadline).await
    }

    /// The first offset at or after `offset` with data, or in a hole (of which the end of the file
    /// is one). `None`: there is none, or the file ends before.
    pub async fn seek(&self, handle: FileHandleId, offset: u64, what: Seek) -> Result<Option<u64>> {
        let handle = self.mount().leased_handle(handle).await?;
        let deadline = self.mount().deadline();
        self.mount().seek(&handle.file, offset, what, deadline).await
    }

    /// A directory's attributes without asking anybody, if a change that this mount made there has just brought them: they
    /// and their age, which is below a second.
    #[must_use]
    pub fn recent_directory(&self, inode: InodeId) -> Option<(Attributes, Duration)> {
        self.mount().session.directory(inode)
    }

    /// Changes what `set` names; `length` truncates or extends. `handle` is the open file it came through, if any.
    pub async fn set_attributes(
        &self,
        caller: Caller,
        inode: InodeId,
        set: SetAttributes,
        length: Option<u64>,
        handle: Option<FileHandleId>,
    ) -> Result<Attributes> {
        let mount = self.mount();
        let deadline = mount.deadline();
        let mut changed = None;
        if let Some(length) = length {
            changed = Some(self.set_length(caller, inode, length, handle, deadline).await?);
        }
        match changed {
            Some(attributes) if set == SetAttributes::default() => return Ok(attributes),
            _ => {}
        }
        let Some(file) = mount.open_file(inode) else {
            let op = NamespaceOp::SetAttributes {
                inode,
                set,
                commit: None,
            };
            return self.entry(caller, op).await;
        };
        let deferred = {
            let mut inner = file.inner.lock();
            let deferred = inner.defer(&set, mount.session.file_clock.now(), mount.now_ms());
            deferred.then(|| inner.view(&inner.attributes))
        };
        if let Some(attributes) = deferred {
            mount.kick(&file, 0);
            return Ok(attributes);
        }
        let mount = Arc::clone(mount);
        detached(async move {
            // What is dirty follows soon anyway. A little goes first, so that the command can tell its length too; much must
            // not hold the command up, nor anything one that costs no round trip.
            mount.kick(&file, 0);
            if file.inner.lock().dirty.size_bytes() <= DRAINED_BYTES && !mount.session.holds(file.inode) {
                mount.drain(&file, deadline).await?;
            }
            mount
                .commit(&file, Word::Passing, Some((caller, set)), deadline)
                .await?
                .ok_or_else(mismatch)
        })
        .await
    }

    async fn set_length(
        &self,
        caller: Caller,
        inode: InodeId,
        length: u64,
        handle: Option<FileHandleId>,
        deadline: Instant,
    ) -> Result<Attributes> {
        let mount = Arc::clone(self.mount());
        if let Some(handle) = handle {
            let handle = mount.handle(handle)?;
            if handle.file.inode == inode {
                let file = Arc::clone(&handle.file);
                return detached(async move { mount.set_length(&file, caller, length, deadline).await }).await;
            }
        }
        detached(async move {
            let (opening, _, _) = start_opening(&mount, inode, deadline).await?;
            match &opening.file {
                Some(file) => mount.set_length(file, caller, length, deadline).await,
                None => Err(mismatch()),
            }
        })
        .await
    }

    /// A regular file, opened for reading and writing. Without `exclusive` an existing file is opened as it is.
    pub async fn create(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &ValidName,
        mode: u32,
        exclusive: bool,
    ) -> Result<(Attributes, FileHandleId)> {
        let mount = self.mount();
        let op = NamespaceOp::Create {
            parent,
            name: name.clone(),
            mode,
            exclusive,
            key: mount.keys.fresh()?,
        };
        let NamespaceChange::Entry {
            attributes, created, ..
        } = self.change(caller, op).await?
        else {
            return Err(mismatch());
        };
        mount.session.hold_new(attributes.inode);
        let mut opening = Opening {
            mount: Arc::clone(mount),
            inode: attributes.inode,
            file: None,
            armed: true,
        };
        let (file, _) = mount.attach(&attributes)?;
        if created {
            let mut inner = file.inner.lock();
            inner.foreign_durable = inner.unvouched;
        } else {
            settle_length(mount, &file, mount.deadline()).await;
        }
        opening.armed = false;
        let view = file.inner.lock().view(&attributes);
        let both = OpenMode {
            read: true,
            write: true,
            ..OpenMode::default()
        };
        Ok((view, mount.add_handle(file, both, Some(attributes.change))))
    }

    pub async fn mkdir(&self, caller: Caller, parent: InodeId, name: &ValidName, mode: u32) -> Result<Attributes> {
        let name = name.clone();
        self.entry(caller, NamespaceOp::Mkdir { parent, name, mode }).await
    }

    /// Fifo, socket, device or empty regular file.
    pub async fn mknod(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &ValidName,
        kind: FileKind,
        mode: u32,
        rdev: u32,
    ) -> Result<Attributes> {
        let key = match kind {
            FileKind::Regular => Some(self.mount().keys.fresh()?),
            _ => None,
        };
        let op = NamespaceOp::Mknod {
            parent,
            name: name.clone(),
            kind,
            mode,
            rdev,
            key,
        };
        self.entry(caller, op).await
    }

    pub async fn symlink(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &ValidName,
        target: &[u8],
    ) -> Result<Attributes> {
        let op = NamespaceOp::Symlink {
            parent,
            name: name.clone(),
            target: target.to_vec(),
        };
        self.entry(caller, op).await
    }

    pub async fn link(&self, caller: Caller, inode: InodeId, parent: InodeId, name: &ValidName) -> Result<Attributes> {
        let name = name.clone();
        self.entry(caller, NamespaceOp::Link { inode, parent, name }).await
    }

    pub async fn unlink(&self, caller: Caller, parent: InodeId, name: &ValidName) -> Result<()> {
        let name = name.clone();
        self.change(caller, NamespaceOp::Unlink { parent, name })
            .await
            .map(|_| ())
    }

    pub async fn rmdir(&self, caller: Caller, parent: InodeId, name: &ValidName) -> Result<()> {
        let name = name.clone();
        self.change(caller, NamespaceOp::Rmdir { parent, name })
            .await
            .map(|_| ())
    }

    pub async fn rename(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &ValidName,
        new_parent: InodeId,
        new_name: &ValidName,
        mode: RenameMode,
    ) -> Result<()> {
        let op = NamespaceOp::Rename {
            parent,
            name: name.clone(),
            new_parent,
            new_name: new_name.clone(),
            mode,
        };
        self.change(caller, op).await.map(|_| ())
    }

    pub async fn readlink(&self, inode: InodeId) -> Result<Vec<u8>> {
        match self.ask(NamespaceRead::ReadLink { inode }).await? {
            NamespaceAnswer::Link(target) => Ok(target),
            _ => Err(mismatch()),
        }
    }

    /// Entries after `cookie` (0: from the start), at most `limit`; `true` when there are no more. `.` and `..` are left to
    /// the caller.
    pub async fn read_directory(&self, inode: InodeId, cookie: u64, limit: u32) -> Result<(Vec<DirectoryEntry>, bool)> {
        let read = NamespaceRead::ReadDirectory { inode, cookie, limit };
        match self.ask(read).await? {
            NamespaceAnswer::Directory { mut entries, end } => {
                for entry in &mut entries {
                    if entry.attributes.kind == FileKind::Regular {
                        entry.attributes = self.mount().view(entry.attributes.clone());
                    }
                }
                Ok((entries, end))
            }
            _ => Err(mismatch()),
        }
    }

    pub async fn parent(&self, inode: InodeId) -> Result<InodeId> {
        match self.ask(NamespaceRead::Parent { inode }).await? {
            NamespaceAnswer::Parent(parent) => Ok(parent),
            _ => Err(mismatch()),
        }
    }

    /// What starts with `user.dfs.` is the inode's policy.
    pub async fn get_xattr(&self, inode: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        if name == dfs_common::policy::SYNC_ATTRIBUTE.as_bytes() {
            self.sync_all().await?;
            return Ok(b"durable".to_vec());
        }
        if is_policy(name) {
            let attributes = self.attributes(inode).await?;
            return attributes.policy.attribute(name).map(String::into_bytes);
        }
        let name = name.to_vec();
        match self.ask(NamespaceRead::GetXattr { inode, name }).await? {
            NamespaceAnswer::Xattr(value) => Ok(value),
            _ => Err(mismatch()),
        }
    }

    pub async fn set_xattr(
        &self,
        caller: Caller,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        if is_policy(name) {
            let change = PolicyChange::of_attribute(name, value)?;
            return self.set_policy(caller, inode, change).await;
        }
        let op = NamespaceOp::SetXattr {
            inode,
            name: name.to_vec(),
            value: value.to_vec(),
            mode,
        };
        self.change(caller, op).await.map(|_| ())
    }

    pub async fn list_xattr(&self, inode: InodeId) -> Result<Vec<Vec<u8>>> {
        match self.ask(NamespaceRead::ListXattr { inode }).await? {
            NamespaceAnswer::XattrNames(names) => Ok(names),
            _ => Err(mismatch()),
        }
    }

    pub async fn remove_xattr(&self, caller: Caller, inode: InodeId, name: &[u8]) -> Result<()> {
        if is_policy(name) {
            let change = PolicyChange::of_removal(name)?;
            return self.set_policy(caller, inode, change).await;
        }
        let name = name.to_vec();
        self.change(caller, NamespaceOp::RemoveXattr { inode, name })
            .await
            .map(|_| ())
    }

    /// Levels of a file, for those who open it from now on; of a directory, for what is created in it from now on.
    pub async fn set_policy(&self, caller: Caller, inode: InodeId, change: PolicyChange) -> Result<()> {
        self.change(caller, NamespaceOp::SetPolicy { inode, change })
            .await
            .map(|_| ())
    }

    pub async fn stat_fs(&self) -> Result<StatFs> {
        match self.ask(NamespaceRead::StatFs).await? {
            NamespaceAnswer::StatFs(usage) => Ok(usage),
            _ => Err(mismatch()),
        }
    }

    /// Opens a regular file. The `bool`: the kernel may keep what it cached of this file, since nobody else changed it since
    /// this mount last knew it.
    pub async fn open(&self, inode: InodeId, mode: OpenMode) -> Result<(Attributes, FileHandleId, bool)> {
        let mount = self.mount();
        let deadline = mount.deadline();
        let (mut opening, mut attributes, mut keep) = start_opening(mount, inode, deadline).await?;
        let Some(file) = opening.file.clone() else {
            return Err(mismatch());
        };
        settle_length(mount, &file, deadline).await;
        attributes = file.inner.lock().view(&attributes);
        // Others may have sent what they have not committed yet.
        if mode.truncate && (attributes.length_bytes > 0 || !mount.knows_end(&file)) {
            let (mount, file) = (Arc::clone(mount), Arc::clone(&file));
            attributes = detached(async move { mount.set_length(&file, SYSTEM, 0, deadline).await }).await?;
            keep = false;
        }
        opening.armed = false;
        let voids = (!keep).then_some(attributes.change);
        Ok((attributes, mount.add_handle(file, mode, voids), keep))
    }

    /// At most `size` bytes; fewer only at the end of the file.
    pub async fn read(&self, handle: FileHandleId, offset: u64, size: u32) -> Result<Bytes> {
        let handle = self.mount().leased_handle(handle).await?;
        self.mount().read(&handle, offset, size, self.mount().deadline()).await
    }

    /// All of `data`; with an appending handle at the end of the file, wherever `offset` is.
    pub async fn write(&self, handle: FileHandleId, offset: u64, data: Bytes) -> Result<u32> {
        let handle = self.mount().leased_handle(handle).await?;
        self.mount()
            .write(&handle, offset, &data, self.mount().deadline())
            .await
    }

    /// For every close of a descriptor: what was written is then seen by whoever opens the file anywhere.
    ///
    /// # Errors
    /// Also those of earlier, late writes that this handle has not been told of.
    pub async fn flush(&self, handle: FileHandleId) -> Result<()> {
        let handle = self.mount().leased_handle(handle).await?;
        let mount = Arc::clone(self.mount());
        let file = Arc::clone(&handle.file);
        let settled = file.inner.lock().is_quiet();
        let outcome = if settled {
            Ok(())
        } else {
            detached(async move { mount.flush(&file, mount.deadline()).await }).await
        };
        late_error(self.mount(), &handle).and(outcome)
    }

    /// [`Client::flush`] without waiting, where there is nothing to wait for: `None` if there is.
    #[must_use]
    pub fn flush_now(&self, handle: FileHandleId) -> Option<Result<()>> {
        let handle = match self.mount().handle(handle) {
            Ok(handle) => handle,
            Err(error) => return Some(Err(error)),
        };
        self.mount().forget_foreseen();
        let settled = handle.file.inner.lock().is_quiet();
        settled.then(|| late_error(self.mount(), &handle))
    }

    /// What was written survives power loss of every node within the level's bound.
    ///
    /// # Errors
    /// As for [`Client::flush`].
    pub async fn fsync(&self, handle: FileHandleId, data_only: bool) -> Result<()> {
        let handle = self.mount().leased_handle(handle).await?;
        let mount = Arc::clone(self.mount());
        let file = Arc::clone(&handle.file);
        let outcome = detached(async move { mount.fsync(&file, data_only, mount.deadline()).await }).await;
        late_error(self.mount(), &handle).and(outcome)
    }

    /// fallocate(2): so many bytes of the file are to be written from `offset` on.
    ///
    /// # Errors
    /// [`ErrorCode::NoSpace`] if the cluster has less room than that now. None of what it has is
    /// kept for this file.
    pub async fn allocate(&self, handle: FileHandleId, (offset, bytes): (u64, u64), how: Allocation) -> Result<()> {
        let handle = self.mount().leased_handle(handle).await?;
        let mount = Arc::clone(self.mount());
        let file = Arc::clone(&handle.file);
        let free_bytes = self.stat_fs().await?.free_bytes;
        // Others may have truncated the file since this mount last heard of it.
        if !mount.knows_end(&file) {
            mount.refresh(&file, mount.deadline()).await?;
        }
        let length = file.inner.lock().length();
        let end = check_room((offset, bytes), length, free_bytes)?;
        if end > file.layout.max_length_bytes() {
            return Err(too_big(&file, end));
        }
        if how == Allocation::KeepSize || end <= length {
            return Ok(());
        }
        detached(async move { mount.grow_to(&file, end, mount.deadline()).await }).await
    }

    /// Opens a directory, for [`Client::fsync_directory`].
    #[must_use]
    pub fn open_directory(&self, inode: InodeId) -> OpenDirectory {
        OpenDirectory {
            inode,
            told: Mutex::new(self.mount().session.open_handle(inode)),
        }
    }

    /// Everything that was written and changed through this mount before is durable, as after sync(1) on a local disk.
    ///
    /// # Errors
    /// The first of what could not be sent or synced. An error of a file is also told by its own fsync and close.
    pub async fn sync_all(&self) -> Result<()> {
        let mount = Arc::clone(self.mount());
        detached(async move { mount.sync_all(mount.deadline()).await }).await
    }

    /// Names that were made before survive whatever happens to this mount.
    ///
    /// # Errors
    /// Also that changes in this directory which were acknowledged did not come to pass: once for each handle.
    pub async fn fsync_directory(&self, directory: &OpenDirectory) -> Result<()> {
        let session = &self.mount().session;
        session.settled(self.mount().deadline()).await?;
        session.refused(directory.inode, &mut directory.told.lock())
    }

    /// The last descriptor is gone. What is still owed is settled in the background, so it must be called within a runtime.
    pub fn release(&self, handle: FileHandleId) -> Result<()> {
        let removed = self.mount().files.lock().handles.remove(&handle);
        let handle =
            removed.ok_or_else(|| Error::new(ErrorCode::BadHandle, format!("file handle {handle} is not open")))?;
        handle.ahead.lock().clear();
        self.mount().close(&handle.file);
        Ok(())
    }

    pub async fn status(&self) -> Result<ClusterStatus> {
        status(&self.shared.leader, self.mount().deadline()).await
    }

    /// Settles every file and ends the session. Calls after it fail.
    pub async fn close(&self) -> Result<()> {
        let mount = self.mount();
        let deadline = mount.deadline();
        let mut outcome = Ok(());
        for file in mount.unsettled() {
            outcome = outcome.and(mount.flush(&file, deadline).await);
        }
        outcome = outcome.and(mount.session.settled_well(deadline).await);
        self.shared.stopped.cancel();
        mount
            .session
            .end(deadline.min(Instant::now() + Duration::from_secs(2)))
            .await;
        self.shared.network.close().await;
        outcome
    }
}

impl Shared {
    #[allow(dead_code, reason = "held for its drop: the tasks end with the last clone")]
    fn guard(&self) -> &DropGuard {
        &self.stop
    }
}

/// Registers, fetches attributes, and attaches, in this order.
/// If somebody has cut a file since this mount wrote to it, its length depends on whether what this mount has not told yet outlived
/// that. To be called before the length is shown.
async fn settle_length(mount: &Arc<Mount>, file: &Arc<FileState>, deadline: Instant) {
    if !file.inner.lock().may_be_cut() {
        return;
    }
    let (mount, file) = (Arc::clone(mount), Arc::clone(file));
    let inode = file.inode;
    let deadline = deadline.min(Instant::now() + SETTLE_PATIENCE);
    let told = detached(async move { mount.commit(&file, Word::Passing, None, deadline).await });
    if let Err(error) = told.await {
        tracing::debug!(
            inode = inode.0,
            "its length is not settled before it is opened: {error}"
        );
    }
}

async fn start_opening(mount: &Arc<Mount>, inode: InodeId, deadline: Instant) -> Result<(Opening, Attributes, bool)> {
    mount.session.hold(inode, deadline).await?;
    let mut opening = Opening {
        mount: Arc::clone(mount),
        inode,
        file: None,
        armed: true,
    };
    let attributes = mount.fetch_attributes(inode, deadline).await?;
    let (file, keep) = mount.attach(&attributes)?;
    opening.file = Some(file);
    Ok((opening, attributes, keep))
}

/// What this handle has not been told of: changes that were refused after they were shown, and late writes that failed.
fn late_error(mount: &Mount, handle: &Handle) -> Result<()> {
    let refused = mount.session.refused(handle.file.inode, &mut handle.told.lock());
    let late = handle.file.inner.lock().errors.check(&mut handle.seen.lock());
    refused.and(late)
}

pub(crate) async fn status(leader: &Leader, deadline: Instant) -> Result<ClusterStatus> {
    let what = || "status of the cluster".to_owned();
    match leader
        .ask(&MetaRequest::Status, deadline, Duration::ZERO, &what)
        .await?
    {
        MetaResponse::Status(status) => Ok(*status),
        _ => Err(mismatch()),
    }
}

/// Whether an extended attribute is part of the policy.
fn is_policy(name: &[u8]) -> bool {
    name.starts_with(dfs_common::policy::ATTRIBUTE_PREFIX.as_bytes())
}

pub(crate) fn mismatch() -> Error {
    Error::new(
        ErrorCode::BadMessage,
        "a metadata server answered with something else than was asked; are all programs of one version?",
    )
}

async fn tend(mount: Arc<Mount>, stop: CancellationToken) {
    let mut ticker = tokio::time::interval(Duration::from_millis(TEND_MS));
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticker.tick() => mount.tend(),
        }
    }
}
