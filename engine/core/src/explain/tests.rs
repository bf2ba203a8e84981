use proptest::prelude::*;
use towpath_config::model::{AdminState, Balance};

use super::*;
use crate::PickReason;
use crate::fixtures::{METHODS, client, half_an_hour, service, target};
use crate::loads::PlainLoads;
use crate::snapshot::Role;

const NOW: Now = Now(1_000_000);

/// A member in some state.
fn any_member(server: u16) -> impl Strategy<Value = Target> {
    let admin = prop::sample::select(vec![AdminState::Ready, AdminState::Ready, AdminState::Drain, AdminState::Halt]);
    let health = prop::sample::select(vec![ServerHealth::Up, ServerHealth::Up, ServerHealth::Down]);
    (admin, health, 0_u16..3, 0_u32..4, 0_u32..3, any::<bool>()).prop_map(move |rolled| {
        let (admin, health, weight, max_connections, min_connections, stands_by) = rolled;
        let (role, duty) = if stands_by { (Role::Backup, Duty::Standby) } else { (Role::Primary, Duty::Serving) };
        Target { admin, health, weight, max_connections, min_connections, role, duty, ..target(server) }
    })
}

proptest! {
    #[test]
    fn the_next_connection_goes_where_it_was_said_to_go(
        members in (any_member(0), any_member(1), any_member(2)),
        method in prop::sample::select(METHODS.to_vec()),
        is_persistent in any::<bool>(),
        clients in prop::collection::vec(0_u32..4, 1..12),
        service_max in 0_u32..6,
    ) {
        let mut service = service(method, vec![members.0, members.1, members.2]);
        service.max_connections = service_max;
        service.has_minimums = service.targets.iter().any(|member| member.min_connections > 0);
        service.persistence = is_persistent.then(half_an_hour);
        let loads = PlainLoads::new(1, 16);
        let mut state = BalancerState::new(1);
        let mut table = PersistenceTable::new(16, 1);
        for n in clients {
            let address = client(n).ip();
            let client = Client { address, port: 443, pin: Pin::of_address(&service, address) };
            let entry = match client.pin {
                Pin::Key(key) => table.peek(key, NOW),
                _ => None,
            };
            let ask = || explain(&service, &state, entry, &loads, loads.active_of_service(service.id), client, NOW);
            let said = ask();
            prop_assert_eq!(&ask(), &said, "a question changes no answer");
            let picked =
                director::pick_pinned(&service, &mut state, &mut table, &loads, client, &Tried::new(), NOW);
            prop_assert_eq!(&said.outcome, &picked);
            let Ok(pick) = picked else { continue };
            // And the reasons agree with it.
            let home = said.home.as_ref().filter(|home| home.obstacles.is_empty()).map(|home| home.server);
            if pick.why == PickReason::Persistent {
                prop_assert_eq!(home, Some(pick.server));
            } else {
                prop_assert_eq!(home, None);
                prop_assert!(said.members[pick.target.index()].obstacles.is_empty(), "{:?}", said.members);
            }
        }
    }
}

#[test]
fn every_obstacle_is_named() {
    let members = vec![
        Target { admin: AdminState::Drain, ..target(0) },
        Target { health: ServerHealth::Down, reason: "connection refused".into(), weight: 0, ..target(1) },
        Target { max_connections: 1, ..target(2) },
        Target { duty: Duty::Standby, role: Role::Backup, ..target(3) },
        Target { weight: 300, ..target(4) },
        target(5),
    ];
    let service = service(Balance::WeightedRoundRobin, members);
    let loads = PlainLoads::new(1, 16);
    loads.try_open(service.id, 0, RealServerId(2), 1).expect("there is room");
    let client = Client { address: client(1).ip(), port: 443, pin: Pin::Nobody };
    let said = explain(&service, &BalancerState::new(1), None, &loads, 1, client, NOW);
    let obstacles: Vec<_> = said.members.iter().map(|member| member.obstacles.clone()).collect();
    assert_eq!(
        obstacles,
        [
            vec![Obstacle::Draining],
            vec![Obstacle::Health(ServerHealth::Down, "connection refused".into()), Obstacle::Weightless],
            vec![Obstacle::Full(1)],
            vec![Obstacle::Standby],
            vec![],
            vec![],
        ]
    );
    assert_eq!(said.members.iter().map(|member| member.share).collect::<Vec<_>>(), [0, 0, 0, 0, 750, 250]);
    assert_eq!(said.home, None);
    assert_eq!(said.outcome.map(|pick| pick.server), Ok(RealServerId(4)));
}

#[test]
fn a_client_whose_server_drains_is_told_why_it_moves() {
    let mut service = service(Balance::RoundRobin, vec![Target { admin: AdminState::Drain, ..target(0) }, target(1)]);
    service.persistence = Some(half_an_hour());
    let loads = PlainLoads::new(1, 16);
    let address = client(1).ip();
    let pin = Pin::of_address(&service, address);
    let Pin::Key(key) = pin else { panic!("known by its address") };
    let expires = NOW + 60_000;
    for (server, obstacle) in [(0, Obstacle::Draining), (9, Obstacle::Gone)] {
        let entry = Some(Remembered { key, server: RealServerId(server), expires });
        let client = Client { address, port: 443, pin };
        let said = explain(&service, &BalancerState::new(1), entry, &loads, 0, client, NOW);
        let home = Home { server: RealServerId(server), expires: Some(expires), obstacles: vec![obstacle] };
        assert_eq!(said.home, Some(home));
        assert_eq!(said.outcome.map(|pick| (pick.server.0, pick.why)), Ok((1, PickReason::Repinned)));
    }
}
