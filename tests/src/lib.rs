//! Real clusters for tests: the `dfs` binary that users run, real processes, real mounts, in a directory of their own.
//!
//! Whatever happens to a test, its cluster is unmounted and its processes are gone afterwards: `Drop` does it, and a
//! leftover of a run that was killed stands in a temporary directory that nothing else uses.
#![expect(
    clippy::missing_panics_doc,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

pub mod actors;
pub mod cluster;
pub mod cuts;
pub mod databases;
pub mod faults;
pub mod history;
pub mod host_cluster;
pub mod hosts;
pub mod interrupt;
pub mod loop_disk;
pub mod process;
pub mod tree;

pub use cluster::DevCluster;
pub use host_cluster::HostCluster;
pub use hosts::Hosts;
pub use loop_disk::LoopDisk;
pub use process::{Finished, dfs, dfs_with_clock, run, run_in, shell};
