//! The packet plane of one worker: frames in, verdicts and rewritten frames out. No I/O, no clock, no lock.
//!
//! [`Plane::process`] takes a batch through the steps of `ARCHITECTURE.md`: parse → flow table → (miss: service, Director, SNAT lease, insert) →
//! advance TCP or UDP → next hop → rewrite. Each step runs over the whole batch where it reads large memory.
//!
//! What outlives a packet is a flow: its tuples, 24 bytes of state and 12 of detail (`flows.rs`). Everything else is the snapshot's (services,
//! servers, pools; `services.rs` keeps what packets need of it) or the network's (ports, routes, neighbours).

mod answer;
mod bridge;
mod budget;
mod cross;
mod ending;
mod exhausted;
mod fast;
mod flows;
mod forward;
mod fragments;
mod handoff;
mod inherit;
mod moving;
mod neighbours;
mod network;
mod note;
mod opening;
mod outbound;
mod outbox;
mod pending;
mod reassembly;
mod reply;
mod router;
mod services;
mod standby;
mod straight;
mod survey;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use towpath_config::model::MachineRole;

use crate::counters::{ServiceCounter, Termination, counters};
use crate::flow::{Direction, FlowId, PathHashes, TupleHash};
use crate::packet::rewrite::Checksum;
use crate::packet::straight::read_straight;
use crate::packet::{DropReason, Ip, Mac, PROTOCOL_TCP, Parsed, TcpFlags, parse_to};
use crate::snapshot::{Service, Snapshot};
use crate::snat::SnatRest;
use crate::{Now, Pick, RealServerId, Refusal, ServiceId, WorkerId};

use bridge::{Bridges, Whose};
use budget::Budget;
use cross::CrossingRoom;
use ending::Sweep;
use exhausted::Exhausted;
use flows::{Flows, Found, Stage, Table};
use forward::{Hops, Run};
use fragments::{Identifications, Pieces};
use moving::Moving;
use note::Notes;
use opening::Ahead;
use pending::Pending;
use reassembly::{Gathered, Reassembly};
use router::OwnAddresses;
use services::Services;
use straight::{Places, Straights};

pub use answer::announcement;
pub use inherit::{FLOW_RECORD, FlowRecord, FlowRecordError, Inherited, Renamed};
pub use moving::{Cargo, MovedFlow};
pub use neighbours::{Heard, NEIGHBOURS_MAX, NeighbourCounter, NeighbourCounts, Neighbours};
pub use network::{Keeper, Network, NextHop, PROBE_PORTS, Port};
pub use outbox::Outbox;
pub use pending::HELD_BYTES_MAX;
pub use survey::{Concern, FlowEnd, FlowPlace, Survey, SurveyedFlow};

/// Ports at most, so that a set of them is one word.
pub const PORTS_MAX: usize = 64;

/// In the number of a port, which is below [`PORTS_MAX`]: see [`PortId::tagged`].
const TAGGED: u8 = 0x80;

/// Frames that [`Plane::process`] takes at a time.
pub const BATCH_MAX: usize = crate::flow::table::LOOKUP_BATCH;

/// Flags of segments that may end a connection.
const ENDING: u8 = TcpFlags::FIN.0 | TcpFlags::RST.0;

/// What the plane drops frames for, beside the reasons of [`crate::packet::parse`].
#[cfg(test)]
pub(crate) const DROP_REASONS: [DropReason; 36] = [
    DropReason::BridgeReturned,
    DropReason::BridgeStorm,
    DropReason::CutFull,
    DropReason::DsrBehindRouter,
    DropReason::FlowsFull,
    DropReason::Fragment,
    DropReason::FragmentCongestion,
    DropReason::FragmentHeaders,
    DropReason::FragmentOverlap,
    DropReason::FragmentsTooMany,
    DropReason::FrameChanged,
    DropReason::HairpinUnserved,
    DropReason::HalfOpenFull,
    DropReason::HalfOpenSource,
    DropReason::HandOffFull,
    DropReason::HopLimit,
    DropReason::IcmpErrorStray,
    DropReason::IcmpErrorUntranslated,
    DropReason::IcmpErrorWindow,
    DropReason::NextHopUnknown,
    DropReason::NoRoute,
    DropReason::NoServer,
    DropReason::PacketTooBig,
    DropReason::PortClosed,
    DropReason::PortsExhausted,
    DropReason::ReturnPort,
    DropReason::ReversePath,
    DropReason::RuleDenied,
    DropReason::ServersFull,
    DropReason::ServiceFull,
    DropReason::SourceOurs,
    DropReason::SpanningTree,
    DropReason::Standby,
    DropReason::TcpStray,
    DropReason::TooLongForV4,
    DropReason::Unroutable,
];

/// An interface or VLAN, by its place in [`Network::ports`]; below [`PORTS_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u8);

impl PortId {
    /// The same number as an index.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// In place of an arm of a bridge, for frames with a tag that is no port's: they cross it, and are for nobody here. No other port has this number.
    #[inline]
    pub fn tagged(self) -> PortId {
        PortId(self.0 | TAGGED)
    }

    /// The arm in whose place it stands, if it is such a number.
    #[inline]
    pub fn is_tagged(self) -> Option<PortId> {
        (self.0 & TAGGED != 0).then_some(PortId(self.0 & !TAGGED))
    }

    /// The same number as one bit of a set of ports.
    #[inline]
    fn bit(self) -> u64 {
        1_u64.checked_shl(self.0.into()).unwrap_or(0)
    }
}

/// A frame as it was received. It is rewritten in place.
#[derive(Debug)]
pub struct Frame<'a> {
    /// From the Ethernet header on; padding at the end is allowed.
    pub bytes: &'a mut [u8],
    /// The room right in front of it: [`Frame::FRONT`] octets, or fewer. A packet of IPv4 that becomes one of IPv6 grows into it; where it does not
    /// fit, it is copied, but for a super-packet, which is dropped then.
    pub front: &'a mut [u8],
    /// Where it came in.
    pub port: PortId,
    /// What its TCP or UDP checksum field holds.
    pub checksum: Checksum,
    /// Of a super-packet, octets of payload of each of its segments; 0 for any other frame.
    pub segment_bytes: u16,
}

impl Default for Frame<'_> {
    /// One without octets.
    fn default() -> Self {
        Frame { bytes: &mut [], front: &mut [], port: PortId(0), checksum: Checksum::Complete, segment_bytes: 0 }
    }
}

impl Frame<'_> {
    /// Octets of room in front that are enough for every packet.
    pub const FRONT: usize = crate::packet::cross::GROWTH_MAX;
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing; it is counted.
    Drop(DropReason),
    /// Its flow lives, or is to be opened, at this other worker, whose [`Plane::process_handed`] is to get it as it is.
    HandOff(WorkerId),
    /// It was copied and waits for its next hop; or it was answered, and the answer is in the [`Outbox`].
    Kept,
    /// It is none of ours: the kernel has its own copy.
    Pass,
    /// It was rewritten in place and leaves through this port.
    Send(PortId),
    /// The same, and its packet is one of the other IP version now: the frame begins elsewhere.
    Translated {
        /// Where it leaves.
        port: PortId,
        /// By how many octets it begins later than [`Frame::bytes`]; where negative, in [`Frame::front`]. What was left to the device lies as much
        /// nearer to its start.
        begins: i16,
    },
}

/// What the plane asks of, and tells to, whoever shares services and servers among the workers. Called when flows open and end; of packets only
/// the counts, once for each run of packets of one service.
pub trait Desk {
    /// The real server of a new flow of `client` to this port of the service, counted as a connection until [`Desk::close`].
    ///
    /// # Errors
    /// Nobody serves it, and nothing is counted.
    fn pick(&mut self, service: &Service, client: SocketAddr, port: u16, now: Now) -> Result<Pick, Refusal>;
    /// The flow that a pick was for no longer counts.
    fn close(&mut self, service: ServiceId, server: RealServerId);
    /// Adds `n` to a counter of the service.
    fn count(&mut self, service: ServiceId, counter: ServiceCounter, n: u64);
    /// A flow of the service ended this way, or was refused.
    fn end(&mut self, service: ServiceId, termination: Termination);
    /// A flow reached this server: its handshake is complete, or its first datagram was answered.
    fn opened(&mut self, server: RealServerId);
    /// A connection did not reach this server: it refused it, or did not answer within `connect_timeout`.
    fn failed(&mut self, server: RealServerId);
    /// The cache line at this address is read soon. A hint to the processor where there is a way to give it, and nothing otherwise.
    #[inline(always)]
    fn prefetch(&self, _line: *const u8) {}
}

/// What a TCP segment gets that belongs to no flow and opens none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strays {
    /// Nothing.
    #[default]
    Drop,
    /// A reset, when it was sent to a port that a service has, or by a real server to an address that is ours alone. So the ends of connections
    /// that were lost with the process before this one hear of it at once, as from a host that has started again (RFC 9293 section 3.10.7.1).
    Reset,
}

/// The size of a plane and what it is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneSettings {
    /// Flows that both sides have answered; each takes 128 bytes.
    pub flows_max: usize,
    /// Flows whose handshake is not complete, or whose datagrams nobody has answered; each takes 128 bytes, beside the others.
    pub half_open_max: usize,
    /// Of these, flows of one source (an IPv4 address, an IPv6 /64); 0 = as many as there are.
    pub half_open_per_source_max: u32,
    /// Frames that wait for a next hop; each takes 2 KiB.
    pub pending_frames_max: usize,
    /// Resets of what is refused made per second; as many ICMP errors about packets that are too big, and as many others.
    pub replies_per_second: u32,
    /// The worker that it belongs to.
    pub worker: WorkerId,
    /// Random and secret: keys the tables.
    pub seed: [u64; 2],
    /// That of [`crate::steering`], the same for all workers.
    pub steering_seed: u32,
    /// What stray segments get.
    pub strays: Strays,
}

counters!(
    /// Counted per packet plane, beside its drops.
    PlaneCounter {
        ArpAnswered = "arp_answered", "ARP requests for our addresses answered.";
        BridgeLoops = "bridge_loops", "Times that a bridge was noticed to lead back to itself.";
        BridgeLoopsOver = "bridge_loops_over", "Of these, loops that gave no sign any more.";
        BridgeStationsEvicted = "bridge_stations_evicted", "Stations of bridges that were forgotten because there was no room for more.";
        BridgeStationsMoved = "bridge_stations_moved", "Times that a station of a bridge was heard at its other arm.";
        EchoAnswered = "echo_answered", "Pings of our addresses answered.";
        Errors = "icmp_errors", "ICMP errors about our flows translated.";
        ErrorsMade = "icmp_errors_made", "ICMP errors made here: packet too big, time exceeded, port unreachable, no route.";
        FastFlowsEntered = "fast_flows_entered", "Flows that the kernel was given to carry onwards, each time anew.";
        FastFlowsLeft = "fast_flows_left", "Of these, flows that were taken from it again.";
        FastFlowsRefused = "fast_flows_refused", "Times that there was no room for a flow among those that the kernel carries onwards.";
        FastTransitsEntered = "fast_transits_entered", "Directions of routed connections that the kernel was given to carry onwards, each time anew.";
        FastTransitsLeft = "fast_transits_left", "Of these, directions that were taken from it again.";
        FastTransitsRefused = "fast_transits_refused", "Times that there was no room for a direction of a routed connection among what the kernel carries onwards.";
        FlowsClosed = "flows_closed", "Flows that have ended.";
        FlowsGiven = "flows_given", "Flows given to the workers that their clients are steered to now.";
        FlowsOpened = "flows_opened", "Flows that were opened.";
        FlowsReopened = "flows_reopened", "Flows that a SYN opened in place of one that was over.";
        FlowsReset = "flows_reset", "Flows that were ended from here by resets to both sides.";
        FlowsTaken = "flows_taken", "Flows taken from the workers that their clients were steered to before, or from the process before.";
        FragmentsGivenUp = "fragments_given_up", "Fragments that were kept and then dropped: their packet was not whole in time, was refused, or gave way to newer ones.";
        FragmentsKept = "fragments_kept", "Fragments kept until their packet is whole.";
        FragmentsMade = "fragments_made", "Fragments of packets that were cut.";
        FragmentsPushedOut = "fragments_pushed_out", "Of those given up, fragments that gave way to newer ones because there is room for 1,024 packets and 4 MiB.";
        FragmentsRepeated = "fragments_repeated", "Fragments that were let go because the same was kept already.";
        Frames = "frames", "Frames received, from other workers too, and those that the kernel carried onwards.";
        FramesBridged = "frames_bridged", "Frames that crossed a bridge, of no service.";
        FramesFast = "frames_fast", "Of the frames forwarded, those that the kernel carried onwards, as of the last second.";
        FramesFromClient = "frames_from_client", "Frames forwarded from clients; a super-packet counts as one.";
        FramesGivenUp = "frames_given_up", "Frames that waited for a next hop in vain.";
        FramesHandedByMove = "frames_handed_by_move", "Frames handed to another worker because their flow has moved, or is about to come.";
        FramesHandedByNote = "frames_handed_by_note", "Frames handed to another worker by the note of a source port that was leased outside of its home.";
        FramesHandedHere = "frames_handed_here", "Of the frames received, those that another worker has handed here.";
        FramesHeld = "frames_held", "Frames that waited for a next hop.";
        FramesPassed = "frames_passed", "Frames that were left to the kernel.";
        FramesRouted = "frames_routed", "Frames of no service that were forwarded as they are; a super-packet counts as one.";
        FramesToClient = "frames_to_client", "Frames forwarded to clients; a super-packet counts as one.";
        LeasesRetried = "leases_retried", "Leased source ports that another flow still used; the next lease was tried.";
        MssClamped = "mss_clamped", "Handshake segments whose maximum segment size was lowered.";
        NdAnswered = "nd_answered", "IPv6 neighbour solicitations for our addresses answered.";
        OctetsFromClient = "octets_from_client", "Octets of frames forwarded from clients.";
        OctetsRouted = "octets_routed", "Octets of frames of no service that were forwarded as they are.";
        OctetsToClient = "octets_to_client", "Octets of frames forwarded to clients.";
        PacketsCut = "packets_cut", "Packets that left in fragments: as they had come, or because the link ahead carries no more.";
        PacketsReassembled = "packets_reassembled", "Packets that were put together from fragments.";
        ResetsMade = "resets_made", "TCP resets made here.";
        TcpFaults = "tcp_faults", "TCP segments forwarded that do not fit their connection.";
    }
);

/// What a plane has counted since it was made.
#[derive(Clone, Debug)]
pub struct PlaneCounts {
    drops: [u64; DropReason::ALL.len()],
    counters: [u64; PlaneCounter::ALL.len()],
}

impl PlaneCounts {
    /// Frames dropped for this reason.
    #[inline]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// The value of a counter.
    #[inline]
    pub fn read(&self, counter: PlaneCounter) -> u64 {
        self.counters[counter as usize]
    }
}

impl PlaneCounts {
    #[inline]
    fn add(&mut self, counter: PlaneCounter, n: u64) {
        self.counters[counter as usize] += n;
    }

    fn set(&mut self, counter: PlaneCounter, value: u64) {
        self.counters[counter as usize] = value;
    }

    /// So many frames were carried onwards by the kernel.
    fn add_fast(&mut self, frames: u64) {
        self.add(PlaneCounter::Frames, frames);
        self.add(PlaneCounter::FramesFast, frames);
    }
}

/// The packet plane of one worker.
pub struct Plane {
    snapshot: Arc<Snapshot>,
    network: Arc<Network>,
    hops: Hops,
    bridges: Bridges,
    own_addresses: OwnAddresses,
    services: Services,
    flows: Flows,
    pending: Pending,
    reassembly: Reassembly,
    identifications: Identifications,
    crossing: CrossingRoom,
    exhausted: Exhausted,
    /// Leases that rest and whose flow gave way to another.
    rest: SnatRest,
    notes: Notes,
    moving: Moving,
    /// Of the frames at hand: who has handed them here.
    handed_by: Option<WorkerId>,
    /// ICMP errors but those of the other two.
    errors: Budget,
    /// Those about packets that do not fit, apart: their senders depend on them, and whoever sends packets with a last hop must not use them up.
    too_big: Budget,
    /// Resets of what is refused, apart: a flood of SYNs must not use up the others.
    refusals: Budget,
    counts: PlaneCounts,
    sweep: Option<Sweep>,
    worker: WorkerId,
    steering_seed: u32,
    strays: Strays,
    role: MachineRole,
    /// Room for the TCP and UDP packets of a batch.
    batch: Box<[Job; BATCH_MAX]>,
    /// Of those without an established flow, what is known before their turn.
    ahead: Box<[Ahead; BATCH_MAX]>,
    /// How many flows had ever come into the large table when that was found out.
    ahead_of: u64,
    /// When it was last called.
    called: Now,
}

/// What one call of the plane is given to work with, and what it counts on the way.
struct Turn<'a, D> {
    now: Now,
    desk: &'a mut D,
    out: &'a mut Outbox,
    run: Run,
    /// The hashes of the half-open flow whose packet has its turn, where they are known.
    hashes: Option<PathHashes>,
    /// How the packet came that has its turn, if it was put together.
    pieces: Option<Pieces>,
    /// Who the frame that has its turn is for.
    whose: Whose,
}

/// How many packets of a batch have jobs, and the flags that any of these has.
#[derive(Clone, Copy, Default)]
struct Jobs {
    count: usize,
    flags: u8,
}

/// A packet and the place of its frame in the batch.
#[derive(Clone, Copy, Default)]
struct Job {
    at: usize,
    packet: Parsed,
    hash: TupleHash,
    whose: Whose,
}

impl Plane {
    /// Bytes of one flow with everything that it needs.
    pub const BYTES_PER_FLOW: usize = Table::BYTES_PER_FLOW;

    /// A plane without flows, all its memory allocated.
    pub fn new(settings: &PlaneSettings, snapshot: Arc<Snapshot>, network: Arc<Network>, now: Now) -> Plane {
        let PlaneSettings { flows_max, half_open_max, half_open_per_source_max, seed, .. } = *settings;
        let mut services = Services::new();
        services.adopt(&snapshot);
        let mut notes = Notes::default();
        notes.adopt(&snapshot);
        Plane {
            moving: Moving::new(&snapshot.steering, settings.worker),
            role: snapshot.role,
            notes,
            handed_by: None,
            snapshot,
            hops: Hops::new(&network),
            bridges: Bridges::new(&network, seed[0], now),
            own_addresses: OwnAddresses::of(&network),
            network,
            services,
            flows: Flows::new(flows_max, half_open_max, half_open_per_source_max, seed, now),
            pending: Pending::new(settings.pending_frames_max),
            reassembly: Reassembly::new(seed),
            identifications: Identifications::new(seed),
            crossing: CrossingRoom::new(),
            exhausted: Exhausted::default(),
            rest: SnatRest::new(settings.half_open_max.max(1)),
            errors: Budget::new(settings.replies_per_second),
            too_big: Budget::new(settings.replies_per_second),
            refusals: Budget::new(settings.replies_per_second),
            counts: PlaneCounts { drops: [0; DropReason::ALL.len()], counters: [0; PlaneCounter::ALL.len()] },
            sweep: None,
            worker: settings.worker,
            steering_seed: settings.steering_seed,
            strays: settings.strays,
            batch: Box::new([Job::default(); BATCH_MAX]),
            ahead: Box::new([Ahead::Nothing; BATCH_MAX]),
            ahead_of: 0,
            called: now,
        }
    }

    /// Serves by `snapshot` from here on. Flows of servers that were halted since, and of those that went down where their service
    /// [drops](Service::drops_flows_of) them, are ended by the next calls of [`Plane::expire`]; those whose virtual shard belongs to another
    /// worker now are given to it by the next calls of [`Plane::export`].
    pub fn adopt_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        let before = |service: &Service| self.services.rule(service.id).next_hop;
        if snapshot.each_service().any(|service| before(service) != service.next_hop.map(Ip::from)) {
            self.forget_fast();
        }
        self.forget_transits();
        // One that is under way begins anew only for what it could miss: else it might never end.
        if self.services.adopt(&snapshot) || self.services.has_left() && self.sweep.is_none() {
            self.start_sweep();
        }
        self.exhausted.forget();
        self.notes.adopt(&snapshot);
        self.moving.adopt(&self.snapshot.steering, self.snapshot.generation, &snapshot.steering, self.worker);
        self.take_role(snapshot.role);
        self.snapshot = snapshot;
    }

    /// Forwards by `network` from here on, and sends what waited for a next hop that it knows.
    pub fn adopt_network(&mut self, network: Arc<Network>, out: &mut Outbox) {
        let role = self.role;
        self.pending.adopt(&network, |port, frame| {
            if role == MachineRole::Active {
                out.push(port, frame);
            }
        });
        let hops = Hops::new(&network);
        let own_addresses = OwnAddresses::of(&network);
        self.review_fast(&network, &hops, &own_addresses);
        self.bridges.adopt(&network);
        self.bridges.correct_stations(&self.network, &network);
        self.hops = hops;
        self.own_addresses = own_addresses;
        self.network = network;
    }

    fn call(&mut self, now: Now) {
        self.called = now;
        if let Some(fast) = &mut self.flows.fast {
            fast.called(now);
        }
    }

    /// Decides about at most [`BATCH_MAX`] frames: `verdicts` is cleared, then gets one for each, in order.
    ///
    /// # Panics
    /// When there are more frames.
    pub fn process(
        &mut self,
        now: Now,
        frames: &mut [Frame<'_>],
        verdicts: &mut Vec<Verdict>,
        desk: &mut impl Desk,
        out: &mut Outbox,
    ) {
        assert!(frames.len() <= BATCH_MAX, "a batch has at most {BATCH_MAX} frames, not {}", frames.len());
        self.call(now);
        verdicts.clear();
        if self.role == MachineRole::Standby {
            return self.stand_by(frames, verdicts, out);
        }
        self.settle_carried(now, desk);
        let mut turn = Turn { now, desk, out, run: Run::default(), hashes: None, pieces: None, whose: Whose::Ours };
        verdicts.resize(frames.len(), Verdict::Pass);
        let (mut straights, mut others) = (Straights::default(), Places::default());
        for (at, frame) in frames.iter().enumerate() {
            match read_straight(frame.bytes, self.hops.station(frame.port)) {
                Some(tuple) => {
                    let trace = self.flows.established.trace(tuple, PROTOCOL_TCP, |line| turn.desk.prefetch(line));
                    straights.push(at, trace);
                }
                None => others.push(at),
            }
        }
        let mut jobs = Jobs::default();
        if !others.is_empty() {
            self.look_at(now, &others, &mut jobs, frames, verdicts, &mut turn);
        }
        if !self.flows.established.follow_traces(straights.traces_mut(), |line| turn.desk.prefetch(line)) {
            self.set_aside(&mut straights, &mut jobs, frames, verdicts);
        }
        let sent = match straights.len() == frames.len() {
            true => self.go_on(straights.traces().iter().zip(frames.iter_mut().zip(&mut *verdicts)), &mut turn),
            false => self.take_turns(&straights, jobs, frames, verdicts, &mut turn),
        };
        if self.bridges.is_any() {
            self.follow_stations(now, frames, verdicts);
        }
        self.tell(&mut turn);
        self.enter_fast(now);
        if self.flows.fast.as_ref().is_some_and(|fast| fast.has_news()) {
            self.tell_fast(desk);
        }
        let gave_way = self.flows.take_gave_way();
        self.counts.add(PlaneCounter::FlowsClosed, gave_way);
        self.counts.add(PlaneCounter::Frames, frames.len() as u64);
        if sent < frames.len() {
            self.count_verdicts(verdicts);
        }
    }

    /// Parses the frames at these places, answers those that ask, and makes jobs of those with TCP, UDP or an echo.
    #[inline(never)]
    fn look_at<D: Desk>(
        &mut self,
        now: Now,
        places: &Places,
        jobs: &mut Jobs,
        frames: &mut [Frame<'_>],
        verdicts: &mut [Verdict],
        turn: &mut Turn<'_, D>,
    ) {
        for at in places.iter() {
            let (frame, verdict) = (&mut frames[at], &mut verdicts[at]);
            let whose = match self.whose(now, frame) {
                Ok(whose) => whose,
                Err(decided) => {
                    *verdict = decided;
                    continue;
                }
            };
            let job = &mut self.batch[jobs.count];
            match parse_to(frame.bytes, &mut job.packet) {
                Ok(None) if whose == Whose::Others && !self.services.keeps_clients(job.packet.tuple.src) => {
                    *verdict = self.pass_over(now, frame);
                }
                Ok(None) => {
                    (job.at, job.whose) = (at, whose);
                    job.hash = self.flows.hash(&job.packet.tuple);
                    turn.desk.prefetch(self.flows.established.entry_line(job.hash));
                    if job.packet.tcp.flags.contains(TcpFlags::SYN) {
                        turn.desk.prefetch(self.flows.half_open.entry_line(job.hash));
                    }
                    jobs.flags |= job.packet.tcp.flags.0;
                    jobs.count += 1;
                }
                Ok(Some(other)) if whose == Whose::Others => *verdict = self.answer_on_arm(frame, &other, turn),
                Ok(Some(other)) => *verdict = self.answer(frame, &other, turn),
                Err(_) if whose == Whose::Others => *verdict = self.pass_over(now, frame),
                Err(reason) => *verdict = self.refuse(frame, reason, turn),
            }
        }
    }

    /// Makes jobs of those that lead nowhere, in the order of the batch.
    #[inline(never)]
    fn set_aside(
        &mut self,
        straights: &mut Straights,
        jobs: &mut Jobs,
        frames: &[Frame<'_>],
        verdicts: &mut [Verdict],
    ) {
        straights.retain(|at, trace| {
            if trace.leads_on() {
                return true;
            }
            let job = &mut self.batch[jobs.count];
            match parse_to(frames[at].bytes, &mut job.packet) {
                Ok(None) => {
                    (job.at, job.whose) = (at, Whose::Ours);
                    job.hash = self.flows.hash(&job.packet.tuple);
                    jobs.count += 1;
                }
                // Frames that go straight on are TCP.
                Ok(Some(_)) => {}
                Err(reason) => verdicts[at] = Verdict::Drop(reason),
            }
            false
        });
        self.batch[..jobs.count].sort_unstable_by_key(|job| job.at);
    }

    /// Decides about the frames of a batch of which not all go straight on; returns how many do.
    #[inline(never)]
    fn take_turns<D: Desk>(
        &mut self,
        straights: &Straights,
        jobs: Jobs,
        frames: &mut [Frame<'_>],
        verdicts: &mut [Verdict],
        turn: &mut Turn<'_, D>,
    ) -> usize {
        let Jobs { count, flags } = jobs;
        let mut found = [None; BATCH_MAX];
        let established = &self.flows.established;
        established.lookup_batch_by(&self.batch[..count], |job| &job.packet.tuple, |job| job.hash, &mut found);
        if found[..count].contains(&None) {
            self.read_ahead(frames, &found[..count], turn);
        }
        if flags & ENDING != 0 {
            self.read_ends(&found[..count]);
        }
        // In their order, as what one packet does to its flow may matter to the next.
        let (mut job, mut sent) = (0, 0);
        for (at, trace) in straights.iter() {
            while job < count && self.batch[job].at < at {
                verdicts[self.batch[job].at] = self.onward(job, found[job], frames, turn);
                job += 1;
            }
            sent += self.go_on(std::iter::once((trace, (&mut frames[at], &mut verdicts[at]))), turn);
        }
        for job in job..count {
            verdicts[self.batch[job].at] = self.onward(job, found[job], frames, turn);
        }
        sent
    }

    /// Whether we have to do with a frame, and how.
    ///
    /// # Errors
    /// What becomes of it, where its packet does not matter.
    fn whose(&mut self, now: Now, frame: &Frame<'_>) -> Result<Whose, Verdict> {
        match self.bridges.arm(frame.port) {
            Some(arm) => self.meet(now, frame, arm),
            None => match self.network.port(frame.port).is_some_and(|port| is_for(frame.bytes, port.mac)) {
                true => Ok(Whose::Ours),
                false => Err(Verdict::Pass),
            },
        }
    }

    fn count_verdicts(&mut self, verdicts: &[Verdict]) {
        for verdict in verdicts {
            match verdict {
                Verdict::Drop(reason) => self.counts.drops[*reason as usize] += 1,
                Verdict::Pass => self.counts.add(PlaneCounter::FramesPassed, 1),
                Verdict::HandOff(_) | Verdict::Kept | Verdict::Send(_) | Verdict::Translated { .. } => {}
            }
        }
    }

    /// Decides about a packet of the batch whose flow is this one, unless what came before it has changed that.
    fn onward<D: Desk>(
        &mut self,
        job: usize,
        found: Option<(FlowId, Direction)>,
        frames: &mut [Frame<'_>],
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let Job { at, packet, hash, whose } = self.batch[job];
        let frame = &mut frames[at];
        if whose == Whose::Others {
            return self.take_out(&packet, hash, found, frame, turn);
        }
        if let Some((id, direction)) = found {
            let found = Found { stage: Stage::Established, id, direction };
            if let Some(verdict) = self.forward(frame, &packet, found, turn) {
                return verdict;
            }
        }
        self.missed(frame, &packet, hash, job, turn)
    }

    /// Reads what the packets that end flows are going to write.
    #[cold]
    fn read_ends(&self, found: &[Option<(FlowId, Direction)>]) {
        let mut ids = [None; BATCH_MAX];
        let mut count = 0;
        for (job, found) in self.batch.iter().zip(found) {
            if let Some((id, _)) = found
                && job.packet.tcp.flags.0 & ENDING != 0
            {
                ids[count] = Some(*id);
                count += 1;
            }
        }
        self.flows.read_ends(&ids[..count], self.services.maps());
    }

    /// A time at or before which [`Plane::expire`] has nothing to do; `None` when it never has.
    pub fn next_due(&self) -> Option<Now> {
        let at_once = (self.sweep.is_some() || self.moving.is_giving()).then_some(self.called);
        let flows = [self.flows.next_expiry(), self.next_walk()];
        let others = [at_once, self.pending.next_due(), self.reassembly.next_due(), self.rest.next_due()];
        let others = others.into_iter().chain([self.bridges.next_due(self.worker)]);
        flows.into_iter().chain(others).flatten().min()
    }

    /// What was counted so far.
    pub fn counts(&self) -> &PlaneCounts {
        &self.counts
    }

    /// Flows, half-open ones included.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Of these, half-open ones.
    pub fn half_open(&self) -> usize {
        self.flows.half_open.len()
    }

    /// Bytes that a plane of this size takes, whatever it carries; to within a megabyte.
    pub fn memory_bytes(settings: &PlaneSettings) -> usize {
        Flows::memory_bytes(settings.flows_max, settings.half_open_max)
            + Pending::memory_bytes(settings.pending_frames_max)
            + Reassembly::memory_bytes()
            + CrossingRoom::BYTES
    }

    /// Where the memory of the flows lies: read at random, it should be in large pages.
    pub fn memory(&self) -> impl Iterator<Item = Range<*const u8>> + use<> {
        self.flows.established.memory().into_iter().chain(self.flows.half_open.memory())
    }

    /// A next hop that was looked for and is not known: the kernel, or [`Neighbours`], is to be asked for it. Each once per second at most; `None` when there is none.
    pub fn wanted(&mut self, now: Now) -> Option<(PortId, Ip)> {
        if self.role == MachineRole::Standby { None } else { self.pending.wanted(now) }
    }
}

/// Whether a frame is for the station at `mac`, alone or as one of a group.
#[inline]
fn is_for(frame: &[u8], mac: Mac) -> bool {
    frame.first_chunk::<6>().is_none_or(|dst| *dst == mac.0 || Mac(*dst).is_group())
}
