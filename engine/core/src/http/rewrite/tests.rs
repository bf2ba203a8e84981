use super::*;
use crate::http::stage::{Stage, get, request, response, shown};
use crate::persistence::Pin;

/// Lines with all that is told of the client by default.
fn x_forwarded(client: &str, proto: &str, host: &str) -> String {
    format!("=X-Forwarded-For: {client}\n=X-Forwarded-Proto: {proto}\n=X-Forwarded-Host: {host}")
}

#[test]
fn servers_are_told_of_the_client_and_what_it_says_of_itself_is_dropped() {
    let stage = Stage::new("group = \"one\"\n[service.http]\n");
    let head = get("/", "Host: mail:81\r\n");
    assert_eq!(stage.asked(&head, "203.0.113.1", Scheme::Http).0, x_forwarded("203.0.113.1", "http", "mail:81"));
    assert_eq!(
        stage.asked(&head, "::ffff:203.0.113.1", Scheme::Https).0,
        x_forwarded("203.0.113.1", "https", "mail:81")
    );
    let lies = "Host: mail\r\nx-forwarded-for: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nX_Forwarded_For: 10.0.0.1\r\n\
                X-Forwarded_For: 10.0.0.1\r\nx_forwarded-SSL: on\r\nX-Real-Ip: 10.0.0.1\r\nX_Real-IP: 10.0.0.1\r\n\
                X-Original_URL: /admin\r\nFront-End-Https: on\r\nX-Forwarded: kept\r\n";
    let none = "group = \"one\"\n[service.http]\nforwarded = \"none\"\n";
    let written = |keys: &str| {
        let (stage, head) = (Stage::new(keys), get("/", lies));
        let client = SocketAddr::new("203.0.113.1".parse().expect("an address"), 1);
        let (edits, _) = stage.rules().request_edits(&head, client, Scheme::Http, None);
        let mut out = Vec::new();
        crate::http::write::request(&head, &edits, crate::http::write::Frame::Untold, &mut out);
        String::from_utf8(out).expect("text")
    };
    assert_eq!(written(none), "GET / HTTP/1.1\r\nHost: mail\r\nX-Forwarded: kept\r\n\r\n");
    assert_eq!(
        written("group = \"one\"\n[service.http]\n"),
        "GET / HTTP/1.1\r\nHost: mail\r\nX-Forwarded: kept\r\nX-Forwarded-For: 203.0.113.1\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: mail\r\n\r\n"
    );
    // Of a proxy that is trusted it is passed on.
    let trusting = format!("{none}trusted = [\"203.0.113.0/24\"]\n");
    assert!(written(&trusting).contains("X-Forwarded_For: 10.0.0.1\r\n"));
}

#[test]
fn what_trusted_proxies_say_is_added_to() {
    let stage = Stage::new(
        "group = \"one\"\n[service.http]\nforwarded = \"both\"\ntrusted = [\"10.0.0.0/8\", \"2001:db8::/32\"]\n",
    );
    let head = get(
        "/",
        "Host: a\r\nX-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 198.51.100.2\r\nX-Forwarded-Proto: https\r\nForwarded: for=x\r\n",
    );
    let expected = "=X-Forwarded-For: 198.51.100.1, 198.51.100.2, 10.1.1.1\n=X-Forwarded-Host: a\n\
                    =Forwarded: for=x, for=10.1.1.1;proto=http;host=\"a\"";
    assert_eq!(stage.asked(&head, "10.1.1.1", Scheme::Http).0, expected);
    let plain = get("/", "Host:\r\n");
    let expected =
        "=X-Forwarded-For: 2001:db8::1\n=X-Forwarded-Proto: https\n=Forwarded: for=\"[2001:db8::1]\";proto=https";
    assert_eq!(stage.asked(&plain, "2001:db8::1", Scheme::Https).0, expected);
}

#[test]
fn requests_are_rewritten_in_order_where_the_conditions_hold() {
    let stage = Stage::new(
        r#"
group = "one"
[service.http]
forwarded = "none"
[[service.http.rewrite]]
what = "path"
match = "/Mail"
with = "/owa"
[[service.http.rewrite]]
what = "host"
with = "inside.example.org"
path = ["/mail"]
[[service.http.rewrite]]
what = "add-header"
header = "Front-End-Https"
with = "on"
[[service.http.rewrite]]
what = "remove-header"
header = "Accept-Encoding"
method = ["GET"]
[[service.http.rewrite]]
what = "set-header"
header = "front-end-https"
with = "off"
from = ["198.51.100.0/24"]
"#,
    );
    let asked = |method: &str, target: &str, client: &str| {
        stage.asked(&request(method, target, "Host: a\r\n"), client, Scheme::Http).0
    };
    let expected = "target /owa/x?y=/mail\nhost inside.example.org\n+Front-End-Https: on\n-Accept-Encoding";
    assert_eq!(asked("GET", "/MAIL/x?y=/mail", "203.0.113.1"), expected);
    assert_eq!(asked("POST", "/mailx", "203.0.113.1"), "+Front-End-Https: on");
    assert_eq!(asked("POST", "/", "198.51.100.1"), "=front-end-https: off");
    // A path that nobody can read fits nothing; what is not about paths is done.
    assert_eq!(asked("GET", "/mail/%zz", "203.0.113.1"), "+Front-End-Https: on\n-Accept-Encoding");
}

#[test]
fn the_beginning_of_a_path_moves_and_the_rest_stays_as_it_was_written() {
    let rows = [
        ("/old", "/new", "/old", Some("/new")),
        ("/old", "/new", "/OLD/a%2Fb?c=/old", Some("/new/a%2Fb?c=/old")),
        ("/old", "/new", "/older", None),
        ("/old", "/", "/old/x", Some("/x")),
        ("/old", "/", "/old", Some("/")),
        ("/old/", "/new/", "/old/x", Some("/new/x")),
        ("/old/", "/new", "/old/x", Some("/new/x")),
        ("/", "/app", "/x?y", Some("/app/x?y")),
        ("/", "/app", "/", Some("/app/")),
        ("/", "/app/", "/x", Some("/app/x")),
        ("/old", "/new", "/%6Fld/a%20b", Some("/new/a%20b")),
        ("/old", "/a b", "/old", Some("/a%20b")),
        ("/old", "/new", "/x/../old/y", Some("/new/y")),
        ("/old", "/new", "/old/../old/y%2Fz", Some("/new/y/z")),
        ("/old", "/new", "/old/../y", None),
        ("/old/", "/new/", "/old/a%2Fb", Some("/new/a%2Fb")),
        ("/old", "/new/", "/old", Some("/new/")),
        ("/old", "/new", "*", None),
        ("/old", "/new", "/old%", None),
    ];
    for (from, to, target, wanted) in rows {
        assert_eq!(moved(target, from, to).as_deref(), wanted, "{from} {to} {target}");
    }
}

#[test]
fn a_cookie_is_inserted_when_the_client_does_not_name_its_server() {
    let stage = Stage::new("group = \"one\"\npersistence = { by = \"cookie\", cookie = \"PIN\" }\n[service.http]\n");
    let service = stage.service();
    let [first, second] = [0, 1].map(|place: usize| service.targets[place].server);
    let answer = |fields: &str, server: RealServerId, response_fields: &str| {
        let (_, after) = stage.asked(&get("/", &format!("Host: a\r\n{fields}")), "203.0.113.1", Scheme::Http);
        shown(&service.response_edits(&response(response_fields), &after, server))
    };
    let set = answer("", first, "");
    let value =
        set.strip_prefix("+Set-Cookie: PIN=").and_then(|rest| rest.split(';').next()).expect("a cookie").to_owned();
    assert_eq!(set, format!("+Set-Cookie: PIN={value}; Path=/; HttpOnly\n+Cache-Control: private"));
    assert!(value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let cookie = format!("Cookie: a=b; PIN={value}\r\n");
    assert_eq!(answer(&cookie, first, ""), "", "it has it already");
    assert!(answer(&cookie, second, "").starts_with("+Set-Cookie: PIN="), "another server took it");
    assert!(answer("Cookie: PIN=10.0.0.1\r\n", first, "").starts_with("+Set-Cookie: PIN="));
    assert_eq!(answer("", first, "Set-Cookie: PIN=x; Path=/\r\n"), "", "the server's own word");
    assert!(answer("", first, "Set-Cookie: PINS=x\r\n").starts_with("+Set-Cookie"));
    assert_eq!(answer("", RealServerId(999), ""), "", "a server that has gone");
    assert_eq!(stage.pin(&cookie, "203.0.113.1"), Pin::Server(first));
    assert_eq!(stage.pin("Cookie: PIN=x\r\n", "203.0.113.1"), Pin::Nobody);
    // The name of the server is under the secret, and of the address alone: the same in every group and at every start.
    let other = Stage::new("group = \"two\"\npersistence = { by = \"cookie\", cookie = \"PIN\" }\n[service.http]\n");
    let second_there = other.service().targets[0].server;
    let (_, after) = other.asked(&get("/", "Host: a\r\n"), "203.0.113.1", Scheme::Http);
    let there = shown(&other.service().response_edits(&response(""), &after, second_there));
    assert_eq!(answer("", second, ""), there);
}

#[test]
fn the_mobility_cookie_comes_with_every_response_and_scripts_see_it() {
    let stage =
        Stage::new("group = \"one\"\npersistence = { by = \"cookie\", cookie = \"MS-WSMAN\" }\n[service.http]\n");
    let service = stage.service();
    let server = service.targets[0].server;
    let (_, after) = stage.asked(&get("/", "Host: a\r\n"), "203.0.113.1", Scheme::Https);
    let set = shown(&service.response_edits(&response(""), &after, server));
    let value = set.strip_prefix("+Set-Cookie: MS-WSMAN=").expect(&set);
    let value = value.strip_suffix("; Path=/\n+Cache-Control: private").expect(&set);
    let (_, after) =
        stage.asked(&get("/", &format!("Host: a\r\nCookie: MS-WSMAN={value}\r\n")), "203.0.113.1", Scheme::Https);
    assert_eq!(shown(&service.response_edits(&response(""), &after, server)), set, "again");
    assert_eq!(shown(&service.response_edits(&response("Set-Cookie: MS-WSMAN=x\r\n"), &after, server)), "");
}

#[test]
fn responses_are_rewritten_by_what_their_request_was() {
    let stage = Stage::new(
        r#"
group = "one"
tls = { mode = "terminate", certificate = [{ file = "a.pem" }] }
[service.http]
hsts = { max_age = "365d", subdomains = true }
[[service.http.rewrite]]
what = "remove-header"
of = "response"
header = "Server"
[[service.http.rewrite]]
what = "set-header"
of = "response"
header = "X-Frame-Options"
with = "DENY"
path = ["/owa"]
"#,
    );
    let answer = |target: &str, scheme: Scheme, fields: &str| {
        let (_, after) = stage.asked(&get(target, "Host: a\r\n"), "203.0.113.1", scheme);
        shown(&stage.service().response_edits(&response(fields), &after, RealServerId(0)))
    };
    let hsts = "+Strict-Transport-Security: max-age=31536000; includeSubDomains";
    assert_eq!(answer("/owa/x", Scheme::Https, ""), format!("{hsts}\n-Server\n=X-Frame-Options: DENY"));
    assert_eq!(answer("/x", Scheme::Https, ""), format!("{hsts}\n-Server"));
    assert_eq!(answer("/x", Scheme::Https, "strict-transport-security: max-age=1\r\n"), "-Server");
    assert_eq!(answer("/x", Scheme::Http, ""), "-Server");
}

#[test]
fn redirects_of_servers_lead_to_what_the_client_came_to() {
    let stage = Stage::new("group = \"one\"\n[service.http]\nrewrite_location = true\n");
    let service = stage.service();
    let target = &service.targets[0];
    assert_eq!((target.address.to_string().as_str(), target.port), ("10.0.0.1", Some(80)));
    let led = |scheme, host: &str, location: &str| {
        let head = get("/", &format!("Host: {host}\r\n"));
        let (_, after) = stage.asked(&head, "203.0.113.1", scheme);
        service.location_for(&head, &response(&format!("Location: {location}\r\n")), &after, target.server)
    };
    let rows = [
        (Scheme::Https, "mail", "http://mail/owa?a=b#c", Some("https://mail/owa?a=b#c")),
        (Scheme::Https, "mail", "HTTP://MAIL:80/owa", Some("https://mail/owa")),
        (Scheme::Https, "mail:4443", "http://mail/owa", Some("https://mail:4443/owa")),
        (Scheme::Http, "mail:8080", "http://mail:80/x", Some("http://mail:8080/x")),
        (Scheme::Https, "mail", "http://10.0.0.1/owa", Some("https://mail/owa")),
        (Scheme::Http, "mail", "http://10.0.0.1", Some("http://mail")),
        // Elsewhere, or as it is meant.
        (Scheme::Https, "mail", "https://mail/owa", None),
        (Scheme::Http, "mail", "https://mail/owa", None),
        (Scheme::Http, "mail", "http://mail/owa", None),
        (Scheme::Https, "mail", "http://other/owa", None),
        (Scheme::Https, "mail", "http://mail:8081/owa", None),
        (Scheme::Https, "mail", "http://10.0.0.1:8081/", None),
        (Scheme::Https, "mail", "http://10.0.0.2/", None),
        (Scheme::Https, "mail", "/owa", None),
        (Scheme::Https, "mail", "//mail/owa", None),
        (Scheme::Https, "", "http://10.0.0.1/", None),
    ];
    for (scheme, host, location, wanted) in rows {
        assert_eq!(led(scheme, host, location).as_deref(), wanted, "{host} {location}");
    }
    let silent = Stage::new("group = \"one\"\n[service.http]\n");
    let head = get("/", "Host: mail\r\n");
    let (_, after) = silent.asked(&head, "203.0.113.1", Scheme::Https);
    let server = silent.service().targets[0].server;
    assert_eq!(silent.service().location_for(&head, &response("Location: http://mail/\r\n"), &after, server), None);
}
