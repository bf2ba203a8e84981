//! `GET /v1/persistence`, `POST /v1/persistence/clear`.

#![expect(clippy::result_large_err, reason = "the answer to one request, made and moved once")]

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};

use super::answer::{Answer, json};
use super::query::Query;
use super::route::{Asked, read_body};
use super::sessions::refuse;
use crate::persistence::{ClearBody, PersistenceQuery};

/// A walk over a few million entries, with others in between.
const WALK_TIMEOUT: Duration = Duration::from_secs(15);

/// What is remembered of clients.
pub(super) async fn list(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let query = match persistence_query(&request) {
        Ok(query) => query,
        Err(answer) => return answer,
    };
    asked.deadline.put_off(WALK_TIMEOUT);
    match asked.house.persistence(&query).await {
        Ok(entries) => json(StatusCode::OK, &entries),
        Err(error) => refuse(&error),
    }
}

/// Forgets some.
pub(super) async fn clear(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let body: ClearBody = match read_body(request).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    asked.deadline.put_off(WALK_TIMEOUT);
    match asked.house.clear_persistence(&body, &asked.who.to_string()).await {
        Ok(cleared) => json(StatusCode::OK, &cleared),
        Err(error) => refuse(&error),
    }
}

fn persistence_query(request: &Request<Incoming>) -> Result<PersistenceQuery, Answer> {
    let query = Query::of(request.uri(), &["service", "server", "client", "key", "limit"])?;
    Ok(PersistenceQuery {
        service: query.text("service"),
        server: query.text("server"),
        client: query.text("client"),
        key: query.text("key"),
        limit: query.parsed("limit")?,
    })
}
