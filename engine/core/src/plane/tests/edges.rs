//! What floods, forgeries, repeats and reloads must not do to a plane.

use super::*;

fn outside_frame(tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    frame_of(OUTSIDE_MAC, ROUTER_MAC, tuple, payload)
}

/// From client `host`, another one each.
fn forward_of(host_number: u8, port: u16, protocol: Protocol) -> Tuple {
    let source = SocketAddr::new(host(Family::V4, "clients", host_number), port);
    Tuple::new(source, vip(Family::V4), number(protocol))
}

/// The same plane's next snapshot, changed by `change`.
fn reloaded(setup: &Setup, change: impl FnOnce(&mut Service)) -> Arc<Snapshot> {
    let mut service = setup.service();
    change(&mut service);
    setup.snapshot(service)
}

impl Lab {
    /// A DSR handshake, as far as it passes by here.
    fn open_one_way(&mut self, forward: &Tuple) -> [Verdict; 2] {
        let syn = tcp(forward, SYN, 100, 0, &[], b"");
        let ack = tcp(forward, ACK, 101, 901, &[], b"");
        [syn, ack].map(|segment| self.send(OUTSIDE, &mut outside_frame(forward, &segment)))
    }
}

#[test]
fn a_datagram_flow_whose_answers_pass_us_by_lives_as_long_as_an_answered_one() {
    let mut lab = Setup::new(Family::V4, Forwarding::Dsr, Protocol::Udp).lab();
    let forward = forward_of(7, 40_000, Protocol::Udp);
    lab.client_sends(&forward, &udp(&forward, b"1"));
    assert_eq!(lab.plane.half_open(), 1);
    lab.client_sends(&forward, &udp(&forward, b"2"));
    assert_eq!(lab.plane.half_open(), 0);
    lab.now = lab.now + 599_000;
    lab.expire();
    assert_eq!((lab.plane.flows(), lab.clerk.opened), (1, 1));
    lab.now = lab.now + 1_500;
    lab.expire();
    assert_eq!(lab.plane.flows(), 0);
}
