//! Changes while it runs.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use towpath_engine::admin::OrderBody;
use towpath_engine::status::HealthStatus;
use towpath_tests::web::WebOrigin;
use towpath_tests::{
    Connection, Greeting, Origin, PATIENCE, TestLab, Topology, eventually, in_lab, ipv4, ipv6, packet_service, service,
    subject, who,
};

#[test]
fn t_08_apply_and_roll_back_without_losing_a_connection() {
    in_lab(t_08_apply_and_roll_back_without_losing_a_connection, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let old = service("web", vip, "443", "", &ipv4(&lab.servers()[..1]));
        let new = service("web", vip, "443", "", &ipv4(&lab.servers()[1..]));
        let mut relay = subject!().start(lab.balancer(), &old);
        let mut before = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
        assert_eq!(before.greeting().expect("a greeting").name, "server-1");

        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            // New clients come all the time; `who` fails the test when one is not served.
            let clients = scope.spawn(|| {
                let mut served = 0;
                while !over.load(Ordering::Acquire) {
                    who(lab.client(), (vip, 443));
                    served += 1;
                }
                served
            });
            // Ends the clients also when the test fails, for the scope waits for them.
            let _ends = OnDrop(|| over.store(true, Ordering::Release));
            let mut generation = relay.status().generation;
            for _ in 0..3 {
                let applied = relay.reload(&new).expect("a valid configuration");
                assert!(applied > generation);
                assert_eq!(who(lab.client(), (vip, 443)), "server-2");
                before.echo(b"I was there before").expect("the old connection goes on");
                let leaving = relay.status().leaving;
                assert!(
                    leaving.iter().any(|server| server.name == "server-1" && server.connections >= 1),
                    "{leaving:?}"
                );

                generation = relay.reload(&old).expect("a valid configuration");
                assert!(generation > applied);
                assert_eq!(who(lab.client(), (vip, 443)), "server-1");
                before.echo(b"and still am").expect("the old connection goes on");
            }
            over.store(true, Ordering::Release);
            assert!(clients.join().expect("every client was served") > 0);
        });
        before.close().expect("a clean end");
        relay.stop();
    });
}

#[test]
fn t_08_a_broken_file_changes_nothing_and_is_told_with_its_places() {
    in_lab(t_08_a_broken_file_changes_nothing_and_is_told_with_its_places, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let good = service("web", vip, "443", "", &ipv4(&lab.servers()[..1]));
        let mut relay = subject!().start(lab.balancer(), &good);
        let generation = relay.status().generation;
        let mut before = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
        before.greeting().expect("a greeting");

        // `[control]` and its socket are lines 1 and 2.
        let broken = good.replace("ports = 443", "ports = 443\nidle_timout = \"30m\"\nbalance = \"fairly\"");
        let said = relay.reload(&broken).expect_err("two mistakes");
        for told in ["towpath.toml:7:1", "`idle_timeout`", "towpath.toml:8:11", "SIGHUP: nothing was changed"] {
            assert!(said.contains(told), "{told} is missing in\n{said}");
        }

        let larger = format!("[limits]\nflows = 5000\n{good}");
        let said = relay.reload(&larger).expect_err("memory is allocated at the start");
        assert!(said.contains("limits.flows") && said.contains("restart"), "{said}");

        assert_eq!(relay.status().generation, generation);
        before.echo(b"undisturbed").expect("the old connection goes on");
        assert_eq!(who(lab.client(), (vip, 443)), "server-1");
        relay.stop();
    });
}

#[test]
fn services_come_go_and_move_and_no_connection_notices() {
    in_lab(services_come_go_and_move_and_no_connection_notices, Topology::TwoArm, 2, |lab| change_services(lab, 24, 8));
}

#[test]
#[ignore = "a thousand reloads take a while"]
fn services_come_go_and_move_a_thousand_times() {
    in_lab(services_come_go_and_move_a_thousand_times, Topology::TwoArm, 2, |lab| change_services(lab, 334, 334));
}

/// Adds, moves and removes services, again and again, beside one that is busy; after so many rounds their names come again.
fn change_services(lab: &TestLab, rounds: usize, names_again: usize) {
    let (web, shop) = (lab.vip(100), lab.vip(101));
    let _origins = [443, 80, 8080].map(|port| Origin::tcp(lab.server(1), port));
    let servers = ipv4(&lab.servers()[..1]);
    // Few, so that all are touched soon: a buffer takes memory when it is used first.
    let limits = "[limits]\nconnections = 200\nbuffers = 64\n";
    let without = format!("{limits}{}", service("web", web, "443", "", &servers));
    // More names than there are ids, in a thousand reloads.
    let with = |round: usize, ports: &str| {
        let round = round % names_again;
        let names = ["shop", "kiosk", "stall", "booth"].into_iter().zip(0u16..);
        let more = names.map(|(name, at)| {
            let ports = if at == 0 { ports.to_owned() } else { (9_000 + at).to_string() };
            service(&format!("{name}-{round}"), shop, &ports, "", &servers)
        });
        format!("{without}{}", more.collect::<String>())
    };
    let mut relay = subject!().start_on(lab.balancer(), &without, &[0, 0]);
    let mut before = Connection::open(lab.client(), (web, 443)).expect("the relay listens");
    before.greeting().expect("a greeting");
    let over = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                who(lab.client(), (web, 443));
                served.fetch_add(1, Ordering::AcqRel);
            }
        });
        let _ends = OnDrop(|| over.store(true, Ordering::Release));
        let mut flat = 0;
        for round in 0..rounds {
            let since = served.load(Ordering::Acquire);
            relay.reload(&with(round, "80")).expect("one is added");
            let mut shopping = Connection::open(lab.client(), (shop, 80)).expect("it listens");
            shopping.greeting().expect("it is served");
            relay.reload(&with(round, "8080")).expect("it moves");
            assert_eq!(who(lab.client(), (shop, 8080)), "server-1");
            shopping.echo(b"where I was").expect("it goes on");
            relay.reload(&without).expect("it is taken out");
            shopping.echo(b"to the end").expect("it may finish");
            before.echo(b"undisturbed").expect("the old connection goes on");
            shopping.close().expect("a clean end");
            eventually("others are served meanwhile", || (served.load(Ordering::Acquire) > since).then_some(()));
            if round == rounds / 3 {
                flat = relay.memory_bytes();
            }
        }
        let memory = relay.memory_bytes();
        println!("{rounds} rounds: {flat} bytes at a third of the way, {memory} at the end");
        assert!(memory <= flat + flat / 20, "{memory} bytes after {flat} bytes at a third of the way");
    });
    let left = || lab.balancer().run(|| !is_bound(shop.into(), 80) && !is_bound(shop.into(), 8080)).expect("a thread");
    eventually("its listeners are closed", || left().then_some(()));
    let refused = Connection::open(lab.client(), (shop, 80)).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    before.close().expect("a clean end");
    relay.stop();
}

/// Whether somebody has this address and port, on the host of the calling thread.
fn is_bound(ip: IpAddr, port: u16) -> bool {
    TcpListener::bind((ip, port)).is_err()
}

#[test]
fn packet_services_come_and_go_and_no_flow_notices() {
    in_lab(packet_services_come_and_go_and_no_flow_notices, Topology::TwoArm, 1, |lab| change_packet_services(lab, 6));
}

#[test]
#[ignore = "a thousand reloads take a while"]
fn packet_services_come_and_go_a_thousand_times() {
    in_lab(packet_services_come_and_go_a_thousand_times, Topology::TwoArm, 1, |lab| change_packet_services(lab, 334));
}

/// Adds, widens and removes a service of the packet plane, with its addresses, again and again, beside one that is busy.
fn change_packet_services(lab: &TestLab, rounds: usize) {
    let (web, shop, shop6) = (lab.free_vip(100), lab.free_vip(110), lab.free_vip6(0x110));
    let _origins = [443, 80, 8080].map(|port| Origin::tcp(lab.server(1), port));
    let (servers, servers6) = (ipv4(lab.servers()), ipv6(lab.servers()));
    let limits = "[limits]\nflows = 16384\n";
    let pool = |number| format!("source = {{ pool = [\"{}\"] }}\ndrain_timeout = \"1m\"", lab.free_snat(number));
    let without = format!("{limits}{}", packet_service("web", web, "443", &pool(101), &servers));
    let six = packet_service("shop6", shop6, "80", "source = \"vip\"", &servers6);
    let with = format!("{without}{}{six}", packet_service("shop", shop, "80", &pool(103), &servers));
    let beside = format!("{with}{}", packet_service("beside", shop, "8080", &pool(103), &servers));
    let mut relay = subject!().start_on(lab.balancer(), &without, &[0, 0]);
    let mut before = Connection::open(lab.client(), (web, 443)).expect("it is served");
    before.greeting().expect("a greeting");
    let over = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                who(lab.client(), (web, 443));
                served.fetch_add(1, Ordering::AcqRel);
            }
        });
        let _ends = OnDrop(|| over.store(true, Ordering::Release));
        let mut flat = 0;
        for round in 0..rounds {
            let since = served.load(Ordering::Acquire);
            relay.reload(&with).expect("two are added");
            let mut shopping = Connection::open(lab.client(), (shop, 80)).expect("it is served");
            shopping.greeting().expect("it is served");
            assert_eq!(who(lab.client(), (shop6, 80)), "server-1");
            relay.reload(&beside).expect("there is one more at its address");
            assert_eq!(who(lab.client(), (shop, 8080)), "server-1");
            shopping.echo(b"where I was").expect("it goes on");
            relay.reload(&without).expect("they are taken out");
            shopping.echo(b"to the end").expect("it may finish");
            assert_eq!(relay.status().services.len(), 1);
            before.echo(b"undisturbed").expect("the old connection goes on");
            shopping.close().expect("a clean end");
            eventually("others are served meanwhile", || (served.load(Ordering::Acquire) > since).then_some(()));
            if round == rounds / 3 {
                flat = relay.memory_bytes();
            }
        }
        let memory = relay.memory_bytes();
        println!("{rounds} rounds: {flat} bytes at a third of the way, {memory} at the end");
        assert!(memory <= flat + flat / 20, "{memory} bytes after {flat} bytes at a third of the way");
    });
    before.close().expect("a clean end");
    relay.stop();
}

#[test]
fn flows_of_a_service_that_is_gone_end_after_its_drain_timeout_and_its_address_is_free() {
    in_lab(
        flows_of_a_service_that_is_gone_end_after_its_drain_timeout_and_its_address_is_free,
        Topology::TwoArm,
        1,
        |lab| {
            let (web, shop) = (lab.free_vip(100), lab.vip(110));
            let _origins = [443, 80].map(|port| Origin::tcp(lab.server(1), port));
            let servers = ipv4(lab.servers());
            let keys = |number, more| format!("source = {{ pool = [\"{}\"] }}\n{more}", lab.free_snat(number));
            let without =
                format!("[limits]\nflows = 16384\n{}", packet_service("web", web, "443", &keys(101, ""), &servers));
            let gone = |ports| packet_service("shop", shop, ports, &keys(103, "drain_timeout = \"300ms\""), &servers);
            let mut relay = subject!().start(lab.balancer(), &format!("{without}{}", gone("80")));
            // An address of the kernel, whose port is kept from it.
            let kernels = lab.balancer().run(|| TcpListener::bind((shop, 80))).expect("a thread").expect("a free port");
            let mut left = Connection::open(lab.client(), (shop, 80)).expect("it is served");
            let mut stays = Connection::open(lab.client(), (web, 443)).expect("it is served");
            left.greeting().expect("a greeting");
            stays.greeting().expect("a greeting");
            relay.reload(&format!("{without}{}", gone("[80, 8080]"))).expect("one port more");
            left.echo(b"where I was").expect("it goes on");
            relay.reload(&without).expect("taken out");
            eventually("its connection is ended", || left.is_ended().then_some(()));
            stays.echo(b"not mine").expect("the other goes on");
            // What it claimed is the kernel's again.
            let client = eventually("the kernel hears clients", || Connection::open(lab.client(), (shop, 80)).ok());
            let (_, from) = kernels.accept().expect("a client of the kernel's");
            assert_eq!(from.ip(), IpAddr::from(lab.client().ipv4()));
            drop(client);
            relay.stop();
        },
    );
}

#[test]
fn who_has_come_in_by_a_listener_that_is_taken_out_is_served() {
    in_lab(who_has_come_in_by_a_listener_that_is_taken_out_is_served, Topology::TwoArm, 1, |lab| {
        let (web, shop) = (lab.vip(100), lab.vip(101));
        let _origins = [443, 80].map(|port| Origin::tcp(lab.server(1), port));
        let servers = ipv4(lab.servers());
        let without = service("web", web, "443", "", &servers);
        let with = format!("{without}{}", service("shop", shop, "80", "", &servers));
        let mut relay = subject!().start_on(lab.balancer(), &with, &[0, 0]);
        let over = AtomicBool::new(false);
        let (served, shut) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(Ordering::Acquire) {
                        match Connection::open(lab.client(), (shop, 80)) {
                            Ok(mut client) => {
                                let greeting = client.greeting().expect("whom the kernel has let in is served");
                                assert_eq!(greeting.name, "server-1");
                                served.fetch_add(1, Ordering::AcqRel);
                            }
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                                shut.fetch_add(1, Ordering::AcqRel);
                            }
                        }
                    }
                });
            }
            let _ends = OnDrop(|| over.store(true, Ordering::Release));
            for _ in 0..2 {
                let (served_before, shut_before) = (served.load(Ordering::Acquire), shut.load(Ordering::Acquire));
                eventually("clients come", || (served.load(Ordering::Acquire) > served_before + 20).then_some(()));
                relay.reload(&without).expect("taken out");
                eventually("nobody listens", || (shut.load(Ordering::Acquire) > shut_before).then_some(()));
                relay.reload(&with).expect("put back");
            }
            // Put back before it has closed.
            for _ in 0..5 {
                let served_before = served.load(Ordering::Acquire);
                relay.reload(&without).expect("taken out");
                relay.reload(&with).expect("put back");
                eventually("clients come", || (served.load(Ordering::Acquire) > served_before + 5).then_some(()));
            }
        });
        relay.stop();
    });
}

#[test]
fn a_udp_session_lives_on_without_its_service_and_with_it_again() {
    in_lab(a_udp_session_lives_on_without_its_service_and_with_it_again, Topology::TwoArm, 1, |lab| {
        let (web, stun) = (lab.vip(100), lab.vip(101));
        let _tcp = Origin::tcp(lab.server(1), 443);
        let _udp = Origin::udp(lab.server(1), 3478);
        let servers = ipv4(lab.servers());
        let without =
            service("web", web, "443", "", &servers) + &service("dns", web, "3478", "protocol = \"udp\"", &servers);
        let with = format!("{without}{}", service("stun", stun, "3478", "protocol = \"udp\"", &servers));
        let mut relay = subject!().start_on(lab.balancer(), &with, &[0, 0]);
        let client =
            lab.client().run(|| UdpSocket::bind((lab.client().ipv4(), 0))).expect("a thread").expect("a socket");
        client.set_read_timeout(Some(PATIENCE)).expect("not zero");
        client.connect((stun, 3478)).expect("our own kernel takes it");
        let ask = || {
            client.send(b"ping").expect("our own kernel takes it");
            let mut answer = [0; 512];
            let length = client.recv(&mut answer).expect("an answer");
            let line = String::from_utf8_lossy(&answer[..length]).into_owned();
            Greeting::parse(line.lines().next().expect("a line")).expect("a greeting").peer
        };
        let source = ask();
        for _ in 0..3 {
            relay.reload(&without).expect("taken out");
            assert_eq!(ask(), source, "the session goes on");
            relay.reload(&with).expect("put back");
            assert_eq!(ask(), source, "the session goes on");
        }
        // A new client is served by the listener that was never closed.
        towpath_tests::ask_by_udp(lab.client(), lab.client().ipv4().into(), (stun, 3478), b"me too");
        relay.stop();
    });
}

#[test]
fn the_first_service_in_http_mode_comes_and_goes_between_two_requests() {
    in_lab(the_first_service_in_http_mode_comes_and_goes_between_two_requests, Topology::TwoArm, 1, |lab| {
        let (web, shop) = (lab.vip(100), lab.vip(101));
        let _origins = (Origin::tcp(lab.server(1), 443), WebOrigin::start(lab.server(1), 80));
        let servers = ipv4(lab.servers());
        let without = service("web", web, "443", "", &servers);
        let with = format!("{without}{}", service("shop", shop, "80", "http = {}", &servers));
        let mut relay = subject!().start_on(lab.balancer(), &without, &[0, 0]);
        relay.reload(&with).expect("one is added");
        let mut client = Connection::open(lab.client(), (shop, 80)).expect("it listens");
        let mut ask = || {
            client.stream().write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").expect("it takes requests");
            let mut head = Vec::new();
            while head.last().is_none_or(|line: &String| line != "\r\n") {
                head.push(client.line().expect("a head"));
            }
            let has = |field: &str| {
                head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix(field).map(str::to_owned))
            };
            let length: usize = has("content-length: ").map_or(0, |length| length.trim().parse().expect("a length"));
            client.stream().read_exact(&mut vec![0; length]).expect("a body");
            (head[0].clone(), has("connection: ").is_some_and(|options| options.contains("close")))
        };
        assert_eq!(ask(), ("HTTP/1.1 200 OK\r\n".to_owned(), false));
        relay.reload(&without).expect("it is taken out");
        assert_eq!(ask(), ("HTTP/1.1 200 OK\r\n".to_owned(), true), "served to the end, and told so");
        assert!(client.is_ended());
        relay.stop();
    });
}

#[test]
fn a_service_that_is_gone_ends_what_is_left_of_it_after_its_drain_timeout() {
    in_lab(a_service_that_is_gone_ends_what_is_left_of_it_after_its_drain_timeout, Topology::TwoArm, 1, |lab| {
        let (web, shop) = (lab.vip(100), lab.vip(101));
        let _origins = [443, 80].map(|port| Origin::tcp(lab.server(1), port));
        let servers = ipv4(lab.servers());
        let without = service("web", web, "443", "", &servers);
        let with = format!("{without}{}", service("shop", shop, "80", "drain_timeout = \"300ms\"", &servers));
        let mut relay = subject!().start(lab.balancer(), &with);
        let mut left = Connection::open(lab.client(), (shop, 80)).expect("it listens");
        let mut stays = Connection::open(lab.client(), (web, 443)).expect("it listens");
        left.greeting().expect("a greeting");
        stays.greeting().expect("a greeting");
        relay.reload(&without).expect("taken out");
        eventually("its connection is ended", || left.is_ended().then_some(()));
        stays.echo(b"not mine").expect("the other goes on");
        let status = relay.until("nothing is left", |status| status.leaving.is_empty());
        assert!(
            status.events.iter().any(|event| event.subject.as_deref() == Some("service shop") && event.to == "removed"),
            "{:?}",
            status.events
        );
        relay.stop();
    });
}

#[test]
fn plan_and_reload_tell_what_changes_and_every_reason_why_not() {
    in_lab(plan_and_reload_tell_what_changes_and_every_reason_why_not, Topology::TwoArm, 1, |lab| {
        let (web, shop) = (lab.vip(100), lab.vip(101));
        let foreign = lab.free_vip(102);
        let _origins = [443, 80].map(|port| Origin::tcp(lab.server(1), port));
        let servers = ipv4(lab.servers());
        let good = service("web", web, "443", "", &servers);
        let with = format!("{good}{}", service("shop", shop, "80", "", &servers));
        let relay = subject!().start(lab.balancer(), &good);
        let generation = relay.status().generation;
        let mut before = Connection::open(lab.client(), (web, 443)).expect("the relay listens");
        before.greeting().expect("a greeting");
        let taken = lab.balancer().run(|| TcpListener::bind((web, 8443))).expect("a thread").expect("a free port");
        let cases = [
            (good.replace("ports", "prots"), vec!["unknown key `prots`", "did you mean `ports`"]),
            (format!("[limits]\nflows = 5000\n{good}"), vec!["limits.flows", "restart"]),
            (format!("[limits]\nconnections = 4000000\n{good}"), vec!["limits.connections (memory is allocated for"]),
            (
                good.replace(&web.to_string(), &foreign.to_string()),
                vec!["is not an address of this host", "ip address add"],
            ),
            (good.replace("443", "[443, 8443]"), vec!["listen tcp", ":8443", "another process has this port"]),
        ];
        for (text, told) in &cases {
            relay.write(text);
            for command in ["plan", "reload"] {
                let output = relay.command(&[command]);
                let said =
                    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                assert_eq!(output.status.code(), Some(3), "{command}: {said}");
                told.iter().for_each(|told| assert!(said.contains(told), "{command}: {told} is missing in\n{said}"));
            }
            assert_eq!(relay.status().generation, generation);
        }
        drop(taken);
        before.echo(b"undisturbed").expect("the old connection goes on");

        let text_of = |output: &Output| {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
            said
        };
        relay.write(&good.replace("443", "[443, 8443]"));
        let planned = text_of(&relay.command(&["plan"]));
        let changed = "~ service web: ports: 443 → 443, 8443 (1 connection open: go on)\n";
        assert_eq!(planned, format!("{changed}a reload would take this: `towpath reload`\n"));
        assert_eq!(relay.status().generation, generation, "a plan changes nothing");
        let reloaded = text_of(&relay.command(&["reload"]));
        assert!(reloaded.starts_with(changed) && reloaded.ends_with("is in effect\n"), "{reloaded}");
        assert!(relay.status().generation > generation);
        assert_eq!(text_of(&relay.command(&["plan"])), "nothing would change\n");

        // Another file than the daemon's own.
        let other = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(other.path(), format!("[control]\nsocket = \"{}\"\n{with}", relay.control().display()))
            .expect("written");
        let path = other.path().to_str().expect("a path of ours");
        let planned = text_of(&relay.command(&["plan", "-c", path]));
        assert!(planned.contains(&format!("+ service shop: added: {shop} tcp 80\n")), "{planned}");
        let json = text_of(&relay.command(&["plan", "--json", "-c", path]));
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["refusals"], serde_json::json!([]), "{json}");
        assert!(json["changes"].as_array().is_some_and(|changes| changes.len() == 2), "{json}");
        relay.stop();
    });
}

/// A named pipe that nobody writes into, as a file system that does not answer.
#[test]
fn a_file_that_cannot_be_read_for_now_holds_up_nobody_but_its_reload() {
    in_lab(a_file_that_cannot_be_read_for_now_holds_up_nobody_but_its_reload, Topology::TwoArm, 1, |lab| {
        let web = lab.vip(100);
        let origin = Origin::tcp(lab.server(1), 443);
        let health = "health = { check = \"tcp\", interval = \"200ms\" }";
        let good = service("web", web, "443", health, &ipv4(lab.servers()));
        let mut relay = subject!().start(lab.balancer(), &good);
        relay.until_all_up();
        let directory = tempfile::tempdir().expect("a directory");
        let pipe = directory.path().join("token");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        let token = format!("webhook_token_file = \"{}\"", pipe.display());
        relay.write(&format!("[notify]\nwebhook = \"https://hooks.example.org/towpath\"\n{token}\n{good}"));
        // Whoever opens it to write without waiting is let in when somebody opens it to read.
        let open = || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&pipe).ok();
        thread::scope(|scope| {
            let reload = scope.spawn(|| relay.command(&["reload"]));
            let writer = eventually("the file is opened", &open);
            relay.order("web/server-1", "drain", &OrderBody { until: Some(1), ..OrderBody::default() });
            relay.until("the controller ends a drain", |status| {
                let said = status.services[0].servers[0].admin_said.as_ref();
                said.and_then(|said| said.drain.as_ref()).is_some_and(|drain| drain.over.is_some())
            });
            drop(origin);
            relay.until("its checks go on", |status| status.services[0].servers[0].health == HealthStatus::Down);
            assert!(!reload.is_finished());
            drop(writer);
            let output = reload.join().expect("a thread");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(3) && said.contains("webhook_token_file"), "{said}");
        });
        // Nor is it kept from its end.
        relay.hang_up();
        let writer = eventually("the file is opened", &open);
        relay.terminate();
        assert_eq!(relay.wait(), Some(0), "it ends although a file does not answer");
        drop(writer);
    });
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
