//! The fast path between real TCP stacks: established flows that the kernel carries onwards, entered and taken out by the packet plane. Where this
//! process may not load programs, as in a user namespace, the same has to work without.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use towpath_engine::status::Status;
use towpath_sys::link::Route;
use towpath_tests::{
    Connection, Host, Origin, PATIENCE, Subject, TestLab, Topology, bulk, eventually, in_lab, ipv4, packet_service,
    subject,
};

const MIB: u64 = 1 << 20;

fn config(lab: &TestLab, runtime: &str, keys: &str) -> (SocketAddr, String) {
    let vip = lab.free_vip(100);
    let keys = format!("source = {{ pool = [\"{}\"] }}\n{keys}", lab.free_snat(101));
    let service = packet_service("web", vip, "443", &keys, &ipv4(lab.servers()));
    ((vip, 443).into(), format!("[limits]\nflows = 16384\n{runtime}{service}"))
}

/// Of all workers.
fn counted(status: &Status, counter: &str) -> u64 {
    status.workers.iter().map(|worker| worker.packets[counter]).sum()
}

/// Whether the kernel carries flows here; who may load programs and has a kernel that knows them says so.
fn has_fast_path(relay: &Subject) -> bool {
    let has = relay.status().limits.fast_flows.max > 0;
    if !has {
        eprintln!("the kernel carries nothing here: looked at without it");
    }
    has
}

fn until_carried(relay: &Subject, frames: u64) -> Status {
    relay.until("the kernel has carried frames", |status| counted(status, "frames_fast") >= frames)
}

/// Opens a connection and has it echo so many bytes.
fn hold(client: &Host, to: SocketAddr, bytes: usize) -> Connection {
    let mut connection = Connection::open(client, to).expect("somebody serves");
    connection.greeting().expect("a greeting");
    for chunk in vec![7; bytes].chunks(MIB as usize) {
        connection.echo(chunk).expect("an echo");
    }
    connection
}

#[test]
fn the_kernel_carries_a_transfer_and_every_octet_arrives_and_is_counted() {
    in_lab(the_kernel_carries_a_transfer_and_every_octet_arrives_and_is_counted, Topology::TwoArm, 1, |lab| {
        let bytes = 256 * MIB;
        let (vip, config) = config(lab, "", "");
        let listener = lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener");
        let relay = subject!().start(lab.balancer(), &config);
        let is_fast = has_fast_path(&relay);
        let client = Connection::open(lab.client(), vip).expect("somebody serves");
        let client = client.stream().try_clone().expect("a descriptor");
        let (server, _) = listener.accept().expect("a connection");
        server.set_read_timeout(Some(PATIENCE)).expect("not zero");
        bulk::exchange(&client, &server, bytes);
        let status = relay.until("all is counted", |status| {
            let web = &status.services[0];
            let is_noted = counted(status, "octets_to_client") >= bytes && status.limits.fast_flows.used == 0;
            web.connections == 0 && web.bytes_from_client >= bytes && web.bytes_to_client >= bytes && is_noted
        });
        assert_eq!(
            status.services[0].terminations["client_closed"] + status.services[0].terminations["server_closed"],
            1
        );
        let (fast, all) = (counted(&status, "frames_fast"), counted(&status, "frames"));
        // Both directions are super-packets of 64 KiB at most. Until the first FIN the kernel carries all but the first few.
        assert!(!is_fast || fast > all / 2, "{fast} of {all} frames");
        assert_eq!(fast > 0, is_fast);
        relay.stop();
    });
}

#[test]
fn without_the_fast_path_the_kernel_carries_nothing() {
    in_lab(without_the_fast_path_the_kernel_carries_nothing, Topology::TwoArm, 1, |lab| {
        let (vip, config) = config(lab, "[runtime]\nfast_path = \"off\"\n", "");
        let _origin = Origin::tcp(lab.server(1), 443);
        let relay = subject!().start(lab.balancer(), &config);
        hold(lab.client(), vip, MIB as usize).close().expect("an end");
        let status = relay.until("all is counted", |status| status.services[0].bytes_to_client >= MIB);
        assert_eq!((status.limits.fast_flows.max, counted(&status, "frames_fast")), (0, 0));
        relay.stop();
    });
}

#[test]
fn a_connection_that_the_kernel_has_carried_is_reset_at_both_ends() {
    in_lab(a_connection_that_the_kernel_has_carried_is_reset_at_both_ends, Topology::TwoArm, 1, |lab| {
        let (vip, config) = config(lab, "", "");
        let _origin = Origin::tcp(lab.server(1), 443);
        let mut relay = subject!().start(lab.balancer(), &config);
        let is_fast = has_fast_path(&relay);
        let mut held = hold(lab.client(), vip, 8 * MIB as usize);
        if is_fast {
            until_carried(&relay, 100);
            relay.until("it is counted in", |status| status.limits.fast_flows.used == 1);
        }
        relay.reload(&format!("{config}admin = \"halt\"\n")).expect("a reload takes it");
        assert!(held.is_ended(), "a reset that its kernel believes");
        relay.until("nothing is open", |status| status.services[0].connections == 0);
        assert_eq!(relay.service("web").terminations["server_halted"], 1);
        let status = relay.until("its flow is counted out", |status| status.limits.fast_flows.used == 0);
        assert!(status.services[0].bytes_to_client >= 8 * MIB);
        relay.stop();
    });
}

#[test]
fn an_interface_that_returns_is_carried_by_again() {
    in_lab(an_interface_that_returns_is_carried_by_again, Topology::TwoArm, 1, |lab| {
        let (vip, config) = config(lab, "", "");
        let _origin = Origin::tcp(lab.server(1), 443);
        let relay = subject!().start(lab.balancer(), &config);
        let is_fast = has_fast_path(&relay);
        hold(lab.client(), vip, MIB as usize).close().expect("an end");
        let client = lab.client();
        lab.renew_front();
        eventually("clients are served again", || {
            let opened = client.run(|| TcpStream::connect_timeout(&vip, Duration::from_millis(200))).expect("a thread");
            opened.is_ok().then_some(())
        });
        let before = counted(&relay.status(), "frames_fast");
        let held = hold(client, vip, 4 * MIB as usize);
        if is_fast {
            until_carried(&relay, before + 64);
        }
        held.close().expect("an end");
        relay.stop();
    });
}

/// Directly between a client and a server, with a service beside.
#[test]
fn the_kernel_carries_what_is_routed_until_a_rule_denies_it() {
    in_lab(the_kernel_carries_what_is_routed_until_a_rule_denies_it, Topology::TwoArm, 2, |lab| {
        let bytes = 128 * MIB;
        let (vip, config) = config(lab, "[router]\nenabled = true\n", "");
        let server = lab.server(1);
        let balancer = lab.balancer().port("front").expect("a port").ipv4;
        let destination = (server.ipv4().into(), 32);
        let way = Route { destination, gateway: Some(balancer.into()), link: "front".to_owned() };
        lab.client().links().expect("netlink").add_route(&way).expect("a route");
        lab.balancer().set_sysctl("net.ipv4.ip_forward", "0").expect("a sysctl");
        let _origins: Vec<_> = lab.servers().iter().map(|host| Origin::tcp(host, 443)).collect();
        let listener = server.run(|| TcpListener::bind("0.0.0.0:444")).expect("a thread").expect("a listener");
        let mut relay = subject!().start(lab.balancer(), &config);
        let is_fast = has_fast_path(&relay);
        let client = lab.client().run(|| TcpStream::connect((server.ipv4(), 444))).expect("a thread");
        let client = client.expect("a direct connection");
        let (accepted, _) = listener.accept().expect("a connection");
        accepted.set_read_timeout(Some(PATIENCE)).expect("not zero");
        bulk::exchange(&client, &accepted, bytes);
        drop((client, accepted));
        let status = relay.until("all is counted", |status| {
            counted(status, "octets_routed") >= 2 * bytes && status.limits.fast_flows.used == 0
        });
        let (fast, routed) = (counted(&status, "frames_fast"), counted(&status, "frames_routed"));
        assert!(!is_fast || fast > routed / 2, "{fast} of {routed} frames");
        assert_eq!((fast > 0, counted(&status, "flows_opened")), (is_fast, 0));
        let mut direct = hold(lab.client(), (server.ipv4(), 443).into(), MIB as usize);
        let mut served = hold(lab.client(), vip, MIB as usize);
        if is_fast {
            // A newer snapshot, as of a health check that was late, has the kernel forget what is routed until more of it comes.
            relay.until("both are counted in", |status| {
                direct.echo(&[7; 256 * 1024]).expect("an echo");
                status.limits.fast_flows.used == 3
            });
        }
        relay.reload(&format!("{config}[[router.rule]]\naction = \"deny\"\n")).expect("a reload takes it");
        direct.stream().set_read_timeout(Some(Duration::from_millis(300))).expect("not zero");
        assert!(direct.echo(&[1; 100]).is_err(), "nobody carries it any more");
        served.echo(&[1; 100]).expect("rules are not about services");
        relay.until("it was denied", |status| {
            status.workers.iter().filter_map(|worker| worker.drops.get("rule_denied")).sum::<u64>() > 0
        });
        relay.stop();
    });
}

#[test]
fn a_crash_leaves_nothing_that_carries_frames() {
    in_lab(a_crash_leaves_nothing_that_carries_frames, Topology::TwoArm, 1, |lab| {
        let (vip, config) = config(lab, "", "");
        let _origin = Origin::tcp(lab.server(1), 443);
        let relay = subject!().start(lab.balancer(), &config);
        let is_fast = has_fast_path(&relay);
        let mut held = hold(lab.client(), vip, MIB as usize);
        // Killed, as a crash does.
        drop(relay);
        held.stream().set_read_timeout(Some(Duration::from_millis(300))).expect("not zero");
        assert!(held.echo(&[1; 100]).is_err(), "nobody carries it any more");
        let relay = subject!().start(lab.balancer(), &config);
        let held = hold(lab.client(), vip, 4 * MIB as usize);
        if is_fast {
            until_carried(&relay, 64);
        }
        held.close().expect("an end");
        relay.stop();
    });
}
