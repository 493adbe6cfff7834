//! Folds BatchNormalization into the Conv, ConvTranspose or Gemm before it.
//!
//! s = gamma / sqrt(var + eps), W' = W s, b' = (b - mean) s + beta; computed in f64, stored in f32
//! (onnx/optimizer `fuse_bn_into_conv`; OnnxSlim for grouped ConvTranspose).

use std::collections::HashMap;

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
    let mut folded = 0;
    let mut at = 0;
    while let Some(node) = graph.node.get(at) {
        if !operators::is(node, "BatchNormalization") {
            at += 1;
            continue;
        }
        match candidate(graph, at, constants) {
            Ok((producer, statistics)) => {
                apply(graph, constants, names, at, producer, &statistics)?;
                folded += 1;
            }
            Err(why) => {
                change.skip(node, why);
                at += 1;
            }
        }
    }
    Ok(folded)
}

/// Scale and shift of each channel: y = x * scale + shift.
struct Affine {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

/// The producer that takes the node at `at`, and what it has to take; or why there is none.
fn candidate(
    graph: &GraphProto,
    at: usize,
    constants: &Constants,
) -> Result<(usize, Affine), &'static str> {
    let node = graph.node.get(at).ok_or("it is gone")?;
    if int_of(node, "training_mode", 0) != 0 || node.output.iter().skip(1).any(|o| !o.is_empty()) {
        return Err("it runs in training mode");
    }
    if int_of(node, "spatial", 1) != 1 {
        return Err("it normalises single positions (spatial=0)");
    }
    let affine = affine(node, constants).ok_or("its parameters are no float constants")?;
    let source = input(node, 0);
    let producer = graph.node.iter().position(|p| p.output.iter().any(|o| o == source));
    let producer = producer.ok_or("nothing before it can take it")?;
    let node = graph.node.get(producer).ok_or("it is gone")?;
    let takes = ["Conv", "ConvTranspose", "Gemm"].iter().any(|op| operators::is(node, op));
    if !takes {
        return Err("the node before it is no Conv, ConvTranspose or Gemm");
    }
    let read: HashMap<String, usize> = graph::readers(graph);
    if read.get(source) != Some(&1) {
        return Err("the value before it is read elsewhere too");
    }
    let weight = constants.get(input(node, 1)).ok_or("the weights before it are not constant")?;
    let bias = input(node, 2);
    let constant_bias = bias.is_empty() || constants.get(bias).is_some_and(|b| weights::to_f32(b).is_some());
    if weights::to_f32(weight).is_none() || !constant_bias {
        return Err("the weights before it are no float constants");
    }
    if channels(node, weight) != Some(affine.scale.len()) {
        return Err("its channels do not fit the weights before it");
    }
    if operators::is(node, "Gemm") && !gemm_bias_fits(constants.get(bias), affine.scale.len()) {
        return Err("the bias before it is not one number per channel");
    }
    Ok((producer, affine))
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

/// Rewrites the weights and bias of the node at `producer`, and removes the node at `at`.
fn apply(
    graph: &mut GraphProto,
    constants: &Constants,
    names: &mut Names,
    at: usize,
    producer: usize,
    affine: &Affine,
) -> Result<(), Refusal> {
    let (Some(norm), Some(layer)) = (graph.node.get(at).cloned(), graph.node.get(producer).cloned())
    else {
        return Ok(());
    };
    let Some(weight) = constants.get(input(&layer, 1)) else { return Ok(()) };
    let mut values = weights::to_f32(weight).unwrap_or_default();
    scale_weights(&layer, &weight.dims, &mut values, &affine.scale);
    let bias = folded_bias(&layer, constants, affine);
    if values.iter().chain(&bias).any(|value| !value.is_finite()) {
        let message = format!(
            "folding BatchNormalization {} into {} gives numbers that are not finite",
            quoted(&norm.name), quoted(&layer.name)
        );
        return Err(Refusal::new(reason::NOT_FINITE, message));
    }
    let weight_name = names.fresh(&format!("{}_folded", weight.name));
    let bias_name = names.fresh(&format!("{}_bias", weight_name));
    graph.initializer.push(weights::from_f32(&weight_name, &weight.dims, &values));
    graph.initializer.push(weights::from_f32(&bias_name, &[bias.len() as i64], &bias));
    if let Some(node) = graph.node.get_mut(producer) {
        node.input.truncate(1);
        node.input.extend([weight_name, bias_name]);
        node.attribute.retain(|attribute| attribute.name != "beta");
        node.output = vec![output(&norm, 0).to_owned()];
    }
    graph.node.remove(at);
    Ok(())
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
                let (row, column) = (index / (size(1) * inner).max(1), index / inner.max(1) % size(1).max(1));
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
    let beta = if operators::is(layer, "Gemm") { f64::from(float_of(layer, "beta", 1.0)) } else { 1.0 };
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
