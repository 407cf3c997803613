//! What happened: the last events in words, and a hash over all of them, so that two runs of a seed can be compared.

use std::collections::VecDeque;

/// Events kept in words.
const KEPT: usize = 120;

#[derive(Debug)]
pub struct Trace {
    hash: u64,
    count: u64,
    last: VecDeque<String>,
    words: bool,
}

impl Trace {
    pub(crate) fn new(words: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            count: 0,
            last: VecDeque::new(),
            words,
        }
    }

    /// FNV-1a over the words of an event: time, place, kind and two numbers that tell it from others.
    pub(crate) fn note(&mut self, now: u64, place: u64, kind: &'static str, a: u64, b: u64) {
        self.count += 1;
        let text = kind
            .bytes()
            .fold(0_u64, |hash, byte| hash.rotate_left(7) ^ u64::from(byte));
        for word in [now, place, text, a, b] {
            self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        }
        if self.words {
            self.say(format!("{now:>8} ms  at {place:<3} {kind} {a:#x} {b:#x}"));
        }
    }

    pub(crate) fn say(&mut self, line: String) {
        if self.last.len() >= KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    pub(crate) const fn in_words(&self) -> bool {
        self.words
    }

    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }
}
