//! Packets: reading and rewriting frames.

pub mod checksum;
pub mod rewrite;
