//! Packets cut into fragments (RFC 791 section 3.2, RFC 8200 section 4.5), and what fragments share with the whole.

use super::checksum;
use super::{ETHERNET_LEN, EXTENSIONS_MAX};

/// Octets of the longest headers, Ethernet's included, that a fragment may repeat.
pub const CUT_HEADERS_MAX: usize = 512;

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// Octets of an IPv6 fragment header.
pub(crate) const FRAGMENT_HEADER_LEN: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

const MORE_FRAGMENTS: u16 = 0x2000;
/// Don't fragment, and the bit that is reserved.
const OTHER_FLAGS: u16 = 0xc000;
const OFFSET: u16 = 0x1fff;

const OPTION_END: u8 = 0;
const OPTION_NO_OPERATION: u8 = 1;
/// Of an IPv4 option: each fragment has it.
const OPTION_COPIED: u8 = 0x80;

/// A packet, and how it is to be cut.
#[derive(Debug)]
pub struct Cut<'f> {
    /// The headers that each fragment gets.
    headers: [u8; CUT_HEADERS_MAX],
    headers_len: usize,
    kind: Kind,
    /// What is divided among the fragments.
    data: &'f [u8],
    /// Octets of it in each fragment but the last; a multiple of 8.
    step: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// With the flags and the offset that the packet itself has, if it is a fragment.
    V4 {
        flags_and_offset: u16,
    },
    V6,
}

impl<'f> Cut<'f> {
    /// Cuts the IP packet in `frame` into fragments that are packets of at most `octets_max`.
    ///
    /// `id` is what the fragments share; without one, those of IPv4 keep the packet's. An IPv4 packet may be a fragment itself. `None` when the frame
    /// is shorter than its packet, when headers of more than [`CUT_HEADERS_MAX`] octets would be repeated, when `octets_max` leaves no room for data,
    /// and for an IPv6 packet without `id`.
    pub fn new(frame: &'f [u8], octets_max: u32, id: Option<u32>) -> Option<Cut<'f>> {
        let packet = frame.get(ETHERNET_LEN..)?;
        let octets_max = usize::try_from(octets_max).ok()?;
        let mut headers = [0; CUT_HEADERS_MAX];
        match packet.first()? >> 4 {
            4 => {
                let header_len = usize::from(packet.first()? & 0x0f) * 4;
                let total_len = usize::from(half(packet, 2)?);
                let data = packet.get(..total_len)?.get(header_len..).filter(|_| header_len >= IPV4_LEN)?;
                let flags_and_offset = half(packet, 6)?;
                let headers_len = ETHERNET_LEN + header_len;
                headers.get_mut(..headers_len)?.copy_from_slice(frame.get(..headers_len)?);
                if let Some(id) = id {
                    put(&mut headers, ETHERNET_LEN + 4, id as u16);
                }
                let step = octets_max.checked_sub(header_len)? & !7;
                let kind = Kind::V4 { flags_and_offset };
                (step > 0).then_some(Cut { headers, headers_len, kind, data, step })
            }
            6 => {
                let id = id?;
                let end = IPV6_LEN + usize::from(half(packet, 4)?);
                let (repeated, field) = repeated(packet)?;
                let data = packet.get(..end)?.get(repeated..)?;
                let at = ETHERNET_LEN + repeated;
                let headers_len = at + FRAGMENT_HEADER_LEN;
                headers.get_mut(..headers_len)?.get_mut(..at)?.copy_from_slice(frame.get(..at)?);
                let next = std::mem::replace(headers.get_mut(ETHERNET_LEN + field)?, FRAGMENT);
                *headers.get_mut(at)? = next;
                headers.get_mut(at + 4..headers_len)?.copy_from_slice(&id.to_be_bytes());
                let step = octets_max.checked_sub(repeated + FRAGMENT_HEADER_LEN)? & !7;
                (step > 0).then_some(Cut { headers, headers_len, kind: Kind::V6, data, step })
            }
            _ => None,
        }
    }

    /// How many fragments there will be.
    pub fn fragments(&self) -> usize {
        self.data.len().div_ceil(self.step)
    }

    /// Octets of their frames together.
    pub fn octets(&self) -> usize {
        self.fragments() * self.headers_len + self.data.len()
    }

    /// Hands over the frame of each fragment in order: its headers, and the data behind them.
    pub fn each(mut self, mut take: impl FnMut(&[u8], &[u8])) {
        let count = self.fragments();
        for (number, data) in (1..).zip(self.data.chunks(self.step)) {
            // The last one ends within 65,535 octets, as the packet does.
            let offset = ((number - 1) * self.step) as u16;
            match self.kind {
                Kind::V4 { flags_and_offset } => self.label_v4(flags_and_offset, offset, data.len(), number == count),
                Kind::V6 => self.label_v6(offset, data.len(), number == count),
            }
            take(self.headers.get(..self.headers_len).unwrap_or_default(), data);
            if number == 1 && matches!(self.kind, Kind::V4 { .. }) {
                let options = self.headers.get_mut(ETHERNET_LEN + IPV4_LEN..self.headers_len).unwrap_or_default();
                keep_copied(options);
            }
        }
    }

    fn label_v4(&mut self, whole: u16, offset: u16, data_len: usize, is_last: bool) {
        let header_len = self.headers_len - ETHERNET_LEN;
        let more = if is_last { whole & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        let offset = (whole & OFFSET) + offset / 8;
        put(&mut self.headers, ETHERNET_LEN + 2, (header_len + data_len) as u16);
        put(&mut self.headers, ETHERNET_LEN + 6, whole & OTHER_FLAGS | more | offset & OFFSET);
        put(&mut self.headers, ETHERNET_LEN + 10, 0);
        let sum = checksum::of(self.headers.get(ETHERNET_LEN..self.headers_len).unwrap_or_default());
        put(&mut self.headers, ETHERNET_LEN + 10, sum);
    }

    fn label_v6(&mut self, offset: u16, data_len: usize, is_last: bool) {
        let payload_len = self.headers_len - ETHERNET_LEN - IPV6_LEN + data_len;
        put(&mut self.headers, ETHERNET_LEN + 4, payload_len as u16);
        put(&mut self.headers, self.headers_len - FRAGMENT_HEADER_LEN + 2, offset | u16::from(!is_last));
    }
}

/// Octets of an IPv6 packet that each fragment repeats, its header and those that routers on the way read, and where among them the number of
/// the header behind them stands.
fn repeated(packet: &[u8]) -> Option<(usize, usize)> {
    let (mut next, mut at, mut field) = (*packet.get(6)?, IPV6_LEN, 6);
    let mut repeated = (at, field);
    for _ in 0..EXTENSIONS_MAX {
        if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
            break;
        }
        let is_routers = next != DESTINATION_OPTIONS;
        field = at;
        next = *packet.get(at)?;
        at += 8 * (usize::from(*packet.get(at + 1)?) + 1);
        // Destination options in front of a routing header are for each destination on the way.
        if is_routers {
            repeated = (at, field);
        }
    }
    Some(repeated)
}

/// Takes the fragment header out of the headers of an IPv6 fragment, which begin with Ethernet's and end with it: the octets that are left. `None`
/// when it is not where it has to be.
pub(crate) fn without_fragment_header(headers: &mut [u8]) -> Option<usize> {
    let at = headers.len().checked_sub(FRAGMENT_HEADER_LEN)?;
    let next = *headers.get(at)?;
    let (mut field, mut walked) = (ETHERNET_LEN + 6, ETHERNET_LEN + IPV6_LEN);
    while walked < at {
        field = walked;
        walked += 8 * (usize::from(*headers.get(walked + 1)?) + 1);
    }
    let named = headers.get_mut(field).filter(|named| walked == at && **named == FRAGMENT)?;
    *named = next;
    Some(at)
}

/// Makes options that only the first fragment has into ones that mean nothing, so the header keeps its length.
fn keep_copied(mut options: &mut [u8]) {
    while let [kind, rest @ ..] = options {
        let length = match (*kind, &*rest) {
            (OPTION_END, _) | (_, []) => return,
            (OPTION_NO_OPERATION, _) => 1,
            (_, [length, ..]) => usize::from(*length),
        };
        let is_copied = *kind & OPTION_COPIED != 0;
        let Some((option, after)) = options.split_at_mut_checked(length).filter(|_| length > 0) else { return };
        if !is_copied {
            option.fill(OPTION_NO_OPERATION);
        }
        options = after;
    }
}

fn half(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?))
}

fn put(headers: &mut [u8], at: usize, value: u16) {
    if let Some(field) = headers.get_mut(at..).and_then(|headers| headers.first_chunk_mut()) {
        *field = value.to_be_bytes();
    }
}
