//! What all workers together have counted and measured for one service.

use towpath_core::ServiceId;
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::histogram::{Histogram, Latency};
use towpath_core::http::{BadRequest, BadResponse};
use towpath_core::http2::BadStream;

use super::Shared;
use super::seat::{self, ServicePage};

/// As of about now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSum {
    cells: Vec<u64>,
    latencies: [Histogram; Latency::ALL.len()],
}

impl ServiceSum {
    /// Since the start of the process, by whichever service has had this id.
    pub fn of(shared: &Shared, service: ServiceId) -> ServiceSum {
        let mut sum = ServiceSum { cells: vec![0; ServicePage::CELLS], latencies: Default::default() };
        for page in shared.seats().filter_map(|seat| seat.peek_service(service)) {
            sum.cells.iter_mut().zip(page.cells()).for_each(|(cell, more)| *cell = cell.wrapping_add(more));
            for (measured, &latency) in sum.latencies.iter_mut().zip(Latency::ALL) {
                *measured += page.measured(latency);
            }
        }
        sum
    }

    /// What has come since `before`.
    pub fn since(mut self, before: &ServiceSum) -> ServiceSum {
        self.cells.iter_mut().zip(&before.cells).for_each(|(cell, less)| *cell = cell.saturating_sub(*less));
        for (measured, less) in self.latencies.iter_mut().zip(&before.latencies) {
            *measured = measured.since(less);
        }
        self
    }

    /// One counter.
    pub fn read(&self, counter: ServiceCounter) -> u64 {
        self.cell(counter as usize)
    }

    /// How many ended so.
    pub fn ended(&self, termination: Termination) -> u64 {
        self.cell(seat::termination_cell(termination as usize))
    }

    /// How many requests were refused so.
    pub fn bad_requests(&self, reason: BadRequest) -> u64 {
        self.cell(seat::bad_request_cell(reason as usize))
    }

    /// How many responses were refused so.
    pub fn bad_responses(&self, reason: BadResponse) -> u64 {
        self.cell(seat::bad_response_cell(reason as usize))
    }

    /// How many streams and connections of HTTP/2 were refused so.
    pub fn bad_streams(&self, reason: BadStream) -> u64 {
        self.cell(seat::bad_stream_cell(reason as usize))
    }

    /// How long these have taken.
    pub fn measured(&self, latency: Latency) -> Histogram {
        self.latencies[latency as usize]
    }

    fn cell(&self, index: usize) -> u64 {
        self.cells.get(index).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_given_on_begins_at_nothing() {
        let page = ServicePage::new();
        let sum = |page: &ServicePage| ServiceSum {
            cells: page.cells().collect(),
            latencies: std::array::from_fn(|at| page.measured(Latency::ALL[at])),
        };
        page.add(ServiceCounter::Accepted, 7);
        page.count_end(Termination::NoServer);
        page.measure(Latency::Queue, 300);
        let before = sum(&page);
        assert_eq!(before.clone().since(&before).read(ServiceCounter::Accepted), 0);
        page.add(ServiceCounter::Accepted, 2);
        page.count_bad_request(BadRequest::BareLf);
        page.measure(Latency::Queue, 70);
        let after = sum(&page).since(&before);
        let counts = [
            after.read(ServiceCounter::Accepted),
            after.ended(Termination::NoServer),
            after.bad_requests(BadRequest::BareLf),
        ];
        assert_eq!(counts, [2, 0, 1]);
        assert_eq!((after.measured(Latency::Queue).count(), after.measured(Latency::Queue).sum_us), (1, 70));
    }
}
