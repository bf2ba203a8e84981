//! What is asked on the wire: who else has our addresses, whether next hops answer, whether full packets arrive, whether real servers take
//! connections, and whether the replies of half-NAT come back. A few seconds at most; what is asked for is bounded.

mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use towpath_config::model::{Carrier, CheckKind, Damping, Forwarding, Model, Ports, Protocol, VirtualService};
use towpath_core::health::{CheckId, CheckPlan, CheckResult, NO_PORT};
use towpath_core::plane::Network;
use towpath_sys::link::Link;
use towpath_sys::neighbour::Tables;
use towpath_sys::packet::{Direction, PartialChecksum, Tap};

use super::facts::{Facts, own_addresses, servers};
use super::frames::{Seen, Way, answers_only, echo, question, reset, syn, unfinished_syn};
pub use shown::{NotShown, Shown};

use crate::packets::arms::{holds, is_unknown_to_kernel, kernels_route};
use crate::probe::{self as health_probe, Detail, Subject};

/// How long answers are waited for in each of the two rounds.
const ROUND: Duration = Duration::from_millis(1_000);
/// What is not answered is asked again after so long, twice.
const AGAIN: Duration = Duration::from_millis(300);
/// How long one look into a tap may take, before it is seen whether everything is there.
const LOOK: Duration = Duration::from_millis(20);
/// A connection to a real server that takes longer has failed.
const CONNECT_MS: u64 = 1_000;
/// Questions of one round; more addresses and servers are not asked for.
const QUESTIONS_MAX: usize = 1_024;
/// Connections at the same time.
const CONNECTIONS_MAX: usize = 256;
/// An IP packet that every link carries.
const SMALL_OCTETS: u32 = 64;
/// The largest packet that is sent; no Ethernet carries more.
const FULL_OCTETS_MAX: u32 = 9_216;

/// Clients that nobody is: addresses of documentation (RFC 5737, RFC 3849, RFC 9637).
const NOBODY_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(203, 0, 113, 1)];
const NOBODY_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1)];

/// What asking has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probes {
    /// Nobody wanted to ask.
    Off,
    /// We may not; why.
    Refused(String),
    /// Answers, and what did not come.
    Done(Answers),
}

/// Answers, and what did not come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Who has an address.
    pub asked: Vec<Asked>,
    /// Which packets arrive.
    pub echoed: Vec<Echoed>,
    /// Whether a device completes checksums, by real server.
    pub summed: Vec<Summed>,
    /// Connections to real servers, by service.
    pub tried: Vec<Tried>,
    /// Certificates of real servers that TLS goes on to, by service.
    pub shown: Vec<Shown>,
    /// Whether replies of real servers to clients come to us, by service.
    pub returned: Vec<Returned>,
    /// Questions that were not asked, because there are too many.
    pub unasked: usize,
}

/// Why an address is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Next hop of a default route or on the way to a real server.
    Gateway,
    /// It is ours: nobody else may answer.
    Own,
    /// A real server on the link.
    Server,
}

/// Who answered for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Number of the link.
    pub link: u32,
    /// The address.
    pub ip: IpAddr,
    /// Why it was asked for.
    pub purpose: Purpose,
    /// The stations that answered, in the order of their addresses.
    pub stations: Vec<[u8; 6]>,
}

/// Which packets a real server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echoed {
    /// Number of the link that leads there.
    pub link: u32,
    /// The real server.
    pub ip: IpAddr,
    /// The largest packet of the link, in octets: what was asked with.
    pub octets: u32,
    /// A small one was answered.
    pub small: bool,
    /// One as large as the link carries was answered, whole.
    pub full: bool,
}

/// Which of two equal segments a real server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summed {
    /// Number of the link that leads there.
    pub link: u32,
    /// The real server.
    pub ip: IpAddr,
    /// The one whose checksum was complete.
    pub complete: bool,
    /// The one whose checksum was left to the device.
    pub unfinished: bool,
}

/// A connection to a real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Name of the service.
    pub service: String,
    /// Name of the server.
    pub server: String,
    /// Its address.
    pub ip: IpAddr,
    /// Why it failed.
    pub failure: Option<String>,
}

/// What became of a packet that a real server got from a client who is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Name of the service.
    pub service: String,
    /// Name of the server.
    pub server: String,
    /// Its address.
    pub ip: IpAddr,
    /// Number of the link that leads there.
    pub link: u32,
    /// The client.
    pub client: IpAddr,
    /// Its reply came to us.
    pub is_back: bool,
}

/// Asks. Nobody's connections are touched: clients that are played do not exist, and what a real server opens for them is reset.
pub fn probe(model: &Model, facts: &Facts) -> Probes {
    let mut taps = BTreeMap::new();
    let port = played_port();
    for link in facts.links.iter().map(|facts| &facts.link).filter(|link| link.up && link.carrier) {
        let Ok(mac) = <[u8; 6]>::try_from(link.hardware_address.as_slice()) else { continue };
        let opened = Tap::open(&link.name).and_then(|tap| tap.keep_only(&answers_only(port)).map(|()| tap));
        match opened {
            Ok(tap) => taps.insert(link.index, Station { tap, mac }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Probes::Refused("asking on the wire takes CAP_NET_RAW; run as root".to_owned());
            }
            // It has gone meanwhile, which is told elsewhere.
            Err(_) => continue,
        };
    }
    let mut answers = Answers::default();
    let mut questions = questions(model, facts, |link| taps.contains_key(&link));
    answers.unasked = questions.len().saturating_sub(QUESTIONS_MAX);
    questions.truncate(QUESTIONS_MAX);
    let (asked, tried, shown) = thread::scope(|scope| {
        // Beside the first round: the kernel needs the same answers for it.
        let tried = scope.spawn(|| connect(model, &facts.tables));
        let shown = scope.spawn(|| shown::shown(model, QUESTIONS_MAX));
        let asked = ask(&mut taps, &questions, &facts.tables);
        (asked, tried.join().unwrap_or_default(), shown.join().unwrap_or_default())
    });
    (answers.asked, answers.tried, answers.shown) = (asked, tried, shown);
    beyond(model, facts, &mut taps, port, &mut answers);
    Probes::Done(answers)
}

/// One of our interfaces on the wire.
struct Station {
    tap: Tap,
    mac: [u8; 6],
}

/// One address that is asked for on one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    purpose: Purpose,
    link: u32,
    ip: IpAddr,
}

/// A port for the clients that are played, so that two doctors hardly meet; the next one is for segments whose checksum the device completes.
fn played_port() -> u16 {
    40_000 + (process::id() % 10_000) as u16 * 2
}

/// Whom to ask for: gateways first, then our own addresses, then real servers.
fn questions(model: &Model, facts: &Facts, is_open: impl Fn(u32) -> bool) -> Vec<Question> {
    let tables = &facts.tables;
    let mut wanted = BTreeSet::new();
    for server in servers(model) {
        let Some((link, hop)) = hop_to(model, tables, server) else { continue };
        let purpose = if hop == server { Purpose::Server } else { Purpose::Gateway };
        wanted.insert(Question { purpose, link, ip: hop });
    }
    let defaults = tables.routes.iter().filter(|route| route.destination.1 == 0);
    wanted.extend(
        defaults.filter_map(|route| Some(Question { purpose: Purpose::Gateway, link: route.link, ip: route.gateway? })),
    );
    let own = own_addresses(model);
    for &ip in &own {
        let homes: BTreeSet<u32> =
            tables.addresses.iter().filter(|net| holds(net.ip, net.prefix, ip)).map(|net| net.link).collect();
        if is_unknown_to_kernel(model, tables, ip) {
            continue;
        }
        // One that is on no network of ours is routed to us: on any link another may have it.
        let links = facts.links.iter().map(|facts| facts.link.index);
        let links: Vec<u32> = if homes.is_empty() { links.collect() } else { homes.into_iter().collect() };
        wanted.extend(links.into_iter().map(|link| Question { purpose: Purpose::Own, link, ip }));
    }
    let kernels = tables.addresses.iter().filter(|address| !is_link_local(address.ip));
    wanted.extend(kernels.map(|address| Question { purpose: Purpose::Own, link: address.link, ip: address.ip }));
    let is_askable = |question: &Question| is_open(question.link) && !question.ip.is_loopback();
    // A real server at an address of ours is refused elsewhere.
    let is_ours = |question: &Question| question.purpose != Purpose::Own && own.contains(&question.ip);
    wanted.retain(|question| is_askable(question) && !is_ours(question));
    wanted.into_iter().collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The link and next hop on the kernel's way to a real server; none to one of this host, or on a VLAN. A gateway of the other family is not asked.
fn hop_to(model: &Model, tables: &Tables, server: IpAddr) -> Option<(u32, IpAddr)> {
    if server.is_loopback() || tables.addresses.iter().any(|own| own.ip == server) {
        return None;
    }
    let route = kernels_route(model, tables, server)?;
    let hop = route.gateway.unwrap_or(server);
    (hop.is_ipv4() == server.is_ipv4()).then_some((route.link, hop))
}

/// The kernel's address on a link to speak to `ip` from: of the network that holds it, or any of its family.
fn source_towards(tables: &Tables, link: u32, ip: IpAddr) -> Option<IpAddr> {
    let mut own = tables.addresses.iter().filter(|own| own.link == link && own.ip.is_ipv4() == ip.is_ipv4());
    let near = own.clone().find(|own| holds(own.ip, own.prefix, ip));
    near.or_else(|| own.find(|own| !is_link_local(own.ip))).map(|own| own.ip)
}

/// The first round: one thread for each link asks and listens.
fn ask(taps: &mut BTreeMap<u32, Station>, questions: &[Question], tables: &Tables) -> Vec<Asked> {
    let mut sends = BTreeMap::new();
    for question in questions {
        let Some(station) = taps.get(&question.link) else { continue };
        let unspecified = match question.ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let source = match question.purpose {
            Purpose::Own => None,
            Purpose::Gateway | Purpose::Server => source_towards(tables, question.link, question.ip),
        };
        let frame = self::question(station.mac, source.unwrap_or(unspecified), question.ip);
        sends.entry(question.link).or_insert_with(Vec::new).push((frame, None));
    }
    // All of it: whether another station has an address shows only when the time is over.
    let seen = round(taps, &sends, |_| false);
    let answers = |question: &Question| {
        let stations = seen.iter().filter_map(|&(link, seen)| match seen {
            Seen::Station { ip, mac } if link == question.link && ip == question.ip => Some(mac),
            _ => None,
        });
        Asked { link: question.link, ip: question.ip, purpose: question.purpose, stations: stations.collect() }
    };
    questions.iter().map(answers).collect()
}

/// A frame to send, and the checksum in it that is left to the device.
type Outgoing = (Vec<u8>, Option<PartialChecksum>);

/// Sends the frames of each link three times and collects what comes in by any, until `is_enough` or the time is over.
fn round(
    taps: &mut BTreeMap<u32, Station>,
    sends: &BTreeMap<u32, Vec<Outgoing>>,
    is_enough: impl Fn(&BTreeSet<(u32, Seen)>) -> bool + Sync,
) -> BTreeSet<(u32, Seen)> {
    let seen = Mutex::new(BTreeSet::new());
    let is_enough = &is_enough;
    thread::scope(|scope| {
        for (&link, station) in taps {
            let (seen, frames) = (&seen, sends.get(&link).map_or(&[][..], Vec::as_slice));
            scope.spawn(move || {
                let began = Instant::now();
                let mut times = 0;
                while began.elapsed() < ROUND {
                    if times < 3 && began.elapsed() >= AGAIN * times {
                        times += 1;
                        // What cannot be sent is not answered.
                        for (frame, unfinished) in frames {
                            let _unsent = match *unfinished {
                                None => station.tap.send(frame),
                                Some(checksum) => station.tap.send_unfinished(frame, checksum),
                            };
                        }
                    }
                    let found = listen(&mut station.tap);
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.extend(found.into_iter().map(|found| (link, found)));
                    if is_enough(&seen) {
                        break;
                    }
                }
            });
        }
    });
    seen.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What comes in within one look.
fn listen(tap: &mut Tap) -> Vec<Seen> {
    let until = Instant::now() + LOOK;
    let mut found = Vec::new();
    while let Ok(Some(frame)) = tap.next(until) {
        if frame.direction == Direction::Received && frame.tag.is_none() {
            found.extend(Seen::of(&frame.bytes));
        }
        if Instant::now() >= until {
            break;
        }
    }
    found
}

/// The second round: packets to real servers, by the next hops that have answered.
fn beyond(model: &Model, facts: &Facts, taps: &mut BTreeMap<u32, Station>, port: u16, answers: &mut Answers) {
    let tables = &facts.tables;
    let mut sends: BTreeMap<u32, Vec<Outgoing>> = BTreeMap::new();
    let mut ways = BTreeMap::new();
    let id = process::id() as u16;
    let sockets: BTreeMap<IpAddr, SocketAddr> = model
        .services
        .iter()
        .flat_map(|service| model.servers_of(service).map(move |server| (service, server)))
        .filter_map(|(service, server)| socket_of(service, server.address, server.port))
        .map(|socket| (socket.ip(), socket))
        .collect();
    for server in servers(model).into_iter().take(QUESTIONS_MAX) {
        let Some((link, hop)) = hop_to(model, tables, server) else { continue };
        let station = answers.asked.iter().find(|asked| asked.link == link && asked.ip == hop);
        let Some(&via) = station.and_then(|asked| asked.stations.first()) else { continue };
        let (Some(own), Some(facts)) = (taps.get(&link), facts.link(link)) else { continue };
        let way = Way { mac: own.mac, via };
        ways.insert(server, (link, way));
        let Some(from) = source_towards(tables, link, server) else { continue };
        let octets = full(&facts.link);
        let frames = sends.entry(link).or_default();
        frames.push((echo(way, from, server, id, SMALL_OCTETS), None));
        frames.push((echo(way, from, server, id, octets), None));
        if let Some(to) = sockets.get(&server) {
            frames.push((syn(way, SocketAddr::new(from, port), *to), None));
            let (frame, checksum) = unfinished_syn(way, SocketAddr::new(from, port + 1), *to);
            frames.push((frame, Some(checksum)));
            answers.summed.push(Summed { link, ip: server, complete: false, unfinished: false });
        }
        answers.echoed.push(Echoed { link, ip: server, octets, small: false, full: false });
    }
    let half_nat = model.services.iter().filter(|service| service.forwarding == Forwarding::HalfNat);
    for service in half_nat {
        for server in model.servers_of(service) {
            let Some(&(link, way)) = ways.get(&server.address) else { continue };
            let Some(client) = client_of(service, server.address, tables) else { continue };
            let frames = sends.entry(link).or_default();
            frames.push((echo(way, client, server.address, id, SMALL_OCTETS), None));
            if let Some(to) = socket_of(service, server.address, server.port) {
                frames.push((syn(way, SocketAddr::new(client, port), to), None));
            }
            answers.returned.push(Returned {
                service: service.name.clone(),
                server: server.name.clone(),
                ip: server.address,
                link,
                client,
                is_back: false,
            });
        }
    }
    let is_echoed = |seen: &BTreeSet<(u32, Seen)>, from: IpAddr, size: u32| {
        seen.iter().any(|&(_, seen)| {
            matches!(seen, Seen::Echo { from: answers, id: of, octets, .. } if answers == from && of == id && octets == size)
        })
    };
    let is_answered = |seen: &BTreeSet<(u32, Seen)>, from: IpAddr, at: u16, client: Option<IpAddr>| {
        seen.iter().any(|&(_, seen)| match seen {
            Seen::Echo { from: answers, to, id: of, .. } => answers == from && Some(to) == client && of == id,
            Seen::Segment { from: answers, to, .. } => {
                answers.ip() == from && to.port() == at && client.is_none_or(|client| client == to.ip())
            }
            Seen::Station { .. } => false,
        })
    };
    let (echoed, summed, returned) = (answers.echoed.clone(), answers.summed.clone(), answers.returned.clone());
    let seen = round(taps, &sends, |seen| {
        echoed.iter().all(|echoed| is_echoed(seen, echoed.ip, echoed.octets))
            && summed.iter().all(|summed| is_answered(seen, summed.ip, port + 1, None))
            && returned.iter().all(|returned| is_answered(seen, returned.ip, port, Some(returned.client)))
    });
    for echoed in &mut answers.echoed {
        echoed.small = is_echoed(&seen, echoed.ip, SMALL_OCTETS);
        echoed.full = is_echoed(&seen, echoed.ip, echoed.octets);
    }
    for summed in &mut answers.summed {
        summed.complete = is_answered(&seen, summed.ip, port, None);
        summed.unfinished = is_answered(&seen, summed.ip, port + 1, None);
    }
    for returned in &mut answers.returned {
        returned.is_back = is_answered(&seen, returned.ip, port, Some(returned.client));
    }
    // Nobody uses what was accepted; what was at an address of the kernel's it has reset already.
    for (_, seen) in seen {
        if let Seen::Segment { from, to, accepts: Some(ack) } = seen
            && to.port() == port
            && !facts.tables.addresses.iter().any(|own| own.ip == to.ip())
            && let Some((link, way)) = ways.get(&from.ip())
            && let Some(station) = taps.get(link)
        {
            drop(station.tap.send(&reset(*way, to, from, ack)));
        }
    }
}

fn full(link: &Link) -> u32 {
    link.mtu_bytes.clamp(SMALL_OCTETS, FULL_OCTETS_MAX)
}

/// A client of a half-NAT service that is on no network of this host: the last address but one of a network that the operator has named,
/// else one that nobody has.
fn client_of(service: &VirtualService, server: IpAddr, tables: &Tables) -> Option<IpAddr> {
    let is_elsewhere = |&ip: &IpAddr| {
        ip.is_ipv4() == server.is_ipv4() && !tables.addresses.iter().any(|net| holds(net.ip, net.prefix, ip))
    };
    let last = |&(network, prefix): &(IpAddr, u8)| match network {
        IpAddr::V4(network) if (8..31).contains(&prefix) => {
            Some(IpAddr::V4(Ipv4Addr::from_bits((network.to_bits() | u32::MAX >> prefix) - 1)))
        }
        IpAddr::V6(network) if (32..127).contains(&prefix) => {
            Some(IpAddr::V6(Ipv6Addr::from_bits((network.to_bits() | u128::MAX >> prefix) - 1)))
        }
        _ => None,
    };
    let named = service.client_networks.iter().filter_map(last);
    let nobody = NOBODY_V4.map(IpAddr::from).into_iter().chain(NOBODY_V6.map(IpAddr::from));
    named.chain(nobody).find(is_elsewhere)
}

/// Where a connection to a real server of a TCP service may be tried: its own port, or the first of the service.
fn socket_of(service: &VirtualService, server: IpAddr, port: Option<u16>) -> Option<SocketAddr> {
    if service.protocol != Protocol::Tcp {
        return None;
    }
    let first = match &service.ports {
        Ports::List(list) => list.first().copied(),
        Ports::All => None,
    };
    Some(SocketAddr::new(server, port.or(first)?))
}

/// Connects to every real server as its health check would, from the address that the kernel picks.
fn connect(model: &Model, tables: &Tables) -> Vec<Tried> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut wanted = Vec::new();
    let groups = model.services.iter().flat_map(|service| model.groups_of(service).map(move |group| (service, group)));
    for (service, group) in groups {
        for server in &group.servers {
            let named = group.health.as_ref().map_or(&[][..], |health| health.ports.as_slice());
            // Ports of datagrams know nothing of connections: there the check itself is made.
            let kind = match &group.health {
                Some(health) if health.check.carrier() != Carrier::Stream => health.check.clone(),
                _ => CheckKind::Tcp,
            };
            let own = match kind.carrier() {
                Carrier::Echo => Some(NO_PORT),
                Carrier::Datagram => server.port.or_else(|| service.sockets().next().map(|socket| socket.port())),
                Carrier::Stream => socket_of(service, server.address, server.port).map(|socket| socket.port()),
            };
            let ports = if named.is_empty() { Vec::from_iter(own) } else { named.to_vec() };
            // What the kernel has no way to is told by that, and what is on a VLAN or a bridge only the daemon reaches.
            let is_near = server.address.is_loopback() || kernels_route(model, tables, server.address).is_some();
            if !ports.is_empty() && is_near {
                wanted.push((service.name.clone(), server.name.clone(), server.address, kind, ports));
            }
        }
    }
    runtime.block_on(async {
        let mut running = JoinSet::new();
        let mut tried = Vec::new();
        let mut wanted = wanted.into_iter().take(QUESTIONS_MAX).enumerate();
        loop {
            while running.len() < CONNECTIONS_MAX
                && let Some((place, (service, server, ip, kind, ports))) = wanted.next()
            {
                let plan = CheckPlan {
                    id: CheckId(0),
                    address: ip,
                    vip: None,
                    kind,
                    ports,
                    proxy: None,
                    interval_ms: CONNECT_MS,
                    fast_interval_ms: CONNECT_MS,
                    timeout_ms: CONNECT_MS,
                    rise: 1,
                    fall: 1,
                    damping: Damping::OFF,
                };
                let places = Arc::clone(&places);
                running.spawn(async move {
                    let mut trust = health_probe::Trust::default();
                    let (network, subject) = (Network::default(), Subject::default());
                    let probed =
                        health_probe::run(&plan, &network, &places, &mut trust, &subject, Detail::Result).await;
                    let failure = match probed.result {
                        CheckResult::Passed => None,
                        CheckResult::Failed(reason) => Some(reason),
                    };
                    (place, Tried { service, server, ip, failure })
                });
            }
            match running.join_next().await {
                Some(done) => tried.extend(done),
                None => break,
            }
        }
        tried.sort_by_key(|&(place, _)| place);
        tried.into_iter().map(|(_, tried)| tried).collect()
    })
}
