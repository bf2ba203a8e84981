#![allow(clippy::unwrap_used)]

use super::*;

fn body(text: &str) -> Result<OrderBody, serde_json::Error> {
    serde_json::from_str(text)
}

fn order(verb: &str, text: &str) -> Result<Order, String> {
    order_of(verb, &body(text).unwrap()).map_err(|error| error.to_string())
}

#[test]
fn an_order_is_its_verb_and_what_goes_with_it() {
    let drain = |deadline_ms, until, then| Ok(Order::Drain { deadline_ms, until, then });
    let cases = [
        ("ready", "{}", Ok(Order::Ready)),
        ("halt", r#"{"reason":"größer"}"#, Ok(Order::Halt)),
        ("drain", "{}", drain(None, 0, Then::Stay)),
        ("drain", r#"{"until":5}"#, drain(None, 5, Then::Stay)),
        ("drain", r#"{"deadline_ms":0}"#, drain(Some(0), 0, Then::Halt)),
        ("drain", r#"{"deadline_ms":60000,"then":"stay"}"#, drain(Some(60_000), 0, Then::Stay)),
        ("drain", r#"{"until":1,"then":"halt","dry_run":true}"#, drain(None, 1, Then::Halt)),
        ("weight", r#"{"weight":0}"#, Ok(Order::Weight(Some(0)))),
        ("weight", r#"{"weight":"configured"}"#, Ok(Order::Weight(None))),
    ];
    for (verb, text, expected) in cases {
        assert_eq!(order(verb, text), expected, "{verb} {text}");
    }
}

#[test]
fn what_means_nothing_is_refused_with_the_reason() {
    let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(ADMIN_REASON_BYTES_MAX + 1));
    for (verb, text, expected) in [
        ("halt", r#"{"deadline_ms":5}"#, "`deadline_ms` is for `drain`"),
        ("ready", r#"{"until":5}"#, "`until` is for `drain`"),
        ("weight", r#"{"weight":5,"then":"halt"}"#, "`then` is for `drain`"),
        ("drain", r#"{"weight":5}"#, "`weight` is for `weight`"),
        ("weight", "{}", "`weight` is missing"),
        ("drain", r#"{"deadline_ms":2592000001}"#, "30 days"),
        ("halt", r#"{"reason":"a\nb"}"#, "control characters"),
        ("halt", &long, "at most 256 bytes"),
    ] {
        let error = order(verb, text).unwrap_err();
        assert!(error.contains(expected), "{verb} {text}: {error}");
    }
    for text in [
        "",
        r#"{"deadline":5}"#,
        r#"{"deadline_ms":-1}"#,
        r#"{"until":4294967296}"#,
        r#"{"weight":65536}"#,
        r#"{"weight":"other"}"#,
        r#"{"then":"stop"}"#,
        r#"{"dry_run":1}"#,
    ] {
        assert!(body(text).is_err(), "{text}");
    }
}

#[test]
fn a_server_is_named_by_its_name_its_address_or_its_socket() {
    let member = |address: &str, port| Member { service: "web".into(), address: address.parse().unwrap(), port };
    let fixed = member("192.0.2.1", Some(8443));
    let six = member("2001:db8::1", Some(443));
    let free = member("192.0.2.1", None);
    for (member, wanted, expected) in [
        (&fixed, "FE-1", true),
        (&fixed, "fe-1", false),
        (&fixed, "192.0.2.1", true),
        (&fixed, "192.0.2.1:8443", true),
        (&fixed, "192.0.2.1:443", false),
        (&fixed, "192.0.2.2", false),
        (&six, "2001:0db8::0001", true),
        (&six, "[2001:db8::1]:443", true),
        (&free, "192.0.2.1", true),
        (&free, "192.0.2.1:443", false),
        (&free, "", false),
    ] {
        assert_eq!(is_named(member, "FE-1", wanted), expected, "{member:?} {wanted}");
    }
}

#[test]
fn a_refusal_names_what_there_is() {
    let names = |count: usize| (0..count).map(|n| format!("s{n}")).collect::<Vec<_>>();
    assert_eq!(there(&names(0)), "is none");
    assert_eq!(there(&names(2)), "are s0, s1");
    assert_eq!(there(&names(10)), "are s0, s1, s2, s3, s4, s5, s6, s7 and 2 more");
}
