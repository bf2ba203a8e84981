//! Decisions under threads, snapshots, phases, and a worker's end.

use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::health::HealthBoard;
use towpath_core::http::{HttpMaterial, HttpSecret};
use towpath_core::registry::Registry;
use towpath_core::snat::{SnatBook, SnatLimits};
use towpath_core::steering::SteeringTable;

use super::*;

const THREADS: usize = 4;
/// The one that clients come to.
const PORT: u16 = 5061;

/// The snapshot of one service `web` with these keys and servers `name = (weight, max_connections)`.
fn snapshot(keys: &str, servers: &[(u16, u32)], generation: u64) -> Arc<Snapshot> {
    let mut text = format!("[[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nports = [80]\n{keys}\n");
    for (index, (weight, max)) in servers.iter().enumerate() {
        text += &format!(
            "[[service.server]]\nname = \"s{index}\"\naddress = \"192.0.2.{}\"\nweight = {weight}\nmax_connections = {max}\n",
            11 + index
        );
    }
    let checked = towpath_config::check("test.toml", &text);
    let errors: Vec<String> = checked.errors().map(|d| d.message.clone()).collect();
    let model = checked.model.unwrap_or_else(|| panic!("{errors:?}"));
    let snapshot = towpath_core::compile::compile(
        &model,
        &mut Registry::new(),
        &HealthBoard::new(),
        &mut SnatBook::new(SnatLimits::default()),
        Arc::new(SteeringTable::even(THREADS)),
        &HttpMaterial::new(HttpSecret::new([7; 16])),
        Generation(generation),
    );
    Arc::new(snapshot.expect("the model compiles"))
}

fn shared(first: Arc<Snapshot>) -> Arc<Shared> {
    let settings = SharedSettings {
        cpus: (0..THREADS).collect(),
        services_max: 8,
        real_servers_max: 16,
        connections_max: 1000,
        udp_sessions_max: 10,
        handshakes_max: 10,
        persistence_entries: 6_400,
        seed: 0x0123_4567_89ab_cdef,
    };
    Arc::new(Shared::new(&settings, first).expect("eventfds"))
}

fn client(number: usize) -> SocketAddr {
    SocketAddr::from(([198, 51, (number >> 8) as u8, number as u8], 40_000))
}

/// All threads pick `each` times at once; what each got.
fn pick_at_once(shared: &Shared, each: usize) -> Vec<Result<Pick, Refusal>> {
    let snapshot = shared.snapshot();
    let service = snapshot.each_service().next().expect("one service");
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    (0..each)
                        .map(|turn| {
                            shared.pick(service, client(thread * each + turn), PORT, &Tried::new(), shared.now())
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect()
    })
}

fn loads(shared: &Shared, servers: u16) -> Vec<u32> {
    (0..servers).map(|id| shared.loads().active(RealServerId(id))).collect()
}

#[test]
fn workers_together_never_exceed_a_servers_or_a_services_limit() {
    let shared = shared(snapshot("max_connections = 50", &[(100, 30), (100, 10)], 1));
    let picks = pick_at_once(&shared, 100);
    let won = picks.iter().filter(|pick| pick.is_ok()).count();
    assert_eq!((won, loads(&shared, 2)), (40, vec![30, 10]));
    assert!(picks.iter().all(|pick| matches!(pick, Ok(_) | Err(Refusal::ServersFull))));

    let shared = self::shared(snapshot("max_connections = 25", &[(100, 30), (100, 10)], 1));
    let picks = pick_at_once(&shared, 100);
    assert_eq!(picks.iter().filter(|pick| pick.is_ok()).count(), 25);
    assert_eq!(shared.loads().service_active(ServiceId(0)), 25);
    assert!(picks.iter().all(|pick| matches!(pick, Ok(_) | Err(Refusal::ServiceFull))));
}

#[test]
fn weighted_least_connections_is_exact_over_all_workers() {
    let shared = shared(snapshot("balance = \"weighted-least-connections\"", &[(300, 0), (200, 0), (100, 0)], 1));
    let picks = pick_at_once(&shared, 150);
    assert!(picks.iter().all(Result::is_ok));
    assert_eq!(loads(&shared, 3), [300, 200, 100], "600 connections by weight 3:2:1, none misplaced");
}

#[test]
fn round_robin_alternates_over_all_workers() {
    let shared = shared(snapshot("balance = \"round-robin\"", &[(100, 0), (100, 0)], 1));
    pick_at_once(&shared, 50);
    assert_eq!(loads(&shared, 2), [100, 100]);
}

#[test]
fn a_persistent_client_finds_its_server_from_every_worker() {
    let keys = "balance = \"round-robin\"\npersistence = { by = \"source-ip\", timeout = \"30m\" }";
    let shared = shared(snapshot(keys, &[(100, 0), (100, 0), (100, 0)], 1));
    let snapshot = shared.snapshot();
    let service = snapshot.each_service().next().expect("one service");
    for number in 0..200 {
        let first = shared.pick(service, client(number), PORT, &Tried::new(), shared.now()).expect("a server");
        let again = thread::scope(|scope| {
            scope
                .spawn(|| shared.pick(service, client(number), PORT, &Tried::new(), shared.now()))
                .join()
                .expect("no panic")
        });
        assert_eq!(again.expect("a server").server, first.server);
    }
    let used = shared.persistence_use();
    assert_eq!((used.entries, used.entries_max, used.evicted), (200, 6_400, 0));
    shared.forget_servers(&[RealServerId(0), RealServerId(1), RealServerId(2)]);
    assert_eq!(shared.persistence_use().entries, 0);
}

#[test]
fn a_publication_is_seen_once_and_wakes_everyone() {
    let shared = shared(snapshot("", &[(100, 0)], 1));
    assert!(shared.newer_than(Generation(1)).is_none());
    for seat in shared.seats() {
        seat.clear_wake();
        shared.report_adopted(seat.id(), Generation(1));
    }
    shared.publish(snapshot("", &[(100, 0), (100, 0)], 2));
    let newer = shared.newer_than(Generation(1)).expect("generation 2");
    assert_eq!(newer.snapshot.generation, Generation(2));
    assert!(shared.newer_than(Generation(2)).is_none());
    assert!(shared.seats().all(Seat::clear_wake));
    assert!(shared.all_adopted(Generation(1)) && !shared.all_adopted(Generation(2)));
    for seat in shared.seats() {
        shared.report_adopted(seat.id(), Generation(2));
    }
    assert!(shared.all_adopted(Generation(2)));
}

#[test]
fn phases_go_one_way_and_wake_everyone() {
    let shared = shared(snapshot("", &[(100, 0)], 1));
    assert!(shared.enter(Phase::Draining));
    assert!(shared.seats().all(Seat::clear_wake));
    assert!(!shared.enter(Phase::Draining));
    assert!(shared.enter(Phase::Ending));
    assert!(!shared.enter(Phase::Draining));
    assert_eq!(shared.phase(), Phase::Ending);
}

#[test]
fn pages_count_services_and_ends_apart() {
    let shared = shared(snapshot("", &[(100, 0)], 1));
    let seat = shared.seat(WorkerId(2));
    assert!(seat.peek_service(ServiceId(3)).is_none());
    let page = seat.service_page(ServiceId(3));
    for (index, &counter) in ServiceCounter::ALL.iter().enumerate() {
        page.add(counter, index as u64 + 1);
    }
    for &termination in Termination::ALL {
        page.count_end(termination);
    }
    for (index, &counter) in ServiceCounter::ALL.iter().enumerate() {
        assert_eq!(page.read(counter), index as u64 + 1, "{}", counter.label());
    }
    assert!(Termination::ALL.iter().all(|&termination| page.ended(termination) == 1));
}

#[test]
fn a_worker_that_ends_unasked_takes_the_process_with_it() {
    let shared = shared(snapshot("", &[(100, 0)], 1));
    drop(worker_guard(Arc::clone(&shared), WorkerId(1)));
    assert_eq!((shared.lost_worker(), shared.phase()), (Some(WorkerId(1)), Phase::Ending));
    drop(worker_guard(Arc::clone(&shared), WorkerId(2)));
    assert_eq!(shared.lost_worker(), Some(WorkerId(1)), "the others were asked");
}

/// Everybody who waits is served, or leaves, whoever gives places back at the same moment: with one place for all, a single call that gets lost ends it.
#[test]
fn a_place_that_is_given_back_always_finds_who_waits() {
    const ROUNDS: usize = 4_000;
    let shared = shared(snapshot("queue = 100\nqueue_timeout = \"60s\"", &[(100, 1)], 1));
    let snapshot = shared.snapshot();
    let service = snapshot.each_service().next().expect("one service");
    let served = std::sync::atomic::AtomicUsize::new(0);
    thread::scope(|scope| {
        for worker in 0..THREADS {
            let (shared, served) = (&shared, &served);
            scope.spawn(move || {
                let id = WorkerId(worker as u8);
                let from = client(worker).ip();
                let known = service.known(&towpath_core::persistence::Seen::of_address(from));
                let deadline = Instant::now() + Duration::from_secs(60);
                for round in 0..ROUNDS {
                    let picked = match shared.pick(service, client(worker), 80, &Tried::new(), shared.now()) {
                        Ok(pick) => Some(pick),
                        Err(refusal) => {
                            assert_eq!(refusal, Refusal::ServersFull);
                            let ticket = shared.join(service, id, shared.now()).expect("room for all");
                            if round % 7 == worker {
                                shared.leave(service.place, ticket);
                                None
                            } else {
                                Some(loop {
                                    // As a worker does: only when it is called.
                                    let called = shared.seat(id).take_calls();
                                    if called.contains(&Call::Turn(service.place))
                                        && let Ok(pick) =
                                            shared.pick_waiting(service, from, 80, &known, ticket, shared.now())
                                    {
                                        break pick;
                                    }
                                    assert!(Instant::now() < deadline, "nobody has called for a free place");
                                    thread::yield_now();
                                })
                            }
                        }
                    };
                    if let Some(pick) = picked {
                        assert_eq!(shared.loads().active(pick.server), 1);
                        served.fetch_add(1, Ordering::Relaxed);
                        shared.close(service.id, pick.server);
                    }
                }
            });
        }
    });
    assert!(served.load(Ordering::Relaxed) > ROUNDS * THREADS / 2);
    assert_eq!((shared.queue(service.place), shared.is_waited_for(service.place)), ((0, 0), false));
    assert_eq!(loads(&shared, 1), [0]);
}

/// One that is led back to a full server is not called for its own asking, or its worker would ask without end.
#[test]
fn who_waits_for_its_own_full_server_is_called_once() {
    let keys = "queue = 2\nqueue_timeout = \"60s\"\npersistence = { by = \"source-ip\", timeout = \"30m\" }";
    for keys in [keys.to_owned(), format!("{keys}\nmax_connections = 9")] {
        let shared = shared(snapshot(&keys, &[(100, 1)], 1));
        let snapshot = shared.snapshot();
        let service = snapshot.each_service().next().expect("one service");
        let holder = shared.pick(service, client(1), 80, &Tried::new(), shared.now()).expect("the only place");
        let ticket = shared.join(service, WorkerId(1), shared.now()).expect("room");
        let called = || shared.seat(WorkerId(1)).take_calls();
        assert_eq!(called(), [Call::Turn(service.place)]);
        let from = client(1).ip();
        let known = service.known(&towpath_core::persistence::Seen::of_address(from));
        let wait = || shared.pick_waiting(service, from, 80, &known, ticket, shared.now());
        assert_eq!(wait(), Err(Refusal::ServersFull));
        assert!(called().is_empty(), "nothing has become free");
        shared.close(service.id, holder.server);
        assert_eq!(called(), [Call::Turn(service.place)]);
        assert_eq!(wait().map(|pick| pick.server), Ok(holder.server));
    }
}

#[test]
fn nobody_is_served_before_those_who_wait() {
    let shared = shared(snapshot("queue = 2\nqueue_timeout = \"60s\"", &[(100, 1)], 1));
    let snapshot = shared.snapshot();
    let service = snapshot.each_service().next().expect("one service");
    let pick = |number| shared.pick(service, client(number), 80, &Tried::new(), shared.now());
    let holder = pick(1).expect("the only place");
    let [first, second] = [1, 2].map(|worker| shared.join(service, WorkerId(worker), shared.now()).expect("room"));
    assert!(shared.join(service, WorkerId(3), shared.now()).is_err());
    assert_eq!(shared.queue(service.place).0, 2);
    // The first has to ask once more, for what was given back before it stood there.
    assert_eq!(shared.seat(WorkerId(1)).take_calls(), [Call::Turn(service.place)]);
    shared.close(service.id, holder.server);
    assert_eq!(pick(4), Err(Refusal::ServersFull), "a newcomer goes behind");
    assert_eq!(shared.seat(WorkerId(1)).take_calls(), [Call::Turn(service.place)]);
    assert!(shared.seat(WorkerId(2)).take_calls().is_empty());
    let known = |number| service.known(&towpath_core::persistence::Seen::of_address(client(number).ip()));
    let wait =
        |number, ticket| shared.pick_waiting(service, client(number).ip(), 80, &known(number), ticket, shared.now());
    assert_eq!(wait(2, second), Err(Refusal::ServersFull), "not its turn");
    let pick = wait(1, first).expect("its turn");
    assert_eq!(shared.seat(WorkerId(2)).take_calls(), [Call::Turn(service.place)], "there may be more");
    assert_eq!(wait(2, second), Err(Refusal::ServersFull), "there is not");
    shared.close(service.id, pick.server);
    shared.leave(service.place, second);
    assert!(!shared.is_waited_for(service.place));
}

const PANIC: &str = "TOWPATH_TEST_PANIC";

/// Design 10.11. The test runs itself as a child, because it has to die.
#[test]
fn a_worker_that_panics_aborts_the_process_within_a_second() {
    if std::env::var_os(PANIC).is_some() {
        let shared = shared(snapshot("", &[(100, 0)], 1));
        let worker = thread::spawn(move || {
            let _guard = worker_guard(shared, WorkerId(1));
            panic!("as asked");
        });
        let _ = worker.join();
        // Not aborted: the parent sees that this child lives to return success.
        return;
    }
    let name = "shared::tests::a_worker_that_panics_aborts_the_process_within_a_second";
    let started = Instant::now();
    let child = Command::new(std::env::current_exe().expect("own path"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(PANIC, "1")
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("the child runs");
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.status.signal(), Some(6), "SIGABRT, not {}", child.status);
    let stderr = String::from_utf8_lossy(&child.stderr);
    assert!(stderr.contains("worker 1 panicked: aborting"), "{stderr}");
    assert!(started.elapsed() < Duration::from_secs(1), "it took {:?}", started.elapsed());
}
