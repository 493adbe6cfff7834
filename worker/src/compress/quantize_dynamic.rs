//! The step `quantize: {mode: Dynamic}`: MatMul, Gemm and LSTM multiply 8-bit integers, embedding tables
//! are 8-bit with a scale per row; of Conv only the weights are, since the runtime's dynamic 8-bit Conv is
//! several times slower than its float one. Nodes and numbers are those of
//! `onnxruntime.quantization.quantize_dynamic`, which the runtime fuses; `weights: Unsigned` stores each
//! number plus 128, with a zero point of 128.

use std::collections::HashMap;

use lithe::recipe::{Convolutions, Embeddings, Granularity, Quantize, ReduceRange, WeightType};

use crate::compress::change::{Change, not_finite, recipe_invalid};
use crate::compress::convolutions::OPERATORS;
use crate::compress::int8::{self, Layout};
use crate::compress::products::{self, Form, label};
use crate::compress::{convolutions, embeddings, exclude, lstm, normalise, opset};
use crate::onnx::graph::{self, Constants, Names, input, int, output};
use crate::onnx::{
    DataType, GraphProto, ModelProto, NodeProto, Refusal, TensorProto, operators, weights,
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
    exclude::check(&model, &step.exclude)?;
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
    change.did(counts.lstm, "LSTM");
    change.did(counts.gather, "Gather");
    change.did(counts.conv, "convolutions (weights only)");
    change.matched_something("quantize.dynamic", "MatMul, Gemm, LSTM or embedding")?;
    if counts.lstm > 0 {
        operators::import(&mut model, lstm::DOMAIN, 1);
    }
    Ok((model, change))
}

#[derive(Clone, Copy, Default)]
struct Counts {
    matmul: u64,
    gemm: u64,
    lstm: u64,
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
                    match products::weight(&node, seen, excluded) {
                        Ok(weight) => self.replace(node, weight, seen, &mut new)?,
                        Err(why) => {
                            change.skip(&node, why);
                            new.nodes.push(node);
                        }
                    }
                }
                "Conv" | "ConvTranspose" if self.step.convolutions == Convolutions::Keep => {
                    change.skip(&node, SLOW_CONVOLUTION);
                    new.nodes.push(node);
                }
                "LSTM" if operators::is(&node, "LSTM") => {
                    let names = &mut self.names;
                    match lstm::quantize(&node, seen, self.step, names, &mut new.tensors)? {
                        Ok(quantized) => {
                            new.nodes.push(quantized);
                            self.counts.lstm += 1;
                        }
                        Err(why) => {
                            change.skip(&node, why);
                            new.nodes.push(node);
                        }
                    }
                }
                "GRU" | "RNN" | "Attention" => {
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
                convolutions::store(graph, seen, self.step, &OPERATORS, &mut self.names, change)?;
        }
        Ok(())
    }

    /// DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul [-> Add].
    fn replace(
        &mut self,
        node: NodeProto,
        weight: &TensorProto,
        seen: &Constants,
        new: &mut New,
    ) -> Result<(), Refusal> {
        let form = products::form(&node);
        let triple = self.weight(weight, form, &node, new)?;
        let mut source = input(&node, 0).to_owned();
        if form.transposed_input {
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
        let bias = products::bias(&node, seen, &mut self.names, &mut new.tensors);
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
        if form.gemm {
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
        form: Form,
        node: &NodeProto,
        new: &mut New,
    ) -> Result<Triple, Refusal> {
        let key = form.key(weight);
        if let Some(triple) = new.weights.get(&key) {
            return Ok(triple.clone());
        }
        let (values, dims) = products::matrix(weight, form);
        // The runtime takes a scale per column for matrices only.
        let per_channel = self.step.granularity == Granularity::PerChannel && dims.len() == 2;
        let layout = Layout::of(&dims, per_channel.then_some(1));
        let reduced = self.step.reduce_range == Some(ReduceRange::Always);
        let quantized = int8::quantize(&values, layout, reduced)
            .ok_or_else(|| not_finite(&weight.name, node))?;
        let triple = self.triple(&weight.name);
        let shape: &[i64] = if per_channel { &[quantized.scales.len() as i64] } else { &[] };
        let zeros = vec![0_i8; quantized.scales.len()];
        let stored = match self.step.weights.unwrap_or_default() {
            WeightType::Unsigned => weights::from_i8_unsigned,
            WeightType::Signed => weights::from_i8,
        };
        new.tensors.push(stored(&triple.values, &dims, &quantized.values));
        new.tensors.push(weights::from_f32(&triple.scale, shape, &quantized.scales));
        new.tensors.push(stored(&triple.zero, shape, &zeros));
        new.weights.insert(key, triple.clone());
        Ok(triple)
    }
}
