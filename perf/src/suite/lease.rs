//! A turn of leases in memory: what a source port costs, the fuller its pool is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use towpath_config::model::{Protocol, SourcePool};
use towpath_core::random::SplitMix64;
use towpath_core::snat::{SnatBook, SnatLease, SnatLimits, SnatPool};
use towpath_core::steering::SteeringTable;
use towpath_core::{VShard, WorkerId};

use super::sample::{Reading, Sample};
use super::snat::LEVELS_PERCENT;
use super::{Case, Options, on_cpus};

/// Leases between two looks at the clock.
const CHUNK: usize = 256;

/// The server that everybody goes to.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 88, 2, 11)), 7000);

const FIRST_PORT: u16 = 1024;

/// Fills a pool of so many addresses towards one real server port and tells what a lease costs on the way: at each level, leases drawn by
/// lot come back and are taken anew by flows of whatever home, as long as a phase of a turn is.
pub(super) fn take(case: &Case, addresses: u8, options: &Options) -> io::Result<Vec<Sample>> {
    on_cpus(&[options.pins.balancer], || measure(case, addresses, options.measure / LEVELS_PERCENT.len() as u32))
}

fn measure(case: &Case, addresses: u8, each: Duration) -> io::Result<Vec<Sample>> {
    let rule = SourcePool {
        addresses: (0..addresses).map(|n| IpAddr::from([10, 88, 2, 101 + n])).collect(),
        port_low: FIRST_PORT,
        port_high: u16::MAX,
        rest_ms: 0,
        towards: Default::default(),
    };
    let pool =
        SnatBook::new(SnatLimits::default()).pool(&rule, &[], Protocol::Tcp, &[SERVER]).map_err(io::Error::other)?;
    // As on the packet plane, where a lease writes down for whom it is.
    pool.homes().for_each(drop);
    let capacity = usize::from(addresses) * (FIRST_PORT..=u16::MAX).len();
    let mut bench = Bench {
        pool: &pool,
        steering: SteeringTable::even(1),
        random: SplitMix64::new(capacity as u64),
        held: Vec::with_capacity(capacity),
    };
    let mut samples = Vec::new();
    for level in LEVELS_PERCENT {
        let filled = capacity * level / 100;
        bench.lease(filled - bench.held.len())?;
        let (mut leases, mut time) = (0, Duration::ZERO);
        let end = Instant::now() + each;
        while Instant::now() < end {
            bench.release(CHUNK);
            let started = Instant::now();
            bench.lease(CHUNK)?;
            time += started.elapsed();
            leases += CHUNK;
        }
        let ns = time.as_nanos() as f64 / leases.max(1) as f64;
        let readings = vec![Reading { metric: "lease-time", unit: "ns".into(), value: ns, comparable: true }];
        samples.push(Sample { case: format!("{}-at-{level}%", case.name), readings, ..Sample::default() });
    }
    // Every port can be had, and none twice.
    bench.lease(capacity - bench.held.len())?;
    if bench.lease(1).is_ok() {
        return Err(io::Error::other(format!("a pool of {capacity} ports leased one more")));
    }
    Ok(samples)
}

struct Bench<'a> {
    pool: &'a SnatPool,
    steering: SteeringTable,
    random: SplitMix64,
    held: Vec<SnatLease>,
}

impl Bench<'_> {
    fn lease(&mut self, count: usize) -> io::Result<()> {
        for _ in 0..count {
            let home = VShard(self.random.next_u64() as u8);
            let lease = self.pool.lease(SERVER, home, &self.steering, WorkerId(0)).map_err(io::Error::other)?;
            self.held.push(lease);
        }
        Ok(())
    }

    fn release(&mut self, count: usize) {
        for _ in 0..count.min(self.held.len()) {
            let place = self.random.below(self.held.len() as u64) as usize;
            self.pool.release(self.held.swap_remove(place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::{Accounting, Course, Mode};
    use towpath_config::model::Plane;

    #[test]
    fn every_level_is_told() {
        let case = Case {
            name: "lease".into(),
            accounting: Accounting::Plain,
            plane: Plane::Packet,
            mode: Mode::USUAL,
            tls: None,
            http: None,
            course: Course::Lease { addresses: 1 },
        };
        let samples = measure(&case, 1, Duration::from_millis(5)).unwrap();
        assert_eq!(samples.len(), LEVELS_PERCENT.len());
        assert!(samples.iter().all(|sample| sample.readings[0].value > 0.0), "{samples:?}");
    }
}
