//! Who else listens on this host: a port that is kept from the kernel is lost to its programs, and nothing else says so.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use towpath_config::model::Protocol;

/// The tables of sockets (proc(5), `/proc/net/tcp` and its like), and the state of those that take what anybody sends.
const TABLES: [(&str, Protocol, u8); 4] =
    [("tcp", Protocol::Tcp, 10), ("tcp6", Protocol::Tcp, 10), ("udp", Protocol::Udp, 7), ("udp6", Protocol::Udp, 7)];

/// A socket of the kernel's that anybody can send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// What it speaks.
    pub protocol: Protocol,
    /// Unspecified = on every address of the host, of both families where it is that of IPv6.
    pub local: SocketAddr,
}

impl Listener {
    /// Whether it hears what is sent to this address of the host, and not only because it listens everywhere.
    pub fn is_at(&self, ip: IpAddr) -> bool {
        self.local.ip() == ip
    }

    /// Whether it hears what is sent to this address of the host.
    pub fn hears(&self, ip: IpAddr) -> bool {
        let is_everywhere = self.local.ip().is_unspecified() && (self.local.is_ipv6() || ip.is_ipv4());
        is_everywhere || self.is_at(ip)
    }
}

/// All of them, in the network namespace of the calling thread; what cannot be read is left out.
pub(super) fn listeners() -> BTreeSet<Listener> {
    let table = |(name, protocol, state)| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        let sockets: Vec<Listener> =
            text.lines().filter_map(|line| read(line, state)).map(|local| Listener { protocol, local }).collect();
        sockets
    };
    TABLES.into_iter().flat_map(table).collect()
}

/// The local address of one line, if its socket is in this state: `0: 0100007F:1F90 00000000:0000 0A …`.
fn read(line: &str, state: u8) -> Option<SocketAddr> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, _remote, found) = (words.next()?, words.next()?, words.next()?);
    if u8::from_str_radix(found, 16).ok()? != state {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let mut octets = Vec::with_capacity(16);
    // Words of four octets, each written as the number that the machine reads there.
    for at in (0..address.len()).step_by(8) {
        octets.extend(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match octets.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        let word = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let v4 = format!("   0: {}:1F90 00000000:0000 0A 00000000:00000000 00:00000000", word([127, 0, 0, 1]));
        assert_eq!(read(&v4, 10), Some("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(read(&v4, 7), None, "in another state");
        let zero = word([0; 4]);
        let v6 = format!("  12: {zero}{zero}{zero}{}:0016 {zero}:0000 0A", word([0, 0, 0, 1]));
        assert_eq!(read(&v6, 10), Some("[::1]:22".parse().unwrap()));
        for odd in
            ["", "  sl  local_address rem_address   st", "0: 0100007F 0 0A", "0: 01:0016 0 0A", "0: é100007F:1 0 0A"]
        {
            assert_eq!(read(odd, 10), None, "{odd}");
        }
    }

    #[test]
    fn those_who_listen_here_are_seen_and_their_connections_are_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let everywhere = TcpListener::bind("[::]:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let seen = listeners();
        let has = |protocol, local: SocketAddr| seen.contains(&Listener { protocol, local });
        assert!(has(Protocol::Tcp, tcp.local_addr().unwrap()));
        assert!(has(Protocol::Tcp, everywhere.local_addr().unwrap()));
        assert!(has(Protocol::Udp, udp.local_addr().unwrap()));
        assert!(!has(Protocol::Tcp, client.local_addr().unwrap()));
    }

    #[test]
    fn who_listens_everywhere_hears_every_address() {
        let at = |local: &str| Listener { protocol: Protocol::Tcp, local: local.parse().unwrap() };
        let ip = |text: &str| text.parse().unwrap();
        assert!(at("0.0.0.0:22").hears(ip("192.0.2.10")) && !at("0.0.0.0:22").hears(ip("2001:db8::10")));
        assert!(at("[::]:22").hears(ip("192.0.2.10")) && at("[::]:22").hears(ip("2001:db8::10")));
        assert!(at("192.0.2.10:22").hears(ip("192.0.2.10")) && !at("192.0.2.10:22").hears(ip("192.0.2.11")));
        assert!(at("192.0.2.10:22").is_at(ip("192.0.2.10")) && !at("0.0.0.0:22").is_at(ip("192.0.2.10")));
    }
}
