//! One client connection: its requests one after the other, each with its response. Bytes in, bytes out, no I/O and no clock.
//!
//! A request's head is kept until its exchange is over, so that it can be routed, and sent again where RFC 9110 §9.2.2 allows that. Nothing else
//! is kept, but a head that is not whole. The next request is not looked at before the response has gone through: pipelined requests stay
//! in the caller's buffer, and so in order.
//!
//! A turn: [`Exchange::on_client`] until [`Then::Route`]; the caller chooses a server and calls [`Exchange::forward`], or [`Exchange::answer`]s
//! itself; [`Exchange::on_server`] until [`Then::Respond`]; [`Exchange::respond`]; bytes of both sides until [`Then::Over`]; [`Exchange::renew`].

use super::HttpLimits;
use super::answer::Answer;
use super::body::{Body, Coding};
use super::fields::Told;
use super::head::{BadRequest, BadResponse, Framing, RequestHead, ResponseHead, Version};
use super::output::Output;
use super::pinning::Binding;
use super::scan::{Fault, Kept, Taken};
use super::write::{self, About, Edits, Frame};
use crate::session::Side;

/// What bytes have led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Step {
    /// So many of them were taken.
    pub consumed: usize,
    /// What the caller does next.
    pub then: Then,
}

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The request is refused: count it and [`Exchange::answer`] it; if it was forwarded, the server's connection is closed, unfinished.
    BadRequest(BadRequest),
    /// The response is refused: close the server's connection, and [`Exchange::answer`] with 502; too late for that, the client is reset.
    BadResponse(BadResponse),
    /// The server has ended its idle connection, and said so, while the request was on its way there: close it and tell by [`Exchange::server_ended`].
    Crossed,
    /// Takes nothing more of this side now; what was not taken is given again, when the other side has moved on.
    Hold,
    /// Request and response are through: what there is leaves, then [`Exchange::renew`].
    Over,
    /// Everything was taken; more is welcome.
    Read,
    /// The head of the response is whole: [`Exchange::response`], then [`Exchange::respond`], then what was not taken again.
    Respond,
    /// The head of the request is whole: [`Exchange::request`], then [`Exchange::forward`] or [`Exchange::answer`], then what was not taken again.
    Route,
    /// The protocol has changed: from here on bytes pass as they are, first those of either side that were not taken.
    Tunnel,
    /// The server spoke without having been asked: close its connection, count [`BadResponse::Unasked`] and tell by [`Exchange::server_ended`].
    /// There is nothing to answer.
    Unasked,
}

/// Whether a response of this exchange leaves the client's connection open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is the last one.
    Close,
    /// Another request may come, if everything else allows it.
    Open,
}

/// What the request is sent by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerLeg {
    /// A connection that was dialled for it.
    Fresh,
    /// One that has served others before.
    Kept,
}

/// How a stream of the server's has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEnd {
    /// By a reset, or in TLS without its end: what came may be cut off.
    Broken,
    /// In good order.
    Orderly,
}

/// What the end of the server's connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The client's response is cut off: reset its connection.
    Cut,
    /// Nobody knows whether the request was served: [`Exchange::answer`] with 502.
    Failed,
    /// Nothing was under way; the next request needs another connection.
    Idle,
    /// Close the client's connection without an answer, as the server did with a connection that was kept: the client knows what of it may be sent again.
    Mirror,
    /// It was the end of the response: [`Exchange::renew`].
    Over,
    /// [`Exchange::forward`] again, by another connection.
    Retry,
}

/// What the end of the client's stream means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEnd {
    /// It came amid a request: cut the server's connection, so that nobody takes the request for whole.
    Abort,
    /// Nothing was under way.
    Close,
    /// The request is whole: its response still goes out, then both are closed.
    Finish,
}

/// What is waited for, and so which timeout counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Nothing more comes: the client is to close.
    Close,
    /// The rest of a request's head.
    Head,
    /// A request.
    Request,
    /// The head of the response; the request has left.
    Response,
    /// A server.
    Server,
    /// Bytes of either body.
    Transfer,
    /// Bytes of either side of a tunnel.
    Tunnel,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is closed.
    Close,
    /// It may serve the next request.
    Keep,
}

/// What becomes of both after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// The client's. [`Fate::Close`] in good order: our direction first, then what still comes is read and dropped, so that no reset
    /// overtakes the response.
    pub client: Fate,
    /// The server's, if there is one.
    pub server: Fate,
    /// Whether anybody else may have the server's.
    pub binding: Binding,
}

/// The response has begun: it cannot be another one any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLate;

/// One client connection. While no request is under way it holds no memory but itself.
#[derive(Debug)]
pub struct Exchange {
    limits: HttpLimits,
    request: Request,
    response: Response,
    /// The request, from [`Then::Route`] on.
    head: Option<RequestHead>,
    /// A head that is not whole, by who sends it.
    kept: [Kept; 2],
    blank: Blank,
    leg: ServerLeg,
    /// Something of the request's body was given out.
    body_begun: bool,
    /// The client's stream has ended.
    client_ended: bool,
    client: Fate,
    server: Fate,
    binding: Binding,
    /// A response has gone through before.
    seasoned: bool,
}

/// An empty line in front of a request, which is dropped, but no second one (RFC 9112 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blank {
    /// Its CR has come.
    Cr,
    /// It has come.
    Dropped,
    None,
}

#[derive(Debug)]
enum Request {
    Body(Body),
    /// Whatever comes is dropped.
    Dropped,
    /// No head, or a part of one.
    Head,
    Over,
    Tunnel,
    /// The head is whole, nothing was forwarded.
    Whole,
}

#[derive(Debug)]
enum Response {
    Body(Body),
    /// No head, or a part of one.
    Head,
    Over,
    Tunnel,
    /// No request was forwarded.
    Unasked,
    /// The head is whole, nothing was passed on.
    Whole(Box<ResponseHead>),
}

impl Exchange {
    /// A connection whose first request is to come.
    pub fn new(limits: HttpLimits) -> Exchange {
        Exchange {
            limits,
            request: Request::Head,
            response: Response::Unasked,
            head: None,
            kept: [Kept::default(), Kept::default()],
            blank: Blank::None,
            leg: ServerLeg::Fresh,
            body_begun: false,
            client_ended: false,
            client: Fate::Keep,
            server: Fate::Keep,
            binding: Binding::Free,
            seasoned: false,
        }
    }

    /// The client has sent `input`, or this of it was not taken before. What leaves for the server is appended to `to_server`.
    pub fn on_client(&mut self, input: &[u8], to_server: &mut Output) -> Step {
        let held = self.is_body_held();
        match &mut self.request {
            Request::Body(_) if held => Step { consumed: 0, then: Then::Hold },
            Request::Body(body) => {
                self.body_begun |= !input.is_empty();
                match body.take(input, 0, to_server) {
                    Ok(consumed) => {
                        if body.is_over() {
                            self.request = Request::Over;
                        }
                        Step { consumed, then: self.after_client() }
                    }
                    Err(fault) => self.refuse(fault.into()),
                }
            }
            Request::Dropped => Step { consumed: input.len(), then: Then::Read },
            Request::Head => self.request_head(input).unwrap_or_else(|reason| self.refuse(reason)),
            Request::Over | Request::Whole => Step { consumed: 0, then: self.after_client() },
            Request::Tunnel => Step { consumed: 0, then: Then::Tunnel },
        }
    }

    /// The request at hand.
    ///
    /// # Panics
    /// Before [`Then::Route`] and after [`Exchange::renew`].
    pub fn request(&self) -> &RequestHead {
        self.head.as_ref().expect("asked for between Then::Route and renew")
    }

    /// The request at hand, if its head is whole.
    pub fn known_request(&self) -> Option<&RequestHead> {
        self.head.as_ref()
    }

    /// Writes the head of the request, for a server that is there; again after [`Lost::Retry`], with edits for that one.
    pub fn forward(&mut self, edits: &Edits<'_>, leg: ServerLeg, to_server: &mut Output) {
        let Some(head) = &self.head else { return };
        if self.body_begun || !matches!(self.response, Response::Unasked) {
            return;
        }
        let frame = match head.told {
            Told::Chunked => Frame::Chunked,
            Told::Length(length) => Frame::Length(length),
            // Servers want a length of these even where there is nothing (RFC 9110 §8.6).
            Told::Nothing if matches!(head.method(), "PATCH" | "POST" | "PUT") => Frame::Length(0),
            Told::Nothing => Frame::Untold,
        };
        to_server.make(|made| write::request(head, edits, frame, made));
        let coding = if frame == Frame::Chunked { Coding::Chunks } else { Coding::Plain };
        let allowed = if self.limits.body_bytes_max == 0 { u64::MAX } else { self.limits.body_bytes_max };
        let body = Body::new(head.framing(), coding, allowed);
        self.request = if body.is_over() { Request::Over } else { Request::Body(body) };
        self.response = Response::Head;
        self.leg = leg;
        self.server = Fate::Keep;
    }

    /// The server has sent `input`, or this of it was not taken before. What leaves for the client is appended to `to_client`.
    pub fn on_server(&mut self, input: &[u8], to_client: &mut Output) -> Step {
        match &mut self.response {
            Response::Body(body) => match body.take(input, 0, to_client) {
                Ok(consumed) => {
                    if body.is_over() {
                        self.response = Response::Over;
                        self.unasked(&input[consumed..]);
                        return Step { consumed: input.len(), then: self.after_server() };
                    }
                    Step { consumed, then: Then::Read }
                }
                Err(fault) => self.refuse_response(fault.into()),
            },
            Response::Head => {
                self.response_head(input, to_client).unwrap_or_else(|reason| self.refuse_response(reason))
            }
            Response::Over => {
                self.unasked(input);
                Step { consumed: input.len(), then: self.after_server() }
            }
            Response::Tunnel => Step { consumed: 0, then: Then::Tunnel },
            Response::Unasked if input.is_empty() => Step { consumed: 0, then: Then::Hold },
            Response::Unasked => Step { consumed: input.len(), then: Then::Unasked },
            Response::Whole(_) => Step { consumed: 0, then: Then::Hold },
        }
    }

    /// The response at hand.
    ///
    /// # Panics
    /// Before [`Then::Respond`] and after [`Exchange::respond`].
    pub fn response(&self) -> &ResponseHead {
        let Response::Whole(head) = &self.response else { panic!("asked for between Then::Respond and respond") };
        head
    }

    /// Writes the head of the response. [`Then::Read`] where its body follows, [`Then::Over`] where nothing does, else [`Then::Hold`].
    pub fn respond(&mut self, edits: &Edits<'_>, keep: Keep, to_client: &mut Output) -> Then {
        let (Response::Whole(response), Some(request)) = (&self.response, &self.head) else { return Then::Hold };
        let head_only = request.method() == "HEAD";
        let framing = response.framing(head_only);
        let old = request.version() == Version::Http10;
        let (coding, frame) = match framing {
            Framing::Chunked | Framing::UntilClose if old => (Coding::Plain, Frame::Untold),
            Framing::Chunked | Framing::UntilClose => (Coding::Chunks, Frame::Chunked),
            Framing::Length(length) => (Coding::Plain, Frame::Length(length)),
            Framing::None => (Coding::Plain, told_without_body(response)),
        };
        let ends_with_close = matches!(framing, Framing::Chunked | Framing::UntilClose) && old;
        if !response.is_keep_alive() || framing == Framing::UntilClose {
            self.server = Fate::Close;
        }
        // What is left of the request would have nobody to take it; and who has authenticated a connection that ends is to know.
        let request_lost = !matches!(self.request, Request::Over) || self.binding == Binding::Bound;
        let closes = keep == Keep::Close
            || self.client_ended
            || ends_with_close
            || !request.is_keep_alive()
            || request_lost && self.server == Fate::Close;
        if closes {
            self.client = Fate::Close;
        }
        let about = match self.client {
            Fate::Close => About::Close,
            Fate::Keep if old => About::KeepAlive,
            Fate::Keep => About::Nothing,
        };
        to_client.make(|made| write::response(response, edits, frame, about, made));
        let body = Body::new(framing, coding, u64::MAX);
        self.response = if body.is_over() { Response::Over } else { Response::Body(body) };
        match self.after_server() {
            Then::Hold if !matches!(self.response, Response::Over) => Then::Read,
            then => then,
        }
    }

    /// Writes a response of ours. If the request was forwarded, its server's connection is not to be used any more, as [`Exchange::renew`] says.
    pub fn answer(&mut self, answer: &Answer<'_>, keep: Keep, to_client: &mut Output) -> Result<Then, TooLate> {
        match self.response {
            Response::Body(_) | Response::Over | Response::Tunnel => return Err(TooLate),
            Response::Head | Response::Whole(_) => self.server = Fate::Close,
            Response::Unasked => {}
        }
        let whole = self.head.as_ref().filter(|head| match self.request {
            Request::Whole => head.framing() == Framing::None,
            Request::Over => true,
            Request::Body(_) | Request::Dropped | Request::Head | Request::Tunnel => false,
        });
        let keeps = whole.is_some_and(RequestHead::is_keep_alive) && keep == Keep::Open && !self.client_ended;
        let old = whole.is_some_and(|head| head.version() == Version::Http10);
        let head_only = self.head.as_ref().is_some_and(|head| head.method() == "HEAD");
        let about = match (keeps && self.client == Fate::Keep, old) {
            (false, _) => b"Connection: close\r\n".as_slice(),
            (true, true) => b"Connection: keep-alive\r\n",
            (true, false) => b"",
        };
        to_client.make(|made| answer.write(head_only, about, made));
        if keeps {
            self.request = Request::Over;
        } else {
            self.client = Fate::Close;
            self.request = Request::Dropped;
        }
        self.response = Response::Over;
        Ok(Then::Over)
    }

    /// The client's stream has ended behind everything that was given.
    pub fn client_ended(&mut self) -> ClientEnd {
        self.client_ended = true;
        self.client = Fate::Close;
        match &self.request {
            // The server takes no more of the request, and may have answered it.
            Request::Dropped if matches!(self.response, Response::Body(_) | Response::Head | Response::Whole(_)) => {
                ClientEnd::Finish
            }
            Request::Dropped => ClientEnd::Close,
            Request::Head if self.kept[Side::Client.index()].is_empty() => ClientEnd::Close,
            Request::Body(_) | Request::Head => ClientEnd::Abort,
            Request::Over | Request::Tunnel => ClientEnd::Finish,
            Request::Whole => match self.request().framing() {
                Framing::None => ClientEnd::Finish,
                Framing::Chunked | Framing::Length(_) | Framing::UntilClose => ClientEnd::Abort,
            },
        }
    }

    /// The server's connection has ended behind everything that was given; what ends a response is appended to `to_client`.
    pub fn server_ended(&mut self, end: ServerEnd, to_client: &mut Output) -> Lost {
        self.server = Fate::Close;
        let bound = self.binding == Binding::Bound;
        match &mut self.response {
            Response::Body(body) => {
                if end == ServerEnd::Broken || !body.end(to_client) {
                    return Lost::Cut;
                }
                self.response = Response::Over;
                Lost::Over
            }
            Response::Head if !self.kept[Side::Server.index()].is_empty() => Lost::Failed,
            Response::Head if bound && self.seasoned => Lost::Mirror,
            Response::Head if bound => Lost::Failed,
            Response::Head if !self.body_begun && self.head.as_ref().is_some_and(RequestHead::is_idempotent) => {
                self.response = Response::Unasked;
                Lost::Retry
            }
            Response::Head if self.leg == ServerLeg::Kept && self.seasoned => Lost::Mirror,
            Response::Head | Response::Whole(_) => Lost::Failed,
            Response::Over => Lost::Over,
            Response::Tunnel => Lost::Cut,
            Response::Unasked if bound => Lost::Mirror,
            Response::Unasked => Lost::Idle,
        }
    }

    /// A send to the server has failed: what is left of the request is dropped, and its response may come all the same (RFC 9112 §9.5).
    /// A body of which nothing was given out waits, for the request may be sent again.
    pub fn server_takes_no_more(&mut self) {
        self.server = Fate::Close;
        if matches!(self.request, Request::Body(_)) && self.body_begun {
            self.client = Fate::Close;
            self.request = Request::Dropped;
        }
    }

    /// Bytes of this side that come next and leave as they are: they need not be given here, if [`Exchange::passed`] is told of them.
    pub fn passes(&self, from: Side) -> u64 {
        match (from, &self.request, &self.response) {
            (_, Request::Tunnel, _) => u64::MAX,
            (Side::Client, Request::Body(body), _) if !self.is_body_held() => body.passes(),
            (Side::Server, _, Response::Body(body)) => body.passes(),
            _ => 0,
        }
    }

    /// Some of the client's may have been taken and have not left: the request cannot be sent again.
    pub fn note_body_begun(&mut self) {
        self.body_begun = true;
    }

    /// Whether the server has read all of the request at hand if it answers: there was nothing but a head.
    pub fn asks_by_head(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.framing() == Framing::None)
    }

    /// So many of these have left.
    pub fn passed(&mut self, from: Side, bytes: u64) -> Then {
        match (from, &mut self.request, &mut self.response) {
            (_, Request::Tunnel, _) => Then::Read,
            (Side::Client, Request::Body(body), _) => {
                self.body_begun |= bytes > 0;
                body.passed(bytes);
                if body.is_over() {
                    self.request = Request::Over;
                }
                self.after_client()
            }
            (Side::Server, _, Response::Body(body)) => {
                body.passed(bytes);
                if !body.is_over() {
                    return Then::Read;
                }
                self.response = Response::Over;
                self.after_server()
            }
            _ => Then::Hold,
        }
    }

    /// What is waited for.
    pub fn waiting(&self) -> Waiting {
        match (&self.request, &self.response) {
            (Request::Tunnel, _) => Waiting::Tunnel,
            (Request::Dropped, Response::Over | Response::Unasked) => Waiting::Close,
            (Request::Head, _) if self.kept[Side::Client.index()].is_empty() => Waiting::Request,
            (Request::Head, _) => Waiting::Head,
            (Request::Whole, _) | (Request::Over | Request::Body(_), Response::Unasked) => Waiting::Server,
            (Request::Dropped | Request::Over, Response::Head | Response::Whole(_)) => Waiting::Response,
            (Request::Body(_) | Request::Dropped | Request::Over, _) => Waiting::Transfer,
        }
    }

    /// Whether bytes of this side would be taken. A side that is not read may still end.
    pub fn wants(&self, side: Side) -> bool {
        match side {
            Side::Client => match self.request {
                Request::Body(_) => !self.is_body_held(),
                Request::Dropped | Request::Head | Request::Tunnel => true,
                Request::Over | Request::Whole => false,
            },
            Side::Server => !matches!(self.response, Response::Whole(_)),
        }
    }

    /// Whether the response has begun to leave: no other one can be given any more.
    pub fn has_responded(&self) -> bool {
        matches!(self.response, Response::Body(_) | Response::Over | Response::Tunnel)
    }

    /// Whether the client's stream ends behind what was given out for it.
    pub fn says_no_more(&self) -> bool {
        self.is_over() && self.client == Fate::Close
    }

    /// Whether its connection to the server was authenticated, or may have been: it stays with this client, takes all of its requests, and
    /// no other connection can do in its place.
    pub fn is_bound(&self) -> bool {
        self.binding == Binding::Bound
    }

    /// Whether the request at hand may be sent by a connection that has served others, which its server may close just now. Either it can be sent
    /// again unseen by the client, or the client has had a response before and knows what the end of a connection that was kept may mean
    /// (RFC 9112 §9.3.1). One that binds its connection is sent by one of its own.
    pub fn may_be_lent(&self) -> bool {
        let is_resent = |head: &RequestHead| head.is_idempotent() && head.framing() == Framing::None;
        !self.is_bound() && (self.seasoned || self.head.as_ref().is_some_and(is_resent))
    }

    /// The exchange is over: what becomes of the connections. The next request may begin.
    pub fn renew(&mut self) -> After {
        let server = if matches!(self.request, Request::Over) { self.server } else { Fate::Close };
        let forwarded = self.head.is_some() && server == Fate::Close;
        if self.binding == Binding::Bound && forwarded || !matches!(self.request, Request::Over) {
            self.client = Fate::Close;
        }
        let after = After { client: self.client, server, binding: self.binding };
        self.request = if self.client == Fate::Close { Request::Dropped } else { Request::Head };
        self.response = Response::Unasked;
        self.head = None;
        self.kept = [Kept::default(), Kept::default()];
        self.blank = Blank::None;
        self.body_begun = false;
        self.server = Fate::Keep;
        self.seasoned = true;
        after
    }

    fn request_head(&mut self, whole_input: &[u8]) -> Result<Step, BadRequest> {
        let input = self.without_blank(whole_input)?;
        let blank = whole_input.len() - input.len();
        if input.is_empty() {
            return Ok(Step { consumed: blank, then: Then::Read });
        }
        let kept = &mut self.kept[Side::Client.index()];
        let (taken, head) = if kept.is_empty() {
            match RequestHead::read(input, &self.limits)? {
                Some((len, head)) => (len, Some(head)),
                None => (keep(kept, input, &self.limits).map_err(|fault| too_long(fault, kept))?, None),
            }
        } else {
            match kept.take(input, self.limits.head_bytes_max as usize).map_err(|fault| too_long(fault, kept))? {
                Taken::Part => (input.len(), None),
                Taken::Whole(len) => {
                    let bytes = kept.finish();
                    let (_, head) = RequestHead::read(&bytes, &self.limits)?.ok_or(BadRequest::RequestLine)?;
                    (len, Some(head))
                }
            }
        };
        let then = if head.is_some() { Then::Route } else { Then::Read };
        if let Some(head) = head {
            if head.is_binding() {
                self.binding = Binding::Bound;
            }
            self.head = Some(head);
            self.request = Request::Whole;
        }
        Ok(Step { consumed: blank + taken, then })
    }

    /// The input behind an empty line in front of the request.
    fn without_blank<'a>(&mut self, mut input: &'a [u8]) -> Result<&'a [u8], BadRequest> {
        while let (true, [first, rest @ ..]) = (self.kept[Side::Client.index()].is_empty(), input) {
            match (self.blank, first) {
                (Blank::None, b'\r') => self.blank = Blank::Cr,
                (Blank::Cr, b'\n') => self.blank = Blank::Dropped,
                (Blank::Cr, _) => return Err(BadRequest::RequestLine),
                (Blank::None | Blank::Dropped, _) => break,
            }
            input = rest;
        }
        Ok(input)
    }

    fn response_head(&mut self, input: &[u8], to_client: &mut Output) -> Result<Step, BadResponse> {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            let kept = &mut self.kept[Side::Server.index()];
            let head = if kept.is_empty() {
                match ResponseHead::read(rest, &self.limits)? {
                    Some((len, head)) => {
                        at += len;
                        head
                    }
                    None => {
                        at += keep(kept, rest, &self.limits)?;
                        break;
                    }
                }
            } else {
                match kept.take(rest, self.limits.head_bytes_max as usize)? {
                    Taken::Part => {
                        at = input.len();
                        break;
                    }
                    Taken::Whole(len) => {
                        at += len;
                        let bytes = kept.finish();
                        ResponseHead::read(&bytes, &self.limits)?.ok_or(BadResponse::StatusLine)?.1
                    }
                }
            };
            if let Some(then) = self.response_came(head, to_client)? {
                return Ok(Step { consumed: at, then });
            }
        }
        Ok(Step { consumed: at, then: Then::Read })
    }

    /// A head of the server is whole; `None` where another one follows.
    fn response_came(&mut self, head: ResponseHead, to_client: &mut Output) -> Result<Option<Then>, BadResponse> {
        let Some(request) = &self.head else { return Ok(Some(Then::Unasked)) };
        if head.is_binding() {
            self.binding = Binding::Bound;
        }
        // A server that ended an idle connection said so while our request was on its way (RFC 9110 §15.5.9): it answers no request, and this one
        // goes by another connection where it may.
        if head.status() == 408 && self.leg == ServerLeg::Kept && !self.body_begun && !head.is_keep_alive() {
            return Ok(Some(Then::Crossed));
        }
        if head.status() == 101 {
            if !request.is_upgrade() || !head.is_upgrade() {
                return Err(BadResponse::UnaskedUpgrade);
            }
            to_client.make(|made| write::response(&head, &Edits::default(), Frame::Untold, About::Upgrade, made));
            self.request = Request::Tunnel;
            self.response = Response::Tunnel;
            return Ok(Some(Then::Tunnel));
        }
        if head.is_interim() {
            // RFC 9110 §15.2: not to a client of HTTP/1.0.
            if request.version() == Version::Http11 {
                to_client.make(|made| write::response(&head, &Edits::default(), Frame::Untold, About::Nothing, made));
            }
            return Ok(None);
        }
        self.response = Response::Whole(Box::new(head));
        Ok(Some(Then::Respond))
    }

    /// Whether the body waits, because nobody is there to take it.
    fn is_body_held(&self) -> bool {
        match self.response {
            Response::Unasked => true,
            Response::Head => self.server == Fate::Close,
            Response::Body(_) | Response::Over | Response::Tunnel | Response::Whole(_) => false,
        }
    }

    /// Whether both are through; of a request that nobody takes any more, nothing is waited for.
    fn is_over(&self) -> bool {
        matches!(self.response, Response::Over)
            && (matches!(self.request, Request::Over | Request::Dropped) || self.server == Fate::Close)
    }

    fn after_client(&self) -> Then {
        match &self.request {
            _ if self.is_over() => Then::Over,
            Request::Body(_) => Then::Read,
            _ => Then::Hold,
        }
    }

    fn after_server(&self) -> Then {
        if self.is_over() { Then::Over } else { Then::Hold }
    }

    /// Bytes behind a response: nobody has asked for them, and whose answer they would be taken for is not to be found out.
    fn unasked(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.server = Fate::Close;
        }
    }

    fn refuse(&mut self, reason: BadRequest) -> Step {
        self.request = Request::Dropped;
        self.client = Fate::Close;
        Step { consumed: 0, then: Then::BadRequest(reason) }
    }

    fn refuse_response(&mut self, reason: BadResponse) -> Step {
        self.server = Fate::Close;
        Step { consumed: 0, then: Then::BadResponse(reason) }
    }
}

/// Keeps a part of a head; all of it was looked at.
fn keep(kept: &mut Kept, input: &[u8], limits: &HttpLimits) -> Result<usize, Fault> {
    match kept.take(input, limits.head_bytes_max as usize)? {
        Taken::Part => Ok(input.len()),
        // httparse has found no end where there is one.
        Taken::Whole(_) => Err(Fault::FirstLine),
    }
}

/// A head whose first line alone is too long.
fn too_long(fault: Fault, kept: &Kept) -> BadRequest {
    match fault {
        Fault::HeadTooLong if !kept.has_line() => BadRequest::TargetTooLong,
        fault => fault.into(),
    }
}

/// A response without a body may tell the length of the one that there would be (RFC 9110 §8.6).
fn told_without_body(response: &ResponseHead) -> Frame {
    match response.told {
        Told::Length(length) if !response.is_interim() && response.status() != 204 => Frame::Length(length),
        Told::Chunked | Told::Length(_) | Told::Nothing => Frame::Untold,
    }
}
