//! Ranges of activations, measured by running the model on calibration data.
//!
//! Tensors stream through observers of fixed size, one batch after another, so memory does not grow
//! with the number of samples, and no range but MovingAverage's depends on how samples fall into
//! batches. The runtime is reached only through the [`Feed`] that the caller hands over.

pub mod histogram;
pub mod thresholds;

use std::collections::HashMap;

use lithe::names::reason;
use lithe::recipe::Calibration;

use crate::compress::quantize_static::parameters::Integers;
use crate::onnx::graph::{self, Names};
use crate::onnx::refusal::quoted;
use crate::onnx::{GraphProto, ModelProto, Refusal, ValueInfoProto};
use crate::tensor::{Datatype, Tensor};
use histogram::Histogram;

/// Takes one output of one batch: its name and its value.
pub type Visitor<'a> = &'a mut dyn FnMut(&str, &Tensor) -> Result<(), Refusal>;
/// Runs a model over the calibration samples, hands each output of each batch over in turn, keeps
/// none, and returns how many samples there were.
pub type Feed<'a> = &'a dyn Fn(&ModelProto, Visitor<'_>) -> Result<usize, Refusal>;

/// How far MovingAverage moves towards a batch's range; onnxruntime's `CalibMovingAverageConstant`.
const AVERAGING: f32 = 0.01;

/// What an activation is expected to lie in, both ends included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The lower end.
    pub low: f32,
    /// The upper end, not below the lower one.
    pub high: f32,
}

impl Range {
    /// The range without any value; every value widens it.
    const EMPTY: Self = Self { low: f32::INFINITY, high: f32::NEG_INFINITY };

    /// Zero alone.
    pub const ZERO: Self = Self { low: 0.0, high: 0.0 };

    /// The range with zero in it, as every quantized range has it; of nothing, zero alone.
    pub fn with_zero(self) -> Self {
        Self { low: self.low.min(0.0), high: self.high.max(0.0) }
    }

    fn union(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// The largest magnitude.
    fn reach(self) -> f32 {
        self.low.abs().max(self.high.abs())
    }
}

/// What calibration found.
#[derive(Debug)]
pub struct Measured {
    /// The range of each tensor.
    pub ranges: HashMap<String, Range>,
    /// Samples that were run.
    pub samples: usize,
}

/// How ranges are chosen, and for which integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// How.
    pub calibration: Calibration,
    /// What the ranges are mapped onto.
    pub integers: Integers,
}

/// Measures the ranges of `tensors`, 32-bit floats of the main graph of `model`, by `method`.
///
/// # Errors
/// What `feed` says; `NotFinite` with the tensor's name for NaN or an infinity.
pub fn calibrate(
    model: &ModelProto,
    tensors: &[String],
    method: Method,
    feed: Feed<'_>,
) -> Result<Measured, Refusal> {
    let (watched, names) = watch(model, tensors);
    let averaged = method.calibration == Calibration::MovingAverage;
    let mut ranges: HashMap<String, Range> = HashMap::new();
    let samples = feed(&watched, &mut |name, tensor| {
        let Some(tensor_name) = names.get(name) else { return Ok(()) };
        let seen = extent(tensor_name, tensor)?;
        if seen == Range::EMPTY {
            return Ok(());
        }
        let known = ranges.entry(tensor_name.clone()).or_insert(seen);
        *known = if averaged { average(*known, seen) } else { known.union(seen) };
        Ok(())
    })?;
    if !matches!(method.calibration, Calibration::MinMax | Calibration::MovingAverage) {
        narrow(&watched, &names, &mut ranges, method, feed)?;
    }
    Ok(Measured { ranges, samples })
}

/// `model` with exactly `tensors` as outputs, and which tensor each output shows.
pub fn watch(model: &ModelProto, tensors: &[String]) -> (ModelProto, HashMap<String, String>) {
    let mut watched = model.clone();
    let mut shown = HashMap::new();
    let Some(graph) = &mut watched.graph else { return (watched, shown) };
    let mut names = Names::of(graph);
    graph.output.clear();
    for tensor in tensors {
        let output = show(graph, tensor, &mut names);
        graph.output.push(ValueInfoProto { name: output.clone(), ..ValueInfoProto::default() });
        shown.insert(output, tensor.clone());
    }
    graph::sweep(graph);
    (watched, shown)
}

/// The name under which `tensor` can be an output: an input of the model is copied first.
fn show(graph: &mut GraphProto, tensor: &str, names: &mut Names) -> String {
    if !graph.input.iter().any(|input| input.name == tensor) {
        return tensor.to_owned();
    }
    let copy = names.fresh(&format!("{tensor}_observed"));
    graph.node.push(graph::node("Identity", &copy, &[tensor], &[&copy]));
    copy
}

/// The elements of a tensor of 32-bit floats.
pub fn floats(tensor: &Tensor) -> impl Iterator<Item = f32> {
    let bytes: &[u8] =
        if tensor.datatype() == Datatype::Fp32 { tensor.data().as_ref() } else { &[] };
    let (chunks, _) = bytes.as_chunks::<4>();
    chunks.iter().map(|chunk| f32::from_le_bytes(*chunk))
}

/// The smallest and the largest element.
///
/// # Errors
/// `NotFinite` for NaN or an infinity, with the tensor's `name`.
pub fn extent(name: &str, tensor: &Tensor) -> Result<Range, Refusal> {
    let mut range = Range::EMPTY;
    for value in floats(tensor) {
        if !value.is_finite() {
            return Err(not_finite(name, value));
        }
        range = range.union(Range { low: value, high: value });
    }
    Ok(range)
}

fn not_finite(name: &str, value: f32) -> Refusal {
    let message = format!(
        "calibration gives {value} in tensor {}, which cannot be quantized; take the samples that cause it out of the data, or exclude the nodes that read and write it",
        quoted(name)
    );
    Refusal::new(reason::NOT_FINITE, message)
}

/// One step of the exponential average, in 32 bits as onnxruntime's `MinMaxCalibrater.merge_range`.
fn average(known: Range, seen: Range) -> Range {
    let step = |from: f32, to: f32| from + AVERAGING * (to - from);
    Range { low: step(known.low, seen.low), high: step(known.high, seen.high) }
}

/// Second pass: histograms between the ends of the first, and from them narrower ranges.
fn narrow(
    watched: &ModelProto,
    names: &HashMap<String, String>,
    ranges: &mut HashMap<String, Range>,
    Method { calibration, integers }: Method,
    feed: Feed<'_>,
) -> Result<(), Refusal> {
    let mut histograms: HashMap<&str, Histogram> = ranges
        .iter()
        .filter_map(|(name, range)| Some((name.as_str(), histogram_for(calibration, *range)?)))
        .collect();
    feed(watched, &mut |name, tensor| {
        let Some(histogram) = names.get(name).and_then(|name| histograms.get_mut(name.as_str()))
        else {
            return Ok(());
        };
        for value in floats(tensor) {
            match calibration {
                // Zero is exact whatever the scale, so it says nothing about the best one; counted,
                // the many zeros after a Relu would outweigh all the rest.
                Calibration::Entropy if value == 0.0 => {}
                Calibration::Entropy => histogram.add(value.abs()),
                _ => histogram.add(value),
            }
        }
        Ok(())
    })?;
    let narrowed: Vec<(String, Range)> = histograms
        .iter()
        .filter_map(|(name, histogram)| {
            let seen = *ranges.get(*name)?;
            let found = match calibration {
                Calibration::Percentile => thresholds::percentile(histogram, seen),
                Calibration::MeanSquaredError => {
                    thresholds::mean_squared_error(histogram, seen, integers)
                }
                _ => thresholds::entropy(histogram, seen),
            };
            Some(((*name).to_owned(), found))
        })
        .collect();
    ranges.extend(narrowed);
    Ok(())
}

/// The empty histogram that `method` needs for values in `seen`; `None` where there is nothing to
/// narrow.
fn histogram_for(method: Calibration, seen: Range) -> Option<Histogram> {
    match method {
        Calibration::Percentile => Histogram::new(-seen.reach(), seen.reach()),
        Calibration::Entropy => Histogram::new(0.0, seen.reach()),
        _ => {
            let seen = seen.with_zero();
            Histogram::new(seen.low, seen.high)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::GraphProto;

    const METHODS: [Calibration; 4] = [
        Calibration::MinMax,
        Calibration::Percentile,
        Calibration::Entropy,
        Calibration::MeanSquaredError,
    ];

    fn model() -> ModelProto {
        let value =
            |name: &str| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() };
        ModelProto {
            graph: Some(GraphProto {
                input: vec![value("x")],
                output: vec![value("z")],
                node: vec![
                    graph::node("Relu", "r", &["x"], &["y"]),
                    graph::node("Exp", "e", &["y"], &["z"]),
                ],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    fn measure(values: &[f32], batch: usize, method: Calibration) -> Result<Range, Refusal> {
        let feed = |_: &ModelProto, visit: Visitor<'_>| {
            for chunk in values.chunks(batch) {
                visit("y", &Tensor::from_f32(vec![chunk.len()], chunk).unwrap())?;
            }
            Ok(values.len())
        };
        let method = Method { calibration: method, integers: Integers::Unsigned };
        let measured = calibrate(&model(), &["y".into()], method, &feed)?;
        assert_eq!(measured.samples, values.len());
        Ok(measured.ranges["y"])
    }

    fn values() -> Vec<f32> {
        // A bell with a long tail to the right, without any library.
        (0..20_000_u32)
            .map(|i| {
                let mut bits = i.wrapping_mul(0x9e37_79b9);
                let mut sum = 0.0;
                for _ in 0..6 {
                    bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    sum += (bits >> 8) as f32 / 16_777_216.0 - 0.5;
                }
                if i == 77 { 40.0 } else { sum }
            })
            .collect()
    }

    #[test]
    fn ranges_do_not_depend_on_the_batches() {
        let values = values();
        for method in METHODS {
            let one = measure(&values, 1, method).unwrap();
            assert_eq!(one, measure(&values, 7, method).unwrap(), "{method:?}");
            assert_eq!(one, measure(&values, 20_000, method).unwrap(), "{method:?}");
        }
    }

    #[test]
    fn all_but_minmax_cut_one_far_outlier() {
        let values = values();
        let full = measure(&values, 64, Calibration::MinMax).unwrap();
        assert_eq!(full.high, 40.0);
        for method in [Calibration::Entropy, Calibration::MeanSquaredError] {
            let cut = measure(&values, 64, method).unwrap();
            assert!(cut.high < full.high && cut.low >= full.low, "{method:?} {cut:?}");
        }
    }

    #[test]
    fn the_average_moves_by_a_hundredth() {
        let range = measure(&[1.0, 3.0], 1, Calibration::MovingAverage).unwrap();
        let moved = 1.0 + 0.01_f32 * 2.0;
        assert_eq!(range, Range { low: moved, high: moved });
    }

    #[test]
    fn nan_and_infinity_are_refused_with_the_tensor() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let refusal = measure(&[1.0, bad], 1, Calibration::MinMax).unwrap_err();
            assert_eq!(refusal.reason, reason::NOT_FINITE);
            assert!(refusal.message.contains("\"y\""), "{}", refusal.message);
        }
    }

    #[test]
    fn only_what_is_observed_is_computed() {
        let (watched, shown) = watch(&model(), &["x".into(), "y".into()]);
        let graph = watched.graph.unwrap();
        let ops: Vec<_> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(ops, ["Relu", "Identity"]);
        let outputs: Vec<_> = graph.output.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(outputs, ["x_observed", "y"]);
        assert_eq!(shown["x_observed"], "x");
    }

    #[test]
    fn constant_and_empty_tensors_have_a_range() {
        for method in METHODS {
            assert_eq!(measure(&[0.0; 9], 2, method).unwrap(), Range { low: 0.0, high: 0.0 });
            let same = measure(&[2.5; 9], 2, method).unwrap();
            assert!(same.high > 0.0 && same.high <= 2.5, "{method:?} {same:?}");
        }
    }
}
