//! What comes in, case by case: the source of every `in.pcap` that was not captured.

use std::net::SocketAddr;

use towpath_core::plane::PortId;

use crate::bench::{INSIDE, INSIDE_MAC, OUTSIDE, OUTSIDE_MAC, ROUTER_MAC, server_mac};
use crate::capture::{Captured, Offload};
use crate::frames::{
    arp_request, bare, data, end, framed, left_to_the_device, nd_question, nd_solicitation, ping, tcp,
    tcp_with_options, too_big, udp, with_header_checksum, with_ttl,
};

/// Milliseconds between two frames, when nothing else is said.
const STEP_MS: u64 = 10;

/// The name of a case, which is its folder, and who sends what.
pub(crate) type Scene = (&'static str, fn(&mut Script));

/// All of them.
pub(crate) const SCENES: &[Scene] = &[
    ("arp-vip", arp_vip),
    ("bridge-cable", bridge_cable),
    ("bridge-full-nat", bridge_full_nat),
    ("bridge-half-nat", bridge_half_nat),
    ("bridge-half-nat-v6", bridge_half_nat_v6),
    ("bridge-loop", bridge_loop),
    ("bridge-questions", bridge_questions),
    ("bridge-spanning-tree", bridge_spanning_tree),
    ("dsr-v4-tcp", dsr_v4_tcp),
    ("dsr-v4-udp", dsr_v4_udp),
    ("dsr-v6-tcp", dsr_v6_tcp),
    ("dsr-v6-udp", dsr_v6_udp),
    ("full-nat-v4-tcp", full_nat_v4_tcp),
    ("full-nat-v4-udp", full_nat_v4_udp),
    ("full-nat-v6-tcp", full_nat_v6_tcp),
    ("full-nat-v6-udp", full_nat_v6_udp),
    ("hairpin-other-server", hairpin_other_server),
    ("hairpin-same-server", hairpin_same_server),
    ("half-nat-v4-tcp", half_nat_v4_tcp),
    ("half-nat-v4-udp", half_nat_v4_udp),
    ("half-nat-v6-tcp", half_nat_v6_tcp),
    ("half-nat-v6-udp", half_nat_v6_udp),
    ("half-open-answered", half_open_answered),
    ("half-open-unanswered", half_open_unanswered),
    ("icmp-frag-needed", icmp_frag_needed),
    ("icmpv6-too-big", icmpv6_too_big),
    ("ipv4-options", ipv4_options),
    ("lying-frames", lying_frames),
    ("nd-vip", nd_vip),
    ("partial-checksum-v4-tcp", partial_checksum_v4_tcp),
    ("partial-checksum-v4-udp", partial_checksum_v4_udp),
    ("partial-checksum-v6-tcp", partial_checksum_v6_tcp),
    ("partial-checksum-v6-udp", partial_checksum_v6_udp),
    ("ping-vip-v4", ping_vip_v4),
    ("ping-vip-v6", ping_vip_v6),
    ("pool-exhausted", pool_exhausted),
    ("reopen", reopen),
    ("router-refusals", router_refusals),
    ("router-rules", router_rules),
    ("router-transits-v4", router_transits_v4),
    ("router-v4", router_v4),
    ("router-v6", router_v6),
    ("simultaneous-close", simultaneous_close),
    ("super-packets-v4", super_packets_v4),
    ("super-packets-v6", super_packets_v6),
    ("vlan-answers", vlan_answers),
    ("vlan-full-nat-v4", vlan_full_nat_v4),
    ("vlan-half-nat-v6", vlan_half_nat_v6),
    ("vlan-super-packets", vlan_super_packets),
];

const CLIENT_V4: &str = "198.51.100.7:40000";
const VIP_V4: &str = "192.0.2.250:443";
const SERVER_V4: &str = "10.0.0.80:8443";
/// Every pool of the corpus leases one port, so that it is known beforehand.
const SNAT_V4: &str = "10.0.0.2:5000";
const CLIENT_V6: &str = "[2001:db8:c::7]:40000";
const VIP_V6: &str = "[2001:db8::250]:443";
const SERVER_V6: &str = "[fd00::80]:8443";
const SNAT_V6: &str = "[fd00::2]:5000";

/// Frames, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Script {
    now_ms: u64,
    /// Of the next packets.
    offload: Offload,
    /// What stands behind the addresses of the next frames, by port: VLAN tags.
    tags: [Vec<u8>; 2],
    pub(crate) frames: Vec<Captured>,
}

impl Script {
    /// A packet that the router outside delivers.
    pub(crate) fn outside(&mut self, packet: Vec<u8>) {
        let packet = self.left_over(packet);
        self.frame(OUTSIDE, framed(OUTSIDE_MAC, ROUTER_MAC, &packet));
    }

    /// A packet that a station inside sends.
    pub(crate) fn inside(&mut self, number: u8, packet: Vec<u8>) {
        let packet = self.left_over(packet);
        self.frame(INSIDE, framed(INSIDE_MAC, server_mac(number), &packet));
    }

    /// The packet as who leaves the rest to the device hands it over.
    fn left_over(&self, packet: Vec<u8>) -> Vec<u8> {
        if self.offload == Offload::Nothing { packet } else { left_to_the_device(packet) }
    }

    pub(crate) fn frame(&mut self, port: PortId, bytes: Vec<u8>) {
        let (addresses, rest) = bytes.split_at(bytes.len().min(12));
        let bytes = [addresses, &self.tags[port.index()], rest].concat();
        self.frames.push(Captured { at_ms: self.now_ms, port, offload: self.offload, bytes });
        self.now_ms += STEP_MS;
    }

    pub(crate) fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
    }
}

/// Four ends of a flow: what the client sees, and what the server sees.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) client: SocketAddr,
    pub(crate) vip: SocketAddr,
    pub(crate) source: SocketAddr,
    pub(crate) server: SocketAddr,
}

impl Ends {
    fn new([client, vip, source, server]: [&str; 4]) -> Ends {
        Ends { client: end(client), vip: end(vip), source: end(source), server: end(server) }
    }

    pub(crate) fn v4() -> Ends {
        Ends::new([CLIENT_V4, VIP_V4, SNAT_V4, SERVER_V4])
    }

    pub(crate) fn v6() -> Ends {
        Ends::new([CLIENT_V6, VIP_V6, SNAT_V6, SERVER_V6])
    }

    /// The three segments of a handshake: the client begins with 100, the server with 900.
    pub(crate) fn open(&self, script: &mut Script) {
        script.outside(tcp(self.client, self.vip, bare("S", 100, 0)));
        script.inside(80, tcp(self.server, self.source, bare("S.", 900, 101)));
        script.outside(tcp(self.client, self.vip, bare(".", 101, 901)));
    }

    /// A question of 5 octets, an answer of 6.
    fn exchange(&self, script: &mut Script) {
        script.outside(tcp(self.client, self.vip, data(101, 901, b"hello")));
        script.inside(80, tcp(self.server, self.source, data(901, 106, b"world!")));
        script.outside(tcp(self.client, self.vip, bare(".", 106, 907)));
    }

    /// The client closes, then the server.
    fn close(&self, script: &mut Script) {
        script.outside(tcp(self.client, self.vip, bare("F.", 106, 907)));
        script.inside(80, tcp(self.server, self.source, bare("F.", 907, 107)));
        script.outside(tcp(self.client, self.vip, bare(".", 107, 908)));
    }
}

pub(crate) fn whole_connection(ends: Ends, script: &mut Script) {
    ends.open(script);
    ends.exchange(script);
    ends.close(script);
}

fn full_nat_v4_tcp(script: &mut Script) {
    whole_connection(Ends::v4(), script);
}

fn full_nat_v6_tcp(script: &mut Script) {
    whole_connection(Ends::v6(), script);
}

/// The server sees, and answers to, the client's address.
pub(crate) fn half_nat_v4() -> Ends {
    Ends::new([CLIENT_V4, VIP_V4, CLIENT_V4, SERVER_V4])
}

pub(crate) fn half_nat_v6() -> Ends {
    Ends::new([CLIENT_V6, VIP_V6, CLIENT_V6, SERVER_V6])
}

fn half_nat_v4_tcp(script: &mut Script) {
    whole_connection(half_nat_v4(), script);
}

fn half_nat_v6_tcp(script: &mut Script) {
    whole_connection(half_nat_v6(), script);
}

/// The server has the VIP as well and answers past us: only the client is seen.
fn one_sided_connection(client: &str, vip: &str, script: &mut Script) {
    let (client, vip) = (end(client), end(vip));
    script.outside(tcp(client, vip, bare("S", 100, 0)));
    script.outside(tcp(client, vip, bare(".", 101, 901)));
    script.outside(tcp(client, vip, data(101, 901, b"hello")));
    script.outside(tcp(client, vip, bare(".", 106, 907)));
    script.outside(tcp(client, vip, bare("F.", 106, 907)));
    script.outside(tcp(client, vip, bare(".", 107, 908)));
}

fn dsr_v4_tcp(script: &mut Script) {
    one_sided_connection(CLIENT_V4, VIP_V4, script);
}

fn dsr_v6_tcp(script: &mut Script) {
    one_sided_connection(CLIENT_V6, VIP_V6, script);
}

fn one_sided_datagrams(client: &str, vip: &str, script: &mut Script) {
    let (client, vip) = (end(client), end(vip));
    script.outside(udp(client, vip, b"question"));
    script.outside(udp(client, vip, b"another question"));
}

fn dsr_v4_udp(script: &mut Script) {
    one_sided_datagrams(CLIENT_V4, VIP_V4, script);
}

fn dsr_v6_udp(script: &mut Script) {
    one_sided_datagrams(CLIENT_V6, VIP_V6, script);
}

pub(crate) fn datagrams(ends: Ends, script: &mut Script) {
    script.outside(udp(ends.client, ends.vip, b"question"));
    script.inside(80, udp(ends.server, ends.source, b"answer"));
    script.outside(udp(ends.client, ends.vip, b"another question"));
    script.inside(80, udp(ends.server, ends.source, b""));
}

fn full_nat_v4_udp(script: &mut Script) {
    datagrams(Ends::v4(), script);
}

fn full_nat_v6_udp(script: &mut Script) {
    datagrams(Ends::v6(), script);
}

fn half_nat_v4_udp(script: &mut Script) {
    datagrams(half_nat_v4(), script);
}

fn half_nat_v6_udp(script: &mut Script) {
    datagrams(half_nat_v6(), script);
}

/// Both ends leave the checksums to the device, as over veth and virtio: what leaves has the sum of the new pseudo-header.
fn partial_checksum_v4_tcp(script: &mut Script) {
    script.offload = Offload::Checksum;
    whole_connection(Ends::v4(), script);
}

fn partial_checksum_v6_tcp(script: &mut Script) {
    script.offload = Offload::Checksum;
    whole_connection(Ends::v6(), script);
}

fn partial_checksum_v4_udp(script: &mut Script) {
    script.offload = Offload::Checksum;
    datagrams(Ends::v4(), script);
}

fn partial_checksum_v6_udp(script: &mut Script) {
    script.offload = Offload::Checksum;
    datagrams(Ends::v6(), script);
}

/// Four segments each way in one frame: larger than the MTU, and yet not told so.
pub(crate) fn super_packets(ends: Ends, segment_bytes: u16, script: &mut Script) {
    script.offload = Offload::Checksum;
    ends.open(script);
    let octets = u32::from(segment_bytes) * 4;
    let payload = vec![b'x'; octets as usize];
    script.offload = Offload::Segments(segment_bytes);
    script.outside(tcp(ends.client, ends.vip, data(101, 901, &payload)));
    script.inside(80, tcp(ends.server, ends.source, data(901, 101 + octets, &payload)));
    script.offload = Offload::Checksum;
    script.outside(tcp(ends.client, ends.vip, bare(".", 101 + octets, 901 + octets)));
    // One that no segment of it would fit: the device cannot help, so its sender is told.
    script.offload = Offload::Segments(2_000);
    script.inside(80, tcp(ends.server, ends.source, data(901 + octets, 101 + octets, &payload)));
}

fn super_packets_v4(script: &mut Script) {
    super_packets(Ends::v4(), 1_460, script);
}

fn super_packets_v6(script: &mut Script) {
    super_packets(Ends::v6(), 1_440, script);
}

/// The last is for an address that the kernel has itself.
/// A tag of VLAN `vlan` with a priority of 0 to 7.
fn tag(vlan: u16, priority: u16) -> Vec<u8> {
    let [a, b] = (priority << 13 | vlan).to_be_bytes();
    vec![0x81, 0, a, b]
}

/// Questions and pings on two VLANs of one link: each address is answered on its own VLAN only, with its tag. Stacked tags, another VLAN and the
/// frames without a tag get no answer; a priority without a VLAN is no VLAN.
fn vlan_answers(script: &mut Script) {
    let asked = |script: &mut Script, tags: Vec<u8>, target: &str| {
        script.tags[1] = tags;
        script.frame(INSIDE, arp_request(server_mac(80), "10.20.0.80", target));
    };
    asked(script, tag(20, 0), "10.20.0.250");
    asked(script, tag(20, 0), "10.20.0.1");
    asked(script, tag(20, 0), "10.20.0.99");
    asked(script, tag(30, 0), "10.20.0.250");
    asked(script, tag(30, 0), "10.30.0.1");
    asked(script, tag(21, 0), "10.20.0.250");
    asked(script, vec![], "10.20.0.250");
    asked(script, [vec![0x88, 0xa8, 0, 20], tag(20, 0)].concat(), "10.20.0.250");
    asked(script, [tag(20, 0), tag(20, 0)].concat(), "10.20.0.250");
    asked(script, tag(0, 6), "10.0.0.2");
    script.tags[1] = tag(20, 5);
    script.frame(INSIDE, nd_question(server_mac(80), "fd20::80", "fd20::1"));
    script.inside(80, ping("10.20.0.80", "10.20.0.1", b"own"));
    script.inside(80, ping("10.20.0.80", "10.20.0.250", b"a VIP"));
    script.inside(80, ping("fd20::80", "fd20::1", b"own"));
}

/// From a client on one VLAN to a server on another of the other link: what goes either way keeps its priority.
fn vlan_full_nat_v4(script: &mut Script) {
    script.tags = [tag(10, 3), tag(20, 5)];
    let ends = Ends::new(["10.10.0.80:40000", "10.10.0.250:443", "10.20.0.2:5000", "10.20.0.80:8443"]);
    whole_connection(ends, script);
}

/// From a client without a tag to a server on a VLAN, which answers through us.
fn vlan_half_nat_v6(script: &mut Script) {
    script.tags[1] = tag(20, 1);
    let ends = Ends::new([CLIENT_V6, VIP_V6, CLIENT_V6, "[fd20::80]:8443"]);
    whole_connection(ends, script);
}

/// Super-packets with a partial checksum from one VLAN to the other.
fn vlan_super_packets(script: &mut Script) {
    script.tags = [tag(10, 0), tag(20, 0)];
    let ends = Ends::new(["10.10.0.80:40000", "10.10.0.250:443", "10.20.0.2:5000", "10.20.0.80:8443"]);
    super_packets(ends, 1_448, script);
}

fn ping_vip_v4(script: &mut Script) {
    script.outside(ping("198.51.100.7", "192.0.2.250", b"abcdefgh"));
    script.outside(ping("198.51.100.7", "192.0.2.250", b""));
    script.outside(ping("198.51.100.7", "192.0.2.1", b"the kernel's"));
}

fn ping_vip_v6(script: &mut Script) {
    script.outside(ping("2001:db8:c::7", "2001:db8::250", b"abcdefgh"));
    script.outside(ping("2001:db8:c::7", "2001:db8::250", b"odd"));
    script.outside(ping("2001:db8:c::7", "2001:db8::1", b"the kernel's"));
}

/// The VIP belongs to the link outside and the SNAT address to the one inside; 192.0.2.1 is the kernel's, 192.0.2.99 a stranger's.
fn arp_vip(script: &mut Script) {
    script.frame(OUTSIDE, arp_request(ROUTER_MAC, "192.0.2.254", "192.0.2.250"));
    script.frame(INSIDE, arp_request(server_mac(80), "10.0.0.80", "10.0.0.2"));
    script.frame(INSIDE, arp_request(server_mac(80), "10.0.0.80", "192.0.2.250"));
    script.frame(OUTSIDE, arp_request(ROUTER_MAC, "192.0.2.254", "192.0.2.1"));
    script.frame(OUTSIDE, arp_request(ROUTER_MAC, "192.0.2.254", "192.0.2.99"));
}

/// The same for IPv6; the last comes from another link, as its hop limit tells.
fn nd_vip(script: &mut Script) {
    script.frame(OUTSIDE, nd_question(ROUTER_MAC, "2001:db8::fe", "2001:db8::250"));
    script.frame(INSIDE, nd_question(server_mac(80), "fd00::80", "fd00::2"));
    script.frame(OUTSIDE, nd_question(ROUTER_MAC, "2001:db8::fe", "2001:db8::1"));
    script.frame(OUTSIDE, nd_question(ROUTER_MAC, "2001:db8::fe", "2001:db8::99"));
    script.frame(OUTSIDE, nd_solicitation(ROUTER_MAC, "2001:db8::fe", "2001:db8::250", 254));
}

/// A router on the client's side cannot take the server's answer: the server is told, of the packet as it had sent it. Then two that are not to be
/// believed: about octets that are not on their way, and about no flow.
fn icmp_frag_needed(script: &mut Script) {
    let ends = Ends::v4();
    ends.open(script);
    script.outside(tcp(ends.client, ends.vip, data(101, 901, b"hello")));
    script.inside(80, tcp(ends.server, ends.source, data(901, 106, &[b'x'; 1_400])));
    // A router quotes the IP header and 8 octets (RFC 792), newer ones more (RFC 1812 section 4.3.2.3).
    let seen = tcp(ends.vip, ends.client, data(901, 106, &[b'x'; 1_400]));
    script.outside(too_big("203.0.113.1", 1_300, &seen[..28]));
    script.outside(too_big("203.0.113.1", 1_300, &seen[..548]));
    let blind = tcp(ends.vip, ends.client, data(50_000_000, 106, &[b'x'; 1_400]));
    script.outside(too_big("203.0.113.1", 600, &blind[..28]));
    let stray = tcp(ends.vip, end("198.51.100.9:1"), data(901, 106, b"x"));
    script.outside(too_big("203.0.113.1", 600, &stray[..28]));
}

fn icmpv6_too_big(script: &mut Script) {
    let ends = Ends::v6();
    ends.open(script);
    script.outside(tcp(ends.client, ends.vip, data(101, 901, b"hello")));
    script.inside(80, tcp(ends.server, ends.source, data(901, 106, &[b'x'; 1_400])));
    let seen = tcp(ends.vip, ends.client, data(901, 106, &[b'x'; 1_400]));
    script.outside(too_big("2001:db8:f::1", 1_300, &seen[..1_232]));
    let blind = tcp(ends.vip, ends.client, data(50_000_000, 106, &[b'x'; 1_400]));
    script.outside(too_big("2001:db8:f::1", 1_280, &blind[..1_232]));
}

/// Options stay as they are, but for a source route, which is dropped.
fn ipv4_options(script: &mut Script) {
    let ends = Ends::v4();
    let router_alert = [148, 4, 0, 0];
    let record_route = [7, 7, 4, 0, 0, 0, 0, 0];
    script.outside(tcp_with_options(ends.client, ends.vip, &router_alert, bare("S", 100, 0)));
    script.inside(80, tcp_with_options(ends.server, ends.source, &record_route, bare("S.", 900, 101)));
    script.outside(tcp_with_options(ends.client, ends.vip, &router_alert, bare(".", 101, 901)));
    script.outside(tcp_with_options(ends.client, ends.vip, &router_alert, data(101, 901, b"hello")));
    let loose_source_route = [131, 7, 4, 203, 0, 113, 1, 0];
    script.outside(tcp_with_options(ends.client, ends.vip, &loose_source_route, data(106, 901, b"round about")));
}

/// A real server is a client of the VIP: its answers have to come back through us, so it gets a SNAT address although the service keeps clients'.
fn hairpin(from: u8, script: &mut Script) {
    let client = format!("10.0.0.{from}:40000");
    let ends = Ends::new([&client, VIP_V4, SNAT_V4, SERVER_V4]);
    script.inside(from, tcp(ends.client, ends.vip, bare("S", 100, 0)));
    script.inside(80, tcp(ends.server, ends.source, bare("S.", 900, 101)));
    script.inside(from, tcp(ends.client, ends.vip, bare(".", 101, 901)));
    script.inside(from, tcp(ends.client, ends.vip, data(101, 901, b"hello")));
    script.inside(80, tcp(ends.server, ends.source, data(901, 106, b"world!")));
}

fn hairpin_other_server(script: &mut Script) {
    hairpin(81, script);
}

fn hairpin_same_server(script: &mut Script) {
    hairpin(80, script);
}

/// The pool has one port. The second client is refused by a reset, and the first does not notice.
fn pool_exhausted(script: &mut Script) {
    let ends = Ends::v4();
    ends.open(script);
    script.outside(tcp(end("198.51.100.8:40000"), ends.vip, bare("S", 200, 0)));
    ends.exchange(script);
}

/// The server never answers. After `connect_timeout` the flow is gone: its answer comes too late, and the port is there for another client.
fn half_open_unanswered(script: &mut Script) {
    let ends = Ends::v4();
    script.outside(tcp(ends.client, ends.vip, bare("S", 100, 0)));
    script.wait(10_000);
    script.inside(80, tcp(ends.server, ends.source, bare("S.", 900, 101)));
    script.outside(tcp(end("198.51.100.8:40000"), ends.vip, bare("S", 200, 0)));
}

/// The client never completes the handshake. After `connect_timeout` the server's half of it is ended by a reset.
fn half_open_answered(script: &mut Script) {
    let ends = Ends::v4();
    script.outside(tcp(ends.client, ends.vip, bare("S", 100, 0)));
    script.inside(80, tcp(ends.server, ends.source, bare("S.", 900, 101)));
    script.wait(300_000);
    script.outside(tcp(ends.client, ends.vip, bare(".", 101, 901)));
}

/// Both sides send a FIN before they see the other's (RFC 9293 figure 13).
fn simultaneous_close(script: &mut Script) {
    let ends = Ends::v4();
    ends.open(script);
    ends.exchange(script);
    script.outside(tcp(ends.client, ends.vip, bare("F.", 106, 907)));
    script.inside(80, tcp(ends.server, ends.source, bare("F.", 907, 106)));
    script.outside(tcp(ends.client, ends.vip, bare(".", 107, 908)));
    script.inside(80, tcp(ends.server, ends.source, bare(".", 908, 107)));
}

/// The client uses the same port again while the flow is still kept (RFC 9293 section 3.6.1): a new connection with higher numbers.
fn reopen(script: &mut Script) {
    let ends = Ends::new([CLIENT_V4, VIP_V4, CLIENT_V4, SERVER_V4]);
    whole_connection(ends, script);
    script.wait(1_000);
    script.outside(tcp(ends.client, ends.vip, bare("S", 1_000_100, 0)));
    script.inside(80, tcp(ends.server, ends.source, bare("S.", 2_000_900, 1_000_101)));
    script.outside(tcp(ends.client, ends.vip, bare(".", 1_000_101, 2_000_901)));
}

/// Past the VIP, as the server sees it, and by the VIP at the same time.
fn router(ends: Ends, script: &mut Script) {
    let (client, server) = (ends.client, ends.server);
    ends.open(script);
    let direct = SocketAddr::new(client.ip(), client.port() + 1);
    script.outside(tcp(direct, server, bare("S", 500, 0)));
    script.inside(80, tcp(server, direct, bare("S.", 700, 501)));
    script.outside(tcp(direct, server, bare(".", 501, 701)));
    ends.exchange(script);
    script.outside(udp(client, server, b"question"));
    script.inside(80, udp(server, client, b"answer"));
    let (client, server) = (client.ip().to_string(), server.ip().to_string());
    script.outside(ping(&client, &server, b"abcdefgh"));
    script.inside(80, ping(&server, &client, b"abcdefgh"));
    // What the server starts by itself.
    script.inside(80, tcp(SocketAddr::new(ends.server.ip(), 50_000), end_of(&client, 135), bare("S", 100, 0)));
    // Four segments in one frame.
    script.offload = Offload::Segments(1_400);
    script.inside(80, tcp(ends.server, direct, data(701, 501, &[b'x'; 5_600])));
}

/// A whole connection past the VIP, which the fast path may carry: with what does not fit, what is on its last hop, super-packets, a half that goes on
/// after the other one's end, and a reset.
fn router_transits_v4(script: &mut Script) {
    let Ends { client, server, .. } = half_nat_v4();
    script.outside(tcp(client, server, bare("S", 100, 0)));
    script.inside(80, tcp(server, client, bare("S.", 900, 101)));
    let (mut sent, mut answered) = (101, 901);
    for _ in 0..5 {
        script.outside(tcp(client, server, data(sent, answered, b"question")));
        sent += 8;
        script.inside(80, tcp(server, client, data(answered, sent, b"answer")));
        answered += 6;
    }
    script.inside(80, tcp(server, client, data(answered, sent, &[b'x'; 1_500])));
    script.outside(with_ttl(tcp(client, server, bare(".", sent, answered)), 1));
    // Numbers of no connection, and from where no such client is.
    script.outside(tcp(client, server, bare(".", 1 << 31, 1 << 30)));
    script.inside(80, tcp(client, server, bare(".", sent, answered)));
    for (segment, offload) in [(1_400, Offload::Segments(1_400)), (1_461, Offload::Segments(1_461))] {
        script.offload = offload;
        script.inside(80, tcp(server, client, data(answered, sent, &vec![b'y'; 4 * segment])));
    }
    script.offload = Offload::Nothing;
    answered += 5_600;
    script.outside(tcp(client, server, bare("F.", sent, answered)));
    for _ in 0..4 {
        script.inside(80, tcp(server, client, data(answered, sent + 1, b"more")));
        answered += 4;
        script.outside(tcp(client, server, bare(".", sent + 1, answered)));
    }
    script.wait(3_000);
    script.inside(80, tcp(server, client, data(answered, sent + 1, b"late")));
    script.inside(80, tcp(server, client, bare("R", answered + 4, 0)));
    script.inside(80, tcp(server, client, data(answered, sent + 1, b"later")));
}

fn end_of(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

fn router_v4(script: &mut Script) {
    router(half_nat_v4(), script);
}

fn router_v6(script: &mut Script) {
    router(half_nat_v6(), script);
}

/// What a router does not forward, each time before the same of IPv6: senders of the first and the second are told why.
fn router_refusals(script: &mut Script) {
    for (ends, nearby, forged, link_local) in [
        (half_nat_v4(), "192.0.2.1:9", "10.0.0.99:9", "169.254.0.9:9"),
        (half_nat_v6(), "[2001:db8::1]:9", "[fd00::99]:9", "[fe80::9]:9"),
    ] {
        let (client, server) = (ends.client, ends.server);
        script.outside(with_ttl(udp(client, server, b"traceroute"), 1));
        script.inside(80, udp(server, client, &[b'x'; 1_600]));
        // The kernel's; from where it cannot be; of one link only, either way; from ourselves.
        script.outside(udp(client, end(nearby), b"the kernel's"));
        script.outside(udp(end(forged), server, b"forged"));
        script.outside(udp(end(link_local), server, b"from the link"));
        script.outside(udp(client, end(link_local), b"to the link"));
        script.inside(80, udp(SocketAddr::new(end(nearby).ip(), 9), client, b"from us"));
        // To the service, and yet none of its ports.
        script.outside(udp(client, ends.vip, b"closed"));
    }
    script.outside(udp(half_nat_v4().client, end("10.0.0.255:9"), b"to all of them"));
    // Who complains about a complaint would never end.
    let quoted = udp(end(SERVER_V4), end("203.0.113.9:9"), b"x");
    script.outside(with_ttl(too_big("192.0.2.254", 1_300, &quoted), 1));
}

/// Everything is denied but what servers open, and datagrams to one port of theirs with their answers.
fn router_rules(script: &mut Script) {
    let Ends { client, server, .. } = half_nat_v4();
    let stun = SocketAddr::new(server.ip(), 3478);
    script.outside(tcp(client, server, bare("S", 100, 0)));
    script.outside(udp(client, server, b"denied"));
    script.outside(udp(client, stun, b"question"));
    script.inside(80, udp(stun, client, b"answer"));
    script.inside(80, udp(server, client, b"denied"));
    // About an answer, and about what was never let in.
    script.outside(too_big("198.51.100.1", 1_300, &udp(stun, client, b"answer")));
    script.outside(too_big("198.51.100.1", 1_300, &udp(server, client, b"denied")));
    let directory = SocketAddr::new(client.ip(), 135);
    script.inside(80, tcp(server, directory, bare("S", 100, 0)));
    script.outside(tcp(directory, server, bare("S.", 900, 101)));
    script.inside(80, tcp(server, directory, bare(".", 101, 901)));
    script.outside(ping("198.51.100.7", "10.0.0.80", b"denied"));
}

/// One lie or cut each, and a good segment last, which alone goes on.
fn lying_frames(script: &mut Script) {
    let (client, vip) = (end(CLIENT_V4), end(VIP_V4));
    let good = tcp(client, vip, bare("S", 100, 0));
    let whole = framed(OUTSIDE_MAC, ROUTER_MAC, &good);
    let bent = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    // Cut short: in the Ethernet header, in the IPv4 header, in the TCP header.
    for length in [10, 14 + 12, 14 + 20 + 6] {
        script.frame(OUTSIDE, whole[..length].to_vec());
    }
    // A version, a header length and two total lengths that are not so; a header checksum that is wrong.
    script.outside(bent(0, 0x65));
    script.outside(with_header_checksum(bent(0, 0x44)));
    script.outside(with_header_checksum(bent(2, 0x40)));
    script.outside(with_header_checksum(bent(3, 19)));
    script.outside(bent(10, good[10] ^ 1));
    // From a loopback address, from port 0; a TCP header of 16 octets, of 60 octets; SYN and FIN together.
    script.outside(with_header_checksum(bent(12, 127)));
    script.outside(tcp(end("198.51.100.7:0"), vip, bare("S", 100, 0)));
    script.outside(bent(32, 0x40));
    script.outside(bent(32, 0xf0));
    script.outside(tcp(client, vip, bare("SF", 100, 0)));
    // A fragment; a segment of no flow; a port that no service has; a frame from a group's address.
    script.outside(with_header_checksum(bent(6, 0x20)));
    script.outside(tcp(client, vip, data(101, 901, b"stray")));
    script.outside(tcp(client, end("192.0.2.250:22"), bare("S", 100, 0)));
    script.frame(OUTSIDE, framed(OUTSIDE_MAC, [3, 0, 0, 0, 0, 1], &good));
    // A ping whose checksum is wrong; UDP lengths of 4 and of more than there is.
    let mut false_ping = ping("198.51.100.7", "192.0.2.250", b"abcdefgh");
    false_ping[22] ^= 1;
    script.outside(false_ping);
    for length in [4, 200] {
        let mut datagram = udp(client, vip, b"question");
        datagram[25] = length;
        script.outside(datagram);
    }
    // Of IPv6: longer than its frame; from an IPv4-mapped address.
    let v6 = tcp(end(CLIENT_V6), end(VIP_V6), bare("S", 100, 0));
    let mut longer = v6.clone();
    longer[5] += 100;
    script.outside(longer);
    script.outside(tcp(end("[::ffff:198.51.100.7]:40000"), end(VIP_V6), bare("S", 100, 0)));
    script.outside(good);
}

/// Stations on both sides of a bridge that have nothing to do with us, one each.
const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];
const EVERYBODY: [u8; 6] = [0xff; 6];

impl Script {
    /// A frame from the near station outside, and one back from the far station inside.
    fn both_ways(&mut self, there: Vec<u8>, back: Vec<u8>) {
        self.frame(OUTSIDE, framed(FAR_MAC, NEAR_MAC, &there));
        self.frame(INSIDE, framed(NEAR_MAC, FAR_MAC, &back));
    }
}

/// A frame that carries no IP.
fn other_frame(dst: [u8; 6], src: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &ethertype.to_be_bytes(), payload].concat()
}

/// All of it is others': IPv4 and IPv6 with whole and partial checksums, super-packets, pings, groups, broadcast, ARP, protocols that nobody here knows, a
/// tag, and what is no packet at all.
fn bridge_cable(script: &mut Script) {
    for (near, far) in [("192.0.2.9:5000", "192.0.2.10:445"), ("[2001:db8::9]:5000", "[2001:db8::10]:445")] {
        let (near, far) = (end(near), end(far));
        script.both_ways(tcp(near, far, bare("S", 100, 0)), tcp(far, near, bare("S.", 900, 101)));
        script.both_ways(udp(near, far, b"question"), udp(far, near, b"answer"));
        let (from, to) = (near.ip().to_string(), far.ip().to_string());
        script.both_ways(ping(&from, &to, b"there?"), ping(&to, &from, b"and you?"));
        script.offload = Offload::Segments(1_000);
        let long = [b'x'; 4_000];
        let (there, back) = (tcp(near, far, data(101, 901, &long)), tcp(far, near, data(901, 4_101, &long)));
        script.both_ways(left_to_the_device(there), left_to_the_device(back));
        script.offload = Offload::Nothing;
    }
    script.frame(OUTSIDE, arp_request(NEAR_MAC, "192.0.2.9", "192.0.2.10"));
    script.frame(INSIDE, arp_request(FAR_MAC, "192.0.2.10", "192.0.2.9"));
    script.frame(INSIDE, nd_solicitation(FAR_MAC, "2001:db8::10", "2001:db8::9", 255));
    let group = udp(end("192.0.2.9:5353"), end("224.0.0.251:5353"), b"who is there");
    script.frame(OUTSIDE, framed([0x01, 0, 0x5e, 0, 0, 0xfb], NEAR_MAC, &group));
    script.frame(INSIDE, framed(EVERYBODY, FAR_MAC, &udp(end("0.0.0.0:68"), end("255.255.255.255:67"), b"an address")));
    script.frame(OUTSIDE, other_frame(EVERYBODY, NEAR_MAC, 0x88b6, &[1; 46]));
    script.frame(INSIDE, other_frame([0x01, 0x80, 0xc2, 0, 0, 0], FAR_MAC, 38, &[0x42; 46]));
    script.frame(OUTSIDE, other_frame(FAR_MAC, NEAR_MAC, 0x8100, &[0, 7, 0x08, 0x00, 0x45]));
    script.frame(INSIDE, other_frame(NEAR_MAC, FAR_MAC, 0x0800, &[0x45, 0, 0xff, 0xff]));
}

/// The server is in the VIP's network, on the other arm; what it answers is for a SNAT address and so for us.
fn bridge_full_nat(script: &mut Script) {
    whole_connection(Ends::new([CLIENT_V4, VIP_V4, "192.0.2.2:5000", "192.0.2.80:8443"]), script);
}

/// The server answers the client, by its router: for another station's MAC. What else it sends there is its own affair.
fn bridge_answers(ends: Ends, script: &mut Script) {
    let answer = |script: &mut Script, from: SocketAddr, segment| {
        script.frame(INSIDE, framed(ROUTER_MAC, server_mac(80), &tcp(from, ends.client, segment)));
    };
    script.outside(tcp(ends.client, ends.vip, bare("S", 100, 0)));
    answer(script, ends.server, bare("S.", 900, 101));
    script.outside(tcp(ends.client, ends.vip, bare(".", 101, 901)));
    answer(script, SocketAddr::new(ends.server.ip(), 3389), bare("S.", 500, 1));
    script.outside(tcp(ends.client, ends.vip, data(101, 901, b"hello")));
    answer(script, ends.server, data(901, 106, b"world!"));
    // Straight to the server.
    script.frame(OUTSIDE, framed(server_mac(80), ROUTER_MAC, &tcp(ends.client, ends.server, bare("S", 1, 0))));
    script.outside(tcp(ends.client, ends.vip, bare("F.", 106, 907)));
    answer(script, ends.server, bare("F.", 907, 107));
    script.outside(tcp(ends.client, ends.vip, bare(".", 107, 908)));
}

fn bridge_half_nat(script: &mut Script) {
    bridge_answers(Ends::new([CLIENT_V4, VIP_V4, CLIENT_V4, "192.0.2.80:8443"]), script);
}

fn bridge_half_nat_v6(script: &mut Script) {
    bridge_answers(Ends::new([CLIENT_V6, VIP_V6, CLIENT_V6, "[2001:db8::80]:8443"]), script);
}

/// Answered by the arm that they came by: for the VIP, the SNAT address and the bridge's own; all others cross, and so do answers.
fn bridge_questions(script: &mut Script) {
    for target in ["192.0.2.250", "192.0.2.2", "192.0.2.1", "192.0.2.99"] {
        script.frame(OUTSIDE, arp_request(ROUTER_MAC, "192.0.2.254", target));
        script.frame(INSIDE, arp_request(server_mac(80), "192.0.2.80", target));
    }
    for target in ["2001:db8::250", "2001:db8::1", "2001:db8::99"] {
        script.frame(OUTSIDE, nd_solicitation(ROUTER_MAC, "2001:db8::fe", target, 255));
        script.frame(INSIDE, nd_solicitation(server_mac(80), "2001:db8::80", target, 255));
    }
    script.outside(ping("198.51.100.7", "192.0.2.250", b"the VIP"));
    script.frame(INSIDE, framed(INSIDE_MAC, server_mac(80), &ping("192.0.2.80", "192.0.2.1", b"the bridge")));
    script.frame(INSIDE, framed(ROUTER_MAC, server_mac(80), &ping("192.0.2.80", "192.0.2.254", b"the router")));
}

/// The ports are in one switch: what leaves by one comes in by the other, and a station is at both.
fn bridge_loop(script: &mut Script) {
    script.frame(OUTSIDE, other_frame(EVERYBODY, NEAR_MAC, 0x88b6, &[1; 46]));
    script.frame(INSIDE, other_frame(EVERYBODY, OUTSIDE_MAC, 0x88b5, &[2; 46]));
    for _ in 0..4 {
        script.frame(INSIDE, other_frame(EVERYBODY, NEAR_MAC, 0x88b6, &[1; 46]));
        script.frame(OUTSIDE, other_frame(EVERYBODY, NEAR_MAC, 0x88b6, &[1; 46]));
    }
    // It is over, and comes again.
    script.wait(11_000);
    script.frame(OUTSIDE, other_frame(EVERYBODY, FAR_MAC, 0x88b6, &[3; 46]));
    script.frame(OUTSIDE, other_frame(EVERYBODY, OUTSIDE_MAC, 0x88b5, &[4; 46]));
}

/// Neither the one of customers nor that of each VLAN passes; link layer discovery does.
fn bridge_spanning_tree(script: &mut Script) {
    for (port, mac) in [(OUTSIDE, NEAR_MAC), (INSIDE, FAR_MAC)] {
        script.frame(port, other_frame([0x01, 0x80, 0xc2, 0, 0, 0], mac, 38, &[0x42; 46]));
        script.frame(port, other_frame([0x01, 0, 0x0c, 0xcc, 0xcc, 0xcd], mac, 50, &[0xaa; 50]));
        script.frame(port, other_frame([0x01, 0x80, 0xc2, 0, 0, 0x0e], mac, 0x88cc, &[2; 46]));
    }
}
