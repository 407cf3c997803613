//! Schedules by hand, for what seeds rarely meet.

use dfs_common::Level;
use dfs_sim::run;
use dfs_sim::schedule::{Character, Fault, Kind, NODES, Op, Schedule, Step, What};

fn at(at_ms: u64, what: What) -> Step {
    Step { at_ms, what }
}

fn write(client: usize, level: Level) -> What {
    let op = Op::Write {
        chunk: 0,
        first: 0,
        blocks: 1,
        conditional: false,
        sync: false,
        small: true,
        level,
    };
    What::Client { client, op }
}

fn read(client: usize, pick: u64, level: Level) -> What {
    let op = Op::Read { chunk: 0, pick, level };
    What::Client { client, op }
}

fn holds(steps: Vec<Step>, which: &str) {
    let schedule = Schedule {
        seed: 1,
        character: Character::default(),
        steps,
    };
    let outcome = run(&schedule, true);
    let violation = outcome
        .violation
        .map(|violation| format!("{}: {}", violation.invariant, violation.detail));
    assert_eq!(violation, None, "{which}\n{}", outcome.log.join("\n"));
}

/// What somebody read at this level stays, though everybody is killed before the head had it in its store.
#[test]
fn what_was_read_outlives_everybody_being_killed() {
    for (write_level, read_level) in [
        (Level::Quorum, Level::Quorum),
        (Level::One, Level::Quorum),
        (Level::All, Level::One),
    ] {
        for slow in 0..NODES {
            for pick in 0..3 {
                let steps = vec![
                    at(500, write(0, write_level)),
                    at(
                        1_000,
                        What::Fault(Fault::Slow {
                            node: slow,
                            ms: 400,
                            until_ms: 2_000,
                        }),
                    ),
                    at(1_100, write(0, write_level)),
                    at(1_150, read(1, pick, read_level)),
                    at(
                        1_300,
                        What::Fault(Fault::AllKilled {
                            first: slow,
                            apart_ms: 401,
                        }),
                    ),
                    at(1_900, read(2, 0, read_level)),
                    at(3_500, read(3, 0, read_level)),
                ];
                holds(
                    steps,
                    &format!("{write_level}/{read_level}, storage-{} slow, pick {pick}", slow + 1),
                );
            }
        }
    }
}

/// A chain at rest is woken by a write that its last member does not hear of, and then the others go.
#[test]
fn the_first_write_after_a_rest_is_safe() {
    for first in 0..NODES {
        for after in (6..130).step_by(4) {
            for (apart_ms, power) in [(0, 0), (8, 0), (30, 7)] {
                let last = (first + NODES - 1) % NODES;
                let mut steps = vec![at(500, write(0, Level::Quorum))];
                for turn in 0..NODES - 1 {
                    let b = (first + turn) % NODES;
                    let (kind, ms) = (Kind::PartialPartition, 400);
                    steps.push(at(2_990, What::Fault(Fault::Cut { kind, a: last, b, ms })));
                }
                steps.push(at(3_000, write(1, Level::Quorum)));
                let cascade = Fault::Cascade {
                    first,
                    count: NODES - 1,
                    apart_ms,
                    power,
                    back_ms: 2_500,
                };
                steps.push(at(3_000 + after, What::Fault(cascade)));
                steps.push(at(4_500, read(2, 0, Level::Quorum)));
                holds(steps, &format!("first {first}, after {after} ms, {apart_ms} ms apart"));
            }
        }
    }
}
