//! Files that HTTP mode names: the secret of cookies, and the page for maintenance.

use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use towpath_config::model::{Http, Model};
use towpath_core::http::{HttpMaterial, HttpSecret, ServiceMaterial};

/// Shortest secret.
const SECRET_BYTES_MIN: usize = 16;
/// Longest secret.
const SECRET_BYTES_MAX: usize = 4096;
/// Largest page: a worker sends it whole from memory.
const PAGE_BYTES_MAX: usize = 64 * 1024;

/// A file that is not what it should be.
#[derive(Debug, Error)]
#[error("service `{service}`: http.{key}: {}: {problem}", path.display())]
pub struct HttpFileError {
    /// The service.
    pub service: String,
    /// The key that names the file.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: HttpFileProblem,
}

/// What is wrong with a file.
#[derive(Debug, Error)]
pub enum HttpFileProblem {
    /// A page without a byte.
    #[error("the page is empty; write one, or remove `maintenance`")]
    Empty,
    /// Larger than anything of its kind.
    #[error("larger than {0} bytes; name the right file")]
    TooLarge(usize),
    /// A secret that can be guessed.
    #[error("a secret of {0} bytes is too short; write 16 or more: `head -c 32 /dev/urandom > FILE`")]
    TooShort(usize),
    /// The operating system does not hand out the file.
    #[error("{0}; check the path and that the user of the service may read it")]
    Unreadable(io::Error),
}

/// Everything that is wrong at once.
#[derive(Debug, Error)]
pub struct HttpFileErrors(pub Vec<HttpFileError>);

impl fmt::Display for HttpFileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if place == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// A file that is not what it should be, in words, for whoever starts nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFault {
    /// The service that names it; `None` = the process.
    pub service: Option<String>,
    /// The file.
    pub file: PathBuf,
    /// The key, the file, what is wrong with it and what to do.
    pub message: String,
}

/// What is wrong with the files that HTTP mode names.
pub(crate) fn faults(model: &Model) -> Vec<FileFault> {
    let errors = load(model, HttpSecret::new([0; 16])).err().map_or_else(Vec::new, |errors| errors.0);
    let fault = |error: HttpFileError| FileFault {
        message: format!("http.{}: {}: {}", error.key, error.path.display(), error.problem),
        service: Some(error.service),
        file: error.path,
    };
    errors.into_iter().map(fault).collect()
}

/// A secret of this process's own, from the hash keys of the standard library, which the system draws.
pub(crate) fn draw_secret() -> HttpSecret {
    let keys = RandomState::new();
    let mut secret = [0; 16];
    for (word, half) in secret.chunks_exact_mut(8).enumerate() {
        half.copy_from_slice(&keys.hash_one(word).to_le_bytes());
    }
    HttpSecret::new(secret)
}

/// Reads the files of all services; those that name none go by the `process`'s secret.
pub(crate) fn load(model: &Model, process: HttpSecret) -> Result<HttpMaterial, HttpFileErrors> {
    let mut material = HttpMaterial::new(process);
    let mut errors = Vec::new();
    for service in &model.services {
        let Some(http) = &service.http else { continue };
        let secret = secret(http).transpose();
        let page = page(http).transpose();
        let mut tell = |(key, path, problem): Fault<'_>| {
            errors.push(HttpFileError { service: service.name.clone(), key, path: path.to_path_buf(), problem });
        };
        let secret = secret.unwrap_or_else(|fault| {
            tell(fault);
            None
        });
        let page = page.unwrap_or_else(|fault| {
            tell(fault);
            None
        });
        material.insert(&service.name, ServiceMaterial { secret, page });
    }
    if errors.is_empty() { Ok(material) } else { Err(HttpFileErrors(errors)) }
}

/// The key, its file, and what is wrong with it.
type Fault<'m> = (&'static str, &'m Path, HttpFileProblem);

fn secret(http: &Http) -> Option<Result<HttpSecret, Fault<'_>>> {
    let path = http.cookie_secret_file.as_deref()?;
    let read = read(path, SECRET_BYTES_MAX).and_then(|bytes| match bytes.len() {
        ..SECRET_BYTES_MIN => Err(HttpFileProblem::TooShort(bytes.len())),
        _ => Ok(HttpSecret::of(&bytes)),
    });
    Some(read.map_err(|problem| ("cookie_secret_file", path, problem)))
}

fn page(http: &Http) -> Option<Result<Arc<[u8]>, Fault<'_>>> {
    let path = http.maintenance.as_ref()?.file.as_path();
    let read = read(path, PAGE_BYTES_MAX).and_then(|bytes| match bytes.is_empty() {
        true => Err(HttpFileProblem::Empty),
        false => Ok(Arc::from(bytes)),
    });
    Some(read.map_err(|problem| ("maintenance.file", path, problem)))
}

fn read(path: &Path, bytes_max: usize) -> Result<Vec<u8>, HttpFileProblem> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(HttpFileProblem::Unreadable)?;
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(HttpFileProblem::Unreadable)?;
    if bytes.len() > bytes_max { Err(HttpFileProblem::TooLarge(bytes_max)) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(http: &str) -> Model {
        let text = format!(
            "[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\nports = [80]\npersistence = {{ by = \"cookie\" }}\nhttp = {{ {http} }}\n\
             [[service.server]]\nname = \"one\"\naddress = \"192.0.2.21\"\n"
        );
        towpath_config::check("test.toml", &text).model.expect("no errors")
    }

    #[test]
    fn what_is_wrong_with_files_is_told_at_once_with_the_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            path.display().to_string()
        };
        let (secret, short) = (write("secret", &[1; 32]), write("short", b"guess me"));
        let (page, empty, large) =
            (write("page", b"<p>soon"), write("empty", b""), write("large", &[b'x'; PAGE_BYTES_MAX + 1]));
        let load = |secret: &str, page: &str| {
            let http = format!("cookie_secret_file = \"{secret}\", maintenance = {{ file = \"{page}\" }}");
            load(&model(&http), draw_secret()).map_err(|errors| errors.to_string())
        };
        assert!(load(&secret, &page).is_ok());
        let rows = [
            (&short, &empty, ["http.cookie_secret_file: ", "8 bytes is too short", "http.maintenance.file: ", "empty"]),
            (&"/nowhere".to_owned(), &large, ["cookie_secret_file: /nowhere: ", "No such file", "large: ", "65536"]),
        ];
        for (secret, page, parts) in rows {
            let told = load(secret, page).expect_err("refused");
            assert_eq!(told.lines().count(), 2, "{told}");
            for part in parts {
                assert!(told.contains(part), "{part}: {told}");
            }
        }
        let faults = faults(&model("cookie_secret_file = \"/nowhere\""));
        let [fault] = &faults[..] else { panic!("{faults:?}") };
        assert_eq!((fault.service.as_deref(), fault.file.as_path()), (Some("web"), Path::new("/nowhere")));
        assert!(fault.message.starts_with("http.cookie_secret_file: /nowhere: "), "{}", fault.message);
        assert_ne!(draw_secret(), draw_secret());
    }
}
