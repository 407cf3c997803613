//! What becomes of a conflict: one of the two versions, both, or what a program made of them.

use dfs_common::conflict::ConflictEntry;
use dfs_common::wire::namespace::{Attributes, SetAttributes};
use dfs_common::{Error, ErrorCode, FileHandleId, Result, Settlement};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::versions::{MIB, READ, Versions, io_error, write_all};
use super::{SYSTEM, check_open, gone, or_gone};
use crate::client::Client;
use crate::options::OpenMode;

const WRITE: OpenMode = OpenMode { write: true, ..READ };

/// Which version stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// What the file has.
    Current,
    /// The other takes its place.
    Other,
    /// The other becomes a file of its own beside it.
    Both,
}

impl Client {
    /// Does what was chosen, makes it durable, and settles the conflict. For [`Choice::Both`] the path of the sibling; none if
    /// the two versions are the same, which needs no other file.
    ///
    /// # Errors
    /// `NotFound`: the file is gone. `Exists`: another file has the sibling's name. Whatever the error, the conflict can be resolved again.
    pub async fn resolve(&self, entry: &ConflictEntry, choice: Choice, by: &str) -> Result<Option<Vec<u8>>> {
        let (inode, id) = (entry.conflict.divergence.chunk.inode, entry.conflict.id);
        let (sibling, how) = match choice {
            Choice::Current => {
                // Also while the other version is still being brought in: who did that may never come back.
                if entry.conflict.state.is_settled() {
                    check_open(entry)?;
                }
                entry.path.as_ref().ok_or_else(|| gone(id))?;
                (None, Settlement::Current)
            }
            Choice::Other => {
                let versions = self.versions(entry).await?;
                self.put_other(&versions).await.map_err(or_gone(id))?;
                (None, Settlement::Other)
            }
            Choice::Both => {
                let versions = self.versions(entry).await?;
                // A mount that found its write lost has written it again, and the old one came back beside it.
                if self
                    .has_other(&versions, versions.attributes())
                    .await
                    .map_err(or_gone(id))?
                {
                    (None, Settlement::Current)
                } else {
                    let sibling = self.make_sibling(&versions).await.map_err(or_gone(id))?;
                    (Some(sibling), Settlement::Both)
                }
            }
        };
        self.settle(inode, id, how, by).await?;
        Ok(sibling)
    }

    /// Puts what a program made of the two versions in the file's place, and settles the conflict.
    ///
    /// # Errors
    /// `Busy`: the file was written since the versions were read; they must be merged anew. `NotFound`: it is gone.
    pub async fn resolve_merged<R: AsyncRead + Unpin>(
        &self,
        versions: &Versions,
        content: &mut R,
        by: &str,
    ) -> Result<()> {
        let (inode, id) = (versions.inode(), versions.id());
        check_open(&self.one(inode, id, false).await?)?;
        self.replace(versions, content).await.map_err(or_gone(id))?;
        self.settle(inode, id, Settlement::Application, by).await
    }

    async fn put_other(&self, versions: &Versions) -> Result<()> {
        let (_, handle, _) = self.open(versions.inode(), WRITE).await?;
        let length = versions.other_length();
        let put = async {
            for (offset, piece) in versions.other().filled(length) {
                write_all(self, handle, offset, piece).await?;
            }
            self.end_at(versions, handle, length).await
        }
        .await;
        self.release(handle)?;
        put
    }

    async fn replace<R: AsyncRead + Unpin>(&self, versions: &Versions, content: &mut R) -> Result<()> {
        let (now, handle, _) = self.open(versions.inode(), WRITE).await?;
        let replaced = async {
            if !is_unchanged(versions.attributes(), &now) {
                return Err(Error::new(
                    ErrorCode::Busy,
                    "the file was written while its versions were merged; nothing was done, merge them again",
                ));
            }
            let mut at = 0;
            loop {
                let mut piece = Vec::with_capacity(MIB);
                let mut part = (&mut *content).take(MIB as u64);
                part.read_to_end(&mut piece).await.map_err(|error| io_error(&error))?;
                if piece.is_empty() {
                    return self.end_at(versions, handle, at).await;
                }
                let size = piece.len();
                // What is the same already is not at risk, should this end half way.
                if self.read_upto(handle, at, size).await? != piece {
                    write_all(self, handle, at, piece.into()).await?;
                }
                at += size as u64;
            }
        }
        .await;
        self.release(handle)?;
        replaced
    }

    /// The file ends here, and all of it is durable.
    async fn end_at(&self, versions: &Versions, handle: FileHandleId, length: u64) -> Result<()> {
        let inode = versions.inode();
        if self.attributes(inode).await?.length_bytes != length {
            self.set_attributes(SYSTEM, inode, SetAttributes::default(), Some(length), Some(handle))
                .await?;
        }
        self.fsync(handle, false).await
    }
}

/// By what every write moves.
fn is_unchanged(then: &Attributes, now: &Attributes) -> bool {
    (then.mtime, then.length_bytes) == (now.mtime, now.length_bytes)
}
