//! `towpath-perf`: measures Towpath beside its peers.

mod commands;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use towpath_perf::load;

/// Measures Towpath beside its peers, on the same work, in the same run, on this machine.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Tells what changed between two results of the same suite.
    Compare(commands::Compare),
    Control(commands::Control),
    Health(commands::Health),
    Http(commands::Http),
    Identity(commands::Identity),
    #[command(hide = true)]
    Instructions(commands::Instructions),
    Lab(commands::Lab),
    /// Starts the origin by hand: answers what the load clients of this program ask for.
    Origin {
        /// Where to listen, as in 0.0.0.0:7000.
        #[arg(required = true)]
        listen: Vec<SocketAddr>,
        /// Answer over TLS, with a certificate that is made now; over TCP alone.
        #[arg(long)]
        tls: bool,
        /// Answer as a web server, for the suite `http`; over TCP alone.
        #[arg(long, conflicts_with = "tls")]
        web: bool,
    },
    Packet(commands::Packet),
    Relay(commands::Relay),
    /// Makes a page with plots and a Markdown table of results.
    Report(commands::Report),
    Snat(commands::Snat),
    Tls(commands::Tls),
    Udp(commands::Udp),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Action::Compare(compare) => compare.run(),
        Action::Control(control) => control.run(),
        Action::Health(health) => health.run(),
        Action::Http(http) => http.run(),
        Action::Identity(identity) => identity.run(),
        Action::Instructions(instructions) => instructions.run(),
        Action::Lab(lab) => lab.run(),
        Action::Origin { listen, tls: true, .. } => alone(&listen, "TLS", load::origin::serve_tls),
        Action::Origin { listen, web: true, .. } => alone(&listen, "HTTP", load::origin::serve_web),
        Action::Origin { listen, .. } => origin(&listen),
        Action::Packet(packet) => packet.run(),
        Action::Relay(relay) => relay.run(),
        Action::Report(report) => report.run(),
        Action::Snat(snat) => snat.run(),
        Action::Tls(tls) => tls.run(),
        Action::Udp(udp) => udp.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("towpath-perf: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn origin(listen: &[SocketAddr]) -> anyhow::Result<()> {
    towpath_sys::host::raise_nofile_limit()?;
    let (mut listeners, mut sockets) = (Vec::new(), Vec::new());
    for &address in listen {
        let listener = load::origin::listen(address)?;
        // The same port for datagrams, also where the kernel has chosen it.
        sockets.push(load::origin::bind(listener.local_addr()?)?);
        println!("answering on {}, TCP and UDP", listener.local_addr()?);
        listeners.push(listener);
    }
    load::origin::serve(listeners, sockets)?;
    Ok(())
}

/// An origin of TCP alone.
fn alone(
    listen: &[SocketAddr],
    what: &str,
    serve: impl FnOnce(Vec<TcpListener>) -> io::Result<()>,
) -> anyhow::Result<()> {
    towpath_sys::host::raise_nofile_limit()?;
    let mut listeners = Vec::new();
    for &address in listen {
        let listener = load::origin::listen(address)?;
        println!("answering on {}, {what}", listener.local_addr()?);
        listeners.push(listener);
    }
    serve(listeners)?;
    Ok(())
}
