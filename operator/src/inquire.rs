//! Asks for events of objects that wait: a missing Secret or a full quota is told nowhere else.
//!
//! Bounded: the longer an object waits, the less often it is asked about.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::observe::{Hint, Question};

/// The shortest time between two questions about one object.
const SHORTEST: Duration = Duration::from_secs(5);
/// The longest time between two questions about one object.
const LONGEST: Duration = Duration::from_secs(300);
/// Answers that are remembered; beyond it old ones are forgotten.
const MEMORY: usize = 1000;

/// What was asked, when, and the answer.
#[derive(Default)]
pub struct Answers {
    known: Mutex<HashMap<String, (Instant, Option<Hint>)>>,
}

/// The answers to `questions` about objects in `namespace`, asked for where they are not fresh.
pub async fn inquire(
    client: &Client,
    answers: &Answers,
    namespace: &str,
    questions: &[Question],
) -> Vec<Hint> {
    let mut hints = Vec::new();
    for question in questions.iter().filter(|question| question.ripe()) {
        let now = Instant::now();
        let answer = match answers.fresh(question, now) {
            Some(known) => known,
            None => {
                let answer = ask(client, namespace, question).await;
                answers.remember(question, now, answer.clone());
                answer
            }
        };
        hints.extend(answer);
    }
    hints
}

async fn ask(client: &Client, namespace: &str, question: &Question) -> Option<Hint> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let fields = format!("involvedObject.uid={},type=Warning", question.uid);
    let events = match api.list(&ListParams::default().fields(&fields).limit(50)).await {
        Ok(events) => events,
        Err(error) => {
            tracing::debug!(%error, object = question.object, "events");
            return None;
        }
    };
    let telling = |event: &&Event| {
        let reason = event.reason.as_deref().unwrap_or_default();
        reason.starts_with("Failed") && event.message.is_some()
    };
    let newest = events.items.iter().filter(telling).max_by_key(|event| {
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        last.or_else(|| event.event_time.as_ref().map(|time| time.0))
    })?;
    Some(Hint { object: question.object.clone(), message: newest.message.clone()? })
}

impl Answers {
    fn fresh(&self, question: &Question, now: Instant) -> Option<Option<Hint>> {
        let half = Duration::from_secs(question.age.unsigned_abs() / 2);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (when, answer) = known.get(&question.uid)?;
        let fresh = now.duration_since(*when) < half.clamp(SHORTEST, LONGEST);
        fresh.then(|| answer.clone())
    }

    fn remember(&self, question: &Question, now: Instant, answer: Option<Hint>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MEMORY {
            known.retain(|_, (when, _)| now.duration_since(*when) < LONGEST);
        }
        known.insert(question.uid.clone(), (now, answer));
    }
}
