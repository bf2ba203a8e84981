//! CRC-32C (Castagnoli), as RFC 9260 appendix A has it: reflected, begun and ended with all bits turned over.

/// The polynomial 0x1EDC6F41, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The checksum of these bytes. Bit by bit: headers are short and rare.
pub(super) fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    let register = bytes.fold(u32::MAX, |register, byte| {
        (0..8).fold(register ^ u32::from(byte), |bits, _| (bits >> 1) ^ (POLYNOMIAL & (bits & 1).wrapping_neg()))
    });
    !register
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_checksum_of_the_standard() {
        // RFC 3720 §B.4, and the check value that catalogues give.
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283);
        assert_eq!(crc32c([0; 32].into_iter()), 0x8a91_36aa);
        assert_eq!(crc32c([0xff; 32].into_iter()), 0x62a8_ab43);
        assert_eq!(crc32c(0..32), 0x46dd_794e);
    }
}
