//! Draws the picture: a head with the sums, the rows of one view, and the keys.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, Table};

use super::Top;
use super::figures::{Sheet, Value, View, totals};
use crate::paint::{Paint, Tint};
use crate::status::bytes;
use crate::table::{counted, span, thousands};

/// Lines of the curve of new connections.
const CURVE_LINES: u16 = 3;
/// Columns that a word may take before the last one gets what is left.
const WORD_COLUMNS_MAX: usize = 32;

pub(super) fn draw(frame: &mut Frame<'_>, top: &Top) {
    // On a low terminal rows are worth more than the curve.
    let curve = if frame.area().height >= 16 { CURVE_LINES } else { 0 };
    let [head, curve, views, rows, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(curve),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(heading(top)), head);
    let looks = top.history.of("");
    let shown = looks.len().saturating_sub(curve.width.into());
    frame.render_widget(Sparkline::default().data(&looks[shown..]), curve);
    let sheet = top.sheet();
    frame.render_widget(Paragraph::new(chosen(top, &sheet)), views);
    table(frame, top, &sheet, rows);
    frame.render_widget(Paragraph::new(keys(top)), foot);
}

fn style(paint: Paint, tint: Option<Tint>) -> Style {
    let plain = Style::default();
    match (paint, tint) {
        (_, None) => plain,
        // Bold is no colour, and what is dim must stay readable where there are none.
        (_, Some(Tint::Bold)) => plain.add_modifier(Modifier::BOLD),
        (Paint::Plain, Some(_)) => plain,
        (Paint::Colour, Some(Tint::Dim)) => plain.add_modifier(Modifier::DIM),
        (Paint::Colour, Some(Tint::Green)) => plain.fg(Color::Green),
        (Paint::Colour, Some(Tint::Red)) => plain.fg(Color::Red),
        (Paint::Colour, Some(Tint::Yellow)) => plain.fg(Color::Yellow),
    }
}

fn heading(top: &Top) -> Text<'static> {
    let Some(now) = &top.now else { return Text::from("waiting for the daemon") };
    let status = &now.status;
    let [accepted, from, to] = totals(top.earlier.as_ref(), now);
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| thousands(rate.round() as u64));
    let throughput = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| bytes(rate.round() as u64) + "/s");
    let open: u64 = status.services.iter().map(|service| u64::from(service.connections)).sum();
    let mut sums = format!(
        "{} conn/s · {} open · {} in · {} out",
        rate(accepted),
        thousands(open),
        throughput(from),
        throughput(to)
    );
    if let Some(pool) = &status.handshake_pool {
        sums.push_str(&format!(
            " · handshakes: {} of {} sign, {} wait",
            pool.running,
            counted(pool.cpus.len(), "thread"),
            thousands(pool.queued as u64)
        ));
    }
    let fullest = status.source_ports.iter().map(|fill| fill.percent).max_by(f64::total_cmp);
    if let Some(fullest) = fullest {
        sums.push_str(&format!(" · source ports {fullest:.1} % full"));
    }
    let first = match &top.trouble {
        Some(reason) => Line::styled(reason.clone(), style(top.paint, Some(Tint::Red))),
        None => Line::from(vec![
            Span::styled("towpath ", style(top.paint, Some(Tint::Bold))),
            Span::raw(format!(
                "{} · {} for {} · generation {} · {}",
                status.version,
                status.phase,
                span(status.uptime_seconds.saturating_mul(1000)),
                status.generation,
                if top.is_held { "held".to_owned() } else { format!("every {} s", top.interval_s) }
            )),
        ]),
    };
    Text::from(vec![first, Line::from(sums)])
}

/// The views, with the one that is shown, and how its rows are chosen.
fn chosen(top: &Top, sheet: &Sheet) -> Line<'static> {
    let mut spans = Vec::new();
    for (number, view) in View::ALL.into_iter().enumerate() {
        let text = format!("{} {}", number + 1, view.word());
        let own = if view == top.view {
            Span::styled(format!("[{text}]"), style(top.paint, Some(Tint::Bold)))
        } else {
            Span::raw(format!(" {text} "))
        };
        spans.push(own);
        spans.push(Span::raw(" "));
    }
    if sheet.hidden > 0 {
        spans.push(Span::raw(format!("  {} not shown", counted(sheet.hidden, "row"))));
    }
    Line::from(spans)
}

fn table(frame: &mut Frame<'_>, top: &Top, sheet: &Sheet, area: Rect) {
    let head = sheet.columns.iter().enumerate().map(|(column, name)| {
        let name = match top.sort == Some(column) {
            true => format!("{name}{}", if top.is_reversed { '▴' } else { '▾' }),
            false => (*name).to_owned(),
        };
        let is_figure = sheet.rows.first().and_then(|row| row.values.get(column)).is_some_and(Value::is_figure);
        cell(name, is_figure, style(top.paint, Some(Tint::Dim)))
    });
    let widths = widths(sheet);
    let rows = sheet.rows.iter().skip(top.scrolled).map(|row| {
        Row::new(
            row.values.iter().map(|value| cell(value.text.clone(), value.is_figure(), style(top.paint, value.tint))),
        )
    });
    frame.render_widget(Table::new(rows, widths).header(Row::new(head)).column_spacing(2), area);
}

fn cell(text: String, is_figure: bool, style: Style) -> Cell<'static> {
    let alignment = if is_figure { Alignment::Right } else { Alignment::Left };
    Cell::from(Text::from(text).alignment(alignment)).style(style)
}

/// As wide as the widest text of each column, with a place for the sign of the order; the last one has what is left.
fn widths(sheet: &Sheet) -> Vec<Constraint> {
    let last = sheet.columns.len().saturating_sub(1);
    let width = |column: usize, name: &str| {
        let texts = sheet.rows.iter().filter_map(|row| row.values.get(column)).map(|value| value.text.chars().count());
        let widest = texts.max().unwrap_or(0).max(name.chars().count() + 1).min(WORD_COLUMNS_MAX);
        Constraint::Length(widest as u16)
    };
    let columns = sheet.columns.iter().enumerate();
    columns.map(|(column, name)| if column == last { Constraint::Fill(1) } else { width(column, name) }).collect()
}

fn keys(top: &Top) -> Line<'static> {
    let text = if top.is_typing {
        format!("show rows with: {}▏ (Enter, Esc)", top.filter)
    } else if top.filter.is_empty() {
        "q end · Tab view · s sort · r reverse · / filter · p hold · + - interval".to_owned()
    } else {
        format!("rows with {:?} · Esc all · q end · Tab view · s sort · r reverse · p hold", top.filter)
    };
    Line::styled(text, style(top.paint, Some(Tint::Dim)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::figures::Reading;
    use super::*;
    use crate::status::tests::page;

    fn top() -> Top {
        let mut top = Top::new(1, Paint::Colour);
        for seconds in 0..4 {
            let mut status = page();
            status.uptime_seconds += seconds;
            status.services[0].accepted += 100 * seconds * seconds;
            status.services[0].opened += 100 * seconds * seconds;
            top.take(Ok(Reading { at: Duration::from_secs(seconds), status }));
        }
        top
    }

    fn drawn(top: &Top, columns: u16, lines: u16) -> (String, Terminal<TestBackend>) {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        terminal.draw(|frame| draw(frame, top)).unwrap();
        let buffer = terminal.backend().buffer();
        let text: Vec<String> = (0..lines)
            .map(|line| (0..columns).map(|column| buffer[(column, line)].symbol()).collect::<String>())
            .map(|line| line.trim_end().to_owned())
            .collect();
        (text.join("\n"), terminal)
    }

    #[test]
    fn the_picture_has_sums_a_curve_rows_and_keys() {
        let (text, terminal) = drawn(&top(), 100, 18);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "towpath 0.1.0 · running for 2 h 4 min · generation 17 · every 1 s");
        assert_eq!(lines[1], "500 conn/s · 1,200 open · 0 B/s in · 0 B/s out · source ports 0.9 % full");
        assert!(lines[2..5].iter().any(|line| line.contains('█')), "no curve in\n{text}");
        assert_eq!(lines[5], "[1 services]  2 servers   3 workers   4 source ports   5 latencies");
        let columns: Vec<&str> = lines[6].split_whitespace().collect();
        assert_eq!(columns, ["service", "state", "conn/s", "open", "in", "out", "unserved/s", "servers", "lately"]);
        assert!(lines[7].starts_with("front-end  ◐ degraded"), "{text}");
        assert!(lines[7].ends_with("▃▅█"), "{text}");
        assert!(lines[17].starts_with("q end · Tab view"), "{text}");
        let yellow = terminal.backend().buffer().content().iter().filter(|cell| cell.fg == Color::Yellow).count();
        assert_eq!(yellow, "◐ degraded".chars().count());
    }

    #[test]
    fn a_small_terminal_shows_rows_and_none_is_too_small() {
        let (text, _) = drawn(&top(), 90, 8);
        assert!(text.lines().nth(4).is_some_and(|line| line.starts_with("front-end")), "{text}");
        for (columns, lines) in [(1, 1), (5, 3), (200, 2), (20, 60)] {
            drawn(&top(), columns, lines);
        }
    }

    #[test]
    fn the_filter_is_shown_while_it_is_typed_and_after() {
        let mut top = top();
        top.view = View::Servers;
        top.filter = "fe-2".to_owned();
        top.is_typing = true;
        let (text, _) = drawn(&top, 100, 18);
        assert!(text.contains("show rows with: fe-2▏"), "{text}");
        assert!(
            text.contains("1 row not shown") && text.contains("front-end/FE-2") && !text.contains("FE-1"),
            "{text}"
        );
        top.is_typing = false;
        assert!(drawn(&top, 100, 18).0.contains("rows with \"fe-2\" · Esc all"));
    }

    #[test]
    fn trouble_is_said_in_place_of_the_first_line() {
        let mut top = top();
        top.take(Err("no daemon answers at /run/x".to_owned()));
        let (text, _) = drawn(&top, 100, 18);
        assert!(text.starts_with("no daemon answers at /run/x\n500 conn/s"), "{text}");
    }
}
