//! Fault runs over real processes: from one seed a schedule of faults over a running cluster, under a mixed load from two
//! mounts, and a verdict.
//!
//! The seed decides which faults, in which order, on whom and for how long. It does not decide how the processes run
//! meanwhile: a seed that failed fails again often, not always, which is why a failure keeps all logs and the history.

pub mod draw;
pub mod felt;
pub mod inject;
pub mod load;
pub mod names;
pub mod overwrites;
pub mod power;
pub mod registers;
pub mod run;
pub mod schedule;

pub use run::{Options, Report};
pub use schedule::Kind;
