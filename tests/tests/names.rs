//! TLS that passes through, led to servers by the name that a client asks for; what is not TLS passes untouched (T-41).

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use towpath_tests::{Connection, Origin, TestLab, Topology, in_lab, subject};

/// A ClientHello that asks for `name`, in records of at most `record` bytes.
fn hello(name: Option<&str>, record: usize) -> Vec<u8> {
    let mut extensions = vec![0xff, 1, 0, 1, 0];
    if let Some(name) = name {
        let length = |more: usize| ((name.len() + more) as u16).to_be_bytes();
        extensions.extend([&[0, 0][..], &length(5), &length(3), &[0], &length(0), name.as_bytes()].concat());
    }
    // Padding (RFC 7685), so that it takes more than one segment.
    extensions.extend([&[0, 21, 12, 0][..], &[0; 3072]].concat());
    let mut body = [&[3, 3][..], &[7; 32], &[0, 0, 4, 0x13, 1, 0xc0, 0x2f, 1, 0]].concat();
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    let framed = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    message.chunks(record).flat_map(framed).collect()
}

/// A service of `server-1` whose clients of `*.example.org` go to `server-2`.
fn config(lab: &TestLab, wait: &str) -> String {
    let group = |name: &str, number| {
        let host = lab.server(number);
        format!(
            "[[group]]\nname = \"{name}\"\n[[group.server]]\nname = \"{}\"\naddress = \"{}\"\n",
            host.name(),
            host.ipv4()
        )
    };
    format!(
        "[runtime]\nworkers = [0, 1]\n{}{}[[service]]\nname = \"edge\"\nvip = \"{}\"\nports = [443]\ngroup = \"av\"\n\
         tls.handshake_timeout = \"{wait}\"\n[[service.tls.route]]\nnames = [\"*.example.org\", \"web.test\"]\ngroup = \"web\"\n",
        group("av", 1),
        group("web", 2),
        lab.vip(100),
    )
}

/// Sends these parts one by one; the server that got them, which has sent them back byte for byte.
fn led(lab: &TestLab, parts: &[&[u8]]) -> String {
    let mut connection = Connection::open(lab.client(), (lab.free_vip(100), 443)).expect("the relay listens");
    for part in parts {
        connection.stream().write_all(part).expect("the relay takes it");
    }
    let server = connection.greeting().expect("a server").name;
    assert!(connection.close().expect("an orderly end") == parts.concat(), "not what was sent to {server}");
    server
}

#[test]
fn t_41_names_lead_to_servers_and_everything_else_to_the_service_s_own() {
    in_lab(t_41_names_lead_to_servers_and_everything_else_to_the_service_s_own, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let relay = subject!().start(lab.balancer(), &config(lab, "20s"));
        let whole = |bytes: &[u8]| led(lab, &[bytes]);
        assert_eq!(whole(&hello(Some("meet.example.org"), 16_000)), "server-2");
        assert_eq!(whole(&hello(Some("Web.Test"), 100)), "server-2");
        assert_eq!(whole(&hello(Some("example.org"), 16_000)), "server-1");
        assert_eq!(whole(&hello(Some("other.test"), 16_000)), "server-1");
        assert_eq!(whole(&hello(None, 16_000)), "server-1");
        // STUN, and what else speaks on 443.
        assert_eq!(whole(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]), "server-1");
        assert_eq!(whole(b"GET / HTTP/1.1\r\nhost: web.test\r\n\r\n"), "server-1");
        assert_eq!(whole(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), "server-1");
        // One that does not end within the bound.
        assert_eq!(whole(&hello(Some("web.test"), 1)[..16 * 1024]), "server-1");
        // With bytes behind it, and in pieces.
        let bytes = hello(Some("a.example.org"), 600);
        assert_eq!(led(lab, &[&bytes, &[23; 100_000]]), "server-2");
        assert_eq!(led(lab, &bytes.chunks(37).collect::<Vec<_>>()), "server-2");
        assert_eq!(led(lab, &bytes.chunks(1).take(700).chain([&bytes[700..]]).collect::<Vec<_>>()), "server-2");

        let status = relay.service("edge");
        assert_eq!((status.accepted, status.opened, status.connections), (12, 12, 0), "{status:?}");
        let servers: Vec<&str> = status.servers.iter().map(|server| server.name.as_str()).collect();
        assert_eq!(servers, ["server-1", "server-2"]);
        relay.stop();
    });
}

#[test]
fn the_first_route_may_come_by_a_reload() {
    in_lab(the_first_route_may_come_by_a_reload, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let routed = config(lab, "20s");
        let (plain, _) = routed.split_once("tls.handshake_timeout").expect("a key");
        let mut relay = subject!().start(lab.balancer(), plain);
        assert_eq!(led(lab, &[&hello(Some("web.test"), 16_000)]), "server-1");
        relay.reload(&routed).expect("a valid configuration");
        assert_eq!(led(lab, &[&hello(Some("web.test"), 16_000)]), "server-2");
        relay.stop();
    });
}

#[test]
fn a_client_that_ends_or_stays_silent_goes_to_the_service_s_own_servers() {
    in_lab(a_client_that_ends_or_stays_silent_goes_to_the_service_s_own_servers, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let short = config(lab, "300ms");
        let mut relay = subject!().start(lab.balancer(), &short);
        let open = || Connection::open(lab.client(), (lab.free_vip(100), 443)).expect("the relay listens");
        // Half a ClientHello, then the end: it has a server that can say so.
        let bytes = hello(Some("web.test"), 16_000);
        let mut half = open();
        half.stream().write_all(&bytes[..100]).expect("the relay takes it");
        half.stream().shutdown(Shutdown::Write).expect("an open connection");
        assert_eq!(half.greeting().expect("a server").name, "server-1");
        assert_eq!(half.end().expect("an orderly end"), &bytes[..100]);
        // Nothing, then half a ClientHello that never goes on: the server speaks first.
        for begun in [&[][..], &bytes[..100]] {
            let mut silent = open();
            let since = Instant::now();
            silent.stream().write_all(begun).expect("the relay takes it");
            assert_eq!(silent.greeting().expect("a server").name, "server-1");
            assert!(since.elapsed() >= Duration::from_millis(250), "{:?}", since.elapsed());
            assert_eq!(silent.close().expect("an orderly end"), begun);
        }
        // Those that wait when the process is to end are waited for as long as a drain lasts, and not for their own time.
        let drained = short
            .replace("tls.handshake_timeout = \"300ms\"", "drain_timeout = \"1s\"\ntls.handshake_timeout = \"60s\"");
        relay.reload(&drained).expect("a valid configuration");
        let mut waiting = Connection::open(lab.client(), (lab.free_vip(100), 443)).expect("the relay listens");
        relay.until("the client waits", |status| status.services[0].accepted == 4);
        let since = Instant::now();
        relay.terminate();
        let _ = waiting.end();
        assert_eq!(relay.wait(), Some(0));
        assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    });
}
