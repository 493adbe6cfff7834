//! Operators that work element by element, with broadcasting where they take several inputs.

use super::{Call, Dim, Fact, Rule};
use crate::onnx::DataType;
use crate::onnx::graph::attribute;

/// Operators whose first output is like their first input.
const SAME: [&str; 59] = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BatchNormalization",
    "BitwiseNot",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "CumSum",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Mish",
    "Neg",
    "PRelu",
    "RMSNormalization",
    "Reciprocal",
    "Relu",
    "ReverseSequence",
    "Round",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "TensorScatter",
    "ThresholdedRelu",
    "Trilu",
];
/// Operators on any number of inputs that broadcast.
const BROADCAST: [&str; 13] = [
    "Add",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Sub",
    "Sum",
];
/// Operators on two inputs that broadcast and answer yes or no.
const COMPARE: [&str; 8] =
    ["And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Or", "Xor"];

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Identity" => identity,
        "Cast" => cast,
        "CastLike" => |call| Some(vec![Fact::new(call.fact(1).data_type, shape_of(call, 0))]),
        "Dropout" => dropout,
        "IsNaN" | "IsInf" | "Not" => yes_or_no,
        "QuantizeLinear" => quantize,
        "DequantizeLinear" => dequantize,
        "DynamicQuantizeLinear" => dynamic_quantize,
        "Pow" | "Add" | "Sub" | "Mul" | "Div" => arithmetic,
        "Where" => choose,
        _ if SAME.contains(&op) => |call| Some(vec![call.like(0)]),
        _ if BROADCAST.contains(&op) => |call| joined(call, call.fact(0).data_type),
        _ if COMPARE.contains(&op) => |call| joined(call, DataType::Bool as i32),
        _ => return None,
    })
}

fn shape_of(call: &Call<'_>, index: usize) -> Option<Vec<Dim>> {
    call.shape(index).cloned()
}

fn identity(call: &Call<'_>) -> Option<Vec<Fact>> {
    Some(vec![call.fact(0).clone()])
}

fn cast(call: &Call<'_>) -> Option<Vec<Fact>> {
    let to = i32::try_from(call.int("to", 0)).ok()?;
    let fact = call.fact(0);
    // Integers of 32 bits may not hold what those of 64 do.
    let wide = to == DataType::Int64 as i32
        || (to == DataType::Int32 as i32
            && fact.numbers.iter().flatten().all(|n| n.is_some_and(|n| i32::try_from(n).is_ok())));
    Some(vec![Fact {
        data_type: to,
        numbers: fact.numbers.clone().filter(|_| wide),
        ..fact.clone()
    }])
}

fn dropout(call: &Call<'_>) -> Option<Vec<Fact>> {
    let mask = if call.opset < 10 { call.fact(0).data_type } else { DataType::Bool as i32 };
    Some(vec![call.like(0), Fact::new(mask, shape_of(call, 0))])
}

fn yes_or_no(call: &Call<'_>) -> Option<Vec<Fact>> {
    Some(vec![Fact::new(DataType::Bool as i32, shape_of(call, 0))])
}

fn quantize(call: &Call<'_>) -> Option<Vec<Fact>> {
    let asked = i32::try_from(call.int("output_dtype", 0)).unwrap_or(0);
    let data_type = match (call.given(2), asked) {
        (true, _) => call.fact(2).data_type,
        (false, 0) => DataType::Uint8 as i32,
        (false, asked) => asked,
    };
    Some(vec![Fact::new(data_type, shape_of(call, 0))])
}

fn dequantize(call: &Call<'_>) -> Option<Vec<Fact>> {
    // An output_dtype came with operator set 25; then the scale says nothing.
    let asked = i32::try_from(call.int("output_dtype", 0)).unwrap_or(0);
    let data_type = if asked == 0 { call.fact(1).data_type } else { asked };
    Some(vec![Fact::new(data_type, shape_of(call, 0))])
}

fn dynamic_quantize(call: &Call<'_>) -> Option<Vec<Fact>> {
    let (byte, float) = (DataType::Uint8 as i32, DataType::Float as i32);
    let scalar = |data_type| Fact::new(data_type, Some(Vec::new()));
    Some(vec![Fact::new(byte, shape_of(call, 0)), scalar(float), scalar(byte)])
}

fn choose(call: &Call<'_>) -> Option<Vec<Fact>> {
    joined(call, call.fact(1).data_type)
}

/// The broadcast of all inputs.
fn joined(call: &Call<'_>, data_type: i32) -> Option<Vec<Fact>> {
    // Before operator set 7 an attribute said how inputs are aligned.
    if call.opset < 7 || attribute(call.node, "broadcast").is_some() {
        return None;
    }
    let shapes: Option<Vec<&Vec<Dim>>> = (0..call.inputs.len()).map(|at| call.shape(at)).collect();
    let shape = shapes.and_then(|shapes| broadcast(&shapes));
    Some(vec![Fact::new(data_type, shape)])
}

/// Numbers with numbers, such as the half of a length.
fn arithmetic(call: &Call<'_>) -> Option<Vec<Fact>> {
    let mut made = joined(call, call.fact(0).data_type)?;
    let (left, right) = (call.fact(0).numbers.as_ref(), call.fact(1).numbers.as_ref());
    if let (Some(left), Some(right), Some(fact)) = (left, right, made.first_mut())
        && fact.shape.as_ref().is_some_and(|shape| shape.len() <= 1)
        && call.fact(0).data_type == DataType::Int64 as i32
        && (left.len() == right.len() || left.len() == 1 || right.len() == 1)
    {
        let length = if left.len() == 1 { right.len() } else { left.len() };
        let one = |list: &[Dim], at: usize| *list.get(if list.len() == 1 { 0 } else { at })?;
        let numbers = (0..length).map(|at| {
            let (a, b) = (one(left, at)?, one(right, at)?);
            match call.node.op_type.as_str() {
                "Add" => a.checked_add(b),
                "Sub" => a.checked_sub(b),
                "Mul" => a.checked_mul(b),
                "Div" => a.checked_div(b),
                _ => None,
            }
        });
        fact.numbers = Some(numbers.collect());
    }
    Some(made)
}

/// The shape to which `shapes` broadcast; `None` where they do not.
pub(super) fn broadcast(shapes: &[&Vec<Dim>]) -> Option<Vec<Dim>> {
    let rank = shapes.iter().map(|shape| shape.len()).max()?;
    let along = |from_end: usize| -> Option<Dim> {
        let dims = || shapes.iter().filter_map(move |shape| shape.iter().rev().nth(from_end));
        let mut wide = dims().flatten().filter(|dim| **dim != 1);
        match wide.next() {
            Some(first) => wide.all(|other| other == first).then_some(Some(*first)),
            None => Some(if dims().any(Option::is_none) { None } else { Some(1) }),
        }
    };
    (0..rank).rev().map(along).collect()
}
