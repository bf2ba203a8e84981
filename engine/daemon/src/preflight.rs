//! Whether this machine can carry this configuration (design.md 10.2): one function for `check --host`, `run` and reload.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use serde::Serialize;
use towpath_config::model::{Model, Plane, Source, SourcePool, VirtualService};
use towpath_sys::{host, socket};

use crate::listen::not_on_this_host;
use crate::plan::{Plan, PlanInput};

/// Oldest kernel that is supported (design.md 10.10): that of Debian 12.
pub const KERNEL_FLOOR: (u32, u32) = (6, 1);

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
    /// The service that it is about; `None` = the whole process.
    pub service: Option<String>,
    /// Cause and next step.
    pub message: String,
}

/// What preflight needs to know about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        })
    }
}

/// Everything that keeps this configuration from running as meant on this machine; errors first.
pub fn preflight(model: &Model, facts: &HostFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    check_kernel(facts, &mut findings);
    for service in &model.services {
        check_addresses(service, facts, &mut findings);
        if let Source::Pool(pool) = &service.source {
            check_pool_ports(service, pool, facts, &mut findings);
        }
    }
    match Plan::new(model, &PlanInput::of(facts)) {
        Ok(plan) => findings.extend(plan.warnings().into_iter().map(|message| Finding {
            severity: Severity::Warning,
            service: None,
            message,
        })),
        Err(errors) => findings.extend(errors.0.into_iter().map(|error| Finding {
            severity: Severity::Error,
            service: None,
            message: error.to_string(),
        })),
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// [`HostFacts::gather`] and [`preflight`] in one.
pub fn check_host(model: &Model) -> io::Result<Vec<Finding>> {
    Ok(preflight(model, &HostFacts::gather(model)?))
}

fn check_kernel(facts: &HostFacts, findings: &mut Vec<Finding>) {
    let (floor_major, floor_minor) = KERNEL_FLOOR;
    // A release that nobody can read is no reason to refuse: what is missing shows when the rings are made.
    if kernel_version(&facts.kernel_release).is_some_and(|version| version < KERNEL_FLOOR) {
        findings.push(Finding {
            severity: Severity::Error,
            service: None,
            message: format!(
                "kernel {} is older than {floor_major}.{floor_minor}, which Towpath needs; upgrade the kernel (Debian 12 has 6.1)",
                facts.kernel_release
            ),
        });
    }
}

fn check_addresses(service: &VirtualService, facts: &HostFacts, findings: &mut Vec<Finding>) {
    // On the packet plane addresses belong to Towpath, and must not be the kernel's.
    if service.plane == Plane::Packet {
        return;
    }
    if !facts.usable.contains(&service.vip) {
        findings.push(Finding {
            severity: Severity::Error,
            service: Some(service.name.clone()),
            message: not_on_this_host(service.vip),
        });
    }
    let Source::Pool(pool) = &service.source else { return };
    for &ip in pool.addresses.iter().filter(|&&ip| ip != service.vip && !facts.usable.contains(&ip)) {
        let prefix = if ip.is_ipv4() { 32 } else { 128 };
        findings.push(Finding {
            severity: Severity::Error,
            service: Some(service.name.clone()),
            message: format!(
                "source address {ip} is not an address of this host; add it (`ip address add {ip}/{prefix} dev …`), \
                 or take it out of source.pool"
            ),
        });
    }
}

/// Two owners of one port: the kernel's own connections and our leases (design.md 10.1). Only where the kernel picks the address.
fn check_pool_ports(service: &VirtualService, pool: &SourcePool, facts: &HostFacts, findings: &mut Vec<Finding>) {
    let low = pool.port_low.max(*facts.local_ports.start());
    let high = pool.port_high.min(*facts.local_ports.end());
    if low > high || (low..=high).all(|port| facts.reserved_ports.iter().any(|range| range.contains(&port))) {
        return;
    }
    for ip in pool.addresses.iter().filter(|ip| facts.kernel_sources.contains(ip)) {
        findings.push(Finding {
            severity: Severity::Error,
            service: Some(service.name.clone()),
            message: format!(
                "source address {ip}: ports {low}-{high} are leased here and given out by the kernel too (ip_local_port_range {}-{}), \
                 because the kernel uses this address for its own connections; use a second address for source.pool, \
                 or ports outside that range, or reserve them (`sysctl net.ipv4.ip_local_reserved_ports={low}-{high}`)",
                facts.local_ports.start(),
                facts.local_ports.end()
            ),
        });
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
    addresses
}

/// The one exact test: it knows secondary addresses, the whole of 127.0.0.0/8, local routes and `ip_nonlocal_bind`.
fn can_bind(ip: IpAddr) -> bool {
    let Ok(fd) = socket::udp_socket(socket::Family::of(ip)) else { return false };
    socket::bind(&fd, SocketAddr::new(ip, 0)).is_ok()
}

/// The kernel's choice towards every real server, towards the default route and into each connected network.
fn kernel_sources(model: &Model) -> io::Result<BTreeSet<IpAddr>> {
    let servers = model.groups.iter().flat_map(|group| &group.servers).map(|server| server.address);
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
fn memory_bytes() -> io::Result<u64> {
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
