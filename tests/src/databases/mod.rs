//! Real databases on a mount, through power cuts of all servers at once.
//!
//! `judge` says what a database may hold after it recovered and is pure; `engine` is what every database can do, with a file for each of
//! them; `run` plays the rounds.

pub mod engine;
pub mod etcd;
pub mod judge;
pub mod kind;
pub mod packages;
pub mod pipe;
pub mod postgres;
pub mod process;
pub mod redis;
pub mod report;
pub mod round;
pub mod run;
pub mod sqlite;
