//! Many small frames sent in one call, by the kernel's own program and on a real wire.

#![allow(clippy::unwrap_used)]

use std::io;
use std::time::{Duration, Instant};

use towpath_core::burst;
use towpath_core::packet::checksum;
use towpath_sys::host;
use towpath_sys::netns::Namespace;
use towpath_sys::packet::{
    BATCH_MAX, Burst, Offload, PacketPorts, PartialChecksum, RingSettings, SegmentKind, Segments, Tag, TxCounts, open,
};
use towpath_sys::privilege::{self, Privilege};

const DEADLINE: Duration = Duration::from_secs(20);
const BROADCAST: [u8; 6] = [0xff; 6];
const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// EtherTypes for experiments (IEEE 802): no kernel takes notice.
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
const OTHER_ETHER_TYPE: [u8; 2] = [0x88, 0xb6];
const RING: RingSettings = RingSettings { slots: 512, frame_bytes_max: 1_952, queued_bytes_max: 0 };
/// The longest frame that a burst takes.
const LEN_MAX: usize = burst::PLACE - burst::FRAME;

/// A host with two interfaces, and who is at their other ends.
struct Wires {
    near: Namespace,
    far: Namespace,
}

impl Wires {
    fn new() -> Wires {
        let [near, far] = [(); 2].map(|()| Namespace::create().unwrap());
        for host in [&near, &far] {
            // Nobody speaks by himself.
            let quiet = || std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            host.run(quiet).unwrap().unwrap();
        }
        for (here, there) in [("a0", "b0"), ("a1", "b1")] {
            near.links().unwrap().create_veth(here, there, &far).unwrap();
            for (host, name) in [(&near, here), (&far, there)] {
                host.links().unwrap().set_up(name).unwrap();
            }
        }
        for (host, name) in [(&near, "a0"), (&far, "b0"), (&near, "a1"), (&far, "b1")] {
            let sysfs = towpath_sys::sysfs::Sysfs::of(host).unwrap();
            let deadline = Instant::now() + DEADLINE;
            while sysfs.read(&format!("class/net/{name}/operstate")).unwrap() != "up" {
                assert!(Instant::now() < deadline, "{name} is not up");
                std::thread::yield_now();
            }
            // The state is shown a moment before it is so; this waits for the same lock.
            host.links().unwrap().set_up(name).unwrap();
        }
        Wires { near, far }
    }

    fn ports(host: &Namespace, names: [&str; 2], vlans: &[u16]) -> PacketPorts {
        let open = || names.map(|name| open(name, 1, &[], &RING).unwrap());
        let mut ports: Vec<_> = host.run(open).unwrap().into_iter().flatten().collect();
        ports.iter_mut().for_each(|port| port.take_vlans(vlans));
        PacketPorts::new(ports)
    }

    /// The kernel looks for interfaces where the calling thread is.
    fn flush(&self, here: &mut PacketPorts) {
        self.near.run(|| here.flush()).unwrap();
    }

    /// Both ends; `None` where this process may not load programs.
    fn open(&self) -> Option<(PacketPorts, PacketPorts)> {
        self.open_with(burst::program)
    }

    fn open_with(&self, program: fn(i32) -> Vec<u64>) -> Option<(PacketPorts, PacketPorts)> {
        let mut here = Wires::ports(&self.near, ["a0", "a1"], &[]);
        match Burst::open(burst::LAYOUT.into(), program) {
            Ok(burst) => here.use_burst(burst),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("not looked at: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        }
        Some((here, Wires::ports(&self.far, ["b0", "b1"], &[7])))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrived {
    port: u8,
    tag: Option<u16>,
    bytes: Vec<u8>,
    offload: Offload,
}

fn receive(ports: &mut PacketPorts, count: usize) -> Vec<Arrived> {
    let deadline = Instant::now() + DEADLINE;
    let mut arrived = Vec::new();
    while arrived.len() < count {
        if ports.take(BATCH_MAX) == 0 {
            let fds = [ports.poll_fd(0), ports.poll_fd(1)];
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} frames: {arrived:?}", arrived.len());
            // Whichever has one; the other is looked at in a moment.
            let _ready = host::await_readable(&fds[arrived.len() % 2], left.min(Duration::from_millis(5)));
        }
        arrived.extend(ports.frames().map(|frame| Arrived {
            port: frame.port,
            tag: frame.tag.and_then(Tag::vlan),
            bytes: frame.bytes.to_vec(),
            offload: frame.offload,
        }));
    }
    arrived
}

fn frame(ether_type: [u8; 2], number: u8, len: usize) -> Vec<u8> {
    let mut frame = [&BROADCAST, &SOURCE, ether_type.as_slice()].concat();
    frame.resize(len, number);
    frame
}

fn of_port(arrived: &[Arrived], port: u8) -> Vec<Vec<u8>> {
    arrived.iter().filter(|frame| frame.port == port).map(|frame| frame.bytes.clone()).collect()
}

#[test]
fn frames_of_a_burst_arrive_as_they_are_and_in_order() {
    if privilege::ensure(frames_of_a_burst_arrive_as_they_are_and_in_order).unwrap() == Privilege::Delegated {
        return;
    }
    for program in [burst::program, burst::program_to_one] {
        let wires = Wires::new();
        let Some((mut here, mut there)) = wires.open_with(program) else { return };
        // Of all lengths that there are, longer and shorter in turn, over both ports.
        let lens = [burst::FRAME_MIN, LEN_MAX, 60, 61, 505 - 2, 74, 128, 35];
        let mut expected = [Vec::new(), Vec::new()];
        for round in 0..20_u8 {
            for (number, len) in (0..).zip(lens) {
                let (port, frame) = (number % 2, frame(ETHER_TYPE, round * 8 + number, len));
                here.send_bytes(port, &frame, Offload::NONE, None);
                expected[usize::from(port)].push(frame);
            }
            wires.flush(&mut here);
            let arrived = receive(&mut there, lens.len());
            for port in 0..2 {
                let sent: Vec<Vec<u8>> = expected[usize::from(port)].drain(..).collect();
                assert_eq!(of_port(&arrived, port), sent, "round {round}");
            }
        }
        for port in 0..2 {
            let counts = here.tx_counts(port);
            assert_eq!((counts.frames, counts.in_bursts), (80, 80), "{counts:?}");
        }
        // Those that were received leave so as well, in place.
        for number in 0..10 {
            there.send_bytes(0, &frame(ETHER_TYPE, number, 70), Offload::NONE, None);
        }
        there.flush();
        let mut count = 0;
        while count < 10 {
            let taken = here.take(BATCH_MAX);
            here.frames().for_each(|frame| frame.bytes[20] = 0xee);
            (0..taken).for_each(|index| here.send(index, 1, None));
            wires.flush(&mut here);
            count += taken;
        }
        let arrived = receive(&mut there, 10);
        for (number, arrived) in (0..).zip(arrived) {
            let mut expected = frame(ETHER_TYPE, number, 70);
            expected[20] = 0xee;
            assert_eq!((arrived.port, arrived.bytes), (1, expected));
        }
    }
}

#[test]
fn what_does_not_fit_a_burst_leaves_beside_it() {
    if privilege::ensure(what_does_not_fit_a_burst_leaves_beside_it).unwrap() == Privilege::Delegated {
        return;
    }
    let wires = Wires::new();
    let Some((mut here, mut there)) = wires.open() else { return };
    let mut in_bursts = [0, 0];
    // Of each queue: the frames, and whether they go in a burst.
    let small = |number| frame(ETHER_TYPE, number, 60);
    let queues = [
        (vec![small(1)], true),
        (vec![small(1), small(2)], true),
        (vec![small(1), small(2), small(3)], true),
        (vec![small(1), frame(ETHER_TYPE, 2, LEN_MAX + 1), small(3), small(4)], false),
        (vec![small(1), frame(OTHER_ETHER_TYPE, 2, 60), small(3), small(4)], false),
        (vec![frame(OTHER_ETHER_TYPE, 2, 60); 4], true),
        (vec![small(1), frame(ETHER_TYPE, 2, burst::FRAME_MIN - 1), small(3)], false),
        ((0..100).map(small).collect(), false),
    ];
    for (queue, is_burst) in queues {
        for frame in &queue {
            here.send_bytes(0, frame, Offload::NONE, None);
        }
        // The other port's queue goes its own way.
        let beside = vec![frame(*queue[0][12..].first_chunk().unwrap(), 9, 60); 3];
        for frame in &beside {
            here.send_bytes(1, frame, Offload::NONE, None);
        }
        wires.flush(&mut here);
        let arrived = receive(&mut there, queue.len() + beside.len());
        assert_eq!(of_port(&arrived, 0), queue);
        assert_eq!(of_port(&arrived, 1), beside);
        let before = std::mem::replace(&mut in_bursts, [0, 1].map(|port| here.tx_counts(port).in_bursts));
        let is_told = in_bursts[0] > before[0];
        // Of a hundred, those behind the first 64, which left before.
        let expected = is_burst || queue.len() > burst::FRAMES_MAX;
        assert_eq!(is_told, expected, "{} frames", queue.len());
        assert_eq!(in_bursts[1] - before[1], 3, "{} frames beside", queue.len());
    }
}

#[test]
fn a_checksum_is_finished_and_a_tag_put_in() {
    if privilege::ensure(a_checksum_is_finished_and_a_tag_put_in).unwrap() == Privilege::Delegated {
        return;
    }
    let wires = Wires::new();
    let Some((mut here, mut there)) = wires.open() else { return };
    let (start, field) = (34, 16);
    let offload =
        Offload { checksum: Some(PartialChecksum { start: start as u16, field: field as u16 }), segments: None };
    let lens = [54, 55, 61, 66, 127];
    for tag in [None, Some(Tag::of_vlan(7, None))] {
        for (number, len) in (1..).zip(lens) {
            let mut frame = frame(ETHER_TYPE, number, len);
            // The sum of a pseudo-header.
            frame[start + field..start + field + 2].copy_from_slice(&[0x12, number]);
            here.send_bytes(0, &frame, offload, tag);
        }
        wires.flush(&mut here);
        for ((number, len), arrived) in (1..).zip(lens).zip(receive(&mut there, lens.len())) {
            assert_eq!((arrived.offload, arrived.bytes.len()), (Offload::NONE, len));
            assert_eq!(arrived.tag, tag.and_then(Tag::vlan));
            // With the pseudo-header the sum of all is right.
            assert!(checksum::is_valid(u16::from_be_bytes([0x12, number]), &arrived.bytes[start..]), "{arrived:?}");
        }
    }
    assert_eq!(here.tx_counts(0).in_bursts, 10);
    // Not all that is to be done can be done here: the kernel has to say what it makes of it.
    let lying = Offload { checksum: Some(PartialChecksum { start: 60, field: 16 }), segments: None };
    let segments = Some(Segments { kind: SegmentKind::Udp, payload_bytes: 10 });
    for offload in [lying, Offload { segments, ..offload }] {
        for _ in 0..3 {
            here.send_bytes(0, &frame(ETHER_TYPE, 1, 66), offload, None);
        }
        wires.flush(&mut here);
    }
    assert_eq!(here.tx_counts(0).in_bursts, 10);
}

#[test]
fn a_burst_over_an_interface_that_is_down_or_gone_is_counted() {
    if privilege::ensure(a_burst_over_an_interface_that_is_down_or_gone_is_counted).unwrap() == Privilege::Delegated {
        return;
    }
    let wires = Wires::new();
    let Some((mut here, mut there)) = wires.open() else { return };
    let send = |here: &mut PacketPorts| {
        for number in 0..4 {
            here.send_bytes(number % 2, &frame(ETHER_TYPE, number, 60), Offload::NONE, None);
        }
        wires.flush(here);
    };
    send(&mut here);
    assert_eq!(receive(&mut there, 4).len(), 4);
    wires.near.links().unwrap().set_down("a0").unwrap();
    send(&mut here);
    assert_eq!(of_port(&receive(&mut there, 2), 1).len(), 2, "the others leave");
    wires.near.links().unwrap().remove("a0").unwrap();
    send(&mut here);
    assert_eq!(of_port(&receive(&mut there, 2), 1).len(), 2);
    let sent = TxCounts { frames: 2, bytes: 120, in_bursts: 2, down: 4, ..TxCounts::default() };
    assert_eq!(here.tx_counts(0), sent);
    assert_eq!(here.tx_counts(1), TxCounts { frames: 6, bytes: 360, in_bursts: 6, ..TxCounts::default() });
}
