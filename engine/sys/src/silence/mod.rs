//! Keeps the kernel silent for what the packet plane answers: an nftables chain at the ingress of its interfaces drops those packets,
//! after the packet sockets have seen them, and nothing else.
//!
//! As `nft list table netdev towpath` shows it:
//!
//! ```text
//! table netdev towpath {
//!     set claims-ip { type ipv4_addr . inet_proto . inet_service; flags interval; elements = { 192.0.2.1 . tcp . 443, ... } }
//!     chain silence {
//!         type filter hook ingress devices = { ... } priority -300; policy accept;
//!         ip daddr . meta l4proto . th dport @claims-ip drop
//!         ...
//!     }
//!     chain mute { type filter hook ingress devices = { ... } priority -300; policy drop; }
//! }
//! ```
//!
//! Mute are interfaces of which the kernel is to hear nothing at all: the arms of a bridge, where others' frames pass.
//!
//! Later fragments of a claimed packet have no ports and pass; without the first one the kernel never answers them.

mod message;

use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as LocalAddress, UnixDatagram};

use netlink_sys::{Socket, SocketAddr};

use message::{Attributes, Batch};

const TABLE: &str = "towpath";
const CHAIN: &str = "silence";
const CHAIN_MUTE: &str = "mute";
/// Whoever keeps the silence in a network namespace holds this abstract socket name, which ends with its process.
const LOCK: &[u8] = b"towpath-silence";
/// Before whatever else is hooked there; flow tables and filters are at 0 and above by custom.
const PRIORITY: i32 = -300;
/// Elements of one message: attributes end at 64 KiB.
const ELEMENTS_MAX: usize = 400;

const NLM_F_CREATE: u16 = libc::NLM_F_CREATE as u16;
const NLM_F_APPEND: u16 = libc::NLM_F_APPEND as u16;

// linux/netfilter/nf_tables.h: attributes of tables, chains, hooks, sets, elements, rules, expressions.
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICES: u16 = 4;
const DEVICE_NAME: u16 = 1;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
const DESCRIPTION_FIELDS: u16 = 2;
const FIELD_LENGTH: u16 = 1;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_KEY_END: u16 = 10;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const META_REGISTER: u16 = 1;
const META_KEY: u16 = 2;
const COMPARE_REGISTER: u16 = 1;
const COMPARE_OPERATION: u16 = 2;
const COMPARE_DATA: u16 = 3;
const PAYLOAD_REGISTER: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
const LOOKUP_SET: u16 = 1;
const LOOKUP_REGISTER: u16 = 2;
const IMMEDIATE_REGISTER: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;

/// `NFT_SET_INTERVAL | NFT_SET_CONCAT`.
const RANGES_OF_FIELDS: u32 = 0x04 | 0x80;
/// The first of the registers of 4 bytes (`NFT_REG32_00`).
const REGISTER: u32 = libc::NFT_REG32_00 as u32;
/// The destination port in TCP and UDP headers.
const PORT_OFFSET: u32 = 2;
/// nft's numbers of the data types inet_proto and inet_service, and how it joins such numbers; only for listing.
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_BITS: u32 = 6;

/// What the kernel does not get to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The destination.
    pub ip: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// First and last destination port; of a protocol without ports, only all of them.
    pub ports: (u16, u16),
}

impl Claim {
    /// These ports of a protocol that has ports at the usual place (TCP, UDP).
    pub fn ports(ip: IpAddr, protocol: u8, ports: RangeInclusive<u16>) -> Claim {
        Claim { ip, protocol, ports: (*ports.start(), *ports.end()) }
    }

    /// All of a protocol.
    pub fn protocol(ip: IpAddr, protocol: u8) -> Claim {
        Claim::ports(ip, protocol, 0..=u16::MAX)
    }
}

/// The kernel is silent as long as this lives. After a crash the rule stays, until the next start or [`Silence::clear`].
#[derive(Debug)]
pub struct Silence {
    conversation: Conversation,
    lock: UnixDatagram,
    lifted: bool,
    /// Another process keeps it, too, and it does not end with this one.
    is_shared: bool,
}

impl Silence {
    /// Most claims, once those that touch are joined: one message to the kernel has to hold them.
    pub const CLAIMS_MAX: usize = 2_000;

    /// Silences the kernel on these interfaces of the calling thread's namespace, altogether on those that are `mute`; what a crash left behind
    /// is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when another process keeps the silence in this namespace, `PermissionDenied` without CAP_NET_ADMIN,
    /// `InvalidInput` with more than [`Silence::CLAIMS_MAX`] claims, otherwise what nf_tables says: `NotFound` when there is no such
    /// interface (before Linux 6.16; later ones have the hook wait for it).
    pub fn impose(interfaces: &[&str], mute: &[&str], claims: &[Claim]) -> io::Result<Silence> {
        let lock = lock()?;
        let mut silence = Silence { conversation: Conversation::open()?, lock, lifted: true, is_shared: false };
        silence.replace(interfaces, mute, claims)?;
        Ok(silence)
    }

    /// What says that this process keeps the silence, for the one that takes over from it.
    pub fn copy_lock(&self) -> io::Result<OwnedFd> {
        self.lock.as_fd().try_clone_to_owned()
    }

    /// Keeps the silence together with the process that has given its lock. Nothing changes until [`replace`](Silence::replace), and nothing ends with
    /// this value, until it [is its own](Silence::keep_alone).
    ///
    /// # Errors
    /// `InvalidData`: this is no such lock.
    pub fn inherit(lock: OwnedFd) -> io::Result<Silence> {
        let lock = UnixDatagram::from(lock);
        if lock.local_addr()?.as_abstract_name() != Some(LOCK) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "what was handed over does not say who keeps the kernel silent",
            ));
        }
        Ok(Silence { conversation: Conversation::open()?, lock, lifted: true, is_shared: true })
    }

    /// The silence ends with this value from here on.
    pub fn keep_alone(&mut self) {
        self.is_shared = false;
    }

    /// Another process keeps it from here on: dropping this value leaves it as it is.
    pub fn leave(&mut self) {
        self.is_shared = true;
    }

    /// Replaces interfaces, mute ones and claims in one step. Also to be called when an interface was gone and is there again: its hook went with
    /// it. After an error all is as it was.
    pub fn replace(&mut self, interfaces: &[&str], mute: &[&str], claims: &[Claim]) -> io::Result<()> {
        let claims = join(claims);
        if claims.len() > Silence::CLAIMS_MAX {
            let problem = format!("{} claims; the kernel takes {} at once", claims.len(), Silence::CLAIMS_MAX);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let mut batch = self.conversation.batch();
        // Only a table that is there can be removed: so it is created first, if need be.
        batch.push(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE, table());
        batch.push(libc::NFT_MSG_DELTABLE, 0, table());
        batch.push(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE, table());
        // Without a device there is nothing to hook a chain to.
        if !interfaces.is_empty() {
            batch.push(libc::NFT_MSG_NEWCHAIN, NLM_F_CREATE, chain(CHAIN, interfaces, libc::NF_ACCEPT));
            for family in [Family::V4, Family::V6] {
                family.silence(&claims, &mut batch);
            }
        }
        if !mute.is_empty() {
            batch.push(libc::NFT_MSG_NEWCHAIN, NLM_F_CREATE, chain(CHAIN_MUTE, mute, libc::NF_DROP));
        }
        self.conversation.commit(batch).map_err(|error| told(&error, "set up"))?;
        self.lifted = false;
        Ok(())
    }

    /// Lets the kernel speak again; as dropping does, but says when it fails.
    pub fn lift(mut self) -> io::Result<()> {
        self.remove().map(|_was_there| ())
    }

    /// Removes what a crash left behind in the calling thread's namespace; says whether there was anything.
    ///
    /// # Errors
    /// As [`Silence::impose`].
    pub fn clear() -> io::Result<bool> {
        let lock = lock()?;
        Silence { conversation: Conversation::open()?, lock, lifted: false, is_shared: false }.remove()
    }

    fn remove(&mut self) -> io::Result<bool> {
        self.lifted = true;
        let mut batch = self.conversation.batch();
        batch.push(libc::NFT_MSG_DELTABLE, 0, table());
        match self.conversation.commit(batch) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(told(&error, "remove")),
        }
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        if !self.lifted && !self.is_shared {
            // Nobody is left to tell; the next start removes it.
            let _told_by_lift = self.remove();
        }
    }
}

/// With nf_tables, about the namespace in which it was opened.
struct Conversation {
    socket: Socket,
    sequence: u32,
}

impl Conversation {
    fn open() -> io::Result<Conversation> {
        let mut socket = Socket::new(netlink_sys::protocols::NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Conversation { socket, sequence: 0 })
    }

    fn batch(&self) -> Batch {
        Batch::new(self.sequence)
    }

    fn commit(&mut self, batch: Batch) -> io::Result<()> {
        let (sequence, result) = batch.commit(&self.socket);
        self.sequence = sequence;
        result
    }
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// What differs between the versions of IP.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(ip: IpAddr) -> Family {
        match ip {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    fn set(self) -> &'static str {
        match self {
            Family::V4 => "claims-ip",
            Family::V6 => "claims-ip6",
        }
    }

    fn ethertype(self) -> u16 {
        match self {
            Family::V4 => libc::ETH_P_IP as u16,
            Family::V6 => libc::ETH_P_IPV6 as u16,
        }
    }

    /// Where the destination address stands in the header, and its length.
    fn destination(self) -> (u32, u32) {
        match self {
            Family::V4 => (16, 4),
            Family::V6 => (24, 16),
        }
    }

    /// nft's number of the data type of its addresses.
    fn address_type(self) -> u32 {
        match self {
            Family::V4 => 7,
            Family::V6 => 8,
        }
    }

    /// The set of claims and the rule that looks into it.
    fn silence(self, claims: &[Claim], batch: &mut Batch) {
        let claims: Vec<&Claim> = claims.iter().filter(|claim| Family::of(claim.ip) == self).collect();
        if claims.is_empty() {
            return;
        }
        let (_, address_bytes) = self.destination();
        let mut fields = Attributes::default();
        for bytes in [address_bytes, 1, 2] {
            fields = fields.nest(LIST_ELEMENT, Attributes::default().number(FIELD_LENGTH, bytes));
        }
        let set = Attributes::default()
            .text(SET_TABLE, TABLE)
            .text(SET_NAME, self.set())
            .number(SET_FLAGS, RANGES_OF_FIELDS)
            .number(SET_KEY_TYPE, (self.address_type() << TYPE_BITS | TYPE_PROTOCOL) << TYPE_BITS | TYPE_PORT)
            // Each field begins a register of 4 bytes.
            .number(SET_KEY_LENGTH, address_bytes + 4 + 4)
            .nest(SET_DESCRIPTION, Attributes::default().nest(DESCRIPTION_FIELDS, fields))
            .number(SET_ID, self.address_type());
        batch.push(libc::NFT_MSG_NEWSET, NLM_F_CREATE, set);
        for some in claims.chunks(ELEMENTS_MAX) {
            let mut elements = Attributes::default();
            for claim in some {
                let key = |port| Attributes::default().bytes(DATA_VALUE, &key(claim, port));
                let element = Attributes::default()
                    .nest(ELEMENT_KEY, key(claim.ports.0))
                    .nest(ELEMENT_KEY_END, key(claim.ports.1));
                elements = elements.nest(LIST_ELEMENT, element);
            }
            let message = Attributes::default()
                .text(ELEMENTS_TABLE, TABLE)
                .text(ELEMENTS_SET, self.set())
                .nest(ELEMENTS_LIST, elements);
            batch.push(libc::NFT_MSG_NEWSETELEM, NLM_F_CREATE, message);
        }
        let rule = Attributes::default()
            .text(RULE_TABLE, TABLE)
            .text(RULE_CHAIN, CHAIN)
            .nest(RULE_EXPRESSIONS, self.expressions());
        batch.push(libc::NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, rule);
    }

    /// `meta protocol FAMILY FAMILY daddr . meta l4proto . th dport @SET drop`. To `meta protocol`, frames with a VLAN tag look like
    /// those without; nobody else on this host takes them.
    fn expressions(self) -> Attributes {
        let (offset, address_bytes) = self.destination();
        let after_address = REGISTER + address_bytes / 4;
        let ethertype = Attributes::default().bytes(DATA_VALUE, &self.ethertype().to_be_bytes());
        let drop = Attributes::default().nest(
            DATA_VERDICT,
            // NF_DROP is 0.
            Attributes::default().number(VERDICT_CODE, libc::NF_DROP.unsigned_abs()),
        );
        let list = [
            ("meta", meta(libc::NFT_META_PROTOCOL, REGISTER)),
            (
                "cmp",
                Attributes::default()
                    .number(COMPARE_REGISTER, REGISTER)
                    .number(COMPARE_OPERATION, libc::NFT_CMP_EQ.unsigned_abs())
                    .nest(COMPARE_DATA, ethertype),
            ),
            ("payload", payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, address_bytes, REGISTER)),
            ("meta", meta(libc::NFT_META_L4PROTO, after_address)),
            ("payload", payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, PORT_OFFSET, 2, after_address + 1)),
            ("lookup", Attributes::default().text(LOOKUP_SET, self.set()).number(LOOKUP_REGISTER, REGISTER)),
            (
                "immediate",
                Attributes::default()
                    .number(IMMEDIATE_REGISTER, libc::NFT_REG_VERDICT.unsigned_abs())
                    .nest(IMMEDIATE_DATA, drop),
            ),
        ];
        let mut expressions = Attributes::default();
        for (name, data) in list {
            let expression = Attributes::default().text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data);
            expressions = expressions.nest(LIST_ELEMENT, expression);
        }
        expressions
    }
}

fn table() -> Attributes {
    Attributes::default().text(TABLE_NAME, TABLE)
}

fn chain(name: &str, interfaces: &[&str], policy: libc::c_int) -> Attributes {
    let mut devices = Attributes::default();
    for interface in interfaces {
        devices = devices.text(DEVICE_NAME, interface);
    }
    let hook = Attributes::default()
        .number(HOOK_NUMBER, libc::NF_NETDEV_INGRESS.unsigned_abs())
        .number(HOOK_PRIORITY, PRIORITY.cast_unsigned())
        .nest(HOOK_DEVICES, devices);
    Attributes::default()
        .text(CHAIN_TABLE, TABLE)
        .text(CHAIN_NAME, name)
        .nest(CHAIN_HOOK, hook)
        .number(CHAIN_POLICY, policy.unsigned_abs())
        .text(CHAIN_TYPE, "filter")
}

fn meta(key: libc::c_int, register: u32) -> Attributes {
    Attributes::default().number(META_REGISTER, register).number(META_KEY, key.unsigned_abs())
}

fn payload(base: libc::c_int, offset: u32, length: u32, register: u32) -> Attributes {
    Attributes::default()
        .number(PAYLOAD_REGISTER, register)
        .number(PAYLOAD_BASE, base.unsigned_abs())
        .number(PAYLOAD_OFFSET, offset)
        .number(PAYLOAD_LENGTH, length)
}

/// Address, protocol and port, each from the start of a register of 4 bytes.
fn key(claim: &Claim, port: u16) -> Vec<u8> {
    let mut key = match claim.ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    key.extend([claim.protocol, 0, 0, 0]);
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
    key
}

/// The same claims, with those of one address and protocol joined where their ports overlap or touch: the kernel refuses overlaps.
fn join(claims: &[Claim]) -> Vec<Claim> {
    let mut sorted: Vec<Claim> = claims.iter().copied().filter(|claim| claim.ports.0 <= claim.ports.1).collect();
    sorted.sort_unstable();
    let mut joined: Vec<Claim> = Vec::with_capacity(sorted.len());
    for claim in sorted {
        match joined.last_mut() {
            Some(last)
                if (last.ip, last.protocol) == (claim.ip, claim.protocol)
                    && claim.ports.0 <= last.ports.1.saturating_add(1) =>
            {
                last.ports.1 = last.ports.1.max(claim.ports.1);
            }
            _ => joined.push(claim),
        }
    }
    joined
}

fn lock() -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&LocalAddress::from_abstract_name(LOCK)?).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::new(
            error.kind(),
            "another towpath runs a packet plane in this network namespace; stop it first (ss -xp | grep towpath-silence)",
        ),
        _ => error,
    })
}

fn told(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what} nftables table `netdev {TABLE}`: {error}"))
}

#[cfg(test)]
mod tests;
