//! The watches: they keep the caches and tell the queue which objects to look at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource, ResourceExt as _};
use lithe::names::{LABEL_MANAGED_BY, LABEL_MODEL, LABEL_SERVICE, MANAGED_BY};
use lithe::spec::ModelDeployment;

use crate::apply::Child;
use crate::cache::{self, Cache, Change, follow, guarded, key, owner_uid, plain};
use crate::client::WATCH_SECONDS;
use crate::controller::Context;
use crate::queue::Priority;

/// News of a child's status come in bursts; this long they are gathered.
const SETTLE: Duration = Duration::from_millis(150);
/// Objects in one page of a list: what is parsed at a time fills the memory.
const PAGE: u32 = 200;

/// Starts all watches.
pub fn start(context: &Arc<Context>) {
    let namespaces = &context.config.namespaces;
    let scopes: Vec<Option<String>> = match namespaces.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let caches = &context.caches;
    caches.expect(scopes.len(), usize::from(context.config.gateway_service.is_some()));
    if let Some(service) = &context.config.gateway_service {
        gateways(context, service);
    }
    for scope in scopes {
        models(context, scope.clone());
        children(context, scope.clone(), &caches.deployments);
        children(context, scope.clone(), &caches.jobs);
        children(context, scope.clone(), &caches.pods);
        children(context, scope.clone(), &caches.services);
        children(context, scope.clone(), &caches.accounts);
        children(context, scope.clone(), &caches.budgets);
        children(context, scope.clone(), &caches.slices);
        children(context, scope, &caches.policies);
    }
}

/// The gateway's pods are behind every model that uses it: when they change, those are looked at.
fn gateways(context: &Arc<Context>, service: &str) {
    let namespace = context.config.gateway_namespace.clone();
    let api: Api<EndpointSlice> = api(context, Some(&namespace));
    let of_service = format!("{LABEL_SERVICE}={service}");
    let config =
        watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE).labels(&of_service);
    let events = watcher(api, config).default_backoff().map_ok(plain).boxed();
    let context = Arc::clone(context);
    tokio::spawn(async move {
        let tell = |_: &EndpointSlice, _| {
            for model in context.caches.models.all() {
                if model.status.as_ref().is_some_and(|status| status.traffic.is_some()) {
                    context.queue.push(key(model.as_ref()), Priority::Urgent);
                }
            }
        };
        follow(events, &context.caches.gateways, Some(&namespace), tell, |_, _| {}).await;
    });
}

fn models(context: &Arc<Context>, namespace: Option<String>) {
    let api: Api<DeserializeGuard<ModelDeployment>> = api(context, namespace.as_deref());
    let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let events = watcher(api, config).default_backoff().map_ok(guarded).boxed();
    let context = Arc::clone(context);
    tokio::spawn(async move {
        let tell = |model: &ModelDeployment, change| match change {
            Change::Spec => context.queue.push(key(model), Priority::Urgent),
            Change::New => context.queue.push(key(model), Priority::Normal),
            // Our own writes are in the cache before the watch tells, so this is somebody else's.
            Change::Status => context.queue.push_at(key(model), Instant::now() + SETTLE),
            // The children go with their owner.
            Change::Deleted => {}
        };
        let unreadable = |key: &cache::Key, why: &str| {
            context.metrics.unreadable();
            tracing::warn!(namespace = key.0, name = key.1, why, "unreadable ModelDeployment");
        };
        follow(events, &context.caches.models, namespace.as_deref(), tell, unreadable).await;
    });
}

fn children<K>(context: &Arc<Context>, namespace: Option<String>, cache: &Arc<Cache<K>>)
where
    K: Child + Send + Sync + 'static,
{
    let api: Api<K> = api(context, namespace.as_deref());
    let ours = format!("{LABEL_MANAGED_BY}={MANAGED_BY}");
    let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE).labels(&ours);
    let events = watcher(api, config).default_backoff().map_ok(plain).boxed();
    let (context, cache) = (Arc::clone(context), Arc::clone(cache));
    tokio::spawn(async move {
        let tell = |child: &K, change| tell(&context, child, change);
        follow(events, &cache, namespace.as_deref(), tell, |_, _| {}).await;
    });
}

fn api<K>(context: &Context, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let client = context.clients.watches.clone();
    match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    }
}

/// News of a child: its owner must be looked at, at once when somebody meddled.
fn tell<K: Child>(context: &Context, child: &K, change: Change) {
    let Some(uid) = owner_uid(child) else { return };
    let owners = context.caches.models.of(&uid);
    if owners.is_empty() && change == Change::Deleted {
        // A child of an object that went made room for one of the same name.
        let namespace = child.namespace().unwrap_or_default();
        if let Some(name) = child.labels().get(LABEL_MODEL) {
            context.queue.push((namespace, name.clone()), Priority::Normal);
        }
    }
    for model in owners {
        let key = key(model.as_ref());
        match change {
            Change::Deleted | Change::Spec => context.queue.push(key, Priority::Urgent),
            Change::New | Change::Status => context.queue.push_at(key, Instant::now() + SETTLE),
        }
    }
}
