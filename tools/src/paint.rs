//! Colour where someone looks at it: on a terminal, unless NO_COLOR says otherwise.

use std::env;
use std::io::IsTerminal;

/// Whether text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Colour,
    Plain,
}

/// The few colours there are, each with one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tint {
    /// Carries the eye to what matters.
    Bold,
    /// Headings, and what is there for completeness.
    Dim,
    /// Well.
    Green,
    /// Failed.
    Red,
    /// Deserves a look.
    Yellow,
}

impl Paint {
    /// For text that goes to `stream`. <https://no-color.org>: NO_COLOR, set and not empty, switches colour off.
    pub(crate) fn on(stream: &impl IsTerminal) -> Paint {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if stream.is_terminal() && !unwanted && moves_cursor() { Paint::Colour } else { Paint::Plain }
    }

    pub(crate) fn tint(self, tint: Tint, text: &str) -> String {
        let code = match tint {
            Tint::Bold => 1,
            Tint::Dim => 2,
            Tint::Green => 32,
            Tint::Red => 31,
            Tint::Yellow => 33,
        };
        match self {
            Paint::Colour if !text.is_empty() => format!("\x1b[{code}m{text}\x1b[0m"),
            Paint::Colour | Paint::Plain => text.to_owned(),
        }
    }
}

/// Whether the terminal understands escape sequences at all.
pub(crate) fn moves_cursor() -> bool {
    env::var_os("TERM").is_some_and(|term| term != "dumb" && !term.is_empty())
}
