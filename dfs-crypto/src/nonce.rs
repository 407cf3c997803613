//! Nonces that never repeat under one key.
//!
//! A nonce is a random 64-bit write session and a 32-bit counter. The session is drawn when the process starts and again
//! before the counter ends; nothing that a restored backup could rewind takes part. Two sessions collide
//! with probability n²/2⁶⁵ for n sessions, and only matter if they seal under the same file's key.

use std::sync::{Mutex, PoisonError};

use crate::error::{CryptoError, Result, random};

pub const NONCE_SIZE_BYTES: usize = 12;

/// Thread-safe source of nonces for one process.
#[derive(Debug)]
pub struct NonceSource {
    state: Mutex<Session>,
}

#[derive(Debug)]
struct Session {
    id: [u8; 8],
    next: u32,
}

/// A run of consecutive nonces.
#[derive(Clone, Copy, Debug)]
pub struct NonceRange {
    session: [u8; 8],
    first: u32,
    count: u32,
}

impl NonceSource {
    pub fn new() -> Result<Self> {
        Ok(Self {
            state: Mutex::new(Session::draw()?),
        })
    }

    /// `count` nonces that nobody else gets.
    pub fn take(&self, count: u32) -> Result<NonceRange> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.next.checked_add(count).is_none() {
            *state = Session::draw()?;
        }
        let range = NonceRange {
            session: state.id,
            first: state.next,
            count,
        };
        state.next = state.next.checked_add(count).ok_or(CryptoError::Seal)?;
        Ok(range)
    }
}

impl Session {
    fn draw() -> Result<Self> {
        let mut id = [0; 8];
        random(&mut id)?;
        Ok(Self { id, next: 0 })
    }
}

impl NonceRange {
    /// The nonces of the range, in order.
    pub fn iter(self) -> impl Iterator<Item = [u8; NONCE_SIZE_BYTES]> {
        (0..self.count).map(move |at| {
            let mut nonce = [0; NONCE_SIZE_BYTES];
            nonce[..8].copy_from_slice(&self.session);
            nonce[8..].copy_from_slice(&self.first.wrapping_add(at).to_le_bytes());
            nonce
        })
    }

    #[cfg(test)]
    pub(crate) fn fixed(session: [u8; 8], first: u32, count: u32) -> Self {
        Self { session, first, count }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn no_nonce_twice_over_threads_and_sessions() {
        let source = Arc::new(NonceSource::new().unwrap());
        source.state.lock().unwrap().next = u32::MAX - 5000;
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let source = Arc::clone(&source);
                std::thread::spawn(move || {
                    (0..1000)
                        .flat_map(|n| source.take(n % 7).unwrap().iter().collect::<Vec<_>>())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }
}
