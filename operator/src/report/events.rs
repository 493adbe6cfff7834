//! The news that become Events: one for each turn of the story, none for each child or look.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use lithe::names::reason;
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
    /// When it was, where the same may happen again.
    pub when: Option<Time>,
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
        when: None,
    });
    let turns = [
        (condition::ACCEPTED, "Accept"),
        (condition::COMPRESSED, "Compress"),
        (condition::PROGRESSING, "RollOut"),
        (condition::SCALING_ACTIVE, "Scale"),
    ];
    let turned = turns.into_iter().filter_map(|(kind, action)| turn(before, status, kind, action));
    let mut news: Vec<News> =
        started.into_iter().chain(turned).chain(scaled(before, status)).collect();
    // Before there is an artifact, Progressing only repeats what Compressed says.
    news.dedup_by(|later, earlier| {
        (&later.reason, &later.message) == (&earlier.reason, &earlier.message)
    });
    news
}

/// The news that the number of pods changed.
fn scaled(before: Option<&ModelDeploymentStatus>, status: &ModelDeploymentStatus) -> Option<News> {
    let step = status.last_scale.as_ref()?;
    if before.and_then(|before| before.last_scale.as_ref()) == Some(step) {
        return None;
    }
    Some(News {
        kind: "Normal",
        reason: if step.to > step.from { "ScaledUp" } else { "ScaledDown" }.into(),
        action: "Scale",
        message: format!("from {} to {} pods: {}", step.from, step.to, step.reason),
        when: Some(step.time.clone()),
    })
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
    let quiet = [reason::IN_PROGRESS, reason::WAITING, reason::ACCEPTED, reason::HOLDING];
    // That scaling works is news only after it did not; of its steps other events tell.
    let failed = |old: Condition| old.status == "False";
    if kind == condition::SCALING_ACTIVE
        && new.status == "True"
        && !before.and_then(find).is_some_and(failed)
    {
        return None;
    }
    if quiet.contains(&new.reason.as_str()) || before.and_then(find).is_some_and(|old| same(&old)) {
        return None;
    }
    let kind = if new.status == "True" { "Normal" } else { "Warning" };
    Some(News { kind, reason: new.reason, action, message: new.message, when: None })
}
