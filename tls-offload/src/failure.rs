//! Whose fault it is that a handshake failed.

use rustls::{Error as TlsError, PeerIncompatible};

/// Why a handshake failed, by what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// The peer gave up with an alert: it does not trust our certificate, or wants what we refuse.
    Alert,
    /// The peer's certificate is missing, not trusted, revoked or out of date.
    Certificate,
    /// What the peer sent is not TLS, or breaks its rules.
    Protocol,
    /// The peer speaks no version, cipher suite, group or signature that we speak.
    NothingShared,
}

impl HandshakeFailure {
    /// The cause behind `error`, which ended a handshake.
    pub fn of(error: &TlsError) -> HandshakeFailure {
        match error {
            TlsError::AlertReceived(_) => HandshakeFailure::Alert,
            TlsError::InvalidCertificate(_)
            | TlsError::InvalidCertRevocationList(_)
            | TlsError::NoCertificatesPresented
            | TlsError::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                HandshakeFailure::Certificate
            }
            TlsError::NoApplicationProtocol | TlsError::PeerIncompatible(_) => HandshakeFailure::NothingShared,
            _ => HandshakeFailure::Protocol,
        }
    }
}
