//! Exchange (requirements.md 3.4 and 3.5).

use crate::diagnostic::Report;
use crate::draft::{Draft, Persists, answers_alone};
use crate::model::Application;

/// Ports of Exchange 2010 whose protocols must come back to their server.
const MUST: [(u16, &str); 3] = [(443, "OWA, ECP and EWS"), (80, "OWA, ECP and EWS"), (135, "RPC Client Access")];

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        let Some(application) =
            service.application.as_ref().filter(|application| application.value == Application::Exchange2010)
        else {
            continue;
        };
        if !matches!(service.persistence, Persists::None) || service.http.is_some_and(answers_alone) {
            continue;
        }
        for (port, what) in MUST {
            if let Some((_, span)) = service.first_of([port]) {
                report
                    .warning("no-persistence", span, format!("{what} of Exchange 2010 need persistence"))
                    .label(&application.span, "the product")
                    .hint("add `persistence = { by = \"source-ip\" }`, or by cookie in HTTP mode");
                break;
            }
        }
    }
}
