//! The certificate that a client is shown.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use towpath_tls::{ContextError, Fault, KeyKind, ServerContext, ServerSettings, SniMatch};

use super::authority::{Authority, Issued, Key, server_settings};
use super::handshake::{Failed, Speaks, client, visit};

/// Asks by name and lets any name be shown.
fn shown(context: &ServerContext, authority: &Authority, name: &str, of: &[&Issued]) -> Option<usize> {
    for speaks in [Speaks::Tls12, Speaks::Tls13] {
        let client = Arc::new(client(authority.roots(), speaks));
        let leaf = match visit(context, &client, name) {
            Ok(pair) => pair.client.peer_certificates().expect("a certificate")[0].clone(),
            Err(_) => continue,
        };
        return of.iter().position(|issued| issued.identity.certified_key().cert[0] == leaf);
    }
    None
}

#[test]
fn names_wildcards_and_the_default_choose_the_certificate() {
    let authority = Authority::new("authority");
    let mail = authority.issue(&["mail.example.com", "autodiscover.example.com"], Key::P256);
    let wild = authority.issue(&["*.example.com"], Key::P256);
    let other = authority.issue(&["Other.Example.org", "*.mail.example.com"], Key::P256);
    let all = [&mail, &wild, &other];
    let context = ServerContext::new(&server_settings(&all), None).expect("a context");
    let cases = [
        ("mail.example.com", Some(0), SniMatch::Named),
        ("MAIL.example.com", Some(0), SniMatch::Named),
        ("autodiscover.example.com", Some(0), SniMatch::Named),
        ("any.example.com", Some(1), SniMatch::Named),
        ("a.mail.example.com", Some(2), SniMatch::Named),
        ("other.example.org", Some(2), SniMatch::Named),
        // Shown the default, which the client does not take.
        ("two.labels.example.com", None, SniMatch::Default),
        ("example.com", None, SniMatch::Default),
        ("elsewhere.net", None, SniMatch::Default),
    ];
    for (name, certificate, sni) in cases {
        assert_eq!(shown(&context, &authority, name, &all), certificate, "{name}");
        assert_eq!(context.match_sni(Some(name)), sni, "{name}");
    }
    assert_eq!(context.match_sni(Some("mail.example.com.")), SniMatch::Named);
    assert_eq!(context.match_sni(None), SniMatch::Default);
}

#[test]
fn strict_sni_refuses_what_no_certificate_bears() {
    let authority = Authority::new("authority");
    let mail = authority.issue(&["mail.example.com"], Key::P256);
    let settings = ServerSettings { strict_sni: true, ..server_settings(&[&mail]) };
    let context = ServerContext::new(&settings, None).expect("a context");
    let client = Arc::new(client(authority.roots(), Speaks::Both));
    visit(&context, &client, "mail.example.com").expect("a name of ours");
    let error = visit(&context, &client, "192.0.2.7").expect_err("no SNI").of_server();
    assert!(matches!(error, Error::General(_)), "{error}");
    visit(&context, &client, "elsewhere.net").expect_err("a name of nobody's");
    assert_eq!(context.match_sni(Some("mail.example.com")), SniMatch::Named);
    assert_eq!(context.match_sni(Some("elsewhere.net")), SniMatch::Refused);
    assert_eq!(context.match_sni(None), SniMatch::Refused);
}

#[test]
fn rsa_and_ecdsa_stand_side_by_side_and_the_client_gets_the_cheaper_one_that_it_understands() {
    let authority = Authority::new("authority");
    let rsa = authority.issue(&["mail.example.com"], Key::Rsa);
    let ecdsa = authority.issue(&["mail.example.com"], Key::P256);
    // The order of the file is no matter; a client without a name of ours gets both to choose from, too.
    for order in [[&rsa, &ecdsa], [&ecdsa, &rsa]] {
        let context = ServerContext::new(&server_settings(&order), None).expect("a context");
        for (speaks, only_rsa) in [Speaks::Tls12, Speaks::Tls13].into_iter().flat_map(|s| [(s, false), (s, true)]) {
            let mut config = client(authority.roots(), speaks);
            if only_rsa {
                config.dangerous().set_certificate_verifier(Arc::new(UnderstandsRsa));
            }
            let pair = visit(&context, &Arc::new(config), "mail.example.com").expect("either is understood");
            let leaf = &pair.client.peer_certificates().expect("a certificate")[0];
            let expected = if only_rsa { &rsa } else { &ecdsa };
            assert_eq!(*leaf, expected.identity.certified_key().cert[0], "{speaks:?} {only_rsa}");
        }
    }
    assert!(matches!(rsa.identity.key_kind(), KeyKind::Rsa { .. }));
}

/// Announces RSA signatures only, and judges nothing: it is our choice that counts.
#[derive(Debug)]
struct UnderstandsRsa;

impl ServerCertVerifier for UnderstandsRsa {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PKCS1_SHA256]
    }
}

#[test]
fn a_client_that_understands_no_signature_of_ours_is_told_so() {
    let authority = Authority::new("authority");
    let ecdsa = authority.issue(&["mail.example.com"], Key::P256);
    let context = ServerContext::new(&server_settings(&[&ecdsa]), None).expect("a context");
    for speaks in [Speaks::Tls12, Speaks::Tls13] {
        let mut config = client(authority.roots(), speaks);
        config.dangerous().set_certificate_verifier(Arc::new(UnderstandsRsa));
        let failed = visit(&context, &Arc::new(config), "mail.example.com").expect_err("nothing shared");
        let Failed::Server(error) = failed else { panic!("{failed:?}") };
        assert_eq!(Fault::of(&error), Fault::NothingShared, "{error}");
    }
}

#[test]
fn a_service_without_certificates_is_no_context() {
    let error = ServerContext::new(&server_settings(&[]), None).expect_err("nothing to show");
    assert!(matches!(error, ContextError::NoIdentity), "{error}");
}
