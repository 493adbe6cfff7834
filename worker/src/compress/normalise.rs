//! Brings a model into the one form that the passes read: weights are initializers with raw data,
//! each once, not inputs; no Constant and no Identity nodes. Changes no output.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;

use crate::compress::change::Change;
use crate::onnx::graph::{self, attribute, input, output};
use crate::onnx::{
    AttributeType, DataType, GraphProto, ModelProto, NodeProto, TensorProto, operators, walk,
    weights,
};

/// Normalises `model`; see the module's description.
pub fn normalise(model: &mut ModelProto, change: &mut Change) {
    let raw = &mut |tensor: &mut TensorProto| {
        weights::to_raw(tensor);
        Ok::<_, Infallible>(())
    };
    let Ok(()) = walk::tensors_mut(model, raw);
    let Some(graph) = &mut model.graph else { return };
    let mut counts = Counts::default();
    let Ok(()) = walk::graphs_mut(graph, &mut |graph| {
        counts.constants += constants(graph);
        Ok::<_, Infallible>(())
    });
    counts.inputs += drop_constant_inputs(graph);
    let Ok(()) = walk::graphs_mut(graph, &mut |graph| {
        counts.identities += remove_nodes(graph, |node| operators::is(node, "Identity"));
        counts.duplicates += deduplicate(graph);
        Ok::<_, Infallible>(())
    });
    // Since version 4 of the format an initializer need not be an input.
    model.ir_version = model.ir_version.max(4);
    change.did(counts.constants, "Constant made initializers");
    change.did(counts.inputs, "initializers no longer inputs");
    change.did(counts.identities, "Identity removed");
    change.did(counts.duplicates, "equal initializers merged");
}

#[derive(Default)]
struct Counts {
    constants: u64,
    inputs: u64,
    identities: u64,
    duplicates: u64,
}

/// Turns the Constant nodes of `graph` into initializers.
fn constants(graph: &mut GraphProto) -> u64 {
    let before = graph.node.len();
    let mut made = Vec::new();
    graph.node.retain(|node| match constant(node) {
        Some(tensor) => {
            made.push(tensor);
            false
        }
        None => true,
    });
    graph.initializer.extend(made);
    (before - graph.node.len()) as u64
}

/// The tensor of a Constant node; `None` for other nodes and for sparse values.
fn constant(node: &NodeProto) -> Option<TensorProto> {
    if !operators::is(node, "Constant") || node.output.len() != 1 {
        return None;
    }
    let [attribute] = node.attribute.as_slice() else { return None };
    let name = output(node, 0);
    let strings = |items: &[Vec<u8>], dims: &[i64]| TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::String as i32,
        string_data: items.to_vec(),
        ..TensorProto::default()
    };
    match attribute.name.as_str() {
        "value" => {
            let mut tensor = attribute.t.clone()?;
            tensor.name = name.to_owned();
            Some(tensor)
        }
        "value_float" => Some(weights::from_f32(name, &[], &[attribute.f])),
        "value_floats" => {
            Some(weights::from_f32(name, &[attribute.floats.len() as i64], &attribute.floats))
        }
        "value_int" => Some(weights::from_i64(name, &[], &[attribute.i])),
        "value_ints" => {
            Some(weights::from_i64(name, &[attribute.ints.len() as i64], &attribute.ints))
        }
        "value_string" => Some(strings(std::slice::from_ref(&attribute.s), &[])),
        "value_strings" => Some(strings(&attribute.strings, &[attribute.strings.len() as i64])),
        _ => None,
    }
}

/// Takes initializers out of the inputs of the main graph: a weight is not a parameter of a request.
fn drop_constant_inputs(graph: &mut GraphProto) -> u64 {
    let constants: HashSet<&str> =
        graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let before = graph.input.len();
    graph.input.retain(|input| !constants.contains(input.name.as_str()));
    (before - graph.input.len()) as u64
}

/// Removes nodes of `graph` that hand their first input on unchanged, where names allow it.
pub fn remove_nodes(graph: &mut GraphProto, passes: impl Fn(&NodeProto) -> bool) -> u64 {
    let before = graph.node.len();
    let outputs: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let mut renames = HashMap::new();
    graph.node.retain(|node| {
        let (from, to) = (output(node, 0), input(node, 0));
        let goes = passes(node) && !from.is_empty() && !to.is_empty() && !outputs.contains(from);
        if goes {
            renames.insert(from.to_owned(), to.to_owned());
        }
        !goes
    });
    graph::redirect(graph, &renames);
    hand_over(graph, &outputs, passes);
    (before - graph.node.len()) as u64
}

/// Removes such nodes whose output is part of the model's signature, by giving that name to the
/// producer of their input: if that is a node here whose own name is not part of the signature too.
fn hand_over(
    graph: &mut GraphProto,
    outputs: &HashSet<String>,
    passes: impl Fn(&NodeProto) -> bool,
) {
    let producers = graph::producers(graph);
    let (mut gone, mut renames) = (HashSet::new(), HashMap::new());
    for (at, node) in graph.node.iter().enumerate() {
        let (from, to) = (output(node, 0), input(node, 0));
        let goes = outputs.contains(from)
            && !outputs.contains(to)
            && producers.contains_key(to)
            && !renames.contains_key(to)
            && passes(node);
        if goes && !to.is_empty() {
            renames.insert(to.to_owned(), from.to_owned());
            gone.insert(at);
        }
    }
    let mut at = 0..;
    graph.node.retain(|_| at.next().is_none_or(|at| !gone.contains(&at)));
    for output in graph.node.iter_mut().flat_map(|node| &mut node.output) {
        if let Some(name) = renames.get(output) {
            name.clone_into(output);
        }
    }
    graph::redirect(graph, &renames);
}

/// Merges initializers of equal type, shape and bytes.
pub fn deduplicate(graph: &mut GraphProto) -> u64 {
    let outputs: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    // Most weights have no other of their shape, and reading all their bytes takes long.
    let mut alike: HashMap<(i32, Vec<i64>), usize> = HashMap::new();
    for tensor in &graph.initializer {
        *alike.entry((tensor.data_type, tensor.dims.clone())).or_default() += 1;
    }
    let mut first: HashMap<(i32, Vec<i64>, bytes::Bytes), String> = HashMap::new();
    let mut renames: HashMap<String, String> = HashMap::new();
    graph.initializer.retain(|tensor| {
        let kind = (tensor.data_type, tensor.dims.clone());
        let alone = alike.get(&kind) == Some(&1);
        if alone || tensor.raw_data.is_empty() || outputs.contains(&tensor.name) {
            return true;
        }
        match first.entry((kind.0, kind.1, tensor.raw_data.clone())) {
            Entry::Occupied(entry) if entry.get() != &tensor.name => {
                renames.insert(tensor.name.clone(), entry.get().clone());
                false
            }
            Entry::Occupied(_) => true,
            Entry::Vacant(entry) => {
                entry.insert(tensor.name.clone());
                true
            }
        }
    });
    graph::redirect(graph, &renames);
    renames.len() as u64
}

/// Whether `node` is a Dropout that does nothing at inference: its mask is not read and nothing
/// switches training on.
pub fn is_idle_dropout(
    node: &NodeProto,
    readers: &HashMap<String, usize>,
    constants: &graph::Constants,
) -> bool {
    if !operators::is(node, "Dropout") {
        return false;
    }
    let mask = output(node, 1);
    let mask_unread = mask.is_empty() || !readers.contains_key(mask);
    let training = input(node, 2);
    let off = training.is_empty()
        || constants.get(training).and_then(weights::to_bool).is_some_and(|training| !training);
    let old_training = attribute(node, "is_test")
        .is_some_and(|a| a.r#type == AttributeType::Int as i32 && a.i == 0);
    mask_unread && off && !old_training
}
