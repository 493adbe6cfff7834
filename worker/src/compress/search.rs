//! `objective`: finds the steps that serve a goal best within the gates and a time budget. Candidates are
//! halved over growing numbers of samples; what is left is measured on all of them, and the original is
//! a candidate too. Decides only: [`lab`] compresses and measures, the clock is an argument.

pub mod candidates;
pub mod lab;

use std::cmp::Ordering;
use std::time::Duration;

use lithe::artifact::{CandidateReport, SearchReport};
use lithe::recipe::{Fallback, Goal, Step};

use crate::compress::Error;

/// How long a search takes where the recipe does not say.
pub const BUDGET: Duration = Duration::from_secs(15 * 60);
/// Samples of the rounds before the last.
pub const ROUNDS: [usize; 2] = [16, 64];
/// Candidates that a round keeps at least.
const FEWEST: usize = 4;
/// The share of the budget after which no new candidate enters a round before the last.
const EARLY: f64 = 0.5;
/// Figures this near to the best one are as good: measuring again would turn them.
const NEAR: f64 = 1.02;
/// Layers that may stay in floats when the best candidate misses the gates on the metric.
const FALLBACK: Fallback = Fallback { max_excluded: 8 };

/// What was measured of one candidate.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Bytes of the model.
    pub size: u64,
    /// The metric; larger is better for `better`, whatever the metric.
    pub metric: f64,
    /// The metric with its sign turned where smaller is better.
    pub better: f64,
    /// The original's latency over the candidate's.
    pub speedup: f64,
    /// Peak bytes of a process that loads and runs it, where the goal asks for it.
    pub memory: Option<u64>,
    /// Samples that judged it.
    pub samples: u64,
    /// The gates that failed, in one line.
    pub failed: Option<String>,
    /// Whether the gates on the metric fail by more than few samples explain.
    pub hopeless: bool,
}

/// Compresses by steps and measures on at most so many samples, or on all.
type Try<'a> = dyn Fn(&[Step], Option<usize>) -> Result<Attempt, Error> + 'a;

/// What a search needs from outside.
pub struct Bench<'a> {
    /// Compresses by the steps and measures on at most so many samples, or on all.
    pub attempt: &'a Try<'a>,
    /// Time since the search began.
    pub clock: &'a dyn Fn() -> Duration,
    /// The original, as if it were a candidate.
    pub original: Attempt,
    /// What is made small.
    pub goal: Goal,
    /// When to end.
    pub budget: Duration,
}

/// One candidate and what became of it.
struct Entry {
    steps: Vec<Step>,
    seen: Option<Attempt>,
    whole: bool,
    verdict: String,
}

/// Searches `candidates`. The steps that come back are empty where nothing beats the original.
///
/// # Errors
/// What an attempt says, but for refusals: a recipe that does not fit the model is one less.
pub fn search(candidates: Vec<Vec<Step>>, bench: &Bench<'_>) -> Result<SearchReport, Error> {
    let entry = |steps| Entry { steps, seen: None, whole: false, verdict: String::new() };
    let mut entries: Vec<Entry> = candidates.into_iter().map(entry).collect();
    let mut left: Vec<usize> = (0..entries.len()).collect();
    let all = bench.original.samples as usize;
    for samples in ROUNDS.into_iter().filter(|samples| *samples < all) {
        for at in &left {
            if bench.clock().as_secs_f64() > EARLY * bench.budget.as_secs_f64() {
                break;
            }
            try_out(&mut entries, *at, Some(samples), bench)?;
        }
        halve(&mut entries, &mut left, bench.goal);
    }
    for at in left {
        if (bench.clock)() > bench.budget && entries.iter().any(|entry| entry.whole) {
            note(&mut entries, at, "left over when the time was up");
            continue;
        }
        try_out(&mut entries, at, None, bench)?;
    }
    rescue(&mut entries, bench)?;
    let chosen = choose(&mut entries, bench);
    Ok(report(entries, chosen, bench))
}

impl Bench<'_> {
    fn clock(&self) -> Duration {
        (self.clock)()
    }
}

fn note(entries: &mut [Entry], at: usize, verdict: &str) {
    if let Some(entry) = entries.get_mut(at) {
        verdict.clone_into(&mut entry.verdict);
    }
}

fn try_out(
    entries: &mut [Entry],
    at: usize,
    samples: Option<usize>,
    bench: &Bench<'_>,
) -> Result<(), Error> {
    let Some(entry) = entries.get_mut(at) else { return Ok(()) };
    match (bench.attempt)(&entry.steps, samples) {
        Ok(attempt) => {
            entry.verdict = attempt.failed.clone().unwrap_or_else(|| "holds the gates".into());
            (entry.seen, entry.whole) = (Some(attempt), samples.is_none());
        }
        Err(Error::Refused { refusal, .. }) => {
            entry.verdict = refusal.to_string();
            (entry.seen, entry.whole) = (None, false);
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Takes out what was refused or is hopeless, and of the rest the worse half. What was not tried for want
/// of time stays behind what was.
fn halve(entries: &mut [Entry], left: &mut Vec<usize>, goal: Goal) {
    left.retain(|at| {
        let Some(entry) = entries.get(*at) else { return false };
        match &entry.seen {
            Some(attempt) => !attempt.hopeless,
            None => entry.verdict.is_empty(),
        }
    });
    let rank = |at: &usize| {
        let seen = entries.get(*at).and_then(|entry| entry.seen.as_ref());
        seen.map_or((2, f64::INFINITY), |attempt| {
            (i32::from(attempt.failed.is_some()), figure(attempt, goal))
        })
    };
    left.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(Ordering::Equal));
    let keep = FEWEST.max(left.len().div_ceil(2));
    for at in left.drain(keep.min(left.len())..) {
        if let Some(entry) = entries.get_mut(at) {
            entry.verdict = format!("{}; others were better on few samples", entry.verdict);
        }
    }
}

/// What the goal makes small.
fn figure(attempt: &Attempt, goal: Goal) -> f64 {
    match goal {
        Goal::Latency => 1.0 / attempt.speedup.max(1e-9),
        Goal::Size => attempt.size as f64,
        Goal::Memory => attempt.memory.unwrap_or(u64::MAX) as f64,
    }
}

/// Where the best figure of all misses the gates, tries the same steps with some layers in floats.
fn rescue(entries: &mut Vec<Entry>, bench: &Bench<'_>) -> Result<(), Error> {
    let best = entries
        .iter()
        .filter_map(|entry| Some((entry, entry.seen.as_ref()?)))
        .min_by(|a, b| figure(a.1, bench.goal).total_cmp(&figure(b.1, bench.goal)));
    let Some((entry, attempt)) = best else { return Ok(()) };
    let quantizes = entry.steps.iter().any(|step| step.quantize.is_some());
    if attempt.failed.is_none() || !quantizes || bench.clock() > bench.budget {
        return Ok(());
    }
    let mut steps = entry.steps.clone();
    if let Some(quantize) = steps.iter_mut().rev().find_map(|step| step.quantize.as_mut()) {
        quantize.fallback = Some(FALLBACK);
    }
    entries.push(Entry { steps, seen: None, whole: false, verdict: String::new() });
    let at = entries.len() - 1;
    try_out(entries, at, None, bench)
}

/// The best of those that hold the gates and beat the original; never one that is larger and slower.
fn choose(entries: &mut [Entry], bench: &Bench<'_>) -> Option<usize> {
    let goal = bench.goal;
    let original = figure(&bench.original, goal);
    let good = |attempt: &Attempt| {
        let worse = attempt.size > bench.original.size && attempt.speedup < 1.0;
        attempt.failed.is_none() && !worse && figure(attempt, goal) * NEAR < original
    };
    let found: Vec<(usize, Attempt)> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.whole)
        .filter_map(|(at, entry)| Some((at, entry.seen.clone()?)))
        .filter(|(_, attempt)| good(attempt))
        .collect();
    let best = found.iter().map(|(_, a)| figure(a, goal)).fold(f64::INFINITY, f64::min);
    let second = if goal == Goal::Latency { Goal::Size } else { Goal::Latency };
    let near = found.iter().filter(|(_, attempt)| figure(attempt, goal) <= best * NEAR);
    let chosen = near.min_by(|a, b| figure(&a.1, second).total_cmp(&figure(&b.1, second)))?.0;
    note(entries, chosen, "chosen");
    Some(chosen)
}

/// Whether `a` is nowhere worse than `b` and somewhere better, in size, metric and speed.
fn beats(a: &Attempt, b: &Attempt) -> bool {
    let no_worse = a.size <= b.size && a.better >= b.better && a.speedup >= b.speedup;
    no_worse && (a.size < b.size || a.better > b.better || a.speedup > b.speedup)
}

fn report(entries: Vec<Entry>, chosen: Option<usize>, bench: &Bench<'_>) -> SearchReport {
    let steps = chosen.and_then(|at| entries.get(at)).map(|entry| entry.steps.clone());
    let measured: Vec<Attempt> = entries
        .iter()
        .filter(|entry| entry.whole)
        .filter_map(|entry| entry.seen.clone())
        .chain([bench.original.clone()])
        .collect();
    let candidate = |entry: Entry| {
        let Entry { steps, seen, whole, verdict } = entry;
        let front = seen
            .as_ref()
            .is_some_and(|own| whole && !measured.iter().any(|other| beats(other, own)));
        CandidateReport {
            steps,
            samples: seen.as_ref().map_or(0, |attempt| attempt.samples),
            size: seen.as_ref().map(|attempt| attempt.size),
            metric: seen.as_ref().map(|attempt| attempt.metric),
            speedup: seen.as_ref().map(|attempt| attempt.speedup),
            memory: seen.as_ref().and_then(|attempt| attempt.memory),
            front,
            verdict,
        }
    };
    SearchReport {
        goal: bench.goal,
        seconds: bench.clock().as_secs_f64(),
        candidates: entries.into_iter().map(candidate).collect(),
        chosen: steps.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use lithe::recipe::Quantize;

    fn measured(size: u64, speedup: f64) -> Attempt {
        Attempt {
            size,
            metric: 1.0,
            better: 1.0,
            speedup,
            memory: None,
            samples: 1000,
            failed: None,
            hopeless: false,
        }
    }

    /// A candidate that is known by its seed of a name.
    fn named(name: &str) -> Vec<Step> {
        let quantize = Quantize { exclude: vec![name.into()], ..Quantize::default() };
        vec![Step { quantize: Some(quantize), ..Step::default() }]
    }

    fn name(steps: &[Step]) -> String {
        steps[0].quantize.as_ref().unwrap().exclude[0].clone()
    }

    /// Runs a search in which attempts take a second each; returns the report and the attempts.
    fn run(
        names: &[&str],
        goal: Goal,
        budget: u64,
        of: &dyn Fn(&str) -> Attempt,
    ) -> (SearchReport, Vec<(String, Option<usize>)>) {
        let tried = RefCell::new(Vec::new());
        let attempt = |steps: &[Step], samples: Option<usize>| {
            tried.borrow_mut().push((name(steps), samples));
            Ok(of(&name(steps)))
        };
        let clock = || Duration::from_secs(tried.borrow().len() as u64);
        let bench = Bench {
            attempt: &attempt,
            clock: &clock,
            original: measured(100, 1.0),
            goal,
            budget: Duration::from_secs(budget),
        };
        let report = search(names.iter().map(|name| named(name)).collect(), &bench).unwrap();
        (report, tried.into_inner())
    }

    fn chosen(report: &SearchReport) -> Option<String> {
        (!report.chosen.is_empty()).then(|| name(&report.chosen))
    }

    #[test]
    fn the_goal_chooses_among_those_that_hold_the_gates() {
        let of = |name: &str| match name {
            "small" => measured(20, 0.5),
            "fast" => measured(80, 3.0),
            "wrong" => {
                Attempt { failed: Some("maxDrop".into()), hopeless: true, ..measured(1, 9.0) }
            }
            _ => measured(60, 1.5),
        };
        let names = ["small", "fast", "wrong", "other"];
        assert_eq!(chosen(&run(&names, Goal::Size, 900, &of).0).as_deref(), Some("small"));
        let (report, tried) = run(&names, Goal::Latency, 900, &of);
        assert_eq!(chosen(&report).as_deref(), Some("fast"));
        let wrong = tried.iter().filter(|(name, _)| name == "wrong");
        // Once on few samples; then only with layers in floats.
        assert_eq!(wrong.map(|(_, samples)| *samples).collect::<Vec<_>>(), [Some(16), None]);
    }

    #[test]
    fn the_original_stays_where_nothing_beats_it() {
        let slower = |_: &str| measured(90, 0.9);
        assert_eq!(chosen(&run(&["a", "b"], Goal::Latency, 900, &slower).0), None);
        let larger = |_: &str| Attempt { memory: Some(1), ..measured(110, 0.9) };
        assert_eq!(chosen(&run(&["a"], Goal::Memory, 900, &larger).0), None);
    }

    #[test]
    fn the_worse_half_leaves_after_each_round_and_the_time_is_kept() {
        let of = |name: &str| measured(name.len() as u64, 1.0);
        let names: Vec<String> = (1..=16).map(|length| "x".repeat(length)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (report, tried) = run(&names, Goal::Size, 900, &of);
        let on = |samples| tried.iter().filter(|(_, seen)| *seen == samples).count();
        assert_eq!((on(Some(16)), on(Some(64)), on(None)), (16, 8, 4));
        assert_eq!(chosen(&report).as_deref(), Some("x"));
        let (report, tried) = run(&names, Goal::Size, 6, &of);
        assert_eq!(tried.len(), 7, "{tried:?}");
        assert!(report.candidates.iter().any(|one| one.verdict.contains("time was up")));
        assert_eq!(chosen(&report).as_deref(), Some("x"));
    }

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let of = |name: &str| match name {
            "best" => measured(10, 2.0),
            _ => measured(20, 1.5),
        };
        let (report, _) = run(&["best", "beaten"], Goal::Size, 900, &of);
        let front: Vec<bool> = report.candidates.iter().map(|one| one.front).collect();
        assert_eq!(front, [true, false]);
    }
}
