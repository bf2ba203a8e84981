//! The doctor in a lab: each fault that it knows is made on purpose and found, and a lab that is well has nothing to tell.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use towpath_sys::ethtool::{Devices, Feature};
use towpath_sys::link::{Route, default_destination};
use towpath_sys::netns::Namespace;
use towpath_sys::packet::{Direction, Tap};
use towpath_tests::pki::{Authority, Issued, NAME};
use towpath_tests::{
    Connection, Host, Origin, TestLab, Topology, eventually, in_lab, ipv4, packet_service, service, subject, who,
};

/// What the doctor prints about a file, beside whatever runs on the balancer.
struct Examined {
    code: Option<i32>,
    report: Report,
}

#[derive(serde::Deserialize)]
struct Report {
    daemon: Option<serde_json::Value>,
    readings: Vec<Reading>,
}

#[derive(Debug, serde::Deserialize)]
struct Reading {
    subject: Subject,
    check: String,
    state: String,
    found: String,
    run: Option<Run>,
}

#[derive(Debug, serde::Deserialize)]
struct Subject {
    kind: String,
    name: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
struct Run {
    command: String,
}

impl Examined {
    /// What is not fine, but for what this machine has or lacks whatever the lab is like.
    fn told(&self) -> Vec<&Reading> {
        let of_lab = |reading: &&Reading| !["huge-pages", "fast-path"].contains(&reading.check.as_str());
        self.report.readings.iter().filter(|reading| reading.state != "fine").filter(of_lab).collect()
    }

    /// That something is told of a subject, in this state and with this command; returns what.
    #[track_caller]
    fn assert_told(&self, name: &str, check: &str, state: &str, command: &str) -> &str {
        let told = self.told();
        let found = told.iter().find(|reading| {
            let subject = reading.subject.name.as_deref().unwrap_or(&reading.subject.kind);
            subject == name && reading.check == check && reading.state == state
        });
        let reading = found.unwrap_or_else(|| panic!("no {state} of {check} about {name}: {told:#?}"));
        let run = reading.run.as_ref().map_or("", |run| run.command.as_str());
        assert!(run.contains(command), "`{command}` is missing: {reading:#?}");
        let expected = if told.iter().any(|reading| reading.state == "error") { 3 } else { 4 };
        let expected = if told.iter().all(|reading| reading.state == "hint") { 0 } else { expected };
        assert_eq!(self.code, Some(expected), "{told:#?}");
        &reading.found
    }

    /// That nothing is wrong, and that these were looked at.
    #[track_caller]
    fn assert_well(&self, looked_at: &[&str]) {
        let told = self.told();
        assert!(told.is_empty(), "{told:#?}");
        assert_eq!(self.code, Some(0));
        for check in looked_at {
            assert!(self.report.readings.iter().any(|reading| reading.check == *check), "nobody looked at {check}");
        }
    }
}

/// Runs the doctor on a host.
#[track_caller]
fn examine(host: &Host, config: &str) -> Examined {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("towpath.toml");
    std::fs::write(&file, config).expect("a file");
    let mut command = subject!().command();
    command.args(["doctor", "--json", "-c"]).arg(&file).stdout(Stdio::piped());
    let mut child = host.spawn(command).unwrap_or_else(|error| panic!("{error}"));
    let mut text = String::new();
    child.process().stdout.take().expect("a pipe").read_to_string(&mut text).expect("its output");
    let status = child.wait_timeout(towpath_tests::PATIENCE).expect("our child").expect("it ends");
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in\n{text}"));
    Examined { code: status.code(), report }
}

/// Full-NAT on the packet plane.
fn full_nat(lab: &TestLab) -> String {
    let keys = format!("source = {{ pool = [\"{}\"] }}", lab.free_snat(101));
    packet_service("web", lab.free_vip(100), "443", &keys, &ipv4(lab.servers()))
}

fn half_nat(lab: &TestLab, keys: &str) -> String {
    packet_service("web", lab.free_vip(100), "443", &format!("forwarding = \"half-nat\"\n{keys}"), &ipv4(lab.servers()))
}

/// A default route, by the client, on the link that the two share.
fn default_route(host: &Host, gateway: Ipv4Addr, link: &str) {
    let gateway = IpAddr::from(gateway);
    let route = Route { destination: default_destination(gateway), gateway: Some(gateway), link: link.to_owned() };
    host.links().expect("netlink").add_route(&route).expect("a route");
}

#[test]
fn a_lab_that_is_well_has_nothing_to_tell() {
    in_lab(a_lab_that_is_well_has_nothing_to_tell, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        default_route(lab.balancer(), lab.client().ipv4(), "front");
        let well = ["kernel", "limits", "link", "offloads", "duplicate-address", "next-hop", "mtu", "servers"];
        examine(lab.balancer(), &full_nat(lab)).assert_well(&well);
        examine(lab.balancer(), &half_nat(lab, "")).assert_well(&[&well[..], &["return-path"]].concat());
        examine(lab.balancer(), &service("web", lab.vip(102), "443", "", &ipv4(lab.servers())))
            .assert_well(&["servers"]);
        let vip6 = lab.free_vip6(0x100);
        let servers: Vec<(&str, IpAddr)> =
            lab.servers().iter().map(|host| (host.name(), host.port("back").expect("a network").ipv6.into())).collect();
        let half6 = packet_service("six", vip6, "443", "forwarding = \"half-nat\"", &servers);
        examine(lab.balancer(), &half6).assert_well(&["next-hop", "mtu", "return-path"]);
    });
}

#[test]
fn a_lab_with_one_arm_that_is_well_has_nothing_to_tell() {
    in_lab(a_lab_with_one_arm_that_is_well_has_nothing_to_tell, Topology::OneArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        examine(lab.balancer(), &full_nat(lab)).assert_well(&[
            "link",
            "duplicate-address",
            "next-hop",
            "mtu",
            "servers",
        ]);
        let dsr = packet_service("web", lab.free_vip(100), "443", "forwarding = \"dsr\"", &ipv4(lab.servers()));
        examine(lab.balancer(), &dsr).assert_well(&["duplicate-address", "next-hop"]);
    });
}

#[test]
fn beside_a_daemon_it_sees_the_same_and_disturbs_nobody() {
    in_lab(beside_a_daemon_it_sees_the_same_and_disturbs_nobody, Topology::TwoArm, 1, |lab| {
        let origin = Origin::tcp(lab.server(1), 443);
        for config in [full_nat(lab), half_nat(lab, "")] {
            let daemon = subject!().start(lab.balancer(), &config);
            daemon.until_all_up();
            let vip = lab.free_vip(100);
            let mut open = Connection::open(lab.client(), (vip, 443)).expect("a connection");
            open.greeting().expect("a greeting");
            let own = format!("[control]\nsocket = \"{}\"\n{config}", daemon.control().display());
            let examined = examine(lab.balancer(), &own);
            examined.assert_well(&["duplicate-address", "next-hop", "servers"]);
            assert!(examined.report.daemon.is_some(), "it answers at its socket");
            open.echo(b"still there").expect("the connection stays");
            open.close().expect("a clean end");
            assert_eq!(who(lab.client(), (vip, 443)), "server-1");
            daemon.stop();
        }
        drop(origin);
    });
}

#[test]
fn an_address_that_another_station_has_is_found() {
    in_lab(an_address_that_another_station_has_is_found, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        lab.client().add_address(lab.free_vip(100).into()).expect("an address");
        let examined = examine(lab.balancer(), &full_nat(lab));
        let found = examined.assert_told("web", "duplicate-address", "error", "ip address del");
        let mac = lab.client().links().expect("netlink").find("front").expect("a link").hardware_address;
        let mac: Vec<String> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
        assert!(found.contains(&mac.join(":")), "{found}");
        assert_eq!(examined.told().len(), 1, "{:#?}", examined.told());
        // Of IPv6, by a solicitation as duplicate address detection sends it.
        let vip6 = lab.free_vip6(0x100);
        lab.client().add_address(vip6.into()).expect("an address");
        let servers = [("server-1", IpAddr::from(lab.server(1).ipv6()))];
        let config = packet_service("six", vip6, "443", "source = \"vip\"", &servers);
        examine(lab.balancer(), &config).assert_told("six", "duplicate-address", "error", "ip address del");
    });
}

#[test]
fn a_server_that_tells_the_vip_of_direct_return_is_found() {
    in_lab(a_server_that_tells_the_vip_of_direct_return_is_found, Topology::OneArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let vip = lab.free_vip(100);
        for host in lab.servers() {
            host.links().expect("netlink").add_address("lo", vip.into(), 32).expect("an address");
        }
        lab.server(1).set_sysctl("net.ipv4.conf.all.arp_ignore", "1").expect("a sysctl");
        let config = packet_service("web", vip, "443", "forwarding = \"dsr\"", &ipv4(lab.servers()));
        let examined = examine(lab.balancer(), &config);
        let found = examined.assert_told("web", "duplicate-address", "error", "arp_ignore=1");
        assert!(found.contains(&lab.server(2).ipv4().to_string()), "{found}");
        lab.server(2).set_sysctl("net.ipv4.conf.all.arp_ignore", "1").expect("a sysctl");
        examine(lab.balancer(), &config).assert_well(&["duplicate-address"]);
    });
}

#[test]
fn a_gateway_and_servers_that_do_not_answer_are_found() {
    in_lab(a_gateway_and_servers_that_do_not_answer_are_found, Topology::TwoArm, 2, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        default_route(lab.balancer(), lab.free_vip(99), "front");
        lab.server(2).link_down("back").expect("a plug");
        let examined = examine(lab.balancer(), &full_nat(lab));
        examined.assert_told("front", "next-hop", "error", "ip neigh show dev front");
        let found = examined.assert_told("web", "next-hop", "warning", "dev back");
        assert!(found.contains(&lab.server(2).ipv4().to_string()), "{found}");
        let found = examined.assert_told("web", "servers", "warning", "ss -ltn");
        assert!(found.contains("server-2"), "{found}");
        assert_eq!(examined.told().len(), 3, "{:#?}", examined.told());
    });
}

#[test]
fn a_port_that_nobody_listens_on_is_found() {
    in_lab(a_port_that_nobody_listens_on_is_found, Topology::TwoArm, 1, |lab| {
        let examined = examine(lab.balancer(), &full_nat(lab));
        let found = examined.assert_told("web", "servers", "warning", "ss -ltn");
        assert!(found.contains("port 443: connection refused"), "{found}");
        assert_eq!(examined.told().len(), 1, "{:#?}", examined.told());
    });
}

#[test]
fn half_nat_without_us_as_gateway_is_found() {
    in_lab(half_nat_without_us_as_gateway_is_found, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        default_route(lab.server(2), lab.server(1).ipv4(), "back");
        for keys in ["", "client_networks = [\"203.0.113.0/24\"]"] {
            let examined = examine(lab.balancer(), &half_nat(lab, keys));
            let own = lab.balancer().port("back").expect("a network").ipv4;
            let command = format!("ip route replace default via {own}");
            let found = examined.assert_told("web", "return-path", "error", &command);
            assert!(found.contains("server-2"), "{found}");
            assert_eq!(found.contains("203.0.113.254"), !keys.is_empty(), "{found}");
            assert_eq!(examined.told().len(), 1, "{:#?}", examined.told());
        }
        default_route(lab.server(2), lab.balancer().port("back").expect("a network").ipv4, "back");
        examine(lab.balancer(), &half_nat(lab, "")).assert_well(&["return-path"]);
    });
}

#[test]
fn a_smaller_mtu_on_the_way_is_found() {
    in_lab(a_smaller_mtu_on_the_way_is_found, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        lab.server(2).links().expect("netlink").set_mtu("back", 1300).expect("an MTU");
        let examined = examine(lab.balancer(), &full_nat(lab));
        let found = examined.assert_told("back", "mtu", "warning", "ip link set back mtu");
        assert!(found.contains(&lab.server(2).ipv4().to_string()), "{found}");
        assert_eq!(examined.told().len(), 1, "{:#?}", examined.told());
    });
}

#[test]
fn offloads_that_are_off_are_found() {
    in_lab(offloads_that_are_off_are_found, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let devices = lab.balancer().run(Devices::open).expect("a thread").expect("a socket");
        devices.set("front", Feature::Segmentation, false).expect("an offload");
        examine(lab.balancer(), &full_nat(lab)).assert_told("front", "offloads", "hint", "ethtool -K front tso on");
        devices.set("front", Feature::SendSums, false).expect("an offload");
        examine(lab.balancer(), &full_nat(lab)).assert_told("front", "offloads", "hint", "ethtool -K front tx on");
    });
}

/// A cable between the balancer and its only server that carries frames as they are, and forgets that the kernel left a checksum to it.
struct CarelessCable {
    stop: Arc<AtomicBool>,
    ends: Vec<JoinHandle<()>>,
}

impl CarelessCable {
    /// Lays it in the place of `back`.
    fn lay(lab: &TestLab) -> CarelessCable {
        let (balancer, server) = (lab.balancer(), lab.server(1));
        balancer.links().expect("netlink").remove("back").expect("a cable to take away");
        let middle = Namespace::create().expect("a namespace");
        for (host, end) in [(balancer, "to-balancer"), (server, "to-server")] {
            let mut links = host.links().expect("netlink");
            links.create_veth("back", end, &middle).expect("a cable");
            let port = host.port("back").expect("a network");
            links.add_address("back", port.ipv4.into(), 24).expect("an address");
            links.set_up("back").expect("a plug to put in");
            middle.links().expect("netlink").set_up(end).expect("a plug to put in");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let ends = [("to-balancer", "to-server"), ("to-server", "to-balancer")].map(|(from, to)| {
            let open = |end: &'static str| middle.run(move || Tap::open(end)).expect("a thread").expect("a tap");
            let (mut from, to, stop) = (open(from), open(to), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let soon = Instant::now() + Duration::from_millis(20);
                    if let Ok(Some(frame)) = from.next(soon)
                        && frame.direction == Direction::Received
                    {
                        // What does not fit is lost, as on any cable.
                        let _lost = to.send(&frame.bytes);
                    }
                }
            })
        });
        CarelessCable { stop, ends: ends.into() }
    }
}

impl Drop for CarelessCable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.ends.drain(..).for_each(|end| end.join().expect("an end does not panic"));
    }
}

#[test]
fn a_device_that_lies_about_checksums_is_found() {
    in_lab(a_device_that_lies_about_checksums_is_found, Topology::TwoArm, 1, |lab| {
        let _cable = CarelessCable::lay(lab);
        let _origin = Origin::tcp(lab.server(1), 443);
        // So that its answers arrive.
        let devices = lab.server(1).run(Devices::open).expect("a thread").expect("a socket");
        devices.set("back", Feature::SendSums, false).expect("an offload");
        let examined = examine(lab.balancer(), &full_nat(lab));
        examined.assert_told("back", "offloads", "error", "ethtool -K back tx off");
        // The kernel suffers from it as well.
        examined.assert_told("web", "servers", "warning", "ss -ltn");
        let devices = lab.balancer().run(Devices::open).expect("a thread").expect("a socket");
        devices.set("back", Feature::SendSums, false).expect("an offload");
        let examined = examine(lab.balancer(), &full_nat(lab));
        examined.assert_told("back", "offloads", "hint", "ethtool -K back tx on");
        assert_eq!(examined.told().len(), 1, "{:#?}", examined.told());
    });
}

#[test]
fn a_plug_that_is_pulled_and_an_interface_that_is_down_are_found() {
    in_lab(a_plug_that_is_pulled_and_an_interface_that_is_down_are_found, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        lab.client().link_down("front").expect("a plug");
        examine(lab.balancer(), &full_nat(lab)).assert_told("front", "link", "warning", "ethtool front");
        lab.balancer().link_down("front").expect("a plug");
        let examined = examine(lab.balancer(), &full_nat(lab));
        examined.assert_told("front", "link", "warning", "ip link set front up");
        examined.assert_told("machine", "routes", "error", "");
    });
}

#[test]
fn settings_of_the_kernel_that_do_not_fit_are_found() {
    in_lab(settings_of_the_kernel_that_do_not_fit_are_found, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let balancer = lab.balancer();
        let set = |key: &str, value: &str| balancer.set_sysctl(key, value).expect("a sysctl");
        set("net.ipv4.ip_forward", "1");
        examine(balancer, &half_nat(lab, "")).assert_told(
            "web",
            "kernel-forwards",
            "error",
            "sysctl -w net.ipv4.ip_forward=0",
        );
        let routes = format!("[router]\nenabled = true\n{}", half_nat(lab, ""));
        let command = "sysctl -w net.ipv4.ip_forward=0";
        examine(balancer, &routes).assert_told("machine", "kernel-forwards", "error", command);
        set("net.ipv4.ip_forward", "0");
        examine(balancer, &half_nat(lab, "")).assert_well(&[]);
        examine(balancer, &routes).assert_well(&["routes", "return-path"]);

        // Clients come in by front, and the way back to those from elsewhere leads over back.
        let relay = service("relay", lab.vip(102), "443", "", &ipv4(lab.servers()));
        default_route(balancer, lab.server(1).ipv4(), "back");
        set("net.ipv4.conf.front.rp_filter", "1");
        let command = "sysctl -w net.ipv4.conf.front.rp_filter=2";
        examine(balancer, &relay).assert_told("front", "rp-filter", "warning", command);
        set("net.ipv4.conf.front.rp_filter", "2");
        examine(balancer, &relay).assert_well(&["rp-filter"]);

        // Ports that the kernel gives away, at its own address.
        set("net.ipv4.ip_local_port_range", "32768 60999");
        let own = balancer.port("back").expect("a network").ipv4;
        let pool = format!("source = {{ pool = [\"{own}\"], ports = \"60000-65000\" }}");
        let config = packet_service("web", lab.free_vip(100), "443", &pool, &ipv4(lab.servers()));
        let command = "sysctl -w net.ipv4.ip_local_reserved_ports=60000-60999";
        examine(balancer, &config).assert_told("web", "local-ports", "error", command);
    });
}

#[test]
fn addresses_that_the_kernel_has_or_lacks_are_found() {
    in_lab(addresses_that_the_kernel_has_or_lacks_are_found, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let balancer = lab.balancer();
        let relay = service("relay", lab.free_vip(103), "443", "", &ipv4(lab.servers()));
        examine(balancer, &relay).assert_told("relay", "addresses", "error", "ip address add");
        let config = full_nat(lab);
        let vip = lab.vip(100);
        let command = format!("ip address del {vip}/24 dev front");
        examine(balancer, &config).assert_told("web", "addresses", "hint", &command);
        let own = [("self", IpAddr::from(balancer.port("back").expect("a network").ipv4))];
        let itself = packet_service("web", lab.free_vip(104), "443", "source = \"vip\"", &own);
        examine(balancer, &itself).assert_told("web", "addresses", "error", "");
        let nowhere = [("far", IpAddr::from([203, 0, 113, 9]))];
        let nowhere = packet_service("web", lab.free_vip(104), "443", "source = \"vip\"", &nowhere);
        examine(balancer, &nowhere).assert_told("machine", "routes", "error", "ip route add 203.0.113.9 via");
    });
}

#[test]
fn a_program_that_loses_its_port_is_found() {
    in_lab(a_program_that_loses_its_port_is_found, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let vip = lab.vip(100);
        let holder = lab.balancer().run(|| std::net::TcpListener::bind((vip, 443))).expect("a thread").expect("a port");
        examine(lab.balancer(), &full_nat(lab)).assert_told("machine", "listeners", "warning", "");
        drop(holder);
    });
}

#[test]
fn clients_beside_the_servers_of_half_nat_are_found() {
    in_lab(clients_beside_the_servers_of_half_nat_are_found, Topology::OneArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let examined = examine(lab.balancer(), &half_nat(lab, ""));
        examined.assert_told("web", "half-nat", "error", "");
        // And nobody has told the server that we are its gateway.
        examined.assert_told("web", "return-path", "error", "ip route replace default via");
    });
}

#[test]
fn limits_that_do_not_fit_are_found() {
    in_lab(limits_that_do_not_fit_are_found, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = format!("[runtime]\nworkers = [4000]\n{}", full_nat(lab));
        examine(lab.balancer(), &config).assert_told("machine", "limits", "error", "");
    });
}

/// RFC 5929 §4, as Windows has it: a logon is bound to the certificate that the client saw.
#[test]
#[ignore = "needs the Debian package openssl"]
fn servers_with_another_certificate_than_clients_see_are_found() {
    in_lab(servers_with_another_certificate_than_clients_see_are_found, Topology::TwoArm, 2, |lab| {
        let authority = Authority::new("authority");
        let [seen, other] = [(); 2].map(|()| authority.issue(&[NAME]));
        let serve = |host: &Host, issued: &Issued, arguments: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(["s_server", "-accept", "443", "-rev", "-quiet"]).args(arguments);
            command.arg("-cert").arg(&issued.chain).arg("-key").arg(&issued.key);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let server = host.spawn(command).expect("openssl is installed");
            let at = (host.ipv4(), 443);
            eventually("the server listens", || Connection::open(lab.balancer(), at).ok());
            server
        };
        let tls = format!(
            "application = \"exchange-2013\"\n[service.tls]\nmode = \"re-encrypt\"\nverify_server = \"none\"\n{}",
            seen.table("[[service.tls.certificate]]")
        );
        let config = service("web", lab.vip(102), "443", &tls, &ipv4(lab.servers()));
        let _first = serve(lab.server(1), &seen, &[]);
        let second = serve(lab.server(2), &seen, &[]);
        examine(lab.balancer(), &config).assert_well(&["servers", "extended-protection"]);

        drop(second);
        let second = serve(lab.server(2), &other, &[]);
        let examined = examine(lab.balancer(), &config);
        let found = examined.assert_told("web", "extended-protection", "warning", "");
        assert!(found.contains("server-2") && found.contains("another certificate"), "{found}");

        // What Windows Server 2012 R2 with an RSA certificate is like.
        drop(second);
        let _second = serve(lab.server(2), &seen, &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"]);
        let examined = examine(lab.balancer(), &config);
        let found = examined.assert_told("web", "extended-protection", "error", "");
        assert!(found.contains("server-2") && found.contains("pass-through"), "{found}");
        assert_eq!(examined.told().len(), 1, "{:#?}", examined.told());
    });
}
