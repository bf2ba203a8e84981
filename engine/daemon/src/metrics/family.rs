//! Every metric that there is, in one list: what is written, what the page says and what dashboards may ask for all come from here.

use towpath_core::counters::{ServiceCounter, WorkerCounter};
use towpath_core::histogram::Latency;
use towpath_core::plane::{NeighbourCounter, PlaneCounter};

use crate::shared::RingCounter;

/// What kind of value a metric has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the process starts anew.
    Counter,
    /// It is what it is now.
    Gauge,
    /// Counts by upper end, their sum and their count.
    Histogram,
}

impl Kind {
    /// The word of the text format.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One metric, with all values of its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name, which stays.
    pub name: String,
    /// What kind of value it has.
    pub kind: Kind,
    /// The labels that its values are told apart by.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: String,
}

/// Of a service.
pub(super) const SERVICE: &[&str] = &["service"];
/// Of a server of a service. Names are not unique over the groups of a service, addresses are.
const SERVER: &[&str] = &["service", "server", "address"];
const WORKER: &[&str] = &["worker"];
const LIMIT: &[&str] = &["limit"];
const OUTBOUND: &[&str] = &["nat", "protocol"];
const SOURCE_PORTS: &[&str] = &["protocol", "address", "server"];
const CERTIFICATE: &[&str] = &["service", "certificate", "name"];

/// How a counter of ours reads as a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// The name without prefix and `_total`.
    pub(super) name: &'static str,
    /// So many of ours are one of the metric's unit.
    pub(super) per_unit: u64,
    /// One of several that are one metric, told apart by this label.
    pub(super) label: Option<(&'static str, &'static str)>,
}

impl Reading {
    const fn plain(name: &'static str) -> Reading {
        Reading { name, per_unit: 1, label: None }
    }

    const fn seconds(name: &'static str, per_unit: u64) -> Reading {
        Reading { name, per_unit, label: None }
    }

    const fn of_status(class: &'static str) -> Reading {
        Reading { name: "responses", per_unit: 1, label: Some(("code", class)) }
    }
}

/// Units are those of Prometheus: seconds and bytes, last in the name.
pub(super) fn of_service(counter: ServiceCounter) -> Reading {
    match counter {
        ServiceCounter::BytesFromClient => Reading::plain("from_client_bytes"),
        ServiceCounter::BytesToClient => Reading::plain("to_client_bytes"),
        ServiceCounter::QueueWaitedMilliseconds => Reading::seconds("queue_waited_seconds", 1_000),
        ServiceCounter::Responses2xx => Reading::of_status("2xx"),
        ServiceCounter::Responses3xx => Reading::of_status("3xx"),
        ServiceCounter::Responses4xx => Reading::of_status("4xx"),
        ServiceCounter::Responses5xx => Reading::of_status("5xx"),
        other => Reading::plain(other.label()),
    }
}

pub(super) fn of_plane(counter: PlaneCounter) -> Reading {
    match counter {
        PlaneCounter::OctetsFromClient => Reading::plain("from_client_bytes"),
        PlaneCounter::OctetsRouted => Reading::plain("routed_bytes"),
        PlaneCounter::OctetsToClient => Reading::plain("to_client_bytes"),
        other => Reading::plain(other.label()),
    }
}

/// `None` for what is not a counter by nature.
pub(super) fn of_worker(counter: WorkerCounter) -> Option<Reading> {
    match counter {
        WorkerCounter::BreathMaxMicroseconds => None,
        WorkerCounter::BusyMicroseconds => Some(Reading::seconds("busy_seconds", 1_000_000)),
        other => Some(Reading::plain(other.label())),
    }
}

/// Every metric, in the order in which they are written.
pub fn families() -> Vec<Family> {
    let mut all = List(Vec::new());
    process(&mut all);
    services(&mut all);
    servers(&mut all);
    tls(&mut all);
    workers(&mut all);
    packets(&mut all);
    sources(&mut all);
    limits(&mut all);
    told(&mut all);
    all.0
}

struct List(Vec<Family>);

impl List {
    fn add(&mut self, kind: Kind, name: impl Into<String>, labels: &'static [&'static str], help: impl Into<String>) {
        self.0.push(Family { name: name.into(), kind, labels, help: help.into() });
    }

    fn gauge(&mut self, name: &str, labels: &'static [&'static str], help: &str) {
        self.add(Kind::Gauge, name, labels, help);
    }

    fn counter(&mut self, name: &str, labels: &'static [&'static str], help: &str) {
        self.add(Kind::Counter, name, labels, help);
    }
}

fn process(all: &mut List) {
    all.gauge("towpath_build_info", &["version"], "Always 1; the label says which version runs.");
    all.gauge(
        "towpath_phase",
        &["phase"],
        "1 for the phase that the process is in, 0 for the others: running, draining, ending.",
    );
    all.gauge("towpath_role", &["role"], "1 for the role that the machine has, 0 for the other: active, standby.");
    all.gauge("towpath_generation", &[], "Number of the configuration and health in force.");
    all.gauge("process_start_time_seconds", &[], "When the process was started, in seconds since 1970.");
    all.counter("process_cpu_seconds_total", &[], "Time that all threads have had CPUs, user and system.");
    all.gauge("process_resident_memory_bytes", &[], "Memory of the process that is in RAM.");
    all.gauge("process_virtual_memory_bytes", &[], "Addresses that the process has reserved.");
    all.gauge("process_threads", &[], "Threads of the process.");
    all.gauge("process_open_fds", &[], "Descriptors that are open.");
    all.gauge("process_max_fds", &[], "Descriptors that may be open.");
}

fn services(all: &mut List) {
    let info = &["service", "vip", "protocol", "plane", "balance"];
    all.gauge("towpath_service_info", info, "Always 1; the labels say what the service is.");
    all.gauge("towpath_service_up", SERVICE, "1 if new clients are served, 0 if no server takes any.");
    all.gauge(
        "towpath_service_degraded",
        SERVICE,
        "1 if servers that should take new clients do not, or not on every port.",
    );
    all.gauge(
        "towpath_service_servers",
        &["service", "state"],
        "Servers by what their check says: up, held, unknown, down.",
    );
    all.gauge("towpath_service_connections", SERVICE, "Connections or sessions that hold a server now.");
    all.gauge("towpath_service_connections_max", SERVICE, "Never more than so many; 0 = no limit.");
    all.gauge(
        "towpath_service_queue_waiting",
        SERVICE,
        "Clients, in HTTP mode requests, that wait for a place on a server.",
    );
    all.gauge("towpath_service_queue_max", SERVICE, "So many may wait, of each queue of the service.");
    all.gauge(
        "towpath_service_queue_longest_wait_seconds",
        SERVICE,
        "For how long the one has waited that waits longest.",
    );
    for &counter in ServiceCounter::ALL {
        let reading = of_service(counter);
        let name = format!("towpath_service_{}_total", reading.name);
        match reading.label {
            None => all.add(Kind::Counter, name, SERVICE, counter.help()),
            Some(_) if all.0.iter().any(|family| family.name == name) => {}
            Some(_) => all.add(
                Kind::Counter,
                name,
                &["service", "code"],
                "HTTP: responses as clients got them, by the class of their status: 2xx, 3xx, 4xx, 5xx.",
            ),
        }
    }
    all.counter(
        "towpath_service_terminations_total",
        &["service", "termination"],
        "How connections and sessions ended.",
    );
    all.counter("towpath_service_refused_requests_total", &["service", "reason"], "HTTP: requests that were refused.");
    all.counter(
        "towpath_service_refused_responses_total",
        &["service", "reason"],
        "HTTP: responses of real servers that were refused.",
    );
    all.counter(
        "towpath_service_refused_streams_total",
        &["service", "reason"],
        "HTTP/2: streams that were refused, and whole connections.",
    );
    for &latency in Latency::ALL {
        all.add(Kind::Histogram, latency_name(latency), SERVICE, latency.help());
    }
}

pub(super) fn latency_name(latency: Latency) -> String {
    format!("towpath_service_{}_seconds", latency.label())
}

fn servers(all: &mut List) {
    all.gauge(
        "towpath_server_up",
        SERVER,
        "1 if its check passed or there is none, 0 if it is down, held or not judged yet.",
    );
    all.gauge("towpath_server_ready", SERVER, "1 if the operator wants it in, 0 while it is drained or halted.");
    all.gauge("towpath_server_serving", SERVER, "1 if it has a part in serving, 0 while it stands by as a backup.");
    all.gauge("towpath_server_state_seconds", SERVER, "For how long its check has said what it says.");
    all.gauge("towpath_server_closed_ports", SERVER, "Ports of the service that are not up there, while others are.");
    all.gauge("towpath_server_weight", SERVER, "Its share of new clients, relative to the others.");
    all.gauge("towpath_server_connections", SERVER, "Connections or sessions that it holds, over all services.");
    all.gauge("towpath_server_service_connections", SERVER, "Of these, those of this service.");
    all.gauge("towpath_server_connections_max", SERVER, "Never more than so many; 0 = no limit.");
    all.gauge("towpath_server_idle_connections", SERVER, "Shared connections to it that wait for the next client.");
    all.counter("towpath_server_opened_total", SERVER, "Connections or sessions opened on it, over all services.");
    all.counter(
        "towpath_server_connects_failed_total",
        SERVER,
        "Connects that it refused or did not answer, or whose TLS it failed, over all services.",
    );
    all.counter(
        "towpath_server_responses_total",
        SERVER,
        "HTTP: its responses, and those that did not come in time, over all services.",
    );
    all.counter(
        "towpath_server_errors_total",
        SERVER,
        "HTTP: of these, those with a status of 500 or more, and those that did not come.",
    );
    all.gauge(
        "towpath_leaving_servers",
        &[],
        "Servers that no service names any more but that still hold connections.",
    );
    all.gauge("towpath_leaving_connections", &[], "Connections or sessions that these hold.");
}

fn tls(all: &mut List) {
    all.gauge(
        "towpath_certificate_expiry_timestamp_seconds",
        CERTIFICATE,
        "When the certificate ends, in seconds since 1970; `certificate` is its place in the file, from 1 on.",
    );
    all.gauge("towpath_certificate_start_timestamp_seconds", CERTIFICATE, "When it begins, in seconds since 1970.");
    all.gauge("towpath_handshake_pool_threads", &[], "Threads that sign handshakes.");
    all.gauge("towpath_handshake_pool_running", &[], "Of these, those that sign just now.");
    all.gauge("towpath_handshake_pool_queued", &[], "Handshakes that wait for one.");
    all.counter(
        "towpath_handshake_pool_handshakes_total",
        &["outcome"],
        "What became of handshakes at the pool: done, late (tls.queue_deadline), abandoned by their client, refused because the queue was full.",
    );
    all.counter("towpath_handshake_pool_busy_seconds_total", &[], "Time spent signing, all threads together.");
    all.counter(
        "towpath_handshake_pool_waited_seconds_total",
        &[],
        "Time that handshakes have waited there, together.",
    );
}

fn workers(all: &mut List) {
    all.gauge("towpath_worker_info", &["worker", "cpu"], "Always 1; the label says which CPU the worker is pinned to.");
    all.gauge("towpath_worker_serving", WORKER, "1 while the worker serves, 0 once its thread has ended.");
    all.gauge("towpath_worker_generation", WORKER, "The generation that it serves.");
    all.gauge("towpath_worker_vshards", WORKER, "Its share of new clients, in 256ths.");
    all.gauge("towpath_worker_sessions", WORKER, "Connections, sessions and flows that it holds.");
    all.gauge("towpath_worker_flows", WORKER, "Of these, flows of its packet plane.");
    all.counter(
        "towpath_worker_cpu_seconds_total",
        WORKER,
        "Time that its thread has had its CPU, also while it looks for work in vain; `busy` is its load.",
    );
    all.gauge("towpath_worker_breath_max_seconds", WORKER, WorkerCounter::BreathMaxMicroseconds.help());
    for (counter, reading) in WorkerCounter::ALL.iter().filter_map(|&counter| Some((counter, of_worker(counter)?))) {
        all.add(Kind::Counter, format!("towpath_worker_{}_total", reading.name), WORKER, counter.help());
    }
}

fn packets(all: &mut List) {
    for &counter in PlaneCounter::ALL {
        all.add(Kind::Counter, format!("towpath_packet_{}_total", of_plane(counter).name), WORKER, counter.help());
    }
    for &counter in RingCounter::ALL {
        all.add(Kind::Counter, format!("towpath_packet_{}_total", counter.label()), WORKER, counter.help());
    }
    all.counter("towpath_packet_drops_total", &["worker", "reason"], "Frames that the packet plane has dropped.");
    all.gauge("towpath_neighbours", &[], "Neighbours on VLANs and bridges that are known.");
    for &counter in NeighbourCounter::ALL {
        all.add(Kind::Counter, format!("towpath_neighbours_{}_total", counter.label()), &[], counter.help());
    }
}

fn sources(all: &mut List) {
    all.gauge(
        "towpath_source_ports_leased",
        SOURCE_PORTS,
        "Source ports leased towards a server, those at rest included.",
    );
    all.gauge("towpath_source_ports_capacity", SOURCE_PORTS, "Source ports that can be leased towards it.");
    all.gauge("towpath_outbound_flows", OUTBOUND, "Flows from hosts inside that were answered and have not ended.");
    all.counter("towpath_outbound_accepted_total", OUTBOUND, "Flows that hosts inside began.");
    all.counter("towpath_outbound_opened_total", OUTBOUND, "Of these, flows that were answered.");
    all.counter("towpath_outbound_sent_bytes_total", OUTBOUND, "Payload bytes to the outside.");
    all.counter("towpath_outbound_received_bytes_total", OUTBOUND, "Payload bytes from there.");
    all.counter("towpath_outbound_terminations_total", &["nat", "protocol", "termination"], "How these flows ended.");
}

fn limits(all: &mut List) {
    all.gauge("towpath_limit_used", LIMIT, "In use now.");
    all.gauge("towpath_limit_max", LIMIT, "The limit; 0 = nothing of the kind is used.");
    all.counter(
        "towpath_limit_refused_total",
        LIMIT,
        "How often the limit was met; for persistence_entries those that had to make room.",
    );
}

fn told(all: &mut List) {
    all.counter("towpath_events_total", &["kind"], "Changes of state, by what kind of state changed.");
    all.counter(
        "towpath_access_log_lines_total",
        &["outcome"],
        "Lines of the access log: written, dropped because the log had fallen behind, failed because its destination refused them.",
    );
    all.gauge("towpath_access_log_up", &[], "1 if the access log can be written, 0 while it cannot.");
    all.counter(
        "towpath_notify_events_total",
        &["receiver", "outcome"],
        "Events for a receiver of `[notify]`: delivered, or dropped because too many waited.",
    );
    all.counter(
        "towpath_notify_failed_total",
        &["receiver"],
        "Messages that a receiver did not take; each try counts.",
    );
    all.gauge("towpath_notify_waiting", &["receiver"], "Events that wait to be told.");
    all.gauge("towpath_notify_up", &["receiver"], "1 if the receiver took the last message, 0 if it did not.");
}
