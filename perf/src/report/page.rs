//! Results as one page of HTML that needs nothing from elsewhere.

use std::fmt::Write;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::plot::{self, Bar, Curve, Drawing, Error, Line, Mark};
use super::sheet::{self, Cell, Group, Sheet};
use super::{Phase, Report, Row, VERDICT_ROUNDS_MIN, Verdict, distinct, table};

const STYLE: &str = include_str!("page.css");

/// The browser itself is told that nothing may be loaded or run.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The page: one section per result, each with the name it is to have.
pub fn render(results: &[(String, Report)]) -> Result<String, Error> {
    let sections = results
        .iter()
        .enumerate()
        .map(|(number, (name, report))| section(number, name, report))
        .collect::<Result<Vec<_>, _>>()?;
    let suites = distinct(results.iter().map(|(_, report)| report.suite.as_str())).join(", ");
    let title = format!("Towpath measured beside its peers: {suites}");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(inks())) }
            }
            body {
                header {
                    h1 { (title) }
                    @if results.len() > 1 {
                        nav aria-label="Results" {
                            ul {
                                @for (number, (name, report)) in results.iter().enumerate() {
                                    li { a href={ "#result-" (number) } { (report.suite) ": " (name) } }
                                }
                            }
                        }
                    }
                }
                main { @for section in sections { (section) } }
            }
        }
    };
    Ok(page.into_string())
}

fn section(number: usize, name: &str, report: &Report) -> Result<Markup, Error> {
    let groups = sheet::groups(report);
    let forests = forests(number, report.subject(), &groups)?;
    let scaling = scaling(number, report)?;
    let mut cases = Vec::new();
    for (place, group) in groups.iter().enumerate() {
        cases.push(case(&format!("{number}-{place}"), report, group)?);
    }
    Ok(html! {
        section id={ "result-" (number) } aria-labelledby={ "title-" (number) } {
            h2 id={ "title-" (number) } { (report.suite) " " span.quiet { "(" (name) ")" } }
            (facts(report))
            p {
                "A ratio above 1 means that " (report.subject()) " was better, whatever the metric: its mark is the median of the rounds, \
                and its line runs from the worst round to the best. "
                "Only if every round lies on the same side of 1 is there a verdict, " (verdict(Verdict::Better)) " or "
                (verdict(Verdict::Worse)) "; otherwise it is a " (verdict(Verdict::Tie)) ", and fewer than "
                (VERDICT_ROUNDS_MIN) " rounds say nothing (" (verdict(Verdict::None)) ")."
            }
            @for line in table::warnings(report) { p.warning { (line) } }
            @if !report.ratios.is_empty() {
                h3 { "Ratios" }
                div.plots { @for figure in forests { (figure) } }
                (sheet_table("All ratios", &sheet::ratios(&groups, report.subject()), 0))
            }
            @if !scaling.is_empty() {
                h3 { "Rate over connections" }
                (legend(report))
                div.plots { @for figure in scaling { (figure) } }
                p.quiet { "The figures stand in the tables of their cases below." }
            }
            @for case in cases { (case) }
        }
    })
}

/// One case: figures, latencies, and the plots of them, plain and steered side by side.
fn case(id: &str, report: &Report, group: &Group<'_>) -> Result<Markup, Error> {
    let one = std::slice::from_ref(group);
    let latencies = sheet::latencies(one);
    let told = group.latencies();
    let rows = || told.iter().flat_map(|pair| pair.each());
    let mut plots = Vec::new();
    let mut kinds = distinct(rows().map(|row| (row.phase, row.case.as_str())));
    // The fair one first.
    kinds.sort_by_key(|&(phase, _)| phase);
    for (phase, case) in kinds {
        let shown: Vec<&Row> = rows().filter(|row| (row.phase, row.case.as_str()) == (phase, case)).collect();
        let curves: Vec<Curve> =
            shown.iter().map(|row| Curve { subject: turn(report, &row.subject), points: row.curve() }).collect();
        let name = format!("Latency of {case}, {}", sheet::load(phase));
        let id = format!("latency-{id}-{}", plots.len());
        plots.push(figure(&id, &name, explain(phase), plot::latency(&curves)?, Some(curve_table(&name, &shown))));
    }
    Ok(html! {
        h3 { (group.name) }
        (sheet_table(&format!("Figures of {}", group.name), &sheet::figures(one), 1))
        @if !latencies.rows.is_empty() {
            h4 { "Latency" }
            (legend(report))
            div.plots.pairs { @for plot in plots { (plot) } }
            (sheet_table(&format!("Latencies of {}", group.name), &latencies, 1))
        }
    })
}

/// A plot of ratios per metric and phase, the accountings of a case one below the other.
fn forests(number: usize, subject: &str, groups: &[Group<'_>]) -> Result<Vec<Markup>, Error> {
    let ratios = || groups.iter().flat_map(|group| &group.ratios).flat_map(|pair| pair.each());
    let mut figures = Vec::new();
    for (metric, phase) in distinct(ratios().map(|ratio| (ratio.metric.as_str(), ratio.phase))) {
        let bars: Vec<Bar> = ratios()
            .filter(|ratio| (ratio.metric.as_str(), ratio.phase) == (metric, phase))
            .map(|ratio| Bar {
                name: format!("{} / {}: {:.2}, {}", ratio.case, ratio.versus, ratio.median, ratio.verdict.word()),
                spread: ratio.spread(),
                verdict: ratio.verdict,
            })
            .collect();
        let name = format!("Ratios of {metric}, {}", sheet::load(phase));
        let about = format!("{subject} / peer, median and spread");
        let id = format!("ratios-{number}-{}", figures.len());
        figures.push(figure(&id, &name, &about, plot::ratios(&bars)?, None));
    }
    Ok(figures)
}

/// A plot for each set of cases that differ only in how many connections there are.
fn scaling(number: usize, report: &Report) -> Result<Vec<Markup>, Error> {
    let rates = || report.rows.iter().filter(|row| row.metric == "rate");
    let counted = || rates().filter_map(|row| Some((connections(&row.case)?, row)));
    let mut figures = Vec::new();
    for (family, phase) in distinct(counted().map(|((family, _), row)| (family, row.phase))) {
        let members = || counted().filter(|((other, _), row)| (other, row.phase) == (&family, phase));
        if distinct(members().map(|((_, count), _)| count)).len() < 2 {
            continue;
        }
        let mut lines = Vec::new();
        for subject in report.subjects() {
            let of_subject = members().filter(|(_, row)| row.subject == subject);
            let mut points: Vec<_> = of_subject.map(|((_, count), row)| (count, row.spread())).collect();
            points.sort_by_key(|point| point.0);
            lines.push(Line { subject: turn(report, subject), points });
        }
        let unit = members().next().map_or("", |(_, row)| row.unit.as_str());
        let name = format!("Rate of {family}, {}", sheet::load(phase));
        let across = if family.starts_with("bulk") { "streams" } else { "connections" };
        let about = format!("{unit}, median and spread");
        let id = format!("rates-{number}-{}", figures.len());
        figures.push(figure(&id, &name, &about, plot::rates(&lines, across)?, None));
    }
    Ok(figures)
}

/// The name of a case without its number of connections, and that number: `64c` anywhere, or the streams of bulk.
fn connections(case: &str) -> Option<(String, u32)> {
    let words: Vec<&str> = case.split('-').collect();
    let count = |word: &str| match word.strip_suffix('c') {
        Some(digits) => digits.parse().ok(),
        None if words[0] == "bulk" => word.parse().ok(),
        None => None,
    };
    let (place, number) = words.iter().enumerate().find_map(|(place, word)| Some((place, count(word)?)))?;
    let mut family = words.clone();
    family.remove(place);
    Some((family.join("-"), number))
}

fn turn(report: &Report, subject: &str) -> usize {
    report.subjects().iter().position(|&known| known == subject).unwrap_or_default()
}

fn explain(phase: Option<Phase>) -> &'static str {
    match phase {
        Some(Phase::EqualRate) => "lower is better; from the intended start, at the same rate for all",
        Some(Phase::Saturation) => "lower is better; as fast as it goes",
        None => "lower is better",
    }
}

fn figure(id: &str, name: &str, about: &str, drawing: Drawing, table: Option<Markup>) -> Markup {
    let Drawing { inside, width, height } = drawing;
    html! {
        figure {
            figcaption id=(id) { (name) " " span.quiet { "(" (about) ")" } }
            svg.plot viewBox={ "0 0 " (width) " " (height) } role="img" aria-labelledby=(id) { (PreEscaped(inside)) }
            @if let Some(table) = table { (table) }
        }
    }
}

/// Each point that is drawn. Subjects have few enough percentiles for one column each.
fn curve_table(name: &str, rows: &[&Row]) -> Markup {
    let curves: Vec<_> = rows.iter().map(|row| row.curve()).collect();
    let mut percentiles = distinct(curves.iter().flatten().map(|point| point.0));
    percentiles.sort_by(f64::total_cmp);
    let sheet = Sheet {
        head: ["percentile"]
            .into_iter()
            .chain(rows.iter().map(|row| row.subject.as_str()))
            .map(number_column)
            .collect(),
        rows: percentiles
            .into_iter()
            .map(|percentile| {
                let at =
                    |curve: &Vec<(f64, f64)>| curve.iter().find(|point| point.0 == percentile).map(|point| point.1);
                let cell = |curve| Cell::Text(at(curve).map_or_else(|| "-".into(), sheet::figure));
                [Cell::Text(format!("{percentile} %"))].into_iter().chain(curves.iter().map(cell)).collect()
            })
            .collect(),
    };
    html! { details { summary { "As a table" } (sheet_table(&format!("{name}, in µs"), &sheet, 0)) } }
}

fn number_column(name: &str) -> sheet::Column {
    sheet::Column { name: name.to_owned(), number: true }
}

/// A table, without its first columns where the heading says what they would.
fn sheet_table(name: &str, sheet: &Sheet, skip: usize) -> Markup {
    html! {
        div.scroll role="region" aria-label=(name) tabindex="0" {
            table {
                thead { tr {
                    @for column in &sheet.head[skip..] { th scope="col" class=[column.number.then_some("number")] { (column.name) } }
                } }
                tbody {
                    @for row in &sheet.rows {
                        tr {
                            @for (place, (cell, column)) in row.iter().zip(&sheet.head).skip(skip).enumerate() {
                                @let class = column.number.then_some("number");
                                @if place == 0 { th scope="row" class=[class] { (cell_markup(cell)) } }
                                @else { td class=[class] { (cell_markup(cell)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn cell_markup(cell: &Cell) -> Markup {
    match cell {
        Cell::Text(text) => html! { (text) },
        Cell::Verdict(told) => verdict(*told),
    }
}

/// By shape, word and colour.
fn verdict(told: Verdict) -> Markup {
    let word = if told == Verdict::None { "no verdict" } else { told.word() };
    html! { span.verdict.(class(told)) { span aria-hidden="true" { (Mark::of_verdict(told).glyph()) } " " (word) } }
}

fn class(told: Verdict) -> &'static str {
    match told {
        Verdict::Better => "better",
        Verdict::None => "none",
        Verdict::Tie => "tie",
        Verdict::Worse => "worse",
    }
}

fn legend(report: &Report) -> Markup {
    html! {
        ul.legend aria-label="Marks" {
            @for (turn, subject) in report.subjects().into_iter().enumerate() {
                li {
                    span.{ "subject-" (turn % plot::SUBJECT_INKS.len()) } aria-hidden="true" { (Mark::of_subject(turn).glyph()) }
                    " " (subject)
                }
            }
        }
    }
}

fn facts(report: &Report) -> Markup {
    let machine = &report.machine;
    let pins = machine
        .pins
        .iter()
        .map(|(role, cpus)| format!("{role} {}", cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")));
    let mut facts = vec![
        ("CPU", format!("{} ({} CPUs)", machine.cpu_model, machine.cpus)),
        ("Memory", format!("{:.1} GiB", machine.memory_bytes as f64 / f64::from(1 << 30))),
        ("Kernel", machine.kernel.clone()),
        ("Governor", machine.governor.clone().unwrap_or_else(|| "none".into())),
        ("Pinned to", pins.collect::<Vec<_>>().join("; ")),
        ("Rounds", format!("{}, thrown away {}", report.rounds, machine.rounds_retaken)),
        (
            "Taken by others",
            format!(
                "steal up to {:.1} %, other programs up to {:.1} %",
                machine.steal_share_max * 100.0,
                machine.others_share_max * 100.0
            ),
        ),
    ];
    facts.extend(machine.versions.iter().map(|(name, version)| (name.as_str(), version.clone())));
    html! { dl.facts { @for (name, fact) in facts { dt { (name) } dd { (fact) } } } }
}

/// The colours of the plots in the dark, and of the words that go with them.
fn inks() -> String {
    let mut light = String::new();
    let mut dark = String::new();
    let subjects = plot::SUBJECT_INKS.iter().enumerate().map(|(turn, ink)| (Some(format!("subject-{turn}")), ink));
    let verdicts = plot::VERDICT_INKS.iter().map(|(told, ink)| (Some(class(*told).to_owned()), ink));
    let plain = [&plot::TEXT_INK, &plot::GRID_INK].map(|ink| (None, ink));
    for (class, ink) in subjects.chain(verdicts).chain(plain) {
        let (day, night) = (plot::hex(ink.light), ink.dark);
        // A drawing carries the colours of the light; these rules are stronger than its attributes.
        let _ = write!(dark, "svg.plot [fill=\"{day}\"]{{fill:{night}}}svg.plot [stroke=\"{day}\"]{{stroke:{night}}}");
        if let Some(class) = class {
            let _ = write!(light, ".{class}{{color:{day}}}");
            let _ = write!(dark, ".{class}{{color:{night}}}");
        }
    }
    format!("{light}@media (prefers-color-scheme: dark){{{dark}}}")
}

#[cfg(test)]
mod tests {
    use scraper::{Html, Selector};

    use super::*;
    use crate::report::sample::sample;

    fn parse(page: &str) -> Html {
        let page = Html::parse_document(page);
        assert_eq!(page.errors, Vec::<std::borrow::Cow<'_, str>>::new(), "well-formed");
        page
    }

    fn count(page: &Html, selector: &str) -> usize {
        page.select(&Selector::parse(selector).unwrap()).count()
    }

    fn texts(page: &Html, selector: &str) -> Vec<String> {
        page.select(&Selector::parse(selector).unwrap()).map(|element| element.text().collect()).collect()
    }

    #[test]
    fn the_page_is_well_formed_and_has_every_row_and_ratio() {
        let report = sample();
        let page = parse(&render(&[("a.json".into(), report.clone())]).unwrap());
        let lines: Vec<String> = texts(&page, "tr");
        for row in &report.rows {
            let spread = sheet::spread(row.spread());
            let found = lines
                .iter()
                .any(|line| line.contains(&row.metric) && line.contains(&row.subject) && line.contains(&spread));
            assert!(found, "{row:?}");
        }
        for ratio in &report.ratios {
            let spread = sheet::spread(ratio.spread());
            let found = lines.iter().any(|line| {
                [sheet::base(&ratio.case), &ratio.metric, &ratio.versus, &spread, ratio.verdict.word()]
                    .iter()
                    .all(|part| line.contains(part))
            });
            assert!(found, "{ratio:?}");
        }
        for row in &report.rows {
            for (_, us) in &row.latency {
                let us = sheet::figure(*us);
                assert!(lines.iter().any(|line| line.contains(&us)), "{us} of {row:?}");
            }
        }
    }

    #[test]
    fn each_case_each_family_and_each_metric_has_its_plot() {
        let page = parse(&render(&[("a.json".into(), sample())]).unwrap());
        let captions = texts(&page, "figcaption").join("\n");
        for expected in [
            "Latency of keepalive-128B-64c, saturation",
            "Latency of keepalive-128B-64c-steered, equal rate",
            "Rate of keepalive-128B, saturation",
            "Ratios of rate, saturation",
            "Ratios of p99, equal rate",
        ] {
            assert!(captions.contains(expected), "{expected} in:\n{captions}");
        }
        assert_eq!(count(&page, "figure > svg[role=img][aria-labelledby]"), count(&page, "figure"));
        assert!(texts(&page, "svg text").iter().any(|text| text.trim() == "99.9 %"));
    }

    #[test]
    fn nothing_is_loaded_and_nothing_runs() {
        let text = render(&[("a.json".into(), sample())]).unwrap();
        let page = parse(&text);
        assert_eq!(count(&page, "script, link, img, iframe, object, embed, image, use, [src], [srcset], [style]"), 0);
        for link in page.select(&Selector::parse("[href]").unwrap()) {
            assert!(link.value().attr("href").unwrap().starts_with('#'));
        }
        for outside in ["http:", "https:", "//", "url(", "@import", "javascript:"] {
            assert!(!text.contains(outside), "{outside}");
        }
    }

    #[test]
    fn headings_go_down_one_step_at_a_time_and_ids_are_unique() {
        let results = [("a.json".to_owned(), sample()), ("b.json".to_owned(), sample())];
        let page = parse(&render(&results).unwrap());
        let mut before = 0;
        for heading in page.select(&Selector::parse("h1, h2, h3, h4").unwrap()) {
            let level = usize::from(heading.value().name().as_bytes()[1] - b'0');
            assert!(level <= before + 1, "{:?}", heading.html());
            before = level;
        }
        assert_eq!((count(&page, "h1"), count(&page, "h2"), count(&page, "nav a")), (1, 2, 2));
        let ids: Vec<_> =
            page.select(&Selector::parse("[id]").unwrap()).filter_map(|one| one.value().attr("id")).collect();
        assert_eq!(distinct(ids.iter()).len(), ids.len());
        for name in page.select(&Selector::parse("[aria-labelledby]").unwrap()) {
            assert!(ids.contains(&name.value().attr("aria-labelledby").unwrap()));
        }
    }

    #[test]
    fn verdicts_are_told_by_word_and_shape() {
        let page = parse(&render(&[("a.json".into(), sample())]).unwrap());
        let told = texts(&page, "td .verdict");
        assert!(told.iter().any(|text| text == "▲ better") && told.iter().any(|text| text == "● tie"), "{told:?}");
    }

    #[test]
    fn names_cannot_become_markup() {
        let mut report = sample();
        let evil = "</style><script>alert(1)</script>&\"'";
        report.machine.versions.insert(evil.into(), evil.into());
        for row in &mut report.rows {
            row.case = format!("{evil}{}", row.case);
            row.unit = evil.into();
        }
        for ratio in &mut report.ratios {
            ratio.case = format!("{evil}{}", ratio.case);
        }
        let page = parse(&render(&[(evil.into(), report)]).unwrap());
        assert_eq!((count(&page, "script"), count(&page, "style")), (0, 1));
    }

    #[test]
    fn the_first_figures_still_make_a_page() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/results/relay-first-cut.json");
        let report = Report::read(file.as_ref()).unwrap();
        let page = parse(&render(&[("relay-first-cut.json".into(), report)]).unwrap());
        assert!(texts(&page, "figcaption").iter().any(|text| text.starts_with("Latency of connect, saturation")));
    }

    #[test]
    fn cases_that_differ_in_connections_are_a_family() {
        let table = [
            ("keepalive-128B-64c", Some(("keepalive-128B", 64))),
            ("keepalive-128B-64c-steered", Some(("keepalive-128B-steered", 64))),
            ("bulk-4", Some(("bulk", 4))),
            ("connect", None),
            ("lease-90", None),
        ];
        for (case, expected) in table {
            assert_eq!(connections(case), expected.map(|(family, count)| (family.to_owned(), count)), "{case}");
        }
    }
}
