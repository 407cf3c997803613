//! A state in memory with a clock that steps, for tests.

use dfs_common::wire::meta::ChangeRequest;
use dfs_common::wire::namespace::{
    Attributes, Caller, DirectoryEntry, FileKind, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead, StatFs,
    WrappedKey,
};
use dfs_common::{
    ClusterId, ErrorCode, Incarnation, InodeId, SequenceNumber, SessionId, StorageId, StoreId, Timestamp, ValidName,
};

use super::State;
use crate::command::{ClusterEvent, Command, CommandKind, Outcome};
use crate::namespace::NameHash;
use crate::store::{MemoryStore, Store};

pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);
pub(crate) const ROOT: Caller = Caller { uid: 0, gid: 0 };
pub(crate) const USER: Caller = Caller { uid: 1000, gid: 100 };

/// A fixed key: tests want the same rows each time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TestHash;

impl NameHash for TestHash {
    fn hash(&self, parent: InodeId, name: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&[9; 32]);
        hasher.update(&parent.0.to_le_bytes());
        hasher.update(name);
        let mut short = [0; 16];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        short
    }
}

/// Every name has one of two hashes, so that slots collide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BadHash;

impl NameHash for BadHash {
    fn hash(&self, _: InodeId, name: &[u8]) -> [u8; 16] {
        [name.last().copied().unwrap_or(0) & 1; 16]
    }
}

pub(crate) fn name(text: &str) -> ValidName {
    ValidName::new(text.as_bytes()).unwrap()
}

pub(crate) fn key() -> WrappedKey {
    WrappedKey {
        kek_version: 1,
        bytes: vec![5; 60],
    }
}

pub(crate) fn create_op(parent: InodeId, text: &str) -> NamespaceOp {
    NamespaceOp::Create {
        parent,
        name: name(text),
        mode: 0o644,
        exclusive: true,
        key: key(),
    }
}

pub(crate) fn three_nodes() -> CommandKind {
    let up = |node: u32| ClusterEvent::NodeUp {
        node: StorageId(node),
        incarnation: Incarnation(u64::from(node)),
        store: StoreId::default(),
        address: ([127, 0, 0, 1], 7000 + node as u16).into(),
    };
    CommandKind::Cluster(vec![up(1), up(2), up(3)])
}

/// A state with storage and one session; one nanosecond passes with each command.
#[derive(Debug)]
pub(crate) struct Bench<S: Store = MemoryStore> {
    pub(crate) state: State<S>,
    pub(crate) session: SessionId,
    pub(crate) sequence: u64,
    pub(crate) clock: i64,
    pub(crate) caller: Caller,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::over(MemoryStore::default())
    }
}

impl<S: Store> Bench<S> {
    pub(crate) fn over(store: S) -> Self {
        Self::with_hash(store, TestHash)
    }

    pub(crate) fn with_hash(store: S, hash: impl NameHash) -> Self {
        let mut bench = Self {
            state: State::open(store, hash, CLUSTER).unwrap(),
            session: SessionId(0),
            sequence: 0,
            clock: 1000,
            caller: ROOT,
        };
        bench.submit(three_nodes());
        let label = "bench".to_owned();
        match bench.submit(CommandKind::OpenSession { label }) {
            Outcome::SessionOpened(session) => bench.session = session,
            other => panic!("{other:?}"),
        }
        bench
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.clock)
    }

    pub(crate) fn submit(&mut self, kind: CommandKind) -> Outcome {
        self.clock += 1;
        let command = Command { time: self.now(), kind };
        let position = self.clock.to_be_bytes();
        self.state.apply(&[command], &position).unwrap().remove(0)
    }

    pub(crate) fn request(&mut self, op: NamespaceOp) -> ChangeRequest {
        self.sequence += 1;
        ChangeRequest {
            session: self.session,
            sequence: SequenceNumber(self.sequence),
            answered_below: SequenceNumber(self.sequence),
            caller: self.caller,
            op,
            hold: None,
            shown: None,
        }
    }

    pub(crate) fn change(&mut self, op: NamespaceOp) -> Result<NamespaceChange, ErrorCode> {
        let request = self.request(op);
        match self.submit(CommandKind::Change(request)) {
            Outcome::Change(answer) => answer.map_err(|error| error.code),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn entry(&mut self, op: NamespaceOp) -> Result<Attributes, ErrorCode> {
        match self.change(op)? {
            NamespaceChange::Entry { attributes, .. } => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn read(&self, read: NamespaceRead) -> Result<NamespaceAnswer, ErrorCode> {
        self.state
            .read(self.session, &[read], StatFs::default())
            .unwrap()
            .remove(0)
            .map_err(|error| error.code)
    }

    pub(crate) fn stat(&self, inode: InodeId) -> Result<Attributes, ErrorCode> {
        match self.read(NamespaceRead::GetAttributes { inode })? {
            NamespaceAnswer::Attributes(attributes) => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn lookup(&self, parent: InodeId, text: &str) -> Result<Attributes, ErrorCode> {
        let read = NamespaceRead::Lookup {
            parent,
            name: name(text),
        };
        match self.read(read)? {
            NamespaceAnswer::Attributes(attributes) => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    /// All entries, read by pages of `limit`.
    pub(crate) fn list(&self, inode: InodeId, limit: u32) -> Vec<DirectoryEntry> {
        let mut all: Vec<DirectoryEntry> = Vec::new();
        loop {
            let cookie = all.last().map_or(0, |entry| entry.cookie);
            match self
                .read(NamespaceRead::ReadDirectory { inode, cookie, limit })
                .unwrap()
            {
                NamespaceAnswer::Directory { entries, end } => {
                    all.extend(entries);
                    if end {
                        return all;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn create(&mut self, parent: InodeId, text: &str) -> Result<Attributes, ErrorCode> {
        self.entry(create_op(parent, text))
    }

    pub(crate) fn mkdir(&mut self, parent: InodeId, text: &str) -> Result<Attributes, ErrorCode> {
        let (name, mode) = (name(text), 0o755);
        self.entry(NamespaceOp::Mkdir { parent, name, mode })
    }

    pub(crate) fn fifo(&mut self, parent: InodeId, text: &str) -> Result<Attributes, ErrorCode> {
        self.entry(NamespaceOp::Mknod {
            parent,
            name: name(text),
            kind: FileKind::Fifo,
            mode: 0o600,
            rdev: 0,
            key: None,
        })
    }

    pub(crate) fn symlink(&mut self, parent: InodeId, text: &str, target: &str) -> Result<Attributes, ErrorCode> {
        self.entry(NamespaceOp::Symlink {
            parent,
            name: name(text),
            target: target.as_bytes().to_vec(),
        })
    }

    pub(crate) fn link(&mut self, inode: InodeId, parent: InodeId, text: &str) -> Result<Attributes, ErrorCode> {
        let name = name(text);
        self.entry(NamespaceOp::Link { inode, parent, name })
    }

    pub(crate) fn unlink(&mut self, parent: InodeId, text: &str) -> Result<u32, ErrorCode> {
        let name = name(text);
        match self.change(NamespaceOp::Unlink { parent, name })? {
            NamespaceChange::Removed { nlink, .. } => Ok(nlink),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn rmdir(&mut self, parent: InodeId, text: &str) -> Result<(), ErrorCode> {
        let name = name(text);
        self.change(NamespaceOp::Rmdir { parent, name }).map(|_| ())
    }

    pub(crate) fn rows(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        self.state
            .export::<crate::store::StoreError>(&mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                Ok(())
            })
            .unwrap();
        rows
    }
}
