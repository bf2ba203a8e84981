//! What is neither TCP nor UDP: questions for our addresses, pings of them, and ICMP errors about our flows.

use towpath_config::model::MachineRole;

use super::flows::Stage;
use super::reply::{Macs, advertisement, arp_announcement, arp_reply, unsolicited_advertisement};
use super::router::Known;
use super::{Desk, Frame, Outbox, Plane, PlaneCounter, PortId, Turn, Verdict};
use crate::flow::{Direction, Returns};
use crate::packet::rewrite::{Layout, answer_echo, decrement_hop_limit, translate_error};
use crate::packet::{
    Arp, ArpOperation, DropReason, Family, IcmpError, Ip, Mac, Nd, NdKind, Other, PROTOCOL_TCP, Packet, Parsed, Tuple,
};

/// Time to live and hop limit of what we answer.
pub(super) const HOP_LIMIT: u8 = 64;

/// The frame that tells a link that the station at `mac` has this address: gratuitous ARP, or an unsolicited neighbour advertisement.
pub fn announcement(mac: Mac, address: Ip) -> Vec<u8> {
    match address.is_v4() {
        true => arp_announcement(mac, address).to_vec(),
        false => unsolicited_advertisement(mac, address).to_vec(),
    }
}

impl Plane {
    /// Tells all links which addresses are ours: gratuitous ARP and unsolicited neighbour advertisements. A machine that stands by has none but its own.
    pub fn announce(&self, out: &mut Outbox) {
        let is_active = self.role == MachineRole::Active;
        let services = self.services.ours().filter(|&address| is_active && !self.network.is_own(address));
        for address in services.chain(self.network.kept_addresses()).filter(|&address| self.is_ours_alone(address)) {
            for (port, id) in self.network.ports.iter().zip(0..) {
                let id = PortId(id);
                if !self.is_at_home(address, id) {
                    continue;
                }
                match address.is_v4() {
                    true => out.push(id, &arp_announcement(port.mac, address)),
                    false => out.push(id, &unsolicited_advertisement(port.mac, address)),
                };
            }
        }
    }

    /// Decides about a frame that carries no whole TCP segment or UDP datagram.
    #[cold]
    pub(super) fn answer<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        match packet {
            Packet::Arp(arp) => self.on_arp(frame, arp, turn.out),
            Packet::Echo(echo) => self.on_echo(frame, echo, turn),
            Packet::EchoReply(reply) => self.on_echo_reply(frame, reply, turn),
            Packet::Fragment(fragment) => self.on_fragment(frame, fragment, turn),
            Packet::IcmpError(error) => self.on_error(frame, error, turn),
            Packet::Nd(nd) => self.on_nd(frame, nd, turn.out),
            Packet::Other(Other::Icmp(_) | Other::Protocol(_)) => self.route_unread(frame, Verdict::Pass, turn),
            Packet::Other(Other::Arp(_) | Other::EtherType(_) | Other::Group) | Packet::Transport(_) => Verdict::Pass,
        }
    }

    pub(super) fn on_arp(&mut self, frame: &Frame<'_>, arp: &Arp, out: &mut Outbox) -> Verdict {
        if arp.operation != ArpOperation::Request || !self.is_answered(frame, arp.target) {
            return Verdict::Pass;
        }
        let Some(port) = self.network.port(frame.port) else { return Verdict::Pass };
        out.push(frame.port, &arp_reply(arp, port.mac));
        self.counts.add(PlaneCounter::ArpAnswered, 1);
        Verdict::Kept
    }

    pub(super) fn on_nd(&mut self, frame: &Frame<'_>, nd: &Nd, out: &mut Outbox) -> Verdict {
        if nd.kind != NdKind::Solicitation || !self.is_answered(frame, nd.target) {
            return Verdict::Pass;
        }
        let macs = self.network.port(frame.port).and_then(|port| Macs::answering(frame.bytes, port.mac));
        let Some(macs) = macs else { return Verdict::Pass };
        out.push(frame.port, &advertisement(nd, macs.dst, macs.src));
        self.counts.add(PlaneCounter::NdAnswered, 1);
        Verdict::Kept
    }

    /// Whether a question for `address` that came with `frame` is ours to answer: on the link that the address belongs to, or on any when it
    /// belongs to none.
    fn is_answered(&self, frame: &Frame<'_>, address: Ip) -> bool {
        self.is_ours_alone(address) && self.is_at_home(address, frame.port)
    }

    fn is_at_home(&self, address: Ip, port: PortId) -> bool {
        let network = &self.network;
        network.home(address).is_none_or(|home| network.segment(home) == network.segment(port))
    }

    fn on_echo<D: Desk>(&mut self, frame: &mut Frame<'_>, echo: &Parsed, turn: &mut Turn<'_, D>) -> Verdict {
        if let Some(verdict) = self.forward_echo(frame, echo, turn) {
            return verdict;
        }
        if !self.is_ours_alone(echo.tuple.dst) || self.network.is_kernels(echo.tuple.dst) {
            return self.route_on(frame, echo, Known::Whole, turn);
        }
        match answer_echo(frame.bytes, &Layout::from(echo), HOP_LIMIT) {
            Ok(()) => {
                self.counts.add(PlaneCounter::EchoAnswered, 1);
                Verdict::Send(frame.port)
            }
            Err(_) => Verdict::Drop(DropReason::FrameChanged),
        }
    }

    fn on_echo_reply<D: Desk>(&mut self, frame: &mut Frame<'_>, reply: &Parsed, turn: &mut Turn<'_, D>) -> Verdict {
        match self.forward_echo(frame, reply, turn) {
            Some(verdict) => verdict,
            // We ask nobody but by a probe, which hears it by itself.
            None if self.network.is_own(reply.tuple.dst) => Verdict::Pass,
            None => self.route_on(frame, reply, Known::Whole, turn),
        }
    }

    /// Translates an error about a packet that we had translated (RFC 5508 section 4): inside and out, for the side that sent that packet.
    fn on_error<D: Desk>(&mut self, frame: &mut Frame<'_>, error: &IcmpError, turn: &mut Turn<'_, D>) -> Verdict {
        // It goes the way of the answers to the packet that it quotes.
        let answer = error.embedded.reversed();
        let found = self.flows.lookup(&answer).filter(|&found| !self.is_replaced(found, answer.protocol));
        let Some(found) = found else {
            if let Some(verdict) = self.hand_off(&answer, self.services.find(&answer)) {
                return verdict;
            }
            return match self.is_ours_alone(error.parsed.tuple.dst) {
                true if self.network.is_probes(&answer) => Verdict::Pass,
                true => Verdict::Drop(DropReason::IcmpErrorStray),
                false => self.route_on(frame, &error.parsed, Known::ErrorAbout(&error.embedded), turn),
            };
        };
        let found = if found.stage == Stage::HalfOpen { self.listen_to(found, turn.desk) } else { found };
        if found.stage == Stage::Established {
            self.flows.consult(found.id);
        }
        let table = self.flows.table(found.stage);
        let (Some(path), Some(state)) = (table.path(found.id), table.state(found.id)) else { return Verdict::Pass };
        let sent_by = found.direction.opposite();
        if error.embedded.protocol == PROTOCOL_TCP && !state.tcp().is_in_flight(sent_by, error.embedded_seq) {
            return Verdict::Drop(DropReason::IcmpErrorWindow);
        }
        let service = state.service();
        // The quoted packet as its sender sent it, and the station that it came from.
        let (sent, station) = match sent_by {
            Direction::Forward => (path.client, path.client.src),
            Direction::Reverse => (path.server.reversed(), path.server.dst),
        };
        let station = self.services.rule(service).station(&self.network, found.direction, station);
        let onward = match self.route(frame, &error.parsed, station, found.direction, path.returns, turn) {
            Ok(onward) => onward,
            Err(reason) => return Verdict::Drop(reason),
        };
        if Family::of(sent.src) != error.parsed.family {
            return self.error_across(frame, error, &sent, onward, turn);
        }
        if path.returns == Returns::Here {
            let Tuple { src, .. } = error.parsed.tuple;
            // A client is told by the address that it has sent to, whoever it was inside (RFC 5508 section 4.2, REQ-5 (c)). To a server, routers outside
            // are who they are, and the far end is what the server takes it for.
            // Of a flow from inside, outside is the other side.
            let is_from_inside = (sent_by == Direction::Forward) != path.is_outbound();
            let is_known_otherwise = is_from_inside || src == error.embedded.dst;
            let from = if is_known_otherwise { sent.dst } else { src };
            let outer_to = Tuple { src: from, dst: sent.src, ..error.parsed.tuple };
            let outer = Layout::from(&error.parsed);
            let inner = Layout {
                l3: error.parsed.payload.into(),
                l4: error.embedded_l4.into(),
                family: error.parsed.family,
                protocol: error.embedded.protocol,
            };
            if translate_error(frame.bytes, &outer, &outer_to, &inner, &sent).is_err()
                || decrement_hop_limit(frame.bytes, &outer).is_err()
            {
                return Verdict::Drop(DropReason::FrameChanged);
            }
        }
        self.counts.add(PlaneCounter::Errors, 1);
        self.send_error(frame, &error.parsed, onward, turn)
    }
}
