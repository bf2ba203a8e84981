//! How long things take, counted in fixed ranges: one writer, any number of readers, as with [`CounterPage`].
//!
//! The ranges are the same for all, so that those of workers, services and machines can be summed, also by who collects them (Prometheus). A histogram
//! with finer ranges (hdrhistogram) would have to be copied or locked to be read while its worker writes.

use std::ops::AddAssign;

use crate::counters::{CounterPage, counters};

/// Upper ends of the ranges, in microseconds; what took longer has a range of its own.
pub const BOUNDS_US: [u64; 18] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];
/// Ranges, with that of what took longer.
pub const RANGES: usize = BOUNDS_US.len() + 1;
/// Of one histogram: its ranges and its sum.
const CELLS: usize = RANGES + 1;

counters!(
    /// What is measured per worker and service, on the stream plane, for TCP.
    Latency {
        Connect = "connect", "From the connect to a real server until it was there, its TLS too; of connects that succeeded.";
        FirstByte = "first_byte", "From a server's being there, or the client's first byte if that came later, until the first byte of the server; in HTTP mode of each request, from its being sent on until the head of the response.";
        Handshake = "handshake", "From the first step of a TLS handshake with a client until it was over, its wait for the pool included; of handshakes that were completed.";
        Queue = "queue", "How long a client, in HTTP mode a request, waited for a place on a real server that it then got.";
    }
);

/// One histogram per [`Latency`].
pub struct HistogramPage {
    cells: CounterPage,
}

impl Default for HistogramPage {
    fn default() -> HistogramPage {
        HistogramPage { cells: CounterPage::new(Latency::ALL.len() * CELLS) }
    }
}

impl HistogramPage {
    /// Counts something that took so many microseconds. Only the page's one writer may call this.
    #[inline]
    pub fn record(&self, latency: Latency, us: u64) {
        let first = latency as usize * CELLS;
        self.cells.add(first + range_of(us), 1);
        self.cells.add(first + RANGES, us);
    }

    /// What was counted so far, as of about now.
    pub fn read(&self, latency: Latency) -> Histogram {
        let first = latency as usize * CELLS;
        let mut histogram = Histogram { sum_us: self.cells.read(first + RANGES), ..Histogram::default() };
        for (range, count) in histogram.counts.iter_mut().enumerate() {
            *count = self.cells.read(first + range);
        }
        histogram
    }
}

/// The range of what took so long; an upper end belongs to its range.
#[inline]
fn range_of(us: u64) -> usize {
    BOUNDS_US.partition_point(|bound| *bound < us)
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// By range, each for itself.
    pub counts: [u64; RANGES],
    /// All of it together, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// How often it was measured.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What has come since `before`.
    pub fn since(mut self, before: &Histogram) -> Histogram {
        for (count, less) in self.counts.iter_mut().zip(before.counts) {
            *count = count.saturating_sub(less);
        }
        self.sum_us = self.sum_us.saturating_sub(before.sum_us);
        self
    }

    /// What at least `percent` of them took no longer than, in microseconds, as near as the ranges tell: within one they count as evenly spread. What took
    /// longer than the last upper end counts as that. `None` where nothing was measured.
    pub fn percentile_us(&self, percent: u64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        // The one that is looked for, from 1 on.
        let wanted = u128::from(count) * u128::from(percent.min(100));
        let wanted = u64::try_from(wanted.div_ceil(100)).unwrap_or(count).max(1);
        let mut below = 0;
        let mut low = 0;
        for (&here, &high) in self.counts.iter().zip(&BOUNDS_US) {
            if below + here >= wanted {
                let share = u128::from(high - low) * u128::from(wanted - below) / u128::from(here.max(1));
                return Some(low + u64::try_from(share).unwrap_or(high - low));
            }
            below += here;
            low = high;
        }
        Some(low)
    }
}

impl AddAssign for Histogram {
    fn add_assign(&mut self, other: Histogram) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_has_one_range_and_upper_ends_belong_to_theirs() {
        for (us, range) in [
            (0, 0),
            (1, 0),
            (100, 0),
            (101, 1),
            (250, 1),
            (1_000, 3),
            (1_001, 4),
            (60_000_000, 17),
            (60_000_001, 18),
            (u64::MAX, 18),
        ] {
            assert_eq!(range_of(us), range, "{us}");
        }
        assert!(BOUNDS_US.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn what_is_recorded_is_read_apart_and_added_up() {
        let page = HistogramPage::default();
        page.record(Latency::Connect, 90);
        page.record(Latency::Connect, 70_000_000);
        page.record(Latency::Queue, 300);
        let mut sum = page.read(Latency::Connect);
        assert_eq!((sum.count(), sum.sum_us, sum.counts[0], sum.counts[18]), (2, 70_000_090, 1, 1));
        sum += page.read(Latency::Queue);
        assert_eq!((sum.count(), sum.sum_us, sum.counts[2]), (3, 70_000_390, 1));
        assert_eq!(page.read(Latency::FirstByte), Histogram::default());
        let later = sum.since(&page.read(Latency::Connect));
        assert_eq!(later, page.read(Latency::Queue));
    }

    #[test]
    fn percentiles_lie_in_the_range_of_who_is_looked_for() {
        let page = HistogramPage::default();
        assert_eq!(page.read(Latency::Connect).percentile_us(50), None);
        for us in [50, 200, 200, 4_000] {
            page.record(Latency::Connect, us);
        }
        let of = |percent| page.read(Latency::Connect).percentile_us(percent).expect("something was measured");
        assert_eq!(of(0), 100, "the only one of its range counts as its upper end");
        assert_eq!(of(25), 100);
        assert_eq!(of(50), 175, "the first of two between 100 and 250");
        assert_eq!(of(75), 250);
        assert_eq!(of(100), 5_000);
        page.record(Latency::Connect, u64::MAX / 2);
        assert_eq!(of(100), 60_000_000);
    }
}
