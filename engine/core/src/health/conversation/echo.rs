//! An echo request of ICMP (RFC 792) or ICMPv6 (RFC 4443 section 4), and whether it comes back.

use super::{Course, Parties};
use crate::packet::checksum;
use crate::random::SplitMix64;

/// As much as `ping` sends by default (iputils): so that paths that lose packets of ordinary size are found.
const PAYLOAD_OCTETS: usize = 56;
const HEADER_OCTETS: usize = 8;
const SEQUENCE: u16 = 1;
const V4_REQUEST: u8 = 8;
const V4_REPLY: u8 = 0;
const V6_REQUEST: u8 = 128;
const V6_REPLY: u8 = 129;

/// One request.
#[derive(Debug)]
pub(super) struct EchoTalk {
    /// Type of the reply.
    reply: u8,
    payload: Vec<u8>,
    heard: String,
}

impl EchoTalk {
    /// Our port is the identifier. The checksum of ICMPv6 is left to who knows the addresses.
    pub(super) fn begin(parties: &Parties<'_>, send: &mut Vec<u8>) -> EchoTalk {
        let mut random = SplitMix64::new(parties.seed);
        let payload: Vec<u8> = (0..PAYLOAD_OCTETS / 8).flat_map(|_| random.next_u64().to_be_bytes()).collect();
        let (request, reply) = if parties.to.is_ipv4() { (V4_REQUEST, V4_REPLY) } else { (V6_REQUEST, V6_REPLY) };
        let [i0, i1] = parties.from.port().to_be_bytes();
        let [s0, s1] = SEQUENCE.to_be_bytes();
        let mut message = vec![request, 0, 0, 0, i0, i1, s0, s1];
        message.extend_from_slice(&payload);
        let checksum = if parties.to.is_ipv4() { checksum::of(&message) } else { 0 };
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        send.extend_from_slice(&message);
        EchoTalk { reply, payload, heard: String::new() }
    }

    pub(super) fn received(&mut self, message: &[u8]) -> Course {
        let Some((header, payload)) = message.split_first_chunk::<HEADER_OCTETS>() else { return Course::More };
        // Half of it, or another one's: who sends nothing else has not answered.
        if header[..2] != [self.reply, 0] || payload != self.payload {
            return Course::More;
        }
        self.heard = format!("{} octets came back", payload.len());
        Course::Passed
    }

    pub(super) fn heard(&mut self) -> String {
        std::mem::take(&mut self.heard)
    }
}
