//! ClientHellos byte by byte, and what is none.

use proptest::prelude::*;

use super::*;

/// An extension with its header.
fn extension_of(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(content.len() as u16).to_be_bytes(), content].concat()
}

/// A name among names.
fn entry(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind][..], &(name.len() as u16).to_be_bytes(), name].concat()
}

fn names(entries: &[Vec<u8>]) -> Vec<u8> {
    let list = entries.concat();
    extension_of(SERVER_NAME, &[&(list.len() as u16).to_be_bytes()[..], &list].concat())
}

fn name(text: &str) -> Vec<u8> {
    names(&[entry(HOST_NAME, text.as_bytes())])
}

/// The body of a ClientHello with these extensions; `None` = not even their length.
fn body(session_id: &[u8], extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(session_id.len() as u8);
    body.extend(session_id);
    body.extend([0, 4, 0x13, 1, 0xc0, 0x2f, 1, 0]);
    if let Some(extensions) = extensions {
        let extensions = extensions.concat();
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
    }
    body
}

fn message(body: &[u8]) -> Vec<u8> {
    [&[CLIENT_HELLO, 0][..], &(body.len() as u16).to_be_bytes(), body].concat()
}

/// The message in records of at most so many bytes each, in turn.
fn records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut rest = message;
    for &size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (record, after) = rest.split_at(size.min(rest.len()));
        stream.extend([HANDSHAKE_RECORD, 3, 1]);
        stream.extend((record.len() as u16).to_be_bytes());
        stream.extend(record);
        rest = after;
    }
    stream
}

fn stream(session_id: &[u8], extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(&body(session_id, Some(extensions))), &[RECORD_BYTES_MAX])
}

fn hello(server_name: Option<&str>, offers_session: bool) -> Peek {
    let server_name = server_name.map(|name| HostName::new(name.as_bytes()).unwrap());
    Peek::Hello(ClientHello { server_name, offers_session, ..ClientHello::default() })
}

/// What is told of a stream, but for the session itself.
fn told(stream: &[u8]) -> Peek {
    match peek(stream) {
        Peek::Hello(hello) => Peek::Hello(ClientHello { offers_ticket: false, session: None, ..hello }),
        other => other,
    }
}

#[test]
fn the_session_is_told_and_whether_a_ticket_stands_for_it() {
    let ticket = extension_of(SESSION_TICKET, b"sealed");
    let session = |stream: &[u8]| match peek(stream) {
        Peek::Hello(hello) => (hello.session.map(|id| id.as_bytes().to_vec()), hello.offers_ticket),
        other => panic!("{other:?}"),
    };
    assert_eq!(session(&stream(&[], &[])), (None, false));
    assert_eq!(session(&stream(&[9; 32], &[])), (Some(vec![9; 32]), false));
    assert_eq!(session(&stream(b"id", &[ticket])), (Some(b"id".to_vec()), true));
    // Empty: the client would take one.
    assert_eq!(session(&stream(b"id", &[extension_of(SESSION_TICKET, b"")])), (Some(b"id".to_vec()), false));
    assert_eq!(peek(&stream(&[9; 33], &[])), Peek::Foreign);
}

#[test]
fn what_the_client_asks_for_is_told() {
    let versions = extension_of(SUPPORTED_VERSIONS, &[4, 3, 4, 3, 3]);
    let old_versions = extension_of(SUPPORTED_VERSIONS, &[2, 3, 3]);
    let other = extension_of(16, b"\0\x03\x02h2");
    type Row<'a> = (&'a [u8], Vec<Vec<u8>>, Option<&'a str>, bool);
    let rows: &[Row<'_>] = &[
        (&[], vec![], None, false),
        (&[], vec![name("Mail.Example.org")], Some("mail.example.org"), false),
        (&[], vec![other.clone(), name("a.example"), versions.clone()], Some("a.example"), false),
        // Some clients write the dot of the root.
        (&[], vec![name("a.example.")], Some("a.example"), false),
        (&[], vec![name("_sip.a-b.example")], Some("_sip.a-b.example"), false),
        // A kind of name that nobody has defined yet, before the host.
        (&[], vec![names(&[entry(9, b"x"), entry(HOST_NAME, b"a.example")])], Some("a.example"), false),
        (&[], vec![names(&[entry(9, b"x")])], None, false),
        // What no host is called.
        (&[], vec![name("a..example")], None, false),
        (&[], vec![name("a\0.example")], None, false),
        (&[], vec![name("b\u{fc}cher.example")], None, false),
        (&[], vec![name(&"x".repeat(254))], None, false),
        (&[], vec![name(&"x".repeat(1000))], None, false),
        (&[], vec![name(&"x.".repeat(127))], Some(&"x.".repeat(127)[..253]), false),
        // Sessions.
        (&[1; 32], vec![versions.clone()], None, false),
        (&[1; 32], vec![old_versions.clone()], None, true),
        (&[1; 32], vec![], None, true),
        (&[], vec![extension_of(SESSION_TICKET, &[])], None, false),
        (&[], vec![extension_of(SESSION_TICKET, &[1])], None, true),
        (&[1; 32], vec![versions.clone(), extension_of(PRE_SHARED_KEY, &[1, 2, 3])], None, true),
    ];
    for (session_id, extensions, server_name, offers_session) in rows {
        let peeked = told(&stream(session_id, extensions));
        assert_eq!(peeked, hello(*server_name, *offers_session), "{server_name:?} {extensions:?}");
    }
    // As SSL 3.0 and the first TLS had it.
    assert_eq!(told(&records(&message(&body(&[], None)), &[100])), hello(None, false));
    // What follows it is no matter.
    let followed = [stream(&[], &[name("a.example")]), vec![0x17, 3, 3, 0, 1, 0]].concat();
    assert_eq!(told(&followed), hello(Some("a.example"), false));
}

#[test]
fn t_41_what_is_not_tls_is_told_at_once() {
    let rows: &[&[u8]] = &[
        // STUN: binding request, and framed as media relays do over TCP (RFC 4571).
        &[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42],
        &[0, 20, 0, 1],
        b"G",
        b"SSH-2.0-",
        // SSL 2.0.
        &[0x80, 0x2e, 1, 0, 2],
        // Another record; another version; an empty record; a record longer than any.
        &[23],
        &[22, 2],
        &[22, 3, 9],
        &[22, 3, 1, 0, 0],
        &[22, 3, 1, 0x40, 1],
        // Not a ClientHello; one that is too long.
        &[22, 3, 1, 0, 100, 2],
        &[22, 3, 1, 0, 100, 1, 0, 0x40, 1],
        &[22, 3, 1, 0, 100, 1, 0, 0, 100, 2],
    ];
    for bytes in rows {
        assert_eq!(peek(bytes), Peek::Foreign, "{bytes:?}");
        for end in 0..bytes.len() - 1 {
            let earlier = peek(&bytes[..end]);
            assert!(matches!(earlier, Peek::Incomplete | Peek::Foreign), "{bytes:?} {end}");
        }
    }
    assert_eq!(peek(&[]), Peek::Incomplete);
    assert_eq!(peek(&[22]), Peek::Incomplete);
}

#[test]
fn t_41_pseudo_tls_is_a_hello_without_a_name() {
    // As media relays of Lync expect it: TLS 1.0 with one suite, no session and no extensions.
    let mut pseudo = vec![22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 1];
    pseudo.extend([0x5f; 32]);
    pseudo.extend([0, 0, 2, 0, 0x18, 1, 0]);
    assert_eq!(pseudo.len(), 50);
    assert_eq!(told(&pseudo), hello(None, false));
}

#[test]
fn damage_is_told() {
    let twice = stream(&[], &[name("a.example"), name("b.example")]);
    let two_hosts = stream(&[], &[names(&[entry(HOST_NAME, b"a.example"), entry(HOST_NAME, b"b.example")])]);
    let empty_name = stream(&[], &[names(&[entry(HOST_NAME, b"")])]);
    let no_names = stream(&[], &[names(&[])]);
    let short_list = stream(&[], &[extension_of(SERVER_NAME, &[0, 1, 0, 0])]);
    let long_entry = stream(&[], &[extension_of(SERVER_NAME, &[0, 4, 0, 0, 9, b'a'])]);
    let long_session = records(&message(&body(&[1; 33], None)), &[1000]);
    let mut odd_versions = stream(&[], &[extension_of(SUPPORTED_VERSIONS, &[3, 3, 4, 3])]);
    for bytes in [&twice, &two_hosts, &empty_name, &no_names, &short_list, &long_entry, &long_session, &odd_versions] {
        assert_eq!(peek(bytes), Peek::Foreign, "{bytes:?}");
    }
    // An extension that ends behind the message, and extensions that end before it.
    let place = odd_versions.len() - 5;
    odd_versions[place] = 9;
    assert_eq!(peek(&odd_versions), Peek::Foreign);
    let padded = [body(&[], Some(&[name("a.example")])), vec![0]].concat();
    assert_eq!(peek(&records(&message(&padded), &[1000])), Peek::Foreign);
    // Another record in the middle.
    let mut between = records(&message(&body(&[], Some(&[name("a.example")]))), &[20]);
    between[25] = 21;
    assert_eq!(peek(&between), Peek::Foreign);
}

#[test]
fn a_hello_that_does_not_end_within_the_bound_is_given_up() {
    let padding = extension_of(21, &[0; 12_000]);
    let long = message(&body(&[], Some(&[padding, name("a.example")])));
    assert_eq!(told(&records(&long, &[4_000])), hello(Some("a.example"), false));
    // The same in records of one byte each is six times as long.
    let torn = records(&long, &[1]);
    assert_eq!(peek(&torn[..HELLO_BYTES_MAX - 1]), Peek::Incomplete);
    assert_eq!(peek(&torn[..HELLO_BYTES_MAX]), Peek::Foreign);
    assert_eq!(peek(&torn), Peek::Foreign);
}

proptest! {
    #[test]
    fn records_and_segments_may_be_cut_anywhere(
        sizes in prop::collection::vec(1_usize..200, 1..5),
        label in "[a-z][a-z0-9-]{0,20}",
        resumes: bool,
        order: bool,
    ) {
        let server_name = format!("{label}.example.org");
        let mut extensions = vec![name(&server_name), extension_of(PRE_SHARED_KEY, &[0; 50]), extension_of(SUPPORTED_VERSIONS, &[2, 3, 4])];
        if !resumes {
            extensions.remove(1);
        }
        if order {
            extensions.reverse();
        }
        let bytes = records(&message(&body(&[9; 8], Some(&extensions))), &sizes);
        for end in 0..bytes.len() {
            prop_assert_eq!(peek(&bytes[..end]), Peek::Incomplete);
        }
        prop_assert_eq!(told(&bytes), hello(Some(&server_name), resumes));
    }

    #[test]
    fn no_bytes_are_a_surprise(mut bytes in prop::collection::vec(any::<u8>(), 0..600), begins: bool) {
        if begins {
            for (byte, expected) in bytes.iter_mut().zip([22, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3]) {
                *byte = expected;
            }
        }
        peek(&bytes);
    }

    #[test]
    fn a_damaged_hello_is_no_surprise(place in 0_usize..200, byte: u8, cut in 0_usize..200) {
        let mut bytes = records(
            &message(&body(&[9; 8], Some(&[name("a.example.org"), extension_of(SUPPORTED_VERSIONS, &[2, 3, 4])]))),
            &[60],
        );
        let place = place % bytes.len();
        bytes[place] = byte;
        let verdict = peek(&bytes);
        // What was told of the beginning holds for the rest.
        if peek(&bytes[..cut.min(bytes.len())]) == Peek::Foreign {
            prop_assert_eq!(verdict, Peek::Foreign);
        }
    }
}
