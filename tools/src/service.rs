//! `towpath service`: makes this program a service of a machine that has no package of it, and takes it away again.
//!
//! What is done is a list of steps that is made first, so that it can be shown without doing it.

use std::borrow::Cow;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use clap_complete::Shell;

use crate::cli::Exit;
use crate::manual;

pub(crate) const SERVICE_HELP: &str = "\
For a machine that has systemd and no package of Towpath: with the Debian package all of this is there. What is in /etc/towpath stays, whatever is
installed or uninstalled.

Examples:
  towpath service install --dry-run     what would be done
  towpath service install               then say in /etc/towpath/towpath.toml what is served, and: systemctl enable --now towpath
  towpath service uninstall             stop it, and take away what was installed

Exit codes: 0 ok · 1 failed · 2 usage";

/// What `towpath service` does.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Install this program, its unit, user, folders, manual pages and completions
    Install(InstallArguments),
    /// Stop the service and take away what was installed
    Uninstall(InstallArguments),
}

/// Arguments of `towpath service install` and `uninstall`.
#[derive(Args, Debug)]
pub(crate) struct InstallArguments {
    /// Only show what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Work below this directory, as for an image; nothing is run
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) root: PathBuf,
}

/// Of the package: where these are, its files are in charge.
const PACKAGE_UNITS: [&str; 2] = ["usr/lib/systemd/system/towpath.service", "lib/systemd/system/towpath.service"];
/// First line of whatever we write and may therefore take away.
const MARK: &str = "# Installed by `towpath service install`.\n";
const PROGRAM: &str = "usr/local/bin/towpath";
const CONFIGURATION: &str = "etc/towpath/towpath.toml";
const UNIT: &str = "etc/systemd/system/towpath.service";
const USER: &str = "etc/sysusers.d/towpath.conf";
const FOLDERS: &str = "etc/tmpfiles.d/towpath.conf";
const PAGES: &str = "usr/local/share/man";
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "usr/local/share/bash-completion/completions/towpath"),
    (Shell::Zsh, "usr/local/share/zsh/site-functions/_towpath"),
    (Shell::Fish, "usr/local/share/fish/vendor_completions.d/towpath.fish"),
];
/// Longest unit that is read to see whose it is, in bytes.
const UNIT_BYTES_MAX: u64 = 64 * 1024;

const PUBLIC_MODE: u32 = 0o644;
const PROGRAM_MODE: u32 = 0o755;
/// Of the configuration, which may hold addresses that are nobody's business; its group comes from tmpfiles.d.
const CONFIGURATION_MODE: u32 = 0o640;
/// Of folders, which are public but for that of the configuration.
const FOLDER_MODE: u32 = 0o755;

/// One thing to do; paths are below the root.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Write a file, unless it is one that stays as it is.
    Write { path: PathBuf, content: Cow<'static, [u8]>, mode: u32, unless_there: bool },
    /// Take a file away if it is there.
    Remove { path: PathBuf },
    /// Run a program. What stops something that may not be there may fail.
    Run { words: &'static [&'static str], may_fail: bool },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Write { path, content, mode, unless_there } => {
                let kept = if *unless_there { ", unless it is there" } else { "" };
                write!(f, "write   /{} ({} bytes, mode {mode:o}{kept})", path.display(), content.len())
            }
            Step::Remove { path } => write!(f, "remove  /{}", path.display()),
            Step::Run { words, .. } => write!(f, "run     {}", words.join(" ")),
        }
    }
}

/// Does it, or shows it.
pub(crate) fn service(command: &ServiceCommand) -> Result<Exit> {
    let (arguments, steps) = match command {
        ServiceCommand::Install(arguments) => {
            let own = std::env::current_exe().context("cannot find this program")?;
            let program = fs::read(&own).with_context(|| format!("cannot read {}", own.display()))?;
            (arguments, installing(program)?)
        }
        ServiceCommand::Uninstall(arguments) => (arguments, uninstalling()?),
    };
    let root = &arguments.root;
    let is_install = matches!(command, ServiceCommand::Install(_));
    if judge(root)? == Found::Nothing && !is_install {
        bail!("nothing is installed here by `towpath service install`");
    }
    let runs = root == Path::new("/");
    let mut out = io::stdout().lock();
    for step in steps {
        if !runs && matches!(step, Step::Run { .. }) {
            continue;
        }
        if arguments.dry_run || carry_out(&step, root)? {
            writeln!(out, "{step}")?;
        }
    }
    if is_install && !arguments.dry_run {
        writeln!(
            out,
            "\nnext: say in /{CONFIGURATION} what is served, then\n  towpath check /{CONFIGURATION} && towpath doctor\n  systemctl enable --now towpath"
        )?;
    }
    Ok(Exit::Done)
}

/// What is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    OurUnit,
}

/// Refuses where the service is not ours to install or take away.
fn judge(root: &Path) -> Result<Found> {
    if PACKAGE_UNITS.iter().any(|unit| root.join(unit).exists()) {
        bail!("the Debian package towpath is installed here; use apt to upgrade or remove it");
    }
    if root == Path::new("/") && !Path::new("/run/systemd/system").is_dir() {
        bail!(
            "this machine was not started by systemd; write a service for what it has, or prepare an image with --root DIR"
        );
    }
    let unit = root.join(UNIT);
    let text = match OpenOptions::new().read(true).open(&unit) {
        Ok(file) => io::read_to_string(io::Read::take(file, UNIT_BYTES_MAX)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => Err(error),
    };
    let text = text.with_context(|| format!("cannot read {}", unit.display()))?;
    if !text.starts_with(MARK) {
        bail!("{} was not written by `towpath service install`; move it away first", unit.display());
    }
    Ok(Found::OurUnit)
}

/// Everything that makes the program a service.
fn installing(program: Vec<u8>) -> Result<Vec<Step>> {
    let unit = include_str!("../../packaging/towpath.service").replace("/usr/bin/towpath", &format!("/{PROGRAM}"));
    let marked = |text: &str| Cow::Owned(format!("{MARK}{text}").into_bytes());
    let public =
        |path: &str, content| Step::Write { path: path.into(), content, mode: PUBLIC_MODE, unless_there: false };
    let mut steps = vec![
        Step::Write { path: PROGRAM.into(), content: program.into(), mode: PROGRAM_MODE, unless_there: false },
        public(USER, marked(include_str!("../../packaging/towpath.sysusers"))),
        public(FOLDERS, marked(include_str!("../../packaging/towpath.tmpfiles"))),
        Step::Write {
            path: CONFIGURATION.into(),
            content: include_bytes!("../../packaging/towpath.toml").into(),
            mode: CONFIGURATION_MODE,
            unless_there: true,
        },
        public(UNIT, marked(&unit)),
    ];
    for page in manual::pages()? {
        let path = Path::new(PAGES).join(page.path());
        let content = page.text.into_bytes().into();
        steps.push(Step::Write { path, content, mode: PUBLIC_MODE, unless_there: false });
    }
    for (shell, path) in COMPLETIONS {
        steps.push(public(path, manual::script(shell).into()));
    }
    const RUNS: [&[&str]; 3] = [
        &["systemd-sysusers", "towpath.conf"],
        &["systemd-tmpfiles", "--create", "towpath.conf"],
        &["systemctl", "daemon-reload"],
    ];
    steps.extend(RUNS.map(|words| Step::Run { words, may_fail: false }));
    Ok(steps)
}

/// Everything that takes it away: what it is told and what it remembers stays.
fn uninstalling() -> Result<Vec<Step>> {
    // Nobody may have enabled it.
    let mut steps = vec![Step::Run { words: &["systemctl", "disable", "--now", "towpath.service"], may_fail: true }];
    let pages = manual::pages()?.into_iter().map(|page| Path::new(PAGES).join(page.path()));
    let fixed = [UNIT, FOLDERS, USER, PROGRAM].into_iter().chain(COMPLETIONS.map(|(_, path)| path)).map(PathBuf::from);
    steps.extend(fixed.chain(pages).map(|path| Step::Remove { path }));
    steps.push(Step::Run { words: &["systemctl", "daemon-reload"], may_fail: false });
    Ok(steps)
}

/// Whether something was done.
fn carry_out(step: &Step, root: &Path) -> Result<bool> {
    match step {
        Step::Write { path, content, mode, unless_there } => {
            let path = root.join(path);
            if *unless_there && path.exists() {
                return Ok(false);
            }
            replace(&path, content, *mode).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(true)
        }
        Step::Remove { path } => {
            let path = root.join(path);
            match fs::remove_file(&path) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
            }
        }
        Step::Run { words, may_fail } => {
            let [program, arguments @ ..] = words else { return Ok(false) };
            let output = Command::new(program).args(arguments).output();
            let output = output.with_context(|| format!("cannot run {program}"))?;
            if !output.status.success() && !may_fail {
                bail!("{}: {}: {}", words.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(output.status.success())
        }
    }
}

/// In one step: a program that runs cannot be written over, and nobody is to read half a unit.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    }
    let mut next = path.as_os_str().to_owned();
    next.push(".new");
    let next = PathBuf::from(next);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&next)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&next, path)
    })();
    if written.is_err() {
        // What is left of it is of no use; the first error is the one to tell.
        let _is_gone = fs::remove_file(&next);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_file(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { found.extend(every_file(&path)) } else { found.push(path) }
        }
        found
    }

    fn all(steps: Vec<Step>, root: &Path) {
        for step in steps.iter().filter(|step| !matches!(step, Step::Run { .. })) {
            carry_out(step, root).unwrap();
        }
    }

    #[test]
    fn what_is_installed_is_taken_away_but_for_the_configuration() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(judge(root.path()).unwrap(), Found::Nothing);
        all(installing(b"program 1".to_vec()).unwrap(), root.path());
        let unit = fs::read_to_string(root.path().join(UNIT)).unwrap();
        assert!(unit.contains("\nExecStart=/usr/local/bin/towpath run -c /etc/towpath/towpath.toml\n"), "{unit}");
        let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!([PROGRAM, UNIT, CONFIGURATION].map(mode), [0o755, 0o644, 0o640]);

        // The operator's file stays when a newer program comes.
        fs::write(root.path().join(CONFIGURATION), "mine").unwrap();
        assert_eq!(judge(root.path()).unwrap(), Found::OurUnit);
        all(installing(b"program 2".to_vec()).unwrap(), root.path());
        assert_eq!(fs::read(root.path().join(PROGRAM)).unwrap(), b"program 2");
        assert_eq!(fs::read(root.path().join(CONFIGURATION)).unwrap(), b"mine");

        all(uninstalling().unwrap(), root.path());
        assert_eq!(every_file(root.path()), [root.path().join(CONFIGURATION)]);
    }

    #[test]
    fn a_unit_of_somebody_else_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let place = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        place(UNIT, "[Service]\nExecStart=/opt/towpath\n");
        assert!(judge(root.path()).unwrap_err().to_string().contains("move it away first"));
        place(UNIT, MARK);
        judge(root.path()).unwrap();
        place(PACKAGE_UNITS[0], "");
        assert!(judge(root.path()).unwrap_err().to_string().contains("use apt"));
    }

    #[test]
    fn the_unit_runs_what_the_package_has_and_nothing_that_it_lacks() {
        let unit = include_str!("../../packaging/towpath.service");
        let started =
            unit.matches("=/usr/bin/towpath run ").count() + unit.matches("=/usr/bin/towpath reload\n").count();
        assert_eq!((unit.matches("/usr/bin/towpath").count(), started), (2, 2), "{unit}");
        let checked = towpath_config::check("towpath.toml", include_str!("../../packaging/towpath.toml"));
        assert!(checked.model.is_some() && checked.diagnostics.is_empty(), "{:?}", checked.diagnostics);
    }
}
