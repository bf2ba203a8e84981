//! `lab`: a lab for hand work.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use towpath_perf::lab::{self, SERVERS_MAX, Topology};
use towpath_sys::process::Process;

/// The line after which a lab that is kept says nothing more.
const READY: &str = "ready";

/// What a name starts with; the rest is the id of the process that holds the lab.
const NAME: &str = "lab-";

/// How long the end of a lab may take.
const REMOVE_DEADLINE: Duration = Duration::from_secs(10);

/// Builds a lab of namespaces (client, balancer, servers) and tells how to enter each host. It is gone after Ctrl-C.
#[derive(Args)]
pub(crate) struct Lab {
    /// How the hosts are connected: everybody on one network, or clients in front of the balancer and servers behind it.
    #[arg(long, value_enum, default_value_t = Arms::TwoArm)]
    topology: Arms,
    /// How many servers.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=SERVERS_MAX as i64))]
    servers: u16,
    /// Leave it when this program ends; it says how to remove it.
    #[arg(long)]
    keep: bool,
    /// Remove a lab that was kept, with everything that runs in it by way of this program.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["keep", "topology", "servers"])]
    remove: Option<String>,
    /// (For `--keep`) Be the process that holds the lab.
    #[arg(long, hide = true, conflicts_with = "keep")]
    hold: bool,
}

/// [`Topology`], for the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Arms {
    OneArm,
    TwoArm,
}

impl Lab {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        if let Some(name) = &self.remove {
            return remove(name);
        }
        if self.keep {
            return self.keep();
        }
        let topology = match self.topology {
            Arms::OneArm => Topology::OneArm,
            Arms::TwoArm => Topology::TwoArm,
        };
        let lab = lab::Lab::build(topology, usize::from(self.servers))
            .context("build the lab (it takes root, or `unshare --user --map-root-user --net`)")?;
        print!("{}", describe(&lab));
        if self.hold {
            println!("{READY}");
        } else {
            println!("\nCtrl-C removes it.");
        }
        std::io::stdout().flush()?;
        loop {
            // A signal ends the process, and the lab with it.
            thread::park();
        }
    }

    /// Starts a process that holds the lab, and tells what it says.
    fn keep(&self) -> anyhow::Result<()> {
        let topology = self.topology.to_possible_value().context("both topologies have a name")?;
        let mut holder = Command::new(std::env::current_exe().context("where is this program?")?)
            .args(["lab", "--hold", "--topology", topology.get_name(), "--servers", &self.servers.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at this terminal is not meant for it.
            .process_group(0)
            .spawn()
            .context("start the process that holds the lab")?;
        let name = format!("{NAME}{}", holder.id());
        let lines = BufReader::new(holder.stdout.take().context("its output is piped")?).lines();
        for line in lines {
            let line = line?;
            if line == READY {
                println!("\nIts name is {name}; remove it with: towpath-perf lab --remove {name}");
                return Ok(());
            }
            println!("{line}");
        }
        let mut said = String::new();
        if let Some(mut errors) = holder.stderr.take() {
            errors.read_to_string(&mut said)?;
        }
        bail!("the process that holds the lab has ended: {}", said.trim())
    }
}

fn describe(lab: &lab::Lab) -> String {
    let mut text = String::new();
    for host in lab.hosts() {
        text.push_str(&format!("{}\n", host.name()));
        for port in host.ports() {
            let addresses = [IpAddr::from(port.ipv4), IpAddr::from(port.ipv6)].map(|ip| ip.to_string());
            text.push_str(&format!("  {:<6} {}\n", port.link, addresses.join(", ")));
        }
        text.push_str(&format!("  enter  nsenter --net={} bash\n", host.network_file().display()));
    }
    text
}

fn remove(name: &str) -> anyhow::Result<()> {
    let unknown = || format!("`{name}` is no lab that was kept; `lab --keep` tells the name");
    let pid: u32 = name.strip_prefix(NAME).and_then(|pid| pid.parse().ok()).with_context(unknown)?;
    let holder = Process::open(pid).with_context(unknown)?;
    // Looked at while the handle is open, so that it is the one that will be ended.
    let command = fs::read(format!("/proc/{pid}/cmdline")).with_context(unknown)?;
    let words: Vec<&[u8]> = command.split(|&byte| byte == 0).collect();
    let is_holder = matches!(words.as_slice(), [_, b"lab", b"--hold", ..]);
    if !is_holder {
        bail!(unknown());
    }
    holder.end(REMOVE_DEADLINE).with_context(|| format!("end process {pid}, which holds {name}"))?;
    println!("{name} is gone");
    Ok(())
}
