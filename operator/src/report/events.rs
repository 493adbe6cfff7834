//! Events: one for each turn of the story, none for each child or look.

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use lithe::Digest;
use lithe::names::reason;
use lithe::spec::ModelDeployment;
use lithe::status::{ModelDeploymentStatus, condition};

use crate::observe::Observed;
use crate::plan::{PRETENDED, Plan};

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
pub fn news(observed: &Observed, plan: &Plan, status: &ModelDeploymentStatus) -> Vec<News> {
    // Pretended artifacts are no story.
    if plan.artifact.as_ref().is_some_and(|artifact| artifact.uri.starts_with(PRETENDED)) {
        return Vec::new();
    }
    let before = observed.model.status.as_ref();
    let job = status.job.as_ref().filter(|job| {
        let known = before.and_then(|before| before.job.as_ref());
        known.is_none_or(|known| (&known.name, &known.started) != (&job.name, &job.started))
    });
    let started = job.map(|job| News {
        kind: "Normal",
        reason: "CompressionStarted".into(),
        action: "Compress",
        message: format!("Job {}: {}", job.name, job.why),
    });
    let turns = [
        (condition::ACCEPTED, "Accept"),
        (condition::COMPRESSED, "Compress"),
        (condition::PROGRESSING, "RollOut"),
    ];
    let turned = turns.into_iter().filter_map(|(kind, action)| turn(before, status, kind, action));
    let mut news: Vec<News> = started.into_iter().chain(turned).collect();
    // Before there is an artifact, Progressing only repeats what Compressed says.
    news.dedup_by(|later, earlier| {
        (&later.reason, &later.message) == (&earlier.reason, &earlier.message)
    });
    news
}

/// The news that the condition `kind` turned, unless the new state is only a stage on the way.
fn turn(
    before: Option<&ModelDeploymentStatus>,
    status: &ModelDeploymentStatus,
    kind: &str,
    action: &'static str,
) -> Option<News> {
    let find = |status: &ModelDeploymentStatus| {
        status.conditions.iter().find(|condition| condition.type_ == kind).cloned()
    };
    let new = find(status)?;
    let same = |old: &Condition| old.status == new.status && old.reason == new.reason;
    let quiet = [reason::IN_PROGRESS, reason::WAITING, reason::ACCEPTED];
    if quiet.contains(&new.reason.as_str()) || before.and_then(find).is_some_and(|old| same(&old)) {
        return None;
    }
    let kind = if new.status == "True" { "Normal" } else { "Warning" };
    Some(News { kind, reason: new.reason, action, message: new.message })
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
        regarding: Some(model.object_ref(&())),
        reporting_controller: Some("lithe.dev/operator".into()),
        reporting_instance: Some("lithe-operator".into()),
        ..Default::default()
    };
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => tracing::warn!(%error, "event"),
    }
}
