//! The files of the page, as browsers want them: with what they may do, and their sum, so that they are sent once.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Response, StatusCode};

use super::answer::Answer;
use super::credential::{hexadecimal, sha256};
use crate::page::Asset;

/// What the page may do: its own files and our API, nothing else, and nobody frames it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; \
                           base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";
/// An answer of the API is no page.
const DATA_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// A file; `304` where the browser has it.
pub(super) fn send(asset: &'static Asset, headers: &HeaderMap) -> Answer {
    let sum = format!("\"{}\"", hexadecimal(&sha256(asset.body)[..16]));
    let has_it = headers.get_all(IF_NONE_MATCH).iter().filter_map(|sums| sums.to_str().ok()).any(|sums| {
        sums.split(',').map(|sum| sum.trim().trim_start_matches("W/")).any(|known| known == sum || known == "*")
    });
    let (status, body) = match has_it {
        true => (StatusCode::NOT_MODIFIED, Bytes::new()),
        false => (StatusCode::OK, Bytes::from_static(asset.body)),
    };
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    // Another version may be running the next time.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(sum) = HeaderValue::try_from(sum) {
        headers.insert(ETAG, sum);
    }
    answer
}

/// What every answer to the network says, unless it says something else by itself.
pub(super) fn harden(answer: &mut Answer) {
    let headers = answer.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, DATA_POLICY),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static FILE: Asset = Asset { path: "/page/a.js", kind: "text/javascript; charset=utf-8", body: b"let a;" };

    #[test]
    fn a_file_is_sent_once_and_is_strict() {
        let answer = send(&FILE, &HeaderMap::new());
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[CONTENT_TYPE], FILE.kind);
        let policy = answer.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(
            policy.contains("default-src 'none'") && !policy.contains("unsafe") && !policy.contains('*'),
            "{policy}"
        );
        let sum = answer.headers()[ETAG].clone();
        let with = |value: &str| HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_str(value).unwrap())]);
        for known in [sum.to_str().unwrap().to_owned(), format!("\"x\", W/{}", sum.to_str().unwrap()), "*".to_owned()] {
            assert_eq!(send(&FILE, &with(&known)).status(), StatusCode::NOT_MODIFIED, "{known}");
        }
        assert_eq!(send(&FILE, &with("\"x\"")).status(), StatusCode::OK);
        let mut answer = answer;
        harden(&mut answer);
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-cache");
        assert!(answer.headers().get_all(CONTENT_SECURITY_POLICY).iter().count() == 1);
        assert_eq!(answer.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
}
