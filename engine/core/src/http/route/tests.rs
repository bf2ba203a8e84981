use proptest::prelude::*;

use super::*;
use crate::http::rewrite::Scheme;
use crate::http::stage::{Stage, get, request, response};

const ROUTED: &str = r#"
group = "one"
[service.http]
[[service.http.route]]
host = ["mail.example.org", "*.web.example.org"]
path = ["/owa", "/ecp"]
group = "two"
[[service.http.route]]
path_exact = ["/"]
redirect = "https://{host}/owa{uri}"
[[service.http.route]]
path_regex = ['^/api/v[0-9]+$']
method = ["GET"]
header = "X-Kind"
header_regex = "^beta"
status = 404
[[service.http.route]]
path = ["/common"]
group = "one"
[[service.http.route]]
from = ["198.51.100.0/24"]
path = ["/inside"]
redirect = "/welcome"
redirect_status = "307"
"#;

#[test]
fn the_first_route_that_fits_decides() {
    let stage = Stage::new(ROUTED);
    let rows = [
        ("mail.example.org", "/owa/auth?x=1", "s2 s3"),
        ("MAIL.example.org:443", "/OWA", "s2 s3"),
        ("a.web.example.org", "/%65cp/", "s2 s3"),
        ("mail.example.org", "/x/../owa", "s2 s3"),
        ("web.example.org", "/owa", "s1 s2"),
        ("mail.example.org", "/owax", "s1 s2"),
        ("mail.example.org", "/", "302 https://mail.example.org/owa/"),
        ("mail.example.org:8080", "/?a=b", "302 https://mail.example.org/owa/?a=b"),
        ("x", "/api/v2", "s1 s2"),
        ("x", "/inside", "s1 s2"),
        ("x", "/%zz", "bad path_escape"),
        ("x", "/a%00", "bad path_escape"),
        ("x", "/plain", "s1 s2"),
    ];
    for (host, target, goes) in rows {
        assert_eq!(stage.goes(host, target), goes, "{host} {target}");
    }
    let beta = |method: &str, kind: &str| {
        stage.decide(&request(method, "/API/v2", &format!("Host: x\r\nX-Kind: {kind}\r\n")), "203.0.113.1")
    };
    assert_eq!(beta("GET", "beta 2"), Verdict::Answer(404));
    let own = stage.service().id;
    assert_eq!(beta("GET", "a beta"), Verdict::Serve(own));
    assert_eq!(beta("POST", "beta 2"), Verdict::Serve(own));
    let inside = stage.decide(&get("/inside/x", "Host: x\r\n"), "::ffff:198.51.100.7");
    assert_eq!(inside, Verdict::Redirect { status: 307, location: "/welcome".into() });
    let all = stage.decide(&request("OPTIONS", "*", "Host: x\r\n"), "203.0.113.1");
    assert_eq!(all, Verdict::Serve(own));
}

#[test]
fn a_route_to_the_services_own_group_is_the_service() {
    let stage = Stage::new(ROUTED);
    let served = stage.decide(&get("/common", "Host: x\r\n"), "203.0.113.1");
    assert_eq!(served, Verdict::Serve(stage.service().id));
    assert_eq!(stage.service().places_behind().len(), 1);
}

#[test]
fn places_of_routes_have_their_own_settings_and_share_what_they_have_not() {
    let stage = Stage::new(
        r#"
group = "one"
idle_timeout = "20m"
persistence = { by = "source-ip" }
[service.http]
[[service.http.route]]
path = ["/a"]
group = "two"
[[service.http.route]]
path = ["/b"]
group = "two"
[[service.http.route]]
name = "polls"
path = ["/c"]
group = "two"
idle_timeout = "1h"
balance = "round-robin"
[[service.http.route]]
path = ["/d"]
group = "two"
persistence = { by = "none" }
[[service.http.route]]
path = ["/e"]
group = "one"
response_timeout = "2m"
"#,
    );
    let place = |path: &str| match stage.decide(&get(path, "Host: x\r\n"), "203.0.113.1") {
        Verdict::Serve(place) => stage.place(place),
        other => panic!("{other:?}"),
    };
    let (own, a, b, c, d, e) = (place("/"), place("/a"), place("/b"), place("/c"), place("/d"), place("/e"));
    assert_eq!(a.place, b.place);
    assert!([own, c, d, e].iter().all(|other| other.place != a.place));
    assert!([a, b, c, d, e].iter().all(|place| place.id == own.id), "counted as one service");
    // The clients of a group are pinned by all its routes, unless one has persistence of its own.
    assert_eq!((a.pins, c.pins, e.pins), (a.place, a.place, own.id));
    assert_eq!((d.pins, d.persistence.is_none()), (d.place, true));
    assert_eq!((a.idle_timeout_ms, c.idle_timeout_ms), (1_200_000, 3_600_000));
    let response_timeout = |place: &crate::snapshot::Service| place.http.as_ref().unwrap().response_timeout_ms;
    assert_eq!((response_timeout(a), response_timeout(c), response_timeout(e)), (1_200_000, 3_600_000, 120_000));
    assert_eq!((a.balance == c.balance, own.balance == a.balance), (false, true));
    assert_eq!(own.places_behind().len(), 4);
}

#[test]
fn filters_come_before_everything_else() {
    let stage = Stage::new(
        r#"
group = "one"
[service.http]
redirect_to_https = true
https_port = 4443
[[service.http.filter]]
action = "allow"
path = ["/ecp"]
from = ["198.51.100.0/24"]
[[service.http.filter]]
action = "deny"
path = ["/ecp"]
status = 404
[[service.http.filter]]
action = "deny"
parameter = "id"
except = "[0-9]{1,8}"
[[service.http.filter]]
action = "deny"
method = ["TRACE", "TRACK"]
"#,
    );
    let rows = [
        ("/ecp/x", "deny 404"),
        ("/%45cp", "deny 404"),
        ("/a/..%2fecp", "deny 404"),
        ("/x?id=7", "301 https://mail.example.org:4443/x?id=7"),
        ("/x?ID=7'--", "deny 403"),
        ("/x?id=1&id=a", "deny 403"),
        ("/x%", "bad path_escape"),
    ];
    for (target, goes) in rows {
        assert_eq!(stage.goes("mail.example.org:8080", target), goes, "{target}");
    }
    let inside = stage.decide(&get("/ecp", "Host: a\r\n"), "198.51.100.9");
    assert_eq!(inside, Verdict::Redirect { status: 301, location: "https://a:4443/ecp".into() });
    let post = stage.decide(&request("POST", "/x", "Host: a\r\n"), "198.51.100.9");
    assert_eq!(post, Verdict::Redirect { status: 308, location: "https://a:4443/x".into() });
    let trace = stage.decide(&request("TRACE", "/x", "Host: a\r\n"), "198.51.100.9");
    assert_eq!(trace, Verdict::Deny(403));
    let nowhere = stage.decide(&request("GET", "/x", "Host:\r\n"), "198.51.100.9");
    assert_eq!(nowhere, Verdict::BadRequest(BadRequest::HostMissing));
}

#[test]
fn maintenance_is_for_everybody_or_for_whom_nobody_serves() {
    let with = |when: &str| {
        let page = format!("maintenance = {{ file = \"page.html\", when = \"{when}\", retry_after = \"5m\" }}");
        Stage::new(&format!("group = \"one\"\n[service.http]\n{page}\n"))
    };
    let (always, without_server) = (with("always"), with("no-server"));
    assert_eq!(always.goes("a", "/"), "maintenance");
    assert_eq!(without_server.goes("a", "/"), "s1 s2");
    for stage in [always, without_server] {
        let page = stage.rules().page_without_server().expect("a page");
        assert_eq!((&*page.body, page.retry_after.as_deref()), (b"<p>soon".as_slice(), Some("300")));
    }
}

/// Segments of a path as a server resolves them, by a stack; `None` where it would not.
fn resolved(path: &str) -> Option<Vec<String>> {
    let mut plain = String::new();
    let mut rest = path.chars();
    while let Some(c) = rest.next() {
        plain.push(match c {
            '%' => char::from(u8::from_str_radix(rest.as_str().get(..2)?, 16).ok()?),
            c => c,
        });
        if c == '%' {
            rest.nth(1);
        }
    }
    let mut stack: Vec<String> = Vec::new();
    for segment in plain.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => drop(stack.pop()),
            segment => stack.push(segment.to_ascii_lowercase()),
        }
    }
    Some(stack)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn nothing_that_is_denied_is_served_by_another_name(path in r"(/|ecp|ECP|%65cp|%45%43p|\.\.|%2e|\.|%2f|%5C|x|ecpx){0,8}") {
        let stage = Stage::new("group = \"one\"\n[service.http]\n[[service.http.filter]]\naction = \"deny\"\npath = [\"/ecp\"]\n");
        let path = format!("/{path}");
        let is_ecp = resolved(&path).expect("every escape is one").first().is_some_and(|first| first == "ecp");
        let told = stage.goes("a", &path);
        prop_assert_eq!(told.as_str(), if is_ecp { "deny 403" } else { "s1 s2" });
    }

    /// Whatever a client says, it is judged, pinned and told of without end or panic, and what is made of it is a head again.
    #[test]
    fn any_request_is_judged(target in "/[!-~]{0,40}", host in "[a-z.:]{0,12}", field in "[ -~]{0,60}", cookie in "[ -~]{0,60}") {
        let text = format!(
            "{ROUTED}[[service.http.filter]]\naction = \"deny\"\nparameter = \"*\"\npattern = \"<\"\n\
             [[service.http.rewrite]]\nwhat = \"path\"\nmatch = \"/\"\nwith = \"/below\"\n"
        );
        let text = text.replacen("[service.http]", "persistence = { by = [\"cookie\", \"source-ip\"] }\n[service.http]", 1);
        let stage = Stage::new(&text);
        let fields = format!("Host: {host}\r\nUser-Agent: {field}\r\nX-Forwarded-For: {field}\r\nCookie: {cookie}\r\n");
        let bytes = format!("GET {target} HTTP/1.1\r\n{fields}\r\n");
        let limits = crate::http::HttpLimits { head_bytes_max: 32_768, body_bytes_max: 0 };
        let Ok(Some((_, head))) = RequestHead::read(bytes.as_bytes(), &limits) else { return Ok(()) };
        let verdict = stage.decide(&head, "203.0.113.1");
        if let Verdict::Redirect { location, .. } = &verdict {
            prop_assert!(location.starts_with("https://") && location.bytes().all(|byte| byte.is_ascii_graphic()));
        }
        let service = stage.service();
        let (_, after) = stage.asked(&head, "203.0.113.1", Scheme::Http);
        let server = service.targets[0].server;
        let edits = service.response_edits(&response(""), &after, server);
        prop_assert!(edits.fields.len() <= 2);
    }
}

#[test]
fn deny_rules_are_not_got_round_by_another_spelling() {
    let stage = Stage::new(
        "group = \"one\"\n[[service.http.filter]]\naction = \"deny\"\npath = [\"/ecp\"]\nstatus = 404\n\
         [[service.http.filter]]\naction = \"deny\"\nmethod = [\"TRACE\"]\nstatus = 405\n",
    );
    let denied = [
        "/ecp",
        "/ECP/x",
        "/%65cp",
        "//ecp",
        "/./ecp",
        "/x/../ecp",
        "/x/%2e%2e/ecp",
        "/%5cecp",
        "/x%5c..%5cecp",
        "/%2565cp",
        "/%ff/%252e%252e/%2565cp",
        "/%2565cp/%25",
        "/x/%252e%252e;/ecp",
        "/ecp;x",
        "/ecp%253bx",
        "/x/%252e%252e%253b/ecp",
        "/ecp;x=1/y",
        "/x/%252e%252e/ecp",
        "/x%252f..%252fecp",
        "/%255cecp",
    ];
    for path in denied {
        assert_eq!(stage.goes("a", path), "deny 404", "{path}");
    }
    for path in ["/x/..;/ecp", "/x/..;a=b/ecp", "/%u0065cp", "/ecp%00", "/%c", "/ecp%2500"] {
        assert_eq!(stage.goes("a", path), "bad path_escape", "{path}");
    }
    // Names like it, and a percent sign that is one.
    for path in ["/ecpx", "/x/ecp", "/100%25", "/100%25zz", "/ecpx;y", "/x;..;/y"] {
        assert_eq!(stage.goes("a", path), "s1 s2", "{path}");
    }
    for method in ["TRACE", "trace", "Trace"] {
        let head = request(method, "/", "Host: a\r\n");
        assert_eq!(stage.decide(&head, "203.0.113.1"), Verdict::Deny(405), "{method}");
    }
}

#[test]
fn nobody_is_led_to_a_place_without_a_name() {
    let stage = Stage::new(
        "group = \"one\"\n[[service.http.route]]\npath = [\"/a\"]\nredirect = \"https://{host}/b\"\n\
         [[service.http.route]]\npath = [\"/c\"]\nredirect = \"https://other.example{uri}\"\n",
    );
    assert_eq!(stage.goes("", "/a"), "bad host_missing");
    assert_eq!(stage.goes("mail:8080", "/a"), "302 https://mail/b");
    assert_eq!(stage.goes("", "/c"), "302 https://other.example/c");
}
