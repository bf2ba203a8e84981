//! Single values: what a text or number means, and what to say when it means nothing.

use std::net::{IpAddr, SocketAddr};

use toml::de::DeValue;

use super::value::{Network, PortSpan};
use super::{Decoder, PortSet, Value, nearest, shorten};
use crate::diagnostic::Span;
use crate::schema::{Availability, Kind, NAME_MAX, TEXT_MAX, Word};

/// Why a value is refused: code, cause, next step.
struct Refusal {
    code: &'static str,
    cause: String,
    hint: Option<String>,
}

fn refuse(code: &'static str, cause: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal { code, cause: cause.into(), hint: Some(hint.into()) }
}

impl Decoder<'_> {
    pub(super) fn scalar(&mut self, raw: &DeValue<'_>, kind: &'static Kind, at: &Span, path: &str) -> Option<Value> {
        let judged = match raw {
            DeValue::Boolean(on) => Ok(Value::Bool(*on)),
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) => from_number(number, kind, at),
                Err(_) => Err(refuse("out-of-range", "is far too large", "whole numbers go up to 9223372036854775807")),
            },
            DeValue::String(text) => from_text(text, kind, at),
            DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => return None,
        };
        match judged {
            Ok(value) => {
                if let (Kind::Word(words), Value::Word(chosen)) = (kind, &value)
                    && words.iter().any(|word| word.word == *chosen && word.availability == Availability::Later)
                {
                    self.word_not_available(chosen, at, path);
                }
                Some(value)
            }
            Err(refusal) => {
                let finding = self.report.error(refusal.code, at, format!("`{path}` {}", refusal.cause));
                if let Some(hint) = refusal.hint {
                    finding.hint(hint);
                }
                None
            }
        }
    }
}

/// A default of the schema, written without quotes.
pub(crate) fn literal(kind: &Kind, text: &str) -> Option<Value> {
    match kind {
        Kind::Bool => text.parse().ok().map(Value::Bool),
        Kind::Either(kinds) => kinds.iter().find_map(|kind| literal(kind, text)),
        Kind::Integer { .. } => from_number(text.parse().ok()?, kind, &(0..0)).ok(),
        Kind::Ports => from_number(text.parse().ok()?, kind, &(0..0)).ok(),
        Kind::Command | Kind::List(..) | Kind::Table(_) | Kind::Tables(..) => None,
        _ => from_text(text, kind, &(0..0)).ok(),
    }
}

impl Kind {
    /// Whether a value of this TOML type can be meant.
    pub(super) fn takes(&self, value: &DeValue<'_>) -> bool {
        match self {
            Kind::Bool => value.is_bool(),
            Kind::Either(kinds) => kinds.iter().any(|kind| kind.takes(value)),
            Kind::Integer { .. } => value.is_integer(),
            Kind::Duration { .. } => value.is_str() || value.is_integer(),
            Kind::Ports => value.is_str() || value.is_integer() || value.is_array(),
            Kind::Command | Kind::List(..) | Kind::Tables(..) => value.is_array(),
            Kind::Table(_) => value.is_table(),
            Kind::Address
            | Kind::Name
            | Kind::Network
            | Kind::Path
            | Kind::PortRange
            | Kind::Socket
            | Kind::Text
            | Kind::Word(_) => value.is_str(),
        }
    }

    /// For messages: "`idle_timeout` takes …".
    pub(crate) fn describe(&self) -> String {
        match self {
            Kind::Address => "an IP address in quotes".to_owned(),
            Kind::Bool => "true or false".to_owned(),
            Kind::Command => "a program and its arguments in brackets".to_owned(),
            Kind::Duration { .. } => "a duration like \"30m\" or plain milliseconds".to_owned(),
            Kind::Either(kinds) => super::list_or(kinds.iter().map(Kind::describe)),
            Kind::Integer { .. } => "a whole number".to_owned(),
            Kind::List(..) => "a list in brackets".to_owned(),
            Kind::Name => "a name in quotes".to_owned(),
            Kind::Network => "a network like \"192.168.10.0/24\"".to_owned(),
            Kind::Path => "a path in quotes".to_owned(),
            Kind::PortRange => "a port range like \"1024-65535\"".to_owned(),
            Kind::Ports => "ports like 443, \"50000-50099\" or [80, 443]".to_owned(),
            Kind::Socket => "an address with port like \"192.0.2.1:443\"".to_owned(),
            Kind::Table(_) => "a table".to_owned(),
            Kind::Tables(..) => "a list of tables".to_owned(),
            Kind::Text => "text in quotes".to_owned(),
            Kind::Word(words) => super::list_or(words.iter().map(|word| format!("\"{}\"", word.word))),
        }
    }
}

fn from_number(number: i64, kind: &Kind, at: &Span) -> Result<Value, Refusal> {
    match kind {
        Kind::Integer { min, max, unit } => {
            if number < *min || number > *max {
                return Err(refuse(
                    "out-of-range",
                    format!("is {number}, out of range"),
                    format!("{min} to {max} {unit}"),
                ));
            }
            Ok(Value::Integer(number))
        }
        Kind::Duration { min_ms, max_ms } => {
            in_time(u64::try_from(number).ok(), format!("{number} ms"), *min_ms, *max_ms)
        }
        Kind::Ports => {
            let port = port(number)?;
            Ok(Value::Ports(PortSet { ranges: vec![PortSpan { low: port, high: port, span: at.clone() }] }))
        }
        _ => Err(refuse("wrong-type", "does not take a number", kind.describe())),
    }
}

fn port(number: i64) -> Result<u16, Refusal> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(refuse("out-of-range", format!("names port {number}"), "ports are 1 to 65535")),
    }
}

fn from_text(text: &str, kind: &Kind, at: &Span) -> Result<Value, Refusal> {
    if text.len() > TEXT_MAX {
        return Err(refuse("too-long", format!("is {} bytes long", text.len()), format!("at most {TEXT_MAX} bytes")));
    }
    match kind {
        Kind::Address => address(text).map(Value::Address),
        Kind::Duration { min_ms, max_ms } => time(text, *min_ms, *max_ms),
        Kind::Name => name(text),
        Kind::Network => network(text).map(Value::Network),
        Kind::Path | Kind::Text => {
            if text.is_empty() || text.chars().any(char::is_control) {
                return Err(refuse(
                    "bad-text",
                    "is empty or has control characters",
                    "write printable text, or remove the key",
                ));
            }
            Ok(Value::Text(text.to_owned()))
        }
        Kind::PortRange => range(text).map(|(low, high)| Value::PortRange(low, high)),
        Kind::Ports => range(text)
            .map(|(low, high)| Value::Ports(PortSet { ranges: vec![PortSpan { low, high, span: at.clone() }] })),
        Kind::Socket => {
            let socket: SocketAddr = text.parse().map_err(|_| {
                refuse(
                    "bad-address",
                    format!("is no address with port: \"{}\"", shorten(text)),
                    "write \"192.0.2.1:443\" or \"[2001:db8::1]:443\"",
                )
            })?;
            Ok(Value::Socket(socket))
        }
        Kind::Word(words) => choice(text, words),
        Kind::Bool
        | Kind::Command
        | Kind::Either(_)
        | Kind::Integer { .. }
        | Kind::List(..)
        | Kind::Table(_)
        | Kind::Tables(..) => Err(refuse("wrong-type", "does not take text", kind.describe())),
    }
}

fn choice(text: &str, words: &'static [Word]) -> Result<Value, Refusal> {
    if let Some(word) = words.iter().find(|word| word.word == text) {
        return Ok(Value::Word(word.word));
    }
    let hint = match nearest(text, words.iter().map(|word| word.word)) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => {
            format!("one of {}", words.iter().map(|word| format!("\"{}\"", word.word)).collect::<Vec<_>>().join(", "))
        }
    };
    Err(refuse("unknown-word", format!("does not know \"{}\"", shorten(text)), hint))
}

fn name(text: &str) -> Result<Value, Refusal> {
    let good = !text.is_empty()
        && text.trim() == text
        && text.chars().count() <= NAME_MAX
        && !text.chars().any(char::is_control);
    if !good {
        return Err(refuse(
            "bad-name",
            format!("is no name: \"{}\"", shorten(text)),
            format!("1 to {NAME_MAX} printable characters, no blanks at the ends"),
        ));
    }
    Ok(Value::Text(text.to_owned()))
}

/// A unicast address: one that a single machine can have.
fn address(text: &str) -> Result<IpAddr, Refusal> {
    let Ok(address) = text.parse::<IpAddr>() else {
        let hint = if text.parse::<SocketAddr>().is_ok() {
            "the port has a key of its own; write only the address"
        } else if text.contains('/') {
            "write only the address, without a prefix length"
        } else if text.contains('%') {
            "addresses with a zone are not supported; use a global or unique local address"
        } else {
            "write \"192.0.2.10\" or \"2001:db8::10\"; host names are not looked up"
        };
        return Err(refuse("bad-address", format!("is no IP address: \"{}\"", shorten(text)), hint));
    };
    unicast(address).map_err(|(what, hint)| refuse("unusable-address", format!("is {what}: {address}"), hint))?;
    Ok(address)
}

fn unicast(address: IpAddr) -> Result<(), (&'static str, &'static str)> {
    if address.is_unspecified() {
        return Err((
            "the unspecified address",
            "name one address; a service on several addresses is several services, because replies leave from the VIP",
        ));
    }
    if address.is_multicast() {
        return Err(("a multicast address", "name a unicast address"));
    }
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Err(("the broadcast address", "name a unicast address")),
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => {
            Err(("a reserved address", "name a unicast address"))
        }
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(("an IPv4 address in IPv6 dress", "write it as IPv4")),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Err(("a link-local address", "it means nothing without a link; use a global or unique local address"))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(()),
    }
}

fn network(text: &str) -> Result<Network, Refusal> {
    let bad = || {
        refuse(
            "bad-network",
            format!("is no network: \"{}\"", shorten(text)),
            "write \"192.168.10.0/24\" or \"2001:db8::/64\"",
        )
    };
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix: u8 =
        digits(prefix).and_then(|number| u8::try_from(number).ok()).filter(|prefix| *prefix <= bits).ok_or_else(bad)?;
    Ok(Network { address, prefix })
}

fn range(text: &str) -> Result<(u16, u16), Refusal> {
    let bad =
        |hint: &str| refuse("bad-ports", format!("is no port or port range: \"{}\"", shorten(text)), hint.to_owned());
    if text.contains(',') {
        return Err(bad("write a list: [80, 443]"));
    }
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (Some(low), Some(high)) = (digits(low), digits(high)) else {
        return Err(bad("write 443, \"50000-50099\" or [80, 443]"));
    };
    let (low, high) = (port(low)?, port(high)?);
    if low > high {
        return Err(bad("the lower port comes first"));
    }
    Ok((low, high))
}

/// Digits only: no sign, no blanks.
fn digits(text: &str) -> Option<i64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

fn time(text: &str, min_ms: u64, max_ms: u64) -> Result<Value, Refusal> {
    let split = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(split);
    let Some(number) = digits(number).and_then(|number| u64::try_from(number).ok()) else {
        return Err(refuse(
            "wrong-unit",
            format!("is no duration: \"{}\"", shorten(text)),
            "write a whole number and a unit: \"500ms\", \"4s\", \"30m\", \"1h\", \"1d\"",
        ));
    };
    if let Some((_, factor)) = UNITS.iter().find(|(known, _)| *known == unit) {
        return in_time(number.checked_mul(*factor), format!("\"{}\"", shorten(text)), min_ms, max_ms);
    }
    let meant = match unit.trim().to_lowercase().as_str() {
        "" => {
            return Err(refuse(
                "wrong-unit",
                format!("has no unit: \"{}\"", shorten(text)),
                format!("write \"{number}s\", or {number} without quotes for milliseconds"),
            ));
        }
        "msec" | "msecs" | "millis" | "millisecond" | "milliseconds" => Some("ms"),
        "sec" | "secs" | "second" | "seconds" => Some("s"),
        "min" | "mins" | "minute" | "minutes" => Some("m"),
        "hour" | "hours" | "hr" | "hrs" => Some("h"),
        "day" | "days" => Some("d"),
        lowered => UNITS.iter().map(|(known, _)| *known).find(|known| *known == lowered),
    };
    let hint = match meant {
        Some(meant) => format!("did you mean \"{number}{meant}\"?"),
        None => "units are ms, s, m, h and d".to_owned(),
    };
    Err(refuse("wrong-unit", format!("has an unknown unit: \"{}\"", shorten(text)), hint))
}

/// A time span with its unit, in milliseconds.
pub(crate) fn duration(text: &str) -> Option<u64> {
    match time(text, 0, u64::MAX) {
        Ok(Value::Duration(ms)) => Some(ms),
        _ => None,
    }
}

fn in_time(ms: Option<u64>, shown: String, min_ms: u64, max_ms: u64) -> Result<Value, Refusal> {
    match ms {
        Some(ms) if (min_ms..=max_ms).contains(&ms) => Ok(Value::Duration(ms)),
        _ => Err(refuse(
            "out-of-range",
            format!("is {shown}, out of range"),
            format!("{} to {}", duration_text(min_ms), duration_text(max_ms)),
        )),
    }
}

/// The shortest way to write a time span.
pub(crate) fn duration_text(ms: u64) -> String {
    let (unit, factor) =
        UNITS.iter().rev().find(|(_, factor)| ms != 0 && ms.is_multiple_of(*factor)).unwrap_or(&UNITS[0]);
    format!("\"{}{unit}\"", ms / factor)
}
