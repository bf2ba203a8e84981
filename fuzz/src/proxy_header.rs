//! Arbitrary bytes as the header of a proxy in front.
//!
//! Whatever they are, reading must not panic; however many of them are there, what is read of a part is that more are needed, or what is read of all; a header is no
//! longer than is allowed, and says the same when it is written anew.

use towpath_config::model::ProxyVersion;
use towpath_core::proxy_header::{About, Header, Said, V2_BYTES_MAX, read, write};

/// Runs an input.
pub(crate) fn run(input: &[u8]) {
    let whole = read(input);
    for len in 0..input.len().min(V2_BYTES_MAX) {
        match (read(&input[..len]), whole) {
            (Ok(None), _) => {}
            (Ok(Some(header)), whole) => {
                assert_eq!(Ok(Some(header)), whole, "more bytes made another header of it");
                assert_eq!(header.len, len, "it was whole before");
                break;
            }
            (Err(_), whole) => {
                assert!(whole.is_err(), "more bytes made a header of it");
                break;
            }
        }
    }
    let Ok(Some(Header { len, said })) = whole else { return };
    assert!(len <= input.len() && len <= V2_BYTES_MAX, "{len} bytes");
    let Said::Proxied { source, destination } = said else { return };
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let mut again = Vec::new();
        write(version, &About { source, destination, tls: None }, &mut again);
        assert_eq!(read(&again), Ok(Some(Header { len: again.len(), said })), "{version:?}");
    }
}
