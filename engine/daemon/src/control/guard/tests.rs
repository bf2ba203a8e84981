//! Who is let in with which headers, and what another site may not have done.

use std::sync::OnceLock;

use super::*;
use crate::control::credential::{draw_token, hash_password};

const PASSWORD: &str = "correct horse";
const NOW: Now = Now(1_000_000);

/// Its hash takes a tenth of a second.
fn password() -> PasswordHash {
    static HASH: OnceLock<PasswordHash> = OnceLock::new();
    HASH.get_or_init(|| hash_password(PASSWORD).unwrap()).clone()
}

fn user(name: &str, role: ControlRole) -> User {
    User { name: name.to_owned(), role, password: Some(password()), token: None, certificate_name: None }
}

fn access(users: Vec<User>) -> Access {
    let lifetime = Lifetime { idle_ms: 60_000, whole_ms: 600_000 };
    Access {
        page: Page::Full,
        lifetime,
        users,
        tls: None,
        identity: None,
        revocations: None,
        authorities: [0; 32],
        from: Vec::new(),
    }
}

fn visit() -> Visit {
    Visit {
        address: [192, 0, 2, 7].into(),
        has_tls: true,
        certificate: None,
        authorities: [0; 32],
        is_known: Arc::default(),
    }
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn body(user: &str, password: &str) -> LoginBody {
    LoginBody { user: user.to_owned(), password: password.to_owned() }
}

fn log_in(guard: &Guard, user: &str, password: &str, now: Now) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(guard.log_in(body(user, password), &visit(), || now))
}

/// The `Cookie` that a browser would send, and the word of the session.
fn logged_in(guard: &Guard) -> (String, String) {
    let answer = log_in(guard, "alice", PASSWORD, NOW);
    assert_eq!(answer.status(), StatusCode::OK);
    let cookie = answer.headers()[SET_COOKIE].to_str().unwrap().to_owned();
    for wanted in ["__Host-towpath=", "; HttpOnly", "; SameSite=Strict", "; Secure", "; Path=/"] {
        assert!(cookie.contains(wanted), "{cookie}");
    }
    assert!(!cookie.contains("Domain") && !cookie.contains("Max-Age"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let who = guard.admit(&headers(&[("cookie", &cookie)]), &visit(), NOW).unwrap();
    let csrf = guard.view(&who, NOW).csrf;
    assert_eq!(csrf.len(), 64);
    (cookie, csrf)
}

#[test]
fn a_login_is_known_by_its_cookie_until_it_ends() {
    let guard = Guard::new(Some(access(vec![user("alice", ControlRole::Operator)])));
    let (cookie, _) = logged_in(&guard);
    let with = headers(&[("cookie", &format!("other=1; {cookie}; more=2"))]);
    let who = guard.admit(&with, &visit(), NOW).unwrap();
    assert_eq!((who.to_string(), who.role), ("alice (192.0.2.7, page)".to_owned(), ControlRole::Operator));
    let code = |headers: &HeaderMap, now| guard.admit(headers, &visit(), now).unwrap_err().status();
    // Twice: one may have been planted.
    let twice = headers(&[("cookie", &format!("{cookie}; {cookie}"))]);
    assert_eq!(code(&twice, NOW), StatusCode::UNAUTHORIZED);
    let forged = headers(&[("cookie", &format!("__Host-towpath={}", "0".repeat(64)))]);
    assert_eq!(code(&forged, NOW), StatusCode::UNAUTHORIZED);
    // Without TLS the name is another.
    let plain = Visit { has_tls: false, ..visit() };
    assert!(guard.admit(&with, &plain, NOW).is_err());
    assert_eq!(guard.log_out(&who, &visit()).status(), StatusCode::OK);
    assert_eq!(code(&with, NOW), StatusCode::UNAUTHORIZED);
    let (cookie, _) = logged_in(&guard);
    let with = headers(&[("cookie", &cookie)]);
    let background = headers(&[("cookie", &cookie), ("x-towpath-background", "1")]);
    assert!(guard.admit(&background, &visit(), Now(NOW.0 + 59_000)).is_ok());
    assert_eq!(code(&with, Now(NOW.0 + 60_000)), StatusCode::UNAUTHORIZED, "its user has done nothing");
}

#[test]
fn a_session_ends_with_the_password_or_the_user_that_it_came_from() {
    let guard = Guard::new(Some(access(vec![user("alice", ControlRole::Admin)])));
    let (cookie, _) = logged_in(&guard);
    let with = headers(&[("cookie", &cookie)]);
    guard.follow(Some(access(vec![user("alice", ControlRole::Viewer)])));
    assert_eq!(guard.admit(&with, &visit(), NOW).unwrap().role, ControlRole::Viewer, "as the file says now");
    let other = PasswordHash { salt: vec![1; 16], ..password() };
    guard.follow(Some(access(vec![User { password: Some(other), ..user("alice", ControlRole::Admin) }])));
    assert!(guard.admit(&with, &visit(), NOW).is_err());
    guard.follow(Some(access(vec![user("alice", ControlRole::Admin)])));
    assert!(guard.admit(&with, &visit(), NOW).is_err(), "it was ended, and does not come back");
    let (cookie, _) = logged_in(&guard);
    guard.follow(Some(Access { page: Page::Off, ..access(vec![user("alice", ControlRole::Admin)]) }));
    assert!(guard.admit(&headers(&[("cookie", &cookie)]), &visit(), NOW).is_err(), "there is no page any more");
    guard.follow(None);
    assert!(guard.admit(&headers(&[("cookie", &cookie)]), &visit(), NOW).is_err());
}

#[test]
fn a_session_changes_nothing_without_the_word_of_its_page() {
    let guard = Guard::new(Some(access(vec![user("alice", ControlRole::Operator)])));
    let (cookie, csrf) = logged_in(&guard);
    let who = guard.admit(&headers(&[("cookie", &cookie)]), &visit(), NOW).unwrap();
    assert!(guard.judge_mutation(&headers(&[("x-csrf-token", &csrf)]), &who, NOW).is_ok());
    let (_, other) = logged_in(&guard);
    for said in [
        &[][..],
        &[("x-csrf-token", "")],
        &[("x-csrf-token", &other)],
        &[("x-csrf-token", &csrf), ("x-csrf-token", &csrf)],
    ] {
        let answer = guard.judge_mutation(&headers(said), &who, NOW).unwrap_err();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{said:?}");
    }
}

#[test]
fn tokens_and_certificates_are_their_users() {
    let (token, hash) = draw_token().unwrap();
    let robot = User { password: None, token: Some(hash.0), ..user("robot", ControlRole::Viewer) };
    let carol =
        User { password: None, certificate_name: Some("carol".to_owned()), ..user("carol", ControlRole::Admin) };
    let guard = Guard::new(Some(access(vec![robot, carol])));
    for scheme in ["Bearer", "bearer"] {
        let who = guard.admit(&headers(&[("authorization", &format!("{scheme} {token}"))]), &visit(), NOW).unwrap();
        assert_eq!(who.to_string(), "robot (192.0.2.7, token)");
        assert!(guard.judge_mutation(&HeaderMap::new(), &who, NOW).is_ok(), "no page has it sent");
    }
    for wrong in [
        "Bearer",
        "Bearer ",
        &format!("Basic {token}"),
        &token,
        &format!("Bearer {token}x"),
        &format!("Bearer {}", "a".repeat(5000)),
    ] {
        let answer = guard.admit(&headers(&[("authorization", wrong)]), &visit(), NOW).unwrap_err();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{wrong}");
        assert!(answer.headers().contains_key(WWW_AUTHENTICATE));
    }
    let shown = |common_name: Option<&str>, names: &[&str]| Visit {
        certificate: Some(Presented {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            common_name: common_name.map(str::to_owned),
            subject: "O=carol, CN=carol".to_owned(),
            issuer: String::new(),
            dates: towpath_tls::Dates { begin_s: 0, end_s: 0 },
        }),
        ..visit()
    };
    let none = HeaderMap::new();
    for visit in [shown(Some("carol"), &[]), shown(None, &["x", "carol"])] {
        assert_eq!(guard.admit(&none, &visit, NOW).unwrap().to_string(), "carol (192.0.2.7, certificate)");
        // A wrong token is no reason to look further.
        assert!(guard.admit(&headers(&[("authorization", "Bearer x")]), &visit, NOW).is_err());
    }
    let of_others = Visit { authorities: [1; 32], ..shown(Some("carol"), &[]) };
    for visit in [visit(), of_others, shown(Some("Carol"), &[]), shown(None, &[])] {
        assert!(guard.admit(&none, &visit, NOW).is_err());
    }
}

#[test]
fn wrong_passwords_cost_time_and_tell_nothing() {
    let nobody = User { password: None, ..user("robot", ControlRole::Admin) };
    let guard = Guard::new(Some(access(vec![user("alice", ControlRole::Admin), nobody])));
    let text = |answer: Answer| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime.block_on(http_body_util::BodyExt::collect(answer.into_body())).unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    };
    let mut told = Vec::new();
    for (user, password) in
        [("alice", "wrong"), ("bob", PASSWORD), ("robot", ""), ("robot", PASSWORD), ("alice", &"x".repeat(2000))]
    {
        let answer = log_in(&guard, user, password, NOW);
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{user}");
        assert!(!answer.headers().contains_key(SET_COOKIE));
        told.push(text(answer));
    }
    told.dedup();
    assert_eq!(told.len(), 1, "who is there is not told: {told:?}");
    for _ in 0..3 {
        assert_eq!(log_in(&guard, "alice", "wrong", NOW).status(), StatusCode::UNAUTHORIZED);
    }
    let answer = log_in(&guard, "alice", PASSWORD, NOW);
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS, "even the right one waits");
    let wait_s: u64 = answer.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert_eq!(log_in(&guard, "alice", PASSWORD, Now(NOW.0 + wait_s * 1000)).status(), StatusCode::OK);
}

#[test]
fn who_hangs_up_has_tried_and_keeps_its_place_until_it_is_judged() {
    let guard = Guard::new(Some(access(vec![user("alice", ControlRole::Admin)])));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut refused, mut begun) = (0, 0);
    for _ in 0..50 {
        runtime.block_on(async {
            let visit = visit();
            let mut try_it = Box::pin(guard.log_in(body("alice", "wrong"), &visit, || NOW));
            // It goes as far as it can without waiting, and then its client is gone.
            match std::future::poll_fn(|cx| std::task::Poll::Ready(try_it.as_mut().poll(cx))).await {
                std::task::Poll::Ready(answer) if answer.status() == StatusCode::TOO_MANY_REQUESTS => refused += 1,
                std::task::Poll::Ready(answer) => panic!("{answer:?}"),
                std::task::Poll::Pending => begun += 1,
            }
        });
    }
    assert!(begun <= 5 && refused >= 45, "{begun} {refused}");
    let elsewhere = Visit { address: [192, 0, 2, 8].into(), ..visit() };
    let answer = runtime.block_on(guard.log_in(body("alice", PASSWORD), &elsewhere, || NOW));
    assert_eq!(answer.status(), StatusCode::OK, "nobody else is kept out");
}

#[test]
fn only_the_networks_of_the_file_may_come() {
    let from = vec![([192, 0, 2, 0].into(), 24), ("2001:db8::".parse().unwrap(), 32)];
    let access = Access { from, ..access(Vec::new()) };
    let is_from = |address: &str| access.is_from(address.parse().unwrap());
    assert!(is_from("192.0.2.7") && is_from("::ffff:192.0.2.7") && is_from("2001:db8:1::1"));
    assert!(!is_from("192.0.3.7") && !is_from("2001:db9::1") && !is_from("127.0.0.1"));
    let open = Access { from: Vec::new(), ..access };
    assert!(open.is_from("198.51.100.1".parse().unwrap()));
}

#[test]
fn what_another_site_has_a_browser_ask_is_known() {
    let of_other = |lines: &[(&'static str, &str)]| is_of_other_site(&headers(lines), &visit());
    let host = ("host", "lb.example.org:9443");
    for own in [
        &[host][..],
        &[host, ("origin", "https://lb.example.org:9443")],
        &[host, ("origin", "https://LB.example.org:9443")],
        &[host, ("sec-fetch-site", "same-origin")],
        &[host, ("sec-fetch-site", "none")],
    ] {
        assert!(!of_other(own), "{own:?}");
    }
    for other in [
        &[host, ("origin", "https://evil.example")][..],
        &[host, ("origin", "https://lb.example.org")],
        &[host, ("origin", "https://lb.example.org:9444")],
        &[host, ("origin", "http://lb.example.org:9443")],
        &[host, ("origin", "null")],
        &[host, ("origin", "https://lb.example.org:9443"), ("origin", "https://evil.example")],
        &[("origin", "https://lb.example.org:9443")],
        &[host, ("sec-fetch-site", "cross-site")],
        &[host, ("sec-fetch-site", "same-site")],
        &[host, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        &[host, ("sec-fetch-site", "same-origin"), ("origin", "https://evil.example")],
    ] {
        assert!(of_other(other), "{other:?}");
    }
    let plain = Visit { has_tls: false, ..visit() };
    assert!(!is_of_other_site(&headers(&[host, ("origin", "http://lb.example.org:9443")]), &plain));
    assert!(
        !is_of_other_site(&headers(&[host, ("origin", "https://lb.example.org:9443")]), &plain),
        "a proxy ends TLS"
    );
    assert!(is_of_other_site(&headers(&[host, ("origin", "https://lb.example.org")]), &plain));
}

#[test]
fn a_token_in_a_file_is_one_word_that_nobody_guesses() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    let (token, _) = draw_token().unwrap();
    fs::write(&path, format!("{token}\n")).unwrap();
    assert_eq!(read_token(&path), Ok(token));
    for text in
        ["", "secret\n", "two words that are long enough\n", "ungültig-aber-lang-genug-für-alle\n", &"a".repeat(5000)]
    {
        fs::write(&path, text).unwrap();
        assert!(read_token(&path).unwrap_err().contains("it is no token"), "{text}");
    }
    assert!(read_token(Path::new("/no/such/file")).unwrap_err().contains("check the path"));
}
