//! dfs client library: metadata session, chunk I/O, write-behind and read-ahead, file handles.

pub mod admin;
mod client;
pub mod options;

pub use admin::AdminClient;
pub use client::Client;
pub use options::{ClientOptions, OpenMode};
