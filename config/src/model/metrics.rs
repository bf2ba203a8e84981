//! The part of the model that is about metrics.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

/// `[metrics]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// Where they are answered beside the control socket; `None` = nowhere.
    pub listen: Option<SocketAddr>,
    /// Networks whose addresses may ask, each with its prefix length; empty = everybody.
    pub from: Vec<(IpAddr, u8)>,
}
