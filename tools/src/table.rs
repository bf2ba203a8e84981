//! Plain text tables: columns as wide as their widest cell, numbers to the right, colour outside the width.

use std::fmt;

use crate::paint::{Paint, Tint};

/// One cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    align: Align,
    tint: Option<Tint>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Align {
    #[default]
    Left,
    Right,
}

impl Cell {
    /// Words stand to the left.
    pub(crate) fn word(text: impl Into<String>) -> Cell {
        Cell { text: text.into(), ..Cell::default() }
    }

    /// Figures stand to the right.
    pub(crate) fn figure(text: impl fmt::Display) -> Cell {
        Cell { text: text.to_string(), align: Align::Right, tint: None }
    }

    /// The state of something as word, shape and colour, which all say the same.
    pub(crate) fn lamp(word: &str) -> Cell {
        match word {
            "up" => Cell::word("● up").tinted(Tint::Green),
            "down" => Cell::word("○ down").tinted(Tint::Red),
            other => Cell::word(format!("◐ {other}")).tinted(Tint::Yellow),
        }
    }

    /// The same cell in colour.
    pub(crate) fn tinted(self, tint: Tint) -> Cell {
        Cell { tint: Some(tint), ..self }
    }
}

/// Rows of cells; a row may be shorter than the others. The default has no head.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table whose first row is `head`; its alignment is that of the cells given.
    pub(crate) fn new(head: impl IntoIterator<Item = Cell>) -> Table {
        Table { rows: vec![head.into_iter().map(|cell| cell.tinted(Tint::Dim)).collect()] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text, each line indented by `indent` spaces and without spaces at its end.
    pub(crate) fn render(&self, indent: usize, paint: Paint) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            let last = row.iter().rposition(|cell| !cell.text.is_empty()).map_or(0, |last| last + 1);
            for (column, cell) in row[..last].iter().enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                let fill = " ".repeat(widths[column] - cell.text.chars().count());
                let painted = match cell.tint {
                    Some(tint) => paint.tint(tint, &cell.text),
                    None => cell.text.clone(),
                };
                match cell.align {
                    Align::Right => line.extend([fill.as_str(), &painted]),
                    Align::Left if column + 1 == last => line.push_str(&painted),
                    Align::Left => line.extend([painted.as_str(), &fill]),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A whole number with its thousands apart: 1,234,567.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time span as people say it, two units at most: 850 ms, 12 s, 3 min 5 s, 2 h 4 min, 9 d 1 h.
pub(crate) fn span(ms: u64) -> String {
    let (s, min, h, d) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match () {
        () if s == 0 => format!("{ms} ms"),
        () if min == 0 => format!("{s} s"),
        () if h == 0 => format!("{min} min {} s", s % 60),
        () if d == 0 => format!("{h} h {} min", min % 60),
        () => format!("{d} d {} h", h % 24),
    }
}

/// "1 service", "2 services".
pub(crate) fn counted(number: usize, noun: &str) -> String {
    format!("{} {noun}{}", thousands(number as u64), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let mut table = Table::new([Cell::word("NAME"), Cell::figure("COUNT"), Cell::word("WHY")]);
        table.row([Cell::word("a"), Cell::figure(12_345)]);
        table.row([Cell::word("größer"), Cell::figure(1).tinted(Tint::Red), Cell::word("because")]);
        let plain = "  NAME    COUNT  WHY\n  a       12345\n  größer      1  because\n";
        assert_eq!(table.render(2, Paint::Plain), plain);
        let coloured = table.render(2, Paint::Colour);
        assert!(coloured.contains("    \x1b[31m1\x1b[0m  because"), "{coloured:?}");
    }

    #[test]
    fn figures_read_as_people_write_them() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        let spans = [0, 999, 1000, 59_999, 60_000, 3_599_999, 3_600_000, 86_399_999, 90_000_000].map(span);
        assert_eq!(
            spans,
            ["0 ms", "999 ms", "1 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "1 d 1 h"]
        );
        assert_eq!(
            (counted(1, "error"), counted(0, "error"), counted(2, "error")),
            ("1 error".into(), "0 errors".into(), "2 errors".into())
        );
    }
}
