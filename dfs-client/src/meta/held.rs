//! What this mount holds: inodes that nobody else sees or changes until it gives them up, so that it may answer for them
//! itself. Pure.
//!
//! A session holds what it has just created (see `Hold`). Of an inode that is in this table everything is known: its
//! attributes, that it has no extended attributes, and of a directory every name. Changes of such inodes are worked out
//! here as the metadata group will work them out, and told to it afterwards, in order.
//!
//! Invariants: an inode that a change outside this table touches leaves the table before that change is sent. The table is
//! empty outside an epoch. It may hold less than the group says, never more.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::units::{LINK_MAX, SYMLINK_MAX_BYTES};
use dfs_common::wire::meta::{Reservation, Shown};
use dfs_common::wire::namespace::{
    Attributes, Caller, FileAttributes, FileKind, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead,
    SetAttributes, SetTime, WriteCommit,
};
use dfs_common::{
    ActorId, ChainTableId, CutEpoch, Error, ErrorCode, HoldEpoch, InodeId, LastCuts, Layout, Result, SessionId,
    Timestamp, ValidName, VersionVector,
};

/// Bytes that `stat` shows for each entry of a directory.
const DIRECTORY_ENTRY_BYTES: u64 = 32;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;
const MODE_BITS: u32 = 0o7777;

/// Inodes in the table. Beyond it all is given up, and a new epoch begins.
const MAX_HELD: usize = 65_536;

/// Inodes and names that are remembered as touched while creations are under way, which under steady load is always.
const MAX_TOUCHED: usize = 4_096;

/// What comes from outside to work out a change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) session: SessionId,
    pub(crate) now: Timestamp,
    /// Where new files lie.
    pub(crate) table: Option<ChainTableId>,
}

/// A change as its caller sees it, and as the group has to make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Foreseen {
    pub(crate) change: NamespaceChange,
    pub(crate) shown: Shown,
}

/// Why a change is not worked out here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done here; the group is told.
    Foreseen(Box<Foreseen>),
    /// It can not be done.
    Refused(ErrorCode),
    /// No inode numbers are left; new ones come.
    NoNumbers,
    /// Not about what is held, or of a kind that is not worked out here.
    NotHere,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Held {
    epoch: Option<HoldEpoch>,
    next: InodeId,
    end: InodeId,
    inodes: BTreeMap<InodeId, Attributes>,
    /// Names of held inodes; of a held directory all names.
    names: BTreeMap<InodeId, BTreeMap<ValidName, InodeId>>,
    /// Names that were ever added in this epoch: bounds both maps.
    added: usize,
    /// Creations under way that may bring a hold.
    creating: usize,
    /// What changes outside the table touched meanwhile: an answer that is older does not count.
    touched: BTreeSet<InodeId>,
    touched_names: BTreeSet<(InodeId, ValidName)>,
    /// Rises when what was touched became too much to remember: creations sent before count for nothing then.
    generation: u64,
}

impl Held {
    pub(crate) fn begin(&mut self, reservation: Reservation) {
        if self.epoch != Some(reservation.epoch) {
            self.clear();
        }
        self.epoch = Some(reservation.epoch);
        self.next = reservation.first;
        self.end = reservation.end;
    }

    /// The epoch is over.
    pub(crate) fn clear(&mut self) {
        self.epoch = None;
        self.next = self.end;
        self.inodes.clear();
        self.names.clear();
        self.added = 0;
    }

    pub(crate) const fn epoch(&self) -> Option<HoldEpoch> {
        self.epoch
    }

    /// Whether it is time to give everything up and begin anew.
    pub(crate) const fn is_full(&self) -> bool {
        self.added >= MAX_HELD
    }

    pub(crate) const fn numbers_left(&self) -> u64 {
        self.end.0.saturating_sub(self.next.0)
    }

    pub(crate) fn attributes(&self, inode: InodeId) -> Option<&Attributes> {
        self.inodes.get(&inode)
    }

    /// A change outside the table removed it, whatever it was called.
    pub(crate) fn gone(&mut self, inode: InodeId) {
        self.drop_inode(inode);
    }

    /// End of the last range of numbers that this mount knows of.
    pub(crate) const fn known_end(&self) -> InodeId {
        self.end
    }

    /// A creation is sent that may bring a hold. What is returned goes with its answer.
    pub(crate) fn sending(&mut self) -> u64 {
        self.creating += 1;
        self.generation
    }

    /// Its answer, if it brought one.
    pub(crate) fn answered(
        &mut self,
        (epoch, generation): (HoldEpoch, u64),
        created: Option<(InodeId, &ValidName, &Attributes)>,
    ) {
        if let Some((parent, name, attributes)) = created
            && self.epoch == Some(epoch)
            && self.generation == generation
            && !self.touched.contains(&attributes.inode)
            && !self.touched_names.contains(&(parent, name.clone()))
        {
            self.add(parent, name, attributes.clone());
        }
        self.creating = self.creating.saturating_sub(1);
        if self.creating == 0 {
            self.touched.clear();
            self.touched_names.clear();
        }
    }

    fn add(&mut self, parent: InodeId, name: &ValidName, attributes: Attributes) {
        let inode = attributes.inode;
        self.added += 1;
        self.names.entry(parent).or_default().insert(name.clone(), inode);
        self.inodes.insert(inode, attributes);
    }

    /// A change that is not worked out here is about to be sent: what it touches is not known here any more.
    pub(crate) fn leave(&mut self, op: &NamespaceOp) {
        if self.touched.len() + self.touched_names.len() >= MAX_TOUCHED {
            self.generation += 1;
            self.touched.clear();
            self.touched_names.clear();
        }
        for parent in op.parents() {
            self.drop_inode(parent);
        }
        match op {
            NamespaceOp::Unlink { parent, name } | NamespaceOp::Rmdir { parent, name } => {
                self.drop_name(*parent, name);
            }
            NamespaceOp::Rename {
                parent,
                name,
                new_parent,
                new_name,
                ..
            } => {
                self.drop_name(*parent, name);
                self.drop_name(*new_parent, new_name);
            }
            NamespaceOp::Link { inode, .. }
            | NamespaceOp::SetAttributes { inode, .. }
            | NamespaceOp::BeginCut { inode, .. }
            | NamespaceOp::SetLength { inode, .. }
            | NamespaceOp::CommitWrite { inode, .. }
            | NamespaceOp::SetXattr { inode, .. }
            | NamespaceOp::RemoveXattr { inode, .. }
            | NamespaceOp::SetPolicy { inode, .. } => self.drop_inode(*inode),
            NamespaceOp::Create { .. }
            | NamespaceOp::Mkdir { .. }
            | NamespaceOp::Mknod { .. }
            | NamespaceOp::Symlink { .. } => {}
        }
    }

    fn drop_inode(&mut self, inode: InodeId) {
        self.inodes.remove(&inode);
        if self.creating > 0 {
            self.touched.insert(inode);
        }
    }

    fn drop_name(&mut self, parent: InodeId, name: &ValidName) {
        if let Some(inode) = self.names.get_mut(&parent).and_then(|names| names.remove(name)) {
            self.drop_inode(inode);
        }
        if self.creating > 0 {
            self.touched_names.insert((parent, name.clone()));
        }
    }

    /// The answer, if it lies here.
    pub(crate) fn read(&self, read: &NamespaceRead) -> Option<Result<NamespaceAnswer>> {
        match read {
            NamespaceRead::GetAttributes { inode } => {
                let attributes = self.inodes.get(inode)?;
                Some(Ok(NamespaceAnswer::Attributes(attributes.clone())))
            }
            NamespaceRead::Lookup { parent, name } => {
                let directory = self.inodes.get(parent)?;
                if directory.kind != FileKind::Directory {
                    return Some(Err(ErrorCode::NotDirectory.into()));
                }
                match self.names.get(parent).and_then(|names| names.get(name)) {
                    None => Some(Err(ErrorCode::NotFound.into())),
                    Some(inode) => {
                        let attributes = self.inodes.get(inode)?;
                        Some(Ok(NamespaceAnswer::Attributes(attributes.clone())))
                    }
                }
            }
            NamespaceRead::GetXattr { inode, .. } if self.inodes.contains_key(inode) => {
                Some(Err(ErrorCode::NoAttribute.into()))
            }
            NamespaceRead::ListXattr { inode } if self.inodes.contains_key(inode) => {
                Some(Ok(NamespaceAnswer::XattrNames(Vec::new())))
            }
            _ => None,
        }
    }

    /// Whether a change is of a kind that is worked out here, and about what is held.
    pub(crate) fn is_about(&self, op: &NamespaceOp) -> bool {
        let subject = match op {
            NamespaceOp::Create { parent, .. }
            | NamespaceOp::Mkdir { parent, .. }
            | NamespaceOp::Symlink { parent, .. } => parent,
            NamespaceOp::SetAttributes { inode, .. }
            | NamespaceOp::CommitWrite { inode, .. }
            | NamespaceOp::SetLength { inode, .. } => inode,
            _ => return false,
        };
        self.inodes.contains_key(subject)
    }

    /// Works out a change of what is held.
    pub(crate) fn change(&mut self, setting: Setting, caller: Caller, op: &NamespaceOp) -> Outcome {
        if self.epoch.is_none() {
            return Outcome::NotHere;
        }
        match op {
            NamespaceOp::Create {
                parent,
                name,
                mode,
                exclusive,
                key,
            } => {
                let Some(table) = setting.table else {
                    return Outcome::NotHere;
                };
                if let Some(&inode) = self.names.get(parent).and_then(|names| names.get(name))
                    && self.inodes.contains_key(parent)
                {
                    return self.existing(inode, *exclusive, setting.now);
                }
                let new = New {
                    mode: *mode,
                    kind: FileKind::Regular,
                    length_bytes: 0,
                };
                self.create(setting, caller, (*parent, name), new, |inode| {
                    Some(FileAttributes {
                        layout: Layout::new(table, inode.0 as u32),
                        key: key.clone(),
                        versions: VersionVector::default(),
                        cut: CutEpoch::NONE,
                        cuts: LastCuts::default(),
                        sparse: false,
                    })
                })
            }
            NamespaceOp::Mkdir { parent, name, mode } => {
                let new = New {
                    mode: *mode,
                    kind: FileKind::Directory,
                    length_bytes: 0,
                };
                self.create(setting, caller, (*parent, name), new, |_| None)
            }
            NamespaceOp::Symlink { parent, name, target } => {
                if target.is_empty() || target.len() > SYMLINK_MAX_BYTES || target.contains(&0) {
                    return Outcome::NotHere;
                }
                let new = New {
                    mode: 0o777,
                    kind: FileKind::Symlink,
                    length_bytes: target.len() as u64,
                };
                self.create(setting, caller, (*parent, name), new, |_| None)
            }
            NamespaceOp::SetAttributes { inode, set, commit } => self.edit(*inode, setting, |attributes| {
                commit
                    .as_ref()
                    .is_none_or(|commit| commit_to(attributes, setting, commit))
                    && set_attributes(attributes, setting.now, caller, set)
            }),
            NamespaceOp::CommitWrite { inode, commit } => {
                self.edit(*inode, setting, |attributes| commit_to(attributes, setting, commit))
            }
            NamespaceOp::SetLength {
                inode,
                length_bytes,
                mtime,
                cut: None,
            } => self.edit(*inode, setting, |attributes| {
                let before = attributes.length_bytes;
                let done = *length_bytes >= before
                    && !is_cutting(attributes)
                    && write_to(attributes, setting, *mtime, |_| *length_bytes);
                if done && *length_bytes > before {
                    set_sparse(attributes);
                }
                done
            }),
            _ => Outcome::NotHere,
        }
    }

    /// A name that is there already.
    fn existing(&self, inode: InodeId, exclusive: bool, now: Timestamp) -> Outcome {
        if exclusive {
            return Outcome::Refused(ErrorCode::Exists);
        }
        match self.inodes.get(&inode) {
            Some(attributes) => Outcome::Foreseen(Box::new(Foreseen {
                change: NamespaceChange::Entry {
                    attributes: attributes.clone(),
                    created: false,
                    held: false,
                },
                shown: Shown { time: now, inode: None },
            })),
            None => Outcome::NotHere,
        }
    }

    fn create(
        &mut self,
        setting: Setting,
        caller: Caller,
        (parent, name): (InodeId, &ValidName),
        new: New,
        file: impl FnOnce(InodeId) -> Option<FileAttributes>,
    ) -> Outcome {
        let Some(directory) = self.inodes.get_mut(&parent) else {
            return Outcome::NotHere;
        };
        if directory.kind != FileKind::Directory {
            return Outcome::Refused(ErrorCode::NotDirectory);
        }
        if self.names.get(&parent).is_some_and(|names| names.contains_key(name)) {
            return Outcome::Refused(ErrorCode::Exists);
        }
        let is_directory = new.kind == FileKind::Directory;
        if is_directory && directory.nlink >= LINK_MAX {
            return Outcome::NotHere;
        }
        if self.next >= self.end {
            return Outcome::NoNumbers;
        }
        let inode = self.next;
        self.next = inode.next();
        let now = setting.now;
        let setgid = directory.mode & SETGID;
        let attributes = Attributes {
            inode,
            kind: new.kind,
            mode: (new.mode & MODE_BITS) | if is_directory { setgid } else { 0 },
            nlink: if is_directory { 2 } else { 1 },
            uid: caller.uid,
            gid: if setgid == 0 { caller.gid } else { directory.gid },
            rdev: 0,
            length_bytes: new.length_bytes,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            change: 1,
            file: file(inode),
            policy: directory.policy,
        };
        directory.nlink += u32::from(is_directory);
        directory.length_bytes += DIRECTORY_ENTRY_BYTES;
        directory.mtime = now;
        touch(directory, now);
        self.add(parent, name, attributes.clone());
        Outcome::Foreseen(Box::new(Foreseen {
            change: NamespaceChange::Entry {
                attributes,
                created: true,
                held: true,
            },
            shown: Shown {
                time: now,
                inode: Some(inode),
            },
        }))
    }

    /// `edit` says whether it could be done here; if not, nothing is changed.
    fn edit(&mut self, inode: InodeId, setting: Setting, edit: impl FnOnce(&mut Attributes) -> bool) -> Outcome {
        let Some(attributes) = self.inodes.get_mut(&inode) else {
            return Outcome::NotHere;
        };
        let mut edited = attributes.clone();
        if !edit(&mut edited) {
            return Outcome::NotHere;
        }
        attributes.clone_from(&edited);
        Outcome::Foreseen(Box::new(Foreseen {
            change: NamespaceChange::Entry {
                attributes: edited,
                created: false,
                held: false,
            },
            shown: Shown {
                time: setting.now,
                inode: None,
            },
        }))
    }
}

/// What differs between kinds of new inodes.
#[derive(Clone, Copy)]
struct New {
    mode: u32,
    kind: FileKind,
    length_bytes: u64,
}

fn touch(attributes: &mut Attributes, now: Timestamp) {
    attributes.ctime = now;
    attributes.change += 1;
}

fn drop_privileges(attributes: &mut Attributes) {
    attributes.mode &= !SETUID;
    if attributes.mode & GROUP_EXECUTE != 0 {
        attributes.mode &= !SETGID;
    }
}

fn set_attributes(attributes: &mut Attributes, now: Timestamp, caller: Caller, set: &SetAttributes) -> bool {
    let time = |set| match set {
        SetTime::Now => now,
        SetTime::To(time) => time,
    };
    let owner = set.uid.is_some() || set.gid.is_some();
    if owner && caller.uid != 0 && attributes.kind != FileKind::Directory {
        drop_privileges(attributes);
    }
    if let Some(mode) = set.mode {
        attributes.mode = mode & MODE_BITS;
    }
    attributes.uid = set.uid.unwrap_or(attributes.uid);
    attributes.gid = set.gid.unwrap_or(attributes.gid);
    attributes.atime = set.atime.map_or(attributes.atime, time);
    attributes.mtime = set.mtime.map_or(attributes.mtime, time);
    touch(attributes, set.ctime.unwrap_or(now));
    true
}

fn commit_to(attributes: &mut Attributes, setting: Setting, commit: &WriteCommit) -> bool {
    if commit.is_bare() {
        return attributes.file.is_some();
    }
    let grows_to = commit.extend_to_bytes.unwrap_or(0);
    let in_epoch = |file: &FileAttributes| commit.cut == file.cut && !file.cut.is_cutting();
    if commit.extend_to_bytes.is_some() && !attributes.file.as_ref().is_some_and(in_epoch) {
        return false;
    }
    let done = write_to(attributes, setting, commit.mtime, |length| length.max(grows_to));
    if done && commit.clear_suid {
        drop_privileges(attributes);
    }
    if done && commit.sparse {
        set_sparse(attributes);
    }
    done
}

fn set_sparse(attributes: &mut Attributes) {
    if let Some(file) = &mut attributes.file {
        file.sparse = true;
    }
}

fn is_cutting(attributes: &Attributes) -> bool {
    attributes.file.as_ref().is_some_and(|file| file.cut.is_cutting())
}

fn write_to(
    attributes: &mut Attributes,
    setting: Setting,
    mtime: Option<Timestamp>,
    length: impl FnOnce(u64) -> u64,
) -> bool {
    let length = length(attributes.length_bytes);
    let Some(file) = &mut attributes.file else {
        return false;
    };
    if length > file.layout.max_length_bytes().min(i64::MAX as u64) {
        return false;
    }
    file.versions.bump(ActorId(setting.session.0));
    attributes.length_bytes = length;
    attributes.mtime = mtime.unwrap_or(setting.now);
    let ctime = Timestamp::ctime_of_write(attributes.ctime, mtime, setting.now);
    touch(attributes, ctime);
    true
}

/// What a change that failed after it was shown means for who asks about its inode.
pub(crate) fn failure(op: &NamespaceOp, shown: Shown) -> Option<InodeId> {
    match op {
        NamespaceOp::SetAttributes { inode, .. }
        | NamespaceOp::SetLength { inode, .. }
        | NamespaceOp::CommitWrite { inode, .. } => Some(*inode),
        _ => shown.inode,
    }
}

/// For the log.
pub(crate) fn lost(error: &Error, what: &str) -> Error {
    Error::new(
        error.code,
        format!("{what}: it was acknowledged by this mount, and the metadata group then refused it: {error}"),
    )
}
