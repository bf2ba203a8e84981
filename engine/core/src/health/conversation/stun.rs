//! A STUN binding request and its answer (RFC 8489), over UDP or TCP: what edge servers and TURN servers answer without credentials.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use towpath_config::model::CheckTransport;

use super::{Course, Parties, shown};
use crate::random::SplitMix64;

const COOKIE: [u8; 4] = 0x2112_a442_u32.to_be_bytes();
const HEADER_OCTETS: usize = 20;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
const MAPPED_ADDRESS: u16 = 0x0001;
const ERROR_CODE: u16 = 0x0009;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FINGERPRINT: u16 = 0x8028;
const FINGERPRINT_MASK: u32 = 0x5354_554e;
/// The polynomial 0x04C11DB7 of ISO 3309, reflected.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// One request.
#[derive(Debug)]
pub(super) struct StunTalk {
    transport: CheckTransport,
    transaction: [u8; 12],
    /// Over TCP, what came of the answer.
    received: Vec<u8>,
    heard: String,
}

/// What is wrong with a message, in the words of an operator.
type Fault = &'static str;

impl StunTalk {
    pub(super) fn begin(transport: CheckTransport, parties: &Parties<'_>, send: &mut Vec<u8>) -> StunTalk {
        let mut random = SplitMix64::new(parties.seed);
        let mut transaction = [0; 12];
        transaction.chunks_mut(4).for_each(|chunk| chunk.copy_from_slice(&random.next_u64().to_be_bytes()[..4]));
        send.extend_from_slice(&BINDING_REQUEST.to_be_bytes());
        send.extend_from_slice(&[0, 0]);
        send.extend_from_slice(&COOKIE);
        send.extend_from_slice(&transaction);
        StunTalk { transport, transaction, received: Vec::new(), heard: String::new() }
    }

    pub(super) fn received(&mut self, bytes: &[u8]) -> Course {
        if self.transport != CheckTransport::Tcp {
            // Somebody else's, or the answer to an earlier request.
            return self.judge(bytes).unwrap_or(Course::More);
        }
        // A message says how long it is (RFC 8489 section 6.2.2).
        self.received.extend_from_slice(bytes);
        let Some(header) = self.received.first_chunk::<HEADER_OCTETS>() else { return Course::More };
        let length = HEADER_OCTETS + usize::from(u16::from_be_bytes([header[2], header[3]]));
        let Some(message) = self.received.get(..length) else { return Course::More };
        let message = message.to_vec();
        self.judge(&message).unwrap_or_else(|| Course::Failed("something else than an answer by STUN".to_owned()))
    }

    pub(super) fn has_begun(&self) -> bool {
        !self.received.is_empty()
    }

    pub(super) fn heard(&mut self) -> String {
        std::mem::take(&mut self.heard)
    }

    /// `None`: it is no answer to the request.
    fn judge(&mut self, message: &[u8]) -> Option<Course> {
        let (header, body) = message.split_first_chunk::<HEADER_OCTETS>()?;
        let kind = u16::from_be_bytes([header[0], header[1]]);
        let is_ours = header[4..8] == COOKIE && header[8..] == self.transaction;
        if !is_ours || !matches!(kind, BINDING_SUCCESS | BINDING_ERROR) {
            return None;
        }
        Some(match self.read(message, header, body, kind) {
            Ok(address) => {
                self.heard = format!("we are seen as {address}");
                Course::Passed
            }
            Err(reason) => Course::Failed(reason),
        })
    }

    fn read(&self, message: &[u8], header: &[u8; HEADER_OCTETS], body: &[u8], kind: u16) -> Result<SocketAddr, String> {
        if body.len() != usize::from(u16::from_be_bytes([header[2], header[3]])) {
            return Err("the answer is not as long as it says".to_owned());
        }
        let (mut rest, mut address, mut error) = (body, None, None);
        while !rest.is_empty() {
            let begins_at = message.len() - rest.len();
            let (attribute, value, behind) = split(rest)?;
            match attribute {
                MAPPED_ADDRESS => address = address.or(Some(read_address(value, &[0; 16])?)),
                XOR_MAPPED_ADDRESS => {
                    let mut mask = [0; 16];
                    mask[..4].copy_from_slice(&COOKIE);
                    mask[4..].copy_from_slice(&self.transaction);
                    address = Some(read_address(value, &mask)?);
                }
                ERROR_CODE => error = Some(value),
                FINGERPRINT => {
                    let wanted = crc32(&message[..begins_at]) ^ FINGERPRINT_MASK;
                    if value != wanted.to_be_bytes() {
                        return Err("the answer's fingerprint does not fit".to_owned());
                    }
                }
                _ => {}
            }
            rest = behind;
        }
        if kind == BINDING_ERROR {
            return Err(match error {
                Some([_, _, class, number, reason @ ..]) => {
                    let code = u32::from(class & 7) * 100 + u32::from(number % 100);
                    format!("answers error {code} \"{}\"", shown(reason))
                }
                _ => "answers an error without a code".to_owned(),
            });
        }
        address.ok_or_else(|| "the answer has no mapped address".to_owned())
    }
}

/// The first attribute, its value, and what comes behind its padding.
fn split(rest: &[u8]) -> Result<(u16, &[u8], &[u8]), Fault> {
    const CUT: Fault = "the answer ends amid an attribute";
    let ([k0, k1, l0, l1], rest) = rest.split_first_chunk().ok_or(CUT)?;
    let length = usize::from(u16::from_be_bytes([*l0, *l1]));
    let (padded, behind) = rest.split_at_checked(length.next_multiple_of(4)).ok_or(CUT)?;
    Ok((u16::from_be_bytes([*k0, *k1]), &padded[..length], behind))
}

/// RFC 8489 sections 14.1 and 14.2; the mask is 0 in the first.
fn read_address(value: &[u8], mask: &[u8; 16]) -> Result<SocketAddr, Fault> {
    const BAD: Fault = "the answer's mapped address is none";
    let ([_, family, p0, p1], octets) = value.split_first_chunk().ok_or(BAD)?;
    let port = u16::from_be_bytes([p0 ^ mask[0], p1 ^ mask[1]]);
    let mut octets = octets.to_vec();
    octets.iter_mut().zip(mask).for_each(|(octet, mask)| *octet ^= mask);
    let ip = match (family, octets.len()) {
        (1, 4) => IpAddr::from(Ipv4Addr::from(*octets.first_chunk::<4>().ok_or(BAD)?)),
        (2, 16) => IpAddr::from(Ipv6Addr::from(*octets.first_chunk::<16>().ok_or(BAD)?)),
        _ => return Err(BAD),
    };
    Ok(SocketAddr::new(ip, port))
}

/// CRC-32 (ISO 3309), begun and ended with all bits turned over. Bit by bit: answers are short and rare.
fn crc32(bytes: &[u8]) -> u32 {
    let register = bytes.iter().fold(u32::MAX, |register, &byte| {
        (0..8).fold(register ^ u32::from(byte), |bits, _| (bits >> 1) ^ (POLYNOMIAL & (bits & 1).wrapping_neg()))
    });
    !register
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // The check value that catalogues give.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn the_sample_answers_of_rfc_5769_are_read() {
        // Sections 2.2 (IPv4) and 2.3 (IPv6), with MESSAGE-INTEGRITY that nobody asked for and a FINGERPRINT.
        const V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
                          002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7\
                          80280004c07d4c96";
        const V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
                          002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf1\
                          1784c97c8292c275bfe3ed4180280004c8fb0b4c";
        for (answer, address) in [(V4, "192.0.2.1:32853"), (V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853")] {
            let hex: String = answer.split_whitespace().collect();
            let mut bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
                .collect();
            let transaction = *bytes[8..].first_chunk().expect("a header");
            let talk =
                || StunTalk { transport: CheckTransport::Udp, transaction, received: Vec::new(), heard: String::new() };
            let mut right = talk();
            assert_eq!(right.received(&bytes), Course::Passed);
            assert_eq!(right.heard(), format!("we are seen as {address}"));
            *bytes.last_mut().expect("it has some") ^= 1;
            assert_eq!(talk().received(&bytes), Course::Failed("the answer's fingerprint does not fit".to_owned()));
        }
    }
}
