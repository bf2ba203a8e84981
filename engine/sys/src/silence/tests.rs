use super::*;
use crate::host;
use crate::netns::Namespace;
use crate::packet::Tap;
use crate::privilege::{self, Privilege};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const DEADLINE: Duration = Duration::from_secs(10);

/// Two hosts with `a` (10.9.0.1, fd09::1) and `b` (10.9.0.2, fd09::2).
fn hosts() -> (Namespace, Namespace) {
    let (near, far) = (Namespace::create().unwrap(), Namespace::create().unwrap());
    let mut near_links = near.links().unwrap();
    near_links.create_veth("a", "b", &far).unwrap();
    let mut far_links = far.links().unwrap();
    for (links, name, end) in [(&mut near_links, "a", 1), (&mut far_links, "b", 2)] {
        links.add_address(name, IpAddr::from([10, 9, 0, end]), 24).unwrap();
        links.add_address(name, format!("fd09::{end}").parse().unwrap(), 64).unwrap();
        links.set_up(name).unwrap();
    }
    (near, far)
}

/// Whether a datagram from `near` to `far` arrives in a socket there. A tap on `b` says when it is over either way.
fn arrives(near: &Namespace, far: &Namespace, to: &str) -> bool {
    let receiver = far.run(|| UdpSocket::bind(to)).unwrap().unwrap();
    let mut tap = far.run(|| Tap::open("b")).unwrap().unwrap();
    let unspecified = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let sender = near.run(|| UdpSocket::bind(unspecified)).unwrap().unwrap();
    sender.send_to(b"is anybody there", to).unwrap();
    let deadline = Instant::now() + DEADLINE;
    let seen = tap.find(deadline, |frame| frame.bytes.ends_with(b"is anybody there")).unwrap();
    assert!(seen.is_some(), "packet sockets see what is dropped behind them");
    // What passes the hook is delivered right after the tap has seen it, in the same softirq.
    host::await_readable(&receiver, Duration::from_millis(200)).is_ok()
}

#[test]
fn exactly_what_is_claimed_is_silent() {
    if privilege::ensure(exactly_what_is_claimed_is_silent).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = hosts();
    let claims = [
        Claim::ports("10.9.0.2".parse().unwrap(), UDP, 5000..=5009),
        Claim::ports("10.9.0.2".parse().unwrap(), UDP, 5005..=5019),
        Claim::ports("10.9.0.2".parse().unwrap(), TCP, 6000..=6000),
        Claim::protocol("10.9.0.2".parse().unwrap(), ICMP),
        Claim::ports("fd09::2".parse().unwrap(), UDP, 5000..=5000),
    ];
    let mut silence = far.run(|| Silence::impose(&["b", "lo"], &[], &claims)).unwrap().unwrap();
    let silent = ["10.9.0.2:5000", "10.9.0.2:5009", "10.9.0.2:5019", "[fd09::2]:5000"];
    for to in silent {
        assert!(!arrives(&near, &far, to), "{to}");
    }
    // Another port, another protocol's port, another address.
    for to in ["10.9.0.2:4999", "10.9.0.2:5020", "10.9.0.2:6000", "[fd09::2]:5001"] {
        assert!(arrives(&near, &far, to), "{to}");
    }
    silence.replace(&["b"], &[], &claims[2..]).unwrap();
    assert!(arrives(&near, &far, "10.9.0.2:5000"));
    assert!(!arrives(&near, &far, "[fd09::2]:5000"));
    // Of a mute interface it hears nothing, claimed or not.
    silence.replace(&["b"], &["b"], &claims[2..]).unwrap();
    assert!(!arrives(&near, &far, "10.9.0.2:5000") && !arrives(&near, &far, "[fd09::2]:5001"));
    silence.lift().unwrap();
    assert!(arrives(&near, &far, "[fd09::2]:5000"));
    assert!(!far.run(Silence::clear).unwrap().unwrap());
}

#[test]
fn the_silence_ends_with_its_owner_and_survives_a_crash() {
    if privilege::ensure(the_silence_ends_with_its_owner_and_survives_a_crash).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = hosts();
    let claims = [Claim::ports("10.9.0.2".parse().unwrap(), UDP, 5000..=5000)];
    let impose = || far.run(|| Silence::impose(&["b"], &[], &claims)).unwrap();
    drop(impose().unwrap());
    assert!(arrives(&near, &far, "10.9.0.2:5000"));

    // As a crash leaves it: the process's sockets are closed, the table stays.
    let mut crashed = impose().unwrap();
    assert_eq!(impose().unwrap_err().kind(), io::ErrorKind::AddrInUse);
    crashed.lifted = true;
    drop(crashed);
    assert!(!arrives(&near, &far, "10.9.0.2:5000"));
    // The next start takes over, and without it the rule can be cleared.
    let mut again = impose().unwrap();
    again.lifted = true;
    drop(again);
    assert!(far.run(Silence::clear).unwrap().unwrap());
    assert!(arrives(&near, &far, "10.9.0.2:5000"));
}

#[test]
fn an_interface_that_returns_is_silenced_anew() {
    if privilege::ensure(an_interface_that_returns_is_silenced_anew).unwrap() == Privilege::Delegated {
        return;
    }
    let (near, far) = hosts();
    let claims = [Claim::ports("10.9.0.2".parse().unwrap(), UDP, 5000..=5000)];
    let mut silence = far.run(|| Silence::impose(&["b"], &[], &claims)).unwrap().unwrap();
    near.links().unwrap().remove("a").unwrap();
    // Linux 6.16 and later have the hook wait for the interface.
    if let Err(error) = silence.replace(&["b"], &[], &claims) {
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }

    near.links().unwrap().create_veth("a", "b", &far).unwrap();
    for (namespace, name, end) in [(&near, "a", 1), (&far, "b", 2)] {
        let mut links = namespace.links().unwrap();
        links.add_address(name, IpAddr::from([10, 9, 0, end]), 24).unwrap();
        links.set_up(name).unwrap();
    }
    silence.replace(&["b"], &[], &claims).unwrap();
    assert!(!arrives(&near, &far, "10.9.0.2:5000"));
}

#[test]
fn as_many_claims_as_promised_fit() {
    if privilege::ensure(as_many_claims_as_promised_fit).unwrap() == Privilege::Delegated {
        return;
    }
    let (_near, far) = hosts();
    let claim =
        |number: usize| Claim::ports("fd09::2".parse().unwrap(), UDP, 10 * number as u16..=10 * number as u16 + 5);
    let claims: Vec<Claim> = (0..=Silence::CLAIMS_MAX).map(claim).collect();
    far.run(|| Silence::impose(&["b"], &[], &claims[..Silence::CLAIMS_MAX])).unwrap().unwrap().lift().unwrap();
    let error = far.run(|| Silence::impose(&["b"], &[], &claims)).unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn claims_that_touch_are_one() {
    let ip = "192.0.2.1".parse().unwrap();
    let claims = [
        Claim::ports(ip, TCP, 90..=99),
        Claim::ports(ip, TCP, 80..=89),
        Claim::ports(ip, TCP, 85..=95),
        Claim::ports(ip, UDP, 80..=80),
        Claim::ports(ip, TCP, 101..=u16::MAX),
        Claim::ports(ip, TCP, 60_000..=u16::MAX),
    ];
    let joined =
        [Claim::ports(ip, TCP, 80..=99), Claim::ports(ip, TCP, 101..=u16::MAX), Claim::ports(ip, UDP, 80..=80)];
    assert_eq!(join(&claims), joined);
}
