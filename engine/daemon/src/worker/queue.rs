//! Clients that wait for a place on a real server (`queue`): connections, in HTTP mode requests.
//!
//! Who is next over all workers is decided in [`Shared`](crate::shared::Shared), which calls the worker whose client it is. Here are its own clients that
//! wait, until they are served, have waited for `queue_timeout`, or have gone. Their first bytes may be read meanwhile, and that is how one that
//! goes is noticed; of one whose bytes are not read on the kernel is asked, every second and before it is given a place.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::histogram::Latency;
use towpath_core::session::{Event, ReceiveEnd, Side};
use towpath_core::waiting::{QueueFull, Ticket};
use towpath_core::{Now, ServiceId};
use towpath_sys::socket::{self, PeerState};

use super::Worker;
use super::token::Key;
use crate::shared::Call;

/// How often the kernel is asked whether a client is still there.
const LOOK_MS: u64 = 1_000;
/// Connections looked at for those that may be given up, in one breath.
const LOOKED_AT_ONCE: u32 = 512;
/// Clients that leave the queue in one breath.
const SERVED_AT_ONCE: usize = 64;

/// A client that waits.
#[derive(Debug)]
pub(super) struct Waits {
    ticket: Ticket,
    /// Whose queue it stands in.
    place: ServiceId,
    since_us: u64,
    due: Now,
}

impl Waits {
    /// When it is looked at next.
    pub(super) fn next_look(&self, now: Now) -> Now {
        self.due.min(now + LOOK_MS)
    }
}

/// The worker's clients that wait.
#[derive(Default)]
pub(super) struct Queued {
    /// In the order of their turns.
    by_place: BTreeMap<(ServiceId, Ticket), Key>,
    /// Where the look for connections to give up goes on, …
    looked: u32,
    /// … and how many are still to be looked at, for places where one look was not enough.
    looks: BTreeMap<ServiceId, u32>,
}

impl Queued {
    fn first_of(&self, place: ServiceId) -> Option<(Ticket, Key)> {
        let (&(of, ticket), &key) = self.by_place.range((place, Ticket::FIRST)..).next()?;
        (of == place).then_some((ticket, key))
    }

    fn of(&self, place: ServiceId) -> Vec<Key> {
        let of_place = self.by_place.range((place, Ticket::FIRST)..).take_while(|((of, _), _)| *of == place);
        of_place.map(|(_, &key)| key).collect()
    }

    fn places(&self) -> Vec<ServiceId> {
        let mut places: Vec<ServiceId> = self.by_place.keys().map(|(place, _)| *place).collect();
        places.dedup();
        places
    }
}

impl Worker {
    /// Has a client that was `refused` wait, if that is for want of room and its service has a queue; else says how it ends.
    pub(super) fn wait_in_queue(&mut self, key: Key, refused: Termination) -> Result<(), Termination> {
        let (now, since_us) = (self.now, self.now_us);
        let Some(relay) = self.relays.get_mut(key) else { return Err(refused) };
        let service = Arc::clone(relay.service());
        let is_full = matches!(refused, Termination::ServersFull | Termination::ServiceFull);
        let Some(queue) = service.queue.filter(|_| is_full) else { return Err(refused) };
        // Of one that has waited before, and whose server then could not be reached, what is left of its time.
        let due = *relay.queue_due.get_or_insert(now + queue.timeout_ms);
        if due <= now {
            return Err(Termination::QueueTimedOut);
        }
        let ticket = self.shared.join(&service, self.id, now).map_err(|QueueFull| Termination::QueueFull)?;
        // By the time that it has a turn, what had failed may be there again.
        relay.forget_tried();
        relay.waits = Some(Box::new(Waits { ticket, place: service.place, since_us, due }));
        self.queued.by_place.insert((service.place, ticket), key);
        self.shared.seat(self.id).service_page(service.id).add(ServiceCounter::Queued, 1);
        if service.http.is_some() {
            self.shared.want_idle(service.place);
        }
        Ok(())
    }

    /// Does what the worker was called for.
    pub(super) fn answer_calls(&mut self) -> io::Result<()> {
        for call in self.shared.seat(self.id).take_calls() {
            match call {
                Call::Room(place) => self.give_up_idle(place)?,
                Call::Turn(place) => self.serve_queued(place)?,
            }
        }
        Ok(())
    }

    /// Serves those of this worker's clients whose turn it is, as long as there are places.
    fn serve_queued(&mut self, place: ServiceId) -> io::Result<()> {
        for _ in 0..SERVED_AT_ONCE {
            let Some((ticket, key)) = self.queued.first_of(place) else { return Ok(()) };
            if !self.is_still_there(key) {
                self.left_queue(key)?;
                continue;
            }
            if self.choose_waiting(key, ticket).is_err() {
                return Ok(());
            }
            self.served_from_queue(key)?;
        }
        // The rest has its turn in the next breath.
        self.shared.seat(self.id).call(Call::Turn(place));
        Ok(())
    }

    /// A client that waited has a server.
    fn served_from_queue(&mut self, key: Key) -> io::Result<()> {
        let (now, now_us) = (self.now, self.now_us);
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let Some(waits) = relay.waits.take() else { return Ok(()) };
        let is_http = relay.http.is_some();
        let page = self.shared.seat(self.id).service_page(relay.service().id);
        page.add(ServiceCounter::QueueServed, 1);
        let waited_us = now_us.saturating_sub(waits.since_us);
        page.add(ServiceCounter::QueueWaitedMilliseconds, waited_us / 1000);
        page.measure(Latency::Queue, waited_us);
        self.queued.by_place.remove(&(waits.place, waits.ticket));
        if is_http {
            return self.dial_from_queue(key);
        }
        relay.session.restarts_connecting(now);
        self.begin_dialling(key)
    }

    /// The client waits no more, if it did: its turn goes to others.
    pub(super) fn leave_queue(&mut self, key: Key) {
        let Some(waits) = self.relays.get_mut(key).and_then(|relay| relay.waits.take()) else { return };
        self.queued.by_place.remove(&(waits.place, waits.ticket));
        self.shared.leave(waits.place, waits.ticket);
    }

    /// The client has gone while it waited.
    pub(super) fn left_queue(&mut self, key: Key) -> io::Result<()> {
        self.end_waiting(key, Termination::QueueLeft)
    }

    /// Ends what waits; in HTTP mode with an answer, if anybody is there to get it.
    fn end_waiting(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        self.leave_queue(key);
        let Some(relay) = self.relays.get(key) else { return Ok(()) };
        if relay.http.is_none() {
            return self.tell_session(key, Event::ConnectGivenUp(termination));
        }
        if termination == Termination::QueueLeft {
            self.cut_conversation(key, termination);
        } else {
            self.unserved(key, termination)?;
        }
        self.advance(key)
    }

    /// Something has happened to a connection that waits.
    pub(super) fn heard_in_queue(&mut self, key: Key, event: Event) -> io::Result<()> {
        let Some(relay) = self.relays.get(key) else { return Ok(()) };
        let has_left = match event {
            // Whoever has said something may have finished its stream and wait for the answer.
            Event::ReceiveEnded { from: Side::Client, end: ReceiveEnd::Fin } => !relay.session.has_queued(Side::Client),
            Event::ReceiveEnded { from: Side::Client, end } => {
                !matches!(end, ReceiveEnd::Cancelled | ReceiveEnd::NoBuffers)
            }
            _ => false,
        };
        if has_left {
            self.left_queue(key)?;
        }
        self.tell_session(key, event)?;
        if self.relays.get(key).is_some_and(|relay| relay.waits.is_some() && relay.is_ending()) {
            self.leave_queue(key);
            // There is no connect whose end would be waited for.
            return self.tell_session(key, Event::ConnectGivenUp(Termination::QueueLeft));
        }
        Ok(())
    }

    /// The timer of a client that waits has fired.
    pub(super) fn queue_timer(&mut self, key: Key) -> io::Result<()> {
        let now = self.now;
        self.note_timer_fired(key);
        let due = self.relays.get(key).and_then(|relay| relay.waits.as_deref()).map(|waits| waits.due);
        if due.is_none_or(|due| due <= now) {
            return self.end_waiting(key, Termination::QueueTimedOut);
        }
        if !self.is_still_there(key) {
            return self.left_queue(key);
        }
        self.arm_waiting(key);
        Ok(())
    }

    /// Sets the timer of a client that waits.
    pub(super) fn arm_waiting(&mut self, key: Key) {
        if self.relays.get(key).is_some_and(|relay| relay.http.is_some()) {
            return self.arm_conversation(key);
        }
        let look = self.relays.get(key).and_then(|relay| relay.waits.as_deref()).map(|waits| waits.next_look(self.now));
        if let Some(look) = look {
            self.wheel.arm(key.index, look);
        }
    }

    /// Whether the client may still be waited for, as far as the kernel knows. A stream of HTTP/2 has no connection of its own: its hub says so.
    fn is_still_there(&self, key: Key) -> bool {
        let Some(relay) = self.relays.get(key) else { return false };
        let Some(client) = relay.leg(Side::Client) else { return true };
        match socket::peer_state(client) {
            Ok(PeerState::Open) => true,
            // What it has said may not be read yet, where buffers are scarce.
            Ok(PeerState::Finished) => {
                relay.http.is_none()
                    && (relay.session.has_queued(Side::Client)
                        || socket::peek(client, &mut [0]).is_ok_and(|seen| seen > 0))
            }
            Ok(PeerState::Gone) | Err(_) => false,
        }
    }

    /// Another snapshot is served: who waits goes on waiting by it, and may have a place by it at once.
    pub(super) fn requeue(&mut self) -> io::Result<()> {
        for place in self.queued.places() {
            let newest = self.snapshot.service(place).map(Arc::clone);
            for key in self.queued.of(place) {
                let Some(relay) = self.relays.get_mut(key) else { continue };
                let same = newest.as_ref().filter(|newest| newest.name == relay.service().name);
                let alike = same.filter(|newest| newest.http.is_some() == relay.http.is_some());
                match alike {
                    Some(service) => relay.led_to(Arc::clone(service)),
                    None => self.end_waiting(key, Termination::NoServer)?,
                }
                let id = newest.as_ref().map(|service| service.id);
                if let Some(service_tls) = id.and_then(|id| self.tls.service(id)).map(Arc::clone)
                    && let Some(relay) = self.relays.get_mut(key).filter(|relay| relay.service_tls.is_some())
                {
                    relay.service_tls = Some(service_tls);
                }
            }
            self.serve_queued(place)?;
        }
        Ok(())
    }

    /// Clients wait for places that connections in HTTP mode may hold between two requests: as many as wait are given up here, if there are so many.
    fn give_up_idle(&mut self, place: ServiceId) -> io::Result<()> {
        let slots = self.relays.slots();
        let unseen = self.queued.looks.remove(&place).unwrap_or(slots);
        let (mut wanted, _) = self.shared.queue(place);
        let looked_at = unseen.min(LOOKED_AT_ONCE);
        for _ in 0..looked_at {
            if wanted == 0 {
                return Ok(());
            }
            self.queued.looked = (self.queued.looked + 1) % slots;
            let Some(key) = self.relays.key_at(self.queued.looked) else { continue };
            if self.holds_place_idly(key, place) {
                self.give_up_idle_server(key)?;
                wanted -= 1;
            }
        }
        if unseen > looked_at && wanted > 0 {
            self.queued.looks.insert(place, unseen - looked_at);
            self.shared.seat(self.id).call(Call::Room(place));
        }
        Ok(())
    }
}
