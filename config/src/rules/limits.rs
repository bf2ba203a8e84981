//! Queue and overload: what waits for a place, and where it can.

use crate::diagnostic::Report;
use crate::draft::{Draft, Service};
use crate::model::{Plane, Protocol};

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        queue(draft, service, report);
        overload(draft, service, report);
    }
}

fn queue(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let max = service.section.integer("queue").map_or(0, |max| max.value);
    if let Some(span) = service.section.written("queue_timeout").filter(|_| max == 0) {
        report
            .error("needs-queue", span, "`queue_timeout` means nothing here: nobody waits without `queue`")
            .hint("say how many may wait, as in `queue = 100`, or remove it");
    }
    let Some(span) = service.section.written("queue").filter(|_| max > 0) else { return };
    if service.is(Protocol::Udp) {
        report
            .error("needs-tcp", span, "`queue` is for TCP: datagrams do not wait here")
            .hint("remove `queue`: a client that gets no answer sends its request again");
        return;
    }
    if service.plane.value == Plane::Packet {
        report
            .error("needs-stream-plane", span, "`queue` is for the stream plane: packets do not wait here")
            .label(&service.plane.span, "the plane")
            .hint("remove `queue`: with `overload = \"silent\"` clients ask again by themselves; or use `plane = \"stream\"`");
        return;
    }
    if !has_limit(draft, service) {
        report
            .warning("no-effect", span, "`queue` has no effect: neither the service nor a server of it has a limit")
            .hint("set `max_connections` of the servers, or remove `queue`");
    }
}

fn overload(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let Some(span) = service.section.written("overload") else { return };
    if service.is(Protocol::Udp) {
        report
            .error("needs-tcp", span, "`overload` is for TCP: datagrams that find no place get no answer")
            .hint("remove `overload`");
    } else if service.plane.value == Plane::Stream {
        let hint = match service.http {
            Some(_) => "remove `overload`: requests that find no place are answered 503, with `retry_after`",
            None => "remove `overload`: connections that find no place are reset; `queue` lets them wait",
        };
        report
            .error(
                "needs-packet-plane",
                span,
                "`overload` is for packets: on the stream plane the kernel has accepted the client",
            )
            .label(&service.plane.span, "the plane")
            .hint(hint);
    } else if !has_limit(draft, service) && service.section.word("overload").is_some_and(|word| word.value == "reset") {
        report
            .warning("no-effect", span, "`overload` has no effect: neither the service nor a server of it has a limit")
            .hint("set `max_connections` of the servers, or remove `overload`");
    }
}

fn has_limit(draft: &Draft<'_>, service: &Service<'_>) -> bool {
    let limit = service.section.integer("max_connections").map_or(0, |max| max.value);
    limit > 0 || draft.all_servers(service).any(|server| server.max_connections.value > 0)
}
