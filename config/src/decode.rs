//! From the parsed file to typed values, by the table in [`crate::schema`]. Reports everything that is wrong and goes on.

mod scalar;
mod value;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{NOT_AVAILABLE, Report, Span};
use crate::schema::{Availability, COMMAND_WORDS_MAX, Default, Key, Kind, NAME_MAX, ROOT, Table};

pub(crate) use scalar::{duration, duration_text, literal};
pub(crate) use value::{At, Entry, PortSet, Section, Value};

/// Whether what is not available is told: not inside a table that as a whole is not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Announce {
    Each,
    No,
}

/// Decodes the file.
pub(crate) fn decode(root: &DeTable<'_>, table: &'static Table, report: &mut Report) -> Section {
    let mut decoder = Decoder { report, announce: Announce::Each };
    decoder.section(root, table, 0..0, "")
}

/// A table of the file in which nothing is written.
pub(crate) fn defaults(name: &str) -> Section {
    let Some(Kind::Table(table)) = ROOT.key(name).map(|key| key.kind) else {
        unreachable!("{name} is a table of the schema");
    };
    defaults_of(table, name)
}

/// The same of any table; `path` as in the file.
pub(crate) fn defaults_of(table: &'static Table, path: &str) -> Section {
    let mut report = Report::default();
    Decoder { report: &mut report, announce: Announce::No }.section(&DeTable::new(), table, 0..0, path)
}

pub(crate) struct Decoder<'r> {
    report: &'r mut Report,
    announce: Announce,
}

impl Decoder<'_> {
    /// `path` is how a person would write the table's name, e.g. `persistence` for `service.persistence`.
    fn section(&mut self, raw: &DeTable<'_>, table: &'static Table, span: Span, path: &str) -> Section {
        let mut section = Section::new(table, span.clone());
        let mut present: Vec<(&Spanned<_>, &Spanned<DeValue<'_>>)> = raw.iter().collect();
        present.sort_by_key(|(key, _)| key.span().start);
        for (written, value) in present {
            if self.report.full() {
                break;
            }
            let Some(key) = table.key(written.get_ref()) else {
                section.broken.extend(self.unknown_key(written.get_ref(), written.span(), table));
                continue;
            };
            let at = place(value, &written.span());
            let entry_path = join(path, key.name);
            let before = self.announce;
            let later = key.availability == Availability::Later;
            if later {
                self.announce = Announce::No;
            }
            let decoded = self.value(value, &key.kind, at.clone(), &entry_path);
            self.announce = before;
            let Some(decoded) = decoded else {
                section.broken.push(key.name);
                continue;
            };
            if later && self.announce == Announce::Each && !is_default(key, &decoded) {
                self.key_not_available(key, &decoded, &written.span(), &entry_path);
            }
            section.entries.insert(key.name, Entry { key: written.span(), at, value: decoded, written: true });
        }
        for key in table.keys {
            if section.entries.contains_key(key.name) || section.broken.contains(&key.name) {
                continue;
            }
            match key.default {
                Default::Absent | Default::Described(_) => {}
                Default::Required => {
                    section.broken.push(key.name);
                    self.missing(key, table, &span);
                }
                Default::Value(text) => {
                    let value = literal(&key.kind, text).expect("a test decodes every default of the table");
                    section
                        .entries
                        .insert(key.name, Entry { key: span.clone(), at: span.clone(), value, written: false });
                }
            }
        }
        section
    }

    fn missing(&mut self, key: &Key, table: &Table, span: &Span) {
        if self.report.incomplete {
            return;
        }
        let hint = format!("add {}; {}", example(key, table), lower(key.doc));
        self.report.error("missing-key", span, format!("`{}` is missing", key.name)).hint(hint);
    }

    /// Returns the key that was meant, which then is not missing.
    fn unknown_key(&mut self, name: &str, span: Span, table: &'static Table) -> Option<&'static str> {
        let shown = shorten(name);
        let place = match table.path.rsplit('.').next() {
            None | Some("") => "the file".to_owned(),
            Some(last) => format!("`{last}`"),
        };
        let near = nearest(name, table.keys.iter().map(|key| key.name));
        let finding = self.report.error("unknown-key", &span, format!("unknown key `{shown}` in {place}"));
        if (table.path, name) == ("service.persistence", "fallback") {
            finding.hint("name it behind the first, as in `by = [\"cookie\", \"source-ip\"]`");
            return None;
        }
        if (table.path, name) == ("service", "min_connections") {
            finding.hint("it is a key of servers: write it into `[[service.server]]`");
            return None;
        }
        match near {
            Some(near) => finding.hint(format!("did you mean `{near}`?")),
            None => match homes(name) {
                Some(homes) => finding.hint(format!("`{shown}` belongs in {homes}")),
                None => finding.hint(format!("{place} may contain: {}", list(table.keys.iter().map(|key| key.name)))),
            },
        };
        near
    }

    fn key_not_available(&mut self, key: &Key, value: &Value, span: &Span, path: &str) {
        let what = match (key.kind, value) {
            (Kind::Tables(..), _) => format!("`[[{path}]]`"),
            (Kind::Table(_), _) => format!("`{path} = {{ ... }}`"),
            (_, Value::Bool(on)) => format!("`{path} = {on}`"),
            (_, Value::Word(word)) => format!("`{path} = \"{word}\"`"),
            _ => format!("`{path}`"),
        };
        let finding = self.report.warning(NOT_AVAILABLE, span, format!("{what} is not available yet"));
        match key.default {
            Default::Value(default) => finding.hint(format!(
                "`towpath run` refuses to start with it; remove it, or keep the default {}",
                crate::reference::quoted(&key.kind, default)
            )),
            _ => finding.hint("`towpath run` refuses to start with it; remove it"),
        };
    }

    fn word_not_available(&mut self, word: &str, span: &Span, path: &str) {
        if self.announce == Announce::Each {
            self.report
                .warning(NOT_AVAILABLE, span, format!("`{path} = \"{word}\"` is not available yet"))
                .hint("`towpath run` refuses to start with it");
        }
    }

    fn value(&mut self, raw: &Spanned<DeValue<'_>>, kind: &'static Kind, at: Span, path: &str) -> Option<Value> {
        match (kind, raw.get_ref()) {
            (Kind::Either(kinds), inner) => {
                let kind = choose(kinds, inner);
                let Some(kind) = kind else {
                    self.wrong_type(inner, kinds, &at, path);
                    return None;
                };
                self.value(raw, kind, at, path)
            }
            (Kind::Table(table), DeValue::Table(inner)) => Some(Value::Table(self.section(inner, table, at, path))),
            (Kind::Tables(table, max), DeValue::Array(items)) => self.sections(items.iter(), table, *max, &at, path),
            (Kind::Tables(table, _), DeValue::Table(inner)) => {
                let finding = self.report.error("wrong-type", &at, format!("`{}` is a list of tables", table.path));
                finding.hint(format!("write `[[{}]]`, with two brackets", table.path));
                // What is inside is still worth judging.
                self.section(inner, table, at, path);
                None
            }
            (Kind::Ports, DeValue::Array(items)) => self.ports(items.iter(), at, path),
            (Kind::Command, DeValue::Array(items)) => self.command(items.iter(), at, path),
            (Kind::List(kind, max), DeValue::Array(items)) => self.list(items.iter(), kind, *max, at, path),
            (kind, inner) if kind.takes(inner) => self.scalar(inner, kind, &at, path),
            (kind, inner) => {
                self.wrong_type(inner, std::slice::from_ref(kind), &at, path);
                None
            }
        }
    }

    fn sections<'a, 'i: 'a>(
        &mut self,
        items: impl ExactSizeIterator<Item = &'a Spanned<DeValue<'i>>>,
        table: &'static Table,
        max: usize,
        at: &Span,
        path: &str,
    ) -> Option<Value> {
        let count = items.len();
        let mut sections = Vec::with_capacity(count.min(max));
        let mut whole = true;
        for (index, item) in items.enumerate() {
            let span = place(item, at);
            if index == max {
                self.report
                    .error("too-many", &span, format!("{count} times `[[{}]]`, at most {max} are allowed", table.path))
                    .hint("split the file over several machines, or share servers by `[[group]]`");
                return None;
            }
            match item.get_ref() {
                DeValue::Table(inner) => sections.push(self.section(inner, table, span, path)),
                other => {
                    self.wrong_type(other, &[Kind::Table(table)], &span, path);
                    whole = false;
                }
            }
        }
        // An incomplete list is still judged; the error keeps the model away.
        (whole || !sections.is_empty()).then_some(Value::Tables(sections))
    }

    fn list<'a, 'i: 'a>(
        &mut self,
        items: impl ExactSizeIterator<Item = &'a Spanned<DeValue<'i>>>,
        kind: &'static Kind,
        max: usize,
        at: Span,
        path: &str,
    ) -> Option<Value> {
        let count = items.len();
        if count == 0 {
            self.report
                .error("empty-list", &at, format!("`{path}` is empty"))
                .hint("name at least one, or remove the key");
            return None;
        }
        if count > max {
            self.report.error("too-many", &at, format!("`{path}` has {count} entries, at most {max} are allowed"));
            return None;
        }
        let mut list: Vec<At<Value>> = Vec::with_capacity(count);
        for item in items {
            let span = place(item, &at);
            let Some(value) = self.value(item, kind, span.clone(), path) else {
                continue;
            };
            match list.iter().find(|earlier| earlier.value == value) {
                Some(earlier) => {
                    self.report
                        .error("duplicate-entry", &span, format!("`{path}` names {value} twice"))
                        .label(&earlier.span, "first here")
                        .hint("remove one of them");
                }
                None => list.push(At { value, span, written: true }),
            }
        }
        (!list.is_empty()).then_some(Value::List(list))
    }

    /// Unlike a list it may say the same twice.
    fn command<'a, 'i: 'a>(
        &mut self,
        items: impl ExactSizeIterator<Item = &'a Spanned<DeValue<'i>>>,
        at: Span,
        path: &str,
    ) -> Option<Value> {
        let count = items.len();
        if count == 0 {
            self.report
                .error("empty-list", &at, format!("`{path}` is empty"))
                .hint("name the program by its whole path, then its arguments");
            return None;
        }
        if count > COMMAND_WORDS_MAX {
            let cause = format!("`{path}` has {count} entries, at most {COMMAND_WORDS_MAX} are allowed");
            self.report.error("too-many", &at, cause).hint("let a script of yours call the program");
            return None;
        }
        let mut words: Vec<At<Value>> = Vec::with_capacity(count);
        for item in items {
            let span = place(item, &at);
            // One that is no text would shift the others.
            let value = self.value(item, &Kind::Text, span.clone(), path)?;
            if let (true, Value::Text(program)) = (words.is_empty(), &value)
                && !program.starts_with('/')
            {
                self.report
                    .error("bad-command", &span, format!("`{path}` names a program without its whole path: {value}"))
                    .hint("write where it is, as in `[\"/usr/local/bin/check\", \"--fast\"]`; no shell looks for it, or splits words");
                return None;
            }
            words.push(At { value, span, written: true });
        }
        Some(Value::List(words))
    }

    fn ports<'a, 'i: 'a>(
        &mut self,
        items: impl ExactSizeIterator<Item = &'a Spanned<DeValue<'i>>>,
        at: Span,
        path: &str,
    ) -> Option<Value> {
        let count = items.len();
        if count == 0 {
            self.report.error("empty-list", &at, format!("`{path}` is empty")).hint("name at least one port");
            return None;
        }
        if count > PortSet::RANGES_MAX {
            self.report
                .error(
                    "too-many",
                    &at,
                    format!("`{path}` has {count} entries, at most {} are allowed", PortSet::RANGES_MAX),
                )
                .hint("write neighbouring ports as a range: \"50000-59999\"");
            return None;
        }
        let mut ports = PortSet::default();
        for item in items {
            let span = place(item, &at);
            if item.get_ref().is_array() {
                self.wrong_type(item.get_ref(), &[Kind::Ports], &span, path);
                continue;
            }
            let Some(Value::Ports(one)) = self.value(item, &Kind::Ports, span, path) else {
                continue;
            };
            for range in one.ranges {
                if let Some(earlier) =
                    ports.ranges.iter().find(|earlier| earlier.low <= range.high && range.low <= earlier.high)
                {
                    self.report
                        .error(
                            "duplicate-entry",
                            &range.span,
                            format!("`{path}` names port {} twice", range.low.max(earlier.low)),
                        )
                        .label(&earlier.span, "first here")
                        .hint("remove one of them");
                } else {
                    ports.ranges.push(range);
                }
            }
        }
        (!ports.ranges.is_empty()).then_some(Value::Ports(ports))
    }

    fn wrong_type(&mut self, found: &DeValue<'_>, expected: &[Kind], at: &Span, path: &str) {
        let wanted = list_or(expected.iter().map(Kind::describe));
        let finding =
            self.report.error("wrong-type", at, format!("`{path}` takes {wanted}, found {}", type_name(found)));
        match (expected, found) {
            ([Kind::Integer { .. } | Kind::Bool], DeValue::String(text)) if text.len() <= 20 && !text.is_empty() => {
                finding.hint(format!("write {text} without quotes"));
            }
            ([Kind::Table(table)], _) => {
                finding.hint(format!(
                    "write `{} = {{ ... }}` or a table of its own",
                    table.path.rsplit('.').next().unwrap_or(path)
                ));
            }
            ([.., Kind::Command | Kind::List(..)], DeValue::String(_) | DeValue::Integer(_)) => {
                finding.hint("write it in brackets: [ ... ]");
            }
            (
                [Kind::Word(_) | Kind::Name | Kind::Text | Kind::Path | Kind::Address],
                DeValue::Integer(_) | DeValue::Boolean(_) | DeValue::Float(_),
            ) => {
                finding.hint("write it in quotes");
            }
            _ => {}
        }
    }
}

/// Which of several kinds a value means: a word of a closed set or a path from the root first, then the first that takes its type.
fn choose(kinds: &'static [Kind], value: &DeValue<'_>) -> Option<&'static Kind> {
    let exact = kinds.iter().find(|kind| match (kind, value.as_str()) {
        (Kind::Word(words), Some(text)) => words.iter().any(|word| word.word == text),
        (Kind::Path, Some(text)) => text.starts_with('/'),
        _ => false,
    });
    exact
        .or_else(|| kinds.iter().find(|kind| !matches!(kind, Kind::Word(_)) && kind.takes(value)))
        .or_else(|| kinds.iter().find(|kind| kind.takes(value)))
}

/// A parsed value whose span is empty (a table made by a dotted key) is shown at its key.
fn place(value: &Spanned<DeValue<'_>>, otherwise: &Span) -> Span {
    let span = value.span();
    if span.is_empty() { otherwise.clone() } else { span }
}

fn is_default(key: &Key, value: &Value) -> bool {
    match key.default {
        Default::Value(text) => literal(&key.kind, text).as_ref() == Some(value),
        Default::Absent | Default::Described(_) | Default::Required => false,
    }
}

fn join(path: &str, name: &str) -> String {
    // `service.persistence.by` is told as `persistence.by`: the line shows which service.
    match path {
        "" | "service" | "group" | "server" => name.to_owned(),
        _ => format!("{path}.{name}"),
    }
}

fn example(key: &Key, table: &Table) -> String {
    match key.kind {
        Kind::Tables(..) => format!("`[[{}.{}]]`", table.path, key.name),
        Kind::Word(words) => format!(
            "`{} = \"{}\"`",
            key.name,
            words.iter().find(|word| word.availability == Availability::Now).map_or("", |word| word.word)
        ),
        Kind::Address => format!("`{} = \"192.0.2.10\"`", key.name),
        Kind::Command => format!("`{} = [\"/usr/local/bin/check\"]`", key.name),
        Kind::Either(_) | Kind::Ports => format!("`{} = [443]`", key.name),
        Kind::List(Kind::Address, _) => format!("`{} = [\"192.0.2.10\"]`", key.name),
        _ => format!("`{} = ...`", key.name),
    }
}

fn lower(doc: &str) -> String {
    let mut characters = doc.chars();
    characters
        .next()
        .map(|first| first.to_lowercase().chain(characters).collect::<String>().trim_end_matches('.').to_owned())
        .unwrap_or_default()
}

/// The tables that have such a key, if they are few enough to tell.
fn homes(name: &str) -> Option<String> {
    let homes =
        crate::reference::tables().into_iter().filter(|table| !table.path.is_empty() && table.key(name).is_some());
    let homes: Vec<_> = homes.map(|table| table.path).take(4).collect();
    (1..4).contains(&homes.len()).then(|| list_or(homes.into_iter().map(|path| format!("`{path}`"))))
}

/// The closest of `known`, if it is close enough to be meant.
pub(crate) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    if name.len() > NAME_MAX {
        return None;
    }
    let plain = name.to_lowercase().replace(['_', ' '], "-");
    known
        .filter_map(|candidate| {
            let farthest = (candidate.len().max(name.len()) / 3).max(1);
            let distance = match candidate.len().abs_diff(name.len()) <= farthest {
                true => strsim::osa_distance(&plain, &candidate.to_lowercase().replace(['_', ' '], "-")),
                false => return None,
            };
            (distance <= farthest).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// [`nearest`] among names of the file, of which there may be many: only so often in one check.
pub(crate) fn nearest_name<'k>(
    name: &str,
    known: impl Iterator<Item = &'k str>,
    report: &mut Report,
) -> Option<&'k str> {
    report.may_search().then(|| nearest(name, known)).flatten()
}

/// Text of the file inside a message: short, without control characters.
pub(crate) fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        shown.push_str("...");
    }
    shown
}

fn list<'k>(names: impl Iterator<Item = &'k str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn list_or(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(" or ")
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
