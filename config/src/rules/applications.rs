//! What is known about products: switched on by `application`, or by ports that belong to one protocol everywhere.

mod exchange;
mod lync;
mod radius;

use crate::diagnostic::Report;
use crate::draft::{Draft, Service};
use crate::model::{Application, Protocol};

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        sip_idle(service, report);
        let Some(application) = service.application.as_ref().map(|application| application.value) else { continue };
        dsr(service, application, report);
    }
    exchange::judge(draft, report);
    lync::judge(draft, report);
    radius::judge(draft, report);
}

/// Products whose makers refuse direct server return (requirements.md F-NAT-09, 3.3).
const NO_DSR: [(Application, &str); 5] = [
    (Application::Exchange2010, "Exchange"),
    (Application::Exchange2013, "Exchange"),
    (Application::Lync2010, "Lync"),
    (Application::Lync2013, "Lync"),
    (Application::Ocs2007R2, "OCS"),
];

fn dsr(service: &Service<'_>, application: Application, report: &mut Report) {
    let Some(forwarding) = service.forwarding.as_ref().filter(|forwarding| forwarding.value == "dsr") else { return };
    if let Some((_, product)) = NO_DSR.iter().find(|(known, _)| *known == application) {
        let finding = report.error(
            "unsupported-forwarding",
            &forwarding.span,
            format!("{product} does not support direct server return"),
        );
        if let Some(application) = &service.application {
            finding.label(&application.span, "the product");
        }
        finding.hint("use `forwarding = \"full-nat\"`");
    }
}

/// SIP clients refresh at least every 20 minutes; a shorter idle timeout cuts quiet ones off (F-TO-02, trap 10).
const SIP_IDLE_MS: u64 = 20 * 60_000;

fn sip_idle(service: &Service<'_>, report: &mut Report) {
    if !service.is(Protocol::Tcp) || service.idle_timeout_ms.value >= SIP_IDLE_MS {
        return;
    }
    if let Some((port, place)) = service.first_of([5060, 5061, 5062].into_iter().chain(5065..=5076)) {
        report
            .warning(
                "short-idle",
                &service.idle_timeout_ms.span,
                "SIP connections are quiet for up to 20 minutes and will be closed before",
            )
            .label(place, format!("port {port} carries SIP"))
            .hint("use `idle_timeout = \"30m\"`");
    }
}
