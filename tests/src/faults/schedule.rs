//! Which fault comes when, on whom, for how long. Pure: one seed, one schedule.
//!
//! Faults come in rounds. A round is one fault, or two at the same time of the kinds that a majority outlives; when it is
//! over, the cluster may have time to heal, or the next round comes at once. Disks that lie or break strike one server at
//! a time: more than that is more than three copies promise to survive.

use std::fmt;

use super::draw::Draw;

/// Servers of the cluster by number: three of metadata, three of storage.
pub const META: [usize; 3] = [0, 1, 2];
pub const STORAGE: [usize; 3] = [3, 4, 5];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// kill -9, started again after a while.
    Kill,
    /// SIGSTOP, then SIGCONT.
    Pause,
    /// kill -9 of all servers at once.
    KillAll,
    /// Nothing in, nothing out.
    Cut,
    /// Two servers do not hear each other; everybody else hears both.
    CutBetween,
    /// Hears, and is not heard.
    CutOutgoing,
    /// Is heard, and does not hear.
    CutIncoming,
    /// 1 to 10 % of what comes in is lost.
    Loss,
    /// Power cut of one or two servers: what was not synced is gone.
    Power,
    /// Power cut of all servers at once.
    PowerAll,
    /// fdatasync returns EIO once.
    SyncError,
    /// pread returns EIO for some time.
    ReadError,
    /// The disk gives no more space for some time.
    Full,
    /// fdatasync takes 50 to 400 ms longer.
    SlowDisk,
}

impl Kind {
    pub const ALL: [Self; 14] = [
        Self::Kill,
        Self::Pause,
        Self::KillAll,
        Self::Cut,
        Self::CutBetween,
        Self::CutOutgoing,
        Self::CutIncoming,
        Self::Loss,
        Self::Power,
        Self::PowerAll,
        Self::SyncError,
        Self::ReadError,
        Self::Full,
        Self::SlowDisk,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::KillAll => "kill-all",
            Self::Cut => "cut",
            Self::CutBetween => "cut-between",
            Self::CutOutgoing => "cut-outgoing",
            Self::CutIncoming => "cut-incoming",
            Self::Loss => "loss",
            Self::Power => "power",
            Self::PowerAll => "power-all",
            Self::SyncError => "sync-error",
            Self::ReadError => "read-error",
            Self::Full => "full",
            Self::SlowDisk => "slow-disk",
        }
    }

    /// # Errors
    /// Names what there is.
    pub fn parse(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("there is no fault {name:?}; there are {}", names.join(", "))
        })
    }

    /// May come together with another one.
    fn is_mild(self) -> bool {
        matches!(
            self,
            Self::Kill
                | Self::Pause
                | Self::Cut
                | Self::CutBetween
                | Self::CutOutgoing
                | Self::CutIncoming
                | Self::Loss
                | Self::SlowDisk
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: Kind,
    /// Servers by number; two for a cut between them.
    pub victims: Vec<usize>,
    /// From the beginning of the round.
    pub after_ms: u64,
    pub lasts_ms: u64,
    /// Percent lost, or milliseconds of delay.
    pub amount: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    pub faults: Vec<Fault>,
    /// Wait until the cluster is healthy before the next.
    pub heals: bool,
    /// Quiet time after it.
    pub rest_ms: u64,
}

impl Round {
    #[must_use]
    pub fn draw(draw: &mut Draw, kinds: &[Kind]) -> Self {
        let first = fault(draw, kinds);
        let mild: Vec<Kind> = kinds.iter().copied().filter(|kind| kind.is_mild()).collect();
        let mut faults = vec![first];
        if faults[0].kind.is_mild() && draw.percent(30) {
            let second = fault(draw, &mild);
            // One host has one set of rules, one process one tracer.
            if second.victims.iter().all(|victim| !faults[0].victims.contains(victim)) {
                faults.push(second);
            }
        }
        Self {
            faults,
            heals: draw.percent(60),
            rest_ms: draw.between(100, 1500),
        }
    }
}

fn fault(draw: &mut Draw, kinds: &[Kind]) -> Fault {
    let kind = draw.pick(kinds);
    let any = |draw: &mut Draw| draw.below(6) as usize;
    let victims = match kind {
        Kind::KillAll | Kind::PowerAll => (0..6).collect(),
        Kind::CutBetween => {
            let group = if draw.percent(50) { META } else { STORAGE };
            let first = draw.below(3) as usize;
            // A storage node may as well lose sight of a metadata server.
            let mixed = draw.percent(30);
            let second = (first + draw.between(1, 2) as usize) % 3;
            vec![
                group[first],
                if mixed { (group[second] + 3) % 6 } else { group[second] },
            ]
        }
        Kind::Power if draw.percent(30) => {
            let first = any(draw);
            vec![first, (first + draw.between(1, 5) as usize) % 6]
        }
        Kind::ReadError | Kind::Full => vec![draw.pick(&STORAGE)],
        _ => vec![any(draw)],
    };
    Fault {
        kind,
        victims,
        after_ms: draw.below(500),
        lasts_ms: match kind {
            Kind::Kill | Kind::KillAll | Kind::Power | Kind::PowerAll => draw.between(50, 4000),
            _ => draw.between(200, 5000),
        },
        amount: match kind {
            Kind::Loss => draw.between(1, 10),
            Kind::SlowDisk => draw.between(50, 400),
            _ => 0,
        },
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |victim: &usize| match *victim {
            meta @ 0..3 => format!("meta-{}", meta + 1),
            storage => format!("storage-{}", storage - 2),
        };
        let names: Vec<_> = self.victims.iter().map(name).collect();
        write!(
            f,
            "{} of {} for {} ms",
            self.kind.name(),
            names.join(" and "),
            self.lasts_ms
        )?;
        match self.kind {
            Kind::Loss => write!(f, ", {} %", self.amount),
            Kind::SlowDisk => write!(f, ", {} ms", self.amount),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn one_seed_one_schedule_and_every_kind_comes() {
        let rounds = |seed| -> Vec<Round> {
            let mut draw = Draw::new(seed);
            (0..200).map(|_| Round::draw(&mut draw, &Kind::ALL)).collect()
        };
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
        let kinds: BTreeSet<Kind> = rounds(7)
            .iter()
            .flat_map(|round| &round.faults)
            .map(|fault| fault.kind)
            .collect();
        assert_eq!(kinds.len(), Kind::ALL.len());
    }

    #[test]
    fn victims_are_distinct_servers_and_nobody_suffers_twice_at_a_time() {
        let mut draw = Draw::new(1);
        for _ in 0..5000 {
            let round = Round::draw(&mut draw, &Kind::ALL);
            let victims: Vec<usize> = round.faults.iter().flat_map(|fault| fault.victims.clone()).collect();
            let distinct: BTreeSet<usize> = victims.iter().copied().collect();
            assert_eq!(distinct.len(), victims.len(), "{round:?}");
            assert!(victims.iter().all(|victim| *victim < 6), "{round:?}");
        }
    }

    #[test]
    fn kinds_have_names() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.name()), Ok(kind));
        }
        assert!(Kind::parse("flood").unwrap_err().contains("power-all"));
    }
}
