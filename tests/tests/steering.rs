//! The kernel hands clients to the worker that the steering function names: real reuseport groups on loopback.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use towpath_core::steering::program::reuseport_program;
use towpath_core::steering::{SteeringTable, vshard_of_client};
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
