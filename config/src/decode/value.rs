//! Decoded values with their places.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::diagnostic::Span;
use crate::schema::{Kind, Table};

/// A value and where it stands. `written` is false for defaults, whose place is the table's header.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
    pub(crate) written: bool,
}

impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl At<Value> {
    pub(crate) fn address(&self) -> Option<IpAddr> {
        if let Value::Address(address) = self.value { Some(address) } else { None }
    }

    pub(crate) fn integer(&self) -> Option<i64> {
        if let Value::Integer(number) = self.value { Some(number) } else { None }
    }
}

/// What a key holds. Two are equal when they mean the same, wherever they stand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Address(IpAddr),
    Bool(bool),
    Duration(u64),
    Integer(i64),
    List(Vec<At<Value>>),
    Network(Network),
    PortRange(u16, u16),
    Ports(PortSet),
    Socket(SocketAddr),
    Table(Section),
    Tables(Vec<Section>),
    Text(String),
    Word(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Address(address) => write!(f, "{address}"),
            Value::Bool(on) => write!(f, "{on}"),
            Value::Duration(ms) => write!(f, "{ms} ms"),
            Value::Integer(number) => write!(f, "{number}"),
            Value::Network(network) => write!(f, "{network}"),
            Value::PortRange(low, high) => write!(f, "{low}-{high}"),
            Value::Socket(socket) => write!(f, "{socket}"),
            Value::Text(text) => write!(f, "\"{}\"", super::shorten(text)),
            Value::Word(word) => write!(f, "\"{word}\""),
            Value::List(_) | Value::Ports(_) | Value::Table(_) | Value::Tables(_) => write!(f, "the same"),
        }
    }
}

/// An address with a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    /// Whether `other` lies in the same network.
    pub(crate) fn holds(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }
}

/// Ports as ranges that do not overlap, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PortSet {
    pub(crate) ranges: Vec<PortSpan>,
}

/// One range and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct PortSpan {
    pub(crate) low: u16,
    pub(crate) high: u16,
    pub(crate) span: Span,
}

impl PartialEq for PortSpan {
    fn eq(&self, other: &Self) -> bool {
        (self.low, self.high) == (other.low, other.high)
    }
}

impl PortSet {
    /// Entries in one list of ports.
    pub(crate) const RANGES_MAX: usize = 1024;

    /// How many ports.
    pub(crate) fn count(&self) -> usize {
        self.ranges.iter().map(|range| usize::from(range.high - range.low) + 1).sum()
    }

    /// The place that names `port`.
    pub(crate) fn place(&self, port: u16) -> Option<&Span> {
        self.ranges.iter().find(|range| (range.low..=range.high).contains(&port)).map(|range| &range.span)
    }

    /// Every port, ascending.
    pub(crate) fn list(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.ranges.iter().flat_map(|range| range.low..=range.high).collect();
        ports.sort_unstable();
        ports
    }
}

/// One key of a section.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Span,
    pub(crate) at: Span,
    pub(crate) value: Value,
    pub(crate) written: bool,
}

/// A decoded table: valid values and defaults. What was wrong is in `broken` and has been reported.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) table: &'static Table,
    pub(crate) span: Span,
    pub(crate) entries: BTreeMap<&'static str, Entry>,
    pub(crate) broken: Vec<&'static str>,
}

impl PartialEq for Section {
    fn eq(&self, other: &Self) -> bool {
        self.table.path == other.table.path
            && self.entries.len() == other.entries.len()
            && self
                .entries
                .iter()
                .zip(&other.entries)
                .all(|((key, own), (other_key, other))| key == other_key && own.value == other.value)
    }
}

impl Section {
    pub(crate) fn new(table: &'static Table, span: Span) -> Self {
        Section { table, span, entries: BTreeMap::new(), broken: Vec::new() }
    }

    /// The entry of a key that the table has.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        debug_assert!(self.table.key(key).is_some(), "{} has no key {key}", self.table.path);
        self.entries.get(key)
    }

    /// The place of a key that somebody wrote.
    pub(crate) fn written(&self, key: &str) -> Option<&Span> {
        self.entry(key).filter(|entry| entry.written).map(|entry| &entry.key)
    }

    fn get<'s, T>(&'s self, key: &str, take: impl FnOnce(&'s Value) -> Option<T>) -> Option<At<T>> {
        let entry = self.entry(key)?;
        Some(At { value: take(&entry.value)?, span: entry.at.clone(), written: entry.written })
    }

    pub(crate) fn address(&self, key: &str) -> Option<At<IpAddr>> {
        self.get(key, |value| if let Value::Address(address) = value { Some(*address) } else { None })
    }

    pub(crate) fn bool(&self, key: &str) -> Option<At<bool>> {
        self.get(key, |value| if let Value::Bool(on) = value { Some(*on) } else { None })
    }

    pub(crate) fn duration(&self, key: &str) -> Option<At<u64>> {
        self.get(key, |value| if let Value::Duration(ms) = value { Some(*ms) } else { None })
    }

    pub(crate) fn integer(&self, key: &str) -> Option<At<i64>> {
        self.get(key, |value| if let Value::Integer(number) = value { Some(*number) } else { None })
    }

    /// An integer whose range in the table fits `T`.
    pub(crate) fn number<T: TryFrom<i64>>(&self, key: &str) -> Option<At<T>> {
        self.get(key, |value| if let Value::Integer(number) = value { T::try_from(*number).ok() } else { None })
    }

    pub(crate) fn network(&self, key: &str) -> Option<At<Network>> {
        self.get(key, |value| if let Value::Network(network) = value { Some(*network) } else { None })
    }

    pub(crate) fn list(&self, key: &str) -> Option<At<&[At<Value>]>> {
        self.get(key, |value| if let Value::List(list) = value { Some(list.as_slice()) } else { None })
    }

    pub(crate) fn port_range(&self, key: &str) -> Option<At<(u16, u16)>> {
        self.get(key, |value| if let Value::PortRange(low, high) = value { Some((*low, *high)) } else { None })
    }

    pub(crate) fn ports(&self, key: &str) -> Option<At<&PortSet>> {
        self.get(key, |value| if let Value::Ports(ports) = value { Some(ports) } else { None })
    }

    pub(crate) fn text(&self, key: &str) -> Option<At<&str>> {
        self.get(key, |value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }

    pub(crate) fn word(&self, key: &str) -> Option<At<&'static str>> {
        self.get(key, |value| if let Value::Word(word) = value { Some(*word) } else { None })
    }

    /// Visits every path that is written in this table and those below it.
    pub(crate) fn paths(&self, visit: &mut impl FnMut(&str, &Span)) {
        for (name, entry) in &self.entries {
            let kind = self.table.key(name).map(|key| key.kind);
            match &entry.value {
                Value::Text(path) if matches!(kind, Some(Kind::Path)) && entry.written => visit(path, &entry.at),
                Value::List(words) if matches!(kind, Some(Kind::Command)) => {
                    if let Some(At { value: Value::Text(program), span, .. }) = words.first() {
                        visit(program, span);
                    }
                }
                Value::Table(section) => section.paths(visit),
                Value::Tables(sections) => sections.iter().for_each(|section| section.paths(visit)),
                _ => {}
            }
        }
    }

    pub(crate) fn table(&self, key: &str) -> Option<&Section> {
        match &self.entry(key)?.value {
            Value::Table(section) => Some(section),
            _ => None,
        }
    }

    pub(crate) fn tables(&self, key: &str) -> &[Section] {
        match self.entry(key).map(|entry| &entry.value) {
            Some(Value::Tables(sections)) => sections,
            _ => &[],
        }
    }
}
