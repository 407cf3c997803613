//! What becomes of a conflict: one of the two versions, both, or what a program made of them.

use std::sync::Arc;

use dfs_common::conflict::ConflictEntry;
use dfs_common::wire::namespace::{Attributes, NamespaceChange, NamespaceOp, SetAttributes};
use dfs_common::{Error, ErrorCode, FileHandleId, Result, Settlement};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::versions::{MIB, READ, Versions, io_error, write_all};
use super::{SYSTEM, check_open, gone, or_gone};
use crate::client::{Client, mismatch};
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

    /// Puts the other version's blocks in their place. If they say where the file ends, that comes first, under the condition
    /// that nobody wrote since the versions were read; what others append later lies behind the end that was chosen, and stays.
    async fn put_other(&self, versions: &Versions) -> Result<()> {
        let (now, handle, _) = self.open(versions.inode(), WRITE).await?;
        let since = self.seen(handle);
        let put = async {
            let then = versions.attributes();
            let other = versions.other();
            let decides = other.end(then.length_bytes).is_some() || other.end(now.length_bytes).is_some();
            if decides && !is_unchanged(then, &now) {
                return Err(written_meanwhile("resolve it again"));
            }
            let length = other.length(now.length_bytes);
            if length != now.length_bytes {
                self.end_at(handle, length, since?, "resolve it again").await?;
            }
            for (offset, piece) in other.filled(length) {
                write_all(self, handle, offset, piece).await?;
            }
            self.fsync(handle, false).await
        }
        .await;
        self.release(handle)?;
        put
    }

    async fn replace<R: AsyncRead + Unpin>(&self, versions: &Versions, content: &mut R) -> Result<()> {
        let (now, handle, _) = self.open(versions.inode(), WRITE).await?;
        let since = self.seen(handle);
        let replaced = async {
            if !is_unchanged(versions.attributes(), &now) {
                return Err(written_meanwhile("run it again"));
            }
            let mut at = 0;
            loop {
                let mut piece = Vec::with_capacity(MIB);
                let mut part = (&mut *content).take(MIB as u64);
                part.read_to_end(&mut piece).await.map_err(|error| io_error(&error))?;
                if piece.is_empty() {
                    // So that nothing of this mount's own is left to be told.
                    self.fsync(handle, false).await?;
                    self.end_at(handle, at, since?, "run it again").await?;
                    return self.fsync(handle, false).await;
                }
                let size = piece.len();
                // What is the same already is not at risk, should this end half way. Behind the end nothing is read: that would ask
                // for attributes, which may tell of this mount's own commit before its answer does.
                let within = at + size as u64 <= now.length_bytes;
                if !within || self.read_upto(handle, at, size).await? != piece {
                    write_all(self, handle, at, piece.into()).await?;
                }
                at += size as u64;
            }
        }
        .await;
        self.release(handle)?;
        replaced
    }

    /// How many changes of the open file this mount knows that may have been others'.
    fn seen(&self, handle: FileHandleId) -> Result<u64> {
        Ok(self.mount().handle(handle)?.file.inner.lock().foreign)
    }

    /// Makes the file this long, unless somebody else changed it since `since`; on that it is left as long as it is.
    ///
    /// A cut that cuts nothing goes first. Its answer tells of every change before it, and nobody makes the file longer while it
    /// is under way.
    async fn end_at(&self, handle: FileHandleId, length: u64, since: u64, again: &str) -> Result<()> {
        let mount = self.mount();
        let file = Arc::clone(&mount.handle(handle)?.file);
        let inode = file.inode;
        let fence = NamespaceOp::BeginCut {
            inode,
            length_bytes: u64::MAX,
            mtime: None,
            only_in: None,
        };
        let begun = mount.session.change(SYSTEM, fence, mount.deadline()).await?;
        let NamespaceChange::CutBegun { attributes, .. } = begun else {
            return Err(mismatch());
        };
        let (unchanged, cut) = {
            let mut inner = file.inner.lock();
            inner.learn_own(&attributes);
            (inner.foreign == since, inner.cut())
        };
        if unchanged && attributes.length_bytes != length {
            let set = SetAttributes::default();
            return self
                .set_attributes(SYSTEM, inode, set, Some(length), Some(handle))
                .await
                .map(|_| ());
        }
        let end = NamespaceOp::SetLength {
            inode,
            length_bytes: attributes.length_bytes,
            mtime: Some(attributes.mtime),
            cut: Some(cut),
        };
        match mount.session.change(SYSTEM, end, mount.deadline()).await {
            Ok(NamespaceChange::Entry { attributes, .. }) => file.inner.lock().learn_own(&attributes),
            Ok(_) => return Err(mismatch()),
            // Another cut has begun, and ends it.
            Err(error) if error.code == ErrorCode::StaleCut => return Err(written_meanwhile(again)),
            Err(error) => return Err(error),
        }
        if unchanged {
            Ok(())
        } else {
            Err(written_meanwhile(again))
        }
    }
}

fn written_meanwhile(again: &str) -> Error {
    let detail =
        format!("another mount wrote to the file meanwhile; its end was left as it is: look at it, and {again}");
    Error::new(ErrorCode::Busy, detail)
}

/// By what every change of an inode moves.
fn is_unchanged(then: &Attributes, now: &Attributes) -> bool {
    then.change == now.change
}
