//! The pool: work goes there and comes back, in the right order, in time or not at all. (With handshakes: see `contexts`.)

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use towpath_tls::{Finished, HandshakeKind, Hatch, PoolSettings, TlsPool, Work, WorkOutcome};

/// A fact that does not come true for so long is not true.
const PATIENCE: Duration = Duration::from_secs(20);

type Deed = Box<dyn FnOnce() + Send>;

/// Something to do, with a number.
struct Task {
    number: usize,
    deed: Option<Deed>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Task {}", self.number)
    }
}

impl Work for Task {
    fn run(&mut self) {
        (self.deed.take().expect("done once"))();
    }
}

fn task(number: usize, deed: impl FnOnce() + Send + 'static) -> Task {
    Task { number, deed: Some(Box::new(deed)) }
}

fn settings(threads: usize, workers: usize, depth_max: usize) -> PoolSettings {
    PoolSettings { cpus: vec![0; threads], pin: |_| true, workers, depth_max, queue_deadline: PATIENCE }
}

/// A pool whose wakes can be waited for.
fn start(settings: &PoolSettings) -> (TlsPool<Task>, Vec<Hatch<Task>>, Receiver<usize>) {
    let (woken, wakes) = mpsc::channel();
    let (pool, hatches) = TlsPool::start(settings, wake_by(woken)).expect("a pool");
    (pool, hatches, wakes)
}

fn wake_by(woken: Sender<usize>) -> impl Fn(usize) + Send + Sync {
    move |worker| {
        // At the end of a test nobody listens any more.
        let _heard = woken.send(worker);
    }
}

/// Occupies a thread until the returned sender is dropped or used; returns when the thread has begun.
fn occupy(hatch: &mut Hatch<Task>, number: usize) -> Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (begun, beginning) = mpsc::channel();
    let occupying = task(number, move || {
        begun.send(()).expect("the test waits");
        let _end = released.recv_timeout(PATIENCE);
    });
    assert!(hatch.submit(occupying, HandshakeKind::Full).is_ok());
    beginning.recv_timeout(PATIENCE).expect("a thread takes it");
    release
}

/// Takes `wanted` pieces of work, waiting for wakes as a worker does.
fn take(hatch: &mut Hatch<Task>, wakes: &Receiver<usize>, wanted: usize) -> Vec<Finished<Task>> {
    let mut taken = Vec::new();
    loop {
        taken.extend(std::iter::from_fn(|| hatch.take()));
        if taken.len() >= wanted {
            return taken;
        }
        wakes.recv_timeout(PATIENCE).expect("a wake when there is something");
    }
}

#[test]
fn work_is_done_elsewhere_and_comes_back_to_its_worker() {
    let (pool, mut hatches, wakes) = start(&settings(2, 3, 8));
    let here = std::thread::current().id();
    let (told, threads) = mpsc::channel();
    let deed = move || told.send(std::thread::current().id()).expect("the test listens");
    assert!(hatches[1].submit(task(7, deed), HandshakeKind::Full).is_ok());
    assert_eq!(wakes.recv_timeout(PATIENCE), Ok(1), "the worker that handed it in");
    let finished = take(&mut hatches[1], &wakes, 1);
    assert_eq!((finished[0].work.number, finished[0].outcome), (7, WorkOutcome::Done));
    assert_ne!(threads.recv().expect("it was done"), here);
    assert!(hatches[0].take().is_none() && hatches[1].take().is_none());
    let gauges = pool.gauges();
    assert_eq!((gauges.threads, gauges.running, gauges.queued, gauges.done), (2, 0, 0, 1));
}

#[test]
fn sessions_to_resume_go_first_and_full_handshakes_do_not_starve() {
    let (_pool, mut hatches, wakes) = start(&settings(1, 1, 64));
    let hatch = &mut hatches[0];
    let occupied = occupy(hatch, 1000);
    for number in 0..2 {
        assert!(hatch.submit(task(number, || {}), HandshakeKind::Full).is_ok());
    }
    for number in 100..140 {
        assert!(hatch.submit(task(number, || {}), HandshakeKind::Resumed).is_ok());
    }
    drop(occupied);
    let order: Vec<usize> = take(hatch, &wakes, 43).iter().map(|finished| finished.work.number).collect();
    assert_eq!(order[0], 1000);
    assert_eq!(order[1], 100, "a session to resume before what waited longer");
    let place = |number| order.iter().position(|&done| done == number).expect("all were done");
    assert!((2..=17).contains(&place(0)) && (2..=34).contains(&place(1)), "{order:?}");
}

#[test]
fn work_that_no_thread_has_begun_with_can_be_taken_back() {
    let (pool, mut hatches, wakes) = start(&settings(1, 1, 8));
    let hatch = &mut hatches[0];
    let occupied = occupy(hatch, 1000);
    for number in 0..2 {
        assert!(hatch.submit(task(number, || panic!("not done there")), HandshakeKind::Full).is_ok());
    }
    assert!(hatch.submit(task(7, || panic!("not done there")), HandshakeKind::Resumed).is_ok());
    let back: Vec<_> = std::iter::from_fn(|| hatch.reclaim()).map(|back| (back.work.number, back.kind)).collect();
    assert_eq!(back, [(7, HandshakeKind::Resumed), (0, HandshakeKind::Full), (1, HandshakeKind::Full)]);
    assert_eq!((hatch.outstanding(), pool.gauges().queued), (1, 0));
    drop(occupied);
    assert_eq!(take(hatch, &wakes, 1)[0].work.number, 1000, "what has begun comes back done");
    assert_eq!(hatch.outstanding(), 0);
}

#[test]
fn what_waits_too_long_comes_back_undone() {
    let mut settings = settings(1, 1, 8);
    settings.queue_deadline = Duration::ZERO;
    let (pool, mut hatches, wakes) = start(&settings);
    let is_done = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&is_done);
    let late = task(1, move || done.store(true, Ordering::SeqCst));
    assert!(hatches[0].submit(late, HandshakeKind::Full).is_ok());
    let finished = take(&mut hatches[0], &wakes, 1);
    assert_eq!(finished[0].outcome, WorkOutcome::Late);
    assert!(finished[0].waited > Duration::ZERO && !is_done.load(Ordering::SeqCst));
    assert_eq!((pool.gauges().late, pool.gauges().done), (1, 0));
}

#[test]
fn what_nobody_waits_for_is_not_done() {
    let (pool, mut hatches, wakes) = start(&settings(1, 1, 8));
    let hatch = &mut hatches[0];
    let occupied = occupy(hatch, 0);
    let errand = hatch.submit(task(1, || panic!("nobody waits")), HandshakeKind::Full).expect("room");
    errand.abandon();
    drop(occupied);
    let outcomes: BTreeMap<usize, WorkOutcome> =
        take(hatch, &wakes, 2).iter().map(|finished| (finished.work.number, finished.outcome)).collect();
    assert_eq!(outcomes, BTreeMap::from([(0, WorkOutcome::Done), (1, WorkOutcome::Abandoned)]));
    assert_eq!(pool.gauges().abandoned, 1);
}

#[test]
fn a_full_queue_gives_work_back_at_once_and_does_not_fill_the_other() {
    let (pool, mut hatches, wakes) = start(&settings(1, 1, 2));
    let hatch = &mut hatches[0];
    let occupied = occupy(hatch, 0);
    for number in 1..=2 {
        assert!(hatch.submit(task(number, || {}), HandshakeKind::Full).is_ok());
    }
    let refused = hatch.submit(task(3, || {}), HandshakeKind::Full).expect_err("no room");
    assert_eq!(refused.number, 3);
    assert!(hatch.submit(task(4, || {}), HandshakeKind::Resumed).is_ok());
    assert_eq!((pool.gauges().queued, pool.gauges().refused, hatch.outstanding()), (3, 1, 4));
    drop(occupied);
    take(hatch, &wakes, 4);
    assert_eq!(hatch.outstanding(), 0);
}

#[test]
fn a_worker_that_takes_nothing_is_woken_once_and_blocks_nobody() {
    let (pool, mut hatches, wakes) = start(&settings(1, 2, 4));
    let (first, second) = hatches.split_at_mut(1);
    for number in 0..4 {
        assert!(first[0].submit(task(number, || {}), HandshakeKind::Full).is_ok());
    }
    assert_eq!(wakes.recv_timeout(PATIENCE), Ok(0));
    // Worker 1 gets its own although worker 0 leaves all of its to lie, and by then all of that is done.
    while pool.gauges().done < 4 {
        std::thread::yield_now();
    }
    assert!(second[0].submit(task(9, || {}), HandshakeKind::Full).is_ok());
    assert_eq!(wakes.recv_timeout(PATIENCE), Ok(1), "worker 0 was not woken again");
    take(&mut second[0], &wakes, 1);
    take(&mut first[0], &wakes, 4);
    assert!(first[0].take().is_none());
    assert!(first[0].submit(task(5, || {}), HandshakeKind::Full).is_ok());
    assert_eq!(wakes.recv_timeout(PATIENCE), Ok(0), "after it took all it is woken again");
}

#[test]
fn many_workers_and_threads_lose_nothing() {
    const EACH: usize = 5_000;
    let (woken, wakes): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel()).unzip();
    let wake = move |worker: usize| {
        let _heard = woken[worker].send(worker);
    };
    let (pool, hatches) = TlsPool::<Task>::start(&settings(3, 3, 16), wake).expect("a pool");
    let done = Arc::new(AtomicUsize::new(0));
    let begin = Arc::new(Barrier::new(3));
    std::thread::scope(|scope| {
        for (mut hatch, wakes) in hatches.into_iter().zip(wakes) {
            let (done, begin) = (Arc::clone(&done), Arc::clone(&begin));
            scope.spawn(move || {
                begin.wait();
                let (mut submitted, mut taken) = (0, vec![false; EACH]);
                while submitted < EACH || hatch.outstanding() > 0 {
                    let kind = if submitted % 3 == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
                    let done = Arc::clone(&done);
                    let count = move || {
                        done.fetch_add(1, Ordering::Relaxed);
                    };
                    let work = task(submitted, count);
                    if submitted < EACH && hatch.submit(work, kind).is_ok() {
                        submitted += 1;
                        continue;
                    }
                    wakes.recv_timeout(PATIENCE).expect("a wake while work is out");
                    while let Some(finished) = hatch.take() {
                        assert_eq!(finished.outcome, WorkOutcome::Done);
                        assert!(!std::mem::replace(&mut taken[finished.work.number], true), "once");
                    }
                }
                assert!(taken.iter().all(|&taken| taken));
            });
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), 3 * EACH);
    assert_eq!((pool.gauges().done, pool.gauges().queued), (3 * EACH as u64, 0));
}

#[test]
fn a_pool_that_is_dropped_ends_its_threads_and_drops_what_waits() {
    let (pool, mut hatches, _wakes) = start(&settings(1, 1, 8));
    let held = Arc::new(());
    let occupied = occupy(&mut hatches[0], 0);
    for number in 1..=3 {
        let held = Arc::clone(&held);
        assert!(hatches[0].submit(task(number, move || drop(held)), HandshakeKind::Full).is_ok());
    }
    drop(occupied);
    drop(pool);
    drop(hatches);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn a_panic_in_the_pool_ends_the_process() {
    const CHILD: &str = "TOWPATH_TEST_PANIC_IN_POOL";
    if std::env::var_os(CHILD).is_some() {
        let (_pool, mut hatches, wakes) = start(&settings(1, 1, 8));
        assert!(hatches[0].submit(task(1, || panic!("on purpose")), HandshakeKind::Full).is_ok());
        let _wake = wakes.recv_timeout(PATIENCE);
        // Not reached: whoever gets here ends well, which the parent takes for a failure.
        std::process::exit(0);
    }
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "a_panic_in_the_pool_ends_the_process", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("it runs");
    assert!(!output.status.success(), "it went on");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("on purpose") && said.contains("TLS thread 0 panicked: aborting"), "{said}");
}
