//! The operator's words at run time, laid over those of the configuration, and when a drain is over.
//!
//! A word is about one member: a real server as one service has it. It holds until a later one, whether that is said at run time or
//! written into the file: each word remembers what the file said when it came, and gives way as soon as the file says something else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use towpath_config::model::{AdminState, MachineRole, Model, Server, VirtualService};

use crate::counters::Termination;
use crate::snapshot::Target;
use crate::time::Now;

/// A reason is at most so long.
pub const ADMIN_REASON_BYTES_MAX: usize = 256;
/// A drain may take at most so long: 30 days.
pub const DRAIN_MS_MAX: u64 = 30 * 24 * 3_600_000;

/// A real server as one service has it, behind whichever of its routes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Name of the service.
    pub service: String,
    /// Address of the server.
    pub address: IpAddr,
    /// Its port; `None` = the port that the client addressed.
    pub port: Option<u16>,
}

/// What the configuration says of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configured {
    /// `admin`
    pub admin: AdminState,
    /// `weight`
    pub weight: u16,
}

/// Every member of a model with its name in it, in the order of the file. A server of several groups of a service is one member, and what
/// the first of them says of it counts.
pub fn members(model: &Model) -> Vec<(Member, &str, Configured)> {
    let mut seen: BTreeMap<Member, ()> = BTreeMap::new();
    let mut members = Vec::new();
    for service in &model.services {
        for server in model.servers_of(service) {
            let member = Member::of(service, server);
            if seen.insert(member.clone(), ()).is_none() {
                let configured = Configured { admin: server.admin, weight: server.weight };
                members.push((member, server.name.as_str(), configured));
            }
        }
    }
    members
}

impl Member {
    fn of(service: &VirtualService, server: &Server) -> Member {
        Member { service: service.name.clone(), address: server.address, port: server.port }
    }
}

/// Who said something, when and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Who.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
}

/// What becomes of a server whose drain is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It is halted: connections that are left end, as [`Termination::ServerDrained`].
    Halt,
    /// It stays as it is: connections that are left go on.
    Stay,
}

/// Why a drain is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainEnd {
    /// Its time was up.
    Deadline,
    /// No more connections than wanted were left.
    Until,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainOver {
    /// Why.
    pub why: DrainEnd,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Connections and sessions that the member held then; with [`Then::Halt`] those were ended.
    pub left: u32,
}

/// How long a drain lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// It is over then, whatever is left.
    pub deadline: Option<Now>,
    /// It is over when no more connections and sessions are left.
    pub until: u32,
    /// What follows.
    pub then: Then,
    /// `None` = it is under way.
    pub over: Option<DrainOver>,
}

/// Whether a member takes connections, as said at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminWord {
    /// The state that holds.
    pub state: AdminState,
    /// What the configuration said then.
    pub over: AdminState,
    /// Who said it.
    pub said: Said,
    /// Of one that drains, or was halted because its drain was over.
    pub drain: Option<Drain>,
}

/// The weight of a member, as said at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightWord {
    /// The weight that holds.
    pub weight: u16,
    /// What the configuration said then.
    pub over: u16,
    /// Who said it.
    pub said: Said,
}

/// What the machine is to its twin, as said at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleWord {
    /// The role that holds.
    pub role: MachineRole,
    /// What the configuration said then.
    pub over: Option<MachineRole>,
    /// Who said it.
    pub said: Said,
}

/// What was said of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Whether it takes connections.
    pub admin: Option<AdminWord>,
    /// Its share of new ones.
    pub weight: Option<WeightWord>,
}

/// An order about one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Keep the connections, take no new ones.
    Drain {
        /// At most so long.
        deadline_ms: Option<u64>,
        /// Until no more connections are left.
        until: u32,
        /// What follows.
        then: Then,
    },
    /// Take none and keep none.
    Halt,
    /// Take new ones.
    Ready,
    /// Another share of new ones; `None` = what the configuration says.
    Weight(Option<u16>),
}

/// A drain that has just ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Of whom.
    pub member: Member,
    /// What follows.
    pub then: Then,
    /// How.
    pub over: DrainOver,
}

/// A word that gave way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenWay {
    /// About whom.
    pub member: Member,
    /// Why.
    pub to: GaveWayTo,
}

/// What a word gave way to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveWayTo {
    /// The configuration says something new.
    Configuration,
    /// The configuration does not have the member any more.
    Removal,
}

/// Who halted a server: the ends of its connections are counted by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Halted {
    /// Its drain, which was over.
    ByDrain,
    /// The operator.
    #[default]
    ByOperator,
}

impl Halted {
    /// How the connections that were left are counted.
    pub fn termination(self) -> Termination {
        match self {
            Halted::ByDrain => Termination::ServerDrained,
            Halted::ByOperator => Termination::ServerHalted,
        }
    }
}

/// Everything that was said at run time and holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminWords {
    members: BTreeMap<Member, Words>,
    role: Option<RoleWord>,
    /// Those that take no new connections, by what was said or by the file.
    away: BTreeSet<Member>,
    /// When those that had been away came back.
    returned: BTreeMap<Member, Now>,
}

impl AdminWords {
    /// Nothing was said.
    pub fn new() -> AdminWords {
        AdminWords::default()
    }

    /// Words of an earlier run; those about members that are not there give way at the next [`AdminWords::follow`].
    pub fn restore(&mut self, member: Member, words: Words) {
        self.members.insert(member, words);
    }

    /// What was said of a member.
    pub fn of(&self, member: &Member) -> Option<&Words> {
        self.members.get(member)
    }

    /// Everything, in the order of the members.
    pub fn iter(&self) -> impl Iterator<Item = (&Member, &Words)> {
        self.members.iter()
    }

    /// Whether nothing holds that was said.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What holds of a member.
    pub fn standing(&self, member: &Member, configured: Configured) -> Configured {
        let words = self.members.get(member);
        Configured {
            admin: words.and_then(|words| words.admin.as_ref()).map_or(configured.admin, |word| word.state),
            weight: words.and_then(|words| words.weight.as_ref()).map_or(configured.weight, |word| word.weight),
        }
    }

    /// Lays what was said over a member of this service.
    pub fn lay_over(&self, service: &str, target: &mut Target) {
        if self.members.is_empty() && self.returned.is_empty() {
            return;
        }
        let member = Member { service: service.to_owned(), address: target.address, port: target.port };
        target.returned = target.returned.max(self.returned.get(&member).copied());
        let Some(words) = self.members.get(&member) else { return };
        if let Some(word) = &words.admin {
            target.admin = word.state;
            target.halted = word.halted();
        }
        if let Some(word) = &words.weight {
            target.weight = word.weight;
        }
    }

    /// Takes an order. What the configuration says anyway is no word of its own. Said again, a state counts from when it began.
    pub fn say(&mut self, member: &Member, configured: Configured, order: Order, said: Said, now: Now) {
        let words = self.members.entry(member.clone()).or_default();
        let admin = |state, drain| AdminWord { state, over: configured.admin, said: said.clone(), drain };
        match order {
            Order::Drain { deadline_ms, until, then } => {
                let deadline = deadline_ms.map(|ms| now + ms.min(DRAIN_MS_MAX));
                let drain = Drain { deadline, until, then, over: None };
                words.admin = Some(admin(AdminState::Drain, Some(drain)).since(words.admin.as_ref()));
            }
            Order::Halt if configured.admin == AdminState::Halt => words.admin = None,
            Order::Halt => words.admin = Some(admin(AdminState::Halt, None).since(words.admin.as_ref())),
            Order::Ready if configured.admin == AdminState::Ready => words.admin = None,
            Order::Ready => words.admin = Some(admin(AdminState::Ready, None).since(words.admin.as_ref())),
            Order::Weight(weight) => {
                words.weight = weight.filter(|&weight| weight != configured.weight).map(|weight| WeightWord {
                    weight,
                    over: configured.weight,
                    said: said.clone(),
                });
            }
        }
        if *words == Words::default() {
            self.members.remove(member);
        }
    }

    /// Follows a new model: a word gives way where the file says something else than when it was said, or has no such member any more.
    ///
    /// The machine's role does so, too, and is not told of: whoever changes the file has said it.
    pub fn follow(&mut self, model: &Model) -> Vec<GivenWay> {
        self.role.take_if(|word| word.over != model.runtime.role);
        if self.members.is_empty() {
            return Vec::new();
        }
        let configured: BTreeMap<Member, Configured> =
            members(model).into_iter().map(|(member, _, configured)| (member, configured)).collect();
        let mut given_way = Vec::new();
        self.members.retain(|member, words| {
            let Some(configured) = configured.get(member) else {
                given_way.push(GivenWay { member: member.clone(), to: GaveWayTo::Removal });
                return false;
            };
            let before = words.clone();
            words.admin.take_if(|word| word.over != configured.admin);
            words.weight.take_if(|word| word.over != configured.weight);
            if *words != before {
                given_way.push(GivenWay { member: member.clone(), to: GaveWayTo::Configuration });
            }
            *words != Words::default()
        });
        given_way
    }

    /// What the machine is to its twin.
    pub fn role(&self, model: &Model) -> MachineRole {
        self.role.as_ref().map_or(model.runtime.role.unwrap_or_default(), |word| word.role)
    }

    /// What was said of it at run time.
    pub fn role_word(&self) -> Option<&RoleWord> {
        self.role.as_ref()
    }

    /// The machine has this role from now on. What the configuration says anyway is no word of its own; said again, a role counts from when it began.
    pub fn say_role(&mut self, model: &Model, role: MachineRole, said: Said) {
        let over = model.runtime.role;
        if over.unwrap_or_default() == role {
            self.role = None;
            return;
        }
        let before = self.role.take().filter(|before| before.role == role);
        let unix_ms = before.map_or(said.unix_ms, |before| before.said.unix_ms);
        self.role = Some(RoleWord { role, over, said: Said { unix_ms, ..said } });
    }

    /// The role of an earlier run; it gives way at the next [`AdminWords::follow`] if the file says something else by now.
    pub fn restore_role(&mut self, word: RoleWord) {
        self.role = Some(word);
    }

    /// Notes who has come back: was drained or halted, and is ready now. It is as cold as one that was down, so its share grows (`slow_start`).
    pub fn note_returns(&mut self, model: &Model, now: Now) {
        let mut away = BTreeSet::new();
        let mut returned = BTreeMap::new();
        for (member, _, configured) in members(model) {
            if self.standing(&member, configured).admin != AdminState::Ready {
                away.insert(member);
            } else if self.away.contains(&member) {
                returned.insert(member, now);
            } else if let Some(&at) = self.returned.get(&member) {
                returned.insert(member, at);
            }
        }
        (self.away, self.returned) = (away, returned);
    }

    /// Ends the drains that are over. `connections` says how many a member holds, and `None` while workers may still give it new ones, which
    /// is before all of them serve what was said: then only its deadline counts.
    pub fn turn(&mut self, now: Now, unix_ms: u64, mut connections: impl FnMut(&Member) -> Option<u32>) -> Vec<Ended> {
        let mut ended = Vec::new();
        for (member, words) in &mut self.members {
            let Some(AdminWord { state, drain: Some(drain), .. }) = &mut words.admin else { continue };
            if drain.over.is_some() {
                continue;
            }
            let left = connections(member);
            let why = match left {
                Some(left) if left <= drain.until => DrainEnd::Until,
                _ if drain.deadline.is_some_and(|deadline| deadline <= now) => DrainEnd::Deadline,
                _ => continue,
            };
            let over = DrainOver { why, unix_ms, left: left.unwrap_or(0) };
            drain.over = Some(over);
            if drain.then == Then::Halt {
                *state = AdminState::Halt;
            }
            ended.push(Ended { member: member.clone(), then: drain.then, over });
        }
        ended
    }

    /// Whether a drain is under way, whose connections are to be counted.
    pub fn is_draining(&self) -> bool {
        self.members.values().filter_map(|words| words.admin.as_ref()?.drain.as_ref()).any(|drain| drain.over.is_none())
    }
}

impl AdminWord {
    /// Who halted it, if it is halted.
    pub fn halted(&self) -> Halted {
        match self.drain {
            Some(Drain { over: Some(_), .. }) => Halted::ByDrain,
            _ => Halted::ByOperator,
        }
    }

    /// The same state as before began when it did.
    fn since(mut self, before: Option<&AdminWord>) -> AdminWord {
        if let Some(before) = before.filter(|before| before.state == self.state) {
            self.said.unix_ms = before.said.unix_ms;
        }
        self
    }
}

#[cfg(test)]
mod tests;
