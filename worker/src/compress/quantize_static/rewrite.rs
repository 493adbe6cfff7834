//! Writes what [`super::placement`] decided: pairs of QuantizeLinear and DequantizeLinear around
//! 8-bit nodes, weights and biases as integers with a DequantizeLinear. Names are those that
//! `onnxruntime.quantization` gives.

use std::collections::{HashMap, HashSet};

use lithe::recipe::{Quantize, Target, WeightType};

use super::parameters::{self, Activation, Integers};
use super::placement::{self, Pair, Placement, Role};
use super::weight::{Rounded, Weight};
use crate::compress::calibrate::Range;
use crate::compress::change::not_finite;
use crate::onnx::graph::{self, Constants, Names, input, int, output};
use crate::onnx::refusal::quoted;
use crate::onnx::{GraphProto, NodeProto, Refusal, TensorProto, weights};

/// What was decided before anything is written.
#[derive(Clone, Copy)]
pub struct Decided<'a> {
    /// The constants of the graph.
    pub seen: &'a Constants,
    /// Which nodes and tensors.
    pub placement: &'a Placement,
    /// The range of every tensor of `placement` that has its own.
    pub ranges: &'a HashMap<String, Range>,
    /// The recipe's step, with nothing left open that the target decides.
    pub step: &'a Quantize,
    /// Where the model will run.
    pub target: Target,
    /// Integers that were not rounded to the nearest.
    pub rounded: &'a Rounded,
}

/// Rewrites `graph` as it was `decided`.
///
/// # Errors
/// `NotFinite` for a weight or constant that is NaN or infinite.
pub fn rewrite(graph: &mut GraphProto, decided: Decided<'_>) -> Result<(), Refusal> {
    let Decided { placement, ranges, target, .. } = decided;
    let integers = Integers::of(target);
    let mut names = Names::of(graph);
    let outputs: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let mut pairs: HashMap<String, Placed> = HashMap::new();
    for pair in &placement.pairs {
        let placed = match pairs.get(&pair.like) {
            Some(root) => root.like(pair, &outputs, &mut names),
            None => {
                // A tensor that calibration never filled holds nothing that could be lost.
                let range = ranges.get(&pair.tensor).copied().unwrap_or(Range::ZERO);
                Placed::new(pair, Activation::of(range, integers), &outputs, &mut names)
            }
        };
        pairs.insert(pair.tensor.clone(), placed);
    }
    // Whoever else reads what an 8-bit kernel makes, bodies included, reads the only form there is.
    let elsewhere = pairs
        .iter()
        .filter(|(name, placed)| placed.made && **name != placed.floats)
        .map(|(name, placed)| (name.clone(), placed.floats.clone()))
        .collect();
    let mut rewriter = Rewriter {
        decided,
        integers,
        names,
        pairs,
        elsewhere,
        tensors: Vec::new(),
        nodes: Vec::new(),
        constants: HashMap::new(),
        weights: HashMap::new(),
    };
    for pair in placement.pairs.iter().filter(|pair| pair.like == pair.tensor) {
        rewriter.store_parameters(&pair.tensor);
    }
    let nodes = std::mem::take(&mut graph.node);
    let inputs: Vec<&str> = graph.input.iter().map(|input| input.name.as_str()).collect();
    inputs.iter().for_each(|name| rewriter.pair(name));
    let renames: HashMap<String, String> = nodes
        .iter()
        .zip(&placement.roles)
        .filter(|(_, role)| **role == Some(Role::Removed))
        .map(|(node, _)| (input(node, 0).to_owned(), output(node, 0).to_owned()))
        .collect();
    for (node, role) in nodes.into_iter().zip(&placement.roles) {
        rewriter.node(node, *role, &renames)?;
    }
    graph.node = rewriter.nodes;
    graph.initializer.extend(rewriter.tensors);
    Ok(())
}

/// The names and numbers of a pair.
#[derive(Clone, Debug)]
struct Placed {
    /// What QuantizeLinear reads.
    source: String,
    /// The integers.
    integers: String,
    /// What comes out of DequantizeLinear.
    floats: String,
    scale: String,
    zero: String,
    activation: Activation,
    made: bool,
}

impl Placed {
    fn new(
        pair: &Pair,
        activation: Activation,
        outputs: &HashSet<String>,
        names: &mut Names,
    ) -> Self {
        let tensor = &pair.tensor;
        let scale = names.fresh(&format!("{tensor}_scale"));
        let zero = names.fresh(&format!("{tensor}_zero_point"));
        Self::with(pair, (scale, zero, activation), outputs, names)
    }

    /// The same parameters for another tensor.
    fn like(&self, pair: &Pair, outputs: &HashSet<String>, names: &mut Names) -> Self {
        let parameters = (self.scale.clone(), self.zero.clone(), self.activation);
        Self::with(pair, parameters, outputs, names)
    }

    fn with(
        pair: &Pair,
        (scale, zero, activation): (String, String, Activation),
        outputs: &HashSet<String>,
        names: &mut Names,
    ) -> Self {
        let tensor = &pair.tensor;
        // The model's own output keeps its name: it comes out of DequantizeLinear.
        let last = pair.made && outputs.contains(tensor);
        let source = if last {
            names.fresh(&format!("{tensor}_QuantizeLinear_Input"))
        } else {
            tensor.clone()
        };
        let floats = if last {
            tensor.clone()
        } else {
            names.fresh(&format!("{tensor}_DequantizeLinear_Output"))
        };
        let integers = names.fresh(&format!("{tensor}_QuantizeLinear_Output"));
        Self { source, integers, floats, scale, zero, activation, made: pair.made }
    }
}

/// A weight's integers: the names of the tensor and of its parameters, and the scales.
#[derive(Clone, Debug)]
struct Stored {
    integers: String,
    scale: String,
    zero: String,
    scales: Vec<f32>,
}

struct Rewriter<'a> {
    decided: Decided<'a>,
    integers: Integers,
    names: Names,
    pairs: HashMap<String, Placed>,
    /// What readers in floats read in place of a tensor.
    elsewhere: HashMap<String, String>,
    tensors: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
    /// Constants of Add, Mul and Concat, and the floats that came out of their integers.
    constants: HashMap<String, String>,
    weights: HashMap<(String, Option<usize>, u32, Vec<u32>), Stored>,
}

impl Rewriter<'_> {
    fn store_parameters(&mut self, tensor: &str) {
        let Some(placed) = self.pairs.get(tensor) else { return };
        let Activation { scale, zero, integers } = placed.activation;
        self.tensors.push(weights::from_f32(&placed.scale, &[], &[scale]));
        self.tensors.push(integers.tensor(&placed.zero, &[], &[zero]));
    }

    /// Adds QuantizeLinear and DequantizeLinear for `tensor`, if it has a pair.
    fn pair(&mut self, tensor: &str) {
        let Some(placed) = self.pairs.get(tensor).cloned() else { return };
        let Placed { source, integers, floats, scale, zero, .. } = &placed;
        let name = self.names.fresh(&format!("{tensor}_QuantizeLinear"));
        self.nodes.push(graph::node("QuantizeLinear", &name, &[source, scale, zero], &[integers]));
        self.dequantize(tensor, [integers, scale, zero], floats, None);
    }

    fn dequantize(&mut self, tensor: &str, inputs: [&str; 3], floats: &str, axis: Option<usize>) {
        let name = self.names.fresh(&format!("{tensor}_DequantizeLinear"));
        let mut node = graph::node("DequantizeLinear", &name, &inputs, &[floats]);
        node.attribute.extend(axis.map(|axis| int("axis", axis as i64)));
        self.nodes.push(node);
    }

    fn node(
        &mut self,
        mut node: NodeProto,
        role: Option<Role>,
        renames: &HashMap<String, String>,
    ) -> Result<(), Refusal> {
        let made: Vec<String> = node.output.clone();
        match role {
            Some(Role::Removed) => {
                // Its producer already has its output's name and stands before it.
                made.iter().for_each(|name| self.pair(name));
                return Ok(());
            }
            Some(Role::Conv | Role::Product) => self.weigh(&mut node)?,
            Some(Role::Joint) => self.join(&mut node)?,
            Some(Role::Through) => {}
            None => {
                let mut alone = GraphProto { node: vec![node], ..GraphProto::default() };
                graph::redirect(&mut alone, &self.elsewhere);
                node = alone.node.pop().unwrap_or_default();
            }
        }
        if let Some(role) = role {
            let slots = placement::data_inputs(&node, role);
            for name in node.input.iter_mut().take(slots.end) {
                if let Some(placed) = self.pairs.get(name) {
                    name.clone_from(&placed.floats);
                }
            }
            for name in &mut node.output {
                let name_now = renames.get(name).unwrap_or(name).clone();
                match self.pairs.get(&name_now) {
                    Some(placed) => name.clone_from(&placed.source),
                    None => *name = name_now,
                }
            }
        }
        self.nodes.push(node);
        made.iter().filter(|name| !renames.contains_key(*name)).for_each(|name| self.pair(name));
        Ok(())
    }

    /// Gives the constant inputs of `node` their 8-bit form.
    fn join(&mut self, node: &mut NodeProto) -> Result<(), Refusal> {
        for at in 0..node.input.len() {
            let name = input(node, at).to_owned();
            let Some(tensor) = self.decided.seen.get(&name) else { continue };
            let floats = match self.constants.get(&name) {
                Some(floats) => floats.clone(),
                None => self.constant(tensor, node)?,
            };
            self.constants.insert(name, floats.clone());
            if let Some(input) = node.input.get_mut(at) {
                *input = floats;
            }
        }
        Ok(())
    }

    fn constant(&mut self, tensor: &TensorProto, node: &NodeProto) -> Result<String, Refusal> {
        let values = weights::to_f32(tensor).unwrap_or_default();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(not_finite(&tensor.name, node));
        }
        let low = values.iter().copied().fold(0.0, f32::min);
        let high = values.iter().copied().fold(0.0, f32::max);
        let activation = Activation::of(Range { low, high }, self.integers);
        let integers: Vec<i16> = values.iter().map(|value| activation.quantize(*value)).collect();
        let name = &tensor.name;
        let [q, scale, zero, floats] =
            ["quantized", "scale", "zero_point", "DequantizeLinear_Output"]
                .map(|what| self.names.fresh(&format!("{name}_{what}")));
        self.tensors.push(self.integers.tensor(&q, &tensor.dims, &integers));
        self.tensors.push(weights::from_f32(&scale, &[], &[activation.scale]));
        self.tensors.push(self.integers.tensor(&zero, &[], &[activation.zero]));
        self.dequantize(name, [&q, &scale, &zero], &floats, None);
        Ok(floats)
    }

    /// Gives weight and bias of `node` their integer forms.
    fn weigh(&mut self, node: &mut NodeProto) -> Result<(), Refusal> {
        let Decided { seen, step, target, .. } = self.decided;
        let Some(tensor) = seen.get(input(node, 1)) else { return Ok(()) };
        let Some(input_scale) = self.pairs.get(input(node, 0)).map(|p| p.activation.scale) else {
            return Ok(());
        };
        let weight = Weight::of(node, tensor, seen, (step, target, input_scale))?;
        let stored = self.store(&weight);
        let floats = self.names.fresh(&format!("{}_DequantizeLinear_Output", weight.name));
        let inputs = [&stored.integers, &stored.scale, &stored.zero].map(String::as_str);
        self.dequantize(&weight.name, inputs, &floats, weight.axis);
        if let Some(input) = node.input.get_mut(1) {
            *input = floats;
        }
        if let Some(bias) = &weight.bias {
            let name = input(node, 2).to_owned();
            let floats = match target {
                Target::TensorRT => self.float_bias(&name, bias, seen),
                _ => self.bias(&name, bias, (input_scale, &stored.scales), node)?,
            };
            if let Some(input) = node.input.get_mut(2) {
                *input = floats;
            }
        }
        // Both are in the integers now; 8-bit Gemm takes no beta.
        node.attribute.retain(|a| a.name != "alpha" && a.name != "beta");
        Ok(())
    }

    /// Stores the integers of `weight`, once for all nodes that read it alike.
    fn store(&mut self, weight: &Weight) -> Stored {
        let bits: Vec<u32> = weight.scales.iter().map(|scale| scale.to_bits()).collect();
        let key = (weight.name.clone(), weight.axis, weight.alpha.to_bits(), bits);
        if let Some(stored) = self.weights.get(&key) {
            return stored.clone();
        }
        let [integers, scale, zero] = ["quantized", "scale", "zero_point"]
            .map(|what| self.names.fresh(&format!("{}_{what}", weight.name)));
        let scales = weight.scales.clone();
        let count = [scales.len() as i64];
        let shape: &[i64] = if weight.axis.is_some() { &count } else { &[] };
        let from = match self.decided.step.weights.unwrap_or_default() {
            WeightType::Unsigned => weights::from_i8_unsigned,
            WeightType::Signed => weights::from_i8,
        };
        let values = weight.integers(self.decided.rounded);
        self.tensors.push(from(&integers, &weight.dims, &values));
        self.tensors.push(weights::from_f32(&scale, shape, &scales));
        self.tensors.push(from(&zero, shape, &vec![0; scales.len()]));
        let stored = Stored { integers, scale, zero, scales };
        self.weights.insert(key, stored.clone());
        stored
    }

    /// A bias that stays in floats: the tensor there is, unless beta changed its numbers.
    fn float_bias(&mut self, name: &str, bias: &[f32], seen: &Constants) -> String {
        if seen.get(name).and_then(weights::to_f32).is_some_and(|floats| floats == bias) {
            return name.to_owned();
        }
        let scaled = self.names.fresh(&format!("{name}_beta"));
        self.tensors.push(weights::from_f32(&scaled, &[bias.len() as i64], bias));
        scaled
    }

    /// Stores a bias as 32-bit integers; returns the floats that come out of them.
    fn bias(
        &mut self,
        name: &str,
        bias: &[f32],
        (input_scale, weight_scales): (f32, &[f32]),
        node: &NodeProto,
    ) -> Result<String, Refusal> {
        let (integers, scales) = parameters::quantize_bias(bias, input_scale, weight_scales);
        if scales.iter().any(|scale| !(*scale > 0.0 && scale.is_finite())) {
            return Err(crate::compress::change::recipe_invalid(format!(
                "the scale of bias {} of node {} ({}) leaves the range of 32-bit floats; exclude the node",
                quoted(name),
                quoted(&node.name),
                node.op_type
            )));
        }
        let [q, scale, zero, floats] =
            ["quantized", "quantized_scale", "quantized_zero_point", "DequantizeLinear_Output"]
                .map(|what| self.names.fresh(&format!("{name}_{what}")));
        let per_channel = scales.len() > 1;
        let count = [scales.len() as i64];
        let shape: &[i64] = if per_channel { &count } else { &[] };
        self.tensors.push(weights::from_i32(&q, &[integers.len() as i64], &integers));
        self.tensors.push(weights::from_f32(&scale, shape, &scales));
        self.tensors.push(weights::from_i32(&zero, shape, &vec![0; scales.len()]));
        self.dequantize(name, [&q, &scale, &zero], &floats, per_channel.then_some(0));
        Ok(floats)
    }
}
