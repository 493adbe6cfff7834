//! `structure: Channels` and `structure: Heads`: whole channels, neurons or attention heads leave the
//! graph with all that depends on them. The result computes what the original computes when the
//! weights that read those channels are zero.

use std::collections::{HashMap, HashSet};

use lithe::recipe::{Prune, Structure};

use crate::compress::change::{Change, recipe_invalid};
use crate::compress::normalise;
use crate::compress::prune::cut::Cuts;
use crate::compress::prune::select::{self, Selection};
use crate::compress::prune::trace::Trace;
use crate::compress::prune::{Shapes, weight};
use crate::onnx::graph::{self, Names};
use crate::onnx::{GraphProto, ModelProto, Refusal, operators, order, walk, weights};

/// Constants of at most this many numbers get a copy for each reader before anything is followed:
/// equal biases or shapes of unrelated layers must not tie their channels together.
const SMALL: u64 = 1024;

/// Removes channels or heads of `model`.
pub fn prune(
    model: &mut ModelProto,
    step: &Prune,
    shapes: Shapes<'_>,
    change: &mut Change,
) -> Result<(), Refusal> {
    let before = graph::parameters(model);
    let opset = operators::opset(model);
    if let Some(graph) = &mut model.graph {
        unshare(graph, &step.exclude);
    }
    let known = shapes(model).map_err(|why| {
        recipe_invalid(format!(
            "prune needs the shapes inside of the model, and running it once on zeros failed: {why}"
        ))
    })?;
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let heads = step.structure == Structure::Heads;
    let (cuts, selection, users) = {
        let trace = Trace::of(graph, &known, opset, heads, &step.exclude);
        let selection = select::select(&trace, step.sparsity, step.scope)?;
        let users = report(graph, &trace, &selection, change);
        (Cuts::of(&trace, &selection.gone), selection, users)
    };
    if selection.gone.is_empty() {
        return Ok(());
    }
    cuts.apply(graph, opset);
    normalise::normalise(model, &mut Change::default());
    change.matched = users.iter().map(|(_, count)| count).sum();
    let what = if heads { "attention heads" } else { "channels" };
    let (gone, all) = (selection.gone.len(), selection.candidates);
    change.done.push(format!("{gone} of {all} {what} of {} removed", weight::counted(&users)));
    change.done.push(format!("{before} -> {} parameters", graph::parameters(model)));
    Ok(())
}

/// Counts the layers that lose channels, and notes why others do not.
fn report(
    graph: &GraphProto,
    trace: &Trace<'_>,
    selection: &Selection,
    change: &mut Change,
) -> Vec<(String, u64)> {
    const KEPT: &str = "its channels matter more than others, or are too few";
    const NO_HEADS: &str = "it is no part of an attention whose heads are told apart by a Reshape";
    let mut users = Vec::new();
    for layer in &trace.layers {
        let Some(node) = graph.node.get(layer.node) else { continue };
        let class = |atom: &u32| trace.atoms.class(*atom);
        if layer.labels.iter().any(|atom| selection.gone.contains(&class(atom))) {
            weight::count(&mut users, &node.op_type, 1);
            continue;
        }
        let reason = layer.labels.iter().find_map(|atom| trace.atoms.reason(*atom));
        let other = if trace.heads { NO_HEADS } else { KEPT };
        change.skip(node, reason.as_deref().unwrap_or(other));
    }
    let followed: HashSet<usize> = trace.layers.iter().map(|layer| layer.node).collect();
    for (at, node) in graph.node.iter().enumerate() {
        let layer = matches!(node.op_type.as_str(), "Conv" | "ConvTranspose" | "Gemm" | "MatMul");
        let constant = node.input.iter().any(|name| trace.constants.contains_key(name.as_str()));
        if !layer || !constant || followed.contains(&at) {
            continue;
        }
        let depthwise = graph::int_of(node, "group", 1) > 1;
        let excluded = !node.name.is_empty() && trace.excluded.contains(node.name.as_str());
        match (excluded, depthwise) {
            (true, _) => change.skip(node, "excluded by the recipe"),
            // A depthwise convolution has no channels of its own.
            (false, true) => {}
            (false, false) => change.skip(node, "its weights are not followed"),
        }
    }
    users
}

/// Gives every reader of a small constant its own copy; equal ones are merged again afterwards.
fn unshare(graph: &mut GraphProto, exclude: &[String]) {
    let mut names = Names::of(graph);
    let small: HashMap<String, usize> = graph
        .initializer
        .iter()
        .enumerate()
        .filter(|(_, tensor)| tensor.dims.len() <= 1 || weights::count(tensor) <= SMALL)
        .filter(|(_, tensor)| !exclude.contains(&tensor.name))
        .map(|(at, tensor)| (tensor.name.clone(), at))
        .collect();
    let mut read: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let inner = graph.node.iter().flat_map(walk::bodies).flat_map(order::captured);
    read.extend(inner.map(str::to_owned));
    let mut made = Vec::new();
    for name in graph.node.iter_mut().flat_map(|node| &mut node.input) {
        let Some(at) = small.get(name.as_str()) else { continue };
        if read.insert(name.clone()) {
            continue;
        }
        let Some(tensor) = graph.initializer.get(*at) else { continue };
        let mut copy = tensor.clone();
        copy.name = names.fresh(name);
        copy.name.clone_into(name);
        made.push(copy);
    }
    graph.initializer.extend(made);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::onnx::{OperatorSetIdProto, TensorProto, ValueInfoProto};

    /// Conv(3 -> 16) -> Relu -> Conv(16 -> 8), whose output is the model's. The n-th of the 16
    /// channels has weights of n.
    fn model() -> ModelProto {
        let each = |per: usize, count: u8| -> Vec<f32> {
            (0..count).flat_map(|n| std::iter::repeat_n(f32::from(n), per)).collect()
        };
        let bias: Vec<f32> = each(1, 16);
        let tensors: [TensorProto; 3] = [
            weights::from_f32("w1", &[16, 3, 1, 1], &each(3, 16)),
            weights::from_f32("b1", &[16], &bias),
            weights::from_f32("w2", &[8, 16, 1, 1], &[1.0; 128]),
        ];
        let graph = GraphProto {
            node: vec![
                graph::node("Conv", "first", &["x", "w1", "b1"], &["a"]),
                graph::node("Relu", "relu", &["a"], &["b"]),
                graph::node("Conv", "second", &["b", "w2"], &["y"]),
            ],
            initializer: tensors.to_vec(),
            output: vec![ValueInfoProto { name: "y".into(), ..ValueInfoProto::default() }],
            ..GraphProto::default()
        };
        ModelProto {
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { version: 17, ..Default::default() }],
            ..ModelProto::default()
        }
    }

    fn pruned(step: &Prune) -> Result<(ModelProto, Change), Refusal> {
        let (mut model, mut change) = (model(), Change::default());
        let shapes = |_: &ModelProto| {
            let shape = |name: &str, width: i64| (name.to_owned(), vec![5, width, 4, 4]);
            Ok([shape("x", 3), shape("a", 16), shape("b", 16), shape("y", 8)].into())
        };
        prune(&mut model, step, &shapes, &mut change)?;
        Ok((model, change))
    }

    fn step(exclude: &[&str]) -> Prune {
        Prune {
            structure: Structure::Channels,
            sparsity: 0.5,
            scope: lithe::recipe::PruneScope::Global,
            exclude: exclude.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn the_smaller_half_goes_with_bias_and_readers_and_the_output_stays() {
        let (model, change) = pruned(&step(&[])).unwrap();
        let graph = model.graph.unwrap();
        let tensor = |name: &str| graph.initializer.iter().find(|t| t.name == name).unwrap();
        assert_eq!(tensor("w1").dims, [8, 3, 1, 1]);
        assert_eq!(tensor("w2").dims, [8, 8, 1, 1]);
        let left: Vec<f32> = (8_u8..16).map(f32::from).collect();
        assert_eq!(weights::to_f32(tensor("b1")).unwrap(), left);
        assert_eq!(change.summary(), "8 of 16 channels of 1 Conv removed, 192 -> 96 parameters");
        assert_eq!(change.skipped_line(), "1 Conv: its channels are an output of the model");
    }

    #[test]
    fn what_the_recipe_excludes_keeps_its_channels() {
        for name in ["first", "second", "w1", "w2", "b1"] {
            let (_, change) = pruned(&step(&[name])).unwrap();
            let left = change.skipped_line();
            assert_eq!(change.matched, 0, "{name}");
            assert!(left.contains("excluded by the recipe"), "{name}: {left}");
        }
    }
}
