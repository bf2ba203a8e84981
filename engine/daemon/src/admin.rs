//! Orders at run time, as they come by the control socket: `ready`, `drain`, `halt` and weights of servers, in a service or everywhere.
//!
//! What an order is about and what it means is decided in core (`towpath_core::admin`); here servers are found by their names, the next snapshot is
//! published, and who said what is told.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use towpath_config::model::{AdminState, Model};
use towpath_core::admin::{
    self, ADMIN_REASON_BYTES_MAX, Configured, DRAIN_MS_MAX, Drain, DrainEnd, Ended, GaveWayTo, GivenWay, Member, Order,
    Said, Then,
};
use towpath_core::compile::CompileError;
use towpath_core::loads::Loads;
use towpath_core::snapshot::{Service, Snapshot, Target};
use towpath_core::{Now, ServiceId, eligible};

use crate::events::{Event, EventKind, Tone};
use crate::house::{House, Truth};
use crate::shared::{Phase, Shared};
use crate::status::{HealthStatus, word};

/// Names that a refusal lists.
const NAMES_TOLD_MAX: usize = 8;

/// Which servers an order is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Name of the service; `None` = every one.
    pub(crate) service: Option<String>,
    /// Name, address or address and port of the server; `None` = every one.
    pub(crate) server: Option<String>,
}

/// What an order says beside its verb: the body of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrderBody {
    /// `drain`: over after so many milliseconds, whatever is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// `drain`: over when no more connections than this are left; 0 unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<u32>,
    /// `drain`: what follows; `halt` where there is a deadline, else `stay`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<ThenWord>,
    /// `weight`: the new weight, or `"configured"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<WeightBody>,
    /// Why, for status, events and the log.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Say what would change, and change nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// A new weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WeightBody {
    /// This one.
    Number(u16),
    /// The one of the configuration.
    Word(Configuration),
}

/// The word for what the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Configuration {
    /// As configured.
    Configured,
}

/// What becomes of a server whose drain is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThenWord {
    /// It is halted: what is left ends.
    Halt,
    /// It stays in drain: what is left goes on.
    Stay,
}

impl From<ThenWord> for Then {
    fn from(word: ThenWord) -> Then {
        match word {
            ThenWord::Halt => Then::Halt,
            ThenWord::Stay => Then::Stay,
        }
    }
}

impl From<Then> for ThenWord {
    fn from(then: Then) -> ThenWord {
        match then {
            Then::Halt => ThenWord::Halt,
            Then::Stay => ThenWord::Stay,
        }
    }
}

/// Why a drain is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainEndWord {
    /// Its deadline has passed.
    Deadline,
    /// Few enough connections were left.
    Until,
}

/// What a member is told to be: its admin state and weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// `ready`, `drain` or `halt`.
    pub admin: String,
    /// Share of new connections relative to the others.
    pub weight: u16,
}

/// What was said of a server at run time about taking connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminSaid {
    /// Since when the state holds, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Who said it last.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
    /// What the configuration says.
    pub configured: String,
    /// How far its drain is; `None` = it is none.
    pub drain: Option<DrainStatus>,
}

/// What was said of the weight of a server at run time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightSaid {
    /// When, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Who.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
    /// What the configuration says.
    pub configured: u16,
}

/// How far a drain is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Milliseconds until it is over whatever is left; `None` = it has no deadline.
    pub deadline_in_ms: Option<u64>,
    /// It is over when no more connections than this are left.
    pub until: u32,
    /// What follows.
    pub then: ThenWord,
    /// How it ended; `None` = it is under way.
    pub over: Option<DrainOverStatus>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainOverStatus {
    /// Why.
    pub why: DrainEndWord,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Connections that were left then, and were ended if the server was halted.
    pub left: u32,
}

/// One server of one service, as an operator acts on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Name of the service.
    pub service: String,
    /// Name of the server.
    pub server: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` = it keeps the port that the client addressed.
    pub port: Option<u16>,
    /// `ready`, `drain` or `halt`.
    pub admin: String,
    /// Its weight.
    pub weight: u16,
    /// What its health check says.
    pub health: HealthStatus,
    /// Whether it takes new clients.
    pub takes_new: bool,
    /// Whether it would if the others could not: a backup that waits.
    pub stands_by: bool,
    /// Connections and sessions of this service that it holds.
    pub connections: u32,
    /// What was said about its taking connections.
    pub admin_said: Option<AdminSaid>,
    /// What was said about its weight.
    pub weight_said: Option<WeightSaid>,
}

/// Servers that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersStatus {
    /// The generation of which this holds.
    pub generation: u64,
    /// In the order of the file.
    pub members: Vec<MemberStatus>,
}

/// What an order did to one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedMember {
    /// Name of the service.
    pub service: String,
    /// Name of the server.
    pub server: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` = it keeps the port that the client addressed.
    pub port: Option<u16>,
    /// What held before.
    pub before: Standing,
    /// What holds now.
    pub after: Standing,
    /// Connections and sessions of this service that it held when the order came.
    pub connections: u32,
}

/// What an order did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// The generation that it is in force with.
    pub generation: u64,
    /// Nothing was changed: this is what would be.
    pub dry_run: bool,
    /// The servers that it was about, in the order of the file.
    pub members: Vec<ChangedMember>,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

/// Why an order was not taken. Nothing has changed.
#[derive(Debug, Error)]
pub(crate) enum OrderError {
    #[error("{0}")]
    Bad(String),
    #[error("{0}")]
    Compile(#[from] CompileError),
    #[error("no server \"{server}\"{}; there {}", .service.as_ref().map(|name| format!(" in service \"{name}\"")).unwrap_or_default(), there(.known))]
    NoSuchServer { service: Option<String>, server: String, known: Vec<String> },
    #[error("no service \"{service}\"; there {}", there(.known))]
    NoSuchService { service: String, known: Vec<String> },
    #[error("the process is ending; what is said now would hold for nobody")]
    Stopping,
    #[error("another process takes over at this moment and would not hear of it; say it once more")]
    Upgrading,
}

fn there(known: &[String]) -> String {
    let mut known: Vec<&str> = known.iter().map(String::as_str).collect();
    known.dedup();
    match known.len() {
        0 => "is none".to_owned(),
        count if count > NAMES_TOLD_MAX => {
            format!("are {} and {} more", known[..NAMES_TOLD_MAX].join(", "), count - NAMES_TOLD_MAX)
        }
        _ => format!("are {}", known.join(", ")),
    }
}

/// An order that was taken, to be kept and waited for.
pub(crate) struct Taken {
    pub(crate) ordered: Ordered,
    /// What is to be written down; see [`crate::state_file`].
    pub(crate) version: u64,
}

/// Makes an order of a verb and what was said beside it.
pub(crate) fn order_of(verb: &str, body: &OrderBody) -> Result<Order, OrderError> {
    let bad = |message: String| Err(OrderError::Bad(message));
    let OrderBody { deadline_ms, until, then, weight, reason, dry_run: _ } = body;
    if reason.len() > ADMIN_REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        return bad(format!("`reason` has at most {ADMIN_REASON_BYTES_MAX} bytes and no control characters"));
    }
    let drains = [("deadline_ms", deadline_ms.is_some()), ("until", until.is_some()), ("then", then.is_some())];
    if let Some((key, _)) = drains.iter().find(|(_, is_said)| *is_said && verb != "drain") {
        return bad(format!("`{key}` is for `drain`, not for `{verb}`"));
    }
    if weight.is_some() && verb != "weight" {
        return bad(format!("`weight` is for `weight`, not for `{verb}`"));
    }
    match (verb, weight) {
        ("ready", _) => Ok(Order::Ready),
        ("halt", _) => Ok(Order::Halt),
        ("drain", _) => match deadline_ms {
            Some(ms) if *ms > DRAIN_MS_MAX => bad(format!("`deadline_ms` is at most {DRAIN_MS_MAX}, which is 30 days")),
            _ => {
                let usual = if deadline_ms.is_some() { Then::Halt } else { Then::Stay };
                let then = then.map_or(usual, Then::from);
                Ok(Order::Drain { deadline_ms: *deadline_ms, until: until.unwrap_or(0), then })
            }
        },
        ("weight", Some(WeightBody::Number(weight))) => Ok(Order::Weight(Some(*weight))),
        ("weight", Some(WeightBody::Word(Configuration::Configured))) => Ok(Order::Weight(None)),
        ("weight", None) => bad("`weight` is missing; say a number from 0 to 65535, or \"configured\"".to_owned()),
        _ => bad(format!("`{verb}` is no order")),
    }
}

impl House {
    /// Takes an order: afterwards it is published, and the workers take it over.
    pub(crate) fn order(&self, chosen: &Chosen, order: Order, said: Said, dry_run: bool) -> Result<Taken, OrderError> {
        if self.shared.phase() != Phase::Running {
            return Err(OrderError::Stopping);
        }
        let now = self.shared.now();
        let mut truth = self.truth();
        if self.upgrades.is_handing() {
            return Err(OrderError::Upgrading);
        }
        let snapshot = self.shared.snapshot();
        let members = truth.chosen(chosen)?;
        let mut words = truth.words().clone();
        for (member, _, configured) in &members {
            words.say(member, *configured, order, said.clone(), now);
        }
        let changed: Vec<ChangedMember> = members
            .iter()
            .map(|(member, server, configured)| ChangedMember {
                service: member.service.clone(),
                server: server.clone(),
                address: member.address,
                port: member.port,
                before: standing(truth.words().standing(member, *configured)),
                after: standing(words.standing(member, *configured)),
                connections: connections(&truth, &self.shared, member).unwrap_or(0),
            })
            .collect();
        let warnings = emptied(&snapshot, &truth, &members, |member, configured| words.standing(member, configured));
        let mut ordered = Ordered { generation: snapshot.generation.0, dry_run, members: changed, warnings };
        if dry_run {
            return Ok(Taken { ordered, version: 0 });
        }
        let next = truth.next_with(words, snapshot.generation, now)?;
        ordered.generation = next.snapshot.generation.0;
        for changed in &ordered.members {
            let event = order_event(changed, order, &said);
            let tone = if ordered.warnings.is_empty() { Tone::Info } else { Tone::Warn };
            truth.record(tone, event);
        }
        self.shared.publish(next);
        let version = truth.words_version();
        drop(truth);
        self.keeper.note(version);
        self.ordered.notify_one();
        Ok(Taken { ordered, version })
    }

    /// The servers that are chosen, as they are.
    pub(crate) fn members(&self, chosen: &Chosen) -> Result<MembersStatus, OrderError> {
        let snapshot = self.shared.snapshot();
        let now = self.shared.now();
        let truth = self.truth();
        let members = truth.chosen(chosen)?;
        let members = members
            .into_iter()
            .filter_map(|(member, server, configured)| {
                let target = targets_of(&snapshot, &truth, &member).next()?.1.clone();
                let standing = truth.words().standing(&member, configured);
                Some(MemberStatus {
                    connections: connections(&truth, &self.shared, &member).unwrap_or(0),
                    admin_said: admin_said(&truth, &member, now),
                    weight_said: weight_said(&truth, &member),
                    service: member.service,
                    server,
                    address: member.address,
                    port: member.port,
                    admin: word(&standing.admin),
                    weight: standing.weight,
                    health: HealthStatus::from(target.health),
                    takes_new: target.takes_new(),
                    stands_by: target.stands_by() || target.is_last_resort(),
                })
            })
            .collect();
        Ok(MembersStatus { generation: snapshot.generation.0, members })
    }

    /// Ends the drains that are over. Whether any is still under way; an error leaves all as they were.
    pub(crate) fn end_drains(&self) -> Result<bool, CompileError> {
        let shared = &self.shared;
        let mut truth = self.truth();
        if !truth.words().is_draining() {
            return Ok(false);
        }
        let is_running = match shared.phase() {
            Phase::Running => true,
            Phase::Draining => false,
            Phase::Ending => return Ok(true),
        };
        // Until all know, a worker may still give a draining server somebody new. And what the end of the process cuts is no drain that was over: while
        // it drains as a whole only deadlines count. The same where connections finish in the process before: how many of them a server has nobody says.
        let is_settled =
            is_running && shared.all_adopted(shared.generation()) && !self.upgrades.is_finishing_elsewhere();
        let mut words = truth.words().clone();
        let count = |member: &Member| if is_settled { connections(&truth, shared, member) } else { None };
        let now = shared.now();
        let ended = words.turn(now, unix_ms(), count);
        if ended.is_empty() {
            return Ok(true);
        }
        let next = truth.next_with(words, shared.generation(), now)?;
        truth.tell_ended(&ended);
        shared.publish(next);
        self.keeper.note(truth.words_version());
        Ok(truth.words().is_draining())
    }
}

impl Truth {
    /// The members that are chosen, each with its name, in the order of the file.
    fn chosen(&self, chosen: &Chosen) -> Result<Vec<(Member, String, Configured)>, OrderError> {
        let model = self.model();
        if let Some(service) = &chosen.service
            && model.services.iter().all(|known| known.name != *service)
        {
            let known = model.services.iter().map(|service| service.name.clone()).collect();
            return Err(OrderError::NoSuchService { service: service.clone(), known });
        }
        let of_service = |member: &Member| chosen.service.as_ref().is_none_or(|service| *service == member.service);
        let members: Vec<(Member, &str, Configured)> =
            admin::members(model).into_iter().filter(|(member, ..)| of_service(member)).collect();
        let found: Vec<_> = members
            .iter()
            .filter(|(member, name, _)| match chosen.server.as_deref() {
                Some(wanted) => is_named(member, name, wanted),
                // Who says sorry for all is no one of them.
                None => !is_sorry(model, member),
            })
            .map(|(member, name, configured)| (member.clone(), (*name).to_owned(), *configured))
            .collect();
        if found.is_empty() {
            let known: BTreeSet<String> = members.iter().map(|(_, name, _)| (*name).to_owned()).collect();
            return Err(OrderError::NoSuchServer {
                service: chosen.service.clone(),
                server: chosen.server.clone().unwrap_or_else(|| "*".to_owned()),
                known: known.into_iter().collect(),
            });
        }
        Ok(found)
    }

    /// Tells of drains that are over.
    pub(crate) fn tell_ended(&mut self, ended: &[Ended]) {
        let names = self.names_for(!ended.is_empty());
        for Ended { member, then, over } in ended {
            let (to, what) = match then {
                Then::Halt => ("halt", "were ended"),
                Then::Stay => ("drained", "go on"),
            };
            let reason = match (over.why, over.left) {
                (DrainEnd::Until, 0) => "no connection is left".to_owned(),
                (DrainEnd::Until, left) => format!("few enough connections are left: {left}, which {what}"),
                (DrainEnd::Deadline, 0) => "its deadline has passed".to_owned(),
                (DrainEnd::Deadline, left) => format!("its deadline has passed; {left} connections {what}"),
            };
            let cut = *then == Then::Halt && over.left > 0;
            let event = Event::now(EventKind::Drain, "drain", to, reason)
                .services(vec![member.service.clone()])
                .subject(subject_of(member, &names));
            self.record(if cut { Tone::Warn } else { Tone::Info }, event);
        }
    }

    /// Tells of words that gave way to the configuration.
    pub(crate) fn tell_given_way(&mut self, given_way: &[GivenWay]) {
        let names = self.names_for(!given_way.is_empty());
        for GivenWay { member, to } in given_way {
            let reason = match to {
                GaveWayTo::Configuration => {
                    "what was said at run time gives way to the configuration, which was changed"
                }
                GaveWayTo::Removal => {
                    "what was said at run time is forgotten: the configuration does not have it any more"
                }
            };
            let event = Event::now(EventKind::Admin, "", "as configured", reason)
                .services(vec![member.service.clone()])
                .subject(subject_of(member, &names));
            self.record(Tone::Info, event);
        }
    }

    /// What the members are called, if that is needed.
    fn names_for(&self, needed: bool) -> HashMap<Member, String> {
        let members = if needed { admin::members(self.model()) } else { Vec::new() };
        members.into_iter().map(|(member, name, _)| (member, name.to_owned())).collect()
    }
}

fn subject_of(member: &Member, names: &HashMap<Member, String>) -> String {
    let place = place(member.address, member.port);
    match names.get(member) {
        Some(name) => format!("server {name} ({place})"),
        None => format!("server {place}"),
    }
}

fn is_sorry(model: &Model, member: &Member) -> bool {
    let service = model.services.iter().find(|service| service.name == member.service);
    let sorry = service.and_then(|service| service.sorry.as_ref());
    sorry.is_some_and(|sorry| (sorry.address, sorry.port) == (member.address, member.port))
}

/// By its name, or by where it is.
fn is_named(member: &Member, name: &str, wanted: &str) -> bool {
    let by_address = wanted.parse::<IpAddr>().is_ok_and(|address| address == member.address);
    let by_socket = wanted
        .parse::<SocketAddr>()
        .is_ok_and(|socket| socket.ip() == member.address && Some(socket.port()) == member.port);
    name == wanted || by_address || by_socket
}

fn place(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

fn standing(standing: Configured) -> Standing {
    Standing { admin: word(&standing.admin), weight: standing.weight }
}

/// Connections and sessions that the member's service has on it; `None` = it is none yet.
fn connections(truth: &Truth, shared: &Shared, member: &Member) -> Option<u32> {
    let service = truth.registry().service(&member.service)?;
    let server = truth.registry().server(member.address, member.port)?;
    Some(shared.loads().active_of(service, server))
}

/// A member wherever its service has it: in its own group and behind its routes.
fn targets_of<'s>(
    snapshot: &'s Snapshot,
    truth: &Truth,
    member: &Member,
) -> impl Iterator<Item = (&'s Service, &'s Target)> {
    let service = truth.registry().service(&member.service);
    let server = truth.registry().server(member.address, member.port);
    snapshot
        .each_service()
        .filter(move |place| Some(place.id) == service)
        .filter_map(move |place| Some((&**place, place.target_of(server?)?.1)))
}

/// Which services somebody could reach and nobody could any more if what `then` says held.
fn emptied(
    snapshot: &Snapshot,
    truth: &Truth,
    members: &[(Member, String, Configured)],
    then: impl Fn(&Member, Configured) -> Configured,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut changed: HashMap<(ServiceId, IpAddr, Option<u16>), Configured> = HashMap::new();
    for (member, _, configured) in members {
        if let Some(service) = truth.registry().service(&member.service) {
            changed.insert((service, member.address, member.port), then(member, *configured));
        }
    }
    let thresholds: HashMap<&str, u8> =
        truth.model().services.iter().map(|service| (service.name.as_str(), service.panic_threshold)).collect();
    let serves = |target: &Target| target.takes_new() && !target.is_sorry();
    for place in snapshot.each_service().filter(|place| place.targets.iter().any(serves)) {
        let mut is_concerned = false;
        let mut targets = place.targets.clone();
        for target in &mut targets {
            if let Some(&Configured { admin, weight }) = changed.get(&(place.id, target.address, target.port)) {
                (target.admin, target.weight) = (admin, weight);
                if let Some(agent) = target.agent.and_then(|agent| truth.agent(agent)) {
                    agent.lay_over(target);
                }
                is_concerned = true;
            }
        }
        if !is_concerned {
            continue;
        }
        eligible::settle(&mut targets, thresholds.get(place.name.as_str()).copied().unwrap_or(0));
        if !targets.iter().any(serves) {
            let group = match place.place == place.id {
                true => String::new(),
                false => format!(", group {}", place.group),
            };
            let sorry = if targets.iter().any(Target::is_sorry) { "; they get the sorry server" } else { "" };
            warnings.push(format!("service {}{group}: no server takes new clients{sorry}", place.name));
        }
    }
    warnings
}

/// The audit line: what, before and after, who and why.
fn order_event(changed: &ChangedMember, order: Order, said: &Said) -> Event {
    let ChangedMember { service, server, address, port, before, after, connections } = changed;
    let by = match said.reason.is_empty() {
        true => format!("by {}", said.by),
        false => format!("by {}: {}", said.by, said.reason),
    };
    let (from, to, terms) = match order {
        Order::Weight(_) => (format!("weight {}", before.weight), format!("weight {}", after.weight), String::new()),
        Order::Drain { deadline_ms, until, then } => {
            let mut terms = format!("; {connections} connections are left");
            if let Some(ms) = deadline_ms {
                terms += &format!(", over after {} s at most", ms.div_ceil(1000));
            }
            if until > 0 {
                terms += &format!(", over at {until}");
            }
            if then == Then::Halt {
                terms += ", then halted";
            }
            (before.admin.clone(), after.admin.clone(), terms)
        }
        Order::Halt => {
            let terms = if *connections > 0 { format!("; {connections} connections are ended") } else { String::new() };
            (before.admin.clone(), after.admin.clone(), terms)
        }
        Order::Ready => (before.admin.clone(), after.admin.clone(), String::new()),
    };
    Event::now(EventKind::Admin, from, to, by + &terms)
        .services(vec![service.clone()])
        .subject(format!("server {server} ({})", place(*address, *port)))
}

/// What was said at run time about a member's taking connections.
pub(crate) fn admin_said(truth: &Truth, member: &Member, now: Now) -> Option<AdminSaid> {
    let said = truth.words().of(member)?.admin.as_ref()?;
    Some(AdminSaid {
        since_unix_ms: said.said.unix_ms,
        by: said.said.by.clone(),
        reason: said.said.reason.clone(),
        configured: word(&said.over),
        drain: said.drain.map(|drain| drain_status(&drain, now)),
    })
}

fn drain_status(drain: &Drain, now: Now) -> DrainStatus {
    DrainStatus {
        deadline_in_ms: drain.deadline.filter(|_| drain.over.is_none()).map(|deadline| deadline.ms_since(now)),
        until: drain.until,
        then: drain.then.into(),
        over: drain.over.map(|over| DrainOverStatus {
            why: match over.why {
                DrainEnd::Deadline => DrainEndWord::Deadline,
                DrainEnd::Until => DrainEndWord::Until,
            },
            unix_ms: over.unix_ms,
            left: over.left,
        }),
    }
}

/// The same about its weight.
pub(crate) fn weight_said(truth: &Truth, member: &Member) -> Option<WeightSaid> {
    let said = truth.words().of(member)?.weight.as_ref()?;
    Some(WeightSaid {
        since_unix_ms: said.said.unix_ms,
        by: said.said.by.clone(),
        reason: said.said.reason.clone(),
        configured: said.over,
    })
}

/// The word of an admin state, from what writes and reads it.
pub(crate) fn admin_of(word: &str) -> Option<AdminState> {
    match word {
        "ready" => Some(AdminState::Ready),
        "drain" => Some(AdminState::Drain),
        "halt" => Some(AdminState::Halt),
        _ => None,
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    crate::events::unix_ms()
}

#[cfg(test)]
mod tests;
