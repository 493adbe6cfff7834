//! The step `quantize: {mode: Static}`: convolutions and matrix products in 8 bits throughout, with
//! ranges measured on calibration data.
//!
//! Writes QuantizeLinear and DequantizeLinear only where the target's runtime fuses them into 8-bit
//! kernels; anywhere else they would cost time and accuracy. The numbers are those of
//! `onnxruntime.quantization.quantize_static` under the same options.

pub mod adaptive;
pub mod correction;
pub mod parameters;
pub mod placement;
pub mod rewrite;
pub mod tensorrt;
pub mod weight;

use std::collections::HashSet;

use lithe::recipe::{Embeddings, Optimize, Quantize, Rounding, Target};

use crate::compress::calibrate::{self, Feed, Measured, Method, Range};
use crate::compress::change::{Change, Runner, recipe_invalid};
use crate::compress::{convolutions, embeddings, exclude, opset, optimize};
use crate::onnx::graph::{self, Names, output};
use crate::onnx::{GraphProto, ModelProto, Refusal, operators};
use parameters::Integers;
use placement::{Placement, Role};
use rewrite::Decided;
use weight::Rounded;

/// The first operator set with scales per channel in QuantizeLinear and DequantizeLinear.
const OPSET: i64 = 13;

/// Quantizes `model` for `target`: `run` computes constants, `feed` runs calibration samples.
///
/// # Errors
/// `RecipeInvalid` when nothing matches, `exclude` names no node or the operator set is too old;
/// `NotFinite` for weights or activations that are NaN or infinite; what `feed` says.
pub fn quantize_static(
    model: ModelProto,
    (step, target): (&Quantize, Target),
    run: Runner<'_>,
    feed: Feed<'_>,
) -> Result<(ModelProto, Change), Refusal> {
    let step = &step.decided_for(target);
    let mut change = Change::default();
    exclude::check(&model, &step.exclude)?;
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
    // TensorRT expands no table of 8-bit rows.
    let gathered = if step.embeddings == Embeddings::PerRow && target != Target::TensorRT {
        let mut names = Names::of(&main);
        let seen = graph::constants(&main);
        embeddings::quantize(&mut main, &seen, step, &mut names, &mut change)?
    } else {
        0
    };
    let seen = graph::constants(&main);
    let placement = match target {
        Target::TensorRT => tensorrt::place(&main, &seen, step, &mut change),
        _ => placement::place(&main, &seen, step, &mut change),
    };
    let quantized = placement.roles.iter().flatten();
    if !quantized.into_iter().any(|role| matches!(role, Role::Conv | Role::Product)) {
        change.matched_something("quantize.static", "Conv, MatMul or Gemm")?;
    }
    model.graph = Some(main);
    let calibration = step.calibration.unwrap_or_default();
    let method = Method { calibration, integers: Integers::of(target) };
    let Measured { mut ranges, samples } =
        calibrate::calibrate(&model, &measured(&placement), method, feed)?;
    let Some(main) = &model.graph else { return Ok((model, change)) };
    // A Softmax can give anything from 0 to 1, whatever the calibration data made of it.
    for node in main.node.iter().filter(|node| operators::is(node, "Softmax")) {
        ranges
            .entry(output(node, 0).to_owned())
            .and_modify(|range| *range = Range { low: 0.0, high: 1.0 });
    }
    report(main, &placement, gathered, &mut change);
    let none = Rounded::new();
    let (placement, ranges) = (&placement, &ranges);
    let decided = Decided { seen: &seen, placement, ranges, step, target, rounded: &none };
    let rounded = match step.rounding {
        Some(Rounding::AdaRound) => adaptive::round(&model, decided, feed, &mut change)?,
        _ => Rounded::new(),
    };
    if step.bias_correction {
        let decided = Decided { rounded: &rounded, ..decided };
        let corrected = correction::correct(&mut model, decided, feed)?;
        change.done.push(format!("{corrected} biases corrected"));
    }
    let Some(mut main) = model.graph.take() else { return Ok((model, change)) };
    let seen = graph::constants(&main);
    let decided = Decided { seen: &seen, rounded: &rounded, ..decided };
    rewrite::rewrite(&mut main, decided)?;
    if target != Target::TensorRT {
        let mut names = Names::of(&main);
        // Why a ConvTranspose has no 8-bit kernel is told; the bytes are saved all the same.
        let untold = &mut Change::default();
        let stored =
            convolutions::store(&mut main, &seen, step, &["ConvTranspose"], &mut names, untold)?;
        change.did(stored, "ConvTranspose (weights only)");
    }
    change.done.push(format!("ranges by {calibration:?} from {samples} samples"));
    graph::sweep(&mut main);
    model.graph = Some(main);
    Ok((model, change))
}

/// The tensors whose ranges are measured: those with parameters of their own.
fn measured(placement: &Placement) -> Vec<String> {
    let own = placement.pairs.iter().filter(|pair| pair.like == pair.tensor);
    own.map(|pair| pair.tensor.clone()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::{float_of, int};
    use crate::onnx::{
        AttributeProto, AttributeType, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
        weights,
    };
    use crate::tensor::Tensor;

    /// A graph from `x` to `outputs`, with 3x3 kernels of two channels named `w` and what is in `more`.
    fn model(nodes: Vec<NodeProto>, outputs: &[&str], more: Vec<TensorProto>) -> ModelProto {
        let value = |name: &str| ValueInfoProto { name: name.into(), ..ValueInfoProto::default() };
        let kernel: Vec<f32> = (0..36).map(|at| at as f32 - 17.0).collect();
        let mut initializer = vec![weights::from_f32("w", &[2, 2, 3, 3], &kernel)];
        initializer.extend(more);
        ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
            graph: Some(GraphProto {
                input: vec![value("x")],
                output: outputs.iter().map(|name| value(name)).collect(),
                node: nodes,
                initializer,
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    fn quantized(model: ModelProto, step: &Quantize) -> Result<(GraphProto, Change), Refusal> {
        quantized_for(model, step, Target::X64)
    }

    fn quantized_for(
        model: ModelProto,
        step: &Quantize,
        target: Target,
    ) -> Result<(GraphProto, Change), Refusal> {
        // Every tensor goes from -1 to 3.
        let feed = |watched: &ModelProto, visit: calibrate::Visitor<'_>| {
            for output in &watched.graph.as_ref().unwrap().output {
                visit(&output.name, &Tensor::from_f32(vec![2], &[-1.0, 3.0]).unwrap())?;
            }
            Ok(1)
        };
        let step =
            Quantize { calibration: Some(lithe::recipe::Calibration::MinMax), ..step.clone() };
        let (model, change) = quantize_static(model, (&step, target), &|_| None, &feed)?;
        Ok((model.graph.unwrap(), change))
    }

    fn ops(graph: &GraphProto) -> Vec<&str> {
        graph.node.iter().map(|node| node.op_type.as_str()).collect()
    }

    fn conv(name: &str, from: &str, to: &str) -> NodeProto {
        graph::node("Conv", name, &[from, "w"], &[to])
    }

    const Q: &str = "QuantizeLinear";
    const DQ: &str = "DequantizeLinear";

    #[test]
    fn relu_between_convolutions_vanishes_and_the_output_keeps_its_name() {
        let nodes = vec![
            conv("a", "x", "t"),
            graph::node("Relu", "r", &["t"], &["u"]),
            conv("b", "u", "y"),
        ];
        let (graph, change) =
            quantized(model(nodes, &["y"], vec![]), &Quantize::default()).unwrap();
        assert_eq!(ops(&graph), [Q, DQ, DQ, "Conv", Q, DQ, DQ, "Conv", Q, DQ]);
        assert_eq!(graph.node[3].output, ["u"]);
        assert_eq!(graph.node.last().unwrap().output, ["y"]);
        assert_eq!(graph.node[7].output, ["y_QuantizeLinear_Input"]);
        let done = "2 Conv, 1 Relu removed, ranges by MinMax from 1 samples";
        assert_eq!(change.summary(), done);
    }

    #[test]
    fn a_clip_that_starts_above_zero_or_is_read_elsewhere_stays() {
        let bounds = |low: f32| {
            vec![weights::from_f32("low", &[], &[low]), weights::from_f32("high", &[], &[6.0])]
        };
        let nodes = || {
            let clip = graph::node("Clip", "c", &["t", "low", "high"], &["u"]);
            vec![conv("a", "x", "t"), clip, conv("b", "u", "y")]
        };
        let kept = |low: f32, outputs: &[&str]| {
            let (graph, _) =
                quantized(model(nodes(), outputs, bounds(low)), &Quantize::default()).unwrap();
            ops(&graph).contains(&"Clip")
        };
        assert!(!kept(0.0, &["y"]));
        assert!(kept(1.0, &["y"]));
        assert!(kept(0.0, &["y", "t"]));
    }

    #[test]
    fn what_nobody_reads_in_8_bits_stays_in_floats() {
        let weight = weights::from_f32("m", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let nodes = vec![
            graph::node("MatMul", "p", &["x", "m"], &["t"]),
            graph::node("Sigmoid", "s", &["t"], &["y"]),
        ];
        let (graph, change) =
            quantized(model(nodes, &["y"], vec![weight]), &Quantize::default()).unwrap();
        assert_eq!(ops(&graph), [Q, DQ, DQ, "MatMul", "Sigmoid"]);
        assert_eq!(change.skipped[0].op, "Sigmoid");
    }

    #[test]
    fn what_only_moves_shares_the_scale() {
        let nodes = vec![
            conv("a", "x", "t"),
            graph::node("Transpose", "r", &["t"], &["u"]),
            conv("b", "u", "y"),
        ];
        let (graph, _) = quantized(model(nodes, &["y"], vec![]), &Quantize::default()).unwrap();
        let scales: Vec<&str> = graph
            .node
            .iter()
            .filter(|node| node.op_type == Q)
            .map(|node| node.input[1].as_str())
            .collect();
        assert_eq!(scales, ["x_scale", "t_scale", "t_scale", "y_scale"]);
    }

    #[test]
    fn bodies_read_the_only_form_there_is() {
        let mut branch = graph::node("If", "i", &["x"], &["z"]);
        let body = GraphProto {
            node: vec![graph::node("Relu", "inner", &["t"], &["v"])],
            output: vec![ValueInfoProto { name: "v".into(), ..ValueInfoProto::default() }],
            ..GraphProto::default()
        };
        branch.attribute.push(AttributeProto {
            name: "then_branch".into(),
            g: Some(body),
            r#type: AttributeType::Graph as i32,
            ..AttributeProto::default()
        });
        let nodes = vec![conv("a", "x", "t"), branch];
        let (graph, _) = quantized(model(nodes, &["z"], vec![]), &Quantize::default()).unwrap();
        let branch = graph.node.iter().find(|node| node.op_type == "If").unwrap();
        let inner = &branch.attribute[0].g.as_ref().unwrap().node[0];
        assert_eq!(inner.input, ["t_DequantizeLinear_Output"]);
    }

    #[test]
    fn alpha_and_beta_of_gemm_go_into_the_integers() {
        let more = vec![
            weights::from_f32("m", &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
            weights::from_f32("b", &[2], &[1.0, 2.0]),
        ];
        let mut gemm = graph::node("Gemm", "g", &["x", "m", "b"], &["y"]);
        for (name, f) in [("alpha", 2.0), ("beta", 3.0)] {
            gemm.attribute.push(AttributeProto {
                name: name.into(),
                f,
                r#type: AttributeType::Float as i32,
                ..AttributeProto::default()
            });
        }
        gemm.attribute.push(int("transB", 1));
        let (graph, _) = quantized(model(vec![gemm], &["y"], more), &Quantize::default()).unwrap();
        let gemm = graph.node.iter().find(|node| node.op_type == "Gemm").unwrap();
        assert_eq!((float_of(gemm, "alpha", 1.0), float_of(gemm, "beta", 1.0)), (1.0, 1.0));
        let floats = |name: &str| {
            let tensor = graph.initializer.iter().find(|tensor| tensor.name == name).unwrap();
            weights::to_f32(tensor).unwrap()
        };
        assert_eq!(floats("m_scale"), [4.0 / 127.0, 8.0 / 127.0]);
        let bias = graph.initializer.iter().find(|t| t.name == "b_quantized").unwrap();
        let scale = floats("b_quantized_scale");
        let back: Vec<f32> = weights::to_i64(bias)
            .unwrap()
            .iter()
            .zip(scale)
            .map(|(value, scale)| *value as f32 * scale)
            .collect();
        assert!((back[0] - 3.0).abs() < 1e-3 && (back[1] - 6.0).abs() < 1e-3, "{back:?}");
    }

    #[test]
    fn tensorrt_gets_pairs_before_products_and_on_the_branch_that_skips_them() {
        let more = vec![weights::from_f32("b", &[2], &[1.0, 2.0])];
        let nodes = vec![
            graph::node("Relu", "r", &["x"], &["t"]),
            graph::node("Conv", "a", &["t", "w", "b"], &["u"]),
            graph::node("Add", "s", &["u", "t"], &["v"]),
            graph::node("Relu", "q", &["v"], &["y"]),
        ];
        let model = model(nodes, &["y"], more);
        let (graph, _) = quantized_for(model, &Quantize::default(), Target::TensorRT).unwrap();
        assert_eq!(ops(&graph), ["Relu", Q, DQ, DQ, "Conv", "Add", "Relu"]);
        let of = |op: &str| graph.node.iter().find(|node| node.op_type == op).unwrap();
        assert_eq!(of("Add").input, ["u", "t_DequantizeLinear_Output"]);
        assert_eq!(of("Conv").input[2], "b");
        let zero = graph.initializer.iter().find(|t| t.name == "t_zero_point").unwrap();
        assert_eq!((zero.data_type, zero.raw_data.as_ref()), (3, [0].as_slice()));
    }

    #[test]
    fn refusals_say_what_was_left_alone_and_why() {
        let step = Quantize { exclude: vec!["a".into()], ..Quantize::default() };
        let of = |step: &Quantize| {
            quantized(model(vec![conv("a", "x", "y")], &["y"], vec![]), step).unwrap_err().message
        };
        assert_eq!(
            of(&step),
            "quantize.static matched 0 of 1 nodes: 1 Conv: excluded by the recipe"
        );
        let step = Quantize { exclude: vec!["nobody".into()], ..Quantize::default() };
        assert!(of(&step).contains("nobody"));
    }
}
