//! The judge over all that it must find and must not find.

use super::cell::{Part, Seq};
use super::judge::{By, Judge, Look, Mount, Violation, Wrong};

const A: Mount = Mount(0);
const B: Mount = Mount(1);

fn whole(seq: u32) -> Vec<Vec<Part>> {
    vec![vec![Part::Whole(Seq(seq))]]
}

/// One cell that mount A has written this often.
fn written(times: u32) -> Judge {
    let mut judge = Judge::new(1, 2);
    for _ in 0..times {
        let seq = judge.next_write(A, 0);
        judge.wrote(A, 0, seq);
    }
    judge
}

/// The same, synced by A after `times` writes.
fn synced(times: u32) -> Judge {
    let mut judge = written(times);
    let vouch = judge.owned(A);
    assert_eq!(judge.synced(By::Writer, &vouch), 1);
    judge
}

fn read(judge: &mut Judge, found: &[Vec<Part>]) -> Vec<Wrong> {
    let (violations, _) = judge.read(B, Look::Direct, found);
    violations.iter().map(|violation| violation.wrong).collect()
}

#[test]
fn what_was_synced_or_a_newer_write_is_right_and_all_else_is_named() {
    let cases: [(Vec<Part>, Option<Wrong>); 8] = [
        (vec![Part::Whole(Seq(2))], None),
        (vec![Part::Whole(Seq(3))], None),
        (vec![Part::Whole(Seq(1))], Some(Wrong::Stale)),
        (vec![Part::Zero], Some(Wrong::Lost)),
        (vec![Part::Absent], Some(Wrong::Lost)),
        (vec![Part::Torn("x".to_owned())], Some(Wrong::Torn)),
        (vec![Part::Whole(Seq(4))], Some(Wrong::Invented)),
        (vec![Part::Whole(Seq(2)), Part::Whole(Seq(3))], None),
    ];
    for (found, wrong) in cases {
        let mut judge = synced(2);
        let seq = judge.next_write(A, 0);
        judge.wrote(A, 0, seq);
        judge.power_cut();
        assert_eq!(
            read(&mut judge, std::slice::from_ref(&found)),
            Vec::from_iter(wrong),
            "{found:?}"
        );
    }
}

#[test]
fn of_a_cell_across_two_blocks_each_part_counts() {
    let mut judge = synced(2);
    let found = vec![vec![Part::Whole(Seq(2)), Part::Whole(Seq(1))]];
    assert_eq!(read(&mut judge, &found), vec![Wrong::Stale]);
    let mut judge = synced(2);
    let found = vec![vec![Part::Absent, Part::Whole(Seq(1))]];
    assert_eq!(read(&mut judge, &found), vec![Wrong::Lost]);
}

#[test]
fn a_violation_says_who_had_synced_and_is_counted_once() {
    let mut judge = synced(2);
    let (violations, _) = judge.read(B, Look::Direct, &whole(1));
    assert_eq!(
        violations,
        vec![Violation {
            wrong: Wrong::Stale,
            cell: 0,
            by: Some(By::Writer),
            floor: Seq(2),
            found: vec![Part::Whole(Seq(1))],
        }]
    );
    assert_eq!(
        violations[0].to_string(),
        "cell 0 is stale: write 2 was synced by the writer, found 1"
    );
    assert_eq!(read(&mut judge, &whole(1)), vec![]);
    assert!(judge.owned(A).is_empty());
}

#[test]
fn what_nobody_synced_may_go_with_the_power_and_not_before() {
    let mut judge = written(2);
    judge.closed(A);
    assert_eq!(read(&mut judge, &whole(1)), vec![Wrong::WentBack]);
    let mut judge = written(2);
    judge.closed(A);
    judge.power_cut();
    assert_eq!(read(&mut judge, &[vec![Part::Zero]]), vec![]);
}

#[test]
fn what_is_not_closed_others_need_not_see_but_its_own_mount() {
    let mut judge = written(2);
    assert_eq!(read(&mut judge, &[vec![Part::Absent]]), vec![]);
    let (violations, _) = judge.read(A, Look::Cached, &whole(1));
    assert_eq!(violations[0].wrong, Wrong::WentBack);
}

#[test]
fn nobody_sees_an_older_write_after_a_newer_one_until_power_is_cut() {
    let mut judge = written(3);
    assert_eq!(read(&mut judge, &whole(3)), vec![]);
    assert_eq!(read(&mut judge, &whole(2)), vec![Wrong::WentBack]);
    let mut judge = written(3);
    assert_eq!(read(&mut judge, &whole(3)), vec![]);
    judge.power_cut();
    assert_eq!(read(&mut judge, &whole(2)), vec![]);
}

#[test]
fn an_fsync_after_the_power_came_back_vouches_for_what_its_mount_wrote_before() {
    let mut judge = written(2);
    judge.power_cut();
    let vouch = judge.owned(A);
    let _ = judge.synced(By::Writer, &vouch);
    assert_eq!(read(&mut judge, &whole(1)), vec![Wrong::Stale]);
}

#[test]
fn after_an_error_nothing_is_claimed_until_it_is_written_anew() {
    let mut judge = written(2);
    judge.failed(A);
    let vouch = judge.owned(A);
    assert!(vouch.is_empty());
    assert_eq!(judge.synced(By::Writer, &vouch), 0);
    judge.power_cut();
    assert_eq!(read(&mut judge, &[vec![Part::Zero]]), vec![]);
    let seq = judge.next_write(A, 0);
    judge.wrote(A, 0, seq);
    let vouch = judge.owned(A);
    let _ = judge.synced(By::Writer, &vouch);
    assert_eq!(read(&mut judge, &whole(2)), vec![Wrong::Stale]);
}

#[test]
fn an_error_takes_nothing_from_what_was_synced_before_or_from_other_mounts() {
    let mut judge = synced(1);
    judge.failed(A);
    assert_eq!(read(&mut judge, &[vec![Part::Zero]]), vec![Wrong::Lost]);
    let mut judge = written(1);
    judge.failed(B);
    assert!(!judge.owned(A).is_empty());
}

#[test]
fn a_foreigner_vouches_for_what_it_has_read() {
    let mut judge = written(2);
    judge.closed(A);
    let (violations, known) = judge.read(B, Look::Direct, &whole(2));
    assert_eq!(violations, vec![]);
    assert!(judge.owned(B).is_empty());
    assert_eq!(judge.synced(By::OtherMount, &judge.owned(B).and(&known)), 1);
    judge.power_cut();
    let (violations, _) = judge.read(A, Look::Direct, &[vec![Part::Zero]]);
    assert_eq!(
        (violations[0].wrong, violations[0].by),
        (Wrong::Lost, Some(By::OtherMount))
    );
}

#[test]
fn a_mount_that_died_owes_nothing_but_what_was_synced() {
    let mut judge = synced(1);
    let seq = judge.next_write(A, 0);
    judge.wrote(A, 0, seq);
    judge.mount_died(A);
    assert!(judge.owned(A).is_empty());
    assert_eq!(read(&mut judge, &whole(1)), vec![]);
    assert_eq!(read(&mut judge, &[vec![Part::Zero]]), vec![Wrong::Lost]);
}

#[test]
fn what_a_mount_sees_of_its_own_writes_others_need_not_see_yet() {
    let mut judge = written(2);
    let (violations, _) = judge.read(A, Look::Direct, &whole(2));
    assert_eq!(violations, vec![]);
    assert_eq!(read(&mut judge, &[vec![Part::Absent]]), vec![]);
}
