//! The key hierarchy: root key -> KEK versions -> a data key a file; and beside it the metadata servers' own key.
//!
//! The root key never leaves clients and the administrator. A metadata server gets only [`MetaKey`], from which
//! no file's key can be derived (blake3's key derivation is one-way and separated by context).

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use dfs_common::ClusterId;
use dfs_common::wire::namespace::WrappedKey;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::{CryptoError, Result, random};
use crate::file;
use crate::record::{NameHasher, RecordSealer};

const KEY_SIZE_BYTES: usize = 32;
/// Nonce 12, key 32, tag 16.
const WRAPPED_SIZE_BYTES: usize = 60;

const KEK_CONTEXT: &str = "dfs 2026-11 kek";
const META_CONTEXT: &str = "dfs 2026-11 metadata servers";
const RECORD_CONTEXT: &str = "dfs 2026-11 metadata records";
const NAME_CONTEXT: &str = "dfs 2026-11 name hash";

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; KEY_SIZE_BYTES]);

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }

        impl $name {
            #[must_use]
            pub const fn from_bytes(bytes: [u8; KEY_SIZE_BYTES]) -> Self {
                Self(bytes)
            }

            /// A new one, from the operating system's randomness.
            pub fn generate() -> Result<Self> {
                let mut bytes = [0; KEY_SIZE_BYTES];
                random(&mut bytes)?;
                Ok(Self(bytes))
            }
        }
    };
}

secret! {
    /// Root of a cluster's keys. Held by clients and the administrator.
    RootKey
}
secret! {
    /// Key-encryption key of one version.
    Kek
}
secret! {
    /// Data key of one file.
    FileKey
}
secret! {
    /// What metadata servers seal their own state with.
    MetaKey
}

impl RootKey {
    pub fn load(path: &Path) -> Result<Self> {
        load_hex(path).map(Self)
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        save_hex(path, &self.0)
    }

    #[must_use]
    pub fn kek(&self, version: u32) -> Kek {
        let mut material = Zeroizing::new([0; KEY_SIZE_BYTES + 4]);
        material[..KEY_SIZE_BYTES].copy_from_slice(&self.0);
        material[KEY_SIZE_BYTES..].copy_from_slice(&version.to_le_bytes());
        Kek(blake3::derive_key(KEK_CONTEXT, &material[..]))
    }

    #[must_use]
    pub fn meta_key(&self) -> MetaKey {
        MetaKey(blake3::derive_key(META_CONTEXT, &self.0))
    }
}

impl FileKey {
    pub(crate) const fn bytes(&self) -> &[u8; KEY_SIZE_BYTES] {
        &self.0
    }
}

impl Kek {
    /// Seals a file's key for its inode.
    pub fn wrap(&self, cluster: ClusterId, kek_version: u32, key: &FileKey) -> Result<WrappedKey> {
        let mut nonce = [0; 12];
        random(&mut nonce)?;
        let mut bytes = Vec::with_capacity(WRAPPED_SIZE_BYTES);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&key.0);
        let tag = self
            .cipher()?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(wrap_aad(cluster, kek_version)),
                &mut bytes[12..],
            )
            .map_err(|_| CryptoError::Seal)?;
        bytes.extend_from_slice(tag.as_ref());
        Ok(WrappedKey { kek_version, bytes })
    }

    /// # Errors
    /// `KeyDoesNotOpen` when it was wrapped by another root, version or cluster, or was changed.
    pub fn unwrap(&self, cluster: ClusterId, wrapped: &WrappedKey) -> Result<FileKey> {
        let broken = || CryptoError::KeyDoesNotOpen {
            kek_version: wrapped.kek_version,
        };
        if wrapped.bytes.len() != WRAPPED_SIZE_BYTES {
            return Err(broken());
        }
        let (nonce, sealed) = wrapped.bytes.split_at(12);
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| broken())?;
        let plain = self
            .cipher()?
            .open_in_place(nonce, Aad::from(wrap_aad(cluster, wrapped.kek_version)), &mut sealed)
            .map_err(|_| broken())?;
        plain.try_into().map(FileKey).map_err(|_| broken())
    }

    fn cipher(&self) -> Result<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &self.0)
            .map(LessSafeKey::new)
            .map_err(|_| CryptoError::Seal)
    }
}

fn wrap_aad(cluster: ClusterId, kek_version: u32) -> [u8; 20] {
    let mut aad = [0; 20];
    aad[..16].copy_from_slice(&cluster.0);
    aad[16..].copy_from_slice(&kek_version.to_le_bytes());
    aad
}

impl MetaKey {
    pub fn load(path: &Path) -> Result<Self> {
        load_hex(path).map(Self)
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        save_hex(path, &self.0)
    }

    /// Seals rows, log records and snapshots.
    pub fn sealer(&self) -> Result<RecordSealer> {
        RecordSealer::new(&blake3::derive_key(RECORD_CONTEXT, &self.0))
    }

    /// Hashes names for row keys.
    #[must_use]
    pub fn name_hasher(&self) -> NameHasher {
        NameHasher::new(blake3::derive_key(NAME_CONTEXT, &self.0))
    }
}

fn load_hex(path: &Path) -> Result<[u8; KEY_SIZE_BYTES]> {
    let text = file::read(path)?;
    let mut key = [0; KEY_SIZE_BYTES];
    hex::decode_to_slice(text.trim_ascii(), &mut key).map_err(|_| CryptoError::BadFile {
        path: path.to_path_buf(),
        reason: "not a key of 64 hex digits".to_owned(),
    })?;
    Ok(key)
}

fn save_hex(path: &Path, key: &[u8; KEY_SIZE_BYTES]) -> Result<()> {
    let mut text = Zeroizing::new(hex::encode(key));
    text.push('\n');
    file::replace(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_opens_only_where_it_was_wrapped() {
        let cluster = ClusterId([3; 16]);
        let root = RootKey::from_bytes([1; 32]);
        let key = FileKey::from_bytes([2; 32]);
        let wrapped = root.kek(1).wrap(cluster, 1, &key).unwrap();
        assert_eq!(root.kek(1).unwrap(cluster, &wrapped).unwrap().0, key.0);
        assert!(root.kek(2).unwrap(cluster, &wrapped).is_err());
        assert!(root.kek(1).unwrap(ClusterId([4; 16]), &wrapped).is_err());
        assert!(RootKey::from_bytes([9; 32]).kek(1).unwrap(cluster, &wrapped).is_err());
        let mut short = wrapped;
        short.bytes.pop();
        assert!(root.kek(1).unwrap(cluster, &short).is_err());
    }

    #[test]
    fn keys_survive_their_files_and_do_not_print() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.key");
        let root = RootKey::generate().unwrap();
        root.save(&path).unwrap();
        assert_eq!(RootKey::load(&path).unwrap().0, root.0);
        assert_eq!(format!("{root:?}"), "RootKey(..)");
        std::fs::write(&path, "zz").unwrap();
        assert!(RootKey::load(&path).unwrap_err().to_string().contains("root.key"));
    }
}
