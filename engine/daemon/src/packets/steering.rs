//! Which worker gets which frame: the addresses of a model as rules, and the program that the kernel runs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use thiserror::Error;
use towpath_config::model::{Model, Ports};
use towpath_core::packet::Ip;
use towpath_core::steering::SteeringTable;
use towpath_core::steering::frame::FanoutRule;
use towpath_core::steering::program::{FanoutTooLong, fanout_program};
use towpath_sys::packet::Instruction;

use super::claims::{outbound, pool, services};

/// Why frames cannot be steered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SteeringError {
    /// A service has all ports of an address from which others lease, of another protocol.
    #[error(
        "address {0} has a service with ports = \"all\" and is leased from as well; use another address in source.pool"
    )]
    AllAndLeased(IpAddr),
    /// The kernel's programs are not long enough.
    #[error("{0}")]
    Program(FanoutTooLong),
}

/// The program that steers frames for this model to the workers of `table`.
pub fn program(model: &Model, table: &SteeringTable, seed: u32) -> Result<Vec<Instruction>, SteeringError> {
    let program = fanout_program(table, seed, &rules(model)?).map_err(SteeringError::Program)?;
    Ok(program.into_iter().map(Instruction::from).collect())
}

/// One rule for each address of ours.
pub fn rules(model: &Model) -> Result<Vec<FanoutRule>, SteeringError> {
    #[derive(Default)]
    struct Use {
        is_leased: bool,
        /// `None` = all of them.
        ports: Option<Vec<u16>>,
        is_vip: bool,
    }
    let mut uses: BTreeMap<IpAddr, Use> = BTreeMap::new();
    for service in services(model) {
        let at_vip = uses.entry(service.vip).or_insert_with(|| Use { ports: Some(Vec::new()), ..Use::default() });
        at_vip.is_vip = true;
        match (&service.ports, &mut at_vip.ports) {
            (Ports::List(more), Some(ports)) => ports.extend(more),
            (Ports::All, ports) => *ports = None,
            (Ports::List(_), None) => {}
        }
    }
    let of_services = services(model).filter_map(pool);
    for &address in of_services.chain(outbound(model).map(|(_, pool)| pool)).flat_map(|pool| &pool.addresses) {
        uses.entry(address).or_insert_with(|| Use { ports: Some(Vec::new()), ..Use::default() }).is_leased = true;
    }
    uses.into_iter()
        .map(|(address, used)| match (used.is_vip, used.is_leased, used.ports) {
            (true, true, None) => Err(SteeringError::AllAndLeased(address)),
            (true, true, Some(ports)) => Ok(FanoutRule::shared(Ip::from(address), ports)),
            (true, false, _) => Ok(FanoutRule::vip(address.into())),
            (false, ..) => Ok(FanoutRule::snat(address.into())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(services: &[(&str, &str, &str)]) -> Model {
        let text: String = services
            .iter()
            .enumerate()
            .map(|(number, (vip, ports, lines))| {
                format!(
                    "[[service]]\nname = \"s{number}\"\nvip = \"{vip}\"\nports = {ports}\nplane = \"packet\"\n{lines}\n\
                     [[service.server]]\nname = \"one\"\naddress = \"192.0.2.99\"\n"
                )
            })
            .collect();
        towpath_config::check("test.toml", &text).model.expect("no errors")
    }

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_address_is_a_vip_or_leased_from_or_both() {
        let pool = "source = { pool = [\"192.0.2.40\"] }";
        let model = model(&[
            ("192.0.2.30", "[80, 81]", pool),
            ("192.0.2.31", "443", "source = \"vip\""),
            ("192.0.2.31", "8443", pool),
            ("192.0.2.32", "\"all\"", "forwarding = \"half-nat\"\npersistence = { by = \"source-ip\" }"),
        ]);
        let expected = [
            FanoutRule::vip(ip("192.0.2.30")),
            FanoutRule::shared(ip("192.0.2.31"), [443, 8443]),
            FanoutRule::vip(ip("192.0.2.32")),
            FanoutRule::snat(ip("192.0.2.40")),
        ];
        assert_eq!(rules(&model).unwrap(), expected);
    }

    #[test]
    fn all_ports_of_an_address_leave_none_to_steer_by() {
        let model = model(&[
            (
                "192.0.2.30",
                "\"all\"",
                "protocol = \"udp\"\nforwarding = \"half-nat\"\npersistence = { by = \"source-ip\" }",
            ),
            ("192.0.2.30", "443", "source = \"vip\""),
        ]);
        assert_eq!(rules(&model), Err(SteeringError::AllAndLeased("192.0.2.30".parse().unwrap())));
    }
}
