//! Which heads bind a connection to its client, and that a bound one cannot get to anybody else.

use towpath_core::http::pinning::{Binding, Idle, Lent, Settled};
use towpath_core::http::{RequestHead, ResponseHead};

use crate::LIMITS;

fn request_binds(field: &str) -> bool {
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
    RequestHead::read(head.as_bytes(), &LIMITS).expect("a request").expect("whole").1.is_binding()
}

fn response_binds(field: &str) -> bool {
    let head = format!("HTTP/1.1 401 Unauthorized\r\n{field}\r\n\r\n");
    ResponseHead::read(head.as_bytes(), &LIMITS).expect("a response").expect("whole").1.is_binding()
}

#[test]
fn authentication_of_the_connection_binds_it_in_requests_and_responses() {
    for field in [
        "Authorization: NTLM TlRMTVNTUAAB",
        "authorization:negotiate YII",
        "AUTHORIZATION: KERBEROS x",
        "Authorization: Nego2 x",
        "Authorization: Whatever x",
        "Authorization:",
        "Proxy-Authorization: NTLM x",
        "Persistent-Auth: true",
        "X: 1\r\nAuthorization: Basic x\r\nAuthorization: NTLM x",
    ] {
        assert!(request_binds(field), "{field}");
    }
    for field in [
        "WWW-Authenticate: NTLM",
        "WWW-Authenticate: Negotiate",
        "WWW-Authenticate: Basic realm=\"x\"\r\nWWW-Authenticate: NTLM TlRM",
        "WWW-Authenticate: Basic realm=\"x\", Negotiate",
        "WWW-Authenticate: Negotiate, Basic realm=\"x\"",
        "WWW-Authenticate: Basic realm=\"x, y\" , Negotiate",
        "WWW-Authenticate: Basic realm=\"x\\\", y\", Negotiate",
        // Nobody knows where the quotes end.
        "WWW-Authenticate: Basic realm=\"x, Negotiate",
        "Proxy-Authenticate: ntlm",
        "Persistent-Auth: false",
    ] {
        assert!(response_binds(field), "{field}");
    }
}

#[test]
fn authentication_of_each_request_binds_nothing() {
    for field in [
        "Authorization: Basic x",
        "authorization: bearer x",
        "Authorization: Digest username=\"x\", realm=\"y\"",
        "X: NTLM",
    ] {
        assert!(!request_binds(field), "{field}");
    }
    for field in [
        "WWW-Authenticate: Basic realm=\"x\"",
        "WWW-Authenticate: Digest realm=\"x\", nonce=\"y\", qop=\"auth, auth-int\"",
        "WWW-Authenticate: Bearer realm=\"x\", Basic realm=\"y\"",
        "WWW-Authenticate: Basic realm=\"x, Negotiate\"",
        "Set-Cookie: NTLM",
    ] {
        assert!(!response_binds(field), "{field}");
    }
}

#[test]
fn only_what_has_seen_no_such_authentication_waits_for_the_next_client() {
    let mut idle = Idle::with_room(1);
    let Settled::Shared(shared) = Lent::new("free").settle(Binding::Free) else { panic!("nobody has bound it") };
    assert!(idle.insert(shared).is_ok());
    let Settled::Pinned(pinned) = Lent::new("bound").settle(Binding::Bound) else { panic!("it is bound") };
    assert_eq!(*pinned.connection(), "bound");
    // There is room for one.
    let Settled::Shared(second) = Lent::new("second").settle(Binding::Free) else { panic!("nobody has bound it") };
    let refused = idle.insert(second).expect_err("no room").lend();
    assert_eq!((*refused.connection(), idle.len()), ("second", 1));
    assert_eq!(*idle.remove().expect("it waits").lend().connection(), "free");
    assert!(idle.is_empty());
}

#[test]
fn who_takes_one_gets_the_one_used_last_that_fits() {
    let mut idle = Idle::with_room(3);
    for connection in [("a", 1), ("b", 2), ("a", 3)] {
        let Settled::Shared(shared) = Lent::new(connection).settle(Binding::Free) else {
            panic!("nobody has bound it")
        };
        assert!(idle.insert(shared).is_ok());
    }
    assert!(idle.remove_fitting(|(kind, _)| *kind == "c").is_none());
    assert_eq!(idle.remove_fitting(|(kind, _)| *kind == "a").map(|shared| shared.end()), Some(("a", 3)));
    assert_eq!(idle.remove_oldest().map(|shared| *shared.connection()), Some(("a", 1)));
    assert!(idle.sort_out(|(kind, _)| *kind == "a").is_empty());
    let gone: Vec<_> = idle.sort_out(|(kind, _)| *kind == "b").into_iter().map(|shared| shared.end()).collect();
    assert_eq!((gone.as_slice(), idle.is_empty()), (&[("b", 2)][..], true));
}
