//! Answers of DNS, LDAP, RADIUS and STUN servers to a check: whole, wrong, in halves, and changed at random by the fuzz target without a fuzzer.
//!
//!     TOWPATH_FUZZ_SECONDS=60 cargo test --release -p towpath-core --test checks fuzz -- --ignored --nocapture

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "fuzzing takes its time, and its seeds are files"
)]

#[path = "../../../fuzz/src/checks.rs"]
mod target;

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs};

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use target::{KINDS, answered, begin, kind};
use towpath_config::model::{CheckKind, CheckTransport, DnsCheck, DnsType};
use towpath_core::health::Course;
use towpath_core::random::SplitMix64;

const DNS_UDP: usize = 0;
const DNS_TCP: usize = 1;
const LDAP: usize = 2;
const PING: usize = 3;
const STATUS: usize = 4;
const ACCESS: usize = 5;
const STUN_UDP: usize = 6;
const STUN_TCP: usize = 7;
const SMTP: usize = 8;

fn sent(number: usize) -> Vec<u8> {
    begin(&kind(number)).1
}

/// "mail" and what follows of the question's name at 16.
const MAIL: &[u8] = &[4, b'm', b'a', b'i', b'l', 0xc0, 16];

fn record(kind: u16, data: &[u8]) -> Vec<u8> {
    let head = [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &(data.len() as u16).to_be_bytes()];
    [head.concat(), data.to_vec()].concat()
}

fn mx(preference: u16, name: &[u8]) -> Vec<u8> {
    record(15, &[&preference.to_be_bytes(), name].concat())
}

fn dns(flags: [u8; 2], records: &[Vec<u8>]) -> Vec<u8> {
    let query = sent(DNS_UDP);
    let mut answer = query.clone();
    answer[2..4].copy_from_slice(&flags);
    answer[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
    answer.extend(records.concat());
    answer
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    // Longer than needed, as Active Directory writes lengths.
    [&[tag, 0x84][..], &(content.len() as u32).to_be_bytes(), content].concat()
}

fn ldap(id: u8, operation: u8, content: &[u8]) -> Vec<u8> {
    element(0x30, &[element(2, &[id]), element(operation, content)].concat())
}

fn result(code: u8, text: &str) -> Vec<u8> {
    [element(10, &[code]), element(4, b""), element(4, text.as_bytes())].concat()
}

fn entry(attributes: &[(&str, &[&str])]) -> Vec<u8> {
    let attribute = |(name, values): &(&str, &[&str])| {
        let values: Vec<u8> = values.iter().flat_map(|value| element(4, value.as_bytes())).collect();
        element(0x30, &[element(4, name.as_bytes()), element(0x31, &values)].concat())
    };
    let attributes: Vec<u8> = attributes.iter().flat_map(attribute).collect();
    ldap(2, 0x64, &[element(4, b""), element(0x30, &attributes)].concat())
}

fn directory() -> Vec<u8> {
    let dse = entry(&[("namingContexts", &["DC=example,DC=org"]), ("isSynchronized", &["TRUE"])]);
    [ldap(1, 0x61, &result(0, "")), dse, ldap(2, 0x65, &result(0, ""))].concat()
}

/// The answer of a server with this secret to what was sent.
fn radius(number: usize, code: u8, attributes: &[u8], secret: &[u8]) -> Vec<u8> {
    let request = sent(number);
    let proof = [&[80, 18][..], &[0; 16]].concat();
    let length = (20 + proof.len() + attributes.len()) as u16;
    let mut answer = [&[code, request[1]][..], &length.to_be_bytes(), &request[4..20], &proof, attributes].concat();
    let mut mac = Hmac::<Md5>::new_from_slice(secret).expect("any length");
    mac.update(&answer);
    let proof = mac.finalize().into_bytes();
    answer[22..38].copy_from_slice(&proof);
    let digest = Md5::new().chain_update(&answer).chain_update(secret).finalize();
    answer[4..20].copy_from_slice(&digest);
    answer
}

const SECRET: &[u8] = b"xyzzy5461";

fn stun(kind: u16, attributes: &[u8]) -> Vec<u8> {
    let request = sent(STUN_UDP);
    [&kind.to_be_bytes(), &(attributes.len() as u16).to_be_bytes()[..], &request[4..20], attributes].concat()
}

const MAPPED: &[u8] = &[0, 1, 0, 8, 0, 1, 0x0d, 0x96, 192, 0, 2, 1];

/// A whole answer that passes, of each kind.
fn whole(number: usize) -> Vec<u8> {
    let mail = dns([0x81, 0x80], &[mx(20, MAIL), mx(10, MAIL)]);
    match number {
        DNS_UDP => mail,
        DNS_TCP => framed(&mail),
        LDAP => directory(),
        PING => {
            let mut reply = sent(PING);
            reply[0] = 0;
            reply
        }
        STATUS => radius(STATUS, 2, b"", SECRET),
        ACCESS => radius(ACCESS, 2, b"", SECRET),
        STUN_UDP | STUN_TCP => stun(0x0101, MAPPED),
        _ => b"220 mail.example.org ESMTP\r\n250 OK\r\n".to_vec(),
    }
}

#[track_caller]
fn expect(number: usize, answer: &[u8], reason: &str) {
    for at_a_time in [1, 3, answer.len()] {
        assert_eq!(answered(&kind(number), answer, at_a_time), Course::Failed(reason.to_owned()), "{at_a_time} octets");
    }
}

#[test]
fn a_whole_answer_passes_and_no_part_of_it_does() {
    for number in 0..KINDS {
        let whole = whole(number);
        for at_a_time in [1, 2, 7, whole.len()] {
            assert_eq!(answered(&kind(number), &whole, at_a_time), Course::Passed, "kind {number}, {at_a_time} octets");
        }
        for length in 0..whole.len() {
            let course = answered(&kind(number), &whole[..length], length);
            // An SMTP server that says nothing behind its 250 has said enough.
            let enough = number == SMTP && whole[..length].ends_with(b"\n") && length > 30;
            assert!(course != Course::Passed || enough, "kind {number} passes with {length} octets");
        }
    }
}

#[test]
fn answers_of_dns_are_judged_by_code_and_data() {
    let all = |number| move |message: &[u8]| if number == DNS_TCP { framed(message) } else { message.to_vec() };
    for number in [DNS_UDP, DNS_TCP] {
        let all = all(number);
        expect(number, &all(&dns([0x81, 0x82], &[])), "answers SERVFAIL, expected NOERROR,NXDOMAIN");
        expect(number, &all(&dns([0x81, 0x8b], &[])), "answers RCODE11, expected NOERROR,NXDOMAIN");
        expect(number, &all(&dns([0x81, 0x80], &[])), "answers nothing, expected \"10 mail.example.org\"");
        let other = "answers \"20 mail.example.org\", expected \"10 mail.example.org\"";
        expect(number, &all(&dns([0x81, 0x80], &[mx(20, MAIL)])), other);
        assert_eq!(answered(&kind(number), &all(&dns([0x81, 0x83], &[])), 5), Course::Passed, "NXDOMAIN was allowed");
        let cut = "\"10 mail.example.org\" is not in the part of the answer that fits a datagram";
        expect(number, &all(&dns([0x83, 0x80], &[mx(20, MAIL)])), cut);
        // A name in itself, one that leads ahead, one of no known kind, and one of 300 octets.
        expect(number, &all(&dns([0x81, 0x80], &[mx(10, &[0xc0, 47])])), "a name of the answer leads in a circle");
        expect(number, &all(&dns([0x81, 0x80], &[mx(10, &[0xc0, 200])])), "a name of the answer leads in a circle");
        expect(number, &all(&dns([0x81, 0x80], &[mx(10, &[0x80, 1])])), "the answer has a label of no known kind");
        let long = [&[63; 64][..]; 5].concat();
        expect(number, &all(&dns([0x81, 0x80], &[mx(10, &long)])), "the answer has a name of more than 255 octets");
        expect(number, &all(&dns([0x81, 0x80], &[mx(10, &[5, b'x'])])), "the answer ends amid a record");
        let mut more = dns([0x81, 0x80], &[mx(20, MAIL)]);
        more[7] = 2;
        expect(number, &all(&more), "the answer ends amid a record");
        let mut renamed = dns([0x81, 0x80], &[mx(10, MAIL)]);
        renamed[13] = b'x';
        expect(number, &all(&renamed), "the answer repeats another question");
    }
    // Another's number, and a query instead of an answer: nothing that is for us.
    let mut foreign = dns([0x81, 0x80], &[mx(10, MAIL)]);
    foreign[0] ^= 1;
    let query = dns([0x01, 0x00], &[]);
    for answer in [&foreign, &query] {
        assert_eq!(answered(&kind(DNS_UDP), answer, 1), Course::More);
        expect(DNS_TCP, &framed(answer), "answers another query");
    }
}

/// The course of a query for records of `record`, which gets records of these types and data.
fn resolved(record: DnsType, kind: u16, expect: Option<&str>, records: &[(u16, &[u8])]) -> Course {
    let check = CheckKind::Dns(DnsCheck {
        transport: CheckTransport::Udp,
        query: "www.example.org".to_owned(),
        record,
        rcodes: vec![0],
        expect: expect.map(str::to_owned),
    });
    let records: Vec<_> = records.iter().map(|(kind, data)| self::record(*kind, data)).collect();
    let mut answer = dns([0x81, 0x80], &records);
    // Behind the header and the name of the question.
    answer[29..31].copy_from_slice(&kind.to_be_bytes());
    answered(&check, &answer, 1)
}

#[test]
fn a_name_of_dns_jumps_no_more_often_than_it_can_have_labels() {
    // Behind header, question and the head of the first record lie pointers, each to the one before it.
    let at = |number: usize| 45 + 2 * number;
    let pointer = |to: usize| [0xc0 | (to >> 8) as u8, to as u8];
    let answer = |count: usize| {
        let chain: Vec<u8> =
            (0..count).flat_map(|number| pointer(if number == 0 { 16 } else { at(number - 1) })).collect();
        let name = [&[4, b'm', b'a', b'i', b'l'][..], &pointer(at(count - 1))].concat();
        dns([0x81, 0x80], &[record(99, &chain), mx(10, &name)])
    };
    assert_eq!(answered(&kind(DNS_UDP), &answer(126), 1), Course::Passed);
    expect(DNS_UDP, &answer(127), "a name of the answer leads in a circle");
}

#[test]
fn an_alias_alone_is_no_address() {
    let (alias, address) = ((5, MAIL), (1, &[192, 0, 2, 7][..]));
    let nothing = Course::Failed("has no A record of \"www.example.org\"".to_owned());
    assert_eq!(resolved(DnsType::A, 1, None, &[]), nothing);
    assert_eq!(resolved(DnsType::A, 1, None, &[alias]), nothing);
    assert_eq!(resolved(DnsType::A, 1, None, &[alias, address]), Course::Passed);
    assert_eq!(resolved(DnsType::Cname, 5, None, &[alias]), Course::Passed);
}

#[test]
fn a_long_text_is_expected_in_full_and_shown_in_part() {
    let (first, second) = (format!("v=spf1 {}", "ip4:192.0.2.0/24 ".repeat(5)), "ip4:198.51.100.0/24 -all");
    let string = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let data = [string(&first), string(second)].concat();
    let whole = format!("{first}{second}");
    assert!(whole.len() > 100, "longer than what a reason shows");
    assert_eq!(resolved(DnsType::Txt, 16, Some(&whole), &[(16, &data)]), Course::Passed);
    let other = format!("{first}-all");
    let shown = &whole[..80];
    let reason = format!("answers \"{shown}…\", expected \"{other}\"");
    assert_eq!(resolved(DnsType::Txt, 16, Some(&other), &[(16, &data)]), Course::Failed(reason));
}

#[test]
fn answers_of_ldap_are_judged_by_their_results_and_the_root_dse() {
    let bound = ldap(1, 0x61, &result(0, ""));
    let invalid = ldap(1, 0x61, &result(49, "80090308: LdapErr: DSID-0C09042F"));
    expect(LDAP, &invalid, "refuses the bind: invalidCredentials \"80090308: LdapErr: DSID-0C09042F\"");
    expect(LDAP, &ldap(1, 0x61, &result(200, "")), "refuses the bind: result 200");
    let hidden = [bound.clone(), ldap(2, 0x65, &result(0, ""))].concat();
    expect(LDAP, &hidden, "does not show its root DSE");
    let busy = [bound.clone(), ldap(2, 0x65, &result(51, ""))].concat();
    expect(LDAP, &busy, "refuses the search of the root DSE: busy");
    let behind = [bound.clone(), entry(&[("isSynchronized", &["FALSE"])]), ldap(2, 0x65, &result(0, ""))].concat();
    expect(LDAP, &behind, "\"isSynchronized: TRUE\" is not in the root DSE");
    let notice = ldap(0, 0x78, &result(52, "going down"));
    expect(LDAP, &notice, "ends the session: unavailable \"going down\"");
    expect(LDAP, &ldap(7, 0x61, &result(0, "")), "answers another request");
    expect(LDAP, b"HTTP/1.1 400 Bad Request\r\n\r\n", "the answer is not LDAP");
    // Indefinite, of 127 octets, and longer than anybody's root DSE.
    expect(LDAP, &[0x30, 0x80, 0, 0], "the answer is not LDAP");
    expect(LDAP, &[0x30, 0xff, 1, 1], "the answer is not LDAP");
    expect(LDAP, &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], "a message of more than 262144 octets");
    expect(LDAP, &bound, "closed the connection, answer to the search of the root DSE missing");
    expect(LDAP, &bound[..9], "closed the connection, answer to the bind missing");
}

#[test]
fn answers_of_radius_must_prove_the_secret() {
    let rejected = radius(ACCESS, 3, b"\x12\x08locked", SECRET);
    expect(ACCESS, &rejected, "answers Access-Reject \"locked\"");
    expect(ACCESS, &radius(ACCESS, 11, b"", SECRET), "answers Access-Challenge");
    assert_eq!(answered(&kind(STATUS), &radius(STATUS, 5, b"", SECRET), 1), Course::Passed, "an accounting server");
    expect(STATUS, &radius(STATUS, 3, b"", SECRET), "answers Access-Reject");
    let right = radius(STATUS, 2, b"", SECRET);
    // Of another secret, with another number, and with a proof that was changed: as if nothing had come.
    let (mut other, mut changed) = (right.clone(), right.clone());
    other[1] ^= 1;
    changed[30] ^= 1;
    for answer in [radius(STATUS, 2, b"", b"guess"), other, changed] {
        assert_eq!(answered(&kind(STATUS), &answer, 1), Course::More);
    }
    let (mut conversation, _) = begin(&kind(STATUS));
    assert_eq!(conversation.waits_for(), "answer");
    conversation.received(&radius(STATUS, 2, b"", b"guess"), &mut Vec::new());
    assert_eq!(conversation.waits_for(), "answer whose authenticator fits our secret");
    expect(STATUS, &right[..19], "answers with less than the header of RADIUS");
    expect(STATUS, &right[..30], "the answer is not as long as it says");
    let foreign = right[1] ^ 1;
    for answer in [&[][..], &[2], &[2, foreign], &[2, foreign, 0, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(answered(&kind(STATUS), answer, 1), Course::More, "{answer:?} is not for us");
    }
    expect(STATUS, &radius(STATUS, 2, b"\x12\x00", SECRET), "the answer ends amid an attribute");
    expect(STATUS, &radius(STATUS, 2, b"\x12\x09x", SECRET), "the answer ends amid an attribute");
    // What comes behind the packet is padding.
    assert_eq!(answered(&kind(STATUS), &[&right[..], &[0; 9]].concat(), 1), Course::Passed);
}

#[test]
fn a_request_of_radius_begins_with_its_proof() {
    for (number, code) in [(STATUS, 12), (ACCESS, 1)] {
        let request = sent(number);
        assert_eq!((request[0], &request[20..22]), (code, &[80, 18][..]));
        assert_eq!(usize::from(u16::from_be_bytes([request[2], request[3]])), request.len());
        let mut blank = request.clone();
        blank[22..38].fill(0);
        let mut mac = Hmac::<Md5>::new_from_slice(SECRET).expect("any length");
        mac.update(&blank);
        assert_eq!(request[22..38], mac.finalize().into_bytes()[..]);
        assert!(!request.windows(10).any(|window| window == b"arctangent"), "the password is hidden");
    }
}

#[test]
fn answers_of_stun_have_our_address_or_an_error() {
    for number in [STUN_UDP, STUN_TCP] {
        let error = [&[0, 9, 0, 8, 0, 0, 4, 1][..], b"Who?"].concat();
        expect(number, &stun(0x0111, &error), "answers error 401 \"Who?\"");
        expect(number, &stun(0x0111, &[]), "answers an error without a code");
        expect(number, &stun(0x0101, &[]), "the answer has no mapped address");
        expect(number, &stun(0x0101, &[0, 1, 0, 8, 0, 3, 0, 0, 1, 2, 3, 4]), "the answer's mapped address is none");
        expect(number, &stun(0x0101, &[0, 1, 0, 9, 0, 1, 0, 0, 1, 2, 3, 4]), "the answer ends amid an attribute");
    }
    let mut longer = stun(0x0101, MAPPED);
    longer.push(0);
    expect(STUN_UDP, &longer, "the answer is not as long as it says");
    let mut foreign = stun(0x0101, MAPPED);
    foreign[19] ^= 1;
    assert_eq!(answered(&kind(STUN_UDP), &foreign, 1), Course::More);
    expect(STUN_TCP, &foreign, "something else than an answer by STUN");
}

#[test]
fn an_echo_is_ours_only_with_all_its_octets() {
    let whole = whole(PING);
    let (mut request, mut other) = (whole.clone(), whole.clone());
    request[0] = 8;
    other[40] ^= 1;
    for answer in [&request, &other, &whole[..60].to_vec()] {
        assert_eq!(answered(&kind(PING), answer, 1), Course::More);
    }
}

/// Inputs of the target that reach all of it.
fn corpus() -> Vec<Vec<u8>> {
    let answers = |number| match number {
        DNS_UDP => vec![dns([0x83, 0x80], &[mx(20, MAIL)]), dns([0x81, 0x85], &[])],
        LDAP => vec![ldap(0, 0x78, &result(52, "going down")), ldap(1, 0x61, &result(49, "no"))],
        STATUS | ACCESS => vec![radius(number, 3, b"\x12\x08locked", SECRET)],
        STUN_UDP => vec![stun(0x0111, &[0, 9, 0, 4, 0, 0, 5, 0])],
        _ => Vec::new(),
    };
    let of = |number| std::iter::once(whole(number)).chain(answers(number)).map(move |answer| (number, answer));
    (0..KINDS).flat_map(of).map(|(number, answer)| [&[number as u8, 3][..], &answer].concat()).collect()
}

fn fuzz(seed: u64, goes_on: impl Fn(u64) -> bool) -> u64 {
    let corpus = corpus();
    let mut random = SplitMix64::new(seed);
    let mut count = 0;
    while goes_on(count) {
        let mut below = |end: usize| random.below(end.max(1) as u64) as usize;
        let mut input = corpus[below(corpus.len())].clone();
        for _ in 0..=below(3) {
            // The kind stays mostly: what is random reaches little of another one.
            let at = 1 + below(input.len());
            match below(6) {
                0 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << below(8)),
                1 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = below(256) as u8),
                2 => input.truncate(at),
                3 => drop(input.drain(at.min(input.len())..input.len().min(at + below(8)))),
                4 => {
                    let at = at.min(input.len());
                    input.splice(at..at, (0..below(8)).map(|_| below(256) as u8).collect::<Vec<u8>>()).for_each(drop);
                }
                _ => input.extend_from_slice(&corpus[below(corpus.len())]),
            }
        }
        target::run(&input);
        count += 1;
    }
    count
}

#[test]
fn changes_of_answers_break_nothing() {
    for input in corpus() {
        target::run(&input);
    }
    fuzz(1, |count| count < 100_000);
}

#[test]
#[ignore = "for as long as TOWPATH_FUZZ_SECONDS says"]
fn fuzz_for_a_while() {
    let seconds = env::var("TOWPATH_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let end = Instant::now() + Duration::from_secs(seconds);
    let seed = u64::from(std::process::id());
    let count = fuzz(seed, |_| Instant::now() < end);
    println!("{count} inputs from seed {seed}");
}

/// Writes what cargo-fuzz begins with.
#[test]
#[ignore = "writes into fuzz/corpus"]
fn write_the_seeds_for_the_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/checks");
    fs::create_dir_all(&folder).expect("a folder");
    for (number, bytes) in corpus().into_iter().enumerate() {
        fs::write(folder.join(number.to_string()), bytes).expect("a file");
    }
}
