//! Runs a model over the evaluation split and judges its outputs beside the original's.

use lithe::artifact::TensorSignature;
use lithe::names::reason;
use lithe::recipe::{Evaluation, Metric};

use crate::compress::data::Samples;
use crate::compress::metrics::{self, Rows};
use crate::onnx::Refusal;
use crate::onnx::refusal::quoted;
use crate::runtime::{RuntimeError, Session};
use crate::tensor::{Datatype, Tensor};

/// Samples per inference when the recipe does not say. One, as a request is: dynamic quantization
/// takes one range for a whole batch, so that a larger batch would judge another model than served.
const BATCH: u32 = 1;
/// Numbers of judged output that are kept: 2 GiB of them.
const MOST_NUMBERS: usize = 1 << 28;

/// What and how to judge.
pub struct Judge<'a> {
    /// The samples.
    pub samples: &'a Samples,
    /// The judged output.
    pub output: String,
    /// The metric.
    pub metric: Metric,
    /// The labels as numbers; empty without labels.
    labels: Vec<f64>,
    batch: usize,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The metric's value for the original.
    pub original: f64,
    /// The metric's value for the candidate.
    pub value: f64,
    /// The share of samples with the same choice.
    pub agreement: f64,
    /// The mean cosine with the original's outputs.
    pub cosine: f64,
    /// The signal-to-noise ratio in dB; `None` where the outputs are equal.
    pub signal_to_noise: Option<f64>,
    /// How far the metric fell, in points (positive is worse), with the half width of the 95 %
    /// interval over paired samples where the metric is a mean over samples.
    pub drop: (f64, Option<f64>),
    /// Samples that were judged.
    pub samples: usize,
    /// Samples where the candidate gives NaN or an infinity and the original does not.
    pub broken: usize,
}

fn data_invalid(message: String) -> Refusal {
    Refusal::new(reason::DATA_INVALID, message)
}

fn run_failed(error: &RuntimeError) -> Refusal {
    let text: String =
        error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    data_invalid(format!("the model does not run on the evaluation data: {text}"))
}

impl<'a> Judge<'a> {
    /// Chooses the output and reads the labels.
    pub fn new(
        samples: &'a Samples,
        outputs: &[TensorSignature],
        metric: Metric,
        evaluation: Option<&Evaluation>,
    ) -> Result<Self, Refusal> {
        let wanted = evaluation.and_then(|evaluation| evaluation.output.as_deref());
        let output = judged_output(outputs, wanted)?;
        let labels = match (metric.needs_labels(), samples.label()) {
            (true, None) => {
                return Err(data_invalid(format!(
                    "metric {metric:?} needs an array named label, and there is none"
                )));
            }
            (true, Some(label)) => labels(label, samples.count())?,
            (false, _) => Vec::new(),
        };
        let batch = evaluation.and_then(|evaluation| evaluation.batch_size).unwrap_or(BATCH);
        let batch = samples.batch(batch as usize);
        Ok(Self { samples, output, metric, labels, batch })
    }

    /// The judged outputs of `session` for every sample.
    pub fn outputs(&self, session: &Session) -> Result<Rows, Refusal> {
        let mut rows = Rows { values: Vec::new(), width: 0, classes: false };
        let mut start = 0;
        while start < self.samples.count() {
            let length = self.batch.min(self.samples.count() - start);
            let inputs = self.samples.inputs(start, length);
            let pairs: Vec<(&str, &Tensor)> =
                inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
            let outputs =
                session.run(&pairs, &[&self.output]).map_err(|error| run_failed(&error))?;
            let output = outputs
                .first()
                .ok_or_else(|| data_invalid("the judged output did not come".into()))?;
            self.append(&mut rows, output, length)?;
            start += length;
        }
        self.check_labels(&rows)?;
        Ok(rows)
    }

    fn append(&self, rows: &mut Rows, output: &Tensor, length: usize) -> Result<(), Refusal> {
        let Some(values) = output.to_f64() else {
            return Err(data_invalid(format!(
                "output {} is text, which cannot be judged",
                quoted(&self.output)
            )));
        };
        let width = values.len() / length.max(1);
        let first = output.shape().first().copied().unwrap_or(1);
        if first != length || width == 0 || (rows.width != 0 && rows.width != width) {
            return Err(data_invalid(format!(
                "output {} has shape {:?} for {length} samples; it needs one row of the same length for each",
                quoted(&self.output),
                output.shape()
            )));
        }
        if rows.values.len() + values.len() > MOST_NUMBERS {
            let message = "the judged outputs do not fit into memory; set evaluation.maxSamples";
            return Err(Refusal::budget(message));
        }
        rows.width = width;
        rows.classes = !matches!(
            output.datatype(),
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64
        );
        rows.values.extend(values);
        Ok(())
    }

    fn check_labels(&self, rows: &Rows) -> Result<(), Refusal> {
        if self.labels.is_empty() {
            return Ok(());
        }
        let want = match self.metric {
            Metric::MeanSquaredError => rows.values.len(),
            _ => rows.count(),
        };
        if self.labels.len() != want {
            return Err(data_invalid(format!(
                "array \"label\" has {} numbers, output {} needs {want}",
                self.labels.len(),
                quoted(&self.output)
            )));
        }
        let classes = match self.metric {
            Metric::MeanSquaredError => None,
            Metric::AUC => Some(2),
            _ => rows.class_count(),
        };
        let Some(classes) = classes else { return Ok(()) };
        let inside = |label: &f64| label.fract() == 0.0 && (0.0..classes as f64).contains(label);
        match self.labels.iter().position(|label| !inside(label)) {
            Some(at) => Err(data_invalid(format!(
                "array \"label\" is {} at sample {at}, classes are 0 to {}",
                self.labels.get(at).copied().unwrap_or_default(),
                classes - 1
            ))),
            None => Ok(()),
        }
    }

    /// Compares `candidate` with `original`, both from [`Self::outputs`].
    ///
    /// Samples for which the original itself gives no finite number judge nothing.
    pub fn compare(&self, original: &Rows, candidate: &Rows) -> Result<Judgement, Refusal> {
        if original.width != candidate.width || original.count() != candidate.count() {
            return Err(data_invalid(
                "original and compressed model give outputs of different shapes".into(),
            ));
        }
        let finite = |row: &[f64]| row.iter().all(|value| value.is_finite());
        let keep: Vec<bool> = original.iter().map(finite).collect();
        let broken =
            candidate.iter().zip(&keep).filter(|(row, keep)| **keep && !finite(row)).count();
        let (original, candidate) = (kept(original, &keep), kept(candidate, &keep));
        let per = self.labels.len() / keep.len().max(1);
        let labels: Vec<f64> = self
            .labels
            .chunks(per.max(1))
            .zip(&keep)
            .filter(|(_, keep)| **keep)
            .flat_map(|(labels, _)| labels.iter().copied())
            .collect();
        if original.count() == 0 {
            return Err(data_invalid("the original gives no finite output for any sample".into()));
        }
        let of = |metric, rows: &Rows| {
            metrics::value(metric, rows, &original, &labels).ok_or_else(|| {
                data_invalid(format!(
                    "metric {metric:?} is not defined on these labels (one class only)"
                ))
            })
        };
        let (before, value) = (of(self.metric, &original)?, of(self.metric, &candidate)?);
        let noise = metrics::signal_to_noise(&candidate, &original);
        Ok(Judgement {
            original: before,
            value,
            agreement: of(Metric::Agreement, &candidate)?,
            cosine: of(Metric::Cosine, &candidate)?,
            signal_to_noise: (noise < metrics::EQUAL_DB && noise.is_finite()).then_some(noise),
            drop: self.drop(&original, &candidate, &labels, before - value),
            samples: original.count(),
            broken,
        })
    }

    fn drop(
        &self,
        original: &Rows,
        candidate: &Rows,
        labels: &[f64],
        fell: f64,
    ) -> (f64, Option<f64>) {
        let sign = if self.metric.larger_is_better() { 1.0 } else { -1.0 };
        let scores = |rows| metrics::scores(self.metric, rows, original, labels);
        match scores(original).zip(scores(candidate)) {
            Some((before, after)) => {
                let differences: Vec<f64> =
                    before.iter().zip(&after).map(|(a, b)| sign * (a - b)).collect();
                let (mean, half) = metrics::interval(&differences);
                (mean, Some(half))
            }
            None => (sign * fell, None),
        }
    }
}

fn kept(rows: &Rows, keep: &[bool]) -> Rows {
    let values =
        rows.iter().zip(keep).filter(|(_, keep)| **keep).flat_map(|(row, _)| row.iter().copied());
    Rows { values: values.collect(), width: rows.width, classes: rows.classes }
}

/// The output that the recipe names, else the last one with floats, else the last.
fn judged_output(outputs: &[TensorSignature], wanted: Option<&str>) -> Result<String, Refusal> {
    let floats = |output: &&TensorSignature| {
        matches!(output.datatype.as_str(), "FP16" | "BF16" | "FP32" | "FP64")
    };
    let chosen = match wanted {
        Some(name) => outputs.iter().find(|output| output.name == name),
        None => outputs.iter().rfind(floats).or(outputs.last()),
    };
    chosen.map(|output| output.name.clone()).ok_or_else(|| {
        let names: Vec<String> =
            outputs.iter().take(16).map(|output| quoted(&output.name)).collect();
        let message = format!(
            "evaluation.output is {}, the model's outputs are {}",
            quoted(wanted.unwrap_or_default()),
            names.join(", ")
        );
        Refusal::new(reason::RECIPE_INVALID, message)
    })
}

/// The labels of the first `count` samples.
fn labels(label: &Tensor, count: usize) -> Result<Vec<f64>, Refusal> {
    let Some(values) = label.to_f64() else {
        return Err(data_invalid("array \"label\" is text, numbers are needed".into()));
    };
    let samples = label.shape().first().copied().unwrap_or(1).max(1);
    let per = values.len() / samples;
    Ok(values.into_iter().take(count * per).collect())
}
