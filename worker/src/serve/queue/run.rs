//! Runs what the line chose. A batch that fails is run again request by request, so that one bad
//! request does not fail its neighbours.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::line::Waiting;
use super::{Answer, Shared, Work, rows};
use crate::serve::error::InferError;
use crate::tensor::Tensor;

/// Runs `work`, for which the line was told to begin.
pub fn alone(shared: &Shared, work: &Work) -> Answer {
    let rows = rows::rows(work).unwrap_or(1);
    let (answer, time) = timed(shared, (rows, 1), || run(shared, work));
    shared.finish(rows, answer.is_ok().then_some(time));
    answer
}

/// Runs `batch` as one inference and answers each request.
pub fn together(shared: &Shared, mut batch: Vec<Waiting>) {
    let start = Instant::now();
    for waiting in &batch {
        shared.metrics.queued(start.saturating_duration_since(waiting.since));
    }
    if batch.len() == 1
        && let Some(waiting) = batch.pop()
    {
        let answer = alone(shared, &waiting.work);
        // The client may have gone meanwhile, here and below.
        let _ = waiting.reply.send(answer);
        return;
    }
    let rows: Vec<_> = batch.iter().map(Waiting::rows).collect();
    let total = rows.iter().sum();
    let (answers, time) = timed(shared, (total, batch.len()), || joined(shared, &batch, &rows));
    match answers {
        Ok(answers) => {
            shared.finish(total, Some(time));
            for (waiting, answer) in batch.into_iter().zip(answers) {
                let _ = waiting.reply.send(Ok(answer));
            }
        }
        Err(error) => {
            tracing::debug!(%error, "a batch failed");
            one_by_one(shared, batch);
            shared.finish(total, None);
        }
    }
}

/// The failed batch's requests, each by itself, as long as they are waited for.
fn one_by_one(shared: &Shared, batch: Vec<Waiting>) {
    for waiting in batch {
        let late = waiting.work.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if late || waiting.reply.is_closed() {
            continue;
        }
        let (answer, _) = timed(shared, (waiting.rows(), 1), || run(shared, &waiting.work));
        let _ = waiting.reply.send(answer);
    }
}

fn timed<T>(
    shared: &Shared,
    (rows, requests): (usize, usize),
    run: impl FnOnce() -> Result<T, InferError>,
) -> (Result<T, InferError>, Duration) {
    let start = Instant::now();
    let result = run();
    let time = start.elapsed();
    shared.metrics.computed(time, rows, result.is_ok().then_some(requests));
    (result, time)
}

fn run(shared: &Shared, work: &Work) -> Answer {
    let inputs: Vec<_> = work.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    execute(shared, &inputs, &work.wanted)
}

fn execute(shared: &Shared, inputs: &[(&str, &Tensor)], wanted: &[String]) -> Answer {
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    // A panic must not end the only thread that answers.
    catch_unwind(AssertUnwindSafe(|| shared.backend.run(inputs, &wanted)))
        .map_err(|_| InferError::Internal("the inference panicked".into()))?
        .map_err(|error| InferError::Internal(error.to_string()))
}

/// The answers of `batch`, whose requests have `rows` rows each, from one inference.
fn joined(
    shared: &Shared,
    batch: &[Waiting],
    rows: &[usize],
) -> Result<Vec<Vec<Tensor>>, InferError> {
    let broken = |what: &str| InferError::Internal(format!("{what} of a batch do not fit"));
    let first = &batch.first().ok_or_else(|| broken("requests"))?.work;
    let mut inputs = Vec::with_capacity(first.inputs.len());
    for (index, (name, _)) in first.inputs.iter().enumerate() {
        let parts = batch.iter().filter_map(|waiting| waiting.work.inputs.get(index));
        let parts: Vec<_> = parts.map(|(_, tensor)| tensor).collect();
        inputs.push((name.as_str(), rows::join(&parts).ok_or_else(|| broken("inputs"))?));
    }
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let outputs = execute(shared, &inputs, &first.wanted)?;
    let mut answers: Vec<_> = batch.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for output in outputs {
        let parts = rows::cut(&output, rows).ok_or_else(|| broken("outputs"))?;
        for (answer, part) in answers.iter_mut().zip(parts) {
            answer.push(part);
        }
    }
    Ok(answers)
}
