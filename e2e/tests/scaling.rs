//! Pods by latency, none when nobody asks, and the way of requests: on a real cluster, through the
//! chart, with a real model.
//!
//! Run by `cargo e2e test` after the demo, in its namespace, one test after the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use lithe::spec::{ModelDeployment, TrafficMode};
use lithe::status::{LastScale, ModelDeploymentStatus, Phase};
use serde_json::{Value, json};

use support::load::Load;
use support::{Place, condition};

const DEMO: &str = "lithe-demo";

/// A model whose pods are slow enough for two cores to have several of them.
fn model(scaling: &Value, traffic: &Value) -> Value {
    json!({
        "model": {"uri": "pvc://models/magika.onnx"}, "scaling": scaling, "traffic": traffic,
        "runtime": {"threads": 1, "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "200m", "memory": "512Mi"}}},
    })
}

fn status(model: &ModelDeployment) -> ModelDeploymentStatus {
    model.status.clone().unwrap_or_default()
}

fn mode(model: &ModelDeployment) -> Option<TrafficMode> {
    status(model).traffic.map(|traffic| traffic.mode)
}

fn last(model: &ModelDeployment) -> LastScale {
    status(model).last_scale.expect("the last step is told")
}

async fn address(place: &Place, name: &str) -> String {
    let service = place.api::<Service>().get(name).await.unwrap();
    format!("{}:80", service.spec.unwrap().cluster_ip.unwrap())
}

async fn events(place: &Place, name: &str, reason: &str) -> Vec<String> {
    let all = place.api::<Event>().list(&ListParams::default()).await.unwrap().items;
    let about = |event: &Event| {
        let regarding = event.regarding.as_ref().and_then(|object| object.name.as_deref());
        regarding == Some(name) && event.reason.as_deref() == Some(reason)
    };
    all.into_iter().filter(about).filter_map(|event| event.note).collect()
}

#[tokio::test]
async fn load_brings_pods_and_its_end_takes_them_and_both_are_explained() {
    let place = Place::existing(DEMO).await;
    let latency = json!({"percentile": 95, "target": "100ms"});
    let scaling = json!({"minReplicas": 1, "maxReplicas": 3, "latency": latency, "holdFor": "10s"});
    place.create_anew("elastic", model(&scaling, &json!({}))).await;
    place
        .until("elastic", "the gateway", |m| {
            status(m).phase == Some(Phase::Serving) && mode(m) == Some(TrafficMode::Gateway)
        })
        .await;
    let load = Load::start(&address(&place, "elastic").await, "elastic", 12);
    let more = place.until("elastic", "a second pod", |m| status(m).ready_replicas > 1).await;
    let up = last(&more);
    assert!(up.from < up.to && up.reason.contains("requests/s"), "{up:?}");
    let told = place.until("elastic", "latency", |m| status(m).latency.is_some()).await;
    println!("{:?} {up:?}", status(&told).latency);
    let (count, failed) = load.end();
    println!("{count} requests while pods came, {} failed", failed.len());
    // What can no longer be answered in time is refused with a hint; nothing else fails.
    let refused = |answer: &String| {
        ["HTTP/1.1 429", "HTTP/1.1 503"].iter().any(|code| answer.starts_with(code))
    };
    let broken: Vec<&String> = failed.iter().filter(|answer| !refused(answer)).collect();
    assert_eq!(broken, Vec::<&String>::new());
    let down = place.until("elastic", "one pod again", |m| last(m).to == 1).await;
    let down = last(&down);
    assert!(down.from > 1 && !down.reason.is_empty(), "{down:?}");
    println!("{down:?}");
    assert!(!events(&place, "elastic", "ScaledUp").await.is_empty());
    place
        .eventually("the event", || async {
            !events(&place, "elastic", "ScaledDown").await.is_empty()
        })
        .await;
    let active = place.models().get("elastic").await.unwrap();
    let active = condition(&active, "ScalingActive").unwrap();
    assert_eq!(active.status, "True", "{active:?}");
    place.models().delete("elastic", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn from_no_pod_a_hundred_requests_at_once_are_answered_and_then_there_is_none_again() {
    let place = Place::existing(DEMO).await;
    // Two seconds for a batch of waiting requests on a fifth of a core.
    let latency = json!({"percentile": 95, "target": "60s"});
    let scaling = json!({"minReplicas": 0, "maxReplicas": 1, "latency": latency, "idleAfter": "5s", "holdFor": "5s"});
    place.create_anew("sleeper", model(&scaling, &json!({}))).await;
    let idle = place.until("sleeper", "rest", |m| status(m).phase == Some(Phase::Idle)).await;
    assert_eq!(condition(&idle, "Ready").unwrap().status, "True");
    let start = status(&idle).cold_start.expect("the cold start was measured");
    place
        .until("sleeper", "no pod", |m| status(m).replicas == 0 && status(m).ready_replicas == 0)
        .await;
    let began = std::time::Instant::now();
    let (count, failed) = Load::burst(&address(&place, "sleeper").await, "sleeper", 100).all();
    println!(
        "{count} requests to no pod answered after {:?}, cold start {start:?}",
        began.elapsed()
    );
    assert_eq!((count, failed), (100, Vec::new()));
    let again = place
        .until("sleeper", "rest again", |m| {
            status(m).phase == Some(Phase::Idle) && status(m).last_scale.is_some_and(|s| s.to == 0)
        })
        .await;
    assert!(last(&again).reason.contains("request"), "{:?}", last(&again));
    place.models().delete("sleeper", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn no_request_fails_while_the_way_of_requests_changes_there_and_back() {
    let place = Place::existing(DEMO).await;
    place.create_anew("switch", model(&json!({}), &json!({"mode": "Direct"}))).await;
    place.until("switch", "Serving", |m| status(m).phase == Some(Phase::Serving)).await;
    let load = Load::start(&address(&place, "switch").await, "switch", 2);
    for way in [TrafficMode::Gateway, TrafficMode::Direct] {
        let patch = json!({"spec": {"traffic": {"mode": way}}});
        let params = PatchParams::default();
        place.models().patch("switch", &params, &Patch::Merge(&patch)).await.unwrap();
        // The ports go last of all, when connections through the gateway have ended.
        place
            .until("switch", "the other way", |m| {
                mode(m).unwrap_or(TrafficMode::Direct) == way
                    && (way == TrafficMode::Gateway || status(m).traffic.is_none())
            })
            .await;
    }
    let (count, failed) = load.end();
    println!("{count} requests while the way changed twice, {} failed", failed.len());
    assert!(count > 50, "only {count} requests");
    assert_eq!(failed, Vec::<String>::new());
    place.models().delete("switch", &DeleteParams::default()).await.unwrap();
}
