//! Flows: what the packet plane remembers of a connection.

pub mod tcp;
pub mod udp;
