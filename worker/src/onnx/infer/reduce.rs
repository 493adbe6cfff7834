//! Operators that fold axes into one element.

use super::{Call, Dim, Fact, Rule, axes, axis};
use crate::onnx::DataType;

pub(super) fn rule(op: &str) -> Option<Rule> {
    match op {
        "ArgMax" | "ArgMin" => Some(arg),
        _ if op.starts_with("Reduce") => Some(reduce),
        _ => None,
    }
}

fn reduce(call: &Call<'_>) -> Option<Vec<Fact>> {
    let data_type = call.fact(0).data_type;
    let shape = call.shape(0)?;
    let keeps = call.int("keepdims", 1) != 0;
    let Ok(list) = call.listed("axes", 1) else {
        let shape = keeps.then(|| vec![None; shape.len()]);
        return Some(vec![Fact::new(data_type, shape)]);
    };
    let list = list.unwrap_or_default();
    if list.is_empty() && call.int("noop_with_empty_axes", 0) != 0 {
        return Some(vec![call.like(0)]);
    }
    let folded: Vec<usize> =
        if list.is_empty() { (0..shape.len()).collect() } else { axes(&list, shape.len())? };
    Some(vec![Fact::new(data_type, Some(without(shape, &folded, keeps)))])
}

fn arg(call: &Call<'_>) -> Option<Vec<Fact>> {
    let shape = call.shape(0)?;
    let folded = axis(call.int("axis", 0), shape.len())?;
    let keeps = call.int("keepdims", 1) != 0;
    Some(vec![Fact::new(DataType::Int64 as i32, Some(without(shape, &[folded], keeps)))])
}

/// `shape` with the `folded` axes of length 1, or gone.
fn without(shape: &[Dim], folded: &[usize], keeps: bool) -> Vec<Dim> {
    let one = |(at, dim): (usize, &Dim)| match (folded.contains(&at), keeps) {
        (false, _) => Some(*dim),
        (true, true) => Some(Some(1)),
        (true, false) => None,
    };
    shape.iter().enumerate().filter_map(one).collect()
}
