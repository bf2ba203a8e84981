//! Whether this machine can carry this configuration (design.md 10.2): one function for `check --host`, `run` and reload.

mod certificates;
mod check;
mod listeners;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Serialize;
use towpath_config::model::{
    CheckKind, Forwarding, MachineRole, Model, PROBE_PORTS, Plane, Server, Source, SourcePool, VirtualService,
};
use towpath_core::steering::SteeringTable;
use towpath_sys::neighbour::{LinkAddress, Neighbours, Tables};
use towpath_sys::silence::Silence;
use towpath_sys::{host, socket};

use crate::listen::not_on_this_host;
use crate::packets::arms::{self, Arm, NoWay, holds};
use crate::packets::fast::Readiness;
use crate::packets::{claims, facing, routes, steering};
use crate::plan::{Plan, PlanInput};

use crate::command;
use crate::control;
use crate::http_files::{self, FileFault};
use crate::notify;
use crate::probe::secrets;
pub use certificates::{Certificates, ReadIdentity};
pub use check::Check;
pub use listeners::Listener;

/// Oldest kernel that is supported (design.md 10.10): that of Debian 12.
pub const KERNEL_FLOOR: (u32, u32) = (6, 1);

/// Numbers of CAP_NET_ADMIN and CAP_NET_RAW (include/uapi/linux/capability.h).
const PACKET_CAPABILITIES: [u32; 2] = [12, 13];

/// What switches the kernel's own forwarding on every interface, IPv4 and IPv6.
const FORWARDING_KEYS: [&str; 2] = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It runs, but probably not as meant.
    Warning,
    /// It does not start.
    Error,
}

/// Something about the machine that does not fit the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at.
    pub check: Check,
    /// The service that it is about; `None` = the whole process.
    pub service: Option<String>,
    /// Cause and next step.
    pub message: String,
    /// The file that it is about, where that is one which the configuration names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// What preflight needs to know about the machine.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// Addresses of the configuration that a socket can be bound to here.
    pub usable: BTreeSet<IpAddr>,
    /// Addresses that the kernel picks as source of its own connections.
    pub kernel_sources: BTreeSet<IpAddr>,
    /// CPUs that the process may use, ascending.
    pub cpus: Vec<usize>,
    /// Descriptors that the process may hold.
    pub nofile: u64,
    /// Ports that the kernel gives to its own connections.
    pub local_ports: RangeInclusive<u16>,
    /// Ports of that range that the kernel leaves alone (`ip_local_reserved_ports`).
    pub reserved_ports: Vec<RangeInclusive<u16>>,
    /// Memory that new work can take.
    pub memory_bytes: u64,
    /// Release of the kernel, as in `6.1.0-25-amd64`.
    pub kernel_release: String,
    /// What the packet plane needs to know; `None` where it carries nothing.
    pub packets: Option<PacketFacts>,
    /// The certificates that services and `control.listen` name.
    pub certificates: Certificates,
    /// What is wrong with secrets and pages that HTTP mode names, with programs and secrets of checks and messages, and with what users of `control.listen`
    /// are known by.
    pub files: Vec<FileFault>,
}

/// What preflight needs to know for the packet plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketFacts {
    /// Links, addresses, routes.
    pub tables: Tables,
    /// The interfaces that lead to our addresses and servers.
    pub arms: Vec<Arm>,
    /// What leads nowhere.
    pub missing: Vec<NoWay>,
    /// Whether the process has CAP_NET_ADMIN and CAP_NET_RAW.
    pub is_capable: bool,
    /// Whether the kernel can carry flows onwards.
    pub fast_path: Readiness,
    /// The keys of sysctl(8) that have the kernel forward between its interfaces, be it from one of ours only; IPv4 and IPv6.
    pub kernel_forwards: [Vec<String>; 2],
    /// Who listens on this host.
    pub listeners: BTreeSet<Listener>,
}

impl PacketFacts {
    fn gather(model: &Model) -> io::Result<PacketFacts> {
        let mut view = Neighbours::open()?;
        let tables = view.tables()?;
        let (links, missing) = arms::choose(model, &tables);
        let arms = arms::describe(&links);
        let forwards = |family: &str, name: &str| {
            let path = format!("/proc/sys/net/{family}/conf/{name}/forwarding");
            fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
        };
        Ok(PacketFacts {
            kernel_forwards: forwarding_keys(&arms, forwards),
            arms,
            missing,
            fast_path: Readiness::find_out(model),
            is_capable: is_capable(&fs::read_to_string("/proc/thread-self/status")?),
            listeners: listeners::listeners(),
            tables,
        })
    }
}

/// The keys that are set, where `forwards` says whether a family (`ipv4`, `ipv6`) is forwarded from an interface, or from `all`: that of all
/// interfaces stands for those of each, which it sets when it changes.
fn forwarding_keys(arms: &[Arm], forwards: impl Fn(&str, &str) -> bool) -> [Vec<String>; 2] {
    let keys = |family: &str, everywhere: &str| {
        if forwards(family, "all") {
            return vec![everywhere.to_owned()];
        }
        let single = arms.iter().filter(|arm| forwards(family, &arm.name));
        // In a key a dot of a name is written as a slash (sysctl.d(5)).
        single.map(|arm| format!("net.{family}.conf.{}.forwarding", arm.name.replace('.', "/"))).collect()
    };
    let [v4, v6] = FORWARDING_KEYS;
    [keys("ipv4", v4), keys("ipv6", v6)]
}

impl HostFacts {
    /// Asks the machine, in the network namespace of the calling thread. `model` says which addresses matter.
    ///
    /// Nothing is sent and nothing is changed.
    pub fn gather(model: &Model) -> io::Result<HostFacts> {
        let usable = model_addresses(model).into_iter().filter(|&ip| can_bind(ip)).collect();
        Ok(HostFacts {
            usable,
            kernel_sources: kernel_sources(model)?,
            cpus: host::available_cpus()?,
            nofile: host::nofile_limit()?.hard,
            local_ports: host::ip_local_port_range()?,
            reserved_ports: reserved_ports(),
            memory_bytes: memory_bytes()?,
            kernel_release: host::kernel_release()?,
            packets: claims::carries_packets(model).then(|| PacketFacts::gather(model)).transpose()?,
            certificates: Certificates::gather(model),
            files: [
                http_files::faults(model),
                command::faults(model),
                secrets::faults(model),
                notify::faults(model),
                control::faults(model),
            ]
            .concat(),
        })
    }
}

/// Everything that keeps this configuration from running as meant on this machine; errors first.
pub fn preflight(model: &Model, facts: &HostFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    check_kernel(facts, &mut findings);
    for service in &model.services {
        // Those of two machines move between them.
        match model.runtime.role {
            None => check_addresses(service, Severity::Error, facts, &mut findings),
            Some(MachineRole::Active) => check_addresses(service, Severity::Warning, facts, &mut findings),
            Some(MachineRole::Standby) => {}
        }
        if let Source::Pool(pool) = &service.source {
            check_pool_ports(Some(service), "source address", pool, facts, &mut findings);
        }
    }
    for (nat, pool) in claims::outbound(model) {
        check_pool_ports(None, &format!("outbound_nat `{}`: source address", nat.name), pool, facts, &mut findings);
    }
    check_both_planes(model, &mut findings);
    facts.certificates.check(model, &mut findings);
    findings.extend(facts.files.iter().map(|fault| Finding {
        severity: Severity::Error,
        check: Check::Files,
        service: fault.service.clone(),
        message: fault.message.clone(),
        file: Some(fault.file.clone()),
    }));
    if let Some(packets) = &facts.packets {
        check_packets(model, packets, facts.cpus.len(), &mut findings);
        check_listeners(model, packets, &facts.kernel_sources, &mut findings);
        check_bridges(model, &packets.tables, &mut findings);
        check_router(model, packets, &mut findings);
        check_probe_ways(model, packets, &mut findings);
        check_probe_ports(model, packets, facts, &mut findings);
        check_interfaces(model, &packets.tables, &mut findings);
    }
    match Plan::new(model, &PlanInput::of(facts)) {
        Ok(plan) => findings.extend(plan.warnings().into_iter().map(|message| Finding {
            severity: Severity::Warning,
            check: Check::Limits,
            service: None,
            message,
            file: None,
        })),
        Err(errors) => findings.extend(errors.0.into_iter().map(|error| Finding {
            severity: Severity::Error,
            check: Check::Limits,
            service: None,
            message: error.to_string(),
            file: None,
        })),
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// [`HostFacts::gather`] and [`preflight`] in one.
pub fn check_host(model: &Model) -> io::Result<Vec<Finding>> {
    let model = &facing::resolve(model.clone(), None);
    Ok(preflight(model, &HostFacts::gather(model)?))
}

fn check_kernel(facts: &HostFacts, findings: &mut Vec<Finding>) {
    let (floor_major, floor_minor) = KERNEL_FLOOR;
    // A release that nobody can read is no reason to refuse: what is missing shows when the rings are made.
    if kernel_version(&facts.kernel_release).is_some_and(|version| version < KERNEL_FLOOR) {
        findings.push(Finding {
            severity: Severity::Error,
            check: Check::Kernel,
            service: None,
            message: format!(
                "kernel {} is older than {floor_major}.{floor_minor}, which Towpath needs; upgrade the kernel (Debian 12 has 6.1)",
                facts.kernel_release
            ),
            file: None,
        });
    }
}

fn check_addresses(service: &VirtualService, severity: Severity, facts: &HostFacts, findings: &mut Vec<Finding>) {
    // On the packet plane addresses belong to Towpath; the kernel may have them as well.
    if service.plane == Plane::Packet {
        return;
    }
    if !facts.usable.contains(&service.vip) {
        findings.push(Finding {
            severity,
            check: Check::Addresses,
            service: Some(service.name.clone()),
            message: not_on_this_host(service.vip),
            file: None,
        });
    }
    let Source::Pool(pool) = &service.source else { return };
    for &ip in pool.addresses.iter().filter(|&&ip| ip != service.vip && !facts.usable.contains(&ip)) {
        let prefix = if ip.is_ipv4() { 32 } else { 128 };
        findings.push(Finding {
            severity,
            check: Check::Addresses,
            service: Some(service.name.clone()),
            message: format!(
                "source address {ip} is not an address of this host; add it (`ip address add {ip}/{prefix} dev …`), \
                 or take it out of source.pool"
            ),
            file: None,
        });
    }
}

/// What only the packet plane asks of the machine.
fn check_packets(model: &Model, facts: &PacketFacts, cpus: usize, findings: &mut Vec<Finding>) {
    let mut tell = |severity, check, service: Option<&VirtualService>, message: String| {
        findings.push(Finding {
            severity,
            check,
            service: service.map(|service| service.name.clone()),
            message,
            file: None,
        });
    };
    if !facts.is_capable {
        tell(
            Severity::Error,
            Check::Capabilities,
            None,
            "plane = \"packet\" needs CAP_NET_RAW and CAP_NET_ADMIN; run as root, or give them in the systemd unit \
             (`AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN CAP_BPF`; the last one is for the fast path only)"
                .to_owned(),
        );
    }
    for way in &facts.missing {
        tell(Severity::Error, Check::Routes, None, way.message());
    }
    // Their number does not matter: a table of any size has the same number of instructions.
    if let Err(error) = steering::program(model, &SteeringTable::even(cpus.clamp(2, 256)), 0) {
        tell(Severity::Error, Check::Steering, None, error.to_string());
    }
    let claimed = claims::claims(model, &facts.tables.addresses).len();
    if claimed > Silence::CLAIMS_MAX {
        tell(
            Severity::Error,
            Check::Steering,
            None,
            format!(
                "the packet plane's services have {claimed} separate ranges of ports, the kernel can be kept silent for {}; use ranges of \
                 neighbouring ports, or fewer addresses",
                Silence::CLAIMS_MAX
            ),
        );
    }
    for service in claims::services(model) {
        let mut kept =
            model.vlans().map(|(_, vlan)| &vlan.addresses).chain(model.bridges.iter().map(|bridge| &bridge.addresses));
        let kept: BTreeSet<IpAddr> = kept.by_ref().flatten().map(|&(ip, _)| ip).collect();
        let own = |ip: IpAddr| kept.contains(&ip) || facts.tables.addresses.iter().any(|address| address.ip == ip);
        if let Some(server) = model.servers_of(service).find(|server| own(server.address)) {
            tell(
                Severity::Error,
                Check::Addresses,
                Some(service),
                format!(
                    "server {} is an address of this host, which packets that leave it never reach; use plane = \"stream\", or \
                     another host",
                    server.address
                ),
            );
        }
        let told = |ip: IpAddr| facts.missing.contains(&NoWay::NoRoute(ip));
        let lacks = |server: &&Server| facing::lacks_source(service, server.address) && !told(server.address);
        if let Some(server) = model.servers_of(service).find(lacks) {
            tell(
                Severity::Error,
                Check::Addresses,
                Some(service),
                format!(
                    "the kernel names no address of this host towards server {}; give the interface that leads there one of its family, or name \
                     one in source.pool",
                    server.address
                ),
            );
        }
        match service.forwarding {
            Forwarding::FullNat => {}
            Forwarding::HalfNat => {
                let keys = &facts.kernel_forwards[usize::from(service.vip.is_ipv6())];
                for key in keys.iter().filter(|_| !model.router.enabled) {
                    tell(
                        Severity::Error,
                        Check::KernelForwards,
                        Some(service),
                        format!(
                            "forwarding = \"half-nat\": the kernel forwards too ({key} = 1) and would send replies of servers to clients a \
                             second time, from the wrong address; set it to 0 (`sysctl -w {key}=0`), or use forwarding = \"full-nat\""
                        ),
                    );
                }
                if service.source == Source::Client {
                    let servers: Vec<&Server> = model.servers_of(service).collect();
                    check_on_link_clients(service, &servers, &facts.tables.addresses, &mut tell);
                }
            }
            // Where it leads is told by the ways that are missing.
            Forwarding::Dsr => {}
        }
    }
}

/// A second router beside ours, and rules about interfaces that are none of its arms.
fn check_router(model: &Model, facts: &PacketFacts, findings: &mut Vec<Finding>) {
    if !model.router.enabled {
        return;
    }
    let mut tell = |check, message| {
        findings.push(Finding { severity: Severity::Error, check, service: None, message, file: None })
    };
    for key in facts.kernel_forwards.iter().flatten() {
        tell(
            Check::KernelForwards,
            format!(
                "router.enabled = true: the kernel forwards too ({key} = 1), and every packet would arrive twice; switch it off (`sysctl -w {key}=0`)"
            ),
        );
    }
    let by_rules = model.router.rules.iter().flat_map(|rule| [&rule.from_interface, &rule.to_interface]).flatten();
    let named = by_rules.chain(model.outbound.iter().filter_map(|nat| nat.interface.as_ref()));
    let is_vlan = |name: &String| model.vlans().any(|(_, vlan)| vlan.name == *name);
    let is_arm = |name: &String| is_vlan(name) || facts.arms.iter().any(|arm| arm.name == *name);
    let missing: BTreeSet<&String> = named.filter(|name| !is_arm(name)).collect();
    for name in missing {
        tell(
            Check::Link,
            format!(
                "router.rule, outbound_nat: interface {name} is not routed to or from: it is not there, is down, or has no address; give it one before the start \
                 (`ip addr add … dev {name}`), or take it out there"
            ),
        );
    }
    for nat in &model.outbound {
        for is_v4 in facing::lacks_families(nat) {
            let family = if is_v4 { "IPv4" } else { "IPv6" };
            let interface = nat.interface.as_deref().unwrap_or("…");
            tell(
                Check::Addresses,
                format!(
                    "outbound_nat `{}`: interface {interface} has no {family} address, and what leaves there needs one; give it one \
                     (`ip addr add … dev {interface}`), or name one in source.pool",
                    nat.name
                ),
            );
        }
    }
}

/// Health checks take the kernel's way, which does not know the static routes: a server that only those lead to would never be up. Of a server over a
/// VLAN or a bridge they take ours.
fn check_probe_ways(model: &Model, facts: &PacketFacts, findings: &mut Vec<Finding>) {
    let routes = routes::all(model, &facts.tables);
    for service in claims::services(model) {
        let group = &model.groups[service.group];
        let way = |routes, ip| routes::best(routes, ip).map(|route| (route.link, route.gateway));
        let is_apart = |server: &&Server| {
            let ip = server.address;
            let Some(ours) = routes::best(&routes, ip) else { return false };
            arms::own_prefix(model, ip).is_none_or(|prefix| prefix < ours.destination.1)
                && Some((ours.link, ours.gateway)) != way(&facts.tables.routes, ip)
        };
        let is_external = group.health.as_ref().is_some_and(|health| matches!(health.check, CheckKind::External(_)));
        let is_ours = |server: &&Server| arms::is_unknown_to_kernel(model, &facts.tables, server.address);
        if let Some(server) = group.servers.iter().find(is_ours).filter(|_| is_external) {
            findings.push(Finding {
                severity: Severity::Warning,
                check: Check::Routes,
                service: Some(service.name.clone()),
                message: format!(
                    "server {} is on a VLAN or bridge that only the packet plane reaches: the command of its check has no way there; use a check \
                     without a command",
                    server.address
                ),
                file: None,
            });
        }
        let Some(server) = group.servers.iter().find(is_apart).filter(|_| group.health.is_some()) else { continue };
        let Some((_, Some(via))) = way(&routes, server.address) else { continue };
        findings.push(Finding {
            severity: Severity::Error,
            check: Check::Routes,
            service: Some(service.name.clone()),
            message: format!(
                "server {ip} is reached by a static route via {via} that the kernel does not have, so its health checks would go astray; give it to \
                 the kernel too (`ip route add {ip} via {via}`)",
                ip = server.address
            ),
            file: None,
        });
    }
}

/// What the file says about interfaces, against what the kernel has: untagged networks are its own, VLANs are ours.
fn check_interfaces(model: &Model, tables: &Tables, findings: &mut Vec<Finding>) {
    let mut tell = |severity, check, message: String| {
        findings.push(Finding { severity, check, service: None, message, file: None })
    };
    for interface in &model.interfaces {
        let name = &interface.name;
        let Some(link) = tables.links.iter().find(|link| link.name == *name) else {
            // Of one with VLANs the missing way is told.
            if interface.vlans.is_empty() {
                tell(
                    Severity::Warning,
                    Check::Link,
                    format!("interface `{name}` is not there; correct its name (`ip link` lists them)"),
                );
            }
            continue;
        };
        let has = |&&(ip, prefix): &&(IpAddr, u8)| {
            tables.addresses.iter().any(|own| (own.link, own.ip, own.prefix) == (link.index, ip, prefix))
        };
        for (ip, prefix) in interface.addresses.iter().filter(|address| !has(address)) {
            tell(
                Severity::Warning,
                Check::Addresses,
                format!(
                    "interface `{name}` does not have the address {ip}/{prefix} of the file; add it (`ip addr add {ip}/{prefix} dev {name}`), or \
                     take it out"
                ),
            );
        }
    }
    for (interface, vlan) in model.vlans() {
        for own in tables.addresses.iter().filter(|own| vlan.addresses.iter().any(|&(ip, _)| ip == own.ip)) {
            let dev = tables.links.iter().find(|link| link.index == own.link).map_or("…", |link| &link.name);
            let (ip, prefix) = (own.ip, own.prefix);
            tell(
                Severity::Error,
                Check::Addresses,
                format!(
                    "address {ip} of VLAN `{}` is the kernel's on interface `{dev}` as well, and both would answer for it; take it away there \
                     (`ip addr del {ip}/{prefix} dev {dev}`)",
                    vlan.name
                ),
            );
        }
        let twin = format!("{}.{}", interface.name, vlan.id);
        if tables.links.iter().any(|link| link.name == twin) {
            tell(
                Severity::Warning,
                Check::Link,
                format!(
                    "the kernel has an interface `{twin}` for VLAN {} of `{}` too, and takes its frames as well; remove it (`ip link del {twin}`)",
                    vlan.id, interface.name
                ),
            );
        }
    }
}

/// What bridges ask of their arms.
fn check_bridges(model: &Model, tables: &Tables, findings: &mut Vec<Finding>) {
    let mut tell = |severity, check, message: String| {
        findings.push(Finding { severity, check, service: None, message, file: None })
    };
    for bridge in &model.bridges {
        let find = |name: &String| tables.links.iter().find(|link| link.name == *name);
        for link in bridge.arms.iter().filter_map(find) {
            // A link-local address comes by itself, and nobody hears of it.
            let is_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            for own in tables.addresses.iter().filter(|own| own.link == link.index && !is_local(own.ip)) {
                let (ip, prefix, name) = (own.ip, own.prefix, &link.name);
                tell(
                    Severity::Error,
                    Check::Addresses,
                    format!(
                        "`{name}` is an arm of the bridge `{}`, on which the kernel hears nothing, but it has the address {ip}/{prefix} there; \
                         take it away (`ip addr del {ip}/{prefix} dev {name}`) and, if it is to answer, put it into `addresses` of the bridge",
                        bridge.name
                    ),
                );
            }
        }
        for own in tables.addresses.iter().filter(|own| bridge.addresses.iter().any(|&(ip, _)| ip == own.ip)) {
            let link = tables.links.iter().find(|link| link.index == own.link).map_or("…", |link| &link.name);
            if bridge.arms.iter().all(|arm| arm != link) {
                let (ip, prefix) = (own.ip, own.prefix);
                tell(
                    Severity::Error,
                    Check::Addresses,
                    format!(
                        "address {ip} of the bridge `{}` is the kernel's on interface `{link}` as well, and both would answer for it; take it away \
                         there (`ip addr del {ip}/{prefix} dev {link}`)",
                        bridge.name
                    ),
                );
            }
        }
        if let [Some(one), Some(other)] = bridge.arms.each_ref().map(find)
            && one.mtu_bytes != other.mtu_bytes
        {
            let (smaller, larger) = if one.mtu_bytes < other.mtu_bytes { (one, other) } else { (other, one) };
            tell(
                Severity::Warning,
                Check::Mtu,
                format!(
                    "the arms of the bridge `{}` have different MTUs, and what fits `{}` only does not pass; make them the same (`ip link set {} mtu {}`)",
                    bridge.name, larger.name, smaller.name, larger.mtu_bytes
                ),
            );
        }
    }
}

/// Programs of this host that would hear nothing more, because the packet plane takes their ports. Who listens on every address may mean the host's
/// own: those that the kernel picks as source.
fn check_listeners(model: &Model, facts: &PacketFacts, own: &BTreeSet<IpAddr>, findings: &mut Vec<Finding>) {
    let kernels: BTreeSet<IpAddr> = facts.tables.addresses.iter().map(|address| address.ip).collect();
    for claim in claims::claims(model, &facts.tables.addresses) {
        let Some(protocol) = claims::protocol(&claim).filter(|_| kernels.contains(&claim.ip)) else { continue };
        let (low, high) = claim.ports;
        let loses = |listener: &&Listener| {
            listener.protocol == protocol
                && (low..=high).contains(&listener.local.port())
                && (listener.is_at(claim.ip) || own.contains(&claim.ip) && listener.hears(claim.ip))
        };
        let ports: BTreeSet<u16> = facts.listeners.iter().filter(loses).map(|listener| listener.local.port()).collect();
        let Some(first) = ports.first() else { continue };
        let more = if ports.len() > 1 { format!(" and {} more", ports.len() - 1) } else { String::new() };
        findings.push(Finding {
            severity: Severity::Warning,
            check: Check::Listeners,
            service: None,
            message: format!(
                "the packet plane takes ports {low}-{high} of {}, where another program of this host listens (port {first}{more}) and will hear \
                 nothing more; use other ports, or another address, for one of them",
                claim.ip
            ),
            file: None,
        });
    }
}

/// A client on the servers' own network gets its replies straight from the server, and resets it (requirements.md 6.3 nos. 1 and 2, T-29).
fn check_on_link_clients(
    service: &VirtualService,
    servers: &[&Server],
    own: &[LinkAddress],
    tell: &mut impl FnMut(Severity, Check, Option<&VirtualService>, String),
) {
    let on_link = |server: &Server, client: &dyn Fn(&LinkAddress) -> bool| {
        own.iter().any(|net| holds(net.ip, net.prefix, server.address) && client(net))
    };
    for &(network, prefix) in &service.client_networks {
        // That is anywhere, as the operator knows.
        if prefix < if network.is_ipv4() { 8 } else { 32 } {
            continue;
        }
        let overlaps = |net: &LinkAddress| holds(net.ip, net.prefix, network) || holds(network, prefix, net.ip);
        if let Some(server) = servers.iter().find(|server| on_link(server, &overlaps)) {
            tell(
                Severity::Error,
                Check::HalfNat,
                Some(service),
                format!(
                    "forwarding = \"half-nat\": clients of {network}/{prefix} share a network with server {}, its replies to them would bypass \
                     Towpath; add source = {{ pool = [...] }} for them, or use forwarding = \"full-nat\"",
                    server.address
                ),
            );
        }
    }
    let beside_vip = |net: &LinkAddress| holds(net.ip, net.prefix, service.vip);
    if service.client_networks.is_empty()
        && let Some(server) = servers.iter().find(|server| on_link(server, &beside_vip))
    {
        tell(
            Severity::Error,
            Check::HalfNat,
            Some(service),
            format!(
                "forwarding = \"half-nat\": the VIP and server {} share a network, and replies to clients of that network would bypass Towpath; \
                 add source = {{ pool = [...] }} for them, or say that clients come from elsewhere: client_networks = [...]",
                server.address
            ),
        );
    }
}

/// Whether the effective capabilities in proc_pid_status(5) are those of the packet plane.
fn is_capable(status: &str) -> bool {
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    effective.is_some_and(|effective| PACKET_CAPABILITIES.iter().all(|bit| effective >> bit & 1 == 1))
}

/// Those of these ports that the kernel gives to connections of its own.
fn given_out(ports: (u16, u16), facts: &HostFacts) -> Option<(u16, u16)> {
    let (low, high) = (ports.0.max(*facts.local_ports.start()), ports.1.min(*facts.local_ports.end()));
    let is_reserved = |port| facts.reserved_ports.iter().any(|range| range.contains(&port));
    (low..=high).any(|port| !is_reserved(port)).then_some((low, high))
}

/// The kernel does not hear what comes to the ports that checks by the VIP speak from, so connections of its own must not be there.
fn check_probe_ports(model: &Model, packets: &PacketFacts, facts: &HostFacts, findings: &mut Vec<Finding>) {
    let Some((low, high)) = given_out(PROBE_PORTS, facts) else { return };
    let sources: BTreeSet<IpAddr> = claims::probe_sources(model, &packets.tables.addresses).collect();
    for ip in sources.intersection(&facts.kernel_sources) {
        findings.push(Finding {
            severity: Severity::Error,
            check: Check::LocalPorts,
            service: None,
            file: None,
            message: format!(
                "health checks of forwarding = \"dsr\" speak from ports {first}-{last} of {ip}, and ports {low}-{high} are given out by the kernel \
                 too (ip_local_port_range {}-{}); reserve them (`sysctl -w net.ipv4.ip_local_reserved_ports={low}-{high}`)",
                facts.local_ports.start(),
                facts.local_ports.end(),
                first = PROBE_PORTS.0,
                last = PROBE_PORTS.1,
            ),
        });
    }
}

/// Two owners of one port: the kernel's own connections and our leases (design.md 10.1). Only where the kernel picks the address.
fn check_pool_ports(
    service: Option<&VirtualService>,
    what: &str,
    pool: &SourcePool,
    facts: &HostFacts,
    findings: &mut Vec<Finding>,
) {
    let Some((low, high)) = given_out((pool.port_low, pool.port_high), facts) else { return };
    for ip in pool.addresses.iter().filter(|ip| facts.kernel_sources.contains(ip)) {
        findings.push(Finding {
            severity: Severity::Error,
            check: Check::LocalPorts,
            service: service.map(|service| service.name.clone()),
            message: format!(
                "{what} {ip}: ports {low}-{high} are leased here and given out by the kernel too (ip_local_port_range {}-{}), \
                 because the kernel uses this address for its own connections; use a second address for source.pool, \
                 or ports outside that range, or reserve them (`sysctl -w net.ipv4.ip_local_reserved_ports={low}-{high}`)",
                facts.local_ports.start(),
                facts.local_ports.end()
            ),
            file: None,
        });
    }
}

/// The kernel does not hear what the packet plane leases at its addresses, so a relay that leases there would never get its answers. Of addresses
/// in the file the file's own check says so.
fn check_both_planes(model: &Model, findings: &mut Vec<Finding>) {
    let mut check = |service: Option<&VirtualService>, whose: &str, ours: &SourcePool| {
        let shares = |other: &&VirtualService| {
            other.plane == Plane::Stream
                && service.is_none_or(|service| other.protocol == service.protocol)
                && matches!(&other.source, Source::Pool(pool)
                    if pool.port_low <= ours.port_high && pool.port_high >= ours.port_low
                        && pool.addresses.iter().any(|address| ours.addresses.contains(address)))
        };
        if let Some(other) = model.services.iter().find(shares) {
            findings.push(Finding {
                severity: Severity::Error,
                check: Check::LocalPorts,
                service: service.map(|service| service.name.clone()),
                message: format!(
                    "{whose}ports {}-{} of this host's address are leased by service `{}` on the stream plane as well; give one of them other ports",
                    ours.port_low, ours.port_high, other.name
                ),
                file: None,
            });
        }
    };
    for service in claims::services(model).filter(|service| facing::faces(service)) {
        if let Source::Pool(ours) = &service.source {
            check(Some(service), "", ours);
        }
    }
    for (nat, ours) in claims::outbound(model).filter(|(_, ours)| !ours.towards.is_empty()) {
        check(None, &format!("outbound_nat `{}`: ", nat.name), ours);
    }
}

fn model_addresses(model: &Model) -> BTreeSet<IpAddr> {
    let mut addresses = BTreeSet::new();
    for service in &model.services {
        addresses.insert(service.vip);
        if let Source::Pool(pool) = &service.source {
            addresses.extend(&pool.addresses);
        }
    }
    addresses.extend(claims::outbound(model).flat_map(|(_, pool)| &pool.addresses));
    addresses
}

/// The one exact test: it knows secondary addresses, the whole of 127.0.0.0/8, local routes and `ip_nonlocal_bind`.
pub(crate) fn can_bind(ip: IpAddr) -> bool {
    let Ok(fd) = socket::udp_socket(socket::Family::of(ip)) else { return false };
    socket::bind(&fd, SocketAddr::new(ip, 0)).is_ok()
}

/// The kernel's choice towards every real server, towards the default route and into each connected network.
fn kernel_sources(model: &Model) -> io::Result<BTreeSet<IpAddr>> {
    let servers = model.servers().map(|server| server.address);
    // Documentation addresses (RFC 5737, RFC 3849): nobody has them, so they follow the default route.
    let default_routes =
        [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
    let own = host::addresses()?;
    let neighbours = own.iter().filter(|a| a.up).filter_map(|a| neighbour(a.ip, a.prefix));
    let own_ips: BTreeSet<IpAddr> = own.iter().map(|a| a.ip).collect();
    Ok(servers
        .chain(default_routes)
        .chain(neighbours)
        // Towards itself the kernel answers with the very address that was asked for.
        .filter(|destination| !own_ips.contains(destination))
        .filter_map(|destination| socket::kernel_source_towards(destination).ok())
        .collect())
}

/// Another address of the same network: the next one, or the one before at the end of the network.
fn neighbour(ip: IpAddr, prefix: u8) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(v4) if prefix < 31 => {
            let host_bits = u32::MAX >> prefix;
            let bits = v4.to_bits();
            // The last but one is taken before the broadcast address.
            let next = if bits & host_bits >= host_bits - 1 { bits - 1 } else { bits + 1 };
            Some(IpAddr::V4(Ipv4Addr::from_bits(next)))
        }
        IpAddr::V6(v6) if prefix < 127 => Some(IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() ^ 1))),
        _ => None,
    }
}

/// `6.1.0-25-amd64` → (6, 1).
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn reserved_ports() -> Vec<RangeInclusive<u16>> {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").map(|text| parse_ranges(&text)).unwrap_or_default()
}

/// `8080,9000-9100` as the kernel writes it.
fn parse_ranges(text: &str) -> Vec<RangeInclusive<u16>> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            Some(low.trim().parse().ok()?..=high.trim().parse().ok()?)
        })
        .collect()
}

/// What the machine has free, or less where a control group says so.
pub(crate) fn memory_bytes() -> io::Result<u64> {
    let available = host::memory()?.available_bytes;
    Ok(control_group_room().map_or(available, |room| room.min(available)))
}

/// Room under the tightest memory limit of the process's control groups (version 2); `None` without one.
fn control_group_room() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    root.join(group)
        .ancestors()
        .take_while(|path| path.starts_with(root))
        .filter_map(|path| {
            let max: u64 = fs::read_to_string(path.join("memory.max")).ok()?.trim().parse().ok()?;
            let current: u64 = fs::read_to_string(path.join("memory.current")).ok()?.trim().parse().ok()?;
            Some(max.saturating_sub(current))
        })
        .min()
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            Some(service) => write!(f, "{}: service `{service}`: {}", self.severity, self.message),
            None => write!(f, "{}: {}", self.severity, self.message),
        }
    }
}

#[cfg(test)]
mod tests;
