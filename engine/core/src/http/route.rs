//! What becomes of a request: refused, answered here, or sent to which servers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use towpath_config::model::{FilterAction, Http, MaintenanceWhen, Persistence, RouteTo};

use super::condition::{BadPath, Looked};
use super::cookie::{HttpSecret, ServerCookies};
use super::filter;
use super::head::{BadRequest, RequestHead};
use crate::ids::ServiceId;
use crate::snapshot::Target;

/// What HTTP mode of all services is given beside the model: secrets and pages, read from files or made at the start.
#[derive(Clone, Debug)]
pub struct HttpMaterial {
    secret: HttpSecret,
    services: HashMap<String, ServiceMaterial>,
}

/// What one service is given.
#[derive(Clone, Debug, Default)]
pub struct ServiceMaterial {
    /// From `cookie_secret_file`; `None` = that of the process.
    pub secret: Option<HttpSecret>,
    /// The page of `maintenance.file`, at most 64 KiB.
    pub page: Option<Arc<[u8]>>,
}

impl HttpMaterial {
    /// Nothing but a secret of the process, that no service shares with another process.
    pub fn new(secret: HttpSecret) -> HttpMaterial {
        HttpMaterial { secret, services: HashMap::new() }
    }

    /// Gives this to the service of this name.
    pub fn insert(&mut self, service: &str, material: ServiceMaterial) {
        self.services.insert(service.to_owned(), material);
    }

    /// The secret of the process.
    pub fn secret(&self) -> HttpSecret {
        self.secret
    }

    /// What the service of this name has; where nothing was given, the secret of the process.
    pub(crate) fn of(&self, service: &str) -> (HttpSecret, Option<Arc<[u8]>>) {
        let own = self.services.get(service);
        let secret = own.and_then(|own| own.secret).unwrap_or(self.secret);
        (secret, own.and_then(|own| own.page.clone()))
    }
}

/// HTTP mode of one service, compiled.
#[derive(Clone, Debug)]
pub struct HttpRules {
    http: Http,
    /// Of the routes that lead to servers, in their order.
    places: Vec<ServiceId>,
    secret: HttpSecret,
    page: Option<Page>,
    hsts: Option<String>,
}

/// A page instead of a server's response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The page, HTML.
    pub body: Arc<[u8]>,
    /// Its status.
    pub status: u16,
    /// Value of `Retry-After`.
    pub retry_after: Option<String>,
}

impl Page {
    /// What kind the body is of.
    pub const CONTENT_TYPE: &'static str = "text/html; charset=utf-8";
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'r> {
    /// A route answers it with this status.
    Answer(u16),
    /// It cannot be judged.
    BadRequest(BadRequest),
    /// A filter refuses it with this status.
    Deny(u16),
    /// The service is in maintenance.
    Maintenance(&'r Page),
    /// It is led elsewhere.
    Redirect {
        /// 301 to 308.
        status: u16,
        /// Value of `Location`.
        location: String,
    },
    /// The servers at this place of the snapshot serve it.
    Serve(ServiceId),
}

impl HttpRules {
    /// Rules of a service whose routes to servers have these `places`, in their order.
    pub(crate) fn new(
        http: &Http,
        places: Vec<ServiceId>,
        (secret, page): (HttpSecret, Option<Arc<[u8]>>),
    ) -> HttpRules {
        let retry_after = http.maintenance.as_ref().and_then(|maintenance| maintenance.retry_after_s);
        let hsts = http.hsts.map(|hsts| {
            let subdomains = if hsts.subdomains { "; includeSubDomains" } else { "" };
            let preload = if hsts.preload { "; preload" } else { "" };
            format!("max-age={}{subdomains}{preload}", hsts.max_age_s)
        });
        HttpRules {
            page: page.map(|body| Page {
                body,
                status: http.maintenance.as_ref().map_or(503, |maintenance| maintenance.status),
                retry_after: retry_after.map(|seconds| seconds.to_string()),
            }),
            http: http.clone(),
            places,
            secret,
            hsts,
        }
    }

    /// The rules as the configuration has them.
    pub fn config(&self) -> &Http {
        &self.http
    }

    /// Value of `Strict-Transport-Security`.
    pub(super) fn hsts(&self) -> Option<&str> {
        self.hsts.as_deref()
    }

    pub(super) fn secret(&self) -> &HttpSecret {
        &self.secret
    }

    /// What the members of a place with this persistence are called in cookies.
    pub(crate) fn cookies(&self, persistence: Option<&Persistence>, targets: &[Target]) -> Option<Arc<ServerCookies>> {
        ServerCookies::new(persistence, targets, &self.secret)
    }

    /// The places of the routes, some of them maybe twice, or the service's own.
    pub(crate) fn places(&self) -> impl Iterator<Item = ServiceId> {
        self.places.iter().copied()
    }

    /// The page for a request that no server can take.
    pub fn page_without_server(&self) -> Option<&Page> {
        self.page.as_ref()
    }

    /// What becomes of a request from `client`; `own` is the service's own place.
    pub fn decide(&self, head: &RequestHead, client: IpAddr, own: ServiceId) -> Verdict<'_> {
        let mut looked = Looked::at(head, client);
        self.judge(&mut looked, own).unwrap_or(Verdict::BadRequest(BadRequest::PathEscape))
    }

    fn judge(&self, looked: &mut Looked<'_>, own: ServiceId) -> Result<Verdict<'_>, BadPath> {
        let head = looked.head();
        for rule in &self.http.filters {
            let fits = rule.parameter.as_ref().is_none_or(|parameter| filter::fits(parameter, head.query()));
            match rule.action {
                FilterAction::Allow if fits && looked.fits(&rule.when)? => break,
                FilterAction::Deny(status) if fits && looked.may_fit(&rule.when)? => {
                    return Ok(Verdict::Deny(status));
                }
                FilterAction::Allow | FilterAction::Deny(_) => {}
            }
        }
        if self.http.redirect_to_https {
            return Ok(self.to_https(head));
        }
        let in_maintenance =
            self.http.maintenance.as_ref().is_some_and(|maintenance| maintenance.when == MaintenanceWhen::Always);
        if let Some(page) = self.page.as_ref().filter(|_| in_maintenance) {
            return Ok(Verdict::Maintenance(page));
        }
        let mut places = self.places.iter();
        for route in &self.http.routes {
            let place = match &route.to {
                RouteTo::Group(_) => places.next(),
                RouteTo::Redirect { .. } | RouteTo::Status(_) => None,
            };
            if !looked.fits(&route.when)? {
                continue;
            }
            return Ok(match &route.to {
                RouteTo::Group(_) => Verdict::Serve(*place.unwrap_or(&own)),
                // A place without a name is none.
                RouteTo::Redirect { url, .. } if url.contains("{host}") && !has_host(head) => {
                    Verdict::BadRequest(BadRequest::HostMissing)
                }
                RouteTo::Redirect { url, status } => {
                    Verdict::Redirect { status: *status, location: location(url, head) }
                }
                RouteTo::Status(status) => Verdict::Answer(*status),
            });
        }
        Ok(Verdict::Serve(own))
    }

    /// What browsers ask for with GET they may keep in mind; anything else is sent again as it was.
    fn to_https(&self, head: &RequestHead) -> Verdict<'_> {
        let Some(name) = head.host_name().filter(|name| !name.is_empty()) else {
            return Verdict::BadRequest(BadRequest::HostMissing);
        };
        let status = if matches!(head.method(), "GET" | "HEAD") { 301 } else { 308 };
        let port = match self.http.https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        Verdict::Redirect { status, location: format!("https://{name}{port}{}", uri(head)) }
    }
}

fn has_host(head: &RequestHead) -> bool {
    head.host_name().is_some_and(|name| !name.is_empty())
}

/// Where `url` leads for this request.
fn location(url: &str, head: &RequestHead) -> String {
    url.replace("{host}", head.host_name().unwrap_or_default()).replace("{uri}", uri(head))
}

/// `*` is no part of a URI.
fn uri(head: &RequestHead) -> &str {
    match head.target() {
        "*" => "/",
        target => target,
    }
}

#[cfg(test)]
mod tests;
