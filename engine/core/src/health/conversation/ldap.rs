//! An LDAP bind and a search of the root DSE (RFC 4511, RFC 4512 section 5.1), in the part of BER that LDAP has (RFC 4511 section 5.1).

use towpath_config::model::LdapCheck;

use super::{Course, Parties, shown};

/// One message of a server, all its values included; those of directories have some 5 KiB.
const MESSAGE_OCTETS_MAX: usize = 262_144;

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;
const BIND_REQUEST: u8 = 0x60;
const BIND_RESPONSE: u8 = 0x61;
const UNBIND_REQUEST: u8 = 0x42;
const SEARCH_REQUEST: u8 = 0x63;
const SEARCH_ENTRY: u8 = 0x64;
const SEARCH_DONE: u8 = 0x65;
const SEARCH_REFERENCE: u8 = 0x73;
const EXTENDED_RESPONSE: u8 = 0x78;
const SIMPLE: u8 = 0x80;
const PRESENT: u8 = 0x87;

/// A bind and a search.
#[derive(Debug)]
pub(super) struct LdapTalk {
    check: LdapCheck,
    /// What came of a message.
    received: Vec<u8>,
    stage: Stage,
    has_entry: bool,
    has_expected: bool,
    heard: String,
}

/// What was asked last. Its number is that of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Bind = 1,
    Search = 2,
    Unbind = 3,
}

/// What is wrong with a message, in the words of an operator.
type Fault = &'static str;
const MALFORMED: Fault = "the answer is not LDAP";

impl LdapTalk {
    pub(super) fn begin(check: &LdapCheck, parties: &Parties<'_>, send: &mut Vec<u8>) -> LdapTalk {
        let name = check.bind.as_ref().map_or("", |bind| &bind.user);
        let password: &[u8] = if check.bind.is_some() { &parties.secrets.secret } else { &[] };
        let bind = [element(INTEGER, &[3]), element(OCTETS, name.as_bytes()), element(SIMPLE, password)].concat();
        send.extend(message(Stage::Bind, BIND_REQUEST, &bind));
        LdapTalk {
            check: check.clone(),
            received: Vec::new(),
            stage: Stage::Bind,
            has_entry: false,
            has_expected: false,
            heard: String::new(),
        }
    }

    pub(super) fn received(&mut self, bytes: &[u8], send: &mut Vec<u8>) -> Course {
        self.received.extend_from_slice(bytes);
        loop {
            // Of something else, what follows is no length, and might never come.
            if self.received.first().is_some_and(|&tag| tag != SEQUENCE) {
                return Course::Failed(MALFORMED.to_owned());
            }
            let message = match first_element(&self.received) {
                Ok(Some((SEQUENCE, message, length))) => {
                    let message = message.to_vec();
                    self.received.drain(..length);
                    message
                }
                Ok(None) if self.received.len() < MESSAGE_OCTETS_MAX => return Course::More,
                Ok(None) => return Course::Failed(format!("a message of more than {MESSAGE_OCTETS_MAX} octets")),
                Ok(Some(_)) => return Course::Failed(MALFORMED.to_owned()),
                Err(fault) => return Course::Failed(fault.to_owned()),
            };
            match self.judge(&message, send) {
                Ok(Course::More) => {}
                Ok(course) => return course,
                Err(fault) => return Course::Failed(fault.to_owned()),
            }
        }
    }

    fn judge(&mut self, message: &[u8], send: &mut Vec<u8>) -> Result<Course, Fault> {
        let mut reader = Reader(message);
        let id = reader.take(INTEGER)?;
        let (operation, content) = reader.next()?;
        if operation == EXTENDED_RESPONSE {
            // RFC 4511 section 4.4.1: nothing else comes unasked.
            let (code, text) = result(content)?;
            return Ok(Course::Failed(format!("ends the session: {}", described(code, &text))));
        }
        if id != [self.stage as u8] {
            return Err("answers another request");
        }
        match (self.stage, operation) {
            (Stage::Bind, BIND_RESPONSE) => {
                let (code, text) = result(content)?;
                if code != 0 {
                    return Ok(Course::Failed(format!("refuses the bind: {}", described(code, &text))));
                }
                self.heard = "bound".to_owned();
                self.stage = Stage::Search;
                send.extend(search());
                Ok(Course::More)
            }
            (Stage::Search, SEARCH_ENTRY) => {
                self.has_entry = true;
                self.read_entry(content)?;
                Ok(Course::More)
            }
            (Stage::Search, SEARCH_REFERENCE) => Ok(Course::More),
            (Stage::Search, SEARCH_DONE) => {
                let (code, text) = result(content)?;
                self.stage = Stage::Unbind;
                send.extend(self::message(Stage::Unbind, UNBIND_REQUEST, &[]));
                Ok(match &self.check.expect {
                    _ if code != 0 => {
                        Course::Failed(format!("refuses the search of the root DSE: {}", described(code, &text)))
                    }
                    _ if !self.has_entry => Course::Failed("does not show its root DSE".to_owned()),
                    Some(expect) if !self.has_expected => {
                        Course::Failed(format!("\"{expect}\" is not in the root DSE"))
                    }
                    _ => {
                        self.heard = "root DSE".to_owned();
                        Course::Passed
                    }
                })
            }
            _ => Err(MALFORMED),
        }
    }

    /// RFC 4511 section 4.5.2; each value is a line as LDIF has it.
    fn read_entry(&mut self, content: &[u8]) -> Result<(), Fault> {
        let mut entry = Reader(content);
        entry.take(OCTETS)?;
        let mut attributes = Reader(entry.take(SEQUENCE)?);
        let Some(expect) = &self.check.expect else { return Ok(()) };
        while !attributes.0.is_empty() {
            let mut attribute = Reader(attributes.take(SEQUENCE)?);
            let name = String::from_utf8_lossy(attribute.take(OCTETS)?).into_owned();
            let mut values = Reader(attribute.next()?.1);
            while !values.0.is_empty() {
                let value = values.take(OCTETS)?;
                self.has_expected |= format!("{name}: {}", String::from_utf8_lossy(value)).contains(expect);
            }
        }
        Ok(())
    }

    pub(super) fn waits_for(&self) -> &'static str {
        match self.stage {
            Stage::Bind => "answer to the bind",
            Stage::Search | Stage::Unbind => "answer to the search of the root DSE",
        }
    }

    pub(super) fn heard(&mut self) -> String {
        std::mem::take(&mut self.heard)
    }
}

/// All of the root DSE: what users may see and, by RFC 3673, what is operational.
fn search() -> Vec<u8> {
    let nobody = element(OCTETS, b"");
    let base_object = element(ENUMERATED, &[0]);
    let never_dereferenced = element(ENUMERATED, &[0]);
    let unlimited = element(INTEGER, &[0]);
    let with_values = element(0x01, &[0]);
    let filter = element(PRESENT, b"objectClass");
    let attributes = element(SEQUENCE, &[element(OCTETS, b"*"), element(OCTETS, b"+")].concat());
    let request =
        [nobody, base_object, never_dereferenced, unlimited.clone(), unlimited, with_values, filter, attributes];
    message(Stage::Search, SEARCH_REQUEST, &request.concat())
}

fn message(stage: Stage, operation: u8, content: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[element(INTEGER, &[stage as u8]), element(operation, content)].concat())
}

/// Tag, length, content.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut element = vec![tag];
    match content.len() {
        length @ 0..=0x7f => element.push(length as u8),
        length @ 0x80..=0xff => element.extend_from_slice(&[0x81, length as u8]),
        length => {
            // A name or password of the file has at most some thousand octets.
            element.push(0x82);
            element.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    element.extend_from_slice(content);
    element
}

/// Tag, content and whole length.
type Element<'a> = (u8, &'a [u8], usize);

/// The first element; `None`: more is needed.
fn first_element(bytes: &[u8]) -> Result<Option<Element<'_>>, Fault> {
    let [tag, length, rest @ ..] = bytes else { return Ok(None) };
    let (length, octets) = match length {
        0..=0x7f => (usize::from(*length), 0),
        // Definite, and of no more octets than any limit needs.
        0x81..=0x84 => {
            let octets = usize::from(length & 0x7f);
            let Some(written) = rest.get(..octets) else { return Ok(None) };
            (written.iter().fold(0, |length, &octet| length << 8 | usize::from(octet)), octets)
        }
        _ => return Err(MALFORMED),
    };
    if length > MESSAGE_OCTETS_MAX {
        return Err("a message of more than 262144 octets");
    }
    let whole = 2 + octets + length;
    Ok(bytes.get(2 + octets..whole).map(|content| (*tag, content, whole)))
}

/// Elements in a row. Each step takes two octets at least.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn next(&mut self) -> Result<(u8, &'b [u8]), Fault> {
        let (tag, content, length) = first_element(self.0)?.ok_or(MALFORMED)?;
        self.0 = &self.0[length..];
        Ok((tag, content))
    }

    fn take(&mut self, wanted: u8) -> Result<&'b [u8], Fault> {
        let (tag, content) = self.next()?;
        if tag == wanted { Ok(content) } else { Err(MALFORMED) }
    }
}

/// Code and diagnostic message of a result (RFC 4511 section 4.1.9).
fn result(content: &[u8]) -> Result<(u32, String), Fault> {
    let mut reader = Reader(content);
    let code = reader.take(ENUMERATED)?;
    if code.is_empty() || code.len() > 4 {
        return Err(MALFORMED);
    }
    reader.take(OCTETS)?;
    let text = reader.take(OCTETS)?;
    Ok((code.iter().fold(0, |code, &octet| code << 8 | u32::from(octet)), shown(text)))
}

/// RFC 4511 section 4.1.9, as far as servers answer so to a bind or a search of the root DSE.
fn described(code: u32, text: &str) -> String {
    let name = match code {
        1 => "operationsError",
        2 => "protocolError",
        3 => "timeLimitExceeded",
        7 => "authMethodNotSupported",
        8 => "strongerAuthRequired",
        11 => "adminLimitExceeded",
        13 => "confidentialityRequired",
        32 => "noSuchObject",
        34 => "invalidDNSyntax",
        48 => "inappropriateAuthentication",
        49 => "invalidCredentials",
        50 => "insufficientAccessRights",
        51 => "busy",
        52 => "unavailable",
        53 => "unwillingToPerform",
        _ => "",
    };
    let name = if name.is_empty() { format!("result {code}") } else { name.to_owned() };
    if text.is_empty() { name } else { format!("{name} \"{text}\"") }
}
