//! The neighbours of ports that we keep: which station has which address on a VLAN or a bridge, where the kernel has no interface and knows nobody.
//!
//! Who is wanted is asked for, three times at most; who has answered is asked again now and then, alone, and forgotten when no answer comes
//! (RFC 826, RFC 4861 section 7.3). No I/O: what is heard on those links comes in, questions go out. Whoever owns the table puts what is known into
//! the next [`Network`].
//!
//! Everybody on such a link can make us ask, or tell us of itself, so nothing here grows without bound: the newest takes the place of the oldest.

use std::collections::{BTreeMap, BTreeSet};

use super::reply::{Macs, arp_question, solicitation};
use super::{Keeper, Network, PortId};
use crate::Now;
use crate::counters::counters;
use crate::packet::{Arp, ArpOperation, Ip, Mac, Nd, NdKind, Packet, parse};

/// Neighbours known at a time, on all links together.
pub const NEIGHBOURS_MAX: usize = 4_096;
/// Neighbours asked for at a time who are not known.
const ASKED_MAX: usize = 256;
/// Questions to one neighbour without an answer, and the time between two (RFC 4861 section 10: MAX_MULTICAST_SOLICIT, MAX_UNICAST_SOLICIT, RETRANS_TIMER).
const QUESTIONS_MAX: u8 = 3;
const ASK_AGAIN_MS: u64 = 1_000;
/// How long an answer holds: somewhat less than REACHABLE_TIME, and than half of the time after which switches forget a station.
const CONFIRM_MS: u64 = 20_000;
/// Over this time the questions are spread when all are in doubt.
const DOUBT_MS: u64 = 1_000;

counters!(
    /// What the table of neighbours counts.
    NeighbourCounter {
        Asked = "asked", "Questions for neighbours on VLANs and bridges.";
        Duplicates = "duplicates", "Times that another station said that it has an address of ours.";
        Evicted = "evicted", "Neighbours forgotten, or no longer asked for, because there was no room for newer ones.";
        Learned = "learned", "Neighbours that became known.";
        Lost = "lost", "Known neighbours that did not answer any more.";
        Moved = "moved", "Known neighbours that were found at another station.";
        Unanswered = "unanswered", "Neighbours that were asked for in vain.";
    }
);

/// What was counted, by [`NeighbourCounter`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighbourCounts([u64; NeighbourCounter::ALL.len()]);

impl NeighbourCounts {
    /// The value of a counter.
    pub fn read(&self, counter: NeighbourCounter) -> u64 {
        self.0[counter as usize]
    }

    fn add(&mut self, counter: NeighbourCounter) {
        self.0[counter as usize] += 1;
    }
}

/// What a frame told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Another station says that it has this address of ours.
    Duplicate(Ip, Mac),
    /// A neighbour is known now, or somewhere else: the network is another one.
    News,
    /// What was known, or does not matter.
    Nothing,
}

/// The neighbours of all ports whose [`Keeper`] we are.
#[derive(Debug)]
pub struct Neighbours {
    entries: BTreeMap<Key, Entry>,
    /// What is due when.
    schedule: BTreeSet<(Now, Key)>,
    known_max: usize,
    /// Of the entries, how many are not known.
    asked: usize,
    /// Addresses that we answer for, beside those of the ports.
    ours: BTreeSet<Ip>,
    counts: NeighbourCounts,
}

/// A link, by the lowest of its ports, and an address on it.
type Key = (PortId, Ip);

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The port that it was last heard by.
    port: PortId,
    /// Its station; `None` while it is asked for.
    mac: Option<Mac>,
    /// Since when it is asked for, or when it was last heard.
    since: Now,
    /// When it is asked next.
    due: Now,
    /// Questions since then.
    questions: u8,
}

/// How much a message says about its sender.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strength {
    /// It answers a question of ours: the sender hears us.
    Answer,
    /// It tells of an address without saying that it replaces what is known (RFC 4861 section 7.2.5).
    Hint,
    /// It asks us, or tells everybody.
    Word,
}

impl Neighbours {
    /// Of nobody yet. `ours`: VIPs and SNAT addresses; `known_max`: usually [`NEIGHBOURS_MAX`].
    pub fn new(ours: BTreeSet<Ip>, known_max: usize) -> Neighbours {
        let (entries, schedule) = (BTreeMap::new(), BTreeSet::new());
        Neighbours { entries, schedule, known_max, asked: 0, ours, counts: NeighbourCounts::default() }
    }

    /// These are VIPs and SNAT addresses from here on.
    pub fn follow(&mut self, ours: BTreeSet<Ip>) {
        self.ours = ours;
    }

    /// Has a neighbour asked for that somebody has packets for; nothing happens if it is known, or asked for already.
    pub fn want(&mut self, now: Now, network: &Network, port: PortId, ip: Ip) {
        let key = (network.segment(port), ip);
        if self.entries.contains_key(&key) || !is_kept(network, port) {
            return;
        }
        if self.asked >= ASKED_MAX {
            self.evict(|entry| entry.mac.is_none());
        }
        self.put(key, Entry { port, mac: None, since: now, due: now, questions: 0 });
    }

    /// Reads a frame that came in by `port`; only ARP and neighbour messages tell something.
    pub fn hear(&mut self, now: Now, network: &Network, port: PortId, frame: &[u8]) -> Heard {
        if !is_kept(network, port) {
            return Heard::Nothing;
        }
        match parse(frame) {
            Ok(Packet::Arp(arp)) => self.hear_arp(now, network, port, &arp),
            Ok(Packet::Nd(nd)) => self.hear_nd(now, network, port, &nd),
            _ => Heard::Nothing,
        }
    }

    /// RFC 826: who asks us is remembered, who is known already is believed whatever it says.
    fn hear_arp(&mut self, now: Now, network: &Network, port: PortId, arp: &Arp) -> Heard {
        let strength = match arp.operation {
            ArpOperation::Reply => Strength::Answer,
            ArpOperation::Request => Strength::Word,
        };
        self.learn(now, network, (port, arp.sender), arp.sender_mac, strength, arp.target)
    }

    fn hear_nd(&mut self, now: Now, network: &Network, port: PortId, nd: &Nd) -> Heard {
        let (ip, strength) = match nd.kind {
            NdKind::Solicitation => (nd.src, Strength::Word),
            NdKind::Advertisement { solicited: true, overrides: true, .. } => (nd.target, Strength::Answer),
            NdKind::Advertisement { solicited: false, overrides: true, .. } => (nd.target, Strength::Word),
            NdKind::Advertisement { overrides: false, .. } => (nd.target, Strength::Hint),
        };
        match nd.link_layer {
            Some(mac) => self.learn(now, network, (port, ip), mac, strength, nd.target),
            // What it does not say is as it was.
            None => match self.entries.get(&(network.segment(port), ip)).and_then(|entry| entry.mac) {
                Some(mac) if strength != Strength::Word => {
                    self.learn(now, network, (port, ip), mac, strength, nd.target)
                }
                _ => Heard::Nothing,
            },
        }
    }

    /// `mac` says that it has `ip`, in a message about `target`.
    fn learn(
        &mut self,
        now: Now,
        network: &Network,
        (port, ip): Key,
        mac: Mac,
        strength: Strength,
        target: Ip,
    ) -> Heard {
        let is_nobody = ip.0 == [0; 16] || ip.v4_octets() == [0; 4] && ip.is_v4();
        // What we say ourselves may come back over a bridge.
        if is_nobody || mac.is_group() || mac == Mac::default() || network.ports.iter().any(|port| port.mac == mac) {
            return Heard::Nothing;
        }
        if self.is_ours(network, ip) {
            self.counts.add(NeighbourCounter::Duplicates);
            return Heard::Duplicate(ip, mac);
        }
        let key = (network.segment(port), ip);
        let known = Entry { port, mac: Some(mac), since: now, due: now + CONFIRM_MS, questions: 0 };
        match self.entries.get(&key).copied() {
            Some(Entry { mac: None, .. }) => {
                self.make_room();
                self.put(key, known);
                self.counts.add(NeighbourCounter::Learned);
                Heard::News
            }
            Some(before) if before.mac == Some(mac) && before.port == port => {
                if strength != Strength::Hint {
                    self.put(key, known);
                }
                Heard::Nothing
            }
            // It does not replace what is known, but makes it doubtful.
            Some(before) if strength == Strength::Hint => {
                self.put(key, Entry { due: now.min(before.due), ..before });
                Heard::Nothing
            }
            Some(_) => {
                self.put(key, known);
                self.counts.add(NeighbourCounter::Moved);
                Heard::News
            }
            None => {
                let is_near = network.is_on_link(ip).is_some_and(|near| network.segment(near) == key.0);
                if strength != Strength::Word || !is_near || !self.is_ours(network, target) {
                    return Heard::Nothing;
                }
                self.make_room();
                self.put(key, known);
                self.counts.add(NeighbourCounter::Learned);
                Heard::News
            }
        }
    }

    /// Hands `send` the questions that are due; says whether a neighbour was lost, so that the network is another one.
    pub fn ask(&mut self, now: Now, network: &Network, mut send: impl FnMut(PortId, &[u8])) -> bool {
        let mut is_lost = false;
        while let Some(&(due, key)) = self.schedule.first()
            && due <= now
        {
            let Some(entry) = self.entries.get(&key).copied() else {
                self.schedule.pop_first();
                continue;
            };
            if entry.questions >= QUESTIONS_MAX || !is_kept(network, entry.port) {
                is_lost |= entry.mac.is_some();
                self.counts.add(if entry.mac.is_some() {
                    NeighbourCounter::Lost
                } else {
                    NeighbourCounter::Unanswered
                });
                self.remove(key);
                continue;
            }
            self.put(key, Entry { questions: entry.questions + 1, due: now + ASK_AGAIN_MS, ..entry });
            self.counts.add(NeighbourCounter::Asked);
            // A station that is known is asked alone, where it is; anybody, by both arms of a bridge.
            let peer = network.port(entry.port).and_then(|port| port.peer).filter(|_| entry.mac.is_none());
            for port in [Some(entry.port), peer].into_iter().flatten() {
                question(network, port, entry.mac, key.1, |frame| send(port, frame));
            }
        }
        is_lost
    }

    /// A link may lead elsewhere now: everybody who is known is asked soon.
    pub fn doubt_all(&mut self, now: Now) {
        let known: Vec<(Key, Entry)> =
            self.entries.iter().filter(|(_, entry)| entry.mac.is_some()).map(|(&key, &entry)| (key, entry)).collect();
        for ((key, entry), number) in known.into_iter().zip(0..) {
            self.put(key, Entry { due: entry.due.min(now + number % DOUBT_MS), ..entry });
        }
    }

    /// When [`Neighbours::ask`] has something to do next; `None` while nobody is known or asked for.
    pub fn next_due(&self) -> Option<Now> {
        self.schedule.first().map(|&(due, _)| due)
    }

    /// Who is known: the port that it was last heard by, its address, its station.
    pub fn known(&self) -> impl Iterator<Item = (PortId, Ip, Mac)> + '_ {
        self.entries.iter().filter_map(|(&(_, ip), entry)| Some((entry.port, ip, entry.mac?)))
    }

    /// What was counted since it was made.
    pub fn counts(&self) -> &NeighbourCounts {
        &self.counts
    }

    fn is_ours(&self, network: &Network, ip: Ip) -> bool {
        self.ours.contains(&ip) || network.is_own(ip)
    }

    fn make_room(&mut self) {
        if self.entries.len() - self.asked >= self.known_max {
            self.evict(|entry| entry.mac.is_some());
        }
    }

    /// Forgets the one of those that `may_go` that was heard or asked for the longest time ago.
    fn evict(&mut self, may_go: impl Fn(&Entry) -> bool) {
        let oldest = self.entries.iter().filter(|(_, entry)| may_go(entry)).min_by_key(|(_, entry)| entry.since);
        if let Some((&key, _)) = oldest {
            self.remove(key);
            self.counts.add(NeighbourCounter::Evicted);
        }
    }

    fn put(&mut self, key: Key, entry: Entry) {
        self.remove(key);
        self.asked += usize::from(entry.mac.is_none());
        self.schedule.insert((entry.due, key));
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.asked -= usize::from(entry.mac.is_none());
            self.schedule.remove(&(entry.due, key));
        }
    }
}

/// Whether the neighbours of this port are ours to know.
fn is_kept(network: &Network, port: PortId) -> bool {
    network.port(port).is_some_and(|port| port.keeper == Keeper::Towpath)
}

/// Makes one question for `ip` to leave by `port`: to a station, or to all.
fn question(network: &Network, port: PortId, to: Option<Mac>, ip: Ip, send: impl FnOnce(&[u8])) {
    let Some(own) = network.port(port) else { return };
    let from = network.speaker(port, ip).map(|(from, _)| from);
    match ip.is_v4() {
        true => send(&arp_question(Macs { src: own.mac, dst: to.unwrap_or(Mac::BROADCAST) }, from, ip)),
        false => send(&solicitation(own.mac, to, from, ip)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::Port;
    use super::super::reply::{advertisement, arp_announcement, arp_reply, unsolicited_advertisement};
    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 1, 1]);
    const OTHERS: Mac = Mac([2, 0, 0, 0, 1, 2]);
    const WIRE: PortId = PortId(0);
    const TAGGED: PortId = PortId(1);

    fn ip(text: &str) -> Ip {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    /// A wire of the kernel's and a VLAN of ours on it.
    fn network() -> Network {
        let wire = Port { name: "wire".into(), mac: OURS, mtu: 1500, ..Port::default() };
        let addresses = vec![(ip("10.20.0.1"), 24), (ip("2001:db8:20::1"), 64)];
        let tagged = Port { vlan: Some(20), keeper: Keeper::Towpath, addresses, ..wire.clone() };
        let routes = vec![(ip("10.20.0.0"), 24, None, TAGGED, 0), (ip("2001:db8:20::"), 64, None, TAGGED, 0)];
        Network::new(vec![wire, tagged], routes, vec![])
    }

    fn neighbours() -> Neighbours {
        Neighbours::new(BTreeSet::from([ip("10.20.0.80")]), NEIGHBOURS_MAX)
    }

    fn ask(neighbours: &mut Neighbours, now: u64, network: &Network) -> (bool, Vec<(PortId, Packet)>) {
        let mut questions = Vec::new();
        let is_lost = neighbours.ask(Now(now), network, |port, frame| questions.push((port, parse(frame).unwrap())));
        (is_lost, questions)
    }

    fn question_for(ip: &str, to: Option<Mac>) -> Vec<u8> {
        let mut made = Vec::new();
        question(&network(), TAGGED, to, self::ip(ip), |frame| made = frame.to_vec());
        made
    }

    /// What the station at `mac` answers to a question.
    fn answer(question: &[u8], mac: Mac) -> Vec<u8> {
        match parse(question).unwrap() {
            Packet::Arp(arp) => arp_reply(&arp, mac).to_vec(),
            Packet::Nd(nd) => advertisement(&nd, OURS, mac).to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn known(neighbours: &Neighbours) -> Vec<(PortId, Ip, Mac)> {
        neighbours.known().collect()
    }

    #[test]
    fn who_is_wanted_is_asked_for_and_known_by_the_answer() {
        let network = network();
        for address in ["10.20.0.9", "2001:db8:20::9"] {
            let mut neighbours = neighbours();
            neighbours.want(Now(5), &network, TAGGED, ip(address));
            neighbours.want(Now(6), &network, TAGGED, ip(address));
            assert_eq!(neighbours.next_due(), Some(Now(5)));
            let (_, asked) = ask(&mut neighbours, 6, &network);
            let expected = parse(&question_for(address, None)).unwrap();
            assert_eq!(asked, [(TAGGED, expected)]);
            assert_eq!(ask(&mut neighbours, 900, &network).1.len(), 0);
            assert_eq!(ask(&mut neighbours, 1_006, &network).1.len(), 1, "asked again");
            let heard = neighbours.hear(Now(1_100), &network, TAGGED, &answer(&question_for(address, None), THEIRS));
            assert_eq!((heard, known(&neighbours)), (Heard::News, vec![(TAGGED, ip(address), THEIRS)]));
            // What is known makes its packets leave.
            let next =
                Network::new(network.ports.clone(), vec![(ip(address), 64, None, TAGGED, 0)], known(&neighbours));
            assert_eq!(next.next_hop(ip(address)), crate::plane::NextHop::Ready { port: TAGGED, mac: THEIRS });
        }
    }

    #[test]
    fn three_questions_without_an_answer_are_enough() {
        let (network, mut neighbours) = (network(), neighbours());
        neighbours.want(Now(0), &network, TAGGED, ip("10.20.0.9"));
        let asked: usize = (0..10).map(|second| ask(&mut neighbours, second * 1_000, &network).1.len()).sum();
        assert_eq!((asked, neighbours.next_due()), (3, None));
        assert_eq!(neighbours.counts().read(NeighbourCounter::Unanswered), 1);
        // Whoever wants it again is served again; what the kernel keeps is not ours to ask for.
        neighbours.want(Now(20_000), &network, TAGGED, ip("10.20.0.9"));
        neighbours.want(Now(20_000), &network, WIRE, ip("192.0.2.9"));
        assert_eq!(ask(&mut neighbours, 20_000, &network).1.len(), 1);
    }

    #[test]
    fn who_is_known_is_asked_alone_and_forgotten_when_it_is_silent() {
        let (network, mut neighbours) = (network(), neighbours());
        for address in ["10.20.0.9", "2001:db8:20::9"] {
            neighbours.want(Now(0), &network, TAGGED, ip(address));
            neighbours.hear(Now(0), &network, TAGGED, &answer(&question_for(address, None), THEIRS));
        }
        assert_eq!(ask(&mut neighbours, CONFIRM_MS - 1, &network), (false, vec![]));
        let (_, asked) = ask(&mut neighbours, CONFIRM_MS, &network);
        let expected =
            ["10.20.0.9", "2001:db8:20::9"].map(|address| parse(&question_for(address, Some(THEIRS))).unwrap());
        assert_eq!(asked.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>(), expected);
        // One is there, the other is not.
        let there = answer(&question_for("10.20.0.9", Some(THEIRS)), THEIRS);
        assert_eq!(neighbours.hear(Now(CONFIRM_MS + 5), &network, TAGGED, &there), Heard::Nothing);
        let lost: Vec<bool> =
            (1..5).map(|second| ask(&mut neighbours, CONFIRM_MS + second * 1_000, &network).0).collect();
        assert_eq!(lost, [false, false, true, false]);
        assert_eq!(known(&neighbours), [(TAGGED, ip("10.20.0.9"), THEIRS)]);
        assert_eq!(neighbours.counts().read(NeighbourCounter::Lost), 1);
    }

    #[test]
    fn who_asks_us_is_remembered_and_who_moves_is_followed() {
        let (network, mut neighbours) = (network(), neighbours());
        let asks = |from: &str, target: &str, mac| {
            arp_question(Macs { src: mac, dst: Mac::BROADCAST }, Some(ip(from)), ip(target)).to_vec()
        };
        let mut hear = |frame: &[u8]| neighbours.hear(Now(7), &network, TAGGED, frame);
        assert_eq!(hear(&asks("10.20.0.9", "10.20.0.99", THEIRS)), Heard::Nothing, "not for us");
        assert_eq!(hear(&asks("192.0.2.9", "10.20.0.80", THEIRS)), Heard::Nothing, "not of this link");
        assert_eq!(hear(&asks("0.0.0.0", "10.20.0.80", THEIRS)), Heard::Nothing, "of nobody");
        assert_eq!(hear(&arp_announcement(THEIRS, ip("10.20.0.9"))), Heard::Nothing, "nobody asked for it");
        assert_eq!(hear(&asks("10.20.0.9", "10.20.0.80", THEIRS)), Heard::News, "for a VIP");
        assert_eq!(hear(&asks("10.20.0.8", "10.20.0.1", THEIRS)), Heard::News, "for the port's own");
        assert_eq!(hear(&arp_announcement(OTHERS, ip("10.20.0.9"))), Heard::News, "it has moved");
        assert_eq!(hear(&unsolicited_advertisement(OTHERS, ip("2001:db8:20::9"))), Heard::Nothing);
        let duplicate = Heard::Duplicate(ip("10.20.0.80"), OTHERS);
        assert_eq!(hear(&arp_announcement(OTHERS, ip("10.20.0.80"))), duplicate);
        assert_eq!(hear(&arp_announcement(OURS, ip("10.20.0.80"))), Heard::Nothing, "we ourselves");
        let expected = [("10.20.0.8", THEIRS), ("10.20.0.9", OTHERS)].map(|(at, mac)| (TAGGED, ip(at), mac));
        assert_eq!(known(&neighbours), expected);
        assert_eq!(neighbours.counts().read(NeighbourCounter::Moved), 1);
        assert_eq!(neighbours.hear(Now(7), &network, WIRE, &asks("10.20.0.7", "10.20.0.80", THEIRS)), Heard::Nothing);
    }

    #[test]
    fn an_advertisement_that_does_not_override_makes_doubtful_only() {
        let (network, mut neighbours) = (network(), neighbours());
        let address = ip("2001:db8:20::9");
        neighbours.want(Now(0), &network, TAGGED, address);
        neighbours.hear(Now(0), &network, TAGGED, &answer(&question_for("2001:db8:20::9", None), THEIRS));
        // As of a proxy (RFC 4861 section 7.2.8).
        let mut proxy = unsolicited_advertisement(OTHERS, address).to_vec();
        let (flags, checksum) = (58, 56);
        proxy[flags] = 0;
        let sum = u32::from(u16::from_be_bytes([proxy[checksum], proxy[checksum + 1]])) + 0x2000;
        proxy[checksum..checksum + 2].copy_from_slice(&((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes());
        assert_eq!(neighbours.hear(Now(50), &network, TAGGED, &proxy), Heard::Nothing);
        assert_eq!((known(&neighbours), neighbours.next_due()), (vec![(TAGGED, address, THEIRS)], Some(Now(50))));
    }

    #[test]
    fn a_bridge_asks_by_both_arms_and_knows_by_which_the_answer_came() {
        let arm = |peer, mac| Port {
            mac: Mac([2, 0, 0, 0, 0, mac]),
            keeper: Keeper::Towpath,
            peer: Some(PortId(peer)),
            addresses: if peer == 1 { vec![(ip("10.0.0.1"), 24)] } else { vec![] },
            ..Port::default()
        };
        let network = Network::new(vec![arm(1, 1), arm(0, 2)], vec![(ip("10.0.0.0"), 24, None, PortId(0), 0)], vec![]);
        let mut neighbours = neighbours();
        neighbours.want(Now(0), &network, PortId(0), ip("10.0.0.9"));
        neighbours.want(Now(0), &network, PortId(1), ip("10.0.0.9"));
        let mut frames = Vec::new();
        neighbours.ask(Now(0), &network, |port, frame| frames.push((port, frame.to_vec())));
        assert_eq!(frames.iter().map(|(port, _)| port.0).collect::<Vec<_>>(), [0, 1]);
        let reply = answer(&frames[1].1, THEIRS);
        assert_eq!(neighbours.hear(Now(1), &network, PortId(1), &reply), Heard::News);
        assert_eq!(known(&neighbours), [(PortId(1), ip("10.0.0.9"), THEIRS)]);
        // It is asked where it is, and followed to the other side.
        assert_eq!(ask(&mut neighbours, 1 + CONFIRM_MS, &network).1.len(), 1);
        assert_eq!(neighbours.hear(Now(30_000), &network, PortId(0), &reply), Heard::News);
        assert_eq!(known(&neighbours), [(PortId(0), ip("10.0.0.9"), THEIRS)]);
    }

    #[test]
    fn neither_who_is_asked_for_nor_who_is_known_becomes_too_many() {
        let network = network();
        let mut neighbours = Neighbours::new(BTreeSet::new(), 10);
        let host = |number: u32| Ip::from(Ipv4Addr::from_bits(0x0a14_0000 + number));
        for number in 0..1_000_u32 {
            neighbours.want(Now(number.into()), &network, TAGGED, host(number + 2));
        }
        assert_eq!((neighbours.asked, neighbours.entries.len()), (ASKED_MAX, ASKED_MAX));
        for number in 0..100_u32 {
            let asks = arp_question(Macs { src: THEIRS, dst: OURS }, Some(host(number + 2)), ip("10.20.0.1"));
            assert_eq!(neighbours.hear(Now(2_000 + u64::from(number)), &network, TAGGED, &asks), Heard::News);
        }
        assert_eq!(known(&neighbours).len(), 10);
        assert_eq!(known(&neighbours)[0].1, host(92), "the newest ones");
        assert_eq!(neighbours.schedule.len(), neighbours.entries.len());
        assert_eq!(neighbours.counts().read(NeighbourCounter::Evicted), 1_000 - ASKED_MAX as u64 + 90);
    }

    #[test]
    fn in_doubt_all_are_asked_within_a_second() {
        let (network, mut neighbours) = (network(), neighbours());
        for number in 2..12_u32 {
            let from = Ip::from(Ipv4Addr::from_bits(0x0a14_0000 + number));
            let asks = arp_question(Macs { src: THEIRS, dst: OURS }, Some(from), ip("10.20.0.1"));
            neighbours.hear(Now(0), &network, TAGGED, &asks);
        }
        neighbours.doubt_all(Now(100));
        assert_eq!(neighbours.next_due(), Some(Now(100)));
        assert_eq!(ask(&mut neighbours, 100 + DOUBT_MS, &network).1.len(), 10);
    }
}
