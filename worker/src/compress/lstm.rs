//! LSTM with 8-bit weights: `com.microsoft.DynamicQuantizeLSTM`, a quarter of the size. Nodes and numbers
//! are those of `onnxruntime.quantization.operators.lstm`; `weights: Unsigned` stores each of them plus
//! 128, with a zero point of 128. Biases and states stay in 32 bits.

use lithe::recipe::{Granularity, Quantize, ReduceRange, WeightType};

use crate::compress::change::not_finite;
use crate::compress::int8::{self, Layout};
use crate::compress::products::label;
use crate::onnx::graph::{Constants, Names, input, int_of};
use crate::onnx::{DataType, NodeProto, Refusal, TensorProto, weights};

/// The domain of DynamicQuantizeLSTM.
pub const DOMAIN: &str = "com.microsoft";
/// Inputs of an LSTM: X, W, R, B, lengths, initial h, initial c, P. The scales follow.
const INPUTS: usize = 8;

/// The node in the place of `node`, its weights pushed to `tensors`; the reason where there is none.
///
/// # Errors
/// `NotFinite` for a weight that is NaN or infinite.
pub fn quantize(
    node: &NodeProto,
    seen: &Constants,
    step: &Quantize,
    names: &mut Names,
    tensors: &mut Vec<TensorProto>,
) -> Result<Result<NodeProto, &'static str>, Refusal> {
    let (input_weight, state_weight) = match both(node, seen, step) {
        Ok(both) => both,
        Err(why) => return Ok(Err(why)),
    };
    let mut quantized = node.clone();
    quantized.op_type = "DynamicQuantizeLSTM".into();
    quantized.domain = DOMAIN.into();
    quantized.name = names.fresh(&format!("{}_quant", label(node)));
    quantized.attribute.retain(|attribute| attribute.name != "layout");
    quantized.input.resize(INPUTS, String::new());
    for (at, weight) in [(1, input_weight), (2, state_weight)] {
        let [values, scale, zero] = store(weight, step, node, names)?;
        if let Some(input) = quantized.input.get_mut(at) {
            input.clone_from(&values.name);
        }
        quantized.input.extend([scale.name.clone(), zero.name.clone()]);
        tensors.extend([values, scale, zero]);
    }
    Ok(Ok(quantized))
}

/// W [directions, 4 hidden, in] and R [directions, 4 hidden, hidden], or why they cannot be quantized.
fn both<'c>(
    node: &NodeProto,
    seen: &'c Constants,
    step: &Quantize,
) -> Result<(&'c TensorProto, &'c TensorProto), &'static str> {
    if step.exclude.contains(&node.name) {
        return Err("excluded by the recipe");
    }
    if int_of(node, "layout", 0) != 0 {
        return Err("its layout puts the batch first, which has no 8-bit form");
    }
    let weight = |at: usize| {
        let weight = seen.get(input(node, at)).ok_or("its weights are computed")?;
        if weight.data_type != DataType::Float as i32 || weight.dims.len() != 3 {
            return Err("its weights are not three-dimensional 32-bit floats");
        }
        Ok(weight)
    };
    Ok((weight(1)?, weight(2)?))
}

/// The integers as [directions, in, 4 hidden], their scales and zero points: one for each output and
/// direction, or with `granularity: PerTensor` one for each direction.
fn store(
    weight: &TensorProto,
    step: &Quantize,
    node: &NodeProto,
    names: &mut Names,
) -> Result<[TensorProto; 3], Refusal> {
    let dim = |at: usize| weight.dims.get(at).copied().unwrap_or(1);
    let (directions, outputs, inputs) = (dim(0), dim(1), dim(2));
    let size = |dim: i64| usize::try_from(dim).unwrap_or(0);
    let per_channel = step.granularity == Granularity::PerChannel;
    let width = if per_channel { size(inputs) } else { size(outputs) * size(inputs) };
    let floats = weights::to_f32(weight).unwrap_or_default();
    let reduced = step.reduce_range == Some(ReduceRange::Always);
    let quantized = int8::quantize(&floats, Layout::rows(floats.len(), width), reduced)
        .ok_or_else(|| not_finite(&weight.name, node))?;
    let matrix = (size(outputs) * size(inputs)).max(1);
    let transposed: Vec<i8> = quantized
        .values
        .chunks(matrix)
        .flat_map(|one| (0..size(inputs)).map(move |at| (one, at)))
        .flat_map(|(one, at)| one.iter().skip(at).step_by(size(inputs).max(1)).copied())
        .collect();
    let [values, scale, zero] = ["quantized", "scale", "zero_point"]
        .map(|what| names.fresh(&format!("{}_{what}", weight.name)));
    let shape: &[i64] = if per_channel { &[directions, outputs] } else { &[directions] };
    let zeros = vec![0; quantized.scales.len()];
    let stored = match step.weights.unwrap_or_default() {
        WeightType::Unsigned => weights::from_i8_unsigned,
        WeightType::Signed => weights::from_i8,
    };
    Ok([
        stored(&values, &[directions, inputs, outputs], &transposed),
        weights::from_f32(&scale, shape, &quantized.scales),
        stored(&zero, shape, &zeros),
    ])
}
