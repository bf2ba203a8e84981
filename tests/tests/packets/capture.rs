//! Captures: pcapng files whose interface 0 is the port outside and 1 the port inside, in nanoseconds since the start. What the sender left to
//! the device stands in the comment of a packet.

use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use pcap_file::DataLink;
use pcap_file::pcapng::blocks::Block;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{PcapNgReader, PcapNgWriter};
use towpath_core::plane::PortId;

/// Names of the interfaces, by [`PortId`].
const NAMES: [&str; 2] = ["outside", "inside"];

/// Nanoseconds: the power of ten of the fraction of a second. The crate writes and reads times as these and leaves saying so to us.
const TIME_RESOLUTION: u8 = 9;

/// The comment of a frame whose checksum is left to the device.
const PARTIAL: &str = "partial checksum";

/// The comment of a super-packet: this, and the octets of payload of each segment. Its checksum is partial, too.
const SEGMENTS_OF: &str = "segments of ";

/// What the sender of a frame leaves to the device (`virtio_net_hdr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Offload {
    #[default]
    Nothing,
    /// The checksum: its field holds the sum of the pseudo-header only.
    Checksum,
    /// The checksum, and the cutting into segments of so many octets of payload.
    Segments(u16),
}

impl Offload {
    fn comment(self) -> Option<Cow<'static, str>> {
        match self {
            Offload::Nothing => None,
            Offload::Checksum => Some(PARTIAL.into()),
            Offload::Segments(bytes) => Some(format!("{SEGMENTS_OF}{bytes}").into()),
        }
    }

    fn of(comment: &str) -> Option<Offload> {
        match comment.strip_prefix(SEGMENTS_OF) {
            Some(bytes) => bytes.parse().ok().map(Offload::Segments),
            None => (comment == PARTIAL).then_some(Offload::Checksum),
        }
    }
}

/// A frame, where it passed and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    pub(crate) at_ms: u64,
    pub(crate) port: PortId,
    pub(crate) offload: Offload,
    pub(crate) bytes: Vec<u8>,
}

/// The frames of a file; none when there is no file.
pub(crate) fn read(path: &Path) -> Vec<Captured> {
    let Ok(bytes) = std::fs::read(path) else { return Vec::new() };
    let fail = |why: &dyn std::fmt::Display| -> ! { panic!("{}: {why}", path.display()) };
    let mut reader = PcapNgReader::new(Cursor::new(bytes)).unwrap_or_else(|error| fail(&error));
    let mut frames = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.unwrap_or_else(|error| fail(&error)) {
            Block::EnhancedPacket(packet) => frames.push(Captured {
                at_ms: packet.timestamp.as_millis() as u64,
                port: PortId(u8::try_from(packet.interface_id).unwrap_or(u8::MAX)),
                offload: offload(&packet.options).unwrap_or_else(|comment| fail(&comment)),
                bytes: packet.data.into_owned(),
            }),
            Block::InterfaceDescription(interface) => {
                let has_resolution = interface
                    .options
                    .iter()
                    .any(|option| matches!(option, InterfaceDescriptionOption::IfTsResol(TIME_RESOLUTION)));
                if !has_resolution {
                    fail(&"its times are not in nanoseconds");
                }
            }
            Block::Packet(_) | Block::SimplePacket(_) | Block::Unknown(_) => fail(&"a block that may hide a frame"),
            _ => {}
        }
    }
    frames
}

/// # Errors
/// A comment that says nothing of this.
fn offload(options: &[EnhancedPacketOption<'_>]) -> Result<Offload, String> {
    let comment = options.iter().find_map(|option| match option {
        EnhancedPacketOption::Comment(comment) => Some(comment),
        _ => None,
    });
    comment.map_or(Ok(Offload::Nothing), |comment| {
        Offload::of(comment).ok_or_else(|| format!("a comment that is not understood: {comment}"))
    })
}

/// A file with these frames; the same frames always make the same file.
pub(crate) fn file(frames: &[Captured]) -> Vec<u8> {
    let mut writer = PcapNgWriter::new(Vec::new()).expect("a vector takes all");
    for name in NAMES {
        let interface = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                InterfaceDescriptionOption::IfTsResol(TIME_RESOLUTION),
            ],
        };
        writer.write_pcapng_block(interface).expect("a vector takes all");
    }
    for frame in frames {
        let packet = EnhancedPacketBlock {
            interface_id: frame.port.0.into(),
            timestamp: Duration::from_millis(frame.at_ms),
            original_len: frame.bytes.len() as u32,
            data: Cow::Borrowed(&frame.bytes),
            options: frame.offload.comment().map(EnhancedPacketOption::Comment).into_iter().collect(),
        };
        writer.write_pcapng_block(packet).expect("a vector takes all");
    }
    writer.into_inner()
}
