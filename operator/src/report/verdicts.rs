//! The conditions, each with its truth table. Every one always has a status, a reason and words.

use lithe::names::reason;
use lithe::status::{Truth, Verdict, condition};
use lithe::units::human_bytes;

use crate::apply::{Applied, WriteError};
use crate::observe::Observed;
use crate::plan::Plan;
use crate::plan::compress::JobState;
use crate::plan::failure;
use crate::plan::rollout::{Progress, Surge};
use crate::report::serves;

/// All conditions, in order.
pub fn all(
    observed: &Observed,
    plan: &Plan,
    applied: &Result<Applied, WriteError>,
    progress: &Progress,
) -> Vec<(&'static str, Verdict)> {
    let progressing = progressing(observed, plan, applied, progress);
    let available = available(progress);
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
const ABOUT_SOURCE: [&str; 21] = [
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
    reason::CONFIG_ERROR,
];

/// The constant with the text `name`, so that reasons stay one bounded list.
fn about_source(name: &str) -> Option<&'static str> {
    ABOUT_SOURCE.into_iter().find(|known| *known == name)
}

/// ModelVerified.
///
/// | artifact for the newest spec | Job | verdict |
/// |---|---|---|
/// | yes | - | True Verified |
/// | no | failed about the source | False, its reason |
/// | no | failed otherwise | Unknown Waiting |
/// | no | held up about the source | False, its reason |
/// | no | works or will | Unknown InProgress |
fn verified(plan: &Plan) -> Verdict {
    match (&plan.artifact, &plan.job) {
        (Some(artifact), _) if plan.current => Verdict::new(
            true,
            reason::VERIFIED,
            format!(
                "{} ({}) passed every check",
                artifact.source,
                human_bytes(artifact.original_size)
            ),
        ),
        (_, JobState::Failed(refusal)) => match about_source(&refusal.reason) {
            Some(known) => Verdict::new(false, known, words(refusal)),
            None => {
                Verdict::new(Truth::Unknown, reason::WAITING, "the Job ended before it could tell")
            }
        },
        (_, JobState::Running(Some((held, message)))) if about_source(held).is_some() => {
            Verdict::new(false, held, message.clone())
        }
        _ if !plan.refused.is_empty() => {
            Verdict::new(Truth::Unknown, reason::WAITING, "waits for an accepted spec")
        }
        _ => Verdict::new(
            Truth::Unknown,
            reason::IN_PROGRESS,
            "the Job fetches and checks the model",
        ),
    }
}

fn words(refusal: &lithe::artifact::Refusal) -> String {
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
/// | no | works or will | False InProgress |
fn compressed(plan: &Plan) -> Verdict {
    if let (Some(artifact), true) = (&plan.artifact, plan.current) {
        if let Some(why) = &artifact.fallback {
            return Verdict::new(false, reason::SERVING_ORIGINAL, why.clone());
        }
        if artifact.steps.is_empty() {
            return Verdict::new(
                true,
                reason::NOT_REQUESTED,
                "no steps were asked; the verified original is served",
            );
        }
        let figures = [
            Some(artifact.sizes.clone()),
            artifact.metric.as_ref().zip(artifact.value.as_ref()).map(|(metric, value)| {
                let original = artifact.original_value.as_deref().unwrap_or("-");
                format!("{metric} {value} (original {original})")
            }),
            artifact.speedup_text.as_ref().map(|ratio| format!("{ratio} as fast")),
        ];
        let figures: Vec<String> = figures.into_iter().flatten().collect();
        return Verdict::new(true, reason::COMPRESSED, figures.join(", "));
    }
    match &plan.job {
        JobState::Failed(refusal) => {
            Verdict::new(false, known_reason(&refusal.reason), words(refusal))
        }
        JobState::Running(Some((held, message))) => Verdict::new(false, held, message.clone()),
        JobState::Unreadable(name) => Verdict::new(
            false,
            reason::IN_PROGRESS,
            format!(
                "the result of Job {name} was lost; it runs again and finds its artifact in the store"
            ),
        ),
        _ if !plan.refused.is_empty() => {
            Verdict::new(false, reason::WAITING, "waits for an accepted spec")
        }
        _ => Verdict::new(false, reason::IN_PROGRESS, "the Job works on the newest spec"),
    }
}

/// The list's own text for `name`; what is not on the list is a plain failure.
fn known_reason(name: &str) -> &'static str {
    const OTHERS: [&str; 9] = [
        reason::GATE_FAILED,
        reason::RECIPE_INVALID,
        reason::DATA_INVALID,
        reason::NO_SPACE,
        reason::STORE_UNAVAILABLE,
        reason::OOM_KILLED,
        reason::DEADLINE_EXCEEDED,
        reason::UNSUPPORTED,
        reason::IMAGE_PULL_FAILED,
    ];
    about_source(name)
        .or_else(|| OTHERS.into_iter().find(|known| *known == name))
        .unwrap_or(reason::FAILED)
}

/// Progressing.
///
/// | writes | artifact | rollout | verdict |
/// |---|---|---|---|
/// | failed | - | - | False, the write's reason |
/// | ok | none | - | False Waiting |
/// | ok | some | ended | True RolledOut |
/// | ok | some | pods refused | False QuotaExceeded |
/// | ok | some | no accelerator, one pod | False InsufficientAccelerators, with the opt-in |
/// | ok | some | pod has trouble | False, its reason |
/// | ok | some | on its way | True InProgress |
fn progressing(
    observed: &Observed,
    plan: &Plan,
    applied: &Result<Applied, WriteError>,
    progress: &Progress,
) -> Verdict {
    if let Err(error) = applied {
        return Verdict::new(false, error.reason(), crate::report::verdicts::chain(error));
    }
    let Some(artifact) = &plan.artifact else {
        return Verdict::new(false, reason::WAITING, "waits for the first artifact");
    };
    if progress.done && serves(observed, artifact) {
        let count = progress.ready;
        return Verdict::new(
            true,
            reason::ROLLED_OUT,
            format!("{count} of {count} pods serve {}", artifact.short_digest),
        );
    }
    if let Some(words) = &progress.refused {
        let kind = if words.contains("exceeded quota") {
            reason::QUOTA_EXCEEDED
        } else {
            reason::WRITE_REFUSED
        };
        return Verdict::new(false, kind, words.clone());
    }
    let trouble = observed.serving.iter().find_map(|pod| failure::of_pod(pod, &observed.mounts));
    match (plan.surge, trouble) {
        (Surge::Hold, Some(trouble)) => Verdict::new(
            false,
            trouble.reason,
            format!(
                "{}; the only pod goes on serving. Set spec.rollout.maxUnavailable: 1 to let it go first",
                trouble.message
            ),
        ),
        (Surge::OneLess { asked: false }, Some(trouble)) => Verdict::new(
            true,
            reason::IN_PROGRESS,
            format!(
                "no spare accelerator ({}): one pod less while pods are replaced (maxSurge 0)",
                trouble.message
            ),
        ),
        (_, Some(trouble)) => Verdict::new(false, trouble.reason, trouble.message),
        (_, None) if progress.stuck => Verdict::new(
            false,
            reason::DEADLINE_EXCEEDED,
            format!(
                "no pod became ready within spec.rollout.progressDeadline ({})",
                observed.model.spec.rollout.progress_deadline
            ),
        ),
        (_, None) => Verdict::new(
            true,
            reason::IN_PROGRESS,
            format!(
                "{} of {} pods serve {}",
                progress.updated.min(progress.ready),
                plan.replicas,
                artifact.short_digest
            ),
        ),
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

/// Available: at least one pod short of the wanted number is ready, and never with zero pods.
fn available(progress: &Progress) -> Verdict {
    let text = format!("{} of {} pods are ready", progress.ready, progress.wanted);
    if progress.ready > 0 && progress.ready >= progress.wanted - 1 {
        Verdict::new(true, reason::MINIMUM_REPLICAS, text)
    } else {
        Verdict::new(false, reason::NO_READY_PODS, text)
    }
}

fn scaling(observed: &Observed, plan: &Plan) -> Verdict {
    use lithe::spec::ScalingMode;
    match observed.model.spec.scaling.mode() {
        ScalingMode::External => {
            Verdict::new(true, reason::EXTERNAL, "the scale subresource sets the number of pods")
        }
        ScalingMode::Fixed => Verdict::new(
            true,
            reason::FIXED,
            format!("spec.scaling.minReplicas asks for {}", plan.replicas),
        ),
        ScalingMode::Latency => {
            Verdict::new(false, reason::UNSUPPORTED, "scaling on latency is not there yet")
        }
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
    let done = accepted.truth == Truth::True && plan.current && rolled_out && progress.ready > 0;
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
