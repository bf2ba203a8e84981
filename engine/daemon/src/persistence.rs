//! What is remembered of clients, as an operator sees it: who comes back to which server, and how to forget it.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use towpath_config::model::PersistBy;
use towpath_core::persistence::{Fingerprint, PERSISTENCE_STRIPES, PersistenceKey, Remembered};
use towpath_core::snapshot::{Service, Snapshot};
use towpath_core::{RealServerId, ServiceId};

use crate::audit::Audit;
use crate::house::House;
use crate::query::{QueryError, checked_reason, limited, network, no_service, servers_called, some_or_all, wanted};
use crate::questions::holds;

/// Entries that an answer names at most.
pub const ENTRIES_MAX: u32 = 10_000;
/// Entries looked at while workers that open connections may have to wait: some 10 µs.
const LOOKED_AT_ONCE: usize = 1_024;

/// Which entries are meant: those for which everything holds that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PersistenceQuery {
    /// Of this service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// That lead to this server: its name, address, or address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Of clients that are known by their address: this one, or those of this network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Of the client that is known by this hash, as a list shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// So many are named at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Which entries are to be forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClearBody {
    /// Which ones.
    pub entries: PersistenceQuery,
    /// All of them, where `entries` says nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Why, for events and the log.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Count which would be forgotten, and forget none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// What is remembered of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryStatus {
    /// Name of the service.
    pub service: String,
    /// Name of the group of servers, of a service with routes.
    pub group: String,
    /// The client's address, cut to the prefix by which it is known, as `192.0.2.0/24`; `None` = it is known by something else.
    pub client: Option<String>,
    /// Hash of what it is known by, in hexadecimal digits.
    pub key: Option<String>,
    /// Name of its server.
    pub server: String,
    /// Milliseconds until it is forgotten, unless it comes again.
    pub expires_in_ms: u64,
}

/// Entries that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntriesStatus {
    /// The generation of which this holds.
    pub generation: u64,
    /// Those that fit, as far as they may be named.
    pub entries: Vec<EntryStatus>,
    /// How many fit.
    pub matched: u64,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

/// What became of the wish to forget entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearedStatus {
    /// Nothing was forgotten: this is what would be.
    pub dry_run: bool,
    /// How many clients were forgotten.
    pub cleared: u64,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

/// The same by ids.
struct EntryFilter {
    services: Option<Vec<ServiceId>>,
    servers: Option<Vec<RealServerId>>,
    client: Option<(IpAddr, u8)>,
    /// Of these services, addresses are known by prefixes: what an address is there.
    cut: Vec<PersistenceKey>,
    key: Option<Fingerprint>,
}

impl EntryFilter {
    fn fits(&self, entry: &Remembered) -> bool {
        let Remembered { key, server, .. } = entry;
        let is_clients = |network| match key.address() {
            Some(address) => holds(network, address) || self.cut.contains(key),
            None => false,
        };
        self.services.as_ref().is_none_or(|wanted| wanted.contains(&key.service()))
            && self.servers.as_ref().is_none_or(|wanted| wanted.contains(server))
            && self.client.is_none_or(is_clients)
            && self.key.is_none_or(|wanted| key.fingerprint() == Some(wanted))
    }
}

impl PersistenceQuery {
    fn is_any(&self) -> bool {
        PersistenceQuery { limit: None, ..self.clone() } != PersistenceQuery::default()
    }

    fn filter(&self, snapshot: &Snapshot) -> Result<EntryFilter, QueryError> {
        let service = self.service.as_deref();
        let of_service = |of: &Service| service.is_none_or(|service| of.name == service);
        let services = || snapshot.each_service().filter(|of| of_service(of));
        if let Some(name) = service.filter(|_| services().next().is_none()) {
            return Err(no_service(snapshot, name));
        }
        let servers = self.server.as_deref().map(|name| servers_called(snapshot, &[], service, name));
        let client = self.client.as_deref().map(network).transpose()?;
        let whole = client.filter(|(address, prefix)| *prefix == if address.is_ipv4() { 32 } else { 128 });
        let cut = |of: &Service| Some(PersistenceKey::new(of.pins, whole?.0, of.persistence.as_ref()?));
        Ok(EntryFilter {
            services: service.map(|_| services().map(|of| of.pins).collect()),
            servers: servers.transpose()?,
            client,
            cut: services().filter_map(|of| cut(of)).collect(),
            key: self.key.as_deref().map(fingerprint).transpose()?,
        })
    }
}

impl fmt::Display for PersistenceQuery {
    /// `service web, server FE-1`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PersistenceQuery { service, server, client, key, limit: _ } = self;
        let said = [("service", service), ("server", server), ("client", client), ("key", key)];
        let said: Vec<String> =
            said.iter().filter_map(|(what, value)| Some(format!("{what} {}", value.as_deref()?))).collect();
        f.write_str(if said.is_empty() { "all" } else { "" })?;
        f.write_str(&said.join(", "))
    }
}

fn fingerprint(text: &str) -> Result<Fingerprint, QueryError> {
    let bad = || QueryError::Bad(format!("`key` \"{text}\" is not the 32 hexadecimal digits that a list shows"));
    let digits: Vec<u8> =
        text.chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect::<Option<_>>().ok_or_else(bad)?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let is_even = digits.len().is_multiple_of(2);
    bytes.try_into().ok().filter(|_| is_even).ok_or_else(bad)
}

fn hexadecimal(fingerprint: &Fingerprint) -> String {
    fingerprint.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl House {
    /// What is remembered of clients.
    pub(crate) async fn persistence(&self, query: &PersistenceQuery) -> Result<EntriesStatus, QueryError> {
        let limit = limited(query.limit, ENTRIES_MAX)?;
        let snapshot = self.shared.snapshot();
        let filter = query.filter(&snapshot)?;
        let (found, matched) = self.remembered(&filter, limit as usize).await;
        let now = self.shared.now();
        let mut entries: Vec<EntryStatus> = found
            .iter()
            .map(|entry| {
                let service = service_of(&snapshot, entry.key.service());
                EntryStatus {
                    service: service.map_or_else(|| "gone".to_owned(), |service| service.name.clone()),
                    group: service.map_or_else(String::new, |service| service.group.clone()),
                    client: entry.key.address().map(|address| shown_prefix(service, address)),
                    key: entry.key.fingerprint().map(|key| hexadecimal(&key)),
                    server: server_name(&snapshot, service, entry.server),
                    expires_in_ms: entry.expires.ms_since(now),
                }
            })
            .collect();
        entries.sort_by(|one, other| {
            let key = |of: &EntryStatus| (of.service.clone(), of.client.clone(), of.key.clone());
            key(one).cmp(&key(other))
        });
        let named = entries.len() as u64;
        let cut = (matched > named).then(|| format!("{named} of {matched} are named; filter, or raise the limit"));
        let warnings = cut.into_iter().chain(unremembered(&snapshot, query)).collect();
        Ok(EntriesStatus { generation: snapshot.generation.0, entries, matched, warnings })
    }

    /// Forgets clients; `by` says who wants it.
    pub(crate) async fn clear_persistence(&self, body: &ClearBody, by: &str) -> Result<ClearedStatus, QueryError> {
        checked_reason(&body.reason)?;
        some_or_all(body.entries.is_any(), body.all, "entries")?;
        let snapshot = self.shared.snapshot();
        let filter = body.entries.filter(&snapshot)?;
        let warnings = unremembered(&snapshot, &body.entries).into_iter().collect();
        if body.dry_run {
            let (_, cleared) = self.remembered(&filter, 0).await;
            return Ok(ClearedStatus { dry_run: true, cleared, warnings });
        }
        let reason = wanted(by, &body.entries, &body.reason);
        let audit = Audit::begin(self, "persistence", "clients forgotten: some", reason);
        let mut cleared = 0;
        for stripe in 0..PERSISTENCE_STRIPES {
            let mut at = Some(0);
            while let Some(from) = at {
                let goes = |entry: Remembered| filter.fits(&entry);
                let (gone, next) = self.shared.forget_persistence(stripe, from, LOOKED_AT_ONCE, goes);
                cleared += gone as u64;
                at = next;
                tokio::task::yield_now().await;
            }
        }
        audit.end(format!("clients forgotten: {cleared}"), body.entries.service.iter().cloned().collect());
        Ok(ClearedStatus { dry_run: false, cleared, warnings })
    }

    /// Entries that fit, so many of them, and how many there are.
    async fn remembered(&self, filter: &EntryFilter, limit: usize) -> (Vec<Remembered>, u64) {
        let (mut found, mut matched) = (Vec::new(), 0);
        for stripe in 0..PERSISTENCE_STRIPES {
            let mut at = Some(0);
            while let Some(from) = at {
                at = self.shared.survey_persistence(stripe, from, LOOKED_AT_ONCE, |entry| {
                    if filter.fits(&entry) {
                        matched += 1;
                        if found.len() < limit {
                            found.push(entry);
                        }
                    }
                });
                tokio::task::yield_now().await;
            }
        }
        (found, matched)
    }
}

/// The service whose pinned clients these are; of several, the front.
fn service_of(snapshot: &Snapshot, pins: ServiceId) -> Option<&Service> {
    let own = snapshot.service(pins).filter(|service| service.pins == pins);
    own.or_else(|| snapshot.each_service().find(|service| service.pins == pins)).map(|service| &**service)
}

fn shown_prefix(service: Option<&Service>, address: IpAddr) -> String {
    let rule = service.and_then(|service| service.persistence.as_ref());
    match (address, rule) {
        (IpAddr::V4(_), Some(rule)) if rule.ipv4_prefix < 32 => format!("{address}/{}", rule.ipv4_prefix),
        (IpAddr::V6(_), Some(rule)) if rule.ipv6_prefix < 128 => format!("{address}/{}", rule.ipv6_prefix),
        _ => address.to_string(),
    }
}

fn server_name(snapshot: &Snapshot, service: Option<&Service>, server: RealServerId) -> String {
    let member = service.and_then(|service| service.target_of(server));
    match (member, snapshot.real_server(server)) {
        (Some((_, target)), _) => target.name.clone(),
        (None, Some(server)) => server.name.clone(),
        (None, None) => "gone".to_owned(),
    }
}

/// Clients that are led back by what they carry themselves are in no list.
fn unremembered(snapshot: &Snapshot, query: &PersistenceQuery) -> Option<String> {
    let is_asked = |service: &Service| query.service.as_ref().is_none_or(|name| *name == service.name);
    let has_cookie = |service: &Service| {
        let rule = service.persistence.as_ref();
        rule.is_some_and(|rule| rule.by.iter().any(|by| matches!(by, PersistBy::InsertedCookie(_))))
    };
    let mut services: Vec<&str> = snapshot
        .each_service()
        .filter(|service| is_asked(service) && has_cookie(service))
        .map(|service| service.name.as_str())
        .collect();
    services.sort_unstable();
    services.dedup();
    let names = services.join(", ");
    (!services.is_empty()).then(|| {
        format!("{names}: clients with a cookie of ours are led back by it; nothing is remembered of them here")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_as_they_were_shown() {
        let key: Fingerprint = std::array::from_fn(|at| at as u8 * 17);
        assert_eq!(fingerprint(&hexadecimal(&key)).unwrap(), key);
        for wrong in ["", "00", "0", "zz", &"0".repeat(31), &"0".repeat(33), &"0".repeat(34), "größe"] {
            assert!(fingerprint(wrong).unwrap_err().to_string().contains("32 hexadecimal"), "{wrong}");
        }
    }

    #[test]
    fn a_limit_alone_names_no_entries() {
        let query = PersistenceQuery { limit: Some(5), ..PersistenceQuery::default() };
        assert!(!query.is_any());
        assert_eq!(query.to_string(), "all");
        let query = PersistenceQuery { server: Some("FE-1".to_owned()), ..query };
        assert!(query.is_any());
        assert_eq!(query.to_string(), "server FE-1");
    }
}
