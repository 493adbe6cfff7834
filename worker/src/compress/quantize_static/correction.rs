//! Bias correction: weights and inputs in 8 bits shift the mean of what a layer gives; its bias takes
//! that back, b' = b + E[y] - E[y in 8 bits] per output channel over the calibration data, each layer by
//! itself (Nagel and others, 2019; NNCF's fast bias correction takes the mean input for the data).

use std::collections::HashMap;

use super::parameters::{Activation, Integers};
use super::placement::Role;
use super::rewrite::Decided;
use super::weight::Weight;
use crate::compress::calibrate::{self, Feed, Range};
use crate::onnx::graph::{self, Names, input, output};
use crate::onnx::{GraphProto, ModelProto, NodeProto, Refusal, operators, weights};

/// Corrects the biases of the Conv and Gemm nodes that were `decided` for; returns how many.
///
/// # Errors
/// What `feed` says; `NotFinite`.
pub fn correct(
    model: &mut ModelProto,
    decided: Decided<'_>,
    feed: Feed<'_>,
) -> Result<u64, Refusal> {
    let Some(main) = &model.graph else { return Ok(0) };
    let twins = twins(main, decided)?;
    let mut watched = model.clone();
    let Some(graph) = &mut watched.graph else { return Ok(0) };
    let mut layers: HashMap<String, usize> = HashMap::new();
    let mut names = Names::of(graph);
    let mut tensors = Vec::new();
    for twin in &twins {
        let difference = twin.write(graph, &mut names);
        layers.insert(difference.clone(), twin.at);
        tensors.push(difference);
    }
    let (watched, _) = calibrate::watch(&watched, &tensors);
    let mut means: HashMap<usize, Mean> = HashMap::new();
    feed(&watched, &mut |name, tensor| {
        let Some(at) = layers.get(name) else { return Ok(()) };
        calibrate::extent(name, tensor)?;
        let mean = means.entry(*at).or_default();
        mean.add(
            tensor.shape(),
            calibrate::floats(tensor),
            twins.iter().find(|twin| twin.at == *at),
        );
        Ok(())
    })?;
    let Some(main) = &mut model.graph else { return Ok(0) };
    let mut names = Names::of(main);
    let mut corrected = 0;
    for twin in &twins {
        let Some(mean) = means.get(&twin.at) else { continue };
        let shifts = mean.values();
        let old = twin.weight.bias.clone().unwrap_or_else(|| vec![0.0; shifts.len()]);
        let new: Vec<f32> =
            old.iter().zip(&shifts).map(|(b, s)| (f64::from(*b) + s) as f32).collect();
        if new.len() != old.len() || new.iter().any(|value| !value.is_finite()) {
            continue;
        }
        let name = names.fresh(&format!("{}_corrected", twin.weight.name));
        main.initializer.push(weights::from_f32(&name, &[new.len() as i64], &new));
        if let Some(node) = main.node.get_mut(twin.at) {
            node.input.resize(3, String::new());
            if let Some(bias) = node.input.get_mut(2) {
                *bias = name;
            }
            // It is in the numbers now.
            node.attribute.retain(|attribute| attribute.name != "beta");
            corrected += 1;
        }
    }
    Ok(corrected)
}

/// A layer as it will compute in 8 bits, written in floats.
struct Twin {
    at: usize,
    node: NodeProto,
    weight: Weight,
    input: Activation,
    /// The axis of the output channels in the layer's result; `None` for the last.
    axis: Option<usize>,
    floats: Vec<f32>,
}

fn twins(graph: &GraphProto, decided: Decided<'_>) -> Result<Vec<Twin>, Refusal> {
    let Decided { seen, placement, ranges, step, target, rounded } = decided;
    let like: HashMap<&str, &str> =
        placement.pairs.iter().map(|pair| (pair.tensor.as_str(), pair.like.as_str())).collect();
    let mut twins = Vec::new();
    for (at, (node, role)) in graph.node.iter().zip(&placement.roles).enumerate() {
        let takes =
            matches!(role, Some(Role::Conv | Role::Product)) && !operators::is(node, "MatMul");
        let Some(tensor) = seen.get(input(node, 1)).filter(|_| takes) else { continue };
        let Some(root) = like.get(input(node, 0)) else { continue };
        let range = ranges.get(*root).copied().unwrap_or(Range::ZERO);
        let input = Activation::of(range, Integers::of(target));
        let weight = Weight::of(node, tensor, seen, (step, target, input.scale))?;
        let floats = weight.dequantized(rounded);
        let axis = (!operators::is(node, "Gemm")).then_some(1);
        twins.push(Twin { at, node: node.clone(), weight, input, axis, floats });
    }
    Ok(twins)
}

impl Twin {
    /// Adds the layer with 8-bit input and weights to `graph`, and the difference to the layer itself;
    /// returns the difference's name.
    fn write(&self, graph: &mut GraphProto, names: &mut Names) -> String {
        let own = output(&self.node, 0);
        let [integers, source, scale, zero, weight, result, difference] =
            ["q", "dq", "q_scale", "q_zero", "q_weight", "q_result", "q_difference"]
                .map(|what| names.fresh(&format!("{own}_{what}")));
        graph.initializer.push(weights::from_f32(&scale, &[], &[self.input.scale]));
        graph.initializer.push(self.input.integers.tensor(&zero, &[], &[self.input.zero]));
        graph.initializer.push(weights::from_f32(&weight, &self.weight.dims, &self.floats));
        let x = input(&self.node, 0).to_owned();
        let parameters = [&scale, &zero].map(String::as_str);
        let quantize = graph::node(
            "QuantizeLinear",
            &integers,
            &[&x, parameters[0], parameters[1]],
            &[&integers],
        );
        let back = graph::node(
            "DequantizeLinear",
            &source,
            &[&integers, parameters[0], parameters[1]],
            &[&source],
        );
        let mut node = self.node.clone();
        node.name.clone_from(&result);
        node.output = vec![result.clone()];
        node.input.splice(0..2, [source, weight]);
        // It is in the weight's numbers.
        node.attribute.retain(|attribute| attribute.name != "alpha");
        let subtract = graph::node("Sub", &difference, &[own, &result], &[&difference]);
        graph.node.extend([quantize, back, node, subtract]);
        difference
    }
}

/// The mean of numbers by channel.
#[derive(Default)]
struct Mean {
    sums: Vec<f64>,
    count: u64,
}

impl Mean {
    fn add(&mut self, shape: &[usize], values: impl Iterator<Item = f32>, twin: Option<&Twin>) {
        let axis = twin.and_then(|twin| twin.axis).unwrap_or(shape.len().saturating_sub(1));
        let channels = shape.get(axis).copied().unwrap_or(1).max(1);
        let inner: usize = shape.iter().skip(axis + 1).product::<usize>().max(1);
        self.sums.resize(channels, 0.0);
        let mut total = 0_u64;
        for (at, value) in values.enumerate() {
            if let Some(sum) = self.sums.get_mut(at / inner % channels) {
                *sum += f64::from(value);
            }
            total += 1;
        }
        self.count += total / channels as u64;
    }

    fn values(&self) -> Vec<f64> {
        self.sums.iter().map(|sum| sum / self.count.max(1) as f64).collect()
    }
}
