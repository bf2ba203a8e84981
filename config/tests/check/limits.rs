//! Nothing in a file makes the check work without end.

use std::fmt::Write;
use std::time::{Duration, Instant};

use towpath_config::{DIAGNOSTICS_MAX, FILE_BYTES_MAX, check, render};

use crate::{expect, service};

#[test]
fn a_file_over_the_limit_is_one_error() {
    let text = "#".repeat(FILE_BYTES_MAX + 1);
    let checked = check("large.toml", &text);
    assert_eq!(checked.diagnostics.iter().map(|diagnostic| diagnostic.code).collect::<Vec<_>>(), ["file-too-large"]);
    assert_ne!(check("large.toml", &text[1..]).diagnostics[0].code, "file-too-large");
}

#[test]
fn a_file_that_is_no_text_is_told_with_its_line() {
    let path = std::env::temp_dir().join(format!("towpath-config-{}.toml", std::process::id()));
    std::fs::write(&path, b"a = 1\nb = \"\xff\"\n").expect("writable");
    let error = towpath_config::read(&path).expect_err("not UTF-8");
    std::fs::write(&path, "é".repeat(FILE_BYTES_MAX)).expect("writable");
    let long = towpath_config::read(&path).expect("as much as is needed to see that it is too long");
    std::fs::remove_file(&path).expect("there");
    assert_eq!(error.to_string(), "line 2 is not UTF-8 text; save the file as UTF-8");
    assert_eq!(long.len(), FILE_BYTES_MAX + 1);
    assert_eq!(check("long.toml", &long).diagnostics[0].code, "file-too-large");
}

#[test]
fn only_so_many_diagnostics_are_told_and_the_rest_counted() {
    let mut text = service("", "");
    for index in 0..300 {
        writeln!(text, "key{index} = 1").expect("writes to a string");
    }
    let checked = check("many.toml", &text);
    assert_eq!(checked.diagnostics.len(), DIAGNOSTICS_MAX + 1);
    let last = checked.diagnostics.last().expect("not empty");
    assert_eq!((last.code, last.message.as_str()), ("and-more", "and 100 more: 100 errors, 0 warnings"));
    assert!(checked.model.is_none());
}

#[test]
fn errors_and_what_is_not_available_are_told_before_other_warnings() {
    let mut text = String::new();
    for index in 0..300 {
        writeln!(text, "[[service]]\nname = \"s{index}\"\nvip = \"192.0.2.10\"\nports = {}", 10_000 + index)
            .expect("writes");
        writeln!(text, "[[service.server]]\nname = \"one\"\naddress = \"192.0.2.21\"\nweight = 0").expect("writes");
    }
    text.push_str("[[service]]\nname = \"last\"\nvip = \"192.0.2.11\"\nports = 1\ntemplate = \"lync\"\n");
    text.push_str("[[service.server]]\nname = \"one\"\naddress = \"192.0.2.21\"\n");
    let checked = check("warnings.toml", &text);
    assert!(checked.model.is_some(), "warnings only");
    assert_eq!(checked.unavailable().count(), 1);
    assert_eq!(
        checked.diagnostics.last().map(|last| last.message.as_str()),
        Some("and 101 more: 0 errors, 101 warnings")
    );
}

#[test]
fn services_servers_and_ports_are_bounded() {
    let one = |index: usize| {
        format!(
            "[[service]]\nname = \"s{index}\"\nvip = \"10.0.{}.{}\"\nports = 80\n[[service.server]]\nname = \"a\"\naddress = \"10.1.0.1\"\n",
            index / 250,
            index % 250 + 1
        )
    };
    let text: String = (0..1024).map(one).collect();
    expect(&text, &[]);
    let checked = check("services.toml", &format!("{text}{}", one(1024)));
    assert_eq!(checked.diagnostics.iter().map(|diagnostic| diagnostic.code).collect::<Vec<_>>(), ["too-many"]);

    let servers = |count: usize| -> String {
        let each = |index: usize| {
            format!("[[service.server]]\nname = \"s{index}\"\naddress = \"10.1.{}.{}\"\n", index / 250, index % 250 + 1)
        };
        "[[service]]\nname = \"web\"\nvip = \"10.0.0.1\"\nports = 80\n".to_owned()
            + &(0..count).map(each).collect::<String>()
    };
    expect(&servers(256), &[]);
    expect(&servers(257), &[("too-many", "[[service.server]]")]);

    expect(&service("ports = \"10000-11023\"", ""), &[]);
    expect(&service("ports = \"10000-11024\"", ""), &[("too-many", "\"10000-11024\"")]);
    expect(&service("plane = \"packet\"\nsource = \"vip\"\nports = \"10000-59999\"", ""), &[]);

    let wide: String = (0..9).map(|index| one(index).replace("ports = 80", "ports = \"10000-11023\"")).collect();
    expect(&wide, &[("too-many", "\"10000-11023\"")]);
}

#[test]
fn a_megabyte_of_anything_is_judged_in_time() {
    let fill = |part: &str| part.repeat(FILE_BYTES_MAX / part.len());
    let names: String = (0..1000).map(|index| format!("[[group]]\nname = \"{index:064}\"\n")).collect();
    let users: String = (0..1000).map(|index| format!("[[service]]\ngroup = \"{index:063}x\"\n")).collect();
    let mut keys = String::new();
    while keys.len() < FILE_BYTES_MAX - 20 {
        let _ = writeln!(keys, "k{} = 1", keys.len());
    }
    let files = [
        fill("["),
        fill("a."),
        fill("a=[[{"),
        fill("[[service]]\n"),
        fill("[[service.server]]\n"),
        fill("[[service.http.login.x]]\n"),
        fill("a=1\n"),
        fill("\"\"\"\n"),
        fill("é"),
        format!(
            "[[service]]\nports = [{}]",
            fill("443,").trim_end_matches(',').get(..FILE_BYTES_MAX - 40).unwrap_or("")
        ),
        format!("x = \"{}\"", "y".repeat(FILE_BYTES_MAX - 10)),
        format!("{} = 1", "y".repeat(FILE_BYTES_MAX - 10)),
        names + &users,
        keys,
    ];
    for text in files {
        assert!(text.len() <= FILE_BYTES_MAX);
        let begin = Instant::now();
        let checked = check("hostile.toml", &text);
        let shown = render(&checked.diagnostics, "hostile.toml", &text, false);
        let took = begin.elapsed();
        assert!(checked.model.is_none());
        // Seconds on a busy machine; without limits it would be hours.
        assert!(took < Duration::from_secs(20), "{took:?} for {}...", &text.chars().take(40).collect::<String>());
        assert!(
            shown.len() < 8 * FILE_BYTES_MAX,
            "{} bytes for {}...",
            shown.len(),
            &text.chars().take(40).collect::<String>()
        );
    }
}
