//! Which certificates of a heap belong to a key, and in which order they are sent.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::X509Certificate;

/// What follows a server's own certificate, and whether anything is missing (RFC 8446 §4.4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// It ends with a certificate whose issuer is not among the files: right if clients trust that issuer as a root.
    EndsBelow {
        /// The issuer of the last certificate.
        issuer: String,
    },
    /// Up to a self-signed certificate, which is left out unless it is the server's own: clients have it or do not trust it.
    Rooted,
}

/// A chain in the order of the wire, and what was not needed for it.
pub(super) struct Sorted {
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) chain: Chain,
    /// Subjects of certificates that belong to no part of the chain.
    pub(super) spare: Vec<String>,
}

/// Longest chain that is followed.
const CHAIN_MAX: usize = 16;

/// Puts behind the certificate at `leaf` its issuer, that one's, and so on.
pub(super) fn sorted(heap: &[CertificateDer<'static>], parsed: &[X509Certificate<'_>], leaf: usize) -> Sorted {
    let mut order = vec![leaf];
    let mut chain = None;
    while chain.is_none() && order.len() < CHAIN_MAX {
        let last = &parsed[order[order.len() - 1]];
        if is_self_signed(last) {
            chain = Some(Chain::Rooted);
            if order.len() > 1 {
                order.pop();
            }
            break;
        }
        let mut others = (0..parsed.len()).filter(|place| !order.contains(place));
        match others.find(|&place| is_issued_by(last, &parsed[place])) {
            Some(issuer) => order.push(issuer),
            None => chain = Some(Chain::EndsBelow { issuer: last.issuer().to_string() }),
        }
    }
    let last = &parsed[order[order.len() - 1]];
    let is_spare = |place: &usize| {
        let same = |&sent: &usize| heap[sent] == heap[*place];
        !order.iter().any(same) && !is_self_signed(&parsed[*place])
    };
    Sorted {
        chain: chain.unwrap_or_else(|| Chain::EndsBelow { issuer: last.issuer().to_string() }),
        spare: (0..parsed.len()).filter(is_spare).map(|place| parsed[place].subject().to_string()).collect(),
        certificates: order.into_iter().map(|place| heap[place].clone()).collect(),
    }
}

fn is_self_signed(certificate: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == certificate.subject().as_raw()
}

/// By names, and by key identifiers where both have them (RFC 5280 §4.2.1.1): an authority may have several keys under one name.
fn is_issued_by(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    let of_issuer = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(identifier) => identifier.key_identifier.as_ref(),
        _ => None,
    });
    let own = issuer.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier),
        _ => None,
    });
    let same_key = match (of_issuer, own) {
        (Some(of_issuer), Some(own)) => of_issuer.0 == own.0,
        _ => true,
    };
    certificate.issuer().as_raw() == issuer.subject().as_raw() && same_key
}
