//! Both versions of a file in conflict, read and copied a piece at a time.

use std::io;

use bytes::Bytes;
use dfs_common::conflict::ConflictEntry;
use dfs_common::units::{BLOCK_SIZE_BYTES, MAX_IO_SIZE_BYTES};
use dfs_common::wire::namespace::Attributes;
use dfs_common::{ChunkId, Conflict, ConflictId, Error, ErrorCode, FileHandleId, InodeId, Level, Result};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::other::{OtherVersion, reads};
use super::{check_open, gone, or_gone};
use crate::client::Client;
use crate::data::reader::Reading;
use crate::options::OpenMode;

/// Moved at a time: an I/O.
pub(super) const MIB: usize = MAX_IO_SIZE_BYTES;

pub(super) const READ: OpenMode = OpenMode {
    read: true,
    write: false,
    append: false,
    truncate: false,
    direct: false,
};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The file as it is.
    Current,
    /// With the other version's blocks in place.
    Other,
}

/// A conflict that was open when the other version had been read whole.
#[derive(Debug)]
pub struct Versions {
    conflict: Conflict,
    path: Vec<u8>,
    /// Of the file, before.
    attributes: Attributes,
    other: OtherVersion,
}

impl Versions {
    #[must_use]
    pub fn id(&self) -> ConflictId {
        self.conflict.id
    }

    /// The file's.
    #[must_use]
    pub fn inode(&self) -> InodeId {
        self.conflict.divergence.chunk.inode
    }

    /// From the root of the file system.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    #[must_use]
    pub fn other(&self) -> &OtherVersion {
        &self.other
    }

    pub(super) fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    pub(super) fn other_length(&self) -> u64 {
        self.other.length(self.attributes.length_bytes)
    }
}

impl Client {
    /// Reads the other version, and makes sure that it was still kept when that was done.
    ///
    /// # Errors
    /// `NotFound`: the file is gone, and the conflict with it. `Busy` or `InvalidArgument`: it is not to be decided yet, or any more.
    /// `Corrupt`: no block of the other version is there.
    pub async fn versions(&self, entry: &ConflictEntry) -> Result<Versions> {
        let conflict = &entry.conflict;
        check_open(entry)?;
        let path = entry.path.clone().ok_or_else(|| gone(conflict.id))?;
        let inode = conflict.divergence.chunk.inode;
        let attributes = self.attributes(inode).await.map_err(or_gone(conflict.id))?;
        let other = self.other_version(conflict, &attributes).await?;
        check_open(&self.one(inode, conflict.id, false).await?)?;
        if other.is_empty() {
            let id = conflict.id;
            let detail = format!(
                "conflict {id}: nothing is there of the other version; settle it: dfs conflicts resolve {id} --keep current"
            );
            return Err(Error::new(ErrorCode::Corrupt, detail));
        }
        Ok(Versions {
            conflict: conflict.clone(),
            path,
            attributes,
            other: OtherVersion::new(other),
        })
    }

    /// Offset in the file and bytes of what is kept of the other version, in file order; blocks that nobody has any more are left out.
    /// At most a chunk, so at most 64 MiB.
    ///
    /// # Errors
    /// Also when no replica has blocks that open.
    pub async fn other_version(&self, conflict: &Conflict, attributes: &Attributes) -> Result<Vec<(u64, Bytes)>> {
        let divergence = &conflict.divergence;
        let inode = divergence.chunk.inode;
        let file = attributes.file.as_ref().ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidArgument,
                format!("inode {inode} is not a regular file: it has no versions"),
            )
        })?;
        file.layout.check()?;
        let mount = self.mount();
        let cipher = mount.keys.cipher(inode, &file.key)?;
        let kept = ChunkId::new(conflict.id.keeper(), divergence.chunk.index);
        let start = file.layout.chunk_start(divergence.chunk.index);
        let mut pieces = Vec::new();
        for (first, count) in reads(&divergence.blocks) {
            if u64::from(first.0) + u64::from(count) > u64::from(file.layout.blocks_per_chunk()) {
                let detail = format!(
                    "conflict {}: it names blocks that no chunk of the file has",
                    conflict.id
                );
                return Err(Error::new(ErrorCode::BadMessage, detail));
            }
            let reading = Reading {
                cipher: &cipher,
                level: Level::Quorum,
                session: mount.session.id(),
            };
            let (runs, plain) = mount
                .open_blocks(reading, divergence.chain, kept, (first, count), mount.deadline())
                .await
                .map_err(|error| error.context(format_args!("the other version of conflict {}", conflict.id)))?;
            let plain = Bytes::from(plain);
            // Opening has checked that the runs lie within what was asked for.
            pieces.extend(runs.iter().map(|run| {
                let at = (run.first.0 - first.0) as usize * BLOCK_SIZE_BYTES;
                let offset = start + u64::from(run.first.0) * BLOCK_SIZE_BYTES as u64;
                (offset, plain.slice(at..at + run.data_size_bytes()))
            }));
        }
        Ok(pieces)
    }

    /// Copies one of the two versions of the whole file.
    ///
    /// # Errors
    /// Also when `to` can not be written.
    pub async fn copy_version<W: AsyncWrite + Unpin>(
        &self,
        versions: &Versions,
        which: Version,
        to: &mut W,
    ) -> Result<()> {
        let (_, source, _) = self
            .open(versions.inode(), READ)
            .await
            .map_err(or_gone(versions.id()))?;
        let length = match which {
            Version::Current => versions.attributes.length_bytes,
            Version::Other => versions.other_length(),
        };
        let copied = async {
            let mut at = 0;
            while at < length {
                let content = match which {
                    Version::Other => self.piece(versions, source, at).await?,
                    Version::Current => {
                        let size = (length - at).min(MIB as u64) as usize;
                        self.read_upto(source, at, size).await?
                    }
                };
                if content.is_empty() {
                    // It was cut meanwhile.
                    break;
                }
                to.write_all(&content).await.map_err(|error| io_error(&error))?;
                at += content.len() as u64;
            }
            to.flush().await.map_err(|error| io_error(&error))
        }
        .await;
        self.release(source)?;
        copied
    }

    /// `size` bytes, or fewer at the end of the file.
    pub(super) async fn read_upto(&self, handle: FileHandleId, offset: u64, size: usize) -> Result<Vec<u8>> {
        let mut content = Vec::with_capacity(size);
        while content.len() < size {
            let part = (size - content.len()).min(MIB) as u32;
            let bytes = self.read(handle, offset + content.len() as u64, part).await?;
            if bytes.is_empty() {
                break;
            }
            content.extend_from_slice(&bytes);
        }
        Ok(content)
    }
}

pub(super) fn io_error(error: &io::Error) -> Error {
    Error::new(ErrorCode::Internal, format!("a copy of the file: {error}"))
}

/// Writes all of `content`.
pub(super) async fn write_all(client: &Client, handle: FileHandleId, offset: u64, content: Bytes) -> Result<()> {
    client.write(handle, offset, content).await.map(|_| ())
}
