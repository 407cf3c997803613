//! The metadata group as a client sees it: one leader to find, one session to keep.

mod ahead;
mod directories;
mod held;
#[cfg(test)]
mod held_tests;
mod holding;
mod leader;
mod opens;
pub(crate) mod refusals;
mod search;
mod sequence;
mod session;

pub(crate) use holding::Untold;
pub(crate) use leader::Leader;
pub(crate) use search::LeaderSearch;
pub(crate) use session::Session;
