//! The metadata server: namespace, chains and their order of commands.
//!
//! `namespace`, `chains`, `command` and `state` are pure: they take time, randomness and stored rows as arguments.
//! `consensus` orders commands, `store` holds what was applied, `service` answers requests and runs background tasks.

pub mod chains;
pub mod command;
pub mod consensus;
pub mod namespace;
pub mod room;
pub mod service;
pub mod state;
pub mod store;
