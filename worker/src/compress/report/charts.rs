//! The report's drawings, as inline SVG: trade-offs with their front, layers, histograms, intervals.

use std::fmt::Write as _;

use lithe::artifact::{ActivationReport, GateResult, LayerReport, Manifest};
use lithe::recipe::Metric;
use lithe::units::human_bytes;

use super::{escape, short};
use crate::compress::metrics::EQUAL_DB;

/// Layers of the sensitivity chart.
const MOST_BARS: usize = 24;
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 280.0;
/// Room for the axes' words: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (62.0, 24.0, 16.0, 40.0);

/// One model in the charts.
struct Point {
    name: String,
    size: f64,
    metric: f64,
    speedup: f64,
    chosen: bool,
}

/// One axis: its title, the figure of a point, and how a number is written.
struct Axis {
    title: String,
    of: fn(&Point) -> f64,
    write: fn(f64) -> String,
    /// Whether a smaller figure is better.
    small: bool,
}

/// A signal-to-noise ratio in words.
pub fn decibels(value: f64) -> String {
    if value >= EQUAL_DB { "equal".into() } else { format!("{value:.1} dB") }
}

/// Size against metric and size against speed, of the original and the model after each step.
pub fn tradeoffs(manifest: &Manifest) -> Option<String> {
    let evaluation = manifest.evaluation.as_ref()?;
    let mut points = vec![Point {
        name: "original".into(),
        size: manifest.source.size as f64,
        metric: evaluation.original,
        speedup: 1.0,
        chosen: false,
    }];
    for (at, step) in manifest.steps.iter().enumerate() {
        points.push(Point {
            name: step.name.clone(),
            size: step.size_after as f64,
            metric: step.metric?,
            speedup: step.speedup?,
            chosen: at + 1 == manifest.steps.len(),
        });
    }
    let size = || Axis {
        title: "size".into(),
        of: |point| point.size,
        write: |bytes| human_bytes(bytes.max(0.0) as u64),
        small: true,
    };
    let metric = Axis {
        title: format!("{:?}", evaluation.metric),
        of: |point| point.metric,
        write: |value| format!("{value:.4}"),
        small: !evaluation.metric.larger_is_better(),
    };
    let speed = Axis {
        title: "speed, original = 1".into(),
        of: |point| point.speedup,
        write: |ratio| format!("{ratio:.2}x"),
        small: false,
    };
    let mut charts = String::new();
    // Against itself the original has no noise at all.
    if evaluation.metric != Metric::SignalToNoise {
        charts += &scatter(&points, &size(), &metric);
    }
    charts += &scatter(&points, &size(), &speed);
    Some(format!(
        "<div class=charts>{charts}</div><p class=soft>Filled: what the recipe ends with. Dashed: the Pareto front; what is off it is worse in both.</p>"
    ))
}

/// A scale from the figures to the length of an axis, with a little room.
fn scale(figures: &[f64], length: f64) -> (f64, f64, impl Fn(f64) -> f64) {
    let low = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let high = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let room = ((high - low) * 0.12).max(high.abs() * 1e-3).max(1e-9);
    let (low, high) = (low - room, high + room);
    (low, high, move |value: f64| (value - low) / (high - low) * length)
}

fn scatter(points: &[Point], x: &Axis, y: &Axis) -> String {
    let (left, right, top, bottom) = MARGIN;
    let (wide, high) = (WIDTH - left - right, HEIGHT - top - bottom);
    let xs: Vec<f64> = points.iter().map(x.of).collect();
    let ys: Vec<f64> = points.iter().map(y.of).collect();
    let ((x_low, x_high, to_x), (y_low, y_high, to_y)) = (scale(&xs, wide), scale(&ys, high));
    let place = |point: &Point| (left + to_x((x.of)(point)), top + high - to_y((y.of)(point)));
    let mut svg = format!("<div class=card><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img>");
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (at_x, at_y) = (left + part * wide, top + high - part * high);
        let _ = write!(
            svg,
            "<line class=grid x1={left} x2={:.1} y1={at_y:.1} y2={at_y:.1} /><text x={:.1} y={:.1} text-anchor=end>{}</text>",
            left + wide,
            left - 6.0,
            at_y + 4.0,
            (y.write)(y_low + part * (y_high - y_low))
        );
        if part != 0.25 && part != 0.75 {
            let _ = write!(
                svg,
                "<text x={at_x:.1} y={:.1} text-anchor=middle>{}</text>",
                top + high + 16.0,
                (x.write)(x_low + part * (x_high - x_low))
            );
        }
    }
    let _ = write!(
        svg,
        "<text x={:.1} y={:.1} text-anchor=middle>{}</text><text class=name x={left} y=11>{}</text>",
        left + wide / 2.0,
        HEIGHT - 6.0,
        escape(&x.title),
        escape(&y.title)
    );
    let line: Vec<String> = front(points, x, y)
        .into_iter()
        .map(|point| {
            let (x, y) = place(point);
            format!("{x:.1},{y:.1}")
        })
        .collect();
    let _ = write!(svg, "<polyline class=front points=\"{}\" />", line.join(" "));
    let mut taken: Vec<(f64, f64)> = Vec::new();
    for point in points {
        let (at_x, at_y) = place(point);
        let class = if point.chosen { "dot" } else { "other" };
        let (anchor, shift) = if at_x > left + wide * 0.6 { ("end", -9.0) } else { ("start", 9.0) };
        // Names of points that lie together stand one below the other.
        let mut label = at_y + 4.0;
        while taken.iter().any(|(x, y)| (x - at_x).abs() < 110.0 && (y - label).abs() < 13.0) {
            label += 13.0;
        }
        taken.push((at_x, label));
        let _ = write!(
            svg,
            "<circle class={class} cx={at_x:.1} cy={at_y:.1} r=5 /><text class=name x={:.1} y={label:.1} text-anchor={anchor}>{}</text>",
            at_x + shift,
            escape(&point.name)
        );
    }
    svg + "</svg></div>"
}

/// The points that no other beats in both figures, by the first figure.
fn front<'a>(points: &'a [Point], x: &Axis, y: &Axis) -> Vec<&'a Point> {
    let better = |axis: &Axis, a: f64, b: f64| if axis.small { a <= b } else { a >= b };
    let beats = |a: &Point, b: &Point| {
        let (ax, ay, bx, by) = ((x.of)(a), (y.of)(a), (x.of)(b), (y.of)(b));
        better(x, ax, bx) && better(y, ay, by) && (ax != bx || ay != by)
    };
    let mut front: Vec<&Point> =
        points.iter().filter(|point| !points.iter().any(|other| beats(other, point))).collect();
    front.sort_by(|a, b| (x.of)(a).total_cmp(&(x.of)(b)));
    front
}

/// The layers whose outputs moved most, worst first; `None` where none did.
pub fn sensitivity(layers: &[LayerReport]) -> Option<String> {
    let mut moved: Vec<(&LayerReport, f64)> = layers
        .iter()
        .filter_map(|layer| Some((layer, layer.signal_to_noise?)))
        .filter(|(_, noise)| *noise < EQUAL_DB)
        .collect();
    if moved.is_empty() {
        return None;
    }
    moved.sort_by(|a, b| a.1.total_cmp(&b.1));
    moved.truncate(MOST_BARS);
    let most = moved.iter().map(|(_, noise)| *noise).fold(1.0, f64::max);
    let (left, wide, line) = (300.0, 560.0, 22.0);
    let height = line * moved.len() as f64 + 4.0;
    let mut svg = format!(
        "<div class=card><p class=soft>Signal to noise of each layer's output against the original's, errors of earlier layers included; a short bar is a layer to exclude first.</p><svg viewBox=\"0 0 960 {height}\" role=img>"
    );
    for (at, (layer, noise)) in moved.iter().enumerate() {
        let y = line * at as f64 + 3.0;
        let width = (noise.max(0.0) / most * wide).max(1.0);
        let _ = write!(
            svg,
            "<text class=name x={:.0} y={:.1} text-anchor=end>{}</text><rect class=bar x={left} y={y:.1} width={width:.1} height=15 rx=3 /><text x={:.1} y={:.1}>{} · {} · {} bit</text>",
            left - 8.0,
            y + 12.0,
            short(&layer.name, 40),
            left + width + 6.0,
            y + 12.0,
            decibels(*noise),
            escape(&layer.op),
            layer.bits
        );
    }
    Some(svg + "</svg></div>")
}

/// The values of one activation and the range that is kept.
pub fn histogram(activation: &ActivationReport) -> String {
    let (wide, high) = (230.0, 90.0);
    let low = activation.low.min(activation.clip_low);
    let top = activation.high.max(activation.clip_high);
    let to_x = |value: f64| (value - low) / (top - low).max(1e-12) * wide;
    let log = |count: u64| (count as f64).ln_1p();
    let most = activation.counts.iter().map(|count| log(*count)).fold(1e-9, f64::max);
    let step = (activation.high - activation.low) / activation.counts.len().max(1) as f64;
    let mut svg = format!(
        "<div class=card><span class=mono>{}</span><svg viewBox=\"0 0 {wide} {:.0}\" role=img>",
        short(&activation.name, 26),
        high + 16.0
    );
    for (at, count) in activation.counts.iter().enumerate() {
        let (from, height) = (activation.low + at as f64 * step, log(*count) / most * (high - 6.0));
        let _ = write!(
            svg,
            "<rect class=bar x={:.2} y={:.2} width={:.2} height={height:.2} />",
            to_x(from),
            high - height,
            (to_x(from + step) - to_x(from) - 0.3).max(0.4)
        );
    }
    for clip in [activation.clip_low, activation.clip_high] {
        let x = to_x(clip).clamp(0.75, wide - 0.75);
        let _ = write!(svg, "<line class=clip x1={x:.1} x2={x:.1} y1=0 y2={high} />");
    }
    let _ = write!(
        svg,
        "<line class=axis x1=0 x2={wide} y1={high} y2={high} /><text x=0 y={:.0}>{:.3}</text><text x={wide} y={:.0} text-anchor=end>{:.3}</text>",
        high + 13.0,
        activation.clip_low,
        high + 13.0,
        activation.clip_high
    );
    svg + "</svg></div>"
}

/// The bound of a gate, the figure and its interval on one line; `None` for exact figures.
pub fn interval(gate: &GateResult) -> Option<String> {
    let interval = gate.interval.as_ref().filter(|interval| interval.confidence < 1.0)?;
    let (value, bound) = (gate.value?, bound(gate)?);
    let figures = [interval.low, interval.high, value, bound];
    let (_, _, to_x) = scale(&figures, 320.0);
    let (from, to) = (to_x(interval.low), to_x(interval.high));
    let class = format!("{:?}", gate.verdict).to_lowercase();
    Some(format!(
        "<svg viewBox=\"0 0 320 22\" style=\"max-width:340px\" role=img class={class}><line class=axis x1=0 x2=320 y1=11 y2=11 /><line class=bound x1={0:.1} x2={0:.1} y1=1 y2=21 /><rect x={from:.1} y=8 width={1:.1} height=6 rx=3 fill=currentColor opacity=.45 /><circle cx={2:.1} cy=11 r=5 fill=currentColor /></svg>",
        to_x(bound),
        (to - from).max(2.0),
        to_x(value)
    ))
}

/// The bound as a number in the figure's unit.
fn bound(gate: &GateResult) -> Option<f64> {
    use lithe::units::{Duration, Percent};
    let text = gate.bound.as_str();
    text.parse()
        .ok()
        .or_else(|| Percent::from(text).fraction().ok())
        .or_else(|| Duration::from(text).parse().ok().map(|length| length.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_nobody_beats_in_both() {
        let point = |name: &str, size, metric| Point {
            name: name.into(),
            size,
            metric,
            speedup: 1.0,
            chosen: false,
        };
        let points = [
            point("original", 10.0, 1.0),
            point("worse", 9.0, 0.8),
            point("small", 2.0, 0.9),
            point("same", 10.0, 1.0),
        ];
        let axis = |of, small| Axis { title: String::new(), of, write: |_| String::new(), small };
        let front = front(&points, &axis(|p| p.size, true), &axis(|p| p.metric, false));
        let names: Vec<&str> = front.iter().map(|point| point.name.as_str()).collect();
        assert_eq!(names, ["small", "original", "same"]);
    }
}
