//! The data of files: pure buffers and plans, and the shells that move them.

pub(crate) mod acknowledged;
pub(crate) mod allocate;
pub(crate) mod background;
pub(crate) mod blocks;
pub(crate) mod commit;
pub(crate) mod dirty;
pub(crate) mod errseq;
pub(crate) mod fate;
pub(crate) mod fsync;
pub(crate) mod holes;
pub(crate) mod kept;
pub(crate) mod reader;
pub(crate) mod rewrite;
pub(crate) mod state;
pub(crate) mod truncate;
pub(crate) mod unsynced;
pub(crate) mod window;
pub(crate) mod writer;
