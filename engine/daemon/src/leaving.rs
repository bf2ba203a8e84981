//! Services of the packet plane that a reload has taken out, for as long as they have flows: their addresses stay ours, nobody new comes to them, and
//! after their drain timeout what is left ends. Pure.
//!
//! A relay of the stream plane needs none of it: it keeps the service that it began with.

use std::borrow::Cow;

use towpath_config::model::{AdminState, Model, Plane, Server, ServerGroup, VirtualService};
use towpath_core::Now;

/// One of them, as it was last.
#[derive(Clone, Debug)]
pub(crate) struct LeavingService {
    service: VirtualService,
    group: ServerGroup,
    since: Now,
    /// What is left is ended.
    is_over: bool,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leaving(Vec<LeavingService>);

impl Leaving {
    /// Those after a reload from `old` to `new`: who is named again leaves no more.
    pub(crate) fn after(&self, old: &Model, new: &Model, now: Now) -> Leaving {
        let is_named = |name: &str| new.services.iter().any(|service| service.name == name);
        let stay = self.0.iter().filter(|leaving| !is_named(&leaving.service.name)).cloned();
        let gone = old.services.iter().filter(|service| service.plane == Plane::Packet && !is_named(&service.name));
        let leave = gone.map(|service| LeavingService {
            service: service.clone(),
            group: old.groups[service.group].clone(),
            since: now,
            is_over: false,
        });
        Leaving(stay.chain(leave).collect())
    }

    /// The file's model with them in it; their servers take nobody, or are halted.
    pub(crate) fn with<'m>(&self, model: &'m Model) -> Cow<'m, Model> {
        if self.is_empty() {
            return Cow::Borrowed(model);
        }
        let mut model = model.clone();
        for LeavingService { service, group, is_over, .. } in &self.0 {
            let admin = if *is_over { AdminState::Halt } else { AdminState::Drain };
            let mut group = ServerGroup { health: None, ..group.clone() };
            group.servers.iter_mut().for_each(|server| server.admin = admin);
            let sorry = service.sorry.clone().map(|server| Server { admin, ..server });
            model.services.push(VirtualService { group: model.groups.len(), sorry, ..service.clone() });
            model.groups.push(group);
        }
        Cow::Owned(model)
    }

    /// Ends what has had its time, and forgets whom `is_empty` knows to have no flow left. Whether anything is different.
    pub(crate) fn turn(&mut self, now: Now, is_empty: impl Fn(&str) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|leaving| !is_empty(&leaving.service.name));
        let mut is_changed = self.0.len() < before;
        for leaving in self.0.iter_mut().filter(|leaving| !leaving.is_over) {
            leaving.is_over = now.ms_since(leaving.since) >= leaving.service.drain_timeout_ms;
            is_changed |= leaving.is_over;
        }
        is_changed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one of this name, as it was.
    pub(crate) fn find(&self, name: &str) -> Option<&VirtualService> {
        self.0.iter().map(|leaving| &leaving.service).find(|service| service.name == name)
    }

    /// Their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|leaving| leaving.service.name.as_str())
    }

    /// Their servers.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &Server> {
        self.0.iter().flat_map(|leaving| &leaving.group.servers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(names: &[&str]) -> Model {
        let service = |(name, at): (&&str, usize)| {
            format!(
                "[[service]]\nname = \"{name}\"\nvip = \"192.0.2.{at}\"\nports = 80\nplane = \"packet\"\ndrain_timeout = \"10s\"\n\
                 source = \"vip\"\nhealth = {{ check = \"tcp\" }}\n[[service.server]]\nname = \"one\"\naddress = \"192.0.2.99\"\n"
            )
        };
        let text: String = names.iter().zip(1..).map(service).collect();
        towpath_config::check("test.toml", &text).model.unwrap_or_else(|| panic!("no model of\n{text}"))
    }

    #[test]
    fn who_is_taken_out_stays_without_new_clients_until_it_has_no_flows() {
        let (both, one) = (model(&["web", "mail"]), model(&["web"]));
        let mut leaving = Leaving::default().after(&both, &one, Now(1_000));
        let in_force = leaving.with(&one);
        assert_eq!(in_force.services.len(), 2);
        let mail = &in_force.services[1];
        assert_eq!((mail.name.as_str(), mail.vip), ("mail", both.services[1].vip));
        let group = &in_force.groups[mail.group];
        assert!(group.health.is_none() && group.servers[0].admin == AdminState::Drain);
        assert_eq!(in_force.groups[in_force.services[0].group].servers[0].admin, AdminState::Ready);

        assert!(!leaving.turn(Now(10_999), |_| false));
        assert!(leaving.turn(Now(11_000), |_| false), "its time is over");
        let in_force = leaving.with(&one);
        assert_eq!(in_force.groups[in_force.services[1].group].servers[0].admin, AdminState::Halt);
        assert!(!leaving.turn(Now(11_001), |_| false));
        assert!(leaving.turn(Now(11_002), |name| name == "mail"));
        assert!(leaving.is_empty());
        assert_eq!(*leaving.with(&one), one);
    }

    #[test]
    fn who_is_named_again_leaves_no_more() {
        let (both, one) = (model(&["web", "mail"]), model(&["web"]));
        let leaving = Leaving::default().after(&both, &one, Now(0));
        assert_eq!(leaving.find("mail").map(|service| service.vip), Some(both.services[1].vip));
        let again = leaving.after(&one, &both, Now(1));
        assert!(again.is_empty());
        let still = leaving.after(&one, &one, Now(1));
        assert_eq!(still.names().collect::<Vec<_>>(), ["mail"]);
    }
}
