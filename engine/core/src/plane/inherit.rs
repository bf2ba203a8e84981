//! Flows that outlive the process: each as a record that the process reads which takes over.
//!
//! A record says what the flow is, not where it lies: ids and numbers of port maps are those of the process that wrote it, and the reader is told
//! what they are called there ([`Renamed`]). So services, servers, workers and the size of tables may differ between the two. What is not said:
//! the fast path (flows are taken out of it first and come back with their next frame), ports at rest, and frames that wait or are being put together.
//!
//! All numbers little-endian, addresses as on the wire:
//!
//! ```text
//!   0  client's packets as they come:  source, destination   16 octets each
//!  32  the same as they leave:         source, destination   16 octets each
//!  64  ports, in the same order u16 x 4 | protocol u8 | stage u8 | returns u8 | timeout class u8
//!  76  counted, leased u8 | how it was picked u8 | service u16 | server u16 | 0 u16 | the other SYN u32 | port map u32
//!  92  state u32 x 6 | 0 u32 | silent for so many milliseconds u64
//! ```

use std::fmt;

use super::flows::{Detail, Ended, Flows, Stage, State};
use super::moving::{Cargo, MovedFlow};
use super::{Desk, Outbox, Plane, Survey};
use crate::flow::tcp::TcpTrack;
use crate::flow::{FlowId, FlowPath, Returns, TimeoutClass};
use crate::packet::{Ip, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Tuple};
use crate::{Now, PickReason, RealServerId, ServiceId, WorkerId};

/// Octets of a record.
pub const FLOW_RECORD: usize = 128;

/// A flow as it is written down.
pub type FlowRecord = [u8; FLOW_RECORD];

const COUNTED: u8 = 1;
const LEASED: u8 = 2;

/// Why a record is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowRecordError {
    /// This field holds what no flow has.
    Field(&'static str),
    /// Its tuples are not those of one flow.
    Path,
}

impl fmt::Display for FlowRecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlowRecordError::Field(name) => write!(f, "no flow has such a {name}"),
            FlowRecordError::Path => write!(f, "its tuples are not those of one flow"),
        }
    }
}

impl std::error::Error for FlowRecordError {}

/// What the ids of the process that wrote the records are called here.
pub trait Renamed {
    /// The service, or lane of outbound NAT. `None`: there is none of its name any more.
    fn service(&self, there: ServiceId) -> Option<ServiceId>;
    /// The real server likewise.
    fn server(&self, there: RealServerId) -> Option<RealServerId>;
    /// The port map likewise.
    fn map(&self, there: u32) -> Option<u32>;
}

/// What became of a flow that was written down elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// It lives on here.
    Taken,
    /// It is another worker's.
    Elsewhere(WorkerId),
    /// Its service, real server or source port is nobody's any more, or it found no room.
    Lost,
}

impl Plane {
    /// Writes the flows at the next `slots` places behind `into`, and goes on behind them. Whether that was the end. Nothing that comes meanwhile may be
    /// given to the plane: what was written would not know of it.
    pub fn write_flows<D: Desk>(
        &mut self,
        now: Now,
        at: &mut Survey,
        slots: usize,
        desk: &mut D,
        into: &mut Vec<u8>,
    ) -> bool {
        self.call(now);
        for _ in 0..slots {
            let (stage, slot) = at.place();
            let table = self.flows.table(stage);
            if !table.was_taken(slot) {
                if !at.next_stage() {
                    return true;
                }
                continue;
            }
            at.pass();
            if let Some(id) = table.at(slot) {
                match stage {
                    // One whose handshake is complete is met again in the other table.
                    Stage::HalfOpen => {
                        self.hear_for_good(id, desk);
                    }
                    Stage::Established => {
                        self.recall(id);
                        // Else it would be counted here and there.
                        self.settle_found(desk);
                    }
                }
                if let Some(flow) = self.flows.moved(stage, id) {
                    into.extend(flow.to_record(now));
                }
            }
        }
        false
    }

    /// Takes a flow that another process has written down. It counts at the desk, which is told by `counted` before.
    ///
    /// # Errors
    /// The record is none of a flow; nothing has changed.
    pub fn inherit<D: Desk>(
        &mut self,
        now: Now,
        record: &FlowRecord,
        renamed: &impl Renamed,
        desk: &mut D,
        counted: impl FnOnce(&mut D, ServiceId, RealServerId),
        out: &mut Outbox,
    ) -> Result<Inherited, FlowRecordError> {
        let (mut flow, there) = MovedFlow::of_record(record, now)?;
        let owner = self.snapshot.steering.worker_of(self.home_of_flow(&flow.flow.path));
        if owner != self.worker {
            return Ok(Inherited::Elsewhere(owner));
        }
        let service = renamed.service(there.service);
        let server = match there.server {
            RealServerId::NOBODY => Some(RealServerId::NOBODY),
            server => renamed.server(server),
        };
        let (Some(service), Some(server)) = (service, server) else { return Ok(Inherited::Lost) };
        let Ended { path, state, detail, .. } = &mut flow.flow;
        let mut lease = None;
        if let Some(map) = there.map {
            let home = self.home_of_flow(path);
            let taken = renamed.map(map).zip(self.services.maps());
            lease = taken.and_then(|(map, maps)| maps.take(map, path.server.source(), home));
            if lease.is_none() {
                return Ok(Inherited::Lost);
            }
        }
        *state = State::of_tcp(*state.tcp(), service);
        *detail = detail.renamed(server, lease);
        if detail.is_counted && server != RealServerId::NOBODY {
            counted(desk, service, server);
        }
        let path = *path;
        self.import(now, self.worker, Cargo::Flow(flow), desk, out);
        // One that found no room was ended, and its lease with it.
        let is_there = self.flows.lookup(&path.client).is_some();
        Ok(if is_there { Inherited::Taken } else { Inherited::Lost })
    }

    /// What was counted of flows that were taken out of the fast path is told to the desk.
    pub fn tell_carried(&mut self, desk: &mut impl Desk) {
        self.tell_fast(desk);
    }
}

impl Flows {
    /// The flow as it would be given to another table.
    pub(super) fn moved(&self, stage: Stage, id: FlowId) -> Option<MovedFlow> {
        let table = self.table(stage);
        let (path, seen, class) = (table.path(id)?, table.seen(id)?, table.class(id)?);
        let (state, detail) = (*table.state(id)?, *table.detail(id)?);
        Some(MovedFlow { stage, seen, flow: Ended { id, path, class, state, detail } })
    }
}

/// What a record names by the ids of who wrote it.
struct There {
    service: ServiceId,
    server: RealServerId,
    map: Option<u32>,
}

impl MovedFlow {
    fn to_record(self, now: Now) -> FlowRecord {
        let MovedFlow { stage, seen, flow: Ended { path, class, state, detail, .. } } = self;
        let FlowPath { client, server, returns } = path;
        let mut fields = Writer { record: [0; FLOW_RECORD], at: 0 };
        for address in [client.src, client.dst, server.src, server.dst] {
            fields.put(&address.0);
        }
        for port in [client.src_port, client.dst_port, server.src_port, server.dst_port] {
            fields.put(&port.to_le_bytes());
        }
        let stage = match stage {
            Stage::HalfOpen => 0,
            Stage::Established => 1,
        };
        let returns = match returns {
            Returns::Here => 0,
            Returns::Elsewhere => 1,
        };
        let held = if detail.is_counted { COUNTED } else { 0 } | if detail.is_leased() { LEASED } else { 0 };
        fields.put(&[client.protocol, stage, returns, class.0, held, number_of(detail.why)]);
        fields.put(&state.service().0.to_le_bytes());
        fields.put(&detail.server.0.to_le_bytes());
        fields.put(&[0; 2]);
        fields.put(&detail.other_syn.to_le_bytes());
        fields.put(&detail.map().unwrap_or(0).to_le_bytes());
        for word in state.tcp().to_words() {
            fields.put(&word.to_le_bytes());
        }
        fields.put(&[0; 4]);
        fields.put(&now.ms_since(seen).to_le_bytes());
        fields.record
    }

    fn of_record(record: &FlowRecord, now: Now) -> Result<(MovedFlow, There), FlowRecordError> {
        let mut fields = Reader { record, at: 0 };
        let [client_src, client_dst, server_src, server_dst] = std::array::from_fn(|_| Ip(fields.take()));
        let mut port = || u16::from_le_bytes(fields.take());
        let [client_src_port, client_dst_port, server_src_port, server_dst_port] = std::array::from_fn(|_| port());
        let [protocol, stage, returns, class, held, why] = fields.take();
        let service = ServiceId(u16::from_le_bytes(fields.take()));
        let server_id = RealServerId(u16::from_le_bytes(fields.take()));
        let spare: [u8; 2] = fields.take();
        let other_syn = u32::from_le_bytes(fields.take());
        let map = u32::from_le_bytes(fields.take());
        let words = std::array::from_fn(|_| u32::from_le_bytes(fields.take()));
        let more: [u8; 4] = fields.take();
        let silent_ms = u64::from_le_bytes(fields.take());
        let field = FlowRecordError::Field;
        let stage = match stage {
            0 => Stage::HalfOpen,
            1 => Stage::Established,
            _ => return Err(field("stage")),
        };
        let returns = match returns {
            0 => Returns::Here,
            1 => Returns::Elsewhere,
            _ => return Err(field("way of its returns")),
        };
        if held & !(COUNTED | LEASED) != 0 || spare != [0; 2] || more != [0; 4] {
            return Err(field("mark"));
        }
        let why = reason_of(why).ok_or(field("reason of its pick"))?;
        let client =
            Tuple { src: client_src, dst: client_dst, src_port: client_src_port, dst_port: client_dst_port, protocol };
        let server =
            Tuple { src: server_src, dst: server_dst, src_port: server_src_port, dst_port: server_dst_port, protocol };
        let path = FlowPath { client, server, returns };
        if !is_possible(&path) || (returns == Returns::Elsewhere && held & LEASED != 0) {
            return Err(FlowRecordError::Path);
        }
        let mut detail = Detail::default();
        (detail.is_counted, detail.why, detail.other_syn) = (held & COUNTED != 0, why, other_syn);
        let there = There { service, server: server_id, map: (held & LEASED != 0).then_some(map) };
        let state = State::of_tcp(TcpTrack::from_words(words), ServiceId(0));
        let flow = Ended { id: FlowId::default(), path, class: TimeoutClass(class), state, detail };
        // Time begins with each process: one that was silent before is as if it had been seen at its start.
        let seen = Now(now.0.saturating_sub(silent_ms));
        Ok((MovedFlow { stage, seen, flow }, there))
    }
}

/// Whether a flow can have these tuples.
fn is_possible(path: &FlowPath) -> bool {
    let FlowPath { client, server, returns } = path;
    let is_one_family = |tuple: &Tuple| tuple.src.is_v4() == tuple.dst.is_v4();
    let is_known = matches!(client.protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMP | PROTOCOL_ICMPV6);
    let is_itself = *returns == Returns::Here && server.reversed() == *client;
    is_known && is_one_family(client) && is_one_family(server) && !is_itself
}

fn number_of(why: PickReason) -> u8 {
    match why {
        PickReason::Balanced => 0,
        PickReason::Overflowed => 1,
        PickReason::Persistent => 2,
        PickReason::Consoled => 3,
        PickReason::Repinned => 4,
    }
}

fn reason_of(number: u8) -> Option<PickReason> {
    let all = [
        PickReason::Balanced,
        PickReason::Overflowed,
        PickReason::Persistent,
        PickReason::Consoled,
        PickReason::Repinned,
    ];
    all.into_iter().find(|&why| number_of(why) == number)
}

struct Writer {
    record: FlowRecord,
    at: usize,
}

impl Writer {
    fn put(&mut self, octets: &[u8]) {
        self.record[self.at..self.at + octets.len()].copy_from_slice(octets);
        self.at += octets.len();
    }
}

struct Reader<'r> {
    record: &'r FlowRecord,
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let octets = std::array::from_fn(|place| self.record[self.at + place]);
        self.at += N;
        octets
    }
}
