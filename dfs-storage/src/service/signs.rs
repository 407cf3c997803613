//! What this node notices of itself and its neighbours, for its heartbeats. The meters are pure, times come from outside.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use dfs_common::wire::meta::{Pace, Unheard};
use dfs_common::{Incarnation, StorageId};
use parking_lot::Mutex;

/// Pieces of work that make a figure: the last ones, if there were enough of them a short while ago.
const SAMPLES: usize = 5;
const SAMPLES_MIN: usize = 3;
const SAMPLE_AGE_MS: u64 = 2_000;

/// Neighbours that were heard within this are not spoken of.
const WELL_MS: u64 = 250;

/// How quick one kind of work is. The median, so that one hiccup of a disk is none.
#[derive(Debug, Default)]
pub(crate) struct PaceMeter {
    /// When each ended, and how long it took.
    done: VecDeque<(u64, u32)>,
    /// Start of each that is under way, in microseconds.
    running: BTreeMap<u64, u64>,
    next: u64,
    ended: u32,
}

impl PaceMeter {
    /// Work begins; the number is for its end.
    pub(crate) fn begin(&mut self, now_us: u64) -> u64 {
        self.next += 1;
        self.running.insert(self.next, now_us);
        self.next
    }

    pub(crate) fn end(&mut self, work: u64, now_us: u64) {
        let Some(begun) = self.running.remove(&work) else {
            return;
        };
        if self.done.len() >= SAMPLES {
            self.done.pop_front();
        }
        self.ended = self.ended.wrapping_add(1);
        let took = u32::try_from(now_us.saturating_sub(begun)).unwrap_or(u32::MAX);
        self.done.push_back((now_us / 1_000, took));
    }

    /// Work ended that says nothing of how quick others are.
    pub(crate) fn forget(&mut self, work: u64) {
        self.running.remove(&work);
    }

    pub(crate) fn pace(&self, now_us: u64) -> Pace {
        let oldest = self.running.values().min();
        let running_us = oldest.map_or(0, |&begun| {
            u32::try_from(now_us.saturating_sub(begun)).unwrap_or(u32::MAX)
        });
        let recent = |&&(ended, _): &&(u64, u32)| (now_us / 1_000).saturating_sub(ended) <= SAMPLE_AGE_MS;
        let mut took: Vec<u32> = self.done.iter().filter(recent).map(|&(_, took)| took).collect();
        took.sort_unstable();
        let mut median_us = (took.len() >= SAMPLES_MIN).then(|| took[took.len() / 2]);
        // What takes longer than that already is one more of its kind.
        if let Some(median) = median_us.filter(|&median| running_us > median) {
            let at = took.partition_point(|&other| other <= running_us);
            took.insert(at, running_us);
            median_us = Some(took[took.len() / 2].max(median));
        }
        Pace {
            median_us,
            running_us,
            done: self.ended,
        }
    }
}

/// A [`PaceMeter`] on the clock, for threads.
#[derive(Debug)]
pub(crate) struct Meter {
    origin: Instant,
    inner: Mutex<PaceMeter>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            inner: Mutex::default(),
        }
    }
}

impl Meter {
    fn now_us(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn measure<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = self.inner.lock().begin(self.now_us());
        let result = work();
        self.inner.lock().end(begun, self.now_us());
        result
    }

    /// Work that is larger than what peers do: seen while it runs, so that it is noticed if it hangs, and no sample afterwards.
    pub(crate) fn watch<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = self.inner.lock().begin(self.now_us());
        let result = work();
        self.inner.lock().forget(begun);
        result
    }

    /// Work that was begun so far.
    pub(crate) fn begun(&self) -> u64 {
        self.inner.lock().next
    }

    pub(crate) fn pace(&self) -> Pace {
        self.inner.lock().pace(self.now_us())
    }
}

/// When each neighbour last answered.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    /// Of each in its present process, when it last answered, else since when it is asked. Not when that question was
    /// asked: an answer that waited its turn behind a burst of data is late, and still no sign of a cut cable.
    heard: BTreeMap<StorageId, (Incarnation, u64)>,
    asked_ms: u64,
}

impl Neighbours {
    /// Who is to be asked from now on.
    pub(crate) fn ask(&mut self, now_ms: u64, neighbours: &BTreeMap<StorageId, Incarnation>, every_ms: u64) {
        // Nobody can be blamed for the time in which this process stood still.
        let lost_ms = now_ms.saturating_sub(self.asked_ms).saturating_sub(2 * every_ms);
        self.asked_ms = now_ms;
        // Who has just come back was not silent while it was not there.
        self.heard
            .retain(|node, (process, _)| neighbours.get(node) == Some(process));
        for (_, heard) in self.heard.values_mut() {
            *heard = (*heard + lost_ms).min(now_ms);
        }
        for (&node, &process) in neighbours {
            self.heard.entry(node).or_insert((process, now_ms));
        }
    }

    pub(crate) fn answered(&mut self, node: StorageId, now_ms: u64) {
        if let Some((_, heard)) = self.heard.get_mut(&node) {
            *heard = now_ms.max(*heard);
        }
    }

    /// For how long whom was not heard. Nothing, if this process stood still since it last asked.
    pub(crate) fn unheard(&self, now_ms: u64) -> Vec<Unheard> {
        if now_ms.saturating_sub(self.asked_ms) > WELL_MS {
            return Vec::new();
        }
        let silent = self
            .heard
            .iter()
            .map(|(&node, &(process, heard))| (node, process, now_ms.saturating_sub(heard)));
        silent
            .filter(|&(.., ms)| ms > WELL_MS)
            .map(|(node, process, ms)| Unheard {
                node,
                process,
                ms: u32::try_from(ms).unwrap_or(u32::MAX),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_a_median_of_the_recent() {
        let mut meter = PaceMeter::default();
        let mut now = 0;
        let mut work = |meter: &mut PaceMeter, us: u64| {
            let id = meter.begin(now);
            now += us;
            meter.end(id, now);
            now
        };
        let _ = work(&mut meter, 1_000);
        let at = work(&mut meter, 900_000);
        assert_eq!(meter.pace(at).median_us, None, "two are no measure");
        let at = work(&mut meter, 1_200);
        assert_eq!(meter.pace(at).median_us, Some(1_200), "a hiccup is none");
        for _ in 0..5 {
            let _ = work(&mut meter, 1_000);
        }
        let _ = work(&mut meter, 100_000);
        let at = work(&mut meter, 100_000);
        assert_eq!(meter.pace(at).median_us, Some(1_000));
        let running = meter.begin(at);
        assert_eq!(
            meter.pace(at + 50_000).median_us,
            Some(50_000),
            "the third already takes longer"
        );
        meter.end(running, at + 100_000);
        let pace = meter.pace(at + 100_000);
        assert_eq!((pace.median_us, pace.running_us), (Some(100_000), 0));
        assert_eq!(meter.pace(at + 3_000_000).median_us, None, "long ago");
        let _ = meter.begin(at + 3_000_000);
        assert_eq!(meter.pace(at + 3_700_000).running_us, 700_000);
    }

    #[test]
    fn larger_work_is_seen_while_it_hangs_and_is_no_measure() {
        let mut meter = PaceMeter::default();
        let mut now = 0;
        for _ in 0..3 {
            let small = meter.begin(now);
            now += 1_000;
            meter.end(small, now);
            for _ in 0..5 {
                let large = meter.begin(now);
                now += 25_000;
                meter.forget(large);
            }
        }
        let pace = meter.pace(now);
        assert_eq!((pace.median_us, pace.running_us, pace.done), (Some(1_000), 0, 3));
        let _ = meter.begin(now);
        let pace = meter.pace(now + 700_000);
        assert_eq!((pace.median_us, pace.running_us), (Some(1_000), 700_000));
    }

    #[test]
    fn a_neighbour_is_spoken_of_when_it_does_not_answer() {
        let both = [(StorageId(2), Incarnation(1)), (StorageId(3), Incarnation(1))].into();
        let mut neighbours = Neighbours::default();
        for now in (0..=1_000).step_by(100) {
            neighbours.ask(now, &both, 100);
            neighbours.answered(StorageId(2), now);
            if now < 300 {
                neighbours.answered(StorageId(3), now);
            }
        }
        let unheard = Unheard {
            node: StorageId(3),
            process: Incarnation(1),
            ms: 850,
        };
        assert_eq!(neighbours.unheard(1_050), [unheard]);
        neighbours.answered(StorageId(3), 1_000);
        neighbours.answered(StorageId(3), 100);
        assert_eq!(neighbours.unheard(1_050), []);
        // It is a neighbour no more.
        neighbours.ask(1_100, &[(StorageId(2), Incarnation(1))].into(), 100);
        assert_eq!(neighbours.unheard(1_200), []);
    }

    #[test]
    fn who_comes_back_was_not_silent_before() {
        let mut neighbours = Neighbours::default();
        let process = |number| [(StorageId(2), Incarnation(number))].into();
        for now in (0..=3_000).step_by(100) {
            neighbours.ask(now, &process(1), 100);
        }
        assert_eq!(neighbours.unheard(3_050).len(), 1);
        neighbours.ask(3_100, &process(2), 100);
        assert_eq!(neighbours.unheard(3_150), []);
        for now in (3_200..=3_600).step_by(100) {
            neighbours.ask(now, &process(2), 100);
        }
        assert_eq!(neighbours.unheard(3_650)[0].ms, 550, "but it has to answer");
    }

    #[test]
    fn a_process_that_stood_still_blames_nobody() {
        let other = [(StorageId(2), Incarnation(1))].into();
        let mut neighbours = Neighbours::default();
        neighbours.ask(0, &other, 100);
        neighbours.answered(StorageId(2), 0);
        assert_eq!(neighbours.unheard(5_000), [], "has not asked meanwhile");
        neighbours.ask(5_000, &other, 100);
        assert_eq!(neighbours.unheard(5_010), []);
        neighbours.ask(5_100, &other, 100);
        neighbours.ask(5_200, &other, 100);
        assert_eq!(neighbours.unheard(5_250).len(), 1, "but it goes on from there");
    }
}
