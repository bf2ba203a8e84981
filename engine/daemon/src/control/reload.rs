//! Reloads by order, and what they would change.

use std::path::Path;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use towpath_config::FILE_BYTES_MAX;
use towpath_config::model::Model;

use super::answer::{Answer, Problem, json, problem};
use super::route::{Asked, read_body, read_body_of};
use crate::config_file::{Accepted, Purpose, RefusedReload, Style, accept, read_again};
use crate::controller::Command;
use crate::engine::ReloadError;
use crate::house::House;
use crate::reload::changes::ReloadPlan;
use crate::shared::Phase;

/// By then a reload is answered, or a plan made: files are read, the machine is asked, workers take it.
const LIMIT: Duration = Duration::from_secs(60);
/// Characters of JSON for one of text: a control character takes six.
const ESCAPED: usize = 6;

/// What a reload is asked for with.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReloadBody {
    /// Only tell what it would change.
    dry_run: bool,
}

/// A file that the daemon does not have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanBody {
    /// As it is shown.
    name: String,
    /// What it says.
    text: String,
}

/// A refusal with each of its reasons.
#[derive(Debug, Serialize)]
struct RefusedBody {
    error: Problem,
    reasons: Vec<String>,
}

/// `POST /v1/reload`: takes the file that the daemon was started with, as it is now.
pub(super) async fn reload(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let Asked { house, who, deadline, .. } = asked;
    let body: ReloadBody = match read_body(request).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    deadline.put_off(LIMIT);
    if body.dry_run {
        return plan(asked).await;
    }
    if house.upgrades.is_under_way() {
        return refuse(&RefusedReload::Engine(ReloadError::Upgrading));
    }
    if house.shared.phase() != Phase::Running {
        return refuse(&RefusedReload::Engine(ReloadError::Stopping));
    }
    let Accepted { model, warnings } = match read(house, Purpose::Reload).await {
        Ok(accepted) => accepted,
        Err(refused) => {
            tracing::warn!("reload by {who} refused: {refused}");
            house.tell_refused(&who.to_string(), refused.reasons().len());
            return refuse(&refused);
        }
    };
    let by = who.to_string();
    let (reply, answer) = oneshot::channel();
    match ask(house, Command::Reload { model, by, reply }, answer).await {
        Some(Ok(mut reloaded)) => {
            reloaded.warnings.splice(0..0, warnings);
            json(StatusCode::OK, &reloaded)
        }
        Some(Err(error)) => refuse(&RefusedReload::Engine(error)),
        None => refuse(&RefusedReload::Engine(ReloadError::Stopping)),
    }
}

/// `GET /v1/plan`: what a reload would change now.
pub(super) async fn plan(asked: &Asked<'_>) -> Answer {
    asked.deadline.put_off(LIMIT);
    match read(asked.house, Purpose::Plan).await {
        Ok(Accepted { model, .. }) => tell(asked.house, model).await,
        Err(refused) => tell_refused(asked.house, &refused),
    }
}

/// `POST /v1/plan`: what a reload of another file would change. It may name files that only the daemon can read, so not everybody may ask.
pub(super) async fn plan_of(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let Asked { house, deadline, .. } = asked;
    let body: PlanBody = match read_body_of(request, FILE_BYTES_MAX * ESCAPED).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    deadline.put_off(LIMIT);
    let judged = spawn_blocking(move || accept(&body.name, &body.text, Purpose::Plan, Style::Plain)).await;
    match judged {
        Ok(Ok(Accepted { model, .. })) => tell(house, model).await,
        Ok(Err(rejected)) => tell_refused(house, &RefusedReload::Rejected(rejected)),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "not_judged", error.to_string()),
    }
}

async fn read(house: &House, purpose: Purpose) -> Result<Accepted, RefusedReload> {
    let path = house.config.clone();
    // A file system may take its time, and the health checks have the same thread.
    let reading = spawn_blocking(move || read_again(path.as_deref().map(Path::new), purpose)).await;
    reading.unwrap_or(Err(RefusedReload::Engine(ReloadError::Stopping)))
}

async fn tell(house: &House, model: Box<Model>) -> Answer {
    let (reply, answer) = oneshot::channel();
    match ask(house, Command::Look { model, reply }, answer).await {
        Some(plan) => json(StatusCode::OK, &plan),
        None => refuse(&RefusedReload::Engine(ReloadError::Stopping)),
    }
}

/// A file without a meaning has no changes, only reasons.
fn tell_refused(house: &House, refused: &RefusedReload) -> Answer {
    let generation = house.shared.generation().0;
    json(StatusCode::OK, &ReloadPlan { generation, changes: Vec::new(), refusals: refused.reasons() })
}

async fn ask<T>(house: &House, command: Command, answer: oneshot::Receiver<T>) -> Option<T> {
    house.commands.get()?.send(command).await.ok()?;
    answer.await.ok()
}

fn refuse(refused: &RefusedReload) -> Answer {
    let (status, code) = match refused {
        RefusedReload::Engine(ReloadError::Stopping) => (StatusCode::CONFLICT, "stopping"),
        RefusedReload::Engine(ReloadError::Closing(_) | ReloadError::Moving | ReloadError::Upgrading) => {
            (StatusCode::CONFLICT, "busy")
        }
        RefusedReload::Engine(ReloadError::NeedsRestart(_)) => (StatusCode::UNPROCESSABLE_ENTITY, "needs_restart"),
        RefusedReload::Engine(_) => (StatusCode::UNPROCESSABLE_ENTITY, "not_taken"),
        RefusedReload::NoFile => (StatusCode::UNPROCESSABLE_ENTITY, "no_file"),
        RefusedReload::Rejected(_) => (StatusCode::UNPROCESSABLE_ENTITY, "rejected"),
        RefusedReload::Unreadable { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "unreadable"),
    };
    let error = Problem { code: code.to_owned(), message: refused.to_string() };
    json(status, &RefusedBody { error, reasons: refused.reasons() })
}
