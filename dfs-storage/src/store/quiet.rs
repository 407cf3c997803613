//! Whether writers let the store rest, so that what is dead may be given back to the disk.

use std::time::{Duration, Instant};

/// Since when writers have let the store rest.
#[derive(Debug)]
pub(super) struct Quiet {
    since: Instant,
    /// What had been appended then, and by maintenance since.
    pub(super) appended_bytes: u64,
    /// Segments that may still be emptied for no other reason than rest. As many as there were when
    /// it began: what emptying them leaves behind is not worth it once more.
    pub(super) victims: Option<u32>,
}

impl Default for Quiet {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            appended_bytes: 0,
            victims: None,
        }
    }
}

impl Quiet {
    /// So much was appended in all, and writers of so much do not let it rest. How long it has
    /// rested.
    pub(super) fn look(&mut self, appended_bytes: u64, bound_bytes: u64) -> Duration {
        if appended_bytes.saturating_sub(self.appended_bytes) >= bound_bytes {
            (self.since, self.appended_bytes) = (Instant::now(), appended_bytes);
            self.victims = None;
        }
        self.since.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_lets_it_rest_and_a_stream_does_not() {
        let mut quiet = Quiet {
            victims: Some(3),
            ..Quiet::default()
        };
        std::thread::sleep(Duration::from_millis(30));
        assert!(quiet.look(99, 100) >= Duration::from_millis(30));
        assert_eq!(quiet.victims, Some(3));
        assert!(quiet.look(100, 100) < Duration::from_millis(30));
        assert_eq!(quiet.victims, None);
        std::thread::sleep(Duration::from_millis(30));
        // Its own work.
        quiet.appended_bytes += 500;
        assert!(quiet.look(650, 100) >= Duration::from_millis(30));
    }
}
