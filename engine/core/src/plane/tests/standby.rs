//! A machine that stands by is silent, and goes on where it was when its turn comes again.

use super::super::Keeper;
use super::*;

/// The lab with this role from here on.
fn become_role(lab: &mut Lab, role: MachineRole) {
    let snapshot = Snapshot { role, ..Snapshot::clone(&lab.plane.snapshot) };
    lab.plane.adopt_snapshot(Arc::new(snapshot));
}

fn arp(target: IpAddr) -> Vec<u8> {
    let (sender, target): (Ip, Ip) = (ip("192.0.2.254").into(), target.into());
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(ROUTER_MAC.0);
    body.extend(octets(&sender));
    body.extend([0; 6]);
    body.extend(octets(&target));
    [&Mac::BROADCAST.0[..], &ROUTER_MAC.0, &[0x08, 0x06], &body].concat()
}

#[test]
fn a_machine_that_stands_by_answers_nobody_and_forwards_nothing() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Tcp).lab();
        let (forward, back) = lab.open(family, 40_000);
        lab.out.clear();
        become_role(&mut lab, MachineRole::Standby);
        let newcomer = Tuple::new(SocketAddr::new(client(family).ip(), 41_000), vip(family), PROTOCOL_TCP);
        let frames = [
            (OUTSIDE, frame_of(OUTSIDE_MAC, ROUTER_MAC, &newcomer, &tcp(&newcomer, SYN, 1, 0, &[], b""))),
            (OUTSIDE, frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &tcp(&forward, ACK, 101, 901, &[], b"hello"))),
            (INSIDE, frame_of(INSIDE_MAC, server_mac(80), &back, &tcp(&back, ACK, 901, 101, &[], b"hello"))),
        ];
        for (port, mut frame) in frames {
            let before = frame.clone();
            assert_eq!(lab.send(port, &mut frame), Verdict::Drop(DropReason::Standby), "{family:?}");
            assert_eq!(frame, before, "{family:?}");
        }
        if family == Family::V4 {
            assert_eq!(lab.send(OUTSIDE, &mut arp(vip(family).ip())), Verdict::Pass);
        }
        lab.plane.announce(&mut lab.out);
        assert_eq!((lab.plane.flows(), lab.out.len(), lab.read(PlaneCounter::ArpAnswered)), (1, 0, 0), "{family:?}");

        // Its turn again: who was there goes on, who is new is served.
        become_role(&mut lab, MachineRole::Active);
        lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b"hello"));
        lab.server_sends(&back, &tcp(&back, ACK, 901, 106, &[], b"hello"));
        lab.client_sends(&newcomer, &tcp(&newcomer, SYN, 1, 0, &[], b""));
        lab.plane.announce(&mut lab.out);
        assert!(lab.out.len() >= 2, "{family:?}: the VIP and the SNAT address");
    }
}

#[test]
fn what_ends_meanwhile_ends_in_silence() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    lab.open(Family::V4, 40_000);
    lab.out.clear();
    become_role(&mut lab, MachineRole::Standby);
    lab.now = lab.now + 601_000;
    lab.expire_once();
    assert_eq!((lab.plane.flows(), lab.clerk.ends.clone()), (0, vec![Termination::IdleTimedOut]));
    assert_eq!(lab.out.len(), 0, "no reset: the other machine may have the connection");
    assert!(lab.out.push(OUTSIDE, &[0; 60]) && lab.out.len() == 1, "it is not mute for ever");
}

#[test]
fn addresses_that_are_the_machines_own_are_answered_for() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    let mut ports: Vec<Port> = setup.network.ports.to_vec();
    let own = ip("192.0.2.66");
    ports[0].keeper = Keeper::Towpath;
    ports[0].addresses = vec![(own.into(), 24)];
    setup.network = Network::new(ports, Vec::new(), Vec::new());
    let mut lab = setup.lab();
    become_role(&mut lab, MachineRole::Standby);
    assert_eq!(lab.send(OUTSIDE, &mut arp(own)), Verdict::Kept);
    assert_eq!((lab.out.len(), lab.read(PlaneCounter::ArpAnswered)), (1, 1), "checks are made from there");
    lab.out.clear();
    assert_eq!(lab.send(OUTSIDE, &mut arp(vip(Family::V4).ip())), Verdict::Pass);
    lab.plane.announce(&mut lab.out);
    assert_eq!(lab.out.len(), 1, "its own address alone");
}
