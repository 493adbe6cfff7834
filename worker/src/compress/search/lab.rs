//! Measures the candidates of a search: compresses by their steps, on few samples or on all, and judges
//! the result beside the original. Chooses nothing.

use std::time::{Duration, Instant};

use lithe::artifact::SearchReport;
use lithe::names::reason;
use lithe::recipe::{Goal, Objective, Step};
use lithe::units::NotAQuantity;

use super::{Attempt, BUDGET, ROUNDS, candidates};
use crate::compress::data::{Samples, Splits};
use crate::compress::{
    Bench, Error, FIELD_DATA, FIELD_GATES, FIELD_MODEL, Request, change, evaluate, gates, latency,
    load_session, normalise, same_signature, step, steps, trial,
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
    let mut benches = Vec::new();
    for (most, evaluation, calibration) in &limited {
        let bench = Bench { pairs: FEW_PAIRS, ..Bench::new(evaluation, original, recipe)? };
        benches.push((Some(*most), bench, calibration.as_ref()));
    }
    let whole = Bench::new(&splits.evaluation, original, recipe)?;
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
        let data = |refusal| Error::refused(refusal, FIELD_DATA);
        let answers = bench.judge.outputs(&session).map_err(data)?;
        let judgement = bench.judge.compare(&bench.answers, &answers).map_err(data)?;
        let latency = latency::measure(bench.original, &session, bench.judge.samples, bench.pairs)
            .map_err(|error| data(Refusal::new(reason::DATA_INVALID, error.to_string())))?;
        self.weigh(&bytes, &judgement, &latency)
    }

    /// Holds what was measured against the gates.
    fn weigh(
        &self,
        bytes: &[u8],
        judgement: &evaluate::Judgement,
        latency: &lithe::artifact::LatencyReport,
    ) -> Result<Attempt, Error> {
        let gates = self.request.recipe.gates.clone().unwrap_or_default();
        let size = bytes.len() as u64;
        let measured = gates::Measured { size, judgement: Some(judgement), latency: Some(latency) };
        let results = gates::check(&gates, &measured).map_err(|error| {
            Error::refused(Refusal::new(reason::RECIPE_INVALID, error.to_string()), FIELD_GATES)
        })?;
        let sign = if gates.metric.larger_is_better() { 1.0 } else { -1.0 };
        // Few samples say little: twice the half width of the interval is the benefit of the doubt.
        let doubt = 2.0 * judgement.drop.1.unwrap_or(0.0);
        let drop = gates.max_drop.as_ref().and_then(|bound| bound.fraction().ok());
        let falls = drop.is_some_and(|bound| judgement.drop.0 - doubt > bound);
        let misses =
            gates.minimum.is_some_and(|bound| sign * judgement.value + doubt < sign * bound);
        Ok(Attempt {
            size,
            metric: judgement.value,
            better: sign * judgement.value,
            speedup: latency.speedup,
            memory: self.memory(bytes)?,
            samples: judgement.samples as u64,
            failed: gates::failures(&results),
            hopeless: judgement.broken > 0 || falls || misses,
        })
    }

    /// The original as a candidate.
    fn original(&self, size: u64, samples: usize) -> Result<Attempt, Error> {
        let bytes = graph::serialise(self.model);
        let Some((_, bench, _)) = self.benches.last() else {
            let refusal = Refusal::new(reason::DATA_INVALID, "there are no samples");
            return Err(Error::refused(refusal, FIELD_DATA));
        };
        let itself = bench.judge.compare(&bench.answers, &bench.answers);
        let metric = itself.map_err(|refusal| Error::refused(refusal, FIELD_DATA))?.original;
        let sign = if bench.judge.metric.larger_is_better() { 1.0 } else { -1.0 };
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

    /// Peak memory of a process that loads and runs the model, where the goal is Memory.
    fn memory(&self, bytes: &[u8]) -> Result<Option<u64>, Error> {
        if self.goal != Goal::Memory {
            return Ok(None);
        }
        let limits = trial::Limits::for_size(bytes.len() as u64);
        trial::trial(&self.request.program, bytes, limits).map(Some).map_err(|fault| match fault {
            trial::Fault::Refused(refusal) => Error::refused(refusal, FIELD_MODEL),
            trial::Fault::Broken(source) => Error::Io { act: "measure a model's memory", source },
        })
    }
}
