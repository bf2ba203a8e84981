//! A packet of no flow: is it a client's for one of our services? Then who serves it, from which source, and a new flow.

use std::net::IpAddr;
use std::sync::Arc;

use towpath_config::model::Forwarding;

use super::flows::{Detail, OpenError, Stage, State};
use super::forward::segment_facts;
use super::reply::{Macs, tcp_refusal};
use super::services::Rule;
use super::{Desk, Frame, Plane, PlaneCounter, Strays, Turn, Verdict};
use crate::counters::{ServiceCounter, Termination};
use crate::flow::tcp::{Sight, TcpTimeout, TcpTrack};
use crate::flow::udp::{UdpTimeout, UdpTrack};
use crate::flow::{Direction, FlowId, FlowPath};
use crate::packet::{DropReason, Ip, PROTOCOL_TCP, Parsed, Tuple};
use crate::snapshot::{Service, ServiceSource, Target};
use crate::steering::vshard_of_client;
use crate::{Now, Refusal, ServiceId};

/// Leases tried for one flow. The next one is needed only where two services reach the same server port, one of them as one of all its ports.
const LEASES_MAX: usize = 4;

/// Why a flow was refused: for the worker's counters, and for the service's.
type Refused = (DropReason, Termination);

impl Plane {
    /// Decides about a packet that was found to belong to no flow.
    #[inline(never)]
    pub(super) fn missed<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        // It may be half open; and what the batch did before may have opened, moved or ended it.
        if let Some(found) = self.flows.lookup(&packet.tuple)
            && let Some(verdict) = self.forward(frame, packet, found, turn)
        {
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
            None if self.is_ours_alone(packet.tuple.dst) => Verdict::Drop(DropReason::PortClosed),
            None => Verdict::Pass,
        }
    }

    /// Whether an address is ours and not the kernel's as well.
    pub(super) fn is_ours_alone(&self, address: Ip) -> bool {
        self.services.is_ours(address) && self.network.holder(address).is_none()
    }

    fn open<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        id: ServiceId,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let Some(service) = self.snapshot.service(id).map(Arc::clone) else { return Verdict::Pass };
        let rule = *self.services.rule(id);
        let sight = if rule.is_dsr { Sight::OpenerOnly } else { Sight::BothWays };
        let state = if packet.tuple.protocol == PROTOCOL_TCP {
            let Some(track) = TcpTrack::open(&segment_facts(frame.bytes, packet), sight) else {
                if self.strays == Strays::Reset {
                    self.reset_sender(frame, packet, turn);
                }
                return Verdict::Drop(DropReason::TcpStray);
            };
            State::of_tcp(track, id)
        } else {
            State::of_udp(UdpTrack::open(sight), id)
        };
        match self.admit(turn.now, &service, &packet.tuple, &rule, state, turn.desk) {
            Ok(flow) => {
                self.counts.add(PlaneCounter::FlowsOpened, 1);
                let Some((to, returns, _)) = self.flows.half_open.outgoing(flow, Direction::Forward) else {
                    return Verdict::Pass;
                };
                let hop = match self.route(frame, packet, to.dst, Direction::Forward, returns, turn) {
                    Ok(hop) => hop,
                    Err(reason) => {
                        if let Some(ended) = self.flows.remove(Stage::HalfOpen, flow) {
                            self.end(Stage::HalfOpen, ended, Termination::ConnectFailed, turn.desk);
                        }
                        return Verdict::Drop(reason);
                    }
                };
                self.count_for(id, turn);
                self.send(frame, packet, &to, Direction::Forward, returns, hop, turn)
            }
            // No answer: the source may be forged, and there are more than enough of them.
            Err((reason @ (DropReason::HalfOpenFull | DropReason::HalfOpenSource), _)) => Verdict::Drop(reason),
            Err((reason, termination)) => {
                turn.desk.end(id, termination);
                self.reset_sender(frame, packet, turn);
                Verdict::Drop(reason)
            }
        }
    }

    /// Opens a flow if there is room for it and a server that takes it.
    fn admit(
        &mut self,
        now: Now,
        service: &Service,
        client: &Tuple,
        rule: &Rule,
        state: State,
        desk: &mut impl Desk,
    ) -> Result<FlowId, Refused> {
        self.flows.make_room(client, rule.returns()).map_err(refused)?;
        self.flows.admit(client).map_err(|_| (DropReason::HalfOpenSource, Termination::OutOfConnections))?;
        desk.count(service.id, ServiceCounter::Accepted, 1);
        let admitted = match desk.pick(service, client.source(), now) {
            Ok(pick) => {
                let member = service.target(pick.target).filter(|member| member.server == pick.server);
                let connected = match member {
                    Some(member) => self.connect(now, service, member, client, rule, state),
                    None => Err((DropReason::NoServer, Termination::NoServer)),
                };
                if connected.is_err() {
                    desk.close(service.id, pick.server);
                }
                connected
            }
            Err(refusal) => {
                let reason = match refusal {
                    Refusal::NoServer => DropReason::NoServer,
                    Refusal::ServersFull => DropReason::ServersFull,
                    Refusal::ServiceFull => DropReason::ServiceFull,
                };
                Err((reason, refusal.into()))
            }
        };
        if admitted.is_err() {
            self.flows.dismiss(client);
        }
        admitted
    }

    /// Opens the flow towards `member`, from a lease where the service's mode wants one.
    fn connect(
        &mut self,
        now: Now,
        service: &Service,
        member: &Target,
        client: &Tuple,
        rule: &Rule,
        state: State,
    ) -> Result<FlowId, Refused> {
        let destination = member.destination(client.dst_port);
        let server = Ip::from(destination.ip());
        let pool = match &service.source {
            ServiceSource::Client | ServiceSource::Interface => None,
            ServiceSource::Pool(pool) => Some(pool),
        };
        let class = match client.protocol {
            PROTOCOL_TCP => rule.tcp_class(TcpTimeout::Opening),
            _ => rule.udp_class(UdpTimeout::Opening),
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
        let exhausted = (DropReason::PortsExhausted, Termination::OutOfSourcePorts);
        let home = vshard_of_client(IpAddr::from(client.src), client.src_port, self.steering_seed);
        for attempt in 0..LEASES_MAX {
            let lease = if is_kept && attempt == 0 {
                None
            } else {
                let Some(pool) = pool.filter(|_| service.forwarding != Forwarding::Dsr) else { break };
                let towards = member.lease_destination(service, destination);
                if let Some(reason) = self.exhausted.recall(now, service.id, towards) {
                    return Err((reason, Termination::OutOfSourcePorts));
                }
                let Ok(lease) = pool.lease(towards, home, &self.snapshot.steering, self.worker) else {
                    self.exhausted.note(now, service.id, towards, exhausted.0);
                    return Err(exhausted);
                };
                Some((lease, towards))
            };
            let source = lease.as_ref().map_or(client.source(), |(lease, _)| lease.source());
            let path = FlowPath {
                client: *client,
                server: Tuple::new(source, destination, client.protocol),
                returns: rule.returns(),
            };
            let is_taken_elsewhere =
                lease.as_ref().is_some_and(|(lease, towards)| self.is_taken_elsewhere(lease, *towards, &path));
            let mut detail = Detail::new(member.server, lease.map(|(lease, _)| lease));
            let opened = match is_taken_elsewhere {
                true => Err(OpenError::Taken),
                false => self.flows.open(now, &path, class, state, detail),
            };
            match opened {
                Ok(id) => return Ok(id),
                Err(error) => {
                    detail.release(&path, self.services.maps());
                    if error != OpenError::Taken {
                        return Err(refused(error));
                    }
                    self.counts.add(PlaneCounter::LeasesRetried, 1);
                }
            }
        }
        Err(exhausted)
    }

    /// Whether `server` reaches `client` without us: it is a real server itself, or on a network of the server's.
    fn is_beside(&self, client: Ip, server: Ip) -> bool {
        self.services.is_server(client) || self.network.joins(client, server)
    }

    /// Answers a TCP segment with a reset, as a host without that connection does.
    fn reset_sender<D: Desk>(&mut self, frame: &Frame<'_>, packet: &Parsed, turn: &mut Turn<'_, D>) {
        if packet.tuple.protocol != PROTOCOL_TCP {
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

fn refused(error: OpenError) -> Refused {
    match error {
        OpenError::Full => (DropReason::FlowsFull, Termination::OutOfConnections),
        OpenError::HalfOpenFull => (DropReason::HalfOpenFull, Termination::OutOfConnections),
        OpenError::Taken => (DropReason::PortsExhausted, Termination::OutOfSourcePorts),
    }
}
