//! Findings by machine, without a machine; and what this machine says.

use towpath_config::model::{ClientAuthorities, ClientCertificate, FacingPorts, Protocol, Resumption, ServiceTls};
use towpath_tls::Dates;

use super::*;
use crate::tls::fixtures::ended_tls;

fn model(source: &str) -> Model {
    let text = format!(
        r#"
        [[service]]
        name = "front-end"
        vip = "192.0.2.30"
        ports = [443]
        source = {source}
        [[service.server]]
        name = "FE-1"
        address = "192.0.2.31"
        "#
    );
    let checked = towpath_config::check("test.toml", &text);
    let errors: Vec<String> = checked.errors().map(|d| d.message.clone()).collect();
    checked.model.unwrap_or_else(|| panic!("{errors:?}"))
}

fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// A machine that fits.
fn facts() -> HostFacts {
    HostFacts {
        usable: ips(&["192.0.2.30", "192.0.2.32", "192.0.2.33"]),
        kernel_sources: ips(&["192.0.2.10"]),
        cpus: vec![0, 1],
        nofile: 20_000,
        local_ports: 32_768..=60_999,
        reserved_ports: Vec::new(),
        memory_bytes: 4 << 30,
        kernel_release: "6.1.0-25-amd64".to_owned(),
        packets: None,
        certificates: Certificates::default(),
        files: Vec::new(),
    }
}

const POOL: &str = r#"{ pool = ["192.0.2.32", "192.0.2.33"] }"#;

fn messages(model: &Model, facts: &HostFacts) -> Vec<String> {
    preflight(model, facts).iter().map(ToString::to_string).collect()
}

#[test]
fn a_machine_that_fits_has_no_findings() {
    assert_eq!(messages(&model(POOL), &facts()), Vec::<String>::new());
}

#[test]
fn addresses_that_the_machine_does_not_have_are_all_named() {
    let bare = HostFacts { usable: ips(&["192.0.2.32"]), ..facts() };
    assert_eq!(
        messages(&model(POOL), &bare),
        [
            "error: service `front-end`: vip 192.0.2.30 is not an address of this host; add it \
             (`ip address add 192.0.2.30/32 dev …`), or use plane = \"packet\"",
            "error: service `front-end`: source address 192.0.2.33 is not an address of this host; add it \
             (`ip address add 192.0.2.33/32 dev …`), or take it out of source.pool",
        ]
    );
}

#[test]
fn a_pool_overlaps_the_kernels_ports_only_on_an_address_that_the_kernel_picks() {
    let picked = HostFacts { kernel_sources: ips(&["192.0.2.32"]), ..facts() };
    let found = messages(&model(POOL), &picked);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("source address 192.0.2.32: ports 32768-60999 are leased here"), "{found:?}");
    assert!(found[0].contains("net.ipv4.ip_local_reserved_ports=32768-60999"), "{found:?}");
}

#[test]
fn a_pool_beside_or_reserved_from_the_kernels_ports_is_no_clash() {
    let beside = r#"{ pool = ["192.0.2.32"], ports = "1024-32767" }"#;
    let picked = HostFacts { kernel_sources: ips(&["192.0.2.32"]), ..facts() };
    assert_eq!(messages(&model(beside), &picked), Vec::<String>::new());
    let reserved = HostFacts { reserved_ports: vec![32_768..=50_000, 50_001..=60_999], ..picked.clone() };
    assert_eq!(messages(&model(POOL), &reserved), Vec::<String>::new());
    let one_short = HostFacts { reserved_ports: vec![32_768..=60_998], ..picked };
    assert_eq!(messages(&model(POOL), &one_short).len(), 1);
}

#[test]
fn a_kernel_below_the_floor_is_an_error_and_an_unreadable_one_is_not() {
    for (release, findings) in [("5.15.0-91-generic", 1), ("6.0.19", 1), ("6.1.0", 0), ("6.18.44-x", 0), ("odd", 0)] {
        let host = HostFacts { kernel_release: release.to_owned(), ..facts() };
        assert_eq!(messages(&model(POOL), &host).len(), findings, "{release}");
    }
}

#[test]
fn what_the_plan_refuses_is_a_finding_of_the_process() {
    let small = HostFacts { nofile: 100, ..facts() };
    let findings = preflight(&model(POOL), &small);
    assert_eq!((findings.len(), findings[0].severity, &findings[0].service), (1, Severity::Error, &None));
    assert!(findings[0].message.contains("the process may hold 100"), "{}", findings[0]);
}

/// A service on the packet plane, and a machine with one arm that it does not fit.
fn packet_findings(lines: &str, change: impl FnOnce(&mut PacketFacts)) -> Vec<String> {
    let text = format!(
        "[[service]]\nname = \"front-end\"\nvip = \"192.0.2.30\"\nports = [443]\nplane = \"packet\"\n{lines}\n\
         [[service.server]]\nname = \"FE-1\"\naddress = \"192.0.2.31\"\n"
    );
    findings_of(&text, change)
}

/// What a whole file meets on that machine.
fn findings_of(text: &str, change: impl FnOnce(&mut PacketFacts)) -> Vec<String> {
    use towpath_sys::link::Link;
    use towpath_sys::neighbour::{KnownRoute, LinkAddress};

    let model = towpath_config::check("test.toml", text).model.expect("no errors");
    let ip = |text: &str| text.parse().unwrap();
    let link = Link {
        index: 2,
        name: "eth0".to_owned(),
        up: true,
        carrier: true,
        ethernet: true,
        hardware_address: vec![2, 0, 0, 0, 0, 1],
        mtu_bytes: 1500,
    };
    let mut packets = PacketFacts {
        tables: Tables {
            links: vec![link],
            addresses: vec![LinkAddress { link: 2, ip: ip("192.0.2.10"), prefix: 24 }],
            routes: vec![KnownRoute { destination: (ip("192.0.2.0"), 24), gateway: None, link: 2, metric: 0 }],
            neighbours: Vec::new(),
        },
        arms: vec![Arm { name: "eth0".to_owned(), index: 2, mtu_bytes: 1500 }],
        missing: Vec::new(),
        is_capable: true,
        fast_path: Readiness::Ready,
        kernel_forwards: [const { Vec::new() }; 2],
        listeners: BTreeSet::new(),
    };
    change(&mut packets);
    messages(&model, &HostFacts { packets: Some(packets), ..facts() })
}

#[test]
fn a_relay_does_not_lease_where_outbound_nat_does() {
    let text = |source: &str| {
        format!(
            "[[interface]]\nname = \"eth0\"\n[router]\nenabled = true\n\
             [[outbound_nat]]\nname = \"out\"\nfrom = [\"10.0.0.0/24\"]\ninterface = \"eth0\"\n\
             [[service]]\nname = \"front-end\"\nvip = \"192.0.2.30\"\nports = [443]\nsource = {source}\n\
             [[service.server]]\nname = \"FE-1\"\naddress = \"192.0.2.31\"\n"
        )
    };
    let clash = "outbound_nat `out`: ports 16384-32767 of this host's address are leased by service `front-end` on the stream plane as well";
    for (source, clashes) in [
        ("\"vip\"", true),
        ("{ pool = [\"192.0.2.30\"] }", true),
        ("{ pool = [\"192.0.2.30\"], ports = \"1024-16383\" }", false),
        ("{ pool = [\"192.0.2.32\"] }", false),
    ] {
        let mut model = towpath_config::check("test.toml", &text(source)).model.expect("no errors");
        let Source::Facing(FacingPorts { port_low, port_high, rest_ms }) = model.outbound[0].source else {
            panic!("{:?}", model.outbound[0].source)
        };
        // As the machine says it.
        let own: IpAddr = "192.0.2.30".parse().unwrap();
        let towards = [(IpAddr::V4(Ipv4Addr::UNSPECIFIED), own)].into();
        model.outbound[0].source =
            Source::Pool(SourcePool { addresses: vec![own], port_low, port_high, rest_ms, towards });
        let mut findings = Vec::new();
        check_both_planes(&model, &mut findings);
        let told: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), usize::from(clashes), "{source}: {told:?}");
        assert!(told.iter().all(|told| told.contains(clash)), "{told:?}");
    }
}

#[test]
fn the_packet_plane_needs_rights_and_ways() {
    let full = "source = \"vip\"";
    assert_eq!(packet_findings(full, |_| {}), Vec::<String>::new());
    let found = packet_findings(full, |packets| packets.is_capable = false);
    assert!(found.len() == 1 && found[0].contains("CAP_NET_RAW"), "{found:?}");
    let found = packet_findings(full, |packets| packets.missing = vec![NoWay::NoRoute("192.0.2.31".parse().unwrap())]);
    assert!(found.len() == 1 && found[0].contains("no route to real server 192.0.2.31"), "{found:?}");
    let found = packet_findings(full, |packets| packets.tables.addresses[0].ip = "192.0.2.31".parse().unwrap());
    assert!(found.len() == 1 && found[0].contains("server 192.0.2.31 is an address of this host"), "{found:?}");
}

#[test]
fn each_way_of_forwarding_has_its_own_conditions() {
    let half = "forwarding = \"half-nat\"";
    let found = packet_findings(half, |_| {});
    assert!(found.len() == 1 && found[0].starts_with("error: service `front-end`: forwarding"), "{found:?}");
    let elsewhere = "forwarding = \"half-nat\"\nclient_networks = [\"198.51.100.0/24\", \"0.0.0.0/0\"]";
    assert_eq!(packet_findings(elsewhere, |_| {}), Vec::<String>::new());
    let overlapping = "forwarding = \"half-nat\"\nclient_networks = [\"192.0.2.128/25\"]";
    let found = packet_findings(overlapping, |_| {});
    assert!(found.len() == 1 && found[0].contains("clients of 192.0.2.128/25 share a network"), "{found:?}");
    let pool = "forwarding = \"half-nat\"\nsource = { pool = [\"192.0.2.32\"] }";
    assert_eq!(packet_findings(pool, |_| {}), Vec::<String>::new());
    let found = packet_findings(pool, |packets| packets.kernel_forwards = keys(true, false));
    assert!(found.len() == 1 && found[0].contains("net.ipv4.ip_forward = 1"), "{found:?}");
    let dsr = "forwarding = \"dsr\"";
    assert_eq!(packet_findings(dsr, |packets| packets.kernel_forwards = keys(true, true)), Vec::<String>::new());
}

/// What is set where the kernel forwards from every interface.
fn keys(v4: bool, v6: bool) -> [Vec<String>; 2] {
    let single = [Arm { name: "eth0".to_owned(), index: 2, mtu_bytes: 1500 }];
    forwarding_keys(&single, |family, _| if family == "ipv4" { v4 } else { v6 })
}

#[test]
fn the_key_that_is_set_is_named() {
    let arm = |name: &str| Arm { name: name.to_owned(), index: 2, mtu_bytes: 1500 };
    let arms = [arm("eth0"), arm("eth1.20")];
    let found = forwarding_keys(&arms, |family, name| family == "ipv4" && name != "all");
    assert_eq!(found[0], ["net.ipv4.conf.eth0.forwarding", "net.ipv4.conf.eth1/20.forwarding"]);
    assert!(found[1].is_empty(), "{found:?}");
    let half = "forwarding = \"half-nat\"\nclient_networks = [\"198.51.100.0/24\"]";
    let found = packet_findings(half, |packets| packets.kernel_forwards = found);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[1].contains("`sysctl -w net.ipv4.conf.eth1/20.forwarding=0`"), "{found:?}");
    let everywhere = forwarding_keys(&arms, |family, _| family == "ipv6");
    assert_eq!(everywhere, [vec![], vec!["net.ipv6.conf.all.forwarding".to_owned()]]);
}

#[test]
fn health_checks_of_servers_on_vlans_take_no_way_of_the_kernel_s() {
    let file = |server: &str| {
        format!(
            "[[route]]\nto = \"default\"\nvia = \"192.0.2.9\"\n[[route]]\nto = \"10.20.64.0/24\"\nvia = \"192.0.2.9\"\n\
             [[interface]]\nname = \"eth0\"\n[[interface.vlan]]\nid = 20\naddresses = [\"10.20.0.1/16\"]\n\
             [[service]]\nname = \"front-end\"\nvip = \"192.0.2.30\"\nports = [443]\nplane = \"packet\"\nsource = \"vip\"\n\
             health = {{ check = \"tcp\" }}\n[[service.server]]\nname = \"FE-1\"\naddress = \"{server}\"\n"
        )
    };
    assert_eq!(findings_of(&file("10.20.0.31"), |_| {}), Vec::<String>::new());
    // A longer route over the kernel's link.
    let found = findings_of(&file("10.20.64.31"), |_| {});
    assert!(found.len() == 1 && found[0].contains("`ip route add 10.20.64.31 via 192.0.2.9`"), "{found:?}");
}

#[test]
fn health_checks_need_a_way_of_the_kernel_s() {
    let file = |health: &str| {
        format!(
            "[[route]]\nto = \"198.51.100.0/24\"\nvia = \"192.0.2.9\"\n\
             [[service]]\nname = \"front-end\"\nvip = \"192.0.2.30\"\nports = [443]\nplane = \"packet\"\nsource = \"vip\"\n{health}\n\
             [[service.server]]\nname = \"FE-1\"\naddress = \"198.51.100.31\"\n"
        )
    };
    assert_eq!(findings_of(&file(""), |_| {}), Vec::<String>::new());
    let checked = file("health = { check = \"tcp\" }");
    let found = findings_of(&checked, |_| {});
    assert!(found.len() == 1 && found[0].contains("`ip route add 198.51.100.31 via 192.0.2.9`"), "{found:?}");
    let known = |packets: &mut PacketFacts| {
        let mut route = packets.tables.routes[0];
        (route.destination, route.gateway) =
            (("198.51.100.0".parse().unwrap(), 24), Some("192.0.2.9".parse().unwrap()));
        packets.tables.routes.push(route);
    };
    assert_eq!(findings_of(&checked, known), Vec::<String>::new());
}

#[test]
fn a_router_wants_to_be_the_only_one_and_to_know_its_interfaces() {
    let router = "[router]\nenabled = true\n[[router.rule]]\naction = \"deny\"\nfrom_interface = \"eth0\"\n";
    let named =
        format!("{router}to_interface = \"eth1\"\n[[interface]]\nname = \"eth0\"\n[[interface]]\nname = \"eth1\"\n");
    let found = findings_of(&named, |packets| packets.kernel_forwards = keys(true, true));
    let told = [
        "net.ipv4.ip_forward=0",
        "net.ipv6.conf.all.forwarding=0",
        "interface eth1 is not routed to or from",
        "interface `eth1` is not there",
    ];
    assert_eq!(found.len(), told.len(), "{found:?}");
    assert!(found.iter().zip(told).all(|(found, told)| found.contains(told)), "{found:?}");
    let known = format!("{router}[[interface]]\nname = \"eth0\"\n");
    assert_eq!(findings_of(&known, |_| {}), Vec::<String>::new());
}

#[test]
fn what_the_file_says_of_interfaces_is_compared_with_the_kernel() {
    use towpath_sys::neighbour::LinkAddress;

    let service = "[[service]]\nname = \"front-end\"\nvip = \"192.0.2.30\"\nports = 443\nplane = \"packet\"\nsource = \"vip\"\n\
                   [[service.server]]\nname = \"FE-1\"\naddress = \"192.0.2.31\"\n";
    let trunk = |addresses: &str| {
        format!(
            "[[interface]]\nname = \"eth0\"\naddresses = [{addresses}]\n\
             [[interface.vlan]]\nid = 20\nname = \"edge\"\naddresses = [\"10.20.0.1/24\"]\n{service}"
        )
    };
    assert_eq!(findings_of(&trunk("\"192.0.2.10/24\""), |_| {}), Vec::<String>::new());
    let found = findings_of(&trunk("\"192.0.2.10/24\", \"192.0.2.77/24\""), |_| {});
    assert!(found.len() == 1 && found[0].contains("`ip addr add 192.0.2.77/24 dev eth0`"), "{found:?}");
    // Two owners of an address, and of a VLAN.
    let found = findings_of(&trunk("\"192.0.2.10/24\""), |packets| {
        let twin = towpath_sys::link::Link { index: 3, name: "eth0.20".to_owned(), ..packets.tables.links[0].clone() };
        packets.tables.links.push(twin);
        packets.tables.addresses.push(LinkAddress { link: 3, ip: "10.20.0.1".parse().unwrap(), prefix: 24 });
    });
    let told =
        ["error: address 10.20.0.1 of VLAN `edge` is the kernel's on interface `eth0.20`", "`ip link del eth0.20`"];
    assert_eq!(found.len(), told.len(), "{found:?}");
    assert!(found.iter().zip(told).all(|(found, told)| found.contains(told)), "{found:?}");
}

#[test]
fn programs_of_the_host_that_lose_their_port_are_named() {
    let listens = |locals: &[&str]| {
        let at = |local: &&str| Listener { protocol: Protocol::Tcp, local: local.parse().unwrap() };
        let listeners: BTreeSet<Listener> = locals.iter().map(at).collect();
        move |packets: &mut PacketFacts| packets.listeners = listeners
    };
    let own = "source = { pool = [\"192.0.2.10\"], ports = \"20000-20999\" }";
    for (locals, told) in
        [(&["0.0.0.0:20500"][..], "(port 20500)"), (&["[::]:20999", "192.0.2.10:20000"], "(port 20000 and 1 more)")]
    {
        let found = packet_findings(own, listens(locals));
        assert!(found.len() == 1 && found[0].contains(told), "{found:?}");
        assert!(found[0].starts_with("warning: the packet plane takes ports 20000-20999 of 192.0.2.10"), "{found:?}");
    }
    let harmless = ["0.0.0.0:22", "0.0.0.0:443", "192.0.2.11:20500", "[::1]:20500"];
    assert_eq!(packet_findings(own, listens(&harmless)), Vec::<String>::new());
    // An address that the host has for the service: who listens everywhere hardly means it.
    let vip = |locals: &[&str]| {
        let listens = listens(locals);
        packet_findings("source = { pool = [\"192.0.2.32\"] }", move |packets| {
            packets.tables.addresses[0].ip = "192.0.2.30".parse().unwrap();
            listens(packets);
        })
    };
    assert_eq!(vip(&["0.0.0.0:443"]), Vec::<String>::new());
    let found = vip(&["192.0.2.30:443"]);
    assert!(found.len() == 1 && found[0].contains("ports 443-443 of 192.0.2.30"), "{found:?}");
}

#[test]
fn capabilities_are_read_as_proc_writes_them() {
    assert!(is_capable("Name:\ttowpath\nCapEff:\t0000000000003000\n"));
    assert!(!is_capable("CapEff:\t0000000000001000\n"));
    assert!(!is_capable("Name:\ttowpath\n"));
}

#[test]
fn neighbours_stay_in_their_network() {
    let cases = [
        ("127.0.0.1", 8, Some("127.0.0.2")),
        ("192.0.2.254", 24, Some("192.0.2.253")),
        ("192.0.2.253", 30, Some("192.0.2.254")),
        ("192.0.2.1", 32, None),
        ("2001:db8::1", 64, Some("2001:db8::")),
        ("2001:db8::1", 128, None),
    ];
    for (ip, prefix, expected) in cases {
        let expected: Option<IpAddr> = expected.map(|e| e.parse().unwrap());
        assert_eq!(neighbour(ip.parse().unwrap(), prefix), expected, "{ip}/{prefix}");
    }
}

#[test]
fn reserved_ports_are_read_as_the_kernel_writes_them() {
    assert_eq!(parse_ranges("8080,9000-9100\n"), [8080..=8080, 9000..=9100]);
    assert_eq!(parse_ranges("\n"), Vec::<RangeInclusive<u16>>::new());
}

#[test]
fn this_machine_has_its_loopback_and_not_a_documentation_address() {
    let text = r#"
        [[service]]
        name = "here"
        vip = "127.0.0.1"
        ports = [443]
        source = { pool = ["127.0.0.9", "192.0.2.99"] }
        [[service.server]]
        name = "one"
        address = "127.0.0.2"
        "#;
    let model = towpath_config::check("test.toml", text).model.unwrap();
    let facts = HostFacts::gather(&model).unwrap();
    assert_eq!(facts.usable, ips(&["127.0.0.1", "127.0.0.9"]));
    assert!(facts.kernel_sources.contains(&"127.0.0.1".parse::<IpAddr>().unwrap()));
    assert!(!facts.kernel_sources.contains(&"127.0.0.9".parse::<IpAddr>().unwrap()));
}

#[test]
fn lists_and_responses_that_have_ended_are_told_with_what_follows() {
    const DAY_S: i64 = 86_400;
    let mut model = model(POOL);
    let mut ended = ended_tls("mail.pem", Resumption::Off);
    ended.certificates[0].staple = Some("mail.ocsp".into());
    let crl = Some("list.pem".into());
    ended.client_certificate = ClientCertificate::Require(ClientAuthorities { ca: "authority.pem".into(), crl });
    model.services[0].tls = ServiceTls::Ended(Box::new(ended));
    let week = Dates { begin_s: 0, end_s: 8 * DAY_S };
    let told = |now_s| {
        let dated = ["mail.ocsp", "list.pem"].map(|file| (file.into(), Ok(Some(week)))).into();
        let certificates = Certificates { now_s, dated, ..Certificates::default() };
        messages(&model, &HostFacts { certificates, ..facts() })
    };
    assert_eq!(told(5 * DAY_S), Vec::<String>::new());
    assert_eq!(
        told(7 * DAY_S),
        [
            "warning: service `front-end`: list.pem: this revocation list ends in 1 day; from its end on every client with a certificate is refused; \
             put the next one there and reload",
            "warning: service `front-end`: mail.ocsp: this OCSP response ends in 1 day; from its end on it is not sent; put the next one there and \
             reload",
        ]
    );
    assert!(
        told(10 * DAY_S)[0].contains("list.pem: this revocation list ended 2 days ago; "),
        "{:?}",
        told(10 * DAY_S)
    );
    assert!(told(-DAY_S)[1].contains("mail.ocsp: this OCSP response begins in 1 day; wait, "), "{:?}", told(-DAY_S));
}

#[test]
fn what_control_names_is_looked_at_with_its_keys() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, mode: u32, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let token = "0123456789abcdef0123456789abcdef";
    let (good, open, short) = (file("good", 0o600, token), file("open", 0o644, token), file("short", 0o600, "x"));
    let damaged = file("damaged.pem", 0o600, "damaged");
    let told = |lines: &str, tokens: &[&str]| {
        let users = tokens.iter().enumerate().map(|(number, token)| {
            format!("[[control.user]]\nname = \"user-{number}\"\nrole = \"viewer\"\ntoken_file = \"{token}\"\n")
        });
        let text = format!("[control]\nlisten = \"127.0.0.1:9443\"\n{lines}\n{}", users.collect::<String>());
        let service = "[[service]]\nname = \"web\"\nvip = \"192.0.2.30\"\nports = [443]\n\
                       [[service.server]]\nname = \"one\"\naddress = \"192.0.2.31\"\n";
        let checked = towpath_config::check("test.toml", &format!("{text}{service}"));
        let model = Model { control: checked.model.expect("no errors").control, ..model(POOL) };
        let (certificates, files) = (Certificates::gather(&model), control::faults(&model));
        messages(&model, &HostFacts { certificates, files, ..facts() })
    };
    assert_eq!(told("", &[&good]), Vec::<String>::new());
    let [exposed] = &told("", &[&open])[..] else { panic!("one finding") };
    assert!(exposed.starts_with("warning: ") && exposed.contains("chmod o-rwx"), "{exposed}");
    let [refused] = &told("", &[&short])[..] else { panic!("one finding") };
    assert!(refused.starts_with("error: control.user: token_file ") && refused.contains("it is no token"), "{refused}");
    let same = &told("", &[&good, &open])[0];
    assert!(same.contains("user-0 and user-1 have the same token"), "{same}");
    let lines = ["certificate", "private_key", "client_ca", "client_crl"].map(|key| format!("{key} = \"{damaged}\"\n"));
    let all = told(&lines.concat(), &[&good]);
    for key in ["control.certificate: ", "control.client_ca: ", "control.client_crl: "] {
        let found = all.iter().any(|told| told.starts_with("error: ") && told.contains(key) && told.contains(&damaged));
        assert!(found, "{key}: {all:?}");
    }
}
