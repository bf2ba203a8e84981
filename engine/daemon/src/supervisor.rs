//! Tells systemd how we are (sd_notify(3)); without systemd nothing happens.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state` (such as `READY=1`) to the supervisor that started us, if one did. Failing is no reason to stop serving.
pub(crate) fn tell(state: &str) {
    let Some(address) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&address, state) {
        tracing::warn!("the supervisor at NOTIFY_SOCKET={} was not told {state:?}: {error}", address.display());
    }
}

fn send(address: &OsStr, state: &str) -> io::Result<()> {
    let address = match address.as_bytes() {
        // A name in the abstract namespace is written with @ for the leading zero byte.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    // A supervisor that does not read must not hold us.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::process;

    use super::*;

    #[test]
    fn the_state_arrives_at_an_abstract_name_and_at_a_path() {
        let name = format!("towpath-supervisor-{}", process::id());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(&OsString::from(format!("@{name}")), "READY=1").unwrap();
        let mut buffer = [0; 64];
        let len = listener.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"READY=1");

        let path = env::temp_dir().join(format!("{name}.sock"));
        let listener = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "STOPPING=1").unwrap();
        let len = listener.recv(&mut buffer).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&buffer[..len], b"STOPPING=1");
    }
}
