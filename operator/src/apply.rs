//! The writes: children by server-side apply, only what differs, never somebody else's object.
//!
//! A child is written when it is missing, when what we want changed (the digest in its annotation
//! tells), or when somebody changed what we wrote. At rest and after a restart nothing is written.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::{Api, Client, Resource, ResourceExt as _};
use lithe::Digest;
use lithe::names::{ANNOTATION_APPLIED, FIELD_MANAGER, reason};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cache::{Cache, key, owner_uid};
use crate::objects::Objects;
use crate::observe::{Caches, Observed};
use crate::plan::Plan;
use crate::plan::compress::JobState;

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// An object of the child's name belongs to somebody else.
    #[error("{kind} {name} exists and is not ours ({owner}); rename one of the two")]
    Foreign {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// Who it seems to belong to.
        owner: String,
    },
    /// The API server refused it.
    #[error("write {kind} {name}: {source}")]
    Refused {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl WriteError {
    /// The condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Foreign { .. } => reason::NAME_CONFLICT,
            Self::Refused { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.message.contains("exceeded quota") => {
                    reason::QUOTA_EXCEEDED
                }
                _ => reason::WRITE_REFUSED,
            },
        }
    }

    /// Whether trying again soon can help.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// `Kind/name` of each child that was created.
    pub created: Vec<String>,
    /// `Kind/name` of each child that was set right.
    pub changed: Vec<String>,
    /// `Kind/name` of each child that was removed.
    pub removed: Vec<String>,
}

/// Brings the children to what `objects` says. The order: what pods stand on comes before pods.
pub async fn apply(
    client: &Client,
    caches: &Caches,
    observed: &Observed,
    plan: &Plan,
    objects: Objects,
) -> Result<Applied, WriteError> {
    let mut writer = Writer { client, applied: Applied::default() };
    // Destructured without `..`: a new kind of child cannot be forgotten here.
    let Objects { account, policy, service, budget, deployment, job } = objects;
    writer.ensure(&caches.accounts, account).await?;
    match policy {
        Some(policy) => writer.ensure(&caches.policies, policy).await?,
        None => {
            for old in caches.policies.of(&observed.model.uid().unwrap_or_default()) {
                writer.remove(&caches.policies, old.as_ref()).await?;
            }
        }
    }
    writer.ensure(&caches.services, service).await?;
    writer.ensure(&caches.budgets, budget).await?;
    if let Some(deployment) = deployment {
        writer.ensure(&caches.deployments, deployment).await?;
    }
    writer.prune_jobs(caches, observed, plan).await?;
    if let Some(job) = job {
        writer.create_job(caches, job).await?;
    }
    Ok(writer.applied)
}

struct Writer<'a> {
    client: &'a Client,
    applied: Applied,
}

impl Writer<'_> {
    async fn ensure<K>(&mut self, cache: &Cache<K>, mut desired: K) -> Result<(), WriteError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let place = key(&desired);
        let label = format!("{}/{}", K::kind(&()), place.1);
        let known = cache.get(&place);
        if let Some(known) = &known
            && owner_uid(known.as_ref()) != owner_uid(&desired)
        {
            return Err(foreign(known.as_ref()));
        }
        let digest = Digest::of_json(&desired);
        desired.annotations_mut().insert(ANNOTATION_APPLIED.into(), digest.to_string());
        let mut body = serde_json::to_value(&desired).unwrap_or_default();
        if let Some(known) = &known {
            let seen = serde_json::to_value(known.as_ref()).unwrap_or_default();
            if subset(&body, &seen) {
                return Ok(());
            }
        }
        if let Some(fields) = body.as_object_mut() {
            fields.insert("apiVersion".into(), K::api_version(&()).into());
            fields.insert("kind".into(), K::kind(&()).into());
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &place.0);
        let mut params = PatchParams::apply(FIELD_MANAGER);
        // Without force a foreign object that the cache does not show answers with a conflict.
        params.force = known.is_some();
        let written = api.patch(&place.1, &params, &Patch::Apply(&body)).await;
        let written = written.map_err(|source| refused::<K>(&place.1, source))?;
        cache.put(written);
        let list =
            if known.is_some() { &mut self.applied.changed } else { &mut self.applied.created };
        list.push(label);
        Ok(())
    }

    async fn create_job(&mut self, caches: &Caches, job: Job) -> Result<(), WriteError> {
        let (namespace, name) = key(&job);
        let api: Api<Job> = Api::namespaced(self.client.clone(), &namespace);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
        match api.create(&params, &job).await {
            Ok(created) => {
                caches.jobs.put(created);
                self.applied.created.push(format!("Job/{name}"));
                Ok(())
            }
            // The name holds UID and request: it is the same Job, which the watch will show.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            Err(source) => Err(refused::<Job>(&name, source)),
        }
    }

    /// Jobs of other requests go, and one whose result cannot be read.
    async fn prune_jobs(
        &mut self,
        caches: &Caches,
        observed: &Observed,
        plan: &Plan,
    ) -> Result<(), WriteError> {
        let unreadable = match &plan.job {
            JobState::Unreadable(name) if !plan.current => Some(name.as_str()),
            _ => None,
        };
        for job in &observed.jobs {
            let request = job.annotations().get(lithe::names::ANNOTATION_REQUEST);
            let other = request.is_none_or(|request| request != plan.request.as_str());
            let lost = Some(job.name_any().as_str()) == unreadable;
            if job.metadata.deletion_timestamp.is_none() && (other || lost) {
                self.remove(&caches.jobs, job.as_ref()).await?;
            }
        }
        Ok(())
    }

    async fn remove<K>(&mut self, cache: &Cache<K>, object: &K) -> Result<(), WriteError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let (namespace, name) = key(object);
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            // Never a newer object of the same name.
            preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
            ..Default::default()
        };
        match api.delete(&name, &params).await {
            Ok(either) => {
                if let Some(left) = either.left() {
                    cache.put(left);
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(source) => return Err(refused::<K>(&name, source)),
        }
        self.applied.removed.push(format!("{}/{name}", K::kind(&())));
        Ok(())
    }
}

fn refused<K: Resource<DynamicType = ()>>(name: &str, source: kube::Error) -> WriteError {
    let kind = K::kind(&()).into_owned();
    if let kube::Error::Api(status) = &source
        && status.reason == "Conflict"
        && status.message.contains("conflict")
        && status.message.contains("using")
    {
        return WriteError::Foreign { kind, name: name.into(), owner: status.message.clone() };
    }
    WriteError::Refused { kind, name: name.into(), source: Box::new(source) }
}

fn foreign<K: Resource<DynamicType = ()>>(object: &K) -> WriteError {
    let owner = object.owner_references().first().map_or_else(
        || "nobody owns it".to_owned(),
        |owner| format!("it belongs to {} {}", owner.kind, owner.name),
    );
    WriteError::Foreign { kind: K::kind(&()).into_owned(), name: object.name_any(), owner }
}

/// Whether `seen` has everything that `wanted` has: what the API server and other writers added
/// does not count, what they changed or removed does. Lists must agree element by element.
pub fn subset(wanted: &Value, seen: &Value) -> bool {
    match (wanted, seen) {
        (Value::Object(wanted), Value::Object(seen)) => wanted.iter().all(|(name, value)| {
            value.is_null() || seen.get(name).is_some_and(|s| subset(value, s))
        }),
        (Value::Array(wanted), Value::Array(seen)) => {
            wanted.len() == seen.len() && wanted.iter().zip(seen).all(|(w, s)| subset(w, s))
        }
        (Value::String(wanted), Value::String(seen)) => {
            wanted == seen || quantity(wanted).is_some_and(|value| quantity(seen) == Some(value))
        }
        _ => wanted == seen,
    }
}

/// The value of a Kubernetes quantity: the API server writes `1000m` as `1`.
fn quantity(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|value| value * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::subset;

    #[test]
    fn additions_are_not_drift_and_changes_are() {
        let wanted = json!({"spec": {"replicas": 1, "ports": [{"port": 80}]}, "gone": null});
        let rows = [
            (
                json!({"spec": {"replicas": 1, "ports": [{"port": 80, "nodePort": 1}]}, "x": 1}),
                true,
            ),
            (json!({"spec": {"replicas": 2, "ports": [{"port": 80}]}}), false),
            (json!({"spec": {"replicas": 1, "ports": [{"port": 80}, {"port": 81}]}}), false),
            (json!({"spec": {"replicas": 1}}), false),
        ];
        assert!(subset(&json!({"cpu": "1000m"}), &json!({"cpu": "1"})));
        assert!(!subset(&json!({"cpu": "1000m"}), &json!({"cpu": "2"})));
        for (seen, same) in rows {
            assert_eq!(subset(&wanted, &seen), same, "{seen}");
        }
    }
}
