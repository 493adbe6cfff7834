//! The recipes that a search tries: those that can serve the goal, for what the model holds. Each is
//! worth trying on some model; nothing is measured here.

use lithe::recipe::{
    Calibration, Equalize, EqualizeMethod, Goal, Optimize, Prune, PruneScope, Quantize,
    QuantizeMode, ReduceRange, Rounding, Step, Structure, Target, WeightType,
};

use crate::compress::products;
use crate::onnx::graph::{self, input};
use crate::onnx::{ModelProto, operators, walk};

/// What a model holds that decides which recipes are worth a try.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Convolutions in the main graph.
    convolutions: usize,
    /// Matrix products with constant matrices in the main graph.
    products: usize,
    /// Their names; empty where one has none.
    names: Vec<String>,
    /// Layers in bodies, recurrent layers and embeddings, which only dynamic quantization takes.
    others: usize,
}

impl Contents {
    /// Looks at `model`, weights as initializers.
    pub fn of(model: &ModelProto) -> Self {
        let mut found = Self::default();
        let Some(graph) = &model.graph else { return found };
        let seen = graph::constants(graph);
        let mut unnamed = false;
        for node in &graph.node {
            if operators::is(node, "Conv") {
                found.convolutions += 1;
            } else if products::is_product(node) && seen.contains_key(input(node, 1)) {
                found.products += 1;
                unnamed |= node.name.is_empty();
                found.names.push(node.name.clone());
            } else if ["LSTM", "Gather", "ConvTranspose"].contains(&node.op_type.as_str()) {
                found.others += 1;
            }
            for body in walk::bodies(node) {
                walk::nodes(body, &mut |_| found.others += 1);
            }
        }
        // What has no name cannot be excluded, and a recipe takes only so many names.
        if unnamed || found.names.len() > 256 {
            found.names.clear();
        }
        found
    }
}

fn step(quantize: Quantize) -> Step {
    Step { quantize: Some(quantize), ..Step::default() }
}

fn fixed(calibration: Calibration) -> Quantize {
    Quantize { mode: QuantizeMode::Static, calibration: Some(calibration), ..Quantize::default() }
}

fn equalized(method: EqualizeMethod) -> Step {
    Step { equalize: Some(Equalize { method, ..Equalize::default() }), ..Step::default() }
}

/// The recipes, those that win most often first.
pub fn candidates(contents: &Contents, goal: Goal, target: Target) -> Vec<Vec<Step>> {
    let optimize = || Step { optimize: Some(Optimize::default()), ..Step::default() };
    let Contents { convolutions, products, names, others } = contents;
    let (convolutions, products) = (*convolutions > 0, *products > 0);
    let mut found: Vec<Vec<Step>> = Vec::new();
    let mut add = |steps: Vec<Step>| {
        found.push(std::iter::once(optimize()).chain(steps).collect());
    };
    let on_cpu = target != Target::TensorRT;
    let weights_only = |bits, rounding| Quantize {
        mode: QuantizeMode::WeightOnly,
        bits,
        rounding,
        ..Quantize::default()
    };
    if on_cpu && (products || convolutions || *others > 0) {
        add(vec![step(Quantize::default())]);
    }
    if convolutions || products {
        for calibration in
            [Calibration::MinMax, Calibration::MeanSquaredError, Calibration::Percentile]
        {
            add(vec![step(Quantize { bias_correction: true, ..fixed(calibration) })]);
        }
        if target == Target::X64 {
            add(vec![step(seven_bits(fixed(Calibration::MinMax)))]);
            let corrected =
                Quantize { bias_correction: true, ..fixed(Calibration::MeanSquaredError) };
            add(vec![step(seven_bits(corrected))]);
        }
    }
    if on_cpu && convolutions && products && !names.is_empty() {
        // Convolutions throughout in 8 bits, products with a range for each request.
        for calibration in [Calibration::MinMax, Calibration::MeanSquaredError] {
            let first =
                Quantize { bias_correction: true, exclude: names.clone(), ..fixed(calibration) };
            add(vec![step(first), step(Quantize::default())]);
        }
    }
    if convolutions {
        let corrected = Quantize { bias_correction: true, ..fixed(Calibration::MinMax) };
        add(vec![equalized(EqualizeMethod::CrossLayer), step(corrected)]);
        let prune = Prune {
            structure: Structure::Channels,
            sparsity: 0.1,
            scope: PruneScope::Global,
            exclude: Vec::new(),
        };
        add(vec![Step { prune: Some(prune), ..Step::default() }]);
    }
    if on_cpu && products {
        add(vec![equalized(EqualizeMethod::SmoothQuant), step(Quantize::default())]);
        add(vec![step(weights_only(Some(8), None))]);
        add(vec![step(weights_only(Some(4), Some(Rounding::Gptq)))]);
    }
    if goal != Goal::Latency || !on_cpu {
        add(vec![step(Quantize { mode: QuantizeMode::Float16, ..Quantize::default() })]);
    }
    add(Vec::new());
    found
}

/// Signed weights with one bit less: the fastest form of convolutions without VNNI.
fn seven_bits(quantize: Quantize) -> Quantize {
    let (weights, reduce_range) = (Some(WeightType::Signed), Some(ReduceRange::Always));
    Quantize { weights, reduce_range, ..quantize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_candidate_is_a_recipe_that_its_target_takes() {
        let names = vec!["p".to_owned()];
        let contents = Contents { convolutions: 1, products: 1, names, others: 1 };
        for target in [Target::X64, Target::X64Vnni, Target::Arm64, Target::TensorRT] {
            for goal in [Goal::Latency, Goal::Size, Goal::Memory] {
                let found = candidates(&contents, goal, target);
                assert!(found.len() > 4, "{target:?} {goal:?}");
                for (at, steps) in found.iter().enumerate() {
                    let faults = steps.iter().flat_map(|step| step.faults(target));
                    assert_eq!(faults.collect::<Vec<_>>(), [], "{target:?} {steps:?}");
                    assert!(!found[..at].contains(steps), "{steps:?} twice");
                }
            }
        }
    }

    #[test]
    fn a_model_without_layers_is_only_optimised() {
        let found = candidates(&Contents::default(), Goal::Latency, Target::X64);
        assert_eq!(found.len(), 1);
    }
}
