//! The http suite: HTTP/1.1 balanced by one subject on one CPU. Each response sets a cookie for clients that have none, each request tells
//! the server of its client, and both are verified.

use towpath_config::model::Plane;

use super::{Accounting, Case, Course, Mode, Terms, Unit, Web};
use crate::certificate::KeyKind;
use crate::load::Work;
use crate::load::tls::{Tls, Version};
use crate::peers::ServerConnections;
use crate::web::Visitor;

/// As most clients of TLS are.
const TLS: Terms =
    Terms { key: KeyKind::P256, client: Tls { version: Version::V13, resumes: false }, reencrypts: false };

/// What is measured, each under these accountings.
pub fn cases(accountings: &[Accounting]) -> Vec<Case> {
    let case = |accounting: Accounting, (name, tls, http, course): &(&str, Option<Terms>, Web, Course)| Case {
        name: accounting.name(name),
        accounting,
        plane: Plane::Stream,
        mode: Mode::USUAL,
        tls: *tls,
        http: Some(*http),
        course: course.clone(),
    };
    let loads = loads();
    accountings.iter().flat_map(|&accounting| loads.iter().map(move |load| case(accounting, load))).collect()
}

/// The loads, by name.
fn loads() -> Vec<(&'static str, Option<Terms>, Web, Course)> {
    // Their requests are GETs, which have no body.
    let kept = |connections, answer_bytes| Course::Load {
        work: Work::KeepAlive { connections, idle: 0, request_bytes: 0, answer_bytes },
        unit: Unit::Requests,
    };
    let connect = Course::Load {
        work: Work::Connect { concurrency: 128, request_bytes: 0, answer_bytes: 128 },
        unit: Unit::Connections,
    };
    let web = |visitor, connections| Web { visitor, connections };
    let new = web(Visitor::New, ServerConnections::Default);
    let returning = web(Visitor::Returning, ServerConnections::Default);
    vec![
        ("http-keepalive-64c", None, new, kept(64, 128)),
        ("http-keepalive-returning-64c", None, returning, kept(64, 128)),
        ("http-keepalive-1024c", None, new, kept(1024, 128)),
        ("http-64KB-64c", None, new, kept(64, 64 * 1024)),
        ("http-connect", None, web(Visitor::New, ServerConnections::Own), connect),
        ("http-keepalive-64c-tls", Some(TLS), new, kept(64, 128)),
    ]
}
