//! `towpath support-bundle`: one archive with what a helper asks for, and no secret in it.
//!
//! The configuration goes in without free text and comments (`towpath_config::without_secrets`); what was left out there, and what the files say that it
//! names, is then looked for in every other part and left out as well.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;
use towpath_config::{Checked, Severity};
use towpath_engine::doctor::{Probing, examine};
use towpath_engine::{Endpoint, fetch_status, get};

use crate::cli::Exit;
use crate::daemon::Place;
use crate::doctor;
use crate::file::ConfigFile;
use crate::paint::Paint;
use crate::server::shown::unix_ms;
use crate::status;
use crate::table::{counted, thousands};

pub(crate) const SUPPORT_HELP: &str = "\
In it are the configuration without free text, comments, passwords and keys, status, events, limits, certificates (not their keys), what a reload would
change now, what the doctor sees on this machine, counters of the kernel's network, versions, and the latest lines of the journal. Names and addresses of services, servers and, in the journal, of clients stay
readable, and so does a secret that the file has named before and now no more: look into it before you give it away.

Examples:
  towpath support-bundle                writes towpath-support-….tar here
  towpath support-bundle --out /tmp/case-1234.tar --no-journal
  tar -tvf towpath-support-….tar        what is in it

Exit codes: 0 ok, also where the daemon does not answer · 1 failed · 2 usage";

/// Arguments of `towpath support-bundle`.
#[derive(Args, Debug)]
pub(crate) struct SupportArguments {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = "/etc/towpath/towpath.toml")]
    config: PathBuf,
    /// Archive to write; it must not be there [default: towpath-support-TIME.tar]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Leave out the journal
    #[arg(long)]
    no_journal: bool,
    #[command(flatten)]
    place: Place,
}

/// Lines of the journal.
const JOURNAL_LINES: &str = "2000";
/// Bytes of one part: what is longer is cut.
const PART_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A file that is longer holds no password.
const SECRET_FILE_BYTES_MAX: u64 = 4096;
/// Shorter secrets cannot be told from other text.
const SECRET_BYTES_MIN: usize = 6;
const LEFT_OUT: &str = "(left out)";

/// What the daemon is asked beside its status: what has happened, what is scarce, what ends, and what a reload would change, or why it would be refused.
const QUESTIONS: [(&str, &str); 4] = [
    ("events.json", "/v1/events"),
    ("limits.json", "/v1/limits"),
    ("certs.json", "/v1/certs"),
    ("plan.json", "/v1/plan"),
];
/// An answer is there by then: for a plan files are read and the machine is asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What the kernel counts and knows, by file.
const KERNEL_FILES: [(&str, &str); 12] = [
    ("kernel/version", "/proc/version"),
    ("kernel/cpuinfo", "/proc/cpuinfo"),
    ("kernel/meminfo", "/proc/meminfo"),
    ("kernel/interrupts", "/proc/interrupts"),
    ("kernel/net/dev", "/proc/net/dev"),
    ("kernel/net/snmp", "/proc/net/snmp"),
    ("kernel/net/netstat", "/proc/net/netstat"),
    ("kernel/net/sockstat", "/proc/net/sockstat"),
    ("kernel/net/softnet_stat", "/proc/net/softnet_stat"),
    ("kernel/net/route", "/proc/net/route"),
    ("kernel/net/ipv6_route", "/proc/net/ipv6_route"),
    ("os-release", "/etc/os-release"),
];

/// One file of the archive, or why it is not there.
struct Part {
    name: &'static str,
    content: Result<String, String>,
}

/// Collects and writes.
pub(crate) fn support_bundle(arguments: &SupportArguments) -> Result<Exit> {
    let seconds = unix_ms() / 1000;
    let path = arguments.out.clone().unwrap_or_else(|| format!("towpath-support-{seconds}.tar").into());
    // Before minutes are spent: a place that cannot be written, or that somebody else's file has.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot make {}; name another place by --out", path.display()))?;
    let parts = collect(arguments);
    let written = file.write_all(&archive(&parts, seconds)).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half an archive is of no use; the error is the one to tell.
        let _is_gone = fs::remove_file(&path);
        return Err(error).with_context(|| format!("cannot write {}", path.display()));
    }
    let mut out = io::stdout().lock();
    write!(out, "{}", contents(&parts))?;
    writeln!(out, "\n{}: names and addresses are in it; look through it before you give it away", path.display())?;
    Ok(Exit::Done)
}

/// Every part, without secrets.
fn collect(arguments: &SupportArguments) -> Vec<Part> {
    let mut secrets: Vec<String> = Vec::new();
    let file = ConfigFile::read(&arguments.config).map_err(|error| format!("{error:#}"));
    let checked = file.as_ref().ok().map(|file| towpath_config::check(&file.name, &file.text));
    let config = file.and_then(|file| match towpath_config::without_secrets(&file.text) {
        Some(redacted) => {
            secrets.extend(redacted.secrets);
            Ok(redacted.text)
        }
        None => Err("it is no TOML, so that nobody can say which part of it is secret".to_owned()),
    });
    secrets.extend(checked.iter().flat_map(|checked| &checked.files).flat_map(|file| lines_of(&file.path)));

    let endpoint = arguments.place.endpoint().map_err(|error| format!("{error:#}"));
    let status = endpoint.as_ref().map_err(Clone::clone);
    let status = status.and_then(|endpoint| fetch_status(endpoint).map_err(|error| error.to_string()));
    let json =
        |status: &towpath_engine::Status| serde_json::to_string_pretty(status).map_err(|error| error.to_string());
    let mut parts = vec![
        Part { name: "versions", content: Ok(versions()) },
        Part { name: "towpath.toml", content: config },
        Part { name: "check", content: checked.as_ref().map(diagnostics).ok_or_else(|| "there is no file".to_owned()) },
        Part { name: "status.json", content: status.as_ref().map_err(Clone::clone).and_then(json) },
        Part {
            name: "status",
            content: status
                .as_ref()
                .map_err(Clone::clone)
                .map(|status| status::render(status, unix_ms(), Paint::Plain)),
        },
        Part { name: "doctor", content: doctor(checked.as_ref()) },
    ];
    parts.extend(QUESTIONS.map(|(name, path)| {
        // Whoever does not tell its status does not answer these either: each would wait as long again.
        let content = match (&endpoint, &status) {
            (Ok(endpoint), Ok(_)) => answer(endpoint, path),
            (Err(reason), _) | (_, Err(reason)) => Err(reason.clone()),
        };
        Part { name, content }
    }));
    let kernel = KERNEL_FILES.map(|(name, path)| Part { name, content: read(Path::new(path)) });
    parts.extend(kernel);
    if !arguments.no_journal {
        parts.push(Part { name: "journal", content: journal() });
    }
    for part in &mut parts {
        // Reasons quote what programs and the system have said.
        let (Ok(text) | Err(text)) = &mut part.content;
        *text = without(std::mem::take(text), &secrets);
    }
    parts
}

/// What the daemon answers, as it is.
fn answer(endpoint: &Endpoint, path: &str) -> Result<String, String> {
    let answer: Value = get(endpoint, path, ANSWER_LIMIT).map_err(|error| error.to_string())?;
    serde_json::to_string_pretty(&answer).map_err(|error| error.to_string())
}

fn versions() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "towpath {}\nLinux {}\n{} for this process\n{}\n",
        env!("CARGO_PKG_VERSION"),
        release.trim(),
        counted(cpus, "CPU"),
        std::env::consts::ARCH
    )
}

/// What `towpath check` finds, without the lines that it would show.
fn diagnostics(checked: &Checked) -> String {
    let line = |diagnostic: &towpath_config::Diagnostic| {
        let severity = if diagnostic.severity == Severity::Error { "error" } else { "warning" };
        format!("{severity}[{}] line {}\n", diagnostic.code, diagnostic.primary.line)
    };
    let lines: String = checked.diagnostics.iter().map(line).collect();
    format!("{lines}{} found\n", counted(checked.diagnostics.len(), "mistake"))
}

/// What the doctor sees without asking on the wire, which would take time and rights.
fn doctor(checked: Option<&Checked>) -> Result<String, String> {
    let checked = checked.ok_or_else(|| "there is no file".to_owned())?;
    let model = checked.model.as_ref().ok_or_else(|| "the file has errors".to_owned())?;
    let examination = examine(model, Probing::Off).map_err(|error| error.to_string())?;
    Ok(doctor::render(&checked.file_name, &examination, Paint::Plain))
}

fn journal() -> Result<String, String> {
    let arguments = ["--unit", "towpath", "--lines", JOURNAL_LINES, "--no-pager", "--output", "short-iso", "--quiet"];
    let output = Command::new("journalctl").args(arguments).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(format!("journalctl: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("journalctl: {error}")),
    }
}

fn read(path: &Path) -> Result<String, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(PART_BYTES_MAX as u64).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a short file says, line by line: passwords, tokens and keys are there. The first and last lines of PEM are the same in all.
fn lines_of(path: &Path) -> Vec<String> {
    let is_short = fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() <= SECRET_FILE_BYTES_MAX);
    let text = if is_short { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    let lines = text.lines().map(str::trim).filter(|line| line.len() >= SECRET_BYTES_MIN && !line.starts_with("-----"));
    lines.map(str::to_owned).collect()
}

/// The text with something else wherever a secret stands, also as JSON writes it.
fn without(mut text: String, secrets: &[String]) -> String {
    let mut secrets: Vec<&String> = secrets.iter().collect();
    // One that holds another goes first, so that none of it is left.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    for secret in secrets {
        let quoted = Value::from(secret.as_str()).to_string();
        let quoted = quoted.strip_prefix('"').and_then(|quoted| quoted.strip_suffix('"')).unwrap_or(&quoted);
        for form in [secret.as_str(), quoted] {
            if text.contains(form) {
                text = text.replace(form, LEFT_OUT);
            }
        }
    }
    text
}

/// What is in the archive, and what is not and why.
fn contents(parts: &[Part]) -> String {
    let line = |part: &Part| match &part.content {
        Ok(content) => format!("  {:<24} {:>10} bytes\n", part.name, thousands(content.len() as u64)),
        Err(reason) => format!("  {:<24} is missing: {reason}\n", part.name),
    };
    parts.iter().map(line).collect()
}

/// A tar archive (POSIX.1-1988, `ustar`), in one folder.
fn archive(parts: &[Part], seconds: u64) -> Vec<u8> {
    let listed = format!("towpath support bundle\n\n{}", contents(parts));
    let mut bytes = Vec::new();
    let there = parts.iter().filter_map(|part| Some((part.name, part.content.as_deref().ok()?)));
    for (name, content) in std::iter::once(("CONTENTS", listed.as_str())).chain(there) {
        bytes.extend_from_slice(&header(&format!("towpath-support-{seconds}/{name}"), content.len(), seconds));
        bytes.extend_from_slice(content.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    // Two empty blocks are the end.
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

/// Of a tar archive, in bytes.
const BLOCK: usize = 512;

fn header(name: &str, length: usize, seconds: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    // Offsets and lengths as pax(1) has them. Names are ours and short.
    put(0, name.as_bytes().get(..100).unwrap_or(name.as_bytes()));
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{length:011o}\0").as_bytes());
    put(136, format!("{seconds:011o}\0").as_bytes());
    // The sum is that of the block with blanks in its place.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRETS: [&str; 5] = [
        "hunter2-in-the-file",
        "token-in-the-webhook",
        "word-in-a-comment",
        "argument-of-a-command",
        "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
    ];

    #[test]
    fn no_secret_gets_into_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("password"), format!("{}\n", SECRETS[0])).unwrap();
        let config = format!(
            "# {}\n[control]\nlisten = \"127.0.0.1:9443\"\n[notify]\nwebhook = \"https://hooks.example/{}\"\ncommand = [\"/bin/true\", \"{}\"]\nwebhook_token_file = \"{}\"\n\
             [[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nports = 80\n\
             server = [{{ name = \"one\", address = \"192.0.2.9\" }}]\n\
             [[control.user]]\nname = \"alice\"\nrole = \"viewer\"\npassword_hash = \"pbkdf2-sha512:210000:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a:{}\"\n",
            SECRETS[2],
            SECRETS[1],
            SECRETS[3],
            place("password").display(),
            SECRETS[4]
        );
        fs::write(place("towpath.toml"), config).unwrap();
        let out = place("bundle.tar");
        let arguments = SupportArguments {
            config: place("towpath.toml"),
            out: Some(out.clone()),
            no_journal: true,
            place: Place::at(place("nobody.sock")),
        };
        support_bundle(&arguments).unwrap();
        let bytes = fs::read(&out).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} is in the archive");
        }
        for told in ["name = \"web\"", "vip = \"192.0.2.1\"", "status.json", "plan.json", "no daemon answers", "Linux "]
        {
            assert!(text.contains(told), "{told} is missing");
        }

        // tar(1) reads it, and it was for us alone.
        let listed = Command::new("tar").arg("-tvf").arg(&out).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        for name in ["CONTENTS", "towpath.toml", "doctor", "kernel/net/snmp", "versions"] {
            let is_there =
                listed.lines().any(|line| line.starts_with("-rw------- ") && line.ends_with(&format!("/{name}")));
            assert!(is_there, "{name} is not among\n{listed}");
        }
        assert!(support_bundle(&arguments).unwrap_err().to_string().contains("--out"), "an archive was written over");
    }

    #[test]
    fn what_is_secret_is_left_out_wherever_it_stands() {
        let secrets = ["say \"friend\"".to_owned(), "friend-and-enter".to_owned(), "friend-and".to_owned()];
        let text = "a say \"friend\" b {\"x\": \"say \\\"friend\\\"\"} friend-and-enter friend-and";
        assert_eq!(without(text.to_owned(), &secrets), "a (left out) b {\"x\": \"(left out)\"} (left out) (left out)");
    }

    #[test]
    fn a_file_that_is_no_toml_stays_out() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("towpath.toml");
        fs::write(&config, format!("password = \"{}\n", SECRETS[0])).unwrap();
        let place = Place::at(folder.path().join("nobody.sock"));
        let parts = collect(&SupportArguments { config, out: None, no_journal: true, place });
        let part = parts.iter().find(|part| part.name == "towpath.toml").unwrap();
        assert!(part.content.as_ref().unwrap_err().contains("no TOML"));
        let archive = archive(&parts, 0);
        assert!(!String::from_utf8_lossy(&archive).contains(SECRETS[0]));
    }
}
