//! Where a case plays: hosts, an origin, and a subject in between.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use towpath_config::model::{Forwarding, Plane};
use towpath_core::packet::Family;
use towpath_sys::link::Route;
use towpath_sys::neighbour::Neighbours;
use towpath_sys::process::Child;
use towpath_sys::socket::Transport;

use super::scale::churn::CLIENTS as CHURN_CLIENTS;
use super::{Accounting, Case, Course, Options, Place};
use crate::crowd;
use crate::lab::{Host, Lab, Steering, Topology};
use crate::load::{Work, origin};
use crate::peers::{Kind, Pool, Running, Setting, Subject, TlsSetting, route_packets};

/// Where clients connect to, on their network: an address that only the balancer has.
const VIP_NUMBER: u8 = 100;

/// Port of the VIP. Nothing else is on these hosts.
const SERVICE_PORT: u16 = 8080;

/// The same where TLS is ended.
const TLS_PORT: u16 = 8443;

/// Port of the origin.
const ORIGIN_PORT: u16 = 7000;

/// The first source address of a pool, on the servers' network; the others follow.
const POOL_NUMBER: u8 = 101;

/// Ports for the kernel to choose from.
const ALL_PORTS: &str = "1024 65535";

/// The first of them.
const FIRST_PORT: u16 = 1024;

/// Source addresses of the packet plane where the course does not say how many, each with all its ports: more than the connections
/// of a turn, those included whose flow is remembered after its end.
const PACKET_POOL: u8 = 16;

/// How often the client's kernel asks for a neighbour that does not answer, in milliseconds: a subject may have just started.
const NEIGHBOUR_RETRY_MS: &str = "20";

/// A server without a kernel, on the servers' network; behind the same number on the clients' network are clients without one.
const PEER_NUMBER: u8 = 50;

/// Flows that a subject has room for besides those that are asked for, as far as those are few.
const FLOWS_SPARE: usize = 4096;

/// Where nobody listens: a datagram to it makes the kernel ask for its neighbour.
const DISCARD_PORT: u16 = 9;

/// How long a program may take until it serves.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks at whether it serves yet.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long the end of a crashing subject may come after what its clients saw of it.
const CRASH_DELAY: Duration = Duration::from_millis(300);

/// Connections from which on an origin is a process of its own, for the sake of descriptors.
const APART_FROM: usize = 4_000;

/// See the module.
pub(super) struct Stage {
    /// None across a wire.
    lab: Option<Lab>,
    setting: Setting,
}

/// Who answers.
pub(super) enum Origin {
    /// A process on the server.
    Apart(Child),
    /// The client's threads, each on one of these, which saves the switches between client and origin.
    Beside(Vec<TcpListener>, Vec<UdpSocket>),
    /// Somebody who is not ours.
    Elsewhere,
    /// A process that others are answered by as well.
    Shared(u32),
}

impl Stage {
    /// Builds what a subject needs for a case.
    pub(super) fn set(case: &Case, subject: &Subject, options: &Options) -> io::Result<Stage> {
        let transport = case.course.transport();
        let cpu = options.pins.balancer;
        let plane = if subject.kind == Kind::Towpath { case.plane } else { Plane::Stream };
        if let Place::Wire(target) = options.place {
            let forwarding = case.mode.forwarding;
            let setting = Setting {
                listen: target,
                server: target,
                cpu,
                transport,
                plane,
                forwarding,
                flows: None,
                pool: None,
                is_routed: false,
                tls: None,
                http: None,
            };
            return Ok(Stage { lab: None, setting });
        }
        let lab = Lab::build(Topology::TwoArm, 1)?;
        let vip = beside(lab.client(), case.mode.family, VIP_NUMBER);
        let on_back = |number| beside(lab.server(1), case.mode.family, number);
        let pool_of = |addresses: u8, ports| {
            let addresses = (0..addresses).map(|n| on_back(POOL_NUMBER + n)).collect();
            Some(Pool { addresses, ports })
        };
        let pool = match (&case.course, plane) {
            _ if case.mode.forwarding != Forwarding::FullNat => None,
            (Course::Scale { addresses, .. }, _) => pool_of(*addresses, FIRST_PORT..=u16::MAX),
            (Course::Snat { addresses, ports }, _) => pool_of(*addresses, ports.clone()),
            (Course::Churn { .. }, _) | (_, Plane::Packet) => pool_of(PACKET_POOL, FIRST_PORT..=u16::MAX),
            (_, Plane::Stream) => None,
        };
        // The client is to be no ceiling: every port, and none in TIME_WAIT from the phase before.
        lab.client().set_sysctl("net.ipv4.ip_local_port_range", ALL_PORTS)?;
        lab.client().set_sysctl("net.ipv4.tcp_max_tw_buckets", "0")?;
        if pool.is_none() {
            // As HAProxy's and nginx's own advice on many connections has it.
            lab.balancer().set_sysctl("net.ipv4.ip_local_port_range", ALL_PORTS)?;
        }
        match plane {
            // Its addresses are its own: the kernel has none of them.
            Plane::Packet => {
                for family in ["ipv4", "ipv6"] {
                    let key = format!("net.{family}.neigh.{}.retrans_time_ms", lab.client().ports()[0].link);
                    lab.client().set_sysctl(&key, NEIGHBOUR_RETRY_MS)?;
                }
            }
            Plane::Stream => {
                let own = pool.iter().flat_map(|pool| &pool.addresses).chain([&vip]);
                own.copied().try_for_each(|ip| lab.balancer().add_address(ip))?;
            }
        }
        // Peers without a kernel have a server's address that no kernel has, and a network of clients behind another.
        let crowd = match case.course {
            Course::Churn { .. } => Some(CHURN_CLIENTS),
            Course::Scale { connections, .. } => Some(connections),
            _ => None,
        };
        let (server, flows) = match crowd {
            Some(clients) => {
                let gateway = Some(crowd_gateway(&lab));
                let (destination, link) = (crowd::NETWORK_V4, lab.client().ports()[0].link.clone());
                lab.balancer().links()?.add_route(&Route { destination, gateway, link })?;
                (on_back(PEER_NUMBER), Some(clients + clients / 16 + FLOWS_SPARE))
            }
            None => (own_address(lab.server(1), case.mode.family), None),
        };
        lab.steer(match case.accounting {
            Accounting::Plain => Steering::Off,
            Accounting::Steered => Steering::ByHost { balancer: cpu, others: &options.pins.client },
        })?;
        let setting = Setting {
            listen: SocketAddr::new(vip, SERVICE_PORT),
            server: SocketAddr::new(server, ORIGIN_PORT),
            cpu,
            transport,
            plane,
            forwarding: case.mode.forwarding,
            flows,
            pool,
            is_routed: case.mode.is_routed,
            tls: case.tls.map(|terms| TlsSetting {
                listen: SocketAddr::new(vip, TLS_PORT),
                key: terms.key,
                reencrypts: terms.reencrypts,
                pool_cpus: case.course.pool_cpus(options),
            }),
            http: case.http.map(|web| web.connections),
        };
        let stage = Stage { lab: Some(lab), setting };
        if case.mode.is_routed {
            stage.lead_to_server()?;
        }
        Ok(stage)
    }

    /// Where clients go.
    pub(super) fn target(&self) -> SocketAddr {
        match &self.setting.tls {
            Some(tls) => tls.listen,
            None if self.setting.is_routed => self.setting.server,
            None => self.setting.listen,
        }
    }

    /// Shows the client the way to the servers' network.
    fn lead_to_server(&self) -> io::Result<()> {
        let lab = self.lab()?;
        let (client, balancer) = (lab.client(), lab.balancer());
        let (network, prefix, gateway) = match self.setting.server.ip() {
            IpAddr::V4(_) => (beside(lab.server(1), Family::V4, 0), 24, IpAddr::from(balancer.ipv4())),
            IpAddr::V6(_) => (beside(lab.server(1), Family::V6, 0), 64, IpAddr::from(balancer.ipv6())),
        };
        let link = client.ports()[0].link.clone();
        client.links()?.add_route(&Route { destination: (network, prefix), gateway: Some(gateway), link })
    }

    /// The hosts. Fails across a wire, where there are none of ours.
    pub(super) fn lab(&self) -> io::Result<&Lab> {
        self.lab.as_ref().ok_or_else(|| io::Error::other("no lab across a wire"))
    }

    pub(super) fn setting(&self) -> &Setting {
        &self.setting
    }

    /// Opens the origin for a case that has `threads` clients.
    pub(super) fn open_origin(&self, case: &Case, threads: usize, options: &Options) -> io::Result<Origin> {
        let Some(lab) = &self.lab else { return Ok(Origin::Elsewhere) };
        let (server, address) = (lab.server(1), self.setting.server);
        let connections = match case.course {
            Course::Load { work: Work::KeepAlive { connections, idle, .. }, .. } => connections + idle,
            Course::Idle
            | Course::Ceiling
            | Course::Churn { .. }
            | Course::InMemory(_)
            | Course::Lease { .. }
            | Course::Load { .. }
            | Course::RoundTrip
            | Course::Scale { .. } => 0,
            Course::Isolation { .. } | Course::Memory { .. } | Course::Snat { .. } => usize::MAX,
        };
        if connections >= APART_FROM {
            await_nobody(server, address, Transport::Tcp)?;
            let mut command = Command::new(&options.program);
            command.arg("origin").arg(address.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
            if case.security().origin {
                command.arg("--tls");
            } else if case.http.is_some() {
                command.arg("--web");
            }
            let child = server.spawn_on(&options.pins.client, command)?;
            await_listening(server, address, Transport::Tcp, || Ok(()))
                .map_err(|error| io::Error::new(error.kind(), format!("the origin is {error}")))?;
            return Ok(Origin::Apart(child));
        }
        server.run(|| match self.setting.transport {
            Transport::Tcp => {
                let listeners: io::Result<_> = (0..threads).map(|_| origin::listen(address)).collect();
                Ok(Origin::Beside(listeners?, Vec::new()))
            }
            Transport::Udp => {
                let sockets: io::Result<_> = (0..threads).map(|_| origin::bind(address)).collect();
                Ok(Origin::Beside(Vec::new(), sockets?))
            }
        })?
    }

    /// Starts a subject and waits until it serves.
    pub(super) fn start(&self, subject: &Subject) -> io::Result<Option<Running>> {
        let Some(lab) = &self.lab else { return Ok(None) };
        await_nobody(lab.balancer(), self.setting.listen, self.setting.transport)?;
        // A burst of first packets would wait for these, and what found no room to wait for its repetition a second later.
        let family = if self.setting.listen.is_ipv4() { Family::V4 } else { Family::V6 };
        for host in [lab.client(), lab.server(1)] {
            await_neighbour(lab.balancer(), own_address(host, family), || Ok(()))?;
        }
        let mut running = subject.start(lab.balancer(), &self.setting)?;
        let Setting { listen, transport, plane, .. } = self.setting;
        let served = match plane {
            _ if !running.has_process() => Ok(()),
            Plane::Packet => await_neighbour(lab.client(), listen.ip(), || running.ensure_alive()),
            Plane::Stream if subject.kind.relays_plain() => {
                await_listening(lab.balancer(), listen, transport, || running.ensure_alive())
            }
            Plane::Stream => Ok(()),
        };
        let served = served.and_then(|()| match &self.setting.tls {
            Some(tls) => await_listening(lab.balancer(), tls.listen, transport, || running.ensure_alive()),
            None => Ok(()),
        });
        served.map_err(|error| io::Error::new(error.kind(), format!("{error}; it said:\n{}", running.said())))?;
        Ok(Some(running))
    }

    /// Ends a subject, after checking that it has not ended by itself.
    pub(super) fn stop(&self, subject: &Subject, running: Option<Running>) -> io::Result<()> {
        match (&self.lab, running) {
            (Some(lab), Some(running)) => subject.stop(lab.balancer(), &self.setting, running),
            _ => Ok(()),
        }
    }

    /// Does work while clients reach the server without a subject, through the kernel of its host; told where the server is then.
    pub(super) fn routed<T>(&self, work: impl FnOnce(SocketAddr) -> io::Result<T>) -> io::Result<T> {
        let balancer = self.lab()?.balancer();
        self.lead_to_server()?;
        route_packets(balancer, "1")?;
        let done = work(self.setting.server);
        route_packets(balancer, "0")?;
        done
    }

    /// Starts work on a thread where clients are.
    pub(super) fn start_client<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<thread::JoinHandle<io::Result<T>>> {
        match &self.lab {
            Some(lab) => lab.client().start(work),
            None => thread::Builder::new().name("client".into()).spawn(|| Ok(work())),
        }
    }

    /// As [`Stage::start_client`], and waits for it.
    pub(super) fn run_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match &self.lab {
            Some(lab) => lab.client().run(work),
            None => Ok(work()),
        }
    }
}

/// The reason for what a client saw of a subject: a crash comes before all else, then what the subject says.
pub(super) fn explain(error: io::Error, running: &mut Option<Running>) -> io::Error {
    let Some(running) = running else { return error };
    if let Err(crash) = running.ensure_alive_for(CRASH_DELAY) {
        return crash;
    }
    let said = running.said();
    let told = [("the subject said", Some(said)), ("its status is", running.status())];
    told.into_iter().fold(error, |error, (what, words)| match words.as_deref() {
        None | Some("") => error,
        Some(words) => io::Error::new(error.kind(), format!("{error}; {what}:\n{words}")),
    })
}

/// Waits until somebody listens there. A connection to find out would be one that the subject carries.
fn await_listening(
    host: &Host,
    address: SocketAddr,
    transport: Transport,
    ensure_alive: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let late = format!("not listening at {address} after {START_DEADLINE:?}");
    await_until(|| is_listening(host, address, transport), ensure_alive, late)
}

/// Waits until somebody on a link of `host` answers for an address: a packet plane does so once it serves.
fn await_neighbour(host: &Host, ip: IpAddr, ensure_alive: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let late = format!("nobody answers for {ip} after {START_DEADLINE:?}");
    await_until(
        || {
            host.run(|| {
                let any: IpAddr =
                    if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                UdpSocket::bind((any, 0))?.send_to(&[0], (ip, DISCARD_PORT))?;
                Ok(Neighbours::open()?.tables()?.neighbours.iter().any(|neighbour| neighbour.ip == ip))
            })?
        },
        ensure_alive,
        late,
    )
}

/// Behind which clients without a kernel are: an address that no kernel has.
pub(super) fn crowd_gateway(lab: &Lab) -> IpAddr {
    beside(lab.client(), Family::V4, PEER_NUMBER)
}

/// Address `number` of the first network of a host.
fn beside(host: &Host, family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => {
            let [a, b, c, _] = host.ipv4().octets();
            [a, b, c, number].into()
        }
        Family::V6 => {
            let [a, b, c, d, ..] = host.ipv6().segments();
            [a, b, c, d, 0, 0, 0, number.into()].into()
        }
    }
}

fn own_address(host: &Host, family: Family) -> IpAddr {
    match family {
        Family::V4 => host.ipv4().into(),
        Family::V6 => host.ipv6().into(),
    }
}

/// Waits until nobody listens there any more: the kernel takes the ring of a process apart after its end, and until then the
/// listeners on it take connections, only to reset them.
fn await_nobody(host: &Host, address: SocketAddr, transport: Transport) -> io::Result<()> {
    let late = format!("somebody listens at {address}, still after {START_DEADLINE:?}");
    await_until(|| Ok(!is_listening(host, address, transport)?), || Ok(()), late)
}

fn await_until(
    is_so: impl Fn() -> io::Result<bool>,
    mut ensure_alive: impl FnMut() -> io::Result<()>,
    late: String,
) -> io::Result<()> {
    let deadline = Instant::now() + START_DEADLINE;
    while !is_so()? {
        ensure_alive()?;
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, late));
        }
        thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}

fn is_listening(host: &Host, address: SocketAddr, transport: Transport) -> io::Result<bool> {
    // proc_pid_net(5): local address in column 2, state in column 4: 0A is LISTEN; 07 is a UDP socket without a peer.
    let (file, state) = match transport {
        Transport::Tcp => ("tcp", "0A"),
        Transport::Udp => ("udp", "07"),
    };
    let (octets, file) = match address.ip() {
        IpAddr::V4(ip) => (ip.octets().to_vec(), file.to_owned()),
        IpAddr::V6(ip) => (ip.octets().to_vec(), format!("{file}6")),
    };
    // Words in the machine's own order.
    let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let local: String = words.map(|word| format!("{word:08X}")).collect();
    let local = format!("{local}:{:04X}", address.port());
    let table = host.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")))??;
    Ok(table.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next() == Some(&local) && columns.nth(1) == Some(state)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Privilege, ensure_privilege};
    use towpath_sys::socket::{ListenOptions, open_listener};

    #[test]
    fn a_listener_is_seen_and_only_where_it_is() {
        if ensure_privilege(a_listener_is_seen_and_only_where_it_is).unwrap() == Privilege::Delegated {
            return;
        }
        let lab = Lab::build(Topology::TwoArm, 1).unwrap();
        let host = lab.balancer();
        for ip in [IpAddr::from(host.ipv4()), IpAddr::from(host.ipv6())] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let address = SocketAddr::new(ip, 4000);
                assert!(!is_listening(host, address, transport).unwrap());
                let _open = host.run(|| open_listener(address, transport, &ListenOptions::default())).unwrap().unwrap();
                assert!(is_listening(host, address, transport).unwrap());
                assert!(!is_listening(host, SocketAddr::new(ip, 4001), transport).unwrap());
                assert!(!is_listening(lab.client(), address, transport).unwrap());
            }
        }
    }
}
