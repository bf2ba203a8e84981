//! The README shows what is there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::fs;
use std::path::Path;

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

#[test]
fn quickstart_in_the_readme_is_the_example_file() {
    let example = file("config/examples/quickstart.toml");
    assert!(file("README.md").contains(&format!("```toml\n{}\n```", example.trim_end())));
}

#[test]
fn every_configuration_in_the_readme_passes_the_check() {
    let readme = file("README.md");
    let blocks: Vec<&str> = readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect();
    assert!(blocks.len() >= 5, "{}", blocks.len());
    for block in blocks {
        let checked = towpath_config::check("README.md", block);
        let errors: Vec<&str> = checked.errors().map(|error| error.message.as_str()).collect();
        assert!(errors.is_empty(), "{errors:?} in\n{block}");
    }
}

#[test]
fn every_check_of_the_doctor_is_explained_in_the_readme() {
    let readme = file("README.md");
    let table = readme.split("| check | what is looked at |").nth(1).unwrap();
    for check in towpath_engine::preflight::Check::ALL {
        assert!(table.contains(&format!("`{check}`")), "{check}");
    }
}

#[test]
fn every_file_that_the_readme_links_to_exists() {
    let readme = file("README.md");
    let links = readme.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
    let local: Vec<&str> = links.filter(|link| !link.contains("://") && !link.starts_with('#')).collect();
    assert!(!local.is_empty());
    let missing: Vec<&&str> =
        local.iter().filter(|link| !Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(link).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// `#[ignore = "needs the Debian packages a, b"]`, in every test of the workspace.
fn packages_of_tests(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            packages_of_tests(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let marks =
                text.lines().filter_map(|line| line.trim().strip_prefix("#[ignore = \"needs the Debian package"));
            for names in marks.filter_map(|rest| rest.strip_suffix("\"]")) {
                let names = names.trim_start_matches('s').trim();
                found.extend(names.split(", ").map(|name| (name.to_owned(), path.display().to_string())));
            }
        }
    }
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn the_packages_that_tests_are_ignored_for_are_installed_by_ci_packages() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut needed = Vec::new();
    for folder in ["config", "engine", "perf", "tests", "tls-offload", "tools"] {
        packages_of_tests(&root.join(folder), &mut needed);
    }
    assert!(needed.iter().any(|(package, _)| package == "chromium"), "{needed:?}");
    let script = file("tools/ci-packages");
    let pairs = script.lines().filter_map(|line| line.trim().strip_prefix('\'')?.strip_suffix('\'')?.split_once(' '));
    let installed: Vec<&str> = pairs.map(|(_, package)| package).collect();
    needed.retain(|(package, _)| !installed.contains(&package.as_str()));
    assert!(needed.is_empty(), "not in tools/ci-packages: {needed:?}");
}
