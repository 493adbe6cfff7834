//! Folds BatchNormalization into the Conv, ConvTranspose or Gemm before it.
//!
//! s = gamma / sqrt(var + eps), W' = W s, b' = (b - mean) s + beta; computed in f64, stored in f32
//! (onnx/optimizer `fuse_bn_into_conv`; OnnxSlim for grouped ConvTranspose).

use std::collections::{HashMap, HashSet};

use lithe::names::reason;

use crate::compress::change::Change;
use crate::onnx::graph::{self, Constants, Names, float_of, input, int_of, output};
use crate::onnx::refusal::quoted;
use crate::onnx::{GraphProto, NodeProto, Refusal, TensorProto, operators, weights};

/// Folds every BatchNormalization of `graph` that can be folded; returns how many.
pub fn fold(
    graph: &mut GraphProto,
    constants: &Constants,
    names: &mut Names,
    change: &mut Change,
) -> Result<u64, Refusal> {
    let readers = graph::readers(graph);
    let mut producers: HashMap<String, usize> =
        graph::producers(graph).into_iter().map(|(name, at)| (name.to_owned(), at)).collect();
    let mut gone = HashSet::new();
    for at in 0..graph.node.len() {
        let Some(norm) =
            graph.node.get(at).filter(|n| operators::is(n, "BatchNormalization")).cloned()
        else {
            continue;
        };
        let producer = producers.get(input(&norm, 0)).copied();
        let layer = producer.and_then(|at| graph.node.get(at));
        let once = readers.get(input(&norm, 0)) == Some(&1);
        match candidate(&norm, layer, once, constants) {
            Ok(affine) => {
                let Some(layer) = producer.and_then(|at| graph.node.get_mut(at)) else { continue };
                let tensors = apply(&norm, layer, constants, names, &affine)?;
                graph.initializer.extend(tensors);
                producers.insert(output(&norm, 0).to_owned(), producer.unwrap_or(at));
                gone.insert(at);
            }
            Err(why) => change.skip(&norm, why),
        }
    }
    let mut at = 0..;
    graph.node.retain(|_| at.next().is_none_or(|at| !gone.contains(&at)));
    Ok(gone.len() as u64)
}

/// Scale and shift of each channel: y = x * scale + shift.
struct Affine {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

/// What the layer before `norm` has to take; or why it cannot.
fn candidate(
    norm: &NodeProto,
    layer: Option<&NodeProto>,
    read_once: bool,
    constants: &Constants,
) -> Result<Affine, &'static str> {
    if int_of(norm, "training_mode", 0) != 0 || norm.output.iter().skip(1).any(|o| !o.is_empty()) {
        return Err("it runs in training mode");
    }
    if int_of(norm, "spatial", 1) != 1 {
        return Err("it normalises single positions (spatial=0)");
    }
    let affine = affine(norm, constants).ok_or("its parameters are no float constants")?;
    let takes =
        |n: &&NodeProto| ["Conv", "ConvTranspose", "Gemm"].iter().any(|op| operators::is(n, op));
    let layer =
        layer.filter(takes).ok_or("the node before it is no Conv, ConvTranspose or Gemm")?;
    if !read_once {
        return Err("the value before it is read elsewhere too");
    }
    let floats = |name: &str| constants.get(name).filter(|t| weights::to_f32(t).is_some());
    let bias = input(layer, 2);
    let weight = floats(input(layer, 1)).ok_or("the weights before it are no float constants")?;
    if !bias.is_empty() && floats(bias).is_none() {
        return Err("the bias before it is no float constant");
    }
    if channels(layer, weight) != Some(affine.scale.len()) {
        return Err("its channels do not fit the weights before it");
    }
    if operators::is(layer, "Gemm") && !gemm_bias_fits(constants.get(bias), affine.scale.len()) {
        return Err("the bias before it is not one number per channel");
    }
    Ok(affine)
}

fn affine(node: &NodeProto, constants: &Constants) -> Option<Affine> {
    let read = |index| constants.get(input(node, index)).and_then(weights::to_f32);
    let (gamma, beta, mean, var) = (read(1)?, read(2)?, read(3)?, read(4)?);
    if [beta.len(), mean.len(), var.len()] != [gamma.len(); 3] {
        return None;
    }
    let epsilon = f64::from(float_of(node, "epsilon", 1e-5));
    let scale: Vec<f64> = gamma
        .iter()
        .zip(&var)
        .map(|(gamma, var)| f64::from(*gamma) / (f64::from(*var) + epsilon).sqrt())
        .collect();
    let shift = beta
        .iter()
        .zip(&mean)
        .zip(&scale)
        .map(|((beta, mean), scale)| f64::from(*beta) - f64::from(*mean) * scale)
        .collect();
    Some(Affine { scale, shift })
}

/// Output channels of the layer `node` with `weight`.
fn channels(node: &NodeProto, weight: &TensorProto) -> Option<usize> {
    let dim = |at: usize| weight.dims.get(at).copied();
    let count = match node.op_type.as_str() {
        "Conv" => dim(0)?,
        "ConvTranspose" => dim(1)?.checked_mul(int_of(node, "group", 1))?,
        _ if weight.dims.len() != 2 => return None,
        _ => dim(usize::from(int_of(node, "transB", 0) == 0))?,
    };
    usize::try_from(count).ok()
}

fn gemm_bias_fits(bias: Option<&TensorProto>, channels: usize) -> bool {
    let Some(bias) = bias else { return true };
    let numbers = weights::count(bias);
    let row = bias.dims.len() < 2 || bias.dims.first() == Some(&1);
    row && (numbers == 1 || numbers == channels as u64)
}

/// Rewrites `layer` to do what `layer` and then `norm` did; returns its new weights and bias.
fn apply(
    norm: &NodeProto,
    layer: &mut NodeProto,
    constants: &Constants,
    names: &mut Names,
    affine: &Affine,
) -> Result<[TensorProto; 2], Refusal> {
    let weight = constants.get(input(layer, 1)).cloned().unwrap_or_default();
    let mut values = weights::to_f32(&weight).unwrap_or_default();
    scale_weights(layer, &weight.dims, &mut values, &affine.scale);
    let bias = folded_bias(layer, constants, affine);
    if values.iter().chain(&bias).any(|value| !value.is_finite()) {
        let message = format!(
            "folding BatchNormalization {} into {} gives numbers that are not finite",
            quoted(&norm.name),
            quoted(&layer.name)
        );
        return Err(Refusal::new(reason::NOT_FINITE, message));
    }
    let weight_name = names.fresh(&format!("{}_folded", weight.name));
    let bias_name = names.fresh(&format!("{weight_name}_bias"));
    layer.input.truncate(1);
    layer.input.extend([weight_name.clone(), bias_name.clone()]);
    layer.attribute.retain(|attribute| attribute.name != "beta");
    layer.output = vec![output(norm, 0).to_owned()];
    Ok([
        weights::from_f32(&weight_name, &weight.dims, &values),
        weights::from_f32(&bias_name, &[bias.len() as i64], &bias),
    ])
}

fn scale_weights(layer: &NodeProto, dims: &[i64], values: &mut [f32], scale: &[f64]) {
    let size = |at: usize| dims.get(at).and_then(|dim| usize::try_from(*dim).ok()).unwrap_or(0);
    let inner: usize = dims.iter().skip(2).map(|dim| usize::try_from(*dim).unwrap_or(0)).product();
    let channel = |index: usize| -> usize {
        match layer.op_type.as_str() {
            "Conv" => index / (size(1) * inner).max(1),
            "ConvTranspose" => {
                // Weights are [in, out / group, …]: the group follows from the input channel.
                let groups = usize::try_from(int_of(layer, "group", 1)).unwrap_or(1).max(1);
                let (row, column) =
                    (index / (size(1) * inner).max(1), index / inner.max(1) % size(1).max(1));
                row / (size(0) / groups).max(1) * size(1) + column
            }
            _ if int_of(layer, "transB", 0) != 0 => index / size(1).max(1),
            _ => index % size(1).max(1),
        }
    };
    for (index, value) in values.iter_mut().enumerate() {
        let scale = scale.get(channel(index)).copied().unwrap_or(1.0);
        *value = (f64::from(*value) * scale) as f32;
    }
}

fn folded_bias(layer: &NodeProto, constants: &Constants, affine: &Affine) -> Vec<f32> {
    let old = constants.get(input(layer, 2)).and_then(weights::to_f32).unwrap_or_default();
    let beta =
        if operators::is(layer, "Gemm") { f64::from(float_of(layer, "beta", 1.0)) } else { 1.0 };
    affine
        .scale
        .iter()
        .zip(&affine.shift)
        .enumerate()
        .map(|(channel, (scale, shift))| {
            let bias = if old.len() == 1 { old.first() } else { old.get(channel) };
            (beta * f64::from(bias.copied().unwrap_or(0.0)) * scale + shift) as f32
        })
        .collect()
}
