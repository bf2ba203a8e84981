//! The client of OpenSSL against contexts, over loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::{ServerConnection, Stream};
use towpath_tls::{ClientCertificates, Resumption, ServedIdentity, ServerContext, ServerSettings, TicketKeys};

use super::authority::{Authority, Issued, Key, server_settings};

const NAME: &str = "mail.example.com";
/// A client that hangs is a failure, not a wait.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Serves each of `visits` clients with a greeting and an orderly end.
fn serve(context: ServerContext, visits: usize) -> (SocketAddr, thread::JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let address = listener.local_addr().expect("its address");
    let served = thread::spawn(move || {
        for _ in 0..visits {
            let (mut socket, _) = listener.accept().expect("a client");
            socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
            let mut connection = ServerConnection::new(Arc::clone(context.config())).expect("a server");
            let mut stream = Stream::new(&mut connection, &mut socket);
            if stream.write_all(b"greetings\n").is_err() {
                continue;
            }
            connection.send_close_notify();
            let mut stream = Stream::new(&mut connection, &mut socket);
            let _sent = stream.flush();
            // Until the client has gone, so that no reset overtakes what was said.
            let _rest = socket.read_to_end(&mut Vec::new());
        }
    });
    (address, served)
}

/// What `openssl s_client` says.
fn s_client(address: SocketAddr, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["20", "openssl", "s_client", "-connect", &address.to_string(), "-ign_eof"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is installed");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn openssl_verifies_us_in_both_versions_with_rsa_and_ecdsa() {
    let authority = Authority::new("authority");
    let (rsa, ecdsa) = (authority.issue(&[NAME], Key::Rsa), authority.issue(&[NAME], Key::P256));
    let context = ServerContext::new(&server_settings(&[&rsa, &ecdsa]), None).expect("a context");
    let (address, served) = serve(context, 4);
    let root = authority.pem_path();
    let common = ["-servername", NAME, "-verify_hostname", NAME, "-verify_return_error", "-CAfile", text(&root)];
    for (arguments, suite, signature) in [
        (&["-tls1_3"][..], "TLS_AES_128_GCM_SHA256", "Peer signature type: ECDSA"),
        (&["-tls1_2"], "ECDHE-ECDSA-AES128-GCM-SHA256", "Peer signature type: ECDSA"),
        (&["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"], "TLS_AES_128_GCM_SHA256", "Peer signature type: RSA-PSS"),
        (
            &["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"],
            "ECDHE-RSA-AES256-GCM-SHA384",
            "Peer signature type: RSA",
        ),
    ] {
        let said = s_client(address, &[&common[..], arguments].concat());
        for part in ["Verify return code: 0 (ok)", "greetings", suite, signature] {
            assert!(said.contains(part), "{arguments:?}: {part:?} is missing in {said}");
        }
    }
    served.join().expect("a server that did not panic");
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn openssl_resumes_by_ticket_at_another_context() {
    let authority = Authority::new("authority");
    let mail = authority.issue(&[NAME], Key::P256);
    let resumption = || {
        let keys = TicketKeys::shared(b"a secret that two machines have in a file", Duration::from_secs(3600));
        Resumption::Tickets(Arc::new(keys.expect("long enough")))
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let session = authority.write("session", "");
        let context =
            || ServerContext::new(&ServerSettings { resumption: resumption(), ..server_settings(&[&mail]) }, None);
        let (address, served) = serve(context().expect("a context"), 1);
        let said = s_client(address, &[version, "-servername", NAME, "-sess_out", text(&session)]);
        assert!(said.contains("New, TLSv1"), "{said}");
        served.join().expect("a server that did not panic");
        let (address, served) = serve(context().expect("a context"), 1);
        let said = s_client(address, &[version, "-servername", NAME, "-sess_in", text(&session)]);
        assert!(said.contains("Reused, TLSv1"), "{said}");
        assert!(said.contains("greetings"), "{said}");
        served.join().expect("a server that did not panic");
    }
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn openssl_is_shown_the_staple_and_asked_for_a_certificate() {
    let authority = Authority::new("authority");
    let mail = authority.issue(&[NAME], Key::P256);
    let us = authority.issue(&["client"], Key::Rsa);
    let mut settings = server_settings(&[]);
    // The shortest response there is: tryLater (RFC 6960 §4.2.1).
    let staple = Some(vec![0x30, 3, 0x0a, 1, 3]);
    settings.identities.push(ServedIdentity { identity: Arc::clone(&mail.identity), staple });
    settings.client_certificates = ClientCertificates::Require(authority.trust(&[]));
    let (address, served) = serve(ServerContext::new(&settings, None).expect("a context"), 4);
    for version in ["-tls1_2", "-tls1_3"] {
        let with = |issued: &Issued| {
            let (chain, key) = (text(&issued.chain_path).to_owned(), text(&issued.key_path).to_owned());
            s_client(address, &[version, "-servername", NAME, "-status", "-cert", &chain, "-key", &key])
        };
        let said = with(&us);
        assert!(said.contains("greetings") && said.contains("Acceptable client certificate CA names"), "{said}");
        assert!(said.contains("OCSP Response Status: trylater"), "{said}");
        let said = s_client(address, &[version, "-servername", NAME]);
        assert!(!said.contains("greetings"), "{said}");
    }
    served.join().expect("a server that did not panic");
}
