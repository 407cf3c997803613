//! How fast this node copies to others: as fast as its clients do not feel it.
//!
//! A bucket of bytes, refilled at a rate that is raised by a step while nineteen of twenty requests of clients are answered nearly as quickly as
//! when nothing is copied, and halved when they are not (the rule of TCP, which finds its share among others without knowing them).
//! While there are clients, chunks of all chains go one by one, and each of them part by part as the rate allows, unless a client waits for
//! that very chunk. Pure; times come from outside.

use std::collections::VecDeque;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Bytes a second: never less, or a repair would never end; where it begins; what is added; never more while clients are there; and what no
/// disk exceeds.
const RATE_MIN: u64 = 8 * MIB;
const RATE_START: u64 = 32 * MIB;
const RATE_STEP: u64 = 4 * MIB;
const RATE_BUSY: u64 = 64 * MIB;
const RATE_MAX: u64 = 1 << 30;

/// What may be sent at once after a pause is this part of a second's: part by part, not in bursts that clients wait behind.
const BURST: u64 = 128;

/// How often the rate is judged.
const JUDGE_MS: u64 = 250;

/// Requests that make a judgement; with fewer there is nobody to yield to.
const SAMPLES_MIN: usize = 8;
const SAMPLES_MAX: usize = 1_024;

/// Clients may wait this many times as long as without a repair, and always this long.
const SLOWER_MAX: u32 = 2;
const PATIENCE_US: u32 = 2_000;

/// Unless it is known how quick requests are while nothing is copied.
const QUIET_UNKNOWN_US: u32 = 5_000;

/// Requests that are quicker than this part of it, although something is copied, show that it is not true any more.
const STALE: u32 = 2;

/// After so many judgements in a row that speak against what is known (4 s) copying pauses for so long, and not again for so long.
const DOUBTS: u32 = 16;
const LOOK_MS: u64 = 3_000;
const LOOK_EVERY_MS: u64 = 60_000;

/// After the last copy nothing counts as quiet for so long.
const QUIET_AFTER_MS: u64 = 1_000;

#[derive(Debug)]
pub(crate) struct Budget {
    paused: bool,
    rate: u64,
    /// Negative after a part that was larger than what was left.
    tokens: i64,
    refilled_ms: u64,
    judged_ms: u64,
    copied_ms: Option<u64>,
    /// Copies that are being sent.
    under_way: usize,
    /// When the last one was allowed; it may not be under way yet.
    begun_ms: Option<u64>,
    /// Whether there are clients to yield to.
    busy: bool,
    /// Of clients' requests since the last judgement.
    took_us: VecDeque<u32>,
    /// Nineteen of twenty requests took less, while nothing was copied.
    quiet_us: Option<u32>,
    /// Judgements in a row that spoke against that.
    doubts: u32,
    /// When copying paused for that.
    looked_ms: Option<u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            paused: false,
            rate: RATE_START,
            tokens: (RATE_START / BURST).cast_signed(),
            refilled_ms: 0,
            judged_ms: 0,
            copied_ms: None,
            under_way: 0,
            begun_ms: None,
            busy: false,
            took_us: VecDeque::new(),
            quiet_us: None,
            doubts: 0,
            looked_ms: None,
        }
    }
}

impl Budget {
    pub(crate) const fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// A client's request was answered.
    pub(crate) fn answered(&mut self, took_us: u32) {
        if self.took_us.len() >= SAMPLES_MAX {
            self.took_us.pop_front();
        }
        self.took_us.push_back(took_us);
    }

    /// So much was copied.
    pub(crate) fn copied(&mut self, now_ms: u64, bytes: u64) {
        self.copied_ms = Some(now_ms);
        self.tokens = self.tokens.saturating_sub_unsigned(bytes);
    }

    fn refill(&mut self, now_ms: u64) {
        self.judge(now_ms);
        let passed_ms = now_ms.saturating_sub(self.refilled_ms).min(1_000);
        self.refilled_ms = now_ms;
        let refill = self.rate * passed_ms / 1_000;
        self.tokens = self
            .tokens
            .saturating_add_unsigned(refill)
            .min((self.rate / BURST).cast_signed());
    }

    /// How long another part of a chunk that was begun has to wait; `None`: it may go. What was begun is ended also while paused.
    pub(crate) fn wait(&mut self, now_ms: u64) -> Option<Duration> {
        self.refill(now_ms);
        let owed = 1_u64.saturating_sub_signed(self.tokens);
        (self.busy && owed > 0).then(|| Duration::from_millis((owed * 1_000).div_ceil(self.rate)))
    }

    /// Whether another chunk may be begun now.
    pub(crate) fn may_copy(&mut self, now_ms: u64) -> bool {
        self.refill(now_ms);
        // Chains do not know of each other: of some megabytes from each at the same time clients feel every burst, at any rate.
        let in_turn = !self.busy || (self.under_way == 0 && self.begun_ms != Some(now_ms));
        let may = !self.paused && self.tokens > 0 && in_turn && !self.looks(now_ms);
        if may {
            self.begun_ms = Some(now_ms);
        }
        may
    }

    pub(crate) const fn begin(&mut self) {
        self.under_way += 1;
    }

    pub(crate) const fn end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// From now on a chunk may be begun, and its second part waits for an hour.
    #[cfg(test)]
    pub(crate) const fn starve(&mut self) {
        self.busy = true;
        self.rate = BURST;
        self.tokens = 1;
        self.judged_ms = u64::MAX;
    }

    #[cfg(test)]
    pub(crate) const fn is_under_way(&self) -> bool {
        self.under_way > 0
    }

    /// Called also while nothing is copied, so that it is known how quick requests are then.
    pub(crate) fn judge(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.judged_ms) < JUDGE_MS {
            return;
        }
        self.judged_ms = now_ms;
        let p95 = self.p95();
        self.took_us.clear();
        self.busy = p95.is_some();
        let quiet = self
            .copied_ms
            .is_none_or(|at| now_ms.saturating_sub(at) > QUIET_AFTER_MS);
        let Some(p95) = p95 else {
            self.rate = (self.rate * 2).min(RATE_MAX);
            return;
        };
        // It may have grown while nobody was there.
        self.rate = self.rate.min(RATE_BUSY);
        if quiet {
            self.rate = RATE_START;
            self.doubts = 0;
            self.quiet_us = Some(self.quiet_us.map_or(p95, |known| known / 4 * 3 + p95 / 4));
            return;
        }
        let (slow, least) = (p95 > self.limit_us(), self.rate == RATE_MIN);
        self.rate = if slow {
            (self.rate / 2).max(RATE_MIN)
        } else {
            (self.rate + RATE_STEP).min(RATE_BUSY)
        };
        // Much quicker although something is copied: known from a time of more load. Slow however little is copied: perhaps of less.
        let doubtful = (slow && least) || self.quiet_us.is_some_and(|known| p95 < known / STALE);
        self.doubts = if doubtful { self.doubts + 1 } else { 0 };
        if self.doubts >= DOUBTS
            && self
                .looked_ms
                .is_none_or(|at| now_ms.saturating_sub(at) >= LOOK_EVERY_MS)
        {
            self.looked_ms = Some(now_ms);
            self.quiet_us = None;
        }
    }

    /// No chunk is begun for a while, to see how quick requests are then.
    fn looks(&self, now_ms: u64) -> bool {
        self.busy && self.looked_ms.is_some_and(|at| now_ms.saturating_sub(at) < LOOK_MS)
    }

    fn limit_us(&self) -> u32 {
        let quiet = self.quiet_us.unwrap_or(QUIET_UNKNOWN_US);
        quiet.saturating_mul(SLOWER_MAX).max(PATIENCE_US)
    }

    fn p95(&self) -> Option<u32> {
        if self.took_us.len() < SAMPLES_MIN {
            return None;
        }
        let mut sorted: Vec<u32> = self.took_us.iter().copied().collect();
        sorted.sort_unstable();
        Some(sorted[sorted.len() * 19 / 20])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies 1 MiB chunks for a second while clients' requests take `took_us`; returns the bytes.
    fn second(budget: &mut Budget, now_ms: &mut u64, took_us: Option<u32>) -> u64 {
        let mut bytes = 0;
        for _ in 0..1_000 {
            *now_ms += 1;
            if let Some(took_us) = took_us {
                budget.answered(took_us);
            }
            while budget.may_copy(*now_ms) {
                budget.begin();
                budget.copied(*now_ms, MIB);
                budget.end();
                bytes += MIB;
            }
        }
        bytes
    }

    #[test]
    fn it_yields_to_clients_and_takes_what_they_leave() {
        let (mut budget, mut now) = (Budget::default(), 0);
        // Nothing is copied: a request takes a millisecond.
        for _ in 0..1_000 {
            now += 1;
            budget.answered(1_000);
            budget.judge(now);
        }
        assert_eq!(budget.quiet_us, Some(1_000));
        let first = second(&mut budget, &mut now, Some(1_500));
        let second_ = second(&mut budget, &mut now, Some(1_500));
        assert!(second_ > first, "{first} {second_}: nobody minds");
        for _ in 0..3 {
            second(&mut budget, &mut now, Some(9_000));
        }
        assert_eq!(budget.rate, RATE_MIN, "everybody minds");
        let least = second(&mut budget, &mut now, Some(9_000));
        assert!(
            (RATE_MIN / 2..=2 * RATE_MIN).contains(&least),
            "but it goes on: {least}"
        );
        assert_eq!(budget.quiet_us, Some(1_000), "what is felt while copying is not quiet");
        for _ in 0..5 {
            second(&mut budget, &mut now, None);
        }
        assert_eq!(budget.rate, RATE_MAX, "nobody is there");
    }

    #[test]
    fn where_clients_are_chunks_are_copied_one_by_one() {
        let mut budget = Budget::default();
        let mut now = JUDGE_MS;
        for _ in 0..SAMPLES_MIN {
            budget.answered(1_000);
        }
        assert!(budget.may_copy(now));
        assert!(!budget.may_copy(now), "another chain asks");
        budget.begin();
        now += 1;
        assert!(!budget.may_copy(now), "while the first is under way");
        budget.end();
        assert!(budget.may_copy(now));
        // Nobody is there any more.
        now += JUDGE_MS;
        budget.begin();
        assert!(budget.may_copy(now) && budget.may_copy(now));
    }

    /// Copies for some seconds while requests take what `took_us` says of now and of whether something was copied in the last tenth of
    /// a second; returns the bytes.
    fn seconds(budget: &mut Budget, now_ms: &mut u64, seconds: u64, took_us: impl Fn(bool) -> u32) -> u64 {
        let (mut bytes, mut copied_ms) = (0, 0);
        for _ in 0..seconds * 1_000 {
            *now_ms += 1;
            budget.answered(took_us(*now_ms - copied_ms < 100));
            while budget.may_copy(*now_ms) {
                budget.begin();
                budget.copied(*now_ms, MIB);
                budget.end();
                bytes += MIB;
                copied_ms = *now_ms;
            }
        }
        bytes
    }

    #[test]
    fn what_was_learnt_under_another_load_is_learnt_anew() {
        let (mut budget, mut now) = (Budget::default(), 0);
        for _ in 0..1_000 {
            now += 1;
            budget.answered(200_000);
            budget.judge(now);
        }
        // The load is gone when the copy begins: those who are left are slower by it, which would not show beside 200 ms.
        seconds(&mut budget, &mut now, 8, |copying| if copying { 9_000 } else { 2_000 });
        assert_eq!(budget.quiet_us, Some(2_000));
        let bytes = seconds(&mut budget, &mut now, 10, |copying| if copying { 9_000 } else { 2_000 });
        assert!(bytes <= 12 * RATE_MIN, "{bytes}: it yields");
        // Now they ask for something dearer, which is as slow without the copy.
        seconds(&mut budget, &mut now, 90, |_| 9_000);
        assert_eq!((budget.rate, budget.quiet_us), (RATE_BUSY, Some(9_000)));
        // For two seconds some ask for something cheap.
        seconds(&mut budget, &mut now, 2, |_| 500);
        seconds(&mut budget, &mut now, 1, |_| 9_000);
        assert_eq!(
            (budget.rate, budget.quiet_us),
            (RATE_BUSY, Some(9_000)),
            "that changes nothing"
        );
    }

    #[test]
    fn looking_costs_little() {
        let (mut budget, mut now) = (Budget::default(), 0);
        for _ in 0..1_000 {
            now += 1;
            budget.answered(1_000);
            budget.judge(now);
        }
        // However little is copied it is felt.
        let bytes = seconds(
            &mut budget,
            &mut now,
            120,
            |copying| if copying { 9_000 } else { 1_000 },
        );
        assert_eq!(budget.quiet_us, Some(1_000));
        assert!(bytes >= 120 * RATE_MIN * 9 / 10, "{bytes}");
        assert!(bytes <= 120 * RATE_MIN * 13 / 10, "{bytes}");
    }

    #[test]
    fn who_comes_while_nobody_was_there_is_not_run_over() {
        let (mut budget, mut now) = (Budget::default(), 0);
        for _ in 0..5 {
            second(&mut budget, &mut now, None);
        }
        assert_eq!(budget.rate, RATE_MAX);
        now += JUDGE_MS;
        for _ in 0..SAMPLES_MIN {
            budget.answered(90_000);
        }
        budget.judge(now);
        assert!(budget.rate <= RATE_BUSY / 2, "{}", budget.rate);
    }

    #[test]
    fn parts_of_a_chunk_wait_for_their_turn() {
        let mut budget = Budget::default();
        let mut now = JUDGE_MS;
        for _ in 0..SAMPLES_MIN {
            budget.answered(1_000);
        }
        assert!(budget.may_copy(now));
        budget.begin();
        let mut bytes = 0;
        let end = now + 1_000;
        while now < end {
            budget.copied(now, MIB / 2);
            bytes += MIB / 2;
            while let Some(wait) = budget.wait(now) {
                assert!(!wait.is_zero() && wait <= Duration::from_secs(1), "{wait:?}");
                for _ in 0..wait.as_millis() {
                    now += 1;
                    budget.answered(1_000);
                }
            }
        }
        let (least, most) = (RATE_START, RATE_START + 4 * RATE_STEP);
        assert!((least..=most).contains(&bytes), "{bytes}, spread over the time");
        budget.pause(true);
        assert_eq!(budget.wait(now), None, "what was begun is ended");
        assert!(budget.busy && !budget.may_copy(now), "but nothing more is begun");
        budget.copied(now, 64 * MIB);
        assert!(budget.wait(now).is_some());
        for _ in 0..2 {
            now += JUDGE_MS;
            budget.judge(now);
        }
        assert_eq!(budget.wait(now), None, "nobody is there");
    }

    #[test]
    fn a_pause_is_a_pause_and_does_not_save_up() {
        let (mut budget, mut now) = (Budget::default(), 0);
        budget.pause(true);
        assert_eq!(second(&mut budget, &mut now, None), 0);
        budget.rate = RATE_MIN;
        budget.pause(false);
        budget.judged_ms = now + 10_000;
        let bytes = second(&mut budget, &mut now, Some(100));
        assert!(bytes <= 2 * RATE_MIN, "{bytes}");
    }
}
