//! What stands behind the `?` of a path: `key=value`, each of a known key, and each said once unless it may be repeated.

#![expect(clippy::result_large_err, reason = "the answer to one request, made and moved once")]

use std::fmt::Display;
use std::str::FromStr;

use hyper::{StatusCode, Uri};

use super::answer::{Answer, problem};

/// Pairs that one query may have.
const PAIRS_MAX: usize = 64;

/// A query, unescaped.
#[derive(Debug)]
pub(super) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// The query of a request, where these keys are known; those that end in `*` may be repeated.
    pub(super) fn of(uri: &Uri, known: &[&str]) -> Result<Query, Answer> {
        let bad = |message: String| problem(StatusCode::BAD_REQUEST, "bad_query", message);
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == PAIRS_MAX {
                return Err(bad(format!("a query has at most {PAIRS_MAX} parts")));
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(key), Some(value)) = (unescape(key), unescape(value)) else {
                return Err(bad("the query has a damaged escape, or no UTF-8".to_owned()));
            };
            let is_repeated = known.iter().any(|known| known.strip_suffix('*') == Some(key.as_str()));
            if !is_repeated && !known.contains(&key.as_str()) {
                let known: Vec<&str> = known.iter().map(|known| known.trim_end_matches('*')).collect();
                return Err(bad(format!("`{key}` means nothing here; there are {}", known.join(", "))));
            }
            if !is_repeated && pairs.iter().any(|(other, _)| *other == key) {
                return Err(bad(format!("`{key}` is said twice")));
            }
            pairs.push((key, value));
        }
        Ok(Query { pairs })
    }

    /// What is said of a key.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.all(key).next()
    }

    /// Everything that is said of a key that may be repeated.
    pub(super) fn all(&self, key: &str) -> impl Iterator<Item = String> {
        self.pairs.iter().filter(move |(other, _)| other == key).map(|(_, value)| value.clone())
    }

    /// The same, read as what it is to be.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&self, key: &str) -> Result<Option<T>, Answer> {
        let Some(text) = self.text(key) else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|error| problem(StatusCode::BAD_REQUEST, "bad_query", format!("`{key}` = \"{text}\": {error}")))
    }

    /// The same of a key that has to be there.
    pub(super) fn needed<T: FromStr<Err: Display>>(&self, key: &str) -> Result<T, Answer> {
        let missing = || problem(StatusCode::BAD_REQUEST, "bad_query", format!("`{key}` is missing"));
        self.parsed(key)?.ok_or_else(missing)
    }
}

/// As pages of browsers write it: a `+` is a space.
fn unescape(part: &str) -> Option<String> {
    let mut bytes = part.bytes();
    let mut plain = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?].map(|digit| char::from(digit).to_digit(16));
                let [Some(high), Some(low)] = digits else { return None };
                (high * 16 + low) as u8
            }
            other => other,
        });
    }
    String::from_utf8(plain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Query, StatusCode> {
        let uri: Uri = format!("/v1/x{text}").parse().unwrap();
        Query::of(&uri, &["service", "limit", "header*"]).map_err(|answer| answer.status())
    }

    #[test]
    fn pairs_are_read_and_what_is_not_known_is_refused() {
        let read = query("?service=front%20end+2&limit=5&header=a%3A+1&header=b").unwrap();
        assert_eq!(read.text("service").as_deref(), Some("front end 2"));
        assert_eq!(read.needed::<u32>("limit").unwrap(), 5);
        assert_eq!(read.all("header").collect::<Vec<_>>(), ["a: 1", "b"]);
        assert_eq!(query("").unwrap().text("service"), None);
        assert_eq!(query("?service").unwrap().text("service").as_deref(), Some(""));
        let many = format!("?{}", "header=1&".repeat(PAIRS_MAX + 1));
        for wrong in ["?servce=web", "?service=a&service=b", "?service=%zz", "?service=%f", "?service=%ff", &many] {
            assert_eq!(query(wrong).unwrap_err(), StatusCode::BAD_REQUEST, "{wrong}");
        }
        let read = query("?limit=many").unwrap();
        assert!(read.parsed::<u32>("limit").is_err() && read.needed::<u32>("service").is_err());
    }
}
