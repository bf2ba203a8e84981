//! `towpath man` and `towpath completions`: what the command line knows of itself, for man(1) and for shells.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::{self, Exit};

pub(crate) const COMPLETIONS_HELP: &str = "\
Examples:
  towpath completions bash > /usr/share/bash-completion/completions/towpath
  towpath completions zsh > /usr/share/zsh/vendor-completions/_towpath
  towpath completions fish > /usr/share/fish/vendor_completions.d/towpath.fish

Exit codes: 0 ok · 1 failed · 2 usage";

/// Arguments of `towpath completions`.
#[derive(Args, Debug)]
pub(crate) struct CompletionsArguments {
    /// The shell that they are for
    pub(crate) shell: Shell,
}

pub(crate) const MAN_HELP: &str = "\
Examples:
  towpath man /usr/local/share/man      below it: man1/towpath.1, one page for each command, and man5/towpath.toml.5
  towpath man . && man ./man1/towpath-server-drain.1

Exit codes: 0 ok · 1 failed · 2 usage";

/// Arguments of `towpath man`.
#[derive(Args, Debug)]
pub(crate) struct ManArguments {
    /// Directory for the pages, made if it is not there
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

/// Prints what the shell is to read.
pub(crate) fn completions(arguments: &CompletionsArguments) -> Result<Exit> {
    io::stdout().lock().write_all(&script(arguments.shell))?;
    Ok(Exit::Done)
}

/// The completions for one shell.
pub(crate) fn script(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "towpath", &mut text);
    text
}

/// Writes the pages.
pub(crate) fn man(arguments: &ManArguments) -> Result<Exit> {
    for Page { name, section, text } in pages()? {
        let directory = arguments.directory.join(format!("man{section}"));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join(format!("{name}.{section}"));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Exit::Done)
}

/// One manual page.
pub(crate) struct Page {
    pub(crate) name: String,
    pub(crate) section: u8,
    pub(crate) text: String,
}

impl Page {
    /// Where it is below a directory of pages.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new(&format!("man{}", self.section)).join(format!("{}.{}", self.name, self.section))
    }
}

/// A page for each command that people are told of, and one for the file.
pub(crate) fn pages() -> Result<Vec<Page>> {
    let mut command = cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages)?;
    pages.push(Page { name: "towpath.toml".to_owned(), section: 5, text: file_page(&towpath_config::reference()) });
    Ok(pages)
}

fn collect(command: &Command, pages: &mut Vec<Page>) -> Result<()> {
    let inner: Vec<&Command> = command.get_subcommands().filter(|inner| !inner.is_hide_set()).collect();
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    pages.push(Page { text: command_page(command, &name, &inner)?, name, section: 1 });
    inner.into_iter().try_for_each(|inner| collect(inner, pages))
}

/// The page of one command. What its help says at the end has headings of its own, which become sections.
fn command_page(command: &Command, name: &str, inner: &[&Command]) -> Result<String> {
    let page = Man::new(command.clone());
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    let mut text = String::from_utf8(text).context("a manual page is text")?;
    if !inner.is_empty() {
        text.push_str(".SH COMMANDS\n");
        for inner in inner {
            let page = inner.get_display_name().unwrap_or(inner.get_name());
            let about = inner.get_about().map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!(".TP\n\\fB{}\\fR(1)\n{}\n", escaped(page), line(&about)));
        }
    }
    if let Some(help) = command.get_after_help() {
        text.push_str(&sections(&help.to_string()));
    }
    text.push_str(".SH FILES\n.TP\n/etc/towpath/towpath.toml\nWhat is served, see \\fBtowpath.toml\\fR(5).\n");
    text.push_str(".TP\n/run/towpath/control.sock\nWhere a running towpath answers.\n");
    let above = match name.rsplit_once('-') {
        // A command of two words is named with a dash as well: who has no page of its own is no page above.
        Some(("towpath", _)) => "\\fBtowpath\\fR(1), ".to_owned(),
        Some((above, _)) => format!("\\fBtowpath\\fR(1), \\fB{}\\fR(1), ", escaped(above)),
        None => String::new(),
    };
    text.push_str(&format!(".SH \"SEE ALSO\"\n{above}\\fBtowpath.toml\\fR(5)\n"));
    Ok(text)
}

/// Help as sections: a line that ends in a colon and is not indented is a heading; examples keep their lines.
fn sections(help: &str) -> String {
    let mut text = String::new();
    let mut keeps_lines = false;
    for paragraph in help.split("\n\n") {
        let mut lines = paragraph.lines().peekable();
        let first = lines.peek().copied().unwrap_or_default();
        match first.split_once(": ") {
            // "Exit codes: 0 ok · 1 failed".
            Some((heading @ "Exit codes", codes)) => {
                text.push_str(&format!(".SH \"{}\"\n", heading.to_uppercase()));
                for code in codes.split(" · ") {
                    let (number, meaning) = code.split_once(' ').unwrap_or((code, ""));
                    text.push_str(&format!(".TP\n{}\n{}\n", escaped(number), line(meaning)));
                }
                continue;
            }
            _ if first.ends_with(':') && !first.starts_with(' ') => {
                text.push_str(&format!(".SH \"{}\"\n", escaped(&first.trim_end_matches(':').to_uppercase())));
                lines.next();
                keeps_lines = true;
            }
            _ if !text.contains(".SH") => text.push_str(".SH NOTES\n"),
            _ => text.push_str(".PP\n"),
        }
        let lines: Vec<String> = lines.map(|text| line(text.strip_prefix("  ").unwrap_or(text))).collect();
        let body = lines.join("\n");
        text.push_str(&if keeps_lines { format!(".nf\n{body}\n.fi\n") } else { format!("{body}\n") });
        keeps_lines = false;
    }
    text
}

/// The reference of the configuration as a page: its headings, tables and lists.
fn file_page(reference: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!(
        ".TH towpath.toml 5 \"\" \"towpath {version}\"\n.SH NAME\ntowpath.toml \\- what towpath serves, and how\n.SH DESCRIPTION\n\
         {}\n",
        line(
            "`towpath run` reads it at its start, and again when it is told to reload; `towpath check` says what is wrong with one."
        )
    );
    for read in reference.lines() {
        match read {
            _ if read.starts_with("# ") || read.starts_with("Generated ") => {}
            _ if read.starts_with("|---") || read.starts_with("| key |") => {}
            _ if read.starts_with("## ") => {
                text.push_str(&format!(".SH \"{}\"\n", inline(read.trim_start_matches("## "))));
            }
            _ if read.starts_with("| ") => text.push_str(&row(read)),
            _ if read.starts_with("- ") => {
                text.push_str(&format!(".IP \\(bu 4\n{}\n", guarded(inline(&read[2..]))));
            }
            "" => text.push_str(".PP\n"),
            _ => text.push_str(&format!("{}\n", guarded(inline(read)))),
        }
    }
    text.push_str(".SH \"SEE ALSO\"\n\\fBtowpath\\fR(1), \\fBtowpath-check\\fR(1)\n");
    text
}

/// A key: `| key | value | default | meaning |`.
fn row(read: &str) -> String {
    let cells: Vec<&str> = read.trim_matches('|').split(" | ").map(str::trim).collect();
    let [key, value, default, meaning] = cells[..] else { return format!("{}\n", guarded(inline(read))) };
    let default = match default {
        "-" => String::new(),
        "**required**" => "; required".to_owned(),
        default if default.starts_with("required") => format!("; {default}"),
        default => format!("; default {default}"),
    };
    format!(
        ".TP\n{}\n{}{}.\n.br\n{}\n",
        inline(key),
        guarded(inline(value)),
        inline(&default),
        guarded(inline(meaning))
    )
}

/// Markdown within a line: `code` is bold, [links](#x) are their words.
fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut is_bold = false;
    while let Some(at) = rest.find(['`', '[', '*']) {
        out.push_str(&escaped(&rest[..at]));
        let marked = &rest[at..];
        let link =
            marked.strip_prefix('[').and_then(|link| link.split_once("](")).filter(|(words, _)| !words.contains('\n'));
        if let Some(after) = marked.strip_prefix('`') {
            out.push_str(if is_bold { "\\fR" } else { "\\fB" });
            is_bold = !is_bold;
            rest = after;
        } else if let (false, Some((words, target))) = (is_bold, link) {
            out.push_str(&inline(words));
            rest = target.split_once(')').map_or("", |(_, rest)| rest);
        } else if let (false, Some(after)) = (is_bold, marked.strip_prefix("**")) {
            rest = after;
        } else if let (false, Some(after)) = (is_bold, marked.strip_prefix('*')) {
            rest = after;
        } else {
            out.push_str(&escaped(&marked[..1]));
            rest = &marked[1..];
        }
    }
    out.push_str(&escaped(rest));
    if is_bold {
        out.push_str("\\fR");
    }
    out
}

/// One line of running text.
fn line(text: &str) -> String {
    guarded(inline(text))
}

/// What man(1) would take for its own signs.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('"', "\\(dq")
}

/// A point or an apostrophe at the beginning of a line would be a request.
fn guarded(text: String) -> String {
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_command_has_a_page_that_says_what_its_help_says() {
        let pages = pages().unwrap();
        let names: BTreeSet<PathBuf> = pages.iter().map(Page::path).collect();
        for name in
            ["man1/towpath.1", "man1/towpath-server-drain.1", "man1/towpath-cert-import.1", "man5/towpath.toml.5"]
        {
            assert!(names.contains(Path::new(name)), "{name} is not among {names:?}");
        }
        assert_eq!(names.len(), pages.len(), "a page is there twice");
        let page = |name: &str| &pages.iter().find(|page| page.name == name).unwrap().text;
        let run = page("towpath-run");
        for line in [
            ".SH NAME\ntowpath\\-run \\- Balance",
            ".SH \"EXIT CODES\"\n.TP\n0\nended as told\n.TP\n1\nfailed\n",
            ".SH \"SIGNALS\"\n.nf\nSIGTERM, SIGINT   take no new connections",
            "towpath run \\-c my.toml \\-\\-log debug    say more\n",
            "\\-\\-config",
        ] {
            assert!(run.contains(line), "{line:?} is missing in\n{run}");
        }
        assert!(!run.contains("worker\\-cpus"), "what is hidden is told:\n{run}");
        assert!(page("towpath-server-drain").contains("\\fBtowpath\\fR(1), \\fBtowpath\\-server\\fR(1), "));
        assert!(page("towpath").contains("\\fBtowpath\\-doctor\\fR(1)\nExamine machine and network"));
    }

    #[test]
    fn no_line_of_a_page_is_taken_for_a_request_that_there_is_none() {
        let known = [".TH", ".SH", ".SS", ".TP", ".PP", ".IP", ".nf", ".fi", ".br", ".ie", ".el", ".RS", ".RE"];
        for page in pages().unwrap() {
            for line in page.text.lines().filter(|line| line.starts_with(['.', '\''])) {
                let request = line.split(' ').next().unwrap();
                assert!(known.contains(&request), "{}: {line}", page.name);
            }
        }
    }

    #[test]
    fn the_page_of_the_file_has_every_key_with_value_and_default() {
        let text = file_page(
            "# Configuration reference\n\nGenerated x\n\n## `runtime`\n\nWorkers and how they wait.\n\n\
             | key | value | default | meaning |\n|---|---|---|---|\n| `poll` | `\"busy\"`, 1 | `\"adaptive\"` | See [`a.b`](#ab), *Not yet.* |\n\
             | `name` | name | **required** | Unique. |\n\n`poll`:\n\n- `\"busy\"`: Never sleep.\n",
        );
        for part in [
            ".SH \"\\fBruntime\\fR\"\n",
            ".TP\n\\fBpoll\\fR\n\\fB\\(dqbusy\\(dq\\fR, 1; default \\fB\\(dqadaptive\\(dq\\fR.\n.br\nSee \\fBa.b\\fR, Not yet.\n",
            ".TP\n\\fBname\\fR\nname; required.\n.br\nUnique.\n",
            ".IP \\(bu 4\n\\fB\\(dqbusy\\(dq\\fR: Never sleep.\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn each_shell_completes_the_commands_there_are() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell)).unwrap();
            for word in ["doctor", "drain", "weight", "--deadline"] {
                let plain = word.trim_start_matches('-');
                assert!(script.contains(plain), "{shell}: {word}");
            }
        }
    }
}
