//! Clients: connect from a host of the lab, hear who serves, talk, close.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::{Host, PATIENCE};

/// What the buffers between two ends take with nobody reading: less than what those of a socket begin with.
const BUFFERED_BYTES: usize = 32 * 1024;

/// What an [`crate::Origin`] says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Its name.
    pub name: String,
    /// From where it sees us: the source address of the connection that reached it.
    pub peer: SocketAddr,
    /// The address that was reached.
    pub local: SocketAddr,
}

impl Greeting {
    /// As a line.
    pub fn line(&self) -> String {
        format!("{} {} {}\n", self.name, self.peer, self.local)
    }

    /// From a line; `None` if it is none.
    pub fn parse(line: &str) -> Option<Greeting> {
        let mut words = line.trim_end().split(' ');
        let (name, peer, local) = (words.next()?, words.next()?, words.next()?);
        Some(Greeting { name: name.to_owned(), peer: peer.parse().ok()?, local: local.parse().ok()? })
    }
}

/// A client's TCP connection. Every wait on it ends after [`PATIENCE`] with an error.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects.
    pub fn open(host: &Host, to: impl Into<SocketAddr>) -> io::Result<Connection> {
        Connection::open_with(host, None, to.into())
    }

    /// Connects from this address of the host.
    pub fn open_from(host: &Host, from: IpAddr, to: impl Into<SocketAddr>) -> io::Result<Connection> {
        Connection::open_with(host, Some(SocketAddr::new(from, 0)), to.into())
    }

    /// Connects from exactly this address and port, without waiting for an older connection of that pair to be forgotten.
    pub fn open_from_port(host: &Host, from: SocketAddr, to: impl Into<SocketAddr>) -> io::Result<Connection> {
        Connection::open_with(host, Some(from), to.into())
    }

    /// Connects from a thread that is on a host already, as those of [`Host::start`] are.
    pub fn open_here(to: impl Into<SocketAddr>) -> io::Result<Connection> {
        Connection::over(connect(None, to.into())?)
    }

    fn open_with(host: &Host, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<Connection> {
        Connection::over(host.run(|| connect(from, to))??)
    }

    fn over(stream: TcpStream) -> io::Result<Connection> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream })
    }

    /// Reads the greeting. An end of the connection before it is `UnexpectedEof` or a reset.
    pub fn greeting(&mut self) -> io::Result<Greeting> {
        let line = self.line()?;
        Greeting::parse(&line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, line))
    }

    /// Reads up to a line feed.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        String::from_utf8(line).map_err(io::Error::other)
    }

    /// Sends these bytes and reads them back from an origin.
    pub fn echo(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut back = vec![0; bytes.len()];
        // An origin that cannot send any more does not read any more either: who only sends may then wait for ever.
        let (at_once, rest) = bytes.split_at(bytes.len().min(BUFFERED_BYTES));
        let stream = &self.stream;
        (&*stream).write_all(at_once)?;
        if rest.is_empty() {
            (&*stream).read_exact(&mut back)?;
        } else {
            thread::scope(|scope| {
                let sender = scope.spawn(|| (&*stream).write_all(rest));
                (&*stream).read_exact(&mut back)?;
                sender.join().unwrap_or_else(|panic| resume_unwind(panic))
            })?;
        }
        if back == bytes { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "another echo")) }
    }

    /// Sends our FIN first, then reads to the other side's; returns what still came.
    pub fn close(mut self) -> io::Result<Vec<u8>> {
        self.stream.shutdown(Shutdown::Write)?;
        self.end()
    }

    /// Reads to the other side's FIN and returns what came; a reset is an error.
    pub fn end(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// Whether the other side has ended the connection, by FIN or reset, with nothing more to read; waits for it.
    pub fn is_ended(&mut self) -> bool {
        match self.end() {
            Ok(rest) => rest.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Ends the connection with a reset.
    pub fn reset(self) -> io::Result<()> {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// Connects, hears who serves, closes: the name of the origin.
///
/// # Panics
///
/// When nobody serves.
#[track_caller]
pub fn who(host: &Host, to: impl Into<SocketAddr>) -> String {
    let to = to.into();
    ask(Connection::open(host, to)).unwrap_or_else(|error| panic!("{to} does not serve: {error}")).name
}

/// The same from one of the host's addresses.
///
/// # Panics
///
/// When nobody serves.
#[track_caller]
pub fn who_from(host: &Host, from: IpAddr, to: impl Into<SocketAddr>) -> String {
    let to = to.into();
    ask(Connection::open_from(host, from, to)).unwrap_or_else(|error| panic!("{to} does not serve: {error}")).name
}

/// After so long without an answer a client of UDP asks again.
const ASKED_AGAIN: Duration = Duration::from_secs(2);

/// Asks by UDP from one of the host's addresses, where an origin answers with whom it sees and what it was sent. As every client of UDP it asks again
/// where no answer comes: a datagram may be lost, on a busy machine by any queue on its way.
///
/// # Panics
///
/// When nobody answers, or somebody else, or something else.
#[track_caller]
pub fn ask_by_udp(host: &Host, from: IpAddr, to: impl Into<SocketAddr>, datagram: &[u8]) -> Greeting {
    let to = to.into();
    let socket = host.run(|| UdpSocket::bind((from, 0))).expect("a thread").expect("a socket");
    socket.set_read_timeout(Some(ASKED_AGAIN)).expect("not zero");
    let mut answer = [0; 4096];
    let deadline = Instant::now() + PATIENCE;
    let (length, by) = loop {
        socket.send_to(datagram, to).expect("our own kernel takes it");
        match socket.recv_from(&mut answer) {
            Ok(answered) => break answered,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => panic!("{to}: {error}"),
        }
    };
    assert_eq!(by, to, "an answer leaves from the address and port that were asked");
    let line = answer.iter().position(|&byte| byte == b'\n').expect("a greeting") + 1;
    assert_eq!(&answer[line..length], datagram);
    Greeting::parse(std::str::from_utf8(&answer[..line]).expect("text")).expect("a greeting")
}

/// Opens, is greeted, has 20,000 bytes echoed, closes: how it was greeted.
///
/// # Panics
///
/// When something of that fails.
#[track_caller]
pub fn visit(host: &Host, to: impl Into<SocketAddr>) -> Greeting {
    let to = to.into();
    go_through(Connection::open(host, to)).unwrap_or_else(|error| panic!("{to}: {error}"))
}

/// The same from one of the host's addresses.
///
/// # Panics
///
/// Likewise.
#[track_caller]
pub fn visit_from(host: &Host, from: IpAddr, to: impl Into<SocketAddr>) -> Greeting {
    let to = to.into();
    go_through(Connection::open_from(host, from, to)).unwrap_or_else(|error| panic!("{to}: {error}"))
}

fn go_through(connection: io::Result<Connection>) -> io::Result<Greeting> {
    let mut connection = connection?;
    let greeting = connection.greeting()?;
    connection.echo(&[7; 20_000])?;
    connection.close()?;
    Ok(greeting)
}

/// Whether a connection is refused cleanly: taken, and ended or reset without a byte. A port on which nobody listens is not that.
pub fn is_refused(host: &Host, to: impl Into<SocketAddr>) -> bool {
    match Connection::open(host, to) {
        Ok(mut connection) => connection.is_ended(),
        // The reset was there before the handshake was looked at.
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// The same from one of the host's addresses.
pub fn is_refused_from(host: &Host, from: IpAddr, to: impl Into<SocketAddr>) -> bool {
    match Connection::open_from(host, from, to) {
        Ok(mut connection) => connection.is_ended(),
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

fn connect(from: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(from) = from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

fn ask(connection: io::Result<Connection>) -> io::Result<Greeting> {
    let mut connection = connection?;
    let greeting = connection.greeting()?;
    connection.close()?;
    Ok(greeting)
}
