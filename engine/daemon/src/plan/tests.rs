//! What fits, what is derived, what is refused, and how it reads.

use towpath_config::model::{HandshakeThreads, Resumption, ServiceTls};

use super::*;
use crate::tls::fixtures::ended_tls;

const GIB: u64 = 1 << 30;

fn model(text: &str) -> Model {
    let checked = towpath_config::check("test.toml", text);
    let errors: Vec<String> = checked.errors().map(|d| d.message.clone()).collect();
    checked.model.unwrap_or_else(|| panic!("{errors:?}"))
}

fn tcp_service(extra: &str) -> Model {
    model(&format!(
        r#"
        {extra}
        [[service]]
        name = "web"
        vip = "192.0.2.1"
        ports = [80, 443]
        health = {{ check = "tcp" }}
        [[service.server]]
        name = "one"
        address = "192.0.2.11"
        "#
    ))
}

fn udp_service(extra: &str) -> Model {
    model(&format!(
        r#"
        {extra}
        [[service]]
        name = "stun"
        vip = "192.0.2.1"
        ports = [3478]
        protocol = "udp"
        [[service.server]]
        name = "one"
        address = "192.0.2.11"
        "#
    ))
}

fn input(cpus: usize, nofile: u64) -> PlanInput {
    PlanInput {
        cpus: (0..cpus).collect(),
        nofile,
        memory_bytes: 8 * GIB,
        arms: Vec::new(),
        fast_path: Readiness::Ready,
    }
}

fn amount(shares: &[Share], what: &str) -> u64 {
    shares.iter().find(|share| share.what == what).map_or(0, |share| share.amount)
}

#[test]
fn connections_are_derived_from_the_descriptors_that_are_left() {
    let plan = Plan::new(&tcp_service(""), &input(2, 20_000)).unwrap();
    assert_eq!(plan.connections.from, BoundFrom::Descriptors);
    let fixed = plan.descriptors_total() - amount(&plan.descriptors, "TCP connections");
    assert_eq!(u64::from(plan.connections.max), (20_000 - fixed) / 2);
    assert!(plan.connections.max > 9_000, "{plan}");
    assert_eq!(amount(&plan.descriptors, "listeners"), 4, "two ports, two workers");
    assert!(plan.descriptors_total() <= 20_000);
}

#[test]
fn connections_are_derived_from_the_memory_where_that_is_less() {
    let tight = PlanInput { memory_bytes: GIB, ..input(2, 4_000_000) };
    let plan = Plan::new(&tcp_service(""), &tight).unwrap();
    assert_eq!(plan.connections.from, BoundFrom::Memory);
    assert!(plan.memory_total() <= GIB / DERIVED_MEMORY_SHARE, "{plan}");
}

#[test]
fn shared_connections_have_their_descriptors_and_memory() {
    let text = |reuse: &str| {
        model(&format!(
            "[[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nports = [80]\n[service.http]\n{reuse}\n\
             [[service.server]]\nname = \"one\"\naddress = \"192.0.2.11\"\n\
             [[service.server]]\nname = \"two\"\naddress = \"192.0.2.12\"\n"
        ))
    };
    let what = "waiting server connections";
    let none = Plan::new(&text(""), &input(2, 20_000)).unwrap();
    assert_eq!((amount(&none.descriptors, what), amount(&none.memory, what)), (0, 0));
    let shared = Plan::new(&text("reuse = \"safe\"\nreuse_idle_max = 100"), &input(2, 20_000)).unwrap();
    assert_eq!(amount(&shared.descriptors, what), 2 * 2 * 100, "two workers, two servers");
    assert_eq!(amount(&shared.memory, what), 400 * IDLE_CONNECTION_BYTES);
    assert_eq!(shared.connections.max, none.connections.max - 200, "they take the place of half as many connections");
}

#[test]
fn a_configured_limit_that_cannot_fit_is_refused_with_both_ways_out() {
    let errors = Plan::new(&tcp_service("[limits]\nconnections = 20000"), &input(2, 20_000)).unwrap_err();
    let [PlanError::Descriptors { needed, nofile: 20_000, .. }] = &errors.0[..] else { panic!("{errors:?}") };
    assert!(*needed > 40_000);
    let text = errors.to_string();
    assert!(text.contains("raise LimitNOFILE="), "{text}");
    let most: u32 = text.rsplit("limits.connections to at most ").next().unwrap().parse().unwrap();
    let fits = tcp_service(&format!("[limits]\nconnections = {most}"));
    assert!(Plan::new(&fits, &input(2, 20_000)).is_ok(), "what the message proposes works");
    let one_more = tcp_service(&format!("[limits]\nconnections = {}", most + 1));
    assert!(Plan::new(&one_more, &input(2, 20_000)).is_err(), "and is the most that does");
}

#[test]
fn a_process_that_may_hold_hardly_anything_is_refused() {
    let errors = Plan::new(&tcp_service(""), &input(2, 256)).unwrap_err();
    let [PlanError::Descriptors { needed, .. }] = &errors.0[..] else { panic!("{errors:?}") };
    assert!(Plan::new(&tcp_service(""), &input(2, *needed)).is_ok(), "what the message asks for is enough");
}

#[test]
fn memory_that_cannot_fit_is_refused_with_its_largest_part_first() {
    let hungry = tcp_service("[limits]\nconnections = 64\nbuffers = 32768\nbuffer_bytes = 1048576");
    let errors = Plan::new(&hungry, &input(2, 20_000)).unwrap_err();
    let [PlanError::Memory { parts, available, .. }] = &errors.0[..] else { panic!("{errors:?}") };
    assert_eq!((parts[0].what.as_str(), *available), ("receive buffers", 8 * GIB));
}

#[test]
fn udp_sessions_give_way_to_the_descriptors_and_say_so() {
    let wanted = "[limits]\nudp_sessions = 65536\n";
    let plan = Plan::new(&udp_service(wanted), &input(2, 20_000)).unwrap();
    assert_eq!(plan.udp_sessions.from, BoundFrom::Lowered { configured: 65_536 });
    assert!(plan.descriptors_total() <= 20_000);
    assert_eq!(plan.connections, Bound { max: 0, from: BoundFrom::Unused });
    assert_eq!(plan.warnings().len(), 1);
    let wide = Plan::new(&udp_service(wanted), &input(2, 200_000)).unwrap();
    assert_eq!(wide.udp_sessions, Bound { max: 65_536, from: BoundFrom::Configured });
    assert!(wide.warnings().is_empty());
}

#[test]
fn udp_sessions_that_nobody_counted_are_as_many_as_fit() {
    let small = Plan::new(&udp_service(""), &input(2, 20_000)).unwrap();
    assert_eq!(small.udp_sessions.from, BoundFrom::Descriptors);
    assert!(small.udp_sessions.max > 10_000 && small.descriptors_total() <= 20_000, "{small}");
    assert!(small.warnings().is_empty(), "nothing is less than was asked for");
    let wide = Plan::new(&udp_service(""), &input(2, 200_000)).unwrap();
    assert_eq!(wide.udp_sessions, Bound { max: 65_536, from: BoundFrom::Configured });
}

#[test]
fn fewer_buffers_than_two_per_connection_are_pointed_out() {
    let few = Plan::new(&tcp_service("[limits]\nconnections = 64\nbuffers = 127"), &input(2, 20_000)).unwrap();
    let [warning] = &few.warnings()[..] else { panic!("{:?}", few.warnings()) };
    assert!(warning.contains("limits.buffers"), "{warning}");
    let enough = Plan::new(&tcp_service("[limits]\nconnections = 64\nbuffers = 128"), &input(2, 20_000)).unwrap();
    assert!(enough.warnings().is_empty());
    assert!(Plan::new(&tcp_service(""), &input(2, 20_000)).unwrap().warnings().is_empty());
}

#[test]
fn cpus_that_are_not_there_are_named() {
    let error = Plan::new(&tcp_service("[runtime]\nworkers = [0, 2, 5]"), &input(2, 20_000)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "runtime.workers names CPU 2 and 5, but this process may use CPUs 0-1; take them out, or write workers = \"auto\""
    );
    let plan = Plan::new(&tcp_service("[runtime]\nworkers = [1]"), &input(2, 20_000)).unwrap();
    assert_eq!(plan.workers, [WorkerPlan { id: 0, cpu: 1 }]);
}

#[test]
fn the_plan_reads_as_an_aligned_table() {
    let plan = Plan::new(&tcp_service(""), &input(2, 20_000)).unwrap();
    let expected = "\
workers      2 on CPUs 0-1, poll adaptive
listeners    2 × 2 workers
  web  tcp 192.0.2.1:80
  web  tcp 192.0.2.1:443
connections  9,730 at most, as the descriptors allow
UDP sessions none
persistence  262,144 entries
buffers      20,512 × 16 KiB per worker, 104 pipes for bulk
memory       838.5 MiB at most, of 8.0 GiB
  workers                24.0 MiB
  receive buffers       641.0 MiB
  persistence            14.0 MiB
  pipes for bulk         64.0 MiB
  connections             9.5 MiB
  timers                  456 KiB
  kernel sockets, idle   85.5 MiB
descriptors  20,000 at most, of 20,000
  process              32
  workers               6
  listeners             4
  pipes for bulk      416
  health checks         1
  control socket       17
  reserve              64
  TCP connections  19,460
";
    let shown = plan.to_string();
    assert_eq!(shown, expected, "{shown}");
}

#[test]
fn the_packet_plane_has_its_own_lines_and_no_sockets() {
    let model = model(
        r#"
        [limits]
        flows = 100000
        [[service]]
        name = "farm"
        vip = "192.0.2.1"
        ports = "all"
        plane = "packet"
        source = { pool = ["192.0.2.2"] }
        persistence = { by = "source-ip" }
        [[service.server]]
        name = "one"
        address = "192.0.2.11"
        "#,
    );
    let arm = |name: &str| Arm { name: name.to_owned(), index: 1, mtu_bytes: 1500 };
    let input = PlanInput { arms: vec![arm("front"), arm("back")], ..input(2, 20_000) };
    let plan = Plan::new(&model, &input).unwrap();
    assert_eq!((plan.connections.from, plan.udp_sessions.from), (BoundFrom::Unused, BoundFrom::Unused));
    assert_eq!(amount(&plan.descriptors, "listeners"), 0);
    assert_eq!(amount(&plan.descriptors, "packet rings"), 4 + PACKET_DESCRIPTORS);
    let ring_bytes = plan.packets.as_ref().map(|packets| packets.ring.bytes());
    assert_eq!(Some(amount(&plan.memory, "packet rings")), ring_bytes.map(|bytes| 4 * bytes));
    assert_eq!(amount(&plan.memory, "source ports"), SNAT_MAP_BYTES + PORT_HOMES_BYTES);
    assert_eq!(amount(&plan.memory, "packets handed off"), 2 * Inbox::BYTES);
    let packets = plan.packets.as_ref().unwrap();
    assert_eq!((packets.flows_max(), packets.half_open_max()), (100_000, 12_500));
    assert_eq!(packets.flows_max_of(1), 50_000);
    assert!(amount(&plan.memory, "flows") >= 100_000 * FLOW_BYTES, "{plan}");
    let shown = plan.to_string();
    let tight = PlanInput { memory_bytes: GIB, ..input.clone() };
    let tight = Plan::new(&model, &tight).unwrap().packets.unwrap().ring.bytes();
    assert!(tight < packets.ring.bytes() && 4 * tight <= GIB / RINGS_SHARE, "{tight}");
    let rings = bytes(amount(&plan.memory, "packet rings"));
    let told = |line: &str| line.trim_start().starts_with("packet rings") && line.ends_with(&rings);
    assert!(shown.lines().any(told), "{rings}\n{shown}");
    assert!(
        shown.contains(
            "interfaces   front, back\nflows        100,000 at most, and 12,500 half open\n\
             fast path    in the kernel, 100,000 flows at most\n"
        ),
        "{shown}"
    );
    assert_eq!(packets.fast_flows_of(1), 50_000..100_000);
    assert_eq!(amount(&plan.descriptors, "fast path"), FAST_PATH_DESCRIPTORS + 2);
    assert!(amount(&plan.memory, "fast path") <= 100_000 * FAST_FLOW_BYTES, "{plan}");
    for (readiness, line) in [
        (Readiness::Off, "fast path    off\n"),
        (Readiness::Unavailable("no right".to_owned()), "fast path    none: no right\n"),
        (Readiness::Unneeded, "fast path    none: nothing is routed, and no service translates TCP over IPv4\n"),
    ] {
        let without = Plan::new(&model, &PlanInput { fast_path: readiness, ..input.clone() }).unwrap();
        assert!(without.to_string().contains(line), "{without}");
        let shares = (amount(&without.memory, "fast path"), amount(&without.descriptors, "fast path"));
        assert_eq!((shares, without.packets.unwrap().fast.flows()), ((0, 0), 0));
    }
}

#[test]
fn cpus_that_are_named_for_workers_must_be_usable_and_may_be_named_again() {
    assert_eq!(usable_cpus(None, vec![0, 1]), Ok(vec![0, 1]));
    assert_eq!(usable_cpus(Some(&[1, 0, 1]), vec![0, 1]), Ok(vec![1, 0, 1]));
    let errors = usable_cpus(Some(&[7, 0, 5, 7]), vec![0, 1]).unwrap_err();
    assert_eq!(errors.to_string(), "workers are to have CPU 5 and 7, but this process may use CPUs 0-1");
}

#[test]
fn numbers_are_written_as_people_write_them() {
    let cases = [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")];
    for (number, text) in cases {
        assert_eq!(grouped(number), text);
    }
    let cases = [(0, "0 B"), (1024, "1 KiB"), (1 << 20, "1.0 MiB"), (3 << 29, "1.5 GiB")];
    for (number, text) in cases {
        assert_eq!(bytes(number), text);
    }
    assert_eq!(cpu_list(&[0, 1, 2, 5, 7, 8]), "CPUs 0-2, 5, 7-8");
    assert_eq!(cpu_list(&[3]), "CPU 3");
}

/// The same service, which ends TLS as the model alone can say it.
fn tls_service(threads: HandshakeThreads, resumption: Resumption) -> Model {
    let mut model = tcp_service("[runtime]\nworkers = [0, 1]");
    model.tls.threads = threads;
    model.services[0].tls = ServiceTls::Ended(Box::new(ended_tls("/unread.pem", resumption)));
    model
}

#[test]
fn handshakes_are_signed_where_there_is_a_cpu_for_it() {
    let planned = |threads, cpus| {
        let plan = Plan::new(&tls_service(threads, Resumption::Tickets), &input(cpus, 20_000)).unwrap();
        (plan.handshake_threads.clone(), plan.warnings(), plan.to_string())
    };
    let pool = |cpus: &[usize]| HandshakesPlan::Pool { cpus: cpus.to_vec() };
    let cases = [
        (
            HandshakeThreads::Auto,
            2,
            pool(&[0, 1]),
            "signed by 2 threads on CPUs 0-1, while workers there have nothing to do\n",
        ),
        (HandshakeThreads::Auto, 4, pool(&[2, 3]), "handshakes   signed by 2 threads on CPUs 2-3\n"),
        (HandshakeThreads::Count(0), 4, HandshakesPlan::Workers, "signed by the workers, other traffic first"),
        (
            HandshakeThreads::Count(1),
            2,
            pool(&[0]),
            "signed by 1 thread on CPU 0, while workers there have nothing to do\n",
        ),
        (HandshakeThreads::Count(1), 4, pool(&[2]), "handshakes   signed by 1 thread on CPU 2"),
        (HandshakeThreads::Count(3), 4, pool(&[2, 3, 2]), "handshakes   signed by 3 threads on CPUs 2-3"),
        (HandshakeThreads::Cpus(vec![3]), 4, pool(&[3]), "handshakes   signed by 1 thread on CPU 3"),
    ];
    for (threads, cpus, expected, line) in cases {
        let (handshakes, warnings, text) = planned(threads.clone(), cpus);
        assert_eq!(handshakes, expected, "{threads:?} on {cpus}");
        assert!(warnings.is_empty(), "{warnings:?}");
        assert!(text.contains(line), "{text}");
    }
    let elsewhere = tls_service(HandshakeThreads::Cpus(vec![1, 9]), Resumption::Tickets);
    let errors = Plan::new(&elsewhere, &input(4, 20_000)).unwrap_err();
    assert!(errors.to_string().contains("tls.threads names CPU 9, but this process may use CPUs 0-3"), "{errors}");
}

#[test]
fn who_ends_no_tls_has_no_threads_and_who_keeps_sessions_has_memory_for_them() {
    let mut plain = tcp_service("");
    plain.tls.threads = HandshakeThreads::Count(2);
    let plan = Plan::new(&plain, &input(4, 20_000)).unwrap();
    assert_eq!(plan.handshake_threads, HandshakesPlan::Unneeded);
    assert!(!plan.to_string().contains("signed by"));
    let kept = |resumption| {
        let plan = Plan::new(&tls_service(HandshakeThreads::Auto, resumption), &input(4, 20_000)).unwrap();
        plan.memory.iter().any(|share| share.what == "TLS sessions")
    };
    assert!(kept(Resumption::Cache) && !kept(Resumption::Tickets) && !kept(Resumption::Off));
}
