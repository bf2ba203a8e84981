//! The tls suite, at a subject written in Python: what it counts, and what it fails at.

#![allow(clippy::unwrap_used)]

mod program;

use std::fs;
use std::process::Output;

use program::{Folder, Impostor, towpath_perf};
use towpath_perf::lab::{Privilege, ensure_privilege};
use towpath_perf::report::{Report, Row};

const QUICK: [&str; 10] =
    ["--against", "", "--accounting", "plain", "--repeat", "1", "--retake", "0", "--seconds", "0.3"];

/// Ends TLS and relays a request and its answer at a time, with what the context is set to; `ended` says how a connection is.
fn relay(context: &str, ended: &str) -> String {
    format!(
        r#"
import ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(re.search('file = "(.*)"', text)[1], re.search('\nkey = "(.*)"', text)[1])
{context}
def serve(client):
    try:
        client = context.wrap_socket(client, server_side=True)
        # Some end after the handshake.
        if data := client.recv(65536):
            origin = socket.create_connection(server)
            while data:
                origin.sendall(data)
                client.sendall(origin.recv(65536))
                # An origin that is done has ended by now.
                if select.select([client, origin], [], [])[0] == [origin]:
                    break
                data = client.recv(65536)
        {ended}
    except OSError:
        pass
    client.close()
plain = listen()
threading.Thread(target=relay, args=(plain, lambda _, data: data), daemon=True).start()
port = int(re.findall('ports = (.*)', text)[1])
secure = listen()
while True:
    threading.Thread(target=serve, args=(secure.accept()[0],), daemon=True).start()
"#
    )
}

fn run(impostor: &Impostor, folder: &Folder, cases: &[&str]) -> Output {
    let (path, file) = (impostor.path(), folder.path().join("result.json"));
    let mut command = towpath_perf(&["tls", "--towpath", &path, "--json", file.to_str().unwrap()]);
    command.args(QUICK).arg("--case").args(cases).output().unwrap()
}

#[track_caller]
fn assert_failed(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(words), "no `{words}` in:\n{said}");
}

#[test]
#[ignore = "needs the Debian package python3"]
fn whoever_ends_tls_is_measured() {
    if ensure_privilege(whoever_ends_tls_is_measured).unwrap() == Privilege::Delegated {
        return;
    }
    let (impostor, folder) = (Impostor::new("tls", &relay("", "client.unwrap()")), Folder::new("tls"));
    let handshakes = ["handshake-p256-full", "handshake-rsa2048-full-tls12", "handshake-p256-resumed"];
    let cases: Vec<&str> = handshakes.into_iter().chain(["tls-keepalive-64c", "isolation"]).collect();
    let output = run(&impostor, &folder, &cases);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Report = serde_json::from_str(&fs::read_to_string(folder.path().join("result.json")).unwrap()).unwrap();
    let figure = |case: &str, metric: &str| {
        let is_it = |row: &&Row| row.case == case && row.metric == metric;
        report.rows.iter().find(is_it).unwrap_or_else(|| panic!("no {metric} of {case}: {report:?}")).median
    };
    for case in handshakes {
        assert!(figure(case, "rate") > 0.0, "{case}");
    }
    assert!(figure("tls-keepalive-64c", "rate") > 0.0);
    assert!(figure("isolation", "slowdown-p90") > 0.0 && figure("isolation", "handshake-capacity") > 0.0);
}

#[test]
#[ignore = "needs the Debian package python3"]
fn a_subject_that_resumes_nothing_fails_where_it_has_to() {
    if ensure_privilege(a_subject_that_resumes_nothing_fails_where_it_has_to).unwrap() == Privilege::Delegated {
        return;
    }
    let never = "context.num_tickets = 0\ncontext.options |= ssl.OP_NO_TICKET";
    let impostor = Impostor::new("new", &relay(never, "client.unwrap()"));
    let output = run(&impostor, &Folder::new("new"), &["handshake-p256-resumed"]);
    assert_failed(&output, "a TLS session is a new one, which was not asked for");
}

#[test]
#[ignore = "needs the Debian package python3"]
fn a_subject_that_cuts_tls_off_fails() {
    if ensure_privilege(a_subject_that_cuts_tls_off_fails).unwrap() == Privilege::Delegated {
        return;
    }
    let impostor = Impostor::new("cut", &relay("", "pass"));
    let output = run(&impostor, &Folder::new("cut"), &["handshake-p256-full"]);
    assert_failed(&output, "TLS was cut off");
}

#[test]
fn the_ceiling_needs_nobody() {
    let folder = Folder::new("ceiling");
    let file = folder.path().join("result.json");
    let mut command = towpath_perf(&["tls", "--towpath", "/bin/true", "--case", "ceiling", "--json"]);
    let output = command.arg(&file).args(QUICK).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Report = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(report.rows.iter().filter(|row| row.case == "ceiling").count(), 10, "{report:?}");
    assert!(report.rows.iter().any(|row| row.case == "ceiling-ring"));
}
