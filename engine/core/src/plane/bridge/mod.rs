//! Bridges: two ports, the arms, like the ends of one cable.
//!
//! What comes in by an arm and is not for us leaves by the other one as it came: ARP, groups, unknown protocols, super-packets. Taken out is what is
//! for the MAC of either arm, questions for addresses of ours, and what half-NAT servers answer to clients, by its tuple: it is for the client's
//! router, not for us.
//!
//! Who sends is learned, so that our own frames leave by the arm that their station is at. A cable that leads back to itself is noticed: by frames
//! of our own that come in again, for which a probe is sent now and then, and by stations that are at both arms at once. While that lasts, what would go round for
//! ever crosses at a bounded rate.

mod stations;

use super::budget::Budget;
use super::flows::{Found, Stage};
use super::{Desk, Frame, Network, Outbox, Plane, PlaneCounter, PlaneCounts, PortId, Turn, Verdict};
use crate::flow::{Direction, FlowId, TupleHash};
use crate::packet::rewrite::Macs;
use crate::packet::{DropReason, ETHERNET_LEN, Mac, Packet, Parsed};
use crate::{Now, WorkerId};

use stations::{Learned, Stations};

/// Time between two probes: that of spanning tree's hellos (IEEE 802.1Q table 13-5).
const PROBE_MS: u64 = 2_000;
/// A loop without a sign for so long is over.
const LOOP_OVER_MS: u64 = 5 * PROBE_MS;
/// While there is a loop, frames to groups and to unknown stations that cross a bridge per second and worker.
const STORM_FRAMES_PER_SECOND: u32 = 256;

/// The one that sends the probes, and that frames of no IP are steered to.
const PROBER: WorkerId = WorkerId(0);
/// Octets of the shortest frame without its check sequence (IEEE 802.3 section 4A.4.2).
const PROBE_LEN: usize = 60;
/// A group that nobody has joined, administered locally.
const PROBE_GROUP: Mac = Mac([0x03, b't', b'o', b'w', b'p', 1]);
/// IEEE 802 local experimental EtherType 1 (IEEE 802 section 9.2.4).
const PROBE_ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const PROBE_TEXT: &[u8] = b"towpath bridge: who gets this twice has a loop";

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Where spanning tree's frames go: those of customers' and providers' bridges (IEEE 802.1Q table 8-1), and those of each VLAN (PVST+).
const SPANNING_TREE_GROUPS: [Mac; 3] = [
    Mac([0x01, 0x80, 0xc2, 0x00, 0x00, 0x00]),
    Mac([0x01, 0x80, 0xc2, 0x00, 0x00, 0x08]),
    Mac([0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd]),
];

/// Whose a frame is by its destination MAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Whose {
    /// For us, alone or as one of a group.
    #[default]
    Ours,
    /// It is on its way through a bridge: it crosses unless its packet says that we have to do with it.
    Others,
}

/// An arm, as a frame that came in there needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arm {
    cable: u8,
    other: PortId,
    /// Its own and the other one's.
    macs: [Mac; 2],
    blocks_spanning_tree: bool,
    /// For frames with tags.
    is_tagged: bool,
}

/// Two arms, and what goes on between them.
struct Cable {
    arms: [PortId; 2],
    /// The last sign of a loop.
    loop_seen: Option<Now>,
    storm: Budget,
}

/// The bridges of a network.
pub(super) struct Bridges {
    /// By number of the port, those of frames with tags too; empty without bridges.
    arms: Box<[Option<Arm>]>,
    cables: Vec<Cable>,
    /// Once there was a bridge.
    stations: Option<Stations>,
    probe_at: Now,
    seed: u64,
}

impl Bridges {
    pub(super) fn new(network: &Network, seed: u64, now: Now) -> Bridges {
        let mut bridges = Bridges { arms: Box::default(), cables: Vec::new(), stations: None, probe_at: now, seed };
        bridges.adopt(network);
        bridges
    }

    /// Follows a newer network. A loop of a bridge that is still there goes on.
    pub(super) fn adopt(&mut self, network: &Network) {
        let mut before = std::mem::take(&mut self.cables);
        let mut arms = vec![None; usize::from(u8::MAX) + 1];
        for (port, id) in network.ports.iter().zip(0..=u8::MAX).map(|(port, id)| (port, PortId(id))) {
            let Some(other) = port.peer.filter(|&other| other > id) else { continue };
            // Each has to be the other one's.
            let Some(peer) = network.port(other).filter(|peer| peer.peer == Some(id)) else { continue };
            let Ok(cable) = u8::try_from(self.cables.len()) else { break };
            for (id, own, other, peer) in [(id, port, other, peer), (other, peer, id, port)] {
                let blocks_spanning_tree = own.blocks_spanning_tree || peer.blocks_spanning_tree;
                let arm = Arm { cable, other, macs: [own.mac, peer.mac], blocks_spanning_tree, is_tagged: false };
                arms[id.index()] = Some(arm);
                arms[id.tagged().index()] = Some(Arm { other: other.tagged(), is_tagged: true, ..arm });
            }
            let was = before.iter().position(|cable| cable.arms == [id, other]).map(|place| before.swap_remove(place));
            self.cables.push(was.unwrap_or_else(|| Cable {
                arms: [id, other],
                loop_seen: None,
                storm: Budget::new(STORM_FRAMES_PER_SECOND),
            }));
        }
        self.arms = if self.cables.is_empty() { Box::default() } else { arms.into() };
        if !self.cables.is_empty() && self.stations.is_none() {
            self.stations = Some(Stations::new(self.seed));
        }
    }

    /// Believes what is new in `network` since `before` about the arms of stations: what this worker has heard may be older.
    pub(super) fn correct_stations(&mut self, before: &Network, network: &Network) {
        let Some(stations) = &mut self.stations else { return };
        for (port, mac) in network.stations_since(before) {
            if let Some(arm) = self.arms.get(port.index()).copied().flatten() {
                stations.correct(mac, [port, arm.other]);
            }
        }
    }

    /// Whether there is one.
    #[inline]
    pub(super) fn is_any(&self) -> bool {
        !self.arms.is_empty()
    }

    /// The arm that this port is.
    #[inline]
    pub(super) fn arm(&self, port: PortId) -> Option<Arm> {
        self.arms.get(port.index()).copied().flatten()
    }

    fn is_looped(&self, arm: Arm) -> bool {
        self.cables.get(usize::from(arm.cable)).is_some_and(|cable| cable.loop_seen.is_some())
    }

    /// A sign that the cable leads back to itself.
    #[cold]
    fn see_loop(&mut self, now: Now, arm: Arm, counts: &mut PlaneCounts) {
        let Some(cable) = self.cables.get_mut(usize::from(arm.cable)) else { return };
        if cable.loop_seen.replace(now).is_none() {
            counts.add(PlaneCounter::BridgeLoops, 1);
        }
    }

    /// Who a frame has come from, and to: who sends it lives at `port`.
    fn learn(&mut self, now: Now, src: Mac, port: PortId, arm: Arm, counts: &mut PlaneCounts) {
        let Some(stations) = &mut self.stations else { return };
        match stations.learn(now, src, [port, arm.other]) {
            Learned::Nothing | Learned::New { evicts: false } => {}
            Learned::New { evicts: true } => counts.add(PlaneCounter::BridgeStationsEvicted, 1),
            Learned::Moved { flaps } => {
                counts.add(PlaneCounter::BridgeStationsMoved, 1);
                if flaps {
                    self.see_loop(now, arm, counts);
                }
            }
        }
    }

    /// Whether a frame may cross: while there is a loop, not all that could go round in it.
    fn may_cross(&mut self, now: Now, arm: Arm, dst: Mac) -> bool {
        if !self.is_looped(arm) {
            return true;
        }
        let Some(cable) = self.cables.get_mut(usize::from(arm.cable)) else { return true };
        let station = self.stations.as_ref().and_then(|stations| stations.port_of(now, dst, cable.arms));
        let is_known = station == Some(arm.other);
        is_known || cable.storm.take(now)
    }

    /// When [`Plane::tend_bridges`] has something to do next.
    pub(super) fn next_due(&self, worker: WorkerId) -> Option<Now> {
        let probe = (self.is_any() && worker == PROBER).then_some(self.probe_at);
        let over = self.cables.iter().filter_map(|cable| cable.loop_seen).map(|seen| seen + LOOP_OVER_MS).min();
        [probe, over].into_iter().flatten().min()
    }
}

impl Plane {
    /// Looks at the header of a frame that came in by an arm: who has to do with it? Its sender is learned.
    ///
    /// # Errors
    /// What becomes of it, where its packet does not matter.
    pub(super) fn meet(&mut self, now: Now, frame: &Frame<'_>, arm: Arm) -> Result<Whose, Verdict> {
        let Some(Header { dst, src, ethertype }) = Header::read(frame.bytes) else {
            return Err(Verdict::Drop(DropReason::EthernetTruncated));
        };
        if arm.macs.contains(&src) {
            self.bridges.see_loop(now, arm, &mut self.counts);
            return Err(Verdict::Drop(DropReason::BridgeReturned));
        }
        if arm.is_tagged {
            // Who sends it is not learned: one MAC may be at other places in other VLANs.
            return Err(self.pass_on(now, frame, arm));
        }
        self.bridges.learn(now, src, frame.port, arm, &mut self.counts);
        if arm.macs.contains(&dst) {
            return Ok(Whose::Ours);
        }
        if arm.blocks_spanning_tree && SPANNING_TREE_GROUPS.contains(&dst) {
            return Err(Verdict::Drop(DropReason::SpanningTree));
        }
        // Questions for addresses of ours; and who else could mean us without knowing is a half-NAT server.
        let matters = match (dst.is_group(), ethertype) {
            (_, ETHERTYPE_ARP) | (true, ETHERTYPE_IPV6) => true,
            (false, ETHERTYPE_IPV4 | ETHERTYPE_IPV6) => self.services.any_keeps_clients(),
            _ => false,
        };
        if matters { Ok(Whose::Others) } else { Err(self.pass_on(now, frame, arm)) }
    }

    /// Sends a frame that is others' on by the other arm.
    pub(super) fn pass_on(&mut self, now: Now, frame: &Frame<'_>, arm: Arm) -> Verdict {
        let dst = Header::read(frame.bytes).map_or(Mac::BROADCAST, |header| header.dst);
        if !self.bridges.may_cross(now, arm, dst) {
            return Verdict::Drop(DropReason::BridgeStorm);
        }
        self.counts.add(PlaneCounter::FramesBridged, 1);
        Verdict::Send(arm.other)
    }

    /// The same for one that came in by whatever port; what did not come in by an arm is left to the kernel.
    pub(super) fn pass_over(&mut self, now: Now, frame: &Frame<'_>) -> Verdict {
        match self.bridges.arm(frame.port) {
            Some(arm) => self.pass_on(now, frame, arm),
            None => Verdict::Pass,
        }
    }

    /// Decides about a frame for others that carries no whole TCP segment or UDP datagram: as if it were ours, and what then is none of ours crosses.
    pub(super) fn answer_on_arm<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let is_group = Header::read(frame.bytes).is_none_or(|header| header.dst.is_group());
        turn.whose = Whose::Others;
        let verdict = match packet {
            Packet::Arp(_) | Packet::Nd(_) => self.answer(frame, packet, turn),
            Packet::Fragment(_) | Packet::IcmpError(_) if !is_group => self.answer(frame, packet, turn),
            Packet::Echo(_)
            | Packet::EchoReply(_)
            | Packet::Fragment(_)
            | Packet::IcmpError(_)
            | Packet::Other(_)
            | Packet::Transport(_) => Verdict::Pass,
        };
        turn.whose = Whose::Ours;
        match verdict {
            Verdict::Pass => self.pass_over(turn.now, frame),
            decided => decided,
        }
    }

    /// Decides about a TCP or UDP packet of the batch that is for others: the answer of a real server to a client of ours goes on as such, anything else
    /// crosses.
    pub(super) fn take_out<D: Desk>(
        &mut self,
        packet: &Parsed,
        hash: TupleHash,
        found: Option<(FlowId, Direction)>,
        frame: &mut Frame<'_>,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let found = found.map(|(id, direction)| Found { stage: Stage::Established, id, direction });
        // What the batch did before may have opened, moved or ended its flow.
        for look in [Some(found), None] {
            let found = look.unwrap_or_else(|| self.flows.lookup_hashed(hash, &packet.tuple));
            let is_answer = |found: &Found| found.direction == Direction::Reverse;
            if let Some(found) = found.filter(is_answer)
                && let Some(verdict) = self.forward(frame, packet, found, turn)
            {
                return verdict;
            }
        }
        match self.hand_off(&packet.tuple, None) {
            Some(elsewhere) => elsewhere,
            None => self.pass_over(turn.now, frame),
        }
    }

    /// Has frames of our own leave by the arm that their station was heard at last, whatever the network says.
    pub(super) fn follow_stations(&self, now: Now, frames: &mut [Frame<'_>], verdicts: &mut [Verdict]) {
        let Some(stations) = &self.bridges.stations else { return };
        for (frame, verdict) in frames.iter_mut().zip(verdicts) {
            let Verdict::Send(port) = verdict else { continue };
            let Some(arm) = self.bridges.arm(*port) else { continue };
            let Some(header) = Header::read(frame.bytes) else { continue };
            // What crosses has another sender.
            let [own, others] = arm.macs;
            if header.src == own && stations.port_of(now, header.dst, [*port, arm.other]) == Some(arm.other) {
                if let Some(src) = frame.bytes.get_mut(6..12) {
                    src.copy_from_slice(&others.0);
                }
                *port = arm.other;
            }
        }
    }

    /// Where a frame that is to leave by `port` with these MACs does leave, by the station that it is for, and with which.
    pub(super) fn follow_station(&self, now: Now, port: PortId, macs: Macs) -> (PortId, Macs) {
        let follow = || {
            let arm = self.bridges.arm(port)?;
            let [.., others] = arm.macs;
            let [a, b, c, d, e, f, ..] = *macs.octets();
            let dst = Mac([a, b, c, d, e, f]);
            let heard_at = self.bridges.stations.as_ref()?.port_of(now, dst, [port, arm.other]);
            (heard_at == Some(arm.other)).then(|| (arm.other, Macs::new(dst, others)))
        };
        follow().unwrap_or((port, macs))
    }

    /// Sends the probes that are due, and ends loops that gave no sign any more.
    pub(super) fn tend_bridges(&mut self, now: Now, out: &mut Outbox) {
        let bridges = &mut self.bridges;
        if bridges.next_due(self.worker).is_none_or(|due| due > now) {
            return;
        }
        for cable in &mut bridges.cables {
            if cable.loop_seen.take_if(|seen| now.ms_since(*seen) >= LOOP_OVER_MS).is_some() {
                self.counts.add(PlaneCounter::BridgeLoopsOver, 1);
            }
        }
        if self.worker != PROBER || bridges.probe_at > now {
            return;
        }
        bridges.probe_at = now + PROBE_MS;
        for (arm, id) in bridges.arms.iter().zip(0..=u8::MAX) {
            if let Some(Arm { macs: [own, _], is_tagged: false, .. }) = arm {
                out.push(PortId(id), &probe(*own));
            }
        }
    }
}

/// The beginning of a frame; its source may be a group.
struct Header {
    dst: Mac,
    src: Mac,
    ethertype: [u8; 2],
}

impl Header {
    fn read(frame: &[u8]) -> Option<Header> {
        let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, high, low] = frame.first_chunk::<ETHERNET_LEN>()?;
        Some(Header { dst: Mac([d0, d1, d2, d3, d4, d5]), src: Mac([s0, s1, s2, s3, s4, s5]), ethertype: [high, low] })
    }
}

/// A frame that says nothing but who sent it.
fn probe(src: Mac) -> [u8; PROBE_LEN] {
    let mut frame = [0; PROBE_LEN];
    let content = PROBE_GROUP.0.iter().chain(&src.0).chain(&PROBE_ETHERTYPE).chain(PROBE_TEXT);
    frame.iter_mut().zip(content).for_each(|(octet, of_probe)| *octet = *of_probe);
    frame
}
