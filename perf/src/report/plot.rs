//! Plots, as SVG that takes its colours from the page.

use std::f64::consts::TAU;
use std::io;
use std::ops::Range;

use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::element::{EmptyElement, PathElement, Polygon, Text};
use plotters::prelude::{Cartesian2d, DrawingArea, IntoDrawingArea, SVGBackend};
use plotters::series::LineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, ShapeStyle, TextStyle};

use super::sheet::figure;
use super::{Spread, Verdict};

/// What drawing may fail with: memory that cannot be written to, so nothing that happens.
pub(super) type Error = plotters::drawing::DrawingAreaErrorKind<io::Error>;

/// Points of the drawing per CSS pixel: the library rounds to whole ones, and curves have to stay smooth when they are enlarged.
const UNIT: i32 = 4;

/// Width in CSS pixels: readable on a phone without a second drawing.
const WIDTH: i32 = 420;

/// Height of a plot of curves in CSS pixels.
const HEIGHT: i32 = 290;

/// Height of one line of ratios in CSS pixels.
const LINE_HEIGHT: i32 = 42;

/// Size of text in CSS pixels; the library writes four fifths of it.
const TEXT: i32 = 16;

/// Half the size of a mark in CSS pixels.
const MARK: i32 = 5;

/// Ratios further from 1 than this, either way, are drawn there.
const RATIO_MAX: f64 = 1000.0;

/// A latency below is drawn there, in microseconds: the axis is logarithmic.
const LATENCY_US_MIN: f64 = 0.1;

/// A colour as drawn, and what the page makes of it in the dark.
pub(super) struct Ink {
    pub(super) light: RGBColor,
    pub(super) dark: &'static str,
}

/// Axes and text.
pub(super) const TEXT_INK: Ink = Ink { light: RGBColor(0x1F, 0x24, 0x2B), dark: "#E4E7EB" };
/// Lines of the grid.
pub(super) const GRID_INK: Ink = Ink { light: RGBColor(0xD9, 0xDE, 0xE5), dark: "#353C46" };
/// One per subject; each differs from its neighbours in lightness, too.
pub(super) const SUBJECT_INKS: [Ink; 5] = [
    Ink { light: RGBColor(0x0B, 0x5F, 0xB4), dark: "#6CB2FF" },
    Ink { light: RGBColor(0xC2, 0x4A, 0x00), dark: "#FF9D5C" },
    Ink { light: RGBColor(0x1E, 0x7B, 0x4B), dark: "#5FD39A" },
    Ink { light: RGBColor(0x8A, 0x3F, 0xA8), dark: "#D39BEE" },
    Ink { light: RGBColor(0x6B, 0x5A, 0x12), dark: "#D6C25A" },
];
/// What is said of a ratio.
pub(super) const VERDICT_INKS: [(Verdict, Ink); 4] = [
    (Verdict::Better, Ink { light: RGBColor(0x0A, 0x6E, 0x4A), dark: "#4FD6A0" }),
    (Verdict::None, Ink { light: RGBColor(0x6A, 0x70, 0x79), dark: "#9AA2AD" }),
    (Verdict::Tie, Ink { light: RGBColor(0x4D, 0x53, 0x5C), dark: "#B8BFC9" }),
    (Verdict::Worse, Ink { light: RGBColor(0xB3, 0x26, 0x1E), dark: "#FF8A80" }),
];

/// A shape, so that nothing is told by colour alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Circle,
    Diamond,
    Down,
    Square,
    Up,
}

impl Mark {
    /// The mark of a subject, by its turn.
    pub(super) fn of_subject(number: usize) -> Mark {
        [Mark::Circle, Mark::Up, Mark::Square, Mark::Diamond, Mark::Down][number % SUBJECT_INKS.len()]
    }

    pub(super) fn of_verdict(verdict: Verdict) -> Mark {
        match verdict {
            Verdict::Better => Mark::Up,
            Verdict::None => Mark::Diamond,
            Verdict::Tie => Mark::Circle,
            Verdict::Worse => Mark::Down,
        }
    }

    /// The same shape in text.
    pub(super) fn glyph(self) -> &'static str {
        match self {
            Mark::Circle => "●",
            Mark::Diamond => "◆",
            Mark::Down => "▼",
            Mark::Square => "■",
            Mark::Up => "▲",
        }
    }

    /// Around its middle, in points of the drawing.
    fn corners(self) -> Vec<(i32, i32)> {
        let m = MARK * UNIT;
        match self {
            // The library's circle is of another type than its polygon; at this size nobody sees the difference.
            Mark::Circle => (0..24)
                .map(|corner| f64::from(corner) * TAU / 24.0)
                .map(|angle| ((angle.cos() * f64::from(m)).round() as i32, (angle.sin() * f64::from(m)).round() as i32))
                .collect(),
            Mark::Diamond => vec![(0, -m), (m, 0), (0, m), (-m, 0)],
            Mark::Down => vec![(-m, -m), (m, -m), (0, m)],
            Mark::Square => vec![(-m, -m), (m, -m), (m, m), (-m, m)],
            Mark::Up => vec![(-m, m), (m, m), (0, -m)],
        }
    }
}

/// The ink of a subject, by its turn.
pub(super) fn subject_ink(number: usize) -> RGBColor {
    SUBJECT_INKS[number % SUBJECT_INKS.len()].light
}

fn verdict_ink(verdict: Verdict) -> RGBColor {
    VERDICT_INKS.iter().find(|(of, _)| *of == verdict).map_or(TEXT_INK.light, |(_, ink)| ink.light)
}

/// How a colour stands in the drawing.
pub(super) fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// A drawing: what lies inside of the `svg` element, and how large it is.
pub(super) struct Drawing {
    pub(super) inside: String,
    pub(super) width: i32,
    pub(super) height: i32,
}

/// A subject's latencies: its turn, and (percentile, microseconds).
pub(super) struct Curve {
    pub(super) subject: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// A subject's rate over the number of connections: its turn, and (connections, rate).
pub(super) struct Line {
    pub(super) subject: usize,
    pub(super) points: Vec<(u32, Spread)>,
}

/// A ratio with its name.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) spread: Spread,
    pub(super) verdict: Verdict,
}

/// Latency over percentiles, both logarithmic: each nine takes the same room, as in HdrHistogram's own plots.
pub(super) fn latency(curves: &[Curve]) -> Result<Drawing, Error> {
    // 100 % lies infinitely far to the right.
    let nines = |percentile: f64| -(1.0 - percentile.min(99.9999) / 100.0).log10();
    let decades = |us: f64| us.max(LATENCY_US_MIN).log10();
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let right = points().map(|point| nines(point.0)).fold(2.0, f64::max);
    let low = points().map(|point| decades(point.1)).fold(f64::INFINITY, f64::min);
    let high = points().map(|point| decades(point.1)).fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low <= high { (low - 0.05, high + 0.05) } else { (0.0, 1.0) };
    let ticks: Vec<f64> = (0..=5).map(f64::from).filter(|&nine| nine <= right + 1e-9).collect();

    draw(HEIGHT, |area| {
        let mut chart = chart(area, Axis::of(0.0..right, ticks), Axis::of(low..high, steps(low, high)))?;
        mesh(&mut chart, "percentile", &|&nines| percentile(nines), &|&decades| microseconds(10f64.powf(decades)))?;
        for curve in curves {
            let ink = subject_ink(curve.subject);
            let points: Vec<_> = curve.points.iter().map(|&(p, us)| (nines(p), decades(us))).collect();
            chart.draw_series(LineSeries::new(points.iter().copied(), line(ink)))?;
            marks(&mut chart, &points, Mark::of_subject(curve.subject), ink)?;
        }
        Ok(())
    })
}

/// Rate over the number of connections, which is logarithmic; the spread is an upright line.
pub(super) fn rates(lines: &[Line], across: &str) -> Result<Drawing, Error> {
    let place = |connections: u32| f64::from(connections.max(1)).log2();
    let mut ticks: Vec<u32> = lines.iter().flat_map(|line| line.points.iter().map(|point| point.0)).collect();
    ticks.sort_unstable();
    ticks.dedup();
    let left = ticks.first().map_or(0.0, |&first| place(first)) - 0.3;
    let right = ticks.last().map_or(1.0, |&last| place(last)) + 0.3;
    let top = lines.iter().flat_map(|line| &line.points).map(|point| point.1.max).fold(f64::MIN_POSITIVE, f64::max);
    let ticks = ticks.into_iter().map(place).collect();

    draw(HEIGHT, |area| {
        let up = Axis::of(0.0..top * 1.05, round_steps(top));
        let mut chart = chart(area, Axis::of(left..right, ticks), up)?;
        mesh(&mut chart, across, &|&place| figure_of_count(place.exp2()), &|&rate| short(rate))?;
        for Line { subject, points } in lines {
            let ink = subject_ink(*subject);
            chart.draw_series(points.iter().map(|&(connections, Spread { min, max, .. })| {
                PathElement::new(vec![(place(connections), min), (place(connections), max)], line(ink))
            }))?;
            let medians: Vec<_> =
                points.iter().map(|&(connections, spread)| (place(connections), spread.median)).collect();
            chart.draw_series(LineSeries::new(medians.iter().copied(), line(ink)))?;
            marks(&mut chart, &medians, Mark::of_subject(*subject), ink)?;
        }
        Ok(())
    })
}

/// Ratios with their spread around a line at 1 (a forest plot). The axis is logarithmic: half lies as far away as twice.
pub(super) fn ratios(bars: &[Bar]) -> Result<Drawing, Error> {
    let place = |ratio: f64| ratio.clamp(1.0 / RATIO_MAX, RATIO_MAX).log2();
    // Never so narrow that noise looks like a difference.
    let left = bars.iter().map(|bar| place(bar.spread.min)).fold(place(0.9), f64::min) - 0.05;
    let right = bars.iter().map(|bar| place(bar.spread.max)).fold(place(1.1), f64::max) + 0.05;
    let count = bars.len() as f64;
    let height = bars.len() as i32 * LINE_HEIGHT + 52;

    draw(height, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_left(12 * UNIT)
            .margin_right(12 * UNIT)
            .margin_top(4 * UNIT)
            .x_label_area_size(44 * UNIT)
            .build_cartesian_2d(Axis::of(left..right, ratio_ticks(left, right)), Axis::of(0.0..count, Vec::new()))?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .bold_line_style(thin(GRID_INK.light))
            .light_line_style(thin(GRID_INK.light))
            .axis_style(thin(TEXT_INK.light))
            .x_label_style(text())
            .axis_desc_style(text())
            .x_label_formatter(&|place| format!("{}", (place.exp2() * 100.0).round() / 100.0))
            .x_desc("← worse · ratio · better →")
            .draw()?;
        chart.draw_series([PathElement::new(vec![(0.0, 0.0), (0.0, count)], line(TEXT_INK.light))])?;
        for (number, bar) in bars.iter().enumerate() {
            // The name above, the line below: a phone has no room beside it.
            let (top, middle) = (count - number as f64 - 0.1, count - number as f64 - 0.64);
            let ink = verdict_ink(bar.verdict);
            let ends = vec![(place(bar.spread.min), middle), (place(bar.spread.max), middle)];
            chart.draw_series([PathElement::new(ends, line(ink))])?;
            marks(&mut chart, &[(place(bar.spread.median), middle)], Mark::of_verdict(bar.verdict), ink)?;
            chart.draw_series([Text::new(bar.name.clone(), (left, top), text_top_left())])?;
        }
        Ok(())
    })
}

/// A linear axis with the ticks it was told, which the library's own do not take together with names of our own.
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Axis {
    fn of(range: Range<f64>, ticks: Vec<f64>) -> Axis {
        Axis { range, ticks }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Asked a second time for the fine grid, of which there is none.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

fn draw(height: i32, content: impl FnOnce(&Area<'_>) -> Result<(), Error>) -> Result<Drawing, Error> {
    let (width, height) = (WIDTH * UNIT, height * UNIT);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width.unsigned_abs(), height.unsigned_abs())).into_drawing_area();
        content(&area)?;
        area.present()?;
    }
    // The page writes the outermost element itself: with a name, and a size that follows the column.
    let start = svg.find('>').map_or(0, |end| end + 1);
    let end = svg.rfind("</svg>").unwrap_or(svg.len());
    Ok(Drawing { inside: svg[start..end].trim().to_owned(), width, height })
}

fn chart<'a, 'b>(area: &'a Area<'b>, across: Axis, up: Axis) -> Result<Chart<'a, 'b>, Error> {
    ChartBuilder::on(area)
        .margin_top(10 * UNIT)
        .margin_right(34 * UNIT)
        .margin_left(2 * UNIT)
        .x_label_area_size(44 * UNIT)
        .y_label_area_size(58 * UNIT)
        .build_cartesian_2d(across, up)
}

fn mesh(
    chart: &mut Chart<'_, '_>,
    across: &str,
    across_text: &dyn Fn(&f64) -> String,
    up_text: &dyn Fn(&f64) -> String,
) -> Result<(), Error> {
    chart
        .configure_mesh()
        .bold_line_style(thin(GRID_INK.light))
        .light_line_style(thin(GRID_INK.light))
        .axis_style(thin(TEXT_INK.light))
        .x_label_style(text())
        .y_label_style(text())
        .axis_desc_style(text())
        .x_label_formatter(across_text)
        .y_label_formatter(up_text)
        .x_desc(across)
        .draw()
}

/// A mark at each of these points of the axes.
fn marks(chart: &mut Chart<'_, '_>, points: &[(f64, f64)], mark: Mark, ink: RGBColor) -> Result<(), Error> {
    let at = |&at: &(f64, f64)| EmptyElement::at(at) + Polygon::new(mark.corners(), ink.filled());
    chart.draw_series(points.iter().map(at)).map(drop)
}

fn text() -> TextStyle<'static> {
    ("sans-serif", TEXT * UNIT).into_font().color(&TEXT_INK.light)
}

fn text_top_left() -> TextStyle<'static> {
    text().pos(Pos::new(HPos::Left, VPos::Top))
}

fn thin(ink: RGBColor) -> ShapeStyle {
    ink.stroke_width(UNIT.unsigned_abs())
}

fn line(ink: RGBColor) -> ShapeStyle {
    ink.stroke_width(2 * UNIT.unsigned_abs())
}

/// 1, 2 and 5 of each decade where there is room, as logarithms to 10.
fn steps(low: f64, high: f64) -> Vec<f64> {
    let each: &[f64] = if high - low > 3.0 {
        &[1.0]
    } else if high - low > 0.5 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0]
    };
    let mut decade = low.floor();
    let mut steps = Vec::new();
    while decade <= high {
        steps.extend(each.iter().map(|step| decade + step.log10()).filter(|step| (low..=high).contains(step)));
        decade += 1.0;
    }
    steps
}

/// About five round figures from 0.
fn round_steps(top: f64) -> Vec<f64> {
    let rough = top / 5.0;
    let decade = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0].into_iter().map(|step| step * decade).find(|&step| step >= rough).unwrap_or(10.0 * decade);
    (0..=(top / step) as u32).map(|number| f64::from(number) * step).collect()
}

/// Ratios to write below the axis: 1, and others as far as their names do not touch.
fn ratio_ticks(left: f64, right: f64) -> Vec<f64> {
    const ROUND: [f64; 21] = [
        1.0, 2.0, 0.5, 1.5, 0.7, 1.2, 0.8, 1.1, 0.9, 3.0, 0.3, 5.0, 0.2, 10.0, 0.1, 30.0, 0.03, 100.0, 0.01, 300.0,
        1000.0,
    ];
    // About eight names fit side by side.
    let apart = (right - left) / 8.0;
    let mut ticks: Vec<f64> = Vec::new();
    for place in ROUND.map(f64::log2) {
        let free = ticks.iter().all(|tick| (tick - place).abs() >= apart);
        if free && (left..=right).contains(&place) {
            ticks.push(place);
        }
    }
    ticks.sort_by(f64::total_cmp);
    ticks
}

fn percentile(nines: f64) -> String {
    match nines.round() as usize {
        0 => "0 %".into(),
        1 => "90 %".into(),
        nines => format!("{:.*} %", nines - 2, 100.0 - 100.0 * 10f64.powf(-(nines as f64))),
    }
}

fn microseconds(us: f64) -> String {
    let plain = |value: f64| format!("{}", (value * 10.0).round() / 10.0);
    if us < 999.5 {
        format!("{} µs", plain(us))
    } else if us < 999_500.0 {
        format!("{} ms", plain(us / 1e3))
    } else {
        format!("{} s", plain(us / 1e6))
    }
}

fn figure_of_count(count: f64) -> String {
    let text = figure(count.round());
    text.trim_end_matches(".00").trim_end_matches(".0").to_owned()
}

fn short(value: f64) -> String {
    let plain = |value: f64| format!("{}", (value * 100.0).round() / 100.0);
    if value >= 1e6 {
        format!("{} M", plain(value / 1e6))
    } else if value >= 1e3 {
        format!("{} k", plain(value / 1e3))
    } else {
        plain(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nine_of_the_axis_has_its_name() {
        let names: Vec<String> = (0..=5).map(|nines| percentile(f64::from(nines))).collect();
        assert_eq!(names, ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"]);
    }

    #[test]
    fn latencies_and_rates_are_written_short() {
        let table = [(0.5, "0.5 µs"), (50.0, "50 µs"), (1000.0, "1 ms"), (2500.0, "2.5 ms"), (2e6, "2 s")];
        for (us, expected) in table {
            assert_eq!(microseconds(us), expected);
        }
        assert_eq!([0.5, 20000.0, 2.5e6].map(short), ["0.5", "20 k", "2.5 M"]);
    }

    #[test]
    fn ticks_are_round_and_never_touch() {
        assert_eq!(round_steps(84000.0), [0.0, 20000.0, 40000.0, 60000.0, 80000.0]);
        assert_eq!(steps(1.0, 2.0), [10f64, 20.0, 50.0, 100.0].map(f64::log10));
        for (left, right) in [(-0.2, 0.2), (-1.0, 3.0), (-9.9, 9.9)] {
            let ticks = ratio_ticks(left, right);
            assert!(ticks.contains(&0.0) && ticks.len() >= 3, "{ticks:?}");
            assert!(ticks.windows(2).all(|pair| pair[1] - pair[0] >= (right - left) / 8.0 - 1e-9), "{ticks:?}");
        }
    }

    #[test]
    fn what_lies_outside_of_an_axis_is_still_drawn() {
        let bar =
            |min, median, max| Bar { name: "<&>".into(), spread: Spread { median, min, max }, verdict: Verdict::Tie };
        let drawing = ratios(&[bar(0.0, 1.0, 1e9)]).unwrap();
        assert!(drawing.inside.contains("&lt;&amp;&gt;"));
        for curves in [vec![], vec![Curve { subject: 7, points: vec![(50.0, 0.0), (100.0, 1e9)] }]] {
            assert!(!latency(&curves).unwrap().inside.contains("NaN"));
        }
        assert!(!rates(&[], "connections").unwrap().inside.contains("NaN"));
    }
}
