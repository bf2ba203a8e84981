mod trunk;

use super::*;
use crate::host;
use crate::netns::Namespace;
use crate::privilege::{self, Privilege};
use crate::ring::{self, Completion, Readiness, Ring, Wait};
use crate::sysfs::Sysfs;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(10);
const BROADCAST: [u8; 6] = [0xff; 6];
/// An EtherType for experiments (IEEE 802): the kernel takes no notice.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const SMALL: RingSettings = RingSettings { slots: 64, frame_bytes_max: 1_518, queued_bytes_max: 0 };
const QUEUED: RingSettings = RingSettings {
    slots: RingSettings::SLOTS_MAX,
    frame_bytes_max: 1_952,
    queued_bytes_max: RingSettings::QUEUED_BYTES_MAX,
};

/// Two hosts with the ends `a` and `b` of a wire, on which nobody speaks by himself.
fn wire() -> (Namespace, Namespace) {
    let (near, far) = (quiet_host(), quiet_host());
    connect(&near, &far);
    (near, far)
}

fn connect(near: &Namespace, far: &Namespace) {
    near.links().unwrap().create_veth("a", "b", far).unwrap();
    near.links().unwrap().set_up("a").unwrap();
    set_up(far, "b");
    until_ready(near, "a");
}

fn set_up(host: &Namespace, interface: &str) {
    host.links().unwrap().set_up(interface).unwrap();
    until_ready(host, interface);
}

/// Waits until an interface sends: the kernel makes its queue ready some time after the cable is in (`linkwatch_do_dev`,
/// net/core/link_watch.c).
fn until_ready(host: &Namespace, interface: &str) {
    let sysfs = Sysfs::of(host).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while sysfs.read(&format!("class/net/{interface}/operstate")).unwrap() != "up" {
        assert!(Instant::now() < deadline, "{interface} is not up");
        thread::yield_now();
    }
    // The state is shown a moment before; this waits for the same lock.
    host.links().unwrap().set_up(interface).unwrap();
}

fn quiet_host() -> Namespace {
    let host = Namespace::create().unwrap();
    host.run(|| fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")).unwrap().unwrap();
    host
}

fn ports(host: &Namespace, interface: &str, settings: &RingSettings) -> PacketPorts {
    PacketPorts::new(host.run(|| open(interface, 1, &[], settings)).unwrap().unwrap())
}

fn frame(to: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to, &[2, 0, 0, 0, 0, 1], ETHERTYPE.as_slice(), payload].concat()
}

/// Waits for a batch on port 0; its payloads.
fn receive_some(ports: &mut PacketPorts) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + DEADLINE;
    while ports.take(BATCH_MAX) == 0 {
        host::await_readable(&ports.poll_fd(0), deadline.saturating_duration_since(Instant::now())).unwrap();
    }
    ports.frames().map(|frame| frame.bytes[14..].to_vec()).collect()
}

/// Waits for at least so many frames on port 0; their payloads.
fn receive(ports: &mut PacketPorts, count: usize) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    while payloads.len() < count {
        payloads.extend(receive_some(ports));
    }
    payloads
}

#[test]
fn frames_leave_and_arrive_as_they_are() {
    if privilege::ensure(frames_leave_and_arrive_as_they_are).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = wire();
    let (mut here, mut there) = (ports(&near, "a", &SMALL), ports(&far, "b", &SMALL));
    let mac = |host: &Namespace, name| <[u8; 6]>::try_from(host.links().unwrap().find(name).unwrap().hardware_address);
    let payload = |number: u8, len: usize| vec![number; len];
    for number in 0..100 {
        let to = if number % 2 == 0 { BROADCAST } else { mac(&far, "b").unwrap() };
        here.send_bytes(0, &frame(to, &payload(number, 46 + usize::from(number))), Offload::NONE, None);
    }
    here.flush();
    let mut arrived = 0;
    while arrived < 100 {
        for received in receive_some(&mut there) {
            assert_eq!(received, payload(arrived, 46 + usize::from(arrived)));
            arrived += 1;
        }
        // Back, from where they lie.
        for (index, frame) in there.frames().enumerate().collect::<Vec<_>>() {
            frame.bytes[..6].copy_from_slice(&BROADCAST);
            frame.bytes[14] = 200;
            assert_eq!((index < BATCH_MAX, frame.port, frame.offload), (true, 0, Offload::NONE));
        }
        let count = there.frames().len();
        for index in 0..count {
            there.send(index, 0, None);
        }
        there.flush();
    }
    let mut returned = 0;
    while returned < 100 {
        for received in receive_some(&mut here) {
            assert_eq!((received[0], received[1]), (200, returned));
            returned += 1;
        }
    }
    here.send_bytes(0, &frame([2, 9, 9, 9, 9, 9], &[0; 46]), Offload::NONE, None);
    here.send_bytes(0, &frame(BROADCAST, &[201; 46]), Offload::NONE, None);
    here.flush();
    assert_eq!(receive(&mut there, 1), [[201; 46]]);

    let bytes = (0..100).map(|number| 60 + number).sum::<u64>();
    assert_eq!(here.tx_counts(0), TxCounts { frames: 102, bytes: bytes + 120, ..TxCounts::default() });
    assert_eq!(here.rx_counts(0), RxCounts { frames: 100, bytes, ..RxCounts::default() });
    assert_eq!(there.rx_counts(0), RxCounts { frames: 101, bytes: bytes + 60, foreign: 1, ..RxCounts::default() });
    assert_eq!(there.take(BATCH_MAX), 0, "what was sent here does not come in here");
}

#[test]
fn a_frame_begins_earlier_or_later_once_it_is_of_the_other_version() {
    if privilege::ensure(a_frame_begins_earlier_or_later_once_it_is_of_the_other_version).unwrap()
        == Privilege::Delegated
    {
        return;
    }
    let (near, far) = wire();
    for (host, name) in [(&near, "a"), (&far, "b")] {
        host.links().unwrap().set_mtu(name, 9_000).unwrap();
    }
    let (mut here, mut there) = (ports(&near, "a", &QUEUED), ports(&far, "b", &QUEUED));
    // One in its slot, and one that does not fit it.
    for length in [100, 8_000] {
        for begins in [-(FRONT_BYTES as i16), 0, FRONT_BYTES as i16] {
            let sent = frame(BROADCAST, &vec![7; length]);
            here.send_bytes(0, &sent, Offload::NONE, None);
            here.flush();
            assert_eq!(receive(&mut there, 1), [sent[14..].to_vec()]);
            let new = frame(BROADCAST, &[9; 50]);
            let received = there.frames().next().unwrap();
            assert_eq!(received.front.len(), FRONT_BYTES);
            let start = FRONT_BYTES.checked_add_signed(begins.into()).unwrap();
            let octets = received.front.iter_mut().chain(received.bytes).skip(start);
            octets.zip(&new).for_each(|(octet, new)| *octet = *new);
            there.cross(0, begins);
            assert!(there.frames().next().unwrap().front.is_empty(), "it is used up");
            there.send(0, 0, None);
            there.flush();
            let rest = (14 + length).checked_add_signed(-isize::from(begins)).unwrap() - new.len();
            assert_eq!(receive(&mut here, 1), [[&new[14..], &vec![7; rest]].concat()], "{length} {begins}");
        }
    }
}

#[test]
fn tcp_passes_whole_through_two_ports() {
    if privilege::ensure(tcp_passes_whole_through_two_ports).unwrap() == Privilege::Delegated {
        return;
    }
    let (client, bridge, server) = (Namespace::create().unwrap(), quiet_host(), Namespace::create().unwrap());
    for (host, outer, inner, end) in [(&client, "c", "left", 1), (&server, "s", "right", 2)] {
        let mut links = host.links().unwrap();
        links.create_veth(outer, inner, &bridge).unwrap();
        links.add_address(outer, IpAddr::from([10, 9, 0, end]), 24).unwrap();
        links.add_address(outer, format!("fd09::{end}").parse().unwrap(), 64).unwrap();
        links.set_up(outer).unwrap();
    }
    // Each port has the address of the host behind the other, so that frames are for it as those for a balancer are.
    let mut links = bridge.links().unwrap();
    for (inner, host, outer) in [("left", &server, "s"), ("right", &client, "c")] {
        let address = host.links().unwrap().find(outer).unwrap().hardware_address;
        links.set_hardware_address(inner, address.try_into().unwrap()).unwrap();
        links.set_up(inner).unwrap();
    }
    let both = bridge.run(|| ["left", "right"].map(|name| open(name, 1, &[], &QUEUED).unwrap())).unwrap();
    let mut both = PacketPorts::new(both.into_iter().flatten().collect());
    let ended = AtomicBool::new(false);
    let (mut super_packets, mut partial) = (0, 0);
    thread::scope(|scope| {
        let _end = End(&ended);
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let taken = both.take(BATCH_MAX);
                for received in both.frames() {
                    super_packets += usize::from(received.offload.segments.is_some());
                    partial += usize::from(received.offload.checksum.is_some());
                }
                for index in 0..taken {
                    let from = both.frames().nth(index).unwrap().port;
                    both.send(index, 1 - from, None);
                }
                both.flush();
                if taken == 0 {
                    thread::yield_now();
                }
            }
        });
        for to in ["10.9.0.2:0", "[fd09::2]:0"] {
            let sum = transfer(&client, &server, to, 32 << 20);
            assert_eq!(sum.unwrap(), 32 << 20, "{to}");
        }
    });
    assert!(super_packets > 100, "{super_packets} super-packets");
    assert!(partial > super_packets, "{partial} partial checksums");
    for port in 0..2 {
        let (sent, received) = (both.tx_counts(port), both.rx_counts(port));
        assert_eq!((sent.too_large, sent.down, sent.refused, received.truncated, received.unknown), (0, 0, 0, 0, 0));
        assert!(sent.frames > 100 && received.frames > 100);
    }
}

/// Says that it is over when a test's work is done, or has failed.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends so many bytes, and counts those that arrive as they were sent.
fn transfer(client: &Namespace, server: &Namespace, to: &str, bytes: usize) -> io::Result<usize> {
    let listener = server.run(|| TcpListener::bind(to))??;
    let to = listener.local_addr()?;
    let sent: Vec<u8> = (0..bytes).map(|place| ((place * 31) >> 3) as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = client.run(|| TcpStream::connect_timeout(&to, DEADLINE)).unwrap().unwrap();
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // Until the far end has read it all.
            stream.read_to_end(&mut Vec::new()).unwrap();
        });
        host::await_readable(&listener, DEADLINE)?;
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut received = Vec::with_capacity(bytes);
        stream.read_to_end(&mut received)?;
        Ok(received.iter().zip(&sent).filter(|(a, b)| a == b).count())
    })
}

#[test]
fn steering_names_the_worker_and_can_be_replaced() {
    if privilege::ensure(steering_names_the_worker_and_can_be_replaced).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = wire();
    let mut here = ports(&near, "a", &SMALL);
    // The first byte of the payload: SKF_NET_OFF, then BPF_RET | BPF_A.
    let by_payload = [(0x30, 0, 0, 0xfff0_0000), (0x16, 0, 0, 0)];
    let workers = far.run(|| open("b", 3, &by_payload, &SMALL)).unwrap().unwrap();
    let mut workers: Vec<PacketPorts> = workers.into_iter().map(|port| PacketPorts::new(vec![port])).collect();
    let mut send = |numbers: std::ops::Range<u8>| {
        for number in numbers {
            here.send_bytes(0, &frame(BROADCAST, &[number; 46]), Offload::NONE, None);
        }
        here.flush();
    };
    let firsts =
        |worker: &mut PacketPorts, count| receive(worker, count).iter().map(|payload| payload[0]).collect::<Vec<_>>();
    send(0..9);
    for (number, worker) in workers.iter_mut().enumerate() {
        let number = number as u8;
        assert_eq!(firsts(worker, 3), [number, number + 3, number + 6]);
    }
    // Numbers stay when the interface goes down and up.
    far.links().unwrap().set_down("b").unwrap();
    assert!(workers.iter().all(|worker| worker.state(0) == PortState::Down));
    set_up(&far, "b");
    until_ready(&near, "a");
    assert!(workers.iter().all(|worker| worker.state(0) == PortState::Up));
    send(0..9);
    for (number, worker) in workers.iter_mut().enumerate() {
        let number = number as u8;
        assert_eq!(firsts(worker, 3), [number, number + 3, number + 6]);
    }
    // All to one: BPF_RET | BPF_K.
    workers[2].port(0).steer(&[(0x06, 0, 0, 1)]).unwrap();
    send(0..5);
    assert_eq!(firsts(&mut workers[1], 5), [0, 1, 2, 3, 4]);
    // What a worker itself sends comes to none of them.
    workers[0].send_bytes(0, &frame(BROADCAST, &[77; 46]), Offload::NONE, None);
    workers[0].flush();
    assert_eq!(receive(&mut here, 1)[0][0], 77);
    for worker in &mut workers {
        assert_eq!(worker.take(BATCH_MAX), 0);
    }
}

#[test]
fn a_full_ring_loses_the_newest_and_counts_them() {
    if privilege::ensure(a_full_ring_loses_the_newest_and_counts_them).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = wire();
    let (mut here, mut there) = (ports(&near, "a", &SMALL), ports(&far, "b", &SMALL));
    let (total, slots) = (2_000, u64::from(SMALL.geometry().slots()));
    assert!(slots >= u64::from(SMALL.slots) && slots < total);
    for round in 1..=2 {
        for number in 0..total {
            here.send_bytes(0, &frame(BROADCAST, &[&number.to_be_bytes()[..], &[0; 38]].concat()), Offload::NONE, None);
        }
        here.flush();
        let deadline = Instant::now() + DEADLINE;
        while there.rx_counts(0).dropped < round * (total - slots) {
            assert!(Instant::now() < deadline, "{:?}", there.rx_counts(0));
            thread::yield_now();
        }
        let mut next = 0u64;
        while there.take(BATCH_MAX) > 0 {
            for received in there.frames() {
                assert_eq!(received.bytes[14..22], next.to_be_bytes(), "round {round}");
                next += 1;
            }
        }
        assert_eq!((next, there.rx_counts(0).dropped), (slots, round * (total - slots)));
    }
}

#[test]
fn what_cannot_pass_is_counted() {
    if privilege::ensure(what_cannot_pass_is_counted).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = wire();
    let mut here = ports(&near, "a", &SMALL);
    let mut there = ports(&far, "b", &RingSettings { slots: 64, frame_bytes_max: 200, queued_bytes_max: 0 });
    here.send_bytes(0, &frame(BROADCAST, &[1; 1000]), Offload::NONE, None);
    here.send_bytes(0, &frame(BROADCAST, &[2; 2000]), Offload::NONE, None);
    here.send_bytes(0, &vec![0; RingSettings::FRAME_BYTES_MAX as usize + 1], Offload::NONE, None);
    here.send_bytes(0, &[0; 3], Offload::NONE, None);
    here.send_bytes(0, &frame(BROADCAST, &[3; 100]), Offload::NONE, None);
    here.flush();
    assert_eq!(receive(&mut there, 1), [[3; 100]]);
    let counts = there.rx_counts(0);
    assert_eq!((counts.frames, counts.truncated), (1, 1));
    let counts = here.tx_counts(0);
    assert_eq!((counts.frames, counts.too_large, counts.refused), (2, 1, 2));

    near.links().unwrap().set_down("a").unwrap();
    assert_eq!(here.state(0), PortState::Down);
    for _ in 0..3 {
        here.send_bytes(0, &frame(BROADCAST, &[4; 100]), Offload::NONE, None);
    }
    here.flush();
    assert_eq!(here.tx_counts(0).down, 3);
    set_up(&near, "a");
    assert_eq!(here.state(0), PortState::Up);
    here.send_bytes(0, &frame(BROADCAST, &[5; 100]), Offload::NONE, None);
    here.flush();
    assert_eq!(receive(&mut there, 1), [[5; 100]]);
    // Down and up again before anybody has asked.
    near.links().unwrap().set_down("a").unwrap();
    set_up(&near, "a");
    here.send_bytes(0, &frame(BROADCAST, &[6; 100]), Offload::NONE, None);
    here.flush();
    assert_eq!(receive(&mut there, 1), [[6; 100]]);
    assert_eq!(here.tx_counts(0).down, 3);
}

#[test]
fn an_interface_may_vanish_and_return() {
    if privilege::ensure(an_interface_may_vanish_and_return).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = wire();
    let (mut here, mut there) = (ports(&near, "a", &SMALL), ports(&far, "b", &SMALL));
    here.send_bytes(0, &frame(BROADCAST, &[1; 46]), Offload::NONE, None);
    here.flush();
    host::await_readable(&there.poll_fd(0), DEADLINE).unwrap();
    near.links().unwrap().remove("a").unwrap();
    assert_eq!((here.state(0), there.state(0)), (PortState::Gone, PortState::Gone));
    // What had arrived is still there.
    assert_eq!(receive(&mut there, 1), [[1; 46]]);
    here.send_bytes(0, &frame(BROADCAST, &[2; 46]), Offload::NONE, None);
    here.flush();
    assert_eq!(here.tx_counts(0).down, 1);
    assert_eq!(there.take(BATCH_MAX), 0);

    connect(&near, &far);
    for (host, name, ports) in [(&near, "a", &mut here), (&far, "b", &mut there)] {
        let new = host.run(|| open(name, 1, &[], &SMALL)).unwrap().unwrap().remove(0);
        assert_eq!(ports.replace(0, new).name(), name);
        assert_eq!(ports.state(0), PortState::Up);
    }
    here.send_bytes(0, &frame(BROADCAST, &[3; 46]), Offload::NONE, None);
    here.flush();
    assert_eq!(receive(&mut there, 1), [[3; 46]]);
    assert_eq!((here.tx_counts(0).frames, there.rx_counts(0).frames), (2, 2), "they go on");
}

#[test]
fn what_cannot_be_opened_says_why() {
    if privilege::ensure(what_cannot_be_opened_says_why).unwrap() == Privilege::Delegated {
        return;
    }
    let host = quiet_host();
    let error = host.run(|| open("nowhere", 1, &[], &SMALL)).unwrap().unwrap_err();
    assert!(error.to_string().contains("`nowhere`"), "{error}");
    host.links().unwrap().create_veth("a", "b", &host).unwrap();
    let error = host.run(|| open("a", 2, &[(0x06, 0, 0, 0)], &SMALL)).unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkDown, "{error}");
    assert_eq!(host.run(|| open("a", 0, &[], &SMALL)).unwrap().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let ports = ports(&host, "a", &SMALL);
    assert_eq!(ports.state(0), PortState::Down);
    ports.port(0).join([0x33, 0x33, 0xff, 0, 0, 1]).unwrap();
}

#[test]
fn a_sleeping_worker_wakes_for_every_frame() {
    if privilege::ensure(a_sleeping_worker_wakes_for_every_frame).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = wire();
    let (mut here, mut there) = (ports(&near, "a", &SMALL), ports(&far, "b", &SMALL));
    let settings = ring::RingSettings {
        entries: 8,
        stream_buffers: 1,
        stream_buffer_bytes: 4096,
        datagram_buffers: 1,
        records: None,
    };
    let mut ring = Ring::new(settings).unwrap();
    ring.await_ready_many(there.poll_fd(0), Readiness::Readable, 7).unwrap();
    // Sleeps until the port is announced.
    let wake = |ring: &mut Ring, there: &PacketPorts| {
        let deadline = Instant::now() + DEADLINE;
        let mut completions = Vec::new();
        while completions.is_empty() {
            assert!(Instant::now() < deadline, "nothing woke the ring");
            ring.enter(Wait::Sleep(DEADLINE)).unwrap();
            ring.take(&mut completions, 16);
        }
        if !completions.iter().all(Completion::more) {
            ring.await_ready_many(there.poll_fd(0), Readiness::Readable, 7).unwrap();
        }
    };
    for round in 0..3 {
        for number in [1, 2] {
            here.send_bytes(0, &frame(BROADCAST, &[number; 46]), Offload::NONE, None);
            here.flush();
            wake(&mut ring, &there);
            assert_eq!(receive(&mut there, 1), [[number; 46]], "round {round}");
            there.flush();
        }
        far.links().unwrap().set_down("b").unwrap();
        wake(&mut ring, &there);
        assert_eq!((there.take(BATCH_MAX), there.state(0)), (0, PortState::Down));
        // Once its error is taken it is quiet.
        let mut completions = Vec::new();
        let deadline = Instant::now() + DEADLINE;
        loop {
            ring.enter(Wait::Sleep(Duration::from_millis(50))).unwrap();
            ring.take(&mut completions, 16);
            if completions.drain(..).count() == 0 {
                break;
            }
            assert!(Instant::now() < deadline, "a port that is down keeps the ring awake");
        }
        set_up(&far, "b");
        until_ready(&near, "a");
        assert_eq!(there.state(0), PortState::Up);
    }
}

/// Takes and counts until so many payloads have come, in the order in which they come.
fn receive_in_order(ports: &mut PacketPorts, count: usize) -> Vec<u32> {
    let deadline = Instant::now() + DEADLINE;
    let mut numbers = Vec::new();
    while numbers.len() < count {
        assert!(Instant::now() < deadline, "{} of {count}: {:?}", numbers.len(), ports.rx_counts(0));
        ports.take(BATCH_MAX);
        numbers.extend(ports.frames().map(|frame| u32::from_be_bytes(frame.bytes[14..18].try_into().unwrap())));
    }
    ports.flush();
    numbers
}

#[test]
fn a_burst_of_small_frames_fits() {
    if privilege::ensure(a_burst_of_small_frames_fits).unwrap() == Privilege::Delegated {
        return;
    }
    const BURST: u32 = 2_000;
    let (near, far) = wire();
    let (mut here, mut there) = (ports(&near, "a", &QUEUED), ports(&far, "b", &QUEUED));
    for number in 0..BURST {
        here.send_bytes(0, &frame(BROADCAST, &[&number.to_be_bytes()[..], &[0; 42]].concat()), Offload::NONE, None);
    }
    here.flush();
    assert_eq!(receive_in_order(&mut there, BURST as usize), (0..BURST).collect::<Vec<_>>());
    assert_eq!(there.rx_counts(0).dropped, 0);
}

#[test]
fn small_and_large_frames_keep_their_order() {
    if privilege::ensure(small_and_large_frames_keep_their_order).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = wire();
    for (host, name) in [(&near, "a"), (&far, "b")] {
        host.links().unwrap().set_mtu(name, 9_000).unwrap();
    }
    let mut here = ports(&near, "a", &QUEUED);
    // All to the second of two workers: BPF_RET | BPF_K.
    let second = || far.run(|| open("b", 2, &[(0x06, 0, 0, 1)], &QUEUED)).unwrap().unwrap().split_off(1);
    let alone = || far.run(|| open("b", 1, &[], &QUEUED)).unwrap().unwrap();
    for open_there in [&alone as &dyn Fn() -> Vec<PacketPort>, &second] {
        let mut there = PacketPorts::new(open_there());
        let mut round_of = |round: u32| {
            for number in 0..40 {
                // Some large ones among the small, in changing places: more than there are buffers for.
                let len = if (number * 7 + round).is_multiple_of(3) { 4_000 } else { 46 };
                let mut payload = vec![0; len];
                payload[..4].copy_from_slice(&number.to_be_bytes());
                here.send_bytes(0, &frame(BROADCAST, &payload), Offload::NONE, None);
            }
            here.flush();
            receive_in_order(&mut there, 40)
        };
        let order = Vec::from_iter(0..40);
        for round in 0..100 {
            assert_eq!(round_of(round), order, "round {round}");
        }
        let counts = there.rx_counts(0);
        assert_eq!((counts.dropped, counts.truncated, counts.unknown), (0, 0, 0));
    }
}

#[test]
fn a_full_queue_loses_large_frames_and_counts_them() {
    if privilege::ensure(a_full_queue_loses_large_frames_and_counts_them).unwrap() == Privilege::Delegated {
        return;
    }
    const BURST: u32 = 500;
    let (near, far) = wire();
    for (host, name) in [(&near, "a"), (&far, "b")] {
        host.links().unwrap().set_mtu(name, 9_000).unwrap();
    }
    let tight = RingSettings { queued_bytes_max: 256 << 10, ..QUEUED };
    let (mut here, mut there) = (ports(&near, "a", &QUEUED), ports(&far, "b", &tight));
    let large = |number: u32| [&number.to_be_bytes()[..], &[7; 3_996]].concat();
    let mut received = 0;
    for round in 1..=2 {
        for number in 0..BURST {
            here.send_bytes(0, &frame(BROADCAST, &large(number)), Offload::NONE, None);
        }
        // Passed over, and out of the way of what comes behind it.
        here.send_bytes(0, &frame([2, 9, 9, 9, 9, 9], &large(0)), Offload::NONE, None);
        here.send_bytes(0, &frame(BROADCAST, &[1; 46]), Offload::NONE, None);
        here.flush();
        let (deadline, mut last, mut is_over) = (Instant::now() + DEADLINE, None, false);
        while !is_over {
            assert!(Instant::now() < deadline, "round {round}: {:?}", there.rx_counts(0));
            there.take(BATCH_MAX);
            for frame in there.frames() {
                is_over = frame.bytes[14..] == [1; 46];
                if !is_over {
                    let number = u32::from_be_bytes(frame.bytes[14..18].try_into().unwrap());
                    assert!(
                        frame.bytes[14..] == large(number) && last < Some(number),
                        "round {round}: {number} {last:?}"
                    );
                    last = Some(number);
                    received += 1;
                }
            }
            there.flush();
        }
        let counts = there.rx_counts(0);
        // The queue may have had no room for the foreign one either: a slot alone tells whom it was for.
        assert_eq!(
            (counts.foreign, received + counts.dropped),
            (u64::from(round), u64::from(round * BURST)),
            "{counts:?}"
        );
        assert!(received > 0 && counts.dropped > 0, "{counts:?}");
    }
}
