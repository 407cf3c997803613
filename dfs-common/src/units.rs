//! Sizes and bounds that every part agrees on.

/// Bytes of plaintext, and of ciphertext, in a full block.
pub const BLOCK_SIZE_BYTES: usize = 4096;

/// Nonce (12 B) and tag (16 B) that travel beside a block's ciphertext.
pub const SEAL_SIZE_BYTES: usize = 28;

/// Default chunk: big enough to stream, small enough to copy whole in a repair.
pub const DEFAULT_CHUNK_SIZE_BYTES: u32 = 4 << 20;

/// Largest chunk a layout may name. Bounds every per-chunk allocation.
pub const MAX_CHUNK_SIZE_BYTES: u32 = 64 << 20;

/// Largest plaintext of one write or read request (FUSE's own limit is 1 MiB).
pub const MAX_IO_SIZE_BYTES: usize = 1 << 20;

/// Largest payload of one message: an I/O with its seals, or one part of a chunk in a resync.
pub const MAX_PAYLOAD_SIZE_BYTES: usize = 4 << 20;

/// Largest bincode header of one message (a directory page, a routing table).
pub const MAX_HEADER_SIZE_BYTES: usize = 1 << 20;

/// `NAME_MAX` of Linux.
pub const NAME_MAX_BYTES: usize = 255;

/// `PATH_MAX - 1`: longest symlink target.
pub const SYMLINK_MAX_BYTES: usize = 4095;

/// `XATTR_SIZE_MAX` and `XATTR_NAME_MAX` of Linux.
pub const XATTR_VALUE_MAX_BYTES: usize = 65536;
pub const XATTR_NAME_MAX_BYTES: usize = 255;

/// All xattr names and values of one inode together; keeps `listxattr` within its 64 KiB.
pub const XATTR_LIST_MAX_BYTES: usize = 65536;

/// `LINK_MAX` of ext4.
pub const LINK_MAX: u32 = 65000;

/// Blocks that cover `len_bytes`.
#[must_use]
pub const fn blocks_for(len_bytes: u64) -> u64 {
    len_bytes.div_ceil(BLOCK_SIZE_BYTES as u64)
}
/// Part of a storage node that clients can not fill: room for removals, copies and compaction.
const RESERVE_FRACTION: u64 = 32;
const RESERVE_MAX_BYTES: u64 = 512 << 20;

/// See [`RESERVE_FRACTION`].
#[must_use]
pub const fn reserve_bytes(total_bytes: u64) -> u64 {
    let part = total_bytes / RESERVE_FRACTION;
    if part < RESERVE_MAX_BYTES {
        part
    } else {
        RESERVE_MAX_BYTES
    }
}

/// Whether a storage node should get no more data. Said a reserve early: what is on its way when it is said must still fit.
#[must_use]
pub const fn is_full(total_bytes: u64, used_bytes: u64) -> bool {
    used_bytes.saturating_add(2 * reserve_bytes(total_bytes)) > total_bytes
}
