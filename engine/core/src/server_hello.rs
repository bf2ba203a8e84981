//! What a real server says first where TLS passes through: the session that it hands out, so that its client finds it again.

use crate::client_hello::{SUPPORTED_VERSIONS, SessionId, Stop, Stream, TLS_1_3};

/// Bytes of a stream in which a ServerHello must end, headers of records included: it carries a random, a session id, and answers to extensions, no keys
/// but one of TLS 1.3.
pub const SERVER_HELLO_BYTES_MAX: usize = 4 * 1024;

// RFC 8446 §4.
const SERVER_HELLO: u8 = 2;

/// What the first bytes of a server are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerPeek {
    /// Not a ServerHello (an alert, say), damaged, or too long.
    Foreign,
    /// A whole ServerHello: the session of TLS up to 1.2, if the server has one. TLS 1.3 only says back what the client said.
    Hello(Option<SessionId>),
    /// As far as they go, the beginning of a ServerHello.
    Incomplete,
}

/// Judges the first `bytes` of a server's stream, from its very beginning; asked again when there are more.
pub fn peek(bytes: &[u8]) -> ServerPeek {
    let within = bytes.get(..SERVER_HELLO_BYTES_MAX).unwrap_or(bytes);
    match hello(&mut Stream::new(within)) {
        Ok(session) => ServerPeek::Hello(session),
        Err(Stop::Odd) => ServerPeek::Foreign,
        Err(Stop::Short) if bytes.len() >= SERVER_HELLO_BYTES_MAX => ServerPeek::Foreign,
        Err(Stop::Short) => ServerPeek::Incomplete,
    }
}

/// RFC 5246 §7.4.1.3, RFC 8446 §4.1.3.
fn hello(stream: &mut Stream<'_>) -> Result<Option<SessionId>, Stop> {
    if stream.u8()? != SERVER_HELLO {
        return Err(Stop::Odd);
    }
    let length = usize::from(stream.u8()?) << 16 | usize::from(stream.u16()?);
    if length > SERVER_HELLO_BYTES_MAX {
        return Err(Stop::Odd);
    }
    stream.hello_left = length;
    if stream.u8()? != 3 {
        return Err(Stop::Odd);
    }
    stream.skip(1 + 32)?;
    let session = stream.session_id()?;
    // The suite and the compression.
    stream.skip(2 + 1)?;
    let mut is_tls_1_3 = false;
    if stream.hello_left > 0 {
        let mut left = usize::from(stream.u16()?);
        if left != stream.hello_left {
            return Err(Stop::Odd);
        }
        while left > 0 {
            left = left.checked_sub(2).ok_or(Stop::Odd)?;
            let kind = stream.u16()?;
            let length = stream.length_within(&mut left)?;
            if kind == SUPPORTED_VERSIONS && length == 2 {
                is_tls_1_3 |= stream.u16()? == TLS_1_3;
            } else {
                stream.skip(length)?;
            }
        }
    }
    Ok(session.filter(|_| !is_tls_1_3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ServerHello in records of so many bytes.
    fn stream(session: &[u8], extensions: Option<&[u8]>, record: usize) -> Vec<u8> {
        let mut body = [&[3, 3][..], &[7; 32], &[session.len() as u8], session, &[0xc0, 0x2f, 0]].concat();
        if let Some(extensions) = extensions {
            body.extend((extensions.len() as u16).to_be_bytes());
            body.extend(extensions);
        }
        let message = [&[2, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
        let framed = |part: &[u8]| [&[22, 3, 3][..], &(part.len() as u16).to_be_bytes(), part].concat();
        message.chunks(record).flat_map(framed).collect()
    }

    fn told(bytes: &[u8]) -> Option<Vec<u8>> {
        match peek(bytes) {
            ServerPeek::Hello(session) => session.map(|id| id.as_bytes().to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_session_that_is_handed_out_is_told_but_not_the_echo_of_tls_1_3() {
        let renegotiation = [0xff, 1, 0, 1, 0];
        let version = [0, 43, 0, 2, 3, 4];
        assert_eq!(told(&stream(&[9; 32], None, 4096)), Some(vec![9; 32]));
        assert_eq!(told(&stream(b"id", Some(&renegotiation), 4096)), Some(b"id".to_vec()));
        assert_eq!(told(&stream(b"", Some(&renegotiation), 4096)), None);
        assert_eq!(told(&stream(&[9; 32], Some(&version), 4096)), None);
        // With what follows, and in pieces.
        let mut more = stream(b"id", Some(&[]), 10);
        more.extend([22, 3, 3, 0, 4, 14, 0, 0, 0]);
        assert_eq!(told(&more), Some(b"id".to_vec()));
    }

    #[test]
    fn what_is_no_server_hello_is_told_at_once() {
        let rows: [&[u8]; 6] = [
            b"220 mail.example.org ESMTP\r\n",
            // An alert, a ClientHello, a message that is too long, an empty record.
            &[21, 3, 3, 0, 2, 2, 40],
            &[22, 3, 3, 0, 4, 1, 0, 0, 0],
            &[22, 3, 3, 0, 4, 2, 1, 0, 0],
            &[22, 3, 3, 0, 0],
            &stream(&[9; 33], None, 4096),
        ];
        for bytes in rows {
            assert_eq!(peek(bytes), ServerPeek::Foreign, "{bytes:?}");
        }
        let long = stream(b"id", Some(&[0, 16, 0x10, 0].iter().copied().chain([0; 4096]).collect::<Vec<_>>()), 200);
        assert_eq!(peek(&long), ServerPeek::Foreign);
    }

    #[test]
    fn every_beginning_of_one_is_incomplete() {
        let whole = stream(&[9; 32], Some(&[0xff, 1, 0, 1, 0]), 20);
        for end in 0..whole.len() {
            assert_eq!(peek(&whole[..end]), ServerPeek::Incomplete, "{end}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// More bytes never change what was told.
        #[test]
        fn what_was_told_stays(bytes in prop::collection::vec(prop_oneof![0u8..4, Just(22), any::<u8>()], 0..200), cut in 0usize..200) {
            let before = peek(&bytes[..cut.min(bytes.len())]);
            if before != ServerPeek::Incomplete {
                prop_assert_eq!(peek(&bytes), before);
            }
        }
    }
}
