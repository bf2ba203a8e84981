//! The flows of a plane: those that both sides have answered in one table, half-open ones in a small one beside it, with caps per source.
//!
//! Anyone can send a SYN or a datagram. So what nobody has answered takes no room from what is established: a flood fills the small table
//! only, and the lookups of established flows never touch it.

use std::sync::atomic::Ordering;

use super::fast::Fast;
use crate::fast_path::FastId;
use crate::flow::Direction;
use crate::flow::half_open::{HalfOpenSource, HalfOpenSources, SourceFull};
use crate::flow::table::{
    Closed, FlowId, FlowLimits, FlowPath, FlowTable, InsertError, LOOKUP_BATCH, PathHashes, Returns, TIMEOUTS_MAX,
    TimeoutClass, Timeouts, TupleHash,
};
use crate::flow::tcp::{TAG_MAX, TcpTrack};
use crate::flow::udp::UdpTrack;
use crate::packet::{PROTOCOL_TCP, Parsed, TcpFlags, Tuple};
use crate::snapshot::{REAL_SERVERS_MAX, SERVICES_MAX};
use crate::snat::{SnatLease, SnatMaps};
use crate::{Now, PickReason, RealServerId, ServiceId};

/// Flows over IPv6 that hosts inside have opened: whom they are to takes a place among the addresses of ours, and must not use them up.
pub(super) const OUTSIDE_V6_MAX: usize = 16_384;
/// Addresses of ours that the flows of one table name at most: every VIP and real server, and as many SNAT addresses as both; and hosts outside.
const ADDRESSES_MAX: usize = 2 * (SERVICES_MAX + REAL_SERVERS_MAX) + OUTSIDE_V6_MAX;
const _: () = assert!(SERVICES_MAX - 1 <= TAG_MAX as usize);

/// Slots that one search for a flow to evict looks at.
const EVICTION_SLOTS: usize = 16;

/// No lease.
const NO_MAP: u32 = u32::MAX;
/// Not in the fast path.
const NOT_FAST: FastId = FastId(u32::MAX);

/// The state of a flow that each packet reads: of TCP the track, of UDP the word of its track in the same place; the service in its tag.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State(TcpTrack);

impl State {
    pub(super) fn of_tcp(mut track: TcpTrack, service: ServiceId) -> State {
        track.set_tag(service.0);
        State(track)
    }

    pub(super) fn of_udp(track: UdpTrack, service: ServiceId) -> State {
        State::of_tcp(TcpTrack::from_words([track.to_word(), 0, 0, 0, 0, 0]), service)
    }

    #[inline]
    pub(super) fn service(&self) -> ServiceId {
        ServiceId(self.0.tag())
    }

    #[inline]
    pub(super) fn tcp(&self) -> &TcpTrack {
        &self.0
    }

    #[inline]
    pub(super) fn tcp_mut(&mut self) -> &mut TcpTrack {
        &mut self.0
    }

    /// Lets `advance` change the track of a UDP flow.
    #[inline]
    pub(super) fn with_udp<R>(&mut self, advance: impl FnOnce(&mut UdpTrack) -> R) -> R {
        let mut words = self.0.to_words();
        let mut track = UdpTrack::from_word(words[0]);
        let result = advance(&mut track);
        words[0] = track.to_word();
        self.0 = TcpTrack::from_words(words);
        result
    }
}

/// What only the opening and the end of a flow need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detail {
    /// The real server.
    pub(super) server: RealServerId,
    /// Whether it counts as a connection at the desk.
    pub(super) is_counted: bool,
    /// How its server was picked.
    pub(super) why: PickReason,
    /// Sequence number of the last SYN that did not fit the connection and was sent on; 0 when there was none (one with that number is not followed).
    pub(super) other_syn: u32,
    /// Port map of the lease whose address and port the real server sees.
    map: u32,
    /// Number in the fast path; see [`fast`](Detail::fast).
    fast: FastId,
}

impl Default for Detail {
    fn default() -> Detail {
        Detail {
            server: RealServerId(0),
            is_counted: false,
            why: PickReason::Balanced,
            other_syn: 0,
            map: NO_MAP,
            fast: NOT_FAST,
        }
    }
}

impl Detail {
    /// Of a flow that was just picked, with the lease that it goes out by.
    pub(super) fn new(server: RealServerId, why: PickReason, lease: Option<SnatLease>) -> Detail {
        Detail { server, is_counted: true, why, map: lease.map_or(NO_MAP, SnatLease::into_map), ..Detail::default() }
    }

    /// Its number in the fast path, if it is in it.
    pub(super) fn fast(&self) -> Option<FastId> {
        Some(self.fast).filter(|&id| id != NOT_FAST)
    }

    /// It is in the fast path, or not any more.
    pub(super) fn set_fast(&mut self, id: Option<FastId>) {
        self.fast = id.unwrap_or(NOT_FAST);
    }

    /// The same flow in another process: with the real server and the lease that it has there, and in no fast path.
    pub(super) fn renamed(self, server: RealServerId, lease: Option<SnatLease>) -> Detail {
        Detail { server, map: lease.map_or(NO_MAP, SnatLease::into_map), fast: NOT_FAST, ..self }
    }

    /// Port map of its lease, if it still has one.
    pub(super) fn map(&self) -> Option<u32> {
        self.is_leased().then_some(self.map)
    }

    /// Whether it still has a lease.
    pub(super) fn is_leased(&self) -> bool {
        self.map != NO_MAP
    }

    /// Takes the lease out, if there is one; `path` is that of the flow.
    pub(super) fn take_lease(&mut self, path: &FlowPath) -> Option<SnatLease> {
        let map = std::mem::replace(&mut self.map, NO_MAP);
        (map != NO_MAP).then(|| SnatLease::from_map(map, path.server.source()))
    }

    /// Gives the lease back, if there is one; `path` is that of the flow.
    pub(super) fn release(&mut self, path: &FlowPath, maps: Option<&SnatMaps>) {
        if let Some(lease) = self.take_lease(path)
            && let Some(maps) = maps
        {
            maps.release(lease);
        }
    }
}

/// Which table a flow is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The one of half-open flows.
    HalfOpen,
    /// The large one.
    Established,
}

/// A flow and the way that a packet of it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) stage: Stage,
    pub(super) id: FlowId,
    pub(super) direction: Direction,
}

pub(super) type Table = FlowTable<State, Detail>;
const _: () = assert!(Table::BYTES_PER_FLOW <= 128);
pub(super) type Ended = Closed<State, Detail>;

/// Why a flow cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenError {
    /// The large table is full: it could not stay.
    Full,
    /// The table of half-open ones is full.
    HalfOpenFull,
    /// Another flow has its tuples.
    Taken,
}

pub(super) struct Flows {
    pub(super) established: Table,
    pub(super) half_open: Table,
    pub(super) sources: HalfOpenSources,
    /// Of the half-open flows, those that are not TCP.
    pub(super) unanswered: usize,
    unanswered_max: usize,
    /// Of the flows of the large table, those whose answers do not come by here.
    pub(super) one_way: usize,
    one_way_max: usize,
    /// Flows for which [`names_outside_v6`] holds.
    pub(super) outside_v6: usize,
    /// The slot of the large table that the last search for a flow to evict ended at.
    hand: usize,
    /// Flows that were over and gave way to others, not told yet.
    gave_way: u64,
    /// Established flows that the kernel carries onwards, where it does.
    pub(super) fast: Option<Box<Fast>>,
}

impl Flows {
    pub(super) fn new(flows_max: usize, half_open_max: usize, per_source_max: u32, seed: [u64; 2], now: Now) -> Flows {
        let table = |flows_max, seed| {
            let limits = FlowLimits { flows_max, addresses_max: ADDRESSES_MAX };
            FlowTable::new(limits, timeouts(), seed, now)
        };
        Flows {
            established: table(flows_max, seed),
            // Of the same seed: a packet that is in neither is hashed once.
            half_open: table(half_open_max, seed),
            sources: HalfOpenSources::new(half_open_max, per_source_max, seed),
            unanswered: 0,
            unanswered_max: half_open_max.div_ceil(2),
            one_way: 0,
            one_way_max: (flows_max - flows_max / 4).max(1),
            outside_v6: 0,
            hand: 0,
            gave_way: 0,
            fast: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.established.len() + self.half_open.len()
    }

    /// Bytes of both tables and the caps; the address books, less than a megabyte each, are left out.
    pub(super) fn memory_bytes(flows_max: usize, half_open_max: usize) -> usize {
        (flows_max + half_open_max) * Table::BYTES_PER_FLOW + HalfOpenSources::memory_bytes(half_open_max)
    }

    #[inline]
    pub(super) fn table(&self, stage: Stage) -> &Table {
        match stage {
            Stage::HalfOpen => &self.half_open,
            Stage::Established => &self.established,
        }
    }

    #[inline]
    pub(super) fn table_mut(&mut self, stage: Stage) -> &mut Table {
        match stage {
            Stage::HalfOpen => &mut self.half_open,
            Stage::Established => &mut self.established,
        }
    }

    /// The hash of a tuple, the same for both tables.
    #[inline]
    pub(super) fn hash(&self, tuple: &Tuple) -> TupleHash {
        self.established.hash(tuple)
    }

    /// The flow of a packet, in either table.
    pub(super) fn lookup(&self, tuple: &Tuple) -> Option<Found> {
        self.lookup_hashed(self.hash(tuple), tuple)
    }

    /// The same for a tuple whose hash is known.
    #[inline]
    pub(super) fn lookup_hashed(&self, hash: TupleHash, tuple: &Tuple) -> Option<Found> {
        [Stage::Established, Stage::HalfOpen].into_iter().find_map(|stage| {
            let (id, direction) = self.table(stage).lookup_hashed(hash, tuple)?;
            Some(Found { stage, id, direction })
        })
    }

    /// The hashes of a half-open flow, if this packet of it may complete the handshake, whose own is `hash`. `prefetch` is told which lines that reads.
    #[inline]
    pub(super) fn promotion(
        &self,
        id: FlowId,
        hash: TupleHash,
        direction: Direction,
        packet: &Parsed,
        prefetch: impl Fn(*const u8),
    ) -> Option<PathHashes> {
        let is_answer = match packet.tuple.protocol {
            PROTOCOL_TCP => packet.tcp.flags.contains(TcpFlags::ACK) && !packet.tcp.flags.contains(TcpFlags::SYN),
            _ => direction == Direction::Reverse,
        };
        if !is_answer {
            return None;
        }
        let path = self.half_open.path(id)?;
        let hashes = match direction {
            Direction::Forward => PathHashes { client: hash, returns: self.hash(&path.server.reversed()) },
            Direction::Reverse => PathHashes { client: self.hash(&path.client), returns: hash },
        };
        self.sources.prefetch(self.sources.source(path.client.src), &prefetch);
        let other = if direction == Direction::Forward { hashes.returns } else { hashes.client };
        prefetch(self.established.entry_line(other));
        Some(hashes)
    }

    /// Reads what the ends of these established flows are going to write, all at a time.
    #[inline(never)]
    pub(super) fn read_ends(&self, ids: &[Option<FlowId>], maps: Option<&SnatMaps>) {
        self.established.touch_timers(ids);
        let mut places = [None; LOOKUP_BATCH];
        for (place, &id) in places.iter_mut().zip(ids.iter().flatten()) {
            *place = maps.zip(self.established.detail(id)).and_then(|(maps, detail)| {
                let port = self.established.outgoing(id, Direction::Forward)?.0.src_port;
                maps.place(detail.map, port)
            });
        }
        let words = places.iter().flatten().fold(0, |words, place| words ^ place.load(Ordering::Relaxed));
        std::hint::black_box(words);
    }

    /// Whether one more half-open flow of this source may be tried.
    pub(super) fn admit(&mut self, source: HalfOpenSource) -> Result<(), SourceFull> {
        self.sources.open(source)
    }

    /// Takes back an [`admit`](Self::admit) that no flow came of.
    pub(super) fn dismiss(&mut self, client: &Tuple) {
        self.sources.close(self.sources.source(client.src));
    }

    /// Makes sure that both tables have a slot for a flow of `client`. UDP gets at most half of the half-open ones: nothing obliges a server to answer a
    /// datagram, so these slots are taken for longer, and TCP must not wait for them.
    /// And three quarters of the large table are for flows whose answers do not come by: who opens one need not even see them.
    pub(super) fn make_room(&mut self, client: &Tuple, returns: Returns) -> Result<(), OpenError> {
        let is_over_half = client.protocol != PROTOCOL_TCP && self.unanswered >= self.unanswered_max;
        if is_over_half || self.half_open.len() == self.half_open.flows_max() {
            return Err(OpenError::HalfOpenFull);
        }
        // Each half-open flow may become one of the large table, but most of a flood never will.
        if self.make_room_established(returns) { Ok(()) } else { Err(OpenError::Full) }
    }

    /// Whether [`make_room`](Self::make_room) will find room for a flow of `client` when so many others have been opened, and need end none for it.
    pub(super) fn has_room_beside(&self, others: usize, client: &Tuple, returns: Returns) -> bool {
        let has_share = client.protocol == PROTOCOL_TCP || self.unanswered + others < self.unanswered_max;
        has_share
            && self.half_open.len() + others < self.half_open.flows_max()
            && self.established.len() < self.established.flows_max()
            && !self.is_over_share(returns)
    }

    /// Whether one more flow with these returns fits into the large table, if need be in place of one that is over.
    pub(super) fn make_room_established(&mut self, returns: Returns) -> bool {
        let has_share = !self.is_over_share(returns) || self.evict(|path| path.returns == Returns::Elsewhere);
        has_share && (self.established.len() < self.established.flows_max() || self.evict(|_| true))
    }

    /// Whether one more flow with this path may name whom it is to, if need be in place of one that is over.
    #[inline]
    pub(super) fn make_room_outside(&mut self, path: &FlowPath) -> bool {
        !names_outside_v6(path) || self.outside_v6 < OUTSIDE_V6_MAX || self.evict(names_outside_v6)
    }

    /// Takes a flow out of the large table that `may_go`, is over, and only waits for late packets. `false`: none is among the slots that this search
    /// looks at; the next one goes on behind them.
    fn evict(&mut self, may_go: impl Fn(&FlowPath) -> bool) -> bool {
        for _ in 0..EVICTION_SLOTS.min(self.established.flows_max()) {
            // Slots are taken from the first one on: behind one that never was taken, none was.
            self.hand = Some(self.hand + 1).filter(|&slot| self.established.was_taken(slot)).unwrap_or(0);
            let Some(id) = self.established.at(self.hand) else { continue };
            let fits = self.established.path(id).is_some_and(|path| may_go(&path));
            if fits && self.is_over(Stage::Established, id) {
                self.give_way(Stage::Established, id);
                return true;
            }
        }
        false
    }

    /// Whether the connection of a flow is over, and nothing rests in it.
    pub(super) fn is_over(&self, stage: Stage, id: FlowId) -> bool {
        self.table(stage).detail(id).is_some_and(|detail| !detail.is_counted && !detail.is_leased())
    }

    pub(super) fn give_way(&mut self, stage: Stage, id: FlowId) {
        self.gave_way += u64::from(self.remove(stage, id).is_some());
    }

    /// Flows that have given way to others since this was asked last.
    pub(super) fn take_gave_way(&mut self) -> u64 {
        std::mem::take(&mut self.gave_way)
    }

    /// Whether flows with these returns have what they may have of the large table.
    fn is_over_share(&self, returns: Returns) -> bool {
        returns == Returns::Elsewhere && self.one_way >= self.one_way_max
    }

    /// Opens an admitted flow. One that has the tuple of its returns, is over, and only waits for late packets gives way to it.
    #[inline]
    pub(super) fn open(
        &mut self,
        now: Now,
        path: &FlowPath,
        hashes: &PathHashes,
        class: TimeoutClass,
        state: State,
        detail: Detail,
    ) -> Result<FlowId, OpenError> {
        if !self.make_room_outside(path) {
            return Err(OpenError::Full);
        }
        if path.returns == Returns::Here
            && let Some((id, _)) = self.established.lookup_hashed(hashes.returns, &path.server.reversed())
        {
            if !self.is_over(Stage::Established, id) {
                return Err(OpenError::Taken);
            }
            self.give_way(Stage::Established, id);
        }
        for _ in 0..2 {
            match self.half_open.insert_hashed(now, path, hashes, class, state, detail) {
                Ok(id) => {
                    self.unanswered += usize::from(!is_tcp(path));
                    self.outside_v6 += usize::from(names_outside_v6(path));
                    return Ok(id);
                }
                Err(InsertError::Full | InsertError::AddressesFull) => return Err(OpenError::HalfOpenFull),
                Err(InsertError::Exists(None)) => return Err(OpenError::Taken),
                Err(InsertError::Exists(Some(id))) => {
                    if !self.is_over(Stage::HalfOpen, id) {
                        return Err(OpenError::Taken);
                    }
                    self.give_way(Stage::HalfOpen, id);
                }
            }
        }
        Err(OpenError::Taken)
    }

    /// Moves a flow that is no longer half open. Without room for it, it is in no table any more.
    #[expect(clippy::result_large_err, reason = "the flow itself, which its caller ends")]
    pub(super) fn promote(&mut self, now: Now, id: FlowId, hashes: &PathHashes) -> Result<FlowId, Option<Ended>> {
        let Some(mut ended) = self.half_open.remove_hashed(id, hashes) else { return Err(None) };
        let Ended { path, class, state, detail, .. } = ended;
        self.left(Stage::HalfOpen, &mut ended);
        if !self.make_room_established(path.returns) {
            return Err(Some(ended));
        }
        let id = self.established.insert_hashed(now, &path, hashes, class, state, detail).map_err(|_| Some(ended))?;
        self.one_way += usize::from(path.returns == Returns::Elsewhere);
        self.outside_v6 += usize::from(names_outside_v6(&path));
        Ok(id)
    }

    /// Takes a flow out.
    pub(super) fn remove(&mut self, stage: Stage, id: FlowId) -> Option<Ended> {
        let mut ended = self.table_mut(stage).remove(id)?;
        self.left(stage, &mut ended);
        Some(ended)
    }

    /// Takes out a flow that was silent for too long; see [`FlowTable::expire`].
    pub(super) fn expire(&mut self, stage: Stage, now: Now, budget: &mut usize) -> Option<Ended> {
        let mut ended = match (stage, &self.fast) {
            (_, None) => self.table_mut(stage).expire(now, budget),
            // One whose handshake is complete is soon heard of.
            (Stage::HalfOpen, Some(fast)) => {
                self.half_open.expire_unless(now, budget, |state, detail| fast.complete(detail, &mut state.clone()))
            }
            (Stage::Established, Some(fast)) => {
                self.established.expire_unless(now, budget, |_, detail| fast.seen(detail))
            }
        }?;
        self.left(stage, &mut ended);
        Some(ended)
    }

    /// A flow has left its table.
    fn left(&mut self, stage: Stage, ended: &mut Ended) {
        let Ended { path, state, detail, .. } = ended;
        match stage {
            Stage::HalfOpen => {
                self.sources.close(self.sources.source(path.client.src));
                self.unanswered -= usize::from(!is_tcp(path));
            }
            Stage::Established => self.one_way -= usize::from(path.returns == Returns::Elsewhere),
        }
        self.outside_v6 -= usize::from(names_outside_v6(path));
        if let Some(fast) = &mut self.fast {
            fast.retire(detail, state);
        }
    }

    /// When [`expire`](Self::expire) next has something to do.
    pub(super) fn next_expiry(&self) -> Option<Now> {
        [self.established.next_expiry(), self.half_open.next_expiry()].into_iter().flatten().min()
    }
}

/// Whether whom the flow is to takes a place among the addresses of ours.
#[inline]
pub(super) fn names_outside_v6(path: &FlowPath) -> bool {
    !path.client.src.is_v4() && path.is_outbound()
}

/// Whether the flow is TCP.
pub(super) fn is_tcp(path: &FlowPath) -> bool {
    path.client.protocol == PROTOCOL_TCP
}

/// The timeouts that flows can have: whole seconds to a minute, then 5 s, 30 s and 60 s apart, to 2 h 4 min; beyond that a few.
///
/// One list for all services, so that a class means the same whatever the snapshot says.
const fn steps_ms() -> [u64; TIMEOUTS_MAX] {
    const LAST_S: [u64; 4] = [4 * 3_600, 8 * 3_600, 86_400, 7 * 86_400];
    let mut steps = [0; TIMEOUTS_MAX];
    let mut second = 0;
    let mut class = 0;
    while class < TIMEOUTS_MAX - LAST_S.len() {
        second += match second {
            0..60 => 1,
            60..300 => 5,
            300..1_800 => 30,
            _ => 60,
        };
        steps[class] = second * 1_000;
        class += 1;
    }
    while class < TIMEOUTS_MAX {
        steps[class] = LAST_S[class + LAST_S.len() - TIMEOUTS_MAX] * 1_000;
        class += 1;
    }
    steps
}

const STEPS_MS: [u64; TIMEOUTS_MAX] = steps_ms();

fn timeouts() -> Timeouts {
    Timeouts::new(&STEPS_MS)
}

/// The class of this timeout, or of the next longer one there is; above a week, of a week.
pub(super) fn timeout_class(timeout_ms: u64) -> TimeoutClass {
    let class = STEPS_MS.partition_point(|&step| step < timeout_ms).min(TIMEOUTS_MAX - 1);
    TimeoutClass(class as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tcp::Sight;

    #[test]
    fn timeouts_as_people_write_them_are_kept_to_the_second() {
        assert!(STEPS_MS.is_sorted());
        for second in [1, 4, 10, 59, 60, 90, 120, 240, 300, 600, 900, 1_800, 3_600, 7_200, 7_440, 14_400, 86_400] {
            assert_eq!(STEPS_MS[usize::from(timeout_class(second * 1_000).0)], second * 1_000);
        }
        assert_eq!(timeout_class(0), TimeoutClass(0));
        assert_eq!(STEPS_MS[usize::from(timeout_class(61_000).0)], 65_000, "rounded up, never down");
        assert_eq!(timeout_class(u64::MAX), TimeoutClass(255));
    }

    #[test]
    fn a_state_keeps_its_service_beside_the_track() {
        let last = ServiceId(SERVICES_MAX as u16 - 1);
        let mut state = State::of_udp(UdpTrack::open(Sight::BothWays), last);
        assert!(state.with_udp(|track| track.advance(Direction::Reverse)).is_first_answer);
        assert!(!state.with_udp(|track| track.is_half_open()));
        assert_eq!(state.service(), last);
        assert_eq!(State::of_tcp(TcpTrack::default(), last).service(), last);
    }
}
