//! What the packet plane has of the kernel while it runs: rings on its arms, silence for what it claims, a view of the network.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use thiserror::Error;
use towpath_config::model::Model;
use towpath_core::packet::{Ip, Mac};
use towpath_core::plane::{Network, PortId};
use towpath_core::steering::SteeringTable;
use towpath_sys::neighbour::{Changes, LinkAddress, Neighbours, Tables};
use towpath_sys::packet::{self, Hearing, Instruction, Memberships, PacketPort, RingSettings};
use towpath_sys::silence::{Claim, Silence};

use super::arms::{Arm, servers};
use super::claims::{addresses, claims};
use super::fast::KernelPath;
use super::routes;
use super::steering::{SteeringError, program};
use super::view::{self, FileNetwork, KnownArm};

/// Neighbours that one round of confirmation asks for.
const CONFIRMED_MAX: usize = 256;

/// Why the kernel does not carry the packet plane.
#[derive(Debug, Error)]
pub enum KernelError {
    /// What neighbours say could not be heard.
    #[error("neighbours on VLANs cannot be heard: {}", explain(.0))]
    Hearing(#[source] io::Error),
    /// An interface could not be opened.
    #[error("{}", explain(.source))]
    Interface {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel could not be kept silent.
    #[error("the kernel could not be kept silent for the packet plane's addresses: {}", explain(.0))]
    Silence(#[source] io::Error),
    /// The addresses cannot be steered.
    #[error("{0}")]
    Steering(#[from] SteeringError),
    /// Links, routes and neighbours could not be read.
    #[error("the kernel's links, routes and neighbours could not be read: {}", explain(.0))]
    View(#[source] io::Error),
}

/// Rings, silence and view. Dropping it lets the kernel speak again; the rings are the workers'.
pub struct Kernel {
    model: Model,
    view: Neighbours,
    tables: Tables,
    arms: Vec<KnownArm>,
    file: FileNetwork,
    /// What hears and asks where the kernel has no address, until it is [taken](Kernel::take_hearing).
    hearing: Option<Hearing>,
    ring: RingSettings,
    silence: Silence,
    /// The kernel is silent for all claims on all arms that are there.
    is_silent: bool,
    claims: Vec<Claim>,
    /// The addresses that the kernel had when the claims were made.
    kernels: Vec<LinkAddress>,
    groups: Vec<[u8; 6]>,
    /// By what groups are joined that were not known when the arms were opened.
    later_groups: Option<Memberships>,
    program: Vec<Instruction>,
    workers: usize,
    /// A port that could not be opened again is tried again.
    missing: BTreeSet<PortId>,
    /// The first answer that could not be read was told.
    told_unread: bool,
    /// The last of the neighbours that were confirmed in turn.
    confirmed: Option<(u32, IpAddr)>,
    /// What carries established flows, where the kernel does.
    fast: Option<KernelPath>,
}

/// What has become of the network.
pub struct Update {
    /// An arm has another address of either kind, or works again: the neighbours must be told where our addresses are.
    pub is_moved: bool,
    /// Ports that were gone and are there again, for each worker in order.
    pub reopened: Vec<(PortId, Vec<PacketPort>)>,
}

impl Kernel {
    /// Opens the arms for every worker, then silences the kernel. The n-th list belongs to worker n. What carries flows is attached to the arms.
    ///
    /// Where another process keeps the kernel silent and has given its lock, as `kept`, nothing of that changes before [`Kernel::impose`].
    ///
    /// Either all is open at the end or nothing is; only without [`fast_path`](Kernel::fast_path) it goes on, with a warning.
    pub fn open(
        model: &Model,
        arms: &[Arm],
        ring: RingSettings,
        steering: &SteeringTable,
        seed: u32,
        mut fast: Option<KernelPath>,
        kept: Option<OwnedFd>,
    ) -> Result<(Kernel, Vec<Vec<PacketPort>>), KernelError> {
        let workers = steering.workers();
        let program = program(model, steering, seed)?;
        let mut view = Neighbours::open().map_err(KernelError::View)?;
        let tables = view.tables().map_err(KernelError::View)?;
        let mut known: Vec<KnownArm> = arms.iter().map(known_arm).collect();
        view::refresh(&mut known, &tables);
        for arm in &mut known {
            arm.segments = view.can_segment(&arm.name).unwrap_or(false);
        }
        let file = FileNetwork::new(model, arms);
        let own = file.own_addresses();
        let groups: BTreeSet<[u8; 6]> = addresses(model).into_iter().chain(own).filter_map(solicited_group).collect();
        let groups: Vec<[u8; 6]> = groups.into_iter().collect();
        let mut per_worker: Vec<Vec<PacketPort>> = (0..workers).map(|_| Vec::with_capacity(arms.len())).collect();
        let mut opened = Vec::with_capacity(arms.len());
        for (arm, place) in arms.iter().zip(0..) {
            opened.push(open_arm(&arm.name, workers, &program, &ring, &groups, &Wanted::of(&file, place))?);
        }
        let hearing = if file.has_neighbours() { Some(Hearing::open().map_err(KernelError::Hearing)?) } else { None };
        if let Some(path) = &mut fast
            && let Err(error) = attach_all(path, &known, &opened)
        {
            tracing::warn!("{error}; every frame goes through a worker");
            for port in opened.iter().flatten() {
                port.set_filter(None)
                    .map_err(|source| KernelError::Interface { name: port.name().to_owned(), source })?;
            }
            fast = None;
        }
        for ports in opened {
            per_worker.iter_mut().zip(ports).for_each(|(list, port)| list.push(port));
        }
        let kernels = tables.addresses.clone();
        let claims = claims(model, &kernels);
        let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
        let mute: Vec<&str> = mute(&known, &file).map(|arm| arm.name.as_str()).collect();
        let silence = match kept {
            Some(lock) => Silence::inherit(lock),
            None => Silence::impose(&names, &mute, &claims),
        };
        let silence = silence.map_err(KernelError::Silence)?;
        let kernel = Kernel {
            model: model.clone(),
            view,
            tables,
            arms: known,
            file,
            hearing,
            ring,
            silence,
            is_silent: true,
            claims,
            kernels,
            groups,
            later_groups: None,
            program,
            workers,
            missing: BTreeSet::new(),
            told_unread: false,
            confirmed: None,
            fast,
        };
        Ok((kernel, per_worker))
    }

    /// What carries established flows, where the kernel does.
    pub fn fast_path(&self) -> Option<&KernelPath> {
        self.fast.as_ref()
    }

    /// The network as it was last looked at; `known`: neighbours where the kernel knows none.
    pub fn network(&self, known: impl Iterator<Item = (PortId, Ip, Mac)>) -> Network {
        view::network(&self.arms, &self.file, &self.tables, known)
    }

    /// By what neighbours are heard and asked where the kernel has no address, if there is such a network; once.
    pub fn take_hearing(&mut self) -> Option<Hearing> {
        self.hearing.take()
    }

    /// Addresses that the packet plane answers for.
    pub fn ours(&self) -> BTreeSet<Ip> {
        addresses(&self.model).into_iter().map(Ip::from).collect()
    }

    /// Whose claims are claimed, and the program that interfaces are opened with.
    pub fn followed(&self) -> (Model, Vec<Instruction>) {
        (self.model.clone(), self.program.clone())
    }

    /// Claims what `model` claims, on the same arms; where that fails, everything is as it was. Interfaces that come again are opened with `program`.
    pub fn follow(&mut self, model: Model, program: Vec<Instruction>) -> Result<(), KernelError> {
        let claims = claims(&model, &self.kernels);
        let groups = addresses(&model).into_iter().filter_map(solicited_group);
        // Those that are no longer wanted bring a few frames more.
        let new: BTreeSet<[u8; 6]> = groups.filter(|group| !self.groups.contains(group)).collect();
        self.join(&new)?;
        if claims != self.claims || !self.is_silent {
            self.silence(&claims)?;
        }
        let arm = |arm: &KnownArm| Arm { name: arm.name.clone(), index: arm.index, mtu_bytes: arm.mtu_bytes };
        let arms: Vec<Arm> = self.arms.iter().map(arm).collect();
        self.file = FileNetwork::new(&model, &arms);
        self.groups.extend(new);
        (self.claims, self.is_silent) = (claims, true);
        (self.model, self.program) = (model, program);
        Ok(())
    }

    fn join(&mut self, groups: &BTreeSet<[u8; 6]>) -> Result<(), KernelError> {
        if groups.is_empty() {
            return Ok(());
        }
        let failed = |name: &str| {
            let name = name.to_owned();
            move |source| KernelError::Interface { name, source }
        };
        let memberships = match &mut self.later_groups {
            Some(memberships) => memberships,
            none => none.insert(Memberships::open().map_err(KernelError::Hearing)?),
        };
        let there = |arm: &&KnownArm| self.tables.links.iter().any(|link| link.name == arm.name);
        for arm in self.arms.iter().filter(there) {
            groups.iter().try_for_each(|&group| memberships.join(arm.index, group)).map_err(failed(&arm.name))?;
        }
        Ok(())
    }

    /// Silences the kernel for what is claimed, whatever another process has claimed.
    pub fn impose(&mut self) -> Result<(), KernelError> {
        let claims = std::mem::take(&mut self.claims);
        let silenced = self.silence(&claims);
        self.claims = claims;
        self.is_silent = silenced.is_ok();
        silenced
    }

    /// The silence of the kernel, which another process may share.
    pub fn silence_kept(&mut self) -> &mut Silence {
        &mut self.silence
    }

    /// What the kernel says has changed, without waiting.
    pub fn changes(&mut self) -> io::Result<Changes> {
        self.view.changes()
    }

    /// Whether an interface could not be opened again, or the kernel not be silenced, and the next look is to try again.
    pub fn is_incomplete(&self) -> bool {
        !self.missing.is_empty() || !self.is_silent
    }

    /// These ports' interfaces are gone, whether or not others of their names have come.
    pub fn reopen_at_next_look(&mut self, gone: BTreeSet<PortId>) {
        self.missing.extend(gone);
    }

    /// Looks again.
    pub fn look(&mut self) -> io::Result<Update> {
        let before: Vec<View> = self.arms.iter().map(|arm| View::of(arm, &self.tables)).collect();
        self.tables = self.view.tables()?;
        if self.view.unread() > 0 && !self.told_unread {
            self.told_unread = true;
            tracing::warn!(
                "the kernel describes links, routes or neighbours in a way that is not known here; those are left out"
            );
        }
        let mut returned: BTreeSet<PortId> = view::refresh(&mut self.arms, &self.tables).into_iter().collect();
        returned.append(&mut self.missing);
        for arm in &mut self.arms {
            arm.segments = self.view.can_segment(&arm.name).unwrap_or(arm.segments);
        }
        let reopened: Vec<(PortId, Vec<PacketPort>)> =
            returned.into_iter().filter_map(|port| Some((port, self.reopen(port)?))).collect();
        // The kernel answers pings of its own addresses itself.
        if self.tables.addresses != self.kernels {
            let kernels = self.tables.addresses.clone();
            let claims = claims(&self.model, &kernels);
            self.is_silent &= claims == self.claims;
            (self.claims, self.kernels) = (claims, kernels);
        }
        if !reopened.is_empty() || !self.is_silent {
            self.silence_again();
        }
        let moved = |(arm, before): (&KnownArm, &View)| View::of(arm, &self.tables).is_news(before);
        let is_moved = self.arms.iter().zip(&before).any(moved) || !reopened.is_empty();
        Ok(Update { is_moved, reopened })
    }

    /// Asks for a next hop that a worker wants; what cannot be asked for is wanted again.
    pub fn ask(&mut self, port: PortId, via: Ip) {
        let Some(arm) = self.arms.get(port.index()) else { return };
        if let Err(error) = self.view.ask(arm.index, via.into()) {
            tracing::debug!("next hop {via} on {}: {error}", arm.name);
        }
    }

    /// Has the kernel confirm the neighbours that it knows: it does not see that we use them. Where there are very many, routers and
    /// real servers each time and of the others the next ones.
    pub fn confirm(&mut self) {
        let ours = |link: u32| self.arms.iter().any(|arm| arm.index == link);
        let gateways = self.tables.routes.iter().filter_map(|route| route.gateway);
        let stated = self.model.routes.iter().map(|route| route.via).chain(routes::next_hops(&self.model));
        let first = gateways.chain(servers(&self.model)).chain(stated).collect();
        let known = self.tables.neighbours.iter().filter(|neighbour| ours(neighbour.link));
        let known: Vec<(u32, IpAddr)> = known.map(|neighbour| (neighbour.link, neighbour.ip)).collect();
        for (link, ip) in to_confirm(&known, &first, &mut self.confirmed) {
            if let Err(error) = self.view.ask(link, ip) {
                tracing::debug!("neighbour {ip}: {error}");
            }
        }
    }

    fn reopen(&mut self, port: PortId) -> Option<Vec<PacketPort>> {
        let arm = self.arms.get(port.index())?;
        let ifindex = arm.index;
        if !self.tables.links.iter().any(|link| link.name == arm.name) {
            self.missing.insert(port);
            return None;
        }
        let wanted = Wanted::of(&self.file, port.0);
        match open_arm(&arm.name, self.workers, &self.program, &self.ring, &self.groups, &wanted) {
            Ok(ports) => {
                tracing::info!("interface {} is there again", arm.name);
                if let Some(path) = &mut self.fast
                    && let Err(error) = path.attach(port, ifindex, &ports)
                {
                    tracing::warn!("{error}; every frame that comes in there goes through a worker");
                }
                Some(ports)
            }
            Err(error) => {
                tracing::warn!("{error}");
                self.missing.insert(port);
                None
            }
        }
    }

    fn silence_again(&mut self) {
        if let Err(error) = self.impose() {
            tracing::error!("{error}");
        }
    }

    fn silence(&mut self, claims: &[Claim]) -> Result<(), KernelError> {
        let there = |arm: &&KnownArm| self.tables.links.iter().any(|link| link.name == arm.name);
        let names: Vec<&str> = self.arms.iter().filter(there).map(|arm| arm.name.as_str()).collect();
        let mute: Vec<&str> = mute(&self.arms, &self.file).filter(there).map(|arm| arm.name.as_str()).collect();
        self.silence.replace(&names, &mute, claims).map_err(KernelError::Silence)
    }
}

impl AsRawFd for Kernel {
    /// Readable while there are changes.
    fn as_raw_fd(&self) -> RawFd {
        self.view.as_fd().as_raw_fd()
    }
}

/// Those of the `known` neighbours, which are in order, that one round asks for: the `first` ones, then others from the one behind `last` on,
/// which becomes the last of this round.
fn to_confirm(
    known: &[(u32, IpAddr)],
    first: &BTreeSet<IpAddr>,
    last: &mut Option<(u32, IpAddr)>,
) -> Vec<(u32, IpAddr)> {
    let mut asked = Vec::new();
    let mut others = Vec::new();
    for &(link, ip) in known {
        // However many are to be first, half of a round is left for the others, and who does not fit is one of them.
        let is_first = first.contains(&ip) && asked.len() < CONFIRMED_MAX / 2;
        if is_first { &mut asked } else { &mut others }.push((link, ip));
    }
    let behind = last.map_or(0, |last| others.partition_point(|other| *other <= last));
    let (before, behind) = others.split_at(behind);
    let in_turn = behind.iter().chain(before).take(CONFIRMED_MAX - asked.len());
    asked.extend(in_turn.inspect(|other| *last = Some(**other)));
    asked
}

/// What the neighbours of an arm see of it.
#[derive(Debug)]
struct View {
    mac: Mac,
    works: bool,
    networks: BTreeSet<(IpAddr, u8)>,
}

impl View {
    fn of(arm: &KnownArm, tables: &Tables) -> View {
        let own = tables.addresses.iter().filter(|address| address.link == arm.index);
        View { mac: arm.mac, works: arm.works, networks: own.map(|address| (address.ip, address.prefix)).collect() }
    }

    /// Whether the neighbours must be told: where our addresses are follows from the networks of the arms.
    fn is_news(&self, before: &View) -> bool {
        self.mac != before.mac || (self.works && !before.works) || !self.networks.is_subset(&before.networks)
    }
}

/// Attaches what carries flows to every arm.
fn attach_all(path: &mut KernelPath, arms: &[KnownArm], opened: &[Vec<PacketPort>]) -> io::Result<()> {
    let mut numbered = arms.iter().zip(opened).zip(0..);
    numbered.try_for_each(|((arm, ports), id)| path.attach(PortId(id), arm.index, ports))
}

fn known_arm(arm: &Arm) -> KnownArm {
    KnownArm {
        name: arm.name.clone(),
        index: arm.index,
        mac: Mac::default(),
        mtu_bytes: arm.mtu_bytes,
        segments: false,
        is_there: true,
        works: false,
    }
}

fn open_arm(
    name: &str,
    workers: usize,
    program: &[Instruction],
    ring: &RingSettings,
    groups: &[[u8; 6]],
    wanted: &Wanted,
) -> Result<Vec<PacketPort>, KernelError> {
    let failed = |source| KernelError::Interface { name: name.to_owned(), source };
    let mut ports = packet::open(name, workers, program, ring).map_err(failed)?;
    // One membership is enough for the interface, and ends with its port.
    if let Some(first) = ports.first() {
        groups.iter().try_for_each(|&group| first.join(group)).map_err(failed)?;
        if !matches!(wanted, Wanted::Own) {
            first.hear_all().map_err(failed)?;
        }
    }
    for port in &mut ports {
        match wanted {
            Wanted::All => port.take_all(),
            Wanted::Own => {}
            Wanted::Vlans(vlans) => port.take_vlans(vlans),
        }
    }
    Ok(ports)
}

/// Which frames of an arm are the packet plane's.
enum Wanted {
    /// Those for anybody: they are on their way over a bridge.
    All,
    /// Those for us.
    Own,
    /// And those of these VLANs.
    Vlans(Vec<u16>),
}

impl Wanted {
    /// Of the arm at this place.
    fn of(file: &FileNetwork, arm: u8) -> Wanted {
        if file.bridge_of(arm).is_some() {
            return Wanted::All;
        }
        let vlans: Vec<u16> = file.vlans.iter().filter(|vlan| vlan.arm == arm).map(|vlan| vlan.id).collect();
        if vlans.is_empty() { Wanted::Own } else { Wanted::Vlans(vlans) }
    }
}

/// The arms of bridges: what passes there is not for the kernel, which would answer some of it.
fn mute<'a>(arms: &'a [KnownArm], file: &'a FileNetwork) -> impl Iterator<Item = &'a KnownArm> {
    arms.iter().zip(0..).filter(|&(_, place)| file.bridge_of(place).is_some()).map(|(arm, _)| arm)
}

/// The Ethernet group that neighbour solicitations for an IPv6 address are sent to (RFC 4291 section 2.7.1, RFC 2464 section 7).
fn solicited_group(ip: IpAddr) -> Option<[u8; 6]> {
    let IpAddr::V6(ip) = ip else { return None };
    let [.., a, b, c] = ip.octets();
    Some([0x33, 0x33, 0xff, a, b, c])
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{error}; the packet plane needs CAP_NET_RAW and CAP_NET_ADMIN: run as root, or give them in the systemd unit \
             (`AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN CAP_BPF`; the last one is for the fast path only)"
        ),
        io::ErrorKind::OutOfMemory => format!("{error}; the rings need more memory than there is"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use towpath_sys::neighbour::LinkAddress;

    use super::*;

    #[test]
    fn every_neighbour_is_confirmed_in_turn_and_routers_each_time() {
        let ip = |number: u16| IpAddr::from([10, 0, number.to_be_bytes()[0], number as u8]);
        let known: Vec<(u32, IpAddr)> = (0..1000).map(|number| (2, ip(number))).collect();
        let first = BTreeSet::from([ip(999)]);
        let (mut last, mut seen) = (None, BTreeSet::new());
        for _ in 0..4 {
            let round = to_confirm(&known, &first, &mut last);
            assert_eq!((round.len(), round[0]), (CONFIRMED_MAX, (2, ip(999))));
            seen.extend(round);
        }
        assert_eq!(seen.len(), 1000);
        // The last one has gone meanwhile, and few are left.
        assert_eq!(to_confirm(&known[..3], &first, &mut last).len(), 3);
        assert!(to_confirm(&[], &first, &mut last).is_empty());
    }

    #[test]
    fn neighbours_are_told_of_an_address_that_moves_and_not_of_one_that_goes() {
        let arm = |index| KnownArm {
            name: String::new(),
            index,
            mac: Mac::default(),
            mtu_bytes: 1500,
            segments: false,
            is_there: true,
            works: true,
        };
        let on = |links: &[u32]| Tables {
            addresses: links.iter().map(|&link| LinkAddress { link, ip: [192, 0, 2, 1].into(), prefix: 24 }).collect(),
            ..Tables::default()
        };
        let is_news = |index, before: &[u32], after: &[u32]| {
            View::of(&arm(index), &on(after)).is_news(&View::of(&arm(index), &on(before)))
        };
        assert!(is_news(3, &[2], &[3]), "where it comes");
        assert!(!is_news(2, &[2], &[3]), "where it goes");
        assert!(!is_news(2, &[2], &[2]));
        assert!(!is_news(2, &[2], &[]));
    }
}
