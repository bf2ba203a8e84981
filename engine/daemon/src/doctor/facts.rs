//! What the machine says about itself when it is asked; nothing is sent.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;

use towpath_config::model::{Model, Source};
use towpath_sys::ethtool::{Devices, Feature};
use towpath_sys::link::Link;
use towpath_sys::neighbour::{Neighbours, Tables};
use towpath_sys::netns::Namespace;
use towpath_sys::sysfs::Sysfs;

use crate::packets::arms::{self, holds, kernels_route};
use crate::packets::claims::{self, carries_packets};
use crate::preflight::HostFacts;

/// What is known without asking anybody else.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What preflight judges.
    pub host: HostFacts,
    /// Links, addresses, routes, neighbours.
    pub tables: Tables,
    /// The Ethernet interfaces that the configuration needs, in the order of their numbers.
    pub links: Vec<LinkFacts>,
    /// What the kernel does about huge pages; `None` where it does not say.
    pub huge_pages: Option<HugePages>,
    /// The CPUs of each NUMA node.
    pub nodes: Vec<Vec<usize>>,
    /// Whether a daemon with this control socket runs.
    pub is_running: bool,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Name, number, state, MTU.
    pub link: Link,
    /// Whether the kernel drops IPv4 packets that come in where their answer would not leave (`rp_filter` = 1, RFC 3704 section 2.2).
    pub is_strict: bool,
    /// The features that are on.
    pub features: Vec<Feature>,
    /// The card behind it; `None` for virtual interfaces.
    pub card: Option<Card>,
}

impl LinkFacts {
    /// Whether the device does it.
    pub fn does(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// The NUMA node that it is at; `None` where there is only one.
    pub node: Option<usize>,
    /// The CPUs that each of its interrupts goes to.
    pub interrupts: Vec<Vec<usize>>,
}

/// `/sys/kernel/mm/transparent_hugepage/enabled`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// For everybody.
    Always,
    /// For those who ask, as Towpath does.
    Asked,
    /// For nobody.
    Never,
}

impl Facts {
    /// Asks the machine, in the network namespace of the calling thread.
    pub fn gather(model: &Model, is_running: bool) -> io::Result<Facts> {
        let host = HostFacts::gather(model)?;
        let tables = Neighbours::open()?.tables()?;
        let devices = Devices::open()?;
        let view = View::here();
        let links = links_of(model, &tables)
            .into_iter()
            .map(|link| LinkFacts {
                is_strict: is_strict(&link.name),
                features: features(&devices, &link.name),
                card: view.card(&link.name),
                link: link.clone(),
            })
            .collect();
        Ok(Facts { host, tables, links, huge_pages: huge_pages(), nodes: nodes(), is_running })
    }

    /// The facts of a link.
    pub fn link(&self, index: u32) -> Option<&LinkFacts> {
        self.links.iter().find(|facts| facts.link.index == index)
    }
}

/// VIPs and SNAT addresses.
pub(super) fn own_addresses(model: &Model) -> BTreeSet<IpAddr> {
    let of_service = model.services.iter().flat_map(|service| {
        let pool = match &service.source {
            Source::Pool(pool) => pool.addresses.as_slice(),
            Source::Client | Source::Facing(_) | Source::Interface => &[],
        };
        pool.iter().copied().chain([service.vip])
    });
    of_service.chain(claims::outbound(model).flat_map(|(_, pool)| pool.addresses.iter().copied())).collect()
}

/// Every real server.
pub(super) fn servers(model: &Model) -> BTreeSet<IpAddr> {
    model.servers().map(|server| server.address).collect()
}

/// The Ethernet interfaces that a configuration needs: those of the packet plane, and those whose networks hold an address of ours or
/// lead to a real server. Some may be down.
fn links_of<'t>(model: &Model, tables: &'t Tables) -> Vec<&'t Link> {
    let mut wanted: BTreeSet<u32> = match carries_packets(model) {
        true => arms::choose(model, tables).0.iter().map(|link| link.index).collect(),
        false => BTreeSet::new(),
    };
    let (own, servers) = (own_addresses(model), servers(model));
    let near =
        tables.addresses.iter().filter(|net| own.iter().chain(&servers).any(|&ip| holds(net.ip, net.prefix, ip)));
    wanted.extend(near.map(|net| net.link));
    let routes = servers.iter().filter(|ip| !ip.is_loopback()).filter_map(|&ip| kernels_route(model, tables, ip));
    wanted.extend(routes.map(|route| route.link));
    tables.links.iter().filter(|link| link.ethernet && wanted.contains(&link.index)).collect()
}

fn features(devices: &Devices, name: &str) -> Vec<Feature> {
    let all =
        [Feature::LargeReceive, Feature::ReceiveMerge, Feature::ReceiveSums, Feature::Segmentation, Feature::SendSums];
    // A device that says nothing does nothing.
    all.into_iter().filter(|&feature| devices.does(name, feature).unwrap_or(false)).collect()
}

/// The larger of both settings counts (Documentation/networking/ip-sysctl.rst): 2, loose, wins over 1, strict.
fn is_strict(name: &str) -> bool {
    let filter = |name: &str| -> u32 {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    filter("all").max(filter(name)) == 1
}

fn huge_pages() -> Option<HugePages> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    match text.split(['[', ']']).nth(1)? {
        "always" => Some(HugePages::Always),
        "madvise" => Some(HugePages::Asked),
        "never" => Some(HugePages::Never),
        _ => None,
    }
}

/// The CPUs of each node, in the order of their numbers; none where the kernel knows no nodes.
fn nodes() -> Vec<Vec<usize>> {
    let cpus = |node: usize| fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist")).ok();
    (0..).map_while(cpus).map(|text| cpu_list(&text)).collect()
}

/// `0-3,8` as the kernel writes it; what is no number is left out.
fn cpu_list(text: &str) -> Vec<usize> {
    let range = |part: &str| -> Option<Vec<usize>> {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (usize, usize) = (low.parse().ok()?, high.parse().ok()?);
        // No machine has more; a longer list is no list of CPUs.
        (high < 1 << 16).then(|| (low..=high).collect())
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// /sys as the namespace of the calling thread sees it, or as it is mounted where we may not have our own.
struct View(Option<Sysfs>);

impl View {
    fn here() -> View {
        View(Namespace::current().and_then(|namespace| Sysfs::of(&namespace)).ok())
    }

    fn read(&self, file: &str) -> Option<String> {
        match &self.0 {
            Some(sysfs) => sysfs.read(file).ok(),
            None => fs::read_to_string(format!("/sys/{file}")).ok(),
        }
    }

    fn list(&self, directory: &str) -> Option<Vec<String>> {
        match &self.0 {
            Some(sysfs) => sysfs.list(directory).ok(),
            None => {
                let entries = fs::read_dir(format!("/sys/{directory}")).ok()?;
                Some(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
            }
        }
    }

    /// The card behind an interface. That of a virtio interface is the device above it.
    fn card(&self, name: &str) -> Option<Card> {
        let device = format!("class/net/{name}/device");
        self.list(&device)?;
        let places = [device.clone(), format!("{device}/..")];
        let node = places.iter().find_map(|place| self.read(&format!("{place}/numa_node")));
        let irqs = places.iter().find_map(|place| self.list(&format!("{place}/msi_irqs"))).unwrap_or_default();
        let cpus = |irq: &String| {
            let file = |name: &str| fs::read_to_string(format!("/proc/irq/{irq}/{name}")).ok();
            let cpus = cpu_list(&file("effective_affinity_list").or_else(|| file("smp_affinity_list"))?);
            (!cpus.is_empty()).then_some(cpus)
        };
        Some(Card {
            // −1 where the machine has one node only.
            node: node.and_then(|text| text.trim().parse().ok()),
            interrupts: irqs.iter().filter_map(cpus).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_as_the_kernel_writes_them() {
        assert_eq!(cpu_list("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert_eq!(cpu_list("5\n"), [5]);
        assert_eq!(cpu_list("\n"), Vec::<usize>::new());
        assert_eq!(cpu_list("0-99999999999"), Vec::<usize>::new());
    }

    #[test]
    fn this_machine_says_something() {
        let text = "[[service]]\nname = \"web\"\nvip = \"127.0.0.1\"\nports = 80\n[[service.server]]\nname = \"one\"\n\
                    address = \"127.0.0.2\"\n";
        let model = towpath_config::check("test.toml", text).model.unwrap();
        let facts = Facts::gather(&model, false).unwrap();
        assert!(facts.links.is_empty(), "the loopback is no Ethernet: {:?}", facts.links);
        assert!(facts.tables.links.iter().any(|link| link.name == "lo"));
        assert_eq!(own_addresses(&model).len(), 1);
        assert_eq!(servers(&model).len(), 1);
    }
}
