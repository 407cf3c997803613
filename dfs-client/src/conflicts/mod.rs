//! Conflicts as a client meets them: what there is, both versions of a file, and what becomes of them.
//!
//! The version that the chain has is the file's present content (*current*); of the *other* only the blocks that differ are
//! kept, on the same chain and sealed for the same file. Invariant: nothing is settled before what was chosen is durable, and the
//! other version was read whole while the conflict was open, since its blocks go when it is settled. So whoever dies half way
//! leaves a conflict that the next one settles the same way.

mod listing;
mod other;
mod resolve;
mod sibling;
mod versions;
pub(crate) mod watch;

pub(crate) use listing::every;
pub use other::OtherVersion;
pub use resolve::Choice;
pub use versions::{Version, Versions};

use dfs_common::conflict::ConflictEntry;
use dfs_common::wire::namespace::Caller;
use dfs_common::{ConflictId, ConflictState, Error, ErrorCode, Result};

/// Who changes files here: permission was checked by whoever let the settling program in.
const SYSTEM: Caller = Caller { uid: 0, gid: 0 };

/// # Errors
/// `Busy` when the other version is not safe yet, `InvalidArgument` when the conflict is over.
fn check_open(entry: &ConflictEntry) -> Result<()> {
    let id = entry.conflict.id;
    match &entry.conflict.state {
        ConflictState::Open => Ok(()),
        ConflictState::Found => Err(Error::new(
            ErrorCode::Busy,
            format!("conflict {id}: the other version is still being brought in; try again in a moment"),
        )),
        ConflictState::Settled { how, by, .. } => Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("conflict {id} is settled already: {how}, by {by}; see: dfs conflicts show {id}"),
        )),
    }
}

fn gone(id: ConflictId) -> Error {
    Error::new(
        ErrorCode::NotFound,
        format!("the file of conflict {id} is gone: nothing is left to do"),
    )
}

/// Says of an error about the file's inode what it means for the conflict.
fn or_gone(id: ConflictId) -> impl Fn(Error) -> Error {
    move |error| match error.code {
        ErrorCode::NotFound | ErrorCode::StaleInode => gone(id),
        _ => error.context(format_args!("conflict {id}")),
    }
}
