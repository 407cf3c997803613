//! I13: a retry takes effect once. For chunks: an old request sent again is answered with the version that it had
//! (`clients`), and no request stands under two versions. For names: every change is answered as if it ran once (`names`).

use dfs_common::ChunkId;

use crate::world::World;

impl World {
    /// The same request under two versions that both stand.
    pub(crate) fn judge_once(&mut self) {
        let mut wrong = Vec::new();
        for node in &self.nodes {
            let Some(store) = &node.store else { continue };
            for chunk in 0..crate::schedule::CHUNKS {
                let id: ChunkId = crate::world::chunk_id(chunk);
                let all = store.memory(id).requests;
                let names: std::collections::BTreeSet<_> = all.iter().map(|entry| entry.id).collect();
                if names.len() != all.len() {
                    wrong.push(format!(
                        "a request took effect twice in chunk {chunk} on storage-{}: {all:?}",
                        node.id
                    ));
                }
            }
        }
        for detail in wrong {
            self.fail("I13", detail);
        }
    }
}
