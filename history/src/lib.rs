//! Judges histories of registers: what clients asked, what they were answered, and when.
//!
//! - [`check`]: is there one order of all operations that explains every answer and respects real time (linearizable)?
//! - [`goes_back`]: did one client see a value and then an older one?
//! - [`stale_reads`]: which reads returned what was surely overwritten before they began?
//!
//! Nothing here knows where a history comes from: the simulator and the runs over real processes use the same judge. It is
//! pure and deterministic, and depends on no other crate.
//!
//! Sources: Wing and Gong, *Testing and Verifying Concurrent Objects* (1993); Lowe, *Testing for Linearizability* (2017),
//! whose memory of (operations placed, value) it is that makes the search affordable. Where every value is written once and there
//! is no CAS, Gibbons and Korach, *Testing Shared Memories* (1997), needs no search at all.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod counterexample;
mod linearizable;
mod operation;
mod reduce;
mod session;
mod zones;

pub use counterexample::Counterexample;
pub use linearizable::{Budget, Verdict, check};
pub use operation::{Action, ClientId, Key, Operation};
pub use session::{Regression, StaleRead, goes_back, stale_reads};

/// What a value of a register must be able to do.
pub trait Value: Clone + Ord + std::fmt::Debug {}

impl<T: Clone + Ord + std::fmt::Debug> Value for T {}
