//! The report for people: one HTML page without scripts and without anything from elsewhere.
//!
//! Shows what the Manifest says and computes nothing new. Names come from models and are escaped.

mod charts;

use std::fmt::Write as _;

use lithe::artifact::{GateResult, GateVerdict, LayerReport, Manifest, StepReport};
use lithe::recipe::Metric;
use lithe::units::human_bytes;

/// Rows of the table of layers; the Manifest has all of them.
const MOST_ROWS: usize = 200;

/// The page about `manifest`; the same Manifest gives the same bytes.
pub fn page(manifest: &Manifest) -> String {
    let mut body = String::new();
    let name = &manifest.source.digest;
    let _ = write!(
        body,
        "<h1>Compression report</h1><p class=soft>{} of <code>{name}</code></p>",
        if manifest.gates.iter().all(|gate| gate.passed) {
            "The compressed form"
        } else {
            "The original, because a gate did not hold,"
        }
    );
    body.push_str(&tiles(manifest));
    if !manifest.gates.is_empty() {
        body.push_str(&gates(&manifest.gates));
    }
    if let Some(charts) = charts::tradeoffs(manifest) {
        section(&mut body, "Size, metric, latency", &charts);
    }
    if !manifest.steps.is_empty() {
        section(&mut body, "Steps", &steps(&manifest.steps));
    }
    if let Some(chart) = charts::sensitivity(&manifest.layers) {
        section(&mut body, "Layers that moved most", &chart);
    }
    if !manifest.activations.is_empty() {
        let charts: String = manifest.activations.iter().map(charts::histogram).collect();
        let words = "<p class=soft>Values of the original; outside the two lines 8 bits clip. Counts on a logarithmic scale.</p>";
        section(
            &mut body,
            "Activations and their ranges",
            &format!("{words}<div class=small>{charts}</div>"),
        );
    }
    if !manifest.layers.is_empty() {
        section(&mut body, "All layers", &layers(&manifest.layers));
    }
    section(&mut body, "How it was made", &origin(manifest));
    format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width,initial-scale=1\"><meta http-equiv=Content-Security-Policy content=\"default-src 'none';style-src 'unsafe-inline'\"><title>Compression report</title><style>{}</style></head><body><main>{body}</main></body></html>\n",
        include_str!("report.css")
    )
}

fn section(body: &mut String, title: &str, content: &str) {
    let _ = write!(body, "<h2>{title}</h2>{content}");
}

/// `text` as it may stand between tags and in quoted attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The end of a long name, which tells layers apart.
fn short(name: &str, most: usize) -> String {
    let count = name.chars().count();
    if count <= most {
        return escape(name);
    }
    let tail: String = name.chars().skip(count - most + 1).collect();
    format!("…{}", escape(&tail))
}

fn tile(title: &str, figure: &str, words: &str) -> String {
    format!(
        "<div class=\"card tile\"><span class=soft>{title}</span><b>{figure}</b><span class=soft>{words}</span></div>"
    )
}

fn tiles(manifest: &Manifest) -> String {
    let (before, after) = (manifest.source.size, manifest.model.size);
    let share = after as f64 / (before as f64).max(1.0);
    let mut out = tile(
        "Size",
        &human_bytes(after),
        &format!("of {}, {:.1} %", human_bytes(before), 100.0 * share),
    );
    if let Some(e) = &manifest.evaluation {
        let interval = e.interval.as_ref().filter(|interval| interval.confidence < 1.0);
        let interval =
            interval.map_or_else(String::new, |i| format!(", {:.4} to {:.4}", i.low, i.high));
        let unit = if e.metric == Metric::SignalToNoise { " dB" } else { "" };
        out += &tile(
            &format!("{:?}", e.metric),
            &format!("{:.4}{unit}", e.compressed),
            &format!("original {:.4}{interval}; {} samples", e.original, e.samples),
        );
        let l = &e.latency;
        out += &tile(
            "Speed",
            &format!("{:.2}x", l.speedup),
            &format!(
                "{:.3} ms to {:.3} ms, {} pairs",
                1e3 * l.original_seconds,
                1e3 * l.compressed_seconds,
                l.pairs
            ),
        );
    }
    if let Some(memory) = &manifest.memory {
        out += &tile(
            "Memory of a server",
            &human_bytes(memory.compressed),
            &format!("original {}, runtime included", human_bytes(memory.original)),
        );
    }
    format!("<div class=tiles>{out}</div>")
}

fn gates(gates: &[GateResult]) -> String {
    let row = |gate: &GateResult| {
        let (class, word) = match gate.verdict {
            GateVerdict::Held => ("held", "held"),
            GateVerdict::Failed => ("failed", "failed"),
            GateVerdict::Undecided => ("undecided", "undecided"),
        };
        let word = if gate.verdict == GateVerdict::Undecided && gate.passed {
            "undecided, let through"
        } else {
            word
        };
        format!(
            "<tr><td>{}</td><td class=n>{}</td><td><span class=\"chip {class}\">{word}</span></td><td style=\"min-width:220px\">{}<span class=soft>{}</span></td></tr>",
            escape(&gate.gate),
            escape(&gate.bound),
            charts::interval(gate).unwrap_or_default(),
            escape(&gate.measured)
        )
    };
    let rows: String = gates.iter().map(row).collect();
    format!(
        "<h2>Gates</h2><div class=card><table><tr><th>Gate</th><th class=n>Bound</th><th>Verdict</th><th>Figure and interval</th></tr>{rows}</table></div>"
    )
}

fn steps(steps: &[StepReport]) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "–".into(), |v| format!("{v:.4}"));
    let row = |step: &StepReport| {
        let alone: String = step
            .skipped
            .iter()
            .map(|s| {
                format!(
                    "<br><span class=soft>{} {} left alone: {}</span>",
                    s.count,
                    escape(&s.op),
                    escape(&s.reason)
                )
            })
            .collect();
        format!(
            "<tr><td class=mono>{}</td><td>{}{alone}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td></tr>",
            escape(&step.name),
            escape(&step.summary),
            human_bytes(step.size_after),
            number(step.metric),
            step.speedup.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}x"))
        )
    };
    let rows: String = steps.iter().map(row).collect();
    format!(
        "<div class=card><table><tr><th>Step</th><th>What it did</th><th class=n>Size after</th><th class=n>Metric</th><th class=n>Speed</th></tr>{rows}</table></div>"
    )
}

fn layers(layers: &[LayerReport]) -> String {
    let row = |layer: &LayerReport| {
        let alone = layer
            .left_alone
            .as_ref()
            .map_or_else(String::new, |why| format!("<br><span class=soft>{}</span>", escape(why)));
        format!(
            "<tr><td class=mono>{}{alone}</td><td>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{:.1} %</td><td class=n>{}</td></tr>",
            short(&layer.name, 64),
            escape(&layer.op),
            layer.parameters,
            layer.bits,
            100.0 * layer.sparsity,
            layer.signal_to_noise.map_or_else(|| "–".into(), charts::decibels)
        )
    };
    let rows: String = layers.iter().take(MOST_ROWS).map(row).collect();
    let more = layers.len().saturating_sub(MOST_ROWS);
    let more = if more == 0 {
        String::new()
    } else {
        format!("<p class=soft>and {more} more, in manifest.json</p>")
    };
    format!(
        "<div class=card><table><tr><th>Layer</th><th>Operator</th><th class=n>Parameters</th><th class=n>Bits</th><th class=n>Zeros</th><th class=n>Signal to noise</th></tr>{rows}</table>{more}</div>"
    )
}

fn origin(manifest: &Manifest) -> String {
    let e = &manifest.environment;
    let rows = [
        ("Source", manifest.source.digest.to_string()),
        ("Data", manifest.data.as_ref().map_or_else(|| "none".into(), ToString::to_string)),
        ("Recipe", manifest.recipe.digest().to_string()),
        ("Model", manifest.model.digest.to_string()),
        ("Worker", format!("lithe-worker {}, ONNX Runtime {}", e.worker, e.onnxruntime)),
        ("Processor", format!("{}, {} threads, {}", e.cpu, e.threads, e.isa.join(" "))),
    ];
    let rows: String = rows
        .iter()
        .map(|(name, text)| {
            format!("<tr><td class=soft>{name}</td><td class=mono>{}</td></tr>", escape(text))
        })
        .collect();
    format!("<div class=card><table>{rows}</table></div>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_markup() {
        assert_eq!(escape("<script>\"&'\u{7}"), "&lt;script&gt;&quot;&amp;&#39;\u{fffd}");
        assert_eq!(short("encoder/layer.0/<b>", 6), "…0/&lt;b&gt;");
    }
}
