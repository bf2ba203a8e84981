//! `towpath capture`: frames of a service on the packet plane with what became of each, as a file for Wireshark or tcpdump.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use towpath_engine::capture::{CAPTURE_FRAMES_MAX, CAPTURE_SECONDS_MAX, CaptureBody, SNAP_BYTES};
use towpath_engine::fetch_file;

use crate::answer::failed;
use crate::cli::Exit;
use crate::daemon::Daemon;

/// What an answer takes beside the capture.
const SLACK: Duration = Duration::from_secs(30);

pub(crate) const CAPTURE_HELP: &str = "\
The file is pcapng: each frame as it came, with what became of it as its comment (sent on, dropped and why, handed to another worker), and as it left. What the
kernel carries onwards by itself (fast path) is not seen. Of services on the stream plane the kernel has the packets: the command to capture them there is
shown instead.

Examples:
  towpath capture --service web -o web.pcapng              ten seconds, or 1,000 frames
  towpath capture --service web --client 192.0.2.7 --seconds 60 -o web.pcapng
  towpath capture --service web | tcpdump -nr -            as text
  towpath capture --service web --snap 65535 -o web.pcapng whole frames, and so what people write

Exit codes: 0 ok · 1 refused or failed · 2 usage · 5 daemon not reachable · 7 no answer in time";

/// Arguments of `towpath capture`.
#[derive(Args, Debug)]
pub(crate) struct CaptureArguments {
    /// The service
    #[arg(long, value_name = "NAME")]
    service: String,
    /// Only what is from or to this address or network
    #[arg(long, value_name = "ADDRESS[/PREFIX]")]
    client: Option<String>,
    /// Over after so many seconds
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=CAPTURE_SECONDS_MAX))]
    seconds: u64,
    /// Over with so many frames
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(CAPTURE_FRAMES_MAX)))]
    frames: u32,
    /// Bytes of each frame that are kept
    #[arg(long, value_name = "BYTES", default_value_t = SNAP_BYTES as u32, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    snap: u32,
    /// File to write; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    #[command(flatten)]
    daemon: Daemon,
}

/// Captures and writes.
pub(crate) fn capture(arguments: &CaptureArguments) -> Result<Exit> {
    let CaptureArguments { service, client, seconds, frames, snap, out, daemon } = arguments;
    if daemon.json {
        eprintln!("error: --json: a capture is a file in the pcapng format");
        return Ok(Exit::Usage);
    }
    let is_text = out.as_os_str() == "-" && io::stdout().is_terminal();
    if is_text {
        eprintln!(
            "error: a capture is no text; write it to a file (-o web.pcapng), or lead it to tcpdump (| tcpdump -nr -)"
        );
        return Ok(Exit::Usage);
    }
    let body = CaptureBody {
        service: service.clone(),
        client: client.clone(),
        seconds: *seconds,
        frames: *frames,
        snap_bytes: *snap as usize,
    };
    let limit = Duration::from_secs(*seconds) + SLACK;
    let file = match fetch_file(&daemon.endpoint()?, "/v1/capture", &body, limit) {
        Ok(file) => file,
        Err(error) => return Ok(failed(&error)),
    };
    if out.as_os_str() == "-" {
        io::stdout().write_all(&file)?;
    } else {
        fs::write(out, &file).with_context(|| format!("{} cannot be written", out.display()))?;
    }
    Ok(Exit::Done)
}
