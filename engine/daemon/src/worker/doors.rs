//! The listeners of a worker: accepting, receiving, running out of descriptors, closing without losing a client.

use std::fs::File;
use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;

use towpath_config::model::Protocol;
use towpath_core::counters::{Termination, WorkerCounter};
use towpath_core::snapshot::Service;
use towpath_core::{Now, ServiceId};
use towpath_sys::Cause;
use towpath_sys::ring::{Completion, Received};
use towpath_sys::socket;

use super::Worker;
use super::token::Token;
use crate::listen::Listener;

/// How long a listener waits after the process ran out of descriptors or a receive failed.
const PAUSE_MS: u64 = 10;
/// Clients refused in one go while there are no descriptors.
const REFUSED_AT_ONCE_MAX: usize = 64;

/// One listener and whether the ring watches it.
struct Door {
    service: ServiceId,
    port: u16,
    socket: DoorSocket,
    /// An accept or receive is in flight.
    armed: bool,
    /// Not to be armed before this time.
    paused_until: Option<Now>,
}

enum DoorSocket {
    Stream(std::os::fd::OwnedFd),
    Datagram(UdpSocket),
    Closed,
}

/// Every listener of one worker.
pub(super) struct Doors {
    doors: Vec<Door>,
    /// A descriptor kept back, so that a client can be accepted and refused when there is no other.
    reserve: Option<File>,
}

impl Doors {
    pub(super) fn new(listeners: Vec<Listener>) -> io::Result<Doors> {
        let doors = listeners
            .into_iter()
            .map(|listener| Door {
                service: listener.service,
                port: listener.port,
                socket: match listener.protocol {
                    Protocol::Tcp => DoorSocket::Stream(listener.socket),
                    Protocol::Udp => DoorSocket::Datagram(UdpSocket::from(listener.socket)),
                },
                armed: false,
                paused_until: None,
            })
            .collect();
        Ok(Doors { doors, reserve: Some(reserve()?) })
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

    /// Whether an accept or receive is still in flight.
    pub(super) fn any_armed(&self) -> bool {
        self.doors.iter().any(|door| door.armed)
    }

    /// When the first paused listener goes on.
    pub(super) fn next_due(&self) -> Option<Now> {
        self.doors.iter().filter_map(|door| door.paused_until).min()
    }
}

impl Worker {
    /// Watches every listener that is open, not watched and not paused.
    pub(super) fn arm_doors(&mut self) -> io::Result<()> {
        for (door, index) in self.doors.doors.iter_mut().zip(0u32..) {
            if door.armed || door.paused_until.is_some_and(|until| until > self.now) {
                continue;
            }
            door.paused_until = None;
            match &door.socket {
                DoorSocket::Stream(socket) => {
                    self.ring.accept_many(socket.as_fd(), Token::Accept(index).pack())?;
                }
                DoorSocket::Datagram(socket) => {
                    self.ring.receive_messages(socket.as_fd(), Token::Listen(index).pack())?;
                }
                DoorSocket::Closed => continue,
            }
            door.armed = true;
        }
        Ok(())
    }

    /// The service behind a listener, as the snapshot at hand has it.
    pub(super) fn service_at(&self, index: u32) -> Option<&Arc<Service>> {
        self.snapshot.service(self.doors.doors.get(index as usize)?.service)
    }

    /// The same, and the port that clients use.
    pub(super) fn service_of_listener(&self, index: u32) -> Option<(Arc<Service>, u16)> {
        let door = self.doors.doors.get(index as usize)?;
        let service = self.snapshot.service(door.service)?;
        Some((Arc::clone(service), door.port))
    }

    /// An accept has completed.
    pub(super) fn accepted(&mut self, index: u32, completion: Completion) -> io::Result<()> {
        let goes_on = completion.more();
        self.doors.doors[index as usize].armed = goes_on;
        match completion.into_descriptor() {
            Ok(socket) => {
                if let Some((service, port)) = self.service_of_listener(index) {
                    self.open_relay(socket, service, port)?;
                }
            }
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
        self.rearm_unless_stopping()
    }

    /// A receive on a UDP listener has ended with `completion`.
    pub(super) fn listen_again(&mut self, index: u32, completion: &Completion) -> io::Result<()> {
        self.doors.doors[index as usize].armed = false;
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
            if let Some((service, port)) = self.service_of_listener(index as u32) {
                self.open_relay(socket, service, port)?;
            }
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
        self.doors.reserve = None;
        if let DoorSocket::Stream(listener) = &door.socket {
            for _ in 0..REFUSED_AT_ONCE_MAX {
                let Ok(Some((client, _))) = socket::accept(listener) else { break };
                page.count_end(Termination::OutOfDescriptors);
                // A client that cannot be reset sees a FIN.
                let _ = socket::set_linger_reset(&client);
            }
        }
        self.doors.reserve = reserve().ok();
        self.pause(index);
    }

    fn pause(&mut self, index: u32) {
        if self.stopping.is_some() {
            return;
        }
        self.doors.doors[index as usize].paused_until = Some(self.now + PAUSE_MS);
    }
}

fn reserve() -> io::Result<File> {
    File::open("/dev/null")
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::os::fd::OwnedFd;
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
        let door = |socket| Door {
            service: ServiceId(0),
            port: address.port(),
            socket: DoorSocket::Stream(socket),
            armed: false,
            paused_until: None,
        };
        let no_socket = OwnedFd::from(File::open("/dev/null").unwrap());
        let doors = Doors { doors: vec![door(no_socket), door(first)], reserve: None };
        // Always the second.
        assert!(doors.steer(&[(0x06, 0, 0, 1)]).is_err());
        for _ in 0..16 {
            let _client = TcpStream::connect(address).unwrap();
            await_readable(&second, Duration::from_secs(5)).unwrap();
            assert!(socket::accept(&second).unwrap().is_some());
        }
    }
}
