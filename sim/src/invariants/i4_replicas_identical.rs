//! I4: once everything is repaired, all replicas of a chain are the same: versions, blocks and what they remember of their past.
//!
//! The one node whose disk was spoiled on purpose may hold blocks that it knows to be damaged: it says so, and never
//! serves them (a scrub mends them; that is not simulated).

use std::collections::BTreeSet;

use dfs_common::wire::storage::ChunkMemory;

use crate::world::World;

impl World {
    pub(crate) fn judge_replicas(&mut self) {
        let table = self.group.decided();
        let mut wrong = Vec::new();
        for chain in table.chains.values() {
            let mut first: Option<(u32, Vec<_>)> = None;
            for member in chain.serving() {
                let at = member.0 as usize - 1;
                let Some(store) = &self.nodes[at].store else { continue };
                let spoiled = self.schedule.character.victim == Some(at);
                let mut all = Vec::new();
                // The tombstone of a removed file says no more than nothing does: they are
                // forgotten one by one.
                let gone: BTreeSet<_> = store.gone(chain.id, usize::MAX).into_iter().collect();
                let kept = store.list(chain.id, None, usize::MAX).into_iter();
                for (chunk, _) in kept.filter(|entry| !gone.contains(entry)) {
                    match store.summarize(chunk, true) {
                        Ok(summary) if summary.rotten.is_some() => {
                            if !spoiled {
                                wrong.push(format!("{chunk} is damaged on storage-{member}, whose disk is sound"));
                            }
                            all.push((chunk, None, remembered(store, chunk)));
                        }
                        Ok(summary) => all.push((
                            chunk,
                            Some((summary.version, summary.blocks, summary.digest)),
                            store.memory(chunk),
                        )),
                        Err(_) if spoiled => all.push((chunk, None, ChunkMemory::default())),
                        Err(error) => wrong.push(format!("{chunk} on storage-{member}: {error}")),
                    }
                }
                match &first {
                    None => first = Some((member.0, all)),
                    Some((other, before)) => {
                        let same = before.len() == all.len()
                            && before.iter().zip(&all).all(|(a, b)| {
                                a.0 == b.0 && (a.1.is_none() || b.1.is_none() || (a.1 == b.1 && a.2 == b.2))
                            });
                        if !same {
                            wrong.push(format!(
                                "chain {}: storage-{other} and storage-{member} differ:\n  {before:?}\n  {all:?}",
                                chain.id
                            ));
                        }
                    }
                }
            }
        }
        for detail in wrong {
            self.fail("I4", detail);
        }
    }
}

/// What a chunk must remember. (Beyond that, replicas forget at different times: one that was copied to starts anew.)
fn remembered(store: &dfs_storage::store::ChunkStore, chunk: dfs_common::ChunkId) -> ChunkMemory {
    let mut memory = store.memory(chunk);
    let beyond = memory
        .requests
        .len()
        .saturating_sub(crate::clients::REMEMBERED as usize);
    memory.requests.drain(..beyond);
    memory
}
