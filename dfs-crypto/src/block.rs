//! Sealing of file data, done by clients only.
//!
//! A block is up to 4096 bytes. Ciphertext is as long as plaintext; nonce and tag (28 B) travel beside it. The associated data binds
//! cluster, inode, chunk, block and key epoch, so a block that is moved, or taken from another file or
//! cluster, does not open. AES-256-GCM by aws-lc; a test holds it against the `aes-gcm` crate.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::{BlockIndex, ChunkIndex, ClusterId, InodeId};

use crate::error::{CryptoError, Result};
use crate::key::FileKey;
use crate::nonce::{NONCE_SIZE_BYTES, NonceRange, NonceSource};

/// Cluster 16, inode 8, chunk 4, block 4, key epoch 4; little-endian.
const AAD_SIZE_BYTES: usize = 36;

/// Seals and opens the blocks of one file.
pub struct BlockCipher {
    key: LessSafeKey,
    aad: [u8; AAD_SIZE_BYTES],
}

impl std::fmt::Debug for BlockCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlockCipher(..)")
    }
}

impl BlockCipher {
    pub fn new(cluster: ClusterId, inode: InodeId, key: &FileKey, key_epoch: u32) -> Result<Self> {
        let mut aad = [0; AAD_SIZE_BYTES];
        aad[..16].copy_from_slice(&cluster.0);
        aad[16..24].copy_from_slice(&inode.0.to_le_bytes());
        aad[32..].copy_from_slice(&key_epoch.to_le_bytes());
        // The order on paper is cluster, inode, chunk, block, epoch; chunk and block are filled in per block.
        let key = UnboundKey::new(&AES_256_GCM, key.bytes()).map_err(|_| CryptoError::Seal)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            aad,
        })
    }

    /// Appends to `out` one run: the seals (28 B each) of all blocks of `plaintext`, then their ciphertexts.
    pub fn seal(
        &self,
        chunk: ChunkIndex,
        first: BlockIndex,
        plaintext: &[u8],
        nonces: &NonceSource,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let count = u32::try_from(plaintext.len().div_ceil(BLOCK_SIZE_BYTES)).map_err(|_| CryptoError::Seal)?;
        self.seal_with(chunk, first, plaintext, nonces.take(count)?, out)
    }

    fn seal_with(
        &self,
        chunk: ChunkIndex,
        first: BlockIndex,
        plaintext: &[u8],
        nonces: NonceRange,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let blocks = plaintext.len().div_ceil(BLOCK_SIZE_BYTES);
        let seals = out.len();
        let data = seals + blocks * SEAL_SIZE_BYTES;
        out.reserve(blocks * SEAL_SIZE_BYTES + plaintext.len());
        out.resize(data, 0);
        out.extend_from_slice(plaintext);
        let (head, body) = out.split_at_mut(data);
        let seals = head[seals..].chunks_exact_mut(SEAL_SIZE_BYTES);
        for (at, ((seal, block), nonce)) in seals
            .zip(body.chunks_mut(BLOCK_SIZE_BYTES))
            .zip(nonces.iter())
            .enumerate()
        {
            let aad = self.aad(chunk, BlockIndex(first.0 + at as u32));
            let tag = self
                .key
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), block)
                .map_err(|_| CryptoError::Seal)?;
            seal[..NONCE_SIZE_BYTES].copy_from_slice(&nonce);
            seal[NONCE_SIZE_BYTES..].copy_from_slice(tag.as_ref());
        }
        Ok(())
    }

    /// Opens one run of `blocks` blocks, the last of `last_length_bytes`, into `out`, which is as long as the run's data.
    ///
    /// # Errors
    /// `WrongLength` when the sizes do not fit, `BlockDoesNotOpen` for the first block that is not what was sealed there.
    pub fn open(
        &self,
        chunk: ChunkIndex,
        first: BlockIndex,
        last_length_bytes: u32,
        blocks: u32,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let blocks = blocks as usize;
        let size = blocks.saturating_sub(1) * BLOCK_SIZE_BYTES + last_length_bytes as usize;
        let expected = blocks * SEAL_SIZE_BYTES + size;
        if payload.len() != expected || out.len() != size || last_length_bytes as usize > BLOCK_SIZE_BYTES {
            return Err(CryptoError::WrongLength {
                expected,
                actual: payload.len(),
            });
        }
        let (seals, data) = payload.split_at(blocks * SEAL_SIZE_BYTES);
        let seals = seals.chunks_exact(SEAL_SIZE_BYTES);
        for (at, ((seal, cipher), plain)) in seals
            .zip(data.chunks(BLOCK_SIZE_BYTES))
            .zip(out.chunks_mut(BLOCK_SIZE_BYTES))
            .enumerate()
        {
            let block = BlockIndex(first.0.saturating_add(at as u32));
            let broken = |_| CryptoError::BlockDoesNotOpen { chunk, block };
            let (nonce, tag) = seal.split_at(NONCE_SIZE_BYTES);
            let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(broken)?;
            self.key
                .open_separate_gather(nonce, Aad::from(self.aad(chunk, block)), cipher, tag, plain)
                .map_err(broken)?;
        }
        Ok(())
    }

    fn aad(&self, chunk: ChunkIndex, block: BlockIndex) -> [u8; AAD_SIZE_BYTES] {
        let mut aad = self.aad;
        aad[24..28].copy_from_slice(&chunk.0.to_le_bytes());
        aad[28..32].copy_from_slice(&block.0.to_le_bytes());
        aad
    }
}

#[cfg(test)]
mod tests {
    use aes_gcm::aead::{Aead, KeyInit, Payload};
    use aes_gcm::{Aes256Gcm, Key};
    use proptest::prelude::*;

    use super::*;

    fn cipher() -> BlockCipher {
        BlockCipher::new(ClusterId([1; 16]), InodeId(7), &FileKey::from_bytes([9; 32]), 1).unwrap()
    }

    #[test]
    fn golden_bytes_and_the_reference_implementation_agree() {
        let cipher = cipher();
        let mut out = Vec::new();
        let plain: Vec<u8> = (0..5000_u32).map(|at| at as u8).collect();
        cipher
            .seal_with(
                ChunkIndex(3),
                BlockIndex(4),
                &plain,
                NonceRange::fixed([5; 8], 1, 2),
                &mut out,
            )
            .unwrap();
        assert_eq!(out.len(), 2 * 28 + 5000);
        assert_eq!(blake3::hash(&out).to_hex()[..16], *"f96cd05a8309dc47");
        let reference = Aes256Gcm::new(&Key::<Aes256Gcm>::from([9; 32]));
        let mut nonce = [5; 12];
        nonce[8..].copy_from_slice(&2_u32.to_le_bytes());
        let sealed = reference
            .encrypt(
                (&nonce).into(),
                Payload {
                    msg: &plain[4096..],
                    aad: &cipher.aad(ChunkIndex(3), BlockIndex(5)),
                },
            )
            .unwrap();
        assert_eq!(out[28..40], nonce);
        assert_eq!(out[40..56], sealed[904..]);
        assert_eq!(out[56 + 4096..], sealed[..904]);
    }

    proptest! {
        #[test]
        fn what_is_moved_or_changed_does_not_open(length in 1_usize..9000, flip in 0_usize..9000, block in 0_u32..3, chunk in 0_u32..3) {
            let nonces = NonceSource::new().unwrap();
            let plain = vec![0x5a; length];
            let mut sealed = Vec::new();
            cipher().seal(ChunkIndex(1), BlockIndex(1), &plain, &nonces, &mut sealed).unwrap();
            let blocks = length.div_ceil(4096) as u32;
            let last = (length - (blocks as usize - 1) * 4096) as u32;
            let mut back = vec![0; length];
            let opens = |chunk, block, sealed: &[u8], back: &mut [u8]| cipher().open(ChunkIndex(chunk), BlockIndex(block), last, blocks, sealed, back).is_ok();
            prop_assert!(opens(1, 1, &sealed, &mut back));
            prop_assert_eq!(&back, &plain);
            prop_assert_eq!(opens(chunk, block, &sealed, &mut back), chunk == 1 && block == 1);
            let at = flip % sealed.len();
            sealed[at] ^= 1;
            prop_assert!(!opens(1, 1, &sealed, &mut back));
        }
    }
}
