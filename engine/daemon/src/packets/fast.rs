//! The fast path of the packet plane in the kernel: its memory, its programs, and the interfaces that they are attached to.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;

use towpath_config::model::{FastPath as FastPathWord, Forwarding, Model, Protocol};
use towpath_core::fast_path::program::{FastMaps, carry_program, filter_program};
use towpath_core::fast_path::{FastMemory, FastShape, MapShape};
use towpath_core::plane::PortId;
use towpath_sys::fast_path::{Attached, FastPath, MapSize, Programs, Unavailable};
use towpath_sys::packet::PacketPort;

use super::claims::services;

/// Flows of the table with which the kernel is asked whether it takes the programs.
const ASKED_FLOWS: u32 = 1;

/// Whether the kernel can carry flows of this configuration onwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// The operator does not want it.
    Off,
    /// It cannot; why.
    Unavailable(String),
    /// Nothing is routed, and no service has flows that it could carry.
    Unneeded,
}

impl Readiness {
    /// Asks the kernel, if it matters for this configuration; nothing is left behind.
    pub fn find_out(model: &Model) -> Readiness {
        let is_fast = |protocol, forwarding, is_v4| protocol == Protocol::Tcp && forwarding != Forwarding::Dsr && is_v4;
        match model.runtime.fast_path {
            FastPathWord::Off => Readiness::Off,
            FastPathWord::Auto
                if !model.router.enabled
                    && !services(model).any(|s| is_fast(s.protocol, s.forwarding, s.vip.is_ipv4())) =>
            {
                Readiness::Unneeded
            }
            FastPathWord::Auto => match KernelPath::open(ASKED_FLOWS, [0; 2]) {
                Ok(_) => Readiness::Ready,
                Err(why) => Readiness::Unavailable(why.to_string()),
            },
        }
    }
}

/// Programs that the kernel has taken, with their memory. When it is dropped they are attached nowhere any more.
pub struct KernelPath {
    path: FastPath<3>,
    memory: FastMemory,
    attached: BTreeMap<PortId, Attached>,
}

impl KernelPath {
    /// A table for so many flows, keyed with `seed`, and the programs that read it, attached nowhere yet.
    ///
    /// # Errors
    /// The kernel, or its memory, does not let us.
    pub fn open(flows: u32, seed: [u64; 2]) -> Result<KernelPath, Unavailable> {
        let shape = FastShape::new(flows);
        let size = |map: MapShape| MapSize { element_octets: map.element_octets, elements: map.elements };
        let sizes = [shape.control(), shape.index(), shape.entries()].map(size);
        let path = FastPath::open(sizes, |[control, index, entries]| {
            let maps = FastMaps { control, index, entries };
            Programs { carry: carry_program(shape, seed, maps), filter: filter_program(shape, seed, maps) }
        })?;
        let [control, index, entries] = path.words().clone();
        let memory = FastMemory::new(shape, seed, control, index, entries);
        Ok(KernelPath { path, memory, attached: BTreeMap::new() })
    }

    /// What tells the ports which frames are theirs.
    pub fn filter(&self) -> BorrowedFd<'_> {
        self.path.filter()
    }

    /// What workers enter flows into.
    pub fn memory(&self) -> &FastMemory {
        &self.memory
    }

    /// Has the kernel carry frames that come in by an interface, which just now has this number, and its workers' `ports` not see those.
    ///
    /// # Errors
    /// The kernel does not let us: all frames go to the ports.
    pub fn attach(&mut self, port: PortId, ifindex: u32, ports: &[PacketPort]) -> io::Result<()> {
        // In this order: a frame that the ports do not see must be carried.
        drop(self.attached.remove(&port));
        let attached = self.path.attach(ifindex)?;
        for of_worker in ports {
            if let Err(error) = of_worker.set_filter(Some(self.path.filter())) {
                let cleared: Vec<io::Result<()>> = ports.iter().map(|of_worker| of_worker.set_filter(None)).collect();
                return cleared.into_iter().collect::<io::Result<()>>().and(Err(error));
            }
        }
        self.attached.insert(port, attached);
        Ok(())
    }
}
