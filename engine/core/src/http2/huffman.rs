//! The Huffman code of HPACK (RFC 7541 Appendix B). It is canonical: codes of one length follow each other in the order of their symbols, so the
//! lengths say everything.

/// Bits of each octet's code.
const BITS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, //
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, //
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, //
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, //
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, //
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, //
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, //
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, //
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, //
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, //
];
/// The longest code; the one that ends a string has as many bits and the last place.
const BITS_MAX: usize = 30;
/// What fills the last octet is shorter than an octet, and a beginning of the code that ends a string: ones.
const FILL_BITS_MAX: usize = 7;

/// Codes of one length: the first, how many, and where their symbols stand.
#[derive(Clone, Copy)]
struct Row {
    first: u32,
    count: u32,
    at: u32,
}

const TABLE: ([Row; BITS_MAX + 1], [u8; 256]) = table();

const fn table() -> ([Row; BITS_MAX + 1], [u8; 256]) {
    let mut rows = [Row { first: 0, count: 0, at: 0 }; BITS_MAX + 1];
    let mut symbols = [0; 256];
    let (mut code, mut at, mut bits) = (0_u32, 0, 1);
    while bits <= BITS_MAX {
        code <<= 1;
        rows[bits] = Row { first: code, count: 0, at: at as u32 };
        let mut symbol = 0;
        while symbol < 256 {
            if BITS[symbol] as usize == bits {
                symbols[at] = symbol as u8;
                at += 1;
                code += 1;
                rows[bits].count += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    (rows, symbols)
}

/// A string that is no code, that ends amid one, or that says that it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// Appends what `coded` says.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), Damaged> {
    let (rows, symbols) = &TABLE;
    let (mut code, mut bits) = (0_u32, 0);
    for octet in coded {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(octet >> shift & 1);
            bits += 1;
            let row = rows[bits];
            if let Some(place) = code.checked_sub(row.first).filter(|place| *place < row.count) {
                out.push(symbols[(row.at + place) as usize]);
                (code, bits) = (0, 0);
            } else if bits == BITS_MAX {
                return Err(Damaged);
            }
        }
    }
    let ones = (1_u32 << bits) - 1;
    if bits <= FILL_BITS_MAX && code == ones { Ok(()) } else { Err(Damaged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541 Appendix C.4 and C.6.
    const STRINGS: [(&str, &[u8]); 6] = [
        ("www.example.com", &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]),
        ("no-cache", &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
        ("custom-key", &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f]),
        ("302", &[0x64, 0x02]),
        ("private", &[0xae, 0xc3, 0x77, 0x1a, 0x4b]),
        (
            "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            &[
                0x94, 0xe7, 0x82, 0x1d, 0xd7, 0xf2, 0xe6, 0xc7, 0xb3, 0x35, 0xdf, 0xdf, 0xcd, 0x5b, 0x39, 0x60, 0xd5,
                0xaf, 0x27, 0x08, 0x7f, 0x36, 0x72, 0xc1, 0xab, 0x27, 0x0f, 0xb5, 0x29, 0x1f, 0x95, 0x87, 0x31, 0x60,
                0x65, 0xc0, 0x03, 0xed, 0x4e, 0xe5, 0xb1, 0x06, 0x3d, 0x50, 0x07,
            ],
        ),
    ];

    #[test]
    fn strings_of_the_rfc_are_read() {
        for (text, coded) in STRINGS {
            let mut out = Vec::new();
            assert_eq!(decode(coded, &mut out), Ok(()), "{text}");
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn the_code_is_complete() {
        // Kraft's sum, with the code that ends a string.
        let sum: u64 = BITS.iter().map(|bits| 1_u64 << (BITS_MAX - usize::from(*bits))).sum();
        assert_eq!(sum + 1, 1 << BITS_MAX);
    }

    #[test]
    fn ends_amid_a_code_and_said_ends_are_damage() {
        for coded in [&[0xff][..], &[0xff, 0xff, 0xff, 0xff], &[0x00], &[0x64, 0x02, 0xff], &[0x65]] {
            assert_eq!(decode(coded, &mut Vec::new()), Err(Damaged), "{coded:x?}");
        }
        assert_eq!(decode(&[], &mut Vec::new()), Ok(()));
    }
}
