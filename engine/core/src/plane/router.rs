//! Routing: packets of no service and no flow, onwards as they are (RFC 1812 section 5, RFC 8200 section 3). No redirects are sent.

use std::net::IpAddr;

use super::bridge::Whose;
use super::reply::Complaint;
use super::services::{ConfiguredSet, address_key};
use super::{Desk, Frame, Network, Plane, PlaneCounter, PortId, Turn, Verdict};
use crate::flow::Returns;
use crate::packet::rewrite::{Layout, decrement_hop_limit};
use crate::packet::{DropReason, Ip, PROTOCOL_TCP, PROTOCOL_UDP, Parsed, TcpFlags, Tuple, parse_ip};
use crate::router::{Passage, PassageKind};

/// The addresses of this host, and those that mean all hosts of a network here.
#[derive(Default, PartialEq, Eq)]
pub(super) struct OwnAddresses {
    own: ConfiguredSet<u128>,
    broadcasts: ConfiguredSet<u128>,
}

impl OwnAddresses {
    pub(super) fn of(network: &Network) -> OwnAddresses {
        let mut addresses = OwnAddresses::default();
        for (ip, prefix) in network.own_addresses() {
            addresses.own.insert(address_key(ip));
            // The last and, as it once was, the first (RFC 1812 section 4.2.3.1); there is none where a network is two hosts (RFC 3021).
            if let Some(prefix) = prefix.filter(|&prefix| ip.is_v4() && prefix < 31) {
                let (first, last) = ip.network(prefix);
                addresses.broadcasts.extend([first, last]);
            }
        }
        addresses
    }

    #[inline]
    fn has(&self, ip: Ip) -> bool {
        self.own.contains(&address_key(ip))
    }

    /// Whether packets from or to `ip` stay where they are, whatever the routes say.
    #[inline]
    fn keep_here(&self, ip: Ip) -> bool {
        self.broadcasts.contains(&address_key(ip)) || is_local(ip)
    }
}

/// Whether no router forwards from or to this address of one host: it is of one link, or nobody's (RFC 6890).
fn is_local(ip: Ip) -> bool {
    match IpAddr::from(ip) {
        IpAddr::V4(v4) => v4.is_link_local() || matches!(v4.octets()[0], 0 | 240..=255),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// What is known of a packet that is to be forwarded.
#[derive(Clone, Copy)]
pub(super) enum Known<'a> {
    /// All that matters: it may open a flow.
    Whole,
    /// Its addresses, and at most its ports.
    Addresses,
    /// It is an ICMP error about this packet.
    ErrorAbout(&'a Tuple),
}

impl Plane {
    /// Forwards a packet that belongs to no service and to no flow, and is not for us: as it is, as far as the rules let it pass. Where
    /// nothing is routed, or it is for the kernel or on its way over a bridge, it is left alone.
    ///
    /// Of a fragment `packet` has ports only if it is the first one.
    pub(super) fn route_on<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        known: Known<'_>,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let to = packet.tuple.dst;
        let is_others = turn.whose == Whose::Others;
        if !self.snapshot.router.is_enabled || is_others || self.own_addresses.has(to) || self.services.is_ours(to) {
            return Verdict::Pass;
        }
        match self.try_route_on(frame, packet, known, turn) {
            Ok(verdict) => verdict,
            Err(reason) => Verdict::Drop(reason),
        }
    }

    fn try_route_on<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        known: Known<'_>,
        turn: &mut Turn<'_, D>,
    ) -> Result<Verdict, DropReason> {
        let Tuple { src, dst, .. } = packet.tuple;
        let is_ours = self.services.is_ours(src);
        if is_ours && !self.is_of_direct_server(src, frame) || self.own_addresses.has(src) {
            return Err(DropReason::SourceOurs);
        }
        if self.own_addresses.keep_here(src) || self.own_addresses.keep_here(dst) {
            return Err(DropReason::Unroutable);
        }
        // Where a VIP that servers answer from may come in is decided already.
        if self.snapshot.router.checks_sources && !is_ours && !self.leads_back(src, frame) {
            return Err(DropReason::ReversePath);
        }
        let onward = self.hops.towards(&self.network, dst);
        let leaves_by = self.hops.port(onward);
        let name = |port: Option<PortId>| port.and_then(|port| self.network.port(port)).map_or("", |port| &port.name);
        let (arrives_by, leaves_by_name) = (name(Some(frame.port)), name(leaves_by));
        // Without a route it leaves by none: who is not let pass hears nothing.
        // Services are none of the rules' business.
        let is_served = is_ours && self.services.is_direct_answer(&packet.tuple);
        let passage = passage(packet, known, arrives_by, leaves_by_name);
        if !is_served && !self.snapshot.router.lets_pass(&passage) {
            return Err(DropReason::RuleDenied);
        }
        if leaves_by.is_none() {
            self.complain(frame, packet, Complaint::NoRoute, turn);
            return Err(DropReason::NoRoute);
        }
        let lane = match known {
            Known::Whole => self.lane_out(frame.bytes, packet, &passage),
            Known::Addresses | Known::ErrorAbout(_) => None,
        };
        self.judge_hop(frame, packet, onward, Returns::Here, turn)?;
        if let Some(lane) = lane {
            return Ok(self.open_outbound(frame, packet, &lane, turn));
        }
        let transit = self.transit_of(frame, packet);
        let octets = frame.bytes.len();
        decrement_hop_limit(frame.bytes, &Layout::from(packet)).map_err(|_| DropReason::FrameChanged)?;
        let verdict = self.send_error(frame, packet, onward, turn);
        if let Verdict::Send(_) | Verdict::Kept = verdict {
            self.counts.add(PlaneCounter::FramesRouted, 1);
            self.counts.add(PlaneCounter::OctetsRouted, octets as u64);
        }
        if let (Verdict::Send(_), Some(tuple)) = (verdict, transit)
            && !is_ours
        {
            self.note_transit(turn.now, tuple, frame.port, onward);
        }
        Ok(verdict)
    }

    /// Whether a frame from a VIP came in where a server is that answers its clients by itself (DSR), and has us for its router.
    fn is_of_direct_server(&mut self, vip: Ip, frame: &Frame<'_>) -> bool {
        let servers = self.services.direct_servers(vip);
        servers.iter().any(|&server| self.hops.returns_by(&self.network, server, frame.port))
    }

    /// Whether a route leads to `src` from where the frame came in, be it not the best one (RFC 3704 section 2.3).
    #[inline]
    fn leads_back(&self, src: Ip, frame: &Frame<'_>) -> bool {
        self.hops.port(self.hops.towards(&self.network, src)) == Some(frame.port)
            || self.network.return_ports(src) & frame.port.bit() != 0
    }

    /// Forwards a packet of which only the addresses matter here; `otherwise` is what becomes of it where it is not forwarded.
    #[cold]
    pub(super) fn route_unread<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        otherwise: Verdict,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        if !self.snapshot.router.is_enabled {
            return otherwise;
        }
        let Some(packet) = parse_ip(frame.bytes) else { return otherwise };
        match self.route_on(frame, &packet, Known::Addresses, turn) {
            Verdict::Pass => otherwise,
            verdict => verdict,
        }
    }

    /// A frame that cannot be read to its end is dropped, but for what only its receiver has to understand.
    #[cold]
    pub(super) fn refuse<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        reason: DropReason,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        match reason {
            DropReason::IcmpEmbedded
            | DropReason::IcmpEmbeddedFragment
            | DropReason::IcmpEmbeddedSource
            | DropReason::UdpChecksumMissing => self.route_unread(frame, Verdict::Drop(reason), turn),
            _ => Verdict::Drop(reason),
        }
    }
}

/// What the rules are asked about: the packet, or the one that an ICMP error is about.
fn passage<'a>(packet: &Parsed, known: Known<'_>, arrives_by: &'a str, leaves_by: &'a str) -> Passage<'a> {
    let of = |tuple: &Tuple, kind| {
        let has_ports = matches!(tuple.protocol, PROTOCOL_TCP | PROTOCOL_UDP);
        let ports = Some((tuple.src_port, tuple.dst_port)).filter(|&ports| has_ports && ports != (0, 0));
        Passage { src: tuple.src, dst: tuple.dst, protocol: tuple.protocol, ports, arrives_by, leaves_by, kind }
    };
    match known {
        Known::ErrorAbout(quoted) => {
            Passage { arrives_by: leaves_by, leaves_by: arrives_by, ..of(quoted, PassageKind::Follows) }
        }
        Known::Whole | Known::Addresses => {
            let kind = match packet.tuple.protocol {
                PROTOCOL_TCP if packet.tcp.flags.0 & (TcpFlags::SYN.0 | TcpFlags::ACK.0) == TcpFlags::SYN.0 => {
                    PassageKind::Opens
                }
                PROTOCOL_TCP => PassageKind::Follows,
                _ => PassageKind::Stands,
            };
            of(&packet.tuple, kind)
        }
    }
}
