//! The part of the model that is about what is written down.

use crate::decode::{Section, Value};
use crate::draft::Service;
use crate::model;
use crate::rules::log::can_be_logged;

pub(super) fn log(root: &Section) -> Option<model::Log> {
    let defaults = crate::decode::defaults("log");
    let section = root.table("log").unwrap_or(&defaults);
    Some(model::Log {
        own: own(section)?,
        format: match section.word("connections_format")?.value {
            "combined" => model::LogFormat::Combined,
            "json" => model::LogFormat::Json,
            _ => model::LogFormat::Haproxy,
        },
        query: match section.word("connections_query")?.value {
            "none" => model::LoggedQuery::None,
            "whole" => model::LoggedQuery::Whole,
            _ => model::LoggedQuery::Names,
        },
        to: match (section.word("connections_to").map(|word| word.value), section.text("connections_to")) {
            (Some("stdout"), _) => model::LogTo::Stdout,
            (Some("syslog"), _) => model::LogTo::Syslog(syslog(section)?),
            (None, Some(path)) => model::LogTo::File(path.value.into()),
            _ => model::LogTo::Stderr,
        },
    })
}

fn own(section: &Section) -> Option<model::OwnLog> {
    Some(model::OwnLog {
        level: match section.word("level")?.value {
            "error" => model::LogLevel::Error,
            "warn" => model::LogLevel::Warn,
            "debug" => model::LogLevel::Debug,
            _ => model::LogLevel::Info,
        },
        format: match section.word("format")?.value {
            "json" => model::OwnFormat::Json,
            _ => model::OwnFormat::Text,
        },
        syslog: match section.word("to")?.value {
            "syslog" => Some(syslog(section)?),
            _ => None,
        },
    })
}

fn syslog(section: &Section) -> Option<model::Syslog> {
    Some(match &section.entry("syslog")?.value {
        Value::Socket(server) => model::Syslog::Server(
            *server,
            match section.word("syslog_transport")?.value {
                "tcp" => model::SyslogTransport::Tcp,
                _ => model::SyslogTransport::Udp,
            },
        ),
        Value::Text(path) => model::Syslog::Local(path.into()),
        _ => return None,
    })
}

/// Which connections of this service get a line.
pub(super) fn of_service(service: &Service<'_>, root: &Section) -> Option<model::Logged> {
    if !can_be_logged(service) {
        return Some(model::Logged::None);
    }
    let defaults = crate::decode::defaults("log");
    let common = root.table("log").unwrap_or(&defaults).word("connections")?;
    Some(match service.section.word("log").unwrap_or(common).value {
        "all" => model::Logged::All,
        "errors" => model::Logged::Errors,
        _ => model::Logged::None,
    })
}
