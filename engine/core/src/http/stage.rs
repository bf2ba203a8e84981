//! A service in HTTP mode for the tests of what becomes of requests.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::head::{RequestHead, ResponseHead};
use super::rewrite::{AfterRequest, Scheme};
use super::write::{Edit, Edits};
use super::{HttpLimits, HttpMaterial, HttpRules, HttpSecret, ServiceMaterial, Verdict};
use crate::compile::compile;
use crate::health::HealthBoard;
use crate::ids::{Generation, ServiceId};
use crate::persistence::{Known, Pin, Seen};
use crate::registry::Registry;
use crate::snapshot::{Service, Snapshot};
use crate::snat::{SnatBook, SnatLimits};
use crate::steering::SteeringTable;

pub(super) struct Stage {
    pub(super) snapshot: Snapshot,
    registry: Registry,
}

impl Stage {
    /// The service `web` with these keys and tables, and the groups `one` (servers 1 and 2), `two` (2 and 3).
    pub(super) fn new(lines: &str) -> Stage {
        let mut text = format!("[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\nports = [80]\n{lines}\n");
        for (group, servers) in [("one", [1, 2]), ("two", [2, 3])] {
            text += &format!("[[group]]\nname = \"{group}\"\n");
            for server in servers {
                text += &format!("[[group.server]]\nname = \"s{server}\"\naddress = \"10.0.0.{server}\"\nport = 80\n");
            }
        }
        let checked = towpath_config::check("test.toml", &text);
        let told = towpath_config::render(&checked.diagnostics, "test.toml", &text, false);
        let model = checked.model.unwrap_or_else(|| panic!("{told}"));
        let mut material = HttpMaterial::new(HttpSecret::new([1; 16]));
        material.insert("web", ServiceMaterial { secret: None, page: Some(Arc::from(b"<p>soon".as_slice())) });
        let mut registry = Registry::new();
        let (board, mut book) = (HealthBoard::new(), SnatBook::new(SnatLimits::default()));
        let steering = Arc::new(SteeringTable::even(1));
        let snapshot =
            compile(&model, &mut registry, &board, &mut book, steering, &material, Generation(1)).expect("it compiles");
        Stage { snapshot, registry }
    }

    pub(super) fn place(&self, place: ServiceId) -> &Service {
        self.snapshot.service(place).expect("the place is there")
    }

    pub(super) fn service(&self) -> &Service {
        self.place(self.registry.service("web").expect("it is named so"))
    }

    pub(super) fn rules(&self) -> &HttpRules {
        &self.service().http.as_ref().expect("HTTP mode").rules
    }

    pub(super) fn decide(&self, head: &RequestHead, client: &str) -> Verdict<'_> {
        self.rules().decide(head, ip(client), self.service().id)
    }

    /// Where a GET of this target and host ends: the addresses of the servers, or the answer.
    pub(super) fn goes(&self, host: &str, target: &str) -> String {
        match self.decide(&get(target, &format!("Host: {host}\r\n")), "203.0.113.1") {
            Verdict::Answer(status) => format!("answer {status}"),
            Verdict::BadRequest(reason) => format!("bad {}", reason.label()),
            Verdict::Deny(status) => format!("deny {status}"),
            Verdict::Maintenance(_) => "maintenance".to_owned(),
            Verdict::Redirect { status, location } => format!("{status} {location}"),
            Verdict::Serve(place) => {
                let servers: Vec<_> = self.place(place).targets.iter().map(|target| target.name.as_str()).collect();
                servers.join(" ")
            }
        }
    }

    /// What the server of a request gets beside, one line each; and what its response must know.
    pub(super) fn asked(&self, head: &RequestHead, client: &str, scheme: Scheme) -> (String, AfterRequest) {
        let known = self.known(head, client);
        let (edits, after) =
            self.rules().request_edits(head, SocketAddr::new(ip(client), 40_000), scheme, known.named());
        (shown(&edits), after)
    }

    pub(super) fn known(&self, head: &RequestHead, client: &str) -> Known {
        self.service().known(&Seen { request: Some(head), ..Seen::of_address(ip(client)) })
    }

    /// What leads the client of a request with these fields back.
    pub(super) fn pin(&self, fields: &str, client: &str) -> Pin {
        self.known(&get("/", &format!("Host: a\r\n{fields}")), client).decides(|_| false, |_| true)
    }
}

/// One line for each edit.
pub(super) fn shown(edits: &Edits<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let target = edits.target.iter().map(|target| format!("target {target}"));
    let host = edits.host.iter().map(|host| format!("host {host}"));
    let fields = edits.fields.iter().map(|edit| match edit {
        Edit::Add { name, value } => format!("+{name}: {}", text(value)),
        Edit::Remove { name } => format!("-{name}"),
        Edit::Replace { name, value } => format!("={name}: {}", text(value)),
    });
    target.chain(host).chain(fields).collect::<Vec<_>>().join("\n")
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

const LIMITS: HttpLimits = HttpLimits { head_bytes_max: 32_768, body_bytes_max: 0 };

/// A request of HTTP/1.1; `fields` are whole lines.
pub(super) fn request(method: &str, target: &str, fields: &str) -> RequestHead {
    let text = format!("{method} {target} HTTP/1.1\r\n{fields}\r\n");
    RequestHead::read(text.as_bytes(), &LIMITS).expect("it is well formed").expect("it is whole").1
}

pub(super) fn get(target: &str, fields: &str) -> RequestHead {
    request("GET", target, fields)
}

pub(super) fn response(fields: &str) -> ResponseHead {
    let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    ResponseHead::read(text.as_bytes(), &LIMITS).expect("it is well formed").expect("it is whole").1
}
