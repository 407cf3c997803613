//! fallocate(2): a file is to be written up to some place, and may reach so far already.
//!
//! Chains keep no room for anybody, so that there is room now says nothing of later. What is asked
//! for and can not be had now is refused, since that is why programs ask.

use std::sync::Arc;

use dfs_common::{Error, ErrorCode, Result};
use tokio::time::Instant;

use super::commit::SYSTEM;
use super::state::FileState;
use super::writer::timeout;
use crate::mount::Mount;

/// What becomes of the length of a file that is shorter than what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// It reaches to the end of that.
    Grow,
    KeepSize,
}

impl Mount {
    /// Makes the file at least this long; what is new of it are zeros.
    pub(crate) async fn grow_to(self: &Arc<Self>, file: &Arc<FileState>, length: u64, deadline: Instant) -> Result<()> {
        let _alone = timeout(deadline, file.gate.write(), || {
            format!("fallocate of inode {}: writes to it do not end", file.inode)
        })
        .await?;
        self.drain(file, deadline).await?;
        let _turn = self.turn(file, "fallocate", deadline).await?;
        self.commit_lengths(file, deadline).await?;
        let is_done = || file.inner.lock().attributes.length_bytes >= length;
        while !is_done() && self.extend_held(file, SYSTEM, length, deadline).await?.is_none() {
            self.clear_end(file, deadline).await?;
            if is_done() {
                break;
            }
            match self.extend(file, SYSTEM, length, deadline).await {
                Err(error) if error.code == ErrorCode::StaleCut && Instant::now() < deadline => {
                    self.refresh(file, deadline).await?;
                }
                outcome => return outcome.map(|_| ()),
            }
        }
        Ok(())
    }
}

/// Of a file of this length, whether a range of it may still be allocated where so much is free.
pub(crate) fn check_room((offset, bytes): (u64, u64), length: u64, free_bytes: u64) -> Result<u64> {
    let end = offset.checked_add(bytes).filter(|_| bytes > 0);
    let end = end.ok_or_else(|| {
        Error::new(
            ErrorCode::InvalidArgument,
            "fallocate of an empty range, or of one without an end",
        )
    })?;
    let wanted = end.saturating_sub(length.max(offset));
    if wanted > free_bytes {
        return Err(Error::new(
            ErrorCode::NoSpace,
            format!("fallocate of {wanted} more bytes: {free_bytes} are free"),
        ));
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_yet_needs_room() {
        let code = |range, length, free| check_room(range, length, free).map_err(|error| error.code);
        assert_eq!(code((0, 100), 0, 100), Ok(100));
        assert_eq!(code((0, 101), 0, 100), Err(ErrorCode::NoSpace));
        assert_eq!(code((0, 101), 50, 51), Ok(101));
        assert_eq!(code((90, 11), 50, 10), Err(ErrorCode::NoSpace));
        assert_eq!(code((0, 10), 50, 0), Ok(10));
        assert_eq!(code((5, 0), 50, 10), Err(ErrorCode::InvalidArgument));
        assert_eq!(code((u64::MAX, 2), 0, 10), Err(ErrorCode::InvalidArgument));
    }
}
