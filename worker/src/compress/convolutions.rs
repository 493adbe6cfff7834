//! Convolutions' weights as 8-bit integers in the file, expanded to floats when the model is loaded.
//!
//! Conv(x, W) becomes Conv(x, Mul(Cast(integers), scales)): the runtime computes constants while it
//! loads, so an inference costs what it cost before. DequantizeLinear would not be computed then, but
//! on every run.

use std::collections::{HashMap, HashSet};

use lithe::recipe::Quantize;

use crate::compress::change::Change;
use crate::compress::int8::{self, Channels};
use crate::compress::quantize_dynamic::not_finite;
use crate::onnx::graph::{self, Constants, Names, input, int};
use crate::onnx::{DataType, GraphProto, NodeProto, Refusal, TensorProto, operators, weights};

/// Kernels with fewer numbers stay: two more nodes cost more than the bytes.
const SMALLEST: u64 = 4096;
/// From this many numbers per scale on, each position of the kernel has a scale of its own: positions
/// differ in range, and four bytes in sixty-four are cheap.
const WIDE: usize = 64;

/// Stores the weights of the Conv nodes of `graph`; returns how many nodes read stored weights.
pub fn store(
    graph: &mut GraphProto,
    seen: &Constants,
    step: &Quantize,
    names: &mut Names,
    change: &mut Change,
) -> Result<u64, Refusal> {
    let readers = graph::readers(graph);
    let own: HashSet<String> = graph.initializer.iter().map(|tensor| tensor.name.clone()).collect();
    let mut convs: HashMap<String, usize> = HashMap::new();
    for node in graph.node.iter().filter(|node| takes(node, step)) {
        *convs.entry(input(node, 1).to_owned()).or_default() += 1;
    }
    let mut stored: HashMap<String, String> = HashMap::new();
    let (mut nodes, mut count) = (Vec::with_capacity(graph.node.len()), 0);
    for mut node in std::mem::take(&mut graph.node) {
        if operators::is(&node, "Conv") {
            let weight = seen.get(input(&node, 1)).filter(|weight| own.contains(&weight.name));
            let alone = readers.get(input(&node, 1)) == convs.get(input(&node, 1));
            match fits(&node, weight, alone, step) {
                Ok(weight) => {
                    let name = match stored.get(&weight.name) {
                        Some(name) => name.clone(),
                        None => expand(weight, &node, names, &mut nodes, &mut graph.initializer)?,
                    };
                    stored.insert(weight.name.clone(), name.clone());
                    if let Some(input) = node.input.get_mut(1) {
                        *input = name;
                    }
                    count += 1;
                }
                Err(why) => change.skip(&node, why),
            }
        }
        nodes.push(node);
    }
    graph.node = nodes;
    Ok(count)
}

fn takes(node: &NodeProto, step: &Quantize) -> bool {
    operators::is(node, "Conv") && !step.exclude.contains(&node.name)
}

/// The weights of `node` where they can be stored, or why they cannot.
fn fits<'a>(
    node: &NodeProto,
    weight: Option<&'a TensorProto>,
    alone: bool,
    step: &Quantize,
) -> Result<&'a TensorProto, &'static str> {
    if !takes(node, step) {
        return Err("excluded by the recipe");
    }
    let weight = weight.ok_or("its weights are computed or lie in another graph")?;
    if weight.data_type != DataType::Float as i32 || weight.dims.len() < 3 {
        return Err("its weights are not 32-bit floats");
    }
    if weights::count(weight) < SMALLEST {
        return Err("its weights are too few to gain by storing them in 8 bits");
    }
    if !alone {
        return Err("its weights are read by other nodes too");
    }
    Ok(weight)
}

/// Adds the integers, their scales and the nodes that expand them; returns the expanded name.
fn expand(
    weight: &TensorProto,
    node: &NodeProto,
    names: &mut Names,
    nodes: &mut Vec<NodeProto>,
    tensors: &mut Vec<TensorProto>,
) -> Result<String, Refusal> {
    let floats = weights::to_f32(weight).unwrap_or_default();
    let size = |dim: i64| usize::try_from(dim).unwrap_or(1);
    let channels = weight.dims.get(1).copied().map_or(1, size);
    let kernel: usize = weight.dims.iter().skip(2).copied().map(size).product();
    // Scales per output channel and, where it is worth it, per position of the kernel.
    let per_position = channels >= WIDE;
    let kept = |at: usize| at == 0 || (per_position && at != 1);
    let shape: Vec<i64> =
        weight.dims.iter().enumerate().map(|(at, dim)| if kept(at) { *dim } else { 1 }).collect();
    let quantized = if per_position {
        // [out, in, kernel] -> [out, kernel, in]: the numbers of one scale side by side.
        int8::quantize(&swap(&floats, channels, kernel), channels, Channels::First, false)
            .map(|q| (swap(&q.values, kernel, channels), q.scales))
    } else {
        int8::quantize(&floats, channels * kernel, Channels::First, false)
            .map(|q| (q.values, q.scales))
    };
    let (values, scales) = quantized.ok_or_else(|| not_finite(&weight.name, node))?;
    let [integers, scale, wide, whole] = ["quantized", "scale", "cast", "expanded"]
        .map(|what| names.fresh(&format!("{}_{what}", weight.name)));
    tensors.push(weights::from_i8(&integers, &weight.dims, &values));
    tensors.push(weights::from_f32(&scale, &shape, &scales));
    let mut cast =
        graph::node("Cast", &names.fresh(&format!("{wide}_node")), &[&integers], &[&wide]);
    cast.attribute.push(int("to", DataType::Float as i64));
    nodes.push(cast);
    nodes.push(graph::node(
        "Mul",
        &names.fresh(&format!("{whole}_node")),
        &[&wide, &scale],
        &[&whole],
    ));
    Ok(whole)
}

/// Each block of `rows` x `columns` numbers transposed.
fn swap<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    let (rows, columns) = (rows.max(1), columns.max(1));
    values
        .chunks(rows * columns)
        .flat_map(|block| {
            (0..columns).flat_map(move |at| block.iter().skip(at).step_by(columns).copied())
        })
        .collect()
}
