//! Where TensorRT wants QuantizeLinear and DequantizeLinear: before the data and the weights of
//! convolutions and matrix products, and on the branch that skips them. Not behind them: TensorRT fuses
//! what follows (Relu, Add) and takes the next node's QuantizeLinear as the output's ("Working with
//! Quantized Types", TensorRT's documentation). Changes nothing.

use std::collections::{HashMap, HashSet};

use lithe::recipe::Quantize;

use super::placement::{self, Pair, Placement, Role};
use crate::compress::change::Change;
use crate::onnx::graph::{self, Constants, input, int_of, output};
use crate::onnx::{GraphProto, NodeProto, operators};

/// Decides for every node of `graph`; what could be quantized and is not is noted in `change`.
pub fn place(
    graph: &GraphProto,
    seen: &Constants,
    step: &Quantize,
    change: &mut Change,
) -> Placement {
    let mut roles: Vec<Option<Role>> = Vec::with_capacity(graph.node.len());
    for node in &graph.node {
        let role = candidate(node, seen, step);
        if let Err(why) = role {
            change.skip(node, why);
        }
        roles.push(role.unwrap_or_default());
        placement::note_bodies(node, change);
    }
    let quantized: HashSet<&str> = graph
        .node
        .iter()
        .zip(&roles)
        .filter(|(_, role)| role.is_some())
        .map(|(node, _)| input(node, 0))
        .collect();
    for at in skips(graph, &roles, &quantized) {
        if let Some(role) = roles.get_mut(at) {
            *role = Some(Role::Joint);
        }
    }
    let inputs = graph.input.iter().map(|input| input.name.as_str());
    let made = graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str));
    let pairs = inputs
        .chain(made)
        .filter(|name| quantized.contains(name))
        .map(|name| Pair { tensor: name.to_owned(), made: false, like: name.to_owned() })
        .collect();
    Placement { roles, pairs }
}

fn candidate(
    node: &NodeProto,
    seen: &Constants,
    step: &Quantize,
) -> Result<Option<Role>, &'static str> {
    if !operators::canonical(&node.domain).is_empty() {
        return Ok(None);
    }
    let role = match node.op_type.as_str() {
        "Conv" => Role::Conv,
        "ConvTranspose" if int_of(node, "group", 1) == 1 => Role::Conv,
        "ConvTranspose" => return Err("TensorRT has no 8-bit form of it with groups"),
        "MatMul" | "Gemm" => Role::Product,
        "LSTM" | "GRU" | "RNN" => return Err("TensorRT has no 8-bit form of it"),
        _ => return Ok(None),
    };
    if step.exclude.contains(&node.name) {
        return Err("excluded by the recipe");
    }
    placement::weighted(node, seen)?;
    Ok(Some(role))
}

/// The Add nodes that join a product which nobody else reads with a tensor that is quantized anyway:
/// the kernel of the product then reads the skipping branch in 8 bits.
fn skips(graph: &GraphProto, roles: &[Option<Role>], quantized: &HashSet<&str>) -> Vec<usize> {
    let readers = graph::readers(graph);
    let products: HashMap<&str, usize> = graph
        .node
        .iter()
        .zip(roles)
        .filter(|(_, role)| role.is_some())
        .map(|(node, _)| (output(node, 0), readers.get(output(node, 0)).copied().unwrap_or(0)))
        .collect();
    let joins = |node: &NodeProto| {
        let [a, b] = [input(node, 0), input(node, 1)];
        let alone = |name: &str| products.get(name) == Some(&1) && !quantized.contains(name);
        operators::is(node, "Add")
            && ((alone(a) && quantized.contains(b)) || (alone(b) && quantized.contains(a)))
    };
    graph.node.iter().enumerate().filter(|(_, node)| joins(node)).map(|(at, _)| at).collect()
}
