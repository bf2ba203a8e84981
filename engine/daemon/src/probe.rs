//! One check of one server: a TCP connection to each of its ports, from the address that the kernel picks; or, where the kernel has no address or would
//! look for the VIP elsewhere, by a [`stack`] of our own. Over it a TLS handshake and a [`Conversation`], as the check asks.

mod stack;
mod stream;
mod trust;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use towpath_config::model::CheckKind;
use towpath_core::health::{CheckPlan, CheckResult, Conversation, Course};
use towpath_core::http::ServerEnd;
use towpath_core::plane::Network;
use towpath_tls::ClientContext;

use stream::{Secured, Stream};
pub(crate) use trust::Trust;

/// Bytes that are read of a server at a time.
const READ_BYTES: usize = 16_384;

/// Runs `plan` once: all its ports side by side, each within its timeout. `places` bounds the connections of all checks.
pub(crate) async fn run(
    plan: &CheckPlan,
    network: &Network,
    places: &Arc<Semaphore>,
    trust: &mut Trust,
) -> CheckResult {
    let limit = Duration::from_millis(plan.timeout_ms);
    let way = stack::way(network, plan).transpose();
    let context = match &plan.kind {
        CheckKind::Https(_, tls) | CheckKind::Tls(tls) => trust.context(tls).map(Some),
        CheckKind::Http(_) | CheckKind::Smtp { .. } | CheckKind::Tcp => Ok(None),
    };
    let mut ports = JoinSet::new();
    for socket in plan.sockets() {
        let (places, way, context, kind) = (Arc::clone(places), way.clone(), context.clone(), plan.kind.clone());
        let herald = plan.herald(socket.port());
        ports.spawn(async move {
            let Ok(_place) = places.acquire_owned().await else {
                return (socket.port(), Err("the process is ending".to_owned()));
            };
            let result = match (way, context) {
                (Ok(way), Ok(context)) => ask(way.as_ref(), socket, &herald, &kind, context.as_deref(), limit).await,
                (Err(reason), _) | (_, Err(reason)) => Err(reason),
            };
            (socket.port(), result)
        });
    }
    let mut results = Vec::with_capacity(plan.ports.len());
    while let Some(result) = ports.join_next().await {
        // A probe that panicked has no result, and a port without one has failed.
        results.extend(result);
    }
    plan.judge(&results)
}

/// One port.
async fn ask(
    way: Option<&stack::Way>,
    to: SocketAddr,
    herald: &[u8],
    kind: &CheckKind,
    context: Option<&ClientContext>,
    limit: Duration,
) -> Result<(), String> {
    let mut waits_for = "answer";
    match timeout(limit, ask_for_long(way, to, herald, kind, context, &mut waits_for)).await {
        Err(_) => Err(format!("no {waits_for} within {}", duration(limit))),
        Ok(result) => result,
    }
}

/// The same without a limit; `waits_for` is what it was waiting for when somebody lost patience.
async fn ask_for_long(
    way: Option<&stack::Way>,
    to: SocketAddr,
    herald: &[u8],
    kind: &CheckKind,
    context: Option<&ClientContext>,
    waits_for: &mut &'static str,
) -> Result<(), String> {
    let mut stream = Stream::connect(way, to).await.map_err(|error| words(&error))?;
    if !herald.is_empty() {
        stream.send(herald).await.map_err(|error| words(&error))?;
    }
    *waits_for = "TLS handshake";
    let mut stream = Secured::over(stream, context, to.ip()).await?;
    let mut send = Vec::new();
    let (mut conversation, mut course) = Conversation::begin(kind, to, &mut send);
    *waits_for = conversation.waits_for();
    let mut buffer = vec![0; if course == Course::More { READ_BYTES } else { 0 }];
    loop {
        // What a server no longer wants to hear it has answered already, or it answers nothing: the reading tells.
        let sent = stream.send(&send).await;
        send.clear();
        match course {
            Course::More => {}
            Course::Passed => {
                stream.close().await;
                return Ok(());
            }
            Course::Failed(reason) => {
                stream.close().await;
                return Err(reason);
            }
        }
        course = match stream.receive(&mut buffer).await {
            Ok(0) => conversation.ended(ServerEnd::Orderly),
            Ok(length) => conversation.received(&buffer[..length], &mut send),
            Err(error) => return Err(words(sent.as_ref().err().unwrap_or(&error))),
        };
        *waits_for = conversation.waits_for();
    }
}

/// A cause in the words of an operator, without the number of the error.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        io::ErrorKind::TimedOut => "no answer".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
    }
}

fn duration(limit: Duration) -> String {
    let ms = limit.as_millis();
    if ms.is_multiple_of(1000) { format!("{} s", ms / 1000) } else { format!("{ms} ms") }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use towpath_core::health::CheckId;

    use towpath_config::model::Damping;

    use super::*;

    fn plan(ports: Vec<u16>) -> CheckPlan {
        CheckPlan {
            id: CheckId(0),
            address: Ipv4Addr::LOCALHOST.into(),
            vip: None,
            kind: CheckKind::Tcp,
            ports,
            proxy: None,
            interval_ms: 1000,
            timeout_ms: 2000,
            rise: 1,
            fall: 1,
            damping: Damping::OFF,
        }
    }

    fn check(plan: &CheckPlan) -> CheckResult {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(plan, &Network::default(), &Arc::new(Semaphore::new(1)), &mut Trust::default()))
    }

    #[test]
    fn every_port_of_the_group_must_connect() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let second = TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = [&first, &second].map(|l| l.local_addr().unwrap().port());
        assert_eq!(check(&plan(ports.to_vec())), CheckResult::Passed);
        drop(second);
        let CheckResult::Failed(reason) = check(&plan(ports.to_vec())) else { panic!("one port is closed") };
        assert_eq!(reason, format!("port {}: connection refused", ports[1]));
    }

    #[test]
    fn a_silent_port_fails_after_its_timeout_with_the_time_in_the_reason() {
        // A listener whose queue is full answers no SYN: fill it.
        let listener = towpath_sys::socket::open_listener(
            "127.0.0.1:0".parse().unwrap(),
            towpath_sys::socket::Transport::Tcp,
            &towpath_sys::socket::ListenOptions { backlog: 0, ..Default::default() },
        )
        .unwrap();
        let address = towpath_sys::socket::local_address(&listener).unwrap();
        let family = towpath_sys::socket::Family::V4;
        let fillers: Vec<_> = (0..4)
            .map(|_| {
                let fd = towpath_sys::socket::tcp_socket(family).unwrap();
                towpath_sys::socket::connect(&fd, address).unwrap();
                fd
            })
            .collect();
        let plan = CheckPlan { timeout_ms: 150, ..plan(vec![address.port()]) };
        let CheckResult::Failed(reason) = check(&plan) else { panic!("nobody answers") };
        assert_eq!(reason, format!("port {}: no answer within 150 ms", address.port()));
        drop(fillers);
    }
}
