//! The files of `config/examples`, and the reference.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use towpath_config::model::{Balance, HttpRoute, PathMatch, Ports, Protocol, Source};
use towpath_config::{Checked, Model, check, read, reference, render};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn load(name: &str) -> (String, Checked) {
    let text = read(&directory().join(name)).expect("the example can be read");
    let checked = check(name, &text);
    (text, checked)
}

fn model(name: &str) -> Model {
    let (text, checked) = load(name);
    assert!(checked.diagnostics.is_empty(), "{}", render(&checked.diagnostics, name, &text, false));
    checked.model.expect("no errors, so there is a model")
}

#[test]
fn every_example_has_no_error_and_only_planned_ones_have_warnings() {
    let mut seen = 0;
    for entry in fs::read_dir(directory()).expect("the examples are there") {
        let name = entry.expect("readable").file_name().into_string().expect("UTF-8");
        if !name.ends_with(".toml") {
            continue;
        }
        let (text, checked) = load(&name);
        let shown = render(&checked.diagnostics, &name, &text, false);
        assert!(checked.model.is_some(), "{shown}");
        assert_eq!(checked.errors().count(), 0, "{shown}");
        let planned = name.ends_with("-planned.toml");
        assert_eq!(checked.unavailable().count() > 0, planned, "{shown}");
        assert_eq!(checked.diagnostics.len(), checked.unavailable().count(), "{shown}");
        seen += 1;
    }
    assert!(seen >= 7, "{seen} examples");
}

#[test]
fn quickstart_has_three_local_servers() {
    let model = model("quickstart.toml");
    assert_eq!(model.services.len(), 1);
    let group = &model.groups[model.services[0].group];
    assert_eq!(
        group.servers.iter().map(|server| server.port).collect::<Vec<_>>(),
        [Some(8081), Some(8082), Some(8083)]
    );
    assert!(group.servers.iter().all(|server| server.address.is_loopback()));
}

#[test]
fn ocs_farm_has_twelve_ports_and_two_of_them_are_checked() {
    let model = model("ocs-2007r2.toml");
    let farm = &model.services[0];
    assert_eq!(farm.ports, Ports::List(vec![135, 443, 444, 5060, 5061, 5065, 5069, 5071, 5072, 5073, 5074, 8404]));
    assert_eq!(farm.balance, Balance::WeightedLeastConnections);
    assert_eq!(farm.idle_timeout_ms, 30 * 60 * 1000);
    assert_eq!(farm.persistence, None);
    let Source::Pool(pool) = &farm.source else { panic!("source = \"vip\" is a pool") };
    assert_eq!(pool.addresses, [farm.vip]);
    let health = model.groups[farm.group].health.as_ref().expect("checked");
    assert_eq!(health.ports, [444, 5061]);
}

#[test]
fn t_40_lync_2013_has_21_services_and_26_sockets() {
    let model = model("lync-2013.toml");
    assert_eq!(model.services.len(), 21);
    let sockets: Vec<_> =
        model.services.iter().flat_map(|service| service.sockets().map(|socket| (socket, service.protocol))).collect();
    assert_eq!(sockets.len(), 26);
    assert_eq!(sockets.iter().collect::<BTreeSet<_>>().len(), 26, "no socket twice");
    let udp = sockets.iter().filter(|(_, protocol)| *protocol == Protocol::Udp);
    assert_eq!(
        udp.map(|(socket, _)| socket.to_string()).collect::<Vec<_>>(),
        ["192.168.10.10:3478", "10.25.1.12:3478"]
    );
    // F-PER-01: web services of Lync 2013 are not pinned. E-09: the Directors have an address of their own.
    for name in ["FePoolExtWebSvcs8080", "FePoolExtWebSvcs4443", "DirPoolExtWebSvcs8080", "DirPoolExtWebSvcs4443"] {
        let service = model.services.iter().find(|service| service.name == name).expect(name);
        assert_eq!(service.persistence, None, "{name}");
        let vip = if name.starts_with("Dir") { "192.168.20.20" } else { "192.168.20.30" };
        assert_eq!(service.vip.to_string(), vip, "{name}");
    }
    let pool = &model.services[0];
    assert_eq!(pool.persistence.as_ref().map(|persistence| persistence.timeout_ms), Some(1_800_000));
    assert_eq!(model.groups[pool.group].health.as_ref().map(|health| health.ports.clone()), Some(vec![5061]));
    let translated = model.services.iter().find(|service| service.name == "ReverseProxyFE-https").expect("named so");
    assert!(model.groups[translated.group].servers.iter().all(|server| server.port == Some(4443)));
}

#[test]
fn t_40_lync_2013_with_the_printed_director_address_clashes() {
    // E-09: the steps of document 004 give the Directors 192.168.20.30.
    let (text, _) = load("lync-2013.toml");
    let printed = text.replace("vip = \"192.168.20.20\"", "vip = \"192.168.20.30\"");
    let checked = check("lync-2013.toml", &printed);
    assert!(checked.model.is_none());
    let clashes: Vec<_> =
        checked.errors().map(|error| (error.code, &printed[error.primary.start..error.primary.end])).collect();
    assert_eq!(clashes, [("duplicate-socket", "8080"), ("duplicate-socket", "4443")]);
    for clash in checked.errors() {
        assert_eq!(clash.labels.len(), 1);
        assert!(clash.labels[0].location.line < clash.primary.line, "the label shows the first of both");
    }
}

#[test]
fn exchange_2010_pins_what_must_come_back_and_nothing_else() {
    let model = model("exchange-2010.toml");
    let https = &model.services[0];
    // requirements.md 3.4, by the path of each protocol.
    let rows = [
        ("/owa", true),
        ("/rpc", true),
        ("/microsoft-server-activesync", true),
        ("/powershell", true),
        ("/oab", false),
        ("/autodiscover", false),
    ];
    for (path, pinned) in rows {
        let of = |route: &HttpRoute| route.when.paths.contains(&PathMatch::Prefix(path.to_owned()));
        let (_, group) = https.http_groups().find(|(route, _)| of(route)).expect(path);
        assert_eq!(group.persistence.is_some(), pinned, "{path}");
    }
    let pinned = |name: &str| {
        let service = model.services.iter().find(|service| service.name == name).expect(name);
        service.persistence.is_some()
    };
    assert!(pinned("exchange-rpc") && !pinned("exchange-imap") && !pinned("exchange-pop3"));
}

#[test]
fn exchange_2016_has_a_route_with_a_check_for_each_virtual_directory() {
    let model = model("exchange-2016.toml");
    let https = &model.services[0];
    assert!(
        https.http_groups().all(|(_, group)| model.groups[group.group].health.is_some() && group.persistence.is_none())
    );
    let groups: BTreeSet<usize> = https.http_groups().map(|(_, group)| group.group).collect();
    assert_eq!((https.http_groups().count(), groups.len()), (9, 9));
    assert!(model.services[1].http.as_ref().is_some_and(|http| http.redirect_to_https));
}

#[test]
fn reference_is_what_the_schema_says() {
    let written =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("reference.md")).expect("reference.md is there");
    assert!(
        written == reference(),
        "config/reference.md is stale: run `cargo run -p towpath-config --example reference`"
    );
}
