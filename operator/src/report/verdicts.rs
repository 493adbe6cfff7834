//! The conditions, each with its truth table. Every one always has a status, a reason and words.

use lithe::artifact::Refusal;
use lithe::names::reason;
use lithe::spec::ScalingMode;
use lithe::status::{ArtifactStatus, Truth, Verdict, condition};
use lithe::units::human_bytes;

use crate::apply::Applied;
use crate::observe::Observed;
use crate::plan::Plan;
use crate::plan::compress::JobState;
use crate::plan::failure::PodFailure;
use crate::plan::rollout::{Progress, Surge};
use crate::plan::scaling::served_before;
use crate::report::serves;

/// All conditions, in order.
pub fn all(
    observed: &Observed,
    plan: &Plan,
    applied: &Applied,
    progress: &Progress,
) -> Vec<(&'static str, Verdict)> {
    let progressing = progressing(observed, plan, applied, progress);
    let available = available(observed, plan, progress);
    let accepted = accepted(plan);
    let compressed = compressed(plan);
    let ready = ready(observed, plan, progress, [&accepted, &compressed, &progressing, &available]);
    vec![
        (condition::ACCEPTED, accepted),
        (condition::MODEL_VERIFIED, verified(plan)),
        (condition::COMPRESSED, compressed),
        (condition::PROGRESSING, progressing),
        (condition::AVAILABLE, available),
        (condition::SCALING_ACTIVE, scaling(observed, plan)),
        (condition::READY, ready),
    ]
}

/// Accepted: False as soon as one field cannot be honoured.
fn accepted(plan: &Plan) -> Verdict {
    if plan.refused.is_empty() {
        return Verdict::new(true, reason::ACCEPTED, "this version can do all that the spec asks");
    }
    let fields: Vec<String> =
        plan.refused.iter().map(|field| format!("{}: {}", field.path, field.message)).collect();
    Verdict::new(false, reason::UNSUPPORTED, fields.join("; "))
}

/// Reasons of a refusal that are about the source itself.
const ABOUT_SOURCE: [&str; 20] = [
    reason::DIGEST_MISMATCH,
    reason::SOURCE_NOT_FOUND,
    reason::SOURCE_AUTH_FAILED,
    reason::SOURCE_UNAVAILABLE,
    reason::SOURCE_FORBIDDEN,
    reason::SECRET_MISSING,
    reason::VOLUME_MISSING,
    reason::CORRUPT,
    reason::UNSUPPORTED_FORMAT,
    reason::FORBIDDEN_OP,
    reason::EXTERNAL_DATA_PATH,
    reason::EXTERNAL_DATA_NOT_REGULAR,
    reason::EXTERNAL_DATA_RANGE,
    reason::EXTERNAL_DATA_KEY,
    reason::TENSOR_SIZE,
    reason::RESOURCE_BUDGET,
    reason::CYCLE,
    reason::RUNTIME_REFUSED,
    reason::RUNTIME_CRASH,
    reason::NOT_FINITE,
];

/// The reason `name` when it is about the source.
fn about_source(name: &str) -> Option<&'static str> {
    ABOUT_SOURCE.into_iter().find(|known| *known == name)
}

/// ModelVerified.
///
/// | artifact for the newest spec | Job | verdict |
/// |---|---|---|
/// | yes | - | True Verified |
/// | no | failed about the source | False, its reason |
/// | no | failed later, source known | True Verified |
/// | no | failed before it could tell | Unknown Waiting |
/// | no | held up about the source | False, its reason |
/// | no | works or will | Unknown InProgress |
/// | no | none, spec not accepted | Unknown Waiting |
fn verified(plan: &Plan) -> Verdict {
    let unknown = |reason, words: &str| Verdict::new(Truth::Unknown, reason, words);
    match (&plan.artifact, &plan.job) {
        (Some(artifact), _) if plan.current => {
            let size = human_bytes(artifact.original_size);
            let words = format!("{} ({size}) passed every check", artifact.source);
            Verdict::new(true, reason::VERIFIED, words)
        }
        (_, JobState::Failed(refusal)) => match (about_source(&refusal.reason), &refusal.source) {
            (Some(known), _) => Verdict::new(false, known, words(refusal)),
            (None, Some(source)) => {
                Verdict::new(true, reason::VERIFIED, format!("{source} passed every check"))
            }
            (None, None) => unknown(reason::WAITING, "the Job ended before it could tell"),
        },
        (_, JobState::Running(Some(held))) if about_source(held.reason).is_some() => {
            Verdict::new(false, held.reason, held.message.clone())
        }
        _ if !plan.refused.is_empty() => unknown(reason::WAITING, "waits for an accepted spec"),
        _ => unknown(reason::IN_PROGRESS, "the Job fetches and checks the model"),
    }
}

fn words(refusal: &Refusal) -> String {
    match &refusal.field {
        Some(field) => format!("{field}: {}", refusal.message),
        None => refusal.message.clone(),
    }
}

/// Compressed.
///
/// | artifact for the newest spec | Job | verdict |
/// |---|---|---|
/// | yes, gates failed and the original is served | - | False ServingOriginal |
/// | yes, without steps | - | True NotRequested |
/// | yes | - | True Compressed, with figures |
/// | no | failed | False, its reason |
/// | no | held up | False, the pod's reason |
/// | no | works or will | Unknown InProgress |
/// | no | none, spec not accepted | Unknown Waiting |
fn compressed(plan: &Plan) -> Verdict {
    if let (Some(artifact), true) = (&plan.artifact, plan.current) {
        return made(artifact);
    }
    let unknown = |reason, words: &str| Verdict::new(Truth::Unknown, reason, words);
    match &plan.job {
        JobState::Failed(refusal) => {
            let known = reason::known(&refusal.reason).unwrap_or(reason::FAILED);
            Verdict::new(false, known, words(refusal))
        }
        JobState::Running(Some(held)) => Verdict::new(false, held.reason, held.message.clone()),
        _ if !plan.refused.is_empty() => unknown(reason::WAITING, "waits for an accepted spec"),
        JobState::Unreadable(name) => {
            let words = format!("the result of Job {name} was lost; the store has what it made");
            unknown(reason::IN_PROGRESS, &words)
        }
        JobState::Outdated(name) => {
            let words = format!("Job {name} is tried again with what the spec now gives it");
            unknown(reason::IN_PROGRESS, &words)
        }
        _ => unknown(reason::IN_PROGRESS, "the Job works on the newest spec"),
    }
}

fn made(artifact: &ArtifactStatus) -> Verdict {
    if let Some(why) = &artifact.fallback {
        return Verdict::new(false, reason::SERVING_ORIGINAL, why.clone());
    }
    if artifact.steps.is_empty() {
        let words = "no steps were asked; the verified original is served";
        return Verdict::new(true, reason::NOT_REQUESTED, words);
    }
    let metric = artifact.metric.as_ref().zip(artifact.value.as_ref());
    let figures = [
        Some(artifact.sizes.clone()),
        metric.map(|(metric, value)| {
            let original = artifact.original_value.as_deref().unwrap_or("-");
            format!("{metric} {value} (original {original})")
        }),
        artifact.speedup_text.as_ref().map(|ratio| format!("{ratio} as fast")),
    ];
    let figures: Vec<String> = figures.into_iter().flatten().collect();
    Verdict::new(true, reason::COMPRESSED, figures.join(", "))
}

/// Progressing.
///
/// | writes | artifact | rollout | verdict |
/// |---|---|---|---|
/// | failed | - | - | False, the first write's reason |
/// | ok | none, Job failed or held up | - | False, the Job's reason |
/// | ok | none, Job works or will | - | True InProgress |
/// | ok | none, spec not accepted | - | False Waiting |
/// | ok | some | scaled to zero | True RolledOut |
/// | ok | some | ended | True RolledOut |
/// | ok | some | pods refused | False QuotaExceeded or WriteRefused |
/// | ok | some | no accelerator, one pod | False InsufficientAccelerators, with the opt-in |
/// | ok | some | no accelerator, more pods | True InProgress, with what was chosen |
/// | ok | some | a pod has trouble | False, its reason |
/// | ok | some | stands still for too long | False DeadlineExceeded |
/// | ok | some | ended before, pods come or go by need | True RolledOut |
/// | ok | some | on its way | True InProgress |
fn progressing(
    observed: &Observed,
    plan: &Plan,
    applied: &Applied,
    progress: &Progress,
) -> Verdict {
    if let Some(error) = applied.failed.first() {
        return Verdict::new(false, error.reason(), error.to_string());
    }
    let Some(artifact) = &plan.artifact else {
        let job = compressed(plan);
        return match (job.truth, plan.refused.is_empty()) {
            (Truth::Unknown, true) => Verdict::new(true, reason::IN_PROGRESS, job.message),
            _ => Verdict { truth: Truth::False, ..job },
        };
    };
    if idle(observed, plan) {
        let words =
            format!("no pod; the next request starts one that serves {}", artifact.short_digest);
        return Verdict::new(true, reason::ROLLED_OUT, words);
    }
    if progress.done && serves(observed, artifact) {
        let words = format!("{0} of {0} pods serve {1}", progress.ready, artifact.short_digest);
        return Verdict::new(true, reason::ROLLED_OUT, words);
    }
    if let Some(words) = &progress.refused {
        let quota = words.contains("exceeded quota");
        let kind = if quota { reason::QUOTA_EXCEEDED } else { reason::WRITE_REFUSED };
        return Verdict::new(false, kind, words.clone());
    }
    rolling(observed, plan, progress, artifact)
}

/// The rows of [`progressing`] while pods are being replaced.
fn rolling(
    observed: &Observed,
    plan: &Plan,
    progress: &Progress,
    artifact: &ArtifactStatus,
) -> Verdict {
    let lacks = |trouble: &PodFailure| trouble.reason == reason::INSUFFICIENT_ACCELERATORS;
    match (plan.surge, &plan.trouble) {
        (Surge::Hold, Some(trouble)) if lacks(trouble) => {
            let mend = "the only pod goes on serving. Set spec.rollout.maxUnavailable: 1 to let it go first";
            Verdict::new(false, trouble.reason, format!("{}; {mend}", trouble.message))
        }
        (Surge::OneLess { asked: false }, Some(trouble)) if lacks(trouble) => {
            let words = format!(
                "no spare accelerator ({}): one pod less while pods are replaced (maxSurge 0)",
                trouble.message
            );
            Verdict::new(true, reason::IN_PROGRESS, words)
        }
        (_, Some(trouble)) => Verdict::new(false, trouble.reason, trouble.message.clone()),
        (_, None) if progress.stuck => {
            let deadline = &observed.model.spec.rollout.progress_deadline;
            let words =
                format!("no pod became ready within spec.rollout.progressDeadline ({deadline})");
            Verdict::new(false, reason::DEADLINE_EXCEEDED, words)
        }
        (_, None) => {
            let serving = progress.updated.min(progress.ready);
            let words =
                format!("{serving} of {} pods serve {}", plan.replicas, artifact.short_digest);
            let scales = varies(observed)
                && progress.old == 0
                && serves(observed, artifact)
                && served_before(observed, Some(artifact));
            let kind = if scales { reason::ROLLED_OUT } else { reason::IN_PROGRESS };
            Verdict::new(true, kind, words)
        }
    }
}

/// Whether pods come and go by need.
fn varies(observed: &Observed) -> bool {
    observed.model.spec.scaling.mode() != ScalingMode::Fixed
}

/// Whether the model has no pod by need, and the gateway keeps its requests until it has one.
fn idle(observed: &Observed, plan: &Plan) -> bool {
    plan.replicas == 0
        && varies(observed)
        && plan.traffic.through
        && served_before(observed, plan.artifact.as_ref())
}

/// Available: at least one pod short of the wanted number is ready. Where pods come and go by need
/// the wanted number is the least, since those that are on their way are no loss. With no pod only
/// when the gateway keeps requests until there is one.
fn available(observed: &Observed, plan: &Plan, progress: &Progress) -> Verdict {
    if idle(observed, plan) {
        let words = "no pod; the gateway keeps requests until one is ready";
        return Verdict::new(true, reason::SCALED_TO_ZERO, words);
    }
    let text = format!("{} of {} pods are ready", progress.ready, plan.replicas);
    let least = i32::try_from(observed.model.spec.scaling.min_replicas).unwrap_or(i32::MAX);
    let wanted = if varies(observed) { least.min(plan.replicas) } else { plan.replicas };
    if progress.ready > 0 && progress.ready >= wanted - 1 {
        Verdict::new(true, reason::MINIMUM_REPLICAS, text)
    } else {
        Verdict::new(false, reason::NO_READY_PODS, text)
    }
}

/// ScalingActive.
///
/// | who scales | measured | verdict |
/// |---|---|---|
/// | another | - | True External |
/// | the spec | - | True Fixed |
/// | latency, spec not accepted | - | False Unsupported |
/// | latency | not yet | Unknown Holding |
/// | latency | yes | what the measurements say |
fn scaling(observed: &Observed, plan: &Plan) -> Verdict {
    match observed.model.spec.scaling.mode() {
        ScalingMode::External => {
            Verdict::new(true, reason::EXTERNAL, "the scale subresource sets the number of pods")
        }
        ScalingMode::Fixed => Verdict::new(
            true,
            reason::FIXED,
            format!("spec.scaling.minReplicas asks for {}", plan.replicas),
        ),
        ScalingMode::Latency if !plan.refused.is_empty() => {
            Verdict::new(false, reason::UNSUPPORTED, "waits for an accepted spec")
        }
        ScalingMode::Latency => observed.scaled.as_ref().map_or_else(
            || {
                let words = "nothing was measured yet; the number of pods stays";
                Verdict::new(Truth::Unknown, reason::HOLDING, words)
            },
            |scaled| scaled.verdict.clone(),
        ),
    }
}

/// Ready: the newest spec is accepted, its artifact is the one that is served, the rollout ended,
/// and pods are ready. The first condition that is not so gives reason and words.
fn ready(
    observed: &Observed,
    plan: &Plan,
    progress: &Progress,
    [accepted, compressed, progressing, available]: [&Verdict; 4],
) -> Verdict {
    let rolled_out = progressing.reason == reason::ROLLED_OUT;
    let serves = progress.ready > 0 || idle(observed, plan);
    let done = accepted.truth == Truth::True && plan.current && rolled_out && serves;
    if done {
        return Verdict::new(true, reason::READY, progressing.message.clone());
    }
    let first = if accepted.truth != Truth::True {
        accepted
    } else if !plan.current {
        compressed
    } else if progressing.truth != Truth::True || !rolled_out {
        progressing
    } else {
        available
    };
    let serving = observed.deployment.is_some() && progress.ready > 0 && !plan.current;
    let tail = if serving { "; the last good version goes on serving" } else { "" };
    Verdict::new(false, first.reason, format!("{}{tail}", first.message))
}
