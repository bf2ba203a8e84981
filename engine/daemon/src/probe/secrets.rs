//! The secrets of a check, read from their files for each check: whoever replaces a file need not reload.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use towpath_config::model::{CheckKind, RadiusCheck};
use towpath_core::health::Secrets;

/// A secret or password is shorter.
const SECRET_BYTES_MAX: u64 = 4_096;

/// What this kind needs; an error in the words of an operator.
pub(super) fn secrets(kind: &CheckKind) -> Result<Secrets, String> {
    let (secret, password) = match kind {
        CheckKind::Ldap(ldap) => (ldap.bind.as_ref().map(|bind| &bind.secret_file), None),
        CheckKind::Radius(RadiusCheck { secret_file, password_file, .. }) => {
            (Some(secret_file), password_file.as_ref())
        }
        _ => (None, None),
    };
    let content = |key: &str, path: Option<&std::path::PathBuf>| match path {
        Some(path) => content(path).map_err(|reason| format!("health.{key}: {}: {reason}", path.display())),
        None => Ok(Vec::new()),
    };
    Ok(Secrets { secret: content("secret_file", secret)?, password: content("password_file", password)? })
}

/// Without the line end that editors write.
fn content(path: &Path) -> Result<Vec<u8>, String> {
    let told = |error: std::io::Error| super::words(&error);
    // To open a pipe would wait for who writes to it.
    if !std::fs::metadata(path).map_err(told)?.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut content = Vec::new();
    File::open(path).map_err(told)?.take(SECRET_BYTES_MAX + 1).read_to_end(&mut content).map_err(told)?;
    if content.len() as u64 > SECRET_BYTES_MAX {
        return Err(format!("has more than {SECRET_BYTES_MAX} bytes"));
    }
    if content.last() == Some(&b'\n') {
        content.pop();
        if content.last() == Some(&b'\r') {
            content.pop();
        }
    }
    if content.is_empty() {
        return Err("is empty".to_owned());
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_its_files_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("a file");
            content(&path)
        };
        assert_eq!(read(b"xyzzy5461\n"), Ok(b"xyzzy5461".to_vec()));
        assert_eq!(read(b"xyzzy5461\r\n"), Ok(b"xyzzy5461".to_vec()));
        assert_eq!(read(b" with blanks \n\n"), Ok(b" with blanks \n".to_vec()));
        assert_eq!(read(&[0xff; 4_096]), Ok(vec![0xff; 4_096]));
        assert_eq!(read(&[0xff; 4_097]), Err("has more than 4096 bytes".to_owned()));
        assert_eq!(read(b"\n"), Err("is empty".to_owned()));
        assert_eq!(content(directory.path()), Err("is not a file".to_owned()));
        assert!(content(&directory.path().join("none")).is_err());
    }
}
