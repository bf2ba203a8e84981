//! A trunk: one wire of the balancer that carries several VLANs, each with a host at its other end. The kernel may have no VLAN interfaces, so a switch of
//! ours takes tags off and puts them in.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use towpath_sys::link::{Route, default_destination};
use towpath_sys::netns::Namespace;
use towpath_sys::packet::{BATCH_MAX, PacketPorts, RingSettings, Tag, open};
use towpath_sys::ring::{self, Readiness, Ring, Wait};

use crate::lab::{beside, beside6};
use crate::{Host, TestLab};

/// The balancer's wire.
pub const TRUNK: &str = "trunk";
/// VLANs of the first host, the second, and so on.
pub const VLANS: [u16; 2] = [10, 20];
/// Priority (PCP) of what the hosts send.
pub const PRIORITY: u16 = 5;

/// Every host has it: stations of different VLANs have nothing to do with each other.
const STATION: [u8; 6] = [2, 0, 0, 0, 0x33, 1];
const PRIORITY_SHIFT: u32 = 13;
/// How long the switch sleeps at most before it looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The switch. It stops when it is dropped.
#[derive(Debug)]
pub struct Trunk {
    ended: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<(u16, u16)>>>,
    thread: Option<JoinHandle<()>>,
}

impl Trunk {
    /// Takes the cables of a two-arm lab's client and server out and connects both to the balancer by a trunk: the client on the first of [`VLANS`], the server on
    /// the second. The balancer's kernel has no address there.
    ///
    /// # Panics
    ///
    /// When it cannot be built.
    pub fn lay(lab: &TestLab) -> Trunk {
        let (balancer, hosts) = (lab.balancer(), [lab.client(), lab.server(1)]);
        let switch = Namespace::create().expect("a namespace");
        switch
            .run(|| fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))
            .expect("a thread")
            .expect("a sysctl");
        let mut links = balancer.links().expect("netlink");
        for host in hosts {
            links.remove(&host.ports()[0].link).expect("a cable to take out");
        }
        links.create_veth(TRUNK, TRUNK, &switch).expect("a trunk");
        let station = links.find(TRUNK).expect("the trunk").hardware_address;
        let station: [u8; 6] = station.try_into().expect("an Ethernet address");
        hosts.iter().for_each(|host| plug(host, &switch));
        // Each end has the address of who is behind the other one, so that frames are for it.
        let names = [TRUNK, hosts[0].name(), hosts[1].name()];
        let mut of_switch = switch.links().expect("netlink");
        for (name, address) in names.into_iter().zip([STATION, station, station]) {
            of_switch.set_hardware_address(name, address).expect("an address");
            of_switch.set_up(name).expect("an end of a cable");
        }
        links.set_up(TRUNK).expect("the trunk");
        let settings = RingSettings::within(32 << 20, 1500);
        let opened = switch.run(|| names.map(|name| open(name, 1, &[], &settings).expect("a port").remove(0)));
        let [mut trunk, first, second] = opened.expect("a thread");
        trunk.take_vlans(&VLANS);
        let ports = PacketPorts::new(vec![trunk, first, second]);
        let (ended, seen) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (is_over, told) = (Arc::clone(&ended), Arc::clone(&seen));
        let turn = move || {
            // So long the switch lives.
            let _switch = switch;
            carry(ports, &is_over, &told);
        };
        let thread = thread::Builder::new().name("switch".to_owned()).spawn(turn).expect("a thread");
        Trunk { ended, seen, thread: Some(thread) }
    }

    /// The VLANs of frames that the balancer has sent, each with a priority.
    pub fn seen(&self) -> BTreeSet<(u16, u16)> {
        self.seen.lock().expect("nobody panicked").clone()
    }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the switch panicked");
    }
}

/// Connects a host to the switch, by a link of the old name and with the addresses that it had; the balancer is its router.
fn plug(host: &Host, switch: &Namespace) {
    let port = &host.ports()[0];
    let mut links = host.links().expect("netlink");
    links.create_veth(&port.link, host.name(), switch).expect("a cable");
    links.set_hardware_address(&port.link, STATION).expect("an address");
    links.add_address(&port.link, port.ipv4.into(), 24).expect("an address");
    links.add_address(&port.link, port.ipv6.into(), 64).expect("an address");
    links.set_up(&port.link).expect("a plug to put in");
    for gateway in [beside(port.ipv4, 1).into(), IpAddr::from(beside6(port.ipv6, 1))] {
        let route =
            Route { destination: default_destination(gateway), gateway: Some(gateway), link: port.link.clone() };
        links.add_route(&route).expect("a route");
    }
}

/// Takes frames from the trunk to the host of their VLAN, without a tag, and back, with one.
fn carry(mut ports: PacketPorts, ended: &AtomicBool, seen: &Mutex<BTreeSet<(u16, u16)>>) {
    let settings = ring::RingSettings {
        entries: 16,
        stream_buffers: 1,
        stream_buffer_bytes: 4096,
        datagram_buffers: 1,
        records: None,
    };
    let mut ring = Ring::new(settings).expect("a ring");
    let arm = |ring: &mut Ring, ports: &PacketPorts, port: u8| {
        ring.await_ready_many(ports.poll_fd(port), Readiness::Readable, port.into()).expect("a poll");
    };
    (0..3).for_each(|port| arm(&mut ring, &ports, port));
    let mut completions = Vec::new();
    let mut came = Vec::with_capacity(BATCH_MAX);
    while !ended.load(Ordering::Relaxed) {
        let count = ports.take(BATCH_MAX);
        came.clear();
        came.extend(ports.frames().map(|frame| (frame.port, frame.tag)));
        for (number, &(port, tag)) in came.iter().enumerate() {
            match tag.and_then(|tag| Some((VLANS.iter().position(|&vlan| tag.vlan() == Some(vlan))?, tag))) {
                Some((place, tag)) if port == 0 => {
                    let note = (VLANS[place], tag.control >> PRIORITY_SHIFT);
                    seen.lock().expect("nobody panicked").insert(note);
                    ports.send(number, 1 + place as u8, None);
                }
                _ if port > 0 => {
                    let priority = Tag { protocol: Tag::DOT1Q, control: PRIORITY << PRIORITY_SHIFT };
                    ports.send(number, 0, Some(Tag::of_vlan(VLANS[usize::from(port) - 1], Some(priority))));
                }
                // The native network has nobody.
                _ => {}
            }
        }
        ports.flush();
        if count == 0 {
            ring.enter(Wait::Sleep(LOOK_EVERY)).expect("a turn of the ring");
            ring.take(&mut completions, 16);
            for completion in completions.drain(..) {
                let port = completion.token() as u8;
                if !completion.more() {
                    arm(&mut ring, &ports, port);
                }
            }
        }
    }
}
