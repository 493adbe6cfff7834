//! Convolutions' weights as 8-bit integers in the file, expanded to floats when the model is loaded.
//!
//! Conv(x, W) becomes Conv(x, Mul(Cast(integers), scales)), and ConvTranspose alike: the runtime computes constants while it
//! loads, so an inference costs what it cost before. DequantizeLinear would not be computed then, but
//! on every run.

use std::collections::{HashMap, HashSet};

use lithe::recipe::{Granularity, Quantize};

use crate::compress::change::{Change, not_finite};
use crate::compress::int8::{self, Layout};
use crate::onnx::graph::{self, Constants, Names, input, int};
use crate::onnx::{DataType, GraphProto, NodeProto, Refusal, TensorProto, operators, weights};

/// The operators whose weights can be stored so.
pub const OPERATORS: [&str; 2] = ["Conv", "ConvTranspose"];
/// Kernels with fewer numbers stay: two more nodes cost more than the bytes.
const SMALLEST: u64 = 4096;
/// From this many numbers per scale on, each position of the kernel has a scale of its own: positions
/// differ in range, and four bytes in sixty-four are cheap.
const WIDE: usize = 64;

/// Stores the weights of those nodes of `graph` that are one of `ops`, a part of [`OPERATORS`]; returns
/// how many nodes read stored weights.
///
/// # Errors
/// `NotFinite` for a weight that is NaN or infinite.
pub fn store(
    graph: &mut GraphProto,
    seen: &Constants,
    step: &Quantize,
    ops: &[&str],
    names: &mut Names,
    change: &mut Change,
) -> Result<u64, Refusal> {
    let readers = graph::readers(graph);
    let own: HashSet<String> = graph.initializer.iter().map(|tensor| tensor.name.clone()).collect();
    let mut convs: HashMap<String, usize> = HashMap::new();
    for node in graph.node.iter().filter(|node| takes(node, step, ops)) {
        *convs.entry(input(node, 1).to_owned()).or_default() += 1;
    }
    let mut stored: HashMap<String, String> = HashMap::new();
    let (mut nodes, mut count) = (Vec::with_capacity(graph.node.len()), 0);
    for mut node in std::mem::take(&mut graph.node) {
        if is_one(&node, ops) {
            let weight = seen.get(input(&node, 1)).filter(|weight| own.contains(&weight.name));
            let alone = readers.get(input(&node, 1)) == convs.get(input(&node, 1));
            match fits(&node, weight, alone, step, ops) {
                Ok(weight) => {
                    let name = match stored.get(&weight.name) {
                        Some(name) => name.clone(),
                        None => {
                            let tensors = &mut graph.initializer;
                            expand(weight, &node, step, names, &mut nodes, tensors)?
                        }
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

fn is_one(node: &NodeProto, ops: &[&str]) -> bool {
    ops.iter().any(|op| operators::is(node, op))
}

fn takes(node: &NodeProto, step: &Quantize, ops: &[&str]) -> bool {
    is_one(node, ops) && !step.exclude.contains(&node.name)
}

/// The weights of `node` where they can be stored, or why they cannot.
fn fits<'a>(
    node: &NodeProto,
    weight: Option<&'a TensorProto>,
    alone: bool,
    step: &Quantize,
    ops: &[&str],
) -> Result<&'a TensorProto, &'static str> {
    if !takes(node, step, ops) {
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
    step: &Quantize,
    names: &mut Names,
    nodes: &mut Vec<NodeProto>,
    tensors: &mut Vec<TensorProto>,
) -> Result<String, Refusal> {
    let Stored { values, scales, shape } =
        stored(weight, node, step).ok_or_else(|| not_finite(&weight.name, node))?;
    let [integers, scale, wide, whole] = ["quantized", "scale", "cast", "expanded"]
        .map(|what| names.fresh(&format!("{}_{what}", weight.name)));
    tensors.push(weights::from_i8(&integers, &weight.dims, &values));
    tensors.push(weights::from_f32(&scale, &shape, &scales));
    let mut fresh = |name: &str| names.fresh(&format!("{name}_node"));
    let mut cast = graph::node("Cast", &fresh(&wide), &[&integers], &[&wide]);
    cast.attribute.push(int("to", DataType::Float as i64));
    nodes.push(cast);
    nodes.push(graph::node("Mul", &fresh(&whole), &[&wide, &scale], &[&whole]));
    Ok(whole)
}

/// Integers in the order of the weight, and scales of a shape that broadcasts to it.
struct Stored {
    values: Vec<i8>,
    scales: Vec<f32>,
    shape: Vec<i64>,
}

/// One scale for each output channel, or for the tensor with `granularity: PerTensor`; of a wide Conv,
/// one for each position of the kernel too. Nothing multiplies the integers, so they keep all 8 bits.
fn stored(weight: &TensorProto, node: &NodeProto, step: &Quantize) -> Option<Stored> {
    let floats = weights::to_f32(weight).unwrap_or_default();
    let size = |dim: i64| usize::try_from(dim).unwrap_or(1);
    let channels = weight.dims.get(1).copied().map_or(1, size);
    let kernel: usize = weight.dims.iter().skip(2).copied().map(size).product();
    let transposed = operators::is(node, "ConvTranspose");
    let axis = (step.granularity == Granularity::PerChannel).then_some(usize::from(transposed));
    let per_position = axis == Some(0) && channels >= WIDE;
    let kept = |at: usize| axis == Some(at) || (per_position && at != 1);
    let dims = weight.dims.iter().enumerate();
    let shape = dims.map(|(at, dim)| if kept(at) { *dim } else { 1 }).collect();
    if !per_position {
        let quantized = int8::quantize(&floats, Layout::of(&weight.dims, axis), false)?;
        return Some(Stored { values: quantized.values, scales: quantized.scales, shape });
    }
    // [out, in, kernel] -> [out, kernel, in]: the numbers of one scale side by side.
    let layout = Layout::rows(floats.len(), channels);
    let quantized = int8::quantize(&swap(&floats, channels, kernel), layout, false)?;
    let values = swap(&quantized.values, kernel, channels);
    Some(Stored { values, scales: quantized.scales, shape })
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
