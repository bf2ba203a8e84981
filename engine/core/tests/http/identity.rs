//! Whose answer is it? Clients of all kinds of authentication share connections to a server that authenticates connections, as IIS does
//! with NTLM and Negotiate. Nobody may ever get an answer that was made for somebody else.

use towpath_core::http::pinning::{Binding, Idle, Lent, Pinned, Settled};
use towpath_core::http::{Edits, Exchange, Fate, Keep, Lost, Output, ServerEnd, ServerLeg, Then};
use towpath_core::random::SplitMix64;

use crate::LIMITS;
use crate::target::read_plainly;

const CLIENTS: usize = 300;
/// Connections that may wait for the next client.
const IDLE_MAX: usize = 16;

/// How a client says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It does not.
    Anonymous,
    /// With each request.
    Basic,
    /// By NTLM, when it is asked to: two requests over one connection.
    Challenged,
    /// By Kerberos, with the first request of each connection and without being asked (haproxy#2985).
    Preauthenticated,
}

const KINDS: [Kind; 4] = [Kind::Anonymous, Kind::Basic, Kind::Challenged, Kind::Preauthenticated];

/// A connection of the server: it is who has logged in over it.
#[derive(Debug, Default)]
struct Connection {
    user: Option<String>,
    requests: u32,
}

impl Connection {
    /// The answer to a request; the user that it is made for is its body.
    fn answer(&mut self, request: &str, random: &mut SplitMix64) -> String {
        let credentials = request.lines().find_map(|line| line.strip_prefix("Authorization: ")).unwrap_or_default();
        self.requests += 1;
        let mut fields = String::new();
        let mut served = self.user.clone();
        match credentials.split_once(' ') {
            Some(("Basic", user)) => served = Some(user.into()),
            // The first message of NTLM asks for a challenge.
            Some(("NTLM", "hello")) => return challenge("NTLM Y2hhbGxlbmdl"),
            Some(("NTLM" | "Negotiate", user)) => {
                self.user = Some(user.into());
                served = self.user.clone();
                if random.below(2) == 0 {
                    fields.push_str("Persistent-Auth: true\r\n");
                }
            }
            _ => {}
        }
        if served.is_none() && request.starts_with("GET /private ") {
            return challenge("NTLM");
        }
        let body = served.unwrap_or_else(|| "nobody".into());
        if random.below(12) == 0 {
            fields.push_str("Connection: close\r\n");
        }
        format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
    }
}

fn challenge(scheme: &str) -> String {
    format!("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {scheme}\r\nContent-Length: 0\r\n\r\n")
}

/// One client and its connection.
struct Client {
    user: String,
    kind: Kind,
    exchange: Exchange,
    pinned: Option<Pinned<Connection>>,
    /// It has begun to log in over this connection, so many messages ago.
    greeted: u32,
}

/// What a request has come to.
enum Heard {
    /// The client's connection was closed on it.
    Closed,
    /// An answer for this user.
    Answer(String),
    /// It has to log in.
    Challenge,
}

/// What serves the request at hand.
enum Leg {
    Lent(Lent<Connection>),
    Pinned(Pinned<Connection>),
}

impl Leg {
    fn connection(&mut self) -> &mut Connection {
        match self {
            Leg::Lent(lent) => lent.connection_mut(),
            Leg::Pinned(pinned) => pinned.connection_mut(),
        }
    }
}

impl Client {
    fn new(user: String, kind: Kind) -> Client {
        Client { user, kind, exchange: Exchange::new(LIMITS), pinned: None, greeted: 0 }
    }

    /// A new connection: what was logged in over the one before is gone.
    fn reconnect(&mut self) {
        *self = Client::new(std::mem::take(&mut self.user), self.kind);
    }

    fn credentials(&self) -> String {
        match (self.kind, self.greeted) {
            (Kind::Basic, _) => format!("Authorization: Basic {}\r\n", self.user),
            (Kind::Preauthenticated, 0) => format!("Authorization: Negotiate {}\r\n", self.user),
            (Kind::Challenged, 1) => "Authorization: NTLM hello\r\n".into(),
            (Kind::Challenged, 2) => format!("Authorization: NTLM {}\r\n", self.user),
            _ => String::new(),
        }
    }

    /// One request; `None` if the client went away before its answer came.
    fn asks(&mut self, idle: &mut Idle<Connection>, random: &mut SplitMix64) -> Option<Heard> {
        let path = if random.below(3) == 0 { "/public" } else { "/private" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{}\r\n", self.credentials());
        let (mut out, mut nothing) = (Output::default(), Output::default());
        let step = self.exchange.on_client(request.as_bytes(), &mut nothing);
        assert_eq!((step.consumed, step.then), (request.len(), Then::Route));
        loop {
            let mut leg = match self.pinned.take() {
                Some(pinned) => Leg::Pinned(pinned),
                None => {
                    Leg::Lent(idle.remove().map_or_else(|| Lent::new(Connection::default()), |shared| shared.lend()))
                }
            };
            let kind = if leg.connection().requests > 0 { ServerLeg::Kept } else { ServerLeg::Fresh };
            out.clear();
            self.exchange.forward(&Edits::default(), kind, &mut out);
            let mut sent = Vec::new();
            out.copy_into(b"", &mut sent);
            if random.below(50) == 0 {
                // The client has gone, and the connection that owes it an answer with it.
                return None;
            }
            if random.below(40) == 0 {
                // The server has gone, maybe with what was logged in over its connection.
                match self.exchange.server_ended(ServerEnd::Broken, &mut nothing) {
                    Lost::Retry => continue,
                    Lost::Failed | Lost::Mirror => return Some(Heard::Closed),
                    lost => panic!("{lost:?} before an answer"),
                }
            }
            let sent = String::from_utf8(sent).expect("what was sent is text");
            let answer = leg.connection().answer(&sent, random);
            return Some(self.hears(answer.as_bytes(), leg, idle));
        }
    }

    fn hears(&mut self, answer: &[u8], leg: Leg, idle: &mut Idle<Connection>) -> Heard {
        let (mut out, mut heard) = (Output::default(), Vec::new());
        let step = self.exchange.on_server(answer, &mut out);
        assert_eq!(step.then, Then::Respond);
        let then = self.exchange.respond(&Edits::default(), Keep::Open, &mut out);
        let rest = &answer[step.consumed..];
        let then = if then == Then::Read { self.exchange.on_server(rest, &mut out).then } else { then };
        assert_eq!(then, Then::Over);
        out.copy_into(rest, &mut heard);
        let after = self.exchange.renew();
        match leg {
            _ if after.server == Fate::Close => {}
            Leg::Lent(lent) => match lent.settle(after.binding) {
                // What nobody has room for is closed.
                Settled::Shared(shared) => drop(idle.insert(shared)),
                Settled::Pinned(pinned) => self.pinned = Some(pinned),
            },
            Leg::Pinned(pinned) => self.pinned = Some(pinned),
        }
        assert!(after.server == Fate::Keep || after.binding == Binding::Free || after.client == Fate::Close);
        let (messages, _) = read_plainly(&heard, true);
        let [message] = messages.as_slice() else { panic!("one answer") };
        let result = match message.head.starts_with(b"HTTP/1.1 401") {
            true => Heard::Challenge,
            false => Heard::Answer(String::from_utf8(message.body.clone()).expect("a user is text")),
        };
        if after.client == Fate::Close {
            self.reconnect();
        }
        result
    }
}

#[test]
fn nobody_gets_an_answer_that_was_made_for_somebody_else() {
    play(1, 60_000);
}

#[test]
#[ignore = "a million requests take a while"]
fn nobody_gets_an_answer_that_was_made_for_somebody_else_in_a_million() {
    play(2, 1_000_000);
}

/// Clients in random order, over shared connections.
fn play(seed: u64, requests: u32) {
    let mut random = SplitMix64::new(seed);
    let mut idle = Idle::with_room(IDLE_MAX);
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|number| Client::new(format!("user-{number}"), KINDS[number % KINDS.len()])).collect();
    let (mut own, mut anonymous, mut challenged, mut closed) = (0, 0, 0, 0);
    for _ in 0..requests {
        let client = &mut clients[random.below(CLIENTS as u64) as usize];
        let user = client.user.clone();
        match client.asks(&mut idle, &mut random) {
            Some(Heard::Answer(whose)) if whose == user => {
                own += 1;
                // Nothing is left to say.
                client.greeted = client.greeted.max(3);
            }
            Some(Heard::Answer(whose)) => {
                assert_eq!(whose, "nobody", "{user} ({:?}) got an answer for somebody else", client.kind);
                anonymous += 1;
            }
            Some(Heard::Challenge) => {
                challenged += 1;
                client.greeted = if client.greeted < 3 { client.greeted + 1 } else { 1 };
            }
            Some(Heard::Closed) | None => {
                closed += 1;
                client.reconnect();
            }
        }
    }
    // All of it has happened, and connections were shared.
    for (what, count) in [("own", own), ("anonymous", anonymous), ("challenged", challenged), ("closed", closed)] {
        assert!(count > requests / 100, "{what}: {count} of {requests}");
    }
    assert!(!idle.is_empty());
}
