//! The weights that may be zeroed one by one: constant matrices and kernels of the main graph, each
//! once, in the order in which nodes first use them. Biases, norms and embeddings are none.

use std::collections::HashMap;

use lithe::names::reason;
use lithe::recipe::Prune;

use crate::compress::change::Change;
use crate::onnx::graph::{self, input, int_of};
use crate::onnx::refusal::quoted;
use crate::onnx::{DataType, GraphProto, NodeProto, Refusal, TensorProto, operators, walk};

/// A weight tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Its name.
    pub name: String,
    /// The axis along which a product sums: Cin of a convolution, K of a matrix product.
    pub axis: usize,
    /// How many nodes of each operator use it.
    pub users: Vec<(String, u64)>,
}

/// The weights of `graph` that `step` may touch; what it may not is noted in `change`.
pub fn find(graph: &GraphProto, step: &Prune, change: &mut Change) -> Vec<Weight> {
    let constants: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let readers = graph::readers(graph);
    let mut sites: HashMap<&str, Vec<usize>> = HashMap::new();
    for node in &graph.node {
        if let Some(Ok((tensor, axis))) = site(node, &constants) {
            sites.entry(tensor.name.as_str()).or_default().push(axis);
        }
    }
    let excluded = |name: &String| step.exclude.contains(name);
    let unfit = |node: &NodeProto, tensor: &TensorProto, axis: usize| {
        let axes = sites.get(tensor.name.as_str()).map_or(&[][..], Vec::as_slice);
        let kept = |user: &NodeProto| excluded(&user.name) && user.input.contains(&tensor.name);
        if excluded(&node.name) || excluded(&tensor.name) || graph.node.iter().any(kept) {
            Some("excluded by the recipe")
        } else if readers.get(&tensor.name) != Some(&axes.len()) {
            Some("its weights are read by other nodes too")
        } else if axes.iter().any(|other| *other != axis) {
            Some("its weights are also used transposed")
        } else {
            None
        }
    };
    let mut found: Vec<Weight> = Vec::new();
    for node in &graph.node {
        walk::bodies(node).for_each(|body| skip_body(body, change));
        let (tensor, axis) = match site(node, &constants) {
            None => continue,
            Some(Err(why)) => {
                change.skip(node, why);
                continue;
            }
            Some(Ok(site)) => site,
        };
        if let Some(why) = unfit(node, tensor, axis) {
            change.skip(node, why);
            continue;
        }
        match found.iter_mut().find(|weight| weight.name == tensor.name) {
            Some(weight) => count(&mut weight.users, &node.op_type, 1),
            None => found.push(Weight {
                name: tensor.name.clone(),
                axis,
                users: vec![(node.op_type.clone(), 1)],
            }),
        }
    }
    found
}

/// Adds `more` to the count of `op`.
pub fn count(counts: &mut Vec<(String, u64)>, op: &str, more: u64) {
    match counts.iter_mut().find(|(name, _)| name == op) {
        Some((_, count)) => *count += more,
        None => counts.push((op.to_owned(), more)),
    }
}

/// Counts as text, such as `5 Conv, 1 Gemm`.
pub fn counted(counts: &[(String, u64)]) -> String {
    counts.iter().map(|(op, count)| format!("{count} {op}")).collect::<Vec<_>>().join(", ")
}

/// The refusal of a weight whose size says nothing.
pub fn not_a_number(name: &str) -> Refusal {
    let message = format!(
        "weight {} holds NaN or an infinity, which have no magnitude to prune by",
        quoted(name)
    );
    Refusal::new(reason::NOT_FINITE, message)
}

fn skip_body(body: &GraphProto, change: &mut Change) {
    walk::nodes(body, &mut |node| {
        if layer(node) {
            change.skip(node, "it lies in the body of an If, Loop or Scan");
        }
    });
}

fn layer(node: &NodeProto) -> bool {
    operators::canonical(&node.domain).is_empty()
        && matches!(node.op_type.as_str(), "Conv" | "ConvTranspose" | "Gemm" | "MatMul")
}

/// The weight of `node` and its input axis, or why it has none; `None` for other operators.
fn site<'a>(
    node: &NodeProto,
    constants: &HashMap<&str, &'a TensorProto>,
) -> Option<Result<(&'a TensorProto, usize), &'static str>> {
    if !layer(node) {
        return None;
    }
    let first = constants.get(input(node, 0)).copied();
    let second = constants.get(input(node, 1)).copied();
    let rank = |tensor: &TensorProto| tensor.dims.len();
    let (tensor, axis) = match (node.op_type.as_str(), first, second) {
        (_, Some(_), Some(_)) => return Some(Err("both inputs are constant")),
        ("Conv", None, Some(kernel)) => (kernel, 1),
        ("ConvTranspose", None, Some(kernel)) => (kernel, 0),
        ("Gemm", None, Some(matrix)) => (matrix, usize::from(int_of(node, "transB", 0) != 0)),
        ("MatMul", None, Some(matrix)) => (matrix, rank(matrix).saturating_sub(2)),
        ("MatMul", Some(matrix), None) => (matrix, rank(matrix).saturating_sub(1)),
        _ => return Some(Err("its weights are computed")),
    };
    if tensor.data_type != DataType::Float as i32 {
        return Some(Err("its weights are not 32-bit floats"));
    }
    if rank(tensor) < 2 || tensor.dims.contains(&0) {
        return Some(Err("its weights are no matrix"));
    }
    Some(Ok((tensor, axis)))
}
