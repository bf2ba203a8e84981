//! The role of the machine: asked for, and said.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use towpath_core::Generation;
use towpath_core::admin::{ADMIN_REASON_BYTES_MAX, Said};

use super::answer::{Answer, json, problem};
use super::route::{Asked, read_body};
use super::server::{ADOPT_TIMEOUT, refuse, until_adopted};
use crate::admin::unix_ms;
use crate::role::{RoleBody, RoleText};

/// The role that holds.
pub(super) fn show(asked: &Asked<'_>) -> Answer {
    json(StatusCode::OK, &asked.house.role())
}

/// Takes a word about it, and answers when every worker follows and it is written down: who stands by is silent from then on.
pub(super) async fn change(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let Asked { house, who, deadline, .. } = asked;
    let body: RoleBody = match read_body(request).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    if body.reason.len() > ADMIN_REASON_BYTES_MAX || body.reason.chars().any(char::is_control) {
        let message = format!("`reason` has at most {ADMIN_REASON_BYTES_MAX} bytes and no control characters");
        return problem(StatusCode::BAD_REQUEST, "bad_order", message);
    }
    let said = Said { unix_ms: unix_ms(), by: who.to_string(), reason: body.reason };
    let (mut changed, version) = match house.take_role(body.role.into(), said) {
        Ok(taken) => taken,
        Err(error) => return refuse(&error),
    };
    deadline.put_off(2 * ADOPT_TIMEOUT + Duration::from_secs(1));
    // Silence first: the other machine speaks as soon as this is answered.
    match until_adopted(house, Generation(changed.generation)).await {
        Some(late) if changed.after == RoleText::Standby => {
            let message = format!("{late}, so this machine is not silent; the role stays said, ask again");
            return problem(StatusCode::SERVICE_UNAVAILABLE, "not_everywhere", message);
        }
        late => changed.warnings.extend(late),
    }
    changed.warnings.extend(house.keeper.until_saved(version).await);
    json(StatusCode::OK, &changed)
}
