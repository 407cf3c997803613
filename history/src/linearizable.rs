//! The search for one order that explains everything.
//!
//! Depth first over the operations that may come next (called, and nothing still unplaced ended before their call), undoing
//! what leads nowhere. A pair of (operations placed, value) that failed once is never tried again. What keeps it small:
//! - A read that fits, and a CAS that fits by being refused, is placed at once and for good: whatever order exists from
//!   there, one exists with it first.
//! - An operation of unknown fate whose value nobody found is *spare*: all that it can explain is why a CAS was refused, so it
//!   is placed only while one needs it. Spares whose value nobody tells of at all are alike: the first will do.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasherDefault, DefaultHasher};

use crate::Value;
use crate::counterexample::Counterexample;
use crate::operation::{Action, Key, Operation};
use crate::reduce::reduce;
use crate::zones;

/// How much work one register may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Placements tried; each costs well under a microsecond and some tens of bytes.
    pub steps: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { steps: 5_000_000 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<V> {
    /// Every register has an order that explains its history.
    Linearizable,
    /// None exists.
    Violation(Counterexample<V>),
    /// The budget ended first. No answer: neither a pass nor a failure.
    Undecided { key: Key, operations: usize, steps: u64 },
}

impl<V> Verdict<V> {
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable)
    }

    pub fn is_violation(&self) -> bool {
        matches!(self, Self::Violation(_))
    }
}

impl<V: Value> std::fmt::Display for Verdict<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Linearizable => write!(f, "linearizable"),
            Self::Violation(counterexample) => write!(f, "NOT linearizable\n{counterexample}"),
            Self::Undecided { key, operations, steps } => write!(
                f,
                "undecided: {operations} operations on register {} took more than {steps} steps; give a larger budget, or make \
                 fewer operations run at once",
                key.0
            ),
        }
    }
}

/// Judges a history of registers that all held `initial` in the beginning. Registers are judged one by one, which is
/// the same (linearizability composes). A violation is worth more than an undecided register.
pub fn check<V: Value>(history: &[Operation<V>], initial: &V, budget: Budget) -> Verdict<V> {
    let mut registers: BTreeMap<Key, Vec<Operation<V>>> = BTreeMap::new();
    for operation in history {
        registers.entry(operation.key).or_default().push(operation.clone());
    }
    let mut undecided = None;
    for (key, operations) in registers {
        match judge(&operations, initial, budget) {
            Search::Order => {}
            Search::None => return Verdict::Violation(Counterexample::of(key, &operations, initial, budget)),
            Search::Undecided => {
                undecided = undecided.or(Some(Verdict::Undecided {
                    key,
                    operations: operations.len(),
                    steps: budget.steps,
                }));
            }
        }
    }
    undecided.unwrap_or(Verdict::Linearizable)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    Order,
    None,
    Undecided,
}

/// Judges one register.
pub(crate) fn judge<V: Value>(operations: &[Operation<V>], initial: &V, budget: Budget) -> Search {
    let operations = reduce(operations, initial);
    zones::judge(&operations, initial).unwrap_or_else(|| search(&operations, initial, budget))
}

/// The same for any operations and values.
fn search<V: Value>(operations: &[Operation<V>], initial: &V, budget: Budget) -> Search {
    let mut names = BTreeMap::new();
    let initial = name(&mut names, initial);
    let found = found(operations);
    let refusals = operations.iter().filter(|operation| operation.is_refused_cas());
    let missed: BTreeSet<&V> = refusals.filter_map(Operation::tells_of).collect();
    let spare = |operation: &Operation<V>| match operation.puts() {
        Some(value) if operation.returned.is_some() || found.contains(value) => None,
        Some(value) if missed.contains(value) => Some(Spare::Told),
        Some(_) => Some(Spare::Alike),
        None => None,
    };
    let mut steps: Vec<Step> = operations
        .iter()
        .map(|operation| Step {
            spare: spare(operation),
            ..step(&mut names, operation)
        })
        .collect();
    steps.sort_by_key(|step| (step.called, step.returned));
    Searcher::new(steps, initial, budget).run()
}

/// Values that somebody surely found there, or that are needed for such a value to get there.
fn found<V: Value>(operations: &[Operation<V>]) -> BTreeSet<&V> {
    let answers = operations.iter().filter_map(Operation::finds);
    let mut found: BTreeSet<&V> = answers.collect();
    loop {
        let before = found.len();
        for operation in operations.iter().filter(|operation| operation.returned.is_none()) {
            if let Action::Cas { expected, new, .. } = &operation.action
                && found.contains(new)
            {
                found.insert(expected);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Values by number: comparing and remembering them is cheap then.
fn name<V: Value>(names: &mut BTreeMap<V, u32>, value: &V) -> u32 {
    let next = names.len() as u32;
    *names.entry(value.clone()).or_insert(next)
}

fn step<V: Value>(names: &mut BTreeMap<V, u32>, operation: &Operation<V>) -> Step {
    let effect = match &operation.action {
        Action::Read(value) => Effect::Read(name(names, value)),
        Action::Write(value) => Effect::Write(name(names, value)),
        Action::Cas { expected, new, swapped } => Effect::Cas {
            expected: name(names, expected),
            new: name(names, new),
            // Without an end, the answer never came, whatever the record says.
            swapped: operation.returned.and(*swapped),
        },
    };
    Step {
        effect,
        called: operation.called,
        returned: operation.returned,
        spare: None,
    }
}

#[derive(Clone, Copy, Debug)]
enum Effect {
    Read(u32),
    Write(u32),
    Cas {
        expected: u32,
        new: u32,
        swapped: Option<bool>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Step {
    effect: Effect,
    called: u64,
    returned: Option<u64>,
    spare: Option<Spare>,
}

/// Of unknown fate, and found by nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spare {
    /// Nobody tells of the value.
    Alike,
    /// A refused CAS tells that it was absent.
    Told,
}

impl Step {
    /// The value afterwards, if it can come now.
    fn apply(&self, value: u32) -> Option<u32> {
        match self.effect {
            Effect::Read(seen) => (seen == value).then_some(value),
            Effect::Write(new) => Some(new),
            Effect::Cas { expected, new, swapped } => match (expected == value, swapped) {
                (true, Some(true) | None) => Some(new),
                (false, Some(false)) => Some(value),
                // Nobody can tell a swap that was never answered and failed from none at all.
                (true, Some(false)) | (false, Some(true) | None) => None,
            },
        }
    }

    fn is_refused_cas(&self) -> bool {
        matches!(
            self.effect,
            Effect::Cas {
                swapped: Some(false),
                ..
            }
        )
    }

    /// Fits now, and leaves everything as it is.
    fn is_free(&self, value: u32) -> bool {
        (matches!(self.effect, Effect::Read(_)) || self.is_refused_cas()) && self.apply(value).is_some()
    }

    /// A refused CAS that waits for another value to be there.
    fn is_held_up(&self, value: u32) -> bool {
        self.is_refused_cas() && self.apply(value).is_none()
    }
}

/// A placement that can be undone.
struct Placed {
    at: usize,
    value_before: u32,
    /// The only one worth trying there.
    forced: bool,
}

struct Searcher {
    steps: Vec<Step>,
    /// Doubly linked list of what is not placed, in the order of calls; `steps.len()` is both ends.
    next: Vec<usize>,
    previous: Vec<usize>,
    value: u32,
    /// Those with an end, which all have to be placed.
    missing: usize,
    stack: Vec<Placed>,
    placed: Vec<u64>,
    tried: HashSet<Box<[u64]>, BuildHasherDefault<DefaultHasher>>,
    budget: Budget,
}

impl Searcher {
    fn new(steps: Vec<Step>, value: u32, budget: Budget) -> Self {
        let end = steps.len();
        Self {
            next: (1..=end).chain([0]).collect(),
            previous: [end].into_iter().chain(0..end).collect(),
            value,
            missing: steps.iter().filter(|step| step.returned.is_some()).count(),
            stack: Vec::new(),
            placed: vec![0; end.div_ceil(64)],
            tried: HashSet::default(),
            budget,
            steps,
        }
    }

    fn run(mut self) -> Search {
        let end = self.steps.len();
        let mut spent = 0;
        let mut at = self.first();
        // What is called after something unplaced has ended can not come next.
        let mut horizon = self.horizon();
        while self.missing > 0 {
            spent += 1;
            if spent > self.budget.steps {
                return Search::Undecided;
            }
            if at == end || self.steps[at].called > horizon {
                let Some(back) = self.undo() else {
                    return Search::None;
                };
                at = self.next[back];
                horizon = self.horizon();
            } else if self.may_come(at, horizon) && self.place(at, false) {
                horizon = self.horizon();
                while let Some(free) = self.free(horizon) {
                    self.place(free, true);
                    horizon = self.horizon();
                }
                at = self.first();
            } else {
                at = self.next[at];
            }
        }
        Search::Order
    }

    /// Whether it is worth trying here.
    fn may_come(&self, at: usize, horizon: u64) -> bool {
        let Some(spare) = self.steps[at].spare else {
            return true;
        };
        let alike = |other: usize| {
            let step = &self.steps[other];
            step.spare == Some(spare) && step.apply(self.value).is_some()
        };
        let mut before = self.unplaced(horizon).take_while(|other| *other != at);
        let wanted = self
            .unplaced(horizon)
            .any(|other| self.steps[other].is_held_up(self.value));
        wanted && (spare == Spare::Told || !before.any(alike))
    }

    fn free(&self, horizon: u64) -> Option<usize> {
        self.unplaced(horizon).find(|at| self.steps[*at].is_free(self.value))
    }

    /// What can come next, in the order of calls.
    fn unplaced(&self, horizon: u64) -> impl Iterator<Item = usize> {
        let end = self.steps.len();
        let from = Some(self.first()).filter(|at| *at < end);
        std::iter::successors(from, move |at| Some(self.next[*at]).filter(|next| *next < end))
            .take_while(move |at| self.steps[*at].called <= horizon)
    }

    fn first(&self) -> usize {
        self.next[self.steps.len()]
    }

    /// Earliest end among the unplaced. Only those called before it matter, so the walk is as long as operations overlap.
    fn horizon(&self) -> u64 {
        let mut horizon = u64::MAX;
        let mut at = self.first();
        while at < self.steps.len() && self.steps[at].called <= horizon {
            horizon = horizon.min(self.steps[at].returned.unwrap_or(u64::MAX));
            at = self.next[at];
        }
        horizon
    }

    /// Places the operation unless it does not fit or that was tried before. If `forced`, nothing else is worth trying here.
    fn place(&mut self, at: usize, forced: bool) -> bool {
        let Some(after) = self.steps[at].apply(self.value) else {
            return false;
        };
        self.placed[at / 64] |= 1 << (at % 64);
        if !forced && !self.tried.insert(self.fingerprint(after)) {
            self.placed[at / 64] &= !(1 << (at % 64));
            return false;
        }
        let (before, behind) = (self.previous[at], self.next[at]);
        self.next[before] = behind;
        self.previous[behind] = before;
        self.missing -= usize::from(self.steps[at].returned.is_some());
        self.stack.push(Placed {
            at,
            value_before: self.value,
            forced,
        });
        self.value = after;
        true
    }

    /// Takes placements back until there was a choice; returns the operation that was chosen there.
    fn undo(&mut self) -> Option<usize> {
        loop {
            let Placed {
                at,
                value_before,
                forced,
            } = self.stack.pop()?;
            let (before, behind) = (self.previous[at], self.next[at]);
            self.next[before] = at;
            self.previous[behind] = at;
            self.placed[at / 64] &= !(1 << (at % 64));
            self.missing += usize::from(self.steps[at].returned.is_some());
            self.value = value_before;
            if !forced {
                return Some(at);
            }
        }
    }

    /// (operations placed, value), without the long run of words in which all are placed and that of none.
    fn fingerprint(&self, value: u32) -> Box<[u64]> {
        let full = self.placed.iter().take_while(|word| **word == u64::MAX).count();
        let empty = self.placed.iter().rev().take_while(|word| **word == 0).count();
        let middle = full..(self.placed.len() - empty).max(full);
        let head = [u64::from(value) << 32 | full as u64];
        head.into_iter().chain(self.placed[middle].iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::ClientId;
    use proptest::prelude::*;

    /// Reads of any value, and each value written at most once.
    fn unique_writes() -> impl Strategy<Value = Vec<Operation<u32>>> {
        let one = (
            any::<bool>(),
            0_u32..6,
            0_u64..25,
            prop::option::weighted(0.85, 0_u64..10),
        );
        prop::collection::vec(one, 0..16).prop_map(|rows| {
            let mut written = BTreeSet::from([0]);
            let operations = rows.into_iter().map(|(read, value, called, lasts)| {
                let action = if read || !written.insert(value) {
                    Action::Read(value)
                } else {
                    Action::Write(value)
                };
                Operation {
                    client: ClientId(0),
                    key: Key(0),
                    action,
                    called,
                    returned: lasts.map(|lasts| called + lasts),
                }
            });
            operations.collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        #[test]
        fn the_quick_judge_agrees_with_the_search(operations in unique_writes()) {
            let reduced = reduce(&operations, &0);
            let quick = zones::judge(&reduced, &0);
            prop_assert_eq!(quick, Some(search(&reduced, &0, Budget::default())));
        }
    }
}
