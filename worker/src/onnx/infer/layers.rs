//! Convolutions, pools, matrix products and recurrent layers.

use super::{Call, Dim, Fact, Rule, elementwise};
use crate::onnx::DataType;

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Conv" => |call| conv(call, 1, call.fact(0).data_type),
        "ConvInteger" => |call| conv(call, 1, DataType::Int32 as i32),
        "QLinearConv" => |call| conv(call, 3, call.fact(7).data_type),
        "ConvTranspose" => conv_transpose,
        "MaxPool" | "AveragePool" | "LpPool" => pool,
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => global_pool,
        "Gemm" => gemm,
        "MatMul" => |call| matmul(call, 1, call.fact(0).data_type),
        "MatMulInteger" => |call| matmul(call, 1, DataType::Int32 as i32),
        "QLinearMatMul" => |call| matmul(call, 3, call.fact(7).data_type),
        "LSTM" | "GRU" | "RNN" => recurrent,
        _ => return None,
    })
}

/// A window that moves over spatial axes.
struct Window<'a> {
    call: &'a Call<'a>,
    kernel: Vec<Dim>,
}

impl Window<'_> {
    fn of(&self, name: &str, at: usize, default: i64) -> Option<i64> {
        match self.call.ints(name) {
            Some(list) if !list.is_empty() => list.get(at).copied(),
            _ => Some(default),
        }
    }

    /// What the window spans along an axis.
    fn span(&self, at: usize) -> Dim {
        let dilation = self.of("dilations", at, 1)?;
        self.kernel.get(at).copied()??.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)
    }

    fn pads(&self, at: usize) -> Option<i64> {
        self.of("pads", at, 0)?.checked_add(self.of("pads", at + self.kernel.len(), 0)?)
    }

    /// The length of an output axis over an input axis of `length`.
    fn output(&self, at: usize, length: Dim) -> Dim {
        let (length, stride) = (length?, self.of("strides", at, 1)?);
        if stride < 1 {
            return None;
        }
        let padded = match self.call.text("auto_pad") {
            "" | "NOTSET" => length.checked_add(self.pads(at)?)?,
            "VALID" => length,
            _ => return length.checked_add(stride - 1).map(|sum| sum / stride),
        };
        let room = padded.checked_sub(self.span(at)?)?;
        // Which of the windows that begin in the padding count is told differently by every source.
        if room < 0 || (self.call.int("ceil_mode", 0) != 0 && room % stride != 0) {
            return None;
        }
        Some(room / stride + 1)
    }
}

fn unknown_spatial(data_type: i32, batch: Dim, channels: Dim, rank: usize) -> Vec<Fact> {
    let spatial = rank.saturating_sub(2);
    let shape = [vec![batch, channels], vec![None; spatial]].concat();
    vec![Fact::new(data_type, Some(shape))]
}

fn conv(call: &Call<'_>, weight: usize, data_type: i32) -> Option<Vec<Fact>> {
    let kernel = call.shape(weight).and_then(|shape| shape.get(2..));
    let channels = call.shape(weight).and_then(|shape| shape.first().copied().flatten());
    let (Some(shape), Some(kernel)) = (call.shape(0), kernel) else {
        let rank = call.rank(0).or_else(|| call.rank(weight))?;
        let batch = call.shape(0).and_then(|shape| shape.first().copied().flatten());
        return Some(unknown_spatial(data_type, batch, channels, rank));
    };
    let window = Window { call, kernel: kernel.to_vec() };
    let spatial = shape.get(2..)?.iter().enumerate().map(|(at, dim)| window.output(at, *dim));
    let made = [vec![*shape.first()?, channels], spatial.collect()].concat();
    Some(vec![Fact::new(data_type, Some(made))])
}

fn conv_transpose(call: &Call<'_>) -> Option<Vec<Fact>> {
    let data_type = call.fact(0).data_type;
    let (shape, weight) = (call.shape(0)?, call.shape(1)?);
    let channels =
        weight.get(1).copied().flatten().and_then(|n| n.checked_mul(call.int("group", 1)));
    let window = Window { call, kernel: weight.get(2..)?.to_vec() };
    let plain = matches!(call.text("auto_pad"), "" | "NOTSET" | "VALID");
    let one = |(at, dim): (usize, &Dim)| {
        if let Some(asked) = call.ints("output_shape") {
            // Old files name all axes, new ones the spatial ones.
            let skip = asked.len().checked_sub(window.kernel.len())?;
            return asked.get(at + skip).copied();
        }
        if !plain {
            return None;
        }
        let steps = window.of("strides", at, 1)?.checked_mul((*dim)?.checked_sub(1)?)?;
        let more = window.of("output_padding", at, 0)?.checked_add(window.span(at)?)?;
        let pads = if call.text("auto_pad") == "VALID" { 0 } else { window.pads(at)? };
        steps.checked_add(more)?.checked_sub(pads)
    };
    let spatial = shape.get(2..)?.iter().enumerate().map(one);
    let made = [vec![*shape.first()?, channels], spatial.collect()].concat();
    Some(vec![Fact::new(data_type, Some(made))])
}

fn pool(call: &Call<'_>) -> Option<Vec<Fact>> {
    let shape = call.shape(0)?;
    let kernel = call.ints("kernel_shape")?.iter().map(|n| Some(*n)).collect();
    let window = Window { call, kernel };
    let spatial = shape.get(2..)?.iter().enumerate().map(|(at, dim)| window.output(at, *dim));
    let made = [shape.get(..2)?.to_vec(), spatial.collect()].concat();
    let indices = Fact::new(DataType::Int64 as i32, Some(made.clone()));
    Some(vec![Fact::new(call.fact(0).data_type, Some(made)), indices])
}

fn global_pool(call: &Call<'_>) -> Option<Vec<Fact>> {
    let shape = call.shape(0)?;
    let made = [shape.get(..2)?, &vec![Some(1); shape.len().saturating_sub(2)]].concat();
    Some(vec![Fact::new(call.fact(0).data_type, Some(made))])
}

fn gemm(call: &Call<'_>) -> Option<Vec<Fact>> {
    let dim = |input: usize, name: &str, at: usize| {
        let at = if call.int(name, 0) == 0 { at } else { 1 - at };
        call.shape(input).and_then(|shape| shape.get(at).copied().flatten())
    };
    let made = vec![dim(0, "transA", 0), dim(1, "transB", 1)];
    Some(vec![Fact::new(call.fact(0).data_type, Some(made))])
}

fn matmul(call: &Call<'_>, right: usize, data_type: i32) -> Option<Vec<Fact>> {
    let shape = call.shape(0).zip(call.shape(right)).and_then(|(a, b)| product(a, b));
    Some(vec![Fact::new(data_type, shape)])
}

/// The shape of a product as `numpy.matmul` has it.
fn product(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let rows = a.len().checked_sub(2).and_then(|at| a.get(at));
    let columns = if b.len() > 1 { b.last() } else { None };
    let outer = |shape: &[Dim]| {
        shape.get(..shape.len().saturating_sub(2)).map(<[Dim]>::to_vec).unwrap_or_default()
    };
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let batch = match (outer(a), outer(b)) {
        (a, b) if a.is_empty() => b,
        (a, b) if b.is_empty() => a,
        (a, b) => elementwise::broadcast(&[&a, &b])?,
    };
    Some(batch.into_iter().chain(rows.copied()).chain(columns.copied()).collect())
}

fn recurrent(call: &Call<'_>) -> Option<Vec<Fact>> {
    if call.int("layout", 0) != 0 {
        return None;
    }
    let shape = call.shape(0)?;
    let [length, batch, _] = *shape.as_slice() else { return None };
    let directions = Some(if call.text("direction") == "bidirectional" { 2 } else { 1 });
    let hidden = Some(call.int("hidden_size", 0)).filter(|hidden| *hidden > 0);
    let data_type = call.fact(0).data_type;
    let state = Fact::new(data_type, Some(vec![directions, batch, hidden]));
    let all = Fact::new(data_type, Some(vec![length, directions, batch, hidden]));
    Some(vec![all, state.clone(), state])
}
