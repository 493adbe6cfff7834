//! Events: one for each turn of the story, none for each child or look.

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt as _};
use lithe::Digest;
use lithe::spec::ModelDeployment;
use lithe::status::{ModelDeploymentStatus, condition};

use crate::apply::{Applied, WriteError};
use crate::observe::Observed;
use crate::plan::Plan;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// `Normal` or `Warning`.
    pub kind: &'static str,
    /// A condition's reason, or the name of the turn.
    pub reason: String,
    /// What was done.
    pub action: &'static str,
    /// For people.
    pub message: String,
}

/// What is new in `status` beside the status before.
pub fn news(
    observed: &Observed,
    plan: &Plan,
    applied: &Result<Applied, WriteError>,
    status: &ModelDeploymentStatus,
) -> Vec<News> {
    let before = observed.model.status.as_ref();
    let find = |status: &ModelDeploymentStatus, kind: &str| {
        let found = status.conditions.iter().find(|condition| condition.type_ == kind);
        found.map(|found| (found.status.clone(), found.reason.clone(), found.message.clone()))
    };
    let mut news = Vec::new();
    if let (Some(why), Ok(_)) = (&plan.start, applied) {
        news.push(News {
            kind: "Normal",
            reason: "CompressionStarted".into(),
            action: "Compress",
            message: format!(
                "{}: {why}",
                status.job.as_ref().map_or("Job", |job| job.name.as_str())
            ),
        });
    }
    for (kind, action) in [
        (condition::ACCEPTED, "Accept"),
        (condition::COMPRESSED, "Compress"),
        (condition::PROGRESSING, "RollOut"),
    ] {
        let Some((truth, reason, message)) = find(status, kind) else { continue };
        let same = before
            .and_then(|before| find(before, kind))
            .is_some_and(|(old, why, _)| old == truth && why == reason);
        let quiet = matches!(
            reason.as_str(),
            lithe::names::reason::IN_PROGRESS
                | lithe::names::reason::WAITING
                | lithe::names::reason::ACCEPTED
        );
        // Pretended artifacts are no story.
        let bench = plan
            .artifact
            .as_ref()
            .is_some_and(|artifact| artifact.uri.starts_with("file:///bench/"));
        if !same && !quiet && !bench {
            let kind = if truth == "True" { "Normal" } else { "Warning" };
            news.push(News { kind, reason, action, message });
        }
    }
    news
}

/// Writes `news` about `model`. The name is the digest of the news, so that the same story told
/// twice is one event. An event that cannot be written is lost: the status says the same.
pub async fn publish(client: &Client, model: &ModelDeployment, news: News, now: &Time) {
    let namespace = model.namespace().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let told =
        serde_json::json!([model.uid(), model.metadata.generation, news.reason, news.message]);
    let name = format!("{}.{}", model.name_any(), Digest::of_json(&told).short());
    let event = Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..Default::default() },
        event_time: Some(MicroTime(now.0)),
        action: Some(news.action.into()),
        reason: Some(news.reason),
        note: Some(news.message.chars().take(1000).collect()),
        type_: Some(news.kind.into()),
        regarding: Some(crate::controller::reference(model)),
        reporting_controller: Some("lithe.dev/operator".into()),
        reporting_instance: Some("lithe-operator".into()),
        ..Default::default()
    };
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => tracing::debug!(%error, "event"),
    }
}
