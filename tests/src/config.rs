//! Configuration texts.

use std::net::{IpAddr, SocketAddr};

use crate::Host;

/// The first virtual service of a text or one more: `ports` as TOML, `keys` as lines of TOML, and servers that keep the port.
///
/// ```
/// use towpath_tests::service;
///
/// let text = service("web", [10, 88, 1, 100], "[80, 443]", "balance = \"round-robin\"", &[("one", [10, 88, 2, 11].into())]);
/// assert!(text.starts_with("[[service]]\nname = \"web\"\nvip = \"10.88.1.100\"\nports = [80, 443]\nbalance = "));
/// ```
pub fn service(name: &str, vip: impl Into<IpAddr>, ports: &str, keys: &str, servers: &[(&str, IpAddr)]) -> String {
    let vip = vip.into();
    let mut text = format!("[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nports = {ports}\n{keys}\n");
    for (name, address) in servers {
        text += &format!("[[service.server]]\nname = \"{name}\"\naddress = \"{address}\"\n");
    }
    text
}

/// The same on the packet plane.
pub fn packet_service(
    name: &str,
    vip: impl Into<IpAddr>,
    ports: &str,
    keys: &str,
    servers: &[(&str, IpAddr)],
) -> String {
    service(name, vip, ports, &format!("plane = \"packet\"\n{keys}"), servers)
}

/// The same with servers that have a port of their own.
pub fn service_to(
    name: &str,
    vip: impl Into<IpAddr>,
    ports: &str,
    keys: &str,
    servers: &[(&str, SocketAddr)],
) -> String {
    let mut text = service(name, vip, ports, keys, &[]);
    for (name, server) in servers {
        let (ip, port) = (server.ip(), server.port());
        text += &format!("[[service.server]]\nname = \"{name}\"\naddress = \"{ip}\"\nport = {port}\n");
    }
    text
}

/// These hosts at their IPv4 addresses, under their own names.
pub fn ipv4(hosts: &[Host]) -> Vec<(&str, IpAddr)> {
    hosts.iter().map(|host| (host.name(), host.ipv4().into())).collect()
}

/// These hosts at their IPv6 addresses, under their own names.
pub fn ipv6(hosts: &[Host]) -> Vec<(&str, IpAddr)> {
    hosts.iter().map(|host| (host.name(), host.ipv6().into())).collect()
}
