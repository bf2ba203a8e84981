//! The balance methods: which of the members that could take a new connection gets it.

use std::cmp::Ordering;
use std::net::IpAddr;

use towpath_config::model::Balance;

use crate::director::Tried;
use crate::ids::{RealServerId, TargetIndex};
use crate::loads::Loads;
use crate::random::{SplitMix64, hash_address, mix};
use crate::snapshot::{Entrant, EntrantList, REAL_SERVERS_MAX, Service, Target};
use crate::time::Now;

/// Seed of the hash for `source-hash`: fixed, so that every worker, restart and machine agrees about a client.
const SOURCE_HASH_SEED: u64 = 0x746f_7770_6174_6801;

/// Members that may get the connection: a set of places, on the stack.
#[derive(Clone, Debug)]
pub struct Candidates {
    words: [u64; REAL_SERVERS_MAX / 64],
    /// Words that may be other than 0.
    words_len: usize,
}

impl Default for Candidates {
    fn default() -> Candidates {
        Candidates::new()
    }
}

impl Candidates {
    /// Nobody.
    pub fn new() -> Candidates {
        Candidates { words: [0; REAL_SERVERS_MAX / 64], words_len: 0 }
    }

    /// Adds a place, which must be below [`REAL_SERVERS_MAX`].
    #[inline]
    pub fn insert(&mut self, target: TargetIndex) {
        let word = target.index() / 64;
        self.words[word] |= 1 << (target.index() % 64);
        self.words_len = self.words_len.max(word + 1);
    }

    /// Takes a place out.
    #[inline]
    pub fn remove(&mut self, target: TargetIndex) {
        self.words[target.index() / 64] &= !(1 << (target.index() % 64));
    }

    /// Whether the place is in.
    #[inline]
    pub fn contains(&self, target: TargetIndex) -> bool {
        self.words[target.index() / 64] & (1 << (target.index() % 64)) != 0
    }

    /// Whether nobody is in.
    pub fn is_empty(&self) -> bool {
        self.words[..self.words_len].iter().all(|&word| word == 0)
    }

    /// The places, ascending.
    #[inline]
    pub fn iter(&self) -> Places<'_> {
        Places { words: &self.words[..self.words_len], word: 0, bits: self.words[0] }
    }
}

/// The places of [`Candidates`], ascending.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    words: &'a [u64],
    /// The word that `bits` is of.
    word: usize,
    /// What is left of it.
    bits: u64,
}

impl Iterator for Places<'_> {
    type Item = TargetIndex;

    #[inline]
    fn next(&mut self) -> Option<TargetIndex> {
        while self.bits == 0 {
            self.word += 1;
            self.bits = *self.words.get(self.word)?;
        }
        let place = self.word * 64 + self.bits.trailing_zeros() as usize;
        self.bits &= self.bits - 1;
        Some(TargetIndex(place as u16))
    }
}

/// What one service's balancer remembers between connections, over generations. One per service, shared by all workers: the
/// engine locks it around [`crate::director::pick`], so that turns are taken over all workers together (T-01).
///
/// Bounded by the members of the service: what belongs to servers that are gone goes with them. While workers still hold
/// different generations the removed or added member may lose its turn count; nothing else changes.
#[derive(Clone, Debug)]
pub struct BalancerState {
    /// One per member of the service as last seen, in its order.
    seats: Vec<Seat>,
    /// Connections given so far, less those of so long ago that turns before them are equally long ago.
    turns: u32,
    random: SplitMix64,
    /// The time of the choice at hand: servers that came back grow into their share.
    now: Now,
}

#[derive(Clone, Copy, Debug)]
struct Seat {
    server: RealServerId,
    /// Number of the last connection given to it; 0 = none yet, or long ago.
    last_turn: u32,
    /// Smooth weighted round robin: what it is owed, in units of weight.
    owed: i64,
}

impl BalancerState {
    /// A balancer that has given nothing yet. `seed` decides the draws of random-of-two.
    pub fn new(seed: u64) -> BalancerState {
        BalancerState { seats: Vec::new(), turns: 0, random: SplitMix64::new(seed), now: Now(0) }
    }

    /// What comes next happens at this time.
    #[inline]
    pub fn look_at(&mut self, now: Now) {
        self.now = now;
    }

    /// The member that gets the next connection of `client`; `None` when there is no candidate. Changes no turn: that is
    /// [`BalancerState::taken`].
    pub fn choose(
        &mut self,
        service: &Service,
        candidates: &Candidates,
        loads: &impl Loads,
        client: IpAddr,
    ) -> Option<TargetIndex> {
        self.seat(&service.targets);
        let targets = &service.targets;
        let now = self.now;
        match service.balance {
            Balance::LeastConnections => self.least(candidates, |target| {
                let member = member(targets, target);
                Load::new(loads.active(member.server), service.ramp(member, now))
            }),
            Balance::Maglev => match &service.maglev {
                Some(table) => table.lookup(client, candidates),
                None => source_hash(targets, candidates, client),
            },
            Balance::RandomOfTwo => self.random_of_two(service, candidates, loads),
            Balance::RoundRobin if !service.ramps(now) => self.least(candidates, |_| Load::new(0, 1)),
            Balance::SourceHash => source_hash(targets, candidates, client),
            Balance::WeightedLeastConnections => {
                self.least(candidates, |target| Load::of(service, member(targets, target), loads, now))
            }
            Balance::RoundRobin | Balance::WeightedRoundRobin => {
                let owed = |target: TargetIndex| {
                    self.seats[target.index()].owed + turn_share(service, member(targets, target), now)
                };
                candidates.iter().reduce(|best, next| if owed(next) > owed(best) { next } else { best })
            }
        }
    }

    /// What [`BalancerState::choose`] would say of all members that may have a new connection and are not in `tried`, found in one walk; `None`
    /// where the method has to know them all first, or one is full, or there is none.
    #[inline]
    pub fn choose_at_once(&mut self, service: &Service, tried: &Tried, loads: &impl Loads) -> Option<TargetIndex> {
        let is_plain = !service.has_minimums && !service.ramps(self.now);
        let seated = self.seats.len() == service.targets.len() && tried.is_empty() && is_plain;
        match service.balance {
            Balance::LeastConnections if seated => match service.entrants()? {
                EntrantList { all, has_limits: false } => self.least_at_once::<true, false>(all, loads),
                EntrantList { all, has_limits: true } => self.least_at_once::<true, true>(all, loads),
            },
            Balance::RoundRobin if seated => match service.entrants()? {
                EntrantList { all, has_limits: false } => self.least_at_once::<false, false>(all, loads),
                EntrantList { all, has_limits: true } => self.least_at_once::<false, true>(all, loads),
            },
            _ => None,
        }
    }

    /// On its own, so that its few values stay in registers.
    #[inline(never)]
    fn least_at_once<const BY_LOAD: bool, const LIMITED: bool>(
        &self,
        entrants: &[Entrant],
        loads: &impl Loads,
    ) -> Option<TargetIndex> {
        if entrants.len() == self.seats.len() {
            // Everybody takes new connections, as a rule.
            return least_of::<BY_LOAD, LIMITED>(entrants.iter().zip(&self.seats), loads).map(|at| entrants[at].place);
        }
        let seat = |entrant: &'_ Entrant| self.seats.get(entrant.place.index());
        let seated = entrants.iter().filter_map(|entrant| Some((entrant, seat(entrant)?)));
        least_of::<BY_LOAD, LIMITED>(seated, loads).map(|at| entrants[at].place)
    }

    /// The connection that [`BalancerState::choose_at_once`] gave to `target` was counted: its turn is over.
    #[inline]
    pub fn taken_at_once(&mut self, target: TargetIndex) {
        if self.turns == u32::MAX {
            self.forget_long_ago();
        }
        self.turns += 1;
        self.seats[target.index()].last_turn = self.turns;
    }

    /// Makes room for more turns: those of the older half are equally long ago.
    #[cold]
    fn forget_long_ago(&mut self) {
        const HALF: u32 = 1 << 31;
        self.turns -= HALF;
        for seat in &mut self.seats {
            seat.last_turn = seat.last_turn.saturating_sub(HALF);
        }
    }

    /// The connection that [`BalancerState::choose`] gave to `target` out of `candidates` was counted: its turn is over.
    pub fn taken(&mut self, service: &Service, candidates: &Candidates, target: TargetIndex) {
        self.taken_at_once(target);
        match service.balance {
            Balance::WeightedRoundRobin => self.owe(service, candidates, target),
            Balance::RoundRobin if service.ramps(self.now) => self.owe(service, candidates, target),
            _ => {}
        }
    }

    /// Smooth weighted round robin as in nginx (`ngx_http_upstream_get_peer`): every candidate is owed its weight more, the one
    /// that was served pays the sum. So each is served in proportion to its weight, as evenly spread as that can be.
    fn owe(&mut self, service: &Service, candidates: &Candidates, served: TargetIndex) {
        let targets = &service.targets;
        let mut sum = 0;
        for target in candidates.iter() {
            let weight = turn_share(service, member(targets, target), self.now);
            self.seats[target.index()].owed += weight;
            sum += weight;
        }
        self.seats[served.index()].owed -= sum;
        // Constant weights never reach this bound; debts from before a change of weights are cut to it.
        let bound = sum * targets.len() as i64;
        for target in candidates.iter() {
            let owed = &mut self.seats[target.index()].owed;
            *owed = (*owed).clamp(-bound, bound);
        }
    }

    /// The candidate with the lowest load; of those with the same, the one whose last turn is longest ago.
    fn least(&self, candidates: &Candidates, load: impl Fn(TargetIndex) -> Load) -> Option<TargetIndex> {
        let scored = candidates.iter().map(|target| (target, load(target), self.seats[target.index()].last_turn));
        let best = scored.reduce(|best, next| match next.1.compare(best.1).then(next.2.cmp(&best.2)) {
            Ordering::Less => next,
            Ordering::Equal | Ordering::Greater => best,
        })?;
        Some(best.0)
    }

    /// Two different candidates drawn by weight, of these the one with less load per weight, the first at a tie
    /// (Mitzenmacher: "The power of two choices in randomized load balancing", IEEE TPDS 2001).
    fn random_of_two(&mut self, service: &Service, candidates: &Candidates, loads: &impl Loads) -> Option<TargetIndex> {
        let (targets, now) = (&service.targets, self.now);
        let weight = |target: TargetIndex| service.share_of(member(targets, target), now);
        let sum: u64 = candidates.iter().map(weight).sum();
        let first = drawn(candidates.iter(), weight, self.random.below(sum))?;
        let others = candidates.iter().filter(|&target| target != first);
        let Some(second) = drawn(others, weight, self.random.below(sum - weight(first))) else {
            return Some(first);
        };
        let load = |target| Load::of(service, member(targets, target), loads, now);
        match load(second).compare(load(first)) {
            Ordering::Less => Some(second),
            Ordering::Equal | Ordering::Greater => Some(first),
        }
    }

    /// One seat per member, in the order of `targets`: those known keep theirs, the gone lose it.
    fn seat(&mut self, targets: &[Target]) {
        let seated = self.seats.len() == targets.len();
        if seated && self.seats.iter().zip(targets).all(|(seat, target)| seat.server == target.server) {
            return;
        }
        let before = std::mem::take(&mut self.seats);
        // A member is usually found where it was or just behind: one that left or came shifts the rest by one.
        let mut from = 0;
        self.seats.extend(targets.iter().map(|target| {
            let known = (from..before.len()).chain(0..from).find(|&place| before[place].server == target.server);
            match known {
                Some(place) => {
                    from = place + 1;
                    before[place]
                }
                None => Seat { server: target.server, last_turn: 0, owed: 0 },
            }
        }));
    }
}

/// Which of these has the fewest connections, and of those with the same the last turn longest ago; by the turn alone unless `BY_LOAD`. `None` where one
/// is full, which may be only if `LIMITED`, or sits elsewhere, or there is none.
#[inline(always)]
fn least_of<'a, const BY_LOAD: bool, const LIMITED: bool>(
    seated: impl Iterator<Item = (&'a Entrant, &'a Seat)>,
    loads: &impl Loads,
) -> Option<usize> {
    // Connections, and below them the last turn: one comparison.
    let (mut least, mut best) = (u64::MAX, usize::MAX);
    for (at, (entrant, seat)) in seated.enumerate() {
        if seat.server != entrant.server {
            return None;
        }
        let is_limited = LIMITED && entrant.max_connections != 0;
        let active = if BY_LOAD || is_limited { loads.active(entrant.server) } else { 0 };
        if is_limited && active >= entrant.max_connections {
            return None;
        }
        let turn = u64::from(seat.last_turn);
        let score = if BY_LOAD { u64::from(active) << 32 | turn } else { turn };
        if score < least {
            (least, best) = (score, at);
        }
    }
    (best != usize::MAX).then_some(best)
}

fn member(targets: &[Target], target: TargetIndex) -> &Target {
    &targets[target.index()]
}

/// What a member is owed with each turn: by its weight, or where turns know none, by how far it has grown into its share.
fn turn_share(service: &Service, member: &Target, now: Now) -> i64 {
    let share = match service.balance {
        Balance::RoundRobin => service.ramp(member, now),
        _ => service.share_of(member, now),
    };
    share.cast_signed()
}

/// Connections per weight, counting the one to be given, so that of idle servers the heaviest is the least loaded.
#[derive(Clone, Copy, Debug)]
struct Load {
    connections: u64,
    weight: u64,
}

impl Load {
    fn new(active: u32, weight: u64) -> Load {
        Load { connections: u64::from(active) + 1, weight }
    }

    fn of(service: &Service, target: &Target, loads: &impl Loads, now: Now) -> Load {
        Load::new(loads.active(target.server), service.share_of(target, now))
    }

    /// `a.connections / a.weight` against `b.connections / b.weight`, exactly.
    fn compare(self, other: Load) -> Ordering {
        (self.connections * other.weight).cmp(&(other.connections * self.weight))
    }
}

/// The hash of the client address, modulo the weights of the members that take new connections, whether they have room or not:
/// a full or tried server moves only its own clients (to the rest, by the same rule). A member that goes up or down moves many
/// clients: where that matters, Maglev is the method.
fn source_hash(targets: &[Target], candidates: &Candidates, client: IpAddr) -> Option<TargetIndex> {
    let weight = |target: TargetIndex| u64::from(member(targets, target).weight);
    let places = || (0..targets.len()).map(|place| TargetIndex(place as u16));
    let hash = hash_address(client, SOURCE_HASH_SEED);

    let usable = || places().filter(|&target| member(targets, target).takes_new());
    let first = drawn(usable(), weight, scaled(hash, usable().map(weight).sum()))?;
    if candidates.contains(first) {
        return Some(first);
    }
    let sum = candidates.iter().map(weight).sum();
    drawn(candidates.iter(), weight, scaled(mix(hash), sum))
}

/// `hash` spread over `0..sum`.
fn scaled(hash: u64, sum: u64) -> u64 {
    ((u128::from(hash) * u128::from(sum)) >> 64) as u64
}

/// The place that `ticket` (below the sum of the weights) falls on when each holds as many tickets as its weight.
fn drawn(
    places: impl Iterator<Item = TargetIndex>,
    weight: impl Fn(TargetIndex) -> u64,
    ticket: u64,
) -> Option<TargetIndex> {
    let mut left = ticket;
    for place in places {
        match left.checked_sub(weight(place)) {
            Some(rest) => left = rest,
            None => return Some(place),
        }
    }
    None
}

#[cfg(test)]
mod tests;
