//! The clients of UDP: each flow is a socket, its datagrams come back from the origin or count as lost.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use towpath_sys::ring::Completion;
use towpath_sys::socket::set_receive_buffer;

use super::Pace;
use super::callers::corrupted;
use super::gauge::Gauge;
use super::wire::{Token, What, Wire};
use crate::message::{Filler, HEADER_BYTES, Header, Kind, WINDOW_BYTES_MAX};

/// A datagram that is not back after so long counts as lost.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// Datagrams of one flow that may be under way in the open loop: as much as a second at 64 flows and 2,000 a second needs.
const UNDER_WAY_MAX: usize = 32;

/// Asked of the kernel for datagrams that wait at a flow, in bytes, so that losses are the subject's.
const QUEUE_BYTES: u32 = 1 << 20;

/// Starts in one turn, so that completions are taken in between.
const STARTS_MAX: usize = 256;

/// The number of a flow in a tag, above the number of its datagram.
const FLOW_SHIFT: u32 = 40;

struct Flow {
    socket: UdpSocket,
    last_tag: u64,
    /// Tags and intended starts, the oldest first.
    under_way: VecDeque<(u64, Instant)>,
}

/// See the module.
pub(super) struct Flows {
    flows: Vec<Flow>,
    filler_bytes: u32,
    /// Flows that may send, in turns.
    ready: VecDeque<usize>,
    under_way_max: usize,
    /// When each datagram left, the oldest first: also of those that are back.
    sent: VecDeque<(Instant, u64)>,
}

impl Flows {
    /// Opens so many flows.
    pub(super) fn open(
        wire: &mut Wire,
        target: SocketAddr,
        flows: usize,
        payload_bytes: usize,
        pace: Pace,
    ) -> io::Result<Flows> {
        let filler_bytes = payload_bytes
            .checked_sub(HEADER_BYTES)
            .filter(|filler| *filler < WINDOW_BYTES_MAX)
            .and_then(|filler| u32::try_from(filler).ok());
        let Some(filler_bytes) = filler_bytes else {
            let message = format!("datagrams of {payload_bytes} bytes: {HEADER_BYTES} to 65,507 are possible");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let mut opened = Vec::with_capacity(flows);
        for number in 0..flows {
            let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.connect(target)?;
            set_receive_buffer(&socket, QUEUE_BYTES)?;
            let flow = Flow { socket, last_tag: (number as u64) << FLOW_SHIFT, under_way: VecDeque::new() };
            flow.hear(wire, number)?;
            opened.push(flow);
        }
        Ok(Flows {
            flows: opened,
            filler_bytes,
            ready: (0..flows).collect(),
            under_way_max: match pace {
                Pace::Closed => 1,
                Pace::Open { .. } => UNDER_WAY_MAX,
            },
            sent: VecDeque::new(),
        })
    }

    /// Datagrams that may still come back.
    pub(super) fn under_way(&self) -> usize {
        self.flows.iter().map(|flow| flow.under_way.len()).sum()
    }

    /// When there is something to start or to give up, if nothing comes first.
    pub(super) fn next_start(&self, now: Instant, gauge: &Gauge) -> Option<Instant> {
        let start = if self.ready.is_empty() { None } else { gauge.schedule.next(now) };
        let expiry = self.sent.front().map(|(sent, _)| *sent + LOST_AFTER);
        start.into_iter().chain(expiry).min()
    }

    /// Gives up what is not back in time and starts what is due.
    pub(super) fn start_due(&mut self, wire: &mut Wire, now: Instant, gauge: &mut Gauge) -> io::Result<()> {
        while let Some(&(sent, tag)) = self.sent.front() {
            let number = flow_of(tag);
            let lost = self.flows[number].under_way.iter().position(|(other, _)| *other == tag);
            if let Some(at) = lost {
                if now.saturating_duration_since(sent) < LOST_AFTER {
                    break;
                }
                self.take_back(number, at);
                gauge.lost(sent);
            }
            self.sent.pop_front();
        }
        for _ in 0..STARTS_MAX {
            let Some(&number) = self.ready.front() else { break };
            let Some(intended) = gauge.schedule.take_due(now) else { break };
            self.ready.pop_front();
            let flow = &mut self.flows[number];
            flow.last_tag += 1;
            let tag = flow.last_tag;
            wire.say_datagram(number, flow.socket.as_fd(), header(tag, self.filler_bytes))?;
            flow.under_way.push_back((tag, intended));
            if flow.under_way.len() < self.under_way_max {
                self.ready.push_back(number);
            }
            self.sent.push_back((now, tag));
        }
        Ok(())
    }

    /// A datagram has left, or could not.
    pub(super) fn said(&mut self, wire: &mut Wire, token: Token, result: i32) -> io::Result<()> {
        wire.said_datagram(token);
        if result < 0 { Err(self.failed(token.slot as usize, result)) } else { Ok(()) }
    }

    /// Takes what has arrived on a flow.
    pub(super) fn heard(
        &mut self,
        wire: &mut Wire,
        number: usize,
        completion: &Completion,
        now: Instant,
        gauge: &mut Gauge,
    ) -> io::Result<()> {
        match (completion.buffer(), u32::try_from(completion.result())) {
            (Some(buffer), Ok(length)) => {
                let answer = self.check(number, wire.ring.datagram_buffers().bytes(buffer, 0, length));
                wire.ring.datagram_buffers().recycle(buffer);
                let tag = answer?;
                let found = self.flows[number].under_way.iter().position(|(other, _)| *other == tag);
                // Another one is too late: it counts as lost already.
                if let Some(at) = found {
                    let intended = self.take_back(number, at);
                    gauge.completed(intended, now);
                }
            }
            (_, Err(_)) if completion.received() != towpath_sys::ring::Received::NoBuffers => {
                return Err(self.failed(number, completion.result()));
            }
            _ => {}
        }
        if completion.more() { Ok(()) } else { self.flows[number].hear(wire, number) }
    }

    fn take_back(&mut self, number: usize, at: usize) -> Instant {
        let under_way = &mut self.flows[number].under_way;
        if under_way.len() == self.under_way_max {
            self.ready.push_back(number);
        }
        under_way.remove(at).expect("the position was found in it").1
    }

    /// The tag of a datagram that is back as it was sent.
    fn check(&self, number: usize, payload: &[u8]) -> io::Result<u64> {
        let wrong = || corrupted("a datagram arrived that was not sent");
        let (head, filler) = payload.split_first_chunk().ok_or_else(wrong)?;
        let header = Header::decode(head).ok_or_else(wrong)?;
        if header.kind == Kind::Corrupt {
            return Err(corrupted("the origin got a datagram that was not sent"));
        }
        let whole = header == self::header(header.tag, self.filler_bytes) && filler.len() == self.filler_bytes as usize;
        let ours = flow_of(header.tag) == number && header.tag <= self.flows[number].last_tag;
        if whole && ours && Filler::of(header.tag).matches(filler) { Ok(header.tag) } else { Err(wrong()) }
    }

    fn failed(&self, number: usize, result: i32) -> io::Error {
        let error = io::Error::from_raw_os_error(-result);
        let peer = self.flows[number].socket.peer_addr().map_or_else(|_| String::new(), |peer| format!(" to {peer}"));
        io::Error::new(error.kind(), format!("a flow{peer} failed: {error}"))
    }

    /// Gives the sockets up; nothing may be received into any more.
    pub(super) fn close(&self, wire: &mut Wire) -> io::Result<()> {
        self.flows.iter().try_for_each(|flow| wire.cancel(flow.socket.as_fd()))
    }
}

impl Flow {
    fn hear(&self, wire: &mut Wire, number: usize) -> io::Result<()> {
        wire.start(What::Flow, number, |ring, token| ring.receive_datagrams(self.socket.as_fd(), token))
    }
}

fn flow_of(tag: u64) -> usize {
    (tag >> FLOW_SHIFT) as usize
}

/// What is sent, and comes back as it is.
fn header(tag: u64, filler_bytes: u32) -> Header {
    Header { kind: Kind::Answer, tag, filler_bytes, answer_filler_bytes: filler_bytes }
}
