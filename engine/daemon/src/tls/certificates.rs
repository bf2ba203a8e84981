//! How long certificates, revocation lists and OCSP responses are good, and who is told in time.

use std::collections::HashMap;
use std::path::PathBuf;

use towpath_tls::{Dates, Identity, Validity};

use crate::events::{Event, EventKind, Tone};
use crate::status::CertificateStatus;
use crate::tls::{DatedFile, DatedKind};

const DAY_S: u64 = 86_400;
/// Lists and OCSP responses are told when this part of their time is left: they are renewed in good time, or something is wrong.
pub(crate) const LAST_PART: u64 = 4;

const CERTIFICATE_REMEDY: &str = "put a new one into the files of tls.certificate and reload";
const OWN_REMEDY: &str = "put a new one into the file of control.certificate and reload";

/// How near the end of a certificate is, in the steps at which somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// More than 30 days are left, or more than the last part.
    Calm,
    /// In the last part of its time.
    Soon,
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

    /// The same of what lives for days.
    fn of_file(dates: &Dates, validity: Validity) -> Stage {
        match validity {
            Validity::Expired { .. } => Stage::Expired,
            Validity::NotYet { .. } => Stage::NotYet,
            Validity::Valid { for_s } if for_s < dates.length_s() / LAST_PART => Stage::Soon,
            Validity::Valid { .. } => Stage::Calm,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Stage::Calm => "valid",
            Stage::Soon => "ends soon",
            Stage::Month => "ends within 30 days",
            Stage::Week => "ends within 7 days",
            Stage::Day => "ends within a day",
            Stage::NotYet => "not valid yet",
            Stage::Expired => "expired",
        }
    }
}

/// Remembers what was told about each certificate and file.
#[derive(Debug, Default)]
pub(crate) struct ExpiryWatch {
    /// By service, `None` = `control.listen`; calm ones are left out.
    told: HashMap<(Option<String>, Ending), Stage>,
}

/// What ends, of one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Ending {
    /// The certificate at this place.
    Certificate(usize),
    File(DatedKind, PathBuf),
}

impl ExpiryWatch {
    /// What is to be told at `now_s` (Unix seconds) about the certificates and files of all services, each with its name, and of `control.listen`, which
    /// is none.
    pub(crate) fn turn<'c>(
        &mut self,
        certificates: impl Iterator<Item = (Option<&'c str>, usize, &'c Identity)>,
        files: impl Iterator<Item = (Option<&'c str>, &'c DatedFile)>,
        now_s: i64,
    ) -> Vec<(Tone, Event)> {
        let mut events = Vec::new();
        let mut before = std::mem::take(&mut self.told);
        let mut note = |service: Option<&str>, ending, stage: Stage, subject: String, reason: String| {
            let key = (service.map(str::to_owned), ending);
            // One file may be that of two certificates.
            if self.told.contains_key(&key) {
                return;
            }
            let was = before.remove(&key).unwrap_or(Stage::Calm);
            if stage != was {
                let tone = if stage == Stage::Calm { Tone::Info } else { Tone::Warn };
                let event = Event::now(EventKind::Certificate, was.label(), stage.label(), reason);
                events.push((tone, event.services(key.0.iter().cloned().collect()).subject(subject)));
            }
            if stage != Stage::Calm {
                self.told.insert(key, stage);
            }
        };
        for (service, place, identity) in certificates {
            let validity = identity.validity(now_s);
            let stage = Stage::of(validity);
            let (of, remedy) = match service {
                Some(_) => ("", CERTIFICATE_REMEDY),
                None => (" of control.listen", OWN_REMEDY),
            };
            let subject = format!("certificate{of} for {}", whom(identity));
            note(service, Ending::Certificate(place), stage, subject, reason(validity, stage, remedy));
        }
        for (service, DatedFile { kind, path, dates }) in files {
            let validity = dates.validity(now_s);
            let stage = Stage::of_file(dates, validity);
            let subject = format!("{} {}", kind.noun(), path.display());
            let reason = reason(validity, stage, kind.remedy());
            note(service, Ending::File(*kind, path.clone()), stage, subject, reason);
        }
        events
    }
}

/// How near the end of a certificate is, in a few words.
pub(crate) fn certificate_level(identity: &Identity, now_s: i64) -> &'static str {
    Stage::of(identity.validity(now_s)).label()
}

/// The same of a file that lives for days.
pub(crate) fn file_level(dates: &Dates, now_s: i64) -> &'static str {
    Stage::of_file(dates, dates.validity(now_s)).label()
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

fn reason(validity: Validity, stage: Stage, remedy: &str) -> String {
    match validity {
        Validity::Expired { since_s } => format!("for {}; {remedy}", time(since_s)),
        Validity::NotYet { in_s } => {
            format!("it begins in {}; until then use the one before, or set the clock", time(in_s))
        }
        Validity::Valid { for_s } if stage == Stage::Calm => format!("{} left", time(for_s)),
        Validity::Valid { for_s } => format!("{} left; {remedy}", time(for_s)),
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
