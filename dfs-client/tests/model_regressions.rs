//! Programs that once found a fault, smallest form. Each failed before its fault was mended.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;

use harness::cluster::Servers;
use harness::program::{How, Nodes, Program, Step};
use harness::run::{FORGETFUL, run};
use harness::wire::{Cable, Loss};

const ALL: Nodes = Nodes::All;

const BLOCK: u64 = 4096;

const MIB: u64 = 1 << 20;

/// Runs it under some seeds: what is quicker than what differs.
fn must_hold(servers: Servers, steps: &[Step]) {
    must_hold_under(0..8, servers, steps);
}

fn must_hold_under(seeds: impl IntoIterator<Item = u64>, servers: Servers, steps: &[Step]) {
    for seed in seeds {
        let program = Program {
            seed,
            steps: steps.to_vec(),
        };
        let report = run(&program, servers, true);
        if let Err(wrong) = report.verdict {
            panic!("seed {seed}: {wrong}\n{}", report.log.join("\n"));
        }
    }
}

fn create(m: u8) -> Step {
    Step::Create { m, f: 0 }
}

fn open(m: u8) -> Step {
    Step::Open {
        m,
        f: 0,
        how: How::Write,
    }
}

fn write(m: u8, at: u64, len: u32) -> Step {
    Step::Write { m, h: 0, at, len }
}

fn flush(m: u8) -> Step {
    Step::Flush { m, h: 0 }
}

fn fsync(m: u8) -> Step {
    Step::Fsync {
        m,
        h: 0,
        data_only: false,
    }
}

fn fdatasync(m: u8) -> Step {
    Step::Fsync {
        m,
        h: 0,
        data_only: true,
    }
}

fn cut_to(m: u8, len: u64) -> Step {
    Step::SetLength { m, h: 0, len }
}

fn wait(ms: u32) -> Step {
    Step::Wait { ms }
}

const fn power() -> Step {
    Step::Power {
        nodes: ALL,
        back_ms: 100,
    }
}

const fn crash() -> Step {
    Step::Crash {
        nodes: ALL,
        back_ms: 100,
    }
}

/// Item 1: of two overwrites of a block that are written again, the older one stayed.
#[test]
fn the_newest_of_two_lost_overwrites_is_written_again() {
    let two = [create(0), write(0, 0, 4096), flush(0), write(0, 0, 4096), flush(0)];
    must_hold(Servers::NEW, &[&two[..], &[power(), fsync(0)]].concat());
    must_hold(Servers::NEW, &[&two[..], &[power(), fdatasync(0), power()]].concat());
}

/// Item 1: small appends to one block, all kept, were answered by EIO.
#[test]
fn small_writes_of_one_block_are_written_again() {
    let mut steps = vec![create(0)];
    for at in 0..5 {
        steps.extend([write(0, at * 10, 10), flush(0)]);
    }
    steps.extend([power(), fsync(0), power()]);
    must_hold(Servers::NEW, &steps);
}

/// Item 1: where another mount has written since, nothing was written again, and nothing synced either.
#[test]
fn what_others_wrote_over_a_lost_write_is_synced_with_it() {
    let steps = [
        create(0),
        write(0, 0, 4096),
        flush(0),
        crash(),
        open(1),
        write(1, 0, 4096),
        flush(1),
        fsync(0),
        power(),
    ];
    must_hold(Servers::NEW, &steps);
}

/// Item 2: the length of a write after another mount's truncation was never told.
#[test]
fn a_write_after_anothers_truncation_keeps_its_length() {
    for sync in [fsync(1), fdatasync(1), flush(1)] {
        let steps = [
            create(0),
            cut_to(0, 8 * MIB),
            open(1),
            cut_to(0, 0),
            write(1, MIB, 4096),
            sync,
        ];
        must_hold(Servers::NEW, &steps);
    }
}

/// Item 3: fsync by a mount that did not write synced nothing.
#[test]
fn fsync_covers_what_another_mount_closed() {
    let closed = [create(0), write(0, 0, 4096), flush(0), open(1)];
    let read = Step::Read {
        m: 1,
        h: 0,
        at: 0,
        len: 4096,
    };
    must_hold(Servers::NEW, &[&closed[..], &[read, fsync(1), power()]].concat());
    must_hold(Servers::NEW, &[&closed[..], &[fdatasync(1), power()]].concat());
    must_hold(
        Servers::NEW,
        &[&closed[..], &[Step::Kill { m: 0 }, fsync(1), power()]].concat(),
    );
}

/// Item 5: a mount that the group had given up read zeros where an unlinked file had been.
#[test]
fn a_mount_that_was_given_up_reads_no_zeros() {
    for cable in [Cable::Group, Cable::Both] {
        let steps = [
            create(1),
            write(1, 0, 4096),
            fsync(1),
            open(0),
            Step::Cut {
                m: 0,
                cable,
                ms: 75_000,
            },
            Step::Unlink { m: 1, f: 0 },
            Step::Close { m: 1, h: 0 },
            wait(68_000),
            Step::Read {
                m: 0,
                h: 0,
                at: 0,
                len: 4096,
            },
        ];
        must_hold(Servers::OLD, &steps);
        must_hold(Servers::NEW, &steps);
    }
}

/// Item 6: what a handle had read ahead outlived another mount's close and this mount's next open.
#[test]
fn an_open_ends_what_older_handles_read_ahead() {
    let on = |times| Step::ReadOn { m: 1, h: 0, times };
    let steps = [
        create(0),
        cut_to(0, 8 * MIB),
        open(1),
        on(12),
        write(0, 2 * MIB, 4096),
        flush(0),
        open(1),
        on(20),
    ];
    must_hold(Servers::NEW, &steps);
    let stat = Step::Stat { m: 1, f: 0 };
    let steps = [
        create(0),
        cut_to(0, 8 * MIB),
        open(1),
        on(12),
        write(0, 2 * MIB, 4096),
        flush(0),
        stat,
        open(1),
        on(20),
    ];
    must_hold(Servers::NEW, &steps);
}

/// Item 7: blocks that a dead mount left beyond the end showed when the file grew over them.
#[test]
fn a_dead_writers_bytes_never_show_beyond_the_end() {
    let died = |after_ms| {
        [
            create(0),
            fsync(0),
            open(1),
            write(0, 0, 70_000),
            wait(after_ms),
            Step::Kill { m: 0 },
        ]
    };
    for after_ms in [550, 700, 900] {
        let grown = [cut_to(1, 100_000)];
        must_hold(Servers::NEW, &[&died(after_ms)[..], &grown].concat());
        let written = [write(1, 100_000, 10), flush(1)];
        must_hold(Servers::NEW, &[&died(after_ms)[..], &written].concat());
        let again = Step::Open {
            m: 1,
            f: 0,
            how: How::Truncate,
        };
        must_hold(
            Servers::NEW,
            &[&died(after_ms)[..], &[again, cut_to(1, 100_000)]].concat(),
        );
    }
}

/// Item 8: an fsync of a directory said 0 though a create in it had been refused, since another directory's fsync had told of it.
#[test]
fn every_directory_tells_of_its_own_refused_creates() {
    let make = |m, d| Step::Make { m, d, n: 0 };
    let sync = |m, d| Step::SyncDirectory { m, d };
    let steps = [
        create(0),
        // From now on it holds what it makes.
        wait(100),
        Step::MakeDirectory { m: 0, d: 0 },
        Step::MakeDirectory { m: 0, d: 1 },
        wait(3),
        Step::Cut {
            m: 0,
            cable: Cable::Group,
            ms: 4_000,
        },
        make(0, 0),
        make(0, 1),
        make(1, 0),
        make(1, 1),
        wait(5_000),
        sync(0, 0),
        sync(0, 1),
    ];
    must_hold(Servers::NEW, &steps);
}

/// Item 13: what a mount wrote again came back over what another had cut meanwhile.
#[test]
fn what_is_written_again_does_not_undo_a_truncation() {
    let steps = [
        create(0),
        write(0, 0, 8192),
        flush(0),
        power(),
        open(1),
        cut_to(1, BLOCK),
        fsync(0),
        cut_to(1, 8192),
    ];
    must_hold(Servers::NEW, &steps);
}

/// Item 13: a write or truncation that meets another mount's truncation is made after it.
#[test]
fn truncations_and_writes_of_two_mounts_all_succeed() {
    let cut = |m, len| Box::new(Step::SetLength { m, h: 0, len });
    let both = [create(0), open(1), Step::Together(cut(0, 5 * MIB), cut(1, 69))];
    must_hold(Servers::NEW, &both);
    let write = Box::new(write(0, 0, 20_000));
    let one = [create(0), open(1), Step::Together(write, cut(1, 10_000)), flush(0)];
    must_hold(Servers::NEW, &one);
    let behind = [
        create(0),
        cut_to(0, 4 * MIB),
        open(1),
        cut_to(0, 12_288),
        Step::Write {
            m: 1,
            h: 0,
            at: 0,
            len: 10,
        },
        wait(1_000),
    ];
    must_hold(Servers::NEW, &behind);
}

fn opens(m: u8, how: How) -> Step {
    Step::Open { m, f: 0, how }
}

fn append(m: u8, len: u32) -> Step {
    Step::Append { m, h: 0, len }
}

#[test]
fn a_lost_write_is_not_put_over_what_another_wrote_before_the_next_own_one() {
    let whole = |m| write(m, 0, 4_096);
    must_hold(
        Servers::NEW,
        &[
            create(2),
            whole(2),
            flush(2),
            open(1),
            whole(1),
            power(),
            write(2, 0, 10),
            fsync(1),
            fsync(2),
        ],
    );
    must_hold(
        Servers::NEW,
        &[
            create(0),
            open(1),
            whole(1),
            power(),
            flush(1),
            whole(0),
            write(1, 0, 10),
            fsync(0),
            power(),
        ],
    );
    let far = 9 * MIB;
    let part = |m| write(m, far, 10);
    must_hold(
        Servers::NEW,
        &[
            create(1),
            create(0),
            part(0),
            wait(1_000),
            part(1),
            Step::Together(Box::new(write(0, far + 14, 4_096)), Box::new(flush(0))),
            part(1),
            fsync(1),
            power(),
        ],
    );
}

#[test]
fn what_a_truncation_removed_is_not_sent_again_with_a_later_write_to_its_block() {
    must_hold(
        Servers::NEW,
        &[
            create(0),
            opens(1, How::Truncate),
            append(1, 10),
            flush(1),
            write(1, 1_809, 10),
            cut_to(0, 0),
            wait(1_000),
            fsync(0),
            power(),
        ],
    );
    // Nor if all that covered it was removed as well.
    must_hold(
        Servers::NEW,
        &[
            create(0),
            write(0, MIB, 10),
            power(),
            power(),
            power(),
            write(0, MIB, 4_096),
            write(0, MIB + 8_192, 4_096),
            opens(1, How::Truncate),
            fsync(0),
        ],
    );
}

#[test]
fn a_truncation_is_remembered_after_the_next_one() {
    must_hold(
        Servers::NEW,
        &[
            create(1),
            write(1, 0, 10),
            open(2),
            Step::Power {
                nodes: Nodes::Chain(1),
                back_ms: 283,
            },
            cut_to(1, 4_096),
            Step::Power {
                nodes: Nodes::Chain(4),
                back_ms: 423,
            },
            cut_to(2, 0),
            write(2, 4 * MIB, 4_096),
            append(2, 10),
            cut_to(2, 4_198_400),
            fsync(1),
        ],
    );
}

#[test]
fn opening_with_truncation_removes_what_was_sent_and_not_told() {
    must_hold(
        Servers::NEW,
        &[
            create(2),
            open(0),
            open(1),
            write(0, 0, 10),
            Step::Kill { m: 2 },
            write(1, 0, 4_096),
            wait(1_000),
            Step::Kill { m: 1 },
            opens(2, How::Truncate),
            fsync(2),
        ],
    );
    // Whose writer lives is not told of a loss.
    must_hold(
        Servers::NEW,
        &[
            create(2),
            write(2, 4_190_208, 4_096),
            wait(1_000),
            opens(0, How::Truncate),
            write(0, 4_190_208, 10),
            flush(0),
            flush(2),
        ],
    );
}

#[test]
fn a_truncation_to_less_than_was_known_and_more_than_there_is_removes_nothing() {
    must_hold(
        Servers::NEW,
        &[
            create(1),
            open(0),
            write(1, 4_198_400, 4_096),
            flush(1),
            cut_to(0, 0),
            write(0, 0, 4_096),
            wait(1_000),
            cut_to(1, 8_192),
        ],
    );
}

#[test]
fn what_others_wrote_over_is_no_loss() {
    must_hold(
        Servers::NEW,
        &[
            create(1),
            cut_to(1, 6 * MIB),
            open(0),
            write(1, 0, 4_096),
            cut_to(0, 8),
            write(0, 0, 10),
            write(1, 446, 4_096),
            flush(0),
            fsync(1),
        ],
    );
}

#[test]
fn who_read_a_file_without_what_was_lost_reads_it_again() {
    must_hold(
        Servers::NEW,
        &[
            create(0),
            open(0),
            write(0, 2_359_296, 4_096),
            Step::Close { m: 0, h: 0 },
            power(),
            opens(1, How::Read),
            Step::ReadOn { m: 1, h: 0, times: 3 },
            fsync(0),
        ],
    );
}

#[test]
fn what_is_still_there_while_a_truncation_is_under_way_is_not_taken_for_what_outlived_it() {
    must_hold(
        Servers::NEW,
        &[
            create(1),
            cut_to(1, 1_044_480),
            opens(0, How::Truncate),
            write(1, 0, 4_096),
            cut_to(1, 12_288),
            write(1, 0, 10),
            write(1, 16_384, 10),
            Step::Lose {
                m: 0,
                cable: Cable::Nodes,
                loss: Loss::Late,
                count: 1,
            },
            opens(0, How::Truncate),
            flush(1),
            fsync(0),
        ],
    );
}

#[test]
fn a_sync_of_the_mount_says_what_no_handle_was_told_of() {
    must_hold(
        Servers::NEW,
        &[
            create(1),
            opens(0, How::Truncate),
            write(0, 4 * MIB, 10),
            cut_to(0, 5 * MIB),
            power(),
            write(1, 4 * MIB, 4_096),
            wait(3_000),
            Step::SyncAll { m: 0 },
            fsync(0),
        ],
    );
}

#[test]
fn an_fsync_covers_what_was_read_and_an_open_what_was_cut() {
    must_hold(
        Servers::NEW,
        &[
            create(1),
            open(2),
            fsync(2),
            write(1, 1_044_480, 4_096),
            write(2, 4_202_496, 10),
            wait(1_000),
            Step::Read {
                m: 2,
                h: 0,
                at: 1_044_932,
                len: 70_000,
            },
            fsync(2),
            power(),
        ],
    );
    must_hold(
        Servers::NEW,
        &[
            create(0),
            open(1),
            open(2),
            write(2, 0, 10),
            power(),
            write(1, 0, 4_096),
            fsync(2),
            Step::Read {
                m: 0,
                h: 0,
                at: 0,
                len: 4_096,
            },
            fsync(0),
            opens(2, How::Truncate),
        ],
    );
}

#[test]
fn an_fsync_that_failed_vouches_for_nobody_elses_write() {
    must_hold(
        Servers::NEW,
        &[
            create(1),
            open(1),
            write(1, 0, 4_096),
            Step::Close { m: 1, h: 0 },
            power(),
            open(0),
            write(0, 0, 4_096),
            Step::Close { m: 0, h: 0 },
            opens(1, How::Read),
            fsync(1),
            Step::Fsync {
                m: 1,
                h: 1,
                data_only: false,
            },
            power(),
        ],
    );
}

#[test]
fn who_ends_the_cut_of_a_dead_mount_keeps_its_own_writes() {
    must_hold(
        Servers::NEW,
        &[
            create(0),
            write(0, 0, 8_192),
            fsync(0),
            open(2),
            Step::Cut {
                m: 2,
                cable: Cable::Nodes,
                ms: 30_000,
            },
            // The mount dies when it has begun the cut, or before.
            Step::Together(Box::new(cut_to(2, 0)), Box::new(Step::Kill { m: 2 })),
            open(1),
            write(1, 0, 8_192),
            fsync(1),
            power(),
        ],
    );
}

#[test]
fn what_was_lost_before_the_last_own_write_is_missed_under_anothers_too() {
    must_hold(
        Servers::NEW,
        &[
            create(0),
            open(1),
            write(1, 0, 10),
            flush(1),
            power(),
            write(1, 20, 10),
            flush(1),
            write(0, 40, 10),
            flush(0),
            write(1, 60, 10),
            fsync(1),
        ],
    );
}

/// A mount that has not heard of a truncation writes to a chunk that the truncation did not find, and so is not refused. Lost with the
/// power, such a write was taken for one that had been truncated, and fsync said nothing. The model allows either order of what two
/// mounts do unless one has told the other, so this looks at the answer itself.
#[test]
fn a_lost_write_to_a_new_chunk_is_not_taken_for_a_truncated_one() {
    for at in [8 * MIB, 600 * MIB] {
        // The last: what is written to the chunk after the loss hides its age.
        for after in [&[][..], &[write(1, at + 5 * BLOCK, 4096), wait(2_000)]] {
            let before = [
                create(0),
                write(0, 0, 4096),
                fsync(0),
                open(1),
                write(1, at, 4096),
                wait(250),
                cut_to(0, 0),
                write(1, at, 4096),
                // It can be sent, and not told.
                Step::Cut {
                    m: 1,
                    cable: Cable::Group,
                    ms: 250,
                },
                wait(170),
                power(),
            ];
            let steps = [&before[..], after, &[fsync(1)]].concat();
            let report = run(&Program { seed: 1, steps }, Servers::NEW, true);
            report.verdict.unwrap();
            let fsyncs: Vec<&String> = report.log.iter().filter(|line| line.contains(" fsync: ")).collect();
            assert!(fsyncs[0].ends_with("fsync: 0"), "{fsyncs:?}");
            assert!(fsyncs[1].ends_with("(UnsyncedLost)"), "{fsyncs:?}");
        }
    }
}

/// Seeds 1166376 and 1434905: a cut of garbage ends in a block, or in front of one, that others
/// wrote to before.
#[test]
fn what_lies_before_a_cut_of_garbage_is_not_taken_for_cut() {
    let (mib, far) = (MIB, 9 * MIB);
    must_hold(
        Servers::NEW,
        &[
            create(0),
            open(1),
            open(2),
            write(0, mib + 8_197, 4_096),
            write(2, mib, 10),
            write(1, mib + 8_192, 6_000),
            write(1, mib, 4_096),
            wait(1_000),
            write(2, mib + 4_096, 4_096),
            fsync(1),
        ],
    );
    must_hold(
        Servers::NEW,
        &[
            create(1),
            open(0),
            write(0, far, 10),
            append(0, 10),
            write(1, far, 10),
            wait(600),
            open(2),
            write(2, far + 4_096, 10),
            wait(2_050),
            open(0),
            fsync(0),
        ],
    );
}

/// Seeds 1031884 and 1372277: what was sent while somebody truncated the file was lost to the
/// truncation, and another mount wrote there.
#[test]
fn a_write_waits_for_a_truncation_that_is_under_way() {
    let far = 9 * MIB;
    must_hold(
        Servers::NEW,
        &[
            create(2),
            open(0),
            open(1),
            write(2, 12_288, 4_096),
            cut_to(0, 0),
            cut_to(1, MIB),
            write(1, 12_288, 10),
            cut_to(0, 15_872),
            fsync(0),
            Step::Lose {
                m: 0,
                cable: Cable::Both,
                loss: Loss::Request,
                count: 2,
            },
            cut_to(0, 12_288),
            fsync(2),
        ],
    );
    must_hold(
        Servers::NEW,
        &[
            create(1),
            open(2),
            cut_to(1, far + 69_632),
            opens(0, How::Truncate),
            write(1, far + 2_502, 10),
            cut_to(0, far + 73_728),
            append(0, 10),
            cut_to(2, far),
            Step::Close { m: 0, h: 0 },
            Step::Together(Box::new(fdatasync(1)), Box::new(cut_to(2, far + 1_407))),
        ],
    );
}

/// Seeds 1046080 and 1345723: the truncation rewrites the block in which it ends, as it was before
/// the write that was lost.
#[test]
fn a_truncation_within_a_lost_write_does_not_hide_the_loss() {
    must_hold(
        Servers::NEW,
        &[
            create(0),
            write(0, 0, 8_192),
            fsync(0),
            write(0, 0, 8_192),
            wait(700),
            power(),
            cut_to(0, 4_277),
            fsync(0),
        ],
    );
}

/// Seeds 1080009, 1556775, 1590295 and 1096220: the sync in the background found the loss while the
/// truncation was under way.
#[test]
fn what_an_own_truncation_removes_is_no_loss() {
    for (wait_ms, at, length) in [
        (1_450, 4 * MIB - BLOCK, 4 * MIB - BLOCK),
        (1_000, MIB, 0),
        (1_480, 0, 10),
    ] {
        must_hold(
            Servers::NEW,
            &[
                create(0),
                open(1),
                flush(0),
                write(0, at, 4_096),
                wait(600),
                write(0, 0, 10),
                wait(wait_ms),
                power(),
                cut_to(0, length),
                fsync(0),
            ],
        );
    }
}

/// Seed 1062042: what another mount wrote in between was left out, so a part of the block had the
/// bytes of neither.
#[test]
fn what_others_wrote_in_between_is_written_again_with_the_rest_of_the_block() {
    must_hold(
        Servers::NEW,
        &[
            create(0),
            opens(1, How::Truncate),
            append(1, 8_192),
            write(0, 0, 70_000),
            wait(727),
            write(0, 0, 10),
            cut_to(1, MIB + BLOCK),
            power(),
            wait(500),
            Step::SyncAll { m: 0 },
            Step::Read {
                m: 0,
                h: 0,
                at: 0,
                len: 8_192,
            },
        ],
    );
}

/// Seeds 1152902, 1775343 and 1591057: the block in which a truncation ends has another mount's
/// bytes over this one's. Each failed only while the truncation's own rewriting of the block was
/// taken for a later write of what this mount had written there.
#[test]
fn a_truncation_does_not_bring_back_what_others_wrote_over() {
    for lost in [power(), crash()] {
        must_hold(
            Servers::NEW,
            &[
                create(0),
                open(1),
                write(1, 4_096, 10),
                cut_to(1, 8_192),
                write(0, 0, 8_192),
                fsync(0),
                cut_to(1, 7_091),
                lost,
                fsync(1),
                fsync(0),
                Step::Read {
                    m: 0,
                    h: 0,
                    at: 0,
                    len: 8_192,
                },
            ],
        );
    }
}

/// Seeds 1916582 and 1973520: what a mount had changed of a file that it held, and lost with the
/// hold.
#[test]
fn a_sync_of_the_mount_tells_of_refused_changes() {
    let steps = [
        create(2),
        cut_to(2, 5 * MIB),
        // From the second on it answers for itself.
        Step::Create { m: 2, f: 1 },
        Step::Cut {
            m: 2,
            cable: Cable::Both,
            ms: 1_465,
        },
        Step::SetLength {
            m: 2,
            h: 1,
            len: 4 * MIB,
        },
        Step::Rename { m: 0, f: 1, to: 0 },
        Step::SyncAll { m: 2 },
        Step::SyncAll { m: 2 },
    ];
    let report = run(
        &Program {
            seed: 1,
            steps: steps.to_vec(),
        },
        Servers::NEW,
        true,
    );
    report.verdict.unwrap();
    let syncs: Vec<&String> = report.log.iter().filter(|line| line.contains(" sync")).collect();
    assert!(
        syncs[0].contains("HoldLost") && syncs.last().unwrap().ends_with("sync: 0"),
        "{syncs:?}"
    );
}

/// Seed 1991857: the session expired, and only a handle of the earlier one was left to be told of
/// the loss.
#[test]
fn an_error_that_nobody_was_told_of_outlives_the_session() {
    let steps = [
        create(1),
        write(1, 0, 10),
        Step::Cut {
            m: 1,
            cable: Cable::Both,
            ms: 65_000,
        },
        wait(70_000),
        open(1),
        Step::Fsync {
            m: 1,
            h: 1,
            data_only: false,
        },
    ];
    let report = run(
        &Program {
            seed: 1,
            steps: steps.to_vec(),
        },
        Servers::NEW,
        true,
    );
    report.verdict.unwrap();
    assert!(
        !report.log.iter().any(|line| line.ends_with(" fsync: 0")),
        "{:?}",
        report.log
    );
}

/// Seed 3358361: what fsync has told of, `sync` tells of as well, once.
#[test]
fn a_sync_tells_once_of_the_loss_that_an_fsync_told_of() {
    must_hold(
        Servers::NEW,
        &[
            create(1),
            write(1, 0, 4096),
            Step::Close { m: 1, h: 0 },
            Step::Power {
                nodes: ALL,
                back_ms: 199,
            },
            wait(3000),
            open(1),
            fsync(1),
            Step::SyncAll { m: 1 },
            Step::SyncAll { m: 1 },
            fsync(1),
        ],
    );
}

/// Seed 3120054: a truncation of its own rewrote the end of what another mount had truncated
/// before; an fsync then took it for the write itself, and sent the truncated bytes again.
#[test]
fn what_others_truncated_stays_away_when_the_mount_truncates_after_it() {
    must_hold(
        Servers::NEW,
        &[
            create(0),
            open(1),
            write(1, MIB, 4096),
            Step::SetLength {
                m: 1,
                h: 0,
                len: MIB + 12288,
            },
            Step::Open {
                m: 0,
                f: 0,
                how: How::Truncate,
            },
            Step::SetLength {
                m: 1,
                h: 0,
                len: MIB + 1444,
            },
            Step::Crash {
                nodes: ALL,
                back_ms: 290,
            },
            Step::Append { m: 1, h: 0, len: 4096 },
            Step::SetLength {
                m: 1,
                h: 0,
                len: MIB + 2742,
            },
            fsync(1),
        ],
    );
}

/// Seed 3977761: `sync` wrote again what was lost with the power, and told nobody that the file had
/// changed.
#[test]
fn who_read_a_file_that_lacked_a_write_hears_of_it_when_a_sync_has_written_it_again() {
    must_hold(
        Servers::NEW,
        &[
            create(0),
            write(0, 0, 46),
            Step::Power {
                nodes: Nodes::Chain(2),
                back_ms: 299,
            },
            Step::Power {
                nodes: ALL,
                back_ms: 245,
            },
            Step::Open {
                m: 1,
                f: 0,
                how: How::Read,
            },
            Step::ReadOn { m: 1, h: 0, times: 2 },
            Step::SyncAll { m: 0 },
            Step::Open {
                m: 1,
                f: 0,
                how: How::Read,
            },
        ],
    );
}

/// Seeds 3090660 and 3709382: what the other mount wrote and synced had outlived the power, and
/// with it what it had been written over.
#[test]
fn who_was_written_over_before_the_power_went_has_lost_nothing() {
    let power = |back_ms| Step::Power { nodes: ALL, back_ms };
    must_hold(
        Servers::NEW,
        &[
            create(2),
            power(214),
            write(2, 2 * MIB, 10),
            open(1),
            write(1, 2 * MIB, 4096),
            flush(1),
            fsync(2),
            power(428),
            fsync(1),
        ],
    );
    must_hold(
        Servers::NEW,
        &[
            create(0),
            create(1),
            power(227),
            Step::Append { m: 0, h: 0, len: 10 },
            write(1, 0, 10),
            write(1, 3645, 10),
            fsync(0),
            power(62),
            fsync(1),
        ],
    );
}

/// A write whose bytes were not kept was taken for there because its block was newer: another mount
/// had cut it. The file then got the write's length, and zeros.
#[test]
fn a_write_that_was_cut_and_is_not_kept_is_told() {
    let steps = [
        create(0),
        write(0, 0, 3900),
        fsync(0),
        open(FORGETFUL),
        open(1),
        Step::Cut {
            m: FORGETFUL,
            cable: Cable::Group,
            ms: 490,
        },
        write(FORGETFUL, 3900, 100),
        wait(420),
        cut_to(1, 3800),
        wait(1500),
        fsync(FORGETFUL),
        open(0),
        Step::ReadOn { m: 0, h: 1, times: 2 },
    ];
    for seed in 0..8 {
        let program = Program {
            seed,
            steps: steps.to_vec(),
        };
        let report = run(&program, Servers::NEW, true);
        let told = |what: &str| report.log.iter().any(|line| line.contains(what));
        assert!(!told("length 4000"), "seed {seed}: {}", report.log.join("\n"));
        // It can not tell what is left of the write.
        if let Err(wrong) = report.verdict {
            assert!(
                wrong.to_string().contains("others have cut it"),
                "seed {seed}: {wrong}\n{}",
                report.log.join("\n")
            );
        }
    }
}

/// A truncation that a mount had not heard of came before its write. Then another mount wrote over
/// a part of that write, and the first one took the rest for lost.
#[test]
fn what_others_wrote_over_after_an_unknown_truncation_is_no_loss() {
    let length = |m, h, len| Step::SetLength { m, h, len };
    must_hold(
        Servers::NEW,
        &[
            create(0),
            length(0, 0, 4 * MIB),
            open(1),
            wait(3000),
            opens(1, How::Truncate),
            write(1, 4 * MIB, 4096),
            write(0, 4 * MIB, 8192),
            Step::Together(Box::new(flush(0)), Box::new(length(1, 1, 4 * MIB + 428))),
        ],
    );
}

/// A mount that was cut off had left bytes beyond the end of a file. Two others waited for it, and
/// both removed them: the second one removed what the first had written since.
#[test]
fn who_has_waited_for_a_dead_mount_does_not_remove_what_others_wrote_meanwhile() {
    must_hold(
        Servers::NEW,
        &[
            create(0),
            open(2),
            write(0, 4096, 4096),
            open(1),
            write(2, 0, 6000),
            Step::Unlink { m: 2, f: 0 },
            Step::Cut {
                m: 0,
                cable: Cable::Group,
                ms: 66_968,
            },
            write(1, 532, 4096),
            fsync(0),
            fsync(2),
        ],
    );
}

/// A mount had told the length of a write before the power went and another mount truncated the
/// file. Whether the write was lost or not, the truncation would have removed it.
#[test]
fn what_was_committed_before_a_truncation_is_no_loss() {
    must_hold(
        Servers::NEW,
        &[
            create(0),
            Step::Create { m: 2, f: 1 },
            write(0, 0, 10),
            wait(1000),
            Step::Cut {
                m: 2,
                cable: Cable::Nodes,
                ms: 32_538,
            },
            Step::Power {
                nodes: ALL,
                back_ms: 372,
            },
            opens(2, How::Truncate),
            fsync(0),
        ],
    );
}

/// Two runs of one slab were acknowledged before and after another mount removed what it took for
/// garbage. The second was there as it was written, and the first was taken for as good.
#[test]
fn runs_of_a_slab_that_a_cut_came_between_are_looked_at_one_by_one() {
    must_hold_under(
        (0..8).chain([20_025_567]),
        Servers::NEW,
        &[
            create(1),
            open(1),
            open(2),
            Step::Write {
                m: 1,
                h: 1,
                at: MIB + 8192,
                len: 10,
            },
            Step::Write {
                m: 2,
                h: 1,
                at: 0,
                len: 4096,
            },
            opens(2, How::Truncate),
            create(0),
            Step::Lose {
                m: 1,
                cable: Cable::Both,
                loss: Loss::Answer,
                count: 2,
            },
            write(1, MIB, 4096),
            wait(1000),
            write(0, MIB, 10),
            Step::Fsync {
                m: 1,
                h: 3,
                data_only: false,
            },
        ],
    );
}

/// What a sync of the whole mount had made durable of a closed file was still owed by whoever
/// opened it again, and by the mount: lost power made that an error though nothing was gone.
#[test]
fn a_closed_file_owes_nothing_after_a_sync_of_the_mount() {
    let closed = [
        create(0),
        write(0, 0, 10),
        Step::Close { m: 0, h: 0 },
        Step::SyncAll { m: 0 },
    ];
    let again = [open(0), write(0, 0, 10), flush(0), power()];
    for last in [fsync(0), Step::SyncAll { m: 0 }] {
        must_hold(Servers::NEW, &[&closed[..], &again, &[last]].concat());
    }
    let meanwhile = [power(), open(0), write(0, 0, 10), power(), fsync(0)];
    must_hold(Servers::NEW, &[&closed[..], &meanwhile].concat());
}

/// Another mount wrote over all of a kept write, and the next own write took that for its base. An
/// older kept write, which a truncation had removed, made it look as if nobody knew what of the
/// block was left; by the time it was sent again the older one was forgotten.
#[test]
fn what_others_wrote_over_is_kept_beside_what_a_truncation_removed() {
    let removed = [
        // In another block, and in the same.
        write(1, 0, 10),
        write(1, 12288, 10),
    ];
    for first in removed {
        must_hold_under(
            (0..8).chain([40_234_911]),
            Servers::NEW,
            &[
                create(1),
                first,
                write(1, 12288, 4096),
                opens(0, How::Truncate),
                cut_to(1, 13343),
                write(0, 12288, 4096),
                Step::SyncAll { m: 0 },
                crash(),
                write(1, 12288, 10),
                fsync(1),
            ],
        );
    }
}

/// A closed file's write was lost before the mount had synced it. The mount's later syncs vouch for
/// what came after that, and were taken to cover the lost write too.
#[test]
fn what_a_closed_file_lost_is_told_also_after_a_later_sync_of_the_mount() {
    must_hold_under(
        (0..8).chain([70_354_133]),
        Servers::NEW,
        &[
            create(0),
            write(0, 9 * MIB, 4096),
            fsync(0),
            write(0, 9 * MIB, 4096),
            wait(700),
            power(),
            Step::Close { m: 0, h: 0 },
            wait(3000),
            open(0),
            write(0, 9 * MIB, 10),
            wait(3000),
            fsync(0),
        ],
    );
}
