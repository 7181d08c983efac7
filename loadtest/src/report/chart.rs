//! A chart as inline SVG, with its legend and its values as a table for those who cannot see it.
//!
//! Everything that comes from outside is escaped here. Colours are classes `s0` to `s7` that the page's style defines.

use std::fmt::Write as _;

use super::page::escape;

/// Size of the drawing, and of the plot in it, in its own units.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 262.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 408.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 208.0;
/// Colours that the page's style defines.
const NUM_COLOURS: usize = 8;

/// How an axis turns values into places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// From 0.
    Linear,
    /// Smaller values than a tenth are drawn as a tenth.
    Log,
    /// Equal steps, one for each label.
    Ordinal,
}

/// One axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) label: String,
    pub(super) scale: Scale,
    /// Of an ordinal axis: value `i` stands for label `i`.
    pub(super) labels: Vec<String>,
}

impl Axis {
    pub(super) fn linear(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Linear, labels: Vec::new() }
    }

    pub(super) fn log(label: &str) -> Self {
        Self { scale: Scale::Log, ..Self::linear(label) }
    }

    pub(super) fn ordinal(label: &str, labels: Vec<String>) -> Self {
        Self { scale: Scale::Ordinal, labels, ..Self::linear(label) }
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Style {
    /// A line; marks only at points with `has_mark`.
    Line,
    /// A broken line, for a second figure of the same server.
    Dashed,
    /// Dots alone.
    Dots,
    /// Bars from 0, beside those of other series; for an ordinal axis.
    Bars,
}

/// One value.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// Shown when it is pointed at.
    pub(super) text: String,
    pub(super) has_mark: bool,
}

/// Values that belong together.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// Which server: decides colour and mark.
    pub(super) slot: usize,
    pub(super) style: Style,
    pub(super) points: Vec<Point>,
}

/// A table: head and rows.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

/// One chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// The same values, as a table.
    pub(super) table: Table,
}

/// Places on one axis.
struct Places {
    scale: Scale,
    min: f64,
    max: f64,
    /// Where `min` and `max` are.
    from: f64,
    to: f64,
}

impl Places {
    fn of(axis: &Axis, values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let most = values.clone().fold(0.0, f64::max);
        let (min, max) = match axis.scale {
            Scale::Linear => (values.fold(0.0, f64::min), if most > 0.0 { most * 1.04 } else { 1.0 }),
            Scale::Ordinal => (-0.5, axis.labels.len().max(1) as f64 - 0.5),
            Scale::Log => {
                let least = values.filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
                let least = if least.is_finite() { least.max(0.1) } else { 1.0 };
                (least / 1.1, most.max(least * 2.0) * 1.1)
            }
        };
        Self { scale: axis.scale, min, max, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = if self.scale == Scale::Log {
            (value.max(self.min) / self.min).ln() / (self.max / self.min).ln()
        } else {
            (value - self.min) / (self.max - self.min)
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(&self, axis: &Axis) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Ordinal => axis.labels.iter().enumerate().map(|(i, label)| (i as f64, label.clone())).collect(),
            Scale::Linear => {
                let step = nice_step((self.max - self.min) / 5.0);
                let first = (self.min / step).ceil() as i64;
                let values = (first..).map(|i| i as f64 * step).take_while(|value| *value <= self.max);
                values.map(|value| (value, number(value))).collect()
            }
            Scale::Log => {
                let decades = (self.max / self.min).log10();
                let factors: &[f64] = if decades <= 2.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let powers = (self.min.log10().floor() as i32)..=(self.max.log10().ceil() as i32);
                let values = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)));
                let inside = values.filter(|value| (self.min..=self.max).contains(value));
                inside.map(|value| (value, number(value))).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.max(1e-9).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999).unwrap_or(10.0);
    factor * power
}

/// A figure as people read it: about three digits, thousands set apart.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        big if big >= 100.0 || (big - big.round()).abs() < 1e-9 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), ""), |(whole, rest)| (whole, rest));
    let num_digits = whole.trim_start_matches('-').len();
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        let left = whole.len() - i;
        if num_digits > 3 && i > 0 && left.is_multiple_of(3) && digit != '-' && !grouped.ends_with('-') {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    if rest.is_empty() { grouped } else { format!("{grouped}.{rest}") }
}

impl Chart {
    /// A figure: title, legend, drawing, table. `id` is unique on the page.
    pub(super) fn figure(&self, id: &str) -> String {
        let title = escape(&self.title);
        format!(
            "<figure><figcaption id=\"{id}\">{title}</figcaption>{}{}\
             <details><summary>Values as a table</summary>{}</details></figure>\n",
            self.legend(),
            self.svg(id),
            self.table.html(&self.title),
        )
    }

    fn legend(&self) -> String {
        let mut html = "<ul class=\"legend\">".to_owned();
        for series in &self.series {
            let class = series.slot % NUM_COLOURS;
            let dash = if series.style == Style::Dashed { " stroke-dasharray=\"5 4\"" } else { "" };
            let line = match series.style {
                Style::Bars => "<rect x=\"6\" y=\"1\" width=\"12\" height=\"10\"/>".to_owned(),
                Style::Dots => mark(series.slot, 12.0, 6.0),
                Style::Line | Style::Dashed => {
                    format!("<path class=\"l\" d=\"M0 6h24\"{dash}/>{}", mark(series.slot, 12.0, 6.0))
                }
            };
            let name = escape(&series.name);
            let swatch = format!("<svg class=\"s{class}\" viewBox=\"0 0 24 12\" aria-hidden=\"true\">{line}</svg>");
            write!(html, "<li>{swatch}{name}</li>").expect("a String takes all");
        }
        html + "</ul>"
    }

    fn svg(&self, id: &str) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Places::of(&self.x, points().map(|point| point.x), LEFT, RIGHT);
        let y = Places::of(&self.y, points().map(|point| point.y), BOTTOM, TOP);
        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}\" tabindex=\"0\">\
             <title>{}</title>",
            escape(&self.title)
        );
        self.draw_axes(&mut svg, &x, &y);
        let num_bars = self.series.iter().filter(|series| series.style == Style::Bars).count();
        for (idx, series) in self.series.iter().enumerate() {
            let (class, name) = (series.slot % NUM_COLOURS, escape(&series.name));
            write!(svg, "<g class=\"s{class}\" data-s=\"{name}\">").expect("a String takes all");
            if series.style == Style::Bars {
                draw_bars(&mut svg, series, &x, &y, (idx, num_bars));
            } else {
                draw_points(&mut svg, series, &x, &y);
            }
            svg += "</g>";
        }
        svg + "<circle class=\"ring\" r=\"6\"/></svg>"
    }

    fn draw_axes(&self, svg: &mut String, x: &Places, y: &Places) {
        let mut add = |text: String| *svg += &text;
        add("<g class=\"axes\">".to_owned());
        for (value, label) in y.ticks(&self.y) {
            let at = y.at(value);
            add(format!("<path d=\"M{LEFT} {at:.1}H{RIGHT}\"/>"));
            add(format!("<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 6.0, at + 4.0));
        }
        let ticks = x.ticks(&self.x);
        // Long labels at every place would run into one another.
        let room =
            (RIGHT - LEFT) / (ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(1) as f64 * 9.0);
        let every = (ticks.len() as f64 / room.max(1.0)).ceil().max(1.0) as usize;
        for (value, label) in ticks.iter().step_by(every) {
            let (at, label) = (x.at(*value), escape(label));
            if x.scale != Scale::Ordinal {
                add(format!("<path d=\"M{at:.1} {TOP}V{BOTTOM}\"/>"));
            }
            add(format!("<text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{label}</text>", BOTTOM + 18.0));
        }
        let middle = (LEFT + RIGHT) / 2.0;
        let (x_label, y_label) = (escape(&self.x.label), escape(&self.y.label));
        let below = HEIGHT - 10.0;
        add(format!("<text class=\"name\" x=\"{middle:.0}\" y=\"{below:.0}\" text-anchor=\"middle\">{x_label}</text>"));
        let up = (TOP + BOTTOM) / 2.0;
        add(format!(
            "<text class=\"name\" transform=\"translate(14 {up:.0}) rotate(-90)\" text-anchor=\"middle\">{y_label}</text>"
        ));
        add(format!("<path class=\"base\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/></g>"));
    }
}

fn draw_points(svg: &mut String, series: &Series, x: &Places, y: &Places) {
    let mut add = |text: String| *svg += &text;
    let places: Vec<(f64, f64)> = series.points.iter().map(|point| (x.at(point.x), y.at(point.y))).collect();
    if series.style != Style::Dots && places.len() > 1 {
        let dash = if series.style == Style::Dashed { " stroke-dasharray=\"6 4\"" } else { "" };
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        add(format!("<path class=\"l\" d=\"M{}\"{dash}/>", path.join("L")));
    }
    for (point, (x, y)) in series.points.iter().zip(&places) {
        let text = escape(&point.text);
        if series.style == Style::Dots {
            add(format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.4\" data-t=\"{text}\"/>"));
        } else {
            if point.has_mark {
                add(mark(series.slot, *x, *y));
            }
            add(format!("<circle class=\"h\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1\" data-t=\"{text}\"/>"));
        }
    }
}

/// `place` is the series' number among how many.
fn draw_bars(svg: &mut String, series: &Series, x: &Places, y: &Places, place: (usize, usize)) {
    let step = x.at(1.0) - x.at(0.0);
    let width = (step * 0.7 / place.1.max(1) as f64).min(64.0);
    for point in &series.points {
        let left = x.at(point.x) + width * (place.0 as f64 - place.1 as f64 / 2.0) + 1.0;
        let (top, text) = (y.at(point.y), escape(&point.text));
        let (center, height, inner) = (left + width / 2.0 - 1.0, (BOTTOM - top).max(0.5), width - 2.0);
        write!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{inner:.1}\" height=\"{height:.1}\"/>\
             <circle class=\"h\" cx=\"{center:.1}\" cy=\"{top:.1}\" r=\"1\" data-t=\"{text}\"/>"
        )
        .expect("a String takes all");
    }
}

/// A mark whose form tells servers apart where colours do not.
fn mark(slot: usize, x: f64, y: f64) -> String {
    match slot % 4 {
        0 => format!("<circle class=\"m\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\"/>"),
        1 => format!("<rect class=\"m\" x=\"{:.1}\" y=\"{:.1}\" width=\"7\" height=\"7\"/>", x - 3.5, y - 3.5),
        2 => format!("<path class=\"m\" d=\"M{x:.1} {:.1}l4.4 7.6h-8.8z\"/>", y - 5.0),
        _ => format!("<path class=\"m\" d=\"M{x:.1} {:.1}l4.6 4.6-4.6 4.6-4.6-4.6z\"/>", y - 4.6),
    }
}

impl Table {
    /// A table without rows.
    pub(super) fn with_head(head: &[&str]) -> Self {
        Self { head: head.iter().map(|cell| (*cell).to_owned()).collect(), rows: Vec::new() }
    }

    /// The table, in a frame that scrolls by itself; `title` names it.
    pub(super) fn html(&self, title: &str) -> String {
        let title = escape(title);
        let mut html =
            format!("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{title}\"><table><thead><tr>");
        for cell in &self.head {
            write!(html, "<th scope=\"col\">{}</th>", escape(cell)).expect("a String takes all");
        }
        html += "</tr></thead><tbody>";
        for row in &self.rows {
            html += "<tr>";
            for (i, cell) in row.iter().enumerate() {
                let (open, close) = if i == 0 { ("<th scope=\"row\">", "</th>") } else { ("<td>", "</td>") };
                write!(html, "{open}{}{close}", escape(cell)).expect("a String takes all");
            }
            html += "</tr>";
        }
        html + "</tbody></table></div>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_people_read_them() {
        for (value, text) in [
            (0.0, "0"),
            (0.0123, "0.012"),
            (0.5, "0.50"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1234.5, "1\u{202f}234"),
            (1_234_567.0, "1\u{202f}234\u{202f}567"),
            (-12_345.0, "-12\u{202f}345"),
            (16.0, "16"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        for (axis, values, wanted) in [
            (Axis::linear("y"), vec![0.0, 97.0], vec!["0", "50", "100"]),
            (Axis::log("x"), vec![3.0, 2500.0], vec!["10", "100", "1\u{202f}000"]),
            (Axis::log("x"), vec![9.0, 60.0], vec!["10", "20", "50"]),
            (Axis::ordinal("x", vec!["a".to_owned(), "b".to_owned()]), vec![], vec!["a", "b"]),
        ] {
            let places = Places::of(&axis, values.iter().copied(), 0.0, 100.0);
            let labels: Vec<String> = places.ticks(&axis).into_iter().map(|(_, label)| label).collect();
            assert!(wanted.iter().all(|label| labels.iter().any(|found| found == label)), "{labels:?}, not {wanted:?}");
            assert!(places.ticks(&axis).iter().all(|(value, _)| (0.0..=100.0).contains(&places.at(*value))));
        }
    }
}
