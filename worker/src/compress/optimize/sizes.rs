//! Makes constants of integers that follow from fixed shapes: Shape, Size, and what exporters
//! calculate from them to feed Reshape, Slice and Expand.

use std::collections::HashSet;

use super::scope::Scope;
use crate::onnx::infer::Fact;
use crate::onnx::{DataType, NodeProto, Refusal, TensorProto, weights};

/// Replaces nodes by the numbers they give; returns how many.
pub fn compute(scope: &mut Scope<'_>) -> Result<u64, Refusal> {
    let facts = scope.facts();
    let graph = &mut *scope.graph;
    let outputs: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let mut made = Vec::new();
    let before = graph.node.len();
    graph.node.retain(|node| {
        let [name] = node.output.as_slice() else { return true };
        let constant = facts.get(name).filter(|_| !outputs.contains(name) && computes(node));
        let Some(tensor) = constant.and_then(|fact| tensor(name, fact)) else { return true };
        made.push(tensor);
        false
    });
    graph.initializer.extend(made);
    Ok((before - graph.node.len()) as u64)
}

/// Only what calculates with shapes; all else with constant inputs is computed by the runtime.
fn computes(node: &NodeProto) -> bool {
    const OPERATORS: [&str; 14] = [
        "Add",
        "Cast",
        "Concat",
        "Div",
        "Gather",
        "Mul",
        "Range",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
    ];
    OPERATORS.contains(&node.op_type.as_str())
}

fn tensor(name: &str, fact: &Fact) -> Option<TensorProto> {
    let (numbers, dims) = (fact.numbers.as_ref()?, fact.fixed()?);
    let numbers: Vec<i64> = numbers.iter().copied().collect::<Option<_>>()?;
    if fact.data_type == DataType::Int64 as i32 {
        return Some(weights::from_i64(name, &dims, &numbers));
    }
    if fact.data_type != DataType::Int32 as i32 {
        return None;
    }
    let narrow: Option<Vec<i32>> = numbers.iter().map(|n| i32::try_from(*n).ok()).collect();
    Some(weights::from_i32(name, &dims, &narrow?))
}
