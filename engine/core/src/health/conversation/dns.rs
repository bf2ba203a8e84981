//! A DNS query and its answer (RFC 1035 section 4), over UDP or TCP.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use towpath_config::model::{CheckTransport, DnsCheck, DnsType};

use super::{Course, Parties, shown};
use crate::random::SplitMix64;

/// RFC 1035 section 2.3.4.
const NAME_OCTETS_MAX: usize = 255;
const LABEL_OCTETS_MAX: usize = 63;
/// Labels of a name of 255 octets; a pointer for each of them is the most that makes sense.
const JUMPS_MAX: u32 = 127;
const HEADER_OCTETS: usize = 12;
const CLASS_INTERNET: u16 = 1;
/// What stands in the upper half of a label's length where the rest of the name is elsewhere.
const POINTER: u8 = 0xc0;
/// Flags of the header's third octet.
const IS_ANSWER: u8 = 0x80;
const OPCODE: u8 = 0x78;
const IS_CUT: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const NO_ERROR: u8 = 0;

/// One query.
#[derive(Debug)]
pub(super) struct DnsTalk {
    check: DnsCheck,
    id: u16,
    name: Vec<u8>,
    /// Over TCP, what came of the answer: its length (RFC 1035 section 4.2.2) and the message.
    received: Vec<u8>,
    heard: String,
}

/// What is wrong with a message, in the words of an operator.
type Fault = &'static str;
const CUT: Fault = "the answer ends amid a record";

impl DnsTalk {
    pub(super) fn begin(check: &DnsCheck, parties: &Parties<'_>, send: &mut Vec<u8>) -> (DnsTalk, Course) {
        let id = SplitMix64::new(parties.seed).next_u64() as u16;
        let name = encode_name(&check.query);
        let mut talk =
            DnsTalk { check: check.clone(), id, name: Vec::new(), received: Vec::new(), heard: String::new() };
        let Some(name) = name else {
            return (talk, Course::Failed(format!("\"{}\" is no name that can be asked for", check.query)));
        };
        if check.transport == CheckTransport::Tcp {
            let length = HEADER_OCTETS + name.len() + 4;
            send.extend_from_slice(&(length as u16).to_be_bytes());
        }
        send.extend_from_slice(&id.to_be_bytes());
        send.extend_from_slice(&[RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        send.extend_from_slice(&name);
        send.extend_from_slice(&number(check.record).to_be_bytes());
        send.extend_from_slice(&CLASS_INTERNET.to_be_bytes());
        talk.name = name;
        (talk, Course::More)
    }

    pub(super) fn received(&mut self, bytes: &[u8]) -> Course {
        if self.check.transport != CheckTransport::Tcp {
            // Somebody else's, or the answer to an earlier query.
            return self.judge(bytes).unwrap_or(Course::More);
        }
        self.received.extend_from_slice(bytes);
        let Some((length, message)) = self.received.split_first_chunk() else { return Course::More };
        let Some(message) = message.get(..usize::from(u16::from_be_bytes(*length))) else { return Course::More };
        let message = message.to_vec();
        self.judge(&message).unwrap_or_else(|| Course::Failed("answers another query".to_owned()))
    }

    pub(super) fn has_begun(&self) -> bool {
        !self.received.is_empty()
    }

    pub(super) fn heard(&mut self) -> String {
        std::mem::take(&mut self.heard)
    }

    /// `None`: it is no answer to the query.
    fn judge(&mut self, message: &[u8]) -> Option<Course> {
        if message.get(..2) != Some(&self.id.to_be_bytes()) || message.get(2)? & (IS_ANSWER | OPCODE) != IS_ANSWER {
            return None;
        }
        let answer = match read(message, &self.name, number(self.check.record)) {
            Ok(answer) => answer,
            Err(fault) => return Some(Course::Failed(fault.to_owned())),
        };
        let rcode = rcode_name(answer.rcode);
        self.heard = format!("{rcode}, {} records", answer.records.len());
        if !self.check.rcodes.contains(&answer.rcode) {
            let wanted: Vec<String> = self.check.rcodes.iter().map(|&rcode| rcode_name(rcode)).collect();
            return Some(Course::Failed(format!("answers {rcode}, expected {}", wanted.join(","))));
        }
        if answer.rcode != NO_ERROR {
            return Some(Course::Passed);
        }
        Some(match &self.check.expect {
            // An alias whose target the resolver does not find is no record of the type.
            None if !answer.has_wanted && !answer.is_cut => {
                Course::Failed(format!("has no {} record of \"{}\"", word(self.check.record), self.check.query))
            }
            None => Course::Passed,
            Some(expect) if answer.records.iter().any(|record| is_same(record, expect)) => Course::Passed,
            Some(expect) if answer.is_cut => {
                Course::Failed(format!("\"{expect}\" is not in the part of the answer that fits a datagram"))
            }
            Some(expect) => {
                let records = answer
                    .records
                    .first()
                    .map_or_else(|| "nothing".to_owned(), |first| format!("\"{}\"", shown(first.as_bytes())));
                Course::Failed(format!("answers {records}, expected \"{expect}\""))
            }
        })
    }
}

/// As names and addresses are compared: in whatever case, with or without the dot of the root.
fn is_same(record: &str, expect: &str) -> bool {
    let bare = |text: &str| text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    bare(record) == bare(expect)
}

/// RFC 1035 section 3.2.2, RFC 3596, RFC 2782.
fn number(record: DnsType) -> u16 {
    match record {
        DnsType::A => 1,
        DnsType::Aaaa => 28,
        DnsType::Cname => 5,
        DnsType::Mx => 15,
        DnsType::Ns => 2,
        DnsType::Ptr => 12,
        DnsType::Soa => 6,
        DnsType::Srv => 33,
        DnsType::Txt => 16,
    }
}

fn word(record: DnsType) -> &'static str {
    match record {
        DnsType::A => "A",
        DnsType::Aaaa => "AAAA",
        DnsType::Cname => "CNAME",
        DnsType::Mx => "MX",
        DnsType::Ns => "NS",
        DnsType::Ptr => "PTR",
        DnsType::Soa => "SOA",
        DnsType::Srv => "SRV",
        DnsType::Txt => "TXT",
    }
}

fn rcode_name(rcode: u8) -> String {
    let known = towpath_config::model::RCODES.iter().find(|(_, code)| *code == rcode);
    known.map_or_else(|| format!("RCODE{rcode}"), |(name, _)| name.to_ascii_uppercase())
}

/// The labels of a name; `None` where it has an empty or long one.
fn encode_name(text: &str) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(text.len() + 2);
    let bare = text.strip_suffix('.').unwrap_or(text);
    if !bare.is_empty() {
        for label in bare.split('.') {
            if label.is_empty() || label.len() > LABEL_OCTETS_MAX {
                return None;
            }
            name.push(label.len() as u8);
            name.extend_from_slice(label.as_bytes());
        }
    }
    name.push(0);
    (name.len() <= NAME_OCTETS_MAX).then_some(name)
}

/// What an answer says.
struct Answer {
    rcode: u8,
    /// There is more than fits.
    is_cut: bool,
    /// Whether one of them is of the type that was asked for.
    has_wanted: bool,
    /// The data of each record of the answer section, as a zone file has it.
    records: Vec<String>,
}

fn read(message: &[u8], name: &[u8], record: u16) -> Result<Answer, Fault> {
    let mut reader = Reader { message, at: 0 };
    let header: &[u8; HEADER_OCTETS] = message.first_chunk().ok_or("the answer is shorter than a header")?;
    reader.at = HEADER_OCTETS;
    let (is_cut, rcode) = (header[2] & IS_CUT != 0, header[3] & 0x0f);
    let questions = u16::from_be_bytes([header[4], header[5]]);
    let answers = u16::from_be_bytes([header[6], header[7]]);
    // One that could not or would not read the question need not repeat it.
    if questions != 1 && (rcode == NO_ERROR || questions != 0) {
        return Err("the answer does not repeat the question");
    }
    if questions == 1 {
        let asked = reader.name()?;
        let is_asked = asked.eq_ignore_ascii_case(name) && reader.u16()? == record && reader.u16()? == CLASS_INTERNET;
        if !is_asked {
            return Err("the answer repeats another question");
        }
    }
    let (mut has_wanted, mut records) = (false, Vec::new());
    for _ in 0..answers {
        match reader.record() {
            Ok((kind, text)) => {
                has_wanted |= kind == record;
                records.push(text);
            }
            // What does not fit a datagram may be left out amid a record by old servers.
            Err(_) if is_cut => break,
            Err(fault) => return Err(fault),
        }
    }
    Ok(Answer { rcode, is_cut, has_wanted, records })
}

/// Where a message is read. Every step takes at least one octet of at most 65,535.
struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    fn take(&mut self, length: usize) -> Result<&'m [u8], Fault> {
        let taken = self.message.get(self.at..).and_then(|rest| rest.get(..length)).ok_or(CUT)?;
        self.at += length;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        let octets = self.take(2)?;
        Ok(u16::from_be_bytes([octets[0], octets[1]]))
    }

    /// A name in full. Pointers lead backwards only, so that there is an end (RFC 1035 section 4.1.4: to a prior occurrence), and soon: an answer
    /// may have thousands of names that share one long chain.
    fn name(&mut self) -> Result<Vec<u8>, Fault> {
        let mut name = Vec::new();
        let (mut at, mut floor, mut behind, mut jumps) = (self.at, self.at, None, 0);
        loop {
            let length = *self.message.get(at).ok_or(CUT)?;
            if length & POINTER == POINTER {
                let low = *self.message.get(at + 1).ok_or(CUT)?;
                behind.get_or_insert(at + 2);
                let to = usize::from(u16::from_be_bytes([length & !POINTER, low]));
                jumps += 1;
                if to >= floor || jumps > JUMPS_MAX {
                    return Err("a name of the answer leads in a circle");
                }
                (at, floor) = (to, to);
                continue;
            }
            if length & POINTER != 0 {
                return Err("the answer has a label of no known kind");
            }
            let label = self.message.get(at..=at + usize::from(length)).ok_or(CUT)?;
            name.extend_from_slice(label);
            if name.len() > NAME_OCTETS_MAX {
                return Err("the answer has a name of more than 255 octets");
            }
            at += label.len();
            if length == 0 {
                self.at = behind.unwrap_or(at);
                return Ok(name);
            }
        }
    }

    /// Type and data of one resource record (RFC 1035 section 4.1.3).
    fn record(&mut self) -> Result<(u16, String), Fault> {
        self.name()?;
        let kind = self.u16()?;
        self.take(6)?;
        let length = usize::from(self.u16()?);
        let end = self.at + length;
        let data = self.message.get(self.at..end).ok_or(CUT)?;
        let text = self.data(kind, data);
        // Records follow each other by their lengths, whatever a name in one of them says.
        self.at = end;
        Ok((kind, text?))
    }

    fn data(&mut self, kind: u16, data: &[u8]) -> Result<String, Fault> {
        const SHORT: Fault = "a record of the answer has data of no such length";
        Ok(match kind {
            1 => Ipv4Addr::from(*data.first_chunk::<4>().ok_or(SHORT)?).to_string(),
            28 => Ipv6Addr::from(*data.first_chunk::<16>().ok_or(SHORT)?).to_string(),
            2 | 5 | 12 => text(&self.name()?),
            15 => format!("{} {}", self.u16()?, text(&self.name()?)),
            33 => format!("{} {} {} {}", self.u16()?, self.u16()?, self.u16()?, text(&self.name()?)),
            6 => format!("{} {}", text(&self.name()?), text(&self.name()?)),
            16 => {
                let (mut rest, mut all) = (data, Vec::new());
                while let Some((&length, strings)) = rest.split_first() {
                    let (string, behind) = strings.split_at_checked(length.into()).ok_or(SHORT)?;
                    all.extend_from_slice(string);
                    rest = behind;
                }
                String::from_utf8_lossy(&all).into_owned()
            }
            // RFC 3597 section 5.
            _ => format!("\\# {}", data.len()),
        })
    }
}

/// A name as a zone file has it, without the last dot (RFC 1035 section 5.1).
fn text(name: &[u8]) -> String {
    let (mut rest, mut text) = (name, String::new());
    while let Some((&length, labels)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, behind) = labels.split_at_checked(length.into()).unwrap_or((labels, &[]));
        if !text.is_empty() {
            text.push('.');
        }
        for &octet in label {
            match octet {
                b'.' | b'\\' => text.extend(['\\', char::from(octet)]),
                0x21..=0x7e => text.push(char::from(octet)),
                _ => write!(text, "\\{octet:03}").expect("a String takes all"),
            }
        }
        rest = behind;
    }
    if text.is_empty() { ".".to_owned() } else { text }
}
