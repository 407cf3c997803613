//! Each operation with its answers and errors, as POSIX (and pjdfstest) has them.

use dfs_common::units::{LINK_MAX, XATTR_VALUE_MAX_BYTES};
use dfs_common::wire::namespace::{
    Attributes, FileKind, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead, RenameMode, SetAttributes,
    SetTime, WriteCommit, XattrMode,
};
use dfs_common::{ActorId, CutEpoch, ErrorCode, InodeId, Level, Policy, PolicyChange, Timestamp};

use crate::command::{CommandKind, Outcome};
use crate::state::testing::{BadHash, Bench, TestHash, USER, create_op, key, name};
use crate::store::{MemoryStore, Rows, keys};

const TOP: InodeId = InodeId::ROOT;
const GONE: InodeId = InodeId(999_999);

impl Bench {
    fn rename(
        &mut self,
        (parent, from): (InodeId, &str),
        (new_parent, to): (InodeId, &str),
        mode: RenameMode,
    ) -> Result<Option<(InodeId, u32)>, ErrorCode> {
        let (name, new_name) = (name(from), name(to));
        match self.change(NamespaceOp::Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
        })? {
            NamespaceChange::Renamed { replaced } => Ok(replaced),
            other => panic!("{other:?}"),
        }
    }

    fn set(&mut self, inode: InodeId, set: SetAttributes) -> Result<Attributes, ErrorCode> {
        let commit = None;
        self.entry(NamespaceOp::SetAttributes { inode, set, commit })
    }

    fn chmod(&mut self, inode: InodeId, mode: u32) -> Attributes {
        let mode = Some(mode);
        self.set(
            inode,
            SetAttributes {
                mode,
                ..SetAttributes::default()
            },
        )
        .unwrap()
    }

    fn begin_cut(&mut self, inode: InodeId, length_bytes: u64) -> Result<CutEpoch, ErrorCode> {
        self.begin_cut_in(inode, length_bytes, None)
    }

    fn begin_cut_in(
        &mut self,
        inode: InodeId,
        length_bytes: u64,
        only_in: Option<CutEpoch>,
    ) -> Result<CutEpoch, ErrorCode> {
        match self.change(NamespaceOp::BeginCut {
            inode,
            length_bytes,
            mtime: None,
            only_in,
        })? {
            NamespaceChange::CutBegun { attributes, .. } => Ok(attributes.file.unwrap().cut),
            other => panic!("{other:?}"),
        }
    }

    fn set_length(&mut self, inode: InodeId, length_bytes: u64, cut: CutEpoch) -> Result<Attributes, ErrorCode> {
        self.entry(NamespaceOp::SetLength {
            inode,
            length_bytes,
            mtime: None,
            cut: Some(cut),
        })
    }

    fn set_xattr(&mut self, inode: InodeId, text: &str, value: &[u8], mode: XattrMode) -> Result<(), ErrorCode> {
        let (name, value) = (text.as_bytes().to_vec(), value.to_vec());
        self.change(NamespaceOp::SetXattr {
            inode,
            name,
            value,
            mode,
        })
        .map(|_| ())
    }

    fn get_xattr(&self, inode: InodeId, text: &str) -> Result<Vec<u8>, ErrorCode> {
        let name = text.as_bytes().to_vec();
        match self.read(NamespaceRead::GetXattr { inode, name })? {
            NamespaceAnswer::Xattr(value) => Ok(value),
            other => panic!("{other:?}"),
        }
    }

    fn parent(&self, inode: InodeId) -> Result<InodeId, ErrorCode> {
        match self.read(NamespaceRead::Parent { inode })? {
            NamespaceAnswer::Parent(parent) => Ok(parent),
            other => panic!("{other:?}"),
        }
    }

    /// Overwrites a link count, to meet limits without making 65,000 links.
    fn force_nlink(&mut self, inode: InodeId, nlink: u32) {
        use crate::store::Store;
        let mut row: super::InodeRow = crate::store::get(self.state.store(), &keys::inode(inode))
            .unwrap()
            .unwrap();
        row.nlink = nlink;
        let mut batch = crate::store::Batch::default();
        batch.put(keys::inode(inode), crate::store::encode(&row).unwrap());
        self.state.store().commit(batch).unwrap();
    }
}

#[test]
fn create_makes_an_empty_file_and_stamps_its_parent() {
    let mut bench = Bench::new();
    bench.caller = USER;
    let file = bench.create(TOP, "a").unwrap();
    assert_eq!((file.kind, file.mode, file.nlink), (FileKind::Regular, 0o644, 1));
    assert_eq!((file.uid, file.gid, file.length_bytes), (1000, 100, 0));
    assert_eq!([file.atime, file.mtime, file.ctime, file.crtime], [bench.now(); 4]);
    let data = file.file.clone().unwrap();
    assert_eq!((data.key, u64::from(data.layout.seed)), (key(), file.inode.0));
    let top = bench.stat(TOP).unwrap();
    assert_eq!(
        (top.mtime, top.ctime, top.length_bytes, top.nlink),
        (bench.now(), bench.now(), 32, 2)
    );
    assert_eq!(bench.lookup(TOP, "a"), Ok(file));
}

#[test]
fn create_of_an_existing_name() {
    let mut bench = Bench::new();
    let file = bench.create(TOP, "a").unwrap();
    assert_eq!(bench.create(TOP, "a"), Err(ErrorCode::Exists));
    let open = NamespaceOp::Create {
        parent: TOP,
        name: name("a"),
        mode: 0,
        exclusive: false,
        key: key(),
    };
    let found = bench.change(open).unwrap();
    assert_eq!(
        found,
        NamespaceChange::Entry {
            attributes: file,
            created: false,
            held: false,
        }
    );
    assert_eq!(bench.mkdir(TOP, "a"), Err(ErrorCode::Exists));
    assert_eq!(bench.symlink(TOP, "a", "t"), Err(ErrorCode::Exists));
    assert_eq!(bench.fifo(TOP, "a"), Err(ErrorCode::Exists));
    assert_eq!(bench.state.counts().inodes, 2);
}

#[test]
fn parents_that_are_gone_or_no_directory() {
    let mut bench = Bench::new();
    let file = bench.create(TOP, "a").unwrap().inode;
    for (parent, code) in [(GONE, ErrorCode::NotFound), (file, ErrorCode::NotDirectory)] {
        assert_eq!(bench.create(parent, "x"), Err(code));
        assert_eq!(bench.mkdir(parent, "x"), Err(code));
        assert_eq!(bench.fifo(parent, "x"), Err(code));
        assert_eq!(bench.symlink(parent, "x", "t"), Err(code));
        assert_eq!(bench.link(file, parent, "x"), Err(code));
        assert_eq!(bench.unlink(parent, "x"), Err(code));
        assert_eq!(bench.rmdir(parent, "x"), Err(code));
        assert_eq!(bench.rename((parent, "x"), (TOP, "y"), RenameMode::Replace), Err(code));
        assert_eq!(bench.rename((TOP, "a"), (parent, "y"), RenameMode::Replace), Err(code));
        assert_eq!(bench.lookup(parent, "x"), Err(code));
    }
    assert_eq!(bench.stat(GONE), Err(ErrorCode::StaleInode));
}

#[test]
fn without_storage_only_regular_files_are_refused() {
    let state = crate::state::State::open(MemoryStore::default(), TestHash, crate::state::testing::CLUSTER).unwrap();
    let mut bench = Bench {
        state,
        session: dfs_common::SessionId(1),
        sequence: 0,
        clock: 0,
        caller: USER,
    };
    bench.submit(CommandKind::OpenSession { label: String::new() });
    assert_eq!(bench.create(TOP, "a"), Err(ErrorCode::NoSpace));
    assert!(bench.mkdir(TOP, "d").is_ok());
    assert!(bench.symlink(TOP, "s", "t").is_ok());
    assert!(bench.fifo(TOP, "f").is_ok());
}

#[test]
fn directories_count_links_and_refuse_too_many() {
    let mut bench = Bench::new();
    let directory = bench.mkdir(TOP, "d").unwrap();
    assert_eq!((directory.nlink, directory.length_bytes), (2, 0));
    assert_eq!(bench.stat(TOP).unwrap().nlink, 3);
    assert_eq!(bench.parent(directory.inode), Ok(TOP));
    assert_eq!(bench.parent(TOP), Ok(TOP));
    bench.force_nlink(directory.inode, LINK_MAX);
    assert_eq!(bench.mkdir(directory.inode, "x"), Err(ErrorCode::TooManyLinks));
    assert!(bench.create(directory.inode, "x").is_ok());
    bench.mkdir(TOP, "e").unwrap();
    assert_eq!(
        bench.rename((TOP, "e"), (directory.inode, "e"), RenameMode::Replace),
        Err(ErrorCode::TooManyLinks)
    );
    bench.rmdir(TOP, "e").unwrap();
    assert_eq!(bench.stat(TOP).unwrap().nlink, 3);
}

#[test]
fn setgid_directories_hand_down_their_group() {
    let mut bench = Bench::new();
    let directory = bench.mkdir(TOP, "d").unwrap().inode;
    let gid = Some(42);
    bench
        .set(
            directory,
            SetAttributes {
                gid,
                ..SetAttributes::default()
            },
        )
        .unwrap();
    bench.chmod(directory, 0o2777);
    bench.caller = USER;
    let (file, below) = (
        bench.create(directory, "f").unwrap(),
        bench.mkdir(directory, "d").unwrap(),
    );
    assert_eq!((file.uid, file.gid, file.mode), (1000, 42, 0o644));
    assert_eq!((below.gid, below.mode), (42, 0o2755));
}

#[test]
fn special_files_and_symlinks() {
    let mut bench = Bench::new();
    let mut node = |kind, rdev, key| {
        let (name, parent, mode) = (name("n"), TOP, 0o640);
        let made = bench.entry(NamespaceOp::Mknod {
            parent,
            name,
            kind,
            mode,
            rdev,
            key,
        });
        let _ = bench.unlink(TOP, "n");
        made.map(|made| (made.kind, made.rdev, made.file.is_some()))
    };
    assert_eq!(
        node(FileKind::CharDevice, 0x103, None),
        Ok((FileKind::CharDevice, 0x103, false))
    );
    assert_eq!(node(FileKind::Fifo, 9, None), Ok((FileKind::Fifo, 0, false)));
    assert_eq!(
        node(FileKind::Regular, 0, Some(key())),
        Ok((FileKind::Regular, 0, true))
    );
    assert_eq!(node(FileKind::Regular, 0, None), Err(ErrorCode::InvalidArgument));
    assert_eq!(node(FileKind::Directory, 0, None), Err(ErrorCode::InvalidArgument));

    let link = bench.symlink(TOP, "s", "to/there").unwrap();
    assert_eq!((link.mode, link.length_bytes, link.kind), (0o777, 8, FileKind::Symlink));
    let answer = bench.read(NamespaceRead::ReadLink { inode: link.inode });
    assert_eq!(answer, Ok(NamespaceAnswer::Link(b"to/there".to_vec())));
    assert_eq!(
        bench.read(NamespaceRead::ReadLink { inode: TOP }),
        Err(ErrorCode::InvalidArgument)
    );
    assert_eq!(bench.symlink(TOP, "l", &"x".repeat(4096)), Err(ErrorCode::NameTooLong));
    assert!(bench.symlink(TOP, "l", &"x".repeat(4095)).is_ok());
    assert_eq!(bench.symlink(TOP, "e", ""), Err(ErrorCode::NotFound));
}

#[test]
fn links() {
    let mut bench = Bench::new();
    let file = bench.create(TOP, "a").unwrap().inode;
    let directory = bench.mkdir(TOP, "d").unwrap().inode;
    let linked = bench.link(file, directory, "b").unwrap();
    assert_eq!((linked.nlink, linked.ctime), (2, bench.now()));
    assert_eq!(bench.stat(directory).unwrap().mtime, bench.now());
    assert_eq!(bench.link(file, TOP, "d"), Err(ErrorCode::Exists));
    assert_eq!(bench.link(directory, TOP, "e"), Err(ErrorCode::NotPermitted));
    assert_eq!(bench.link(GONE, TOP, "e"), Err(ErrorCode::NotFound));
    assert_eq!(bench.unlink(TOP, "a"), Ok(1));
    assert_eq!(bench.stat(file).unwrap().ctime, bench.now());
    assert_eq!(bench.unlink(directory, "b"), Ok(0));
    // An orphan can be read and written, but not named again.
    assert_eq!(bench.stat(file).unwrap().nlink, 0);
    assert_eq!(bench.link(file, TOP, "e"), Err(ErrorCode::NotFound));
    let full = bench.create(TOP, "full").unwrap().inode;
    bench.force_nlink(full, LINK_MAX);
    assert_eq!(bench.link(full, TOP, "e"), Err(ErrorCode::TooManyLinks));
}

#[test]
fn unlink_and_rmdir() {
    let mut bench = Bench::new();
    let directory = bench.mkdir(TOP, "d").unwrap().inode;
    bench.create(directory, "f").unwrap();
    assert_eq!(bench.unlink(TOP, "d"), Err(ErrorCode::IsDirectory));
    assert_eq!(bench.unlink(TOP, "x"), Err(ErrorCode::NotFound));
    assert_eq!(bench.rmdir(TOP, "x"), Err(ErrorCode::NotFound));
    assert_eq!(bench.rmdir(TOP, "d"), Err(ErrorCode::NotEmpty));
    assert_eq!(bench.rmdir(directory, "f"), Err(ErrorCode::NotDirectory));
    bench.unlink(directory, "f").unwrap();
    bench.rmdir(TOP, "d").unwrap();
    assert_eq!(bench.stat(TOP).unwrap().mtime, bench.now());
    // Whoever is still in it finds nothing and makes nothing.
    assert_eq!(bench.create(directory, "x"), Err(ErrorCode::NotFound));
    assert_eq!(
        bench.read(NamespaceRead::ReadDirectory {
            inode: directory,
            cookie: 0,
            limit: 10
        }),
        Err(ErrorCode::NotFound)
    );
    assert_eq!(bench.stat(directory), Err(ErrorCode::StaleInode));
}

#[test]
fn orphans_live_until_purged_and_others_go_at_once() {
    let mut bench = Bench::new();
    let file = bench.create(TOP, "a").unwrap().inode;
    bench.set_xattr(file, "user.k", b"v", XattrMode::Either).unwrap();
    let fifo = bench.fifo(TOP, "f").unwrap().inode;
    bench.unlink(TOP, "f").unwrap();
    assert_eq!(bench.stat(fifo), Err(ErrorCode::StaleInode));
    bench.unlink(TOP, "a").unwrap();
    let commit = WriteCommit {
        sparse: false,
        extend_to_bytes: Some(10),
        mtime: None,
        clear_suid: false,
        growing: false,
        cut: CutEpoch::NONE,
    };
    bench.change(NamespaceOp::CommitWrite { inode: file, commit }).unwrap();
    let orphans = bench.state.orphans(None, 10).unwrap();
    assert_eq!(
        (orphans.len(), orphans[0].inode, orphans[0].length_bytes),
        (1, file, 10)
    );
    assert_eq!(bench.state.orphans(Some(file), 10).unwrap(), []);
    assert_eq!((bench.state.counts().inodes, bench.state.counts().orphans), (1, 1));
    // The living are not purged, whoever asks.
    let alive = bench.create(TOP, "b").unwrap().inode;
    let inodes = vec![file, alive, GONE];
    assert_eq!(bench.submit(CommandKind::Purged { inodes }), Outcome::Done);
    assert_eq!(bench.stat(file), Err(ErrorCode::StaleInode));
    assert!(bench.stat(alive).is_ok());
    assert_eq!(bench.state.counts().orphans, 0);
    let (from, to) = keys::xattrs(file);
    assert_eq!(bench.state.store().scan(&from, &to, 1).unwrap(), []);
    // Its number is not given again.
    assert!(bench.create(TOP, "c").unwrap().inode > alive);
}

#[test]
fn rename_of_files() {
    let mut bench = Bench::new();
    let (a, b) = (
        bench.create(TOP, "a").unwrap().inode,
        bench.create(TOP, "b").unwrap().inode,
    );
    let directory = bench.mkdir(TOP, "d").unwrap().inode;
    assert_eq!(
        bench.rename((TOP, "x"), (TOP, "y"), RenameMode::Replace),
        Err(ErrorCode::NotFound)
    );
    assert_eq!(
        bench.rename((TOP, "a"), (TOP, "b"), RenameMode::NoReplace),
        Err(ErrorCode::Exists)
    );
    assert_eq!(
        bench.rename((TOP, "a"), (TOP, "d"), RenameMode::Replace),
        Err(ErrorCode::IsDirectory)
    );
    assert_eq!(
        bench.rename((TOP, "d"), (TOP, "a"), RenameMode::Replace),
        Err(ErrorCode::NotDirectory)
    );
    assert_eq!(
        bench.rename((TOP, "a"), (TOP, "x"), RenameMode::Exchange),
        Err(ErrorCode::NotFound)
    );
    assert_eq!(
        bench.rename((TOP, "a"), (directory, "n"), RenameMode::NoReplace),
        Ok(None)
    );
    assert_eq!(bench.stat(a).unwrap().ctime, bench.now());
    assert_eq!(bench.stat(TOP).unwrap().mtime, bench.now());
    assert_eq!(bench.stat(directory).unwrap().ctime, bench.now());
    assert_eq!(bench.stat(directory).unwrap().length_bytes, 32);
    assert_eq!(
        bench.rename((directory, "n"), (TOP, "b"), RenameMode::Replace),
        Ok(Some((b, 0)))
    );
    assert_eq!(bench.lookup(TOP, "b").unwrap().inode, a);
    assert_eq!(bench.stat(b).unwrap().nlink, 0);
    // Two names of one inode: nothing happens, and both stay.
    bench.link(a, TOP, "same").unwrap();
    let before = bench.rows().len();
    assert_eq!(bench.rename((TOP, "b"), (TOP, "same"), RenameMode::Replace), Ok(None));
    assert_eq!(bench.rename((TOP, "b"), (TOP, "b"), RenameMode::Replace), Ok(None));
    assert_eq!(
        bench.rename((TOP, "b"), (TOP, "same"), RenameMode::NoReplace),
        Err(ErrorCode::Exists)
    );
    assert_eq!(bench.stat(a).unwrap().nlink, 2);
    assert_eq!(bench.rows().len(), before);
}

#[test]
fn rename_of_directories() {
    let mut bench = Bench::new();
    let d = bench.mkdir(TOP, "d").unwrap().inode;
    let e = bench.mkdir(TOP, "e").unwrap().inode;
    let below = bench.mkdir(d, "below").unwrap().inode;
    for mode in [RenameMode::Replace, RenameMode::NoReplace] {
        assert_eq!(
            bench.rename((TOP, "d"), (below, "x"), mode),
            Err(ErrorCode::InvalidArgument)
        );
        assert_eq!(
            bench.rename((TOP, "d"), (d, "x"), mode),
            Err(ErrorCode::InvalidArgument)
        );
    }
    assert_eq!(
        bench.rename((d, "below"), (TOP, "d"), RenameMode::Replace),
        Err(ErrorCode::NotEmpty)
    );
    assert_eq!(
        bench.rename((d, "below"), (TOP, "d"), RenameMode::Exchange),
        Err(ErrorCode::InvalidArgument)
    );
    assert_eq!(
        bench.rename((TOP, "e"), (TOP, "d"), RenameMode::Replace),
        Err(ErrorCode::NotEmpty)
    );
    assert_eq!(
        bench.rename((d, "below"), (TOP, "e"), RenameMode::Replace),
        Ok(Some((e, 0)))
    );
    assert_eq!(bench.stat(e), Err(ErrorCode::StaleInode));
    assert_eq!(bench.parent(below), Ok(TOP));
    assert_eq!((bench.stat(TOP).unwrap().nlink, bench.stat(d).unwrap().nlink), (4, 2));
    bench.rename((TOP, "e"), (d, "in"), RenameMode::Replace).unwrap();
    assert_eq!((bench.stat(TOP).unwrap().nlink, bench.stat(d).unwrap().nlink), (3, 3));
    assert_eq!(bench.parent(below), Ok(d));
}

#[test]
fn exchange_swaps_what_two_names_mean() {
    let mut bench = Bench::new();
    let d = bench.mkdir(TOP, "d").unwrap().inode;
    let inner = bench.mkdir(d, "inner").unwrap().inode;
    let file = bench.create(TOP, "f").unwrap().inode;
    assert_eq!(bench.rename((TOP, "f"), (d, "inner"), RenameMode::Exchange), Ok(None));
    assert_eq!(bench.lookup(TOP, "f").unwrap().inode, inner);
    assert_eq!(bench.lookup(d, "inner").unwrap().inode, file);
    assert_eq!(bench.parent(inner), Ok(TOP));
    assert_eq!((bench.stat(TOP).unwrap().nlink, bench.stat(d).unwrap().nlink), (4, 2));
    assert_eq!(
        [bench.stat(file).unwrap().ctime, bench.stat(inner).unwrap().ctime],
        [bench.now(); 2]
    );
    assert_eq!(bench.rename((TOP, "f"), (TOP, "d"), RenameMode::Exchange), Ok(None));
    assert_eq!(
        (
            bench.lookup(TOP, "f").unwrap().inode,
            bench.lookup(TOP, "d").unwrap().inode
        ),
        (d, inner)
    );
}

#[test]
fn attributes_are_set_and_ctime_moves() {
    let mut bench = Bench::new();
    let file = bench.create(TOP, "a").unwrap();
    let (old, change) = (Timestamp::from_nanos(-5), file.change);
    let set = SetAttributes {
        mode: Some(0o100_6755),
        atime: Some(SetTime::To(old)),
        mtime: Some(SetTime::Now),
        ..SetAttributes::default()
    };
    let now = bench.set(file.inode, set).unwrap();
    assert_eq!((now.mode, now.atime), (0o6755, old));
    assert_eq!([now.mtime, now.ctime], [bench.now(); 2]);
    assert!(now.change > change);
    assert_eq!(bench.set(GONE, set), Err(ErrorCode::StaleInode));
    // Root's chown leaves the bits to root's chmod; a user's clears them.
    let owner = SetAttributes {
        uid: Some(1000),
        gid: Some(100),
        ..SetAttributes::default()
    };
    assert_eq!(bench.set(file.inode, owner).unwrap().mode, 0o6755);
    bench.caller = USER;
    assert_eq!(bench.set(file.inode, owner).unwrap().mode, 0o755);
    bench.chmod(file.inode, 0o6745);
    assert_eq!(
        bench.set(file.inode, owner).unwrap().mode,
        0o2745,
        "setgid without group execute is none"
    );
    let directory = bench.mkdir(TOP, "d").unwrap().inode;
    bench.chmod(directory, 0o6755);
    assert_eq!(bench.set(directory, owner).unwrap().mode, 0o6755);
}

#[test]
fn a_commit_comes_before_the_attributes_it_travels_with() {
    let mut bench = Bench::new();
    let inode = bench.create(TOP, "a").unwrap().inode;
    let old = Timestamp::from_nanos(1);
    let set = SetAttributes {
        mtime: Some(SetTime::To(old)),
        ..SetAttributes::default()
    };
    let commit = Some(WriteCommit {
        sparse: false,
        extend_to_bytes: Some(100),
        mtime: None,
        clear_suid: false,
        growing: false,
        cut: CutEpoch::NONE,
    });
    let now = bench.entry(NamespaceOp::SetAttributes { inode, set, commit }).unwrap();
    assert_eq!((now.length_bytes, now.mtime, now.ctime), (100, old, bench.now()));
}

/// Who looks before a write is told and after sees one ctime.
#[test]
fn a_write_that_is_told_later_changes_the_file_when_it_was_made() {
    let mut bench = Bench::new();
    let inode = bench.create(TOP, "a").unwrap().inode;
    let commit = |bench: &mut Bench, mtime| {
        let commit = WriteCommit {
            sparse: false,
            extend_to_bytes: Some(5),
            mtime: Some(mtime),
            clear_suid: false,
            growing: false,
            cut: CutEpoch::NONE,
        };
        bench.entry(NamespaceOp::CommitWrite { inode, commit }).unwrap()
    };
    bench.create(TOP, "b").unwrap();
    let made = bench.now();
    bench.create(TOP, "c").unwrap();
    let now = commit(&mut bench, made);
    assert_eq!((now.mtime, now.ctime), (made, made));
    // Chosen by utimes: the change itself is now.
    let old = Timestamp::from_nanos(1);
    let now = commit(&mut bench, old);
    assert_eq!((now.mtime, now.ctime), (old, bench.now()));
    // By a clock that is ahead.
    let ahead = Timestamp::from_nanos(1 << 60);
    let now = commit(&mut bench, ahead);
    assert_eq!((now.mtime, now.ctime), (ahead, bench.now()));
}

#[test]
fn writes_extend_and_lengths_are_exact() {
    let mut bench = Bench::new();
    let inode = bench.create(TOP, "a").unwrap().inode;
    bench.chmod(inode, 0o6755);
    let commit = |bench: &mut Bench, to, clear_suid| {
        let cut = bench.stat(inode)?.file.unwrap().cut;
        let commit = WriteCommit {
            sparse: false,
            extend_to_bytes: to,
            mtime: None,
            clear_suid,
            growing: false,
            cut,
        };
        bench.entry(NamespaceOp::CommitWrite { inode, commit })
    };
    let length = |bench: &mut Bench, inode, length_bytes| {
        let cut = bench.begin_cut(inode, length_bytes)?;
        bench.set_length(inode, length_bytes, cut)
    };
    assert_eq!(commit(&mut bench, Some(10), false).unwrap().length_bytes, 10);
    assert_eq!(commit(&mut bench, Some(5), false).unwrap().mode, 0o6755);
    let now = commit(&mut bench, None, true).unwrap();
    assert_eq!((now.length_bytes, now.mode, now.mtime), (10, 0o755, bench.now()));
    assert_eq!(now.file.unwrap().versions.get(ActorId(bench.session.0)), 3);
    let now = length(&mut bench, inode, 3).unwrap();
    assert_eq!((now.length_bytes, now.mtime, now.ctime), (3, bench.now(), bench.now()));
    assert_eq!(length(&mut bench, inode, u64::MAX), Err(ErrorCode::FileTooBig));
    assert_eq!(length(&mut bench, inode, 3).unwrap().length_bytes, 3);
    assert_eq!(commit(&mut bench, Some(1 << 60), false), Err(ErrorCode::FileTooBig));
    assert_eq!(bench.stat(inode).unwrap().length_bytes, 3);
    assert_eq!(length(&mut bench, TOP, 0), Err(ErrorCode::IsDirectory));
    let fifo = bench.fifo(TOP, "f").unwrap().inode;
    assert_eq!(length(&mut bench, fifo, 0), Err(ErrorCode::InvalidArgument));
}

#[test]
fn a_file_grows_only_by_what_was_written_since_its_last_cut() {
    let mut bench = Bench::new();
    let inode = bench.create(TOP, "a").unwrap().inode;
    let commit = |bench: &mut Bench, to, cut| {
        let commit = WriteCommit {
            sparse: false,
            extend_to_bytes: Some(to),
            mtime: None,
            clear_suid: false,
            growing: false,
            cut: CutEpoch(cut),
        };
        bench.entry(NamespaceOp::CommitWrite { inode, commit })
    };
    assert_eq!(commit(&mut bench, 100, 0).unwrap().length_bytes, 100);
    let first = bench.begin_cut(inode, 10).unwrap();
    assert_eq!(first, CutEpoch(1));
    let short = bench.stat(inode).unwrap();
    assert_eq!(short.length_bytes, 10, "it is short at once");
    let since = |cuts: &dfs_common::LastCuts| {
        cuts.since(CutEpoch::NONE)
            .map(|cuts| (cuts.left_bytes, cuts.truncated_to))
    };
    assert_eq!(since(&short.file.unwrap().cuts), Some((10, Some(10))));
    let longer = bench.begin_cut(inode, 11);
    assert_eq!(longer, Err(ErrorCode::StaleCut), "it would make the file longer");
    let late = bench.begin_cut_in(inode, u64::MAX, Some(CutEpoch::NONE));
    assert_eq!(late, Err(ErrorCode::StaleCut), "somebody has cut the file since");
    assert_eq!(
        commit(&mut bench, 50, 0),
        Err(ErrorCode::StaleCut),
        "written before the cut"
    );
    assert_eq!(
        commit(&mut bench, 50, 1),
        Err(ErrorCode::StaleCut),
        "the cut is under way"
    );
    assert_eq!(
        commit(&mut bench, 7, 0),
        Err(ErrorCode::StaleCut),
        "what it wrote there may be cut"
    );
    // Somebody else begins another: the first can not end any more.
    let second = bench.begin_cut(inode, u64::MAX).unwrap();
    assert_eq!(second, CutEpoch(3));
    let cut = bench.stat(inode).unwrap().file.unwrap();
    let left = cut.cuts.since(first).unwrap();
    assert_eq!(
        (left.left_bytes, left.truncated_to),
        (10, None),
        "what lies beyond the end is no part of the file"
    );
    assert_eq!(bench.set_length(inode, 80, first), Err(ErrorCode::StaleCut));
    assert_eq!(
        bench.set_length(inode, 9, second),
        Err(ErrorCode::StaleCut),
        "it never shortens"
    );
    let ended = bench.set_length(inode, 80, second).unwrap();
    assert_eq!((ended.length_bytes, ended.file.unwrap().cut), (80, CutEpoch(4)));
    assert_eq!(
        bench.set_length(inode, 90, second),
        Err(ErrorCode::StaleCut),
        "it has ended"
    );
    assert_eq!(commit(&mut bench, 100, 4).unwrap().length_bytes, 100);
    let held = NamespaceOp::SetLength {
        inode,
        length_bytes: 200,
        mtime: None,
        cut: None,
    };
    assert_eq!(bench.entry(held), Err(ErrorCode::StaleCut), "nobody holds it");
}

#[test]
fn extended_attributes() {
    let mut bench = Bench::new();
    let file = bench.create(TOP, "a").unwrap().inode;
    let remove = |bench: &mut Bench, text: &str| {
        let name = text.as_bytes().to_vec();
        bench.change(NamespaceOp::RemoveXattr { inode: file, name }).map(|_| ())
    };
    assert_eq!(bench.get_xattr(file, "user.k"), Err(ErrorCode::NoAttribute));
    assert_eq!(
        bench.set_xattr(file, "user.k", b"", XattrMode::Replace),
        Err(ErrorCode::NoAttribute)
    );
    bench.set_xattr(file, "user.k", b"1", XattrMode::Create).unwrap();
    assert_eq!(bench.stat(file).unwrap().ctime, bench.now());
    assert_eq!(
        bench.set_xattr(file, "user.k", b"2", XattrMode::Create),
        Err(ErrorCode::Exists)
    );
    bench.set_xattr(file, "user.k", b"3", XattrMode::Replace).unwrap();
    bench.set_xattr(file, "user.empty", b"", XattrMode::Either).unwrap();
    assert_eq!(bench.get_xattr(file, "user.k"), Ok(b"3".to_vec()));
    assert_eq!(bench.get_xattr(file, "user.x"), Err(ErrorCode::NoAttribute));
    assert_eq!(
        bench.read(NamespaceRead::ListXattr { inode: file }),
        Ok(NamespaceAnswer::XattrNames(vec![
            b"user.empty".to_vec(),
            b"user.k".to_vec()
        ]))
    );
    assert_eq!(remove(&mut bench, "user.x"), Err(ErrorCode::NoAttribute));
    remove(&mut bench, "user.k").unwrap();
    remove(&mut bench, "user.empty").unwrap();
    assert_eq!(
        bench.read(NamespaceRead::ListXattr { inode: file }),
        Ok(NamespaceAnswer::XattrNames(vec![]))
    );

    let either = XattrMode::Either;
    let long = format!("user.{}", "x".repeat(251));
    assert_eq!(bench.set_xattr(file, &long, b"", either), Err(ErrorCode::RangeTooSmall));
    assert_eq!(
        bench.set_xattr(file, "user.", b"", either),
        Err(ErrorCode::NotSupported)
    );
    assert_eq!(
        bench.set_xattr(file, "system.posix_acl_access", b"", either),
        Err(ErrorCode::NotSupported)
    );
    let huge = vec![0; XATTR_VALUE_MAX_BYTES + 1];
    assert_eq!(
        bench.set_xattr(file, "user.k", &huge, either),
        Err(ErrorCode::ArgumentTooBig)
    );
    assert_eq!(
        bench.set_xattr(file, "user.k", &huge[1..], either),
        Err(ErrorCode::NoSpace)
    );
    let big = &huge[..40_000];
    bench.set_xattr(file, "user.k", big, either).unwrap();
    bench.set_xattr(file, "user.k", big, either).unwrap();
    assert_eq!(bench.set_xattr(file, "user.l", big, either), Err(ErrorCode::NoSpace));
    assert_eq!(bench.set_xattr(GONE, "user.l", b"", either), Err(ErrorCode::StaleInode));
}

#[test]
fn policy_is_inherited() {
    let mut bench = Bench::new();
    let d = bench.mkdir(TOP, "d").unwrap().inode;
    let change = PolicyChange {
        write: Some(Level::All),
        ..PolicyChange::default()
    };
    bench.change(NamespaceOp::SetPolicy { inode: d, change }).unwrap();
    let policy = Policy::default().with(change);
    let below = bench.mkdir(d, "e").unwrap().inode;
    assert_eq!(bench.create(below, "f").unwrap().policy, policy);
    assert_eq!(bench.create(TOP, "f").unwrap().policy, Policy::default());
}

#[test]
fn cookies_stay_while_entries_come_and_go() {
    let mut bench = Bench::new();
    for n in 0..100 {
        bench.create(TOP, &format!("f{n}")).unwrap();
    }
    let before = bench.list(TOP, 7);
    assert_eq!(before.len(), 100);
    assert!(before.iter().all(|entry| entry.cookie >= 3));
    assert!(before.windows(2).all(|pair| pair[0].cookie < pair[1].cookie));
    for n in (0..100).step_by(2) {
        bench.unlink(TOP, &format!("f{n}")).unwrap();
        bench.create(TOP, &format!("g{n}")).unwrap();
    }
    let after = bench.list(TOP, 1000);
    assert_eq!(after.len(), 100);
    for entry in &before {
        let name = String::from_utf8_lossy(entry.name.as_bytes()).into_owned();
        let kept = name[1..].parse::<u32>().unwrap() % 2 == 1;
        let found = after.iter().find(|other| other.name == entry.name);
        assert_eq!(found.map(|found| found.cookie), kept.then_some(entry.cookie), "{name}");
    }
}

#[test]
fn names_with_one_hash_live_side_by_side() {
    let mut bench = Bench::with_hash(MemoryStore::default(), BadHash);
    let names: Vec<String> = (0..8).map(|n| format!("n{n}0")).collect();
    for text in &names {
        bench.create(TOP, text).unwrap();
    }
    assert_eq!(bench.create(TOP, "n80"), Err(ErrorCode::NoSpace));
    assert_eq!(bench.create(TOP, "n30"), Err(ErrorCode::Exists));
    // A hole before a name does not hide it.
    bench.unlink(TOP, "n20").unwrap();
    assert!(bench.lookup(TOP, "n70").is_ok());
    assert_eq!(bench.create(TOP, "n70"), Err(ErrorCode::Exists));
    assert_eq!(
        bench.rename((TOP, "n00"), (TOP, "n90"), RenameMode::NoReplace),
        Ok(None)
    );
    assert!(bench.create(TOP, "n80").is_ok());
    assert_eq!(bench.list(TOP, 3).len(), 8);
    let all: Vec<_> = bench.list(TOP, 1).into_iter().map(|entry| entry.name).collect();
    assert!(all.contains(&name("n90")) && !all.contains(&name("n00")));
}

#[test]
fn a_failed_operation_leaves_no_row_and_no_number() {
    let mut bench = Bench::new();
    bench.create(TOP, "a").unwrap();
    let counts = bench.state.counts();
    let next = |bench: &Bench| {
        let row: super::Counters = crate::store::get(bench.state.store(), &keys::COUNTERS)
            .unwrap()
            .unwrap();
        row.next_inode
    };
    let before = next(&bench);
    assert_eq!(bench.entry(create_op(TOP, "a")), Err(ErrorCode::Exists));
    assert_eq!((next(&bench), bench.state.counts()), (before, counts));
}
