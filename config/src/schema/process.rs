//! Tables about the process as a whole.

use super::{HOUR, Kind, MINUTE, MS, SECOND, Table, Word, duration, integer, key, word};

pub(super) static RUNTIME: Table = Table {
    path: "runtime",
    doc: "Workers and how they wait.",
    keys: &[
        key(
            "workers",
            Kind::Either(&[
                Kind::Word(&[word("auto", "One worker on each CPU that the process may use.")]),
                Kind::List(&integer(0, 4095, "CPU id"), 1024),
            ]),
            "Which CPUs carry a worker: `\"auto\"`, or their ids. A reload may leave out the last ones of those that were started, and put them back.",
        )
        .default("auto"),
        key(
            "poll",
            Kind::Word(&[
                word("adaptive", "Spin a little, then sleep until there is work."),
                word("busy", "Never sleep: lowest latency, one whole CPU per worker."),
            ]),
            "How a worker waits when it has nothing to do.",
        )
        .default("adaptive"),
        key(
            "fast_path",
            Kind::Word(&[
                word("auto", "Where the kernel lets us; the plan says why not."),
                word("off", "Never: every frame goes through a worker, and none of our programs runs in the kernel."),
            ]),
            "Whether the kernel itself carries open connections of the packet plane onwards (TCP over IPv4 that is translated or routed).",
        )
        .default("auto"),
        key(
            "role",
            Kind::Word(&[
                word("active", "It serves, and says where its addresses are."),
                word(
                    "standby",
                    "Another machine serves: the packet plane is silent, but for the addresses of VLANs and bridges, which are each machine's own; listeners and health checks are ready.",
                ),
            ]),
            "What this machine is to its twin at the start, until another word is said (`towpath role`, as from a notify script of keepalived); a reload that changes it holds again. \
             Where it is written, addresses of the stream plane may be missing: they move between the machines.",
        )
        .described("`\"active\"`, and no twin"),
    ],
};

pub(super) static LIMITS: Table = Table {
    path: "limits",
    doc: "Upper bounds of everything that is allocated, for the whole process. Reaching one is counted and refuses the newcomer.",
    keys: &[
        key(
            "connections",
            Kind::Either(&[
                Kind::Word(&[word("auto", "As many as the open file limit allows.")]),
                integer(1, 16_777_216, "connections"),
            ]),
            "TCP connections relayed at the same time.",
        )
        .default("auto"),
        key(
            "udp_sessions",
            Kind::Either(&[
                Kind::Word(&[word("auto", "As many as the open file limit allows, and 65,536 at most.")]),
                integer(1, 16_777_216, "sessions"),
            ]),
            "UDP sessions relayed at the same time.",
        )
        .default("auto"),
        key(
            "persistence_entries",
            integer(1, 16_777_216, "entries"),
            "Persistence entries over all services; the least recently used makes room.",
        )
        .default("262144"),
        key(
            "buffers",
            Kind::Either(&[
                Kind::Word(&[word("auto", "Two for each connection, in at most an eighth of the memory.")]),
                integer(16, 65_535, "buffers"),
            ]),
            "Receive buffers per worker for TCP. One is held only while its bytes wait to be sent, and memory is touched only as \
             far as buffers are held.",
        )
        .default("auto"),
        key("buffer_bytes", integer(4096, 1_048_576, "bytes"), "Length of one receive buffer for TCP.").default("16384"),
        key(
            "flows",
            integer(1024, 268_435_456, "flows"),
            "Flows of the packet plane at the same time; each worker has an equal share.",
        )
        .default("1048576"),
        key(
            "fast_flows",
            Kind::Either(&[
                Kind::Word(&[word("auto", "As `flows`, at most 262,144, in at most a sixteenth of the memory.")]),
                integer(1024, 4_194_304, "flows"),
            ]),
            "Of these flows, those that the kernel itself carries onwards at the same time; each worker has an equal share. Flows beyond go through the \
             workers.",
        )
        .default("auto"),
        key(
            "tls_buffers",
            Kind::Either(&[
                Kind::Word(&[word("auto", "As a sixteenth of the memory allows, 64 at least and 8,192 at most.")]),
                integer(16, 32_768, "buffers"),
            ]),
            "Buffers per worker for connections whose TLS is ended, of each kind: to receive into and to send from, 128 KiB and a little more each. One \
             is held only while its bytes wait to be sent. Of records of which only a part has come, 128 KiB per buffer are kept beside them.",
        )
        .default("auto"),
        key("http2_streams", integer(1, 1000, "streams"), "Streams of one client connection of HTTP/2 at the same time.").default("100"),
        key(
            "http2_window",
            integer(65_535, 16_777_216, "bytes"),
            "Bytes of a request body on one stream of HTTP/2 that may be here and not passed on; a connection may have eight times as many.",
        )
        .default("262144"),
        key("handshakes", integer(1, 1_048_576, "handshakes"), "TLS handshakes waiting or under way.")
            .default("16384"),
    ],
};

pub(super) static METRICS: Table = Table {
    path: "metrics",
    doc: "A listener for who collects [metrics](metrics.md), as Prometheus does. The control socket has them, too.",
    keys: &[
        key(
            "listen",
            Kind::Socket,
            "Where `GET /metrics` is answered, by plain HTTP; without it nowhere. Nothing else is answered there.",
        ),
        key("from", Kind::List(&Kind::Network, 64), "Networks whose addresses may ask.")
            .described("everybody who reaches it"),
    ],
};

/// `log.connections` and `service.log`.
pub(super) static LOGGED: &[Word] = &[
    word("none", "Only counters."),
    word("errors", "Those that did not end as they should, and responses of 500 and more."),
    word("all", "Every connection; in HTTP mode every request."),
];

pub(super) static LOG: Table = Table {
    path: "log",
    doc: "What is written down, and where to.",
    keys: &[
        key(
            "level",
            Kind::Word(&[
                word("error", "Errors only."),
                word("warn", "Errors and warnings."),
                word("info", "And what the operator should know: servers up and down, reloads."),
                word("debug", "And what a developer wants to know."),
            ]),
            "How much the daemon tells about itself; `towpath run --log` is stronger. A line that comes again and again is written five times, then every ten seconds how often it came.",
        )
        .default("info"),
        key(
            "format",
            Kind::Word(&[word("text", "For people."), word("json", "For programs: an object a line, with `time`, `level` and `message`.")]),
            "How a line of the daemon's own is written; to syslog always as text.",
        )
        .default("text"),
        key(
            "to",
            Kind::Word(&[
                word("stderr", "Standard error; systemd keeps it in its journal, with the level of each line."),
                word("syslog", "The syslog of `syslog`; what is told before the configuration is taken, and about syslog itself, goes to standard error."),
            ]),
            "Where lines of the daemon's own go.",
        )
        .default("stderr"),
        key(
            "syslog",
            Kind::Either(&[Kind::Socket, Kind::Path]),
            "Syslog server (RFC 5424), or the path of this machine's socket, `\"/dev/log\"`, for `to = \"syslog\"` and `connections_to = \"syslog\"`.",
        ),
        key(
            "syslog_transport",
            Kind::Word(&[
                word("tcp", "A connection, with the length in front of each message (RFC 6587)."),
                word("udp", "A datagram each (RFC 5426)."),
            ]),
            "How a syslog server is spoken to.",
        )
        .default("udp"),
        key(
            "connections",
            Kind::Word(LOGGED),
            "Which connections of the stream plane get a line each ([access log](access-log.md)); packets and UDP sessions have counters only.",
        )
        .default("none"),
        key(
            "connections_format",
            Kind::Word(&[
                word("combined", "The combined format of Apache and nginx; only for services in HTTP mode."),
                word("haproxy", "That of HAProxy's `option httplog` and `option tcplog`."),
                word("json", "An object a line, with everything that is known."),
            ]),
            "How such a line reads.",
        )
        .default("haproxy"),
        key(
            "connections_to",
            Kind::Either(&[
                Kind::Word(&[
                    word("stderr", "Standard error."),
                    word("stdout", "Standard output."),
                    word("syslog", "The syslog of `syslog`."),
                ]),
                Kind::Path,
            ]),
            "Where such lines go: one of these words, or the path of a file that they are appended to. The file is opened anew when it was renamed or removed, and at a reload.",
        )
        .default("stderr"),
        key(
            "connections_query",
            Kind::Word(&[
                word("names", "The names of its parameters, with `*` for each value."),
                word("none", "Nothing."),
                word("whole", "All of it: passwords and tokens, too, where clients put them there."),
            ]),
            "What is written of the query of a request, and of `Referer`.",
        )
        .default("names"),
    ],
};

pub(super) static PAIR: Table = Table {
    path: "pair",
    doc: "A second machine that takes over addresses, flows, leases and persistence.",
    keys: &[
        key("peer", Kind::Socket, "Address and port of the other machine.").required(),
        key("listen", Kind::Socket, "Own address and port for the other machine.").required(),
        key(
            "role",
            Kind::Word(&[word("primary", "Carries traffic when both are well."), word("secondary", "Stands by.")]),
            "Who carries traffic when both are well.",
        )
        .required(),
        key("secret_file", Kind::Path, "File with the shared secret.").required(),
        key("heartbeat", duration(100 * MS, MINUTE), "Time between signs of life.").default("1s"),
        key("dead_after", duration(300 * MS, HOUR), "Silence after which the other machine counts as dead.")
            .default("3s"),
        key("preempt", Kind::Bool, "The primary takes traffic back when it returns.").default("false"),
        key("replicate", Kind::Bool, "Flows, leases and persistence entries are copied, so connections survive.")
            .default("true"),
        key("start_alone_after", duration(SECOND, HOUR), "How long a lonely start waits for the other machine.")
            .default("10s"),
    ],
};
