//! A site: hosts and networks as the drawing of an installation has them.
//!
//! Unlike in a [`Lab`](super::Lab), every address is the caller's: those of the drawing.

use std::io;
use std::net::IpAddr;

use towpath_sys::link::Route;

use super::{Host, Switch, told, wire};

/// Who is in a network, and with which address and prefix length, as `("balancer", "192.168.10.1/24")`. A host that is there more than once
/// has one link with several addresses.
pub type Places<'a> = &'a [(&'a str, &'a str)];

/// Hosts by name, each in a namespace of its own. They end, with every process in them, when it is dropped.
#[derive(Debug)]
pub struct Site {
    hosts: Vec<Host>,
    addresses: Vec<Address>,
    _switches: Vec<Switch>,
}

/// One address of a host.
#[derive(Debug)]
struct Address {
    host: String,
    link: String,
    ip: IpAddr,
    prefix: u8,
}

impl Site {
    /// Builds it from its networks: the name of each, which is that of every link to it, and who is there. `InvalidInput` for an address that is
    /// none, `PermissionDenied` without the right to create namespaces: tests call [`ensure_privilege`](super::ensure_privilege) first.
    pub fn build(networks: &[(&str, Places<'_>)]) -> io::Result<Site> {
        let mut site = Site { hosts: Vec::new(), addresses: Vec::new(), _switches: Vec::new() };
        for (link, places) in networks {
            let mut names: Vec<&str> = Vec::new();
            for &(host, address) in *places {
                let (ip, prefix) = parse(address)?;
                site.addresses.push(Address { host: host.to_owned(), link: (*link).to_owned(), ip, prefix });
                if !names.contains(&host) {
                    names.push(host);
                }
                if !site.hosts.iter().any(|known| known.name == host) {
                    site.hosts.push(Host::create(host.to_owned(), 0)?);
                }
            }
            let members: Vec<&Host> = site.hosts.iter().filter(|host| names.contains(&host.name.as_str())).collect();
            let switch = wire(link, &members)?;
            site._switches.extend(switch);
        }
        for Address { host, link, ip, prefix } in &site.addresses {
            let mut links = site.host(host).links()?;
            links.add_address(link, *ip, *prefix)?;
            links.set_up(link)?;
        }
        Ok(site)
    }

    /// The host of that name.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[track_caller]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap_or_else(|| panic!("no host `{name}`"))
    }

    /// Every host.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Gives a host a route to a network (`"192.168.100.0/24"`, `"0.0.0.0/0"`) by a router on one of its own networks. `InvalidInput` for what is no
    /// address, `NotFound` for a router that is on none of them.
    pub fn route(&self, host: &str, to: &str, via: &str) -> io::Result<()> {
        let (destination, (gateway, _)) = (parse(to)?, parse(via)?);
        let near = self.addresses.iter().find(|own| own.host == host && holds(own.ip, own.prefix, gateway));
        let near = near.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("{host}: no network of its own holds {via}"))
        })?;
        let route = Route { destination, gateway: Some(gateway), link: near.link.clone() };
        let added = self.host(host).links()?.add_route(&route);
        added.map_err(|error| told(&error, &format!("{host}: route to {to} via {via}")))
    }
}

/// An address and its prefix length; the whole address where none is written.
fn parse(text: &str) -> io::Result<(IpAddr, u8)> {
    let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
    let parsed = ip.parse::<IpAddr>().ok().and_then(|ip| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(bits), |prefix| prefix.parse().ok().filter(|&prefix| prefix <= bits))?;
        Some((ip, prefix))
    });
    parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("`{text}` is no address")))
}

fn holds(network: IpAddr, prefix: u8, ip: IpAddr) -> bool {
    match (network, ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => {
            (network.to_bits() ^ ip.to_bits()).checked_shr(32 - u32::from(prefix)).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(ip)) => {
            (network.to_bits() ^ ip.to_bits()).checked_shr(128 - u32::from(prefix)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Privilege, ensure_privilege};
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream};

    #[test]
    fn a_site_has_the_addresses_and_routes_of_its_drawing() {
        if ensure_privilege(a_site_has_the_addresses_and_routes_of_its_drawing).unwrap() == Privilege::Delegated {
            return;
        }
        let networks: [(&str, Places<'_>); 2] = [
            ("inside", &[("desk", "192.168.10.100/24"), ("router", "192.168.10.1/24"), ("printer", "192.168.10.7/24")]),
            ("outside", &[("router", "10.25.1.1/16"), ("shop", "10.25.0.9/16"), ("shop", "10.25.0.10/16")]),
        ];
        let site = Site::build(&networks).unwrap();
        site.host("router").set_sysctl("net.ipv4.ip_forward", "1").unwrap();
        site.route("desk", "0.0.0.0/0", "192.168.10.1").unwrap();
        site.route("shop", "192.168.10.0/24", "10.25.1.1").unwrap();
        for at in ["10.25.0.9", "10.25.0.10"] {
            let at: SocketAddr = SocketAddr::new(at.parse().unwrap(), 0);
            let listener = site.host("shop").run(|| TcpListener::bind(at)).unwrap().unwrap();
            let to = listener.local_addr().unwrap();
            let stream = site.host("desk").run(|| TcpStream::connect(to)).unwrap().unwrap();
            assert_eq!(stream.local_addr().unwrap().ip().to_string(), "192.168.10.100");
        }
        assert_eq!(site.route("desk", "10.0.0.0/8", "10.25.1.1").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(site.route("desk", "10.0.0.0/33", "192.168.10.1").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
