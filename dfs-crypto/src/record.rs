//! Sealing of what metadata servers keep: rows, log records, snapshots; and the keyed hash that stands for a name.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use dfs_common::InodeId;

use crate::error::{CryptoError, Result};
use crate::nonce::{NONCE_SIZE_BYTES, NonceSource};

/// Nonce and tag that a sealed record carries on top of its plaintext.
pub const RECORD_OVERHEAD_BYTES: usize = NONCE_SIZE_BYTES + 16;

/// AES-256-GCM over whole records: nonce 12, ciphertext, tag 16. What the record is and where it stands goes into `aad`.
pub struct RecordSealer {
    key: LessSafeKey,
    nonces: NonceSource,
}

impl std::fmt::Debug for RecordSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RecordSealer(..)")
    }
}

impl RecordSealer {
    pub(crate) fn new(key: &[u8; 32]) -> Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| CryptoError::Seal)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            nonces: NonceSource::new()?,
        })
    }

    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let nonce = self.nonces.take(1)?.iter().next().ok_or(CryptoError::Seal)?;
        let mut out = Vec::with_capacity(plain.len() + RECORD_OVERHEAD_BYTES);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                &mut out[NONCE_SIZE_BYTES..],
            )
            .map_err(|_| CryptoError::Seal)?;
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    /// # Errors
    /// `RecordDoesNotOpen` for another key, another `aad`, or changed bytes.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        if sealed.len() < RECORD_OVERHEAD_BYTES {
            return Err(CryptoError::RecordDoesNotOpen);
        }
        let (nonce, rest) = sealed.split_at(NONCE_SIZE_BYTES);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| CryptoError::RecordDoesNotOpen)?;
        let (cipher, tag) = rest.split_at(rest.len() - 16);
        let mut plain = vec![0; cipher.len()];
        self.key
            .open_separate_gather(nonce, Aad::from(aad), cipher, tag, &mut plain)
            .map_err(|_| CryptoError::RecordDoesNotOpen)?;
        Ok(plain)
    }
}

/// Keyed blake3 over (parent, name): what a row's key shows of a name.
#[derive(Clone)]
pub struct NameHasher {
    key: [u8; 32],
}

impl std::fmt::Debug for NameHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NameHasher(..)")
    }
}

impl NameHasher {
    #[must_use]
    pub const fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// 16 bytes that depend on directory and name; equal names in two directories differ.
    #[must_use]
    pub fn hash(&self, parent: InodeId, name: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&parent.0.to_le_bytes()).update(name);
        let mut hash = [0; 16];
        hasher.finalize_xof().fill(&mut hash);
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_open_only_in_their_place() {
        let sealer = RecordSealer::new(&[1; 32]).unwrap();
        let sealed = sealer.seal(b"row 7", b"secret").unwrap();
        assert_eq!(sealed.len(), 6 + RECORD_OVERHEAD_BYTES);
        assert_eq!(sealer.open(b"row 7", &sealed).unwrap(), b"secret");
        assert!(sealer.open(b"row 8", &sealed).is_err());
        assert!(RecordSealer::new(&[2; 32]).unwrap().open(b"row 7", &sealed).is_err());
        assert!(sealer.open(b"row 7", &sealed[..20]).is_err());
        assert_ne!(
            sealed,
            sealer.seal(b"row 7", b"secret").unwrap(),
            "a nonce is used once"
        );
    }

    #[test]
    fn name_hashes_depend_on_key_directory_and_name() {
        let hasher = NameHasher::new([1; 32]);
        let hash = hasher.hash(InodeId(1), b"a");
        assert_eq!(hash, hasher.hash(InodeId(1), b"a"));
        assert_ne!(hash, hasher.hash(InodeId(2), b"a"));
        assert_ne!(hash, hasher.hash(InodeId(1), b"b"));
        assert_ne!(hash, NameHasher::new([2; 32]).hash(InodeId(1), b"a"));
    }
}
