//! Where the daemon is that a command asks: at its Unix socket, or at its `control.listen`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use towpath_engine::{Asker, Endpoint, Remote};

use crate::status::default_socket;

/// Authorities of this machine, as Debian has them.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where the daemon is, and how its answer is shown.
#[derive(Args, Debug)]
pub(crate) struct Daemon {
    #[command(flatten)]
    place: Place,
    /// Print JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

impl Daemon {
    /// Whom to ask.
    pub(crate) fn endpoint(&self) -> Result<Endpoint> {
        self.place.endpoint()
    }
}

/// Where the daemon is.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// Unix socket of the daemon: `control.socket` of its file
    #[arg(long, value_name = "PATH", default_value_os_t = default_socket())]
    socket: PathBuf,
    /// Ask a daemon by its `control.listen` instead: https://HOST:PORT
    #[arg(long, value_name = "URL", conflicts_with = "socket")]
    url: Option<String>,
    /// File with the token that --url is asked with
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
    /// PEM with the certificate and private key of the user that --url is asked as
    #[arg(long, value_name = "FILE", requires = "url")]
    certificate: Option<PathBuf>,
    /// Authorities (PEM) that the certificate of --url comes from
    #[arg(long, value_name = "FILE", requires = "url", default_value = AUTHORITIES)]
    ca: PathBuf,
}

impl Place {
    /// Whom to ask.
    pub(crate) fn endpoint(&self) -> Result<Endpoint> {
        match &self.url {
            None => Ok(Endpoint::Socket(self.socket.clone())),
            Some(url) => {
                let asker = Asker { token_file: self.token_file.clone(), certificate: self.certificate.clone() };
                Remote::new(url, &asker, &self.ca)
                    .map(|remote| Endpoint::Remote(Box::new(remote)))
                    .map_err(|why| anyhow!(why))
            }
        }
    }
}

#[cfg(test)]
impl Place {
    /// The daemon at this socket.
    pub(crate) fn at(socket: PathBuf) -> Place {
        Place { socket, url: None, token_file: None, certificate: None, ca: PathBuf::new() }
    }
}
