//! I3: a read returns what somebody wrote to that very block, or an error; never invented, foreign or torn bytes.
//!
//! Every block says in its seal and in its data which chunk, block and write it is of; `clients::values` compares them. And a version of a
//! chunk holds the same wherever it is read: what its mutation made of the version before (`Watch::content`).

use dfs_common::Level;

use super::{Seen, Watch};

impl Watch {
    pub(crate) fn read(
        &mut self,
        who: u64,
        (chunk, block, value): (u64, u32, u64),
        level: Level,
        (called, returned): (u64, u64),
    ) -> Result<(), String> {
        if value != 0 && !self.written.contains(&(chunk, block, value)) {
            return Err(format!(
                "block {block} of chunk {chunk} was read as {value:#x}, which nobody wrote"
            ));
        }
        self.reads.push(Seen {
            who,
            chunk,
            block,
            value,
            level,
            called,
            returned,
        });
        Ok(())
    }

    /// Whether a file may end behind this many blocks: somebody wrote the last of them.
    pub(crate) fn wrote_last_block(&self, chunk: u64, blocks: u32) -> bool {
        self.puts
            .iter()
            .any(|put| put.chunk == chunk && put.block + 1 == blocks && put.value != 0)
    }
}
