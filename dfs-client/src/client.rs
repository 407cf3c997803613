//! The public face.
use bytes::Bytes;
use dfs_common::wire::meta::ClusterStatus;
use dfs_common::wire::namespace::{
    Attributes, Caller, DirectoryEntry, FileKind, RenameMode, SetAttributes, StatFs, XattrMode,
};
use dfs_common::{Error, ErrorCode, FileHandleId, InodeId, Policy, Result, ValidName};

use crate::options::{ClientOptions, OpenMode};

/// One mount.
#[derive(Clone, Debug)]
pub struct Client {}

#[allow(clippy::unused_async, unused_variables)]
impl Client {
    pub async fn connect(options: ClientOptions) -> Result<Self> {
        Ok(Self {})
    }
    pub async fn lookup(&self, parent: InodeId, name: &ValidName) -> Result<Attributes> {
        soon()
    }
    pub async fn attributes(&self, inode: InodeId) -> Result<Attributes> {
        soon()
    }
    /// `length` truncates or extends; `handle` is the open file it came through, if any.
    pub async fn set_attributes(
        &self,
        caller: Caller,
        inode: InodeId,
        set: SetAttributes,
        length: Option<u64>,
        handle: Option<FileHandleId>,
    ) -> Result<Attributes> {
        soon()
    }
    /// A regular file, opened for reading and writing. Without `exclusive` an existing file is opened.
    pub async fn create(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &ValidName,
        mode: u32,
        exclusive: bool,
    ) -> Result<(Attributes, FileHandleId)> {
        soon()
    }
    pub async fn mkdir(&self, caller: Caller, parent: InodeId, name: &ValidName, mode: u32) -> Result<Attributes> {
        soon()
    }
    pub async fn mknod(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &ValidName,
        kind: FileKind,
        mode: u32,
        rdev: u32,
    ) -> Result<Attributes> {
        soon()
    }
    pub async fn symlink(
        &self,
        caller: Caller,
        parent: InodeId,
        name: &ValidName,
        target: &[u8],
    ) -> Result<Attributes> {
        soon()
    }
    pub async fn link(&self, caller: Caller, inode: InodeId, parent: InodeId, name: &ValidName) -> Result<Attributes> {
        soon()
    }
    pub async fn unlink(&self, caller: Caller, parent: InodeId, name: &ValidName) -> Result<()> {
        soon()
    }
    pub async fn rmdir(&self, caller: Caller, parent: InodeId, name: &ValidName) -> Result<()> {
        soon()
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
        soon()
    }
    pub async fn readlink(&self, inode: InodeId) -> Result<Vec<u8>> {
        soon()
    }
    /// Entries after `cookie`, at most `limit`; `true` when there are no more. `.` and `..` are left to the caller.
    pub async fn read_directory(&self, inode: InodeId, cookie: u64, limit: u32) -> Result<(Vec<DirectoryEntry>, bool)> {
        soon()
    }
    pub async fn parent(&self, inode: InodeId) -> Result<InodeId> {
        soon()
    }
    pub async fn get_xattr(&self, inode: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        soon()
    }
    pub async fn set_xattr(
        &self,
        caller: Caller,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        soon()
    }
    pub async fn list_xattr(&self, inode: InodeId) -> Result<Vec<Vec<u8>>> {
        soon()
    }
    pub async fn remove_xattr(&self, caller: Caller, inode: InodeId, name: &[u8]) -> Result<()> {
        soon()
    }
    pub async fn set_policy(&self, caller: Caller, inode: InodeId, policy: Policy) -> Result<()> {
        soon()
    }
    pub async fn stat_fs(&self) -> Result<StatFs> {
        soon()
    }
    /// The `bool`: the kernel may keep what it cached of this file.
    pub async fn open(&self, inode: InodeId, mode: OpenMode) -> Result<(Attributes, FileHandleId, bool)> {
        soon()
    }
    pub async fn read(&self, handle: FileHandleId, offset: u64, size: u32) -> Result<Bytes> {
        soon()
    }
    pub async fn write(&self, handle: FileHandleId, offset: u64, data: Bytes) -> Result<u32> {
        soon()
    }
    pub async fn flush(&self, handle: FileHandleId) -> Result<()> {
        soon()
    }
    pub async fn fsync(&self, handle: FileHandleId, data_only: bool) -> Result<()> {
        soon()
    }
    pub async fn release(&self, handle: FileHandleId) -> Result<()> {
        soon()
    }
    pub async fn status(&self) -> Result<ClusterStatus> {
        soon()
    }
    /// Drains every file, ends the session.
    pub async fn close(&self) -> Result<()> {
        soon()
    }
}

fn soon<T>() -> Result<T> {
    Err(Error::new(ErrorCode::NotSupported, "not wired yet"))
}
