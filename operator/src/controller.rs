//! The loop: watches feed the queue, workers reconcile. The only place where the steps meet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event as CoreEvent, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use lithe::names::{LABEL_MANAGED_BY, MANAGED_BY, STATUS_MANAGER};
use lithe::spec::ModelDeployment;
use lithe::status::ModelDeploymentStatus;
use serde::de::DeserializeOwned;

use crate::apply::{self, Applied, WriteError};
use crate::cache::{self, Cache, Change, Key, follow, owner_uid};
use crate::config::Config;
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::objects::objects;
use crate::observe::{Caches, Observed, observe};
use crate::plan::plan;
use crate::queue::{Priority, Queue};
use crate::report::report;

/// News of a child's status come in bursts; this long they are gathered.
const SETTLE: Duration = Duration::from_millis(150);
/// A pod that waits this long for its volumes deserves a look at its events.
const MOUNT_PATIENCE: Duration = Duration::from_secs(4);
/// While something is under way, it is looked at this often even without news.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What every step may use.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What the watches tell.
    pub caches: Caches,
    /// What waits.
    pub queue: Queue<Key>,
    /// Flags.
    pub config: Config,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Whether we may write.
    pub leadership: Leadership,
}

/// A reconcile that must be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A child could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The status could not be written.
    #[error("write the status: {0}")]
    Status(#[source] Box<kube::Error>),
}

/// Brings the cluster one step nearer to `model`, and says how far it is.
async fn reconcile(context: &Context, model: Arc<ModelDeployment>) -> Result<(), Error> {
    let now = Time(Timestamp::now());
    let mut observed = observe(&context.caches, model);
    observed.mounts = mount_trouble(context, &observed, &now).await;
    let plan = plan(&observed, &context.config, &now);
    let wanted = objects(&observed, &plan, &context.config);
    let applied = apply::apply(&context.client, &context.caches, &observed, &plan, wanted).await;
    // What was just written is part of what is reported.
    let mounts = std::mem::take(&mut observed.mounts);
    let observed = Observed { mounts, ..observe(&context.caches, observed.model) };
    let status = report(&observed, &plan, &applied, &now);
    let news = crate::report::events::news(&observed, &plan, &applied, &status);
    write_status(context, &observed.model, status).await?;
    for event in news {
        crate::report::events::publish(&context.client, &observed.model, event, &now).await;
    }
    if under_way(&observed, &plan, &applied) {
        context.queue.push_at(cache::key(observed.model.as_ref()), Instant::now() + LOOK_AGAIN);
    }
    applied?;
    Ok(())
}

/// Pods that wait for volumes tell their reason only in events, so those are asked for: of pods
/// that wait for longer than [`MOUNT_PATIENCE`], one request each time the object is looked at.
async fn mount_trouble(
    context: &Context,
    observed: &Observed,
    now: &Time,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for pod in observed.serving.iter().chain(&observed.compressing) {
        if !waits_for_volumes(pod, now) {
            continue;
        }
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<CoreEvent> = Api::namespaced(context.client.clone(), &namespace);
        let fields = format!("involvedObject.uid={},type=Warning", pod.uid().unwrap_or_default());
        let Ok(events) = api.list(&ListParams::default().fields(&fields).limit(20)).await else {
            continue;
        };
        let newest =
            events.items.iter().rfind(|event| event.reason.as_deref() == Some("FailedMount"));
        if let Some(message) = newest.and_then(|event| event.message.clone()) {
            found.push((pod.name_any(), message));
        }
    }
    found
}

fn waits_for_volumes(pod: &Pod, now: &Time) -> bool {
    let Some(status) = &pod.status else { return false };
    let creating = status.container_statuses.iter().flatten().any(|container| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("ContainerCreating"))
    });
    let old = pod.metadata.creation_timestamp.as_ref().is_some_and(|born| {
        now.0.duration_since(born.0).as_secs() >= MOUNT_PATIENCE.as_secs().cast_signed()
    });
    creating && old
}

/// Whether something may change without an event that tells us.
fn under_way(
    observed: &Observed,
    plan: &crate::plan::Plan,
    applied: &Result<Applied, WriteError>,
) -> bool {
    use crate::plan::compress::JobState;
    let waiting = observed
        .serving
        .iter()
        .chain(&observed.compressing)
        .any(|pod| pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Pending")));
    let lost = matches!(plan.job, JobState::Unreadable(_)) && !plan.current;
    waiting || lost || applied.as_ref().is_err_and(|error| !error.passes())
}

async fn write_status(
    context: &Context,
    model: &ModelDeployment,
    status: ModelDeploymentStatus,
) -> Result<(), Error> {
    if model.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<ModelDeployment> =
        Api::namespaced(context.client.clone(), &model.namespace().unwrap_or_default());
    let body = serde_json::json!({
        "apiVersion": ModelDeployment::api_version(&()),
        "kind": ModelDeployment::kind(&()),
        "metadata": {"name": model.name_any(), "uid": model.uid()},
        "status": status,
    });
    let params = PatchParams::apply(STATUS_MANAGER).force();
    match api.patch_status(&model.name_any(), &params, &Patch::Apply(&body)).await {
        Ok(written) => {
            context.caches.models.put(written);
            Ok(())
        }
        // The object went away meanwhile; its children go with it.
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => Ok(()),
        Err(error) => Err(Error::Status(Box::new(error))),
    }
}

/// Watches and works until the process ends.
pub async fn run(context: Arc<Context>) {
    let scopes: Vec<Option<String>> = if context.config.namespaces.is_empty() {
        vec![None]
    } else {
        context.config.namespaces.iter().cloned().map(Some).collect()
    };
    for scope in scopes {
        watch(&context, scope.as_deref());
    }
    while !context.caches.ready() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let workers = context.config.concurrency.max(2);
    let work = (0..workers).map(|worker| tokio::spawn(work(Arc::clone(&context), worker)));
    for worker in work.collect::<Vec<_>>() {
        if let Err(error) = worker.await {
            tracing::error!(%error, "a worker ended");
        }
    }
}

async fn work(context: Arc<Context>, worker: usize) {
    loop {
        let key = context.queue.next(worker).await;
        let began = Instant::now();
        if !context.leadership.leads(began) {
            // The next leader begins with all objects; so do we, if we become it.
            context.queue.done(&key, false, began);
            continue;
        }
        let Some(model) = context.caches.models.get(&key) else {
            context.queue.done(&key, false, began);
            continue;
        };
        let deleted = model.metadata.deletion_timestamp.is_some();
        let result = if deleted { Ok(()) } else { reconcile(&context, model).await };
        let seconds = began.elapsed().as_secs_f64();
        let failed = match &result {
            Ok(()) => false,
            Err(Error::Write(error)) if !error.passes() => false,
            Err(error) => {
                let error = crate::report::verdicts::chain(error);
                tracing::warn!(namespace = key.0, name = key.1, %error, "reconcile");
                true
            }
        };
        context.metrics.reconcile(if result.is_ok() { "ok" } else { "error" }, seconds);
        context.queue.done(&key, failed, Instant::now());
    }
}

/// Everything that is declared must be looked at: a leader begins with this.
pub fn look_at_all(context: &Context) {
    for key in context.caches.models.keys() {
        context.queue.push(key, Priority::Normal);
    }
}

fn watch(context: &Arc<Context>, namespace: Option<&str>) {
    let caches = &context.caches;
    let told = Arc::clone(context);
    let models = follow(
        api::<ModelDeployment>(context, namespace),
        None,
        Arc::clone(&caches.models),
        cache::whole,
        move |model, change| {
            // Status changes of the object itself are our own writes.
            if change != Change::Status {
                let urgent = change == Change::Spec;
                let priority = if urgent { Priority::Urgent } else { Priority::Normal };
                told.queue.push(cache::key(model), priority);
            }
        },
    );
    tokio::spawn(models);
    let ours = format!("{LABEL_MANAGED_BY}={MANAGED_BY}");
    let ours = ours.as_str();
    children(context, namespace, Some(ours), &caches.deployments, cache::whole);
    children(context, namespace, Some(ours), &caches.jobs, cache::whole);
    children(context, namespace, Some(ours), &caches.pods, cache::whole);
    children(context, namespace, Some(ours), &caches.budgets, cache::whole);
    children(context, namespace, Some(ours), &caches.policies, cache::whole);
    children(context, namespace, None, &caches.services, cache::whole);
    children(context, namespace, None, &caches.accounts, cache::whole);
}

fn api<K>(context: &Context, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    }
}

fn children<K>(
    context: &Arc<Context>,
    namespace: Option<&str>,
    labels: Option<&str>,
    cache: &Arc<Cache<K>>,
    trim: fn(&mut K),
) where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (api, cache, told) = (api::<K>(context, namespace), Arc::clone(cache), Arc::clone(context));
    let labels = labels.map(str::to_owned);
    tokio::spawn(async move {
        follow(api, labels.as_deref(), cache, trim, |child, change| tell(&told, child, change))
            .await;
    });
}

/// News of a child: its owner must be looked at, at once when somebody meddled.
fn tell<K: Resource<DynamicType = ()>>(context: &Context, child: &K, change: Change) {
    let Some(uid) = owner_uid(child) else { return };
    for model in context.caches.models.of(&uid) {
        let key = cache::key(model.as_ref());
        match change {
            Change::Deleted | Change::Spec => context.queue.push(key, Priority::Urgent),
            Change::New | Change::Status => context.queue.push_at(key, Instant::now() + SETTLE),
        }
    }
}

/// The reference of `model` in events.
pub fn reference(model: &ModelDeployment) -> ObjectReference {
    model.object_ref(&())
}
