//! A run of days that may be stopped at any time: what came of it so far stands in a file.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::Instant;

use dfs_sim::{Kind, Outcome};

/// Seeds between two notes.
const BLOCK: u64 = 1_000;

const HEAD: &str = "dfs-sim progress 2";

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Progress {
    from: u64,
    next: u64,
    pub(crate) seconds: f64,
    pub(crate) total: Outcome,
    pub(crate) failed: Vec<u64>,
}

impl Progress {
    /// Runs what is left of these seeds.
    pub(crate) fn run(file: &Path, from: u64, seeds: u64, cores: usize) -> io::Result<Self> {
        let mut progress = match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(&text)
                .ok_or_else(|| io::Error::other("is no progress of this version of dfs-sim: remove it"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self {
                from,
                next: from,
                ..Self::default()
            },
            Err(error) => return Err(error),
        };
        if progress.from != from {
            return Err(io::Error::other(format!(
                "is of a run that began at seed {}",
                progress.from
            )));
        }
        while progress.next < from + seeds {
            let start = Instant::now();
            let block = BLOCK.min(from + seeds - progress.next);
            let (total, failed) = crate::many(progress.next, block, cores, usize::MAX);
            crate::add(&mut progress.total, &total);
            progress.failed.extend(failed);
            progress.next += block;
            progress.seconds += start.elapsed().as_secs_f64();
            let new = file.with_extension("new");
            std::fs::write(&new, progress.text())?;
            std::fs::rename(&new, file)?;
        }
        Ok(progress)
    }

    fn text(&self) -> String {
        let total = &self.total;
        let mut text = format!(
            "{HEAD}\nfrom {}\nnext {}\nseconds {}\nhash {}\nevents {}\nanswers {}\nsimulated_ms {}\nundecided {}\namnesties {}\n",
            self.from,
            self.next,
            self.seconds,
            total.hash,
            total.events,
            total.answers,
            total.simulated_ms,
            total.undecided,
            total.amnesties
        );
        for seed in &self.failed {
            let _ = writeln!(text, "failed {seed}");
        }
        for (kind, count) in &total.fired {
            let _ = writeln!(text, "fired {kind:?} {count}");
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return None;
        }
        let mut progress = Self::default();
        for line in lines {
            let (key, value) = line.split_once(' ')?;
            let total = &mut progress.total;
            match key {
                "from" => progress.from = value.parse().ok()?,
                "next" => progress.next = value.parse().ok()?,
                "seconds" => progress.seconds = value.parse().ok()?,
                "failed" => progress.failed.push(value.parse().ok()?),
                "hash" => total.hash = value.parse().ok()?,
                "events" => total.events = value.parse().ok()?,
                "answers" => total.answers = value.parse().ok()?,
                "simulated_ms" => total.simulated_ms = value.parse().ok()?,
                "undecided" => total.undecided = value.parse().ok()?,
                "amnesties" => total.amnesties = value.parse().ok()?,
                "fired" => {
                    let (name, count) = value.split_once(' ')?;
                    let kind = Kind::EVERY.iter().find(|kind| format!("{kind:?}") == name)?;
                    total.fired.insert(*kind, count.parse().ok()?);
                }
                _ => return None,
            }
        }
        Some(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_again() {
        let progress = Progress {
            from: 1,
            next: 2_001,
            seconds: 12.5,
            total: Outcome {
                hash: 77,
                events: 3,
                fired: [(Kind::Kill, 5), (Kind::LeaderDeaf, 1)].into(),
                ..Outcome::default()
            },
            failed: vec![5, 9],
        };
        assert_eq!(Progress::parse(&progress.text()), Some(progress));
        assert_eq!(Progress::parse("dfs-sim progress 1"), None);
    }
}
