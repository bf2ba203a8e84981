//! Answers of servers, in one piece and octet by octet.

use towpath_config::model::{MessageAuthenticator, RadiusAnswer, RadiusCheck, UdpCheck};

use super::*;

const TO: ([u8; 4], u16) = ([192, 0, 2, 31], 8080);

fn parties(secrets: &Secrets) -> Parties<'_> {
    Parties { from: ([192, 0, 2, 1], 61_000).into(), to: TO.into(), seed: 1, secrets }
}

fn http(get: bool, expect: Option<&str>) -> CheckKind {
    CheckKind::Http(HttpCheck {
        get,
        path: "/owa/healthcheck.htm".to_owned(),
        host: None,
        statuses: vec![(200, 399), (401, 401)],
        expect: expect.map(str::to_owned),
    })
}

fn smtp(expect: Option<&str>) -> CheckKind {
    CheckKind::Smtp { expect: expect.map(str::to_owned) }
}

/// The course of a check that gets these bytes, so many at a time, and then the end; and all that it has sent.
fn check(kind: &CheckKind, answer: &str, at_a_time: usize) -> (Course, String) {
    let mut send = Vec::new();
    let (mut conversation, mut course) = Conversation::begin(kind, &parties(&Secrets::default()), &mut send);
    for bytes in answer.as_bytes().chunks(at_a_time) {
        if course == Course::More {
            course = conversation.received(bytes, &mut send);
        }
    }
    if course == Course::More {
        course = conversation.ended(ServerEnd::Orderly);
    }
    (course, String::from_utf8(send).expect("text"))
}

#[track_caller]
fn expect(kind: &CheckKind, answer: &str, wanted: Result<(), &str>) {
    for at_a_time in [1, 2, 7, answer.len().max(1)] {
        let (course, _) = check(kind, answer, at_a_time);
        let course = match course {
            Course::Passed => None,
            Course::Failed(reason) => Some(reason),
            Course::More => unreachable!("it has ended"),
        };
        assert_eq!(course.as_deref(), wanted.err(), "{at_a_time} octets at a time");
    }
}

#[test]
fn the_request_is_one_of_its_own_connection() {
    let (_, sent) = check(&http(true, None), "", 1);
    let mut lines = sent.lines();
    assert_eq!(lines.next(), Some("GET /owa/healthcheck.htm HTTP/1.1"));
    assert!(sent.contains("Host: 192.0.2.31:8080\r\n"), "{sent}");
    assert!(sent.ends_with("\r\n\r\n"));
    let CheckKind::Http(mut named) = http(false, None) else { unreachable!() };
    named.host = Some("mail.example.org".to_owned());
    let (_, sent) = check(&CheckKind::Http(named.clone()), "", 1);
    assert!(sent.starts_with("HEAD ") && sent.contains("Host: mail.example.org:8080\r\n"), "{sent}");
    let mut send = Vec::new();
    let secrets = Secrets::default();
    let usual = Parties { to: (TO.0, 80).into(), ..parties(&secrets) };
    Conversation::begin(&CheckKind::Http(named), &usual, &mut send);
    assert!(String::from_utf8(send).expect("text").contains("Host: mail.example.org\r\n"));
}

#[test]
fn the_status_decides_and_the_body_if_a_text_is_expected() {
    let plain = http(true, None);
    expect(&plain, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", Ok(()));
    expect(&plain, "HTTP/1.0 401 Go away\r\n\r\n", Ok(()));
    expect(&plain, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n", Ok(()));
    let down = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
    expect(&plain, down, Err("status 503, expected 200-399,401"));
    expect(&plain, "", Err("closed the connection without a response"));
    expect(&plain, "HTTP/1.1 200 OK\r\nContent-", Err("closed the connection without a response"));
    expect(&http(false, None), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Ok(()));
    let text = http(true, Some("200 OK"));
    expect(&text, "HTTP/1.1 200 Fine\r\nContent-Length: 10\r\n\r\n<p>200 OK<", Ok(()));
    expect(&text, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<p>", Err("\"200 OK\" is not in the body"));
    expect(&text, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n200 \r\n2\r\nOK\r\n0\r\n\r\n", Ok(()));
    expect(&text, "HTTP/1.0 200 OK\r\n\r\nso it is: 200 OK", Ok(()));
    expect(&text, "HTTP/1.0 200 OK\r\n\r\nnothing", Err("\"200 OK\" is not in the body"));
    expect(&text, "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n<p>", Err("the body ends too early"));
    let (course, _) = check(&text, &format!("HTTP/1.0 200 OK\r\n\r\n{}200 OK", "x".repeat(BODY_BYTES_MAX)), 1000);
    assert_eq!(course, Course::Failed("\"200 OK\" is not in the first 65536 bytes of the body".to_owned()));
}

#[test]
fn what_is_no_response_fails_with_its_reason() {
    for answer in
        ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", "HTTP/1.1 200 OK\r\nA b: c\r\n\r\n"]
    {
        let (Course::Failed(reason), _) = check(&http(true, None), answer, 1000) else { panic!("{answer}") };
        assert!(reason.starts_with("the response is refused: "), "{reason}");
    }
}

#[test]
fn an_smtp_server_greets_answers_and_is_left_in_good_order() {
    let whole = "220-mail.example.org\r\n220 ESMTP ready\r\n250-mail.example.org\r\n250-SIZE 1000\r\n250 OK\r\n";
    expect(&smtp(None), whole, Ok(()));
    expect(&smtp(Some("ESMTP")), whole, Ok(()));
    expect(&smtp(Some("Exchange")), whole, Err("\"Exchange\" is not in the greeting"));
    let (_, sent) = check(&smtp(None), whole, 3);
    assert_eq!(sent, "EHLO towpath\r\nQUIT\r\n");
    expect(&smtp(None), "554 No service\r\n", Err("answers the connection with \"554 No service\""));
    expect(&smtp(None), "220 ready\r\n502 What?\r\n", Err("answers EHLO with \"502 What?\""));
    expect(&smtp(None), "220-", Err("closed the connection before it greeted"));
    expect(&smtp(None), "220 ready\r\n", Err("closed the connection before its answer to EHLO"));
    let (course, _) = check(&smtp(None), &"2".repeat(REPLY_BYTES_MAX), 1000);
    assert_eq!(course, Course::Failed("a reply longer than 16384 bytes".to_owned()));
}

#[test]
fn what_a_server_says_is_shown_in_one_short_line() {
    assert_eq!(shown(b"ready\x1b[2J\r\nnow\xff"), "ready.[2J..now\u{fffd}");
    assert_eq!(shown(&[b'x'; 81]), format!("{}…", "x".repeat(80)));
    expect(&smtp(None), "554 \x1b]0;gone\x07\r\n", Err("answers the connection with \"554 .]0;gone.\""));
}

#[test]
fn datagrams_are_sent_again_and_streams_are_not() {
    let begin = |kind: &CheckKind| Conversation::begin(kind, &parties(&Secrets::default()), &mut Vec::new()).0;
    let waits = |kind: &CheckKind| (0..6).map(|times| begin(kind).repeat_after_ms(times)).collect::<Vec<_>>();
    let doubling = [500, 1_000, 2_000, 4_000, 8_000, 8_000].map(Some);
    assert_eq!(waits(&CheckKind::Ping), doubling);
    assert_eq!(begin(&CheckKind::Ping).repeat_after_ms(u32::MAX), Some(8_000));
    let radius = |user: Option<&str>| {
        CheckKind::Radius(RadiusCheck {
            secret_file: "/secret".into(),
            user: user.map(str::to_owned),
            password_file: None,
            expect: RadiusAnswer::Accept,
            message_authenticator: MessageAuthenticator::Required,
        })
    };
    assert_eq!(waits(&radius(Some("nemo")))[..3], [Some(2_000), Some(4_000), Some(8_000)]);
    assert_eq!(waits(&radius(None)), [None; 6], "the next check asks anew");
    assert_eq!(waits(&smtp(None)), [None; 6]);
    let udp = |silence_passes| CheckKind::Udp(UdpCheck { send: Vec::new(), expect: None, silence_passes });
    assert!(begin(&udp(true)).passes_in_silence() && !begin(&udp(false)).passes_in_silence());
    assert!(!begin(&CheckKind::Ping).passes_in_silence());
}

#[test]
fn a_datagram_is_searched_for_what_is_expected() {
    let kind = |expect: Option<&[u8]>| {
        let check = UdpCheck { send: b"ping".to_vec(), expect: expect.map(<[u8]>::to_vec), silence_passes: false };
        CheckKind::Udp(check)
    };
    let answered = |kind: &CheckKind, answer: &[u8]| {
        let mut send = Vec::new();
        let (mut conversation, course) = Conversation::begin(kind, &parties(&Secrets::default()), &mut send);
        assert_eq!((course, &*send), (Course::More, &b"ping"[..]));
        conversation.received(answer, &mut send)
    };
    assert_eq!(answered(&kind(None), b""), Course::Passed);
    assert_eq!(answered(&kind(Some(b"\xffpong")), b"a\xffpong."), Course::Passed);
    let wrong = Course::Failed("answers \"pon\", without \"pong\"".to_owned());
    assert_eq!(answered(&kind(Some(b"pong")), b"pon"), wrong);
}
