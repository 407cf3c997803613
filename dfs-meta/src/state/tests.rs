//! Exactly-once, sessions, determinism, exports, what lies on the disk.

mod conflicts;
mod holds;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dfs_common::wire::meta::{ChangeRequest, MAX_CHANGES_IN_FLIGHT};
use dfs_common::wire::namespace::{NamespaceChange, NamespaceOp, NamespaceRead, StatFs, XattrMode};
use dfs_common::{ClusterId, Error, ErrorCode, InodeId, SequenceNumber, SessionId};

use super::testing::{Bench, CLUSTER, TestHash, create_op, name, three_nodes};
use super::{PAGE_ROWS, State};
use crate::command::{Command, CommandKind, Outcome};
use crate::store::{Batch, MemoryStore, Row, Rows, SledStore, Store, StoreError, ValueSealer, keys};

const TOP: InodeId = InodeId::ROOT;

/// Stands for the real sealer: hides every byte and binds the key.
#[derive(Debug)]
struct TestSealer;

fn mask(associated: &[u8], data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0; data.len()];
    blake3::Hasher::new_keyed(&[3; 32])
        .update(associated)
        .finalize_xof()
        .fill(&mut stream);
    data.iter().zip(stream).map(|(byte, mask)| byte ^ mask).collect()
}

impl ValueSealer for TestSealer {
    fn seal(&self, associated: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let check = crc32c::crc32c_append(crc32c::crc32c(associated), plain);
        Ok([mask(associated, plain), check.to_le_bytes().to_vec()].concat())
    }

    fn open(&self, associated: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let (data, check) = sealed.split_at(sealed.len() - 4);
        let plain = mask(associated, data);
        if crc32c::crc32c_append(crc32c::crc32c(associated), &plain).to_le_bytes() == check {
            Ok(plain)
        } else {
            Err(ErrorCode::Corrupt.into())
        }
    }
}

fn sled() -> (tempfile::TempDir, SledStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = SledStore::open(directory.path(), TestSealer).unwrap();
    (directory, store)
}

impl<S: Store> Bench<S> {
    fn send(&mut self, request: ChangeRequest) -> Result<NamespaceChange, ErrorCode> {
        match self.submit(CommandKind::Change(request)) {
            Outcome::Change(answer) => answer.map_err(|error| error.code),
            other => panic!("{other:?}"),
        }
    }

    fn answers(&self) -> usize {
        let (from, to) = keys::answers(self.session);
        self.state.store().scan(&from, &to, usize::MAX).unwrap().len()
    }
}

#[test]
fn a_retry_gets_the_same_answer_and_changes_nothing() {
    let mut bench = Bench::new();
    let request = bench.request(create_op(TOP, "a"));
    let first = bench.send(request.clone()).unwrap();
    let rows = bench.rows();
    assert_eq!(bench.send(request.clone()), Ok(first));
    assert_eq!(bench.rows(), rows);
    // Errors are answers too, even when the same request would do now.
    let refused = bench.request(create_op(TOP, "a"));
    assert_eq!(bench.send(refused.clone()), Err(ErrorCode::Exists));
    bench.unlink(TOP, "a").unwrap();
    let late = bench.send(ChangeRequest {
        answered_below: SequenceNumber(0),
        ..refused
    });
    assert_eq!(
        late,
        Err(ErrorCode::BadMessage),
        "its answer was given up by the change after it"
    );
    assert_eq!(bench.lookup(TOP, "a"), Err(ErrorCode::NotFound));
}

#[test]
fn copies_in_one_batch_take_effect_once() {
    let mut bench = Bench::new();
    let request = bench.request(create_op(TOP, "a"));
    let command = Command {
        time: bench.now(),
        kind: CommandKind::Change(request),
    };
    let outcomes = bench
        .state
        .apply(&[command.clone(), command.clone(), command], b"p")
        .unwrap();
    assert!(matches!(&outcomes[0], Outcome::Change(Ok(_))));
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
    assert_eq!(bench.list(TOP, 10).len(), 1);
    assert_eq!(bench.state.position().unwrap().as_deref(), Some(&b"p"[..]));
}

#[test]
fn answers_are_kept_until_the_session_lets_go_and_bounded() {
    let mut bench = Bench::new();
    for n in 0..MAX_CHANGES_IN_FLIGHT {
        let mut request = bench.request(create_op(TOP, &format!("f{n}")));
        request.answered_below = SequenceNumber(1);
        assert!(bench.send(request).is_ok());
    }
    assert_eq!(bench.answers() as u64, MAX_CHANGES_IN_FLIGHT);
    let mut request = bench.request(create_op(TOP, "one-more"));
    request.answered_below = SequenceNumber(1);
    assert_eq!(bench.send(request.clone()), Err(ErrorCode::Overloaded));
    // That was no answer: the same change goes through once there is room.
    request.answered_below = SequenceNumber(200);
    assert!(bench.send(request).is_ok());
    // 200 and those above it, and this one.
    assert_eq!(bench.answers() as u64, MAX_CHANGES_IN_FLIGHT - 199 + 1);
    let mut wrong = bench.request(create_op(TOP, "wrong"));
    wrong.answered_below = wrong.sequence.next();
    assert_eq!(bench.send(wrong), Err(ErrorCode::BadMessage));
}

#[test]
fn sessions_end_with_their_answers() {
    let mut bench = Bench::new();
    bench.create(TOP, "a").unwrap();
    assert!(bench.state.has_session(bench.session).unwrap());
    assert_eq!(bench.state.sessions().unwrap()[0].label, "bench");
    let sessions = vec![bench.session, SessionId(77)];
    bench.submit(CommandKind::EndSessions { sessions });
    assert_eq!((bench.answers(), bench.state.counts().sessions), (0, 0));
    let request = bench.request(create_op(TOP, "b"));
    assert_eq!(bench.send(request), Err(ErrorCode::SessionExpired));
    // Numbers are not given again.
    let next = bench.submit(CommandKind::OpenSession { label: String::new() });
    assert_eq!(next, Outcome::SessionOpened(bench.session.next()));
}

#[test]
fn the_routing_table_is_state_like_any_other() {
    let bench = Bench::new();
    let table = bench.state.routing();
    assert_eq!(table.nodes.len(), 3);
    assert!(table.default_table.is_some());
    let state = State::open(MemoryStore::default(), TestHash, CLUSTER).unwrap();
    let rows: Vec<Result<Row, StoreError>> = bench.rows().into_iter().map(Ok).collect();
    state.import(rows, b"there").unwrap();
    assert_eq!(state.routing(), table);
}

/// Some of everything.
fn script() -> Vec<Command> {
    let mut kinds = vec![
        three_nodes(),
        CommandKind::OpenSession { label: "one".into() },
        CommandKind::OpenSession { label: "two".into() },
    ];
    let mut ops = vec![NamespaceOp::Mkdir {
        parent: TOP,
        name: name("d"),
        mode: 0o755,
    }];
    for n in 0..40 {
        ops.push(create_op(InodeId(2), &format!("file-{n}")));
    }
    for n in 0..20 {
        let name = name(&format!("file-{n}"));
        ops.push(NamespaceOp::Unlink {
            parent: InodeId(2),
            name,
        });
    }
    ops.push(NamespaceOp::SetXattr {
        inode: InodeId(30),
        name: b"user.canary-attribute".to_vec(),
        value: b"canary-value".to_vec(),
        mode: XattrMode::Either,
    });
    kinds.extend(ops.into_iter().enumerate().map(|(n, op)| {
        CommandKind::Change(ChangeRequest {
            session: SessionId(1),
            sequence: SequenceNumber(n as u64 + 1),
            answered_below: SequenceNumber(n as u64),
            caller: super::testing::USER,
            op,
            hold: None,
            shown: None,
        })
    }));
    kinds.push(CommandKind::Purged {
        inodes: vec![InodeId(3), InodeId(4)],
    });
    kinds.push(CommandKind::EndSessions {
        sessions: vec![SessionId(2)],
    });
    kinds
        .into_iter()
        .zip(0..)
        .map(|(kind, nanos)| Command {
            time: dfs_common::Timestamp::from_nanos(nanos),
            kind,
        })
        .collect()
}

fn export<S: Store>(state: &State<S>) -> (Vec<Row>, Option<Vec<u8>>) {
    let mut rows = Vec::new();
    let position = state
        .export::<StoreError>(&mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            Ok(())
        })
        .unwrap();
    (rows, position)
}

#[test]
fn every_store_and_every_batching_gives_the_same_rows() {
    let commands = script();
    let memory = State::open(MemoryStore::default(), TestHash, CLUSTER).unwrap();
    let whole = memory.apply(&commands, b"end").unwrap();
    let (directory, store) = sled();
    let on_disk = State::open(store, TestHash, CLUSTER).unwrap();
    let mut parts = Vec::new();
    for part in commands.chunks(3) {
        parts.extend(on_disk.apply(part, b"end").unwrap());
    }
    assert_eq!(parts, whole);
    assert_eq!(export(&memory), export(&on_disk));
    let before = export(&on_disk);
    drop(on_disk);
    let again = State::open(
        SledStore::open(directory.path(), TestSealer).unwrap(),
        TestHash,
        CLUSTER,
    )
    .unwrap();
    assert_eq!(export(&again), before);
    assert_eq!(again.counts(), memory.counts());
}

#[test]
fn import_replaces_everything() {
    let memory = State::open(MemoryStore::default(), TestHash, CLUSTER).unwrap();
    memory.apply(&script(), b"end").unwrap();
    let (rows, position) = export(&memory);
    let (_directory, store) = sled();
    let mut other = Bench::over(store);
    other.create(TOP, "to-be-gone").unwrap();
    let mut running = other.state.begin_export().unwrap();
    other
        .state
        .import(rows.iter().cloned().map(Ok::<_, StoreError>), b"end")
        .unwrap();
    assert!(running.next_page().is_err(), "what it was reading is gone");
    drop(running);
    assert_eq!(export(&other.state), (rows, position));
    assert_eq!(other.lookup(TOP, "to-be-gone"), Err(ErrorCode::NotFound));
    assert_eq!(other.state.counts(), memory.counts());
}

#[test]
fn stores_that_are_not_ours_or_not_whole_are_refused() {
    let bench = Bench::new();
    let rows = bench.rows();
    let store = |without: &[u8]| {
        let store = MemoryStore::default();
        let mut batch = Batch::default();
        for (key, value) in rows.iter().filter(|(key, _)| key != without) {
            batch.put(key.clone(), value.clone());
        }
        store.commit(batch).unwrap();
        store
    };
    let open = |store, cluster| State::open(store, TestHash, cluster).map(|_| ());
    assert!(open(store(b""), CLUSTER).is_ok());
    assert!(matches!(
        open(store(b""), ClusterId([8; 16])),
        Err(StoreError::OtherCluster { .. })
    ));
    for key in [keys::FORMAT, keys::COUNTERS, keys::ROUTING] {
        assert!(matches!(open(store(&key), CLUSTER), Err(StoreError::Broken(_))));
    }
}

#[test]
fn an_export_shows_one_position_while_commands_go_on() {
    let mut bench = Bench::new();
    let count = PAGE_ROWS + 500;
    for n in 0..count {
        bench.create(TOP, &format!("f{n}")).unwrap();
    }
    let expected = export(&bench.state);
    let state = Arc::new(std::mem::replace(
        &mut bench.state,
        State::open(MemoryStore::default(), TestHash, CLUSTER).unwrap(),
    ));
    let mut export = state.begin_export().unwrap();
    let mut rows = Vec::new();
    let mut round = 0_u64;
    loop {
        // Between the pages, names go, come and change.
        let unlink = NamespaceOp::Unlink {
            parent: TOP,
            name: name(&format!("f{}", round * 7)),
        };
        for op in [unlink, create_op(TOP, &format!("new{round}"))] {
            let request = bench.request(op);
            let kind = CommandKind::Change(request);
            let time = bench.now();
            let done = state.apply(&[Command { time, kind }], b"later").unwrap();
            assert!(matches!(done[0], Outcome::Change(Ok(_))), "{done:?}");
        }
        round += 1;
        let page = export.next_page().unwrap();
        if page.is_empty() {
            break;
        }
        rows.extend(page);
    }
    assert!(round > 3);
    assert_eq!((rows, export.position().map(<[u8]>::to_vec)), expected);
}

#[test]
fn readers_see_whole_batches_only() {
    let bench = Bench::new();
    let (state, session) = (Arc::new(bench.state), bench.session);
    let stop = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (state, stop) = (Arc::clone(&state), Arc::clone(&stop));
        move || {
            let look = |text: &str| NamespaceRead::Lookup {
                parent: TOP,
                name: name(text),
            };
            while !stop.load(Ordering::Relaxed) {
                // Both names come in one batch, and go in one.
                let both = state
                    .read(SessionId(1), &[look("one"), look("two")], StatFs::default())
                    .unwrap();
                assert_eq!(both[0].is_ok(), both[1].is_ok());
            }
        }
    });
    let mut sequence = 0;
    for round in 0..400 {
        let commands: Vec<Command> = ["one", "two"]
            .into_iter()
            .map(|text| {
                sequence += 1;
                let op = if round % 2 == 0 {
                    create_op(TOP, text)
                } else {
                    NamespaceOp::Unlink {
                        parent: TOP,
                        name: name(text),
                    }
                };
                let kind = CommandKind::Change(ChangeRequest {
                    session,
                    sequence: SequenceNumber(sequence),
                    answered_below: SequenceNumber(sequence),
                    caller: super::testing::ROOT,
                    op,
                    hold: None,
                    shown: None,
                });
                let time = dfs_common::Timestamp::from_nanos(round);
                Command { time, kind }
            })
            .collect();
        let outcomes = state.apply(&commands, b"p").unwrap();
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Change(Ok(_)))));
    }
    stop.store(true, Ordering::Relaxed);
    reader.join().unwrap();
}

#[test]
fn no_name_and_no_value_lies_on_the_disk_in_plaintext() {
    let (directory, store) = sled();
    let mut bench = Bench::over(store);
    let file = bench.create(TOP, "canary-name").unwrap().inode;
    bench.symlink(TOP, "canary-link", "canary-target").unwrap();
    let (name, value) = (b"user.canary-attribute".to_vec(), b"canary-value".to_vec());
    let mode = XattrMode::Either;
    bench
        .change(NamespaceOp::SetXattr {
            inode: file,
            name,
            value,
            mode,
        })
        .unwrap();
    bench.submit(CommandKind::OpenSession {
        label: "canary-label".into(),
    });
    bench.state.store().flush().unwrap();
    drop(bench);
    let mut bytes = 0;
    let mut directories = vec![directory.path().to_path_buf()];
    while let Some(next) = directories.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let content = std::fs::read(&path).unwrap();
            bytes += content.len();
            assert!(
                !content.windows(6).any(|window| window == b"canary"),
                "{}",
                path.display()
            );
        }
    }
    assert!(bytes > 1000);
}

#[test]
fn a_row_moved_to_another_key_does_not_open() {
    let (directory, store) = sled();
    let mut bench = Bench::over(store);
    bench.create(TOP, "a").unwrap();
    drop(bench);
    {
        // sled gives its lock back from a thread of its own, a moment after it was dropped.
        let database = (0..500)
            .find_map(|_| {
                let opened = sled::open(directory.path().join("0")).ok();
                if opened.is_none() {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                opened
            })
            .unwrap();
        let tree = database.open_tree("rows").unwrap();
        let top = tree.get(keys::inode(TOP)).unwrap().unwrap();
        tree.insert(keys::inode(InodeId(2)), top).unwrap();
        // Whoever moves rows can make them add up, too.
        crate::store::redigest(&tree);
    }
    let store = (0..500)
        .find_map(|_| {
            let opened = SledStore::open(directory.path(), TestSealer).ok();
            if opened.is_none() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            opened
        })
        .unwrap();
    assert!(store.get(&keys::inode(TOP)).is_ok());
    assert!(matches!(
        store.get(&keys::inode(InodeId(2))),
        Err(StoreError::Unsealable { .. })
    ));
}

#[test]
fn golden_rows() {
    let state = State::open(MemoryStore::default(), TestHash, CLUSTER).unwrap();
    state.apply(&script(), b"end").unwrap();
    let (rows, _) = export(&state);
    let mut seen: Vec<(char, String)> = Vec::new();
    for (key, value) in rows {
        let kind = char::from(key[0]);
        // One of each kind, and each of the singletons.
        if kind != 'm' && seen.iter().any(|other| other.0 == kind) {
            continue;
        }
        let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..16].to_owned();
        seen.push((kind, format!("{} {}", value.len(), hash(&[key, value].concat()))));
    }
    let seen: Vec<String> = seen.into_iter().map(|(kind, text)| format!("{kind} {text}")).collect();
    assert_eq!(seen, GOLDEN, "a stored format changed: raise FORMAT_VERSION");
}

/// Kind, length of the value, hash of key and value.
const GOLDEN: [&str; 9] = [
    "d 17 8c0efbade11e0179",
    "i 94 908e6ec0eb71f6a1",
    "m 20 861d403284d937d3",
    "m 40 776f2c3f4c257d97",
    "m 817 d8e2ed6a757e79a6",
    "o 8 2d60026068eaa11d",
    "r 20 5851f0e9e590cd9e",
    "s 27 bdabe5afdd5b5852",
    "x 49 cd3eca0c02b387f3",
];
