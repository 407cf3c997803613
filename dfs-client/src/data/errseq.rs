//! Late write errors, reported once to every handle, in the way of Linux's errseq_t. Pure.
//!
//! Invariant: an error that happened while a handle was open is returned by exactly one of its fsync or close calls; an
//! error that nobody has seen yet is also shown to the next who opens.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use dfs_common::Error;
use dfs_common::planted::{self, Bug};

/// What a handle has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen(u64);

/// The errors of one file.
#[derive(Debug, Default)]
pub(crate) struct LateErrors {
    count: u64,
    reported: u64,
    last: Option<Error>,
}

impl LateErrors {
    pub(crate) fn record(&mut self, error: Error) {
        if planted::is(Bug::ErrorForgotten) {
            return;
        }
        self.count += 1;
        self.last = Some(error);
    }

    /// The newest, if no handle was told of it.
    pub(crate) fn untold(&self) -> Option<Error> {
        self.last.clone().filter(|_| self.reported < self.count)
    }

    /// How many there were.
    pub(crate) const fn total(&self) -> u64 {
        self.count
    }

    /// Where a new handle starts.
    pub(crate) fn sample(&self) -> Seen {
        Seen(self.reported)
    }

    /// The newest error, if it came since the last look and nobody was told of it yet. A look tells nobody: that is for
    /// [`LateErrors::check`].
    pub(crate) fn peek(&self, looked: &mut Seen) -> Option<Error> {
        let news = looked.0.max(self.reported) < self.count;
        *looked = Seen(self.count);
        self.last.clone().filter(|_| news)
    }

    /// The newest error that this handle has not been told of.
    pub(crate) fn check(&mut self, seen: &mut Seen) -> Result<(), Error> {
        if seen.0 >= self.count {
            return Ok(());
        }
        *seen = Seen(self.count);
        self.reported = self.count;
        match &self.last {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::ErrorCode;

    use super::*;

    #[test]
    fn once_per_handle_and_to_the_next_opener_if_nobody_saw_it() {
        let mut errors = LateErrors::default();
        let (mut a, mut b) = (errors.sample(), errors.sample());
        assert!(errors.check(&mut a).is_ok());
        errors.record(Error::new(ErrorCode::Timeout, "late"));
        let mut unseen = errors.sample();
        assert!(errors.check(&mut a).is_err());
        assert!(errors.check(&mut a).is_ok());
        assert!(errors.check(&mut b).is_err());
        assert!(errors.check(&mut unseen).is_err());
        let mut later = errors.sample();
        assert!(errors.check(&mut later).is_ok());
        errors.record(Error::new(ErrorCode::NoSpace, "again"));
        assert!(errors.check(&mut later).is_err());
    }
}
