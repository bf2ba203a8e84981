//! What a failing server takes away, and who takes over: values that are wrong, and keys that mean nothing where they stand.

use towpath_config::check;

use crate::{expect, service};

#[test]
fn wrong_values_are_told_at_their_place() {
    let rows: &[(&str, &str, &str, &str)] = &[
        ("panic_threshold = 101", "", "out-of-range", "101"),
        ("panic_threshold = -1", "", "out-of-range", "-1"),
        ("panic_threshold = \"50%\"", "", "wrong-type", "\"50%\""),
        ("slow_start = \"2h\"", "", "out-of-range", "\"2h\""),
        ("slow_start = \"soon\"", "", "wrong-unit", "\"soon\""),
        ("", "backup = 1", "wrong-type", "1"),
        ("health = { check = \"tcp\", evict = \"farm\" }", "", "unknown-word", "\"farm\""),
        ("health = { check = \"tcp\", flaps = 101 }", "", "out-of-range", "101"),
        ("health = { check = \"tcp\", flap_window = \"500ms\" }", "", "out-of-range", "\"500ms\""),
        ("health = { check = \"tcp\", flap_hold = \"2d\" }", "", "out-of-range", "\"2d\""),
        ("health = { check = \"tcp\", passive = true }", "", "wrong-type", "true"),
        ("health = { check = \"tcp\", passive = { connect_failures = 101 } }", "", "out-of-range", "101"),
        ("health = { check = \"tcp\", passive = { at_least = 0 } }", "", "out-of-range", "0"),
        ("health = { check = \"tcp\", passive = { window = \"500ms\" } }", "", "out-of-range", "\"500ms\""),
        ("health = { check = \"tcp\", passive = { hold = 0 } }", "", "out-of-range", "0"),
        ("health = { check = \"tcp\", passive = { errors = 5 } }", "", "unknown-key", "errors"),
    ];
    for (lines, server, code, place) in rows {
        expect(&service(lines, server), &[(code, place)]);
    }
}

#[test]
fn what_means_nothing_where_it_stands_is_told() {
    let passive = |keys: &str| format!("health = {{ check = \"tcp\", passive = {{ {keys} }} }}");
    let rows: &[(&str, &str, &str, &str)] = &[
        ("health = { check = \"tcp\", evict = \"group\" }", "", "conflicting-keys", "\"group\""),
        ("health = { check = \"tcp\", evict = \"port\", ports = [443, 80] }", "", "conflicting-keys", "80"),
        ("health = { check = \"ping\", evict = \"port\" }", "", "conflicting-keys", "\"port\""),
        ("ports = \"80-443\"\nhealth = { check = \"tcp\", evict = \"port\" }", "", "too-many", "\"port\""),
        ("health = { check = \"none\", evict = \"server\" }", "", "no-effect", "evict"),
        ("health = { check = \"none\", flaps = 3 }", "", "no-effect", "flaps"),
        ("health = { check = \"tcp\", flaps = 0, flap_hold = \"1s\" }", "", "no-effect", "flap_hold"),
        ("health = { check = \"none\", passive = {} }", "", "conflicting-keys", "{}"),
        (&passive("server_errors = 20"), "", "needs-http", "20"),
        (&passive("connect_failures = 0"), "", "conflicting-keys", "{ connect_failures = 0 }"),
        ("protocol = \"udp\"\nhealth = { check = \"tcp\", ports = 80, passive = {} }", "", "conflicting-keys", "{}"),
        (
            "plane = \"packet\"\nforwarding = \"dsr\"\nhealth = { check = \"tcp\", passive = {} }",
            "",
            "conflicting-keys",
            "{}",
        ),
        ("panic_threshold = 50", "", "no-effect", "panic_threshold"),
        ("balance = \"maglev\"\nslow_start = \"30s\"", "", "conflicting-keys", "\"30s\""),
        ("balance = \"source-hash\"\nslow_start = \"30s\"", "", "conflicting-keys", "\"30s\""),
        ("", "backup = true", "no-effect", "backup"),
    ];
    for (lines, server, code, place) in rows {
        expect(&service(lines, server), &[(code, place)]);
    }
}

#[test]
fn what_goes_together_is_told_of_by_nothing() {
    let rows = [
        ("health = { check = \"tcp\", evict = \"server\" }\npanic_threshold = 50\nslow_start = \"30s\"", ""),
        ("health = { check = \"tcp\", evict = \"port\" }", ""),
        ("ports = [80, 443]\nhealth = { check = \"tcp\", evict = \"port\", ports = 443 }", ""),
        ("health = { check = \"tcp\", evict = \"port\" }", "port = 8443"),
        ("health = { check = \"tcp\", passive = {} }", ""),
        (
            "ports = 80\nhttp = {}\nhealth = { check = \"tcp\", passive = { connect_failures = 0, server_errors = 20 } }",
            "",
        ),
        ("", "[[service.server]]\nname = \"two\"\naddress = \"192.0.2.22\"\nbackup = true"),
    ];
    for (lines, server) in rows {
        expect(&service(lines, server), &[]);
    }
}

#[test]
fn hints_say_what_to_do() {
    let hint = |lines: &str| check("test.toml", &service(lines, "")).diagnostics[0].hint.clone().unwrap_or_default();
    assert_eq!(
        hint("health = { check = \"tcp\", evict = \"group\" }"),
        "use `evict = \"service\"`, or `\"server\"` for every service that has one with this address"
    );
    assert_eq!(
        hint("health = { check = \"tcp\", evict = \"port\", ports = [443, 80] }"),
        "remove the port, or use `evict = \"service\"`"
    );
    assert_eq!(
        hint("balance = \"maglev\"\nslow_start = \"30s\""),
        "remove it, or use `balance = \"weighted-least-connections\"`"
    );
}
