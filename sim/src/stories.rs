//! Seeds in which little happens, but in the worst order: one chunk, a few writes and syncs, silence, and then everybody goes one
//! after the other. In a busy world something else soon makes durable, or brings on, what would be missed here.

use dfs_common::Level;

use crate::random::Random;
use crate::schedule::{BLOCKS, CHUNKS, CLIENTS, Fault, Kind, NODES, Op, Step, What};

/// A last write, which the one that goes last may not hear of, and then they go. Returns when that begins.
pub(crate) fn cascade(random: &mut Random, chunk: u64, at_ms: u64, steps: &mut Vec<Step>) -> u64 {
    let first = random.below(NODES as u64) as usize;
    let last = (first + NODES - 1) % NODES;
    if random.chance(40) {
        let (kind, ms) = (Kind::PartialPartition, random.between(150, 600));
        for turn in 0..NODES - 1 {
            let b = (first + turn) % NODES;
            let what = What::Fault(Fault::Cut { kind, a: last, b, ms });
            steps.push(Step { at_ms, what });
        }
    }
    let written_ms = at_ms + random.below(50);
    write_and_sync(random, chunk, written_ms, steps);
    let begins_ms = written_ms + random.between(5, 150);
    let fault = Fault::Cascade {
        first,
        count: random.between(2, NODES as u64) as usize,
        apart_ms: if random.chance(50) {
            random.below(30)
        } else {
            random.between(30, 900)
        },
        power: random.next(),
        back_ms: random.between(100, 2_500),
    };
    steps.push(Step {
        at_ms: begins_ms,
        what: What::Fault(fault),
    });
    begins_ms
}

/// A sync that is a request of its own reaches fewer disks than one that comes with a write.
fn write_and_sync(random: &mut Random, chunk: u64, at_ms: u64, steps: &mut Vec<Step>) {
    let client = random.below(CLIENTS as u64) as usize;
    let level = Level::Quorum;
    let write = Op::Write {
        chunk,
        first: random.below(u64::from(BLOCKS)) as u32,
        blocks: 1,
        conditional: false,
        sync: random.chance(25),
        small: true,
        level,
    };
    let sync = random.chance(60).then_some(Op::Sync { chunk, level });
    for op in [Some(write), sync].into_iter().flatten() {
        let what = What::Client { client, op };
        steps.push(Step { at_ms, what });
    }
}

/// Syncs fail on one disk after the other, while somebody goes on writing: each store is condemned,
/// and the last must wait.
fn condemned(random: &mut Random, chunk: u64, steps: &mut Vec<Step>) {
    let first = random.below(NODES as u64) as usize;
    let mut at = random.between(300, 900);
    let apart_ms = random.between(50, 1_500);
    for turn in 0..random.between(2, NODES as u64) as usize {
        let fault = Fault::Media {
            node: (first + turn) % NODES,
            kind: Kind::FsyncEio,
            draw: random.next(),
        };
        let what = What::Fault(fault);
        steps.push(Step { at_ms: at, what });
        let until = at + apart_ms;
        while at < until {
            write_and_sync(random, chunk, at, steps);
            at += random.between(20, 200);
        }
    }
    for _ in 0..random.between(5, 20) {
        at += random.between(50, 600);
        write_and_sync(random, chunk, at, steps);
    }
}

pub(crate) fn draw(random: &mut Random, steps: &mut Vec<Step>) {
    let chunk = random.below(CHUNKS);
    if random.chance(25) {
        return condemned(random, chunk, steps);
    }
    let mut at = random.between(300, 900);
    for _ in 0..random.between(1, 3) {
        for _ in 0..random.between(1, 4) {
            write_and_sync(random, chunk, at, steps);
            at += random.between(20, 400);
        }
        // Long enough to come to rest, or not.
        at += random.below(2_200);
        at = cascade(random, chunk, at, steps) + random.between(100, 2_500);
        let read = Op::Read {
            chunk,
            pick: random.next(),
            level: Level::Quorum,
        };
        let client = random.below(CLIENTS as u64) as usize;
        let what = What::Client { client, op: read };
        steps.push(Step { at_ms: at, what });
    }
}
