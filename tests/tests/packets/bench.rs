//! A plane between two links, made of a case's configuration and fed with its frames.

use std::collections::BTreeMap;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use towpath_config::Model;
use towpath_config::model::{Bridge, Interface, Vlan};
use towpath_core::balancer::BalancerState;
use towpath_core::compile::compile;
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::fast_path::{Arrival, FastMemory, FastSettings, FastShape};
use towpath_core::health::HealthBoard;
use towpath_core::http::{HttpMaterial, HttpSecret};
use towpath_core::loads::{Loads, PlainLoads};
use towpath_core::packet::rewrite::Checksum;
use towpath_core::packet::straight::Station;
use towpath_core::packet::{DropReason, Ip, Mac};
use towpath_core::persistence::PersistenceTable;
use towpath_core::plane::{
    Desk, Frame, Keeper, Network, Outbox, Plane, PlaneCounter, PlaneSettings, Port, PortId, Strays, Verdict,
};
use towpath_core::registry::Registry;
use towpath_core::snapshot::{Service, Snapshot};
use towpath_core::snat::{SnatBook, SnatLimits};
use towpath_core::steering::SteeringTable;
use towpath_core::{Generation, Now, Pick, RealServerId, Refusal, ServiceId, Tried, WorkerId};
use towpath_sys::packet::Tag;

use crate::capture::{Captured, Offload};

pub(crate) const OUTSIDE: PortId = PortId(0);
pub(crate) const INSIDE: PortId = PortId(1);
pub(crate) const OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xa0];
pub(crate) const INSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xa1];
pub(crate) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Numbers of the stations inside: `10.0.0.N` and `fd00::N`.
const SERVERS: std::ops::RangeInclusive<u8> = 80..=83;

/// Counters by section and name; those that are 0 are left out.
pub(crate) type Counters = BTreeMap<String, BTreeMap<String, u64>>;

/// The station `number` inside.
pub(crate) fn server_mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

/// What leaves and what is counted when `frames` come in, one after the other.
///
/// # Errors
/// The configuration is not accepted.
pub(crate) fn run(config: &str, frames: &[Captured]) -> Result<(Vec<Captured>, Counters), String> {
    run_by(config, frames, Carrier::Plane)
}

/// Who takes frames of established flows onwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// The kernel, where it is given them: by what its program does.
    Kernel,
    /// The plane.
    Plane,
}

/// The same where these carry the flows.
///
/// # Errors
/// The configuration is not accepted.
pub(crate) fn run_by(config: &str, frames: &[Captured], carrier: Carrier) -> Result<(Vec<Captured>, Counters), String> {
    let model = model(config)?;
    let snapshot = Arc::new(snapshot(&model)?);
    let mut desk = TestDesk::new(&snapshot);
    let network = Arc::new(match model.bridges.first() {
        Some(bridge) => bridged(bridge),
        None => network_with(model.vlans()),
    });
    let mut plane = Plane::new(&SETTINGS, Arc::clone(&snapshot), Arc::clone(&network), Now(0));
    let kernel = (carrier == Carrier::Kernel).then(|| FastMemory::private(FastShape::new(1_024), [3, 5]));
    if let Some(memory) = &kernel {
        plane.use_fast_path(memory.clone(), FastSettings { worker: 0, flows: 0..64, origin_ms: 0 });
    }
    let mut out = Outbox::new(256, 1 << 16);
    let mut verdicts = Vec::new();
    let mut left = Vec::new();
    for frame in frames {
        let Captured { at_ms, port: link, offload, ref bytes } = *frame;
        let (tag, mut bytes) = without_tag(bytes);
        let is_stacked = tag.is_some_and(|tag| tag.protocol != Tag::DOT1Q);
        let of_vlan = if is_stacked { None } else { network.port_of(link.0, tag.and_then(Tag::vlan)) };
        let bridged = || network.port(link)?.peer.map(|_| link.tagged());
        // The rings pass over what is of no port and of no bridge.
        let Some(port) = of_vlan.or_else(bridged) else { continue };
        while !plane.expire(Now(at_ms), 64, &mut desk, &mut out) {}
        take_made(at_ms, &network, &mut out, &mut left);
        let (checksum, segment_bytes) = match offload {
            Offload::Nothing => (Checksum::Complete, 0),
            Offload::Checksum => (Checksum::Partial, 0),
            Offload::Segments(bytes) => (Checksum::Partial, bytes),
        };
        let arrival = network.port(port).map(|of_port| Arrival {
            ifindex: of_port.index,
            station: Station::new(of_port.mac),
            is_tagged: tag.is_some(),
            checksum,
            segment_bytes,
        });
        if let Some((memory, arrival)) = kernel.as_ref().zip(arrival)
            && let Some(out) = memory.carry(&mut bytes, &arrival, at_ms * 1_000_000)
        {
            let port = network.ports.iter().zip(0..).find(|(port, _)| port.index == out);
            let (_, port) = port.ok_or("the kernel sends to a port that is none of ours")?;
            left.push(Captured { at_ms, port: PortId(port), offload, bytes });
            continue;
        }
        bytes.splice(..0, [0; Frame::FRONT]);
        let (front, frame) = bytes.split_at_mut(Frame::FRONT);
        let mut batch = [Frame { bytes: frame, front, port, checksum, segment_bytes }];
        plane.process(Now(at_ms), &mut batch, &mut verdicts, &mut desk, &mut out);
        let sent = match verdicts[..] {
            [Verdict::Send(port)] => Some((port, 0)),
            [Verdict::Translated { port, begins }] => Some((port, begins)),
            _ => None,
        };
        if let Some((port, begins)) = sent {
            let start = Frame::FRONT.saturating_add_signed(begins.into());
            let (port, bytes) = with_tag(&network, port, tag, &bytes[start..]);
            left.push(Captured { at_ms, port, offload, bytes });
        }
        take_made(at_ms, &network, &mut out, &mut left);
    }
    if let (Some(last), Carrier::Kernel) = (frames.last(), carrier) {
        // What the kernel has counted is fetched within a second; nothing else happens by then.
        let _all_done = plane.expire(Now(last.at_ms + 1_000), 0, &mut desk, &mut out);
    }
    Ok((left, counters(&plane, &desk, &snapshot)))
}

fn take_made(at_ms: u64, network: &Network, out: &mut Outbox, left: &mut Vec<Captured>) {
    let made = |(port, bytes): (PortId, &[u8])| {
        let (port, bytes) = with_tag(network, port, None, bytes);
        Captured { at_ms, port, offload: Offload::Nothing, bytes }
    };
    left.extend(out.iter().map(made));
    assert_eq!(out.overflowed(), 0, "the outbox of the test is too small");
    out.clear();
}

/// The outermost tag of a frame as it is on the wire, and what is left, as the kernel takes it off.
fn without_tag(frame: &[u8]) -> (Option<Tag>, Vec<u8>) {
    match frame.split_at_checked(Tag::PLACE) {
        Some((addresses, &[a @ (0x81 | 0x88), b @ (0 | 0xa8), c, d, ref rest @ ..])) => {
            let tag = Tag { protocol: u16::from_be_bytes([a, b]), control: u16::from_be_bytes([c, d]) };
            (Some(tag), [addresses, rest].concat())
        }
        _ => (None, frame.to_vec()),
    }
}

/// How a frame leaves by a port: its link, and what is on the wire there.
fn with_tag(network: &Network, port: PortId, came_with: Option<Tag>, frame: &[u8]) -> (PortId, Vec<u8>) {
    let (addresses, rest) = frame.split_at(Tag::PLACE);
    if let Some(arm) = port.is_tagged() {
        let tag = came_with.map_or(Vec::new(), |tag| tag.bytes().to_vec());
        return (arm, [addresses, &tag, rest].concat());
    }
    let Some(port) = network.port(port) else { return (port, frame.to_vec()) };
    let tag = port.vlan.map_or(Vec::new(), |vlan| Tag::of_vlan(vlan, came_with).bytes().to_vec());
    (PortId(port.link), [addresses, &tag, rest].concat())
}

/// Small, and never random: the same frames always meet the same plane.
pub(crate) const SETTINGS: PlaneSettings = PlaneSettings {
    flows_max: 64,
    half_open_max: 16,
    half_open_per_source_max: 0,
    pending_frames_max: 8,
    replies_per_second: 1_000,
    worker: WorkerId(0),
    seed: [7, 9],
    steering_seed: 5,
    strays: Strays::Reset,
};

/// What a configuration means.
///
/// # Errors
/// It is not accepted.
pub(crate) fn model(config: &str) -> Result<Model, String> {
    let checked = towpath_config::check("config.toml", config);
    let complaints: Vec<String> =
        checked.errors().chain(checked.unavailable()).map(|complaint| format!("{complaint:?}")).collect();
    checked.model.filter(|_| complaints.is_empty()).ok_or_else(|| complaints.join("\n"))
}

fn snapshot(model: &Model) -> Result<Snapshot, String> {
    let (mut registry, mut snat) = (Registry::new(), SnatBook::new(SnatLimits::default()));
    let steering = Arc::new(SteeringTable::even(1));
    compile(
        model,
        &mut registry,
        &HealthBoard::new(),
        &mut snat,
        steering,
        &HttpMaterial::new(HttpSecret::new([7; 16])),
        Generation(1),
    )
    .map_err(|error| error.to_string())
}

/// A router outside, real servers inside; see `tests/packets/README.md`.
pub(crate) fn network() -> Network {
    network_with(iter::empty())
}

/// The same with VLANs on its links.
fn network_with<'m>(vlans: impl Iterator<Item = (&'m Interface, &'m Vlan)>) -> Network {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address").into();
    let port = |name: &str, mac, addresses: [(&str, u8); 2]| Port {
        name: name.into(),
        index: if name == "outside" { 11 } else { 12 },
        mac: Mac(mac),
        mtu: 1500,
        addresses: addresses.map(|(address, prefix)| (ip(address), prefix)).to_vec(),
        segments: true,
        ..Port::default()
    };
    let mut ports = vec![
        port("outside", OUTSIDE_MAC, [("192.0.2.1", 24), ("2001:db8::1", 64)]),
        Port { link: 1, ..port("inside", INSIDE_MAC, [("10.0.0.1", 24), ("fd00::1", 64)]) },
    ];
    let mut routes = vec![
        (ip("192.0.2.0"), 24, None, OUTSIDE, 0),
        (ip("2001:db8::"), 64, None, OUTSIDE, 0),
        (ip("10.0.0.0"), 24, None, INSIDE, 0),
        (ip("fd00::"), 64, None, INSIDE, 0),
        (ip("0.0.0.0"), 0, Some(ip("192.0.2.254")), OUTSIDE, 0),
        (ip("::"), 0, Some(ip("2001:db8::fe")), OUTSIDE, 0),
    ];
    let routers = ["192.0.2.254", "2001:db8::fe"].map(|router| (OUTSIDE, ip(router), Mac(ROUTER_MAC)));
    let servers = SERVERS.flat_map(|number| {
        let addresses = [format!("10.0.0.{number}"), format!("fd00::{number}")];
        addresses.map(|address| (INSIDE, ip(&address), Mac(server_mac(number))))
    });
    let mut neighbours: Vec<(PortId, Ip, Mac)> = servers.chain(routers).collect();
    for ((interface, vlan), id) in vlans.zip(2..) {
        let of_link =
            ports.iter().find(|port| port.name == interface.name).expect("VLANs are on both links only").clone();
        for &(own, prefix) in &vlan.addresses {
            routes.push((own.into(), prefix, None, PortId(id), 0));
            // Stations of the same numbers as those without a tag.
            neighbours.extend(SERVERS.map(|number| (PortId(id), station(own, number), Mac(server_mac(number)))));
        }
        let addresses = vlan.addresses.iter().map(|&(own, prefix)| (own.into(), prefix)).collect();
        let (name, keeper) = (vlan.name.clone(), Keeper::Towpath);
        ports.push(Port { name, vlan: Some(vlan.id), index: 0, addresses, keeper, ..of_link });
    }
    Network::new(ports, routes, neighbours)
}

/// The station of this number in the network of `own`.
fn station(own: IpAddr, number: u8) -> Ip {
    match own {
        IpAddr::V4(own) => {
            let [a, b, c, _] = own.octets();
            Ip::from(IpAddr::from([a, b, c, number]))
        }
        IpAddr::V6(own) => {
            let mut segments = own.segments();
            // As it is written: `::80`.
            segments[7] = u16::from(number / 10) << 4 | u16::from(number % 10);
            Ip::from(IpAddr::from(segments))
        }
    }
}

/// The same two ports as the arms of a bridge: one network, the router outside and the servers inside.
fn bridged(bridge: &Bridge) -> Network {
    let arm = |name: &str, mac, peer| Port {
        name: name.into(),
        link: u8::from(name != "outside"),
        index: if name == "outside" { 11 } else { 12 },
        mac: Mac(mac),
        mtu: 1500,
        keeper: Keeper::Towpath,
        peer: Some(peer),
        blocks_spanning_tree: !bridge.spanning_tree,
        segments: true,
        ..Port::default()
    };
    let own: Vec<(Ip, u8)> = bridge.addresses.iter().map(|&(address, prefix)| (address.into(), prefix)).collect();
    let links = own.iter().map(|&(network, prefix)| (network, prefix, None, OUTSIDE, 0));
    let address = |text: &str| Ip::from(text.parse::<IpAddr>().expect("an address"));
    let routers = ["192.0.2.254", "2001:db8::fe"].map(address);
    let defaults = [("0.0.0.0", routers[0]), ("::", routers[1])];
    let defaults = defaults.map(|(all, router)| (address(all), 0, Some(router), OUTSIDE, 0));
    let servers = SERVERS.flat_map(|number| {
        let addresses = [format!("192.0.2.{number}"), format!("2001:db8::{number}")];
        addresses.map(|own| (INSIDE, address(&own), Mac(server_mac(number))))
    });
    let routes = links.chain(defaults).collect();
    let stations = servers.chain(routers.map(|router| (OUTSIDE, router, Mac(ROUTER_MAC)))).collect();
    let outside = Port { addresses: own, ..arm("outside", OUTSIDE_MAC, INSIDE) };
    Network::new(vec![outside, arm("inside", INSIDE_MAC, OUTSIDE)], routes, stations)
}

fn counters(plane: &Plane, desk: &TestDesk, snapshot: &Snapshot) -> Counters {
    let mut counters = desk.counted.clone();
    let of_plane = PlaneCounter::ALL.iter().map(|&counter| ("plane", counter.label(), plane.counts().read(counter)));
    let drops = DropReason::ALL.iter().map(|&reason| ("dropped", reason.label(), plane.counts().dropped(reason)));
    for (section, name, value) in of_plane.chain(drops).filter(|&(.., value)| value > 0) {
        counters.entry(section.into()).or_default().insert(name.into(), value);
    }
    let carried = snapshot.each_service().map(|service| u64::from(desk.active_of(service.id))).sum();
    let left = [("flows", plane.flows() as u64), ("half_open", plane.half_open() as u64), ("connections", carried)];
    counters.insert("left".into(), left.map(|(name, value)| (name.to_owned(), value)).into());
    counters
}

/// The Director of one worker, and what it is told.
pub(crate) struct TestDesk {
    balancer: BalancerState,
    persistence: PersistenceTable,
    loads: PlainLoads,
    names: BTreeMap<ServiceId, String>,
    counted: Counters,
}

impl TestDesk {
    pub(crate) fn new(snapshot: &Snapshot) -> TestDesk {
        TestDesk {
            balancer: BalancerState::new(1),
            persistence: PersistenceTable::new(16, 1),
            loads: PlainLoads::new(snapshot.services.len(), snapshot.real_servers.len()),
            names: snapshot
                .each_service()
                .map(|service| (service.id, service.name.clone()))
                .chain(snapshot.outbound.each().flat_map(|nat| {
                    nat.lanes().iter().map(|lane| (lane.id, format!("{} {}", nat.name, lane.pool.leased().label())))
                }))
                .collect(),
            counted: Counters::new(),
        }
    }

    /// Connections of a service that are counted now.
    pub(crate) fn active_of(&self, service: ServiceId) -> u32 {
        self.loads.active_of_service(service)
    }

    fn add(&mut self, what: &str, service: ServiceId, name: &str, n: u64) {
        let section = format!("{what}.{}", self.names[&service]);
        *self.counted.entry(section).or_default().entry(name.into()).or_default() += n;
    }
}

impl Desk for TestDesk {
    fn pick(&mut self, service: &Service, client: SocketAddr, _: u16, now: Now) -> Result<Pick, Refusal> {
        let tried = Tried::new();
        towpath_core::pick(service, &mut self.balancer, &mut self.persistence, &self.loads, client, &tried, now)
    }

    fn close(&mut self, service: ServiceId, server: RealServerId) {
        self.loads.close(service, server);
    }

    fn count(&mut self, service: ServiceId, counter: ServiceCounter, n: u64) {
        self.add("service", service, counter.label(), n);
    }

    fn end(&mut self, service: ServiceId, termination: Termination) {
        self.add("ended", service, termination.label(), 1);
    }

    fn opened(&mut self, _server: RealServerId) {}

    fn failed(&mut self, _server: RealServerId) {}
}
