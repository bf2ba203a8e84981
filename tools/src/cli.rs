//! The command line: what `towpath --help` shows, and the exit code of each end.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::Styles;
use clap::builder::styling::AnsiColor;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::daemon::Daemon;
use crate::{
    capture, cert, certs, check, credential, demo, doctor, events, explain, limits, manual, persistence, reference,
    reload, role, run, server, service, sessions, status, support, top, upgrade,
};

/// How a command ended; scripts depend on these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything went well.
    Done = 0,
    /// It failed; the message says why.
    Failed = 1,
    /// The command was not understood.
    Usage = 2,
    /// The configuration has errors, or does not work on this machine.
    ConfigErrors = 3,
    /// It works, but the doctor has warnings.
    Warnings = 4,
    /// No daemon answers.
    Unreachable = 5,
    /// The daemon did not answer in time.
    TimedOut = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

const EXIT_CODES: &str = "\
Exit codes: 0 ok · 1 failed · 2 usage · 3 configuration errors · 4 warnings of the doctor · 5 daemon not reachable · 7 timeout";

const FIRST_STEPS: &str = "\
First steps:
  towpath demo                          see it work: no root, no file needed
  towpath check my.toml                 every mistake in a file at once, with its place
  towpath run -c my.toml                balance until SIGTERM
  towpath doctor -c my.toml             what is wrong with machine and network, and the command that mends it
  towpath status                        what a running towpath does right now
  towpath top                           the same live
  towpath server drain web/FE-1         take a server out of service gently
  towpath plan                          what a reload of the changed file would do

Exit codes: 0 ok · 1 failed · 2 usage · 3 configuration errors · 4 warnings of the doctor · 5 daemon not reachable · 7 timeout";

/// A load balancer for multi-core Linux machines.
#[derive(Debug, Parser)]
#[command(name = "towpath", version, styles = STYLES, after_help = FIRST_STEPS, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Balance: serve what a configuration file says until SIGTERM
    #[command(after_help = RUN_HELP)]
    Run(RunArguments),
    /// Check a configuration file: every mistake at once, with its place
    #[command(after_help = CHECK_HELP)]
    Check(CheckArguments),
    /// Certificates: take them over, request them, list them
    #[command(subcommand, after_help = CERT_HELP)]
    Cert(CertCommand),
    /// Show the certificates that a running towpath shows, and how long they are good
    #[command(after_help = certs::CERTS_HELP)]
    Certs(certs::CertsArguments),
    /// Passwords and tokens for who may use the web page and the API
    #[command(subcommand, after_help = credential::CREDENTIAL_HELP)]
    Credential(credential::CredentialCommand),
    /// Examine machine and network: what works, what is wrong, and the command that mends it
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArguments),
    /// Show what a running towpath does: services, servers, connections, workers
    #[command(after_help = STATUS_HELP)]
    Status(StatusArguments),
    /// Show what a reload would change, and what becomes of the connections that are open
    #[command(after_help = reload::PLAN_HELP)]
    Plan(reload::PlanArguments),
    /// Have a running towpath take its file as it is now, without losing a connection
    #[command(after_help = reload::RELOAD_HELP)]
    Reload(reload::ReloadArguments),
    /// Have a new program, or this one with another file, take over without losing a connection
    #[command(after_help = upgrade::UPGRADE_HELP)]
    Upgrade(upgrade::UpgradeArguments),
    /// Take servers out of service and back: ready, drain, halt, weight
    #[command(subcommand, after_help = server::SERVER_HELP)]
    Server(server::ServerCommand),
    /// Which connections, sessions and flows there are; end some
    #[command(subcommand, after_help = sessions::SESSIONS_HELP)]
    Sessions(sessions::SessionsCommand),
    /// Find one by its two ends: which worker, server and lease, in which state, and why
    #[command(after_help = sessions::FLOW_HELP)]
    Flow(sessions::FlowArguments),
    /// What would become of a new connection, and why; nothing is changed
    #[command(after_help = explain::EXPLAIN_HELP)]
    Explain(explain::ExplainArguments),
    /// Which clients come back to which server; forget them
    #[command(subcommand, after_help = persistence::PERSISTENCE_HELP)]
    Persistence(persistence::PersistenceCommand),
    /// Capture frames of a service on the packet plane, with what became of each
    #[command(after_help = capture::CAPTURE_HELP)]
    Capture(capture::CaptureArguments),
    /// Serve, or stand by for a second machine: for a notify script of keepalived
    #[command(after_help = role::ROLE_HELP)]
    Role(role::RoleArguments),
    /// Show what changed lately, and what changes next
    #[command(after_help = events::EVENTS_HELP)]
    Events(events::EventsArguments),
    /// Show what is scarce, and how full it is
    #[command(after_help = limits::LIMITS_HELP)]
    Limits(limits::LimitsArguments),
    /// Watch it live: rates, connections, servers, workers, limits; sort and filter
    #[command(after_help = top::TOP_HELP)]
    Top(top::TopArguments),
    /// Collect what a helper asks for, without secrets, in one archive
    #[command(after_help = support::SUPPORT_HELP)]
    SupportBundle(support::SupportArguments),
    /// Make this program a service of the machine, or take it away again
    #[command(subcommand, after_help = service::SERVICE_HELP)]
    Service(service::ServiceCommand),
    /// See it work: three origins, a relay, real traffic, one origin stopped
    #[command(after_help = DEMO_HELP)]
    Demo(DemoArguments),
    /// Print the configuration reference: every key with type, default and range
    #[command(after_help = EXIT_CODES)]
    Reference,
    /// Print what a shell needs to complete commands
    #[command(after_help = manual::COMPLETIONS_HELP)]
    Completions(manual::CompletionsArguments),
    /// Write the manual pages into a directory
    #[command(after_help = manual::MAN_HELP)]
    Man(manual::ManArguments),
}

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const RUN_HELP: &str = "\
Signals:
  SIGTERM, SIGINT   take no new connections, let the open ones finish up to drain_timeout; a second one ends at once
  SIGHUP            read the file again and take it over, as `towpath reload` does; with an error nothing changes

Examples:
  towpath run                           serve /etc/towpath/towpath.toml
  towpath run -c my.toml --log debug    say more
  towpath plan && towpath reload        after changing the file

Exit codes: 0 ended as told · 1 failed · 2 usage · 3 configuration errors, or features that are not available yet";

/// Arguments of `towpath run`.
#[derive(Args, Debug)]
pub(crate) struct RunArguments {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = "/etc/towpath/towpath.toml")]
    pub(crate) config: PathBuf,
    /// How much it tells about itself, instead of log.level: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log: Option<tracing::level_filters::LevelFilter>,
    /// For tests: the CPUs that workers may use, one of them as often as it is named
    #[arg(long, value_name = "CPU", value_delimiter = ',', hide = true)]
    pub(crate) worker_cpus: Option<Vec<usize>>,
    /// For `towpath upgrade`: take over from the process at the other end of standard input
    #[arg(long, hide = true)]
    pub(crate) take_over: bool,
}

const CHECK_HELP: &str = "\
Examples:
  towpath check my.toml                 judge the file alone: works on any machine
  towpath check my.toml --host          and whether this machine can serve it
  towpath check my.toml --json | jq .   for editors and scripts

Exit codes: 0 no errors (warnings do not count) · 1 file not readable · 2 usage · 3 errors";

/// Arguments of `towpath check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArguments {
    /// Configuration file
    pub(crate) file: PathBuf,
    /// Also check this machine: addresses, ports, limits, CPUs
    #[arg(long)]
    pub(crate) host: bool,
    /// Print JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

const CERT_HELP: &str = "\
Examples:
  towpath cert import mail.pfx --password-file secret.txt --out /etc/towpath/mail
  towpath cert csr --name mail.example.org --name autodiscover.example.org --out /etc/towpath/mail
  towpath cert list                     names, keys, days left, services

Exit codes: 0 ok · 1 failed · 2 usage · 3 a certificate of the configuration is none";

/// What `towpath cert` does.
#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Take a PFX or PEM file apart into OUT.pem (certificate and issuers) and OUT.key
    Import(ImportArguments),
    /// Make a private key, OUT.key, and the request for a certificate to it, OUT.csr
    Csr(CsrArguments),
    /// Show the certificates of a configuration file
    List(ListArguments),
}

/// Arguments of `towpath cert import`.
#[derive(Args, Debug)]
pub(crate) struct ImportArguments {
    /// PFX file, or PEM with a certificate
    pub(crate) file: PathBuf,
    /// Private key (PEM), when FILE has none
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Certificates of the issuers (PEM), when FILE has none
    #[arg(long, value_name = "FILE")]
    pub(crate) chain: Option<PathBuf>,
    /// File whose first line is the password
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Path of the files that are written, without their endings
    #[arg(long, value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `towpath cert csr`.
#[derive(Args, Debug)]
pub(crate) struct CsrArguments {
    /// Name that the certificate is for; the first one is the subject
    #[arg(long, value_name = "NAME", required = true)]
    pub(crate) name: Vec<String>,
    /// Organisation of the subject
    #[arg(long, value_name = "TEXT")]
    pub(crate) organisation: Option<String>,
    /// Kind of the key: what Exchange and Lync of any age take is RSA
    #[arg(long, value_enum, default_value_t = CsrKey::Rsa2048)]
    pub(crate) key: CsrKey,
    /// Path of the files that are written, without their endings
    #[arg(long, value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// Kind of a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CsrKey {
    EcdsaP256,
    EcdsaP384,
    #[value(name = "rsa-2048")]
    Rsa2048,
    #[value(name = "rsa-3072")]
    Rsa3072,
    #[value(name = "rsa-4096")]
    Rsa4096,
}

/// Arguments of `towpath cert list`.
#[derive(Args, Debug)]
pub(crate) struct ListArguments {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = "/etc/towpath/towpath.toml")]
    pub(crate) config: PathBuf,
    /// Print JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

const DOCTOR_HELP: &str = "\
It looks at this machine, and asks on the wire: who else has our addresses (ARP probes, neighbour solicitations), whether gateways and servers
answer, whether packets of the whole MTU arrive, whether servers take connections, and with half-NAT whether their replies to clients come by
us. It needs root for that, runs a few seconds, and disturbs neither a running daemon nor its connections.

Examples:
  towpath doctor                        for /etc/towpath/towpath.toml
  towpath doctor -c my.toml             before it is started, or beside it
  towpath doctor --no-probes            look, but send nothing
  towpath doctor --json | jq '.readings[] | select(.state == \"error\")'

Exit codes: 0 nothing wrong (hints do not count) · 1 could not look · 2 usage · 3 an error in the file or on the machine · 4 warnings";

/// Arguments of `towpath doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArguments {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = "/etc/towpath/towpath.toml")]
    pub(crate) config: PathBuf,
    /// Send nothing: look at this machine only
    #[arg(long)]
    pub(crate) no_probes: bool,
    /// Print JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

const STATUS_HELP: &str = "\
Examples:
  towpath status
  towpath status --socket /run/towpath/test.sock
  towpath status --watch                anew every 2 seconds, until Ctrl-C
  towpath status --url https://lb.example.org:9443 --token-file ~/lb.token
  towpath status --json | jq .

Exit codes: 0 ok · 1 failed · 2 usage · 5 daemon not reachable · 7 no answer in time";

/// Arguments of `towpath status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    pub(crate) daemon: Daemon,
    /// Show it anew every so many seconds, until Ctrl-C; with --json one line each
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) watch: Option<u32>,
}

const DEMO_HELP: &str = "\
Examples:
  towpath demo                          about 6 seconds
  towpath demo --keep                   then leave it running for curl
  towpath demo --seconds 60             more time to watch it

Exit codes: 0 no request failed but those in flight on the stopped origin, and every origin had its share · 1 otherwise";

/// Arguments of `towpath demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArguments {
    /// How long traffic runs; half-way one origin is stopped
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=3600))]
    pub(crate) seconds: u32,
    /// Leave relay and origins running afterwards, until Ctrl-C
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// The command line as a value: for manual pages and completions.
pub(crate) fn command() -> clap::Command {
    Arguments::command()
}

/// Reads the arguments, does what they say, and tells how it ended. The whole program.
pub fn main() -> ExitCode {
    // clap prints help and usage errors itself and ends with 0 or 2.
    let outcome = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Cert(command) => cert::cert(&command),
        Command::Certs(arguments) => certs::certs(&arguments),
        Command::Credential(command) => credential::credential(&command),
        Command::Events(arguments) => events::events(&arguments),
        Command::Limits(arguments) => limits::limits(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
        Command::Status(arguments) => status::status(&arguments),
        Command::Plan(arguments) => reload::plan(&arguments),
        Command::Reload(arguments) => reload::reload(&arguments),
        Command::Upgrade(arguments) => upgrade::upgrade(&arguments),
        Command::Server(command) => server::server(&command),
        Command::Sessions(command) => sessions::sessions(&command),
        Command::Flow(arguments) => sessions::flow(&arguments),
        Command::Explain(arguments) => explain::explain(&arguments),
        Command::Persistence(command) => persistence::persistence(&command),
        Command::Capture(arguments) => capture::capture(&arguments),
        Command::Role(arguments) => role::role(&arguments),
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Top(arguments) => top::top(&arguments),
        Command::SupportBundle(arguments) => support::support_bundle(&arguments),
        Command::Service(command) => service::service(&command),
        Command::Reference => reference::reference(),
        Command::Completions(arguments) => manual::completions(&arguments),
        Command::Man(arguments) => manual::man(&arguments),
    };
    match outcome {
        Ok(exit) => exit.into(),
        // The reader of our output went away (`towpath status | head`): nobody is left to tell.
        Err(error) if is_broken_pipe(&error) => Exit::Done.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            Exit::Failed.into()
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_or_needs_none() {
        for command in Arguments::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Exit codes:"), "{} does not say how it ends", command.get_name());
        }
    }
}
