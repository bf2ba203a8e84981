//! Changes while it runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use towpath_tests::{Connection, Origin, Topology, in_lab, ipv4, service, subject, who};

#[test]
fn t_08_apply_and_roll_back_without_losing_a_connection() {
    in_lab(t_08_apply_and_roll_back_without_losing_a_connection, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let old = service("web", vip, "443", "", &ipv4(&lab.servers()[..1]));
        let new = service("web", vip, "443", "", &ipv4(&lab.servers()[1..]));
        let mut relay = subject!().start(lab.balancer(), &old);
        let mut before = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
        assert_eq!(before.greeting().expect("a greeting").name, "server-1");

        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            // New clients come all the time; `who` fails the test when one is not served.
            let clients = scope.spawn(|| {
                let mut served = 0;
                while !over.load(Ordering::Acquire) {
                    who(lab.client(), (vip, 443));
                    served += 1;
                }
                served
            });
            // Ends the clients also when the test fails, for the scope waits for them.
            let _ends = OnDrop(|| over.store(true, Ordering::Release));
            let mut generation = relay.status().generation;
            for _ in 0..3 {
                let applied = relay.reload(&new).expect("a valid configuration");
                assert!(applied > generation);
                assert_eq!(who(lab.client(), (vip, 443)), "server-2");
                before.echo(b"I was there before").expect("the old connection goes on");
                let leaving = relay.status().leaving;
                assert!(
                    leaving.iter().any(|server| server.name == "server-1" && server.connections >= 1),
                    "{leaving:?}"
                );

                generation = relay.reload(&old).expect("a valid configuration");
                assert!(generation > applied);
                assert_eq!(who(lab.client(), (vip, 443)), "server-1");
                before.echo(b"and still am").expect("the old connection goes on");
            }
            over.store(true, Ordering::Release);
            assert!(clients.join().expect("every client was served") > 0);
        });
        before.close().expect("a clean end");
        relay.stop();
    });
}

#[test]
fn t_08_a_broken_file_changes_nothing_and_is_told_with_its_places() {
    in_lab(t_08_a_broken_file_changes_nothing_and_is_told_with_its_places, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let good = service("web", vip, "443", "", &ipv4(&lab.servers()[..1]));
        let mut relay = subject!().start(lab.balancer(), &good);
        let generation = relay.status().generation;
        let mut before = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
        before.greeting().expect("a greeting");

        // `[control]` and its socket are lines 1 and 2.
        let broken = good.replace("ports = 443", "ports = 443\nidle_timout = \"30m\"\nbalance = \"fairly\"");
        let said = relay.reload(&broken).expect_err("two mistakes");
        for told in ["towpath.toml:7:1", "`idle_timeout`", "towpath.toml:8:11", "SIGHUP: nothing was changed"] {
            assert!(said.contains(told), "{told} is missing in\n{said}");
        }

        let moved = good.replace("ports = 443", "ports = 444");
        let said = relay.reload(&moved).expect_err("a listener cannot move while running");
        assert!(said.contains("ports of service `web`") && said.contains("restart"), "{said}");

        assert_eq!(relay.status().generation, generation);
        before.echo(b"undisturbed").expect("the old connection goes on");
        assert_eq!(who(lab.client(), (vip, 443)), "server-1");
        relay.stop();
    });
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
