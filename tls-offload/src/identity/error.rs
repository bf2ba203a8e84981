//! What keeps files from being an identity, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::pem;

/// Why files do not make an identity. Each is the operator's to mend; trying again without a change is useless.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A certificate that cannot be taken apart.
    #[error("{}: certificate {place} is damaged ({error}); export the chain again", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// Place in the file, from 1.
        place: usize,
        /// What the parser says.
        error: String,
    },
    /// A private key that the provider cannot use.
    #[error("{}: the private key cannot be used ({error}); use RSA with 2048 to 8192 bits, ECDSA P-256, P-384 or P-521, or Ed25519", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What the provider says.
        error: String,
    },
    /// A PFX file that does not decode.
    #[error("{}: damaged PFX, or of a form that is not supported ({error}); make it anew: `openssl pkcs12 -in FILE -nodes`, then `openssl pkcs12 -export`", path.display())]
    BadPfx {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        error: String,
    },
    /// DER that is no PFX.
    #[error(
        "{}: this is a binary file, PEM or PFX is needed; convert it: `openssl x509 -inform der -in FILE` for a \
         certificate, `openssl pkey -inform der -in FILE` for a key",
        path.display()
    )]
    Binary {
        /// The file.
        path: PathBuf,
    },
    /// Text that begins as PEM and breaks off or does not decode.
    #[error("{}: damaged PEM ({error}); copy the file again, with its BEGIN and END lines", path.display())]
    BrokenPem {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        error: String,
    },
    /// Nothing in the file.
    #[error("{}: the file is empty; export the certificate or key again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A private key or PFX file behind a password that nobody named.
    #[error(
        "{}: the private key is encrypted; write its password into a file that only the user of the service can read, and \
         name that by `password_file`, or decrypt the key: `openssl pkey -in FILE -out NEW`",
        path.display()
    )]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together.
    #[error(
        "{}: this private key belongs to no certificate of {} (for {names}); name the key that the certificate was \
         requested with",
        key_path.display(),
        chain_path.display()
    )]
    KeyOfAnotherCertificate {
        /// The file of the key.
        key_path: PathBuf,
        /// The file of the chain.
        chain_path: PathBuf,
        /// Whom the certificate is for.
        names: String,
    },
    /// No certificate.
    #[error("{}: no certificate in this file; add the certificate chain as PEM (BEGIN CERTIFICATE)", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// PEM without a key.
    #[error("{}: no private key in this file; add it as PEM (BEGIN PRIVATE KEY), or name its file by `key`", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// PFX without a key.
    #[error("{}: this PFX file has no private key; export it again with \"Yes, export the private key\", or name the key's file by `key`", path.display())]
    NoKeyInPfx {
        /// The file.
        path: PathBuf,
    },
    /// Neither text nor a known binary form.
    #[error("{}: neither a certificate nor a key; PEM text (BEGIN …) or a PFX file is needed", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
    },
    /// A key encrypted in a way that is not taken apart here.
    #[error("{}: the private key is encrypted in a way that is not supported ({error}); encrypt it anew: `openssl pkey -in FILE -aes256 -out NEW`", path.display())]
    OldEncryption {
        /// The file.
        path: PathBuf,
        /// Which way.
        error: String,
    },
    /// A password that is no text.
    #[error("{}: the first line is no password in UTF-8 of at most {} bytes; write the password alone into this file", path.display(), pem::PASSWORD_BYTES_MAX)]
    PasswordNotText {
        /// The file.
        path: PathBuf,
    },
    /// Larger than any chain.
    #[error("{}: larger than {} KiB, this is no certificate chain or key; name the right file", path.display(), pem::FILE_BYTES_MAX / 1024)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The operating system does not hand out the file.
    #[error("{}: {error}; check the path and that the user of the service may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A public key for which there are no TLS signatures.
    #[error("{}: the certificate's key ({algorithm}) is of a kind that TLS servers do not sign with; use RSA, ECDSA P-256, P-384 or P-521, or Ed25519", path.display())]
    UnknownKeyKind {
        /// The file.
        path: PathBuf,
        /// Object identifier of the algorithm or curve.
        algorithm: String,
    },
    /// The password is another one.
    #[error("{}: the password{} does not open it; write the right one into the first line of that file", path.display(), of(password_path.as_deref()))]
    WrongPassword {
        /// The file that it is to open.
        path: PathBuf,
        /// The file with the password.
        password_path: Option<PathBuf>,
    },
}

fn of(path: Option<&Path>) -> String {
    path.map(|path| format!(" of {}", path.display())).unwrap_or_default()
}

impl IdentityError {
    /// The file that is to be mended.
    pub fn path(&self) -> &Path {
        match self {
            IdentityError::BadCertificate { path, .. }
            | IdentityError::BadKey { path, .. }
            | IdentityError::BadPfx { path, .. }
            | IdentityError::Binary { path }
            | IdentityError::BrokenPem { path, .. }
            | IdentityError::Empty { path }
            | IdentityError::EncryptedKey { path }
            | IdentityError::KeyOfAnotherCertificate { key_path: path, .. }
            | IdentityError::NoCertificate { path }
            | IdentityError::NoKey { path }
            | IdentityError::NoKeyInPfx { path }
            | IdentityError::NotPem { path }
            | IdentityError::OldEncryption { path, .. }
            | IdentityError::PasswordNotText { path }
            | IdentityError::TooLarge { path }
            | IdentityError::Unreadable { path, .. }
            | IdentityError::UnknownKeyKind { path, .. } => path,
            IdentityError::WrongPassword { path, password_path } => password_path.as_ref().unwrap_or(path),
        }
    }
}
