//! Runs models over the evaluation split and judges them beside the original.
//!
//! The original's outputs wait in a file without a name, and of each sample only a few numbers are
//! kept, so that memory depends neither on the number of samples nor on the size of outputs.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};

use lithe::artifact::TensorSignature;
use lithe::names::reason;
use lithe::recipe::{Metric, Recipe};

use crate::compress::Progress;
use crate::compress::data::Samples;
use crate::compress::metrics::{self, Estimate, Rows, Rule, Scored};
use crate::onnx::Refusal;
use crate::onnx::refusal::quoted;
use crate::runtime::{RuntimeError, Session};
use crate::tensor::{Datatype, Tensor};

/// Samples per inference when the recipe does not say. One, as a request is: dynamic quantization
/// takes one range for a whole batch, so that a larger batch would judge another model than served.
const BATCH: u32 = 1;
/// How many of the largest outputs count when the recipe does not say.
const TOP: u32 = 5;

/// What and how to judge.
pub struct Judge<'a> {
    /// The samples.
    pub samples: &'a Samples,
    /// The judged output.
    pub output: String,
    /// How one sample is scored.
    pub rule: Rule,
    /// The confidence of every interval.
    pub confidence: f64,
    batch: usize,
    progress: &'a dyn Fn(Progress),
}

/// The original's outputs for every sample, on disk.
pub struct Answers {
    file: File,
    form: Rows,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The metric's value for the original.
    pub original: f64,
    /// The metric's value for the candidate.
    pub value: f64,
    /// The same with its interval.
    pub estimate: Estimate,
    /// How much worse the candidate is, in the metric's unit; `None` where that has no meaning.
    pub drop: Option<Estimate>,
    /// The share of samples with the same choice.
    pub agreement: f64,
    /// The mean cosine with the original's outputs.
    pub cosine: f64,
    /// The signal-to-noise ratio in dB; `None` where the outputs are equal.
    pub signal_to_noise: Option<f64>,
    /// Samples that were judged.
    pub samples: usize,
    /// Samples where the candidate gives NaN or an infinity and the original does not.
    pub broken: usize,
}

fn data_invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(reason::DATA_INVALID, message)
}

fn run_failed(error: &RuntimeError) -> Refusal {
    let text: String =
        error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    data_invalid(format!("the model does not run on the evaluation data: {text}"))
}

fn spool(error: std::io::Error) -> Refusal {
    let reason = match error.kind() {
        std::io::ErrorKind::StorageFull => reason::NO_SPACE,
        _ => reason::FAILED,
    };
    Refusal::new(reason, format!("keep the original's outputs on disk: {error}"))
}

impl Judgement {
    /// The judgement of `scored` samples.
    ///
    /// # Errors
    /// When the metric is not defined on them.
    pub fn of(metric: Metric, scored: &[Scored], confidence: f64) -> Result<Self, Refusal> {
        let figures = metrics::figures(metric, scored, confidence).ok_or_else(|| {
            let why = match metric {
                Metric::AUC => "all labels are of one class; give samples of both",
                Metric::CharacterErrorRate => "no label has a character; give some that have",
                _ => "there is no sample that both models answer",
            };
            data_invalid(format!("metric {metric:?} is not defined on these labels: {why}"))
        })?;
        let count = scored.len().max(1) as f64;
        let signal: f64 = scored.iter().map(|s| s.signal).sum();
        let noise: f64 = scored.iter().map(|s| s.noise).sum();
        let decibels = metrics::decibels(signal, noise);
        Ok(Self {
            original: figures.original,
            value: figures.value.value,
            estimate: figures.value,
            drop: figures.drop,
            agreement: scored.iter().filter(|s| s.agrees).count() as f64 / count,
            cosine: scored.iter().map(|s| s.cosine).sum::<f64>() / count,
            signal_to_noise: (decibels < metrics::EQUAL_DB).then_some(decibels),
            samples: scored.len(),
            broken: 0,
        })
    }
}

impl<'a> Judge<'a> {
    /// Chooses the output and the rule.
    pub fn new(
        samples: &'a Samples,
        outputs: &[TensorSignature],
        recipe: &Recipe,
        progress: &'a dyn Fn(Progress),
    ) -> Result<Self, Refusal> {
        let gates = recipe.gates.clone().unwrap_or_default();
        let evaluation = recipe.evaluation.as_ref();
        let wanted = evaluation.and_then(|evaluation| evaluation.output.as_deref());
        let output = judged_output(outputs, wanted)?;
        let metric = gates.metric;
        if metric.needs_labels() && !samples.labelled() {
            return Err(data_invalid(format!(
                "metric {metric:?} needs an array named label, and there is none"
            )));
        }
        let batch = evaluation.and_then(|evaluation| evaluation.batch_size).unwrap_or(BATCH);
        let batch = samples.batch(batch as usize);
        let blank = evaluation.and_then(|evaluation| evaluation.blank).unwrap_or_default();
        let rule =
            Rule { metric, top: gates.top_k.unwrap_or(TOP) as usize, blank: f64::from(blank) };
        Ok(Self { samples, output, rule, confidence: gates.confidence(), batch, progress })
    }

    /// Where batches begin, and how long they are.
    fn batches(&self) -> impl Iterator<Item = (usize, usize)> {
        let (count, batch) = (self.samples.count(), self.batch);
        (0..count).step_by(batch).map(move |start| (start, batch.min(count - start)))
    }

    /// The outputs of `session` for every sample, in memory: for few samples.
    ///
    /// # Errors
    /// As [`Self::answers`].
    pub fn outputs(&self, session: &Session) -> Result<Rows, Refusal> {
        let mut all: Option<Rows> = None;
        for (start, length) in self.batches() {
            let rows = self.run(session, start, length)?;
            match &mut all {
                Some(all) => {
                    same_form(all, &rows, &self.output)?;
                    all.values.extend(rows.values);
                }
                None => all = Some(rows),
            }
        }
        Ok(all.unwrap_or_default())
    }

    /// Keeps the outputs of the `original` for every sample.
    ///
    /// # Errors
    /// `DataInvalid` when the model does not run on the samples, or samples and labels do not fit its
    /// output; `NoSpace` when the disk is full.
    pub fn answers(&self, original: &Session) -> Result<Answers, Refusal> {
        let file = tempfile::tempfile().map_err(spool)?;
        let mut writer = BufWriter::new(file);
        let mut form: Option<Rows> = None;
        for (start, length) in self.batches() {
            let rows = self.run(original, start, length)?;
            match &form {
                Some(form) => same_form(form, &rows, &self.output)?,
                None => form = Some(Rows { values: Vec::new(), ..rows.clone() }),
            }
            self.labels(&rows, start, length)?;
            self.told(start, length);
            for value in &rows.values {
                writer.write_all(&value.to_le_bytes()).map_err(spool)?;
            }
        }
        let file = writer.into_inner().map_err(|error| spool(error.into_error()))?;
        Ok(Answers { file, form: form.unwrap_or_default() })
    }

    /// Runs the `candidate` on every sample and compares it with the original's `answers`.
    ///
    /// Samples for which the original itself gives no finite number judge nothing.
    ///
    /// # Errors
    /// `DataInvalid` when the candidate does not run, or its outputs are of another shape.
    pub fn compare(&self, answers: &Answers, candidate: &Session) -> Result<Judgement, Refusal> {
        let mut reader = BufReader::new(&answers.file);
        reader.seek(SeekFrom::Start(0)).map_err(spool)?;
        let (mut scored, mut broken) = (Vec::new(), 0);
        let finite = |row: &[f64]| row.iter().all(|value| value.is_finite());
        for (start, length) in self.batches() {
            let rows = self.run(candidate, start, length)?;
            same_form(&answers.form, &rows, &self.output)?;
            self.told(start, length);
            let mut bytes = vec![0; rows.values.len() * size_of::<f64>()];
            reader.read_exact(&mut bytes).map_err(spool)?;
            let (chunks, _) = bytes.as_chunks::<8>();
            let originals: Vec<f64> =
                chunks.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
            let labels = self.labels(&rows, start, length)?;
            let mut labels = labels.chunks((labels.len() / length.max(1)).max(1));
            for (original, row) in originals.chunks(rows.width.max(1)).zip(rows.iter()) {
                let label = labels.next().unwrap_or_default();
                match (finite(original), finite(row)) {
                    (true, true) => scored.push(self.rule.score(&rows, (original, row), label)),
                    // What is no number is no answer: it counts as one of zeros.
                    (true, false) => {
                        broken += 1;
                        let zeros = vec![0.0; row.len()];
                        scored.push(self.rule.score(&rows, (original, &zeros), label));
                    }
                    (false, _) => {}
                }
            }
        }
        self.judged(&scored, broken)
    }

    fn judged(&self, scored: &[Scored], broken: usize) -> Result<Judgement, Refusal> {
        if scored.is_empty() {
            return Err(data_invalid("the original gives no finite output for any sample"));
        }
        let judgement = Judgement::of(self.rule.metric, scored, self.confidence)?;
        Ok(Judgement { broken, ..judgement })
    }

    /// Tells about every hundredth part.
    fn told(&self, start: usize, length: usize) {
        let part = |done: usize| done * 100 / self.samples.count().max(1);
        if part(start) != part(start + length) {
            (self.progress)(Progress::Judged { samples: start + length });
        }
    }

    /// The judged output for `length` samples from `start`.
    fn run(&self, session: &Session, start: usize, length: usize) -> Result<Rows, Refusal> {
        let inputs = self.samples.inputs(start, length);
        let inputs = inputs.map_err(|error| data_invalid(error.to_string()))?;
        let pairs: Vec<(&str, &Tensor)> =
            inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let outputs = session.run(&pairs, &[&self.output]).map_err(|error| run_failed(&error))?;
        let output =
            outputs.first().ok_or_else(|| data_invalid("the judged output did not come"))?;
        let Some(values) = output.to_f64() else {
            let message =
                format!("output {} is text, which cannot be judged", quoted(&self.output));
            return Err(data_invalid(message));
        };
        let width = values.len() / length.max(1);
        let first = output.shape().first().copied().unwrap_or(1);
        if first != length || width == 0 {
            return Err(data_invalid(format!(
                "output {} has shape {:?} for {length} samples; it needs one row of the same length for each",
                quoted(&self.output),
                output.shape()
            )));
        }
        let depth = output.shape().last().copied().filter(|_| output.shape().len() > 1);
        let classes = !matches!(
            output.datatype(),
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64
        );
        Ok(Rows { values, width, depth: depth.unwrap_or(1), classes })
    }

    /// The labels of `length` samples from `start`, checked against the outputs.
    fn labels(&self, rows: &Rows, start: usize, length: usize) -> Result<Vec<f64>, Refusal> {
        if !self.rule.metric.needs_labels() {
            return Ok(Vec::new());
        }
        let labels = self.samples.labels(start, length);
        let labels = labels.map_err(|error| data_invalid(error.to_string()))?;
        let per = labels.len() / length.max(1);
        let metric = self.rule.metric;
        let want = match metric {
            Metric::MeanSquaredError => rows.width,
            Metric::CharacterErrorRate => per.max(1),
            _ => 1,
        };
        if per != want {
            return Err(data_invalid(format!(
                "array \"label\" has {per} numbers for each sample, metric {metric:?} on output {} needs {want}",
                quoted(&self.output)
            )));
        }
        let classes = match metric {
            Metric::MeanSquaredError => None,
            Metric::AUC => Some(2),
            Metric::CharacterErrorRate if rows.classes => None,
            Metric::CharacterErrorRate => Some(rows.depth),
            _ => rows.class_count(),
        };
        let padded = metric == Metric::CharacterErrorRate;
        let good = |label: &f64| match classes {
            None => label.is_finite(),
            Some(classes) => {
                label.fract() == 0.0
                    && (*label < classes as f64)
                    && (*label >= 0.0 || (padded && label.is_finite()))
            }
        };
        let Some(at) = labels.iter().position(|label| !good(label)) else { return Ok(labels) };
        let (value, sample) =
            (labels.get(at).copied().unwrap_or_default(), start + at / per.max(1));
        Err(data_invalid(match classes {
            Some(classes) => format!(
                "array \"label\" is {value} at sample {sample}, classes are 0 to {}; mend the labels or name the judged output in evaluation.output",
                classes.saturating_sub(1)
            ),
            None => format!("array \"label\" is {value} at sample {sample}; give finite numbers"),
        }))
    }
}

fn same_form(form: &Rows, rows: &Rows, output: &str) -> Result<(), Refusal> {
    if (form.width, form.classes) == (rows.width, rows.classes) {
        return Ok(());
    }
    Err(data_invalid(format!(
        "output {} has rows of {} numbers, and of {} before; it needs one row of the same length for each sample",
        quoted(output),
        rows.width,
        form.width
    )))
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
