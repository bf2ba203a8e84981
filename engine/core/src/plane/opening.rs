//! A packet of no flow: is it a client's for one of our services? Then who serves it, from which source, and a new flow.

use std::net::SocketAddr;
use std::sync::Arc;

use towpath_config::model::{Forwarding, Overload};

use super::bridge::Whose;
use super::flows::{Detail, Found, OpenError, Stage, State};
use super::forward::segment_facts;
use super::reply::{Complaint, Macs, tcp_refusal};
use super::router::Known;
use super::services::{Rule, Way};
use super::{BATCH_MAX, Desk, Frame, Job, Plane, PlaneCounter, Strays, Turn, Verdict};
use crate::counters::{ServiceCounter, Termination};
use crate::flow::half_open::HalfOpenSource;
use crate::flow::tcp::{Sight, TcpTimeout, TcpTrack};
use crate::flow::udp::{UdpTimeout, UdpTrack};
use crate::flow::{Direction, FlowId, FlowPath, PathHashes, Returns, TimeoutClass, TupleHash};
use crate::packet::{DropReason, Ip, PROTOCOL_TCP, PROTOCOL_UDP, Parsed, TcpFlags, Tuple};
use crate::snapshot::{Service, ServiceSource, Target};
use crate::snat::LeasePlace;
use crate::steering::{SteeringTable, vshard_of_client_ip};
use crate::{Now, Pick, PickReason, Refusal, ServiceId, VShard};

/// Leases tried for one flow. The next one is needed only where two services reach the same server port, one of them as one of all its ports.
pub(super) const LEASES_MAX: usize = 4;

/// Why a flow was refused: for the worker's counters, and for the service's.
pub(super) type Refused = (DropReason, Termination);

/// What is known of a packet without an established flow before its turn comes.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    /// Nothing: at its turn it is looked for anew.
    Nothing,
    /// Its flow is half open, unless what comes before it changes that; and the hashes of the flow, where this packet may complete its handshake.
    HalfOpen(Found, Option<PathHashes>),
    /// It opens a flow.
    Opening(Opening),
}

/// A flow that has a server and a source, and is in no table yet.
#[derive(Clone, Copy)]
pub(super) struct Opening {
    service: ServiceId,
    path: FlowPath,
    hashes: PathHashes,
    class: TimeoutClass,
    state: State,
    detail: Detail,
}

/// A packet that may open a flow, and what was found out about it so far.
#[derive(Clone, Copy)]
struct Candidate {
    /// Its place in the batch.
    job: usize,
    service: ServiceId,
    /// Where its half-open flows are counted.
    source: HalfOpenSource,
    state: State,
    /// Once there is one.
    pick: Option<Pick>,
}

impl Plane {
    /// Finds out, for all packets without an established flow at a time, what their turns will need: so the reads of large memory are under way
    /// together. A packet that opens a flow gets its server and its source here. Whatever is refused, or unusual, is left to its turn.
    #[inline(never)]
    pub(super) fn read_ahead<D: Desk>(
        &mut self,
        frames: &[Frame<'_>],
        found: &[Option<(FlowId, Direction)>],
        turn: &mut Turn<'_, D>,
    ) {
        self.ahead_of = self.flows.established.inserted();
        let mut missed = [0; BATCH_MAX];
        let is_ours = |job: usize| self.batch[job].whose == Whose::Ours;
        let places = (0..found.len()).filter(|&job| found[job].is_none() && is_ours(job));
        let count = missed.iter_mut().zip(places).map(|(place, job)| *place = job).count();
        let missed = &missed[..count];
        let mut found = [None; BATCH_MAX];
        let batch = &self.batch;
        self.flows.half_open.lookup_batch_by(
            missed,
            |&job| &batch[job].packet.tuple,
            |&job| batch[job].hash,
            &mut found,
        );
        let mut candidates = [const { None }; BATCH_MAX];
        let mut count = 0;
        let mut hashes_seen = [false; 512];
        let mut recent = None;
        for (&job, found) in missed.iter().zip(found) {
            let Job { at, ref packet, hash, .. } = self.batch[job];
            if let Some((id, direction)) = found {
                let found = Found { stage: Stage::HalfOpen, id, direction };
                let hashes = self.flows.promotion(id, hash, direction, packet, |line| turn.desk.prefetch(line));
                self.ahead[job] = Ahead::HalfOpen(found, hashes);
                continue;
            }
            // Of two with one tuple, the second belongs to the flow that the first opens.
            let seen = &mut hashes_seen[hash.place()];
            let may_repeat = std::mem::replace(seen, true);
            let is_repeated = may_repeat && missed.iter().any(|&other| other < job && self.batch[other].hash == hash);
            if !is_repeated
                && let Some(service) = self.find_again(&packet.tuple, &mut recent)
                && !self.services.is_ours(packet.tuple.src)
                && self.elsewhere(&packet.tuple, Some(service)).is_none()
                && self.flows.has_room_beside(count, &packet.tuple, self.services.rule(service).returns())
                && let Some(state) = self.first_state(frames[at].bytes, packet, service)
            {
                let source = self.flows.sources.source(packet.tuple.src);
                self.flows.sources.prefetch(source, |line| turn.desk.prefetch(line));
                candidates[count] = Some(Candidate { job, service, source, state, pick: None });
                count += 1;
            }
        }
        if count > 0 {
            self.open_ahead(&mut candidates[..count], turn);
        }
    }

    /// The service that a client's packet is for; `recent` is the answer for a packet before it.
    #[inline]
    fn find_again(&self, tuple: &Tuple, recent: &mut Option<(Tuple, Option<ServiceId>)>) -> Option<ServiceId> {
        let is_same =
            |other: &Tuple| (other.dst, other.dst_port, other.protocol) == (tuple.dst, tuple.dst_port, tuple.protocol);
        match recent {
            Some((other, service)) if is_same(other) => *service,
            _ => {
                let service = self.services.find(tuple);
                *recent = Some((*tuple, service));
                service
            }
        }
    }

    /// Gives flows to be opened their servers and sources, as long as there are any.
    fn open_ahead<D: Desk>(&mut self, candidates: &mut [Option<Candidate>], turn: &mut Turn<'_, D>) {
        let snapshot = Arc::clone(&self.snapshot);
        let mut places = [const { None }; BATCH_MAX];
        for (candidate, place) in candidates.iter_mut().zip(&mut places) {
            let Some(Candidate { job, service, source, .. }) = *candidate else { continue };
            let client = self.batch[job].packet.tuple;
            let pick = snapshot.service(service).and_then(|service| {
                let (pick, member) = self.pick(turn.now, service, &client, source, turn.desk).ok()?;
                if let ServiceSource::Pool(pool) = &service.source
                    && let Some(way) = self.services.way(service.id, pick.target)
                    && let Some(route) = way.route(pool, || towards(service, member, &client))
                {
                    let lease = LeasePlace::new(route, self.home(&client));
                    turn.desk.prefetch(pool.port_line(lease));
                    *place = Some(lease);
                }
                Some(pick)
            });
            match (pick, candidate.as_mut()) {
                (Some(pick), Some(candidate)) => candidate.pick = Some(pick),
                // Who follows is hardly better off, and each is told at its turn.
                _ => *candidate = None,
            }
        }
        // A lease is an atomic operation, which waits for the note that the one before has written.
        for (candidate, place) in candidates.iter().zip(&places) {
            if let (Some(Candidate { service, .. }), &Some(place)) = (candidate, place)
                && let Some(ServiceSource::Pool(pool)) = snapshot.service(*service).map(|service| &service.source)
                && let Some(line) = pool.note_line(place)
            {
                turn.desk.prefetch(line);
            }
        }
        for (candidate, &place) in candidates.iter().zip(&places) {
            let &Some(Candidate { job, service: id, state, pick: Some(pick), .. }) = candidate else { continue };
            let client = self.batch[job].packet.tuple;
            let rule = *self.services.rule(id);
            let sourced = snapshot.service(id).and_then(|service| {
                self.source(turn.now, &snapshot.steering, service, pick, &client, &rule, place, 0).ok()
            });
            let Some((path, detail)) = sourced else {
                turn.desk.close(id, pick.server);
                self.flows.dismiss(&client);
                continue;
            };
            let returns = match path.returns {
                Returns::Here => self.flows.hash(&path.server.reversed()),
                Returns::Elsewhere => TupleHash::default(),
            };
            let hashes = PathHashes { client: self.batch[job].hash, returns };
            turn.desk.prefetch(self.flows.established.entry_line(returns));
            turn.desk.prefetch(self.flows.half_open.entry_line(returns));
            let class = first_class(&rule, &client);
            self.ahead[job] = Ahead::Opening(Opening { service: id, path, hashes, class, state, detail });
        }
    }

    /// Decides about a packet of the batch that was found to belong to no established flow; `job` is its place among those.
    #[inline(never)]
    pub(super) fn missed<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        hash: TupleHash,
        job: usize,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        // What the batch did before may have opened, moved or ended its flow.
        let found = match self.ahead[job] {
            Ahead::HalfOpen(found, hashes) if self.flows.half_open.state(found.id).is_some() => {
                turn.hashes = hashes;
                Some(found)
            }
            Ahead::Opening(Opening { service, path, hashes, class, state, detail }) => {
                self.ahead[job] = Ahead::Nothing;
                let opening = Opening { service, path, hashes, class, state, detail };
                match self.insert(frame, packet, opening, turn) {
                    Some(verdict) => return verdict,
                    None => self.flows.lookup_hashed(hash, &packet.tuple),
                }
            }
            Ahead::HalfOpen(..) | Ahead::Nothing => self.flows.lookup_hashed(hash, &packet.tuple),
        };
        self.ahead[job] = Ahead::Nothing;
        self.decide(frame, packet, found, turn)
    }

    /// The same for a packet that nothing is known of.
    pub(super) fn missed_unseen<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        hash: TupleHash,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let found = self.flows.lookup_hashed(hash, &packet.tuple);
        self.decide(frame, packet, found, turn)
    }

    /// Takes a packet of a half-open flow onwards, or one of none to whoever it is for.
    #[inline]
    fn decide<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        found: Option<Found>,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let forwarded = found.and_then(|found| self.forward(frame, packet, found, turn));
        turn.hashes = None;
        if let Some(verdict) = forwarded {
            return verdict;
        }
        let service = self.services.find(&packet.tuple);
        if let Some(verdict) = self.hand_off(&packet.tuple, service) {
            return verdict;
        }
        match service {
            // Forged, or one of our own come back: between two services it would never end.
            Some(_) if self.services.is_ours(packet.tuple.src) => Verdict::Drop(DropReason::SourceOurs),
            Some(service) => self.open(frame, packet, service, turn),
            // The probe hears it by itself.
            None if self.network.is_probes(&packet.tuple) => Verdict::Pass,
            None if self.is_ours_alone(packet.tuple.dst) => {
                // A server's connection that nobody here has any more. Who else asks for a port that no service has is not told.
                let is_lost = self.services.is_server(packet.tuple.src) && !self.network.is_kernels(packet.tuple.dst);
                if self.strays == Strays::Reset && is_lost {
                    self.reset_sender(frame, packet, turn);
                }
                // So that a traceroute to us ends. Servers whose answer comes late would take it for an end of their socket.
                let is_server = self.services.is_server(packet.tuple.src);
                if packet.tuple.protocol == PROTOCOL_UDP && !is_server && !self.network.is_kernels(packet.tuple.dst) {
                    self.complain(frame, packet, Complaint::PortUnreachable, turn);
                }
                Verdict::Drop(DropReason::PortClosed)
            }
            None => self.route_on(frame, packet, Known::Whole, turn),
        }
    }

    /// Whether an address is ours and not the kernel's as well.
    pub(super) fn is_ours_alone(&self, address: Ip) -> bool {
        let is_services = self.services.is_ours(address) && !self.services.is_lent(address);
        is_services && self.network.holder(address).is_none() || self.network.is_own(address)
    }

    /// Inserts a flow that got its server and source before. `None`: it cannot be, and they are given back.
    #[inline(always)]
    fn insert<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        opening: Opening,
        turn: &mut Turn<'_, D>,
    ) -> Option<Verdict> {
        let Opening { service, ref path, ref hashes, class, state, mut detail } = opening;
        let established = &self.flows.established;
        let is_new =
            established.inserted() == self.ahead_of || established.lookup_hashed(hashes.client, &path.client).is_none();
        if is_new && self.flows.make_room(&path.client, path.returns).is_ok() {
            match self.flows.open(turn.now, path, hashes, class, state, detail) {
                Ok(flow) => {
                    // The next one of a batch is not far.
                    self.flows.half_open.next_lines().into_iter().for_each(|line| turn.desk.prefetch(line));
                    turn.desk.count(service, ServiceCounter::Accepted, 1);
                    return Some(self.begin(frame, packet, service, flow, path, turn));
                }
                Err(OpenError::Taken) if detail.is_leased() => self.counts.add(PlaneCounter::LeasesRetried, 1),
                Err(_) => {}
            }
        }
        turn.desk.close(service, detail.server);
        detail.release(path, self.services.maps());
        self.exhausted.forget();
        self.flows.dismiss(&path.client);
        None
    }

    /// A flow is in its table: its first packet goes on.
    pub(super) fn begin<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        service: ServiceId,
        flow: FlowId,
        path: &FlowPath,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        self.counts.add(PlaneCounter::FlowsOpened, 1);
        self.take_from_transits(path);
        let onward = match self.route(frame, packet, path.server.dst, Direction::Forward, path.returns, turn) {
            Ok(onward) => onward,
            Err(reason) => {
                if let Some(ended) = self.flows.remove(Stage::HalfOpen, flow) {
                    self.end(Stage::HalfOpen, ended, Termination::ConnectFailed, turn.desk);
                }
                return Verdict::Drop(reason);
            }
        };
        self.count_for(service, turn);
        self.send(frame, packet, &path.server, Direction::Forward, path.returns, onward, turn)
    }

    /// The state of the flow that this packet opens; `None`: it opens none.
    pub(super) fn first_state(&self, bytes: &[u8], packet: &Parsed, id: ServiceId) -> Option<State> {
        let sight = if self.services.rule(id).is_dsr { Sight::OpenerOnly } else { Sight::BothWays };
        match packet.tuple.protocol {
            PROTOCOL_TCP => Some(State::of_tcp(TcpTrack::open(&segment_facts(bytes, packet), sight)?, id)),
            _ => Some(State::of_udp(UdpTrack::open(sight), id)),
        }
    }

    fn open<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        id: ServiceId,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let snapshot = Arc::clone(&self.snapshot);
        let Some(service) = snapshot.service(id) else { return Verdict::Pass };
        let Some(state) = self.first_state(frame.bytes, packet, id) else {
            if self.strays == Strays::Reset {
                self.reset_sender(frame, packet, turn);
            }
            return Verdict::Drop(DropReason::TcpStray);
        };
        match self.admit(turn.now, &snapshot.steering, service, &packet.tuple, state, turn.desk) {
            Ok((flow, path)) => self.begin(frame, packet, id, flow, &path, turn),
            // No answer: the source may be forged, and there are more than enough of them.
            Err((reason @ (DropReason::HalfOpenFull | DropReason::HalfOpenSource), _)) => Verdict::Drop(reason),
            Err((reason, termination)) => {
                turn.desk.end(id, termination);
                let is_full = matches!(reason, DropReason::ServersFull | DropReason::ServiceFull);
                // Without an answer the client says the same again, after 1 s, 3 s, 7 s (RFC 6298 §2, §5.7): until there is room, or it gives up.
                if !is_full || service.overload == Overload::Reset {
                    self.reset_sender(frame, packet, turn);
                }
                Verdict::Drop(reason)
            }
        }
    }

    /// Opens a flow if there is room for it and a server that takes it.
    fn admit(
        &mut self,
        now: Now,
        steering: &SteeringTable,
        service: &Service,
        client: &Tuple,
        state: State,
        desk: &mut impl Desk,
    ) -> Result<(FlowId, FlowPath), Refused> {
        let rule = *self.services.rule(service.id);
        self.flows.make_room(client, rule.returns()).map_err(refused)?;
        let picked = self.pick(now, service, client, self.flows.sources.source(client.src), desk);
        if !matches!(picked, Err((DropReason::HalfOpenSource, _))) {
            desk.count(service.id, ServiceCounter::Accepted, 1);
        }
        let (pick, _) = picked?;
        let connected = self.connect(now, steering, service, pick, client, &rule, state);
        if connected.is_err() {
            desk.close(service.id, pick.server);
            self.flows.dismiss(client);
        }
        connected
    }

    /// The server of a new flow of `client`, which counts as a half-open one of its source from here on.
    #[inline(always)]
    fn pick<'s>(
        &mut self,
        now: Now,
        service: &'s Service,
        client: &Tuple,
        source: HalfOpenSource,
        desk: &mut impl Desk,
    ) -> Result<(Pick, &'s Target), Refused> {
        self.flows.admit(source).map_err(|_| (DropReason::HalfOpenSource, Termination::OutOfConnections))?;
        let refusal = match desk.pick(service, client.source(), client.dst_port, now) {
            Ok(pick) => match service.target(pick.target).filter(|member| member.server == pick.server) {
                Some(member) => {
                    if pick.why == PickReason::Consoled {
                        desk.count(service.id, ServiceCounter::Consoled, 1);
                    }
                    return Ok((pick, member));
                }
                None => {
                    desk.close(service.id, pick.server);
                    Refusal::NoServer
                }
            },
            Err(refusal) => refusal,
        };
        self.flows.dismiss(client);
        let reason = match refusal {
            Refusal::NoServer => DropReason::NoServer,
            Refusal::ServersFull => DropReason::ServersFull,
            Refusal::ServiceFull => DropReason::ServiceFull,
        };
        Err((reason, refusal.into()))
    }

    /// Opens the flow towards a member, from a lease where the service's mode wants one.
    #[expect(clippy::too_many_arguments, reason = "what the steps before found out")]
    fn connect(
        &mut self,
        now: Now,
        steering: &SteeringTable,
        service: &Service,
        pick: Pick,
        client: &Tuple,
        rule: &Rule,
        state: State,
    ) -> Result<(FlowId, FlowPath), Refused> {
        let class = first_class(rule, client);
        for attempt in 0..LEASES_MAX {
            let (path, mut detail) = self.source(now, steering, service, pick, client, rule, None, attempt)?;
            let hashes = self.flows.half_open.hashes(&path);
            match self.flows.open(now, &path, &hashes, class, state, detail) {
                Ok(id) => return Ok((id, path)),
                Err(error) => {
                    detail.release(&path, self.services.maps());
                    if error != OpenError::Taken {
                        return Err(refused(error));
                    }
                    self.counts.add(PlaneCounter::LeasesRetried, 1);
                }
            }
        }
        Err((DropReason::PortsExhausted, Termination::OutOfSourcePorts))
    }

    /// The path of a flow towards a member, from a lease (at `place`, if that is known) where the service's mode wants one; another one at each `attempt`.
    #[expect(clippy::too_many_arguments, reason = "what the steps before found out")]
    #[inline(always)]
    fn source(
        &mut self,
        now: Now,
        steering: &SteeringTable,
        service: &Service,
        pick: Pick,
        client: &Tuple,
        rule: &Rule,
        place: Option<LeasePlace>,
        attempt: usize,
    ) -> Result<(FlowPath, Detail), Refused> {
        let id = service.id;
        let exhausted = (DropReason::PortsExhausted, Termination::OutOfSourcePorts);
        let way = self.services.way(id, pick.target).copied().zip(service.target(pick.target));
        // It was picked of the same snapshot.
        let Some((way, member)) = way else { return Err((DropReason::NoServer, Termination::NoServer)) };
        let Way { server, .. } = way;
        let pool = match &service.source {
            ServiceSource::Client | ServiceSource::Interface => None,
            ServiceSource::Pool(pool) => Some(pool),
        };
        let is_kept = match service.forwarding {
            // A router goes by the destination, which is the VIP: the packet would come back.
            Forwarding::Dsr if self.network.is_on_link(server).is_none() => {
                return Err((DropReason::DsrBehindRouter, Termination::ConnectFailed));
            }
            Forwarding::Dsr => true,
            Forwarding::FullNat => false,
            // What the server answers would not come by here.
            Forwarding::HalfNat if self.is_beside(client.src, server) => {
                if pool.is_none() {
                    return Err((DropReason::HairpinUnserved, Termination::OutOfSourcePorts));
                }
                false
            }
            Forwarding::HalfNat => true,
        };
        let with_source = |src, src_port| FlowPath {
            client: *client,
            server: Tuple {
                src,
                dst: server,
                src_port,
                dst_port: way.port(client.dst_port),
                protocol: client.protocol,
            },
            returns: rule.returns(),
        };
        if is_kept && attempt == 0 {
            return Ok((with_source(client.src, client.src_port), Detail::new(member.server, pick.why, None)));
        }
        let Some(pool) = pool.filter(|_| service.forwarding != Forwarding::Dsr) else { return Err(exhausted) };
        let towards = || towards(service, member, client);
        if !self.exhausted.is_empty()
            && let Some(reason) = self.exhausted.recall(now, id, towards())
        {
            return Err((reason, Termination::OutOfSourcePorts));
        }
        let found = || way.route(pool, towards).map(|route| LeasePlace::new(route, self.home(client)));
        let Some(place) = place.or_else(found) else { return Err(exhausted) };
        for _ in 0..LEASES_MAX {
            let Ok(lease) = pool.lease_at(place, steering, self.worker) else {
                self.exhausted.note(now, id, towards(), exhausted.0);
                return Err(exhausted);
            };
            let path = with_source(lease.ip(), lease.port());
            let is_taken = self.notes.has_twins() && self.is_taken_elsewhere(&lease, towards(), &path);
            let mut detail = Detail::new(member.server, pick.why, Some(lease));
            if !is_taken {
                return Ok((path, detail));
            }
            detail.release(&path, self.services.maps());
            self.counts.add(PlaneCounter::LeasesRetried, 1);
        }
        Err(exhausted)
    }

    /// The virtual shard of a client.
    #[inline]
    fn home(&self, client: &Tuple) -> VShard {
        vshard_of_client_ip(client.src, client.src_port, self.steering_seed)
    }

    /// Whether `server` reaches `client` without us: it is a real server itself, or on a network of the server's.
    fn is_beside(&self, client: Ip, server: Ip) -> bool {
        self.services.is_server(client) || self.network.joins(client, server)
    }

    /// Answers a TCP segment with a reset, as a host without that connection does.
    pub(super) fn reset_sender<D: Desk>(&mut self, frame: &Frame<'_>, packet: &Parsed, turn: &mut Turn<'_, D>) {
        // A reset gets no answer, and is to cost none of the budget.
        if packet.tuple.protocol != PROTOCOL_TCP || packet.tcp.flags.0 & TcpFlags::RST.0 != 0 {
            return;
        }
        let Some(port) = self.network.port(frame.port) else { return };
        let Some(macs) = Macs::answering(frame.bytes, port.mac) else { return };
        if self.refusals.take(turn.now)
            && let Some(made) = tcp_refusal(macs, packet)
            && turn.out.push(frame.port, &made)
        {
            self.counts.add(PlaneCounter::ResetsMade, 1);
        }
    }
}

/// What the leases of the flows of a client to a member are towards.
fn towards(service: &Service, member: &Target, client: &Tuple) -> SocketAddr {
    member.lease_destination(service, member.destination(client.dst_port))
}

/// The timeout that a flow begins with.
pub(super) fn first_class(rule: &Rule, client: &Tuple) -> TimeoutClass {
    match client.protocol {
        PROTOCOL_TCP => rule.tcp_class(TcpTimeout::Opening),
        _ => rule.udp_class(UdpTimeout::Opening, client.dst_port),
    }
}

pub(super) fn refused(error: OpenError) -> Refused {
    match error {
        OpenError::Full => (DropReason::FlowsFull, Termination::OutOfConnections),
        OpenError::HalfOpenFull => (DropReason::HalfOpenFull, Termination::OutOfConnections),
        OpenError::Taken => (DropReason::PortsExhausted, Termination::OutOfSourcePorts),
    }
}
