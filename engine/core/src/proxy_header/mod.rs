//! The PROXY protocol, versions 1 and 2: what a proxy in front says of its client, and what we say of ours to real servers.
//!
//! Read strictly, from the very first byte of a connection: whoever is trusted to name the client has to say it exactly.
//! Source: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, sections by its numbers.

mod crc32c;
mod read;
mod write;

pub use read::{BadHeader, Header, Said, read};
pub use write::{About, AboutTls, local, write};

/// The longest header of version 1, with its line end (§2.1).
pub const V1_BYTES_MAX: usize = 107;
/// The longest header of version 2 that is read: addresses and some hundred bytes are usual, certificates of clients may come beside them.
pub const V2_BYTES_MAX: usize = V2_FIXED_BYTES + 4096;
/// What version 2 begins with (§2.2).
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
const V2_FIXED_BYTES: usize = 16;

// §2.2.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0;
const INET: u8 = 1;
const INET6: u8 = 2;
const UNIX: u8 = 3;
const ANY_PROTOCOL: u8 = 0;
const STREAM: u8 = 1;

// Types of what may follow the addresses (§2.2.1 and its sections).
const TYPE_ALPN: u8 = 0x01;
const TYPE_AUTHORITY: u8 = 0x02;
const TYPE_CRC32C: u8 = 0x03;
const TYPE_SSL: u8 = 0x20;
const SUBTYPE_SSL_VERSION: u8 = 0x21;
const SUBTYPE_SSL_CIPHER: u8 = 0x23;
