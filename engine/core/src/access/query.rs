//! What of a query is written: its parameters may be passwords, tokens and names of people.

use towpath_config::model::LoggedQuery;

/// What stands in place of a value.
const HIDDEN: &[u8] = b"*";

/// Calls `put` with the parts of `target`, or of a whole URI, that may be written. Userinfo in front of a host and a fragment never are.
pub(super) fn without_secrets<'t>(target: &'t [u8], shown: LoggedQuery, mut put: impl FnMut(&'t [u8])) {
    let without_fragment = target.split(|byte| *byte == b'#').next().unwrap_or_default();
    let (path, query) = match without_fragment.iter().position(|byte| *byte == b'?') {
        Some(at) => (&without_fragment[..at], Some(&without_fragment[at + 1..])),
        None => (without_fragment, None),
    };
    let mut put_path = |part: &'t [u8]| match shown {
        LoggedQuery::Whole => put(part),
        LoggedQuery::Names | LoggedQuery::None => without_parameters(part, &mut put),
    };
    without_user(path, &mut put_path);
    let Some(query) = query else { return };
    match shown {
        LoggedQuery::None => {}
        LoggedQuery::Whole => {
            put(b"?");
            put(query);
        }
        LoggedQuery::Names => {
            put(b"?");
            for (index, parameter) in query.split(|byte| matches!(byte, b'&' | b';')).enumerate() {
                if index > 0 {
                    put(b"&");
                }
                match parameter.iter().position(|byte| *byte == b'=') {
                    Some(at) => {
                        put(&parameter[..=at]);
                        put(HIDDEN);
                    }
                    // The whole may be a secret, as `?TOKEN` is.
                    None if !parameter.is_empty() => put(HIDDEN),
                    None => {}
                }
            }
        }
    }
}

/// Hides the values of parameters within a path, as sessions of Java servers are: `;name=value` (RFC 3986 §3.3).
fn without_parameters<'t>(path: &'t [u8], put: &mut impl FnMut(&'t [u8])) {
    let mut rest = path;
    while let Some(at) = rest.iter().position(|byte| *byte == b';') {
        let end = rest[at..].iter().position(|byte| *byte == b'/').map_or(rest.len(), |end| at + end);
        for (index, parameter) in rest[..end].split(|byte| *byte == b';').enumerate() {
            match (index, parameter.iter().position(|byte| *byte == b'=')) {
                (0, _) => put(parameter),
                (_, Some(equals)) => {
                    put(b";");
                    put(&parameter[..=equals]);
                    put(HIDDEN);
                }
                (_, None) => {
                    put(b";");
                    put(parameter);
                }
            }
        }
        rest = &rest[end..];
    }
    put(rest);
}

/// Leaves out what stands between `//` and `@` in front of the path (RFC 3986 §3.2.1).
fn without_user<'t>(uri: &'t [u8], put: &mut impl FnMut(&'t [u8])) {
    let authority = uri.windows(3).position(|three| three == b"://").map(|at| at + 3);
    let Some(start) = authority else { return put(uri) };
    let end = uri[start..].iter().position(|byte| *byte == b'/').map_or(uri.len(), |at| start + at);
    match uri[start..end].iter().rposition(|byte| *byte == b'@') {
        Some(at) => {
            put(&uri[..start]);
            put(&uri[start + at + 1..]);
        }
        None => put(uri),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_written_unless_the_file_says_so() {
        let put = |target: &str, shown| {
            let mut out = Vec::new();
            without_secrets(target.as_bytes(), shown, |part| out.extend_from_slice(part));
            String::from_utf8(out).unwrap()
        };
        for (target, names, none, whole) in [
            ("/", "/", "/", "/"),
            ("/a?b=secret&c=secret", "/a?b=*&c=*", "/a", "/a?b=secret&c=secret"),
            ("/a?b=secret;c==&&d=", "/a?b=*&c=*&&d=*", "/a", "/a?b=secret;c==&&d="),
            ("/a?secret", "/a?*", "/a", "/a?secret"),
            ("/a?", "/a?", "/a", "/a?"),
            ("/a?b=x?y=secret", "/a?b=*", "/a", "/a?b=x?y=secret"),
            (
                "https://user:secret@host/p?q=secret#secret",
                "https://host/p?q=*",
                "https://host/p",
                "https://host/p?q=secret",
            ),
            ("https://user:s@cret@host", "https://host", "https://host", "https://host"),
            ("/mail/to@host", "/mail/to@host", "/mail/to@host", "/mail/to@host"),
            ("https://host/to@other", "https://host/to@other", "https://host/to@other", "https://host/to@other"),
            ("*", "*", "*", "*"),
            (
                "/a;jsessionid=secret;v/b;c=secret?d",
                "/a;jsessionid=*;v/b;c=*?*",
                "/a;jsessionid=*;v/b;c=*",
                "/a;jsessionid=secret;v/b;c=secret?d",
            ),
        ] {
            assert_eq!(put(target, LoggedQuery::Names), names);
            assert_eq!(put(target, LoggedQuery::None), none);
            assert_eq!(put(target, LoggedQuery::Whole), whole);
        }
    }
}
