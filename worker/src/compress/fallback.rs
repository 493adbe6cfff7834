//! Accuracy-aware fallback: finds how few layers must stay in floats so that the gates on the metric
//! hold. Layers are ranked one at a time: each is quantized alone, and the noise that this brings into
//! the judged output (its share of the output's power) is what the layer costs. Runs nothing by itself.

use std::collections::HashSet;

use lithe::artifact::Excluded;
use lithe::names::reason;
use lithe::recipe::{Quantize, Step};

use crate::compress::Error;
use crate::compress::change::Change;
use crate::compress::metrics::Rows;
use crate::onnx::graph::{self, input, output};
use crate::onnx::{DataType, GraphProto, ModelProto, operators, weights};

/// Operators that hold what a step quantizes.
const LAYERS: [&str; 6] = ["Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "Gather"];

/// Runs a step on a model; the flag asks for few samples only.
type Run<'a> = dyn Fn(ModelProto, &Step, bool) -> Result<(ModelProto, Change), Error> + 'a;

/// What the search for layers needs from outside.
pub struct Bench<'a> {
    /// Runs the step on a model; the flag asks for few samples only.
    pub run: &'a Run<'a>,
    /// The judged output of a model on the samples that rank.
    pub outputs: &'a dyn Fn(&ModelProto) -> Result<Rows, Error>,
    /// Whether the gates on the metric hold for a model.
    pub holds: &'a dyn Fn(&ModelProto) -> Result<bool, Error>,
}

/// Runs `step` on `model` with as few layers in floats as the gates need, at most what its `fallback`
/// says; where even that is not enough, with that many. Returns what stayed, the costliest first.
///
/// # Errors
/// What the functions of `bench` say.
pub fn fallback(
    mut model: ModelProto,
    step: &Quantize,
    bench: &Bench<'_>,
) -> Result<(ModelProto, Change, Vec<Excluded>), Error> {
    let most = step.fallback.map_or(0, |fallback| fallback.max_excluded as usize);
    name(&mut model);
    let attempt = |excluded: &[Excluded], few: bool| {
        let exclude = step.exclude.iter().cloned().chain(excluded.iter().map(|e| e.name.clone()));
        let step = Quantize { exclude: exclude.collect(), fallback: None, ..step.clone() };
        let step = Step { quantize: Some(step), ..Step::default() };
        (bench.run)(model.clone(), &step, few)
    };
    let (whole, change) = attempt(&[], false)?;
    if (bench.holds)(&whole)? {
        return Ok((whole, change, Vec::new()));
    }
    let ranked = rank(&model, &attempt, bench)?;
    let most = most.min(ranked.len());
    // Twice as many until they are enough, then halving what lies between. More in floats is taken to
    // be no worse.
    let (mut enough, mut few) = (None, 0);
    let mut count = 1;
    let mut last = (whole, change);
    while enough.is_none() && few < most {
        count = count.min(most);
        let made = attempt(ranked.get(..count).unwrap_or_default(), false)?;
        let holds = (bench.holds)(&made.0)?;
        last = made;
        if holds {
            enough = Some(count);
        } else {
            few = count;
            count *= 2;
        }
    }
    let mut upper = enough.unwrap_or(few);
    while enough.is_some() && upper - few > 1 {
        let middle = few + (upper - few) / 2;
        let made = attempt(ranked.get(..middle).unwrap_or_default(), false)?;
        if (bench.holds)(&made.0)? {
            (upper, last) = (middle, made);
        } else {
            few = middle;
        }
    }
    let (model, mut change) = last;
    let excluded = ranked.get(..upper).unwrap_or_default().to_vec();
    change.done.push(told(&excluded, ranked.len(), enough.is_some()));
    Ok((model, change, excluded))
}

fn told(excluded: &[Excluded], all: usize, enough: bool) -> String {
    let names: Vec<&str> = excluded.iter().take(3).map(|one| one.name.as_str()).collect();
    let more = if excluded.len() > 3 { ", …" } else { "" };
    let so = if enough { "so that the gates hold" } else { "and the gates still fail" };
    format!("{} of {all} layers left in floats {so}: {}{more}", excluded.len(), names.join(", "))
}

type Attempt<'a> = &'a dyn Fn(&[Excluded], bool) -> Result<(ModelProto, Change), Error>;

/// The layers by what each costs alone, the costliest first.
fn rank(
    model: &ModelProto,
    attempt: Attempt<'_>,
    bench: &Bench<'_>,
) -> Result<Vec<Excluded>, Error> {
    let wanted = (bench.outputs)(model)?;
    let layers = layers(model);
    let mut ranked = Vec::new();
    for layer in &layers {
        let others: Vec<Excluded> =
            layers.iter().filter(|other| other.name != layer.name).cloned().collect();
        match attempt(&others, true) {
            Ok((alone, _)) => {
                let noise = noise(&wanted, &(bench.outputs)(&alone)?);
                ranked.push(Excluded { noise, ..layer.clone() });
            }
            // It is none of what the step quantizes.
            Err(Error::Refused { refusal, .. }) if refusal.reason == reason::RECIPE_INVALID => {}
            Err(error) => return Err(error),
        }
    }
    // Equal costs keep the order of the graph.
    ranked.sort_by(|a, b| b.noise.total_cmp(&a.noise));
    Ok(ranked)
}

/// The power of the difference as a share of the output's.
fn noise(wanted: &Rows, seen: &Rows) -> f64 {
    let power: f64 = wanted.values.iter().map(|y| y * y).sum();
    let pairs = wanted.values.iter().zip(&seen.values);
    let noise: f64 = pairs.map(|(a, b)| (a - b) * (a - b)).sum();
    let share = noise / power.max(f64::MIN_POSITIVE);
    if share.is_finite() { share } else { f64::MAX }
}

fn constants(graph: &GraphProto) -> HashSet<&str> {
    let floats = |tensor: &&crate::onnx::TensorProto| {
        tensor.data_type == DataType::Float as i32 && weights::count(tensor) > 1
    };
    graph.initializer.iter().filter(floats).map(|tensor| tensor.name.as_str()).collect()
}

fn layers(model: &ModelProto) -> Vec<Excluded> {
    let Some(graph) = &model.graph else { return Vec::new() };
    let constants = constants(graph);
    let holds = |node: &&crate::onnx::NodeProto| {
        LAYERS.iter().any(|op| operators::is(node, op))
            && !node.name.is_empty()
            && (0..3).any(|at| constants.contains(input(node, at)))
    };
    let layer = |node: &crate::onnx::NodeProto| Excluded {
        name: node.name.clone(),
        op: node.op_type.clone(),
        noise: 0.0,
    };
    graph.node.iter().filter(holds).map(layer).collect()
}

/// Gives layers a name of their own, so that they can be excluded: the one of their first output.
fn name(model: &mut ModelProto) {
    let Some(graph) = &mut model.graph else { return };
    let mut names = graph::Names::of(graph);
    let mut taken: HashSet<String> = HashSet::new();
    for node in graph.node.iter_mut().filter(|node| LAYERS.contains(&node.op_type.as_str())) {
        if node.name.is_empty() || !taken.insert(node.name.clone()) {
            node.name = names.fresh(&format!("{}_layer", output(node, 0)));
            taken.insert(node.name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lithe::recipe::Fallback;

    /// Eight layers, of which `bad` must stay in floats; a model says by its producer's name which are.
    fn tried(bad: &[usize], most: u32) -> (Vec<String>, String) {
        let node = |at: usize| graph::node("MatMul", &format!("n{at}"), &["x", "w"], &["y"]);
        let graph = GraphProto {
            node: (0..8).map(node).collect(),
            initializer: vec![weights::from_f32("w", &[2, 1], &[1.0, 2.0])],
            ..GraphProto::default()
        };
        let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        let run = |mut model: ModelProto, step: &Step, _: bool| {
            model.producer_name = step.quantize.clone().unwrap().exclude.join(" ");
            Ok((model, Change::default()))
        };
        let loud = |model: &ModelProto| {
            let kept: HashSet<&str> = model.producer_name.split(' ').collect();
            let quantized = |at: &&usize| !kept.contains(format!("n{at}").as_str());
            bad.iter().filter(quantized).copied().collect::<Vec<_>>()
        };
        let outputs = |model: &ModelProto| {
            // The model as it came has no name.
            let noise = if model.producer_name.is_empty() { vec![] } else { loud(model) };
            let value = 1.0 + noise.iter().map(|at| 1.0 + *at as f64).sum::<f64>();
            Ok(Rows { values: vec![value], width: 1, depth: 1, classes: false })
        };
        let holds = |model: &ModelProto| Ok(loud(model).is_empty());
        let bench = Bench { run: &run, outputs: &outputs, holds: &holds };
        let fallback_of = Some(Fallback { max_excluded: most });
        let step = Quantize { fallback: fallback_of, ..Quantize::default() };
        let (_, change, excluded) = fallback(model, &step, &bench).unwrap();
        (excluded.into_iter().map(|one| one.name).collect(), change.summary())
    }

    #[test]
    fn as_few_layers_stay_as_the_gates_need_the_costliest_first() {
        assert_eq!(tried(&[], 8).0, Vec::<String>::new());
        assert_eq!(tried(&[2], 8).0, ["n2"]);
        assert_eq!(tried(&[1, 4, 6], 8).0, ["n6", "n4", "n1"]);
        let (names, summary) = tried(&[0, 1, 2, 3, 4], 6);
        assert_eq!(names, ["n4", "n3", "n2", "n1", "n0"]);
        assert_eq!(summary, "5 of 8 layers left in floats so that the gates hold: n4, n3, n2, …");
    }

    #[test]
    fn the_most_is_kept_to_and_said() {
        let (names, summary) = tried(&[1, 4, 6], 2);
        assert_eq!(names, ["n6", "n4"]);
        assert!(summary.contains("still fail"), "{summary}");
    }
}
