//! What we say of our client to a real server.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use towpath_config::model::ProxyVersion;

use super::{
    INET, INET6, LOCAL, PROXY, STREAM, SUBTYPE_SSL_CIPHER, SUBTYPE_SSL_VERSION, TYPE_ALPN, TYPE_AUTHORITY, TYPE_SSL,
    V2_SIGNATURE,
};

/// Longest value of one entry: a name of a host, or of a cipher suite, is shorter.
const VALUE_BYTES_MAX: usize = 255;

// `client` of an entry about TLS (§2.2.6).
const CLIENT_SSL: u8 = 1;
const CLIENT_CERTIFICATE: u8 = 2;

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About<'a> {
    /// Where the client is.
    pub source: SocketAddr,
    /// Where it has connected to.
    pub destination: SocketAddr,
    /// TLS that is ended here; version 1 cannot say it.
    pub tls: Option<AboutTls<'a>>,
}

/// What is told of a client's TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AboutTls<'a> {
    /// As OpenSSL calls it, `TLSv1.3`.
    pub version: &'a str,
    /// The name of the cipher suite.
    pub cipher: &'a str,
    /// The client has shown a certificate, which was verified.
    pub has_certificate: bool,
    /// The application protocol agreed on.
    pub alpn: Option<&'a [u8]>,
    /// The name that the client has asked for.
    pub authority: Option<&'a str>,
}

/// Appends the header for a client's connection.
pub fn write(version: ProxyVersion, about: &About<'_>, out: &mut Vec<u8>) {
    let (source, destination) = (about.source, about.destination);
    let is_v4 = source.is_ipv4() && destination.is_ipv4();
    let (from, to) = (family(source.ip(), is_v4), family(destination.ip(), is_v4));
    match version {
        ProxyVersion::V1 => {
            let word = if is_v4 { "TCP4" } else { "TCP6" };
            // Writing into memory does not fail.
            let _ = write!(out, "PROXY {word} {from} {to} {} {}\r\n", source.port(), destination.port());
        }
        ProxyVersion::V2 => block(PROXY, (if is_v4 { INET } else { INET6 }) << 4 | STREAM, out, |out| {
            for address in [from, to] {
                match address {
                    IpAddr::V4(address) => out.extend(address.octets()),
                    IpAddr::V6(address) => out.extend(address.octets()),
                }
            }
            out.extend(source.port().to_be_bytes());
            out.extend(destination.port().to_be_bytes());
            if let Some(tls) = &about.tls {
                about_tls(tls, out);
            }
        }),
    }
}

/// Appends the header for a connection of our own, as a health check's: of version 2 it says so, of version 1 nothing.
pub fn local(version: ProxyVersion, out: &mut Vec<u8>) {
    match version {
        ProxyVersion::V1 => out.extend(b"PROXY UNKNOWN\r\n"),
        ProxyVersion::V2 => block(LOCAL, 0, out, |_| {}),
    }
}

/// One family for both: IPv4 beside IPv6 is told as what it is mapped to (RFC 4291 §2.5.5.2).
fn family(address: IpAddr, is_v4: bool) -> IpAddr {
    match address {
        IpAddr::V4(address) if !is_v4 => IpAddr::V6(address.to_ipv6_mapped()),
        address => address,
    }
}

/// Version 2 with this command and family; `fill` appends what its length counts.
fn block(command: u8, family: u8, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend(V2_SIGNATURE);
    out.extend([command, family]);
    counted(out, fill);
}

/// Two bytes that say how long what `fill` appends is.
fn counted(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0, 0]);
    fill(out);
    // Every value is short, and they are few.
    let len = (out.len() - at - 2) as u16;
    out[at..at + 2].copy_from_slice(&len.to_be_bytes());
}

fn about_tls(tls: &AboutTls<'_>, out: &mut Vec<u8>) {
    let entry = |kind: u8, value: &[u8], out: &mut Vec<u8>| {
        out.push(kind);
        counted(out, |out| out.extend(&value[..value.len().min(VALUE_BYTES_MAX)]));
    };
    if let Some(alpn) = tls.alpn {
        entry(TYPE_ALPN, alpn, out);
    }
    if let Some(authority) = tls.authority {
        entry(TYPE_AUTHORITY, authority.as_bytes(), out);
    }
    out.push(TYPE_SSL);
    counted(out, |out| {
        out.push(if tls.has_certificate { CLIENT_SSL | CLIENT_CERTIFICATE } else { CLIENT_SSL });
        // 0 where a certificate was shown and verified.
        out.extend(u32::from(!tls.has_certificate).to_be_bytes());
        entry(SUBTYPE_SSL_VERSION, tls.version.as_bytes(), out);
        entry(SUBTYPE_SSL_CIPHER, tls.cipher.as_bytes(), out);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let about = About {
            source: "192.0.2.9:12345".parse().unwrap(),
            destination: "198.51.100.7:443".parse().unwrap(),
            tls: None,
        };
        let mut out = Vec::new();
        write(ProxyVersion::V1, &about, &mut out);
        assert_eq!(out, b"PROXY TCP4 192.0.2.9 198.51.100.7 12345 443\r\n");
        out.clear();
        let tls = AboutTls {
            version: "TLSv1.2",
            cipher: "X",
            has_certificate: false,
            alpn: Some(b"h2"),
            authority: Some("a.b"),
        };
        write(ProxyVersion::V2, &About { tls: Some(tls), ..about }, &mut out);
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x2d\xc0\0\x02\x09\xc6\x33\x64\x07\x30\x39\x01\xbb".to_vec();
        expected.extend(b"\x01\0\x02h2\x02\0\x03a.b\x20\0\x13\x01\0\0\0\x01\x21\0\x07TLSv1.2\x23\0\x01X");
        assert_eq!(out, expected);
        out.clear();
        local(ProxyVersion::V1, &mut out);
        assert_eq!(out, b"PROXY UNKNOWN\r\n");
        out.clear();
        local(ProxyVersion::V2, &mut out);
        assert_eq!(out, b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0");
    }
}
