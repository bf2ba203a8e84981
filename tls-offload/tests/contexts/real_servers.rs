//! Towards real servers: how they are judged, what they are asked for, which sessions are resumed.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::ServerName;
use rustls::server::{Acceptor, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, ServerConfig};
use towpath_tls::{
    ClientCertificates, ClientContext, ClientSettings, ContextError, Fault, Resumption, ServerContext, ServerSettings,
    ServerVerification, Step, TicketKeys,
};

use super::authority::{Authority, Issued, Key, client_settings, server_settings};
use super::handshake::{Failed, Pair, shake};

const NAME: &str = "mail.example.com";

fn service(issued: &Issued) -> ServerContext {
    ServerContext::new(&server_settings(&[issued]), None).expect("a context")
}

fn visit(server: &ServerContext, verification: ServerVerification, name: &str) -> Result<Pair, Failed> {
    let context = ClientContext::new(&ClientSettings { verification, ..client_settings() }, None).expect("a context");
    shake(server.config(), context.config(), ServerName::try_from(name.to_owned()).expect("a name"))
}

fn pin(issued: &Issued) -> [u8; 32] {
    digest(&SHA256, &issued.identity.certified_key().cert[0]).as_ref().try_into().expect("32 bytes")
}

#[test]
fn real_servers_are_judged_by_authority_by_pin_or_not() {
    let authority = Authority::new("authority");
    let stranger = Authority::new("stranger");
    let known = authority.issue(&[NAME], Key::P256);
    let late = authority.issue_until(&[NAME], Key::Rsa, 2025);
    let foreign = stranger.issue(&[NAME], Key::P256);
    let by_authority = || ServerVerification::Authorities(vec![authority.certificate()]);
    let by_pin = || ServerVerification::Pinned(vec![pin(&known), pin(&late)]);
    let cases = [
        (&known, NAME, ServerVerification::None, true),
        (&known, NAME, by_authority(), true),
        (&known, NAME, by_pin(), true),
        (&known, "other.example.com", ServerVerification::None, true),
        (&known, "other.example.com", by_authority(), false),
        (&known, "other.example.com", by_pin(), true),
        (&late, NAME, ServerVerification::None, true),
        (&late, NAME, by_authority(), false),
        (&late, NAME, by_pin(), true),
        (&foreign, NAME, ServerVerification::None, true),
        (&foreign, NAME, by_authority(), false),
        (&foreign, NAME, by_pin(), false),
    ];
    for (place, (issued, name, verification, expected)) in cases.into_iter().enumerate() {
        match visit(&service(issued), verification, name) {
            Ok(_) => assert!(expected, "case {place}"),
            Err(Failed::Client(error)) => {
                assert!(!expected, "case {place}: {error}");
                assert_eq!(Fault::of(&error), Fault::Certificate);
            }
            Err(failed) => panic!("case {place}: {failed:?}"),
        }
    }
}

#[test]
fn a_pinned_certificate_without_its_key_is_worth_nothing() {
    #[derive(Debug)]
    struct Stolen(Arc<CertifiedKey>);
    impl ResolvesServerCert for Stolen {
        fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }
    let authority = Authority::new("authority");
    let (known, thief) = (authority.issue(&[NAME], Key::P256), authority.issue(&[NAME], Key::P256));
    let stolen =
        CertifiedKey::new(known.identity.certified_key().cert.clone(), Arc::clone(&thief.identity.certified_key().key));
    let mut config = ServerConfig::clone(service(&known).config());
    config.cert_resolver = Arc::new(Stolen(Arc::new(stolen)));
    let settings = ClientSettings { verification: ServerVerification::Pinned(vec![pin(&known)]), ..client_settings() };
    let context = ClientContext::new(&settings, None).expect("a context");
    let name = ServerName::try_from(NAME).expect("a name");
    let failed = shake(&Arc::new(config), context.config(), name).expect_err("a forged signature");
    let Failed::Client(error) = failed else { panic!("{failed:?}") };
    assert_eq!(Fault::of(&error), Fault::Certificate, "{error}");
}

#[test]
fn we_show_our_own_certificate_to_a_server_that_asks() {
    let authority = Authority::new("authority");
    let us = authority.issue(&["balancer"], Key::P256);
    let server = ServerContext::new(
        &ServerSettings {
            client_certificates: ClientCertificates::Require(authority.trust(&[])),
            ..server_settings(&[&authority.issue(&[NAME], Key::P256)])
        },
        None,
    )
    .expect("a context");
    let name = || ServerName::try_from(NAME).expect("a name");
    let named =
        ClientContext::new(&ClientSettings { identity: Some(Arc::clone(&us.identity)), ..client_settings() }, None);
    let pair = shake(server.config(), named.expect("a context").config(), name()).expect("known there");
    let shown = pair.server.peer_certificates().expect("a certificate");
    assert_eq!(shown[0], us.identity.certified_key().cert[0]);
    let nobody = ClientContext::new(&client_settings(), None).expect("a context");
    shake(server.config(), nobody.config(), name()).expect_err("nobody");
}

#[test]
fn sessions_with_a_server_are_resumed_up_to_a_bound_and_by_name() {
    let authority = Authority::new("authority");
    let issued = authority.issue(&["*.example.com"], Key::P256);
    let keys = Arc::new(TicketKeys::drawn(std::time::Duration::from_secs(3600)));
    let settings = ServerSettings { resumption: Resumption::Tickets(keys), ..server_settings(&[&issued]) };
    let server = ServerContext::new(&settings, None).expect("a context");
    let visit = |context: &ClientContext, name: &str| {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let pair = shake(server.config(), context.config(), name).expect("a handshake");
        pair.client.handshake_kind() == Some(HandshakeKind::Resumed)
    };
    let context =
        ClientContext::new(&ClientSettings { sessions_max: 2, ..client_settings() }, None).expect("a context");
    assert!(!visit(&context, "a.example.com"));
    assert!(visit(&context, "a.example.com"));
    assert!(visit(&context, "a.example.com"), "each visit brings a ticket");
    assert!(!visit(&context, "b.example.com"), "a name of its own");
    assert!(!visit(&context, "c.example.com"));
    // Two are kept: those of b and c.
    assert!(visit(&context, "b.example.com"));
    assert!(!visit(&context, "a.example.com"));
    let forgetful = ClientContext::new(&client_settings(), None).expect("a context");
    assert!(!visit(&forgetful, "a.example.com"));
    assert!(!visit(&forgetful, "a.example.com"));
}

#[test]
fn the_server_hears_the_name_of_the_settings_or_else_the_clients() {
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
    let heard = |settings: &ClientSettings, client_sni| {
        let context = ClientContext::new(settings, None).expect("a context");
        let mut connection = context.connect(client_sni, Some(b"h2"), address).expect("a connection");
        let mut hello = Vec::new();
        assert_eq!(connection.handshake(&mut Vec::new(), &mut hello), Ok(Step::NeedsInput));
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut &hello[..]).expect("from memory");
        let accepted = acceptor.accept().ok().flatten().expect("a whole ClientHello");
        let offered: Vec<_> = accepted.client_hello().alpn().expect("ALPN").map(<[u8]>::to_vec).collect();
        assert_eq!(offered, [b"h2"]);
        accepted.client_hello().server_name().map(str::to_owned)
    };
    let by_client = client_settings();
    assert_eq!(heard(&by_client, Some("owa.example.com")), Some("owa.example.com".to_owned()));
    assert_eq!(heard(&by_client, None), None);
    assert_eq!(heard(&by_client, Some("not a name")), None);
    let fixed = ClientSettings { server_name: Some("exchange.internal".to_owned()), ..client_settings() };
    assert_eq!(heard(&fixed, Some("owa.example.com")), Some("exchange.internal".to_owned()));
    let wrong = ClientSettings { server_name: Some("no name".to_owned()), ..client_settings() };
    assert!(matches!(ClientContext::new(&wrong, None), Err(ContextError::ServerName(_))));
    let none = ClientSettings { verification: ServerVerification::Authorities(Vec::new()), ..client_settings() };
    assert!(matches!(ClientContext::new(&none, None), Err(ContextError::NoAuthority)));
}
