//! `service.http` and persistence that reads requests: what they mean, and what is told.

use std::net::IpAddr;
use std::path::PathBuf;

use towpath_config::check;
use towpath_config::model::*;

use crate::{expect, service};

const CERTIFICATE: &str = "certificate = [{ file = \"a.pem\", key = \"a.key\" }]";

/// A service in HTTP mode on port 80 of the group `web`, with these lines in `[service.http]` and below.
fn text(lines: &str, http: &str) -> String {
    format!(
        "[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\nports = 80\ngroup = \"web\"\n{lines}\n[service.http]\n{http}\n\
         [[group]]\nname = \"web\"\n[[group.server]]\nname = \"one\"\naddress = \"192.0.2.21\"\n"
    )
}

fn route(lines: &str) -> String {
    text("", &format!("[[service.http.route]]\n{lines}"))
}

fn filter(lines: &str) -> String {
    text("", &format!("[[service.http.filter]]\n{lines}"))
}

fn rewrite(lines: &str) -> String {
    text("", &format!("[[service.http.rewrite]]\n{lines}"))
}

fn model(text: &str) -> Model {
    let checked = check("test.toml", text);
    let told = towpath_config::render(&checked.diagnostics, "test.toml", text, false);
    assert!(checked.diagnostics.is_empty(), "{told}");
    checked.model.expect("no errors")
}

fn http(text: &str) -> Http {
    *model(text).services[0].http.clone().expect("HTTP mode")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn what_is_not_written_has_a_default() {
    let expected = Http {
        retry_after_s: 5,
        balance_each: BalanceEach::Request,
        http2: false,
        reuse: Reuse::Never,
        head_bytes_max: 32_768,
        body_bytes_max: 0,
        head_timeout_ms: 15_000,
        response_timeout_ms: 1_800_000,
        forwarded: Forwarded::XForwarded,
        trusted: Vec::new(),
        redirect_to_https: false,
        https_port: 443,
        rewrite_location: false,
        hsts: None,
        maintenance: None,
        filters: Vec::new(),
        routes: Vec::new(),
        rewrites: Vec::new(),
        cookie_secret_file: None,
    };
    assert_eq!(http(&text("", "")), expected);
    assert_eq!(model(&service("", "")).services[0].http, None);
    assert_eq!(http(&text("idle_timeout = \"1h\"", "")).response_timeout_ms, 3_600_000);
}

#[test]
fn every_key_reaches_the_model() {
    let lines = format!("tls = {{ mode = \"terminate\", {CERTIFICATE} }}\npersistence = {{ by = \"cookie\" }}");
    let keys = r#"
balance_each = "connection"
reuse = "safe"
reuse_idle_max = 7
reuse_idle_timeout = "90s"
http2 = true
head_bytes_max = 1024
body_bytes_max = 4096
head_timeout = "5s"
response_timeout = "2m"
forwarded = "both"
trusted = ["10.0.0.0/8"]
hsts = { max_age = "1d", subdomains = true, preload = true }
maintenance = { file = "/etc/towpath/soon.html", status = 500, when = "always", retry_after = "10m" }
cookie_secret_file = "/etc/towpath/cookies"

[[service.http.filter]]
action = "deny"
status = 404
host = ["Mail.example.org"]
path = ["/ECP"]
path_exact = ["/Default.aspx"]
path_regex = ['\.config$']
method = ["GET", "PROPFIND"]
header = "X-Kind"
header_regex = "^a"
from = ["198.51.100.0/24"]
parameter = "*"
pattern = "<"
except = "[a-z]+"

[[service.http.filter]]
action = "allow"

[[service.http.route]]
name = "owa"
path = ["/owa"]
group = "web"

[[service.http.route]]
path = ["/polls"]
group = "web"
balance = "round-robin"
persistence = { by = ["header", "source-ip"], header = "X-User", timeout = "1h", ipv4_prefix = 24, ipv6_prefix = 64 }
health = { check = "tcp", ports = 81 }
idle_timeout = "2h"
connect_timeout = "1s"
response_timeout = "3h"

[[service.http.route]]
path_exact = ["/"]
redirect = "https://{host}/owa"
redirect_status = "301"

[[service.http.route]]
status = 421

[[service.http.rewrite]]
what = "add-header"
header = "X-One"
with = "1"

[[service.http.rewrite]]
what = "set-header"
of = "response"
header = "X-Two"
with = "2"

[[service.http.rewrite]]
what = "remove-header"
header = "X-Three"

[[service.http.rewrite]]
what = "host"
with = "inside.example.org"

[[service.http.rewrite]]
what = "path"
match = "/Old"
with = "/New"
"#;
    let model = model(&text(&lines, keys));
    let http = model.services[0].http.as_ref().expect("HTTP mode");
    assert_eq!(
        (http.balance_each, http.head_bytes_max, http.body_bytes_max, http.head_timeout_ms, http.response_timeout_ms),
        (BalanceEach::Connection, 1024, 4096, 5_000, 120_000)
    );
    assert_eq!(http.reuse, Reuse::Safe { idle_max: 7, idle_timeout_ms: 90_000 });
    assert_eq!((http.forwarded, http.trusted.as_slice()), (Forwarded::Both, &[(ip("10.0.0.0"), 8)][..]));
    assert_eq!(http.hsts, Some(Hsts { max_age_s: 86_400, subdomains: true, preload: true }));
    let file = PathBuf::from("/etc/towpath/soon.html");
    assert_eq!(
        http.maintenance,
        Some(Maintenance { file, status: 500, when: MaintenanceWhen::Always, retry_after_s: Some(600) })
    );
    assert_eq!(http.cookie_secret_file, Some(PathBuf::from("/etc/towpath/cookies")));

    let [deny, allow] = http.filters.as_slice() else { panic!("{:?}", http.filters) };
    assert_eq!(allow, &HttpFilter { when: RequestMatch::default(), parameter: None, action: FilterAction::Allow });
    assert_eq!(deny.action, FilterAction::Deny(404));
    assert_eq!(deny.when.hosts, ["mail.example.org"]);
    let [PathMatch::Prefix(prefix), PathMatch::Exact(exact), PathMatch::Regex(regex)] = deny.when.paths.as_slice()
    else {
        panic!("{:?}", deny.when.paths)
    };
    assert_eq!((prefix.as_str(), exact.as_str()), ("/ecp", "/default.aspx"));
    assert!(regex.fits(b"/WEB.CONFIG") && !regex.fits(b"/web.config.bak"));
    assert_eq!(
        (deny.when.methods.join(" "), deny.when.from.as_slice()),
        ("GET PROPFIND".into(), &[(ip("198.51.100.0"), 24)][..])
    );
    let header = deny.when.header.as_ref().expect("a header");
    assert!(
        header.name == "X-Kind" && header.value.as_ref().is_some_and(|value| value.fits(b"ab") && !value.fits(b"AB"))
    );
    let parameter = deny.parameter.as_ref().expect("a parameter");
    assert!(parameter.name.is_none() && parameter.except.as_ref().is_some_and(|except| !except.fits(b"a1")));

    let [owa, polls, root, rest] = http.routes.as_slice() else { panic!("{:?}", http.routes) };
    assert_eq!((owa.name.as_str(), polls.name.as_str(), rest.name.as_str()), ("owa", "2", "4"));
    let of_service = model.services[0].persistence.clone();
    let common = RouteGroup {
        group: 0,
        settings: RouteSettings::Common,
        clients: RouteClients::Service,
        balance: Balance::WeightedLeastConnections,
        persistence: of_service.clone(),
        idle_timeout_ms: 1_800_000,
        connect_timeout_ms: 4_000,
        response_timeout_ms: 120_000,
    };
    assert_eq!(owa.to, RouteTo::Group(common.clone()));
    let own = RouteGroup {
        group: 1,
        settings: RouteSettings::Own,
        clients: RouteClients::Route,
        balance: Balance::RoundRobin,
        persistence: Some(Persistence {
            by: vec![PersistBy::Header("X-User".into()), PersistBy::SourceIp],
            timeout_ms: 3_600_000,
            ipv4_prefix: 24,
            ipv6_prefix: 64,
            enter_draining: false,
        }),
        idle_timeout_ms: 7_200_000,
        connect_timeout_ms: 1_000,
        response_timeout_ms: 10_800_000,
    };
    assert_eq!(polls.to, RouteTo::Group(own));
    assert_eq!((model.groups[1].name.as_str(), model.groups[1].servers.len()), ("web: 2", 1));
    assert_eq!(model.groups[1].health.as_ref().map(|health| health.ports.clone()), Some(vec![81]));
    assert_eq!(model.groups_of(&model.services[0]).count(), 3);
    assert_eq!(root.to, RouteTo::Redirect { url: "https://{host}/owa".into(), status: 301 });
    assert_eq!((&rest.to, &rest.when), (&RouteTo::Status(421), &RequestMatch::default()));

    let changes: Vec<&Change> = http.rewrites.iter().map(|rewrite| &rewrite.change).collect();
    let header = |of, name: &str, to| Change::Header { of, name: name.into(), to };
    let expected = [
        header(Way::Request, "X-One", HeaderChange::Add("1".into())),
        header(Way::Response, "X-Two", HeaderChange::Set("2".into())),
        header(Way::Request, "X-Three", HeaderChange::Remove),
        Change::Host("inside.example.org".into()),
        Change::Path { from: "/old".into(), to: "/New".into() },
    ];
    assert_eq!(changes, expected.iter().collect::<Vec<_>>());
    let cookie = InsertedCookie { name: "SERVERID".into(), set: CookieSet::Missing, http_only: true, secure: true };
    assert_eq!(of_service.map(|rule| rule.by), Some(vec![PersistBy::InsertedCookie(cookie)]));
}

#[test]
fn persistence_by_cookie_knows_the_one_of_lync_mobility() {
    let by = |keys: &str| {
        let lines = format!("persistence = {{ by = \"cookie\", {keys} }}");
        model(&text(&lines, "")).services[0].persistence.clone().expect("a rule").by
    };
    let ours = |name: &str, set, http_only, secure| {
        vec![PersistBy::InsertedCookie(InsertedCookie { name: name.into(), set, http_only, secure })]
    };
    assert_eq!(by(""), ours("SERVERID", CookieSet::Missing, true, false));
    assert_eq!(by("cookie = \"MS-WSMAN\""), ours("MS-WSMAN", CookieSet::Always, false, false));
    let keys = "cookie = \"MS-WSMAN\", cookie_set = \"missing\", cookie_http_only = true";
    assert_eq!(by(keys), ours("MS-WSMAN", CookieSet::Missing, true, false));
    assert_eq!(
        by("cookie_set = \"always\", cookie_http_only = false"),
        ours("SERVERID", CookieSet::Always, false, false)
    );
    assert_eq!(by("cookie = \"S\", cookie_mode = \"find\""), vec![PersistBy::FoundCookie("S".into())]);
}

#[test]
fn routes_say_where_to() {
    let rows: &[(&str, &[(&str, &str)])] = &[
        ("path = [\"/a\"]", &[("missing-key", "[[service.http.route]]")]),
        ("group = \"web\"\nstatus = 404", &[("conflicting-keys", "status")]),
        ("group = \"wbe\"", &[("unknown-group", "\"wbe\"")]),
        ("status = 200", &[("out-of-range", "200")]),
        ("status = 404\nidle_timeout = \"1m\"", &[("no-effect", "idle_timeout")]),
        ("redirect = \"/owa\"\nbalance = \"maglev\"", &[("no-effect", "balance")]),
        ("group = \"web\"\nredirect_status = \"301\"", &[("no-effect", "redirect_status")]),
        ("redirect = \"owa\"", &[("bad-url", "\"owa\"")]),
        ("redirect = \"ftp://a/\"", &[("bad-url", "\"ftp://a/\"")]),
        ("redirect = \"{uri}\"", &[("bad-url", "\"{uri}\"")]),
        ("redirect = \"https://a/{port}\"", &[("bad-url", "\"https://a/{port}\"")]),
        ("redirect = \"https://a b/\"", &[("bad-url", "\"https://a b/\"")]),
        ("redirect = \"https://{host}:4443{uri}\"", &[]),
        ("name = \"2\"\ngroup = \"web\"", &[("bad-name", "\"2\"")]),
        ("group = \"web\"\npersistence = { by = \"header\", cookie = \"A\" }", &[("no-effect", "cookie")]),
        ("group = \"web\"\npersistence = { by = \"header\", header = \"A:\" }", &[("bad-name", "\"A:\"")]),
    ];
    for (lines, told) in rows {
        expect(&route(lines), told);
    }
    let two = "name = \"a\"\npath = [\"/a\"]\nstatus = 404\n[[service.http.route]]\nname = \"a\"\nstatus = 404";
    expect(&route(two), &[("duplicate-name", "\"a\"")]);
    let shadowed = "status = 404\n[[service.http.route]]\npath = [\"/a\"]\ngroup = \"web\"";
    expect(&route(shadowed), &[("no-effect", "[[service.http.route]]")]);
}

#[test]
fn who_answers_every_request_needs_no_server() {
    let alone =
        |http: &str| format!("[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\nports = 80\n[service.http]\n{http}\n");
    for http in [
        "redirect_to_https = true",
        "[[service.http.route]]\nredirect = \"https://a.example/\"",
        "[[service.http.route]]\npath = [\"/a\"]\nstatus = 404\n[[service.http.route]]\nredirect = \"/a\"",
    ] {
        let model = model(&alone(http));
        assert!(model.groups[model.services[0].group].servers.is_empty(), "{http}");
    }
    for http in ["", "[[service.http.route]]\npath = [\"/a\"]\nstatus = 404"] {
        expect(&alone(http), &[("missing-key", "[[service]]")]);
    }
}

#[test]
fn conditions_are_what_requests_can_have() {
    let rows: &[(&str, &[(&str, &str)])] = &[
        ("host = [\"mail.example.org\", \"*.example.org\"]", &[]),
        ("host = [\"https://a\"]", &[("bad-name", "\"https://a\"")]),
        ("host = [\"a:80\"]", &[("bad-name", "\"a:80\"")]),
        ("path = [\"owa\"]", &[("bad-path", "\"owa\"")]),
        ("path = [\"/a?b\"]", &[("bad-path", "\"/a?b\"")]),
        ("path_exact = [\"/a%20b\"]", &[("bad-path", "\"/a%20b\"")]),
        ("path_exact = [\"/a/../b\"]", &[("bad-path", "\"/a/../b\"")]),
        ("path = [\"/a//b\"]", &[("bad-path", "\"/a//b\"")]),
        ("path = [\"/a b\", \"/größe\"]", &[]),
        ("path_regex = [\"(\"]", &[("bad-regex", "\"(\"")]),
        ("method = [\"get\"]", &[("bad-name", "\"get\"")]),
        ("method = [\"G T\"]", &[("bad-name", "\"G T\"")]),
        ("header = \"A B\"", &[("bad-name", "\"A B\"")]),
        ("header_regex = \"a\"", &[("missing-key", "header_regex")]),
        ("header = \"A\"\nheader_regex = \"[\"", &[("bad-regex", "\"[\"")]),
        ("from = [\"10.0.0.1\"]", &[("bad-network", "\"10.0.0.1\"")]),
        ("parameter = \"id\"\nexcept = \"[0-9]+\"", &[]),
        ("pattern = \"a\"", &[("missing-key", "pattern")]),
        ("parameter = \"id\"\nexcept = \"a)|(b\"", &[("bad-regex", "\"a)|(b\"")]),
    ];
    for (lines, told) in rows {
        expect(&filter(&format!("action = \"deny\"\n{lines}")), told);
    }
    expect(&filter("action = \"allow\"\nstatus = 404"), &[("no-effect", "status")]);
    expect(&filter("path = [\"/a\"]"), &[("missing-key", "[[service.http.filter]]")]);
}

#[test]
fn rewrites_say_what_becomes_of_what() {
    let rows: &[(&str, &[(&str, &str)])] = &[
        ("what = \"add-header\"\nheader = \"A\"", &[("missing-key", "\"add-header\"")]),
        ("what = \"remove-header\"\nheader = \"A\"\nwith = \"b\"", &[("no-effect", "with")]),
        ("what = \"host\"\nwith = \"*.a\"", &[("bad-name", "\"*.a\"")]),
        ("what = \"path\"\nmatch = \"/a\"\nwith = \"b\"", &[("bad-path", "\"b\"")]),
        ("what = \"path\"\nmatch = \"/a\"\nwith = \"/b\"\nof = \"response\"", &[("no-effect", "of")]),
        ("what = \"set-header\"\nheader = \"Host\"\nwith = \"a\"", &[("reserved-header", "\"Host\"")]),
        (
            "what = \"set-header\"\nheader = \"content-length\"\nwith = \"1\"",
            &[("reserved-header", "\"content-length\"")],
        ),
        ("what = \"add-header\"\nheader = \"A\"\nwith = \" b\"", &[("bad-text", "\" b\"")]),
        ("what = \"add-header\"\nheader = \"A\"\nwith = \"ä\"", &[("bad-text", "\"ä\"")]),
        ("what = \"body\"\nmatch = \"a\"\nwith = \"b\"", &[("not-available", "\"body\"")]),
    ];
    for (lines, told) in rows {
        expect(&rewrite(lines), told);
    }
}

#[test]
fn http_mode_goes_with_what_it_can_read() {
    let ended = |keys: &str| format!("tls = {{ mode = \"terminate\", {CERTIFICATE}{keys} }}");
    type Told<'t> = &'t [(&'t str, &'t str)];
    let rows: &[(String, &str, Told<'_>)] = &[
        ("ports = 443".into(), "", &[("unreadable-requests", "[service.http]")]),
        (format!("ports = 443\n{}", ended("")), "", &[]),
        (ended(", alpn = [\"h2\", \"http/1.1\"]"), "", &[("wrong-protocol", "\"h2\"")]),
        (ended(", alpn = [\"h2\", \"http/1.1\"]"), "http2 = true", &[]),
        (ended(", alpn = [\"http/1.1\"]"), "http2 = true", &[("no-effect", "true")]),
        (ended(", alpn = [\"h2\"]"), "http2 = true", &[("wrong-protocol", "[\"h2\"]")]),
        (ended(""), "http2 = true", &[]),
        (ended(""), "http2 = 2", &[("wrong-type", "2")]),
        (String::new(), "http2 = true", &[("no-effect", "true")]),
        (format!("application = \"exchange-2013\"\n{}", ended("")), "http2 = true", &[("wrong-protocol", "true")]),
        (ended(""), "redirect_to_https = true", &[("endless-redirect", "true")]),
        (String::new(), "redirect_to_https = true\nhttps_port = 4443", &[]),
        (String::new(), "https_port = 4443", &[("no-effect", "https_port")]),
        (String::new(), "hsts = { max_age = \"1d\" }", &[("no-effect", "hsts")]),
        (ended(""), "hsts = { subdomains = true }", &[("missing-key", "{ subdomains = true }")]),
        (String::new(), "redirect_to_https = true\nmaintenance = { file = \"a\" }", &[("no-effect", "maintenance")]),
        (String::new(), "cookie_secret_file = \"a\"", &[("no-effect", "cookie_secret_file")]),
        (String::new(), "reuse = \"always\"", &[("unknown-word", "\"always\"")]),
        (String::new(), "reuse = \"safe\"\nreuse_idle_max = 0", &[("out-of-range", "0")]),
        (String::new(), "reuse = \"safe\"\nreuse_idle_timeout = \"2h\"", &[("out-of-range", "\"2h\"")]),
        (
            String::new(),
            "reuse_idle_max = 3\nreuse_idle_timeout = \"1m\"",
            &[("no-effect", "reuse_idle_max"), ("no-effect", "reuse_idle_timeout")],
        ),
        ("persistence = { by = \"cookie\" }".into(), "cookie_secret_file = \"a\"", &[]),
        (
            "persistence = { by = \"cookie\", cookie_secure = true, timeout = \"1h\" }".into(),
            "",
            &[("no-effect", "timeout"), ("lost-cookie", "true")],
        ),
        (
            "persistence = { by = \"cookie\", cookie_mode = \"find\", cookie_set = \"always\" }".into(),
            "",
            &[("no-effect", "cookie_set")],
        ),
        ("persistence = { by = \"cookie\", cookie = \"a=b\" }".into(), "", &[("bad-name", "\"a=b\"")]),
        ("persistence = { by = [\"cookie\", \"source-ip\"], timeout = \"1h\" }".into(), "", &[]),
        ("persistence = { by = [\"source-ip\", \"cookie\"] }".into(), "", &[("no-effect", "\"cookie\"")]),
        ("persistence = { by = \"sni\" }".into(), "", &[("needs-tls", "\"sni\"")]),
        ("persistence = { by = \"sip-call-id\" }".into(), "", &[("conflicting-keys", "\"sip-call-id\"")]),
    ];
    for (lines, keys, told) in rows {
        let mut text = text(lines, keys);
        if lines.starts_with("ports") {
            text = text.replacen("ports = 80\n", "", 1);
        }
        let checked = check("test.toml", &text);
        let mut found = crate::told(&checked, &text);
        found.sort_unstable();
        let mut told = told.to_vec();
        told.sort_unstable();
        assert_eq!(found, told, "{text}");
    }
}

#[test]
fn one_server_gets_tls_from_a_service_or_does_not() {
    let text = format!(
        "{}[[group]]\nname = \"two\"\n[[group.server]]\nname = \"first\"\naddress = \"192.0.2.21\"\nre_encrypt = false\n",
        text(
            &format!("tls = {{ mode = \"re-encrypt\", {CERTIFICATE} }}"),
            "[[service.http.route]]\npath = [\"/a\"]\ngroup = \"two\""
        )
    );
    expect(&text, &[("different-server", "re_encrypt")]);
}
