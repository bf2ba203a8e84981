//! The demo's HTTP client: one connection, one request at a time, and an exact word for each way to fail.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::origin::SERVED_BY;

/// A connect or an answer that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer: the origins send some hundred bytes.
const ANSWER_MAX_BYTES: usize = 16 * 1024;
/// Headers in one answer.
const HEADERS_MAX: usize = 32;

/// What the client asks of the connection after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    KeepAlive,
    Close,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// The answer named no origin of the demo.
    AnsweredByStranger,
    /// The connection ended before the whole answer was there.
    Closed,
    /// The relay did not take the connection.
    ConnectFailed,
    /// What came back was no HTTP answer.
    Malformed,
    /// The connection was reset before the whole answer was there.
    Reset,
    /// The answer was not 200.
    Status(u16),
    /// Nothing for [`PATIENCE`].
    TimedOut,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::AnsweredByStranger => f.write_str("answered by an unknown origin"),
            Failure::Closed => f.write_str("closed before the answer"),
            Failure::ConnectFailed => f.write_str("connect failed"),
            Failure::Malformed => f.write_str("no HTTP answer"),
            Failure::Reset => f.write_str("reset before the answer"),
            Failure::Status(status) => write!(f, "answered with status {status}"),
            Failure::TimedOut => write!(f, "no answer for {} s", PATIENCE.as_secs()),
        }
    }
}

/// One connection to the relay.
pub(crate) struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
    /// Who answered on this connection: a relayed connection has one real server for life.
    served_by: Option<usize>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Connection, Failure> {
        let stream = match timeout(PATIENCE, TcpStream::connect(address)).await {
            Err(_) => return Err(Failure::TimedOut),
            Ok(Err(_)) => return Err(Failure::ConnectFailed),
            Ok(Ok(stream)) => stream,
        };
        stream.set_nodelay(true).map_err(|error| broken(&error))?;
        Ok(Connection { stream, answer: Vec::with_capacity(1024), served_by: None })
    }

    /// The origin behind this connection, known from its first answer on.
    pub(crate) fn served_by(&self) -> Option<usize> {
        self.served_by
    }

    /// Whether the other side has closed while the connection was idle: nothing was sent, so nothing is lost.
    pub(crate) fn has_ended(&self) -> Result<bool, Failure> {
        match self.stream.try_read(&mut [0; 1]) {
            Ok(0) => Ok(true),
            Ok(_) => Err(Failure::Malformed),
            Err(error) => Ok(error.kind() != io::ErrorKind::WouldBlock),
        }
    }

    /// Sends one GET and waits for the whole answer (and, with [`Reuse::Close`], for the end of the connection); `origins` are the names that may answer. Returns who did.
    pub(crate) async fn get(&mut self, reuse: Reuse, origins: &[&str]) -> Result<usize, Failure> {
        let request: &[u8] = match reuse {
            Reuse::KeepAlive => b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n",
            Reuse::Close => b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n",
        };
        let exchange = async {
            let origin = self.exchange(request, origins).await?;
            if reuse == Reuse::Close {
                self.expect_end().await?;
            }
            Ok(origin)
        };
        let origin = timeout(PATIENCE, exchange).await.unwrap_or(Err(Failure::TimedOut))?;
        // Another name on the same connection would mean that the relay mixed up two sessions.
        if self.served_by.replace(origin).is_some_and(|before| before != origin) {
            return Err(Failure::AnsweredByStranger);
        }
        Ok(origin)
    }

    /// The origin closes after an answer with `Connection: close`; the relay has to carry that through.
    async fn expect_end(&mut self) -> Result<(), Failure> {
        match self.stream.read(&mut [0; 1]).await {
            Ok(0) => Ok(()),
            Ok(_) => Err(Failure::Malformed),
            Err(error) => Err(broken(&error)),
        }
    }

    async fn exchange(&mut self, request: &[u8], origins: &[&str]) -> Result<usize, Failure> {
        self.stream.write_all(request).await.map_err(|error| broken(&error))?;
        self.answer.clear();
        loop {
            if let Some(origin) = parse_answer(&self.answer, origins)? {
                return Ok(origin);
            }
            if self.answer.len() > ANSWER_MAX_BYTES {
                return Err(Failure::Malformed);
            }
            match self.stream.read_buf(&mut self.answer).await {
                Ok(0) => return Err(Failure::Closed),
                Ok(_) => {}
                Err(error) => return Err(broken(&error)),
            }
        }
    }
}

fn broken(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionReset => Failure::Reset,
        _ => Failure::Closed,
    }
}

/// Who sent the answer, once it is whole.
fn parse_answer(bytes: &[u8], origins: &[&str]) -> Result<Option<usize>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = match response.parse(bytes) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Failure::Malformed),
    };
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    let body_bytes: usize = header("Content-Length").and_then(|text| text.parse().ok()).ok_or(Failure::Malformed)?;
    if bytes.len() - head_bytes < body_bytes {
        return Ok(None);
    }
    match response.code {
        Some(200) => {}
        Some(status) => return Err(Failure::Status(status)),
        None => return Err(Failure::Malformed),
    }
    let served_by = header(SERVED_BY).ok_or(Failure::AnsweredByStranger)?;
    let origin = origins.iter().position(|name| *name == served_by).ok_or(Failure::AnsweredByStranger)?;
    if bytes.len() - head_bytes > body_bytes { Err(Failure::Malformed) } else { Ok(Some(origin)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_whole_only_with_its_body() {
        let whole = b"HTTP/1.1 200 OK\r\nServed-By: b\r\nContent-Length: 3\r\n\r\nabc";
        for end in 0..whole.len() {
            assert_eq!(parse_answer(&whole[..end], &["a", "b"]), Ok(None), "{end} bytes");
        }
        assert_eq!(parse_answer(whole, &["a", "b"]), Ok(Some(1)));
        assert_eq!(parse_answer(whole, &["a"]), Err(Failure::AnsweredByStranger));
    }

    #[test]
    fn surplus_bytes_and_other_statuses_are_failures() {
        let surplus = b"HTTP/1.1 200 OK\r\nServed-By: a\r\nContent-Length: 1\r\n\r\nabc";
        assert_eq!(parse_answer(surplus, &["a"]), Err(Failure::Malformed));
        let refused = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(parse_answer(refused, &["a"]), Err(Failure::Status(503)));
        assert_eq!(parse_answer(b"SSH-2.0-x\r\n", &["a"]), Err(Failure::Malformed));
    }
}
