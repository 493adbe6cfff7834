//! What judges every candidate: the samples, the original's answers to them, and the gates.
//!
//! Changes no model. The search and the steps ask it the same questions.

use lithe::artifact::{EvaluationReport, GateResult, LatencyReport};
use lithe::names::reason;
use lithe::recipe::{Gates, Recipe};

use crate::compress::data::Samples;
use crate::compress::evaluate::{Answers, Judge, Judgement};
use crate::compress::gates::{self, Measured};
use crate::compress::{Error, FIELD_DATA, FIELD_GATES, Progress, latency};
use crate::onnx::Refusal;
use crate::runtime::Session;

/// The samples, and the original's answers to them.
pub struct Bench<'a> {
    /// How outputs are judged.
    pub judge: Judge<'a>,
    /// The original.
    pub original: &'a Session,
    answers: Answers,
    effort: latency::Effort,
}

/// What was measured of one candidate on the samples.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Its outputs beside the original's.
    pub judgement: Judgement,
    /// Its latency beside the original's.
    pub latency: LatencyReport,
}

impl<'a> Bench<'a> {
    /// Runs the original on all samples.
    ///
    /// # Errors
    /// When samples, labels and output do not fit each other.
    pub fn new(
        samples: &'a Samples,
        original: &'a Session,
        recipe: &Recipe,
        progress: &'a dyn Fn(Progress),
    ) -> Result<Self, Error> {
        let gates = recipe.gates.clone().unwrap_or_default();
        let field = |refusal: Refusal| {
            let field = if refusal.reason == reason::RECIPE_INVALID {
                "spec.compression.evaluation.output"
            } else {
                FIELD_DATA
            };
            Error::refused(refusal, field)
        };
        let evaluation = recipe.evaluation.as_ref();
        let judge = Judge::new(samples, original.outputs(), recipe, progress).map_err(field)?;
        let answers = judge.answers(original).map_err(field)?;
        let pairs = evaluation.and_then(|evaluation| evaluation.latency_pairs);
        let effort = latency::Effort { pairs, confidence: gates.confidence() };
        Ok(Self { judge, original, answers, effort })
    }

    /// The same with so many pairs of inferences.
    pub fn with_pairs(mut self, pairs: u32) -> Self {
        self.effort.pairs = Some(pairs);
        self
    }

    /// Judges the outputs of `candidate` on all samples.
    ///
    /// # Errors
    /// When it does not run on them.
    pub fn judgement(&self, candidate: &Session) -> Result<Judgement, Error> {
        let judgement = self.judge.compare(&self.answers, candidate);
        judgement.map_err(|refusal| Error::refused(refusal, FIELD_DATA))
    }

    /// Measures `candidate` on all samples.
    ///
    /// # Errors
    /// When it does not run on them.
    pub fn measure(&self, candidate: &Session) -> Result<Judged, Error> {
        let data = |refusal| Error::refused(refusal, FIELD_DATA);
        let judgement = self.judgement(candidate)?;
        let latency = latency::measure(self.original, candidate, self.judge.samples, self.effort)
            .map_err(data)?;
        Ok(Judged { judgement, latency })
    }

    /// What was `judged`, for the Manifest.
    pub fn report(&self, judged: &Judged) -> EvaluationReport {
        let Judged { judgement, latency } = judged;
        EvaluationReport {
            output: self.judge.output.clone(),
            samples: judgement.samples as u64,
            metric: self.judge.rule.metric,
            original: judgement.original,
            compressed: judgement.value,
            interval: judgement.estimate.interval.clone(),
            agreement: judgement.agreement,
            cosine: judgement.cosine,
            signal_to_noise: judgement.signal_to_noise,
            latency: latency.clone(),
        }
    }
}

/// The verdict of every gate on a candidate of `size` bytes that takes `memory` bytes when it serves.
///
/// # Errors
/// A bound that is no quantity.
pub fn verdicts(
    gates: Option<&Gates>,
    judged: Option<&Judged>,
    size: u64,
    memory: Option<u64>,
) -> Result<Vec<GateResult>, Error> {
    let default = Gates::default();
    let measured = Measured {
        size,
        judgement: judged.map(|judged| &judged.judgement),
        latency: judged.map(|judged| &judged.latency),
        memory,
    };
    gates::check(gates.unwrap_or(&default), &measured).map_err(|error| {
        Error::refused(Refusal::new(reason::RECIPE_INVALID, error.to_string()), FIELD_GATES)
    })
}
