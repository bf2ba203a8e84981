//! A message by POST over HTTP/1.1, with or without TLS.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use towpath_config::model::Webhook;
use towpath_tls::{
    CipherPolicy, ClientContext, ClientSettings, MinVersion, Provider, ServerVerification, load_authorities,
};

use super::Failure;
use crate::probe::{Secured, words};

/// Addresses of a name that are tried, one after the other.
const ADDRESSES_MAX: usize = 4;
/// Bytes of a response that are read before it has a status.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;
/// Longest token, in bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// What has to be there before anything is sent.
struct Ready {
    addresses: Vec<SocketAddr>,
    /// `None` = plain HTTP.
    context: Option<ClientContext>,
    token: Option<String>,
}

/// Sends `body`, and hears whether it was taken; an error in the words of an operator.
pub(super) async fn post(webhook: &Webhook, body: &[u8], limit: Duration) -> Result<(), Failure> {
    match timeout(limit, post_for_long(webhook, body, limit)).await {
        Err(_) => Err(Failure::NotNow(format!("no answer within {} ms", limit.as_millis()))),
        Ok(result) => result,
    }
}

async fn post_for_long(webhook: &Webhook, body: &[u8], limit: Duration) -> Result<(), Failure> {
    let Ready { mut addresses, context, token } = prepare(webhook).await.map_err(Failure::NotNow)?;
    let head = head(webhook, token.as_deref(), body.len());
    let mut last = format!("{} has no address", webhook.host);
    addresses.truncate(ADDRESSES_MAX);
    // A part of the time for each: the first may be one of a family that leads nowhere.
    let share = limit / u32::try_from(addresses.len()).unwrap_or(1).max(1);
    for address in addresses {
        // What has been said once is not said to another address: it may have been taken.
        match timeout(share, Secured::open(address, context.as_ref())).await {
            Err(_) => last = format!("{address}: no connection within {} ms", share.as_millis()),
            Ok(Ok(stream)) => {
                let mut stream = stream.map_err(Failure::NotNow)?;
                let said = converse(&mut stream, &head, body).await;
                stream.close().await;
                return said;
            }
            Ok(Err(error)) => last = format!("{address}: {}", words(&error)),
        }
    }
    Err(Failure::NotNow(last))
}

async fn converse(stream: &mut Secured, head: &str, body: &[u8]) -> Result<(), Failure> {
    let not_now = |reason: &str| Err(Failure::NotNow(reason.to_owned()));
    let mut sent = stream.send(head.as_bytes()).await;
    if sent.is_ok() {
        sent = stream.send(body).await;
    }
    // Who does not want to hear all of it says why.
    let (mut response, mut buffer) = (Vec::new(), vec![0; 4096]);
    loop {
        match answer(&response) {
            Answer::Status(200..300) => return Ok(()),
            // There is something in the message: it is too long, say (RFC 9110 §15.5.1, §15.5.14, §15.5.21).
            Answer::Status(status @ (400 | 413 | 422)) => return Err(Failure::Refused(format!("status {status}"))),
            Answer::Status(status) => return not_now(&format!("status {status}")),
            Answer::NotHttp => return not_now("the answer is not HTTP"),
            Answer::Incomplete if response.len() > RESPONSE_BYTES_MAX => return not_now("the answer has no end"),
            Answer::Incomplete => {}
        }
        match stream.receive(&mut buffer).await {
            Ok(0) => return not_now("closed the connection without an answer"),
            Ok(length) => response.extend_from_slice(&buffer[..length]),
            Err(error) => return not_now(&words(sent.as_ref().err().unwrap_or(&error))),
        }
    }
}

/// Everything that may block is asked for here: name servers, and file systems. Never by more than one thread, for one that is stuck stays so.
async fn prepare(webhook: &Webhook) -> Result<Ready, String> {
    static ONE: OnceLock<Arc<Semaphore>> = OnceLock::new();
    let turn = Arc::clone(ONE.get_or_init(|| Arc::new(Semaphore::new(1)))).acquire_owned().await;
    let webhook = webhook.clone();
    let prepared = spawn_blocking(move || {
        let _turn = turn;
        let addresses = (webhook.host.as_str(), webhook.port)
            .to_socket_addrs()
            .map_err(|error| format!("{} has no address: {}", webhook.host, words(&error)))?;
        Ok(Ready { addresses: addresses.collect(), context: context(&webhook)?, token: token(&webhook)? })
    });
    prepared.await.unwrap_or_else(|_| Err("it could not be prepared".to_owned()))
}

/// What the handshake is made with; `None` = plain HTTP.
pub(super) fn context(webhook: &Webhook) -> Result<Option<ClientContext>, String> {
    let Some(authorities) = &webhook.authorities else { return Ok(None) };
    let authorities = load_authorities(authorities).map_err(|error| format!("notify.webhook_ca: {error}"))?;
    let is_address = webhook.host.parse::<IpAddr>().is_ok();
    let settings = ClientSettings {
        provider: Provider::default(),
        min_version: MinVersion::Tls12,
        ciphers: CipherPolicy::Intermediate,
        post_quantum: false,
        verification: ServerVerification::Authorities(authorities),
        server_name: (!is_address).then(|| webhook.host.clone()),
        identity: None,
        // Messages are too rare for that.
        sessions_max: 0,
    };
    ClientContext::new(&settings, None).map(Some).map_err(|error| format!("notify.webhook_ca: {error}"))
}

/// What the receiver knows us by.
pub(super) fn token(webhook: &Webhook) -> Result<Option<String>, String> {
    let Some(path) = &webhook.token_file else { return Ok(None) };
    let told = |why: String| format!("notify.webhook_token_file: {}: {why}", path.display());
    let read = || -> io::Result<String> {
        let mut token = String::new();
        File::open(path)?.take(TOKEN_BYTES_MAX).read_to_string(&mut token)?;
        Ok(token.trim().to_owned())
    };
    let token = read().map_err(|error| told(words(&error)))?;
    // Anything else could end the header.
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(told("it is no token: one word of ASCII is".to_owned()));
    }
    Ok(Some(token))
}

fn head(webhook: &Webhook, token: Option<&str>, length: usize) -> String {
    let Webhook { authority, path, .. } = webhook;
    let token = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    format!(
        "POST {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: towpath\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{token}Connection: close\r\n\r\n"
    )
}

/// What a response says so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Incomplete,
    NotHttp,
    Status(u16),
}

/// The status of the final response (RFC 9112 §4); interim ones come before it (RFC 9110 §15.2).
fn answer(response: &[u8]) -> Answer {
    let mut rest = response;
    loop {
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            let begins = b"HTTP/1.".len().min(rest.len());
            return if rest[..begins] == b"HTTP/1."[..begins] { Answer::Incomplete } else { Answer::NotHttp };
        };
        let Some(status) = status_of(&rest[..end]) else { return Answer::NotHttp };
        if !matches!(status, 100 | 102..200) {
            return Answer::Status(status);
        }
        let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else { return Answer::Incomplete };
        rest = &rest[end + 4..];
    }
}

/// Of a status line; the phrase behind it may be missing with its space.
fn status_of(line: &[u8]) -> Option<u16> {
    let after = line.strip_prefix(b"HTTP/1.1 ").or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let (digits, phrase) = after.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(phrase.first(), None | Some(b' ')) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_behind_interim_responses_and_from_pieces() {
        let whole = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        for length in 0..whole.len() - 2 {
            assert_eq!(answer(&whole[..length]), Answer::Incomplete, "{length}");
        }
        assert_eq!(answer(whole), Answer::Status(204));
        for (response, expected) in [
            (&b"HTTP/1.0 500\r\n"[..], Answer::Status(500)),
            (b"HTTP/1.1 200 \r\n", Answer::Status(200)),
            (b"HTTP/1.1 302 Found\r\n", Answer::Status(302)),
            (b"HTTP/1.1 101 Switching Protocols\r\n", Answer::Status(101)),
            (b"HTTP/1.1 2000 Found\r\n", Answer::NotHttp),
            (b"HTTP/1.1 20\r\n", Answer::NotHttp),
            (b"HTTP/1.1 abc Found\r\n", Answer::NotHttp),
            (b"HTTP/2 200\r\n", Answer::NotHttp),
            (b"220 mail ESMTP\r\n", Answer::NotHttp),
            (b"SSH-", Answer::NotHttp),
        ] {
            assert_eq!(answer(response), expected, "{}", String::from_utf8_lossy(response));
        }
    }
}
