//! Caps on the half-open flows of one source, in bounded memory however many sources there are.

/// A source (IPv4 address, or IPv6 /64 network) has as many half-open flows as one source may.
pub struct SourceFull;

impl HalfOpenSources {
    /// Counters for `half_open_max` half-open flows in all, of which one source may have `per_source_max` (0 = as many as there are).
    pub fn new(half_open_max: usize, per_source_max: u32, seed: [u64; 2]) -> HalfOpenSources;
    /// Counts one more half-open flow of `source`.
    pub fn open(&mut self, source: Ip) -> Result<(), SourceFull>;
    /// One that `open` counted is no longer half open: established, over or given up.
    pub fn close(&mut self, source: Ip);
    pub fn memory_bytes(&self) -> usize;
}
