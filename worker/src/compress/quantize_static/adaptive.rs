//! AdaRound for the layers of static quantization: how each reads its input, and which way its weights
//! round. Layers that cannot be read so keep their nearest integers, with a word why.

use std::collections::HashMap;

use super::parameters::{Activation, Integers};
use super::placement::{self, Role};
use super::rewrite::Decided;
use super::weight::{Rounded, Weight};
use crate::compress::adaround;
use crate::compress::calibrate::{Feed, Range};
use crate::compress::change::Change;
use crate::compress::int8::Layout;
use crate::compress::moments::{self, Reading};
use crate::onnx::graph::{input, int_of, output};
use crate::onnx::{ModelProto, NodeProto, Refusal, operators};

/// Rounds the weights of every layer that was `decided` for.
///
/// # Errors
/// What `feed` says; `NotFinite`.
pub fn round(
    model: &ModelProto,
    decided: Decided<'_>,
    feed: Feed<'_>,
    change: &mut Change,
) -> Result<Rounded, Refusal> {
    let Decided { seen, placement, ranges, step, target, .. } = decided;
    let Some(graph) = &model.graph else { return Ok(Rounded::new()) };
    let like: HashMap<&str, &str> =
        placement.pairs.iter().map(|pair| (pair.tensor.as_str(), pair.like.as_str())).collect();
    let mut layers: Vec<(NodeProto, Reading)> = Vec::new();
    let mut weights: HashMap<String, Weight> = HashMap::new();
    for (node, role) in graph.node.iter().zip(&placement.roles) {
        let takes = matches!(role, Some(Role::Conv | Role::Product));
        let Some(tensor) = seen.get(input(node, 1)).filter(|_| takes) else { continue };
        let reading = match reading(node, &tensor.dims) {
            Ok(reading) => reading,
            Err(why) => {
                change.skip(node, why);
                continue;
            }
        };
        let root = like.get(input(node, 0)).copied().unwrap_or_default();
        let range = ranges.get(root).copied().unwrap_or(Range::ZERO);
        let scale = Activation::of(range, Integers::of(target)).scale;
        let weight = Weight::of(node, tensor, seen, (step, target, scale))?;
        layers.push((node.clone(), reading));
        weights.insert(output(node, 0).to_owned(), weight);
    }
    let mut rounded = Rounded::new();
    let mut better = 0;
    moments::gather(model, &layers, feed, &mut |node, moments| {
        let Some(weight) = weights.get(output(node, 0)) else { return Ok(()) };
        // A weight that several layers read rounds for the first of them.
        if rounded.contains_key(&weight.name) {
            return Ok(());
        }
        let layout = Layout::of(&weight.dims, Some(placement::channel_axis(node)));
        let rows = adaround::by_channel(&weight.values, layout, false);
        let (integers, channels) = adaround::round(&rows, &weight.scales, moments);
        let integers = adaround::by_channel(&integers, layout, true);
        rounded.insert(weight.name.clone(), (weight.scales.clone(), integers));
        better += channels;
        Ok(())
    })?;
    change.done.push(format!("{better} channels rounded by AdaRound"));
    Ok(rounded)
}

fn reading(node: &NodeProto, dims: &[i64]) -> Result<Reading, &'static str> {
    let reading = if operators::is(node, "Conv") {
        let kernel = moments::kernel(node, dims);
        Reading::Patches(kernel.ok_or("rounded to the nearest: its padding is automatic")?)
    } else if operators::is(node, "ConvTranspose") || dims.len() != 2 {
        return Err("rounded to the nearest: AdaRound takes Conv and matrices");
    } else if int_of(node, "transA", 0) != 0 {
        return Err("rounded to the nearest: it transposes its input");
    } else {
        let inputs = dims.get(1 - placement::channel_axis(node)).copied().unwrap_or(0);
        Reading::Rows(usize::try_from(inputs).unwrap_or(0))
    };
    reading.bytes().ok_or("rounded to the nearest: its input is too wide")?;
    Ok(reading)
}
