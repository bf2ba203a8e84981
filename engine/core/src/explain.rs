//! What would become of a new connection, and why: the decision of [`crate::director`], made on copies, so that nothing changes by the question.

use towpath_config::model::AdminState;

use crate::balancer::BalancerState;
use crate::director::{self, Client, Pick, Refusal, Tried};
use crate::ids::{RealServerId, ServiceId, TargetIndex};
use crate::loads::{Full, Loads};
use crate::persistence::{PersistenceTable, Pin, Remembered};
use crate::snapshot::{Duty, ServerHealth, Service, Target};
use crate::time::Now;

/// What would become of a new connection of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Who would get it, or why nobody would.
    pub outcome: Result<Pick, Refusal>,
    /// The server that the client is to come back to.
    pub home: Option<Home>,
    /// Every member, in the order of the file.
    pub members: Vec<Candidacy>,
}

/// The server that a client is to come back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The server; it may be none of this service any more.
    pub server: RealServerId,
    /// Until when it is remembered; `None`: the client says so itself.
    pub expires: Option<Now>,
    /// What keeps the client from it.
    pub obstacles: Vec<Obstacle>,
}

/// How a member stands to a new connection that has to be balanced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidacy {
    /// Its place.
    pub target: TargetIndex,
    /// What keeps new clients from it; nothing: it is a candidate.
    pub obstacles: Vec<Obstacle>,
    /// Connections that it has now, over all services.
    pub active: u32,
    /// Its part of what all candidates get, in thousandths; 0 for who is none. Of weights and slow start alone: what the method makes of
    /// counts and hashes is in the outcome.
    pub share: u64,
    /// What part of its share it takes because it has just come back, in thousandths.
    pub ramp: u64,
    /// Whether it comes before others, because it has fewer connections than its `min_connections`.
    pub is_below_minimum: bool,
}

/// What keeps clients from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It is in drain.
    Draining,
    /// It has as many connections as it may have, this many.
    Full(u32),
    /// It is none of the members of this service.
    Gone,
    /// It is halted.
    Halted,
    /// Its health: down, held or unknown, with the reason.
    Health(ServerHealth, String),
    /// Its agent wants nobody.
    Maintenance,
    /// This port of it is down.
    PortDown(u16),
    /// It waits until others cannot serve.
    Standby,
    /// Its weight is 0.
    Weightless,
}

/// Makes the decision for `client` on copies. `home` is the entry of its pin, if it has one; `state` the balancer of the service, which has `of_service`
/// connections now.
pub fn explain(
    service: &Service,
    state: &BalancerState,
    home: Option<Remembered>,
    loads: &impl Loads,
    of_service: u32,
    client: Client,
    now: Now,
) -> Explanation {
    let mut state = state.clone();
    let mut table = PersistenceTable::new(1, 0);
    if let Some(Remembered { key, server, expires }) = home {
        table.record(key, server, expires, now);
    }
    let counts = Unchanged { loads, of_service };
    let outcome = director::pick_pinned(service, &mut state, &mut table, &counts, client, &Tried::new(), now);
    let home = match (client.pin, home) {
        (Pin::Key(_) | Pin::Offered(_), Some(entry)) => Some((entry.server, Some(entry.expires))),
        (Pin::Server(server), _) => Some((server, None)),
        _ => None,
    };
    let home = home.filter(|_| service.persistence.is_some()).map(|(server, expires)| Home {
        server,
        expires,
        obstacles: obstacles_at_home(service, server, loads, client.port),
    });
    Explanation { outcome, home, members: members(service, loads, client.port, now) }
}

fn members(service: &Service, loads: &impl Loads, port: u16, now: Now) -> Vec<Candidacy> {
    let looked_at = |(place, member): (usize, &Target)| {
        let active = loads.active(member.server);
        Candidacy {
            target: TargetIndex(place as u16),
            obstacles: obstacles(member, active, port),
            active,
            share: 0,
            ramp: service.ramp(member, now),
            is_below_minimum: active < member.min_connections,
        }
    };
    let mut members: Vec<Candidacy> = service.targets.iter().enumerate().map(looked_at).collect();
    // Those that stand by serve where nobody else can, not even one that is only full.
    let may_serve = members
        .iter()
        .any(|member| member.obstacles.is_empty() || matches!(member.obstacles.as_slice(), [Obstacle::Full(_)]));
    if !may_serve {
        for member in &mut members {
            if service.targets[member.target.index()].stands_by() {
                member.obstacles.retain(|obstacle| *obstacle != Obstacle::Standby);
            }
        }
    }
    let weights: Vec<u64> = members
        .iter()
        .map(|member| match member.obstacles.is_empty() {
            true => service.share_of(&service.targets[member.target.index()], now),
            false => 0,
        })
        .collect();
    let all: u64 = weights.iter().sum();
    for (member, weight) in members.iter_mut().zip(weights) {
        member.share = (weight * 1_000).checked_div(all).unwrap_or(0);
    }
    members
}

/// What keeps new clients from a member.
fn obstacles(member: &Target, active: u32, port: u16) -> Vec<Obstacle> {
    let mut obstacles = obstacles_to_anyone(member);
    match member.admin {
        AdminState::Ready => {}
        AdminState::Drain => obstacles.push(Obstacle::Draining),
        AdminState::Halt => obstacles.push(Obstacle::Halted),
    }
    if member.weight == 0 {
        obstacles.push(Obstacle::Weightless);
    }
    obstacles.extend(obstacles_of_room(member, active, port));
    obstacles
}

/// What keeps a client from the server that it is to come back to.
fn obstacles_at_home(service: &Service, server: RealServerId, loads: &impl Loads, port: u16) -> Vec<Obstacle> {
    let (Some((_, member)), Some(rule)) = (service.target_of(server), &service.persistence) else {
        return vec![Obstacle::Gone];
    };
    let mut obstacles = obstacles_to_anyone(member);
    match member.admin {
        AdminState::Drain if !rule.enter_draining => obstacles.push(Obstacle::Draining),
        AdminState::Halt => obstacles.push(Obstacle::Halted),
        AdminState::Drain | AdminState::Ready => {}
    }
    if member.in_maintenance {
        obstacles.push(Obstacle::Maintenance);
    }
    obstacles.extend(obstacles_of_room(member, loads.active(server), port));
    obstacles
}

fn obstacles_to_anyone(member: &Target) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    if !member.is_trusted() {
        obstacles.push(Obstacle::Health(member.health, member.reason.to_string()));
    }
    if member.duty != Duty::Serving {
        obstacles.push(Obstacle::Standby);
    }
    obstacles
}

fn obstacles_of_room(member: &Target, active: u32, port: u16) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    if !member.serves(port) {
        obstacles.push(Obstacle::PortDown(port));
    }
    if member.max_connections != 0 && active >= member.max_connections {
        obstacles.push(Obstacle::Full(member.max_connections));
    }
    obstacles
}

/// The counts as they are; what is opened counts nowhere.
struct Unchanged<'a, L> {
    loads: &'a L,
    of_service: u32,
}

impl<L: Loads> Loads for Unchanged<'_, L> {
    fn active(&self, server: RealServerId) -> u32 {
        self.loads.active(server)
    }

    fn active_of(&self, service: ServiceId, server: RealServerId) -> u32 {
        self.loads.active_of(service, server)
    }

    fn try_open(&self, _: ServiceId, service_max: u32, server: RealServerId, server_max: u32) -> Result<(), Full> {
        if service_max != 0 && self.of_service >= service_max {
            return Err(Full::Service);
        }
        if server_max != 0 && self.loads.active(server) >= server_max {
            return Err(Full::Server);
        }
        Ok(())
    }

    fn close(&self, _: ServiceId, _: RealServerId) {}
}

#[cfg(test)]
mod tests;
