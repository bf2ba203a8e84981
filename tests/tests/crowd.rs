//! More clients than the limits allow.

use std::net::SocketAddr;

use towpath_tests::roles::{Crowd, OriginProcess};
use towpath_tests::{Topology, in_lab, ipv4, service, subject};

#[test]
fn eight_thousand_connections_hold_and_the_next_ones_are_refused_cleanly() {
    in_lab(eight_thousand_connections_hold_and_the_next_ones_are_refused_cleanly, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let to = SocketAddr::from((vip, 443));
        let from = lab.client().ipv4().into();
        let _origin = OriginProcess::start(subject!(), lab.server(1), &[SocketAddr::from((lab.server(1).ipv4(), 443))]);
        let config =
            "[limits]\nconnections = 8000\n".to_owned() + &service("web", vip, "443", "", &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &config);

        let crowd = Crowd::gather(subject!(), lab.client(), from, to, 8_200);
        assert_eq!((crowd.served, crowd.refused), (8_000, 200));
        let web = relay.service("web");
        assert_eq!((web.connections, web.terminations["out_of_connections"]), (8_000, 200));
        assert_eq!(crowd.part(), 8_000, "each of those that were let in has its answer");

        // The room is free again.
        relay.until("the room is free again", |status| status.limits.connections.used == 0);
        let next = Crowd::gather(subject!(), lab.client(), from, to, 300);
        assert_eq!((next.served, next.refused), (300, 0));
        relay.stop();
    });
}
