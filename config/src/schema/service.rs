//! Tables about services, their servers, and how both are judged.

use super::{
    DAY, HOUR, Key, Kind, MINUTE, MS, SECOND, SERVERS_MAX, Table, duration, http, integer, key, later, process::LOGGED,
    tls::TLS, word,
};

pub(super) const BALANCE: Kind = Kind::Word(&[
    word("least-connections", "Fewest connections; ties rotate."),
    later("least-load", "Lowest load that the server itself reports (`health.agent_port`)."),
    word("maglev", "Consistent hash of the client address (Maglev): few clients move when servers come and go."),
    word("random-of-two", "The less loaded of two drawn at random."),
    later("response-time", "Fastest answers."),
    word("round-robin", "In turn."),
    word("source-hash", "Hash of the client address over the servers that are up."),
    word("weighted-least-connections", "Fewest connections per weight; ties rotate."),
    word("weighted-round-robin", "In turn, by weight, smoothly interleaved."),
]);

const PROXY_PROTOCOL: Key = key(
    "proxy_protocol",
    Kind::Word(&[
        word("none", "Nothing."),
        word("v1", "A line of text: addresses and ports."),
        word("v2", "The same in binary; where TLS is ended here also its version, cipher suite, name and protocol."),
    ]),
    "What servers are told of the client at the start of each connection (PROXY protocol). Health checks of the same port say that they are none.",
);

/// `[[service]]`
pub static SERVICE: Table = Table {
    path: "service",
    doc: "A virtual service: the address and ports that clients use, and the servers behind them.",
    keys: &[
        key("name", Kind::Name, "Unique name.").required(),
        key("vip", Kind::Address, "The address that clients use.").required(),
        key(
            "ports",
            Kind::Either(&[Kind::Word(&[word("all", "Every port (packet plane only).")]), Kind::Ports]),
            "The ports that clients use: `443`, `[80, 443]`, `\"49152-57500\"`, `[443, \"50000-50099\"]` or `\"all\"`.",
        )
        .required(),
        key("protocol", Kind::Word(&[word("tcp", "TCP."), word("udp", "UDP.")]), "Transport protocol.").default("tcp"),
        key(
            "plane",
            Kind::Word(&[
                word("packet", "Packets: the VIP belongs to Towpath, which answers for it on the network."),
                word("stream", "Connections: the VIP belongs to the kernel and must be an address of this host."),
            ]),
            "Which plane carries it.",
        )
        .default("stream"),
        key(
            "forwarding",
            Kind::Word(&[
                word("dsr", "Direct server return: the reply bypasses the balancer. Health checks ask each server for the VIP."),
                word("full-nat", "Source and destination are rewritten."),
                word(
                    "half-nat",
                    "Only the destination is rewritten; servers see the client and route back through the balancer.",
                ),
            ]),
            "How packets are rewritten; packet plane only.",
        )
        .described("`\"full-nat\"` on the packet plane"),
        key(
            "application",
            Kind::Word(&[
                word("exchange-2010", "Exchange 2010."),
                word("exchange-2013", "Exchange 2013 and later."),
                word("ldap", "LDAP."),
                word("lync-2010", "Lync 2010."),
                word("lync-2013", "Lync 2013, Skype for Business."),
                word("ocs-2007r2", "Office Communications Server 2007 R2."),
                word("radius", "RADIUS."),
                word("sharepoint", "SharePoint."),
                word("smtp", "SMTP."),
            ]),
            "What it serves; switches on the rules for that product.",
        ),
        key("balance", BALANCE, "How a server is chosen for a new client.")
            .described("the group's, else `\"weighted-least-connections\"`"),
        key("persistence", Kind::Table(&PERSISTENCE), "Whether a client comes back to its server."),
        key(
            "idle_timeout",
            duration(SECOND, 7 * DAY),
            "A connection or session without a byte in either direction for this long is closed.",
        )
        .described("`\"30m\"` for TCP, `\"5m\"` for UDP"),
        key("connect_timeout", duration(10 * MS, 5 * MINUTE), "How long a connection to a server may take.")
            .default("4s"),
        key(
            "drain_timeout",
            duration(0, 7 * DAY),
            "How long connections may finish when the process stops or the service goes.",
        )
        .default("30s"),
        key("redispatch", integer(0, 16, "servers"), "How many further servers are tried when a connect fails.")
            .default("3"),
        key(
            "drop_on_failure",
            Kind::Bool,
            "Connections to a server that goes down are reset at both ends, so that clients come back at once; with `forwarding = \"dsr\"` only the server's end can be. UDP always goes to another server.",
        )
        .default("false"),
        key(
            "panic_threshold",
            integer(0, 100, "percent"),
            "Share of its servers that must be up. Below it backups join in; where no backup is up, checks are not believed any more, and every server that is ready takes clients (fail open). 0 = never.",
        )
        .default("0"),
        key(
            "slow_start",
            duration(0, HOUR),
            "How long a server that was down takes less than its share of new connections, at first a tenth of it; 0 = not at all.",
        )
        .default("0ms"),
        key(
            "max_connections",
            integer(0, 16_777_216, "connections"),
            "Never more than this many connections at once, in HTTP mode requests, over all workers; 0 = no limit.",
        )
        .default("0"),
        key(
            "queue",
            integer(0, 65_536, "clients"),
            "How many clients may wait when every server, or the service, is at its `max_connections`: connections, in HTTP mode requests. First come, first served; servers behind a route have a queue of their own. In HTTP mode a client that ends its stream while its request waits is taken for gone. 0 = none waits. Stream plane and TCP only.",
        )
        .default("0"),
        key("queue_timeout", duration(10 * MS, 10 * MINUTE), "How long one may wait.").default("10s"),
        key(
            "overload",
            Kind::Word(&[
                word("reset", "It is reset, and turns elsewhere at once if it can."),
                word("silent", "It gets no answer, and asks again by itself (TCP: after 1 s, 3 s, 7 s) until there is room or it gives up."),
            ]),
            "What becomes of a TCP client that finds every server, or the service, at its `max_connections`; packet plane only. On the stream plane it is reset, in HTTP mode it is answered 503 with `http.retry_after`, after `queue`; UDP gets no answer.",
        )
        .default("silent"),
        key(
            "source",
            Kind::Either(&[
                Kind::Word(&[
                    word("client", "The client's own address; needs `forwarding = \"half-nat\"` on the packet plane."),
                    word(
                        "interface",
                        "The address that the kernel picks; on the packet plane with ports leased from 16384-32767.",
                    ),
                    word("vip", "The VIP, with ports leased from 1024-65535."),
                ]),
                Kind::Table(&SOURCE),
            ]),
            "The address that the real server sees: `\"interface\"`, `\"vip\"` or `{ pool = [...] }`. With `forwarding = \"half-nat\"`, \
             the address for clients on the servers' own network only.",
        )
        .default("interface"),
        key(
            "client_networks",
            Kind::List(&Kind::Network, 256),
            "Networks that clients come from, to check half-NAT against; wider than /8 (IPv6: /32) counts as anywhere.",
        )
        .described("any"),
        key(
            "accept_hidden_client",
            Kind::Bool,
            "Accept that servers of mail and RADIUS services see the balancer instead of the client.",
        )
        .default("false"),
        key(
            "next_hop",
            Kind::Address,
            "Gateway of this service's replies, instead of the routes; clients on a network of this host are answered without it.",
        ),
        key("interface", Kind::Name, "Interface, VLAN or bridge that the VIP lives on.")
            .described("the one whose network holds the VIP"),
        key("tls", Kind::Table(&TLS), "TLS of this service."),
        key("http", Kind::Table(&http::HTTP), "HTTP mode; its presence switches it on."),
        key("log", Kind::Word(LOGGED), "Which connections get a line each; stream plane and TCP only.").described("`log.connections`"),
        key(
            "proxy_protocol_from",
            Kind::List(&Kind::Network, 256),
            "Networks of proxies in front. What comes from there has to begin with a header of the PROXY protocol, version 1 or 2, and the client that it names counts for everything.",
        )
        .described("none"),
        key("proxy_protocol_timeout", duration(100 * MS, MINUTE), "How long such a header may take.").default("3s"),
        key(
            "proxy_protocol_others",
            Kind::Word(&[
                word("refuse", "Their connections are reset."),
                word("serve", "They are clients as any other; a header of theirs is bytes."),
            ]),
            "Clients from elsewhere, where `proxy_protocol_from` is given.",
        )
        .default("refuse"),
        PROXY_PROTOCOL.described("`\"none\"`"),
        key("template", Kind::Name, "Template whose settings this service takes over.").later(),
        key("group", Kind::Name, "Name of the server group behind it, instead of `[[service.server]]`; a service that answers or redirects every request itself needs neither."),
        key("health", Kind::Table(&HEALTH), "How servers are judged; replaces the group's."),
        key("server", Kind::Tables(&SERVER, SERVERS_MAX), "Real servers, when no group is named."),
        key("sorry", Kind::Table(&SORRY), "Who serves while no server can; in HTTP mode a page does it too (`http.maintenance`)."),
    ],
};

/// `[[group]]`
pub static GROUP: Table = Table {
    path: "group",
    doc: "Servers that several services share.",
    keys: &[
        key("name", Kind::Name, "Unique name.").required(),
        key("balance", BALANCE, "How services of this group choose, unless they say otherwise.")
            .default("weighted-least-connections"),
        key("health", Kind::Table(&HEALTH), "How servers are judged; without it they count as up."),
        PROXY_PROTOCOL.described("the service's"),
        key("server", Kind::Tables(&SERVER, SERVERS_MAX), "Real servers.").required(),
    ],
};

/// `[[service.server]]`, `[[group.server]]`
pub static SERVER: Table = Table {
    path: "service.server",
    doc: "A real server, as `[[service.server]]` or `[[group.server]]`. The same address and port is one server: counted, checked and drained once.",
    keys: &[
        key("name", Kind::Name, "Unique in its group.").required(),
        key("address", Kind::Address, "Address of the server.").required(),
        key("port", integer(1, 65_535, "port"), "Port of the server.").described("the port that the client used"),
        key("weight", integer(0, 65_535, "weight"), "Share of new connections relative to the others; 0 = none.")
            .default("100"),
        key(
            "min_connections",
            integer(0, 16_777_216, "connections"),
            "While it has fewer connections than this, over all services and workers, new clients of this service go to it before servers that have theirs; 0 = off. Each service has its own word about it. Clients that come back to their server do so all the same.",
        )
        .default("0"),
        key(
            "max_connections",
            integer(0, 16_777_216, "connections"),
            "Never more than this many connections, in HTTP mode requests, over all services and workers; 0 = no limit.",
        )
        .default("0"),
        key(
            "admin",
            Kind::Word(&[
                word("drain", "Keeps its connections, takes no new ones."),
                word("halt", "Takes none and keeps none."),
                word("ready", "Takes new connections."),
            ]),
            "The operator's word, until another one is said at run time (`towpath server`); a reload that changes it holds again.",
        )
        .default("ready"),
        key(
            "backup",
            Kind::Bool,
            "Takes clients only while no other server is up and ready (or fewer than `panic_threshold`), and of a connection whose other servers all refused it. Servers that are only full do not count as gone. Clients leave it with their next connection.",
        )
        .default("false"),
        key("re_encrypt", Kind::Bool, "TLS towards this server, for services that end it.").described("by `tls.mode`"),
        key("server_name", Kind::Text, "Name sent to this server (SNI) and expected in its certificate.")
            .described("`tls.server_name`"),
        PROXY_PROTOCOL.described("the group's, else the service's"),
    ],
};

/// `sorry`
static SORRY: Table = Table {
    path: "service.sorry",
    doc: "A server that takes clients only while no other of the service can: all are down, drained or halted, or of one connection all refused it. Servers that are only full do not count as gone. \
          It is called `sorry` in status and orders, and is never checked. No client is remembered as its own: entries and cookies keep the server that they name. As soon as a server is \
          back it gets the new clients; who is with this one stays until its connection ends, in HTTP mode until its next request, of UDP not at all. With routes it stands in for the servers of each.",
    keys: &[
        key("address", Kind::Address, "Address of the server.").required(),
        key("port", integer(1, 65_535, "port"), "Port of the server.").described("the port that the client used"),
        key("re_encrypt", Kind::Bool, "TLS towards it, where the service ends it.").default("false"),
        key("server_name", Kind::Text, "Name sent to it (SNI) and expected in its certificate.")
            .described("`tls.server_name`"),
    ],
};

/// Kinds that one `persistence.by` may name.
const KINDS_MAX: usize = 4;

const PERSIST_BY: Kind = Kind::Word(&[
    word("cookie", "A cookie, inserted or found; needs HTTP mode."),
    word("header", "A request header; needs HTTP mode."),
    word(
        "none",
        "Every connection is balanced; in HTTP mode every request, unless `http.balance_each` says otherwise.",
    ),
    word(
        "sip-call-id",
        "The `Call-ID` of SIP, plain or in TLS that is ended here: over TCP that of a connection's first message, which is waited for no longer than `tls.handshake_timeout`, over UDP that of each datagram.",
    ),
    word("sni", "The name that the client asks for by TLS, passed through or ended here."),
    word("source-ip", "The client's address."),
    word("super-http", "`User-Agent` and `Authorization` together; needs HTTP mode."),
    word("super-http-and-source-ip", "The same, with the client's address."),
    word("tls-session-id", "The session that the server gave it, of TLS up to 1.2 that passes through."),
]);

/// `persistence`
pub static PERSISTENCE: Table = Table {
    path: "service.persistence",
    doc: "Whether a client comes back to its server. It holds across the ports of the service. A server that is down or halted loses its clients.",
    keys: &[
        key(
            "by",
            Kind::Either(&[PERSIST_BY, Kind::List(&PERSIST_BY, KINDS_MAX)]),
            "What makes a client. Of several, like `[\"cookie\", \"source-ip\"]`, the first that it shows leads it back; under the others its server is remembered where none is yet. \
             A client that shows none is balanced.",
        )
        .required(),
        key(
            "timeout",
            duration(SECOND, 30 * DAY),
            "Lifetime of an entry after the client's last new connection, in HTTP mode request. A cookie of ours has no entry and ends with the browser.",
        )
        .default("30m"),
        key("ipv4_prefix", integer(1, 32, "bits"), "Prefix length that makes an IPv4 client.").default("32"),
        key("ipv6_prefix", integer(1, 128, "bits"), "Prefix length that makes an IPv6 client.").default("128"),
        key("enter_draining", Kind::Bool, "A client with an entry or cookie may still enter a draining server, until its drain is over and it is halted.")
            .default("false"),
        key("cookie", Kind::Name, "Name of the cookie.").default("SERVERID"),
        key(
            "cookie_mode",
            Kind::Word(&[word("find", "Look for a cookie that the server sets."), word("insert", "Set our own.")]),
            "Who sets the cookie.",
        )
        .default("insert"),
        key(
            "cookie_set",
            Kind::Word(&[
                word("always", "With every response that sets none of that name."),
                word("missing", "When the request has none that names the server."),
            ]),
            "When our own is set.",
        )
        .described("`\"missing\"`; `\"always\"` for `MS-WSMAN`"),
        key("cookie_http_only", Kind::Bool, "Scripts in the browser do not see our own (`HttpOnly`).")
            .described("`true`; `false` for `MS-WSMAN`"),
        key("cookie_secure", Kind::Bool, "Our own comes back over TLS only (`Secure`).")
            .described("`true` where TLS is ended here; `false` for `MS-WSMAN`"),
        key("header", Kind::Name, "Name of the header.").default("Authorization"),
    ],
};

/// `source = { … }`
pub static SOURCE: Table = Table {
    path: "service.source",
    doc: "Addresses and ports leased for connections to real servers. One address carries about 64,000 connections to each server port.",
    keys: &[
        key(
            "pool",
            Kind::Either(&[
                Kind::Word(&[word(
                    "interface",
                    "The address of the interface that leads to each server (packet plane only); the kernel loses the ports leased there.",
                )]),
                Kind::List(&Kind::Address, 256),
            ]),
            "Addresses: `[\"192.0.2.10\"]`, or `\"interface\"`.",
        )
        .required(),
        key("ports", Kind::PortRange, "Ports leased at each address.")
            .described("`\"1024-65535\"`; `\"16384-32767\"` of an interface"),
        key("rest", duration(0, HOUR), "How long a port rests when we closed first.").default("60s"),
    ],
};

/// `health.passive`
pub(super) static PASSIVE: Table = Table {
    path: "service.health.passive",
    doc: "What clients meet at a server takes it out for a while, whatever its checks say: it gets no new clients and keeps its connections. Never more than half of the servers of a service at a time; of what fails here (source ports, routes) nothing counts.",
    keys: &[
        key(
            "connect_failures",
            integer(0, 100, "percent"),
            "Share of connects that the server refuses or does not answer, or whose TLS it fails, from which on it is out; 0 = they do not matter. Not for UDP.",
        )
        .default("50"),
        key(
            "server_errors",
            integer(0, 100, "percent"),
            "Share of responses with a status of 500 or more, or that do not come within `http.response_timeout`, from which on it is out; 0 = they do not matter. Needs HTTP mode.",
        )
        .default("0"),
        key(
            "at_least",
            integer(1, 1_000_000, "connects or responses"),
            "With fewer of them within `window` nothing happens.",
        )
        .default("10"),
        key("window", duration(SECOND, HOUR), "How far back they are counted.").default("10s"),
        key(
            "hold",
            duration(SECOND, DAY),
            "How long it is out; twice as long with each further time, up to eight times.",
        )
        .default("30s"),
    ],
};

/// `health`
pub static HEALTH: Table = Table {
    path: "service.health",
    doc: "How servers are judged, as `health` of a service or a group. A server is checked once, however many services use it.",
    keys: &[
        key(
            "check",
            Kind::Word(&[
                word("dns", "A DNS query is answered as expected."),
                word("external", "A command of yours ends with status 0."),
                word("http", "An HTTP request is answered as expected."),
                word("https", "The same over TLS."),
                word("ldap", "An LDAP bind succeeds, and the root DSE is found."),
                word("none", "Always up."),
                word("ping", "An ICMP echo request is answered."),
                word("radius", "A RADIUS server answers Status-Server, or lets a user in, and knows our secret."),
                word("sip", "A SIP OPTIONS request is answered as expected."),
                word("smtp", "An SMTP server greets and answers EHLO."),
                word("stun", "A STUN binding request is answered."),
                word("tcp", "A TCP connection is accepted."),
                word("tls", "A TLS handshake completes."),
                word("udp", "A datagram is answered as expected."),
            ]),
            "What is done.",
        )
        .required(),
        key("ports", Kind::Ports, "Ports checked; each must answer. They need not be ports of the service.")
            .described("the server's port, else the first port of the service"),
        key("interval", duration(100 * MS, HOUR), "Time between checks of one server.").default("5s"),
        key(
            "fast_interval",
            duration(100 * MS, HOUR),
            "The same while the verdict is changing: after the first result that speaks against it, until it has changed or holds again.",
        )
        .described("`interval`"),
        key("timeout", duration(10 * MS, 5 * MINUTE), "A check that takes longer has failed.").default("3s"),
        key("rise", integer(1, 1000, "checks"), "Consecutive successes that make a server up.").default("2"),
        key("fall", integer(1, 1000, "checks"), "Consecutive failures that make a server down.").default("3"),
        key(
            "evict",
            Kind::Word(&[
                word("group", "The server leaves every service of the `[[group]]`, however these judge it."),
                word("port", "The failing port only: each of `ports` is judged by itself, and a server takes clients at the others."),
                word("server", "The server leaves every service that has one with its address."),
                word("service", "The server leaves the services that use this check, with all their ports."),
            ]),
            "What a failing check takes away. Of several checks that concern a server the worst counts.",
        )
        .default("service"),
        key(
            "flaps",
            integer(0, 100, "times"),
            "A server that has gone down so often within `flap_window` is held: its checks may pass, but for `flap_hold` it takes clients only if no other server can. 0 = never.",
        )
        .default("5"),
        key("flap_window", duration(SECOND, DAY), "How long it is remembered that a server went down.").default("5m"),
        key(
            "flap_hold",
            duration(100 * MS, DAY),
            "How long a server is held that goes up and down; twice as long with each further time, up to eight times.",
        )
        .default("1m"),
        key("passive", Kind::Table(&PASSIVE), "What clients meet at a server takes it out, too; without it only checks do."),
        key(
            "agent_port",
            integer(1, 65_535, "port"),
            "Port where an agent of the server says, beside the check, how it wants to be treated, in one line as HAProxy's agent check has it: `75%` of its weight, `maxconn:30`, `drain`, `maint` (nobody enters, what is open stays), `ready`, `down`, `up`. What it says holds until it says something else, also while it does not answer; of its word and the operator's the stronger one counts.",
        ),
        key("agent_send", Kind::Text, "Line that the agent is sent first.").described("nothing is sent"),
        key(
            "command",
            Kind::Command,
            "Program and arguments of `check = \"external\"`, run once per port without a shell, as the user of the daemon but without the capabilities that a service manager has given it, and killed with all of its process group after `timeout`. Status 0 passes; the first line of its output is the reason. Its environment: `TOWPATH_ADDRESS`, `TOWPATH_PORT`, `TOWPATH_SERVER`, `TOWPATH_SERVICES`, `TOWPATH_VIP` (with `forwarding = \"dsr\"`), `TOWPATH_TIMEOUT_MS` and a plain `PATH`.",
        ),
        key("method", Kind::Word(&[word("GET", "With a body."), word("HEAD", "Without a body.")]), "HTTP method.")
            .default("GET"),
        key("path", Kind::Text, "HTTP path and query.").default("/"),
        key("host", Kind::Text, "HTTP Host header, domain that SIP asks, and the TLS name.").described("the server's address"),
        key("status", Kind::Text, "HTTP or SIP status codes that pass, e.g. `\"200-399,401\"`.").default("200-399"),
        key(
            "expect",
            Kind::Text,
            "Text that must be in the HTTP body (its first 64 KiB), the SMTP greeting, the SIP response, a line `attribute: value` of the LDAP root DSE or the datagram, in the same case. Of DNS, the data of one record of the answer (`192.0.2.7`, `10 mail.example.org`). Of RADIUS with a `user`: `accept`, `reject`, or `any` of them.",
        )
        .described("anything; `accept`"),
        key("verify", Kind::Bool, "Check the server's certificate: authority, dates and name.").default("false"),
        key("days_left", integer(0, 3650, "days"), "The server's certificate must be valid for so many more days; 0 = not asked.")
            .default("0"),
        key("ca", Kind::Path, "Authorities (PEM) for `verify`; read anew when the file changes.")
            .default("/etc/ssl/certs/ca-certificates.crt"),
        key(
            "secret_file",
            Kind::Path,
            "File with the RADIUS secret, or the LDAP password of `user`; read anew for each check, without the line end.",
        ),
        key("user", Kind::Text, "RADIUS user, or who LDAP binds as.").described("Status-Server; an anonymous bind"),
        key("password_file", Kind::Path, "File with the RADIUS password of `user`; read likewise."),
        key(
            "message_authenticator",
            Kind::Word(&[
                word("optional", "They may have none: who stands between can forge them (CVE-2024-3596). A wrong one is refused all the same."),
                word("required", "Without one they count as no answer."),
            ]),
            "Whether a RADIUS server's answers to `user` have to have a Message-Authenticator. Our requests always have one, so up-to-date servers answer with one.",
        )
        .default("required"),
        key(
            "transport",
            Kind::Word(&[word("tcp", "TCP."), word("tls", "TLS over TCP."), word("udp", "UDP.")]),
            "What DNS (`udp`, `tcp`), LDAP (`tcp`, `tls`), SIP (`tcp`, `tls`, `udp`) and STUN (`udp`, `tcp`) are spoken over.",
        )
        .described("`udp` for DNS and STUN, else `tcp`"),
        key("query", Kind::Text, "Name that DNS is asked for."),
        key(
            "query_type",
            Kind::Word(&[
                word("A", "IPv4 addresses."),
                word("AAAA", "IPv6 addresses."),
                word("CNAME", "The canonical name."),
                word("MX", "Mail exchangers."),
                word("NS", "Name servers."),
                word("PTR", "The name of an address."),
                word("SOA", "The start of authority."),
                word("SRV", "Services."),
                word("TXT", "Texts."),
            ]),
            "Kind of record that DNS is asked for.",
        )
        .default("A"),
        key(
            "rcode",
            Kind::Text,
            "DNS answers that pass: `noerror` (with a record at least), `formerr`, `servfail`, `nxdomain`, `notimp`, `refused`, with commas between them.",
        )
        .default("noerror"),
        key("send", Kind::Text, "Text of the datagram that `check = \"udp\"` sends.").described("an empty datagram"),
        key("send_hex", Kind::Text, "The same in hexadecimal, as in `\"ff ff 00\"`."),
        key("expect_hex", Kind::Text, "What the datagram must contain, in hexadecimal.").described("anything"),
        key(
            "no_answer",
            Kind::Word(&[
                word("fails", "Who does not answer within `timeout` has failed."),
                word("passes", "Only who is refused (ICMP) or answers wrongly has failed: for servers that answer nobody, like collectors of logs. Behind a router a host that is off passes, too."),
            ]),
            "What silence means to `check = \"udp\"`.",
        )
        .default("fails"),
    ],
};
