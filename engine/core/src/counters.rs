//! What is counted, and the page that a worker counts on: one writer, any number of readers.
//!
//! Every refusal, end and fallback has a variant here, so it has a counter, a help line and a row in the reference.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$help:meta])* $variant:ident = $label:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $(#[doc = $text] $variant,)* }

        impl $name {
            /// Every variant, in the order of the page.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The word used in status, metrics and docs.
            pub fn label(self) -> &'static str {
                match self { $($name::$variant => $label,)* }
            }

            /// One sentence for the reference.
            pub fn help(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

pub(crate) use counters;

counters!(
    /// Counted per worker and service.
    ServiceCounter {
        Accepted = "accepted", "Connections or UDP sessions that clients opened, and with HTTP/2 the ways that their streams take beside each other.";
        Opened = "opened", "Connections or UDP sessions that reached a real server.";
        Closed = "closed", "Opened connections or UDP sessions that have ended.";
        BytesFromClient = "bytes_from_client", "Payload bytes relayed from clients to real servers.";
        BytesToClient = "bytes_to_client", "Payload bytes relayed from real servers to clients.";
        DatagramsFromClient = "datagrams_from_client", "UDP datagrams relayed from clients to real servers.";
        DatagramsToClient = "datagrams_to_client", "UDP datagrams relayed from real servers to clients.";
        DatagramsCrowded = "datagrams_crowded", "UDP datagrams of a SIP call beyond the 1,024 that one client's port has a session for: they went by its session beside calls.";
        DatagramsDropped = "datagrams_dropped", "UDP datagrams that the kernel refused to send on: its queue was full, or the port is closed.";
        Consoled = "consoled", "Connections, in HTTP mode requests, that the sorry server got because no server of the service could take them (`sorry`).";
        Redispatched = "redispatched", "Connects that failed and were tried again on another real server.";
        SnatRetried = "snat_retried", "Leased source ports that the kernel refused; the next lease was tried.";
        Bulk = "bulk", "Directions of a connection that were spliced through a pipe.";
        BufferWaited = "buffer_waited", "Times a receive or a send waited because the worker's buffers were all in use.";
        HandshakesFull = "handshakes_full", "TLS handshakes with clients that were completed with a signature.";
        HandshakesResumed = "handshakes_resumed", "TLS handshakes with clients that resumed a session.";
        ServerHandshakesFull = "server_handshakes_full", "TLS handshakes with real servers that were completed in full.";
        ServerHandshakesResumed = "server_handshakes_resumed", "TLS handshakes with real servers that resumed a session.";
        ServerHandshakesFailed = "server_handshakes_failed", "TLS handshakes with real servers that failed; another server was tried.";
        Queued = "queued", "Connections, and in HTTP mode requests, that waited for a place on a real server (`queue`).";
        QueueServed = "queue_served", "Those that got one.";
        QueueWaitedMilliseconds = "queue_waited_milliseconds", "How long these had waited, together.";
        Requests = "requests", "HTTP: requests whose head was whole.";
        Responses2xx = "responses_2xx", "HTTP: responses with a status of 200 to 299, as clients got them.";
        Responses3xx = "responses_3xx", "HTTP: responses with a status of 300 to 399.";
        Responses4xx = "responses_4xx", "HTTP: responses with a status of 400 to 499.";
        Responses5xx = "responses_5xx", "HTTP: responses with a status of 500 or more.";
        Answered = "answered", "HTTP: responses that no real server made: redirects, refusals, pages of ours.";
        Denied = "denied", "HTTP: requests that a filter refused.";
        Unserved = "unserved", "HTTP: requests that found no real server and were answered with 502, 503 or 504.";
        Http2 = "http2", "HTTP/2: connections of clients that chose it.";
        Tunnels = "tunnels", "HTTP: connections that went over to another protocol (101).";
        Resent = "resent", "HTTP: requests sent again, because the connection that they were sent by was closed without an answer.";
        ServerDialled = "server_dialled", "HTTP: connections to real servers that were opened.";
        ServerReused = "server_reused", "HTTP: requests sent by a connection to a real server that had served another client (`reuse`).";
        ServerIdleEnded = "server_idle_ended", "HTTP: shared connections that their real server closed, or said something by, while they waited for a client.";
        ServerIdleRefused = "server_idle_refused", "HTTP: shared connections closed because no more may wait (`reuse_idle_max`), or something was still under way on them.";
        ServerIdleRetired = "server_idle_retired", "HTTP: shared connections closed while they waited, because their real server or service changed, its places were needed or the process stopped.";
        ServerIdleTimedOut = "server_idle_timed_out", "HTTP: shared connections that waited for a client for reuse_idle_timeout.";
    }
);

counters!(
    /// Why a connection or UDP session ended: its termination code.
    Termination {
        BadFrames = "bad_frames", "HTTP/2: the client broke the rules of its connection, or did too much of something; the reasons are counted apart.";
        BadRequest = "bad_request", "HTTP: the client's request was refused; the reasons are counted apart.";
        BadResponse = "bad_response", "HTTP: the real server's response was refused; the reasons are counted apart.";
        ClientClosed = "client_closed", "Both sides finished; the client sent its FIN first.";
        ClientReset = "client_reset", "The client reset the connection.";
        ClientTruncated = "client_truncated", "The client ended its connection without ending TLS: what it sent may be cut off.";
        ConnectFailed = "connect_failed", "No real server accepted the connection.";
        ConnectTimedOut = "connect_timed_out", "The last real server tried did not answer within connect_timeout.";
        DrainEnded = "drain_ended", "drain_timeout ran out, or a second stop signal came.";
        HandshakeAlert = "handshake_alert", "The client gave up the TLS handshake with an alert: it does not trust the certificate, or wants what is refused.";
        HandshakeCertificate = "handshake_certificate", "The client's certificate was missing or refused.";
        HandshakeFailed = "handshake_failed", "What the client sent was not TLS, or broke its rules.";
        HandshakeLeft = "handshake_left", "The client went away before the TLS handshake was over.";
        HandshakeNothingShared = "handshake_nothing_shared", "The client speaks no TLS version, cipher suite, group or application protocol that is allowed here.";
        HandshakeRefused = "handshake_refused", "The TLS handshake waited longer than tls.queue_deadline, or its queue was full.";
        HandshakeTimedOut = "handshake_timed_out", "The client did not complete the TLS handshake within handshake_timeout.";
        HandshakeUnknownName = "handshake_unknown_name", "The client asked for a name that no certificate is for, with strict_sni.";
        HeadTimedOut = "head_timed_out", "HTTP: the head of a request was not whole within head_timeout.";
        IdleTimedOut = "idle_timed_out", "No byte in either direction for idle_timeout.";
        KeepAliveEnded = "keep_alive_ended", "HTTP: the connection ended between two requests: as one side wanted it, by idle_timeout or for a drain.";
        Killed = "killed", "An operator ended it (`towpath sessions kill`).";
        LogonOverHttp2 = "logon_over_http2", "HTTP/2: a logon that authenticates the connection; the client was told to come by HTTP/1.1.";
        QueueFull = "queue_full", "Every place was taken, and as many clients waited for one as may (`queue`).";
        QueueLeft = "queue_left", "The client went away while it waited for a place.";
        QueueTimedOut = "queue_timed_out", "No place became free within queue_timeout.";
        OutOfConnections = "out_of_connections", "limits.connections or limits.udp_sessions was reached.";
        OutOfDescriptors = "out_of_descriptors", "The process had no file descriptor left.";
        OutOfHandshakes = "out_of_handshakes", "limits.handshakes was reached.";
        OutOfSourcePorts = "out_of_source_ports", "Every (source address, port) towards the real server was leased.";
        OutOfTlsBuffers = "out_of_tls_buffers", "Others waited for TLS buffers (limits.tls_buffers), and its peer took less than 64 kbit/s of what it held.";
        OutOfTlsMemory = "out_of_tls_memory", "Parts of TLS records filled the room for them (limits.tls_buffers), and it had waited longest for the rest of its own.";
        NoServer = "no_server", "No real server was up and ready.";
        ProxyInvalid = "proxy_invalid", "PROXY protocol: what came from a proxy of `proxy_protocol_from` did not begin with a header, or with a damaged one.";
        ProxyLeft = "proxy_left", "PROXY protocol: the connection ended before its header was whole, as those of simple checks do.";
        ProxyTimedOut = "proxy_timed_out", "PROXY protocol: the header was not whole within proxy_protocol_timeout.";
        ProxyUntrusted = "proxy_untrusted", "PROXY protocol: the connection came from outside of proxy_protocol_from.";
        RequestCutOff = "request_cut_off", "HTTP: the client ended its stream amid a request.";
        ResponseCutOff = "response_cut_off", "HTTP: the real server's connection ended amid a response; the client's was reset.";
        ResponseTimedOut = "response_timed_out", "HTTP: the real server did not begin its response within response_timeout.";
        ServerClosed = "server_closed", "Both sides finished; the real server sent its FIN first.";
        ServerDown = "server_down", "The real server failed its health check, or was the sorry server and others are back. UDP: the client's next datagram goes to another. TCP: with `drop_on_failure`, and a server's failure only.";
        ServerHandshakeFailed = "server_handshake_failed", "No real server completed a TLS handshake.";
        ServerDrained = "server_drained", "The drain of the real server was over, and it was to be halted then: its deadline had passed, or few enough connections were left.";
        ServerHalted = "server_halted", "The operator halted the real server.";
        ServerReset = "server_reset", "The real server reset the connection.";
        ServerTruncated = "server_truncated", "The real server ended its connection without ending TLS: what it sent may be cut off.";
        ServersFull = "servers_full", "Every real server that is up was at max_connections.";
        ServiceFull = "service_full", "The service was at its max_connections.";
        SystemRefused = "system_refused", "The kernel refused an operation that should have worked.";
        TlsBroken = "tls_broken", "A TLS record was damaged or against the rules, after the handshake.";
    }
);

counters!(
    /// Counted per worker.
    WorkerCounter {
        Breaths = "breaths", "Turns of the worker's loop.";
        Sleeps = "sleeps", "Turns in which the worker slept until something happened.";
        Completions = "completions", "Completions taken from the ring.";
        Submissions = "submissions", "Operations submitted to the ring.";
        AcceptFailed = "accept_failed", "Accepts that failed for another reason than a missing descriptor.";
        LogLines = "log_lines", "Lines given to the log.";
        LogDropped = "log_dropped", "Lines that were not written because the log had fallen behind: its destination is too slow, or stands still.";
        BusyMicroseconds = "busy_microseconds", "Time on the CPU, the kernel's work for the worker included; of workers that never sleep, that of turns in which there was something to do.";
        BreathMaxMicroseconds = "breath_max_microseconds", "Longest turn of the loop since the start.";
    }
);

/// A page of counters for one worker (and, where `T` is per service, one service).
///
/// Exactly one thread adds; others only read. So adding is a plain load and store without a lock prefix.
pub struct CounterPage {
    cells: Box<[AtomicU64]>,
}

impl CounterPage {
    /// A page with `len` cells, all 0.
    pub fn new(len: usize) -> CounterPage {
        CounterPage { cells: (0..len).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds `n` to cell `index`. Only the page's one writer may call this.
    #[inline]
    pub fn add(&self, index: usize, n: u64) {
        let cell = &self.cells[index];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Changes cell `index`, which counts what there is now. Only the page's one writer may call this.
    #[inline]
    pub fn change(&self, index: usize, by: i32) {
        let cell = &self.cells[index];
        cell.store(cell.load(Ordering::Relaxed).saturating_add_signed(i64::from(by)), Ordering::Relaxed);
    }

    /// Raises cell `index` to `value` if it is lower. Only the page's one writer may call this.
    #[inline]
    pub fn raise(&self, index: usize, value: u64) {
        let cell = &self.cells[index];
        if value > cell.load(Ordering::Relaxed) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// The value of cell `index` as of about now.
    pub fn read(&self, index: usize) -> u64 {
        self.cells[index].load(Ordering::Relaxed)
    }
}
