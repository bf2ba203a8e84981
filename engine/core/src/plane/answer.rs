//! What is neither TCP nor UDP: questions for our addresses, pings of them, and ICMP errors about our flows.

use super::flows::Stage;
use super::reply::{Macs, advertisement, arp_announcement, arp_reply, unsolicited_advertisement};
use super::{Desk, Frame, Outbox, Plane, PlaneCounter, PortId, Turn, Verdict};
use crate::flow::{Direction, Returns};
use crate::packet::rewrite::{Layout, answer_echo, decrement_hop_limit, translate_error};
use crate::packet::{
    Arp, ArpOperation, DropReason, Fragment, IcmpError, Ip, Nd, NdKind, PROTOCOL_TCP, Packet, Parsed, Tuple,
};

/// Time to live and hop limit of what we answer.
const HOP_LIMIT: u8 = 64;

impl Plane {
    /// Tells all links which addresses are ours: gratuitous ARP and unsolicited neighbour advertisements.
    pub fn announce(&self, out: &mut Outbox) {
        let services = self.services.ours().filter(|&address| !self.network.is_own(address));
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
            Packet::Echo(echo) => self.on_echo(frame, echo),
            Packet::Fragment(fragment) => self.on_fragment(fragment),
            Packet::IcmpError(error) => self.on_error(frame, error, turn),
            Packet::Nd(nd) => self.on_nd(frame, nd, turn.out),
            Packet::Other(_) | Packet::Transport(_) => Verdict::Pass,
        }
    }

    fn on_arp(&mut self, frame: &Frame<'_>, arp: &Arp, out: &mut Outbox) -> Verdict {
        if arp.operation != ArpOperation::Request || !self.is_answered(frame, arp.target) {
            return Verdict::Pass;
        }
        let Some(port) = self.network.port(frame.port) else { return Verdict::Pass };
        out.push(frame.port, &arp_reply(arp, port.mac));
        self.counts.add(PlaneCounter::ArpAnswered, 1);
        Verdict::Kept
    }

    fn on_nd(&mut self, frame: &Frame<'_>, nd: &Nd, out: &mut Outbox) -> Verdict {
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

    fn on_echo(&mut self, frame: &mut Frame<'_>, echo: &Parsed) -> Verdict {
        if !self.is_ours_alone(echo.tuple.dst) || self.network.is_kernels(echo.tuple.dst) {
            return Verdict::Pass;
        }
        match answer_echo(frame.bytes, &Layout::from(echo), HOP_LIMIT) {
            Ok(()) => {
                self.counts.add(PlaneCounter::EchoAnswered, 1);
                Verdict::Send(frame.port)
            }
            Err(_) => Verdict::Drop(DropReason::FrameChanged),
        }
    }

    fn on_fragment(&self, fragment: &Fragment) -> Verdict {
        let tuple = &fragment.parsed.tuple;
        let is_flows = fragment.is_first() && self.flows.lookup(tuple).is_some();
        // Most fragments do not tell which flow they are of: what such a server sends through us to a client would leave untranslated.
        let is_reply = self.services.keeps_clients(tuple.src) && self.network.holder(tuple.dst).is_none();
        match is_flows || is_reply || self.is_ours_alone(tuple.dst) {
            true => Verdict::Drop(DropReason::Fragment),
            false => Verdict::Pass,
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
                true => Verdict::Drop(DropReason::IcmpErrorStray),
                false => Verdict::Pass,
            };
        };
        if found.stage == Stage::Established {
            self.flows.consult(found.id);
        }
        let table = self.flows.table(found.stage);
        let (Some(path), Some(state)) = (table.path(found.id), table.state(found.id)) else { return Verdict::Pass };
        let sent_by = found.direction.opposite();
        if error.embedded.protocol == PROTOCOL_TCP && !state.tcp().is_in_flight(sent_by, error.embedded_seq) {
            return Verdict::Drop(DropReason::IcmpErrorWindow);
        }
        // The quoted packet as its sender sent it, and the station that it came from.
        let (sent, station) = match sent_by {
            Direction::Forward => (path.client, path.client.src),
            Direction::Reverse => (path.server.reversed(), path.server.dst),
        };
        let hop = match self.route(frame, &error.parsed, station, found.direction, path.returns, turn) {
            Ok(hop) => hop,
            Err(reason) => return Verdict::Drop(reason),
        };
        if path.returns == Returns::Here {
            let Tuple { src, .. } = error.parsed.tuple;
            // The far end is known to the sender by another address; a router on the way is not.
            let from = if src == error.embedded.dst { sent.dst } else { src };
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
        self.send_error(turn.now, frame, &error.parsed, station, hop)
    }
}
