//! Tables about TLS: of the whole process, and of one service.

use super::{DAY, Key, Kind, MINUTE, MS, Table, Word, duration, integer, key, word};

/// `[tls]`
pub(super) static TLS_POOL: Table = Table {
    path: "tls",
    doc: "TLS for the whole process.",
    keys: &[
        key(
            "provider",
            Kind::Word(&[word("aws-lc-rs", "The faster one for RSA."), word("ring", "The smaller one.")]),
            "Who computes.",
        )
        .default("aws-lc-rs"),
        key(
            "threads",
            Kind::Either(&[
                Kind::Word(&[word("auto", "The CPUs that no worker has; without one, those of the workers, while they have nothing else to do.")]),
                integer(0, 1024, "threads"),
                Kind::List(&integer(0, 4095, "CPU id"), 1024),
            ]),
            "Threads of their own for the handshakes that sign: how many, or on which CPUs. With 0 the workers do it, other traffic first: it waits longer.",
        )
        .default("auto"),
        key(
            "queue_deadline",
            duration(10 * MS, MINUTE),
            "A handshake that has waited for its signature this long is refused, rather than answered when the client has gone.",
        )
        .default("2s"),
        key("post_quantum", Kind::Bool, "Offer X25519MLKEM768 first.").default("true"),
        key("ticket_lifetime", duration(MINUTE, 7 * DAY), "How long a session may be resumed.").default("12h"),
        key(
            "ticket_key_file",
            Kind::Path,
            "File with the secret that tickets are sealed by, 32 bytes or more: machines with the same one resume each other's sessions.",
        )
        .described("a secret of each start's own"),
    ],
};

/// `service.tls`
pub static TLS: Table = Table {
    path: "service.tls",
    doc: "TLS of a service.",
    keys: &[
        key(
            "mode",
            Kind::Word(&[
                word("pass-through", "TLS is not touched."),
                word("re-encrypt", "Ended here, and TLS again towards the servers."),
                word("terminate", "Ended here; plain towards the servers."),
            ]),
            "Who ends TLS.",
        )
        .default("pass-through"),
        key(
            "route",
            Kind::Tables(&ROUTE, 64),
            "With `pass-through`: server groups by the name that clients ask for (SNI). What names none of these, or is not TLS, goes to the service's \
             own servers.",
        ),
        key(
            "certificate",
            Kind::Tables(&CERTIFICATE, 64),
            "Certificates, for clients to be chosen by the name that they ask for (SNI) and by what they can verify; the first is for who asks for none.",
        ),
        key("strict_sni", Kind::Bool, "Refuse clients that ask for a name that no certificate has, or for none.").default("false"),
        key("min_version", Kind::Word(TLS_VERSIONS), "Oldest version accepted.")
            .described("`\"1.2\"`, with `ciphers = \"modern\"` `\"1.3\"`"),
        key(
            "ciphers",
            Kind::Word(&[
                word("intermediate", "And ECDHE with AEAD for TLS 1.2."),
                word("modern", "Those of TLS 1.3 only."),
            ]),
            "Which cipher suites are accepted, on either side.",
        )
        .default("intermediate"),
        key(
            "alpn",
            Kind::List(&Kind::Text, 8),
            "Protocols that clients may choose from (ALPN), best first, e.g. `[\"http/1.1\"]`; servers are offered the one that was chosen.",
        )
        .described("ALPN is not answered"),
        key(
            "resumption",
            Kind::Word(&[
                word("cache", "Sessions are kept here, in bounded memory."),
                word("off", "Every handshake is a full one."),
                word("tickets", "Clients keep their sessions, sealed."),
            ]),
            "How clients resume a session.",
        )
        .default("tickets"),
        key(
            "handshake_timeout",
            duration(100 * MS, 5 * MINUTE),
            "How long a client may take for its handshake, and how long its first bytes are waited for where they tell which server is its.",
        )
        .default("10s"),
        key(
            "client_certificate",
            Kind::Word(&[word("none", "Not asked for."), word("request", "Asked for."), word("require", "Demanded.")]),
            "Certificates of clients. One that is shown must be valid.",
        )
        .default("none"),
        key("client_ca", Kind::Path, "Authorities (PEM) that client certificates come from."),
        key("client_crl", Kind::Path, "Revocation lists (PEM) of these authorities."),
        key(
            "verify_server",
            Kind::Word(&[
                word("ca", "Its certificate comes from an authority of `server_ca`, is valid, and has the name."),
                word("none", "Whoever answers at its address."),
                word("pinned", "Its certificate is one of `server_pin`."),
            ]),
            "How a server shows who it is, where TLS goes on towards servers.",
        )
        .default("ca"),
        key("server_ca", Kind::Path, "Authorities (PEM) that server certificates come from.")
            .default("/etc/ssl/certs/ca-certificates.crt"),
        key(
            "server_pin",
            Kind::List(&Kind::Text, 256),
            "SHA-256 of servers' own certificates, in hexadecimal digits with or without colons.",
        ),
        key("server_name", Kind::Text, "Name sent to servers (SNI) and expected in their certificates.")
            .described("the one that the client asked for, else the server's address"),
        key(
            "identity",
            Kind::Table(&IDENTITY),
            "Certificate shown to servers that ask for one.",
        ),
    ],
};

const TLS_VERSIONS: &[Word] = &[word("1.2", "TLS 1.2."), word("1.3", "TLS 1.3.")];

static ROUTE: Table = Table {
    path: "service.tls.route",
    doc: "Names, and the servers for clients that ask for one of them.",
    keys: &[
        key(
            "names",
            Kind::List(&Kind::Text, 64),
            "Names as clients ask for them: `\"mail.example.org\"`, or `\"*.example.org\"` for every name with one label more. The exact one goes first.",
        )
        .required(),
        key("group", Kind::Name, "Name of the server group.").required(),
    ],
};

const FILE: Key = key(
    "file",
    Kind::Path,
    "PEM with the certificate and, in any order, those of its issuers; or a PFX file, which has the private key as well.",
)
.required();
const PRIVATE_KEY: Key = key("key", Kind::Path, "Private key (PEM).").described("`file`");
const CHAIN: Key = key("chain", Kind::Path, "Certificates of the issuers (PEM), when `file` has none.");
const PASSWORD_FILE: Key =
    key("password_file", Kind::Path, "File whose first line is the password of the private key or PFX file.");

static CERTIFICATE: Table = Table {
    path: "service.tls.certificate",
    doc: "A certificate with its private key.",
    keys: &[
        FILE,
        PRIVATE_KEY,
        CHAIN,
        PASSWORD_FILE,
        key("staple", Kind::Path, "OCSP response (DER) that is sent with the certificate; read again at a reload."),
    ],
};

static IDENTITY: Table = Table {
    path: "service.tls.identity",
    doc: "The certificate that servers are shown, with its private key.",
    keys: &[FILE, PRIVATE_KEY, CHAIN, PASSWORD_FILE],
};
