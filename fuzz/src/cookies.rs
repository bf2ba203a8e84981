//! Arbitrary cookies of clients and servers against persistence.
//!
//! An input is the value of a `Cookie` field and that of a `Set-Cookie` field, separated by [`SEPARATOR`]. Who is found by them must be who
//! [`plain_values`] says, a reader with nothing in common with ours; and a cookie of ours leads to its server wherever it stands among others.

use std::sync::Arc;

use towpath_core::compile::compile;
use towpath_core::health::HealthBoard;
use towpath_core::http::{HttpLimits, HttpMaterial, HttpSecret, RequestHead, ResponseHead};
use towpath_core::persistence::{Known, Pin, Seen};
use towpath_core::registry::Registry;
use towpath_core::snat::{SnatBook, SnatLimits};
use towpath_core::steering::SteeringTable;
use towpath_core::{Generation, Service, TargetIndex};

/// What separates the two fields.
pub(crate) const SEPARATOR: &[u8] = b"\n==\n";

/// Names of the cookies: ours, and that of the server.
pub(crate) const NAMES: [&str; 2] = ["OURS", "THEIRS"];

const LIMITS: HttpLimits = HttpLimits { head_bytes_max: 16_384, body_bytes_max: 0 };

/// A service that knows clients by either cookie.
pub(crate) struct Stage {
    services: [Arc<Service>; 2],
}

impl Stage {
    pub(crate) fn new() -> Stage {
        let service = |name: &str, persistence: &str| {
            format!(
                "[[service]]\nname = \"{name}\"\nvip = \"192.0.2.10\"\nports = [{}]\npersistence = {{ {persistence} }}\nhttp = {{}}\n\
                 [[service.server]]\nname = \"one\"\naddress = \"10.0.0.1\"\n[[service.server]]\nname = \"two\"\naddress = \"10.0.0.2\"\n",
                name.len()
            )
        };
        let text = service("ours", "by = \"cookie\", cookie = \"OURS\"")
            + &service("theirs", "by = \"cookie\", cookie = \"THEIRS\", cookie_mode = \"find\"");
        let model = towpath_config::check("fuzz.toml", &text).model.expect("no errors");
        let (mut registry, mut book) = (Registry::new(), SnatBook::new(SnatLimits::default()));
        let material = HttpMaterial::new(HttpSecret::new([7; 16]));
        let steering = Arc::new(SteeringTable::even(1));
        let board = HealthBoard::new();
        let snapshot = compile(&model, &mut registry, &board, &mut book, steering, &material, Generation(1));
        let snapshot = snapshot.expect("it compiles");
        let place = |name: &str| {
            let id = registry.service(name).expect("it is named so");
            Arc::clone(snapshot.service(id).expect("it is there"))
        };
        Stage { services: [place("ours"), place("theirs")] }
    }

    /// The cookies of ours that name the servers, each `name=value`.
    pub(crate) fn of_servers(&self) -> Vec<Vec<u8>> {
        let cookies = self.services[0].http.as_ref().and_then(|http| http.cookies.as_ref()).expect("cookies");
        let whole = [TargetIndex(0), TargetIndex(1)].map(|target| cookies.set(target).expect("it has a name"));
        whole.map(|set| set.split(|byte| *byte == b';').next().unwrap_or_default().to_vec()).to_vec()
    }

    /// Runs an input.
    pub(crate) fn run(&self, input: &[u8]) {
        let place = input.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
        let (cookie, set) = place.map_or((input, &[][..]), |at| (&input[..at], &input[at + SEPARATOR.len()..]));
        self.client_says(cookie);
        self.server_says(set);
    }

    fn client_says(&self, cookie: &[u8]) {
        let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\nCookie: ", cookie, b"\r\n\r\n"].concat();
        let Ok(Some((_, head))) = RequestHead::read(&bytes, &LIMITS) else { return };
        // More than one field, if the input breaks the line.
        let fields: Vec<&[u8]> = head.values("Cookie").collect();
        let values = |name| fields.iter().flat_map(|field| plain_values(field, name)).collect::<Vec<_>>();
        let known = |service: &Service| {
            let address = "203.0.113.1".parse().expect("an address");
            service.known(&Seen { request: Some(&head), ..Seen::of_address(address) })
        };
        let [ours, theirs] = &self.services;
        let named = self.of_servers().into_iter().zip(&ours.targets).filter_map(|(cookie, target)| {
            let value = &cookie[NAMES[0].len() + 1..];
            Some((values(NAMES[0]).iter().position(|own| own == value)?, target.server))
        });
        // The first that names one counts.
        assert_eq!(known(ours).named(), named.min_by_key(|(place, _)| *place).map(|(_, server)| server));
        let first = values(NAMES[1]).into_iter().next().filter(|value| !value.is_empty());
        assert_eq!(known(theirs) != Known::NOTHING, first.is_some());
        assert!(matches!(known(theirs).decides(|_| false, |_| true), Pin::Key(_) | Pin::Nobody));
    }

    fn server_says(&self, set: &[u8]) {
        let bytes = [b"HTTP/1.1 200 OK\r\nSet-Cookie: ", set, b"\r\n\r\n"].concat();
        let Ok(Some((_, head))) = ResponseHead::read(&bytes, &LIMITS) else { return };
        let pair = |field: &[u8]| field.split(|byte| *byte == b';').next().unwrap_or_default().to_vec();
        let pairs: Vec<Vec<u8>> = head.values("Set-Cookie").map(pair).collect();
        let first = pairs.iter().find_map(|pair| plain_values(pair, NAMES[1]).into_iter().next());
        let [ours, theirs] = &self.services;
        assert_eq!(theirs.learns(&head).is_some(), first.is_some_and(|value| !value.is_empty()));
        assert_eq!(ours.learns(&head), None);
    }
}

/// The values of a cookie in one field, by hand: pairs between semicolons, a name up to the first `=`, no blanks around either (RFC 6265 §5.4, §4.2.1).
fn plain_values(field: &[u8], name: &str) -> Vec<Vec<u8>> {
    let trimmed = |bytes: &[u8]| {
        let is_blank = |byte: &u8| byte.is_ascii_whitespace();
        let start = bytes.iter().position(|byte| !is_blank(byte)).unwrap_or(bytes.len());
        let end = bytes.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
        bytes[start..end].to_vec()
    };
    let mut values = Vec::new();
    let mut pair = Vec::new();
    for &byte in field.iter().chain(b";") {
        if byte != b';' {
            pair.push(byte);
            continue;
        }
        if let Some(equals) = pair.iter().position(|byte| *byte == b'=')
            && trimmed(&pair[..equals]) == name.as_bytes()
        {
            values.push(trimmed(&pair[equals + 1..]));
        }
        pair.clear();
    }
    values
}
