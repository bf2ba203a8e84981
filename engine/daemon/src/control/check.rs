//! `POST …/check`: the checks of servers, run now.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::Deserialize;
use tokio::task::JoinSet;

use super::answer::{Answer, json, problem};
use super::route::{Asked, read_body};
use super::server::refuse;
use crate::admin::Chosen;
use crate::server_check::{self, Checked};

/// Servers that one request may have checked: all at once, and each is a handful of connections.
const SERVERS_MAX: usize = 128;
/// All of them have to be over by then: those that find no place wait for others.
const LIMIT: Duration = Duration::from_secs(600);

/// It takes no keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckBody {}

/// Answers when all of them have ended.
pub(super) async fn check(request: Request<Incoming>, chosen: &Chosen, asked: &Asked<'_>) -> Answer {
    let Asked { house, deadline, .. } = asked;
    if let Err(answer) = read_body::<CheckBody>(request).await {
        return answer;
    }
    let members = match house.members(chosen) {
        Ok(members) => members.members,
        Err(error) => return refuse(&error),
    };
    if members.len() > SERVERS_MAX {
        let message =
            format!("{} servers at once, at most {SERVERS_MAX} can be checked; name a service", members.len());
        return problem(StatusCode::BAD_REQUEST, "too_many", message);
    }
    let errands: Vec<_> = members.iter().filter_map(|member| server_check::errand(house, member)).collect();
    deadline.put_off(LIMIT);
    let mut running = JoinSet::new();
    for (place, errand) in errands.into_iter().enumerate() {
        running.spawn(async move { (place, errand.run().await) });
    }
    let mut servers = Vec::with_capacity(members.len());
    while let Some(checked) = running.join_next().await {
        servers.extend(checked);
    }
    servers.sort_unstable_by_key(|&(place, _)| place);
    json(StatusCode::OK, &Checked { servers: servers.into_iter().map(|(_, server)| server).collect() })
}
