//! `[limits]`, `[control]`, `[log]`.

use crate::diagnostic::Report;
use crate::draft::Draft;

/// Longest UDP payload (65,507 bytes over IPv4) must fit one buffer.
const DATAGRAM_MAX: i64 = 65_507;
/// `sockaddr_un.sun_path` with its closing zero.
const SOCKET_PATH_MAX: usize = 107;

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    buffers(draft, report);
    control(draft, report);
    if let Some(log) = draft.root.table("log")
        && let Some(to) = log.word("to")
        && to.value == "syslog"
        && log.entry("syslog").is_none()
    {
        report
            .error("missing-key", &to.span, "`log.to` is \"syslog\", but no syslog server is named")
            .hint("add `syslog = \"192.0.2.5:514\"`");
    }
}

fn buffers(draft: &Draft<'_>, report: &mut Report) {
    let Some(limits) = draft.root.table("limits") else { return };
    if let Some(buffers) = limits.integer("buffers")
        && !u64::try_from(buffers.value).is_ok_and(u64::is_power_of_two)
    {
        let below = 1 << buffers.value.ilog2();
        report
            .error(
                "out-of-range",
                &buffers.span,
                format!("`limits.buffers` is {}, which is no power of two", buffers.value),
            )
            .hint(format!("the kernel's buffer rings need one: {below} or {}", below * 2));
    }
    let udp = draft.services.iter().find(|service| service.is(crate::model::Protocol::Udp));
    if let Some(bytes) = limits.integer("buffer_bytes")
        && bytes.value < DATAGRAM_MAX
        && let Some(udp) = udp.and_then(|service| service.protocol.as_ref())
    {
        report
            .warning("small-buffers", &bytes.span, "datagrams that are longer than a buffer are dropped")
            .label(&udp.span, "a UDP service")
            .hint("keep the default of 65536, or make sure that no datagram is longer");
    }
}

fn control(draft: &Draft<'_>, report: &mut Report) {
    let Some(control) = draft.root.table("control") else { return };
    if let Some(socket) = control.text("socket")
        && socket.value.len() > SOCKET_PATH_MAX
    {
        report
            .error("too-long", &socket.span, format!("`control.socket` has {} bytes", socket.value.len()))
            .hint(format!("the kernel takes socket paths of at most {SOCKET_PATH_MAX} bytes"));
    }
    let (certificate, private_key) = (control.written("certificate"), control.written("private_key"));
    for (one, other, missing) in [(certificate, private_key, "private_key"), (private_key, certificate, "certificate")]
    {
        if let (Some(one), None) = (one, other) {
            report.error("missing-key", one, format!("`control.{missing}` is missing")).hint("name both, or neither");
        }
    }
}
