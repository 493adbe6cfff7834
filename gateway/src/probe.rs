//! Asks workers whether they are ready, where waiting for the cluster to tell would cost a request
//! its time: while requests wait for a first worker, and after one could not be reached.
//!
//! The cluster's way (the kubelet's probe each second, the pod's status, the EndpointSlice) takes a
//! second or two; a worker answers the same question within a millisecond.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};

use crate::model::Model;
use crate::worker::Worker;

/// Between two questions while requests wait: a fiftieth of a short cold start, and for the worker
/// fifty answers of a few microseconds in each second.
const TIGHT: Duration = Duration::from_millis(20);
/// Between two questions while others serve.
const CALM: Duration = Duration::from_secs(1);
/// How long one answer may take.
const LIMIT: Duration = Duration::from_millis(500);

/// Whether anybody should be asked.
pub fn wanted(model: &Model) -> bool {
    let workers = model.workers();
    let waiting = model.hold.len() > 0 && !model.available();
    workers.iter().any(|worker| worker.lost() || (waiting && worker.worth_a_probe()))
}

/// Asks until nobody should be asked any more.
pub async fn probe(model: &Arc<Model>) {
    while wanted(model) {
        let workers = model.workers();
        let asked = workers.iter().filter(|worker| worker.worth_a_probe());
        let found = futures::future::join_all(asked.map(|worker| ask(worker))).await;
        if found.contains(&true) {
            model.changed();
        }
        let waiting = model.hold.len() > 0;
        tokio::time::sleep(if waiting { TIGHT } else { CALM }).await;
    }
}

async fn ask(worker: &Worker) -> bool {
    let ready = tokio::time::timeout(LIMIT, readyz(worker)).await.unwrap_or(false);
    if ready {
        worker.found();
    }
    ready
}

async fn readyz(worker: &Worker) -> bool {
    let Ok(mut lease) = worker.admin.acquire().await else { return false };
    let Ok(request) = Request::get("http://worker/readyz").body(()) else { return false };
    let Ok((answer, _)) = lease.sender.send_request(request, true) else { return false };
    answer.await.is_ok_and(|answer| answer.status() == StatusCode::OK)
}
