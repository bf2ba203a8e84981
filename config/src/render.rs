//! Diagnostics as a person reads them: file, line, column, caret, hint, and both places when two clash.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};

use crate::diagnostic::{Diagnostic, Severity};

/// Longest part of the file that one diagnostic is drawn over; places further away are told in words.
const WINDOW_BYTES: usize = 64 * 1024;
/// Longest line that is drawn at all.
const LINE_BYTES: usize = 4096;

/// The text of all diagnostics. `text` is what was checked, `color` asks for ANSI escapes.
pub fn render(diagnostics: &[Diagnostic], file_name: &str, text: &str, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for diagnostic in diagnostics {
        out.push_str(&renderer.render(&[group(diagnostic, file_name, text)]));
        out.push_str("\n\n");
    }
    out
}

fn group<'a>(diagnostic: &'a Diagnostic, file_name: &'a str, text: &'a str) -> annotate_snippets::Group<'a> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(diagnostic.message.as_str()).id(diagnostic.code);
    let primary = inside(text, diagnostic.primary.start, diagnostic.primary.end);
    let mut window = lines_around(text, &primary);
    let mut near = Vec::new();
    let mut far = Vec::new();
    for label in &diagnostic.labels {
        let span = inside(text, label.location.start, label.location.end);
        let lines = lines_around(text, &span);
        let wider = window.start.min(lines.start)..window.end.max(lines.end);
        if wider.len() <= WINDOW_BYTES && lines.len() <= LINE_BYTES {
            window = wider;
            near.push((span, label));
        } else {
            far.push(label);
        }
    }
    let mut group = if lines_around(text, &primary).len() <= LINE_BYTES {
        let shift = |span: Range<usize>| span.start - window.start..span.end - window.start;
        // Carriage returns would be drawn; a blank is as long.
        let mut snippet = Snippet::source(text[window.clone()].replace('\r', " "))
            .path(file_name)
            .line_start(text[..window.start].matches('\n').count() + 1)
            .annotation(AnnotationKind::Primary.span(shift(primary)));
        for (span, label) in near {
            snippet = snippet.annotation(AnnotationKind::Context.span(shift(span)).label(label.text.as_str()));
        }
        title.element(snippet)
    } else {
        far.extend(near.into_iter().map(|(_, label)| label));
        title.element(Origin::path(file_name).line(diagnostic.primary.line).char_column(diagnostic.primary.column))
    };
    for label in far {
        let place = format!("line {}, column {}: {}", label.location.line, label.location.column, label.text);
        group = group.element(Level::NOTE.message(place));
    }
    match &diagnostic.hint {
        Some(hint) => group.element(Level::HELP.message(hint.as_str())),
        None => group,
    }
}

/// A span that may come from another text, brought inside this one.
fn inside(text: &str, start: usize, end: usize) -> Range<usize> {
    let start = text.floor_char_boundary(start.min(text.len()));
    start..text.ceil_char_boundary(end.clamp(start, text.len()))
}

/// The whole lines that hold `span`, without the last line feed.
fn lines_around(text: &str, span: &Range<usize>) -> Range<usize> {
    let start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let end = text[span.end..].find('\n').map_or(text.len(), |at| span.end + at);
    start..end
}
