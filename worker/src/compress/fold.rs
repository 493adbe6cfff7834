//! Computes nodes whose inputs are all constants, by the runtime itself, and keeps the result where
//! it does not make the model larger by more than a bound.

use std::collections::HashSet;

use crate::compress::change::Runner;
use crate::onnx::graph::{Constants, attribute, input, int_of, output};
use crate::onnx::{
    GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, operators, walk, weights,
};

/// Bytes by which all folded results together may exceed what they replace.
const GROWTH: u64 = 64 << 10;
/// Bytes of one result, whatever it replaces.
const LARGEST: u64 = 256 << 20;

/// Operators whose result is no larger than all their inputs together: each element is moved,
/// converted or combined with one of the same place.
const BOUNDED: [&str; 22] = [
    "Cast",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Concat",
    "Slice",
    "Gather",
    "Shape",
    "Size",
    "Neg",
    "Sqrt",
    "Abs",
    "Floor",
    "Ceil",
    "Not",
    "Reciprocal",
    "Exp",
    "Log",
    "Relu",
    "Identity",
];
/// Operators that broadcast two inputs: at most the product of the larger dimensions.
const BROADCAST: [&str; 12] =
    ["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Equal", "Greater", "Less", "And", "Or"];

/// Folds the nodes of `graph` in order; returns how many. `imports` are the model's operator sets.
pub fn fold(
    graph: &mut GraphProto,
    constants: &Constants,
    model: &ModelProto,
    run: Runner<'_>,
) -> u64 {
    let mut known = constants.clone();
    let outputs: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let (mut folded, mut grown) = (0, 0_u64);
    let mut made = Vec::new();
    graph.node.retain(|node| {
        let Some(results) = evaluate(node, &known, &outputs, model, run) else { return true };
        let replaced: u64 =
            node.input.iter().filter_map(|name| known.get(name)).map(weights::size).sum();
        let growth = results.iter().map(weights::size).sum::<u64>().saturating_sub(replaced);
        if grown + growth > GROWTH {
            return true;
        }
        grown += growth;
        folded += 1;
        for tensor in results {
            known.insert(tensor.name.clone(), tensor.clone());
            made.push(tensor);
        }
        false
    });
    graph.initializer.extend(made);
    folded
}

/// The outputs of `node` as tensors, or `None` where it must stay.
fn evaluate(
    node: &NodeProto,
    known: &Constants,
    outputs: &HashSet<String>,
    model: &ModelProto,
    run: Runner<'_>,
) -> Option<Vec<TensorProto>> {
    let named: Vec<&String> = node.output.iter().filter(|name| !name.is_empty()).collect();
    if named.is_empty() || named.iter().any(|name| outputs.contains(*name)) {
        return None;
    }
    if !operators::canonical(&node.domain).is_empty() || walk::bodies(node).next().is_some() {
        return None;
    }
    let inputs: Vec<&TensorProto> = node
        .input
        .iter()
        .filter(|name| !name.is_empty())
        .map(|name| known.get(name))
        .collect::<Option<_>>()?;
    if bound(node, &inputs, known)? > LARGEST {
        return None;
    }
    let tensors = run(&alone(node, &inputs, model))?;
    (tensors.len() == named.len()).then(|| {
        named.iter().zip(&tensors).map(|(name, t)| weights::from_tensor(name, t)).collect()
    })
}

/// The most bytes that `node` can produce from constants of these shapes; `None` for operators that
/// are not folded (random, large, or of unknown growth).
fn bound(node: &NodeProto, inputs: &[&TensorProto], known: &Constants) -> Option<u64> {
    let op = node.op_type.as_str();
    // Eight bytes is the widest element that a Cast can make.
    let all: u64 =
        inputs.iter().map(|tensor| weights::count(tensor)).sum::<u64>().saturating_add(64);
    if op == "Gather" {
        let (data, indices) = (inputs.first()?, inputs.get(1)?);
        let axis = int_of(node, "axis", 0);
        let axis = if axis < 0 { axis + data.dims.len() as i64 } else { axis };
        let taken = u64::try_from(*data.dims.get(usize::try_from(axis).ok()?)?).ok()?.max(1);
        return (weights::count(data) / taken).checked_mul(weights::count(indices))?.checked_mul(8);
    }
    if BOUNDED.contains(&op) {
        return all.checked_mul(8);
    }
    if BROADCAST.contains(&op) {
        let rank = inputs.iter().map(|tensor| tensor.dims.len()).max()?;
        let widest = (0..rank).map(|from_end| {
            let dim = |t: &&&TensorProto| t.dims.iter().rev().nth(from_end).copied().unwrap_or(1);
            inputs.iter().map(|tensor| dim(&tensor)).max().unwrap_or(1)
        });
        let count =
            widest.map(|dim| u64::try_from(dim).unwrap_or(0)).try_fold(1_u64, u64::checked_mul)?;
        return count.checked_mul(8);
    }
    if op == "ConstantOfShape" || op == "Expand" {
        let shape = weights::to_i64(known.get(input(node, usize::from(op == "Expand")))?)?;
        let mut dims = shape.iter().map(|dim| u64::try_from(*dim).unwrap_or(0));
        let count = dims.try_fold(1_u64, u64::checked_mul)?;
        let wide = attribute(node, "value").and_then(|a| a.t.as_ref()).map_or(4, |_| 8);
        return count.checked_mul(if op == "Expand" { 8 * all } else { wide });
    }
    None
}

/// A model that holds only `node` and its constant inputs.
fn alone(node: &NodeProto, inputs: &[&TensorProto], model: &ModelProto) -> ModelProto {
    let mut seen = HashSet::new();
    let named = (0..node.output.len()).map(|at| output(node, at)).filter(|name| !name.is_empty());
    let graph = GraphProto {
        name: "constant".into(),
        node: vec![node.clone()],
        initializer: inputs.iter().filter(|t| seen.insert(&t.name)).map(|t| (*t).clone()).collect(),
        output: named
            .map(|name| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() })
            .collect(),
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: model.ir_version,
        opset_import: model.opset_import.clone(),
        graph: Some(graph),
        ..ModelProto::default()
    }
}
