//! What the cryptography of TLS could do if it were all there is: signatures, key exchanges and bytes a second on the subject's CPU, and how much of that
//! whole handshakes in memory come to.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::Signer;
use rustls::{NamedGroup, ServerConfig, SignatureScheme};
use towpath_sys::process::MemoryFile;
use towpath_tls::{
    CipherPolicy, ClientCertificates, Identity, MinVersion, Provider, Resumption, ServedIdentity, ServerContext,
    ServerSettings, TicketKeys,
};

use super::sample::{Reading, Sample};
use super::{Case, Options, on_cpus};
use crate::certificate::{Certificate, KeyKind};
use crate::load::tls::{Channel, Tls, Version, client_config};

/// The providers, and what their part of the case is called.
const PROVIDERS: [(Provider, &str); 2] = [(Provider::AwsLcRs, ""), (Provider::Ring, "-ring")];

/// Each figure is the best of so many stretches: others who disturb only take.
const STRETCHES: u32 = 4;

/// Stretches of a counted time.
const STRETCHES_PER_MEASURE: u32 = 16;

/// What a server signs in TLS 1.3 with SHA-256 (RFC 8446 section 4.4.3): spaces, context, a zero, the hash.
const SIGNED_BYTES: usize = 64 + 33 + 1 + 32;

/// Plaintext of a full record.
const RECORD_BYTES: usize = 16 * 1024;

/// How long tickets hold; no turn is as long.
const TICKET_LIFETIME: Duration = Duration::from_secs(3600);

/// Both providers one after the other.
pub(super) fn take(case: &Case, options: &Options) -> io::Result<Vec<Sample>> {
    let stretch = options.measure / STRETCHES_PER_MEASURE;
    on_cpus(&[options.pins.balancer], || {
        let of = |(provider, suffix): (Provider, &str)| {
            let readings = readings(provider, stretch)?;
            Ok(Sample { case: format!("{}{suffix}", case.name), readings, ..Sample::default() })
        };
        PROVIDERS.into_iter().map(of).collect()
    })
}

fn readings(provider: Provider, stretch: Duration) -> io::Result<Vec<Reading>> {
    let crypto = provider.crypto();
    let reading = |metric, unit: &str, value| Reading { metric, unit: unit.into(), value, comparable: true };
    let group = crypto.kx_groups.iter().find(|group| group.name() == NamedGroup::X25519).copied();
    let exchanges = per_second(stretch, exchange(group.ok_or_else(|| io::Error::other("no X25519"))?)?)?;
    let (sealed, opened) = match provider {
        Provider::AwsLcRs => aws_lc::bytes_per_second(stretch)?,
        Provider::Ring => of_ring::bytes_per_second(stretch)?,
    };
    let mut readings = vec![
        reading("x25519-exchanges", "/s", exchanges),
        reading("aes128-gcm-seal", "GB/s", sealed / 1e9),
        reading("aes128-gcm-open", "GB/s", opened / 1e9),
    ];
    let kinds = [
        (KeyKind::Rsa2048, ["rsa2048-signatures", "rsa2048-handshakes", "rsa2048-share"]),
        (KeyKind::P256, ["p256-signatures", "p256-handshakes", "p256-share"]),
    ];
    for (kind, [of_signatures, of_handshakes, of_share]) in kinds {
        let certificate = Certificate::of_run(kind)?;
        let signatures = per_second(stretch, sign(&crypto, kind, certificate)?)?;
        let config = server_config(provider, certificate)?;
        let handshakes = handshakes_per_second(stretch, &config, false)?;
        readings.push(reading(of_signatures, "/s", signatures));
        readings.push(reading(of_handshakes, "/s", handshakes));
        readings.push(reading(of_share, "%", handshakes * (1.0 / signatures + 1.0 / exchanges) * 100.0));
        if kind == KeyKind::P256 {
            readings.push(reading("p256-resumed-handshakes", "/s", handshakes_per_second(stretch, &config, true)?));
        }
    }
    Ok(readings)
}

/// How often work is done in a second.
fn per_second(stretch: Duration, mut work: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    best_of_stretches(stretch, || {
        let started = Instant::now();
        work()?;
        Ok(started.elapsed())
    })
}

/// The same, where the work tells how long it took.
fn best_of_stretches(stretch: Duration, mut work: impl FnMut() -> io::Result<Duration>) -> io::Result<f64> {
    // Tables and caches are as they stay.
    work()?;
    let mut best: f64 = 0.0;
    for _ in 0..STRETCHES {
        let (started, mut done, mut took) = (Instant::now(), 0, Duration::ZERO);
        while started.elapsed() < stretch {
            took += work()?;
            done += 1;
        }
        best = best.max(f64::from(done) / took.as_secs_f64());
    }
    Ok(best)
}

/// As a server does it: a key pair of its own, and the secret with the client's.
fn exchange(group: &'static dyn SupportedKxGroup) -> io::Result<impl FnMut() -> io::Result<()>> {
    let peer = group.start().map_err(io::Error::other)?;
    let theirs = peer.pub_key().to_vec();
    Ok(move || {
        let exchanged = group.start().and_then(|ours| ours.complete(&theirs)).map_err(io::Error::other)?;
        black_box(exchanged.secret_bytes());
        Ok(())
    })
}

fn sign(
    crypto: &CryptoProvider,
    kind: KeyKind,
    certificate: &Certificate,
) -> io::Result<impl FnMut() -> io::Result<()> + use<>> {
    let scheme = match kind {
        KeyKind::P256 => SignatureScheme::ECDSA_NISTP256_SHA256,
        KeyKind::Rsa2048 => SignatureScheme::RSA_PSS_SHA256,
    };
    let key = PrivateKeyDer::try_from(certificate.key_der.clone()).map_err(io::Error::other)?;
    let key = crypto.key_provider.load_private_key(key).map_err(io::Error::other)?;
    let signer: Box<dyn Signer> =
        key.choose_scheme(&[scheme]).ok_or_else(|| io::Error::other("a key that does not sign"))?;
    Ok(move || {
        black_box(signer.sign(&[0x20; SIGNED_BYTES]).map_err(io::Error::other)?);
        Ok(())
    })
}

/// What a service has that is set to nothing special.
fn server_config(provider: Provider, certificate: &Certificate) -> io::Result<Arc<ServerConfig>> {
    let [chain, key] = [&certificate.pem, &certificate.key_pem].map(|pem| MemoryFile::create(pem.as_bytes()));
    let identity = Identity::load(&chain?.path(), &key?.path(), provider).map_err(io::Error::other)?;
    let settings = ServerSettings {
        service: "ceiling".into(),
        provider,
        identities: vec![ServedIdentity { identity: Arc::new(identity), staple: None }],
        min_version: MinVersion::default(),
        ciphers: CipherPolicy::default(),
        post_quantum: false,
        alpn: Vec::new(),
        strict_sni: false,
        resumption: Resumption::Tickets(Arc::new(TicketKeys::drawn(TICKET_LIFETIME))),
        client_certificates: ClientCertificates::None,
    };
    Ok(ServerContext::new(&settings, None).map_err(io::Error::other)?.config().clone())
}

/// Handshakes of TLS 1.3; the client's work does not count.
fn handshakes_per_second(stretch: Duration, server: &Arc<ServerConfig>, resumes: bool) -> io::Result<f64> {
    let client = client_config(Tls { version: Version::V13, resumes })?;
    if resumes {
        handshake(&client, server)?;
    }
    best_of_stretches(stretch, || {
        let (took, resumed) = handshake(&client, server)?;
        if resumed == resumes { Ok(took) } else { Err(io::Error::other("a handshake is not what was asked for")) }
    })
}

/// One of them: how long the server was at it, and whether it resumed a session.
fn handshake(client: &Arc<rustls::ClientConfig>, server: &Arc<ServerConfig>) -> io::Result<(Duration, bool)> {
    let mut client = Channel::client(client)?;
    let mut hello = client.take_flight();
    let started = Instant::now();
    let mut server = Channel::server(server)?;
    server.take(&mut hello, |_| {})?;
    let mut flight = server.take_flight();
    let mut took = started.elapsed();
    client.take(&mut flight, |_| {})?;
    let mut finished = client.take_flight();
    let started = Instant::now();
    server.take(&mut finished, |_| {})?;
    let mut ticket = server.take_flight();
    let resumed = server.is_resumed();
    let is_open = server.is_open();
    drop(server);
    took += started.elapsed();
    client.take(&mut ticket, |_| {})?;
    match resumed {
        Some(resumed) if is_open && client.is_open() => Ok((took, resumed)),
        _ => Err(io::Error::other("a handshake did not come to its end")),
    }
}

/// Records sealed and opened in place by one of two libraries with the same interface, in bytes a second.
macro_rules! bytes_per_second {
    ($module:ident, $library:ident) => {
        mod $module {
            use super::*;
            use $library::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

            pub(super) fn bytes_per_second(stretch: Duration) -> io::Result<(f64, f64)> {
                let broken = |_| io::Error::other("AES-128-GCM failed");
                let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(broken)?);
                // The bytes of the header of a record of TLS 1.3.
                let (nonce, aad) = (|| Nonce::assume_unique_for_key([3; 12]), || Aad::from([23, 3, 3, 64, 17]));
                let mut record = vec![1; RECORD_BYTES];
                let sealed = per_second(stretch, || {
                    let tag = key.seal_in_place_separate_tag(nonce(), aad(), black_box(&mut record)).map_err(broken)?;
                    black_box(tag.as_ref());
                    Ok(())
                })?;
                let opened = best_of_stretches(stretch, || {
                    // Sealed anew each time: opening takes the ciphertext's place.
                    record.truncate(RECORD_BYTES);
                    let tag = key.seal_in_place_separate_tag(nonce(), aad(), &mut record).map_err(broken)?;
                    record.extend_from_slice(tag.as_ref());
                    let started = Instant::now();
                    black_box(key.open_in_place(nonce(), aad(), &mut record).map_err(broken)?.len());
                    Ok(started.elapsed())
                })?;
                Ok((sealed * RECORD_BYTES as f64, opened * RECORD_BYTES as f64))
            }
        }
    };
}

bytes_per_second!(aws_lc, aws_lc_rs);
bytes_per_second!(of_ring, ring);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_providers_tell_every_figure() {
        for (provider, _) in PROVIDERS {
            let readings = readings(provider, Duration::from_millis(1)).unwrap();
            assert_eq!(readings.len(), 10);
            assert!(readings.iter().all(|reading| reading.value.is_finite() && reading.value > 0.0), "{readings:?}");
        }
    }
}
