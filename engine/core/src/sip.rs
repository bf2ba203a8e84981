//! The `Call-ID` of a SIP message (RFC 3261 §20.8): what belongs to one call or registration has the same one.
//!
//! Reads as far as that header and no further: what the message means is its server's business.

/// Bytes in which the header must have come; a message that has it later has none for us.
pub const SIP_BYTES_MAX: usize = 16 * 1024;

/// Longest line up to its name's colon, and longest first line that is looked for a version.
const LINE_BYTES_MAX: usize = 4 * 1024;

/// What the first bytes of a stream, or a datagram, are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SipPeek<'a> {
    /// Not SIP, without a `Call-ID`, or too long.
    Foreign,
    /// The `Call-ID`, as it is compared: byte by byte, with its case (RFC 3261 §8.1.1.4).
    CallId(&'a [u8]),
    /// As far as they go, the beginning of a message.
    Incomplete,
}

/// Judges the first `bytes` of a stream, or a datagram; of a stream asked again when there are more.
///
/// Empty lines in front are those of keep-alives (RFC 3261 §7.5, RFC 5626 §3.5.1). A single LF ends a line, too: whoever sends it is understood by most
/// servers, and only the server's choice depends on it.
pub fn peek(bytes: &[u8]) -> SipPeek<'_> {
    let within = bytes.get(..SIP_BYTES_MAX).unwrap_or(bytes);
    match read(within) {
        SipPeek::Incomplete if bytes.len() >= SIP_BYTES_MAX => SipPeek::Foreign,
        told => told,
    }
}

fn read(bytes: &[u8]) -> SipPeek<'_> {
    let start = bytes.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(bytes.len());
    let mut rest = &bytes[start..];
    let first_bytes = rest.iter().position(|byte| *byte == b'\n').map_or(rest, |end| &rest[..end]);
    let is_text = |byte: &u8| (b' '..=b'~').contains(byte) || *byte >= 0x80 || *byte == b'\r';
    if first_bytes.len() >= LINE_BYTES_MAX || !first_bytes.iter().all(is_text) {
        return SipPeek::Foreign;
    }
    match line(rest) {
        None => return SipPeek::Incomplete,
        Some((first, _)) if !is_first_line(first) => return SipPeek::Foreign,
        Some((_, after)) => rest = after,
    }
    loop {
        let Some((header, after)) = line(rest) else { return SipPeek::Incomplete };
        if header.is_empty() {
            return SipPeek::Foreign;
        }
        if let Some(value) = call_id(header) {
            if !value.is_empty() {
                return SipPeek::CallId(value);
            }
            // It may be on the next line, if that begins with a blank (RFC 3261 §7.3.1).
            return match line(after) {
                None => SipPeek::Incomplete,
                Some((folded, _)) if folded.starts_with(b" ") || folded.starts_with(b"\t") => {
                    let value = folded.trim_ascii();
                    if value.is_empty() { SipPeek::Foreign } else { SipPeek::CallId(value) }
                }
                Some(_) => SipPeek::Foreign,
            };
        }
        rest = after;
    }
}

/// `METHOD uri SIP/2.0` or `SIP/2.0 200 OK` (RFC 3261 §7.1, §7.2).
fn is_first_line(line: &[u8]) -> bool {
    const VERSION: &[u8] = b"SIP/2.0";
    let begins = line.get(..VERSION.len()).is_some_and(|start| start.eq_ignore_ascii_case(VERSION));
    let ends = line.rsplit(|byte| *byte == b' ').next().is_some_and(|last| last.eq_ignore_ascii_case(VERSION));
    begins || ends
}

/// The value, if it is this header; its compact form is `i` (RFC 3261 §7.3.3).
fn call_id(header: &[u8]) -> Option<&[u8]> {
    let colon = header.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b':')?;
    let name = header[..colon].trim_ascii_end();
    let is_it = name.eq_ignore_ascii_case(b"Call-ID") || name.eq_ignore_ascii_case(b"i");
    is_it.then(|| header[colon + 1..].trim_ascii())
}

/// The first line without its end, and what follows; `None` where it has not ended.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let text = &bytes[..end];
    Some((text.strip_suffix(b"\r").unwrap_or(text), &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INVITE: &str =
        "INVITE sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/TCP pc33.example.org;branch=z9hG4bK776\r\n";

    #[test]
    fn the_call_id_is_found_however_it_is_spelt() {
        let rows = [
            ("Call-ID: a84b4c76e66710@pc33.example.org\r\n", "a84b4c76e66710@pc33.example.org"),
            ("call-id:a\r\n", "a"),
            ("CALL-ID \t:  a  \r\n", "a"),
            ("i: a\r\n", "a"),
            ("I:a\n", "a"),
            ("From: x\r\ni: a\r\nCall-ID: b\r\n", "a"),
            ("Call-ID:\r\n a\r\n", "a"),
            ("Subject: Call-ID\r\n i: no\r\nCall-ID: Case@Counts\r\n", "Case@Counts"),
        ];
        for (headers, id) in rows {
            let text = format!("{INVITE}{headers}");
            assert_eq!(peek(text.as_bytes()), SipPeek::CallId(id.as_bytes()), "{headers}");
        }
        for first in
            ["SIP/2.0 200 OK", "sip/2.0 180 Ringing", "OPTIONS sip:a SIP/2.0", "\r\n\r\nREGISTER sip:a sip/2.0"]
        {
            let text = format!("{first}\r\nCall-ID: a\r\n");
            assert_eq!(peek(text.as_bytes()), SipPeek::CallId(b"a"), "{first}");
        }
    }

    #[test]
    fn what_is_not_sip_is_told_as_soon_as_it_is_seen() {
        let rows: [&[u8]; 7] = [
            b"GET / HTTP/1.1\r\n",
            &[22, 3, 1, 2, 0, 1],
            &[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42],
            b"INVITE sip:a SIP/3.0\r\n",
            b"INVITE sip:a SIP/2.0\r\nVia: x\r\n\r\nCall-ID: in the body\r\n",
            b"INVITE sip:a SIP/2.0\r\nCall-ID:\r\nVia: x\r\n",
            b"INVITE sip:a SIP/2.0\r\nCall-ID:\r\n \r\n",
        ];
        for bytes in rows {
            assert_eq!(peek(bytes), SipPeek::Foreign, "{}", bytes.escape_ascii());
        }
        let long = format!("INVITE sip:{} SIP/2.0", "a".repeat(LINE_BYTES_MAX));
        assert_eq!(peek(long.as_bytes()), SipPeek::Foreign);
        let long = format!("{INVITE}Subject: {}\r\nCall-ID: a\r\n", "a".repeat(SIP_BYTES_MAX));
        assert_eq!(peek(long.as_bytes()), SipPeek::Foreign);
    }

    #[test]
    fn every_beginning_is_incomplete() {
        let text = format!("\r\n{INVITE}Call-ID:\r\n a\r\n");
        for end in 0..text.len() {
            assert_eq!(peek(&text.as_bytes()[..end]), SipPeek::Incomplete, "{end}");
        }
        assert_eq!(peek(text.as_bytes()), SipPeek::CallId(b"a"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// More bytes never change what was told.
        #[test]
        fn what_was_told_stays(text in "(INVITE a SIP/2.0|SIP/2.0 200 OK|i|Call-ID|:| |a|\r\n|\n|\x00)*", cut in 0usize..100) {
            let bytes = text.as_bytes();
            let before = peek(&bytes[..cut.min(bytes.len())]);
            if before != SipPeek::Incomplete {
                prop_assert_eq!(peek(bytes), before);
            }
        }
    }
}
