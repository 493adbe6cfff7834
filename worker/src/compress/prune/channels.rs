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
use crate::compress::prune::{Shapes, nothing, weight};
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
    let Some(graph) = &mut model.graph else { return Err(nothing(step, change)) };
    let heads = step.structure == Structure::Heads;
    let (cuts, selection, users) = {
        let trace = Trace::of(graph, &known, opset, heads, &step.exclude);
        let selection = select::select(&trace, step.sparsity, step.scope)?;
        let users = report(graph, &trace, &selection, change);
        (Cuts::of(&trace, &selection.gone), selection, users)
    };
    if selection.gone.is_empty() {
        return Err(nothing(step, change));
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
