//! A response that an exchange has written for a client of HTTP/1.1, taken apart again for one of HTTP/2.
//!
//! The reader knows that writer: whatever else it meets is a fault of ours, and the stream ends.

use super::hpack;
use crate::http::{Framing, HttpLimits, ResponseHead};

/// The head is ours, with what edits have added; longer ones are a fault.
const LIMITS: HttpLimits = HttpLimits { head_bytes_max: 1 << 20, body_bytes_max: 0 };
/// Longest line with a chunk's size, or of all trailers.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// A part of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Bytes of the body.
    Data(&'a [u8]),
    /// Everything has come.
    End,
    /// A head, as a block of fields; another one follows an interim one.
    Head(Vec<u8>),
    /// The fields behind the body, likewise; they are its end.
    Trailers(Vec<u8>),
}

/// It was not what an exchange writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// Reads one response.
#[derive(Debug)]
pub struct ResponseReader {
    head_only: bool,
    state: State,
    /// A part of a head or line.
    kept: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Chunk(u64),
    /// In the line end behind a chunk.
    ChunkEnd,
    ChunkSize,
    Head,
    Length(u64),
    Over,
    Trailers,
}

impl ResponseReader {
    /// Of a request by HEAD the response has no body, whatever it says.
    pub fn new(head_only: bool) -> ResponseReader {
        ResponseReader { head_only, state: State::Head, kept: Vec::new() }
    }

    /// Whether everything has come.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Reads what comes next.
    pub fn read(&mut self, mut input: &[u8], mut take: impl FnMut(Part<'_>)) -> Result<(), Unreadable> {
        while !input.is_empty() {
            match self.state {
                State::Over => return Err(Unreadable),
                State::Length(left) | State::Chunk(left) => {
                    let len = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let (data, rest) = input.split_at(len);
                    input = rest;
                    take(Part::Data(data));
                    let left = left - len as u64;
                    self.state = match self.state {
                        State::Chunk(_) if left == 0 => State::ChunkEnd,
                        State::Chunk(_) => State::Chunk(left),
                        _ if left == 0 => {
                            take(Part::End);
                            State::Over
                        }
                        _ => State::Length(left),
                    };
                }
                State::Head => {
                    if let Some(head) = self.keep_until(b"\r\n\r\n", &mut input)? {
                        self.head_came(&head, &mut take)?;
                    }
                }
                State::ChunkEnd => {
                    if let Some(end) = self.keep_until(b"\r\n", &mut input)? {
                        if end != b"\r\n" {
                            return Err(Unreadable);
                        }
                        self.state = State::ChunkSize;
                    }
                }
                State::ChunkSize => {
                    if let Some(line) = self.keep_until(b"\r\n", &mut input)? {
                        let digits = std::str::from_utf8(&line[..line.len() - 2]).map_err(|_| Unreadable)?;
                        let size = u64::from_str_radix(digits, 16).map_err(|_| Unreadable)?;
                        self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
                    }
                }
                State::Trailers => {
                    // None at all, or lines and an empty one.
                    let end: &[u8] = if self.kept.len() + input.len() >= 2 && self.begins_with_line_end(input) {
                        b"\r\n"
                    } else {
                        b"\r\n\r\n"
                    };
                    if let Some(section) = self.keep_until(end, &mut input)? {
                        self.trailers_came(&section, &mut take)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Keeps bytes up to this end of theirs, which is the first; gives all of them out when it has come.
    fn keep_until(&mut self, end: &[u8], input: &mut &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let before = self.kept.len();
        let from = before.saturating_sub(end.len() - 1);
        let joined: Vec<u8>;
        let seam = if before == 0 {
            &**input
        } else {
            joined = [&self.kept[from..], input].concat();
            &joined
        };
        match seam.windows(end.len()).position(|window| window == end) {
            Some(at) => {
                let taken = from + at + end.len() - before;
                self.kept.extend_from_slice(&input[..taken]);
                *input = &input[taken..];
                Ok(Some(std::mem::take(&mut self.kept)))
            }
            None if before + input.len() > KEPT_BYTES_MAX.max(LIMITS.head_bytes_max as usize) => Err(Unreadable),
            None => {
                self.kept.extend_from_slice(input);
                *input = &[];
                Ok(None)
            }
        }
    }

    fn begins_with_line_end(&self, input: &[u8]) -> bool {
        self.kept.iter().chain(input).take(2).eq(b"\r\n")
    }

    fn head_came(&mut self, head: &[u8], take: &mut impl FnMut(Part<'_>)) -> Result<(), Unreadable> {
        let (_, head) = ResponseHead::read(head, &LIMITS).ok().flatten().ok_or(Unreadable)?;
        // A connection of HTTP/2 changes to nothing else (RFC 9113 §8.6).
        if head.status() == 101 {
            return Err(Unreadable);
        }
        let mut block = Vec::with_capacity(256);
        hpack::write(b":status", head.status().to_string().as_bytes(), &mut block);
        write_fields(head.fields(), &mut block);
        take(Part::Head(block));
        self.state = match head.framing(self.head_only) {
            _ if head.is_interim() => State::Head,
            Framing::None => {
                take(Part::End);
                State::Over
            }
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => return Err(Unreadable),
        };
        Ok(())
    }

    fn trailers_came(&mut self, section: &[u8], take: &mut impl FnMut(Part<'_>)) -> Result<(), Unreadable> {
        self.state = State::Over;
        if section == b"\r\n" {
            take(Part::End);
            return Ok(());
        }
        let head = [b"HTTP/1.1 200 \r\n", section].concat();
        let (_, trailers) = ResponseHead::read(&head, &LIMITS).ok().flatten().ok_or(Unreadable)?;
        let mut block = Vec::new();
        write_fields(trailers.fields(), &mut block);
        take(if block.is_empty() { Part::End } else { Part::Trailers(block) });
        Ok(())
    }
}

/// Writes fields without those that are about a connection of HTTP/1.1 (RFC 9113 §8.2.2).
fn write_fields<'a>(fields: impl Iterator<Item = (&'a str, &'a [u8])>, block: &mut Vec<u8>) {
    for (name, value) in fields {
        let name = name.to_ascii_lowercase();
        let is_of_connection =
            matches!(&*name, "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "te");
        if !is_of_connection {
            hpack::write(name.as_bytes(), value.trim_ascii(), block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hpack::Decoder;
    use super::*;

    /// What is read, in words.
    fn read_by(sizes: usize, head_only: bool, input: &str) -> Result<Vec<String>, Unreadable> {
        let mut reader = ResponseReader::new(head_only);
        let mut said: Vec<String> = Vec::new();
        let fields = |block: &[u8]| {
            let mut text = String::new();
            let written = |name: &[u8], value: &[u8]| {
                text += &format!("{}={};", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
            };
            Decoder::default().read(block, written).expect("a block of ours");
            text
        };
        for piece in input.as_bytes().chunks(sizes) {
            reader.read(piece, |part| match part {
                Part::Head(block) => said.push(format!("head {}", fields(&block))),
                Part::Trailers(block) => said.push(format!("trailers {}", fields(&block))),
                Part::End => said.push("end".to_owned()),
                Part::Data(data) => {
                    let data = String::from_utf8_lossy(data);
                    match said.last_mut().filter(|last| last.starts_with("data ")) {
                        Some(last) => last.push_str(&data),
                        None => said.push(format!("data {data}")),
                    }
                }
            })?;
        }
        assert_eq!(reader.is_over(), said.last().is_some_and(|last| last == "end" || last.starts_with("trailers")));
        Ok(said)
    }

    #[test]
    fn responses_are_taken_apart_however_they_are_cut() {
        for (input, head_only, expected) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello",
                false,
                &["head :status=200;content-length=5;x-a=b;", "data hello", "end"][..],
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
                true,
                &["head :status=200;content-length=5;", "end"],
            ),
            ("HTTP/1.1 304 Not Modified\r\nETag: 1\r\n\r\n", false, &["head :status=304;etag=1;", "end"]),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, &["head :status=200;content-length=0;", "end"]),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
                false,
                &["head :status=100;", "head :status=204;", "end"],
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\na\r\n, you all!\r\n0\r\n\r\n",
                false,
                &["head :status=200;", "data hello, you all!", "end"],
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 7\r\nB: 1\r\n\r\n",
                false,
                &["head :status=200;", "data x", "trailers x-sum=7;b=1;"],
            ),
        ] {
            for sizes in 1..input.len() + 1 {
                let said = read_by(sizes, head_only, input).expect(input);
                assert_eq!(said, expected, "{sizes} of {input:?}");
            }
        }
    }

    #[test]
    fn what_no_exchange_writes_is_not_guessed_at() {
        for input in [
            "HTTP/1.1 200 OK\r\n\r\nuntil the end",
            "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\nmore",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        ] {
            assert_eq!(read_by(input.len(), false, input), Err(Unreadable), "{input:?}");
        }
    }
}
