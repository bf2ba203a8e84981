//! Readings by facts, without a machine: one that is well has nothing to tell, and each fault is told with the command that mends it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use towpath_sys::ethtool::Feature;
use towpath_sys::link::Link;
use towpath_sys::neighbour::{KnownRoute, LinkAddress, Tables};

use super::*;
use crate::packets::arms::{Arm, NoWay};
use crate::packets::fast::Readiness;
use crate::preflight::{Certificates, HostFacts, Listener, PacketFacts};

const PACKET: &str = r#"
    [[service]]
    name = "web"
    vip = "192.0.2.30"
    ports = [443]
    plane = "packet"
    source = { pool = ["198.51.100.30"] }
    [[service.server]]
    name = "one"
    address = "198.51.100.31"
    "#;
const HALF_NAT: &str = r#"
    [[service]]
    name = "web"
    vip = "192.0.2.30"
    ports = [443]
    plane = "packet"
    forwarding = "half-nat"
    [[service.server]]
    name = "one"
    address = "198.51.100.31"
    "#;
const STREAM: &str = r#"
    [[service]]
    name = "web"
    vip = "192.0.2.30"
    ports = [443]
    [[service.server]]
    name = "one"
    address = "198.51.100.31"
    "#;

const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 31];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 99];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn model(text: &str) -> Model {
    let checked = towpath_config::check("test.toml", text);
    let errors: Vec<String> = checked.errors().map(|error| error.message.clone()).collect();
    checked.model.unwrap_or_else(|| panic!("{errors:?}"))
}

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        up: true,
        carrier: true,
        ethernet: true,
        hardware_address: vec![2, 0, 0, 0, 0, index as u8],
        mtu_bytes: 1500,
    }
}

/// A machine with two arms that fits: cards at node 0, as its workers are.
fn facts(text: &str) -> Facts {
    let route = |network: &str, prefix, gateway: Option<&str>, link| KnownRoute {
        destination: (ip(network), prefix),
        gateway: gateway.map(ip),
        link,
        metric: 0,
    };
    let tables = Tables {
        links: vec![link(2, "front"), link(3, "back")],
        addresses: vec![
            LinkAddress { link: 2, ip: ip("192.0.2.10"), prefix: 24 },
            LinkAddress { link: 3, ip: ip("198.51.100.10"), prefix: 24 },
        ],
        routes: vec![
            route("192.0.2.0", 24, None, 2),
            route("198.51.100.0", 24, None, 3),
            route("0.0.0.0", 0, Some("192.0.2.1"), 2),
        ],
        neighbours: Vec::new(),
    };
    let is_packet = text.contains("packet");
    let packets = PacketFacts {
        tables: tables.clone(),
        arms: [(2, "front"), (3, "back")]
            .map(|(index, name)| Arm { name: name.to_owned(), index, mtu_bytes: 1500 })
            .to_vec(),
        missing: Vec::new(),
        is_capable: true,
        fast_path: Readiness::Ready,
        kernel_forwards: [const { Vec::new() }; 2],
        listeners: BTreeSet::new(),
    };
    let of_link = |link: &Link| LinkFacts {
        link: link.clone(),
        is_strict: false,
        features: vec![Feature::ReceiveMerge, Feature::ReceiveSums, Feature::Segmentation, Feature::SendSums],
        card: Some(Card { node: Some(0), interrupts: vec![vec![0], vec![1]] }),
    };
    Facts {
        host: HostFacts {
            usable: [ip("192.0.2.30")].into(),
            kernel_sources: [ip("192.0.2.10"), ip("198.51.100.10")].into(),
            cpus: vec![0, 1],
            nofile: 20_000,
            local_ports: 32_768..=60_999,
            reserved_ports: Vec::new(),
            memory_bytes: 4 << 30,
            kernel_release: "6.18.0".to_owned(),
            packets: is_packet.then_some(packets),
            certificates: Certificates::default(),
            files: Vec::new(),
        },
        links: tables.links.iter().map(of_link).collect(),
        tables,
        huge_pages: Some(HugePages::Asked),
        nodes: vec![vec![0, 1], vec![2, 3]],
        is_running: false,
    }
}

/// Everybody who should answers, and nobody else.
fn answers(text: &str) -> Answers {
    let asked = |link, address: &str, purpose, stations: &[[u8; 6]]| Asked {
        link,
        ip: ip(address),
        purpose,
        stations: stations.to_vec(),
    };
    let server = ip("198.51.100.31");
    let returned = Returned {
        service: "web".to_owned(),
        server: "one".to_owned(),
        ip: server,
        link: 3,
        client: ip("203.0.113.1"),
        is_back: true,
    };
    Answers {
        asked: vec![
            asked(2, "192.0.2.1", Purpose::Gateway, &[[2, 0, 0, 0, 9, 1]]),
            asked(2, "192.0.2.10", Purpose::Own, &[]),
            asked(2, "192.0.2.30", Purpose::Own, &[]),
            // Our own other interface is on the same switch.
            asked(3, "198.51.100.30", Purpose::Own, &[[2, 0, 0, 0, 0, 2]]),
            asked(3, "198.51.100.31", Purpose::Server, &[SERVER_MAC]),
        ],
        echoed: vec![Echoed { link: 3, ip: server, octets: 1500, small: true, full: true }],
        summed: vec![Summed { link: 3, ip: server, complete: true, unfinished: true }],
        shown: Vec::new(),
        tried: vec![Tried { service: "web".to_owned(), server: "one".to_owned(), ip: server, failure: None }],
        returned: if text.contains("half-nat") { vec![returned] } else { Vec::new() },
        unasked: 0,
    }
}

/// What is told of a machine with this fault, without what is fine.
fn told(text: &str, fault: impl FnOnce(&mut Facts, &mut Answers)) -> Vec<Reading> {
    let (mut facts, mut answers) = (facts(text), answers(text));
    fault(&mut facts, &mut answers);
    let mut readings = readings(&model(text), &facts, &Probes::Done(answers));
    readings.retain(|reading| reading.state != State::Fine);
    readings
}

/// That one thing is told of one subject, and what mends it.
#[track_caller]
fn assert_told(text: &str, fault: impl FnOnce(&mut Facts, &mut Answers), expected: (&str, Check, State, &str)) {
    let told = told(text, fault);
    let (subject, check, state, command) = expected;
    let [reading] = told.as_slice() else { panic!("not one: {told:#?}") };
    let name = match &reading.subject {
        Subject::Machine => "machine",
        Subject::Interface(name) | Subject::Service(name) => name,
    };
    assert_eq!((name, reading.check, reading.state), (subject, check, state), "{reading:#?}");
    let run = reading.run.as_ref().map_or("", |run| run.command.as_str());
    assert!(run.contains(command) && run.is_empty() == command.is_empty(), "{reading:#?}");
}

fn packets(facts: &mut Facts) -> &mut PacketFacts {
    facts.host.packets.as_mut().unwrap()
}

#[test]
fn a_machine_that_is_well_has_only_fine_readings() {
    for text in [PACKET, HALF_NAT, STREAM] {
        assert_eq!(told(text, |_, _| {}), [], "{text}");
    }
    let all = readings(&model(HALF_NAT), &facts(HALF_NAT), &Probes::Done(answers(HALF_NAT)));
    let of = |subject: &Subject| -> Vec<Check> {
        all.iter().filter(|reading| reading.subject == *subject).map(|reading| reading.check).collect()
    };
    assert_eq!(
        of(&Subject::Machine),
        [Check::Kernel, Check::Limits, Check::Capabilities, Check::Routes, Check::FastPath, Check::HugePages]
    );
    assert_eq!(
        of(&Subject::Interface("front".to_owned())),
        [Check::Interrupts, Check::Link, Check::Offloads, Check::DuplicateAddress, Check::NextHop]
    );
    assert_eq!(
        of(&Subject::Service("web".to_owned())),
        [Check::Addresses, Check::NextHop, Check::Servers, Check::ReturnPath]
    );
    assert!(all.iter().all(|reading| reading.run.is_none()));
}

#[test]
fn faults_of_the_machine_are_told() {
    use {Check::*, State::*};
    assert_told(PACKET, |f, _| f.host.kernel_release = "5.15.0".into(), ("machine", Kernel, Error, ""));
    assert_told(PACKET, |f, _| packets(f).is_capable = false, ("machine", Capabilities, Error, ""));
    assert_told(PACKET, |f, _| f.host.nofile = 50, ("machine", Limits, Error, "ulimit -n"));
    let why = Readiness::Unavailable("no BPF here".to_owned());
    assert_told(PACKET, |f, _| packets(f).fast_path = why, ("machine", FastPath, Hint, "systemctl edit"));
    let never = Some(facts::HugePages::Never);
    assert_told(PACKET, |f, _| f.huge_pages = never, ("machine", HugePages, Hint, "echo madvise >"));
    let no_way = vec![NoWay::NoRoute(ip("198.51.100.31"))];
    assert_told(
        PACKET,
        |f, _| packets(f).missing = no_way,
        ("machine", Routes, Error, "ip route add 198.51.100.31 via"),
    );
    let listener =
        Listener { protocol: towpath_config::model::Protocol::Tcp, local: "192.0.2.30:443".parse().unwrap() };
    let taken = |facts: &mut Facts, _: &mut Answers| {
        packets(facts).listeners.insert(listener);
        packets(facts).tables.addresses.push(LinkAddress { link: 2, ip: ip("192.0.2.30"), prefix: 32 });
    };
    assert_told(PACKET, taken, ("machine", Listeners, Warning, ""));
}

#[test]
fn a_daemon_that_runs_has_its_share_already() {
    let small =
        |running| move |facts: &mut Facts, _: &mut Answers| (facts.is_running, facts.host.nofile) = (running, 50);
    assert_eq!(told(PACKET, small(false)).len(), 1);
    assert_eq!(told(PACKET, small(true)), []);
}

#[test]
fn faults_of_interfaces_are_told() {
    use {Check::*, State::*};
    assert_told(PACKET, |f, _| f.links[0].link.up = false, ("front", Link, Warning, "ip link set front up"));
    assert_told(PACKET, |f, _| f.links[1].link.carrier = false, ("back", Link, Warning, "ethtool back"));
    let without = |facts: &mut Facts, feature: Feature| facts.links[0].features.retain(|&has| has != feature);
    assert_told(
        PACKET,
        |f, _| f.links[0].features.push(Feature::LargeReceive),
        ("front", Offloads, Warning, "ethtool -K front lro off"),
    );
    for (feature, command) in [
        (Feature::SendSums, "ethtool -K front tx on"),
        (Feature::Segmentation, "ethtool -K front tso on"),
        (Feature::ReceiveMerge, "ethtool -K front gro on"),
    ] {
        assert_told(PACKET, |f, _| without(f, feature), ("front", Offloads, Hint, command));
        // A relay is served by the kernel, which knows its devices.
        assert_eq!(told(STREAM, |f, _| without(f, feature)), []);
    }
    let virtual_one = |f: &mut Facts, _: &mut Answers| {
        without(f, Feature::ReceiveMerge);
        f.links[0].card = None;
    };
    assert_eq!(told(PACKET, virtual_one), [], "a virtual interface gets super-packets as they were sent");
    let card =
        |node, interrupts: &[usize]| Some(Card { node, interrupts: interrupts.iter().map(|&cpu| vec![cpu]).collect() });
    let (far, one) = (card(Some(1), &[0, 1]), card(Some(0), &[1, 1]));
    assert_told(PACKET, |f, _| f.links[0].card = far, ("front", Numa, Hint, ""));
    assert_told(PACKET, |f, _| f.links[0].card = one, ("front", Interrupts, Hint, "systemctl start irqbalance"));
    // One node, as on most machines: the kernel says -1.
    let plain = card(None, &[0, 1]);
    assert_eq!(told(PACKET, |f, _| f.links[0].card = plain), []);
}

#[test]
fn a_device_that_lies_about_checksums_is_told() {
    let lost = |facts: &mut Facts, answers: &mut Answers| {
        answers.summed[0].unfinished = false;
        facts.links.retain(|link| link.link.index == 3);
    };
    let off = ("back", Check::Offloads, State::Error, "ethtool -K back tx off");
    assert_told(PACKET, lost, off);
    assert_told(STREAM, lost, off);
    // Who answers neither says nothing, and one that came through speaks for the device.
    assert_eq!(told(PACKET, |_, a| (a.summed[0].complete, a.summed[0].unfinished) = (false, false)), []);
    let other = Summed { link: 3, ip: ip("198.51.100.32"), complete: true, unfinished: false };
    assert_eq!(told(PACKET, |_, a| a.summed.push(other)), []);
}

#[test]
fn a_strict_filter_matters_where_the_default_route_leads_elsewhere() {
    let relays = |is_strict, out| {
        move |facts: &mut Facts, _: &mut Answers| {
            facts.links[0].is_strict = is_strict;
            facts.tables.addresses.push(LinkAddress { link: 2, ip: ip("192.0.2.30"), prefix: 32 });
            facts.tables.routes[2].link = out;
        }
    };
    let command = "sysctl -w net.ipv4.conf.front.rp_filter=2";
    assert_told(STREAM, relays(true, 3), ("front", Check::RpFilter, State::Warning, command));
    assert_eq!(told(STREAM, relays(true, 2)), []);
    assert_eq!(told(STREAM, relays(false, 3)), []);
}

#[test]
fn faults_of_addresses_and_ports_are_told() {
    use {Check::*, State::*};
    let kernels = |facts: &mut Facts, _: &mut Answers| {
        facts.tables.addresses.push(LinkAddress { link: 2, ip: ip("192.0.2.30"), prefix: 32 });
    };
    assert_told(PACKET, kernels, ("web", Addresses, Hint, "ip address del 192.0.2.30/32 dev front"));
    assert_told(STREAM, |f, _| f.host.usable.clear(), ("web", Addresses, Error, "ip address add 192.0.2.30/32"));
    let picked = |facts: &mut Facts, _: &mut Answers| facts.host.kernel_sources = [ip("198.51.100.30")].into();
    assert_told(PACKET, picked, ("web", LocalPorts, Error, "sysctl -w net.ipv4.ip_local_reserved_ports="));
    let forwards =
        |facts: &mut Facts, _: &mut Answers| packets(facts).kernel_forwards[0] = vec!["net.ipv4.ip_forward".to_owned()];
    assert_told(HALF_NAT, forwards, ("web", KernelForwards, Error, "sysctl -w net.ipv4.ip_forward=0"));
    let beside = |facts: &mut Facts, _: &mut Answers| packets(facts).tables.addresses[0].prefix = 1;
    assert_told(HALF_NAT, beside, ("web", HalfNat, Error, ""));
}

#[test]
fn who_else_answers_is_told() {
    use {Check::*, State::*};
    let del = "ip address del 192.0.2.30/";
    assert_told(PACKET, |_, a| a.asked[2].stations.push(OTHER_MAC), ("web", DuplicateAddress, Error, del));
    assert_told(
        PACKET,
        |_, a| a.asked[1].stations.push(OTHER_MAC),
        ("front", DuplicateAddress, Error, "ip address del"),
    );
    assert_told(PACKET, |_, a| a.asked[4].stations.push(OTHER_MAC), ("back", DuplicateAddress, Error, ""));
    let dsr = HALF_NAT.replace("half-nat", "dsr");
    let told = told(&dsr, |_, answers| answers.asked[2].stations.push(SERVER_MAC));
    let [reading] = told.as_slice() else { panic!("{told:#?}") };
    assert!(
        reading.found.starts_with("real server 198.51.100.31 (02:00:00:00:09:1f) answers for the VIP"),
        "{reading:#?}"
    );
    let run = reading.run.as_ref().unwrap();
    assert!(run.at == Place::There && run.command.contains("arp_ignore=1"), "{reading:#?}");
}

#[test]
fn who_does_not_answer_is_told() {
    use {Check::*, State::*};
    assert_told(PACKET, |_, a| a.asked[0].stations.clear(), ("front", NextHop, Error, "ip neigh show dev front"));
    let show = "ip neigh show 198.51.100.31 dev back";
    assert_told(PACKET, |_, a| a.asked[4].stations.clear(), ("web", NextHop, Warning, show));
    let refused = Some("port 443: connection refused".to_owned());
    assert_told(PACKET, |_, a| a.tried[0].failure = refused, ("web", Servers, Warning, "ss -ltn"));
    let dns = PACKET.replacen("vip = ", "health = { check = \"dns\", query = \"a.b\" }\nvip = ", 1);
    let silent = |_: &mut Facts, a: &mut Answers| a.tried[0].failure = Some("port 443: no answer".to_owned());
    let [reading] = &*told(&dns, silent) else { panic!("one thing is wrong") };
    let run = reading.run.as_ref().map_or("", |run| run.command.as_str());
    assert!(reading.found.contains("does not answer") && run == "ss -lun", "{reading:#?}");
    assert_told(PACKET, |_, a| a.echoed[0].full = false, ("back", Mtu, Warning, "ip link set back mtu"));
    // Who does not answer echoes at all says nothing about their size.
    assert_eq!(told(PACKET, |_, a| (a.echoed[0].small, a.echoed[0].full) = (false, false)), []);
    let way = "ip route replace default via 198.51.100.10";
    assert_told(HALF_NAT, |_, a| a.returned[0].is_back = false, ("web", ReturnPath, Error, way));
    assert_told(PACKET, |_, a| a.unasked = 3, ("machine", NextHop, Unknown, ""));
}

#[test]
fn the_way_back_of_a_server_that_is_silent_is_not_known() {
    let silent = |_: &mut Facts, answers: &mut Answers| {
        answers.returned[0].is_back = false;
        answers.echoed[0].small = false;
        answers.tried[0].failure = Some("port 443: no answer within 1 s".to_owned());
    };
    let told: Vec<(Check, State)> = told(HALF_NAT, silent).iter().map(|told| (told.check, told.state)).collect();
    assert_eq!(told, [(Check::Servers, State::Warning), (Check::ReturnPath, State::Unknown)]);
}

#[test]
fn what_is_on_a_vlan_is_said_not_to_be_asked_for() {
    let text = PACKET.replace("address = \"198.51.100.31\"", "address = \"203.0.113.31\"")
        + "[[interface]]\nname = \"back\"\n[[interface.vlan]]\nid = 20\naddresses = [\"203.0.113.1/24\"]\n";
    let told = readings(&model(&text), &facts(&text), &Probes::Done(Answers::default()));
    let told: Vec<&Reading> = told.iter().filter(|reading| reading.state != State::Fine).collect();
    let [reading] = told.as_slice() else { panic!("not one: {told:#?}") };
    assert_eq!((reading.check, reading.state), (Check::NextHop, State::Unknown), "{reading:#?}");
    assert!(reading.found.ends_with(": 203.0.113.31"), "{reading:#?}");
}

#[test]
fn without_probes_only_the_machine_is_judged() {
    let (model, facts) = (model(PACKET), facts(PACKET));
    let off = readings(&model, &facts, &Probes::Off);
    assert!(off.iter().all(|reading| reading.state == State::Fine), "{off:#?}");
    let refused = readings(&model, &facts, &Probes::Refused("no right".to_owned()));
    let unknown: Vec<&Reading> = refused.iter().filter(|reading| reading.state == State::Unknown).collect();
    assert!(matches!(unknown.as_slice(), [reading] if reading.found == "no right"), "{unknown:#?}");
}

#[test]
fn the_command_is_what_a_shell_can_run() {
    for (message, command) in [
        ("cause; add it (`ip address add 192.0.2.1/32 dev …`), or not", Some("ip address add 192.0.2.1/32 dev …")),
        ("leased by service `web`; set it to 0 (`sysctl -w a=0`)", Some("sysctl -w a=0")),
        ("needs rights; in the unit (`AmbientCapabilities=CAP_NET_RAW`)", None),
        ("`ipv4` is no command, and `ip", None),
        ("", None),
    ] {
        assert_eq!(command_in(message), command, "{message}");
    }
}

#[test]
fn the_worst_state_is_the_whole() {
    let reading = |state| Reading::new(Subject::Machine, Check::Kernel, state, "");
    let examined =
        |states: &[State]| Examination { daemon: None, readings: states.iter().copied().map(reading).collect() };
    assert_eq!(examined(&[]).worst(), State::Fine);
    assert_eq!(examined(&State::ALL).worst(), State::Error);
    assert_eq!(examined(&[State::Hint, State::Warning, State::Fine]).worst(), State::Warning);
    assert_eq!(examined(&[State::Hint, State::Hint]).count(State::Hint), 2);
}

#[test]
fn a_real_server_with_another_certificate_than_clients_see_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["mail.example.org".to_owned()]).unwrap();
    let (file, key) = (folder.path().join("mail.pem"), folder.path().join("mail.key"));
    std::fs::write(&file, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let tls = format!(
        "tls = {{ mode = \"re-encrypt\", certificate = [{{ file = {file:?}, key = {key:?} }}] }}\n    [[service.server]]"
    );
    let text = STREAM.replace("[[service.server]]", &tls);
    let model = model(&text);
    let certificates = Certificates::gather(&model);
    let files = &model.services[0].ended_tls().unwrap().certificates[0];
    let same = certificates.read[files].identity.as_ref().unwrap().fingerprint();
    let with = |certificate| {
        let certificates = certificates.clone();
        move |facts: &mut Facts, answers: &mut Answers| {
            facts.host.certificates = certificates;
            let (service, server) = ("web".to_owned(), "one".to_owned());
            answers.shown = vec![Shown { service, server, ip: ip("198.51.100.31"), certificate }];
        }
    };
    assert_eq!(told(&text, with(Ok(same))), []);
    assert_eq!(told(&text, with(Err(NotShown::Other))), []);
    let subject = |state, reading: &[Reading]| {
        let [reading] = reading else { panic!("not one: {reading:#?}") };
        assert_eq!((reading.check, reading.state), (Check::ExtendedProtection, state), "{reading:#?}");
    };
    subject(State::Hint, &told(&text, with(Ok([1; 32]))));
    let exchange = text.replace("vip =", "application = \"exchange-2013\"\n    vip =");
    subject(State::Warning, &told(&exchange, with(Ok([1; 32]))));
    subject(State::Error, &told(&text, with(Err(NotShown::NothingShared))));
}
