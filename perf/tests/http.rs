//! The http suite, at a subject written in Python: what it counts, and what it fails at.

#![allow(clippy::unwrap_used)]

mod program;

use std::fs;
use std::process::Output;

use program::{Folder, Impostor, towpath_perf};
use towpath_perf::lab::{Privilege, ensure_privilege};
use towpath_perf::report::Report;

const QUICK: [&str; 10] =
    ["--against", "", "--accounting", "plain", "--repeat", "1", "--retake", "0", "--seconds", "0.3"];

/// Balances, and does this with `lines` of a request and of its `answer`.
fn balancer(to_request: &str, to_answer: &str) -> String {
    format!(
        r#"
def message(stream):
    lines = []
    while (line := stream.readline()) not in (b"\r\n", b""):
        lines.append(line)
    lengths = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")]
    return lines, stream.read(sum(lengths))
def serve(client, address):
    try:
        origin = socket.create_connection(server)
        asked, answered = client.makefile("rb"), origin.makefile("rb")
        while lines := message(asked)[0]:
            is_last, is_known = b"Connection: close\r\n" in lines, any(line.startswith(b"Cookie: ") for line in lines)
            {to_request}
            origin.sendall(b"".join(lines) + b"\r\n")
            answer, body = message(answered)
            {to_answer}
            client.sendall(b"".join(answer) + b"\r\n" + body)
            if is_last:
                break
        origin.close()
    except OSError:
        pass
    # The last reference closes.
    client.shutdown(socket.SHUT_WR)
listener = listen()
while True:
    threading.Thread(target=serve, args=listener.accept(), daemon=True).start()
"#
    )
}

const TELL: &str = r#"lines.append(f"X-Forwarded-For: {address[0]}\r\n".encode())"#;
const GIVE: &str = r#"answer += [] if is_known else [b"Set-Cookie: SERVERID=one; Path=/\r\n"]"#;

fn run(name: &str, body: &str, cases: &[&str]) -> (Output, Folder) {
    let (impostor, folder) = (Impostor::new(name, body), Folder::new(name));
    let (path, file) = (impostor.path(), folder.path().join("result.json"));
    let mut command = towpath_perf(&["http", "--towpath", &path, "--json", file.to_str().unwrap()]);
    (command.args(QUICK).arg("--case").args(cases).output().unwrap(), folder)
}

#[test]
#[ignore = "needs the Debian package python3"]
fn whoever_balances_http_is_measured() {
    if ensure_privilege(whoever_balances_http_is_measured).unwrap() == Privilege::Delegated {
        return;
    }
    let cases = ["http-keepalive-64c", "http-keepalive-returning-64c", "http-64KB-64c", "http-connect"];
    let (output, folder) = run("http", &balancer(TELL, GIVE), &cases);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Report = serde_json::from_str(&fs::read_to_string(folder.path().join("result.json")).unwrap()).unwrap();
    for case in cases {
        for metric in ["rate", "p50", "p99"] {
            let row = report.rows.iter().find(|row| row.case == case && row.metric == metric);
            assert!(row.is_some_and(|row| row.median > 0.0), "{metric} of {case}: {report:?}");
        }
    }
}

#[test]
#[ignore = "needs the Debian package python3"]
fn a_subject_that_leaves_its_work_undone_fails_the_run() {
    if ensure_privilege(a_subject_that_leaves_its_work_undone_fails_the_run).unwrap() == Privilege::Delegated {
        return;
    }
    let always = GIVE.replace(" if is_known", " if False");
    let refuse = r#"answer[0] = b"HTTP/1.1 503 Service Unavailable\r\n""#;
    let (new, returning) = ("http-keepalive-64c", "http-keepalive-returning-64c");
    for (name, case, to_request, to_answer, words) in [
        ("untold", new, "pass", GIVE, "a request without the client's address in X-Forwarded-For"),
        ("cookieless", new, TELL, "pass", "did not set the cookie SERVERID once"),
        ("again", returning, TELL, &always, "set the cookie SERVERID again"),
        ("refuse", "http-connect", TELL, refuse, "a response has status 503"),
        ("body", new, TELL, &format!("{GIVE}; body = body[:-1] + b'?'"), "bytes arrived that were not sent"),
    ] {
        let (output, _folder) = run(name, &balancer(to_request, to_answer), &[case]);
        let said = String::from_utf8_lossy(&output.stderr);
        let named = format!("towpath in {case}");
        assert!(!output.status.success() && said.contains(words) && said.contains(&named), "no `{words}` in:\n{said}");
        assert!(output.stdout.is_empty(), "a failed run prints no figures");
    }
}

#[test]
fn nobody_who_balances_no_http_takes_part() {
    for other in ["kernel", "hitch", "nginx-http"] {
        let output = towpath_perf(&["http", "--towpath", "/bin/true", "--against", other]).output().unwrap();
        // One that is not installed is not found, which is told as well.
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(other), "{said}");
    }
}
