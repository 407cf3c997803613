//! What each fault does to the world.

use dfs_storage::disk::SimDisk;
use dfs_storage::disk::sim::{Image, Mishap, Operation};

use crate::event::{Event, Undo};
use crate::network::{GROUP, OTHERS};
use crate::random::Random;
use crate::schedule::{CLIENTS, Fault, Kind, NODES};
use crate::world::World;

/// Downtime beyond which a restart counts as late: others have gone on by then.
const LATE_MS: u64 = 900;

const fn first_bit(drawn: u64) -> bool {
    drawn % 2 == 1
}

impl World {
    /// The process dies; its disk is as the page cache has it.
    fn kill(&mut self, at: usize, down_ms: u64) {
        if !self.nodes[at].is_up() {
            return;
        }
        self.stop(at);
        let disk = self.nodes[at].disk.image(Image::Kill);
        self.nodes[at].disk = disk;
        let incarnation = self.nodes[at].incarnation;
        self.fired(if down_ms > LATE_MS {
            Kind::LateRestart
        } else {
            Kind::QuickRestart
        });
        if self.random.chance(70) {
            let delay = self.random.between(1, 25);
            self.after(delay, Event::Died { node: at, incarnation });
        }
        self.after(down_ms, Event::Restart { node: at, incarnation });
    }

    fn power(&mut self, at: usize, down_ms: u64, torn: Option<u64>) {
        if !self.nodes[at].is_up() {
            return;
        }
        self.stop(at);
        let image = torn.map_or(Image::Power, Image::Torn);
        if torn.is_some() {
            self.fired(Kind::TornWrite);
        }
        let disk = self.nodes[at].disk.image(image);
        self.nodes[at].disk = disk;
        let incarnation = self.nodes[at].incarnation;
        let chains: Vec<_> = self.group.decided().chains.keys().copied().collect();
        self.nodes[at]
            .lossy
            .extend(chains.into_iter().map(|chain| (chain, incarnation)));
        self.fired(if down_ms > LATE_MS {
            Kind::LateRestart
        } else {
            Kind::QuickRestart
        });
        self.after(down_ms, Event::Restart { node: at, incarnation });
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        if self.calm {
            return;
        }
        if self.trace.in_words() {
            self.trace.say(format!("{:>8} ms  FAULT {fault:?}", self.now));
        }
        let syncing = self.group.decided().chains.values().any(|chain| {
            chain
                .members
                .iter()
                .any(|member| member.state == dfs_common::MemberState::Syncing)
        });
        match fault {
            Fault::Kill { node, down_ms } => {
                if self.nodes[node].is_up() {
                    self.fired(Kind::Kill);
                    if syncing {
                        self.fired(Kind::ChangeInResync);
                    }
                }
                self.kill(node, down_ms);
            }
            Fault::Power { node, down_ms, torn } => {
                if self.nodes[node].is_up() {
                    self.fired(Kind::PowerLoss);
                }
                self.power(node, down_ms, torn);
            }
            Fault::AllKilled { first, apart_ms } => {
                self.fired(Kind::AllKilled);
                // Every machine, half of the time: nobody is left to ask again.
                if first_bit(apart_ms) {
                    (0..CLIENTS).for_each(|client| self.client_crash(client));
                }
                for turn in 0..NODES {
                    self.kill((first + turn) % NODES, 20 + apart_ms * turn as u64);
                }
            }
            Fault::AllPower { first, apart_ms, torn } => {
                self.fired(Kind::AllPowerCut);
                for turn in 0..NODES {
                    self.power(
                        (first + turn) % NODES,
                        20 + apart_ms * turn as u64,
                        torn.map(|seed| seed ^ turn as u64),
                    );
                }
            }
            Fault::StaleFirst { node, apart_ms } => {
                // Long enough away that others go on, and back a little before them.
                self.kill(node, 1_500 + 20);
                self.after(1_500, Event::Undo(Undo::Stale { node, apart_ms }));
            }
            Fault::Cascade {
                first,
                count,
                apart_ms,
                power,
                back_ms,
            } => {
                self.fired(Kind::Cascade);
                if self
                    .group
                    .decided()
                    .chains
                    .values()
                    .any(|chain| chain.rest.is_resting())
                {
                    self.fired(Kind::DeathsAtRest);
                }
                for turn in 0..count {
                    let node = (first + turn) % NODES;
                    let down_ms = back_ms + apart_ms * 2 * (count - turn) as u64;
                    let next = if power >> turn & 1 == 1 {
                        let torn = (power >> (turn + 8) & 1 == 1).then_some(power);
                        Fault::Power { node, down_ms, torn }
                    } else {
                        Fault::Kill { node, down_ms }
                    };
                    self.after(apart_ms * turn as u64, Event::Undo(Undo::Strike(next)));
                }
            }
            Fault::Media { node, kind, draw } => self.media(node, kind, draw),
            Fault::Scarce {
                nodes,
                kind,
                operation,
                ms,
            } => self.scarce(nodes, kind, operation, ms),
            Fault::Slow { node, ms, until_ms } => {
                self.fired(Kind::SlowDisk);
                self.nodes[node].slow = (ms, self.now + until_ms);
            }
            Fault::Pause { node, ms } => {
                if self.nodes[node].is_up() {
                    self.fired(Kind::Pause);
                    self.nodes[node].paused_until_ms = self.now + ms;
                }
            }
            Fault::Cut { kind, a, b, ms } => {
                self.fired(kind);
                let until = self.now + ms;
                let ends: Vec<usize> = if b == OTHERS {
                    (0..NODES).filter(|&other| other != a).chain([OTHERS, GROUP]).collect()
                } else {
                    vec![b]
                };
                for end in ends {
                    self.network.cut(a, end, until);
                    if kind != Kind::OneWayPartition {
                        self.network.cut(end, a, until);
                    }
                }
            }
            Fault::ClockJump { node, ms } => {
                self.fired(Kind::ClockJump);
                let now = self.now;
                let state = &mut self.nodes[node];
                state.clock = (now, state.clock_ms(now) + ms, state.clock.2);
            }
            Fault::ClockDrift { node, per_mille } => {
                self.fired(Kind::ClockDrift);
                let now = self.now;
                let state = &mut self.nodes[node];
                state.clock = (now, state.clock_ms(now), (1_000 + per_mille) as u64);
            }
            Fault::LeaderChange { gap_ms } => {
                self.fired(Kind::LeaderChange);
                self.depose(gap_ms);
            }
            Fault::MetaRestart { server } => {
                self.fired(Kind::MetaRestart);
                self.meta_down(server);
            }
            Fault::LeaderDeaf { ms } => {
                self.fired(Kind::LeaderDeaf);
                self.leader_deaf(ms);
            }
            Fault::ClientCrash { client } => self.client_crash(client),
            Fault::StandStill { ms } => {
                self.fired(Kind::EverybodyStoodStill);
                self.stood_still_ms += ms;
                self.stand_still(ms);
            }
        }
    }

    fn scarce(&mut self, nodes: u64, kind: Kind, operation: Operation, ms: u64) {
        let errno = match kind {
            Kind::DescriptorsOut => dfs_common::errno::EMFILE,
            _ => dfs_common::errno::ENOMEM,
        };
        for at in (0..NODES).filter(|at| nodes >> at & 1 == 1) {
            self.nodes[at].disk.fail(operation, 0, errno);
            self.after(ms, Event::Undo(Undo::Scarce(at)));
        }
        self.fired(kind);
    }

    fn media(&mut self, at: usize, kind: Kind, draw: u64) {
        if !self.nodes[at].is_up() {
            return;
        }
        let mut random = Random::new(draw);
        let disk = self.nodes[at].disk.clone();
        let soon = random.below(6);
        match kind {
            Kind::RotData | Kind::RotHeader => {
                let segments: Vec<_> = disk
                    .files()
                    .into_iter()
                    .filter(|(name, _)| name.starts_with("segment"))
                    .collect();
                let Some((name, size)) = segments.get(random.below(segments.len() as u64) as usize) else {
                    return;
                };
                // Records start at multiples of their alignment; a header is their first bytes.
                let offset = random.below(*size as u64 / 512) * 512
                    + if kind == Kind::RotHeader {
                        random.below(40)
                    } else {
                        60 + random.below(452)
                    };
                disk.rot(name, offset as usize, 1 << random.below(8));
                self.fired(kind);
            }
            Kind::LostWrite => disk.spoil(Mishap::LostWrite, soon),
            Kind::MisdirectedWrite => disk.spoil(Mishap::Misdirected(1 + random.below(40) as usize), soon),
            Kind::ReadEio => disk.spoil(Mishap::FailsOnce(Operation::Read, dfs_common::errno::EIO), soon),
            Kind::FsyncEio => {
                disk.spoil(Mishap::FailsOnce(Operation::Sync, dfs_common::errno::EIO), soon);
                self.nodes[at].sync_fails = true;
            }
            Kind::DiskFull => {
                let used: usize = disk.files().iter().map(|(_, size)| size).sum();
                disk.limit(used as u64);
                self.fired(kind);
                let until = random.between(300, 3_000);
                self.after(until, Event::Undo(Undo::Disk(at)));
            }
            Kind::LostDisk => {
                self.fired(kind);
                self.kill(at, random.between(50, 2_000));
                self.nodes[at].disk = SimDisk::new();
            }
            _ => {}
        }
        if matches!(
            kind,
            Kind::LostWrite | Kind::MisdirectedWrite | Kind::ReadEio | Kind::FsyncEio
        ) {
            // Counted when it has come to pass.
            self.nodes[at].due.push((kind, disk.mishaps()));
        }
        if matches!(kind, Kind::FsyncEio) {
            // Somebody looks after it some time later.
            let down = random.between(200, 1_500);
            let incarnation = self.nodes[at].incarnation;
            self.after(
                random.between(1_500, 3_000),
                Event::Undo(Undo::Replace {
                    node: at,
                    incarnation,
                    down_ms: down,
                }),
            );
        }
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Strike(fault) => self.strike(fault),
            Undo::Scarce(node) => self.nodes[node].disk.heal(),
            Undo::Disk(node) => self.nodes[node].disk.limit(u64::MAX),
            Undo::Stale { node, apart_ms } => {
                self.fired(Kind::StaleFirst);
                for turn in 1..NODES {
                    self.kill((node + turn) % NODES, 200 + apart_ms * turn as u64);
                }
            }
            Undo::Replace {
                node,
                incarnation,
                down_ms,
            } => {
                if self.lives(node, incarnation)
                    && self.nodes[node]
                        .store
                        .as_ref()
                        .is_some_and(|store| store.fault().is_some())
                {
                    self.kill(node, down_ms);
                }
            }
        }
    }

    /// Whoever says that its store gave up is restarted, and empties its disk then.
    pub(crate) fn look_after(&mut self) {
        for at in 0..NODES {
            if self.nodes[at].is_up() && self.nodes[at].fault.is_some() {
                self.kill(at, 100);
            }
        }
    }

    /// Every mishap that came to pass is counted once.
    pub(crate) fn count_mishaps(&mut self) {
        for at in 0..NODES {
            let happened = self.nodes[at].disk.mishaps();
            let due = std::mem::take(&mut self.nodes[at].due);
            for (kind, before) in due {
                if happened > before {
                    self.fired(kind);
                } else {
                    self.nodes[at].due.push((kind, before));
                }
            }
        }
    }

    /// Nothing is wrong any more: machines run, cables are in, disks work; who lost its disk has a new one.
    pub(crate) fn heal(&mut self) {
        self.count_mishaps();
        self.calm = true;
        self.network.heal();
        self.group.everybody_up();
        if self.trace.in_words() {
            self.trace.say(format!("{:>8} ms  everything is mended", self.now));
        }
        for at in 0..NODES {
            let now = self.now;
            let node = &mut self.nodes[at];
            node.paused_until_ms = node.paused_until_ms.min(now);
            node.slow = (0, 0);
            node.clock = (now, node.clock_ms(now), 1_000);
            node.disk.limit(u64::MAX);
            node.disk.heal();
            node.disk.spoil(Mishap::LostWrite, u64::MAX);
            let broken = node.fault.is_some() || node.store.as_ref().is_some_and(|store| store.fault().is_some());
            if broken {
                self.kill(at, 100);
            } else if !node.is_up() {
                self.start(at);
            }
        }
    }
}
