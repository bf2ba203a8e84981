//! One thread that carries connections of clients and origins over epoll: whichever is ready does what it can.
//!
//! Client and origin may share the thread, and then also a core's worth of work: no switch between processes, and the
//! answers to several requests are read in one turn.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::client::Client;
use super::new_histogram;
use super::origin::Origin;

/// Events taken in one turn.
const EVENTS_MAX: usize = 1024;

/// Connections accepted in one turn.
const ACCEPTS_MAX: usize = 256;

/// Connections that one engine carries at once.
const CONNECTIONS_MAX: usize = 1 << 16;

/// Tokens from here on are listeners.
const LISTENERS: usize = CONNECTIONS_MAX;

/// Room for what one read brings.
pub(super) const READ_BYTES: usize = 256 * 1024;

/// Reads or writes of one connection before the others have their turn.
pub(super) const STEPS_MAX: usize = 8;

/// What is counted.
pub(super) struct Gauge {
    pub(super) counting: bool,
    pub(super) done: u64,
    pub(super) latency: Histogram<u64>,
}

impl Gauge {
    /// A piece of work that began then has been completed now.
    pub(super) fn completed(&mut self, began: Instant) {
        if self.counting {
            self.done += 1;
            self.latency.saturating_record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// Bytes of a stream have arrived.
    pub(super) fn received(&mut self, bytes: usize) {
        if self.counting {
            self.done += bytes as u64;
        }
    }
}

/// What a connection asks for after it has done what it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Its turn again soon: it has used up its share of this one.
    Again,
    /// It is done.
    Close,
    /// (Client) A new connection in its place.
    Reconnect,
    /// Its turn when something arrives or there is room to send.
    Wait,
}

/// Who speaks on a connection.
pub(super) enum Role {
    Client(Client),
    Origin(Origin),
}

struct Connection {
    stream: TcpStream,
    role: Role,
}

/// See the module.
pub(super) struct Engine {
    poll: Poll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    listeners: Vec<TcpListener>,
    /// Connections and listeners that had more to do when their turn ended.
    unfinished: Vec<usize>,
    buffer: Vec<u8>,
    pub(super) gauge: Gauge,
}

impl Engine {
    pub(super) fn new() -> io::Result<Engine> {
        Ok(Engine {
            poll: Poll::new()?,
            connections: Vec::new(),
            free: Vec::new(),
            listeners: Vec::new(),
            unfinished: Vec::new(),
            buffer: vec![0; READ_BYTES],
            gauge: Gauge { counting: false, done: 0, latency: new_histogram() },
        })
    }

    /// Answers whoever connects to a listener, which must be non-blocking.
    pub(super) fn listen(&mut self, listener: StdListener) -> io::Result<()> {
        let mut listener = TcpListener::from_std(listener);
        let token = Token(LISTENERS + self.listeners.len());
        self.poll.registry().register(&mut listener, token, Interest::READABLE)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// Opens a client's connection.
    pub(super) fn connect(&mut self, client: Client) -> io::Result<()> {
        let stream = open(client.target())?;
        let slot = self.insert(stream, Role::Client(client))?;
        self.advance(slot)
    }

    /// Carries everything until then; fails at the first failure of a client.
    pub(super) fn run_until(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut turn = Vec::new();
        loop {
            let now = Instant::now();
            let left = match deadline {
                Some(deadline) if now >= deadline => return Ok(()),
                Some(deadline) => Some(deadline - now),
                None => None,
            };
            let patience = if self.unfinished.is_empty() { left } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut events, patience) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            turn.append(&mut self.unfinished);
            turn.extend(events.iter().map(|event| event.token().0));
            for slot in turn.drain(..) {
                if slot >= LISTENERS {
                    self.accept(slot - LISTENERS)?;
                } else {
                    self.advance(slot)?;
                }
            }
        }
    }

    fn insert(&mut self, mut stream: TcpStream, role: Role) -> io::Result<usize> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.connections.len() < CONNECTIONS_MAX => {
                self.connections.push(None);
                self.connections.len() - 1
            }
            None => return Err(io::Error::other(format!("more than {CONNECTIONS_MAX} connections"))),
        };
        self.poll.registry().register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        self.connections[slot] = Some(Connection { stream, role });
        Ok(slot)
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        for _ in 0..ACCEPTS_MAX {
            let stream = match self.listeners[listener].accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Given up by its client before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(io::Error::new(error.kind(), format!("origin: accept: {error}"))),
            };
            stream.set_nodelay(true)?;
            // A request that is there already is answered at its event, which registering brings about.
            self.insert(stream, Role::Origin(Origin::new()))?;
        }
        self.unfinished.push(LISTENERS + listener);
        Ok(())
    }

    fn advance(&mut self, slot: usize) -> io::Result<()> {
        // A client that reconnects at once every time must not keep the others from their turn.
        for _ in 0..STEPS_MAX {
            let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else { return Ok(()) };
            let next = match &mut connection.role {
                Role::Client(client) => client.advance(&mut connection.stream, &mut self.buffer, &mut self.gauge)?,
                // A client that goes away is the client's matter.
                Role::Origin(origin) => origin.advance(&mut connection.stream, &mut self.buffer).unwrap_or(Next::Close),
            };
            match next {
                Next::Wait => return Ok(()),
                Next::Again => {
                    self.unfinished.push(slot);
                    return Ok(());
                }
                Next::Close => {
                    // Closing takes it out of epoll as well.
                    self.connections[slot] = None;
                    self.free.push(slot);
                    return Ok(());
                }
                Next::Reconnect => {
                    let Role::Client(client) = &connection.role else { return Ok(()) };
                    let mut stream = open(client.target())?;
                    self.poll.registry().register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
                    connection.stream = stream;
                }
            }
        }
        self.unfinished.push(slot);
        Ok(())
    }
}

fn open(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target).map_err(|error| refused(&error, target))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The error of a connection that did not come up.
pub(super) fn refused(error: &io::Error, target: SocketAddr) -> io::Error {
    io::Error::new(error.kind(), format!("connect to {target}: {error}"))
}

/// What a read or a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    Bytes(usize),
    End,
    NotYet,
}

pub(super) fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Moved> {
    moved(stream.read(buffer))
}

pub(super) fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Moved> {
    moved(stream.write(bytes))
}

fn moved(result: io::Result<usize>) -> io::Result<Moved> {
    match result {
        Ok(0) => Ok(Moved::End),
        Ok(bytes) => Ok(Moved::Bytes(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(Moved::NotYet)
        }
        // Linux: still connecting.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(Moved::NotYet),
        Err(error) => Err(error),
    }
}
