//! dfs client library: metadata session, chunk I/O, write-behind and read-ahead, file handles.
//!
//! What a caller may rely on: after [`Client::flush`] (close) whoever opens the file anywhere sees what was written; after
//! [`Client::fsync`] it is durable on every in-sync replica; `read` on this mount always sees this mount's own writes;
//! two mounts that write different bytes of one block both succeed; every call ends by the deadline.
//!
//! Limits: two mounts that append to one file at the same time may choose the same place (an append goes behind all that the
//! metadata group knew when it began).
//!
//! The code: `meta` (leader, session), `routing` and `chunks` (who stores what, requests to chains), `data` (pure buffers
//! and plans; reader, writer, truncate), `mount` (what files share), `client` (the calls), `conflicts` (two versions of one file),
//! `admin` and `verify` (for tools).

pub mod admin;
mod chunks;
mod client;
mod clock;
pub mod conflicts;
mod data;
mod keys;
mod meta;
mod mount;
mod network;
pub mod options;
pub mod retry;
mod routing;
mod seen;
pub mod verify;

pub use admin::AdminClient;
pub use client::{Client, OpenDirectory};
pub use data::allocate::Allocation;
pub use data::holes::Seek;
#[doc(hidden)]
pub use network::{Reply, Transport};
pub use options::{ClientOptions, OpenMode};
