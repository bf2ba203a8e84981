use super::*;
use crate::balancer::BalancerState;
use crate::director::{Client, PickReason, Tried, learn, pick_pinned};
use crate::http::stage::{Stage, ip, response};
use crate::loads::PlainLoads;
use crate::persistence::{Known, PersistenceTable};
use crate::time::Now;

const ONE: &str = "203.0.113.1";
const OTHER: &str = "203.0.113.2";

fn stage(persistence: &str) -> Stage {
    Stage::new(&format!("group = \"one\"\npersistence = {{ {persistence} }}\n[service.http]\n"))
}

#[test]
fn a_client_is_known_by_what_its_requests_say() {
    let agent = |name: &str| format!("User-Agent: {name}\r\n");
    let basic = |name: &str| format!("Authorization: Basic {name}\r\n");
    let ntlm = |token: &str| format!("Authorization: NTLM {token}\r\n");
    // (rule, one request, another, whether they are the same client, whether the other has a pin)
    let rows = [
        ("by = \"header\"", basic("a"), basic("a"), true, true),
        ("by = \"header\"", basic("a"), basic("b"), false, true),
        ("by = \"header\"", basic("a"), String::new(), false, false),
        ("by = \"header\"", basic("a"), ntlm("x"), false, false),
        ("by = \"header\", header = \"X-User\"", "X-User: NTLM x\r\n".into(), "x-user: NTLM x\r\n".into(), true, true),
        ("by = \"super-http\"", agent("m") + &basic("a"), agent("m") + &basic("a"), true, true),
        ("by = \"super-http\"", agent("m") + &basic("a"), agent("m") + &basic("b"), false, true),
        ("by = \"super-http\"", agent("m"), agent("n"), false, true),
        ("by = \"super-http\"", agent("m") + &ntlm("x"), agent("m") + &ntlm("y"), true, true),
        ("by = \"super-http\"", agent("ab"), agent("a") + &basic("b"), false, true),
        ("by = \"super-http\"", agent("m"), String::new(), false, false),
        (
            "by = \"cookie\", cookie_mode = \"find\", cookie = \"S\"",
            "Cookie: S=1\r\n".into(),
            "Cookie: x=2; S=1\r\n".into(),
            true,
            true,
        ),
        (
            "by = \"cookie\", cookie_mode = \"find\", cookie = \"S\"",
            "Cookie: S=1\r\n".into(),
            "Cookie: S=\r\n".into(),
            false,
            false,
        ),
    ];
    for (rule, one, other, same, has_pin) in rows {
        let stage = stage(rule);
        let (one, other_pin) = (stage.pin(&one, ONE), stage.pin(&other, OTHER));
        assert!(matches!(one, Pin::Key(_)), "{rule}");
        assert_eq!(one == other_pin, same, "{rule} {other}");
        assert_eq!(other_pin != Pin::Nobody, has_pin, "{rule} {other}");
    }
}

#[test]
fn the_address_counts_where_the_rule_or_its_fallback_says_so() {
    let both = stage("by = \"super-http-and-source-ip\", ipv4_prefix = 24");
    let fields = "User-Agent: m\r\n";
    assert_eq!(both.pin(fields, ONE), both.pin(fields, OTHER));
    assert_ne!(both.pin(fields, ONE), both.pin(fields, "203.0.114.1"));
    let falls_back = stage("by = [\"header\", \"source-ip\"]");
    assert_eq!(falls_back.pin("", ONE), Pin::of_address(falls_back.service(), ip(ONE)));
    assert_ne!(falls_back.pin("", ONE), falls_back.pin("", OTHER));
    assert_eq!(falls_back.pin("Authorization: Basic x\r\n", ONE), falls_back.pin("Authorization: Basic x\r\n", OTHER));
    let cookie = stage("by = [\"cookie\", \"source-ip\"]");
    assert_eq!(cookie.pin("Cookie: SERVERID=forged\r\n", ONE), Pin::of_address(cookie.service(), ip(ONE)));
    let address = stage("by = \"source-ip\"");
    assert_eq!(address.pin(fields, ONE), Pin::of_address(address.service(), ip(ONE)));
}

#[test]
fn what_a_client_is_known_by_keeps_the_order_of_the_rule() {
    let stage =
        stage("by = [\"header\", \"cookie\", \"super-http\", \"source-ip\"], cookie_mode = \"find\", cookie = \"S\"");
    let known = |fields: &str| stage.known(&crate::http::stage::get("/", &format!("Host: a\r\n{fields}")), ONE);
    let keys = |fields: &str| known(fields).keys().count();
    assert_eq!([keys(""), keys("Cookie: S=1\r\n"), keys("User-Agent: m\r\nCookie: S=1\r\n")], [1, 2, 3]);
    assert_eq!(keys("Authorization: Basic x\r\nUser-Agent: m\r\nCookie: S=1\r\n"), 4);
    let first = |fields: &str| known(fields).decides(|_| true, |_| true);
    assert_eq!(first(""), Pin::of_address(stage.service(), ip(ONE)));
    assert_eq!(first("Cookie: S=1\r\n"), first("Cookie: S=1\r\nUser-Agent: m\r\n"), "the cookie goes before the agent");
    assert_ne!(first("Cookie: S=1\r\n"), first("Cookie: S=1\r\nAuthorization: Basic x\r\n"));
    let (key, server) = (Pin::of_address(stage.service(), ip(ONE)), Pin::Server(stage.service().targets[0].server));
    let by = |pins: [Pin; 2], takes: bool| Known::by(pins).decides(|_| true, |_| takes);
    assert_eq!([by([server, key], true), by([server, key], false)], [server, key], "what has gone leads nobody");
    assert_eq!(by([server, Pin::Nobody], false), server, "it is told that it was led elsewhere");
    assert_eq!(Known::NOTHING.decides(|_| true, |_| true), Pin::Nobody);
}

#[test]
fn a_cookie_of_the_server_is_learned_and_leads_back() {
    let stage = stage("by = \"cookie\", cookie_mode = \"find\", cookie = \"ASP.NET_SessionId\"");
    let service = stage.service();
    let (mut state, mut table) = (BalancerState::new(1), PersistenceTable::new(8, 1));
    let loads = PlainLoads::new(8, 8);
    let mut pick = |pin: Pin, table: &mut PersistenceTable| {
        let client = Client { address: ip(ONE), port: 443, pin };
        pick_pinned(service, &mut state, table, &loads, client, &Tried::new(), Now(0)).expect("a server")
    };
    let first = pick(stage.pin("", ONE), &mut table);
    assert_eq!((first.why, table.len()), (PickReason::Balanced, 0), "without the cookie nothing is remembered");
    let key = service.learns(&response("Set-Cookie: a=b\r\nSet-Cookie: ASP.NET_SessionId=q1; HttpOnly\r\n"));
    learn(service, &mut table, key.expect("it is set"), first.server, Now(0));
    for _ in 0..3 {
        let again = pick(stage.pin("Cookie: ASP.NET_SessionId=q1\r\n", OTHER), &mut table);
        assert_eq!((again.server, again.why), (first.server, PickReason::Persistent));
    }
    assert_eq!(service.learns(&response("Set-Cookie: ASP.NET_SessionId=; Max-Age=0\r\n")), None);
    assert_eq!(service.learns(&response("")), None);
    assert_eq!(stage.service().learns(&response("Set-Cookie: other=1\r\n")), None);
}

#[test]
fn a_named_server_serves_unless_it_cannot_and_nothing_is_remembered() {
    let stage = stage("by = \"cookie\"");
    let mut service = stage.service().clone();
    let (mut state, mut table) = (BalancerState::new(1), PersistenceTable::new(8, 1));
    let loads = PlainLoads::new(8, 8);
    let named = service.targets[1].server;
    let mut pick = |service: &Service| {
        let client = Client { address: ip(ONE), port: 443, pin: Pin::Server(named) };
        let pick =
            pick_pinned(service, &mut state, &mut table, &loads, client, &Tried::new(), Now(0)).expect("a server");
        assert!(table.is_empty());
        (pick.server == named, pick.why)
    };
    for _ in 0..3 {
        assert_eq!(pick(&service), (true, PickReason::Persistent));
    }
    service.targets[1].admin = towpath_config::model::AdminState::Drain;
    assert_eq!(pick(&service), (false, PickReason::Repinned));
    service.persistence.as_mut().expect("a rule").enter_draining = true;
    assert_eq!(pick(&service), (true, PickReason::Persistent));
    service.targets[1].health = crate::snapshot::ServerHealth::Down;
    assert_eq!(pick(&service), (false, PickReason::Repinned));
    assert_eq!(stage.pin("", ONE), Pin::Nobody);
}
