//! `GET /v1/explain`.

#![expect(clippy::result_large_err, reason = "the answer to one request, made and moved once")]

use std::net::{IpAddr, SocketAddr};

use hyper::body::Incoming;
use hyper::{Request, StatusCode};

use super::answer::{Answer, json, problem};
use super::query::Query;
use super::route::Asked;
use super::sessions::refuse;
use crate::explain::{self, ExplainQuery};

/// What would become of a new connection.
pub(super) fn explain(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let query = match explain_query(&request) {
        Ok(query) => query,
        Err(answer) => return answer,
    };
    match asked.house.explain(&query) {
        Ok(explanation) => json(StatusCode::OK, &explanation),
        Err(error) => refuse(&error),
    }
}

fn explain_query(request: &Request<Incoming>) -> Result<ExplainQuery, Answer> {
    let keys = ["service", "client", "port", "name", "method", "host", "path", "header*"];
    let query = Query::of(request.uri(), &keys)?;
    let client: String = query.needed("client")?;
    let (client, client_port) = match (client.parse::<IpAddr>(), client.parse::<SocketAddr>()) {
        (Ok(client), _) => (client, None),
        (_, Ok(client)) => (client.ip(), Some(client.port())),
        _ => {
            let message = format!("`client` = \"{client}\" is no address; write 192.0.2.7 or 192.0.2.7:40000");
            return Err(problem(StatusCode::BAD_REQUEST, "bad_query", message));
        }
    };
    let is_request = ["method", "host", "path", "header"].iter().any(|key| query.text(key).is_some());
    let request = explain::Request {
        method: query.text("method").unwrap_or_else(|| "GET".to_owned()),
        host: query.text("host").or_else(|| query.text("name")),
        path: query.text("path").unwrap_or_else(|| "/".to_owned()),
        headers: query.all("header").collect(),
    };
    Ok(ExplainQuery {
        service: query.needed("service")?,
        client,
        client_port,
        port: query.parsed("port")?,
        name: query.text("name"),
        request: is_request.then_some(request),
    })
}
