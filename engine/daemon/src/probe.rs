//! One check of one server: a TCP connection to each of its ports, or an exchange of datagrams, from the address that the kernel picks; or, where the
//! kernel has no address or would look for the VIP elsewhere, by a [`stack`] of our own. Over it a TLS handshake and a [`Conversation`], as the check asks.

mod datagram;
mod external;
pub(crate) mod secrets;
mod stack;
mod stream;
mod trace;
mod trust;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use towpath_config::model::{Carrier, CheckKind};
use towpath_core::health::{AgentReport, CheckPlan, CheckResult, Conversation, Course, Parties, Secrets};
use towpath_core::http::ServerEnd;
use towpath_core::plane::Network;
use towpath_tls::ClientContext;

use crate::server_check::PortRun;
use external::NoPlace;
pub(crate) use stream::Secured;
use stream::Stream;
pub(crate) use trace::Detail;
use trace::Trace;
pub(crate) use trust::Trust;

/// Bytes that are read of a server at a time.
const READ_BYTES: usize = 16_384;

/// Whom a check is about, in the words of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) server: String,
    pub(crate) services: Vec<String>,
}

/// How a check went.
pub(crate) struct Probed {
    pub(crate) result: CheckResult,
    /// Of an agent: what it says, or why there is no answer.
    pub(crate) answer: Option<Result<AgentReport, String>>,
    /// We lack what it takes to ask: nothing is known of the server.
    pub(crate) shortage: Option<String>,
    /// Its ports in their order; without steps unless they were wanted.
    pub(crate) ports: Vec<PortRun>,
}

impl Probed {
    /// What the last step has heard, in few words.
    pub(crate) fn heard(&self) -> String {
        self.ports.last().and_then(|port| port.steps.last()).map(|step| step.detail.clone()).unwrap_or_default()
    }
}

/// One port, asked.
struct Asked {
    port: u16,
    result: Result<Option<AgentReport>, String>,
    shortage: Option<String>,
    run: PortRun,
}

impl Asked {
    fn new(
        socket: SocketAddr,
        result: Result<Option<AgentReport>, String>,
        shortage: Option<String>,
        mut trace: Trace,
    ) -> Asked {
        if let Err(reason) = &result {
            trace.failed(reason);
        }
        let (steps, took_us) = trace.finish();
        let run = PortRun { socket, passed: result.is_ok(), took_us, steps };
        Asked { port: socket.port(), result, shortage, run }
    }
}

/// Runs `plan` once: all its ports side by side, each within its timeout. `places` bounds the connections of all checks.
pub(crate) async fn run(
    plan: &CheckPlan,
    network: &Network,
    places: &Arc<Semaphore>,
    trust: &mut Trust,
    subject: &Subject,
    detail: Detail,
) -> Probed {
    let limit = Duration::from_millis(plan.timeout_ms);
    let way = stack::way(network, plan).transpose();
    let context = plan.kind.tls().map(|tls| trust.context(tls)).transpose();
    let secrets = secrets::secrets(&plan.kind);
    let (mut ports, check) = (JoinSet::new(), plan.id);
    for socket in plan.sockets() {
        let (way, context, secrets, kind) = (way.clone(), context.clone(), secrets.clone(), plan.kind.clone());
        let places = Arc::clone(places);
        let herald = plan.herald(socket.port());
        let environment = external::environment(plan, socket, subject);
        ports.spawn(async move {
            let mut trace = Trace::begin(detail);
            if let CheckKind::External(line) = &kind {
                let place = external::place((check, socket.port()), detail, limit, &mut trace).await;
                let (result, shortage) = match place {
                    Ok(place) => (external::ask(place, line, &environment, limit, &mut trace).await, None),
                    Err(NoPlace::Hangs) => (Err("the run before has not ended".to_owned()), None),
                    Err(NoPlace::Shortage(reason)) => (Err(reason.clone()), Some(reason)),
                };
                return Asked::new(socket, result, shortage, trace);
            }
            let place = places.acquire_owned().await;
            let result = match (way, context, secrets) {
                _ if place.is_err() => Err("the process is ending".to_owned()),
                (Ok(way), Ok(context), Ok(secrets)) => {
                    let question = Question {
                        way: way.as_ref(),
                        to: socket,
                        herald: &herald,
                        kind: &kind,
                        secrets: &secrets,
                        context: context.as_deref(),
                        limit,
                    };
                    match kind.carrier() {
                        Carrier::Stream => ask(&question, &mut trace).await,
                        Carrier::Datagram | Carrier::Echo => datagram::ask(&question, &mut trace).await.map(|()| None),
                    }
                }
                (Err(reason), ..) | (_, Err(reason), _) | (.., Err(reason)) => {
                    trace.enter("prepare");
                    Err(reason)
                }
            };
            Asked::new(socket, result, None, trace)
        });
    }
    let mut asked: Vec<Asked> = Vec::with_capacity(plan.ports.len());
    while let Some(result) = ports.join_next().await {
        // A probe that panicked has no result, and a port without one has failed.
        asked.extend(result);
    }
    asked.sort_unstable_by_key(|asked| asked.port);
    let results: Vec<_> = asked.iter().map(|asked| (asked.port, asked.result.clone().map(drop))).collect();
    let answer = plan.is_agent().then(|| match asked.first().map(|asked| asked.result.clone()) {
        Some(Ok(Some(report))) => Ok(report),
        Some(Err(reason)) => Err(reason),
        Some(Ok(None)) | None => Err("not asked".to_owned()),
    });
    let shortage = asked.iter().find_map(|asked| asked.shortage.clone());
    Probed { result: plan.judge(&results), answer, shortage, ports: asked.into_iter().map(|asked| asked.run).collect() }
}

/// One port, and all that it is asked with.
struct Question<'q> {
    /// `None` = the kernel's.
    way: Option<&'q stack::Way>,
    to: SocketAddr,
    /// What a connection begins with.
    herald: &'q [u8],
    kind: &'q CheckKind,
    secrets: &'q Secrets,
    context: Option<&'q ClientContext>,
    limit: Duration,
}

/// Over a connection.
async fn ask(question: &Question<'_>, trace: &mut Trace) -> Result<Option<AgentReport>, String> {
    match timeout(question.limit, ask_for_long(question, trace)).await {
        Err(_) => {
            let waits_for = trace.current().filter(|&step| step != CONNECT).unwrap_or("answer");
            Err(format!("no {waits_for} within {}", duration(question.limit)))
        }
        Ok(result) => result,
    }
}

/// The step that waits for an answer of whatever kind.
const CONNECT: &str = "connect";

/// The same without a limit; `trace` knows what it was waiting for when somebody lost patience.
async fn ask_for_long(question: &Question<'_>, trace: &mut Trace) -> Result<Option<AgentReport>, String> {
    let &Question { way, to, herald, kind, secrets, context, limit: _ } = question;
    trace.enter(CONNECT);
    let mut stream = Stream::connect(way, to).await.map_err(|error| words(&error))?;
    let from = stream.from();
    trace.done(|| match way {
        Some(way) => format!("from {from} by {way}"),
        None => format!("from {from}"),
    });
    if !herald.is_empty() {
        trace.enter("PROXY header");
        stream.send(herald).await.map_err(|error| words(&error))?;
        trace.done(|| format!("{} bytes, says that nobody is behind it", herald.len()));
    }
    if context.is_some() {
        trace.enter("TLS handshake");
    }
    let mut stream = Secured::over(stream, context, to.ip()).await?;
    if let Some(tls) = kind.tls() {
        stream.judge(tls)?;
        trace.done(|| stream.describe());
    }
    let mut send = Vec::new();
    let parties = Parties { from, to, seed: crate::engine::system_seed(), secrets };
    let (mut conversation, mut course) = Conversation::begin(kind, &parties, &mut send);
    if course == Course::More {
        trace.enter(conversation.waits_for());
    }
    let mut buffer = vec![0; if course == Course::More { READ_BYTES } else { 0 }];
    loop {
        // What a server no longer wants to hear it has answered already, or it answers nothing: the reading tells.
        let sent = stream.send(&send).await;
        send.clear();
        match course {
            Course::More => {}
            Course::Passed => {
                trace.done(|| conversation.heard());
                stream.close().await;
                return Ok(conversation.report());
            }
            Course::Failed(reason) => {
                trace.failed(&reason);
                stream.close().await;
                return Err(reason);
            }
        }
        course = match stream.receive(&mut buffer).await {
            Ok(0) => conversation.ended(ServerEnd::Orderly),
            Ok(length) => conversation.received(&buffer[..length], &mut send),
            Err(error) => return Err(words(sent.as_ref().err().unwrap_or(&error))),
        };
        let next = conversation.waits_for();
        if course == Course::More && trace.current() != Some(next) {
            trace.done(|| conversation.heard());
            trace.enter(next);
        }
    }
}

/// A cause in the words of an operator, without the number of the error.
pub(crate) fn words(error: &io::Error) -> String {
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
            fast_interval_ms: 1000,
            timeout_ms: 2000,
            rise: 1,
            fall: 1,
            damping: Damping::OFF,
        }
    }

    fn check(plan: &CheckPlan) -> CheckResult {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(probe(plan, Detail::Result)).result
    }

    async fn probe(plan: &CheckPlan, detail: Detail) -> Probed {
        let places = Arc::new(Semaphore::new(1));
        let subject = Subject { server: "FE-1".to_owned(), services: vec!["front-end".to_owned(), "web".to_owned()] };
        run(plan, &Network::default(), &places, &mut Trust::default(), &subject, detail).await
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
