//! I7: a node whose disk reported a failed write or sync acknowledges nothing. The disk is asked, not the node.
//!
//! What was in the page cache before may still be answered for as long as it takes to notice: one heartbeat and a bit.

use crate::world::World;

const NOTICED_MS: u64 = 300;

impl World {
    pub(crate) fn watch_word(&mut self, at: usize) {
        let node = &self.nodes[at];
        if node.disk.failures() == 0 {
            return;
        }
        let since = *self
            .watch
            .faulty_since
            .entry((at, node.incarnation))
            .or_insert(self.now);
        if self.now > since + NOTICED_MS && self.nodes[at].paused_until_ms + NOTICED_MS < self.now {
            self.fail(
                "I7",
                format!(
                    "the disk of storage-{} failed a write or sync {} ms ago or more, and it still acknowledges",
                    at + 1,
                    self.now - since
                ),
            );
        }
    }
}
