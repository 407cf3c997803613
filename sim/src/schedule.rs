//! What a seed will do, drawn before it runs: so a failing schedule can be made smaller, step by step.

use dfs_common::Level;
use dfs_storage::disk::sim::Operation;

use crate::random::Random;
use crate::stories;

/// How long faults go on.
pub const STORM_MS: u64 = 9_000;

pub const NODES: usize = 3;
pub const CLIENTS: usize = 4;
/// Blocks of a chunk that are used.
pub const BLOCKS: u32 = 3;
pub const CHUNKS: u64 = 6;
/// And so many after them whose files are cut to nothing by a removal of ranges, and sometimes removed: what a range takes has no name
/// of its own, so what they hold is not judged by histories (their replicas and epochs are).
pub const DOOMED: u64 = 2;
/// Mounts that only change names.
pub const NAMERS: usize = 2;

/// Each is counted when it has fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Kill,
    PowerLoss,
    TornWrite,
    RotData,
    RotHeader,
    LostWrite,
    MisdirectedWrite,
    ReadEio,
    FsyncEio,
    DiskFull,
    SlowDisk,
    QuickRestart,
    LateRestart,
    Pause,
    FullPartition,
    PartialPartition,
    OneWayPartition,
    Loss,
    Duplication,
    LateDuplicate,
    Reordering,
    LongDelay,
    ClockJump,
    ClockDrift,
    AllKilled,
    AllPowerCut,
    StaleFirst,
    ChangeInResync,
    LeaderChange,
    MetaRestart,
    LostDisk,
    ClientCrash,
    OldRetry,
    StaleCut,
    RemovedFile,
    ConcurrentConditions,
    EverybodyStoodStill,
    LeaderDeaf,
    SlowConsensus,
    UnsyncedLost,
    Cascade,
    DeathsAtRest,
    Forgotten,
    DescriptorsOut,
    MemoryOut,
    CondemnedInARow,
}

impl Kind {
    pub const EVERY: &'static [Self] = &[
        Self::Kill,
        Self::PowerLoss,
        Self::TornWrite,
        Self::RotData,
        Self::RotHeader,
        Self::LostWrite,
        Self::MisdirectedWrite,
        Self::ReadEio,
        Self::FsyncEio,
        Self::DiskFull,
        Self::SlowDisk,
        Self::QuickRestart,
        Self::LateRestart,
        Self::Pause,
        Self::FullPartition,
        Self::PartialPartition,
        Self::OneWayPartition,
        Self::Loss,
        Self::Duplication,
        Self::LateDuplicate,
        Self::Reordering,
        Self::LongDelay,
        Self::ClockJump,
        Self::ClockDrift,
        Self::AllKilled,
        Self::AllPowerCut,
        Self::StaleFirst,
        Self::ChangeInResync,
        Self::LeaderChange,
        Self::MetaRestart,
        Self::LostDisk,
        Self::ClientCrash,
        Self::OldRetry,
        Self::StaleCut,
        Self::RemovedFile,
        Self::ConcurrentConditions,
        Self::EverybodyStoodStill,
        Self::LeaderDeaf,
        Self::SlowConsensus,
        Self::UnsyncedLost,
        Self::Cascade,
        Self::DeathsAtRest,
        Self::Forgotten,
        Self::DescriptorsOut,
        Self::MemoryOut,
        Self::CondemnedInARow,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Down, and up again after so long.
    Kill {
        node: usize,
        down_ms: u64,
    },
    Power {
        node: usize,
        down_ms: u64,
        torn: Option<u64>,
    },
    /// At once, and up again in this order with so much between them.
    AllKilled {
        first: usize,
        apart_ms: u64,
    },
    AllPower {
        first: usize,
        apart_ms: u64,
        torn: Option<u64>,
    },
    /// One goes, later the others; the one that is stale is back first.
    StaleFirst {
        node: usize,
        apart_ms: u64,
    },
    /// One after the other, two or all of them, at once or with some time between; the last to go is the first back.
    Cascade {
        first: usize,
        count: usize,
        apart_ms: u64,
        /// Whether the power goes, by turn; else only the process.
        power: u64,
        back_ms: u64,
    },
    Media {
        node: usize,
        kind: Kind,
        draw: u64,
    },
    /// These (by bit) lack descriptors or memory for a while: nothing is wrong with their disks.
    Scarce {
        nodes: u64,
        kind: Kind,
        operation: Operation,
        ms: u64,
    },
    Slow {
        node: usize,
        ms: u64,
        until_ms: u64,
    },
    Pause {
        node: usize,
        ms: u64,
    },
    /// `a` hears nothing of `b` (and `b` of `a`, if both ways); place 9: the metadata group, 8: everybody else.
    Cut {
        kind: Kind,
        a: usize,
        b: usize,
        ms: u64,
    },
    ClockJump {
        node: usize,
        ms: u64,
    },
    ClockDrift {
        node: usize,
        per_mille: i64,
    },
    LeaderChange {
        gap_ms: u64,
    },
    MetaRestart {
        server: usize,
    },
    LeaderDeaf {
        ms: u64,
    },
    ClientCrash {
        client: usize,
    },
    /// Hours pass in which no machine runs.
    StandStill {
        ms: u64,
    },
}

/// What becomes of a file whose chunks are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is cut to nothing.
    Cut,
    /// It is removed.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write {
        chunk: u64,
        first: u32,
        blocks: u32,
        conditional: bool,
        sync: bool,
        small: bool,
        level: Level,
    },
    Truncate {
        chunk: u64,
        blocks: u32,
        level: Level,
    },
    Remove {
        chunk: u64,
        level: Level,
    },
    Read {
        chunk: u64,
        pick: u64,
        level: Level,
    },
    Sync {
        chunk: u64,
        level: Level,
    },
    RemoveRange {
        chunk: u64,
        end: End,
    },
    /// Where the file of the chunk ends.
    FileEnd {
        chunk: u64,
    },
    /// The last acknowledged request once more.
    OldRetry,
}

impl Op {
    pub(crate) const fn level(&self) -> Level {
        match *self {
            Self::Write { level, .. }
            | Self::Truncate { level, .. }
            | Self::Remove { level, .. }
            | Self::Read { level, .. }
            | Self::Sync { level, .. } => level,
            Self::RemoveRange { .. } | Self::FileEnd { .. } | Self::OldRetry => Level::Quorum,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Fault(Fault),
    Client { client: usize, op: Op },
    Name { namer: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub at_ms: u64,
    pub what: What,
}

/// What a seed is like, beyond its steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Character {
    pub loss_percent: u64,
    pub duplicate_percent: u64,
    pub late_percent: u64,
    pub reorder_ms: u64,
    /// A part of a copy takes up to so much longer.
    pub copy_ms: u64,
    /// A store takes up to so much longer for a mutation.
    pub apply_ms: u64,
    /// The one node whose disk and process may fail, or lack something, in a seed about media.
    pub victim: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub seed: u64,
    pub character: Character,
    pub steps: Vec<Step>,
}

/// What a chunk is written or read at: one level, as a file's policy says, or any (`None`), as mounts with policies of their own do.
type Policy = Option<Level>;

fn draw_policy(random: &mut Random) -> (Policy, Policy) {
    let one =
        |random: &mut Random| [Some(Level::One), Some(Level::Quorum), Some(Level::All), None][random.below(4) as usize];
    if random.chance(40) {
        (Some(Level::Quorum), Some(Level::Quorum))
    } else {
        (one(random), one(random))
    }
}

fn draw_level(random: &mut Random, policy: Policy) -> Level {
    let any = [Level::One, Level::Quorum, Level::Quorum, Level::All][random.below(4) as usize];
    policy.unwrap_or(any)
}

impl Schedule {
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5eed_0000_0000_0000);
        let mut steps = Vec::new();
        if random.below(STORY_EVERY) == 0 {
            stories::draw(&mut random, &mut steps);
            steps.retain(|step| step.at_ms < STORM_MS + 500);
            steps.sort_by_key(|step| step.at_ms);
            let character = Character::default();
            return Self { seed, character, steps };
        }
        let media = random.chance(35);
        let character = Character {
            loss_percent: if random.chance(50) { random.below(8) } else { 0 },
            duplicate_percent: if random.chance(50) { random.below(8) } else { 0 },
            late_percent: if random.chance(30) { random.below(4) } else { 0 },
            reorder_ms: if random.chance(60) { random.between(1, 20) } else { 0 },
            copy_ms: if random.chance(40) { random.between(20, 400) } else { 0 },
            apply_ms: if random.chance(40) { random.between(5, 60) } else { 0 },
            victim: media.then(|| random.below(NODES as u64) as usize),
        };
        faults(&mut random, character, &mut steps);
        ops(&mut random, &mut steps);
        steps.sort_by_key(|step| step.at_ms);
        Self { seed, character, steps }
    }

    /// Only the steps at these places.
    #[must_use]
    pub fn only(&self, keep: &[usize]) -> Self {
        let steps = keep.iter().filter_map(|&at| self.steps.get(at).copied()).collect();
        Self { steps, ..self.clone() }
    }
}

fn down_ms(random: &mut Random) -> u64 {
    if random.chance(50) {
        random.between(5, 300)
    } else {
        random.between(1_000, 4_000)
    }
}

/// Sorts of faults: those that `draw_fault` knows, and one that is a story of its own.
const FAULTS: u64 = 20;
const CASCADE: u64 = 18;

/// One seed in so many tells a story.
const STORY_EVERY: u64 = 8;

fn faults(random: &mut Random, character: Character, steps: &mut Vec<Step>) {
    // A few kinds a seed: so that seeds differ, and rare mixtures come up.
    let mut allowed = random.next() | (1 << random.below(FAULTS));
    let kinds = random.between(2, 9);
    while u64::from((allowed & ((1 << FAULTS) - 1)).count_ones()) > kinds {
        allowed &= !(1 << random.below(FAULTS));
    }
    let mut at = random.between(300, 1_200);
    let lasts = random.between(3_000, STORM_MS);
    while at < lasts {
        let kind = random.below(FAULTS);
        if kind == CASCADE && allowed & (1 << kind) != 0 && character.victim.is_none() {
            let chunk = random.below(CHUNKS);
            at = stories::cascade(random, chunk, at, steps) + random.between(20, 1_500);
        } else if allowed & (1 << kind) != 0
            && let Some(fault) = draw_fault(random, kind, character)
        {
            steps.push(Step {
                at_ms: at,
                what: What::Fault(fault),
            });
            at += random.between(20, 1_500);
        }
        at += 20;
    }
}

fn draw_fault(random: &mut Random, kind: u64, character: Character) -> Option<Fault> {
    let any = random.below(NODES as u64) as usize;
    // Where a disk fails for good, only that node may fail: else the last good copy could be what is lost.
    let node = character.victim.unwrap_or(any);
    let media = character.victim.is_some();
    let torn = random.chance(50).then(|| random.next());
    let ms = random.between(100, 2_500);
    Some(match kind {
        0 | 1 => Fault::Kill {
            node,
            down_ms: down_ms(random),
        },
        2 => Fault::Power {
            node,
            down_ms: down_ms(random),
            torn,
        },
        3 if !media => Fault::AllKilled {
            first: any,
            apart_ms: random.between(1, 1_500),
        },
        4 if !media => Fault::AllPower {
            first: any,
            apart_ms: random.between(1, 1_500),
            torn,
        },
        5 if !media => Fault::StaleFirst {
            node,
            apart_ms: random.between(100, 1_500),
        },
        3..=8 if media => Fault::Media {
            node,
            kind: [
                Kind::RotData,
                Kind::RotHeader,
                Kind::LostWrite,
                Kind::MisdirectedWrite,
                Kind::ReadEio,
                Kind::FsyncEio,
                Kind::DiskFull,
                Kind::LostDisk,
            ][random.below(8) as usize],
            draw: random.next(),
        },
        6 => Fault::Pause {
            node,
            ms: if random.chance(80) {
                ms
            } else {
                random.between(2_500, 12_000)
            },
        },
        7 => Fault::Slow {
            node,
            ms: random.between(10, 300),
            until_ms: ms,
        },
        8 => Fault::Cut {
            kind: Kind::FullPartition,
            a: node,
            b: 8,
            ms,
        },
        9 => Fault::Cut {
            kind: Kind::PartialPartition,
            a: node,
            b: if random.chance(50) { 9 } else { (node + 1) % NODES },
            ms,
        },
        10 => Fault::Cut {
            kind: Kind::OneWayPartition,
            a: node,
            b: if random.chance(50) { 9 } else { (node + 1) % NODES },
            ms,
        },
        11 => Fault::ClockJump {
            node,
            ms: random.between(50, 5_000),
        },
        12 => Fault::ClockDrift {
            node,
            per_mille: random.between(0, 160) as i64 - 80,
        },
        13 => Fault::LeaderChange {
            gap_ms: random.between(50, 700),
        },
        14 => Fault::MetaRestart {
            server: random.below(3) as usize,
        },
        15 => Fault::LeaderDeaf {
            ms: random.between(200, 1_500),
        },
        16 => Fault::ClientCrash {
            client: random.below(CLIENTS as u64) as usize,
        },
        17 if random.chance(15) => Fault::StandStill {
            ms: random.between(60_000, 7_200_000),
        },
        19 => {
            // A sync that fails condemns, whatever its number.
            let operation = [Operation::Create, Operation::Replace, Operation::Read, Operation::Write];
            let kind = if random.chance(50) {
                Kind::DescriptorsOut
            } else {
                Kind::MemoryOut
            };
            Fault::Scarce {
                nodes: character
                    .victim
                    .map_or_else(|| random.between(1, (1 << NODES) - 1), |victim| 1 << victim),
                kind,
                operation: operation[random.below(if kind == Kind::MemoryOut { 4 } else { 2 }) as usize],
                ms,
            }
        }
        _ => return None,
    })
}

fn ops(random: &mut Random, steps: &mut Vec<Step>) {
    let end = STORM_MS + 500;
    // Where little is written, what was synced stays the last word on a disk, and chains come to rest.
    let sparse = random.chance(30);
    let gap = if sparse {
        random.between(300, 1_500)
    } else {
        random.between(60, 220)
    };
    let few = random.chance(50);
    let policies: Vec<_> = (0..CHUNKS + DOOMED).map(|_| draw_policy(random)).collect();
    for client in 0..CLIENTS {
        let mut at = random.between(200, 400);
        while at < end {
            let chunk = if few {
                random.below(3)
            } else {
                random.below(CHUNKS + DOOMED)
            };
            let first = random.below(u64::from(BLOCKS)) as u32;
            let (write, read) = policies[chunk as usize];
            let level = draw_level(random, write);
            let op = match random.below(100) {
                // A file that is written and synced, and then left alone.
                0..=11 if sparse => Op::Sync { chunk, level },
                0..=46 => Op::Write {
                    chunk,
                    first,
                    blocks: random.between(1, u64::from(BLOCKS - first).min(2)) as u32,
                    conditional: random.chance(25),
                    sync: random.chance(35),
                    small: random.chance(80),
                    level,
                },
                47..=50 => Op::Truncate {
                    chunk,
                    blocks: random.below(u64::from(BLOCKS)) as u32,
                    level,
                },
                51..=52 => Op::Remove { chunk, level },
                53..=54 => Op::RemoveRange {
                    chunk: CHUNKS + random.below(DOOMED),
                    end: if random.chance(4) { End::Gone } else { End::Cut },
                },
                55..=56 => Op::Sync { chunk, level },
                57..=58 => Op::OldRetry,
                59..=60 => Op::FileEnd { chunk },
                _ => Op::Read {
                    chunk,
                    pick: random.next(),
                    level: draw_level(random, read),
                },
            };
            steps.push(Step {
                at_ms: at,
                what: What::Client { client, op },
            });
            at += random.between(1, gap);
        }
    }
    for namer in 0..NAMERS {
        let mut at = random.between(200, 400);
        while at < end {
            steps.push(Step {
                at_ms: at,
                what: What::Name { namer },
            });
            at += random.between(20, 500);
        }
    }
}
