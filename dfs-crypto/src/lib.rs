//! Sealing, keys and identities.
//!
//! Blocks of file data are sealed by clients only ([`block`]); what metadata servers keep is sealed by them
//! ([`record`]). Keys form a hierarchy from one root ([`key`]); who is who stands in certificates ([`certificate`]).

pub mod block;
pub mod certificate;
pub mod error;
pub mod file;
pub mod key;
pub mod nonce;
pub mod record;
pub mod tls;

pub use block::BlockCipher;
pub use certificate::{CertificateAuthority, Credentials, PeerIdentity, identity_of};
pub use error::{CryptoError, Result};
pub use key::{FileKey, Kek, MetaKey, RootKey};
pub use nonce::NonceSource;
pub use record::{NameHasher, RecordSealer};
