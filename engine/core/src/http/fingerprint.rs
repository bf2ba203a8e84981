//! What makes a client, as its requests say: which server it comes back to.

use std::hash::Hasher;
use std::net::IpAddr;

use towpath_config::model::PersistBy;

use super::cookie;
use super::head::{RequestHead, ResponseHead};
use crate::persistence::{Fingerprint, PersistenceKey, Pin, prefix};
use crate::snapshot::{Service, ServiceHttp};

/// Schemes whose credentials are others in every request: they say nothing about who sends it.
const CHANGING: [&[u8]; 4] = [b"Digest", b"Kerberos", b"Negotiate", b"NTLM"];

impl Service {
    /// What the client of this request is known by, if it shows that.
    pub(crate) fn pin(&self, by: &PersistBy, head: &RequestHead, client: IpAddr) -> Option<Pin> {
        let (rule, http) = (self.persistence.as_ref()?, self.http.as_ref()?);
        let fingerprint = match by {
            PersistBy::InsertedCookie(cookie) => {
                let servers = http.cookies.as_ref()?;
                return cookies(head, &cookie.name).find_map(|value| servers.server(value)).map(Pin::Server);
            }
            PersistBy::FoundCookie(name) => http.of_cookie(cookies(head, name).next()),
            PersistBy::Header(name) => http.of_header(head, name),
            PersistBy::SuperHttp => http.of_client(head, None),
            PersistBy::SuperHttpAndSourceIp => http.of_client(head, Some(prefix(client, rule))),
            PersistBy::SipCallId | PersistBy::Sni | PersistBy::SourceIp | PersistBy::TlsSessionId => None,
        };
        fingerprint.map(|fingerprint| Pin::Key(PersistenceKey::of_fingerprint(self.pins, fingerprint)))
    }

    /// The client that this response makes known: the server has set the cookie which it is found by.
    pub fn learns(&self, head: &ResponseHead) -> Option<PersistenceKey> {
        let found = self.persistence.as_ref()?.by.iter().find_map(|by| match by {
            PersistBy::FoundCookie(name) => Some(name),
            _ => None,
        })?;
        let set = head.values("Set-Cookie").find_map(|field| cookie::set_value(field, found));
        let fingerprint = self.http.as_ref()?.of_cookie(set)?;
        Some(PersistenceKey::of_fingerprint(self.pins, fingerprint))
    }
}

impl ServiceHttp {
    fn of_cookie(&self, value: Option<&[u8]>) -> Option<Fingerprint> {
        let value = value.filter(|value| !value.is_empty())?;
        Some(self.rules.secret().hash(b'f', |hasher| hasher.write(value)))
    }

    fn of_header(&self, head: &RequestHead, name: &str) -> Option<Fingerprint> {
        let value = steady(name, head.values(name).next()?)?;
        Some(self.rules.secret().hash(b'h', |hasher| hasher.write(value)))
    }

    /// By `User-Agent` and `Authorization`; `None` where the request has neither.
    fn of_client(&self, head: &RequestHead, address: Option<IpAddr>) -> Option<Fingerprint> {
        let agent = head.values("User-Agent").next();
        let credentials = head.values("Authorization").next().and_then(|value| steady("Authorization", value));
        if agent.is_none() && credentials.is_none() {
            return None;
        }
        let hash = self.rules.secret().hash(b's', |hasher| {
            for part in [agent, credentials].map(Option::unwrap_or_default) {
                hasher.write_usize(part.len());
                hasher.write(part);
            }
            std::hash::Hash::hash(&address, hasher);
        });
        Some(hash)
    }
}

fn cookies<'a>(head: &'a RequestHead, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    head.values("Cookie").flat_map(move |field| cookie::values(field, name))
}

/// A value that the next request of the same client will have as well.
fn steady<'a>(name: &str, value: &'a [u8]) -> Option<&'a [u8]> {
    let scheme = value.split(|byte| *byte == b' ').next().unwrap_or_default();
    let changes = CHANGING.iter().any(|changing| scheme.eq_ignore_ascii_case(changing));
    let is_other_each_time = changes && name.eq_ignore_ascii_case("Authorization");
    (!value.is_empty() && !is_other_each_time).then_some(value)
}

#[cfg(test)]
mod tests;
