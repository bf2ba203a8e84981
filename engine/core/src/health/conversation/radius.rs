//! A RADIUS request and its answer: Status-Server (RFC 5997) or Access-Request (RFC 2865), both with a Message-Authenticator (RFC 3579 section 3.2),
//! which comes first as the draft against Blast-RADIUS has it (draft-ietf-radext-deprecating-radius).

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use towpath_config::model::{MessageAuthenticator, RadiusAnswer, RadiusCheck};

use super::{Course, Parties, Secrets, shown};
use crate::random::SplitMix64;

const HEADER_OCTETS: usize = 20;
/// RFC 2865 section 3.
const PACKET_OCTETS_MAX: usize = 4096;
/// RFC 2865 section 5.2.
const PASSWORD_OCTETS_MAX: usize = 128;
/// Value of an attribute, RFC 2865 section 5.
const VALUE_OCTETS_MAX: usize = 253;
const BLOCK: usize = 16;

const ACCESS_REQUEST: u8 = 1;
const ACCESS_ACCEPT: u8 = 2;
const ACCESS_REJECT: u8 = 3;
const ACCOUNTING_RESPONSE: u8 = 5;
const ACCESS_CHALLENGE: u8 = 11;
const STATUS_SERVER: u8 = 12;

const USER_NAME: u8 = 1;
const USER_PASSWORD: u8 = 2;
const REPLY_MESSAGE: u8 = 18;
const NAS_IDENTIFIER: u8 = 32;
const MESSAGE_AUTHENTICATOR: u8 = 80;

/// One request.
#[derive(Debug)]
pub(super) struct RadiusTalk {
    check: RadiusCheck,
    secrets: Secrets,
    id: u8,
    authenticator: [u8; BLOCK],
    /// Of the last answer that was passed over: what it would have had to be.
    unproven: Option<&'static str>,
    heard: String,
}

/// The secret does not prove the answer.
const UNFIT: &str = "answer whose authenticator fits our secret";
/// The secret proves it only by MD5, which who stands between can forge (CVE-2024-3596, Blast-RADIUS).
const UNSIGNED: &str = "answer with a Message-Authenticator (it came without; `health.message_authenticator`)";

impl RadiusTalk {
    pub(super) fn begin(check: &RadiusCheck, parties: &Parties<'_>, send: &mut Vec<u8>) -> (RadiusTalk, Course) {
        let mut random = SplitMix64::new(parties.seed);
        let id = random.next_u64() as u8;
        let mut authenticator = [0; BLOCK];
        authenticator.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.next_u64().to_be_bytes()));
        let secrets = parties.secrets.clone();
        let talk =
            RadiusTalk { check: check.clone(), secrets, id, authenticator, unproven: None, heard: String::new() };
        match talk.request() {
            Ok(request) => send.extend_from_slice(&request),
            Err(reason) => return (talk, Course::Failed(reason.to_owned())),
        }
        (talk, Course::More)
    }

    fn request(&self) -> Result<Vec<u8>, &'static str> {
        let code = if self.check.user.is_some() { ACCESS_REQUEST } else { STATUS_SERVER };
        let mut packet = vec![code, self.id, 0, 0];
        packet.extend_from_slice(&self.authenticator);
        let proof = packet.len() + 2;
        attribute(&mut packet, MESSAGE_AUTHENTICATOR, &[0; BLOCK]);
        // One of them names who asks (RFC 2865 section 4.1), and it knows its clients by their address.
        attribute(&mut packet, NAS_IDENTIFIER, b"towpath");
        if let Some(user) = &self.check.user {
            if user.len() > VALUE_OCTETS_MAX {
                return Err("health.user is longer than 253 octets");
            }
            if self.secrets.password.len() > PASSWORD_OCTETS_MAX {
                return Err("the password is longer than 128 octets");
            }
            attribute(&mut packet, USER_NAME, user.as_bytes());
            attribute(&mut packet, USER_PASSWORD, &self.hidden_password());
        }
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        let authenticator = self.proof(&packet);
        packet[proof..proof + BLOCK].copy_from_slice(&authenticator);
        Ok(packet)
    }

    /// RFC 2865 section 5.2.
    fn hidden_password(&self) -> Vec<u8> {
        let mut password = self.secrets.password.clone();
        password.resize(password.len().next_multiple_of(BLOCK).max(BLOCK), 0);
        let mut before = self.authenticator;
        for block in password.chunks_mut(BLOCK) {
            let mask = Md5::new().chain_update(&self.secrets.secret).chain_update(before).finalize();
            block.iter_mut().zip(mask).for_each(|(octet, mask)| *octet ^= mask);
            before.copy_from_slice(block);
        }
        password
    }

    /// The Message-Authenticator of a packet that has zeros in its place.
    fn proof(&self, packet: &[u8]) -> [u8; BLOCK] {
        let mut mac = Hmac::<Md5>::new_from_slice(&self.secrets.secret).expect("keys of HMAC have any length");
        mac.update(packet);
        mac.finalize().into_bytes().into()
    }

    pub(super) fn received(&mut self, datagram: &[u8]) -> Course {
        // RFC 2865 section 3: silently discarded. Whoever guesses our port has to guess this as well.
        if datagram.get(1) != Some(&self.id) {
            return Course::More;
        }
        let Some((header, _)) = datagram.split_first_chunk::<HEADER_OCTETS>() else {
            return Course::Failed("answers with less than the header of RADIUS".to_owned());
        };
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // What comes behind it is padding (RFC 2865 section 3).
        let Some(packet) = datagram.get(..length).filter(|_| (HEADER_OCTETS..=PACKET_OCTETS_MAX).contains(&length))
        else {
            return Course::Failed("the answer is not as long as it says".to_owned());
        };
        match self.judge(packet, header[0]) {
            // RFC 2865 section 3: silently discarded, it may be anybody's.
            Err(unproven) => {
                self.unproven = Some(unproven);
                Course::More
            }
            Ok(course) => course,
        }
    }

    /// The error: whoever sent it may not know the secret.
    fn judge(&mut self, packet: &[u8], code: u8) -> Result<Course, &'static str> {
        let mut asked = packet.to_vec();
        asked[4..HEADER_OCTETS].copy_from_slice(&self.authenticator);
        let digest = Md5::new().chain_update(&asked).chain_update(&self.secrets.secret).finalize();
        if packet[4..HEADER_OCTETS] != digest[..] {
            return Err(UNFIT);
        }
        let mut message = String::new();
        let mut is_signed = false;
        let mut at = HEADER_OCTETS;
        while let Some(&kind) = packet.get(at) {
            let value = packet.get(at + 1).and_then(|&length| packet.get(at + 2..at + usize::from(length)));
            let Some(value) = value else {
                return Ok(Course::Failed("the answer ends amid an attribute".to_owned()));
            };
            if kind == MESSAGE_AUTHENTICATOR {
                let Some(proof) = asked.get_mut(at + 2..at + 2 + BLOCK).filter(|_| value.len() == BLOCK) else {
                    return Ok(Course::Failed("the answer's Message-Authenticator has no such length".to_owned()));
                };
                proof.fill(0);
                if value != self.proof(&asked) {
                    return Err(UNFIT);
                }
                is_signed = true;
            }
            if kind == REPLY_MESSAGE && message.is_empty() {
                message = format!(" \"{}\"", shown(value));
            }
            at += 2 + value.len();
        }
        // A status lets nobody in, and its request leaves no room for somebody else's octets (RFC 5997 section 3).
        let wants_signed =
            self.check.user.is_some() && self.check.message_authenticator == MessageAuthenticator::Required;
        if wants_signed && !is_signed {
            return Err(UNSIGNED);
        }
        let name = code_name(code);
        self.heard = format!("{name}{message}");
        let wanted = match self.check.expect {
            _ if self.check.user.is_none() => matches!(code, ACCESS_ACCEPT | ACCOUNTING_RESPONSE),
            RadiusAnswer::Accept => code == ACCESS_ACCEPT,
            RadiusAnswer::Any => matches!(code, ACCESS_ACCEPT | ACCESS_REJECT | ACCESS_CHALLENGE),
            RadiusAnswer::Reject => code == ACCESS_REJECT,
        };
        Ok(if wanted { Course::Passed } else { Course::Failed(format!("answers {}", self.heard)) })
    }

    pub(super) fn waits_for(&self) -> &'static str {
        self.unproven.unwrap_or("answer")
    }

    /// A status is asked anew by the next check (RFC 5997); other requests are repeated as RFC 5080 section 2.2.1 has it.
    pub(super) fn repeats(&self) -> bool {
        self.check.user.is_some()
    }

    pub(super) fn heard(&mut self) -> String {
        std::mem::take(&mut self.heard)
    }
}

/// Appends one; `value` has at most [`VALUE_OCTETS_MAX`].
fn attribute(packet: &mut Vec<u8>, kind: u8, value: &[u8]) {
    packet.extend_from_slice(&[kind, value.len() as u8 + 2]);
    packet.extend_from_slice(value);
}

fn code_name(code: u8) -> String {
    match code {
        ACCESS_ACCEPT => "Access-Accept".to_owned(),
        ACCESS_REJECT => "Access-Reject".to_owned(),
        ACCESS_CHALLENGE => "Access-Challenge".to_owned(),
        ACCOUNTING_RESPONSE => "Accounting-Response".to_owned(),
        other => format!("code {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2865 section 7.1: nemo, "arctangent", the secret "xyzzy5461".
    #[test]
    fn a_password_is_hidden_as_in_the_example_of_the_standard() {
        let talk = RadiusTalk {
            check: RadiusCheck {
                user: Some("nemo".to_owned()),
                secret_file: "/secret".into(),
                password_file: None,
                expect: RadiusAnswer::Accept,
                message_authenticator: MessageAuthenticator::Required,
            },
            secrets: Secrets { secret: b"xyzzy5461".to_vec(), password: b"arctangent".to_vec() },
            id: 0,
            authenticator: [
                0x0f, 0x40, 0x3f, 0x94, 0x73, 0x97, 0x80, 0x57, 0xbd, 0x83, 0xd5, 0xcb, 0x98, 0xf4, 0x22, 0x7a,
            ],
            unproven: None,
            heard: String::new(),
        };
        assert_eq!(
            talk.hidden_password(),
            [0x0d, 0xbe, 0x70, 0x8d, 0x93, 0xd4, 0x13, 0xce, 0x31, 0x96, 0xe4, 0x3f, 0x78, 0x2a, 0x0a, 0xee]
        );
    }

    /// RFC 5997 section 6.1: a minimal Status-Server query and its answer, the secret "xyzzy5461".
    #[test]
    fn the_status_server_example_of_the_standard_is_read() {
        let request_authenticator =
            [0x8a, 0x54, 0xf4, 0x68, 0x6f, 0xb3, 0x94, 0xc5, 0x28, 0x66, 0xe3, 0x02, 0x18, 0x5d, 0x06, 0x23];
        let mut talk = RadiusTalk {
            check: RadiusCheck {
                user: None,
                secret_file: "/secret".into(),
                password_file: None,
                expect: RadiusAnswer::Accept,
                message_authenticator: MessageAuthenticator::Required,
            },
            secrets: Secrets { secret: b"xyzzy5461".to_vec(), password: Vec::new() },
            id: 0xda,
            authenticator: request_authenticator,
            unproven: None,
            heard: String::new(),
        };
        // The request of the example, whose Message-Authenticator is its only attribute.
        let mut request = vec![12, 0xda, 0, 0x26];
        request.extend_from_slice(&request_authenticator);
        attribute(&mut request, MESSAGE_AUTHENTICATOR, &[0; BLOCK]);
        assert_eq!(
            talk.proof(&request),
            [0x5a, 0x66, 0x5e, 0x2e, 0x1e, 0x84, 0x11, 0xf3, 0xe2, 0x43, 0x82, 0x20, 0x97, 0xc8, 0x4f, 0xa3]
        );
        let mut answer = vec![2, 0xda, 0, 0x14];
        answer.extend_from_slice(&[
            0xef, 0x0d, 0x55, 0x2a, 0x4b, 0xf2, 0xd6, 0x93, 0xec, 0x2b, 0x6f, 0xe8, 0xb5, 0x41, 0x1d, 0x66,
        ]);
        assert_eq!(talk.received(&answer), Course::Passed);
        assert_eq!(talk.heard(), "Access-Accept");
        answer[0] = 3;
        assert_eq!(
            (talk.received(&answer), talk.waits_for()),
            (Course::More, "answer whose authenticator fits our secret")
        );
    }
    /// An answer to the request of `talk` with these attributes; a Message-Authenticator among them is filled in.
    fn answer_of(talk: &RadiusTalk, code: u8, attributes: &[(u8, &[u8])]) -> Vec<u8> {
        let mut packet = vec![code, talk.id, 0, 0];
        packet.extend_from_slice(&talk.authenticator);
        let mut proof = None;
        for (kind, value) in attributes {
            proof = proof.or((*kind == MESSAGE_AUTHENTICATOR).then_some(packet.len() + 2));
            attribute(&mut packet, *kind, value);
        }
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        if let Some(at) = proof {
            let signed = talk.proof(&packet);
            packet[at..at + BLOCK].copy_from_slice(&signed);
        }
        let digest = Md5::new().chain_update(&packet).chain_update(&talk.secrets.secret).finalize();
        packet[4..HEADER_OCTETS].copy_from_slice(&digest);
        packet
    }

    #[test]
    fn without_a_message_authenticator_nobody_is_let_in_unless_the_operator_says_so() {
        let mut talk = RadiusTalk {
            check: RadiusCheck {
                user: Some("probe".to_owned()),
                secret_file: "/secret".into(),
                password_file: Some("/password".into()),
                expect: RadiusAnswer::Accept,
                message_authenticator: MessageAuthenticator::Required,
            },
            secrets: Secrets { secret: b"xyzzy5461".to_vec(), password: b"arctangent".to_vec() },
            id: 7,
            authenticator: [3; BLOCK],
            unproven: None,
            heard: String::new(),
        };
        let bare = answer_of(&talk, ACCESS_ACCEPT, &[(REPLY_MESSAGE, b"welcome")]);
        assert_eq!((talk.received(&bare), talk.waits_for()), (Course::More, UNSIGNED));
        let signed = answer_of(&talk, ACCESS_ACCEPT, &[(MESSAGE_AUTHENTICATOR, &[0; BLOCK])]);
        assert_eq!(talk.received(&signed), Course::Passed);
        let mut forged = signed;
        forged[HEADER_OCTETS + 2] ^= 1;
        let digest_of = |packet: &mut Vec<u8>, talk: &RadiusTalk| {
            packet[4..HEADER_OCTETS].copy_from_slice(&talk.authenticator);
            let digest = Md5::new().chain_update(&*packet).chain_update(&talk.secrets.secret).finalize();
            packet[4..HEADER_OCTETS].copy_from_slice(&digest);
        };
        digest_of(&mut forged, &talk);
        talk.check.message_authenticator = MessageAuthenticator::Optional;
        assert_eq!((talk.received(&forged), talk.waits_for()), (Course::More, UNFIT));
        assert_eq!(talk.received(&bare), Course::Passed);
    }
}
