//! One file, four processes at three mounts, and what they do to it, drawn from a seed.
//!
//! One mount writes at a time, and the next begins when it has closed: what two mounts write at the same moment has no order that
//! could be judged. After an error the same mount goes on until an fsync returned 0, because what failed may still be on its way.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::cell::Shape;
use super::hand::{Hand, Order, Refusal};
use super::judge::{By, Judge, Look, Mount, Vouch};
use super::signals::{Moment, Signals};
use super::tally::Tally;
use crate::faults::draw::Draw;

/// Processes by number: two at the first mount, one at the second, one at the mount that gets killed.
const MOUNT_OF: [usize; 4] = [0, 0, 1, DOOMED];
const WRITER: usize = 0;
const NEIGHBOUR: usize = 1;
const OTHER: usize = 2;
const DOOMED_HAND: usize = 3;

pub const MOUNTS: usize = 3;
/// The mount that gets killed.
pub const DOOMED: usize = 2;

/// Cells that most writes go to, so that they are overwritten between two syncs.
const HOT: u64 = 3;

/// How often a look that must succeed is tried, half a second apart.
const LOOKS: u32 = 60;

/// What is told of the time before a violation.
const REMEMBERED: usize = 120;

/// Which cell comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// A few cells again and again.
    Hot,
    /// One after the other, and from the beginning when all were written: a log.
    Log,
}

#[derive(Debug)]
pub struct Driver {
    name: String,
    shape: Shape,
    pattern: Pattern,
    hands: Vec<Hand>,
    is_open: [bool; 4],
    /// Whose mount may have writes that are not closed, or of unknown fate.
    writing: Option<usize>,
    has_failed: bool,
    next: usize,
    judge: Judge,
    draw: Draw,
    signals: Arc<Signals>,
    seen: Moment,
    tally: Tally,
    began: Instant,
    trace: VecDeque<String>,
    log: File,
}

/// Where and how a driver works.
#[derive(Debug)]
pub struct Work {
    pub name: String,
    pub shape: Shape,
    pub pattern: Pattern,
    pub seed: u64,
    pub log: File,
}

impl Driver {
    /// Starts its processes, and makes the file.
    #[must_use]
    pub fn new(work: Work, directories: &[impl AsRef<Path>], signals: Arc<Signals>) -> Self {
        let hand = |mount: &usize| {
            let path = directories[*mount].as_ref().join(&work.name);
            Hand::start(&path, work.shape, work.log.try_clone().expect("a log can be shared"))
        };
        let mut driver = Self {
            hands: MOUNT_OF.iter().map(hand).collect(),
            name: work.name,
            shape: work.shape,
            pattern: work.pattern,
            is_open: [false; 4],
            writing: None,
            has_failed: false,
            next: 0,
            judge: Judge::new(work.shape.cells, MOUNTS),
            draw: Draw::new(work.seed),
            seen: signals.moment(),
            signals,
            tally: Tally::default(),
            began: Instant::now(),
            trace: VecDeque::new(),
            log: work.log,
        };
        let _ = driver.open(WRITER);
        let _ = driver.sync(WRITER, None);
        let _ = driver.close(WRITER);
        driver
    }

    /// Works until it is told to stop, then looks through every mount.
    #[must_use]
    pub fn run(mut self) -> Tally {
        let mut looked = self.signals.moment();
        while !self.signals.is_stopped() {
            let now = self.signals.moment();
            if now != looked {
                looked = now;
                self.after_an_event();
            } else if self.writing.is_some_and(|hand| !self.is_alive(hand)) {
                self.pause_ms(50);
            } else {
                self.round();
            }
        }
        for hand in 0..self.hands.len() {
            let _ = self.close(hand);
        }
        self.look_everywhere();
        self.tally
    }

    fn round(&mut self) {
        let result = match self.draw.below(100) {
            0..35 => self.by_itself(),
            35..55 => self.with_a_neighbour(),
            55..75 => self.with_another_mount(),
            _ => self.left_behind(),
        };
        if result.is_err() {
            self.pause_ms(100);
        }
    }

    /// Writes, and syncs its own.
    fn by_itself(&mut self) -> Result<(), ()> {
        let hand = self.pick_writer();
        self.write_some(hand)?;
        if self.draw.percent(65) {
            self.sync(hand, None)?;
            if self.draw.percent(30) {
                self.look_from_elsewhere(hand);
            }
        }
        if self.draw.percent(30) {
            self.close(hand)?;
        }
        Ok(())
    }

    /// Writes, closes or not; another process at the same mount reads and syncs.
    fn with_a_neighbour(&mut self) -> Result<(), ()> {
        if !self.may_write(WRITER) {
            return self.by_itself();
        }
        self.write_some(WRITER)?;
        if self.draw.percent(70) {
            self.close(WRITER)?;
        }
        self.pause();
        self.open(NEIGHBOUR)?;
        let known = self.look(NEIGHBOUR, Look::Cached)?;
        self.sync(NEIGHBOUR, Some(known))?;
        if self.draw.percent(70) {
            self.close(NEIGHBOUR)?;
        }
        Ok(())
    }

    /// Writes and closes; another mount reads and syncs.
    fn with_another_mount(&mut self) -> Result<(), ()> {
        let hand = self.pick_writer();
        self.write_some(hand)?;
        self.close(hand)?;
        self.pause();
        let other = if MOUNT_OF[hand] == 0 { OTHER } else { WRITER };
        self.open(other)?;
        let known = self.look(other, Look::Direct)?;
        self.sync(other, Some(known))?;
        self.close(other)
    }

    /// Writes and closes, and nobody syncs for now.
    fn left_behind(&mut self) -> Result<(), ()> {
        let hand = if self.may_write(DOOMED_HAND) {
            DOOMED_HAND
        } else {
            self.pick_writer()
        };
        self.write_some(hand)?;
        if self.draw.percent(70) {
            self.close(hand)?;
        }
        self.pause();
        Ok(())
    }

    /// Power was cut, or a mount died: what was synced is there before anything else is synced; then those who have it open sync.
    fn after_an_event(&mut self) {
        self.look_everywhere();
        if self.draw.percent(25) {
            return;
        }
        for hand in 0..self.hands.len() {
            if self.is_open[hand] && self.sync(hand, None).is_ok() {
                self.look_from_elsewhere(hand);
            }
        }
        if self.writing.is_none() && self.is_alive(DOOMED_HAND) && self.draw.percent(60) {
            let _ = self.recover();
        }
    }

    /// What a database does after its mount died: opens, reads, syncs.
    fn recover(&mut self) -> Result<(), ()> {
        self.open(DOOMED_HAND)?;
        let known = self.look(DOOMED_HAND, Look::Direct)?;
        self.sync(DOOMED_HAND, Some(known))?;
        self.close(DOOMED_HAND)
    }

    fn is_alive(&self, hand: usize) -> bool {
        MOUNT_OF[hand] != DOOMED || !self.signals.moment().is_mount_dead()
    }

    fn may_write(&self, hand: usize) -> bool {
        let is_free = self.writing.is_none_or(|other| MOUNT_OF[other] == MOUNT_OF[hand]);
        self.is_alive(hand) && is_free
    }

    fn pick_writer(&mut self) -> usize {
        let drawn = self.draw.pick(&[WRITER, WRITER, OTHER, DOOMED_HAND]);
        match self.writing {
            Some(hand) => hand,
            None if self.is_alive(drawn) => drawn,
            None => WRITER,
        }
    }

    fn write_some(&mut self, hand: usize) -> Result<(), ()> {
        self.open(hand)?;
        for _ in 0..self.draw.between(2, 8) {
            let cell = match self.pattern {
                Pattern::Hot if self.draw.percent(85) => self.draw.below(HOT) as usize % self.shape.cells,
                Pattern::Hot => self.draw.below(self.shape.cells as u64) as usize,
                Pattern::Log => self.next % self.shape.cells,
            };
            self.next = cell + 1;
            self.write(hand, cell)?;
            if self.draw.percent(35) {
                self.pause();
            }
        }
        Ok(())
    }

    // One system call each, with what it means for the judge.

    fn open(&mut self, hand: usize) -> Result<(), ()> {
        if self.is_open[hand] {
            return Ok(());
        }
        let (result, _) = self.call(hand, Order::Open);
        self.is_open[hand] = result.is_ok();
        result.map(drop).map_err(drop)
    }

    fn write(&mut self, hand: usize, cell: usize) -> Result<(), ()> {
        let mount = Mount(MOUNT_OF[hand]);
        let seq = self.judge.next_write(mount, cell);
        self.writing = Some(hand);
        let (result, before) = self.call(hand, Order::Write(cell, seq));
        if result.is_ok() {
            self.tally.written_bytes += self.shape.cell_bytes as u64;
            self.judge.wrote(mount, cell, seq);
        }
        self.settle(before);
        self.outcome(hand, &result)
    }

    fn close(&mut self, hand: usize) -> Result<(), ()> {
        if !self.is_open[hand] {
            return Ok(());
        }
        let (result, before) = self.call(hand, Order::Close);
        self.is_open[hand] = false;
        if result.is_ok() && self.writing == Some(hand) {
            self.judge.closed(Mount(MOUNT_OF[hand]));
            if !self.has_failed {
                self.writing = None;
            }
        }
        self.settle(before);
        self.outcome(hand, &result)
    }

    /// `known`: what the caller has read since it opened the file.
    fn sync(&mut self, hand: usize, known: Option<(Vouch, Moment)>) -> Result<(), ()> {
        let mount = Mount(MOUNT_OF[hand]);
        let order = if self.draw.percent(60) {
            Order::Fsync
        } else {
            Order::Fdatasync
        };
        let now = self.notice();
        let owned = self.judge.owned(mount);
        let by = Self::kind_of_sync(hand, known.as_ref());
        let vouch = match known {
            Some((known, then)) if then.is_same_power(now) => owned.and(&known),
            _ => owned,
        };
        let (result, before) = self.call(hand, order);
        if result.is_ok() {
            self.tally.synced(by, !before.is_same_power(self.seen));
            let fresh = self.judge.synced(by, &vouch);
            self.tally.acknowledged_bytes += (fresh * self.shape.cell_bytes) as u64;
            if by != By::Writer && fresh > 0 {
                self.signals.vouched();
            }
            if self.writing == Some(hand) {
                self.has_failed = false;
            }
        } else if before.is_same_mount(self.seen) || MOUNT_OF[hand] != DOOMED {
            self.tally.refused(by);
        }
        self.settle(before);
        self.outcome(hand, &result)
    }

    fn kind_of_sync(hand: usize, known: Option<&(Vouch, Moment)>) -> By {
        match (hand, known) {
            (NEIGHBOUR, _) => By::Neighbour,
            (DOOMED_HAND, Some(_)) => By::AfterRemount,
            (_, Some(_)) => By::OtherMount,
            (_, None) => By::Writer,
        }
    }

    /// Reads everything, and judges. What the reader knows now, and since when.
    fn look(&mut self, hand: usize, look: Look) -> Result<(Vouch, Moment), ()> {
        let order = match look {
            Look::Direct => Order::Direct,
            Look::Cached => Order::Cached,
        };
        let before = self.notice();
        let found = self.hands[hand].read(order);
        let _ = self.notice();
        self.remember(hand, order, &found.as_ref().map(|found| super::cell::to_line(found)));
        let found = found.map_err(|refusal| self.hung(hand, order, &refusal))?;
        let (violations, known) = self.judge.read(Mount(MOUNT_OF[hand]), look, &found);
        for violation in violations {
            self.tally
                .wrong(violation.wrong, violation.by, self.shape.cell_bytes as u64);
            let place = format!("{} (cells of {} bytes)", self.name, self.shape.cell_bytes);
            self.violation(&format!(
                "{place}, read at mount {} {look:?}: {violation}",
                MOUNT_OF[hand]
            ));
        }
        self.settle(before);
        Ok((known, before))
    }

    /// Through every mount that lives, past the caches, until it was seen.
    fn look_everywhere(&mut self) {
        for hand in [WRITER, OTHER, DOOMED_HAND] {
            self.must_look(hand);
        }
    }

    fn look_from_elsewhere(&mut self, hand: usize) {
        self.must_look(if MOUNT_OF[hand] == 0 { OTHER } else { WRITER });
    }

    fn must_look(&mut self, hand: usize) {
        for _ in 0..LOOKS {
            if !self.is_alive(hand) || self.look(hand, Look::Direct).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(500));
        }
        let last = self.trace.back().cloned().unwrap_or_default();
        self.violation(&format!(
            "{} can not be read at mount {}: {last}",
            self.name, MOUNT_OF[hand]
        ));
    }

    /// Also the moment at which it was called.
    fn call(&mut self, hand: usize, order: Order) -> (Result<String, Refusal>, Moment) {
        let before = self.notice();
        let result = self.hands[hand].order(order);
        let _ = self.notice();
        self.remember(hand, order, &result);
        if let Err(refusal) = &result {
            self.hung(hand, order, refusal);
        }
        (result, before)
    }

    fn outcome(&mut self, hand: usize, result: &Result<String, Refusal>) -> Result<(), ()> {
        let Err(_) = result else {
            return Ok(());
        };
        self.judge.failed(Mount(MOUNT_OF[hand]));
        self.has_failed |= self.writing.is_some_and(|other| MOUNT_OF[other] == MOUNT_OF[hand]);
        if self.is_open[hand] {
            self.is_open[hand] = false;
            let _ = self.call(hand, Order::Close);
        }
        Err(())
    }

    /// Tells the judge what happened since the last time.
    fn notice(&mut self) -> Moment {
        let now = self.signals.moment();
        if !now.is_same_power(self.seen) {
            self.judge.power_cut();
        }
        if !now.is_same_mount(self.seen) {
            self.judge.mount_died(Mount(DOOMED));
            if std::mem::take(&mut self.is_open[DOOMED_HAND]) {
                let _ = self.hands[DOOMED_HAND].order(Order::Close);
            }
            if self.writing == Some(DOOMED_HAND) && !now.is_mount_dead() {
                self.writing = None;
                self.has_failed = false;
            }
        }
        self.seen = now;
        now
    }

    /// What a call showed that was under way when something happened holds for the time before that.
    fn settle(&mut self, before: Moment) {
        if !before.is_same_power(self.seen) {
            self.judge.power_cut();
        }
        if !before.is_same_mount(self.seen) {
            self.judge.mount_died(Mount(DOOMED));
        }
    }

    fn hung(&mut self, hand: usize, order: Order, refusal: &Refusal) {
        if *refusal == Refusal::Hung {
            self.violation(&format!("{}: process {hand} hangs in {order:?}", self.name));
        }
    }

    fn violation(&mut self, what: &str) {
        let at = self.began.elapsed().as_secs_f64();
        self.tally.failed(format!("at {at:.1} s: {what}"));
        let mut text = format!("at {at:.1} s: {what}\n");
        for line in self.trace.drain(..) {
            let _ = writeln!(text, "    {line}");
        }
        let _ = std::io::Write::write_all(&mut self.log, text.as_bytes());
    }

    fn remember(&mut self, hand: usize, order: Order, result: &Result<String, impl std::fmt::Debug>) {
        if self.trace.len() == REMEMBERED {
            self.trace.pop_front();
        }
        let at = self.began.elapsed().as_secs_f64();
        let (power, mount) = self.seen.numbers();
        self.trace.push_back(format!(
            "{at:.3} s, process {hand}, {power} power, {mount} mount: {order:?}: {result:?}"
        ));
    }

    fn pause(&mut self) {
        let ms = match self.draw.below(10) {
            0..5 => self.draw.between(0, 30),
            5..8 => self.draw.between(100, 700),
            _ => self.draw.between(700, 1500),
        };
        self.pause_ms(ms);
    }

    /// Ends early when something happens.
    fn pause_ms(&self, ms: u64) {
        let (began, moment) = (Instant::now(), self.signals.moment());
        let end = Duration::from_millis(ms);
        while began.elapsed() < end && !self.signals.is_stopped() && self.signals.moment() == moment {
            thread::sleep(end.saturating_sub(began.elapsed()).min(Duration::from_millis(10)));
        }
    }
}
