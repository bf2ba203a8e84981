//! How a real server that TLS is spoken with again is known to be the right one.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error as TlsError, SignatureScheme};

use crate::ContextError;
use crate::client_certs::root_store;

/// Digest of a certificate.
pub type Sha256 = [u8; 32];

/// How a real server is judged.
#[derive(Clone, Default)]
pub enum ServerVerification {
    /// By its chain up to one of these authorities, its dates and its name.
    Authorities(Vec<CertificateDer<'static>>),
    /// Not at all: whoever answers at the address is it.
    #[default]
    None,
    /// Its own certificate has one of these SHA-256 digests (over the DER form); dates, name and issuer do not count.
    Pinned(Vec<Sha256>),
}

impl fmt::Debug for ServerVerification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerVerification::Authorities(authorities) => write!(f, "Authorities({})", authorities.len()),
            ServerVerification::None => f.write_str("None"),
            ServerVerification::Pinned(pins) => write!(f, "Pinned({})", pins.len()),
        }
    }
}

pub(crate) fn server_verifier(
    verification: &ServerVerification,
    crypto: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, ContextError> {
    Ok(match verification {
        ServerVerification::Authorities(authorities) => {
            let roots = Arc::new(root_store(authorities)?);
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(crypto))
                .build()
                .map_err(|_| ContextError::NoAuthority)?
        }
        ServerVerification::None => Arc::new(AnyServer { crypto: Arc::clone(crypto) }),
        ServerVerification::Pinned(pins) => Arc::new(PinnedServer { pins: pins.clone(), crypto: Arc::clone(crypto) }),
    })
}

/// Takes whoever answers, so a proof that it has the key is not asked for either.
#[derive(Debug)]
struct AnyServer {
    crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes the server that has the key of one of certain certificates.
#[derive(Debug)]
struct PinnedServer {
    pins: Vec<Sha256>,
    crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let shown = digest(&SHA256, leaf);
        match self.pins.iter().any(|pin| pin == shown.as_ref()) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, leaf, signature, &self.crypto.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, leaf, signature, &self.crypto.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}
