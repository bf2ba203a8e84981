//! Tables about HTTP mode.

use super::{DAY, Kind, MINUTE, SECOND, Table, duration, integer, key, word};

pub(super) static HTTP: Table = Table {
    path: "service.http",
    doc: "HTTP mode: requests are read, so that they can be routed, changed and pinned to a server.",
    keys: &[
        key(
            "balance_each",
            Kind::Word(&[
                word("connection", "All requests of a connection go to one server."),
                word("request", "Each request is balanced."),
            ]),
            "What is balanced.",
        )
        .default("request"),
        key("forwarded_for", Kind::Bool, "Add `X-Forwarded-For` with the client's address.").default("true"),
        key("redirect_to_https", Kind::Bool, "Answer every request with a redirect to `https`.").default("false"),
        key("head_bytes_max", integer(1024, 262_144, "bytes"), "Longest request or response head.").default("32768"),
        key("body_bytes_max", integer(0, 1 << 40, "bytes"), "Longest request body; 0 = no limit.").default("0"),
        key("head_timeout", duration(SECOND, 5 * MINUTE), "How long a request head may take.").default("15s"),
        key("route", Kind::Tables(&ROUTE, 256), "Where requests go; the first that fits decides."),
        key("rewrite", Kind::Tables(&REWRITE, 256), "Changes of URL, header or body."),
        key("filter", Kind::Tables(&FILTER, 256), "Requests that are let through or refused."),
        key("login", Kind::Table(&LOGIN), "Pre-authentication in front of the servers."),
    ],
};

static ROUTE: Table = Table {
    path: "service.http.route",
    doc: "Sends requests for a host or path to a group of its own.",
    keys: &[
        key("host", Kind::List(&Kind::Text, 64), "Host names; `*.example.com` fits any name below.").described("any"),
        key("path", Kind::List(&Kind::Text, 64), "Path prefixes.").described("any"),
        key("group", Kind::Name, "Group that serves them."),
        key("redirect", Kind::Text, "URL to redirect to instead."),
    ],
};

static REWRITE: Table = Table {
    path: "service.http.rewrite",
    doc: "A change of requests or responses.",
    keys: &[
        key(
            "what",
            Kind::Word(&[word("body", "The body."), word("header", "A header."), word("url", "Path and query.")]),
            "What is changed.",
        )
        .required(),
        key(
            "of",
            Kind::Word(&[word("request", "On the way to the server."), word("response", "On the way to the client.")]),
            "On which way.",
        )
        .default("request"),
        key("header", Kind::Name, "Which header."),
        key("match", Kind::Text, "Text that is replaced.").described("all of it"),
        key("with", Kind::Text, "What replaces it.").described("nothing: it is removed"),
    ],
};

static FILTER: Table = Table {
    path: "service.http.filter",
    doc: "Lets requests through or refuses them; the first that fits decides.",
    keys: &[
        key("action", Kind::Word(&[word("allow", "Let through."), word("deny", "Answer 403.")]), "What happens.")
            .required(),
        key("path", Kind::List(&Kind::Text, 64), "Path prefixes.").described("any"),
        key("method", Kind::List(&Kind::Name, 32), "Methods.").described("any"),
        key("parameter", Kind::Name, "Query parameter that must be well formed."),
        key("pattern", Kind::Text, "Characters that the parameter may have, e.g. `\"a-zA-Z0-9\"`."),
        key("from", Kind::List(&Kind::Network, 256), "Client networks.").described("any"),
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
