//! A machine that stands by for its twin says nothing on the packet plane: what it sent would be heard beside what the other one sends.
//!
//! Its flows stay as they are until their time is up. So a machine whose turn comes again at once goes on with them, and of one that stays away they
//! hold no room for long.

use towpath_config::model::MachineRole;

use super::answer::HOP_LIMIT;
use super::{Frame, Outbox, Plane, PlaneCounter, Verdict, is_for};
use crate::packet::rewrite::{Layout, answer_echo};
use crate::packet::{DropReason, Ip, Packet, parse};

impl Plane {
    /// From now on the machine has this role. What the kernel carries onwards in its place it carries no more.
    pub(super) fn take_role(&mut self, role: MachineRole) {
        if role == MachineRole::Standby && self.role == MachineRole::Active {
            self.forget_fast();
            self.forget_transits();
        }
        self.role = role;
    }

    /// Decides about a batch: who asks for an address of a VLAN or a bridge, which is this machine's own, is answered, for health checks speak from
    /// there; nothing else is.
    #[cold]
    pub(super) fn stand_by(&mut self, frames: &mut [Frame<'_>], verdicts: &mut Vec<Verdict>, out: &mut Outbox) {
        for frame in &mut *frames {
            let verdict = self.let_go(frame, out);
            verdicts.push(verdict);
        }
        self.counts.add(PlaneCounter::Frames, frames.len() as u64);
        self.count_verdicts(verdicts);
    }

    fn let_go(&mut self, frame: &mut Frame<'_>, out: &mut Outbox) -> Verdict {
        if !self.network.port(frame.port).is_some_and(|port| is_for(frame.bytes, port.mac)) {
            return Verdict::Pass;
        }
        match parse(frame.bytes) {
            Ok(Packet::Arp(arp)) if self.network.is_own(arp.target) => self.on_arp(frame, &arp, out),
            Ok(Packet::Nd(nd)) if self.network.is_own(nd.target) => self.on_nd(frame, &nd, out),
            Ok(Packet::Echo(echo)) if self.network.is_own(echo.tuple.dst) => {
                match answer_echo(frame.bytes, &Layout::from(&echo), HOP_LIMIT) {
                    Ok(()) => {
                        self.counts.add(PlaneCounter::EchoAnswered, 1);
                        Verdict::Send(frame.port)
                    }
                    Err(_) => Verdict::Drop(DropReason::FrameChanged),
                }
            }
            Ok(Packet::Echo(packet) | Packet::Transport(packet)) => self.not_now(packet.tuple.dst),
            Ok(Packet::Fragment(fragment)) => self.not_now(fragment.key.dst),
            Ok(Packet::Arp(_) | Packet::EchoReply(_) | Packet::IcmpError(_) | Packet::Nd(_) | Packet::Other(_)) => {
                Verdict::Pass
            }
            Err(reason) => Verdict::Drop(reason),
        }
    }

    fn not_now(&self, to: Ip) -> Verdict {
        if self.is_ours_alone(to) && !self.network.is_own(to) {
            Verdict::Drop(DropReason::Standby)
        } else {
            Verdict::Pass
        }
    }
}
