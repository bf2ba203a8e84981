//! What clients and origins say to each other, so that every byte can be verified where it arrives.
//!
//! A client sends requests of a header and filler; the origin answers with a header and filler of the length that the
//! request asks for, or with filler without end. Filler is a window of one fixed pattern that starts where the header
//! says, so neither side stores what it expects, and a byte that is wrong, missing, doubled or from another connection shows.

use std::sync::OnceLock;

/// Length of a header.
pub const HEADER_BYTES: usize = 24;

/// The pattern repeats after so many bytes: a prime, so that a shift by any buffer size shows.
const PERIOD: usize = 65_521;

/// The longest window of filler handed out at once.
pub const WINDOW_BYTES_MAX: usize = 256 * 1024;

/// Seed of the sum in front of a header.
const MAGIC: u64 = 0x5450_5731;

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
#[derive(Clone, Copy, Debug)]
pub struct Reader {
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
    /// More has to come.
    Partial,
    /// It is not what was sent.
    Wrong,
}

impl Reader {
    /// Before the first byte of a message.
    pub fn new() -> Reader {
        Reader { head: [0; HEADER_BYTES], head_filled: 0, filler: Filler { position: 0 }, filler_left: 0 }
    }

    /// Takes the next piece.
    pub fn take(&mut self, piece: &[u8]) -> Progress {
        let mut used = 0;
        if self.head_filled < HEADER_BYTES {
            let part = piece.len().min(HEADER_BYTES - self.head_filled);
            self.head[self.head_filled..self.head_filled + part].copy_from_slice(&piece[..part]);
            self.head_filled += part;
            used = part;
            if self.head_filled < HEADER_BYTES {
                return Progress::Partial;
            }
            let Some(header) = Header::decode(&self.head) else { return Progress::Wrong };
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
        *self = Reader::new();
        Progress::Complete(header, used + part)
    }
}

impl Default for Reader {
    fn default() -> Reader {
        Reader::new()
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
            let mut reader = Reader::new();
            let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
            let (last, before) = pieces.split_last().unwrap();
            for piece in before {
                assert_eq!(reader.take(piece), Progress::Partial);
            }
            assert_eq!(reader.take(last), Progress::Complete(header, last.len()));
        }
    }

    #[test]
    fn any_wrong_bit_is_seen() {
        let (_, bytes) = message(7, 200);
        for bit in 0..bytes.len() * 8 {
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Reader::new().take(&wrong), Progress::Wrong, "bit {bit}");
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
        let mut reader = Reader::new();
        assert_eq!(reader.take(&bytes), Progress::Complete(first, 34));
        assert_eq!(reader.take(&bytes[34..]), Progress::Complete(second, 44));
    }
}
