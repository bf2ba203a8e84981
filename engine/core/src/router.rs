//! Which packets that belong to no service are forwarded: the rules of `[router]`, ready to be asked.
//!
//! Rules keep no state, as the two directions of a conversation may meet different workers. So what answers is known by what it is: of TCP every
//! segment but a SYN alone, of everything else a packet whose ends, turned round, fit a rule that allows.

use std::net::IpAddr;

use towpath_config::model::{self, RouterRule, RuleAction, RuleProtocol};

use crate::packet::{Ip, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};

/// What is forwarded.
#[derive(Clone, Debug)]
pub struct Router {
    /// Whether anything is.
    pub is_enabled: bool,
    /// Whether a packet must come in by an interface from which a route leads to its source.
    pub checks_sources: bool,
    policy: RuleAction,
    rules: Box<[Rule]>,
}

impl Default for Router {
    /// Nothing is forwarded.
    fn default() -> Router {
        Router::new(&model::Router::default())
    }
}

impl Router {
    /// As the operator says it.
    pub fn new(router: &model::Router) -> Router {
        Router {
            is_enabled: router.enabled,
            checks_sources: router.source_check,
            policy: router.policy,
            rules: router.rules.iter().map(Rule::new).collect(),
        }
    }

    /// Whether the rules let a packet pass.
    #[inline]
    pub fn lets_pass(&self, passage: &Passage<'_>) -> bool {
        if self.rules.is_empty() { self.policy == RuleAction::Allow } else { self.judge(passage) }
    }

    fn judge(&self, passage: &Passage<'_>) -> bool {
        let own = self.first_fit(passage);
        if own == Some(RuleAction::Allow) {
            return true;
        }
        let answered = || self.first_fit(&passage.turned_round());
        match (passage.kind, own) {
            (PassageKind::Follows, _) => {
                [own, answered()].into_iter().any(|action| action.unwrap_or(self.policy) == RuleAction::Allow)
            }
            (PassageKind::Opens, own) => own.unwrap_or(self.policy) == RuleAction::Allow,
            (PassageKind::Stands, Some(action)) => action == RuleAction::Allow,
            (PassageKind::Stands, None) => answered() == Some(RuleAction::Allow) || self.policy == RuleAction::Allow,
        }
    }

    /// Whether a packet that stands for itself answers one that a rule lets pass by name.
    pub fn is_answer(&self, passage: &Passage<'_>) -> bool {
        !self.rules.is_empty() && self.first_fit(&passage.turned_round()) == Some(RuleAction::Allow)
    }

    fn first_fit(&self, passage: &Passage<'_>) -> Option<RuleAction> {
        self.rules.iter().find(|rule| rule.fits(passage)).map(|rule| rule.action)
    }
}

/// A packet on its way through the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage<'a> {
    /// Source.
    pub src: Ip,
    /// Destination.
    pub dst: Ip,
    /// IP protocol number.
    pub protocol: u8,
    /// Source and destination port, where they are known.
    pub ports: Option<(u16, u16)>,
    /// Name of the interface that it came in by.
    pub arrives_by: &'a str,
    /// Name of the interface that it leaves by.
    pub leaves_by: &'a str,
    /// What it is to a conversation.
    pub kind: PassageKind,
}

/// What a packet is to the conversation that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassageKind {
    /// Of one that must have been opened before: TCP, or what an ICMP error is about.
    Follows,
    /// It opens one of TCP.
    Opens,
    /// It stands for itself, and may be a question or an answer.
    Stands,
}

impl Passage<'_> {
    /// The one that it would answer.
    fn turned_round(&self) -> Self {
        Passage {
            src: self.dst,
            dst: self.src,
            ports: self.ports.map(|(src, dst)| (dst, src)),
            arrives_by: self.leaves_by,
            leaves_by: self.arrives_by,
            ..*self
        }
    }
}

#[derive(Clone, Debug)]
struct Rule {
    action: RuleAction,
    from: Networks,
    to: Networks,
    from_interface: Option<String>,
    to_interface: Option<String>,
    protocol: RuleProtocol,
    ports: Box<[(u16, u16)]>,
}

impl Rule {
    fn new(rule: &RouterRule) -> Rule {
        Rule {
            action: rule.action,
            from: Networks::new(&rule.from),
            to: Networks::new(&rule.to),
            from_interface: rule.from_interface.clone(),
            to_interface: rule.to_interface.clone(),
            protocol: rule.protocol,
            ports: rule.ports.as_slice().into(),
        }
    }

    fn fits(&self, passage: &Passage<'_>) -> bool {
        let is_named = |name: &Option<String>, interface: &str| name.as_ref().is_none_or(|name| name == interface);
        self.is_protocol(passage.protocol)
            && self.has_port(passage)
            && is_named(&self.from_interface, passage.arrives_by)
            && is_named(&self.to_interface, passage.leaves_by)
            && self.from.hold(passage.src)
            && self.to.hold(passage.dst)
    }

    fn is_protocol(&self, protocol: u8) -> bool {
        match self.protocol {
            RuleProtocol::Any => true,
            RuleProtocol::Icmp => matches!(protocol, PROTOCOL_ICMP | PROTOCOL_ICMPV6),
            RuleProtocol::Tcp => protocol == PROTOCOL_TCP,
            RuleProtocol::Udp => protocol == PROTOCOL_UDP,
        }
    }

    fn has_port(&self, passage: &Passage<'_>) -> bool {
        if self.ports.is_empty() {
            return true;
        }
        match passage.ports {
            Some((_, port)) => self.ports.iter().any(|&(low, high)| (low..=high).contains(&port)),
            // A later fragment: without the first one, which is judged by its ports, nothing comes of it (RFC 1858 section 2.1).
            None => self.action == RuleAction::Allow && matches!(passage.protocol, PROTOCOL_TCP | PROTOCOL_UDP),
        }
    }
}

/// Networks of either family, as ranges of addresses that are ascending and apart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Networks {
    /// Nobody has named any, so every address is meant.
    is_any: bool,
    v4: Box<[(u128, u128)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    /// Those that the operator names; none are all.
    pub(crate) fn new(networks: &[(IpAddr, u8)]) -> Networks {
        Networks { is_any: networks.is_empty(), ..Networks::of(networks.iter().copied()) }
    }

    /// Those named and no others.
    pub(crate) fn of(networks: impl Iterator<Item = (IpAddr, u8)> + Clone) -> Networks {
        let ranges = |is_v4: bool| {
            let mut ranges: Vec<(u128, u128)> = networks
                .clone()
                .filter(|(address, _)| address.is_ipv4() == is_v4)
                .map(|(address, prefix)| Ip::from(address).network(prefix))
                .collect();
            ranges.sort_unstable_by_key(|&(first, last)| (first, std::cmp::Reverse(last)));
            // Nested or apart: one that begins in another ends there.
            ranges.dedup_by(|later, earlier| later.0 <= earlier.1);
            ranges.into_boxed_slice()
        };
        Networks { is_any: false, v4: ranges(true), v6: ranges(false) }
    }

    pub(crate) fn hold(&self, ip: Ip) -> bool {
        if self.is_any {
            return true;
        }
        let ranges = if ip.is_v4() { &self.v4 } else { &self.v6 };
        let bits = u128::from_be_bytes(ip.0);
        let behind = ranges.partition_point(|&(first, _)| first <= bits);
        behind.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|&(_, last)| bits <= last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use PassageKind::{Follows, Opens, Stands};
    use RuleAction::{Allow, Deny};

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn network(text: &str) -> (IpAddr, u8) {
        let (address, prefix) = text.split_once('/').unwrap();
        (address.parse().unwrap(), prefix.parse().unwrap())
    }

    fn rule(
        action: RuleAction,
        from: &[&str],
        to: &[&str],
        protocol: RuleProtocol,
        ports: &[(u16, u16)],
    ) -> RouterRule {
        let networks = |list: &[&str]| list.iter().map(|text| network(text)).collect();
        RouterRule {
            action,
            from: networks(from),
            to: networks(to),
            from_interface: None,
            to_interface: None,
            protocol,
            ports: ports.to_vec(),
        }
    }

    fn router(policy: RuleAction, rules: &[RouterRule]) -> Router {
        Router::new(&model::Router { enabled: true, policy, rules: rules.to_vec(), ..model::Router::default() })
    }

    /// A packet from a client outside to a server inside.
    fn passage(protocol: u8, ports: (u16, u16), kind: PassageKind) -> Passage<'static> {
        Passage {
            src: ip("198.51.100.7"),
            dst: ip("10.0.0.80"),
            protocol,
            ports: Some(ports),
            arrives_by: "outside",
            leaves_by: "inside",
            kind,
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_the_policy_where_none_does() {
        let rules = [
            rule(Deny, &[], &["10.0.0.81/32"], RuleProtocol::Any, &[]),
            rule(Allow, &["198.51.100.0/24"], &["10.0.0.0/8"], RuleProtocol::Tcp, &[(80, 80), (400, 500)]),
            rule(Deny, &["198.51.100.0/25"], &[], RuleProtocol::Any, &[]),
        ];
        let to = |host: &str, passage| Passage { dst: ip(host), ..passage };
        for policy in [Allow, Deny] {
            let router = router(policy, &rules);
            let by_policy = policy == Allow;
            for (passage, passes) in [
                (passage(PROTOCOL_TCP, (1, 443), Opens), true),
                (passage(PROTOCOL_TCP, (1, 400), Opens), true),
                (passage(PROTOCOL_TCP, (1, 501), Opens), false),
                (passage(PROTOCOL_UDP, (1, 443), Stands), false),
                (to("10.0.0.81", passage(PROTOCOL_TCP, (1, 443), Opens)), false),
                (Passage { src: ip("198.51.100.200"), ..passage(PROTOCOL_UDP, (1, 53), Stands) }, by_policy),
                (Passage { src: ip("2001:db8::7"), dst: ip("fd00::80"), ..passage(47, (0, 0), Stands) }, by_policy),
            ] {
                assert_eq!(router.lets_pass(&passage), passes, "{policy:?} {passage:?}");
            }
        }
    }

    #[test]
    fn interfaces_tell_the_directions_apart() {
        let mut denied = rule(Deny, &[], &[], RuleProtocol::Any, &[]);
        denied.from_interface = Some("outside".into());
        denied.to_interface = Some("inside".into());
        let router = router(Allow, &[denied]);
        let inwards = passage(PROTOCOL_UDP, (53, 53), Stands);
        assert!(!router.lets_pass(&inwards));
        assert!(router.lets_pass(&inwards.turned_round()));
        assert!(router.lets_pass(&Passage { leaves_by: "other", ..inwards }));
    }

    #[test]
    fn answers_pass_where_their_questions_do() {
        let stun = rule(Allow, &[], &["10.0.0.0/8"], RuleProtocol::Udp, &[(3478, 3478)]);
        let web = rule(Allow, &[], &["10.0.0.0/8"], RuleProtocol::Tcp, &[(443, 443)]);
        let ping = rule(Allow, &[], &["10.0.0.0/8"], RuleProtocol::Icmp, &[]);
        let router = router(Deny, &[stun, web, ping]);
        let question = passage(PROTOCOL_UDP, (5000, 3478), Stands);
        assert!(router.lets_pass(&question) && router.lets_pass(&question.turned_round()));
        let other = passage(PROTOCOL_UDP, (5000, 3479), Stands);
        assert!(!router.lets_pass(&other) && !router.lets_pass(&other.turned_round()));
        let segment = passage(PROTOCOL_TCP, (5000, 443), Follows);
        assert!(router.lets_pass(&segment) && router.lets_pass(&segment.turned_round()));
        // The server opens none from its port.
        assert!(!router.lets_pass(&Passage { kind: Opens, ..segment.turned_round() }));
        let echo = Passage { ports: None, ..passage(PROTOCOL_ICMP, (0, 0), Stands) };
        assert!(router.lets_pass(&echo) && router.lets_pass(&echo.turned_round()));
    }

    #[test]
    fn a_denied_opening_denies_no_answer() {
        // Servers may open what they like; towards them nobody may, and no datagram that no rule allows.
        let inwards = rule(Deny, &["198.51.100.0/24"], &["10.0.0.0/8"], RuleProtocol::Any, &[]);
        let router = router(Allow, std::slice::from_ref(&inwards));
        assert!(!router.lets_pass(&passage(PROTOCOL_TCP, (443, 40_000), Opens)));
        assert!(router.lets_pass(&passage(PROTOCOL_TCP, (443, 40_000), Follows)));
        assert!(!router.lets_pass(&passage(PROTOCOL_UDP, (53, 40_000), Stands)));
    }

    #[test]
    fn a_later_fragment_passes_where_one_of_some_port_does() {
        let later = Passage { ports: None, ..passage(PROTOCOL_UDP, (0, 0), Stands) };
        let of_port = |action| rule(action, &[], &[], RuleProtocol::Any, &[(3478, 3478)]);
        assert!(router(Deny, &[of_port(Allow)]).lets_pass(&later));
        assert!(router(Allow, &[of_port(Deny)]).lets_pass(&later));
        assert!(!router(Deny, &[of_port(Deny)]).lets_pass(&later));
        let of_another = Passage { protocol: PROTOCOL_ICMP, ..later };
        assert!(!router(Deny, &[of_port(Allow)]).lets_pass(&of_another), "ICMP has no ports");
    }

    proptest! {
        #[test]
        fn networks_hold_what_each_of_them_holds(
            networks in prop::collection::vec((any::<bool>(), any::<u8>(), 0_u8..=8), 1..12),
            v4 in any::<bool>(), host in any::<u8>(),
        ) {
            // All in 192.0.2.0/24 or 2001:db8::/120.
            let address = |v4, host: u8| if v4 { ip(&format!("192.0.2.{host}")) } else { ip(&format!("2001:db8::{host:x}")) };
            let prefix = |v4, bits| if v4 { 24 + bits } else { 120 + bits };
            let list: Vec<(IpAddr, u8)> =
                networks.iter().map(|&(v4, host, bits)| (address(v4, host).into(), prefix(v4, bits))).collect();
            let holds = networks.iter().any(|&(of_v4, network, bits)| {
                of_v4 == v4 && u16::from(network ^ host) >> (8 - bits) == 0
            });
            prop_assert_eq!(Networks::new(&list).hold(address(v4, host)), holds);
        }
    }
}
