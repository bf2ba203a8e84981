//! The part of the model that is about who may ask the daemon, and change it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::CertificateFiles;

/// `[control]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Control {
    /// Path of the Unix socket; `None` = no control socket.
    pub socket: Option<PathBuf>,
    /// Whose users may do everything by the socket.
    pub group: ControlGroup,
    /// What was said at run time is kept there; `None` = nowhere, so also without a socket.
    pub state_file: Option<PathBuf>,
    /// Where users are answered, too; `None` = nowhere.
    pub listen: Option<ControlListen>,
}

/// `control.group`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlGroup {
    /// This one, if the machine has it.
    IfThere(String),
    /// This one; a machine without it cannot serve the file.
    Named(String),
    /// That of the process.
    OfProcess,
}

/// `control.listen` and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlListen {
    /// Where.
    pub address: SocketAddr,
    /// `None` = without TLS, on loopback.
    pub certificate: Option<CertificateFiles>,
    /// Authorities of users' certificates.
    pub client_ca: Option<PathBuf>,
    /// Certificates that they have taken back.
    pub client_crl: Option<PathBuf>,
    /// Networks that may come; empty = every one.
    pub from: Vec<(std::net::IpAddr, u8)>,
    /// What the page does.
    pub page: Page,
    /// A login ends when nothing was done for so long.
    pub session_idle_ms: u64,
    /// A login ends after so long.
    pub session_ms: u64,
    /// Who may come; never nobody.
    pub users: Vec<ControlUser>,
}

/// `control.page`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Page {
    /// It changes what its user may.
    Full,
    /// There is none.
    Off,
    /// It changes nothing.
    ReadOnly,
}

/// `control.user.role`; whoever may more may everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlRole {
    /// Sees.
    Viewer,
    /// Changes state.
    Operator,
    /// Sees what clients send.
    Admin,
}

/// `[[control.user]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlUser {
    /// Who it is, in events and the log.
    pub name: String,
    /// What it may do.
    pub role: ControlRole,
    /// Known at the login of the page by this.
    pub password: Option<PasswordHash>,
    /// Known by the token with this sum.
    pub token: Option<TokenHash>,
    /// Known by the token in this file.
    pub token_file: Option<PathBuf>,
    /// Known by a certificate with this name.
    pub certificate_name: Option<String>,
}

/// What a password is judged by: PBKDF2 with HMAC-SHA-512 (RFC 8018 §5.2).
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    /// How often the sum is taken.
    pub rounds: u32,
    /// What is in it beside the password.
    pub salt: Vec<u8>,
    /// The result.
    pub sum: [u8; 64],
}

/// SHA-256 of a token, which is long and random: nothing to guess.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash(pub [u8; 32]);

/// Rounds that a password may have: with fewer it is guessed by who has read the file, with more each login takes seconds of a CPU.
pub const PASSWORD_ROUNDS: std::ops::RangeInclusive<u32> = 100_000..=2_000_000;
/// Bytes of a salt.
const SALT_BYTES: std::ops::RangeInclusive<usize> = 16..=64;

impl ControlRole {
    /// Its word in the file.
    pub const fn word(self) -> &'static str {
        match self {
            ControlRole::Admin => "admin",
            ControlRole::Operator => "operator",
            ControlRole::Viewer => "viewer",
        }
    }
}

impl PasswordHash {
    /// Reads `pbkdf2-sha512:ROUNDS:SALT:SUM`, the last two in hexadecimal digits.
    pub fn read(text: &str) -> Option<PasswordHash> {
        let mut parts = text.strip_prefix("pbkdf2-sha512:")?.split(':');
        let (rounds, salt, sum) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || !rounds.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let rounds = rounds.parse().ok().filter(|rounds| PASSWORD_ROUNDS.contains(rounds))?;
        let salt = bytes_of(salt).filter(|salt| SALT_BYTES.contains(&salt.len()))?;
        Some(PasswordHash { rounds, salt, sum: bytes_of(sum)?.try_into().ok()? })
    }

    /// As it stands in a file.
    pub fn written(&self) -> String {
        format!("pbkdf2-sha512:{}:{}:{}", self.rounds, digits_of(&self.salt), digits_of(&self.sum))
    }
}

impl TokenHash {
    /// Reads `sha256:SUM`, in hexadecimal digits.
    pub fn read(text: &str) -> Option<TokenHash> {
        Some(TokenHash(bytes_of(text.strip_prefix("sha256:")?)?.try_into().ok()?))
    }

    /// As it stands in a file.
    pub fn written(&self) -> String {
        format!("sha256:{}", digits_of(&self.0))
    }
}

/// What is shown of either: nothing that could be guessed at.
impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordHash").field("rounds", &self.rounds).finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenHash").finish_non_exhaustive()
    }
}

impl Serialize for PasswordHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

impl Serialize for TokenHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}

fn digits_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_as_they_are_written_and_never_shown() {
        let password = PasswordHash { rounds: 210_000, salt: vec![0xab; 16], sum: [7; 64] };
        let written = password.written();
        assert!(written.starts_with("pbkdf2-sha512:210000:abab"), "{written}");
        assert_eq!(PasswordHash::read(&written), Some(password.clone()));
        let token = TokenHash([0xcd; 32]);
        assert_eq!(TokenHash::read(&token.written()), Some(token));
        let shown = format!("{password:?} {token:?}") + &serde_json::to_string(&(&password, &token)).expect("text");
        assert!(!shown.contains("abab") && !shown.contains("0707") && !shown.contains("cdcd"), "{shown}");
        assert!(!shown.contains("171, 171") && !shown.contains("205, 205"), "{shown}");
    }

    #[test]
    fn damaged_hashes_are_none() {
        let sum = "07".repeat(64);
        let salt = "ab".repeat(16);
        for text in [
            String::new(),
            "secret".to_owned(),
            format!("pbkdf2-sha256:210000:{salt}:{sum}"),
            format!("pbkdf2-sha512:99999:{salt}:{sum}"),
            format!("pbkdf2-sha512:2000001:{salt}:{sum}"),
            format!("pbkdf2-sha512:+210000:{salt}:{sum}"),
            format!("pbkdf2-sha512:210000:{}:{sum}", "ab".repeat(15)),
            format!("pbkdf2-sha512:210000:{salt}:{}", "07".repeat(63)),
            format!("pbkdf2-sha512:210000:{salt}:{sum}:"),
            format!("pbkdf2-sha512:210000:{salt}x:{sum}"),
            format!("pbkdf2-sha512:210000:{salt}ä:{sum}"),
        ] {
            assert_eq!(PasswordHash::read(&text), None, "{text}");
        }
        for text in ["", "sha256:", "sha256:00", &format!("sha1:{}", "00".repeat(32)), &"00".repeat(32)] {
            assert_eq!(TokenHash::read(text), None, "{text}");
        }
    }
}
