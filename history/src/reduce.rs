//! What can be said of operations of unknown fate before searching.
//!
//! Each write without an answer doubles the search. Where values are unique most of them need no search at all:
//! - nobody ever saw the value: any order with the write is one without it, so it is left out;
//! - somebody saw it, and nobody else wrote it: it took effect before the first who saw it had returned.

use std::collections::BTreeMap;

use crate::Value;
use crate::operation::{Action, Operation};

/// How often a value is put there, and the earliest end of an operation that surely found it.
#[derive(Default)]
struct Seen {
    puts: usize,
    told_of: bool,
    found_by: Option<u64>,
}

/// The operations of one register that the search needs, with ends as early as they can be told.
pub(crate) fn reduce<V: Value>(operations: &[Operation<V>], initial: &V) -> Vec<Operation<V>> {
    let mut seen: BTreeMap<&V, Seen> = BTreeMap::new();
    seen.entry(initial).or_default().puts += 1;
    for operation in operations {
        if let Some(value) = operation.puts() {
            seen.entry(value).or_default().puts += 1;
        }
        if let Some(value) = operation.tells_of() {
            let entry = seen.entry(value).or_default();
            entry.told_of = true;
            if operation.finds().is_some()
                && let Some(returned) = operation.returned
            {
                entry.found_by = Some(entry.found_by.map_or(returned, |earliest| earliest.min(returned)));
            }
        }
    }
    // A CAS that was refused tells that something else was there: every write may be what explains it.
    let absence_matters = operations.iter().any(Operation::is_refused_cas);
    let needed = |operation: &Operation<V>| match (&operation.action, operation.returned) {
        (
            Action::Read(_)
            | Action::Cas {
                swapped: Some(false), ..
            },
            None,
        ) => false,
        (Action::Write(value) | Action::Cas { new: value, .. }, None) => absence_matters || seen[value].told_of,
        (_, Some(_)) => true,
    };
    let bounded = |operation: &Operation<V>| {
        let mut operation = operation.clone();
        let found = operation.puts().map(|value| &seen[value]).filter(|seen| seen.puts == 1);
        if let (None, Some(found)) = (operation.returned, found.and_then(|seen| seen.found_by)) {
            // Never before its own call: who found it earlier than that is the search's to judge.
            operation.returned = Some(found.max(operation.called));
            if let Action::Cas { swapped, .. } = &mut operation.action {
                *swapped = Some(true);
            }
        }
        operation
    };
    operations
        .iter()
        .filter(|operation| needed(operation))
        .map(bounded)
        .collect()
}
