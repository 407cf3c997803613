//! What a mount foresees is what the metadata group does: both work through the same random changes.

use dfs_common::wire::meta::{ChangeRequest, Reservation, Shown};
use dfs_common::wire::namespace::{
    Attributes, Caller, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead, RenameMode, SetAttributes,
    SetTime, StatFs, WrappedKey, WriteCommit, XattrMode,
};
use dfs_common::{
    ClusterId, CutEpoch, Error, Incarnation, InodeId, SequenceNumber, SessionId, StorageId, StoreId, Timestamp,
    ValidName,
};
use dfs_meta::command::{ClusterEvent, Command, CommandKind, Outcome as Done};
use dfs_meta::namespace::{NameHash, Obstacle};
use dfs_meta::state::State;
use dfs_meta::store::MemoryStore;
use proptest::prelude::*;

use super::held::{Foreseen, Held, Outcome, Setting};

const TOP: InodeId = InodeId::ROOT;

struct Hash;

impl NameHash for Hash {
    fn hash(&self, parent: InodeId, name: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&parent.0.to_le_bytes()).update(name);
        let mut short = [0; 16];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        short
    }
}

/// The group, a mount that holds, and another that does not.
struct World {
    state: State<MemoryStore>,
    clock: i64,
    held: Held,
    queue: Vec<(Caller, NamespaceOp, Foreseen)>,
    mount: SessionId,
    other: SessionId,
    sequence: u64,
    /// Inodes that were ever named, to pick from.
    inodes: Vec<InodeId>,
    local: usize,
}

impl World {
    fn new() -> Self {
        let state = State::open(MemoryStore::default(), Hash, ClusterId([7; 16])).unwrap();
        let mut world = Self {
            state,
            clock: 1_000,
            held: Held::default(),
            queue: Vec::new(),
            mount: SessionId(0),
            other: SessionId(0),
            sequence: 0,
            inodes: vec![TOP],
            local: 0,
        };
        let up = |node: u32| ClusterEvent::NodeUp {
            node: StorageId(node),
            incarnation: Incarnation(1),
            store: StoreId::default(),
            address: ([127, 0, 0, 1], 7_000 + node as u16).into(),
        };
        world.submit(CommandKind::Cluster(vec![up(1), up(2), up(3)]));
        world.mount = world.session();
        world.other = world.session();
        world.begin(100);
        world
    }

    fn submit(&mut self, kind: CommandKind) -> Done {
        self.clock += 1;
        let command = Command {
            time: Timestamp::from_nanos(self.clock),
            kind,
        };
        self.state.apply(&[command], &[1]).unwrap().remove(0)
    }

    fn session(&mut self) -> SessionId {
        match self.submit(CommandKind::OpenSession { label: String::new() }) {
            Done::SessionOpened(session) => session,
            other => panic!("{other:?}"),
        }
    }

    fn begin(&mut self, count: u64) {
        let (session, known) = (self.mount, self.held.known_end());
        match self.submit(CommandKind::Reserve { session, known, count }) {
            Done::Reserved(Ok(reservation)) => self.held.begin(reservation),
            other => panic!("{other:?}"),
        }
    }

    fn request(&mut self, session: SessionId, caller: Caller, op: NamespaceOp, shown: Option<Shown>) -> ChangeRequest {
        self.sequence += 1;
        let holds = session == self.mount;
        ChangeRequest {
            session,
            sequence: SequenceNumber(self.sequence),
            answered_below: SequenceNumber(self.sequence),
            caller,
            op,
            hold: self.held.epoch().filter(|_| holds),
            shown,
        }
    }

    /// Tells all that was shown; each is as it was shown.
    fn flush(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        for (caller, op, foreseen) in queue {
            let request = self.request(self.mount, caller, op.clone(), Some(foreseen.shown));
            match self.submit(CommandKind::Changes(vec![request])) {
                Done::Changes(answers) => assert_eq!(answers, [Ok(foreseen.change)], "{op:?}"),
                other => panic!("{other:?} to {op:?}"),
            }
        }
    }

    fn change(&mut self, caller: Caller, op: &NamespaceOp) -> Result<NamespaceChange, Error> {
        // The mount's clock is its own.
        let setting = Setting {
            session: self.mount,
            now: Timestamp::from_nanos(self.clock + 500),
            table: self.state.routing().default_table,
        };
        if self.held.numbers_left() == 0 {
            self.flush();
            self.begin(50);
        }
        match self.held.change(setting, caller, op) {
            Outcome::Foreseen(foreseen) => {
                let change = foreseen.change.clone();
                self.queue.push((caller, op.clone(), *foreseen));
                self.local += 1;
                Ok(change)
            }
            Outcome::Refused(code) => {
                // The group would have said the same.
                self.flush();
                let request = self.request(self.mount, caller, op.clone(), None);
                match self.submit(CommandKind::Change(request)) {
                    Done::Change(Err(error)) => assert_eq!(error.code, code, "{op:?}"),
                    other => panic!("{other:?} to {op:?}"),
                }
                Err(code.into())
            }
            Outcome::NoNumbers => panic!("numbers were asked for"),
            Outcome::NotHere => {
                self.held.leave(op);
                self.flush();
                let epoch = self.held.epoch();
                let generation = epoch.map_or(0, |_| self.held.sending());
                let request = self.request(self.mount, caller, op.clone(), None);
                let answer = self.send_past_obstacles(&request);
                if let Some(epoch) = epoch {
                    let created = match (op, &answer) {
                        (
                            NamespaceOp::Create { parent, name, .. }
                            | NamespaceOp::Mkdir { parent, name, .. }
                            | NamespaceOp::Symlink { parent, name, .. },
                            Ok(NamespaceChange::Entry {
                                attributes, held: true, ..
                            }),
                        ) => Some((*parent, name, attributes)),
                        _ => None,
                    };
                    self.held.answered((epoch, generation), created);
                }
                answer
            }
        }
    }

    /// Everything that lies here is what the group says to this mount.
    fn compare(&mut self) {
        self.flush();
        for &inode in &self.inodes {
            let read = NamespaceRead::GetAttributes { inode };
            if let Some(known) = self.held.read(&read) {
                assert_eq!(known, self.ask(self.mount, read).unwrap());
            }
            for number in 0..NAMES {
                let read = NamespaceRead::Lookup {
                    parent: inode,
                    name: name(number),
                };
                if let Some(known) = self.held.read(&read) {
                    let known = known.map_err(|error| error.code);
                    let said = self.ask(self.mount, read.clone()).unwrap();
                    assert_eq!(known, said.map_err(|error| error.code), "{read:?}");
                }
            }
        }
    }

    fn ask(&self, session: SessionId, read: NamespaceRead) -> Result<Result<NamespaceAnswer, Error>, Obstacle> {
        let mut answers = self.state.read(session, &[read], StatFs::default())?;
        Ok(answers.remove(0))
    }

    /// What the leader does about it.
    fn clear(&mut self, obstacle: Obstacle) {
        match obstacle {
            Obstacle::Held(hold) => {
                assert_eq!(hold.session, self.mount);
                self.flush();
                self.held.clear();
                self.submit(CommandKind::Release(hold));
            }
            // There is no data in any chunk.
            Obstacle::Growing(growing) => {
                self.submit(CommandKind::FoundLength(growing));
            }
        }
    }

    fn ask_past_obstacles(&mut self, session: SessionId, read: &NamespaceRead) -> Result<NamespaceAnswer, Error> {
        loop {
            match self.ask(session, read.clone()) {
                Ok(answer) => return answer,
                Err(obstacle) => self.clear(obstacle),
            }
        }
    }

    fn send_past_obstacles(&mut self, request: &ChangeRequest) -> Result<NamespaceChange, Error> {
        loop {
            match self.submit(CommandKind::Change(request.clone())) {
                Done::Change(answer) => return answer,
                Done::Obstructed(obstacle) => self.clear(obstacle),
                other => panic!("{other:?} to {request:?}"),
            }
        }
    }

    /// The other mount looks, or changes something: it sees all that this one has shown.
    fn interfere(&mut self, inode: InodeId, op: Option<NamespaceOp>) {
        let is_secret = |(_, _, foreseen): &(_, _, Foreseen)| foreseen.shown.inode == Some(inode);
        if self.queue.iter().any(is_secret) {
            // Nobody else can know its number: its name is in a directory that is held, or was sent after the queue.
            return;
        }
        let shown = self.held.attributes(inode).cloned();
        let read = NamespaceRead::GetAttributes { inode };
        let seen = self.ask_past_obstacles(self.other, &read);
        if let Some(shown) = shown {
            assert_eq!(seen, Ok(NamespaceAnswer::Attributes(shown)));
        }
        if let Some(op) = op {
            let request = self.request(self.other, ROOT, op, None);
            let _ = self.send_past_obstacles(&request);
        }
        if self.held.epoch().is_none() {
            self.begin(40);
        }
    }
}

const ROOT: Caller = Caller { uid: 0, gid: 0 };
const NAMES: u8 = 5;

fn name(number: u8) -> ValidName {
    ValidName::new(vec![b'a' + number % NAMES]).unwrap()
}

fn op(kind: u8, at: InodeId, other: InodeId, number: u8, value: u32) -> NamespaceOp {
    let (parent, name) = (at, name(number));
    let inode = at;
    let time = Timestamp::from_nanos(i64::from(value));
    match kind % 13 {
        0 | 1 => NamespaceOp::Create {
            parent,
            name,
            mode: value,
            exclusive: !value.is_multiple_of(3),
            key: WrappedKey {
                kek_version: 1,
                bytes: vec![number; 60],
            },
        },
        2 | 3 => NamespaceOp::Mkdir {
            parent,
            name,
            mode: value,
        },
        4 => NamespaceOp::Symlink {
            parent,
            name,
            target: vec![b'x'; (value % 9) as usize],
        },
        5 | 6 => NamespaceOp::SetAttributes {
            inode,
            set: SetAttributes {
                mode: value.is_multiple_of(2).then_some(value),
                uid: value.is_multiple_of(3).then_some(value % 7),
                gid: value.is_multiple_of(5).then_some(value % 7),
                atime: value.is_multiple_of(7).then_some(SetTime::Now),
                mtime: value.is_multiple_of(11).then_some(SetTime::To(time)),
                ctime: value.is_multiple_of(13).then_some(time),
            },
            commit: value.is_multiple_of(17).then_some(WriteCommit {
                sparse: value.is_multiple_of(3),
                extend_to_bytes: Some(u64::from(value)),
                mtime: None,
                clear_suid: true,
                growing: value.is_multiple_of(2),
                cut: CutEpoch::NONE,
            }),
        },
        7 => NamespaceOp::CommitWrite {
            inode,
            commit: WriteCommit {
                sparse: value.is_multiple_of(3),
                extend_to_bytes: value.is_multiple_of(2).then_some(u64::from(value)),
                mtime: value.is_multiple_of(3).then_some(time),
                clear_suid: value.is_multiple_of(5),
                growing: value.is_multiple_of(4),
                cut: CutEpoch::NONE,
            },
        },
        8 => NamespaceOp::SetLength {
            inode,
            length_bytes: if value.is_multiple_of(19) {
                u64::MAX
            } else {
                u64::from(value)
            },
            mtime: None,
            cut: None,
        },
        9 => NamespaceOp::Unlink { parent, name },
        10 => NamespaceOp::Rename {
            parent,
            name,
            new_parent: other,
            new_name: self::name(number.wrapping_add(value as u8)),
            mode: RenameMode::Replace,
        },
        11 => NamespaceOp::Link {
            inode,
            parent: other,
            name,
        },
        _ => NamespaceOp::SetXattr {
            inode,
            name: b"user.a".to_vec(),
            value: vec![1],
            mode: XattrMode::Either,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn what_is_foreseen_comes_to_pass(
        steps in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), 0_u32..0o10000, any::<u8>()), 1..120)
    ) {
        let mut world = World::new();
        for (kind, at, other, number, value, act) in steps {
            let pick = |picked: u8, inodes: &[InodeId]| {
                // The young ones are held, mostly.
                let back = usize::from(picked) % inodes.len().min(8);
                inodes[inodes.len() - 1 - back]
            };
            let at = pick(at, &world.inodes);
            let other = pick(other, &world.inodes);
            let op = op(kind, at, other, number, value);
            match act {
                0..=7 => world.interfere(at, Some(op)),
                8..=15 => world.interfere(at, None),
                16..=23 => world.compare(),
                24..=31 => world.flush(),
                _ => {
                    let caller = if value % 4 == 0 { Caller { uid: 5, gid: 6 } } else { ROOT };
                    if let Ok(NamespaceChange::Entry { attributes: Attributes { inode, .. }, created: true, .. }) = world.change(caller, &op) {
                        world.inodes.push(inode);
                    }
                }
            }
        }
        world.compare();
    }
}

#[test]
fn most_of_an_unpacked_tree_is_done_here() {
    let mut world = World::new();
    world.change(ROOT, &op(2, TOP, TOP, 0, 0o755)).unwrap();
    let mut parent = TOP;
    for _ in 0..10 {
        let Ok(NamespaceChange::Entry { attributes, .. }) = world.change(ROOT, &op(2, parent, TOP, 0, 0o755)) else {
            // The first one is there.
            let read = NamespaceRead::Lookup { parent, name: name(0) };
            let Some(Ok(NamespaceAnswer::Attributes(found))) = world.ask(world.mount, read).ok() else {
                panic!("the directory is gone");
            };
            parent = found.inode;
            continue;
        };
        parent = attributes.inode;
        for number in 1..NAMES {
            let created = world.change(ROOT, &op(0, parent, TOP, number, 0o644 | 1)).unwrap();
            let NamespaceChange::Entry { attributes, .. } = created else {
                panic!("{created:?}");
            };
            world.change(ROOT, &op(5, attributes.inode, TOP, 0, 0o600)).unwrap();
        }
    }
    assert!(world.local > 80, "{}", world.local);
    world.compare();
}

#[test]
fn an_answer_older_than_what_happened_since_does_not_count() {
    let mut held = Held::default();
    let mut world = World::new();
    let reservation = Reservation {
        first: InodeId(900),
        end: InodeId(910),
        epoch: dfs_common::HoldEpoch(1),
    };
    held.begin(reservation);
    let created = world.change(ROOT, &op(2, TOP, TOP, 0, 0o755)).unwrap();
    let NamespaceChange::Entry { attributes, .. } = created else {
        panic!("{created:?}");
    };
    held.sending();
    held.leave(&op(5, attributes.inode, TOP, 0, 0o700));
    held.answered((reservation.epoch, 0), Some((TOP, &name(0), &attributes)));
    assert!(held.attributes(attributes.inode).is_none());
    held.sending();
    held.leave(&op(9, TOP, TOP, 0, 0));
    held.answered((reservation.epoch, 0), Some((TOP, &name(0), &attributes)));
    assert!(held.attributes(attributes.inode).is_none());
    held.sending();
    held.answered((dfs_common::HoldEpoch(2), 0), Some((TOP, &name(0), &attributes)));
    assert!(held.attributes(attributes.inode).is_none(), "another epoch");
    // So much was touched meanwhile that it is not known what.
    let generation = held.sending();
    for number in 0..10_000 {
        held.leave(&op(5, InodeId(2_000 + number), TOP, 0, 0o700));
    }
    held.answered((reservation.epoch, generation), Some((TOP, &name(0), &attributes)));
    assert!(held.attributes(attributes.inode).is_none(), "too much happened");
    let generation = held.sending();
    held.answered((reservation.epoch, generation), Some((TOP, &name(0), &attributes)));
    assert!(held.attributes(attributes.inode).is_some());
}
