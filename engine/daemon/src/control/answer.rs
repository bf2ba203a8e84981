//! What the control socket answers: JSON, also where it says no.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::{Deserialize, Serialize};

pub(super) type Answer = Response<Full<Bytes>>;

/// Why a request was refused, for programs (`code`, which stays) and for people (`message`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// One word.
    pub code: String,
    /// Cause and next step.
    pub message: String,
}

/// The body of a refusal.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Refused {
    pub(super) error: Problem,
}

/// `value` as JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => respond(status, body),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "not_json", error.to_string()),
    }
}

/// A refusal.
pub(super) fn problem(status: StatusCode, code: &'static str, message: impl Into<String>) -> Answer {
    let refused = Refused { error: Problem { code: code.to_owned(), message: message.into() } };
    // Two strings are always JSON.
    respond(status, serde_json::to_vec(&refused).unwrap_or_default())
}

/// The path is there, but not for this method.
pub(super) fn not_allowed(allowed: &str) -> Answer {
    let message = format!("here is {allowed} only");
    let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
    if let Ok(allowed) = HeaderValue::from_str(allowed) {
        answer.headers_mut().insert(ALLOW, allowed);
    }
    answer
}

fn respond(status: StatusCode, body: Vec<u8>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
