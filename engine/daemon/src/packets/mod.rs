//! What the packet plane needs of the machine: which addresses and ports it claims, its interfaces, and the network around them.

pub mod arms;
pub mod claims;
pub mod facing;
pub mod fast;
pub mod kernel;
mod neighbours;
pub mod routes;
pub mod steering;
pub mod view;
mod watch;

pub(crate) use neighbours::way;
pub(crate) use watch::{NetworkOrders, NetworkWatch};
