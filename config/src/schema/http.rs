//! Tables about HTTP mode.

use super::service::{BALANCE, HEALTH, PERSISTENCE};
use super::{DAY, Key, Kind, MINUTE, MS, SECOND, Table, Word, duration, integer, key, later, word};

pub(super) static HTTP: Table = Table {
    path: "service.http",
    doc: "HTTP mode: requests are read, so that they can be routed, changed and pinned to a server.",
    keys: &[
        key(
            "balance_each",
            Kind::Word(&[
                word("connection", "All requests of a connection go to one server of their group."),
                word("request", "Each request is balanced, unless persistence or a logon ties the client to a server."),
            ]),
            "What is balanced.",
        )
        .default("request"),
        key(
            "reuse",
            Kind::Word(&[
                word("never", "A connection to a server belongs to one connection of a client."),
                word("safe", "One that has never seen a logon of its connection (NTLM, Negotiate, Kerberos) may carry requests of several clients, one after the other."),
            ]),
            "Whether clients share connections to servers.",
        )
        .default("never"),
        key(
            "http2",
            Kind::Bool,
            "Clients may choose HTTP/2 (by ALPN); servers are asked by HTTP/1.1. Who logs on by NTLM, Negotiate or Kerberos, which authenticate a connection, is \
             told to come by HTTP/1.1: leave it off where all do.",
        )
        .default("false"),
        key(
            "reuse_idle_max",
            integer(1, 4096, "connections"),
            "Shared connections that may wait for the next request, of each real server and worker.",
        )
        .default("32"),
        key(
            "reuse_idle_timeout",
            duration(SECOND, 60 * MINUTE),
            "How long a shared connection may wait for the next request; best a little less than the servers themselves wait (Apache and Node: 5 s).",
        )
        .default("30s"),
        key("head_bytes_max", integer(1024, 262_144, "bytes"), "Longest request or response head.").default("32768"),
        key("body_bytes_max", integer(0, 1 << 40, "bytes"), "Longest request body; 0 = no limit.").default("0"),
        key("head_timeout", duration(SECOND, 5 * MINUTE), "How long a request head may take.").default("15s"),
        key(
            "response_timeout",
            duration(100 * MS, 7 * DAY),
            "How long a server may take until its response begins.",
        )
        .described("`idle_timeout`"),
        key(
            "forwarded",
            Kind::Word(&[
                word("both", "All of these."),
                word("none", "None is added."),
                word("rfc7239", "`Forwarded` (RFC 7239)."),
                word("x-forwarded", "`X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Host`."),
            ]),
            "Headers that tell servers about the client. Those that a client sends itself are removed.",
        )
        .default("x-forwarded"),
        key(
            "trusted",
            Kind::List(&Kind::Network, 256),
            "Networks of proxies in front: what they say of their clients is kept, and added to.",
        )
        .described("none"),
        key(
            "redirect_to_https",
            Kind::Bool,
            "Answer every request with a redirect to `https`; no server sees one.",
        )
        .default("false"),
        key("https_port", integer(1, 65_535, "port"), "Port of `https` in redirects.").default("443"),
        key(
            "rewrite_location",
            Kind::Bool,
            "`Location` of a server's response that names the server itself, or the client's host with the server's port or with `http` where the client came by `https`, \
             becomes what the client came to.",
        )
        .default("false"),
        key("hsts", Kind::Table(&HSTS), "Browsers are told to come by `https` only (RFC 6797)."),
        key("maintenance", Kind::Table(&MAINTENANCE), "A page for clients that no server serves."),
        key(
            "retry_after",
            duration(SECOND, DAY),
            "When clients that found no place, or waited for one in vain, are to come back: `Retry-After` of their 503.",
        )
        .default("5s"),
        key("filter", Kind::Tables(&FILTER, 256), "Requests that are let through or refused, before anything else."),
        key("route", Kind::Tables(&ROUTE, 256), "Where requests go; the first that fits decides, else the service's own servers."),
        key("rewrite", Kind::Tables(&REWRITE, 256), "Changes of requests and responses; all that fit, in their order."),
        key(
            "cookie_secret_file",
            Kind::Path,
            "File with the secret that cookies of ours are made by, 16 bytes or more: with it they hold over a restart, and on every machine that has it.",
        )
        .described("a secret of each start's own"),
        key("login", Kind::Table(&LOGIN), "Pre-authentication in front of the servers.").later(),
    ],
};

static HSTS: Table = Table {
    path: "service.http.hsts",
    doc: "`Strict-Transport-Security` of every response, unless the server sets it. Only where TLS is ended here.",
    keys: &[
        key("max_age", duration(0, 730 * DAY), "How long browsers remember it; 0 = they forget it.").required(),
        key("subdomains", Kind::Bool, "For every name below as well.").default("false"),
        key("preload", Kind::Bool, "The name may be put on the browsers' own list.").default("false"),
    ],
};

static MAINTENANCE: Table = Table {
    path: "service.http.maintenance",
    doc: "An answer of our own.",
    keys: &[
        key("file", Kind::Path, "The page (HTML, at most 64 KiB); read again at a reload.").required(),
        key("status", integer(400, 599, "status"), "Its status. 503 tells caches and search engines to come back.")
            .default("503"),
        key(
            "when",
            Kind::Word(&[
                word("always", "Every request that no filter refuses."),
                word("no-server", "Requests that no server can take."),
            ]),
            "Who gets it.",
        )
        .default("no-server"),
        key("retry_after", duration(SECOND, DAY), "When to come back (`Retry-After`)."),
    ],
};

const HOST: Key = key(
    "host",
    Kind::List(&Kind::Text, 64),
    "Names in `Host`: `\"mail.example.org\"`, or `\"*.example.org\"` for every name with one label more.",
)
.described("any");
const PATH: Key = key(
    "path",
    Kind::List(&Kind::Text, 64),
    "Beginnings of the path, in whole segments: `\"/owa\"` fits `/owa` and `/OWA/auth`, not `/owax`. Paths are compared after decoding, without regard to case.",
)
.described("any");
const PATH_EXACT: Key = key("path_exact", Kind::List(&Kind::Text, 64), "Whole paths, beside those of `path`.");
const PATH_REGEX: Key = key(
    "path_regex",
    Kind::List(&Kind::Text, 8),
    "Regular expressions that the path contains, beside those of `path`; `^` is its beginning and `$` its end.",
);
const METHOD: Key = key("method", Kind::List(&Kind::Name, 32), "Methods, in capitals.").described("any");
const HEADER: Key = key("header", Kind::Name, "Name of a header that the request has.");
const HEADER_REGEX: Key = key("header_regex", Kind::Text, "Regular expression that a value of `header` contains.");
const FROM: Key = key("from", Kind::List(&Kind::Network, 256), "Client networks.").described("any");

static ROUTE: Table = Table {
    path: "service.http.route",
    doc: "Sends requests to a group of servers, or answers them. Every condition that is written must hold.",
    keys: &[
        key("name", Kind::Name, "Unique in its service.").described("its place among the routes"),
        HOST,
        PATH,
        PATH_EXACT,
        PATH_REGEX,
        METHOD,
        HEADER,
        HEADER_REGEX,
        FROM,
        key("group", Kind::Name, "Name of the group that serves them."),
        key(
            "redirect",
            Kind::Text,
            "URL or path to redirect to instead; `{host}` is the name in the request, `{uri}` its path and query.",
        ),
        key(
            "redirect_status",
            Kind::Word(&[
                word("301", "Moved for good."),
                word("302", "Found there."),
                word("303", "See there, with GET."),
                word("307", "There, with the same method."),
                word("308", "Moved for good, with the same method."),
            ]),
            "Status of the redirect.",
        )
        .default("302"),
        key("status", integer(400, 599, "status"), "Answer with this status instead."),
        key("balance", BALANCE, "How a server is chosen for them.").described("the service's"),
        key("persistence", Kind::Table(&PERSISTENCE), "Whether clients of the route come back to their server.")
            .described("the service's, together with all routes to the same group"),
        key("health", Kind::Table(&HEALTH), "How servers are judged for the route; replaces the group's."),
        key("idle_timeout", duration(SECOND, 7 * DAY), "As `idle_timeout` of the service, for its requests.")
            .described("the service's"),
        key("connect_timeout", duration(10 * MS, 5 * MINUTE), "As `connect_timeout` of the service.")
            .described("the service's"),
        key("response_timeout", duration(100 * MS, 7 * DAY), "As `http.response_timeout`.")
            .described("`http.response_timeout`, else the route's `idle_timeout`"),
    ],
};

static REWRITE: Table = Table {
    path: "service.http.rewrite",
    doc: "A change of requests or responses. Every condition that is written must hold for the request.",
    keys: &[
        key(
            "what",
            Kind::Word(&[
                word("add-header", "One more `header`, `with` this value."),
                later("body", "Text in the body."),
                word("host", "`Host` becomes `with`."),
                word("path", "The beginning `match` of the path becomes `with`."),
                word("remove-header", "Every `header` goes."),
                word("set-header", "`header` is `with`, whatever it was."),
            ]),
            "What is changed.",
        )
        .required(),
        key("of", Kind::Word(WAYS), "Whose header.").default("request"),
        key("header", Kind::Name, "Which header."),
        key("match", Kind::Text, "Beginning of the path, in whole segments."),
        key("with", Kind::Text, "What it becomes."),
        HOST,
        PATH,
        PATH_EXACT,
        PATH_REGEX,
        METHOD,
        FROM,
    ],
};

const WAYS: &[Word] = &[
    word("request", "Of requests, on the way to the server."),
    word("response", "Of responses, on the way to the client."),
];

static FILTER: Table = Table {
    path: "service.http.filter",
    doc: "Lets requests through or refuses them; the first that fits decides, and what fits none is let through. Every condition that is written must hold. \
          A rule that denies also fits a path that does so when its escapes are resolved twice or its segments lose their parameters (`;...`), and a method in lower case: \
          some servers read them so.",
    keys: &[
        key("action", Kind::Word(&[word("allow", "Let through."), word("deny", "Answer `status`.")]), "What happens.")
            .required(),
        key("status", integer(400, 599, "status"), "Answer to what is denied.").default("403"),
        HOST,
        PATH,
        PATH_EXACT,
        PATH_REGEX,
        METHOD,
        HEADER,
        HEADER_REGEX,
        FROM,
        key(
            "parameter",
            Kind::Name,
            "Name of a parameter that the query has, without regard to case; `\"*\"` = any. Bodies are not looked at.",
        ),
        key("pattern", Kind::Text, "Regular expression that a value of `parameter` contains, after decoding."),
        key(
            "except",
            Kind::Text,
            "Regular expression for whole values: the filter fits where a value of `parameter` is anything else.",
        ),
    ],
};

static LOGIN: Table = Table {
    path: "service.http.login",
    doc: "Users log in before a server sees their requests.",
    keys: &[
        key(
            "by",
            Kind::Word(&[word("basic", "HTTP basic authentication."), word("form", "A login form.")]),
            "How users are asked.",
        )
        .required(),
        key(
            "directory",
            Kind::Word(&[word("active-directory", "LDAP to Active Directory."), word("radius", "RADIUS.")]),
            "Who knows the users.",
        )
        .required(),
        key("servers", Kind::List(&Kind::Socket, 16), "Servers of the directory.").required(),
        key("secret_file", Kind::Path, "File with the secret for the directory."),
        key("groups", Kind::List(&Kind::Text, 64), "Groups that have access.").described("everyone who can log in"),
        key("single_sign_on", Kind::Name, "Services with the same word share a login."),
        key(
            "second_factor",
            Kind::Word(&[word("none", "Password only."), word("securid", "RSA SecurID over RADIUS.")]),
            "Second factor.",
        )
        .default("none"),
        key(
            "lockout_after",
            integer(0, 1000, "failures"),
            "Failed logins after which a user must wait here, before the directory locks the account; 0 = off.",
        )
        .default("5"),
        key("lockout_for", duration(SECOND, DAY), "How long.").default("15m"),
        key("form", Kind::Path, "Directory with the login form."),
    ],
};
