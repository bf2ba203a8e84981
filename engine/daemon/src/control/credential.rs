//! Passwords, tokens and the keys of sessions: drawn, summed up and compared.

use std::num::NonZeroU32;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::pbkdf2::{self, PBKDF2_HMAC_SHA512};
use towpath_config::model::{PasswordHash, TokenHash};

/// Rounds of a new password's hash: what OWASP asks for with HMAC-SHA-512 (Password Storage Cheat Sheet, 2023), about 0.1 s of a core.
pub const ROUNDS: u32 = 210_000;
/// Bytes of a new salt (NIST SP 800-132 §5.1 asks for 16).
const SALT_BYTES: usize = 16;
/// Bytes that a password may have: none is guessed for being shorter than this, and none keeps us busy with its length.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Bytes of a new password.
pub const PASSWORD_BYTES_MIN: usize = 8;
/// What tokens begin with, so that one that lies about is known for what it is.
const TOKEN_MARK: &str = "towpath_";
/// Bytes of a token that is sent to us.
pub(super) const TOKEN_BYTES_MAX: usize = 4096;
/// Bytes of a token in a file, at least: fewer could be guessed, for tokens may be tried as fast as they come.
pub(super) const TOKEN_BYTES_MIN: usize = 20;

/// The system gives no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

/// The hash of a password, with a salt of its own.
pub fn hash_password(password: &str) -> Result<PasswordHash, NoRandomness> {
    let mut salt = vec![0; SALT_BYTES];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| NoRandomness)?;
    let mut sum = [0; 64];
    pbkdf2::derive(PBKDF2_HMAC_SHA512, rounds(ROUNDS), &salt, password.as_bytes(), &mut sum);
    Ok(PasswordHash { rounds: ROUNDS, salt, sum })
}

/// A new token, and what the file has of it.
pub fn draw_token() -> Result<(String, TokenHash), NoRandomness> {
    let token = format!("{TOKEN_MARK}{}", hexadecimal(&draw_key()?));
    let hash = hash_token(&token);
    Ok((token, hash))
}

/// What a token is known by.
pub(super) fn hash_token(token: &str) -> TokenHash {
    TokenHash(sha256(token.as_bytes()))
}

/// Whether `password` is the one; takes as long when it is not.
pub(super) fn is_password(hash: &PasswordHash, password: &str) -> bool {
    pbkdf2::verify(PBKDF2_HMAC_SHA512, rounds(hash.rounds), &hash.salt, password.as_bytes(), &hash.sum).is_ok()
}

/// What the password of somebody who is not there is compared with, so that the time tells nobody who is.
pub(super) fn nobodys_hash() -> PasswordHash {
    PasswordHash { rounds: ROUNDS, salt: vec![0; SALT_BYTES], sum: [0; 64] }
}

/// Compares without telling by the time where they differ.
pub(super) fn is_same(one: &[u8], other: &[u8]) -> bool {
    verify_slices_are_equal(one, other).is_ok()
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap_or_default()
}

/// 256 bits that nobody guesses.
pub(super) fn draw_key() -> Result<[u8; 32], NoRandomness> {
    let mut key = [0; 32];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| NoRandomness)?;
    Ok(key)
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rounds(rounds: u32) -> NonZeroU32 {
    NonZeroU32::new(rounds).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_by_its_hash() {
        let hash = hash_password("correct horse").unwrap();
        let again = hash_password("correct horse").unwrap();
        assert_ne!(hash, again, "each has its own salt");
        let read = PasswordHash::read(&hash.written()).unwrap();
        assert!(is_password(&read, "correct horse"));
        for wrong in ["", "correct horsE", "correct horse "] {
            assert!(!is_password(&read, wrong), "{wrong}");
        }
        assert!(!is_password(&nobodys_hash(), ""));
    }

    #[test]
    fn a_token_is_known_by_its_hash() {
        let (token, hash) = draw_token().unwrap();
        assert!(token.starts_with(TOKEN_MARK) && token.len() >= TOKEN_BYTES_MIN);
        assert_eq!(hash_token(&token), hash);
        assert_ne!(draw_token().unwrap().0, token);
        // FIPS 180-4, example of one block.
        assert_eq!(hexadecimal(&sha256(b"abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
