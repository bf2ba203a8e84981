//! `[metrics]`.

use std::net::SocketAddr;

use crate::decode::Value;
use crate::diagnostic::Report;
use crate::draft::{Draft, DraftPorts};
use crate::model::Protocol;

/// Whether the kernel lets only one of these listen: on every address is on that of the other, too, and on `[::]` is on those of IPv4 as well.
fn meets(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |one: SocketAddr, other: SocketAddr| {
        one.ip().is_unspecified() && (one.is_ipv6() || other.ip().to_canonical().is_ipv4())
    };
    let is_same = one.ip().to_canonical() == other.ip().to_canonical();
    one.port() == other.port() && (is_same || covers(one, other) || covers(other, one))
}

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let Some(metrics) = draft.root.table("metrics") else { return };
    let Some(listen) = metrics.entry("listen") else {
        if let Some(from) = metrics.written("from") {
            report.error("no-effect", from, "`metrics.from` has no effect without a listener").hint(
                "add `listen = \"192.0.2.10:9464\"`, or remove it: who may ask at the control socket is up to its file",
            );
        }
        return;
    };
    let Value::Socket(socket) = listen.value else { return };
    if socket.port() == 0 {
        report
            .error("out-of-range", &listen.at, "`metrics.listen` needs a port that whoever collects metrics can know")
            .hint("Prometheus has 9100 and up for exporters, write for example 9464");
    }
    if let Some(control) = draft.root.table("control").and_then(|control| control.entry("listen"))
        && let Value::Socket(page) = control.value
        && meets(socket, page)
    {
        report
            .error(
                "duplicate-socket",
                &listen.at,
                format!("`metrics.listen` and `control.listen` both listen on {page}"),
            )
            .label(&control.at, "the other one")
            .hint("give one of them another port");
    }
    for service in &draft.services {
        let (Some(vip), Some(ports)) = (&service.vip, &service.ports) else { continue };
        let serves = match ports {
            DraftPorts::All(_) => true,
            DraftPorts::Set(ports) => ports.value.place(socket.port()).is_some(),
        };
        let meets = vip.value == socket.ip() || socket.ip().is_unspecified();
        if meets && serves && service.is(Protocol::Tcp) {
            report
                .error(
                    "duplicate-socket",
                    &listen.at,
                    format!(
                        "service {} listens on {}, too",
                        service.title(),
                        SocketAddr::new(vip.value, socket.port())
                    ),
                )
                .label(&vip.span, "its address")
                .hint("name another port, or an address that no service has");
        }
    }
}
