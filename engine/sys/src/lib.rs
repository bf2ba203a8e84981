//! The kernel, for Towpath: sockets, rings, namespaces, interfaces, facts about the machine.
//!
//! This crate knows bytes and descriptors, not balancing, and it is the only one with `unsafe` code.

#![allow(unsafe_code)]

pub mod address;
mod errno;
pub mod ethtool;
pub mod event;
pub mod fast_path;
pub mod handover;
pub mod host;
pub mod instructions;
pub mod link;
mod mapping;
pub mod neighbour;
pub mod netns;
pub mod packet;
pub mod pages;
pub mod peer;
pub mod prefetch;
pub mod privilege;
pub mod process;
pub mod ring;
mod rtnetlink;
pub mod silence;
pub mod socket;
pub mod splice;
pub mod sysfs;
pub mod terminal;

pub use errno::Cause;
