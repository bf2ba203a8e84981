//! The checked model: what one configuration file means, with every default filled in and every name resolved.
//!
//! A `Model` exists only when the file had no errors. Durations are whole milliseconds (`*_ms`), limits of 0 mean "no limit".

mod control;
mod group;
mod health;
mod http;
mod log;
mod metrics;
mod network;
mod notify;
mod persistence;
mod proxy;
mod runtime;
mod service;
mod tls;

use serde::Serialize;

pub use control::{
    Control, ControlGroup, ControlListen, ControlRole, ControlUser, PASSWORD_ROUNDS, Page, PasswordHash, TokenHash,
};
pub use group::{AdminState, SORRY_NAME, Server, ServerGroup};
pub use health::{
    Agent, Carrier, CheckKind, CheckTransport, CommandLine, Damping, DnsCheck, DnsType, Evict, Health, HttpCheck,
    LdapBind, LdapCheck, MessageAuthenticator, PROBE_PORTS, Passive, RCODES, RadiusAnswer, RadiusCheck, SipCheck,
    TlsCheck, UdpCheck,
};
pub use http::{
    BalanceEach, Change, FilterAction, Forwarded, HeaderChange, HeaderMatch, Hsts, Http, HttpFilter, HttpRoute,
    Maintenance, MaintenanceWhen, ParameterMatch, PathMatch, RequestMatch, Reuse, Rewrite, RouteClients, RouteGroup,
    RouteSettings, RouteTo, Way,
};
pub use log::{Log, LogFormat, LogLevel, LogTo, Logged, LoggedQuery, OwnFormat, OwnLog, Syslog, SyslogTransport};
pub use metrics::Metrics;
pub use network::{Bridge, Interface, OutboundNat, Router, RouterRule, RuleAction, RuleProtocol, StaticRoute, Vlan};
pub use notify::{EventKind, Notify, Webhook};
pub use persistence::{CookieSet, InsertedCookie, PersistBy, Persistence};
pub use proxy::{ProxyFrom, ProxyOthers, ProxyTo, ProxyVersion};
pub use runtime::{FastPath, Limits, MachineRole, Poll, Runtime, Workers};
pub use service::{
    Application, Balance, FacingPorts, FirstBytes, Forwarding, Overload, Plane, Ports, Protocol, Queue, Source,
    SourcePool, VirtualService,
};
pub use tls::{
    CertificateFiles, CipherPolicy, ClientAuthorities, ClientCertificate, EndedTls, HandshakeThreads, PassThrough,
    Resumption, ServerTls, ServiceTls, TlsPool, TlsProvider, TlsRoute, TlsVersion, VerifyServer,
};

/// One configuration file, checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Workers and how they wait.
    pub runtime: Runtime,
    /// Upper bounds of everything that is allocated.
    pub limits: Limits,
    /// Where the daemon answers `towpath status`.
    pub control: Control,
    /// TLS of the whole process.
    pub tls: TlsPool,
    /// Who collects metrics beside the control socket.
    pub metrics: Metrics,
    /// What is written down.
    pub log: Log,
    /// Who is told when a state changes; `None` = nobody.
    pub notify: Option<Notify>,
    /// Static routes of the packet plane, beside the kernel's.
    pub routes: Vec<StaticRoute>,
    /// Whether packets that belong to no service are forwarded, and which.
    pub router: Router,
    /// What hosts inside open themselves and that leaves from an address of ours; the first that fits counts.
    pub outbound: Vec<OutboundNat>,
    /// Interfaces of the packet plane that the file names.
    pub interfaces: Vec<Interface>,
    /// Server groups; a service names one by its index. Servers written inside a service are an anonymous group.
    pub groups: Vec<ServerGroup>,
    /// Virtual services in the order of the file; none only with [`Router::enabled`] or bridges.
    pub services: Vec<VirtualService>,
    /// Pairs of links that frames pass between.
    pub bridges: Vec<Bridge>,
}

impl Model {
    /// Every group of servers that a service has: its own first, then those behind its routes.
    pub fn groups_of(&self, service: &VirtualService) -> impl Iterator<Item = &ServerGroup> {
        self.group_indices_of(service).map(|index| &self.groups[index])
    }

    /// Every server that clients of a service may meet: those of its groups, and who says sorry for them.
    pub fn servers_of<'m>(&'m self, service: &'m VirtualService) -> impl Iterator<Item = &'m Server> {
        self.groups_of(service).flat_map(|group| &group.servers).chain(&service.sorry)
    }

    /// Every server of the file; one that several services have as often as it is written.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        let sorry = self.services.iter().filter_map(|service| service.sorry.as_ref());
        self.groups.iter().flat_map(|group| &group.servers).chain(sorry)
    }

    /// The groups of [`Model::groups_of`] as indices into [`Model::groups`].
    pub fn group_indices_of(&self, service: &VirtualService) -> impl Iterator<Item = usize> {
        let by_name = service.routes().iter().map(|route| route.group);
        let behind: Vec<usize> = by_name.chain(service.http_groups().map(|(_, group)| group.group)).collect();
        std::iter::once(service.group).chain(behind)
    }

    /// Every VLAN, with the link that it is on.
    pub fn vlans(&self) -> impl Iterator<Item = (&Interface, &Vlan)> {
        self.interfaces.iter().flat_map(|interface| interface.vlans.iter().map(move |vlan| (interface, vlan)))
    }
}
