//! A client, a balancer and a server on real wires: only the beginning and the end of a connection pass the balancer's sockets.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use towpath_core::Now;
use towpath_core::fast_path::{FastFlow, FastId, FastNumbers, FastSide, FastTable, FastUse};
use towpath_core::packet::rewrite::{Checksum, Layout, Macs, decrement_hop_limit, set_macs, translate};
use towpath_core::packet::{Mac, PROTOCOL_TCP, Packet, Parsed, SynOptions, TcpFlags, Tuple, TupleV4, parse};

use towpath_sys::fast_path::Attached;
use towpath_sys::host;
use towpath_sys::link::Route;
use towpath_sys::netns::Namespace;
use towpath_sys::packet::{BATCH_MAX, Frame, Offload, PacketPorts, ReceivedFrame, RingSettings, Tap, open};
use towpath_sys::privilege::{self, Privilege};

use super::{Twins, opened, table};

const DEADLINE: Duration = Duration::from_secs(20);
const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 443);
const SNAT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const SERVER_PORT: u16 = 8443;
const BULK_BYTES: usize = 30 << 20;

/// `client c0 — b0 balancer b1 — s0 server`; the balancer forwards nothing by itself.
pub(super) struct Wires {
    pub(super) client: Namespace,
    pub(super) balancer: Namespace,
    pub(super) server: Namespace,
    /// From the balancer's two interfaces to their neighbours.
    macs: [Macs; 2],
    /// As the client's frames have them.
    from_client: Vec<u8>,
}

impl Wires {
    pub(super) fn new() -> Wires {
        let [client, balancer, server] = [(); 3].map(|()| Namespace::create().unwrap());
        // A new namespace has it as the first one has.
        balancer.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0")).unwrap().unwrap();
        client.links().unwrap().create_veth("c0", "b0", &balancer).unwrap();
        server.links().unwrap().create_veth("s0", "b1", &balancer).unwrap();
        let ends = [
            (&client, "c0", [10, 1, 0, 2]),
            (&balancer, "b0", [10, 1, 0, 1]),
            (&balancer, "b1", [10, 2, 0, 1]),
            (&server, "s0", [10, 2, 0, 2]),
        ];
        let mut macs = Vec::new();
        for (host, name, address) in ends {
            let mut links = host.links().unwrap();
            links.add_address(name, address.into(), 24).unwrap();
            links.set_up(name).unwrap();
            let address = links.find(name).unwrap().hardware_address;
            macs.push(Mac(*address.first_chunk().unwrap()));
        }
        for (host, link, gateway) in [(&client, "c0", [10, 1, 0, 1]), (&server, "s0", [10, 2, 0, 1])] {
            let destination = ("203.0.113.0".parse().unwrap(), 24);
            let route = Route { destination, gateway: Some(gateway.into()), link: link.into() };
            host.links().unwrap().add_route(&route).unwrap();
        }
        let from_client = [macs[1].0, macs[0].0].concat();
        let macs = [Macs::new(macs[0], macs[1]), Macs::new(macs[3], macs[2])];
        Wires { client, balancer, server, macs, from_client }
    }
}

/// The balancer's own path: it sends everything on between its two ports, and enters the flows that have opened.
pub(super) struct Slow<'a> {
    ports: PacketPorts,
    table: FastTable,
    wires: &'a Wires,
    indices: [u32; 2],
    /// By the client's port.
    flows: BTreeMap<u16, [FastNumbers; 2]>,
    entered: BTreeMap<u16, FastId>,
    /// What the kernel had noted about flows that ended.
    pub(super) ended: Vec<FastUse>,
    /// Frames of open flows that came here.
    pub(super) plain_frames: u64,
    _attached: [Attached; 2],
}

impl<'a> Slow<'a> {
    pub(super) fn open(wires: &'a Wires, twins: &Twins) -> Slow<'a> {
        let settings = RingSettings::within(32 << 20, 1500);
        let open = || ["b0", "b1"].map(|name| open(name, 1, &[], &settings).unwrap().remove(0));
        let ports = wires.balancer.run(open).unwrap();
        let indices = ports.each_ref().map(|port| port.index());
        let attached = wires.balancer.run(|| indices.map(|index| twins.path.attach(index).unwrap())).unwrap();
        for port in &ports {
            port.set_filter(Some(twins.path.filter())).unwrap();
        }
        Slow {
            ports: PacketPorts::new(ports.into()),
            table: table(&twins.memory),
            wires,
            indices,
            flows: BTreeMap::new(),
            entered: BTreeMap::new(),
            ended: Vec::new(),
            plain_frames: 0,
            _attached: attached,
        }
    }

    /// Sends frames on until `stop` is set.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Slow<'a> {
        while !stop.load(Ordering::Relaxed) {
            let count = self.ports.take(BATCH_MAX);
            if count == 0 {
                thread::sleep(Duration::from_micros(200));
            }
            let mut batch = std::mem::take(&mut self.flows);
            let mut onwards = Vec::new();
            let mut events = Vec::new();
            for (number, mut frame) in self.ports.frames().enumerate() {
                if let Some(parsed) = send_on(&mut frame, &self.wires.macs) {
                    onwards.push((number, 1 - frame.port));
                    events.push(Segment::of(&parsed, &frame));
                }
            }
            for segment in events {
                self.follow(&segment, &mut batch);
            }
            self.flows = batch;
            for (number, port) in onwards {
                self.ports.send(number, port, None);
            }
            self.ports.flush();
        }
        self
    }

    fn follow(&mut self, segment: &Segment, flows: &mut BTreeMap<u16, [FastNumbers; 2]>) {
        let Segment { port, side, flags, numbers } = *segment;
        let now = Now(host::monotonic_ms());
        if flags.0 & (TcpFlags::FIN.0 | TcpFlags::RST.0) != 0 {
            if let Some(id) = self.entered.remove(&port) {
                self.ended.push(self.table.remove(id, now));
            }
            return;
        }
        if flags.contains(TcpFlags::SYN) {
            flows.entry(port).or_default()[side] = numbers;
            return;
        }
        if let Some(mut known) = flows.remove(&port) {
            // A SYN acknowledges nothing.
            known[0].ack = known[1].end;
            let flow = self.flow(port, known);
            self.entered.insert(port, self.table.insert(&flow, now).unwrap());
        } else if let Some(&id) = self.entered.get(&port) {
            // What was on its way here before the flow was entered; else what answers it would fit nothing.
            let mut known = self.table.read(id).sides.map(|side| side.numbers);
            known[side] = FastNumbers { scale: known[side].scale, ..numbers };
            self.table.tell(id, known);
            self.plain_frames += 1;
        }
    }

    fn flow(&self, port: u16, numbers: [FastNumbers; 2]) -> FastFlow {
        self.wires.flow(self.indices, port, numbers)
    }
}

impl Wires {
    /// The flow of a client's port.
    fn flow(&self, [front, back]: [u32; 2], port: u16, numbers: [FastNumbers; 2]) -> FastFlow {
        let tuple = |src: Ipv4Addr, src_port, dst: Ipv4Addr, dst_port| {
            let tuple = Tuple { src: src.into(), dst: dst.into(), src_port, dst_port, protocol: PROTOCOL_TCP };
            TupleV4::of(&tuple).unwrap()
        };
        let vip = Ipv4Addr::new(203, 0, 113, 1);
        let near = tuple(Ipv4Addr::new(10, 1, 0, 2), port, vip, VIP.port());
        let far = tuple(SNAT, port, SERVER, SERVER_PORT);
        let side = |from, to, in_ifindex, out_ifindex, macs, numbers| FastSide {
            from,
            to,
            in_ifindex,
            out_ifindex,
            macs,
            size_max: 1500,
            numbers,
        };
        let [to_client, to_server] = self.macs;
        FastFlow {
            sides: [
                side(near, far, front, back, to_server, numbers[0]),
                side(far.reversed(), near.reversed(), back, front, to_client, numbers[1]),
            ],
            server: None,
        }
    }
}

#[derive(Clone, Copy)]
struct Segment {
    /// The client's.
    port: u16,
    side: usize,
    flags: TcpFlags,
    numbers: FastNumbers,
}

impl Segment {
    /// Of a frame that was sent on, with its ports as they were.
    fn of(parsed: &Parsed, frame: &ReceivedFrame<'_>) -> Segment {
        let tcp = parsed.tcp;
        let is_syn = tcp.flags.contains(TcpFlags::SYN);
        let scale = if is_syn { SynOptions::read(frame.bytes, parsed).window_scale.unwrap() } else { 0 };
        let end = tcp.seq.wrapping_add(parsed.payload_len()).wrapping_add(is_syn.into());
        let numbers = FastNumbers { end, ack: tcp.ack, window: tcp.window >> scale, scale };
        let side = frame.port.into();
        let port = if side == 0 { parsed.tuple.src_port } else { parsed.tuple.dst_port };
        Segment { port, side, flags: tcp.flags, numbers }
    }
}

/// Rewrites a TCP frame for the other side; returns what it was.
fn send_on(frame: &mut ReceivedFrame<'_>, macs: &[Macs; 2]) -> Option<Parsed> {
    let Ok(Packet::Transport(parsed)) = parse(frame.bytes) else { return None };
    let tuple = parsed.tuple;
    let to = match (frame.port, tuple.dst_port) {
        (0, 443) => Tuple { src: SNAT.into(), dst: SERVER.into(), dst_port: SERVER_PORT, ..tuple },
        (1, _) if tuple.src_port == SERVER_PORT => Tuple {
            src: Ipv4Addr::new(203, 0, 113, 1).into(),
            dst: Ipv4Addr::new(10, 1, 0, 2).into(),
            src_port: VIP.port(),
            ..tuple
        },
        _ => return None,
    };
    let checksum = if frame.offload.checksum.is_some() { Checksum::Partial } else { Checksum::Complete };
    let layout = Layout::from(&parsed);
    translate(frame.bytes, &layout, checksum, &to).unwrap();
    decrement_hop_limit(frame.bytes, &layout).unwrap();
    set_macs(frame.bytes, &macs[1 - usize::from(frame.port)]).unwrap();
    Some(parsed)
}

/// A server that sends back what it gets, connection after connection.
fn echo(listener: &TcpListener, connections: usize) {
    thread::scope(|scope| {
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().unwrap();
            scope.spawn(move || {
                let mut back = stream.try_clone().unwrap();
                std::io::copy(&mut stream, &mut back).unwrap();
                back.shutdown(std::net::Shutdown::Write).unwrap();
            });
        }
    });
}

#[test]
fn the_kernel_carries_real_connections_from_their_handshake_to_their_end() {
    const CONNECTIONS: usize = 3;
    let test = the_kernel_carries_real_connections_from_their_handshake_to_their_end;
    if privilege::ensure(test).unwrap() == Privilege::Delegated {
        return;
    }
    let Some(twins) = opened(64) else { return };
    let wires = Wires::new();
    let slow = Slow::open(&wires, &twins);
    let listener = wires.server.run(|| TcpListener::bind((SERVER, SERVER_PORT)).unwrap()).unwrap();
    let stop = AtomicBool::new(false);
    let slow = thread::scope(|scope| {
        let slow = scope.spawn(|| slow.run(&stop));
        scope.spawn(|| echo(&listener, CONNECTIONS));
        let sent: Vec<u8> = (0..BULK_BYTES).map(|number| (number * 7 / 8) as u8).collect();
        thread::scope(|clients| {
            for _ in 0..CONNECTIONS {
                clients.spawn(|| {
                    let mut stream = wires.client.run(|| TcpStream::connect_timeout(&VIP, DEADLINE).unwrap()).unwrap();
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    let mut writer = stream.try_clone().unwrap();
                    let mut got = Vec::new();
                    thread::scope(|ends| {
                        ends.spawn(|| {
                            writer.write_all(&sent).unwrap();
                            writer.shutdown(std::net::Shutdown::Write).unwrap();
                        });
                        stream.read_to_end(&mut got).unwrap();
                    });
                    assert!(got == sent, "{} octets came back", got.len());
                });
            }
        });
        stop.store(true, Ordering::Relaxed);
        slow.join().unwrap()
    });
    assert_eq!(slow.ended.len(), CONNECTIONS);
    let (mut frames, mut payload) = (0, 0);
    for side in slow.ended.iter().flat_map(|ended| ended.sides) {
        frames += side.frames;
        payload += side.payload_octets;
    }
    // More than fits one segment each, ACKs counted: over veth most are super-packets with partial checksums.
    assert!(payload > 1_448 * frames, "{payload} octets in {frames} frames");
    // Data that is on its way when the first FIN comes goes the other way, as do the ACKs of the server's rest.
    assert!(payload > (BULK_BYTES * CONNECTIONS) as u64, "{payload} octets in {frames} frames");
    assert!(slow.plain_frames < frames / 20, "{} frames came by the sockets, {frames} did not", slow.plain_frames);
}

#[test]
fn what_is_no_longer_attached_carries_nothing() {
    if privilege::ensure(what_is_no_longer_attached_carries_nothing).unwrap() == Privilege::Delegated {
        return;
    }
    let Some(twins) = opened(4) else { return };
    let wires = Wires::new();
    for workers in [1, 2] {
        let settings = RingSettings::within(4 << 20, 1500);
        let ports = wires.balancer.run(|| open("b0", workers, &[(0x06, 0, 0, 0)], &settings)).unwrap().unwrap();
        let front = ports[0].index();
        let back = wires.balancer.links().unwrap().find("b1").unwrap().index;
        let mut table = table(&twins.memory);
        let numbers = [FastNumbers { end: 1_000, ack: 50, window: 400, scale: 7 }; 2];
        let mut flow = wires.flow([front, back], 40_000, numbers);
        flow.sides[1].numbers = FastNumbers { end: 50, ack: 1_000, ..numbers[1] };
        let id = table.insert(&flow, Now(1)).unwrap();
        let mut sent = super::segment(&flow.sides[0], 9);
        sent[..12].copy_from_slice(&wires.from_client);
        let mut client = PacketPorts::new(wires.client.run(|| open("c0", 1, &[], &settings)).unwrap().unwrap());
        let mut tap = wires.server.run(|| Tap::open("s0")).unwrap().unwrap();
        let mut balancer = PacketPorts::new(ports);
        let mut arrives = |balancer: &mut PacketPorts| {
            client.send_bytes(0, &sent, Offload::NONE, None);
            client.flush();
            let deadline = Instant::now() + DEADLINE;
            loop {
                balancer.take(BATCH_MAX);
                let is_ours = |frame: ReceivedFrame<'_>| *frame.bytes == *sent;
                if balancer.frames().any(is_ours) {
                    return "at the socket";
                }
                let soon = Instant::now() + Duration::from_millis(1);
                let is_carried = |frame: &Frame| frame.bytes.ends_with(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
                if tap.find(soon, is_carried).is_ok_and(|found| found.is_some()) {
                    return "at the server";
                }
                assert!(Instant::now() < deadline, "it arrives nowhere");
            }
        };
        assert_eq!(arrives(&mut balancer), "at the socket");
        let attached = wires.balancer.run(|| twins.path.attach(front)).unwrap().unwrap();
        balancer.port(0).set_filter(Some(twins.path.filter())).unwrap();
        assert_eq!(arrives(&mut balancer), "at the server");
        assert_eq!(arrives(&mut balancer), "at the server");
        balancer.port(0).set_filter(None).unwrap();
        drop(attached);
        assert_eq!(arrives(&mut balancer), "at the socket");
        assert_eq!(table.remove(id, Now(2)).sides[0].frames, 2);
    }
}
