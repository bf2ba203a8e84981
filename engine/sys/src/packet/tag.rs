//! The VLAN tag of a frame (IEEE 802.1Q). The kernel takes the outermost one off what comes in and tells it beside the frame; what is sent carries it.

/// A tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Its EtherType: that of 802.1Q, or another where tags are stacked (802.1ad).
    pub protocol: u16,
    /// Priority (3 bits), drop eligibility (1 bit) and the VLAN's number (12 bits).
    pub control: u16,
}

/// The VLAN's number; 0 is a priority without a VLAN.
const VLAN: u16 = 0x0fff;

impl Tag {
    /// The EtherType of 802.1Q.
    pub const DOT1Q: u16 = 0x8100;
    /// Bytes that it takes in a frame.
    pub const BYTES: usize = 4;
    /// Where it stands in a frame: behind both addresses.
    pub const PLACE: usize = 12;

    /// That of a VLAN (0 to 4,095), with the priority and drop eligibility of another, or with none.
    pub fn of_vlan(vlan: u16, priority_of: Option<Tag>) -> Tag {
        let priority = priority_of.map_or(0, |tag| tag.control & !VLAN);
        Tag { protocol: Tag::DOT1Q, control: priority | vlan & VLAN }
    }

    /// The VLAN; `None` for a priority without one, and for tags of another kind.
    pub fn vlan(self) -> Option<u16> {
        (self.protocol == Tag::DOT1Q).then_some(self.control & VLAN).filter(|&vlan| vlan != 0)
    }

    /// Whether it says no more than a priority.
    pub(super) fn is_priority_alone(self) -> bool {
        self.protocol == Tag::DOT1Q && self.control & VLAN == 0
    }

    /// As the kernel tells it beside a frame.
    pub(super) fn of_aux(status: u32, control: u16, protocol: u16) -> Option<Tag> {
        let protocol = if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 { protocol } else { Tag::DOT1Q };
        (status & libc::TP_STATUS_VLAN_VALID != 0).then_some(Tag { protocol, control })
    }

    /// As it stands in a frame.
    pub fn bytes(self) -> [u8; Tag::BYTES] {
        let ([a, b], [c, d]) = (self.protocol.to_be_bytes(), self.control.to_be_bytes());
        [a, b, c, d]
    }
}

/// The VLANs whose frames a port hands out.
#[derive(Debug)]
pub(super) struct Vlans {
    words: Box<[u64; 64]>,
}

impl Vlans {
    pub(super) fn new(vlans: &[u16]) -> Vlans {
        let mut words = Box::new([0; 64]);
        for vlan in vlans {
            words[usize::from(vlan & VLAN) / 64] |= 1 << (vlan % 64);
        }
        Vlans { words }
    }

    /// Whether frames with this tag are handed out; those without a VLAN always are.
    pub(super) fn hold(&self, tag: Tag) -> bool {
        match tag.vlan() {
            Some(vlan) => self.words[usize::from(vlan) / 64] >> (vlan % 64) & 1 == 1,
            None => tag.is_priority_alone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_changes_its_vlan_and_keeps_its_priority() {
        let came = Tag::of_aux(libc::TP_STATUS_VLAN_VALID, 0xb00a, 0).unwrap();
        assert_eq!((came.vlan(), came.bytes()), (Some(10), [0x81, 0, 0xb0, 10]));
        assert_eq!(Tag::of_vlan(20, Some(came)).bytes(), [0x81, 0, 0xb0, 20]);
        assert_eq!(Tag::of_vlan(20, None).bytes(), [0x81, 0, 0, 20]);
        assert_eq!(Tag::of_aux(0, 0xb00a, Tag::DOT1Q), None);
    }

    #[test]
    fn other_vlans_and_stacked_tags_are_not_handed_out() {
        let vlans = Vlans::new(&[1, 20, 4094]);
        for (vlan, is_held) in [(0, true), (1, true), (2, false), (20, true), (84, false), (4094, true), (4095, false)]
        {
            assert_eq!(vlans.hold(Tag::of_vlan(vlan, None)), is_held, "{vlan}");
        }
        let both = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
        for control in [0, 20] {
            let stacked = Tag::of_aux(both, control, 0x88a8).unwrap();
            assert_eq!((stacked.vlan(), vlans.hold(stacked)), (None, false));
        }
    }
}
