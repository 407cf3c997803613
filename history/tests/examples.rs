//! Histories small enough to be judged by eye.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fmt::Write as _;

use dfs_history::{Action, Budget, ClientId, Key, Operation, Verdict, check, goes_back, stale_reads};

/// `client called returned what`, a line each: `1 0 5 w1`, `2 3 9 r0`, `1 4 - w2` (no answer), `1 0 5 c1>2+` (swapped),
/// `c1>2-` (refused), `c1>2?`.
fn history(lines: &str) -> Vec<Operation<u32>> {
    lines.split(',').map(|line| operation(line.trim())).collect()
}

fn operation(line: &str) -> Operation<u32> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (kind, rest) = words[3].split_at(1);
    let action = match kind {
        "r" => Action::Read(rest.parse().unwrap()),
        "w" => Action::Write(rest.parse().unwrap()),
        "c" => {
            let (expected, new) = rest[..rest.len() - 1].split_once('>').unwrap();
            Action::Cas {
                expected: expected.parse().unwrap(),
                new: new.parse().unwrap(),
                swapped: match rest.chars().last() {
                    Some('+') => Some(true),
                    Some('-') => Some(false),
                    _ => None,
                },
            }
        }
        other => panic!("{other}"),
    };
    Operation {
        client: ClientId(words[0].parse().unwrap()),
        key: Key(0),
        action,
        called: words[1].parse().unwrap(),
        returned: words[2].parse().ok(),
    }
}

fn verdict(lines: &str) -> Verdict<u32> {
    check(&history(lines), &0, Budget::default())
}

#[track_caller]
fn passes(lines: &str) {
    let verdict = verdict(lines);
    assert!(verdict.is_linearizable(), "{lines}\n{verdict}");
}

#[track_caller]
fn fails(lines: &str) {
    let verdict = verdict(lines);
    assert!(verdict.is_violation(), "{lines}\n{verdict}");
}

#[test]
fn nothing_and_little() {
    passes("1 0 1 r0");
    fails("1 0 1 r1");
    passes("1 0 1 w1, 1 2 3 r1");
    fails("1 0 1 w1, 1 2 3 r0");
    assert!(check::<u32>(&[], &0, Budget::default()).is_linearizable());
}

#[test]
fn concurrent_operations_may_come_in_either_order() {
    passes("1 0 9 w1, 2 1 2 r0, 2 3 4 r1");
    fails("1 0 9 w1, 2 1 2 r1, 2 3 4 r0");
    passes("1 0 9 w1, 2 0 9 w2, 3 1 2 r2, 3 3 4 r1");
    fails("1 0 9 w1, 2 0 9 w2, 3 1 2 r2, 3 3 4 r1, 3 5 6 r2");
    // At the same instant: concurrent.
    passes("1 0 5 w1, 2 5 6 r0");
    fails("1 0 5 w1, 2 6 7 r0");
}

#[test]
fn two_readers_must_agree() {
    fails("1 0 9 w1, 2 0 9 w2, 3 10 11 r1, 4 12 13 r2");
    fails("1 0 1 w1, 2 10 20 w2, 3 11 12 r2, 4 13 14 r1");
}

#[test]
fn an_unknown_write_may_come_late_once_or_never() {
    passes("1 0 - w1, 2 1 2 r0, 2 100 101 r1");
    passes("1 0 - w1, 2 1 2 r0, 2 100 101 r0");
    fails("1 0 - w1, 2 1 2 r1, 2 100 101 r0");
    fails("1 0 - w1, 2 1 2 r1, 2 3 4 w2, 2 5 6 r1");
    fails("2 1 2 r1, 1 3 - w1");
    passes("1 0 - w1, 2 1 2 w2, 2 3 4 r2, 2 5 6 r1, 2 7 8 w3, 2 9 10 r3");
}

#[test]
fn the_same_value_may_be_put_there_twice() {
    passes("1 0 1 w1, 1 2 3 w2, 1 4 - w1, 2 5 6 r2, 2 7 8 r1");
    fails("1 0 1 w1, 1 2 3 w2, 2 5 6 r2, 2 7 8 r1");
    passes("1 0 1 w1, 1 2 - w0, 2 3 4 r0, 2 5 6 r0");
}

#[test]
fn compare_and_swap() {
    passes("1 0 1 c0>1+, 1 2 3 r1");
    fails("1 0 1 c1>2+");
    fails("1 0 1 c0>2-");
    passes("1 0 9 c0>1+, 2 0 9 c0>2-, 1 10 11 r1");
    fails("1 0 9 c0>1+, 2 0 9 c0>2+");
    // Nobody saw 1, but somebody saw that 0 was gone.
    passes("1 0 - w1, 2 1 2 c0>3-, 2 3 4 w0, 2 5 6 r0");
    fails("2 1 2 c0>3-, 2 3 4 w0, 2 5 6 r0");
    passes("1 0 - c0>1?, 2 1 2 r0, 2 3 4 r1");
    passes("1 0 - c0>1?, 2 1 2 w5, 2 3 4 r5");
    fails("1 0 - c0>1?, 2 1 2 w5, 2 3 4 r1");
}

#[test]
fn registers_are_judged_one_by_one() {
    let mut two = history("1 0 1 w1, 1 2 3 r1");
    let mut other = history("1 0 1 w7, 1 2 3 r0");
    assert!(check(&two, &0, Budget::default()).is_linearizable());
    for operation in &mut other {
        operation.key = Key(3);
    }
    two.extend(other);
    let Verdict::Violation(counterexample) = check(&two, &0, Budget::default()) else {
        panic!("a stale read of register 3");
    };
    assert_eq!(counterexample.key, Key(3));
}

#[test]
fn the_counterexample_is_what_matters() {
    let mut lines = String::from("9 0 1 w100");
    for at in 1..60_u32 {
        let _ = write!(
            lines,
            ", 1 {} {} w{at}, 2 {} {} r{at}",
            at * 10,
            at * 10 + 3,
            at * 10 + 4,
            at * 10 + 5
        );
    }
    lines += ", 3 700 701 r58, 3 702 703 r59";
    let Verdict::Violation(counterexample) = verdict(&lines) else {
        panic!("58 was overwritten");
    };
    let said = counterexample.to_string();
    assert!(counterexample.operations.len() <= 3, "{said}");
    assert!(said.contains("read  58") && said.contains("write 59"), "{said}");
    assert_eq!(counterexample.of, 121);
}

#[test]
fn too_much_is_undecided_and_says_so() {
    // Sixteen writes at once, a refused CAS that makes each of them matter, and an answer that nothing explains.
    let mut lines = String::from("99 0 999 c77>78-");
    for at in 1..=16 {
        let _ = write!(lines, ", {at} 0 1000 w{at}");
    }
    lines += ", 50 2000 2001 c1>0-, 51 2002 2003 r1, 51 2004 2005 r2";
    let verdict = check(&history(&lines), &0, Budget { steps: 1000 });
    let Verdict::Undecided { steps: 1000, .. } = verdict else {
        panic!("{verdict}");
    };
    assert!(verdict.to_string().contains("larger budget"));
}

#[test]
fn a_client_that_goes_back() {
    let back = |lines: &str| goes_back(&history(lines), &0).is_some();
    assert!(!back("1 0 1 w1, 1 2 3 w2, 2 4 5 r1, 2 6 7 r2"));
    assert!(back("1 0 1 w1, 1 2 3 w2, 2 4 5 r2, 2 6 7 r1"));
    assert!(back("1 0 1 w1, 2 4 5 r1, 2 6 7 r0"));
    // Two clients may see different ages.
    assert!(!back("1 0 1 w1, 1 2 3 w2, 2 4 5 r2, 3 6 7 r1"));
    // Nobody knows which of two concurrent writes is newer, until somebody saw both.
    assert!(!back("1 0 9 w1, 2 0 9 w2, 3 10 11 r2, 3 12 13 r1"));
    assert!(back("1 0 9 w1, 2 0 9 w2, 3 10 11 r2, 3 12 13 r1, 3 14 15 r2"));
    assert!(!back(
        "1 0 9 w1, 2 0 9 w2, 3 10 11 r2, 3 12 13 r2, 3 14 15 r1, 3 16 17 r1"
    ));
    assert!(back("1 0 1 w1, 1 2 3 w2, 2 4 5 r2, 2 6 7 r2, 2 8 9 r0"));
    // Written twice: either may be meant.
    assert!(!back(
        "1 0 1 w1, 1 2 3 w2, 1 4 - w1, 2 4 5 r2, 2 6 7 r1, 2 8 9 r2, 2 10 11 r1"
    ));
}

#[test]
fn stale_reads_are_those_that_are_certain() {
    let stale = |lines: &str| stale_reads(&history(lines), &0).len();
    assert_eq!(stale("1 0 1 w1, 1 2 3 w2, 2 4 5 r1, 2 6 7 r2, 2 8 9 r0"), 2);
    assert_eq!(stale("1 0 1 w1, 1 2 9 w2, 2 4 5 r1"), 0, "not acknowledged yet");
    assert_eq!(stale("1 0 9 w1, 2 0 9 w2, 2 10 11 r1"), 0, "concurrent");
    assert_eq!(stale("1 0 - w1, 2 3 4 w2, 2 10 11 r1"), 0, "may have come late");
    let found = &stale_reads(&history("1 0 1 w1, 2 2 3 r0"), &0)[0];
    assert!(found.to_string().contains("write 1"), "{found}");
}
