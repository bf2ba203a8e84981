//! Frames of a service on the packet plane, as they came and left, with what became of them: a file in the pcapng format.
//!
//! The format is that of draft-ietf-opsawg-pcapng: one section, an interface per port, an enhanced packet per frame, with the verdict as its comment.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};
use towpath_config::model::Plane;
use towpath_core::plane::{Network, PortId, Verdict};
use towpath_core::snapshot::Service;

use crate::audit::Audit;
use crate::house::House;
use crate::query::{QueryError, network, no_service};
use crate::questions::{CaptureOrder, CapturedFrame, Question, Way, services_called};
use crate::status::word;

/// The longest that a capture may take.
pub const CAPTURE_SECONDS_MAX: u64 = 60;
/// Frames that it may have.
pub const CAPTURE_FRAMES_MAX: u32 = 100_000;
/// Bytes of frames that it may have.
pub const CAPTURE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// How long workers have to hand out what they have copied, once it is over: a breath.
const LAST_FRAMES: Duration = Duration::from_millis(50);

/// What is to be captured: the body of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureBody {
    /// Name of the service, or of the `[[outbound_nat]]`.
    pub service: String,
    /// Only frames from and to this client, or those of this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Over after so many seconds.
    #[serde(default = "ten")]
    pub seconds: u64,
    /// Over with so many frames.
    #[serde(default = "thousand")]
    pub frames: u32,
    /// Bytes of each frame that are kept.
    #[serde(default = "head")]
    pub snap_bytes: usize,
}

/// Bytes of a frame that are kept unless it is said: every header, and little of what people write.
pub const SNAP_BYTES: usize = 128;

fn ten() -> u64 {
    10
}

fn thousand() -> u32 {
    1_000
}

fn head() -> usize {
    SNAP_BYTES
}

impl House {
    /// Captures frames into a file until one of its bounds is reached; `by` says who wants it.
    pub(crate) async fn capture(&self, body: &CaptureBody, by: &str) -> Result<Vec<u8>, QueryError> {
        let bounds = [
            ("seconds", body.seconds, CAPTURE_SECONDS_MAX),
            ("frames", body.frames.into(), CAPTURE_FRAMES_MAX.into()),
            ("snap_bytes", body.snap_bytes as u64, 65_535),
        ];
        if let Some((key, _, max)) = bounds.iter().find(|(_, value, max)| *value == 0 || value > max) {
            return Err(QueryError::Bad(format!("`{key}` is 1 to {max}")));
        }
        let client = body.client.as_deref().map(network).transpose()?;
        let snapshot = self.shared.snapshot();
        let services = services_called(&snapshot, &[], &body.service);
        if services.is_empty() {
            return Err(no_service(&snapshot, &body.service));
        }
        let on_stream = snapshot.each_service().find(|of| of.name == body.service && of.plane == Plane::Stream);
        if let Some(service) = on_stream {
            return Err(QueryError::NotAvailable(instead(service)));
        }
        let _turn = self.turns.capture()?;
        let of = body.client.as_ref().map(|client| format!(", client {client}")).unwrap_or_default();
        let reason = format!("by {by}: service {}{of}", body.service);
        let audit = Audit::begin(self, "capture", "ended", reason);
        let (order, mut captured) =
            CaptureOrder::new(services, client, body.snap_bytes, body.frames, CAPTURE_BYTES_MAX);
        let ender = Ender(Arc::clone(&order));
        for seat in self.shared.seats() {
            seat.ask(Question::Capture(Arc::clone(&order)));
        }
        drop(order);
        let until = Instant::now() + Duration::from_secs(body.seconds);
        let mut frames: Vec<CapturedFrame> = Vec::new();
        while !ender.0.is_over() {
            tokio::select! {
                some = captured.recv() => match some {
                    Some(some) => frames.extend(some),
                    None => break,
                },
                () = sleep_until(until) => ender.0.end(),
            }
        }
        let last = Instant::now() + LAST_FRAMES;
        loop {
            tokio::select! {
                some = captured.recv() => match some {
                    Some(some) => frames.extend(some),
                    None => break,
                },
                () = sleep_until(last) => break,
            }
        }
        drop(ender);
        audit.end(format!("frames: {}", frames.len()), vec![body.service.clone()]);
        frames.sort_by_key(|frame| frame.at);
        let network = self.shared.network().current();
        let comment = format!("towpath {}: capture of service {}{of}", self.version, body.service);
        Ok(file(&comment, &frames, &network))
    }
}

/// Ends the capture with whoever waits for it: the workers have nothing to copy for nobody.
struct Ender(Arc<CaptureOrder>);

impl Drop for Ender {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What to do for a service whose packets the kernel has.
fn instead(service: &Service) -> String {
    let ports: Vec<String> = service.ports.iter().map(|port| format!("port {port}")).collect();
    let protocol = word(&service.protocol);
    let mut servers: Vec<String> = service.targets.iter().map(|target| format!("host {}", target.address)).collect();
    servers.truncate(8);
    format!(
        "service {} is on the stream plane, where the kernel handles packets and towpath sees only bytes; capture them there: \
         tcpdump -ni any -w {}.pcap '{protocol} and ((host {} and ({})) or {})'",
        service.name,
        service.name.replace(|of: char| !of.is_ascii_alphanumeric(), "-"),
        service.vip,
        ports.join(" or "),
        servers.join(" or ")
    )
}

/// What became of a frame, in a sentence.
fn verdict(frame: &CapturedFrame, name: impl Fn(PortId) -> String) -> String {
    let worker = frame.worker;
    let from = if frame.from_client { "from" } else { "to" };
    let what = match frame.way {
        Way::Came(Verdict::Drop(reason)) => format!("dropped: {}", reason.label()),
        Way::Came(Verdict::HandOff(other)) => format!("handed to worker {other}, which has its flow"),
        Way::Came(Verdict::Kept) => "answered from here, or kept until its next hop is known".to_owned(),
        Way::Came(Verdict::Pass) => "left to the kernel".to_owned(),
        Way::Came(Verdict::Send(port)) => format!("rewritten, leaves by {}", name(port)),
        Way::Came(Verdict::Translated { port, .. }) => {
            format!("translated to the other IP version, leaves by {}", name(port))
        }
        Way::Left => "as it leaves".to_owned(),
        Way::Made => "made here".to_owned(),
    };
    let segments = match frame.segment_bytes {
        0 => String::new(),
        bytes => format!("; a super-packet of segments with {bytes} bytes"),
    };
    let by = frame.handed_by.map_or_else(String::new, |by| format!("handed on by worker {by}, "));
    format!("worker {worker}, {from} client {}: {by}{what}{segments}", frame.client)
}

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const LINKTYPE_ETHERNET: u16 = 1;
const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
/// Of an interface: its name; in how fine units times are, 9 = nanoseconds.
const OPTION_NAME: u16 = 2;
const OPTION_RESOLUTION: u16 = 9;
/// Of a packet: 1 = it came, 2 = it left.
const OPTION_FLAGS: u16 = 2;

/// A file with these frames.
fn file(comment: &str, frames: &[CapturedFrame], network: &Network) -> Vec<u8> {
    let mut file = Vec::new();
    let mut section = Vec::new();
    section.extend(BYTE_ORDER_MAGIC.to_le_bytes());
    section.extend([1_u16, 0].into_iter().flat_map(u16::to_le_bytes));
    // Its length is not said.
    section.extend(u64::MAX.to_le_bytes());
    option(&mut section, OPTION_COMMENT, comment.as_bytes());
    option(&mut section, OPTION_END, &[]);
    block(&mut file, SECTION_HEADER, &section);
    let name = |port: PortId| match network.port(port) {
        Some(port) => port.name.clone(),
        None => format!("port {}", port.0),
    };
    // One for each port that there is, and one for what comes by another.
    for port in 0..=network.ports.len() as u8 {
        let mut interface = Vec::new();
        interface.extend(LINKTYPE_ETHERNET.to_le_bytes());
        interface.extend([0; 2]);
        // No frame is longer than it says itself.
        interface.extend(0_u32.to_le_bytes());
        let called = if usize::from(port) < network.ports.len() { name(PortId(port)) } else { "other".to_owned() };
        option(&mut interface, OPTION_NAME, called.as_bytes());
        option(&mut interface, OPTION_RESOLUTION, &[9]);
        option(&mut interface, OPTION_END, &[]);
        block(&mut file, INTERFACE_DESCRIPTION, &interface);
    }
    for frame in frames {
        let mut packet = Vec::new();
        let interface = u32::from(frame.port.0).min(network.ports.len() as u32);
        let at = u64::try_from(frame.at.as_nanos()).unwrap_or(u64::MAX);
        let kept = frame.bytes.len() as u32;
        for value in [interface, (at >> 32) as u32, at as u32, kept, frame.len] {
            packet.extend(value.to_le_bytes());
        }
        padded(&mut packet, &frame.bytes);
        let direction: u32 = if matches!(frame.way, Way::Came(_)) { 1 } else { 2 };
        option(&mut packet, OPTION_FLAGS, &direction.to_le_bytes());
        option(&mut packet, OPTION_COMMENT, verdict(frame, name).as_bytes());
        option(&mut packet, OPTION_END, &[]);
        block(&mut file, ENHANCED_PACKET, &packet);
    }
    file
}

fn block(file: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let len = (body.len() as u32 + 12).to_le_bytes();
    file.extend(kind.to_le_bytes());
    file.extend(len);
    file.extend_from_slice(body);
    file.extend(len);
}

fn option(block: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    block.extend(code.to_le_bytes());
    block.extend((value.len() as u16).to_le_bytes());
    padded(block, value);
}

fn padded(block: &mut Vec<u8>, bytes: &[u8]) {
    block.extend_from_slice(bytes);
    block.resize(block.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use towpath_core::WorkerId;
    use towpath_core::packet::DropReason;
    use towpath_core::plane::Port;

    use super::*;

    fn word_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
    }

    #[test]
    fn a_file_says_when_where_and_what_became_of_each_frame() {
        let frame = |port, way, bytes: &[u8]| CapturedFrame {
            at: Duration::new(1_700_000_000, 123_456_789),
            worker: WorkerId(3),
            handed_by: (way == Way::Left).then_some(WorkerId(2)),
            port: PortId(port),
            way,
            bytes: bytes.to_vec(),
            len: 1_514,
            segment_bytes: 0,
            client: "192.0.2.7:40000".parse().unwrap(),
            from_client: true,
        };
        let ports = ["eth0", "eth1"].map(|name| Port { name: name.to_owned(), ..Port::default() });
        let network = Network::new(ports.to_vec(), vec![], vec![]);
        let frames = [
            frame(0, Way::Came(Verdict::Send(PortId(1))), b"12345"),
            frame(1, Way::Left, b"1234"),
            frame(9, Way::Came(Verdict::Drop(DropReason::NoServer)), b""),
        ];
        let file = file("a capture", &frames, &network);
        let (mut at, mut kinds, mut packets) = (0, Vec::new(), Vec::new());
        while at < file.len() {
            let len = word_at(&file, at + 4) as usize;
            assert_eq!((len % 4, word_at(&file, at + len - 4) as usize), (0, len), "framed on both ends");
            kinds.push(word_at(&file, at));
            if word_at(&file, at) == ENHANCED_PACKET {
                packets.push(&file[at + 8..at + len - 4]);
            }
            at += len;
        }
        assert_eq!((kinds[0], kinds[1..4].to_vec()), (SECTION_HEADER, vec![INTERFACE_DESCRIPTION; 3]));
        assert_eq!(word_at(&file, 8), BYTE_ORDER_MAGIC);
        let read: Vec<(u32, u64, u32, u32)> = packets
            .iter()
            .map(|packet| {
                let at = u64::from(word_at(packet, 4)) << 32 | u64::from(word_at(packet, 8));
                (word_at(packet, 0), at, word_at(packet, 12), word_at(packet, 16))
            })
            .collect();
        let nanoseconds = 1_700_000_000_123_456_789;
        assert_eq!(read, [(0, nanoseconds, 5, 1_514), (1, nanoseconds, 4, 1_514), (2, nanoseconds, 0, 1_514)]);
        let says = |packet: &[u8], text: &str| packet.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(says(packets[0], "worker 3, from client 192.0.2.7:40000: rewritten, leaves by eth1"));
        assert!(
            says(packets[1], "client 192.0.2.7:40000: handed on by worker 2, as it leaves")
                && says(packets[2], "dropped: no_server")
        );
        assert_eq!(&packets[0][20..25], b"12345");
        let direction = |packet: &[u8], at: usize| (word_at(packet, at), word_at(packet, at + 4));
        let flags = u32::from(OPTION_FLAGS) | 4 << 16;
        assert_eq!((direction(packets[0], 28), direction(packets[1], 24)), ((flags, 1), (flags, 2)));
    }
}
