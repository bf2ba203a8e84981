//! How long certificates are valid, and who is told in time.

use std::collections::HashMap;

use towpath_tls::{Identity, Validity};

use crate::events::{Event, EventKind, Tone};
use crate::status::CertificateStatus;

const DAY_S: u64 = 86_400;

/// How near the end of a certificate is, in the steps at which somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// More than 30 days are left.
    Calm,
    /// Within 30 days.
    Month,
    /// Within 7 days.
    Week,
    /// Within a day.
    Day,
    /// It has not begun.
    NotYet,
    /// It has ended.
    Expired,
}

impl Stage {
    fn of(validity: Validity) -> Stage {
        match validity {
            Validity::Expired { .. } => Stage::Expired,
            Validity::NotYet { .. } => Stage::NotYet,
            Validity::Valid { for_s } if for_s <= DAY_S => Stage::Day,
            Validity::Valid { for_s } if for_s <= 7 * DAY_S => Stage::Week,
            Validity::Valid { for_s } if for_s <= 30 * DAY_S => Stage::Month,
            Validity::Valid { .. } => Stage::Calm,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Stage::Calm => "valid",
            Stage::Month => "ends within 30 days",
            Stage::Week => "ends within 7 days",
            Stage::Day => "ends within a day",
            Stage::NotYet => "not valid yet",
            Stage::Expired => "expired",
        }
    }
}

/// Remembers what was told about each certificate.
#[derive(Debug, Default)]
pub(crate) struct ExpiryWatch {
    /// By service and place among its certificates; calm ones are left out.
    told: HashMap<(String, usize), Stage>,
}

impl ExpiryWatch {
    /// What is to be told at `now_s` (Unix seconds) about the certificates of all services, each with its name.
    pub(crate) fn turn<'c>(
        &mut self,
        certificates: impl Iterator<Item = (&'c str, usize, &'c Identity)>,
        now_s: i64,
    ) -> Vec<(Tone, Event)> {
        let mut events = Vec::new();
        let mut before = std::mem::take(&mut self.told);
        for (service, place, identity) in certificates {
            let validity = identity.validity(now_s);
            let stage = Stage::of(validity);
            let key = (service.to_owned(), place);
            let was = before.remove(&key).unwrap_or(Stage::Calm);
            if stage != was {
                let tone = if stage == Stage::Calm { Tone::Info } else { Tone::Warn };
                let event = Event::now(EventKind::Certificate, was.label(), stage.label(), reason(validity))
                    .services(vec![key.0.clone()])
                    .subject(format!("certificate for {}", whom(identity)));
                events.push((tone, event));
            }
            if stage != Stage::Calm {
                self.told.insert(key, stage);
            }
        }
        events
    }
}

/// A certificate as status shows it.
pub(crate) fn certificate_status(identity: &Identity, now_s: i64) -> CertificateStatus {
    CertificateStatus {
        names: identity.names().to_vec(),
        not_before_unix_seconds: identity.not_before_s(),
        not_after_unix_seconds: identity.not_after_s(),
        seconds_left: identity.not_after_s().saturating_sub(now_s),
    }
}

fn whom(identity: &Identity) -> String {
    match identity.names() {
        [] => "no name".to_owned(),
        names => names.join(", "),
    }
}

fn reason(validity: Validity) -> String {
    const REMEDY: &str = "put a new one into the files of tls.certificate and reload";
    match validity {
        Validity::Expired { since_s } => format!("for {}; {REMEDY}", time(since_s)),
        Validity::NotYet { in_s } => {
            format!("it begins in {}; until then use the one before, or set the clock", time(in_s))
        }
        Validity::Valid { for_s } if Stage::of(validity) == Stage::Calm => format!("{} left", time(for_s)),
        Validity::Valid { for_s } => format!("{} left; {REMEDY}", time(for_s)),
    }
}

/// `12 days`, `5 hours`, `3 minutes`.
fn time(seconds: u64) -> String {
    let (number, unit) = match seconds {
        DAY_S.. => (seconds / DAY_S, "day"),
        3600.. => (seconds / 3600, "hour"),
        _ => (seconds / 60, "minute"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}
