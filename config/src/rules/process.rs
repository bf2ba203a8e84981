//! `[limits]`, `[control]`.

use crate::diagnostic::Report;
use crate::draft::Draft;

/// `sockaddr_un.sun_path` with its closing zero.
const SOCKET_PATH_MAX: usize = 107;

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    control(draft, report);
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
