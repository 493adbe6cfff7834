//! Runs one step of a recipe; one with a `fallback` as often as that needs to find the layers that stay
//! in floats. Judges only what the fallback asks for.

use lithe::artifact::Excluded;
use lithe::recipe::{Gates, Metric, Recipe, Step};

use super::change::Change;
use super::evaluate::Judge;
use super::{Bench, Error, FIELD_DATA, fallback, gates, load_session, steps};
use crate::onnx::{ModelProto, graph};

/// Samples that rank layers, and that ranges are measured on meanwhile.
const RANKING: usize = 32;

/// Runs one step; one with a `fallback` as often as that needs. Returns which layers it left in floats.
pub fn run(
    model: ModelProto,
    (index, step): (usize, &Step),
    means: steps::Means<'_>,
    (bench, recipe, threads): (Option<&Bench<'_>>, &Recipe, usize),
) -> Result<(ModelProto, Change, Vec<Excluded>), Error> {
    let falls_back = step.quantize.as_ref().filter(|quantize| quantize.fallback.is_some());
    let (Some(quantize), Some(bench), Some(samples)) = (falls_back, bench, means.calibration)
    else {
        let (model, change) = steps::run(model, index, step, means)?;
        return Ok((model, change, Vec::new()));
    };
    let few = samples.first(RANKING);
    let field = steps::field(index, step);
    let data = |refusal| Error::refused(refusal, FIELD_DATA);
    let run = |model: ModelProto, step: &Step, ranks: bool| {
        let few = if ranks { Some(&few) } else { means.calibration };
        steps::run(model, index, step, steps::Means { calibration: few, ..means })
    };
    let session = |model: &ModelProto| load_session(&graph::serialise(model), threads, &field);
    // Whether labels come along does not matter for noise.
    let plain = Gates { metric: Metric::Cosine, ..Gates::default() };
    let plain = Recipe { gates: Some(plain), ..recipe.clone() };
    let ranks = Judge::new(&few, bench.original.outputs(), &plain, &|_| ()).map_err(data)?;
    let outputs = |model: &ModelProto| ranks.outputs(&session(model)?).map_err(data);
    let gates = recipe.gates.clone().unwrap_or_default();
    let holds = |model: &ModelProto| {
        let judgement = bench.judgement(&session(model)?)?;
        let measured =
            gates::Measured { size: 0, judgement: Some(&judgement), latency: None, memory: None };
        // Bounds that are no quantities were refused before.
        Ok(gates::check(&gates, &measured).is_ok_and(|results| gates::failures(&results).is_none()))
    };
    let bench = fallback::Bench { run: &run, outputs: &outputs, holds: &holds };
    fallback::fallback(model, quantize, &bench)
}
