mod bridge;
mod cross;
mod edges;
mod fast;
mod fragments;
mod inherit;
mod ledger;
mod lending;
mod openings;
mod outbound;
mod router;
mod standby;
mod straight;
mod survey;
mod transits;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use towpath_config::model::{self, AdminState, Balance, Forwarding, MachineRole, Protocol, SourcePool};

use super::*;
use crate::PickReason;
use crate::fixtures;
use crate::flow::{Direction, Returns};
use crate::ids::{Generation, TargetIndex};
use crate::outbound::{Outbound, OutboundLane, OutboundNat, towards_anyone};
use crate::packet::{
    Family, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet, SynOptions, TcpFlags, Tuple, checksum,
    parse,
};
use crate::router::Router;
use crate::snapshot::{ServiceSource, Target};
use crate::snat::{Leased, SnatBook, SnatLimits};
use crate::steering::SteeringTable;

const SYN: u8 = TcpFlags::SYN.0;
const ACK: u8 = TcpFlags::ACK.0;
const FIN: u8 = TcpFlags::FIN.0;
const RST: u8 = TcpFlags::RST.0;
const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = FIN | ACK;

const OUTSIDE: PortId = PortId(0);
const INSIDE: PortId = PortId(1);
const OUTSIDE_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xa0]);
const INSIDE_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xa1]);
const ROUTER_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

const MODES: [Forwarding; 3] = [Forwarding::Dsr, Forwarding::FullNat, Forwarding::HalfNat];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The same host in both families.
fn host(family: Family, network: &str, host: u8) -> IpAddr {
    match (family, network) {
        (Family::V4, "clients") => ip(&format!("198.51.100.{host}")),
        (Family::V4, "outside") => ip(&format!("192.0.2.{host}")),
        (Family::V4, _) => ip(&format!("10.0.0.{host}")),
        (Family::V6, "clients") => ip(&format!("2001:db8:c::{host}")),
        (Family::V6, "outside") => ip(&format!("2001:db8::{host}")),
        (Family::V6, _) => ip(&format!("fd00::{host}")),
    }
}

fn client(family: Family) -> SocketAddr {
    SocketAddr::new(host(family, "clients", 7), 40_000)
}

fn vip(family: Family) -> SocketAddr {
    SocketAddr::new(host(family, "outside", 250), 443)
}

fn server(family: Family) -> SocketAddr {
    SocketAddr::new(host(family, "inside", 80), 8443)
}

fn server_mac(host: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, host])
}

fn number(protocol: Protocol) -> u8 {
    if protocol == Protocol::Tcp { PROTOCOL_TCP } else { PROTOCOL_UDP }
}

/// A router outside, real servers 80 to 83 inside.
fn network(mtu_inside: u32, known: bool) -> Network {
    network_with(mtu_inside, known, &[])
}

/// The same with more stations that are known.
fn network_with(mtu_inside: u32, known: bool, stations: &[(PortId, IpAddr, Mac)]) -> Network {
    let port = |name: &str, mac, mtu, addresses: [(&str, u8); 2]| Port {
        name: name.into(),
        index: if name == "outside" { 11 } else { 12 },
        mac,
        mtu,
        addresses: addresses.map(|(address, prefix)| (ip(address).into(), prefix)).to_vec(),
        segments: true,
        ..Port::default()
    };
    let ports = vec![
        port("outside", OUTSIDE_MAC, 1500, [("192.0.2.1", 24), ("2001:db8::1", 64)]),
        port("inside", INSIDE_MAC, mtu_inside, [("10.0.0.1", 24), ("fd00::1", 64)]),
    ];
    let route =
        |to: &str, prefix, via: Option<&str>, port| (ip(to).into(), prefix, via.map(|via| ip(via).into()), port, 0);
    let routes = vec![
        route("192.0.2.0", 24, None, OUTSIDE),
        route("2001:db8::", 64, None, OUTSIDE),
        route("10.0.0.0", 24, None, INSIDE),
        route("fd00::", 64, None, INSIDE),
        route("198.51.100.0", 24, Some("192.0.2.254"), OUTSIDE),
        route("2001:db8:c::", 48, Some("2001:db8::fe"), OUTSIDE),
    ];
    let mut neighbours =
        vec![(OUTSIDE, ip("192.0.2.254").into(), ROUTER_MAC), (OUTSIDE, ip("2001:db8::fe").into(), ROUTER_MAC)];
    if known {
        for family in FAMILIES {
            neighbours.extend((80..84).map(|n| (INSIDE, host(family, "inside", n).into(), server_mac(n))));
        }
    }
    neighbours.extend(stations.iter().map(|&(port, ip, mac)| (port, ip.into(), mac)));
    Network::new(ports, routes, neighbours)
}

/// Picks in turn, and writes down what it is told.
#[derive(Default)]
struct Clerk {
    turn: usize,
    refusal: Option<Refusal>,
    open: HashMap<(ServiceId, RealServerId), i64>,
    opened: usize,
    /// Servers that a connection did not reach.
    missed: Vec<RealServerId>,
    ends: Vec<Termination>,
    counters: HashMap<ServiceCounter, u64>,
}

impl Clerk {
    fn connections(&self) -> i64 {
        self.open.values().sum()
    }

    fn counted(&self, counter: ServiceCounter) -> u64 {
        self.counters.get(&counter).copied().unwrap_or(0)
    }
}

impl Desk for Clerk {
    fn pick(&mut self, service: &Service, _: SocketAddr, port: u16, _: Now) -> Result<Pick, Refusal> {
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        let takes = |target: &Target| target.takes_new() && target.serves(port);
        let takers: Vec<usize> = (0..service.targets.len()).filter(|&at| takes(&service.targets[at])).collect();
        let at = *takers.get(self.turn % takers.len().max(1)).ok_or(Refusal::NoServer)?;
        self.turn += 1;
        let server = service.targets[at].server;
        *self.open.entry((service.id, server)).or_default() += 1;
        Ok(Pick { target: TargetIndex(at as u16), server, why: PickReason::Balanced })
    }

    fn close(&mut self, service: ServiceId, server: RealServerId) {
        let open = self.open.get_mut(&(service, server)).expect("a close follows its pick");
        *open -= 1;
        assert!(*open >= 0, "closed twice");
    }

    fn count(&mut self, _: ServiceId, counter: ServiceCounter, n: u64) {
        *self.counters.entry(counter).or_default() += n;
    }

    fn end(&mut self, _: ServiceId, termination: Termination) {
        self.ends.push(termination);
    }

    fn opened(&mut self, _: RealServerId) {
        self.opened += 1;
    }

    fn failed(&mut self, server: RealServerId) {
        self.missed.push(server);
    }
}

/// What differs from test to test.
#[derive(Clone)]
struct Setup {
    family: Family,
    forwarding: Forwarding,
    protocol: Protocol,
    servers: Vec<Target>,
    ports: Vec<u16>,
    has_pool: bool,
    /// The address of the pool is the one that an interface of the kernel's has, or had.
    of_interface: bool,
    snat: std::ops::RangeInclusive<u16>,
    rest_ms: u64,
    workers: usize,
    settings: PlaneSettings,
    network: Network,
    router: model::Router,
    outbound: Option<model::OutboundNat>,
    next_hop: Option<IpAddr>,
    overload: model::Overload,
}

impl Setup {
    fn new(family: Family, forwarding: Forwarding, protocol: Protocol) -> Setup {
        let member =
            |n: u16| Target { address: host(family, "inside", 80 + n as u8), port: Some(8443), ..fixtures::target(n) };
        Setup {
            family,
            forwarding,
            protocol,
            servers: vec![member(0)],
            ports: vec![443],
            has_pool: forwarding == Forwarding::FullNat,
            of_interface: false,
            snat: 1024..=65_535,
            rest_ms: 60_000,
            workers: 1,
            settings: PlaneSettings {
                flows_max: 64,
                half_open_max: 16,
                half_open_per_source_max: 0,
                pending_frames_max: 8,
                replies_per_second: 1_000,
                worker: WorkerId(0),
                seed: [7, 9],
                steering_seed: 5,
                strays: Strays::Drop,
            },
            network: network(1500, true),
            router: model::Router::default(),
            outbound: None,
            next_hop: None,
            overload: model::Overload::Silent,
        }
    }

    fn service(&self) -> Service {
        let family = self.family;
        let snat = [host(Family::of(self.servers[0].address.into()), "inside", 2)];
        let mut service = fixtures::service(Balance::RoundRobin, self.servers.clone());
        service.vip = vip(family).ip();
        service.ports = self.ports.clone();
        service.protocol = self.protocol;
        service.plane = model::Plane::Packet;
        service.forwarding = self.forwarding;
        service.idle_timeout_ms = 600_000;
        service.next_hop = self.next_hop;
        service.overload = self.overload;
        service.source = ServiceSource::Client;
        if self.has_pool {
            let rule = SourcePool {
                addresses: snat.to_vec(),
                port_low: *self.snat.start(),
                port_high: *self.snat.end(),
                rest_ms: self.rest_ms,
                towards: match self.of_interface {
                    true => self.servers.iter().map(|member| (member.address, snat[0])).collect(),
                    false => Default::default(),
                },
            };
            let destinations: Vec<SocketAddr> =
                self.servers.iter().map(|member| member.lease_destination(&service, member.destination(443))).collect();
            let pool = SnatBook::new(SnatLimits::default()).pool(&rule, &[], self.protocol, &destinations);
            service.source = ServiceSource::Pool(pool.unwrap());
        }
        service
    }

    fn outbound(&self) -> Arc<Outbound> {
        let Some(nat) = &self.outbound else { return Arc::default() };
        let model::Source::Pool(rule) = &nat.source else { panic!("no pool") };
        let destinations: Vec<SocketAddr> = rule.addresses.iter().copied().map(towards_anyone).collect();
        let mut book = SnatBook::new(SnatLimits::default());
        let lanes = Leased::ALL.map(|leased| OutboundLane {
            id: ServiceId(10 + leased as u16),
            pool: book.pool(rule, &[], leased, &destinations).unwrap(),
        });
        let nat = OutboundNat::new(nat, lanes);
        Arc::new(Outbound::new(vec![nat], &self.servers.iter().map(|server| server.address).collect::<Vec<_>>()))
    }

    fn snapshot(&self, service: Service) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            generation: Generation(1),
            services: vec![Some(Arc::new(service))],
            real_servers: Vec::new(),
            steering: Arc::new(SteeringTable::even(self.workers)),
            router: Arc::new(Router::new(&self.router)),
            outbound: self.outbound(),
            role: MachineRole::Active,
        })
    }

    fn lab(&self) -> Lab {
        let now = Now(1_000_000);
        let snapshot = self.snapshot(self.service());
        let plane = Plane::new(&self.settings, snapshot, Arc::new(self.network.clone()), now);
        Lab { plane, clerk: Clerk::default(), out: Outbox::new(64, 65_536), now, verdicts: Vec::new() }
    }
}

struct Lab {
    plane: Plane,
    clerk: Clerk,
    out: Outbox,
    now: Now,
    verdicts: Vec<Verdict>,
}

impl Lab {
    fn send_as(&mut self, port: PortId, bytes: &mut [u8], checksum: Checksum, segment_bytes: u16) -> Verdict {
        let mut frames = [Frame { bytes, front: &mut [], port, checksum, segment_bytes }];
        self.plane.process(self.now, &mut frames, &mut self.verdicts, &mut self.clerk, &mut self.out);
        self.verdicts[0]
    }

    fn send(&mut self, port: PortId, bytes: &mut [u8]) -> Verdict {
        self.send_as(port, bytes, Checksum::Complete, 0)
    }

    /// Sends a packet that is to go on, and returns it as it leaves, with every checksum looked at.
    fn relay(&mut self, port: PortId, mut frame: Vec<u8>) -> (PortId, Vec<u8>, Tuple) {
        match self.send(port, &mut frame) {
            Verdict::Send(to) => {
                let tuple = sound(&frame);
                (to, frame, tuple)
            }
            other => panic!("not sent on: {other:?}"),
        }
    }

    /// The same for one that comes from the client's router.
    fn client_sends(&mut self, tuple: &Tuple, payload: &[u8]) -> (PortId, Vec<u8>, Tuple) {
        self.relay(OUTSIDE, frame_of(OUTSIDE_MAC, ROUTER_MAC, tuple, payload))
    }

    fn server_sends(&mut self, tuple: &Tuple, payload: &[u8]) -> (PortId, Vec<u8>, Tuple) {
        self.relay(INSIDE, frame_of(INSIDE_MAC, server_mac(80), tuple, payload))
    }

    fn made(&self) -> Vec<(PortId, Vec<u8>)> {
        self.out.iter().map(|(port, frame)| (port, frame.to_vec())).collect()
    }

    /// What one call makes stays in the outbox.
    fn expire_once(&mut self) {
        self.plane.expire(self.now, 1_000, &mut self.clerk, &mut self.out);
    }

    fn expire(&mut self) {
        while !self.plane.expire(self.now, 1_000, &mut self.clerk, &mut self.out) {
            self.out.clear();
        }
    }

    fn dropped(&self) -> Vec<DropReason> {
        let counts = self.plane.counts();
        DropReason::ALL.iter().copied().filter(|&reason| counts.dropped(reason) > 0).collect()
    }

    fn read(&self, counter: PlaneCounter) -> u64 {
        self.plane.counts().read(counter)
    }

    /// The three steps of a handshake from the client's port; returns the client's tuple and that of the server's answers.
    fn open(&mut self, family: Family, client_port: u16) -> (Tuple, Tuple) {
        let source = SocketAddr::new(client(family).ip(), client_port);
        let forward = Tuple::new(source, vip(family), PROTOCOL_TCP);
        let (_, _, at_server) = self.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
        let back = at_server.reversed();
        self.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
        self.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b""));
        (forward, back)
    }

    /// Both sides close, the one that `first` sends for first.
    fn close(&mut self, forward: &Tuple, back: &Tuple, first: Direction) {
        let (seq, ack) = (101, 901);
        match first {
            Direction::Forward => {
                self.client_sends(forward, &tcp(forward, FIN_ACK, seq, ack, &[], b""));
                self.server_sends(back, &tcp(back, FIN_ACK, ack, seq + 1, &[], b""));
                self.client_sends(forward, &tcp(forward, ACK, seq + 1, ack + 1, &[], b""));
            }
            Direction::Reverse => {
                self.server_sends(back, &tcp(back, FIN_ACK, ack, seq, &[], b""));
                self.client_sends(forward, &tcp(forward, FIN_ACK, seq, ack + 1, &[], b""));
                self.server_sends(back, &tcp(back, ACK, ack + 1, seq + 1, &[], b""));
            }
        }
    }
}

/// The sum of the pseudo-header of a packet between these ends.
fn pseudo(tuple: &Tuple, protocol: u8, len: usize) -> u16 {
    checksum::pseudo_header(octets(&tuple.src), octets(&tuple.dst), protocol, len as u32)
}

fn octets(ip: &Ip) -> &[u8] {
    if ip.is_v4() { &ip.0[12..] } else { &ip.0 }
}

/// A TCP segment with its checksum.
fn tcp(tuple: &Tuple, flags: u8, seq: u32, ack: u32, options: &[u8], data: &[u8]) -> Vec<u8> {
    let mut segment = [tuple.src_port.to_be_bytes(), tuple.dst_port.to_be_bytes()].concat();
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([((5 + options.len() / 4) << 4) as u8, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(data);
    let sum = checksum::transport(pseudo(tuple, PROTOCOL_TCP, segment.len()), &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

fn udp(tuple: &Tuple, data: &[u8]) -> Vec<u8> {
    let mut datagram = [tuple.src_port.to_be_bytes(), tuple.dst_port.to_be_bytes()].concat();
    datagram.extend((8 + data.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    let sum = checksum::udp_field(checksum::transport(pseudo(tuple, PROTOCOL_UDP, datagram.len()), &datagram));
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// The first packet of a flow, or a further one.
fn packet(tuple: &Tuple, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Vec<u8> {
    match tuple.protocol {
        PROTOCOL_TCP => tcp(tuple, flags, seq, ack, &[], data),
        _ => udp(tuple, data),
    }
}

fn ip_packet(tuple: &Tuple, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet;
    if tuple.src.is_v4() {
        packet = vec![0x45, 0];
        packet.extend((20 + payload.len() as u16).to_be_bytes());
        packet.extend([0x12, 0x34, 0x40, 0, ttl, protocol, 0, 0]);
        packet.extend(octets(&tuple.src));
        packet.extend(octets(&tuple.dst));
        let sum = checksum::of(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet = vec![0x60, 0, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([protocol, ttl]);
        packet.extend(octets(&tuple.src));
        packet.extend(octets(&tuple.dst));
    }
    packet.extend(payload);
    packet
}

fn ethernet(dst: Mac, src: Mac, is_v4: bool, packet: &[u8]) -> Vec<u8> {
    let ethertype = if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&dst.0[..], &src.0, &ethertype, packet].concat()
}

fn frame_of(dst: Mac, src: Mac, tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    ethernet(dst, src, tuple.src.is_v4(), &ip_packet(tuple, tuple.protocol, 64, payload))
}

/// The ends of a whole packet whose checksums are right.
fn sound(frame: &[u8]) -> Tuple {
    match parse(frame) {
        Ok(Packet::Transport(parsed)) => {
            let segment = &frame[usize::from(parsed.l4)..parsed.end as usize];
            let sum = pseudo(&parsed.tuple, parsed.tuple.protocol, segment.len());
            assert!(checksum::is_valid(sum, segment), "a wrong checksum: {frame:02x?}");
            parsed.tuple
        }
        Ok(Packet::Echo(parsed) | Packet::EchoReply(parsed)) => {
            let message = &frame[usize::from(parsed.l4)..parsed.end as usize];
            let is_v4 = parsed.family == Family::V4;
            let sum = if is_v4 { 0 } else { pseudo(&parsed.tuple, PROTOCOL_ICMPV6, message.len()) };
            assert!(checksum::is_valid(sum, message), "a wrong checksum: {frame:02x?}");
            parsed.tuple
        }
        other => panic!("{other:?} instead of a packet: {frame:02x?}"),
    }
}

fn parsed(frame: &[u8]) -> Parsed {
    match parse(frame) {
        Ok(Packet::Transport(parsed)) => parsed,
        other => panic!("{other:?}"),
    }
}

fn macs(frame: &[u8]) -> (Mac, Mac) {
    (Mac(*frame.first_chunk().unwrap()), Mac(*frame[6..].first_chunk().unwrap()))
}

/// Every mode, family and protocol, from the first packet to the last trace.
#[test]
fn a_flow_passes_both_ways_and_leaves_nothing_behind() {
    for forwarding in MODES {
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                let name = format!("{forwarding:?} {family:?} {protocol:?}");
                let setup = Setup::new(family, forwarding, protocol);
                let mut lab = setup.lab();
                let forward = Tuple::new(client(family), vip(family), number(protocol));
                let (port, frame, at_server) = lab.client_sends(&forward, &packet(&forward, SYN, 100, 0, b""));
                assert_eq!((port, macs(&frame)), (INSIDE, (server_mac(80), INSIDE_MAC)), "{name}");
                let expected = match forwarding {
                    Forwarding::Dsr => forward,
                    Forwarding::FullNat => Tuple {
                        src: host(family, "inside", 2).into(),
                        src_port: at_server.src_port,
                        ..Tuple::new(client(family), server(family), number(protocol))
                    },
                    Forwarding::HalfNat => Tuple::new(client(family), server(family), number(protocol)),
                };
                assert_eq!(at_server, expected, "{name}");
                assert_eq!(parsed(&frame).ttl, if forwarding == Forwarding::Dsr { 64 } else { 63 }, "{name}");
                assert_eq!((lab.plane.flows(), lab.plane.half_open()), (1, 1), "{name}");

                if forwarding != Forwarding::Dsr {
                    let back = at_server.reversed();
                    let (port, frame, at_client) = lab.server_sends(&back, &packet(&back, SYN_ACK, 900, 101, b""));
                    assert_eq!((port, macs(&frame)), (OUTSIDE, (ROUTER_MAC, OUTSIDE_MAC)), "{name}");
                    assert_eq!(at_client, forward.reversed(), "{name}");
                }
                lab.client_sends(&forward, &packet(&forward, ACK, 101, 901, b"hello"));
                assert_eq!((lab.plane.flows(), lab.plane.half_open()), (1, 0), "{name}");
                assert_eq!((lab.clerk.opened, lab.clerk.connections()), (1, 1), "{name}");
                assert_eq!(lab.clerk.counted(ServiceCounter::BytesFromClient), 5, "{name}");

                if protocol == Protocol::Tcp {
                    lab.client_sends(&forward, &packet(&forward, FIN_ACK, 106, 901, b""));
                    if forwarding != Forwarding::Dsr {
                        let back = at_server.reversed();
                        lab.server_sends(&back, &packet(&back, FIN_ACK, 901, 107, b""));
                        lab.client_sends(&forward, &packet(&forward, ACK, 107, 902, b""));
                    }
                    assert_eq!(lab.clerk.connections(), 0, "{name}: over at the last ACK");
                    assert_eq!(lab.clerk.ends, [Termination::ClientClosed], "{name}");
                    lab.now = lab.now + 61_000;
                } else {
                    lab.now = lab.now + 601_000;
                }
                lab.expire();
                assert_eq!((lab.plane.flows(), lab.clerk.connections()), (0, 0), "{name}");
                assert_eq!(lab.clerk.ends.len(), 1, "{name}");
                assert_eq!(lab.clerk.counted(ServiceCounter::Closed), 1, "{name}");
                assert!(lab.out.is_empty(), "{name}: nothing was made here");
                if let ServiceSource::Pool(pool) = &lab.plane.snapshot.service(ServiceId(0)).unwrap().source {
                    assert!(pool.fill().all(|fill| fill.leased == 0), "{name}");
                }
            }
        }
    }
}

#[test]
fn partial_checksums_and_super_packets_pass_as_they_are() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Tcp).lab();
        let (forward, back) = lab.open(family, 40_000);
        let data = vec![0x5a; 60_000];
        for (port, tuple, mac, to) in
            [(OUTSIDE, forward, OUTSIDE_MAC, back.reversed()), (INSIDE, back, INSIDE_MAC, forward.reversed())]
        {
            let seq = if port == OUTSIDE { 101 } else { 901 };
            let mut segment = tcp(&tuple, ACK, seq, 1_002 - seq, &[], &data);
            let partial = pseudo(&tuple, PROTOCOL_TCP, segment.len());
            segment[16..18].copy_from_slice(&partial.to_be_bytes());
            let mut frame = frame_of(mac, ROUTER_MAC, &tuple, &segment);
            let verdict = lab.send_as(port, &mut frame, Checksum::Partial, 1_400);
            assert!(matches!(verdict, Verdict::Send(_)), "{verdict:?}");
            let after = parsed(&frame);
            assert_eq!(after.tuple, to);
            let field = usize::from(after.l4) + 16;
            let expected = pseudo(&to, PROTOCOL_TCP, segment.len());
            assert_eq!(frame[field..field + 2], expected.to_be_bytes(), "{family:?}: the sum of the new pseudo-header");
            // One segment of it would not fit.
            let mut frame = frame_of(mac, ROUTER_MAC, &tuple, &segment);
            let verdict = lab.send_as(port, &mut frame, Checksum::Partial, 1_490);
            assert_eq!(verdict, Verdict::Drop(DropReason::PacketTooBig));
        }
    }
}

#[test]
fn a_handshake_offers_no_more_than_both_links_carry() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.network = network(1400, true);
    let mut lab = setup.lab();
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_TCP);
    let offer = [2, 4, 0x05, 0xb4, 1, 3, 3, 7];
    let (_, frame, at_server) = lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &offer, b""));
    assert_eq!(SynOptions::read(&frame, &parsed(&frame)).mss, Some(1_360));
    let back = at_server.reversed();
    let (_, frame, _) = lab.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, &offer, b""));
    assert_eq!(SynOptions::read(&frame, &parsed(&frame)), SynOptions { mss: Some(1_360), window_scale: Some(7) });
    assert_eq!(lab.read(PlaneCounter::MssClamped), 2);
}

#[test]
fn a_client_on_the_servers_network_gets_a_source_of_ours() {
    for family in FAMILIES {
        // Another host of that network, another real server, and the server that is picked itself.
        for n in [9, 81, 80] {
            let mut setup = Setup::new(family, Forwarding::HalfNat, Protocol::Tcp);
            let local = SocketAddr::new(host(family, "inside", n), 40_000);
            let forward = Tuple::new(local, vip(family), PROTOCOL_TCP);
            let mut syn = frame_of(INSIDE_MAC, server_mac(n), &forward, &tcp(&forward, SYN, 1, 0, &[], b""));
            assert_eq!(setup.lab().send(INSIDE, &mut syn.clone()), Verdict::Drop(DropReason::HairpinUnserved));

            setup.has_pool = true;
            let mut lab = setup.lab();
            assert_eq!(lab.send(INSIDE, &mut syn), Verdict::Send(INSIDE));
            let at_server = sound(&syn);
            assert_eq!(at_server.src, host(family, "inside", 2).into());
            // Everybody else keeps the own one.
            let far = Tuple::new(client(family), vip(family), PROTOCOL_TCP);
            let (_, _, at_server) = lab.client_sends(&far, &tcp(&far, SYN, 1, 0, &[], b""));
            assert_eq!(at_server.source(), client(family));
        }
    }
}

#[test]
fn two_clients_that_would_look_alike_to_the_server_are_told_apart() {
    let mut setup = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Udp);
    setup.ports = vec![443, 444];
    setup.has_pool = true;
    let mut lab = setup.lab();
    let first = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_UDP);
    let second = Tuple { dst_port: 444, ..first };
    let (_, _, one) = lab.client_sends(&first, &udp(&first, b"1"));
    let (_, _, other) = lab.client_sends(&second, &udp(&second, b"2"));
    assert_eq!(one.source(), client(Family::V4));
    assert_eq!(other.src, host(Family::V4, "inside", 2).into());
    let back = other.reversed();
    assert_eq!(lab.server_sends(&back, &udp(&back, b"3")).2, second.reversed());
}

#[test]
fn a_port_is_free_again_at_once_unless_the_server_keeps_it() {
    for (first, rest_ms, leased) in
        [(Direction::Forward, 60_000, 0), (Direction::Reverse, 60_000, 1), (Direction::Reverse, 0, 0)]
    {
        let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
        setup.rest_ms = rest_ms;
        let mut lab = setup.lab();
        let (forward, back) = lab.open(Family::V4, 40_000);
        lab.close(&forward, &back, first);
        let fill = |lab: &Lab| match &lab.plane.snapshot.service(ServiceId(0)).unwrap().source {
            ServiceSource::Pool(pool) => pool.fill().map(|fill| fill.leased).sum::<u32>(),
            _ => panic!("a pool"),
        };
        assert_eq!((fill(&lab), lab.clerk.connections(), lab.plane.flows()), (leased, 0, 1), "{first:?} {rest_ms}");
        // A late FIN still finds its way.
        lab.server_sends(&back, &tcp(&back, FIN_ACK, 901, 102, &[], b""));
        lab.now = lab.now + 61_000;
        lab.expire();
        assert_eq!((fill(&lab), lab.plane.flows()), (0, 0));
    }
}

#[test]
fn a_port_that_is_used_again_takes_the_place_of_the_flow_that_is_over() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.snat = 5_000..=5_000;
    let mut lab = setup.lab();
    for client_port in 40_000..40_010 {
        let (forward, back) = lab.open(Family::V4, client_port);
        assert_eq!(back.dst_port, 5_000);
        lab.close(&forward, &back, Direction::Forward);
    }
    assert_eq!((lab.plane.flows(), lab.clerk.ends.len()), (1, 10));
}

#[test]
fn a_client_that_uses_its_port_again_gets_a_new_flow() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    lab.close(&forward, &back, Direction::Reverse);
    let (_, _, at_server) = lab.client_sends(&forward, &tcp(&forward, SYN, 5_000_000, 0, &[], b""));
    assert_ne!(at_server.reversed(), back, "another port: the server may still hold the first");
    assert_eq!((lab.read(PlaneCounter::FlowsReopened), lab.plane.flows(), lab.plane.half_open()), (1, 1, 1));
    assert_eq!(lab.clerk.connections(), 1);
}

#[test]
fn both_may_close_at_the_same_time() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    lab.client_sends(&forward, &tcp(&forward, FIN_ACK, 101, 901, &[], b""));
    lab.server_sends(&back, &tcp(&back, FIN_ACK, 901, 101, &[], b""));
    assert_eq!(lab.clerk.connections(), 1);
    lab.client_sends(&forward, &tcp(&forward, ACK, 102, 902, &[], b""));
    lab.server_sends(&back, &tcp(&back, ACK, 902, 102, &[], b""));
    assert_eq!((lab.clerk.connections(), lab.clerk.ends.clone()), (0, vec![Termination::ClientClosed]));
}

#[test]
fn a_reset_ends_the_connection_whoever_sends_it() {
    for from in Direction::BOTH {
        let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
        let (forward, back) = lab.open(Family::V4, 40_000);
        let expected = match from {
            Direction::Forward => {
                lab.client_sends(&forward, &tcp(&forward, RST, 101, 0, &[], b""));
                Termination::ClientReset
            }
            Direction::Reverse => {
                lab.server_sends(&back, &tcp(&back, RST, 901, 0, &[], b""));
                Termination::ServerReset
            }
        };
        assert_eq!((lab.clerk.connections(), lab.clerk.ends.clone()), (0, vec![expected]));
    }
}

#[test]
fn a_server_that_refuses_is_told_to_the_client_and_not_held_against_it() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_TCP);
    let (_, _, at_server) = lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
    let back = at_server.reversed();
    let (_, _, to) = lab.server_sends(&back, &tcp(&back, RST | ACK, 0, 101, &[], b""));
    assert_eq!((to, lab.clerk.ends.clone()), (forward.reversed(), vec![Termination::ConnectFailed]));
    assert_eq!(lab.clerk.missed, [RealServerId(0)]);
    // The next SYN may go elsewhere.
    lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
    assert_eq!((lab.clerk.connections(), lab.plane.half_open()), (1, 1));
}

#[test]
fn exhaustion_is_refused_with_a_reset_and_counted() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.snat = 5_000..=5_001;
    let mut lab = setup.lab();
    lab.open(Family::V4, 40_000);
    lab.open(Family::V4, 40_001);
    let third = Tuple::new(SocketAddr::new(client(Family::V4).ip(), 40_002), vip(Family::V4), PROTOCOL_TCP);
    let mut syn = frame_of(OUTSIDE_MAC, ROUTER_MAC, &third, &tcp(&third, SYN, 100, 0, &[], b""));
    assert_eq!(lab.send(OUTSIDE, &mut syn), Verdict::Drop(DropReason::PortsExhausted));
    assert_eq!(lab.clerk.ends, [Termination::OutOfSourcePorts]);
    assert_eq!((lab.plane.half_open(), lab.clerk.connections()), (0, 2));
    let made = lab.made();
    assert_eq!((made[0].0, sound(&made[0].1)), (OUTSIDE, third.reversed()));
    let reset = parsed(&made[0].1).tcp;
    assert_eq!((reset.flags, reset.ack), (TcpFlags(RST | ACK), 101));
}

#[test]
fn a_full_table_refuses_the_next_and_keeps_the_others() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.settings.flows_max = 4;
    let mut lab = setup.lab();
    let flows: Vec<(Tuple, Tuple)> = (0..4).map(|n| lab.open(Family::V4, 40_000 + n)).collect();
    let next = Tuple::new(SocketAddr::new(client(Family::V4).ip(), 50_000), vip(Family::V4), PROTOCOL_TCP);
    let mut syn = frame_of(OUTSIDE_MAC, ROUTER_MAC, &next, &tcp(&next, SYN, 1, 0, &[], b""));
    assert_eq!(lab.send(OUTSIDE, &mut syn), Verdict::Drop(DropReason::FlowsFull));
    assert_eq!(lab.read(PlaneCounter::ResetsMade), 1);
    for (forward, back) in flows {
        lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b"x"));
        lab.server_sends(&back, &tcp(&back, ACK, 901, 102, &[], b"y"));
    }
}

#[test]
fn a_handshake_that_finds_the_table_full_at_its_end_is_reset_at_both_ends() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.settings.flows_max = 1;
    let mut lab = setup.lab();
    let tuples = [40_000, 40_001].map(|port| {
        let forward = Tuple::new(SocketAddr::new(client(Family::V4).ip(), port), vip(Family::V4), PROTOCOL_TCP);
        let (_, _, at_server) = lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
        let back = at_server.reversed();
        lab.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
        (forward, back)
    });
    let ack = |tuple: &Tuple| frame_of(OUTSIDE_MAC, ROUTER_MAC, tuple, &tcp(tuple, ACK, 101, 901, &[], b""));
    assert!(matches!(lab.send(OUTSIDE, &mut ack(&tuples[0].0)), Verdict::Send(_)));
    assert_eq!(lab.send(OUTSIDE, &mut ack(&tuples[1].0)), Verdict::Drop(DropReason::FlowsFull));
    assert_eq!((lab.clerk.ends.clone(), lab.clerk.connections()), (vec![Termination::OutOfConnections], 1));
    let made = lab.made();
    assert_eq!(sound(&made[0].1), tuples[1].0.reversed());
    assert_eq!(sound(&made[1].1), tuples[1].1.reversed());
}

#[test]
fn a_flood_of_syns_takes_nothing_from_what_is_established() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.settings.half_open_per_source_max = 4;
    let mut lab = setup.lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    let mut reasons = HashSet::new();
    for n in 0..2_000_u16 {
        let source = SocketAddr::new(host(Family::V4, "clients", (n % 40) as u8 + 10), 1_024 + n);
        let tuple = Tuple::new(source, vip(Family::V4), PROTOCOL_TCP);
        let mut syn = frame_of(OUTSIDE_MAC, ROUTER_MAC, &tuple, &tcp(&tuple, SYN, n.into(), 0, &[], b""));
        if let Verdict::Drop(reason) = lab.send(OUTSIDE, &mut syn) {
            reasons.insert(reason);
        }
        if n == 20 {
            // One source alone meets its own limit.
            for port in 0..9 {
                let tuple = Tuple { src_port: 60_000 + port, ..tuple };
                let mut syn = frame_of(OUTSIDE_MAC, ROUTER_MAC, &tuple, &tcp(&tuple, SYN, 1, 0, &[], b""));
                if let Verdict::Drop(reason) = lab.send(OUTSIDE, &mut syn) {
                    reasons.insert(reason);
                }
            }
        }
    }
    assert_eq!(lab.plane.half_open(), 16);
    assert!(reasons.contains(&DropReason::HalfOpenFull), "{reasons:?}");
    assert!(lab.out.is_empty(), "no answer to sources that may be forged");
    let picked = lab.clerk.turn;
    let late = Tuple::new(SocketAddr::new(host(Family::V4, "clients", 9), 1_024), vip(Family::V4), PROTOCOL_TCP);
    let mut syn = frame_of(OUTSIDE_MAC, ROUTER_MAC, &late, &tcp(&late, SYN, 1, 0, &[], b""));
    let verdict = lab.send(OUTSIDE, &mut syn);
    assert_eq!(verdict, Verdict::Drop(DropReason::HalfOpenFull));
    assert_eq!(lab.clerk.turn, picked, "nobody is asked for a server when there is no room");
    lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b"still here"));
    lab.server_sends(&back, &tcp(&back, ACK, 901, 111, &[], b"yes"));
    // Nobody answered: soon forgotten, and then there is room again.
    lab.now = lab.now + 5_000;
    lab.expire();
    assert_eq!((lab.plane.half_open(), lab.clerk.connections()), (0, 1));
    lab.open(Family::V4, 40_001);
}

#[test]
fn one_source_has_only_so_many_half_open_flows() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.settings.half_open_per_source_max = 2;
    let mut lab = setup.lab();
    let mut syn = |port: u16| {
        let tuple = Tuple::new(SocketAddr::new(client(Family::V4).ip(), port), vip(Family::V4), PROTOCOL_TCP);
        let mut syn = frame_of(OUTSIDE_MAC, ROUTER_MAC, &tuple, &tcp(&tuple, SYN, 1, 0, &[], b""));
        lab.send(OUTSIDE, &mut syn)
    };
    assert_eq!([syn(1), syn(2)], [Verdict::Send(INSIDE); 2]);
    assert_eq!(syn(3), Verdict::Drop(DropReason::HalfOpenSource));
    assert_eq!(syn(1), Verdict::Send(INSIDE), "repeated");
}

#[test]
fn flows_of_a_halted_server_are_reset_at_both_ends_with_numbers_that_count() {
    for family in FAMILIES {
        let setup = Setup::new(family, Forwarding::FullNat, Protocol::Tcp);
        let mut lab = setup.lab();
        let (forward, back) = lab.open(family, 40_000);
        lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], &[1; 50]));
        lab.server_sends(&back, &tcp(&back, ACK, 901, 151, &[], &[2; 70]));

        let service = |admin| {
            let mut service = lab
                .plane
                .snapshot
                .service(ServiceId(0))
                .map(|old| fixtures::service(old.balance, old.targets.clone()))
                .unwrap();
            let old = lab.plane.snapshot.service(ServiceId(0)).unwrap();
            service.vip = old.vip;
            service.ports = old.ports.clone();
            service.plane = old.plane;
            service.idle_timeout_ms = old.idle_timeout_ms;
            service.source = old.source.clone();
            service.targets[0].admin = admin;
            setup.snapshot(service)
        };
        let (drained, halted) = (service(AdminState::Drain), service(AdminState::Halt));
        lab.plane.adopt_snapshot(drained);
        lab.expire();
        assert_eq!(lab.plane.flows(), 1, "a draining server keeps its flows");
        lab.plane.adopt_snapshot(halted);
        assert_eq!(lab.plane.next_due(), Some(lab.now));
        lab.expire();
        assert_eq!((lab.plane.flows(), lab.clerk.connections()), (0, 0));
        assert_eq!(lab.clerk.ends, [Termination::ServerHalted]);
        let made: Vec<(PortId, Parsed)> = lab
            .made()
            .iter()
            .map(|(port, frame)| {
                sound(frame);
                (*port, parsed(frame))
            })
            .collect();
        let facts: Vec<_> =
            made.iter().map(|(port, reset)| (*port, reset.tuple, reset.tcp.seq, reset.tcp.ack)).collect();
        assert_eq!(
            facts,
            [
                // The client has acknowledged nothing of the 70 octets yet: either number may be the one it expects.
                (OUTSIDE, forward.reversed(), 901, 151),
                (OUTSIDE, forward.reversed(), 971, 151),
                (INSIDE, back.reversed(), 151, 971),
            ]
        );
        assert!(made.iter().all(|(_, reset)| reset.tcp.flags.contains(TcpFlags::RST)));
    }
}

#[test]
fn a_silent_connection_is_ended_for_both() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    lab.open(Family::V4, 40_000);
    lab.now = lab.now + 599_000;
    lab.expire();
    assert_eq!(lab.plane.flows(), 1);
    lab.now = lab.now + 1_500;
    lab.expire();
    assert_eq!((lab.plane.flows(), lab.clerk.ends.clone()), (0, vec![Termination::IdleTimedOut]));
    assert_eq!(lab.out.len(), 2);
}

#[test]
fn a_question_for_an_address_of_ours_is_answered_where_it_belongs() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    let request = |sender: &str, target: &str| {
        let (sender, target): (Ip, Ip) = (ip(sender).into(), ip(target).into());
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
        body.extend(ROUTER_MAC.0);
        body.extend(octets(&sender));
        body.extend([0; 6]);
        body.extend(octets(&target));
        [&Mac::BROADCAST.0[..], &ROUTER_MAC.0, &[0x08, 0x06], &body].concat()
    };
    let cases = [
        (OUTSIDE, "192.0.2.254", "192.0.2.250", true),
        (INSIDE, "10.0.0.80", "192.0.2.250", false),
        (INSIDE, "10.0.0.80", "10.0.0.2", true),
        // The kernel's own, and somebody else's.
        (OUTSIDE, "192.0.2.254", "192.0.2.1", false),
        (OUTSIDE, "192.0.2.254", "192.0.2.77", false),
    ];
    for (port, sender, target, answered) in cases {
        lab.out.clear();
        let verdict = lab.send(port, &mut request(sender, target));
        assert_eq!(verdict, if answered { Verdict::Kept } else { Verdict::Pass }, "{target}");
        assert_eq!(lab.out.len(), usize::from(answered), "{target}");
    }
    assert_eq!(lab.read(PlaneCounter::ArpAnswered), 2);
    lab.out.clear();
    lab.plane.announce(&mut lab.out);
    assert_eq!(lab.out.len(), 2, "the VIP outside, the SNAT address inside");

    // Where the kernel has it no longer, another host may.
    let setup = Setup { of_interface: true, ..Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp) };
    let mut lab = setup.lab();
    assert_eq!(lab.send(INSIDE, &mut request("10.0.0.80", "10.0.0.2")), Verdict::Pass);
    assert_eq!(lab.out.len(), 0);
    lab.plane.announce(&mut lab.out);
    assert_eq!(lab.out.len(), 1, "the VIP alone");
}

#[test]
fn a_ping_of_an_address_of_ours_is_answered_in_place() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Tcp).lab();
        let (kind, protocol) = if family == Family::V4 { (8, PROTOCOL_ICMP) } else { (128, PROTOCOL_ICMPV6) };
        let ping = |to: IpAddr| {
            let tuple = Tuple::new(client(family), SocketAddr::new(to, 0), protocol);
            let mut message = vec![kind, 0, 0, 0, 1, 2, 3, 4, 5];
            let sum = if family == Family::V4 { 0 } else { pseudo(&tuple, protocol, message.len()) };
            let sum = checksum::transport(sum, &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            frame_of(OUTSIDE_MAC, ROUTER_MAC, &tuple, &message)
        };
        let mut frame = ping(vip(family).ip());
        assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Send(OUTSIDE));
        assert_eq!(macs(&frame), (ROUTER_MAC, OUTSIDE_MAC));
        assert_eq!(lab.send(OUTSIDE, &mut ping(host(family, "outside", 1))), Verdict::Pass, "the kernel's");
    }
}

/// An ICMP error of the kind "too big, 1300 octets" from `from`, about the packet `quoted`.
fn too_big(from: IpAddr, quoted: &Tuple, seq: u32, dst_mac: Mac) -> Vec<u8> {
    let is_v4 = quoted.src.is_v4();
    let protocol = if is_v4 { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
    let outer = Tuple { src: from.into(), dst: quoted.src, src_port: 0, dst_port: 0, protocol };
    let inner = ip_packet(quoted, quoted.protocol, 60, &tcp(quoted, ACK, seq, 0, &[], &[7; 40]));
    let head = if is_v4 { [3, 4, 0, 0, 0, 0, 0x05, 0x14] } else { [2, 0, 0, 0, 0, 0, 0x05, 0x14] };
    let mut message = [&head[..], &inner].concat();
    let sum = if is_v4 { 0 } else { pseudo(&outer, protocol, message.len()) };
    let sum = checksum::transport(sum, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    frame_of(dst_mac, ROUTER_MAC, &outer, &message)
}

#[test]
fn an_error_about_a_flow_reaches_the_side_that_sent_the_packet() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Tcp).lab();
        let (forward, back) = lab.open(family, 40_000);
        lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], &[1; 50]));
        lab.server_sends(&back, &tcp(&back, ACK, 901, 101, &[], &[1; 50]));
        // (who tells, what it quotes, where it came in, what the receiver is to see quoted and from whom)
        let router = host(family, "clients", 1);
        let cases = [
            (server(family).ip(), back.reversed(), 101, INSIDE, INSIDE_MAC, forward, vip(family).ip()),
            (router, forward.reversed(), 901, OUTSIDE, OUTSIDE_MAC, back, router),
        ];
        for (from, quoted, seq, port, mac, expected, seen_from) in cases {
            let mut frame = too_big(from, &quoted, seq, mac);
            let verdict = lab.send(port, &mut frame);
            assert!(matches!(verdict, Verdict::Send(to) if to != port), "{verdict:?}");
            match parse(&frame) {
                Ok(Packet::IcmpError(error)) => {
                    assert_eq!(error.embedded, expected);
                    assert_eq!((error.parsed.tuple.src, error.parsed.tuple.dst), (seen_from.into(), expected.src));
                }
                other => panic!("{other:?}"),
            }
            let mut blind = too_big(from, &quoted, seq + 5_000_000, mac);
            assert_eq!(lab.send(port, &mut blind), Verdict::Drop(DropReason::IcmpErrorWindow));
        }
        let stray = Tuple { src_port: 1, ..back.reversed() };
        let mut frame = too_big(router, &stray, 1, INSIDE_MAC);
        assert_eq!(lab.send(INSIDE, &mut frame), Verdict::Drop(DropReason::IcmpErrorStray));
    }
}

#[test]
fn the_sender_of_a_packet_that_does_not_fit_is_told() {
    for family in FAMILIES {
        let mut setup = Setup::new(family, Forwarding::FullNat, Protocol::Tcp);
        setup.network = network(1400, true);
        let mut lab = setup.lab();
        let (forward, _) = lab.open(family, 40_000);
        let mut frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &tcp(&forward, ACK, 101, 901, &[], &[0; 1_440]));
        assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Drop(DropReason::PacketTooBig));
        let made = lab.made();
        match parse(&made[0].1) {
            Ok(Packet::IcmpError(error)) => {
                assert_eq!(error.kind, crate::packet::IcmpErrorKind::PacketTooBig { mtu: 1_400 });
                assert_eq!((error.embedded, made[0].0), (forward, OUTSIDE));
                assert_eq!(error.parsed.tuple.src, vip(family).ip().into());
            }
            other => panic!("{other:?}"),
        }
        let last_hop = ip_packet(&forward, PROTOCOL_TCP, 1, &tcp(&forward, ACK, 101, 901, &[], b""));
        let mut frame = ethernet(OUTSIDE_MAC, ROUTER_MAC, family == Family::V4, &last_hop);
        assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Drop(DropReason::HopLimit));
        assert_eq!(lab.read(PlaneCounter::ErrorsMade), 2);
    }
}

#[test]
fn what_waits_for_its_next_hop_leaves_when_that_is_known() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.network = network(1500, false);
    let mut lab = setup.lab();
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_TCP);
    let mut segment = tcp(&forward, SYN, 100, 0, &[], b"");
    let partial = pseudo(&forward, PROTOCOL_TCP, segment.len());
    segment[16..18].copy_from_slice(&partial.to_be_bytes());
    let mut syn = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &segment);
    assert_eq!(lab.send_as(OUTSIDE, &mut syn, Checksum::Partial, 0), Verdict::Kept);
    assert_eq!(lab.plane.wanted(lab.now), Some((INSIDE, server(Family::V4).ip().into())));
    assert_eq!(lab.plane.wanted(lab.now), None);
    for _ in 0..40 {
        let mut again = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &tcp(&forward, SYN, 100, 0, &[], b""));
        lab.send(OUTSIDE, &mut again);
    }
    assert!(lab.plane.counts().dropped(DropReason::NextHopUnknown) > 0);
    lab.plane.adopt_network(Arc::new(network(1500, true)), &mut lab.out);
    let made = lab.made();
    assert_eq!((made[0].0, macs(&made[0].1)), (INSIDE, (server_mac(80), INSIDE_MAC)));
    assert_eq!(sound(&made[0].1).destination(), server(Family::V4));
}

#[test]
fn what_is_not_ours_is_left_to_the_kernel() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    let to = |text: &str| {
        let tuple = Tuple::new(client(Family::V4), text.parse().unwrap(), PROTOCOL_TCP);
        (tuple, tcp(&tuple, SYN, 1, 0, &[], b""))
    };
    let (tuple, syn) = to("192.0.2.1:22");
    assert_eq!(lab.send(OUTSIDE, &mut frame_of(OUTSIDE_MAC, ROUTER_MAC, &tuple, &syn)), Verdict::Pass);
    let (tuple, syn) = to("192.0.2.250:443");
    let other_station = frame_of(server_mac(99), ROUTER_MAC, &tuple, &syn);
    assert_eq!(lab.send(OUTSIDE, &mut other_station.clone()), Verdict::Pass, "in passing");
    assert_eq!(lab.send(PortId(9), &mut other_station.clone()), Verdict::Pass, "no such port");
    let (tuple, syn) = to("192.0.2.250:22");
    let mut frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &tuple, &syn);
    assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Drop(DropReason::PortClosed));
    assert_eq!(lab.plane.flows(), 0);
}

#[test]
fn a_stray_segment_is_dropped_or_reset_as_the_settings_say() {
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_TCP);
    for (strays, resets) in [(Strays::Drop, 0), (Strays::Reset, 1)] {
        let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
        setup.settings.strays = strays;
        let mut lab = setup.lab();
        let mut frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &tcp(&forward, ACK, 7, 8, &[], b"x"));
        assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Drop(DropReason::TcpStray));
        assert_eq!(lab.out.len(), resets);
    }
}

/// The kernel takes what is sent to an address of its own by whatever interface, and has connections there that nobody here knows.
#[test]
fn what_goes_to_an_address_that_the_kernel_has_elsewhere_is_its_own() {
    for family in FAMILIES {
        let mut setup = Setup::new(family, Forwarding::FullNat, Protocol::Tcp);
        setup.settings.strays = Strays::Reset;
        let snat = SocketAddr::new(host(family, "inside", 2), 5_000);
        let back = Tuple::new(server(family), snat, PROTOCOL_TCP);
        for (elsewhere, resets) in [(None, 1), (Some(snat.ip().into()), 0)] {
            let mut setup = setup.clone();
            setup.network = setup.network.with_elsewhere(elsewhere);
            let mut lab = setup.lab();
            let syn = tcp(&back, SYN, 7, 0, &[], b"");
            let mut frame = frame_of(INSIDE_MAC, server_mac(80), &back, &syn);
            assert_eq!(lab.send(INSIDE, &mut frame), Verdict::Drop(DropReason::PortClosed));
            assert_eq!(lab.out.len(), resets);
        }
    }
}

/// As after a start that knows nothing of the connections of the process before.
#[test]
fn both_ends_of_a_connection_that_nobody_knows_are_reset_once_they_speak() {
    for family in FAMILIES {
        let mut setup = Setup::new(family, Forwarding::FullNat, Protocol::Tcp);
        setup.settings.strays = Strays::Reset;
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_TCP);
        let back = Tuple::new(server(family), SocketAddr::new(host(family, "inside", 2), 5_000), PROTOCOL_TCP);
        let stranger = Tuple::new(SocketAddr::new(host(family, "inside", 99), 8443), back.destination(), PROTOCOL_TCP);
        for (port, mac, from, tuple, reason) in [
            (OUTSIDE, OUTSIDE_MAC, ROUTER_MAC, forward, Some(DropReason::TcpStray)),
            (INSIDE, INSIDE_MAC, server_mac(80), back, Some(DropReason::PortClosed)),
            (INSIDE, INSIDE_MAC, server_mac(99), stranger, None),
        ] {
            let mut lab = setup.lab();
            let mut frame = frame_of(mac, from, &tuple, &tcp(&tuple, ACK, 7, 8, &[], b"x"));
            assert_eq!(lab.send(port, &mut frame), Verdict::Drop(reason.unwrap_or(DropReason::PortClosed)));
            let made = lab.made();
            assert_eq!(made.len(), usize::from(reason.is_some()), "{tuple:?}");
            if let [(to, reset)] = &made[..] {
                assert_eq!((*to, sound(reset)), (port, tuple.reversed()));
                let Ok(Packet::Transport(reset)) = parse(reset) else { panic!("a segment") };
                assert_eq!((reset.tcp.flags.0, reset.tcp.seq), (RST, 8), "the number that it waits for");
            }
            // A reset is not answered.
            lab.out.clear();
            let mut reset = frame_of(mac, from, &tuple, &tcp(&tuple, RST, 7, 0, &[], b""));
            lab.send(port, &mut reset);
            assert!(lab.out.is_empty());
        }
    }
}

#[test]
fn refusals_have_their_reasons() {
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_TCP);
    let cases = [
        (Refusal::NoServer, DropReason::NoServer, Termination::NoServer),
        (Refusal::ServersFull, DropReason::ServersFull, Termination::ServersFull),
        (Refusal::ServiceFull, DropReason::ServiceFull, Termination::ServiceFull),
    ];
    for (refusal, reason, termination) in cases {
        let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
        lab.clerk.refusal = Some(refusal);
        let mut syn = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &tcp(&forward, SYN, 1, 0, &[], b""));
        assert_eq!(lab.send(OUTSIDE, &mut syn), Verdict::Drop(reason));
        // Where there is no room now, the client is to ask again.
        let resets = usize::from(refusal == Refusal::NoServer);
        assert_eq!((lab.clerk.ends.clone(), lab.out.len(), lab.dropped()), (vec![termination], resets, vec![reason]));
        let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
        setup.overload = model::Overload::Reset;
        let mut lab = setup.lab();
        lab.clerk.refusal = Some(refusal);
        let mut syn = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &tcp(&forward, SYN, 1, 0, &[], b""));
        assert_eq!((lab.send(OUTSIDE, &mut syn), lab.out.len()), (Verdict::Drop(reason), 1));
    }
}

#[test]
fn a_packet_without_a_way_is_dropped() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.servers[0].address = ip("203.0.113.9");
    let mut lab = setup.lab();
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_TCP);
    let mut syn = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &tcp(&forward, SYN, 1, 0, &[], b""));
    assert_eq!(lab.send(OUTSIDE, &mut syn), Verdict::Drop(DropReason::NoRoute));
}

/// One batch may open a flow, use it, end it and open it again.
#[test]
fn a_batch_sees_what_the_packets_before_did() {
    let mut lab = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Tcp).lab();
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_TCP);
    let back = Tuple::new(server(Family::V4), client(Family::V4), PROTOCOL_TCP);
    let outside = |payload: Vec<u8>| (OUTSIDE, frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &payload));
    let inside = |payload: Vec<u8>| (INSIDE, frame_of(INSIDE_MAC, server_mac(80), &back, &payload));
    let mut script = [
        outside(tcp(&forward, SYN, 100, 0, &[], b"")),
        inside(tcp(&back, SYN_ACK, 900, 101, &[], b"")),
        outside(tcp(&forward, ACK, 101, 901, &[], b"")),
        inside(tcp(&back, ACK, 901, 101, &[], b"data")),
        outside(tcp(&forward, RST | ACK, 101, 905, &[], b"")),
        outside(tcp(&forward, SYN, 7_000, 0, &[], b"")),
        inside(tcp(&back, SYN_ACK, 5_900, 7_001, &[], b"")),
        outside(tcp(&forward, ACK, 7_001, 5_901, &[], b"")),
    ];
    let mut frames: Vec<Frame<'_>> = script
        .iter_mut()
        .map(|(port, bytes)| Frame {
            bytes,
            front: &mut [],
            port: *port,
            checksum: Checksum::Complete,
            segment_bytes: 0,
        })
        .collect();
    lab.plane.process(lab.now, &mut frames, &mut lab.verdicts, &mut lab.clerk, &mut lab.out);
    assert!(lab.verdicts.iter().all(|verdict| matches!(verdict, Verdict::Send(_))), "{:?}", lab.verdicts);
    assert_eq!((lab.clerk.opened, lab.clerk.ends.clone()), (2, vec![Termination::ClientReset]));
    assert_eq!((lab.plane.flows(), lab.plane.half_open()), (1, 0));
    assert_eq!((lab.read(PlaneCounter::FramesFromClient), lab.read(PlaneCounter::FramesToClient)), (5, 3));
}

#[test]
fn a_service_of_every_port_leases_for_all_of_them_together() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.ports = Vec::new();
    setup.servers[0].port = None;
    setup.snat = 5_000..=5_001;
    let mut lab = setup.lab();
    let mut leased = HashSet::new();
    for port in [135, 49_152] {
        let forward = Tuple::new(client(Family::V4), SocketAddr::new(vip(Family::V4).ip(), port), PROTOCOL_TCP);
        let (_, _, at_server) = lab.client_sends(&forward, &tcp(&forward, SYN, 1, 0, &[], b""));
        assert_eq!(at_server.dst_port, port);
        leased.insert(at_server.src_port);
    }
    assert_eq!(leased.len(), 2);
}

fn any_setup() -> impl Strategy<Value = (Family, Forwarding, Protocol)> {
    (0..2_usize, 0..3_usize, 0..2_usize)
        .prop_map(|(family, mode, protocol)| (FAMILIES[family], MODES[mode], PROTOCOLS[protocol]))
}

proptest! {
    /// What a server echoes comes back as it was sent: forward, then reverse, is the identity.
    #[test]
    fn what_is_echoed_comes_back_as_it_was_sent(
        (family, forwarding, protocol) in any_setup(),
        client_port in 1_u16..,
        data in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assume!(forwarding != Forwarding::Dsr);
        let mut lab = Setup::new(family, forwarding, protocol).lab();
        let source = SocketAddr::new(client(family).ip(), client_port);
        let forward = Tuple::new(source, vip(family), number(protocol));
        let (_, _, at_server) = lab.client_sends(&forward, &packet(&forward, SYN, 100, 0, b""));
        let back = at_server.reversed();
        lab.server_sends(&back, &packet(&back, SYN_ACK, 900, 101, b""));
        let sent = packet(&forward, ACK, 101, 901, &data);
        let (_, frame, _) = lab.client_sends(&forward, &sent);
        let seen = parsed(&frame);
        prop_assert_eq!(&frame[usize::from(seen.payload)..], &data[..]);
        let (_, frame, at_client) = lab.server_sends(&back, &packet(&back, ACK, 901, 101 + data.len() as u32, &data));
        prop_assert_eq!(at_client, forward.reversed());
        let expected = packet(&forward.reversed(), ACK, 901, 101 + data.len() as u32, &data);
        prop_assert_eq!(&frame[usize::from(parsed(&frame).l4)..], &expected[..]);
    }

    /// Bytes that mean nothing, and frames of real flows with some of their bytes bent, end in a verdict.
    #[test]
    fn no_frame_is_beyond_a_verdict(
        (family, forwarding, protocol) in any_setup(),
        garbage in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 1..8),
        bends in prop::collection::vec((0..3_usize, any::<prop::sample::Index>(), any::<u8>()), 0..24),
        segment_bytes in any::<u16>(),
        partial in any::<bool>(),
    ) {
        let mut lab = Setup::new(family, forwarding, protocol).lab();
        let checksum = if partial { Checksum::Partial } else { Checksum::Complete };
        for bytes in garbage {
            let ether = ethernet(OUTSIDE_MAC, ROUTER_MAC, family == Family::V4, &bytes);
            for mut frame in [bytes, ether] {
                lab.send_as(OUTSIDE, &mut frame, checksum, segment_bytes);
            }
        }
        let forward = Tuple::new(client(family), vip(family), number(protocol));
        let error = too_big(server(family).ip(), &Tuple::new(client(family), server(family), PROTOCOL_TCP), 1, OUTSIDE_MAC);
        let whole = [
            frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &packet(&forward, SYN, 100, 0, b"abcd")),
            frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &packet(&forward, ACK, 101, 1, b"abcd")),
            error,
        ];
        for (which, at, value) in bends {
            let mut frame = whole[which].clone();
            let at = at.index(frame.len());
            frame[at] = value;
            // With and without an IPv4 header checksum that covers the lie.
            if family == Family::V4 && (14..34).contains(&at) {
                frame[24..26].fill(0);
                let sum = checksum::of(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            lab.send_as(OUTSIDE, &mut frame, checksum, segment_bytes);
            frame.truncate(at);
            lab.send_as(OUTSIDE, &mut frame, checksum, segment_bytes);
        }
        lab.now = lab.now + 1_000_000;
        lab.expire();
        prop_assert_eq!((lab.plane.flows(), lab.clerk.connections()), (0, 0));
    }
}
