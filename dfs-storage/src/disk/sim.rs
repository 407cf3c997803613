//! A disk in memory for tests.
#[derive(Debug, Default)]
pub struct SimDisk;
