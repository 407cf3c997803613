//! When to read ahead and how far. Pure.
//!
//! Invariant: a handle that reads at random never causes a byte to be fetched that it did not ask for (but for blocks'
//! borders); one that reads in order has a window ahead that doubles with every step it uses.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::Range;

/// Unit of read-ahead: one I/O.
pub(crate) const SEGMENT_SIZE_BYTES: u64 = 1 << 20;

/// Widest window: keeps three replicas busy without holding more than an eighth of the mount's budget per reader.
const MAX_WINDOW_SEGMENTS: u64 = 8;

/// Parallel readers (the kernel's own read-ahead) arrive out of order by about this much.
const SLACK_BYTES: u64 = 2 << 20;

/// Reads in order before read-ahead starts; from the start of a file one is enough.
const STEPS_BEFORE: u32 = 2;

#[derive(Clone, Debug, Default)]
pub(crate) struct ReadWindow {
    /// Furthest byte read in order.
    reached: u64,
    steps: u32,
    window: u64,
}

impl ReadWindow {
    /// Notes a read; the segments to have at hand from now on, demanded ones first. `None`: random access.
    pub(crate) fn on_read(&mut self, offset: u64, length: u64, file_length: u64) -> Option<Range<u64>> {
        let end = offset + length;
        let in_order = offset <= self.reached + SLACK_BYTES && offset + SLACK_BYTES >= self.reached;
        let exact = offset == self.reached;
        if !in_order || (self.steps == 0 && !exact) {
            *self = Self {
                reached: end,
                steps: u32::from(offset == 0),
                window: 0,
            };
        } else {
            self.steps = self.steps.saturating_add(1);
            self.reached = self.reached.max(end);
        }
        if self.steps < STEPS_BEFORE {
            return None;
        }
        let first = offset / SEGMENT_SIZE_BYTES;
        let demanded = end.div_ceil(SEGMENT_SIZE_BYTES);
        self.window = (self.window * 2).clamp(1, MAX_WINDOW_SEGMENTS);
        let last = (demanded + self.window).min(file_length.div_ceil(SEGMENT_SIZE_BYTES));
        Some(first..last.max(demanded))
    }

    /// Segments below this one are behind the reader.
    pub(crate) fn passed(&self) -> u64 {
        self.reached.saturating_sub(SLACK_BYTES) / SEGMENT_SIZE_BYTES
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: u64 = 1 << 30;

    #[test]
    fn the_window_grows_to_its_bound_and_ends_with_the_file() {
        let mut window = ReadWindow::default();
        let mut ahead = Vec::new();
        for i in 0..200 {
            if let Some(range) = window.on_read(i * 131_072, 131_072, LONG) {
                ahead.push(range.end - range.start);
            }
        }
        assert!(ahead.windows(2).all(|pair| pair[0] <= pair[1] + 1));
        assert!(ahead.iter().all(|&segments| segments <= MAX_WINDOW_SEGMENTS + 1));
        assert!(ahead.contains(&(MAX_WINDOW_SEGMENTS + 1)));
        let mut short = ReadWindow::default();
        short.on_read(0, 4096, 10_000);
        assert_eq!(short.on_read(4096, 4096, 10_000), Some(0..1));
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut window = ReadWindow::default();
        let mut at = 7_u64;
        for _ in 0..1000 {
            at = at
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let offset = (at >> 20) % (1 << 40);
            assert_eq!(window.on_read(offset, 4096, 1 << 40), None);
        }
    }

    #[test]
    fn parallel_readers_out_of_order_still_count_as_in_order() {
        let mut window = ReadWindow::default();
        for offset in [0, 131_072, 393_216, 262_144, 524_288] {
            window.on_read(offset, 131_072, LONG);
        }
        assert!(window.on_read(655_360, 131_072, LONG).is_some());
    }
}
