//! Which certificate a client is shown: by the name that it asks for and the signatures that it understands.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::UnixTime;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::{ContextError, Curve, Dates, Identity, KeyKind, Validity, staple_dates};

/// A certificate of a service.
#[derive(Clone, Debug)]
pub struct ServedIdentity {
    /// Chain and key.
    pub identity: Arc<Identity>,
    /// An OCSP response about the certificate (DER, RFC 6960), shown to clients that ask for one (RFC 6066 §8) until it ends: clients refuse a
    /// connection with one that has.
    pub staple: Option<Vec<u8>>,
}

/// How a name fits the certificates of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SniMatch {
    /// No certificate bears the name, or none was asked for: the first one is shown.
    Default,
    /// A certificate bears the name.
    Named,
    /// No certificate bears the name, and `strict_sni` refuses: RFC 6066 §3, unrecognized_name.
    Refused,
}

/// The certificates of one service by name.
#[derive(Debug)]
pub(crate) struct IdentityResolver {
    /// By name in lower case; of each the cheapest signature first.
    exact: HashMap<Box<str>, Candidates>,
    /// `*.example.com` under `example.com`.
    wildcard: HashMap<Box<str>, Candidates>,
    /// Those with the names of the first certificate, for clients who ask for no name of ours.
    default: Candidates,
    strict_sni: bool,
}

type Candidates = Vec<Arc<Shown>>;

/// A certificate as clients are shown it.
#[derive(Debug)]
struct Shown {
    certified: Arc<CertifiedKey>,
    /// … without its staple outside of the dates of that.
    bare: Option<(Dates, Arc<CertifiedKey>)>,
}

impl Shown {
    fn of(served: &ServedIdentity) -> Shown {
        let certified = served.identity.certified_key();
        let Some(staple) = &served.staple else {
            return Shown { certified: Arc::clone(certified), bare: None };
        };
        let stapled = CertifiedKey { ocsp: Some(staple.clone()), ..CertifiedKey::clone(certified) };
        let bare = staple_dates(staple).map(|dates| (dates, Arc::clone(certified)));
        Shown { certified: Arc::new(stapled), bare }
    }

    fn now(&self) -> Arc<CertifiedKey> {
        self.at(|| i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX))
    }

    fn at(&self, now_s: impl Fn() -> i64) -> Arc<CertifiedKey> {
        let is_good = |dates: &Dates| matches!(dates.validity(now_s()), Validity::Valid { .. });
        let bare = self.bare.as_ref().filter(|(dates, _)| !is_good(dates));
        Arc::clone(bare.map_or(&self.certified, |(_, bare)| bare))
    }
}

impl IdentityResolver {
    pub(crate) fn new(identities: &[ServedIdentity], strict_sni: bool) -> Result<IdentityResolver, ContextError> {
        let Some(first) = identities.first() else { return Err(ContextError::NoIdentity) };
        let mut ranked: Vec<&ServedIdentity> = identities.iter().collect();
        ranked.sort_by_key(|served| signature_cost(served.identity.key_kind()));
        let mut resolver =
            IdentityResolver { exact: HashMap::new(), wildcard: HashMap::new(), default: Vec::new(), strict_sni };
        for served in ranked {
            let shown = Arc::new(Shown::of(served));
            for name in served.identity.names() {
                let name = name.to_ascii_lowercase();
                let (table, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut resolver.wildcard, parent),
                    None => (&mut resolver.exact, name.as_str()),
                };
                table.entry(name.into()).or_default().push(Arc::clone(&shown));
            }
            // The RSA twin of a default ECDSA certificate is a default too.
            if served.identity.names() == first.identity.names() {
                resolver.default.push(shown);
            }
        }
        Ok(resolver)
    }

    pub(crate) fn match_sni(&self, server_name: Option<&str>) -> SniMatch {
        if server_name.is_some_and(|name| self.named(name).next().is_some()) {
            SniMatch::Named
        } else if self.strict_sni {
            SniMatch::Refused
        } else {
            SniMatch::Default
        }
    }

    /// The certificates that bear `name`, the exact ones first.
    fn named(&self, name: &str) -> impl Iterator<Item = &Arc<Shown>> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        // A wildcard stands for one label (RFC 9525 §6.3).
        let wildcard = name.split_once('.').and_then(|(_, parent)| self.wildcard.get(parent));
        self.exact.get(name.as_str()).into_iter().chain(wildcard).flatten()
    }

    fn choose(&self, server_name: Option<&str>, offered: &[SignatureScheme]) -> Option<&Shown> {
        let fits = |shown: &&Arc<Shown>| shown.certified.key.choose_scheme(offered).is_some();
        let mut named = server_name.into_iter().flat_map(|name| self.named(name)).peekable();
        let has_name = named.peek().is_some();
        if !has_name && self.strict_sni {
            return None;
        }
        let first = if has_name { named.peek().copied() } else { self.default.first() };
        // With a signature that the client does not understand the handshake fails by its true cause.
        named
            .find(fits)
            .or_else(|| self.default.iter().find(fits).filter(|_| !has_name))
            .or(first)
            .map(|shown| &**shown)
    }
}

impl ResolvesServerCert for IdentityResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes()).map(Shown::now)
    }
}

/// The one certificate that we show to a real server that asks.
#[derive(Debug)]
pub(crate) struct OneIdentity(Arc<CertifiedKey>);

impl OneIdentity {
    pub(crate) fn new(identity: &Identity) -> OneIdentity {
        OneIdentity(Arc::clone(identity.certified_key()))
    }
}

impl ResolvesClientCert for OneIdentity {
    fn resolve(&self, _issuers: &[&[u8]], offered: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(offered).map(|_| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Cheapest first: an ECDSA P-256 signature is 18 times cheaper than one with RSA-2048.
fn signature_cost(kind: KeyKind) -> (u8, usize) {
    match kind {
        KeyKind::Ecdsa(Curve::P256) => (0, 0),
        KeyKind::Ed25519 => (1, 0),
        KeyKind::Ecdsa(Curve::P384) => (2, 0),
        KeyKind::Rsa { bits } => (3, bits),
        KeyKind::Ecdsa(Curve::P521) => (4, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::aws_lc_rs::sign::any_supported_type;
    use rustls::pki_types::PrivateKeyDer;

    #[test]
    fn a_staple_is_left_out_before_it_begins_and_once_it_has_ended() {
        let key = rcgen::KeyPair::generate().expect("made for this test").serialize_der();
        let key = any_supported_type(&PrivateKeyDer::Pkcs8(key.into())).expect("made for this test");
        let bare = Arc::new(CertifiedKey::new(Vec::new(), key));
        let stapled = CertifiedKey { ocsp: Some(vec![1]), ..CertifiedKey::clone(&bare) };
        let shown = Shown { certified: Arc::new(stapled), bare: Some((Dates { begin_s: 500, end_s: 1_000 }, bare)) };
        let has_staple = [499, 500, 1_000, 1_001].map(|now_s| shown.at(|| now_s).ocsp.is_some());
        assert_eq!(has_staple, [false, true, true, false]);
    }
}
