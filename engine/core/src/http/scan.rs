//! Where a head ends, looked for as its bytes come in; and what is wrong with one that is no head.

use super::HEADERS_MAX;

/// What is wrong with a message, whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    BareLf,
    BodyTooLong,
    ChunkExtension,
    ChunkSize,
    ControlByte,
    EncodingInOld,
    EncodingOther,
    FieldName,
    FirstLine,
    HeadTooLong,
    LengthAndEncoding,
    LengthInvalid,
    LengthRepeated,
    ObsFold,
    SpaceBeforeColon,
    TooManyFields,
    Trailer,
    Version,
}

/// A head (or a trailer section) of which not everything has come.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    /// So many of them were looked at.
    scanned: usize,
}

/// What more bytes have made of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many of them were the rest of it.
    Whole(usize),
    /// It is not whole yet; all of them were kept.
    Part,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes what belongs to it, up to the empty line. `max` counts all of its bytes.
    pub(super) fn take(&mut self, input: &[u8], max: usize) -> Result<Taken, Fault> {
        let before = self.bytes.len();
        // One byte more than it may have shows that it is too long.
        let room = (max + 1).saturating_sub(before).min(input.len());
        self.bytes.extend_from_slice(&input[..room]);
        let end = self.find_end()?;
        match end {
            Some(end) if end <= max => {
                self.bytes.truncate(end);
                Ok(Taken::Whole(end - before))
            }
            None if self.bytes.len() <= max => Ok(Taken::Part),
            _ => Err(Fault::HeadTooLong),
        }
    }

    /// Gives its bytes up.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.scanned = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Whether its first line has come.
    pub(super) fn has_line(&self) -> bool {
        self.bytes.contains(&b'\n')
    }

    fn find_end(&mut self) -> Result<Option<usize>, Fault> {
        while let Some(found) = self.bytes[self.scanned..].iter().position(|byte| *byte == b'\n') {
            let at = self.scanned + found;
            let Some(line) = self.bytes[..at].strip_suffix(b"\r") else { return Err(Fault::BareLf) };
            self.scanned = at + 1;
            if line.is_empty() || line.ends_with(b"\n") {
                return Ok(Some(at + 1));
            }
        }
        self.scanned = self.bytes.len();
        Ok(None)
    }
}

/// Whether each LF stands behind a CR, and each CR in front of an LF.
pub(super) fn has_whole_line_ends(head: &[u8]) -> bool {
    let odd = |pair: &[u8]| (pair[0] == b'\r') != (pair[1] == b'\n');
    !head.windows(2).fold(head.first() == Some(&b'\n'), |any, pair| any | odd(pair))
}

/// The reason why httparse refuses a head.
pub(super) fn fault_of(error: httparse::Error, head: &[u8]) -> Fault {
    match error {
        httparse::Error::TooManyHeaders => Fault::TooManyFields,
        httparse::Error::Version => fault_of_version(head).unwrap_or(Fault::FirstLine),
        httparse::Error::Token | httparse::Error::Status => Fault::FirstLine,
        httparse::Error::HeaderName => fault_of_lines(head).unwrap_or(Fault::FieldName),
        httparse::Error::HeaderValue => fault_of_lines(head).unwrap_or(Fault::ControlByte),
        httparse::Error::NewLine => {
            fault_of_lines(head).or_else(|| fault_of_version(head)).unwrap_or(Fault::ControlByte)
        }
    }
}

/// What is wrong with the version in the first line: at its end in a request, at its start in a response.
fn fault_of_version(head: &[u8]) -> Option<Fault> {
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let version = match (words.next(), words.next(), words.next(), words.next()) {
        (Some(first), ..) if first.starts_with(b"HTTP/") => first,
        (_, _, Some(third), None) => third,
        _ => return Some(Fault::FirstLine),
    };
    let number = version.strip_prefix(b"HTTP/").unwrap_or_default();
    match number {
        b"1.0" | b"1.1" => None,
        [b'0'..=b'9', rest @ ..] if rest.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') => {
            Some(Fault::Version)
        }
        _ => Some(Fault::FirstLine),
    }
}

/// The first thing that is wrong with the lines behind the first one.
fn fault_of_lines(head: &[u8]) -> Option<Fault> {
    for (number, line) in head.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(text) = line.strip_suffix(b"\r\n") else {
            return if line.ends_with(b"\n") { Some(Fault::BareLf) } else { fault_of_field(line) };
        };
        if text.is_empty() || number > HEADERS_MAX {
            return None;
        }
        if number == 0 {
            continue;
        }
        if let Some(fault) = fault_of_field(text) {
            return Some(fault);
        }
    }
    None
}

fn fault_of_field(line: &[u8]) -> Option<Fault> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Some(Fault::ObsFold);
    }
    let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
    if name.ends_with(b" ") || name.ends_with(b"\t") {
        return Some(Fault::SpaceBeforeColon);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_by(sizes: usize, input: &[u8], max: usize) -> Result<(Vec<u8>, usize), Fault> {
        let mut kept = Kept::default();
        let mut consumed = 0;
        for piece in input.chunks(sizes) {
            match kept.take(piece, max)? {
                Taken::Whole(len) => return Ok((kept.finish(), consumed + len)),
                Taken::Part => consumed += piece.len(),
            }
        }
        Ok((Vec::new(), consumed))
    }

    #[test]
    fn a_head_ends_at_its_empty_line_however_it_is_cut() {
        let input = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest\r\n\r\n";
        for sizes in 1..input.len() + 1 {
            assert_eq!(take_by(sizes, input, 100), Ok((b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 27)));
        }
    }

    #[test]
    fn the_limit_counts_the_whole_head() {
        let input = b"GET / HTTP/1.1\r\n\r\n";
        for sizes in 1..input.len() + 1 {
            assert!(take_by(sizes, input, input.len()).is_ok());
            assert_eq!(take_by(sizes, input, input.len() - 1), Err(Fault::HeadTooLong));
        }
    }

    #[test]
    fn a_lone_lf_is_seen_before_the_head_is_whole() {
        for input in [b"GET / HTTP/1.1\nHost".as_slice(), b"\n", b"G: 1\r\n\n", b"G\r\r\nH\r\n\n"] {
            for sizes in 1..input.len() + 1 {
                assert_eq!(take_by(sizes, input, 100).err(), Some(Fault::BareLf), "{input:?}");
            }
        }
    }

    #[test]
    fn line_ends_are_whole_or_not() {
        for (head, whole) in
            [("a\r\nb\r\n\r\n", true), ("\n", false), ("a\n\r\n", false), ("a\rb\r\n", false), ("", true)]
        {
            assert_eq!(has_whole_line_ends(head.as_bytes()), whole, "{head:?}");
        }
    }
}
