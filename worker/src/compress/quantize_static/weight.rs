//! The weight of one convolution or matrix product on its way to integers: its numbers with Gemm's
//! alpha, its channels, its scales. Writes nothing.

use std::collections::HashMap;

use lithe::recipe::{Granularity, Quantize, ReduceRange, Target};

use super::{parameters, placement};
use crate::compress::change::not_finite;
use crate::compress::int8::{self, Layout};
use crate::onnx::graph::{Constants, float_of, input};
use crate::onnx::{NodeProto, Refusal, TensorProto, operators, weights};

/// Integers that were not rounded to the nearest, by weight, with the scales that they belong to.
pub type Rounded = HashMap<String, (Vec<f32>, Vec<i8>)>;

/// A weight that has scales and no integers yet.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The tensor's name.
    pub name: String,
    /// Its dimensions.
    pub dims: Vec<i64>,
    /// Its numbers, row-major, times alpha.
    pub values: Vec<f32>,
    /// The factor that is in them.
    pub alpha: f32,
    /// The axis of the channels with a scale each; `None` for one scale.
    pub axis: Option<usize>,
    /// The scales.
    pub scales: Vec<f32>,
    /// The node's bias times beta, one number per output channel.
    pub bias: Option<Vec<f32>>,
}

impl Weight {
    /// The weight of `node`, whose input has the step `input_scale`.
    ///
    /// # Errors
    /// `NotFinite` when a number of weight or bias is NaN or infinite.
    pub fn of(
        node: &NodeProto,
        tensor: &TensorProto,
        seen: &Constants,
        (step, target, input_scale): (&Quantize, Target, f32),
    ) -> Result<Self, Refusal> {
        let convolves = operators::is(node, "Conv") || operators::is(node, "ConvTranspose");
        // The runtime takes a scale per column for matrices only.
        let axis = (step.granularity == Granularity::PerChannel
            && (convolves || tensor.dims.len() == 2))
            .then(|| placement::channel_axis(node));
        let alpha = if operators::is(node, "Gemm") { float_of(node, "alpha", 1.0) } else { 1.0 };
        let mut values = weights::to_f32(tensor).unwrap_or_default();
        if alpha != 1.0 {
            values.iter_mut().for_each(|value| *value *= alpha);
        }
        let layout = Layout::of(&tensor.dims, axis);
        let reduced = step.reduce_range == Some(ReduceRange::Always);
        let mut scales =
            int8::scales(&values, layout, reduced).ok_or_else(|| not_finite(&tensor.name, node))?;
        let bias = placement::bias(node, tensor, seen);
        if let Some(bias) = &bias {
            if bias.iter().any(|value| !value.is_finite()) {
                return Err(not_finite(input(node, 2), node));
            }
            // TensorRT adds biases in floats.
            if target != Target::TensorRT {
                parameters::fit_bias(&mut scales, axis.is_some(), input_scale, bias);
            }
        }
        let (name, dims) = (tensor.name.clone(), tensor.dims.clone());
        Ok(Self { name, dims, values, alpha, axis, scales, bias })
    }

    /// Where its channels lie.
    pub fn layout(&self) -> Layout {
        Layout::of(&self.dims, self.axis)
    }

    /// Its integers: those in `rounded` where they are for the same scales, else the nearest.
    pub fn integers(&self, rounded: &Rounded) -> Vec<i8> {
        match rounded.get(&self.name) {
            Some((scales, integers)) if *scales == self.scales => integers.clone(),
            _ => int8::integers(&self.values, self.layout(), &self.scales),
        }
    }

    /// The floats that the integers stand for.
    pub fn dequantized(&self, rounded: &Rounded) -> Vec<f32> {
        int8::floats(&self.integers(rounded), self.layout(), &self.scales)
    }
}
