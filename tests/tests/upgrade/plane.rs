//! A new process takes over the packet plane of the running one: its flows live on, and the kernel says nothing meanwhile.

use std::io::ErrorKind;

use towpath_sys::silence::Silence;
use towpath_tests::ipv6;

use super::*;

/// Few, so that a second process has room beside the first.
const FLOWS: &str = "[limits]\nconnections = 64\nbuffers = 64\nflows = 16384\n";
const KEYS: &str = "health = { check = \"tcp\", interval = \"200ms\", timeout = \"2s\", rise = 1, fall = 3 }\n";

/// Upgrades, and waits until only the new process is left.
#[track_caller]
fn renew(relay: &Subject) {
    upgrade(relay, &[]);
    until_gone(relay);
    eventually("only one is left", || (relay.processes().len() == 1).then_some(()));
}

fn open(lab: &TestLab, to: impl Into<IpAddr>) -> Connection {
    let mut connection = Connection::open(lab.client(), (to.into(), 443)).expect("somebody listens");
    connection.greeting().expect("a greeting");
    connection
}

/// Whether each client saw nothing else than its own connection.
fn go_on(held: &mut [Connection], word: &[u8]) {
    for connection in held {
        connection.echo(word).expect("a flow that was there before goes on");
    }
}

#[test]
fn flows_of_every_kind_live_on_over_two_upgrades_under_load() {
    in_lab(flows_of_every_kind_live_on_over_two_upgrades_under_load, Topology::TwoArm, 2, |lab| {
        let (full, half, six, names) = (lab.free_vip(100), lab.free_vip(101), lab.free_vip6(103), lab.free_vip(104));
        let _origins = [1, 2].map(|n| (Origin::tcp(lab.server(n), 443), Origin::udp(lab.server(n), 53)));
        let pool = format!("{KEYS}source.pool = [\"{}\"]\n", lab.free_snat(102));
        let pool6 = format!("{KEYS}source.pool = [\"{}\"]\n", lab.free_snat6(105));
        let udp = format!("protocol = \"udp\"\nsource.pool = [\"{}\"]", lab.free_snat(102));
        let config = FLOWS.to_owned()
            + &packet_service("full", full, "443", &pool, &ipv4(lab.servers()))
            + &packet_service("half", half, "443", &format!("{KEYS}forwarding = \"half-nat\""), &ipv4(lab.servers()))
            + &packet_service("six", six, "443", &pool6, &ipv6(lab.servers()))
            + &packet_service("names", names, "53", &udp, &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0, 0]);
        relay.until_all_up();
        let mut held: Vec<Connection> = (0..6).map(|_| open(lab, full)).collect();
        held.extend((0..3).map(|_| open(lab, half)));
        held.extend((0..3).map(|_| open(lab, six)));
        let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            for vip in [IpAddr::from(full), half.into(), six.into()] {
                let (over, served) = (&over, &served);
                scope.spawn(move || {
                    while !over.load(Ordering::Acquire) {
                        who(lab.client(), (vip, 443));
                        served.fetch_add(1, Ordering::AcqRel);
                    }
                });
            }
            let _ends = OnDrop(|| over.store(true, Ordering::Release));
            for turn in 0..2 {
                ask_by_udp(lab.client(), lab.client().ipv4().into(), (names, 53), b"who is it");
                renew(&relay);
                go_on(&mut held, b"I was there before");
                let active: u64 = relay.status().services.iter().map(|service| u64::from(service.connections)).sum();
                assert!(active >= 12, "{active} connections are counted after upgrade {turn}");
                let so_far = served.load(Ordering::Acquire);
                eventually("clients are served afterwards", || {
                    (served.load(Ordering::Acquire) > so_far + 20).then_some(())
                });
                held.push(open(lab, full));
                ask_by_udp(lab.client(), lab.client().ipv4().into(), (names, 53), b"who is it");
            }
        });
        // What lives on is known by its name, its lease and its worker, and can be ended from outside as any other.
        let count = held.len();
        for connection in held {
            connection.close().expect("a clean end");
        }
        assert_eq!(count, 14);
        eventually("no connection is counted any more", || {
            relay
                .status()
                .services
                .iter()
                .all(|service| service.name == "names" || service.connections == 0)
                .then_some(())
        });
        assert_eq!(relay.log().matches("lost because nothing here is theirs: 0").count(), 2, "{}", relay.log());
    });
}

/// Segments that the kernel of the balancer sends by itself would end the flow that they belong to.
#[test]
fn a_transfer_that_is_under_way_comes_through_whole() {
    in_lab(a_transfer_that_is_under_way_comes_through_whole, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let source = format!("source.pool = [\"{}\"]", lab.free_snat(102));
        let config = FLOWS.to_owned() + &packet_service("web", vip, "443", &source, &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0]);
        relay.until_all_up();
        let mut held = open(lab, vip);
        let over = AtomicBool::new(false);
        let turns = thread::scope(|scope| {
            let _ends = OnDrop(|| over.store(true, Ordering::Release));
            let talking = scope.spawn(|| {
                let mut turns = 0_u64;
                while !over.load(Ordering::Acquire) {
                    held.echo(&[turns as u8; 40_000]).expect("the flow goes on");
                    turns += 1;
                }
                turns
            });
            for _ in 0..3 {
                renew(&relay);
            }
            over.store(true, Ordering::Release);
            talking.join().expect("no panic")
        });
        assert!(turns > 3, "{turns}");
        held.close().expect("a clean end");
    });
}

/// Whatever fails, frames go by the process that is left.
#[test]
fn planes_thaw_when_the_new_process_fails() {
    in_lab(planes_thaw_when_the_new_process_fails, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let source = format!("source.pool = [\"{}\"]", lab.free_snat(102));
        let config = FLOWS.to_owned() + &packet_service("web", vip, "443", &source, &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0]);
        relay.until_all_up();
        let mut held = open(lab, vip);
        let text = format!("exec {} --as-deserter", env!("CARGO_BIN_EXE_subject"));
        let program = script(&relay, "deserter", &text).display().to_string();
        for _ in 0..2 {
            let output = relay.command(&["upgrade", "--program", &program]);
            assert_eq!(output.status.code(), Some(3), "{}", said(&output));
            assert!(said(&output).contains("has ended before it served"), "{}", said(&output));
            held.echo(b"undisturbed").expect("the flow goes on");
            who(lab.client(), (vip, 443));
        }
        renew(&relay);
        held.echo(b"I was there before").expect("the flow goes on");
        held.close().expect("a clean end");
    });
}

/// A configuration without the packet plane, and back: the kernel's rules go and come with it.
#[test]
fn the_silence_goes_with_the_last_service_and_comes_with_the_first() {
    in_lab(the_silence_goes_with_the_last_service_and_comes_with_the_first, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let source = format!("{KEYS}source.pool = [\"{}\"]", lab.free_snat(102));
        let relayed = lab.vip(101);
        let stream = service("relay", relayed, "443", KEYS, &ipv4(lab.servers()));
        let both = format!("{FLOWS}{stream}") + &packet_service("web", vip, "443", &source, &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &both, &[0]);
        relay.until_all_up();
        let clear = || lab.balancer().run(Silence::clear).expect("a thread");
        let is_kept = || clear().is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
        assert!(is_kept());
        relay.write(&format!("{FLOWS}{stream}"));
        renew(&relay);
        assert!(!clear().expect("nobody keeps it"), "the rules are still there");
        who(lab.client(), (relayed, 443));
        relay.write(&both);
        renew(&relay);
        assert!(is_kept());
        who(lab.client(), (vip, 443));
        let ended = Command::new("kill").arg(relay.processes()[0].to_string()).status().expect("kill");
        assert!(ended.success());
        eventually("it has ended", || relay.processes().is_empty().then_some(()));
        assert!(!clear().expect("nobody keeps it"), "the rules have outlived the process");
    });
}
