//! Measures the candidates of a search: compresses by their steps, on few samples or on all, and judges
//! the result beside the original. Chooses nothing.

use std::time::{Duration, Instant};

use lithe::artifact::{GateResult, GateVerdict, SearchReport};
use lithe::names::reason;
use lithe::recipe::{Goal, Objective, Step};
use lithe::units::NotAQuantity;

use super::{Attempt, BUDGET, ROUNDS, candidates};
use crate::compress::bench::{self, Bench, Judged};
use crate::compress::data::{Samples, Splits};
use crate::compress::{
    Error, FIELD_DATA, FIELD_MODEL, Progress, Request, change, data_error, gates, load_session,
    normalise, same_signature, step, steps, try_out,
};
use crate::onnx::{ModelProto, Refusal, graph};
use crate::runtime::Session;

/// Interleaved pairs of inferences in the rounds before the last.
const FEW_PAIRS: u32 = 9;

/// Searches for the steps that serve `objective` best.
///
/// # Errors
/// What makes every candidate fail: data, gates, the machine.
pub fn search(
    request: &Request,
    objective: &Objective,
    (model, splits, original): (&ModelProto, &Splits, &Session),
    progress: &dyn Fn(&str),
) -> Result<SearchReport, Error> {
    let started = Instant::now();
    let recipe = &request.recipe;
    let wrong = |error: NotAQuantity| {
        let refusal = Refusal::new(reason::RECIPE_INVALID, error.to_string());
        Error::refused(refusal, "spec.compression.objective.budget")
    };
    let budget =
        objective.budget.as_ref().map_or(Ok(BUDGET), |budget| budget.parse()).map_err(wrong)?;
    let limited: Vec<(usize, Samples, Option<Samples>)> = ROUNDS
        .iter()
        .map(|most| {
            let few = |samples: &Samples| samples.first(*most);
            (*most, few(&splits.evaluation), splits.calibration.as_ref().map(few))
        })
        .collect();
    // A candidate is told by its name, not by its samples.
    let quiet = |_: Progress| ();
    let mut benches = Vec::new();
    for (most, evaluation, calibration) in &limited {
        let bench = Bench::new(evaluation, original, recipe, &quiet)?.with_pairs(FEW_PAIRS);
        benches.push((Some(*most), bench, calibration.as_ref()));
    }
    let whole = Bench::new(&splits.evaluation, original, recipe, &quiet)?;
    benches.push((None, whole, splits.calibration.as_ref()));
    let lab = Lab { request, model, goal: objective.minimise, benches };
    let size = graph::serialise(model).len() as u64;
    let attempt = |steps: &[Step], samples: Option<usize>| {
        let names: Vec<String> = steps.iter().map(Step::name).collect();
        progress(&names.join(", "));
        lab.attempt(steps, samples)
    };
    let bench = super::Bench {
        attempt: &attempt,
        clock: &|| started.elapsed(),
        original: lab.original(size, splits.evaluation.count())?,
        goal: objective.minimise,
        budget: Duration::from_secs_f64(budget.as_secs_f64()),
    };
    let mut seen = model.clone();
    normalise::normalise(&mut seen, &mut change::Change::default());
    let contents = candidates::Contents::of(&seen);
    let target = recipe.target.unwrap_or_default();
    super::search(candidates::candidates(&contents, objective.minimise, target), &bench)
}

struct Lab<'a> {
    request: &'a Request,
    model: &'a ModelProto,
    goal: Goal,
    /// What judges on how many samples at most, and what ranges are measured on then.
    benches: Vec<(Option<usize>, Bench<'a>, Option<&'a Samples>)>,
}

impl Lab<'_> {
    fn attempt(&self, steps: &[Step], samples: Option<usize>) -> Result<Attempt, Error> {
        let found = self.benches.iter().find(|(most, ..)| *most == samples);
        let Some((_, bench, calibration)) = found else {
            let refusal = Refusal::new(reason::FAILED, format!("no round has {samples:?} samples"));
            return Err(Error::refused(refusal, FIELD_DATA));
        };
        let target = self.request.recipe.target.unwrap_or_default();
        let means = steps::Means { calibration: *calibration, target };
        let mut model = self.model.clone();
        for (index, own) in steps.iter().enumerate() {
            let threads = self.request.threads;
            (model, _, _) = step::run(
                model,
                (index, own),
                means,
                (Some(bench), &self.request.recipe, threads),
            )?;
            steps::stamp(&mut model);
        }
        let bytes = graph::serialise(&model);
        let session = load_session(&bytes, self.request.threads, FIELD_MODEL)?;
        if let Some((index, last)) = steps.iter().enumerate().next_back() {
            same_signature(Some(bench.original), &session, index, last)?;
        }
        let judged = bench.measure(&session)?;
        self.weigh(&bytes, &judged)
    }

    /// Holds what was measured against the gates.
    fn weigh(&self, bytes: &[u8], judged: &Judged) -> Result<Attempt, Error> {
        let (gates, size) = (self.request.recipe.gates.as_ref(), bytes.len() as u64);
        let memory = self.memory(bytes)?;
        let results = bench::verdicts(gates, Some(judged), size, memory)?;
        let Judged { judgement, latency } = judged;
        let metric = gates.map_or_else(Default::default, |gates| gates.metric);
        let sign = if metric.larger_is_better() { 1.0 } else { -1.0 };
        // Few samples say little, but what fails with its whole interval is not saved by more of them.
        let lost = |result: &GateResult| {
            let about = ["finite", "maxDrop", "minimum", "maximum"];
            result.verdict == GateVerdict::Failed && about.contains(&result.gate.as_str())
        };
        Ok(Attempt {
            size,
            metric: judgement.value,
            better: sign * judgement.value,
            speedup: latency.speedup,
            memory,
            samples: judgement.samples as u64,
            failed: gates::failures(&results),
            hopeless: results.iter().any(lost),
        })
    }

    /// The original as a candidate.
    fn original(&self, size: u64, samples: usize) -> Result<Attempt, Error> {
        let bytes = graph::serialise(self.model);
        let Some((_, bench, _)) = self.benches.last() else {
            let refusal = Refusal::new(reason::DATA_INVALID, "there are no samples");
            return Err(Error::refused(refusal, FIELD_DATA));
        };
        let metric = bench.judgement(bench.original)?.original;
        let sign = if bench.judge.rule.metric.larger_is_better() { 1.0 } else { -1.0 };
        Ok(Attempt {
            size,
            metric,
            better: sign * metric,
            speedup: 1.0,
            memory: self.memory(&bytes)?,
            samples: samples as u64,
            failed: None,
            hopeless: false,
        })
    }

    /// Peak memory of a process that loads and runs the model, where goal or gates ask for it.
    fn memory(&self, bytes: &[u8]) -> Result<Option<u64>, Error> {
        let bound =
            self.request.recipe.gates.as_ref().is_some_and(|gates| gates.max_memory.is_some());
        let samples = self.benches.last().map(|(_, bench, _)| bench.judge.samples);
        let Some(samples) = samples.filter(|_| bound || self.goal == Goal::Memory) else {
            return Ok(None);
        };
        let sample = samples.inputs(0, samples.batch(1)).map_err(|error| data_error(&error))?;
        try_out(self.request, bytes, &sample).map(Some)
    }
}
