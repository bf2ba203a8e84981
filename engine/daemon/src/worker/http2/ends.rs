//! How a client's connection of HTTP/2 ends, and the times after which it does.

use std::io;

use towpath_core::Now;
use towpath_core::counters::Termination;
use towpath_core::session::Side;

use super::super::http::{LINGER_MS, StreamEnd};
use super::super::relay::Close;
use super::super::token::Key;
use super::super::{PortUse, Worker};
use super::{Hub, Receive};

/// How long a client may take to answer that it knows of the end, before it is told the last stream all the same.
const ANNOUNCED_MS: u64 = 1_000;

/// The end of a connection, once it is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HubEnding {
    /// What there is for the client leaves first.
    Finishing(Termination),
    /// Our stream to the client has ended; what it still sends is dropped until then.
    Lingering(Termination, Now),
    /// Operations in flight come to their ends.
    Stopping { termination: Termination, reset: bool },
}

impl Hub {
    /// Tells the client to open no more streams.
    pub(super) fn announce(&mut self, now: Now) {
        if self.announced.is_none() {
            self.announced = Some(now);
            self.connection.announce_end();
        }
    }

    /// When something has to happen if nothing else does.
    fn deadline(&self) -> Option<Now> {
        match self.ending {
            Some(HubEnding::Finishing(_)) => return Some(self.since.max(self.left_at) + self.front.idle_timeout_ms),
            Some(HubEnding::Lingering(_, due)) => return Some(due),
            Some(HubEnding::Stopping { .. }) => return None,
            None => {}
        }
        let told = self.announced.filter(|_| !self.connection.has_ended()).map(|at| at + ANNOUNCED_MS);
        [self.head_due(), self.idle_due(), self.stalled_due(), told].into_iter().flatten().min()
    }

    /// Until when a head that has begun has to be whole.
    fn head_due(&self) -> Option<Now> {
        let ms = self.front.http.as_ref()?.rules.config().head_timeout_ms;
        self.head_since.map(|since| since + ms)
    }

    /// Until when another stream has to be opened.
    fn idle_due(&self) -> Option<Now> {
        let is_idle = self.head_since.is_none() && self.connection.streams() == 0;
        is_idle.then_some(self.since + self.front.idle_timeout_ms)
    }

    /// Until when something of what there is has to leave.
    fn stalled_due(&self) -> Option<Now> {
        (!self.has_left()).then_some(self.left_at + self.front.idle_timeout_ms)
    }
}

impl Worker {
    /// Ends the connection as soon as what there is for the client has left. Its streams end now.
    pub(super) fn finish_hub(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        let now = self.now;
        let Some(hub) = self.hub(key) else { return Ok(()) };
        if hub.ending.is_some() {
            return Ok(());
        }
        hub.ending = Some(HubEnding::Finishing(termination));
        hub.left_at = now;
        self.drop_held_of_hub(key);
        self.end_spokes(key, termination)
    }

    /// Ends the connection at once.
    pub(super) fn cut_hub(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        self.stop_hub(key, termination, true)?;
        self.end_spokes(key, termination)
    }

    fn stop_hub(&mut self, key: Key, termination: Termination, reset: bool) -> io::Result<()> {
        let now = self.now;
        let Some(hub) = self.hub(key) else { return Ok(()) };
        if matches!(hub.ending, Some(HubEnding::Stopping { .. })) {
            return Ok(());
        }
        hub.ending = Some(HubEnding::Stopping { termination, reset });
        hub.out = Vec::new();
        hub.connection.give_up();
        hub.kept.note(0, now);
        let was_quiet = hub.receive != Receive::Armed && !hub.sending;
        self.drop_held_of_hub(key);
        if !was_quiet {
            self.cancel_side(key, Side::Client);
        }
        Ok(())
    }

    fn drop_held_of_hub(&mut self, key: Key) {
        if let Some(chunk) = self.hub(key).and_then(|hub| hub.held.take()) {
            self.ring.recycle(chunk.buffer);
        }
    }

    /// The client's stream has ended behind everything that was taken: nobody waits for responses any more.
    pub(super) fn client_left_hub(&mut self, key: Key, end: StreamEnd) -> io::Result<()> {
        let Some(hub) = self.hub(key) else { return Ok(()) };
        let termination = match end {
            StreamEnd::Damaged => Termination::TlsBroken,
            StreamEnd::Reset => Termination::ClientReset,
            StreamEnd::Truncated if hub.connection.streams() > 0 => Termination::ClientTruncated,
            StreamEnd::Orderly | StreamEnd::Truncated => Termination::ClientClosed,
        };
        match end {
            StreamEnd::Orderly | StreamEnd::Truncated => self.finish_hub(key, termination),
            StreamEnd::Damaged | StreamEnd::Reset => self.cut_hub(key, termination),
        }
    }

    /// Goes on with the end; says whether the connection is gone.
    pub(super) fn follow_hub_ending(&mut self, key: Key) -> io::Result<bool> {
        let now = self.now;
        let Some(hub) = self.hub(key) else { return Ok(true) };
        if hub.ending.is_none() && hub.connection.has_ended() && hub.connection.streams() == 0 && hub.has_left() {
            self.finish_hub(key, Termination::KeepAliveEnded)?;
        }
        let Some(hub) = self.hub(key) else { return Ok(true) };
        if let Some(HubEnding::Finishing(termination)) = hub.ending {
            if !hub.has_left() {
                return Ok(false);
            }
            if hub.end.is_some() {
                self.stop_hub(key, termination, false)?;
            } else {
                hub.ending = Some(HubEnding::Lingering(termination, now + LINGER_MS));
                self.finish_leg(key, Side::Client)?;
                self.receive_for_hub(key)?;
            }
        }
        let Some(hub) = self.hub(key) else { return Ok(true) };
        if let Some(HubEnding::Lingering(termination, due)) = hub.ending {
            if hub.end.is_none() && now < due {
                return Ok(false);
            }
            self.stop_hub(key, termination, false)?;
        }
        let Some(hub) = self.hub(key) else { return Ok(true) };
        let Some(HubEnding::Stopping { termination, reset }) = hub.ending else { return Ok(false) };
        if hub.receive == Receive::Armed || hub.sending {
            return Ok(false);
        }
        self.close_relay(key, Close::new(termination, reset, PortUse::Over))?;
        Ok(true)
    }

    /// A deadline may have come.
    pub(super) fn hub_timer(&mut self, key: Key) -> io::Result<()> {
        let now = self.now;
        let Some(hub) = self.hub(key) else { return Ok(()) };
        hub.timer = None;
        if hub.deadline().is_none_or(|due| now < due) {
            return Ok(());
        }
        match hub.ending {
            Some(HubEnding::Finishing(_)) => return self.cut_hub(key, Termination::IdleTimedOut),
            Some(_) => return Ok(()),
            None => {}
        }
        let told_due = hub.announced.is_some_and(|at| at + ANNOUNCED_MS <= now);
        if told_due && !hub.connection.has_ended() {
            hub.connection.end();
            return Ok(());
        }
        let is_over = |due: Option<Now>| due.is_some_and(|due| due <= now);
        let (head, stalled, idle) = (is_over(hub.head_due()), is_over(hub.stalled_due()), is_over(hub.idle_due()));
        match (stalled, head, idle) {
            (true, ..) => self.cut_hub(key, Termination::IdleTimedOut),
            (false, true, _) => self.end_hub(key, Termination::HeadTimedOut),
            (false, false, true) => self.end_hub(key, Termination::KeepAliveEnded),
            (false, false, false) => Ok(()),
        }
    }

    /// Tells the client that this was all, and ends the connection.
    fn end_hub(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        if let Some(hub) = self.hub(key) {
            hub.connection.end();
        }
        self.finish_hub(key, termination)
    }

    /// Sets the timer, if it is due earlier than it stands.
    pub(in super::super) fn arm_hub(&mut self, key: Key) {
        let Some(hub) = self.hub(key) else { return };
        let Some(due) = hub.deadline() else { return };
        if hub.timer.is_none_or(|timer| due < timer) {
            hub.timer = Some(due);
            self.wheel.arm(key.index, due);
        }
    }
}
