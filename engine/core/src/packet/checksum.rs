//! The Internet checksum (RFC 1071), and how it follows a change without a look at the rest (RFC 1624).
//!
//! A *sum* here is the ones' complement sum of big-endian 16-bit words; a *checksum* is its complement, as it stands in a header.
//! Sums are kept as RFC 1624 equation 3 leaves them: 0 only where every word is 0, otherwise 1 to 0xffff. So a checksum that was
//! computed from scratch and then updated is the same 16 bits as one computed from scratch on the result.

/// The sum of `bytes`; an odd last byte counts as the high half of a word (RFC 1071 §4.1).
pub fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total += u64::from(u32::from_be_bytes(last));
    fold(total)
}

/// The checksum of `bytes`, in which the checksum field is 0: IPv4 headers and ICMP messages.
pub fn of(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The sum of the pseudo-header in front of a TCP or UDP segment or an ICMPv6 message (RFC 9293 §3.1, RFC 768, RFC 8200 §8.1).
///
/// `source` and `destination` are the 4 or 16 bytes of the addresses; `length_bytes` is the length of the transport header and
/// what follows it. This is also what the field of a *partial* checksum holds (virtio_net_hdr NEEDS_CSUM).
pub fn pseudo_header(source: &[u8], destination: &[u8], protocol: u8, length_bytes: u32) -> u16 {
    fold(u64::from(sum(source)) + u64::from(sum(destination)) + u64::from(protocol) + u64::from(length_bytes))
}

/// The checksum of `segment`, in which the checksum field is 0, behind a pseudo-header whose sum is `pseudo_header`.
///
/// UDP sends 0xffff where this is 0 (RFC 768): see [`udp_field`].
pub fn transport(pseudo_header: u16, segment: &[u8]) -> u16 {
    !fold(u64::from(pseudo_header) + u64::from(sum(segment)))
}

/// Whether `bytes`, which contain their checksum, are intact. `pseudo_header` is 0 for an IPv4 header and for ICMP.
pub fn is_valid(pseudo_header: u16, bytes: &[u8]) -> bool {
    fold(u64::from(pseudo_header) + u64::from(sum(bytes))) == 0xffff
}

/// The same for an IPv4 header without options.
#[inline]
pub fn is_valid_ipv4(header: &[u8; 20]) -> bool {
    // Whether the sum is all ones does not depend on the order of bytes (RFC 1071 §2 (B)); the version is in it, so it is not 0.
    let (words, _) = header.as_chunks::<4>();
    let total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    is_all_ones(total)
}

/// What a UDP header carries for the computed `checksum`: 0 there means "none", so a computed 0 is sent as 0xffff (RFC 768).
pub fn udp_field(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// What a change of fields adds to the sum over them: `~m + m'` of RFC 1624 equation 3, collected over any number of fields.
///
/// The fields begin at an even offset within the summed bytes; one at an odd offset is given with its bytes swapped. All fields, and the
/// checksum that follows them, are read in one order of bytes, whichever: the result is in the same one (RFC 1071 §2 (B)).
#[derive(Clone, Copy, Debug)]
pub struct Delta(u64);

impl Delta {
    /// Nothing changed.
    pub const NONE: Delta = Delta(0);

    /// The change of a 16-bit field, or of a stretch of bytes whose sum was `old` and is `new`.
    #[inline]
    pub fn of_u16(old: u16, new: u16) -> Delta {
        Delta(u64::from(!old) + u64::from(new))
    }

    /// One taken from the first octet of a 16-bit field whose octets are read first one lowest, and which is not 0: a time to live.
    pub const FIRST_OCTET_LESS_ONE: Delta = Delta(!1 & 0xffff);

    /// The change of a 32-bit field: a pair of ports.
    #[inline]
    pub fn of_u32(old: u32, new: u32) -> Delta {
        Delta(u64::from(!old) + u64::from(new))
    }

    /// The change of a 64-bit field: a pair of IPv4 addresses.
    #[inline]
    pub fn of_u64(old: u64, new: u64) -> Delta {
        Delta(add(!old, new))
    }

    /// The change of a 128-bit field: an IPv6 address.
    #[inline]
    pub fn of_u128(old: u128, new: u128) -> Delta {
        Delta::of_u64((old >> 64) as u64, (new >> 64) as u64).and(Delta::of_u64(old as u64, new as u64))
    }

    /// Both changes.
    #[inline]
    #[must_use]
    pub fn and(self, other: Delta) -> Delta {
        Delta(add(self.0, other.0))
    }

    /// The same in 16 bits; 0 only where there are no fields.
    pub(crate) fn folded(self) -> u16 {
        fold(self.0)
    }

    /// What the complete checksum `old` becomes (RFC 1624 equation 3). A wrong checksum stays wrong.
    #[inline]
    pub fn complete(self, old: u16) -> u16 {
        !fold(add(u64::from(!old), self.0))
    }

    /// What the complete UDP checksum `old` becomes: 0, which means "none", stays, and a computed 0 is 0xffff (RFC 768).
    ///
    /// 0 stays over IPv6 too, where only some tunnels may send it (RFC 6936): an update would turn it into a wrong checksum.
    #[inline]
    pub fn udp(self, old: u16) -> u16 {
        if old == 0 { 0 } else { udp_field(self.complete(old)) }
    }

    /// What the partial checksum `old` becomes, a sum that is not complemented, when the fields belong to the pseudo-header
    /// (`inet_proto_csum_replace4` in `net/core/utils.c`). Fields behind the pseudo-header do not touch a partial checksum.
    #[inline]
    pub fn partial(self, old: u16) -> u16 {
        fold(add(u64::from(old), self.0))
    }
}

/// The ones' complement sum of numbers of 64 bits: the carry comes in again at the other end.
#[inline]
pub(super) fn add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// Whether this sum of 16-bit words is all ones once its carries are folded back in.
#[inline]
pub(super) fn is_all_ones(sum: u64) -> bool {
    fold(sum) == 0xffff
}

/// Carries folded back in, until 16 bits are left.
#[inline]
fn fold(sum: u64) -> u16 {
    // Both halves are added to each other the other way round: the upper sum has the carry of the lower one in it (`csum_fold` of
    // include/asm-generic/checksum.h).
    let sum = (sum.wrapping_add(sum.rotate_right(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_right(16)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071 §4.1 writes it down.
    fn plain_sum(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += (u32::from(pair[0]) << 8) | pair.get(1).map_or(0, |&low| u32::from(low));
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        sum as u16
    }

    #[test]
    fn the_examples_of_the_rfcs_come_out() {
        // RFC 1071 §3.
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        // RFC 1624 §4: the older equation 2 gave 0xffff here.
        assert_eq!(Delta::of_u16(0x5555, 0x3285).complete(0xdd2f), 0x0000);
    }

    #[test]
    fn a_header_from_the_wire_is_valid_and_a_bent_one_is_not() {
        let mut header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8,
            0x00, 0xc7,
        ];
        assert!(is_valid(0, &header));
        header[8] -= 1;
        assert!(!is_valid(0, &header));
        header[10..12].copy_from_slice(&[0, 0]);
        assert_eq!(of(&header), 0xb961);
    }

    #[test]
    fn folding_is_the_remainder_by_65535_with_zero_only_for_zero() {
        for value in [0, 1, 0xfffe, 0xffff, 0x1_0000, 0x1_fffe, 0xffff_ffff, 0x2_fffe_ffff, u64::MAX - 1, u64::MAX] {
            let expected = if value == 0 { 0 } else { (value - 1) % 0xffff + 1 };
            assert_eq!(u64::from(fold(value)), expected, "{value:#x}");
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_means_none() {
        assert_eq!(Delta::of_u16(1, 2).udp(0), 0);
        // The same change that takes 0xdd2f to 0 above.
        assert_eq!(Delta::of_u16(0x5555, 0x3285).udp(0xdd2f), 0xffff);
        assert_eq!(Delta::of_u16(0x3285, 0x5555).udp(0xffff), 0xdd2f);
    }

    proptest! {
        #[test]
        fn a_header_is_judged_alike_by_both(mut header in any::<[u8; 20]>(), sum_it in any::<bool>()) {
            header[0] = 0x45;
            if sum_it {
                header[10..12].fill(0);
                let sum = of(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            prop_assert_eq!(is_valid_ipv4(&header), is_valid(0, &header));
        }

        #[test]
        fn the_sum_is_that_of_the_plain_loop(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(sum(&bytes), plain_sum(&bytes));
        }

        #[test]
        fn an_update_is_a_checksum_from_scratch(
            mut bytes in prop::collection::vec(any::<u8>(), 34..100), addresses in any::<u128>(), ports in any::<u32>(),
        ) {
            // Never all zero, as no header is.
            bytes[0] = 0x45;
            let before = of(&bytes);
            let old_addresses = u128::from_be_bytes(*bytes[2..].first_chunk().expect("34 bytes"));
            let old_ports = u32::from_be_bytes(*bytes[20..].first_chunk().expect("34 bytes"));
            bytes[2..18].copy_from_slice(&addresses.to_be_bytes());
            bytes[20..24].copy_from_slice(&ports.to_be_bytes());
            let delta = Delta::of_u128(old_addresses, addresses).and(Delta::of_u32(old_ports, ports));
            prop_assert_eq!(delta.complete(before), of(&bytes));
            prop_assert_eq!(delta.partial(!before), sum(&bytes));
        }
    }
}
