//! Bodies on their way: never kept, and chunks get heads of our own.

use std::io::Write;

use super::fields::{self, Known};
use super::output::Output;
use super::scan::{Fault, Kept, Taken};
use super::write::line;
use super::{CHUNK_EXTENSION_BYTES_MAX, Framing, TRAILER_BYTES_MAX};

/// Most digits of a chunk's size: 2^63 has 16.
const SIZE_DIGITS_MAX: u8 = 16;

/// Fields of a trailer section that are passed on to nobody: about framing, routing, authentication and the body as a whole (RFC 9110 §6.5.1),
/// beside those of this hop.
const NOT_IN_TRAILERS: [&str; 21] = [
    "age",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "expires",
    "forwarded",
    "host",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "set-cookie",
    "trailer",
    "www-authenticate",
];

/// How a body is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// In chunks.
    Chunks,
    /// As it is.
    Plain,
}

/// A body on its way from one side to the other.
#[derive(Debug)]
pub(super) struct Body {
    state: State,
    coding: Coding,
    /// Bytes that may still come in chunks.
    allowed: u64,
}

#[derive(Debug)]
enum State {
    /// Behind the data of a chunk; whether its CR has come.
    ChunkEnd { cr: bool },
    /// In a chunk.
    Chunk { left: u64 },
    /// In the line with a chunk's size.
    ChunkSize { digits: u8, size: u64, extension: Extension },
    /// In a body whose length is known.
    Length { left: u64 },
    /// Everything has come.
    Over,
    /// Behind the last chunk.
    Trailer(Kept),
    /// In a body that ends with the connection.
    UntilClose,
}

/// Where in the line behind a chunk's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// Not there yet.
    None,
    /// So many bytes of it have come.
    Bytes(u16),
    /// Its CR has come.
    Cr,
}

impl State {
    const SIZE: State = State::ChunkSize { digits: 0, size: 0, extension: Extension::None };
}

impl Body {
    /// A body, of which chunks may bring `max` bytes.
    pub(super) fn new(framing: Framing, coding: Coding, max: u64) -> Body {
        let state = match framing {
            Framing::Chunked => State::SIZE,
            Framing::Length(left) => State::Length { left },
            Framing::None => State::Over,
            Framing::UntilClose => State::UntilClose,
        };
        Body { state, coding, allowed: max }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Bytes that come next and leave as they are; 0 where each has to be looked at, or gets a frame.
    pub(super) fn passes(&self) -> u64 {
        match self.state {
            State::Chunk { left } | State::Length { left } => left,
            State::UntilClose if self.coding == Coding::Plain => u64::MAX,
            State::ChunkEnd { .. } | State::ChunkSize { .. } | State::Over | State::Trailer(_) | State::UntilClose => 0,
        }
    }

    /// So many of these have left without having been given to [`Body::take`].
    pub(super) fn passed(&mut self, bytes: u64) {
        let (State::Chunk { left } | State::Length { left }) = &mut self.state else { return };
        *left = left.saturating_sub(bytes);
        if *left == 0 {
            self.end_stretch();
        }
    }

    /// All bytes of a chunk, or of a body whose length is known, have come.
    fn end_stretch(&mut self) {
        let chunked = matches!(self.state, State::Chunk { .. });
        self.state = if chunked { State::ChunkEnd { cr: false } } else { State::Over };
    }

    /// The connection that it came by has ended in good order: whether the body may end here.
    pub(super) fn end(&mut self, out: &mut Output) -> bool {
        match self.state {
            State::UntilClose => {
                self.state = State::Over;
                if self.coding == Coding::Chunks {
                    out.make(|made| made.extend_from_slice(b"0\r\n\r\n"));
                }
                true
            }
            State::Over => true,
            _ => false,
        }
    }

    /// Takes what belongs to it of `input` from `at` on; returns where it stopped. That is the end of the input unless the body is over.
    pub(super) fn take(&mut self, input: &[u8], mut at: usize, out: &mut Output) -> Result<usize, Fault> {
        while at < input.len() && !self.is_over() {
            let rest = &input[at..];
            match &mut self.state {
                State::ChunkEnd { cr } => {
                    let due = if *cr { b'\n' } else { b'\r' };
                    if rest[0] != due {
                        return Err(Fault::ChunkSize);
                    }
                    at += 1;
                    if std::mem::replace(cr, true) {
                        self.state = State::SIZE;
                        self.write(b"\r\n", out);
                    }
                }
                State::Chunk { left } | State::Length { left } => {
                    let len = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= len as u64;
                    if *left == 0 {
                        self.end_stretch();
                    }
                    out.pass(input, at, len);
                    at += len;
                }
                State::ChunkSize { .. } => {
                    at += 1;
                    self.size_byte(rest[0], out)?;
                }
                State::Over => {}
                State::Trailer(kept) => match kept.take(rest, TRAILER_BYTES_MAX).map_err(|_| Fault::Trailer)? {
                    Taken::Part => at = input.len(),
                    Taken::Whole(len) => {
                        at += len;
                        let section = kept.finish();
                        self.state = State::Over;
                        self.write_trailers(&section, out)?;
                    }
                },
                State::UntilClose => {
                    let len = rest.len();
                    if self.coding == Coding::Chunks {
                        out.make(|made| write!(made, "{len:x}\r\n").expect("memory takes everything"));
                    }
                    out.pass(input, at, len);
                    self.write(b"\r\n", out);
                    at += len;
                }
            }
        }
        Ok(at)
    }

    /// One byte of the line with a chunk's size (RFC 9112 §7.1).
    fn size_byte(&mut self, byte: u8, out: &mut Output) -> Result<(), Fault> {
        let State::ChunkSize { digits, size, extension } = &mut self.state else { return Ok(()) };
        match (*extension, byte) {
            (Extension::None, byte) if byte.is_ascii_hexdigit() => {
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                *digits += 1;
                *size = *size << 4 | u64::from(digit);
                if *digits > SIZE_DIGITS_MAX || *size > i64::MAX as u64 {
                    return Err(Fault::ChunkSize);
                }
            }
            (Extension::None, _) if *digits == 0 => return Err(Fault::ChunkSize),
            (Extension::None, b';') => *extension = Extension::Bytes(0),
            (Extension::None | Extension::Bytes(_), b'\r') => *extension = Extension::Cr,
            (Extension::None, _) => return Err(Fault::ChunkSize),
            (Extension::Bytes(count), b'\t' | b' '..=0x7e) => {
                if usize::from(count) >= CHUNK_EXTENSION_BYTES_MAX {
                    return Err(Fault::ChunkExtension);
                }
                *extension = Extension::Bytes(count + 1);
            }
            (Extension::Cr, b'\n') => {
                let size = *size;
                return self.chunk_begins(size, out);
            }
            (Extension::Bytes(_) | Extension::Cr, _) => return Err(Fault::ChunkExtension),
        }
        Ok(())
    }

    fn chunk_begins(&mut self, size: u64, out: &mut Output) -> Result<(), Fault> {
        self.allowed = self.allowed.checked_sub(size).ok_or(Fault::BodyTooLong)?;
        if self.coding == Coding::Chunks {
            out.make(|made| write!(made, "{size:x}\r\n").expect("memory takes everything"));
        }
        self.state = if size == 0 { State::Trailer(Kept::default()) } else { State::Chunk { left: size } };
        Ok(())
    }

    fn write_trailers(&mut self, section: &[u8], out: &mut Output) -> Result<(), Fault> {
        let fields = fields::of_section(section).map_err(|_| Fault::Trailer)?;
        if self.coding == Coding::Plain {
            return Ok(());
        }
        out.make(|made| {
            for field in &fields {
                let name = field.name.text(section);
                let kept = field.known == Known::Other
                    && !fields::is_told_by_proxies(name.as_bytes())
                    && !NOT_IN_TRAILERS.iter().any(|other| name.eq_ignore_ascii_case(other));
                if kept {
                    line(name, field.value.bytes(section), made);
                }
            }
            made.extend_from_slice(b"\r\n");
        });
        Ok(())
    }

    /// Bytes of the chunks' frame, if there are chunks.
    fn write(&self, bytes: &[u8], out: &mut Output) {
        if self.coding == Coding::Chunks {
            out.make(|made| made.extend_from_slice(bytes));
        }
    }
}
