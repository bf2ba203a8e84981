//! Exchanges by hand: what each side hears, and what becomes of the connections.

use std::borrow::Cow;

use towpath_core::http::{
    Answer, BadRequest, BadResponse, ClientEnd, Edit, Edits, Exchange, Fate, HttpLimits, Keep, Lost, Output, Piece,
    ServerEnd, ServerLeg, Step, Then, TooLate, Waiting,
};
use towpath_core::session::Side;

use crate::{GET, LIMITS, text};

const FORWARDED: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An exchange, and what has left.
struct Hand {
    exchange: Exchange,
    out: Output,
}

impl Hand {
    fn new() -> Hand {
        Hand::with(LIMITS)
    }

    fn with(limits: HttpLimits) -> Hand {
        Hand { exchange: Exchange::new(limits), out: Output::default() }
    }

    /// After one exchange.
    fn seasoned() -> Hand {
        let mut hand = Hand::new();
        hand.asks(GET, ServerLeg::Fresh);
        hand.hears(OK);
        assert_eq!(hand.over(), (Fate::Keep, Fate::Keep));
        hand
    }

    fn left(&mut self, input: &[u8]) -> String {
        let mut bytes = Vec::new();
        self.out.copy_into(input, &mut bytes);
        assert_eq!(bytes.len(), self.out.len());
        self.out.clear();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn client(&mut self, input: &[u8]) -> (Step, String) {
        let step = self.exchange.on_client(input, &mut self.out);
        (step, self.left(input))
    }

    fn server(&mut self, input: &[u8]) -> (Step, String) {
        let step = self.exchange.on_server(input, &mut self.out);
        (step, self.left(input))
    }

    fn forward(&mut self, leg: ServerLeg) -> String {
        self.exchange.forward(&Edits::default(), leg, &mut self.out);
        self.left(b"")
    }

    fn respond(&mut self) -> (Then, String) {
        let then = self.exchange.respond(&Edits::default(), Keep::Open, &mut self.out);
        (then, self.left(b""))
    }

    fn ends(&mut self, end: ServerEnd) -> (Lost, String) {
        let lost = self.exchange.server_ended(end, &mut self.out);
        (lost, self.left(b""))
    }

    fn answer(&mut self, status: u16) -> (Result<Then, TooLate>, String) {
        let then = self.exchange.answer(&Answer::of(status), Keep::Open, &mut self.out);
        (then, self.left(b""))
    }

    /// A whole request and its body; what the server gets, and what is still to be taken.
    fn asks<'a>(&mut self, request: &'a [u8], leg: ServerLeg) -> (String, &'a [u8]) {
        let (step, left) = self.client(request);
        assert_eq!((step.then, left.as_str()), (Then::Route, ""), "{}", text(request));
        let mut heard = self.forward(leg);
        let body = &request[step.consumed..];
        let (step, left) = self.client(body);
        heard.push_str(&left);
        (heard, &body[step.consumed..])
    }

    /// A response; what the client gets, and what then is to be done.
    fn hears(&mut self, response: &[u8]) -> (String, Then) {
        let (step, mut heard) = self.server(response);
        assert_eq!(step.then, Then::Respond, "{}", text(response));
        let (then, left) = self.respond();
        heard.push_str(&left);
        if then == Then::Over && step.consumed == response.len() {
            return (heard, then);
        }
        let (step, left) = self.server(&response[step.consumed..]);
        heard.push_str(&left);
        (heard, step.then)
    }

    fn over(&mut self) -> (Fate, Fate) {
        let after = self.exchange.renew();
        (after.client, after.server)
    }
}

fn step(consumed: usize, then: Then) -> Step {
    Step { consumed, then }
}

#[test]
fn both_connections_serve_the_next_request() {
    let mut hand = Hand::new();
    for leg in [ServerLeg::Fresh, ServerLeg::Kept, ServerLeg::Kept] {
        assert_eq!(hand.asks(GET, leg), (FORWARDED.into(), b"".as_slice()));
        assert_eq!(hand.hears(OK), (String::from_utf8_lossy(OK).into(), Then::Over));
        assert_eq!(hand.over(), (Fate::Keep, Fate::Keep));
    }
}

#[test]
fn bytes_that_leave_as_they_are_may_pass_by_themselves() {
    let mut hand = Hand::new();
    assert_eq!(Side::BOTH.map(|from| hand.exchange.passes(from)), [0, 0]);
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n";
    assert_eq!(hand.client(post).0.then, Then::Route);
    assert_eq!(hand.exchange.passes(Side::Client), 0, "nobody is there to take it");
    hand.forward(ServerLeg::Fresh);
    assert_eq!(Side::BOTH.map(|from| hand.exchange.passes(from)), [100, 0]);
    assert_eq!(hand.client(b"0123456789").0, step(10, Then::Read));
    assert_eq!(hand.exchange.passed(Side::Client, 60), Then::Read);
    assert_eq!(hand.exchange.passes(Side::Client), 30);
    assert_eq!(hand.exchange.passed(Side::Client, 30), Then::Hold);
    assert_eq!(hand.client(GET).0, step(0, Then::Hold));
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n";
    assert_eq!(hand.server(head).0.then, Then::Respond);
    hand.respond();
    assert_eq!(hand.exchange.passes(Side::Server), 0, "a chunk's size is written anew");
    assert_eq!(hand.server(b"20\r\n0123"), (step(8, Then::Read), "20\r\n0123".into()));
    assert_eq!(hand.exchange.passes(Side::Server), 28);
    assert_eq!(hand.exchange.passed(Side::Server, 28), Then::Read);
    assert_eq!(hand.exchange.passes(Side::Server), 0);
    assert_eq!(hand.server(b"\r\n0\r\n\r\n").0.then, Then::Over);
    assert_eq!(hand.over(), (Fate::Keep, Fate::Keep));
    hand.asks(GET, ServerLeg::Kept);
    hand.hears(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n");
    assert_eq!(hand.exchange.passed(Side::Server, 40), Then::Over);
    assert!(!hand.exchange.says_no_more());
    assert_eq!(hand.over(), (Fate::Keep, Fate::Keep));
}

#[test]
fn a_request_of_which_some_may_have_passed_is_not_sent_again() {
    let mut hand = Hand::new();
    assert_eq!(hand.client(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n").0.then, Then::Route);
    hand.forward(ServerLeg::Fresh);
    assert_eq!(hand.exchange.passed(Side::Client, 0), Then::Read);
    assert!(!hand.exchange.asks_by_head());
    assert_eq!(hand.ends(ServerEnd::Broken).0, Lost::Retry);
    hand.forward(ServerLeg::Fresh);
    hand.exchange.note_body_begun();
    assert_eq!(hand.ends(ServerEnd::Broken).0, Lost::Failed);
}

#[test]
fn a_pipelined_request_stays_with_the_caller_until_the_one_before_is_over() {
    let mut hand = Hand::new();
    let two = [GET, GET].concat();
    let (_, rest) = hand.asks(&two, ServerLeg::Fresh);
    assert_eq!(rest, GET);
    assert_eq!(hand.client(rest).0, step(0, Then::Hold));
    assert!(!hand.exchange.wants(Side::Client));
    hand.hears(OK);
    assert_eq!(hand.client(rest).0, step(0, Then::Over));
    assert_eq!(hand.over(), (Fate::Keep, Fate::Keep));
    assert_eq!(hand.client(rest).0, step(GET.len(), Then::Route));
}

#[test]
fn bodies_are_ranges_of_what_came() {
    let mut hand = Hand::new();
    hand.asks(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", ServerLeg::Fresh);
    let body = [b"400\r\n".as_slice(), &[b'x'; 1024], b"\r\n5\r\nhello\r\n0\r\n\r\n"].concat();
    let step = hand.exchange.on_client(&body, &mut hand.out);
    assert_eq!((step.consumed, hand.out.made()), (body.len(), b"400\r\n\r\n5\r\nhello\r\n0\r\n\r\n".as_slice()));
    // What is short is copied.
    assert_eq!(hand.out.pieces(), [Piece::Made(0..5), Piece::Passed(5..1029), Piece::Made(5..22)]);
    hand.out.clear();
    assert!(hand.out.is_empty());
}

#[test]
fn a_request_that_is_not_taken_to_its_end_ends_both_connections() {
    let mut hand = Hand::new();
    hand.asks(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhello", ServerLeg::Fresh);
    let (heard, then) = hand.hears(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(heard, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert_eq!((then, hand.over()), (Then::Over, (Fate::Close, Fate::Close)));
    // What the client still sends is dropped.
    assert_eq!(hand.client(GET), (step(GET.len(), Then::Read), String::new()));
    assert_eq!(hand.exchange.waiting(), Waiting::Close);
}

#[test]
fn a_server_that_answers_early_and_goes_on_gets_the_rest_of_the_request() {
    let mut hand = Hand::new();
    hand.asks(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello", ServerLeg::Fresh);
    assert_eq!(hand.hears(OK).1, Then::Hold);
    assert_eq!(hand.exchange.waiting(), Waiting::Transfer);
    assert_eq!(hand.client(b"hello"), (step(5, Then::Over), "hello".into()));
    assert_eq!(hand.over(), (Fate::Keep, Fate::Keep));
}

#[test]
fn one_hundred_continue_passes_but_not_to_old_clients() {
    for (version, heard) in [("1.1", "HTTP/1.1 100 Continue\r\n\r\n"), ("1.0", "")] {
        let mut hand = Hand::new();
        let head = format!("POST / HTTP/{version}\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
        hand.asks(head.as_bytes(), ServerLeg::Fresh);
        assert_eq!(hand.server(b"HTTP/1.1 100 Continue\r\n\r\n"), (step(25, Then::Read), heard.into()));
        assert_eq!(hand.client(b"hi").1, "hi");
        assert_eq!(hand.hears(OK).1, Then::Over);
    }
}

#[test]
fn answers_to_head_have_a_length_and_no_body() {
    let mut hand = Hand::new();
    hand.asks(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", ServerLeg::Fresh);
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n";
    assert_eq!(hand.hears(head.as_bytes()), (head.into(), Then::Over));
    assert_eq!(hand.over(), (Fate::Keep, Fate::Keep));
    hand.asks(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", ServerLeg::Kept);
    let (heard, then) = hand.hears(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!((heard.as_str(), then), ("HTTP/1.1 200 OK\r\n\r\n", Then::Over));
}

#[test]
fn old_clients_get_no_chunks_and_are_kept_only_if_they_ask() {
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".as_slice();
    for (asks, response, heard, client) in [
        ("", OK, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", Fate::Close),
        (
            "Connection: keep-alive\r\n",
            OK,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
            Fate::Keep,
        ),
        ("Connection: keep-alive\r\n", chunked, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", Fate::Close),
    ] {
        let mut hand = Hand::new();
        hand.asks(format!("GET / HTTP/1.0\r\n{asks}\r\n").as_bytes(), ServerLeg::Fresh);
        assert_eq!(hand.hears(response), (heard.into(), Then::Over));
        assert_eq!(hand.over(), (client, Fate::Keep));
    }
}

#[test]
fn a_response_that_ends_with_its_connection_ends_in_good_order_or_is_cut() {
    let until_close = b"HTTP/1.1 200 OK\r\n\r\nok";
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n";
    for (end, lost) in
        [(ServerEnd::Orderly, (Lost::Over, "0\r\n\r\n".into())), (ServerEnd::Broken, (Lost::Cut, "".into()))]
    {
        let mut hand = Hand::new();
        hand.asks(GET, ServerLeg::Fresh);
        assert_eq!(hand.hears(until_close), (head.into(), Then::Read));
        assert_eq!(hand.ends(end), lost);
    }
    let mut hand = Hand::new();
    hand.asks(GET, ServerLeg::Fresh);
    hand.hears(until_close);
    hand.ends(ServerEnd::Orderly);
    // The server's connection is gone, the client's is not.
    assert_eq!(hand.over(), (Fate::Keep, Fate::Close));
}

#[test]
fn a_response_that_is_shorter_than_it_says_is_cut_however_its_connection_ends() {
    for response in [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok".as_slice(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
    ] {
        let mut hand = Hand::new();
        hand.asks(GET, ServerLeg::Fresh);
        assert_eq!(hand.hears(response).1, Then::Read);
        assert_eq!(hand.ends(ServerEnd::Orderly).0, Lost::Cut, "{}", text(response));
    }
}

#[test]
fn a_request_is_sent_again_only_if_that_does_no_harm() {
    let head = |method: &str, body: &str| {
        format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    for (request, leg, lost) in [
        (head("GET", ""), ServerLeg::Kept, Lost::Retry),
        (head("GET", ""), ServerLeg::Fresh, Lost::Retry),
        (head("DELETE", ""), ServerLeg::Fresh, Lost::Retry),
        // Nobody knows whether it was served. The client of a kept connection does as it would with the server's.
        (head("POST", ""), ServerLeg::Kept, Lost::Mirror),
        (head("POST", ""), ServerLeg::Fresh, Lost::Failed),
        (head("X-METHOD", ""), ServerLeg::Fresh, Lost::Failed),
        // Its body is gone.
        (head("PUT", "hello"), ServerLeg::Kept, Lost::Mirror),
        (head("PUT", "hello"), ServerLeg::Fresh, Lost::Failed),
    ] {
        for end in [ServerEnd::Broken, ServerEnd::Orderly] {
            let mut hand = Hand::seasoned();
            let (heard, _) = hand.asks(request.as_bytes(), leg);
            assert_eq!(hand.ends(end), (lost, String::new()), "{request:?} {leg:?}");
            match lost {
                Lost::Retry => {
                    assert_eq!(hand.exchange.waiting(), Waiting::Server);
                    assert_eq!(hand.forward(ServerLeg::Fresh), heard);
                    assert_eq!(hand.hears(OK).1, Then::Over);
                    assert_eq!(hand.over(), (Fate::Keep, Fate::Keep));
                }
                Lost::Failed => {
                    let (then, answer) = hand.answer(502);
                    assert_eq!(then, Ok(Then::Over));
                    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn a_body_of_which_nothing_was_given_out_waits_for_the_next_server() {
    let mut hand = Hand::new();
    let (_, rest) = hand.asks(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", ServerLeg::Fresh);
    assert!(rest.is_empty());
    hand.exchange.server_takes_no_more();
    assert_eq!((hand.client(b"hello").0, hand.exchange.wants(Side::Client)), (step(0, Then::Hold), false));
    assert_eq!(hand.ends(ServerEnd::Broken).0, Lost::Retry);
    assert_eq!(hand.client(b"hello").0, step(0, Then::Hold));
    hand.forward(ServerLeg::Fresh);
    assert_eq!(hand.client(b"hello"), (step(5, Then::Hold), "hello".into()));
    assert_eq!(hand.hears(OK).1, Then::Over);
}

#[test]
fn what_a_server_says_before_it_takes_no_more_is_heard() {
    let mut hand = Hand::new();
    hand.asks(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhello", ServerLeg::Fresh);
    hand.exchange.server_takes_no_more();
    assert_eq!(hand.client(b"hello"), (step(5, Then::Read), String::new()));
    let (heard, then) = hand.hears(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(heard, "HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert_eq!((then, hand.over()), (Then::Over, (Fate::Close, Fate::Close)));
}

#[test]
fn who_has_authenticated_a_connection_learns_of_its_end_and_is_never_moved_to_another() {
    let ntlm = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: NTLM x\r\n\r\n".as_slice();
    let challenge = b"HTTP/1.1 401 No\r\nWWW-Authenticate: Negotiate\r\nContent-Length: 0\r\n\r\n".as_slice();
    for bound_by_request in [true, false] {
        let bound = || {
            let mut hand = Hand::new();
            assert!(!hand.exchange.is_bound());
            if bound_by_request {
                hand.asks(ntlm, ServerLeg::Fresh);
                assert!(hand.exchange.is_bound());
                hand.hears(OK);
            } else {
                hand.asks(GET, ServerLeg::Fresh);
                hand.hears(challenge);
                assert!(hand.exchange.is_bound());
            }
            assert_eq!(hand.over(), (Fate::Keep, Fate::Keep));
            hand
        };
        // Between requests, before it is forwarded, and behind that.
        assert_eq!(bound().ends(ServerEnd::Orderly).0, Lost::Mirror);
        let mut hand = bound();
        assert_eq!(hand.client(GET).0.then, Then::Route);
        assert_eq!(hand.ends(ServerEnd::Orderly).0, Lost::Mirror);
        let mut hand = bound();
        hand.asks(GET, ServerLeg::Kept);
        assert_eq!(hand.ends(ServerEnd::Orderly).0, Lost::Mirror);
        // The client is told with the response.
        let mut hand = bound();
        hand.asks(GET, ServerLeg::Kept);
        let (heard, _) = hand.hears(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        assert!(heard.ends_with("\r\nConnection: close\r\n\r\n"), "{heard}");
        assert_eq!(hand.over(), (Fate::Close, Fate::Close));
    }
    // Who has not is served by the next one.
    let mut hand = Hand::seasoned();
    assert_eq!(hand.ends(ServerEnd::Orderly).0, Lost::Idle);
    hand.asks(GET, ServerLeg::Fresh);
    let (heard, _) = hand.hears(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    assert!(!heard.contains("Connection"), "{heard}");
    assert_eq!(hand.over(), (Fate::Keep, Fate::Close));
}

#[test]
fn a_client_that_ends_its_stream_gets_what_it_has_asked_for() {
    let mut hand = Hand::new();
    assert_eq!(hand.exchange.client_ended(), ClientEnd::Close);
    let mut hand = Hand::new();
    assert_eq!(hand.client(b"GET / HT").0, step(8, Then::Read));
    assert_eq!(hand.exchange.client_ended(), ClientEnd::Abort);
    let mut hand = Hand::new();
    hand.asks(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell", ServerLeg::Fresh);
    assert_eq!(hand.exchange.client_ended(), ClientEnd::Abort);
    let mut hand = Hand::new();
    hand.asks(GET, ServerLeg::Fresh);
    assert_eq!(hand.exchange.client_ended(), ClientEnd::Finish);
    let (heard, _) = hand.hears(OK);
    assert_eq!(heard, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    assert_eq!(hand.over(), (Fate::Close, Fate::Keep));
}

const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

#[test]
fn an_upgrade_becomes_a_tunnel_with_all_bytes_behind_the_heads() {
    let mut hand = Hand::new();
    let asked = [UPGRADE, b"client"].concat();
    let (_, rest) = hand.asks(&asked, ServerLeg::Fresh);
    assert_eq!((rest, hand.client(rest).0), (b"client".as_slice(), step(0, Then::Hold)));
    let said = format!("{SWITCHING}server");
    assert_eq!(hand.server(said.as_bytes()), (step(SWITCHING.len(), Then::Tunnel), SWITCHING.into()));
    assert_eq!(hand.server(b"server").0, step(0, Then::Tunnel));
    assert_eq!(hand.client(rest).0, step(0, Then::Tunnel));
    assert_eq!(hand.exchange.waiting(), Waiting::Tunnel);
}

#[test]
fn what_follows_an_upgrade_that_was_refused_is_a_request() {
    let mut hand = Hand::new();
    let asked = [UPGRADE, GET].concat();
    let (_, rest) = hand.asks(&asked, ServerLeg::Fresh);
    assert_eq!((hand.hears(OK).1, hand.over()), (Then::Over, (Fate::Keep, Fate::Keep)));
    assert_eq!(hand.client(rest).0, step(GET.len(), Then::Route));
}

#[test]
fn nobody_changes_the_protocol_unasked() {
    let mut hand = Hand::new();
    hand.asks(GET, ServerLeg::Fresh);
    assert_eq!(hand.server(SWITCHING.as_bytes()).0.then, Then::BadResponse(BadResponse::UnaskedUpgrade));
    assert!(hand.answer(502).1.starts_with("HTTP/1.1 502 "));
    assert_eq!(hand.over().1, Fate::Close);
}

#[test]
fn what_a_server_says_unasked_reaches_nobody() {
    let mut hand = Hand::seasoned();
    let late = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(hand.server(late), (step(late.len(), Then::Unasked), String::new()));
    assert_eq!(hand.ends(ServerEnd::Orderly).0, Lost::Idle);
    hand.asks(GET, ServerLeg::Fresh);
    let two = [OK, OK].concat();
    assert_eq!(hand.hears(&two), (String::from_utf8_lossy(OK).into(), Then::Over));
    assert_eq!(hand.over(), (Fate::Keep, Fate::Close));
}

#[test]
fn answers_of_ours_keep_the_connection_if_nothing_of_the_request_is_left() {
    for (request, closes) in [
        (GET.to_vec(), false),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n".to_vec(), true),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), true),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_vec(), true),
    ] {
        let mut hand = Hand::new();
        assert_eq!(hand.client(&request).0.then, Then::Route);
        let (then, heard) = hand.answer(404);
        assert_eq!((then, heard.contains("\r\nConnection: close\r\n")), (Ok(Then::Over), closes), "{}", text(&request));
        assert!(heard.ends_with("\r\n\r\nNot Found\n"), "{heard}");
        assert!(heard.contains(&format!("Content-Length: {}\r\n", "Not Found\n".len())), "{heard}");
        assert_eq!(hand.over().0, if closes { Fate::Close } else { Fate::Keep });
    }
    let mut hand = Hand::new();
    assert_eq!(hand.client(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").0.then, Then::Route);
    assert!(hand.answer(404).1.ends_with("\r\n\r\n"));
    // Once a response has begun there is no other.
    let mut hand = Hand::new();
    hand.asks(GET, ServerLeg::Fresh);
    hand.hears(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok");
    assert!(hand.exchange.has_responded());
    assert_eq!(hand.answer(502), (Err(TooLate), String::new()));
}

#[test]
fn an_answer_may_redirect_and_cannot_be_split() {
    let mut hand = Hand::new();
    assert_eq!(hand.client(GET).0.then, Then::Route);
    let fields: [(&str, &[u8]); 3] =
        [("Location", b"https://a.example/"), ("X", b"a\r\nSet-Cookie: b"), ("Content-Length", b"7")];
    let answer = Answer::with(302, &fields);
    assert_eq!(hand.exchange.answer(&answer, Keep::Close, &mut hand.out), Ok(Then::Over));
    assert_eq!(
        hand.left(b""),
        "HTTP/1.1 302 Found\r\nLocation: https://a.example/\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\nFound\n"
    );
}

#[test]
fn bodies_have_a_limit_however_they_are_framed() {
    let limits = HttpLimits { body_bytes_max: 5, ..LIMITS };
    let mut hand = Hand::with(limits);
    let (step, _) = hand.client(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n");
    assert_eq!(step.then, Then::BadRequest(BadRequest::BodyTooLong));
    assert!(hand.answer(BadRequest::BodyTooLong.status()).1.starts_with("HTTP/1.1 413 "));
    let mut hand = Hand::with(limits);
    hand.asks(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", ServerLeg::Fresh);
    assert_eq!(hand.client(b"1\r\n!\r\n").0.then, Then::BadRequest(BadRequest::BodyTooLong));
    assert_eq!(hand.answer(413).0, Ok(Then::Over));
    assert_eq!(hand.over(), (Fate::Close, Fate::Close));
    let mut hand = Hand::with(limits);
    hand.asks(
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ServerLeg::Fresh,
    );
    assert_eq!(hand.hears(OK).1, Then::Over);
}

#[test]
fn draining_closes_after_the_response() {
    let mut hand = Hand::new();
    hand.asks(GET, ServerLeg::Fresh);
    let _ = hand.server(OK);
    hand.exchange.respond(&Edits::default(), Keep::Close, &mut hand.out);
    assert_eq!(hand.left(b""), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n");
    assert_eq!(hand.server(b"ok").0.then, Then::Over);
    assert_eq!(hand.over().0, Fate::Close);
}

#[test]
fn it_is_known_what_is_waited_for() {
    let mut hand = Hand::new();
    assert_eq!(hand.exchange.waiting(), Waiting::Request);
    let head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(hand.client(&head[..10]).0.then, Then::Read);
    assert_eq!(hand.exchange.waiting(), Waiting::Head);
    assert_eq!(hand.client(&head[10..]).0.then, Then::Route);
    assert_eq!(hand.exchange.waiting(), Waiting::Server);
    hand.forward(ServerLeg::Fresh);
    assert_eq!(hand.exchange.waiting(), Waiting::Transfer);
    let _ = hand.client(b"hello");
    assert_eq!(hand.exchange.waiting(), Waiting::Response);
    let _ = hand.server(&OK[..10]);
    assert_eq!(hand.exchange.waiting(), Waiting::Response);
    assert_eq!(hand.server(&OK[10..OK.len() - 2]).0.then, Then::Respond);
    hand.respond();
    assert_eq!(hand.exchange.waiting(), Waiting::Transfer);
    let _ = hand.server(b"ok");
    hand.over();
    assert_eq!(hand.exchange.waiting(), Waiting::Request);
}

#[test]
fn edits_change_heads_and_cannot_break_them() {
    let mut hand = Hand::new();
    let request = b"GET /old?q HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: lie\r\nx-drop: 1\r\nKeep: 1\r\nX-Forwarded-For: lie\r\n\r\n";
    assert_eq!(hand.client(request).0.then, Then::Route);
    let bytes = |text: &'static str| Cow::Borrowed(text.as_bytes());
    let edits = Edits {
        target: Some("/new?q".into()),
        host: Some("b.example".into()),
        untrusted: false,
        fields: vec![
            Edit::Remove { name: "X-Drop" },
            Edit::Replace { name: "x-forwarded-for", value: bytes("192.0.2.1") },
            Edit::Add { name: "Keep", value: bytes("2") },
            Edit::Add { name: "X", value: bytes("a\r\nY: b") },
            Edit::Add { name: "X y", value: bytes("a") },
            Edit::Add { name: "Transfer-Encoding", value: bytes("chunked") },
            Edit::Replace { name: "Host", value: bytes("c") },
        ],
    };
    hand.exchange.forward(&edits, ServerLeg::Fresh, &mut hand.out);
    assert_eq!(
        hand.left(b""),
        "GET /new?q HTTP/1.1\r\nHost: b.example\r\nKeep: 1\r\nx-forwarded-for: 192.0.2.1\r\nKeep: 2\r\n\r\n"
    );
    for (target, host) in [("/a b", "b c"), ("x", "b\r\nX: 1"), ("/a\r\nX: 1", "b/c"), ("", "b@c")] {
        let mut hand = Hand::new();
        assert_eq!(hand.client(GET).0.then, Then::Route);
        let edits = Edits { target: Some(target.into()), host: Some(host.into()), ..Edits::default() };
        hand.exchange.forward(&edits, ServerLeg::Fresh, &mut hand.out);
        assert_eq!(hand.left(b""), FORWARDED);
    }
}

#[test]
fn an_idle_connection_costs_its_state_alone() {
    assert!(size_of::<Exchange>() <= 384, "{} bytes", size_of::<Exchange>());
}

#[test]
fn a_time_out_that_crosses_a_request_on_a_kept_connection_answers_nothing() {
    const TIMED_OUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let asked = |leg| {
        let mut hand = Hand::seasoned();
        hand.asks(GET, leg);
        hand
    };
    let mut crossed = asked(ServerLeg::Kept);
    let (step, left) = crossed.server(TIMED_OUT);
    assert_eq!((step.then, left.as_str()), (Then::Crossed, ""));
    assert_eq!(crossed.ends(ServerEnd::Broken).0, Lost::Retry);
    assert_eq!(crossed.forward(ServerLeg::Fresh), FORWARDED);
    // A fresh connection has not been idle: there it is the answer. And a server that keeps the connection has ended nothing.
    assert_eq!(asked(ServerLeg::Fresh).server(TIMED_OUT).0.then, Then::Respond);
    let kept = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(asked(ServerLeg::Kept).server(kept).0.then, Then::Respond);
}
