//! A configuration file as it may be shown to others: what could be a secret is left out.
//!
//! What is told is what the schema bounds: numbers, addresses, durations, words of closed sets, names and paths. Free text is left out unless its key is
//! known to hold none, and so is every comment and whatever stands under a key that the schema does not know.

use toml::de::{DeTable, DeValue};

use crate::FILE_BYTES_MAX;
use crate::decode::literal;
use crate::diagnostic::Span;
use crate::schema::{Kind, ROOT, Table};

/// Stands for a value.
const VALUE: &str = "\"(left out)\"";
/// Stands for a comment.
const COMMENT: &str = "# (left out)";
/// Shorter ones are too common to be looked for elsewhere.
const SECRET_BYTES_MIN: usize = 6;

/// Keys with free text that is on the wire in clear, or no text of the operator's at all.
const HARMLESS: [&str; 11] =
    ["alpn", "dhcp", "host", "mac", "method", "names", "path_exact", "rcode", "server_name", "servers", "status"];

/// A file without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redacted {
    /// The text, with something else in the place of what was left out.
    pub text: String,
    /// What was left out, as far as it is long enough to be found elsewhere.
    pub secrets: Vec<String>,
}

/// Leaves out what others need not know. `None` for a text that is no TOML: nobody can say what is what in it.
pub fn without_secrets(text: &str) -> Option<Redacted> {
    if text.len() > FILE_BYTES_MAX {
        return None;
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return None;
    }
    let mut sieve = Sieve { known: Vec::new(), left_out: Vec::new(), secrets: Vec::new() };
    sieve.table(root.get_ref(), Some(&ROOT));
    Some(Redacted { text: sieve.apply(text), secrets: sieve.secrets })
}

/// What is found on the way through the file.
struct Sieve {
    /// Keys and values: in these a `#` begins no comment.
    known: Vec<Span>,
    left_out: Vec<Span>,
    secrets: Vec<String>,
}

impl Sieve {
    /// `schema` is `None` below a key that nobody knows.
    fn table(&mut self, table: &DeTable<'_>, schema: Option<&'static Table>) {
        for (name, value) in table {
            self.known.push(name.span());
            let key = schema.and_then(|schema| schema.key(name.get_ref()));
            self.value(value.get_ref(), &value.span(), key.map(|key| (key.name, &key.kind)));
        }
    }

    fn value(&mut self, value: &DeValue<'_>, at: &Span, key: Option<(&'static str, &'static Kind)>) {
        match value {
            DeValue::Table(inner) => self.table(inner, key.and_then(|(_, kind)| table_of(kind))),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    // Arguments may be passwords, the program is a path.
                    let is_program = index == 0 && key.is_some_and(|(_, kind)| is_command(kind));
                    let key = if is_program { key.map(|(name, _)| (name, &Kind::Path)) } else { key };
                    self.value(item.get_ref(), &item.span(), key);
                }
            }
            DeValue::String(text) => {
                self.known.push(at.clone());
                if !key.is_some_and(|(name, kind)| is_told(kind, name, text)) {
                    self.left_out.push(at.clone());
                    if text.len() >= SECRET_BYTES_MIN {
                        self.secrets.push(text.to_string());
                    }
                }
            }
            DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Float(_) | DeValue::Integer(_) => {
                self.known.push(at.clone());
                if !key.is_some_and(|(_, kind)| is_bounded(kind)) {
                    self.left_out.push(at.clone());
                }
            }
        }
    }

    fn apply(&mut self, text: &str) -> String {
        let by_start = |a: &Span, b: &Span| a.start.cmp(&b.start);
        self.left_out.sort_by(by_start);
        self.known.sort_by(by_start);
        let (mut left_out, mut known) = (self.left_out.iter().peekable(), self.known.iter().peekable());
        let mut shown = String::with_capacity(text.len());
        let mut at = 0;
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            while known.next_if(|span| span.end <= at).is_some() {}
            while left_out.next_if(|span| span.end <= at).is_some() {}
            if let Some(span) = left_out.peek().filter(|span| span.start == at) {
                shown.push_str(VALUE);
                at = span.end;
            } else if let Some(span) = known.peek().filter(|span| span.start <= at) {
                shown.push_str(&text[at..span.end]);
                at = span.end;
            } else if rest.starts_with('#') {
                shown.push_str(COMMENT);
                at += rest.find('\n').unwrap_or(rest.len());
            } else {
                let letter = rest.chars().next().unwrap_or_default();
                shown.push(letter);
                at += letter.len_utf8();
            }
        }
        shown
    }
}

fn table_of(kind: &'static Kind) -> Option<&'static Table> {
    match kind {
        Kind::Table(table) | Kind::Tables(table, _) => Some(table),
        Kind::Either(kinds) => kinds.iter().find_map(table_of),
        _ => None,
    }
}

fn is_command(kind: &Kind) -> bool {
    match kind {
        Kind::Command => true,
        Kind::Either(kinds) => kinds.iter().any(is_command),
        _ => false,
    }
}

/// Whether a number or a truth may be what this key takes.
fn is_bounded(kind: &Kind) -> bool {
    match kind {
        Kind::Bool | Kind::Duration { .. } | Kind::Integer { .. } | Kind::Ports => true,
        Kind::Either(kinds) => kinds.iter().any(is_bounded),
        Kind::List(inner, _) => is_bounded(inner),
        _ => false,
    }
}

/// Whether a text may be told: one that the kind of its key bounds, or of a harmless key.
fn is_told(kind: &Kind, key: &str, text: &str) -> bool {
    match kind {
        Kind::Name | Kind::Path => true,
        Kind::Text => HARMLESS.contains(&key),
        Kind::Either(kinds) => kinds.iter().any(|kind| is_told(kind, key, text)),
        Kind::List(inner, _) => is_told(inner, key, text),
        Kind::Ports => text == "all" || text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'),
        Kind::Command | Kind::Table(_) | Kind::Tables(..) => false,
        Kind::Address
        | Kind::Bool
        | Kind::Duration { .. }
        | Kind::Integer { .. }
        | Kind::Network
        | Kind::PortRange
        | Kind::Socket
        | Kind::Word(_) => literal(kind, text).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::tables;

    const CANARY: &str = "canary-4711";

    #[test]
    fn what_is_bounded_is_told_and_everything_else_is_left_out() {
        let text = "\
# password: canary-4711
runtime = { workers = [0, 1] } # canary-4711
wrong = \"canary-4711\"

[[service]]
name = \"a # b\"
vip = \"192.0.2.1\"
ports = [80, \"5000-5010\"]
vib = 4711
[service.health]
check = \"external\"
command = [\"/usr/local/bin/probe\", \"--password\", \"canary-4711\"]
expect = '''
canary-4711 # no comment'''
[service.unknown.deep]
pins = [4711, \"canary-4711\"]
";
        let redacted = without_secrets(text).expect("a test");
        let expected = "\
# (left out)
runtime = { workers = [0, 1] } # (left out)
wrong = \"(left out)\"

[[service]]
name = \"a # b\"
vip = \"192.0.2.1\"
ports = [80, \"5000-5010\"]
vib = \"(left out)\"
[service.health]
check = \"external\"
command = [\"/usr/local/bin/probe\", \"(left out)\", \"(left out)\"]
expect = \"(left out)\"
[service.unknown.deep]
pins = [\"(left out)\", \"(left out)\"]
";
        assert_eq!(redacted.text, expected);
        let expected = [CANARY, "--password", CANARY, "canary-4711 # no comment", CANARY];
        let mut secrets = redacted.secrets;
        secrets.sort();
        let mut expected = expected.map(str::to_owned);
        expected.sort();
        assert_eq!(secrets, expected);
    }

    #[test]
    fn no_key_with_free_text_tells_it_unless_it_is_known_to_be_harmless() {
        let mut tried = 0;
        for table in tables() {
            for key in table.keys {
                let free = ["Text", "Command"].iter().any(|kind| format!("{:?}", key.kind).starts_with(kind));
                if !free || HARMLESS.contains(&key.name) {
                    continue;
                }
                let header = if table.path.is_empty() { String::new() } else { format!("[{}]\n", table.path) };
                for value in [format!("\"{CANARY}\""), format!("[\"/bin/x\", \"{CANARY}\"]")] {
                    let redacted = without_secrets(&format!("{header}{} = {value}\n", key.name)).expect("a test");
                    assert!(!redacted.text.contains(CANARY), "{}.{}: {}", table.path, key.name, redacted.text);
                }
                tried += 1;
            }
        }
        assert!(tried >= 10, "only {tried} keys with free text");
    }

    #[test]
    fn nothing_is_told_of_what_cannot_be_read() {
        assert_eq!(without_secrets("password = \"canary-4711\nname = 1"), None);
        assert_eq!(without_secrets(&"#".repeat(FILE_BYTES_MAX + 1)), None);
    }

    #[test]
    fn every_example_is_told_but_for_its_comments() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).expect("a test") {
            let path = entry.expect("a test").path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                let text = std::fs::read_to_string(&path).expect("a test");
                let redacted = without_secrets(&text).expect("a test");
                assert_eq!(redacted.text.lines().count(), text.lines().count(), "{}", path.display());
                assert!(redacted.text.contains("vip = "), "{}: {}", path.display(), redacted.text);
                seen += 1;
            }
        }
        assert!(seen > 3);
    }
}
