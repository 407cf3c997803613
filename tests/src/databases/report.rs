//! What came of a run, in a table.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::kind::Kind;

/// What came of one database.
#[derive(Debug, Default)]
pub struct Row {
    pub cuts: u64,
    /// Clients that got an error while database and mount were alive.
    pub interrupted: u64,
    pub acknowledged: u64,
    pub lost: u64,
    pub checks: u64,
    pub recoveries: Vec<Duration>,
    pub wrong: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Report {
    pub rows: BTreeMap<Kind, Row>,
    pub failures: Vec<String>,
    pub kept: Option<PathBuf>,
}

impl Report {
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty() && self.rows.values().all(|row| row.wrong.is_empty())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16} {:>5} {:>13} {:>6} {:>12} {:>7} {:>14} {:>8}  INTEGRITY",
            "DATABASE", "CUTS", "ACKNOWLEDGED", "LOST", "INTERRUPTED", "CHECKS", "RECOVERED p50", "max"
        )?;
        for (kind, row) in &self.rows {
            let mut times = row.recoveries.clone();
            times.sort_unstable();
            let middle = times.get(times.len() / 2).copied().unwrap_or_default();
            let longest = times.last().copied().unwrap_or_default();
            let integrity = if row.wrong.is_empty() { "clean" } else { "FAILED" };
            writeln!(
                f,
                "{:<16} {:>5} {:>13} {:>6} {:>12} {:>7} {middle:>14.1?} {longest:>8.1?}  {integrity}",
                kind.name(),
                row.cuts,
                row.acknowledged,
                row.lost,
                row.interrupted,
                row.checks
            )?;
        }
        if self.passed() {
            return writeln!(
                f,
                "verdict: passed: 0 acknowledged transactions lost, integrity checks clean"
            );
        }
        writeln!(f, "verdict: FAILED")?;
        for (kind, row) in &self.rows {
            for wrong in &row.wrong {
                writeln!(f, "- {}: {wrong}", kind.name())?;
            }
        }
        for failure in &self.failures {
            writeln!(f, "- {failure}")?;
        }
        match &self.kept {
            Some(kept) => writeln!(f, "logs are kept in {}", kept.display()),
            None => Ok(()),
        }
    }
}
