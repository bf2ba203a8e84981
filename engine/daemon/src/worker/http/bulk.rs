//! Bodies and tunnels between two plain legs, moved by splice(2) as bulk of relayed sessions is: bytes that nobody here looks at, or changes,
//! never enter the process.
//!
//! A path begins with that when a receive has filled its buffer and much of the body is still to come, and goes back to receives when it only trickles.

use std::io;
use std::os::fd::AsFd;

use towpath_core::http::Then;
use towpath_core::session::{PumpStop, Side};
use towpath_sys::ring::Readiness;

use super::super::Worker;
use super::super::token::{Key, Token};
use super::Conversation;
use super::flow::{Receive, StreamEnd};
use super::server::ServerState;

/// With so many bytes still to come it pays: two receives and two sends cost as much.
const BULK_BYTES_MIN: u64 = 32 * 1024;
/// A turn that brings less is a trickle; as in relayed sessions.
const TRICKLE_BYTES_MAX: u64 = 16 * 1024;

/// What a path that moves bulk waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Bulk {
    /// It does not move bulk: nothing is in its pipe.
    #[default]
    No,
    /// The client's leg, for no use any more: its server was left meanwhile.
    Left,
    /// Nothing: it goes on.
    Nothing,
    /// Others that have their turn before.
    Others,
    /// The leg that is written to.
    Sink,
    /// The leg that is read.
    Source,
}

impl Conversation {
    /// Whether what comes next from this side is bulk.
    pub(super) fn has_bulk(&self, from: Side) -> bool {
        if self.bulk[from.index()] != Bulk::No {
            return true;
        }
        let inlet = &self.inlets[from.index()];
        let is_next = inlet.held.is_none() && (from == Side::Server || self.stowed.is_empty());
        let is_wanted = is_next && inlet.end.is_none() && !self.outlets[from.other().index()].broken;
        inlet.is_filling() && is_wanted && self.exchange.passes(from) >= BULK_BYTES_MIN
    }

    /// What bulk of this side waited for is there, or it waits no more.
    pub(super) fn note_ready(&mut self, from: Side) {
        let bulk = &mut self.bulk[from.index()];
        match bulk {
            Bulk::Sink | Bulk::Source => *bulk = Bulk::Nothing,
            Bulk::Left => *bulk = Bulk::No,
            Bulk::No | Bulk::Nothing | Bulk::Others => {}
        }
    }

    /// Whether this leg is waited for.
    pub(super) fn awaits_for_bulk(&self, side: Side) -> bool {
        let is_left = side == Side::Client && self.bulk.contains(&Bulk::Left);
        is_left || self.bulk[side.index()] == Bulk::Source || self.bulk[side.other().index()] == Bulk::Sink
    }

    /// Whether bulk of this side is to be moved now.
    fn takes_bulk(&self, from: Side) -> bool {
        let is_up = matches!(self.server, ServerState::Up { .. });
        let is_free = matches!(self.bulk[from.index()], Bulk::No | Bulk::Nothing);
        let is_still = self.inlets[from.index()].receive == Receive::Idle;
        let is_ready = is_up && is_free && is_still && self.ending.is_none();
        is_ready && self.outlets[from.other().index()].takes_more() && self.has_bulk(from)
    }
}

impl Worker {
    /// Goes on with bulk that has had its turn in the last breath.
    pub(in super::super) fn move_bulk_later(&mut self, key: Key, from: Side) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let bulk = &mut conversation.bulk[from.index()];
        if *bulk != Bulk::Others {
            return Ok(());
        }
        *bulk = Bulk::Nothing;
        self.advance(key)
    }

    /// Gives up what was on its way from or to a server that is left; nothing is in flight there.
    pub(super) fn drop_bulk(&mut self, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(()) };
        relay.pumps.iter_mut().for_each(|pump| pump.abandon(&mut self.pipes));
        let was = conversation.bulk;
        for from in Side::BOTH {
            // The client's leg stays, and with it the wait for it.
            let is_awaited = matches!(was[from.index()], Bulk::Left | Bulk::Sink | Bulk::Source);
            conversation.bulk[from.index()] = if is_awaited { Bulk::Left } else { Bulk::No };
        }
        for from in Side::BOTH {
            if matches!(was[from.index()], Bulk::Sink | Bulk::Source) {
                self.ring.cancel_wait(Token::Await(key, from).pack(), Token::Nothing.pack())?;
            }
        }
        Ok(())
    }

    /// Moves bulk of this side, if there is any and it is its time; says whether that changed anything.
    pub(super) fn move_bulk(&mut self, key: Key, from: Side) -> io::Result<bool> {
        let now = self.now;
        let Some(relay) = self.relays.get(key).filter(|relay| relay.has_plain_legs()) else { return Ok(false) };
        let Some(conversation) = relay.http.as_deref().filter(|conversation| conversation.takes_bulk(from)) else {
            return Ok(false);
        };
        let limit = conversation.exchange.passes(from);
        let Some((bytes, stop)) = self.pump_bytes(key, from, limit) else { return Ok(false) };
        let Some(conversation) = self.conversation(key) else { return Ok(true) };
        if bytes > 0 {
            conversation.since = now;
            if let Some(notes) = &mut conversation.notes {
                notes.count(from.other(), bytes as usize);
            }
        }
        // What the pipe holds, or held, has left the client's stream.
        if from == Side::Client && matches!(stop, PumpStop::Budget | PumpStop::SinkFailed | PumpStop::SinkFull) {
            conversation.exchange.note_body_begun();
        }
        let then = conversation.exchange.passed(from, bytes);
        conversation.bulk[from.index()] = Bulk::No;
        if bytes == limit {
            conversation.inlets[from.index()].note_drained();
            self.follow(key, from, then)?;
            return Ok(true);
        }
        debug_assert_eq!(then, Then::Read, "of bulk that is not over, more is welcome");
        let inlet = &mut conversation.inlets[from.index()];
        match stop {
            PumpStop::Budget => {
                conversation.bulk[from.index()] = Bulk::Others;
                self.later.push_back((key, from));
            }
            PumpStop::Fin => inlet.end = Some(StreamEnd::Orderly),
            PumpStop::NoPipe => inlet.note_drained(),
            PumpStop::SinkFailed => self.leaving_failed(key, from.other())?,
            PumpStop::SinkFull => self.await_bulk(key, from, Bulk::Sink)?,
            PumpStop::SourceEmpty if bytes < TRICKLE_BYTES_MAX || limit - bytes < BULK_BYTES_MIN => {
                inlet.note_drained()
            }
            PumpStop::SourceEmpty => self.await_bulk(key, from, Bulk::Source)?,
            PumpStop::SourceFailed => inlet.end = Some(StreamEnd::Reset),
        }
        Ok(true)
    }

    fn await_bulk(&mut self, key: Key, from: Side, what: Bulk) -> io::Result<()> {
        let (side, readiness) = match what {
            Bulk::Sink => (from.other(), Readiness::Writable),
            Bulk::Left | Bulk::No | Bulk::Nothing | Bulk::Others | Bulk::Source => (from, Readiness::Readable),
        };
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(()) };
        conversation.bulk[from.index()] = what;
        let Some(leg) = relay.leg(side) else { return Ok(()) };
        self.ring.await_ready(leg.as_fd(), readiness, Token::Await(key, from).pack())
    }
}
