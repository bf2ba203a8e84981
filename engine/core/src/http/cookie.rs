//! Cookies that name a server: found in requests and responses, and made by us so that they tell nobody which server that is.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use siphasher::sip128::{Hasher128, SipHasher24};
use towpath_config::model::{InsertedCookie, PersistBy, Persistence};

use crate::ids::{RealServerId, TargetIndex};
use crate::persistence::Fingerprint;
use crate::snapshot::Target;

/// The secret of a service: names of servers in cookies and fingerprints of clients are made by it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HttpSecret([u8; 16]);

impl HttpSecret {
    /// From 16 bytes that nobody else knows.
    pub fn new(secret: [u8; 16]) -> HttpSecret {
        HttpSecret(secret)
    }

    /// The same bytes, for the process that takes over from this one.
    pub fn octets(&self) -> [u8; 16] {
        self.0
    }

    /// From a longer secret.
    pub fn of(secret: &[u8]) -> HttpSecret {
        let mut hasher = SipHasher24::new();
        hasher.write(secret);
        HttpSecret(hasher.finish128().as_bytes())
    }

    /// SipHash-2-4 with 128 bits (Aumasson, Bernstein: a keyed hash for short messages); `purpose` keeps one use from speaking for another.
    pub(crate) fn hash(&self, purpose: u8, say: impl FnOnce(&mut SipHasher24)) -> Fingerprint {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        purpose.hash(&mut hasher);
        say(&mut hasher);
        hasher.finish128().as_bytes()
    }
}

impl std::fmt::Debug for HttpSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpSecret")
    }
}

/// Bytes of a server's name in a cookie: hexadecimal digits.
const NAME_BYTES: usize = 32;

/// What the servers of one place are called in a cookie of ours: a hash of their address and port under the secret. So a cookie leads back to
/// its server after a restart and from other machines that have the secret, nobody can make one, and it shows nothing of the server.
#[derive(Clone, Debug)]
pub struct ServerCookies {
    cookie: InsertedCookie,
    /// By place among the members.
    names: Vec<[u8; NAME_BYTES]>,
    /// Values of `Set-Cookie` that name them; who says sorry is nobody's server.
    lines: Vec<Option<Box<[u8]>>>,
    servers: Vec<RealServerId>,
}

impl ServerCookies {
    /// Of a place whose persistence inserts a cookie.
    pub(super) fn new(
        rule: Option<&Persistence>,
        targets: &[Target],
        secret: &HttpSecret,
    ) -> Option<Arc<ServerCookies>> {
        let inserted =
            |by: &PersistBy| if let PersistBy::InsertedCookie(cookie) = by { Some(cookie.clone()) } else { None };
        let cookie = rule?.by.iter().find_map(inserted)?;
        let name = |target: &Target| {
            let hash = secret.hash(b'c', |hasher| (target.address, target.port).hash(hasher));
            let mut name = [0; NAME_BYTES];
            for (digits, byte) in name.chunks_exact_mut(2).zip(hash) {
                digits.copy_from_slice(&[HEXADECIMAL[usize::from(byte >> 4)], HEXADECIMAL[usize::from(byte & 15)]]);
            }
            name
        };
        let names: Vec<[u8; NAME_BYTES]> = targets.iter().map(name).collect();
        Some(Arc::new(ServerCookies {
            lines: targets
                .iter()
                .zip(&names)
                .map(|(target, name)| (!target.is_sorry()).then(|| line_of(&cookie, name)))
                .collect(),
            cookie,
            names,
            servers: targets.iter().map(|target| target.server).collect(),
        }))
    }

    /// How the cookie is set.
    pub(super) fn cookie(&self) -> &InsertedCookie {
        &self.cookie
    }

    /// The server that a cookie of this value names.
    pub fn server(&self, value: &[u8]) -> Option<RealServerId> {
        let place = self.names.iter().position(|name| name == value)?;
        self.servers.get(place).copied()
    }

    /// The value of `Set-Cookie` that names the member at this place.
    pub fn set(&self, target: TargetIndex) -> Option<&[u8]> {
        self.lines.get(target.index())?.as_deref()
    }
}

/// The value of `Set-Cookie` that sets this cookie so.
fn line_of(cookie: &InsertedCookie, value: &[u8]) -> Box<[u8]> {
    let http_only: &[u8] = if cookie.http_only { b"; HttpOnly" } else { b"" };
    let secure: &[u8] = if cookie.secure { b"; Secure" } else { b"" };
    [cookie.name.as_bytes(), b"=", value, b"; Path=/", http_only, secure].concat().into()
}

const HEXADECIMAL: &[u8; 16] = b"0123456789abcdef";

/// The values that the cookie of this name has in one `Cookie` field (RFC 6265 §4.2.1).
pub(super) fn values<'a>(field: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    field.split(|byte| *byte == b';').filter_map(move |pair| value_of(pair, name))
}

/// The value that a `Set-Cookie` field gives to the cookie of this name (RFC 6265 §4.1.1).
pub(super) fn set_value<'a>(field: &'a [u8], name: &str) -> Option<&'a [u8]> {
    value_of(field.split(|byte| *byte == b';').next()?, name)
}

fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    let (own, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
    (own == name.as_bytes()).then_some(value)
}

#[cfg(test)]
mod tests {
    use towpath_config::model::CookieSet;

    use super::*;
    use crate::fixtures::{half_an_hour, target};
    use crate::snapshot::Role;

    fn cookies(name: &str, secret: u8) -> Arc<ServerCookies> {
        let cookie = InsertedCookie { name: name.into(), set: CookieSet::Missing, http_only: true, secure: false };
        let rule = Persistence { by: vec![PersistBy::InsertedCookie(cookie)], ..half_an_hour() };
        let sorry = Target { role: Role::Sorry, ..target(3) };
        let targets = [target(1), target(2), Target { port: Some(443), ..target(2) }, target(4), sorry];
        ServerCookies::new(Some(&rule), &targets, &HttpSecret::new([secret; 16])).unwrap()
    }

    fn value(cookies: &ServerCookies, place: u16) -> Vec<u8> {
        let set = cookies.set(TargetIndex(place)).unwrap();
        set_value(set, "SERVERID").unwrap().to_vec()
    }

    #[test]
    fn a_cookie_leads_back_to_its_server_and_no_other_value_does() {
        let (own, other) = (cookies("SERVERID", 1), cookies("SERVERID", 2));
        assert_eq!(own.server(&value(&own, 0)), Some(RealServerId(1)));
        assert_eq!(own.server(&value(&own, 1)), Some(RealServerId(2)));
        assert_ne!(value(&own, 1), value(&own, 2), "the port counts");
        assert_eq!(own.server(&value(&other, 0)), None, "of another secret");
        let mut changed = value(&own, 0);
        changed[31] ^= 1;
        assert_eq!(own.server(&changed), None);
        assert_eq!(own.server(b""), None);
        assert_eq!(own.set(TargetIndex(5)), None);
        assert_eq!(own.set(TargetIndex(4)), None, "nobody is to come back to who says sorry");
        let text = String::from_utf8(own.set(TargetIndex(0)).unwrap().to_vec()).unwrap();
        assert!(text.starts_with("SERVERID=") && text.ends_with("; Path=/; HttpOnly"), "{text}");
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let field = b"a=1; SERVERID=x ;XSERVERID=y; SERVERID=\"z\"; SERVERIDX=w; SERVERID; =v";
        let found: Vec<&[u8]> = values(field, "SERVERID").collect();
        assert_eq!(found, [b"x".as_slice(), b"\"z\""]);
        assert_eq!(set_value(b"SERVERID=a=b; Path=/; SERVERID=c", "SERVERID"), Some(b"a=b".as_slice()));
        assert_eq!(set_value(b"other=1; SERVERID=c", "SERVERID"), None);
        assert_eq!(values(b"serverid=x", "SERVERID").count(), 0, "case counts");
    }
}
