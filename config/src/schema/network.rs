//! Tables about the packet plane's network: interfaces, routes, bridge, router, outbound NAT.

use super::{Kind, Table, integer, key, service, word};

static ADDRESSES: Kind = Kind::List(&Kind::Network, 256);

pub(super) static INTERFACE: Table = Table {
    path: "interface",
    doc: "A network interface of the packet plane. What its untagged network needs the kernel has; its VLANs are Towpath's own.",
    keys: &[
        key("name", Kind::Name, "Name of the link, as the kernel shows it.").required(),
        key(
            "addresses",
            ADDRESSES,
            "Addresses with prefix length that the kernel has there: `check --host` says which are missing.",
        ),
        key("dhcp", Kind::Bool, "Ask a DHCP server for an address as well.").default("false").later(),
        key("mac", Kind::Text, "Fixed hardware address, `02:00:00:00:00:01`.").described("the link's own").later(),
        key("bond", Kind::List(&Kind::Name, 16), "Links that this interface is made of.").later(),
        key("mtu", integer(576, 9216, "bytes"), "Largest packet.").default("1500").later(),
        key("vlan", Kind::Tables(&VLAN, 4094), "Tagged networks on this link."),
    ],
};

static VLAN: Table = Table {
    path: "interface.vlan",
    doc: "A tagged network (802.1Q) on the link. The kernel has no part in it: Towpath answers ARP, neighbour discovery and pings there.",
    keys: &[
        key("id", integer(1, 4094, "VLAN id"), "The tag.").required(),
        key("name", Kind::Name, "Name to refer to it elsewhere.").described("link name, dot, id"),
        key("addresses", ADDRESSES, "Towpath's own addresses with prefix length, one for each address range.")
            .required(),
    ],
};

pub(super) static ROUTE: Table = Table {
    path: "route",
    doc: "A static route of the packet plane.",
    keys: &[
        key(
            "to",
            Kind::Either(&[Kind::Word(&[word("default", "Everything without a better route.")]), Kind::Network]),
            "Destination network, or `\"default\"`.",
        )
        .required(),
        key("via", Kind::Address, "Next hop.").required(),
        key("interface", Kind::Name, "Interface, VLAN or bridge that reaches the next hop.")
            .described("the one whose network holds the next hop"),
        key("metric", integer(0, 65_535, "metric"), "The lowest of several equal routes wins.").default("100"),
    ],
};

pub(super) static BRIDGE: Table = Table {
    path: "bridge",
    doc: "Transparent mode: two arms in one network. Frames for a VIP are taken out, everything else passes like through a cable, with services or \
          without. The arms are links without addresses of the kernel's.",
    keys: &[
        key("name", Kind::Name, "Unique name.").required(),
        key(
            "interfaces",
            Kind::List(&Kind::Name, 2),
            "The two arms: names of `[[interface]]`, without `addresses` and `vlan` there.",
        )
        .required(),
        key("addresses", ADDRESSES, "Own addresses on the bridge."),
        key("spanning_tree", Kind::Bool, "Let spanning tree frames pass, so that a pair of bridges makes no loop.")
            .default("true"),
    ],
};

pub(super) static ROUTER: Table = Table {
    path: "router",
    doc: "Forwarding between the arms, without NAT: traffic that real servers start, and direct access to them. Every interface with an \
          address is an arm, the routes are the kernel's and those of `[[route]]`, and the kernel itself must not forward (`ip_forward` = 0).",
    keys: &[
        key("enabled", Kind::Bool, "Forward packets that belong to no service.").default("false"),
        key(
            "source_check",
            Kind::Bool,
            "Drop packets that come in by an interface from which no route leads to their source (RFC 3704, feasible paths).",
        )
        .default("true"),
        key(
            "policy",
            Kind::Word(&[
                word("allow", "Forward what no rule denies."),
                word("deny", "Forward only what a rule allows."),
            ]),
            "What happens to a packet that no rule names.",
        )
        .default("allow"),
        key("rule", Kind::Tables(&RULE, 1024), "Firewall rules; the first that fits decides."),
    ],
};

static RULE: Table = Table {
    path: "router.rule",
    doc: "A firewall rule for routed traffic. Rules keep no state. Of TCP they judge who may open a connection: its segments pass both ways. Of \
          everything else what answers a packet that a rule allows passes as well, unless a rule denies it; ICMP errors pass with the packets that \
          they are about.",
    keys: &[
        key("action", Kind::Word(&[word("allow", "Forward."), word("deny", "Drop, and count it.")]), "What happens.")
            .required(),
        key("from", Kind::List(&Kind::Network, 256), "Source networks.").described("any"),
        key("to", Kind::List(&Kind::Network, 256), "Destination networks.").described("any"),
        key("from_interface", Kind::Name, "Interface or VLAN that it comes in by.").described("any"),
        key("to_interface", Kind::Name, "Interface or VLAN that it leaves by.").described("any"),
        key(
            "protocol",
            Kind::Word(&[
                word("any", "Every protocol."),
                word("icmp", "ICMP and ICMPv6."),
                word("tcp", "TCP."),
                word("udp", "UDP."),
            ]),
            "Transport protocol.",
        )
        .default("any"),
        key("ports", Kind::Ports, "Destination ports, of TCP and UDP.").described("any"),
    ],
};

pub(super) static OUTBOUND_NAT: Table = Table {
    path: "outbound_nat",
    doc: "Flows that hosts inside open themselves through the router leave from an address of ours (some call it \"server NAT\"): TCP, UDP and pings; other \
          packets go on as they are. The first that fits counts. Nothing is translated towards real servers and the networks in any `from`, nor what \
          answers a direct access from outside: of UDP and ICMP, what fits a `[[router.rule]]` with `action = \"allow\"` the other way round; of TCP, \
          all but what opens a connection, so segments of one that is no more known here leave with the address inside. Rules and these keys are \
          asked when a flow opens: what a reload forbids goes on until it ends. Over IPv6, each worker has at most 16,384 of these flows; \
          connections that are over give way, unless their port rests. Independent of the services' `source`.",
    keys: &[
        key("name", Kind::Name, "Unique name.").required(),
        key("from", Kind::List(&Kind::Network, 256), "Networks of those who open them.").required(),
        key("to", Kind::List(&Kind::Network, 256), "Networks of those whom they are to.").described("any"),
        key("except", Kind::List(&Kind::Network, 256), "Of these, networks that are reached without.").described("none"),
        key("interface", Kind::Name, "Only what leaves by this interface or VLAN.").described("any"),
        key(
            "source",
            Kind::Table(&service::SOURCE),
            "The address that those outside see: `{ pool = [...] }`; with `pool = \"interface\"` that of `interface`. One address carries about 64,000 \
             flows of each protocol.",
        )
        .described("`{ pool = \"interface\" }`"),
    ],
};
