//! Frames that wait for a next hop whose link-layer address is not known yet, and which next hops those are.

/// Octets of the longest frame that is held; a super-packet is not (its sender sends again).
pub const HELD_BYTES_MAX: usize = 2048;
/// Frames that wait for one next hop at most.
pub const HELD_PER_HOP_MAX: usize = 32;
/// Next hops that are waited for at most; one more takes the place of the oldest.
pub const HOPS_MAX: usize = 256;
/// A frame and a hop are given up after this time.
pub const GIVE_UP_MS: u64 = 3_000;
/// A next hop is asked for once in this time.
pub const ASK_MS: u64 = 1_000;

pub struct PendingCounts { pub held: u64, pub sent: u64, pub given_up: u64, pub evicted: u64, pub refused: u64 /* hop or all full */, pub too_long: u64 }

pub enum HoldError { Full, HopFull, TooLong }

impl Pending {
    /// Room for `frames_max` frames of HELD_BYTES_MAX octets, all at once.
    pub fn new(frames_max: usize) -> Pending;
    /// Copies `frame` (translated, its checksum complete, MACs open) until the station of `via` on `port` is known. The hop is wanted from now on, also on errors.
    pub fn hold(&mut self, now: Now, port: PortId, via: Ip, frame: &[u8]) -> Result<(), HoldError>;
    /// With a newer network: `send`s what has a next hop now, MACs written, oldest first per hop; forgets hops that no route leads to.
    pub fn adopt(&mut self, network: &Network, send: impl FnMut(PortId, &[u8]));
    /// The next hop to ask for, each once in ASK_MS; `None` when there is none now.
    pub fn wanted(&mut self, now: Now) -> Option<(PortId, Ip)>;
    /// Gives up what has waited GIVE_UP_MS.
    pub fn expire(&mut self, now: Now);
    /// When expire has something to do next.
    pub fn next_due(&self) -> Option<Now>;
    pub fn counts(&self) -> &PendingCounts;
    pub fn is_empty(&self) -> bool;
    pub fn memory_bytes(&self) -> usize;
}
