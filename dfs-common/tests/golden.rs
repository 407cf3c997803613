//! The wire's bytes never change under a version by accident: each message here must encode to what stands in
//! `golden.txt`, and decode from it. After a deliberate change raise `PROTOCOL_VERSION` and write the file anew with
//! `UPDATE_GOLDEN=1 cargo test -p dfs-common`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use dfs_common::codec;
use dfs_common::wire::Hello;
use dfs_common::wire::meta::{
    ChangeRequest, DamageCount, Heartbeat, KeepAlive, MetaRequest, MetaResponse, NodeAction, Pace, Signs, Unheard,
};
use dfs_common::wire::namespace::{Caller, NamespaceOp, NamespaceRead, WrappedKey, WriteCommit};
use dfs_common::wire::storage::{
    BlockCondition, BlockRun, FileRun, FileRuns, ForwardRequest, MutateRequest, Mutation, RunsWanted, StorageRequest,
    StorageResponse,
};
use dfs_common::{
    BlockIndex, CertificateIssue, ChainId, ChainInfo, ChainMember, ChunkId, ChunkIndex, ChunkVersion, ClusterId, Epoch,
    Error, ErrorCode, HybridClock, Incarnation, InodeId, Level, MemberState, MetaId, MetaPlace, RequestId, Rest,
    RoutingVersion, Scarce, SequenceNumber, SessionId, StorageId, StoreId, Timestamp, ValidName,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Default)]
struct Golden {
    made: BTreeMap<&'static str, String>,
}

impl Golden {
    fn message<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
        &mut self,
        name: &'static str,
        message: &T,
    ) {
        let bytes = codec::encode(message).unwrap();
        assert_eq!(
            &codec::decode::<T>(&bytes).unwrap(),
            message,
            "{name} does not survive the wire"
        );
        for cut in 0..bytes.len() {
            assert!(
                codec::decode::<T>(&bytes[..cut]).is_err(),
                "{name} cut at {cut} decodes"
            );
        }
        self.made.insert(
            name,
            bytes.iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            }),
        );
    }
}

#[test]
fn messages_encode_to_their_golden_bytes() {
    let mut golden = Golden::default();
    let (chain, epoch) = (ChainId(3), Epoch(9));
    let chunk = ChunkId::new(InodeId(0x1122), ChunkIndex(5));
    let id = RequestId {
        session: SessionId(7),
        channel: 2,
        sequence: SequenceNumber(41),
    };
    let version = ChunkVersion { epoch, counter: 17 };
    let mutate = MutateRequest {
        chain,
        epoch,
        chunk,
        id,
        level: Level::Quorum,
        sync: true,
        uncut_since: None,
        cut: dfs_common::CutEpoch::NONE,
        mutation: Mutation::Write {
            first: BlockIndex(4),
            blocks: 2,
            last_length_bytes: 100,
            conditions: vec![BlockCondition {
                block: BlockIndex(5),
                version: ChunkVersion::NONE,
            }],
        },
    };
    golden.message(
        "hello",
        &Hello {
            protocol: 1,
            cluster: ClusterId([0xc1; 16]),
        },
    );
    golden.message("storage-mutate", &StorageRequest::Mutate(mutate.clone()));
    golden.message(
        "storage-forward",
        &StorageRequest::Forward(ForwardRequest {
            request: mutate,
            before: ChunkVersion::NONE,
            version,
            stamp: HybridClock {
                wall: Timestamp::from_nanos(0x55),
                logical: 0x66,
            },
            everywhere: false,
        }),
    );
    golden.message("storage-chunk-state", &StorageRequest::ChunkState { chain, chunk });
    golden.message(
        "storage-read",
        &StorageRequest::Read {
            chain,
            epoch,
            chunk,
            first: BlockIndex(0),
            blocks: 8,
            level: Level::One,
            not_before: version,
            session: SessionId(7),
        },
    );
    golden.message(
        "storage-sync",
        &StorageRequest::Sync {
            chain,
            epoch,
            level: Level::Quorum,
            since: Epoch(8),
            written: Level::One,
            session: SessionId(7),
        },
    );
    golden.message(
        "storage-remove-range",
        &StorageRequest::RemoveRange {
            chain,
            epoch,
            inodes: vec![InodeId(9)],
            from: ChunkIndex(1),
            cut: dfs_common::CutEpoch(3),
            session: SessionId(7),
        },
    );
    golden.message(
        "storage-file-runs",
        &StorageRequest::FileRuns {
            chain,
            epoch,
            inode: InodeId(7),
            from: (ChunkIndex(2), BlockIndex(5)),
            wanted: RunsWanted::Count,
        },
    );
    let mut runs = FileRuns::default();
    for first in [5, 6, 9] {
        let run = FileRun {
            chunk: ChunkIndex(2),
            first: BlockIndex(first),
            blocks: 1,
        };
        assert!(runs.add(RunsWanted::First, run));
    }
    assert_eq!((runs.runs.len(), runs.blocks), (2, 3));
    golden.message("storage-file-runs-answer", &StorageResponse::FileRuns(runs));
    golden.message("storage-forwarded", &StorageResponse::Forwarded { stable: true });
    golden.message(
        "storage-stable",
        &StorageRequest::Stable {
            chain,
            epoch,
            chunks: vec![(chunk, version)],
        },
    );
    golden.message(
        "storage-read-answer",
        &StorageResponse::Read {
            version,
            runs: vec![BlockRun {
                first: BlockIndex(0),
                blocks: 3,
                last_length_bytes: 4096,
                version,
            }],
        },
    );
    golden.message(
        "storage-failed",
        &StorageResponse::Failed(Error::new(ErrorCode::StaleEpoch, "chain 3 is at epoch 10")),
    );
    golden.message(
        "meta-change",
        &MetaRequest::Change(ChangeRequest {
            session: SessionId(7),
            sequence: SequenceNumber(1),
            answered_below: SequenceNumber(1),
            caller: Caller { uid: 1000, gid: 100 },
            op: NamespaceOp::Create {
                parent: InodeId::ROOT,
                name: ValidName::new(b"caf\xe9".to_vec()).unwrap(),
                mode: 0o644,
                exclusive: true,
                key: WrappedKey {
                    kek_version: 1,
                    bytes: vec![0xaa; 60],
                },
            },
            hold: None,
            shown: None,
        }),
    );
    golden.message(
        "meta-commit",
        &MetaRequest::Change(ChangeRequest {
            session: SessionId(7),
            sequence: SequenceNumber(2),
            answered_below: SequenceNumber(2),
            caller: Caller { uid: 0, gid: 0 },
            op: NamespaceOp::CommitWrite {
                inode: InodeId(9),
                commit: WriteCommit {
                    sparse: false,
                    growing: true,
                    extend_to_bytes: Some(4097),
                    mtime: Some(Timestamp::from_nanos(-5)),
                    clear_suid: false,
                    cut: dfs_common::CutEpoch(2),
                },
            },
            hold: None,
            shown: None,
        }),
    );
    golden.message(
        "meta-read",
        &MetaRequest::Read {
            session: SessionId(7),
            reads: vec![NamespaceRead::ReadDirectory {
                inode: InodeId::ROOT,
                cookie: 3,
                limit: 100,
            }],
        },
    );
    golden.message(
        "meta-keep-alive",
        &MetaRequest::KeepAlive(KeepAlive {
            session: SessionId(7),
            routing: RoutingVersion(4),
            all: false,
            opened: vec![InodeId(9)],
            closed: vec![],
            report: 12,
            clock: Timestamp::from_nanos(5),
            configured: [(MetaId(2), "10.0.0.2:7100".parse().unwrap())].into(),
        }),
    );
    golden.message(
        "meta-move",
        &MetaRequest::MoveMeta {
            server: MetaId(2),
            place: MetaPlace {
                address: "10.0.0.9:7100".parse().unwrap(),
                issue: CertificateIssue(1),
            },
        },
    );
    golden.message(
        "meta-heartbeat",
        &MetaRequest::Heartbeat(Heartbeat {
            configured: BTreeMap::new(),
            sessions: 0,
            node: StorageId(2),
            incarnation: Incarnation(0xdead_beef),
            store: StoreId([0xcd; 16]),
            address: "127.0.0.1:7102".parse().unwrap(),
            routing: RoutingVersion(4),
            total_bytes: 1 << 40,
            used_bytes: 1 << 30,
            fault: None,
            resyncs: vec![],
            retired: vec![],
            signs: Signs {
                unanswered_ms: 90,
                stands_aside: false,
                unheard: vec![Unheard {
                    node: StorageId(3),
                    process: Incarnation(9),
                    ms: 400,
                }],
                syncs: Pace {
                    median_us: Some(900),
                    running_us: 0,
                    done: 70,
                },
                writes: Pace::default(),
                damage: DamageCount { open: 2, lost: 1 },
                short: Some(Scarce::Descriptors),
            },
            settled: vec![(chain, epoch)],
            rests: vec![(chain, epoch, Rest(3))],
        }),
    );
    golden.message("meta-not-leader", &MetaResponse::NotLeader { leader: None });
    golden.message(
        "meta-trust",
        &MetaRequest::Administer {
            node: StorageId(2),
            action: NodeAction::Trust,
        },
    );
    golden.message(
        "meta-reopen-store",
        &MetaResponse::ReopenStore {
            store: StoreId([0xcd; 16]),
        },
    );
    golden.message(
        "chain",
        &ChainInfo {
            id: chain,
            epoch,
            settled: true,
            rest: Rest::default(),
            headed: Epoch(5),
            revived: Epoch(2),
            members: vec![
                ChainMember::new(StorageId(1), MemberState::Serving),
                ChainMember::new(StorageId(2), MemberState::Offline),
            ],
        },
    );

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden.txt");
    let text = golden
        .made
        .iter()
        .fold(String::new(), |text, (name, hex)| format!("{text}{name} {hex}\n"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let recorded = std::fs::read_to_string(&file).unwrap();
    for (made, recorded) in text.lines().zip(recorded.lines()) {
        assert_eq!(made, recorded, "the wire changed: see the head of this file");
    }
    assert_eq!(text.lines().count(), recorded.lines().count());
}
