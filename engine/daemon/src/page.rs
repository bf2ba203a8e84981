//! The files of the page.

/// One file of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asset {
    /// Where it is asked for.
    pub(crate) path: &'static str,
    /// Its `Content-Type`.
    pub(crate) kind: &'static str,
    pub(crate) body: &'static [u8],
}

static ASSETS: [Asset; 0] = [];

/// The file at this path, as it stands in a request.
pub(crate) fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}
