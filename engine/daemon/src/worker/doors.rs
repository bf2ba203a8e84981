//! The listeners of a worker: accepting, receiving, running out of descriptors, closing without losing a client.
//!
//! One that no service has any more *leaves*: it takes nobody new, those who have come in by it are served as by its last service, and it closes
//! together with those of the other workers ([`DoorBoard`](crate::shared::DoorBoard)).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use towpath_config::model::Protocol;
use towpath_core::counters::{Termination, WorkerCounter};
use towpath_core::snapshot::{Service, Snapshot};
use towpath_core::{Now, ServiceId};
use towpath_sys::Cause;
use towpath_sys::ring::{Completion, Received};
use towpath_sys::socket;

use super::Worker;
use super::token::Token;
use crate::listen::{Listener, Opening};
use crate::shared::{Doorway, Shared};
use crate::tls::{ServiceTls, TlsContexts};

/// How long a listener waits after the process ran out of descriptors or a receive failed.
const PAUSE_MS: u64 = 10;
/// Clients refused in one go while there are no descriptors.
const REFUSED_AT_ONCE_MAX: usize = 64;
/// How long a listener that leaves waits for handshakes that are under way: one answer of ours that is lost is sent again within this time (RFC 6298 §2.1).
const HANDSHAKES_MS: u64 = 1200;
/// Time between two looks whether a UDP listener that leaves still has sessions.
const SESSIONS_LOOK_MS: u64 = 100;

/// One listener and whether the ring watches it.
struct Door {
    service: ServiceId,
    doorway: Doorway,
    socket: DoorSocket,
    /// An accept or receive is in flight.
    armed: bool,
    /// Not to be armed before this time.
    paused_until: Option<Now>,
    /// No service has it any more.
    leaving: Option<Box<Leaving>>,
}

/// What a listener is that leaves.
struct Leaving {
    /// Its last service, and how TLS with its clients begins; `None` where this worker has never served it.
    last: Option<(Arc<Service>, Option<Arc<ServiceTls>>)>,
    /// When it is looked at next; `None` = it is known to be needed no more.
    look_at: Option<Now>,
    /// Its operations are cancelled.
    is_closing: bool,
}

enum DoorSocket {
    Stream(OwnedFd),
    Datagram(UdpSocket),
    Closed,
}

/// Every listener of one worker.
pub(super) struct Doors {
    doors: Vec<Door>,
    /// The list of what clients come to that it follows.
    openings: Arc<[Opening]>,
    /// How many leave.
    leaving: usize,
    /// Datagrams wait in the kernel for the process that takes over.
    holds_datagrams: bool,
    /// A descriptor kept back, so that a client can be accepted and refused when there is no other.
    reserve: Reserve,
}

impl Doors {
    pub(super) fn new(listeners: Vec<Listener>, openings: Arc<[Opening]>) -> io::Result<Doors> {
        let doors = listeners.into_iter().map(Door::new).collect();
        Ok(Doors { doors, openings, leaving: 0, holds_datagrams: false, reserve: Reserve(Some(reserve()?)) })
    }

    /// One more; it takes the place of one that has closed.
    fn insert(&mut self, door: Door) {
        match self.doors.iter_mut().find(|old| matches!(old.socket, DoorSocket::Closed) && !old.armed) {
            Some(place) => *place = door,
            None => self.doors.push(door),
        }
    }

    /// The socket of a UDP listener, unless it is closed.
    pub(super) fn datagram_socket(&self, index: u32) -> Option<&UdpSocket> {
        match &self.doors.get(index as usize)?.socket {
            DoorSocket::Datagram(socket) => Some(socket),
            DoorSocket::Stream(_) | DoorSocket::Closed => None,
        }
    }

    /// Has the kernel choose the listeners of new TCP clients by this program, for all workers. Where that fails the others still get it; the
    /// first error.
    pub(super) fn steer(&self, program: &[(u16, u8, u8, u32)]) -> io::Result<()> {
        let mut result = Ok(());
        for door in &self.doors {
            if let DoorSocket::Stream(listener) = &door.socket {
                result = result.and(socket::attach_reuseport_program(listener, program));
            }
        }
        result
    }

    /// Copies of the listeners that stay.
    pub(super) fn copies(&self) -> io::Result<Vec<(Doorway, OwnedFd)>> {
        let stay = self.doors.iter().filter(|door| door.leaving.is_none());
        let copy = |door: &Door| {
            let socket = match &door.socket {
                DoorSocket::Stream(socket) => socket.as_fd(),
                DoorSocket::Datagram(socket) => socket.as_fd(),
                DoorSocket::Closed => return None,
            };
            Some(socket.try_clone_to_owned().map(|socket| (door.doorway, socket)))
        };
        stay.filter_map(copy).collect()
    }

    /// Whether an accept or receive is still in flight.
    pub(super) fn any_armed(&self) -> bool {
        self.doors.iter().any(|door| door.armed)
    }

    /// When the first paused listener goes on.
    pub(super) fn next_due(&self) -> Option<Now> {
        self.doors.iter().filter_map(|door| door.paused_until).min()
    }

    /// When the first that leaves is looked at.
    pub(super) fn next_look(&self) -> Option<Now> {
        if self.leaving == 0 {
            return None;
        }
        self.doors.iter().filter_map(|door| door.leaving.as_ref()?.look_at).min()
    }

    /// Whether one leaves whose last service this is.
    pub(super) fn has_left_of(&self, service: ServiceId) -> bool {
        self.leaving > 0 && self.doors.iter().any(|door| door.leaving.is_some() && door.service == service)
    }
}

impl Door {
    fn new(listener: Listener) -> Door {
        Door {
            service: listener.service,
            doorway: (listener.protocol, listener.address),
            socket: match listener.protocol {
                Protocol::Tcp => DoorSocket::Stream(listener.socket),
                Protocol::Udp => DoorSocket::Datagram(UdpSocket::from(listener.socket)),
            },
            armed: false,
            paused_until: None,
            leaving: None,
        }
    }

    fn is_closing(&self) -> bool {
        self.leaving.as_ref().is_some_and(|leaving| leaving.is_closing)
    }

    fn port(&self) -> u16 {
        self.doorway.1.port()
    }
}

impl Worker {
    /// Watches every listener that is open, not watched and not paused.
    pub(super) fn arm_doors(&mut self) -> io::Result<()> {
        for (door, index) in self.doors.doors.iter_mut().zip(0u32..) {
            if door.armed || door.is_closing() || door.paused_until.is_some_and(|until| until > self.now) {
                continue;
            }
            door.paused_until = None;
            match &door.socket {
                DoorSocket::Stream(socket) => {
                    // Another worker may have got it while it was used; it gives it back.
                    if !self.doors.reserve.regain(&self.shared) {
                        door.paused_until = Some(self.now + PAUSE_MS);
                        continue;
                    }
                    self.ring.accept_many(socket.as_fd(), Token::Accept(index).pack())?;
                }
                DoorSocket::Datagram(_) if self.doors.holds_datagrams => continue,
                DoorSocket::Datagram(socket) => {
                    self.ring.receive_messages(socket.as_fd(), Token::Listen(index).pack())?;
                }
                DoorSocket::Closed => continue,
            }
            door.armed = true;
        }
        Ok(())
    }

    /// Leaves datagrams of clients to the process that takes over, from before it learns what is leased here: two sockets may have one UDP port, and
    /// answers to one would be the other's. (Of TCP the kernel refuses the second connection.)
    pub(super) fn hold_datagrams(&mut self) -> io::Result<()> {
        self.doors.holds_datagrams = true;
        for door in &self.doors.doors {
            if let DoorSocket::Datagram(socket) = &door.socket {
                self.ring.cancel_all(socket.as_fd(), Token::Nothing.pack())?;
            }
        }
        Ok(())
    }

    /// Takes them again where there is no such process any more.
    pub(super) fn take_held_datagrams(&mut self) -> io::Result<()> {
        if !self.doors.holds_datagrams || self.shared.is_handing() {
            return Ok(());
        }
        self.doors.holds_datagrams = false;
        // Whom the kernel has woken the other process for, which is gone.
        for index in 0..self.doors.doors.len() {
            self.empty_accept_queue(index)?;
        }
        self.rearm_unless_stopping()
    }

    /// The service behind a listener, as the snapshot at hand has it; of one that leaves, as it was last.
    pub(super) fn service_at(&self, index: u32) -> Option<&Arc<Service>> {
        let door = self.doors.doors.get(index as usize)?;
        match &door.leaving {
            Some(leaving) => leaving.last.as_ref().map(|(service, _)| service),
            None => self.snapshot.service(door.service),
        }
    }

    /// The same, and the port that clients use.
    pub(super) fn service_of_listener(&self, index: u32) -> Option<(Arc<Service>, u16)> {
        let port = self.doors.doors.get(index as usize)?.port();
        Some((Arc::clone(self.service_at(index)?), port))
    }

    /// How TLS with clients of a listener begins.
    fn tls_of_listener(&self, index: u32) -> Option<Arc<ServiceTls>> {
        let door = self.doors.doors.get(index as usize)?;
        match &door.leaving {
            Some(leaving) => leaving.last.as_ref()?.1.clone(),
            None => self.tls.service(door.service).map(Arc::clone),
        }
    }

    /// Whether a listener leaves: who has no session by it gets none.
    pub(super) fn is_leaving(&self, index: u32) -> bool {
        self.doors.doors.get(index as usize).is_some_and(|door| door.leaving.is_some())
    }

    /// A client has come in by a listener.
    fn welcome(&mut self, index: u32, socket: OwnedFd) -> io::Result<()> {
        let Some((service, port)) = self.service_of_listener(index) else { return Ok(()) };
        let service_tls = self.tls_of_listener(index);
        self.open_relay(socket, service, service_tls, port)
    }

    /// Listens to what the generation at hand has clients come to, from here on; `before` is what was served until now.
    pub(super) fn follow_openings(
        &mut self,
        openings: Arc<[Opening]>,
        before: &Snapshot,
        tls_before: &TlsContexts,
    ) -> io::Result<()> {
        if Arc::ptr_eq(&openings, &self.doors.openings) {
            return Ok(());
        }
        let handed = self.shared.doorways().take(self.id, self.snapshot.generation);
        if self.stopping.is_some() {
            // Closed with the others.
            return Ok(());
        }
        handed.into_iter().for_each(|listener| self.doors.insert(Door::new(listener)));
        let services: HashMap<Doorway, ServiceId> =
            openings.iter().map(|opening| (opening.doorway(), opening.service)).collect();
        self.doors.openings = openings;
        self.doors.leaving = 0;
        for door in self.doors.doors.iter_mut().filter(|door| !matches!(door.socket, DoorSocket::Closed)) {
            match services.get(&door.doorway) {
                Some(&service) => {
                    door.service = service;
                    if door.leaving.take().is_some()
                        && let DoorSocket::Stream(listener) = &door.socket
                        && let Err(error) = socket::admit_newcomers(listener)
                    {
                        tracing::error!("listener {}: it cannot take new clients again: {error}", door.doorway.1);
                    }
                }
                None => {
                    self.doors.leaving += 1;
                    let wait_ms = match &door.socket {
                        DoorSocket::Stream(_) => HANDSHAKES_MS,
                        DoorSocket::Datagram(_) | DoorSocket::Closed => 0,
                    };
                    let look_at = Some(self.now + wait_ms);
                    if let Some(leaving) = &mut door.leaving {
                        // Once more: it may have been wanted in between.
                        leaving.look_at = look_at;
                        continue;
                    }
                    let tls = || tls_before.service(door.service).map(Arc::clone);
                    let last = before.service(door.service).map(|service| (Arc::clone(service), tls()));
                    door.leaving = Some(Box::new(Leaving { last, look_at, is_closing: false }));
                    if let DoorSocket::Stream(listener) = &door.socket
                        && let Err(error) = socket::refuse_newcomers(listener)
                    {
                        // Then who knocks at the last moment is reset.
                        tracing::debug!("listener {}: it cannot refuse new clients: {error}", door.doorway.1);
                    }
                }
            }
        }
        self.arm_doors()
    }

    /// Closes the listeners that leave and that nobody needs any more.
    pub(super) fn close_left_doors(&mut self) -> io::Result<()> {
        if self.doors.leaving == 0 || self.stopping.is_some() {
            return Ok(());
        }
        for index in 0..self.doors.doors.len() {
            self.close_left_door(index)?;
        }
        Ok(())
    }

    fn close_left_door(&mut self, index: usize) -> io::Result<()> {
        let Worker { doors, datagrams, shared, ring, id, now, .. } = self;
        let door = &mut doors.doors[index];
        let Some(leaving) = &mut door.leaving else { return Ok(()) };
        match (leaving.look_at, &door.socket) {
            (Some(look_at), _) if look_at > *now => return Ok(()),
            (Some(_), DoorSocket::Datagram(_)) if datagrams.any_of(index as u32) => {
                leaving.look_at = Some(*now + SESSIONS_LOOK_MS);
                return Ok(());
            }
            (Some(_), _) => {
                leaving.look_at = None;
                if shared.doorways().ready(*id, &door.doorway) {
                    shared.wake_all();
                }
            }
            // Said once more: a reload that was refused may have had it back in between.
            (None, _) if !leaving.is_closing => {
                if shared.doorways().ready(*id, &door.doorway) {
                    shared.wake_all();
                }
            }
            (None, _) => {}
        }
        if !leaving.is_closing {
            if !shared.doorways().is_closing(&door.doorway) {
                return Ok(());
            }
            leaving.is_closing = true;
            door.paused_until = None;
            let socket = match &door.socket {
                DoorSocket::Stream(socket) => socket.as_fd(),
                DoorSocket::Datagram(socket) => socket.as_fd(),
                DoorSocket::Closed => return Ok(()),
            };
            ring.cancel_all(socket, Token::Nothing.pack())?;
        }
        // Until its last operation has ended that may still bring somebody.
        if door.armed {
            return Ok(());
        }
        self.empty_accept_queue(index)?;
        let door = &mut self.doors.doors[index];
        door.socket = DoorSocket::Closed;
        door.leaving = None;
        self.doors.leaving -= 1;
        let doorway = self.doors.doors[index].doorway;
        self.shared.doorways().closed(&doorway);
        Ok(())
    }

    /// An accept has completed.
    pub(super) fn accepted(&mut self, index: u32, completion: Completion) -> io::Result<()> {
        let goes_on = completion.more();
        self.doors.doors[index as usize].armed = goes_on;
        match completion.into_descriptor() {
            Ok(socket) => self.welcome(index, socket)?,
            // Cancelled.
            Err(_) if self.doors.doors[index as usize].is_closing() || self.stopping.is_some() => {}
            Err(errno) => match Cause::of_errno(errno) {
                Cause::OutOfDescriptors => self.refuse_waiting(index),
                // The client gave up between SYN and accept: nothing was lost.
                Cause::PeerReset => self.shared.seat(self.id).add(WorkerCounter::AcceptFailed, 1),
                _ => {
                    self.shared.seat(self.id).add(WorkerCounter::AcceptFailed, 1);
                    self.pause(index);
                }
            },
        }
        if goes_on {
            return Ok(());
        }
        if self.stopping.is_some() {
            self.empty_accept_queue(index as usize)?;
            self.doors.doors[index as usize].socket = DoorSocket::Closed;
            return Ok(());
        }
        if self.doors.doors[index as usize].is_closing() {
            return self.close_left_door(index as usize);
        }
        self.rearm_unless_stopping()
    }

    /// A receive on a UDP listener has ended with `completion`.
    pub(super) fn listen_again(&mut self, index: u32, completion: &Completion) -> io::Result<()> {
        self.doors.doors[index as usize].armed = false;
        if self.doors.doors[index as usize].is_closing() {
            return self.close_left_door(index as usize);
        }
        // Missing buffers are there again with the next submission; what else fails may fail again at once.
        if matches!(completion.received(), Received::Failed) {
            self.pause(index);
        }
        self.rearm_unless_stopping()
    }

    /// Stops accepting: what waits in the accept queues is served first, then the listeners close.
    pub(super) fn close_doors(&mut self) -> io::Result<()> {
        for index in 0..self.doors.doors.len() {
            // It never goes on: a deadline that stays would keep the worker awake until the drain is over.
            self.doors.doors[index].paused_until = None;
            let socket = match &self.doors.doors[index].socket {
                DoorSocket::Stream(socket) => socket.as_fd(),
                DoorSocket::Datagram(socket) => socket.as_fd(),
                DoorSocket::Closed => continue,
            };
            self.ring.cancel_all(socket, Token::Nothing.pack())?;
            self.empty_accept_queue(index)?;
            // Another process accepts there, too, and the kernel wakes one of those who do (EPOLLEXCLUSIVE, io_uring/opdef.c): whom it has woken us for
            // is looked for once more when our accept has ended.
            if self.shared.is_handed() && self.doors.doors[index].armed {
                continue;
            }
            // UDP sessions still answer through their listener until they end.
            let door = &mut self.doors.doors[index].socket;
            match mem::replace(door, DoorSocket::Closed) {
                // Queued behind the cancel, which names the listener by its descriptor.
                DoorSocket::Stream(socket) => self.ring.close(socket, Token::Nothing.pack())?,
                open => *door = open,
            }
        }
        Ok(())
    }

    fn empty_accept_queue(&mut self, index: usize) -> io::Result<()> {
        // What one queue holds, and no more: who keeps knocking must not hold the worker here.
        for _ in 0..=socket::BACKLOG {
            let DoorSocket::Stream(listener) = &self.doors.doors[index].socket else { break };
            let Ok(Some((socket, _))) = socket::accept(listener) else { break };
            self.welcome(index as u32, socket)?;
        }
        Ok(())
    }

    fn rearm_unless_stopping(&mut self) -> io::Result<()> {
        if self.stopping.is_some() {
            return Ok(());
        }
        self.arm_doors()
    }

    /// No descriptor is left: takes the clients that wait here with the one in reserve, refuses and counts them.
    fn refuse_waiting(&mut self, index: u32) {
        let door = &self.doors.doors[index as usize];
        let page = self.shared.seat(self.id).service_page(door.service);
        self.doors.reserve.give_up(&self.shared);
        if let DoorSocket::Stream(listener) = &door.socket {
            for _ in 0..REFUSED_AT_ONCE_MAX {
                let Ok(Some((client, _))) = socket::accept(listener) else { break };
                page.count_end(Termination::OutOfDescriptors);
                // A client that cannot be reset sees a FIN.
                let _ = socket::set_linger_reset(&client);
            }
        }
        self.doors.reserve.regain(&self.shared);
        self.pause(index);
    }

    fn pause(&mut self, index: u32) {
        let door = &mut self.doors.doors[index as usize];
        if self.stopping.is_some() || door.is_closing() {
            return;
        }
        door.paused_until = Some(self.now + PAUSE_MS);
    }
}

/// A descriptor that is kept back.
struct Reserve(Option<File>);

impl Reserve {
    fn give_up(&mut self, shared: &Shared) {
        if self.0.is_some() {
            // In this order: who gets the descriptor knows whose it is.
            shared.note_reserve(false);
            self.0 = None;
        }
    }

    /// Whether there is one by now.
    fn regain(&mut self, shared: &Shared) -> bool {
        if self.0.is_none()
            && let Ok(file) = reserve()
        {
            self.0 = Some(file);
            shared.note_reserve(true);
        }
        self.0.is_some()
    }
}

fn reserve() -> io::Result<File> {
    File::open("/dev/null")
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use towpath_sys::host::await_readable;
    use towpath_sys::socket::{ListenOptions, Transport, open_listener};

    use super::*;

    #[test]
    fn a_listener_that_takes_no_program_keeps_none_from_the_others() {
        let options = ListenOptions::default();
        let any = "127.0.0.1:0".parse().unwrap();
        let first = open_listener(any, Transport::Tcp, &options).unwrap();
        let address = socket::local_address(&first).unwrap();
        let second = open_listener(address, Transport::Tcp, &options).unwrap();
        let door = |socket| {
            let (service, protocol) = (ServiceId(0), Protocol::Tcp);
            Door::new(Listener { service, port: address.port(), protocol, socket, address })
        };
        let no_socket = OwnedFd::from(File::open("/dev/null").unwrap());
        let doors = Doors {
            doors: vec![door(no_socket), door(first)],
            openings: Arc::default(),
            leaving: 0,
            holds_datagrams: false,
            reserve: Reserve(None),
        };
        // Always the second.
        assert!(doors.steer(&[(0x06, 0, 0, 1)]).is_err());
        for _ in 0..16 {
            let _client = TcpStream::connect(address).unwrap();
            await_readable(&second, Duration::from_secs(5)).unwrap();
            assert!(socket::accept(&second).unwrap().is_some());
        }
    }
}
