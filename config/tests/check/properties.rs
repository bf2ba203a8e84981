//! Whatever the file is, the check ends, and what it tells lies inside the file.

use proptest::prelude::*;
use towpath_config::{Severity, check, render};

const EXAMPLES: [&str; 5] = [
    include_str!("../../examples/ocs-2007r2.toml"),
    include_str!("../../examples/radius-ldap-smtp.toml"),
    include_str!("../../examples/lync-2010.toml"),
    include_str!("../../examples/exchange-2010.toml"),
    include_str!("../../examples/two-arm-planned.toml"),
];

fn holds(text: &str) {
    let checked = check("any.toml", text);
    let errors = checked.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
    assert_eq!(checked.model.is_some(), !errors, "a model exactly when there are no errors");
    for diagnostic in &checked.diagnostics {
        let places = diagnostic.labels.iter().map(|label| &label.location).chain([&diagnostic.primary]);
        for place in places {
            assert!(text.get(place.start..place.end).is_some(), "{place:?} lies outside");
            assert_eq!(place.line, text[..place.start].matches('\n').count() + 1);
            assert!(place.column >= 1);
        }
        assert!(!diagnostic.message.chars().any(char::is_control), "{}", diagnostic.message);
    }
    let shown = render(&checked.diagnostics, "any.toml", text, false);
    assert_eq!(shown.is_empty(), checked.diagnostics.is_empty());
    render(&checked.diagnostics, "any.toml", text, true);
}

/// Pieces that mean something to the schema, so that random files get far.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("[[service]]\n".to_owned()),
        Just("[[service.server]]\n".to_owned()),
        Just("[[group]]\n".to_owned()),
        Just("name = \"a\"\n".to_owned()),
        Just("vip = \"192.0.2.1\"\n".to_owned()),
        Just("address = \"192.0.2.1\"\n".to_owned()),
        Just("ports = [\"1-65535\", 80]\n".to_owned()),
        Just("ports = \"all\"\n".to_owned()),
        Just("plane = \"packet\"\n".to_owned()),
        Just("group = \"a\"\n".to_owned()),
        Just("health = { check = \"tcp\" }\n".to_owned()),
        "(source|tls|http|persistence|balance|protocol|application|forwarding|weight|limits) = [\"{\\[a-z0-9 =,.}\\]-]{0,20}\n",
        "\\PC{0,12}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_judged_inside_its_bounds(text in "(\\PC|[\\n\\t\"'\\[\\]{}=#\\\\]){0,200}") {
        holds(&text);
    }

    #[test]
    fn random_pieces_are_judged_inside_their_bounds(pieces in prop::collection::vec(piece(), 0..25)) {
        holds(&pieces.concat());
    }

    #[test]
    fn mutated_examples_are_judged_inside_their_bounds(
        which in 0..EXAMPLES.len(),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, "(\\PC|[\\n\"\\[\\]{}=]){0,6}"), 1..5),
    ) {
        let mut text: Vec<char> = EXAMPLES[which].chars().collect();
        for (at, removed, inserted) in cuts {
            let at = at.index(text.len());
            let end = (at + removed).min(text.len());
            text.splice(at..end, inserted.chars());
            if text.is_empty() {
                break;
            }
        }
        holds(&text.into_iter().collect::<String>());
    }
}
