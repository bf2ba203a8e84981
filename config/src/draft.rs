//! The decoded file in the words of the model, every value with its place: what the rules judge and the model is made of.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::decode::{At, PortSet, Section, Value};
use crate::diagnostic::{Report, Span};
use crate::model::{AdminState, Application, Balance, Forwarding, Plane, Protocol};

/// The whole file.
#[derive(Debug)]
pub(crate) struct Draft<'s> {
    pub(crate) root: &'s Section,
    pub(crate) groups: Vec<Group<'s>>,
    pub(crate) services: Vec<Service<'s>>,
}

#[derive(Debug)]
pub(crate) struct Group<'s> {
    pub(crate) section: &'s Section,
    pub(crate) name: Option<At<&'s str>>,
    pub(crate) servers: Vec<Server<'s>>,
}

#[derive(Debug)]
pub(crate) struct Server<'s> {
    pub(crate) section: &'s Section,
    pub(crate) name: Option<At<&'s str>>,
    pub(crate) address: Option<At<IpAddr>>,
    /// `None` = keeps the client's.
    pub(crate) port: Option<At<u16>>,
    pub(crate) weight: At<u16>,
    pub(crate) max_connections: At<u32>,
    pub(crate) admin: At<AdminState>,
}

#[derive(Debug)]
pub(crate) struct Service<'s> {
    pub(crate) section: &'s Section,
    pub(crate) name: Option<At<&'s str>>,
    pub(crate) vip: Option<At<IpAddr>>,
    pub(crate) ports: Option<DraftPorts<'s>>,
    pub(crate) protocol: Option<At<Protocol>>,
    pub(crate) plane: At<Plane>,
    /// As written; see [`Service::forwarding`].
    pub(crate) forwarding: Option<At<&'static str>>,
    pub(crate) application: Option<At<Application>>,
    pub(crate) persistence: Persists,
    pub(crate) idle_timeout_ms: At<u64>,
    pub(crate) source: DraftSource<'s>,
    pub(crate) tls_mode: At<&'static str>,
    pub(crate) http: Option<&'s Section>,
    pub(crate) members: Members<'s>,
    pub(crate) sorry: Option<Server<'s>>,
}

/// Where a service's servers are written.
#[derive(Debug)]
pub(crate) enum Members<'s> {
    /// Index into [`Draft::groups`].
    Group(usize),
    Own(Vec<Server<'s>>),
}

#[derive(Debug)]
pub(crate) enum DraftPorts<'s> {
    All(Span),
    Set(At<&'s PortSet>),
}

#[derive(Debug)]
pub(crate) enum DraftSource<'s> {
    Client(Span),
    /// A pool of the addresses of the interfaces.
    Facing(&'s Section),
    Interface(Option<Span>),
    Pool(&'s Section),
    /// Something was wrong with it, and told.
    Unknown,
    Vip(Span),
}

/// `persistence.by`
#[derive(Clone, Debug)]
pub(crate) enum Persists {
    /// Never empty.
    By(Vec<At<&'static str>>),
    None,
    /// Something was wrong with it, and told.
    Unknown,
}

impl Persists {
    /// The first of its kinds that `fits`.
    pub(crate) fn kind(&self, fits: impl Fn(&str) -> bool) -> Option<&At<&'static str>> {
        match self {
            Persists::By(kinds) => kinds.iter().find(|kind| fits(kind.value)),
            Persists::None | Persists::Unknown => None,
        }
    }
}

impl<'s> Draft<'s> {
    pub(crate) fn new(root: &'s Section, report: &mut Report) -> Self {
        let groups: Vec<Group<'s>> = root.tables("group").iter().map(Group::new).collect();
        let services = root.tables("service").iter().map(|section| Service::new(section, &groups, report)).collect();
        Draft { root, groups, services }
    }

    /// The servers behind a service.
    pub(crate) fn servers<'d>(&'d self, service: &'d Service<'s>) -> &'d [Server<'s>] {
        match &service.members {
            Members::Group(index) => &self.groups[*index].servers,
            Members::Own(servers) => servers,
        }
    }

    /// Those and its sorry server.
    pub(crate) fn servers_and_sorry<'d>(
        &'d self,
        service: &'d Service<'s>,
    ) -> impl Iterator<Item = &'d Server<'s>> + use<'d, 's> {
        self.servers(service).iter().chain(&service.sorry)
    }

    /// Those and the ones behind its routes, each group once.
    pub(crate) fn all_servers<'d>(&'d self, service: &'d Service<'s>) -> impl Iterator<Item = &'d Server<'s>> {
        let own = match &service.members {
            Members::Group(_) => &[][..],
            Members::Own(servers) => servers,
        };
        let grouped = self.all_groups(service).into_iter().flat_map(|group| &self.groups[group].servers);
        own.iter().chain(grouped).chain(&service.sorry)
    }

    /// The groups that a service names, its routes too, each once.
    pub(crate) fn all_groups(&self, service: &Service<'s>) -> BTreeSet<usize> {
        let routed = [service.section.table("tls"), service.http].into_iter().flatten();
        let routes = routed.flat_map(|table| table.tables("route"));
        let named = routes.filter_map(|route| route.text("group")).filter_map(|name| self.group(name.value));
        let own = match &service.members {
            Members::Group(group) => Some(*group),
            Members::Own(_) => None,
        };
        own.into_iter().chain(named).collect()
    }

    /// Index of the group of that name.
    pub(crate) fn group(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|group| group.name.as_ref().is_some_and(|own| own.value == name))
    }

    /// How servers of a service are judged: by its own `health`, else its group's.
    pub(crate) fn health(&self, service: &Service<'s>) -> Option<&'s Section> {
        match (&service.members, service.section.table("health")) {
            (Members::Group(index), None) => self.groups[*index].section.table("health"),
            (_, own) => own,
        }
    }
}

impl<'s> Group<'s> {
    fn new(section: &'s Section) -> Self {
        Group {
            section,
            name: section.text("name"),
            servers: section.tables("server").iter().map(Server::new).collect(),
        }
    }
}

impl<'s> Server<'s> {
    fn new(section: &'s Section) -> Self {
        let nothing = section.span.clone();
        Server {
            section,
            name: section.text("name"),
            address: section.address("address"),
            port: section.number("port"),
            weight: section.number("weight").unwrap_or_else(|| fallback(100, &nothing)),
            max_connections: section.number("max_connections").unwrap_or_else(|| fallback(0, &nothing)),
            admin: section
                .word("admin")
                .map(|word| {
                    word.map(|word| match word {
                        "drain" => AdminState::Drain,
                        "halt" => AdminState::Halt,
                        _ => AdminState::Ready,
                    })
                })
                .unwrap_or_else(|| fallback(AdminState::Ready, &nothing)),
        }
    }

    /// `sorry` of a service, which has no more keys than these.
    fn sorry(section: &'s Section) -> Self {
        let nothing = section.span.clone();
        Server {
            section,
            name: None,
            address: section.address("address"),
            port: section.number("port"),
            weight: fallback(1, &nothing),
            max_connections: fallback(0, &nothing),
            admin: fallback(AdminState::Ready, &nothing),
        }
    }

    /// For messages.
    pub(crate) fn title(&self) -> String {
        match (&self.name, &self.address) {
            (Some(name), _) => format!("\"{}\"", name.value),
            (None, Some(address)) => address.value.to_string(),
            (None, None) => "a server".to_owned(),
        }
    }
}

impl<'s> Service<'s> {
    fn new(section: &'s Section, groups: &[Group<'s>], report: &mut Report) -> Self {
        let protocol = section
            .word("protocol")
            .map(|word| word.map(|word| if word == "udp" { Protocol::Udp } else { Protocol::Tcp }));
        let nothing = section.span.clone();
        let idle_default = match &protocol {
            Some(At { value: Protocol::Udp, .. }) => 5 * 60_000,
            _ => 30 * 60_000,
        };
        Service {
            section,
            name: section.text("name"),
            vip: section.address("vip"),
            ports: section
                .word("ports")
                .map(|all| DraftPorts::All(all.span))
                .or_else(|| section.ports("ports").map(DraftPorts::Set)),
            plane: section
                .word("plane")
                .map(|word| word.map(|word| if word == "packet" { Plane::Packet } else { Plane::Stream }))
                .unwrap_or_else(|| fallback(Plane::Stream, &nothing)),
            forwarding: section.word("forwarding"),
            application: section
                .word("application")
                .and_then(|word| Some(At { value: application(word.value)?, span: word.span, written: word.written })),
            persistence: persists(section),
            idle_timeout_ms: section.duration("idle_timeout").unwrap_or_else(|| fallback(idle_default, &nothing)),
            source: source(section),
            tls_mode: section
                .table("tls")
                .and_then(|tls| tls.word("mode"))
                .unwrap_or_else(|| fallback("pass-through", &nothing)),
            http: section.table("http"),
            members: members(section, groups, report),
            sorry: section.table("sorry").map(Server::sorry),
            protocol,
        }
    }

    /// For messages.
    pub(crate) fn title(&self) -> String {
        match (&self.name, &self.vip) {
            (Some(name), _) => format!("\"{}\"", name.value),
            (None, Some(vip)) => format!("on {}", vip.value),
            (None, None) => "without a name".to_owned(),
        }
    }

    pub(crate) fn is(&self, protocol: Protocol) -> bool {
        self.protocol.as_ref().is_some_and(|own| own.value == protocol)
    }

    /// The place that names `port`.
    pub(crate) fn port(&self, port: u16) -> Option<&Span> {
        match self.ports.as_ref()? {
            DraftPorts::All(span) => Some(span),
            DraftPorts::Set(ports) => ports.value.place(port),
        }
    }

    /// The first of `ports` that the service has, with its place; an all-ports service names none.
    pub(crate) fn first_of(&self, ports: impl IntoIterator<Item = u16>) -> Option<(u16, &Span)> {
        match self.ports.as_ref()? {
            DraftPorts::All(_) => None,
            DraftPorts::Set(set) => ports.into_iter().find_map(|port| set.value.place(port).map(|span| (port, span))),
        }
    }

    /// How its packets are rewritten; full-NAT unless the packet plane was told otherwise.
    pub(crate) fn forwarding(&self) -> Forwarding {
        match &self.forwarding {
            Some(At { value: "dsr", .. }) if self.plane.value == Plane::Packet => Forwarding::Dsr,
            Some(At { value: "half-nat", .. }) if self.plane.value == Plane::Packet => Forwarding::HalfNat,
            _ => Forwarding::FullNat,
        }
    }

    /// Whether real servers see the client's own address.
    pub(crate) fn keeps_client(&self) -> bool {
        self.forwarding() != Forwarding::FullNat
    }

    /// Whether ports are leased for it.
    pub(crate) fn leases(&self) -> bool {
        matches!(self.source, DraftSource::Facing(_) | DraftSource::Pool(_) | DraftSource::Vip(_))
    }

    /// How a server is chosen: the service's word, else its group's.
    pub(crate) fn balance(&self, groups: &[Group<'s>]) -> Balance {
        let group = match &self.members {
            Members::Group(index) => groups[*index].section.word("balance"),
            Members::Own(_) => None,
        };
        self.section.word("balance").or(group).map_or(Balance::WeightedLeastConnections, |word| balance(word.value))
    }
}

impl<T> At<T> {
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> At<U> {
        At { value: f(self.value), span: self.span, written: self.written }
    }
}

/// What stands in for a value that was wrong or not written.
fn fallback<T>(value: T, span: &Span) -> At<T> {
    At { value, span: span.clone(), written: false }
}

fn members<'s>(section: &'s Section, groups: &[Group<'s>], report: &mut Report) -> Members<'s> {
    let own = section.written("server");
    let Some(group) = section.text("group") else {
        let answers_alone = section.table("http").is_some_and(answers_alone);
        if own.is_none()
            && !answers_alone
            && !section.broken.contains(&"group")
            && !section.broken.contains(&"server")
            && !report.incomplete
        {
            report
                .error("missing-key", &section.span, "the service has no servers")
                .hint("add `[[service.server]]` below it, or `group = \"...\"` with the name of a `[[group]]`");
        }
        return Members::Own(section.tables("server").iter().map(Server::new).collect());
    };
    if let Some(own) = own {
        report
            .error("conflicting-keys", &group.span, "the service names a group and has servers of its own")
            .label(own, "its own servers")
            .hint("put the servers into the group, or remove `group`");
    }
    let found =
        groups.iter().position(|candidate| candidate.name.as_ref().is_some_and(|name| name.value == group.value));
    if let Some(index) = found {
        return Members::Group(index);
    }
    if !report.incomplete {
        let known = || groups.iter().filter_map(|group| group.name.as_ref()).map(|name| name.value);
        let hint = match crate::decode::nearest_name(group.value, known(), report) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None if known().next().is_none() => "the file has no `[[group]]`; add one".to_owned(),
            None => "add a `[[group]]` of that name".to_owned(),
        };
        report.error("unknown-group", &group.span, format!("no group is named \"{}\"", group.value)).hint(hint);
    }
    Members::Own(section.tables("server").iter().map(Server::new).collect())
}

/// Whether every request is answered or redirected here, so that there need be no server.
pub(crate) fn answers_alone(http: &Section) -> bool {
    let conditions = ["host", "path", "path_exact", "path_regex", "method", "header", "header_regex", "from"];
    let fits_all = |route: &Section| conditions.iter().all(|key| route.written(key).is_none());
    let routes = http.tables("route");
    http.bool("redirect_to_https").is_some_and(|redirects| redirects.value)
        || routes.iter().all(|route| route.written("group").is_none()) && routes.iter().any(fits_all)
}

/// The persistence of a service or route.
pub(crate) fn persists(section: &Section) -> Persists {
    match section.table("persistence") {
        None if section.broken.contains(&"persistence") => Persists::Unknown,
        None => Persists::None,
        Some(persistence) => match kinds(persistence) {
            kinds if kinds.is_empty() => Persists::Unknown,
            kinds if kinds.iter().all(|kind| kind.value == "none") => Persists::None,
            kinds => Persists::By(kinds),
        },
    }
}

/// What makes a client, in the order of the file; empty where that is broken.
pub(crate) fn kinds(persistence: &Section) -> Vec<At<&'static str>> {
    let list = persistence.list("by").map_or(&[][..], |list| list.value);
    let word = |item: &At<Value>| match item.value {
        Value::Word(word) => Some(At { value: word, span: item.span.clone(), written: true }),
        _ => None,
    };
    persistence.word("by").into_iter().chain(list.iter().filter_map(word)).collect()
}

fn source(section: &Section) -> DraftSource<'_> {
    let Some(entry) = section.entry("source") else {
        return DraftSource::Unknown;
    };
    match &entry.value {
        Value::Word("client") => DraftSource::Client(entry.at.clone()),
        Value::Word("interface") => DraftSource::Interface(entry.written.then(|| entry.at.clone())),
        Value::Word("vip") => DraftSource::Vip(entry.at.clone()),
        Value::Table(pool) if pool.word("pool").is_some() => DraftSource::Facing(pool),
        Value::Table(pool) => DraftSource::Pool(pool),
        _ => DraftSource::Unknown,
    }
}

fn application(word: &str) -> Option<Application> {
    Some(match word {
        "exchange-2010" => Application::Exchange2010,
        "exchange-2013" => Application::Exchange2013,
        "ldap" => Application::Ldap,
        "lync-2010" => Application::Lync2010,
        "lync-2013" => Application::Lync2013,
        "ocs-2007r2" => Application::Ocs2007R2,
        "radius" => Application::Radius,
        "sharepoint" => Application::Sharepoint,
        "smtp" => Application::Smtp,
        _ => return None,
    })
}

/// What is not available yet is carried out as the default; `run` refuses it before.
pub(crate) fn balance(word: &str) -> Balance {
    match word {
        "least-connections" => Balance::LeastConnections,
        "maglev" => Balance::Maglev,
        "random-of-two" => Balance::RandomOfTwo,
        "round-robin" => Balance::RoundRobin,
        "source-hash" => Balance::SourceHash,
        "weighted-round-robin" => Balance::WeightedRoundRobin,
        _ => Balance::WeightedLeastConnections,
    }
}
