//! Sessions against a simulated kernel: no sockets, every order of completions that a seed can draw.

use std::collections::VecDeque;

use towpath_core::Now;
use towpath_core::counters::Termination;
use towpath_core::session::{Chunk, Chunks, Event, Op, PumpStop, ReceiveEnd, Room, Session, Side};

const BUFFER_BYTES: u32 = 64;
const PIPE_BYTES: usize = 1 << 18;
const CONNECT_MS: u64 = 4_000;
const IDLE_MS: u64 = 1_800_000;

/// One leg as the kernel sees it: what the peer will send, what it has got, what is in flight.
#[derive(Default)]
struct Leg {
    /// Bytes that the peer has sent and nobody has received.
    inbound: VecDeque<u8>,
    fin: bool,
    reset: bool,
    /// What reached the peer.
    delivered: Vec<u8>,
    finished_by_us: bool,
    /// Bytes that the peer takes before it stalls.
    window: usize,
    receive: Option<Receive>,
    send: Option<(Chunk, bool)>,
    /// Bytes that were sent wait for a FIN.
    held_back: bool,
    acknowledged: usize,
    cancelled: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Receive {
    /// Takes one buffer.
    Once,
    /// Takes one buffer after the other.
    Many,
    /// One that takes many, asked to stop; what is there already still comes.
    ManyCancelled,
    Cancelled,
}

#[derive(Clone, Copy, PartialEq)]
enum Wait {
    Readable,
    Writable,
}

/// Something that can happen next.
type Happening = Box<dyn FnOnce(&mut World)>;

struct World {
    session: Session,
    chunks: Chunks,
    free: Vec<u16>,
    contents: Vec<Vec<u8>>,
    legs: [Leg; 2],
    pipes: [VecDeque<u8>; 2],
    waits: [Option<Wait>; 2],
    wait_cancelled: [bool; 2],
    later: Vec<Side>,
    starved: Vec<Side>,
    connecting: bool,
    redispatches: Vec<bool>,
    closed: Option<(Termination, bool, bool)>,
    now: Now,
    room: Room,
    /// Some receives take one buffer after the other.
    multishot: bool,
    random: u64,
    buffers: usize,
    held_max: usize,
    pumps: usize,
    pipes_free: bool,
}

/// Whether we ended the session, and whatever was under way with it.
fn forced(termination: Termination) -> bool {
    !matches!(termination, Termination::ClientReset | Termination::ServerReset)
}

fn index(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Server => 1,
    }
}

impl World {
    fn new(seed: u64, buffers: usize) -> World {
        let mut world = World {
            session: Session::connecting(Now(0), CONNECT_MS, IDLE_MS),
            chunks: Chunks::new(buffers),
            free: (0..buffers as u16).collect(),
            contents: vec![Vec::new(); buffers],
            legs: [Leg { window: usize::MAX, ..Leg::default() }, Leg { window: usize::MAX, ..Leg::default() }],
            pipes: Default::default(),
            waits: [None; 2],
            wait_cancelled: [false; 2],
            later: Vec::new(),
            starved: Vec::new(),
            connecting: true,
            redispatches: Vec::new(),
            closed: None,
            now: Now(0),
            room: Room::Ample,
            multishot: true,
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            buffers,
            held_max: 0,
            pumps: 0,
            pipes_free: true,
        };
        world.on(Event::Connecting);
        world
    }

    fn connected(seed: u64) -> World {
        let mut world = World::new(seed, 64);
        world.connecting = false;
        world.on(Event::Connected);
        world
    }

    fn draw(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below as u64) as usize
    }

    fn leg(&mut self, side: Side) -> &mut Leg {
        &mut self.legs[index(side)]
    }

    fn on(&mut self, event: Event) {
        let mut ops = Vec::new();
        self.tell(event, &mut ops);
        let mut done = 0;
        while done < ops.len() {
            let op = ops[done];
            done += 1;
            self.execute(op, &mut ops);
        }
        self.held_max = self.held_max.max(self.buffers - self.free.len());
    }

    fn tell(&mut self, event: Event, ops: &mut Vec<Op>) {
        assert!(self.closed.is_none(), "{event:?} after the close");
        self.session.on(event, self.now, self.room, &mut self.chunks, ops);
    }

    fn execute(&mut self, op: Op, ops: &mut Vec<Op>) {
        assert!(self.closed.is_none(), "{op:?} after the close");
        match op {
            Op::AcknowledgeNow(side) => self.leg(side).acknowledged += 1,
            Op::AwaitBuffers(from) => self.starved.push(from),
            Op::AwaitMore(from) | Op::AwaitReadable(from) => self.waits[index(from)] = Some(Wait::Readable),
            Op::AwaitWritable(to) => self.waits[index(to.other())] = Some(Wait::Writable),
            Op::CancelAll(side) => {
                if side == Side::Server && self.connecting {
                    self.leg(side).cancelled = true;
                }
                let leg = self.leg(side);
                leg.cancelled = true;
                if leg.receive.is_some() {
                    leg.receive = Some(Receive::Cancelled);
                }
                for from in Side::BOTH {
                    let waits_on = match self.waits[index(from)] {
                        Some(Wait::Readable) => Some(from),
                        Some(Wait::Writable) => Some(from.other()),
                        None => None,
                    };
                    if waits_on == Some(side) {
                        self.wait_cancelled[index(from)] = true;
                    }
                }
            }
            Op::CancelAwait(from) => self.wait_cancelled[index(from)] = self.waits[index(from)].is_some(),
            Op::CancelReceive(side) => {
                let leg = self.leg(side);
                leg.receive = match leg.receive {
                    Some(Receive::Many) => Some(Receive::ManyCancelled),
                    Some(_) => Some(Receive::Cancelled),
                    None => panic!("cancels a receive that is not there"),
                };
            }
            Op::Close { termination, reset, rest } => {
                for side in Side::BOTH {
                    let leg = self.leg(side);
                    assert!(leg.receive.is_none() && leg.send.is_none(), "closed with an operation in flight");
                    assert!(!(reset && leg.held_back) || leg.reset || forced(termination), "bytes are lost");
                    leg.held_back = false;
                }
                assert!(!self.connecting && self.waits == [None; 2] && self.later.is_empty());
                self.closed = Some((termination, reset, rest));
            }
            Op::FinishWriting(side) => {
                let leg = self.leg(side);
                assert!(!leg.finished_by_us, "a second FIN");
                assert!(leg.send.is_none(), "a FIN before the last byte");
                leg.finished_by_us = true;
                leg.held_back = false;
            }
            Op::Pump(from) => self.pump(from, ops),
            Op::PumpLater(from) => self.later.push(from),
            Op::Receive(from) => self.receive(from),
            Op::Recycle(buffer) => {
                assert!(!self.free.contains(&buffer), "buffer {buffer} given back twice");
                self.free.push(buffer);
            }
            Op::Redispatch { timed_out } => self.redispatches.push(timed_out),
            Op::Send { to, chunk, last } => {
                assert!(!self.connecting, "bytes for a leg that is not there");
                let leg = self.leg(to);
                assert!(leg.send.is_none(), "two sends in flight on one leg");
                assert!(!leg.finished_by_us, "bytes after our FIN");
                assert!(!leg.held_back, "bytes after the last ones");
                leg.send = Some((chunk, last));
            }
        }
    }

    fn receive(&mut self, from: Side) {
        let leg = self.leg(from);
        assert!(leg.receive.is_none(), "two receives in flight on one leg");
        leg.receive = Some(Receive::Once);
        if self.multishot && self.draw(2) == 0 {
            self.leg(from).receive = Some(Receive::Many);
        }
    }

    fn pump(&mut self, from: Side, ops: &mut Vec<Op>) {
        self.pumps += 1;
        let at = index(from);
        assert!(self.legs[at].receive.is_none(), "pumps under a receive");
        if !self.pipes_free {
            return self.tell(Event::Pumped { from, bytes: 0, stop: PumpStop::NoPipe }, ops);
        }
        let mut delivered = 0;
        let stop = loop {
            let room = PIPE_BYTES - self.pipes[at].len();
            let source = &mut self.legs[at];
            let take = source.inbound.len().min(room).min(1 << 16);
            self.pipes[at].extend(source.inbound.drain(..take));
            let (empty, fin, reset) = (source.inbound.is_empty(), source.fin, source.reset);
            let sink = &mut self.legs[1 - at];
            if sink.reset {
                break PumpStop::SinkFailed;
            }
            let pass = self.pipes[at].len().min(sink.window);
            sink.window -= pass;
            sink.delivered.extend(self.pipes[at].drain(..pass));
            delivered += pass as u64;
            if !self.pipes[at].is_empty() {
                break PumpStop::SinkFull;
            }
            if reset {
                break PumpStop::SourceFailed;
            }
            if empty {
                break if fin { PumpStop::Fin } else { PumpStop::SourceEmpty };
            }
        };
        self.tell(Event::Pumped { from, bytes: delivered, stop }, ops);
    }

    /// Lets one thing happen that can; says whether there was any.
    fn step(&mut self) -> bool {
        let mut possible: Vec<Happening> = Vec::new();
        for side in Side::BOTH {
            let leg = &self.legs[index(side)];
            let incoming = !leg.inbound.is_empty() || leg.fin || leg.reset;
            match leg.receive {
                Some(Receive::Cancelled | Receive::ManyCancelled) => {
                    possible.push(Box::new(move |world| {
                        world.leg(side).receive = None;
                        world.on(Event::ReceiveEnded { from: side, end: ReceiveEnd::Cancelled });
                    }));
                    if leg.receive == Some(Receive::ManyCancelled) && incoming {
                        possible.push(Box::new(move |world| world.complete_receive(side)));
                    }
                }
                Some(Receive::Once | Receive::Many) if incoming => {
                    possible.push(Box::new(move |world| world.complete_receive(side)));
                    if leg.receive == Some(Receive::Many) {
                        possible.push(Box::new(move |world| world.on(Event::GrantLost(side))));
                    }
                }
                _ => {}
            }
            if leg.send.is_some() && (leg.window > 0 || leg.reset || leg.cancelled) {
                possible.push(Box::new(move |world| world.complete_send(side)));
            }
            let ready = match self.waits[index(side)] {
                Some(Wait::Readable) => incoming,
                Some(Wait::Writable) => {
                    let sink = &self.legs[1 - index(side)];
                    sink.window > 0 || sink.reset
                }
                None => false,
            };
            if self.waits[index(side)] == Some(Wait::Readable) && !self.wait_cancelled[index(side)] {
                possible.push(Box::new(move |world| world.on(Event::GatherLost(side))));
            }
            if ready || (self.waits[index(side)].is_some() && self.wait_cancelled[index(side)]) {
                possible.push(Box::new(move |world| {
                    world.waits[index(side)] = None;
                    world.wait_cancelled[index(side)] = false;
                    world.on(Event::Ready { from: side });
                }));
            }
        }
        if self.connecting && self.legs[1].cancelled {
            possible.push(Box::new(|world| {
                world.connecting = false;
                world.legs[1].cancelled = false;
                world.on(Event::ConnectFailed);
            }));
        }
        if !self.later.is_empty() {
            possible.push(Box::new(|world| {
                let from = world.later.remove(0);
                let mut ops = Vec::new();
                world.pump(from, &mut ops);
                let mut done = 0;
                while done < ops.len() {
                    let op = ops[done];
                    done += 1;
                    world.execute(op, &mut ops);
                }
            }));
        }
        if !self.starved.is_empty() && !self.free.is_empty() {
            possible.push(Box::new(|world| {
                let from = world.starved.remove(0);
                world.on(Event::BuffersFree(from));
            }));
        }
        if possible.is_empty() {
            return false;
        }
        let chosen = self.draw(possible.len());
        possible.swap_remove(chosen)(self);
        true
    }

    fn complete_receive(&mut self, side: Side) {
        let leg = &mut self.legs[index(side)];
        if leg.inbound.is_empty() || leg.reset {
            let end = if leg.reset { ReceiveEnd::Failed } else { ReceiveEnd::Fin };
            leg.receive = None;
            return self.on(Event::ReceiveEnded { from: side, end });
        }
        let Some(buffer) = self.free.pop() else {
            leg.receive = None;
            return self.on(Event::ReceiveEnded { from: side, end: ReceiveEnd::NoBuffers });
        };
        let limit = 1 + self.draw(BUFFER_BYTES as usize * 2);
        let leg = &mut self.legs[index(side)];
        let len = leg.inbound.len().min(BUFFER_BYTES as usize).min(limit);
        self.contents[usize::from(buffer)] = leg.inbound.drain(..len).collect();
        let last = leg.inbound.is_empty() && leg.fin && self.draw(2) == 0;
        let leg = &mut self.legs[index(side)];
        let more = leg.receive != Some(Receive::Once) && !last;
        if !more {
            leg.receive = None;
        }
        self.on(Event::Received { from: side, buffer, len: len as u32, full: len as u32 == BUFFER_BYTES, more, last });
    }

    fn complete_send(&mut self, to: Side) {
        let limit = 1 + self.draw(BUFFER_BYTES as usize * 2);
        let leg = &mut self.legs[index(to)];
        let (chunk, last) = leg.send.take().expect("checked by the caller");
        if leg.reset || (leg.cancelled && leg.window == 0) {
            return self.on(Event::SendFailed { to });
        }
        let bytes = (chunk.len as usize).min(leg.window).min(limit);
        leg.window -= bytes;
        leg.held_back = last && bytes == chunk.len as usize;
        let content = &self.contents[usize::from(chunk.buffer)];
        leg.delivered.extend(&content[chunk.start as usize..chunk.start as usize + bytes]);
        self.on(Event::Sent { to, bytes: bytes as u32 });
    }

    /// Lets things happen until nothing can any more.
    fn settle(&mut self) {
        for _ in 0..1_000_000 {
            if self.closed.is_some() || !self.step() {
                assert!(self.legs.iter().all(|leg| !leg.held_back), "bytes are held back without end");
                return;
            }
        }
        panic!("never comes to rest");
    }

    fn peer_sends(&mut self, side: Side, bytes: &[u8]) {
        self.leg(side).inbound.extend(bytes);
    }

    fn tick_at(&mut self, now: Now) {
        self.now = now;
        self.on(Event::Tick);
        self.settle();
    }

    fn assert_nothing_held(&self) {
        assert_eq!(self.free.len(), self.buffers, "buffers are lost");
    }
}

fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ salt).collect()
}

#[test]
fn bytes_pass_both_ways_in_order_whatever_the_order_of_completions() {
    for seed in 1..=400 {
        let mut world = World::connected(seed);
        let lens = [world.draw(40_000), world.draw(40_000)];
        for (side, len) in Side::BOTH.into_iter().zip(lens) {
            world.peer_sends(side, &pattern(len, seed as u8));
            world.leg(side).window = world.draw(3_000);
        }
        let fins = [world.draw(2) == 0, true];
        while world.closed.is_none() {
            for side in Side::BOTH {
                world.leg(side).window += world.draw(5_000);
                let all_out = world.leg(side).inbound.is_empty();
                if all_out && (fins[index(side)] || world.leg(side).finished_by_us) {
                    world.leg(side).fin = true;
                }
            }
            for _ in 0..world.draw(200) {
                if world.closed.is_some() || !world.step() {
                    break;
                }
            }
        }
        assert_eq!(world.legs[1].delivered, pattern(lens[0], seed as u8), "seed {seed}");
        assert_eq!(world.legs[0].delivered, pattern(lens[1], seed as u8), "seed {seed}");
        let (termination, reset, _) = world.closed.expect("closed");
        assert!(matches!(termination, Termination::ClientClosed | Termination::ServerClosed), "seed {seed}");
        assert!(!reset);
        world.assert_nothing_held();
    }
}

#[test]
fn what_a_client_sends_while_the_server_is_dialled_arrives_once_it_is_there() {
    for seed in 1..=100 {
        let mut world = World::new(seed, 64);
        let len = world.draw(10_000);
        world.peer_sends(Side::Client, &pattern(len, 5));
        world.leg(Side::Client).fin = world.draw(2) == 0;
        world.settle();
        assert!(world.held_max <= 64 / 2, "{} buffers held", world.held_max);
        if world.draw(2) == 0 {
            world.on(Event::ConnectFailed);
            world.session.redispatched(world.now);
            world.settle();
        }
        world.connecting = false;
        world.on(Event::Connected);
        world.settle();
        assert_eq!(world.leg(Side::Server).delivered, pattern(len, 5), "seed {seed}");
        assert_eq!(world.legs[1].finished_by_us, world.legs[0].fin, "seed {seed}");
        assert_eq!(world.leg(Side::Server).acknowledged, usize::from(len == 0), "the request carries it");
        world.leg(Side::Client).fin = true;
        world.leg(Side::Server).fin = true;
        world.settle();
        assert!(world.closed.is_some());
        world.assert_nothing_held();
    }
}

#[test]
fn a_client_that_goes_away_while_the_server_is_dialled_ends_the_session() {
    let mut world = World::new(1, 8);
    world.peer_sends(Side::Client, b"request");
    world.settle();
    world.leg(Side::Client).reset = true;
    world.settle();
    assert_eq!(world.closed, Some((Termination::ClientReset, true, false)));
    world.assert_nothing_held();
}

#[test]
fn a_connect_that_cannot_be_tried_again_ends_the_session_with_its_receive() {
    let mut world = World::new(1, 8);
    world.connecting = false;
    world.on(Event::ConnectGivenUp(Termination::OutOfSourcePorts));
    world.settle();
    assert_eq!(world.closed, Some((Termination::OutOfSourcePorts, true, false)));
}

#[test]
fn acknowledgements_are_held_back_for_eight_milliseconds_only() {
    let mut world = World::connected(1);
    assert_eq!(world.leg(Side::Server).acknowledged, 1, "a server that speaks first does not wait for the handshake");
    assert_eq!(world.session.deadline(), Some(Now(8)));
    world.tick_at(Now(7));
    assert_eq!(world.leg(Side::Client).acknowledged, 0);
    world.tick_at(Now(8));
    assert_eq!([world.legs[0].acknowledged, world.legs[1].acknowledged], [1, 2]);
    assert_eq!(world.session.deadline(), Some(Now(IDLE_MS)));
    world.tick_at(Now(16));
    assert_eq!(world.leg(Side::Client).acknowledged, 1, "once");
}

#[test]
fn a_failure_towards_the_server_does_not_take_its_last_bytes_to_the_client() {
    // An upload that the server refuses: it answers, ends its stream, and resets what still comes.
    for server_ends_first in [true, false] {
        let mut world = World::connected(1);
        world.multishot = false;
        world.peer_sends(Side::Client, b"upload");
        world.complete_receive(Side::Client);
        let failed = |world: &mut World| {
            world.leg(Side::Server).send = None;
            world.on(Event::SendFailed { to: Side::Server });
        };
        if !server_ends_first {
            failed(&mut world);
        }
        let buffer = world.free.pop().expect("a free buffer");
        world.contents[usize::from(buffer)] = b"413".to_vec();
        world.leg(Side::Server).receive = None;
        world.on(Event::Received { from: Side::Server, buffer, len: 3, full: false, more: false, last: true });
        if server_ends_first {
            failed(&mut world);
        }
        world.leg(Side::Client).fin = true;
        world.settle();
        assert_eq!(world.leg(Side::Client).delivered, b"413");
        assert_eq!(
            world.leg(Side::Client).finished_by_us,
            server_ends_first,
            "only a stream that ended well has an end"
        );
        assert_eq!(world.closed, Some((Termination::ServerReset, true, false)));
        world.assert_nothing_held();
    }
}

#[test]
fn a_stream_that_is_cut_off_is_delivered_but_does_not_end() {
    for (side, end, termination) in [
        (Side::Client, ReceiveEnd::Truncated, Termination::ClientTruncated),
        (Side::Server, ReceiveEnd::Truncated, Termination::ServerTruncated),
        (Side::Client, ReceiveEnd::Damaged, Termination::TlsBroken),
        (Side::Server, ReceiveEnd::Damaged, Termination::TlsBroken),
    ] {
        let mut world = World::connected(3);
        world.multishot = false;
        world.peer_sends(side, b"and then");
        world.complete_receive(side);
        world.leg(side).receive = None;
        world.on(Event::ReceiveEnded { from: side, end });
        world.settle();
        assert_eq!(world.leg(side.other()).delivered, b"and then");
        assert!(!world.leg(side.other()).finished_by_us, "no orderly end");
        assert_eq!(world.closed, Some((termination, true, false)));
        world.assert_nothing_held();
    }
}

#[test]
fn half_close_is_carried_through_and_the_other_direction_stays_open() {
    for first in Side::BOTH {
        let mut world = World::connected(7);
        world.peer_sends(first, b"request");
        world.leg(first).fin = true;
        world.settle();
        assert!(world.leg(first.other()).finished_by_us, "the FIN is passed on");
        assert!(!world.leg(first).finished_by_us);
        assert_eq!(world.leg(first.other()).delivered, b"request");
        world.peer_sends(first.other(), b"answer after the half-close");
        world.settle();
        assert_eq!(world.leg(first).delivered, b"answer after the half-close");
        assert!(world.closed.is_none());
        world.leg(first.other()).fin = true;
        world.settle();
        let expected = match first {
            Side::Client => (Termination::ClientClosed, false, true),
            Side::Server => (Termination::ServerClosed, false, false),
        };
        assert_eq!(world.closed, Some(expected), "only when we sent the first FIN to the server must the port rest");
    }
}

#[test]
fn a_slow_peer_stops_its_sender_within_a_few_buffers() {
    for (room, held_max) in [(Room::Ample, 4), (Room::Scarce, 1)] {
        let mut world = World::new(3, 64);
        world.room = room;
        // One that takes many fills a few more before it hears the cancel; how many such there are is bounded elsewhere.
        world.multishot = false;
        world.connecting = false;
        world.leg(Side::Client).window = 0;
        world.on(Event::Connected);
        world.peer_sends(Side::Server, &pattern(100_000, 1));
        world.settle();
        assert!(world.held_max <= held_max, "{} buffers held with {room:?}", world.held_max);
        assert!(!world.leg(Side::Server).inbound.is_empty(), "the sender is not read any further");
    }
}

#[test]
fn an_idle_session_holds_no_buffer() {
    let mut world = World::connected(5);
    world.peer_sends(Side::Client, b"ping");
    world.settle();
    assert_eq!(world.leg(Side::Server).delivered, b"ping");
    world.assert_nothing_held();
}

#[test]
fn much_data_is_pumped_and_a_trickle_goes_back_to_buffers() {
    let mut world = World::connected(9);
    world.peer_sends(Side::Server, &pattern(1 << 20, 2));
    world.settle();
    assert_eq!(world.leg(Side::Client).delivered, pattern(1 << 20, 2));
    assert!(world.pumps > 0, "a megabyte is pumped");
    world.assert_nothing_held();
    for _ in 0..20 {
        world.peer_sends(Side::Server, b"x");
        world.settle();
    }
    let pumps = world.pumps;
    world.peer_sends(Side::Server, b"y");
    world.settle();
    assert_eq!(world.pumps, pumps, "single bytes are not");
    assert_eq!(world.leg(Side::Client).delivered.last(), Some(&b'y'));
}

#[test]
fn a_path_that_finds_no_pipe_asks_more_and_more_rarely() {
    let mut world = World::connected(9);
    world.pipes_free = false;
    let attempts: Vec<usize> = (0..5)
        .map(|_| {
            let before = world.pumps;
            world.peer_sends(Side::Server, &pattern(1 << 20, 2));
            world.settle();
            world.pumps - before
        })
        .collect();
    assert!(attempts[0] > 0 && attempts.iter().sum::<usize>() <= 4, "{attempts:?}");
    world.pipes_free = true;
    world.peer_sends(Side::Server, &pattern(8 << 20, 2));
    world.settle();
    assert_eq!(world.leg(Side::Client).delivered.len(), 13 << 20);
    assert!(world.pumps > attempts.iter().sum(), "a free pipe is found in the end");
    world.assert_nothing_held();
}

#[test]
fn running_out_of_buffers_delays_and_loses_nothing() {
    let mut world = World::new(11, 2);
    world.connecting = false;
    world.on(Event::Connected);
    world.peer_sends(Side::Client, &pattern(5_000, 3));
    world.peer_sends(Side::Server, &pattern(5_000, 4));
    world.settle();
    assert_eq!(world.leg(Side::Server).delivered, pattern(5_000, 3));
    assert_eq!(world.leg(Side::Client).delivered, pattern(5_000, 4));
    world.assert_nothing_held();
}

#[test]
fn a_reset_in_any_state_ends_as_a_reset_and_leaves_nothing_behind() {
    for seed in 1..=600 {
        let mut world = World::connected(seed);
        for side in Side::BOTH {
            let len = world.draw(30_000);
            world.peer_sends(side, &pattern(len, 6));
            world.leg(side).window = world.draw(20_000);
            world.leg(side).fin = world.draw(4) == 0;
        }
        for _ in 0..world.draw(300) {
            if world.closed.is_some() || !world.step() {
                break;
            }
        }
        if world.closed.is_some() {
            continue;
        }
        let by = if world.draw(2) == 0 { Side::Client } else { Side::Server };
        world.leg(by).reset = true;
        world.leg(by).inbound.clear();
        world.leg(by.other()).window = usize::MAX;
        world.settle();
        if world.closed.is_none() {
            // Nothing was being read from the dead leg: the next bytes towards it tell.
            world.peer_sends(by.other(), b"x");
            world.leg(by.other()).fin = true;
            world.settle();
        }
        let (termination, reset, rest) = world.closed.unwrap_or_else(|| panic!("seed {seed}: never closed"));
        let expected = if by == Side::Client { Termination::ClientReset } else { Termination::ServerReset };
        assert_eq!((termination, reset, rest), (expected, true, false), "seed {seed}");
        world.assert_nothing_held();
    }
}

#[test]
fn t_11_idle_for_29_59_lives_30_01_does_not_and_traffic_one_way_keeps_it_alive() {
    let minute = 60_000;
    let mut world = World::connected(1);
    world.tick_at(Now(29 * minute + 59_000));
    assert!(world.closed.is_none());
    assert_eq!(world.session.deadline(), Some(Now(IDLE_MS)));
    world.tick_at(Now(30 * minute + 1_000));
    assert_eq!(world.closed, Some((Termination::IdleTimedOut, false, true)));
    world.assert_nothing_held();

    for talker in Side::BOTH {
        let mut world = World::connected(2);
        for quarter in 1..=8 {
            world.now = Now(quarter * 15 * minute);
            world.on(Event::Tick);
            world.peer_sends(talker, b"keep-alive");
            world.settle();
            assert!(world.closed.is_none(), "{talker:?} talks");
        }
        world.tick_at(Now(8 * 15 * minute + IDLE_MS - 1));
        assert!(world.closed.is_none());
        world.tick_at(Now(8 * 15 * minute + IDLE_MS));
        assert!(world.closed.is_some());
    }
}

#[test]
fn a_silent_server_is_left_at_the_connect_timeout_and_another_one_is_tried() {
    let mut world = World::new(1, 4);
    world.tick_at(Now(CONNECT_MS - 1));
    assert_eq!(world.redispatches, []);
    world.tick_at(Now(CONNECT_MS));
    assert_eq!(world.redispatches, [true]);
    world.session.redispatched(world.now);
    world.connecting = true;
    assert_eq!(world.session.deadline(), Some(Now(2 * CONNECT_MS)));
    world.connecting = false;
    world.on(Event::ConnectFailed);
    assert_eq!(world.redispatches, [true, false]);
    world.on(Event::End(Termination::ConnectFailed));
    world.settle();
    assert_eq!(world.closed, Some((Termination::ConnectFailed, true, false)));
}

#[test]
fn a_forced_end_in_any_state_waits_for_its_operations_and_closes_once() {
    for seed in 1..=400 {
        let mut world = World::new(seed, 16);
        let up = world.draw(4) > 0;
        if up {
            world.connecting = false;
            world.on(Event::Connected);
            for side in Side::BOTH {
                let len = world.draw(20_000);
                world.peer_sends(side, &pattern(len, 8));
                world.leg(side).window = world.draw(4_000);
            }
            for _ in 0..world.draw(200) {
                if !world.step() {
                    break;
                }
            }
        }
        world.on(Event::End(Termination::ServerHalted));
        world.settle();
        assert_eq!(world.closed, Some((Termination::ServerHalted, true, false)), "seed {seed}");
        world.assert_nothing_held();
    }
}
