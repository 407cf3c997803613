//! Seeded runs of whole chains.
