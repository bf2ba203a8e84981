#![allow(clippy::unwrap_used)]

use towpath_core::admin::{Configured, Order, Then};

use super::*;

const UNIX_MS: u64 = 1_700_000_000_000;
const READY: Configured = Configured { admin: AdminState::Ready, weight: 100 };

fn member(last: u8, port: Option<u16>) -> Member {
    Member { service: "front end".into(), address: [192, 0, 2, last].into(), port }
}

fn said() -> Said {
    Said { unix_ms: UNIX_MS, by: "root (uid 0)".into(), reason: "größer \"patch\" day".into() }
}

fn words() -> AdminWords {
    let mut words = AdminWords::new();
    let drain = |deadline_ms, until, then| Order::Drain { deadline_ms, until, then };
    words.say(&member(1, None), READY, Order::Halt, said(), Now(5_000));
    words.say(&member(1, None), READY, Order::Weight(Some(0)), said(), Now(5_000));
    words.say(&member(2, Some(443)), READY, drain(Some(60_000), 5, Then::Halt), said(), Now(5_000));
    words.say(&member(3, None), READY, drain(None, 0, Then::Stay), said(), Now(5_000));
    words.say(&member(4, None), READY, drain(Some(1), 0, Then::Halt), said(), Now(5_000));
    let ended = words.turn(Now(6_000), UNIX_MS + 1, |_| Some(9));
    assert_eq!(ended.len(), 1, "the fourth is over");
    words.say(&member(5, None), Configured { admin: AdminState::Drain, weight: 7 }, Order::Ready, said(), Now(5_000));
    words
}

/// With all deadlines so much earlier.
fn earlier(words: &AdminWords, ms: u64) -> AdminWords {
    let mut moved = AdminWords::new();
    for (member, words) in words.iter() {
        let mut words = words.clone();
        if let Some(deadline) =
            words.admin.as_mut().and_then(|word| word.drain.as_mut()).and_then(|drain| drain.deadline.as_mut())
        {
            *deadline = *deadline - ms;
        }
        moved.restore(member.clone(), words);
    }
    moved
}

#[test]
fn what_is_written_is_read_and_deadlines_stay_where_they_are_in_the_calendar() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deeper").join("control.state");
    write(&path, &render(&words(), Now(10_000), UNIX_MS).unwrap()).unwrap();
    // Read 20 s later, by a process that has just started.
    let found = read(&path, UNIX_MS + 20_000);
    assert_eq!(found.trouble, None);
    assert_eq!(found.words, earlier(&words(), 30_000));
    let deadline = found.words.of(&member(2, Some(443))).unwrap().admin.as_ref().unwrap().drain.unwrap().deadline;
    assert_eq!(deadline, Some(Now(35_000)));
    // A day later it has passed.
    let mut late = read(&path, UNIX_MS + 86_400_000).words;
    assert_eq!(late.turn(Now(0), UNIX_MS, |_| None).len(), 1);
}

#[test]
fn a_file_that_is_not_there_says_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let found = read(&directory.path().join("control.state"), UNIX_MS);
    assert!(found.words.is_empty() && found.trouble.is_none());
}

#[test]
fn a_damaged_file_is_set_aside_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.state");
    let good = String::from_utf8(render(&words(), Now(0), UNIX_MS).unwrap()).unwrap();
    let damaged = [
        String::new(),
        "[]".to_owned(),
        good[..good.len() / 2].to_owned(),
        good.replace("\"version\": 1", "\"version\": 2"),
        good.replace("\"halt\"", "\"holt\""),
        good.replace("192.0.2.1", "192.0.2.256"),
        // Of these two each half alone would do.
        good.replace("\"state\": \"drain\"", "\"state\": \"ready\""),
        "\0".repeat(100),
        " ".repeat(FILE_BYTES_MAX as usize + 1),
    ];
    for text in damaged {
        fs::write(&path, &text).unwrap();
        let found = read(&path, UNIX_MS);
        let trouble = found.trouble.unwrap_or_else(|| panic!("taken: {text:.80}"));
        assert!(trouble.contains("set aside as") && found.words.is_empty(), "{trouble}");
        assert!(!path.exists());
        assert_eq!(fs::read_to_string(beside(&path, ".broken")).unwrap(), text, "nothing of it is lost");
    }
}

#[test]
fn what_is_no_file_is_set_aside_and_a_link_beside_it_leads_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.state");
    fs::create_dir(&path).unwrap();
    assert!(read(&path, UNIX_MS).trouble.unwrap().contains("no regular file"));
    let precious = directory.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    std::os::unix::fs::symlink(&precious, beside(&path, ".new")).unwrap();
    write(&path, &render(&words(), Now(0), UNIX_MS).unwrap()).unwrap();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(read(&path, UNIX_MS).trouble.is_none());
}

#[test]
fn more_than_would_be_read_is_not_written() {
    let mut words = AdminWords::new();
    let reason = "\u{1}".repeat(256);
    for number in 0..50_000u32 {
        let member = Member { service: "s".into(), address: std::net::Ipv4Addr::from(number).into(), port: None };
        words.say(&member, READY, Order::Halt, Said { reason: reason.clone(), ..said() }, Now(0));
    }
    assert!(render(&words, Now(0), UNIX_MS).unwrap_err().contains("give shorter reasons"));
}

#[test]
fn what_somebody_has_edited_is_bounded() {
    let text = String::from_utf8(render(&words(), Now(0), UNIX_MS).unwrap()).unwrap();
    let edited = text.replace("root (uid 0)", &("ö".repeat(200) + "\\n"));
    let words = parse(edited.as_bytes(), UNIX_MS, Now(0)).unwrap();
    let by = &words.of(&member(3, None)).unwrap().admin.as_ref().unwrap().said.by;
    assert_eq!(*by, "ö".repeat(128), "256 bytes");
}

#[test]
fn a_write_that_fails_leaves_the_file_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.state");
    write(&path, b"before").unwrap();
    // What is written first is not to be had.
    fs::create_dir(beside(&path, ".new")).unwrap();
    assert!(write(&path, b"after").is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");
}

#[test]
fn who_was_active_before_the_machine_crashed_waits_for_a_new_word() {
    let said = Said { unix_ms: UNIX_MS, by: "user root".into(), reason: "keepalived".into() };
    for (role, survives) in [(MachineRole::Active, false), (MachineRole::Standby, true)] {
        let mut words = AdminWords::new();
        let over = if role == MachineRole::Active { Some(MachineRole::Standby) } else { None };
        words.restore_role(RoleWord { role, over, said: said.clone() });
        let text = render(&words, Now(0), UNIX_MS).unwrap();
        assert_eq!(
            parse(&text, UNIX_MS, Now(0)).unwrap().role_word(),
            words.role_word(),
            "{role:?}: a restart of the process"
        );
        let other = String::from_utf8(text).unwrap().replace(&boot(), "another start");
        assert_eq!(parse(other.as_bytes(), UNIX_MS, Now(0)).unwrap().role_word().is_some(), survives, "{role:?}");
    }
}
