use std::sync::Arc;

use towpath_config::model::Balance;

use super::*;
use crate::access::{Answered, Load, Phase, Texts, Timers, Tls};
use crate::counters::Termination;
use crate::fixtures::{service, target};
use crate::ids::RealServerId;
use crate::time::Now;

/// 22 November 2026, 11:02:03.
const ORIGIN_UNIX_MS: u64 = 1_795_345_323_000;

fn record() -> Record {
    let mut own = service(Balance::LeastConnections, vec![target(1), target(2)]);
    own.name = "front end".into();
    own.group = "pool".into();
    let own = Arc::new(own);
    Record {
        began: Now(45),
        client: "198.51.100.7:40123".parse().unwrap(),
        proxy: None,
        vip: "192.0.2.250:443".parse().unwrap(),
        server: Some((Arc::clone(&own), RealServerId(2))),
        service: own,
        timers: Timers {
            handshake_ms: Some(9),
            request_ms: Some(1),
            wait_ms: Some(0),
            connect_ms: Some(2),
            response_ms: Some(30),
            data_ms: Some(4),
            total_ms: 37,
        },
        bytes_from_client: 321,
        bytes_to_client: 12_345,
        termination: Termination::KeepAliveEnded,
        phase: Phase::Data,
        answer: Answered::ByServer,
        redispatches: 1,
        load: Load { process: 12, service: 7, server: 3 },
        tls: Some(Tls { version: "TLSv1.3", cipher: "TLS13_AES_128_GCM_SHA256", is_resumed: false }),
        request: Some(Request { status: 200, head_bytes: 345, is_read: true, version: (1, 1) }),
        texts: Texts::keep([
            Some(b"GET"),
            Some(b"/owa/?user=anna&x=\"\n"),
            Some(b"mail.example.org"),
            Some(b"https://u:p@other.example.org/from?token=1"),
            Some(b"Mozilla/5.0 (\"x\") \xe9"),
            Some(b"mail.example.org"),
        ]),
    }
}

fn connection() -> Record {
    Record {
        timers: Timers {
            wait_ms: Some(0),
            connect_ms: Some(2),
            data_ms: Some(100),
            total_ms: 102,
            ..Timers::default()
        },
        termination: Termination::ServerReset,
        tls: None,
        request: None,
        texts: Texts::default(),
        ..record()
    }
}

fn shown(record: &Record, format: LogFormat) -> String {
    let mut out = b"before ".to_vec();
    line(record, &Shown { format, query: LoggedQuery::Names, origin_unix_ms: ORIGIN_UNIX_MS }, &mut out);
    String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_owned()
}

#[test]
fn a_request_reads_as_in_haproxy() {
    assert_eq!(
        shown(&record(), LogFormat::Haproxy),
        "198.51.100.7:40123 [22/Nov/2026:11:02:03.045] front#20end~ pool/FE-2 1/0/2/30/37 200 12345 - - ---- 12/7/7/3/1 0/0 \
         \"GET /owa/?user=*&x=* HTTP/1.1\""
    );
    let unread = Record {
        server: None,
        timers: Timers { total_ms: 15_000, ..Timers::default() },
        termination: Termination::HeadTimedOut,
        request: Some(Request { status: 408, ..Request::default() }),
        tls: None,
        ..record()
    };
    assert_eq!(
        shown(&unread, LogFormat::Haproxy),
        "198.51.100.7:40123 [22/Nov/2026:11:02:03.045] front#20end pool/<NOSRV> -1/-1/-1/-1/15000 408 12345 - - cR-- 12/7/7/3/1 0/0 \
         \"<BADREQ>\""
    );
}

#[test]
fn a_connection_reads_as_in_haproxy() {
    assert_eq!(
        shown(&connection(), LogFormat::Haproxy),
        "198.51.100.7:40123 [22/Nov/2026:11:02:03.045] front#20end pool/FE-2 0/2/102 12345 SD 12/7/7/3/1 0/0"
    );
    let refused = Record {
        client: "[2001:db8::1]:1".parse().unwrap(),
        server: None,
        termination: Termination::NoServer,
        timers: Timers::default(),
        ..connection()
    };
    assert_eq!(
        shown(&refused, LogFormat::Haproxy),
        "2001:db8::1:1 [22/Nov/2026:11:02:03.045] front#20end pool/<NOSRV> -1/-1/0 12345 SC 12/7/7/3/1 0/0"
    );
}

#[test]
fn a_request_reads_as_in_apache() {
    assert_eq!(
        shown(&record(), LogFormat::Combined),
        "198.51.100.7 - - [22/Nov/2026:11:02:03 +0000] \"GET /owa/?user=*&x=* HTTP/1.1\" 200 12000 \
         \"https://other.example.org/from?token=*\" \"Mozilla/5.0 (\\x22x\\x22) \\xE9\""
    );
    let mut bare = record();
    bare.texts = Texts::keep([Some(b"G\"ET"), Some(b"/a\\b\x7f"), None, None, None, None]);
    assert!(shown(&bare, LogFormat::Combined).contains("\"G\\x22ET /a\\x5Cb\\x7F HTTP/1.1\" 200 12000 \"-\" \"-\""));
}

#[test]
fn everything_is_in_the_object() {
    let mut record = record();
    record.proxy = Some("203.0.113.1:555".parse().unwrap());
    assert_eq!(
        shown(&record, LogFormat::Json),
        "{\"time\":\"2026-11-22T11:02:03.045Z\",\"kind\":\"request\",\"service\":\"front end\",\"group\":\"pool\",\"server\":\"FE-2\",\
         \"client\":\"198.51.100.7\",\"client_port\":40123,\"proxy\":\"203.0.113.1\",\"proxy_port\":555,\"vip\":\"192.0.2.250\",\"vip_port\":443,\
         \"code\":\"--\",\"handshake_ms\":9,\"request_ms\":1,\"wait_ms\":0,\"connect_ms\":2,\"response_ms\":30,\"data_ms\":4,\"total_ms\":37,\
         \"bytes_from_client\":321,\"bytes_to_client\":12345,\"redispatches\":1,\"connections\":{\"process\":12,\"service\":7,\"server\":3},\
         \"status\":200,\"version\":\"HTTP/1.1\",\"method\":\"GET\",\"host\":\"mail.example.org\",\
         \"user_agent\":\"Mozilla/5.0 (\\u0022x\\u0022) \\u00E9\",\"target\":\"/owa/?user=*&x=*\",\
         \"referer\":\"https://other.example.org/from?token=*\",\
         \"tls\":{\"version\":\"TLSv1.3\",\"cipher\":\"TLS13_AES_128_GCM_SHA256\",\"resumed\":false,\"server_name\":\"mail.example.org\"}}"
    );
    assert_eq!(
        shown(&connection(), LogFormat::Json),
        "{\"time\":\"2026-11-22T11:02:03.045Z\",\"kind\":\"connection\",\"service\":\"front end\",\"group\":\"pool\",\"server\":\"FE-2\",\
         \"client\":\"198.51.100.7\",\"client_port\":40123,\"vip\":\"192.0.2.250\",\"vip_port\":443,\"termination\":\"server_reset\",\"code\":\"SD\",\
         \"wait_ms\":0,\"connect_ms\":2,\"data_ms\":100,\"total_ms\":102,\"bytes_from_client\":321,\"bytes_to_client\":12345,\"redispatches\":1,\
         \"connections\":{\"process\":12,\"service\":7,\"server\":3}}"
    );
}

#[test]
fn no_line_is_longer_than_is_said_or_has_a_byte_that_is_not_plain() {
    let long: Vec<u8> = (0..20_000u32).map(|n| (n % 256) as u8).collect();
    let mut record = record();
    record.texts = Texts::keep([Some(&long); 6]);
    for format in [LogFormat::Combined, LogFormat::Haproxy, LogFormat::Json] {
        for query in [LoggedQuery::Names, LoggedQuery::None, LoggedQuery::Whole] {
            let mut out = Vec::new();
            line(&record, &Shown { format, query, origin_unix_ms: ORIGIN_UNIX_MS }, &mut out);
            assert!(out.len() < crate::access::LINE_BYTES_MAX, "{}", out.len());
            assert!(out.iter().all(|byte| (b' '..=b'~').contains(byte)), "{format:?}");
        }
    }
}

#[test]
fn errors_are_what_did_not_end_as_it_should() {
    let is_error = |termination, answer, status| {
        let request = Request { status, ..Request::default() };
        Record { termination, answer, request: Some(request), ..record() }.is_error()
    };
    assert!(!is_error(Termination::KeepAliveEnded, Answered::ByServer, 404));
    assert!(!is_error(Termination::KeepAliveEnded, Answered::ByRule, 302));
    assert!(is_error(Termination::KeepAliveEnded, Answered::Denied, 403));
    assert!(is_error(Termination::KeepAliveEnded, Answered::ByServer, 500));
    assert!(is_error(Termination::ClientReset, Answered::ByServer, 200));
}
