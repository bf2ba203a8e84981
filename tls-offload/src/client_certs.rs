//! Certificates of clients: whether they are asked for, who vouches for them, and which are revoked.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{Error as TlsError, RootCertStore};

use crate::ContextError;

/// Whether clients are asked for a certificate.
#[derive(Clone, Debug, Default)]
pub enum ClientCertificates {
    /// No.
    #[default]
    None,
    /// Asked for; clients without one are let in, those with a bad one are not.
    Request(ClientTrust),
    /// Demanded.
    Require(ClientTrust),
}

/// Which certificates of clients are good.
#[derive(Clone, Default)]
pub struct ClientTrust {
    /// Authorities that they come from; never empty.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Revocation lists. If there are any, each issuer of a client's chain needs one, and none may be out of date.
    pub revocations: Vec<CertificateRevocationListDer<'static>>,
}

impl fmt::Debug for ClientTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTrust")
            .field("authorities", &self.authorities.len())
            .field("revocations", &self.revocations.len())
            .finish()
    }
}

/// The policy of one service, ready to judge.
#[derive(Clone)]
pub(crate) struct ClientVerifier {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Digest of everything that the judgement depends on.
    policy: [u8; 32],
}

impl ClientVerifier {
    pub(crate) fn new(
        certificates: &ClientCertificates,
        crypto: &Arc<CryptoProvider>,
    ) -> Result<ClientVerifier, ContextError> {
        let (word, trust) = match certificates {
            ClientCertificates::None => {
                let verifier = WebPkiClientVerifier::no_client_auth();
                return Ok(ClientVerifier { verifier, policy: policy("none", &ClientTrust::default()) });
            }
            ClientCertificates::Request(trust) => ("request", trust),
            ClientCertificates::Require(trust) => ("require", trust),
        };
        let roots = Arc::new(root_store(&trust.authorities)?);
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(crypto))
            .with_crls(trust.revocations.iter().cloned())
            .enforce_revocation_expiration();
        if matches!(certificates, ClientCertificates::Request(_)) {
            builder = builder.allow_unauthenticated();
        }
        let verifier = builder.build().map_err(|error| match error {
            VerifierBuilderError::InvalidCrl(error) => ContextError::RevocationList(TlsError::from(error).to_string()),
            _ => ContextError::NoAuthority,
        })?;
        Ok(ClientVerifier { verifier, policy: policy(word, trust) })
    }

    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }

    /// What a session is bound to: the service and this policy.
    pub(crate) fn binding(&self, service: &str) -> [u8; 32] {
        let mut digest = Context::new(&SHA256);
        update(&mut digest, service.as_bytes());
        digest.update(&self.policy);
        finish(digest)
    }

    pub(crate) fn admits_resumed(&self, certificates: Option<&[CertificateDer<'_>]>) -> Result<(), TlsError> {
        match certificates {
            _ if !self.verifier.offer_client_auth() => Ok(()),
            Some([leaf, intermediates @ ..]) => {
                self.verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map(drop)
            }
            _ if self.verifier.client_auth_mandatory() => Err(TlsError::NoCertificatesPresented),
            _ => Ok(()),
        }
    }
}

/// The authorities as rustls takes them. Each must be able to be one: one that is passed over would be missed when a client comes with it.
pub(crate) fn root_store(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, ContextError> {
    let mut store = RootCertStore::empty();
    for (authority, place) in authorities.iter().zip(1..) {
        store.add(authority.clone()).map_err(|error| ContextError::Authority { place, error: error.to_string() })?;
    }
    if store.is_empty() {
        return Err(ContextError::NoAuthority);
    }
    Ok(store)
}

fn policy(word: &str, trust: &ClientTrust) -> [u8; 32] {
    let mut digest = Context::new(&SHA256);
    update(&mut digest, word.as_bytes());
    digest.update(&(trust.authorities.len() as u64).to_be_bytes());
    for authority in &trust.authorities {
        update(&mut digest, authority);
    }
    for list in &trust.revocations {
        update(&mut digest, list);
    }
    finish(digest)
}

/// With its length, so that no two inputs run into one another.
fn update(digest: &mut Context, bytes: &[u8]) {
    digest.update(&(bytes.len() as u64).to_be_bytes());
    digest.update(bytes);
}

fn finish(digest: Context) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.finish().as_ref());
    bytes
}
