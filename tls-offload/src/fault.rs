//! Whose fault it is that a TLS connection failed, and the alerts that are told without one.

use rustls::{Error as TlsError, PeerIncompatible};
use thiserror::Error;

/// Why a handshake or a connection failed, by what can be done about it. Trying again on the same connection is useless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Fault {
    /// The peer gave up with this alert (RFC 8446 §6.2): it does not trust our certificate, or wants what we refuse.
    #[error("the peer gave up with alert {0}")]
    Alert(u8),
    /// The peer's certificate is missing, not trusted, revoked or out of date.
    #[error("the peer's certificate is missing, not trusted, revoked or out of date")]
    Certificate,
    /// We have failed, not the peer.
    #[error("TLS failed on our side")]
    Internal,
    /// The peer speaks no version, cipher suite, group, signature or application protocol that we speak.
    #[error("no version, cipher suite, group, signature or application protocol in common")]
    NothingShared,
    /// What the peer sent is not TLS, or breaks its rules.
    #[error("the peer does not speak TLS, or breaks its rules")]
    Protocol,
    /// No certificate is for the name that the client asks for.
    #[error("no certificate is for the name that the client asks for")]
    UnknownName,
}

/// Refuses a handshake that has not begun, for want of room or time: `internal_error`, in a record that every version reads.
pub const INTERNAL_ERROR_ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 80];
/// Refuses a handshake that has not begun, because of the name that the client asks for: `unrecognized_name` (RFC 6066 §3).
pub const UNKNOWN_NAME_ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 112];

impl Fault {
    /// The cause behind `error`, which ended a handshake or a connection.
    pub fn of(error: &TlsError) -> Fault {
        match error {
            TlsError::AlertReceived(alert) => Fault::Alert(u8::from(*alert)),
            TlsError::InvalidCertificate(_)
            | TlsError::InvalidCertRevocationList(_)
            | TlsError::NoCertificatesPresented
            | TlsError::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                Fault::Certificate
            }
            TlsError::NoApplicationProtocol | TlsError::PeerIncompatible(_) => Fault::NothingShared,
            // What rustls says when no certificate fits (rustls, server/hs.rs).
            TlsError::General(_) => Fault::UnknownName,
            TlsError::EncryptError
            | TlsError::FailedToGetCurrentTime
            | TlsError::FailedToGetRandomBytes
            | TlsError::HandshakeNotComplete => Fault::Internal,
            _ => Fault::Protocol,
        }
    }
}
