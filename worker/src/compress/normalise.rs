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
    let mut at = 0;
    while let Some(node) = graph.node.get(at) {
        if !(passes(node) && outputs.contains(output(node, 0)) && hand_over(graph, at, &outputs)) {
            at += 1;
        }
    }
    (before - graph.node.len()) as u64
}

/// Removes the node at `at`, whose output is part of the model's signature, by giving that name to
/// the producer of its input: if that is a node here whose own name is not part of the signature too.
fn hand_over(graph: &mut GraphProto, at: usize, outputs: &HashSet<String>) -> bool {
    let Some(node) = graph.node.get(at) else { return false };
    let (from, to) = (output(node, 0).to_owned(), input(node, 0).to_owned());
    if to.is_empty() || outputs.contains(&to) {
        return false;
    }
    let Some(producer) = graph.node.iter_mut().find(|node| node.output.contains(&to)) else {
        return false;
    };
    for output in producer.output.iter_mut().filter(|output| **output == to) {
        from.clone_into(output);
    }
    graph.node.remove(at);
    graph::redirect(graph, &HashMap::from([(to, from)]));
    true
}

/// Merges initializers of equal type, shape and bytes.
fn deduplicate(graph: &mut GraphProto) -> u64 {
    let outputs: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let mut first: HashMap<(i32, Vec<i64>, bytes::Bytes), String> = HashMap::new();
    let mut renames: HashMap<String, String> = HashMap::new();
    graph.initializer.retain(|tensor| {
        if tensor.raw_data.is_empty() || outputs.contains(&tensor.name) {
            return true;
        }
        let key = (tensor.data_type, tensor.dims.clone(), tensor.raw_data.clone());
        match first.entry(key) {
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
