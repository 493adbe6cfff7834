//! The verb `compress`: a model and a recipe in, a verified, compressed and judged model out.
//!
//! Passes are functions from graph to graph, one per file; this file says in which order things
//! happen, and what is written when. It knows no network and no Kubernetes.

pub mod adaround;
pub mod batch_norm;
pub mod bench;
pub mod calibrate;
pub mod change;
pub mod cli;
pub mod confine;
pub mod convolutions;
pub mod data;
pub mod embeddings;
pub mod environment;
pub mod equalize;
pub mod error;
pub mod evaluate;
pub mod exclude;
pub mod fallback;
pub mod feed;
pub mod float16;
pub mod float16_operators;
pub mod fold;
pub mod gates;
pub mod gptq;
pub mod int8;
pub mod latency;
pub mod layers;
pub mod lstm;
pub mod metrics;
pub mod moments;
pub mod nbits;
pub mod normalise;
pub mod opset;
pub mod optimize;
pub mod output;
pub mod passes;
pub mod products;
pub mod prune;
pub mod quantize_dynamic;
pub mod quantize_float16;
pub mod quantize_static;
pub mod quantize_weight_only;
pub mod report;
pub mod search;
pub mod shapes;
pub mod statistics;
mod step;
pub mod steps;
pub mod trial;

use std::path::{Path, PathBuf};

use lithe::Digest;
use lithe::artifact::{
    File, MANIFEST_SCHEMA, MODEL_FILE, Made, Manifest, MemoryReport, REPORT_FILE, Source,
    StepReport, TensorSignature,
};
use lithe::names::reason;
use lithe::recipe::{OnFailure, Recipe, Step, artifact_key};
use lithe::units::human_bytes;

use crate::onnx::{self, Budget, ModelProto, Refusal, graph, operators};
use crate::runtime::{self, Options, RuntimeError, Session};
use crate::tensor::Tensor;
use bench::{Bench, Judged};
use data::{DataError, Samples, Splits};
pub use error::Error;
use layers::Layers;

/// The version of the worker: part of every artifact's key, since another version may write other bytes.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// One compression.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model file. External data are looked for beneath its directory.
    pub model: PathBuf,
    /// What to do.
    pub recipe: Recipe,
    /// The evaluation data, a NumPy archive.
    pub data: Option<PathBuf>,
    /// The directory that gets `model.onnx` and `manifest.json`; made when it is not there.
    pub out: PathBuf,
    /// Threads of one inference.
    pub threads: usize,
    /// The program that holds the trial load: `lithe-worker` itself.
    pub program: PathBuf,
    /// How much the model may ask for.
    pub budget: Budget,
}

/// What is going on, for people who wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The model was read and verified.
    Verified {
        /// Its size in bytes.
        size: u64,
        /// Its digest.
        digest: Digest,
    },
    /// The model loaded and ran once in a limited process.
    Tried,
    /// A search tries these steps.
    Candidate {
        /// Their names.
        names: String,
    },
    /// A step begins.
    Step {
        /// Its place in the recipe, from 0.
        index: usize,
        /// Its name.
        name: String,
    },
    /// A step ended.
    Stepped {
        /// What it did, in one line.
        summary: String,
        /// Bytes of the model now.
        size: u64,
    },
    /// A model is being judged on this many samples.
    Judging {
        /// Samples of the evaluation split.
        samples: usize,
    },
    /// So many of them are judged.
    Judged {
        /// Samples that are done.
        samples: usize,
    },
    /// The artifact was written.
    Written,
}

/// A compressed model that passed its gates, or the original in its place.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// Everything known about it, as it was written.
    pub manifest: Manifest,
    /// The model file.
    pub model: PathBuf,
    /// The manifest file.
    pub manifest_path: PathBuf,
    /// The digest of the manifest file.
    pub manifest_digest: Digest,
    /// The page for people, when there is one.
    pub report: Option<PathBuf>,
    /// Which gate failed, when this is the original because of `onFailure: ServeOriginal`.
    pub fallback: Option<String>,
}

const FIELD_MODEL: &str = "spec.model";
const FIELD_DATA: &str = "spec.compression.data";
const FIELD_GATES: &str = "spec.compression.gates";

/// Compresses as `request` says.
///
/// # Errors
/// See [`Error`]. Nothing is written then, and nothing half-written is ever visible.
pub fn compress(request: &Request, progress: &dyn Fn(Progress)) -> Result<Compressed, Error> {
    steps::check(&request.recipe, request.data.is_some())?;
    let loaded = onnx::load(&request.model, &request.budget)
        .map_err(|refusal| Error::refused(refusal, FIELD_MODEL))?;
    progress(Progress::Verified { size: loaded.size, digest: loaded.digest.clone() });
    let digest = loaded.digest.clone();
    make(request, loaded, progress).map_err(|error| error.of_source(&digest))
}

fn make(
    request: &Request,
    loaded: onnx::Loaded,
    progress: &dyn Fn(Progress),
) -> Result<Compressed, Error> {
    let recipe = &request.recipe;
    let original_bytes = graph::serialise(&loaded.model);
    try_out(request, &original_bytes, &[])?;
    progress(Progress::Tried);
    let source = Source {
        digest: loaded.digest.clone(),
        size: loaded.size,
        parameters: graph::parameters(&loaded.model),
        opset: operators::opset(&loaded.model),
    };
    let original = load_session(&original_bytes, request.threads, FIELD_MODEL)?;
    let (inputs, outputs) = (original.inputs().to_vec(), original.outputs().to_vec());
    let size = original_bytes.len() as u64;
    // A clone of the model shares its weights; its bytes would hold them once more through all steps.
    drop(original_bytes);
    let untouched = loaded.model.clone();
    let data_digest = request.data.as_deref().map(output::digest_data).transpose()?;
    let splits = match &request.data {
        Some(path) if !recipe.steps.is_empty() || recipe.objective.is_some() => {
            Some(read_splits(path, recipe, &original)?)
        }
        _ => None,
    };
    // Without data nothing is compared with the original, whose session holds every weight again.
    let original = splits.is_some().then_some(original);
    let bench = splits
        .as_ref()
        .zip(original.as_ref())
        .map(|(splits, original)| Bench::new(&splits.evaluation, original, recipe, progress))
        .transpose()?;
    let calibration = splits.as_ref().and_then(|splits| splits.calibration.as_ref());
    let search = match (&recipe.objective, &splits, &original) {
        (Some(objective), Some(splits), Some(original)) => {
            let tell = |names: &str| progress(Progress::Candidate { names: names.to_owned() });
            let means = (&loaded.model, splits, original);
            Some(search::lab::search(request, objective, means, &tell)?)
        }
        _ => None,
    };
    let steps = search.as_ref().map_or(&recipe.steps, |search| &search.chosen);
    let subject = Subject { request, steps, size, calibration, bench: bench.as_ref() };
    let made = run_steps(subject, loaded.model, progress)?;
    let memory = memory(request, &untouched, &made, bench.as_ref())?;
    let layers = made.bytes.as_deref().map(|bytes| describe(&untouched, bytes, &made, &bench));
    let layers = layers.unwrap_or_default();
    let gates = bench::verdicts(
        recipe.gates.as_ref(),
        made.judged.as_ref(),
        made.bytes.as_ref().map_or(size, |bytes| bytes.len() as u64),
        memory.as_ref().map(|memory| memory.compressed),
    )?;
    let failed = gates::failures(&gates);
    let fallback = match (failed, on_failure(recipe)) {
        (Some(line), OnFailure::KeepServing) => {
            return Err(Error::Gate { line, source_digest: source.digest });
        }
        (failed, _) => failed,
    };
    let bytes = match made.bytes {
        Some(bytes) if fallback.is_none() => bytes,
        _ => graph::serialise(&untouched),
    };
    let mut manifest = Manifest {
        schema: MANIFEST_SCHEMA.into(),
        key: artifact_key(&source.digest, data_digest.as_ref(), &recipe.digest(), VERSION),
        source,
        data: data_digest,
        recipe: recipe.clone(),
        model: File {
            name: MODEL_FILE.into(),
            digest: Digest::of(&bytes),
            size: bytes.len() as u64,
        },
        inputs,
        outputs,
        steps: made.steps,
        search,
        evaluation: bench.as_ref().zip(made.judged.as_ref()).map(|(b, judged)| b.report(judged)),
        gates,
        layers: layers.layers,
        activations: layers.activations,
        report: None,
        memory,
        environment: environment::read(VERSION, &runtime::version()?, request.threads),
    };
    let page = report::page(&manifest);
    manifest.report =
        Some(File { name: REPORT_FILE.into(), digest: Digest::of(&page), size: page.len() as u64 });
    let written = output::write(&request.out, &bytes, &manifest, Some(&page))?;
    progress(Progress::Written);
    let output::Written { model, manifest_path, manifest_digest, report } = written;
    Ok(Compressed { manifest, model, manifest_path, manifest_digest, report, fallback })
}

/// What became of each layer of `compressed`. Of a model that cannot be read again there is nothing to
/// tell, which is no reason to keep it.
fn describe(
    original: &ModelProto,
    compressed: &[u8],
    made: &Stepped,
    bench: &Option<Bench<'_>>,
) -> Layers {
    use prost::Message as _;
    let samples = bench.as_ref().map(|bench| bench.judge.samples);
    match ModelProto::decode(compressed) {
        Ok(compressed) => layers::layers(original, &compressed, &made.steps, samples),
        Err(_) => Layers::default(),
    }
}

fn on_failure(recipe: &Recipe) -> OnFailure {
    recipe.gates.as_ref().map_or(OnFailure::KeepServing, |gates| gates.on_failure)
}

fn try_out(request: &Request, bytes: &[u8], sample: &[(&str, Tensor)]) -> Result<u64, Error> {
    let limits = trial::Limits::for_size(bytes.len() as u64);
    trial::trial(&request.program, bytes, sample, limits).map_err(|fault| match fault {
        trial::Fault::Refused(refusal) => Error::refused(refusal, FIELD_MODEL),
        trial::Fault::Broken(source) => Error::Io { act: "try the model", source },
    })
}

/// The memory of both models, each measured in a process of its own; `None` without steps.
fn memory(
    request: &Request,
    original: &ModelProto,
    made: &Stepped,
    bench: Option<&Bench<'_>>,
) -> Result<Option<MemoryReport>, Error> {
    let Some(compressed) = &made.bytes else { return Ok(None) };
    let samples = bench.map(|bench| bench.judge.samples);
    let sample = samples.map(|samples| samples.inputs(0, samples.batch(1))).transpose();
    let sample = sample.map_err(|error| data_error(&error))?.unwrap_or_default();
    Ok(Some(MemoryReport {
        original: try_out(request, &graph::serialise(original), &sample)?,
        compressed: try_out(request, compressed, &sample)?,
    }))
}

fn load_session(bytes: &[u8], threads: usize, field: &str) -> Result<Session, Error> {
    Session::load(bytes, Options { threads, ..Options::default() }).map_err(|error| match error {
        RuntimeError::Library { .. } => Error::Runtime(error),
        other => {
            let refusal = Refusal::new(
                reason::RUNTIME_REFUSED,
                format!("ONNX Runtime refuses the model: {other}"),
            );
            Error::refused(refusal, field)
        }
    })
}

fn read_splits(path: &Path, recipe: &Recipe, original: &Session) -> Result<Splits, Error> {
    let most = recipe.evaluation.as_ref().and_then(|evaluation| evaluation.max_samples);
    let seed = steps::calibrates(recipe).then_some(recipe.seed);
    Splits::read(path, original.inputs(), most, seed).map_err(|error| data_error(&error))
}

fn data_error(error: &DataError) -> Error {
    match error {
        DataError::Spool(source) => {
            let source = std::io::Error::new(source.kind(), source.to_string());
            Error::Io { act: "unpack the data", source }
        }
        other => Error::refused(Refusal::new(reason::DATA_INVALID, other.to_string()), FIELD_DATA),
    }
}

/// The data of a request whose steps measure ranges, for those who only want to see what would match.
pub fn splits(request: &Request, model: &ModelProto) -> Result<Option<Splits>, Error> {
    match &request.data {
        Some(path) if steps::calibrates(&request.recipe) => {
            let session = load_session(&graph::serialise(model), request.threads, FIELD_MODEL)?;
            read_splits(path, &request.recipe, &session).map(Some)
        }
        _ => Ok(None),
    }
}

/// What the steps made.
#[derive(Default)]
struct Stepped {
    /// The model after the last step; `None` without steps.
    bytes: Option<Vec<u8>>,
    steps: Vec<StepReport>,
    judged: Option<Judged>,
}

/// What the steps are run on.
struct Subject<'a> {
    request: &'a Request,
    steps: &'a [Step],
    /// Bytes of the original.
    size: u64,
    calibration: Option<&'a Samples>,
    bench: Option<&'a Bench<'a>>,
}

fn run_steps(
    subject: Subject<'_>,
    mut model: ModelProto,
    progress: &dyn Fn(Progress),
) -> Result<Stepped, Error> {
    let Subject { request, steps, mut size, calibration, bench } = subject;
    let mut stepped = Stepped::default();
    let target = request.recipe.target.unwrap_or_default();
    let means = steps::Means { calibration, target };
    for (index, step) in steps.iter().enumerate() {
        progress(Progress::Step { index, name: step.name() });
        // The bytes of the step before would be held while this one makes its own.
        stepped.bytes = None;
        let judges = (bench, &request.recipe, request.threads);
        let (next, change, excluded) = step::run(model, (index, step), means, judges)?;
        model = next;
        steps::stamp(&mut model);
        let bytes = graph::serialise(&model);
        let mut report = StepReport {
            name: step.name(),
            matched: change.matched,
            summary: change.summary(),
            skipped: change.skipped,
            excluded,
            size_before: size,
            size_after: bytes.len() as u64,
            parameters: graph::parameters(&model),
            ..StepReport::default()
        };
        size = report.size_after;
        progress(Progress::Stepped { summary: report.summary.clone(), size });
        let session = load_session(&bytes, request.threads, &steps::field(index, step))?;
        same_signature(bench.map(|bench| bench.original), &session, index, step)?;
        if let Some(bench) = bench {
            progress(Progress::Judging { samples: bench.judge.samples.count() });
            judge_step(bench, &session, &mut report, &mut stepped)?;
        }
        stepped.steps.push(report);
        stepped.bytes = Some(bytes);
    }
    Ok(stepped)
}

/// A step must not change what clients see.
fn same_signature(
    original: Option<&Session>,
    session: &Session,
    index: usize,
    step: &Step,
) -> Result<(), Error> {
    let names = |signatures: &[TensorSignature]| -> Vec<(String, String)> {
        signatures.iter().map(|s| (s.name.clone(), s.datatype.clone())).collect()
    };
    let Some(original) = original else { return Ok(()) };
    if names(original.inputs()) == names(session.inputs())
        && names(original.outputs()) == names(session.outputs())
    {
        return Ok(());
    }
    let message = format!("step {index} ({}) changed the model's inputs or outputs", step.name());
    Err(Error::refused(Refusal::new(reason::FAILED, message), &steps::field(index, step)))
}

fn judge_step(
    bench: &Bench<'_>,
    session: &Session,
    report: &mut StepReport,
    stepped: &mut Stepped,
) -> Result<(), Error> {
    let judged = bench.measure(session)?;
    report.metric = Some(judged.judgement.value);
    report.agreement = Some(judged.judgement.agreement);
    report.cosine = Some(judged.judgement.cosine);
    report.speedup = Some(judged.latency.speedup);
    stepped.judged = Some(judged);
    Ok(())
}

impl Compressed {
    /// The summary for a termination message; `uri` is where the artifact lies.
    pub fn made(&self, uri: String) -> Made {
        made(&self.manifest, self.manifest_digest.clone(), uri)
    }
}

/// The artifact of `manifest` in brief. One with a failed gate is the original, which
/// `onFailure: ServeOriginal` took in its place.
pub fn made(manifest: &Manifest, manifest_digest: Digest, uri: String) -> Made {
    let evaluation = manifest.evaluation.as_ref();
    let report = manifest.report_uri(&uri);
    Made {
        uri,
        digest: manifest.model.digest.clone(),
        manifest: manifest_digest,
        key: manifest.key.clone(),
        source: manifest.source.digest.clone(),
        size: manifest.model.size,
        original_size: manifest.source.size,
        reused: false,
        fallback: gates::failures(&manifest.gates),
        metric: evaluation.map(|e| e.metric),
        original_value: evaluation.map(|e| e.original),
        value: evaluation.map(|e| e.compressed),
        agreement: evaluation.map(|e| e.agreement),
        cosine: evaluation.map(|e| e.cosine),
        speedup: evaluation.map(|e| e.latency.speedup),
        samples: evaluation.map(|e| e.samples),
        report,
        steps: manifest.steps.iter().map(step_line).collect(),
        chosen: manifest.search.as_ref().map(|search| {
            let steps = search.chosen.iter().map(Step::written).collect();
            serde_json::Value::Array(steps).to_string()
        }),
    }
}

/// A step in one line, such as `quantize.dynamic: 24 MatMul, 3 Gather; 69.1 MB -> 17.6 MB`.
pub fn step_line(step: &StepReport) -> String {
    let sizes = format!("{} -> {}", human_bytes(step.size_before), human_bytes(step.size_after));
    format!("{}: {}; {sizes}", step.name, step.summary)
}
