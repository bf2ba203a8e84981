//! A lab in which one test tries the same on both planes, one after the other.

use std::net::Ipv4Addr;

use crate::config::{ipv4, service};
use crate::lab::{TestLab, in_lab};
use towpath_perf::lab::Topology;

/// Both, as the configuration calls them.
pub const PLANES: [&str; 2] = ["stream", "packet"];

/// Small tables: many tests run at the same time.
pub const SMALL_LIMITS: &str = "[limits]\nconnections = 1024\nudp_sessions = 1024\nflows = 8192\n";

/// The VIP of a plane: the balancer has that of the stream plane ([`in_both`]), nobody that of the packet plane.
pub fn plane_vip(lab: &TestLab, plane: &str) -> Ipv4Addr {
    match plane {
        "packet" => lab.free_vip(110),
        _ => lab.free_vip(100),
    }
}

/// A lab of two servers that both planes can be tried in.
pub fn in_both<F: FnOnce()>(test: F, body: impl FnOnce(&TestLab)) {
    in_lab(test, Topology::TwoArm, 2, |lab| {
        lab.vip(100);
        body(lab);
    });
}

/// Servers in turn, on one plane. `keys` may have more services behind them.
pub fn in_turn(lab: &TestLab, plane: &str, name: &str, port: u16, keys: &str) -> String {
    let source = match plane {
        "packet" => format!("plane = \"packet\"\nsource.pool = [\"{}\"]\n", lab.free_snat(111)),
        _ => String::new(),
    };
    let keys = format!("{source}balance = \"round-robin\"\n{keys}");
    service(name, plane_vip(lab, plane), &port.to_string(), &keys, &ipv4(lab.servers()))
}
