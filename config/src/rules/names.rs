//! Names that must be unique.

use std::collections::HashMap;

use crate::decode::At;
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, Members};

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    unique("services", draft.services.iter().filter_map(|service| service.name.as_ref()), report);
    unique("groups", draft.groups.iter().filter_map(|group| group.name.as_ref()), report);
    for group in &draft.groups {
        unique("servers of a group", group.servers.iter().filter_map(|server| server.name.as_ref()), report);
    }
    for service in &draft.services {
        if let Members::Own(servers) = &service.members {
            unique("servers of a service", servers.iter().filter_map(|server| server.name.as_ref()), report);
        }
    }
    unused_groups(draft, report);
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a At<&'a str>>, report: &mut Report) {
    let mut seen: HashMap<&str, &Span> = HashMap::new();
    for name in names {
        if let Some(first) = seen.get(name.value) {
            report
                .error("duplicate-name", &name.span, format!("two {what} are named \"{}\"", name.value))
                .label(first, "first here")
                .hint("rename one of them");
        } else {
            seen.insert(name.value, &name.span);
        }
    }
}

fn unused_groups(draft: &Draft<'_>, report: &mut Report) {
    if report.incomplete {
        return;
    }
    for (index, group) in draft.groups.iter().enumerate() {
        let used =
            draft.services.iter().any(|service| matches!(service.members, Members::Group(used) if used == index));
        // Routes name groups as well.
        let routed = group.name.as_ref().is_some_and(|name| {
            let tables = draft.services.iter().flat_map(|service| [service.http, service.section.table("tls")]);
            let routes = tables.flatten().flat_map(|table| table.tables("route"));
            routes.filter_map(|route| route.text("group")).any(|route| route.value == name.value)
        });
        if let (false, false, Some(name)) = (used, routed, &group.name) {
            report
                .warning("unused-group", &name.span, format!("no service uses the group \"{}\"", name.value))
                .hint(format!("write `group = \"{}\"` in a service, or remove it", name.value));
        }
    }
}
