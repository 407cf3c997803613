//! Why a history has no order, in as few operations as can be found.

use std::fmt;
use std::ops::Range;

use crate::Value;
use crate::linearizable::{Budget, Search, judge};
use crate::operation::{Action, Key, Operation};

/// How often all that is left is tried one by one.
const SHRINKING_ROUNDS: usize = 3;

/// Operations of one register that no order explains. Leaving others out took nothing away that could explain them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample<V> {
    pub key: Key,
    pub initial: V,
    /// In the order of their calls; the last to return is the first answer that can not be explained.
    pub operations: Vec<Operation<V>>,
    /// How many operations the whole history of this register has.
    pub of: usize,
}

impl<V: Value> Counterexample<V> {
    /// `operations` have no order.
    pub(crate) fn of(key: Key, operations: &[Operation<V>], initial: &V, budget: Budget) -> Self {
        let fails = |some: &[Operation<V>]| judge(some, initial, budget) == Search::None;
        let mut small = shortest_prefix(operations, fails);
        // Large parts first: most of a long history has nothing to do with it.
        let mut part = small.len().div_ceil(2);
        let mut rounds = 0;
        while part > 0 && rounds < SHRINKING_ROUNDS {
            let before = small.len();
            let mut at = 0;
            while at < small.len() {
                let without = leave_out(&small, at..(at + part).min(small.len()));
                if without.len() < small.len() && fails(&without) {
                    small = without;
                } else {
                    at += part;
                }
            }
            if part > 1 {
                part = part.div_ceil(2);
            } else if small.len() == before {
                break;
            } else {
                rounds += 1;
            }
        }
        small.sort_by_key(|operation| (operation.called, operation.returned));
        Self {
            key,
            initial: initial.clone(),
            operations: small,
            of: operations.len(),
        }
    }
}

/// Without those of this range that may be left out.
fn leave_out<V: Value>(operations: &[Operation<V>], range: Range<usize>) -> Vec<Operation<V>> {
    let (before, after) = (&operations[..range.start], &operations[range.end..]);
    let left = || before.iter().chain(after);
    let (removed, kept): (Vec<_>, Vec<_>) = operations[range.clone()]
        .iter()
        .partition(|operation| may_leave_out(operation, left()));
    let without: Vec<_> = before.iter().chain(kept).chain(after).cloned().collect();
    // What is kept may tell of what was removed beside it.
    let sound = removed.iter().all(|operation| may_leave_out(operation, without.iter()));
    if sound { without } else { operations.to_vec() }
}

/// If what is left has no order, neither had the whole: a read explains nothing, and neither does a write that nobody
/// saw, as long as nobody relies on something else having been there.
fn may_leave_out<'a, V: Value + 'a>(removed: &Operation<V>, mut left: impl Iterator<Item = &'a Operation<V>>) -> bool {
    let Some(value) = removed.puts() else {
        return true;
    };
    !left.any(|operation| {
        operation.tells_of() == Some(value)
            || matches!(
                operation.action,
                Action::Cas {
                    swapped: Some(false),
                    ..
                }
            )
    })
}

/// The history up to the first answer that can not be explained. Every prefix of a linearizable history is one, so
/// the end can be found by halving.
fn shortest_prefix<V: Value>(
    operations: &[Operation<V>],
    fails: impl Fn(&[Operation<V>]) -> bool,
) -> Vec<Operation<V>> {
    let mut ends: Vec<u64> = operations.iter().filter_map(|operation| operation.returned).collect();
    ends.sort_unstable();
    ends.dedup();
    let (mut good, mut bad) = (0, ends.len().saturating_sub(1));
    while good < bad {
        let middle = good + (bad - good) / 2;
        if fails(&until(operations, ends[middle])) {
            bad = middle;
        } else {
            good = middle + 1;
        }
    }
    let prefix = ends.get(bad).map(|end| until(operations, *end));
    // Undecided on the way, perhaps: the whole is known to fail.
    prefix
        .filter(|prefix| fails(prefix))
        .unwrap_or_else(|| operations.to_vec())
}

/// What was known at that time.
fn until<V: Value>(operations: &[Operation<V>], time: u64) -> Vec<Operation<V>> {
    let called = operations.iter().filter(|operation| operation.called <= time);
    let known = called.map(|operation| {
        let mut operation = operation.clone();
        operation.returned = operation.returned.filter(|returned| *returned <= time);
        operation
    });
    known
        .filter(|operation| operation.returned.is_some() || !matches!(operation.action, Action::Read(_)))
        .collect()
}

impl<V: Value> fmt::Display for Counterexample<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "register {}, first {:?}: no order explains these {} of its {} operations ([called returned]):",
            self.key.0,
            self.initial,
            self.operations.len(),
            self.of
        )?;
        for operation in &self.operations {
            writeln!(f, "  {operation}")?;
        }
        Ok(())
    }
}
