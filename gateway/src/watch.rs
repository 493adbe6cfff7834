//! Where a configuration comes from: the cluster, read only, or a file. Everything else learns it
//! through a channel and does not know which.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, Client, Config, ResourceExt as _};
use lithe::gateway::{Configuration, Model, Worker, WorkerState};
use lithe::names::{
    LABEL_REVISION, LABEL_ROLE, LABEL_UID, PORT_ADMIN, PORT_GRPC, PORT_HTTP, ROLE_WORKERS,
};
use tokio::sync::{mpsc, watch};

use crate::served::{Served, model};

/// A watch is renewed after this time, so that one whose connection died silently is noticed.
const WATCH_SECONDS: u32 = 30;
/// How long a watch may be silent: its server ends it after [`WATCH_SECONDS`].
const WATCH_LIMIT: Duration = Duration::from_secs(35);
/// Objects in one page of a list: what is parsed at a time fills the memory.
const PAGE: u32 = 200;

/// Reads a configuration from a file.
///
/// # Errors
/// When the file cannot be read or is not of the form.
pub fn file(path: &Path) -> anyhow::Result<Configuration> {
    use anyhow::Context as _;
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no configuration", path.display()))
}

/// Watches `namespaces` (all without any) and sends every configuration to `to`, the first once all
/// lists are complete. Ends when nobody listens.
///
/// # Errors
/// When there is no cluster to talk to.
pub async fn cluster(
    namespaces: &[String],
    to: watch::Sender<Option<Arc<Configuration>>>,
) -> anyhow::Result<()> {
    let client = client().await?;
    let scopes: Vec<Option<&str>> = match namespaces {
        [] => vec![None],
        some => some.iter().map(|name| Some(name.as_str())).collect(),
    };
    let (news, mut told) = mpsc::channel(256);
    for (scope, namespace) in scopes.iter().enumerate() {
        let models = api::<DeserializeGuard<Served>>(&client, *namespace);
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        let events = watch_objects(models, config.clone()).default_backoff();
        let sender = news.clone();
        tokio::spawn(follow(events, sender, move |event| News::Models(scope, event.map(model))));
        let slices = api::<EndpointSlice>(&client, *namespace);
        let config = config.labels(&format!("{LABEL_ROLE}={ROLE_WORKERS}"));
        let events = watch_objects(slices, config).default_backoff();
        let sender = news.clone();
        tokio::spawn(follow(events, sender, move |event| News::Slices(scope, event.map(slice))));
    }
    drop(news);
    let mut models = vec![Known::default(); scopes.len()];
    let mut slices = vec![Known::default(); scopes.len()];
    while let Some(first) = told.recv().await {
        let mut next = Some(first);
        // What came together is applied together.
        while let Some(news) = next {
            match news {
                News::Models(scope, event) => take(&mut models, scope, event),
                News::Slices(scope, event) => take(&mut slices, scope, event),
            }
            next = told.try_recv().ok();
        }
        let complete =
            models.iter().all(|known| known.complete) && slices.iter().all(|known| known.complete);
        if !complete {
            continue;
        }
        let models = models.iter().flat_map(|known| known.objects.values().flatten());
        let slices = slices.iter().flat_map(|known| known.objects.values().flatten());
        let configuration = Arc::new(join(models, slices));
        if to.send(Some(configuration)).is_err() {
            break;
        }
    }
    Ok(())
}

async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(WATCH_LIMIT);
    Ok(Client::try_from(config)?)
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// (namespace, name) of an object, and what is read from it: nothing if it does not concern us.
type Read<T> = ((String, String), Option<T>);

enum News {
    Models(usize, Change<Model>),
    Slices(usize, Change<Slice>),
}

/// An event, with the objects read.
enum Change<T> {
    Begin,
    Listed(Read<T>),
    Complete,
    Is(Read<T>),
    Gone((String, String)),
}

/// What is known of one kind in one scope.
#[derive(Clone)]
struct Known<T> {
    objects: BTreeMap<(String, String), Option<T>>,
    /// A list that is not complete yet.
    listed: BTreeMap<(String, String), Option<T>>,
    complete: bool,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listed: BTreeMap::new(), complete: false }
    }
}

fn take<T>(known: &mut [Known<T>], scope: usize, change: Change<T>) {
    let Some(known) = known.get_mut(scope) else { return };
    match change {
        Change::Begin => known.listed.clear(),
        Change::Listed((key, object)) => drop(known.listed.insert(key, object)),
        Change::Complete => {
            known.objects = std::mem::take(&mut known.listed);
            known.complete = true;
        }
        Change::Is((key, object)) => drop(known.objects.insert(key, object)),
        Change::Gone(key) => drop(known.objects.remove(&key)),
    }
}

/// An event of kube's, to be read.
struct Seen<K>(Event<K>);

impl<K: kube::Resource> Seen<K> {
    fn map<T>(self, read: impl Fn(&K) -> Option<T>) -> Change<T> {
        let key = |object: &K| {
            let meta = object.meta();
            (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
        };
        match self.0 {
            Event::Init => Change::Begin,
            Event::InitApply(object) => Change::Listed((key(&object), read(&object))),
            Event::InitDone => Change::Complete,
            Event::Apply(object) => Change::Is((key(&object), read(&object))),
            Event::Delete(object) => Change::Gone(key(&object)),
        }
    }
}

async fn follow<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    to: mpsc::Sender<News>,
    read: impl Fn(Seen<K>) -> News,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if to.send(read(Seen(event))).await.is_err() {
                    return;
                }
            }
            // What is applied stays: requests go on while the API server is away.
            Err(error) => tracing::warn!(%error, "watch"),
        }
    }
}

/// The workers of one EndpointSlice.
#[derive(Clone)]
struct Slice {
    uid: String,
    workers: Vec<Worker>,
}

fn slice(object: &EndpointSlice) -> Option<Slice> {
    let label = |name: &str| object.labels().get(name).cloned();
    let port = |name: &str, otherwise: u16| {
        let ports = object.ports.iter().flatten();
        let mut named = ports.filter(|port| port.name.as_deref() == Some(name));
        named
            .find_map(|port| port.port)
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(otherwise)
    };
    let revision = label(LABEL_REVISION).unwrap_or_default();
    let worker = |endpoint: &Endpoint| {
        Some(Worker {
            address: endpoint.addresses.first()?.parse::<IpAddr>().ok()?,
            http_port: port("http", PORT_HTTP),
            grpc_port: port("grpc", PORT_GRPC),
            admin_port: port("admin", PORT_ADMIN),
            revision: revision.clone(),
            state: state(endpoint)?,
        })
    };
    Some(Slice {
        uid: label(LABEL_UID)?,
        workers: object.endpoints.iter().flatten().filter_map(worker).collect(),
    })
}

/// Where a worker stands; nothing once it serves no more.
///
/// | terminating | serving | ready | state |
/// |---|---|---|---|
/// | yes | yes | - | Draining |
/// | yes | no | - | gone |
/// | no | - | yes | Ready |
/// | no | - | no | Starting |
fn state(endpoint: &Endpoint) -> Option<WorkerState> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    // Unknown counts as true, but for terminating (the API's own words).
    let serving = conditions.serving.or(conditions.ready).unwrap_or(true);
    match (conditions.terminating.unwrap_or(false), conditions.ready.unwrap_or(true)) {
        (true, _) => serving.then_some(WorkerState::Draining),
        (false, true) => Some(WorkerState::Ready),
        (false, false) => Some(WorkerState::Starting),
    }
}

/// Gives each model the workers of its slices; an address that is in two of them counts once.
fn join<'a>(
    models: impl Iterator<Item = &'a Model>,
    slices: impl Iterator<Item = &'a Slice>,
) -> Configuration {
    let mut workers: BTreeMap<&str, Vec<Worker>> = BTreeMap::new();
    for slice in slices {
        let all = workers.entry(slice.uid.as_str()).or_default();
        for worker in &slice.workers {
            if !all.iter().any(|known| known.address == worker.address) {
                all.push(worker.clone());
            }
        }
    }
    let joined = models.map(|model| {
        let workers = workers.get(model.uid.as_str()).cloned().unwrap_or_default();
        Model { workers, ..model.clone() }
    });
    Configuration { models: joined.collect() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(endpoints: &Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": "m-workers-x", "namespace": "n", "labels": {
                "lithe.dev/uid": "u", "lithe.dev/role": "workers", "lithe.dev/revision": "r1"}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": 1}, {"name": "grpc", "port": 2}],
        }))
        .unwrap()
    }

    #[test]
    fn conditions_of_an_endpoint_say_where_its_worker_stands() {
        let rows = [
            (
                json!({"ready": true, "serving": true, "terminating": false}),
                Some(WorkerState::Ready),
            ),
            (json!({"ready": false, "serving": false}), Some(WorkerState::Starting)),
            (
                json!({"ready": false, "serving": true, "terminating": true}),
                Some(WorkerState::Draining),
            ),
            (json!({"ready": false, "serving": false, "terminating": true}), None),
            (json!({}), Some(WorkerState::Ready)),
        ];
        for (conditions, wanted) in rows {
            let one = json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]);
            let read = slice(&endpoints(&one)).unwrap();
            assert_eq!(read.workers.first().map(|worker| worker.state), wanted, "{conditions}");
        }
    }

    #[test]
    fn workers_are_joined_to_their_model_and_an_odd_address_is_left_out() {
        let two = json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["not an address"]}]);
        let read = slice(&endpoints(&two)).unwrap();
        let told = Model {
            uid: "u".into(),
            namespace: "n".into(),
            name: "m".into(),
            generation: 3,
            resource_version: "9".into(),
            http_port: 20000,
            grpc_port: 20001,
            target: None,
            weights: Vec::new(),
            workers: Vec::new(),
        };
        // The same address in two slices is one worker.
        let joined = join([told].iter(), [read.clone(), read].iter());
        let workers = &joined.models.first().unwrap().workers;
        assert_eq!(workers.len(), 1);
        let worker = workers.first().unwrap();
        let ports = (worker.http_port, worker.grpc_port, worker.admin_port);
        assert_eq!((ports, worker.revision.as_str()), ((1, 2, PORT_ADMIN), "r1"));
    }

    #[test]
    fn a_list_replaces_what_was_known_and_only_once_it_is_complete() {
        let key = |name: &str| ("n".to_owned(), name.to_owned());
        let mut known = vec![Known::default()];
        take(&mut known, 0, Change::Begin);
        take(&mut known, 0, Change::Listed((key("a"), Some(1))));
        assert!(!known[0].complete && known[0].objects.is_empty());
        take(&mut known, 0, Change::Complete);
        take(&mut known, 0, Change::Is((key("b"), Some(2))));
        take(&mut known, 0, Change::Begin);
        take(&mut known, 0, Change::Listed((key("b"), Some(3))));
        assert_eq!(known[0].objects.len(), 2, "half a list takes nothing away");
        take(&mut known, 0, Change::Complete);
        assert_eq!(known[0].objects, [(key("b"), Some(3))].into());
        take(&mut known, 0, Change::Gone(key("b")));
        assert!(known[0].objects.is_empty());
    }
}
