//! What a new configuration changes, in the words of the file, and what becomes of the connections that are open; pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use towpath_config::model::{AdminState, Model, Plane, Server, ServerGroup, VirtualService};

use super::{Change, by_name, groups_of_both, member, member_changes};

/// What a reload would change, or has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadPlan {
    /// The generation that it was compared with.
    pub generation: u64,
    /// What is different, the services in the order of the new file.
    pub changes: Vec<PlannedChange>,
    /// Why it cannot be taken while running, each with its place or name; empty = it can.
    pub refusals: Vec<String>,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedChange {
    /// What is changed: `service web`, `server FE-1 of service web`, `limits`.
    pub subject: String,
    /// `added`, `removed`, or the key that says something else.
    pub change: String,
    /// What it said; empty where there was nothing, or where it may be secret.
    pub from: String,
    /// What it says.
    pub to: String,
    /// Connections and sessions that are open there.
    pub connections: u64,
    /// What becomes of these.
    pub effect: Effect,
}

/// What becomes of open connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// They are ended.
    End,
    /// They may finish within the drain timeout of their service.
    Finish,
    /// They go on as if nothing had been changed.
    GoOn,
}

impl Effect {
    /// The same for people.
    pub fn words(self) -> &'static str {
        match self {
            Effect::End => "ended",
            Effect::Finish => "may finish within drain_timeout",
            Effect::GoOn => "go on",
        }
    }
}

/// One thing about a service that a reload changed, for the event list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceChange {
    pub(crate) service: String,
    pub(crate) change: String,
}

/// Services that came, went, or are reached otherwise.
pub(crate) fn service_changes(old: &Model, new: &Model) -> Vec<ServiceChange> {
    let (before, after) = (by_name(&old.services), by_name(&new.services));
    let change = |service: &str, change: String| ServiceChange { service: service.to_owned(), change };
    let removed = before.keys().filter(|name| !after.contains_key(*name));
    let mut changes: Vec<ServiceChange> = removed.map(|name| change(name, "removed".to_owned())).collect();
    for service in &new.services {
        let Some(was) = before.get(service.name.as_str()) else {
            changes.push(change(&service.name, "added".to_owned()));
            continue;
        };
        let reached = |service: &VirtualService| {
            let [vip, ports, protocol, plane] =
                ["vip", "ports", "protocol", "plane"].map(|key| leaf_of(service, key).unwrap_or_default());
            format!("{vip} {protocol} {ports} ({plane} plane)")
        };
        let (from, to) = (reached(was), reached(service));
        if from != to {
            changes.push(change(&service.name, format!("from {from} to {to}")));
        }
    }
    changes
}

/// Everything that differs; `open` says how many connections a service has, or has with one of its servers (by name).
pub(crate) fn planned_changes(
    old: &Model,
    new: &Model,
    open: impl Fn(&str, Option<&str>) -> u64,
) -> Vec<PlannedChange> {
    // Taken apart, so that a section that is added later must be told here.
    let Model {
        runtime,
        limits,
        control,
        notify,
        tls,
        log,
        metrics,
        router,
        routes,
        outbound,
        interfaces,
        bridges,
        // Those of services are told with them.
        groups: _,
        services: _,
    } = new;
    let mut changes = Vec::new();
    let mut sections = Sections { changes: &mut changes };
    sections.compare("runtime", &old.runtime, runtime, Shown::Values);
    sections.compare("limits", &old.limits, limits, Shown::Values);
    // These have passwords, or their hashes, or addresses with tokens.
    sections.compare("control", &old.control, control, Shown::Keys);
    sections.compare("notify", &old.notify, notify, Shown::Keys);
    sections.compare("tls", &old.tls, tls, Shown::Values);
    sections.compare("log", &old.log, log, Shown::Values);
    sections.compare("metrics", &old.metrics, metrics, Shown::Values);
    sections.compare("router", &old.router, router, Shown::Values);
    sections.compare("route", &old.routes, routes, Shown::Keys);
    sections.compare("outbound_nat", &old.outbound, outbound, Shown::Keys);
    sections.compare("interface", &old.interfaces, interfaces, Shown::Keys);
    sections.compare("bridge", &old.bridges, bridges, Shown::Keys);

    let (before, after) = (by_name(&old.services), by_name(&new.services));
    for (name, _) in before.iter().filter(|(name, _)| !after.contains_key(*name)) {
        changes.push(PlannedChange {
            subject: format!("service {name}"),
            change: "removed".to_owned(),
            from: String::new(),
            to: String::new(),
            connections: open(name, None),
            effect: Effect::Finish,
        });
    }
    let members = member_changes(old, new);
    for service in &new.services {
        let subject = format!("service {}", service.name);
        let Some(was) = before.get(service.name.as_str()) else {
            let reached = |key| leaf_of(service, key).unwrap_or_default();
            let to = format!("{} {} {}", reached("vip"), reached("protocol"), reached("ports"));
            changes.push(PlannedChange {
                subject,
                change: "added".to_owned(),
                from: String::new(),
                to,
                connections: 0,
                effect: Effect::GoOn,
            });
            continue;
        };
        let mut differences = differences(&leaves_of_service(was), &leaves_of_service(service));
        let mut of_servers = Vec::new();
        for (old_group, new_group) in groups_of_both((old, was), (new, service)) {
            let leaves = |group: Option<&ServerGroup>| group.map(leaves_of_group).unwrap_or_default();
            differences.extend(self::differences(&leaves(old_group), &leaves(new_group)));
            let old_servers = old_group.map_or(&[][..], |group| &group.servers);
            for server in new_group.iter().flat_map(|group| &group.servers) {
                let Some(was) = member(old_servers, server.address, server.port) else { continue };
                let differences = self::differences(&leaves_of_server(was), &leaves_of_server(server));
                of_servers.extend(differences.into_iter().map(|difference| (server.name.clone(), difference)));
            }
        }
        let connections = open(&service.name, None);
        changes.extend(differences.into_iter().map(|(change, from, to)| PlannedChange {
            subject: subject.clone(),
            change,
            from,
            to,
            connections,
            effect: Effect::GoOn,
        }));
        changes.extend(of_servers.into_iter().map(|(server, (change, from, to))| PlannedChange {
            subject: format!("server {server} of service {}", service.name),
            change,
            from,
            to,
            connections: open(&service.name, Some(&server)),
            effect: Effect::GoOn,
        }));
        for member in members.iter().filter(|member| member.service == service.name) {
            let halts = |to: &String| *to == crate::status::word(&AdminState::Halt);
            let (change, from, to, effect) = match &member.change {
                Change::Added => ("added", String::new(), String::new(), Effect::GoOn),
                Change::Removed => ("removed", String::new(), String::new(), Effect::GoOn),
                Change::Admin { from, to } => {
                    let effect = if halts(to) { Effect::End } else { Effect::GoOn };
                    ("admin", from.clone(), to.clone(), effect)
                }
                Change::Weight { from, to } => ("weight", from.to_string(), to.to_string(), Effect::GoOn),
            };
            changes.push(PlannedChange {
                subject: format!("server {} of service {}", member.server, service.name),
                change: change.to_owned(),
                from,
                to,
                connections: open(&service.name, Some(&member.server)),
                effect,
            });
        }
    }
    changes
}

/// Whether values are shown, or only which keys differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Keys,
    Values,
}

struct Sections<'c> {
    changes: &'c mut Vec<PlannedChange>,
}

impl Sections<'_> {
    fn compare(&mut self, subject: &str, old: &impl Serialize, new: &impl Serialize, shown: Shown) {
        let (old, new) = (leaves(&value(old)), leaves(&value(new)));
        let differences = differences(&old, &new);
        let change = |change: String, from: String, to: String| PlannedChange {
            subject: subject.to_owned(),
            change,
            from,
            to,
            connections: 0,
            effect: Effect::GoOn,
        };
        match shown {
            Shown::Values => self.changes.extend(differences.into_iter().map(|(key, from, to)| change(key, from, to))),
            Shown::Keys if !differences.is_empty() => {
                self.changes.push(change("changed".to_owned(), String::new(), String::new()));
            }
            Shown::Keys => {}
        }
    }
}

/// Characters of a value that are shown: a list of routes may have thousands.
const VALUE_CHARS_MAX: usize = 200;

/// Keys with what they say.
type Leaves = BTreeMap<String, String>;

fn value(of: &impl Serialize) -> Value {
    // A model has no map whose keys are no strings; were it so, nothing could be compared, and nothing is shown.
    serde_json::to_value(of).unwrap_or_default()
}

fn leaves(value: &Value) -> Leaves {
    let mut leaves = Leaves::new();
    collect(String::new(), value, &mut leaves);
    leaves
}

fn collect(path: String, value: &Value, leaves: &mut Leaves) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(path, value, leaves);
            }
        }
        Value::Null => {}
        _ => {
            let (key, text) = in_words(&path, value);
            leaves.insert(key, text);
        }
    }
}

/// A key and its value as the file has them: what the model has in milliseconds has a unit there.
fn in_words(key: &str, value: &Value) -> (String, String) {
    match (key.strip_suffix("_ms"), value.as_u64()) {
        (Some(key), Some(ms)) => (key.to_owned(), span(ms)),
        _ => (key.to_owned(), plain(value)),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key} = {}", plain(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// In the largest unit that has no remainder.
fn span(ms: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let whole = units.into_iter().find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{ms}ms"), |(unit, name)| format!("{}{name}", ms / unit))
}

fn leaves_of_service(service: &VirtualService) -> Leaves {
    let mut value = value(service);
    if let Some(fields) = value.as_object_mut() {
        // An index into the file's groups, which are compared by themselves.
        fields.remove("group");
        // What the kernel has chosen for each server is not the file's.
        if let Some(pool) =
            fields.get_mut("source").and_then(|source| source.get_mut("pool")).and_then(Value::as_object_mut)
        {
            pool.remove("towards");
        }
        // Packets of the stream plane are not forwarded, and say nothing of how.
        if service.plane == Plane::Stream {
            fields.remove("forwarding");
        }
    }
    let mut leaves = leaves(&value);
    // `ports = { list = … }` is the model's way.
    if let Some(ports) = leaves.remove("ports.list") {
        leaves.insert("ports".to_owned(), ports);
    }
    leaves
}

fn leaves_of_group(group: &ServerGroup) -> Leaves {
    let mut value = value(group);
    if let Some(fields) = value.as_object_mut() {
        for key in ["name", "servers", "origin"] {
            fields.remove(key);
        }
    }
    leaves(&value)
}

/// What is not told of a server by [`member_changes`].
fn leaves_of_server(server: &Server) -> Leaves {
    let mut value = value(server);
    if let Some(fields) = value.as_object_mut() {
        for key in ["address", "port", "weight", "admin"] {
            fields.remove(key);
        }
    }
    leaves(&value)
}

fn leaf_of(service: &VirtualService, key: &str) -> Option<String> {
    leaves_of_service(service).remove(key)
}

/// Each key that says something else, with what it said and says.
fn differences(old: &Leaves, new: &Leaves) -> Vec<(String, String, String)> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let pairs = keys.into_iter().map(|key| (key, old.get(key), new.get(key)));
    let texts = |text: Option<&String>| text.cloned().unwrap_or_default();
    let texts = |text| clipped(texts(text));
    pairs.filter(|(_, from, to)| from != to).map(|(key, from, to)| (key.clone(), texts(from), texts(to))).collect()
}

fn clipped(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(VALUE_CHARS_MAX) {
        text.truncate(at);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"
[[service]]
name = "web"
vip = "192.0.2.1"
ports = [80]
idle_timeout = "10m"
health = { check = "tcp", interval = "5s" }
[[service.server]]
name = "one"
address = "192.0.2.11"
[[service.server]]
name = "two"
address = "192.0.2.12"

[[service]]
name = "mail"
vip = "192.0.2.1"
ports = [8025]
[[service.server]]
name = "three"
address = "192.0.2.13"
"#;

    fn model(text: &str) -> Model {
        towpath_config::check("test.toml", text).model.unwrap_or_else(|| panic!("no model of\n{text}"))
    }

    fn told(edits: &[(&str, &str)]) -> Vec<String> {
        let text = edits.iter().fold(BASE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "the edit {from:?} finds its place");
            text.replacen(from, to, 1)
        });
        let open = |service: &str, server: Option<&str>| match (service, server) {
            ("web", None) => 7,
            ("web", Some("one")) => 3,
            ("mail", None) => 2,
            _ => 0,
        };
        let changes = planned_changes(&model(BASE), &model(&text), open);
        let told = changes.into_iter().map(|change| {
            let PlannedChange { subject, change, from, to, connections, effect } = change;
            format!("{subject}: {change} {from} -> {to} ({connections} {})", effect.words())
        });
        told.collect()
    }

    #[test]
    fn the_same_file_changes_nothing() {
        assert_eq!(told(&[]), Vec::<String>::new());
    }

    #[test]
    fn keys_are_told_in_the_words_of_the_file_with_what_is_open() {
        assert_eq!(
            told(&[("idle_timeout = \"10m\"", "idle_timeout = \"90s\""), ("[80]", "[80, 81]")]),
            ["service web: idle_timeout 10m -> 90s (7 go on)", "service web: ports 80 -> 80, 81 (7 go on)"]
        );
        // What is derived from it is told, too.
        let slower = told(&[("interval = \"5s\"", "interval = \"2s\"")]);
        assert!(slower.iter().any(|line| line.ends_with("interval 5s -> 2s (7 go on)")), "{slower:?}");
        assert_eq!(
            told(&[("\n[[service]]", "\n[limits]\nconnections = 500\n\n[[service]]")]),
            ["limits: connections  -> 500 (0 go on)"]
        );
    }

    #[test]
    fn servers_and_services_that_come_and_go_are_told_with_their_connections() {
        assert_eq!(
            told(&[("name = \"one\"\naddress = \"192.0.2.11\"", "name = \"four\"\naddress = \"192.0.2.14\"")]),
            ["server four of service web: added  ->  (0 go on)", "server one of service web: removed  ->  (3 go on)"]
        );
        assert_eq!(
            told(&[("address = \"192.0.2.11\"", "address = \"192.0.2.11\"\nadmin = \"halt\"")]),
            ["server one of service web: admin ready -> halt (3 ended)"]
        );
        assert_eq!(
            told(&[("name = \"mail\"", "name = \"post\"")]),
            [
                "service mail: removed  ->  (2 may finish within drain_timeout)",
                "service post: added  -> 192.0.2.1 tcp 8025 (0 go on)"
            ]
        );
    }

    #[test]
    fn where_metrics_are_collected_is_told() {
        let told = |from: &str, to: &str| {
            let changes = planned_changes(&model(from), &model(to), |_, _| 0);
            let told = changes.iter().map(|c| format!("{} {}: {} -> {}", c.subject, c.change, c.from, c.to));
            told.collect::<Vec<String>>()
        };
        let with = |lines: &str| format!("[metrics]\n{lines}\n{BASE}");
        let (one, other) = ("listen = \"127.0.0.1:9464\"", "listen = \"127.0.0.1:9465\"");
        assert_eq!(told(&with(one), &with(other)), ["metrics listen: 127.0.0.1:9464 -> 127.0.0.1:9465"]);
        let from = format!("{one}\nfrom = [\"192.0.2.0/24\"]");
        assert_eq!(told(&with(one), &with(&from)).len(), 1);
        assert!(told(&with(&from), &with(&from)).is_empty());
    }

    #[test]
    fn what_may_be_secret_is_not_told() {
        let old = model(BASE);
        let mut new = old.clone();
        new.control.socket = Some("/run/secret.sock".into());
        let changes = planned_changes(&old, &new, |_, _| 0);
        assert_eq!(changes.len(), 1);
        assert_eq!((changes[0].subject.as_str(), changes[0].change.as_str()), ("control", "changed"));
        assert!(!format!("{changes:?}").contains("secret.sock"));
    }

    #[test]
    fn events_tell_services_that_come_go_and_are_reached_otherwise() {
        let new = BASE.replace("name = \"mail\"", "name = \"post\"").replace("[80]", "[80, 81]");
        let changes = service_changes(&model(BASE), &model(&new));
        let told: Vec<String> = changes.into_iter().map(|c| format!("{}: {}", c.service, c.change)).collect();
        assert_eq!(
            told,
            [
                "mail: removed",
                "web: from 192.0.2.1 tcp 80 (stream plane) to 192.0.2.1 tcp 80, 81 (stream plane)",
                "post: added"
            ]
        );
    }
}
