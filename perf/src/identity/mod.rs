//! Whose answer is it? Clients of every kind of authentication, and a server that authenticates connections as IIS does with NTLM and Negotiate
//! (MS-NTHT, RFC 4559 §6), with something between them that may share the connections to the server. Nobody may ever get an answer that was made for
//! somebody else.

mod client;
mod logon;
mod origin;
mod subject;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde::Serialize;
use towpath_core::random::SplitMix64;

use client::{Client, KINDS};

pub use logon::{basic, greeting};
pub use origin::Origin;
pub use subject::{Running, Sharing, Subject};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where clients connect to.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its address and port.
    pub address: SocketAddr,
    /// Whom it has to be, and what is spoken, where it is to be TLS.
    pub tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
}

/// What is played.
#[derive(Clone, Debug)]
pub struct Play {
    /// Where clients connect to.
    pub target: Target,
    /// So many of them, of all kinds in equal parts.
    pub clients: usize,
    /// Requests of all of them together.
    pub requests: u64,
    /// Requests under way at the same time.
    pub at_once: usize,
    /// What they do, and in which order.
    pub seed: u64,
}

/// What has become of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// Requests that were sent.
    pub requests: u64,
    /// Answers made for somebody else: his name is in them.
    pub foreign: u64,
    /// Answers to another request than the one that was sent.
    pub misplaced: u64,
    /// Answers made for who asked, by name.
    pub own: u64,
    /// Answers made for nobody in particular.
    pub anonymous: u64,
    /// Answers that asked for a logon, or went on with one.
    pub challenged: u64,
    /// Of these, those to somebody who had logged on over this connection.
    pub forgotten: u64,
    /// Logons that were refused: their messages came by different connections.
    pub refused: u64,
    /// Connections that ended without an answer.
    pub closed: u64,
    /// Answers of whoever is between (500 and more).
    pub failed: u64,
    /// Requests that clients did not wait for.
    pub abandoned: u64,
    /// Connections of clients.
    pub client_connections: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Outcome {
    fn add(&mut self, other: &Outcome) {
        let pairs = [
            (&mut self.requests, other.requests),
            (&mut self.foreign, other.foreign),
            (&mut self.misplaced, other.misplaced),
            (&mut self.own, other.own),
            (&mut self.anonymous, other.anonymous),
            (&mut self.challenged, other.challenged),
            (&mut self.forgotten, other.forgotten),
            (&mut self.refused, other.refused),
            (&mut self.closed, other.closed),
            (&mut self.failed, other.failed),
            (&mut self.abandoned, other.abandoned),
            (&mut self.client_connections, other.client_connections),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
    }

    /// Answers that somebody else should have got, or nobody.
    pub fn leaks(&self) -> u64 {
        self.foreign + self.misplaced
    }
}

impl Play {
    /// Plays it, from the network of the thread that calls this; `progress` grows with the requests.
    pub fn run(&self, progress: &AtomicU64) -> io::Result<Outcome> {
        let threads = self.at_once.clamp(1, self.clients.max(1));
        let start = Instant::now();
        let mut outcome = Outcome::default();
        let played: Vec<io::Result<Outcome>> = thread::scope(|scope| {
            let part = |thread: usize| move || self.play(thread, threads, progress);
            let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(part(thread))).collect();
            let ended = |part: thread::ScopedJoinHandle<'_, io::Result<Outcome>>| {
                part.join().unwrap_or_else(|_| Err(io::Error::other("a thread of clients has panicked")))
            };
            parts.into_iter().map(ended).collect()
        });
        for part in played {
            outcome.add(&part?);
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        Ok(outcome)
    }

    /// Every `threads`-th client, one after the other in random order.
    fn play(&self, thread: usize, threads: usize, progress: &AtomicU64) -> io::Result<Outcome> {
        let mut random = SplitMix64::new(self.seed ^ (thread as u64) << 32);
        let mut clients: Vec<Client> = (thread..self.clients.max(threads))
            .step_by(threads)
            .map(|number| Client::new(number, KINDS[number % KINDS.len()], self.target.clone()))
            .collect();
        let mut outcome = Outcome::default();
        while progress.fetch_add(1, Ordering::Relaxed) < self.requests {
            let place = random.below(clients.len() as u64) as usize;
            clients[place].act(&mut random, &mut outcome)?;
        }
        Ok(outcome)
    }
}

/// A client's connection.
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.read(bytes),
            Stream::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}

impl Target {
    /// A plain connection is all that is wanted.
    pub fn plain(address: SocketAddr) -> Target {
        Target { address, tls: None }
    }

    /// Connects, for somebody who does not wait for ever.
    fn connect(&self) -> io::Result<Stream> {
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let Some((name, config)) = &self.tls else { return Ok(Stream::Plain(stream)) };
        let mut tls = ClientConnection::new(Arc::clone(config), name.clone()).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        Ok(Stream::Tls(Box::new(StreamOwned::new(tls, stream))))
    }
}
