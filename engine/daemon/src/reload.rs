//! What a reload may change, by comparing two models; pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use towpath_config::model::{
    Control, ControlListen, Model, OutboundNat, Server, ServerGroup, Source, SourcePool, VirtualService, Workers,
};
use towpath_core::steering::VSHARDS;

use crate::engine::ReloadError;
use crate::packets::arms::Arm;
use crate::plan::{PacketsPlan, WORKERS_MAX};

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
/// Servers, their weights and admin states, health, balance, persistence, timeouts and connection limits of services can be
/// taken while running, the rules of the router, the networks of `[[outbound_nat]]`, and how many of the workers that were `started`, each on its CPU, take part. What listeners and allocations hang on cannot.
/// For `usable` see [`workers_wanted`].
pub fn needs_restart(old: &Model, new: &Model, started: &[usize], usable: &[usize]) -> Vec<String> {
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
    } = new;
    if workers_wanted(&runtime.workers, started, usable).is_none() {
        changed.push("runtime.workers".to_owned());
    }
    if runtime.poll != old.runtime.poll {
        changed.push("runtime.poll".to_owned());
    }
    if runtime.fast_path != old.runtime.fast_path {
        changed.push("runtime.fast_path".to_owned());
    }
    if limits != &old.limits {
        changed.push("limits".to_owned());
    }
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
    let ends_tls = |service: &&VirtualService| service.ended_tls().is_some();
    if let (None, Some(service)) = (old.services.iter().find(ends_tls), services.iter().find(ends_tls)) {
        changed.push(format!("tls.mode of service `{}` (the first that ends TLS)", service.name));
    }
    // The same of buffers for what HTTP mode makes; those for TLS would do.
    let needs_outgoing = |service: &&VirtualService| service.http.is_some() || ends_tls(service);
    if let (None, Some(service)) = (old.services.iter().find(needs_outgoing), services.iter().find(needs_outgoing))
        && service.http.is_some()
        && !ends_tls(&service)
    {
        changed.push(format!("http of service `{}` (the first in HTTP mode)", service.name));
    }
    let before = by_name(&old.services);
    let after = by_name(services);
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        changed.push(format!("service `{name}` (removed)"));
    }
    for service in services {
        match before.get(service.name.as_str()) {
            None => changed.push(format!("service `{}` (added)", service.name)),
            Some(old) => changed.extend(
                fixed_fields(old, service).into_iter().map(|field| format!("{field} of service `{}`", service.name)),
            ),
        }
    }
    changed
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
    } = new;
    let differences = [
        ("vip", *vip != old.vip),
        ("ports", *ports != old.ports),
        ("protocol", *protocol != old.protocol),
        ("plane", *plane != old.plane),
        ("forwarding", *forwarding != old.forwarding),
        ("source", !keeps_source(&old.source, source)),
        ("interface", *interface != old.interface),
    ];
    differences.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect()
}

/// Whether nothing is leased that was not claimed at the start. Servers may come and go on either side of an interface.
fn keeps_source(old: &Source, new: &Source) -> bool {
    match (old, new) {
        (Source::Pool(old), Source::Pool(new)) if !(old.towards.is_empty() && new.towards.is_empty()) => {
            let is_claimed = |address: &IpAddr| old.addresses.contains(address);
            let ports = |pool: &SourcePool| (pool.port_low, pool.port_high, pool.rest_ms);
            new.addresses.iter().all(is_claimed) && ports(old) == ports(new)
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

#[cfg(test)]
mod tests;
