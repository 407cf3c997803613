//! File keys: unwrapped with the key-encryption key, kept while they are useful.

use std::num::NonZeroUsize;
use std::sync::Arc;

use dfs_common::wire::namespace::WrappedKey;
use dfs_common::{ClusterId, Error, InodeId, Result};
use dfs_crypto::block::BlockCipher;
use dfs_crypto::key::{FileKey, RootKey};
use lru::LruCache;
use parking_lot::Mutex;

/// Version of the key-encryption key that new files are wrapped with.
const KEK_VERSION: u32 = 1;

/// Epoch of a file's data key; rises when a file is sealed anew.
const KEY_EPOCH: u32 = 0;

/// Ciphers kept: about a kilobyte each, so a few megabytes.
const KEPT: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

pub(crate) struct Keys {
    cluster: ClusterId,
    root: RootKey,
    ciphers: Mutex<LruCache<InodeId, (WrappedKey, Arc<BlockCipher>)>>,
}

impl Keys {
    pub(crate) fn new(cluster: ClusterId, root: RootKey) -> Self {
        Self {
            cluster,
            root,
            ciphers: Mutex::new(LruCache::new(KEPT)),
        }
    }

    /// A key for a new file.
    pub(crate) fn fresh(&self) -> Result<WrappedKey> {
        let key = FileKey::generate().map_err(Error::from)?;
        self.root
            .kek(KEK_VERSION)
            .wrap(self.cluster, KEK_VERSION, &key)
            .map_err(Error::from)
    }

    pub(crate) fn cipher(&self, inode: InodeId, wrapped: &WrappedKey) -> Result<Arc<BlockCipher>> {
        if let Some((known, cipher)) = self.ciphers.lock().get(&inode)
            && known == wrapped
        {
            return Ok(Arc::clone(cipher));
        }
        let key = self
            .root
            .kek(wrapped.kek_version)
            .unwrap(self.cluster, wrapped)
            .map_err(|error| {
                Error::from(error).context(format!(
                    "the key of inode {inode} does not open; is root.key that of this cluster?"
                ))
            })?;
        let cipher = BlockCipher::new(self.cluster, inode, &key, KEY_EPOCH).map_err(Error::from)?;
        let cipher = Arc::new(cipher);
        self.ciphers.lock().put(inode, (wrapped.clone(), Arc::clone(&cipher)));
        Ok(cipher)
    }
}
