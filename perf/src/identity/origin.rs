//! A web server that authenticates connections, as IIS does: who has logged on over one by NTLM, Negotiate or Kerberos is taken for who sends every later
//! request over it. Basic authenticates each request for itself.
//!
//! `/private/…` wants a logon, anything else is for everybody. The body begins with the name of whom the answer is for and the target that was asked for.
//! Now and then it closes connections, with or without saying so, or in the place of an answer where the connection has had requests before.

use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use towpath_core::random::SplitMix64;

use super::client::{NOBODY, read_body, read_head, value};
use super::logon::{self, Message};

/// Threads of connections need little.
const STACK_BYTES: usize = 128 * 1024;
/// Of so many answers, one says that it is the last one of its connection; …
const LAST_OF: u64 = 40;
/// … one is the last without saying so; …
const LAST_UNSAID_OF: u64 = 80;
/// … and one request is not answered at all.
const DROPPED_OF: u64 = 150;
/// Bodies are filled up to so many bytes, …
const BODY_BYTES_MAX: u64 = 600;
/// … and one of so many up to more than a buffer.
const LARGE_OF: u64 = 50;
const LARGE_BYTES: u64 = 60_000;

/// The server. It ends when this is dropped.
#[derive(Debug)]
pub struct Origin {
    listener: TcpListener,
    address: SocketAddr,
    ledger: Arc<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    connections: AtomicU64,
    requests: AtomicU64,
    logons: AtomicU64,
}

impl Origin {
    /// Serves at this address, in the network of the thread that calls this.
    pub fn listen(address: SocketAddr, seed: u64) -> io::Result<Origin> {
        let listener = TcpListener::bind(address)?;
        let origin = Origin { address: listener.local_addr()?, listener, ledger: Arc::default() };
        let (doors, ledger) = (origin.listener.try_clone()?, Arc::clone(&origin.ledger));
        thread::spawn(move || {
            while let Ok((stream, _)) = doors.accept() {
                let number = ledger.connections.fetch_add(1, Ordering::Relaxed);
                let ledger = Arc::clone(&ledger);
                let talk = move || {
                    let random = SplitMix64::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    let talk = Talk { user: None, challenge: None, served: 0, random, ledger: &ledger };
                    // What fails is the other end's matter.
                    let _ = talk.serve(stream);
                };
                // Without a thread for it a connection is closed.
                let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(talk);
            }
        });
        Ok(origin)
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that it took so far.
    pub fn connections(&self) -> u64 {
        self.ledger.connections.load(Ordering::Relaxed)
    }

    /// Requests that it read so far.
    pub fn requests(&self) -> u64 {
        self.ledger.requests.load(Ordering::Relaxed)
    }

    /// Connections that somebody has logged on over so far.
    pub fn logons(&self) -> u64 {
        self.ledger.logons.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        // Ends the accept that waits; connections end with their other ends.
        if let Ok(listener) = self.listener.try_clone() {
            let _ = TcpStream::from(OwnedFd::from(listener)).shutdown(Shutdown::Both);
        }
    }
}

/// One connection.
struct Talk<'a> {
    /// Who has logged on over it.
    user: Option<String>,
    challenge: Option<[u8; 8]>,
    served: u32,
    random: SplitMix64,
    ledger: &'a Ledger,
}

/// What a request is answered with.
struct Answer {
    status: &'static str,
    fields: String,
    whom: String,
}

impl Talk<'_> {
    fn serve(mut self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        loop {
            let head = read_head(&mut reader)?;
            if head.is_empty() {
                return Ok(());
            }
            read_body(&head, &mut reader)?;
            self.ledger.requests.fetch_add(1, Ordering::Relaxed);
            if self.served > 0 && self.random.below(DROPPED_OF) == 0 {
                return Ok(());
            }
            self.served += 1;
            let target = head.split(' ').nth(1).unwrap_or_default();
            let answer = self.answer(&head, target);
            let last = self.random.below(LAST_OF) == 0;
            self.send(&answer, target, last, reader.get_mut())?;
            if last || self.random.below(LAST_UNSAID_OF) == 0 {
                return reader.get_ref().shutdown(Shutdown::Both);
            }
        }
    }

    fn answer(&mut self, head: &str, target: &str) -> Answer {
        let given = value(head, "authorization").and_then(|given| given.split_once(' '));
        let mut fields = String::new();
        let whom = match given {
            Some(("Basic", credentials)) => {
                let user = logon::decode(credentials).and_then(|plain| String::from_utf8(plain).ok());
                user.and_then(|plain| Some(plain.split_once(':')?.0.to_owned()))
            }
            Some((scheme @ ("NTLM" | "Negotiate"), message)) => match logon::read(message) {
                Some(Message::Greeting) => {
                    let challenge = self.random.next_u64().to_le_bytes();
                    self.challenge = Some(challenge);
                    let fields = format!("WWW-Authenticate: {scheme} {}\r\n", logon::challenge(&challenge));
                    return Answer { status: "401 Unauthorized", fields, whom: NOBODY.into() };
                }
                Some(Message::Answer { user, proof }) => {
                    // The challenge of this connection, once.
                    let asked = self.challenge.take();
                    if asked.is_none_or(|challenge| logon::proof(&user, &challenge) != proof) {
                        return Answer { status: "401 Unauthorized", fields: offers(), whom: NOBODY.into() };
                    }
                    self.log_on(user, &mut fields)
                }
                Some(Message::Ticket { user }) => {
                    let whom = self.log_on(user, &mut fields);
                    // The server proves itself, too (RFC 4559 §4.1).
                    fields.push_str("WWW-Authenticate: Negotiate oYG3MIG0\r\n");
                    whom
                }
                None => self.user.clone(),
            },
            _ => self.user.clone(),
        };
        if whom.is_none() && target.starts_with("/private/") {
            return Answer { status: "401 Unauthorized", fields: offers(), whom: NOBODY.into() };
        }
        Answer { status: "200 OK", fields, whom: whom.unwrap_or_else(|| NOBODY.into()) }
    }

    fn log_on(&mut self, user: String, fields: &mut String) -> Option<String> {
        self.ledger.logons.fetch_add(1, Ordering::Relaxed);
        // Not every server says it.
        if self.random.below(2) == 0 {
            fields.push_str("Persistent-Auth: true\r\n");
        }
        self.user = Some(user);
        self.user.clone()
    }

    fn send(&mut self, answer: &Answer, target: &str, last: bool, stream: &mut TcpStream) -> io::Result<()> {
        let Answer { status, fields, whom } = answer;
        let mut body = format!("{whom} {target}\n").into_bytes();
        let most = if self.random.below(LARGE_OF) == 0 { LARGE_BYTES } else { BODY_BYTES_MAX };
        body.resize(body.len() + self.random.below(most) as usize, b'.');
        let close = if last { "Connection: close\r\n" } else { "" };
        let mut bytes = format!("HTTP/1.1 {status}\r\n{fields}{close}").into_bytes();
        if self.random.below(3) == 0 {
            let (first, second) = body.split_at(body.len() / 2);
            bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in [first, second].into_iter().filter(|chunk| !chunk.is_empty()) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
        } else {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            bytes.extend(body);
        }
        stream.write_all(&bytes)
    }
}

/// As IIS offers what it knows.
fn offers() -> String {
    "WWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\nWWW-Authenticate: Basic realm=\"origin\"\r\n".into()
}
