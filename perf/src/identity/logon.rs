//! The messages of a logon as they stand in `Authorization` and `WWW-Authenticate`: those of NTLM (MS-NLMP §2.2.1), and a token in the place of
//! Kerberos'. Where NTLM proves the password with MD4 and MD5 they have a proof by SHA-256, over the same: the challenge of this connection.

use aws_lc_rs::hmac;

const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";
/// NTLMSSP_NEGOTIATE_UNICODE, _NTLM, _ALWAYS_SIGN and _EXTENDED_SESSIONSECURITY.
const FLAGS: u32 = 0x0008_8201;
/// Where the payload of the third message begins.
const PAYLOAD: usize = 64;
/// What a token of Kerberos begins with (RFC 4121 §4.1): APPLICATION 0.
const KERBEROS: u8 = 0x60;
const PROOF_BYTES: usize = 16;
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A message of a client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// It wants to log on by NTLM.
    Greeting,
    /// It answers a challenge.
    Answer { user: String, proof: Vec<u8> },
    /// All at once.
    Ticket { user: String },
}

/// Proves that `user` has seen this challenge.
pub(super) fn proof(user: &str, challenge: &[u8; 8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, user.as_bytes());
    hmac::sign(&key, challenge).as_ref()[..PROOF_BYTES].to_vec()
}

/// What somebody says of himself with each request (RFC 7617 §2).
pub fn basic(user: &str) -> String {
    format!("Basic {}", encode(format!("{user}:secret").as_bytes()))
}

/// NEGOTIATE_MESSAGE.
pub fn greeting() -> String {
    let mut message = header(1);
    message.extend(FLAGS.to_le_bytes());
    message.extend([0; 16]);
    encode(&message)
}

/// CHALLENGE_MESSAGE.
pub(super) fn challenge(challenge: &[u8; 8]) -> String {
    let mut message = header(2);
    message.extend([0; 8]);
    message.extend(FLAGS.to_le_bytes());
    message.extend(challenge);
    message.extend([0; 16]);
    encode(&message)
}

/// The challenge in one.
pub(super) fn read_challenge(text: &str) -> Option<[u8; 8]> {
    let message = decode(text)?;
    let is_one = message.starts_with(SIGNATURE) && message.get(8) == Some(&2);
    message.get(24..32).filter(|_| is_one)?.try_into().ok()
}

/// AUTHENTICATE_MESSAGE.
pub(super) fn answer(user: &str, challenge: &[u8; 8]) -> String {
    let name: Vec<u8> = user.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let proof = proof(user, challenge);
    let mut message = header(3);
    let mut at = PAYLOAD;
    // LM response, NT response, domain, user, workstation, session key.
    for length in [0, proof.len(), 0, name.len(), 0, 0] {
        message.extend((length as u16).to_le_bytes());
        message.extend((length as u16).to_le_bytes());
        message.extend((at as u32).to_le_bytes());
        at += length;
    }
    message.extend(FLAGS.to_le_bytes());
    message.extend(proof);
    message.extend(name);
    encode(&message)
}

/// What stands in the place of a ticket of Kerberos.
pub(super) fn ticket(user: &str) -> String {
    let mut token = vec![KERBEROS, 0x82, 0x01, 0x00];
    token.extend(user.as_bytes());
    encode(&token)
}

/// Reads what a client has sent behind the scheme.
pub(super) fn read(text: &str) -> Option<Message> {
    let message = decode(text)?;
    if let [KERBEROS, _, _, _, user @ ..] = message.as_slice() {
        return Some(Message::Ticket { user: String::from_utf8(user.to_vec()).ok()? });
    }
    if !message.starts_with(SIGNATURE) {
        return None;
    }
    let part = |field: usize| {
        let number = |at: usize| Some(u16::from_le_bytes(message.get(at..at + 2)?.try_into().ok()?));
        let (length, start) = (usize::from(number(field)?), usize::from(number(field + 4)?));
        message.get(start..start + length)
    };
    match message.get(8)? {
        1 => Some(Message::Greeting),
        3 => {
            let name: Vec<u16> = part(36)?.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            Some(Message::Answer { user: String::from_utf16(&name).ok()?, proof: part(20)?.to_vec() })
        }
        _ => None,
    }
}

fn header(kind: u32) -> Vec<u8> {
    let mut message = SIGNATURE.to_vec();
    message.extend(kind.to_le_bytes());
    message
}

/// Base64 (RFC 4648 §4).
fn encode(bytes: &[u8]) -> String {
    let group = |chunk: &[u8]| {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let digit = |place: usize| match place <= chunk.len() {
            true => char::from(DIGITS[(bits >> (18 - 6 * place)) as usize & 63]),
            false => '=',
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | DIGITS.iter().position(|known| *known == digit)? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_in_rfc_4648() {
        for (plain, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(encode(plain.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(plain.as_bytes()));
        }
        assert_eq!(decode("Zm9%"), None);
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let nonce = *b"\x01\x02\x03\x04\x05\x06\x07\x08";
        assert!(greeting().starts_with("TlRMTVNTUAAB"), "{}", greeting());
        assert_eq!(read(&greeting()), Some(Message::Greeting));
        assert_eq!(read_challenge(&challenge(&nonce)), Some(nonce));
        assert_eq!(read_challenge(&greeting()), None);
        let proof = proof("user-7", &nonce);
        assert_eq!(read(&answer("user-7", &nonce)), Some(Message::Answer { user: "user-7".into(), proof }));
        assert!(ticket("user-7").starts_with("YIIB"));
        assert_eq!(read(&ticket("user-7")), Some(Message::Ticket { user: "user-7".into() }));
        for wrong in ["", "AAAA", "TlRMTVNTUAAD", &challenge(&nonce)] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
