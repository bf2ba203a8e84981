//! Who still holds the ids of services that a reload has taken out. Whoever has to do with a service on the stream plane holds a compiled form of it; flows
//! of the packet plane hold its number alone, and are known by their count and by how long what is left of them can last.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use towpath_config::model::Plane;
use towpath_core::flow::tcp::TcpTimeouts;
use towpath_core::snapshot::{Service, ServiceSource, Snapshot};
use towpath_core::{Now, ServiceId};

/// By place: what is behind a service by its routes has an id of its own.
#[derive(Default)]
pub(super) struct Holders(HashMap<ServiceId, Held>);

#[derive(Default)]
struct Held {
    /// Every compiled form that somebody may have: one for each snapshot that somebody began with.
    forms: Vec<Weak<Service>>,
    /// How long flows of the packet plane that are counted no more may have this number.
    rest_ms: u64,
    /// When it was first seen that no model names it.
    gone_since: Option<Now>,
}

impl Holders {
    /// A snapshot is about to be in force.
    pub(super) fn note(&mut self, snapshot: &Snapshot) {
        for service in snapshot.each_service() {
            let held = self.0.entry(service.place).or_default();
            held.forms.retain(is_held);
            held.forms.push(Arc::downgrade(service));
            held.rest_ms = held.rest_ms.max(rest_ms(service));
            held.gone_since = None;
        }
    }

    /// Since when a service has gone whose id nobody holds; `active` is what it has open. `None` = somebody does.
    pub(super) fn let_go(&mut self, gone: ServiceId, active: u32, now: Now) -> Option<Now> {
        // Lanes of `[[outbound_nat]]` are no services, and stay.
        let held = self.0.get_mut(&gone)?;
        let since = *held.gone_since.get_or_insert(now);
        held.forms.retain(is_held);
        let is_free = active == 0 && held.forms.is_empty() && now.ms_since(since) >= held.rest_ms;
        is_free.then_some(since)
    }

    /// What somebody still has to do with though it is not in force: services that have gone, and those that are there as they were before.
    pub(super) fn remnants(&self, in_force: &Snapshot) -> Vec<Arc<Service>> {
        let forms = self.0.values().flat_map(|held| &held.forms).filter_map(Weak::upgrade);
        let is_former = |form: &Arc<Service>| in_force.service(form.place).is_none_or(|now| !Arc::ptr_eq(now, form));
        forms.filter(is_former).collect()
    }

    /// The id is given back.
    pub(super) fn forget(&mut self, released: ServiceId) {
        self.0.remove(&released);
    }
}

fn is_held(form: &Weak<Service>) -> bool {
    form.strong_count() > 0
}

/// How long a flow that is counted no more may lie in a table: both ends have closed it, or it was reset, and packets may still be late. Twice, for what
/// these packets prolong. Longer than a capture lasts, which knows its services by their ids.
fn rest_ms(service: &Service) -> u64 {
    if service.plane != Plane::Packet {
        return 0;
    }
    let TcpTimeouts { closing_ms, time_wait_ms, reset_ms, .. } = TcpTimeouts::default();
    // A lease that rests does so in its flow.
    let lease_ms = match &service.source {
        ServiceSource::Client | ServiceSource::Interface => 0,
        ServiceSource::Pool(pool) => pool.rest_ms(),
    };
    2 * closing_ms.max(time_wait_ms).max(reset_ms).max(lease_ms)
}
