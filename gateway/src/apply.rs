//! From a configuration to what runs: models with their workers, and the ports that are open for
//! them. What it applies it acknowledges; it never asks where the configuration comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use lithe::gateway::{Acknowledgement, Applied, Configuration, Demand, ModelSignals, Waiting};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::listen::{Purpose, listen, stopped};
use crate::model::{Model, Shared};
use crate::options::Limits;
use crate::outlier;
use crate::tally::Protocol;
use crate::upload::Replay;

/// A port that could not be opened is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of requests that are kept in all, to be sent again.
const REPLAY: usize = 64 << 20;

/// What one gateway is doing.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    models: RwLock<BTreeMap<String, Arc<Model>>>,
    configured: AtomicBool,
    draining: AtomicBool,
}

impl Gateway {
    /// A gateway without models.
    pub fn new(limits: Limits) -> Self {
        let (demand, replay) = (watch::Sender::new(0), Arc::new(Replay::new(REPLAY)));
        Self {
            shared: Arc::new(Shared { limits, demand, replay }),
            models: RwLock::default(),
            configured: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// Whether a configuration is applied and requests should come here.
    pub fn ready(&self) -> bool {
        self.configured.load(Ordering::Acquire) && !self.draining()
    }

    /// Whether it will end soon.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Says not ready from now on; requests are still taken.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn models(&self) -> Vec<Arc<Model>> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.values().cloned().collect()
    }

    /// Told whenever a model without a worker gets its first held request.
    pub fn demanded(&self) -> watch::Receiver<u64> {
        self.shared.demand.subscribe()
    }

    /// What is applied.
    pub fn acknowledgement(&self) -> Acknowledgement {
        let models = self.models();
        let applied = |model: &Arc<Model>| {
            let told = model.told();
            let error = model.port_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Applied {
                uid: told.uid.clone(),
                namespace: told.namespace.clone(),
                name: told.name.clone(),
                generation: told.generation,
                resource_version: told.resource_version.clone(),
                http_port: told.http_port,
                grpc_port: told.grpc_port,
                listening: error.is_none(),
                error,
                weights: told.weights.clone(),
                ready_workers: u32::try_from(model.ready()).unwrap_or(u32::MAX),
            }
        };
        Acknowledgement { draining: self.draining(), models: models.iter().map(applied).collect() }
    }

    /// Who waits for a first worker.
    pub fn demand(&self) -> Demand {
        let waits = |model: &Arc<Model>| {
            let requests = model.hold.len();
            if requests == 0 || model.available() {
                return None;
            }
            let told = model.told();
            let (uid, namespace) = (told.uid.clone(), told.namespace.clone());
            let requests = u64::try_from(requests).unwrap_or(u64::MAX);
            Some(Waiting { uid, namespace, name: told.name.clone(), requests })
        };
        // Read first: who comes meanwhile is told at once by the next question.
        let sequence = *self.shared.demand.borrow();
        Demand { sequence, waiting: self.models().iter().filter_map(waits).collect() }
    }

    /// What the autoscaler reads, as of `now`.
    pub fn signals(&self, now: Instant) -> Vec<ModelSignals> {
        let signals = |model: &Arc<Model>| {
            let told = model.told();
            let signals = model.signals(now);
            let (uid, namespace) = (told.uid.clone(), told.namespace.clone());
            ModelSignals { uid, namespace, name: told.name.clone(), signals }
        };
        self.models().iter().map(signals).collect()
    }

    fn tell(&self, configuration: &Configuration) {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        let wanted: BTreeSet<&str> =
            configuration.models.iter().map(|model| model.uid.as_str()).collect();
        models.retain(|uid, _| wanted.contains(uid.as_str()));
        for told in &configuration.models {
            let model = models.entry(told.uid.clone()).or_insert_with(|| {
                let model = Model::new(told, self.shared.clone());
                *model.port_error.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some("not opened yet".into());
                Arc::new(model)
            });
            model.tell(told);
        }
    }
}

/// An open port.
struct Open {
    port: u16,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// The ports of a gateway, by model and protocol.
struct Ports {
    address: IpAddr,
    open: BTreeMap<(String, u8), Open>,
    /// Closed for new connections; what they carry goes on.
    closing: Vec<JoinHandle<()>>,
}

impl Ports {
    /// Opens and closes what differs from what the models want.
    async fn set(&mut self, models: &[Arc<Model>]) {
        let mut wanted = BTreeMap::new();
        for model in models {
            let told = model.told();
            wanted.insert((told.uid.clone(), Protocol::Http as u8), told.http_port);
            wanted.insert((told.uid.clone(), Protocol::Grpc as u8), told.grpc_port);
        }
        let gone = self.open.extract_if(.., |key, open| wanted.get(key) != Some(&open.port));
        for (_, open) in gone {
            open.stop.send_replace(true);
            self.closing.push(open.task);
        }
        self.closing.retain(|task| !task.is_finished());
        for model in models {
            let errors =
                [self.open(model, Protocol::Http).await, self.open(model, Protocol::Grpc).await];
            let error = errors.into_iter().find_map(Result::err);
            *model.port_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
        }
    }

    async fn open(&mut self, model: &Arc<Model>, protocol: Protocol) -> Result<(), String> {
        let told = model.told();
        let port = match protocol {
            Protocol::Http => told.http_port,
            Protocol::Grpc => told.grpc_port,
        };
        let key = (told.uid.clone(), protocol as u8);
        if self.open.contains_key(&key) {
            return Ok(());
        }
        let address = SocketAddr::new(self.address, port);
        let listener = TcpListener::bind(address).await.map_err(|error| {
            tracing::warn!(model = model.title(), %address, %error, "cannot listen");
            format!("listen for {} on {address}: {error}", protocol.name())
        })?;
        let (stop, stopped) = watch::channel(false);
        let purpose = Purpose { model: model.clone(), protocol };
        let task = tokio::spawn(listen(listener, purpose, stopped));
        self.open.insert(key, Open { port, stop, task });
        Ok(())
    }

    /// Closes all and waits for what they carry.
    async fn close(self) {
        for open in self.open.values() {
            open.stop.send_replace(true);
        }
        let rest = self.open.into_values().map(|open| open.task).chain(self.closing);
        futures::future::join_all(rest).await;
    }
}

/// Applies every configuration that comes, until `stop`; then closes the ports and ends when the
/// last request is answered. Dropping the future does not cut requests short: the runtime does.
pub async fn apply(
    gateway: Arc<Gateway>,
    address: IpAddr,
    mut configurations: watch::Receiver<Option<Arc<Configuration>>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut ports = Ports { address, open: BTreeMap::new(), closing: Vec::new() };
    let mut windows = tokio::time::interval(outlier::WINDOW);
    let mut source_lives = true;
    loop {
        let configuration = configurations.borrow_and_update().clone();
        if let Some(configuration) = configuration {
            gateway.tell(&configuration);
            ports.set(&gateway.models()).await;
            gateway.configured.store(true, Ordering::Release);
        }
        let missing = || gateway.acknowledgement().models.iter().any(|model| !model.listening);
        tokio::select! {
            changed = configurations.changed(), if source_lives => source_lives = changed.is_ok(),
            () = tokio::time::sleep(RETRY), if missing() => {}
            _ = windows.tick() => {
                for model in gateway.models() {
                    model.compare(Instant::now());
                }
            }
            () = stopped(&mut stop) => break,
        }
    }
    ports.close().await;
}
