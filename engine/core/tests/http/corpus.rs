//! The corpus: what is refused, by its reason, and what is passed on, as what.

use std::path::Path;

use towpath_core::http::{BadRequest, BadResponse};

use crate::target::{Played, Said, play};
use crate::{GET, LIMITS, entries, read, text};

/// Whole, and byte by byte.
fn both(client: &[u8], responses: &[&[u8]]) -> [Played; 2] {
    [play(client, responses, LIMITS, |left| left), play(client, responses, LIMITS, |_| 1)]
}

/// The files of `folder`/refused, each with the label of its reason.
fn refused(folder: &str) -> Vec<(String, Vec<u8>)> {
    let files = |(label, _): (String, _)| {
        let files = entries(&format!("{folder}/refused/{label}"));
        files.into_iter().map(move |(_, path)| (label.clone(), read(&path)))
    };
    entries(&format!("{folder}/refused")).into_iter().flat_map(files).collect()
}

/// The cases of `folder`/passed: what comes and what leaves.
fn passed(folder: &str) -> Vec<(String, Vec<u8>, Vec<u8>)> {
    let case = |(name, path): (String, std::path::PathBuf)| {
        let file = |file: &str| read(&Path::new(&path).join(file));
        (name, file("in.http"), file("out.http"))
    };
    entries(&format!("{folder}/passed")).into_iter().map(case).collect()
}

#[test]
fn ambiguous_requests_are_refused_with_their_reason_and_end_the_connection() {
    let mut wrong = Vec::new();
    for (label, bytes) in refused("requests") {
        for played in both(&bytes, &[b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]) {
            let said: Vec<_> = played.said.iter().filter(|said| matches!(said, Said::Bad(_))).collect();
            if said != [&Said::Bad(reason(&label))] {
                wrong.push(format!("{label}: {said:?} {:.200}", text(&bytes)));
                continue;
            }
            let status = BadRequest::ALL.iter().find(|bad| bad.label() == label).expect("a reason").status();
            let answer = format!("HTTP/1.1 {status} ");
            assert!(played.to_client.starts_with(answer.as_bytes()), "{}", text(&played.to_client));
            assert_eq!(played.said.last(), Some(&Said::Over(towpath_core::http::Fate::Close)), "{}", text(&bytes));
            // A head is refused before a server is chosen; behind one, what is wrong with its body never completes it.
            let smuggled = played.to_servers.concat();
            assert!(!text(&smuggled).contains("smuggled"), "{}", text(&smuggled));
            let (whole, _) = crate::target::read_plainly(&smuggled, false);
            assert!(whole.is_empty(), "{}", text(&smuggled));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The label of the enum, which lives as long as the program.
fn reason(label: &str) -> &'static str {
    let (requests, responses) = (BadRequest::ALL.iter(), BadResponse::ALL.iter());
    let mut labels = requests.map(|bad| bad.label()).chain(responses.map(|bad| bad.label()));
    labels.find(|known| *known == label).unwrap_or_else(|| panic!("{label} is no reason"))
}

#[test]
fn requests_are_written_anew() {
    for (name, bytes, out) in passed("requests") {
        for played in both(&bytes, &[b""]) {
            assert_eq!(text(&played.to_servers.concat()), text(&out), "{name}");
        }
    }
}

#[test]
fn what_was_written_anew_is_written_the_same_again() {
    for (name, _, out) in passed("requests") {
        let [played, _] = both(&out, &[b""]);
        assert_eq!(text(&played.to_servers.concat()), text(&out), "{name}");
    }
}

#[test]
fn ambiguous_responses_are_refused_with_their_reason() {
    for (label, bytes) in refused("responses") {
        for played in both(GET, &[&bytes]) {
            assert!(played.said.contains(&Said::Bad(reason(&label))), "{label}: {:?} of {}", played.said, text(&bytes));
            assert!(played.to_client.starts_with(b"HTTP/1.1 502 "), "{}", text(&played.to_client));
        }
    }
}

#[test]
fn responses_are_written_anew() {
    for (name, bytes, out) in passed("responses") {
        let [whole, cut] = both(GET, &[&bytes]);
        assert_eq!(text(&whole.to_client), text(&out), "{name}");
        if name != "until-close" {
            assert_eq!(text(&cut.to_client), text(&out), "{name}");
        }
    }
}

#[test]
fn every_reason_has_its_case() {
    // No fault of the bytes alone but of limits, routes and moments; and of bodies whose response has begun.
    let of_requests = ["body_too_long", "path_escape"];
    let of_responses = ["unasked", "chunk_extension", "chunk_size", "trailer"];
    let (requests, responses) = (refused("requests"), refused("responses"));
    for label in BadRequest::ALL.iter().map(|bad| bad.label()).filter(|label| !of_requests.contains(label)) {
        assert!(requests.iter().any(|(other, _)| other == label), "no request is refused for {label}");
    }
    for label in BadResponse::ALL.iter().map(|bad| bad.label()).filter(|label| !of_responses.contains(label)) {
        assert!(responses.iter().any(|(other, _)| other == label), "no response is refused for {label}");
    }
}
