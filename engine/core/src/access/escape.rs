//! Bytes of the network in a line: none of them may end it, forge a field, or reach a terminal as a command.

const HEX: [u8; 16] = *b"0123456789ABCDEF";

/// How bytes are written that are not to stand for themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escape {
    /// `#0A`, as HAProxy does; blanks as well outside of quotes.
    Hash {
        /// Whether it stands in quotes.
        quoted: bool,
    },
    /// `\u000A`, within a text of JSON. Bytes above 127 are told one by one, as `\u0080` to `\u00FF`.
    Json,
    /// `\x0A`, as nginx does.
    Slash,
}

impl Escape {
    /// Whether this byte stands for itself.
    fn keeps(self, byte: u8) -> bool {
        let is_plain = (b' '..=b'~').contains(&byte);
        is_plain
            && match self {
                Escape::Hash { quoted } => !matches!(byte, b'"' | b'#') && (quoted || byte != b' '),
                Escape::Json | Escape::Slash => !matches!(byte, b'"' | b'\\'),
            }
    }

    /// Appends `bytes` as they are written.
    pub(super) fn put(self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|byte| !self.keeps(*byte)) {
            out.extend_from_slice(&rest[..at]);
            let byte = rest[at];
            out.extend_from_slice(match self {
                Escape::Hash { .. } => b"#",
                Escape::Json => b"\\u00",
                Escape::Slash => b"\\x",
            });
            out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            rest = &rest[at + 1..];
        }
        out.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_of_the_network_ends_a_line_or_a_field() {
        let every: Vec<u8> = (0..=255).collect();
        for escape in [Escape::Hash { quoted: false }, Escape::Hash { quoted: true }, Escape::Json, Escape::Slash] {
            let mut out = Vec::new();
            escape.put(&every, &mut out);
            assert!(out.iter().all(|byte| (b' '..=b'~').contains(byte)), "{escape:?}");
            assert!(!out.contains(&b'"'), "{escape:?}");
            assert_eq!(out.contains(&b' '), escape != Escape::Hash { quoted: false });
            // Nothing is lost, and nothing means two things.
            let mut back = Vec::new();
            let mut rest = &out[..];
            let (mark, len) = match escape {
                Escape::Hash { .. } => (b'#', 1),
                Escape::Json => (b'\\', 4),
                Escape::Slash => (b'\\', 2),
            };
            while let Some((first, more)) = rest.split_first() {
                if *first == mark {
                    let digits = std::str::from_utf8(&more[len - 1..len + 1]).unwrap();
                    back.push(u8::from_str_radix(digits, 16).unwrap());
                    rest = &more[len + 1..];
                } else {
                    back.push(*first);
                    rest = more;
                }
            }
            assert_eq!(back, every, "{escape:?}");
        }
    }

    #[test]
    fn each_format_has_its_own_escapes() {
        let put = |escape: Escape| {
            let mut out = Vec::new();
            escape.put(b"a \"#\\\n\xe9", &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(put(Escape::Hash { quoted: true }), "a #22#23\\#0A#E9");
        assert_eq!(put(Escape::Hash { quoted: false }), "a#20#22#23\\#0A#E9");
        assert_eq!(put(Escape::Json), "a \\u0022#\\u005C\\u000A\\u00E9");
        assert_eq!(put(Escape::Slash), "a \\x22#\\x5C\\x0A\\xE9");
    }
}
