//! The secrets of a check, read from their files for each check: whoever replaces a file need not reload.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use towpath_config::model::{CheckKind, Model, RadiusCheck};
use towpath_core::health::Secrets;

use crate::http_files::FileFault;

/// A secret or password is shorter.
const SECRET_BYTES_MAX: u64 = 4_096;

/// What is wrong with the files that health checks name.
pub(crate) fn faults(model: &Model) -> Vec<FileFault> {
    let mut faults: Vec<FileFault> = Vec::new();
    for service in &model.services {
        let kinds = model.groups_of(service).filter_map(|group| Some(&group.health.as_ref()?.check));
        for (key, path) in kinds.map(files).flat_map(|(secret, password)| {
            [("secret_file", secret), ("password_file", password)]
                .into_iter()
                .filter_map(|(key, path)| Some((key, path?)))
        }) {
            if faults.iter().any(|known| known.file == *path) {
                continue;
            }
            if let Err(problem) = content(path) {
                faults.push(FileFault {
                    service: Some(service.name.clone()),
                    file: path.clone(),
                    message: format!("health.{key}: {}: {problem}; check the path and who may read it", path.display()),
                });
            }
        }
    }
    faults
}

/// Those of the secret and the password.
fn files(kind: &CheckKind) -> (Option<&PathBuf>, Option<&PathBuf>) {
    match kind {
        CheckKind::Ldap(ldap) => (ldap.bind.as_ref().map(|bind| &bind.secret_file), None),
        CheckKind::Radius(RadiusCheck { secret_file, password_file, .. }) => {
            (Some(secret_file), password_file.as_ref())
        }
        _ => (None, None),
    }
}

/// What this kind needs; an error in the words of an operator.
pub(super) fn secrets(kind: &CheckKind) -> Result<Secrets, String> {
    let (secret, password) = files(kind);
    let content = |key: &str, path: Option<&PathBuf>| match path {
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
    fn a_file_that_cannot_be_read_is_told_once_with_its_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        std::fs::write(&path, b"xyzzy5461\n").expect("a file");
        let faults_of = |secret: &str| {
            let service = |name: &str, port: u16| {
                format!(
                    "[[service]]\nname = \"{name}\"\nvip = \"192.0.2.10\"\nports = [{port}]\nhealth = {{ check = \"radius\", ports = [1812], \
                     secret_file = \"{secret}\", user = \"nemo\", password_file = \"{}\" }}\n[[service.server]]\nname = \"one\"\n\
                     address = \"192.0.2.21\"\n",
                    path.display()
                )
            };
            let text = service("first", 80) + &service("second", 81);
            faults(&towpath_config::check("test.toml", &text).model.expect("no errors"))
        };
        assert_eq!(faults_of(&path.display().to_string()), []);
        let faults = faults_of("/nowhere");
        let [fault] = &faults[..] else { panic!("{faults:?}") };
        assert_eq!((fault.service.as_deref(), fault.file.as_path()), (Some("first"), Path::new("/nowhere")));
        assert!(fault.message.starts_with("health.secret_file: /nowhere: "), "{}", fault.message);
    }

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
