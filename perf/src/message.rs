//! What clients and origins say to each other, so that every byte can be verified where it arrives.
//!
//! A client sends requests of a header and filler; the origin answers with a header and filler of the length that the
//! request asks for, or with filler without end. Filler is a window of one fixed pattern that starts where the header
//! says, so neither side stores what it expects, and a byte that is wrong, missing, doubled or from another connection shows.

use std::sync::OnceLock;

use crate::web::{self, Lack, Visitor};

/// Length of a header.
pub const HEADER_BYTES: usize = 24;

/// The pattern repeats after so many bytes: a prime, so that a shift by any buffer size shows.
const PERIOD: usize = 65_521;

/// The longest window of filler handed out at once.
pub const WINDOW_BYTES_MAX: usize = 256 * 1024;

/// Seed of the sum in front of a header.
const MAGIC: u64 = 0x5450_5731;

/// How messages stand in the stream of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// One behind another.
    #[default]
    Bare,
    /// As the body of an HTTP/1.1 request or response, for who relays nothing else.
    Http,
    /// In requests of browsers and responses of web servers, in which a balancer of HTTP does its work; no streams.
    Web(Visitor),
}

/// The longest head that is written.
const HEAD_BYTES: usize = 128;

/// The longest head that is read in front of a body.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// What ends a head (RFC 9112 section 2.1).
const HEAD_END: &[u8; 4] = b"\r\n\r\n";

impl Framing {
    /// Room that the head of a message takes at most.
    pub fn head_bytes(self) -> usize {
        match self {
            Framing::Bare => 0,
            Framing::Http => HEAD_BYTES,
            Framing::Web(_) => web::HEAD_BYTES,
        }
    }

    /// Whether requests are nothing but their heads.
    pub fn asks_by_head(self) -> bool {
        matches!(self, Framing::Web(_))
    }

    /// What stands in front of a request, of a client that has got this cookie.
    pub fn request_head(self, request: &Header, cookie: Option<&str>) -> String {
        let end = if request.kind == Kind::Answer { "" } else { "Connection: close\r\n" };
        let length = HEADER_BYTES + request.filler_bytes as usize;
        match self {
            Framing::Bare => String::new(),
            Framing::Http => format!("POST / HTTP/1.1\r\nHost: origin\r\n{end}Content-Length: {length}\r\n\r\n"),
            Framing::Web(_) => web::request(request, cookie),
        }
    }

    /// What stands in front of the answer to a request of this kind.
    pub fn answer_head(self, request: Kind, answer: &Header) -> String {
        let end = if request == Kind::Answer { "" } else { "Connection: close\r\n" };
        let length = HEADER_BYTES + answer.filler_bytes as usize;
        match self {
            Framing::Bare => String::new(),
            Framing::Http => format!("HTTP/1.1 200 OK\r\n{end}Content-Length: {length}\r\n\r\n"),
            Framing::Web(_) => web::response(answer, request != Kind::Answer),
        }
    }

    /// What stands in front of filler without end.
    pub fn stream_head(self) -> &'static str {
        match self {
            Framing::Bare => "",
            Framing::Http | Framing::Web(_) => "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        }
    }
}

/// What an origin is asked for, or what an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One answer; the connection stays.
    Answer,
    /// One answer, after which the origin closes first, as an HTTP/1.0 server does.
    AnswerAndClose,
    /// (Answer) The request did not arrive as it was sent.
    Corrupt,
    /// Filler without end.
    Stream,
}

/// Head of a request or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked for, or what this is.
    pub kind: Kind,
    /// Chosen by the client, returned by the origin; decides where the filler starts.
    pub tag: u64,
    /// Filler that follows this header.
    pub filler_bytes: u32,
    /// (Request) Filler that the answer is to carry.
    pub answer_filler_bytes: u32,
}

impl Header {
    /// The header on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let kind: u32 = match self.kind {
            Kind::Answer => 0,
            Kind::AnswerAndClose => 1,
            Kind::Corrupt => 2,
            Kind::Stream => 3,
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tag.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.filler_bytes.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.answer_filler_bytes.to_le_bytes());
        let sum = sum(&bytes);
        bytes[0..4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The header in these bytes; `None` when it is not one.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if u32_at(0) != sum(bytes) {
            return None;
        }
        let kind = match u32_at(4) {
            0 => Kind::Answer,
            1 => Kind::AnswerAndClose,
            2 => Kind::Corrupt,
            3 => Kind::Stream,
            _ => return None,
        };
        let tag = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        Some(Header { kind, tag, filler_bytes: u32_at(16), answer_filler_bytes: u32_at(20) })
    }
}

/// Sum of what follows the sum: without it, a wrong length would only be waited for.
fn sum(header: &[u8; HEADER_BYTES]) -> u32 {
    let mixed = header[4..].chunks_exact(4).fold(MAGIC, |sum, word| {
        let word = u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        // Odd, so that no step loses a difference; the rotation brings high bits down to where the next step spreads them.
        (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
    });
    (mixed ^ mixed >> 32) as u32
}

/// Where in the pattern the filler for a tag starts.
fn start_of(tag: u64) -> usize {
    (tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % PERIOD
}

/// A position in filler: hands out what comes next, or checks that it came.
#[derive(Clone, Copy, Debug)]
pub struct Filler {
    position: usize,
}

impl Filler {
    /// The filler that belongs to a tag, from its start.
    pub fn of(tag: u64) -> Filler {
        Filler { position: start_of(tag) }
    }

    /// The next `length` (at most [`WINDOW_BYTES_MAX`]) bytes.
    pub fn window(&mut self, length: usize) -> &'static [u8] {
        let window = &pattern()[self.position..self.position + length];
        self.position = (self.position + length) % PERIOD;
        window
    }

    /// Whether these are the next bytes.
    pub fn matches(&mut self, bytes: &[u8]) -> bool {
        bytes.chunks(WINDOW_BYTES_MAX).all(|chunk| self.window(chunk.len()) == chunk)
    }
}

fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        // xorshift64 (Marsaglia 2003): any generator will do whose output does not repeat within the period.
        let mut state: u64 = 0x2545_f491_4f6c_dd1d;
        let period: Vec<u8> = (0..PERIOD)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect();
        period.iter().copied().cycle().take(PERIOD + WINDOW_BYTES_MAX).collect()
    })
}

/// Takes a message apart as it arrives, in whatever pieces.
#[derive(Debug)]
pub struct Reader {
    framing: Framing,
    /// Heads of [`Framing::Web`], and the length that the last one has told of its body.
    pub(crate) web: web::HeadReader,
    told: Option<u64>,
    /// Bytes read of the head in front of a body, and how many of its end were met.
    lead: Option<(usize, usize)>,
    head: [u8; HEADER_BYTES],
    head_filled: usize,
    filler: Filler,
    filler_left: u64,
}

/// What a piece did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The message ends with the piece's byte of this number; the rest belongs to the next.
    Complete(Header, usize),
    /// A balancer has not done to it what it is to do.
    Lacks(Lack),
    /// More has to come.
    Partial,
    /// It is not what was sent.
    Wrong,
}

impl Reader {
    /// Before the first byte of a message.
    pub fn new(framing: Framing) -> Reader {
        Reader {
            framing,
            web: web::HeadReader::new(framing == Framing::Web(Visitor::Returning)),
            told: None,
            lead: lead_of(framing),
            head: [0; HEADER_BYTES],
            head_filled: 0,
            filler: Filler { position: 0 },
            filler_left: 0,
        }
    }

    /// Passes over what stands in front of a message; how many bytes of the piece that is, `None` if it has no end.
    pub fn pass_head(&mut self, piece: &[u8]) -> Option<usize> {
        let Some((mut read, mut met)) = self.lead else { return Some(0) };
        for (&byte, used) in piece.iter().zip(1..) {
            read += 1;
            met = match byte {
                byte if byte == HEAD_END[met] => met + 1,
                b'\r' => 1,
                _ => 0,
            };
            if met == HEAD_END.len() {
                self.lead = None;
                return Some(used);
            }
        }
        self.lead = Some((read, met));
        (read <= HEAD_BYTES_MAX).then_some(piece.len())
    }

    /// Takes the next piece.
    pub fn take(&mut self, piece: &[u8]) -> Progress {
        let mut used = match (self.framing, self.told) {
            (Framing::Web(_), None) => match self.web.take(piece) {
                Ok(None) => return Progress::Partial,
                Ok(Some((used, web::Head::Request(header)))) => return Progress::Complete(header, used),
                Ok(Some((used, web::Head::Response(length)))) => {
                    self.told = Some(length);
                    used
                }
                Err(web::Fault::Lacks(lack)) => return Progress::Lacks(lack),
                Err(web::Fault::Wrong) => return Progress::Wrong,
            },
            (Framing::Web(_), Some(_)) => 0,
            (Framing::Bare | Framing::Http, _) => match self.pass_head(piece) {
                Some(used) => used,
                None => return Progress::Wrong,
            },
        };
        if self.head_filled < HEADER_BYTES {
            let part = (piece.len() - used).min(HEADER_BYTES - self.head_filled);
            self.head[self.head_filled..self.head_filled + part].copy_from_slice(&piece[used..used + part]);
            self.head_filled += part;
            used += part;
            if self.head_filled < HEADER_BYTES {
                return Progress::Partial;
            }
            let Some(header) = Header::decode(&self.head) else { return Progress::Wrong };
            if self.told.is_some_and(|told| told != HEADER_BYTES as u64 + u64::from(header.filler_bytes)) {
                return Progress::Wrong;
            }
            self.filler = Filler::of(header.tag);
            self.filler_left = u64::from(header.filler_bytes);
        }
        let part = usize::try_from(self.filler_left).map_or(piece.len() - used, |left| left.min(piece.len() - used));
        if !self.filler.matches(&piece[used..used + part]) {
            return Progress::Wrong;
        }
        self.filler_left -= part as u64;
        if self.filler_left > 0 {
            return Progress::Partial;
        }
        let Some(header) = Header::decode(&self.head) else { return Progress::Wrong };
        (self.lead, self.told, self.head_filled) = (lead_of(self.framing), None, 0);
        Progress::Complete(header, used + part)
    }
}

/// Before the first byte of what stands in front of a body.
fn lead_of(framing: Framing) -> Option<(usize, usize)> {
    (framing == Framing::Http).then_some((0, 0))
}

impl Default for Reader {
    fn default() -> Reader {
        Reader::new(Framing::Bare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u64, filler: usize) -> (Header, Vec<u8>) {
        let header = Header { kind: Kind::Answer, tag, filler_bytes: filler as u32, answer_filler_bytes: 7 };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(Filler::of(tag).window(filler));
        (header, bytes)
    }

    #[test]
    fn a_message_is_read_in_whatever_pieces() {
        let (header, bytes) = message(99, 5000);
        for piece in [1, 3, 23, 24, 25, 4096, 6000] {
            let mut reader = Reader::default();
            let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
            let (last, before) = pieces.split_last().unwrap();
            for piece in before {
                assert_eq!(reader.take(piece), Progress::Partial);
            }
            assert_eq!(reader.take(last), Progress::Complete(header, last.len()));
        }
    }

    #[test]
    fn a_body_is_read_behind_its_head_in_whatever_pieces() {
        let (header, bytes) = message(99, 50);
        let request = Framing::Http.request_head(&header, None);
        let answer = Framing::Http.answer_head(Kind::AnswerAndClose, &header);
        assert!(request.len().max(answer.len()) + 8 <= HEAD_BYTES, "with the longest of lengths");
        assert!(request.ends_with("\r\nContent-Length: 74\r\n\r\n") && answer.contains("\r\nConnection: close\r\n"));
        let whole: Vec<u8> = [request.as_bytes(), &bytes, answer.as_bytes(), &bytes].concat();
        for piece in [1, 3, 24, 60, 4096] {
            let mut reader = Reader::new(Framing::Http);
            let mut complete = 0;
            for mut piece in whole.chunks(piece) {
                while !piece.is_empty() {
                    match reader.take(piece) {
                        Progress::Complete(of, used) => {
                            assert_eq!(of, header);
                            complete += 1;
                            piece = &piece[used..];
                        }
                        Progress::Partial => break,
                        Progress::Lacks(_) | Progress::Wrong => panic!("{complete} complete"),
                    }
                }
            }
            assert_eq!(complete, 2);
        }
        assert_eq!(Reader::new(Framing::Http).take(&[b'x'; HEAD_BYTES_MAX + 1]), Progress::Wrong);
    }

    #[test]
    fn a_response_is_read_with_its_head_in_whatever_pieces() {
        let framing = Framing::Web(Visitor::Returning);
        let (header, body) = message(99, 5000);
        let head = framing.answer_head(Kind::Answer, &header).replace("\r\n\r\n", "\r\nSet-Cookie: SERVERID=a\r\n\r\n");
        let whole = [head.as_bytes(), &body].concat();
        for size in [1, 24, 300, 4096, 8192] {
            let mut reader = Reader::new(framing);
            let pieces: Vec<&[u8]> = whole.chunks(size).collect();
            let (last, before) = pieces.split_last().unwrap();
            before.iter().for_each(|piece| assert_eq!(reader.take(piece), Progress::Partial, "{size}"));
            assert_eq!(reader.take(last), Progress::Complete(header, last.len()));
            assert_eq!(reader.web.cookie.as_deref(), Some("a"));
        }
        let shorter = [head.replace("Content-Length: 50", "Content-Length: 40").as_bytes(), &body].concat();
        assert_eq!(Reader::new(framing).take(&shorter), Progress::Wrong);
    }

    #[test]
    fn any_wrong_bit_is_seen() {
        let (_, bytes) = message(7, 200);
        for bit in 0..bytes.len() * 8 {
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Reader::default().take(&wrong), Progress::Wrong, "bit {bit}");
        }
    }

    #[test]
    fn a_gap_of_any_buffer_size_is_seen() {
        for gap in [1, 512, 4096, 16_384, 65_536, 262_144] {
            let mut sent = Filler::of(1);
            let mut seen = Filler::of(1);
            assert!(seen.matches(sent.window(1000)));
            sent.window(gap);
            assert!(!seen.matches(sent.window(1000)), "gap {gap}");
        }
    }

    #[test]
    fn two_messages_in_one_piece_are_told_apart() {
        let (first, mut bytes) = message(1, 10);
        let (second, more) = message(2, 20);
        bytes.extend_from_slice(&more);
        let mut reader = Reader::default();
        assert_eq!(reader.take(&bytes), Progress::Complete(first, 34));
        assert_eq!(reader.take(&bytes[34..]), Progress::Complete(second, 44));
    }
}
