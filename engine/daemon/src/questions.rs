//! What the controller asks the workers at run time, and what they answer: which sessions there are, the end of some, frames as they pass.
//!
//! A worker answers in steps, a bounded number of places in each breath, so that a question never stops what it serves. Who asks waits for all workers,
//! but not for ever: one that is gone or stuck is named in the answer.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout};
use towpath_config::model::Plane;
use towpath_core::plane::{FlowPlace, PortId, Verdict};
use towpath_core::snapshot::{Service, Snapshot};
use towpath_core::{Now, PickReason, RealServerId, ServiceId, WorkerId};

use crate::house::House;
use crate::shared::Shared;
use crate::upgrade::old::HoldingsOrder;
use crate::upgrade::plane::PlaneOrder;

/// Sessions that one answer names at most.
pub const SESSIONS_MAX: u32 = 10_000;
/// Questions that are under way at a time; others wait.
const QUESTIONS_MAX: usize = 2;
/// How long a question waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the workers have: a walk over a million flows takes them a fraction of a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest that [`House::ask`] takes.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_secs(TURN_TIMEOUT.as_secs() + ANSWER_TIMEOUT.as_secs());

/// What a worker may be asked.
#[derive(Clone)]
pub(crate) enum Question {
    /// To hand out copies of frames until that is over.
    Capture(Arc<CaptureOrder>),
    /// What it holds that the process needs which takes over.
    Holdings(Arc<HoldingsOrder>),
    /// To stop, hand over or go on with its packet plane.
    Plane(Arc<PlaneOrder>),
    /// About its sessions.
    Sessions(Arc<Inquiry>),
}

/// What is to be done with sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// They are counted, and named.
    List,
    /// The same, and they end.
    Kill,
}

/// A question about sessions, the same for every worker.
pub(crate) struct Inquiry {
    pub(crate) wish: Wish,
    pub(crate) filter: SessionFilter,
    rows_left: AtomicU32,
    reports: UnboundedSender<Report>,
}

impl Inquiry {
    /// Whether one more session may be named, over all workers.
    pub(crate) fn takes_row(&self) -> bool {
        let take = |left: u32| left.checked_sub(1);
        self.rows_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reports.is_closed()
    }

    /// Who asks gets this; if it is not there any more, nobody misses it.
    pub(crate) fn report(&self, report: Report) {
        let _ = self.reports.send(report);
    }
}

/// What a worker says about its sessions.
pub(crate) enum Report {
    /// That was all.
    Done {
        worker: WorkerId,
        /// Sessions that fit.
        matched: u64,
        /// Of these, those that it has ended.
        killed: u64,
    },
    /// Some of those that fit.
    Sessions(Vec<FoundSession>),
}

/// Which sessions are meant: those for which all of this holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionFilter {
    /// One of these; nothing else is looked at then.
    pub(crate) ids: Vec<SessionId>,
    /// Of one of these services.
    pub(crate) services: Option<Vec<ServiceId>>,
    /// At one of these servers.
    pub(crate) servers: Option<Vec<RealServerId>>,
    /// From this network.
    pub(crate) client: Option<(IpAddr, u8)>,
    pub(crate) plane: Option<Plane>,
    pub(crate) protocol: Option<Transport>,
    /// In this state.
    pub(crate) state: Option<String>,
    pub(crate) worker: Option<WorkerId>,
    /// Without a byte for so long.
    pub(crate) idle_ms: Option<u64>,
    /// Between these ends, on either side of us and in either direction.
    pub(crate) ends: Option<(SocketAddr, SocketAddr)>,
}

/// What a session is carried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Pings and their replies, of hosts inside.
    Echo,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(word: &str) -> Result<Transport, String> {
        match word {
            "echo" => Ok(Transport::Echo),
            "tcp" => Ok(Transport::Tcp),
            "udp" => Ok(Transport::Udp),
            _ => Err(format!("\"{word}\" is none of tcp, udp, echo")),
        }
    }
}

/// What a session is to those who look for it, before anything costly is found out about it.
pub(crate) struct Features {
    pub(crate) plane: Plane,
    pub(crate) transport: Transport,
    pub(crate) service: ServiceId,
    pub(crate) server: Option<RealServerId>,
    pub(crate) client: IpAddr,
    pub(crate) state: &'static str,
    pub(crate) idle_ms: u64,
}

impl SessionFilter {
    /// Whether a session with these features is meant, wherever its ends are.
    pub(crate) fn fits(&self, features: &Features) -> bool {
        let Features { plane, transport, service, server, client, state, idle_ms } = *features;
        self.plane.is_none_or(|wanted| wanted == plane)
            && self.protocol.is_none_or(|wanted| wanted == transport)
            && self.services.as_ref().is_none_or(|wanted| wanted.contains(&service))
            && self.servers.as_ref().is_none_or(|wanted| server.is_some_and(|server| wanted.contains(&server)))
            && self.client.is_none_or(|network| holds(network, client))
            && self.state.as_ref().is_none_or(|wanted| wanted == state)
            && self.idle_ms.is_none_or(|wanted| idle_ms >= wanted)
    }

    /// Whether anything at all is asked of a session.
    pub(crate) fn is_any(&self) -> bool {
        *self != SessionFilter::default()
    }

    /// Whether these are the ends, one way or the other.
    pub(crate) fn joins(&self, one: SocketAddr, other: SocketAddr) -> bool {
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (one, other) = (plain(one), plain(other));
        self.ends.is_some_and(|(a, b)| (a, b) == (one, other) || (b, a) == (one, other))
    }
}

/// Whether an address is in a network.
pub(crate) fn holds((network, prefix): (IpAddr, u8), address: IpAddr) -> bool {
    match (network.to_canonical(), address.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            (network.to_bits() ^ address.to_bits()) & mask == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
            (network.to_bits() ^ address.to_bits()) & mask == 0
        }
        _ => false,
    }
}

/// One session of one worker, and no later one in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionId {
    pub(crate) worker: WorkerId,
    pub(crate) place: SessionPlace,
}

/// Where a worker has a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SessionPlace {
    /// Among the connections of the stream plane.
    Connection { index: u32, generation: u32 },
    /// Among its UDP sessions.
    Datagrams { index: u32, generation: u32 },
    /// Among the flows of the packet plane.
    Flow(FlowPlace),
}

impl SessionId {
    /// `3-c17-5`: the worker, where, the place there, and which one of that place.
    pub(crate) fn text(self) -> String {
        let (kind, index, generation) = match self.place {
            SessionPlace::Connection { index, generation } => ('c', index, generation),
            SessionPlace::Datagrams { index, generation } => ('d', index, generation),
            SessionPlace::Flow(FlowPlace { is_half_open: true, slot, generation }) => ('h', slot, generation),
            SessionPlace::Flow(FlowPlace { is_half_open: false, slot, generation }) => ('f', slot, generation),
        };
        format!("{}-{kind}{index}-{generation}", self.worker)
    }
}

impl FromStr for SessionId {
    type Err = String;

    fn from_str(text: &str) -> Result<SessionId, String> {
        let parsed = || {
            let mut parts = text.splitn(3, '-');
            let worker = WorkerId(parts.next()?.parse().ok()?);
            let place = parts.next()?;
            let generation = parts.next()?.parse().ok()?;
            let index = place.get(1..)?.parse().ok()?;
            let flow = |is_half_open| SessionPlace::Flow(FlowPlace { is_half_open, slot: index, generation });
            let place = match place.get(..1)? {
                "c" => SessionPlace::Connection { index, generation },
                "d" => SessionPlace::Datagrams { index, generation },
                "f" => flow(false),
                "h" => flow(true),
                _ => return None,
            };
            Some(SessionId { worker, place })
        };
        parsed().ok_or_else(|| format!("\"{text}\" is no id of a session; `towpath sessions list` shows them"))
    }
}

/// A session as a worker finds it.
#[derive(Clone, Debug)]
pub(crate) struct FoundSession {
    pub(crate) id: SessionId,
    pub(crate) plane: Plane,
    pub(crate) transport: Transport,
    pub(crate) service: ServiceId,
    /// The same as it is carried by, or by the snapshot of the worker; `None`: it has gone from that.
    pub(crate) of: Option<Arc<Service>>,
    pub(crate) server: Option<RealServerId>,
    pub(crate) client: SocketAddr,
    /// What the client has addressed.
    pub(crate) vip: SocketAddr,
    /// The source that its server sees.
    pub(crate) source: Option<SocketAddr>,
    /// Where its server is.
    pub(crate) destination: Option<SocketAddr>,
    pub(crate) is_leased: bool,
    /// Whether its answers come by here.
    pub(crate) is_one_way: bool,
    pub(crate) is_fast: bool,
    pub(crate) state: &'static str,
    pub(crate) why: Option<PickReason>,
    pub(crate) opened: Option<Now>,
    pub(crate) idle_ms: u64,
    pub(crate) due: Option<Now>,
}

/// What all workers have said.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) sessions: Vec<FoundSession>,
    /// Sessions that fit, those beyond the limit included.
    pub(crate) matched: u64,
    pub(crate) killed: u64,
    /// Workers that have not answered in time.
    pub(crate) silent: Vec<WorkerId>,
}

/// Too many questions at a time.
#[derive(Debug)]
pub(crate) struct Busy;

/// Whose turn it is to ask.
pub(crate) struct Turns {
    questions: Semaphore,
    captures: Semaphore,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns { questions: Semaphore::new(QUESTIONS_MAX), captures: Semaphore::new(1) }
    }
}

impl Turns {
    async fn question(&self) -> Result<SemaphorePermit<'_>, Busy> {
        let permit = timeout(TURN_TIMEOUT, self.questions.acquire()).await.map_err(|_| Busy)?;
        permit.map_err(|_| Busy)
    }

    /// To capture; one at a time, for it may be large.
    pub(crate) fn capture(&self) -> Result<SemaphorePermit<'_>, Busy> {
        self.captures.try_acquire().map_err(|_| Busy)
    }
}

impl House {
    /// Asks every worker about its sessions, and waits for their answers. `limit` sessions are named at most.
    pub(crate) async fn ask(&self, wish: Wish, filter: SessionFilter, limit: u32) -> Result<Found, Busy> {
        let _turn = self.turns.question().await?;
        Ok(ask(&self.shared, wish, filter, limit).await)
    }
}

async fn ask(shared: &Shared, wish: Wish, filter: SessionFilter, limit: u32) -> Found {
    let (reports, mut heard) = unbounded_channel();
    let asked: Vec<WorkerId> = shared
        .seats()
        .filter(|seat| filter.worker.is_none_or(|worker| worker == seat.id()))
        .filter(|seat| filter.ids.is_empty() || filter.ids.iter().any(|id| id.worker == seat.id()))
        .map(|seat| seat.id())
        .collect();
    let rows_left = AtomicU32::new(limit.min(SESSIONS_MAX));
    let inquiry = Arc::new(Inquiry { wish, filter, rows_left, reports });
    for &worker in &asked {
        shared.seat(worker).ask(Question::Sessions(Arc::clone(&inquiry)));
    }
    // The workers alone hold it from here on: when all of them have let go, nothing more comes.
    drop(inquiry);
    let mut found = Found { silent: asked, ..Found::default() };
    let until = Instant::now() + ANSWER_TIMEOUT;
    while !found.silent.is_empty() {
        let report = tokio::select! {
            report = heard.recv() => report,
            () = sleep_until(until) => None,
        };
        match report {
            None => break,
            Some(Report::Sessions(sessions)) => found.sessions.extend(sessions),
            Some(Report::Done { worker, matched, killed }) => {
                found.silent.retain(|silent| *silent != worker);
                found.matched += matched;
                found.killed += killed;
            }
        }
    }
    // A flow may be met in both tables, when it moves between two looks.
    let mut met = HashSet::new();
    found.sessions.reverse();
    let before = found.sessions.len();
    found.sessions.retain(|found| {
        found.plane == Plane::Stream || met.insert((found.transport, found.client, found.vip, found.id.worker))
    });
    // Rows of a worker that has not come to its end are counted by nobody yet.
    found.matched =
        found.matched.saturating_sub((before - found.sessions.len()) as u64).max(found.sessions.len() as u64);
    found.sessions.reverse();
    found
}

/// What is to be captured, and how much of it: the same for every worker.
pub(crate) struct CaptureOrder {
    pub(crate) services: Vec<ServiceId>,
    pub(crate) client: Option<(IpAddr, u8)>,
    /// Bytes of each frame that are kept.
    pub(crate) snap_bytes: usize,
    frames_left: AtomicU32,
    bytes_left: AtomicU64,
    is_over: AtomicBool,
    frames: UnboundedSender<Vec<CapturedFrame>>,
}

impl CaptureOrder {
    /// An order, and where what is captured comes out.
    pub(crate) fn new(
        services: Vec<ServiceId>,
        client: Option<(IpAddr, u8)>,
        snap_bytes: usize,
        frames_max: u32,
        bytes_max: u64,
    ) -> (Arc<CaptureOrder>, UnboundedReceiver<Vec<CapturedFrame>>) {
        let (frames, captured) = unbounded_channel();
        let order = CaptureOrder {
            services,
            client,
            snap_bytes,
            frames_left: AtomicU32::new(frames_max),
            bytes_left: AtomicU64::new(bytes_max),
            is_over: AtomicBool::new(false),
            frames,
        };
        (Arc::new(order), captured)
    }

    /// Whether a frame of so many kept bytes may be added; the first that may not ends the capture.
    pub(crate) fn takes(&self, bytes: usize) -> bool {
        let frame = self.frames_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let bytes = bytes as u64;
        let takes = frame.is_ok()
            && self
                .bytes_left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes))
                .is_ok();
        if !takes || frame == Ok(1) {
            self.end();
        }
        takes
    }

    /// Nothing is captured any more.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || self.frames.is_closed()
    }

    /// Who captures gets these.
    pub(crate) fn hand_out(&self, frames: Vec<CapturedFrame>) {
        let _ = self.frames.send(frames);
    }
}

/// A copy of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CapturedFrame {
    /// When, since 1970.
    pub(crate) at: Duration,
    pub(crate) worker: WorkerId,
    /// Who received it, if that was another one, which knows of no flow of its and does not show it.
    pub(crate) handed_by: Option<WorkerId>,
    pub(crate) port: PortId,
    pub(crate) way: Way,
    /// The first of its bytes.
    pub(crate) bytes: Vec<u8>,
    /// All of them.
    pub(crate) len: u32,
    /// Of a super-packet, payload of each of its segments; else 0.
    pub(crate) segment_bytes: u16,
    pub(crate) client: SocketAddr,
    pub(crate) from_client: bool,
}

/// How a captured frame passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It came, and this became of it.
    Came(Verdict),
    /// It left, as it was made of one that came.
    Left,
    /// It left, and was made here: a reset, an error.
    Made,
}

/// The services of this name: by their ids, those of `[[outbound_nat]]` among them, and of those that are not in force any more `remnants`.
pub(crate) fn services_called(snapshot: &Snapshot, remnants: &[Arc<Service>], name: &str) -> Vec<ServiceId> {
    let services = snapshot.each_service().chain(remnants);
    let services = services.filter(|service| service.name == name).map(|service| service.id);
    let lanes = snapshot.outbound.each().filter(|nat| nat.name == name).flat_map(|nat| nat.lanes());
    let mut ids: Vec<ServiceId> = services.chain(lanes.map(|lane| lane.id)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_as_they_were_shown() {
        let flow = |is_half_open| SessionPlace::Flow(FlowPlace { is_half_open, slot: 1_048_575, generation: 7 });
        for place in [
            SessionPlace::Connection { index: 17, generation: 5 },
            SessionPlace::Datagrams { index: 0, generation: 0 },
            flow(true),
            flow(false),
        ] {
            let id = SessionId { worker: WorkerId(3), place };
            assert_eq!(id.text().parse(), Ok(id), "{}", id.text());
        }
        for wrong in ["", "3", "3-c17", "3-x17-5", "256-c17-5", "3-c-5", "3-c17-5-1", "3-ü7-5", "-c1-1"] {
            assert!(wrong.parse::<SessionId>().unwrap_err().contains("no id of a session"), "{wrong}");
        }
    }

    #[test]
    fn ends_join_in_both_directions() {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (client, vip) = (end("192.0.2.7:40000"), end("198.51.100.1:443"));
        let filter = SessionFilter { ends: Some((client, vip)), ..SessionFilter::default() };
        assert!(filter.joins(client, vip) && filter.joins(vip, client));
        assert!(filter.joins(end("[::ffff:192.0.2.7]:40000"), vip));
        assert!(!filter.joins(client, client) && !filter.joins(client, end("198.51.100.1:444")));
        assert!(!SessionFilter::default().joins(client, vip));
    }

    #[test]
    fn a_network_holds_its_own() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (network, prefix, address, expected) in [
            ("192.0.2.0", 24, "192.0.2.7", true),
            ("192.0.2.0", 24, "192.0.3.7", false),
            ("0.0.0.0", 0, "255.255.255.255", true),
            ("192.0.2.7", 32, "192.0.2.7", true),
            ("192.0.2.7", 32, "::ffff:192.0.2.7", true),
            ("2001:db8::", 32, "2001:db8:ffff::1", true),
            ("2001:db8::", 32, "2001:db9::1", false),
            ("::", 0, "192.0.2.7", false),
        ] {
            assert_eq!(holds((ip(network), prefix), ip(address)), expected, "{network}/{prefix} {address}");
        }
    }

    #[test]
    fn a_capture_ends_with_its_last_frame_or_byte() {
        let (order, _captured) = CaptureOrder::new(Vec::new(), None, 64, 2, 1_000);
        assert!(order.takes(10) && !order.is_over());
        assert!(order.takes(10) && order.is_over());
        assert!(!order.takes(10));
        let (order, captured) = CaptureOrder::new(Vec::new(), None, 64, 100, 25);
        assert!(order.takes(10) && order.takes(15) && !order.is_over());
        assert!(!order.takes(1) && order.is_over());
        drop(captured);
        let (order, captured) = CaptureOrder::new(Vec::new(), None, 64, 100, 25);
        drop(captured);
        assert!(order.is_over(), "nobody listens any more");
    }
}
