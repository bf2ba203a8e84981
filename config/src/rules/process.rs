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
    if let (Some(state), Some(socket)) = (control.text("state_file"), control.text("socket"))
        && state.written
        && state.value != "none"
    {
        if socket.value == "none" {
            report
                .error("no-effect", &state.span, "`control.state_file` has no effect without a control socket")
                .hint("nothing can be said at run time then; remove it, or set `control.socket`");
        } else if state.value == socket.value {
            report
                .error("duplicate-path", &state.span, "`control.state_file` is the control socket")
                .hint("name another file, or remove the key");
        }
    }
    let (certificate, private_key) = (control.written("certificate"), control.written("private_key"));
    for (one, other, missing) in [(certificate, private_key, "private_key"), (private_key, certificate, "certificate")]
    {
        if let (Some(one), None) = (one, other) {
            report.error("missing-key", one, format!("`control.{missing}` is missing")).hint("name both, or neither");
        }
    }
}
