//! Questions and orders of an operator: how the names, addresses and limits in them are understood, and why one gets no answer.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use thiserror::Error;
use towpath_core::RealServerId;
use towpath_core::snapshot::{Service, Snapshot, Target};

use crate::questions::Busy;

/// Rows that an answer names unless more are asked for.
pub(crate) const ROWS_SHOWN: u32 = 1_000;
/// Names that a refusal lists.
const NAMES_TOLD_MAX: usize = 8;
/// Bytes of a reason.
const REASON_BYTES_MAX: usize = 256;

/// Why a question was not answered.
#[derive(Debug, Error)]
pub(crate) enum QueryError {
    #[error("{0}")]
    Bad(String),
    #[error("others ask at the same time; try again")]
    Busy,
    #[error("no {what} \"{name}\"{}", there(.known))]
    NotThere { what: &'static str, name: String, known: Vec<String> },
    #[error("{0}")]
    NotAvailable(String),
}

impl From<Busy> for QueryError {
    fn from(_: Busy) -> QueryError {
        QueryError::Busy
    }
}

/// `; there are a, b and 3 more`
fn there(known: &[String]) -> String {
    let mut known: Vec<&str> = known.iter().map(String::as_str).collect();
    known.sort_unstable();
    known.dedup();
    match known.len() {
        0 => "; there is none".to_owned(),
        count if count > NAMES_TOLD_MAX => {
            format!("; there are {} and {} more", known[..NAMES_TOLD_MAX].join(", "), count - NAMES_TOLD_MAX)
        }
        _ => format!("; there are {}", known.join(", ")),
    }
}

/// An address, or a network as `192.0.2.0/24`.
pub(crate) fn network(text: &str) -> Result<(IpAddr, u8), QueryError> {
    let bad = || QueryError::Bad(format!("\"{text}\" is no address and no network; write 192.0.2.7 or 192.0.2.0/24"));
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let address = address.to_canonical();
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => bits,
        Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(bad)?,
    };
    Ok((address, prefix))
}

/// Why something is done, as it may be told.
pub(crate) fn checked_reason(reason: &str) -> Result<(), QueryError> {
    if reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        let message = format!("`reason` has at most {REASON_BYTES_MAX} bytes and no control characters");
        return Err(QueryError::Bad(message));
    }
    Ok(())
}

/// Whether a member is called so: by its name, its address, or its address and port.
fn is_called(target: &Target, name: &str) -> bool {
    target.name == name
        || name.parse() == Ok(target.address)
        || target.port.is_some_and(|port| name.parse() == Ok(SocketAddr::new(target.address, port)))
}

/// The servers of these names, of one service or of all; `remnants` are services, or members of them, that are not in force any more.
pub(crate) fn servers_called(
    snapshot: &Snapshot,
    remnants: &[Arc<Service>],
    service: Option<&str>,
    name: &str,
) -> Result<Vec<RealServerId>, QueryError> {
    let targets = || {
        let services = snapshot.each_service().chain(remnants);
        let services = services.filter(|of| service.is_none_or(|service| of.name == service));
        services.flat_map(|service| &service.targets)
    };
    let mut servers: Vec<RealServerId> =
        targets().filter(|target| is_called(target, name)).map(|target| target.server).collect();
    servers.sort_unstable();
    servers.dedup();
    if servers.is_empty() {
        let known = targets().map(|target| target.name.clone()).collect();
        return Err(QueryError::NotThere { what: "server", name: name.to_owned(), known });
    }
    Ok(servers)
}

/// The names of all services, for a refusal.
pub(crate) fn no_service(snapshot: &Snapshot, name: &str) -> QueryError {
    let nats = snapshot.outbound.each().map(|nat| nat.name.clone());
    let known = snapshot.each_service().map(|service| service.name.clone()).chain(nats).collect();
    QueryError::NotThere { what: "service", name: name.to_owned(), known }
}

/// How many rows an answer names, which may be `max`.
pub(crate) fn limited(limit: Option<u32>, max: u32) -> Result<u32, QueryError> {
    match limit {
        None => Ok(ROWS_SHOWN),
        Some(limit) if limit <= max => Ok(limit),
        Some(_) => Err(QueryError::Bad(format!("`limit` is at most {max}"))),
    }
}

/// An order for everything says so: one that names nothing by mistake must not hit all of them. `what` is the plural of what it is for.
pub(crate) fn some_or_all(names_some: bool, all: bool, what: &str) -> Result<(), QueryError> {
    match (names_some, all) {
        (true, true) => Err(QueryError::Bad(format!("`all` is for all {what}; leave it out where some are named"))),
        (false, false) => Err(QueryError::Bad(format!("say which {what}, or `all`"))),
        (true, false) | (false, true) => Ok(()),
    }
}

/// Who wants it, what it is for, and why: `by root (uid 0): service web: runaway client`.
pub(crate) fn wanted(by: &str, what: &impl Display, reason: &str) -> String {
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("by {by}: {what}{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_addresses_with_or_without_a_prefix() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (text, address, prefix) in [
            ("192.0.2.7", "192.0.2.7", 32),
            ("192.0.2.0/24", "192.0.2.0", 24),
            ("0.0.0.0/0", "0.0.0.0", 0),
            ("2001:db8::/32", "2001:db8::", 32),
            ("::ffff:192.0.2.7", "192.0.2.7", 32),
        ] {
            assert_eq!(network(text).unwrap(), (ip(address), prefix), "{text}");
        }
        for wrong in ["", "192.0.2", "192.0.2.0/33", "192.0.2.0/", "192.0.2.0/-1", "::/129", "web", "192.0.2.7:80"] {
            assert!(network(wrong).unwrap_err().to_string().contains("192.0.2.0/24"), "{wrong}");
        }
    }

    #[test]
    fn everything_is_hit_only_by_an_order_that_says_so() {
        let said = |names_some, all| some_or_all(names_some, all, "sessions").map_err(|error| error.to_string());
        assert_eq!((said(true, false), said(false, true)), (Ok(()), Ok(())));
        assert_eq!(said(false, false), Err("say which sessions, or `all`".to_owned()));
        assert_eq!(said(true, true).unwrap_err(), "`all` is for all sessions; leave it out where some are named");
    }

    #[test]
    fn a_limit_has_a_default_and_a_bound() {
        assert_eq!(limited(None, 10_000).unwrap(), ROWS_SHOWN);
        assert_eq!((limited(Some(0), 10).unwrap(), limited(Some(10), 10).unwrap()), (0, 10));
        assert_eq!(limited(Some(11), 10).unwrap_err().to_string(), "`limit` is at most 10");
    }
}
