//! The role of the machine: it serves, or stands by for its twin. It is said at run time, by a notify script of keepalived, say, kept in the state file,
//! and followed by every worker with the snapshot that it comes in.
//!
//! Addresses of the packet plane are announced by the worker that answers for them. Those that the kernel has are announced from here: whatever puts them
//! there may do so itself, or not.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use towpath_config::model::{MachineRole, Model, Plane, Source};
use towpath_core::admin::Said;
use towpath_core::packet::Mac;
use towpath_core::plane::announcement;
use towpath_sys::neighbour::Neighbours;
use towpath_sys::packet::Hearing;

use crate::admin::OrderError;
use crate::events::{Event, EventKind, Tone};
use crate::house::House;
use crate::preflight::can_bind;
use crate::shared::Phase;
use crate::status::word;

/// How often the kernel's addresses are announced, and the time in between: as those of the packet plane.
const ANNOUNCEMENTS: u32 = 5;
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(2);
/// Warnings of one kind that are told.
const TOLD_MAX: usize = 8;

/// What a machine is to its twin: the body of `POST /v1/role`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleBody {
    /// The role that it is to have.
    pub role: RoleText,
    /// Why, for status, events and the log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// A role, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleText {
    /// It serves.
    Active,
    /// Another machine serves.
    Standby,
}

impl From<RoleText> for MachineRole {
    fn from(text: RoleText) -> MachineRole {
        match text {
            RoleText::Active => MachineRole::Active,
            RoleText::Standby => MachineRole::Standby,
        }
    }
}

impl From<MachineRole> for RoleText {
    fn from(role: MachineRole) -> RoleText {
        match role {
            MachineRole::Active => RoleText::Active,
            MachineRole::Standby => RoleText::Standby,
        }
    }
}

/// The role of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleStatus {
    /// The one that holds.
    pub role: RoleText,
    /// What the configuration says; `None` = nothing, which is active.
    pub configured: Option<RoleText>,
    /// What was said at run time, if that is what holds.
    pub said: Option<RoleSaid>,
}

/// What was said of the role at run time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleSaid {
    /// Since when it holds, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Who said it.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
}

/// What a word about the role did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleChanged {
    /// The generation that it is in force with.
    pub generation: u64,
    /// What held before.
    pub before: RoleText,
    /// What holds now.
    pub after: RoleText,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

impl House {
    /// The role that holds, and who has said so.
    pub(crate) fn role(&self) -> RoleStatus {
        let truth = self.truth();
        RoleStatus {
            role: truth.words().role(truth.model()).into(),
            configured: truth.model().runtime.role.map(RoleText::from),
            said: truth.words().role_word().map(|word| RoleSaid {
                since_unix_ms: word.said.unix_ms,
                by: word.said.by.clone(),
                reason: word.said.reason.clone(),
            }),
        }
    }

    /// The machine has this role from now on: afterwards it is published. The number is of what is to be written down.
    pub(crate) fn take_role(&self, role: MachineRole, said: Said) -> Result<(RoleChanged, u64), OrderError> {
        if self.shared.phase() != Phase::Running {
            return Err(OrderError::Stopping);
        }
        let mut truth = self.truth();
        if self.upgrades.is_handing() {
            return Err(OrderError::Upgrading);
        }
        let mut words = truth.words().clone();
        let before = words.role(truth.model());
        words.say_role(truth.model(), role, said.clone());
        let next = truth.next_with(words, self.shared.generation(), self.shared.now())?;
        let warnings = warnings(truth.model(), role);
        let changed =
            RoleChanged { generation: next.snapshot.generation.0, before: before.into(), after: role.into(), warnings };
        if before != role {
            let reason = if said.reason.is_empty() { String::new() } else { format!(": {}", said.reason) };
            let event = Event::now(EventKind::Admin, word(&before), word(&role), format!("by {}{reason}", said.by));
            truth.record(Tone::Info, event.subject("role of this machine".to_owned()));
        }
        self.shared.publish(next);
        let version = truth.words_version();
        drop(truth);
        self.keeper.note(version);
        self.ordered.notify_one();
        Ok((changed, version))
    }
}

/// What does not go with the role.
fn warnings(model: &Model, role: MachineRole) -> Vec<String> {
    let relayed: BTreeSet<IpAddr> =
        model.services.iter().filter(|service| service.plane == Plane::Stream).map(|service| service.vip).collect();
    match role {
        MachineRole::Active => relayed
            .into_iter()
            .filter(|&vip| !can_bind(vip))
            .take(TOLD_MAX)
            .map(|vip| {
                format!("vip {vip} is not an address of this host yet, so no client of the stream plane comes to it")
            })
            .collect(),
        MachineRole::Standby if !relayed.is_empty() && model.runtime.role.is_none() => {
            vec!["`runtime.role` is not in the file, so a start without the VIPs would be refused; write role = \"standby\"".to_owned()]
        }
        MachineRole::Standby => Vec::new(),
    }
}

/// Tells the neighbours a few times that the addresses which the kernel has for services are here.
pub(crate) async fn announce(house: Arc<House>) {
    for time in 0..ANNOUNCEMENTS {
        if time > 0 {
            sleep(ANNOUNCE_AGAIN).await;
        }
        let addresses = addresses(house.truth().model());
        if addresses.is_empty() {
            return;
        }
        let shared = Arc::clone(&house.shared);
        // A turn that is under way is not taken back when the role changes.
        let may = move || shared.snapshot().role == MachineRole::Active;
        let told = tokio::task::spawn_blocking(move || tell_links(&addresses, may)).await;
        if let Ok(Err(error)) = told {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => " (it takes CAP_NET_RAW); keepalived does it when it adds them",
                _ => "",
            };
            tracing::warn!("addresses of the stream plane could not be announced: {error}{hint}");
            return;
        }
    }
}

/// Those that move from one machine to the other; not the one that an interface has anyway.
fn addresses(model: &Model) -> BTreeSet<IpAddr> {
    let of = |source: &Source| match source {
        Source::Pool(pool) if pool.towards.is_empty() => pool.addresses.clone(),
        Source::Client | Source::Facing(_) | Source::Interface | Source::Pool(_) => Vec::new(),
    };
    model.services.iter().flat_map(|service| of(&service.source).into_iter().chain([service.vip])).collect()
}

/// Announces those of them that the kernel has on an Ethernet, as long as it `may`.
fn tell_links(addresses: &BTreeSet<IpAddr>, may: impl Fn() -> bool) -> io::Result<()> {
    let tables = Neighbours::open()?.tables()?;
    let socket = Hearing::open()?;
    for own in tables.addresses.iter().filter(|own| addresses.contains(&own.ip)) {
        let Some(link) = tables.links.iter().find(|link| link.index == own.link && link.up && link.ethernet) else {
            continue;
        };
        if !may() {
            return Ok(());
        }
        let Ok(mac) = <[u8; 6]>::try_from(link.hardware_address.as_slice()) else { continue };
        match socket.send(link.index, None, &announcement(Mac(mac), own.ip.into())) {
            // Its cable was pulled since: nobody is there to be told.
            Err(error) if error.kind() == io::ErrorKind::NetworkDown => {}
            told => told?,
        }
    }
    Ok(())
}
