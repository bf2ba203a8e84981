//! What health checks cost, as `towpath-perf health` measures it.

use std::path::Path;
use std::time::Duration;

use towpath_perf::health::{CheckedBy, Cost, Goal, Rate, measure};
use towpath_perf::lab::{Privilege, ensure_privilege};

fn cost(kind: CheckedBy, rate: Rate, time: Duration) -> Cost {
    measure(Path::new(env!("CARGO_BIN_EXE_subject")), kind, rate, time)
        .unwrap_or_else(|error| panic!("{kind}: {error}"))
}

#[test]
fn checks_of_every_kind_are_counted_and_their_time_is_told() {
    match ensure_privilege(checks_of_every_kind_are_counted_and_their_time_is_told) {
        Ok(Privilege::Delegated) => return,
        Ok(Privilege::Held) => {}
        Err(error) => panic!("{error}"),
    }
    // 200 ms between two checks of a server.
    let rate = Rate { servers: 10, per_minute: 3_000 };
    for kind in CheckedBy::ALL {
        let cost = cost(kind, rate, Duration::from_millis(600));
        // Without checks it need not have run.
        assert!(cost.controller_seconds > 0.0 || kind == CheckedBy::None, "{cost:?}");
        assert!(cost.controller_percent < 100.0, "{cost:?}");
        assert_eq!(cost.checks > 0, kind != CheckedBy::None, "{cost:?}");
    }
}

/// For a quiet machine: `cargo test --release -p towpath-tests --test health_cost -- --ignored --nocapture`.
#[test]
#[ignore = "takes two minutes, and a machine that does nothing else"]
fn ten_thousand_checks_a_minute_cost_less_than_two_percent_of_a_cpu() {
    match ensure_privilege(ten_thousand_checks_a_minute_cost_less_than_two_percent_of_a_cpu) {
        Ok(Privilege::Delegated) => return,
        Ok(Privilege::Held) => {}
        Err(error) => panic!("{error}"),
    }
    let rate = Rate { servers: 500, per_minute: 10_000 };
    let costs = CheckedBy::ALL.map(|kind| cost(kind, rate, Duration::from_secs(15)));
    costs.iter().for_each(|cost| println!("{cost:?}"));
    for cost in costs {
        assert_eq!(cost.against(2.0, rate), Goal::Met, "{cost:?}");
    }
}
