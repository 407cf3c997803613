//! Copying chunks to a syncing member. Mirrors `dfs_storage::resync`.

use bytes::Bytes;
use dfs_common::wire::storage::{BlockRun, ChunkMemory, InstallPart};
use dfs_common::{BlockIndex, ChainId, ChunkId, ChunkVersion, Epoch, Error, ErrorCode, StorageId};
use dfs_storage::replica::{CopyReport, Input, Ticket, WaiterId};

use crate::messages::{Call, For, Reply, Request, Waiting};
use crate::schedule::BLOCKS;
use crate::world::World;

/// Blocks in one part of a copy: small, so that several are needed.
const PART_BLOCKS: u32 = 2;

/// A chunk on its way to a syncing member.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) node: usize,
    pub(crate) incarnation: u64,
    pub(crate) chain: ChainId,
    pub(crate) ticket: Ticket,
    pub(crate) to: StorageId,
    pub(crate) epoch: Epoch,
    pub(crate) chunk: ChunkId,
    pub(crate) version: ChunkVersion,
    pub(crate) first: u32,
    pub(crate) begun: bool,
    pub(crate) finished: bool,
    pub(crate) ready: Option<(Vec<BlockRun>, Bytes)>,
    pub(crate) size_bytes: u64,
}

impl World {
    pub(crate) fn list(&mut self, at: usize, chain: ChainId, waiter: WaiterId, after: Option<ChunkId>, limit: u32) {
        let Some(store) = self.nodes[at].store.clone() else {
            return;
        };
        if after.is_none() {
            let rotten: Vec<_> = self.nodes[at].rotten.iter().copied().collect();
            for chunk in rotten {
                if store.drop_chunk(chain, chunk).is_ok() {
                    self.nodes[at].rotten.remove(&chunk);
                }
            }
        }
        let chunks = store.list(chain, after, limit as usize);
        let end = chunks.len() < limit as usize;
        let Some(member) = self.nodes[at].chains.get_mut(&chain) else {
            return;
        };
        if let Some(Waiting::Answer { call, from, .. }) = member.waiting.remove(&waiter) {
            self.reply(at, call, from, Ok(Reply::Inventory(chunks, end)));
        }
    }

    pub(crate) fn copy_ended(&mut self, copy: u64, result: Result<CopyReport, Error>) {
        let Some(copy) = self.copies.remove(&copy) else { return };
        if self.lives(copy.node, copy.incarnation) {
            self.feed(
                copy.node,
                copy.chain,
                Input::Copied {
                    ticket: copy.ticket,
                    result,
                },
            );
        }
    }

    /// The next part of a copy, one behind what is read, as `resync::copy_chunk` does it.
    pub(crate) fn copy_on(&mut self, id: u64) {
        let Some(mut copy) = self.copies.remove(&id) else {
            return;
        };
        let Some(store) = self.nodes[copy.node].store.clone() else {
            return;
        };
        if copy.finished {
            let report = CopyReport {
                version: copy.version,
                size_bytes: copy.size_bytes,
            };
            self.copies.insert(id, copy);
            return self.copy_ended(id, Ok(report));
        }
        if !copy.begun && copy.first == 0 {
            copy.version = store.version(copy.chunk);
        }
        let mut part = None;
        while copy.first < BLOCKS && part.is_none() {
            let blocks = PART_BLOCKS.min(BLOCKS - copy.first);
            let read = store.read(copy.chunk, BlockIndex(copy.first), blocks);
            copy.first += blocks;
            match read {
                Ok(read) if read.version != copy.version => {
                    let error = Error::new(ErrorCode::Internal, "a chunk changed while it was copied");
                    self.copies.insert(id, copy);
                    self.fail("I4", "a chunk changed while it was copied");
                    return self.copy_ended(id, Err(error));
                }
                Ok(read) if read.runs.is_empty() => {}
                Ok(read) => {
                    if let Some(before) = copy.ready.replace((read.runs, read.payload)) {
                        part = Some(before);
                    }
                }
                Err(error) => {
                    let error = Error::from(error);
                    if error.code == ErrorCode::Corrupt {
                        self.nodes[copy.node].rotten.insert(copy.chunk);
                    }
                    self.copies.insert(id, copy);
                    return self.copy_ended(id, Err(error));
                }
            }
        }
        let done = part.is_none();
        let (runs, payload) = part.or_else(|| copy.ready.take()).unwrap_or_default();
        copy.size_bytes += payload.len() as u64;
        copy.finished = done;
        let begin = !copy.begun;
        copy.begun = true;
        let memory = if done {
            store.memory(copy.chunk)
        } else {
            ChunkMemory::default()
        };
        let request = Request::Install {
            chain: copy.chain,
            epoch: copy.epoch,
            chunk: copy.chunk,
            version: copy.version,
            part: InstallPart {
                begin,
                done,
                runs,
                memory,
            },
            payload,
        };
        let call = Call::Node {
            node: copy.node,
            incarnation: copy.incarnation,
            chain: copy.chain,
            what: For::Copy(id),
        };
        let (from, to) = (copy.node, copy.to);
        self.copies.insert(id, copy);
        self.call(from, to, request, call, 0);
    }
}
