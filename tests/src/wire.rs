//! What was on the wire: TCP segments out of captured frames.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use towpath_sys::packet::{Frame, Tap};

use crate::PATIENCE;

/// The head of a captured TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whence.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
    /// Opens a connection.
    pub syn: bool,
    /// Acknowledges.
    pub ack: bool,
    /// Ends a direction.
    pub fin: bool,
    /// Ends the connection at once.
    pub rst: bool,
}

impl Segment {
    /// What the frame carries; `None` if it is no TCP.
    pub fn of(frame: &Frame) -> Option<Segment> {
        let packet = SlicedPacket::from_ethernet(&frame.bytes).ok()?;
        let (source, destination): (IpAddr, IpAddr) = match packet.net? {
            NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Arp(_) => return None,
        };
        let TransportSlice::Tcp(tcp) = packet.transport? else { return None };
        Some(Segment {
            source: SocketAddr::new(source, tcp.source_port()),
            destination: SocketAddr::new(destination, tcp.destination_port()),
            syn: tcp.syn(),
            ack: tcp.ack(),
            fin: tcp.fin(),
            rst: tcp.rst(),
        })
    }

    /// Whether it asks for a connection: SYN without ACK.
    pub fn opens(&self) -> bool {
        self.syn && !self.ack
    }
}

/// The next segment that `wanted` accepts.
///
/// # Panics
///
/// When none comes in time, or frames were lost.
#[track_caller]
pub fn find(tap: &mut Tap, what: &str, mut wanted: impl FnMut(&Segment) -> bool) -> Segment {
    let deadline = Instant::now() + PATIENCE;
    let mut found = None;
    let frame = tap.find(deadline, |frame| {
        found = Segment::of(frame).filter(&mut wanted);
        found.is_some()
    });
    frame.expect("the tap works");
    assert_eq!(tap.lost().expect("the tap works"), 0, "frames lost");
    found.unwrap_or_else(|| panic!("not on the wire within {PATIENCE:?}: {what}"))
}

/// Everything that has been captured until now.
///
/// # Panics
///
/// When frames were lost.
#[track_caller]
pub fn captured(tap: &mut Tap) -> Vec<Segment> {
    let mut segments = Vec::new();
    while let Some(frame) = tap.take().expect("the tap works") {
        segments.extend(Segment::of(&frame));
    }
    assert_eq!(tap.lost().expect("the tap works"), 0, "frames lost");
    segments
}
