//! A small HTTP origin that answers every request with its own name, and that can be stopped like a crashed server.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

/// Header in which an origin says who it is.
pub(crate) const SERVED_BY: &str = "Served-By";

/// Connections that one origin serves at the same time; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 1024;
/// Longest request head.
const HEAD_MAX_BYTES: usize = 8 * 1024;
/// Headers in one head.
const HEADERS_MAX: usize = 64;
/// Pause after a failed accept (out of descriptors): retrying at once would only burn the CPU that could free one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// One running origin.
pub(crate) struct Origin {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Origin {
    /// Listens on `address` (port 0 = any free one) and answers as `name`. Needs a tokio runtime around it.
    pub(crate) async fn open(name: &str, address: SocketAddr) -> io::Result<Origin> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let answers = Arc::new(Answers::new(name));
        let served = tokio::spawn(serve(listener, answers, stopped));
        Ok(Origin { address, stop, served })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and every connection, in the middle of whatever they do. Returns when all are closed.
    pub(crate) async fn stop(self) {
        // An error of either kind means that the task has already ended, and with it listener and connections.
        let _ = self.stop.send(());
        let _ = self.served.await;
    }
}

async fn serve(listener: TcpListener, answers: Arc<Answers>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => { connections.spawn(answer_all(stream, Arc::clone(&answers))); }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// The two answers of an origin, ready to send.
struct Answers {
    keep_alive: Vec<u8>,
    close: Vec<u8>,
}

impl Answers {
    fn new(name: &str) -> Answers {
        let body = format!("hello from {name}\n");
        let answer = |connection: &str| {
            format!(
                "HTTP/1.1 200 OK\r\n{SERVED_BY}: {name}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
                body.len()
            )
            .into_bytes()
        };
        Answers { keep_alive: answer("keep-alive"), close: answer("close") }
    }
}

/// Answers requests until the client closes, asks to close, or sends what is no request.
async fn answer_all(mut stream: TcpStream, answers: Arc<Answers>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(1024);
    loop {
        let request = match next_request(&head) {
            Head::Whole(request) => request,
            Head::Partial if head.len() < HEAD_MAX_BYTES => {
                if stream.read_buf(&mut head).await? == 0 {
                    return Ok(());
                }
                continue;
            }
            Head::Partial | Head::Malformed => {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await?;
                return stream.shutdown().await;
            }
        };
        head.drain(..request.head_bytes);
        match request.then {
            Then::KeepAlive => stream.write_all(&answers.keep_alive).await?,
            Then::Close => {
                stream.write_all(&answers.close).await?;
                return stream.shutdown().await;
            }
        }
    }
}

enum Head {
    Whole(Request),
    Partial,
    Malformed,
}

struct Request {
    head_bytes: usize,
    then: Then,
}

enum Then {
    KeepAlive,
    Close,
}

/// The first request in `bytes`. A request with a body is answered and closed, so that its body is never taken for a head.
fn next_request(bytes: &[u8]) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Head::Partial,
        Err(_) => return Head::Malformed,
    };
    let wants_close = |header: &httparse::Header<'_>| {
        (header.name.eq_ignore_ascii_case("connection") && header.value.eq_ignore_ascii_case(b"close"))
            || header.name.eq_ignore_ascii_case("content-length")
            || header.name.eq_ignore_ascii_case("transfer-encoding")
    };
    let http_1_0 = request.version == Some(0);
    let then = if http_1_0 || request.headers.iter().any(wants_close) { Then::Close } else { Then::KeepAlive };
    Head::Whole(Request { head_bytes, then })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn origin_answers_with_its_name_and_closes_when_asked() {
        let origin = Origin::open("ash", (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let answer = ask(origin.address(), b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("hello from ash\n"), "{answer}");
        let twice = ask(origin.address(), b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n").await;
        assert_eq!(twice.matches("hello from ash").count(), 2, "{twice}");
        assert!(ask(origin.address(), b"no request\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        origin.stop().await;
    }

    #[tokio::test]
    async fn stopped_origin_closes_its_connections_and_refuses_new_ones() {
        let origin = Origin::open("ash", (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = origin.address();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 512]).await.unwrap() > 0);
        origin.stop().await;
        assert_eq!(stream.read(&mut [0; 512]).await.unwrap(), 0);
        assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
