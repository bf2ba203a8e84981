//! Two machines with the same VIPs, of which one serves: they change roles under load, and who stands by is silent.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use towpath_engine::role::RoleStatus;
use towpath_perf::lab::{Host, Site};
use towpath_sys::packet::{Direction, Tap};
use towpath_tests::{Connection, Origin, PATIENCE, Subject, eventually, in_site, service, subject, who};

const LIMITS: &str = "[limits]\nconnections = 1024\nudp_sessions = 1024\nflows = 8192\n";
const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 100);
const POOL: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 100);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 80);
const PORT: u16 = 443;
const TO: (Ipv4Addr, u16) = (VIP, PORT);
const NETWORKS: [(&str, &[(&str, &str)]); 2] = [
    ("front", &[("client", "10.1.0.2/24"), ("one", "10.1.0.11/24"), ("two", "10.1.0.12/24")]),
    ("back", &[("one", "10.2.0.11/24"), ("two", "10.2.0.12/24"), ("web", "10.2.0.80/24")]),
];
/// So long a visit may wait for an answer.
const VISIT: Duration = Duration::from_secs(2);
const CHECK: &str = "health = { check = \"tcp\", interval = \"200ms\", timeout = \"2s\", rise = 1, fall = 2 }\n";

/// What both machines are told, but for the role.
fn config(plane: &str, role: &str) -> String {
    let source = match plane {
        "packet" => format!("plane = \"packet\"\nsource.pool = [\"{POOL}\"]\n"),
        _ => String::new(),
    };
    let web = service("web", VIP, &PORT.to_string(), &format!("{source}{CHECK}"), &[("web", SERVER.into())]);
    format!("{LIMITS}[runtime]\nrole = \"{role}\"\n{web}")
}

fn start(site: &Site, machine: &str, plane: &str, role: &str) -> Subject {
    let relay = subject!().start(site.host(machine), &config(plane, role));
    relay.until_all_up();
    relay
}

/// What `towpath role` says to this.
fn say(relay: &Subject, arguments: &[&str]) -> String {
    let output = relay.command(&[&["role"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn role(relay: &Subject) -> RoleStatus {
    serde_json::from_str(&say(relay, &["--json"])).expect("a role")
}

fn accepted(relay: &Subject) -> u64 {
    relay.service("web").accepted
}

/// A client that comes again and again.
struct Crowd {
    parting: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Crowd {
    fn gather(host: &Host) -> Crowd {
        let parting = Arc::new(AtomicBool::new(false));
        let (served, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (told, counted, missed) = (Arc::clone(&parting), Arc::clone(&served), Arc::clone(&lost));
        let thread = host.start(move || {
            while !told.load(Ordering::Relaxed) {
                let visit = Connection::open_here(TO).and_then(|mut connection| {
                    // What the machine before had begun nobody ends.
                    connection.stream().set_read_timeout(Some(VISIT))?;
                    connection.greeting()?;
                    connection.close()
                });
                let count = if visit.is_ok() { &counted } else { &missed };
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Crowd { parting, served, lost, thread: thread.expect("a thread") }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// How often it was not served.
    fn part(self) -> u64 {
        self.parting.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic").expect("its host is there");
        self.lost.load(Ordering::Relaxed)
    }
}

/// Whether a frame says that its sender is at this address.
fn speaks_for(frame: &[u8], address: Ipv4Addr) -> bool {
    let at = |place: usize| frame.get(place..place + 4) == Some(&address.octets()[..]);
    match frame.get(12..14) {
        Some([0x08, 0x06]) => at(28),
        Some([0x08, 0x00]) => at(26),
        _ => false,
    }
}

/// Whether it is an announcement: a question for the address of who asks.
fn announces(frame: &[u8], address: Ipv4Addr) -> bool {
    let target = frame.get(38..42) == Some(&address.octets()[..]);
    frame.get(12..14) == Some(&[0x08, 0x06]) && speaks_for(frame, address) && target
}

/// That nothing was sent in the name of the addresses that are the other machine's now.
fn assert_silent(tap: &mut Tap) {
    while let Some(frame) = tap.take().expect("the tap") {
        let speaks = frame.direction == Direction::Sent && [VIP, POOL].iter().any(|&ip| speaks_for(&frame.bytes, ip));
        assert!(!speaks, "who stands by has sent {:02x?}", frame.bytes);
    }
}

#[test]
fn two_machines_change_roles_under_load_on_the_packet_plane() {
    in_site(two_machines_change_roles_under_load_on_the_packet_plane, &NETWORKS, |site| {
        let _web = Origin::tcp(site.host("web"), PORT);
        let client = site.host("client");
        let machines = [start(site, "one", "packet", "active"), start(site, "two", "packet", "standby")];
        assert_eq!(machines.each_ref().map(|relay| relay.status().role), ["active", "standby"].map(str::to_owned));
        assert_eq!(who(client, TO), "web");
        assert_eq!((accepted(&machines[0]), accepted(&machines[1])), (1, 0));
        let mut existing = Connection::open(client, TO).expect("it serves");
        existing.greeting().expect("a greeting");
        let crowd = Crowd::gather(client);
        let flips = 6;
        for flip in 0..flips {
            let (from, to) = (flip % 2, 1 - flip % 2);
            let said = say(&machines[from], &["standby", "--reason", "patch day"]);
            assert_eq!(said, "active → standby\n");
            let mut taps = ["front", "back"].map(|link| site.host(["one", "two"][from]).capture(link).expect("a tap"));
            let before = accepted(&machines[from]);
            assert_eq!(say(&machines[to], &["active"]), "standby → active\n");
            let (served, accepted_before) = (crowd.served(), accepted(&machines[to]));
            eventually("the other one serves", || {
                (crowd.served() >= served + 10 && accepted(&machines[to]) >= accepted_before + 10).then_some(())
            });
            assert_eq!(accepted(&machines[from]), before, "who stands by takes nobody");
            taps.iter_mut().for_each(assert_silent);
        }
        let lost = crowd.part();
        assert!(lost <= 2 * flips as u64, "{lost} visits were lost in {flips} changes");
        // It went with the machine that had it, and heard so from the other one.
        say(&machines[0], &["standby"]);
        say(&machines[1], &["active"]);
        assert!(existing.echo(b"still there?").is_err(), "connections do not move with the role");
        let of_one = role(&machines[0]);
        let said = of_one.said.expect("somebody has said it");
        assert!(said.by.starts_with("root (uid 0"), "{said:?}");
        machines.into_iter().for_each(Subject::stop);
    });
}

#[test]
fn two_machines_change_roles_under_load_on_the_stream_plane() {
    in_site(two_machines_change_roles_under_load_on_the_stream_plane, &NETWORKS, |site| {
        let _web = Origin::tcp(site.host("web"), PORT);
        let client = site.host("client");
        let give = |machine: &str| {
            site.host(machine).links().and_then(|mut links| links.add_address("front", VIP.into(), 32)).expect("a VIP");
        };
        let take = |machine: &str| {
            let taken = site.host(machine).links().and_then(|mut links| links.remove_address("front", VIP.into(), 32));
            taken.expect("it has the VIP");
        };
        give("one");
        // The second one listens and checks without having the VIP.
        let machines = [start(site, "one", "stream", "active"), start(site, "two", "stream", "standby")];
        assert_eq!(who(client, TO), "web");
        let crowd = Crowd::gather(client);
        let flips = 4;
        for flip in 0..flips {
            let (from, to) = (flip % 2, 1 - flip % 2);
            let names = ["one", "two"];
            say(&machines[from], &["standby"]);
            take(names[from]);
            let mut tap = client.capture("front").expect("a tap");
            give(names[to]);
            assert_eq!(say(&machines[to], &["active"]), "standby → active\n", "and no warning");
            let heard = tap.find(Instant::now() + PATIENCE, |frame| {
                frame.direction == Direction::Received && announces(&frame.bytes, VIP)
            });
            assert!(heard.expect("the tap").is_some(), "the VIP is announced");
            let (served, before) = (crowd.served(), accepted(&machines[to]));
            eventually("the other one serves", || {
                (crowd.served() >= served + 10 && accepted(&machines[to]) >= before + 10).then_some(())
            });
        }
        let lost = crowd.part();
        assert!(lost <= 4 * flips as u64, "{lost} visits were lost in {flips} changes");
        // Without the VIP nobody comes, and whoever says so is told.
        let said = say(&machines[1], &["active"]);
        assert!(said.contains("warning: vip 10.1.0.100 is not an address of this host yet"), "{said}");
        machines.into_iter().for_each(Subject::stop);
    });
}

#[test]
fn a_role_survives_a_restart_and_gives_way_to_the_file() {
    in_site(a_role_survives_a_restart_and_gives_way_to_the_file, &NETWORKS, |site| {
        let _web = Origin::tcp(site.host("web"), PORT);
        let client = site.host("client");
        let mut relay = start(site, "one", "packet", "active");
        say(&relay, &["standby", "--reason", "moved away"]);
        relay = relay.restart(site.host("one"), || {});
        let kept = role(&relay);
        assert_eq!(kept.said.expect("it was kept").reason, "moved away");
        assert_eq!(relay.status().role, "standby");
        let mut tap = client.capture("front").expect("a tap");
        relay.reload(&config("packet", "standby")).expect("it is taken");
        let by_file = role(&relay);
        assert!(by_file.said.is_none(), "{by_file:?}");
        relay.reload(&config("packet", "active")).expect("it is taken");
        assert_eq!(relay.status().role, "active");
        let heard = tap.find(Instant::now() + PATIENCE, |frame| announces(&frame.bytes, VIP));
        assert!(heard.expect("the tap").is_some(), "the VIP is announced");
        assert_eq!(who(client, SocketAddr::from(TO)), "web");
        let events = relay.status().events;
        let told = |from: &str, to: &str| events.iter().any(|event| (&*event.from, &*event.to) == (from, to));
        assert!(told("standby", "active"), "{events:?}");
        relay.stop();
    });
}
