//! What the command line prints of a plan and of a result, for people and as JSON.

use lithe::artifact::{Manifest, SearchReport, Skipped};
use lithe::units::human_bytes;
use serde_json::{Value, json};

use super::{Planned, one_line};
use crate::compress::{Compressed, step_line};

/// Each step with what it would match, what it would leave alone, and why it would fail.
pub fn plan(planned: &[Planned]) -> String {
    let mut lines = Vec::new();
    for step in planned {
        match &step.change {
            Ok(change) => {
                lines.push(format!("{}: {}", step.name, change.summary()));
                lines.extend(change.skipped.iter().map(left_alone));
            }
            Err(error) => lines.push(format!("{}: would fail: {error}", step.name)),
        }
    }
    lines.iter().map(|line| one_line(line) + "\n").collect()
}

fn left_alone(skipped: &Skipped) -> String {
    let nodes = if skipped.nodes.is_empty() {
        String::new()
    } else {
        format!(" ({}, …)", skipped.nodes.join(", "))
    };
    format!("  left alone: {} {}: {}{nodes}", skipped.count, skipped.op, skipped.reason)
}

/// The same as JSON.
pub fn plan_json(planned: &[Planned]) -> String {
    let step = |step: &Planned| match &step.change {
        Ok(change) => json!({
            "name": step.name, "matched": change.matched, "summary": change.summary(),
            "skipped": change.skipped,
        }),
        Err(error) => json!({"name": step.name, "error": error.refusal()}),
    };
    let steps: Vec<Value> = planned.iter().map(step).collect();
    format!("{}\n", json!({"steps": steps}))
}

/// What was made, as JSON: the files, and the whole Manifest.
pub fn made_json(compressed: &Compressed) -> String {
    let Compressed { manifest, model, manifest_path, manifest_digest, report, fallback } =
        compressed;
    let made = json!({
        "model": model, "manifestFile": manifest_path, "manifestDigest": manifest_digest,
        "report": report, "fallback": fallback, "manifest": manifest,
    });
    format!("{made}\n")
}

/// What a search tried and chose, a candidate in a line.
fn searched(search: &SearchReport) -> Vec<String> {
    let mut lines = Vec::new();
    for one in &search.candidates {
        let steps: Vec<String> = one.steps.iter().map(|step| step.written().to_string()).collect();
        let figures = match (one.size, one.metric, one.speedup) {
            (Some(size), Some(metric), Some(speedup)) => {
                let memory =
                    one.memory.map_or_else(String::new, |m| format!(", {}", human_bytes(m)));
                format!("{}, {metric:.4}, {speedup:.2}x{memory}; ", human_bytes(size))
            }
            _ => String::new(),
        };
        let front = if one.front { "*" } else { " " };
        lines.push(format!("tried   {front} {}: {figures}{}", steps.join(" "), one.verdict));
    }
    let steps: Vec<String> = search.chosen.iter().map(|step| step.written().to_string()).collect();
    let steps = if steps.is_empty() {
        "the original".to_owned()
    } else {
        format!("[{}]", steps.join(", "))
    };
    lines.push(format!("chosen    {steps} after {:.0} s", search.seconds));
    lines
}

/// What was made, in lines.
pub fn made(compressed: &Compressed) -> String {
    let manifest: &Manifest = &compressed.manifest;
    let mut lines = vec![format!("model     {}", compressed.model.display())];
    if let Some(report) = &compressed.report {
        lines.push(format!("report    {}", report.display()));
    }
    lines.push(format!("digest    {}", manifest.model.digest));
    let ratio = manifest.source.size as f64 / manifest.model.size.max(1) as f64;
    lines.push(format!(
        "size      {} -> {} ({ratio:.2}x smaller)",
        human_bytes(manifest.source.size),
        human_bytes(manifest.model.size)
    ));
    if let Some(search) = &manifest.search {
        lines.extend(searched(search));
    }
    for step in &manifest.steps {
        lines.push(format!("step      {}", step_line(step)));
        for skipped in &step.skipped {
            lines.push(format!(
                "          left alone: {} {}: {}",
                skipped.count, skipped.op, skipped.reason
            ));
        }
    }
    if let Some(e) = &manifest.evaluation {
        lines.push(format!(
            "{:<9} {:.4} -> {:.4} on {} samples of {}",
            format!("{:?}", e.metric),
            e.original,
            e.compressed,
            e.samples,
            e.output
        ));
        lines.push(format!("agreement {:.2} %, cosine {:.4}", 100.0 * e.agreement, e.cosine));
        lines.push(format!(
            "latency   {:.3} ms -> {:.3} ms ({:.2}x, {} pairs, batch {})",
            1e3 * e.latency.original_seconds,
            1e3 * e.latency.compressed_seconds,
            e.latency.speedup,
            e.latency.pairs,
            e.latency.batch_size
        ));
    }
    if let Some(memory) = &manifest.memory {
        let (before, after) = (human_bytes(memory.original), human_bytes(memory.compressed));
        lines.push(format!("memory    {before} -> {after} of a process that serves it"));
    }
    for gate in &manifest.gates {
        let verdict = format!("{:?}", gate.verdict).to_lowercase();
        lines.push(format!("gate      {} {}: {verdict}, {}", gate.gate, gate.bound, gate.measured));
    }
    if let Some(line) = &compressed.fallback {
        lines.push(format!("fallback  the original is kept: {line}"));
    }
    lines.iter().map(|line| one_line(line) + "\n").collect()
}
