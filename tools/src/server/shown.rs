//! What people read: what an order did, how servers are, how far drains are.

use std::time::{SystemTime, UNIX_EPOCH};

use towpath_engine::admin::{
    AdminSaid, ChangedMember, DrainEndWord, DrainOverStatus, DrainStatus, MemberStatus, OrderBody, Ordered, ThenWord,
    WeightSaid,
};

use crate::paint::{Paint, Tint};
use crate::status::health_word;
use crate::table::{Cell, Table, counted, span};

/// One line for each server.
pub(crate) fn ordered(verb: &str, ordered: &Ordered, body: &OrderBody, paint: Paint) -> String {
    let mut table = Table::default();
    for member in &ordered.members {
        let ChangedMember { service, server, before, after, connections, .. } = member;
        let (from, to) = match verb {
            "weight" => (format!("weight {}", before.weight), format!("weight {}", after.weight)),
            _ => (before.admin.clone(), after.admin.clone()),
        };
        let change = if from == to { format!("{to}, as before") } else { format!("{from} → {to}") };
        let mut terms = Vec::new();
        if verb == "drain" || (verb == "halt" && *connections > 0) {
            terms.push(counted(*connections as usize, "connection") + if verb == "halt" { " ended" } else { " left" });
        }
        terms.extend(body.deadline_ms.map(|ms| format!("over after {} at most", span(ms))));
        terms.extend(body.until.map(|until| format!("over at {until}")));
        let then = body.then.unwrap_or(if body.deadline_ms.is_some() { ThenWord::Halt } else { ThenWord::Stay });
        if verb == "drain" && then == ThenWord::Halt {
            terms.push("then halted".to_owned());
        }
        table.row([Cell::word(format!("{service}/{server}")), Cell::word(change), Cell::word(terms.join(", "))]);
    }
    let text = table.render(0, paint);
    if ordered.dry_run { format!("{text}nothing was changed (--dry-run)\n") } else { text }
}

/// A table of servers, and what was said of them.
pub(crate) fn members(members: &[MemberStatus], unix_ms: u64, paint: Paint) -> String {
    let mut table = Table::new([
        Cell::word("service"),
        Cell::word("server"),
        Cell::word("address"),
        Cell::figure("weight"),
        Cell::word("admin"),
        Cell::word("health"),
        Cell::figure("open"),
        Cell::word("said"),
    ]);
    for member in members {
        let address = match member.port {
            Some(port) => std::net::SocketAddr::new(member.address, port).to_string(),
            None => member.address.to_string(),
        };
        let admin = Cell::word(&member.admin);
        let admin = if member.admin == "ready" { admin } else { admin.tinted(Tint::Yellow) };
        let said = [
            member.admin_said.as_ref().map(|said| admin_line(&member.admin, said, unix_ms)),
            member.weight_said.as_ref().map(|said| weight_line(said, unix_ms)),
        ];
        table.row([
            Cell::word(&member.service),
            Cell::word(&member.server),
            Cell::word(address),
            Cell::figure(member.weight),
            admin,
            Cell::lamp(health_word(member.health)),
            Cell::figure(member.connections),
            Cell::word(said.into_iter().flatten().collect::<Vec<_>>().join("; ")),
        ]);
    }
    table.render(0, paint)
}

/// `drain for 12 min 3 s by root (uid 0): patch day; over in 4 min 0 s or at 5 connections, then halted`
pub(crate) fn admin_line(admin: &str, said: &AdminSaid, unix_ms: u64) -> String {
    let since = span(unix_ms.saturating_sub(said.since_unix_ms));
    let configured = match said.configured.as_str() {
        same if same == admin => String::new(),
        "ready" => String::new(),
        other => format!(" (configured: {other})"),
    };
    let drain = said.drain.as_ref().map(|drain| format!("; {}", drain_words(drain))).unwrap_or_default();
    format!("{admin}{configured} for {since} by {}{}{drain}", said.by, because(&said.reason))
}

/// `weight of 100 changed 3 s ago by root (uid 0)`
pub(crate) fn weight_line(said: &WeightSaid, unix_ms: u64) -> String {
    let since = span(unix_ms.saturating_sub(said.since_unix_ms));
    format!("weight changed from {} {since} ago by {}{}", said.configured, said.by, because(&said.reason))
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

fn drain_words(drain: &DrainStatus) -> String {
    let DrainStatus { deadline_in_ms, until, then, over } = drain;
    if let Some(DrainOverStatus { why, unix_ms: _, left }) = over {
        let why = match why {
            DrainEndWord::Deadline => "its deadline had passed",
            DrainEndWord::Until => "drained",
        };
        let left = counted(*left as usize, "connection");
        return match then {
            ThenWord::Halt => format!("{why}, {left} ended"),
            ThenWord::Stay => format!("{why}, {left} left then"),
        };
    }
    let at = match until {
        0 => "when no connection is left".to_owned(),
        until => format!("at {}", counted(*until as usize, "connection")),
    };
    let by = deadline_in_ms.map(|ms| format!("in {} or ", span(ms))).unwrap_or_default();
    let then = if *then == ThenWord::Halt { ", then halted" } else { "" };
    format!("over {by}{at}{then}")
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use towpath_engine::admin::Standing;
    use towpath_engine::status::HealthStatus;

    use super::*;

    fn said(drain: Option<DrainStatus>) -> AdminSaid {
        AdminSaid {
            since_unix_ms: 1_000,
            by: "root (uid 0, process 7)".into(),
            reason: "patch day".into(),
            configured: "ready".into(),
            drain,
        }
    }

    #[test]
    fn a_line_says_who_since_when_why_and_how_far() {
        let drain = DrainStatus { deadline_in_ms: Some(240_000), until: 5, then: ThenWord::Halt, over: None };
        assert_eq!(
            admin_line("drain", &said(Some(drain.clone())), 724_000),
            "drain for 12 min 3 s by root (uid 0, process 7): patch day; over in 4 min 0 s or at 5 connections, then halted"
        );
        let forever = DrainStatus { deadline_in_ms: None, until: 0, then: ThenWord::Stay, over: None };
        assert!(admin_line("drain", &said(Some(forever)), 1_000).ends_with("; over when no connection is left"));
        let over = DrainOverStatus { why: DrainEndWord::Deadline, unix_ms: 0, left: 1 };
        let over = DrainStatus { over: Some(over), deadline_in_ms: None, ..drain };
        assert!(
            admin_line("halt", &said(Some(over)), 1_000).ends_with("; its deadline had passed, 1 connection ended")
        );
        let ready = AdminSaid { configured: "halt".into(), reason: String::new(), ..said(None) };
        assert_eq!(admin_line("ready", &ready, 2_000), "ready (configured: halt) for 1 s by root (uid 0, process 7)");
    }

    #[test]
    fn an_order_is_told_server_by_server() {
        let standing = |admin: &str, weight| Standing { admin: admin.into(), weight };
        let member = |server: &str, before, after| ChangedMember {
            service: "web".into(),
            server: server.into(),
            address: [192, 0, 2, 1].into(),
            port: None,
            before,
            after,
            connections: 12,
        };
        let drained = Ordered {
            generation: 5,
            dry_run: false,
            members: vec![
                member("FE-1", standing("ready", 100), standing("drain", 100)),
                member("FE-10", standing("drain", 100), standing("drain", 100)),
            ],
            warnings: Vec::new(),
        };
        let body = OrderBody { deadline_ms: Some(600_000), until: Some(2), ..OrderBody::default() };
        assert_eq!(
            ordered("drain", &drained, &body, Paint::Plain),
            "web/FE-1   ready → drain     12 connections left, over after 10 min 0 s at most, over at 2, then halted\n\
             web/FE-10  drain, as before  12 connections left, over after 10 min 0 s at most, over at 2, then halted\n"
        );
        let heavier = Ordered {
            dry_run: true,
            members: vec![member("FE-1", standing("ready", 100), standing("ready", 7))],
            ..drained
        };
        assert_eq!(
            ordered("weight", &heavier, &OrderBody::default(), Paint::Plain),
            "web/FE-1  weight 100 → weight 7\nnothing was changed (--dry-run)\n"
        );
    }

    #[test]
    fn servers_are_shown_with_what_was_said_of_them() {
        let member = MemberStatus {
            service: "web".into(),
            server: "FE-1".into(),
            address: [192, 0, 2, 1].into(),
            port: Some(443),
            admin: "drain".into(),
            weight: 7,
            health: HealthStatus::Up,
            takes_new: false,
            stands_by: false,
            connections: 3,
            admin_said: Some(AdminSaid { reason: String::new(), ..said(None) }),
            weight_said: Some(WeightSaid {
                since_unix_ms: 0,
                by: "root (uid 0)".into(),
                reason: "test".into(),
                configured: 100,
            }),
        };
        assert_eq!(
            members(&[member], 2_000, Paint::Plain),
            "service  server  address        weight  admin  health  open  said\n\
             web      FE-1    192.0.2.1:443       7  drain  ● up       3  drain for 1 s by root (uid 0, process 7); weight changed from 100 2 s ago \
             by root (uid 0): test\n"
        );
    }
}
