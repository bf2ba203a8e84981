//! `GET /v1/sessions`, `POST /v1/sessions/kill`, `GET /v1/flow`.

#![expect(clippy::result_large_err, reason = "the answer to one request, made and moved once")]

use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};

use super::answer::{Answer, json, problem};
use super::query::Query;
use super::route::{Asked, read_body};
use crate::query::QueryError;
use crate::questions::ASK_TIMEOUT;
use crate::sessions::{KillBody, SessionsQuery};

/// What an answer takes beside that of the workers.
const SLACK: Duration = Duration::from_secs(2);

/// Which sessions there are.
pub(super) async fn list(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let query = match sessions_query(&request) {
        Ok(query) => query,
        Err(answer) => return answer,
    };
    asked.deadline.put_off(ASK_TIMEOUT + SLACK);
    match asked.house.sessions(&query).await {
        Ok(sessions) => json(StatusCode::OK, &sessions),
        Err(error) => refuse(&error),
    }
}

/// Ends some.
pub(super) async fn kill(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let body: KillBody = match read_body(request).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    asked.deadline.put_off(ASK_TIMEOUT + SLACK);
    match asked.house.kill(&body, &asked.who.to_string()).await {
        Ok(killed) => json(StatusCode::OK, &killed),
        Err(error) => refuse(&error),
    }
}

/// Where the session between two ends is.
pub(super) async fn flow(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let read = || {
        let query = Query::of(request.uri(), &["one", "other", "protocol"])?;
        Ok((query.needed::<SocketAddr>("one")?, query.needed::<SocketAddr>("other")?, query.parsed("protocol")?))
    };
    let (one, other, protocol) = match read() {
        Ok(read) => read,
        Err(answer) => return answer,
    };
    asked.deadline.put_off(ASK_TIMEOUT + SLACK);
    match asked.house.flow(one, other, protocol).await {
        Ok(flow) => json(StatusCode::OK, &flow),
        Err(error) => refuse(&error),
    }
}

fn sessions_query(request: &Request<Incoming>) -> Result<SessionsQuery, Answer> {
    let keys = ["id*", "service", "server", "client", "plane", "protocol", "state", "worker", "idle_ms", "limit"];
    let query = Query::of(request.uri(), &keys)?;
    Ok(SessionsQuery {
        ids: query.all("id").collect(),
        service: query.text("service"),
        server: query.text("server"),
        client: query.text("client"),
        plane: query.text("plane"),
        protocol: query.text("protocol"),
        state: query.text("state"),
        worker: query.parsed("worker")?,
        idle_ms: query.parsed("idle_ms")?,
        limit: query.parsed("limit")?,
    })
}

pub(super) fn refuse(error: &QueryError) -> Answer {
    let (status, code) = match error {
        QueryError::Bad(_) => (StatusCode::BAD_REQUEST, "bad_query"),
        QueryError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
        QueryError::NotAvailable(_) => (StatusCode::CONFLICT, "not_available"),
        QueryError::NotThere { what: "server", .. } => (StatusCode::NOT_FOUND, "no_such_server"),
        QueryError::NotThere { .. } => (StatusCode::NOT_FOUND, "no_such_service"),
    };
    problem(status, code, error.to_string())
}
