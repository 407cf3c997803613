//! What an error of a system call on a disk says about that disk.
//!
//! A disk that fails may have lost what was written to it, so its data is copied anew from other nodes. That is the right answer to
//! a medium that is broken, and ruin if only something has run out: descriptors or memory run out on all nodes at about the same
//! time, and stores that are sound would be given up one after the other. So every error number has its meaning here, for every
//! kind of call, and the code that touches disks asks nobody else.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use serde::{Deserialize, Serialize};

/// Kinds of calls on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskCall {
    /// Makes, opens, renames, removes or lists files, or reserves space for them: nothing that was written before is touched.
    Name,
    Read,
    /// Into a file that is open already. What an earlier part of it wrote may be repeated.
    Write,
    /// `fsync`, `fdatasync` of an open file: an error may be the only word of earlier writes that were lost, whatever its number.
    Sync,
}

impl DiskCall {
    pub const EVERY: [Self; 4] = [Self::Name, Self::Read, Self::Write, Self::Sync];
}

/// What has run out, or stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scarce {
    Space,
    Descriptors,
    Memory,
    /// The call was interrupted, or somebody else was at it.
    Turn,
    /// Somebody has changed owners or modes.
    Permission,
}

impl fmt::Display for Scarce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Space => "space on its disk: free some",
            Self::Descriptors => "file descriptors: raise the limit (ulimit -n, LimitNOFILE=)",
            Self::Memory => "memory",
            Self::Turn => "a free resource of the system",
            Self::Permission => "permission for its data directory: check its owner and mode",
        })
    }
}

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Everything is as it was before the call, which may be made again later.
    NotNow(Scarce),
    /// Nobody knows what is on the medium.
    Broken,
}

const EPERM: i32 = 1;
const EINTR: i32 = 4;
pub const EIO: i32 = 5;
const EAGAIN: i32 = 11;
pub const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const ENFILE: i32 = 23;
pub const EMFILE: i32 = 24;
const ETXTBSY: i32 = 26;
const EFBIG: i32 = 27;
pub const ENOSPC: i32 = 28;
const EDEADLK: i32 = 35;
const ENOLCK: i32 = 37;
const ERESTART: i32 = 85;
const EUSERS: i32 = 87;
const ENOBUFS: i32 = 105;
pub const EDQUOT: i32 = 122;
const ECANCELED: i32 = 125;

/// What this number of Linux says, from a call of that kind.
#[must_use]
pub const fn meaning(call: DiskCall, errno: i32) -> Meaning {
    match (errno, call) {
        // The device may have failed an earlier write with any number (dm-crypt without memory: ENOMEM). It is told once, the pages
        // count as written, and the next sync would succeed.
        (_, DiskCall::Sync) => Meaning::Broken,
        (EMFILE | ENFILE, _) => Meaning::NotNow(Scarce::Descriptors),
        (ENOMEM | ENOBUFS, _) => Meaning::NotNow(Scarce::Memory),
        (EINTR | EAGAIN | EBUSY | ETXTBSY | EDEADLK | ENOLCK | ERESTART | EUSERS | ECANCELED, _) => {
            Meaning::NotNow(Scarce::Turn)
        }
        (ENOSPC | EDQUOT | EFBIG, _) => Meaning::NotNow(Scarce::Space),
        (EPERM | EACCES, DiskCall::Name) => Meaning::NotNow(Scarce::Permission),
        _ => Meaning::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table, number by number: all that Linux has.
    #[test]
    fn every_number_has_its_meaning_for_every_call() {
        let all_but_sync = &DiskCall::EVERY[..3];
        let not_now: [(&[i32], Scarce, &[DiskCall]); 5] = [
            (&[24, 23], Scarce::Descriptors, all_but_sync),
            (&[12, 105], Scarce::Memory, all_but_sync),
            (&[4, 11, 16, 26, 35, 37, 85, 87, 125], Scarce::Turn, all_but_sync),
            (&[28, 122, 27], Scarce::Space, all_but_sync),
            (&[1, 13], Scarce::Permission, &[DiskCall::Name]),
        ];
        for errno in 1..=133 {
            for call in DiskCall::EVERY {
                let row = not_now
                    .iter()
                    .find(|(numbers, _, calls)| numbers.contains(&errno) && calls.contains(&call));
                let expected = row.map_or(Meaning::Broken, |&(_, scarce, _)| Meaning::NotNow(scarce));
                assert_eq!(meaning(call, errno), expected, "{call:?} {errno}");
            }
        }
    }

    #[test]
    fn what_a_medium_says_is_never_taken_for_a_shortage() {
        // EIO, ENXIO, ENODEV, EROFS, ESTALE, EREMOTEIO, ENOMEDIUM, EUCLEAN, EBADMSG
        for errno in [5, 6, 19, 30, 116, 121, 123, 117, 74] {
            for call in DiskCall::EVERY {
                assert_eq!(meaning(call, errno), Meaning::Broken, "{call:?} {errno}");
            }
        }
    }
}
