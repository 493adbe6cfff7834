//! Computes nodes whose inputs are all constants, by the runtime itself, and keeps the result where
//! it does not make the model larger by more than a bound.

use std::collections::{HashMap, HashSet};

use crate::compress::change::Runner;
use crate::onnx::graph::{Constants, attribute, input, int_of};
use crate::onnx::{
    GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, operators, weights,
};

/// Bytes by which all folded results together may exceed what they replace.
const GROWTH: u64 = 64 << 10;
/// Bytes of one result, whatever it replaces.
const LARGEST: u64 = 256 << 20;

/// Operators whose result is no larger than all their inputs together: each element is moved,
/// converted or combined with one of the same place.
const BOUNDED: [&str; 37] = [
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
    "Clip",
    "Cos",
    "Erf",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "Round",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Split",
    "Tanh",
];
/// Operators that broadcast their inputs: at most the product of the larger dimensions.
const BROADCAST: [&str; 17] = [
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "Sub",
    "Where",
    "Xor",
];

/// Constants by name: those in scope, and before them those just computed.
struct Known<'a> {
    seen: &'a Constants,
    made: HashMap<String, TensorProto>,
}

impl Known<'_> {
    fn get(&self, name: &str) -> Option<&TensorProto> {
        self.made.get(name).or_else(|| self.seen.get(name))
    }
}

/// Folds what is constant in `graph`; returns how many nodes. `model` has the operator
/// sets.
///
/// Nodes that do not need each other are computed together: the runtime takes longer to make a
/// session than to run it.
pub fn fold(
    graph: &mut GraphProto,
    constants: &Constants,
    model: &ModelProto,
    run: Runner<'_>,
) -> u64 {
    let waves = waves(graph, constants);
    let mut known = Known { seen: constants, made: HashMap::new() };
    let (mut gone, mut grown) = (HashSet::new(), 0_u64);
    let mut made = Vec::new();
    for wave in waves {
        let nodes: Vec<(usize, &NodeProto)> =
            wave.into_iter().filter_map(|at| Some((at, graph.node.get(at)?))).collect();
        for (at, results) in evaluate(&nodes, &known, model, run) {
            let inputs = graph.node.get(at).into_iter().flat_map(|node| &node.input);
            let replaced: u64 = inputs.filter_map(|name| known.get(name)).map(weights::size).sum();
            let size: u64 = results.iter().map(weights::size).sum();
            let growth = size.saturating_sub(replaced);
            if grown + growth > GROWTH {
                continue;
            }
            grown += growth;
            gone.insert(at);
            for tensor in results {
                known.made.insert(tensor.name.clone(), tensor.clone());
                made.push(tensor);
            }
        }
    }
    let mut at = 0..;
    graph.node.retain(|_| at.next().is_none_or(|at| !gone.contains(&at)));
    graph.initializer.extend(made);
    gone.len() as u64
}

/// The nodes that may be computed, each after those that it reads.
fn waves(graph: &GraphProto, constants: &Constants) -> Vec<Vec<usize>> {
    let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    let mut wave_of: HashMap<&str, usize> = HashMap::new();
    let mut waves: Vec<Vec<usize>> = Vec::new();
    for (at, node) in graph.node.iter().enumerate() {
        let named = || node.output.iter().filter(|name| !name.is_empty());
        if !folds(node)
            || named().next().is_none()
            || named().any(|name| outputs.contains(name.as_str()))
        {
            continue;
        }
        let inputs = node.input.iter().filter(|name| !name.is_empty());
        let mut after = inputs.map(|name| match wave_of.get(name.as_str()) {
            Some(wave) => Some(wave + 1),
            None => constants.contains_key(name).then_some(0),
        });
        let Some(wave) = after.try_fold(0, |most, wave| Some(wave?.max(most))) else { continue };
        wave_of.extend(named().map(|name| (name.as_str(), wave)));
        if waves.len() == wave {
            waves.push(Vec::new());
        }
        if let Some(nodes) = waves.get_mut(wave) {
            nodes.push(at);
        }
    }
    waves
}

/// Whether `node` is of an operator that is computed here.
fn folds(node: &NodeProto) -> bool {
    let op = node.op_type.as_str();
    operators::canonical(&node.domain).is_empty()
        && (BOUNDED.contains(&op)
            || BROADCAST.contains(&op)
            || op == "ConstantOfShape"
            || op == "Expand")
}

/// The outputs of `nodes` as tensors, by the node's place; without those that must stay.
fn evaluate(
    nodes: &[(usize, &NodeProto)],
    known: &Known<'_>,
    model: &ModelProto,
    run: Runner<'_>,
) -> Vec<(usize, Vec<TensorProto>)> {
    let (mut batch, mut bytes): (Vec<(usize, &NodeProto)>, u64) = (Vec::new(), 0);
    let mut results = Vec::new();
    for (at, node) in nodes {
        let Some(bound) = inputs(node, known).and_then(|inputs| bound(node, &inputs, known)) else {
            continue;
        };
        if bound > LARGEST {
            continue;
        }
        if bytes.saturating_add(bound) > LARGEST {
            results.extend(together(&std::mem::take(&mut batch), known, model, run));
            bytes = 0;
        }
        bytes += bound;
        batch.push((*at, *node));
    }
    results.extend(together(&batch, known, model, run));
    results
}

/// The constants that `node` reads; `None` where one is not known.
fn inputs<'a>(node: &NodeProto, known: &'a Known<'_>) -> Option<Vec<&'a TensorProto>> {
    node.input.iter().filter(|name| !name.is_empty()).map(|name| known.get(name)).collect()
}

/// Computes `nodes` in one run; where the runtime refuses that, each by itself.
fn together(
    nodes: &[(usize, &NodeProto)],
    known: &Known<'_>,
    model: &ModelProto,
    run: Runner<'_>,
) -> Vec<(usize, Vec<TensorProto>)> {
    let named = |node: &NodeProto| node.output.iter().filter(|name| !name.is_empty()).count();
    let wanted: usize = nodes.iter().map(|(_, node)| named(node)).sum();
    if nodes.is_empty() {
        return Vec::new();
    }
    let Some(tensors) = run(&alone(nodes, known, model)).filter(|all| all.len() == wanted) else {
        if nodes.len() == 1 {
            return Vec::new();
        }
        let each =
            nodes.iter().flat_map(|one| together(std::slice::from_ref(one), known, model, run));
        return each.collect();
    };
    let mut tensors = tensors.into_iter();
    let results = nodes.iter().map(|(at, node)| {
        let names = node.output.iter().filter(|name| !name.is_empty());
        (*at, names.zip(&mut tensors).map(|(name, t)| weights::from_tensor(name, &t)).collect())
    });
    results.collect()
}

/// The most bytes that `node` can produce from constants of these shapes; `None` for operators that
/// are not folded (random, large, or of unknown growth).
fn bound(node: &NodeProto, inputs: &[&TensorProto], known: &Known<'_>) -> Option<u64> {
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

/// A model that holds only `nodes` and their constant inputs.
fn alone(nodes: &[(usize, &NodeProto)], known: &Known<'_>, model: &ModelProto) -> ModelProto {
    let mut seen = HashSet::new();
    let all = || nodes.iter().map(|(_, node)| *node);
    let read = all().flat_map(|node| &node.input).filter(|name| seen.insert(name.as_str()));
    let named = all().flat_map(|node| &node.output).filter(|name| !name.is_empty());
    let graph = GraphProto {
        name: "constant".into(),
        initializer: read.filter_map(|name| known.get(name)).cloned().collect(),
        node: all().cloned().collect(),
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
