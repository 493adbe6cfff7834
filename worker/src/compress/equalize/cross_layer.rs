//! Cross-layer equalisation (Nagel and others, "Data-free quantization", 2019): output channel i of a
//! layer is divided by s_i = sqrt(r1_i / r2_i) and the next layer's input channel i multiplied by it,
//! where r1 and r2 are the largest magnitudes of the two weights, so that both become sqrt(r1_i r2_i).
//! Only through what is positively homogeneous channel by channel; Relu6, Gelu and others are not.

use std::collections::{HashMap, HashSet};

use super::{reach, scale};
use crate::compress::change::Change;
use crate::onnx::graph::{self, Constants, input, int_of, output};
use crate::onnx::{DataType, GraphProto, ModelProto, NodeProto, Refusal, operators, weights};

/// Rounds after which the scales are taken as they are: a chain of layers settles in some of them.
const ROUNDS: usize = 40;
/// A round whose factors are all within this of 1 is the last.
const SETTLED: f32 = 1e-3;

/// Two layers that share channels.
struct Pair {
    /// The first layer's weight and the axis of its output channels.
    first: (String, usize),
    /// Vectors that are added to its channels: its bias, and those of Add nodes behind it.
    biases: Vec<String>,
    /// The second layer's weight and the axis of its input channels.
    second: (String, usize),
}

/// Equalises every pair of layers of the main graph of `model`.
pub fn equalize(
    mut model: ModelProto,
    exclude: &[String],
) -> Result<(ModelProto, Change), Refusal> {
    let mut change = Change::default();
    let Some(mut main) = model.graph.take() else { return Ok((model, change)) };
    let pairs = pairs(&main, exclude, &mut change);
    change.did(pairs.len() as u64, "pairs of layers equalised");
    change
        .matched_something("equalize.crosslayer", "pair of layers with only ReLU between them")?;
    let mut places: HashMap<String, usize> = HashMap::new();
    for (at, tensor) in main.initializer.iter().enumerate() {
        places.insert(tensor.name.clone(), at);
    }
    for _ in 0..ROUNDS {
        let mut furthest = 0.0_f32;
        for pair in &pairs {
            furthest = furthest.max(balance(&mut main, &places, pair));
        }
        if furthest < SETTLED {
            break;
        }
    }
    model.graph = Some(main);
    Ok((model, change))
}

/// Gives both layers of `pair` equal ranges; returns how far its factors were from 1.
fn balance(graph: &mut GraphProto, places: &HashMap<String, usize>, pair: &Pair) -> f32 {
    let tensor = |name: &str| places.get(name).and_then(|at| graph.initializer.get(*at));
    let reaches = |(name, axis): &(String, usize)| tensor(name).map(|tensor| reach(tensor, *axis));
    let Some((first, second)) = reaches(&pair.first).zip(reaches(&pair.second)) else { return 0.0 };
    let factor = |(a, b): (&f32, &f32)| {
        let factor = (f64::from(*a) / f64::from(*b)).sqrt() as f32;
        // A channel of zeros has no range to share.
        if factor.is_normal() && (1.0 / factor).is_normal() { factor } else { 1.0 }
    };
    let factors: Vec<f32> = first.iter().zip(&second).map(factor).collect();
    let inverse: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
    let mut change = |name: &str, axis: usize, factors: &[f32]| {
        if let Some(tensor) = places.get(name).and_then(|at| graph.initializer.get_mut(*at)) {
            scale(tensor, axis, factors);
        }
    };
    change(&pair.first.0, pair.first.1, &inverse);
    for bias in &pair.biases {
        change(bias, 0, &inverse);
    }
    change(&pair.second.0, pair.second.1, &factors);
    factors.iter().fold(0.0, |furthest, factor| furthest.max((factor - 1.0).abs()))
}

fn pairs(graph: &GraphProto, exclude: &[String], change: &mut Change) -> Vec<Pair> {
    let walk = Walk {
        seen: graph::constants(graph),
        readers: graph::readers(graph),
        consumers: consumers(graph),
        outputs: graph.output.iter().map(|output| output.name.as_str()).collect(),
        exclude,
    };
    let mut pairs = Vec::new();
    for node in graph.node.iter().filter(|node| is_layer(node)) {
        match walk.pair(node) {
            Ok(pair) => pairs.push(pair),
            Err(why) => change.skip(node, why),
        }
    }
    pairs
}

fn is_layer(node: &NodeProto) -> bool {
    ["Conv", "Gemm", "MatMul"].iter().any(|op| operators::is(node, op))
}

fn consumers(graph: &GraphProto) -> HashMap<&str, &NodeProto> {
    graph
        .node
        .iter()
        .flat_map(|node| node.input.iter().map(move |name| (name.as_str(), node)))
        .collect()
}

struct Walk<'a> {
    seen: Constants,
    readers: HashMap<String, usize>,
    consumers: HashMap<&'a str, &'a NodeProto>,
    outputs: HashSet<&'a str>,
    exclude: &'a [String],
}

impl Walk<'_> {
    /// The pair that begins with `node`, or why there is none.
    fn pair(&self, node: &NodeProto) -> Result<Pair, &'static str> {
        if self.exclude.contains(&node.name) {
            return Err("excluded by the recipe");
        }
        let first = self.weight(node)?;
        let axis = match node.op_type.as_str() {
            "Conv" => 0,
            "Gemm" => usize::from(int_of(node, "transB", 0) == 0),
            _ => 1,
        };
        let channels = first.get(axis).copied().unwrap_or(0);
        let mut biases = Vec::new();
        if !input(node, 2).is_empty() {
            biases.push(self.vector(input(node, 2), channels)?);
        }
        let convolves = operators::is(node, "Conv");
        let mut tensor = output(node, 0);
        loop {
            if self.readers.get(tensor) != Some(&1) || self.outputs.contains(tensor) {
                return Err("its result is read by more than one node");
            }
            let Some(next) = self.consumers.get(tensor) else {
                return Err("its result is read in the body of an If, Loop or Scan");
            };
            if is_layer(next) {
                if self.exclude.contains(&next.name) || input(next, 0) != tensor {
                    return Err("the next layer is excluded or reads it as a weight");
                }
                let second = self.second(next, channels)?;
                return Ok(Pair { first: (input(node, 1).to_owned(), axis), biases, second });
            }
            if operators::is(next, "Add") && !convolves {
                let other = usize::from(input(next, 0) == tensor);
                biases.push(self.vector(input(next, other), channels)?);
            } else if !passes(next, convolves) {
                return Err("between it and the next layer stands more than ReLU or pooling");
            }
            tensor = output(next, 0);
        }
    }

    /// The weight of the second layer and the axis of its input channels.
    fn second(&self, node: &NodeProto, channels: i64) -> Result<(String, usize), &'static str> {
        let dims = self.weight(node)?;
        let group = int_of(node, "group", 1);
        let axis = match node.op_type.as_str() {
            "Conv" if group == 1 => 1,
            // A depthwise kernel: one input channel makes one output channel.
            "Conv" if group == channels && dims.first() == Some(&channels) => 0,
            "Conv" => return Err("the next layer has groups of several channels"),
            "Gemm" if int_of(node, "transA", 0) != 0 => return Err("the next layer transposes it"),
            "Gemm" => usize::from(int_of(node, "transB", 0) != 0),
            _ => 0,
        };
        if dims.get(axis) != Some(&channels) {
            return Err("the next layer does not read channel by channel");
        }
        Ok((input(node, 1).to_owned(), axis))
    }

    /// The dimensions of the weight of `node`, which only it reads.
    fn weight(&self, node: &NodeProto) -> Result<&[i64], &'static str> {
        let weight = self.seen.get(input(node, 1)).ok_or("its weights are computed")?;
        if weight.data_type != DataType::Float as i32 {
            return Err("its weights are not 32-bit floats");
        }
        if self.readers.get(&weight.name) != Some(&1) {
            return Err("its weights are read by other nodes too");
        }
        let rank = weight.dims.len();
        let fits = if operators::is(node, "Conv") { rank >= 3 } else { rank == 2 };
        if fits { Ok(&weight.dims) } else { Err("its weights are no matrix or kernel") }
    }

    /// A constant vector of `channels` numbers that only one node reads.
    fn vector(&self, name: &str, channels: i64) -> Result<String, &'static str> {
        let alone = self.readers.get(name) == Some(&1);
        let vector = self.seen.get(name).filter(|tensor| {
            tensor.dims == [channels] && weights::to_f32(tensor).is_some() && alone
        });
        let vector = vector.ok_or("what is added to it is no vector of its own")?;
        Ok(vector.name.clone())
    }
}

/// Whether `node` hands channels on one by one, positively homogeneous. Behind a convolution
/// (`convolves`) channels lie on axis 1, behind a product on the last.
fn passes(node: &NodeProto, convolves: bool) -> bool {
    const EACH: [&str; 2] = ["Relu", "LeakyRelu"];
    const POOLS: [&str; 3] = ["MaxPool", "AveragePool", "GlobalAveragePool"];
    let is = |op: &&str| operators::is(node, op);
    // The second layer's own check tells whether Flatten kept the channels apart.
    EACH.iter().any(&is)
        || (convolves && (POOLS.iter().any(&is) || is(&"Flatten")))
        || is(&"Dropout")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::ValueInfoProto;

    fn model(nodes: Vec<NodeProto>) -> ModelProto {
        let value = |name: &str| ValueInfoProto { name: name.into(), ..ValueInfoProto::default() };
        let graph = GraphProto {
            input: vec![value("x")],
            output: vec![value("y")],
            node: nodes,
            initializer: vec![
                weights::from_f32("a", &[2, 1, 1, 1], &[8.0, 0.5]),
                weights::from_f32("b", &[2], &[16.0, 1.0]),
                weights::from_f32("c", &[1, 2, 1, 1], &[2.0, -2.0]),
            ],
            ..GraphProto::default()
        };
        ModelProto { graph: Some(graph), ..ModelProto::default() }
    }

    fn floats(model: &ModelProto, name: &str) -> Vec<f32> {
        let tensors = &model.graph.as_ref().unwrap().initializer;
        weights::to_f32(tensors.iter().find(|tensor| tensor.name == name).unwrap()).unwrap()
    }

    #[test]
    fn both_layers_get_the_geometric_mean_of_their_ranges() {
        let nodes = vec![
            graph::node("Conv", "p", &["x", "a", "b"], &["t"]),
            graph::node("Relu", "r", &["t"], &["u"]),
            graph::node("Conv", "q", &["u", "c"], &["y"]),
        ];
        let (model, change) = equalize(model(nodes), &[]).unwrap();
        assert_eq!(floats(&model, "a"), [4.0, 1.0]);
        assert_eq!(floats(&model, "b"), [8.0, 2.0]);
        assert_eq!(floats(&model, "c"), [4.0, -1.0]);
        assert_eq!(change.summary(), "1 pairs of layers equalised");
    }

    #[test]
    fn what_is_not_homogeneous_or_read_twice_keeps_its_weights() {
        for (op, more) in [("Sigmoid", vec![]), ("Relu", vec!["t"])] {
            let mut nodes = vec![
                graph::node("Conv", "p", &["x", "a", "b"], &["t"]),
                graph::node(op, "r", &["t"], &["u"]),
                graph::node("Conv", "q", &["u", "c"], &["v"]),
            ];
            let mut last = vec!["v"];
            last.extend(more);
            nodes.push(graph::node("Concat", "s", &last, &["y"]));
            let refusal = equalize(model(nodes), &[]).unwrap_err();
            assert!(refusal.message.contains("matched 0 of 2"), "{}", refusal.message);
        }
    }
}
