//! What a reload may change, by comparing two models; pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use towpath_config::model::{
    Control, ControlListen, Limits, Model, OutboundNat, Plane, Ports, Protocol, Server, ServerGroup, Source,
    SourcePool, VirtualService, Workers,
};
use towpath_core::steering::VSHARDS;

use crate::engine::ReloadError;
use crate::leaving::Leaving;
use crate::packets::arms::Arm;
use crate::packets::claims;
use crate::plan::{PacketsPlan, Plan, WORKERS_MAX};

/// What a process was started with, as far as a reload is bound by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started<'a> {
    /// The CPU of each worker.
    pub cpus: &'a [usize],
    /// Those that workers could have had, see [`workers_wanted`].
    pub usable: &'a [usize],
    /// What was allocated.
    pub room: Room,
    /// What of earlier models still has flows on the packet plane.
    pub(crate) leaving: &'a Leaving,
}

/// What was allocated for the stream plane; 0 = nothing, because no service needed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// TCP connections.
    pub connections: u32,
    /// UDP sessions.
    pub udp_sessions: u32,
    /// TLS handshakes.
    pub handshakes: u32,
    /// Whether there is a packet plane.
    pub packets: bool,
    /// Whether there are buffers and threads for TLS.
    pub tls: bool,
}

impl Room {
    /// What `plan` allocates.
    pub fn of(plan: &Plan) -> Room {
        Room {
            connections: plan.connections.max,
            udp_sessions: plan.udp_sessions.max,
            handshakes: plan.handshakes_max,
            packets: plan.packets.is_some(),
            tls: plan.record_buffers > 0,
        }
    }

    /// What is admitted by `plan` where so much was allocated.
    pub fn within(self, plan: &Plan) -> Room {
        let wanted = Room::of(plan);
        Room {
            connections: wanted.connections.min(self.connections),
            udp_sessions: wanted.udp_sessions.min(self.udp_sessions),
            handshakes: wanted.handshakes.min(self.handshakes),
            packets: self.packets,
            tls: self.tls,
        }
    }
}

/// What is bound at the start, of `[control]`; users, certificates and the page are taken.
fn control_bound(old: &Control, new: &Control) -> impl Iterator<Item = &'static str> {
    // Taken apart, so that a field that is added later must be judged here.
    let Control { socket, group, state_file, listen } = new;
    let address = |listen: &Option<ControlListen>| listen.as_ref().map(|listen| listen.address);
    let changed = [
        ("control.socket", socket != &old.socket),
        ("control.group", group != &old.group),
        // The one beside the socket goes with it.
        ("control.state_file", state_file != &old.state_file && socket == &old.socket),
        ("control.listen", address(listen) != address(&old.listen)),
    ];
    changed.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key)
}

/// Everything in `new` that takes a restart, each by name; empty = a reload can take it.
///
/// Services that come and go, where those of the stream plane are reached, more ports and addresses of those of the packet plane, servers, their weights
/// and admin states, health, balance, persistence, timeouts, the rules of the router, the networks of `[[outbound_nat]]`, limits up to what was allocated,
/// and how many of the workers take part can be taken while running. Allocations cannot, nor what would take addresses and ports from open flows.
pub(crate) fn needs_restart(old: &Model, new: &Model, started: &Started<'_>) -> Vec<String> {
    let mut changed = Vec::new();
    // Taken apart, so that a field that is added later must be judged here.
    let Model {
        runtime,
        limits,
        control,
        tls,
        // Opened anew at each reload.
        log: _,
        routes,
        router,
        outbound,
        interfaces,
        groups: _,
        services,
        bridges,
        // Whoever is told is told from now on.
        notify: _,
        // Another listener is opened, the old one closed.
        metrics: _,
    } = new;
    if workers_wanted(&runtime.workers, started.cpus, started.usable).is_none() {
        changed.push("runtime.workers".to_owned());
    }
    if runtime.poll != old.runtime.poll {
        changed.push("runtime.poll".to_owned());
    }
    if runtime.fast_path != old.runtime.fast_path {
        changed.push("runtime.fast_path".to_owned());
    }
    changed.extend(fixed_limits(&old.limits, limits, started.room));
    if routes != &old.routes {
        changed.push("route".to_owned());
    }
    // Rules and policy are taken.
    if router.enabled != old.router.enabled {
        changed.push("router.enabled".to_owned());
    }
    let leases = |nats: &[OutboundNat]| -> Vec<(String, Source)> {
        nats.iter().map(|nat| (nat.name.clone(), nat.source.clone())).collect()
    };
    // Who is translated towards whom is taken.
    if leases(outbound) != leases(&old.outbound) {
        changed.push("outbound_nat (added, removed, or of another source)".to_owned());
    }
    changed.extend(control_bound(&old.control, control).map(str::to_owned));
    if tls != &old.tls {
        changed.push("tls".to_owned());
    }
    if interfaces != &old.interfaces {
        changed.push("interface".to_owned());
    }
    if bridges != &old.bridges {
        changed.push("bridge".to_owned());
    }
    // Threads and buffers for handshakes are allocated at the start, where a service needs them.
    if !started.room.tls
        && let Some(service) = services.iter().find(|service| service.ended_tls().is_some())
    {
        changed.push(format!("tls.mode of service `{}` (the first that ends TLS)", service.name));
    }
    let before = by_name(&old.services);
    let is_packets = |service: &VirtualService| service.plane == Plane::Packet;
    for service in services {
        let name = &service.name;
        // Who leaves and comes back has flows that were opened by what it was.
        match before.get(name.as_str()).copied().or_else(|| started.leaving.find(name)) {
            None if is_packets(service) && !started.room.packets => {
                changed.push(format!("service `{name}` (the first on the packet plane)"));
            }
            Some(old) if is_packets(old) || is_packets(service) => changed
                .extend(fixed_fields(old, service).into_iter().map(|field| format!("{field} of service `{name}`"))),
            None | Some(_) => {}
        }
    }
    let served = started.leaving.with(old);
    changed.extend(
        changes_plane(&served.services, services)
            .into_iter()
            .map(|name| format!("service `{name}` (its address and port are those of one on the other plane)")),
    );
    if listens_amid_leases(&served, new) {
        changed.push("a port of the stream plane at an address that the packet plane leases from".to_owned());
    }
    let relays = |protocol: Protocol| {
        let over = |service: &&VirtualService| service.plane == Plane::Stream && service.protocol == protocol;
        services.iter().find(over)
    };
    for (protocol, room, word) in
        [(Protocol::Tcp, started.room.connections, "TCP"), (Protocol::Udp, started.room.udp_sessions, "UDP")]
    {
        if room == 0
            && let Some(service) = relays(protocol)
        {
            changed.push(format!("service `{}` (the first over {word} on the stream plane)", service.name));
        }
    }
    changed
}

/// Services of `new` that clients come to where they came to one of `old` on the other plane: the kernel would hear those of both, or of none.
fn changes_plane<'m>(old: &[VirtualService], new: &'m [VirtualService]) -> Vec<&'m str> {
    let meet = |one: &VirtualService, other: &VirtualService| match (&one.ports, &other.ports) {
        (Ports::List(one), Ports::List(other)) => one.iter().any(|port| other.contains(port)),
        (Ports::All, _) | (_, Ports::All) => true,
    };
    let reached = |service: &VirtualService| {
        (service.name.clone(), service.plane, service.vip, service.protocol, service.ports.clone())
    };
    let met = |service: &VirtualService| {
        // What the file has always had at one address of both planes stays as it is.
        if old.iter().any(|was| reached(was) == reached(service)) {
            return false;
        }
        let at = |old: &&VirtualService| (old.vip, old.protocol) == (service.vip, service.protocol);
        // By its own name it is told as a change of the plane.
        let others = old.iter().filter(|old| old.name != service.name && old.plane != service.plane);
        others.filter(at).any(|old| meet(old, service))
    };
    new.iter().filter(|service| met(service)).map(|service| service.name.as_str()).collect()
}

/// Whether a listener comes or goes amid ports that the packet plane leases, which are claimed around it.
fn listens_amid_leases(old: &Model, new: &Model) -> bool {
    let listeners = |model: &Model| -> BTreeSet<(Protocol, SocketAddr)> {
        let stream = model.services.iter().filter(|service| service.plane == Plane::Stream);
        stream.flat_map(|service| service.sockets().map(|socket| (service.protocol, socket))).collect()
    };
    let leases = |model: &Model, socket: &SocketAddr| {
        let pools = claims::services(model).filter_map(claims::pool);
        let mut pools = pools.chain(claims::outbound(model).map(|(_, pool)| pool));
        pools.any(|pool| {
            pool.addresses.contains(&socket.ip()) && (pool.port_low..=pool.port_high).contains(&socket.port())
        })
    };
    let (before, after) = (listeners(old), listeners(new));
    before.symmetric_difference(&after).any(|(_, socket)| leases(old, socket) || leases(new, socket))
}

/// The limits that differ and cannot be taken: memory is allocated at the start.
fn fixed_limits(old: &Limits, new: &Limits, room: Room) -> Vec<String> {
    let Limits {
        connections,
        udp_sessions,
        persistence_entries,
        buffers,
        tls_buffers,
        buffer_bytes,
        flows,
        fast_flows,
        handshakes,
        http2_streams,
        http2_window,
    } = new;
    let differences = [
        ("persistence_entries", *persistence_entries != old.persistence_entries),
        ("buffers", *buffers != old.buffers),
        ("tls_buffers", *tls_buffers != old.tls_buffers),
        ("buffer_bytes", *buffer_bytes != old.buffer_bytes),
        ("flows", *flows != old.flows),
        ("fast_flows", *fast_flows != old.fast_flows),
        ("http2_streams", *http2_streams != old.http2_streams),
        ("http2_window", *http2_window != old.http2_window),
    ];
    let fixed = differences.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| format!("limits.{key}"));
    let raised = [
        ("connections", *connections, old.connections, room.connections),
        ("udp_sessions", *udp_sessions, old.udp_sessions, room.udp_sessions),
        ("handshakes", Some(*handshakes), Some(old.handshakes), room.handshakes),
    ];
    let raised = raised.into_iter().filter(|(_, new, old, room)| new != old && new.is_some_and(|new| new > *room));
    fixed.chain(raised.map(|(key, .., room)| format!("limits.{key} (memory is allocated for {room})"))).collect()
}

/// How many of the workers that were `started`, each on its CPU, are to take part: the first ones. `None`: others are wanted.
///
/// By itself a start takes the CPUs that were `usable` then.
pub fn workers_wanted(wanted: &Workers, started: &[usize], usable: &[usize]) -> Option<usize> {
    match wanted {
        Workers::Auto => usable.iter().take(WORKERS_MAX).eq(started).then_some(started.len()),
        Workers::Cpus(cpus) => (!cpus.is_empty() && started.starts_with(cpus)).then_some(cpus.len()),
    }
}

/// Of the room of several workers' tables together, one part in so many stays free: clients fall to them by chance, and evenly only on average.
const UNEVEN_SHARE: u64 = 16;

/// Refuses so few workers that the flows which are open have no room in their tables.
pub fn check_room(packets: &PacketsPlan, flows: u64, workers: usize) -> Result<(), ReloadError> {
    // Virtual shards are owned whole: whose share is largest is full first.
    let vshards = VSHARDS as u64;
    let room = packets.flows_max_of(1) * vshards / vshards.div_ceil(workers.max(1) as u64);
    let flows_max = if workers > 1 { room - room / UNEVEN_SHARE } else { room };
    if flows > flows_max { Err(ReloadError::TooManyFlows { flows, workers, flows_max }) } else { Ok(()) }
}

/// Interfaces that are wanted beside those that the packet plane was started with.
pub fn newcomers<'a>(started: &[Arm], wanted: &'a [Arm]) -> impl Iterator<Item = &'a Arm> {
    wanted.iter().filter(|arm| started.iter().all(|known| known.name != arm.name))
}

/// Interfaces that a new configuration would lead to, each by name, beside those that the packet plane was started with.
pub fn new_interfaces(started: &[Arm], wanted: &[Arm]) -> Vec<String> {
    newcomers(started, wanted)
        .map(|arm| format!("interface {} (a server or next hop is reached by it)", arm.name))
        .collect()
}

/// The fields of one service that differ and cannot be taken.
fn fixed_fields(old: &VirtualService, new: &VirtualService) -> Vec<&'static str> {
    let VirtualService {
        name: _,
        vip,
        ports,
        protocol,
        plane,
        forwarding,
        source,
        interface,
        // These are taken.
        application: _,
        balance: _,
        persistence: _,
        idle_timeout_ms: _,
        connect_timeout_ms: _,
        drain_timeout_ms: _,
        redispatch: _,
        drop_on_failure: _,
        panic_threshold: _,
        slow_start_ms: _,
        next_hop: _,
        client_networks: _,
        max_connections: _,
        queue: _,
        overload: _,
        tls: _,
        http: _,
        proxy_protocol: _,
        proxy_from: _,
        log: _,
        group: _,
        sorry: _,
    } = new;
    let differences = [
        ("vip", *vip != old.vip),
        ("ports", !keeps_ports(&old.ports, ports)),
        ("protocol", *protocol != old.protocol),
        ("plane", *plane != old.plane),
        ("forwarding", *forwarding != old.forwarding),
        ("source", !keeps_source(&old.source, source)),
        ("interface", *interface != old.interface),
    ];
    differences.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect()
}

/// Whether every port of flows that are open stays one of the service.
fn keeps_ports(old: &Ports, new: &Ports) -> bool {
    match (old, new) {
        (Ports::List(old), Ports::List(new)) => old.iter().all(|port| new.contains(port)),
        (old, new) => old == new,
    }
}

/// Whether every address that flows have leased from stays one of the pool. Servers may come and go on either side of an interface.
fn keeps_source(old: &Source, new: &Source) -> bool {
    match (old, new) {
        (Source::Pool(old), Source::Pool(new)) => {
            let is_facing = |pool: &SourcePool| !pool.towards.is_empty();
            let stays = |address: &IpAddr| new.addresses.contains(address);
            let ports = |pool: &SourcePool| (pool.port_low, pool.port_high, pool.rest_ms);
            let keeps = is_facing(old) == is_facing(new) || old.addresses == new.addresses;
            keeps && old.addresses.iter().all(stays) && ports(old) == ports(new)
        }
        (old, new) => old == new,
    }
}

fn by_name(services: &[VirtualService]) -> BTreeMap<&str, &VirtualService> {
    services.iter().map(|service| (service.name.as_str(), service)).collect()
}

/// One thing about a member of a service that a reload changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberChange {
    pub(crate) service: String,
    pub(crate) server: String,
    pub(crate) change: Change,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Added,
    Admin { from: String, to: String },
    Removed,
    Weight { from: u16, to: u16 },
}

/// How the members of the services differ, for the event list. A member is known by address and port.
pub(crate) fn member_changes(old: &Model, new: &Model) -> Vec<MemberChange> {
    let before = by_name(&old.services);
    let mut changes = Vec::new();
    for service in &new.services {
        let Some(was) = before.get(service.name.as_str()) else { continue };
        let mut note = |server: &str, change| {
            let change = MemberChange { service: service.name.clone(), server: server.to_owned(), change };
            // A server of several groups of the service is told of once.
            if !changes.contains(&change) {
                changes.push(change);
            }
        };
        for (old_group, new_group) in groups_of_both((old, was), (new, service)) {
            let members = |group: Option<&ServerGroup>| group.map_or_else(Vec::new, |group| group.servers.clone());
            let (old_members, new_members) = (members(old_group), members(new_group));
            for server in &new_members {
                let Some(old_server) = member(&old_members, server.address, server.port) else {
                    note(&server.name, Change::Added);
                    continue;
                };
                if old_server.admin != server.admin {
                    let (from, to) = (crate::status::word(&old_server.admin), crate::status::word(&server.admin));
                    note(&server.name, Change::Admin { from, to });
                }
                if old_server.weight != server.weight {
                    note(&server.name, Change::Weight { from: old_server.weight, to: server.weight });
                }
            }
            for server in &old_members {
                if member(&new_members, server.address, server.port).is_none() {
                    note(&server.name, Change::Removed);
                }
            }
        }
    }
    changes
}

/// The groups of a service before and after: its own, and those behind its routes by their names.
fn groups_of_both<'m>(
    (old, was): (&'m Model, &VirtualService),
    (new, is): (&'m Model, &VirtualService),
) -> Vec<(Option<&'m ServerGroup>, Option<&'m ServerGroup>)> {
    let named = |model: &'m Model, service: &VirtualService, name: &str| {
        model.groups_of(service).skip(1).find(|group| group.name == name)
    };
    let mut pairs = vec![(old.groups.get(was.group), new.groups.get(is.group))];
    let mut seen: Vec<&str> = Vec::new();
    for group in old.groups_of(was).skip(1).chain(new.groups_of(is).skip(1)) {
        if !seen.contains(&group.name.as_str()) {
            seen.push(&group.name);
            pairs.push((named(old, was, &group.name), named(new, is, &group.name)));
        }
    }
    pairs
}

fn member(servers: &[Server], address: IpAddr, port: Option<u16>) -> Option<&Server> {
    servers.iter().find(|server| server.address == address && server.port == port)
}

pub mod changes;
pub(crate) mod read;

pub(crate) use changes::{ServiceChange, planned_changes, service_changes};

#[cfg(test)]
mod tests;
