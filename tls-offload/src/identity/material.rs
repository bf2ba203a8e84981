//! Certificates and a private key out of the files that hold them.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::{IdentityError, pem, pfx};

/// Others may read the file.
const READ_BY_OTHERS: u32 = 0o004;

/// Where a certificate and its private key are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityFiles {
    /// PEM with the certificate and, in any order, those of its issuers; or a PFX file, which has the private key as well.
    pub certificate: PathBuf,
    /// PEM with the private key; `None` = it is in `certificate`.
    pub key: Option<PathBuf>,
    /// PEM with further certificates.
    pub chain: Option<PathBuf>,
    /// File whose first line is the password of the private key or PFX file.
    pub password: Option<PathBuf>,
}

impl IdentityFiles {
    /// The file of the private key.
    pub fn key(&self) -> &Path {
        self.key.as_deref().unwrap_or(&self.certificate)
    }

    /// The files that hold a secret and that every user of this machine may read.
    pub fn exposed(&self) -> Vec<&Path> {
        let is_exposed =
            |path: &&Path| std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & READ_BY_OTHERS != 0);
        [Some(self.key()), self.password.as_deref()].into_iter().flatten().filter(is_exposed).collect()
    }

    /// What the files hold, the certificates of `certificate` first.
    pub fn read(&self) -> Result<IdentityMaterial, IdentityError> {
        let password = self.password.as_deref().map(pem::password).transpose()?;
        let unlocked = |path: &Path| Unlock {
            path: path.to_path_buf(),
            password: password.as_ref().map(|password| password.as_str()),
            password_path: self.password.clone(),
        };
        let (mut certificates, key) = match &self.key {
            None => unlocked(&self.certificate).both()?,
            // A PFX file beside a key is for its certificates.
            Some(key) => (unlocked(&self.certificate).certificates()?, unlocked(key).key()?),
        };
        if certificates.is_empty() {
            return Err(IdentityError::NoCertificate { path: self.certificate.clone() });
        }
        if let Some(chain) = &self.chain {
            let further = unlocked(chain).certificates()?;
            if further.is_empty() {
                return Err(IdentityError::NoCertificate { path: chain.clone() });
            }
            certificates.extend(further);
        }
        Ok(IdentityMaterial { certificates, key })
    }
}

/// Certificates and a private key, not yet judged. The key is wiped when it is dropped, and never shown.
pub struct IdentityMaterial {
    /// In the order of the files.
    pub certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl IdentityMaterial {
    /// The private key.
    pub(super) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// These certificates as PEM.
    pub fn certificates_pem(certificates: &[CertificateDer<'static>]) -> String {
        certificates.iter().map(|certificate| pem::written("CERTIFICATE", certificate).to_string()).collect()
    }

    /// The private key as PEM, in clear.
    pub fn key_pem(&self) -> Zeroizing<String> {
        let label = match &self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem::written(label, self.key.secret_der())
    }
}

impl Drop for IdentityMaterial {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for IdentityMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityMaterial").field("certificates", &self.certificates.len()).finish_non_exhaustive()
    }
}

/// A file, and the password that opens it.
struct Unlock<'a> {
    path: PathBuf,
    password: Option<&'a str>,
    password_path: Option<PathBuf>,
}

impl Unlock<'_> {
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let bytes = pem::read(&self.path)?;
        if pfx::is_pfx(&bytes) {
            return Ok(self.pfx(&bytes)?.certificates);
        }
        Ok(pem::sections(&self.path, &bytes)?.certificates())
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, IdentityError> {
        let bytes = pem::read(&self.path)?;
        if pfx::is_pfx(&bytes) {
            return self.key_of_pfx(self.pfx(&bytes)?);
        }
        self.key_of_pem(&pem::sections(&self.path, &bytes)?)
    }

    fn both(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
        let bytes = pem::read(&self.path)?;
        if pfx::is_pfx(&bytes) {
            let mut bundle = self.pfx(&bytes)?;
            let certificates = std::mem::take(&mut bundle.certificates);
            return Ok((certificates, self.key_of_pfx(bundle)?));
        }
        let sections = pem::sections(&self.path, &bytes)?;
        let certificates = sections.certificates();
        if certificates.is_empty() {
            return Err(IdentityError::NoCertificate { path: self.path.clone() });
        }
        Ok((certificates, self.key_of_pem(&sections)?))
    }

    fn pfx(&self, bytes: &[u8]) -> Result<pfx::Bundle, IdentityError> {
        let path = || self.path.clone();
        pfx::open(bytes, self.password.unwrap_or_default()).map_err(|error| match error {
            pfx::PfxError::Locked if self.password.is_none() => IdentityError::EncryptedKey { path: path() },
            pfx::PfxError::Locked => self.wrong_password(),
            pfx::PfxError::Other(error) => IdentityError::BadPfx { path: path(), error },
        })
    }

    fn key_of_pfx(&self, bundle: pfx::Bundle) -> Result<PrivateKeyDer<'static>, IdentityError> {
        bundle.key.ok_or_else(|| IdentityError::NoKeyInPfx { path: self.path.clone() })
    }

    fn key_of_pem(&self, sections: &pem::Sections) -> Result<PrivateKeyDer<'static>, IdentityError> {
        let path = || self.path.clone();
        if let Some(key) = sections.key() {
            return Ok(key);
        }
        match (&sections.encrypted_key, self.password) {
            (None, _) => Err(IdentityError::NoKey { path: path() }),
            (Some(_), None) => Err(IdentityError::EncryptedKey { path: path() }),
            (Some(pem::EncryptedKey::Old), Some(_)) => {
                Err(IdentityError::OldEncryption { path: path(), error: "Proc-Type: 4,ENCRYPTED".to_owned() })
            }
            (Some(pem::EncryptedKey::Pkcs8(der)), Some(password)) => {
                pfx::decrypted_key(der, password).map_err(|error| match error {
                    pfx::PfxError::Locked => self.wrong_password(),
                    pfx::PfxError::Other(error) => IdentityError::OldEncryption { path: path(), error },
                })
            }
        }
    }

    fn wrong_password(&self) -> IdentityError {
        IdentityError::WrongPassword { path: self.path.clone(), password_path: self.password_path.clone() }
    }
}
