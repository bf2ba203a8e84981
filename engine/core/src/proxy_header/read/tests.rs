use super::*;
use crate::proxy_header::{About, AboutTls, local, write};
use towpath_config::model::ProxyVersion;

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn proxied(source: &str, destination: &str) -> Said {
    Said::Proxied { source: socket(source), destination: socket(destination) }
}

/// Version 2 with this command, family and block.
fn v2_of(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut bytes = V2_SIGNATURE.to_vec();
    bytes.extend([command, family]);
    bytes.extend((block.len() as u16).to_be_bytes());
    bytes.extend(block);
    bytes
}

const BLOCK_V4: [u8; 12] = [192, 0, 2, 9, 198, 51, 100, 7, 0x30, 0x39, 0x01, 0xbb];

#[test]
fn headers_of_version_1_say_who_the_client_is() {
    let v4 = proxied("192.0.2.9:12345", "198.51.100.7:443");
    for (line, said) in [
        ("PROXY TCP4 192.0.2.9 198.51.100.7 12345 443\r\n", v4),
        ("PROXY TCP6 2001:db8::1 2001:db8::2 0 65535\r\n", proxied("[2001:db8::1]:0", "[2001:db8::2]:65535")),
        // As a proxy that listens for both families has it.
        ("PROXY TCP6 ::ffff:192.0.2.9 ::ffff:198.51.100.7 12345 443\r\n", v4),
        ("PROXY UNKNOWN\r\n", Said::Own),
        ("PROXY UNKNOWN ffff:ffff whatever 1\r\n", Said::Own),
    ] {
        let mut bytes = line.as_bytes().to_vec();
        assert_eq!(read(&bytes), Ok(Some(Header { len: line.len(), said })), "{line:?}");
        bytes.extend(b"GET / HTTP/1.1\r\n");
        assert_eq!(read(&bytes), Ok(Some(Header { len: line.len(), said })), "{line:?}");
        for len in 0..line.len() {
            assert_eq!(read(&bytes[..len]), Ok(None), "{len} bytes of {line:?}");
        }
    }
}

#[test]
fn what_is_no_header_of_version_1_is_refused() {
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX - 16));
    assert_eq!(long.len(), V1_BYTES_MAX);
    assert_eq!(read(long.as_bytes()).map(|header| header.map(|header| header.len)), Ok(Some(V1_BYTES_MAX)));
    let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX - 15));
    for (line, bad) in [
        (&*too_long, BadHeader::TooLong),
        (&"PROXY UNKNOWN ".repeat(20), BadHeader::TooLong),
        ("GET / HTTP/1.1\r\n", BadHeader::Start),
        ("proxy TCP4 192.0.2.9 198.51.100.7 12345 443\r\n", BadHeader::Start),
        ("PROXYTCP4 192.0.2.9 198.51.100.7 12345 443\r\n", BadHeader::Start),
        ("\x16\x03\x01", BadHeader::Start),
        ("PROXY TCP4 192.0.2.9 198.51.100.7 12345 443\n", BadHeader::Address),
        ("PROXY TCP4 192.0.2.9 198.51.100.7 12345 443\rx", BadHeader::Address),
        ("PROXY TCP4  192.0.2.9 198.51.100.7 12345 443\r\n", BadHeader::Address),
        ("PROXY TCP4 192.0.2.9 198.51.100.7 12345 443 \r\n", BadHeader::Address),
        ("PROXY TCP4 192.0.2.9 198.51.100.7 12345\r\n", BadHeader::Address),
        ("PROXY TCP4 192.0.2.9 198.51.100.7 012345 443\r\n", BadHeader::Address),
        ("PROXY TCP4 192.0.2.9 198.51.100.7 +1 443\r\n", BadHeader::Address),
        ("PROXY TCP4 192.0.2.9 198.51.100.7 65536 443\r\n", BadHeader::Address),
        ("PROXY TCP4 192.0.2.09 198.51.100.7 1 443\r\n", BadHeader::Address),
        ("PROXY TCP4 192.0.2.9 2001:db8::1 1 443\r\n", BadHeader::Address),
        ("PROXY TCP6 192.0.2.9 198.51.100.7 1 443\r\n", BadHeader::Address),
        ("PROXY TCP6 2001:db8::1%lo 2001:db8::2 1 443\r\n", BadHeader::Address),
        ("PROXY TCP4 192.0.2.9\t198.51.100.7 1 443\r\n", BadHeader::Address),
        ("PROXY UDP4 192.0.2.9 198.51.100.7 1 443\r\n", BadHeader::Family),
        ("PROXY UNKNOWNX 192.0.2.9 198.51.100.7 1 443\r\n", BadHeader::Family),
        ("PROXY \r\n", BadHeader::Address),
    ] {
        assert_eq!(read(line.as_bytes()), Err(bad), "{line:?}");
    }
    assert_eq!(read(b"PROXY TCP4 \xff 198.51.100.7 1 443\r\n"), Err(BadHeader::Address));
}

#[test]
fn headers_of_version_2_say_who_the_client_is() {
    let v4 = proxied("192.0.2.9:12345", "198.51.100.7:443");
    let mut v6 = [0; 36];
    v6[..2].copy_from_slice(&[0x20, 0x01]);
    v6[31] = 7;
    v6[33] = 80;
    let with_rest = [&BLOCK_V4[..], &[0xee, 0, 3, b'a', b'b', b'c', 0x04, 0, 0]].concat();
    for (name, bytes, said) in [
        ("IPv4", v2_of(PROXY, 0x11, &BLOCK_V4), v4),
        ("IPv6", v2_of(PROXY, 0x21, &v6), proxied("[2001::]:80", "[::7]:0")),
        ("more behind the addresses", v2_of(PROXY, 0x11, &with_rest), v4),
        ("a check of the proxy's", v2_of(LOCAL, 0, &[]), Said::Own),
        ("one with a family, which is ignored", v2_of(LOCAL, 0xff, b"whatever"), Said::Own),
        ("unspecified", v2_of(PROXY, 0, &[]), Said::Own),
        ("unspecified, with addresses all the same", v2_of(PROXY, 1, &BLOCK_V4), Said::Own),
        ("paths", v2_of(PROXY, 0x31, &[0; 216]), Said::Own),
    ] {
        let len = bytes.len();
        assert_eq!(read(&bytes), Ok(Some(Header { len, said })), "{name}");
        let longer = [&bytes[..], b"\x16\x03\x01"].concat();
        assert_eq!(read(&longer), Ok(Some(Header { len, said })), "{name}");
        for len in 0..len {
            assert_eq!(read(&bytes[..len]), Ok(None), "{name}: {len} bytes");
        }
    }
}

#[test]
fn what_is_no_header_of_version_2_is_refused() {
    let with = |more: &[u8]| v2_of(PROXY, 0x11, &[&BLOCK_V4[..], more].concat());
    let mut signature = v2_of(PROXY, 0x11, &BLOCK_V4);
    signature[11] = b'\r';
    let mut long = v2_of(PROXY, 0x11, &BLOCK_V4);
    long[14..16].copy_from_slice(&4097u16.to_be_bytes());
    for (name, bytes, bad) in [
        ("another signature", signature, BadHeader::Start),
        ("too long", long, BadHeader::TooLong),
        ("version 1", v2_of(0x11, 0x11, &BLOCK_V4), BadHeader::Command),
        ("an unknown command", v2_of(0x22, 0x11, &BLOCK_V4), BadHeader::Command),
        ("datagrams", v2_of(PROXY, 0x12, &BLOCK_V4), BadHeader::Family),
        ("an unknown family", v2_of(PROXY, 0x41, &[0; 216]), BadHeader::Family),
        ("an unknown protocol", v2_of(PROXY, 0x13, &BLOCK_V4), BadHeader::Family),
        ("no protocol", v2_of(PROXY, 0x10, &BLOCK_V4), BadHeader::Family),
        ("too short for its addresses", v2_of(PROXY, 0x11, &BLOCK_V4[..11]), BadHeader::Length),
        ("too short for IPv6", v2_of(PROXY, 0x21, &[0; 35]), BadHeader::Length),
        ("too short for paths", v2_of(PROXY, 0x31, &[0; 215]), BadHeader::Length),
        ("a byte behind the addresses", with(&[4]), BadHeader::Length),
        ("a value beyond the end", with(&[4, 0, 2, 0]), BadHeader::Length),
        ("a checksum of three bytes", with(&[TYPE_CRC32C, 0, 3, 0, 0, 0]), BadHeader::Length),
        ("a wrong checksum", with(&[TYPE_CRC32C, 0, 4, 0, 0, 0, 0]), BadHeader::Checksum),
    ] {
        assert_eq!(read(&bytes), Err(bad), "{name}");
    }
}

#[test]
fn a_checksum_is_checked_and_every_changed_bit_noticed() {
    let mut bytes =
        v2_of(PROXY, 0x11, &[&BLOCK_V4[..], &[0xee, 0, 1, 7, TYPE_CRC32C, 0, 4, 0, 0, 0, 0, 4, 0, 1, 0]].concat());
    let at = bytes.len() - 8;
    let sum = crc32c(bytes.iter().copied());
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    assert!(matches!(read(&bytes), Ok(Some(_))));
    for place in V2_SIGNATURE.len()..bytes.len() {
        for bit in 0..8 {
            let mut other = bytes.clone();
            other[place] ^= 1 << bit;
            // The very header type and length: then there is no checksum to be found, or another family.
            let read = read(&other);
            let is_lost = matches!(read, Ok(Some(Header { said: Said::Own, .. })) | Ok(None));
            let unchecked = place == at - 3 && matches!(read, Ok(Some(_)));
            assert!(read.is_err() || is_lost || unchecked, "bit {bit} of byte {place}: {read:?}");
        }
    }
}

#[test]
fn what_is_written_is_read_as_it_was_meant() {
    let tls = AboutTls {
        version: "TLSv1.3",
        cipher: "TLS13_AES_128_GCM_SHA256",
        has_certificate: true,
        alpn: Some(b"http/1.1"),
        authority: Some("mail.example.org"),
    };
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        for (source, destination) in [
            ("192.0.2.9:12345", "198.51.100.7:443"),
            ("[2001:db8::1]:1", "[2001:db8::2]:65535"),
            ("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff1]:65535", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff2]:65535"),
        ] {
            for tls in [None, Some(tls)] {
                let mut bytes = Vec::new();
                write(version, &About { source: socket(source), destination: socket(destination), tls }, &mut bytes);
                let said = proxied(source, destination);
                assert_eq!(read(&bytes), Ok(Some(Header { len: bytes.len(), said })), "{version:?} {tls:?}");
            }
        }
        // Of two families in one header the shorter one is told as the longer.
        let mut bytes = Vec::new();
        let (source, destination) = (socket("192.0.2.9:1"), socket("[2001:db8::2]:2"));
        write(version, &About { source, destination, tls: None }, &mut bytes);
        assert_eq!(read(&bytes).unwrap().unwrap().said, Said::Proxied { source, destination });
        bytes.clear();
        local(version, &mut bytes);
        assert_eq!(read(&bytes), Ok(Some(Header { len: bytes.len(), said: Said::Own })));
    }
}
