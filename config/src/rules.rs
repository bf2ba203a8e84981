//! What a file may not mean: rules over the draft, one file per family.

mod applications;
mod control;
pub(crate) mod health;
mod hidden_client;
mod http;
mod layers;
mod limits;
pub(crate) mod log;
mod loops;
mod names;
mod network;
pub(crate) mod notify;
mod outbound;
mod persistence;
mod proxy_protocol;
mod servers;
mod sockets;
mod sources;
pub(crate) mod tls;

use crate::decode::At;
use crate::diagnostic::Report;
use crate::draft::Draft;

/// Runs every rule. Each tells all it finds; none depends on another.
pub(crate) fn judge(draft: &Draft<'_>, report: &mut Report) {
    control::judge(draft, report);
    log::judge(draft, report);
    notify::judge(draft, report);
    network::judge(draft, report);
    names::judge(draft, report);
    sockets::judge(draft, report);
    servers::judge(draft, report);
    loops::judge(draft, report);
    sources::judge(draft, report);
    outbound::judge(draft, report);
    layers::judge(draft, report);
    limits::judge(draft, report);
    tls::judge(draft, report);
    http::judge(draft, report);
    proxy_protocol::judge(draft, report);
    persistence::judge(draft, report);
    health::judge(draft, report);
    hidden_client::judge(draft, report);
    applications::judge(draft, report);
}

/// Whether a route's group is one of the file; tells if not.
fn known_group(draft: &Draft<'_>, group: &At<&str>, report: &mut Report) {
    if draft.group(group.value).is_some() || report.incomplete {
        return;
    }
    let known = || draft.groups.iter().filter_map(|group| group.name.as_ref()).map(|name| name.value);
    let hint = match crate::decode::nearest_name(group.value, known(), report) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => "add a `[[group]]` of that name".to_owned(),
    };
    report.error("unknown-group", &group.span, format!("no group is named \"{}\"", group.value)).hint(hint);
}
