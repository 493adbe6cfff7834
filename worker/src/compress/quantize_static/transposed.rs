//! Weights of ConvTranspose as 8-bit integers in the file, expanded to floats when the model is loaded:
//! the runtime has no 8-bit kernel for it, but a quarter of the bytes is still a quarter.

use std::collections::HashMap;

use lithe::recipe::{Granularity, Quantize};

use super::parameters::{self, Layout};
use crate::compress::quantize_dynamic::not_finite;
use crate::onnx::graph::{self, Constants, Names, input, int};
use crate::onnx::{DataType, GraphProto, NodeProto, Refusal, TensorProto, operators, weights};

/// Kernels with fewer numbers stay: two more nodes cost more than the bytes.
const SMALLEST: u64 = 4096;

/// Stores the weights of the ConvTranspose nodes of `graph`; returns how many nodes read stored ones.
///
/// # Errors
/// `NotFinite` for a weight that is NaN or infinite.
pub fn store(
    graph: &mut GraphProto,
    seen: &Constants,
    step: &Quantize,
    names: &mut Names,
) -> Result<u64, Refusal> {
    let mut stored: HashMap<String, String> = HashMap::new();
    let (mut nodes, mut count) = (Vec::with_capacity(graph.node.len()), 0);
    for mut node in std::mem::take(&mut graph.node) {
        let weight = seen.get(input(&node, 1)).filter(|weight| fits(&node, weight, step));
        if let Some(weight) = weight {
            let name = match stored.get(&weight.name) {
                Some(name) => name.clone(),
                None => expand(weight, &node, step, names, &mut nodes, &mut graph.initializer)?,
            };
            stored.insert(weight.name.clone(), name.clone());
            if let Some(input) = node.input.get_mut(1) {
                *input = name;
            }
            count += 1;
        }
        nodes.push(node);
    }
    graph.node = nodes;
    Ok(count)
}

fn fits(node: &NodeProto, weight: &TensorProto, step: &Quantize) -> bool {
    operators::is(node, "ConvTranspose")
        && weight.data_type == DataType::Float as i32
        && weight.dims.len() >= 3
        && weights::count(weight) >= SMALLEST
        && !step.exclude.contains(&node.name)
}

/// Adds integers, scales and the nodes that expand them; returns the expanded name.
fn expand(
    weight: &TensorProto,
    node: &NodeProto,
    step: &Quantize,
    names: &mut Names,
    nodes: &mut Vec<NodeProto>,
    tensors: &mut Vec<TensorProto>,
) -> Result<String, Refusal> {
    let per_channel = step.granularity == Granularity::PerChannel;
    let layout = Layout::of(&weight.dims, per_channel.then_some(1));
    let floats = weights::to_f32(weight).unwrap_or_default();
    // Nothing multiplies these integers, so they never need to give up a bit.
    let scales = parameters::weight_scales(&floats, layout, false)
        .ok_or_else(|| not_finite(&weight.name, node))?;
    let integers = parameters::quantize_weights(&floats, layout, &scales);
    let kept = |at: usize| per_channel && at == 1;
    let shape: Vec<i64> =
        weight.dims.iter().enumerate().map(|(at, dim)| if kept(at) { *dim } else { 1 }).collect();
    let [quantized, scale, wide, whole] = ["quantized", "scale", "cast", "expanded"]
        .map(|what| names.fresh(&format!("{}_{what}", weight.name)));
    tensors.push(weights::from_i8(&quantized, &weight.dims, &integers));
    tensors.push(weights::from_f32(&scale, &shape, &scales));
    let mut fresh = |name: &str| names.fresh(&format!("{name}_node"));
    let mut cast = graph::node("Cast", &fresh(&wide), &[&quantized], &[&wide]);
    cast.attribute.push(int("to", DataType::Float as i64));
    nodes.push(cast);
    nodes.push(graph::node("Mul", &fresh(&whole), &[&wide, &scale], &[&whole]));
    Ok(whole)
}
