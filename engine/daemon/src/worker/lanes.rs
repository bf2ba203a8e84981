//! From links and tags to the ports of the plane, and back.

use towpath_core::plane::{Network, PortId};
use towpath_sys::packet::Tag;

/// Which port a frame came in by, and how one leaves.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// The tagged ones: link, VLAN, port; in order.
    tagged: Vec<(u8, u16, PortId)>,
    /// By port: link, VLAN.
    out: Vec<(u8, Option<u16>)>,
}

impl Lanes {
    /// Those of a network. Its ports without a tag are numbered as their links are.
    pub(super) fn new(network: &Network) -> Lanes {
        let ports = network.ports.iter().zip(0..).map(|(port, id)| (port.link, port.vlan, PortId(id)));
        let mut tagged: Vec<_> = ports.filter_map(|(link, vlan, id)| Some((link, vlan?, id))).collect();
        tagged.sort_unstable();
        Lanes { tagged, out: network.ports.iter().map(|port| (port.link, port.vlan)).collect() }
    }

    /// The port of a frame that came in by a link.
    #[inline]
    pub(super) fn port(&self, link: u8, tag: Option<Tag>) -> PortId {
        let Some(tag) = tag else { return PortId(link) };
        let known = tag.vlan().and_then(|vlan| {
            let found = self.tagged.binary_search_by_key(&(link, vlan), |&(link, vlan, _)| (link, vlan));
            found.ok().map(|place| self.tagged[place].2)
        });
        match known {
            Some(port) => port,
            // A priority without a VLAN.
            None if tag.protocol == Tag::DOT1Q && tag.vlan().is_none() => PortId(link),
            None => PortId(link).tagged(),
        }
    }

    /// The link and the tag by which a frame leaves; it keeps the priority with which it came.
    #[inline]
    pub(super) fn way(&self, port: PortId, came_with: Option<Tag>) -> (u8, Option<Tag>) {
        if let Some(arm) = port.is_tagged() {
            return (arm.0, came_with);
        }
        // A port that the network does not have any more is its link's.
        let (link, vlan) = self.out.get(port.index()).copied().unwrap_or((port.0, None));
        (link, vlan.map(|vlan| Tag::of_vlan(vlan, came_with)))
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::plane::Port;

    use super::*;

    #[test]
    fn frames_find_the_port_of_their_tag_and_leave_with_that_of_the_other() {
        let port = |link, vlan| Port { link, vlan, ..Port::default() };
        let ports = vec![port(0, None), port(1, None), port(1, Some(20)), port(0, Some(20)), port(1, Some(7))];
        let lanes = Lanes::new(&Network::new(ports, vec![], vec![]));
        let tag = |vlan: u16| Some(Tag { protocol: Tag::DOT1Q, control: 0xa000 | vlan });
        for (link, came_with, expected) in
            [(0, None, 0), (1, None, 1), (1, tag(20), 2), (0, tag(20), 3), (1, tag(7), 4), (1, tag(0), 1)]
        {
            assert_eq!(lanes.port(link, came_with), PortId(expected));
        }
        let stacked = Some(Tag { protocol: 0x88a8, control: 20 });
        for other in [tag(7), stacked] {
            assert_eq!(lanes.port(0, other), PortId(0).tagged());
            assert_eq!(lanes.way(PortId(1).tagged(), other), (1, other), "over a bridge as it came");
        }
        assert_eq!(lanes.way(PortId(1), tag(20)), (1, None));
        assert_eq!(lanes.way(PortId(3), tag(7)), (0, tag(20)));
        assert_eq!(lanes.way(PortId(4), None), (1, Some(Tag::of_vlan(7, None))));
    }
}
