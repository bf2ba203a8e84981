//! Frames that the packet plane makes itself: neighbour questions and answers, TCP resets, ICMP errors; all with complete checksums.

/// Octets of an ARP frame; without the padding, which the device adds.
pub const ARP_LEN: usize = 42;
/// Octets of a frame with a neighbour solicitation or advertisement that carries one link-layer address.
pub const NEIGHBOUR_LEN: usize = 86;
/// Octets of the longest frame with a TCP reset.
pub const RESET_LEN_MAX: usize = 74;
/// Octets of the longest frame with an ICMP error: an IPv6 packet of 1,280 octets (RFC 4443 section 2.4 (c)).
pub const ERROR_LEN_MAX: usize = 1294;

/// The stations at both ends of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs { pub src: Mac, pub dst: Mac }
impl Macs {
    /// Of an answer to `frame`: back to the station that it came from.
    pub fn answering(frame: &[u8]) -> Option<Macs>;
}

/// A frame of at most N octets; derefs to its bytes.
pub struct Made<const N: usize> { bytes: [u8; N], len: usize }

/// The answer to an ARP request for an address of ours, which is at `mac` (RFC 826; a probe of RFC 5227 is answered as well).
pub fn arp_reply(request: &Arp, mac: Mac) -> [u8; ARP_LEN];
/// Asks everybody on the link for `target`. `sender` is an address of ours on that link, or 0.0.0.0.
pub fn arp_request(mac: Mac, sender: Ip, target: Ip) -> [u8; ARP_LEN];
/// Tells everybody on the link that `address` is at `mac` (RFC 5227 section 3).
pub fn arp_announcement(mac: Mac, address: Ip) -> [u8; ARP_LEN];
/// The answer to a neighbour solicitation for an address of ours at `mac`; `from` is the station that the question came from.
pub fn advertisement(solicitation: &Nd, from: Mac, mac: Mac) -> [u8; NEIGHBOUR_LEN];
/// Tells all nodes of the link that `address` is at `mac` (RFC 4861 section 7.2.6).
pub fn unsolicited_advertisement(mac: Mac, address: Ip) -> [u8; NEIGHBOUR_LEN];
/// Asks for `target` from `sender`, an address of ours.
pub fn solicitation(mac: Mac, sender: Ip, target: Ip) -> [u8; NEIGHBOUR_LEN];

/// A reset from `tuple.src` to `tuple.dst`; with the ACK flag where there is an acknowledgment number.
/// (`ResetNumbers` of `TcpTrack::reset_towards`: seq and Some(ack); a second one with `seq_sent` where that differs.)
pub fn tcp_reset(macs: Macs, tuple: &Tuple, seq: u32, ack: Option<u32>) -> Made<RESET_LEN_MAX>;
/// The reset that answers a segment of no connection (RFC 9293 section 3.10.7.1); `None` for one that is a reset itself.
pub fn tcp_refusal(macs: Macs, segment: &Parsed) -> Option<Made<RESET_LEN_MAX>>;

/// What an ICMP error made here says.
pub enum Complaint { PacketTooBig { mtu: u32 }, TimeExceeded }
/// An ICMP or ICMPv6 error to the sender of `frame`, as it came (before it is rewritten), from the address `from` of ours.
/// `None` when `parsed` does not fit `frame`, or `from` is not of its family.
pub fn icmp_error(macs: Macs, frame: &[u8], parsed: &Parsed, from: Ip, complaint: Complaint) -> Option<Made<ERROR_LEN_MAX>>;

/// How many errors and resets may be made per second (RFC 4443 section 2.4 (f), RFC 1812 section 4.3.2.8): a token bucket.
pub struct ReplyBudget { .. }
impl ReplyBudget { pub fn new(per_second: u32) -> ReplyBudget; pub fn take(&mut self, now: Now) -> bool; }
