//! Workers beside each other: ports that one lends to another, frames that are handed off, and workers that join and leave while it runs.

use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;
use towpath_engine::{Status, fetch_file};
use towpath_sys::host::available_cpus;
use towpath_tests::{
    Connection, Origin, PATIENCE, Subject, TestLab, Topology, eventually, in_lab, ipv4, packet_service, service,
    subject, who,
};

/// So many workers, more than one on some CPU if need be.
fn cpus(workers: usize) -> Vec<usize> {
    available_cpus().expect("the machine has CPUs").into_iter().cycle().take(workers).collect()
}

/// `runtime.workers` of the first so many of these, as far as each is another one.
fn first_workers(cpus: &[usize], count: usize) -> String {
    let different = cpus.iter().enumerate().take_while(|(at, cpu)| !cpus[..*at].contains(cpu)).count();
    format!("[runtime]\nworkers = {:?}\n", &cpus[..count.min(different)])
}

fn counted(status: &Status, counter: &str) -> u64 {
    status.workers.iter().map(|worker| worker.packets[counter]).sum()
}

fn out_of_ports(status: &Status) -> u64 {
    status.services[0].terminations["out_of_source_ports"]
}

/// Takes every port that there is.
fn fill(lab: &TestLab, vip: std::net::Ipv4Addr, ports: usize) -> Vec<Connection> {
    let open = |n| {
        let mut connection = Connection::open(lab.client(), (vip, 443)).unwrap_or_else(|error| panic!("{n}: {error}"));
        connection.greeting().unwrap_or_else(|error| panic!("connection {n}: {error}"));
        connection
    };
    (0..ports).map(open).collect()
}

/// One client more finds no port.
fn refused(lab: &TestLab, vip: std::net::Ipv4Addr, relay: &Subject) {
    let before = out_of_ports(&relay.status());
    let connect = || TcpStream::connect_timeout(&(vip, 443).into(), Duration::from_millis(300));
    assert!(lab.client().run(connect).expect("a thread").is_err(), "one more than there are ports");
    eventually("the refusal is counted", || (out_of_ports(&relay.status()) > before).then_some(()));
}

#[test]
fn packet_workers_lend_each_other_ports_to_the_last_one() {
    in_lab(packet_workers_lend_each_other_ports_to_the_last_one, Topology::TwoArm, 1, |lab| {
        // Of neighbouring virtual shards: all of them belong to one worker.
        const PORTS: usize = 24;
        let vip = lab.free_vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let source = format!("source = {{ pool = [\"{}\"], ports = \"20000-20023\" }}", lab.free_snat(101));
        let config =
            format!("[limits]\nflows = 16384\n{}", packet_service("web", vip, "443", &source, &ipv4(lab.servers())));
        for workers in [2, 4] {
            let relay = subject!().start_on(lab.balancer(), &config, &cpus(workers));
            let mut held = fill(lab, vip, PORTS);
            refused(lab, vip, &relay);
            // Super-packets both ways.
            for connection in &mut held {
                connection.echo(&[7; 300_000]).expect("everything comes back");
            }
            let handed =
                |status: &Status| ["frames_handed_by_note", "frames_handed_here"].map(|name| counted(status, name));
            // Each worker shows its counters in its own time.
            let status = relay.until("flows and frames are counted", |status| {
                let [noted, here] = handed(status);
                counted(status, "flows_opened") == PORTS as u64 && here >= noted
            });
            let [noted, here] = handed(&status);
            assert!(noted > 0 && here >= noted, "{noted} by note, {here} here");
            assert!(status.workers.iter().filter(|worker| worker.packets["flows_opened"] > 0).count() > 1);
            for connection in held {
                connection.close().expect("a clean end");
            }
            relay.until("nothing is open", |status| {
                status.services[0].connections == 0 && status.source_ports[0].leased == 0
            });
            relay.stop();
        }
    });
}

#[test]
fn what_other_workers_hand_over_is_counted_also_where_nothing_else_arrives() {
    in_lab(what_other_workers_hand_over_is_counted_also_where_nothing_else_arrives, Topology::TwoArm, 1, |lab| {
        // Of one worker's virtual shards: what the server sends to clients of the other one comes there by way of it.
        const FLOWS: u64 = 16;
        let vip = lab.free_vip(100);
        let server = lab.server(1).run(|| UdpSocket::bind("0.0.0.0:3478")).expect("a thread").expect("a socket");
        server.set_read_timeout(Some(PATIENCE)).expect("not zero");
        let source = format!("source = {{ pool = [\"{}\"], ports = \"20000-20023\" }}", lab.free_snat(101));
        let lines = format!("protocol = \"udp\"\nidle_timeout = \"10m\"\n{source}");
        let config =
            format!("[limits]\nflows = 16384\n{}", packet_service("web", vip, "3478", &lines, &ipv4(lab.servers())));
        let relay = subject!().start_on(lab.balancer(), &config, &cpus(2));
        let from = |status: &Status| counted(status, "frames_from_client");
        let _clients: Vec<UdpSocket> = (1..=FLOWS)
            .map(|flows| {
                let client = lab.client().run(|| UdpSocket::bind("0.0.0.0:0")).expect("a thread").expect("a socket");
                client.send_to(b"question", (vip, 3478)).expect("a datagram");
                relay.until("the question is counted", |status| from(status) == flows);
                client
            })
            .collect();
        let mut heard = [0; 16];
        for _ in 0..FLOWS {
            let (_, peer) = server.recv_from(&mut heard).expect("the question");
            server.send_to(b"answer", peer).expect("a datagram");
        }
        let status = relay.until("every answer is counted", |status| counted(status, "frames_to_client") == FLOWS);
        let noted = counted(&status, "frames_handed_by_note");
        assert!(noted > 0 && counted(&status, "frames_handed_here") == noted, "{noted} by note");
        relay.stop();
    });
}

#[test]
fn a_capture_shows_frames_that_are_handed_on_where_they_came_and_where_they_belong() {
    in_lab(
        a_capture_shows_frames_that_are_handed_on_where_they_came_and_where_they_belong,
        Topology::TwoArm,
        1,
        |lab| {
            // As above: answers to clients of the one worker come in by the other one.
            const FLOWS: u64 = 16;
            let vip = lab.free_vip(100);
            let server = lab.server(1).run(|| UdpSocket::bind("0.0.0.0:3478")).expect("a thread").expect("a socket");
            server.set_read_timeout(Some(PATIENCE)).expect("not zero");
            let source = format!("source = {{ pool = [\"{}\"], ports = \"20000-20023\" }}", lab.free_snat(101));
            let lines = format!("protocol = \"udp\"\nidle_timeout = \"10m\"\n{source}");
            let config = format!(
                "[limits]\nflows = 16384\n{}",
                packet_service("web", vip, "3478", &lines, &ipv4(lab.servers()))
            );
            let relay = subject!().start_on(lab.balancer(), &config, &cpus(2));
            let mut heard = [0; 16];
            let open = |_| {
                let client = lab.client().run(|| UdpSocket::bind("0.0.0.0:0")).expect("a thread").expect("a socket");
                client.send_to(b"question", (vip, 3478)).expect("a datagram");
                client
            };
            let _clients: Vec<UdpSocket> = (0..FLOWS).map(open).collect();
            let peers: Vec<_> = (0..FLOWS).map(|_| server.recv_from(&mut heard).expect("the question").1).collect();
            let captured = thread::scope(|scope| {
                let wanted = json!({"service": "web", "frames": 20 * FLOWS, "seconds": 60});
                let endpoint = relay.endpoint();
                let capture = scope.spawn(move || fetch_file(&endpoint, "/v1/capture", &wanted, 2 * PATIENCE));
                // It has begun at some time; until then answers pass unseen.
                while !capture.is_finished() {
                    for peer in &peers {
                        server.send_to(b"answer", peer).expect("a datagram");
                    }
                    thread::yield_now();
                }
                capture.join().expect("a thread").expect("a capture")
            });
            // Comments are the only text of the file. Whoever receives a frame for another worker does not know whose it is: it is shown where its flow is.
            let text = String::from_utf8_lossy(&captured);
            let mut noted = 0;
            for (worker, other) in [(0, 1), (1, 0)] {
                let to = format!("worker {worker}, to client ");
                let told = text.split(&to).skip(1).filter_map(|rest| rest.split(char::is_control).next());
                // Some wait for the next hop before they leave.
                let came: Vec<&str> =
                    told.filter(|told| !told.contains("as it leaves") && !told.contains("made here")).collect();
                let by_other = format!(": handed on by worker {other}, ");
                let handed = came.iter().filter(|told| told.contains(&by_other)).count();
                assert!(handed == 0 || handed == came.len(), "all ports are those of one worker: {came:?}");
                noted += handed;
            }
            assert!(noted > 0, "no frame was handed on in {text}");
            relay.stop();
        },
    );
}

#[test]
fn packet_workers_that_join_and_leave_lose_no_connection_of_a_full_pool() {
    in_lab(packet_workers_that_join_and_leave_lose_no_connection_of_a_full_pool, Topology::TwoArm, 1, |lab| {
        const PORTS: usize = 128;
        const THREADS: usize = 4;
        let vip = lab.free_vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let source = format!("source = {{ pool = [\"{}\"], ports = \"20000-20127\" }}", lab.free_snat(101));
        let service = packet_service("web", vip, "443", &source, &ipv4(lab.servers()));
        let cpus = cpus(3);
        let two = format!("{}[limits]\nflows = 16384\n{service}", first_workers(&cpus, 2));
        let three = format!("[limits]\nflows = 16384\n{service}");
        let mut relay = subject!().start_on(lab.balancer(), &three, &cpus);
        relay.reload(&two).expect("a worker may leave");
        let held = fill(lab, vip, PORTS);
        refused(lab, vip, &relay);
        let (over, echoes) = (AtomicBool::new(false), AtomicUsize::new(0));
        let held: Vec<Connection> = thread::scope(|scope| {
            let mut held = held.into_iter();
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    let mut mine: Vec<Connection> = held.by_ref().take(PORTS / THREADS).collect();
                    let (over, echoes) = (&over, &echoes);
                    scope.spawn(move || {
                        while !over.load(Ordering::Acquire) {
                            for connection in &mut mine {
                                connection.echo(&[7; 20_000]).expect("no connection is lost");
                                echoes.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        mine
                    })
                })
                .collect();
            // Ends the threads also when the test fails, for the scope waits for them.
            let _ends = OnDrop(|| over.store(true, Ordering::Release));
            for _ in 0..3 {
                for (config, what) in [(&three, "joined"), (&two, "left")] {
                    relay.reload(config).unwrap_or_else(|refusal| panic!("{refusal}"));
                    let from = echoes.load(Ordering::Relaxed);
                    eventually(what, || (echoes.load(Ordering::Relaxed) > from + 2 * PORTS).then_some(()));
                }
            }
            over.store(true, Ordering::Release);
            threads.into_iter().flat_map(|thread| thread.join().expect("nothing was lost")).collect()
        });
        refused(lab, vip, &relay);
        let status = relay.until("what was given was taken", |status| {
            let given = counted(status, "flows_given");
            given > PORTS as u64 && given == counted(status, "flows_taken")
        });
        assert_eq!(status.services[0].connections, PORTS as u32);
        assert_eq!(status.workers.iter().map(|worker| worker.vshards).sum::<usize>(), 256);
        assert_eq!(status.workers[2].vshards, 0, "the third has left");
        for connection in held {
            connection.close().expect("a clean end");
        }
        relay.until("nothing is open", |status| {
            status.services[0].connections == 0 && status.source_ports[0].leased == 0
        });
        relay.stop();
    });
}

#[test]
fn stream_workers_that_leave_get_no_new_clients_and_keep_theirs() {
    in_lab(stream_workers_that_leave_get_no_new_clients_and_keep_theirs, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let both = service("web", vip, "443", "", &ipv4(lab.servers()));
        let cpus = cpus(2);
        let one = format!("{}{both}", first_workers(&cpus, 1));
        let mut relay = subject!().start_on(lab.balancer(), &both, &cpus);
        let mut held: Vec<Connection> = (0..40)
            .map(|_| {
                let mut connection = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
                connection.greeting().expect("a greeting");
                connection
            })
            .collect();
        let second = |status: &Status| status.workers[1].sessions;
        let kept = second(&relay.until("both workers have clients", |status| second(status) > 0));
        relay.reload(&one).expect("a worker may leave");
        // The kernel is told a moment later.
        eventually("no client comes to the second worker", || {
            let before = relay.status().workers[1].counters["completions"];
            (0..20).for_each(|_| drop(who(lab.client(), (vip, 443))));
            (relay.status().workers[1].counters["completions"] == before).then_some(())
        });
        assert_eq!(second(&relay.status()), kept);
        for connection in &mut held {
            connection.echo(b"still here").expect("whoever was there stays");
        }
        let said = relay.reload(&format!("[runtime]\nworkers = [4095]\n{both}")).expect_err("no worker is there");
        assert!(said.contains("runtime.workers") && said.contains("restart"), "{said}");
        relay.reload(&both).expect("it may come back");
        relay.stop();
    });
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
