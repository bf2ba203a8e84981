//! Who comes back where, on its way to the next process: a table of names, then rows of one size.
//!
//! ```text
//! words: names of places and servers, as JSON with its length before it
//! rows of 40 octets: place u32 | server u32 | kind u32 | 0 u32 | key, 16 octets | left_ms u64, all little-endian
//! ```

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use towpath_core::persistence::{PERSISTENCE_STRIPES, PersistenceKey, Remembered};
use towpath_core::snapshot::{Service, Snapshot};
use towpath_core::{Now, RealServerId, ServiceId};

use crate::shared::Shared;

/// Octets of a row.
const ROW: usize = 40;
/// Entries of a stripe that are looked at under its lock.
const PLACES_AT_ONCE: usize = 1024;

/// What makes a client.
const OF_V4: u32 = 4;
const OF_V6: u32 = 6;
const OF_FINGERPRINT: u32 = 16;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Names {
    /// Service and group of the place whose clients they are.
    places: Vec<(String, String)>,
    servers: Vec<(IpAddr, Option<u16>)>,
}

/// A place, as it is called in every process.
fn name_of(place: &Service) -> (String, String) {
    (place.name.clone(), place.group.clone())
}

/// All living entries.
pub(super) fn export(shared: &Shared) -> Vec<u8> {
    let snapshot = shared.snapshot();
    let mut names = Names::default();
    let (mut places, mut servers) = (HashMap::new(), HashMap::new());
    for place in snapshot.each_service() {
        places.entry(place.pins).or_insert_with(|| {
            names.places.push(name_of(place));
            names.places.len() as u32 - 1
        });
    }
    for server in snapshot.real_servers.iter().flatten() {
        servers.insert(server.id, names.servers.len() as u32);
        names.servers.push((server.address, server.port));
    }
    let now = shared.now();
    let mut rows = Vec::new();
    for stripe in 0..PERSISTENCE_STRIPES {
        let mut at = Some(0);
        while let Some(from) = at {
            at = shared.survey_persistence(stripe, from, PLACES_AT_ONCE, |entry| {
                if let (Some(place), Some(server)) = (places.get(&entry.key.service()), servers.get(&entry.server)) {
                    write(&mut rows, *place, *server, &entry, now);
                }
            });
        }
    }
    // Names are always JSON.
    let names = serde_json::to_vec(&names).unwrap_or_default();
    let mut text = (names.len() as u64).to_le_bytes().to_vec();
    text.extend(names);
    text.extend(rows);
    text
}

fn write(rows: &mut Vec<u8>, place: u32, server: u32, entry: &Remembered, now: Now) {
    let (kind, key) = match (entry.key.address(), entry.key.fingerprint()) {
        (Some(IpAddr::V4(address)), _) => (OF_V4, u128::from(address.to_bits()).to_be_bytes()),
        (Some(IpAddr::V6(address)), _) => (OF_V6, address.octets()),
        (None, Some(fingerprint)) => (OF_FINGERPRINT, fingerprint),
        (None, None) => return,
    };
    for word in [place, server, kind, 0] {
        rows.extend(word.to_le_bytes());
    }
    rows.extend(key);
    rows.extend(entry.expires.ms_since(now).to_le_bytes());
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Imported {
    pub(super) entries: u64,
    /// Their service, server or kind of persistence is not there any more.
    pub(super) dropped: u64,
}

/// Takes entries over, as far as their service and server are still there. Damaged ones are refused as a whole.
pub(super) fn import(text: &[u8], shared: &Shared) -> Result<Imported, String> {
    let (names, rows) = split(text)?;
    let snapshot = shared.snapshot();
    let places: Vec<Option<&Service>> = names.places.iter().map(|name| find_place(&snapshot, name)).collect();
    let server = |(address, port): &(IpAddr, Option<u16>)| {
        let is_it = |server: &&towpath_core::snapshot::RealServer| (server.address, server.port) == (*address, *port);
        snapshot.real_servers.iter().flatten().find(is_it).map(|server| server.id)
    };
    let servers: Vec<Option<RealServerId>> = names.servers.iter().map(server).collect();
    let now = shared.now();
    let mut imported = Imported::default();
    for row in rows.chunks_exact(ROW) {
        let (place, server, kind, key, left_ms) = read(row);
        let place = *places.get(place as usize).ok_or("an entry of a place without a name")?;
        let server = *servers.get(server as usize).ok_or("an entry of a server without a name")?;
        let entry = place.zip(server).and_then(|(place, server)| Some((place, server, key_of(place, kind, key)?)));
        let Some((place, server, key)) = entry else {
            imported.dropped += 1;
            continue;
        };
        // No longer than whoever comes now is remembered.
        let timeout_ms = place.persistence.as_ref().map_or(0, |rule| rule.timeout_ms);
        shared.remember(key, server, now + left_ms.min(timeout_ms), now);
        imported.entries += 1;
    }
    Ok(imported)
}

fn split(text: &[u8]) -> Result<(Names, &[u8]), String> {
    let (length, rest) = text.split_first_chunk::<8>().ok_or("no table of names")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| "a table of names that is too long")?;
    let (names, rows) = rest.split_at_checked(length).ok_or("half a table of names")?;
    if rows.len() % ROW != 0 {
        return Err("half an entry".to_owned());
    }
    Ok((serde_json::from_slice(names).map_err(|error| error.to_string())?, rows))
}

fn find_place<'s>(snapshot: &'s Snapshot, name: &(String, String)) -> Option<&'s Service> {
    snapshot.each_service().find(|place| name_of(place) == *name).map(|place| &**place)
}

fn read(row: &[u8]) -> (u32, u32, u32, [u8; 16], u64) {
    let word = |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
    let mut key = [0; 16];
    key.copy_from_slice(&row[16..32]);
    let left_ms = u64::from(word(32)) | u64::from(word(36)) << 32;
    (word(0), word(4), word(8), key, left_ms)
}

/// The key in this process; `None`: the service knows clients by something else now.
fn key_of(place: &Service, kind: u32, key: [u8; 16]) -> Option<PersistenceKey> {
    let rule = place.persistence.as_ref()?;
    let of: ServiceId = place.pins;
    let bits = u128::from_be_bytes(key);
    match kind {
        OF_V4 => Some(PersistenceKey::new(of, IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).ok()?)), rule)),
        OF_V6 => Some(PersistenceKey::new(of, IpAddr::V6(Ipv6Addr::from_bits(bits)), rule)),
        OF_FINGERPRINT => Some(PersistenceKey::of_fingerprint(of, key)),
        _ => None,
    }
}
