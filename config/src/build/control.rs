//! The part of the model that is about who may ask the daemon, and change it.

use std::path::{Path, PathBuf};

use crate::decode::{Section, Value};
use crate::model::{self, ControlGroup, ControlRole, Page, PasswordHash, TokenHash};

/// The group that has the socket where the file names none, if the machine has it.
const USUAL_GROUP: &str = "towpath";

pub(super) fn control(root: &Section) -> Option<model::Control> {
    let defaults = crate::decode::defaults("control");
    let section = root.table("control").unwrap_or(&defaults);
    let socket =
        section.text("socket").map(|socket| socket.value).filter(|socket| *socket != "none").map(PathBuf::from);
    let state_file = match (section.text("state_file"), &socket) {
        (_, None) => None,
        (Some(path), Some(_)) => Some(path.value).filter(|path| *path != "none").map(PathBuf::from),
        (None, Some(socket)) => Some(state_beside(socket)),
    };
    let group = match section.text("group").map(|group| group.value) {
        None => ControlGroup::IfThere(USUAL_GROUP.to_owned()),
        Some("none") => ControlGroup::OfProcess,
        Some(name) => ControlGroup::Named(name.to_owned()),
    };
    let listen = if section.entry("listen").is_some() { Some(listen(section)?) } else { None };
    Some(model::Control { socket, group, state_file, listen })
}

fn listen(section: &Section) -> Option<model::ControlListen> {
    let Value::Socket(address) = section.entry("listen")?.value else { return None };
    let path = |key| section.text(key).map(|path| PathBuf::from(path.value));
    Some(model::ControlListen {
        address,
        certificate: path("certificate").map(|file| model::CertificateFiles {
            key: path("private_key").filter(|key| *key != file),
            file,
            chain: None,
            password_file: None,
            staple: None,
        }),
        client_ca: path("client_ca"),
        client_crl: path("client_crl"),
        from: super::networks(section, "from"),
        page: match section.word("page")?.value {
            "full" => Page::Full,
            "off" => Page::Off,
            _ => Page::ReadOnly,
        },
        session_idle_ms: section.duration("session_idle_timeout")?.value,
        session_ms: section.duration("session_timeout")?.value,
        users: section.tables("user").iter().map(user).collect::<Option<_>>()?,
    })
}

fn user(section: &Section) -> Option<model::ControlUser> {
    let text = |key| section.text(key).map(|text| text.value);
    // The outer `None`: it is written, and wrong.
    let read = |key| match text(key) {
        None => Some(None),
        Some(hash) => TokenHash::read(hash).map(Some),
    };
    Some(model::ControlUser {
        name: text("name")?.to_owned(),
        role: match section.word("role")?.value {
            "admin" => ControlRole::Admin,
            "operator" => ControlRole::Operator,
            _ => ControlRole::Viewer,
        },
        password: match text("password_hash") {
            None => None,
            Some(hash) => Some(PasswordHash::read(hash)?),
        },
        token: read("token_hash")?,
        token_file: text("token_file").map(PathBuf::from),
        certificate_name: text("certificate_name").map(str::to_owned),
    })
}

/// Where a daemon with this socket keeps its state. What is below /run is gone after a boot; another socket is that of a trial or of a second daemon,
/// which must not take the state of the first: so its whole path is in the name.
fn state_beside(socket: &Path) -> PathBuf {
    let below = ["/run", "/var/run"].iter().find_map(|volatile| socket.strip_prefix(volatile).ok());
    let Some(below) = below else {
        let mut path = socket.as_os_str().to_owned();
        path.push(".state");
        return path.into();
    };
    // Our own directory adds nothing.
    let below = below.strip_prefix("towpath").ok().filter(|rest| rest.components().count() == 1).unwrap_or(below);
    let parts: Vec<&str> = below.iter().filter_map(|part| part.to_str()).collect();
    let name = parts.join("--");
    Path::new("/var/lib/towpath").join(format!("{}.state", name.strip_suffix(".sock").unwrap_or(&name)))
}
