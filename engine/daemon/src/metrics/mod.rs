//! Metrics for Prometheus: what status knows, in its text format.
//!
//! Status is taken apart field by field, so a field that is added has to be judged here. No label ever says who a client is, and what labels may say is
//! bounded by the configuration and by closed sets, each of which has a table in `config/metrics.md`.

mod family;
mod latest;
mod listener;
mod page;
mod sheet;

use std::collections::BTreeMap;

use towpath_core::counters::{ServiceCounter, WorkerCounter};
use towpath_core::histogram::Latency;
use towpath_core::plane::{NeighbourCounter, PlaneCounter};

use crate::process::{self, ProcessUse};
use crate::shared::RingCounter;
use crate::status::{
    AccessLogStatus, CertificateStatus, HandshakePoolStatus, HealthStatus, LatencyStatus, LeavingServer, LimitsStatus,
    NotifyStatus, OutboundStatus, QueueStatus, ServerStatus, ServiceState, ServiceStatus, SourcePortsStatus, Status,
    Usage, WorkerStatus,
};
pub use family::{Family, Kind, families};
use family::{Reading, latency_name, of_plane, of_service, of_worker};
pub(crate) use latest::{Latest, here};
pub(crate) use listener::{MetricsServer, bind};
pub use page::page;
use sheet::{Sheet, Value};

/// What the answer says it is.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `status` as metrics, and what the kernel tells of this process.
pub fn render(status: &Status) -> String {
    write(status, &process::process_use())
}

fn write(status: &Status, process: &ProcessUse) -> String {
    let families = families();
    let mut sheet = Sheet::new(&families);
    let Status {
        version,
        phase,
        // Over when a process has gone that collects nothing any more.
        taken_over: _,
        // Who collects them has clocks of its own.
        uptime_seconds: _,
        started_unix_ms,
        generation,
        services,
        outbound,
        leaving,
        source_ports,
        workers,
        neighbours,
        handshake_pool,
        access_log,
        notify,
        limits,
        // Each for itself is in the log; here is how many there were.
        events: _,
        events_total,
        latency_bounds_us,
        role,
        // Who collects them has clocks of its own.
        unix_ms: _,
    } = status;
    sheet.add("towpath_build_info", &[version], 1u64);
    for known in ["running", "draining", "ending"] {
        sheet.add("towpath_phase", &[known], phase == known);
    }
    for known in ["active", "standby"] {
        sheet.add("towpath_role", &[known], role == known);
    }
    sheet.add("towpath_generation", &[], *generation);
    sheet.add("process_start_time_seconds", &[], Value::Parts(*started_unix_ms, 1_000));
    put_process(process, &mut sheet);
    services.iter().for_each(|service| put_service(service, latency_bounds_us, &mut sheet));
    put_leaving(leaving, &mut sheet);
    if let Some(pool) = handshake_pool {
        put_pool(pool, &mut sheet);
    }
    workers.iter().for_each(|worker| put_worker(worker, &mut sheet));
    put_neighbours(neighbours, &mut sheet);
    source_ports.iter().for_each(|ports| put_source_ports(ports, &mut sheet));
    outbound.iter().for_each(|nat| put_outbound(nat, &mut sheet));
    put_limits(limits, &mut sheet);
    for (kind, count) in events_total {
        sheet.add("towpath_events_total", &[kind], *count);
    }
    if let Some(log) = access_log {
        put_access_log(log, &mut sheet);
    }
    notify.iter().for_each(|receiver| put_notify(receiver, &mut sheet));
    sheet.finish()
}

fn put_process(process: &ProcessUse, sheet: &mut Sheet<'_>) {
    let ProcessUse { cpu_ms, resident_bytes, virtual_bytes, threads } = *process;
    sheet.add("process_cpu_seconds_total", &[], Value::Parts(cpu_ms, 1_000));
    sheet.add("process_resident_memory_bytes", &[], resident_bytes);
    sheet.add("process_virtual_memory_bytes", &[], virtual_bytes);
    sheet.add("process_threads", &[], threads);
}

fn put_service(service: &ServiceStatus, bounds_us: &[u64], sheet: &mut Sheet<'_>) {
    let ServiceStatus {
        name,
        state,
        vip,
        // A label would have to list them.
        ports: _,
        protocol,
        plane,
        // Of what the file says.
        mode: _,
        balance,
        // It is what the file says.
        persistence_ms: _,
        connections,
        connections_max,
        queue,
        // Among the counters.
        accepted: _,
        opened: _,
        bytes_from_client: _,
        bytes_to_client: _,
        counters,
        terminations,
        latencies,
        refused_requests,
        refused_responses,
        refused_streams,
        certificates,
        servers,
    } = service;
    let labels = [name.as_str()];
    sheet.add("towpath_service_info", &[name, &vip.to_string(), protocol, plane, balance], 1u64);
    sheet.add("towpath_service_up", &labels, *state != ServiceState::Down);
    sheet.add("towpath_service_degraded", &labels, *state == ServiceState::Degraded);
    for (word, health) in HEALTHS {
        let count = servers.iter().filter(|server| server.health == health).count();
        sheet.add("towpath_service_servers", &[name, word], count);
    }
    sheet.add("towpath_service_connections", &labels, *connections);
    sheet.add("towpath_service_connections_max", &labels, *connections_max);
    if let Some(QueueStatus { waiting, max, longest_ms, timeout_ms: _ }) = queue {
        sheet.add("towpath_service_queue_waiting", &labels, *waiting);
        sheet.add("towpath_service_queue_max", &labels, *max);
        sheet.add("towpath_service_queue_longest_wait_seconds", &labels, Value::Parts(*longest_ms, 1_000));
    }
    for &counter in ServiceCounter::ALL {
        let Reading { name: metric, per_unit, label } = of_service(counter);
        let (metric, value) = (format!("towpath_service_{metric}_total"), count_of(counters, counter.label()));
        match label {
            None => sheet.add(&metric, &labels, Value::Parts(value, per_unit)),
            Some((_, class)) => sheet.add(&metric, &[name, class], value),
        }
    }
    for (metric, counts) in [
        ("towpath_service_terminations_total", terminations),
        ("towpath_service_refused_requests_total", refused_requests),
        ("towpath_service_refused_responses_total", refused_responses),
        ("towpath_service_refused_streams_total", refused_streams),
    ] {
        for (label, count) in counts {
            sheet.add(metric, &[name, label], *count);
        }
    }
    for &latency in Latency::ALL {
        // Where it says nothing, as on the packet plane, it is left out.
        if let Some(LatencyStatus { count: _, sum_us, p50_us: _, p90_us: _, p99_us: _, buckets }) =
            latencies.get(latency.label())
        {
            sheet.add_histogram(&latency_name(latency), &labels, bounds_us, buckets, *sum_us);
        }
    }
    for (place, certificate) in (1u32..).zip(certificates) {
        put_certificate(name, place, certificate, sheet);
    }
    servers.iter().for_each(|server| put_server(name, server, sheet));
}

const HEALTHS: [(&str, HealthStatus); 4] = [
    ("up", HealthStatus::Up),
    ("held", HealthStatus::Held),
    ("unknown", HealthStatus::Unknown),
    ("down", HealthStatus::Down),
];

fn put_certificate(service: &str, place: u32, certificate: &CertificateStatus, sheet: &mut Sheet<'_>) {
    let CertificateStatus { names, not_before_unix_seconds, not_after_unix_seconds, seconds_left: _ } = certificate;
    let place = place.to_string();
    let labels = [service, place.as_str(), names.first().map_or("", String::as_str)];
    sheet.add("towpath_certificate_expiry_timestamp_seconds", &labels, Value::Signed(*not_after_unix_seconds));
    sheet.add("towpath_certificate_start_timestamp_seconds", &labels, Value::Signed(*not_before_unix_seconds));
}

fn put_server(service: &str, server: &ServerStatus, sheet: &mut Sheet<'_>) {
    let ServerStatus {
        name,
        address,
        port,
        weight,
        admin,
        // Who said what is in the log.
        admin_said: _,
        weight_said: _,
        health,
        reason: _,
        duty,
        // It is what the file says.
        sorry: _,
        closed_ports,
        agent: _,
        health_seconds,
        connections,
        service_connections,
        waiting,
        // It is what the file says.
        connections_min: _,
        connections_max,
        opened,
        connects_failed,
        responses,
        errors,
    } = server;
    let place = match port {
        Some(port) => std::net::SocketAddr::new(*address, *port).to_string(),
        None => address.to_string(),
    };
    let labels = [service, name.as_str(), place.as_str()];
    sheet.add("towpath_server_up", &labels, *health == HealthStatus::Up);
    sheet.add("towpath_server_ready", &labels, admin == "ready");
    sheet.add("towpath_server_serving", &labels, duty != "standby");
    sheet.add("towpath_server_state_seconds", &labels, *health_seconds);
    sheet.add("towpath_server_closed_ports", &labels, closed_ports.len());
    sheet.add("towpath_server_weight", &labels, u32::from(*weight));
    sheet.add("towpath_server_connections", &labels, *connections);
    sheet.add("towpath_server_service_connections", &labels, *service_connections);
    sheet.add("towpath_server_connections_max", &labels, *connections_max);
    sheet.add("towpath_server_idle_connections", &labels, *waiting);
    sheet.add("towpath_server_opened_total", &labels, *opened);
    sheet.add("towpath_server_connects_failed_total", &labels, *connects_failed);
    sheet.add("towpath_server_responses_total", &labels, *responses);
    sheet.add("towpath_server_errors_total", &labels, *errors);
}

fn put_leaving(leaving: &[LeavingServer], sheet: &mut Sheet<'_>) {
    // Names come and go with the configuration.
    let of = |LeavingServer { name: _, address: _, port: _, connections }: &LeavingServer| u64::from(*connections);
    sheet.add("towpath_leaving_servers", &[], leaving.len());
    sheet.add("towpath_leaving_connections", &[], leaving.iter().map(of).sum::<u64>());
}

fn put_pool(pool: &HandshakePoolStatus, sheet: &mut Sheet<'_>) {
    let HandshakePoolStatus { cpus, running, queued, counters } = pool;
    sheet.add("towpath_handshake_pool_threads", &[], cpus.len());
    sheet.add("towpath_handshake_pool_running", &[], *running);
    sheet.add("towpath_handshake_pool_queued", &[], *queued);
    for (label, &count) in counters {
        match label.as_str() {
            "busy_ns" => sheet.add("towpath_handshake_pool_busy_seconds_total", &[], nanoseconds(count)),
            "waited_ns" => sheet.add("towpath_handshake_pool_waited_seconds_total", &[], nanoseconds(count)),
            outcome => sheet.add("towpath_handshake_pool_handshakes_total", &[outcome], count),
        }
    }
}

fn nanoseconds(count: u64) -> Value {
    Value::Parts(count, 1_000_000_000)
}

fn put_worker(worker: &WorkerStatus, sheet: &mut Sheet<'_>) {
    let WorkerStatus { id, cpu, state, generation, vshards, sessions, cpu_us, counters, flows, packets, drops } =
        worker;
    let id = id.to_string();
    let labels = [id.as_str()];
    sheet.add("towpath_worker_info", &[&id, &cpu.to_string()], 1u64);
    sheet.add("towpath_worker_serving", &labels, state == "serving");
    sheet.add("towpath_worker_generation", &labels, *generation);
    sheet.add("towpath_worker_vshards", &labels, *vshards);
    sheet.add("towpath_worker_sessions", &labels, *sessions);
    sheet.add("towpath_worker_flows", &labels, *flows);
    sheet.add("towpath_worker_cpu_seconds_total", &labels, Value::Parts(*cpu_us, 1_000_000));
    let longest = count_of(counters, WorkerCounter::BreathMaxMicroseconds.label());
    sheet.add("towpath_worker_breath_max_seconds", &labels, Value::Parts(longest, 1_000_000));
    for &counter in WorkerCounter::ALL {
        let Some(Reading { name, per_unit, label: _ }) = of_worker(counter) else { continue };
        let value = Value::Parts(count_of(counters, counter.label()), per_unit);
        sheet.add(&format!("towpath_worker_{name}_total"), &labels, value);
    }
    if packets.is_empty() {
        return;
    }
    for &counter in PlaneCounter::ALL {
        let metric = format!("towpath_packet_{}_total", of_plane(counter).name);
        sheet.add(&metric, &labels, count_of(packets, counter.label()));
    }
    for &counter in RingCounter::ALL {
        let metric = format!("towpath_packet_{}_total", counter.label());
        sheet.add(&metric, &labels, count_of(packets, counter.label()));
    }
    for (reason, count) in drops {
        sheet.add("towpath_packet_drops_total", &[&id, reason], *count);
    }
}

fn put_neighbours(neighbours: &BTreeMap<String, u64>, sheet: &mut Sheet<'_>) {
    if neighbours.is_empty() {
        return;
    }
    sheet.add("towpath_neighbours", &[], count_of(neighbours, "known"));
    for &counter in NeighbourCounter::ALL {
        let metric = format!("towpath_neighbours_{}_total", counter.label());
        sheet.add(&metric, &[], count_of(neighbours, counter.label()));
    }
}

fn put_source_ports(ports: &SourcePortsStatus, sheet: &mut Sheet<'_>) {
    let SourcePortsStatus {
        // Several may lease from it.
        services: _,
        protocol,
        address,
        destination,
        leased,
        capacity,
        // Both follow from these.
        percent: _,
        nearly_exhausted: _,
    } = ports;
    let (address, server) = (address.to_string(), destination.to_string());
    let labels = [protocol.as_str(), &address, &server];
    sheet.add("towpath_source_ports_leased", &labels, *leased);
    sheet.add("towpath_source_ports_capacity", &labels, *capacity);
}

fn put_outbound(nat: &OutboundStatus, sheet: &mut Sheet<'_>) {
    let OutboundStatus { name, protocol, flows, accepted, opened, bytes_out, bytes_in, terminations } = nat;
    let labels = [name.as_str(), protocol.as_str()];
    sheet.add("towpath_outbound_flows", &labels, *flows);
    sheet.add("towpath_outbound_accepted_total", &labels, *accepted);
    sheet.add("towpath_outbound_opened_total", &labels, *opened);
    sheet.add("towpath_outbound_sent_bytes_total", &labels, *bytes_out);
    sheet.add("towpath_outbound_received_bytes_total", &labels, *bytes_in);
    for (termination, count) in terminations {
        sheet.add("towpath_outbound_terminations_total", &[name, protocol, termination], *count);
    }
}

fn put_limits(limits: &LimitsStatus, sheet: &mut Sheet<'_>) {
    let LimitsStatus { connections, udp_sessions, flows, fast_flows, persistence_entries, descriptors } = limits;
    for (name, usage) in [
        ("connections", connections),
        ("udp_sessions", udp_sessions),
        ("flows", flows),
        ("fast_flows", fast_flows),
        ("persistence_entries", persistence_entries),
    ] {
        let Usage { used, max, refused } = *usage;
        sheet.add("towpath_limit_used", &[name], used);
        sheet.add("towpath_limit_max", &[name], max);
        sheet.add("towpath_limit_refused_total", &[name], refused);
    }
    // Under the names that every process has for them; refusals are counted per service.
    let Usage { used, max, refused: _ } = *descriptors;
    sheet.add("process_open_fds", &[], used);
    sheet.add("process_max_fds", &[], max);
}

fn put_access_log(log: &AccessLogStatus, sheet: &mut Sheet<'_>) {
    let AccessLogStatus { written, dropped, failed, trouble } = log;
    for (outcome, count) in [("written", written), ("dropped", dropped), ("failed", failed)] {
        sheet.add("towpath_access_log_lines_total", &[outcome], *count);
    }
    sheet.add("towpath_access_log_up", &[], trouble.is_none());
}

fn put_notify(receiver: &NotifyStatus, sheet: &mut Sheet<'_>) {
    let NotifyStatus { receiver, delivered, failed, dropped, waiting, trouble } = receiver;
    for (outcome, count) in [("delivered", delivered), ("dropped", dropped)] {
        sheet.add("towpath_notify_events_total", &[receiver, outcome], *count);
    }
    sheet.add("towpath_notify_failed_total", &[receiver], *failed);
    sheet.add("towpath_notify_waiting", &[receiver], *waiting);
    sheet.add("towpath_notify_up", &[receiver], trouble.is_none());
}

fn count_of(counts: &BTreeMap<String, u64>, label: &str) -> u64 {
    counts.get(label).copied().unwrap_or(0)
}
