//! Conflicts: asked for, decided, listed, gone.

use dfs_common::conflict::{ConflictEntry, ConflictId, ConflictState, Divergence, MAX_SETTLED, Settlement, Verdict};
use dfs_common::policy::{ConflictPolicy, PolicyChange};
use dfs_common::wire::namespace::NamespaceOp;
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVector, ChunkVersion, Epoch, Error, ErrorCode, HybridClock, InodeId,
    StorageId,
};

use super::super::testing::{Bench, name};
use super::TOP;
use crate::command::{CommandKind, Outcome};

fn divergence(inode: InodeId, counter: u64, blocks: &[(u32, u32)]) -> Divergence {
    let version = |epoch, counter| ChunkVersion {
        epoch: Epoch(epoch),
        counter,
    };
    Divergence {
        node: StorageId(1),
        chain: ChainId(1),
        chunk: ChunkId {
            inode,
            index: ChunkIndex(0),
        },
        theirs: ChunkVector::new(&[], version(1, counter)),
        chains: ChunkVector::new(&[version(1, 1)], version(2, counter)),
        theirs_at: HybridClock::default(),
        chains_at: HybridClock::default(),
        blocks: blocks
            .iter()
            .map(|&(first, count)| (BlockIndex(first), count))
            .collect(),
    }
}

impl Bench {
    fn diverged(&mut self, divergence: Divergence) -> Verdict {
        match self.submit(CommandKind::Diverged(divergence)) {
            Outcome::Verdict(verdict) => verdict,
            other => panic!("{other:?}"),
        }
    }

    fn reconciled(&mut self, inode: InodeId, conflict: Option<ConflictId>) {
        let done = self.submit(CommandKind::Reconciled {
            chunk: ChunkId::new(inode, ChunkIndex(0)),
            node: StorageId(3),
            conflict,
            end_bytes: 5_000,
        });
        assert_eq!(done, Outcome::Administered(Ok(())));
    }

    fn settle(&mut self, inode: InodeId, conflict: ConflictId, how: Settlement) -> Result<(), Error> {
        let by = "somebody".to_owned();
        match self.submit(CommandKind::SettleConflict {
            inode,
            conflict,
            how,
            by,
        }) {
            Outcome::Administered(done) => done,
            other => panic!("{other:?}"),
        }
    }

    fn conflicts(&self) -> Vec<ConflictEntry> {
        self.state.conflicts(None, 1_000, true).unwrap().0
    }

    fn file_with(&mut self, directory: InodeId, text: &str, policy: ConflictPolicy) -> InodeId {
        let file = self.create(directory, text).unwrap();
        let change = PolicyChange {
            conflict: Some(policy),
            ..PolicyChange::default()
        };
        let inode = file.inode;
        self.change(NamespaceOp::SetPolicy { inode, change }).unwrap();
        inode
    }
}

#[test]
fn the_policy_decides_and_the_same_question_has_the_same_answer() {
    let mut bench = Bench::new();
    let lww = bench.file_with(TOP, "lww", ConflictPolicy::LastWriteWins);
    assert_eq!(bench.diverged(divergence(lww, 5, &[])), Verdict::Adopt, "merely ahead");
    assert!(bench.conflicts().is_empty());
    let before = bench.stat(lww).unwrap();
    bench.reconciled(lww, None);
    let after = bench.stat(lww).unwrap();
    assert!(
        after.change > before.change && after.mtime > before.mtime,
        "caches are told"
    );
    assert_eq!(after.length_bytes, 5_000, "as long as what was brought in says");

    for _ in 0..2 {
        assert_eq!(bench.diverged(divergence(lww, 5, &[(0, 1)])), Verdict::Adopt);
        let all = bench.conflicts();
        assert_eq!(all.len(), 1);
        assert!(matches!(&all[0].conflict.state,
            ConflictState::Settled { how: Settlement::Current, by, .. } if by == "policy lww"));
    }

    let both = bench.file_with(TOP, "both", ConflictPolicy::KeepBoth);
    let Verdict::Keep(id) = bench.diverged(divergence(both, 5, &[(0, 1)])) else {
        panic!("it is to be kept");
    };
    assert_eq!(
        bench.diverged(divergence(both, 5, &[(0, 2)])),
        Verdict::Keep(id),
        "asked again"
    );
    let listed = bench.conflicts();
    let listed = listed.iter().find(|entry| entry.conflict.id == id).unwrap();
    assert_eq!(
        listed.conflict.divergence.blocks,
        [(BlockIndex(0), 2)],
        "as it was last"
    );
    assert_eq!(listed.conflict.state, ConflictState::Found);
    let early = bench.settle(both, id, Settlement::Both).unwrap_err();
    assert_eq!(early.code, ErrorCode::Overloaded, "not safe yet");
    bench.reconciled(both, Some(id));
    bench.settle(both, id, Settlement::Both).unwrap();
    assert!(
        bench
            .settle(both, id, Settlement::Other)
            .unwrap_err()
            .detail
            .contains("both kept, by somebody")
    );
    assert_eq!(
        bench.diverged(divergence(both, 5, &[(0, 2)])),
        Verdict::Adopt,
        "it is over"
    );
    assert_ne!(
        bench.diverged(divergence(both, 6, &[(0, 2)])),
        Verdict::Adopt,
        "another write"
    );
    assert!(
        bench
            .settle(both, ConflictId(999_999), Settlement::Other)
            .unwrap_err()
            .code
            == ErrorCode::NotFound
    );

    assert_eq!(
        bench.diverged(divergence(InodeId(424_242), 5, &[(0, 1)])),
        Verdict::Gone
    );
    assert_eq!(
        bench.diverged(divergence(TOP, 5, &[(0, 1)])),
        Verdict::Gone,
        "a directory has no chunks"
    );
}

#[test]
fn the_other_versions_blocks_go_when_it_is_settled_and_when_the_file_goes() {
    let mut bench = Bench::new();
    let file = bench.file_with(TOP, "file", ConflictPolicy::Application);
    let keep = |bench: &mut Bench, counter| match bench.diverged(divergence(file, counter, &[(3, 1)])) {
        Verdict::Keep(id) => id,
        other => panic!("{other:?}"),
    };
    let first = keep(&mut bench, 5);
    bench.reconciled(file, Some(first));
    bench.settle(file, first, Settlement::Current).unwrap();
    let orphans = |bench: &Bench| -> Vec<InodeId> {
        let orphans = bench.state.orphans(None, 100).unwrap();
        orphans.into_iter().map(|orphan| orphan.inode).collect()
    };
    assert_eq!(orphans(&bench), [first.keeper()]);
    bench.submit(CommandKind::Purged {
        inodes: vec![first.keeper()],
    });
    assert_eq!((orphans(&bench), bench.state.counts().orphans), (vec![], 0));
    assert_eq!(bench.conflicts().len(), 1, "what became of it is known still");

    let dropped = keep(&mut bench, 8);
    bench.settle(file, dropped, Settlement::Current).unwrap();
    bench.submit(CommandKind::Purged {
        inodes: vec![dropped.keeper()],
    });
    let second = keep(&mut bench, 6);
    let parent = TOP;
    bench
        .change(NamespaceOp::Unlink {
            parent,
            name: name("file"),
        })
        .unwrap();
    assert_eq!(bench.conflicts()[2].path, None, "it has no name any more");
    assert_eq!(
        bench.diverged(divergence(file, 7, &[(0, 1)])),
        Verdict::Adopt,
        "nobody can be shown two versions of what has no name"
    );
    bench.submit(CommandKind::Purged { inodes: vec![file] });
    assert_eq!((orphans(&bench), bench.conflicts().len()), (vec![second.keeper()], 0));
    assert_eq!(bench.state.counts().orphans, 1);
}

#[test]
fn settled_ones_are_bounded_and_paths_are_found() {
    let mut bench = Bench::new();
    let outer = bench.mkdir(TOP, "outer").unwrap().inode;
    let inner = bench.mkdir(outer, "inner").unwrap().inode;
    let file = bench.file_with(inner, "file", ConflictPolicy::LastWriteWins);
    for counter in 1..40 {
        bench.diverged(divergence(file, counter, &[(0, 1)]));
    }
    assert_eq!(bench.conflicts().len(), 39, "they may be asked for again");
    bench.clock += 2 * 3_600_000_000_000;
    bench.diverged(divergence(file, 39, &[(0, 1)]));
    let all = bench.conflicts();
    assert_eq!(all.len(), MAX_SETTLED);
    assert!(
        all.iter()
            .all(|entry| entry.path.as_deref() == Some(b"/outer/inner/file"))
    );
    assert_eq!(
        all[MAX_SETTLED - 1].conflict.divergence.theirs.last().counter,
        39,
        "the newest stay"
    );
    let (page, end) = bench.state.conflicts(None, 10, false).unwrap();
    assert!(page.len() == 10 && !end && page[0].path.is_none());
    let last = &page[9].conflict;
    let after = Some((last.divergence.chunk.inode, last.id));
    let (rest, end) = bench.state.conflicts(after, 10, false).unwrap();
    assert!(rest.len() == MAX_SETTLED - 10 && end && rest[0].conflict.id > last.id);
}
