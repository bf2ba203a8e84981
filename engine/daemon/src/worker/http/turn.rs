//! One turn of the exchange: what a leg has brought goes in, what it makes of it leaves by the other leg.

use std::io;

use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::http::{
    Answer, BadResponse, ClientEnd, Fate, Lost, Output, Scheme, ServerEnd, ServerLeg, Step, Then,
};
use towpath_core::session::{Chunk, Side};

use super::super::Worker;
use super::super::relay::Relay;
use super::super::token::Key;
use super::flow::{Source, StreamEnd, rest_of};
use super::server::{Next, ServerState};
use super::{Conversation, Stage};

impl Conversation {
    /// Whether what the client has sent is to be taken now.
    fn takes_from_client(&self) -> bool {
        let [to_client, to_server] = &self.outlets;
        if self.ending.is_some() {
            return false;
        }
        let is_up = matches!(self.server, ServerState::Up { .. });
        match self.stage {
            // Answers leave in their order.
            Stage::Between => self.client_has_news() && to_client.is_empty(),
            Stage::Routed => is_up && to_server.is_empty(),
            Stage::Forwarded | Stage::Tunnel => self.client_has_news() && to_server.is_empty() && is_up,
        }
    }

    fn takes_from_server(&self) -> bool {
        let is_up = matches!(self.server, ServerState::Up { .. });
        let has_news = self.inlets[Side::Server.index()].has_news();
        self.ending.is_none() && is_up && has_news && self.outlets[Side::Client.index()].is_empty()
    }
}

impl Worker {
    /// Takes what the client has sent, if it is its time; says whether that changed anything.
    pub(super) fn take_from_client(&mut self, key: Key) -> io::Result<bool> {
        let Some(conversation) = self.conversation(key) else { return Ok(false) };
        if !conversation.takes_from_client() {
            return Ok(false);
        }
        let inlet = &mut conversation.inlets[Side::Client.index()];
        if inlet.held.is_none() && conversation.stowed.is_empty() && conversation.stage != Stage::Routed {
            inlet.end_told = true;
            return self.client_ended(key).map(|()| true);
        }
        if conversation.stage == Stage::Tunnel {
            return self.pass_on(key, Side::Client).map(|()| true);
        }
        self.with_output(|worker, output| worker.client_turn(key, output))
    }

    /// The same of the server.
    pub(super) fn take_from_server(&mut self, key: Key) -> io::Result<bool> {
        let Some(conversation) = self.conversation(key) else { return Ok(false) };
        if !conversation.takes_from_server() {
            return Ok(false);
        }
        let inlet = &mut conversation.inlets[Side::Server.index()];
        if inlet.held.is_none() {
            inlet.end_told = true;
            return self.server_ended(key).map(|()| true);
        }
        if conversation.stage == Stage::Tunnel {
            return self.pass_on(key, Side::Server).map(|()| true);
        }
        self.with_output(|worker, output| worker.server_turn(key, output))
    }

    /// Lends the worker's output, empty, for one turn.
    fn with_output<T>(&mut self, turn: impl FnOnce(&mut Worker, &mut Output) -> T) -> T {
        let mut output = std::mem::take(&mut self.output);
        output.clear();
        let result = turn(self, &mut output);
        self.output = output;
        result
    }

    fn client_turn(&mut self, key: Key, output: &mut Output) -> io::Result<bool> {
        let Worker { relays, ring, now, now_us, .. } = self;
        let Some(relay) = relays.get_mut(key) else { return Ok(false) };
        let redispatches = relay.redispatches();
        let held = relay.http.as_ref().and_then(|conversation| conversation.inlets[Side::Client.index()].held);
        let range = held.map(|chunk| relay.chunk_range(Side::Client, chunk));
        let address = relay.client_address();
        let by_tls = relay.legs.tls(Side::Client).is_some() || relay.is_spoke();
        let scheme = if by_tls { Scheme::Https } else { Scheme::Http };
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(false) };
        if conversation.stage == Stage::Routed {
            let leg = conversation.server.begin_request();
            conversation.kept_leg = leg == ServerLeg::Kept;
            conversation.has_read = false;
            let Some(http) = &conversation.front.http else { return Ok(false) };
            let request = conversation.exchange.request();
            let (edits, after) = http.rules.request_edits(request, address, scheme, conversation.named);
            conversation.after = Some(after);
            conversation.exchange.forward(&edits, leg, output);
            conversation.stage = Stage::Forwarded;
            conversation.asked_us = Some(*now_us);
            conversation.inlets[Side::Client.index()].on_hold = false;
            if let Some(notes) = &mut conversation.notes {
                notes.note_forwarded(*now, redispatches);
            }
        } else if conversation.stage == Stage::Between
            && let Some(notes) = &mut conversation.notes
        {
            notes.begin(*now);
        }
        let stowed = conversation.stowed.take();
        if stowed.is_empty() {
            let input = range.map_or(&[][..], |range| ring.held(range));
            let Step { consumed, then } = conversation.exchange.on_client(input, output);
            self.end_turn(key, Side::Client, output, 0, consumed)?;
            self.follow(key, Side::Client, then)?;
            return Ok(true);
        }
        let Step { consumed, then } = conversation.exchange.on_client(&stowed, output);
        self.emit_copied(key, Side::Server, output, &stowed)?;
        self.stow_again(key, stowed, consumed);
        self.follow(key, Side::Client, then)?;
        Ok(true)
    }

    fn server_turn(&mut self, key: Key, output: &mut Output) -> io::Result<bool> {
        let mut base = 0;
        loop {
            let Worker { relays, ring, .. } = self;
            let Some(relay) = relays.get_mut(key) else { return Ok(false) };
            let held = relay.http.as_ref().and_then(|conversation| conversation.inlets[Side::Server.index()].held);
            let Some(range) = held.map(|chunk| relay.chunk_range(Side::Server, chunk)) else { return Ok(false) };
            let Some(conversation) = relay.http.as_deref_mut() else { return Ok(false) };
            let Step { consumed, then } = conversation.exchange.on_server(ring.held(rest_of(range, base)), output);
            if then != Then::Respond {
                self.end_turn(key, Side::Server, output, base, consumed)?;
                self.follow(key, Side::Server, then)?;
                return Ok(true);
            }
            base += consumed as u32;
            if self.is_challenge_over_http2(key) {
                self.require_http1(key)?;
                return Ok(true);
            }
            let then = self.respond(key, output);
            if then != Then::Read || base == range.len {
                self.end_turn(key, Side::Server, output, base, 0)?;
                self.follow(key, Side::Server, then)?;
                return Ok(true);
            }
        }
    }

    /// Passes what one side of a tunnel has sent on as it is.
    fn pass_on(&mut self, key: Key, from: Side) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let stowed = if from == Side::Client { conversation.stowed.take() } else { Vec::new() };
        let outlet = &mut conversation.outlets[from.other().index()];
        let held = conversation.inlets[from.index()].held.filter(|_| stowed.is_empty());
        if let Some(notes) = &mut conversation.notes {
            notes.count(from.other(), held.map_or(stowed.len(), |chunk| chunk.len as usize));
        }
        if stowed.is_empty() {
            let chunk = conversation.inlets[from.index()].held.take();
            outlet.follow_with(chunk);
        } else {
            outlet.follow_with_copy(stowed);
        }
        self.send_waiting(key, from.other())
    }

    /// What a turn has made leaves, and what it has taken is let go. Of the held bytes those before `base` were taken before.
    fn end_turn(&mut self, key: Key, from: Side, output: &Output, base: u32, consumed: usize) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        // Taken out for as long as it is sent from: what ends the connection meanwhile gives back what it finds held.
        let Some(chunk) = conversation.inlets[from.index()].held.take() else {
            return self.emit(key, from.other(), output, None).map(drop);
        };
        let taken = base + consumed as u32;
        let exhausted = taken >= chunk.len;
        let moved = self.emit(key, from.other(), output, Some(Source { chunk, base, exhausted }))?;
        let open = self.conversation(key).filter(|conversation| !conversation.is_stopping());
        match open {
            Some(conversation) if !exhausted => {
                let rest = Chunk { start: chunk.start + taken, len: chunk.len - taken, ..chunk };
                conversation.inlets[from.index()].held = Some(rest);
            }
            _ if moved => {}
            _ => self.ring.recycle(chunk.buffer),
        }
        Ok(())
    }

    /// Does what the exchange wants next.
    pub(super) fn follow(&mut self, key: Key, from: Side, then: Then) -> io::Result<()> {
        if then == Then::Route && self.is_logon_over_http2(key) {
            return self.require_http1(key);
        }
        let now = self.now;
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        match then {
            Then::Read => Ok(()),
            Then::Hold => {
                conversation.inlets[from.index()].on_hold = true;
                Ok(())
            }
            Then::Route => self.route(key),
            // It is not asked for outside of a turn of the server.
            Then::Respond => Ok(()),
            Then::Over => self.exchange_over(key),
            Then::Tunnel => {
                conversation.stage = Stage::Tunnel;
                if let Some(notes) = &mut conversation.notes {
                    notes.note_responded(now, 101, 0);
                }
                conversation.inlets.iter_mut().for_each(|inlet| inlet.on_hold = false);
                self.count(key, ServiceCounter::Tunnels);
                Ok(())
            }
            Then::BadRequest(reason) => self.refuse_request(key, reason),
            Then::BadResponse(reason) => {
                let Some(service) = self.relays.get(key).map(|relay| relay.service().id) else { return Ok(()) };
                self.shared.seat(self.id).service_page(service).count_bad_response(reason);
                self.answer_ourselves(key, &Answer::of(502), Termination::BadResponse)
            }
            Then::Crossed => self.server_lost(key, ServerEnd::Broken),
            Then::Unasked => {
                let Some(service) = self.relays.get(key).map(|relay| relay.service().id) else { return Ok(()) };
                self.shared.seat(self.id).service_page(service).count_bad_response(BadResponse::Unasked);
                self.server_lost(key, ServerEnd::Broken)
            }
        }
    }

    /// Answers the request at hand ourselves; a response that has begun is cut off, as `termination`.
    pub(super) fn answer_ourselves(
        &mut self,
        key: Key,
        answer: &Answer<'_>,
        termination: Termination,
    ) -> io::Result<()> {
        let (keep, now) = (self.keep(key), self.now);
        let mut output = Output::default();
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let answered = conversation.exchange.answer(answer, keep, &mut output);
        if answered.is_err() {
            self.cut_conversation(key, termination);
            return Ok(());
        }
        conversation.answered_as = Some(termination);
        if let Some(notes) = &mut conversation.notes {
            notes.note_answer();
            let is_head = conversation.exchange.known_request().is_some_and(|request| request.method() == "HEAD");
            let body_bytes = if is_head { 0 } else { answer.body.len() };
            notes.note_responded(now, answer.status, output.len().saturating_sub(body_bytes));
        }
        self.count_response(key, answer.status);
        self.count(key, ServiceCounter::Answered);
        self.emit(key, Side::Client, &output, None)?;
        self.exchange_over(key)
    }

    /// Request and response are through.
    pub(super) fn exchange_over(&mut self, key: Key) -> io::Result<()> {
        let now = self.now;
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        if conversation.notes.is_some() {
            let termination = conversation.answered_as;
            self.note_over(key, termination);
        }
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let (was_asked, asked_by_head) = (conversation.stage == Stage::Forwarded, conversation.exchange.asks_by_head());
        let after = conversation.exchange.renew();
        if was_asked {
            conversation.has_read = asked_by_head && after.server == Fate::Keep;
        }
        conversation.stage = Stage::Between;
        conversation.served = conversation.served.saturating_add(1);
        conversation.since = now;
        conversation.inlets.iter_mut().for_each(|inlet| inlet.on_hold = false);
        // What a server says unasked belongs to no request.
        let babbles = conversation.inlets[Side::Server.index()].held.is_some();
        // Its next request goes elsewhere, and until then a drain would wait for it; …
        let drains = self.relays.get(key).is_some_and(|relay| relay.is_at_draining(&self.snapshot));
        // … or it would keep a place that others wait for.
        if after.server == Fate::Close || babbles || drains || self.is_waited_for(key) {
            self.part(key, Next::Nothing)?;
        } else {
            self.settle(key, after)?;
        }
        if after.client == Fate::Close {
            self.finish_conversation(key, Termination::KeepAliveEnded);
        } else if let Some(conversation) = self.conversation(key) {
            conversation.answered_as = None;
        }
        Ok(())
    }

    /// Everything that the client sent is taken, and its stream has ended.
    fn client_ended(&mut self, key: Key) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let end = conversation.inlets[Side::Client.index()].end.unwrap_or(StreamEnd::Reset);
        let cut = match end {
            StreamEnd::Damaged => Termination::TlsBroken,
            StreamEnd::Reset => Termination::ClientReset,
            StreamEnd::Truncated => Termination::ClientTruncated,
            StreamEnd::Orderly if conversation.stage == Stage::Tunnel => return self.pass_end_on(key, Side::Client),
            StreamEnd::Orderly => match conversation.exchange.client_ended() {
                ClientEnd::Abort => Termination::RequestCutOff,
                ClientEnd::Close => {
                    self.finish_conversation(key, Termination::ClientClosed);
                    return Ok(());
                }
                ClientEnd::Finish => return Ok(()),
            },
        };
        self.cut_conversation(key, cut);
        Ok(())
    }

    /// The same of the server.
    fn server_ended(&mut self, key: Key) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let end = conversation.inlets[Side::Server.index()].end.unwrap_or(StreamEnd::Reset);
        if conversation.stage == Stage::Tunnel {
            return match end {
                StreamEnd::Orderly => self.pass_end_on(key, Side::Server),
                StreamEnd::Damaged => self.cut_off(key, Termination::TlsBroken),
                StreamEnd::Reset => self.cut_off(key, Termination::ServerReset),
                StreamEnd::Truncated => self.cut_off(key, Termination::ServerTruncated),
            };
        }
        // A failure that a send was told of is not told to the receive again.
        let has_failed = conversation.outlets[Side::Server.index()].broken;
        let how = if end == StreamEnd::Orderly && !has_failed { ServerEnd::Orderly } else { ServerEnd::Broken };
        self.server_lost(key, how)
    }

    /// The server has gone, or is not to be used any more.
    pub(super) fn server_lost(&mut self, key: Key, how: ServerEnd) -> io::Result<()> {
        self.lose_server(key, how, None)
    }

    /// The same of a server that is `taken` away from outside: what of the client's ends with it ends by that.
    pub(super) fn lose_server(&mut self, key: Key, how: ServerEnd, taken: Option<Termination>) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let mut output = Output::default();
        let lost = conversation.exchange.server_ended(how, &mut output);
        self.emit(key, Side::Client, &output, None)?;
        match lost {
            Lost::Idle => self.server_lost_idle(key),
            Lost::Over => self.exchange_over(key),
            Lost::Retry => self.retry(key),
            Lost::Failed => {
                self.part(key, Next::Nothing)?;
                self.answer_ourselves(key, &Answer::of(502), taken.unwrap_or(Termination::ServerReset))
            }
            // A client of HTTP/2 does not see that a connection has ended, and could not know what of it may be sent again.
            Lost::Mirror if self.relays.get(key).is_some_and(Relay::is_spoke) => {
                self.part(key, Next::Nothing)?;
                self.answer_ourselves(key, &Answer::of(502), taken.unwrap_or(Termination::ServerReset))
            }
            Lost::Mirror => {
                self.finish_conversation(key, taken.unwrap_or(Termination::ServerClosed));
                Ok(())
            }
            Lost::Cut => self.cut_off(key, taken.unwrap_or(Termination::ResponseCutOff)),
        }
    }

    /// A server has gone that has answered all it was asked: nothing is lost, but a request that was to be sent to it goes by another connection.
    pub(super) fn server_lost_idle(&mut self, key: Key) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        if conversation.stage != Stage::Routed {
            return self.part(key, Next::Nothing);
        }
        // What is left of the request before is still on its way to a server that has answered it.
        conversation.kept_leg = matches!(conversation.server, ServerState::Up { kept: true });
        self.retry(key)
    }

    /// Whether the response at hand wants the client of a stream to authenticate its connection.
    fn is_challenge_over_http2(&self, key: Key) -> bool {
        let status = |key| Some(self.relays.get(key)?.http.as_ref()?.exchange.response().status());
        self.is_logon_over_http2(key) && matches!(status(key), Some(401 | 407))
    }

    /// Whether a stream of HTTP/2 has seen what authenticates a connection.
    fn is_logon_over_http2(&self, key: Key) -> bool {
        self.relays.get(key).is_some_and(|relay| {
            relay.is_spoke() && relay.http.as_ref().is_some_and(|conversation| conversation.exchange.is_bound())
        })
    }

    fn cut_off(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        self.cut_conversation(key, termination);
        Ok(())
    }
}
