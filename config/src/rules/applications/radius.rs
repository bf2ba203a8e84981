//! RADIUS.

use crate::diagnostic::Report;
use crate::draft::Draft;
use crate::model::{Application, Protocol};

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        let radius = service.application.as_ref().is_some_and(|application| application.value == Application::Radius);
        if radius
            && service.is(Protocol::Tcp)
            && let Some((port, span)) = service.first_of([1812, 1813, 1645, 1646])
        {
            report
                .warning("wrong-protocol", span, format!("RADIUS on port {port} is UDP, this service is TCP"))
                .hint("use `protocol = \"udp\"`");
        }
    }
}
