//! Requests between processes: QUIC with mutual TLS 1.3, identity from the certificate, a deadline on everything.
//!
//! One [`Endpoint`] a process. [`Endpoint::peer`] gives a handle on another process that connects when it is first used and
//! again after a failure; [`Endpoint::serve`] hands incoming requests to a [`Service`]. One QUIC stream a request: no
//! request waits behind another's bytes, and dropping the future cancels the work on both sides.

pub mod boot_clock;
pub mod endpoint;
pub mod error;
mod frame;
mod issues;
pub mod liveness;
pub mod peer;
mod server;
mod transport;

pub use boot_clock::{BootInstant, wall_clock};
pub use endpoint::Endpoint;
pub use error::NetError;
pub use peer::Peer;
pub use server::{Incoming, Outgoing, Service};
pub use tokio_util::sync::CancellationToken;
