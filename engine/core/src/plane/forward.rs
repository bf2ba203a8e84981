//! A packet of a flow, onwards: next hop, TCP or UDP state, rewriting, out.

use std::net::{IpAddr, Ipv4Addr};

use super::ending::ended_by;
use super::fast::Carried;
use super::flows::{Found, Stage};
use super::fragments::complete;
use super::pending::HoldError;
use super::reply::{self, Complaint, icmp_error};
use super::services::Rule;
use super::{Desk, Frame, Network, NextHop, Outbox, Plane, PlaneCounter, PortId, Turn, Verdict};
use crate::counters::{ServiceCounter, Termination};
use crate::flow::tcp::{Outcome, SegmentFacts, TcpEvent, TcpFault, TcpTimeout};
use crate::flow::{Direction, Returns};
use crate::packet::rewrite::{Checksum, Layout, Macs, clamp_mss, redirect, redirect_echo, set_macs};
use crate::packet::straight::{Station, Straight};
use crate::packet::{
    DropReason, Family, Ip, Mac, PROTOCOL_TCP, PROTOCOL_UDP, Parsed, SynOptions, TcpFlags, Tuple, TupleV4,
};
use crate::{Now, RealServerId, ServiceId};

/// Octets of IP and TCP headers without options: what an MTU leaves beside the maximum segment size.
const fn headers_bytes(family: Family) -> u32 {
    match family {
        Family::V4 => 40,
        Family::V6 => 60,
    }
}

/// How the packets to one range of addresses leave: what the network says, as a packet needs it.
#[derive(Clone, Copy)]
pub(super) struct Hop {
    pub(super) macs: Macs,
    /// Octets of the largest IP packet there; 0 when no route leads there.
    pub(super) mtu: u32,
    pub(super) port: PortId,
    /// Whether the station is known.
    pub(super) is_ready: bool,
    /// Of IPv4, the first address of the range and how many follow it.
    first_v4: u32,
    more_v4: u32,
    /// Octets of the largest IPv4 packet that may go straight on; 0 where the station is not known.
    pub(super) straight_max: u32,
}

/// A [`Hop`] by its number.
#[derive(Clone, Copy, Default)]
pub(super) struct HopId(usize);

/// How a packet leaves: by this hop, which was looked up for this address.
#[derive(Clone, Copy)]
pub(super) struct Onward {
    pub(super) hop: HopId,
    pub(super) to: Ip,
}

/// Where packets leave: every range of the network, and the ranges of the addresses that were looked for last.
pub(super) struct Hops {
    hops: Box<[Hop]>,
    recent: Box<[Recent; RECENT_HOPS]>,
    /// By number of the port, whether there is one or not.
    stations: Box<[Station; 256]>,
}

/// What the network says about a real server.
#[derive(Clone, Copy)]
struct Recent {
    server: Ip,
    hop: HopId,
    /// The ports by which its answers may come in, one bit each.
    return_ports: u64,
}

const RECENT_HOPS: usize = 256;

const NO_HOP: Hop =
    Hop { macs: Macs::NONE, mtu: 0, port: PortId(0), is_ready: false, first_v4: 0, more_v4: 0, straight_max: 0 };

impl Hops {
    pub(super) fn new(network: &Network) -> Hops {
        let hop = |range: Option<(PortId, Option<Mac>)>| {
            let (id, mac) = range?;
            let port = network.port(id)?;
            let macs = Macs::new(mac.unwrap_or_default(), port.mac);
            Some(Hop { macs, mtu: port.mtu, port: id, is_ready: mac.is_some(), ..NO_HOP })
        };
        // The last stands for addresses in no range at all.
        let mut hops: Box<[Hop]> = network.ranges().map(|range| hop(range).unwrap_or(NO_HOP)).chain([NO_HOP]).collect();
        for (hop, (first, last)) in hops.iter_mut().zip(network.bounds_v4()) {
            (hop.first_v4, hop.more_v4) = (first, last - first);
            hop.straight_max = if hop.is_ready { hop.mtu } else { 0 };
        }
        let nowhere = HopId(hops.len() - 1);
        let mut stations = Box::new([Station::NONE; 256]);
        for (station, port) in stations.iter_mut().zip(&network.ports) {
            *station = Station::new(port.mac);
        }
        // No packet goes to the address `::`.
        let recent = Recent { server: Ip::default(), hop: nowhere, return_ports: 0 };
        Hops { hops, recent: Box::new([recent; RECENT_HOPS]), stations }
    }

    /// From here on no frame goes straight on.
    #[cfg(test)]
    pub(super) fn forget_stations(&mut self) {
        self.stations.fill(Station::NONE);
    }

    /// Who frames that come in by `port` are for.
    #[inline(always)]
    pub(super) fn station(&self, port: PortId) -> Station {
        self.stations[usize::from(port.0)]
    }

    /// The hop of packets to `to`: that of the number in `hint`, if its range has this address, or else the right one, whose number is then in `hint`.
    #[inline(always)]
    pub(super) fn hop_v4(&self, network: &Network, to: u32, hint: &mut u16) -> &Hop {
        match self.hops.get(usize::from(*hint)) {
            Some(hop) if to.wrapping_sub(hop.first_v4) <= hop.more_v4 => hop,
            _ => self.find_v4(network, to, hint),
        }
    }

    #[cold]
    #[inline(never)]
    fn find_v4(&self, network: &Network, to: u32, hint: &mut u16) -> &Hop {
        let range = network.range_of_v4(to);
        // A number that does not fit is looked for again each time.
        *hint = u16::try_from(range).unwrap_or(*hint);
        self.hop(HopId(range))
    }

    /// How packets to whoever is no real server leave.
    #[inline]
    pub(super) fn towards(&self, network: &Network, to: Ip) -> Onward {
        Onward { hop: HopId(network.range_of(to)), to }
    }

    /// The port that packets leave through; `None` when no route leads on.
    #[inline]
    pub(super) fn port(&self, onward: Onward) -> Option<PortId> {
        let hop = self.hop(onward.hop);
        (hop.mtu > 0).then_some(hop.port)
    }

    /// How packets leave by it.
    #[inline]
    pub(super) fn of(&self, onward: Onward) -> &Hop {
        self.hop(onward.hop)
    }

    /// How packets to a real server leave.
    #[inline]
    fn towards_server(&mut self, network: &Network, to: Ip) -> Onward {
        Onward { hop: self.recall(network, to).hop, to }
    }

    /// Whether `port` is that by which packets leave to `source`, by the hop of the number in `hint`: what is from there may come in by it. By others, it
    /// may as well.
    #[inline(always)]
    pub(super) fn is_entrance_v4(&self, source: u32, hint: u16, port: PortId) -> bool {
        match self.hops.get(usize::from(hint)) {
            Some(hop) => (source.wrapping_sub(hop.first_v4) <= hop.more_v4) & (hop.port == port) & (hop.mtu > 0),
            None => false,
        }
    }

    /// Whether the answers of a real server of IPv4 may come in by `port`.
    #[cold]
    #[inline(never)]
    pub(super) fn returns_by_v4(&mut self, network: &Network, server: u32, port: PortId) -> bool {
        self.returns_by(network, IpAddr::V4(Ipv4Addr::from(server)).into(), port)
    }

    /// Whether the answers of a real server may come in by `port`.
    #[inline]
    pub(super) fn returns_by(&mut self, network: &Network, server: Ip, port: PortId) -> bool {
        // Where there is one port only, it is that one.
        network.ports.len() == 1 || self.recall(network, server).return_ports & port.bit() != 0
    }

    /// Real servers are few, and every packet goes to one or comes from one.
    #[inline]
    fn recall(&mut self, network: &Network, server: Ip) -> &Recent {
        let bits = u128::from_be_bytes(server.0) as usize;
        // Neighbours differ in the last octet, and few of them in others.
        let recent = &mut self.recent[(bits ^ (bits >> 8).wrapping_mul(31)) % RECENT_HOPS];
        if recent.server != server {
            let hop = HopId(network.range_of(server));
            *recent = Recent { server, hop, return_ports: network.return_ports(server) };
        }
        recent
    }

    /// Whether every packet of IPv4 that could go straight on by `old`, in the network `before`, leaves in the same way by these.
    pub(super) fn keeps(&self, old: &Hops, before: &Network, after: &Network) -> bool {
        let of_v4 = |hops: &'_ Hops, network: &Network| hops.hops.len().min(network.bounds_v4().count());
        let (olds, news) = (&old.hops[..of_v4(old, before)], &self.hops[..of_v4(self, after)]);
        olds.iter().filter(|old| old.straight_max > 0).all(|old| {
            let behind = news.partition_point(|new| new.first_v4 + new.more_v4 < old.first_v4);
            let mut overlapping =
                news[behind..].iter().take_while(|new| new.first_v4 <= old.first_v4 + old.more_v4).peekable();
            overlapping.peek().is_some()
                && overlapping
                    .all(|new| (new.macs, new.straight_max, new.port) == (old.macs, old.straight_max, old.port))
        }) && before.is_entered_alike(after)
    }

    #[inline]
    pub(super) fn hop(&self, id: HopId) -> &Hop {
        self.hops.get(id.0).unwrap_or(&NO_HOP)
    }
}

/// Packets of one service that came one after the other, to be counted together.
#[derive(Default)]
pub(super) struct Run {
    service: ServiceId,
    protocol: u8,
    /// By [`Direction`], as the others.
    frames: [u64; 2],
    octets: [u64; 2],
    payload: [u64; 2],
}

impl Plane {
    /// Takes a packet of a flow onwards. `None`: the flow is not there any more, or this packet opens another one in its place.
    #[inline(always)]
    pub(super) fn forward<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        found: Found,
        turn: &mut Turn<'_, D>,
    ) -> Option<Verdict> {
        let is_opening = found.stage == Stage::HalfOpen && self.flows.is_lent_opening(found.id);
        let found = match is_opening && self.may_come_by(found.direction, packet, frame.port) {
            true => self.meet_opening(found, frame, packet, turn.desk)?,
            false => found,
        };
        let Found { stage, id, direction } = found;
        let (to, returns, state) = self.flows.table(stage).outgoing(id, direction)?;
        let (service, is_lent) = (state.service(), state.tcp().is_lent());
        if state.tcp().is_over() && packet.tuple.protocol == PROTOCOL_TCP && self.gives_way(found) {
            return None;
        }
        let rule = *self.services.rule(service);
        if !self.may_come_by(direction, packet, frame.port) {
            return Some(Verdict::Drop(DropReason::ReturnPort));
        }
        let is_lent = is_lent && self.meet_lent(id, direction, frame, packet);
        let station = rule.station(&self.network, direction, to.dst);
        let onward = match self.route(frame, packet, station, direction, returns, turn) {
            Ok(onward) => onward,
            Err(reason) => return Some(Verdict::Drop(reason)),
        };
        if packet.tuple.protocol == PROTOCOL_TCP {
            let segment = segment_facts(frame.bytes, packet);
            let outcome = self.flows.table_mut(stage).follow(id, turn.now, |state| {
                let outcome = state.tcp_mut().advance(direction, &segment);
                (outcome.timeout.map(|timeout| rule.tcp_class(timeout)), outcome)
            })?;
            if outcome.event.is_some() || outcome.fault.is_some() {
                match self.on_tcp(found, &rule, &segment, outcome, turn) {
                    Next::Forward => {}
                    Next::Drop(reason) => return Some(Verdict::Drop(reason)),
                    Next::Reopen => return None,
                }
                if outcome.event == Some(TcpEvent::Established) {
                    self.note_established(&packet.tuple, direction, frame.port);
                }
            } else if stage == Stage::HalfOpen && direction == Direction::Reverse {
                self.note_answered(id, frame.port);
            }
            if is_lent {
                self.met_lent(id);
            }
        } else {
            let server_port = match direction {
                Direction::Forward => packet.tuple.dst_port,
                Direction::Reverse => packet.tuple.src_port,
            };
            let outcome = self.flows.table_mut(stage).follow(id, turn.now, |state| {
                let outcome = state.with_udp(|track| track.advance(direction));
                (outcome.timeout.map(|timeout| rule.udp_class(timeout, server_port)), outcome)
            })?;
            if stage == Stage::HalfOpen
                && outcome.is_first_answer
                && let Err(reason) = self.establish(found, turn)
            {
                return Some(Verdict::Drop(reason));
            }
        }
        self.count_for(service, turn);
        Some(self.send(frame, packet, &to, direction, returns, onward, turn))
    }

    /// Whether a packet of a flow may come in by this port: what a server answers comes by few.
    #[inline(always)]
    fn may_come_by(&mut self, direction: Direction, packet: &Parsed, port: PortId) -> bool {
        direction == Direction::Forward || self.hops.returns_by(&self.network, packet.tuple.src, port)
    }

    /// The next hop of a packet to `to`, if it may go there; else its sender is told.
    #[inline(always)]
    pub(super) fn route<D: Desk>(
        &mut self,
        frame: &Frame<'_>,
        packet: &Parsed,
        to: Ip,
        direction: Direction,
        returns: Returns,
        turn: &mut Turn<'_, D>,
    ) -> Result<Onward, DropReason> {
        let onward = match direction {
            Direction::Forward => self.hops.towards_server(&self.network, to),
            Direction::Reverse => self.hops.towards(&self.network, to),
        };
        self.judge_hop(frame, packet, onward, returns, turn)?;
        Ok(onward)
    }

    /// The same where the next hop is known.
    #[inline(always)]
    pub(super) fn judge_hop<D: Desk>(
        &mut self,
        frame: &Frame<'_>,
        packet: &Parsed,
        onward: Onward,
        returns: Returns,
        turn: &mut Turn<'_, D>,
    ) -> Result<(), DropReason> {
        if Family::of(onward.to) != packet.family {
            return self.judge_crossing(frame, packet, onward, turn);
        }
        let mtu = self.hops.hop(onward.hop).mtu;
        // Of a super-packet, each segment has to fit; of one that came in fragments, each of them.
        let largest = match (turn.pieces, frame.segment_bytes) {
            (Some(pieces), _) => pieces.largest,
            (None, 0) => packet.total_len(),
            (None, segment) => u32::from(packet.payload) - u32::from(packet.l3) + u32::from(segment),
        };
        if largest > mtu {
            if mtu == 0 {
                return Err(DropReason::NoRoute);
            }
            if packet.dont_fragment {
                self.complain(frame, packet, Complaint::PacketTooBig { mtu }, turn);
            }
            // One that may be cut is cut when it leaves; the device cuts super-packets, but only into segments.
            if packet.dont_fragment || frame.segment_bytes > 0 {
                return Err(DropReason::PacketTooBig);
            }
        }
        // DSR is part of the link: it takes no hop.
        if packet.ttl <= 1 && returns == Returns::Here {
            self.complain(frame, packet, Complaint::TimeExceeded, turn);
            return Err(DropReason::HopLimit);
        }
        Ok(())
    }

    /// Rewrites the packet to `to` and sends it `onward`.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "what the steps before found out")]
    pub(super) fn send<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        to: &Tuple,
        direction: Direction,
        returns: Returns,
        onward: Onward,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        if returns == Returns::Here && Family::of(to.src) != packet.family {
            return self.send_across(frame, packet, to, direction, onward, turn);
        }
        let layout = Layout::from(packet);
        let rewritten = if returns == Returns::Elsewhere {
            set_macs(frame.bytes, &self.hops.hop(onward.hop).macs)
        } else {
            if packet.tcp.flags.contains(TcpFlags::SYN) {
                self.clamp(frame, &layout, onward.hop, packet.family);
            }
            let macs = &self.hops.hop(onward.hop).macs;
            let is_echo = !matches!(packet.tuple.protocol, PROTOCOL_TCP | PROTOCOL_UDP);
            match (Straight::at(frame.bytes, packet), TupleV4::of(to)) {
                (Some(straight), Some(to)) if frame.checksum != Checksum::Absent => {
                    straight.redirect(frame.checksum, to, macs);
                    Ok(())
                }
                _ if is_echo => redirect_echo(frame.bytes, &layout, to, macs),
                _ => redirect(frame.bytes, &layout, frame.checksum, to, macs),
            }
        };
        if rewritten.is_err() {
            return Verdict::Drop(DropReason::FrameChanged);
        }
        if !packet.dont_fragment && packet.tuple.protocol != PROTOCOL_TCP && turn.pieces.is_none() {
            self.renumber(frame, packet);
        }
        turn.run.add(packet.tuple.protocol, direction, frame.bytes.len(), packet.payload_len());
        self.leave(frame, packet, onward, turn)
    }

    /// Sends a frame that was rewritten but for its MACs.
    pub(super) fn send_error<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        onward: Onward,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        match set_macs(frame.bytes, &self.hops.hop(onward.hop).macs) {
            Ok(()) => self.leave(frame, packet, onward, turn),
            Err(_) => Verdict::Drop(DropReason::FrameChanged),
        }
    }

    /// Sends a packet that is all rewritten, or lets it wait; one that is larger than the link carries, and may be cut, in fragments.
    #[inline(always)]
    fn leave<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        onward: Onward,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let Hop { is_ready, port, mtu, .. } = *self.hops.hop(onward.hop);
        if !is_ready {
            return self.hold(frame, packet, onward.to, turn);
        }
        // One that came in fragments is cut when its turn is over.
        if packet.total_len() > mtu && frame.segment_bytes == 0 && turn.pieces.is_none() {
            return self.cut(frame, packet, mtu, port, turn.out);
        }
        Verdict::Send(port)
    }

    /// Lets a rewritten frame for the station of `to`, or on the way there, wait until it is known.
    #[cold]
    pub(super) fn hold<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        to: Ip,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let NextHop::Unresolved { port, via } = self.network.next_hop(to) else {
            return Verdict::Drop(DropReason::NoRoute);
        };
        let Some(mtu) = self.network.port(port).map(|port| port.mtu) else { return Verdict::Drop(DropReason::NoRoute) };
        // Nothing tells later that it is to be cut into segments, or that its checksum is partial. A super-packet that fits the link as it is goes as
        // one packet; a longer one would be lost on the way out, uncounted.
        let is_longer = packet.total_len() > mtu;
        if is_longer && frame.segment_bytes > 0 {
            return Verdict::Drop(DropReason::NextHopUnknown);
        }
        if !complete(frame, packet) {
            return Verdict::Drop(DropReason::FrameChanged);
        }
        let now = turn.now;
        let hold = |plane: &mut Plane, held: &[u8]| match plane.pending.hold(now, port, via, held) {
            Ok(()) => {
                plane.counts.add(PlaneCounter::FramesHeld, 1);
                true
            }
            Err(HoldError::Full | HoldError::HopFull | HoldError::TooLong) => false,
        };
        let is_held = match is_longer || turn.pieces.is_some() {
            true => self.cut_for_later(frame, packet, turn.pieces, mtu, hold),
            false => hold(self, frame.bytes.get(..packet.end as usize).unwrap_or_default()),
        };
        if is_held { Verdict::Kept } else { Verdict::Drop(DropReason::NextHopUnknown) }
    }

    /// Lowers the maximum segment size of a handshake to what both links carry, where it leaves as one of `family`: few hosts believe the ICMP errors
    /// of others.
    #[cold]
    pub(super) fn clamp(&mut self, frame: &mut Frame<'_>, layout: &Layout, hop: HopId, family: Family) {
        let mtu = self.hops.hop(hop).mtu;
        let came_by = self.network.port(frame.port).map_or(mtu, |port| port.mtu);
        let room = |mtu: u32, family| mtu.saturating_sub(headers_bytes(family));
        let mss_max = u16::try_from(room(mtu, family).min(room(came_by, layout.family))).unwrap_or(u16::MAX);
        if clamp_mss(frame.bytes, layout, frame.checksum, mss_max).is_some() {
            self.counts.add(PlaneCounter::MssClamped, 1);
        }
    }

    /// Tells the sender of a packet why it does not go on, as far as there is an address of ours to tell it from.
    #[cold]
    pub(super) fn complain<D: Desk>(
        &mut self,
        frame: &Frame<'_>,
        packet: &Parsed,
        complaint: Complaint,
        turn: &mut Turn<'_, D>,
    ) {
        self.complain_about(turn.now, (frame.bytes, frame.port), packet, complaint, turn.out);
    }

    /// The same of a frame that came in by a port.
    pub(super) fn complain_about(
        &mut self,
        now: Now,
        (bytes, port): (&[u8], PortId),
        packet: &Parsed,
        complaint: Complaint,
        out: &mut Outbox,
    ) {
        if !reply::may_be_told(bytes, packet) {
            return;
        }
        let own = packet.tuple.dst;
        let from =
            if self.services.is_ours(own) { Some(own) } else { self.network.address_towards(port, packet.family) };
        let Some((from, mac)) = from.zip(self.network.port(port).map(|port| port.mac)) else { return };
        let Some(macs) = reply::Macs::answering(bytes, mac) else { return };
        // Strangers who knock at closed ports are not to use up what others depend on.
        let budget = match complaint {
            Complaint::PortUnreachable | Complaint::Prohibited => &mut self.refusals,
            Complaint::PacketTooBig { .. } => &mut self.too_big,
            Complaint::NoRoute | Complaint::ReassemblyTimeExceeded | Complaint::TimeExceeded => &mut self.errors,
        };
        if budget.take(now)
            && let Some(made) = icmp_error(macs, bytes, packet, from, complaint)
            && out.push(port, &made)
        {
            self.counts.add(PlaneCounter::ErrorsMade, 1);
        }
    }

    /// Acts on what a segment did to its flow beside moving it on.
    #[cold]
    fn on_tcp<D: Desk>(
        &mut self,
        found: Found,
        rule: &Rule,
        segment: &SegmentFacts,
        outcome: Outcome,
        turn: &mut Turn<'_, D>,
    ) -> Next {
        let Found { stage, id, direction } = found;
        match (outcome.event, outcome.fault) {
            (Some(TcpEvent::Established), _) if stage == Stage::HalfOpen => {
                if let Err(reason) = self.establish(found, turn) {
                    return Next::Drop(reason);
                }
            }
            (Some(TcpEvent::Established), _) => {}
            (Some(TcpEvent::Closed), _) => {
                let termination =
                    self.flows.table(stage).state(id).map_or(Termination::ClientClosed, |state| ended_by(state.tcp()));
                self.settle(found, termination, rule, turn.desk);
            }
            (Some(TcpEvent::Reset), _) => {
                let termination = match (direction, stage) {
                    (Direction::Forward, _) => Termination::ClientReset,
                    (Direction::Reverse, Stage::HalfOpen) => Termination::ConnectFailed,
                    (Direction::Reverse, Stage::Established) => Termination::ServerReset,
                };
                if termination == Termination::ConnectFailed
                    && let Some(detail) = self.flows.table(stage).detail(id)
                    && detail.is_counted
                    && detail.server != RealServerId::NOBODY
                {
                    turn.desk.failed(detail.server);
                }
                self.settle(found, termination, rule, turn.desk);
            }
            (Some(TcpEvent::Reopens), _) => {
                self.counts.add(PlaneCounter::FlowsReopened, 1);
                if let Some(mut ended) = self.flows.remove(stage, id) {
                    self.rest_lease(turn.now, &mut ended);
                    self.end(stage, ended, Termination::ClientClosed, turn.desk);
                }
                return Next::Reopen;
            }
            (None, Some(TcpFault::FlagsImpossible)) => return Next::Drop(DropReason::TcpFlags),
            (None, Some(TcpFault::UnexpectedSyn)) => {
                self.counts.add(PlaneCounter::TcpFaults, 1);
                self.on_other_syn(found, rule, segment, turn.now);
            }
            // The end point judges better (RFC 7857 §2.2).
            (None, Some(_)) => self.counts.add(PlaneCounter::TcpFaults, 1),
            (None, None) => {}
        }
        Next::Forward
    }

    /// A SYN in the middle of a connection is sent on. Where the server knows nothing of that connection any more it answers with a SYN-ACK: the
    /// next one on these ports begins, and is followed from there.
    fn on_other_syn(&mut self, found: Found, rule: &Rule, segment: &SegmentFacts, now: Now) {
        let Found { stage, id, direction } = found;
        let table = self.flows.table_mut(stage);
        let Some(detail) = table.detail_mut(id).filter(|detail| detail.is_counted) else { return };
        match direction {
            Direction::Forward => detail.other_syn = segment.seq,
            Direction::Reverse if detail.other_syn != 0 && segment.acknowledged_syn() == Some(detail.other_syn) => {
                detail.other_syn = 0;
                let class = rule.tcp_class(TcpTimeout::Opening);
                table.follow(id, now, |state| (Some(class), state.tcp_mut().restart(segment)));
            }
            Direction::Reverse => {}
        }
    }

    /// What is counted from here on is that of `service`.
    #[inline]
    pub(super) fn count_for<D: Desk>(&mut self, service: ServiceId, turn: &mut Turn<'_, D>) {
        if turn.run.service != service {
            self.tell(turn);
            turn.run.service = service;
        }
    }

    /// Hands what was counted to the desk, and begins anew.
    pub(super) fn tell<D: Desk>(&mut self, turn: &mut Turn<'_, D>) {
        let run = std::mem::take(&mut turn.run);
        self.tell_run(run, turn.desk);
    }

    /// Hands the counts of one service to the desk.
    pub(super) fn tell_run<D: Desk>(&mut self, run: Run, desk: &mut D) {
        use PlaneCounter::{FramesFromClient, FramesToClient, OctetsFromClient, OctetsToClient};
        use ServiceCounter::{BytesFromClient, BytesToClient, DatagramsFromClient, DatagramsToClient};
        let counters = [
            (FramesFromClient, OctetsFromClient, BytesFromClient, DatagramsFromClient),
            (FramesToClient, OctetsToClient, BytesToClient, DatagramsToClient),
        ];
        for (at, (frames, octets, bytes, datagrams)) in counters.into_iter().enumerate() {
            if run.frames[at] == 0 {
                continue;
            }
            self.counts.add(frames, run.frames[at]);
            self.counts.add(octets, run.octets[at]);
            if run.payload[at] > 0 {
                desk.count(run.service, bytes, run.payload[at]);
            }
            if run.protocol == PROTOCOL_UDP {
                desk.count(run.service, datagrams, run.frames[at]);
            }
        }
    }
}

/// How it goes on after an event.
enum Next {
    Drop(DropReason),
    Forward,
    /// The flow is gone; the packet opens another.
    Reopen,
}

impl Run {
    /// Of no packet.
    pub(super) const NOTHING: Run =
        Run { service: ServiceId(0), protocol: PROTOCOL_TCP, frames: [0; 2], octets: [0; 2], payload: [0; 2] };

    /// What the kernel has carried of a flow between two looks.
    pub(super) fn add_carried(&mut self, service: ServiceId, before: &[Carried; 2], after: &[Carried; 2]) {
        self.service = service;
        for (at, (before, after)) in before.iter().zip(after).enumerate() {
            self.frames[at] += after.frames.saturating_sub(before.frames);
            self.octets[at] += after.octets.saturating_sub(before.octets);
            self.payload[at] += after.payload_octets.saturating_sub(before.payload_octets);
        }
    }

    /// Packets either way.
    pub(super) fn frames(&self) -> u64 {
        self.frames.iter().sum()
    }

    #[inline]
    pub(super) fn add(&mut self, protocol: u8, direction: Direction, octets: usize, payload_len: u32) {
        let at = direction as usize;
        self.protocol = protocol;
        self.frames[at] += 1;
        self.octets[at] += octets as u64;
        self.payload[at] += u64::from(payload_len);
    }
}

/// What the track needs to know of a segment.
#[inline]
pub(super) fn segment_facts(frame: &[u8], packet: &Parsed) -> SegmentFacts {
    let tcp = packet.tcp;
    SegmentFacts {
        flags: tcp.flags.0,
        seq: tcp.seq,
        ack: tcp.ack,
        window: tcp.window,
        payload_len: packet.payload_len(),
        window_scale: match tcp.flags.contains(TcpFlags::SYN) {
            true => SynOptions::read(frame, packet).window_scale,
            false => None,
        },
    }
}
