//! Changes that this mount showed and the metadata group then refused, and who has been told. Pure.
//!
//! Each is an error of the inode and of the directories that it was about, and each open handle of those is told once, as
//! with late errors of written data. One number counts the refusals of the whole mount, so a handle needs no more than the
//! number at which it has last looked, and directories that nobody opens need nothing.
//!
//! Invariant: a handle that was open when a change of its inode was refused is told exactly once; a refusal of which nobody
//! was told is also told to the next who opens. Beyond [`MAX_INODES`] it is everybody's: told too often, never too seldom.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use dfs_common::{Error, InodeId};

/// Inodes with a refusal of their own. With more, all that are known become one of the whole mount.
const MAX_INODES: usize = 1_024;

/// Up to which refusal a handle has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Told(u64);

#[derive(Debug)]
struct Refused {
    number: u64,
    /// Newest number that somebody was told of.
    told: u64,
    error: Error,
}

impl Refused {
    /// Where a handle starts for which nothing but this counts.
    fn start(&self, now: u64) -> u64 {
        if self.told < self.number { self.told } else { now }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    count: u64,
    inodes: BTreeMap<InodeId, Refused>,
    /// Of those that are not known one by one.
    whole_mount: Option<Refused>,
    /// Newest number of which a sync of the whole mount has told.
    synced: u64,
}

impl Refusals {
    pub(crate) fn record(&mut self, about: impl IntoIterator<Item = InodeId>, error: &Error) {
        self.count += 1;
        let number = self.count;
        for inode in about {
            if self.inodes.len() >= MAX_INODES && !self.inodes.contains_key(&inode) {
                self.merge();
            }
            let told = self.inodes.get(&inode).map_or(0, |before| before.told);
            let error = error.clone();
            self.inodes.insert(inode, Refused { number, told, error });
        }
    }

    /// Makes all that is known one by one the whole mount's.
    fn merge(&mut self) {
        let told = self.whole_mount.as_ref().map_or(0, |all| all.told);
        let newest = std::mem::take(&mut self.inodes)
            .into_values()
            .max_by_key(|refused| refused.number);
        if let Some(newest) = newest {
            self.whole_mount = Some(Refused { told, ..newest });
        }
    }

    /// Where a handle starts that is opened now.
    pub(crate) fn open(&self, inode: InodeId) -> Told {
        let of = |refused: Option<&Refused>| refused.map_or(self.count, |refused| refused.start(self.count));
        Told(of(self.inodes.get(&inode)).min(of(self.whole_mount.as_ref())))
    }

    /// The newest refusal that this handle has not been told of.
    pub(crate) fn check(&mut self, inode: InodeId, handle: &mut Told) -> Result<(), Error> {
        let seen = std::mem::replace(handle, Told(self.count)).0;
        let mut newest: Option<(u64, Error)> = None;
        for refused in [self.inodes.get_mut(&inode), self.whole_mount.as_mut()] {
            if let Some(refused) = refused
                && refused.number > seen
            {
                refused.told = refused.number;
                if newest.as_ref().is_none_or(|(number, _)| *number < refused.number) {
                    newest = Some((refused.number, refused.error.clone()));
                }
            }
        }
        newest.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// The newest of which nobody was told, when the mount ends.
    pub(crate) fn untold(&self) -> Option<Error> {
        self.newest_untold(0)
    }

    /// The same since the last call: a sync of the whole mount tells of each refusal once. Whoever
    /// has the inode open is told as well.
    pub(crate) fn untold_since_sync(&mut self) -> Option<Error> {
        let since = std::mem::replace(&mut self.synced, self.count);
        self.newest_untold(since)
    }

    fn newest_untold(&self, since: u64) -> Option<Error> {
        let all = self.inodes.values().chain(&self.whole_mount);
        let newest = all
            .filter(|refused| refused.number > refused.told.max(since))
            .max_by_key(|refused| refused.number);
        newest.map(|refused| refused.error.clone())
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::ErrorCode;

    use super::*;

    const A: InodeId = InodeId(10);
    const B: InodeId = InodeId(20);

    fn error(detail: &str) -> Error {
        Error::new(ErrorCode::HoldLost, detail)
    }

    #[test]
    fn a_sync_of_the_mount_tells_of_each_once_and_handles_are_told_all_the_same() {
        let mut refusals = Refusals::default();
        let (mut a, mut b) = (refusals.open(A), refusals.open(B));
        refusals.record([A], &error("a"));
        assert_eq!(refusals.untold_since_sync(), Some(error("a")));
        assert_eq!(refusals.untold_since_sync(), None);
        refusals.record([B], &error("b"));
        assert_eq!(refusals.check(B, &mut b), Err(error("b")));
        assert_eq!(refusals.untold_since_sync(), None, "somebody was told");
        assert_eq!(refusals.check(A, &mut a), Err(error("a")));
    }

    #[test]
    fn each_directory_is_told_of_its_own_and_bystanders_of_nothing() {
        let mut refusals = Refusals::default();
        let (mut a, mut b, mut c) = (refusals.open(A), refusals.open(B), refusals.open(InodeId(30)));
        refusals.record([A, InodeId(11)], &error("a"));
        refusals.record([B, InodeId(21)], &error("b"));
        assert_eq!(refusals.check(InodeId(30), &mut c), Ok(()));
        assert_eq!(refusals.check(B, &mut b), Err(error("b")));
        assert_eq!(refusals.check(A, &mut a), Err(error("a")));
        assert_eq!(refusals.check(A, &mut a), Ok(()));
        assert_eq!(refusals.check(B, &mut b), Ok(()));
        // Those that were created.
        assert_eq!(refusals.untold(), Some(error("b")));
        let mut file = refusals.open(InodeId(11));
        assert_eq!(refusals.check(InodeId(11), &mut file), Err(error("a")));
    }

    #[test]
    fn each_handle_is_told_once_and_the_next_opener_if_nobody_was() {
        let mut refusals = Refusals::default();
        let (mut one, mut two) = (refusals.open(A), refusals.open(A));
        refusals.record([A], &error("first"));
        let mut late = refusals.open(A);
        assert_eq!(refusals.check(A, &mut one), Err(error("first")));
        assert_eq!(refusals.check(A, &mut two), Err(error("first")));
        assert_eq!(refusals.check(A, &mut late), Err(error("first")));
        let mut later = refusals.open(A);
        assert_eq!(refusals.check(A, &mut later), Ok(()));
        assert_eq!(refusals.untold(), None);
        refusals.record([A], &error("second"));
        assert_eq!(refusals.untold(), Some(error("second")));
        for handle in [&mut one, &mut two, &mut later] {
            assert_eq!(refusals.check(A, handle), Err(error("second")));
            assert_eq!(refusals.check(A, handle), Ok(()));
        }
    }

    #[test]
    fn too_many_are_everybodys_and_none_is_lost() {
        let mut refusals = Refusals::default();
        let mut early = refusals.open(B);
        for number in 0..MAX_INODES as u64 {
            refusals.record([InodeId(1_000 + number)], &error("many"));
        }
        assert_eq!(refusals.check(B, &mut early), Ok(()));
        let mut first = Told(0);
        refusals.record([A], &error("one more"));
        assert!(refusals.inodes.len() <= MAX_INODES);
        assert_eq!(refusals.check(InodeId(1_000), &mut first), Err(error("many")));
        // Whoever was open then, wherever.
        let mut bystander = Told(0);
        assert_eq!(refusals.check(B, &mut bystander), Err(error("many")));
        assert_eq!(refusals.check(B, &mut bystander), Ok(()));
        let mut next = refusals.open(A);
        assert_eq!(refusals.check(A, &mut next), Err(error("one more")));
        for number in 0..5 * MAX_INODES as u64 {
            refusals.record([InodeId(9_000 + number)], &error("more"));
            assert!(refusals.inodes.len() <= MAX_INODES);
        }
        assert_eq!(refusals.untold(), Some(error("more")));
        assert_eq!(refusals.check(B, &mut bystander), Err(error("more")));
    }
}
