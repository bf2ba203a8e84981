//! Tables about who may ask the daemon, and change it.

use super::{DAY, Kind, SECOND, Table, duration, key, word};

pub(super) static CONTROL: Table = Table {
    path: "control",
    doc: "Where the daemon answers the operator.",
    keys: &[
        key("socket", Kind::Path, "Unix socket for `towpath status` and `towpath server`; `\"none\"` opens none.")
            .default("/run/towpath/control.sock"),
        key(
            "group",
            Kind::Name,
            "Group of this machine whose users may do everything by the socket, as root may; `\"none\"` leaves the socket to the group of the process.",
        )
        .described("`towpath`, if the machine has that group"),
        key(
            "state_file",
            Kind::Path,
            "Where what was said at run time (`towpath server`) is kept, so that it survives a restart; `\"none\"` keeps it nowhere. Of a daemon \
             without a socket there is none.",
        )
        .described("of `/run/towpath/NAME.sock`: `/var/lib/towpath/NAME.state`; of another below /run, with its whole path as the name; else beside it, as `SOCKET.state`"),
        key(
            "listen",
            Kind::Socket,
            "Address and port where the web page and the API answer its users, too. Without `certificate` it must be an address of loopback; browsers then send the page's cookie to every port there.",
        ),
        key("certificate", Kind::Path, "PEM with the certificate of `listen` and those of its issuers. With it only TLS is spoken, 1.2 or 1.3; a reload reads it again."),
        key("private_key", Kind::Path, "Private key (PEM) of `certificate`."),
        key(
            "client_ca",
            Kind::Path,
            "Authorities (PEM) that certificates of users come from: who shows one of a user's `certificate_name` is that user.",
        ),
        key(
            "client_crl",
            Kind::Path,
            "Revocation lists (PEM) of these authorities: whose certificate is in one does not come in. A reload reads it again.",
        ),
        key(
            "from",
            Kind::List(&Kind::Network, 64),
            "Networks that may come by `listen`; connections from elsewhere are closed before anything is said.",
        )
        .described("every one"),
        key(
            "page",
            Kind::Word(&[
                word("full", "It shows everything, and changes what the role of its user may."),
                word("off", "There is none, and no login: tokens and certificates only."),
                word("read-only", "It shows everything and changes nothing."),
            ]),
            "The web page, at `/`.",
        )
        .default("read-only"),
        key("session_idle_timeout", duration(SECOND, DAY), "A login ends when its user has done nothing for so long; what the page fetches by itself does not count.")
            .default("15m"),
        key("session_timeout", duration(SECOND, 30 * DAY), "A login ends after so long, whatever its user does.").default("12h"),
        key("user", Kind::Tables(&USER, USERS_MAX), "Who may use `listen`; there are no default credentials."),
    ],
};

/// Users of one file.
const USERS_MAX: usize = 64;

static USER: Table = Table {
    path: "control.user",
    doc: "Somebody who may use `control.listen`, known by a password, a token or a certificate.",
    keys: &[
        key("name", Kind::Name, "Name at the login, in events and in the log.").required(),
        key(
            "role",
            Kind::Word(&[
                word("admin", "As an operator, and sees what clients send: `towpath capture`."),
                word("operator", "As a viewer, and changes state: servers, sessions, persistence, reload."),
                word("viewer", "Sees everything that status, events, counters and metrics show."),
            ]),
            "What this user may do.",
        )
        .required(),
        key(
            "password_hash",
            Kind::Text,
            "For the login of the page: what `towpath credential password` prints, `\"pbkdf2-sha512:ROUNDS:SALT:SUM\"`.",
        ),
        key(
            "token_hash",
            Kind::Text,
            "For programs: the SHA-256 of a token that `towpath credential token` has drawn, `\"sha256:SUM\"`. It is sent as `Authorization: Bearer`.",
        ),
        key("token_file", Kind::Path, "The same by a file with the token itself; a reload reads it again."),
        key(
            "certificate_name",
            Kind::Text,
            "Common name, or DNS name or address, of the certificate that this user shows.",
        ),
    ],
};
