//! The step `quantize: {mode: Dynamic}`: MatMul and Gemm multiply 8-bit integers, embedding tables
//! are 8-bit with a scale per row. Conv is never computed in integers, because the runtime's dynamic
//! 8-bit Conv is several times slower than its float one; only its weights are stored so. The nodes are those of `onnxruntime.quantization.quantize_dynamic`, which the runtime fuses, and so
//! are the numbers; `weights: Unsigned` stores each of them plus 128, with a zero point of 128.

use std::collections::{HashMap, HashSet};

use lithe::names::reason;
use lithe::recipe::{Convolutions, Embeddings, Granularity, Quantize, ReduceRange, WeightType};

use crate::compress::change::{Change, recipe_invalid};
use crate::compress::int8::{self, Channels};
use crate::compress::{convolutions, embeddings, normalise, opset};
use crate::onnx::graph::{self, Constants, Names, float_of, input, int, int_of, output};
use crate::onnx::refusal::quoted;
use crate::onnx::{
    DataType, GraphProto, ModelProto, NodeProto, Refusal, TensorProto, operators, walk, weights,
};

/// The operator set in which every node written here has its present form.
const OPSET: i64 = 13;
/// The oldest operator set that has DynamicQuantizeLinear.
const OLDEST: i64 = 11;

/// Why convolutions are computed in floats.
const SLOW_CONVOLUTION: &str =
    "the runtime's dynamic 8-bit convolution is slower than float; use mode: Static";

/// Quantizes `model`.
///
/// # Errors
/// `RecipeInvalid` when nothing matches or `exclude` names no node; `NotFinite` for a weight that
/// is NaN or infinite.
pub fn quantize_dynamic(
    mut model: ModelProto,
    step: &Quantize,
) -> Result<(ModelProto, Change), Refusal> {
    let mut change = Change::default();
    normalise::normalise(&mut model, &mut Change::default());
    check_excluded(&model, &step.exclude)?;
    if operators::opset(&model) < OPSET
        && let Err(why) = opset::upgrade(&mut model, OPSET)
        && operators::opset(&model) < OLDEST
    {
        let message = format!(
            "quantize.dynamic needs operator set {OLDEST} or newer; the model has {} and cannot be upgraded: {why}",
            operators::opset(&model)
        );
        return Err(recipe_invalid(message));
    }
    let Some(mut main) = model.graph.take() else { return Ok((model, change)) };
    let mut pass = Pass { step, names: Names::of(&main), counts: Counts::default() };
    graph::scopes(&mut main, &Constants::new(), &mut |graph, seen| {
        pass.graph(graph, seen, &mut change)
    })?;
    graph::sweep(&mut main);
    model.graph = Some(main);
    let counts = pass.counts;
    change.did(counts.matmul, "MatMul");
    change.did(counts.gemm, "Gemm");
    change.did(counts.gather, "Gather");
    change.did(counts.conv, "Conv (weights only)");
    if change.matched == 0 {
        let all: u64 = change.skipped.iter().map(|skipped| skipped.count).sum();
        let why = if all == 0 {
            "it has no MatMul, Gemm or embedding".into()
        } else {
            change.skipped_line()
        };
        return Err(recipe_invalid(format!("quantize.dynamic matched 0 of {all} nodes: {why}")));
    }
    Ok((model, change))
}

/// Refuses names in `exclude` that are no node's: a misspelt name must not quantize the node.
pub fn check_excluded(model: &ModelProto, exclude: &[String]) -> Result<(), Refusal> {
    let mut names = HashSet::new();
    if let Some(graph) = &model.graph {
        walk::nodes(graph, &mut |node| {
            names.insert(node.name.as_str());
        });
    }
    match exclude.iter().find(|name| !names.contains(name.as_str())) {
        Some(name) => {
            Err(recipe_invalid(format!("exclude names {}, and no node is called so", quoted(name))))
        }
        None => Ok(()),
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    matmul: u64,
    gemm: u64,
    gather: u64,
    conv: u64,
}

struct Pass<'a> {
    step: &'a Quantize,
    names: Names,
    counts: Counts,
}

/// Names of a quantized tensor, its scale and its zero point.
#[derive(Clone)]
struct Triple {
    values: String,
    scale: String,
    zero: String,
}

/// What is new in one graph.
#[derive(Default)]
struct New {
    nodes: Vec<NodeProto>,
    tensors: Vec<TensorProto>,
    activations: HashMap<String, Triple>,
    weights: HashMap<(String, bool, u32), Triple>,
}

impl Pass<'_> {
    fn graph(
        &mut self,
        graph: &mut GraphProto,
        seen: &Constants,
        change: &mut Change,
    ) -> Result<(), Refusal> {
        let mut new = New::default();
        for node in std::mem::take(&mut graph.node) {
            let excluded = self.step.exclude.contains(&node.name);
            match node.op_type.as_str() {
                "MatMul" | "Gemm" if operators::canonical(&node.domain).is_empty() => {
                    match self.product(&node, seen, excluded) {
                        Ok(weight) => self.replace(node, weight, seen, &mut new)?,
                        Err(why) => {
                            change.skip(&node, why);
                            new.nodes.push(node);
                        }
                    }
                }
                "Conv" if self.step.convolutions == Convolutions::Keep => {
                    change.skip(&node, SLOW_CONVOLUTION);
                    new.nodes.push(node);
                }
                "ConvTranspose" => {
                    change.skip(&node, SLOW_CONVOLUTION);
                    new.nodes.push(node);
                }
                "LSTM" | "GRU" | "RNN" | "Attention" => {
                    change.skip(&node, "this step does not quantize it");
                    new.nodes.push(node);
                }
                _ => new.nodes.push(node),
            }
        }
        graph.node = new.nodes;
        graph.initializer.extend(new.tensors);
        if self.step.embeddings == Embeddings::PerRow {
            self.counts.gather +=
                embeddings::quantize(graph, seen, self.step, &mut self.names, change)?;
        }
        if self.step.convolutions == Convolutions::Stored {
            self.counts.conv +=
                convolutions::store(graph, seen, self.step, &mut self.names, change)?;
        }
        Ok(())
    }

    /// The constant weight of a MatMul or Gemm that can be quantized, or why it cannot.
    fn product<'c>(
        &self,
        node: &NodeProto,
        seen: &'c Constants,
        excluded: bool,
    ) -> Result<&'c TensorProto, &'static str> {
        if excluded {
            return Err("excluded by the recipe");
        }
        let weight = seen.get(input(node, 1)).ok_or("both inputs are computed")?;
        if weight.data_type != DataType::Float as i32 {
            return Err("its weights are not 32-bit floats");
        }
        if weight.dims.len() < 2 || weights::count(weight) == 0 {
            return Err("its weights are no matrix");
        }
        if seen.contains_key(input(node, 0)) {
            return Err("both inputs are constant");
        }
        let bias = input(node, 2);
        let scaled = float_of(node, "beta", 1.0) != 1.0 && !bias.is_empty();
        if node.op_type == "Gemm" && scaled && seen.get(bias).and_then(weights::to_f32).is_none() {
            return Err("its bias is computed and scaled");
        }
        Ok(weight)
    }

    /// DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul [-> Add].
    fn replace(
        &mut self,
        node: NodeProto,
        weight: &TensorProto,
        seen: &Constants,
        new: &mut New,
    ) -> Result<(), Refusal> {
        let gemm = node.op_type == "Gemm";
        let transposed = gemm && int_of(&node, "transB", 0) != 0;
        let alpha = if gemm { float_of(&node, "alpha", 1.0) } else { 1.0 };
        let triple = self.weight(weight, transposed, alpha, &node, new)?;
        let mut source = input(&node, 0).to_owned();
        if gemm && int_of(&node, "transA", 0) != 0 {
            source = self.emit("Transpose", &node, "transposed", &[&source], new);
        }
        let activation = self.activation(&source, new);
        let inputs = [&activation.values, &triple.values, &activation.zero, &triple.zero];
        let product = self.emit("MatMulInteger", &node, "quant", &inputs.map(String::as_str), new);
        let cast = self.emit("Cast", &node, "cast", &[&product], new);
        if let Some(cast) = new.nodes.last_mut() {
            cast.attribute.push(int("to", DataType::Float as i64));
        }
        let scales = self.emit("Mul", &node, "scales", &[&activation.scale, &triple.scale], new);
        let bias = if gemm { self.bias(&node, seen, new) } else { None };
        let result = match &bias {
            Some(_) => self.names.fresh(&format!("{}_scaled", output(&node, 0))),
            None => output(&node, 0).to_owned(),
        };
        let name = self.names.fresh(&format!("{}_rescale", label(&node)));
        new.nodes.push(graph::node("Mul", &name, &[&cast, &scales], &[&result]));
        if let Some(bias) = bias {
            let name = self.names.fresh(&format!("{}_add", label(&node)));
            new.nodes.push(graph::node("Add", &name, &[&result, &bias], &[output(&node, 0)]));
        }
        if gemm {
            self.counts.gemm += 1
        } else {
            self.counts.matmul += 1
        }
        Ok(())
    }

    /// Adds a node of one output, named after `origin`; returns the output's name.
    fn emit(
        &mut self,
        op: &str,
        origin: &NodeProto,
        what: &str,
        inputs: &[&str],
        new: &mut New,
    ) -> String {
        let name = self.names.fresh(&format!("{}_{what}", label(origin)));
        let output = self.names.fresh(&format!("{name}_output"));
        new.nodes.push(graph::node(op, &name, inputs, &[&output]));
        output
    }

    /// The 8-bit form of the activation `name`: computed once however many nodes read it.
    fn activation(&mut self, name: &str, new: &mut New) -> Triple {
        if let Some(triple) = new.activations.get(name) {
            return triple.clone();
        }
        let triple = self.triple(name);
        let node_name = self.names.fresh(&format!("{name}_QuantizeLinear"));
        let outputs = [&triple.values, &triple.scale, &triple.zero];
        new.nodes.push(graph::node(
            "DynamicQuantizeLinear",
            &node_name,
            &[name],
            &outputs.map(String::as_str),
        ));
        new.activations.insert(name.to_owned(), triple.clone());
        triple
    }

    fn triple(&mut self, name: &str) -> Triple {
        Triple {
            values: self.names.fresh(&format!("{name}_quantized")),
            scale: self.names.fresh(&format!("{name}_scale")),
            zero: self.names.fresh(&format!("{name}_zero_point")),
        }
    }

    /// The 8-bit form of `weight`, as [in, out]: made once for all nodes that read it alike.
    fn weight(
        &mut self,
        weight: &TensorProto,
        transposed: bool,
        alpha: f32,
        node: &NodeProto,
        new: &mut New,
    ) -> Result<Triple, Refusal> {
        let key = (weight.name.clone(), transposed, alpha.to_bits());
        if let Some(triple) = new.weights.get(&key) {
            return Ok(triple.clone());
        }
        let mut dims = weight.dims.clone();
        let mut values = weights::to_f32(weight).unwrap_or_default();
        if transposed {
            let width = last(&dims);
            values = transpose(&values, width);
            dims.reverse();
        }
        if alpha != 1.0 {
            values.iter_mut().for_each(|value| *value *= alpha);
        }
        // The runtime takes a scale per column for matrices only.
        let per_channel = self.step.granularity == Granularity::PerChannel && dims.len() == 2;
        let channels = if per_channel { Channels::Last } else { Channels::One };
        let reduced = self.step.reduce_range == ReduceRange::Always;
        let quantized = int8::quantize(&values, last(&dims), channels, reduced)
            .ok_or_else(|| not_finite(&weight.name, node))?;
        let triple = self.triple(&weight.name);
        let shape: &[i64] = if per_channel { &[quantized.scales.len() as i64] } else { &[] };
        let zeros = vec![0_i8; quantized.scales.len()];
        let stored = match self.step.weights {
            WeightType::Unsigned => weights::from_i8_unsigned,
            WeightType::Signed => weights::from_i8,
        };
        new.tensors.push(stored(&triple.values, &dims, &quantized.values));
        new.tensors.push(weights::from_f32(&triple.scale, shape, &quantized.scales));
        new.tensors.push(stored(&triple.zero, shape, &zeros));
        new.weights.insert(key, triple.clone());
        Ok(triple)
    }

    /// The bias of a Gemm, times its beta.
    fn bias(&mut self, node: &NodeProto, seen: &Constants, new: &mut New) -> Option<String> {
        let bias = input(node, 2);
        if bias.is_empty() {
            return None;
        }
        let beta = float_of(node, "beta", 1.0);
        let constant = seen.get(bias).and_then(|tensor| Some((tensor, weights::to_f32(tensor)?)));
        match constant {
            Some((tensor, values)) if beta != 1.0 => {
                let scaled: Vec<f32> = values.iter().map(|value| value * beta).collect();
                let name = self.names.fresh(&format!("{bias}_beta"));
                new.tensors.push(weights::from_f32(&name, &tensor.dims, &scaled));
                Some(name)
            }
            _ => Some(bias.to_owned()),
        }
    }
}

/// The refusal of a weight that cannot be quantized.
pub fn not_finite(weight: &str, node: &NodeProto) -> Refusal {
    let message = format!(
        "weight {} of node {} ({}) holds NaN or an infinity, which cannot be quantized",
        quoted(weight),
        quoted(&node.name),
        node.op_type
    );
    Refusal::new(reason::NOT_FINITE, message)
}

fn label(node: &NodeProto) -> &str {
    if node.name.is_empty() { output(node, 0) } else { &node.name }
}

fn last(dims: &[i64]) -> usize {
    dims.last().and_then(|dim| usize::try_from(*dim).ok()).unwrap_or(1)
}

/// A row-major matrix with rows of `width` numbers, transposed.
fn transpose(values: &[f32], width: usize) -> Vec<f32> {
    let width = width.max(1);
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect()
}
