//! What would become of a new connection, step by step: the same decisions that workers make, made on copies.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use towpath_config::model::{PersistBy, Plane};
use towpath_core::client_hello::HostName;
use towpath_core::explain::{Candidacy, Explanation, Home, Obstacle};
use towpath_core::http::{HttpLimits, RequestHead, Verdict};
use towpath_core::persistence::Seen;
use towpath_core::snapshot::{Heralded, Service, ServiceSource, Snapshot, Target};
use towpath_core::steering::vshard_of_client;
use towpath_core::{Now, Refusal};

use crate::house::House;
use crate::query::{QueryError, no_service};
use crate::sessions::{why_sentence, why_word};
use crate::shared::Phase;
use crate::status::word;

/// A new connection that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExplainQuery {
    /// Name of the service.
    pub(crate) service: String,
    /// The client's address.
    pub(crate) client: IpAddr,
    /// Its port, if that is to say which worker it comes to.
    pub(crate) client_port: Option<u16>,
    /// The port of the service that it comes to; the first, if it does not say.
    pub(crate) port: Option<u16>,
    /// The name that it asks for by TLS.
    pub(crate) name: Option<String>,
    /// Its request, in HTTP mode.
    pub(crate) request: Option<Request>,
}

/// What of a request decides where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) host: Option<String>,
    pub(crate) path: String,
    /// `Name: value` each.
    pub(crate) headers: Vec<String>,
}

/// What would become of a new connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplanationStatus {
    /// The generation of which this holds.
    pub generation: u64,
    /// Name of the service.
    pub service: String,
    /// Name of the group of servers that it is led to.
    pub group: String,
    /// The client's address.
    pub client: IpAddr,
    /// The port of the service that it comes to.
    pub port: u16,
    /// `served`, `queued`, `refused` or `answered` (without a server).
    pub outcome: String,
    /// The server that it would get.
    pub server: Option<String>,
    /// How that is picked: `balanced`, `persistent`, `overflowed`, `repinned`.
    pub why: Option<String>,
    /// The outcome in a sentence.
    pub summary: String,
    /// What is looked at, in this order.
    pub steps: Vec<StepStatus>,
    /// Every server of the group.
    pub servers: Vec<CandidateStatus>,
}

/// One thing that is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepStatus {
    /// What, in a word.
    pub step: String,
    /// What holds.
    pub says: String,
    /// Whether the connection comes no further than here.
    pub stops: bool,
}

/// How a server stands to the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` = it keeps the port that the client addressed.
    pub port: Option<u16>,
    /// What keeps new clients from it; nothing: it is a candidate.
    pub obstacles: Vec<String>,
    /// Connections that it has now, over all services.
    pub connections: u32,
    /// Its weight.
    pub weight: u16,
    /// Of what all candidates get by weight and slow start, its part in thousandths.
    pub share_permille: u64,
    /// What part of its share it takes because it has just come back, in thousandths; 1000 = all.
    pub slow_start_permille: u64,
    /// Whether it comes before others: it has fewer connections than its `min_connections`.
    pub below_minimum: bool,
    /// Whether the client is to come back to it.
    pub home: bool,
    /// Whether it is the one.
    pub chosen: bool,
}

/// What is found out on the way.
#[derive(Default)]
struct Steps(Vec<StepStatus>);

impl Steps {
    fn say(&mut self, step: &str, says: impl Into<String>) {
        self.0.push(StepStatus { step: step.to_owned(), says: says.into(), stops: false });
    }

    fn stop(&mut self, step: &str, says: impl Into<String>) {
        self.0.push(StepStatus { step: step.to_owned(), says: says.into(), stops: true });
    }

    fn stopped(&self) -> Option<&StepStatus> {
        self.0.iter().find(|step| step.stops)
    }
}

/// Where a request is led.
enum Led {
    To(Arc<Service>),
    /// No server gets it: this is its answer.
    Answered(String),
}

impl House {
    /// What would become of a new connection; nothing changes by the question.
    pub(crate) fn explain(&self, query: &ExplainQuery) -> Result<ExplanationStatus, QueryError> {
        let snapshot = self.shared.snapshot();
        let now = self.shared.now();
        let is_front = |service: &&Arc<Service>| service.name == query.service && service.place == service.id;
        let Some(front) = snapshot.each_service().find(is_front) else {
            return Err(no_service(&snapshot, &query.service));
        };
        let port = port_of(front, query.port)?;
        let client = query.client.to_canonical();
        let mut steps = Steps::default();
        self.admit(front, client, query, &snapshot, &mut steps);
        let (place, request) = match lead(front, client, query, &snapshot, &mut steps)? {
            (Led::To(place), request) => (place, request),
            (Led::Answered(says), _) => {
                let summary = format!("is answered without a server: {says}");
                let status = status(&snapshot, front, front, client, port, steps, Vec::new());
                return Ok(ExplanationStatus { outcome: "answered".to_owned(), summary, ..status });
            }
        };
        let name = query.name.as_deref();
        let seen = Seen { request: request.as_ref(), server_name: name, ..Seen::of_address(client) };
        let known = place.known(&seen);
        let said = self.shared.explain(&place, client, port, &known, now);
        remember(&place, &said, now, query, &mut steps);
        let (waiting, longest_ms) = self.shared.queue(place.place);
        if waiting > 0 {
            steps.say("queue", format!("{waiting} wait before it, the first for {longest_ms} ms"));
        }
        if let Ok(pick) = said.outcome
            && let Some(target) = place.target(pick.target)
        {
            source(&place, target, port, &mut steps);
        }
        let servers = candidates(&place, &said);
        let stopped = steps.stopped().map(|step| step.says.clone());
        let status = status(&snapshot, front, &place, client, port, steps, servers);
        Ok(match (stopped, said.outcome) {
            (Some(says), _) => ExplanationStatus { summary: format!("is refused: {says}"), ..status },
            (None, Ok(pick)) if waiting == 0 => {
                let server = place.target(pick.target).map(|target| target.name.clone());
                ExplanationStatus {
                    outcome: "served".to_owned(),
                    summary: format!(
                        "goes to {}: {}",
                        server.as_deref().unwrap_or_default(),
                        why_sentence(pick.why, &place)
                    ),
                    server,
                    why: Some(why_word(pick.why).to_owned()),
                    ..status
                }
            }
            (None, outcome) => {
                let refusal = outcome.err().unwrap_or(Refusal::ServersFull);
                let (outcome, summary) = refused(&place, refusal, waiting);
                ExplanationStatus { outcome, summary, ..status }
            }
        })
    }

    /// What a connection meets before anybody looks for its server.
    fn admit(&self, front: &Service, client: IpAddr, query: &ExplainQuery, snapshot: &Snapshot, steps: &mut Steps) {
        if self.shared.phase() != Phase::Running {
            steps.stop("process", "the daemon is stopping and takes nobody");
        }
        steps.say("plane", format!("{}, {}", word(&front.plane), word(&front.forwarding)));
        if let Some(port) = query.client_port {
            let home = vshard_of_client(client, port, self.shared.steering_seed());
            let worker = snapshot.steering.worker_of(home);
            steps.say("worker", format!("{worker}, by the client's address and port (virtual shard {})", home.0));
        }
        match front.heralded(client) {
            Heralded::No => {}
            Heralded::Refused => steps.stop("proxy", "it comes from outside of `proxy_protocol_from`"),
            Heralded::Within(ms) => steps.say(
                "proxy",
                format!("{client} is a proxy: it has {ms} ms to say who the client is; ask for that client's address"),
            ),
        }
        if front.plane == Plane::Stream {
            let gate = self.shared.gate(front.protocol);
            let says = format!("{} of {} are open in the process", gate.inside(), gate.max());
            match gate.inside() >= gate.max() {
                true => steps.stop("limit", says),
                false => steps.say("limit", says),
            }
        }
        let active = self.shared.loads().service_active(front.id);
        if front.max_connections != 0 {
            steps.say("service", format!("{active} of {} connections (max_connections)", front.max_connections));
        }
    }
}

fn port_of(front: &Service, asked: Option<u16>) -> Result<u16, QueryError> {
    match asked {
        Some(port) if front.ports.is_empty() || front.ports.contains(&port) => Ok(port),
        Some(port) => {
            let ports: Vec<String> = front.ports.iter().map(ToString::to_string).collect();
            Err(QueryError::Bad(format!("service {} has no port {port}; it has {}", front.name, ports.join(", "))))
        }
        None => match front.ports.first() {
            Some(port) => Ok(*port),
            None => Err(QueryError::Bad(format!("service {} has every port; say which one (`port`)", front.name))),
        },
    }
}

/// Which servers the connection, or its request, is led to.
fn lead(
    front: &Arc<Service>,
    client: IpAddr,
    query: &ExplainQuery,
    snapshot: &Snapshot,
    steps: &mut Steps,
) -> Result<(Led, Option<RequestHead>), QueryError> {
    let at = |place| Arc::clone(snapshot.service(place).unwrap_or(front));
    if let Some(routes) = &front.routes {
        let name = query.name.as_deref();
        let found = name.and_then(|name| routes.find(&HostName::new(name.to_ascii_lowercase().as_bytes())?));
        let place = found.map_or_else(|| Arc::clone(front), at);
        steps.say(
            "name",
            match name {
                Some(name) if found.is_some() => format!("{name} leads to group {}", place.group),
                Some(name) => format!("no route is for {name}: group {}", place.group),
                None => format!("no name was said: group {}; other names may lead elsewhere", place.group),
            },
        );
        return Ok((Led::To(place), None));
    }
    let Some(http) = &front.http else {
        if query.request.is_some() {
            return Err(QueryError::Bad(format!("service {} reads no requests: it is not in HTTP mode", front.name)));
        }
        return Ok((Led::To(Arc::clone(front)), None));
    };
    let Some(request) = &query.request else {
        steps.say("request", "HTTP mode, and no request was said: what routes and filters do is left out");
        return Ok((Led::To(Arc::clone(front)), None));
    };
    let head = read(request, http.rules.config().head_bytes_max)?;
    let led = match http.rules.decide(&head, client, front.place) {
        Verdict::Serve(place) => {
            let place = at(place);
            steps.say("request", format!("{} {} leads to group {}", request.method, request.path, place.group));
            Led::To(place)
        }
        Verdict::Answer(status) => Led::Answered(format!("a route answers with {status}")),
        Verdict::BadRequest(reason) => Led::Answered(format!("it is a bad request: {}", reason.label())),
        Verdict::Deny(status) => Led::Answered(format!("a filter refuses it with {status}")),
        Verdict::Maintenance(_) => Led::Answered("the service is in maintenance".to_owned()),
        Verdict::Redirect { status, location } => Led::Answered(format!("it is led to {location} ({status})")),
    };
    if let Led::Answered(says) = &led {
        steps.say("request", says);
    }
    Ok((led, Some(head)))
}

/// A request as a client would send it.
fn read(request: &Request, head_bytes_max: u32) -> Result<RequestHead, QueryError> {
    let Request { method, host, path, headers } = request;
    let host = host.iter().map(|host| format!("Host: {host}"));
    let lines = std::iter::once(format!("{method} {path} HTTP/1.1")).chain(host).chain(headers.iter().cloned());
    let mut bytes = Vec::new();
    for line in lines {
        if line.chars().any(char::is_control) {
            return Err(QueryError::Bad("a request has no control characters".to_owned()));
        }
        bytes.extend_from_slice(line.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    let limits = HttpLimits { head_bytes_max, body_bytes_max: 0 };
    match RequestHead::read(&bytes, &limits) {
        Ok(Some((_, head))) => Ok(head),
        Ok(None) => Err(QueryError::Bad("that is no whole request".to_owned())),
        Err(reason) => Err(QueryError::Bad(format!("that is a bad request: {}", reason.label()))),
    }
}

/// What is remembered of the client.
fn remember(place: &Service, said: &Explanation, now: Now, query: &ExplainQuery, steps: &mut Steps) {
    let Some(rule) = &place.persistence else { return };
    let by: Vec<String> = rule.by.iter().map(by_word).collect();
    let by = by.join(", ");
    steps.say(
        "persistence",
        match &said.home {
            None => format!("by {by}: nothing is remembered of this client{}", unsaid(&rule.by, query)),
            Some(Home { server, expires, obstacles }) => {
                let name = place.target_of(*server).map_or("a server that is gone", |(_, target)| target.name.as_str());
                let left = match expires {
                    Some(expires) => format!("for {} s more", expires.ms_since(now) / 1_000),
                    None => "by a cookie".to_owned(),
                };
                let keeps = match obstacles.is_empty() {
                    true => String::new(),
                    false => format!("; but {}", sentences(obstacles)),
                };
                format!("by {by}: it is to come back to {name} ({left}){keeps}")
            }
        },
    );
}

fn by_word(by: &PersistBy) -> String {
    match by {
        PersistBy::FoundCookie(name) => format!("cookie {name}"),
        PersistBy::Header(name) => format!("header {name}"),
        PersistBy::InsertedCookie(_) => "a cookie of ours".to_owned(),
        PersistBy::SipCallId => "SIP call".to_owned(),
        PersistBy::Sni => "TLS name".to_owned(),
        PersistBy::SourceIp => "address".to_owned(),
        PersistBy::SuperHttp => "headers of its requests".to_owned(),
        PersistBy::SuperHttpAndSourceIp => "headers of its requests and address".to_owned(),
        PersistBy::TlsSessionId => "TLS session".to_owned(),
    }
}

/// What was not said, and the client might be known by.
fn unsaid(by: &[PersistBy], query: &ExplainQuery) -> &'static str {
    let of_requests = |by: &PersistBy| {
        matches!(
            by,
            PersistBy::FoundCookie(_)
                | PersistBy::Header(_)
                | PersistBy::InsertedCookie(_)
                | PersistBy::SuperHttp
                | PersistBy::SuperHttpAndSourceIp
        )
    };
    let unsaid = by.iter().any(|by| match by {
        PersistBy::SipCallId | PersistBy::TlsSessionId => true,
        PersistBy::Sni => query.name.is_none(),
        PersistBy::SourceIp => false,
        other => of_requests(other) && query.request.is_none(),
    });
    if unsaid { " by what was said of it here" } else { "" }
}

/// Where its source port would come from.
fn source(place: &Service, target: &Target, port: u16, steps: &mut Steps) {
    let ServiceSource::Pool(pool) = &place.source else {
        return steps.say(
            "source",
            match place.source {
                ServiceSource::Client => "the server sees the client's own address",
                _ => "the kernel chooses address and port",
            },
        );
    };
    let destination = target.lease_destination(place, target.destination(port));
    let fills: Vec<_> = pool.fill().filter(|fill| fill.destination == destination).collect();
    let (leased, capacity) =
        fills.iter().fold((0, 0), |(leased, all), fill| (leased + fill.leased, all + fill.capacity));
    let says = format!("{leased} of {capacity} source ports towards {destination} are leased");
    match capacity > 0 && leased >= capacity {
        true => steps.stop("source", says),
        false => steps.say("source", says),
    }
}

fn candidates(place: &Service, said: &Explanation) -> Vec<CandidateStatus> {
    let home = said.home.as_ref().map(|home| home.server);
    let chosen = said.outcome.ok().map(|pick| pick.target);
    let shown = |member: &Candidacy| {
        let target = place.target(member.target)?;
        Some(CandidateStatus {
            name: target.name.clone(),
            address: target.address,
            port: target.port,
            obstacles: member.obstacles.iter().map(sentence).collect(),
            connections: member.active,
            weight: target.weight,
            share_permille: member.share,
            slow_start_permille: member.ramp,
            below_minimum: member.is_below_minimum,
            home: home == Some(target.server),
            chosen: chosen == Some(member.target),
        })
    };
    said.members.iter().filter_map(shown).collect()
}

fn sentences(obstacles: &[Obstacle]) -> String {
    let all: Vec<String> = obstacles.iter().map(sentence).collect();
    all.join(", ")
}

fn sentence(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Draining => "it is in drain".to_owned(),
        Obstacle::Full(max) => format!("it has its {max} connections (max_connections)"),
        Obstacle::Gone => "it is no server of this group any more".to_owned(),
        Obstacle::Halted => "it is halted".to_owned(),
        Obstacle::Health(health, reason) => format!("it is {}: {reason}", health.label()),
        Obstacle::Maintenance => "its agent wants nobody".to_owned(),
        Obstacle::PortDown(port) => format!("its port {port} is down"),
        Obstacle::Standby => "it waits until others cannot serve".to_owned(),
        Obstacle::Weightless => "its weight is 0".to_owned(),
    }
}

fn refused(place: &Service, refusal: Refusal, waiting: usize) -> (String, String) {
    let says = match refusal {
        Refusal::NoServer => "no server is up, ready and of some weight",
        Refusal::ServersFull if waiting > 0 => "others wait before it",
        Refusal::ServersFull => "every server that is up is at max_connections",
        Refusal::ServiceFull => "the service is at its max_connections",
    };
    match &place.queue {
        Some(queue) if refusal != Refusal::NoServer && waiting < queue.max as usize => {
            ("queued".to_owned(), format!("waits for a place, for {} ms at most: {says}", queue.timeout_ms))
        }
        Some(_) if refusal != Refusal::NoServer => {
            ("refused".to_owned(), format!("is refused: {says}, and as many wait as may"))
        }
        _ => ("refused".to_owned(), format!("is refused: {says}")),
    }
}

fn status(
    snapshot: &Snapshot,
    front: &Service,
    place: &Service,
    client: IpAddr,
    port: u16,
    steps: Steps,
    servers: Vec<CandidateStatus>,
) -> ExplanationStatus {
    ExplanationStatus {
        generation: snapshot.generation.0,
        service: front.name.clone(),
        group: place.group.clone(),
        client,
        port,
        outcome: "refused".to_owned(),
        server: None,
        why: None,
        summary: String::new(),
        steps: steps.0,
        servers,
    }
}
