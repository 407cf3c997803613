//! What must hold, whatever happens; one file an invariant. Some are checked at every step, some once all is mended.

mod i13_cuts;
mod i13_once;
mod i1_durability;
mod i2_linearizable;
mod i3_no_foreign_bytes;
mod i4_replicas_identical;
mod i5_one_value;
mod i6_no_stale_epoch;
mod i7_no_word_after_a_fault;

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::{ChainId, ChainInfo, ChunkId, ChunkVersion, CutEpoch, Epoch, Level, StorageId};

use dfs_common::wire::storage::Mutation;

use crate::world::World;

/// How a put ended, as its client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Not yet, or never: it may take effect at any time.
    Unknown,
    /// It surely did nothing.
    Refused,
    Done(u64),
}

/// One block that a mutation puts a value into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Put {
    pub(crate) who: u64,
    pub(crate) chunk: u64,
    pub(crate) block: u32,
    /// 0: a hole.
    pub(crate) value: u64,
    pub(crate) called: u64,
    pub(crate) level: Level,
    pub(crate) sync: bool,
    /// What its condition is on, if it has one.
    pub(crate) expected: Option<u64>,
    pub(crate) told: Told,
    /// The highest level of the acknowledged syncs that cover it.
    pub(crate) durable: Option<Level>,
    /// The epoch that it was acknowledged in, or an earlier one.
    pub(crate) epoch: Epoch,
    /// Its client was told that it may be lost.
    pub(crate) given_up: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) who: u64,
    pub(crate) chunk: u64,
    pub(crate) block: u32,
    pub(crate) value: u64,
    pub(crate) level: Level,
    pub(crate) called: u64,
    pub(crate) returned: u64,
}

/// All that is remembered for judging.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) puts: Vec<Put>,
    pub(crate) reads: Vec<Seen>,
    written: BTreeSet<(u64, u32, u64)>,
    /// What each version of each chunk did.
    versions: BTreeMap<(ChunkId, ChunkVersion), u64>,
    configs: BTreeMap<(ChainId, Epoch), ChainInfo>,
    heads: BTreeMap<(ChainId, Epoch), StorageId>,
    /// Chains that lost unsynced data with all their copies, as they may.
    pub(crate) amnesty: BTreeSet<ChainId>,
    /// When a node's disk first reported a failed write or sync.
    faulty_since: BTreeMap<(usize, u64), u64>,
    /// Chains whose head left, so that ONE may have lost something.
    pub(crate) head_left: BTreeSet<ChainId>,
    /// Chains that were without anybody complete, and brought back.
    pub(crate) revived: BTreeSet<ChainId>,
    /// What each version of each chunk holds.
    contents: BTreeMap<(ChunkId, ChunkVersion), Vec<u64>>,
    pub(crate) answers: u64,
    /// The newest truncation epoch that each version of each chunk has seen.
    cuts: BTreeMap<(ChunkId, ChunkVersion), CutEpoch>,
    /// Since when files are removed.
    gone: BTreeMap<u64, u64>,
}

impl Watch {
    pub(crate) fn begin(
        &mut self,
        who: u64,
        (chunk, block, value): (u64, u32, u64),
        called: u64,
        (level, sync): (Level, bool),
        expected: Option<u64>,
    ) -> usize {
        self.written.insert((chunk, block, value));
        self.puts.push(Put {
            who,
            chunk,
            block,
            value,
            called,
            level,
            sync,
            expected,
            told: Told::Unknown,
            durable: None,
            epoch: Epoch(0),
            given_up: false,
        });
        self.puts.len() - 1
    }

    pub(crate) fn end(&mut self, at: usize, told: Told, epoch: Epoch) {
        if let Some(put) = self.puts.get_mut(at) {
            put.told = told;
            put.epoch = epoch;
            if put.sync && matches!(told, Told::Done(_)) {
                put.durable = Some(put.level);
            }
        }
    }

    /// What a client has to have synced: its own, acknowledged before `called`.
    fn owed(&mut self, who: u64, chain: ChainId, called: u64) -> impl Iterator<Item = &mut Put> {
        self.puts.iter_mut().filter(move |put| {
            put.who == who
                && crate::world::chain_of(put.chunk) == chain
                && put.durable.is_none_or(|durable| durable < put.level)
                && !put.given_up
                && matches!(put.told, Told::Done(returned) if returned < called)
        })
    }

    /// What a sync that begins now vouches for.
    pub(crate) fn vouches(&mut self, who: u64, chain: ChainId, called: u64) -> (Epoch, Level) {
        self.owed(who, chain, called)
            .fold((Epoch(u64::MAX), Level::All), |(since, lowest), put| {
                (since.min(put.epoch), lowest.min(put.level))
            })
    }

    /// The sync that began at `called` was refused: some of it may be lost.
    pub(crate) fn sync_refused(&mut self, who: u64, chain: ChainId, called: u64) {
        self.owed(who, chain, called).for_each(|put| put.given_up = true);
    }

    /// A sync that began at `called` was acknowledged: it covers what this client had acknowledged before it began.
    pub(crate) fn synced(&mut self, who: u64, chain: ChainId, called: u64, level: Level) {
        self.owed(who, chain, called)
            .for_each(|put| put.durable = put.durable.max(Some(level)));
    }

    /// What a version of a chunk holds, for whoever sees it next; or an error if it held something else before.
    pub(crate) fn content(
        &mut self,
        chunk: ChunkId,
        version: ChunkVersion,
        found: &[(u64, ChunkVersion)],
    ) -> Result<(), String> {
        let found: Vec<u64> = found.iter().map(|&(value, _)| value).collect();
        self.content_is(chunk, version, found)
    }

    pub(crate) fn content_is(&mut self, chunk: ChunkId, version: ChunkVersion, found: Vec<u64>) -> Result<(), String> {
        let known = self.contents.entry((chunk, version)).or_insert_with(|| found.clone());
        if *known == found {
            return Ok(());
        }
        Err(format!(
            "version {version} of {chunk} holds {found:x?} here and {known:x?} elsewhere"
        ))
    }

    /// What a mutation makes of what its version before held, as far as that is known.
    pub(crate) fn content_after(
        &self,
        chunk: ChunkId,
        before: ChunkVersion,
        mutation: &Mutation,
        value: u64,
    ) -> Option<Vec<u64>> {
        let blocks = crate::schedule::BLOCKS as usize;
        let mut content = match self.contents.get(&(chunk, before)) {
            Some(content) => content.clone(),
            None if before.is_none() => vec![0; blocks],
            None => return None,
        };
        let (changed, value) = match *mutation {
            Mutation::Write { first, blocks, .. } => (first.0 as usize..(first.0 + blocks) as usize, value),
            Mutation::Truncate { blocks: left } => (left as usize..blocks, 0),
            Mutation::Remove => (0..blocks, 0),
        };
        content.get_mut(changed)?.fill(value);
        Some(content)
    }
}

impl World {
    /// Everything that can only be judged at the end.
    pub(crate) fn judge(&mut self) {
        self.judge_once();
        self.judge_replicas();
        self.judge_names();
        self.judge_group();
        self.judge_durability();
        self.judge_histories();
    }
}
