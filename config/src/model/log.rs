//! The part of the model that is about lines on connections and requests.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

/// `[log]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Log {
    /// What the daemon tells about itself.
    pub own: OwnLog,
    /// How a line on a connection reads.
    pub format: LogFormat,
    /// What of a query is written.
    pub query: LoggedQuery,
    /// Where such lines go.
    pub to: LogTo,
}

/// What the daemon tells about itself, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OwnLog {
    /// How much.
    pub level: LogLevel,
    /// How a line reads on standard error.
    pub format: OwnFormat,
    /// `None` = standard error.
    pub syslog: Option<Syslog>,
}

/// `log.level`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// And warnings.
    Warn,
    /// And changes of state.
    #[default]
    Info,
    /// And what a developer wants to know.
    Debug,
}

/// `log.format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OwnFormat {
    /// An object a line.
    Json,
    /// For people.
    #[default]
    Text,
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
    /// A server, spoken to as RFC 5424 has it.
    Server(SocketAddr, SyslogTransport),
}

/// `log.syslog_transport`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyslogTransport {
    /// RFC 6587 §3.4.1: the length in front of each message.
    Tcp,
    /// RFC 5426: a datagram each.
    Udp,
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
