//! Sessions as an operator sees them: connections and UDP sessions of the stream plane, flows of the packet plane. Which there are, where one is and
//! why, and the end of some.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use towpath_config::model::{AdminState, Plane, Protocol};
use towpath_core::outbound::OutboundNat;
use towpath_core::snapshot::{Service, Snapshot, Target};
use towpath_core::steering::vshard_of_client;
use towpath_core::{PickReason, RealServerId, WorkerId};

use crate::audit::Audit;
use crate::house::House;
use crate::query::{
    QueryError, ROWS_SHOWN, checked_reason, limited, network, no_service, servers_called, some_or_all, wanted,
};
use crate::questions::{Found, FoundSession, SESSIONS_MAX, SessionFilter, SessionId, Transport, Wish, services_called};
use crate::status::word;

/// Sessions that may be named by their ids at a time.
const IDS_MAX: usize = 1_000;

/// Which sessions are meant: those for which everything holds that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionsQuery {
    /// These, by their ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// Of this service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// At this server: its name, address, or address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// From this address or network (`192.0.2.0/24`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// `stream` or `packet`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plane: Option<String>,
    /// `tcp`, `udp` or `echo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// In this state, as a list shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Of this worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<u8>,
    /// Without a byte for so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// So many are named at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Which sessions are to end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KillBody {
    /// Which ones.
    pub sessions: SessionsQuery,
    /// All of them, where `sessions` says nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Why, for events and the log.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Say which would end, and end none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// What it is called in `sessions kill`: no other one ever is, while this daemon runs and its place is not used 4 million times more.
    pub id: String,
    /// The worker that carries it.
    pub worker: u8,
    /// `stream` or `packet`.
    pub plane: String,
    /// What carries it.
    pub protocol: Transport,
    /// Name of its service, or of its `[[outbound_nat]]`.
    pub service: String,
    /// Name of its server; `None` = it has none yet, or was opened from inside.
    pub server: Option<String>,
    /// Where the client is.
    pub client: SocketAddr,
    /// What the client has addressed.
    pub vip: SocketAddr,
    /// The source that the server sees.
    pub source: Option<SocketAddr>,
    /// Where the server is.
    pub destination: Option<SocketAddr>,
    /// Whether that source is leased.
    pub leased: bool,
    /// Whether the answers of the server go another way.
    pub one_way: bool,
    /// Whether the kernel carries it onwards.
    pub fast: bool,
    /// How far it is.
    pub state: String,
    /// How its server was picked: `balanced`, `persistent`, `overflowed`, `repinned`.
    pub why: Option<String>,
    /// When it was opened, in milliseconds since 1970; of a flow that is not known.
    pub opened_unix_ms: Option<u64>,
    /// Milliseconds since something of it passed.
    pub idle_ms: u64,
    /// Milliseconds until it ends for that, if nothing passes.
    pub ends_in_ms: Option<u64>,
}

/// Sessions that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsStatus {
    /// The generation of which this holds.
    pub generation: u64,
    /// Those that fit, as far as they may be named: by client.
    pub sessions: Vec<SessionStatus>,
    /// How many fit.
    pub matched: u64,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

/// What became of the wish to end sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KilledStatus {
    /// Nothing was ended: this is what would be.
    pub dry_run: bool,
    /// How many fit.
    pub matched: u64,
    /// How many of them were ended.
    pub killed: u64,
    /// Those that may be named, as they were.
    pub sessions: Vec<SessionStatus>,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

/// Where a session between two ends is, and why; or what would become of its next packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// The generation of which this holds.
    pub generation: u64,
    /// One end.
    pub one: SocketAddr,
    /// The other one.
    pub other: SocketAddr,
    /// The sessions; with their two sides they may be more than one.
    pub sessions: Vec<SessionStatus>,
    /// What holds, one sentence each.
    pub reasons: Vec<String>,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

impl SessionsQuery {
    /// What is meant; what `remnants` have open has the names that it began with.
    fn filter(&self, snapshot: &Snapshot, remnants: &[Arc<Service>]) -> Result<SessionFilter, QueryError> {
        if self.ids.len() > IDS_MAX {
            return Err(QueryError::Bad(format!("at most {IDS_MAX} `ids` at a time")));
        }
        let ids: Result<Vec<SessionId>, String> = self.ids.iter().map(|id| id.parse()).collect();
        let services = self.service.as_deref().map(|name| match services_called(snapshot, remnants, name) {
            ids if ids.is_empty() => Err(no_service(snapshot, name)),
            ids => Ok(ids),
        });
        let server = self.server.as_deref();
        let servers = server.map(|name| servers_called(snapshot, remnants, self.service.as_deref(), name));
        let plane = self.plane.as_deref().map(|word| match word {
            "packet" => Ok(Plane::Packet),
            "stream" => Ok(Plane::Stream),
            _ => Err(QueryError::Bad(format!("`plane` \"{word}\" is none of stream, packet"))),
        });
        let protocol = self.protocol.as_deref().map(str::parse).transpose();
        Ok(SessionFilter {
            ids: ids.map_err(QueryError::Bad)?,
            services: services.transpose()?,
            servers: servers.transpose()?,
            client: self.client.as_deref().map(network).transpose()?,
            plane: plane.transpose()?,
            protocol: protocol.map_err(|error| QueryError::Bad(format!("`protocol` {error}")))?,
            state: self.state.clone(),
            worker: self.worker.map(WorkerId),
            idle_ms: self.idle_ms,
            ends: None,
        })
    }
}

impl fmt::Display for SessionsQuery {
    /// `service web, client 192.0.2.0/24`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SessionsQuery { ids, service, server, client, plane, protocol, state, worker, idle_ms, limit: _ } = self;
        let mut said = Vec::new();
        let mut say = |what: &str, value: Option<String>| said.extend(value.map(|value| format!("{what} {value}")));
        say("ids", (!ids.is_empty()).then(|| ids.join(" ")));
        say("service", service.clone());
        say("server", server.clone());
        say("client", client.clone());
        say("plane", plane.clone());
        say("protocol", protocol.clone());
        say("state", state.clone());
        say("worker", worker.map(|worker| worker.to_string()));
        say("idle for ms", idle_ms.map(|ms| ms.to_string()));
        match said.is_empty() {
            true => f.write_str("all"),
            false => f.write_str(&said.join(", ")),
        }
    }
}

impl House {
    /// What sessions may be of beside what is in force.
    fn remnants(&self, snapshot: &Snapshot) -> Vec<Arc<Service>> {
        self.truth().remnants(snapshot)
    }

    /// Which sessions there are.
    pub(crate) async fn sessions(&self, query: &SessionsQuery) -> Result<SessionsStatus, QueryError> {
        let snapshot = self.shared.snapshot();
        let filter = query.filter(&snapshot, &self.remnants(&snapshot))?;
        let found = self.ask(Wish::List, filter, limited(query.limit, SESSIONS_MAX)?).await?;
        Ok(SessionsStatus {
            generation: snapshot.generation.0,
            matched: found.matched,
            warnings: warnings(&found),
            sessions: self.shown(found, &snapshot),
        })
    }

    /// Ends sessions; `by` says who wants it.
    pub(crate) async fn kill(&self, body: &KillBody, by: &str) -> Result<KilledStatus, QueryError> {
        checked_reason(&body.reason)?;
        let snapshot = self.shared.snapshot();
        let filter = body.sessions.filter(&snapshot, &self.remnants(&snapshot))?;
        some_or_all(filter.is_any(), body.all, "sessions")?;
        let limit = limited(body.sessions.limit, SESSIONS_MAX)?;
        let reason = wanted(by, &body.sessions, &body.reason);
        let (wish, audit) = match body.dry_run {
            true => (Wish::List, None),
            false => (Wish::Kill, Some(Audit::begin(self, "sessions", "ended: some", reason))),
        };
        let found = match self.ask(wish, filter, limit).await {
            Ok(found) => found,
            Err(busy) => {
                audit.into_iter().for_each(Audit::forget);
                return Err(busy.into());
            }
        };
        let (matched, killed) = (found.matched, found.killed);
        let warnings = warnings(&found);
        let sessions = self.shown(found, &snapshot);
        if let Some(audit) = audit {
            let mut services: Vec<String> = sessions.iter().map(|session| session.service.clone()).collect();
            services.sort_unstable();
            services.dedup();
            audit.end(format!("ended: {killed}"), services);
        }
        Ok(KilledStatus { dry_run: body.dry_run, matched, killed, sessions, warnings })
    }

    /// Where the session between these ends is, and why.
    pub(crate) async fn flow(
        &self,
        one: SocketAddr,
        other: SocketAddr,
        protocol: Option<Transport>,
    ) -> Result<FlowStatus, QueryError> {
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (one, other) = (plain(one), plain(other));
        let filter = SessionFilter { ends: Some((one, other)), protocol, ..SessionFilter::default() };
        let snapshot = self.shared.snapshot();
        let found = self.ask(Wish::List, filter, ROWS_SHOWN).await?;
        let warnings = warnings(&found);
        let mut reasons: Vec<String> =
            found.sessions.iter().flat_map(|session| self.reasons(session, &snapshot)).collect();
        if found.sessions.is_empty() {
            reasons = self.reasons_for_none(one, other, protocol, &snapshot);
        }
        let sessions = self.shown(found, &snapshot);
        Ok(FlowStatus { generation: snapshot.generation.0, one, other, sessions, reasons, warnings })
    }

    fn shown(&self, found: Found, snapshot: &Snapshot) -> Vec<SessionStatus> {
        let now = self.shared.now();
        let now_unix_ms = crate::admin::unix_ms();
        let mut sessions: Vec<SessionStatus> = found
            .sessions
            .into_iter()
            .map(|session| SessionStatus {
                service: service_name(&session, snapshot),
                server: session.server.map(|server| self.server_name(&session, server, snapshot)),
                id: session.id.text(),
                worker: session.id.worker.0,
                plane: word(&session.plane),
                protocol: session.transport,
                client: session.client,
                vip: session.vip,
                source: session.source,
                destination: session.destination,
                leased: session.is_leased,
                one_way: session.is_one_way,
                fast: session.is_fast,
                state: session.state.to_owned(),
                why: session.why.map(|why| why_word(why).to_owned()),
                opened_unix_ms: session.opened.map(|opened| now_unix_ms.saturating_sub(now.ms_since(opened))),
                idle_ms: session.idle_ms,
                ends_in_ms: session.due.map(|due| due.ms_since(now)),
            })
            .collect();
        sessions.sort_by(|one, other| {
            let key = |of: &SessionStatus| (of.client.ip(), of.client.port(), of.vip.ip(), of.vip.port());
            key(one).cmp(&key(other)).then_with(|| one.id.cmp(&other.id))
        });
        sessions
    }

    fn server_name(&self, session: &FoundSession, server: RealServerId, snapshot: &Snapshot) -> String {
        let now = snapshot.service(session.service).and_then(|service| service.target_of(server));
        let then = || session.of.as_ref().and_then(|service| service.target_of(server));
        if let Some((_, target)) = now.or_else(then) {
            return target.name.clone();
        }
        match snapshot.real_server(server) {
            Some(server) => server.name.clone(),
            None => session.destination.map_or_else(|| "gone".to_owned(), |destination| destination.to_string()),
        }
    }

    /// Why a session is where it is, and what holds for its server now.
    fn reasons(&self, session: &FoundSession, snapshot: &Snapshot) -> Vec<String> {
        let mut reasons = Vec::new();
        let name = service_name(session, snapshot);
        let worker = session.id.worker;
        reasons.push(format!("worker {worker}: {}", self.steered(session, snapshot)));
        let place = session.of.as_ref().map(|of| of.place);
        let service = place.and_then(|place| snapshot.service(place)).or_else(|| snapshot.service(session.service));
        let Some(service) = service else {
            reasons.push(format!("service {name}: it is none of this generation; what it has left ends by itself"));
            return reasons;
        };
        if let Some(server) = session.server {
            let called = self.server_name(session, server, snapshot);
            if let Some(why) = session.why {
                reasons.push(format!("server {called}: {}", why_sentence(why, service)));
            }
            reasons.push(match service.target_of(server) {
                None => format!("server {called} is no member of {name} any more; what it has goes on until it ends"),
                Some((_, target)) => format!("server {called} is {} now{}", standing(target), health(target)),
            });
        }
        reasons.extend(source_sentence(session));
        if session.is_fast {
            reasons
                .push("the kernel carries it onwards (fast path); what is counted here may be a second old".to_owned());
        }
        reasons
    }

    fn steered(&self, session: &FoundSession, snapshot: &Snapshot) -> String {
        let home = vshard_of_client(session.client.ip(), session.client.port(), self.shared.steering_seed());
        let owner = snapshot.steering.worker_of(home);
        match (session.plane, owner == session.id.worker) {
            (Plane::Packet, true) => format!("the client's address and port lead to it (virtual shard {})", home.0),
            (Plane::Packet, false) => format!(
                "the client's address and port lead to worker {owner} (virtual shard {}); the flow is on its way there, or was opened before workers changed",
                home.0
            ),
            (Plane::Stream, _) => "it has accepted it, and keeps it".to_owned(),
        }
    }

    /// Why there is no session between these ends, as far as that can be told.
    fn reasons_for_none(
        &self,
        one: SocketAddr,
        other: SocketAddr,
        protocol: Option<Transport>,
        snapshot: &Snapshot,
    ) -> Vec<String> {
        let mut reasons = vec!["no worker has a session between these ends".to_owned()];
        let is_for = |service: &&Arc<Service>, to: SocketAddr| {
            let transport = match service.protocol {
                Protocol::Tcp => Transport::Tcp,
                Protocol::Udp => Transport::Udp,
            };
            service.place == service.id
                && service.vip == to.ip()
                && (service.ports.is_empty() || service.ports.contains(&to.port()))
                && protocol.is_none_or(|protocol| protocol == transport)
        };
        let mut is_known = false;
        for (client, vip) in [(one, other), (other, one)] {
            for service in snapshot.each_service().filter(|service| is_for(service, vip)) {
                is_known = true;
                let home = vshard_of_client(client.ip(), client.port(), self.shared.steering_seed());
                let owner = snapshot.steering.worker_of(home);
                let first = match (service.protocol, service.plane) {
                    (Protocol::Udp, _) => "its next datagram opens one".to_owned(),
                    (_, Plane::Stream) => {
                        "a segment of it that is no SYN is answered with a reset by the kernel".to_owned()
                    }
                    (_, Plane::Packet) => {
                        "a segment of it that is no SYN is dropped as `tcp_stray`, or reset (runtime)".to_owned()
                    }
                };
                reasons.push(format!(
                    "{vip} is service {} ({} plane): {first}; a new one goes to worker {owner} (virtual shard {}); `towpath explain {} {}` says to which server",
                    service.name, word(&service.plane), home.0, client.ip(), service.name
                ));
            }
        }
        if !is_known {
            reasons.push("neither end is a VIP and port of a service".to_owned());
        }
        reasons
    }
}

fn service_name(session: &FoundSession, snapshot: &Snapshot) -> String {
    if let Some(service) = &session.of {
        return service.name.clone();
    }
    let is_its = |nat: &&OutboundNat| nat.lanes().iter().any(|lane| lane.id == session.service);
    match snapshot.outbound.each().find(is_its) {
        Some(nat) => nat.name.clone(),
        None => "gone".to_owned(),
    }
}

fn warnings(found: &Found) -> Vec<String> {
    let silent = found.silent.iter().map(|worker| format!("worker {worker} has not answered in time: this is not all"));
    let named = found.sessions.len() as u64;
    let cut =
        (found.matched > named).then(|| format!("{named} of {} are named; filter, or raise the limit", found.matched));
    silent.chain(cut).collect()
}

/// The word for how a server was picked.
pub(crate) fn why_word(why: PickReason) -> &'static str {
    match why {
        PickReason::Balanced => "balanced",
        PickReason::Consoled => "consoled",
        PickReason::Overflowed => "overflowed",
        PickReason::Persistent => "persistent",
        PickReason::Repinned => "repinned",
    }
}

/// The same in a sentence.
pub(crate) fn why_sentence(why: PickReason, service: &Service) -> String {
    let method = word(&service.balance);
    match why {
        PickReason::Balanced => format!("chosen by {method}; nothing named a server for the client"),
        PickReason::Consoled => "the sorry server, for this time: no server of the service could take it".to_owned(),
        PickReason::Overflowed => {
            format!("chosen by {method}, for this time: the client's own server was full, or its port down")
        }
        PickReason::Persistent => "the client came back to it (persistence)".to_owned(),
        PickReason::Repinned => {
            format!("chosen by {method}: the client's own server could not take it, and this one is its own since")
        }
    }
}

fn source_sentence(session: &FoundSession) -> Option<String> {
    let (source, server) = (session.source?, session.destination?);
    Some(match (session.is_leased, session.is_one_way) {
        (_, true) => format!("{server} answers the client directly (DSR)"),
        (true, false) => format!("{server} sees {source}, which is leased for it"),
        (false, false) if source == session.client => format!("{server} sees the client's own address and port"),
        (false, false) => format!("{server} sees {source}, which the kernel has chosen"),
    })
}

/// `ready`, `in drain` or `halted`.
pub(crate) fn standing(target: &Target) -> &'static str {
    match target.admin {
        AdminState::Ready => "ready",
        AdminState::Drain => "in drain",
        AdminState::Halt => "halted",
    }
}

fn health(target: &Target) -> String {
    format!(" and {}: {}", target.health.label(), target.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_reads_as_it_was_said() {
        assert_eq!(SessionsQuery::default().to_string(), "all");
        let query = SessionsQuery {
            service: Some("web".to_owned()),
            client: Some("192.0.2.0/24".to_owned()),
            worker: Some(3),
            ..SessionsQuery::default()
        };
        assert_eq!(query.to_string(), "service web, client 192.0.2.0/24, worker 3");
    }
}
