//! The parts of the model that are about TLS.

use std::path::PathBuf;

use crate::decode::{Section, Value, defaults, defaults_of};
use crate::draft::{Draft, Service};
use crate::model;
use crate::rules::tls::pin;
use crate::schema::TLS;

pub(super) fn pool(root: &Section) -> Option<model::TlsPool> {
    let otherwise = defaults("tls");
    let section = root.table("tls").unwrap_or(&otherwise);
    let threads = match (section.list("threads"), section.number("threads")) {
        (Some(cpus), _) => model::HandshakeThreads::Cpus(
            cpus.value.iter().filter_map(|cpu| cpu.integer()).filter_map(|cpu| usize::try_from(cpu).ok()).collect(),
        ),
        (None, Some(count)) => model::HandshakeThreads::Count(count.value),
        (None, None) => model::HandshakeThreads::Auto,
    };
    Some(model::TlsPool {
        provider: match section.word("provider")?.value {
            "ring" => model::TlsProvider::Ring,
            _ => model::TlsProvider::AwsLcRs,
        },
        threads,
        queue_deadline_ms: section.duration("queue_deadline")?.value,
        post_quantum: section.bool("post_quantum")?.value,
        ticket_lifetime_ms: section.duration("ticket_lifetime")?.value,
        ticket_key_file: path(section, "ticket_key_file"),
    })
}

pub(super) fn service(service: &Service<'_>, draft: &Draft<'_>) -> Option<model::ServiceTls> {
    let otherwise = defaults_of(&TLS, "tls");
    let section = service.section.table("tls").unwrap_or(&otherwise);
    let handshake_timeout_ms = section.duration("handshake_timeout")?.value;
    let re_encrypt = match service.tls_mode.value {
        "terminate" => false,
        "re-encrypt" => true,
        _ => {
            let route = |route: &Section| {
                let group = draft.group(route.text("group")?.value)?;
                let names = texts(route, "names").iter().map(|name| name.to_ascii_lowercase()).collect();
                Some(model::TlsRoute { names, group })
            };
            let routes = section.tables("route").iter().map(route).collect::<Option<_>>()?;
            return Some(model::ServiceTls::PassThrough(model::PassThrough { routes, handshake_timeout_ms }));
        }
    };
    let ciphers = match section.word("ciphers")?.value {
        "modern" => model::CipherPolicy::Modern,
        _ => model::CipherPolicy::Intermediate,
    };
    let min_version = match section.word("min_version").map(|version| version.value) {
        Some("1.3") => model::TlsVersion::V1_3,
        None if ciphers == model::CipherPolicy::Modern => model::TlsVersion::V1_3,
        _ => model::TlsVersion::V1_2,
    };
    let resumption = match section.word("resumption")?.value {
        "cache" => model::Resumption::Cache,
        "off" => model::Resumption::Off,
        _ => model::Resumption::Tickets,
    };
    let authorities =
        || Some(model::ClientAuthorities { ca: path(section, "client_ca")?, crl: path(section, "client_crl") });
    let client_certificate = match section.word("client_certificate")?.value {
        "request" => model::ClientCertificate::Request(authorities()?),
        "require" => model::ClientCertificate::Require(authorities()?),
        _ => model::ClientCertificate::None,
    };
    let verify = match section.word("verify_server")?.value {
        "none" => model::VerifyServer::None,
        "pinned" => {
            model::VerifyServer::Pinned(texts(section, "server_pin").into_iter().map(pin).collect::<Option<_>>()?)
        }
        _ => model::VerifyServer::Ca(path(section, "server_ca")?),
    };
    Some(model::ServiceTls::Ended(Box::new(model::EndedTls {
        certificates: section.tables("certificate").iter().map(certificate).collect::<Option<_>>()?,
        strict_sni: section.bool("strict_sni")?.value,
        min_version,
        ciphers,
        alpn: texts(section, "alpn").into_iter().map(str::to_owned).collect(),
        resumption,
        handshake_timeout_ms,
        client_certificate,
        re_encrypt,
        servers: model::ServerTls {
            verify,
            name: section.text("server_name").map(|name| name.value.to_ascii_lowercase()),
            identity: match section.table("identity") {
                Some(identity) => Some(certificate(identity)?),
                None => None,
            },
        },
    })))
}

fn certificate(section: &Section) -> Option<model::CertificateFiles> {
    Some(model::CertificateFiles {
        file: path(section, "file")?,
        key: path(section, "key"),
        chain: path(section, "chain"),
        password_file: path(section, "password_file"),
        staple: section.table.key("staple").and_then(|_| path(section, "staple")),
    })
}

fn path(section: &Section, key: &str) -> Option<PathBuf> {
    section.text(key).map(|path| PathBuf::from(path.value))
}

/// The texts of a list.
fn texts<'s>(section: &'s Section, key: &str) -> Vec<&'s str> {
    let written = section.list(key).map_or(&[][..], |list| list.value);
    let text = |value: &'s Value| if let Value::Text(text) = value { Some(text.as_str()) } else { None };
    written.iter().filter_map(|item| text(&item.value)).collect()
}
