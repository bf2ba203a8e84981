//! Frames with VLAN tags: taken off and told, put in again.

use super::*;

/// Of VLAN 10 with priority 5 and drop eligibility.
const TAGGED: Tag = Tag { protocol: Tag::DOT1Q, control: 0xb00a };

fn ports_of_vlans(host: &Namespace, interface: &str, vlans: &[u16]) -> PacketPorts {
    let mut opened = host.run(|| open(interface, 1, &[], &QUEUED)).unwrap().unwrap();
    opened.iter_mut().for_each(|port| port.take_vlans(vlans));
    PacketPorts::new(opened)
}

/// Waits for the next frame on port 0, which is the batch then: its tag and payload.
fn one(ports: &mut PacketPorts) -> (Option<Tag>, Vec<u8>) {
    let deadline = Instant::now() + DEADLINE;
    while ports.take(1) == 0 {
        host::await_readable(&ports.poll_fd(0), deadline.saturating_duration_since(Instant::now())).unwrap();
    }
    let frame = ports.frames().next().unwrap();
    (frame.tag, frame.bytes[14..].to_vec())
}

#[test]
fn tags_come_beside_the_frame_and_leave_in_it() {
    if privilege::ensure(tags_come_beside_the_frame_and_leave_in_it).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = wire();
    let (mut here, mut there) = (ports_of_vlans(&near, "a", &[20]), ports_of_vlans(&far, "b", &[10]));
    let mut send = |number: u8, tag| {
        here.send_bytes(0, &frame(BROADCAST, &[number; 46]), Offload::NONE, tag);
        here.flush();
    };
    send(1, Some(TAGGED));
    assert_eq!(one(&mut there), (Some(TAGGED), vec![1; 46]));
    // One frame, by one port, three times.
    there.send(0, 0, Some(Tag::of_vlan(20, Some(TAGGED))));
    there.send(0, 0, None);
    there.send(0, 0, Some(Tag::of_vlan(20, None)));
    there.flush();
    for tag in [Some(Tag { control: 0xb014, ..TAGGED }), None, Some(Tag { control: 20, ..TAGGED })] {
        assert_eq!(one(&mut here), (tag, vec![1; 46]));
    }
    let mut send = |number: u8, tag| {
        here.send_bytes(0, &frame(BROADCAST, &[number; 46]), Offload::NONE, tag);
        here.flush();
    };
    // Another VLAN, a stacked tag, a priority without a VLAN, none.
    send(2, Some(Tag::of_vlan(11, None)));
    send(3, Some(Tag { protocol: 0x88a8, control: 10 }));
    let priority = Some(Tag { control: 0xe000, ..TAGGED });
    send(4, priority);
    send(5, None);
    assert_eq!(one(&mut there), (priority, vec![4; 46]));
    assert_eq!(one(&mut there), (None, vec![5; 46]));
    assert_eq!(there.rx_counts(0).tagged, 2);
    here.send_bytes(0, &[0; 11], Offload::NONE, Some(TAGGED));
    assert_eq!((here.tx_counts(0).refused, there.tx_counts(0).bytes), (1, 3 * 60 + 2 * 4));
}

#[test]
fn tcp_passes_whole_over_a_trunk() {
    if privilege::ensure(tcp_passes_whole_over_a_trunk).unwrap() == Privilege::Delegated {
        return;
    }
    // Client — tagger — trunk — tagger — server.
    let (client, server) = (Namespace::create().unwrap(), Namespace::create().unwrap());
    let (near, far) = (quiet_host(), quiet_host());
    for (host, end) in [(&client, 1), (&server, 2)] {
        let mut links = host.links().unwrap();
        links.create_veth("e", "edge", if end == 1 { &near } else { &far }).unwrap();
        links.add_address("e", IpAddr::from([10, 9, 0, end]), 24).unwrap();
        links.add_address("e", format!("fd09::{end}").parse().unwrap(), 64).unwrap();
        links.set_up("e").unwrap();
    }
    near.links().unwrap().create_veth("trunk", "trunk", &far).unwrap();
    // Each end has the address of the station that frames which come in there are for.
    let station = |host: &Namespace| host.links().unwrap().find("e").unwrap().hardware_address;
    for (tagger, edge, trunk) in
        [(&near, station(&server), station(&client)), (&far, station(&client), station(&server))]
    {
        let mut links = tagger.links().unwrap();
        for (name, address) in [("edge", edge), ("trunk", trunk)] {
            links.set_hardware_address(name, address.try_into().unwrap()).unwrap();
            links.set_up(name).unwrap();
        }
    }
    let tagger = |host: &Namespace| {
        let opened = host.run(|| ["edge", "trunk"].map(|name| open(name, 1, &[], &QUEUED).unwrap().remove(0))).unwrap();
        let [edge, mut trunk] = opened;
        trunk.take_vlans(&[10]);
        PacketPorts::new(vec![edge, trunk])
    };
    let taggers = [tagger(&near), tagger(&far)];
    let ended = AtomicBool::new(false);
    let large = thread::scope(|scope| {
        let end = End(&ended);
        let turns = taggers.map(|tagger| scope.spawn(|| carry(tagger, &ended)));
        for to in ["10.9.0.2:0", "[fd09::2]:0"] {
            let sum = transfer(&client, &server, to, 32 << 20);
            assert_eq!(sum.unwrap(), 32 << 20, "{to}");
        }
        drop(end);
        turns.map(|turn| turn.join().unwrap())
    });
    assert!(large.iter().sum::<usize>() > 100, "{large:?} super-packets with a tag");
}

/// Puts tags in front of the trunk (port 1) and takes them off behind it; returns how many super-packets came with one.
fn carry(mut ports: PacketPorts, ended: &AtomicBool) -> usize {
    let mut large = 0;
    while !ended.load(Ordering::Relaxed) {
        let count = ports.take(BATCH_MAX);
        let from: Vec<u8> = ports
            .frames()
            .map(|frame| {
                assert_eq!(frame.tag, (frame.port == 1).then_some(TAGGED));
                large += usize::from(frame.port == 1 && frame.offload.segments.is_some());
                frame.port
            })
            .collect();
        for (index, from) in from.into_iter().enumerate() {
            ports.send(index, 1 - from, (from == 0).then_some(TAGGED));
        }
        ports.flush();
        if count == 0 {
            thread::yield_now();
        }
    }
    for port in 0..2 {
        let (sent, received) = (ports.tx_counts(port), ports.rx_counts(port));
        assert_eq!((sent.too_large, sent.down, sent.refused, received.truncated, received.tagged), (0, 0, 0, 0, 0));
    }
    large
}

#[test]
fn questions_about_neighbours_are_heard_with_their_tags_and_nothing_else_is() {
    if privilege::ensure(questions_about_neighbours_are_heard_with_their_tags_and_nothing_else_is).unwrap()
        == Privilege::Delegated
    {
        return;
    }
    let (near, far) = wire();
    let mut hearing = far.run(Hearing::open).unwrap().unwrap();
    let mut here = ports_of_vlans(&near, "a", &[10, 20]);
    let link = far.links().unwrap().find("b").unwrap();
    let station: [u8; 6] = link.hardware_address.try_into().unwrap();
    let arp = |to: [u8; 6]| [&to, &[2, 0, 0, 0, 0, 1], &[8, 6][..], &[7; 46]].concat();
    let v6 = |next: u8, kind: u8| {
        let header = [&[0x60, 0, 0, 0, 0, 8, next, 255][..], &[1; 32]].concat();
        [&station, &[2, 0, 0, 0, 0, 1], &[0x86, 0xdd][..], &header, &[kind, 0, 0, 0, 0, 0, 0, 0]].concat()
    };
    let silent = [frame(BROADCAST, &[9; 46]), arp([2, 9, 9, 9, 9, 9]), v6(58, 134), v6(58, 137), v6(17, 135)];
    let heard =
        [(arp(BROADCAST), Some(TAGGED)), (arp(station), None), (v6(58, 135), None), (v6(58, 136), Some(TAGGED))];
    for bytes in &silent {
        here.send_bytes(0, bytes, Offload::NONE, None);
    }
    for (bytes, tag) in &heard {
        here.send_bytes(0, bytes, Offload::NONE, *tag);
    }
    here.flush();
    for (bytes, tag) in &heard {
        host::await_readable(&hearing, DEADLINE).unwrap();
        let got = hearing.take().unwrap();
        assert_eq!(got, Some(HeardFrame { interface: link.index, tag: *tag, bytes }));
    }
    assert_eq!(hearing.take().unwrap(), None);
    hearing.send(link.index, Some(TAGGED), &frame(BROADCAST, &[3; 46])).unwrap();
    hearing.send(link.index, None, &frame(BROADCAST, &[4; 46])).unwrap();
    assert_eq!(one(&mut here), (Some(TAGGED), vec![3; 46]));
    assert_eq!(one(&mut here), (None, vec![4; 46]));
    assert_eq!(hearing.take().unwrap(), None, "what it sends itself");
}

#[test]
fn a_connection_is_heard_on_its_interface_only() {
    if privilege::ensure(a_connection_is_heard_on_its_interface_only).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = wire();
    near.links().unwrap().create_veth("c", "d", &far).unwrap();
    near.links().unwrap().set_up("c").unwrap();
    set_up(&far, "d");
    until_ready(&near, "c");
    let links = ["b", "d"].map(|name| far.links().unwrap().find(name).unwrap().index);
    let hear = |link, port| far.run(|| Hearing::of_connection(link, port, 443)).unwrap();
    let mut both = links.map(|link| hear(link, 61_000).unwrap());
    let segment = |from: u16, to: u16| {
        let header = [&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6][..], &[1; 10]].concat();
        let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
        [&BROADCAST[..], &[2, 0, 0, 0, 0, 1], &[8, 0], &header, &ports, &[0; 16]].concat()
    };
    let mut here = [ports_of_vlans(&near, "a", &[]), ports_of_vlans(&near, "c", &[])];
    for (wire, link) in [1, 0].into_iter().map(|wire| (wire, links[wire])) {
        for (from, to) in [(443, 61_001), (444, 61_000), (443, 61_000)] {
            here[wire].send_bytes(0, &segment(from, to), Offload::NONE, None);
        }
        here[wire].flush();
        host::await_readable(&both[wire], DEADLINE).unwrap();
        let got = both[wire].take().unwrap();
        assert_eq!(got, Some(HeardFrame { interface: link, tag: None, bytes: &segment(443, 61_000) }));
        // Of what it sends itself, and of the other wire.
        both[wire].send(link, None, &segment(443, 61_000)).unwrap();
        assert!(both.iter_mut().all(|hearing| hearing.take().unwrap().is_none()));
    }
    assert_eq!(hear(9_999, 61_000).unwrap_err().raw_os_error(), Some(libc::ENODEV));
}
