//! The part of the model that is about lines on connections and requests.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

/// `[log]`, as far as it is about connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Log {
    /// How a line reads.
    pub format: LogFormat,
    /// What of a query is written.
    pub query: LoggedQuery,
    /// Where lines go.
    pub to: LogTo,
}

/// `log.connections_format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// As Apache and nginx have it; only of requests.
    Combined,
    /// As `option httplog` and `option tcplog`.
    #[default]
    Haproxy,
    /// An object a line.
    Json,
}

/// `log.connections_query`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoggedQuery {
    /// Names of parameters, values hidden.
    #[default]
    Names,
    /// Nothing.
    None,
    /// All of it.
    Whole,
}

/// `log.connections_to`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogTo {
    /// Appended to this file.
    File(PathBuf),
    /// Standard error.
    #[default]
    Stderr,
    /// Standard output.
    Stdout,
    /// A message each.
    Syslog(Syslog),
}

/// `log.syslog`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Syslog {
    /// A datagram socket of this machine, spoken to as RFC 3164 has it.
    Local(PathBuf),
    /// A server, spoken to by UDP as RFC 5424 and RFC 5426 have it.
    Server(SocketAddr),
}

/// `log.connections`, `service.log`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Logged {
    /// Each connection, in HTTP mode each request.
    All,
    /// Those that did not end as they should.
    Errors,
    /// None.
    #[default]
    None,
}
