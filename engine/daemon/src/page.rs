//! The status page: plain HTML, CSS and JavaScript that are part of the program, so that it works without another file or network.
//!
//! Its files are in `engine/daemon/page/`. Nothing in them is inline and none asks for anything elsewhere: a strict Content-Security-Policy holds
//! for all of them. Who may see what they show is decided where the API is served.

/// One file of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asset {
    /// Where it is asked for.
    pub(crate) path: &'static str,
    /// Its `Content-Type`.
    pub(crate) kind: &'static str,
    pub(crate) body: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// One file of the folder, at its path below `/page/`.
macro_rules! asset {
    ($kind:expr, $name:literal) => {
        asset!($kind, $name, concat!("/page/", $name))
    };
    ($kind:expr, $name:literal, $path:expr) => {
        Asset { path: $path, kind: $kind, body: include_bytes!(concat!("../page/", $name)) }
    };
}

static ASSETS: [Asset; 13] = [
    asset!(HTML, "index.html", "/"),
    asset!(SCRIPT, "api.js"),
    asset!(SCRIPT, "attention.js"),
    asset!(SCRIPT, "dom.js"),
    asset!(SVG, "favicon.svg"),
    asset!(SCRIPT, "history.js"),
    asset!(SCRIPT, "main.js"),
    asset!(SCRIPT, "orders.js"),
    asset!(SCRIPT, "panels.js"),
    asset!(SCRIPT, "services.js"),
    asset!(CSS, "style.css"),
    asset!(SCRIPT, "theme.js"),
    asset!(SCRIPT, "words.js"),
];

/// The file at this path, as it stands in a request.
pub(crate) fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn text(asset: &Asset) -> &'static str {
        std::str::from_utf8(asset.body).unwrap_or_else(|error| panic!("{}: {error}", asset.path))
    }

    /// What stands in quotes behind each `before`.
    fn quoted<'t>(text: &'t str, before: &str) -> Vec<&'t str> {
        text.split(before).skip(1).filter_map(|rest| rest.split(['"', '\'']).next()).collect()
    }

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        let files: BTreeSet<String> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| if name == "index.html" { "/".to_owned() } else { format!("/page/{name}") })
            .collect();
        let served: BTreeSet<String> = ASSETS.iter().map(|asset| asset.path.to_owned()).collect();
        assert_eq!(served, files);
        assert_eq!(ASSETS.len(), files.len());
    }

    #[test]
    fn every_file_that_one_names_is_there_and_none_is_elsewhere() {
        let mut named = BTreeSet::from(["/"]);
        for asset in &ASSETS {
            let text = text(asset);
            for path in [quoted(text, " href=\""), quoted(text, " src=\"")].concat() {
                let inside = path.strip_prefix('#').is_some_and(|id| text.contains(&format!("id=\"{id}\"")));
                assert!(inside || find(path).is_some(), "{} names {path}", asset.path);
                named.insert(path);
            }
            for module in quoted(text, " from \"") {
                let name = module.strip_prefix("./").unwrap_or_else(|| panic!("{} imports {module}", asset.path));
                let imported = find(&format!("/page/{name}"));
                named.insert(imported.unwrap_or_else(|| panic!("{} imports {module}", asset.path)).path);
            }
            // The names of namespaces are no addresses.
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("//www.") && !elsewhere.contains("http://"), "{}", asset.path);
            assert!(!elsewhere.contains("https://") && !elsewhere.contains("url("), "{}", asset.path);
        }
        for asset in &ASSETS {
            assert!(named.contains(asset.path), "nothing names {}", asset.path);
        }
    }

    /// A strict Content-Security-Policy would refuse it, and the page would be without it.
    #[test]
    fn nothing_is_inline_and_nothing_makes_markup_of_text() {
        for asset in &ASSETS {
            let text = text(asset);
            let forbidden = [
                "<style",
                " style=",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "javascript:",
                "setAttribute(\"style\"",
                "cssText",
            ];
            for word in forbidden {
                assert!(!text.contains(word), "{} has {word}", asset.path);
            }
        }
        let page = text(find("/").unwrap());
        for script in page.split("<script").skip(1) {
            assert!(script.contains(" src=\"") && script.contains("></script>"), "<script{script}");
        }
        for attribute in page.split(" on").skip(1).filter_map(|rest| rest.split_once('=')) {
            let handler = attribute.0.chars().all(|c| c.is_ascii_lowercase());
            assert!(!handler, " on{}=", attribute.0);
        }
    }

    #[test]
    fn a_path_is_found_only_as_it_stands() {
        assert_eq!(find("/").unwrap().kind, HTML);
        assert_eq!(find("/page/style.css").unwrap().kind, CSS);
        for path in ["", "/page", "/page/", "/page/index.html", "/page/../status.rs", "/page/main.js/", "/PAGE/main.js"]
        {
            assert_eq!(find(path), None, "{path}");
        }
    }
}
