//! The one table of everything a configuration file may contain.
//!
//! It drives the decoder (unknown keys, types, units, ranges, defaults), the "not available yet" warnings and the
//! reference. A key that is not here does not exist.

mod control;
mod http;
mod network;
mod notify;
mod process;
mod service;
mod tls;

pub use service::{GROUP, HEALTH, PERSISTENCE, SERVER, SERVICE, SOURCE};
pub use tls::TLS;

/// The whole file.
pub static ROOT: Table = Table {
    path: "",
    doc: "One TOML file says everything. Durations are text with a unit (`\"500ms\"`, `\"4s\"`, `\"30m\"`, `\"1h\"`, `\"1d\"`) or \
          plain integers, which are milliseconds.",
    keys: &[
        key("runtime", Kind::Table(&process::RUNTIME), "Workers and how they wait."),
        key(
            "limits",
            Kind::Table(&process::LIMITS),
            "Upper bounds of everything that is allocated, for the whole process.",
        ),
        key("control", Kind::Table(&control::CONTROL), "Where the daemon answers the operator."),
        key("tls", Kind::Table(&tls::TLS_POOL), "TLS for the whole process: provider and handshake threads."),
        key("log", Kind::Table(&process::LOG), "What is written down, and where to."),
        key("notify", Kind::Table(&notify::NOTIFY), "Who is told when a state changes."),
        key("pair", Kind::Table(&process::PAIR), "A second machine that takes over.").later(),
        key(
            "interface",
            Kind::Tables(&network::INTERFACE, 256),
            "Network interfaces of the packet plane, and their VLANs.",
        ),
        key("route", Kind::Tables(&network::ROUTE, 1024), "Static routes of the packet plane, beside the kernel's."),
        key("bridge", Kind::Tables(&network::BRIDGE, 16), "Transparent mode: two arms in one network."),
        key("router", Kind::Table(&network::ROUTER), "Forwarding between the arms, without NAT."),
        key(
            "outbound_nat",
            Kind::Tables(&network::OUTBOUND_NAT, 64),
            "Address rewriting for what hosts inside open themselves.",
        ),
        key("group", Kind::Tables(&GROUP, GROUPS_MAX), "Server groups that services share."),
        key("service", Kind::Tables(&SERVICE, SERVICES_MAX), "Virtual services.")
            .described("required, unless `router.enabled` or with a `bridge`"),
    ],
};

/// Services in one file.
pub const SERVICES_MAX: usize = 1024;
/// Groups in one file.
pub const GROUPS_MAX: usize = 1024;
/// Servers of one group.
pub const SERVERS_MAX: usize = 256;
/// Program and arguments of one command.
pub const COMMAND_WORDS_MAX: usize = 64;
/// Longest text of any kind, in bytes.
pub const TEXT_MAX: usize = 1024;
/// Longest name, in characters.
pub const NAME_MAX: usize = 64;

/// One table of the file.
#[derive(Debug)]
pub struct Table {
    /// Dotted path as in a header, e.g. `service.server`; empty for the file itself.
    pub path: &'static str,
    /// One or two sentences.
    pub doc: &'static str,
    /// What it may contain, in the order of the reference.
    pub keys: &'static [Key],
}

impl Table {
    /// The key of that name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

/// One key of a table.
#[derive(Debug)]
pub struct Key {
    /// As written.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// What holds when it is not written.
    pub default: Default,
    /// Whether code carries it out today.
    pub availability: Availability,
    /// One sentence.
    pub doc: &'static str,
}

/// What holds when a key is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// Nothing: the key is optional and its absence has its own meaning.
    Absent,
    /// A rule in words.
    Described(&'static str),
    /// It must be written.
    Required,
    /// This value, written as in the file but without quotes.
    Value(&'static str),
}

/// Whether code carries a key or a word out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Not yet: `check` warns wherever it is set to something other than its default, `run` refuses.
    Later,
    /// Yes.
    Now,
}

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A unicast IP address.
    Address,
    /// `true` or `false`.
    Bool,
    /// A program, by its whole path, and its arguments.
    Command,
    /// A time span within these bounds, in milliseconds.
    Duration {
        /// Shortest.
        min_ms: u64,
        /// Longest.
        max_ms: u64,
    },
    /// The first of these that fits.
    Either(&'static [Kind]),
    /// A whole number within these bounds.
    Integer {
        /// Least.
        min: i64,
        /// Greatest.
        max: i64,
        /// What is counted, for the reference.
        unit: &'static str,
    },
    /// An array of at most so many values; never empty, none twice.
    List(&'static Kind, usize),
    /// A short printable text that names something.
    Name,
    /// An address with a prefix length, `192.168.10.0/24`.
    Network,
    /// A path in the file system.
    Path,
    /// One port range, `"1024-65535"`.
    PortRange,
    /// A port, a range as text, or an array of both.
    Ports,
    /// An address with a port, `192.0.2.1:443` or `[2001:db8::1]:443`.
    Socket,
    /// A table.
    Table(&'static Table),
    /// An array of at most so many tables.
    Tables(&'static Table, usize),
    /// Free text.
    Text,
    /// One of a closed set.
    Word(&'static [Word]),
}

/// One word of a closed set.
#[derive(Debug)]
pub struct Word {
    /// As written.
    pub word: &'static str,
    /// Whether code carries it out today.
    pub availability: Availability,
    /// One sentence.
    pub doc: &'static str,
}

/// A key that is optional, has no default value and is carried out.
const fn key(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, default: Default::Absent, availability: Availability::Now, doc }
}

impl Key {
    const fn default(mut self, value: &'static str) -> Self {
        self.default = Default::Value(value);
        self
    }

    const fn described(mut self, rule: &'static str) -> Self {
        self.default = Default::Described(rule);
        self
    }

    const fn later(mut self) -> Self {
        self.availability = Availability::Later;
        self
    }

    const fn required(mut self) -> Self {
        self.default = Default::Required;
        self
    }
}

/// A word that is carried out.
const fn word(word: &'static str, doc: &'static str) -> Word {
    Word { word, availability: Availability::Now, doc }
}

/// A word that is not carried out yet.
const fn later(word: &'static str, doc: &'static str) -> Word {
    Word { word, availability: Availability::Later, doc }
}

/// A count from `min` to `max`.
const fn integer(min: i64, max: i64, unit: &'static str) -> Kind {
    Kind::Integer { min, max, unit }
}

/// A time span from `min_ms` to `max_ms`.
const fn duration(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Duration { min_ms, max_ms }
}

const MS: u64 = 1;
const SECOND: u64 = 1000 * MS;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::literal;

    fn each_table(table: &'static Table, visit: &mut impl FnMut(&'static Table)) {
        visit(table);
        for key in table.keys {
            each_kind(&key.kind, visit);
        }
    }

    fn each_kind(kind: &'static Kind, visit: &mut impl FnMut(&'static Table)) {
        match kind {
            Kind::Table(inner) | Kind::Tables(inner, _) => each_table(inner, visit),
            Kind::Either(kinds) => kinds.iter().for_each(|kind| each_kind(kind, visit)),
            _ => {}
        }
    }

    #[test]
    fn every_default_is_a_value_of_its_key() {
        let mut defaults = 0;
        each_table(&ROOT, &mut |table| {
            for key in table.keys {
                if let Default::Value(text) = key.default {
                    assert!(literal(&key.kind, text).is_some(), "{}.{} = {text}", table.path, key.name);
                    defaults += 1;
                }
            }
        });
        assert!(defaults > 50, "only {defaults} defaults found");
    }

    #[test]
    fn no_default_needs_what_is_not_available() {
        each_table(&ROOT, &mut |table| {
            for key in table.keys {
                let (Default::Value(text), Kind::Word(words)) = (key.default, key.kind) else { continue };
                let chosen = words.iter().find(|word| word.word == text).map(|word| word.availability);
                assert_eq!(chosen, Some(Availability::Now), "{}.{}", table.path, key.name);
            }
        });
    }

    #[test]
    fn every_name_stands_once_and_every_doc_is_a_sentence() {
        each_table(&ROOT, &mut |table| {
            assert!(table.doc.ends_with('.'), "{}: {}", table.path, table.doc);
            for (index, key) in table.keys.iter().enumerate() {
                assert!(
                    table.keys[..index].iter().all(|earlier| earlier.name != key.name),
                    "{}.{}",
                    table.path,
                    key.name
                );
                assert!(key.doc.ends_with('.'), "{}.{}: {}", table.path, key.name, key.doc);
                assert!(
                    key.doc.chars().next().is_some_and(|first| first.is_uppercase() || first == '`'),
                    "{}",
                    key.doc
                );
            }
        });
    }
}
