//! I1: an acknowledged write survives within its level's bound (design, section 4).
//!
//! - QUORUM, ALL, or ONE that a sync at one of them covers: what was acknowledged is there while the memory or disk of a complete
//!   member is. After a power cut that took all of them at once (`amnesty`), what a sync at QUORUM or ALL covers is there; of the
//!   rest its client is told by its next sync.
//! - ONE: the same, but for what the head acknowledged alone before it left the chain: without a change of head nothing is lost.
//!
//! Checked on what is read when all is mended: the value of a block must not have been surely overwritten by a put that was
//! acknowledged, and is bound to be there. (That reads in between fit too is I2's matter.)

use dfs_common::Level;

use super::{Put, Told};
use crate::schedule::{BLOCKS, CHUNKS};
use crate::world::{World, chain_of};

impl World {
    pub(crate) fn judge_durability(&mut self) {
        let mut lost = Vec::new();
        for chunk in 0..CHUNKS {
            let chain = chain_of(chunk);
            let (amnesty, head_left) = (
                self.watch.amnesty.contains(&chain),
                self.watch.head_left.contains(&chain),
            );
            let is_bound = |put: &Put| {
                let safe = put.durable.is_some_and(|durable| durable >= Level::Quorum);
                let alone = put.level == Level::One && !safe;
                matches!(put.told, Told::Done(_))
                    && !put.given_up
                    && if alone {
                        !head_left && (!amnesty || put.durable.is_some())
                    } else {
                        safe || !amnesty
                    }
            };
            for block in 0..BLOCKS {
                let here = |put: &&Put| put.chunk == chunk && put.block == block;
                let Some(last) = self
                    .watch
                    .reads
                    .iter()
                    .rev()
                    .find(|seen| seen.chunk == chunk && seen.block == block)
                else {
                    continue;
                };
                let bound = self.watch.puts.iter().filter(here).filter(|put| is_bound(put));
                let Some(newest) = bound.max_by_key(|put| put.called) else {
                    continue;
                };
                // Whoever put the value that is there, at a time when the newest could still come before it.
                let explained = self.watch.puts.iter().filter(here).any(|put| {
                    put.value == last.value
                        && put.told != Told::Refused
                        && !matches!(put.told, Told::Done(returned) if returned < newest.called)
                });
                if !explained {
                    lost.push(format!(
                        "block {block} of chunk {chunk} holds {:#x} at the end; {:#x} of client {} was acknowledged at {} after that was overwritten{}",
                        last.value,
                        newest.value,
                        newest.who,
                        newest.level,
                        newest.durable.map_or_else(String::new, |level| format!(" (durable at {level})"))
                    ));
                }
            }
        }
        for detail in lost {
            self.fail("I1", detail);
        }
    }
}
