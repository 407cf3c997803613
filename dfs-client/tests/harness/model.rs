//! What POSIX and docs/SEMANTICS.md allow a mount to answer. Pure.
//!
//! A file is the list of what was done to it: writes, and cuts (from a length on there are zeros). Between two of them there is
//! an order where somebody could know it: those of one mount are in the order of their calls; those of two mounts are in order
//! if the first was known to be on the chains before the second was called. What a reader may see of a byte is whatever was done
//! to it, but for what something else replaced that this reader must see:
//!
//! - its own mount's, unless that was reported as lost, or all replicas lost their power since and no fsync covered it;
//! - another's that was closed or synced before the reader's mount opened the file (close-to-open);
//! - likewise what an fsync covered, whatever was lost since.
//!
//! Bytes that nobody wrote are zeros. A dead mount's bytes beyond the length that the group knew when it died are nothing.

use std::collections::{BTreeMap, BTreeSet};

/// A moment: calls have one at their start and one at their end.
pub type Moment = u64;

/// One life of a mount: who mounts again is another.
pub type MountId = usize;

pub type FileId = usize;

const BLOCK: u64 = 4096;

/// Unsynced bytes that a mount keeps of a file, to write them again.
const KEPT_BYTES: u64 = 16 << 20;

const UNTOLD: &str = "it may have lost its hold before it told what it had done";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Write {
        start: u64,
        end: u64,
    },
    /// Zeros from here on; as a length it is exact.
    Cut {
        length: u64,
    },
}

#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says one thing of an event, in any combination"
)]
pub struct Event {
    pub mount: MountId,
    pub what: What,
    pub issued: Moment,
    /// When its call ended.
    pub returned: Option<Moment>,
    /// It is known to be on the chains from here on.
    pub landed: Option<Moment>,
    /// Who opens after this sees it.
    pub published: Option<Moment>,
    /// Who has read the file before is told so from then on: an fdatasync within the file does not tell it by itself.
    pub told: Option<Moment>,
    /// An fsync covered it.
    pub durable: bool,
    /// One of its own mount, which does not hear of others'.
    pub own_synced: bool,
    /// Its chain came back since, and its own mount cannot know that somebody else's fsync had covered it.
    unvouched: bool,
    /// It may be gone: its mount was told so or died, or the replicas lost power.
    pub shaky: bool,
    /// Its chain was brought back by somebody who does not vouch for it.
    pub doubtful: bool,
    /// The call failed: whatever comes later, nothing was promised.
    refused: bool,
    /// The part of a dead mount's write from here on never became part of the file.
    pub void_from: u64,
    /// Mounts that have read it, and when first.
    pub seen_by: BTreeMap<MountId, Moment>,
}

impl Event {
    fn end(&self) -> u64 {
        match self.what {
            What::Write { end, .. } => end.min(self.void_from),
            What::Cut { length } => length,
        }
    }

    fn touches(&self, from: u64, to: u64) -> bool {
        match self.what {
            What::Write { start, .. } => start < to && self.end() > from && start < self.end(),
            What::Cut { length } => length < to,
        }
    }

    /// Whether its call ended before that moment.
    fn ended_by(&self, moment: Moment) -> bool {
        self.returned.is_some_and(|returned| returned <= moment)
    }

    fn covers(&self, at: u64) -> bool {
        self.touches(at, at + 1)
    }

    /// Whether it covered this byte when it was written.
    fn covered(&self, at: u64) -> bool {
        matches!(self.what, What::Write { start, end } if (start..end).contains(&at))
    }

    /// Whether everybody knows that this was before that.
    fn before(&self, other: &Self) -> bool {
        if self.mount == other.mount {
            return self.issued < other.issued;
        }
        self.landed.is_some_and(|landed| landed <= other.issued)
    }
}

#[derive(Clone, Debug, Default)]
pub struct File {
    pub events: Vec<Event>,
    /// When each mount last opened it.
    opened: BTreeMap<MountId, Moment>,
    /// Mounts that may be told of a loss, and why.
    excuses: BTreeMap<MountId, &'static str>,
    /// What each mount's kernel keeps: where, and which bytes.
    cached: BTreeMap<MountId, BTreeMap<u64, Vec<u8>>>,
    /// Mounts that could not speak for long since they last told what they had written.
    stalled: BTreeSet<MountId>,
    /// Mounts that have read something of it.
    readers: BTreeSet<MountId>,
    /// Mounts whose last close came after a write that no fsync covered.
    closed_unsynced: BTreeSet<MountId>,
}

/// Content of a write: never zero, and different for every write.
pub fn pattern(write: usize, at: u64) -> u8 {
    let mixed = (at ^ (write as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 56) as u8 | 1
}

/// Who looks.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    pub mount: MountId,
    /// Its mount has read the file before, and may go on with that until it is told of a change.
    pub cached: bool,
    /// What was published before this must be seen.
    pub fresh_at: Moment,
}

impl File {
    pub fn reader(&self, mount: MountId) -> Reader {
        Reader {
            mount,
            cached: self.readers.contains(&mount),
            fresh_at: self.opened.get(&mount).copied().unwrap_or(0),
        }
    }

    fn must_see(event: &Event, reader: Reader) -> bool {
        let own = event.mount == reader.mount;
        let since = if reader.cached { event.told } else { event.published };
        !event.shaky && (own || since.is_some_and(|at| at <= reader.fresh_at))
    }

    /// A write; its number says what it wrote.
    pub fn write(&mut self, mount: MountId, now: Moment, start: u64, length: u64) -> usize {
        let end = start + length;
        self.forget_cached(mount, start, end);
        self.events.push(Event {
            mount,
            what: What::Write { start, end },
            issued: now,
            returned: None,
            landed: None,
            published: None,
            told: None,
            durable: false,
            own_synced: false,
            unvouched: false,
            shaky: false,
            refused: false,
            doubtful: false,
            void_from: u64::MAX,
            seen_by: BTreeMap::new(),
        });
        self.events.len() - 1
    }

    /// Its call has ended; what begins later comes after it.
    pub fn write_ends(&mut self, number: usize, now: Moment) {
        self.events[number].returned = Some(now);
        for mount in self.stalled.clone() {
            self.doubt_stalled(mount);
        }
    }

    /// A call that changes the length has begun; its number.
    pub fn cut_begins(&mut self, mount: MountId, now: Moment, length: u64) -> usize {
        self.forget_cached(mount, 0, u64::MAX);
        self.events.push(Event {
            mount,
            what: What::Cut { length },
            issued: now,
            returned: None,
            landed: None,
            published: None,
            told: None,
            durable: false,
            own_synced: false,
            unvouched: false,
            shaky: false,
            refused: false,
            doubtful: false,
            void_from: u64::MAX,
            seen_by: BTreeMap::new(),
        });
        self.events.len() - 1
    }

    /// It succeeded.
    pub fn cut_ends(&mut self, number: usize, now: Moment) {
        let (mount, from) = (self.events[number].mount, self.events[number].issued);
        for event in self
            .events
            .iter_mut()
            .filter(|event| event.mount == mount && event.issued < from)
        {
            // What was dirty went first, but after this call began.
            event.landed = event.landed.or(Some(now));
        }
        let event = &mut self.events[number];
        event.returned = Some(now);
        event.landed = Some(now);
        event.published = Some(now);
        event.told = Some(now);
        // What its mount holds it tells later, if it can.
        if self.stalled.contains(&mount) {
            event.shaky = true;
            self.excuses.insert(mount, UNTOLD);
        }
    }

    /// The write or cut failed, or may fail yet: some of it may have been done.
    pub fn failed(&mut self, number: usize) {
        self.events[number].shaky = true;
        self.events[number].refused = true;
    }

    fn forget_cached(&mut self, mount: MountId, from: u64, to: u64) {
        if let Some(cached) = self.cached.get_mut(&mount) {
            cached.retain(|&at, bytes| at + bytes.len() as u64 <= from || at >= to);
        }
    }

    /// The mount opened it by a call that began then. `keep`: its kernel may keep what it has.
    pub fn open(&mut self, mount: MountId, began: Moment, keep: bool) -> Result<(), String> {
        self.opened.insert(mount, began);
        if !keep {
            self.cached.remove(&mount);
            return Ok(());
        }
        let reader = self.reader(mount);
        for (&at, bytes) in self.cached.get(&mount).into_iter().flatten() {
            let (low, _) = self.length(reader);
            let known = (low.saturating_sub(at) as usize).min(bytes.len());
            self.check(reader, at, &bytes[..known])
                .map_err(|error| format!("the kernel was told to keep its pages, and {error}"))?;
        }
        Ok(())
    }

    /// Close or any other flush by a call that began then.
    pub fn flushed(&mut self, mount: MountId, (from, to): (Moment, Moment), well: bool) {
        for event in self
            .events
            .iter_mut()
            .filter(|event| event.mount == mount && event.issued < from)
        {
            if well && !event.ended_by(from) {
                // A call that is under way may come after it.
            } else if well {
                event.landed = event.landed.or(Some(to));
                event.published = event.published.or(Some(to));
                event.told = event.told.or(Some(to));
            } else if !event.durable {
                // It may have been the one that is lost, and an error is told once.
                event.shaky = true;
                event.refused = true;
            }
        }
        self.stalled.remove(&mount);
    }

    /// The last handle of the mount is gone.
    pub fn last_close(&mut self, mount: MountId) {
        let unsynced = |event: &Event| event.mount == mount && !event.own_synced;
        if self.events.iter().any(unsynced) {
            self.closed_unsynced.insert(mount);
        }
        if self
            .events
            .iter()
            .any(|event| unsynced(event) && (event.shaky || event.unvouched))
        {
            self.excuses
                .insert(mount, "it closed the file before it synced what was lost");
        }
    }

    pub fn fsynced(&mut self, mount: MountId, (from, to): (Moment, Moment), data_only: bool, well: bool) {
        let told: Vec<_> = self.events.iter().map(|event| event.told).collect();
        self.flushed(mount, (from, to), well);
        if !well {
            // All of it; a close tells of what was found before it, and more may be found.
            self.excuses.remove(&mount);
            return;
        }
        if data_only {
            for (event, told) in self.events.iter_mut().zip(told) {
                event.told = told;
            }
        }
        for event in self
            .events
            .iter_mut()
            .filter(|event| event.ended_by(from) && !event.refused)
        {
            let visible = event.published.is_some_and(|at| at <= from) || event.seen_by.contains_key(&mount);
            if event.mount == mount || (visible && !event.shaky) {
                event.durable = true;
                if event.mount == mount {
                    event.own_synced = true;
                    event.unvouched = false;
                }
                if std::mem::take(&mut event.shaky) {
                    // What others read meanwhile may have been without it.
                    event.published = Some(to);
                    event.told = Some(to).filter(|_| !data_only);
                }
                event.doubtful = false;
                event.landed = event.landed.or(Some(to));
                if event.mount == mount {
                    event.published = event.published.or(Some(to));
                }
            }
        }
        self.excuses.remove(&mount);
        self.closed_unsynced.remove(&mount);
    }

    /// `sync` of the whole mount by a call that began then: covers what the mount itself did.
    pub fn all_synced(&mut self, mount: MountId, (from, to): (Moment, Moment), well: bool) {
        let excuse = self.excuses.get(&mount).copied();
        self.flushed(mount, (from, to), well);
        if !well {
            // What fsync of a file reports, it still reports.
            self.excuses.extend(excuse.map(|why| (mount, why)));
            return;
        }
        let mine = |event: &&mut Event| event.mount == mount && event.ended_by(from) && !event.refused;
        for event in self.events.iter_mut().filter(mine) {
            event.durable = true;
            event.own_synced = true;
            event.unvouched = false;
            event.doubtful = false;
            if std::mem::take(&mut event.shaky) {
                event.published = Some(to);
                event.told = Some(to);
            }
        }
        self.excuses.remove(&mount);
        self.closed_unsynced.remove(&mount);
    }

    /// Whether everything of the mount was covered by an fsync.
    pub fn is_synced(&self, mount: MountId) -> bool {
        self.events.iter().all(|event| event.mount != mount || event.durable)
    }

    /// Chains came back without anybody who had what was acknowledged in memory: they vouch for nothing that was not synced, and
    /// some mounts cannot write all of it again.
    pub fn chains_revived(&mut self) {
        let mounts: BTreeSet<MountId> = self
            .opened
            .keys()
            .copied()
            .chain(self.events.iter().map(|e| e.mount))
            .collect();
        for mount in mounts {
            if let Some(why) = self.cannot_keep(mount) {
                self.excuses.insert(mount, why);
            }
        }
        for event in &mut self.events {
            event.doubtful |= !event.durable;
            event.unvouched |= !event.own_synced;
        }
    }

    /// Why the mount may have to tell of a loss if there is one now.
    fn cannot_keep(&self, mount: MountId) -> Option<&'static str> {
        let unsynced = || self.events.iter().filter(|event| !event.durable);
        let own = || {
            self.events
                .iter()
                .filter(|event| event.mount == mount && !event.own_synced)
        };
        let mut bytes = 0;
        for event in own() {
            match event.what {
                What::Write { start, end } => bytes += end - start,
                What::Cut { .. } => return Some("it truncated the file and did not sync that"),
            }
        }
        let oldest = own().map(|event| event.issued).min();
        let over = |event: &Event| event.mount != mount && oldest.is_some_and(|oldest| event.issued > oldest);
        if bytes > KEPT_BYTES {
            Some("it had more unsynced than a mount keeps")
        } else if self.events.iter().any(over) {
            Some("another mount wrote to the file after it")
        } else if unsynced().any(|event| event.mount != mount) {
            Some("another mount had something unsynced in the file")
        } else if self.closed_unsynced.contains(&mount) {
            Some("it had closed the file before it synced")
        } else {
            None
        }
    }

    /// The same, and what was only in memory is gone.
    pub fn power_lost(&mut self) {
        self.chains_revived();
        for event in self.events.iter_mut().filter(|event| !event.durable) {
            event.shaky = true;
        }
    }

    /// The mount touches the file: what others had there that may have been lost they cannot write again, since nobody knows
    /// what it saw of that.
    pub fn touched_by(&mut self, mount: MountId) {
        let lost = |event: &&Event| (event.shaky || event.doubtful || event.unvouched) && event.mount != mount;
        let losers: Vec<MountId> = self.events.iter().filter(lost).map(|event| event.mount).collect();
        for loser in losers {
            self.excuses
                .insert(loser, "another mount wrote to the file after the loss");
        }
    }

    /// The mount died at that moment; `told`: the length that the group knew, if it is sure of it. What it said just before it
    /// died, after `told_to`, it may not have told the group yet.
    pub fn mount_died(&mut self, mount: MountId, now: Moment, told_to: Moment, told: Option<u64>) {
        // Where another mount had made the file longer before, by its own account, the bytes lay within it.
        let others = self.events.iter().filter(|event| event.mount != mount);
        let reached = others.map(Event::end).max().unwrap_or(0);
        let cuts = self
            .events
            .iter()
            .filter(|event| matches!(event.what, What::Cut { .. }));
        let cuts: Vec<Moment> = cuts.map(|event| event.issued).collect();
        for event in self.events.iter_mut().filter(|event| event.mount == mount) {
            event.landed = event.landed.or(Some(now));
            if !event.durable && event.published.is_none_or(|published| published > told_to) {
                event.shaky = true;
                // A cut since may be why the group knows no more.
                let was_cut = cuts.iter().any(|&cut| cut > event.issued);
                event.void_from = told.filter(|_| !was_cut).map_or(u64::MAX, |told| told.max(reached));
            }
        }
        self.opened.remove(&mount);
        self.cached.remove(&mount);
    }

    /// What of the mount is not synced may be gone: its session ended, or its deadline passed.
    pub fn mount_failed(&mut self, mount: MountId) {
        for event in self
            .events
            .iter_mut()
            .filter(|event| event.mount == mount && !event.durable)
        {
            event.shaky = true;
        }
    }

    /// The mount could not speak for longer than others wait for a writer: what it had not told the group they may have taken for a
    /// dead mount's, and written over. Of what it has done to a file that it holds it may not have
    /// told anything since `told_to`, and that is refused then.
    pub fn mount_stalled(&mut self, mount: MountId, told_to: Moment) {
        self.stalled.insert(mount);
        let untold = |at: Option<Moment>| at.is_none_or(|at| at > told_to);
        let mine = |event: &&mut Event| event.mount == mount && !event.durable && untold(event.published);
        for event in self.events.iter_mut().filter(mine) {
            event.shaky = true;
            self.excuses
                .insert(mount, "it may have lost its hold before it told what it had done");
        }
        self.doubt_stalled(mount);
    }

    fn doubt_stalled(&mut self, mount: MountId) {
        if !self.stalled.contains(&mount) || self.events.iter().all(|event| event.mount == mount) {
            return;
        }
        let untold = |event: &&mut Event| event.mount == mount && event.published.is_none() && !event.durable;
        for event in self.events.iter_mut().filter(untold) {
            event.shaky = true;
            self.excuses.insert(mount, "others could not wait for it any longer");
        }
    }

    pub fn excuse(&self, mount: MountId) -> Option<&'static str> {
        self.excuses.get(&mount).copied()
    }

    /// The length that a cut, and the writes after it that the reader must see, leave.
    fn reach(&self, reader: Reader, cut: Option<&Event>) -> u64 {
        let must = self.events.iter().filter(|event| Self::must_see(event, reader));
        let after = must.filter(|event| cut.is_none_or(|cut| cut.before(event)));
        let writes = after.filter(|event| matches!(event.what, What::Write { .. }));
        writes.chain(cut).map(Event::end).max().unwrap_or(0)
    }

    /// The least and the greatest length that the reader may be told.
    pub fn length(&self, reader: Reader) -> (u64, u64) {
        let must = || self.events.iter().filter(|event| Self::must_see(event, reader));
        let cuts = || must().filter(|event| matches!(event.what, What::Cut { .. }));
        // Of those made at the same time nobody knows which came last.
        let last: Vec<&Event> = cuts().filter(|cut| !cuts().any(|other| cut.before(other))).collect();
        let mut low = last
            .iter()
            .map(|cut| self.reach(reader, Some(*cut)))
            .min()
            .unwrap_or_else(|| self.reach(reader, None));
        let mut high = 0;
        for event in &self.events {
            if last.iter().any(|cut| event.before(cut)) {
                continue;
            }
            high = high.max(event.end());
            // One that need not be seen may be, and then shortens.
            if matches!(event.what, What::Cut { .. }) && !Self::must_see(event, reader) {
                low = low.min(event.end());
            }
        }
        (low, high)
    }

    pub fn check_length(&self, reader: Reader, found: u64) -> Result<(), String> {
        let (low, high) = self.length(reader);
        if (low..=high).contains(&found) {
            return Ok(());
        }
        Err(format!("its length is {found}, allowed is {low} to {high}"))
    }

    /// Events that the reader may see at a byte, `None` for zeros that were always there.
    fn candidates(&self, reader: Reader, at: u64) -> Vec<Option<usize>> {
        // Below what may be lost there may be what a dead mount left.
        let is_shaky = |event: &Event| event.shaky && event.covers(at);
        let bare = self.events.iter().any(is_shaky);
        let is_here = |event: &Event| event.covers(at) || (bare && event.covered(at));
        let here: Vec<usize> = (0..self.events.len()).filter(|&n| is_here(&self.events[n])).collect();
        let replaced = |by: &usize, of: usize| {
            let by = &self.events[*by];
            Self::must_see(by, reader) && self.events[of].before(by)
        };
        let mut found: Vec<_> = here
            .iter()
            .filter(|&&n| !here.iter().any(|by| *by != n && replaced(by, n)))
            .map(|&n| Some(n))
            .collect();
        if !here.iter().any(|&n| Self::must_see(&self.events[n], reader)) {
            found.push(None);
        }
        found
    }

    fn matches(&self, candidate: Option<usize>, at: u64, bytes: &[u8]) -> bool {
        match candidate.map(|n| (n, self.events[n].what)) {
            Some((n, What::Write { .. })) => bytes
                .iter()
                .enumerate()
                .all(|(i, &byte)| byte == pattern(n, at + i as u64)),
            Some((_, What::Cut { .. })) | None => bytes.iter().all(|&byte| byte == 0),
        }
    }

    /// Places where what was done to the file differs, within a range, both ends included.
    fn borders(&self, from: u64, to: u64) -> Vec<u64> {
        let mut borders = BTreeSet::from([from, to]);
        for event in &self.events {
            match event.what {
                What::Write { start, end } => borders.extend([start, end, event.end()]),
                What::Cut { length } => {
                    borders.insert(length);
                }
            }
        }
        borders.into_iter().filter(|at| (from..=to).contains(at)).collect()
    }

    /// Whether the reader may find these bytes there.
    pub fn check(&self, reader: Reader, offset: u64, bytes: &[u8]) -> Result<Vec<usize>, String> {
        let mut seen = Vec::new();
        let borders = self.borders(offset, offset + bytes.len() as u64);
        for pair in borders.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let candidates = self.candidates(reader, from);
            let part = &bytes[(from - offset) as usize..(to - offset) as usize];
            let fitting: Vec<_> = candidates.iter().filter(|&&c| self.matches(c, from, part)).collect();
            match fitting.as_slice() {
                [Some(one)] => seen.push(*one),
                [] if candidates.len() > 1 => self.check_blocks(&candidates, from, part)?,
                [] => return Err(self.complaint(&candidates, from, part)),
                _ => {}
            }
        }
        Ok(seen)
    }

    /// Each block for itself, since each is written for itself.
    fn check_blocks(&self, candidates: &[Option<usize>], from: u64, bytes: &[u8]) -> Result<(), String> {
        let mut at = 0;
        while at < bytes.len() {
            let stop = (((from + at as u64) / BLOCK + 1) * BLOCK - from).min(bytes.len() as u64) as usize;
            let (start, part) = (from + at as u64, &bytes[at..stop]);
            if !candidates.iter().any(|&candidate| self.matches(candidate, start, part)) {
                return Err(self.complaint(candidates, start, part));
            }
            at = stop;
        }
        Ok(())
    }

    fn complaint(&self, candidates: &[Option<usize>], from: u64, bytes: &[u8]) -> String {
        let everything = (0..self.events.len()).map(Some).chain([None]);
        let found: Vec<_> = everything
            .filter(|&n| n.is_none_or(|n| matches!(self.events[n].what, What::Write { .. })))
            .filter(|&n| self.matches(n, from, bytes))
            .map(|n| self.name(n))
            .collect();
        let allowed: Vec<_> = candidates.iter().map(|&n| self.name(n)).collect();
        let what = if found.is_empty() {
            "nothing that was ever written".to_owned()
        } else {
            found.join(" or ")
        };
        format!(
            "bytes {from}..{} are {what}; allowed is {}",
            from + bytes.len() as u64,
            allowed.join(", ")
        )
    }

    pub fn name(&self, event: Option<usize>) -> String {
        let Some(n) = event else { return "zeros".to_owned() };
        let event = &self.events[n];
        let durable = match (event.durable, event.shaky) {
            (true, _) => "synced",
            (_, true) => "uncertain",
            _ => "unsynced",
        };
        match event.what {
            What::Write { start, end } => format!("#{n} (mount {} wrote {start}..{end}, {durable})", event.mount),
            What::Cut { length } => format!("#{n} (mount {} cut it to {length}, {durable})", event.mount),
        }
    }

    /// A read that succeeded.
    pub fn read(&mut self, mount: MountId, now: Moment, offset: u64, size: u64, bytes: &[u8]) -> Result<(), String> {
        let reader = self.reader(mount);
        let (low, high) = self.length(reader);
        let got = bytes.len() as u64;
        let (least, most) = (
            low.saturating_sub(offset).min(size),
            high.saturating_sub(offset).min(size),
        );
        if got < least || got > most {
            return Err(format!(
                "a read of {size} bytes at {offset} gave {got}; the length is between {low} and {high}"
            ));
        }
        for number in self.check(reader, offset, bytes)? {
            self.events[number].seen_by.entry(mount).or_insert(now);
        }
        if got > 0 {
            self.readers.insert(mount);
            self.forget_cached(mount, offset, offset + got);
            self.cached.entry(mount).or_default().insert(offset, bytes.to_vec());
        }
        Ok(())
    }

    /// Ranges worth looking at: whatever was ever touched, to whole blocks, and where the file ends.
    pub fn places(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for event in &self.events {
            match event.what {
                What::Write { start, end } => ranges.push((start / BLOCK * BLOCK, end.div_ceil(BLOCK) * BLOCK)),
                What::Cut { length } => ranges.push((length / BLOCK * BLOCK, (length / BLOCK + 1) * BLOCK)),
            }
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (from, to) in ranges {
            match merged.last_mut() {
                Some(last) if last.1 >= from => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MountId = 0;
    const B: MountId = 1;

    fn bytes(write: usize, from: u64, to: u64) -> Vec<u8> {
        (from..to).map(|at| pattern(write, at)).collect()
    }

    fn at(mount: MountId, fresh_at: Moment) -> Reader {
        Reader {
            mount,
            cached: false,
            fresh_at,
        }
    }

    fn write(file: &mut File, mount: MountId, now: Moment, start: u64, length: u64) -> usize {
        let number = file.write(mount, now, start, length);
        file.write_ends(number, now);
        number
    }

    fn set_length(file: &mut File, mount: MountId, (from, to): (Moment, Moment), length: u64) {
        let number = file.cut_begins(mount, from, length);
        file.cut_ends(number, to);
    }

    #[test]
    fn a_mount_sees_its_own_writes_and_another_what_was_closed() {
        let mut file = File::default();
        let first = write(&mut file, A, 1, 0, 100);
        assert!(file.check(at(A, 0), 0, &bytes(first, 0, 100)).is_ok());
        assert!(file.check(at(A, 0), 0, &[0; 100]).is_err());
        assert!(file.check(at(B, 5), 0, &[0; 100]).is_ok(), "not closed yet");
        file.flushed(A, (2, 3), true);
        assert!(file.check(at(B, 5), 0, &[0; 100]).is_err());
        assert!(file.check(at(B, 2), 0, &[0; 100]).is_ok(), "opened before");
        assert_eq!(file.length(at(B, 5)), (100, 100));
        assert_eq!(file.length(at(B, 2)), (0, 100));
    }

    #[test]
    fn what_an_fsync_covered_survives_and_what_it_did_not_may_go() {
        let mut file = File::default();
        let first = write(&mut file, A, 1, 0, 10);
        file.fsynced(A, (2, 3), false, true);
        let second = write(&mut file, A, 4, 0, 10);
        file.flushed(A, (5, 6), true);
        assert!(file.check(at(B, 9), 0, &bytes(first, 0, 10)).is_err());
        file.power_lost();
        assert!(file.check(at(B, 9), 0, &bytes(first, 0, 10)).is_ok());
        assert!(file.check(at(B, 9), 0, &[0; 10]).is_err());
        assert_eq!(file.excuse(A), None, "all of it was kept");
        file.fsynced(A, (7, 8), false, true);
        assert!(file.check(at(B, 9), 0, &bytes(first, 0, 10)).is_err(), "written again");
        assert!(file.check(at(B, 9), 0, &bytes(second, 0, 10)).is_ok());
    }

    #[test]
    fn an_fsync_by_another_mount_covers_what_was_closed() {
        let mut file = File::default();
        let first = write(&mut file, A, 1, 0, 10);
        file.flushed(A, (2, 3), true);
        let open = write(&mut file, A, 4, 20, 10);
        file.fsynced(B, (5, 6), false, true);
        file.power_lost();
        let expected: Vec<u8> = bytes(first, 0, 10).into_iter().chain([0; 10]).collect();
        assert!(file.check(at(B, 9), 0, &expected).is_ok());
        assert!(file.check(at(B, 9), 0, &[0; 20]).is_err());
        assert!(file.check(at(B, 9), 20, &bytes(open, 20, 30)).is_ok());
        assert!(file.check(at(B, 9), 20, &[0; 10]).is_ok());
    }

    #[test]
    fn writes_of_two_mounts_are_in_order_only_where_somebody_knew() {
        let mut file = File::default();
        let one = write(&mut file, A, 1, 0, 10);
        let two = write(&mut file, B, 2, 0, 10);
        file.flushed(A, (3, 4), true);
        file.flushed(B, (5, 6), true);
        for write in [one, two] {
            assert!(file.check(at(2, 9), 0, &bytes(write, 0, 10)).is_ok());
        }
        assert!(file.check(at(2, 9), 0, &[0; 10]).is_err());
        let three = write(&mut file, A, 10, 0, 10);
        file.flushed(A, (11, 12), true);
        assert!(file.check(at(2, 13), 0, &bytes(two, 0, 10)).is_err());
        assert!(file.check(at(2, 13), 0, &bytes(three, 0, 10)).is_ok());
    }

    #[test]
    fn of_two_cuts_at_the_same_time_either_may_be_the_last() {
        let mut file = File::default();
        write(&mut file, A, 1, 0, 5_000);
        file.flushed(A, (2, 3), true);
        let (one, other) = (file.cut_begins(A, 4, 0), file.cut_begins(B, 5, 1_000));
        file.cut_ends(one, 6);
        file.cut_ends(other, 7);
        assert_eq!(file.length(at(2, 9)), (0, 1_000));
        assert!(file.check(at(2, 9), 0, &[0; 1_000]).is_ok());
        assert!(file.check(at(2, 9), 0, &bytes(0, 0, 1_000)).is_err());
    }

    #[test]
    fn a_write_after_a_cut_keeps_data_and_length() {
        let mut file = File::default();
        set_length(&mut file, A, (1, 2), 8_000);
        set_length(&mut file, A, (3, 4), 0);
        let write = write(&mut file, B, 5, 1_000, 100);
        file.fsynced(B, (6, 7), false, true);
        assert_eq!(file.length(at(2, 9)), (1_100, 1_100));
        let mut expected = vec![0; 1_000];
        expected.extend(bytes(write, 1_000, 1_100));
        assert!(file.check(at(2, 9), 0, &expected).is_ok());
    }

    #[test]
    fn bytes_of_a_dead_writer_beyond_the_end_are_nothing() {
        let mut file = File::default();
        let write = write(&mut file, A, 1, 0, 9_000);
        file.mount_died(A, 2, 0, Some(4_096));
        set_length(&mut file, B, (3, 4), 12_000);
        assert!(file.check(at(B, 9), 0, &bytes(write, 0, 4_096)).is_ok());
        assert!(file.check(at(B, 9), 4_096, &bytes(write, 4_096, 9_000)).is_err());
        assert!(file.check(at(B, 9), 0, &[0; 9_000]).is_ok());
        assert_eq!(file.length(at(B, 9)), (12_000, 12_000));
    }

    #[test]
    fn the_kernel_keeps_only_what_is_still_right() {
        let mut file = File::default();
        let first = write(&mut file, A, 1, 0, 10);
        file.flushed(A, (2, 3), true);
        file.open(B, 4, false).unwrap();
        file.read(B, 5, 0, 10, &bytes(first, 0, 10)).unwrap();
        write(&mut file, A, 6, 0, 10);
        assert!(file.open(B, 7, true).is_ok(), "not closed yet");
        file.flushed(A, (8, 9), true);
        assert!(file.open(B, 10, true).is_err());
        assert!(file.open(B, 10, false).is_ok());
        assert!(file.open(B, 10, true).is_ok());
    }

    #[test]
    fn what_was_cut_or_too_much_may_be_told_as_lost() {
        let mut file = File::default();
        write(&mut file, A, 1, 0, 10);
        set_length(&mut file, A, (2, 3), 5);
        file.power_lost();
        assert!(file.excuse(A).is_some());
        let mut file = File::default();
        write(&mut file, A, 1, 0, KEPT_BYTES + 1);
        file.power_lost();
        assert!(file.excuse(A).is_some());
    }
}
