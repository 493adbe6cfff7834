//! The step `equalize`: moves factors between layers so that each loses less in few bits. Outputs stay
//! equal up to rounding; nothing is quantized here.

pub mod cross_layer;
pub mod smooth;

use lithe::recipe::{Equalize, EqualizeMethod, Optimize};

use crate::compress::calibrate::Feed;
use crate::compress::change::{Change, Runner};
use crate::compress::{exclude, optimize};
use crate::onnx::{ModelProto, Refusal, TensorProto, weights};

/// How much of the activations' range moves where the recipe does not say; SmoothQuant's own default.
const STRENGTH: f64 = 0.5;

/// Equalises `model`: `run` computes constants, `feed` runs calibration samples.
///
/// # Errors
/// `RecipeInvalid` when nothing matches or `exclude` names no node; `NotFinite` for activations that
/// are NaN or infinite; what `feed` says.
pub fn equalize(
    model: ModelProto,
    step: &Equalize,
    run: Runner<'_>,
    feed: Feed<'_>,
) -> Result<(ModelProto, Change), Refusal> {
    exclude::check(&model, &step.exclude)?;
    // A normalisation that is left would stand between two layers.
    let (model, _) = optimize::optimize(model, &Optimize::default(), run)?;
    match step.method {
        EqualizeMethod::CrossLayer => cross_layer::equalize(model, &step.exclude),
        EqualizeMethod::SmoothQuant => {
            let strength = step.strength.unwrap_or(STRENGTH);
            smooth::equalize(model, (strength, &step.exclude), feed)
        }
    }
}

/// Multiplies the numbers of `tensor` by `factors` along `axis`.
fn scale(tensor: &mut TensorProto, axis: usize, factors: &[f32]) {
    let Some(mut values) = weights::to_f32(tensor) else { return };
    let size = |dim: &i64| usize::try_from(*dim).unwrap_or(0);
    let inner: usize = tensor.dims.iter().skip(axis + 1).map(size).product();
    let blocks = values.chunks_mut(inner.max(1));
    for (block, factor) in blocks.zip(factors.iter().cycle()) {
        block.iter_mut().for_each(|value| *value *= factor);
    }
    *tensor = weights::from_f32(&tensor.name, &tensor.dims, &values);
}

/// The largest magnitude of `tensor` at each place along `axis`.
fn reach(tensor: &TensorProto, axis: usize) -> Vec<f32> {
    let size = |dim: &i64| usize::try_from(*dim).unwrap_or(0);
    let count = tensor.dims.get(axis).map_or(0, size);
    let inner: usize = tensor.dims.iter().skip(axis + 1).map(size).product();
    let mut largest = vec![0.0_f32; count];
    let values = weights::to_f32(tensor).unwrap_or_default();
    for (at, block) in values.chunks(inner.max(1)).enumerate() {
        if let Some(largest) = largest.get_mut(at % count.max(1)) {
            *largest = block.iter().fold(*largest, |a, b| a.max(b.abs()));
        }
    }
    largest
}
