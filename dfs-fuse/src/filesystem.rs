//! The kernel's requests, one method each.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dfs_client::{Allocation, Client, Seek};
use dfs_common::wire::namespace::{Attributes, Caller, SetAttributes};
use dfs_common::{ErrorCode, FileHandleId, InodeId, Result, ValidName};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use crate::convert::{self, XattrClass, attr_with_room, file_attr, ttl_of};
use crate::directory::Directories;
use crate::privileges::{self, PrivilegedFiles};
use crate::requests::{Requests, Subject};

/// Largest request of the kernel (`fs.fuse.max_pages_limit` is 256 pages by default).
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// Read-ahead and asynchronous direct requests that the kernel keeps in flight before it makes callers wait.
const MAX_BACKGROUND: u16 = 256;

/// Inode numbers are never used again, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// `f_bsize` and `f_frsize`.
const STATFS_BLOCK_BYTES: u32 = 4096;

/// On whose behalf privileges are taken away: nobody has to own a file for its setuid bit to go.
const SYSTEM: Caller = Caller { uid: 0, gid: 0 };

#[derive(Debug)]
pub(crate) struct Adapter {
    client: Client,
    requests: Requests,
    directories: Arc<Directories>,
    privileged: Arc<PrivilegedFiles>,
}

impl Adapter {
    pub(crate) fn new(client: Client, runtime: Handle) -> Self {
        Self {
            client,
            requests: Requests::new(runtime),
            directories: Arc::default(),
            privileged: Arc::default(),
        }
    }

    /// Work that ends in an entry for the kernel's cache.
    fn serve_entry<W>(&self, subject: Subject, reply: ReplyEntry, work: W)
    where
        W: Future<Output = Result<Attributes>> + Send + 'static,
    {
        let (privileged, directories) = (Arc::clone(&self.privileged), Arc::clone(&self.directories));
        self.requests.serve(subject, work, move |result| match result {
            Ok(attributes) => {
                privileged.note(&attributes);
                directories.note(&attributes);
                reply.entry(&ttl_of(attributes.kind), &file_attr(&attributes), GENERATION);
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn serve_empty<W>(&self, subject: Subject, reply: ReplyEmpty, work: W)
    where
        W: Future<Output = Result<()>> + Send + 'static,
    {
        self.requests.serve(subject, work, move |result| match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }
}

const fn inode_of(number: INodeNo) -> InodeId {
    InodeId(number.0)
}

const fn handle_of(handle: FileHandle) -> FileHandleId {
    FileHandleId(handle.0)
}

fn name_of(name: &OsStr) -> Result<ValidName> {
    ValidName::new(name.as_bytes())
}

/// Takes setuid and setgid away, as a write by somebody without privileges must.
async fn clear_privileges(client: &Client, privileged: &PrivilegedFiles, inode: InodeId) -> Result<()> {
    let attributes = client.attributes(inode).await?;
    let Some(mode) = privileges::without_privileges(&attributes) else {
        privileged.note(&attributes);
        return Ok(());
    };
    let set = SetAttributes {
        mode: Some(mode),
        ..SetAttributes::default()
    };
    let attributes = client.set_attributes(SYSTEM, inode, set, None, None).await?;
    privileged.note(&attributes);
    Ok(())
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not asked for: the writeback cache (the client buffers, and only it can keep mounts coherent), locks of either
        // kind (the kernel's own are used until servers have them), SETXATTR_EXT (fuser 0.18 panics on it).
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_CACHE_SYMLINKS;
        // Whatever this kernel does not know, it does without.
        for flag in wanted.iter() {
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(MAX_WRITE_BYTES);
        // The kernel offers its default; the mount raises it afterwards through the device's own setting.
        if let Err(most) = config.set_max_readahead(MAX_WRITE_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (client, parent, name) = (self.client.clone(), inode_of(parent), name_of(name));
        let subject = Subject::reading(request, "lookup", parent);
        let (recent, asked) = (Arc::clone(self.requests.recent()), self.requests.recent().now());
        self.serve_entry(subject, reply, async move {
            let attributes = client.lookup(parent, &name?).await?;
            recent.told(subject.thread(), &attributes, asked);
            Ok(attributes)
        });
    }

    // Inodes have no state here, so there is nothing to forget.
    fn forget(&self, _request: &Request, _inode: INodeNo, _lookups: u64) {}

    fn getattr(&self, request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let (client, inode) = (self.client.clone(), inode_of(inode));
        let recent = self.requests.recent().take(request.pid(), Some(inode));
        if let Some(attributes) = recent.as_ref().filter(|recent| !convert::is_sparse(recent)) {
            return reply.attr(&ttl_of(attributes.kind), &file_attr(attributes));
        }
        if let Some((attributes, age)) = client.recent_directory(inode) {
            let ttl = ttl_of(attributes.kind).saturating_sub(age);
            return reply.attr(&ttl, &file_attr(&attributes));
        }
        let privileged = Arc::clone(&self.privileged);
        let subject = Subject::reading(request, "getattr", inode);
        let (directories, told) = (Arc::clone(&self.directories), Arc::clone(&self.directories));
        let work = async move {
            let attributes = match recent {
                Some(attributes) => attributes,
                None => match client.attributes(inode).await {
                    Err(error) if error.code == ErrorCode::StaleInode => directories.removed(inode).ok_or(error)?,
                    answer => answer?,
                },
            };
            let attr = attr_with_room(&client, &attributes).await;
            Ok((attributes, attr))
        };
        self.requests.serve(subject, work, move |result| match result {
            Ok((attributes, attr)) => {
                privileged.note(&attributes);
                told.note(&attributes);
                reply.attr(&ttl_of(attributes.kind), &attr);
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (client, inode) = (self.client.clone(), inode_of(inode));
        let (privileged, noted) = (Arc::clone(&self.privileged), Arc::clone(&self.privileged));
        let caller = convert::caller(request);
        let handle = handle.map(handle_of);
        let mut set = SetAttributes {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            ctime: None,
        };
        let owner_changes = uid.is_some() || gid.is_some();
        let cut_by_user = size.is_some() && caller.uid != 0;
        let subject = Subject::changing(request, "setattr", inode);
        let work = async move {
            // Under KILLPRIV_V2 these are ours: any change of owner, and a truncation without privileges.
            if owner_changes && set.mode.is_none() {
                set.mode = privileges::without_privileges(&client.attributes(inode).await?);
            } else if cut_by_user && privileged.contains(inode) {
                clear_privileges(&client, &privileged, inode).await?;
            }
            client.set_attributes(caller, inode, set, size, handle).await
        };
        self.requests.serve(subject, work, move |result| match result {
            Ok(attributes) => {
                noted.note(&attributes);
                reply.attr(&ttl_of(attributes.kind), &file_attr(&attributes));
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, request: &Request, inode: INodeNo, reply: ReplyData) {
        let (client, inode) = (self.client.clone(), inode_of(inode));
        let subject = Subject::reading(request, "readlink", inode);
        let work = async move { client.readlink(inode).await };
        self.requests.serve(subject, work, move |result| match result {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (client, parent, name) = (self.client.clone(), inode_of(parent), name_of(name));
        let caller = convert::caller(request);
        let subject = Subject::changing(request, "mknod", parent);
        self.serve_entry(subject, reply, async move {
            let kind = convert::kind_of_mode(mode)?;
            client.mknod(caller, parent, &name?, kind, mode & 0o7777, rdev).await
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (client, parent, name) = (self.client.clone(), inode_of(parent), name_of(name));
        let caller = convert::caller(request);
        let subject = Subject::changing(request, "mkdir", parent);
        self.serve_entry(subject, reply, async move {
            client.mkdir(caller, parent, &name?, mode & 0o7777).await
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (client, parent, name) = (self.client.clone(), inode_of(parent), name_of(name));
        let caller = convert::caller(request);
        let subject = Subject::changing(request, "unlink", parent);
        self.serve_empty(
            subject,
            reply,
            async move { client.unlink(caller, parent, &name?).await },
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (client, parent, name) = (self.client.clone(), inode_of(parent), name_of(name));
        let caller = convert::caller(request);
        let subject = Subject::changing(request, "rmdir", parent);
        self.serve_empty(
            subject,
            reply,
            async move { client.rmdir(caller, parent, &name?).await },
        );
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (client, parent, name) = (self.client.clone(), inode_of(parent), name_of(name));
        let caller = convert::caller(request);
        let target = target.as_os_str().as_bytes().to_vec();
        let subject = Subject::changing(request, "symlink", parent);
        self.serve_entry(subject, reply, async move {
            client.symlink(caller, parent, &name?, &target).await
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (client, parent, name) = (self.client.clone(), inode_of(parent), name_of(name));
        let (new_parent, new_name) = (inode_of(new_parent), name_of(new_name));
        let caller = convert::caller(request);
        let subject = Subject::changing(request, "rename", parent);
        self.serve_empty(subject, reply, async move {
            let mode = convert::rename_mode(flags)?;
            client
                .rename(caller, parent, &name?, new_parent, &new_name?, mode)
                .await
        });
    }

    fn link(&self, request: &Request, inode: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let (client, inode) = (self.client.clone(), inode_of(inode));
        let (parent, name) = (inode_of(new_parent), name_of(new_name));
        let caller = convert::caller(request);
        let subject = Subject::changing(request, "link", inode);
        self.serve_entry(subject, reply, async move {
            client.link(caller, inode, parent, &name?).await
        });
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (client, inode) = (self.client.clone(), inode_of(inode));
        let late = self.client.clone();
        let privileged = Arc::clone(&self.privileged);
        let mode = convert::open_mode(flags);
        let by_user = request.uid() != 0;
        let subject = if mode.truncate {
            Subject::changing(request, "open", inode)
        } else {
            Subject::reading(request, "open", inode)
        };
        let work = async move {
            let (attributes, handle, keep_cache) = client.open(inode, mode).await?;
            privileged.note(&attributes);
            if mode.truncate && by_user && privileged.contains(inode) {
                clear_privileges(&client, &privileged, inode).await?;
            }
            Ok((handle, keep_cache))
        };
        let answer = move |result: std::result::Result<(FileHandleId, bool), Errno>| match result {
            Ok((handle, keep_cache)) => {
                let mut flags = FopenFlags::empty();
                if keep_cache {
                    flags |= FopenFlags::FOPEN_KEEP_CACHE;
                }
                if !mode.write {
                    // Nothing of this handle can be unwritten, so close(2) need not ask.
                    flags |= FopenFlags::FOPEN_NOFLUSH;
                }
                reply.opened(FileHandle(handle.get()), flags);
            }
            Err(errno) => reply.error(errno),
        };
        self.requests
            .serve_with_undo(subject, work, answer, move |(handle, _)| async move {
                let _ = late.release(handle);
            });
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (client, handle) = (self.client.clone(), handle_of(handle));
        let subject = Subject::reading(request, "read", inode_of(inode));
        let work = async move { client.read(handle, offset, size).await };
        self.requests.serve(subject, work, move |result| match result {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (client, inode, handle) = (self.client.clone(), inode_of(inode), handle_of(handle));
        let data = bytes::Bytes::copy_from_slice(data);
        let drops_privileges =
            write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) && self.privileged.contains(inode);
        let privileged = Arc::clone(&self.privileged);
        let subject = Subject::changing(request, "write", inode);
        let work = async move {
            if drops_privileges {
                clear_privileges(&client, &privileged, inode).await?;
            }
            client.write(handle, offset, data).await
        };
        self.requests.serve(subject, work, move |result| match result {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        });
    }

    /// There are none; programs ask regular files for those of a terminal.
    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// The kernel copies by reading and writing, and does not ask again.
    fn copy_file_range(
        &self,
        _request: &Request,
        _from: INodeNo,
        _from_handle: FileHandle,
        _from_offset: u64,
        _to: INodeNo,
        _to_handle: FileHandle,
        _to_offset: u64,
        _length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, request: &Request, inode: INodeNo, handle: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let (client, handle) = (self.client.clone(), handle_of(handle));
        let subject = Subject::changing(request, "flush", inode_of(inode));
        if let Some(done) = client.flush_now(handle) {
            return self.requests.answered(subject, done, move |result| match result {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            });
        }
        self.serve_empty(subject, reply, async move { client.flush(handle).await });
    }

    fn release(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let subject = Subject::reading(request, "release", inode_of(inode));
        let done = self.requests.within(|| self.client.release(handle_of(handle)));
        self.requests.answered(subject, done, move |result| match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    fn fsync(&self, request: &Request, inode: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let (client, handle) = (self.client.clone(), handle_of(handle));
        let subject = Subject::changing(request, "fsync", inode_of(inode));
        self.serve_empty(subject, reply, async move { client.fsync(handle, data_only).await });
    }

    fn fallocate(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let how = match mode {
            0 => Allocation::Grow,
            libc::FALLOC_FL_KEEP_SIZE => Allocation::KeepSize,
            // Holes and moved ranges.
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let (client, handle) = (self.client.clone(), handle_of(handle));
        let subject = Subject::changing(request, "fallocate", inode_of(inode));
        let work = async move { client.allocate(handle, (offset, length), how).await };
        self.serve_empty(subject, reply, work);
    }

    /// Only for SEEK_DATA and SEEK_HOLE; the kernel works the others out itself.
    fn lseek(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let (client, handle) = (self.client.clone(), handle_of(handle));
        let subject = Subject::reading(request, "lseek", inode_of(inode));
        let work = async move { client.seek(handle, offset, what).await };
        self.requests.serve(subject, work, move |result| match result {
            // No file is longer than an i64 can say.
            Ok(Some(at)) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(errno) => reply.error(errno),
        });
    }

    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.directories.open(&self.client, inode_of(inode));
        reply.opened(handle, FopenFlags::empty());
    }

    fn readdir(&self, request: &Request, inode: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let (client, inode) = (self.client.clone(), inode_of(inode));
        let directories = Arc::clone(&self.directories);
        let subject = Subject::reading(request, "readdir", inode);
        let work = async move { directories.list(&client, inode, handle, offset).await };
        self.requests.serve(subject, work, move |result| match result {
            Ok(listing) => {
                for (dot, offset, name) in &listing.dots {
                    let _ = reply.add(INodeNo(dot.get()), *offset, fuser::FileType::Directory, name);
                }
                listing.fill(|cookie, name, attributes| {
                    reply.add(
                        INodeNo(attributes.inode.get()),
                        cookie,
                        convert::file_type(attributes.kind),
                        OsStr::from_bytes(name),
                    )
                });
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (client, inode) = (self.client.clone(), inode_of(inode));
        let directories = Arc::clone(&self.directories);
        let privileged = Arc::clone(&self.privileged);
        let subject = Subject::reading(request, "readdirplus", inode);
        let work = async move { directories.list(&client, inode, handle, offset).await };
        self.requests.serve(subject, work, move |result| match result {
            Ok(listing) => {
                for (dot, offset, name) in &listing.dots {
                    let attr = convert::dot_attr(*dot);
                    let _ = reply.add(attr.ino, *offset, name, &Duration::ZERO, &attr, GENERATION);
                }
                listing.fill(|cookie, name, attributes| {
                    privileged.note(attributes);
                    reply.add(
                        INodeNo(attributes.inode.get()),
                        cookie,
                        OsStr::from_bytes(name),
                        &ttl_of(attributes.kind),
                        &file_attr(attributes),
                        GENERATION,
                    )
                });
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.directories.close(handle);
        reply.ok();
    }

    // A change of the namespace is durable before it is answered, but for what this mount shows before it tells.
    fn fsyncdir(&self, request: &Request, inode: INodeNo, handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        let (client, directories) = (self.client.clone(), Arc::clone(&self.directories));
        let subject = Subject::reading(request, "fsyncdir", inode_of(inode));
        let work = async move { directories.fsync(&client, handle).await };
        self.requests.serve(subject, work, move |result| match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    fn statfs(&self, request: &Request, inode: INodeNo, reply: ReplyStatfs) {
        let client = self.client.clone();
        let subject = Subject::reading(request, "statfs", inode_of(inode));
        let work = async move { client.stat_fs().await };
        self.requests.serve(subject, work, move |result| match result {
            Ok(usage) => {
                let block = u64::from(STATFS_BLOCK_BYTES);
                let (total, free) = (usage.total_bytes / block, usage.free_bytes / block);
                // Inodes are not preallocated: as many more as there are free blocks.
                let files = usage.inodes.saturating_add(free);
                reply.statfs(
                    total,
                    free,
                    free,
                    files,
                    free,
                    STATFS_BLOCK_BYTES,
                    dfs_common::units::NAME_MAX_BYTES as u32,
                    STATFS_BLOCK_BYTES,
                );
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if convert::xattr_class(name.as_bytes()) != XattrClass::Stored {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (client, inode) = (self.client.clone(), inode_of(inode));
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        let caller = convert::caller(request);
        let subject = Subject::changing(request, "setxattr", inode);
        self.serve_empty(subject, reply, async move {
            let mode = convert::xattr_mode(flags)?;
            client.set_xattr(caller, inode, &name, &value, mode).await
        });
    }

    fn getxattr(&self, request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match convert::xattr_class(name.as_bytes()) {
            XattrClass::Stored => {}
            XattrClass::Security => return reply.error(Errno::NO_XATTR),
            XattrClass::Unsupported => return reply.error(Errno::EOPNOTSUPP),
        }
        let (client, inode, name) = (self.client.clone(), inode_of(inode), name.as_bytes().to_vec());
        let subject = Subject::reading(request, "getxattr", inode);
        let work = async move { client.get_xattr(inode, &name).await };
        self.requests
            .serve(subject, work, move |result| answer_xattr(reply, size, result));
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let (client, inode) = (self.client.clone(), inode_of(inode));
        let subject = Subject::reading(request, "listxattr", inode);
        let work = async move {
            let names = client.list_xattr(inode).await?;
            Ok(names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect())
        };
        self.requests
            .serve(subject, work, move |result| answer_xattr(reply, size, result));
    }

    fn removexattr(&self, request: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match convert::xattr_class(name.as_bytes()) {
            XattrClass::Stored => {}
            XattrClass::Security => return reply.error(Errno::NO_XATTR),
            XattrClass::Unsupported => return reply.error(Errno::EOPNOTSUPP),
        }
        let (client, inode, name) = (self.client.clone(), inode_of(inode), name.as_bytes().to_vec());
        let caller = convert::caller(request);
        let subject = Subject::changing(request, "removexattr", inode);
        self.serve_empty(subject, reply, async move {
            client.remove_xattr(caller, inode, &name).await
        });
    }

    // Never asked with default_permissions; ENOSYS ends it for good without.
    fn access(&self, _request: &Request, _inode: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (client, parent, name) = (self.client.clone(), inode_of(parent), name_of(name));
        let late = self.client.clone();
        let privileged = Arc::clone(&self.privileged);
        let caller = convert::caller(request);
        let exclusive = flags & libc::O_EXCL != 0;
        let open = convert::open_mode(OpenFlags(flags));
        // It says itself what it changes, since its own answer is to be told.
        let subject = Subject::reading(request, "create", parent);
        let recent = Arc::clone(self.requests.recent());
        let asked = recent.changed();
        let work = async move {
            let (attributes, handle) = client.create(caller, parent, &name?, mode & 0o7777, exclusive).await?;
            let reopened = reopen_created(&client, caller, &attributes, handle, open).await;
            let now = recent.changed();
            match &reopened {
                // Unless something else was changed meanwhile, too.
                Ok((attributes, _)) if now == asked + 1 => recent.told(subject.thread(), attributes, now),
                Ok(_) => {}
                Err(_) => {
                    let _ = client.release(handle);
                }
            }
            reopened
        };
        let answer = move |result: std::result::Result<(Attributes, FileHandleId), Errno>| match result {
            Ok((attributes, handle)) => {
                privileged.note(&attributes);
                reply.created(
                    &ttl_of(attributes.kind),
                    &file_attr(&attributes),
                    GENERATION,
                    FileHandle(handle.get()),
                    FopenFlags::empty(),
                );
            }
            Err(errno) => reply.error(errno),
        };
        self.requests
            .serve_with_undo(subject, work, answer, move |(_, handle)| async move {
                let _ = late.release(handle);
            });
    }
}

/// A handle as `open` asks for it, from the one that `create` gave (read and write): for appending or direct reads it is opened
/// anew, and a file that somebody else created and filled in between is cut if the caller said `O_TRUNC`.
async fn reopen_created(
    client: &Client,
    caller: Caller,
    attributes: &Attributes,
    handle: FileHandleId,
    open: dfs_client::OpenMode,
) -> Result<(Attributes, FileHandleId)> {
    if open.append || open.direct {
        let (attributes, reopened, _) = client.open(attributes.inode, open).await?;
        let _ = client.release(handle);
        return Ok((attributes, reopened));
    }
    if open.truncate && attributes.length_bytes > 0 {
        let set = SetAttributes::default();
        let attributes = client
            .set_attributes(caller, attributes.inode, set, Some(0), Some(handle))
            .await?;
        return Ok((attributes, handle));
    }
    Ok((attributes.clone(), handle))
}

fn answer_xattr(reply: ReplyXattr, size: u32, result: std::result::Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}
