//! Words of the kernel to words of dfs and back. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_client::{Client, OpenMode};
use dfs_common::wire::namespace::{Attributes, Caller, FileKind, RenameMode, SetTime, XattrMode};
use dfs_common::{Error, ErrorCode, InodeId, Result, Timestamp};
use fuser::{Errno, FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, RenameFlags, Request, TimeOrNow};

/// How long the kernel may trust a directory's entry and attributes. A rename by another mount shows within this.
const DIRECTORY_TTL: Duration = Duration::from_secs(1);

/// `stat(2)` of a file is exact across mounts, so nothing about files is trusted.
const FILE_TTL: Duration = Duration::ZERO;

/// `st_blksize`: what one chunk request carries well.
const PREFERRED_IO_BYTES: u32 = 1 << 20;

/// `st_blocks` counts these.
const SECTOR_BYTES: u64 = 512;

pub(crate) const fn ttl_of(kind: FileKind) -> Duration {
    match kind {
        FileKind::Directory => DIRECTORY_TTL,
        _ => FILE_TTL,
    }
}

pub(crate) const fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
    }
}

/// Kind that `mknod(2)` asks for. No type bits mean a regular file, as in POSIX.
pub(crate) fn kind_of_mode(mode: u32) -> Result<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Ok(FileKind::Regular),
        libc::S_IFIFO => Ok(FileKind::Fifo),
        libc::S_IFSOCK => Ok(FileKind::Socket),
        libc::S_IFBLK => Ok(FileKind::BlockDevice),
        libc::S_IFCHR => Ok(FileKind::CharDevice),
        other => Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("mknod of file type {other:o}"),
        )),
    }
}

pub(crate) fn file_attr(attributes: &Attributes) -> FileAttr {
    let sectors = match attributes.kind {
        FileKind::Regular | FileKind::Directory => attributes.length_bytes.div_ceil(SECTOR_BYTES),
        _ => 0,
    };
    FileAttr {
        ino: INodeNo(attributes.inode.get()),
        size: attributes.length_bytes,
        blocks: sectors,
        atime: system_time(attributes.atime),
        mtime: system_time(attributes.mtime),
        ctime: system_time(attributes.ctime),
        crtime: system_time(attributes.crtime),
        kind: file_type(attributes.kind),
        perm: (attributes.mode & 0o7777) as u16,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: PREFERRED_IO_BYTES,
        flags: 0,
    }
}

/// Whether its length does not say how much room it takes up.
pub(crate) fn is_sparse(attributes: &Attributes) -> bool {
    attributes.file.as_ref().is_some_and(|file| file.sparse)
}

/// Attributes with the room that the file takes up. Of a file with holes the chains know that; if
/// they do not answer within a second, its length has to do.
pub(crate) async fn attr_with_room(client: &Client, attributes: &Attributes) -> FileAttr {
    let mut attr = file_attr(attributes);
    if is_sparse(attributes)
        && let Ok(bytes) = client.allocated_bytes(attributes).await
    {
        attr.blocks = bytes.div_ceil(SECTOR_BYTES);
    }
    attr
}

/// What `readdirplus` says about `..` and `.`: the kernel takes number and type from it and nothing else.
pub(crate) fn dot_attr(inode: InodeId) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode.get()),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PREFERRED_IO_BYTES,
        flags: 0,
    }
}

pub(crate) fn system_time(stamp: Timestamp) -> SystemTime {
    let (seconds, nanos) = stamp.to_parts();
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|time| time.checked_add(Duration::from_nanos(u64::from(nanos))))
        .unwrap_or(UNIX_EPOCH)
}

/// A time that fuser decoded. Before 1970 fuser 0.18 takes `tv_nsec` off instead of adding it (its `time.rs`): -5 s and
/// 0.3 s arrive as -5.3 s, not -4.7 s. The parts are whole, so they can be put together again.
pub(crate) fn timestamp_from_kernel(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp::from_parts(i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            Timestamp::from_parts(seconds, before.subsec_nanos())
        }
    }
}

pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(timestamp_from_kernel(time)),
    }
}

pub(crate) fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

pub(crate) fn open_mode(flags: OpenFlags) -> OpenMode {
    let access = flags.acc_mode();
    let truncate = flags.0 & libc::O_TRUNC != 0;
    OpenMode {
        read: access != OpenAccMode::O_WRONLY,
        // Linux truncates for O_RDONLY | O_TRUNC too, with the right to write checked by the kernel.
        write: access != OpenAccMode::O_RDONLY || truncate,
        append: flags.0 & libc::O_APPEND != 0,
        truncate,
        direct: flags.0 & libc::O_DIRECT != 0,
    }
}

pub(crate) fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    if flags == RenameFlags::empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else if flags == RenameFlags::RENAME_WHITEOUT {
        Ok(RenameMode::Whiteout)
    } else if flags == RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::WhiteoutNoReplace)
    } else {
        Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("rename flags {:#x}", flags.bits()),
        ))
    }
}

pub(crate) fn xattr_mode(flags: i32) -> Result<XattrMode> {
    match flags {
        0 => Ok(XattrMode::Either),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("setxattr flags {flags:#x}"),
        )),
    }
}

pub(crate) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

/// What is not stored, answered without asking the cluster: the kernel looks for these before every write and exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum XattrClass {
    /// `user.*`, `trusted.*`: stored.
    Stored,
    /// `security.*`: never there. A file capability is not a thing that this file system grants.
    Security,
    /// `system.*` (POSIX ACLs) and anything else: not supported.
    Unsupported,
}

pub(crate) fn xattr_class(name: &[u8]) -> XattrClass {
    if name.starts_with(b"user.") || name.starts_with(b"trusted.") {
        XattrClass::Stored
    } else if name.starts_with(b"security.") {
        XattrClass::Security
    } else {
        XattrClass::Unsupported
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_common::Policy;
    use proptest::prelude::*;

    fn attributes(kind: FileKind, length_bytes: u64) -> Attributes {
        Attributes {
            inode: InodeId(7),
            kind,
            mode: 0o104_755,
            nlink: 3,
            uid: 1000,
            gid: 100,
            rdev: 0x0103,
            length_bytes,
            atime: Timestamp::from_parts(1, 2),
            mtime: Timestamp::from_parts(-5, 300_000_000),
            ctime: Timestamp::from_parts(3, 4),
            crtime: Timestamp::from_parts(0, 0),
            change: 9,
            file: None,
            policy: Policy::default(),
        }
    }

    #[test]
    fn attributes_become_what_stat_shows() {
        let shown = file_attr(&attributes(FileKind::Regular, 513));
        assert_eq!((shown.ino, shown.size, shown.blocks), (INodeNo(7), 513, 2));
        assert_eq!(
            (shown.perm, shown.kind, shown.nlink),
            (0o4755, FileType::RegularFile, 3)
        );
        assert_eq!((shown.uid, shown.gid, shown.rdev), (1000, 100, 0x0103));
        assert_eq!(shown.mtime, UNIX_EPOCH - Duration::from_millis(4700));
        assert_eq!(file_attr(&attributes(FileKind::Symlink, 20)).blocks, 0);
    }

    #[test]
    fn only_directories_are_trusted_for_a_while() {
        assert_eq!(ttl_of(FileKind::Directory), Duration::from_secs(1));
        for kind in [FileKind::Regular, FileKind::Symlink, FileKind::Fifo] {
            assert_eq!(ttl_of(kind), Duration::ZERO);
        }
    }

    #[test]
    fn types_of_mknod() {
        assert_eq!(kind_of_mode(0o644).ok(), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(libc::S_IFREG | 0o644).ok(), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(libc::S_IFIFO).ok(), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(libc::S_IFSOCK).ok(), Some(FileKind::Socket));
        assert_eq!(kind_of_mode(libc::S_IFBLK).ok(), Some(FileKind::BlockDevice));
        assert_eq!(kind_of_mode(libc::S_IFCHR).ok(), Some(FileKind::CharDevice));
        assert!(kind_of_mode(libc::S_IFDIR).is_err());
    }

    #[test]
    fn flags_of_open_rename_and_setxattr() {
        let open = |flags| open_mode(OpenFlags(flags));
        let mode = |read, write, append, truncate| OpenMode {
            read,
            write,
            append,
            truncate,
            direct: false,
        };
        let direct = OpenMode {
            direct: true,
            ..mode(true, true, false, false)
        };
        assert_eq!(open(libc::O_RDWR | libc::O_DIRECT), direct);
        assert_eq!(open(libc::O_RDONLY), mode(true, false, false, false));
        assert_eq!(open(libc::O_WRONLY | libc::O_APPEND), mode(false, true, true, false));
        assert_eq!(open(libc::O_RDWR | libc::O_TRUNC), mode(true, true, false, true));
        assert_eq!(open(libc::O_RDONLY | libc::O_TRUNC), mode(true, true, false, true));
        assert_eq!(rename_mode(RenameFlags::empty()).ok(), Some(RenameMode::Replace));
        assert_eq!(
            rename_mode(RenameFlags::RENAME_NOREPLACE).ok(),
            Some(RenameMode::NoReplace)
        );
        assert_eq!(
            rename_mode(RenameFlags::RENAME_EXCHANGE).ok(),
            Some(RenameMode::Exchange)
        );
        let both = RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_NOREPLACE;
        assert_eq!(rename_mode(both).map_err(|e| e.errno()).err(), Some(libc::EINVAL));
        assert_eq!(
            rename_mode(RenameFlags::RENAME_WHITEOUT).ok(),
            Some(RenameMode::Whiteout)
        );
        assert!(rename_mode(RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_EXCHANGE).is_err());
        assert_eq!(xattr_mode(0).ok(), Some(XattrMode::Either));
        assert_eq!(xattr_mode(libc::XATTR_CREATE).ok(), Some(XattrMode::Create));
        assert_eq!(xattr_mode(libc::XATTR_REPLACE).ok(), Some(XattrMode::Replace));
        assert!(xattr_mode(3).is_err());
    }

    #[test]
    fn every_error_has_the_errno_of_the_one_map() {
        for &code in ErrorCode::EVERY {
            let error = Error::from(code);
            assert_eq!(errno(&error).code(), error.errno(), "{code:?}");
        }
    }

    #[test]
    fn attributes_that_nobody_stores_are_known_by_name() {
        assert_eq!(xattr_class(b"user.colour"), XattrClass::Stored);
        assert_eq!(xattr_class(b"trusted.x"), XattrClass::Stored);
        assert_eq!(xattr_class(b"security.capability"), XattrClass::Security);
        assert_eq!(xattr_class(b"system.posix_acl_access"), XattrClass::Unsupported);
        assert_eq!(xattr_class(b""), XattrClass::Unsupported);
    }

    /// What fuser 0.18 makes of a `struct timespec`.
    fn as_fuser_decodes(seconds: i64, nanos: u32) -> SystemTime {
        if seconds >= 0 {
            UNIX_EPOCH + Duration::new(seconds.unsigned_abs(), nanos)
        } else {
            UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanos)
        }
    }

    proptest! {
        #[test]
        fn times_survive_the_way_in(seconds in -9_000_000_000_i64..9_000_000_000, nanos in 0_u32..1_000_000_000) {
            let stamp = timestamp_from_kernel(as_fuser_decodes(seconds, nanos));
            prop_assert_eq!(stamp, Timestamp::from_parts(seconds, nanos));
        }

        #[test]
        fn times_survive_the_way_out(nanos: i64) {
            let stamp = Timestamp::from_nanos(nanos);
            let time = system_time(stamp);
            let back = match time.duration_since(UNIX_EPOCH) {
                Ok(after) => i128::try_from(after.as_nanos()).unwrap(),
                Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap(),
            };
            prop_assert_eq!(back, i128::from(nanos));
        }
    }
}
