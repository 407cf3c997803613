//! What a member that came back has of a chunk that its chain has not, and what is to become of it.
//!
//! A write at ONE is acknowledged by the head alone. A head that dies before anybody else has it takes it along, and its successor
//! goes on without. Two vectors say of each block which of the two histories knows the other's version of it (Parker et al., 1983):
//! a block that only the dead head wrote is merely ahead and goes into the chain; one that both wrote is a conflict.
//!
//! Only what was acknowledged counts. At QUORUM and ALL a head that was alone with a mutation had not acknowledged it, so it never was;
//! and a mutation whose request the chain has under another version was sent again by its client.

use dfs_common::wire::storage::{BlockCondition, BlockRun, ChunkState, Remembered};
use dfs_common::{BlockIndex, ChunkVersion, Level};

/// Blocks in one write that brings in what is ahead: with their seals within 1 MiB.
const MAX_BLOCKS: u32 = 128;

/// Blocks of the member's chunk, within one mutation of it, that are to be written to the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// As the member has them.
    pub run: BlockRun,
    /// What the chain had of them when they were compared: the write is void if that is not so any more.
    pub conditions: Vec<BlockCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The chain has not written these blocks since their histories parted.
    pub ahead: Vec<Piece>,
    /// It has.
    pub both: Vec<BlockRun>,
}

/// Compares the state of a chunk at a member that came back with the chain's.
#[must_use]
pub fn compare(member: &ChunkState, chain: &ChunkState) -> Findings {
    let mut findings = Findings::default();
    let (its, chains) = (member.vector(), chain.vector());
    for run in &member.runs {
        if chains.has(run.version) || !was_acknowledged(member, chain, run.version) {
            continue;
        }
        for one in run.each_block() {
            let block = one.first.0;
            let there = version_at(&chain.runs, block);
            if there == run.version {
                // Of an epoch that the chain's vector does not name any more.
                continue;
            }
            // A hole that was cut: what was cut is known by the last mutation that cut anything.
            let last = if there.is_none() { chain.memory.trimmed } else { there };
            if its.has(last) {
                let condition = BlockCondition {
                    block: BlockIndex(block),
                    version: there,
                };
                match findings.ahead.last_mut() {
                    Some(piece) if piece.run.blocks < MAX_BLOCKS && piece.run.joins(&one) => {
                        piece.run.extend(&one);
                        piece.conditions.push(condition);
                    }
                    _ => findings.ahead.push(Piece {
                        run: one,
                        conditions: vec![condition],
                    }),
                }
            } else {
                match findings.both.last_mut() {
                    Some(run) if run.blocks < MAX_BLOCKS && run.joins(&one) => run.extend(&one),
                    _ => findings.both.push(one),
                }
            }
        }
    }
    findings
}

/// Whether the member alone may have acknowledged the mutation. What it does not remember any more is stable since long.
fn was_acknowledged(member: &ChunkState, chain: &ChunkState, version: ChunkVersion) -> bool {
    let remembered = member.memory.requests.iter().find(|known| known.version == version);
    let sent_again = |request: &Remembered| chain.memory.requests.iter().any(|known| known.id == request.id);
    remembered.is_some_and(|request| request.level == Level::One && !sent_again(request))
}

/// [`ChunkVersion::NONE`] for a hole.
fn version_at(runs: &[BlockRun], block: u32) -> ChunkVersion {
    let after = runs.partition_point(|run| run.first.0 <= block);
    runs[..after]
        .last()
        .filter(|run| block - run.first.0 < run.blocks)
        .map_or(ChunkVersion::NONE, |run| run.version)
}

#[cfg(test)]
mod tests {
    use dfs_common::wire::storage::ChunkMemory;
    use dfs_common::{ChunkId, CutEpoch, Epoch, HybridClock, RequestId, SequenceNumber, SessionId};

    use super::*;

    fn v(epoch: u64, counter: u64) -> ChunkVersion {
        ChunkVersion {
            epoch: Epoch(epoch),
            counter,
        }
    }

    fn run(first: u32, blocks: u32, version: ChunkVersion) -> BlockRun {
        BlockRun {
            first: BlockIndex(first),
            blocks,
            last_length_bytes: 100,
            version,
        }
    }

    fn request(number: u64, version: ChunkVersion, level: Level) -> Remembered {
        let id = RequestId {
            sequence: SequenceNumber(number),
            session: SessionId(1),
            ..RequestId::SYSTEM
        };
        Remembered { id, version, level }
    }

    fn state(
        earlier: &[ChunkVersion],
        version: ChunkVersion,
        runs: &[BlockRun],
        requests: &[Remembered],
    ) -> ChunkState {
        ChunkState {
            chunk: ChunkId::default(),
            version,
            memory: ChunkMemory {
                earlier: earlier.to_vec(),
                trimmed: ChunkVersion::NONE,
                cut: CutEpoch::NONE,
                stamp: HybridClock::default(),
                requests: requests.to_vec(),
            },
            runs: runs.to_vec(),
        }
    }

    #[test]
    fn what_only_the_member_wrote_is_ahead() {
        let member = state(
            &[],
            v(1, 3),
            &[run(0, 1, v(1, 1)), run(1, 1, v(1, 2)), run(2, 2, v(1, 3))],
            &[
                request(1, v(1, 1), Level::One),
                request(2, v(1, 2), Level::One),
                request(3, v(1, 3), Level::One),
            ],
        );
        // The chain went on from 1.1, and has written block 7 since.
        let chain = state(&[v(1, 1)], v(2, 2), &[run(0, 1, v(1, 1)), run(7, 1, v(2, 2))], &[]);
        let findings = compare(&member, &chain);
        assert_eq!(findings.both, []);
        let found: Vec<_> = findings
            .ahead
            .iter()
            .map(|piece| (piece.run, piece.conditions.len(), piece.conditions[0].version))
            .collect();
        assert_eq!(
            found,
            [
                (run(1, 1, v(1, 2)), 1, ChunkVersion::NONE),
                (run(2, 2, v(1, 3)), 2, ChunkVersion::NONE)
            ]
        );
    }

    #[test]
    fn what_both_wrote_is_a_conflict_and_an_overwrite_of_what_both_knew_is_not() {
        let member = state(&[], v(1, 3), &[run(0, 4, v(1, 3))], &[request(3, v(1, 3), Level::One)]);
        // Blocks 0 and 3 as both knew them, 1 written anew, 2 never written.
        let chain = state(
            &[v(1, 2)],
            v(2, 3),
            &[run(0, 1, v(1, 2)), run(1, 1, v(2, 3)), run(3, 1, v(1, 1))],
            &[],
        );
        let findings = compare(&member, &chain);
        let full = |first, blocks| BlockRun {
            last_length_bytes: 4096,
            ..run(first, blocks, v(1, 3))
        };
        assert_eq!(findings.both, [full(1, 1)]);
        let ahead: Vec<_> = findings.ahead.iter().map(|piece| piece.run).collect();
        assert_eq!(ahead, [full(0, 1), run(2, 2, v(1, 3))]);
        let conditions: Vec<_> = findings.ahead[1].conditions.iter().map(|c| c.version).collect();
        assert_eq!(conditions, [ChunkVersion::NONE, v(1, 1)]);
    }

    #[test]
    fn what_was_cut_off_meanwhile_is_a_conflict() {
        let member = state(&[], v(1, 2), &[run(0, 1, v(1, 2))], &[request(2, v(1, 2), Level::One)]);
        let mut chain = state(&[v(1, 1)], v(2, 2), &[], &[]);
        chain.memory.trimmed = v(2, 2);
        assert_eq!(compare(&member, &chain).both.len(), 1);
        chain.memory.trimmed = v(1, 1);
        assert_eq!(compare(&member, &chain).ahead.len(), 1);
    }

    #[test]
    fn what_was_never_acknowledged_or_was_sent_again_is_nothing() {
        for (level, again, found) in [
            (Level::One, false, 1),
            (Level::Quorum, false, 0),
            (Level::All, false, 0),
            (Level::One, true, 0),
        ] {
            let member = state(&[], v(1, 2), &[run(0, 1, v(1, 2))], &[request(2, v(1, 2), level)]);
            let requests = [request(2, v(2, 5), Level::One)];
            let chain = state(&[v(1, 1)], v(2, 5), &[], if again { &requests } else { &[] });
            let findings = compare(&member, &chain);
            assert_eq!(findings.ahead.len() + findings.both.len(), found, "{level} {again}");
        }
        let member = state(&[], v(1, 2), &[run(0, 1, v(1, 2))], &[]);
        let chain = state(&[v(1, 1)], v(2, 5), &[], &[]);
        assert_eq!(
            compare(&member, &chain),
            Findings::default(),
            "forgotten: stable since long"
        );
    }

    #[test]
    fn long_runs_are_brought_in_in_parts() {
        let member = state(
            &[],
            v(1, 2),
            &[run(0, 300, v(1, 2))],
            &[request(2, v(1, 2), Level::One)],
        );
        let chain = state(&[v(1, 1)], v(2, 2), &[], &[]);
        let sizes: Vec<_> = compare(&member, &chain)
            .ahead
            .iter()
            .map(|piece| (piece.run.blocks, piece.run.last_length_bytes))
            .collect();
        assert_eq!(sizes, [(128, 4096), (128, 4096), (44, 100)]);
    }
}
