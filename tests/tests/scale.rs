//! Every source port of the packet plane, as `towpath-perf snat --connections` asks for them: real packets, clients and a server without a
//! kernel, each connection checked octet by octet.

use std::path::Path;
use std::time::Duration;

use towpath_perf::lab::{Privilege, ensure_privilege};
use towpath_perf::peers::Subject;
use towpath_perf::suite::{self, Options, Pins, Place, Watch};

/// Ports of one source address: 1024 to 65535.
const PORTS: usize = 64_512;

/// Connections more than there are ports.
const TOO_MANY: usize = 300;

#[test]
fn every_source_port_carries_a_connection_and_the_next_ones_are_refused_cleanly() {
    let this = every_source_port_carries_a_connection_and_the_next_ones_are_refused_cleanly;
    if ensure_privilege(this).expect("the right to create namespaces") == Privilege::Delegated {
        return;
    }
    let cpus = towpath_sys::host::available_cpus().expect("CPUs");
    // Clients and balancer wait for each other.
    let [balancer, .., client] = cpus.as_slice() else { return };
    let program = Path::new(env!("CARGO_BIN_EXE_subject"));
    let options = Options {
        place: Place::Lab,
        subjects: vec![Subject::find("towpath", program).expect("built with the tests")],
        rounds: 1,
        retakes: 0,
        measure: Duration::from_millis(200),
        warm_up: Duration::ZERO,
        pins: Pins { balancer: *balancer, client: vec![*client], spare: Vec::new() },
        program: program.to_owned(),
        counts: suite::counted::Counts::default(),
        watch: Watch::default(),
    };
    let cases = suite::snat::scale_cases(PORTS + TOO_MANY, 1);
    let report = suite::run("snat", &cases, &options, |_| {}, |_| Ok(())).expect("a run without a wrong octet");
    let figure = |metric: &str| {
        let row = report.rows.iter().find(|row| row.metric == metric);
        row.map_or_else(|| panic!("no {metric}: {report:?}"), |row| row.median as usize)
    };
    assert_eq!((figure("opened"), figure("refused")), (PORTS, TOO_MANY));
    assert_eq!((figure("answered"), figure("closed")), (PORTS.div_ceil(100), PORTS));
}
