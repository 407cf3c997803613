//! A crash after every single step, with everything a crash may leave: what is found is a state the store went through,
//! not older than the last sync (after a kill: than the last answer).

use proptest::prelude::*;

use super::*;
use crate::disk::sim::Image;

/// States after each operation, and how far answers and syncs had come when the machine went down.
struct History {
    states: Vec<Model>,
    answered: usize,
    synced: usize,
}

/// Runs `ops` until the crash.
fn play(disk: &SimDisk, ops: &[Op]) -> History {
    let mut history = History {
        states: vec![Model::new()],
        answered: 0,
        synced: 0,
    };
    let Ok((mut store, _)) = ChunkStore::open(Arc::new(disk.clone()), options(24)) else {
        return history;
    };
    let mut model = Model::new();
    for (n, op) in (0_u64..).zip(ops) {
        if matches!(op, Op::Reopen) {
            drop(store);
            match ChunkStore::open(Arc::new(disk.clone()), options(24)) {
                Ok((reopened, _)) => store = reopened,
                Err(_) => return history,
            }
            history.synced = history.answered;
            continue;
        }
        let before = model.clone();
        if step(&store, &mut model, op, n).is_err() {
            // It may have happened or not.
            let mut after = before;
            let twin = open(&SimDisk::new(), 24).0;
            if step(&twin, &mut after, op, n).is_ok() {
                history.states.push(after);
            }
            return history;
        }
        history.states.push(model.clone());
        history.answered = history.states.len() - 1;
        if matches!(op, Op::Sync | Op::Checkpoint) {
            history.synced = history.answered;
        }
    }
    history
}

fn check(disk: &SimDisk, image: Image, history: &History, what: &str) {
    let after = disk.image(image);
    let (store, report) = open(&after, 24);
    assert_eq!(report.rot, [], "{what}");
    let found = contents(&store);
    let least = if image == Image::Kill {
        history.answered
    } else {
        history.synced
    };
    assert!(
        history.states[least..].contains(&found),
        "{what}: found a state that is older than {least} or never was"
    );
    // It goes on, and a second crash finds that too.
    let mut model = found;
    step(
        &store,
        &mut model,
        &Op::Write {
            chunk: 1,
            first: 1,
            blocks: 3,
            last: 9,
        },
        5000,
    )
    .unwrap();
    store.sync().unwrap();
    drop(store);
    for second in [Image::Power, Image::Torn(3)] {
        let again = after.image(second);
        let (store, report) = open(&again, 24);
        assert_eq!(report.rot, [], "{what}, then {second:?}");
        assert_eq!(contents(&store), model, "{what}, then {second:?}");
    }
    let rebuilt = after.image(Image::Power);
    let _ = crate::disk::Disk::remove(&rebuilt, "checkpoint");
    assert_eq!(
        contents(&open(&rebuilt, 24).0),
        model,
        "{what}, then without checkpoint"
    );
}

fn crash_everywhere(ops: &[Op], every: u64) {
    let disk = SimDisk::new();
    play(&disk, ops);
    let steps = disk.steps();
    let mut at = every % 7;
    while at <= steps {
        let disk = SimDisk::new();
        disk.crash_at(at);
        let history = play(&disk, ops);
        for image in [Image::Kill, Image::Power, Image::Torn(at), Image::Torn(at ^ 0xffff)] {
            check(
                &disk,
                image,
                &history,
                &format!("crash at step {at} of {steps}, {image:?}"),
            );
        }
        at += every;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_crash_loses_what_was_promised(ops in proptest::collection::vec(super::oracle::op(), 1..60)) {
        let disk = SimDisk::new();
        play(&disk, &ops);
        crash_everywhere(&ops, 1 + disk.steps() / 8);
    }
}

#[test]
fn every_step_of_a_run_with_compaction_survives_a_crash() {
    let mut ops = Vec::new();
    for round in 0..9_u32 {
        for chunk in 0..5 {
            ops.push(Op::Write {
                chunk,
                first: round % 4,
                blocks: 3,
                last: 4096,
            });
        }
        match round % 3 {
            0 => ops.extend([Op::Sync, Op::Maintain]),
            1 => ops.extend([
                Op::Install {
                    chunk: 6,
                    runs: vec![(0, 3), (1, 2)],
                },
                Op::Maintain,
            ]),
            _ => ops.extend([
                Op::Remove { chunk: 2 },
                Op::Checkpoint,
                Op::Drop { chunk: 3 },
                Op::Maintain,
            ]),
        }
    }
    crash_everywhere(&ops, 1);
}
