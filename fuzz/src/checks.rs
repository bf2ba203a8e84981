//! Arbitrary answers of servers to each kind of check.
//!
//! Whatever they are, and in however many pieces they come, reading them must not panic, must not pass where the octets of a real answer are not all
//! there, and says in short words what is wrong. The first two octets choose the kind and how an answer is cut.

use towpath_config::model::*;
use towpath_core::health::{Conversation, Course, Parties, Secrets};
use towpath_core::http::ServerEnd;

/// Kinds with an answer that is more than octets to look for.
pub(crate) const KINDS: usize = 9;

/// One of [`KINDS`].
pub(crate) fn kind(number: usize) -> CheckKind {
    let dns = |transport| {
        CheckKind::Dns(DnsCheck {
            transport,
            query: "www.example.org".to_owned(),
            record: DnsType::Mx,
            rcodes: vec![0, 3],
            expect: Some("10 mail.example.org".to_owned()),
        })
    };
    let radius = |user: Option<&str>| {
        CheckKind::Radius(RadiusCheck {
            secret_file: "/secret".into(),
            user: user.map(str::to_owned),
            password_file: user.map(|_| "/password".into()),
            expect: RadiusAnswer::Accept,
            message_authenticator: MessageAuthenticator::Required,
        })
    };
    match number % KINDS {
        0 => dns(CheckTransport::Udp),
        1 => dns(CheckTransport::Tcp),
        2 => CheckKind::Ldap(LdapCheck { bind: None, expect: Some("isSynchronized: TRUE".to_owned()), tls: None }),
        3 => CheckKind::Ping,
        4 => radius(None),
        5 => radius(Some("nemo")),
        6 => CheckKind::Stun { transport: CheckTransport::Udp },
        7 => CheckKind::Stun { transport: CheckTransport::Tcp },
        _ => CheckKind::Smtp { expect: Some("ESMTP".to_owned()) },
    }
}

/// What a check that is always the same has sent, and where it stands.
pub(crate) fn begin(kind: &CheckKind) -> (Conversation, Vec<u8>) {
    let secrets = Secrets { secret: b"xyzzy5461".to_vec(), password: b"arctangent".to_vec() };
    let parties =
        Parties { from: ([192, 0, 2, 1], 61_000).into(), to: ([192, 0, 2, 31], 53).into(), seed: 7, secrets: &secrets };
    let mut send = Vec::new();
    let (conversation, course) = Conversation::begin(kind, &parties, &mut send);
    assert_eq!(course, Course::More, "nothing is wrong with it so far");
    (conversation, send)
}

/// The course of a check that gets these octets, so many at a time, and then the end of the stream.
pub(crate) fn answered(kind: &CheckKind, answer: &[u8], at_a_time: usize) -> Course {
    let (mut conversation, mut send) = begin(kind);
    let is_stream = kind.carrier() == Carrier::Stream;
    let pieces = if is_stream { at_a_time.max(1) } else { answer.len().max(1) };
    for piece in answer.chunks(pieces) {
        let course = conversation.received(piece, &mut send);
        assert!(!conversation.waits_for().is_empty());
        match course {
            Course::More => {}
            Course::Passed => return course,
            Course::Failed(ref reason) => {
                assert!(!reason.is_empty() && reason.len() < 1_000, "{} octets of a reason", reason.len());
                assert!(!reason.chars().any(char::is_control), "{reason:?}");
                return course;
            }
        }
    }
    if is_stream { conversation.ended(ServerEnd::Orderly) } else { Course::More }
}

/// Runs an input.
pub(crate) fn run(input: &[u8]) {
    let [number, at_a_time, answer @ ..] = input else { return };
    let kind = kind(usize::from(*number));
    // The first octets of an answer are those that are hardest to guess.
    let whole = answered(&kind, answer, answer.len());
    let cut = answered(&kind, answer, usize::from(*at_a_time));
    // Of a stream only what it says counts, not how it comes.
    assert_eq!(whole == Course::Passed, cut == Course::Passed, "{whole:?} in one piece, {cut:?} in several");
}
