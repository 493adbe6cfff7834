//! The step `quantize: {mode: Static}`: convolutions and matrix products in 8 bits throughout, with
//! ranges measured on calibration data.
//!
//! Writes QuantizeLinear and DequantizeLinear only where the runtime fuses them into 8-bit kernels;
//! anywhere else they would cost time and accuracy. The numbers are those of
//! `onnxruntime.quantization.quantize_static`.

pub mod parameters;
pub mod placement;
pub mod rewrite;

use std::collections::HashSet;

use lithe::recipe::{Embeddings, Optimize, Quantize};

use crate::compress::calibrate::{self, Feed, Measured, Range};
use crate::compress::change::{Change, Runner, recipe_invalid};
use crate::compress::quantize_dynamic::check_excluded;
use crate::compress::{embeddings, opset, optimize};
use crate::onnx::graph::{self, Constants, Names, output};
use crate::onnx::{GraphProto, ModelProto, Refusal, operators};
use placement::{Placement, Role};

/// The first operator set with scales per channel in QuantizeLinear and DequantizeLinear.
const OPSET: i64 = 13;

/// Quantizes `model`: `run` computes constants, `feed` runs calibration samples.
///
/// # Errors
/// `RecipeInvalid` when nothing matches, `exclude` names no node or the operator set is too old;
/// `NotFinite` for weights or activations that are NaN or infinite; what `feed` says.
pub fn quantize_static(
    model: ModelProto,
    step: &Quantize,
    run: Runner<'_>,
    feed: Feed<'_>,
) -> Result<(ModelProto, Change), Refusal> {
    let mut change = Change::default();
    check_excluded(&model, &step.exclude)?;
    // A normalisation that is left would stand between a convolution and its activation.
    let (mut model, _) = optimize::optimize(model, &Optimize::default(), run)?;
    if operators::opset(&model) < OPSET {
        opset::upgrade(&mut model, OPSET).map_err(|why| {
            recipe_invalid(format!(
                "quantize.static needs operator set {OPSET} or newer; the model has {} and cannot be upgraded: {why}",
                operators::opset(&model)
            ))
        })?;
    }
    let Some(mut main) = model.graph.take() else { return Ok((model, change)) };
    let gathered = if step.embeddings == Embeddings::PerRow {
        let mut names = Names::of(&main);
        let seen = constants(&main);
        embeddings::quantize(&mut main, &seen, step, &mut names, &mut change)?
    } else {
        0
    };
    let seen = constants(&main);
    let placement = placement::place(&main, &seen, step, &mut change);
    if !placement.roles.iter().flatten().any(|role| matches!(role, Role::Conv | Role::Product)) {
        return Err(no_match(&change));
    }
    model.graph = Some(main);
    let Measured { mut ranges, samples } = calibrate::calibrate(
        &model,
        &measured(&placement),
        step.calibration.unwrap_or_default(),
        feed,
    )?;
    let Some(mut main) = model.graph.take() else { return Ok((model, change)) };
    // A Softmax can give anything from 0 to 1, whatever the calibration data made of it.
    for node in main.node.iter().filter(|node| operators::is(node, "Softmax")) {
        ranges
            .entry(output(node, 0).to_owned())
            .and_modify(|range| *range = Range { low: 0.0, high: 1.0 });
    }
    report(&main, &placement, gathered, &mut change);
    let method = step.calibration.unwrap_or_default();
    change.done.push(format!("ranges by {method:?} from {samples} samples"));
    rewrite::rewrite(&mut main, &seen, &placement, &ranges, step)?;
    graph::sweep(&mut main);
    model.graph = Some(main);
    Ok((model, change))
}

/// The constants that the main graph sees.
fn constants(graph: &GraphProto) -> Constants {
    graph.initializer.iter().map(|tensor| (tensor.name.clone(), tensor.clone())).collect()
}

/// The tensors whose ranges are measured: those with parameters of their own.
fn measured(placement: &Placement) -> Vec<String> {
    let own = placement.pairs.iter().filter(|pair| pair.like == pair.tensor);
    own.map(|pair| pair.tensor.clone()).collect()
}

fn no_match(change: &Change) -> Refusal {
    let all: u64 = change.skipped.iter().map(|skipped| skipped.count).sum();
    let why =
        if all == 0 { "it has no Conv, MatMul or Gemm".into() } else { change.skipped_line() };
    recipe_invalid(format!("quantize.static matched 0 of {all} nodes: {why}"))
}

/// Notes how many nodes of each operator were quantized, in the order of their first appearance.
fn report(graph: &GraphProto, placement: &Placement, gathered: u64, change: &mut Change) {
    let placed = || graph.node.iter().zip(&placement.roles);
    let mut told = HashSet::new();
    for (node, role) in placed().filter(|(_, role)| role.is_some()) {
        if !told.insert((&node.op_type, *role)) {
            continue;
        }
        let alike = |(other, its): &(&crate::onnx::NodeProto, &Option<Role>)| {
            other.op_type == node.op_type && *its == role
        };
        let count = placed().filter(alike).count() as u64;
        let what = if *role == Some(Role::Removed) { " removed" } else { "" };
        change.did(count, &format!("{}{what}", node.op_type));
    }
    change.did(gathered, "Gather");
}
