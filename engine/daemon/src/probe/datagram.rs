//! One check of one port by datagrams: UDP, or ICMP echo; over a socket of the kernel's or our own [`stack`](super::stack).
//!
//! What gets lost is sent again. What comes and is no answer is passed over: anybody can send a datagram.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use towpath_config::model::{Carrier, CheckKind};
use towpath_core::health::{Conversation, Course, Parties, Secrets};
use towpath_sys::socket::{self, EchoForm, Family};

use super::stack;
use super::trace::Trace;
use super::{Question, duration, words};

/// Longest datagram that is read; what a longer one says behind it is cut off.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// A header of IPv4, without options.
const IPV4_BYTES_MIN: usize = 20;

/// How one attempt went.
enum Heard {
    /// The server or somebody on the way to it has spoken.
    Answer(Result<(), String>),
    /// Nobody has: what that means.
    Silence(Result<(), String>),
    /// Nothing has left, and why.
    Unsent(String),
}

/// Runs the check once, within its limit.
pub(super) async fn ask(question: &Question<'_>, trace: &mut Trace) -> Result<(), String> {
    let &Question { way, to, kind, secrets, limit, .. } = question;
    let until = Instant::now() + limit;
    trace.enter("socket");
    let Some(way) = way else {
        let letters = match Letters::by_kernel(to, kind.carrier()) {
            Ok(letters) => letters,
            Err(error) => return Err(refused(&error, kind.carrier())),
        };
        trace.done(|| format!("from {}", letters.from()));
        let heard = exchange(letters, to, kind, secrets, until, limit, trace).await;
        return match heard {
            Heard::Answer(result) | Heard::Silence(result) => result,
            Heard::Unsent(reason) => Err(reason),
        };
    };
    trace.done(|| format!("by {way}"));
    // Both arms of a bridge: only the one that the server is behind has an answer.
    let mut tries = JoinSet::new();
    for link in way.links() {
        let (way, kind, secrets) = (way.clone(), kind.clone(), secrets.clone());
        let mut trace = trace.beside();
        tries.spawn(async move {
            let heard = match stack::Letters::open(link, &way, to, kind.carrier()) {
                Ok(letters) => {
                    let letters = Letters::Own(Box::new(letters));
                    exchange(letters, to, &kind, &secrets, until, limit, &mut trace).await
                }
                Err(error) => Heard::Unsent(words(&error)),
            };
            (heard, trace)
        });
    }
    let (mut silence, mut unsent) = (None, (Err("no way to the server".to_owned()), None));
    while let Some(tried) = tries.join_next().await {
        match tried {
            Ok((Heard::Answer(result), tried)) => {
                trace.adopt(tried);
                return result;
            }
            Ok((Heard::Silence(result), tried)) => silence = Some((result, Some(tried))),
            Ok((Heard::Unsent(reason), tried)) => unsent = (Err(reason), Some(tried)),
            Err(error) => unsent = (Err(error.to_string()), None),
        }
    }
    let (result, tried) = silence.unwrap_or(unsent);
    if let Some(tried) = tried {
        trace.adopt(tried);
    }
    result
}

async fn exchange(
    mut letters: Letters,
    to: SocketAddr,
    kind: &CheckKind,
    secrets: &Secrets,
    until: Instant,
    limit: Duration,
    trace: &mut Trace,
) -> Heard {
    let parties = Parties { from: letters.from(), to, seed: crate::engine::system_seed(), secrets };
    let mut send = Vec::new();
    let (mut conversation, course) = Conversation::begin(kind, &parties, &mut send);
    if let Course::Failed(reason) = course {
        return Heard::Answer(Err(reason));
    }
    trace.enter(conversation.waits_for());
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut times = 0;
    loop {
        if let Err(error) = letters.send(&send).await {
            return Heard::Answer(Err(words(&error)));
        }
        let again = conversation.repeat_after_ms(times).map(|ms| Instant::now() + Duration::from_millis(ms));
        let patience = again.map_or(until, |again| again.min(until));
        // Once at least: what has come in time counts, however late we look.
        while let Ok(received) = timeout_at(patience, letters.receive(&mut buffer)).await {
            tokio::task::consume_budget().await;
            let answer = match received {
                Ok(answer) => answer,
                Err(error) => return Heard::Answer(Err(words(&error))),
            };
            let mut next = Vec::new();
            match conversation.received(answer, &mut next) {
                Course::More => {}
                Course::Passed => {
                    trace.done(|| conversation.heard());
                    return Heard::Answer(Ok(()));
                }
                Course::Failed(reason) => return Heard::Answer(Err(reason)),
            }
            // Whoever sends faster than we read would be heard for ever: a time limit asks first for what is there.
            if Instant::now() >= patience {
                break;
            }
        }
        if Instant::now() >= until {
            if !letters.have_left() {
                return Heard::Unsent("host unreachable".to_owned());
            }
            return Heard::Silence(match conversation.passes_in_silence() {
                true => {
                    trace.done(|| format!("nobody has refused it within {}", duration(limit)));
                    Ok(())
                }
                false => Err(format!("no {} within {}", conversation.waits_for(), duration(limit))),
            });
        }
        times += 1;
    }
}

/// Why there is no socket.
fn refused(error: &io::Error, carrier: Carrier) -> String {
    match (error.kind(), carrier) {
        (io::ErrorKind::PermissionDenied, Carrier::Echo) => {
            "no right to send echo requests; give the process CAP_NET_RAW, or set net.ipv4.ping_group_range".to_owned()
        }
        _ => words(error),
    }
}

/// What datagrams to one server go out and come in by.
enum Letters {
    Kernel { socket: UdpSocket, form: EchoForm, from: SocketAddr },
    Own(Box<stack::Letters>),
}

impl Letters {
    fn by_kernel(to: SocketAddr, carrier: Carrier) -> io::Result<Letters> {
        let family = Family::of(to.ip());
        let identifier = crate::engine::system_seed() as u16;
        let (fd, form) = match carrier {
            Carrier::Echo => socket::echo_socket(to.ip(), identifier)?,
            Carrier::Datagram | Carrier::Stream => {
                let fd = socket::udp_socket(family)?;
                socket::connect(&fd, to)?;
                (fd, EchoForm::Message)
            }
        };
        socket::hear_errors(&fd, family)?;
        let socket = UdpSocket::from_std(fd.into())?;
        let mut from = socket.local_addr()?;
        if carrier == Carrier::Echo {
            // That of a socket without privileges the kernel writes over ours.
            from.set_port(identifier);
        }
        Ok(Letters::Kernel { socket, form, from })
    }

    /// Our own address and port, or identifier.
    fn from(&self) -> SocketAddr {
        match self {
            Letters::Kernel { from, .. } => *from,
            Letters::Own(letters) => letters.from(),
        }
    }

    async fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        match self {
            Letters::Kernel { socket, .. } => socket.send(datagram).await.map(drop),
            Letters::Own(letters) => {
                letters.send(datagram);
                Ok(())
            }
        }
    }

    /// Whether what was sent is on its way, as far as is known: of the kernel's a host that does not answer for its address comes as an error.
    fn have_left(&self) -> bool {
        match self {
            Letters::Kernel { .. } => true,
            Letters::Own(letters) => letters.have_left(),
        }
    }

    /// The next one that comes. May be dropped while it waits.
    async fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        match self {
            Letters::Kernel { socket, form, .. } => {
                let length = socket.recv(buffer).await?;
                let packet = &buffer[..length];
                Ok(match form {
                    EchoForm::Message => packet,
                    EchoForm::Packet => {
                        let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
                        packet.get(header.max(IPV4_BYTES_MIN)..).unwrap_or_default()
                    }
                })
            }
            Letters::Own(letters) => letters.receive(buffer).await,
        }
    }
}
