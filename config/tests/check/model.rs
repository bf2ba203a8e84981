//! What a good file means.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use towpath_config::model::*;
use towpath_config::{Model, check};

use crate::service;

fn model(text: &str) -> Model {
    let checked = check("test.toml", text);
    assert!(checked.diagnostics.is_empty(), "{:?}", checked.diagnostics);
    checked.model.expect("no errors, so there is a model")
}

#[test]
fn a_short_file_gets_the_documented_defaults() {
    let model = model(&service("", ""));
    let runtime = Runtime { workers: Workers::Auto, poll: Poll::Adaptive, fast_path: FastPath::Auto, role: None };
    assert_eq!(model.runtime, runtime);
    assert_eq!(
        model.limits,
        Limits {
            connections: None,
            udp_sessions: None,
            persistence_entries: 262_144,
            buffers: None,
            tls_buffers: None,
            buffer_bytes: 16_384,
            flows: 1_048_576,
            fast_flows: None,
            handshakes: 16_384,
            http2_streams: 100,
            http2_window: 262_144,
        }
    );
    assert_eq!(model.control.socket.as_deref(), Some(Path::new("/run/towpath/control.sock")));
    assert_eq!(model.control.state_file.as_deref(), Some(Path::new("/var/lib/towpath/control.state")));
    let tls = TlsPool {
        provider: TlsProvider::AwsLcRs,
        threads: HandshakeThreads::Auto,
        queue_deadline_ms: 2000,
        post_quantum: true,
        ticket_lifetime_ms: 43_200_000,
        ticket_key_file: None,
    };
    assert_eq!(model.tls, tls);
    let expected = VirtualService {
        name: "web".to_owned(),
        vip: "192.0.2.10".parse().expect("an address"),
        ports: Ports::List(vec![443]),
        protocol: Protocol::Tcp,
        plane: Plane::Stream,
        forwarding: Forwarding::FullNat,
        application: None,
        balance: Balance::WeightedLeastConnections,
        persistence: None,
        idle_timeout_ms: 1_800_000,
        connect_timeout_ms: 4000,
        drain_timeout_ms: 30_000,
        redispatch: 3,
        drop_on_failure: false,
        panic_threshold: 0,
        slow_start_ms: 0,
        next_hop: None,
        client_networks: Vec::new(),
        max_connections: 0,
        queue: None,
        overload: Overload::Silent,
        source: Source::Interface,
        interface: None,
        tls: ServiceTls::PassThrough(PassThrough { routes: Vec::new(), handshake_timeout_ms: 10_000 }),
        http: None,
        proxy_protocol: ProxyTo::None,
        proxy_from: None,
        log: Logged::None,
        group: 0,
        sorry: None,
    };
    assert_eq!(model.services, [expected]);
    let server = Server {
        name: "one".to_owned(),
        address: "192.0.2.21".parse().expect("an address"),
        port: None,
        weight: 100,
        min_connections: 0,
        max_connections: 0,
        admin: AdminState::Ready,
        backup: false,
        re_encrypt: None,
        server_name: None,
        proxy_protocol: None,
    };
    let group =
        ServerGroup { name: "web".to_owned(), servers: vec![server], health: None, proxy_protocol: None, origin: None };
    assert_eq!(model.groups, [group]);
}

#[test]
fn every_key_that_is_carried_out_reaches_the_model() {
    let text = r#"
[runtime]
workers = [0, 2]
poll = "busy"
fast_path = "off"
role = "standby"

[limits]
connections = 5000
udp_sessions = 100
persistence_entries = 200
buffers = 64
tls_buffers = 128
buffer_bytes = 131072
flows = 4096
fast_flows = 2048
handshakes = 512
http2_streams = 50
http2_window = 65535

[control]
socket = "none"

[[group]]
name = "shared"
balance = "maglev"
health = { check = "tcp", ports = [444, 5061], interval = "2s", fast_interval = 500, timeout = 1500, rise = 4, fall = 5, agent_port = 9999, evict = "group", flaps = 3, flap_window = "2m", flap_hold = "30s", passive = { connect_failures = 30, server_errors = 0, at_least = 50, window = "1m", hold = "5s" } }

[[group.server]]
name = "one"
address = "2001:db8::21"
port = 8443
weight = 7
max_connections = 30
admin = "drain"

[[group.server]]
name = "two"
address = "2001:db8::22"
backup = true

[[service]]
name = "first"
vip = "2001:db8::10"
ports = [443]
application = "lync-2013"
persistence = { by = "source-ip", timeout = "1h", ipv4_prefix = 24, ipv6_prefix = 64, enter_draining = true }
idle_timeout = "1d"
connect_timeout = "500ms"
drain_timeout = 0
redispatch = 0
panic_threshold = 40
max_connections = 4000
source = { pool = ["2001:db8::5"], ports = "2048-4095", rest = "30s" }
group = "shared"

[[service]]
name = "second"
vip = "2001:db8::10"
ports = 3478
protocol = "udp"
balance = "round-robin"
slow_start = "90s"
source = "vip"
health = { check = "none" }
group = "shared"
"#;
    let model = model(text);
    assert_eq!(
        model.runtime,
        Runtime {
            workers: Workers::Cpus(vec![0, 2]),
            poll: Poll::Busy,
            fast_path: FastPath::Off,
            role: Some(MachineRole::Standby),
        }
    );
    assert_eq!(
        model.limits,
        Limits {
            connections: Some(5000),
            udp_sessions: Some(100),
            persistence_entries: 200,
            buffers: Some(64),
            tls_buffers: Some(128),
            buffer_bytes: 131_072,
            flows: 4096,
            fast_flows: Some(2048),
            handshakes: 512,
            http2_streams: 50,
            http2_window: 65_535,
        }
    );
    assert_eq!((model.control.socket, model.control.state_file), (None, None));
    let first = &model.services[0];
    assert_eq!(first.ports, Ports::List(vec![443]));
    assert_eq!(first.application, Some(Application::Lync2013));
    assert_eq!(first.balance, Balance::Maglev, "from the group");
    let pinned = Persistence {
        by: vec![PersistBy::SourceIp],
        timeout_ms: 3_600_000,
        ipv4_prefix: 24,
        ipv6_prefix: 64,
        enter_draining: true,
    };
    assert_eq!(first.persistence, Some(pinned));
    let times = (first.idle_timeout_ms, first.connect_timeout_ms, first.drain_timeout_ms);
    assert_eq!(times, (86_400_000, 500, 0));
    assert_eq!((first.redispatch, first.max_connections, first.group), (0, 4000, 0));
    assert_eq!((first.panic_threshold, first.slow_start_ms), (40, 0));
    let address = "2001:db8::5".parse().expect("an address");
    assert_eq!(
        first.source,
        Source::Pool(SourcePool {
            addresses: vec![address],
            port_low: 2048,
            port_high: 4095,
            rest_ms: 30_000,
            towards: BTreeMap::new()
        })
    );
    let group = &model.groups[0];
    let health = Health {
        check: CheckKind::Tcp,
        ports: vec![444, 5061],
        interval_ms: 2000,
        fast_interval_ms: 500,
        timeout_ms: 1500,
        rise: 4,
        fall: 5,
        evict: Evict::Group,
        damping: Damping { flaps: 3, window_ms: 120_000, hold_ms: 30_000 },
        passive: Some(Passive {
            connect_failures: 30,
            server_errors: 0,
            at_least: 50,
            window_ms: 60_000,
            hold_ms: 5_000,
        }),
        agent: Some(Agent { port: 9999, send: None }),
    };
    assert_eq!(group.health, Some(health));
    let one = &group.servers[0];
    assert_eq!((one.port, one.weight, one.max_connections, one.admin), (Some(8443), 7, 30, AdminState::Drain));
    assert_eq!(group.servers.iter().map(|server| server.backup).collect::<Vec<_>>(), [false, true]);
    let second = &model.services[1];
    assert_eq!(
        (second.protocol, second.balance, second.idle_timeout_ms),
        (Protocol::Udp, Balance::RoundRobin, 300_000)
    );
    assert_eq!(second.slow_start_ms, 90_000);
    assert_eq!(
        second.source,
        Source::Pool(SourcePool {
            addresses: vec![second.vip],
            port_low: 1024,
            port_high: 65_535,
            rest_ms: 60_000,
            towards: BTreeMap::new()
        })
    );
    // A service that judges its servers in its own way gets its own group of the same servers.
    assert_eq!(model.groups.len(), 2);
    assert_eq!((second.group, model.groups[1].name.as_str()), (1, "second"));
    assert_eq!(model.groups[1].servers, group.servers);
    assert_eq!((&model.groups[1].health, model.groups[1].origin), (&None, Some(0)));
}

#[test]
fn every_balance_method_that_is_carried_out_is_told_apart() {
    let rows = [
        ("least-connections", Balance::LeastConnections),
        ("maglev", Balance::Maglev),
        ("random-of-two", Balance::RandomOfTwo),
        ("round-robin", Balance::RoundRobin),
        ("source-hash", Balance::SourceHash),
        ("weighted-least-connections", Balance::WeightedLeastConnections),
        ("weighted-round-robin", Balance::WeightedRoundRobin),
    ];
    for (word, balance) in rows {
        assert_eq!(model(&service(&format!("balance = \"{word}\""), "")).services[0].balance, balance, "{word}");
    }
}

#[test]
fn every_way_to_forward_packets_is_told_apart() {
    let rows = [
        ("source = \"vip\"", Forwarding::FullNat, true),
        ("forwarding = \"full-nat\"\nsource = \"vip\"", Forwarding::FullNat, true),
        ("forwarding = \"half-nat\"", Forwarding::HalfNat, false),
        ("forwarding = \"half-nat\"\nsource = \"client\"", Forwarding::HalfNat, false),
        ("forwarding = \"half-nat\"\nsource = \"vip\"", Forwarding::HalfNat, true),
        ("forwarding = \"dsr\"", Forwarding::Dsr, false),
    ];
    for (lines, forwarding, leases) in rows {
        let model = model(&service(&format!("plane = \"packet\"\n{lines}"), ""));
        let service = &model.services[0];
        assert_eq!((service.plane, service.forwarding), (Plane::Packet, forwarding), "{lines}");
        match &service.source {
            Source::Pool(pool) => assert!(leases && pool.addresses == [service.vip], "{lines}"),
            Source::Client => assert!(!leases, "{lines}"),
            Source::Facing(_) | Source::Interface => panic!("{lines}: not an address of the kernel"),
        }
    }
}

#[test]
fn an_interface_s_own_address_is_leased_from_on_the_packet_plane() {
    let rows = [
        ("", 16_384, 32_767),
        ("source = \"interface\"", 16_384, 32_767),
        ("source = { pool = \"interface\" }", 16_384, 32_767),
        ("source = { pool = \"interface\", ports = \"20000-20999\" }", 20_000, 20_999),
        ("forwarding = \"half-nat\"\nsource = { pool = \"interface\" }", 16_384, 32_767),
    ];
    for (lines, port_low, port_high) in rows {
        let model = model(&service(&format!("plane = \"packet\"\n{lines}"), ""));
        let expected = Source::Facing(FacingPorts { port_low, port_high, rest_ms: 60_000 });
        assert_eq!(model.services[0].source, expected, "{lines}");
    }
    assert_eq!(model(&service("source = \"interface\"", "")).services[0].source, Source::Interface);
}

#[test]
fn static_routes_and_next_hops_reach_the_model() {
    let text = service("plane = \"packet\"\nsource = \"vip\"\nnext_hop = \"192.0.2.1\"", "")
        + "[[route]]\nto = \"default\"\nvia = \"2001:db8::1\"\n\
           [[route]]\nto = \"192.168.100.0/24\"\nvia = \"192.0.2.2\"\ninterface = \"eth0\"\nmetric = 7\n\
           [[interface]]\nname = \"eth0\"\n";
    let model = model(&text);
    let ip = |text: &str| text.parse().expect("an address");
    assert_eq!(model.services[0].next_hop, Some(ip("192.0.2.1")));
    let by_default = StaticRoute { to: (ip("::"), 0), via: ip("2001:db8::1"), interface: None, metric: 100 };
    let particular = StaticRoute {
        to: (ip("192.168.100.0"), 24),
        via: ip("192.0.2.2"),
        interface: Some("eth0".to_owned()),
        metric: 7,
    };
    assert_eq!(model.routes, [by_default, particular]);
}

#[test]
fn a_router_forwards_what_its_rules_say() {
    assert_eq!(model(&service("", "")).router, Router::default());
    let text = r#"
[router]
enabled = true
source_check = false
policy = "deny"

[[router.rule]]
action = "allow"
from = ["10.25.0.0/16", "2001:db8::/32"]
to = ["10.20.0.0/16"]
from_interface = "eth0"
to_interface = "eth1"
protocol = "udp"
ports = [3478, "50000-59999"]

[[router.rule]]
action = "deny"

[[interface]]
name = "eth0"

[[interface]]
name = "eth1"
"#;
    let network = |text: &str, prefix| (text.parse().expect("an address"), prefix);
    let any = RouterRule {
        action: RuleAction::Deny,
        from: Vec::new(),
        to: Vec::new(),
        from_interface: None,
        to_interface: None,
        protocol: RuleProtocol::Any,
        ports: Vec::new(),
    };
    let first = RouterRule {
        action: RuleAction::Allow,
        from: vec![network("10.25.0.0", 16), network("2001:db8::", 32)],
        to: vec![network("10.20.0.0", 16)],
        from_interface: Some("eth0".to_owned()),
        to_interface: Some("eth1".to_owned()),
        protocol: RuleProtocol::Udp,
        ports: vec![(3478, 3478), (50_000, 59_999)],
    };
    let router = Router { enabled: true, source_check: false, policy: RuleAction::Deny, rules: vec![first, any] };
    let model = model(text);
    assert_eq!((model.router, model.services.len()), (router, 0));
}

#[test]
fn what_hosts_inside_open_leaves_from_a_pool_or_by_an_interface() {
    let text = r#"
[router]
enabled = true
[[interface]]
name = "eth0"
[[outbound_nat]]
name = "mail"
from = ["10.0.0.0/24", "fd00::/64"]
to = ["203.0.113.0/24"]
except = ["203.0.113.8/32"]
source = { pool = ["192.0.2.9", "2001:db8::9"], ports = "2000-2999", rest = "5s" }
[[outbound_nat]]
name = "rest"
from = ["10.0.0.0/24"]
interface = "eth0"
"#;
    let network = |text: &str, prefix| (text.parse::<IpAddr>().expect("made for this test"), prefix);
    let mail = OutboundNat {
        name: "mail".into(),
        from: vec![network("10.0.0.0", 24), network("fd00::", 64)],
        to: vec![network("203.0.113.0", 24)],
        except: vec![network("203.0.113.8", 32)],
        interface: None,
        source: Source::Pool(SourcePool {
            addresses: vec![network("192.0.2.9", 0).0, network("2001:db8::9", 0).0],
            port_low: 2000,
            port_high: 2999,
            rest_ms: 5_000,
            towards: BTreeMap::new(),
        }),
    };
    let rest = OutboundNat {
        name: "rest".into(),
        from: vec![network("10.0.0.0", 24)],
        to: Vec::new(),
        except: Vec::new(),
        interface: Some("eth0".into()),
        source: Source::Facing(FacingPorts { port_low: 16_384, port_high: 32_767, rest_ms: 60_000 }),
    };
    assert_eq!(model(text).outbound, [mail, rest]);
}

#[test]
fn vlans_have_a_name_and_addresses_of_their_own() {
    let trunk = "[[interface]]\nname = \"eth1\"\n[[interface.vlan]]\nid = 20\naddresses = [\"192.0.2.1/24\", \"fd20::1/64\"]\n\
                 [[interface.vlan]]\nid = 4094\nname = \"edge\"\naddresses = [\"198.51.100.1/24\"]\n";
    let model = model(&(service("plane = \"packet\"\ninterface = \"edge\"", "") + trunk));
    let vlans: Vec<_> =
        model.vlans().map(|(link, vlan)| (&*link.name, vlan.id, &*vlan.name, vlan.addresses.len())).collect();
    assert_eq!(vlans, [("eth1", 20, "eth1.20", 2), ("eth1", 4094, "edge", 1)]);
    assert_eq!(model.interfaces[0].vlans[0].addresses[1], ("fd20::1".parse().expect("an address"), 64));
    assert_eq!(model.services[0].interface.as_deref(), Some("edge"));
}

#[test]
fn every_way_to_write_ports_means_the_same() {
    for written in ["[80, 81]", "[81, 80]", "\"80-81\"", "[\"80-81\"]", "[\"80\", 81]", "[0x50, 81]"] {
        let model = model(&service(&format!("ports = {written}"), ""));
        assert_eq!(model.services[0].ports, Ports::List(vec![80, 81]), "{written}");
    }
}

#[test]
fn diagnostics_are_json_for_editors() {
    let checked = check("bad.toml", &service("balance = \"fast\"", ""));
    let json = serde_json::to_value(&checked).expect("serializes");
    assert_eq!(json["file_name"], "bad.toml");
    let first = &json["diagnostics"][0];
    assert_eq!(first["severity"], "error");
    assert_eq!(first["code"], "unknown-word");
    assert_eq!(first["primary"]["line"], 5);
    assert_eq!(first["primary"]["column"], 11);
    assert!(first["hint"].is_string());
    assert!(json["model"].is_null());
}

#[test]
fn checks_have_what_they_ask_and_expect() {
    let kind = |health: &str| {
        let text = format!(
            "[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\nports = 443\nhealth = {{ {health} }}\n\
             [[service.server]]\nname = \"a\"\naddress = \"192.0.2.21\"\n"
        );
        let checked = check("test.toml", &text);
        checked.model.expect("no errors").groups[0].health.clone().expect("checked").check
    };
    let mut http = HttpCheck { get: true, path: "/".to_owned(), host: None, statuses: vec![(200, 399)], expect: None };
    assert_eq!(kind("check = \"http\""), CheckKind::Http(http.clone()));
    http.get = false;
    http.host = Some("mail.example.org".to_owned());
    http.statuses = vec![(200, 302), (401, 401)];
    let tls = TlsCheck {
        name: Some("mail.example.org".to_owned()),
        authorities: Some("/etc/ssl/certs/ca-certificates.crt".into()),
        days_left: 0,
    };
    assert_eq!(
        kind(
            "check = \"https\", host = \"mail.example.org\", method = \"HEAD\", status = \"401, 301-302,200-300\", verify = true"
        ),
        CheckKind::Https(http, tls.clone())
    );
    assert_eq!(kind("check = \"tls\", host = \"mail.example.org\", verify = true"), CheckKind::Tls(tls));
    assert_eq!(kind("check = \"tls\""), CheckKind::Tls(TlsCheck { name: None, authorities: None, days_left: 0 }));
    assert_eq!(kind("check = \"smtp\", expect = \"ESMTP\""), CheckKind::Smtp { expect: Some("ESMTP".to_owned()) });
    let mut sip =
        SipCheck { transport: CheckTransport::Tcp, tls: None, host: None, statuses: vec![(200, 399)], expect: None };
    assert_eq!(kind("check = \"sip\""), CheckKind::Sip(sip.clone()));
    sip.transport = CheckTransport::Tls;
    sip.tls = Some(TlsCheck { name: Some("example.org".to_owned()), authorities: None, days_left: 14 });
    sip.host = Some("example.org".to_owned());
    sip.statuses = vec![(200, 200), (401, 401)];
    assert_eq!(
        kind("check = \"sip\", transport = \"tls\", host = \"example.org\", status = \"401,200\", days_left = 14"),
        CheckKind::Sip(sip)
    );
    let command = CommandLine { program: "/bin/check".into(), arguments: vec!["-v".to_owned(), "-v".to_owned()] };
    assert_eq!(kind("check = \"external\", command = [\"/bin/check\", \"-v\", \"-v\"]"), CheckKind::External(command));
    let dns = DnsCheck {
        transport: CheckTransport::Udp,
        query: "example.org".to_owned(),
        record: DnsType::A,
        rcodes: vec![0],
        expect: None,
    };
    assert_eq!(kind("check = \"dns\", query = \"example.org\""), CheckKind::Dns(dns.clone()));
    let other = DnsCheck {
        transport: CheckTransport::Tcp,
        record: DnsType::Srv,
        rcodes: vec![0, 3],
        expect: Some("0 5 5060 sip.example.org".to_owned()),
        ..dns
    };
    assert_eq!(
        kind(
            "check = \"dns\", query = \"example.org\", query_type = \"SRV\", rcode = \"noerror,NXDOMAIN\", transport = \"tcp\", \
             expect = \"0 5 5060 sip.example.org\""
        ),
        CheckKind::Dns(other)
    );
    assert_eq!(kind("check = \"ldap\""), CheckKind::Ldap(LdapCheck { bind: None, expect: None, tls: None }));
    assert_eq!(
        kind(
            "check = \"ldap\", user = \"cn=check\", secret_file = \"/p\", transport = \"tls\", host = \"dc.example.org\", expect = \"isSynchronized: TRUE\""
        ),
        CheckKind::Ldap(LdapCheck {
            bind: Some(LdapBind { user: "cn=check".to_owned(), secret_file: "/p".into() }),
            expect: Some("isSynchronized: TRUE".to_owned()),
            tls: Some(TlsCheck { name: Some("dc.example.org".to_owned()), authorities: None, days_left: 0 }),
        })
    );
    assert_eq!(kind("check = \"ping\""), CheckKind::Ping);
    assert_eq!(kind("check = \"stun\""), CheckKind::Stun { transport: CheckTransport::Udp });
    let radius = RadiusCheck {
        secret_file: "/s".into(),
        user: None,
        password_file: None,
        expect: RadiusAnswer::Accept,
        message_authenticator: MessageAuthenticator::Required,
    };
    assert_eq!(kind("check = \"radius\", secret_file = \"/s\""), CheckKind::Radius(radius.clone()));
    let asks = RadiusCheck {
        user: Some("u".to_owned()),
        password_file: Some("/p".into()),
        expect: RadiusAnswer::Reject,
        message_authenticator: MessageAuthenticator::Optional,
        ..radius
    };
    assert_eq!(
        kind(
            "check = \"radius\", secret_file = \"/s\", user = \"u\", password_file = \"/p\", expect = \"reject\", message_authenticator = \"optional\""
        ),
        CheckKind::Radius(asks)
    );
    assert_eq!(
        kind("check = \"udp\""),
        CheckKind::Udp(UdpCheck { send: Vec::new(), expect: None, silence_passes: false })
    );
    assert_eq!(
        kind("check = \"udp\", send_hex = \"FFff 0a\", expect = \"pong\", no_answer = \"passes\""),
        CheckKind::Udp(UdpCheck { send: vec![0xff, 0xff, 10], expect: Some(b"pong".to_vec()), silence_passes: true })
    );
}

#[test]
fn state_is_kept_where_it_outlives_a_boot_and_apart_from_that_of_other_daemons() {
    let kept = |keys: &str| model(&format!("[control]\n{keys}\n{}", service("", ""))).control.state_file;
    for (keys, expected) in [
        ("socket = \"/run/towpath/test.2.sock\"", Some("/var/lib/towpath/test.2.state")),
        ("socket = \"/var/run/towpath.sock\"", Some("/var/lib/towpath/towpath.state")),
        ("socket = \"/run/towpath-a/control.sock\"", Some("/var/lib/towpath/towpath-a--control.state")),
        ("socket = \"/run/towpath-b/control.sock\"", Some("/var/lib/towpath/towpath-b--control.state")),
        ("socket = \"/run/towpath/b/control.sock\"", Some("/var/lib/towpath/towpath--b--control.state")),
        ("socket = \"/tmp/a.sock\"", Some("/tmp/a.sock.state")),
        ("socket = \"/runner/a.sock\"", Some("/runner/a.sock.state")),
        ("socket = \"towpath.sock\"", Some("towpath.sock.state")),
        ("state_file = \"/srv/a.json\"", Some("/srv/a.json")),
        ("state_file = \"none\"", None),
        ("socket = \"none\"", None),
    ] {
        assert_eq!(kept(keys).as_deref(), expected.map(Path::new), "{keys}");
    }
}

#[test]
fn a_sorry_server_is_a_server_that_is_told_nothing() {
    let keys = "tls = { mode = \"terminate\", certificate = [{ file = \"/c.pem\", key = \"/k.pem\" }] }\nsorry = { address = \"192.0.2.50\", port = 8443, re_encrypt = true, server_name = \"Sorry.Example.org\" }";
    let checked = check("test.toml", &service(keys, ""));
    let model = checked.model.unwrap_or_else(|| panic!("{:?}", checked.diagnostics));
    let expected = Server {
        name: SORRY_NAME.to_owned(),
        address: "192.0.2.50".parse().expect("an address"),
        port: Some(8443),
        weight: 1,
        min_connections: 0,
        max_connections: 0,
        admin: AdminState::Ready,
        backup: false,
        re_encrypt: Some(true),
        server_name: Some("sorry.example.org".to_owned()),
        proxy_protocol: Some(ProxyTo::None),
    };
    assert_eq!(model.services[0].sorry, Some(expected.clone()));
    assert_eq!(model.groups.len(), 1, "it is in no group, so no check asks it");
    assert_eq!(model.servers_of(&model.services[0]).last(), Some(&expected));
    assert_eq!(model.servers().count(), 2);
}
