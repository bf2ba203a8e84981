//! The subcommands.

mod compare;
mod control;
mod health;
mod identity;
mod lab;
mod measure;
mod report;

pub(crate) use compare::Compare;
pub(crate) use control::Control;
pub(crate) use health::Health;
pub(crate) use identity::Identity;
pub(crate) use lab::Lab;
pub(crate) use measure::{Http, Instructions, Packet, Relay, Snat, Tls, Udp};
pub(crate) use report::Report;
