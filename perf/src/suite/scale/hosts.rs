//! Both ends of connections without a kernel: clients that open them, speak and close, and the server that they are with.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use towpath_core::flow::Direction;
use towpath_core::packet::{Arp, ArpOperation, Family, Ip, Mac, Parsed, TcpFlags, Tuple};
use towpath_core::random::mix;

use super::RETRY_AFTER;
use crate::crowd;
use crate::message::Filler;
use crate::segment::{HEADERS_LEN_MAX, Segment, flags};

/// Octets that it passes, there and back.
pub(super) const PAYLOAD_BYTES: usize = 64;

/// How often the server answers a SYN before it forgets it.
pub(super) const ANSWERS_MAX: u8 = 4;

/// A client's next connection begins so many numbers later.
const TURN_SHIFT: u32 = 24;

/// The peers' sides.
pub(super) const CLIENT: u8 = 0;
pub(super) const SERVER: u8 = 1;

pub(super) const FRAME_BYTES_MAX: usize = HEADERS_LEN_MAX + PAYLOAD_BYTES;

/// What is asked of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Close,
    Open,
    Speak,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// Under way.
    Asked(Step),
    Closed,
    #[default]
    New,
    Open,
    Refused,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Connection {
    /// Next sequence number of the server.
    pub(super) server_next: u32,
    pub(super) state: State,
    pub(super) has_spoken: bool,
    /// Connections that the client has had before this one.
    pub(super) turn: u8,
}

/// A frame to send.
pub(super) struct Answer {
    pub(super) side: u8,
    pub(super) length: usize,
    pub(super) bytes: [u8; FRAME_BYTES_MAX],
}

pub(super) struct Clients {
    pub(super) vip: SocketAddr,
    /// Behind which they are.
    pub(super) gateway: Ip,
    /// What closes a connection acknowledges the answer that it had.
    pub(super) closes_at_once: bool,
    pub(super) from_mac: Mac,
    pub(super) to_mac: Mac,
    pub(super) connections: Vec<Connection>,
    /// Those that have made their step, or were refused, since the last look.
    pub(super) finished: Vec<usize>,
    pub(super) wrong: Option<String>,
}

impl Clients {
    pub(super) fn ask(&mut self, number: usize, step: Step) -> Answer {
        let connection = &mut self.connections[number];
        connection.state = State::Asked(step);
        let seq = own_next(number, connection);
        let server_next = connection.server_next;
        match step {
            Step::Close => self.segment(number, seq, server_next, &[TcpFlags::FIN, TcpFlags::ACK], &[]),
            Step::Open => self.segment(number, seq.wrapping_sub(1), 0, &[TcpFlags::SYN], &[]),
            Step::Speak => self.segment(number, seq, server_next, &[TcpFlags::PSH, TcpFlags::ACK], data(number)),
        }
    }

    /// The client's next connection is to be asked for.
    pub(super) fn renew(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        *connection = Connection { turn: connection.turn.wrapping_add(1), ..Connection::default() };
    }

    pub(super) fn answer_arp(&self, question: &Arp) -> Option<Answer> {
        Answer::to_arp(CLIENT, question, self.gateway, self.from_mac)
    }

    pub(super) fn segment(&self, number: usize, seq: u32, ack: u32, set: &[TcpFlags], payload: &[u8]) -> Answer {
        let (from, to) = (crowd::client(Family::V4, number), self.vip);
        let (from_mac, to_mac) = (self.from_mac, self.to_mac);
        Answer::of(CLIENT, &Segment { from_mac, to_mac, from, to, seq, ack, flags: flags(set), payload })
    }

    /// What a client says to a segment, if anything.
    pub(super) fn hear(&mut self, parsed: &Parsed, payload: &[u8]) -> Option<Answer> {
        let Tuple { src, dst, src_port, dst_port, .. } = parsed.tuple;
        if (src, src_port) != (Ip::from(self.vip.ip()), self.vip.port()) {
            return None;
        }
        let number = crowd::number_v4(dst, dst_port).filter(|&number| number < self.connections.len())?;
        let connection = &mut self.connections[number];
        let tcp = &parsed.tcp;
        let before = *connection;
        let next = own_next(number, connection);
        let is_next = tcp.seq == connection.server_next;
        let has = |flag| tcp.flags.contains(flag);
        let end = tcp.seq.wrapping_add(payload.len() as u32 + u32::from(has(TcpFlags::FIN)));
        // What this segment must look like to be the answer to the step.
        match connection.state {
            // Given up: this comes too late, and whoever holds half a connection is told (RFC 9293 section 3.10.7.1).
            State::Refused if has(TcpFlags::SYN) => {
                return Some(self.segment(number, tcp.ack, 0, &[TcpFlags::RST], &[]));
            }
            State::Refused => return None,
            State::Asked(Step::Open) if has(TcpFlags::RST) => connection.state = State::Refused,
            State::Asked(Step::Open) if has(TcpFlags::SYN) && tcp.ack == next => {
                connection.server_next = tcp.seq.wrapping_add(1);
                connection.state = State::Open;
            }
            State::Asked(Step::Speak)
                if is_next && payload == data(number) && tcp.ack == next.wrapping_add(payload.len() as u32) =>
            {
                connection.server_next = end;
                connection.has_spoken = true;
                connection.state = State::Open;
            }
            State::Asked(Step::Close) if is_next && has(TcpFlags::FIN) && tcp.ack == next.wrapping_add(1) => {
                connection.server_next = end;
                connection.state = State::Closed;
            }
            // The answer to a step that was asked for twice.
            _ if has(TcpFlags::SYN) && tcp.seq.wrapping_add(1) == connection.server_next => {}
            _ if !has(TcpFlags::RST) && !has(TcpFlags::SYN) && end == connection.server_next => {}
            state => {
                self.wrong.get_or_insert_with(|| {
                    format!("connection {number} ({state:?}) was sent {tcp:?} with {} octets", payload.len())
                });
                return None;
            }
        }
        let now = *connection;
        if now.state != before.state {
            self.finished.push(number);
        }
        // An acknowledgment is owed for whatever takes a sequence number.
        let takes_number = has(TcpFlags::SYN) || has(TcpFlags::FIN) || !payload.is_empty() && !self.closes_at_once;
        let is_owed = now.state != State::Refused && takes_number;
        let seq = own_next(number, &now).wrapping_add(u32::from(now.state == State::Closed));
        is_owed.then(|| self.segment(number, seq, now.server_next, &[TcpFlags::ACK], &[]))
    }
}

/// Next sequence number of a client that has not finished.
fn own_next(number: usize, connection: &Connection) -> u32 {
    let spoken = if connection.has_spoken { PAYLOAD_BYTES as u32 } else { 0 };
    // Behind all numbers of the connection before (RFC 9293 section 3.4.3).
    let first = crowd::first_number(number, Direction::Forward).wrapping_add(u32::from(connection.turn) << TURN_SHIFT);
    first.wrapping_add(1 + spoken)
}

/// What a connection passes.
fn data(number: usize) -> &'static [u8] {
    Filler::of(number as u64).window(PAYLOAD_BYTES)
}

/// A server that remembers nothing of a connection but its source: what it says follows from what it hears.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) from_mac: Mac,
    pub(super) to_mac: Mac,
    pub(super) sources: Sources,
    /// Whose handshake may not be complete, in the order of the last answer to it.
    pub(super) unacked: VecDeque<Unacked>,
    /// Answers to a SYN that were sent again.
    pub(super) repeated: usize,
    pub(super) wrong: Option<String>,
}

/// A connection that has been answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unacked {
    pub(super) ip: Ip,
    pub(super) port: u16,
    pub(super) first: u32,
    pub(super) last: Instant,
    pub(super) tries: u8,
}

impl Server {
    pub(super) fn answer_arp(&self, question: &Arp) -> Option<Answer> {
        Answer::to_arp(SERVER, question, self.address.ip().into(), self.from_mac)
    }

    /// What it says to a segment, if anything.
    pub(super) fn hear(&mut self, parsed: &Parsed, payload: &[u8], now: Instant) -> Option<Answer> {
        let Tuple { src, dst, src_port, dst_port, .. } = parsed.tuple;
        if (dst, dst_port) != (Ip::from(self.address.ip()), self.address.port()) {
            return None;
        }
        let tcp = &parsed.tcp;
        let has = |flag| tcp.flags.contains(flag);
        let from = SocketAddr::new(src.into(), src_port);
        let next =
            tcp.seq.wrapping_add(payload.len() as u32 + u32::from(has(TcpFlags::SYN)) + u32::from(has(TcpFlags::FIN)));
        if !has(TcpFlags::SYN) {
            self.sources.acknowledge(src, src_port);
        }
        let (seq, set): (u32, &[TcpFlags]) = if has(TcpFlags::RST) {
            self.sources.leave(src, src_port);
            return None;
        } else if has(TcpFlags::SYN) {
            match self.sources.take(src, src_port, tcp.seq) {
                Ok(true) => {
                    let answered = Unacked { ip: src, port: src_port, first: tcp.seq, last: now, tries: 1 };
                    self.unacked.push_back(answered);
                }
                Ok(false) => {}
                Err(taken) => {
                    self.wrong.get_or_insert(format!("a connection from {from}: {taken}"));
                }
            }
            (first_of_server(from), &[TcpFlags::SYN, TcpFlags::ACK])
        } else if has(TcpFlags::FIN) {
            self.sources.leave(src, src_port);
            (tcp.ack, &[TcpFlags::FIN, TcpFlags::ACK])
        } else if !payload.is_empty() {
            (tcp.ack, &[TcpFlags::PSH, TcpFlags::ACK])
        } else {
            return None;
        };
        (payload.len() <= PAYLOAD_BYTES).then(|| self.segment(from, seq, next, set, payload))
    }

    /// The answer to a SYN once more, where its acknowledgment is late: it may have been lost on the way (RFC 6298 section 5).
    pub(super) fn repeat(&mut self, now: Instant) -> Option<Answer> {
        loop {
            let &oldest = self.unacked.front()?;
            let Unacked { ip, port, first, last, tries } = oldest;
            let is_late = self.sources.lacks_acknowledgment(ip, port, first);
            if is_late && now - last < RETRY_AFTER {
                return None;
            }
            self.unacked.pop_front();
            if is_late && tries == ANSWERS_MAX {
                self.sources.leave(ip, port);
            } else if is_late {
                self.repeated += 1;
                self.unacked.push_back(Unacked { last: now, tries: tries + 1, ..oldest });
                let to = SocketAddr::new(ip.into(), port);
                let set = [TcpFlags::SYN, TcpFlags::ACK];
                return Some(self.segment(to, first_of_server(to), first.wrapping_add(1), &set, &[]));
            }
        }
    }

    pub(super) fn segment(&self, to: SocketAddr, seq: u32, ack: u32, set: &[TcpFlags], payload: &[u8]) -> Answer {
        let (from_mac, to_mac) = (self.from_mac, self.to_mac);
        let segment = Segment { from_mac, to_mac, from: self.address, to, seq, ack, flags: flags(set), payload };
        Answer::of(SERVER, &segment)
    }
}

fn first_of_server(source: SocketAddr) -> u32 {
    let ip: u64 = match source.ip() {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits() as u64,
    };
    mix(ip << 16 | u64::from(source.port())) as u32
}

/// Who has which source address and port, so that one that two connections have shows.
pub(super) struct Sources {
    pub(super) pool: Vec<Ip>,
    /// Whoever has it, for each port of each address.
    pub(super) taken: Vec<Option<Source>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// First sequence number of the connection.
    pub(super) first: u32,
    pub(super) is_acknowledged: bool,
}

impl Sources {
    pub(super) fn of(pool: Vec<Ip>) -> Sources {
        Sources { taken: vec![None; pool.len() << 16], pool }
    }

    pub(super) fn place(&mut self, ip: Ip, port: u16) -> Option<&mut Option<Source>> {
        let address = self.pool.iter().position(|known| *known == ip)?;
        self.taken.get_mut(address << 16 | usize::from(port))
    }

    /// Whether it is a new connection that has it.
    pub(super) fn take(&mut self, ip: Ip, port: u16, first: u32) -> Result<bool, &'static str> {
        match self.place(ip, port).ok_or("not an address of the pool")? {
            Some(other) if other.first == first => Ok(false),
            Some(_) => Err("another one has this source port"),
            place => {
                *place = Some(Source { first, is_acknowledged: false });
                Ok(true)
            }
        }
    }

    pub(super) fn acknowledge(&mut self, ip: Ip, port: u16) {
        if let Some(Some(source)) = self.place(ip, port) {
            source.is_acknowledged = true;
        }
    }

    pub(super) fn lacks_acknowledgment(&mut self, ip: Ip, port: u16, first: u32) -> bool {
        matches!(self.place(ip, port), Some(Some(source)) if source.first == first && !source.is_acknowledged)
    }

    pub(super) fn leave(&mut self, ip: Ip, port: u16) {
        if let Some(place) = self.place(ip, port) {
            *place = None;
        }
    }
}

impl Answer {
    pub(super) fn of(side: u8, segment: &Segment<'_>) -> Answer {
        let mut bytes = [0; FRAME_BYTES_MAX];
        Answer { side, length: segment.write(&mut bytes), bytes }
    }

    /// That `own` is at `mac` (RFC 826), if it was asked for.
    pub(super) fn to_arp(side: u8, question: &Arp, own: Ip, mac: Mac) -> Option<Answer> {
        if question.operation != ArpOperation::Request || question.target != own {
            return None;
        }
        let mut bytes = [0; FRAME_BYTES_MAX];
        let fields: [&[u8]; 7] = [
            &question.sender_mac.0,
            &mac.0,
            // ARP over Ethernet about IPv4: a reply.
            &[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 2],
            &mac.0,
            &question.target.v4_octets(),
            &question.sender_mac.0,
            &question.sender.v4_octets(),
        ];
        let mut length = 0;
        for field in fields {
            bytes[length..length + field.len()].copy_from_slice(field);
            length += field.len();
        }
        Some(Answer { side, length, bytes })
    }
}
