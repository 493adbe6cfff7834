//! What the user sees while something long happens: a spinner on a terminal, a line elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One step on its way; [`Step::done`] says how long it took. Dropped without it, it failed.
pub struct Step {
    what: String,
    started: Instant,
    bar: Option<ProgressBar>,
    ended: bool,
}

/// Begins a step.
pub fn step(what: &str) -> Step {
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {prefix} {msg} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    });
    if bar.is_none() {
        eprintln!("  .. {what}");
    }
    Step { what: what.to_owned(), started: Instant::now(), bar, ended: false }
}

impl Step {
    /// Says where the step stands.
    pub fn say(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(detail.to_owned());
        }
    }

    /// Ends the step well.
    pub fn done(mut self) {
        self.end("ok");
    }

    fn end(&mut self, mark: &str) {
        self.ended = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("  {mark} {} ({:.1} s)", self.what, self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            self.end("FAILED");
        }
    }
}

/// A headline between groups of steps.
pub fn headline(text: &str) {
    eprintln!("\n== {text}");
}
