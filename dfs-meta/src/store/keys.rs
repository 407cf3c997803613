//! Keys of rows. One tag byte, then ids as big-endian numbers, so that order of keys is order of ids.
//!
//! | key | value |
//! |---|---|
//! | `m` 0x00 | format version and cluster; written last when a store is filled, so its absence tells a half-filled one |
//! | `m` 0x01 | position of the consensus engine that this state stands at (its own bytes) |
//! | `m` 0x02 | counters: next inode, next session, inodes, orphans, sessions |
//! | `m` 0x03 | the routing table |
//! | `i` inode(8) | the inode |
//! | `d` directory(8) slot(8) | inode and name of one entry; slot is 63 bits of the name's keyed hash, see [`Slot`] |
//! | `x` inode(8) hash(16) | name and value of one extended attribute; hash is the keyed hash of the name |
//! | `o` inode(8) | an unlinked regular file: when it lost its last name |
//! | `s` session(8) | a session |
//! | `c` inode(8) conflict(8) | a conflict of the file's versions |
//! | `h` session(8) | what a session may hold and give |
//! | `r` session(8) sequence(8) | what a change was answered, for exactly-once |
//!
//! No key holds a name or data: keys lie in plaintext on the disk.

use dfs_common::conflict::ConflictId;
use dfs_common::{InodeId, SequenceNumber, SessionId};

pub const FORMAT: [u8; 2] = [b'm', 0];
pub const POSITION: [u8; 2] = [b'm', 1];
pub const COUNTERS: [u8; 2] = [b'm', 2];
pub const ROUTING: [u8; 2] = [b'm', 3];

/// Above every key.
pub const END: [u8; 1] = [0xff];

/// Places that names with the same hash may take, one after the other. With 63 bits, two names of one directory share
/// a slot once in billions of directories of a billion files; eight of them never do unless the key leaked.
pub const PROBES: u64 = 8;

/// Slots below are for `.` and `..` and "from the start".
const FIRST_SLOT: u64 = 3;

/// Place of an entry in its directory: also its readdir cookie, so it fits a signed 64-bit offset and is 3 or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub u64);

impl Slot {
    /// Where the search for a name begins, from its keyed hash.
    pub fn of_hash(hash: &[u8; 16]) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        let room = (1_u64 << 63) - FIRST_SLOT - PROBES;
        Self(FIRST_SLOT + (u64::from_be_bytes(first) >> 1) % room)
    }
}

fn key(tag: u8, id: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(25);
    key.push(tag);
    key.extend_from_slice(&id.to_be_bytes());
    key
}

fn pair(tag: u8, id: u64, second: u64) -> Vec<u8> {
    let mut key = key(tag, id);
    key.extend_from_slice(&second.to_be_bytes());
    key
}

pub fn inode(inode: InodeId) -> Vec<u8> {
    key(b'i', inode.0)
}

pub fn dentry(directory: InodeId, slot: Slot) -> Vec<u8> {
    pair(b'd', directory.0, slot.0)
}

pub fn xattr(inode: InodeId, hash: &[u8; 16]) -> Vec<u8> {
    let mut key = key(b'x', inode.0);
    key.extend_from_slice(hash);
    key
}

/// All extended attributes of an inode: `from..to`.
pub fn xattrs(inode: InodeId) -> (Vec<u8>, Vec<u8>) {
    (key(b'x', inode.0), key(b'x', inode.0.saturating_add(1)))
}

pub fn orphan(inode: InodeId) -> Vec<u8> {
    key(b'o', inode.0)
}

pub fn session(session: SessionId) -> Vec<u8> {
    key(b's', session.0)
}

pub fn hold(session: SessionId) -> Vec<u8> {
    key(b'h', session.0)
}

pub fn conflict(inode: InodeId, conflict: ConflictId) -> Vec<u8> {
    pair(b'c', inode.0, conflict.0)
}

/// All conflicts of a file: `from..to`.
pub fn conflicts(inode: InodeId) -> (Vec<u8>, Vec<u8>) {
    (key(b'c', inode.0), key(b'c', inode.0.saturating_add(1)))
}

/// All entries of a directory: `from..to`.
pub fn dentries(directory: InodeId) -> (Vec<u8>, Vec<u8>) {
    (key(b'd', directory.0), key(b'd', directory.0.saturating_add(1)))
}

pub fn answer(session: SessionId, sequence: SequenceNumber) -> Vec<u8> {
    pair(b'r', session.0, sequence.0)
}

/// All remembered answers of a session: `from..to`.
pub fn answers(session: SessionId) -> (Vec<u8>, Vec<u8>) {
    (key(b'r', session.0), key(b'r', session.0.saturating_add(1)))
}

/// The first id in a key.
pub fn first_id(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?))
}

/// Slot of a dentry's key.
pub fn slot_of(key: &[u8]) -> Option<Slot> {
    Some(Slot(u64::from_be_bytes(key.get(9..17)?.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_keys() {
        assert_eq!(inode(InodeId(0x0102)), [b'i', 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(
            dentry(InodeId(1), Slot(3)),
            [b'd', 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3]
        );
        assert_eq!(xattr(InodeId(1), &[7; 16])[..9], [b'x', 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(xattr(InodeId(1), &[7; 16])[9..], [7; 16]);
        assert_eq!(orphan(InodeId(9)), [b'o', 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(session(SessionId(9)), [b's', 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(
            conflict(InodeId(1), ConflictId(2)),
            [b'c', 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
        );
        assert_eq!(hold(SessionId(9)), [b'h', 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(
            answer(SessionId(1), SequenceNumber(2)),
            [b'r', 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
        );
        assert_eq!(slot_of(&dentry(InodeId(1), Slot(77))), Some(Slot(77)));
        assert_eq!(first_id(&orphan(InodeId(9))), Some(9));
    }

    #[test]
    fn slots_fit_a_signed_offset_and_leave_room_to_probe() {
        for hash in [[0; 16], [0xff; 16], [0x80; 16], [0x7f; 16]] {
            let slot = Slot::of_hash(&hash);
            assert!(slot.0 >= FIRST_SLOT);
            assert!(i64::try_from(slot.0 + PROBES).is_ok());
        }
    }
}
