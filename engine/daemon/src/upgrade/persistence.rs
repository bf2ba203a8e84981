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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use towpath_core::Generation;
    use towpath_core::health::HealthBoard;
    use towpath_core::http::{HttpMaterial, HttpSecret};
    use towpath_core::registry::Registry;
    use towpath_core::snat::{SnatBook, SnatLimits};
    use towpath_core::steering::SteeringTable;

    use super::*;
    use crate::shared::SharedSettings;

    /// A process with these services, each with these servers.
    fn shared(services: &[(&str, &str)], servers: &[u8], seed: u64) -> Shared {
        let mut text = String::new();
        for (place, (name, keys)) in services.iter().enumerate() {
            text += &format!("[[service]]\nname = \"{name}\"\nvip = \"192.0.2.{}\"\nports = 80\n{keys}\n", place + 1);
            for server in servers {
                text += &format!("[[service.server]]\nname = \"s{server}\"\naddress = \"198.51.100.{server}\"\n");
            }
        }
        let checked = towpath_config::check("test.toml", &text);
        let errors: Vec<String> = checked.errors().map(|found| found.message.clone()).collect();
        let snapshot = towpath_core::compile::compile(
            &checked.model.unwrap_or_else(|| panic!("{errors:?}")),
            &mut Registry::new(),
            &HealthBoard::new(),
            &mut SnatBook::new(SnatLimits::default()),
            Arc::new(SteeringTable::even(1)),
            &HttpMaterial::new(HttpSecret::new([7; 16])),
            Generation(1),
        );
        let settings = SharedSettings {
            cpus: vec![0],
            services_max: 8,
            real_servers_max: 16,
            connections_max: 10,
            udp_sessions_max: 10,
            handshakes_max: 10,
            persistence_entries: 6_400,
            seed,
        };
        Shared::new(&settings, Arc::new(snapshot.unwrap())).unwrap()
    }

    const BY_ADDRESS: &str = "persistence = { by = \"source-ip\", timeout = \"1h\" }";
    const BRIEF: &str = "persistence = { by = \"source-ip\", timeout = \"1m\" }";

    /// Who is remembered: service, client, server.
    fn remembered(shared: &Shared) -> Vec<(String, String, IpAddr)> {
        let snapshot = shared.snapshot();
        let mut found = Vec::new();
        for stripe in 0..PERSISTENCE_STRIPES {
            let rest = shared.survey_persistence(stripe, 0, usize::MAX, |entry| {
                let place = snapshot.each_service().find(|place| place.pins == entry.key.service()).unwrap();
                let server = snapshot.real_servers.iter().flatten().find(|server| server.id == entry.server).unwrap();
                let who = (entry.key.address(), entry.key.fingerprint());
                found.push((place.name.clone(), format!("{who:?}"), server.address));
            });
            assert_eq!(rest, None);
        }
        found.sort();
        found
    }

    fn with_entries() -> Shared {
        let shared = shared(&[("web", BY_ADDRESS), ("mail", BY_ADDRESS)], &[1, 2], 7);
        let snapshot = shared.snapshot();
        let now = shared.now();
        for place in snapshot.each_service() {
            let rule = place.persistence.as_ref().unwrap();
            for (number, target) in (0_u8..100).zip(place.targets.iter().cycle()) {
                let clients =
                    [IpAddr::from([10, 0, 0, number]), IpAddr::from([0x2001, 0xdb8, 0, u16::from(number), 0, 0, 0, 1])];
                let keys = clients.map(|client| PersistenceKey::new(place.pins, client, rule));
                for key in keys.into_iter().chain([PersistenceKey::of_fingerprint(place.pins, [number; 16])]) {
                    shared.remember(key, target.server, now + 600_000, now);
                }
            }
        }
        shared
    }

    #[test]
    fn clients_are_known_by_name_of_service_and_address_of_server() {
        let old = with_entries();
        let told = export(&old);
        // Other ids, another seed.
        let new = shared(&[("mail", BY_ADDRESS), ("more", BY_ADDRESS), ("web", BY_ADDRESS)], &[9, 2, 1], 8);
        assert_eq!(import(&told, &new).unwrap(), Imported { entries: 600, dropped: 0 });
        assert_eq!(remembered(&new), remembered(&old));
        // One that is gone, and one that remembers nobody any more.
        let new = shared(&[("web", ""), ("mail", BY_ADDRESS)], &[2], 8);
        assert_eq!(import(&told, &new).unwrap(), Imported { entries: 150, dropped: 450 });
        assert!(
            remembered(&new)
                .iter()
                .all(|(service, _, server)| service == "mail" && *server == IpAddr::from([198, 51, 100, 2]))
        );
    }

    #[test]
    fn an_entry_lives_no_longer_than_it_would_have() {
        let old = with_entries();
        let new = shared(&[("web", BY_ADDRESS), ("mail", BRIEF)], &[1, 2], 8);
        import(&export(&old), &new).unwrap();
        let (now, snapshot) = (new.now(), new.snapshot());
        for stripe in 0..PERSISTENCE_STRIPES {
            new.survey_persistence(stripe, 0, usize::MAX, |entry| {
                let place = snapshot.each_service().find(|place| place.pins == entry.key.service()).unwrap();
                let longest = if place.name == "web" { 600_000 } else { 60_000 };
                let left = entry.expires.ms_since(now);
                assert!(left <= longest && left + 10_000 > longest, "{left} ms of {longest}");
            });
        }
    }

    #[test]
    fn what_is_cut_or_names_nobody_is_refused() {
        let told = export(&with_entries());
        let new = || shared(&[("web", BY_ADDRESS)], &[1], 8);
        for length in [0, 7, 8, 30, told.len() - 1] {
            assert!(import(&told[..length], &new()).is_err(), "{length} octets");
        }
        let rows = told.len() - 600 * ROW;
        for at in [rows, rows + 4] {
            let mut lying = told.clone();
            lying[at..at + 4].fill(0xff);
            assert!(import(&lying, &new()).unwrap_err().contains("without a name"));
        }
        let mut long = told.clone();
        long[..8].fill(0xff);
        assert!(import(&long, &new()).is_err());
    }

    #[test]
    fn whatever_is_changed_nothing_panics() {
        let told = export(&with_entries());
        // Numerical Recipes' linear congruential generator: any will do that is the same in every run.
        let mut state = 7_u64;
        let mut draw = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let new = shared(&[("web", BY_ADDRESS), ("mail", BY_ADDRESS)], &[1, 2], 8);
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..300 {
            let mut changed = told.clone();
            // Names and the first rows as often as all the others.
            let reach = if draw(2) == 0 { 400 } else { told.len() };
            for _ in 0..=draw(8) {
                let at = draw(reach);
                changed[at] = draw(256) as u8;
            }
            match import(&changed, &new) {
                Ok(Imported { entries, dropped }) => {
                    assert_eq!(entries + dropped, 600);
                    taken += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(taken > 30 && refused > 30, "{taken} taken, {refused} refused");
    }
}
