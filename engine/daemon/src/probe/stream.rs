//! What a check speaks over: a connection of the kernel's or of our own [`stack`], with or without TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use towpath_config::model::TlsCheck;
use towpath_tls::{
    CLOSE_BYTES_MAX, ClientContext, Connection, Fault, Presented, RECORD_BYTES_MAX, Step, presented, sealed_bytes_max,
};

use super::stack::{self, Stack, Way};
use super::{READ_BYTES, words};

const DAY_S: i64 = 86_400;
/// Names of a certificate that are told.
const NAMES_SHOWN: usize = 4;
/// Longest handshake of a server, its certificates included.
const HANDSHAKE_BYTES_MAX: usize = 262_144;

/// One TCP connection.
pub(super) enum Stream {
    Kernel(TcpStream),
    Own(Box<Stack>),
}

impl Stream {
    /// By the kernel, or on this way.
    pub(super) async fn connect(way: Option<&Way>, to: SocketAddr) -> io::Result<Stream> {
        match way {
            None => Ok(Stream::Kernel(TcpStream::connect(to).await?)),
            Some(way) => Ok(Stream::Own(Box::new(stack::connect(way, to).await?))),
        }
    }

    /// Our own address and port.
    pub(super) fn from(&self) -> SocketAddr {
        match self {
            Stream::Kernel(stream) => stream.local_addr().unwrap_or(SocketAddr::new([0; 4].into(), 0)),
            Stream::Own(stack) => stack.from(),
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Kernel(stream) => stream.write_all(bytes).await,
            Stream::Own(stack) => stack.send(bytes).await,
        }
    }

    /// 0 = the server has ended its stream.
    async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Kernel(stream) => stream.read(buffer).await,
            Stream::Own(stack) => stack.receive(buffer).await,
        }
    }

    /// In the ordinary way: to the server it is a client that changed its mind.
    async fn close(self) {
        match self {
            Stream::Kernel(stream) => drop(stream),
            Stream::Own(stack) => stack.close().await,
        }
    }
}

/// A connection that is ready for what is to be said.
pub(crate) struct Secured {
    stream: Stream,
    tls: Option<Tls>,
}

struct Tls {
    connection: Connection,
    /// Records that were received and not opened, behind room for one that is opened in front of them.
    buffer: Vec<u8>,
    /// What was opened and not handed on.
    plain: Vec<u8>,
    has_ended: bool,
}

impl Secured {
    /// A connection of the kernel's, for others than checks. The outer error says that there is none, the inner that there is no TLS over it.
    pub(crate) async fn open(to: SocketAddr, context: Option<&ClientContext>) -> io::Result<Result<Secured, String>> {
        let stream = Stream::connect(None, to).await?;
        Ok(Secured::over(stream, context, to.ip()).await)
    }

    /// Makes the handshake, if there is a context for one; an error in the words of an operator.
    pub(super) async fn over(
        mut stream: Stream,
        context: Option<&ClientContext>,
        address: IpAddr,
    ) -> Result<Secured, String> {
        let Some(context) = context else { return Ok(Secured { stream, tls: None }) };
        let mut connection = context.connect(None, None, address).map_err(|fault| told(fault).to_owned())?;
        let (mut input, mut output, mut buffer) = (Vec::new(), Vec::new(), vec![0; READ_BYTES]);
        loop {
            let step = connection.handshake(&mut input, &mut output);
            let sent = stream.send(&output).await;
            output.clear();
            match step {
                Ok(Step::Complete) => break,
                Ok(Step::NeedsInput) if input.len() > HANDSHAKE_BYTES_MAX => {
                    return Err("TLS handshake: too long".to_owned());
                }
                Ok(Step::NeedsInput) => {}
                Err(fault) => return Err(told(fault).to_owned()),
            }
            match stream.receive(&mut buffer).await {
                Ok(0) => return Err("closed the connection amid the TLS handshake".to_owned()),
                Ok(length) => input.extend_from_slice(&buffer[..length]),
                Err(error) => return Err(format!("TLS handshake: {}", words(sent.as_ref().err().unwrap_or(&error)))),
            }
        }
        let (plain, has_ended) = connection.take_early();
        let mut buffer = vec![0; RECORD_BYTES_MAX];
        buffer.append(&mut input);
        Ok(Secured { stream, tls: Some(Tls { connection, buffer, plain, has_ended }) })
    }

    /// Whether the server's certificate lasts as long as the check wants, beside what the handshake judges.
    pub(super) fn judge(&self, check: &TlsCheck) -> Result<(), String> {
        if check.days_left == 0 {
            return Ok(());
        }
        let Some(presented) = self.presented() else {
            return Err("TLS: the server's certificate cannot be read".to_owned());
        };
        let left_days = days_left(&presented);
        match left_days >= i64::from(check.days_left) {
            true => Ok(()),
            false => {
                Err(format!("TLS: the server's certificate ends in {left_days} days, expected {}", check.days_left))
            }
        }
    }

    /// What the handshake has agreed on, and whom the server says it is; empty without TLS.
    pub(super) fn describe(&self) -> String {
        let Some(tls) = &self.tls else { return String::new() };
        let mut text = format!("{}, {}", tls.connection.version(), tls.connection.cipher());
        if let Some(presented) = self.presented() {
            let names = match presented.names.as_slice() {
                [] => presented.subject.clone(),
                names if names.len() > NAMES_SHOWN => {
                    format!("{} and {} more", names[..NAMES_SHOWN].join(", "), names.len() - NAMES_SHOWN)
                }
                names => names.join(", "),
            };
            let left_days = days_left(&presented);
            text.push_str(&format!("; certificate of {names}, by {}, {left_days} days left", presented.issuer));
        }
        text
    }

    fn presented(&self) -> Option<Presented> {
        presented(self.tls.as_ref()?.connection.peer_certificates()?.first()?)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return self.stream.send(bytes).await };
        if bytes.is_empty() {
            return Ok(());
        }
        let mut sealed = vec![0; sealed_bytes_max(bytes.len())];
        let mut carry = tls.buffer.split_off(RECORD_BYTES_MAX);
        let length = tls.connection.seal(&mut carry, bytes, &mut sealed);
        tls.buffer.append(&mut carry);
        let length = length.map_err(|fault| io::Error::other(told(fault)))?;
        self.stream.send(&sealed[..length]).await
    }

    /// 0 = the server has ended its stream, in good order.
    pub(crate) async fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.receive(into).await };
        loop {
            if !tls.plain.is_empty() {
                let length = tls.plain.len().min(into.len());
                into[..length].copy_from_slice(&tls.plain[..length]);
                tls.plain.drain(..length);
                return Ok(length);
            }
            if tls.has_ended {
                return Ok(0);
            }
            if tls.buffer.len() > RECORD_BYTES_MAX {
                tls.open().map_err(|fault| io::Error::other(told(fault)))?;
                let reply = tls.connection.take_reply();
                self.stream.send(&reply).await?;
                if !tls.plain.is_empty() || tls.has_ended {
                    continue;
                }
            }
            let length = self.stream.receive(into).await?;
            if length == 0 {
                return Err(io::Error::other("cut off without a close_notify"));
            }
            tls.buffer.extend_from_slice(&into[..length]);
        }
    }

    pub(crate) async fn close(mut self) {
        if let Some(tls) = &mut self.tls {
            let mut sealed = vec![0; CLOSE_BYTES_MAX];
            let mut carry = tls.buffer.split_off(RECORD_BYTES_MAX);
            if let Ok(length) = tls.connection.close_notify(&mut carry, &mut sealed) {
                // The check is over; a server that does not hear its end any more has had its say.
                let _sent = self.stream.send(&sealed[..length]).await;
            }
        }
        self.stream.close().await;
    }
}

impl Tls {
    /// Opens what has come.
    fn open(&mut self) -> Result<(), Fault> {
        let received = RECORD_BYTES_MAX..self.buffer.len();
        let opened = self.connection.open(&mut self.buffer, received)?;
        self.plain.extend_from_slice(&self.buffer[..opened.plain]);
        self.has_ended |= opened.closed;
        self.buffer.drain(RECORD_BYTES_MAX..opened.rest.start);
        self.buffer.truncate(RECORD_BYTES_MAX + opened.rest.len());
        Ok(())
    }
}

/// Whole days until it ends; negative once it has.
fn days_left(presented: &Presented) -> i64 {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    presented.dates.end_s.saturating_sub(now_s).div_euclid(DAY_S)
}

/// Why there is no TLS, in the words of an operator.
fn told(fault: Fault) -> &'static str {
    match fault {
        Fault::Alert(40 | 70) | Fault::NothingShared => "TLS: no version, cipher suite or key exchange in common",
        Fault::Alert(112) | Fault::UnknownName => "TLS: the server does not know this name",
        Fault::Alert(116) => "TLS: the server wants a certificate of its client",
        Fault::Alert(_) => "TLS: the server has refused the handshake",
        Fault::Certificate => "TLS: the server's certificate is not trusted",
        Fault::Internal => "TLS: it cannot be begun",
        Fault::Protocol => "TLS: the server does not speak it",
    }
}
