//! What a dashboard reads, as Prometheus text. Labels are bounded: models and revisions that are
//! there now, two protocols, a list of outcomes.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use lithe::latency::write_classic;

use crate::model::Model;
use crate::tally::Protocol;

const HEADS: [(&str, &str, &str); 7] = [
    ("requests_total", "counter", "Requests by how they ended"),
    ("request_duration_seconds", "histogram", "From a request's arrival to the head of its answer"),
    ("held_requests", "gauge", "Requests that wait for a worker"),
    ("requests_in_flight", "gauge", "Requests under way, waiting ones included"),
    ("workers", "gauge", "Workers by state"),
    ("cold_start_seconds", "gauge", "From the last first held request to a worker"),
    ("worker_requests_in_flight", "gauge", "Requests under way at one worker"),
];

/// The text for `models`, as of `now`.
pub fn text(models: &[Arc<Model>], now: Instant) -> String {
    let mut text = String::new();
    for (name, kind, help) in HEADS {
        let name = format!("lithe_gateway_{name}");
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}");
        for model in models {
            write(&mut text, &name, model, now);
        }
    }
    text
}

fn write(text: &mut String, name: &str, model: &Model, now: Instant) {
    let told = model.told();
    let labels =
        format!("namespace=\"{}\",model=\"{}\"", escape(&told.namespace), escape(&told.name));
    let short = name.strip_prefix("lithe_gateway_").unwrap_or(name);
    match short {
        "requests_total" | "request_duration_seconds" => {
            for (revision, counted) in model.revisions() {
                for protocol in Protocol::ALL {
                    let labels = format!(
                        "{labels},revision=\"{}\",protocol=\"{}\"",
                        escape(&revision),
                        protocol.name()
                    );
                    let series = counted.series(protocol);
                    if short == "requests_total" {
                        for (outcome, count) in series.outcomes().filter(|(_, count)| *count > 0) {
                            let outcome = outcome.name();
                            let _ =
                                writeln!(text, "{name}{{{labels},outcome=\"{outcome}\"}} {count}");
                        }
                    } else {
                        let histogram = series.duration.snapshot();
                        if histogram.count() > 0 {
                            write_classic(text, name, &labels, &histogram);
                        }
                    }
                }
            }
        }
        "workers" => {
            let workers = model.workers();
            let ready = workers.iter().filter(|worker| worker.ready()).count();
            let ejected = workers.iter().filter(|worker| worker.ejected(now)).count();
            for (state, count) in
                [("ready", ready), ("other", workers.len() - ready), ("ejected", ejected)]
            {
                let _ = writeln!(text, "{name}{{{labels},state=\"{state}\"}} {count}");
            }
        }
        "worker_requests_in_flight" => {
            for worker in model.workers().iter() {
                let count = worker.in_flight.load(Ordering::Relaxed);
                let _ = writeln!(text, "{name}{{{labels},worker=\"{}\"}} {count}", worker.address);
            }
        }
        gauge => {
            let value = match gauge {
                "held_requests" => Some(model.hold.len() as f64),
                "requests_in_flight" => Some(model.in_flight.load(Ordering::Acquire) as f64),
                _ => model.signals(now).cold_start,
            };
            if let Some(value) = value {
                let _ = writeln!(text, "{name}{{{labels}}} {value}");
            }
        }
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
