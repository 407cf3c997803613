//! The other version as a file of its own, beside the file: `NAME.conflict-ID`.
//!
//! It is made under a name by lot that nobody else knows, and gets its own name when it is whole and durable. So what stands under that name
//! is either the other version or somebody else's, and neither is ever written to: two who make it at once do no harm, and nothing
//! that was put there before is taken for it. Who dies half way leaves an empty-handed `.conflict-ID-*` without any permission.

use dfs_common::units::NAME_MAX_BYTES;
use dfs_common::wire::namespace::{Attributes, FileKind, RenameMode, SetAttributes};
use dfs_common::{ConflictId, Error, ErrorCode, FileHandleId, InodeId, Result, ValidName};

use super::versions::{MIB, READ, Versions, write_all};
use super::{SYSTEM, gone};
use crate::client::Client;

/// Of a sibling that is not whole.
const UNFINISHED_MODE: u32 = 0;

/// Permission bits that a sibling takes over: a copy must not run with its owner's rights.
const COPIED_MODE: u32 = 0o777;

/// `NAME.conflict-ID`, the name shortened where a character ends if both do not fit.
fn sibling_name(name: &[u8], id: ConflictId) -> Result<ValidName> {
    let suffix = format!(".conflict-{id}");
    let mut keep = name.len().min(NAME_MAX_BYTES - suffix.len());
    if keep < name.len() {
        let is_inside = |at: usize| name[at] & 0xc0 == 0x80;
        // A character has four bytes at most; a name that is not UTF-8 is cut anywhere.
        let start = (keep.saturating_sub(3)..=keep).rev().find(|&at| !is_inside(at));
        keep = start.unwrap_or(keep);
    }
    ValidName::new([&name[..keep], suffix.as_bytes()].concat())
}

/// Known to its maker alone.
fn unfinished_name(id: ConflictId) -> Result<ValidName> {
    let mut lot = [0; 8];
    getrandom::fill(&mut lot).map_err(|error| {
        Error::new(
            ErrorCode::Internal,
            format!("the system has no random numbers: {error}"),
        )
    })?;
    ValidName::new(format!(".conflict-{id}-{:016x}", u64::from_le_bytes(lot)).into_bytes())
}

/// A directory and the name in it.
struct Place {
    parent: InodeId,
    name: ValidName,
    /// The path up to the name.
    directory: Vec<u8>,
}

impl Client {
    /// The other version as a durable file beside the file; its path.
    pub(super) async fn make_sibling(&self, versions: &Versions) -> Result<Vec<u8>> {
        let place = self.place_of(versions).await?;
        let sibling = sibling_name(place.name.as_bytes(), versions.id())?;
        let path = [&place.directory[..], b"/", sibling.as_bytes()].concat();
        let shown = String::from_utf8_lossy(&path).into_owned();
        let made = async {
            if self.is_there(versions, place.parent, &sibling).await? {
                return Ok(());
            }
            let unfinished = unfinished_name(versions.id())?;
            let directory = self.open_directory(place.parent);
            let (attributes, handle) = self
                .create(SYSTEM, place.parent, &unfinished, UNFINISHED_MODE, true)
                .await?;
            let filled = self.fill(versions, (attributes.inode, handle)).await;
            let filled = filled.and(self.release(handle));
            let named = match filled {
                Ok(()) => {
                    let (from, mode) = (&unfinished, RenameMode::NoReplace);
                    self.rename(SYSTEM, place.parent, from, place.parent, &sibling, mode)
                        .await
                }
                Err(error) => Err(error),
            };
            let Err(error) = named else {
                return self.fsync_directory(&directory).await;
            };
            let _ = self.unlink(SYSTEM, place.parent, &unfinished).await;
            // Another was quicker.
            if error.code == ErrorCode::Exists && self.is_there(versions, place.parent, &sibling).await? {
                return Ok(());
            }
            Err(error)
        };
        made.await.map_err(|error: Error| error.context(&shown))?;
        Ok(path)
    }

    /// Whether the sibling stands there, with the other version's bytes.
    ///
    /// # Errors
    /// `Exists`: something else does.
    async fn is_there(&self, versions: &Versions, parent: InodeId, sibling: &ValidName) -> Result<bool> {
        let found = match self.lookup(parent, sibling).await {
            Ok(found) => found,
            Err(error) if error.code == ErrorCode::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if found.kind == FileKind::Regular && self.has_other(versions, &found).await? {
            return Ok(true);
        }
        Err(Error::new(
            ErrorCode::Exists,
            "it exists already, and is not the other version; rename it, then resolve the conflict again",
        ))
    }

    /// Whether a file has the other version's bytes where that was written.
    pub(super) async fn has_other(&self, versions: &Versions, found: &Attributes) -> Result<bool> {
        if found.length_bytes != versions.other_length() {
            return Ok(false);
        }
        let (_, handle, _) = self.open(found.inode, READ).await?;
        let compared = async {
            for (offset, piece) in versions.other().filled(versions.other_length()) {
                if self.read_upto(handle, offset, piece.len()).await? != piece {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        .await;
        self.release(handle)?;
        compared
    }

    /// The current content with the other version over it; then, when it is durable, the file's owner and mode.
    async fn fill(&self, versions: &Versions, (inode, handle): (InodeId, FileHandleId)) -> Result<()> {
        let (_, source, _) = self.open(versions.inode(), READ).await?;
        let length = versions.other_length();
        let copied = async {
            let mut at = 0;
            while at < length {
                let content = self.piece(versions, source, at).await?;
                let size = content.len() as u64;
                // What is never written is a hole, which reads as zeros.
                if content.iter().any(|&byte| byte != 0) {
                    write_all(self, handle, at, content.into()).await?;
                }
                at += size;
            }
            Ok::<_, Error>(())
        }
        .await;
        self.release(source)?;
        copied?;
        self.set_attributes(SYSTEM, inode, SetAttributes::default(), Some(length), Some(handle))
            .await?;
        self.fsync(handle, false).await?;
        let attributes = versions.attributes();
        let owner = SetAttributes {
            mode: Some(attributes.mode & COPIED_MODE),
            uid: Some(attributes.uid),
            gid: Some(attributes.gid),
            ..SetAttributes::default()
        };
        self.set_attributes(SYSTEM, inode, owner, None, Some(handle)).await?;
        Ok(())
    }

    /// The other version's bytes at `at`, a piece of them.
    pub(super) async fn piece(&self, versions: &Versions, source: FileHandleId, at: u64) -> Result<Vec<u8>> {
        let size = (versions.other_length().saturating_sub(at)).min(MIB as u64) as usize;
        let mut content = self.read_upto(source, at, size).await?;
        content.resize(size, 0);
        versions.other().lay_over(at, &mut content);
        Ok(content)
    }

    /// Walks the file's path down to its directory.
    async fn place_of(&self, versions: &Versions) -> Result<Place> {
        let names = versions
            .path()
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty());
        let mut names: Vec<&[u8]> = names.collect();
        let name = ValidName::new(names.pop().ok_or_else(|| gone(versions.id()))?)?;
        let mut parent = InodeId::ROOT;
        let moved = || {
            let path = String::from_utf8_lossy(versions.path());
            let detail = format!("the file is not at {path} any more; look again: dfs conflicts list");
            Error::new(ErrorCode::Busy, detail)
        };
        let walked = |error: Error| match error.code {
            ErrorCode::NotFound | ErrorCode::NotDirectory => moved(),
            _ => error,
        };
        for name in &names {
            parent = self
                .lookup(parent, &ValidName::new(*name)?)
                .await
                .map_err(walked)?
                .inode;
        }
        if self.lookup(parent, &name).await.map_err(walked)?.inode != versions.inode() {
            return Err(moved());
        }
        let directory = names.iter().flat_map(|name| [&b"/"[..], name].concat()).collect();
        Ok(Place {
            parent,
            name,
            directory,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shortened_where_a_character_ends() {
        let of = |name: &[u8]| sibling_name(name, ConflictId(4711)).unwrap().as_bytes().to_vec();
        assert_eq!(of(b"a.txt"), b"a.txt.conflict-4711");
        let suffix = b".conflict-4711".len();
        let plain = of(&[b'x'; 255]);
        assert_eq!(plain.len(), 255);
        assert!(plain.ends_with(b"x.conflict-4711"));
        assert_eq!(of(&[b'x'; 255][..255 - suffix]).len(), 255, "just fits");
        for lead in 0..4 {
            let long = "x".repeat(lead) + &"\u{1f980}".repeat(60);
            let short = of(long.as_bytes());
            let text = String::from_utf8(short).unwrap();
            assert!(text.ends_with("\u{1f980}.conflict-4711") && text.len() > 251, "{text}");
        }
        assert_eq!(of(&[0x80; 255]).len(), 255, "what is not UTF-8 is cut anywhere");
        let widest = sibling_name(&[b'y'; 255], ConflictId(u64::MAX)).unwrap();
        assert_eq!(widest.as_bytes().len(), 255);
    }
}
