//! Which servers a client is led to by the name that it asks for.

use std::collections::HashMap;

use crate::client_hello::HostName;
use crate::ids::ServiceId;

/// Names and wildcards, each with the place of the servers behind it ([`crate::snapshot::Service::place`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameRoutes {
    exact: HashMap<Box<str>, ServiceId>,
    /// By what follows `*.`.
    wildcards: HashMap<Box<str>, ServiceId>,
}

impl NameRoutes {
    /// Adds a name in lower case, or `*.` and a name for every name with one label more. The first route of a name stays.
    pub fn insert(&mut self, name: &str, place: ServiceId) {
        match name.strip_prefix("*.") {
            Some(suffix) => self.wildcards.entry(suffix.into()).or_insert(place),
            None => self.exact.entry(name.into()).or_insert(place),
        };
    }

    /// Where a name leads; a name itself goes before a wildcard.
    pub fn find(&self, name: &HostName) -> Option<ServiceId> {
        let name = name.as_str();
        let by_wildcard = || self.wildcards.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(by_wildcard).copied()
    }

    /// Every place that a name leads to, each once.
    pub fn places(&self) -> impl Iterator<Item = ServiceId> {
        let mut places: Vec<ServiceId> = self.exact.values().chain(self.wildcards.values()).copied().collect();
        places.sort_unstable();
        places.dedup();
        places.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_before_a_wildcard_and_a_wildcard_is_one_label() {
        let mut routes = NameRoutes::default();
        let names = [("meet.example.org", 1), ("*.example.org", 2), ("*.web.example.org", 3), ("meet.example.org", 4)];
        for (name, place) in names {
            routes.insert(name, ServiceId(place));
        }
        let rows = [
            ("meet.example.org", Some(1)),
            ("mail.example.org", Some(2)),
            ("a.web.example.org", Some(3)),
            ("web.example.org", Some(2)),
            ("a.b.example.org", None),
            ("example.org", None),
            ("org", None),
            ("other.test", None),
        ];
        for (name, place) in rows {
            let host = HostName::new(name.as_bytes()).unwrap();
            assert_eq!(routes.find(&host), place.map(ServiceId), "{name}");
        }
        assert_eq!(routes.places().collect::<Vec<_>>(), [ServiceId(1), ServiceId(2), ServiceId(3)]);
    }
}
