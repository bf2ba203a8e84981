//! Versions, cipher suites, groups, application protocols.

use std::sync::Arc;

use rustls::crypto::{aws_lc_rs, ring};
use rustls::{CipherSuite, Error, NamedGroup, ProtocolVersion};
use towpath_tls::{CipherPolicy, Fault, Identity, MinVersion, Provider, ServerContext, ServerSettings};

use super::authority::{Authority, Issued, Key, server_settings};
use super::handshake::{Speaks, client, client_of, visit};

const NAME: &str = "mail.example.com";

/// The same certificate by the other provider.
fn by(provider: Provider, issued: &Issued) -> ServerSettings {
    let mut settings = server_settings(&[issued]);
    let identity = Identity::load(&issued.chain_path, &issued.key_path, provider).expect("an identity");
    settings.identities[0].identity = Arc::new(identity);
    settings.provider = provider;
    settings
}

#[test]
fn aes_128_comes_first_whatever_the_client_prefers_and_aes_256_is_there_for_who_asks() {
    let authority = Authority::new("authority");
    for (provider, key) in [Provider::AwsLcRs, Provider::Ring].into_iter().flat_map(|p| [(p, Key::P256), (p, Key::Rsa)])
    {
        let context = ServerContext::new(&by(provider, &authority.issue(&[NAME], key)), None).expect("a context");
        let tls12 = match key {
            Key::P256 => CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            Key::Rsa => CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        };
        for (speaks, version, suite) in [
            (Speaks::Tls12, ProtocolVersion::TLSv1_2, tls12),
            (Speaks::Tls13, ProtocolVersion::TLSv1_3, CipherSuite::TLS13_AES_128_GCM_SHA256),
            (Speaks::Both, ProtocolVersion::TLSv1_3, CipherSuite::TLS13_AES_128_GCM_SHA256),
        ] {
            // The client's own order begins with AES-256.
            let pair = visit(&context, &Arc::new(client(authority.roots(), speaks)), NAME).expect("a handshake");
            assert_eq!(pair.server.protocol_version(), Some(version), "{provider:?} {key:?} {speaks:?}");
            assert_eq!(pair.server.negotiated_cipher_suite().map(|suite| suite.suite()), Some(suite));
        }
        let mut crypto = ring::default_provider();
        crypto.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_AES_256_GCM_SHA384);
        let asks = client_of(crypto, authority.roots(), Speaks::Tls13, None);
        visit(&context, &Arc::new(asks), NAME).expect("AES-256 for who asks");
    }
}

#[test]
fn the_oldest_version_and_the_modern_policy_keep_tls_1_2_out() {
    let authority = Authority::new("authority");
    let mail = authority.issue(&[NAME], Key::P256);
    for (min_version, ciphers, has_tls12) in [
        (MinVersion::Tls12, CipherPolicy::Intermediate, true),
        (MinVersion::Tls12, CipherPolicy::Modern, false),
        (MinVersion::Tls13, CipherPolicy::Intermediate, false),
        (MinVersion::Tls13, CipherPolicy::Modern, false),
    ] {
        let settings = ServerSettings { min_version, ciphers, ..server_settings(&[&mail]) };
        let context = ServerContext::new(&settings, None).expect("a context");
        let visited = visit(&context, &Arc::new(client(authority.roots(), Speaks::Tls12)), NAME);
        match visited {
            Ok(_) => assert!(has_tls12, "{min_version:?} {ciphers:?}"),
            Err(failed) => {
                assert!(!has_tls12, "{min_version:?} {ciphers:?}: {failed:?}");
                assert_eq!(Fault::of(&failed.of_server()), Fault::NothingShared);
            }
        }
        visit(&context, &Arc::new(client(authority.roots(), Speaks::Tls13)), NAME).expect("TLS 1.3");
    }
}

#[test]
fn post_quantum_key_exchange_is_a_setting() {
    let authority = Authority::new("authority");
    let mail = authority.issue(&[NAME], Key::P256);
    let mut crypto = aws_lc_rs::default_provider();
    crypto.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    let client = Arc::new(client_of(crypto, authority.roots(), Speaks::Tls13, None));
    for (post_quantum, group) in [(true, NamedGroup::X25519MLKEM768), (false, NamedGroup::X25519)] {
        let settings = ServerSettings { post_quantum, ..server_settings(&[&mail]) };
        let context = ServerContext::new(&settings, None).expect("a context");
        let pair = visit(&context, &client, NAME).expect("a handshake");
        let chosen = pair.client.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(chosen, Some(group));
    }
    // ring has none, and the setting is no reason to refuse it.
    let context = ServerContext::new(&by(Provider::Ring, &mail), None).expect("a context");
    let pair = visit(&context, &client, NAME).expect("a handshake");
    assert_eq!(pair.client.negotiated_key_exchange_group().map(|group| group.name()), Some(NamedGroup::X25519));
}

#[test]
fn application_protocols_are_ours_in_order_and_none_in_common_is_a_refusal() {
    let authority = Authority::new("authority");
    let mail = authority.issue(&[NAME], Key::P256);
    let settings = ServerSettings { alpn: vec![b"http/1.1".to_vec(), b"h2".to_vec()], ..server_settings(&[&mail]) };
    let context = ServerContext::new(&settings, None).expect("a context");
    let offer = |protocols: &[&[u8]]| {
        let mut config = client(authority.roots(), Speaks::Both);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        visit(&context, &Arc::new(config), NAME)
    };
    let pair = offer(&[b"h2", b"http/1.1"]).expect("both");
    assert_eq!(pair.client.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(offer(&[]).expect("none offered").client.alpn_protocol(), None);
    let error = offer(&[b"imap"]).expect_err("nothing in common").of_server();
    assert_eq!(error, Error::NoApplicationProtocol);
    assert_eq!(Fault::of(&error), Fault::NothingShared);
}

#[test]
fn clients_that_give_up_and_noise_have_their_own_causes() {
    let authority = Authority::new("authority");
    let mail = authority.issue(&[NAME], Key::P256);
    let context = ServerContext::new(&server_settings(&[&mail]), None).expect("a context");
    let mut server = rustls::ServerConnection::new(Arc::clone(context.config())).expect("a server");
    server.read_tls(&mut &b"GET / HTTP/1.1\r\n\r\n"[..]).expect("from memory");
    let error = server.process_new_packets().expect_err("not TLS");
    assert_eq!(Fault::of(&error), Fault::Protocol, "{error}");

    let mut server = rustls::ServerConnection::new(Arc::clone(context.config())).expect("a server");
    // A fatal alert: unknown_ca (RFC 8446 §6.2).
    server.read_tls(&mut &[21, 3, 3, 0, 2, 2, 48][..]).expect("from memory");
    let error = server.process_new_packets().expect_err("the client gave up");
    assert_eq!(Fault::of(&error), Fault::Alert(48), "{error}");
}
