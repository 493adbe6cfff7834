//! The writes: children by server-side apply, only what differs, never somebody else's object.
//!
//! A child is written when it is missing, when what we want changed (the digest in its annotation
//! tells), or when somebody changed what we wrote. At rest and after a restart nothing is written.

mod error;

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::{Api, Client, Resource, ResourceExt as _};
use lithe::Digest;
use lithe::names::{ANNOTATION_APPLIED, FIELD_MANAGER, LABEL_UID};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use error::{WriteError, words};

use crate::cache::{Cache, key};
use crate::drift::subset;
use crate::objects::Objects;
use crate::objects::service::is_workers;
use crate::observe::{Caches, Observed};
use crate::plan::Plan;
use crate::plan::traffic::is_ours;

/// A resource version that no object has. A server-side apply that carries it creates a missing
/// object and gets a conflict from one that exists: "create, never overwrite" in one request, and
/// under the same field manager as every later apply, so that fields we drop later do go away
/// (after a POST they would stay, owned by its `Update` entry).
const ABSENT: &str = "1";

/// A kind of child.
pub trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
{
}

impl<K> Child for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

/// What was written, as `Kind/name`, and what could not be.
#[derive(Debug, Default)]
pub struct Applied {
    /// Children that were created.
    pub created: Vec<String>,
    /// Children that were set right.
    pub changed: Vec<String>,
    /// Children that were removed.
    pub removed: Vec<String>,
    /// Writes that did not happen. The others did: one child in trouble holds up no other.
    pub failed: Vec<WriteError>,
}

/// What a write needs.
pub struct Access<'a> {
    /// The API server.
    pub client: &'a Client,
    /// Whether this process may write now; asked before each write.
    pub leads: &'a (dyn Fn() -> bool + Sync),
}

/// Brings the children to what `objects` says. The order: what pods stand on comes before pods.
pub async fn apply(
    access: &Access<'_>,
    caches: &Caches,
    observed: &Observed,
    plan: &Plan,
    objects: Objects,
) -> Applied {
    let uid = observed.model.uid().unwrap_or_default();
    let mut writer = Writer { access, uid: &uid, applied: Applied::default() };
    // Destructured without `..`: a new kind of child cannot be forgotten here.
    let Objects { account, policies, service, workers, slice, budget, deployment, job, job_meta } =
        objects;
    writer.ensure(&caches.accounts, account).await;
    let wanted: Vec<_> = policies.iter().map(key).collect();
    for policy in policies {
        writer.ensure(&caches.policies, policy).await;
    }
    for old in caches.policies.of(&uid) {
        if !wanted.contains(&key(old.as_ref())) {
            writer.remove(&caches.policies, old.as_ref()).await;
        }
    }
    // An address that answers is there before the Service leads to it, and until it leads elsewhere.
    let no_slice = slice.is_none();
    if let Some(slice) = slice {
        writer.ensure(&caches.slices, slice).await;
    }
    writer.ensure(&caches.services, service).await;
    match workers {
        Some(workers) => writer.ensure(&caches.services, workers).await,
        None => {
            let named = |old: &Arc<Service>| is_workers(old, &observed.model);
            for old in caches.services.of(&uid).into_iter().filter(named) {
                writer.remove(&caches.services, old.as_ref()).await;
            }
        }
    }
    for old in caches.slices.of(&uid).into_iter().filter(|old| no_slice && is_ours(old)) {
        writer.remove(&caches.slices, old.as_ref()).await;
    }
    match budget {
        Some(budget) => writer.ensure(&caches.budgets, budget).await,
        None => {
            for old in caches.budgets.of(&uid) {
                writer.remove(&caches.budgets, old.as_ref()).await;
            }
        }
    }
    if let Some(deployment) = deployment {
        writer.ensure(&caches.deployments, deployment).await;
    }
    writer.jobs(caches, observed, plan, job, job_meta).await;
    let slow = |pod: &&Arc<Pod>| plan.replace.contains(&pod.uid().unwrap_or_default());
    for pod in observed.serving.iter().filter(slow) {
        if pod.metadata.deletion_timestamp.is_none() {
            writer.remove(&caches.pods, pod.as_ref()).await;
        }
    }
    writer.applied
}

struct Writer<'a> {
    access: &'a Access<'a>,
    uid: &'a str,
    applied: Applied,
}

/// What became of one child.
enum Outcome {
    Same,
    Created,
    Changed,
}

impl Writer<'_> {
    async fn ensure<K: Child>(&mut self, cache: &Cache<K>, desired: K) {
        let label = label(&desired);
        match self.bring(cache, desired).await {
            Ok(Outcome::Same) => {}
            Ok(Outcome::Created) => self.applied.created.push(label),
            Ok(Outcome::Changed) => self.applied.changed.push(label),
            Err(error) => self.applied.failed.push(error),
        }
    }

    async fn bring<K: Child>(&self, cache: &Cache<K>, desired: K) -> Result<Outcome, WriteError> {
        let Some(known) = cache.get(&key(&desired)) else {
            return self.create(cache, desired).await;
        };
        // One that is on its way out is made anew when it is gone.
        if known.meta().deletion_timestamp.is_some() {
            return Ok(Outcome::Same);
        }
        self.check_owner(known.as_ref())?;
        let body = body(&desired);
        if subset(&body, &serde_json::to_value(known.as_ref()).unwrap_or_default()) {
            return Ok(Outcome::Same);
        }
        self.overwrite(cache, &desired, body, known.uid()).await
    }

    /// Creates what the cache does not show. When the name is taken after all, it is ours with its
    /// labels lost, and is set right, or somebody else's, and is left alone.
    async fn create<K: Child>(&self, cache: &Cache<K>, desired: K) -> Result<Outcome, WriteError> {
        let (api, name) = (self.api::<K>(&desired)?, desired.name_any());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let body = body(&desired);
        let mut first = body.clone();
        set(&mut first, "resourceVersion", ABSENT.into());
        match api.patch(&name, &params, &Patch::Apply(&first)).await {
            Ok(written) => {
                cache.put(written);
                return Ok(Outcome::Created);
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(source) => return Err(refused(&desired, source)),
        }
        let taken = api.get(&name).await.map_err(|source| refused(&desired, source))?;
        self.check_owner(&taken)?;
        if taken.meta().deletion_timestamp.is_some() {
            return Ok(Outcome::Same);
        }
        self.overwrite(cache, &desired, body, taken.uid()).await
    }

    async fn overwrite<K: Child>(
        &self,
        cache: &Cache<K>,
        desired: &K,
        mut body: Value,
        uid: Option<String>,
    ) -> Result<Outcome, WriteError> {
        let api = self.api::<K>(desired)?;
        // Never a newer object of the same name: it would not be known to be ours.
        set(&mut body, "uid", uid.into());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = api.patch(&desired.name_any(), &params, &Patch::Apply(&body)).await;
        cache.put(written.map_err(|source| refused(desired, source))?);
        Ok(Outcome::Changed)
    }

    /// Jobs: one of another request goes, as does one that the plan discards; the one that stays
    /// keeps its labels and owner; a missing one is created.
    async fn jobs(
        &mut self,
        caches: &Caches,
        observed: &Observed,
        plan: &Plan,
        job: Option<Job>,
        meta: ObjectMeta,
    ) {
        for old in observed.jobs.iter().filter(|job| job.metadata.deletion_timestamp.is_none()) {
            if plan.keeps(old) {
                self.relabel(&caches.jobs, old.as_ref(), &meta).await;
            } else {
                self.remove(&caches.jobs, old.as_ref()).await;
            }
        }
        if let Some(job) = job {
            let label = label(&job);
            match self.create_job(&caches.jobs, job, &meta).await {
                Ok(true) => self.applied.created.push(label),
                Ok(false) => {}
                Err(error) => self.applied.failed.push(error),
            }
        }
    }

    /// Most of a Job cannot be changed, so it is created as it is and only its metadata repaired.
    async fn create_job(
        &mut self,
        cache: &Cache<Job>,
        job: Job,
        meta: &ObjectMeta,
    ) -> Result<bool, WriteError> {
        let (api, name) = (self.api::<Job>(&job)?, job.name_any());
        let mut first = body(&job);
        set(&mut first, "resourceVersion", ABSENT.into());
        match api
            .patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&first))
            .await
        {
            Ok(written) => {
                cache.put(written);
                return Ok(true);
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(source) => return Err(refused(&job, source)),
        }
        let taken = api.get(&name).await.map_err(|source| refused(&job, source))?;
        self.check_owner(&taken)?;
        if taken.metadata.deletion_timestamp.is_none() {
            self.relabel(cache, &taken, meta).await;
            cache.put(taken);
        }
        Ok(false)
    }

    async fn relabel(&mut self, cache: &Cache<Job>, job: &Job, meta: &ObjectMeta) {
        let wanted = json!({"labels": meta.labels, "ownerReferences": meta.owner_references});
        if subset(&wanted, &serde_json::to_value(&job.metadata).unwrap_or_default()) {
            return;
        }
        let mut patch = json!({"metadata": wanted});
        set(&mut patch, "uid", job.uid().into());
        let api = match self.api::<Job>(job) {
            Ok(api) => api,
            Err(error) => return self.applied.failed.push(error),
        };
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
        match api.patch(&job.name_any(), &params, &Patch::Merge(&patch)).await {
            Ok(written) => {
                cache.put(written);
                self.applied.changed.push(label(job));
            }
            Err(source) => self.applied.failed.push(refused(job, source)),
        }
    }

    async fn remove<K: Child>(&mut self, cache: &Cache<K>, object: &K) {
        let api = match self.api::<K>(object) {
            Ok(api) => api,
            Err(error) => return self.applied.failed.push(error),
        };
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            // Never a newer object of the same name.
            preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
            ..Default::default()
        };
        match api.delete(&object.name_any(), &params).await {
            Ok(either) => {
                if let Some(left) = either.left() {
                    cache.put(left);
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(source) => return self.applied.failed.push(refused(object, source)),
        }
        self.applied.removed.push(label(object));
    }

    /// The way to the children of `object`'s kind and namespace, as long as we lead.
    fn api<K: Child>(&self, object: &K) -> Result<Api<K>, WriteError> {
        if !(self.access.leads)() {
            return Err(WriteError::NotLeader);
        }
        let namespace = object.namespace().unwrap_or_default();
        Ok(Api::namespaced(self.access.client.clone(), &namespace))
    }

    /// Ours is what has our UID as its controller, or, with no controller, in its label.
    fn check_owner<K: Child>(&self, object: &K) -> Result<(), WriteError> {
        let controller =
            object.owner_references().iter().find(|owner| owner.controller == Some(true));
        let ours = match controller {
            Some(owner) => owner.uid == self.uid,
            None => object.labels().get(LABEL_UID).is_some_and(|uid| uid == self.uid),
        };
        if ours {
            return Ok(());
        }
        let owner = controller.map_or_else(
            || "nobody owns it".to_owned(),
            |owner| format!("it belongs to {} {}", owner.kind, owner.name),
        );
        let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
        Err(WriteError::Foreign { kind, name, owner })
    }
}

/// `Kind/name` of `object`.
fn label<K: Child>(object: &K) -> String {
    format!("{}/{}", K::kind(&()), object.name_any())
}

/// `desired` as it is sent: with its type, and its own digest as an annotation.
fn body<K: Child>(desired: &K) -> Value {
    let mut body = serde_json::to_value(desired).unwrap_or_default();
    let digest = Digest::of(body.to_string());
    if let Some(fields) = body.as_object_mut() {
        fields.insert("apiVersion".into(), K::api_version(&()).into());
        fields.insert("kind".into(), K::kind(&()).into());
        let meta = fields.entry("metadata").or_insert_with(|| json!({}));
        if let Some(meta) = meta.as_object_mut() {
            let notes = meta.entry("annotations").or_insert_with(|| json!({}));
            if let Some(notes) = notes.as_object_mut() {
                notes.insert(ANNOTATION_APPLIED.into(), digest.to_string().into());
            }
        }
    }
    body
}

fn set(body: &mut Value, field: &str, value: Value) {
    if let Some(meta) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert(field.into(), value);
    }
}

fn refused<K: Child>(object: &K, source: kube::Error) -> WriteError {
    let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
    WriteError::Refused { kind, name, source: Box::new(source) }
}
