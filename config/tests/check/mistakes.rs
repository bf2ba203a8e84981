//! One row per mistake: the file, and every diagnostic it gets.

use towpath_config::model::ProxyVersion;
use towpath_config::{Severity, check};

use crate::{expect, service, told};

#[test]
fn five_mistakes_get_five_located_messages_in_one_run() {
    let text = r#"
[[service]]
name = "front-end"
vip = "192.168.10.30"
ports = [135, 443, 444, 70000]
protocl = "tcp"
balance = "weighted-least-connection"
idle_timeout = "30min"

[[service.server]]
name = "FE-1"
address = "192.168.10.31"
weight = "100"
"#;
    let checked = check("front-end.toml", text);
    assert!(checked.model.is_none());
    assert_eq!(
        told(&checked, text),
        [
            ("out-of-range", "70000"),
            ("unknown-key", "protocl"),
            ("unknown-word", "\"weighted-least-connection\""),
            ("wrong-unit", "\"30min\""),
            ("wrong-type", "\"100\""),
        ]
    );
    let places: Vec<_> =
        checked.diagnostics.iter().map(|diagnostic| (diagnostic.primary.line, diagnostic.primary.column)).collect();
    assert_eq!(places, [(5, 25), (6, 1), (7, 11), (8, 16), (13, 10)]);
    let hints: Vec<_> = checked.diagnostics.iter().map(|diagnostic| diagnostic.hint.as_deref().unwrap_or("")).collect();
    assert_eq!(
        hints,
        [
            "ports are 1 to 65535",
            "did you mean `protocol`?",
            "did you mean \"weighted-least-connections\"?",
            "did you mean \"30m\"?",
            "write 100 without quotes",
        ]
    );
}

#[test]
fn a_key_in_the_wrong_table_is_sent_home() {
    let hint = |lines: &str| check("test.toml", &service(lines, "")).diagnostics[0].hint.clone().unwrap_or_default();
    assert_eq!(hint("rise = 2"), "`rise` belongs in `service.health`");
    assert_eq!(hint("weight = 2"), "`weight` belongs in `service.server`");
    assert!(hint("colour = 2").starts_with("`service` may contain: `name`, `vip`, "));
}

#[test]
fn values_of_the_wrong_shape_are_errors_at_their_place() {
    let rows: &[(&str, &str, &str, &str)] = &[
        ("connect_timeout = 0", "", "out-of-range", "0"),
        ("connect_timeout = \"6m\"", "", "out-of-range", "\"6m\""),
        ("idle_timeout = \"30\"", "", "wrong-unit", "\"30\""),
        ("idle_timeout = \"m\"", "", "wrong-unit", "\"m\""),
        ("idle_timeout = \"-5s\"", "", "wrong-unit", "\"-5s\""),
        ("idle_timeout = \"99999999999999999999s\"", "", "wrong-unit", "\"99999999999999999999s\""),
        ("idle_timeout = \"9999999999999999d\"", "", "out-of-range", "\"9999999999999999d\""),
        ("idle_timeout = 1.5", "", "wrong-type", "1.5"),
        ("persistence = { by = \"source-ip\", timeout = 0 }", "", "out-of-range", "0"),
        ("persistence = { by = \"source-ip\", ipv4_prefix = 33 }", "", "out-of-range", "33"),
        ("persistence = \"source-ip\"", "", "wrong-type", "\"source-ip\""),
        ("health = { check = \"tcp\", rise = 0 }", "", "out-of-range", "0"),
        ("health = { check = \"tcp\", fall = 0 }", "", "out-of-range", "0"),
        ("health = { check = \"tcp\", timeout = 0 }", "", "out-of-range", "0"),
        ("health = { interval = \"5s\" }", "", "missing-key", "{ interval = \"5s\" }"),
        ("redispatch = 17", "", "out-of-range", "17"),
        ("redispatch = true", "", "wrong-type", "true"),
        ("balance = 1", "", "wrong-type", "1"),
        ("balance = \"fastest\"", "", "unknown-word", "\"fastest\""),
        ("vip = \"0.0.0.0\"", "", "unusable-address", "\"0.0.0.0\""),
        ("vip = \"::\"", "", "unusable-address", "\"::\""),
        ("vip = \"224.0.0.9\"", "", "unusable-address", "\"224.0.0.9\""),
        ("vip = \"ff02::1\"", "", "unusable-address", "\"ff02::1\""),
        ("vip = \"255.255.255.255\"", "", "unusable-address", "\"255.255.255.255\""),
        ("vip = \"::ffff:192.0.2.1\"", "", "unusable-address", "\"::ffff:192.0.2.1\""),
        ("vip = \"192.0.2.10:443\"", "", "bad-address", "\"192.0.2.10:443\""),
        ("vip = \"web.example.com\"", "", "bad-address", "\"web.example.com\""),
        ("ports = []", "", "empty-list", "[]"),
        ("ports = 0", "", "out-of-range", "0"),
        ("ports = [80, 80]", "", "duplicate-entry", "80"),
        ("ports = [\"80-90\", 85]", "", "duplicate-entry", "85"),
        ("ports = \"90-80\"", "", "bad-ports", "\"90-80\""),
        ("ports = \"80,443\"", "", "bad-ports", "\"80,443\""),
        ("ports = [[80]]", "", "wrong-type", "[80]"),
        ("source = { pool = [] }", "", "empty-list", "[]"),
        ("source = { pool = [\"192.0.2.5\", \"192.0.2.5\"] }", "", "duplicate-entry", "\"192.0.2.5\""),
        ("source = { pool = [\"192.0.2.5\"], ports = \"1024\" }", "", "", ""),
        ("source = { ports = \"1024-65535\" }", "", "missing-key", "{ ports = \"1024-65535\" }"),
        ("source = \"kernel\"", "", "unknown-word", "\"kernel\""),
        ("", "weight = 65536", "out-of-range", "65536"),
        ("", "weight = -1", "out-of-range", "-1"),
        ("", "port = 0", "out-of-range", "0"),
        ("", "port = 0x1_0000_0000_0000_0000", "out-of-range", "0x1_0000_0000_0000_0000"),
        ("", "admin = \"down\"", "unknown-word", "\"down\""),
        ("", "address = \"192.0.2.300\"", "bad-address", "\"192.0.2.300\""),
        ("", "prot = 80", "unknown-key", "prot"),
    ];
    for (lines, server, code, place) in rows {
        let expected = [(*code, *place)];
        expect(&service(lines, server), if code.is_empty() { &[] } else { &expected });
    }
}

#[test]
fn whatever_is_not_carried_out_yet_is_a_warning_and_the_rest_of_the_file_is_judged() {
    let rows: &[(&str, &str, &str)] = &[
        ("balance = \"least-load\"", "", "\"least-load\""),
        ("balance = \"response-time\"", "", "\"response-time\""),
        ("template = \"lync\"", "", "template"),
    ];
    for (lines, server, place) in rows {
        let text = service(lines, server);
        expect(&text, &[("not-available", place)]);
        let checked = check("test.toml", &text);
        assert_eq!(checked.unavailable().count(), 1, "{text}");
        assert!(checked.model.is_some(), "a warning keeps the model: {text}");
        assert!(checked.diagnostics.iter().all(|diagnostic| diagnostic.severity == Severity::Warning), "{text}");
    }
}

#[test]
fn a_value_equal_to_the_default_is_no_warning() {
    let rows = [
        ("drop_on_failure = false", ""),
        ("tls = { mode = \"pass-through\" }", ""),
        ("log = \"none\"", ""),
        ("persistence = { by = \"none\" }", ""),
        ("health = { check = \"tcp\", evict = \"service\" }", ""),
        ("health = { check = \"none\" }", ""),
        ("", "backup = false"),
        ("", "min_connections = 0"),
        ("plane = \"stream\"", "admin = \"ready\""),
        ("queue = 0", ""),
        ("plane = \"packet\"\nsource = \"vip\"\noverload = \"silent\"", ""),
    ];
    for (lines, server) in rows {
        expect(&service(lines, server), &[]);
    }
}

#[test]
fn parts_that_are_not_available_are_still_judged() {
    expect(
        &service("ports = 80\nhttp = { balance_each = \"packet\", login = { by = \"form\" } }", ""),
        &[
            ("unknown-word", "\"packet\""),
            ("not-available", "login"),
            ("missing-key", "{ by = \"form\" }"),
            ("missing-key", "{ by = \"form\" }"),
        ],
    );
    expect(
        "[[interface]]\nname = \"eth0\"\naddresses = [\"10.0.0.1\"]\n[[service]]\n",
        &[
            ("bad-network", "\"10.0.0.1\""),
            ("missing-key", "[[service]]"),
            ("missing-key", "[[service]]"),
            ("missing-key", "[[service]]"),
            ("missing-key", "[[service]]"),
        ],
    );
}

#[test]
fn a_file_without_services_routes_or_is_no_use() {
    expect("[router]\nenabled = true\n", &[]);
    expect(&cable("one", "other"), &[]);
    for text in ["", "[router]\nenabled = false\n", "[[interface]]\nname = \"one\"\n"] {
        expect(text, &[("missing-key", "")]);
    }
    expect("[router]\npolicy = \"deny\"\n", &[("missing-key", ""), ("no-effect", "policy")]);
    expect("[router]\nenabled = 1\n", &[("wrong-type", "1")]);
    expect("service = 3\n", &[("wrong-type", "3")]);
}

#[test]
fn routes_and_next_hops_lead_somewhere() {
    let packet = |lines: &str| service(&format!("plane = \"packet\"\n{lines}"), "");
    expect(&packet("source = \"vip\"\nnext_hop = \"192.0.2.1\""), &[]);
    expect(&packet("source = \"vip\"\nnext_hop = \"2001:db8::1\""), &[("mixed-families", "\"2001:db8::1\"")]);
    expect(&packet("forwarding = \"dsr\"\nnext_hop = \"192.0.2.1\""), &[("no-effect", "next_hop")]);
    // Between the IP versions the source address changes, and so it is full-NAT that can translate.
    let other_version = |lines: &str| service(&format!("vip = \"2001:db8::10\"\nplane = \"packet\"\n{lines}"), "");
    expect(&other_version("source = { pool = [\"192.0.2.5\"] }"), &[]);
    for forwarding in ["dsr", "half-nat"] {
        let lines = format!("forwarding = \"{forwarding}\"");
        expect(&other_version(&lines), &[("mixed-families", "\"192.0.2.21\"")]);
    }
    let route = |lines: &str| packet("source = \"vip\"") + "[[route]]\n" + lines;
    expect(&route("to = \"default\"\nvia = \"192.0.2.1\"\n"), &[]);
    expect(&route("to = \"10.0.0.0/8\"\nvia = \"2001:db8::1\"\n"), &[("mixed-families", "\"2001:db8::1\"")]);
    expect(&route("to = \"10.0.0.0/8\"\n"), &[("missing-key", "[[route]]")]);
    expect(
        &route("to = \"10.0.0.0/8\"\nvia = \"192.0.2.1\"\ninterface = \"eth7\"\n"),
        &[("unknown-interface", "\"eth7\"")],
    );
}

#[test]
fn rules_of_the_router_must_fit_something() {
    let rule = |lines: &str| format!("[router]\nenabled = true\n[[router.rule]]\n{lines}\n");
    let rows: &[(&str, &[(&str, &str)])] = &[
        ("action = \"deny\"", &[]),
        ("", &[("missing-key", "[[router.rule]]")]),
        ("action = \"reject\"", &[("unknown-word", "\"reject\"")]),
        ("action = \"deny\"\nprotocol = \"icmp\"\nports = 80", &[("conflicting-keys", "ports")]),
        ("action = \"deny\"\nports = 80", &[]),
        ("action = \"deny\"\nfrom = [\"10.0.0.0/8\"]\nto = [\"fd00::/8\"]", &[("mixed-families", "[\"fd00::/8\"]")]),
        ("action = \"deny\"\nfrom = [\"10.0.0.0/8\", \"fd00::/8\"]\nto = [\"fd00::/8\"]", &[]),
        ("action = \"deny\"\nfrom_interface = \"eth0\"", &[("unknown-interface", "\"eth0\"")]),
        ("action = \"deny\"\nto_interface = \"eth0\"\n[[interface]]\nname = \"eth0\"", &[]),
    ];
    for (lines, expected) in rows {
        expect(&rule(lines), expected);
    }
    let across = cable("one", "other") + &rule("action = \"deny\"\nfrom_interface = \"one\"\nto_interface = \"cable\"");
    expect(&across, &[("not-routed", "\"cable\"")]);
    let idle = service("", "") + "[[router.rule]]\naction = \"deny\"\n";
    expect(&idle, &[("no-effect", "rule")]);
    let idle = service("", "") + "[router]\nsource_check = false\npolicy = \"deny\"\n";
    expect(&idle, &[("no-effect", "source_check"), ("no-effect", "policy")]);
}

#[test]
fn what_leaves_from_an_address_of_ours_comes_from_somewhere_and_has_one() {
    let nat = |lines: &str| {
        let header = "[router]\nenabled = true\n[[interface]]\nname = \"eth0\"\n";
        format!("{header}[[outbound_nat]]\nname = \"out\"\nfrom = [\"10.0.0.0/8\"]\n{lines}\n")
    };
    let pool = "source = { pool = [\"192.0.2.9\"] }";
    let every_port = "plane = \"packet\"\nvip = \"192.0.2.9\"\nports = \"all\"\nsource = { pool = [\"192.0.2.8\"] }\n\
                      persistence = { by = \"source-ip\" }";
    let wide = "interface = \"eth0\"\nsource = { pool = \"interface\", ports = \"2000-61000\" }";
    let rows: &[(String, &[(&str, &str)])] = &[
        (nat(pool), &[]),
        (nat("interface = \"eth0\""), &[]),
        (nat("interface = \"eth0\"\nsource = { pool = \"interface\", ports = \"2000-2999\" }"), &[]),
        (nat(""), &[("missing-key", "[[outbound_nat]]")]),
        (nat("source = { pool = \"interface\" }"), &[("missing-key", "\"interface\"")]),
        (nat("interface = \"eth1\""), &[("unknown-interface", "\"eth1\"")]),
        (nat(pool).replace("10.0.0.0/8", "0.0.0.0/0"), &[("no-outside", "\"0.0.0.0/0\"")]),
        (nat(pool).replace("10.0.0.0/8", "fd00::/8"), &[("mixed-families", "[\"192.0.2.9\"]")]),
        (
            nat(pool).replace("enabled = true", "enabled = false"),
            &[("missing-key", ""), ("needs-router", "[[outbound_nat]]")],
        ),
        (
            nat(pool) + &nat(pool)[nat(pool).find("[[outbound").expect("made for this test")..],
            &[("duplicate-name", "\"out\"")],
        ),
        (nat(pool) + &service(every_port, ""), &[("empty-pool", "[\"192.0.2.9\"]")]),
        (nat(pool) + &service("vip = \"192.0.2.9\"\nsource = \"vip\"", ""), &[("both-planes", "[\"192.0.2.9\"]")]),
        (nat(wide), &[]),
        (
            nat(&wide.replace("eth0", "eth0.7")) + "[[interface.vlan]]\nid = 7\naddresses = [\"192.0.2.1/24\"]\n",
            &[("probe-ports", "\"2000-61000\"")],
        ),
        (cable("one", "other") + &nat("interface = \"cable\""), &[("not-routed", "\"cable\"")]),
    ];
    for (text, expected) in rows {
        expect(text, expected);
    }
}

/// A bridge and its arms.
fn cable(one: &str, other: &str) -> String {
    format!(
        "[[interface]]\nname = \"{one}\"\n[[interface]]\nname = \"{other}\"\n\
         [[bridge]]\nname = \"cable\"\ninterfaces = [\"{one}\", \"{other}\"]\n"
    )
}

#[test]
fn vlans_and_routes_are_of_the_packet_plane() {
    let lines = "[[interface]]\nname = \"eth0\"\n[[interface.vlan]]\nid = 20\naddresses = [\"198.51.100.1/24\"]\n\
                 [[route]]\nto = \"default\"\nvia = \"198.51.100.9\"\n";
    expect(&(service("", "") + lines), &[("no-effect", "vlan"), ("no-effect", "route")]);
    for used in [service("plane = \"packet\"", ""), "[router]\nenabled = true\n".to_owned(), cable("one", "other")] {
        expect(&(used + lines), &[]);
    }
}

#[test]
fn planes_forwarding_and_http_must_fit() {
    let packet = "plane = \"packet\"\nsource = { pool = [\"192.0.2.5\"] }";
    let dsr = "plane = \"packet\"\nforwarding = \"dsr\"\nhealth = { check = \"tcp\", ports = 443 }";
    let rows: &[(String, &[(&str, &str)])] = &[
        ("source = \"client\"".into(), &[("needs-packet-plane", "\"client\"")]),
        ("forwarding = \"half-nat\"".into(), &[("needs-packet-plane", "\"half-nat\"")]),
        ("ports = \"all\"\npersistence = { by = \"source-ip\" }".into(), &[("needs-packet-plane", "\"all\"")]),
        (format!("{packet}\nports = \"all\""), &[("no-persistence", "\"all\"")]),
        (packet.into(), &[]),
        ("plane = \"packet\"".into(), &[]),
        ("source = { pool = \"interface\" }".into(), &[("needs-packet-plane", "\"interface\"")]),
        (
            "plane = \"packet\"\nforwarding = \"dsr\"\nsource = { pool = \"interface\" }".into(),
            &[("conflicting-keys", "\"interface\"")],
        ),
        ("drop_on_failure = true".into(), &[("no-effect", "drop_on_failure")]),
        ("drop_on_failure = true\nhealth = { check = \"none\" }".into(), &[("no-effect", "drop_on_failure")]),
        ("drop_on_failure = true\nhealth = { check = \"tcp\" }".into(), &[]),
        (format!("{dsr}\ndrop_on_failure = true"), &[("no-effect", "drop_on_failure")]),
        (format!("{dsr}\ndrop_on_failure = false"), &[]),
        (format!("{dsr}\nprotocol = \"udp\"\ndrop_on_failure = true"), &[]),
        ("client_networks = [\"198.51.100.0/24\"]".into(), &[("no-effect", "client_networks")]),
        ("next_hop = \"192.0.2.1\"".into(), &[("needs-packet-plane", "next_hop")]),
        ("protocol = \"udp\"\nhttp = {}".into(), &[("conflicting-keys", "{}")]),
        ("plane = \"packet\"\nforwarding = \"half-nat\"".into(), &[]),
        ("plane = \"packet\"\nforwarding = \"half-nat\"\nsource = \"vip\"".into(), &[]),
        (
            "plane = \"packet\"\nforwarding = \"half-nat\"\nsource = \"interface\"".into(),
            &[("conflicting-keys", "\"interface\"")],
        ),
        ("plane = \"packet\"\nforwarding = \"dsr\"\nsource = \"vip\"".into(), &[("conflicting-keys", "\"vip\"")]),
        ("plane = \"packet\"\nsource = \"client\"".into(), &[("conflicting-keys", "\"client\"")]),
        ("plane = \"packet\"\nforwarding = \"half-nat\"\nsource = \"client\"".into(), &[]),
    ];
    for (lines, expected) in rows {
        expect(&service(lines, ""), expected);
    }
    expect(&service("plane = \"packet\"\nforwarding = \"dsr\"", "port = 8443"), &[("conflicting-keys", "8443")]);
}

#[test]
fn half_nat_with_clients_on_the_servers_network_is_refused() {
    let packet = "plane = \"packet\"\nforwarding = \"half-nat\"";
    let networks = "client_networks = [\"198.51.100.0/24\", \"192.0.2.0/24\"]";
    expect(&service(&format!("{packet}\n{networks}"), ""), &[("half-nat-on-link", "\"192.0.2.0/24\"")]);
    expect(&service(&format!("{packet}\nclient_networks = [\"0.0.0.0/0\"]"), ""), &[]);
    let interface = "\n[[interface]]\nname = \"eth0\"\naddresses = [\"192.0.2.1/24\"]\n";
    let one_arm = service(packet, "") + interface;
    expect(&one_arm, &[("half-nat-on-link", "\"half-nat\"")]);
    // With a pool those clients get a source address of ours.
    let pool = "source = { pool = [\"192.0.2.5\"] }";
    expect(&service(&format!("{packet}\n{networks}\n{pool}"), ""), &[]);
    expect(&(service(&format!("{packet}\n{pool}"), "") + interface), &[]);
}

#[test]
fn a_vlan_is_one_network_that_the_kernel_has_no_part_in() {
    let trunk = |vlans: &str| format!("\n[[interface]]\nname = \"eth0\"\naddresses = [\"198.51.100.1/16\"]\n{vlans}");
    let vlan = |id: &str, rest: &str| format!("[[interface.vlan]]\nid = {id}\n{rest}\n");
    let edge = vlan("20", "addresses = [\"192.0.2.1/24\"]");
    let packet = "plane = \"packet\"\nsource = \"vip\"";
    expect(&(service(packet, "") + &trunk(&edge)), &[]);
    expect(&(service(&format!("{packet}\ninterface = \"eth0.20\""), "") + &trunk(&edge)), &[]);
    expect(
        &(service(&format!("{packet}\ninterface = \"eth0.21\""), "") + &trunk(&edge)),
        &[("unknown-interface", "\"eth0.21\"")],
    );
    expect(&(service(packet, "") + &trunk(&vlan("0", "addresses = [\"192.0.2.1/24\"]"))), &[("out-of-range", "0")]);
    expect(&(service(packet, "") + &trunk(&vlan("20", ""))), &[("missing-key", "[[interface.vlan]]")]);
    let twice = edge.clone() + &vlan("20", "name = \"other\"\naddresses = [\"203.0.113.1/24\"]");
    expect(&(service(packet, "") + &trunk(&twice)), &[("duplicate-vlan", "20")]);
    // Health checks have a way there, and ports of their own; the kernel's connections have none.
    let checked = format!("{packet}\nhealth = {{ check = \"tcp\" }}");
    expect(&(service(&checked, "") + &trunk(&edge)), &[]);
    let leased =
        |source: &str| service(&format!("plane = \"packet\"\nsource = {{ pool = {source} }}"), "") + &trunk(&edge);
    expect(&leased("[\"192.0.2.1\"]"), &[("probe-ports", "[\"192.0.2.1\"]")]);
    expect(&leased("[\"192.0.2.1\"], ports = \"1024-60999\""), &[]);
    expect(&leased("[\"192.0.2.2\"]"), &[]);
    expect(&leased("\"interface\", ports = \"20000-61000\""), &[("probe-ports", "\"20000-61000\"")]);
    expect(&leased("\"interface\""), &[]);
    expect(&(service("", "") + &trunk(&edge)), &[("needs-packet-plane", "\"192.0.2.21\"")]);
    expect(&(service(packet, "") + &trunk("mac = \"02:00:00:00:00:01\"\n")), &[("not-available", "mac")]);
}

#[test]
fn an_address_is_leased_from_on_one_plane_only() {
    let two = |first: &str, second: &str| {
        format!("{}\n{}", service(first, ""), service(second, "").replace("\"web\"", "\"other\""))
    };
    let pool = |address: &str| format!("source = {{ pool = [\"{address}\"] }}");
    let packet = |source: &str| format!("ports = [80]\nplane = \"packet\"\n{source}");
    expect(&two(&pool("192.0.2.5"), &packet(&pool("192.0.2.5"))), &[("both-planes", "[\"192.0.2.5\"]")]);
    expect(&two("source = \"vip\"", &packet(&pool("192.0.2.10"))), &[("both-planes", "[\"192.0.2.10\"]")]);
    expect(&two(&pool("192.0.2.5"), &packet(&pool("192.0.2.6"))), &[]);
    expect(&two(&packet(&pool("192.0.2.5")), &format!("plane = \"packet\"\n{}", pool("192.0.2.5"))), &[]);
}

#[test]
fn what_makes_a_client_must_be_there_to_be_seen() {
    const ENDED: &str = "tls = { mode = \"terminate\", certificate = [{ file = \"a.pem\", key = \"a.key\" }] }";
    let weak = ("weak-persistence", "\"tls-session-id\"");
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);
    let rows: &[Row<'_>] = &[
        ("\"sni\"", "", &[]),
        ("\"sni\"", ENDED, &[]),
        ("[\"sni\", \"source-ip\"]", "", &[]),
        ("\"sni\"", "plane = \"packet\"", &[("needs-stream-plane", "\"sni\"")]),
        ("\"sni\"", "protocol = \"udp\"", &[("conflicting-keys", "\"sni\"")]),
        ("\"tls-session-id\"", "", &[weak]),
        ("[\"tls-session-id\", \"source-ip\"]", "", &[weak]),
        ("\"tls-session-id\"", ENDED, &[("conflicting-keys", "\"tls-session-id\"")]),
        ("\"tls-session-id\"", "plane = \"packet\"", &[("needs-stream-plane", "\"tls-session-id\"")]),
        ("\"sip-call-id\"", "ports = 5060", &[]),
        ("\"sip-call-id\"", "ports = 5060\nprotocol = \"udp\"", &[]),
        ("\"sip-call-id\"", "ports = 5061", &[("unreadable-requests", "\"sip-call-id\"")]),
        ("[\"sip-call-id\", \"sni\"]", "ports = 5060", &[("conflicting-keys", "\"sip-call-id\"")]),
        ("[\"sip-call-id\", \"sni\"]", ENDED, &[]),
        ("[\"none\", \"source-ip\"]", "", &[("conflicting-keys", "\"none\"")]),
        ("[\"source-ip\", \"sni\"]", "", &[("no-effect", "\"sni\"")]),
        ("[\"source-ip\", \"source-ip\"]", "", &[("duplicate-entry", "\"source-ip\"")]),
        ("[]", "", &[("empty-list", "[]")]),
        ("[\"sni\", \"sourceip\"]", "", &[("unknown-word", "\"sourceip\"")]),
        ("\"session\"", "", &[("unknown-word", "\"session\"")]),
    ];
    for (by, lines, told) in rows {
        expect(&service(&format!("persistence = {{ by = {by} }}\n{lines}"), ""), told);
    }
    let routed = service(
        "ports = 5060\npersistence = { by = \"sip-call-id\" }\ntls.route = [{ names = [\"a.test\"], group = \"b\" }]",
        "",
    ) + "[[group]]\nname = \"b\"\n[[group.server]]\nname = \"c\"\naddress = \"192.0.2.9\"\n";
    expect(&routed, &[("conflicting-keys", "\"sip-call-id\"")]);
}

#[test]
fn persistence_that_reads_requests_needs_http_mode() {
    let old = service("persistence = { by = \"source-ip\", fallback = \"source-ip\" }", "");
    expect(&old, &[("unknown-key", "fallback")]);
    let told = towpath_config::render(&check("test.toml", &old).diagnostics, "test.toml", &old, false);
    assert!(told.contains("by = [\"cookie\", \"source-ip\"]"), "{told}");
    for by in ["cookie", "header", "super-http", "super-http-and-source-ip"] {
        let place = format!("\"{by}\"");
        // E-08: cookies in TCP mode.
        expect(&service(&format!("persistence = {{ by = \"{by}\" }}"), ""), &[("needs-http", &place)]);
        expect(&service(&format!("ports = [8080]\npersistence = {{ by = \"{by}\" }}\nhttp = {{}}"), ""), &[]);
        // Behind TLS that passes through there is nothing to read either.
        expect(&service(&format!("persistence = {{ by = \"{by}\" }}\nhttp = {{}}"), ""), &[("needs-http", &place)]);
    }
    expect(&service("persistence = { by = \"source-ip\", cookie = \"A\" }", ""), &[("no-effect", "cookie")]);
    expect(&service("persistence = { by = \"none\", timeout = \"1h\" }", ""), &[("no-effect", "timeout")]);
}

#[test]
fn services_may_not_share_a_socket() {
    let two = |first: &str, second: &str| {
        format!("{}\n{}", service(first, ""), service(second, "").replace("\"web\"", "\"other\""))
    };
    expect(&two("", ""), &[("duplicate-socket", "443")]);
    expect(&two("ports = [80, \"400-500\"]", "ports = [\"450-460\", 80]"), &[("duplicate-socket", "80")]);
    expect(&two("ports = \"400-500\"", "ports = [401, \"499-510\"]"), &[("duplicate-socket", "401")]);
    expect(&two("", "protocol = \"udp\""), &[]);
    expect(&two("", "vip = \"192.0.2.11\""), &[]);
    expect(&two("", "ports = [444]"), &[]);
    expect(
        &two(
            "",
            "plane = \"packet\"\nforwarding = \"half-nat\"\nports = \"all\"\npersistence = { by = \"source-ip\" }",
        ),
        &[("duplicate-socket", "\"all\"")],
    );
    let text = two("", "");
    let checked = check("test.toml", &text);
    let clash = &checked.diagnostics[0];
    assert_eq!(clash.message, "services \"web\" and \"other\" both listen on 192.0.2.10:443/tcp");
    assert_eq!((clash.primary.line, clash.labels[0].location.line), (15, 4));
}

#[test]
fn names_are_unique_and_known() {
    expect(&format!("{}{}", service("", ""), service("vip = \"192.0.2.11\"", "")), &[("duplicate-name", "\"web\"")]);
    let group = |name: &str| {
        format!("[[group]]\nname = \"{name}\"\n[[group.server]]\nname = \"one\"\naddress = \"192.0.2.21\"\n")
    };
    let user = "[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\nports = 443\n";
    expect(&format!("{}{user}group = \"front\"\n", group("front")), &[]);
    expect(
        &format!("{}{user}group = \"fornt\"\n", group("front")),
        &[("unused-group", "\"front\""), ("unknown-group", "\"fornt\"")],
    );
    expect(
        &format!("{}{}{user}group = \"front\"\n", group("front"), group("front")),
        &[("duplicate-name", "\"front\""), ("unused-group", "\"front\"")],
    );
    expect(user, &[("missing-key", "[[service]]")]);
    expect(
        &format!(
            "{}{user}group = \"front\"\n[[service.server]]\nname = \"x\"\naddress = \"192.0.2.30\"\n",
            group("front")
        ),
        &[("conflicting-keys", "\"front\"")],
    );
    let twins = service("", "[[service.server]]\nname = \"one\"\naddress = \"192.0.2.22\"");
    expect(&twins, &[("duplicate-name", "\"one\"")]);
    expect(&service("name = \"a\\u0007\"", "").replacen("name = \"web\"\n", "", 1), &[("bad-name", "\"a\\u0007\"")]);
}

#[test]
fn a_real_server_is_one_wherever_it_stands() {
    expect(
        &service("", "[[service.server]]\nname = \"two\"\naddress = \"192.0.2.21\""),
        &[("duplicate-server", "\"192.0.2.21\"")],
    );
    expect(&service("", "port = 1\n[[service.server]]\nname = \"two\"\naddress = \"192.0.2.21\"\nport = 2"), &[]);
    let two = |first: &str, second: &str| {
        format!("{}\n{}", service("", first), service("ports = [80]", second).replace("\"web\"", "\"other\""))
    };
    expect(&two("", ""), &[]);
    expect(
        &two("admin = \"drain\"\nweight = 1", "admin = \"ready\""),
        &[("no-server", "1"), ("different-server", "\"ready\"")],
    );
    expect(&two("max_connections = 5", "max_connections = 6"), &[("different-server", "6")]);
    expect(&two("max_connections = 5\nport = 1", "max_connections = 6\nport = 2"), &[]);
    expect(&two("weight = 5", "weight = 6"), &[]);
}

#[test]
fn servers_that_cannot_serve_are_told() {
    expect(&service("", "weight = 0"), &[("no-server", "0")]);
    expect(&service("", "min_connections = 9\nmax_connections = 5"), &[("min-over-max", "9")]);
    // F-LB-08 is about real servers.
    let of_service = service("min_connections = 9", "");
    expect(&of_service, &[("unknown-key", "min_connections")]);
    let hint = &check("test.toml", &of_service).diagnostics[0].hint;
    assert!(hint.as_deref().is_some_and(|hint| hint.contains("[[service.server]]")), "{hint:?}");
    expect(&service("", "address = \"192.0.2.10\""), &[("loop", "\"192.0.2.10\"")]);
    expect(&service("", "address = \"192.0.2.10\"\nport = 443"), &[("loop", "\"192.0.2.10\"")]);
    expect(&service("", "address = \"192.0.2.10\"\nport = 8443"), &[]);
}

#[test]
fn who_says_sorry_is_somebody_else_and_the_only_one() {
    let sorry = |keys: &str| service(&format!("sorry = {{ {keys} }}"), "");
    expect(&sorry("address = \"192.0.2.50\", port = 80"), &[]);
    expect(&sorry("port = 80"), &[("missing-key", "{ port = 80 }")]);
    expect(&sorry("address = \"192.0.2.50\", weight = 1"), &[("unknown-key", "weight")]);
    expect(&sorry("address = \"192.0.2.21\""), &[("duplicate-server", "\"192.0.2.21\"")]);
    expect(&sorry("address = \"192.0.2.21\", port = 80"), &[]);
    expect(&sorry("address = \"192.0.2.10\""), &[("loop", "\"192.0.2.10\"")]);
    expect(&sorry("address = \"192.0.2.50\", re_encrypt = true"), &[("no-effect", "re_encrypt")]);
    let named = service("sorry = { address = \"192.0.2.50\" }", "").replace("\"one\"", "\"sorry\"");
    expect(&named, &[("duplicate-name", "\"sorry\"")]);
    let half_nat = "plane = \"packet\"\nforwarding = \"dsr\"\nsorry = ";
    expect(&service(&format!("{half_nat}{{ address = \"192.0.2.50\" }}"), ""), &[]);
    expect(
        &service(&format!("{half_nat}{{ address = \"192.0.2.50\", port = 80 }}"), ""),
        &[("conflicting-keys", "80")],
    );
    expect(
        &service(&format!("{half_nat}{{ address = \"2001:db8::50\" }}"), ""),
        &[("mixed-families", "\"2001:db8::50\"")],
    );
    let page = |when: &str| {
        let http = format!("ports = 80\nhttp = {{ maintenance = {{ file = \"/p\", when = \"{when}\" }} }}");
        service(&format!("{http}\nsorry = {{ address = \"192.0.2.50\" }}"), "")
    };
    expect(&page("no-server"), &[("conflicting-keys", "{ address = \"192.0.2.50\" }")]);
    expect(&page("always"), &[]);
    let alone = "[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\nports = 80\nhttp = { redirect_to_https = true }\nsorry = { address = \"192.0.2.50\" }\n";
    expect(alone, &[("no-effect", "{ address = \"192.0.2.50\" }")]);
    let status = |code: u16| {
        service(&format!("ports = 80\nhttp = {{ maintenance = {{ file = \"/p\", status = {code} }} }}"), "")
    };
    expect(&status(599), &[]);
    expect(&status(200), &[("out-of-range", "200")]);
}

#[test]
fn a_queue_is_for_those_who_can_wait() {
    expect(&service("queue = 5", "max_connections = 9"), &[]);
    expect(&service("queue = 5\nqueue_timeout = \"2s\"\nmax_connections = 9", "min_connections = 3"), &[]);
    expect(&service("queue = 5", ""), &[("no-effect", "queue")]);
    expect(&service("queue_timeout = \"2s\"", ""), &[("needs-queue", "queue_timeout")]);
    expect(&service("queue = 0\nqueue_timeout = \"2s\"", ""), &[("needs-queue", "queue_timeout")]);
    let limited = |keys: &str| service(&format!("{keys}\nmax_connections = 9"), "");
    expect(&limited("queue = 5\nprotocol = \"udp\""), &[("needs-tcp", "queue")]);
    expect(&limited("queue = 5\nplane = \"packet\"\nsource = \"vip\""), &[("needs-stream-plane", "queue")]);
    expect(&limited("queue = 65537"), &[("out-of-range", "65537")]);
    expect(&limited("queue = 5\nqueue_timeout = \"1h\""), &[("out-of-range", "\"1h\"")]);
    expect(&limited("overload = \"reset\""), &[("needs-packet-plane", "overload")]);
    expect(&limited("overload = \"reset\"\nports = 80\nhttp = {}"), &[("needs-packet-plane", "overload")]);
    let packet = "overload = \"reset\"\nplane = \"packet\"\nsource = \"vip\"";
    expect(&limited(packet), &[]);
    expect(&service(packet, ""), &[("no-effect", "overload")]);
    expect(
        &limited("overload = \"reset\"\nplane = \"packet\"\nsource = \"vip\"\nprotocol = \"udp\""),
        &[("needs-tcp", "overload")],
    );
    expect(&limited("ports = 80\nhttp = { retry_after = \"2d\" }"), &[("out-of-range", "\"2d\"")]);
}

#[test]
fn services_that_are_servers_of_each_other_are_a_circle() {
    let outer = |address: &str| {
        service("vip = \"192.0.2.11\"", &format!("address = \"{address}\"")).replace("\"web\"", "\"outer\"")
    };
    let inner = |port: u16| service("", &format!("address = \"192.0.2.11\"\nport = {port}"));
    expect(&format!("{}{}", inner(443), outer("192.0.2.10")), &[("loop", "\"192.0.2.10\"")]);
    expect(&format!("{}{}", inner(444), outer("192.0.2.10")), &[]);
    expect(&format!("{}{}", inner(443), outer("192.0.2.30")), &[]);
}

#[test]
fn one_server_port_for_many_ports_is_told() {
    // F-NAT-08: 80 to 8080 and 443 to 4443 are two services.
    expect(&service("ports = [80, 443]", "port = 8080"), &[("one-port", "8080")]);
    expect(&service("ports = [80]", "port = 8080"), &[]);
    expect(&service("ports = [80, 443]", ""), &[]);
}

#[test]
fn clients_hidden_behind_a_service_in_front_are_told() {
    // Trap 13: every client of the outer service has the balancer's address.
    let inner = service("persistence = { by = \"source-ip\" }", "");
    let outer = service("vip = \"192.0.2.11\"", "address = \"192.0.2.10\"").replace("\"web\"", "\"outer\"");
    expect(&format!("{inner}\n{outer}"), &[("hidden-clients", "\"192.0.2.10\"")]);
    expect(&format!("{}\n{outer}", service("", "")), &[]);
}

#[test]
fn a_pool_reaches_every_server_and_has_a_port_left() {
    expect(
        &service("source = { pool = [\"192.0.2.5\"] }", "address = \"2001:db8::21\""),
        &[("mixed-families", "[\"192.0.2.5\"]")],
    );
    expect(&service("source = { pool = [\"192.0.2.5\", \"2001:db8::5\"] }", "address = \"2001:db8::21\""), &[]);
    expect(&service("vip = \"2001:db8::10\"\nsource = \"vip\"", ""), &[("mixed-families", "\"vip\"")]);
    expect(&service("vip = \"2001:db8::10\"", ""), &[]);
    let taken = "ports = [2000, 2001]\nsource = { pool = [\"192.0.2.10\"], ports = \"2000-2001\" }";
    expect(&service(taken, ""), &[("empty-pool", "\"2000-2001\"")]);
    expect(&service(&taken.replace("-2001\"", "-2002\""), ""), &[]);
    let all = "plane = \"packet\"\nports = \"all\"\npersistence = { by = \"source-ip\" }\nsource = ";
    expect(&service(&format!("{all}\"vip\""), ""), &[("empty-pool", "\"vip\"")]);
    expect(&service(&format!("{all}{{ pool = [\"192.0.2.10\"] }}"), ""), &[("empty-pool", "[\"192.0.2.10\"]")]);
    expect(&service(&format!("{all}{{ pool = [\"192.0.2.5\"] }}"), ""), &[]);
}

#[test]
fn checks_must_be_able_to_answer() {
    let udp = "ports = [53]\nprotocol = \"udp\"\n";
    expect(&service(&format!("{udp}health = {{ check = \"tcp\" }}"), ""), &[("udp-check", "\"tcp\"")]);
    expect(&service(&format!("{udp}health = {{ check = \"tcp\", ports = [22] }}"), ""), &[]);
    for (keys, transport, told) in [
        ("check = \"dns\", query = \"a.b\"", "udp", &[][..]),
        ("check = \"dns\", query = \"a.b\"", "tcp", &[("udp-check", "\"dns\"")]),
        ("check = \"stun\"", "udp", &[]),
        ("check = \"stun\"", "tcp", &[("udp-check", "\"stun\"")]),
    ] {
        expect(&service(&format!("{udp}health = {{ {keys}, transport = \"{transport}\" }}"), ""), told);
    }
    expect(&service(&format!("{udp}health = {{ check = \"radius\", secret_file = \"/s\" }}"), ""), &[]);
    // A check port need not be a port of the service.
    expect(&service("health = { check = \"tcp\", ports = [9999] }", ""), &[]);
    expect(
        &service("health = { check = \"tcp\", interval = \"1s\", timeout = \"2s\" }", ""),
        &[("slow-check", "\"2s\"")],
    );
    expect(&service("health = { check = \"tcp\", interval = \"1s\" }", ""), &[("slow-check", "\"1s\"")]);
    let idle = check("test.toml", &service("health = { check = \"tcp\", path = \"/\" }", ""));
    assert_eq!(idle.diagnostics[0].severity, Severity::Error, "what means nothing there is refused");
    expect(&service("health = { check = \"tcp\", path = \"/\" }", ""), &[("no-effect", "path")]);
    for (keys, told) in [
        ("check = \"http\", path = \"owa\"", &[("bad-path", "\"owa\"")][..]),
        ("check = \"http\", path = \"/a b\"", &[("bad-path", "\"/a b\"")]),
        ("check = \"http\", status = \"200-\"", &[("bad-status", "\"200-\"")]),
        ("check = \"http\", status = \"399-200\"", &[("bad-status", "\"399-200\"")]),
        ("check = \"http\", status = \"99\"", &[("bad-status", "\"99\"")]),
        ("check = \"http\", host = \"a b\"", &[("bad-name", "\"a b\"")]),
        ("check = \"http\", expect = \"\"", &[("bad-text", "\"\"")]),
        ("check = \"http\", method = \"HEAD\", expect = \"OK\"", &[("conflicting-keys", "\"OK\"")]),
        ("check = \"https\", ca = \"/ca.pem\"", &[("no-effect", "ca")]),
        ("check = \"http\", verify = true", &[("no-effect", "verify")]),
        ("check = \"smtp\", status = \"200\"", &[("no-effect", "status")]),
        ("check = \"https\", verify = true, ca = \"/ca.pem\", host = \"192.0.2.7\", status = \"200, 401-403\"", &[]),
        ("check = \"ldap\"", &[]),
        ("check = \"ldap\", secret_file = \"/p\"", &[("no-effect", "\"/p\"")]),
        ("check = \"ldap\", user = \"cn=a\"", &[("missing-key", "KEYS"), ("clear-password", "\"cn=a\"")]),
        ("check = \"ldap\", user = \"cn=a\", secret_file = \"/p\"", &[("clear-password", "\"cn=a\"")]),
        ("check = \"ldap\", user = \"cn=a\", secret_file = \"/p\", transport = \"tls\", verify = true", &[]),
        ("check = \"ldap\", verify = true", &[("no-effect", "verify")]),
        ("check = \"ldap\", transport = \"udp\"", &[("bad-transport", "\"udp\"")]),
        ("check = \"tcp\", transport = \"tls\"", &[("no-effect", "transport")]),
        ("check = \"dns\"", &[("missing-key", "KEYS")]),
        ("check = \"dns\", query = \".\", query_type = \"NS\"", &[]),
        ("check = \"dns\", query = \"a..b\"", &[("bad-name", "\"a..b\"")]),
        ("check = \"dns\", query = \"a.b\", query_type = \"ANY\"", &[("unknown-word", "\"ANY\"")]),
        ("check = \"dns\", query = \"a.b\", rcode = \"ok\"", &[("bad-rcode", "\"ok\"")]),
        ("check = \"dns\", query = \"a.b\", rcode = \"noerror, NXDOMAIN\", transport = \"tcp\"", &[]),
        ("check = \"dns\", query = \"a.b\", transport = \"tls\"", &[("bad-transport", "\"tls\"")]),
        ("check = \"radius\"", &[("missing-key", "KEYS")]),
        ("check = \"radius\", secret_file = \"/s\"", &[]),
        ("check = \"radius\", secret_file = \"/s\", user = \"u\"", &[("missing-key", "KEYS")]),
        ("check = \"radius\", secret_file = \"/s\", user = \"u\", password_file = \"/p\", expect = \"reject\"", &[]),
        ("check = \"radius\", secret_file = \"/s\", password_file = \"/p\"", &[("no-effect", "\"/p\"")]),
        ("check = \"radius\", secret_file = \"/s\", expect = \"any\"", &[("no-effect", "\"any\"")]),
        ("check = \"radius\", secret_file = \"/s\", expect = \"yes\"", &[("bad-answer", "\"yes\"")]),
        ("check = \"radius\", secret_file = \"/s\", transport = \"tcp\"", &[("no-effect", "transport")]),
        (
            "check = \"radius\", secret_file = \"/s\", message_authenticator = \"optional\"",
            &[("no-effect", "\"optional\"")],
        ),
        ("check = \"radius\", secret_file = \"/s\", message_authenticator = \"no\"", &[("unknown-word", "\"no\"")]),
        ("check = \"tcp\", message_authenticator = \"required\"", &[("no-effect", "message_authenticator")]),
        ("check = \"none\", rise = 3", &[("no-effect", "rise")]),
        ("check = \"ping\"", &[]),
        ("check = \"ping\", ports = [7]", &[("no-effect", "ports")]),
        ("check = \"ping\", evict = \"port\"", &[("conflicting-keys", "\"port\"")]),
        ("check = \"stun\", transport = \"tls\"", &[("bad-transport", "\"tls\"")]),
        ("check = \"udp\", send = \"hello\", expect_hex = \"FF 0a\", no_answer = \"passes\"", &[]),
        ("check = \"udp\", send_hex = \"f\"", &[("bad-hex", "\"f\"")]),
        ("check = \"udp\", send = \"x\", send_hex = \"ff\"", &[("conflicting-keys", "\"ff\"")]),
        ("check = \"tcp\", no_answer = \"passes\"", &[("no-effect", "no_answer")]),
        ("check = \"http\", query = \"a.b\"", &[("no-effect", "query")]),
    ] {
        let whole = format!("{{ {keys} }}");
        // A key that is missing is missed in the whole table.
        let told: Vec<_> = told.iter().map(|&(code, at)| (code, if at == "KEYS" { &*whole } else { at })).collect();
        expect(&service(&format!("health = {whole}"), ""), &told);
    }
    expect(&service("health = { check = \"tcp\", ports = \"1-65\" }", ""), &[("too-many", "\"1-65\"")]);
}

#[test]
fn sip_external_and_agent_checks_are_judged() {
    for (keys, told) in [
        ("check = \"sip\"", &[][..]),
        ("check = \"sip\", transport = \"udp\", host = \"example.org\", status = \"200,603\"", &[]),
        ("check = \"sip\", transport = \"tls\", verify = true, ca = \"/ca.pem\", days_left = 7", &[]),
        ("check = \"sip\", transport = \"sctp\"", &[("unknown-word", "\"sctp\"")]),
        ("check = \"sip\", status = \"700\"", &[("bad-status", "\"700\"")]),
        ("check = \"http\", status = \"603\"", &[("bad-status", "\"603\"")]),
        ("check = \"sip\", verify = true", &[("no-effect", "verify")]),
        ("check = \"sip\", days_left = 7", &[("no-effect", "days_left")]),
        ("check = \"tcp\", transport = \"tcp\"", &[("no-effect", "transport")]),
        ("check = \"https\", days_left = 4000", &[("out-of-range", "4000")]),
        ("check = \"external\", command = [\"/bin/check\", \"-v\", \"-v\"], ports = [80, 81]", &[]),
        ("check = \"external\"", &[("missing-key", "\"external\"")]),
        ("check = \"external\", command = []", &[("empty-list", "[]")]),
        ("check = \"external\", command = \"/bin/check -v\"", &[("wrong-type", "\"/bin/check -v\"")]),
        ("check = \"external\", command = [\"check\"]", &[("bad-command", "\"check\"")]),
        ("check = \"external\", command = [\"/bin/check\", 5]", &[("wrong-type", "5")]),
        ("check = \"external\", command = [\"/bin/check\", \"a\\n\"]", &[("bad-text", "\"a\\n\"")]),
        ("check = \"tcp\", command = [\"/bin/check\"]", &[("no-effect", "command")]),
        ("check = \"tcp\", interval = \"10s\", fast_interval = \"1s\"", &[]),
        ("check = \"tcp\", fast_interval = \"6s\"", &[("bad-interval", "\"6s\"")]),
        ("check = \"none\", fast_interval = \"1s\"", &[("no-effect", "fast_interval")]),
        ("check = \"tcp\", agent_port = 9999, agent_send = \"hello\"", &[]),
        ("check = \"tcp\", agent_port = 0", &[("out-of-range", "0")]),
        ("check = \"tcp\", agent_port = 0, agent_send = \"hello\"", &[("out-of-range", "0")]),
        ("check = \"tcp\", agent_send = \"hello\"", &[("no-effect", "agent_send")]),
        ("check = \"none\", agent_port = 9999", &[("conflicting-keys", "agent_port")]),
        ("check = \"tcp\", load_port = 9999", &[("unknown-key", "load_port")]),
    ] {
        expect(&service(&format!("health = {{ {keys} }}"), ""), told);
    }
    let many = format!("command = [\"/bin/check\"{}]", ", \"a\"".repeat(64));
    let list = &many["command = ".len()..];
    expect(&service(&format!("health = {{ check = \"external\", {many} }}"), ""), &[("too-many", list)]);
    // A UDP service is asked by UDP, or on a port that answers TCP.
    let udp = "ports = [5060]\nprotocol = \"udp\"\n";
    for (keys, told) in [
        ("", &[("udp-check", "\"sip\"")][..]),
        (", transport = \"tls\"", &[("udp-check", "\"sip\"")]),
        (", transport = \"udp\"", &[]),
        (", ports = 5061", &[]),
    ] {
        expect(&service(&format!("{udp}health = {{ check = \"sip\"{keys} }}"), ""), told);
    }
}

#[test]
fn mail_and_radius_servers_must_not_lose_the_client_unknowingly() {
    for (lines, server, place) in [
        ("ports = [25]", "", "25"),
        ("ports = [587]", "", "587"),
        ("ports = \"20-30\"", "", "\"20-30\""),
        ("ports = [1812, 1813]\nprotocol = \"udp\"", "", "1812"),
        ("ports = [1645]\nprotocol = \"udp\"", "", "1645"),
        ("ports = [2525]", "port = 25", "25"),
        ("ports = [2525]\napplication = \"smtp\"", "", "\"smtp\""),
        (
            "ports = [1812]\nprotocol = \"udp\"\napplication = \"radius\"\nsource = { pool = [\"192.0.2.5\"] }",
            "",
            "1812",
        ),
    ] {
        expect(&service(lines, server), &[("hidden-client", place)]);
        expect(&service(&format!("{lines}\naccept_hidden_client = true"), server), &[]);
    }
    expect(&service("ports = [25]\nplane = \"packet\"\nsource = \"vip\"", ""), &[("hidden-client", "25")]);
    expect(&service("ports = [25]\nplane = \"packet\"\nforwarding = \"half-nat\"", ""), &[]);
}

#[test]
fn products_have_their_own_rules() {
    let packet = |forwarding: &str, rest: &str| format!("plane = \"packet\"\nforwarding = \"{forwarding}\"\n{rest}");
    // DSR: F-NAT-09.
    for application in ["exchange-2010", "exchange-2013", "lync-2010", "lync-2013", "ocs-2007r2"] {
        let text = service(&packet("dsr", &format!("ports = [993]\napplication = \"{application}\"")), "");
        expect(&text, &[("unsupported-forwarding", "\"dsr\"")]);
    }
    expect(&service(&packet("dsr", "application = \"sharepoint\""), ""), &[]);
    // Half-NAT: 3.3.
    let half = [("unsupported-forwarding", "\"half-nat\"")];
    expect(&service(&packet("half-nat", "application = \"ocs-2007r2\""), ""), &half);
    expect(&service(&packet("half-nat", "ports = [444]\napplication = \"lync-2013\""), ""), &half);
    expect(&service(&packet("half-nat", "ports = [5062]\napplication = \"lync-2013\""), ""), &[]);
    // Trap 22.
    let ended = "tls = { mode = \"terminate\", certificate = [{ file = \"a.pem\", key = \"a.key\" }] }";
    for port in [5061, 5062, 8057] {
        let text = service(&format!("ports = [{port}]\napplication = \"lync-2013\"\n{ended}"), "");
        expect(&text, &[("tls-must-pass", "\"terminate\"")]);
    }
    let web = service(&format!("application = \"lync-2013\"\n{ended}"), "");
    expect(&web, &[]);
    let stun =
        service("ports = [3478]\nprotocol = \"udp\"\napplication = \"lync-2013\"", "").replace("\"web\"", "\"stun\"");
    expect(&format!("{web}{stun}"), &[("tls-must-pass", "\"terminate\"")]);
    // Trap 16.
    let tcp_only = service("ports = [3478]\napplication = \"lync-2013\"", "");
    expect(&tcp_only, &[("wrong-protocol", "3478")]);
    expect(&format!("{tcp_only}{stun}"), &[]);
    // Ports of OCS only.
    expect(&service("ports = [5074]\napplication = \"lync-2013\"", ""), &[("wrong-port", "5074")]);
    expect(&service("ports = [7069]\napplication = \"lync-2010\"", ""), &[("wrong-port", "7069")]);
    expect(&service("ports = [5074]\napplication = \"ocs-2007r2\"", ""), &[]);
    // F-PER-07.
    expect(&service("ports = [4443]\napplication = \"lync-2010\"", ""), &[("no-persistence", "4443")]);
    expect(&service("ports = [4443]\napplication = \"lync-2013\"", ""), &[]);
    // 3.4.
    expect(&service("application = \"exchange-2010\"", ""), &[("no-persistence", "443")]);
    expect(&service("application = \"exchange-2013\"", ""), &[]);
    expect(
        &service("ports = [1812]\napplication = \"radius\"\naccept_hidden_client = true", ""),
        &[("wrong-protocol", "1812")],
    );
}

#[test]
fn short_idle_timeouts_on_sip_ports_are_told() {
    for port in [5060, 5061, 5062, 5065, 5070, 5076] {
        expect(&service(&format!("ports = [{port}]\nidle_timeout = \"19m\""), ""), &[("short-idle", "\"19m\"")]);
        expect(&service(&format!("ports = [{port}]\nidle_timeout = \"20m\""), ""), &[]);
    }
    expect(&service("ports = [5064]\nidle_timeout = \"43s\"", ""), &[]);
    // F-TO-06: plain milliseconds.
    expect(&service("ports = [5061]\nidle_timeout = 45000", ""), &[("short-idle", "45000")]);
    expect(&service("ports = [5061]\nidle_timeout = 1800000", ""), &[]);
}

#[test]
fn process_wide_keys_are_judged() {
    let with = |lines: &str| format!("{lines}\n{}", service("", ""));
    expect(&with("[runtime]\nworkers = []"), &[("empty-list", "[]")]);
    expect(&with("[runtime]\nworkers = [1, 2, 1]"), &[("duplicate-entry", "1")]);
    expect(&with("[runtime]\nworkers = \"all\""), &[("unknown-word", "\"all\"")]);
    expect(&with("[runtime]\nworkers = 2"), &[("wrong-type", "2")]);
    expect(&with("[limits]\nbuffers = 65536"), &[("out-of-range", "65536")]);
    expect(&with("[limits]\nflows = 2048"), &[]);
    expect(&with("[limits]\nflows = 1000"), &[("out-of-range", "1000")]);
    expect(&with("[limits]\nfast_flows = 1000"), &[("out-of-range", "1000")]);
    expect(&with("[runtime]\nfast_path = true"), &[("wrong-type", "true")]);
    expect(&with("[runtime]\nfast_path = \"on\""), &[("unknown-word", "\"on\"")]);
    expect(&with("[control]\nlisten = \"127.0.0.1\""), &[("bad-address", "\"127.0.0.1\"")]);
    expect(&with("[control]\nstate_file = \"/var/lib/towpath/a.state\""), &[]);
    expect(&with("[control]\nsocket = \"none\"\nstate_file = \"none\""), &[]);
    let state = "\"/var/lib/towpath/a.state\"";
    expect(&with(&format!("[control]\nsocket = \"none\"\nstate_file = {state}")), &[("no-effect", state)]);
    expect(&with("[control]\nsocket = \"/a\"\nstate_file = \"/a\""), &[("duplicate-path", "\"/a\"")]);
    expect(&with("[control]\nstate_file = 5"), &[("wrong-type", "5")]);
    expect(&with("[control]\nstate_file = \"\""), &[("bad-text", "\"\"")]);
    expect(&with("[tls]\npost_quantum = true"), &[("no-effect", "tls")]);
    expect(&with("[log]\nlevel = \"info\""), &[]);
    expect(&with("[log]\nlevel = \"debug\""), &[]);
    expect(&with("[log]\nlevel = \"loud\""), &[("unknown-word", "\"loud\"")]);
    expect(&with("[runtim]\n"), &[("unknown-key", "runtim")]);
}

#[test]
fn where_lines_on_connections_go_is_judged() {
    let with = |lines: &str| format!("[log]\n{lines}\n{}", service("", ""));
    expect(&with("connections = \"all\""), &[]);
    expect(&with("connections = \"everything\""), &[("unknown-word", "\"everything\"")]);
    expect(&with("connections = true"), &[("wrong-type", "true")]);
    expect(&with("connections_to = \"/var/log/access.log\""), &[]);
    expect(&with("connections_to = \"stdout\""), &[]);
    expect(&with("connections_to = \"sdtout\""), &[("relative-path", "\"sdtout\"")]);
    expect(&with("connections_to = \"\""), &[("bad-text", "\"\"")]);
    expect(&with("connections_to = \"syslog\""), &[("missing-key", "\"syslog\"")]);
    expect(&with("connections_to = \"syslog\"\nsyslog = \"192.0.2.5:514\""), &[]);
    expect(&with("connections_to = \"syslog\"\nsyslog = \"/dev/log\""), &[]);
    expect(&with("connections_to = \"syslog\"\nsyslog = \"192.0.2.5\""), &[("bad-address", "\"192.0.2.5\"")]);
    let long = format!("\"/{}\"", "x".repeat(107));
    expect(&with(&format!("connections_to = \"syslog\"\nsyslog = {long}")), &[("too-long", &long)]);
    expect(&with("syslog = \"/dev/log\""), &[("no-effect", "syslog")]);
    // What the daemon tells about itself.
    expect(&with("to = \"syslog\""), &[("missing-key", "\"syslog\"")]);
    expect(&with("to = \"syslog\"\nsyslog = \"192.0.2.5:601\"\nsyslog_transport = \"tcp\"\nlevel = \"debug\""), &[]);
    expect(
        &with("to = \"syslog\"\nsyslog = \"/dev/log\"\nsyslog_transport = \"tcp\""),
        &[("no-effect", "syslog_transport")],
    );
    expect(&with("syslog_transport = \"udp\""), &[("no-effect", "syslog_transport")]);
    expect(&with("to = \"syslog\"\nsyslog = \"/dev/log\"\nsyslog_transport = \"tls\""), &[("unknown-word", "\"tls\"")]);
    expect(&with("to = \"syslog\"\nsyslog = \"/dev/log\"\nformat = \"json\""), &[("no-effect", "format")]);
    expect(&with("format = \"json\"\nlevel = \"warn\""), &[]);
    expect(&with("level = \"trace\""), &[("unknown-word", "\"trace\"")]);
    expect(&with("connections_query = \"some\""), &[("unknown-word", "\"some\"")]);
    expect(&with("connections_format = \"common\""), &[("unknown-word", "\"common\"")]);
    // The combined format is for requests.
    expect(&with("connections_format = \"combined\""), &[]);
    let combined = "connections = \"all\"\nconnections_format = \"combined\"";
    expect(&with(combined), &[("needs-http", "\"combined\"")]);
    expect(&format!("[log]\n{combined}\n{}", service("log = \"none\"", "")), &[]);
    expect(&format!("[log]\n{combined}\n{}", service("ports = [80]\nhttp = {}", "")), &[]);
    // What has no connections of TCP has no lines.
    expect(&service("log = \"all\"", ""), &[]);
    expect(&service("log = \"every\"", ""), &[("unknown-word", "\"every\"")]);
    expect(&service("protocol = \"udp\"\nlog = \"all\"", ""), &[("needs-stream-plane", "\"all\"")]);
    expect(
        &service("plane = \"packet\"\nsource = \"vip\"\nlog = \"errors\"", ""),
        &[("needs-stream-plane", "\"errors\"")],
    );
    let packets = service("plane = \"packet\"\nsource = \"vip\"", "");
    expect(&format!("[log]\nconnections = \"all\"\n{packets}"), &[]);
}

#[test]
fn the_listener_for_metrics_is_judged() {
    let with = |lines: &str| format!("[metrics]\n{lines}\n{}", service("vip = \"192.0.2.10\"\nports = [80, 9464]", ""));
    expect(&with(""), &[]);
    expect(&with("listen = \"127.0.0.1:9464\"\nfrom = [\"192.0.2.0/24\", \"2001:db8::/32\"]"), &[]);
    expect(&with("from = [\"192.0.2.0/24\"]"), &[("no-effect", "from")]);
    expect(&with("listen = \"127.0.0.1\""), &[("bad-address", "\"127.0.0.1\"")]);
    expect(&with("listen = \"127.0.0.1:0\""), &[("out-of-range", "\"127.0.0.1:0\"")]);
    expect(&with("listen = \"127.0.0.1:9100\"\nfrom = []"), &[("empty-list", "[]")]);
    expect(&with("listen = \"192.0.2.10:9464\""), &[("duplicate-socket", "\"192.0.2.10:9464\"")]);
    expect(&with("listen = \"0.0.0.0:80\""), &[("duplicate-socket", "\"0.0.0.0:80\"")]);
    expect(&with("listen = \"192.0.2.10:9465\""), &[]);
    expect(&with("listen = \"127.0.0.1:9100\"\nport = 1"), &[("unknown-key", "port")]);
}

#[test]
fn who_is_told_of_events_is_judged() {
    let with = |lines: &str| format!("[notify]\n{lines}\n{}", service("", ""));
    let hook = "webhook = \"https://hooks.example.org/towpath\"";
    expect(&with(hook), &[]);
    expect(&with("command = [\"/usr/local/bin/page\", \"lync\", \"lync\"]"), &[]);
    expect(&with(""), &[("missing-key", "[notify]")]);
    expect(&with("interval = \"1m\""), &[("missing-key", "[notify]")]);
    expect(&with("command = \"/usr/local/bin/page\""), &[("wrong-type", "\"/usr/local/bin/page\"")]);
    expect(&with("command = []"), &[("empty-list", "[]")]);
    expect(&with("command = [\"page\"]"), &[("bad-command", "\"page\"")]);
    expect(&with("webhook = \"hooks.example.org\""), &[("bad-url", "\"hooks.example.org\"")]);
    expect(&with("webhook = \"https://me@hooks.example.org/\""), &[("bad-url", "\"https://me@hooks.example.org/\"")]);
    expect(&with("webhook = 443"), &[("wrong-type", "443")]);
    let plain = "webhook = \"http://192.0.2.5/x\"";
    expect(&with(&format!("{plain}\nwebhook_ca = \"/etc/ca.pem\"")), &[("no-effect", "webhook_ca")]);
    expect(&with(&format!("{plain}\nwebhook_token_file = \"/etc/t\"")), &[("plain-token", "webhook_token_file")]);
    let page = "command = [\"/usr/local/bin/page\"]";
    expect(&with(&format!("{page}\nwebhook_ca = \"/etc/ca.pem\"")), &[("no-effect", "webhook_ca")]);
    expect(&with(&format!("{page}\nwebhook_token_file = \"/etc/t\"")), &[("no-effect", "webhook_token_file")]);
    expect(&with(&format!("{page}\nevents = \"health\"")), &[]);
    expect(&with(&format!("{page}\nevents = [\"health\", \"admin\"]")), &[]);
    expect(&with(&format!("{page}\nevents = [\"health\", \"health\"]")), &[("duplicate-entry", "\"health\"")]);
    expect(&with(&format!("{page}\nevents = \"weather\"")), &[("unknown-word", "\"weather\"")]);
    expect(&with(&format!("{page}\nevents = []")), &[("empty-list", "[]")]);
    expect(&with(&format!("{page}\nbatch = \"6m\"")), &[("out-of-range", "\"6m\"")]);
    expect(&with(&format!("{page}\ntimeout = 0")), &[("out-of-range", "0")]);
}

#[test]
fn who_says_whose_a_connection_is_is_judged() {
    let from = "proxy_protocol_from = [\"192.0.2.0/24\"]";
    expect(&service(from, ""), &[]);
    expect(&service(&format!("{from}\nproxy_protocol_timeout = \"1s\"\nproxy_protocol_others = \"serve\""), ""), &[]);
    expect(&service("proxy_protocol_from = []", ""), &[("empty-list", "[]")]);
    expect(&service("proxy_protocol_from = [\"192.0.2.300/24\"]", ""), &[("bad-network", "\"192.0.2.300/24\"")]);
    expect(&service("proxy_protocol_from = [\"0.0.0.0/0\"]", ""), &[("trusts-everybody", "\"0.0.0.0/0\"")]);
    expect(&service("proxy_protocol_timeout = \"1s\"", ""), &[("no-effect", "proxy_protocol_timeout")]);
    expect(&service("proxy_protocol_others = \"serve\"", ""), &[("no-effect", "proxy_protocol_others")]);
    let others = format!("{from}\nproxy_protocol_others = \"drop\"");
    expect(&service(&others, ""), &[("unknown-word", "\"drop\"")]);
    let timeout = format!("{from}\nproxy_protocol_timeout = \"2m\"");
    expect(&service(&timeout, ""), &[("out-of-range", "\"2m\"")]);
    for version in ["v1", "v2", "none"] {
        let key = format!("proxy_protocol = \"{version}\"");
        expect(&service(&key, &key), &[]);
    }
    expect(&service("proxy_protocol = \"v3\"", ""), &[("unknown-word", "\"v3\"")]);
    expect(&service("", "proxy_protocol = 2"), &[("wrong-type", "2")]);
    // Packets go on as they are.
    for plane in ["protocol = \"udp\"", "plane = \"packet\"\nsource = \"vip\""] {
        expect(&service(&format!("{plane}\n{from}"), ""), &[("needs-stream-plane", "proxy_protocol_from")]);
        expect(&service(&format!("{plane}\nproxy_protocol = \"v1\""), ""), &[("needs-stream-plane", "\"v1\"")]);
        expect(&service(plane, "proxy_protocol = \"v2\""), &[("needs-stream-plane", "\"v2\"")]);
        expect(&service(&format!("{plane}\nproxy_protocol = \"none\""), ""), &[]);
    }
    let group = "[[group]]\nname = \"two\"\nproxy_protocol = \"v1\"\n[[group.server]]\nname = \"one\"\naddress = \"192.0.2.21\"\n";
    let of_group = |lines: &str| {
        format!("{group}[[service]]\nname = \"a\"\nvip = \"192.0.2.1\"\nports = 53\ngroup = \"two\"\n{lines}\n")
    };
    expect(&of_group(""), &[]);
    expect(&of_group("protocol = \"udp\""), &[("needs-stream-plane", "\"v1\"")]);
}

#[test]
fn a_server_is_told_of_clients_as_it_says_itself_else_its_group_else_the_service() {
    let text = "[[group]]\nname = \"two\"\nproxy_protocol = \"v1\"\n\
                [[group.server]]\nname = \"own\"\naddress = \"192.0.2.21\"\nproxy_protocol = \"none\"\n\
                [[group.server]]\nname = \"groups\"\naddress = \"192.0.2.22\"\n\
                [[service]]\nname = \"a\"\nvip = \"192.0.2.1\"\nports = 80\ngroup = \"two\"\nproxy_protocol = \"v2\"\n\
                [[service]]\nname = \"b\"\nvip = \"192.0.2.1\"\nports = 81\nproxy_protocol = \"v2\"\n\
                [[service.server]]\nname = \"services\"\naddress = \"192.0.2.23\"\n";
    let model = check("test.toml", text).model.expect("a good file");
    let versions: Vec<_> = model
        .services
        .iter()
        .flat_map(|service| {
            let group = &model.groups[service.group];
            group.servers.iter().map(|server| service.proxy_version(group, server))
        })
        .collect();
    assert_eq!(versions, [None, Some(ProxyVersion::V1), Some(ProxyVersion::V2)]);
}

#[test]
fn syntax_errors_do_not_hide_the_other_mistakes() {
    expect(
        "[[service]]\nname = \"web\nvip = 5\nfoo = 1\n",
        &[("syntax", ""), ("wrong-type", "5"), ("unknown-key", "foo")],
    );
    let twice = service("balance = \"maglev\"\nbalance = \"round-robin\"", "");
    expect(&twice, &[("duplicate-key", "balance")]);
    assert_eq!(check("test.toml", &twice).diagnostics[0].labels.len(), 1, "both places are shown");
    expect("[service]\nname = \"web\"\nvip = \"192.0.2.1\"\nports = 1\nserver = []\n", &[("wrong-type", "[service]")]);
    expect("", &[("missing-key", "")]);
}

#[test]
fn arms_of_bridges_are_whole_links_of_one_bridge_each() {
    let links = "[[interface]]\nname = \"one\"\n[[interface]]\nname = \"two\"\n";
    let bridge = |name: &str, arms: &str| format!("[[bridge]]\nname = \"{name}\"\ninterfaces = [{arms}]\n");
    let web = service("plane = \"packet\"\nsource = \"vip\"", "");
    let both = bridge("farm", "\"one\", \"two\"");
    expect(&format!("{web}{links}{both}"), &[]);
    expect(&format!("{web}{links}{}", bridge("farm", "\"one\"")), &[("missing-arm", "[\"one\"]")]);
    expect(&format!("{web}{links}{}", bridge("farm", "\"one\", \"too\"")), &[("unknown-interface", "\"too\"")]);
    let other = bridge("other", "\"three\", \"two\"") + "[[interface]]\nname = \"three\"\n";
    expect(&format!("{web}{links}{both}{other}"), &[("conflicting-keys", "\"two\"")]);
    let addressed = links.to_owned() + "addresses = [\"192.0.2.9/24\"]\n";
    expect(&format!("{web}{addressed}{both}"), &[("conflicting-keys", "addresses")]);
    let trunk = links.to_owned() + "[[interface.vlan]]\nid = 20\naddresses = [\"10.20.0.1/24\"]\n";
    expect(&format!("{web}{trunk}{both}"), &[("conflicting-keys", "vlan")]);
    let of_vlan = bridge("farm", "\"one\", \"two.20\"");
    expect(&format!("{web}{trunk}{of_vlan}"), &[("conflicting-keys", "\"two.20\"")]);
}

#[test]
fn servers_on_a_bridge_are_checked_but_not_relayed_to() {
    let links = "[[interface]]\nname = \"one\"\n[[interface]]\nname = \"two\"\n\
                 [[bridge]]\nname = \"farm\"\ninterfaces = [\"one\", \"two\"]\naddresses = [\"192.0.2.1/24\"]\n";
    let web = service("plane = \"packet\"\nsource = \"vip\"\nhealth = { check = \"tcp\" }", "");
    expect(&format!("{web}{links}"), &[]);
    expect(&format!("{}{links}", service("", "")), &[("needs-packet-plane", "\"192.0.2.21\"")]);
}
