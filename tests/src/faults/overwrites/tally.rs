//! What came of the overwrites, in numbers. Pure.

use std::collections::BTreeMap;

use super::judge::{By, Wrong};

/// Failures told in words; all are counted.
const TOLD: usize = 8;

/// Calls of fsync and fdatasync of one kind of caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Syncs {
    pub returned_0: u64,
    /// Of these: power was cut between call and return.
    pub across_a_cut: u64,
    pub refused: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub written_bytes: u64,
    /// Made durable by an fsync that returned 0.
    pub acknowledged_bytes: u64,
    pub syncs: BTreeMap<By, Syncs>,
    wrong_bytes: BTreeMap<Wrong, u64>,
    /// By whom that was synced which is wrong now.
    broken: BTreeMap<By, u64>,
    failures: Vec<String>,
    failed: u64,
}

impl Tally {
    pub fn synced(&mut self, by: By, is_across: bool) {
        let syncs = self.syncs.entry(by).or_default();
        syncs.returned_0 += 1;
        syncs.across_a_cut += u64::from(is_across);
    }

    pub fn refused(&mut self, by: By) {
        self.syncs.entry(by).or_default().refused += 1;
    }

    pub fn wrong(&mut self, wrong: Wrong, by: Option<By>, bytes: u64) {
        *self.wrong_bytes.entry(wrong).or_default() += bytes;
        if let Some(by) = by {
            *self.broken.entry(by).or_default() += bytes;
        }
    }

    pub fn failed(&mut self, what: String) {
        self.failed += 1;
        if self.failures.len() < TOLD {
            self.failures.push(what);
        }
    }

    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failed == 0
    }

    #[must_use]
    pub fn wrong_bytes(&self, wrong: Wrong) -> u64 {
        self.wrong_bytes.get(&wrong).copied().unwrap_or_default()
    }

    pub fn add(&mut self, other: Self) {
        self.written_bytes += other.written_bytes;
        self.acknowledged_bytes += other.acknowledged_bytes;
        for (by, more) in other.syncs {
            let syncs = self.syncs.entry(by).or_default();
            syncs.returned_0 += more.returned_0;
            syncs.across_a_cut += more.across_a_cut;
            syncs.refused += more.refused;
        }
        for (wrong, bytes) in other.wrong_bytes {
            *self.wrong_bytes.entry(wrong).or_default() += bytes;
        }
        for (by, bytes) in other.broken {
            *self.broken.entry(by).or_default() += bytes;
        }
        self.failed += other.failed;
        let room = TOLD.saturating_sub(self.failures.len());
        self.failures.extend(other.failures.into_iter().take(room));
    }

    /// For a report.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let wrong: Vec<String> = Wrong::ALL
            .iter()
            .map(|wrong| format!("{} {}", self.wrong_bytes(*wrong), wrong.name()))
            .collect();
        let mut lines = vec![format!(
            "overwrites: {} bytes written, {} acknowledged by fsync; of these bytes {}",
            self.written_bytes,
            self.acknowledged_bytes,
            wrong.join(", ")
        )];
        for by in By::ALL {
            let syncs = self.syncs.get(&by).copied().unwrap_or_default();
            let broken = self.broken.get(&by).copied().unwrap_or_default();
            lines.push(format!(
                "    fsync by {:<26} {:>6} returned 0, {:>4} of them across a cut, {:>4} an error; {broken} bytes broken",
                by.name(),
                syncs.returned_0,
                syncs.across_a_cut,
                syncs.refused
            ));
        }
        lines
    }

    /// What must fail a run.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self
            .failures
            .iter()
            .map(|failure| format!("overwrites: {failure}"))
            .collect();
        if self.failed > failures.len() as u64 {
            failures.push(format!("overwrites: {} such in all", self.failed));
        }
        failures
    }
}
