//! From facts to readings: pure functions, one for each kind of check.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use towpath_config::model::{Application, Carrier, Forwarding, Model, Plane, Source, VirtualService};
use towpath_sys::ethtool::Feature;
use towpath_sys::neighbour::LinkAddress;

use super::facts::{Card, Facts, HugePages, LinkFacts};
use super::probes::{Answers, Asked, NotShown, Probes, Purpose};
use super::{Place, Reading, State, Subject};
use crate::packets::arms::is_unknown_to_kernel;
use crate::packets::claims;
use crate::packets::fast::Readiness;
use crate::plan::{Plan, PlanInput, bytes, cpu_list, grouped};
use crate::preflight::{Check, preflight};

/// Everything that facts and answers say: the machine first, then interfaces, then services in the order of the file; of each, the worst first.
pub fn readings(model: &Model, facts: &Facts, probes: &Probes) -> Vec<Reading> {
    let mut all = Readings(Vec::new());
    machine(model, facts, &mut all);
    if let Probes::Done(answers) = probes {
        sums(facts, answers, &mut all);
    }
    for link in &facts.links {
        interface(model, facts, link, &mut all);
    }
    addresses(model, facts, &mut all);
    match probes {
        Probes::Off => {}
        Probes::Refused(why) => all.add(Subject::Machine, Check::NextHop, State::Unknown, why.as_str()),
        Probes::Done(answers) => {
            on_links(model, facts, answers, &mut all);
            mtu(facts, answers, &mut all);
            servers(model, answers, &mut all);
            certificates(model, facts, answers, &mut all);
            returns(model, facts, answers, &mut all);
            unasked(model, facts, &mut all);
            if answers.unasked > 0 {
                let told = format!("{} addresses are too many to ask for all in one go: not asked", answers.unasked);
                all.add(Subject::Machine, Check::NextHop, State::Unknown, told);
            }
        }
    }
    let Readings(mut readings) = all;
    let place = |subject: &Subject| match subject {
        Subject::Machine => (0, 0),
        Subject::Interface(name) => {
            (1, facts.links.iter().position(|facts| facts.link.name == *name).unwrap_or(usize::MAX))
        }
        Subject::Service(name) => {
            (2, model.services.iter().position(|service| service.name == *name).unwrap_or(usize::MAX))
        }
    };
    readings.sort_by_key(|reading| (place(&reading.subject), std::cmp::Reverse(reading.state)));
    readings
}

/// What is told so far.
struct Readings(Vec<Reading>);

impl Readings {
    fn add(&mut self, subject: Subject, check: Check, state: State, found: impl Into<String>) {
        self.0.push(Reading::new(subject, check, state, found));
    }

    /// The same where the command is to be run at the other end.
    fn add_there(&mut self, subject: Subject, check: Check, state: State, found: impl Into<String>) {
        let mut reading = Reading::new(subject, check, state, found);
        if let Some(run) = &mut reading.run {
            run.at = Place::There;
        }
        self.0.push(reading);
    }

    /// Says that something is as it should be, unless something else was said of it.
    fn fine(&mut self, subject: Subject, check: Check, found: impl Into<String>) {
        if !self.0.iter().any(|told| told.subject == subject && told.check == check) {
            self.add(subject, check, State::Fine, found);
        }
    }
}

fn of_service(name: &str) -> Subject {
    Subject::Service(name.to_owned())
}

fn of_link(link: &LinkFacts) -> Subject {
    Subject::Interface(link.link.name.clone())
}

/// What preflight says, and what concerns the whole machine.
fn machine(model: &Model, facts: &Facts, all: &mut Readings) {
    for finding in preflight(model, &facts.host) {
        // A daemon that runs has its memory already, so there is less for another.
        if facts.is_running && finding.check == Check::Limits {
            continue;
        }
        let subject = finding.service.as_deref().map_or(Subject::Machine, of_service);
        all.add(subject, finding.check, finding.severity.into(), finding.message);
    }
    all.fine(Subject::Machine, Check::Kernel, facts.host.kernel_release.as_str());
    if let Ok(plan) = Plan::new(model, &PlanInput::of(&facts.host)) {
        let descriptors = plan.descriptors.iter().map(|share| share.amount).sum();
        let told = format!(
            "{} of {} descriptors (of this session: a systemd unit has its own LimitNOFILE=), {} of {} memory",
            grouped(descriptors),
            grouped(plan.nofile),
            bytes(plan.memory_total()),
            bytes(plan.memory_available)
        );
        all.fine(Subject::Machine, Check::Limits, told);
        let cpus: Vec<usize> = plan.workers.iter().map(|worker| worker.cpu).collect();
        for link in &facts.links {
            if let Some(card) = &link.card {
                self::card(link, card, &cpus, &facts.nodes, all);
            }
        }
    }
    let Some(packets) = &facts.host.packets else { return };
    all.fine(Subject::Machine, Check::Capabilities, "CAP_NET_ADMIN and CAP_NET_RAW");
    all.fine(Subject::Machine, Check::Routes, "a way to every address and real server of the packet plane");
    match &packets.fast_path {
        Readiness::Ready => all.fine(Subject::Machine, Check::FastPath, "the kernel carries open connections onwards"),
        Readiness::Off => all.fine(Subject::Machine, Check::FastPath, "off, by runtime.fast_path"),
        Readiness::Unavailable(why) => {
            let told = format!(
                "every frame goes through a worker: {why}; it takes Linux 6.6 and CAP_BPF outside of user namespaces \
                 (`systemctl edit towpath`: AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN CAP_BPF)"
            );
            all.add(Subject::Machine, Check::FastPath, State::Hint, told);
        }
        Readiness::Unneeded => {}
    }
    match facts.huge_pages {
        Some(HugePages::Never) => {
            let told = "tables of flows lie in small pages, which costs time with every packet of many flows; allow huge pages to those who \
                        ask (`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`)";
            all.add(Subject::Machine, Check::HugePages, State::Hint, told);
        }
        Some(HugePages::Always | HugePages::Asked) => {
            all.fine(Subject::Machine, Check::HugePages, "tables of flows lie in huge pages");
        }
        None => {}
    }
}

/// Where the card is and whom it interrupts, beside the workers.
fn card(link: &LinkFacts, card: &Card, workers: &[usize], nodes: &[Vec<usize>], all: &mut Readings) {
    let name = &link.link.name;
    if let Some(near) = card.node.and_then(|node| nodes.get(node))
        && nodes.len() > 1
    {
        let far: Vec<usize> = workers.iter().copied().filter(|cpu| !near.contains(cpu)).collect();
        if !far.is_empty() {
            let told = format!(
                "the card of `{name}` is at NUMA node {}, workers on {} are not, and read its frames across; name CPUs of that node in \
                 runtime.workers: {}",
                card.node.unwrap_or_default(),
                cpu_list(&far),
                cpu_list(near)
            );
            all.add(of_link(link), Check::Numa, State::Hint, told);
        }
    }
    let interrupted: BTreeSet<usize> = card.interrupts.iter().flatten().copied().collect();
    if interrupted.len() == 1 && workers.len() > 1 {
        let told = format!(
            "all {} interrupts of `{name}` go to CPU {}, which receives for every worker; spread them (`systemctl start irqbalance`), and \
             give the card as many queues as there are workers (`ethtool -L {name} combined {}`)",
            card.interrupts.len(),
            interrupted.iter().next().copied().unwrap_or_default(),
            workers.len()
        );
        all.add(of_link(link), Check::Interrupts, State::Hint, told);
    } else if !interrupted.is_empty() {
        let told = format!("{} interrupts on {}", card.interrupts.len(), cpu_list(&Vec::from_iter(interrupted)));
        all.fine(of_link(link), Check::Interrupts, told);
    }
}

/// State, filter and offloads of one interface.
fn interface(model: &Model, facts: &Facts, link: &LinkFacts, all: &mut Readings) {
    let name = &link.link.name;
    let mtu = grouped(link.link.mtu_bytes.into());
    match (link.link.up, link.link.carrier) {
        (true, true) => all.fine(of_link(link), Check::Link, format!("up, packets of {mtu} bytes")),
        (true, false) => {
            let told =
                format!("`{name}` has no carrier: no cable, or its other end is down; look there (`ethtool {name}`)");
            all.add(of_link(link), Check::Link, State::Warning, told);
        }
        (false, _) => {
            let told = format!("`{name}` is down; set it up (`ip link set {name} up`)");
            all.add(of_link(link), Check::Link, State::Warning, told);
        }
    }
    rp_filter(model, facts, link, all);
    offloads(model, link, all);
}

/// Clients that the kernel drops although their VIP is here: it would answer them by another interface (trap of the stream plane on two arms).
fn rp_filter(model: &Model, facts: &Facts, link: &LinkFacts, all: &mut Readings) {
    let name = &link.link.name;
    let tables = &facts.tables;
    let relayed = model.services.iter().filter(|service| service.plane == Plane::Stream && service.vip.is_ipv4());
    let mut here = relayed
        .filter(|service| tables.addresses.iter().any(|own| own.link == link.link.index && own.ip == service.vip))
        .peekable();
    if here.peek().is_none() {
        return;
    }
    let default = tables.routes.iter().filter(|route| route.destination.1 == 0 && route.destination.0.is_ipv4());
    let out = default.min_by_key(|route| route.metric).map(|route| route.link);
    let Some(out) = out.filter(|&out| link.is_strict && out != link.link.index) else {
        all.fine(
            of_link(link),
            Check::RpFilter,
            if link.is_strict { "strict, with one way in and out" } else { "off or loose" },
        );
        return;
    };
    let by = tables.links.iter().find(|link| link.index == out).map_or("another", |link| link.name.as_str());
    for service in here {
        let told = format!(
            "rp_filter = 1 on `{name}`: the kernel drops clients from beyond a router that come to {} by `{name}`, because its route back \
             to them leads over `{by}`; let it be loose (`sysctl -w net.ipv4.conf.{name}.rp_filter=2`)",
            service.vip
        );
        all.add(of_link(link), Check::RpFilter, State::Warning, told);
    }
}

fn offloads(model: &Model, link: &LinkFacts, all: &mut Readings) {
    let name = &link.link.name;
    if !claims::carries_packets(model) {
        return;
    }
    if link.does(Feature::LargeReceive) {
        let told = format!(
            "`{name}` merges what it receives so that it cannot be cut again as it came (LRO), and what is forwarded breaks; switch it off \
             (`ethtool -K {name} lro off`)"
        );
        all.add(of_link(link), Check::Offloads, State::Warning, told);
    }
    if !link.does(Feature::SendSums) {
        let told = format!(
            "`{name}` completes no checksums, so the kernel sums every byte of super-packets that are forwarded; let the device do it \
             (`ethtool -K {name} tx on`)"
        );
        all.add(of_link(link), Check::Offloads, State::Hint, told);
    } else if !link.does(Feature::Segmentation) {
        let told = format!(
            "`{name}` cuts no super-packets (TSO), so the kernel does it for each one that is forwarded; let the device do it \
             (`ethtool -K {name} tso on`)"
        );
        all.add(of_link(link), Check::Offloads, State::Hint, told);
    }
    // A virtual interface gets super-packets as they were sent.
    if link.card.is_some() && !link.does(Feature::ReceiveMerge) {
        let told = format!(
            "`{name}` does not merge what it receives (GRO), so each segment is forwarded by itself, at a third of the speed; switch it on \
             (`ethtool -K {name} gro on`)"
        );
        all.add(of_link(link), Check::Offloads, State::Hint, told);
    }
    all.fine(of_link(link), Check::Offloads, "checksums and segmentation by the device, nothing merged for good");
}

/// Devices that say that they complete checksums, and do not: what is forwarded arrives broken.
fn sums(facts: &Facts, answers: &Answers, all: &mut Readings) {
    for link in facts.links.iter().filter(|link| link.does(Feature::SendSums)) {
        let name = &link.link.name;
        let here = answers.summed.iter().filter(|summed| summed.link == link.link.index && summed.complete);
        // One that came through shows that the device does it, whatever became of others.
        let (mut lost, mut arrived) = (Vec::new(), false);
        for summed in here {
            arrived |= summed.unfinished;
            lost.extend((!summed.unfinished).then(|| summed.ip.to_string()));
        }
        if arrived || lost.is_empty() {
            continue;
        }
        let told = format!(
            "`{name}` says that it completes checksums and does not, or a bridge or tunnel behind it loses them: real server {} answers \
             segments that leave complete and no others; have the kernel do it (`ethtool -K {name} tx off`)",
            lost.join(", ")
        );
        all.add(of_link(link), Check::Offloads, State::Error, told);
    }
}

/// Addresses that the kernel has although the packet plane answers for them.
fn addresses(model: &Model, facts: &Facts, all: &mut Readings) {
    for service in &model.services {
        if service.plane == Plane::Packet {
            for own in named(service).into_iter().filter_map(|ip| kernels(facts, ip)) {
                let link = facts.tables.links.iter().find(|link| link.index == own.link);
                let name = link.map_or("…", |link| link.name.as_str());
                let LinkAddress { ip, prefix, .. } = *own;
                let told = format!(
                    "the kernel has {ip} as well, on `{name}`: it answers for it also when Towpath does not run, and clients are refused \
                     instead of waiting; take it away (`ip address del {ip}/{prefix} dev {name}`)"
                );
                all.add(of_service(&service.name), Check::Addresses, State::Hint, told);
            }
        }
        let told = match service.plane {
            Plane::Packet => format!("{} is Towpath's own", service.vip),
            Plane::Stream => format!("{} is an address of this host", service.vip),
        };
        all.fine(of_service(&service.name), Check::Addresses, told);
    }
}

fn kernels(facts: &Facts, ip: IpAddr) -> Option<&LinkAddress> {
    facts.tables.addresses.iter().find(|own| own.ip == ip)
}

/// The VIP, and the SNAT addresses that the file names: not those of interfaces, which are the kernel's on purpose.
fn named(service: &VirtualService) -> BTreeSet<IpAddr> {
    let pool = match &service.source {
        Source::Pool(pool) if pool.towards.is_empty() => pool.addresses.as_slice(),
        Source::Pool(_) | Source::Client | Source::Facing(_) | Source::Interface => &[],
    };
    pool.iter().copied().chain([service.vip]).collect()
}

/// Who answered on the links: others at our addresses, gateways, real servers.
fn on_links(model: &Model, facts: &Facts, answers: &Answers, all: &mut Readings) {
    let link_name =
        |index: u32| facts.tables.links.iter().find(|link| link.index == index).map(|link| link.name.as_str());
    let ours: BTreeSet<&[u8]> = facts.tables.links.iter().map(|link| link.hardware_address.as_slice()).collect();
    for asked in &answers.asked {
        let name = link_name(asked.link).unwrap_or("…");
        let others: Vec<[u8; 6]> =
            asked.stations.iter().copied().filter(|mac| !ours.contains(mac.as_slice())).collect();
        match (asked.purpose, others.as_slice()) {
            (Purpose::Own, []) | (Purpose::Gateway | Purpose::Server, [_]) => {}
            (Purpose::Own, [other, ..]) => duplicate(model, answers, asked, *other, name, all),
            (Purpose::Gateway, []) => {
                let told = format!(
                    "gateway {} does not answer on `{name}`; look for its address, the cable and the VLAN (`ip neigh show dev {name}`)",
                    asked.ip
                );
                all.add(Subject::Interface(name.to_owned()), Check::NextHop, State::Error, told);
            }
            (Purpose::Server, []) => {
                for service in services_of(model, asked.ip) {
                    let told = format!(
                        "real server {} does not answer on `{name}`; look whether it runs, for its address and VLAN \
                         (`ip neigh show {} dev {name}`)",
                        asked.ip, asked.ip
                    );
                    all.add(of_service(&service.name), Check::NextHop, State::Warning, told);
                }
            }
            (Purpose::Gateway | Purpose::Server, [first, second, ..]) => {
                let told = format!(
                    "two stations answer for {} on `{name}`, {} and {}; take the address from one of them",
                    asked.ip,
                    mac(first),
                    mac(second)
                );
                all.add(Subject::Interface(name.to_owned()), Check::DuplicateAddress, State::Error, told);
            }
        }
    }
    let of = |purpose: Purpose| answers.asked.iter().filter(move |asked| asked.purpose == purpose);
    for link in &facts.links {
        let here = |asked: &&Asked| asked.link == link.link.index;
        let own = of(Purpose::Own).filter(here).count();
        if own > 0 {
            let told = format!("{} here, nobody else answers", counted(own, "address", "addresses"));
            all.fine(of_link(link), Check::DuplicateAddress, told);
        }
        let gateways: Vec<String> = of(Purpose::Gateway).filter(here).map(|asked| asked.ip.to_string()).collect();
        if !gateways.is_empty() {
            all.fine(of_link(link), Check::NextHop, format!("gateway {} answers", gateways.join(", ")));
        }
    }
    for service in &model.services {
        let near = |server: &IpAddr| of(Purpose::Server).any(|asked| asked.ip == *server);
        let servers = model.servers_of(service).map(|server| server.address).filter(near).count();
        if servers > 0 {
            let told = format!("{} on our networks, all answer", counted(servers, "real server", "real servers"));
            all.fine(of_service(&service.name), Check::NextHop, told);
        }
    }
}

/// What only the daemon can ask, because the kernel has no part in its network.
fn unasked(model: &Model, facts: &Facts, all: &mut Readings) {
    for service in &model.services {
        let servers = model.servers_of(service).map(|server| server.address);
        let unknown: BTreeSet<IpAddr> =
            servers.chain([service.vip]).filter(|&ip| is_unknown_to_kernel(model, &facts.tables, ip)).collect();
        if unknown.is_empty() {
            continue;
        }
        let unknown: Vec<String> = unknown.iter().map(IpAddr::to_string).collect();
        let told = format!(
            "on networks of which the kernel knows nothing, where only the daemon asks (`towpath status` shows its health checks): {}",
            unknown.join(", ")
        );
        all.add(of_service(&service.name), Check::NextHop, State::Unknown, told);
    }
}

fn counted(number: usize, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

/// Another station has an address of ours.
fn duplicate(model: &Model, answers: &Answers, asked: &Asked, other: [u8; 6], name: &str, all: &mut Readings) {
    let ip = asked.ip;
    let server = answers
        .asked
        .iter()
        .find(|known| known.purpose == Purpose::Server && known.stations.first() == Some(&other))
        .map(|known| known.ip);
    let who = match server {
        Some(server) => format!("real server {server} ({})", mac(&other)),
        None => format!("another station, {}", mac(&other)),
    };
    let owners: Vec<&VirtualService> = model
        .services
        .iter()
        .filter(|service| service.vip == ip || claims::pool(service).is_some_and(|pool| pool.addresses.contains(&ip)))
        .collect();
    if owners.is_empty() {
        let told = format!(
            "{ip} of this host is also that of {who}, on `{name}`; take it away there (`ip address del {ip}/… dev …`)"
        );
        all.add_there(Subject::Interface(name.to_owned()), Check::DuplicateAddress, State::Error, told);
    }
    for service in owners {
        let is_dsr = service.forwarding == Forwarding::Dsr && service.vip == ip && server.is_some();
        let told = if is_dsr {
            format!(
                "{who} answers for the VIP {ip} on `{name}`, which with direct server return it must have and not tell; on that server: \
                 `sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2`, and have the VIP on its loopback"
            )
        } else {
            format!(
                "{ip} is also that of {who}, on `{name}`: clients reach one or the other; take it away there (`ip address del {ip}/… dev …`), \
                 or choose another address"
            )
        };
        all.add_there(of_service(&service.name), Check::DuplicateAddress, State::Error, told);
    }
}

fn services_of(model: &Model, server: IpAddr) -> impl Iterator<Item = &VirtualService> {
    model.services.iter().filter(move |service| model.servers_of(service).any(|member| member.address == server))
}

fn mac(octets: &[u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

/// Packets as large as the interface carries get lost, small ones arrive.
fn mtu(facts: &Facts, answers: &Answers, all: &mut Readings) {
    let mut by_link: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for echoed in answers.echoed.iter().filter(|echoed| echoed.small) {
        by_link.entry(echoed.link).or_default().push(echoed);
    }
    for (index, echoed) in by_link {
        let Some(link) = facts.link(index) else { continue };
        let name = &link.link.name;
        for lost in echoed.iter().filter(|echoed| !echoed.full) {
            let octets = grouped(lost.octets.into());
            let told = format!(
                "packets of {octets} bytes, the MTU of `{name}`, do not arrive at real server {} or do not come back whole, small ones do; \
                 give both ends and the switches between them one MTU (`ip link set {name} mtu …`)",
                lost.ip
            );
            all.add(of_link(link), Check::Mtu, State::Warning, told);
        }
        let octets = echoed.first().map_or(0, |echoed| echoed.octets);
        let told = format!(
            "packets of {} bytes pass to {}",
            grouped(octets.into()),
            counted(echoed.len(), "real server", "real servers")
        );
        all.fine(of_link(link), Check::Mtu, told);
    }
}

/// Connections to real servers.
fn servers(model: &Model, answers: &Answers, all: &mut Readings) {
    for service in &model.services {
        let tried = answers.tried.iter().filter(|tried| tried.service == service.name);
        // As [`super::probes`] has asked them.
        let carrier =
            model.groups[service.group].health.as_ref().map_or(Carrier::Stream, |health| health.check.carrier());
        let (what, look) = match carrier {
            Carrier::Datagram => ("does not answer", "whether it listens there (`ss -lun` on it)"),
            Carrier::Echo => ("does not answer", "whether it is on"),
            Carrier::Stream => ("takes no connection", "whether it listens there (`ss -ltn` on it)"),
        };
        for (tried, why) in tried.clone().filter_map(|tried| Some((tried, tried.failure.as_ref()?))) {
            let told = format!(
                "real server {} ({}) {what}: {why}; look {look} and for a filter between",
                tried.server, tried.ip
            );
            all.add_there(of_service(&service.name), Check::Servers, State::Warning, told);
        }
        let count = tried.count();
        if count > 0 {
            let told = match carrier {
                Carrier::Stream => format!("{} connections", counted(count, "real server takes", "real servers take")),
                Carrier::Datagram | Carrier::Echo => counted(count, "real server answers", "real servers answer"),
            };
            all.fine(of_service(&service.name), Check::Servers, told);
        }
    }
}

/// TLS that goes on to real servers: one that finds nothing in common with us, or that shows another certificate than clients see. Windows binds
/// a logon to the certificate that the client saw (Extended Protection, RFC 5929 §4) and refuses it where that is not its own.
fn certificates(model: &Model, facts: &Facts, answers: &Answers, all: &mut Readings) {
    for service in &model.services {
        let Some(tls) = service.ended_tls() else { continue };
        let read = |files| facts.host.certificates.read.get(files)?.identity.as_ref().ok();
        let ours: Vec<_> = tls.certificates.iter().filter_map(read).map(|identity| identity.fingerprint()).collect();
        let binds = matches!(service.application, Some(Application::Exchange2010 | Application::Exchange2013));
        let mut same = 0;
        for shown in answers.shown.iter().filter(|shown| shown.service == service.name) {
            let server = format!("real server {} ({})", shown.server, shown.ip);
            match &shown.certificate {
                Err(NotShown::Other) => {}
                Err(NotShown::NothingShared) => {
                    let told = format!(
                        "{server} has no version and cipher suite of TLS in common with us: Windows Server 2012 R2 with an RSA certificate offers \
                         none that is still good; update Windows, give the server an ECDSA certificate, or use tls.mode = \"pass-through\""
                    );
                    all.add_there(of_service(&service.name), Check::ExtendedProtection, State::Error, told);
                }
                Ok(certificate) if ours.contains(certificate) => same += 1,
                Ok(_) if ours.is_empty() => {}
                Ok(_) => {
                    let told = format!(
                        "{server} shows another certificate than clients see: with Extended Protection it refuses their Windows logons (401); give \
                         both sides the same certificate with the same key"
                    );
                    let state = if binds { State::Warning } else { State::Hint };
                    all.add_there(of_service(&service.name), Check::ExtendedProtection, state, told);
                }
            }
        }
        if same > 0 {
            let told =
                format!("{} the certificate that clients see", counted(same, "real server shows", "real servers show"));
            all.fine(of_service(&service.name), Check::ExtendedProtection, told);
        }
    }
}

/// Half-NAT: the servers' way back to clients leads by us.
fn returns(model: &Model, facts: &Facts, answers: &Answers, all: &mut Readings) {
    for service in &model.services {
        let returned = answers.returned.iter().filter(|returned| returned.service == service.name);
        for lost in returned.clone().filter(|returned| !returned.is_back) {
            let answers_us = answers.echoed.iter().any(|echoed| echoed.ip == lost.ip && echoed.small)
                || answers.tried.iter().any(|tried| tried.ip == lost.ip && tried.failure.is_none());
            if !answers_us {
                let told = format!(
                    "real server {} does not answer us at all, so nobody knows its way back to clients",
                    lost.ip
                );
                all.add(of_service(&service.name), Check::ReturnPath, State::Unknown, told);
                continue;
            }
            let own = facts
                .tables
                .addresses
                .iter()
                .find(|own| own.link == lost.link && own.ip.is_ipv4() == lost.ip.is_ipv4());
            let own = own.map_or("…".to_owned(), |own| own.ip.to_string());
            let told = format!(
                "forwarding = \"half-nat\": the reply of real server {} ({}) to client {} does not come by us; make us its gateway (on that \
                 server: `ip route replace default via {own}`), or use forwarding = \"full-nat\"",
                lost.server, lost.ip, lost.client
            );
            all.add_there(of_service(&service.name), Check::ReturnPath, State::Error, told);
        }
        let count = returned.count();
        if count > 0 {
            let told = format!("replies of {} to clients come by us", counted(count, "real server", "real servers"));
            all.fine(of_service(&service.name), Check::ReturnPath, told);
        }
    }
}
