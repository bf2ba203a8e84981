//! Which path and method is for what. Paths begin with the version of what they answer; what changes anything is a POST.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use super::answer::{Answer, json, not_allowed, problem, text};
use super::peer::Peer;
use super::{check, server};
use crate::admin::Chosen;
use crate::house::House;
use crate::metrics;

/// Bytes that the body of a request may have.
pub(super) const BODY_BYTES_MAX: usize = 16 * 1024;
/// Segments that a path may have.
const SEGMENTS_MAX: usize = 8;

/// By when a connection has to be over. A route whose answer takes longer puts it off.
pub(super) struct Deadline(watch::Sender<Instant>);

impl Deadline {
    /// So long from now on.
    pub(super) fn new(limit: Duration) -> (Deadline, watch::Receiver<Instant>) {
        let (sender, receiver) = watch::channel(Instant::now() + limit);
        (Deadline(sender), receiver)
    }

    /// So long from now on, instead of what it was.
    pub(super) fn put_off(&self, limit: Duration) {
        self.0.send_replace(Instant::now() + limit);
    }
}

/// One request with everything that an answer needs.
pub(super) struct Asked<'a> {
    pub(super) house: &'a House,
    pub(super) peer: &'a Peer,
    /// The socket that it came by.
    pub(super) socket: &'a Path,
    pub(super) deadline: &'a Deadline,
}

/// One name in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// As it stands.
    Word(String),
    /// `*`, not escaped: every one. A name may be a `*` of its own, which then is escaped.
    Any,
}

/// Answers one request.
pub(super) async fn answer(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let Some(path) = segments(request.uri().path()) else {
        return problem(
            StatusCode::BAD_REQUEST,
            "bad_path",
            "the path has a damaged escape, no UTF-8 or too many parts",
        );
    };
    let words: Vec<&str> = path.iter().map(|segment| segment.word().unwrap_or_default()).collect();
    match words.as_slice() {
        ["status"] | ["v1", "status"] => match *request.method() {
            Method::GET => json(StatusCode::OK, &asked.house.status()),
            _ => not_allowed("GET"),
        },
        ["metrics"] | ["v1", "metrics"] => match *request.method() {
            Method::GET => text(metrics::CONTENT_TYPE, metrics::render(&asked.house.status())),
            _ => not_allowed("GET"),
        },
        ["v1", "services", _, "servers", _] => match *request.method() {
            Method::GET => server::show(asked.house, &chosen(&path)),
            _ => not_allowed("GET"),
        },
        ["v1", "services", _, "servers", _, "check"] => match *request.method() {
            Method::POST => check::check(request, &chosen(&path), asked).await,
            _ => not_allowed("POST"),
        },
        ["v1", "services", _, "servers", _, verb] => {
            let Some(verb) = server::Verb::of(verb) else { return not_here() };
            match *request.method() {
                Method::POST => server::change(request, verb, &chosen(&path), asked).await,
                _ => not_allowed("POST"),
            }
        }
        _ => not_here(),
    }
}

fn not_here() -> Answer {
    let message = "not here; there are GET /v1/status, GET /v1/metrics, GET /v1/services/SERVICE/servers/SERVER and POST of /ready, /drain, /halt, /weight and /check below it";
    problem(StatusCode::NOT_FOUND, "not_found", message)
}

fn chosen(path: &[Segment]) -> Chosen {
    let name = |at: usize| path.get(at).and_then(Segment::word).map(str::to_owned);
    Chosen { service: name(2), server: name(4) }
}

impl Segment {
    fn word(&self) -> Option<&str> {
        match self {
            Segment::Word(word) => Some(word),
            Segment::Any => None,
        }
    }
}

/// The parts of a path, unescaped (RFC 3986 §2.1); `None` where it is damaged.
fn segments(path: &str) -> Option<Vec<Segment>> {
    let parts = path.strip_prefix('/')?.split('/');
    if parts.clone().count() > SEGMENTS_MAX {
        return None;
    }
    parts.map(|part| if part == "*" { Some(Segment::Any) } else { unescape(part).map(Segment::Word) }).collect()
}

fn unescape(part: &str) -> Option<String> {
    let mut bytes = part.bytes();
    let mut plain = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
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

/// One part of a path with everything escaped that is not unreserved.
pub(super) fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

/// The body of a request as JSON; without one, what `{}` says. A page of a browser cannot send JSON to another site without asking it first, so the type
/// is insisted on.
pub(super) async fn read_body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Answer> {
    let (head, body) = request.into_parts();
    if !body.is_end_stream() && !is_json(&head.headers) {
        let message = "a body is JSON; send it with `Content-Type: application/json`";
        return Err(problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message));
    }
    let bytes = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("a body has at most {BODY_BYTES_MAX} bytes");
            return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
        }
        Err(error) => return Err(problem(StatusCode::BAD_REQUEST, "bad_body", error.to_string())),
    };
    let text = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
    // A list of no values would do for an object without required keys.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(problem(StatusCode::BAD_REQUEST, "bad_body", "the body is no JSON object"));
    }
    serde_json::from_slice(&text).map_err(|error| problem(StatusCode::BAD_REQUEST, "bad_body", error.to_string()))
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else { return false };
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_out_of_a_path_as_they_went_in() {
        for name in ["web", "front end", "a/b", "*", "größe", "100%", "..", "[2001:db8::1]:443"] {
            let path = format!("/v1/services/{}/servers/*", escape(name));
            let parts = segments(&path).unwrap();
            assert_eq!(parts[2], Segment::Word(name.to_owned()), "{path}");
            assert_eq!(chosen(&parts), Chosen { service: Some(name.to_owned()), server: None }, "{path}");
        }
    }

    #[test]
    fn damaged_paths_are_refused() {
        let long = format!("/{}", ["a"; SEGMENTS_MAX + 1].join("/"));
        for path in ["", "v1", "/%", "/%4", "/%zz", "/%+1", "/%ff", "/a%C3", &long] {
            assert_eq!(segments(path), None, "{path}");
        }
        assert_eq!(segments("/").unwrap(), [Segment::Word(String::new())]);
        assert_eq!(segments("/%2a/*").unwrap(), [Segment::Word("*".into()), Segment::Any]);
    }
}
