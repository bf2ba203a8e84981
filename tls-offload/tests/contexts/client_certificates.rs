//! Certificates of clients: valid, of nobody we know, revoked, none.

use std::sync::Arc;

use towpath_tls::{ClientCertificates, ClientTrust, ContextError, Fault, ServerContext, ServerSettings};

use super::authority::{Authority, Key, server_settings};
use super::handshake::{Speaks, client, client_with, visit};

const NAME: &str = "mail.example.com";

#[test]
fn required_and_requested_certificates_are_judged() {
    let authority = Authority::new("authority");
    let stranger = Authority::new("stranger");
    let settings = server_settings(&[&authority.issue(&[NAME], Key::P256)]);
    let valid = authority.issue(&["client"], Key::P256);
    let revoked = authority.issue(&["client"], Key::P256);
    let expired = authority.issue_until(&["client"], Key::P256, 2025);
    let foreign = stranger.issue(&["client"], Key::Rsa);
    let trust = || authority.trust(&[revoked.serial]);
    let visitors = [
        ("valid", Some(&valid), true, true),
        ("revoked", Some(&revoked), false, false),
        ("expired", Some(&expired), false, false),
        ("foreign", Some(&foreign), false, false),
        ("none", None, true, false),
    ];
    for (who, issued, by_request, by_require) in visitors {
        for (client_certificates, expected) in [
            (ClientCertificates::None, true),
            (ClientCertificates::Request(trust()), by_request),
            (ClientCertificates::Require(trust()), by_require),
        ] {
            let asks = !matches!(client_certificates, ClientCertificates::None);
            let settings = ServerSettings { client_certificates, ..settings.clone() };
            let context = ServerContext::new(&settings, None).expect("a context");
            for speaks in [Speaks::Tls12, Speaks::Tls13] {
                let client = match issued {
                    None => client(authority.roots(), speaks),
                    Some(issued) => client_with(authority.roots(), speaks, issued),
                };
                match visit(&context, &Arc::new(client), NAME) {
                    Ok(pair) => {
                        assert!(expected, "{who} was let in by {:?}", settings.client_certificates);
                        assert_eq!(pair.server.peer_certificates().is_some(), asks && issued.is_some());
                    }
                    Err(failed) => {
                        assert!(!expected, "{who} by {:?}: {failed:?}", settings.client_certificates);
                        assert_eq!(Fault::of(&failed.of_server()), Fault::Certificate);
                    }
                }
            }
        }
    }
}

#[test]
fn a_list_that_does_not_cover_the_issuer_lets_nobody_in() {
    let authority = Authority::new("authority");
    let other = Authority::new("another");
    let settings = server_settings(&[&authority.issue(&[NAME], Key::P256)]);
    let valid = authority.issue(&["client"], Key::P256);
    let trust = ClientTrust { authorities: vec![authority.certificate()], revocations: vec![other.revoke(&[1])] };
    let settings = ServerSettings { client_certificates: ClientCertificates::Require(trust), ..settings };
    let context = ServerContext::new(&settings, None).expect("a context");
    let client = Arc::new(client_with(authority.roots(), Speaks::Both, &valid));
    let error = visit(&context, &client, NAME).expect_err("nobody says that it is not revoked").of_server();
    assert_eq!(Fault::of(&error), Fault::Certificate);
}

#[test]
fn a_policy_that_could_let_nobody_in_is_refused() {
    let authority = Authority::new("authority");
    let settings = server_settings(&[&authority.issue(&[NAME], Key::P256)]);
    let with = |trust| {
        let client_certificates = ClientCertificates::Require(trust);
        ServerContext::new(&ServerSettings { client_certificates, ..settings.clone() }, None).expect_err("no policy")
    };
    assert!(matches!(with(ClientTrust::default()), ContextError::NoAuthority));
    let broken = ClientTrust { authorities: vec![vec![1, 2, 3].into()], revocations: Vec::new() };
    assert!(matches!(with(broken), ContextError::Authority { place: 1, .. }));
    let broken = ClientTrust { revocations: vec![vec![1, 2, 3].into()], ..authority.trust(&[]) };
    assert!(matches!(with(broken), ContextError::RevocationList(_)));
}
