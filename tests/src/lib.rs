//! What the tests of the whole stand on: labs of network namespaces, the program under test, origins, clients, and a way to
//! wait for facts.
//!
//! A test looks like this; it runs as root, or in a user namespace where those are allowed:
//!
//! ```ignore
//! use towpath_tests::{Origin, Topology, in_lab, ipv4, service, subject, who};
//!
//! #[test]
//! fn a_client_is_served() {
//!     in_lab(a_client_is_served, Topology::TwoArm, 1, |lab| {
//!         let vip = lab.vip(100);
//!         let _origin = Origin::tcp(lab.server(1), 443);
//!         let relay = subject!().start(lab.balancer(), &service("web", vip, "443", "", &ipv4(lab.servers())));
//!         assert_eq!(who(lab.client(), (vip, 443)), "server-1");
//!         relay.stop();
//!     });
//! }
//! ```

pub mod browser;
pub mod bulk;
pub mod client;
pub mod config;
pub mod deadline;
pub mod exposition;
pub mod lab;
pub mod neighbour;
pub mod origin;
pub mod pki;
pub mod planes;
pub mod roles;
pub mod subject;
pub mod trunk;
pub mod web;
pub mod wire;

pub use browser::{Browser, Key};
pub use bulk::{Bulk, Sum};
pub use client::{Connection, Greeting, ask_by_udp, is_refused, is_refused_from, visit, visit_from, who, who_from};
pub use config::{ipv4, ipv6, packet_service, service, service_to};
pub use deadline::{PATIENCE, eventually};
pub use exposition::Exposition;
pub use lab::{TestLab, in_lab, in_site};
pub use neighbour::Neighbour;
pub use origin::{Accepted, Origin};
pub use planes::{PLANES, SMALL_LIMITS, in_both, in_turn, plane_vip};
pub use subject::{Program, Refusal, Subject};
pub use towpath_perf::lab::{Host, Places, Site, Topology};
pub use trunk::Trunk;
pub use wire::Segment;
