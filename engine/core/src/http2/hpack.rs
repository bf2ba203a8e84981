//! Fields of HTTP/2, compressed (RFC 7541): read with a table of bounded size, written without one.
//!
//! What a block unpacks to is given out field by field, so that whoever takes them can stop keeping them: a block of a few kilobytes can name a long
//! field thousands of times, and here that costs a look into the table each.

use std::collections::VecDeque;

use super::huffman;

/// Bytes of the table for fields that the client has sent before: what RFC 9113 §6.5.2 begins with, and we never announce another.
pub const TABLE_BYTES_MAX: usize = 4096;
/// What each entry counts beside its name and value (RFC 7541 §4.1).
pub(super) const ENTRY_BYTES: usize = 32;

/// RFC 7541 Appendix A, from 1 on.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// A block that cannot be read. The table is lost with it, so the connection ends (RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

impl From<huffman::Damaged> for Damaged {
    fn from(_: huffman::Damaged) -> Damaged {
        Damaged
    }
}

/// Reads blocks, one after the other.
#[derive(Debug)]
pub struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    bytes: usize,
    /// What the client wants to use of [`TABLE_BYTES_MAX`].
    max: usize,
}

/// Name and value, one behind the other.
#[derive(Debug)]
struct Entry {
    text: Box<[u8]>,
    name_len: usize,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.text.len() + ENTRY_BYTES
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        self.text.split_at(self.name_len)
    }
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { entries: VecDeque::new(), bytes: 0, max: TABLE_BYTES_MAX }
    }
}

impl Decoder {
    /// Reads a whole block; `take` gets names and values in order.
    pub fn read(&mut self, block: &[u8], mut take: impl FnMut(&[u8], &[u8])) -> Result<(), Damaged> {
        let mut rest = block;
        let (mut name, mut value) = (Vec::new(), Vec::new());
        let mut fields = false;
        while let Some(&first) = rest.first() {
            match first {
                0x80.. => {
                    let index = integer(&mut rest, 7)?;
                    let (name, value) = self.field(index)?;
                    take(name, value);
                }
                0x20..0x40 => {
                    // RFC 7541 §4.2: in front of all fields.
                    let max = integer(&mut rest, 5)?;
                    if fields || max > TABLE_BYTES_MAX {
                        return Err(Damaged);
                    }
                    self.max = max;
                    self.make_room(0);
                    continue;
                }
                _ => {
                    let keeps = first >= 0x40;
                    let index = integer(&mut rest, if keeps { 6 } else { 4 })?;
                    name.clear();
                    value.clear();
                    match index {
                        0 => string(&mut rest, &mut name)?,
                        index => name.extend_from_slice(self.field(index)?.0),
                    }
                    string(&mut rest, &mut value)?;
                    take(&name, &value);
                    if keeps {
                        self.insert(&name, &value);
                    }
                }
            }
            fields = true;
        }
        Ok(())
    }

    /// Bytes of the table in use, as RFC 7541 counts them.
    pub fn table_bytes(&self) -> usize {
        self.bytes
    }

    fn field(&self, index: usize) -> Result<(&[u8], &[u8]), Damaged> {
        let index = index.checked_sub(1).ok_or(Damaged)?;
        match STATIC.get(index) {
            Some((name, value)) => Ok((name.as_bytes(), value.as_bytes())),
            None => self.entries.get(index - STATIC.len()).map(Entry::parts).ok_or(Damaged),
        }
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let bytes = name.len() + value.len() + ENTRY_BYTES;
        self.make_room(bytes);
        // One that is longer than the table empties it (RFC 7541 §4.4).
        if bytes <= self.max {
            self.bytes += bytes;
            self.entries.push_front(Entry { text: [name, value].concat().into(), name_len: name.len() });
        }
    }

    fn make_room(&mut self, bytes: usize) {
        while self.bytes + bytes > self.max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.bytes -= oldest.bytes();
        }
    }
}

/// An integer whose first octet has `bits` of it (RFC 7541 §5.1). None that means anything here needs more than four octets more.
fn integer(rest: &mut &[u8], bits: u32) -> Result<usize, Damaged> {
    let (&first, mut behind) = rest.split_first().ok_or(Damaged)?;
    let most = (1_usize << bits) - 1;
    let mut number = usize::from(first) & most;
    if number == most {
        let mut shift = 0;
        loop {
            let (&octet, next) = behind.split_first().ok_or(Damaged)?;
            behind = next;
            number += usize::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return Err(Damaged);
            }
        }
    }
    *rest = behind;
    Ok(number)
}

/// A string (RFC 7541 §5.2), appended.
fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Damaged> {
    let coded = rest.first().ok_or(Damaged)? & 0x80 != 0;
    let len = integer(rest, 7)?;
    let (text, behind) = rest.split_at_checked(len).ok_or(Damaged)?;
    *rest = behind;
    if coded {
        huffman::decode(text, out)?;
    } else {
        out.extend_from_slice(text);
    }
    Ok(())
}

/// Says that the table stays empty: in front of the first block, so that whatever size the client allows needs no answer (RFC 7541 §4.2).
pub fn write_no_table(out: &mut Vec<u8>) {
    out.push(0x20);
}

/// Writes a field. The client is to keep none of them, so that any order of blocks is right; names are in lower case already.
pub fn write(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let named = |entry: &&(usize, &(&str, &str))| entry.1.0.as_bytes() == name;
    let mut same = STATIC.iter().enumerate().filter(|entry| named(&entry));
    let first = same.clone().next();
    if let Some((at, _)) = same.find(|(_, (_, known))| !known.is_empty() && known.as_bytes() == value) {
        return write_integer(0x80, 7, at + 1, out);
    }
    // What names a session is not to be compressed by anybody on the way (RFC 7541 §7.1.3).
    let kind = if matches!(name, b"set-cookie" | b"authorization" | b"proxy-authorization") { 0x10 } else { 0 };
    match first {
        Some((at, _)) => write_integer(kind, 4, at + 1, out),
        None => {
            out.push(kind);
            write_string(name, out);
        }
    }
    write_string(value, out);
}

fn write_string(text: &[u8], out: &mut Vec<u8>) {
    write_integer(0, 7, text.len(), out);
    out.extend_from_slice(text);
}

fn write_integer(kind: u8, bits: u32, number: usize, out: &mut Vec<u8>) {
    let most = (1_usize << bits) - 1;
    if number < most {
        return out.push(kind | number as u8);
    }
    out.push(kind | most as u8);
    let mut rest = number - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, Damaged> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.read(block, |name, value| fields.push((text(name), text(value))))?;
        Ok(fields)
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex");
        digits.chunks(2).map(octet).collect()
    }

    fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn requests_of_the_rfc_are_read_in_both_forms() {
        let plain = [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ];
        let coded = [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::default();
            let first = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
            assert_eq!(read(&mut decoder, &hex(blocks[0])), Ok(pairs(&first)));
            let second = [&first[..], &[("cache-control", "no-cache")]].concat();
            assert_eq!(read(&mut decoder, &hex(blocks[1])), Ok(pairs(&second)));
            let third = [
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/index.html"),
                (":authority", "www.example.com"),
                ("custom-key", "custom-value"),
            ];
            assert_eq!(read(&mut decoder, &hex(blocks[2])), Ok(pairs(&third)));
            assert_eq!(decoder.table_bytes(), 164);
        }
    }

    #[test]
    fn old_entries_make_room_and_the_client_may_want_less() {
        // RFC 7541 C.5 with a table of 256 octets.
        let mut decoder = Decoder::default();
        let first = "3fe101 4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54\
                     6e1768747470733a2f2f7777772e6578616d706c652e636f6d";
        assert_eq!(read(&mut decoder, &hex(first)).map(|fields| fields.len()), Ok(4));
        assert_eq!(decoder.table_bytes(), 222);
        let second = read(&mut decoder, &hex("4803333037c1c0bf")).expect("whole");
        assert_eq!((&*second[0].1, &*second[3].1), ("307", "https://www.example.com"));
        assert_eq!(decoder.table_bytes(), 222);
        assert_eq!(read(&mut decoder, &[0x20]), Ok(vec![]));
        assert_eq!(decoder.table_bytes(), 0);
        assert_eq!(read(&mut decoder, &[0xbe]), Err(Damaged), "it is empty");
    }

    #[test]
    fn damage_is_told() {
        for (what, block) in [
            ("no entry has this index", "80"),
            ("an index behind the table", "be"),
            ("an integer without end", "ffffffffffffff7f"),
            ("an integer that is cut off", "ff"),
            ("a name that is cut off", "400a6375"),
            ("a value that is missing", "4001 61"),
            ("a size behind a field", "8220"),
            ("more than the table may have", "3fe21f"),
            ("a damaged string", "0082ffff00"),
        ] {
            assert_eq!(read(&mut Decoder::default(), &hex(block)), Err(Damaged), "{what}");
        }
    }

    #[test]
    fn an_entry_longer_than_the_table_empties_it() {
        let mut decoder = Decoder::default();
        read(&mut decoder, &hex("400161 0162")).expect("whole");
        assert_eq!(decoder.table_bytes(), 34);
        let mut block = vec![0x40, 1, b'a'];
        write_string(&[b'b'; TABLE_BYTES_MAX], &mut block);
        read(&mut decoder, &block).expect("whole");
        assert_eq!((decoder.table_bytes(), decoder.entries.len()), (0, 0));
    }

    #[test]
    fn what_is_written_is_read_and_leaves_nothing_in_a_table() {
        let long = "x".repeat(70_000);
        let fields = [
            (":status", "200"),
            (":status", "418"),
            ("content-type", "text/html"),
            ("set-cookie", "SERVERID=1; Path=/"),
            ("x-own", ""),
            ("x-long", &long),
            ("accept-encoding", ""),
        ];
        let mut block = Vec::new();
        write_no_table(&mut block);
        fields.iter().for_each(|(name, value)| write(name.as_bytes(), value.as_bytes(), &mut block));
        let mut decoder = Decoder::default();
        assert_eq!(read(&mut decoder, &block), Ok(pairs(&fields)));
        assert_eq!(decoder.table_bytes(), 0);
        assert_eq!(&block[..2], [0x20, 0x88]);
    }
}
