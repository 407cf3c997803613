//! What a file of overwritten cells may show, given who wrote, closed and synced what. Pure.
//!
//! After an fsync that returned 0, whoever called it, every reader sees of each cell what that fsync vouched for, or a newer write:
//! never an older one, a mixture, zeros or the end of the file. What it vouched for is what its caller knew of:
//! - all writes through the same mount, by whatever process, closed or not, since the last error of that file there; and
//! - what its caller had read from the file, if no power was cut between that read and the call of fsync.
//!
//! An error of write, fsync or close takes the first of these away until the cells are written anew. While
//! no power is cut, readers also see what was closed, and nobody sees an older write after a newer one.

use std::fmt;

use super::cell::{Part, Seq};

/// Number of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount(pub usize);

/// Who made something durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    Writer,
    /// Another process at the writer's mount.
    Neighbour,
    OtherMount,
    /// After the writer's mount was killed, and mounted again.
    AfterRemount,
}

impl By {
    pub const ALL: [Self; 4] = [Self::Writer, Self::Neighbour, Self::OtherMount, Self::AfterRemount];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Writer => "the writer",
            Self::Neighbour => "another process",
            Self::OtherMount => "another mount",
            Self::AfterRemount => "a process after a remount",
        }
    }
}

/// Of each cell the newest write that an fsync would vouch for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouch(Vec<Seq>);

impl Vouch {
    /// Also this.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
        self
    }

    /// Nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|seq| *seq == Seq::NONE)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// Zeros, or the end of the file, where something was synced.
    Lost,
    /// An older write than was synced.
    Stale,
    /// Within one block, not one write.
    Torn,
    /// An older write than somebody saw before, though nothing happened in between.
    WentBack,
    /// A write that nobody has made.
    Invented,
}

impl Wrong {
    pub const ALL: [Self; 5] = [Self::Lost, Self::Stale, Self::Torn, Self::WentBack, Self::Invented];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Stale => "stale",
            Self::Torn => "torn",
            Self::WentBack => "reordered",
            Self::Invented => "invented",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub wrong: Wrong,
    pub cell: usize,
    /// Who had synced it, if anybody had.
    pub by: Option<By>,
    pub floor: Seq,
    pub found: Vec<Part>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found: Vec<String> = self.found.iter().map(Part::to_string).collect();
        write!(f, "cell {} is {}: write {}", self.cell, self.wrong.name(), self.floor.0)?;
        match self.by {
            Some(by) => write!(f, " was synced by {}", by.name())?,
            None => write!(f, " was seen or closed before")?,
        }
        write!(f, ", found {}", found.join("+"))
    }
}

/// How a file was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Past every cache.
    Direct,
    /// Through the kernel's page cache of this mount.
    Cached,
}

#[derive(Clone, Debug)]
struct Cell {
    tried: Seq,
    floor: Seq,
    by: Option<By>,
    /// Through each mount, since the last error there: what its fsync vouches for.
    owned: Vec<Seq>,
    /// Newest write through each mount, whatever it returned.
    tried_by: Vec<Seq>,
    /// Visible to everybody until the next power cut.
    arrived: Seq,
    /// Visible at one mount until the next power cut.
    local: Vec<Seq>,
}

/// One file.
#[derive(Clone, Debug)]
pub struct Judge {
    cells: Vec<Cell>,
}

impl Judge {
    #[must_use]
    pub fn new(cells: usize, mounts: usize) -> Self {
        let cell = Cell {
            tried: Seq::NONE,
            floor: Seq::NONE,
            by: None,
            owned: vec![Seq::NONE; mounts],
            tried_by: vec![Seq::NONE; mounts],
            arrived: Seq::NONE,
            local: vec![Seq::NONE; mounts],
        };
        Self {
            cells: vec![cell; cells],
        }
    }

    /// Somebody is about to write this cell: the number of the write.
    pub fn next_write(&mut self, mount: Mount, cell: usize) -> Seq {
        let cell = &mut self.cells[cell];
        cell.tried = Seq(cell.tried.0 + 1);
        cell.tried_by[mount.0] = cell.tried;
        cell.tried
    }

    /// That write returned what was asked.
    pub fn wrote(&mut self, mount: Mount, cell: usize, seq: Seq) {
        let cell = &mut self.cells[cell];
        cell.owned[mount.0] = cell.owned[mount.0].max(seq);
        cell.local[mount.0] = cell.local[mount.0].max(seq);
    }

    /// The writer of this mount closed the file, and close returned 0.
    pub fn closed(&mut self, mount: Mount) {
        for cell in &mut self.cells {
            cell.arrived = cell.arrived.max(cell.local[mount.0]);
        }
    }

    /// A write, fsync or close through this mount returned an error: its writes may be anywhere or nowhere.
    pub fn failed(&mut self, mount: Mount) {
        self.mount_died(mount);
    }

    /// Power was, or is being, cut.
    pub fn power_cut(&mut self) {
        for cell in &mut self.cells {
            cell.arrived = Seq::NONE;
            cell.local.fill(Seq::NONE);
        }
    }

    pub fn mount_died(&mut self, mount: Mount) {
        for cell in &mut self.cells {
            cell.owned[mount.0] = Seq::NONE;
            cell.local[mount.0] = Seq::NONE;
        }
    }

    /// What an fsync through this mount vouches for if it is called now.
    #[must_use]
    pub fn owned(&self, mount: Mount) -> Vouch {
        Vouch(self.cells.iter().map(|cell| cell.owned[mount.0]).collect())
    }

    /// An fsync returned 0. How many cells are durable that were not.
    pub fn synced(&mut self, by: By, vouch: &Vouch) -> usize {
        let mut fresh = 0;
        for (cell, seq) in self.cells.iter_mut().zip(&vouch.0) {
            if *seq > cell.floor {
                cell.floor = *seq;
                cell.by = Some(by);
                fresh += 1;
            }
        }
        fresh
    }

    /// What a read of the whole file showed; what is wrong with it, and what its reader now knows of.
    pub fn read(&mut self, mount: Mount, look: Look, found: &[Vec<Part>]) -> (Vec<Violation>, Vouch) {
        let mut violations = Vec::new();
        let mut known = Vec::new();
        for (number, cell) in self.cells.iter_mut().enumerate() {
            let parts = found.get(number).map_or(&[][..], Vec::as_slice);
            if let Some((wrong, floor)) = cell.wrong(mount, parts) {
                violations.push(Violation {
                    wrong,
                    cell: number,
                    by: cell.by.filter(|_| wrong != Wrong::WentBack),
                    floor,
                    found: parts.to_vec(),
                });
                cell.forget();
            }
            let seen = oldest(parts);
            known.push(seen);
            // A mount sees its own writes before others do, also past its caches: their length it tells the others later.
            if look == Look::Direct && seen > cell.tried_by[mount.0] {
                cell.arrived = cell.arrived.max(seen);
            } else {
                cell.local[mount.0] = cell.local[mount.0].max(seen);
            }
        }
        (violations, Vouch(known))
    }
}

impl Cell {
    fn wrong(&self, mount: Mount, parts: &[Part]) -> Option<(Wrong, Seq)> {
        let visible = self.floor.max(self.arrived).max(self.local[mount.0]);
        let mut wrong = Vec::new();
        for part in parts {
            match part {
                Part::Torn(_) => wrong.push((Wrong::Torn, self.floor)),
                Part::Absent | Part::Zero if self.floor > Seq::NONE => wrong.push((Wrong::Lost, self.floor)),
                Part::Whole(seq) if *seq > self.tried => wrong.push((Wrong::Invented, self.tried)),
                Part::Whole(seq) if *seq < self.floor => wrong.push((Wrong::Stale, self.floor)),
                Part::Whole(seq) if *seq < visible => wrong.push((Wrong::WentBack, visible)),
                Part::Absent | Part::Zero if visible > Seq::NONE => wrong.push((Wrong::WentBack, visible)),
                Part::Absent | Part::Zero | Part::Whole(_) => {}
            }
        }
        if parts.is_empty() && self.floor > Seq::NONE {
            return Some((Wrong::Lost, self.floor));
        }
        wrong.into_iter().min_by_key(|(wrong, _)| *wrong)
    }

    /// One fault is counted once: from here on, nothing is known of the cell but how often it was written.
    fn forget(&mut self) {
        self.floor = Seq::NONE;
        self.by = None;
        self.arrived = Seq::NONE;
        self.owned.fill(Seq::NONE);
        self.local.fill(Seq::NONE);
    }
}

/// The oldest write of which something is left.
fn oldest(parts: &[Part]) -> Seq {
    let seq = |part: &Part| match part {
        Part::Whole(seq) => *seq,
        Part::Absent | Part::Zero | Part::Torn(_) => Seq::NONE,
    };
    parts.iter().map(seq).min().unwrap_or_default()
}
