//! By which arm the stations of a bridge are reached, learned from what they send (IEEE 802.1Q section 8.7).
//!
//! A table of fixed size: a station more than there is room for takes the place of the one that has been silent for longest among the few that it
//! could stand beside. What is forgotten is learned again by its next frame. Each bridge has stations of its own: one MAC may be behind several of
//! them, as that of a switch or of virtual routers is (RFC 9568 section 7.3).

use super::super::PortId;
use crate::Now;
use crate::packet::Mac;
use crate::random::mix;

/// Four thousand stations in all.
const SETS: usize = 1 << SET_BITS;
const SET_BITS: u32 = 10;
/// Stations whose addresses have the same hash: one cache line.
const WAYS: usize = 4;
/// Silence after which a station may be anywhere (the default of IEEE 802.1Q table 8-6).
const AGE_MAX_S: u32 = 300;
/// A station that changes arms so often within [`FLAP_S`] is at both ends at once.
const FLAPS: u8 = 4;
const FLAP_S: u32 = 10;

/// What a frame has told about its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// It was known there, or is no station.
    Nothing,
    /// It was not known.
    New {
        /// Another one that was not too old was forgotten for it.
        evicts: bool,
    },
    /// It was known at another port.
    Moved {
        /// And has moved to and fro for some time.
        flaps: bool,
    },
}

#[derive(Clone, Copy, Default)]
struct Station {
    /// All 0: none.
    mac: Mac,
    port: PortId,
    /// Since `moved_s`.
    moves: u8,
    moved_s: u32,
    heard_s: u32,
}

impl Station {
    /// Whether it is that of `mac` at the bridge with these arms.
    fn is(&self, mac: Mac, arms: [PortId; 2]) -> bool {
        self.mac == mac && arms.contains(&self.port)
    }
}

/// The stations.
pub(super) struct Stations {
    sets: Box<[[Station; WAYS]]>,
    seed: u64,
}

impl Stations {
    /// None, and room for four thousand, allocated now. `seed` is secret, so that nobody can have all of them meet in one place.
    pub(super) fn new(seed: u64) -> Stations {
        Stations { sets: vec![[Station::default(); WAYS]; SETS].into(), seed }
    }

    /// A frame of `mac` came in by the first of these arms of one bridge.
    pub(super) fn learn(&mut self, now: Now, mac: Mac, arms: [PortId; 2]) -> Learned {
        let [port, _] = arms;
        if mac.is_group() || mac == Mac::default() {
            return Learned::Nothing;
        }
        let now_s = seconds(now);
        let set = self.set(mac, arms);
        let Some(set) = self.sets.get_mut(set) else { return Learned::Nothing };
        if let Some(station) = set.iter_mut().find(|station| station.is(mac, arms)) {
            let is_known = now_s.saturating_sub(station.heard_s) <= AGE_MAX_S;
            station.heard_s = now_s;
            if station.port == port {
                return Learned::Nothing;
            }
            station.port = port;
            if !is_known || now_s.saturating_sub(station.moved_s) > FLAP_S {
                (station.moves, station.moved_s) = (0, now_s);
            }
            station.moves = station.moves.saturating_add(1);
            return Learned::Moved { flaps: station.moves >= FLAPS };
        }
        // Who is none has never been heard.
        let Some(oldest) = set.iter_mut().min_by_key(|station| (station.mac != Mac::default(), station.heard_s)) else {
            return Learned::Nothing;
        };
        let evicts = oldest.mac != Mac::default() && now_s.saturating_sub(oldest.heard_s) <= AGE_MAX_S;
        *oldest = Station { mac, port, moves: 0, moved_s: 0, heard_s: now_s };
        Learned::New { evicts }
    }

    /// Which of these arms of one bridge `mac` was heard at, if that was not too long ago.
    pub(super) fn port_of(&self, now: Now, mac: Mac, arms: [PortId; 2]) -> Option<PortId> {
        let station = self.sets.get(self.set(mac, arms))?.iter().find(|station| station.is(mac, arms))?;
        let is_known = seconds(now).saturating_sub(station.heard_s) <= AGE_MAX_S && mac != Mac::default();
        is_known.then_some(station.port)
    }

    /// `mac` is at the first of these arms of one bridge by what others say: if it was heard at the other one, that is forgotten.
    pub(super) fn correct(&mut self, mac: Mac, arms: [PortId; 2]) {
        let set = self.set(mac, arms);
        let station = self.sets.get_mut(set).and_then(|set| set.iter_mut().find(|station| station.is(mac, arms)));
        if let Some(station) = station.filter(|station| station.port != arms[0]) {
            *station = Station::default();
        }
    }

    fn set(&self, mac: Mac, [one, other]: [PortId; 2]) -> usize {
        let [a, b, c, d, e, f] = mac.0;
        (mix(u64::from_le_bytes([a, b, c, d, e, f, one.min(other).0, 0]) ^ self.seed) >> (u64::BITS - SET_BITS))
            as usize
    }
}

fn seconds(now: Now) -> u32 {
    u32::try_from(now.0 / 1_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATIONS_MAX: usize = SETS * WAYS;
    const LEFT: PortId = PortId(0);
    const RIGHT: PortId = PortId(1);
    /// Heard at the first.
    const AT_LEFT: [PortId; 2] = [LEFT, RIGHT];
    const AT_RIGHT: [PortId; 2] = [RIGHT, LEFT];

    fn mac(number: u32) -> Mac {
        let [a, b, c, d] = number.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    #[test]
    fn a_station_is_where_it_was_heard_last_for_five_minutes() {
        let mut stations = Stations::new(7);
        let at = |ms| Now(ms);
        assert_eq!(stations.port_of(at(0), mac(1), AT_LEFT), None);
        assert_eq!(stations.learn(at(0), mac(1), AT_LEFT), Learned::New { evicts: false });
        assert_eq!(stations.learn(at(1_000), mac(1), AT_LEFT), Learned::Nothing);
        assert_eq!(stations.port_of(at(301_000), mac(1), AT_LEFT), Some(LEFT));
        assert_eq!(stations.port_of(at(302_000), mac(1), AT_LEFT), None);
        assert_eq!(stations.learn(at(302_000), mac(1), AT_RIGHT), Learned::Moved { flaps: false });
        assert_eq!(stations.port_of(at(302_000), mac(1), AT_LEFT), Some(RIGHT));
    }

    #[test]
    fn who_is_at_both_arms_within_seconds_flaps_and_who_moves_now_and_then_does_not() {
        let mut stations = Stations::new(7);
        let mut move_every = |number, step_ms: u64| {
            stations.learn(Now(0), mac(number), AT_LEFT);
            let arms = [AT_RIGHT, AT_LEFT].into_iter().cycle().zip(1..=8);
            let moves = arms.map(|(arm, step)| stations.learn(Now(step * step_ms), mac(number), arm));
            moves.filter(|learned| *learned == Learned::Moved { flaps: true }).count()
        };
        assert_eq!(move_every(1, 10), 5);
        assert_eq!(move_every(2, 2_000), 2, "moves of ten seconds count");
        assert_eq!(move_every(3, 11_000), 0);
    }

    #[test]
    fn one_mac_at_two_bridges_is_two_stations() {
        let mut stations = Stations::new(7);
        let at_others = [PortId(2), PortId(3)];
        for step in 0..8 {
            stations.learn(Now(step), mac(1), AT_RIGHT);
            let learned = stations.learn(Now(step), mac(1), at_others);
            assert!(!matches!(learned, Learned::Moved { .. }), "in step {step}");
        }
        assert_eq!(stations.port_of(Now(8), mac(1), AT_LEFT), Some(RIGHT));
        assert_eq!(stations.port_of(Now(8), mac(1), at_others), Some(PortId(2)));
    }

    #[test]
    fn groups_and_nobody_are_no_stations() {
        let mut stations = Stations::new(7);
        for mac in [Mac::BROADCAST, Mac([0x33, 0x33, 0, 0, 0, 1]), Mac::default()] {
            assert_eq!(stations.learn(Now(0), mac, AT_LEFT), Learned::Nothing);
            assert_eq!(stations.port_of(Now(0), mac, AT_LEFT), None);
        }
    }

    #[test]
    fn more_stations_than_there_is_room_for_push_out_those_that_were_silent() {
        let mut stations = Stations::new(7);
        let many = 8 * STATIONS_MAX as u32;
        let evicted = |learned: &Learned| matches!(learned, Learned::New { evicts: true });
        let pushed_out =
            (0..many).map(|number| stations.learn(Now(number.into()), mac(number), AT_LEFT)).filter(evicted).count();
        assert_eq!(pushed_out, many as usize - STATIONS_MAX, "every place is taken");
        assert_eq!(stations.port_of(Now(many.into()), mac(many - 1), AT_LEFT), Some(LEFT));
        // Those that are too old to be believed are nobody's loss.
        let later = Now(1_000_000);
        let pushed_out =
            (0..100).map(|number| stations.learn(later, mac(many + number), AT_RIGHT)).filter(evicted).count();
        assert!(pushed_out < 100 && stations.port_of(later, mac(many - 1), AT_LEFT).is_none());
    }
}
