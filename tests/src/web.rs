//! Web servers and clients of the tests: small, literal, and with every bad habit that a test needs.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::client::Connection;
use crate::{Host, PATIENCE};

/// A web server on one port of a host. What it does is said by the path:
///
/// `/bytes/N`, `/chunks/N`, `/until-close/N`: a body of so many bytes, framed so · `/cut/N`, `/cut-chunks/N`: half of it, then the end ·
/// `/drop`: the end in place of an answer · `/drop-kept`: the same where the connection has had requests before · `/early`: 413 without reading
/// the body · `/slow/MS`: after that time · `/status/N` · `/upgrade`: 101, then it echoes · `/who`: the user whose connection it is, as
/// servers of Windows authenticate them · anything else: its name, the number of the connection and of the request on it. A request's body is
/// read and told of in `X-Body`, its length and a sum.
pub struct WebOrigin {
    listener: TcpListener,
    log: Arc<Log>,
}

/// An answer of a server in its own way.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Code and reason, like `401 Unauthorized`.
    pub status: &'static str,
    /// Fields, each with its line's end.
    pub fields: String,
    /// The body.
    pub body: String,
}

/// How a server answers a request with this head, where it does not as any other.
pub type Manners = dyn Fn(&str) -> Option<Reply> + Send + Sync;

struct Log {
    manners: Box<Manners>,
    requests: Mutex<Vec<Request>>,
    streams: Mutex<Vec<TcpStream>>,
    connections: AtomicUsize,
}

/// A request as an origin has read it.
#[derive(Clone, Debug)]
pub struct Request {
    /// On which of its connections, from 0.
    pub connection: usize,
    /// Request line and fields, as they came.
    pub head: String,
    /// Bytes of the body.
    pub body_bytes: u64,
}

impl Request {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }
}

impl WebOrigin {
    /// Serves under the host's name.
    ///
    /// # Panics
    ///
    /// When the port cannot be opened.
    #[track_caller]
    pub fn start(host: &Host, port: u16) -> WebOrigin {
        WebOrigin::start_over(host, port, Ok)
    }

    /// The same behind TLS, or whatever else `enter` makes of a connection.
    ///
    /// # Panics
    ///
    /// Likewise.
    #[track_caller]
    pub fn start_over<S: Read + Write>(
        host: &Host,
        port: u16,
        enter: impl Fn(TcpStream) -> io::Result<S> + Clone + Send + 'static,
    ) -> WebOrigin {
        WebOrigin::start_like(host, port, enter, |_| None)
    }

    /// The same with manners of its own, like those of a product.
    ///
    /// # Panics
    ///
    /// Likewise.
    #[track_caller]
    pub fn start_like<S: Read + Write>(
        host: &Host,
        port: u16,
        enter: impl Fn(TcpStream) -> io::Result<S> + Clone + Send + 'static,
        manners: impl Fn(&str) -> Option<Reply> + Send + Sync + 'static,
    ) -> WebOrigin {
        let bound = host.run(|| TcpListener::bind(("0.0.0.0", port))).and_then(|bound| bound);
        let listener = bound.unwrap_or_else(|error| panic!("web origin {} port {port}: {error}", host.name()));
        let log = Arc::new(Log {
            manners: Box::new(manners),
            requests: Mutex::default(),
            streams: Mutex::default(),
            connections: AtomicUsize::default(),
        });
        let (doors, ledger, name) =
            (listener.try_clone().expect("a descriptor"), Arc::clone(&log), host.name().to_owned());
        thread::spawn(move || {
            while let Ok((stream, _)) = doors.accept() {
                let (ledger, name) = (Arc::clone(&ledger), name.clone());
                let number = ledger.connections.fetch_add(1, Ordering::Relaxed);
                lock(&ledger.streams).extend(stream.try_clone());
                // What fails is the client's matter.
                let enter = enter.clone();
                thread::spawn(move || -> io::Result<()> {
                    stream.set_nodelay(true)?;
                    let socket = stream.try_clone()?;
                    Talk { number, name, served: 0, user: None, log: &ledger }.serve(enter(stream)?)?;
                    socket.shutdown(Shutdown::Both)
                });
            }
        });
        WebOrigin { listener, log }
    }

    /// What it was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.log.requests).clone()
    }

    /// Connections that it took so far.
    pub fn connections(&self) -> usize {
        self.log.connections.load(Ordering::Relaxed)
    }

    /// Ends all connections, and takes no more.
    pub fn stop(&self) {
        let _gone = socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both);
        self.hang_up();
    }

    /// Ends all connections.
    pub fn hang_up(&self) {
        for stream in lock(&self.log.streams).drain(..) {
            let _gone = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for WebOrigin {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection of an origin.
struct Talk<'a> {
    number: usize,
    name: String,
    served: usize,
    /// Who has authenticated it.
    user: Option<String>,
    log: &'a Log,
}

impl Talk<'_> {
    fn serve(mut self, stream: impl Read + Write) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let head = read_head(&mut reader)?;
            if head.is_empty() || !self.answer(&head, &mut reader)? {
                return Ok(());
            }
            self.served += 1;
        }
    }

    /// Answers one request; says whether the connection goes on.
    fn answer(&mut self, head: &str, reader: &mut BufReader<impl Read + Write>) -> io::Result<bool> {
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        let mut parts = path.trim_start_matches('/').split('/');
        let (what, number) = (parts.next().unwrap_or_default(), parts.next().and_then(|text| text.parse::<u64>().ok()));
        let number = number.unwrap_or(0);
        let note = |body_bytes| {
            let request = Request { connection: self.number, head: head.to_owned(), body_bytes };
            lock(&self.log.requests).push(request);
        };
        if what == "drop" || (what == "drop-kept" && self.served > 0) {
            note(0);
            return Ok(false);
        }
        if what == "early" {
            note(0);
            reader.get_mut().write_all(
                b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 6\r\nConnection: close\r\n\r\nlarge\n",
            )?;
            return Ok(false);
        }
        if field(head, "expect").is_some() {
            reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let (body_bytes, sum) = read_body(head, reader)?;
        note(body_bytes);
        let stream = reader.get_mut();
        let told = format!("X-Body: {body_bytes} {sum}\r\nX-Server: {}\r\n", self.name);
        let mut body = format!("{} {} {}\n", self.name, self.number, self.served).into_bytes();
        let mut status = "200 OK".to_owned();
        let mut fields = String::new();
        let own = (self.log.manners)(head);
        if let Some(reply) = own {
            (status, fields, body) = (reply.status.to_owned(), reply.fields, reply.body.into_bytes());
        }
        match what {
            "bytes" => return self.send_bytes(stream, &told, number, method == "HEAD").map(|()| true),
            "chunks" => return send_chunks(stream, &told, number, true).map(|()| true),
            "cut-chunks" => return send_chunks(stream, &told, number, false).map(|()| false),
            "until-close" => {
                stream.write_all(format!("HTTP/1.1 200 OK\r\n{told}\r\n").as_bytes())?;
                return send_pattern(stream, number).map(|()| false);
            }
            "cut" => {
                stream.write_all(format!("HTTP/1.1 200 OK\r\n{told}Content-Length: {number}\r\n\r\n").as_bytes())?;
                return send_pattern(stream, number / 2).map(|()| false);
            }
            "slow" => thread::sleep(Duration::from_millis(number)),
            "status" => status = format!("{number} Whatever"),
            "upgrade" => {
                stream
                    .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")?;
                loop {
                    let bytes = reader.fill_buf()?.to_vec();
                    if bytes.is_empty() {
                        return Ok(false);
                    }
                    reader.consume(bytes.len());
                    reader.get_mut().write_all(&bytes)?;
                }
            }
            "who" => (status, fields, body) = self.identify(head),
            _ => {}
        }
        if matches!(number, 204 | 304) && what == "status" {
            stream.write_all(format!("HTTP/1.1 {status}\r\n{told}\r\n").as_bytes())?;
            return Ok(true);
        }
        let head_only = method == "HEAD";
        let mut answer =
            format!("HTTP/1.1 {status}\r\n{told}{fields}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
        if !head_only {
            answer.extend(body);
        }
        stream.write_all(&answer)?;
        Ok(field(head, "connection").is_none_or(|value| !value.eq_ignore_ascii_case("close")))
    }

    /// As a server with Windows authentication: it is the connection that is authenticated, by two requests or one.
    fn identify(&mut self, head: &str) -> (String, String, Vec<u8>) {
        let given = field(head, "authorization").unwrap_or_default().to_owned();
        match given.split_once(' ') {
            Some(("NTLM", "negotiate")) => {
                let challenge = "WWW-Authenticate: NTLM challenge\r\n".to_owned();
                return ("401 Unauthorized".to_owned(), challenge, b"challenge\n".to_vec());
            }
            Some(("NTLM" | "Negotiate", user)) => self.user = Some(user.to_owned()),
            _ => {}
        }
        match &self.user {
            Some(user) => {
                ("200 OK".to_owned(), "Persistent-Auth: true\r\n".to_owned(), format!("{user}\n").into_bytes())
            }
            None => {
                let offers = "WWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\n".to_owned();
                ("401 Unauthorized".to_owned(), offers, b"nobody\n".to_vec())
            }
        }
    }

    fn send_bytes(&self, stream: &mut impl Write, told: &str, bytes: u64, head_only: bool) -> io::Result<()> {
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{told}Content-Length: {bytes}\r\n\r\n").as_bytes())?;
        if head_only { Ok(()) } else { send_pattern(stream, bytes) }
    }
}

/// The bytes of every body: at each place its number, modulo a prime.
const PATTERN_PRIME: u64 = 251;

fn pattern(start: u64, buffer: &mut [u8]) {
    for (byte, place) in buffer.iter_mut().zip(start..) {
        *byte = (place % PATTERN_PRIME) as u8;
    }
}

/// Sends a body of so many bytes.
pub fn send_pattern(stream: &mut impl Write, bytes: u64) -> io::Result<()> {
    // A multiple of the prime, so that each block begins anew.
    let mut block = vec![0; (PATTERN_PRIME * 256) as usize];
    pattern(0, &mut block);
    let mut left = bytes;
    while left > 0 {
        let now = left.min(block.len() as u64);
        stream.write_all(&block[..now as usize])?;
        left -= now;
    }
    Ok(())
}

fn send_chunks(stream: &mut impl Write, told: &str, bytes: u64, whole: bool) -> io::Result<()> {
    stream.write_all(
        format!("HTTP/1.1 200 OK\r\n{told}Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n").as_bytes(),
    )?;
    let mut left = if whole { bytes } else { bytes / 2 };
    let mut at = 0;
    let mut length = 1;
    while left > 0 {
        let now = left.min(length);
        let mut chunk = format!("{now:x}\r\n").into_bytes();
        let start = chunk.len();
        chunk.resize(start + now as usize, 0);
        pattern(at, &mut chunk[start..]);
        chunk.extend(b"\r\n");
        stream.write_all(&chunk)?;
        (at, left) = (at + now, left - now);
        length = length * 7 % 100_003 + 1;
    }
    if whole { stream.write_all(b"0\r\nX-Sum: there\r\n\r\n") } else { Ok(()) }
}

/// A head up to and with its empty line; empty at the end of the stream.
fn read_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head)? == 0 {
            return if head.is_empty() { Ok(String::new()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
    String::from_utf8(head).map_err(io::Error::other)
}

/// The value of a field of a head.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (own, value) = line.split_once(':')?;
        own.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Reads the body behind a head: how many bytes, and a sum of them.
fn read_body(head: &str, reader: &mut impl BufRead) -> io::Result<(u64, u64)> {
    let mut told = (0, 0);
    if field(head, "transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let length = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            if length == 0 {
                while reader.read_line(&mut line)? > 2 {}
                return Ok(told);
            }
            read_bytes(reader, length, &mut told)?;
            reader.read_exact(&mut [0; 2])?;
        }
    }
    let length = field(head, "content-length").map_or(Ok(0), str::parse).map_err(io::Error::other)?;
    read_bytes(reader, length, &mut told)?;
    Ok(told)
}

fn read_bytes(reader: &mut impl BufRead, mut length: u64, told: &mut (u64, u64)) -> io::Result<()> {
    while length > 0 {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let now = (bytes.len() as u64).min(length);
        add(&bytes[..now as usize], told);
        reader.consume(now as usize);
        length -= now;
    }
    Ok(())
}

/// Counts bytes, and sums them in a way that knows their order.
fn add(bytes: &[u8], (count, sum): &mut (u64, u64)) {
    for &byte in bytes {
        *sum = sum.wrapping_mul(31).wrapping_add(u64::from(byte));
    }
    *count += bytes.len() as u64;
}

/// Length and sum of a body of [`send_pattern`], as origins tell of it.
pub fn pattern_told(bytes: u64) -> String {
    let mut told = (0, 0);
    let mut block = vec![0; (PATTERN_PRIME * 256) as usize];
    pattern(0, &mut block);
    let mut left = bytes;
    while left > 0 {
        let now = left.min(block.len() as u64);
        add(&block[..now as usize], &mut told);
        left -= now;
    }
    format!("{} {}", told.0, told.1)
}

/// A client of the web, on one connection.
pub struct WebClient {
    reader: BufReader<TcpStream>,
}

/// A response.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Status line and fields, as they came.
    pub head: String,
    /// Its body, if it is to be kept, …
    pub body: Vec<u8>,
    /// … else as [`pattern_told`].
    pub told: String,
    /// Trailer fields.
    pub trailer: String,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or("not text")
    }

    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }
}

/// Bodies that are kept.
const KEPT_BYTES_MAX: u64 = 1 << 20;

impl WebClient {
    /// Connects.
    ///
    /// # Panics
    ///
    /// When nobody listens.
    #[track_caller]
    pub fn open(host: &Host, to: impl Into<SocketAddr>) -> WebClient {
        let to = to.into();
        let connection = Connection::open(host, to).unwrap_or_else(|error| panic!("{to}: {error}"));
        WebClient::over(connection.stream().try_clone().expect("a descriptor"))
    }

    /// On a connection that is there.
    ///
    /// # Panics
    ///
    /// When it is gone.
    pub fn over(stream: TcpStream) -> WebClient {
        for limit in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            limit(&stream, Some(PATIENCE)).expect("not zero");
        }
        WebClient { reader: BufReader::new(stream) }
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// Sends these bytes.
    ///
    /// # Panics
    ///
    /// When the other side does not take them.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream().write_all(bytes.as_ref()).expect("a connection that takes bytes");
    }

    /// Asks for a path.
    ///
    /// # Panics
    ///
    /// When there is no whole answer.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Response {
        self.get_with(path, "")
    }

    /// The same with these fields, each with its line's end.
    ///
    /// # Panics
    ///
    /// Likewise.
    #[track_caller]
    pub fn get_with(&mut self, path: &str, fields: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: web.test\r\n{fields}\r\n"));
        self.response("GET").unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Reads the answer to a request of this method. An end within it is `UnexpectedEof` or a reset.
    pub fn response(&mut self, method: &str) -> io::Result<Response> {
        let head = read_head(&mut self.reader)?;
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let Some(status) = status else { return Err(io::Error::new(io::ErrorKind::UnexpectedEof, head)) };
        let mut response = Response { status, head, body: Vec::new(), told: String::new(), trailer: String::new() };
        if method == "HEAD" || status < 200 || matches!(status, 204 | 304) {
            return Ok(response);
        }
        let mut told = (0, 0);
        if response.field("transfer-encoding").is_some() {
            loop {
                let mut line = String::new();
                self.reader.read_line(&mut line)?;
                let length = u64::from_str_radix(line.trim(), 16)
                    .map_err(|_| io::Error::new(io::ErrorKind::UnexpectedEof, line))?;
                if length == 0 {
                    break;
                }
                self.read_some(length, &mut response.body, &mut told)?;
                self.reader.read_exact(&mut [0; 2])?;
            }
            while self.reader.read_line(&mut response.trailer)? > 2 {}
        } else if let Some(length) = response.field("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            self.read_some(length, &mut response.body, &mut told)?;
        } else {
            let mut rest = Vec::new();
            self.reader.read_to_end(&mut rest)?;
            add(&rest, &mut told);
            response.body = rest;
        }
        response.told = format!("{} {}", told.0, told.1);
        Ok(response)
    }

    fn read_some(&mut self, length: u64, body: &mut Vec<u8>, told: &mut (u64, u64)) -> io::Result<()> {
        if length <= KEPT_BYTES_MAX {
            let start = body.len();
            body.resize(start + length as usize, 0);
            self.reader.read_exact(&mut body[start..])?;
            add(&body[start..], told);
            return Ok(());
        }
        read_bytes(&mut self.reader, length, told)
    }

    /// Waits so long for bytes: how many have come, 0 at the end of the stream, or `WouldBlock`.
    pub fn wait(&mut self, time: Duration) -> io::Result<usize> {
        self.stream().set_read_timeout(Some(time))?;
        let come = self.reader.fill_buf().map(<[u8]>::len);
        self.stream().set_read_timeout(Some(PATIENCE))?;
        come
    }

    /// Reads to the end of the stream; a reset is an error.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest)?;
        Ok(rest)
    }
}

/// How many requests each connection of an origin has had.
pub fn by_connection(requests: &[Request]) -> HashMap<usize, usize> {
    let mut counts = HashMap::new();
    for request in requests {
        *counts.entry(request.connection).or_default() += 1;
    }
    counts
}
