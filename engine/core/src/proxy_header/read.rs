//! What a proxy in front says of its client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::crc32c::crc32c;
use super::{
    ANY_PROTOCOL, INET, INET6, LOCAL, PROXY, STREAM, TYPE_CRC32C, UNIX, UNSPECIFIED, V1_BYTES_MAX, V2_BYTES_MAX,
    V2_FIXED_BYTES, V2_SIGNATURE,
};

/// What version 1 begins with (§2.1).
const V1_START: &[u8] = b"PROXY ";

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// So many bytes; what follows is the client's.
    pub len: usize,
    /// What it says.
    pub said: Said,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The proxy's own, or of somebody whose address it does not know: the ends of the connection itself count.
    Own,
    /// A client's.
    Proxied {
        /// Where the client is.
        source: SocketAddr,
        /// Where it has connected to.
        destination: SocketAddr,
    },
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// An address or a port is not one, or not written as it has to be.
    Address,
    /// The checksum is another.
    Checksum,
    /// The command or the version is unknown.
    Command,
    /// The family or the protocol is unknown, or is none of a stream.
    Family,
    /// The block is shorter than what has to be in it, or something in it goes beyond its end.
    Length,
    /// It does not begin as one.
    Start,
    /// It is longer than is allowed.
    TooLong,
}

/// Reads the header at the start of `bytes`; `None` = as far as they go they are one, and more are needed.
pub fn read(bytes: &[u8]) -> Result<Option<Header>, BadHeader> {
    if begins(bytes, V1_START) {
        return v1(bytes);
    }
    if begins(bytes, &V2_SIGNATURE) {
        return v2(bytes);
    }
    Err(BadHeader::Start)
}

/// Whether `bytes` begin with `start`, as far as they go.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    let len = bytes.len().min(start.len());
    bytes[..len] == start[..len]
}

fn v1(bytes: &[u8]) -> Result<Option<Header>, BadHeader> {
    let within = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(at) = within.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if within.len() == V1_BYTES_MAX { Err(BadHeader::TooLong) } else { Ok(None) };
    };
    match within[at..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if within.len() < V1_BYTES_MAX => return Ok(None),
        [b'\r'] => return Err(BadHeader::TooLong),
        _ => return Err(BadHeader::Address),
    }
    let Some(line) = within[..at].strip_prefix(V1_START) else { return Err(BadHeader::Start) };
    let said = if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        // What follows is to be ignored (§2.1).
        Said::Own
    } else {
        let line = std::str::from_utf8(line).map_err(|_| BadHeader::Address)?;
        v1_addresses(line)?
    };
    Ok(Some(Header { len: at + 2, said }))
}

fn v1_addresses(line: &str) -> Result<Said, BadHeader> {
    let mut words = line.split(' ');
    let mut next = || words.next().ok_or(BadHeader::Address);
    let family = next()?;
    let (source, destination) = (next()?, next()?);
    let (source_port, destination_port) = (port(next()?)?, port(next()?)?);
    if words.next().is_some() {
        return Err(BadHeader::Address);
    }
    let address = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| BadHeader::Address),
        "TCP6" => text.parse::<Ipv6Addr>().map(|address| address.to_canonical()).map_err(|_| BadHeader::Address),
        _ => Err(BadHeader::Family),
    };
    Ok(Said::Proxied {
        source: SocketAddr::new(address(source)?, source_port),
        destination: SocketAddr::new(address(destination)?, destination_port),
    })
}

/// Digits only, and no zero in front of others (§2.1).
fn port(text: &str) -> Result<u16, BadHeader> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain).ok_or(BadHeader::Address)
}

fn v2(bytes: &[u8]) -> Result<Option<Header>, BadHeader> {
    let Some(fixed) = bytes.get(..V2_FIXED_BYTES) else { return Ok(None) };
    let (command, family, protocol) = (fixed[12], fixed[13] >> 4, fixed[13] & 15);
    let len = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if !matches!(command, LOCAL | PROXY) {
        return Err(BadHeader::Command);
    }
    if len > V2_BYTES_MAX {
        return Err(BadHeader::TooLong);
    }
    let Some(header) = bytes.get(..len) else { return Ok(None) };
    if command == LOCAL {
        // Everything behind it is to be discarded (§2.2).
        return Ok(Some(Header { len, said: Said::Own }));
    }
    let block = &header[V2_FIXED_BYTES..];
    let (said, addresses) = match (family, protocol) {
        // Whatever the block has is to be ignored (§2.2).
        (UNSPECIFIED, ANY_PROTOCOL | STREAM) => return Ok(Some(Header { len, said: Said::Own })),
        (INET, STREAM) => (proxied::<4>(block)?, 12),
        (INET6, STREAM) => (proxied::<16>(block)?, 36),
        // Two paths, which are nobody's address here.
        (UNIX, STREAM) => (Said::Own, 216),
        _ => return Err(BadHeader::Family),
    };
    if block.len() < addresses {
        return Err(BadHeader::Length);
    }
    check_rest(header, V2_FIXED_BYTES + addresses)?;
    Ok(Some(Header { len, said }))
}

/// Two addresses of so many bytes, and two ports.
fn proxied<const BYTES: usize>(block: &[u8]) -> Result<Said, BadHeader>
where
    IpAddr: From<[u8; BYTES]>,
{
    let address = |at: usize| {
        let bytes = block.get(at..at + BYTES).and_then(|bytes| <[u8; BYTES]>::try_from(bytes).ok());
        bytes.map(|bytes| IpAddr::from(bytes).to_canonical()).ok_or(BadHeader::Length)
    };
    let port = |at: usize| match block.get(at..at + 2) {
        Some([high, low]) => Ok(u16::from_be_bytes([*high, *low])),
        _ => Err(BadHeader::Length),
    };
    Ok(Said::Proxied {
        source: SocketAddr::new(address(0)?, port(2 * BYTES)?),
        destination: SocketAddr::new(address(BYTES)?, port(2 * BYTES + 2)?),
    })
}

/// What follows the addresses has to fill the block, and a checksum in it has to be right (§2.2.3); everything else is passed over.
fn check_rest(header: &[u8], mut at: usize) -> Result<(), BadHeader> {
    let mut is_checked = false;
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else { return Err(BadHeader::Length) };
        let start = at + 3;
        let end = start + usize::from(u16::from_be_bytes([high, low]));
        let Some(value) = header.get(start..end) else { return Err(BadHeader::Length) };
        if kind == TYPE_CRC32C {
            let Ok(told) = <[u8; 4]>::try_from(value) else { return Err(BadHeader::Length) };
            // Reckoned with zeroes in its own place; a second one would not be.
            let blanked =
                header.iter().enumerate().map(|(place, byte)| if (start..end).contains(&place) { 0 } else { *byte });
            if is_checked || u32::from_be_bytes(told) != crc32c(blanked) {
                return Err(BadHeader::Checksum);
            }
            is_checked = true;
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
