//! What became of each layer: bits, zeros, and how far its output moved; histograms of what is clipped.
//!
//! Changes nothing and judges nothing. Both models run on a few samples with every value open.

use std::collections::{HashMap, HashSet};

use lithe::artifact::{ActivationReport, LayerReport, StepReport};

use crate::compress::data::Samples;
use crate::compress::metrics;
use crate::onnx::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::{ModelProto, graph, weights};
use crate::runtime::{Options, RuntimeError, Session};
use crate::tensor::{Datatype, Tensor};

/// Samples that the models run on: enough to rank layers, few enough to cost nothing.
const SAMPLES: usize = 8;
/// The most layers of a report.
const MOST_LAYERS: usize = 2000;
/// The most histograms of a report.
const MOST_HISTOGRAMS: usize = 24;
/// The bins of a histogram.
const BINS: usize = 64;
/// The most numbers of one value that are compared.
const MOST_NUMBERS: usize = 1 << 24;

/// What became of the layers.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// The layers with weights, in graph order.
    pub layers: Vec<LayerReport>,
    /// What is kept in 8 bits with fixed ranges.
    pub activations: Vec<ActivationReport>,
}

/// Compares `compressed` with `original` layer by layer, on `samples` where there are any.
pub fn layers(
    original: &ModelProto,
    compressed: &ModelProto,
    steps: &[StepReport],
    samples: Option<&Samples>,
) -> Layers {
    let Some(graph) = &compressed.graph else { return Layers::default() };
    let known: HashSet<&str> = original.graph.iter().flat_map(values).collect();
    let mut layers: Vec<(LayerReport, Pair)> = weighted(graph)
        .into_iter()
        .map(|(layer, output)| (layer, behind(graph, output, &known)))
        .collect();
    let skipped = steps.iter().flat_map(|step| step.skipped.iter().map(move |s| (step, s)));
    for (step, skipped) in skipped {
        for (layer, _) in &mut layers {
            if layer.left_alone.is_none() && skipped.nodes.contains(&layer.name) {
                layer.left_alone = Some(format!("{}: {}", step.name, skipped.reason));
            }
        }
    }
    let ranges = ranges(graph);
    let mut activations = Vec::new();
    if let Some(samples) = samples {
        let pairs: Vec<Pair> = layers.iter().map(|(_, pair)| pair.clone()).collect();
        // Layers without a figure are better than no report.
        if let Ok(seen) = compare((original, compressed), &pairs, samples, &ranges) {
            for (layer, pair) in &mut layers {
                let energies = seen.energies.get(&pair.theirs);
                layer.signal_to_noise =
                    energies.map(|(signal, noise)| metrics::decibels(*signal, *noise));
            }
            activations = seen.histograms;
        }
    }
    Layers { layers: layers.into_iter().map(|(layer, _)| layer).collect(), activations }
}

/// The nodes with weights, and the value that each produces.
fn weighted(graph: &GraphProto) -> Vec<(LayerReport, String)> {
    let constants = graph::constants(graph);
    let producers = graph::producers(graph);
    let layer = |node: &NodeProto| {
        if matches!(node.op_type.as_str(), "DequantizeLinear" | "QuantizeLinear" | "Constant") {
            return None;
        }
        let mut layer = LayerReport { op: node.op_type.clone(), ..LayerReport::default() };
        let (mut zeros, mut bits) = (0, 0);
        for input in &node.input {
            let Some((weight, zero)) = weight(input, graph, &constants, &producers) else {
                continue;
            };
            let count = weights::count(weight);
            // Scales, zero points and shapes are no weights.
            if count < 16 || weight.dims.len() < 2 {
                continue;
            }
            let packed = if node.op_type == "MatMulNBits" { attribute(node, "bits") } else { None };
            let width = packed.unwrap_or_else(|| width(weight));
            let numbers = packed.map_or(count, |bits| count * 8 / bits.max(1));
            layer.parameters += numbers;
            bits += numbers * width;
            zeros += if packed.is_some() { 0 } else { zeros_of(weight, zero) };
        }
        if layer.parameters == 0 {
            return None;
        }
        let output = node.output.first().cloned().unwrap_or_default();
        layer.bits = bits / layer.parameters;
        layer.sparsity = zeros as f64 / layer.parameters as f64;
        layer.name = if node.name.is_empty() { output.clone() } else { node.name.clone() };
        Some((layer, output))
    };
    graph.node.iter().filter_map(layer).take(MOST_LAYERS).collect()
}

/// The values that nodes of `graph` produce.
fn values(graph: &GraphProto) -> impl Iterator<Item = &str> {
    graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str))
}

/// The weight that `input` is, or that is expanded into it, with its zero point.
fn weight<'a>(
    input: &str,
    graph: &'a GraphProto,
    constants: &'a graph::Constants,
    producers: &HashMap<&str, usize>,
) -> Option<(&'a TensorProto, u8)> {
    if let Some(found) = constants.get(input) {
        // Unsigned weights lie around 128.
        let around = if found.data_type == 2 { 128 } else { 0 };
        return Some((found, around));
    }
    let node = graph.node.get(*producers.get(input)?)?;
    if node.op_type != "DequantizeLinear" {
        return None;
    }
    let found = constants.get(node.input.first()?)?;
    let zero = node.input.get(2).and_then(|name| constants.get(name));
    let zero = zero.and_then(|zero| zero.raw_data.first().copied()).unwrap_or_default();
    Some((found, zero))
}

/// A value of the compressed model and the original's that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    ours: String,
    theirs: String,
}

/// The value that stands for the output of a layer: a step puts scales, biases and other types between
/// a product and what the original calls it, and clips it afterwards where an activation was removed.
fn behind(graph: &GraphProto, output: String, known: &HashSet<&str>) -> Pair {
    const BEFORE: [&str; 5] = ["Cast", "Mul", "Add", "QuantizeLinear", "DequantizeLinear"];
    const AFTER: [&str; 2] = ["QuantizeLinear", "DequantizeLinear"];
    let mut pair = Pair { ours: output.clone(), theirs: output };
    for _ in 0..6 {
        let found = known.contains(pair.theirs.as_str());
        let between = if found { &AFTER[..] } else { &BEFORE[..] };
        let mut readers = graph.node.iter().filter(|node| node.input.contains(&pair.ours));
        let next = readers.next().filter(|node| between.contains(&node.op_type.as_str()));
        let Some(output) = next.and_then(|node| node.output.first()) else { break };
        if readers.next().is_some() {
            break;
        }
        pair.ours = output.clone();
        if !found || known.contains(output.as_str()) {
            pair.theirs = output.clone();
        }
    }
    pair
}

fn attribute(node: &NodeProto, name: &str) -> Option<u64> {
    let found = node.attribute.iter().find(|attribute| attribute.name == name)?;
    u64::try_from(found.i).ok()
}

/// Bits of one element.
fn width(tensor: &TensorProto) -> u64 {
    (8 * weights::size(tensor)).checked_div(weights::count(tensor)).unwrap_or(0)
}

fn zeros_of(tensor: &TensorProto, zero: u8) -> u64 {
    let size = usize::try_from(width(tensor) / 8).unwrap_or(0);
    let is_zero = |bytes: &[u8]| match bytes {
        [byte] => *byte == zero,
        // The sign of a zero does not matter.
        bytes => bytes
            .split_last()
            .is_some_and(|(last, rest)| last & 0x7f == 0 && rest.iter().all(|byte| *byte == 0)),
    };
    match size {
        0 => 0,
        size => tensor.raw_data.chunks_exact(size).filter(|bytes| is_zero(bytes)).count() as u64,
    }
}

/// What the integers of each quantized activation can hold.
fn ranges(graph: &GraphProto) -> HashMap<String, (f64, f64)> {
    let constants = graph::constants(graph);
    let number = |name: Option<&String>| {
        let tensor = constants.get(name?)?;
        Some((tensor, weights::to_f32(tensor).and_then(|values| values.first().copied())))
    };
    let range = |node: &NodeProto| {
        let (name, scale) = (node.input.first()?, number(node.input.get(1))?.1?);
        if constants.contains_key(name) {
            return None;
        }
        let zero = number(node.input.get(2)).map(|(tensor, _)| tensor);
        let raw = zero.and_then(|zero| zero.raw_data.first().copied()).unwrap_or_default();
        let signed = zero.is_some_and(|zero| zero.data_type == 3);
        let (low, high, zero) =
            if signed { (-128, 127, i32::from(raw as i8)) } else { (0, 255, i32::from(raw)) };
        let real = |integer: i32| f64::from(integer - zero) * f64::from(scale);
        Some((name.clone(), (real(low), real(high))))
    };
    let quantized = graph.node.iter().filter(|node| node.op_type == "QuantizeLinear");
    quantized.filter_map(range).collect()
}

/// What was seen while both models ran.
#[derive(Default)]
struct Seen {
    /// Energy of signal and noise of each value.
    energies: HashMap<String, (f64, f64)>,
    histograms: Vec<ActivationReport>,
}

fn compare(
    (original, compressed): (&ModelProto, &ModelProto),
    pairs: &[Pair],
    samples: &Samples,
    ranges: &HashMap<String, (f64, f64)>,
) -> Result<Seen, RuntimeError> {
    let theirs = pairs.iter().map(|pair| pair.theirs.clone()).chain(ranges.keys().cloned());
    let before = open(original, &theirs.collect())?;
    let after = open(compressed, &pairs.iter().map(|pair| pair.ours.clone()).collect())?;
    let mut seen = Seen::default();
    let mut limits: HashMap<String, (f64, f64)> = HashMap::new();
    let batch = samples.batch(1);
    let starts: Vec<usize> = (0..samples.count()).step_by(batch).take(SAMPLES).collect();
    for start in &starts {
        let originals = run(&before, samples, *start, batch)?;
        let candidates = run(&after, samples, *start, batch)?;
        for (name, values) in originals.iter().filter(|(name, _)| ranges.contains_key(*name)) {
            let limit = limits.entry(name.clone()).or_insert((f64::INFINITY, f64::NEG_INFINITY));
            for value in values.iter().filter(|value| value.is_finite()) {
                *limit = (limit.0.min(*value), limit.1.max(*value));
            }
        }
        for pair in pairs {
            let both = originals.get(&pair.theirs).zip(candidates.get(&pair.ours));
            let Some((values, other)) = both.filter(|(one, two)| one.len() == two.len()) else {
                continue;
            };
            let energy = seen.energies.entry(pair.theirs.clone()).or_default();
            for (x, y) in values.iter().zip(other) {
                energy.0 += x * x;
                energy.1 += (x - y) * (x - y);
            }
        }
    }
    seen.histograms = histograms(&seen, &limits, ranges);
    for start in &starts {
        let originals = run(&before, samples, *start, batch)?;
        for histogram in &mut seen.histograms {
            let step = (histogram.high - histogram.low) / BINS as f64;
            for value in originals.get(&histogram.name).into_iter().flatten() {
                let bin = ((value - histogram.low) / step).max(0.0) as usize;
                if let Some(count) = histogram.counts.get_mut(bin.min(BINS - 1)) {
                    *count += 1;
                }
            }
        }
    }
    Ok(seen)
}

/// Empty histograms of the activations that suffer most.
fn histograms(
    seen: &Seen,
    limits: &HashMap<String, (f64, f64)>,
    ranges: &HashMap<String, (f64, f64)>,
) -> Vec<ActivationReport> {
    let noise = |name: &str| {
        seen.energies
            .get(name)
            .map_or(metrics::EQUAL_DB, |(signal, noise)| metrics::decibels(*signal, *noise))
    };
    let mut names: Vec<&String> =
        ranges.keys().filter(|name| limits.get(*name).is_some_and(|(a, b)| a < b)).collect();
    names.sort_by(|a, b| noise(a).total_cmp(&noise(b)).then_with(|| a.cmp(b)));
    let empty = |name: &String| {
        let ((low, high), clip) = (*limits.get(name)?, *ranges.get(name)?);
        Some(ActivationReport {
            name: name.clone(),
            low,
            high,
            counts: vec![0; BINS],
            clip_low: clip.0,
            clip_high: clip.1,
        })
    };
    names.into_iter().take(MOST_HISTOGRAMS).filter_map(empty).collect()
}

/// A session of `model` that gives the values `wanted` too, unfused.
fn open(model: &ModelProto, wanted: &HashSet<String>) -> Result<Session, RuntimeError> {
    let mut open = model.clone();
    if let Some(graph) = &mut open.graph {
        let mut named: HashSet<String> =
            graph.output.iter().map(|output| output.name.clone()).collect();
        let values: Vec<String> =
            graph.node.iter().flat_map(|node| node.output.iter().cloned()).collect();
        for name in values {
            if wanted.contains(&name) && named.insert(name.clone()) {
                graph.output.push(ValueInfoProto { name, ..ValueInfoProto::default() });
            }
        }
    }
    let options = Options { threads: 1, optimise: false, spin: false };
    Session::load(&graph::serialise(&open), options)
}

/// The floats that `session` gives for one batch, by name.
fn run(
    session: &Session,
    samples: &Samples,
    start: usize,
    batch: usize,
) -> Result<HashMap<String, Vec<f64>>, RuntimeError> {
    let inputs =
        samples.inputs(start, batch).map_err(|error| RuntimeError::Run(error.to_string()))?;
    let pairs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
    let outputs = session.run(&pairs, &[])?;
    let names = session.outputs().iter().map(|output| output.name.clone());
    let floats = |tensor: &Tensor| {
        let small = tensor.data().len() / 2 <= MOST_NUMBERS;
        let kind = matches!(tensor.datatype(), Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64);
        if kind && small { tensor.to_f64() } else { None }
    };
    Ok(names.zip(&outputs).filter_map(|(name, tensor)| Some((name, floats(tensor)?))).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_tells_bits_and_zeros_of_its_weights() {
        let mut values = vec![1.0_f32; 16];
        values.extend([0.0; 16]);
        values[3] = -0.0;
        let graph = GraphProto {
            node: vec![
                graph::node("MatMul", "dense", &["x", "w"], &["y"]),
                graph::node("DequantizeLinear", "", &["q", "s", "z"], &["d"]),
                graph::node("Conv", "", &["y", "d"], &["c"]),
            ],
            initializer: vec![
                weights::from_f32("w", &[4, 8], &values),
                weights::from_u8("q", &[4, 4], &[[128; 8], [7; 8]].concat()),
                weights::from_f32("s", &[], &[0.5]),
                weights::from_u8("z", &[], &[128]),
            ],
            ..GraphProto::default()
        };
        let found: Vec<_> = weighted(&graph)
            .into_iter()
            .map(|(layer, _)| (layer.name, layer.parameters, layer.bits, layer.sparsity))
            .collect();
        let wanted = [("dense".to_owned(), 32, 32, 17.0 / 32.0), ("c".to_owned(), 16, 8, 0.5)];
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_layer_is_compared_where_the_original_has_a_name_and_after_it_is_clipped() {
        let graph = GraphProto {
            node: vec![
                graph::node("Conv", "", &["x", "w"], &["relu"]),
                graph::node("QuantizeLinear", "", &["relu", "s"], &["q"]),
                graph::node("DequantizeLinear", "", &["q", "s"], &["d"]),
                graph::node("MatMulInteger", "", &["d", "v"], &["i"]),
                graph::node("Cast", "", &["i"], &["f"]),
                graph::node("Mul", "", &["f", "s"], &["y"]),
            ],
            ..GraphProto::default()
        };
        let known = HashSet::from(["conv", "relu", "y"]);
        let pair = |ours: &str, theirs: &str| Pair { ours: ours.into(), theirs: theirs.into() };
        assert_eq!(behind(&graph, "relu".into(), &known), pair("d", "relu"));
        assert_eq!(behind(&graph, "i".into(), &known), pair("y", "y"));
    }

    #[test]
    fn the_range_of_an_activation_is_what_its_integers_hold() {
        let graph = GraphProto {
            node: vec![graph::node("QuantizeLinear", "", &["x", "s", "z"], &["q"])],
            initializer: vec![
                weights::from_f32("s", &[], &[0.5]),
                weights::from_u8("z", &[], &[100]),
            ],
            ..GraphProto::default()
        };
        assert_eq!(ranges(&graph)["x"], (-50.0, 77.5));
    }
}
