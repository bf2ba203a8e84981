//! The origin: a server that answers requests of [`crate::message`], on tokio-uring.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};

use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};

use crate::message::{Filler, HEADER_BYTES, Header, Kind, Progress, Reader, WINDOW_BYTES_MAX};

/// Room for a request, or a part of one: the filler of a longer one is verified piece by piece.
const READ_BYTES: usize = 4096;

/// The longest answer sent in one piece.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Answers on these addresses until the process ends. `ready` is called once all are open.
pub fn serve(addresses: &[SocketAddr], ready: impl FnOnce(&[SocketAddr])) -> io::Result<()> {
    super::client::runtime().start(async {
        let mut open = Vec::new();
        let mut tasks = Vec::new();
        for &address in addresses {
            let listener = listen(address)?;
            open.push(listener.local_addr()?);
            tasks.push(tokio_uring::spawn(accept(listener)));
        }
        ready(&open);
        for task in tasks {
            task.await.map_err(io::Error::other)??;
        }
        Ok(())
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use towpath_sys::socket::{ListenOptions, Transport, open_listener};
    let fd = open_listener(address, Transport::Tcp, &ListenOptions::default())
        .map_err(|error| io::Error::new(error.kind(), format!("origin {address}: {error}")))?;
    let listener = StdListener::from(fd);
    // A ring waits by itself; on a non-blocking socket it would answer EAGAIN instead.
    listener.set_nonblocking(false)?;
    Ok(TcpListener::from_std(listener))
}

async fn accept(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio_uring::spawn(async move {
            // A client that goes away is the client's matter.
            let _gone = converse(stream).await;
        });
    }
}

/// Answers one request after the other until the client ends or a request asks for more than one answer.
async fn converse(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let mut answer = Vec::new();
    let mut reader = Reader::new();
    loop {
        let (result, returned) = stream.read(buffer).await;
        buffer = returned;
        let length = result?;
        if length == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let (header, used) = match reader.take(rest) {
                Progress::Partial => break,
                Progress::Complete(header, used) => (header, used),
                Progress::Wrong => {
                    let header = Header { kind: Kind::Corrupt, tag: 0, filler_bytes: 0, answer_filler_bytes: 0 };
                    stream.write_all(header.encode().to_vec()).await.0?;
                    return Ok(());
                }
            };
            rest = &rest[used..];
            if header.kind == Kind::Stream {
                return pour(&stream, header.tag).await;
            }
            answer = send_answer(&stream, header, answer).await?;
            if header.kind == Kind::AnswerAndClose {
                return Ok(());
            }
        }
    }
}

async fn send_answer(stream: &TcpStream, request: Header, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let header = Header {
        kind: Kind::Answer,
        tag: request.tag,
        filler_bytes: request.answer_filler_bytes,
        answer_filler_bytes: 0,
    };
    let mut filler = Filler::of(request.tag);
    let mut left = request.answer_filler_bytes as usize;
    bytes.clear();
    bytes.extend_from_slice(&header.encode());
    loop {
        let part = left.min(ANSWER_BYTES_MAX - HEADER_BYTES);
        bytes.extend_from_slice(filler.window(part));
        left -= part;
        let (result, returned) = stream.write_all(bytes).await;
        result?;
        bytes = returned;
        if left == 0 {
            return Ok(bytes);
        }
        bytes.clear();
    }
}

async fn pour(stream: &TcpStream, tag: u64) -> io::Result<()> {
    let mut filler = Filler::of(tag);
    loop {
        stream.write_all(filler.window(WINDOW_BYTES_MAX).slice_full()).await.0?;
    }
}
