//! How many connections each service and real server carries, over all workers.

use std::cell::Cell;

use crate::ids::{RealServerId, ServiceId};

/// Counts shared by everything that opens and closes connections. The engine keeps them in atomics; [`PlainLoads`] serves one thread.
pub trait Loads {
    /// Connections that `server` carries now, over all services and workers.
    fn active(&self, server: RealServerId) -> u32;

    /// Of these, connections that `service` has there: what a drain in this service waits for.
    fn active_of(&self, service: ServiceId, server: RealServerId) -> u32;

    /// Counts one more connection for both, or for neither: one step, so two callers never both win the last free place.
    /// A limit of 0 means "no limit". The service is asked first.
    fn try_open(&self, service: ServiceId, service_max: u32, server: RealServerId, server_max: u32)
    -> Result<(), Full>;

    /// Gives back what one successful [`Loads::try_open`] counted.
    fn close(&self, service: ServiceId, server: RealServerId);
}

/// Which limit refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The real server is at its `max_connections`.
    Server,
    /// The service is at its `max_connections`.
    Service,
}

/// Loads for one thread: simulations, tests, sizing.
#[derive(Clone, Debug)]
pub struct PlainLoads {
    services: Box<[Cell<u32>]>,
    servers: Box<[Cell<u32>]>,
    /// By service, then by server.
    members: Box<[Cell<u32>]>,
}

impl PlainLoads {
    /// Counts for ids below `services_len` and `servers_len`, all 0.
    pub fn new(services_len: usize, servers_len: usize) -> PlainLoads {
        PlainLoads {
            services: (0..services_len).map(|_| Cell::new(0)).collect(),
            servers: (0..servers_len).map(|_| Cell::new(0)).collect(),
            members: (0..services_len * servers_len).map(|_| Cell::new(0)).collect(),
        }
    }

    /// Connections that `service` carries now.
    pub fn active_of_service(&self, service: ServiceId) -> u32 {
        self.services[service.index()].get()
    }

    fn member(&self, service: ServiceId, server: RealServerId) -> &Cell<u32> {
        &self.members[service.index() * self.servers.len() + server.index()]
    }
}

impl Loads for PlainLoads {
    fn active(&self, server: RealServerId) -> u32 {
        self.servers[server.index()].get()
    }

    fn active_of(&self, service: ServiceId, server: RealServerId) -> u32 {
        self.member(service, server).get()
    }

    fn try_open(
        &self,
        service: ServiceId,
        service_max: u32,
        server: RealServerId,
        server_max: u32,
    ) -> Result<(), Full> {
        let of_service = &self.services[service.index()];
        let of_server = &self.servers[server.index()];
        if service_max != 0 && of_service.get() >= service_max {
            return Err(Full::Service);
        }
        if server_max != 0 && of_server.get() >= server_max {
            return Err(Full::Server);
        }
        of_service.set(of_service.get() + 1);
        of_server.set(of_server.get() + 1);
        let of_member = self.member(service, server);
        of_member.set(of_member.get() + 1);
        Ok(())
    }

    fn close(&self, service: ServiceId, server: RealServerId) {
        let member = self.member(service, server);
        for cell in [&self.services[service.index()], &self.servers[server.index()], member] {
            let now = cell.get().checked_sub(1).expect("a close follows its own open, so the count is at least 1");
            cell.set(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: ServiceId = ServiceId(0);
    const SERVER: RealServerId = RealServerId(1);

    #[test]
    fn a_refused_open_counts_neither() {
        let loads = PlainLoads::new(1, 2);
        assert_eq!(loads.try_open(SERVICE, 0, SERVER, 1), Ok(()));
        assert_eq!(loads.try_open(SERVICE, 0, SERVER, 1), Err(Full::Server));
        assert_eq!(loads.try_open(SERVICE, 1, RealServerId(0), 0), Err(Full::Service));
        assert_eq!((loads.active_of_service(SERVICE), loads.active(SERVER), loads.active(RealServerId(0))), (1, 1, 0));
        assert_eq!((loads.active_of(SERVICE, SERVER), loads.active_of(SERVICE, RealServerId(0))), (1, 0));
        loads.close(SERVICE, SERVER);
        assert_eq!((loads.active_of_service(SERVICE), loads.active(SERVER)), (0, 0));
    }

    #[test]
    fn what_two_services_have_on_one_server_is_told_apart() {
        let loads = PlainLoads::new(2, 2);
        for service in [0, 1, 1].map(ServiceId) {
            loads.try_open(service, 0, SERVER, 0).unwrap();
        }
        let of = |service| loads.active_of(ServiceId(service), SERVER);
        assert_eq!((of(0), of(1), loads.active(SERVER)), (1, 2, 3));
        loads.close(ServiceId(1), SERVER);
        assert_eq!((of(0), of(1), loads.active(SERVER)), (1, 1, 2));
    }

    #[test]
    #[should_panic(expected = "a close follows its own open")]
    fn a_close_without_an_open_is_a_bug_that_shows() {
        PlainLoads::new(1, 2).close(SERVICE, SERVER);
    }
}
