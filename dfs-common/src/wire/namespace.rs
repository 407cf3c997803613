//! Operations on the namespace, as a client asks for them.

use serde::{Deserialize, Serialize};

use crate::cut::{CutEpoch, LastCuts};
use crate::id::InodeId;
use crate::layout::Layout;
use crate::name::ValidName;
use crate::policy::{Policy, PolicyChange};
use crate::time::Timestamp;
use crate::version::VersionVector;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    BlockDevice,
    CharDevice,
}

/// A file's data key, wrapped by the KEK of that version (AES-256-GCM: nonce 12, key 32, tag 16). Servers can not open it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    pub kek_version: u32,
    pub bytes: Vec<u8>,
}

/// What `stat(2)` shows, and what a client needs to reach the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub inode: InodeId,
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of a device node, as the kernel encodes it.
    pub rdev: u32,
    /// Of a regular file: its length. Of a symlink: its target's. Of a directory: entries x 32.
    pub length_bytes: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub crtime: Timestamp,
    /// Rises with every change of the inode or its data (NFS's change attribute).
    pub change: u64,
    /// Regular files only.
    pub file: Option<FileAttributes>,
    pub policy: Policy,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAttributes {
    pub layout: Layout,
    pub key: WrappedKey,
    pub versions: VersionVector,
    pub cut: CutEpoch,
    pub cuts: LastCuts,
    /// It may have holes: it grew over blocks that nobody wrote. Else what it takes up is its
    /// length.
    pub sparse: bool,
}

/// On whose behalf; owner of what is created, and subject of the server's own checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The leader's clock.
    Now,
    To(Timestamp),
}

/// Fields of `setattr`; `None` leaves a field alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetAttributes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// `touch`, `utimes`: sets ctime too. Without it only what is named changes (ctime is the leader's now anyway).
    pub ctime: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
    /// Leaves a whiteout under the old name: the character device 0:0 that overlayfs takes for a
    /// removed file.
    Whiteout,
    WhiteoutNoReplace,
}

impl RenameMode {
    #[must_use]
    pub const fn replaces(self) -> bool {
        matches!(self, Self::Replace | Self::Whiteout)
    }

    #[must_use]
    pub const fn leaves_whiteout(self) -> bool {
        matches!(self, Self::Whiteout | Self::WhiteoutNoReplace)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    Either,
    /// `EEXIST` if it is there.
    Create,
    /// `ENODATA` if it is not.
    Replace,
}

/// What a writer tells the metadata group after its data is on the chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteCommit {
    /// The file is at least this long (`max` with what is recorded); `None` if only content changed.
    pub extend_to_bytes: Option<u64>,
    /// Time of the last write. `None`: the leader's clock, unless the commit [is bare](Self::is_bare).
    pub mtime: Option<Timestamp>,
    /// Clear setuid and setgid, as a write by an unprivileged user must.
    pub clear_suid: bool,
    /// The session holds the file and goes on writing without a word: the length is the least that it has until the next
    /// commit, and is to be found from its chunks should the hold end before. Ignored of a file that it does not hold.
    pub growing: bool,
    /// The truncation epoch under which the data was written. A commit that names a length in another one, or while a cut is
    /// under way, is refused with `StaleCut`: some of the data may have been cut, however long the file is now.
    pub cut: CutEpoch,
    /// The file has grown over blocks that were not written.
    pub sparse: bool,
}

impl WriteCommit {
    /// Whether it says nothing but that the file grows, or grows no more: then no time of the file moves.
    #[must_use]
    pub const fn is_bare(&self) -> bool {
        self.extend_to_bytes.is_none() && self.mtime.is_none() && !self.clear_suid
    }
}

/// Changes. Each is one command in the metadata log and takes effect exactly once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceOp {
    /// A regular file; with `exclusive` an existing name is `EEXIST`, without it the existing inode is returned.
    Create {
        parent: InodeId,
        name: ValidName,
        mode: u32,
        exclusive: bool,
        key: WrappedKey,
    },
    Mkdir {
        parent: InodeId,
        name: ValidName,
        mode: u32,
    },
    /// Fifo, socket, device or empty regular file (which then carries a key).
    Mknod {
        parent: InodeId,
        name: ValidName,
        kind: FileKind,
        mode: u32,
        rdev: u32,
        key: Option<WrappedKey>,
    },
    Symlink {
        parent: InodeId,
        name: ValidName,
        target: Vec<u8>,
    },
    Link {
        inode: InodeId,
        parent: InodeId,
        name: ValidName,
    },
    Unlink {
        parent: InodeId,
        name: ValidName,
    },
    Rmdir {
        parent: InodeId,
        name: ValidName,
    },
    Rename {
        parent: InodeId,
        name: ValidName,
        new_parent: InodeId,
        new_name: ValidName,
        mode: RenameMode,
    },
    SetAttributes {
        inode: InodeId,
        set: SetAttributes,
        commit: Option<WriteCommit>,
    },
    /// Begins a cut: the file is at most this long from now on, and nobody grows it before the cut has ended or another has
    /// begun. The client removes what the chunks have beyond the end then, and ends the cut with `SetLength`.
    BeginCut {
        inode: InodeId,
        /// `u64::MAX`: as long as it is.
        length_bytes: u64,
        mtime: Option<Timestamp>,
        /// Refused with `StaleCut` if this is not the present epoch: somebody else has cut the file
        /// meanwhile.
        only_in: Option<CutEpoch>,
    },
    /// Length exactly this, not below the present one: the client has removed what the chunks had beyond that.
    SetLength {
        inode: InodeId,
        length_bytes: u64,
        mtime: Option<Timestamp>,
        /// The cut that this ends; refused with `StaleCut` if it is not the present one. `None`: the session holds the file, so
        /// nobody else can have written beyond its end.
        cut: Option<CutEpoch>,
    },
    CommitWrite {
        inode: InodeId,
        commit: WriteCommit,
    },
    SetXattr {
        inode: InodeId,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: XattrMode,
    },
    RemoveXattr {
        inode: InodeId,
        name: Vec<u8>,
    },
    SetPolicy {
        inode: InodeId,
        change: PolicyChange,
    },
}

impl NamespaceOp {
    /// Whether it leaves more to be kept than there was.
    #[must_use]
    pub const fn takes_room(&self) -> bool {
        match self {
            Self::Create { .. }
            | Self::Mkdir { .. }
            | Self::Mknod { .. }
            | Self::Symlink { .. }
            | Self::Link { .. }
            | Self::SetXattr { .. } => true,
            Self::Unlink { .. }
            | Self::Rmdir { .. }
            | Self::Rename { .. }
            | Self::SetAttributes { .. }
            | Self::BeginCut { .. }
            | Self::SetLength { .. }
            | Self::CommitWrite { .. }
            | Self::RemoveXattr { .. }
            | Self::SetPolicy { .. } => false,
        }
    }

    /// Directories whose entries it changes; none for a change of an inode itself.
    pub fn parents(&self) -> impl Iterator<Item = InodeId> {
        let (first, second) = match *self {
            Self::Create { parent, .. }
            | Self::Mkdir { parent, .. }
            | Self::Mknod { parent, .. }
            | Self::Symlink { parent, .. }
            | Self::Link { parent, .. }
            | Self::Unlink { parent, .. }
            | Self::Rmdir { parent, .. } => (Some(parent), None),
            Self::Rename { parent, new_parent, .. } => (Some(parent), (new_parent != parent).then_some(new_parent)),
            Self::SetAttributes { .. }
            | Self::BeginCut { .. }
            | Self::SetLength { .. }
            | Self::CommitWrite { .. }
            | Self::SetXattr { .. }
            | Self::RemoveXattr { .. }
            | Self::SetPolicy { .. } => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// Answer to a [`NamespaceOp`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceChange {
    /// The inode that was created, linked, or changed, as it is now.
    Entry {
        attributes: Attributes,
        created: bool,
        /// The session that asked holds it from now on.
        held: bool,
    },
    /// Unlink, rmdir, and rename's replaced target: the inode that lost a name and how many are left.
    Removed {
        inode: InodeId,
        nlink: u32,
    },
    /// A cut has begun; the file was this long before.
    CutBegun {
        attributes: Attributes,
        before_bytes: u64,
    },
    Renamed {
        replaced: Option<(InodeId, u32)>,
    },
    Done,
}

/// Questions. Answered by the leader from applied state, linearizably.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceRead {
    Lookup {
        parent: InodeId,
        name: ValidName,
    },
    GetAttributes {
        inode: InodeId,
    },
    ReadLink {
        inode: InodeId,
    },
    /// Entries after `cookie` (0: from the start, with `.` and `..` left to the caller), at most `limit`.
    ReadDirectory {
        inode: InodeId,
        cookie: u64,
        limit: u32,
    },
    Parent {
        inode: InodeId,
    },
    GetXattr {
        inode: InodeId,
        name: Vec<u8>,
    },
    ListXattr {
        inode: InodeId,
    },
    StatFs,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceAnswer {
    Attributes(Attributes),
    Link(Vec<u8>),
    Directory { entries: Vec<DirectoryEntry>, end: bool },
    Parent(InodeId),
    Xattr(Vec<u8>),
    XattrNames(Vec<Vec<u8>>),
    StatFs(StatFs),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// Position after this entry, from the keyed hash of its name: stable while others come and go. 3 or more.
    pub cookie: u64,
    pub name: ValidName,
    pub attributes: Attributes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StatFs {
    /// Usable by files, after replication.
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub inodes: u64,
}
