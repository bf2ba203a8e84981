//! `towpath credential`: what the file has of a password, and tokens with what it has of them.

use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use towpath_engine::credential::{PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN, draw_token, hash_password};
use towpath_sys::terminal::Hidden;
use zeroize::Zeroizing;

use crate::cli::Exit;

pub(crate) const CREDENTIAL_HELP: &str = "\
Examples:
  towpath credential password                          asks for it twice, and prints the line for [[control.user]]
  towpath credential password < file                   the first line of the file
  towpath credential token --out /etc/towpath/ci.token draws a token into a file, and prints the line for [[control.user]]
  towpath status --url https://lb:9443 --token-file ci.token

Exit codes: 0 ok · 1 failed · 2 usage";

/// Only its owner reads a token.
const SECRET_MODE: u32 = 0o600;

/// What `towpath credential` does.
#[derive(Debug, Subcommand)]
pub(crate) enum CredentialCommand {
    /// Make the hash of a password, for the login of the page
    Password,
    /// Draw a token, for programs
    Token(TokenArguments),
}

/// Arguments of `towpath credential token`.
#[derive(Args, Debug)]
pub(crate) struct TokenArguments {
    /// File for the token, which must not be there yet; without it the token is printed
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Does it.
pub(crate) fn credential(command: &CredentialCommand) -> Result<Exit> {
    match command {
        CredentialCommand::Password => {
            let password = password()?;
            judge(&password)?;
            writeln!(io::stdout(), "password_hash = \"{}\"", hash_password(&password)?.written())?;
        }
        CredentialCommand::Token(TokenArguments { out }) => {
            let (token, hash) = draw_token()?;
            let token = Zeroizing::new(token);
            match out {
                Some(path) => {
                    let mut file = OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .mode(SECRET_MODE)
                        .open(path)
                        .with_context(|| format!("cannot make {}", path.display()))?;
                    writeln!(file, "{}", *token).with_context(|| format!("cannot write {}", path.display()))?;
                }
                None => writeln!(io::stdout(), "{}", *token)?,
            }
            writeln!(io::stdout(), "token_hash = \"{}\"", hash.written())?;
        }
    }
    Ok(Exit::Done)
}

/// The first line of standard input; from a terminal twice, and not shown.
fn password() -> Result<Zeroizing<String>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return line();
    }
    let _hidden = Hidden::new(&stdin).context("this terminal cannot hide what is typed")?;
    eprint!("Password: ");
    let first = line()?;
    eprint!("Once more: ");
    if *line()? != *first {
        bail!("the two are not the same");
    }
    Ok(first)
}

fn line() -> Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::with_capacity(PASSWORD_BYTES_MAX + 2));
    io::stdin().lock().take(PASSWORD_BYTES_MAX as u64 + 2).read_line(&mut line).context("no password could be read")?;
    let length = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(length);
    Ok(line)
}

/// Length is what counts (NIST SP 800-63B §5.1.1.2).
fn judge(password: &str) -> Result<()> {
    if password.len() < PASSWORD_BYTES_MIN || password.len() > PASSWORD_BYTES_MAX {
        bail!("a password has {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX} bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_have_a_length() {
        assert!(judge("1234567").is_err() && judge("12345678").is_ok());
        assert!(judge(&"a".repeat(PASSWORD_BYTES_MAX)).is_ok() && judge(&"a".repeat(PASSWORD_BYTES_MAX + 1)).is_err());
    }
}
