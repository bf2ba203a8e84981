//! TCP and UDP headers.

use super::{DropReason, Family, Parsed, Tcp, TcpFlags, Tuple};

const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;

const OPTION_END: u8 = 0;
const OPTION_NO_OPERATION: u8 = 1;
/// Largest shift of a window (RFC 7323 section 2.3).
const WINDOW_SCALE_MAX: u8 = 14;

impl TcpFlags {
    /// Whether a state of TCP sends these flags together (the table `tcp_valid_flags` of net/netfilter/nf_conntrack_proto_tcp.c).
    fn are_valid(self) -> bool {
        const NOT_JUDGED: u8 = TcpFlags::PSH.0 | TcpFlags::ECE.0 | TcpFlags::CWR.0;
        const FIN_ACK: u8 = TcpFlags::FIN.0 | TcpFlags::ACK.0;
        const SYN: u8 = TcpFlags::SYN.0;
        const SYN_ACK: u8 = TcpFlags::SYN.0 | TcpFlags::ACK.0;
        const RST: u8 = TcpFlags::RST.0;
        const RST_ACK: u8 = TcpFlags::RST.0 | TcpFlags::ACK.0;
        const ACK: u8 = TcpFlags::ACK.0;
        const URG: u8 = TcpFlags::URG.0;
        const VALID: u64 = 1 << SYN
            | 1 << (SYN | URG)
            | 1 << SYN_ACK
            | 1 << RST
            | 1 << RST_ACK
            | 1 << FIN_ACK
            | 1 << (FIN_ACK | URG)
            | 1 << ACK
            | 1 << (ACK | URG);
        (VALID >> (self.0 & !NOT_JUDGED)) & 1 != 0
    }
}

/// Reads the TCP header at `parsed.l4` of `packet`, the frame up to the end of the IP packet.
#[inline(always)]
pub(super) fn tcp(packet: &[u8], parsed: &mut Parsed) -> Result<(), DropReason> {
    let segment = packet.get(usize::from(parsed.l4)..).unwrap_or_default();
    let header: &[u8; TCP_LEN] = segment.first_chunk().ok_or(DropReason::TcpTruncated)?;
    let header_len = usize::from(header[12] >> 4) * 4;
    if header_len < TCP_LEN || header_len > segment.len() {
        return Err(DropReason::TcpHeaderLength);
    }
    let flags = TcpFlags(header[13]);
    if !flags.are_valid() {
        return Err(DropReason::TcpFlags);
    }
    read_ports(&mut parsed.tuple, [header[0], header[1], header[2], header[3]])?;
    parsed.tcp = Tcp {
        seq: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        ack: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
        window: u16::from_be_bytes([header[14], header[15]]),
        flags,
    };
    parsed.payload = parsed.l4 + header_len as u16;
    Ok(())
}

/// Reads the UDP header at `parsed.l4` of `packet`, the frame up to the end of the IP packet.
#[inline(always)]
pub(super) fn udp(packet: &[u8], parsed: &mut Parsed) -> Result<(), DropReason> {
    udp_header(packet, parsed)?;
    let datagram = packet.get(usize::from(parsed.l4)..).unwrap_or_default();
    match datagram {
        // The packet may be longer: what lies behind the datagram are UDP options (RFC 9868).
        [_, _, _, _, high, low, ..] if usize::from(u16::from_be_bytes([*high, *low])) <= datagram.len() => Ok(()),
        _ => Err(DropReason::UdpLength),
    }
}

/// As [`udp`], where the datagram may go on in other fragments.
#[inline(always)]
pub(super) fn udp_header(packet: &[u8], parsed: &mut Parsed) -> Result<(), DropReason> {
    let datagram = packet.get(usize::from(parsed.l4)..).unwrap_or_default();
    let header: &[u8; UDP_LEN] = datagram.first_chunk().ok_or(DropReason::UdpTruncated)?;
    let [s0, s1, d0, d1, l0, l1, c0, c1] = *header;
    if usize::from(u16::from_be_bytes([l0, l1])) < UDP_LEN {
        return Err(DropReason::UdpLength);
    }
    // RFC 8200 section 8.1. A partial checksum is a sum of addresses, which is not 0.
    if parsed.family == Family::V6 && [c0, c1] == [0, 0] {
        return Err(DropReason::UdpChecksumMissing);
    }
    read_ports(&mut parsed.tuple, [s0, s1, d0, d1])?;
    parsed.payload = parsed.l4 + UDP_LEN as u16;
    Ok(())
}

#[inline(always)]
fn read_ports(tuple: &mut Tuple, [s0, s1, d0, d1]: [u8; 4]) -> Result<(), DropReason> {
    tuple.src_port = u16::from_be_bytes([s0, s1]);
    tuple.dst_port = u16::from_be_bytes([d0, d1]);
    if tuple.src_port == 0 || tuple.dst_port == 0 {
        return Err(DropReason::PortZero);
    }
    Ok(())
}

/// The options of a SYN that connection tracking reads (RFC 9293 section 3.2, RFC 7323 section 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOptions {
    /// Largest segment that the sender takes, in octets.
    pub mss: Option<u16>,
    /// How many bits the sender's later windows are to be shifted left, at most 14.
    pub window_scale: Option<u8>,
}

impl SynOptions {
    /// Reads the options of the segment `parsed` in `frame`, up to the first malformed one, as TCP itself does.
    pub fn read(frame: &[u8], parsed: &Parsed) -> SynOptions {
        let mut read = SynOptions::default();
        let header = frame.get(usize::from(parsed.l4)..usize::from(parsed.payload)).unwrap_or_default();
        let mut options = header.get(TCP_LEN..).unwrap_or_default();
        while let [kind, rest @ ..] = options {
            options = match (*kind, rest) {
                (OPTION_END, _) | (_, []) => break,
                (OPTION_NO_OPERATION, _) => rest,
                (_, [length, ..]) => {
                    let Some((option, after)) = options.split_at_checked(usize::from(*length)) else { break };
                    match option {
                        [] | [_] => break,
                        [2, 4, high, low] => read.mss = Some(u16::from_be_bytes([*high, *low])),
                        [3, 3, shift] => read.window_scale = Some((*shift).min(WINDOW_SCALE_MAX)),
                        _ => {}
                    }
                    after
                }
            };
        }
        read
    }
}
