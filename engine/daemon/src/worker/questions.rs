//! Answers to questions about sessions ([`crate::questions`]): a few places in each breath, until every session was looked at.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use towpath_config::model::Plane as PlaneWord;
use towpath_core::Now;
use towpath_core::counters::Termination;
use towpath_core::flow::Returns;
use towpath_core::packet::{PROTOCOL_TCP, PROTOCOL_UDP, Tuple};
use towpath_core::plane::{FlowEnd, Survey, SurveyedFlow};
use towpath_core::session::Side;

use super::Worker;
use super::capture::Tap;
use super::datagram::DatagramSession;
use super::http::Stage;
use super::packets::Counters;
use super::relay::Relay;
use super::token::Key;
use crate::questions::{
    Features, FoundSession, Inquiry, Question, Report, SessionFilter, SessionId, SessionPlace, Transport, Wish,
};
use crate::upgrade::{HeldLease, Holdings};

/// Places of connections, or of UDP sessions, looked at in one breath.
const SESSIONS_LOOKED_AT: u32 = 256;
/// Places of flows likewise: each is a line of memory or two.
const FLOWS_LOOKED_AT: usize = 512;
/// Sessions that end in one breath: each costs some system calls, or up to four frames.
const KILLED_MAX: usize = 64;
/// Sessions asked for by their ids that are looked at in one breath.
const NAMED_LOOKED_AT: usize = 64;

/// Questions under way, oldest first.
#[derive(Default)]
pub(super) struct Walks {
    walks: VecDeque<Walk>,
}

impl Walks {
    pub(super) fn is_empty(&self) -> bool {
        self.walks.is_empty()
    }
}

/// How far a question is.
struct Walk {
    inquiry: Arc<Inquiry>,
    at: At,
    matched: u64,
    killed: u64,
    /// What this breath has found.
    rows: Vec<FoundSession>,
}

/// Where it goes on.
#[derive(Clone, Copy)]
enum At {
    /// Those that were named, from this one on.
    Named(usize),
    Connections(u32),
    Datagrams(u32),
    /// The flow between two ends, which is found at once.
    Joined,
    Flows(Survey),
    End,
}

impl Walk {
    fn new(inquiry: Arc<Inquiry>) -> Walk {
        let at = if inquiry.filter.ids.is_empty() { At::Connections(0) } else { At::Named(0) };
        Walk { inquiry, at, matched: 0, killed: 0, rows: Vec::new() }
    }
}

impl Worker {
    /// Hears what was asked.
    pub(super) fn take_questions(&mut self) -> io::Result<()> {
        for question in self.shared.seat(self.id).take_questions() {
            match question {
                Question::Capture(order) => {
                    if let Some(packets) = &mut self.packets {
                        packets.tap = Some(Box::new(Tap::new(order, self.id)));
                    }
                }
                Question::Holdings(order) => {
                    let is_held = if order.with_doors { Ok(()) } else { self.hold_datagrams() };
                    order.answer(is_held.and_then(|()| self.holdings(order.with_doors)));
                }
                Question::Plane(order) => self.obey_plane(order)?,
                Question::Sessions(inquiry) => self.walks.walks.push_back(Walk::new(inquiry)),
            }
        }
        Ok(())
    }

    /// What the process needs that takes over: copies of the listeners that stay, and what is leased.
    fn holdings(&self, with_doors: bool) -> io::Result<Holdings> {
        let doors = if with_doors { self.doors.copies()? } else { Vec::new() };
        let of_relay = |relay: &Relay| {
            let source = relay.legs.source().filter(|_| relay.legs.has_lease())?;
            Some(HeldLease { transport: Transport::Tcp, source, destination: relay.destination() })
        };
        let of_session = |session: &DatagramSession| {
            let (Some(source), true) = session.source() else { return None };
            Some(HeldLease { transport: Transport::Udp, source, destination: session.destination()? })
        };
        let relays = self.relays.iter().filter_map(|(_, relay)| of_relay(relay));
        let sessions = self.datagrams.sessions.iter().filter_map(|(_, session)| of_session(session));
        Ok(Holdings { worker: self.id, doors, leases: relays.chain(sessions).collect() })
    }

    /// One step of the oldest question.
    pub(super) fn answer_questions(&mut self) -> io::Result<()> {
        let Some(mut walk) = self.walks.walks.pop_front() else { return Ok(()) };
        if walk.inquiry.is_abandoned() {
            return Ok(());
        }
        walk.at = match walk.at {
            At::Named(from) => self.look_at_named(&mut walk, from)?,
            At::Connections(from) => self.look_at_connections(&mut walk, from)?,
            At::Datagrams(from) => self.look_at_datagrams(&mut walk, from)?,
            At::Joined => self.look_at_joined(&mut walk)?,
            At::Flows(from) => self.look_at_flows(&mut walk, from)?,
            At::End => At::End,
        };
        // The resets of all flows that this step has ended.
        if walk.inquiry.wish == Wish::Kill
            && let Some(packets) = &mut self.packets
        {
            packets.ports.flush();
        }
        if !walk.rows.is_empty() {
            walk.inquiry.report(Report::Sessions(std::mem::take(&mut walk.rows)));
        }
        match walk.at {
            At::End => {
                let Walk { inquiry, matched, killed, .. } = walk;
                inquiry.report(Report::Done { worker: self.id, matched, killed });
            }
            _ => self.walks.walks.push_front(walk),
        }
        Ok(())
    }

    fn look_at_named(&mut self, walk: &mut Walk, from: usize) -> io::Result<At> {
        let inquiry = Arc::clone(&walk.inquiry);
        let end = inquiry.filter.ids.len().min(from + NAMED_LOOKED_AT);
        let worker = self.id;
        for id in inquiry.filter.ids[from..end].iter().filter(|id| id.worker == worker) {
            match id.place {
                SessionPlace::Connection { index, generation } => {
                    self.meet_connection(walk, Key { index, generation })?
                }
                SessionPlace::Datagrams { index, generation } => {
                    self.meet_datagrams(walk, Key { index, generation })?
                }
                SessionPlace::Flow(place) => {
                    let found = self.packets.as_ref().and_then(|packets| packets.plane.flow_at(place));
                    if let Some(flow) = found {
                        self.meet_flow(walk, &flow)?;
                    }
                }
            }
        }
        Ok(if end == inquiry.filter.ids.len() { At::End } else { At::Named(end) })
    }

    fn look_at_connections(&mut self, walk: &mut Walk, from: u32) -> io::Result<At> {
        let end = self.relays.slots().min(from.saturating_add(SESSIONS_LOOKED_AT));
        let killed = walk.killed;
        for index in from..end {
            let Some(key) = self.relays.key_at(index) else { continue };
            self.meet_connection(walk, key)?;
            if (walk.killed - killed) as usize == KILLED_MAX {
                return Ok(At::Connections(index + 1));
            }
        }
        Ok(if end == self.relays.slots() { At::Datagrams(0) } else { At::Connections(end) })
    }

    fn look_at_datagrams(&mut self, walk: &mut Walk, from: u32) -> io::Result<At> {
        let end = self.datagrams.sessions.slots().min(from.saturating_add(SESSIONS_LOOKED_AT));
        let killed = walk.killed;
        for index in from..end {
            let Some(key) = self.datagrams.sessions.key_at(index) else { continue };
            self.meet_datagrams(walk, key)?;
            if (walk.killed - killed) as usize == KILLED_MAX {
                return Ok(At::Datagrams(index + 1));
            }
        }
        if end < self.datagrams.sessions.slots() {
            return Ok(At::Datagrams(end));
        }
        Ok(match (&self.packets, walk.inquiry.filter.ends) {
            (None, _) => At::End,
            (Some(_), Some(_)) => At::Joined,
            (Some(_), None) => At::Flows(Survey::START),
        })
    }

    fn look_at_joined(&mut self, walk: &mut Walk) -> io::Result<At> {
        let (Some((one, other)), Some(packets)) = (walk.inquiry.filter.ends, &self.packets) else { return Ok(At::End) };
        let mut flows: Vec<SurveyedFlow> = Vec::new();
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
            for (from, to) in [(one, other), (other, one)] {
                if let Some((flow, _)) = packets.plane.find_flow(&Tuple::new(from, to, protocol))
                    && flows.iter().all(|known| known.place != flow.place)
                {
                    flows.push(flow);
                }
            }
        }
        for flow in flows {
            self.meet_flow(walk, &flow)?;
        }
        Ok(At::End)
    }

    fn look_at_flows(&mut self, walk: &mut Walk, from: Survey) -> io::Result<At> {
        let Some(packets) = &self.packets else { return Ok(At::End) };
        let mut at = from;
        let mut flows = Vec::new();
        let (worker, now) = (self.id, self.now);
        let wish = walk.inquiry.wish;
        let filter = &walk.inquiry.filter;
        let is_end = packets.plane.survey(&mut at, FLOWS_LOOKED_AT, |flow| {
            let fits = filter.worker.is_none_or(|wanted| wanted == worker) && filter.fits(&features_of(flow, now));
            if fits {
                flows.push(*flow);
            }
            wish == Wish::List || flows.len() < KILLED_MAX
        });
        for flow in &flows {
            self.meet_flow(walk, flow)?;
        }
        Ok(if is_end { At::End } else { At::Flows(at) })
    }

    fn meet_connection(&mut self, walk: &mut Walk, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get(key) else { return Ok(()) };
        let is_ending = relay.is_ending() || relay.closing.is_some();
        // A stream ends with its connection, and what is ending ends.
        if is_ending && walk.inquiry.wish == Wish::Kill {
            return Ok(());
        }
        let filter = &walk.inquiry.filter;
        let (client, vip) = (relay.client_address(), relay.vip());
        let last = last_of(relay);
        let features = Features {
            plane: PlaneWord::Stream,
            transport: Transport::Tcp,
            service: relay.service().id,
            server: relay.server(),
            client: client.ip(),
            state: word_of(relay),
            idle_ms: last.map_or(0, |last| self.now.ms_since(last)),
        };
        if !filter.fits(&features) {
            return Ok(());
        }
        let destination = relay.server().map(|_| relay.destination());
        if let Some(ends) = filter.ends
            && !filter.joins(client, vip)
        {
            let is_near = destination.is_some_and(|to| to == ends.0 || to == ends.1);
            let source = if is_near { relay.legs.source() } else { None };
            if !source.zip(destination).is_some_and(|(source, to)| filter.joins(source, to)) {
                return Ok(());
            }
        }
        walk.matched += 1;
        if walk.inquiry.takes_row() {
            let idle_timeout_ms = relay.service().idle_timeout_ms;
            let is_relaying = relay.session.is_relaying() && relay.http.is_none() && relay.hub.is_none();
            walk.rows.push(FoundSession {
                id: self.session_id(SessionPlace::Connection { index: key.index, generation: key.generation }),
                plane: features.plane,
                transport: features.transport,
                service: features.service,
                of: Some(Arc::clone(relay.service())),
                server: features.server,
                client,
                vip,
                source: relay.legs.source(),
                destination,
                is_leased: relay.legs.has_lease(),
                is_one_way: false,
                is_fast: false,
                state: features.state,
                why: relay.why(),
                opened: Some(relay.accepted()),
                idle_ms: features.idle_ms,
                due: last.filter(|_| is_relaying).map(|last| last + idle_timeout_ms),
            });
        }
        if walk.inquiry.wish == Wish::Kill {
            walk.killed += 1;
            self.end_relay(key, Termination::Killed)?;
        }
        Ok(())
    }

    fn meet_datagrams(&mut self, walk: &mut Walk, key: Key) -> io::Result<()> {
        let Some(session) = self.datagrams.sessions.get(key) else { return Ok(()) };
        if session.is_ending() && walk.inquiry.wish == Wish::Kill {
            return Ok(());
        }
        let filter = &walk.inquiry.filter;
        let (opened, last) = session.times();
        let (client, vip) = (session.client(), session.vip());
        let (server, why) = session.picked();
        let features = Features {
            plane: PlaneWord::Stream,
            transport: Transport::Udp,
            service: session.service().id,
            server: Some(server),
            client: client.ip(),
            state: datagrams_word(session),
            idle_ms: self.now.ms_since(last),
        };
        if !filter.fits(&features) {
            return Ok(());
        }
        let destination = session.destination();
        let source = session.source();
        let is_joined = |filter: &SessionFilter| {
            let inner = source.0.zip(destination).is_some_and(|(source, to)| filter.joins(source, to));
            inner || filter.joins(client, vip)
        };
        if filter.ends.is_some() && !is_joined(filter) {
            return Ok(());
        }
        walk.matched += 1;
        if walk.inquiry.takes_row() {
            walk.rows.push(FoundSession {
                id: self.session_id(SessionPlace::Datagrams { index: key.index, generation: key.generation }),
                plane: features.plane,
                transport: features.transport,
                service: features.service,
                of: Some(Arc::clone(session.service())),
                server: features.server,
                client,
                vip,
                source: source.0,
                destination,
                is_leased: source.1,
                is_one_way: false,
                is_fast: false,
                state: features.state,
                why: Some(why),
                opened: Some(opened),
                idle_ms: features.idle_ms,
                due: Some(last + session.service().idle_timeout_ms),
            });
        }
        if walk.inquiry.wish == Wish::Kill {
            walk.killed += 1;
            self.end_datagram_session(key, Termination::Killed)?;
        }
        Ok(())
    }

    /// Of one that fits, unless it was named.
    fn meet_flow(&mut self, walk: &mut Walk, flow: &SurveyedFlow) -> io::Result<()> {
        if !flow.is_counted && walk.inquiry.wish == Wish::Kill {
            return Ok(());
        }
        let features = features_of(flow, self.now);
        if !walk.inquiry.filter.fits(&features) {
            return Ok(());
        }
        walk.matched += 1;
        if walk.inquiry.takes_row() {
            walk.rows.push(FoundSession {
                id: self.session_id(SessionPlace::Flow(flow.place)),
                plane: features.plane,
                transport: features.transport,
                service: features.service,
                of: self.snapshot.service(flow.service).map(Arc::clone),
                server: features.server,
                client: flow.path.client.source(),
                vip: flow.path.client.destination(),
                source: Some(flow.path.server.source()),
                destination: Some(flow.path.server.destination()),
                is_leased: flow.is_leased,
                is_one_way: flow.path.returns == Returns::Elsewhere,
                is_fast: flow.is_fast,
                state: features.state,
                why: flow.server.map(|_| flow.why),
                opened: None,
                idle_ms: features.idle_ms,
                due: Some(flow.due),
            });
        }
        if walk.inquiry.wish == Wish::Kill {
            let Worker { packets: Some(packets), shared, id, now, stopping, .. } = self else { return Ok(()) };
            let seat = shared.seat(*id);
            let mut desk = Counters { shared, seat, takes_new: stopping.is_none() };
            walk.killed += u64::from(packets.end_flow(*now, flow.place, &mut desk) == FlowEnd::Ended);
        }
        Ok(())
    }

    fn session_id(&self, place: SessionPlace) -> SessionId {
        SessionId { worker: self.id, place }
    }
}

fn features_of(flow: &SurveyedFlow, now: Now) -> Features {
    Features {
        plane: PlaneWord::Packet,
        transport: match flow.path.client.protocol {
            PROTOCOL_TCP => Transport::Tcp,
            PROTOCOL_UDP => Transport::Udp,
            _ => Transport::Echo,
        },
        service: flow.service,
        server: flow.server,
        client: flow.path.client.source().ip(),
        state: flow.state,
        idle_ms: now.ms_since(flow.seen),
    }
}

/// When something passed last; `None` where that is not known, or something is under way.
fn last_of(relay: &Relay) -> Option<Now> {
    match (&relay.hub, &relay.http) {
        (Some(hub), _) => hub.idle_since(),
        (None, Some(conversation)) => Some(conversation.since()),
        (None, None) => relay.session.is_relaying().then(|| relay.session.last_activity()),
    }
}

/// The word for how far a connection is.
fn word_of(relay: &Relay) -> &'static str {
    if relay.closing.is_some() || relay.is_ending() {
        return "ending";
    }
    if relay.entrance.is_some() {
        return if relay.legs.tls(Side::Client).is_some() { "handshake" } else { "entering" };
    }
    if relay.looking.is_some() || relay.hearing.is_some() {
        return "first-bytes";
    }
    if relay.waits.is_some() {
        return "queued";
    }
    if let Some(hub) = &relay.hub {
        return if hub.idle_since().is_some() { "idle" } else { "streams" };
    }
    match relay.http.as_ref().map(|conversation| conversation.stage()) {
        Some(Stage::Between) => "idle",
        Some(Stage::Routed) => "connecting",
        Some(Stage::Forwarded) => "request",
        Some(Stage::Tunnel) => "tunnel",
        None if relay.is_opened() => "established",
        None => "connecting",
    }
}

fn datagrams_word(session: &DatagramSession) -> &'static str {
    if session.is_ending() { "ending" } else { "established" }
}
