//! The lab of a test, and the right to build it.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use towpath_perf::lab::{Lab, Places, Privilege, Site, Topology, ensure_privilege};

/// A lab in which a test runs; everything else it has from [`Lab`].
#[derive(Debug)]
pub struct TestLab {
    lab: Lab,
}

/// Runs `body` in a new lab. `test` is the test function itself: without the right to build networks it is run again, by its
/// name, in a user namespace.
///
/// # Panics
///
/// When neither is possible, with the reason; and when the test fails there.
pub fn in_lab<F: FnOnce()>(test: F, topology: Topology, servers: usize, body: impl FnOnce(&TestLab)) {
    if is_here(test) {
        let lab = Lab::build(topology, servers).unwrap_or_else(|error| panic!("the lab: {error}"));
        body(&TestLab { lab });
    }
}

/// As [`in_lab`], in a site of these networks.
///
/// # Panics
///
/// Likewise.
pub fn in_site<F: FnOnce()>(test: F, networks: &[(&str, Places<'_>)], body: impl FnOnce(&Site)) {
    if is_here(test) {
        body(&Site::build(networks).unwrap_or_else(|error| panic!("the site: {error}")));
    }
}

/// Whether the test is to run here: else it has run in a user namespace.
fn is_here<F: FnOnce()>(test: F) -> bool {
    match ensure_privilege(test) {
        Ok(Privilege::Delegated) => false,
        Ok(Privilege::Held) => true,
        Err(error) => panic!("{error}"),
    }
}

impl TestLab {
    /// Gives the balancer one more IPv4 address in the clients' network, with this last number (from 100), and returns it.
    pub fn vip(&self, number: u8) -> Ipv4Addr {
        self.balancer_address(self.balancer().ipv4(), number)
    }

    /// The same for IPv6.
    pub fn vip6(&self, number: u16) -> Ipv6Addr {
        self.balancer_address6(self.balancer().ipv6(), number)
    }

    /// Gives the balancer one more IPv4 address in the servers' network, with this last number (from 100), and returns it.
    pub fn snat(&self, number: u8) -> Ipv4Addr {
        let port = self.balancer().ports().last().expect("a balancer has a network");
        self.balancer_address(port.ipv4, number)
    }

    /// The same for IPv6.
    pub fn snat6(&self, number: u16) -> Ipv6Addr {
        let port = self.balancer().ports().last().expect("a balancer has a network");
        self.balancer_address6(port.ipv6, number)
    }

    /// Cuts the cable between client and balancer and lays a new one: both interfaces `front` are gone, and there again with other numbers.
    pub fn renew_front(&self) {
        let (client, balancer) = (self.client(), self.balancer());
        balancer.links().expect("netlink").remove("front").expect("a cable to cut");
        let behind = File::open(balancer.network_file()).expect("the lab lives");
        client.links().expect("netlink").create_veth("front", "front", &behind).expect("a new cable");
        for host in [client, balancer] {
            let mut links = host.links().expect("netlink");
            links.add_address("front", host.ipv4().into(), 24).expect("an address");
            links.set_up("front").expect("a plug to put in");
        }
    }

    /// An IPv4 address in the clients' network that no host has, with this last number (from 100): for the packet plane.
    pub fn free_vip(&self, number: u8) -> Ipv4Addr {
        beside(self.balancer().ipv4(), number)
    }

    /// The same for IPv6.
    pub fn free_vip6(&self, number: u16) -> Ipv6Addr {
        beside6(self.balancer().ipv6(), number)
    }

    /// An IPv4 address in the servers' network that no host has, with this last number (from 100): for the packet plane.
    pub fn free_snat(&self, number: u8) -> Ipv4Addr {
        let port = self.balancer().ports().last().expect("a balancer has a network");
        beside(port.ipv4, number)
    }

    /// The same for IPv6.
    pub fn free_snat6(&self, number: u16) -> Ipv6Addr {
        let port = self.balancer().ports().last().expect("a balancer has a network");
        beside6(port.ipv6, number)
    }

    /// Gives the client one more IPv4 address, with this last number (from 100, and none of a VIP), and returns it.
    pub fn second_client(&self, number: u8) -> IpAddr {
        let [a, b, c, _] = self.client().ipv4().octets();
        let ip = IpAddr::from([a, b, c, number]);
        self.client().add_address(ip).unwrap_or_else(|error| panic!("client address {ip}: {error}"));
        ip
    }

    /// Lets every kernel of the lab buffer as much of a TCP stream as Linux does where nobody has set it otherwise: 6 MiB on
    /// their way in, 4 MiB on their way out. For sockets opened from now on.
    ///
    /// # Panics
    ///
    /// When a sysctl cannot be set.
    #[track_caller]
    pub fn limit_socket_buffers(&self) {
        for host in self.hosts() {
            for (key, bytes) in
                [("net.ipv4.tcp_rmem", "4096 131072 6291456"), ("net.ipv4.tcp_wmem", "4096 16384 4194304")]
            {
                host.set_sysctl(key, bytes).unwrap_or_else(|error| panic!("{} {key}: {error}", host.name()));
            }
        }
    }

    fn balancer_address(&self, neighbour: Ipv4Addr, number: u8) -> Ipv4Addr {
        let ip = beside(neighbour, number);
        self.balancer().add_address(ip.into()).unwrap_or_else(|error| panic!("balancer address {ip}: {error}"));
        ip
    }

    fn balancer_address6(&self, neighbour: Ipv6Addr, number: u16) -> Ipv6Addr {
        let ip = beside6(neighbour, number);
        self.balancer().add_address(ip.into()).unwrap_or_else(|error| panic!("balancer address {ip}: {error}"));
        ip
    }
}

impl Deref for TestLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

pub(crate) fn beside(neighbour: Ipv4Addr, number: u8) -> Ipv4Addr {
    let [a, b, c, _] = neighbour.octets();
    Ipv4Addr::new(a, b, c, number)
}

pub(crate) fn beside6(neighbour: Ipv6Addr, number: u16) -> Ipv6Addr {
    let mut segments = neighbour.segments();
    segments[7] = number;
    Ipv6Addr::from(segments)
}
