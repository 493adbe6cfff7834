//! Takes the chosen channels out of a graph: constants lose the indices, and the numbers that said
//! how many there were are written anew.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

use crate::compress::prune::atoms::{Atom, Labels};
use crate::compress::prune::trace::{Edit, Trace};
use crate::onnx::graph::{Names, int, ints};
use crate::onnx::{DataType, GraphProto, NodeProto, TensorProto, facts, weights};

/// All that changes in a graph, free of the graph that it was found in.
#[derive(Debug, Default)]
pub struct Cuts {
    /// For each constant and axis, which indices stay.
    slices: BTreeMap<String, Vec<Option<Vec<bool>>>>,
    /// New values of integers in constants.
    numbers: BTreeMap<(String, usize), i64>,
    /// New numbers of groups, by the node's place.
    groups: BTreeMap<usize, i64>,
    /// New sizes of the parts of a Split, by the node's place.
    splits: BTreeMap<usize, Vec<i64>>,
}

impl Cuts {
    /// What removing the classes in `gone` changes.
    pub fn of(trace: &Trace<'_>, gone: &HashSet<Atom>) -> Self {
        let stays = |labels: &Labels| -> Vec<bool> {
            labels.iter().map(|atom| !gone.contains(&trace.atoms.class(*atom))).collect()
        };
        let length = |labels: &Labels| stays(labels).iter().filter(|stays| **stays).count() as i64;
        let shorter = |labels: &Labels| length(labels) < labels.len() as i64;
        let mut cuts = Self::default();
        for (name, axes) in &trace.slices {
            let axis = |labels: &Option<Labels>| labels.as_ref().filter(|l| shorter(l)).map(stays);
            if axes.iter().flatten().any(shorter) {
                cuts.slices.insert(name.clone(), axes.iter().map(axis).collect());
            }
        }
        for (key, labels) in &trace.targets {
            if let Some(labels) = labels.as_ref().filter(|labels| shorter(labels)) {
                cuts.numbers.insert(key.clone(), length(labels));
            }
        }
        for edit in &trace.edits {
            match edit {
                Edit::Group { node, labels } if shorter(labels) => {
                    cuts.groups.insert(*node, length(labels));
                }
                Edit::Split { node, parts } if parts.iter().any(shorter) => {
                    cuts.splits.insert(*node, parts.iter().map(length).collect());
                }
                _ => {}
            }
        }
        cuts
    }

    /// Changes `graph`, the one that was traced, in operator set `opset`.
    pub fn apply(&self, graph: &mut GraphProto, opset: i64) {
        for tensor in &mut graph.initializer {
            if let Some(axes) = self.slices.get(&tensor.name) {
                slice(tensor, axes);
            }
        }
        let mut by_name: HashMap<&str, Vec<(usize, i64)>> = HashMap::new();
        for ((name, index), value) in &self.numbers {
            by_name.entry(name).or_default().push((*index, *value));
        }
        for tensor in &mut graph.initializer {
            if let Some(new) = by_name.get(tensor.name.as_str()) {
                renumber(tensor, new);
            }
        }
        let mut names = Names::of(graph);
        let mut made = Vec::new();
        for (at, node) in graph.node.iter_mut().enumerate() {
            if let Some(group) = self.groups.get(&at) {
                node.attribute.retain(|attribute| attribute.name != "group");
                node.attribute.push(int("group", *group));
            }
            if let Some(sizes) = self.splits.get(&at) {
                made.extend(resplit(node, sizes, opset, &mut names));
            }
        }
        graph.initializer.extend(made);
        // Shapes that were written down may be the old ones; the runtime finds them by itself.
        graph.value_info.clear();
    }
}

/// Keeps the indices of `tensor` that stay.
fn slice(tensor: &mut TensorProto, axes: &[Option<Vec<bool>>]) {
    let Some(width) = facts::bits(tensor.data_type).map(|bits| (bits / 8) as usize) else { return };
    weights::to_raw(tensor);
    for (axis, stays) in axes.iter().enumerate() {
        let Some(stays) = stays else { continue };
        let inside: i64 = tensor.dims.iter().skip(axis + 1).product();
        let run = usize::try_from(inside).unwrap_or(0).max(1) * width;
        let kept =
            tensor.raw_data.chunks(run).zip(stays.iter().cycle()).filter(|(_, stays)| **stays);
        let raw: Vec<u8> = kept.flat_map(|(run, _)| run.iter().copied()).collect();
        tensor.raw_data = Bytes::from(raw);
        if let Some(dim) = tensor.dims.get_mut(axis) {
            *dim = stays.iter().filter(|stays| **stays).count() as i64;
        }
    }
}

/// Writes new values into a constant of integers.
fn renumber(tensor: &mut TensorProto, new: &[(usize, i64)]) {
    let Some(mut values) = weights::to_i64(tensor) else { return };
    for (index, value) in new {
        if let Some(old) = values.get_mut(*index) {
            *old = *value;
        }
    }
    weights::to_raw(tensor);
    let raw: Vec<u8> = if tensor.data_type == DataType::Int64 as i32 {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    } else {
        values.iter().flat_map(|value| (*value as i32).to_le_bytes()).collect()
    };
    tensor.raw_data = raw.into();
}

/// Writes the sizes of the parts of a Split: an attribute before operator set 13, an input since.
fn resplit(
    node: &mut NodeProto,
    sizes: &[i64],
    opset: i64,
    names: &mut Names,
) -> Option<TensorProto> {
    node.attribute.retain(|attribute| attribute.name != "split" && attribute.name != "num_outputs");
    if opset < 13 {
        node.attribute.push(ints("split", sizes));
        return None;
    }
    let base = node.output.first().map_or("split", String::as_str);
    let name = names.fresh(&format!("{base}_sizes"));
    node.input.truncate(1);
    node.input.push(name.clone());
    Some(weights::from_i64(&name, &[sizes.len() as i64], sizes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn indices_go_along_every_axis_that_loses_some() {
        let values: Vec<f32> = (0_u8..12).map(f32::from).collect();
        let mut tensor = weights::from_f32("w", &[2, 3, 2], &values);
        slice(&mut tensor, &[Some(vec![false, true]), Some(vec![true, false, true]), None]);
        assert_eq!(tensor.dims, [1, 2, 2]);
        assert_eq!(weights::to_f32(&tensor).unwrap(), [6.0, 7.0, 10.0, 11.0]);
    }
}
