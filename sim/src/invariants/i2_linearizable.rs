//! I2: what the levels promise of histories, block by block (dfs-history is the judge).
//!
//! - Reads at QUORUM and ALL with writes at QUORUM and ALL are linearizable. A write at ONE may take effect at any later time, or
//!   never; but who reads it at QUORUM has made it one at QUORUM.
//! - Where every write is at ALL, reads at ONE and ALL are linearizable (CRAQ's rule). Not beside reads at QUORUM, which may show what is
//!   not everywhere yet.
//! - Reads at ALL with writes at any level are linearizable while no head leaves: what it acknowledged alone goes with it.
//! - A read at ONE is at least as new as every write acknowledged at ALL. For one client it never goes back (`clients`).
//!
//! A chain that lost unsynced data with all its copies, as it may, is left to I1.

use dfs_common::Level;
use dfs_history::{Action, Budget, ClientId, Key, Operation, Verdict, check};

use super::{Put, Seen, Told};
use crate::schedule::{BLOCKS, CHUNKS};
use crate::world::{World, chain_of};

/// Beyond this a register counts as undecided, and is counted.
const STEPS: u64 = 300_000;

/// A client's operations on one chunk that have to fit together.
struct Promise {
    what: &'static str,
    /// Reads at these levels are judged.
    reads: &'static [Level],
    /// Acknowledged writes below this level may take effect later, or never.
    writes: Level,
}

impl World {
    pub(crate) fn judge_histories(&mut self) {
        for chunk in 0..CHUNKS {
            let chain = chain_of(chunk);
            if self.watch.amnesty.contains(&chain) {
                continue;
            }
            let mut promises = vec![Promise {
                what: "QUORUM",
                reads: &[Level::Quorum, Level::All],
                writes: Level::Quorum,
            }];
            let mut puts = self.watch.puts.iter().filter(|put| put.chunk == chunk);
            if puts.all(|put| put.level == Level::All) {
                promises.push(Promise {
                    what: "writes at ALL",
                    reads: &[Level::One, Level::All],
                    writes: Level::All,
                });
            }
            if !self.watch.head_left.contains(&chain) {
                promises.push(Promise {
                    what: "reads at ALL under one head",
                    reads: &[Level::All],
                    writes: Level::One,
                });
            }
            for promise in promises {
                self.judge_history(chunk, &promise);
            }
            self.judge_staleness(chunk);
        }
    }

    fn judge_history(&mut self, chunk: u64, promise: &Promise) {
        let key = |block: u32| Key(chunk as u32 * BLOCKS + block);
        let client = |who: u64| ClientId(who as u32);
        let mut history: Vec<Operation<u64>> = Vec::new();
        for put in self.watch.puts.iter().filter(|put| put.chunk == chunk) {
            let returned = match put.told {
                Told::Refused => continue,
                Told::Done(at) if put.level >= promise.writes => Some(at),
                Told::Done(_) | Told::Unknown => None,
            };
            let action = match put.expected {
                None => Action::Write(put.value),
                // A version stands for one value, so who finds the version finds the value.
                Some(expected) => Action::Cas {
                    expected,
                    new: put.value,
                    swapped: returned.map(|_| true),
                },
            };
            history.push(Operation {
                client: client(put.who),
                key: key(put.block),
                action,
                called: put.called,
                returned,
            });
        }
        let reads = self.watch.reads.iter();
        for seen in reads.filter(|seen| seen.chunk == chunk && promise.reads.contains(&seen.level)) {
            history.push(Operation {
                client: client(seen.who),
                key: key(seen.block),
                action: Action::Read(seen.value),
                called: seen.called,
                returned: Some(seen.returned),
            });
        }
        match check(&history, &0, Budget { steps: STEPS }) {
            Verdict::Linearizable => {}
            Verdict::Undecided { .. } => self.undecided += 1,
            Verdict::Violation(counterexample) => {
                self.fail("I2", format!("chunk {chunk}, {}: {counterexample}", promise.what));
            }
        }
    }

    /// Reads at ONE beside writes of all levels.
    fn judge_staleness(&mut self, chunk: u64) {
        let puts: Vec<Put> = self
            .watch
            .puts
            .iter()
            .filter(|put| put.chunk == chunk)
            .copied()
            .collect();
        let stale = |seen: &Seen| {
            let here = || puts.iter().filter(|put| put.block == seen.block);
            let newest = here()
                .filter(|put| put.level == Level::All && matches!(put.told, Told::Done(at) if at < seen.called))
                .max_by_key(|put| put.called)?;
            let explained = here().any(|put| {
                put.value == seen.value
                    && put.told != Told::Refused
                    && !matches!(put.told, Told::Done(returned) if returned < newest.called)
            });
            (!explained).then(|| {
                format!(
                    "client {} read {:#x} at ONE from block {} of chunk {chunk}, after {:#x} of client {} was acknowledged at ALL",
                    seen.who, seen.value, seen.block, newest.value, newest.who
                )
            })
        };
        let reads = self.watch.reads.iter();
        let found = reads
            .filter(|seen| seen.chunk == chunk && seen.level == Level::One)
            .find_map(stale);
        if let Some(detail) = found {
            self.fail("I2", detail);
        }
    }
}
