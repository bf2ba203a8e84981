//! A network of hosts on this machine: a client, a balancer and servers, each in a namespace of its own.
//!
//! ```text
//! one-arm                                   two-arm
//!
//! client ──┐                                client ── front ── balancer ── back ──┬── server-1
//! balancer ├── lan ── (switch)                                                    └── server-2 …
//! server-1 ┘                                a network of two hosts is a cable, of more a switch
//! ```
//!
//! A bridged lab is a two-arm one in which `back` has the addresses of `front`, the balancer's links have none, and nobody has a default route.
//!
//! On a host, the link is named as the network. Each network is an IPv4 /24 and an IPv6 /64 in which the hosts have the same
//! number: the balancer 1, the client 2, server-n 10 + n. Numbers from 100 are left for VIPs and SNAT pools, which whoever
//! uses the lab adds to the balancer.
//!
//! Nothing has a name outside: the lab ends, with every process in it, when it is dropped or this process ends.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;

use towpath_sys::link::{Links, Route, default_destination};
use towpath_sys::netns::Namespace;
use towpath_sys::packet::Tap;
use towpath_sys::sysfs::Sysfs;

pub use site::{Places, Site};
pub use towpath_sys::privilege::{Privilege, ensure as ensure_privilege};
pub use towpath_sys::process::Child;

mod site;

/// The most servers a lab has: their numbers stay below those left for VIPs.
pub const SERVERS_MAX: usize = 64;

/// What Linux comes with (Documentation/networking/ip-sysctl.rst), whatever this machine is set to: receive buffers of 32 MB let a few dozen
/// streams take all memory that TCP may have.
const TCP_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.tcp_rmem", "4096 131072 6291456"), ("net.ipv4.tcp_wmem", "4096 16384 4194304")];

const CONGESTION_CONTROL: &str = "net.ipv4.tcp_congestion_control";
/// Congestion controls, the best first, none of which paces by timers as BBR does. A namespace may have only what the machine allows everybody
/// (`net.ipv4.tcp_allowed_congestion_control`), and that need not name the first; Reno is always allowed (net/ipv4/tcp_cong.c).
const CONGESTION_CONTROLS: [&str; 2] = ["cubic", "reno"];

/// How the hosts are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Everybody on one network, `lan`.
    OneArm,
    /// The client and the balancer on `front`, the balancer and the servers on `back`; the servers' default route is the balancer.
    TwoArm,
    /// As `TwoArm`, but all in one network that the balancer's two links are to join; those have no addresses, and what its [`Port`]s say is nobody's.
    Bridged,
}

/// The hosts of a lab.
#[derive(Debug)]
pub struct Lab {
    client: Host,
    balancer: Host,
    servers: Vec<Host>,
    switches: Vec<Switch>,
}

/// Whose CPU does the work of receiving on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering<'a> {
    /// The sender's: a packet over veth goes up the other side's stack inside the call that sends it.
    Off,
    /// The receiver's, by receive packet steering, as with a network card that interrupts the CPU of its host. Each hop costs an
    /// interrupt between CPUs.
    ByHost {
        /// CPU of the balancer.
        balancer: usize,
        /// CPUs of everybody else: client, servers and switches.
        others: &'a [usize],
    },
}

/// What connects more than two hosts.
#[derive(Debug)]
struct Switch {
    namespace: Namespace,
    ports: Vec<String>,
}

/// A host.
#[derive(Debug)]
pub struct Host {
    name: String,
    number: u8,
    namespace: Namespace,
    ports: Vec<Port>,
}

/// A host's place in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name of the network and of the host's link to it.
    pub link: String,
    /// The host's IPv4 address there, of a /24.
    pub ipv4: Ipv4Addr,
    /// The host's IPv6 address there, of a /64.
    pub ipv6: Ipv6Addr,
}

/// One network: its name, which is that of every link to it, and its number, which is part of every address in it.
#[derive(Clone, Copy)]
struct Network {
    name: &'static str,
    number: u8,
}

const LAN: Network = Network { name: "lan", number: 1 };
const FRONT: Network = Network { name: "front", number: 1 };
const BACK: Network = Network { name: "back", number: 2 };
const BACK_OF_FRONT: Network = Network { name: "back", number: 1 };

impl Network {
    fn ipv4(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, self.number, host)
    }

    fn ipv6(self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd88, 0, 0, u16::from(self.number), 0, 0, 0, u16::from(host))
    }
}

impl Lab {
    /// Builds a lab with `servers` servers. `PermissionDenied` without the right to create namespaces: tests call
    /// [`ensure_privilege`] first.
    pub fn build(topology: Topology, servers: usize) -> io::Result<Lab> {
        if servers > SERVERS_MAX {
            let message = format!("a lab of {servers} servers; it has room for {SERVERS_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut client = Host::create("client".into(), 2)?;
        let mut balancer = Host::create("balancer".into(), 1)?;
        let mut servers: Vec<Host> = (1..=servers)
            .map(|n| Host::create(format!("server-{n}"), 10 + u8::try_from(n).expect("n ≤ SERVERS_MAX")))
            .collect::<io::Result<_>>()?;
        let mut switches = Vec::new();
        match topology {
            Topology::OneArm => {
                let everybody: Vec<&mut Host> = [&mut client, &mut balancer].into_iter().chain(&mut servers).collect();
                switches.extend(connect(LAN, everybody)?);
            }
            Topology::TwoArm => {
                switches.extend(connect(FRONT, vec![&mut client, &mut balancer])?);
                let behind: Vec<&mut Host> = [&mut balancer].into_iter().chain(&mut servers).collect();
                switches.extend(connect(BACK, behind)?);
                for server in &servers {
                    server.route_by_default(BACK, 1)?;
                }
            }
            Topology::Bridged => {
                switches.extend(connect(FRONT, vec![&mut client, &mut balancer])?);
                let behind: Vec<&mut Host> = [&mut balancer].into_iter().chain(&mut servers).collect();
                switches.extend(connect(BACK_OF_FRONT, behind)?);
                let mut links = balancer.links()?;
                for port in &balancer.ports {
                    links.remove_address(&port.link, port.ipv4.into(), 24)?;
                    links.remove_address(&port.link, port.ipv6.into(), 64)?;
                }
            }
        }
        Ok(Lab { client, balancer, servers, switches })
    }

    /// The host that clients run on.
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// The host that the load balancer runs on.
    pub fn balancer(&self) -> &Host {
        &self.balancer
    }

    /// server-`n`, counted from 1.
    pub fn server(&self, n: usize) -> &Host {
        &self.servers[n - 1]
    }

    /// The servers in order.
    pub fn servers(&self) -> &[Host] {
        &self.servers
    }

    /// Has the CPUs of each host receive what is sent to it, or no longer so.
    pub fn steer(&self, steering: Steering<'_>) -> io::Result<()> {
        let masks = |host: &Host| match steering {
            Steering::Off => String::from("0"),
            Steering::ByHost { balancer, .. } if host.number == self.balancer.number => cpu_mask(&[balancer]),
            Steering::ByHost { others, .. } => cpu_mask(others),
        };
        for host in self.hosts() {
            let links: Vec<&str> = host.ports.iter().map(|port| port.link.as_str()).collect();
            steer_links(&host.namespace, &links, &masks(host))?;
        }
        for switch in &self.switches {
            let links: Vec<&str> = switch.ports.iter().map(String::as_str).collect();
            steer_links(&switch.namespace, &links, &masks(&self.client))?;
        }
        Ok(())
    }

    /// Every host: client, balancer, servers.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.client, &self.balancer].into_iter().chain(&self.servers)
    }
}

impl Host {
    fn create(name: String, number: u8) -> io::Result<Host> {
        let namespace = Namespace::create().map_err(|error| told(&error, &format!("create host `{name}`")))?;
        let host = Host { name, number, namespace, ports: Vec::new() };
        TCP_SYSCTLS.iter().try_for_each(|(key, value)| host.set_sysctl(key, value))?;
        let [best, always] = CONGESTION_CONTROLS;
        host.set_sysctl(CONGESTION_CONTROL, best).or_else(|_| host.set_sysctl(CONGESTION_CONTROL, always))?;
        Ok(host)
    }

    /// Its name: `client`, `balancer`, `server-1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its places in the networks. The balancer of a two-arm lab has `front` first.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// A file that stands for its network while the lab lives, as `nsenter --net=FILE` takes it.
    pub fn network_file(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_fd().as_raw_fd()))
    }

    /// Its place in the network of that name.
    pub fn port(&self, network: &str) -> io::Result<&Port> {
        self.ports.iter().find(|port| port.link == network).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("{}: no link to a network `{network}`", self.name))
        })
    }

    /// Its IPv4 address in its first network.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ports[0].ipv4
    }

    /// Its IPv6 address in its first network.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.ports[0].ipv6
    }

    /// Runs `work` on a thread of this host and returns its result. Sockets that it opens stay on the host.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.namespace.run(work)
    }

    /// Its network, for whoever is to enter it.
    pub fn network(&self) -> io::Result<Namespace> {
        self.namespace.share()
    }

    /// Starts a program on this host. It and all it starts are killed when the returned value is dropped.
    pub fn spawn(&self, command: Command) -> io::Result<Child> {
        self.namespace.spawn(command)
    }

    /// As [`Host::spawn`], on these CPUs only.
    pub fn spawn_on(&self, cpus: &[usize], command: Command) -> io::Result<Child> {
        self.namespace.spawn_on(cpus, command)
    }

    /// Runs `work` on a thread of this host without waiting for it.
    pub fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<std::thread::JoinHandle<io::Result<T>>> {
        let namespace = self.namespace.share()?;
        std::thread::Builder::new().name(self.name.clone()).spawn(move || {
            namespace.enter()?;
            Ok(work())
        })
    }

    /// Pulls the plug: the link goes down for this host and for whoever is at its other end.
    pub fn link_down(&self, link: &str) -> io::Result<()> {
        self.links()?.set_down(link)
    }

    /// Puts the plug back. Addresses come back, but routes over the link have to be added again.
    pub fn link_up(&self, link: &str) -> io::Result<()> {
        self.links()?.set_up(link)
    }

    /// Adds an address on the network it belongs to, with that network's prefix; on loopback when it belongs to none.
    pub fn add_address(&self, ip: IpAddr) -> io::Result<()> {
        let home = self.ports.iter().find(|port| match ip {
            IpAddr::V4(ip) => port.ipv4.octets()[..3] == ip.octets()[..3],
            IpAddr::V6(ip) => port.ipv6.octets()[..8] == ip.octets()[..8],
        });
        let (link, prefix) = match (home, ip) {
            (Some(port), IpAddr::V4(_)) => (port.link.as_str(), 24),
            (Some(port), IpAddr::V6(_)) => (port.link.as_str(), 64),
            (None, IpAddr::V4(_)) => ("lo", 32),
            (None, IpAddr::V6(_)) => ("lo", 128),
        };
        self.links()?.add_address(link, ip, prefix)
    }

    /// Captures what passes over a link from now on.
    pub fn capture(&self, link: &str) -> io::Result<Tap> {
        self.run(|| Tap::open(link))?
    }

    /// Links, addresses and routes of this host.
    pub fn links(&self) -> io::Result<Links> {
        self.namespace.links()
    }

    /// Sets a sysctl of this host's network, as in `net.ipv4.tcp_timestamps`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> io::Result<()> {
        let path = sysctl_path(key);
        self.run(|| fs::write(&path, value))?.map_err(|error| told(&error, &format!("{}: {key} = {value}", self.name)))
    }

    /// Reads a sysctl of this host's network.
    pub fn sysctl(&self, key: &str) -> io::Result<String> {
        let path = sysctl_path(key);
        let text = self.run(|| fs::read_to_string(&path))?;
        Ok(text.map_err(|error| told(&error, &format!("{}: {key}", self.name)))?.trim().to_owned())
    }

    fn route_by_default(&self, network: Network, number: u8) -> io::Result<()> {
        let mut links = self.links()?;
        for gateway in [IpAddr::V4(network.ipv4(number)), IpAddr::V6(network.ipv6(number))] {
            links.add_route(&Route {
                destination: default_destination(gateway),
                gateway: Some(gateway),
                link: network.name.to_owned(),
            })?;
        }
        Ok(())
    }

    /// Gives the link that has been created for a network its addresses and sets it up.
    fn join(&mut self, network: Network) -> io::Result<()> {
        let port =
            Port { link: network.name.to_owned(), ipv4: network.ipv4(self.number), ipv6: network.ipv6(self.number) };
        let mut links = self.links()?;
        links.add_address(&port.link, port.ipv4.into(), 24)?;
        links.add_address(&port.link, port.ipv6.into(), 64)?;
        links.set_up(&port.link)?;
        self.ports.push(port);
        Ok(())
    }
}

/// Connects hosts and gives them their addresses; the switch between them, if there is one, is returned.
fn connect(network: Network, mut hosts: Vec<&mut Host>) -> io::Result<Option<Switch>> {
    let switch = wire(network.name, &hosts.iter().map(|host| &**host).collect::<Vec<_>>())?;
    for host in &mut hosts {
        host.join(network)?;
    }
    Ok(switch)
}

/// Lays the links of a network, of its name on every host: a cable between two, a switch between any other number.
fn wire(network: &str, hosts: &[&Host]) -> io::Result<Option<Switch>> {
    if let [left, right] = hosts {
        left.links()?.create_veth(network, network, &right.namespace)?;
        return Ok(None);
    }
    let namespace = Namespace::create()?;
    let mut links = namespace.links()?;
    links.create_bridge(network)?;
    links.set_up(network)?;
    for host in hosts {
        links.create_veth(&host.name, network, &host.namespace)?;
        links.enslave(&host.name, network)?;
        links.set_up(&host.name)?;
    }
    Ok(Some(Switch { namespace, ports: hosts.iter().map(|host| host.name.clone()).collect() }))
}

/// Names the CPUs that receive on these links of a namespace; a veth has one queue unless asked for more.
fn steer_links(namespace: &Namespace, links: &[&str], mask: &str) -> io::Result<()> {
    let sysfs = Sysfs::of(namespace)?;
    links.iter().try_for_each(|link| sysfs.write(&format!("class/net/{link}/queues/rx-0/rps_cpus"), mask))
}

/// CPUs as the kernel reads them: hexadecimal, words of 32 bits with commas between (Documentation/core-api/printk-formats.rst).
fn cpu_mask(cpus: &[usize]) -> String {
    let last = cpus.iter().copied().max().unwrap_or(0);
    let word =
        |number: usize| cpus.iter().filter(|&&cpu| cpu / 32 == number).fold(0_u32, |word, cpu| word | 1 << (cpu % 32));
    let words: Vec<String> = (0..=last / 32).rev().map(|number| format!("{:08x}", word(number))).collect();
    words.join(",")
}

fn sysctl_path(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

fn told(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn reaches(from: &Host, to: &Host, at: IpAddr) {
        let listener = to.run(|| TcpListener::bind((at, 0))).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let stream = from.run(|| TcpStream::connect_timeout(&address, DEADLINE)).unwrap();
        assert!(stream.is_ok(), "{} to {} at {at}: {stream:?}", from.name(), to.name());
    }

    #[test]
    fn in_one_arm_everybody_reaches_everybody_at_once() {
        if ensure_privilege(in_one_arm_everybody_reaches_everybody_at_once).unwrap() == Privilege::Delegated {
            return;
        }
        let lab = Lab::build(Topology::OneArm, 3).unwrap();
        for from in lab.hosts() {
            for to in lab.hosts() {
                reaches(from, to, to.ipv4().into());
                reaches(from, to, to.ipv6().into());
            }
        }
    }

    #[test]
    fn every_host_has_a_congestion_control_without_pacing() {
        if ensure_privilege(every_host_has_a_congestion_control_without_pacing).unwrap() == Privilege::Delegated {
            return;
        }
        let lab = Lab::build(Topology::OneArm, 1).unwrap();
        for host in lab.hosts() {
            let control = host.sysctl(CONGESTION_CONTROL).unwrap();
            assert!(CONGESTION_CONTROLS.contains(&control.as_str()), "{}: {control}", host.name());
        }
    }

    #[test]
    fn in_two_arms_only_the_balancer_reaches_both_sides() {
        if ensure_privilege(in_two_arms_only_the_balancer_reaches_both_sides).unwrap() == Privilege::Delegated {
            return;
        }
        let lab = Lab::build(Topology::TwoArm, 2).unwrap();
        let (client, balancer) = (lab.client(), lab.balancer());
        let vip = IpAddr::from([10, 88, 1, 100]);
        balancer.add_address(vip).unwrap();
        reaches(client, balancer, vip);
        for server in lab.servers() {
            reaches(balancer, server, server.ipv4().into());
            reaches(balancer, server, server.ipv6().into());
            reaches(server, balancer, balancer.port("back").unwrap().ipv4.into());
        }
        let beyond = SocketAddr::from((lab.server(1).ipv4(), 9));
        let lost = client.run(|| TcpStream::connect_timeout(&beyond, DEADLINE)).unwrap().unwrap_err();
        assert_eq!(lost.kind(), io::ErrorKind::NetworkUnreachable);
    }

    #[test]
    fn a_pulled_plug_cuts_one_host_off() {
        if ensure_privilege(a_pulled_plug_cuts_one_host_off).unwrap() == Privilege::Delegated {
            return;
        }
        let lab = Lab::build(Topology::OneArm, 2).unwrap();
        let client = lab.client();
        lab.server(1).link_down("lan").unwrap();
        let gone = SocketAddr::from((lab.server(1).ipv4(), 9));
        let lost = client.run(|| TcpStream::connect_timeout(&gone, Duration::from_millis(50))).unwrap().unwrap_err();
        assert!(matches!(lost.kind(), io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable), "{lost}");
        reaches(client, lab.server(2), lab.server(2).ipv4().into());
        lab.server(1).link_up("lan").unwrap();
        reaches(client, lab.server(1), lab.server(1).ipv4().into());
    }

    #[test]
    fn a_mask_has_a_bit_for_each_cpu() {
        assert_eq!(cpu_mask(&[0]), "00000001");
        assert_eq!(cpu_mask(&[1, 31]), "80000002");
        assert_eq!(cpu_mask(&[33, 0, 95]), "80000000,00000002,00000001");
    }

    /// Packets that a CPU has taken up the stack, from the line of its number (net/core/net-procfs.c, softnet_seq_show).
    fn packets_processed(cpu: usize) -> u64 {
        let text = fs::read_to_string("/proc/net/softnet_stat").unwrap();
        let fields = text.lines().map(|line| {
            line.split_whitespace().map(|field| u64::from_str_radix(field, 16).unwrap()).collect::<Vec<_>>()
        });
        fields.into_iter().find(|fields| fields[12] == cpu as u64).unwrap()[0]
    }

    #[test]
    fn steering_moves_receiving_to_the_receivers_cpu() {
        if ensure_privilege(steering_moves_receiving_to_the_receivers_cpu).unwrap() == Privilege::Delegated {
            return;
        }
        const PACKETS: u64 = 20_000;
        let cpus = towpath_sys::host::available_cpus().unwrap();
        let [balancer, .., client] = cpus.as_slice() else { return };
        let lab = Lab::build(Topology::TwoArm, 2).unwrap();
        let mask = |host: &Host, link: &str| {
            Sysfs::of(&host.namespace).unwrap().read(&format!("class/net/{link}/queues/rx-0/rps_cpus")).unwrap()
        };
        lab.steer(Steering::ByHost { balancer: *balancer, others: &[*client] }).unwrap();
        for host in lab.hosts() {
            let cpu = if host.name() == "balancer" { *balancer } else { *client };
            for port in host.ports() {
                let read = mask(host, &port.link);
                assert_eq!(u128::from_str_radix(&read.replace(',', ""), 16).unwrap(), 1 << cpu, "{}", host.name());
            }
        }
        // Nobody listens: the datagrams only have to come up the stack.
        let target = SocketAddr::from((lab.balancer().ipv4(), 9));
        let send = || {
            let before = packets_processed(*balancer);
            lab.client()
                .run(|| {
                    towpath_sys::host::pin_thread(&[*client]).unwrap();
                    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap();
                    for _ in 0..PACKETS {
                        socket.send_to(b"datagram", target).unwrap();
                    }
                })
                .unwrap();
            packets_processed(*balancer) - before
        };
        // Others use this machine, too, and their packets are in both counts; the backlog of the receiver may overflow. So the
        // difference has to show in one try of a few.
        let shown = (0..20).any(|_| {
            lab.steer(Steering::ByHost { balancer: *balancer, others: &[*client] }).unwrap();
            let steered = send();
            lab.steer(Steering::Off).unwrap();
            let plain = send();
            steered > plain + PACKETS / 4
        });
        assert!(shown, "the balancer's CPU receives no more packets when steered");
        assert_eq!(mask(lab.balancer(), "front").replace([',', '0'], ""), "");
    }

    #[test]
    fn a_sysctl_stays_on_its_host() {
        if ensure_privilege(a_sysctl_stays_on_its_host).unwrap() == Privilege::Delegated {
            return;
        }
        let lab = Lab::build(Topology::TwoArm, 1).unwrap();
        lab.balancer().set_sysctl("net.ipv4.tcp_timestamps", "0").unwrap();
        assert_eq!(lab.balancer().sysctl("net.ipv4.tcp_timestamps").unwrap(), "0");
        assert_eq!(lab.client().sysctl("net.ipv4.tcp_timestamps").unwrap(), "1");
        assert!(lab.client().set_sysctl("net.ipv4.no_such_knob", "0").is_err());
    }
}
