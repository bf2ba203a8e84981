//! Frames of all kinds, steered by the function and by the program.

use super::*;
use crate::packet::{EXTENSIONS_MAX, Ip, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Tuple, checksum, parse};
use crate::steering::frame::{FanoutRule, steer, vshard_of_fragment, vshard_of_tuple};
use crate::steering::program::{ETHERTYPE, FanoutTooLong, fanout_program};

/// Loads from a frame, as fanout programs do: from the network header on.
fn from_frame(frame: &[u8]) -> impl Fn(u32, usize) -> Option<u32> {
    move |offset, size| match offset {
        ETHERTYPE => word(frame, 12, size),
        _ => word(frame.get(14..)?, offset, size),
    }
}

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, chance: u64) -> bool {
        self.next().is_multiple_of(chance)
    }

    fn octets<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }

    fn port(&mut self) -> u16 {
        [80, 443, 444, 5060, 5061, 5062, 1024, 65_535, self.next() as u16 | 1][self.below(9)]
    }

    /// An address of this family: often one of ours, or one that begins like it.
    fn address(&mut self, v4: bool, ours: &[FanoutRule]) -> Vec<u8> {
        let mut octets = if v4 { self.octets::<4>().to_vec() } else { self.octets::<16>().to_vec() };
        let ours: Vec<Ip> = ours.iter().map(|rule| rule.address).filter(|ip| ip.is_v4() == v4).collect();
        if !ours.is_empty() && !self.one_in(3) {
            let one = ours[self.below(ours.len())].0;
            let same = if self.one_in(4) { self.below(octets.len()) } else { octets.len() };
            let like = &one[16 - octets.len()..];
            octets[..same].copy_from_slice(&like[..same]);
        } else if v4 {
            // No martian, so that the plane takes it too.
            octets[0] = 10;
        } else {
            octets[0] = 0x20;
        }
        octets
    }

    /// An IP packet; `depth` packets may be quoted in each other.
    fn packet(&mut self, v4: bool, ours: &[FanoutRule], depth: usize) -> Vec<u8> {
        let icmp = if v4 { 1 } else { 58 };
        let protocol = match self.below(12) {
            0 => self.next() as u8,
            1..=3 if depth > 0 => icmp,
            4..=7 => 17,
            _ => 6,
        };
        let (src, mut dst) = (self.address(v4, ours), self.address(v4, ours));
        let mut payload = Vec::new();
        if protocol == icmp {
            let errors: &[u8] = if v4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
            let kind = if self.one_in(4) { self.next() as u8 } else { errors[self.below(errors.len())] };
            payload.extend([kind, self.next() as u8, 0, 0]);
            payload.extend(self.octets::<4>());
            if depth > 0 {
                let quoted = self.packet(v4, ours, depth - 1);
                // Mostly to the sender of what it quotes.
                if !self.one_in(4) {
                    dst = if v4 { quoted[12..16].to_vec() } else { quoted[8..24].to_vec() };
                }
                payload.extend(quoted);
            }
            let pseudo_header = if v4 { 0 } else { checksum::pseudo_header(&src, &dst, icmp, payload.len() as u32) };
            let sum = checksum::transport(pseudo_header, &payload);
            payload[2..4].copy_from_slice(&sum.to_be_bytes());
        } else {
            payload.extend(self.port().to_be_bytes());
            payload.extend(self.port().to_be_bytes());
            // A TCP header with ACK, or a UDP header of a length that fits.
            payload.extend(if protocol == 17 { [0, 20, 1, 1] } else { [1, 2, 3, 4] });
            payload.extend([0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        }
        let mut packet = Vec::new();
        if v4 {
            let options = if self.one_in(3) { 4 * self.below(11) } else { 0 };
            let part: u16 = if self.one_in(8) { self.next() as u16 & 0xbfff } else { 0x4000 };
            packet.extend([0x45 + (options / 4) as u8, 0]);
            packet.extend(((20 + options + payload.len()) as u16).to_be_bytes());
            packet.extend(self.octets::<2>());
            packet.extend(part.to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
            packet.extend(src);
            packet.extend(dst);
            packet.extend(vec![1; options]);
            let sum = checksum::of(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            // Extension headers from the last to the first.
            let mut next = protocol;
            let mut extensions = Vec::new();
            let count = if self.one_in(2) { self.below(EXTENSIONS_MAX + 3) } else { 0 };
            for _ in 0..count {
                let (kind, header) = match self.below(4) {
                    0 => {
                        let part: u16 = if self.one_in(2) { self.next() as u16 } else { 0 };
                        let [high, low] = part.to_be_bytes();
                        let [a, b, c, d] = self.octets();
                        (44, vec![next, 0, high, low, a, b, c, d])
                    }
                    kind => {
                        let longer = self.below(3);
                        let mut header = vec![1; 8 * (longer + 1)];
                        header[..4].copy_from_slice(&[next, longer as u8, 1, 0]);
                        ([0, 43, 60][kind - 1], header)
                    }
                };
                extensions.splice(0..0, header);
                next = kind;
            }
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(((extensions.len() + payload.len()) as u16).to_be_bytes());
            packet.extend([next, 64]);
            packet.extend(src);
            packet.extend(dst);
            packet.extend(extensions);
        }
        packet.extend(payload);
        packet
    }

    fn frame(&mut self, ours: &[FanoutRule]) -> Vec<u8> {
        let v4 = self.one_in(2);
        let ethertype: u16 = match (self.below(20), v4) {
            (0, _) => 0x0806,
            (1, _) => self.next() as u16,
            (_, true) => 0x0800,
            (_, false) => 0x86dd,
        };
        let mut frame = vec![2; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(self.packet(v4, ours, 2));
        if self.one_in(10) {
            frame.truncate(14 + self.below(frame.len() - 14));
        }
        if self.one_in(10) {
            let at = 12 + self.below(frame.len() - 12);
            frame[at] = self.next() as u8;
        }
        frame
    }
}

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

/// VIPs, SNAT addresses and one of both, of both families; some begin alike.
fn ours() -> Vec<FanoutRule> {
    let lync = [443, 444, 5061, 5062, 8057].into_iter().chain(49_152..=65_535);
    vec![
        FanoutRule::vip(ip("192.0.2.80")),
        FanoutRule::snat(ip("192.0.2.81")),
        FanoutRule::snat(ip("10.0.0.5")),
        FanoutRule::snat(ip("10.0.0.6")),
        FanoutRule::shared(ip("192.0.2.90"), lync.clone()),
        FanoutRule::shared(ip("192.0.2.91"), [443]),
        // The second rule for an address does not count.
        FanoutRule::vip(ip("10.0.0.5")),
        FanoutRule::vip(ip("2001:db8::80")),
        FanoutRule::vip(ip("2001:db8:0:1::80")),
        FanoutRule::snat(ip("2001:db8::81")),
        FanoutRule::snat(ip("2001:db8:ffff::81")),
        FanoutRule::shared(ip("2001:db8::90"), lync),
        FanoutRule::shared(ip("fd00::1"), 0..=u16::MAX),
    ]
}

fn is_mapped(frame: &[u8]) -> bool {
    frame.windows(12).any(|octets| octets == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])
}

#[test]
fn the_program_and_the_function_name_the_same_worker_over_a_million_frames() {
    let tables = [
        SteeringTable::even(1),
        SteeringTable::even(2),
        SteeringTable::even(3).remapped(7).remapped(5),
        SteeringTable::even(256),
    ];
    let rules = [ours(), Vec::new(), ours()[..4].to_vec(), ours()];
    let programs: Vec<Vec<Instruction>> =
        tables.iter().zip(&rules).map(|(table, ours)| fanout_program(table, SEED, ours).unwrap()).collect();
    let mut random = Random(4);
    let mut seen = HashSet::new();
    let mut elsewhere = 0;
    for turn in 0..TUPLES {
        let which = turn % tables.len();
        let frame = random.frame(&rules[which]);
        if is_mapped(&frame) {
            continue;
        }
        let vshard = steer(&frame, SEED, &rules[which]);
        let named = run(&programs[which], from_frame(&frame));
        assert_eq!(named, u32::from(tables[which].worker_of(vshard).0), "{frame:02x?}");
        seen.insert((which, named));
        elsewhere += usize::from(vshard != VShard(0));
    }
    // Every worker of every table: 1 + 2 + 5 + 256.
    assert_eq!(seen.len(), 264);
    assert!(elsewhere > TUPLES / 2, "only {elsewhere} frames were anybody's in particular");
}

#[test]
fn what_the_plane_reads_in_a_frame_is_what_steering_goes_by() {
    let rules = ours();
    let mut random = Random(5);
    let (mut whole, mut errors, mut fragments, mut longest) = (0, 0, 0, 0);
    for _ in 0..TUPLES / 4 {
        let frame = random.frame(&rules);
        match parse(&frame) {
            Ok(Packet::Transport(parsed)) => {
                assert_eq!(steer(&frame, SEED, &rules), vshard_of_tuple(&parsed.tuple, SEED, &rules), "{frame:02x?}");
                whole += 1;
                // Eight octets each, at least.
                longest = longest.max(usize::from(parsed.l4) - 14);
            }
            Ok(Packet::IcmpError(error)) => {
                let back = error.embedded.reversed();
                // Pings are all at one place.
                let expected = match back.protocol {
                    PROTOCOL_TCP | PROTOCOL_UDP => vshard_of_tuple(&back, SEED, &rules),
                    _ => VShard(0),
                };
                assert_eq!(steer(&frame, SEED, &rules), expected, "{frame:02x?}");
                errors += 1;
            }
            Ok(Packet::Fragment(fragment)) => {
                let vshard = vshard_of_fragment(&fragment.key, SEED);
                assert_eq!(steer(&frame, SEED, &rules), vshard, "{frame:02x?}");
                fragments += 1;
            }
            _ => {}
        }
    }
    let counts = format!("{whole} whole packets, {errors} errors, {fragments} fragments");
    assert!(whole > 10_000 && errors > 1_000 && fragments > 1_000, "{counts}");
    assert!(longest >= 40 + 8 * EXTENSIONS_MAX, "{longest} octets of headers at most");
}

#[test]
fn both_directions_of_a_flow_meet() {
    let rules = ours();
    let tuple = |src: &str, src_port, dst: &str, dst_port| Tuple {
        src: ip(src),
        dst: ip(dst),
        src_port,
        dst_port,
        protocol: 6,
    };
    let shard = |tuple| vshard_of_tuple(&tuple, SEED, &rules);
    let client = shard(tuple("198.51.100.7", 40_001, "192.0.2.80", 443));
    assert_eq!(client, vshard_of_client("198.51.100.7".parse().unwrap(), 40_001, SEED));
    // Half-NAT: the server answers to the client.
    assert_eq!(client, shard(tuple("10.1.0.9", 443, "198.51.100.7", 40_001)));
    // Full-NAT: to the leased port.
    assert_eq!(VShard(0x34), shard(tuple("10.1.0.9", 443, "10.0.0.5", 0x1234)));
    // A VIP that is its own source.
    assert_eq!(client, shard(tuple("198.51.100.7", 40_001, "192.0.2.90", 443)));
    assert_eq!(VShard(0x34), shard(tuple("10.1.0.9", 443, "192.0.2.90", 0x1234)));
    assert_eq!(client, shard(tuple("198.51.100.7", 40_001, "192.0.2.90", 65_535)));
}

#[test]
fn fanout_programs_pass_the_kernels_checks() {
    for workers in [1, 2, 3, 64, 256] {
        let table = SteeringTable::even(workers);
        for ours in [Vec::new(), ours()] {
            assert_passes_the_kernels_checks(&fanout_program(&table, SEED, &ours).unwrap());
        }
    }
}

#[test]
fn addresses_beyond_the_kernels_limit_are_refused_with_how_many_fit() {
    let table = SteeringTable::even(16);
    let v4 = |count: u32| (0..count).map(|host| FanoutRule::snat(Ipv4Addr::from_bits(0x0a00_0000 + 7 * host).into()));
    let v6 = |count| (0..count).map(|host| FanoutRule::vip(Ipv6Addr::from_bits((0xfd_u128 << 120) + host).into()));
    let pools: [(Vec<FanoutRule>, usize); 2] = [(v4(4_000).collect(), 900), (v6(4_000).collect(), 900)];
    for (pool, at_least) in pools {
        let FanoutTooLong { addresses, addresses_max } = fanout_program(&table, SEED, &pool).unwrap_err();
        assert_eq!(addresses, 4_000);
        assert!(addresses_max >= at_least, "{addresses_max} fit");
        assert!(fanout_program(&table, SEED, &pool[..=addresses_max]).is_err());
        let program = fanout_program(&table, SEED, &pool[..addresses_max]).unwrap();
        assert_passes_the_kernels_checks(&program);
        let mut random = Random(6);
        for _ in 0..1_000 {
            let frame = random.frame(&pool[..addresses_max]);
            let expected = table.worker_of(steer(&frame, SEED, &pool[..addresses_max]));
            assert_eq!(run(&program, from_frame(&frame)), u32::from(expected.0), "{frame:02x?}");
        }
    }
}

#[test]
fn virtual_shard_0_is_worker_0s_whatever_moves() {
    let mut table = SteeringTable::even(256);
    for workers in [3, 200, 1, 2, 256, 7] {
        table = table.remapped(workers);
        assert_eq!(table.worker_of(VShard(0)), WorkerId(0));
    }
}

#[test]
fn the_ports_of_services_become_ranges() {
    let rule = FanoutRule::shared(ip("192.0.2.90"), [444, 65_535, 443, 65_534, 80, 443]);
    assert_eq!(rule.client_ports(), [80..=80, 443..=444, 65_534..=65_535]);
    assert_eq!(FanoutRule::shared(ip("192.0.2.90"), 0..=u16::MAX), FanoutRule::vip(ip("192.0.2.90")));
    assert_eq!(FanoutRule::shared(ip("192.0.2.90"), []), FanoutRule::snat(ip("192.0.2.90")));
}
