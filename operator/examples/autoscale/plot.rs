//! Demand and pods over time as one HTML file with pictures in it, without scripts or links.

use std::fmt::Write as _;

use crate::scenario::{OURS, Outcome, Scenario};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 220.0;
/// Seconds that become one point.
const STEP: usize = 10;

/// A line: its colour and its value in each second.
type Line<'a> = (&'a str, Vec<f64>);

/// The page.
pub fn html(scenarios: &[Scenario<'_>], outcomes: &[Outcome]) -> String {
    let mut page = String::from(
        "<!doctype html><meta charset=\"utf-8\"><title>Autoscaling</title>\
         <style>body{font:14px sans-serif;margin:2em}svg{background:#fafafa;display:block}</style>\
         <h1>Autoscaling: demand and pods</h1>\
         <p>Grey: requests per second. Blue: pods of lithe, ready ones. Orange: pods of the oracle. \
         Each scaled to its own largest value; pods share one scale.</p>",
    );
    for (scenario, outcome) in scenarios.iter().zip(outcomes) {
        let trail = |name: &str| {
            let row = outcome.rows.iter().find(|row| row.controller == name);
            row.map(|row| row.score.trail.clone()).unwrap_or_default()
        };
        let (ours, oracle) = (trail(OURS), trail("oracle"));
        let pods = |trail: &[(u32, u32, u32)]| -> Vec<f64> {
            trail.iter().map(|(_, ready, _)| f64::from(*ready)).collect()
        };
        let demand = scenario.trace.counts.iter().map(|count| f64::from(*count)).collect();
        let most = pods(&ours).into_iter().chain(pods(&oracle)).fold(1.0, f64::max);
        let name = escape(&scenario.trace.name);
        let _ = write!(page, "<h2>{name} / {}</h2>", scenario.profile.name);
        let _ = write!(page, "<p>largest number of pods {most}</p>");
        let _ = write!(page, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"100%\">");
        path(&mut page, &("#bbb", demand), None);
        path(&mut page, &("#e08214", pods(&oracle)), Some(most));
        path(&mut page, &("#2166ac", pods(&ours)), Some(most));
        page.push_str("</svg>");
    }
    page
}

fn path(page: &mut String, (colour, values): &Line<'_>, most: Option<f64>) {
    let means: Vec<f64> =
        values.chunks(STEP).map(|step| step.iter().sum::<f64>() / step.len() as f64).collect();
    let most = most.unwrap_or_else(|| means.iter().copied().fold(1.0, f64::max));
    let _ = write!(page, "<polyline fill=\"none\" stroke=\"{colour}\" points=\"");
    for (index, value) in means.iter().enumerate() {
        let x = WIDTH * index as f64 / means.len().max(1) as f64;
        let y = HEIGHT - (HEIGHT - 10.0) * value / most;
        let _ = write!(page, "{x:.1},{y:.1} ");
    }
    page.push_str("\"/>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
