//! The file that keeps what was said at run time, so that it survives a restart (`control.state_file`).
//!
//! It is written whole, beside its place, and then put there: whoever reads it finds the old or the new one. One that cannot be understood is set aside,
//! not written over. Times in it are those of the calendar, so that a deadline passes while the process is not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;
use towpath_config::model::{AdminState, MachineRole};
use towpath_core::Now;
use towpath_core::admin::{
    ADMIN_REASON_BYTES_MAX, AdminWord, AdminWords, DRAIN_MS_MAX, Drain, DrainEnd, DrainOver, Member, RoleWord, Said,
    WeightWord, Words,
};

use crate::admin::{DrainEndWord, DrainOverStatus, ThenWord, admin_of, unix_ms};
use crate::house::House;
use crate::role::RoleText;
use crate::status::word;

/// Bytes of the file at most: some hundred thousand members, each with a reason as long as it may be.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The form of the file.
const VERSION: u32 = 1;
/// How long an order waits for its being written down.
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What could not be written is tried again after so long.
const RETRY: Duration = Duration::from_secs(60);

/// Writes the file whenever something was said, one after the other.
#[derive(Debug)]
pub(crate) struct StateKeeper {
    path: Option<PathBuf>,
    wanted: watch::Sender<u64>,
    saved: watch::Sender<Saved>,
    /// One at a time: all write the same file beside it.
    writing: Arc<Mutex<()>>,
}

/// How the file is.
#[derive(Clone, Debug, Default)]
struct Saved {
    /// The version that was tried last.
    tried: u64,
    /// The version that is there.
    written: u64,
    trouble: Option<String>,
}

/// What was found at the start.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What was said before.
    pub(crate) words: AdminWords,
    /// What is wrong with the file.
    pub(crate) trouble: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileText {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<RoleWordText>,
    members: Vec<MemberText>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RoleWordText {
    role: RoleText,
    /// What the configuration said then.
    configured: Option<RoleText>,
    /// Of the start of the machine in which it was said.
    #[serde(default)]
    boot: String,
    #[serde(flatten)]
    said: SaidText,
}

#[derive(Debug, Serialize, Deserialize)]
struct MemberText {
    service: String,
    address: IpAddr,
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<AdminText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<WeightText>,
}

#[derive(Debug, Serialize, Deserialize)]
struct AdminText {
    state: String,
    /// What the configuration said then.
    configured: String,
    #[serde(flatten)]
    said: SaidText,
    #[serde(skip_serializing_if = "Option::is_none")]
    drain: Option<DrainText>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WeightText {
    weight: u16,
    configured: u16,
    #[serde(flatten)]
    said: SaidText,
}

#[derive(Debug, Serialize, Deserialize)]
struct SaidText {
    unix_ms: u64,
    by: String,
    reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct DrainText {
    deadline_unix_ms: Option<u64>,
    until: u32,
    then: ThenWord,
    over: Option<DrainOverStatus>,
}

impl StateKeeper {
    pub(crate) fn new(path: Option<PathBuf>) -> StateKeeper {
        StateKeeper {
            path,
            wanted: watch::Sender::new(0),
            saved: watch::Sender::new(Saved::default()),
            writing: Arc::default(),
        }
    }

    /// What is said now is this version.
    pub(crate) fn note(&self, version: u64) {
        self.wanted.send_if_modified(|wanted| {
            let is_newer = *wanted < version;
            *wanted = version.max(*wanted);
            is_newer
        });
    }

    /// Waits until this version is written down; why it is not, if it is not.
    pub(crate) async fn until_saved(&self, version: u64) -> Option<String> {
        let path = self.path.as_deref()?;
        let mut saved = self.saved.subscribe();
        let written = timeout(SAVE_TIMEOUT, saved.wait_for(|saved| saved.tried >= version)).await;
        let trouble = match written {
            Ok(Ok(saved)) => saved.trouble.clone()?,
            Ok(Err(_)) => "the process is ending".to_owned(),
            Err(_) => format!("its disk did not take it within {} s", SAVE_TIMEOUT.as_secs()),
        };
        Some(format!("this will not survive a restart: {}: {trouble}", path.display()))
    }

    fn tell(&self, version: u64, result: Result<(), String>) {
        let trouble = result.err();
        let written = if trouble.is_none() { version } else { self.saved.borrow().written };
        let before = self.saved.send_replace(Saved { tried: version, written, trouble: trouble.clone() });
        if trouble != before.trouble
            && let Some(path) = &self.path
        {
            match trouble {
                Some(trouble) => tracing::error!(
                    "{}: {trouble}; what was said at run time will not survive a restart (control.state_file)",
                    path.display()
                ),
                None => tracing::info!("{}: written again", path.display()),
            }
        }
    }

    fn is_written(&self, version: u64) -> bool {
        self.saved.borrow().written >= version
    }
}

/// Writes what is said whenever it changes, on a thread of its own: a slow disk holds nobody up.
pub(crate) async fn keep(house: Arc<House>) {
    let Some(path) = house.keeper.path.clone() else { return };
    let mut wanted = house.keeper.wanted.subscribe();
    loop {
        let version = *wanted.borrow_and_update();
        if house.upgrades.is_handed() {
            // Another process writes it.
            return;
        }
        if !house.keeper.is_written(version) {
            let (version, text) = text_now(&house);
            let (path, writing) = (path.clone(), Arc::clone(&house.keeper.writing));
            let written = tokio::task::spawn_blocking(move || write_alone(&writing, &path, text)).await;
            house.keeper.tell(version, written.unwrap_or_else(|_| Err("its thread has ended".to_owned())));
        }
        let changed = wanted.changed();
        let ended = match house.keeper.is_written(version) {
            true => changed.await.is_err(),
            false => timeout(RETRY, changed).await.is_ok_and(|changed| changed.is_err()),
        };
        if ended {
            return;
        }
    }
}

/// Writes what is not written yet: the process ends.
pub(crate) fn keep_last(house: &House) {
    let Some(path) = &house.keeper.path else { return };
    if house.upgrades.is_handed() {
        return;
    }
    let (version, text) = text_now(house);
    if !house.keeper.is_written(version) {
        house.keeper.tell(version, write_alone(&house.keeper.writing, path, text));
    }
}

fn write_alone(writing: &Mutex<()>, path: &Path, text: Result<Vec<u8>, String>) -> Result<(), String> {
    let _alone = writing.lock().unwrap_or_else(PoisonError::into_inner);
    write(path, &text?).map_err(|error| error.to_string())
}

/// What holds now, as the file would say it: for the process that takes over.
pub(crate) fn text_of(house: &House) -> Result<String, String> {
    text_now(house).1.and_then(|text| String::from_utf8(text).map_err(|error| error.to_string()))
}

/// What another process has said so.
pub(crate) fn found(text: &str, now: Now) -> Found {
    match parse(text.as_bytes(), unix_ms(), now) {
        Ok(words) => Found { words, trouble: None },
        Err(reason) => Found {
            words: AdminWords::new(),
            trouble: Some(format!("what the process before has told is damaged ({reason})")),
        },
    }
}

fn text_now(house: &House) -> (u64, Result<Vec<u8>, String>) {
    let truth = house.truth();
    (truth.words_version(), render(truth.words(), house.shared.now(), unix_ms()))
}

/// What was said before, if the file is there. One that is damaged or cannot be read is set aside, so that the next word is not written over it.
pub(crate) fn read(path: &Path, unix_ms: u64) -> Found {
    let what = match read_text(path) {
        Ok(text) => match parse(&text, unix_ms, Now(0)) {
            Ok(words) => return Found { words, trouble: None },
            Err(reason) => format!("it is damaged ({reason})"),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::default(),
        Err(error) => format!("it cannot be read ({error})"),
    };
    let aside = beside(path, ".broken");
    let trouble = match fs::rename(path, &aside) {
        Ok(()) => format!("{what} and was set aside as {}", aside.display()),
        Err(error) => format!("{what} and could not be set aside: {error}"),
    };
    Found { words: AdminWords::new(), trouble: Some(trouble) }
}

fn read_text(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe would hold the start up for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// Deadlines count from `now`, which is `unix_ms` by the calendar: what has passed before is over at once.
fn parse(text: &[u8], unix_ms: u64, now: Now) -> Result<AdminWords, String> {
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("more than {FILE_BYTES_MAX} bytes"));
    }
    let file: FileText = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if file.version != VERSION {
        return Err(format!("its version is {}, not {VERSION}", file.version));
    }
    let mut words = AdminWords::new();
    // After a crash of the machine its twin serves: nobody is active by what was said before.
    let is_stale = |word: &RoleWordText| word.role == RoleText::Active && word.boot != boot();
    if let Some(RoleWordText { role, configured, said, .. }) = file.role.filter(|word| !is_stale(word)) {
        words.restore_role(RoleWord { role: role.into(), over: configured.map(MachineRole::from), said: said.into() });
    }
    for MemberText { service, address, port, admin, weight } in file.members {
        let admin = admin.map(|text| admin_word(text, unix_ms, now)).transpose()?;
        let weight =
            weight.map(|text| WeightWord { weight: text.weight, over: text.configured, said: text.said.into() });
        words.restore(Member { service, address, port }, Words { admin, weight });
    }
    Ok(words)
}

fn admin_word(text: AdminText, unix_ms: u64, now: Now) -> Result<AdminWord, String> {
    let state = |word: &str| admin_of(word).ok_or_else(|| format!("{word:?} is no admin state"));
    let drain = text.drain.map(|drain| Drain {
        deadline: drain.deadline_unix_ms.map(|deadline| now + deadline.saturating_sub(unix_ms).min(DRAIN_MS_MAX)),
        until: drain.until,
        then: drain.then.into(),
        over: drain.over.map(|over| DrainOver {
            why: match over.why {
                DrainEndWord::Deadline => DrainEnd::Deadline,
                DrainEndWord::Until => DrainEnd::Until,
            },
            unix_ms: over.unix_ms,
            left: over.left,
        }),
    });
    let word = AdminWord { state: state(&text.state)?, over: state(&text.configured)?, said: text.said.into(), drain };
    let fits = match (word.state, &word.drain) {
        (AdminState::Drain, drain) => drain.is_some(),
        (AdminState::Halt, drain) => drain.is_none_or(|drain| drain.over.is_some()),
        (AdminState::Ready, drain) => drain.is_none(),
    };
    if fits { Ok(word) } else { Err(format!("a state of {} does not go with its drain", text.state)) }
}

impl From<SaidText> for Said {
    /// Somebody may have edited the file.
    fn from(text: SaidText) -> Said {
        let bounded = |text: String| -> String {
            let plain = text.chars().filter(|letter| !letter.is_control());
            let mut left = ADMIN_REASON_BYTES_MAX;
            plain.take_while(|letter| left.checked_sub(letter.len_utf8()).map(|rest| left = rest).is_some()).collect()
        };
        Said { unix_ms: text.unix_ms, by: bounded(text.by), reason: bounded(text.reason) }
    }
}

fn said_text(said: &Said) -> SaidText {
    SaidText { unix_ms: said.unix_ms, by: said.by.clone(), reason: said.reason.clone() }
}

fn render(words: &AdminWords, now: Now, unix_ms: u64) -> Result<Vec<u8>, String> {
    let drain_text = |drain: &Drain| DrainText {
        deadline_unix_ms: drain.deadline.map(|deadline| unix_ms + deadline.ms_since(now)),
        until: drain.until,
        then: drain.then.into(),
        over: drain.over.map(|over| DrainOverStatus {
            why: match over.why {
                DrainEnd::Deadline => DrainEndWord::Deadline,
                DrainEnd::Until => DrainEndWord::Until,
            },
            unix_ms: over.unix_ms,
            left: over.left,
        }),
    };
    let members = words
        .iter()
        .map(|(member, words)| MemberText {
            service: member.service.clone(),
            address: member.address,
            port: member.port,
            admin: words.admin.as_ref().map(|admin| AdminText {
                state: word(&admin.state),
                configured: word(&admin.over),
                said: said_text(&admin.said),
                drain: admin.drain.as_ref().map(drain_text),
            }),
            weight: words.weight.as_ref().map(|weight| WeightText {
                weight: weight.weight,
                configured: weight.over,
                said: said_text(&weight.said),
            }),
        })
        .collect();
    let role = words.role_word().map(|word| RoleWordText {
        role: word.role.into(),
        configured: word.over.map(RoleText::from),
        boot: boot(),
        said: said_text(&word.said),
    });
    let file = FileText { version: VERSION, role, members };
    let mut text = serde_json::to_vec_pretty(&file).map_err(|error| error.to_string())?;
    text.push(b'\n');
    match text.len() as u64 > FILE_BYTES_MAX {
        true => Err(format!("more than {FILE_BYTES_MAX} bytes, which nobody would read again; give shorter reasons")),
        false => Ok(text),
    }
}

/// Names this start of the machine (random(4)); empty where the kernel does not say.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Puts `text` in the place of the file, or leaves it as it is.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.exists() {
        // systemd makes it (StateDirectory=); one level for who runs it without.
        fs::create_dir(directory)?;
    }
    let new = beside(path, ".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Never what somebody else has put there: a link would lead root to another file.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests;
