//! The judge against a naive one, and against histories that are right or wrong by construction.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use dfs_history::{Action, Budget, ClientId, Key, Operation, Verdict, check, goes_back, stale_reads};
use proptest::prelude::*;

type History = Vec<Operation<u32>>;

/// Tries every order of every subset that has all the answered ones. Slow, and obviously right.
fn naive(operations: &[Operation<u32>], value: u32) -> bool {
    if operations.iter().all(|operation| operation.returned.is_none()) {
        return true;
    }
    (0..operations.len()).any(|at| {
        let candidate = &operations[at];
        let in_time = operations
            .iter()
            .all(|other| other.returned.is_none_or(|returned| returned >= candidate.called));
        let after = match &candidate.action {
            Action::Read(seen) => (candidate.returned.is_none() || *seen == value).then_some(value),
            Action::Write(new) => Some(*new),
            Action::Cas { expected, new, swapped } => {
                let swaps = *expected == value;
                let answered = candidate.returned.and(*swapped);
                answered
                    .is_none_or(|answer| answer == swaps)
                    .then_some(if swaps { *new } else { value })
            }
        };
        in_time
            && after.is_some_and(|after| {
                let mut rest = operations.to_vec();
                rest.remove(at);
                naive(&rest, after)
            })
    })
}

fn any_operation(values: u32) -> impl Strategy<Value = Operation<u32>> {
    let value = move || 0..values;
    let action = prop_oneof![
        4 => value().prop_map(Action::Read),
        3 => value().prop_map(Action::Write),
        1 => (value(), value(), any::<bool>()).prop_map(|(expected, new, swapped)| Action::Cas {
            expected,
            new,
            swapped: Some(swapped)
        }),
    ];
    (action, 0_u32..4, 0_u64..20, prop::option::weighted(0.8, 0_u64..8)).prop_map(|(action, client, called, lasts)| {
        let action = match (action, lasts) {
            (Action::Cas { expected, new, .. }, None) => Action::Cas {
                expected,
                new,
                swapped: None,
            },
            (action, _) => action,
        };
        Operation {
            client: ClientId(client),
            key: Key(0),
            action,
            called,
            returned: lasts.map(|lasts| called + lasts),
        }
    })
}

/// What a real register answers: each operation of random length takes effect at a random moment within it. Those of
/// unknown fate take effect at any time after their call, or never. Values are unique.
#[derive(Clone, Debug)]
struct Plan {
    kind: u8,
    client: u32,
    called: u64,
    lasts: u64,
    effect: u64,
    fate: u8,
}

fn plan(clients: u32) -> impl Strategy<Value = Plan> {
    (0_u8..10, 0..clients, 1_u64..40, 1_u64..60, any::<u64>(), 0_u8..20).prop_map(
        |(kind, client, called, lasts, effect, fate)| Plan {
            kind,
            client,
            called,
            lasts,
            effect,
            fate,
        },
    )
}

/// Each client runs its plans one after the other; `called` is its pause before.
fn run(plans: &[Plan]) -> History {
    let mut clocks = std::collections::BTreeMap::new();
    let mut timed: Vec<(u64, usize, u64, Option<u64>)> = Vec::new();
    for (at, plan) in plans.iter().enumerate() {
        let clock = clocks.entry(plan.client).or_insert(0_u64);
        let called = *clock + plan.called;
        let returned = called + plan.lasts;
        *clock = returned;
        let unknown = plan.fate < 2 && plan.kind >= 5;
        let effect = match (unknown, plan.fate) {
            (true, 0) => u64::MAX,
            (true, _) => called + plan.effect % 500,
            _ => called + plan.effect % (plan.lasts + 1),
        };
        timed.push((effect, at, called, (!unknown).then_some(returned)));
    }
    timed.sort_unstable();
    let (mut value, mut before) = (0, 7_000);
    let mut history: Vec<(usize, Operation<u32>)> = Vec::new();
    for (effect, at, called, returned) in timed {
        let plan = &plans[at];
        let fresh = at as u32 + 1;
        let action = match plan.kind {
            0..=4 => Action::Read(value),
            5..=8 => {
                if effect < u64::MAX {
                    (before, value) = (value, fresh);
                }
                Action::Write(fresh)
            }
            _ => {
                // Right half of the time.
                let expected = if plan.effect.is_multiple_of(2) { value } else { before };
                let swapped = expected == value;
                if swapped && effect < u64::MAX {
                    (before, value) = (value, fresh);
                }
                Action::Cas {
                    expected,
                    new: fresh,
                    swapped: returned.map(|_| swapped),
                }
            }
        };
        history.push((
            at,
            Operation {
                client: ClientId(plan.client),
                key: Key(0),
                action,
                called,
                returned,
            },
        ));
    }
    history.sort_by_key(|(at, _)| *at);
    history.into_iter().map(|(_, operation)| operation).collect()
}

fn end(history: &History) -> u64 {
    history
        .iter()
        .map(|operation| operation.returned.unwrap_or(operation.called))
        .max()
        .unwrap_or(0)
}

fn append(history: &mut History, client: u32, action: Action<u32>) {
    let called = end(history) + 1000;
    history.push(Operation {
        client: ClientId(client),
        key: Key(0),
        action,
        called,
        returned: Some(called + 1),
    });
}

/// Writes that were surely over before others began, and are therefore gone for ever.
fn overwritten(history: &History) -> Vec<(u32, u64)> {
    let write = |operation: &Operation<u32>| match operation.action {
        Action::Write(value) => operation.returned.map(|returned| (value, operation.called, returned)),
        _ => None,
    };
    let writes: Vec<_> = history.iter().filter_map(write).collect();
    writes
        .iter()
        .filter_map(|(value, _, returned)| {
            let later = writes.iter().filter(|(_, called, _)| called > returned);
            later.map(|(_, _, returned)| *returned).min().map(|gone| (*value, gone))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_naive_judge(operations in prop::collection::vec(any_operation(3), 0..8)) {
        let verdict = check(&operations, &0, Budget::default());
        prop_assert_eq!(verdict.is_linearizable(), naive(&operations, 0), "{}", verdict);
        if let Verdict::Violation(counterexample) = verdict {
            prop_assert!(!naive(&counterexample.operations, 0), "explained after all: {}", counterexample);
        }
    }

    #[test]
    fn agrees_where_values_are_many(operations in prop::collection::vec(any_operation(8), 0..8)) {
        let verdict = check(&operations, &0, Budget::default());
        prop_assert_eq!(verdict.is_linearizable(), naive(&operations, 0), "{}", verdict);
        if let Verdict::Violation(counterexample) = verdict {
            prop_assert!(!naive(&counterexample.operations, 0), "explained after all: {}", counterexample);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_a_register_answers_passes(plans in prop::collection::vec(plan(8), 0..300)) {
        let history = run(&plans);
        let verdict = check(&history, &0, Budget::default());
        prop_assert!(verdict.is_linearizable(), "{}", verdict);
        prop_assert_eq!(stale_reads(&history, &0), vec![]);
        prop_assert_eq!(goes_back(&history, &0), None);
    }

    #[test]
    fn a_stale_read_is_found(plans in prop::collection::vec(plan(5), 20..150), pick in any::<prop::sample::Index>()) {
        let mut history = run(&plans);
        let gone = overwritten(&history);
        let reads: Vec<usize> = (0..history.len())
            .filter(|at| matches!(history[*at].action, Action::Read(_)))
            .filter(|at| gone.iter().any(|(_, when)| *when < history[*at].called))
            .collect();
        prop_assume!(!reads.is_empty());
        let read = reads[pick.index(reads.len())];
        let called = history[read].called;
        let values: Vec<u32> = gone.iter().filter(|(_, when)| *when < called).map(|(value, _)| *value).collect();
        history[read].action = Action::Read(values[pick.index(values.len())]);
        let verdict = check(&history, &0, Budget::default());
        prop_assert!(verdict.is_violation(), "{}", verdict);
        prop_assert!(!stale_reads(&history, &0).is_empty());
    }

    #[test]
    fn a_lost_write_is_found(plans in prop::collection::vec(plan(5), 1..150), back in 1_u32..4) {
        // Everybody is done; one write is acknowledged, and the next reader finds what was there before it.
        let mut history = run(&plans);
        append(&mut history, 0, Action::Write(5000));
        for later in 1..=back {
            append(&mut history, 0, Action::Write(5000 + later));
        }
        prop_assert!(check(&history, &0, Budget::default()).is_linearizable());
        append(&mut history, 1, Action::Read(5000 + back - 1));
        let verdict = check(&history, &0, Budget::default());
        prop_assert!(verdict.is_violation(), "{}", verdict);
    }

    #[test]
    fn a_resurrected_value_is_found(plans in prop::collection::vec(plan(5), 1..150)) {
        // The fate of both writes is unknown, so that only the order in which they are seen gives it away.
        let mut history = run(&plans);
        for value in [5000, 5001] {
            let called = end(&history) + 1000;
            history.push(Operation {
                client: ClientId(value),
                key: Key(0),
                action: Action::Write(value),
                called,
                returned: None,
            });
        }
        append(&mut history, 1, Action::Read(5000));
        append(&mut history, 1, Action::Read(5001));
        prop_assert!(check(&history, &0, Budget::default()).is_linearizable());
        append(&mut history, 1, Action::Read(5000));
        let verdict = check(&history, &0, Budget::default());
        prop_assert!(verdict.is_violation(), "{}", verdict);
        prop_assert!(goes_back(&history, &0).is_some());
    }

    #[test]
    fn an_invented_value_is_found(plans in prop::collection::vec(plan(5), 1..150), pick in any::<prop::sample::Index>()) {
        let mut history = run(&plans);
        let reads: Vec<usize> = (0..history.len()).filter(|at| matches!(history[*at].action, Action::Read(_))).collect();
        prop_assume!(!reads.is_empty());
        history[reads[pick.index(reads.len())]].action = Action::Read(1_000_000);
        prop_assert!(check(&history, &0, Budget::default()).is_violation());
    }
}

/// Ten thousand operations by sixteen clients: seconds would be too many.
#[test]
fn long_histories_are_judged_in_little_time() {
    let mut state = 7_u64;
    let mut draw = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let plans: Vec<Plan> = (0..10_000)
        .map(|at| Plan {
            kind: draw(9) as u8,
            client: at % 16,
            called: draw(40) + 1,
            lasts: draw(60) + 1,
            effect: draw(1 << 30),
            fate: draw(20) as u8,
        })
        .collect();
    let history = run(&plans);
    let verdict = check(&history, &0, Budget::default());
    assert!(verdict.is_linearizable(), "{verdict}");
}
