//! Which sessions are resumed, and which never.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::{ClientSessionMemoryCache, Resumption as Keeps};
use rustls::{ClientConfig, HandshakeKind};
use towpath_tls::{ClientCertificates, Resumption, ServerContext, ServerSettings, TicketKeys};

use super::authority::{Authority, Issued, Key, server_settings};
use super::handshake::{Pair, Speaks, client, client_with, visit};

const NAME: &str = "mail.example.com";
const HOUR: Duration = Duration::from_secs(3600);

fn keeps_sessions(mut client: ClientConfig) -> Arc<ClientConfig> {
    client.resumption = Keeps::store(Arc::new(ClientSessionMemoryCache::new(8)));
    Arc::new(client)
}

fn is_resumed(pair: &Pair) -> bool {
    let kinds = (pair.server.handshake_kind(), pair.client.handshake_kind());
    let is_resumed = kinds.0 == Some(HandshakeKind::Resumed);
    assert_eq!(is_resumed, kinds.1 == Some(HandshakeKind::Resumed), "both ends agree");
    is_resumed
}

/// Whether a session that began at `first` is resumed at `second`, in both versions.
fn resumes(authority: &Authority, first: &ServerContext, second: &ServerContext, identity: Option<&Issued>) -> bool {
    let resumed = [Speaks::Tls12, Speaks::Tls13].map(|speaks| {
        let client = match identity {
            None => client(authority.roots(), speaks),
            Some(issued) => client_with(authority.roots(), speaks, issued),
        };
        let client = keeps_sessions(client);
        assert!(!is_resumed(&visit(first, &client, NAME).expect("a first visit")));
        is_resumed(&visit(second, &client, NAME).expect("a second visit"))
    });
    assert_eq!(resumed[0], resumed[1], "TLS 1.2 and 1.3 do the same");
    resumed[0]
}

fn by_tickets(settings: &ServerSettings, keys: &Arc<TicketKeys>) -> ServerContext {
    let settings = ServerSettings { resumption: Resumption::Tickets(Arc::clone(keys)), ..settings.clone() };
    ServerContext::new(&settings, None).expect("a context")
}

fn shared(secret: u8) -> Arc<TicketKeys> {
    Arc::new(TicketKeys::shared(&[secret; 48], HOUR).expect("a secret"))
}

#[test]
fn tickets_are_good_at_every_context_of_the_service_with_the_same_secret() {
    let authority = Authority::new("authority");
    let settings = server_settings(&[&authority.issue(&[NAME], Key::P256)]);
    let drawn = Arc::new(TicketKeys::drawn(HOUR));
    let first = by_tickets(&settings, &drawn);
    assert!(resumes(&authority, &first, &first, None));
    assert!(resumes(&authority, &first, &by_tickets(&settings, &drawn), None), "after a reload");
    // Another machine has the secret by file only.
    assert!(resumes(&authority, &by_tickets(&settings, &shared(7)), &by_tickets(&settings, &shared(7)), None));
    assert!(!resumes(&authority, &by_tickets(&settings, &shared(7)), &by_tickets(&settings, &shared(8)), None));
    assert!(!resumes(&authority, &first, &by_tickets(&settings, &Arc::new(TicketKeys::drawn(HOUR))), None));
}

#[test]
fn a_new_secret_takes_the_tickets_of_the_one_before_and_of_no_older_one() {
    let authority = Authority::new("authority");
    let settings = server_settings(&[&authority.issue(&[NAME], Key::P256)]);
    let first = shared(1);
    let second = Arc::new(TicketKeys::shared(&[2; 48], HOUR).expect("a secret").after(&first));
    let third = Arc::new(TicketKeys::shared(&[3; 48], HOUR).expect("a secret").after(&second));
    let [first, second, third] = [first, second, third].map(|keys| by_tickets(&settings, &keys));
    assert!(resumes(&authority, &first, &second, None));
    assert!(resumes(&authority, &second, &third, None));
    assert!(!resumes(&authority, &first, &third, None));
    assert!(!resumes(&authority, &second, &first, None), "what is given out is the new one's");
}

#[test]
fn one_ticket_is_given_and_no_early_data() {
    let authority = Authority::new("authority");
    let context = by_tickets(&server_settings(&[&authority.issue(&[NAME], Key::P256)]), &shared(1));
    let mut config = client(authority.roots(), Speaks::Tls13);
    config.enable_early_data = true;
    let client = keeps_sessions(config);
    let pair = visit(&context, &client, NAME).expect("a first visit");
    assert_eq!(pair.client.tls13_tickets_received(), 1);
    let mut again = rustls::ClientConnection::new(client, NAME.try_into().expect("a name")).expect("a client");
    assert!(again.early_data().is_none());
}

#[test]
fn a_session_is_never_resumed_at_another_service_or_under_another_client_certificate_policy() {
    let authority = Authority::new("authority");
    let other = Authority::new("another");
    let plain = server_settings(&[&authority.issue(&[NAME], Key::P256)]);
    let whoever = authority.issue(&["client"], Key::P256);
    let with = |client_certificates| ServerSettings { client_certificates, ..plain.clone() };
    let both = {
        let mut trust = authority.trust(&[]);
        trust.authorities.push(other.certificate());
        trust
    };
    let policies = [
        plain.clone(),
        ServerSettings { service: "ecp".to_owned(), ..plain.clone() },
        with(ClientCertificates::Request(authority.trust(&[]))),
        with(ClientCertificates::Require(authority.trust(&[]))),
        with(ClientCertificates::Require(authority.trust(&[4711]))),
        with(ClientCertificates::Require(authority.trust(&[4711, 4712]))),
        with(ClientCertificates::Require(both)),
    ];
    let keys = shared(1);
    for (first, a) in policies.iter().enumerate() {
        for (second, b) in policies.iter().enumerate() {
            let (a, b) = (by_tickets(a, &keys), by_tickets(b, &keys));
            assert_eq!(resumes(&authority, &a, &b, Some(&whoever)), first == second, "{first} {second}");
        }
    }
}

#[test]
fn a_cache_resumes_what_it_has_seen_and_goes_over_to_the_next_context_of_the_same_policy() {
    let authority = Authority::new("authority");
    let plain = server_settings(&[&authority.issue(&[NAME], Key::P256)]);
    let cached = |settings: &ServerSettings, before| {
        let resumption = Resumption::Cache { sessions_max: 64, lifetime: HOUR };
        ServerContext::new(&ServerSettings { resumption, ..settings.clone() }, before).expect("a context")
    };
    let first = cached(&plain, None);
    assert!(resumes(&authority, &first, &first, None));
    assert!(resumes(&authority, &first, &cached(&plain, Some(&first)), None));
    assert!(!resumes(&authority, &first, &cached(&plain, None), None));
    let stricter =
        ServerSettings { client_certificates: ClientCertificates::Request(authority.trust(&[])), ..plain.clone() };
    assert!(!resumes(&authority, &first, &cached(&stricter, Some(&first)), None));
}

#[test]
fn off_means_that_each_handshake_is_a_full_one() {
    let authority = Authority::new("authority");
    let settings = server_settings(&[&authority.issue(&[NAME], Key::P256)]);
    let context = ServerContext::new(&settings, None).expect("a context");
    assert!(!resumes(&authority, &context, &context, None));
    let pair = visit(&context, &Arc::new(client(authority.roots(), Speaks::Tls13)), NAME).expect("a visit");
    assert_eq!(pair.client.tls13_tickets_received(), 0);
}

#[test]
fn a_resumed_client_is_judged_again() {
    let authority = Authority::new("authority");
    let settings = server_settings(&[&authority.issue(&[NAME], Key::P256)]);
    let (good, late) = (authority.issue(&["client"], Key::P256), authority.issue_until(&["client"], Key::P256, 2025));
    let chain = |issued: &Issued| issued.identity.certified_key().cert.clone();
    let with = |client_certificates| {
        ServerContext::new(&ServerSettings { client_certificates, ..settings.clone() }, None).expect("a context")
    };
    let required = with(ClientCertificates::Require(authority.trust(&[])));
    required.admits_resumed(Some(&chain(&good))).expect("still good");
    required.admits_resumed(Some(&chain(&late))).expect_err("expired meanwhile");
    required.admits_resumed(None).expect_err("nothing was ever shown");
    let requested = with(ClientCertificates::Request(authority.trust(&[])));
    requested.admits_resumed(Some(&chain(&late))).expect_err("expired meanwhile");
    requested.admits_resumed(None).expect("nothing needs to be shown");
    with(ClientCertificates::None).admits_resumed(None).expect("nobody asked");
}
