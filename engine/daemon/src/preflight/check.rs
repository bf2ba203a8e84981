//! What is looked at: the closed list that findings, `towpath doctor` and its documentation share.

use std::fmt;

use serde::Serialize;

/// One thing that is looked at, of the machine, an interface or a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Who has the VIPs, the SNAT addresses and those of real servers.
    Addresses,
    /// The rights of the process.
    Capabilities,
    /// Certificates and private keys that services name.
    Certificates,
    /// Another station answers for an address.
    DuplicateAddress,
    /// Whether real servers show the certificate that clients see.
    ExtendedProtection,
    /// Whether the kernel carries open connections onwards.
    FastPath,
    /// Secrets and pages that HTTP mode names.
    Files,
    /// Clients of half-NAT whose replies would pass us by.
    HalfNat,
    /// Huge pages for the tables of flows.
    HugePages,
    /// The CPUs that a card interrupts.
    Interrupts,
    /// Its release.
    Kernel,
    /// Whether the kernel forwards packets that are ours to forward.
    KernelForwards,
    /// Descriptors, memory, CPUs.
    Limits,
    /// Whether an interface is up and has a cable.
    Link,
    /// Programs of this host on ports that the packet plane takes.
    Listeners,
    /// Ports that both the kernel and we give away.
    LocalPorts,
    /// Whether packets as large as an interface carries arrive.
    Mtu,
    /// Whether gateways and real servers answer ARP or neighbour solicitations.
    NextHop,
    /// Whether cards and workers are at the same memory.
    Numa,
    /// What the device does instead of the CPU.
    Offloads,
    /// Whether half-NAT replies of a real server come back to us.
    ReturnPath,
    /// Whether there is a way to clients and real servers.
    Routes,
    /// Whether the kernel drops clients for the interface that they come in by.
    RpFilter,
    /// Whether real servers take connections.
    Servers,
    /// Whether frames can be told apart for the workers and the kernel.
    Steering,
}

impl Check {
    /// All of them.
    pub const ALL: [Check; 25] = [
        Check::Addresses,
        Check::Capabilities,
        Check::Certificates,
        Check::DuplicateAddress,
        Check::ExtendedProtection,
        Check::FastPath,
        Check::Files,
        Check::HalfNat,
        Check::HugePages,
        Check::Interrupts,
        Check::Kernel,
        Check::KernelForwards,
        Check::Limits,
        Check::Link,
        Check::Listeners,
        Check::LocalPorts,
        Check::Mtu,
        Check::NextHop,
        Check::Numa,
        Check::Offloads,
        Check::ReturnPath,
        Check::Routes,
        Check::RpFilter,
        Check::Servers,
        Check::Steering,
    ];

    /// Its name, as people and programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Check::Addresses => "addresses",
            Check::Capabilities => "capabilities",
            Check::Certificates => "certificates",
            Check::DuplicateAddress => "duplicate-address",
            Check::ExtendedProtection => "extended-protection",
            Check::FastPath => "fast-path",
            Check::Files => "files",
            Check::HalfNat => "half-nat",
            Check::HugePages => "huge-pages",
            Check::Interrupts => "interrupts",
            Check::Kernel => "kernel",
            Check::KernelForwards => "kernel-forwards",
            Check::Limits => "limits",
            Check::Link => "link",
            Check::Listeners => "listeners",
            Check::LocalPorts => "local-ports",
            Check::Mtu => "mtu",
            Check::NextHop => "next-hop",
            Check::Numa => "numa",
            Check::Offloads => "offloads",
            Check::ReturnPath => "return-path",
            Check::Routes => "routes",
            Check::RpFilter => "rp-filter",
            Check::Servers => "servers",
            Check::Steering => "steering",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_check_stands_once_in_the_list_and_has_a_name_of_its_own() {
        assert_eq!(Check::ALL.iter().collect::<BTreeSet<_>>().len(), Check::ALL.len());
        assert_eq!(Check::ALL.map(Check::name).iter().collect::<BTreeSet<_>>().len(), Check::ALL.len());
        // The last one by order is the last of the list: none was added to the one and forgotten in the other.
        assert_eq!(Check::ALL.iter().max(), Some(&Check::ALL[Check::ALL.len() - 1]));
        assert_eq!(Check::ALL[Check::ALL.len() - 1] as usize, Check::ALL.len() - 1);
        for check in Check::ALL {
            assert_eq!(serde_json::to_value(check).unwrap(), check.name());
        }
    }
}
