//! Progress for people who wait: bars on a terminal, plain lines elsewhere. Standard error only.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lithe::units::human_bytes;

use crate::compress::Progress;

/// What is shown while a model is compressed.
pub struct Bars {
    bar: Option<ProgressBar>,
}

impl Bars {
    /// Nothing yet.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    /// Shows `progress`.
    pub fn tell(&self, progress: Progress) {
        match progress {
            Progress::Verified { size, digest } => {
                self.line(&format!("verified {} {}", human_bytes(size), digest.short()));
            }
            Progress::Tried => self.line("loaded and ran once in a limited process"),
            Progress::Candidate { names } => self.work(&format!("trying {names}")),
            Progress::Step { index, name } => self.work(&format!("step {}: {name}", index + 1)),
            Progress::Stepped { summary, size } => {
                self.line(&format!("  {summary}; {}", human_bytes(size)));
            }
            Progress::Judging { samples } => self.count(samples),
            Progress::Judged { samples } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(samples as u64);
                }
            }
            Progress::Written => self.line("written"),
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Something of unknown length begins.
    fn work(&self, text: &str) {
        match (&self.bar, ProgressStyle::with_template("{spinner} {msg} {elapsed}")) {
            (Some(bar), Ok(style)) => {
                bar.set_style(style);
                bar.set_message(text.to_owned());
            }
            _ => self.line(text),
        }
    }

    /// So many samples are judged.
    fn count(&self, samples: usize) {
        let text = format!("judging on {samples} samples");
        let template = "  {msg} [{bar:30}] {pos}/{len} {eta}";
        match (&self.bar, ProgressStyle::with_template(template)) {
            (Some(bar), Ok(style)) => {
                bar.set_style(style.progress_chars("=> "));
                bar.set_length(samples as u64);
                bar.set_position(0);
                bar.set_message("judging");
            }
            _ => self.line(&format!("  {text}")),
        }
    }
}
