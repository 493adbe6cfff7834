//! What every protocol shares: the model, its state, and the one way to run it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use lithe::latency::Signals;

use super::error::InferError;
use super::load::LoadError;
use super::metrics::Metrics;
use super::model::{Backend, Signature, VERSION};
use super::queue::{Curve, Limits, Policy, Queue, Work, batchable};
use crate::tensor::Tensor;

/// One inference as any protocol asks for it.
#[derive(Debug)]
pub struct Request {
    /// The model's name.
    pub model: String,
    /// The model's version; empty for the only one.
    pub version: String,
    /// The inputs by name.
    pub inputs: Vec<(String, Tensor)>,
    /// The outputs to return; all of them when empty.
    pub outputs: Vec<String>,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// The level it asks for, 1 the most urgent; 0 for the default.
    pub priority: u64,
}

/// The answer: the outputs by name, in the order that was asked for.
#[derive(Debug)]
pub struct Response {
    /// The outputs.
    pub outputs: Vec<(String, Tensor)>,
}

struct Loaded {
    signature: Signature,
    queue: Queue,
}

const LOADING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

/// The state of a serving process.
pub struct Server {
    name: String,
    /// The most bytes of one request.
    pub max_request_bytes: usize,
    policy: Policy,
    limits: Limits,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    state: AtomicU8,
    loaded: OnceLock<Loaded>,
}

impl Server {
    /// A server of the model `name`, which is not loaded yet.
    pub fn new(name: String, max_request_bytes: usize, policy: Policy, limits: Limits) -> Self {
        Self {
            name,
            max_request_bytes,
            metrics: Arc::new(Metrics::new(policy.target)),
            policy,
            limits,
            state: AtomicU8::new(LOADING),
            loaded: OnceLock::new(),
        }
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the loaded model, whose warm-up measured `curve`; requests are answered from here on.
    ///
    /// # Errors
    /// When the thread that runs it cannot be started, or batching is asked for and the model
    /// cannot run several requests at once.
    pub fn load(&self, backend: Arc<dyn Backend>, curve: Curve) -> Result<(), LoadError> {
        let signature = Signature::of(backend.as_ref());
        if self.policy.batching.is_some() {
            batchable(&signature).map_err(LoadError::Batching)?;
        }
        let waiting = (self.policy.clone(), self.limits);
        let queue = Queue::start(backend, waiting, curve, self.metrics.clone())
            .map_err(|error| LoadError::Thread(error.to_string()))?;
        if self.loaded.set(Loaded { signature, queue }).is_ok() {
            let loading = (LOADING, READY);
            let order = Ordering::SeqCst;
            // A server that drains already stays so.
            if self.state.compare_exchange(loading.0, loading.1, order, order).is_ok() {
                self.metrics.set_ready(true);
            }
        }
        Ok(())
    }

    /// Says not ready from now on; requests are still answered.
    pub fn drain(&self) {
        self.state.store(DRAINING, Ordering::SeqCst);
        self.metrics.set_ready(false);
    }

    /// Whether new requests should come here.
    pub fn ready(&self) -> bool {
        self.state.load(Ordering::SeqCst) == READY
    }

    /// Whether the server is about to end.
    pub fn draining(&self) -> bool {
        self.state.load(Ordering::SeqCst) == DRAINING
    }

    /// The model's state in Triton's words.
    pub fn state(&self) -> &'static str {
        match self.state.load(Ordering::SeqCst) {
            READY => "READY",
            DRAINING => "UNLOADING",
            _ => "LOADING",
        }
    }

    /// The signature of `model` in `version` (empty for the only one).
    ///
    /// # Errors
    /// [`InferError::NotFound`] for another name or version, [`InferError::Unavailable`] while the
    /// model loads.
    pub fn signature(&self, model: &str, version: &str) -> Result<&Signature, InferError> {
        Ok(&self.loaded(model, version)?.signature)
    }

    /// Whether `model` in `version` takes requests.
    ///
    /// # Errors
    /// [`InferError::NotFound`] for another name or version.
    pub fn model_ready(&self, model: &str, version: &str) -> Result<bool, InferError> {
        self.is_here(model, version)?;
        Ok(self.ready())
    }

    fn is_here(&self, model: &str, version: &str) -> Result<(), InferError> {
        if model != self.name {
            return Err(InferError::NotFound(format!(
                "Request for unknown model: {model:?} is not found; this server has {:?}",
                self.name
            )));
        }
        if !version.is_empty() && version != VERSION {
            return Err(InferError::NotFound(format!(
                "Request for unknown model: {model:?} version {version} is not found; the only version is {VERSION}"
            )));
        }
        Ok(())
    }

    fn loaded(&self, model: &str, version: &str) -> Result<&Loaded, InferError> {
        self.is_here(model, version)?;
        self.loaded
            .get()
            .ok_or_else(|| InferError::Unavailable(format!("the model {model:?} is loading")))
    }

    /// The OpenMetrics text.
    pub fn metrics_text(&self) -> String {
        let (waiting, _) = self.loaded.get().map_or((0, None), |loaded| loaded.queue.waiting());
        self.metrics.encode(&self.name, waiting)
    }

    /// What autoscaling reads.
    pub fn signals(&self) -> Signals {
        let (queued, oldest) = self.loaded.get().map_or((0, None), |loaded| loaded.queue.waiting());
        let max = self.policy.batching.as_ref().map_or(1, |batching| batching.max);
        Signals {
            ready: self.ready(),
            in_flight: self.metrics.in_flight(),
            queued: queued as u64,
            oldest_queued: oldest.map_or(0.0, |since| since.elapsed().as_secs_f64()),
            max_batch: u32::try_from(max).unwrap_or(u32::MAX),
            ..self.metrics.signals.read()
        }
    }

    /// Runs one inference: the only way to the model, for every protocol.
    ///
    /// # Errors
    /// Whatever is wrong with the request, the queue or the model.
    pub async fn infer(&self, mut request: Request) -> Result<Response, InferError> {
        let loaded = self.loaded(&request.model, &request.version)?;
        loaded.signature.check(&request.inputs, &request.outputs)?;
        loaded.signature.sort(&mut request.inputs);
        let names = if request.outputs.is_empty() {
            loaded.signature.outputs.iter().map(|output| output.name.clone()).collect()
        } else {
            request.outputs.clone()
        };
        let work = Work {
            inputs: request.inputs,
            wanted: request.outputs,
            deadline: request.deadline,
            priority: request.priority,
        };
        let tensors = loaded.queue.run(work).await?;
        Ok(Response { outputs: names.into_iter().zip(tensors).collect() })
    }
}
