//! What weaker promises can be held to: one client never goes back in time; and whether anything was stale at all.
//!
//! Both judge only what is certain. A value that several operations put there is left out, since nobody can tell which of
//! them a read saw.

use std::collections::BTreeMap;
use std::fmt;

use crate::Value;
use crate::operation::{Action, ClientId, Key, Operation};

/// One client saw `newer` and later `older`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regression<V> {
    pub key: Key,
    pub client: ClientId,
    pub newer: Operation<V>,
    pub older: Operation<V>,
}

/// `read` returned what `overwritten_by` had surely replaced before the read began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleRead<V> {
    pub read: Operation<V>,
    pub overwritten_by: Operation<V>,
}

impl<V: Value> fmt::Display for Regression<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "client {} went back on register {}:", self.client.0, self.key.0)?;
        writeln!(f, "  {}\n  {}", self.newer, self.older)
    }
}

impl<V: Value> fmt::Display for StaleRead<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "stale read on register {}:", self.read.key.0)?;
        writeln!(f, "  {}\n  {}", self.overwritten_by, self.read)
    }
}

/// Where the values of one register come from.
struct Origins<'a, V> {
    initial: &'a V,
    writers: BTreeMap<&'a V, Vec<&'a Operation<V>>>,
}

impl<'a, V: Value> Origins<'a, V> {
    fn of(operations: &[&'a Operation<V>], initial: &'a V) -> Self {
        let mut writers: BTreeMap<&V, Vec<&Operation<V>>> = BTreeMap::new();
        for operation in operations {
            if let Some(value) = operation.puts() {
                writers.entry(value).or_default().push(operation);
            }
        }
        Self { initial, writers }
    }

    /// Whether one operation, or the beginning, is where it comes from.
    fn is_unique(&self, value: &V) -> bool {
        self.writers.get(value).map_or(0, Vec::len) + usize::from(value == self.initial) == 1
    }

    /// Surely there before the other was put there.
    fn is_older(&self, value: &V, than: &V) -> bool {
        if !self.is_unique(value) || !self.is_unique(than) || value == than || than == self.initial {
            return false;
        }
        value == self.initial || self.writers[value][0].precedes(self.writers[than][0])
    }
}

fn registers<V: Value>(history: &[Operation<V>]) -> BTreeMap<Key, Vec<&Operation<V>>> {
    let mut registers: BTreeMap<Key, Vec<&Operation<V>>> = BTreeMap::new();
    for operation in history {
        registers.entry(operation.key).or_default().push(operation);
    }
    registers
}

fn read_of<V>(operation: &Operation<V>) -> Option<&V> {
    match &operation.action {
        Action::Read(value) if operation.returned.is_some() => Some(value),
        _ => None,
    }
}

/// The first read of a client that is surely older than an earlier read of the same client: written before it in real time, or
/// seen by this client itself before it.
pub fn goes_back<V: Value>(history: &[Operation<V>], initial: &V) -> Option<Regression<V>> {
    for (key, operations) in registers(history) {
        let origins = Origins::of(&operations, initial);
        let mut clients: BTreeMap<ClientId, Vec<(&V, &Operation<V>)>> = BTreeMap::new();
        for &operation in &operations {
            if let Some(value) = read_of(operation) {
                clients.entry(operation.client).or_default().push((value, operation));
            }
        }
        for (client, mut reads) in clients {
            reads.sort_by_key(|(_, read)| (read.called, read.returned));
            if let Some((newer, older)) = first_step_back(&reads, &origins) {
                return Some(Regression {
                    key,
                    client,
                    newer: newer.clone(),
                    older: older.clone(),
                });
            }
        }
    }
    None
}

type Pair<'a, V> = (&'a Operation<V>, &'a Operation<V>);

fn first_step_back<'a, V: Value>(reads: &[(&'a V, &'a Operation<V>)], origins: &Origins<'_, V>) -> Option<Pair<'a, V>> {
    // Each value that was seen, with the read that saw it last.
    let mut seen: Vec<(&V, &Operation<V>)> = Vec::new();
    for &(value, read) in reads.iter().filter(|(value, _)| origins.is_unique(value)) {
        let before = |earlier: &Operation<V>| earlier.precedes(read);
        if let Some((_, newer)) = seen
            .iter()
            .find(|(other, earlier)| before(earlier) && origins.is_older(value, other))
        {
            return Some((newer, read));
        }
        if let Some(at) = seen.iter().position(|(other, _)| *other == value) {
            let first = seen[at].1;
            let between = seen[at + 1..]
                .iter()
                .find(|(_, other)| first.precedes(other) && before(other));
            if let Some((_, newer)) = between {
                return Some((newer, read));
            }
            seen.remove(at);
        }
        seen.push((value, read));
    }
    None
}

/// Reads that surely returned an overwritten value. None says that the history is linearizable: see [`crate::check`].
pub fn stale_reads<V: Value>(history: &[Operation<V>], initial: &V) -> Vec<StaleRead<V>> {
    let mut stale = Vec::new();
    for operations in registers(history).into_values() {
        let origins = Origins::of(&operations, initial);
        for &read in &operations {
            let Some(value) = read_of(read) else { continue };
            let overwriting = operations.iter().find(|write| {
                matches!(&write.action, Action::Write(new) if write.precedes(read) && origins.is_older(value, new))
            });
            stale.extend(overwriting.map(|write| StaleRead {
                read: read.clone(),
                overwritten_by: (*write).clone(),
            }));
        }
    }
    stale
}
