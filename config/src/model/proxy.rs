//! The part of the model that is about the PROXY protocol.

use std::net::IpAddr;

use serde::Serialize;

/// `proxy_protocol`: what a server is told of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyTo {
    /// Nothing.
    #[default]
    None,
    /// A header of version 1.
    V1,
    /// A header of version 2.
    V2,
}

impl ProxyTo {
    /// The version of the header, if there is one.
    pub fn version(self) -> Option<ProxyVersion> {
        match self {
            ProxyTo::None => None,
            ProxyTo::V1 => Some(ProxyVersion::V1),
            ProxyTo::V2 => Some(ProxyVersion::V2),
        }
    }
}

/// Version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// A block of bytes, with more in it.
    V2,
}

/// `proxy_protocol_from` and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProxyFrom {
    /// Networks of the proxies, each with its prefix length; never empty. A header has to come from there.
    pub networks: Vec<(IpAddr, u8)>,
    /// How long a header may take.
    pub timeout_ms: u64,
    /// What becomes of clients that come from elsewhere.
    pub others: ProxyOthers,
}

/// `proxy_protocol_others`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyOthers {
    /// Their connections are reset.
    Refuse,
    /// They are clients like any, and what they send is theirs.
    Serve,
}
