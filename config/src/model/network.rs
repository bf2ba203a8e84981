//! The part of the model that is about links, bridges, routes and what is forwarded without a service.

use std::net::IpAddr;

use serde::Serialize;

use super::Source;

/// `[[bridge]]`: transparent mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bridge {
    /// Unique name, among interfaces and VLANs too.
    pub name: String,
    /// The links of its arms; no two bridges share one.
    pub arms: [String; 2],
    /// Own addresses, each with the prefix length of its network.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Whether frames of spanning tree pass.
    pub spanning_tree: bool,
}

/// `[[route]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StaticRoute {
    /// Destination network with its prefix length; 0 = everything of its family.
    pub to: (IpAddr, u8),
    /// Next hop, of the same family.
    pub via: IpAddr,
    /// Name of the interface that reaches it; `None` = the one whose network holds it.
    pub interface: Option<String>,
    /// Of several routes to one network the lowest wins.
    pub metric: u32,
}

/// `[router]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Router {
    /// Whether packets that belong to no service are forwarded.
    pub enabled: bool,
    /// Whether a packet must come in by an interface from which a route leads to its source.
    pub source_check: bool,
    /// What becomes of a packet that no rule names.
    pub policy: RuleAction,
    /// The first that fits decides.
    pub rules: Vec<RouterRule>,
}

/// `[[router.rule]]`: which packets, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouterRule {
    /// What becomes of them.
    pub action: RuleAction,
    /// Source networks, each with its prefix length; empty = any.
    pub from: Vec<(IpAddr, u8)>,
    /// Destination networks, likewise.
    pub to: Vec<(IpAddr, u8)>,
    /// Name of the interface that they come in by; `None` = any.
    pub from_interface: Option<String>,
    /// Name of the interface that they leave by; `None` = any.
    pub to_interface: Option<String>,
    /// Transport protocol.
    pub protocol: RuleProtocol,
    /// Ranges of destination ports, first and last; empty = any. Not empty only for protocols that have ports.
    pub ports: Vec<(u16, u16)>,
}

/// `action` of a rule, and the router's `policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    /// Forward.
    Allow,
    /// Drop, and count it.
    Deny,
}

/// `protocol` of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleProtocol {
    /// Every protocol.
    Any,
    /// ICMP and ICMPv6.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Default for Router {
    /// As without a `[router]`: nothing is forwarded.
    fn default() -> Router {
        Router { enabled: false, source_check: true, policy: RuleAction::Allow, rules: Vec::new() }
    }
}

/// `[[outbound_nat]]`: which flows that the router would forward leave from another address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutboundNat {
    /// Unique name.
    pub name: String,
    /// Networks of who opens them, each with its prefix length; never empty, and no network of everything.
    pub from: Vec<(IpAddr, u8)>,
    /// Networks of who they are to, likewise; empty = any.
    pub to: Vec<(IpAddr, u8)>,
    /// Of these, networks that are reached without; may be empty.
    pub except: Vec<(IpAddr, u8)>,
    /// Name of the interface that they leave by; `None` = any.
    pub interface: Option<String>,
    /// Where their addresses and ports come from: a pool, or [`Source::Facing`] for the address of `interface`.
    pub source: Source,
}

/// `[[interface]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Name of the link.
    pub name: String,
    /// Addresses that the kernel should have there, each with its prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Tagged networks on the link; no number twice.
    pub vlans: Vec<Vlan>,
}

/// `[[interface.vlan]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vlan {
    /// The number in its tag, 1 to 4,094.
    pub id: u16,
    /// Unique among interfaces, VLANs and bridges.
    pub name: String,
    /// Our own addresses there, each with its prefix length; never empty.
    pub addresses: Vec<(IpAddr, u8)>,
}
