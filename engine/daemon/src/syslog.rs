//! Messages to syslog, as the access log and the daemon's own log send them: to a server as RFC 5424 has it, to this machine's own as that expects it.
//!
//! Nobody waits here longer than he says. Over TCP a message is sent whole or the connection is given up with it: what came behind half a message
//! would be read as its end.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::process;
use std::time::{Duration, Instant};

use towpath_config::model::{Syslog, SyslogTransport};
use towpath_core::access::{Utc, utc};
use towpath_sys::host;

/// How long a syslog server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Of one that talks, so often before each message.
const READS_MAX: usize = 16;

/// Who speaks (RFC 5424 §6.2.1), and what kind of message it is (MSGID, §6.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Lines on connections and requests: local0, as HAProxy's examples have it.
    Access,
    /// What the daemon tells about itself: daemon.
    Daemon,
}

impl Source {
    fn facility(self) -> u8 {
        match self {
            Source::Access => 16,
            Source::Daemon => 3,
        }
    }

    fn message_id(self) -> &'static str {
        match self {
            Source::Access => "access",
            Source::Daemon => "log",
        }
    }
}

/// RFC 5424 §6.2.1, as far as we use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Error = 3,
    Warning = 4,
    Informational = 6,
    Debug = 7,
}

/// One message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'m> {
    pub(crate) severity: Severity,
    pub(crate) unix_ms: u64,
    /// One line, without its end.
    pub(crate) text: &'m [u8],
}

/// Why a message was not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It may be, a little later.
    Full,
    /// This one is lost, others may be taken.
    Failed(io::Error),
    /// It has to be opened anew.
    Gone(io::Error),
}

/// The way to one syslog, open.
pub(crate) struct Sender {
    source: Source,
    way: Way,
    /// The message at hand as it is sent.
    frame: Vec<u8>,
}

enum Way {
    Local(UnixDatagram),
    /// With the name of this machine.
    Datagrams(UdpSocket, String),
    /// The same; so much of the frame at hand has left.
    Stream(TcpStream, String, usize),
}

impl Sender {
    /// Opens it; a connection is waited for, for a while.
    pub(crate) fn open(to: &Syslog, source: Source) -> io::Result<Sender> {
        let way = match to {
            Syslog::Local(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket.connect(path)?;
                Way::Local(socket)
            }
            Syslog::Server(server, SyslogTransport::Udp) => {
                let any: SocketAddr = match server {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(any)?;
                socket.set_nonblocking(true)?;
                socket.connect(server)?;
                Way::Datagrams(socket, host_name())
            }
            Syslog::Server(server, SyslogTransport::Tcp) => {
                let stream = TcpStream::connect_timeout(server, CONNECT_TIMEOUT)?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Way::Stream(stream, host_name(), 0)
            }
        };
        Ok(Sender { source, way, frame: Vec::new() })
    }

    /// Has it take one message, waiting for it no longer than `wait`. One that found no room is to come again, or [`Sender::give_up`] is called.
    pub(crate) fn send(&mut self, message: &Message<'_>, wait: Duration) -> Result<(), Refused> {
        let Sender { source, way, frame } = self;
        match way {
            Way::Local(socket) => {
                put_local(frame, *source, message);
                patient(|| socket.send(frame), socket, wait).map_err(refused)?;
            }
            Way::Datagrams(socket, host) => {
                frame.clear();
                put_message(frame, *source, host, message);
                // It says later, and of another message, that nobody listens: that one is lost, not this one.
                let sent = patient(|| socket.send(frame), socket, wait).or_else(|error| match error.kind() {
                    io::ErrorKind::ConnectionRefused => socket.send(frame),
                    _ => Err(error),
                });
                sent.map_err(refused)?;
            }
            Way::Stream(stream, host, sent) => {
                if *sent == 0 {
                    is_open(stream)?;
                    put_counted(frame, *source, host, message);
                }
                push(stream, frame, sent, wait)?;
                *sent = 0;
            }
        }
        Ok(())
    }

    /// The message at hand is not sent any more; says whether others can be.
    pub(crate) fn give_up(&mut self) -> bool {
        !matches!(self.way, Way::Stream(_, _, sent) if sent > 0)
    }
}

/// What a server has sent is of no interest, but that it has closed is: what is written then is lost without a word.
fn is_open(mut stream: &TcpStream) -> Result<(), Refused> {
    let mut said = [0; 256];
    for _ in 0..READS_MAX {
        match io::Read::read(&mut stream, &mut said) {
            Ok(0) => return Err(Refused::Gone(io::ErrorKind::ConnectionReset.into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Refused::Gone(error)),
        }
    }
    Ok(())
}

fn push(mut stream: &TcpStream, frame: &[u8], sent: &mut usize, wait: Duration) -> Result<(), Refused> {
    let until = Instant::now() + wait;
    while *sent < frame.len() {
        match stream.write(&frame[*sent..]) {
            Ok(0) => return Err(Refused::Gone(io::ErrorKind::WriteZero.into())),
            Ok(bytes) => *sent += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Refused::Full);
                }
                host::await_writable(stream, left).map_err(refused)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Refused::Gone(error)),
        }
    }
    Ok(())
}

/// Sends; where there is no room, once more when there is some.
fn patient(send: impl Fn() -> io::Result<usize>, socket: &impl AsFd, wait: Duration) -> io::Result<usize> {
    match send() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            host::await_writable(socket, wait)?;
            send()
        }
        sent => sent,
    }
}

/// What an error of a write says about the next one.
pub(crate) fn refused(error: io::Error) -> Refused {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Refused::Full,
        // A pipe whose reader has gone, a syslog that was started anew.
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::NotConnected
        | io::ErrorKind::NotFound => Refused::Gone(error),
        _ => Refused::Failed(error),
    }
}

/// RFC 3164 §4.1 without a host name, as this machine's own syslog expects it (syslog(3)).
fn put_local(frame: &mut Vec<u8>, source: Source, message: &Message<'_>) {
    let at = utc(message.unix_ms);
    let Utc { day, hour, minute, second, .. } = at;
    frame.clear();
    // Writing into memory does not fail.
    let _ = write!(
        frame,
        "<{}>{} {day:2} {hour:02}:{minute:02}:{second:02} towpath[{}]: ",
        priority(source, message.severity),
        at.month_name(),
        process::id()
    );
    frame.extend_from_slice(message.text);
}

/// RFC 5424 §6.
fn put_message(frame: &mut Vec<u8>, source: Source, host: &str, message: &Message<'_>) {
    let Utc { year, month, day, hour, minute, second, ms } = utc(message.unix_ms);
    let _ = write!(
        frame,
        "<{}>1 {year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z {host} towpath {} {} - ",
        priority(source, message.severity),
        process::id(),
        source.message_id()
    );
    frame.extend_from_slice(message.text);
}

/// RFC 6587 §3.4.1: the number of octets in front of the message, so that nothing in it ends it.
fn put_counted(frame: &mut Vec<u8>, source: Source, host: &str, message: &Message<'_>) {
    let mut plain = Vec::with_capacity(message.text.len() + 128);
    put_message(&mut plain, source, host, message);
    frame.clear();
    let _ = write!(frame, "{} ", plain.len());
    frame.extend_from_slice(&plain);
}

fn priority(source: Source, severity: Severity) -> u8 {
    source.facility() * 8 + severity as u8
}

/// The name of this machine, or `-`, which says that it is unknown.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(char::is_ascii_graphic).take(255).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    fn message(text: &str) -> Message<'_> {
        Message { severity: Severity::Warning, unix_ms: 1_798_761_598_007, text: text.as_bytes() }
    }

    #[test]
    fn over_tcp_each_message_has_its_length_in_front() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let to = Syslog::Server(server.local_addr().expect("an address"), SyslogTransport::Tcp);
        let mut sender = Sender::open(&to, Source::Daemon).expect("a connection");
        let (mut peer, _) = server.accept().expect("a client");
        sender.send(&message("up → down"), WAIT).expect("room");
        sender.send(&message("two"), WAIT).expect("room");
        assert!(sender.give_up(), "whole messages are behind it");
        drop(sender);
        let mut text = String::new();
        peer.read_to_string(&mut text).expect("text");
        let mut rest = text.as_str();
        for expected in ["up → down", "two"] {
            let (length, behind) = rest.split_once(' ').expect("a length");
            let (one, behind) = behind.split_at(length.parse().expect("a number"));
            assert!(one.starts_with("<28>1 2026-12-31T23:59:58.007Z "), "{one}");
            assert!(one.ends_with(&format!(" towpath {} log - {expected}", process::id())), "{one}");
            rest = behind;
        }
        assert_eq!(rest, "");
    }

    #[test]
    fn half_a_message_is_gone_on_with_or_ends_the_connection() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let to = Syslog::Server(server.local_addr().expect("an address"), SyslogTransport::Tcp);
        let mut sender = Sender::open(&to, Source::Daemon).expect("a connection");
        let (mut peer, _) = server.accept().expect("a client");
        // No name of a machine has this.
        let long = "~".repeat(16 << 20);
        let short = Duration::from_millis(10);
        assert!(matches!(sender.send(&message(&long), short), Err(Refused::Full)));
        assert!(!sender.give_up(), "half of it has left");
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            peer.read_to_end(&mut text).expect("text");
            text
        });
        sender.send(&message(&long), WAIT).expect("the rest of it");
        sender.send(&message("behind"), WAIT).expect("room");
        drop(sender);
        let text = reader.join().expect("a reader");
        assert!(text.ends_with(b" log - behind"));
        assert_eq!(text.iter().filter(|byte| **byte == b'~').count(), long.len());
    }

    #[test]
    fn a_server_that_has_closed_is_noticed_before_anything_is_lost() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let to = Syslog::Server(server.local_addr().expect("an address"), SyslogTransport::Tcp);
        let mut sender = Sender::open(&to, Source::Access).expect("a connection");
        drop(server.accept().expect("a client"));
        let until = Instant::now() + WAIT;
        // The end takes a moment to come, on a machine under load.
        while sender.send(&message("one"), WAIT).is_ok() {
            assert!(Instant::now() < until, "a closed connection takes everything");
            std::thread::yield_now();
        }
        assert!(matches!(sender.send(&message("one"), WAIT), Err(Refused::Gone(_))));
    }
}
