//! The report as one HTML page: what was asked, what came out, drawn side by side.
//!
//! A pure function of the [`Report`], so that reports of different days can be drawn together.

use std::fmt::Write as _;

use super::chart::{Axis, Chart, Point, Series, Style, Table, number};
use super::page::{escape, page, section};
use super::table::notes;
use super::{CoursePoint, Report, Run, TokenCounts, plain};
use crate::arrivals::Arrivals;
use crate::figures::Percentiles;

/// Loads up to this number are drawn as bars, more as lines.
const MAX_BAR_LOADS: usize = 2;
/// Loads whose distributions and courses are drawn; a search probes more.
const MAX_DRAWN_LOADS: usize = 6;
/// Quantiles that a distribution's table shows, and marks that its line bears, in percent.
const TABLE_QUANTILES: [usize; 9] = [1, 5, 10, 25, 50, 75, 90, 95, 99];
const MARKED_QUANTILES: [usize; 3] = [50, 95, 99];
/// Steps of time in a course's table.
const COURSE_STEPS: usize = 8;

/// The page.
pub(crate) fn page_of(report: &Report) -> String {
    let view = View { report, loads: loads_of(report) };
    let names: Vec<&str> = report.targets.iter().map(|target| target.name.as_str()).collect();
    let mut sections = vec![("percentiles", "Percentiles", view.percentiles())];
    if !report.searches.is_empty() {
        sections.insert(0, ("search", "Highest rate within the limits", view.searches()));
    }
    sections.push(("throughput", "Throughput by load", view.throughput()));
    sections.push(("distributions", "Distributions", view.distributions()));
    sections.push(("course", "Latency over time", view.courses()));
    if report.runs.iter().any(|run| run.ttft_ms_by_turn.len() > 1) {
        sections.push(("turns", "Time to first token by turn", view.turns()));
    }
    if report.runs.iter().any(|run| run.rounds.len() > 1) {
        sections.push(("rounds", "Rounds", view.rounds()));
    }
    sections.push(("errors", "Errors", view.errors()));
    sections.push(("client", "Can the figures be trusted?", view.client()));
    sections.push(("settings", "Settings", view.settings()));
    let links: Vec<(&str, &str)> = sections.iter().map(|(id, name, _)| (*id, *name)).collect();
    let mut body = format!("<p class=\"soft\">{} · tokenmill-loadtest {}</p>\n", report.started_at, report.version);
    for (id, heading, html) in &sections {
        body += &section(id, heading, html);
    }
    page(&format!("Load test of {}", names.join(" and ")), &links, &body)
}

/// Every load of the report once, rising.
fn loads_of(report: &Report) -> Vec<Arrivals> {
    let mut loads: Vec<Arrivals> = Vec::new();
    for run in &report.runs {
        if !loads.contains(&run.load) {
            loads.push(run.load);
        }
    }
    loads.sort_by(|a, b| a.unit().cmp(b.unit()).then(a.amount().total_cmp(&b.amount())));
    loads
}

struct View<'a> {
    report: &'a Report,
    loads: Vec<Arrivals>,
}

impl View<'_> {
    fn run(&self, target: &str, load: Arrivals) -> Option<&Run> {
        self.report.runs.iter().find(|run| run.target == target && run.load == load)
    }

    /// Runs of one load with their servers' slots.
    fn runs_at(&self, load: Arrivals) -> impl Iterator<Item = (usize, &Run)> {
        let targets = self.report.targets.iter().enumerate();
        targets.filter_map(move |(slot, target)| Some((slot, self.run(&target.name, load)?)))
    }

    /// Loads for the sections that draw each: all, or some from the lowest to the highest.
    fn drawn_loads(&self) -> Vec<Arrivals> {
        let num_steps = self.loads.len().min(MAX_DRAWN_LOADS);
        let last = self.loads.len().saturating_sub(1);
        (0..num_steps).map(|i| self.loads[if num_steps > 1 { i * last / (num_steps - 1) } else { 0 }]).collect()
    }

    fn percentiles(&self) -> String {
        let mut html = "<p>Latencies in milliseconds. The best of each load is green where servers are compared.</p>\
            <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Percentiles\"><table><thead><tr>"
            .to_owned();
        let has_goodput = self.report.runs.iter().any(|run| run.goodput.is_some());
        let heads = ["load", "server", "answered", "failed", "requests/s", "output tokens/s"];
        let latencies = ["TTFT p50", "p95", "p99", "between tokens p50", "p99", "end to end p50", "p95", "p99"];
        let good: &[&str] = if has_goodput { &["goodput/s", "good"] } else { &[] };
        for head in heads.iter().chain(good).chain(&latencies) {
            write!(html, "<th scope=\"col\">{head}</th>").expect("a String takes all");
        }
        html += "</tr></thead><tbody>";
        for load in &self.loads {
            let rows: Vec<(String, Vec<Cell>)> =
                self.runs_at(*load).map(|(_, run)| (run.target.clone(), cells_of(run, has_goodput))).collect();
            for (i, (name, cells)) in rows.iter().enumerate() {
                let label = escape(&load.to_string());
                let class = if i == 0 { " class=\"group\"" } else { "" };
                let is_early = self.run(name, *load).is_some_and(|run| run.was_given_up);
                let label = label.clone() + if is_early { " (ended early)" } else { "" };
                write!(html, "<tr{class}><th scope=\"row\">{label}</th><td>{}</td>", escape(name)).expect("fits");
                for (column, cell) in cells.iter().enumerate() {
                    let others = rows.iter().map(|(_, cells)| &cells[column]);
                    let class = cell.class(others, rows.len());
                    write!(html, "<td{class}>{}</td>", cell.text).expect("a String takes all");
                }
                html += "</tr>";
            }
        }
        html + "</tbody></table></div>"
    }

    fn searches(&self) -> String {
        let mut table = Table::with_head(&["server", "highest rate that passed", "criterion", "probes"]);
        let mut probes = Table::with_head(&["server", "requests/s", "passed", "finding"]);
        for search in &self.report.searches {
            let rate = search.highest_rate.map_or_else(|| "none".to_owned(), |rate| format!("{} req/s", number(rate)));
            let bound = if search.is_bounded { " (the highest tried)" } else { "" };
            let criterion = search.criterion.clone();
            table.rows.push(vec![search.target.clone(), rate + bound, criterion, search.probes.len().to_string()]);
            for probe in &search.probes {
                let passed = if probe.has_passed { "yes" } else { "no" };
                let cells = [&search.target, &number(probe.rate), passed, &probe.finding];
                probes.rows.push(cells.map(str::to_owned).to_vec());
            }
        }
        let probes = probes.html("Probes").replace("<table>", "<table class=\"words\">");
        format!("{}<details><summary>Probes</summary>{probes}</details>", table.html("Highest rate within the limits"))
    }

    /// A chart with the loads on one axis and a line or bar per server and figure.
    fn by_load(&self, title: &str, unit: &str, figures: &[(&str, Figure)]) -> Chart {
        let style = |idx: usize| match (self.loads.len() <= MAX_BAR_LOADS, idx) {
            (true, _) => Style::Bars,
            (false, 0) => Style::Line,
            (false, _) => Style::Dashed,
        };
        let mut chart = Chart {
            title: title.to_owned(),
            x: Axis::ordinal(&self.load_unit(), self.loads.iter().map(|load| self.load_label(*load)).collect()),
            y: Axis::linear(unit),
            series: Vec::new(),
            table: Table::with_head(&["load", "server"]),
        };
        chart.table.head.extend(figures.iter().map(|(name, _)| format!("{name} {unit}")));
        for (slot, target) in self.report.targets.iter().enumerate() {
            for (idx, (figure_name, figure)) in figures.iter().enumerate() {
                let runs =
                    self.loads.iter().enumerate().filter_map(|(i, load)| Some((i, self.run(&target.name, *load)?)));
                let points = runs.filter_map(|(i, run)| {
                    let y = whole(run, *figure)?;
                    Some(Point { x: i as f64, y, text: format!("{}: {} {unit}", run.label, number(y)), has_mark: true })
                });
                let name = format!("{} {figure_name}", target.name).trim_end().to_owned();
                chart.series.push(Series { name, slot, style: style(idx), points: points.collect() });
            }
        }
        for (load, run) in self.loads.iter().flat_map(|load| self.runs_at(*load).map(move |(_, run)| (load, run))) {
            let figures = figures.iter().map(|(_, figure)| whole(run, *figure).map_or_else(|| "–".to_owned(), number));
            chart.table.rows.push([load.to_string(), run.target.clone()].into_iter().chain(figures).collect());
        }
        chart
    }

    fn load_unit(&self) -> String {
        let mut units: Vec<&str> = self.loads.iter().map(|load| load.unit()).collect();
        units.dedup();
        units.join(", ")
    }

    fn load_label(&self, load: Arrivals) -> String {
        if self.load_unit() == load.unit() { number(load.amount()) } else { load.to_string() }
    }

    fn throughput(&self) -> String {
        let mut charts = vec![self.by_load(
            "Output tokens per second",
            "tokens/s",
            &[("", |run| Some(run.output_tokens_per_second))],
        )];
        if self.report.runs.iter().any(|run| run.goodput.is_some()) {
            let good = |run: &Run| run.goodput.map(|goodput| goodput.requests_per_second);
            charts.push(self.by_load(
                "Requests per second: answered, and within the limits",
                "requests/s",
                &[("within the limits", good), ("answered", |run| Some(run.requests_per_second))],
            ));
        } else {
            charts.push(self.by_load(
                "Requests per second",
                "requests/s",
                &[("", |run| Some(run.requests_per_second))],
            ));
        }
        charts.push(self.by_load(
            "Time to first token",
            "ms",
            &[("p95", |run| answered(run, run.ttft_ms.p95)), ("p50", |run| answered(run, run.ttft_ms.p50))],
        ));
        charts.push(self.by_load(
            "Time between tokens",
            "ms",
            &[
                ("p95", |run| answered(run, run.inter_token_ms.p95)),
                ("p50", |run| answered(run, run.inter_token_ms.p50)),
            ],
        ));
        charts_html("throughput", &charts).replace("\"charts\"", "\"charts pairs\"")
    }

    fn distributions(&self) -> String {
        let mut html = "<p>How many of all requests (or gaps) stay below a time. Marks: p50, p95, p99.</p>".to_owned();
        for (i, load) in self.drawn_loads().into_iter().enumerate() {
            write!(html, "<h3>{}</h3>", escape(&load.to_string())).expect("a String takes all");
            let curves: [(&str, Curve); 3] = [
                ("Time to first token", |run| &run.curves_ms.ttft),
                ("Time between tokens", |run| &run.curves_ms.inter_token),
                ("End to end", |run| &run.curves_ms.end_to_end),
            ];
            let charts = curves.map(|(name, curve)| self.distribution(&format!("{name}, {load}"), load, curve));
            html += &charts_html(&format!("distribution-{i}"), &charts);
        }
        html
    }

    fn distribution(&self, title: &str, load: Arrivals, curve: Curve) -> Chart {
        let mut head = vec!["server".to_owned()];
        head.extend(TABLE_QUANTILES.map(|percent| format!("p{percent} ms")));
        let mut chart = Chart {
            title: title.to_owned(),
            x: Axis::log("ms"),
            y: Axis::linear("% of all"),
            series: Vec::new(),
            table: Table { head, rows: Vec::new() },
        };
        for (slot, run) in self.runs_at(load) {
            let curve = curve(run);
            let points = curve.iter().enumerate().map(|(percent, ms)| Point {
                x: *ms,
                y: percent as f64,
                text: format!("p{percent} is {} ms", number(*ms)),
                has_mark: MARKED_QUANTILES.contains(&percent),
            });
            let points = points.collect();
            chart.series.push(Series { name: run.target.clone(), slot, style: Style::Line, points });
            let cells =
                TABLE_QUANTILES.map(|percent| curve.get(percent).map_or_else(|| "–".to_owned(), |ms| number(*ms)));
            chart.table.rows.push(std::iter::once(run.target.clone()).chain(cells).collect());
        }
        chart
    }

    fn courses(&self) -> String {
        let mut html =
            "<p>Each dot is a request, at the time when it was due. A rising line of dots is a queue that grows.</p>\
            <div class=\"charts pairs\">"
                .to_owned();
        let figures: [(&str, CourseFigure); 2] =
            [("Time to first token", |point| point.ttft_ms), ("End to end", |point| point.end_to_end_ms)];
        for (i, load) in self.drawn_loads().into_iter().enumerate() {
            for (k, (name, figure)) in figures.iter().enumerate() {
                html += &self.course(&format!("{name}, {load}"), load, *figure).figure(&format!("course-{i}-{k}"));
            }
        }
        html + "</div>"
    }

    fn course(&self, title: &str, load: Arrivals, figure: CourseFigure) -> Chart {
        let head = ["server", "from s", "requests", "p50 ms", "max ms"];
        let mut chart = Chart {
            title: title.to_owned(),
            x: Axis::linear("seconds since counting began"),
            y: Axis::linear("ms"),
            series: Vec::new(),
            table: Table::with_head(&head),
        };
        for (slot, run) in self.runs_at(load) {
            let points = run.course.iter().map(|point| {
                let text = format!("{} ms at {:.1} s", number(figure(point)), point.at_s);
                Point { x: point.at_s, y: figure(point), text, has_mark: true }
            });
            chart.series.push(Series { name: run.target.clone(), slot, style: Style::Dots, points: points.collect() });
            for part in run.course.chunks(run.course.len().div_ceil(COURSE_STEPS).max(1)) {
                let mut values: Vec<f64> = part.iter().map(figure).collect();
                values.sort_by(f64::total_cmp);
                let (middle, most) = (values[values.len() / 2], values[values.len() - 1]);
                let cells = [format!("{:.1}", part[0].at_s), part.len().to_string(), number(middle), number(most)];
                chart.table.rows.push(std::iter::once(run.target.clone()).chain(cells).collect());
            }
        }
        chart
    }

    fn turns(&self) -> String {
        let mut charts = Vec::new();
        for load in self.drawn_loads() {
            let head = ["server", "turn", "requests", "p50 ms", "p95 ms"];
            let num_turns = self.runs_at(load).map(|(_, run)| run.ttft_ms_by_turn.len()).max().unwrap_or(0);
            let mut chart = Chart {
                title: format!("Time to first token by turn, {load}"),
                x: Axis::ordinal("turn", (1..=num_turns).map(|turn| turn.to_string()).collect()),
                y: Axis::linear("ms"),
                series: Vec::new(),
                table: Table::with_head(&head),
            };
            let figures: [(&str, Style, TurnFigure); 2] =
                [("p95", Style::Line, |ttft| ttft.p95), ("p50", Style::Dashed, |ttft| ttft.p50)];
            for (slot, run) in self.runs_at(load) {
                for (name, style, figure) in figures {
                    let points = run.ttft_ms_by_turn.iter().map(|turn| {
                        let y = figure(&turn.ttft_ms);
                        let text = format!("turn {}: {} ms", turn.turn, number(y));
                        Point { x: turn.turn as f64 - 1.0, y, text, has_mark: true }
                    });
                    let name = format!("{} {name}", run.target);
                    chart.series.push(Series { name, slot, style, points: points.collect() });
                }
                for turn in &run.ttft_ms_by_turn {
                    let Percentiles { count, p50, p95, .. } = turn.ttft_ms;
                    let cells = [turn.turn.to_string(), count.to_string(), number(p50), number(p95)];
                    chart.table.rows.push(std::iter::once(run.target.clone()).chain(cells).collect());
                }
            }
            charts.push(chart);
        }
        charts_html("turn", &charts)
    }

    fn rounds(&self) -> String {
        let mut table =
            Table::with_head(&["load", "server", "round", "requests/s", "output tokens/s", "TTFT p50 ms", "p95 ms"]);
        for run in self.loads.iter().flat_map(|load| self.runs_at(*load).map(|(_, run)| run)) {
            for (i, round) in run.rounds.iter().enumerate() {
                let figures =
                    [round.requests_per_second, round.output_tokens_per_second, round.ttft_p50_ms, round.ttft_p95_ms];
                let mut row = vec![run.label.clone(), run.target.clone(), (i + 1).to_string()];
                row.extend(figures.map(number));
                table.rows.push(row);
            }
        }
        let text = "Servers took turns. What differs between the rounds of one server is noise; \
                    a difference between servers that is no larger means nothing.";
        format!("<p>{text}</p>{}", table.html("Rounds"))
    }

    fn errors(&self) -> String {
        let mut table = Table::with_head(&["server", "load", "count", "kind", "what"]);
        for run in &self.report.runs {
            for error in &run.errors {
                let kind = serde_json::to_value(error.kind).unwrap_or_default();
                let count = error.count.to_string();
                table.rows.push(vec![run.target.clone(), run.label.clone(), count, plain(&kind), error.detail.clone()]);
            }
        }
        if table.rows.is_empty() {
            return "<p>None: every request that counts was answered to its end.</p>".to_owned();
        }
        table.html("Errors").replace("<table>", "<table class=\"words\">")
    }

    fn client(&self) -> String {
        let heads =
            ["server", "load", "lag p50 ms", "p99 ms", "max ms", "sent late p99 ms", "cores used", "tokens counted by"];
        let mut table = Table::with_head(&heads);
        let mut warnings = String::new();
        for run in self.loads.iter().flat_map(|load| self.runs_at(*load).map(|(_, run)| run)) {
            let counts = match run.token_counts {
                TokenCounts::Usage => "the server's usage",
                TokenCounts::Chunks => "events with text",
                TokenCounts::Mixed => "some of each",
            };
            let client = &run.client;
            let mut row = vec![run.target.clone(), run.label.clone()];
            row.extend([client.lag_ms.p50, client.lag_ms.p99, client.lag_ms.max, client.send_delay_ms.p99].map(number));
            row.extend([client.cpu_share.map_or_else(|| "–".to_owned(), number), counts.to_owned()]);
            table.rows.push(row);
            for note in notes(run) {
                let place = escape(&format!("{}, {}: {note}", run.target, run.label));
                write!(warnings, "<p class=\"note\">{place}</p>").expect("a String takes all");
            }
        }
        let text = "Lag is how late the load test's own event loop woke up (its timers have steps of 1 ms); every latency above \
                    may be wrong by as much. Lateness of sending is contained in the latencies of an open loop.";
        format!("{warnings}<p>{text}</p>{}", table.html("The load test itself"))
    }

    fn settings(&self) -> String {
        let mut table = Table::with_head(&["setting", "value"]);
        table.rows = self.report.settings.iter().map(|(name, value)| vec![name.clone(), plain(value)]).collect();
        let mut targets =
            Table::with_head(&["server", "address", "model", "tokens of the template", "tokens per word"]);
        for target in &self.report.targets {
            let scale = [number(target.template_tokens), number(target.tokens_per_word)];
            let names = [&target.name, &target.url, &target.model].map(Clone::clone);
            targets.rows.push(names.into_iter().chain(scale).collect());
        }
        let settings = table.html("Settings").replace("<table>", "<table class=\"words\">");
        format!("{}<h3>How it was asked</h3>{settings}", targets.html("Servers"))
    }
}

/// One figure of a run.
type Figure = fn(&Run) -> Option<f64>;
/// The quantiles of one kind of latency.
type Curve = fn(&Run) -> &[f64];
/// One latency of a request.
type CourseFigure = fn(&CoursePoint) -> f64;
/// One percentile of a turn.
type TurnFigure = fn(&Percentiles) -> f64;

/// A figure of a run that went to its end; others tell of the time before the queue grew.
fn whole(run: &Run, figure: Figure) -> Option<f64> {
    figure(run).filter(|_| !run.was_given_up)
}

/// A latency, if there is any.
fn answered(run: &Run, ms: f64) -> Option<f64> {
    (run.num_answered > 0).then_some(ms)
}

fn charts_html(id: &str, charts: &[Chart]) -> String {
    let figures: String = charts.iter().enumerate().map(|(i, chart)| chart.figure(&format!("{id}-{i}"))).collect();
    format!("<div class=\"charts\">{figures}</div>")
}

/// A cell of the table of percentiles.
struct Cell {
    text: String,
    /// For the comparison; higher is better.
    rank: Option<f64>,
    is_bad: bool,
}

impl Cell {
    fn class<'a>(&'a self, all: impl Iterator<Item = &'a Self>, num_rows: usize) -> &'static str {
        let ranks: Vec<f64> = all.filter_map(|cell| cell.rank).collect();
        let best = ranks.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let differ = ranks.iter().any(|rank| *rank < best);
        match self.rank {
            _ if self.is_bad => " class=\"bad\"",
            Some(rank) if num_rows > 1 && differ && rank >= best => " class=\"best\"",
            _ => "",
        }
    }
}

fn cells_of(run: &Run, has_goodput: bool) -> Vec<Cell> {
    let count = |count: u64, is_bad| Cell { text: number(count as f64), rank: None, is_bad };
    let more = |value: f64| Cell { text: number(value), rank: Some(value), is_bad: false };
    let less = |ms: f64| match answered(run, ms) {
        Some(ms) => Cell { text: number(ms), rank: Some(-ms), is_bad: false },
        None => Cell { text: "–".to_owned(), rank: None, is_bad: false },
    };
    let mut cells = vec![count(run.num_answered, false), count(run.num_failed, run.num_failed > 0)];
    cells.extend([more(run.requests_per_second), more(run.output_tokens_per_second)]);
    match run.goodput {
        Some(goodput) => {
            let share = Cell { text: format!("{:.0} %", goodput.share * 100.0), ..more(goodput.share) };
            cells.extend([more(goodput.requests_per_second), share]);
        }
        None if has_goodput => cells.extend([0, 1].map(|_| Cell { text: "–".to_owned(), rank: None, is_bad: false })),
        None => {}
    }
    let (ttft, gap, total) = (&run.ttft_ms, &run.inter_token_ms, &run.end_to_end_ms);
    cells.extend([ttft.p50, ttft.p95, ttft.p99, gap.p50, gap.p99, total.p50, total.p95, total.p99].map(less));
    cells
}
