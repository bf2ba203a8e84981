//! Orders about servers, and how those are.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::time::{Instant, sleep};
use towpath_core::Generation;
use towpath_core::admin::Said;

use super::answer::{Answer, json, problem};
use super::route::{Asked, read_body};
use crate::admin::{Chosen, OrderBody, OrderError, order_of, unix_ms};
use crate::house::House;

/// An answer waits so long for the workers.
pub(super) const ADOPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks whether they have taken over what was said.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What an order does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Drain,
    Halt,
    Ready,
    Weight,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Verb::Drain => "drain",
            Verb::Halt => "halt",
            Verb::Ready => "ready",
            Verb::Weight => "weight",
        }
    }
}

/// The servers that are chosen.
pub(super) fn show(house: &House, chosen: &Chosen) -> Answer {
    match house.members(chosen) {
        Ok(members) => json(StatusCode::OK, &members),
        Err(error) => refuse(&error),
    }
}

/// Takes an order, and answers when it is in force everywhere and written down.
pub(super) async fn change(request: Request<Incoming>, verb: Verb, chosen: &Chosen, asked: &Asked<'_>) -> Answer {
    let Asked { house, who, deadline, .. } = asked;
    let body: OrderBody = match read_body(request).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let order = match order_of(verb.word(), &body) {
        Ok(order) => order,
        Err(error) => return refuse(&error),
    };
    let said = Said { unix_ms: unix_ms(), by: who.to_string(), reason: body.reason };
    let taken = match house.order(chosen, order, said, body.dry_run) {
        Ok(taken) => taken,
        Err(error) => return refuse(&error),
    };
    let mut ordered = taken.ordered;
    if !ordered.dry_run {
        deadline.put_off(2 * ADOPT_TIMEOUT + Duration::from_secs(1));
        ordered.warnings.extend(house.keeper.until_saved(taken.version).await);
        ordered.warnings.extend(until_adopted(house, Generation(ordered.generation)).await);
    }
    json(StatusCode::OK, &ordered)
}

/// Waits until every worker follows this generation; says so if one does not.
pub(super) async fn until_adopted(house: &House, generation: Generation) -> Option<String> {
    let until = Instant::now() + ADOPT_TIMEOUT;
    while !house.shared.all_adopted(generation) {
        if Instant::now() >= until {
            return Some(format!("not every worker follows generation {generation} yet"));
        }
        sleep(LOOK_EVERY).await;
    }
    None
}

pub(super) fn refuse(error: &OrderError) -> Answer {
    let (status, code) = match error {
        OrderError::Bad(_) => (StatusCode::BAD_REQUEST, "bad_order"),
        OrderError::Compile(_) => (StatusCode::INTERNAL_SERVER_ERROR, "not_compiled"),
        OrderError::NoSuchServer { .. } => (StatusCode::NOT_FOUND, "no_such_server"),
        OrderError::NoSuchService { .. } => (StatusCode::NOT_FOUND, "no_such_service"),
        OrderError::Stopping => (StatusCode::CONFLICT, "stopping"),
        OrderError::Upgrading => (StatusCode::CONFLICT, "busy"),
    };
    problem(status, code, error.to_string())
}
