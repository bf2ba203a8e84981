//! The kernel hands clients and frames to the worker that the steering function names: real reuseport groups on loopback, a real fanout
//! group at a veth pair.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use towpath_core::packet::Ip;
use towpath_core::random::SplitMix64;
use towpath_core::steering::frame::{FanoutRule, steer};
use towpath_core::steering::program::{fanout_program, reuseport_program};
use towpath_core::steering::{SteeringTable, vshard_of_client};
use towpath_sys::netns::Namespace;
use towpath_sys::packet::{BATCH_MAX, Instruction, Offload, PacketPorts, RingSettings, open};
use towpath_sys::privilege::{self, Privilege};
use towpath_sys::socket::{
    Family, ListenOptions, Transport, attach_reuseport_program, bind, connect, local_address, open_listener, tcp_socket,
};

const SEED: u32 = 0x70f7_a7b1;
const DEADLINE: Duration = Duration::from_secs(20);

/// One socket per worker on one port of `address`; the n-th belongs to worker n.
fn group(address: IpAddr, transport: Transport, workers: usize) -> (Vec<OwnedFd>, SocketAddr) {
    let options = ListenOptions::default();
    let first = open_listener(SocketAddr::new(address, 0), transport, &options).expect("a listener on loopback");
    let at = local_address(&first).expect("a bound socket has an address");
    let mut sockets = vec![first];
    sockets.extend((1..workers).map(|_| open_listener(at, transport, &options).expect("a further listener")));
    (sockets, at)
}

fn attach(sockets: &[OwnedFd], table: &SteeringTable) {
    let program: Vec<_> = reuseport_program(table, SEED).into_iter().map(Into::into).collect();
    attach_reuseport_program(&sockets[0], &program).expect("the kernel takes the program");
}

fn worker_of(table: &SteeringTable, client: SocketAddr) -> usize {
    table.worker_of(vshard_of_client(client.ip(), client.port(), SEED)).index()
}

/// Addresses to connect from: several of 127.0.0.0/8, so that the address takes part in the hash.
fn client_address(family_of: SocketAddr, number: u8) -> IpAddr {
    match family_of {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(127, 0, number % 5, 1 + number % 7)),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// How many of `clients` each worker is to get.
fn shares(table: &SteeringTable, clients: &[SocketAddr]) -> Vec<usize> {
    let mut shares = vec![0; table.workers()];
    clients.iter().for_each(|&client| shares[worker_of(table, client)] += 1);
    assert!(shares.iter().all(|&share| share > 0), "too few clients to tell: {shares:?}");
    shares
}

fn connect_from(source: IpAddr, to: SocketAddr) -> TcpStream {
    let connection = TcpStream::from(tcp_socket(Family::of(source)).expect("a descriptor is free"));
    connection.set_nonblocking(false).expect("an open socket");
    bind(&connection, SocketAddr::new(source, 0)).expect("a loopback address");
    connect(&connection, to).expect("somebody listens");
    connection
}

fn udp_clients_arrive_where_steering_says(address: IpAddr) {
    let (sockets, at) = group(address, Transport::Udp, 3);
    let clients: Vec<UdpSocket> = (0..240)
        .map(|number| UdpSocket::bind((client_address(at, number), 0)).expect("a client on loopback"))
        .collect();
    let from: Vec<SocketAddr> = clients.iter().map(|client| client.local_addr().expect("bound")).collect();
    let receivers: Vec<UdpSocket> =
        sockets.iter().map(|socket| socket.try_clone().expect("a descriptor is free").into()).collect();

    // The second table replaces the first one's program while the group is in use.
    let two = SteeringTable::even(2);
    for table in [two.remapped(3), two, SteeringTable::even(3)] {
        attach(&sockets, &table);
        let shares = shares(&table, &from);
        for client in &clients {
            client.send_to(b"who serves me?", at).expect("loopback takes it");
        }
        for (worker, (receiver, share)) in receivers.iter().zip(shares).enumerate() {
            receiver.set_nonblocking(false).expect("an open socket");
            receiver.set_read_timeout(Some(DEADLINE)).expect("an open socket");
            let mut arrived = HashSet::new();
            for _ in 0..share {
                let (_, client) = receiver.recv_from(&mut [0; 64]).expect("each datagram arrives at its worker");
                assert_eq!(worker_of(&table, client), worker, "{client} arrived at worker {worker}");
                arrived.insert(client);
            }
            assert_eq!(arrived.len(), share);
        }
        for receiver in &receivers {
            receiver.set_nonblocking(true).expect("an open socket");
            let rest = receiver.recv_from(&mut [0; 64]).expect_err("every datagram was read");
            assert_eq!(rest.kind(), ErrorKind::WouldBlock);
        }
    }
}

fn tcp_clients_arrive_where_steering_says(address: IpAddr) {
    const CLIENTS: u8 = 240;
    let table = SteeringTable::even(2).remapped(3);
    let (sockets, at) = group(address, Transport::Tcp, 3);
    attach(&sockets, &table);

    // A worker says by one byte who it is; the client compares. A worker that gets nobody waits for ever, but nobody waits for it.
    for (worker, socket) in sockets.into_iter().enumerate() {
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(false).expect("an open socket");
        thread::spawn(move || {
            for connection in listener.incoming() {
                connection.expect("accepted").write_all(&[worker as u8]).expect("the client waits for it");
            }
        });
    }
    let (answers, asked) = mpsc::channel();
    thread::spawn(move || {
        for number in 0..CLIENTS {
            let mut connection = connect_from(client_address(at, number), at);
            connection.set_read_timeout(Some(DEADLINE)).expect("an open socket");
            let mut worker = [0];
            connection.read_exact(&mut worker).expect("the worker answers");
            answers.send((connection.local_addr().expect("bound"), worker[0])).expect("the test still listens");
        }
    });

    let arrived: Vec<(SocketAddr, u8)> =
        (0..CLIENTS).map(|_| asked.recv_timeout(DEADLINE).expect("each client is served")).collect();
    for &(client, worker) in &arrived {
        assert_eq!(usize::from(worker), worker_of(&table, client), "{client} arrived at worker {worker}");
    }
    shares(&table, &arrived.into_iter().map(|(client, _)| client).collect::<Vec<_>>());
}

#[test]
fn udp_clients_over_ipv4_arrive_where_steering_says() {
    udp_clients_arrive_where_steering_says(IpAddr::V4(Ipv4Addr::LOCALHOST));
}

#[test]
fn udp_clients_over_ipv6_arrive_where_steering_says() {
    udp_clients_arrive_where_steering_says(IpAddr::V6(Ipv6Addr::LOCALHOST));
}

#[test]
fn tcp_clients_over_ipv4_arrive_where_steering_says() {
    tcp_clients_arrive_where_steering_says(IpAddr::V4(Ipv4Addr::LOCALHOST));
}

#[test]
fn tcp_clients_over_ipv6_arrive_where_steering_says() {
    tcp_clients_arrive_where_steering_says(IpAddr::V6(Ipv6Addr::LOCALHOST));
}

/// The station that our frames come from; what the kernel itself sends comes from others.
const SENDER: [u8; 6] = [2, 0xf0, 0, 0, 0, 1];

/// A VIP, a SNAT address and one of both, for each family.
fn ours() -> Vec<FanoutRule> {
    let ip = |text: &str| Ip::from(text.parse::<IpAddr>().expect("an address"));
    ["192.0.2.", "2001:db8::"]
        .into_iter()
        .flat_map(|network| {
            [
                FanoutRule::vip(ip(&format!("{network}80"))),
                FanoutRule::snat(ip(&format!("{network}81"))),
                FanoutRule::shared(ip(&format!("{network}82")), [443, 5061, 5062]),
            ]
        })
        .collect()
}

/// An IP packet; checksums play no part in steering. `part` is the half word of IPv4 that says which fragment it is.
fn ip_packet(from: IpAddr, to: IpAddr, protocol: u8, part: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + payload.len() as u16).to_be_bytes());
            packet.extend([0, 7]);
            packet.extend(part.to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => panic!("{from} and {to} are of one family"),
    }
    packet.extend(payload);
    packet
}

/// Some frame to `station`: to a service, to a leased port, back to a client, an error, a fragment, an ARP question.
fn some_frame(station: &[u8], random: &mut SplitMix64) -> Vec<u8> {
    let v4 = random.below(2) == 0;
    let mut host = |far: bool| -> IpAddr {
        let number = random.next_u64() as u16;
        let ours = !far && random.below(4) != 0;
        match (v4, ours) {
            (true, true) => Ipv4Addr::new(192, 0, 2, 80 + (number % 3) as u8).into(),
            (true, false) => Ipv4Addr::from_bits(0x0a01_0000 + u32::from(number)).into(),
            (false, true) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80 + number % 3).into(),
            (false, false) => Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, number).into(),
        }
    };
    let (client, to) = (host(true), host(false));
    let mut ports = Vec::new();
    for _ in 0..2 {
        let port = if random.below(3) == 0 { 443 } else { random.next_u64() as u16 };
        ports.extend(port.to_be_bytes());
    }
    ports.extend([0; 16]);
    let protocol = if random.below(2) == 0 { 6 } else { 17 };
    let packet = match random.below(8) {
        // What we sent, quoted by a router on its way.
        0 => {
            let (icmp, kind) = if v4 { (1, 3) } else { (58, 2) };
            let mut error = vec![kind, 0, 0, 0, 0, 0, 5, 0];
            error.extend(ip_packet(to, client, protocol, 0, &ports));
            ip_packet(client, to, icmp, 0, &error)
        }
        1 if v4 => ip_packet(client, to, protocol, 0x2000, &ports),
        1 => {
            let mut fragment = vec![protocol, 0, 0, 1, 0, 0, 0, random.next_u64() as u8];
            fragment.extend(&ports);
            ip_packet(client, to, 44, 0, &fragment)
        }
        2 if !v4 => {
            let mut behind_options = vec![protocol, 0, 1, 4, 0, 0, 0, 0];
            behind_options.extend(&ports);
            ip_packet(client, to, 60, 0, &behind_options)
        }
        2 => vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 192, 0, 2, 80],
        _ => ip_packet(client, to, protocol, 0, &ports),
    };
    let ethertype = match packet[0] >> 4 {
        4 => [0x08, 0x00],
        6 => [0x86, 0xdd],
        _ => [0x08, 0x06],
    };
    [station, &SENDER, &ethertype, &packet].concat()
}

#[test]
fn frames_arrive_where_steering_says() {
    const WORKERS: usize = 3;
    const BURST: usize = 200;
    if privilege::ensure(frames_arrive_where_steering_says).expect("root or user namespaces") == Privilege::Delegated {
        return;
    }
    let (near, far) = (Namespace::create().expect("privileged"), Namespace::create().expect("privileged"));
    let mut links = near.links().expect("netlink");
    links.create_veth("near", "far", &far).expect("veth");
    links.set_up("near").expect("a new link");
    far.links().expect("netlink").set_up("far").expect("a new link");
    let station = links.find("near").expect("it was created").hardware_address;

    let ours = ours();
    let program = |table: &SteeringTable| -> Vec<Instruction> {
        let program = fanout_program(table, SEED, &ours).expect("a few addresses fit");
        program.into_iter().map(Into::into).collect()
    };
    let two = SteeringTable::even(2);
    let tables = [two.remapped(WORKERS), two, SteeringTable::even(WORKERS)];
    let rings = RingSettings { slots: 1_024, frame_bytes_max: 2_048, queued_bytes_max: 0 };
    let first = program(&tables[0]);
    let ports = near.run(|| open("near", WORKERS, &first, &rings)).expect("inside").expect("a fanout group");
    let mut workers: Vec<PacketPorts> = ports.into_iter().map(|port| PacketPorts::new(vec![port])).collect();
    let sender = far.run(|| open("far", 1, &[], &rings)).expect("inside").expect("a packet socket");
    let mut sender = PacketPorts::new(sender);

    let mut random = SplitMix64::new(1);
    // Each table replaces the one before while frames may be under way from the kernel.
    for table in &tables {
        workers[0].port(0).steer(&program(table)).expect("the kernel takes the program");
        let mut served = vec![0; WORKERS];
        for _ in 0..20 {
            for _ in 0..BURST {
                sender.send_bytes(0, &some_frame(&station, &mut random), Offload::NONE, None);
            }
            sender.flush();
            let deadline = Instant::now() + DEADLINE;
            let mut arrived = 0;
            while arrived < BURST {
                assert!(Instant::now() < deadline, "{arrived} of {BURST} frames arrived");
                for (worker, ports) in workers.iter_mut().enumerate() {
                    ports.take(BATCH_MAX);
                    for frame in ports.frames().filter(|frame| frame.bytes[6..12] == SENDER) {
                        let owner = table.worker_of(steer(frame.bytes, SEED, &ours)).index();
                        assert_eq!(owner, worker, "{:02x?}", frame.bytes);
                        served[worker] += 1;
                        arrived += 1;
                    }
                    ports.flush();
                }
            }
        }
        assert!(served[..table.workers()].iter().all(|&frames| frames > 100), "{served:?}");
    }
    assert_eq!(workers.iter_mut().map(|ports| ports.rx_counts(0).dropped).sum::<u64>(), 0);
}
