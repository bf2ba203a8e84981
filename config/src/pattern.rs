//! Regular expressions of a file, read once and of bounded size.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Serialize, Serializer};

/// Most bytes that one compiled expression may take, and each of its caches.
const COMPILED_BYTES_MAX: usize = 256 * 1024;

/// A regular expression over bytes. It takes time in proportion to what it is matched against, whatever it says; `.` and classes mean single
/// ASCII characters and bytes.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

/// Whether case counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// `a` is not `A`.
    Counts,
    /// ASCII letters only.
    Ignored,
}

/// How much of a value an expression speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// It is found somewhere.
    Part,
    /// It is all of it.
    Whole,
}

impl Pattern {
    /// Reads an expression; an error is what is wrong, in one line.
    pub fn new(text: &str, case: Case, extent: Extent) -> Result<Pattern, String> {
        let build = |text: &str| {
            RegexBuilder::new(text)
                .unicode(false)
                .case_insensitive(case == Case::Ignored)
                .size_limit(COMPILED_BYTES_MAX)
                .dfa_size_limit(COMPILED_BYTES_MAX)
                .build()
                .map_err(|error| told(&error))
        };
        let mut regex = build(text)?;
        if extent == Extent::Whole {
            regex = build(&format!(r"\A(?:{text})\z"))?;
        }
        Ok(Pattern { text: text.to_owned(), regex })
    }

    /// Whether `value` fits.
    pub fn fits(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The last line says what, those before it draw where.
fn told(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
        error => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.regex.as_str() == other.regex.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_or_whole_with_or_without_case() {
        let rows = [
            ("^/owa", Case::Ignored, Extent::Part, "/OWA/x", true),
            ("^/owa", Case::Counts, Extent::Part, "/OWA/x", false),
            ("[0-9]+", Case::Counts, Extent::Part, "a1", true),
            ("[0-9]+", Case::Counts, Extent::Whole, "a1", false),
            ("[0-9]+", Case::Counts, Extent::Whole, "12\n", false),
            ("1|22", Case::Counts, Extent::Whole, "22", true),
            ("1|22", Case::Counts, Extent::Whole, "221", false),
        ];
        for (text, case, extent, value, fits) in rows {
            let pattern = Pattern::new(text, case, extent).expect(text);
            assert_eq!(pattern.fits(value.as_bytes()), fits, "{text} {value}");
        }
    }

    #[test]
    fn what_is_no_expression_is_told_in_one_line() {
        for (text, part) in [("(", "unclosed group"), ("a{4000}{4000}", "too large"), (r"(?=a)", "look-around")] {
            let error = Pattern::new(text, Case::Counts, Extent::Part).expect_err(text);
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        // What would end the brackets around it does not.
        assert!(Pattern::new("a)|(b", Case::Counts, Extent::Whole).is_err());
    }
}
