//! Another process takes over, by order.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::Serialize;
use tokio::sync::oneshot;

use super::answer::{Answer, Problem, json, problem};
use super::route::{Asked, Door, read_body};
use crate::controller::Command;
use crate::upgrade::{UpgradeBody, UpgradeError};

/// By then an upgrade has succeeded or failed: longer than all its steps together may take.
const LIMIT: Duration = Duration::from_secs(240);

/// A refusal with each of its reasons.
#[derive(Debug, Serialize)]
struct RefusedBody {
    error: Problem,
    reasons: Vec<String>,
}

/// `POST /v1/upgrade`: starts the program that is at the path of this one, and hands over to it.
pub(super) async fn upgrade(request: Request<Incoming>, asked: &Asked<'_>, door: &Door) -> Answer {
    let Asked { house, who, deadline, .. } = asked;
    let Door::Socket { peer, path } = door else {
        let message = "an upgrade is asked for by the control socket of the machine, not by the network";
        return problem(StatusCode::FORBIDDEN, "not_here", message);
    };
    let body: UpgradeBody = match read_body(request).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    if (body.program.is_some() || body.config.is_some()) && !peer.is_owner(path) {
        let message = "another program or file than the daemon's own is for root and the user that the daemon runs as";
        return problem(StatusCode::FORBIDDEN, "forbidden", message);
    }
    deadline.put_off(LIMIT);
    let (reply, answer) = oneshot::channel();
    let by = who.to_string();
    let asked = async {
        house.commands.get()?.send(Command::Upgrade { body, by, reply }).await.ok()?;
        answer.await.ok()
    };
    match asked.await.unwrap_or(Err(UpgradeError::Stopping)) {
        Ok(upgraded) => json(StatusCode::OK, &upgraded),
        Err(error) => refuse(&error),
    }
}

fn refuse(refused: &UpgradeError) -> Answer {
    let (status, code) = match refused {
        UpgradeError::Busy | UpgradeError::Reloading => (StatusCode::CONFLICT, "busy"),
        UpgradeError::Stopping => (StatusCode::CONFLICT, "stopping"),
        UpgradeError::FirstProcess => (StatusCode::UNPROCESSABLE_ENTITY, "needs_restart"),
        UpgradeError::NoProgram => (StatusCode::UNPROCESSABLE_ENTITY, "no_program"),
        UpgradeError::NotStarted { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "not_started"),
        UpgradeError::Refused { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "not_taken"),
    };
    let error = Problem { code: code.to_owned(), message: refused.to_string() };
    json(status, &RefusedBody { error, reasons: refused.reasons() })
}
