//! Which requests a route, a filter or a rewrite is about.

use std::borrow::Cow;
use std::net::IpAddr;

use towpath_config::model::{HeaderMatch, PathMatch, RequestMatch};

use super::head::RequestHead;

/// A request as conditions look at it. Its path is decoded once, when the first of them asks for it.
#[derive(Debug)]
pub(super) struct Looked<'a> {
    head: &'a RequestHead,
    client: IpAddr,
    path: Option<Result<Cow<'a, [u8]>, BadPath>>,
    /// Other paths that servers may read it as.
    others: Option<Vec<Vec<u8>>>,
}

/// A path that servers may read in more than one way: an escape that is none (`%u0065` of IIS, too) or one of a zero byte, and a dot segment with a
/// parameter (`..;x`), which servers of Java follow and others take for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadPath;

impl<'a> Looked<'a> {
    pub(super) fn at(head: &'a RequestHead, client: IpAddr) -> Looked<'a> {
        Looked { head, client: client.to_canonical(), path: None, others: None }
    }

    pub(super) fn head(&self) -> &'a RequestHead {
        self.head
    }

    /// Whether every condition holds. A path is looked at only where the others do.
    pub(super) fn fits(&mut self, when: &RequestMatch) -> Result<bool, BadPath> {
        let RequestMatch { paths, methods, .. } = when;
        let by_method = methods.is_empty() || methods.iter().any(|method| method == self.head.method());
        if !by_method || !self.fits_beside(when) {
            return Ok(false);
        }
        if paths.is_empty() {
            return Ok(true);
        }
        let path = self.path()?;
        Ok(paths.iter().any(|wanted| fits_path(wanted, path)))
    }

    /// Whether every condition of a rule that denies holds, as any server may read the request: escapes resolved twice as well, as some do in
    /// spite of RFC 3986 §2.4, segments without their parameters (`/ecp;x`), as servers of Java have it, and methods in either case, which RFC 9110 §9.1 has differ.
    pub(super) fn may_fit(&mut self, when: &RequestMatch) -> Result<bool, BadPath> {
        let RequestMatch { paths, methods, .. } = when;
        let method = self.head.method();
        let by_method = methods.is_empty() || methods.iter().any(|wanted| wanted.eq_ignore_ascii_case(method));
        if !by_method || !self.fits_beside(when) {
            return Ok(false);
        }
        if paths.is_empty() {
            return Ok(true);
        }
        let path = self.path()?;
        if paths.iter().any(|wanted| fits_path(wanted, path)) {
            return Ok(true);
        }
        let others = self.other_paths()?;
        Ok(others.iter().any(|other| paths.iter().any(|wanted| fits_path(wanted, other))))
    }

    /// Whether every condition but those of method and path holds.
    fn fits_beside(&self, when: &RequestMatch) -> bool {
        let RequestMatch { hosts, header, from, .. } = when;
        let head = self.head;
        (from.is_empty() || holds(from, self.client))
            && (hosts.is_empty() || head.host_name().is_some_and(|name| fits_host(hosts, name)))
            && header.as_ref().is_none_or(|header| has_header(head, header))
    }

    /// What else a server may read the path as. There an escape that is none stays as it is, as lenient servers have it, and a zero byte is refused.
    fn other_paths(&mut self) -> Result<&[Vec<u8>], BadPath> {
        if self.others.is_none() {
            let path = self.path()?;
            let mut others = Vec::new();
            if path.contains(&b';') {
                others.push(resolved(path, Parameters::LeftOut));
            }
            if path.contains(&b'%') {
                let again = unescaped_leniently(path);
                if again.contains(&0) {
                    return Err(BadPath);
                }
                others.push(resolved(&again, Parameters::Kept));
                others.push(resolved(&again, Parameters::LeftOut));
            }
            self.others = Some(others);
        }
        Ok(self.others.as_deref().unwrap_or_default())
    }

    /// The path after decoding.
    pub(super) fn path(&mut self) -> Result<&[u8], BadPath> {
        let head = self.head;
        match self.path.get_or_insert_with(|| decoded(head.path())) {
            Ok(path) => Ok(path),
            Err(bad) => Err(*bad),
        }
    }
}

/// Whether one of these networks holds the address; that must not be an IPv4 address in IPv6 dress.
pub(crate) fn holds(networks: &[(IpAddr, u8)], address: IpAddr) -> bool {
    networks.iter().any(|(network, prefix)| match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(*prefix))).unwrap_or(0);
            (network.to_bits() ^ address.to_bits()) & mask == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(u32::from(*prefix))).unwrap_or(0);
            (network.to_bits() ^ address.to_bits()) & mask == 0
        }
        _ => false,
    })
}

/// `*.` stands for one label, as in certificates.
fn fits_host(hosts: &[String], name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    hosts.iter().any(|host| match host.strip_prefix("*.") {
        Some(below) => {
            name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(below))
        }
        None => name.eq_ignore_ascii_case(host),
    })
}

fn has_header(head: &RequestHead, header: &HeaderMatch) -> bool {
    head.values(&header.name).any(|value| header.value.as_ref().is_none_or(|pattern| pattern.fits(value)))
}

fn fits_path(wanted: &PathMatch, path: &[u8]) -> bool {
    match wanted {
        PathMatch::Exact(exact) => path.eq_ignore_ascii_case(exact.as_bytes()),
        PathMatch::Prefix(prefix) => begins_with(path, prefix),
        PathMatch::Regex(pattern) => pattern.fits(path),
    }
}

/// Whether the first segments of `path` are these, without regard to case.
pub(super) fn begins_with(path: &[u8], prefix: &str) -> bool {
    let Some((start, rest)) = path.split_at_checked(prefix.len()) else { return false };
    start.eq_ignore_ascii_case(prefix.as_bytes()) && (prefix.ends_with('/') || matches!(rest, [] | [b'/', ..]))
}

/// The path as a server reads it in the end: escapes resolved, once; `\` is `/`, as IIS has it; no empty segment, no `.` and no `..`
/// (RFC 3986 §5.2.4), which never lead above the root. Of whatever is no path, like `*`, nothing is changed.
pub(super) fn decoded(path: &str) -> Result<Cow<'_, [u8]>, BadPath> {
    let bytes = path.as_bytes();
    let is_plain = |pair: &[u8]| !matches!(pair, [b'/', b'/' | b'.' | b'\\']);
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'\\')) && bytes.windows(2).all(is_plain)
        || !path.starts_with('/')
    {
        return Ok(Cow::Borrowed(bytes));
    }
    let plain = unescaped(bytes)?;
    let is_odd = |segment: &[u8]| matches!(segment, [b'.', b';', ..] | [b'.', b'.', b';', ..]);
    if plain.split(|byte| matches!(byte, b'/' | b'\\')).any(is_odd) {
        return Err(BadPath);
    }
    Ok(Cow::Owned(resolved(&plain, Parameters::Kept)))
}

/// What becomes of what follows a `;` in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameters {
    Kept,
    LeftOut,
}

/// A path without escapes as it is in the end: `\` is `/`, no empty segment and no dot segment.
fn resolved(plain: &[u8], parameters: Parameters) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(plain.len());
    let mut segments = plain.split(|byte| matches!(byte, b'/' | b'\\')).peekable();
    while let Some(segment) = segments.next() {
        // What ends with a slash or a dot segment is a folder.
        let is_last = segments.peek().is_none();
        let name = match parameters {
            Parameters::Kept => segment,
            Parameters::LeftOut => segment.split(|byte| *byte == b';').next().unwrap_or_default(),
        };
        match name {
            b"" | b"." => {}
            b".." => out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
            name => {
                out.push(b'/');
                out.extend_from_slice(name);
                continue;
            }
        }
        if is_last {
            out.push(b'/');
        }
    }
    out
}

/// An escape that is none stays as it is.
fn unescaped_leniently(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        let digit = |place: usize| after.get(place).and_then(|digit| char::from(*digit).to_digit(16));
        (rest, _) = match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => (&after[2..], out.push((high << 4 | low) as u8)),
            (byte, _, _) => (after, out.push(*byte)),
        };
    }
    out
}

fn unescaped(bytes: &[u8]) -> Result<Vec<u8>, BadPath> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(*digit).to_digit(16)).ok_or(BadPath);
                let byte = (digit()? << 4 | digit()?) as u8;
                if byte == 0 { Err(BadPath) } else { Ok(byte) }?
            }
            byte => byte,
        };
        out.push(byte);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_compared_as_servers_read_them() {
        let rows = [
            ("/owa", "/owa"),
            ("/", "/"),
            ("*", "*"),
            ("/%6Fwa/x", "/owa/x"),
            ("/a/../ecp", "/ecp"),
            ("/a/%2e%2E/ecp", "/ecp"),
            ("/../../ecp", "/ecp"),
            ("//ecp///x", "/ecp/x"),
            ("/./ecp/.", "/ecp/"),
            ("/ecp/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a%2Fecp", "/a/ecp"),
            ("/a\\ecp", "/a/ecp"),
            ("/a%5c..%5cecp", "/ecp"),
            ("/%2565cp", "/%65cp"),
            ("/x.y/.z/a..b/", "/x.y/.z/a..b/"),
            ("/owa;x=..;/a..;b/...;", "/owa;x=..;/a..;b/...;"),
        ];
        for (path, wanted) in rows {
            let decoded = decoded(path).expect(path);
            assert_eq!(String::from_utf8_lossy(&decoded), wanted, "{path}");
        }
        for path in ["/%", "/%1", "/%zz", "/%u0065cp", "/a%00b", "/%+1", "/a/..;/ecp", "/a/%2e%2e;x=1/ecp", "/.;/ecp"] {
            assert_eq!(decoded(path), Err(BadPath), "{path}");
        }
    }

    #[test]
    fn a_prefix_is_whole_segments() {
        let rows = [
            ("/owa", "/owa", true),
            ("/OWA/auth", "/owa", true),
            ("/owax", "/owa", false),
            ("/ow", "/owa", false),
            ("/anything", "/", true),
            ("/owa/", "/owa/", true),
            ("/owa", "/owa/", false),
            ("/owa/x", "/owa/", true),
        ];
        for (path, prefix, fits) in rows {
            assert_eq!(begins_with(path.as_bytes(), prefix), fits, "{path} {prefix}");
        }
    }

    #[test]
    fn names_of_hosts_are_compared_without_case_and_a_star_is_one_label() {
        let hosts = ["mail.example.org".to_owned(), "*.web.example.org".to_owned()];
        let rows = [
            ("mail.example.org", true),
            ("MAIL.example.ORG.", true),
            ("a.web.example.org", true),
            ("a.b.web.example.org", false),
            (".web.example.org", false),
            ("web.example.org", false),
            ("", false),
        ];
        for (name, fits) in rows {
            assert_eq!(fits_host(&hosts, name), fits, "{name}");
        }
    }

    #[test]
    fn networks_hold_what_has_their_prefix() {
        let network = |text: &str| text.parse::<IpAddr>().unwrap();
        let networks = [(network("192.0.2.0"), 24), (network("2001:db8::"), 32)];
        let rows = [("192.0.2.200", true), ("192.0.3.1", false), ("2001:db8:9::1", true), ("2001:db9::1", false)];
        for (address, held) in rows {
            assert_eq!(holds(&networks, network(address)), held, "{address}");
        }
        assert!(holds(&[(network("0.0.0.0"), 0)], network("203.0.113.1")));
        assert!(!holds(&[(network("0.0.0.0"), 0)], network("2001:db8::1")));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Decoding what has no escape again changes nothing, and nothing leads above the root.
        #[test]
        fn a_decoded_path_stays_as_it_is(path in "(/|\\\\|%2f|%2e|\\.|a|B|%41)*") {
            let path = format!("/{path}");
            let once = decoded(&path).unwrap().into_owned();
            prop_assert!(once.starts_with(b"/"));
            let text = String::from_utf8(once.clone()).unwrap();
            prop_assert!(text.split('/').all(|segment| segment != ".." && segment != "."), "{text}");
            prop_assert!(!text.contains("//") && !text.contains('\\'));
            let twice = decoded(&text).unwrap();
            prop_assert_eq!(&*twice, once.as_slice());
        }
    }
}
